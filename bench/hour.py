"""An hour in one live stream: errors, cost and memory of each ten minutes.

    python bench/hour.py MANIFEST [--minutes 60] [--block-minutes 10] [--subsets librispeech,...]

The same clips with pauses of 1.5 s fill each block, so its errors can be compared with those of the
first one. Audio is pushed in steps of 100 ms, as fast as the machine takes it. For each block it
prints word errors in percent, how many finals differ from those of the first block, milliseconds
of the processor per second of audio, and the resident memory.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from accuracy import SUBSETS, Clip, draw

import pianissimo
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.evaluate.wer import word_errors
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.transcript import StreamEvent

STEP, PAUSE = SAMPLE_RATE // 10, np.zeros(SAMPLE_RATE * 3 // 2, np.float32)


def resident_mb() -> float:
    """Memory of the process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def block_of(clips: list[Clip], seconds: float) -> tuple[np.ndarray, str]:
    """As many clips as fit, with pauses, filled up with silence; and what they say."""
    parts: list[np.ndarray] = []
    texts, samples, most = [], 0, round(seconds * SAMPLE_RATE)
    for clip in clips:
        if samples + len(clip.samples) + len(PAUSE) <= most:
            parts += [clip.samples, PAUSE]
            texts.append(clip.text)
            samples += len(clip.samples) + len(PAUSE)
    parts.append(np.zeros(most - samples, np.float32))
    return np.concatenate(parts), " ".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="whisper-tiny-en")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--block-minutes", type=float, default=10)
    parser.add_argument("--subsets", default=",".join(SUBSETS[1:4]))
    parser.add_argument("--clips", type=int, default=40, help="of each subset")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = list(draw(options.manifest, options.subsets.split(","), options.clips, 0))
    block, reference = block_of(clips, 60 * options.block_minutes)
    recognizer = pianissimo.load(options.model, device="cpu")
    blocks = round(options.minutes / options.block_minutes)
    first: list[str] = []
    print("| minutes | word errors | finals that differ | ms of CPU per second | memory, MB |")
    with recognizer.stream() as stream:
        for i in range(blocks):
            began, events = time.process_time(), list[StreamEvent]()
            for start in range(0, len(block), STEP):
                events += stream.push(block[start : start + STEP])
            if i == blocks - 1:
                events += stream.finish()
            cost = 1000 * (time.process_time() - began) / (len(block) / SAMPLE_RATE)
            finals = [event.text for event in events if event.type == "final" and event.text]
            first = first or finals
            other = sum(text not in first for text in finals)
            counts = word_errors(
                normalize_for_scoring(reference), normalize_for_scoring(" ".join(finals))
            )
            until = round((i + 1) * options.block_minutes)
            print(
                f"| until {until} | {100 * counts.rate:.1f} % of {counts.words} | {other} of "
                f"{len(finals)} | {cost:.0f} | {resident_mb():.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
