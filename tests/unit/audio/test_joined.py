"""Joined files, and headers that a pipe left unfinished: every sample is heard."""

import io

import av
import numpy as np
import pytest
import soundfile

from pianissimo.audio.io import load_audio, stream_audio

RATE = 16_000
RNG = np.random.default_rng(5)
FIRST, SECOND = (RNG.integers(-9000, 9000, n, np.int16) for n in (20_000, 7_001))
UNKNOWN = 0xFFFFFFFF


def made(kind, samples, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype="PCM_16")
    return file.getvalue()


class Pipe:
    """A file that cannot go back to its header."""

    def __init__(self):
        self.data = bytearray()

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def muxed(file, container, codec, samples, **options):
    with av.open(file, "w", format=container, options=options) as out:
        stream = out.add_stream(codec, rate=RATE)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = RATE
        out.mux([*stream.encode(frame), *stream.encode(None)])


def piped(container, codec, samples, **options):
    pipe = Pipe()
    muxed(pipe, container, codec, samples, **options)
    return bytes(pipe.data)


def heard(data, notes=None):
    return np.round(load_audio(data, notes=notes) * 32768).astype(np.int16)


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF"])
def test_joined_files_are_all_heard(kind):
    notes = set()
    joined = made(kind, FIRST) + made(kind, SECOND) + made(kind, FIRST)
    np.testing.assert_array_equal(heard(joined, notes), np.concatenate([FIRST, SECOND, FIRST]))
    assert notes == {"joined_files"}
    parts = stream_audio(joined, block_seconds=0.3)
    np.testing.assert_array_equal(np.concatenate(list(parts)), load_audio(joined))


@pytest.mark.parametrize("kind", ["AIFF", "CAF"])
def test_joined_files_may_have_other_rates(kind):
    joined = made(kind, FIRST) + made(kind, SECOND, 8_000)
    assert len(heard(joined)) == len(FIRST) + 2 * len(SECOND)


@pytest.mark.parametrize(
    ("container", "codec", "tags"),
    [("flv", "aac", b""), ("wv", "wavpack", b""), ("wv", "wavpack", b"APETAGEX" + bytes(100))],
)
def test_joined_blocks_and_tags_are_all_heard(container, codec, tags):
    first, second = (piped(container, codec, samples) for samples in (FIRST, SECOND))
    notes = set()
    alone = [load_audio(first), load_audio(second)]
    assert len(alone[0]) >= len(FIRST) and len(alone[1]) >= len(SECOND)
    joined = load_audio(first + tags + second, notes=notes)
    np.testing.assert_array_equal(joined, np.concatenate(alone))
    assert notes == {"joined_files"}
    assert len(load_audio(first + tags)) == len(alone[0])


@pytest.mark.parametrize("options", [{}, {"movflags": "frag_keyframe+empty_moov"}])
def test_joined_mp4_is_all_heard(options):
    files = []
    for samples in (FIRST, SECOND):
        file = io.BytesIO()
        muxed(file, "mp4", "aac", samples, **options)
        files.append(file.getvalue())
    alone = [load_audio(data) for data in files]
    np.testing.assert_array_equal(load_audio(b"".join(files)), np.concatenate(alone))


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("wav", "pcm_s16le", {}),
        ("wav", "pcm_s16le", {"rf64": "always"}),
        ("w64", "pcm_s16le", {}),
        ("aiff", "pcm_s16be", {}),
        ("caf", "pcm_s16le", {}),
        ("au", "pcm_s16be", {}),
    ],
    ids=["wav", "rf64", "w64", "aiff", "caf", "au"],
)
def test_a_header_that_a_pipe_left_unfinished_loses_nothing(container, codec, options):
    one, other = (piped(container, codec, samples, **options) for samples in (FIRST, SECOND))
    np.testing.assert_array_equal(heard(one), FIRST)
    np.testing.assert_array_equal(heard(one + other), np.concatenate([FIRST, SECOND]))


@pytest.mark.parametrize("stated", [0, UNKNOWN])
def test_a_joined_wav_whose_first_size_was_never_written(stated):
    first = bytearray(made("WAV", FIRST))
    first[4:8] = first[40:44] = stated.to_bytes(4, "little")
    for second, count in ((made("WAV", SECOND), 1), (made("WAV", SECOND, 8_000), 2)):
        samples = heard(bytes(first) + second)
        np.testing.assert_array_equal(samples[: len(FIRST)], FIRST)
        assert len(samples) == len(FIRST) + count * len(SECOND)


def test_a_rest_that_cannot_be_decoded_is_noted():
    notes = set()
    joined = made("AIFF", FIRST) + made("AIFF", SECOND)[:30]
    np.testing.assert_array_equal(heard(joined, notes), FIRST)
    assert notes == {"joined_files", "unread_rest"}


def test_what_follows_a_single_file_is_no_sound():
    notes = set()
    for kind in ("AIFF", "CAF", "AU"):
        np.testing.assert_array_equal(heard(made(kind, FIRST) + b"TAG" + bytes(125), notes), FIRST)
    assert notes == set()
