"""Whisper tiny.en in 8 bits over recordings: this package beside faster-whisper.

    python bench/whisper_speed.py RECORDING... --folder FOLDER [--seconds 60] [--threads 1]

FOLDER holds Whisper in CTranslate2's layout. Times are of the processor, which other programs
disturb less than the clock; waiting threads count too. faster-whisper runs
one recording after the other as its users call it, and in batches of eight.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each recording")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    from faster_whisper import BatchedInferencePipeline, WhisperModel

    import pianissimo
    from pianissimo.audio.io import SAMPLE_RATE, load_audio

    torch.set_num_threads(options.threads)
    count = round(options.seconds * SAMPLE_RATE)
    recordings = [load_audio(path)[:count] for path in options.recordings]
    audio = sum(map(len, recordings)) / SAMPLE_RATE
    ours = pianissimo.load("whisper-tiny-en", device="cpu")
    model = WhisperModel(
        str(options.folder), device="cpu", compute_type="int8", cpu_threads=options.threads
    )
    batched = BatchedInferencePipeline(model)

    def theirs(beam: int) -> None:
        for samples in recordings:
            list(model.transcribe(samples, beam_size=beam)[0])

    def theirs_batched(beam: int) -> None:
        for samples in recordings:
            list(batched.transcribe(samples, beam_size=beam, batch_size=BATCH)[0])

    def of_ours(words: bool) -> None:
        list(ours.recognize([[samples] for samples in recordings], words))

    runs: dict[str, Callable[[], None]] = {
        "pianissimo, with word times": lambda: of_ours(True),
        "pianissimo": lambda: of_ours(False),
        "faster-whisper, beam 5 (its default)": lambda: theirs(5),
        "faster-whisper, greedy": lambda: theirs(1),
        "faster-whisper, batches, beam 5": lambda: theirs_batched(5),
        "faster-whisper, batches, greedy": lambda: theirs_batched(1),
    }
    print(f"{len(recordings)} recordings, {audio:.0f} s, {options.threads} threads")
    for name, run in runs.items():
        wall, processor = time.perf_counter(), time.process_time()
        run()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(f"| {name} | {audio / processor:.1f} | {audio / wall:.1f} |", flush=True)


if __name__ == "__main__":
    main()
