"""Synthetic commands and sentences for the embedded model, spoken by free voices.

    apt-get install espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k \\
        festvox-us-slt-hts libttspico-utils
    python recipes/speak.py --data DIR --sentences FILE --run runs/embedded_en

Writes WAV files and `manifest.jsonl` into `spoken` (digits, letters, commands) and `prose` (lines
of FILE) in the run's folder; an interrupted run can be resumed. The spelled words are those of the
recorded transcripts. Each takes about ten minutes on one core.

With `--held-out` it writes `held-out` instead, for evaluation: other commands and sentences, in the
voices of RHVoice (`apt-get install rhvoice rhvoice-english`), which are not used for training.
"""

import argparse
import random
import re
from pathlib import Path

import embedded_en

from pianissimo.train.synthesize import (
    Prompt,
    cast,
    compose_commands,
    installed_engines,
    synthesize,
)

COMMANDS, SEED = 5000, 1
SENTENCES, SENTENCE_SEED, FEWEST_WORDS, MOST_WORDS = 4500, 5, 2, 12
HELD_OUT_ENGINE, HELD_OUT_SEED, HELD_OUT = "rhvoice", 9, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True, help="text, a sentence a line")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--held-out", action="store_true", help="speech to measure with")
    options = parser.parse_args()
    texts = [u.text.lower() for u in embedded_en.read_data(options.data)]
    words = " ".join(texts).split()
    lines = sentences(options.sentences.read_text(encoding="utf-8").splitlines())
    if options.held_out:
        for kind, said in (
            ("commands", compose_commands(HELD_OUT, HELD_OUT_SEED, words)),
            ("prose", lines[-HELD_OUT:]),
        ):
            speeches = cast(said, HELD_OUT_SEED, [HELD_OUT_ENGINE])
            print(
                synthesize(speeches, options.run / "held-out" / kind, processes=options.processes)
            )
        return
    engines = [engine for engine in installed_engines() if engine != HELD_OUT_ENGINE]
    for folder, said, seed in (
        ("spoken", compose_commands(COMMANDS, SEED, words), SEED),
        ("prose", lines[:SENTENCES], SENTENCE_SEED),
    ):
        speeches = cast(said, seed, engines)
        print(synthesize(speeches, options.run / folder, processes=options.processes))


def sentences(lines: list[str]) -> list[Prompt]:
    """The lines of words alone, whose text follows from the sound, in a shuffled order."""
    usable = [
        line
        for line in map(str.strip, lines)
        if re.fullmatch(r"[A-Za-z' ,.;:!?\"-]+", line)
        and FEWEST_WORDS <= len(line.split()) <= MOST_WORDS
    ]
    random.Random(SENTENCE_SEED).shuffle(usable)
    return [Prompt(embedded_en.plain(line), spelled=False) for line in usable]


if __name__ == "__main__":
    main()
