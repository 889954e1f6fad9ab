"""Run recognizers over the clips of QuietBench, with and without gain; results are reused.

Each result is written to `results.jsonl` at once, with what it depends on: the recognizer and a
fingerprint of its weights, the gain, the clip and its checksum. An interrupted run reads them and
resumes; other weights or clips have other lines.
"""

import hashlib
import json
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.gain import GainMode
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import Samples, measure_levels
from pianissimo.audio.vad import segments
from pianissimo.errors import PianissimoError
from pianissimo.evaluate.quietbench.clips import BenchClip
from pianissimo.evaluate.quietbench.scoring import count_errors, metric
from pianissimo.protocols import Recognizer
from pianissimo.transcript import Transcript

RESULTS = "results.jsonl"
_WARM_UPS, _REPEATS, _LATENCY_CLIPS = 3, 5, 6


@dataclass(frozen=True)
class Result:
    """Errors of one recognizer on one clip in one gain mode."""

    recognizer: str
    weights: str
    """Fingerprint of the parameters: a retrained model has another one."""
    gain: GainMode
    clip: str
    group: str
    sha256: str
    speaker: str
    language: str
    metric: str
    reference: str
    text: str
    substitutions: int
    deletions: int
    insertions: int
    units: int
    seconds: float
    latency_seconds: float
    reasons: tuple[str, ...] = ()
    gain_db: float = 0.0
    speech_db: float = 0.0
    noise_db: float = 0.0
    error: str | None = None
    """The recognizer's error on this clip, which then counts as an empty text."""

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What the result depends on."""
        return (self.recognizer, self.weights, self.gain, self.clip, self.sha256)


@dataclass(frozen=True)
class Speed:
    """Milliseconds from audio in memory to text, one clip at a time, after warm-up."""

    recognizer: str
    gain: GainMode
    clips: int
    p50_ms: float
    p95_ms: float
    mean_clip_seconds: float
    realtime_factor: float
    """Processing time over audio time, of the recognizer with its gain."""
    gain_ms_per_second: float
    vad_ms_per_second: float
    peak_memory_mib: float
    streams: bool


def fingerprint(recognizer: Recognizer, path: Path | None = None) -> str:
    """Twelve hex digits of the recognizer's parameters; of the files at `path` it was read from,
    where it shows no parameters; or of its name, where no path is given either."""
    digest = hashlib.sha256(recognizer.name.encode())
    if recognizer.module is not None:
        for name, parameter in sorted(recognizer.module.named_parameters()):
            digest.update(name.encode())
            digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    elif path is not None:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in (file for file in files if file.is_file()):
            digest.update(file.name.encode())
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:12]


class Leveled:
    """A recognizer in one gain mode. The gain is in front of a recognizer that has none itself."""

    def __init__(self, recognizer: Recognizer, mode: GainMode) -> None:
        own = recognizer.capabilities.gain
        self.recognizer = recognizer.with_gain(mode) if own else recognizer
        self.front_end = None if own else FrontEnd(mode)

    def transcribe(self, samples: Samples) -> Transcript:
        """The transcript of samples (n,) at 16 kHz, without word times."""
        if self.front_end is not None:
            samples = self.front_end.whole(samples).samples
        return self.recognizer.transcribe(samples, sample_rate=SAMPLE_RATE, word_timestamps=False)


def read_results(folder: Path) -> list[Result]:
    """The results of a run, without a last line that is incomplete."""
    path = folder / RESULTS
    if not path.exists():
        return []
    results = []
    for line in path.read_text("utf-8").split("\n"):
        try:
            row = json.loads(line)
            results.append(Result(**{**row, "reasons": tuple(row["reasons"])}))
        except (ValueError, TypeError, KeyError):
            continue
    return results


def run(
    recognizers: Iterable[Recognizer],
    clips: Sequence[BenchClip],
    folder: Path,
    *,
    gains: Sequence[GainMode] = ("off", "on"),
    weights: Mapping[str, str] = MappingProxyType({}),
    advance: Callable[[], None] | None = None,
) -> list[Result]:
    """Run all recognizers over all clips in every gain mode and return the results.

    Results that `folder` holds are reused. `weights` maps recognizer names to fingerprints, for
    recognizers without visible parameters. `advance` is called after every result.
    """
    known = {result.key: result for result in read_results(folder)}
    results = []
    _end_last_line(folder / RESULTS)
    with open(folder / RESULTS, "a", encoding="utf-8") as file:
        for recognizer in recognizers:
            own = weights.get(recognizer.name) or fingerprint(recognizer)
            for gain in gains:
                leveled = Leveled(recognizer, gain)
                for clip in clips:
                    result = known.get((recognizer.name, own, gain, clip.id, clip.sha256))
                    if result is None:
                        result = _one(leveled, own, gain, clip)
                        file.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
                        file.flush()
                    results.append(result)
                    if advance is not None:
                        advance()
    return results


def _end_last_line(path: Path) -> None:
    """End an incomplete last line, so that the next result has its own."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n")


def _one(leveled: Leveled, weights: str, gain: GainMode, clip: BenchClip) -> Result:
    samples = clip.samples()
    text, error = "", None
    reasons: tuple[str, ...] = ()
    began = time.perf_counter()
    try:
        found = leveled.transcribe(samples)
        text, reasons = found.text, found.reasons
    except PianissimoError as fault:
        error = str(fault)
    latency = time.perf_counter() - began
    measure = metric(clip.language, clip.text)
    counts = count_errors(clip.text, text, measure)
    readings = FrontEnd(gain).whole(samples).readings
    levels = measure_levels(samples, active=False)
    return Result(
        recognizer=leveled.recognizer.name,
        weights=weights,
        gain=gain,
        clip=clip.id,
        group=clip.group,
        sha256=clip.sha256,
        speaker=clip.speaker,
        language=clip.language,
        metric=measure,
        reference=clip.text,
        text=text,
        substitutions=counts.substitutions,
        deletions=counts.deletions,
        insertions=counts.insertions,
        units=counts.words,
        seconds=len(samples) / SAMPLE_RATE,
        latency_seconds=latency,
        reasons=reasons,
        gain_db=readings[0].gain_db if readings else 0.0,
        speech_db=levels.speech_db,
        noise_db=levels.noise_db,
        error=error,
    )


def measure_speed(recognizer: Recognizer, clips: Sequence[BenchClip], gain: GainMode) -> Speed:
    """Latency over a few control clips: three warm-ups, then each clip five times."""
    chosen = [clip for clip in clips if clip.group == "control"][:_LATENCY_CLIPS]
    recordings = [clip.samples() for clip in chosen]
    leveled = Leveled(recognizer, gain)

    def once(samples: Samples) -> float:
        began = time.perf_counter()
        leveled.transcribe(samples)
        _wait_for_device(recognizer)
        return time.perf_counter() - began

    for _ in range(_WARM_UPS):
        once(recordings[0])
    times = [once(samples) for samples in recordings for _ in range(_REPEATS)]
    audio = sum(len(samples) for samples in recordings) / SAMPLE_RATE
    joined = np.concatenate(recordings)
    return Speed(
        recognizer=recognizer.name,
        gain=gain,
        clips=len(chosen),
        p50_ms=1000 * float(np.percentile(times, 50)),
        p95_ms=1000 * float(np.percentile(times, 95)),
        mean_clip_seconds=audio / len(chosen),
        realtime_factor=sum(times) / _REPEATS / audio,
        gain_ms_per_second=1000 * _seconds(lambda: FrontEnd(gain).whole(joined)) / audio,
        vad_ms_per_second=1000 * _seconds(lambda: segments(joined)) / audio,
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        streams=recognizer.capabilities.streams,
    )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _wait_for_device(recognizer: Recognizer) -> None:
    if recognizer.device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(recognizer.device)


def environment(
    recognizers: Sequence[Recognizer], weights: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Device, dtype, threads and versions, which every figure depends on."""
    import torch

    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pianissimo": version("pianissimo"),
        "threads": torch.get_num_threads(),
        "recognizers": {
            recognizer.name: {
                "weights": weights.get(recognizer.name) or fingerprint(recognizer),
                "device": recognizer.device,
                "dtype": recognizer.dtype,
            }
            for recognizer in recognizers
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
