"""Faults and oddities of manifests, each named with its line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny import make_model
from tones import RATE, spoken

from pianissimo.errors import ManifestError
from pianissimo.models.asr import AsrConfig
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.finetune.data_check import (
    Bounds,
    Checked,
    Spelling,
    check_manifest,
    check_overlap,
    ranges,
    render,
)

Check = Callable[..., Checked]


@pytest.fixture
def config(tiny_tokenizer: Tokenizer) -> AsrConfig:
    return make_model(vocab_size=tiny_tokenizer.vocab_size).config


@pytest.fixture
def check(tmp_path: Path, tiny_tokenizer: Tokenizer, config: AsrConfig) -> Check:
    """Checks a manifest of these rows; a row that is a text stands there as it is."""

    def run(*rows: dict[str, Any] | str, name: str = "data", **options: Any) -> Checked:
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return check_manifest(path, tiny_tokenizer, config, **options)

    return run


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Writes a clip that says "yes no" and gives a sound row for it, changed as asked."""

    def make(
        name: str, seed: int = 0, samples: Any = None, rate: int = RATE, **changes: Any
    ) -> dict[str, Any]:
        samples = spoken("yes no", seed) if samples is None else samples
        soundfile.write(tmp_path / name, samples, rate)
        row = {"audio_filepath": name, "duration": len(samples) / rate, "text": "yes no"}
        return {**row, **changes}

    return make


Clip = Callable[..., dict[str, Any]]


def kinds(checked: Checked) -> list[tuple[int, str]]:
    return [(finding.line, finding.kind) for finding in checked.findings]


def test_sound_lines_pass(check: Check, clip: Clip) -> None:
    checked = check(clip("a.wav", 1), "", clip("b.wav", 2, speaker="ann"))
    assert checked.findings == ()
    assert [line.number for line in checked.lines] == [1, 3]
    assert [line.speaker for line in checked.lines] == [None, "ann"]
    assert checked.seconds == pytest.approx(3.0)


def test_every_fault_is_named_with_its_line(check: Check, clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no samples, whatever the name says")
    (tmp_path / "empty.wav").touch()
    noise = np.random.default_rng(0).standard_normal(round(0.05 * RATE)) * 0.1
    checked = check(
        clip("good.wav", 1),
        "{not json",
        {"audio_filepath": "none.wav", "duration": 1.0, "text": "yes"},
        {"audio_filepath": "text.wav", "duration": 1.0, "text": "yes"},
        {"audio_filepath": "empty.wav", "duration": 1.0, "text": "yes"},
        clip("short.wav", 2, duration=9.0),
        clip("silent.wav", samples=np.zeros(RATE)),
        clip("blip.wav", samples=noise, text="a"),
        clip("blank.wav", 3, text="  "),
        clip("letters.wav", 4, text="yes ж no ж"),
        clip("crowded.wav", 5, text="yes no and then " * 9),
        {**clip("good.wav", 1), "text": "no yes"},
    )
    assert [line.number for line in checked.lines] == [1]
    assert checked.faulty_lines == list(range(2, 13))
    assert set(kinds(checked)) >= {
        (2, "line"),
        (3, "line"),
        (4, "audio"),
        (5, "audio"),
        (6, "audio"),
        (7, "silent"),
        (8, "length"),
        (9, "text"),
        (10, "letters"),
        (11, "crowded"),
        (12, "conflict"),
    }
    assert checked.lacking == {"ж": 2}
    text = render([checked])
    assert "1 usable lines" in text
    assert "11 lines with faults" in text
    assert all(f"    line {number}: " in text for number in range(2, 13))
    assert "'ж' 2 times" in text
    assert "U+0436" in text


def test_a_line_with_an_oddity_is_usable(check: Check, clip: Clip) -> None:
    low = np.random.default_rng(0).standard_normal(8000) * 0.1
    stereo = np.stack([spoken("yes no", 7)] * 2, axis=1)
    checked = check(
        clip("low.wav", samples=low, rate=8000),
        clip("stereo.wav", samples=stereo),
        clip("slow.wav", samples=np.tile(spoken("yes", 8), 20), text="yes"),
        clip("same.wav", samples=low, rate=8000),
        clip("case.wav", 9, text="Yes, NO!"),
    )
    assert kinds(checked) == [
        (1, "rate"),
        (2, "channels"),
        (3, "pace"),
        (4, "rate"),
        (4, "twice"),
        (5, "spelling"),
    ]
    assert len(checked.lines) == 5
    assert checked.lines[4].utterance.text == "yes no"
    assert "lines 1, 4" in render([checked])


def test_bounds_can_be_chosen(check: Check, clip: Clip) -> None:
    row = clip("a.wav", 1)
    assert kinds(check(row, bounds=Bounds(longest_seconds=1.0))) == [(1, "length")]


def test_parts_of_a_recording_are_checked_separately(check: Check, clip: Clip) -> None:
    row = clip("a.wav", 1)
    parts = [{**row, "offset": start, "duration": 0.6, "text": "yes"} for start in (0.0, 0.6)]
    assert check(*parts).findings == ()


def test_overlap_of_the_sets_is_reported(check: Check, clip: Clip) -> None:
    train = check(clip("a.wav", 1, speaker="ann"), clip("b.wav", 2, speaker="bob"))
    val = check(
        clip("copy.wav", 1, speaker="cem"),
        clip("c.wav", 3, speaker="bob"),
        clip("d.wav", 4, speaker="dia"),
        name="val",
    )
    checked = check_overlap(train, val)
    assert kinds(checked) == [(1, "overlap"), (2, "speaker")]
    assert [line.number for line in checked.lines] == [2, 3]
    assert "line 1 of" in checked.findings[0].message
    assert "line 2 of the training set" in checked.findings[1].message


def test_nothing_is_written(check: Check, clip: Clip, tmp_path: Path) -> None:
    row = clip("a.wav", 1)
    check(row, "{")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "data.jsonl"]


def test_a_missing_manifest_is_an_error(
    tmp_path: Path, tiny_tokenizer: Tokenizer, config: AsrConfig
) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        check_manifest(tmp_path / "none.jsonl", tiny_tokenizer, config)


def test_transcripts_are_respelled_only_where_nothing_is_lost(tiny_tokenizer: Tokenizer) -> None:
    spelling = Spelling(tiny_tokenizer)  # it has no capitals and no marks
    assert spelling.fit("  Yes — no,  and\tTHEN ") == ("yes no and then", "")
    assert spelling.fit("yes 7 é 7") == ("yes", "7é")
    assert spelling.lacking == {"7": 2, "é": 1}


def test_runs_of_lines_are_written_as_ranges() -> None:
    assert ranges([9, 1, 2, 3, 7, 8, 3]) == "1-3, 7-9"
    assert ranges([4]) == "4"
