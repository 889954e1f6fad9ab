"""A recording from a path, an array or decoded blocks gives the same transcript."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tiny import cut, noise

import pianissimo
from pianissimo.audio import io
from pianissimo.audio.io import Samples
from pianissimo.errors import AudioDecodeError, AudioValueError, OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.protocols import Recognizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer

RATE = 16_000
GOLDEN = Path(__file__).parents[2] / "parity" / "golden_families"
SOUND = noise(5 * RATE + 123)


@pytest.fixture(params=["native", "wav2vec2"])
def recognizer(
    request: pytest.FixtureRequest, talker: AsrModel, tiny_tokenizer: Tokenizer
) -> Recognizer:
    if request.param == "native":
        return NativeRecognizer(talker, tiny_tokenizer)
    found = pianissimo.load(GOLDEN / "wav2vec2", device="cpu")
    found.detector = None  # type: ignore[misc]  # noise is no evidence of speech
    return found


def blocks_of(samples: Samples, sizes: list[int]) -> Iterator[Samples]:
    return (samples[part] for part in cut(len(samples), sizes))


@pytest.mark.parametrize("sizes", [[1, 7_000], [16_000], [200_000]])
def test_blocks_give_what_the_file_gives(
    recognizer: Recognizer, tmp_path: Path, sizes: list[int]
) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, SOUND, RATE, subtype="FLOAT")
    expected = recognizer.transcribe(path)
    assert expected.text
    assert recognizer.transcribe(blocks_of(SOUND, sizes)) == expected
    assert recognizer.transcribe(SOUND, sample_rate=RATE).text == expected.text


def test_no_blocks_are_an_empty_recording(recognizer: Recognizer) -> None:
    found = recognizer.transcribe(iter([]))
    assert (found.text, found.duration) == ("", 0.0)


def counted(monkeypatch: pytest.MonkeyPatch, calls: list[str], owner: Any, name: str) -> None:
    """Note each call of a function of a module or class."""
    original: Callable[..., Any] = getattr(owner, name)

    def noting(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, noting)


def test_a_decoded_recording_is_neither_written_nor_decoded_again(
    recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sound.flac"
    soundfile.write(path, SOUND, RATE)
    calls: list[str] = []
    counted(monkeypatch, calls, io, "_decoded")
    for name in ("NamedTemporaryFile", "SpooledTemporaryFile", "TemporaryFile", "mkstemp"):
        counted(monkeypatch, calls, tempfile, name)
    counted(monkeypatch, calls, soundfile.SoundFile, "write")
    found = recognizer.transcribe(io.stream_audio(path, block_seconds=0.7))
    assert calls == ["_decoded"]
    assert found == recognizer.transcribe(path)


def test_blocks_are_read_as_they_are_needed(
    talker: AsrModel, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeRecognizer, "block_seconds", 1.0)
    recognizer, read = NativeRecognizer(talker, tiny_tokenizer), list[int]()
    steps = list[int]()
    step = talker.encoder.step
    monkeypatch.setattr(
        talker.encoder, "step", lambda *a, **k: [steps.append(len(read)), step(*a, **k)][1]
    )

    def watched() -> Iterator[Samples]:
        for part in blocks_of(SOUND, [RATE]):
            read.append(len(part))
            yield part

    assert recognizer.transcribe(watched()).text
    assert steps[:4] == [1, 2, 3, 4]  # one block read before each step


def test_an_error_of_the_source_is_the_error_of_the_call(recognizer: Recognizer) -> None:
    def broken() -> Iterator[Samples]:
        yield SOUND[:RATE]
        raise AudioDecodeError("the decoder ended")

    with pytest.raises(AudioDecodeError, match="the decoder ended"):
        recognizer.transcribe(broken())


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (np.zeros(100, np.int16), r"is int16 \(100,\)|int16"),
        (np.zeros((100, 2), np.float32), "mono float32"),
        ([0.0] * 100, "mono float32"),
        (np.full(100, np.nan, np.float32), "NaN or infinite sample at 1.000 s"),
    ],
)
def test_blocks_of_another_kind_are_refused(
    recognizer: Recognizer, block: Any, message: str
) -> None:
    with pytest.raises(AudioValueError, match=message):
        recognizer.transcribe(iter([np.zeros(RATE, np.float32), block]))


def test_a_rate_is_for_arrays_and_only_for_them(recognizer: Recognizer) -> None:
    with pytest.raises(OptionError, match="remove sample_rate"):
        recognizer.transcribe(iter([SOUND]), sample_rate=RATE)
    for samples in (SOUND, list(SOUND[:100])):
        with pytest.raises(OptionError, match="samples need their rate"):
            recognizer.transcribe(samples)
