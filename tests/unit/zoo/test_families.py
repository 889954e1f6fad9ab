"""Model families: each declares itself once, and a new one needs nothing but its record."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from spoken import speech

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.gain import GAIN_MODES
from pianissimo.audio.io import Samples
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.protocols import Recognizer
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.recognizers.family import DTYPES, Family, LoadOptions
from pianissimo.transcript import Transcript
from pianissimo.zoo.catalog import CatalogEntry, Facts, find
from pianissimo.zoo.families import families, family_of
from pianissimo.zoo.load import load
from pianissimo.zoo.recommend import Wish, recommend

RATE = 16_000
NOISE = np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32) * 0.1


# -- a family of its own ---------------------------------------------------------------------------


class Loudness(BaseRecognizer):
    """A "model" of one number: it writes how often a recording's peak exceeds it."""

    def __init__(self, name: str, threshold: float, language: str | None) -> None:
        self.model, self._name, self.language = threshold, name, language
        self.threshold, self.front_end = threshold, FrontEnd(LOUDNESS.gain)

    @property
    def name(self) -> str:
        return self._name

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        assert self.front_end is not None
        for blocks in recordings:
            loud = np.concatenate([*self.front_end.blocks(blocks), np.zeros(1, np.float32)])
            count = int((np.abs(loud) > self.threshold).sum())
            yield Transcript(str(count), (), (), self.language, (len(loud) - 1) / RATE, self.name)


def read_loudness(path: Path, device: torch.device, options: LoadOptions) -> Loudness:
    threshold = json.loads((path / "loudness.json").read_text())["threshold"]
    return Loudness(path.name, threshold, options.language)


LOUDNESS = Family(
    name="loudness",
    read=read_loudness,
    gain="off",
    layout=lambda path: (path / "loudness.json").is_file(),
    dtypes=("float32",),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "loudness-tiny"
    path.mkdir()
    (path / "loudness.json").write_text('{"threshold": 0.2}')
    return path


def test_a_new_family_is_loaded_and_does_all_that_a_recognizer_does(folder: Path) -> None:
    recognizer = load(folder, families=[LOUDNESS], language="en", device="cpu")
    assert isinstance(recognizer, Recognizer)
    without_offset = np.concatenate(list(FrontEnd("off").blocks([NOISE])))
    expected = str(int((np.abs(without_offset) > 0.2).sum()))
    assert int(expected) > 1000
    found = recognizer.transcribe(NOISE, sample_rate=RATE)
    assert (found.text, found.language, found.duration) == (expected, "en", 3.0)
    path = folder / "noise.wav"
    soundfile.write(path, NOISE, RATE, subtype="FLOAT")
    assert [t.text for t in recognizer.transcribe_many([path, path])] == [expected] * 2
    outcomes = {o.index: o for o in recognizer.outcomes([folder / "none.wav", path])}
    assert outcomes[0].error is not None
    assert outcomes[1].transcript is not None and outcomes[1].transcript.text == expected
    assert recognizer.transcribe(iter(np.array_split(NOISE, 7))).text == expected
    with recognizer.stream() as stream:
        stream.push(NOISE)
        assert stream.finish()[-1].reason == "finish"
    quiet = speech(3.0, -50)
    assert recognizer.transcribe(quiet, sample_rate=RATE).text == "0"
    assert int(recognizer.with_gain("on").transcribe(quiet, sample_rate=RATE).text) > 100
    assert load(folder, families=[LOUDNESS], gain="on", device="cpu").front_end is not None


def test_its_record_refuses_what_it_does_not_support(folder: Path) -> None:
    for options, message in (
        ({"dtype": "int8"}, "has no int8 form"),
        ({"dtype": "float16"}, "computed in float32, not in float16"),
        ({"head": "ctc"}, "has no ctc head"),
        ({"task": "translate"}, "only transcribes"),
        ({"decoding": object()}, "has a search of its own"),
    ):
        with pytest.raises(OptionError, match=message):
            load(folder, families=[LOUDNESS], device="cpu", **options)  # type: ignore[arg-type]
    recognizer = load(folder, families=[LOUDNESS], device="cpu")
    assert not recognizer.capabilities.hotwords
    with pytest.raises(OptionError, match="cannot boost hotwords"):
        recognizer.transcribe(NOISE, sample_rate=RATE, boost=["Ada"])
    with pytest.raises(OptionError, match="160 ms is not a mode"):
        recognizer.transcribe(NOISE, sample_rate=RATE, latency_ms=160)


def test_without_its_record_the_folder_is_no_model(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is no model that we know"):
        load(folder, device="cpu")


def test_a_row_of_the_catalog_has_all_that_a_recommendation_needs() -> None:
    row = CatalogEntry(
        name="somebody/loudness-tiny",
        summary="counts loud samples",
        languages=("tlh",),
        license="MIT",
        parameters_millions=1e-6,
        megabytes=0.001,
        facts=Facts(0.001, "trained", "measured"),
        repository="somebody/loudness-tiny",
        streams=False,
    )
    assert find("loudness-TINY", [row]) is row
    advice = recommend(Wish("tlh", quiet=True, cores=1), [row])
    assert advice.entry is row
    assert "was trained on quiet speech (measured)" in advice.why


# -- the families there are ------------------------------------------------------------------------


def test_records_do_not_contradict_each_other() -> None:
    records = list(families())
    assert len({record.name for record in records}) == len(records) == 8
    types = [kind for record in records for kind in record.model_types]
    assert len(set(types)) == len(types)
    for record in records:
        assert record.gain in GAIN_MODES and set(record.dtypes) <= set(DTYPES)
        native = record.name == "fastconformer"
        assert native or record.model_types or record.layout is not None


def test_a_transformers_folder_belongs_to_the_family_of_its_type(tmp_path: Path) -> None:
    for record in families():
        for kind in record.model_types:
            (tmp_path / "config.json").write_text(
                json.dumps({"model_type": kind, "architectures": ["X"]})
            )
            (tmp_path / "model.safetensors").touch()
            assert family_of(tmp_path) is record
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["X"]})
    )
    with pytest.raises(CheckpointError, match="'bert', which nothing here reads; known are"):
        family_of(tmp_path)
