"""Make the golden files anew: `python tests/parity/make_golden.py`, after `make parity` once.

Same versions and seeds give the same bytes. Needs the oracle environment, see `oracle_run.py`.
"""

import shutil
import tempfile
from pathlib import Path

from oracle_run import HERE, SCRIPTS, VARIABLE, find_python, run_oracle, versions
from parity_inputs import SEED

GOLDEN = HERE / "golden"
LARGEST_BYTES = 2_000_000

README = """# Golden files of the parity tests

Tiny random models as the reference implementations save them, and the numbers these compute with
them. `test_golden.py` compares ours without needing the references.

| folder | written by |
|---|---|
| `nemo/` | NeMo: `VARIANT.nemo` (gzip, `ctc.nemo` a plain tar), `VARIANT.npz`, `VARIANT.json` |
| `hf/` | Transformers: the folder `VARIANT`, `VARIANT.npz`, `VARIANT.json` |

The keys of the arrays are explained at the top of `oracle_nemo.py` and `oracle_hf.py`. Nothing here
was trained, recorded or taken from a published model: weights are drawn from a random generator,
sounds computed by `parity_inputs.py`, tokenizers trained on the five sentences there.

Made by `make_golden.py`, never by hand. Base seed {seed}; the seed of each model is in its JSON.

{versions}
"""


def main() -> None:
    python = find_python()
    if python is None:
        raise SystemExit(f"no oracle environment: run `make parity` once, or set {VARIABLE}")
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "golden"
        for source in SCRIPTS:
            print(f"{source} ...", flush=True)
            run_oracle(python, source, made / source, "golden")
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
