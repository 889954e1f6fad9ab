"""Starts the oracles, which live in an environment of their own."""

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
VARIABLE = "PIANISSIMO_ORACLE_PYTHON"
DEFAULT_PYTHON = HERE.parent.parent / ".venv-parity" / "bin" / "python"
SCRIPTS = {"nemo": HERE / "oracle_nemo.py", "hf": HERE / "oracle_hf.py"}
PACKAGES = ("nemo_toolkit", "transformers", "torch", "numpy", "sentencepiece")


def find_python() -> Path | None:
    """The interpreter of the oracle environment: the variable's, or the one `make parity` makes."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    return DEFAULT_PYTHON if DEFAULT_PYTHON.exists() else None


def run_oracle(python: Path, source: str, out: Path, plan: str) -> None:
    """Write the checkpoints and outputs of one oracle, "nemo" or "hf", into a folder."""
    run_script(python, SCRIPTS[source], str(out), "--plan", plan)


def run_script(python: Path, script: Path, *arguments: str) -> None:
    """Run a script in the oracle environment; raises RuntimeError with its output if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONPATH", None)
    command = [str(python), str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def versions(python: Path) -> dict[str, str]:
    """The versions of what the oracles are made of."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]), sep='\\n')"
    command = [str(python), "-c", code, *PACKAGES]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(PACKAGES, found, strict=True))
