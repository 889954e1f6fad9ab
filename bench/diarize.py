"""Errors and speed of speaker turns on mixtures of real recorded people with known turns.

    python bench/diarize.py ../shared/data/speech/manifest.jsonl --subset vctk --subset librispeech
    python bench/diarize.py voices.jsonl --seconds 600 --mixtures 3      # 10 minutes each
    python bench/diarize.py voices.jsonl --write out                     # store them for `evaluate`

Lines of the manifest have `audio_filepath`, `speaker` and `text`. For 2, 3 and 4 speakers each
mixture is diarized with the number of speakers known and unknown, and live. DER is over all
mixtures of a row, overlap included.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import soundfile
import torch

from pianissimo.diarization.live import LiveTurns
from pianissimo.diarization.options import Diarization
from pianissimo.diarization.voices import VoiceTurns
from pianissimo.evaluate.diarization import TurnErrors, turn_errors
from pianissimo.evaluate.mixtures import Mixture, MixtureOptions, Voices, mix, read_voices
from pianissimo.text.formats import rttm_lines
from pianissimo.text.turns import Turn

RATE = 16_000
STEP_SECONDS = 0.16


def offline(mixture: Mixture, speakers: int | None) -> tuple[Turn, ...]:
    source = VoiceTurns(Diarization(speakers=speakers))
    for first in range(0, len(mixture.samples), 10 * RATE):
        source.push(mixture.samples[first : first + 10 * RATE])
    return source.finish()


def live(mixture: Mixture, steps: list[float]) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """Turns as they came, and clustered at the end; the seconds of each step go to `steps`."""
    source, size = LiveTurns(), round(STEP_SECONDS * RATE)
    for first in range(0, len(mixture.samples), size):
        began = time.perf_counter()
        source.push(mixture.samples[first : first + size])
        steps.append(time.perf_counter() - began)
    last = source.finish()
    return tuple(source.turns), last


def row(name: str, mixtures: list[Mixture], found: list[tuple[Turn, ...]], note: str) -> None:
    exact = collar = TurnErrors()
    right = 0
    for mixture, turns in zip(mixtures, found, strict=True):
        exact += turn_errors(mixture.turns, turns)
        collar += turn_errors(mixture.turns, turns, collar=0.25)
        right += len({turn.speaker for turn in turns}) == len({t.speaker for t in mixture.turns})
    confused = 100 * exact.confused / exact.speech
    print(
        f"| {name} | {100 * exact.rate:.1f} | {confused:.1f} | {100 * collar.rate:.1f} "
        f"| {right} of {len(mixtures)} | {note} |",
        flush=True,
    )


def timed(work: Callable[[Mixture], tuple[Turn, ...]], mixtures: list[Mixture]) -> tuple[list, str]:
    began = time.perf_counter()
    found = [work(mixture) for mixture in mixtures]
    seconds = sum(len(mixture.samples) for mixture in mixtures) / RATE
    return found, f"{seconds / (time.perf_counter() - began):.0f}x real time"


def measure(speakers: int, mixtures: list[Mixture]) -> None:
    known, speed = timed(lambda mixture: offline(mixture, speakers), mixtures)
    row(f"{speakers} speakers, number known", mixtures, known, speed)
    free, speed = timed(lambda mixture: offline(mixture, None), mixtures)
    row(f"{speakers} speakers, number unknown", mixtures, free, speed)
    steps: list[float] = []
    both = [live(mixture, steps) for mixture in mixtures]
    mean, worst = 1000 * sum(steps) / len(steps), 1000 * sorted(steps)[int(0.99 * len(steps))]
    note = f"{mean:.1f} ms per step of {1000 * STEP_SECONDS:.0f} ms, 99 % under {worst:.0f} ms"
    row(f"{speakers} speakers, live labels", mixtures, [early for early, _ in both], note)
    row(f"{speakers} speakers, end of stream", mixtures, [last for _, last in both], "")


def write(folder: Path, name: str, mixture: Mixture) -> str:
    """Store a mixture as WAV and RTTM; its line of a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name}.wav", mixture.samples, RATE)
    (folder / f"{name}.rttm").write_text(rttm_lines(mixture.turns, name))
    segments = [vars(utterance) for utterance in mixture.utterances if utterance.text is not None]
    line = {"audio_filepath": f"{name}.wav", "rttm_filepath": f"{name}.rttm"}
    return json.dumps({**line, "segments": segments} if segments else line) + "\n"


def made(voices: Voices, options: argparse.Namespace, speakers: int) -> list[Mixture]:
    turns = None if options.whole else (2.0, 5.0)
    asked = MixtureOptions(speakers, options.seconds, options.overlap, turn_seconds=turns)
    first = 1000 * speakers if options.seed is None else options.seed
    return [mix(voices, asked, seed=first + i) for i in range(options.mixtures)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--subset", action="append", default=[], help="lines of this subset")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a mixture")
    parser.add_argument("--mixtures", type=int, default=2, help="per number of speakers")
    parser.add_argument("--seed", type=int, help="of the first mixture, by default 1000 * speakers")
    parser.add_argument("--overlap", type=float, default=0.1, help="share of overlapping speech")
    parser.add_argument("--whole", action="store_true", help="whole recordings, with their text")
    parser.add_argument("--write", type=Path, help="store the mixtures and measure nothing")
    options = parser.parse_args()
    voices = read_voices(options.manifest, options.subset)
    lines = []
    if options.write is None:
        print(f"{len(voices)} voices, {torch.get_num_threads()} threads\n")
        print(
            "| mixtures | DER % | of it confusion % | DER %, collar 0.25 s | number right | cost |"
        )
        print("|---|--:|--:|--:|--:|---|")
    for speakers in (2, 3, 4):
        mixtures = made(voices, options, speakers)
        if options.write is None:
            measure(speakers, mixtures)
            continue
        for i, mixture in enumerate(mixtures):
            lines.append(write(options.write, f"{speakers}-speakers-{i}", mixture))
    if options.write is not None:
        (options.write / "manifest.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
