"""Make the golden files of wav2vec 2.0 and its kin anew.

    python tests/parity/make_golden_families.py

Same versions and seeds give the same bytes. Needs the oracle environment, see `oracle_run.py`.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path

from families_checks import HERE, run_families_oracle
from oracle_run import VARIABLE, find_python
from parity_inputs import SEED

GOLDEN = HERE / "golden_families"
LARGEST_BYTES = 800_000
PACKAGES = ("transformers", "torch", "numpy")

README = """# Golden files of wav2vec 2.0 and its kin

Tiny random models as Transformers saves them, and the numbers it computes with them:
`test_golden_families.py` compares ours without needing Transformers. The keys of the arrays are
explained at the top of `oracle_families.py`. Nothing here was trained, recorded or taken from a
published model: weights are drawn from a random generator, sounds computed by `parity_inputs.py`.

Made by `make_golden_families.py`, never by hand. Base seed {seed}; the seed of each model is in its
JSON.

{versions}
"""


def versions(python: Path) -> dict[str, str]:
    """The versions of what the oracle is made of."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]), sep='\\n')"
    command = [str(python), "-c", code, *PACKAGES]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(PACKAGES, found, strict=True))


def main() -> None:
    python = find_python()
    if python is None:
        raise SystemExit(f"no oracle environment: run `make parity` once, or set {VARIABLE}")
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "golden"
        run_families_oracle(python, made, "golden")
        table = ["| package | version |", "|---|---|"]
        table += [f"| {package} | {version} |" for package, version in versions(python).items()]
        text = README.format(seed=SEED, versions="\n".join(table))
        (made / "README.md").write_text(text, encoding="utf-8")
        files = [path for path in made.rglob("*") if path.is_file()]
        for path in files:
            path.chmod(0o644)
        total = sum(path.stat().st_size for path in files)
        if total > LARGEST_BYTES:
            raise SystemExit(f"{total} bytes of golden files are too many to commit")
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(made, GOLDEN)
    print(f"{len(files)} files, {total} bytes in {GOLDEN}")


if __name__ == "__main__":
    main()
