"""Word errors of live streams in two commands with a pause between them, against each one alone.

    python bench/pauses.py [--speech DIRECTORY] [--latency 160] [--pauses 2 10]

The recordings are those of a `manifest.jsonl`; pauses are near silence. "without" turns the rules
for the onset of speech off.
"""

import argparse
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import pianissimo
from pianissimo import WatchdogRules
from pianissimo.audio.io import SAMPLE_RATE, Samples, load_audio
from pianissimo.evaluate.wer import word_errors
from pianissimo.recognizers.fastconformer import NativeRecognizer

SPEECH = Path(__file__).resolve().parents[2] / "shared" / "data" / "speech"
BLOCK = SAMPLE_RATE // 10
LEVEL = 1e-4
RULES = {"with": WatchdogRules(), "without": WatchdogRules(onset=None)}


def pairs(folder: Path, subset: str, count: int) -> list[tuple[str, Samples, str, Samples]]:
    """Neighbors in the manifest, spread over its first lines."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["subset"] == subset]
    found = []
    for first, second in list(pairwise(rows))[::3][:count]:
        one, two = (load_audio(folder / row["audio_filepath"]) for row in (first, second))
        found.append((first["text"], one, second["text"], two))
    return found


def heard(recognizer: NativeRecognizer, samples: Samples, latency: int, rules: str) -> str:
    with recognizer.stream(latency_ms=latency, watchdog=RULES[rules]) as stream:
        blocks = (samples[at : at + BLOCK] for at in range(0, len(samples), BLOCK))
        events = [event for block in blocks for event in stream.push(block)]
        events += stream.finish()
    return " ".join(event.text for event in events if event.type == "final" and event.text)


def errors(
    recognizer: NativeRecognizer,
    commands: Sequence[tuple[str, Samples, str, Samples]],
    latency: int,
    pauses: Sequence[float],
    rules: str,
) -> dict[str, int]:
    """Word errors of all pairs: alone, and by the seconds between the two."""
    rng = np.random.default_rng(0)
    counts: dict[str, int] = {}

    def count(name: str, expected: str, samples: Samples) -> None:
        found = word_errors(expected, heard(recognizer, samples, latency, rules)).errors
        counts[name] = counts.get(name, 0) + found

    for text, one, other_text, two in commands:
        count("alone", text, one)
        count("alone", other_text, two)
        for seconds in pauses:
            pause = rng.normal(0, LEVEL, round(seconds * SAMPLE_RATE)).astype(np.float32)
            count(f"{seconds:g} s", f"{text} {other_text}", np.concatenate([one, pause, two]))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    speech = Path(os.environ.get("PIANISSIMO_SPEECH", SPEECH))
    parser.add_argument("--speech", type=Path, default=speech, help="directory of manifest.jsonl")
    parser.add_argument("--subset", default="an4", help="of the manifest")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--latency", type=int, nargs="*", default=[80, 160, 560, 1120], help="ms")
    parser.add_argument("--pauses", type=float, nargs="*", default=[2.0, 10.0], help="seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = pianissimo.load("embedded-commands")
    commands = pairs(options.speech, options.subset, options.pairs)
    words = sum(len(f"{text} {other}".split()) for text, _, other, _ in commands)
    print(json.dumps({"words": words}))
    for latency in options.latency:
        for rules in RULES:
            found = errors(recognizer, commands, latency, options.pauses, rules)
            print(json.dumps({"latency ms": latency, "onset rules": rules, **found}), flush=True)


if __name__ == "__main__":
    main()
