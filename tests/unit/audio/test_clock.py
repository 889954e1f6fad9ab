"""Containers with a clock of their own: late sound, holes, several sound tracks."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pianissimo.audio.io import Excerpt, load_audio
from pianissimo.errors import AudioDecodeError, OptionError

RATE = 16_000
CASES = Path(__file__).parents[4] / "shared" / "cases"
FORMATS = [("matroska", "pcm_s16le"), ("mp4", "aac"), ("mov", "pcm_s16le"), ("mpegts", "mp2")]


def tone(seconds, hz):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype("f4")


def container(kind, codec, tracks, video=False):
    """Tracks of (start in seconds, samples), with a picture from 0 s on."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as out:
        picture = None
        if video:
            picture = out.add_stream("mpeg4", rate=10)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        streams = [out.add_stream(codec, rate=RATE, layout="mono") for _ in tracks]
        if picture is not None:
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            image.pts, image.time_base = 0, Fraction(1, 10)
            out.mux(picture.encode(image))
            out.mux(picture.encode(None))
        for stream, parts in zip(streams, tracks, strict=True):
            size = stream.codec_context.frame_size or 1024
            for start, samples in parts:
                for first in range(0, len(samples) - size + 1, size):
                    data = (samples[None, first : first + size] * 32767).astype(np.int16)
                    frame = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
                    frame.sample_rate = RATE
                    frame.pts, frame.time_base = round(start * RATE) + first, Fraction(1, RATE)
                    out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return file.getvalue()


def sounding(samples):
    """Where the sound begins and ends, in seconds."""
    loud = np.flatnonzero(np.abs(samples) > 0.05)
    return loud[0] / RATE, loud[-1] / RATE


@pytest.mark.parametrize(("kind", "codec"), FORMATS)
def test_sound_that_starts_late_is_late(kind, codec):
    data = container(kind, codec, [[(4.0, tone(2.0, 440))]], video=True)
    start, end = sounding(load_audio(data))
    assert start == pytest.approx(4.0, abs=0.1)
    assert end == pytest.approx(6.0, abs=0.15)


@pytest.mark.parametrize(("kind", "codec"), FORMATS[:1] + FORMATS[3:])
def test_a_pause_in_the_time_stamps_is_silence(kind, codec):
    data = container(kind, codec, [[(0.0, tone(1.0, 440)), (6.0, tone(1.0, 440))]])
    samples = load_audio(data)
    assert len(samples) / RATE == pytest.approx(7.0, abs=0.15)
    assert not np.abs(samples[round(1.1 * RATE) : round(5.9 * RATE)]).any()


def test_a_jump_of_hours_is_not_believed():
    data = container("matroska", "pcm_s16le", [[(0.0, tone(1.0, 440)), (9e4, tone(1.0, 440))]])
    assert len(load_audio(data)) / RATE == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize(("kind", "codec"), FORMATS)
def test_a_sound_track_can_be_chosen_and_a_choice_is_told(kind, codec):
    hz = [400, 1000]
    data = container(kind, codec, [[(0.0, tone(2.0, f))] for f in hz])

    def pitch(source):
        notes = set()
        samples = load_audio(source, notes=notes)[RATE // 2 : 3 * RATE // 2]
        return np.abs(np.fft.rfft(samples)).argmax(), notes

    for track, f in enumerate(hz, start=1):
        found, notes = pitch(Excerpt(data, track=track))
        assert (found, notes) == (pytest.approx(f, abs=3), set())
    assert pitch(data)[1] == {"several_tracks"}
    with pytest.raises(AudioDecodeError, match="from 1 to 2"):
        load_audio(Excerpt(data, track=3))


def test_tracks_count_from_1():
    with pytest.raises(OptionError, match="count from 1"):
        Excerpt("x.mkv", track=0)


@pytest.mark.parametrize(
    ("name", "seconds"), [("sound-starts-at-4s.mkv", 4.4), ("paused-5s.webm", 8.0)]
)
def test_the_recorded_cases_are_as_long_as_players_show(name, seconds):
    if not (CASES / name).is_file():
        pytest.skip("the recorded cases are not here")
    assert len(load_audio(CASES / name)) / RATE > seconds
