"""`pianissimo doctor`: check the installation and say how to fix problems."""

import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from pianissimo.cli.command import command
from pianissimo.cli.options import DeviceOption, JsonOption, ModelOption
from pianissimo.cli.output import SOME_FAILED, emit
from pianissimo.errors import PianissimoError

if TYPE_CHECKING:
    from pianissimo.audio.io import Samples

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 6)
SLOWEST = 1.0
"""Seconds of work for a second of audio; a slower machine cannot keep up with live speech."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check; `fix` says what to do and is empty if all is well."""

    check: str
    state: str
    fix: str = ""


@dataclass(frozen=True)
class DoctorOptions:
    """What is checked."""

    model: ModelOption = None
    device: DeviceOption = "auto"
    json: JsonOption = False


@command
def doctor(options: DoctorOptions) -> None:
    """Check the installation.

    The checks cover Python, PyTorch, device, audio, model and models folder. The exit code is 3 if
    there is a problem.
    """
    checks: list[tuple[str, Callable[[], CheckResult]]] = [
        ("python", check_python),
        ("torch", check_torch),
        ("device", lambda: check_device(options.device)),
        ("audio", check_audio),
        ("model", lambda: check_model(options.model, options.device)),
        ("models folder", check_models_folder),
    ]
    results = []
    for name, check in checks:
        try:
            result = check()
        except PianissimoError as error:
            result = CheckResult(name, "unusable", str(error))
        except Exception as error:  # a broken dependency may raise anything
            trouble = f"{type(error).__name__}: {error}"
            result = CheckResult(name, trouble, "reinstall the package in a fresh environment")
        results.append(result)
        if not options.json:
            verdict = "problem" if result.fix else "ok"
            emit(f"{verdict:8} {result.check + ':':15} {result.state}\n")
            if result.fix:
                emit(f"{'':8} {'fix:':15} {result.fix}\n")
    healthy = not any(result.fix for result in results)
    if options.json:
        rows = [
            {"check": one.check, "found": one.state, "fix": one.fix, "ok": not one.fix}
            for one in results
        ]
        emit(json.dumps({"ok": healthy, "checks": rows}, indent=2, ensure_ascii=False) + "\n")
    if not healthy:
        raise typer.Exit(SOME_FAILED)


def check_python() -> CheckResult:
    state = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    wanted = ".".join(map(str, OLDEST_PYTHON))
    fix = "" if sys.version_info >= OLDEST_PYTHON else f"install Python {wanted} or newer"
    return CheckResult("python", state, fix)


def check_torch() -> CheckResult:
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    wanted = ".".join(map(str, OLDEST_TORCH))
    fix = "" if version >= OLDEST_TORCH else f"pip install 'torch>={wanted},<3'"
    return CheckResult("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", fix)


def check_device(device: str) -> CheckResult:
    import torch

    from pianissimo.zoo.load import choose_device

    chosen = choose_device(device)
    state = str(chosen)
    if chosen.type == "cuda":
        state += f", {torch.cuda.get_device_name(chosen)}"
    return CheckResult("device", state)


def check_audio() -> CheckResult:
    """Decode a tone with both decoders: WAV with libsndfile, FLAC with libav."""
    import soundfile

    from pianissimo.audio.io import SAMPLE_RATE, load_audio

    sizes = []
    for container in ("WAV", "FLAC"):
        file = io.BytesIO()
        soundfile.write(file, _tone(1.0, 44_100), 44_100, format=container)
        sizes.append(len(load_audio(file.getvalue())))
    state = f"WAV and FLAC decode (soundfile {soundfile.__version__}, av {_version('av')})"
    right = all(abs(size - SAMPLE_RATE) <= 1 for size in sizes)
    fix = "" if right else f"decoded {sizes} samples instead of {SAMPLE_RATE}: reinstall av, soxr"
    return CheckResult("audio", state, fix)


def check_model(model: str | None, device: str) -> CheckResult:
    from pianissimo.audio.io import SAMPLE_RATE
    from pianissimo.zoo.load import load

    began = time.monotonic()
    recognizer = load(model, device=device)
    loaded = time.monotonic() - began
    times, seconds = [], 3.0
    for _ in range(2):  # the first call also loads what is needed once
        began = time.monotonic()
        recognizer.transcribe(_tone(seconds, SAMPLE_RATE), sample_rate=SAMPLE_RATE)
        times.append(time.monotonic() - began)
        if times[-1] <= SLOWEST * seconds:
            break
    state = (
        f"{recognizer.name} loads in {loaded:.1f} s and "
        f"transcribes {seconds:.0f} s of audio in {min(times):.1f} s"
    )
    fix = ""
    if min(times) > SLOWEST * seconds:
        fix = (
            "this is slower than real time, so live text falls behind: end other programs, "
            "use a GPU, or choose a smaller model (pianissimo models recommend --live)"
        )
    return CheckResult("model", state, fix)


def check_models_folder() -> CheckResult:
    from pianissimo.zoo.folder import MODELS_FOLDER, models_folder

    folder = models_folder()
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    state = "" if folder.exists() else " (created by the first pull)"
    fix = "" if writable else f"set {MODELS_FOLDER} to a writable folder"
    return CheckResult("models folder", f"{folder}{state}", fix)


def _tone(seconds: float, rate: int) -> "Samples":
    """A sine of 440 Hz, samples (seconds * rate,) in float32."""
    import numpy as np

    return (0.1 * np.sin(2 * np.pi * 440.0 * np.arange(round(seconds * rate)) / rate)).astype("f4")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
