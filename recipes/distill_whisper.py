"""Distill the live encoder of the built-in Whisper in two stages; resumable.

    python recipes/distill_whisper.py --teacher FOLDER --data DIR --out DIR

`FOLDER` is Whisper tiny.en as it was published, `DIR` has a `manifest.jsonl` with texts. The first
stage hears every damage of real recordings and is trained toward the frames of the whole speech.
The second stage starts from its average at a lower rate, with most speech undamaged and a teacher
that itself runs in chunks of 1120 ms: the whole future is not in the student's reach. What the
decoder predicts is compared at every second step. `pianissimo finetune --live` is the first stage
alone, for any Whisper and any recordings.

The encoder in the package came from an earlier form of this file with the same losses, data and
numbers of steps. Its learning rate followed processor time, and fell faster from step 822 on. In
this form the recipe was not run; the training that it calls is tested at a tiny size.
"""

import argparse
from pathlib import Path

import torch

from pianissimo.train.distill import DistillOptions, distill


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a Whisper")
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of the stages")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    manifest, device = options.data / "manifest.jsonl", torch.device("cpu")
    first = DistillOptions(manifest, options.out / "first", options.teacher, steps=1260)
    distill(first, device)
    second = DistillOptions(
        manifest,
        options.out / "whisper-tiny-en",
        options.out / "first",
        steps=440,
        rate=1.5e-4,
        teacher_chunk=56,
        damaged=0.3,
        words=0.5,
    )
    distill(second, device)


if __name__ == "__main__":
    main()
