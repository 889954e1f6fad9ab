"""Text without speech: the clips of QuietBench without speech, whole and live.

    python bench/nonspeech.py MANIFEST [--model NAME] [--clips 60] [--noise MANIFEST]

MANIFEST gives the voices of the babble. Silence, microphone noise, ventilation, keys, music and
distant babble are 10 s each, with the seed of QuietBench; `--noise` adds recorded noise, with what
it is as `kind`. Each clip is transcribed whole, and as a stream with partials, in steps of 100 ms.
Texts are printed, and how many clips have one.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import pianissimo
from pianissimo.audio.io import SAMPLE_RATE, load_audio
from pianissimo.evaluate.quietbench.clips import Suite, make_clips, read_sources

STEP = SAMPLE_RATE // 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--subset", default="librispeech")
    parser.add_argument("--model", default="whisper-tiny-en")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--noise", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sources = tuple(read_sources(options.manifest, (options.subset,))[:20])
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(sources, non_speech=options.clips, sweep=0, scenarios=())
        clips, faults = make_clips(suite, Path(folder))
        sounds = [(clip.id, clip.samples()) for clip in clips]
    for fault in faults:
        print(fault)
    if options.noise is not None:
        for line in options.noise.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            path = options.noise.parent / row["audio_filepath"]
            sounds.append((f"recorded {row['kind']}", load_audio(path)))
    recognizer = pianissimo.load(options.model, device="cpu")
    whole = live = 0
    for name, samples in sounds:
        text = recognizer.transcribe(samples, sample_rate=SAMPLE_RATE).text
        whole += bool(text)
        with recognizer.stream() as stream:
            parts = np.split(samples, range(STEP, len(samples), STEP))
            events = [event for part in parts for event in stream.push(part)] + stream.finish()
        texts = [event.text for event in events if event.text]
        live += bool(texts)
        if text or texts:
            print(f"{name}: whole {text!r}, live {texts}", flush=True)
    print(f"with text: whole {whole} of {len(sounds)}, live {live} of {len(sounds)}")


if __name__ == "__main__":
    main()
