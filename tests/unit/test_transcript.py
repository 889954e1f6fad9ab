"""Results: they stay as they are, and they reach the disk whole."""

import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianissimo.errors import OptionError
from pianissimo.transcript import Segment, StreamEvent, Transcript, Word

HELLO = Word("Hello,", 0.08, 0.4, 0.9)
WORLD = Word("wörld.", 0.48, 1.04)
TRANSCRIPT = Transcript(
    text="Hello, wörld.",
    segments=(Segment("Hello, wörld.", 0.08, 1.04, (HELLO, WORLD), 0.9),),
    words=(HELLO, WORLD),
    language="en-US",
    duration=1.5,
    model="tiny",
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
seconds = st.floats(0, 1e6)
words = st.builds(Word, texts, seconds, seconds, st.none() | st.floats(0, 1))
segments = st.builds(
    Segment, texts, seconds, seconds, st.lists(words, max_size=3).map(tuple), st.none()
)
transcripts = st.builds(
    Transcript,
    texts,
    st.lists(segments, max_size=3).map(tuple),
    st.lists(words, max_size=3).map(tuple),
    st.none() | texts,
    seconds,
    texts,
)


@pytest.mark.parametrize("result", [HELLO, TRANSCRIPT, TRANSCRIPT.segments[0]])
def test_results_are_frozen_and_hashable(result: Word | Segment | Transcript) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "changed"  # type: ignore[misc]
    assert hash(result) == hash(dataclasses.replace(result))


def test_a_stream_event_is_stable_unless_it_says_otherwise() -> None:
    assert StreamEvent("partial", "Hello", (), 0.0, 0.4).stable
    assert not StreamEvent("partial", "Hello", (), 0.0, 0.4, stable=False).stable


@given(transcripts)
def test_json_round_trip(transcript: Transcript) -> None:
    assert Transcript.from_json(transcript.to_json()) == transcript
    assert Transcript.from_json(transcript.to_json().encode()) == transcript


@pytest.mark.parametrize(
    "data", ["", "[]", "7", '{"text": "a"}', b"\xff", TRANSCRIPT.to_json()[:-9], "[" * 100_000]
)
def test_from_json_refuses_other_data(data: str | bytes) -> None:
    with pytest.raises(OptionError, match="not the JSON of a transcript"):
        Transcript.from_json(data)


@pytest.mark.parametrize("suffix", ["txt", "srt", "vtt", "tsv", "json"])
def test_save_writes_the_format_of_the_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"talk.{suffix.upper()}"
    path.write_text("old")
    TRANSCRIPT.save(path)
    assert path.read_bytes().decode() == getattr(TRANSCRIPT, f"to_{suffix}")()
    TRANSCRIPT.save(str(tmp_path / "other.data"), format=suffix)
    assert (tmp_path / "other.data").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["other.data", path.name]


def test_save_respects_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        TRANSCRIPT.save(tmp_path / "a.txt")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize(("name", "format"), [("a.doc", None), ("a", None), ("a.txt", "docx")])
def test_save_refuses_unknown_formats(tmp_path: Path, name: str, format: str | None) -> None:
    with pytest.raises(OptionError, match="txt, srt, vtt, tsv, json"):
        TRANSCRIPT.save(tmp_path / name, format)
    assert os.listdir(tmp_path) == []


def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    TRANSCRIPT.save(path)
    before = path.read_bytes()
    broken = dataclasses.replace(
        TRANSCRIPT, segments=(Segment("\ud800", 0.0, 1.0),), words=(), text="\ud800"
    )
    with pytest.raises(UnicodeEncodeError):
        broken.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.txt"]
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(OSError):
        TRANSCRIPT.save(tmp_path / "folder.txt")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "folder.txt"]


def test_results_need_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, pianissimo.text.formats, pianissimo.text.normalize;"
        "print(sorted({'torch', 'numpy', 'sentencepiece', 'tokenizers'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
