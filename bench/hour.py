"""An hour in one live stream: errors, cost and memory of each ten minutes.

    python bench/hour.py MANIFEST [--minutes 60] [--block-minutes 10] [--subsets librispeech,...]
        [--state FILE] [--blocks N]

The same clips with pauses of 1.5 s fill each block, so its errors can be compared with those of the
first one. Audio is pushed in steps of 100 ms, as fast as the machine takes it. For each block it
prints word errors in percent, how many finals differ from those of the first block, milliseconds
of the processor per second of audio, the resident memory, and the bytes of the exported stream.

With --state the stream is exported to FILE after each block, and continues from there when the
command is run again; --blocks ends a run after that number of blocks. Memory is that of each run.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from accuracy import SUBSETS, Clip, draw

import pianissimo
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.evaluate.wer import word_errors
from pianissimo.streaming.session import Session
from pianissimo.text.normalize import normalize_for_scoring

STEP, PAUSE = SAMPLE_RATE // 10, np.zeros(SAMPLE_RATE * 3 // 2, np.float32)
CONSUMED_SECONDS = 1.2
"""A backlog below the longest chunk is audio that waits for more."""


def resident_mb() -> float:
    """Memory of the process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def block_of(clips: list[Clip], seconds: float) -> tuple[np.ndarray, str]:
    """As many clips as fit, with pauses, filled up with silence; and what they say."""
    parts: list[np.ndarray] = []
    texts, samples, most = [], 0, round(seconds * SAMPLE_RATE)
    for clip in clips:
        if samples + len(clip.samples) + 2 * len(PAUSE) <= most:
            parts += [clip.samples, PAUSE]
            texts.append(clip.text)
            samples += len(clip.samples) + len(PAUSE)
    parts.append(np.zeros(most - samples, np.float32))
    return np.concatenate(parts), " ".join(texts)


def finals_of(session: Session, block: np.ndarray, *, last: bool) -> list[str]:
    """Push a block; the texts of the finals until it is consumed, or until the stream ends."""
    finals: list[str] = []

    def read() -> None:
        while (event := session.get_nowait()) is not None:
            if event.type == "final" and event.text:
                finals.append(event.text)

    for start in range(0, len(block), STEP):
        session.push(block[start : start + STEP])
        read()
    if last:
        session.finish()
        finals += [event.text for event in session if event.type == "final" and event.text]
        return finals
    while session.backlog_seconds > CONSUMED_SECONDS:
        time.sleep(0.01)
        read()
    time.sleep(0.1)  # the last step writes its events
    read()
    return finals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="whisper-tiny-en")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--block-minutes", type=float, default=10)
    parser.add_argument("--subsets", default=",".join(SUBSETS[1:4]))
    parser.add_argument("--clips", type=int, default=40, help="of each subset")
    parser.add_argument("--state", type=Path, help="where the stream is kept between two runs")
    parser.add_argument("--blocks", type=int, help="of this run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clips = list(draw(options.manifest, options.subsets.split(","), options.clips, 0))
    block, reference = block_of(clips, 60 * options.block_minutes)
    recognizer = pianissimo.load(options.model, device="cpu")
    blocks = round(options.minutes / options.block_minutes)
    done, first = 0, list[str]()
    state: bytes | None = None
    noted = None if options.state is None else options.state.with_suffix(".json")
    if noted is not None and noted.is_file():
        done, first = json.loads(noted.read_text())
        state = options.state.read_bytes()
    print(
        "| minutes | word errors | finals that differ | ms of CPU per second | memory, MB | "
        "state, MB |"
    )
    end = blocks if options.blocks is None else min(blocks, done + options.blocks)
    with Engine(recognizer, max_streams=1, options=EngineOptions(threads=1)) as engine:
        session = engine.open(state=state)
        for i in range(done, end):
            began = time.process_time()
            finals = finals_of(session, block, last=i == blocks - 1)
            cost = 1000 * (time.process_time() - began) / (len(block) / SAMPLE_RATE)
            first = first or finals
            other = sum(text not in first for text in finals)
            counts = word_errors(
                normalize_for_scoring(reference), normalize_for_scoring(" ".join(finals))
            )
            until = round((i + 1) * options.block_minutes)
            saved = b"" if i == blocks - 1 else session.export()
            print(
                f"| until {until} | {100 * counts.rate:.1f} % of {counts.words} | {other} of "
                f"{len(finals)} | {cost:.0f} | {resident_mb():.0f} | {len(saved) / 1e6:.1f} |",
                flush=True,
            )
            if noted is not None:
                options.state.write_bytes(saved)
                noted.write_text(json.dumps([i + 1, first]))


if __name__ == "__main__":
    main()
