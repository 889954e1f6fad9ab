"""A peer for bench/streaming.py: one engine, one latency, some streams, one line of JSON.

    python bench/peers/stream_peer.py --engine nemo|transformers|sherpa|sherpa-int8
        --models DIR --wav FILE [--ms 560] [--streams 1] [--seconds 20] [--threads 2]

Runs in the peers' environment on what `make_models.py` wrote to DIR. Every stream gets the wave
file from another place on, over and over; all streams hand over their chunk at the same moment, as
fast as the engine takes them. A step's time counts from then until all their tokens are there and
thus includes the features. The output:

    engine, ms, streams, threads    what was asked
    steps                           chunks of each stream
    p50_ms, p95_ms, p99_ms          time of a step, without the first two
    audio_per_second                seconds of audio per second of stepping, over all streams
    tokens                          all that came out, of all streams
    import_s, load_s                importing the engine; loading the model
    rss_mb, peak_rss_mb             resident memory of this process at the end, and peak, MiB;
                                    mapped weights may be missing from the former
    major_faults                    pages read back from disk while stepping; should be near 0,
                                    else the system took mapped weights away and times mean little
    token_ids                       for each stream, with --token-ids
"""

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SAMPLE_RATE = 16000
HOP, WINDOW, FFT = 160, 400, 512
"""Of the features, in samples."""
FACTOR = 8
"""Mel frames in an encoder frame."""
LEFT_CONTEXT = 70
BLANK, PADDING = 1024, 0
LOOKAHEADS = {80: 0, 160: 1, 560: 6, 1120: 13}
"""Latency in milliseconds -> lookahead in encoder frames."""
OFFSET_SECONDS = 3.7
"""How much later in the file each stream begins than the one before."""
UNTIMED_STEPS = 2
FEWEST_CHUNKS = 5


@dataclass(frozen=True)
class Task:
    """What to run; `audio` is (streams, samples)."""

    models: Path
    ms: int
    threads: int
    audio: Floats

    @property
    def lookahead(self) -> int:
        return LOOKAHEADS[self.ms]

    @property
    def chunk_frames(self) -> int:
        """Mel frames in every chunk but the first."""
        return FACTOR * (self.lookahead + 1)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First and end mel frame of each chunk that is complete within the audio."""
        ready = (self.audio.shape[1] - WINDOW // 2) // HOP + 1
        start, end = 0, 1 + FACTOR * self.lookahead
        while end <= ready:
            yield start, end
            start, end = end, end + self.chunk_frames


def major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


@dataclass
class Run:
    """What came of it."""

    import_s: float
    load_s: float
    faults_before: int = field(default_factory=major_faults)
    step_s: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)


# -------------------------------------------------------------------------------------------- NeMo


def run_nemo(task: Task) -> Run:
    """The loop of NeMo's example of cache-aware streaming, with features of each chunk in time.

    The example computes the features of the whole file first; here each step computes its own, from
    the samples that they need and no more, to the same values.
    """
    began = time.perf_counter()
    import torch
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import OmegaConf

    torch.set_num_threads(task.threads)
    imported = time.perf_counter()
    model = EncDecRNNTBPEModel.restore_from(str(task.models / "model.nemo"), map_location="cpu")
    model.eval()
    model.encoder.set_default_att_context_size([LEFT_CONTEXT, task.lookahead])
    decoding = {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}, "fused_batch_size": -1}
    model.change_decoding_strategy(OmegaConf.create(decoding), verbose=False)
    run = Run(imported - began, time.perf_counter() - imported)

    settings = model.encoder.streaming_cfg
    audio = torch.from_numpy(task.audio)
    rows = len(audio)
    caches = model.encoder.get_initial_cache_state(batch_size=rows)
    past = torch.zeros(rows, model.cfg.encoder.feat_in, settings.pre_encode_cache_size[1])
    hypotheses = previous = None
    with torch.inference_mode():
        for start, end in task.chunks():
            began = time.perf_counter()
            # Two more frames on the left: the window of the first one wanted begins in them.
            first = max(0, start - 2)
            samples = audio[:, first * HOP : (end - 1) * HOP + WINDOW // 2]
            lengths = torch.full((rows,), samples.shape[1])
            mel, _ = model.preprocessor(input_signal=samples, length=lengths)
            mel = mel[:, :, start - first : end - first]
            chunk = torch.cat([past, mel], dim=2) if start else mel
            past = torch.cat([past, mel], dim=2)[:, :, -past.shape[2] :]
            previous, _, *caches, hypotheses = model.conformer_stream_step(
                processed_signal=chunk,
                processed_signal_length=torch.full((rows,), chunk.shape[2]),
                cache_last_channel=caches[0],
                cache_last_time=caches[1],
                cache_last_channel_len=caches[2],
                keep_all_outputs=False,
                previous_hypotheses=hypotheses,
                previous_pred_out=previous,
                drop_extra_pre_encoded=settings.drop_extra_pre_encoded if start else 0,
                return_transcription=True,
            )
            run.step_s.append(time.perf_counter() - began)
    run.tokens = [[int(token) for token in hypothesis.y_sequence] for hypothesis in hypotheses]
    return run


# ------------------------------------------------------------------------------------ Transformers


def run_transformers(task: Task) -> Run:
    """One `generate` over a generator of chunks: it asks for the next when it is done with one.

    With several streams only the one that says most keeps its tokens: `generate` moves the others
    on past the end of the chunk while it waits, and they skip that many frames of the next.
    """
    began = time.perf_counter()
    import torch
    from transformers import NemotronAsrStreamingForRNNT, NemotronAsrStreamingProcessor

    torch.set_num_threads(task.threads)
    imported = time.perf_counter()
    folder = task.models / "hf"
    model = NemotronAsrStreamingForRNNT.from_pretrained(folder, dtype=torch.float32).eval()
    processor = NemotronAsrStreamingProcessor.from_pretrained(folder)
    processor.set_num_lookahead_tokens(task.lookahead)
    run = Run(imported - began, time.perf_counter() - imported)

    def features() -> Iterator[Any]:
        for start, end in task.chunks():
            began = time.perf_counter()
            if start:
                # At the shortest latency the second chunk reaches back before the first sample.
                left = start * HOP - FFT // 2
                samples = task.audio[:, max(0, left) : left + (end - start) * HOP + WINDOW]
                samples = np.pad(samples, ((0, 0), (max(0, -left), 0)))
            else:
                samples = task.audio[:, : (end - 1) * HOP + WINDOW // 2]
            inputs = processor(
                list(samples),
                sampling_rate=SAMPLE_RATE,
                is_streaming=True,
                is_first_audio_chunk=start == 0,
                return_tensors="pt",
            )
            yield inputs["input_features"][:, : end - start]
            run.step_s.append(time.perf_counter() - began)

    with torch.inference_mode():
        out = model.generate(input_features=features(), num_lookahead_tokens=task.lookahead)
    steps = out.sequences[:, 1:].tolist()
    run.tokens = [[token for token in row if token not in (BLANK, PADDING)] for row in steps]
    return run


# ------------------------------------------------------------------------------------- sherpa-onnx


def run_sherpa(task: Task, kind: str = "") -> Run:
    """`decode_streams` over all streams that are ready, once a chunk."""
    began = time.perf_counter()
    import sherpa_onnx

    imported = time.perf_counter()
    folder = task.models / f"sherpa-{task.ms}"
    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        tokens=str(folder / "tokens.txt"),
        encoder=str(folder / f"encoder{kind}.onnx"),
        decoder=str(folder / f"decoder{kind}.onnx"),
        joiner=str(folder / f"joiner{kind}.onnx"),
        num_threads=task.threads,
    )
    run = Run(imported - began, time.perf_counter() - imported)

    streams = [recognizer.create_stream() for _ in task.audio]
    samples = task.chunk_frames * HOP
    for start in range(0, task.audio.shape[1] - samples + 1, samples):
        began = time.perf_counter()
        for stream, row in zip(streams, task.audio, strict=True):
            stream.accept_waveform(SAMPLE_RATE, row[start : start + samples])
        decoded = 0
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
            decoded += 1
        results = [recognizer.get_result_all(stream) for stream in streams]
        taken = time.perf_counter() - began
        # Its first window is longer than a chunk: nothing happens before the second or third.
        if decoded:
            run.step_s.append(taken)
        elif run.step_s:
            raise RuntimeError("sherpa-onnx did not decode a chunk when it was complete")
    ids = {}
    for line in (folder / "tokens.txt").read_text(encoding="utf-8").splitlines():
        piece, _, number = line.rpartition(" ")
        ids[piece.replace("▁", " ")] = int(number)
    run.tokens = [[ids[piece] for piece in result.tokens] for result in results]
    return run


def run_sherpa_int8(task: Task) -> Run:
    return run_sherpa(task, ".int8")


ENGINES: dict[str, Callable[[Task], Run]] = {
    "nemo": run_nemo,
    "transformers": run_transformers,
    "sherpa": run_sherpa,
    "sherpa-int8": run_sherpa_int8,
}


# ------------------------------------------------------------------------------------ the bench


def read_streams(path: Path, streams: int, seconds: float) -> Floats:
    """(streams, samples): the file from another offset on for each stream."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise SystemExit(f"{path}: expected one channel at {SAMPLE_RATE} Hz")
    count = round(seconds * SAMPLE_RATE)
    steps = np.arange(count)
    starts = [round(row * OFFSET_SECONDS * SAMPLE_RATE) for row in range(streams)]
    return np.stack([samples[(start + steps) % len(samples)] for start in starts])


def memory_mb(name: str) -> float:
    """VmRSS or VmHWM of this process in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name}")


def report(task: Task, run: Run) -> dict[str, Any]:
    timed = run.step_s[UNTIMED_STEPS:] or run.step_s
    streams, steps = len(task.audio), len(run.step_s)
    percentiles = np.percentile(np.array(timed) * 1000, (50, 95, 99))
    return {
        "p50_ms": round(float(percentiles[0]), 2),
        "p95_ms": round(float(percentiles[1]), 2),
        "p99_ms": round(float(percentiles[2]), 2),
        "audio_per_second": round(streams * steps * task.ms / 1000 / sum(run.step_s), 4),
        "tokens": sum(map(len, run.tokens)),
        "rss_mb": round(memory_mb("VmRSS")),
        "peak_rss_mb": round(memory_mb("VmHWM")),
        "major_faults": major_faults() - run.faults_before,
        "load_s": round(run.load_s, 2),
        "import_s": round(run.import_s, 2),
        "steps": steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--models", type=Path, required=True, help="folder of make_models.py")
    parser.add_argument("--wav", type=Path, required=True, help="16 kHz, mono")
    parser.add_argument("--ms", type=int, choices=LOOKAHEADS, default=560)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="of audio for each stream")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--token-ids", action="store_true", help="print the tokens as well")
    options = parser.parse_args()
    # What libraries print goes to standard error; standard output is for the one line.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    warnings.filterwarnings("ignore")
    audio = read_streams(options.wav, options.streams, options.seconds)
    task = Task(options.models, options.ms, options.threads, audio)
    if len(list(task.chunks())) < FEWEST_CHUNKS:
        raise SystemExit(f"--seconds {options.seconds}: less than {FEWEST_CHUNKS} chunks")
    names = {"nemo": "model.nemo", "transformers": "hf"}
    needed = options.models / names.get(options.engine, f"sherpa-{options.ms}")
    if not needed.exists():
        raise SystemExit(f"{needed} is missing: run make_models.py --ms {options.ms}")
    run = ENGINES[options.engine](task)
    asked = {name: getattr(options, name) for name in ("engine", "ms", "streams", "threads")}
    tokens = {"token_ids": run.tokens} if options.token_ids else {}
    print(json.dumps(asked | report(task, run) | tokens), file=answer, flush=True)


if __name__ == "__main__":
    main()
