"""Words while people speak: how late a live Whisper writes them, and how many the final changes.

    python bench/partials.py MANIFEST [--subsets librispeech,...] [--clips 8] [--model NAME]
        [--latency-ms 1120] [--commit alignment agreement]

Clips are pushed in steps of 100 ms. The lag of a word is the audio that was pushed when a partial
first had it, less the end of the word as the final times it. A word counts as changed if the final
does not have it in its place; case and marks do not count, and a last word of which only the
beginning was written does. Both rules for what a partial may write
are measured: "alignment" and "agreement", see `pianissimo.decoding.whisper_live.Commit`. Times of
the processor are those of partials and finals together.
"""

import argparse
import time
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch
from accuracy import SUBSETS, draw

import pianissimo
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.protocols import Stream
from pianissimo.text.normalize import normalize_for_scoring

STEP = SAMPLE_RATE // 10


@dataclass
class Result:
    words: int = 0
    committed: int = 0
    changed: int = 0
    lags: list[float] = field(default_factory=list)
    audio_seconds: float = 0.0
    processor_seconds: float = 0.0


def bare(text: str) -> str:
    return normalize_for_scoring(text).replace(" ", "")


def measure(stream: Stream, samples: np.ndarray, result: Result) -> None:
    """Add one clip."""
    shown: list[tuple[str, float]] = []  # the words of the partials, and when each was written
    begin = time.process_time()
    for start in range(0, len(samples), STEP):
        end = min(start + STEP, len(samples))
        events = stream.push(samples[start:end])
        if end == len(samples):
            events += stream.finish()
        for event in events:
            words = [bare(word) for word in event.text.split() if bare(word)]
            if event.type == "partial":
                same = 0
                while same < min(len(words), len(shown)) and words[same] == shown[same][0]:
                    same += 1  # the last word may have grown since
                shown = [*shown[:same], *((word, end / SAMPLE_RATE) for word in words[same:])]
            elif event.type == "final":
                ends = [(bare(word.text), word.end) for word in event.words if bare(word.text)]
                matcher = SequenceMatcher(
                    None, [w for w, _ in shown], [w for w, _ in ends], autojunk=False
                )
                kept = 0
                for block in matcher.get_matching_blocks():
                    kept += block.size
                    result.lags += [
                        shown[block.a + i][1] - ends[block.b + i][1] for i in range(block.size)
                    ]
                result.words += len(ends)
                result.committed += len(shown)
                result.changed += len(shown) - kept
                shown = []
    result.processor_seconds += time.process_time() - begin
    result.audio_seconds += len(samples) / SAMPLE_RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--subsets", default=",".join(SUBSETS[1:4]))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="whisper-tiny-en")
    parser.add_argument("--latency-ms", type=int)
    parser.add_argument("--commit", nargs="+", default=["alignment", "agreement"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = pianissimo.load(options.model, device="cpu")
    clips = list(draw(options.manifest, options.subsets.split(","), options.clips, options.seed))
    print("| rule | words | written | changed | lag p50 | p95 | ms of CPU per second |")
    for rule in options.commit:
        recognizer.live.decoder.commit = rule
        result = Result()
        for clip in clips:
            with recognizer.stream(latency_ms=options.latency_ms) as stream:
                measure(stream, clip.samples, result)
        middle, late = np.percentile(result.lags or [0.0], [50, 95])
        print(
            f"| {rule} | {result.words} | {result.committed} | "
            f"{100 * result.changed / max(1, result.committed):.1f} % | {middle:.2f} s | "
            f"{late:.2f} s | {1000 * result.processor_seconds / result.audio_seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
