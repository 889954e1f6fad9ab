"""The references of the small golden files run again: they still say what is stored.

Needs the oracle environment: `make parity` makes it, PIANISSIMO_ORACLE_PYTHON names another one.
The golden tests compare this package with what is stored.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from oracle_run import HERE, VARIABLE, find_python, run_script

PYTHON = find_python()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason=f"no oracle environment: run `make parity`, or set {VARIABLE}"
    ),
]
STORED = {
    "oracle_nemotron_diarization.py": ["golden_diarizers/nemotron.npz"],
    "oracle_sortformer.py": ["golden_diarizers/sortformer.npz"],
    "oracle_fastspeech2.py": [
        "golden_fastspeech2/post_norm.npz",
        "golden_fastspeech2/pre_norm.npz",
    ],
    "oracle_fastpitch.py": ["golden_fastpitch/golden.npz"],
    "make_golden_moonshine.py": [
        "golden_moonshine/streaming.npz",
        "golden_moonshine/streaming_tied.npz",
    ],
}
TOLERANCE = 1e-5
"""Of the largest value of an array; other processors sum in another order."""


@pytest.mark.parametrize("script", STORED)
def test_a_reference_says_what_is_stored(script: str, tmp_path: Path) -> None:
    assert PYTHON is not None
    out = tmp_path / "out"
    out.mkdir()
    run_script(PYTHON, HERE / script, str(out))
    for name in STORED[script]:
        path = HERE / name
        with np.load(out / path.name) as found, np.load(path) as stored:
            assert sorted(found.files) == sorted(stored.files)
            for key in stored.files:
                new, old = found[key], stored[key]
                assert new.shape == old.shape and new.dtype == old.dtype, key
                if old.dtype.kind == "f":
                    largest = max(1.0, float(np.abs(old).max(initial=0.0)))
                    assert np.abs(new - old).max(initial=0.0) <= TOLERANCE * largest, key
                else:
                    assert np.array_equal(new, old), key


def test_nemo_finds_the_stored_beams(tmp_path: Path) -> None:
    assert PYTHON is not None
    run_script(PYTHON, HERE / "make_golden_beam.py", str(tmp_path))
    found, stored = (
        json.loads((folder / "golden_beam.json").read_text(encoding="utf-8"))
        for folder in (tmp_path, HERE)
    )
    assert found.keys() == stored.keys()
    for beam, rows in stored.items():
        assert len(found[beam]) == len(rows)
        for row, expected in zip(found[beam], rows, strict=True):
            assert [hypothesis[:2] for hypothesis in row] == [each[:2] for each in expected]
            scores = [hypothesis[2] for hypothesis in row]
            assert scores == pytest.approx([each[2] for each in expected], abs=1e-4)
