"""`pianissimo doctor`: does everything work here, and if not, what to do."""

import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import typer

from pianissimo.cli.options import DeviceOption, JsonOption, ModelOption
from pianissimo.cli.output import SOME_FAILED, emit
from pianissimo.errors import PianissimoError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 6)


@dataclass(frozen=True)
class Finding:
    """What one check found; `fix` says what to do, and is empty when all is well."""

    check: str
    found: str
    fix: str = ""


def doctor(
    model: ModelOption = None, device: DeviceOption = "auto", as_json: JsonOption = False
) -> None:
    """Check this installation: Python, PyTorch, the device, audio, the model and its folder.

    The exit code is 3 if there is a problem.
    """
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", check_python),
        ("torch", check_torch),
        ("device", lambda: check_device(device)),
        ("audio", check_audio),
        ("model", lambda: check_model(model, device)),
        ("models folder", check_models_folder),
    ]
    findings = []
    for name, check in checks:
        try:
            finding = check()
        except PianissimoError as error:
            finding = Finding(name, "cannot be used", str(error))
        except Exception as error:  # a broken dependency may raise anything
            trouble = f"{type(error).__name__}: {error}"
            finding = Finding(name, trouble, "install the package again in a fresh environment")
        findings.append(finding)
        if not as_json:
            verdict = "problem" if finding.fix else "ok"
            emit(f"{verdict:8} {finding.check + ':':15} {finding.found}\n")
            if finding.fix:
                emit(f"{'':8} {'fix:':15} {finding.fix}\n")
    healthy = not any(finding.fix for finding in findings)
    if as_json:
        rows = [asdict(finding) | {"ok": not finding.fix} for finding in findings]
        emit(json.dumps({"ok": healthy, "checks": rows}, indent=2, ensure_ascii=False) + "\n")
    if not healthy:
        raise typer.Exit(SOME_FAILED)


def check_python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    wanted = ".".join(map(str, OLDEST_PYTHON))
    fix = "" if sys.version_info >= OLDEST_PYTHON else f"install Python {wanted} or newer"
    return Finding("python", found, fix)


def check_torch() -> Finding:
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    wanted = ".".join(map(str, OLDEST_TORCH))
    fix = "" if version >= OLDEST_TORCH else f"pip install 'torch>={wanted},<3'"
    return Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", fix)


def check_device(device: str) -> Finding:
    import torch

    from pianissimo.zoo.load import choose_device

    chosen = choose_device(device)
    found = str(chosen)
    if chosen.type == "cuda":
        found += f", {torch.cuda.get_device_name(chosen)}"
    return Finding("device", found)


def check_audio() -> Finding:
    """A tone through both decoders: WAV by libsndfile, FLAC by libav."""
    import soundfile

    from pianissimo.audio.io import SAMPLE_RATE, load_audio

    sizes = []
    for container in ("WAV", "FLAC"):
        file = io.BytesIO()
        soundfile.write(file, _tone(1.0, 44_100), 44_100, format=container)
        sizes.append(len(load_audio(file.getvalue())))
    found = f"WAV and FLAC decode (soundfile {soundfile.__version__}, av {_version('av')})"
    right = all(abs(size - SAMPLE_RATE) <= 1 for size in sizes)
    fix = "" if right else f"decoded {sizes} samples instead of {SAMPLE_RATE}: reinstall av, soxr"
    return Finding("audio", found, fix)


def check_model(model: str | None, device: str) -> Finding:
    from pianissimo.audio.io import SAMPLE_RATE
    from pianissimo.zoo.load import load

    began = time.monotonic()
    recognizer = load(model, device=device)
    loaded = time.monotonic() - began
    began = time.monotonic()
    transcript = recognizer.transcribe(_tone(3.0, SAMPLE_RATE), sample_rate=SAMPLE_RATE)
    spent = time.monotonic() - began
    return Finding(
        "model",
        f"{recognizer.name} loads in {loaded:.1f} s, "
        f"{transcript.duration:.0f} s of audio take it {spent:.1f} s",
    )


def check_models_folder() -> Finding:
    from pianissimo.zoo.folder import MODELS_FOLDER, models_folder

    folder = models_folder()
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    state = "" if folder.exists() else " (made when the first model is pulled)"
    fix = "" if writable else f"set {MODELS_FOLDER} to a folder that you may write to"
    return Finding("models folder", f"{folder}{state}", fix)


def _tone(seconds: float, rate: int) -> "npt.NDArray[np.float32]":
    import numpy as np

    phase = 2 * np.pi * 440.0 * np.arange(round(seconds * rate)) / rate
    return (0.1 * np.sin(phase)).astype(np.float32)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
