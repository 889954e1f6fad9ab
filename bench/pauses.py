"""Word errors of live streams in two commands with a pause between them, against each one alone.

    python bench/pauses.py                                  # the models of the package
    python bench/pauses.py --model FOLDER --latency 160 --pauses 2 10 --show

The recordings are those of a `manifest.jsonl`; pauses are near silence. Digits and spelled letters
count as the words that people say for them. Transducers are measured with and without the rules for
the onset of speech, which restart the state after a pause. `--show` prints pairs that differ.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

import pianissimo
from pianissimo import WatchdogRules
from pianissimo.audio.io import SAMPLE_RATE, Samples, load_audio
from pianissimo.evaluate.wer import word_errors
from pianissimo.protocols import StreamRecognizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.normalize import normalize_for_scoring

SPEECH = Path(__file__).resolve().parents[2] / "shared" / "data" / "speech"
MODELS = ("embedded-commands", "whisper-tiny-en")
BLOCK = SAMPLE_RATE // 10
LEVEL = 1e-4
DIGITS = "zero one two three four five six seven eight nine".split()


@dataclass(frozen=True)
class Command:
    """A recording (n,) at 16 kHz and its words."""

    text: str
    samples: Samples


def pairs(folder: Path, subset: str, count: int) -> list[tuple[Command, Command]]:
    """Neighbors in the manifest, spread over its first lines."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["subset"] == subset]
    commands = {
        row["audio_filepath"]: Command(row["text"], load_audio(folder / row["audio_filepath"]))
        for both in list(pairwise(rows))[::3][:count]
        for row in both
    }
    return [
        (commands[one["audio_filepath"]], commands[two["audio_filepath"]])
        for one, two in list(pairwise(rows))[::3][:count]
    ]


def words(text: str) -> str:
    """A text as it counts: lower case, without marks, digits and spelled letters as words."""
    text = re.sub(r"\b[A-Z]{2,}\b", lambda letters: " ".join(letters[0]), text)
    text = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text)
    return normalize_for_scoring(text.replace("-", " "))


def heard(
    recognizer: StreamRecognizer, samples: Samples, latency: int, rules: WatchdogRules | None
) -> str:
    if isinstance(recognizer, NativeRecognizer):
        opened = recognizer.stream(latency_ms=latency, watchdog=rules)
    else:
        opened = recognizer.stream(latency_ms=latency)
    with opened as stream:
        blocks = (samples[at : at + BLOCK] for at in range(0, len(samples), BLOCK))
        events = [event for block in blocks for event in stream.push(block)]
        events += stream.finish()
    return words(" ".join(event.text for event in events if event.type == "final" and event.text))


def errors(
    recognizer: StreamRecognizer,
    commands: Sequence[tuple[Command, Command]],
    latency: int,
    pauses: Sequence[float],
    rules: WatchdogRules | None,
    show: bool,
) -> list[int]:
    """Word errors of all pairs: alone, then behind each of the pauses in seconds."""
    rng = np.random.default_rng(0)
    counts = [0] * (1 + len(pauses))
    for one, two in commands:
        alone = [heard(recognizer, each.samples, latency, rules) for each in (one, two)]
        expected = f"{one.text} {two.text}"
        wrong = [word_errors(one.text, alone[0]).errors + word_errors(two.text, alone[1]).errors]
        for seconds in pauses:
            pause = rng.normal(0, LEVEL, round(seconds * SAMPLE_RATE)).astype(np.float32)
            joined = np.concatenate([one.samples, pause, two.samples])
            found = heard(recognizer, joined, latency, rules)
            wrong.append(word_errors(expected, found).errors)
            if show and wrong[-1] != wrong[0]:
                print(f"{seconds:g} s: {found} | alone: {' + '.join(alone)} | {expected}")
        counts = [count + more for count, more in zip(counts, wrong, strict=True)]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    speech = Path(os.environ.get("PIANISSIMO_SPEECH", SPEECH))
    parser.add_argument("--speech", type=Path, default=speech, help="directory of manifest.jsonl")
    parser.add_argument("--subset", default="an4", help="of the manifest")
    parser.add_argument("--model", nargs="*", default=MODELS, help="names or folders")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--latency", type=int, nargs="*", help="ms, by default all of each model")
    parser.add_argument("--pauses", type=float, nargs="*", default=[2.0, 10.0], help="seconds")
    parser.add_argument("--show", action="store_true", help="print what differs from alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    commands = pairs(options.speech, options.subset, options.pairs)
    total = sum(len(f"{one.text} {two.text}".split()) for one, two in commands)
    behind = "".join(f" behind {seconds:g} s |" for seconds in options.pauses)
    print(f"errors in {total} words\n\n| model | latency ms | onset rules | alone |{behind}")
    print("|---|--:|---|--:|" + "--:|" * len(options.pauses))
    for name in options.model:
        recognizer = pianissimo.load(name)
        kinds: dict[str, WatchdogRules | None] = {"": None}
        if isinstance(recognizer, NativeRecognizer):
            kinds = {"on": WatchdogRules(), "off": WatchdogRules(onset=None)}
        for latency in options.latency or recognizer.latencies_ms:
            for kind, rules in kinds.items():
                found = errors(recognizer, commands, latency, options.pauses, rules, options.show)
                print(
                    f"| {name} | {latency} | {kind} | {' | '.join(map(str, found))} |", flush=True
                )


if __name__ == "__main__":
    main()
