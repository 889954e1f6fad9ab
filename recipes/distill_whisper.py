"""Distill the live encoder of the built-in Whisper in three stages; resumable.

    python recipes/distill_whisper.py --teacher FOLDER --data DIR --out DIR

`FOLDER` is Whisper tiny.en as it was published, `DIR` has a `manifest.jsonl` with texts. The first
stage hears every damage of real recordings and is trained toward the frames of the whole speech.
The second stage starts from its average at a lower rate, with most speech undamaged and a teacher
that itself runs in chunks of 1120 ms: the whole future is not in the student's reach. What the
decoder predicts is compared at every second step. The third stage compares it at every step, with
more weight than the frames: words count more than frames that no word depends on.
`pianissimo finetune --live` is the first stage alone, for any Whisper and any recordings.

The encoder in the package came from the options of the third stage, its learning rate falling by
the clock; it started where an earlier form of the first two had ended, which had the same losses,
data and numbers of steps. In this form the recipe was not run as a whole; the training that it
calls is tested at a tiny size.
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
        options.out / "second",
        options.out / "first",
        steps=440,
        rate=1.5e-4,
        teacher_chunk=56,
        damaged=0.3,
        words=0.5,
    )
    distill(second, device)
    third = DistillOptions(
        manifest,
        options.out / "whisper-tiny-en",
        options.out / "second",
        steps=624,
        rate=1.5e-4,
        damaged=0.3,
        words=1.0,
        words_weight=1.0,
        chunk_weights=(0.08, 0.36, 0.42, 0.14),
        seed=33,
    )
    distill(third, device)


if __name__ == "__main__":
    main()
