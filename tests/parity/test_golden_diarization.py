"""DER, JER and cpWER equal those of pyannote.metrics and meeteval on random conversations.

`make_golden_diarization.py` wrote what those packages say.
"""

import json
from pathlib import Path

import pytest

from pianissimo.evaluate.diarization import attributed_word_errors, jaccard_error, turn_errors
from pianissimo.text.turns import Turn

CASES = json.loads(Path(__file__).with_name("golden_diarization.json").read_text())["cases"]


def turns(rows: list[tuple[float, float, str]]) -> list[Turn]:
    return [Turn(start, end, speaker) for start, end, speaker in rows]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_errors_are_those_of_the_references(case: dict[str, list]) -> None:
    reference, found = turns(case["reference"]), turns(case["found"])
    for collar in (0.0, 0.25):
        errors = turn_errors(reference, found, collar=collar)
        ours = [errors.missed, errors.false_alarm, errors.confused, errors.speech]
        assert ours == pytest.approx(case[f"der_{collar}"], abs=1e-9)
    assert jaccard_error(reference, found) == pytest.approx(case["jer"], abs=1e-9)
    words = attributed_word_errors(case["said"], case["heard"])
    assert [words.errors, words.words] == case["cp"]
