"""Synthetic digits, letters and commands for the embedded model, spoken by free voices.

    apt-get install espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k \\
        festvox-us-slt-hts libttspico-utils
    python recipes/speak_commands.py --data DIR --run runs/embedded_en

Writes WAV files and `manifest.jsonl` into `spoken` in the run's folder; an interrupted run goes on.
The words that are spelled are those of the recorded transcripts. About ten minutes on one core.
"""

import argparse
from pathlib import Path

import embedded_en

from pianissimo.train.synthesize import cast, compose_commands, installed_engines, synthesize

COUNT, SEED = 5000, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    texts = [u.text.lower() for u in embedded_en.read_data(options.data)]
    prompts = compose_commands(COUNT, SEED, " ".join(texts).split())
    speeches = cast(prompts, SEED, installed_engines())
    print(synthesize(speeches, options.run / "spoken", processes=options.processes))


if __name__ == "__main__":
    main()
