"""Excerpts: parts of recordings as sources of audio."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pianissimo.audio.io import Excerpt, describe, load_audio, stream_audio
from pianissimo.audio.manifest import recording_part
from pianissimo.errors import AudioNotFoundError, OptionError

RATE = 16_000


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.wav"
    samples = np.random.default_rng(0).normal(0.0, 0.1, 30 * RATE)
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("start", "duration", "expected"),
    [
        (0.0, 1.5, slice(0, 24_000)),
        (12.25, 3.0, slice(196_000, 244_000)),
        (29.0, None, slice(464_000, None)),
        (29.0, 5.0, slice(464_000, None)),
        (0.0, None, slice(None)),
    ],
)
def test_an_excerpt_has_the_samples_of_its_part(
    noise: Path, start: float, duration: float | None, expected: slice
) -> None:
    whole = load_audio(noise)
    part = Excerpt(noise, start, duration)
    np.testing.assert_array_equal(load_audio(part), whole[expected])
    blocks = list(stream_audio(part, block_seconds=0.7))
    np.testing.assert_array_equal(np.concatenate(blocks), whole[expected])
    assert {len(block) for block in blocks[:-1]} <= {11_200}
    assert describe(part).duration_seconds == pytest.approx(len(whole[expected]) / RATE)


def test_an_excerpt_at_another_rate_starts_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "click.wav"
    samples = np.zeros(48_000 * 2, np.float32)
    samples[48_000] = 0.9
    soundfile.write(path, samples, 48_000)
    part = load_audio(Excerpt(path, 0.5, 1.0))
    assert len(part) == RATE
    assert int(np.abs(part).argmax()) == RATE // 2


def test_an_excerpt_of_bytes_and_file_objects(noise: Path) -> None:
    data = noise.read_bytes()
    expected = load_audio(Excerpt(noise, 1.0, 2.0))
    for source in (data, io.BytesIO(data)):
        np.testing.assert_array_equal(load_audio(Excerpt(source, 1.0, 2.0)), expected)


def test_an_excerpt_after_the_end_is_an_error(noise: Path) -> None:
    for read in (load_audio, lambda part: list(stream_audio(part))):
        with pytest.raises(AudioNotFoundError, match=r"ends at 30\.00 s"):
            read(Excerpt(noise, 30.0))


@pytest.mark.parametrize(("start", "duration"), [(-1.0, None), (float("nan"), None), (0.0, 0.0)])
def test_impossible_excerpts_are_refused(start: float, duration: float | None) -> None:
    with pytest.raises(OptionError):
        Excerpt("x.wav", start, duration)


def test_a_line_selects_a_part_only_if_it_is_shorter(noise: Path) -> None:
    assert recording_part(noise, 0.0, None) == noise
    assert recording_part(noise, 0.0, 29.5) == noise  # less than 2 % short: a rounded duration
    assert recording_part(noise, 0.0, 35.0) == noise
    assert recording_part(noise, 0.0, 20.0) == Excerpt(noise, 0.0, 20.0)
    assert recording_part(noise, 3.0, None) == Excerpt(noise, 3.0)
