import base64
import io
import itertools
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from pianissimo.audio.io import (
    SAMPLE_RATE,
    AudioInfo,
    describe,
    from_array,
    load_audio,
    stream_audio,
)
from pianissimo.errors import (
    AudioDecodeError,
    AudioNotFoundError,
    AudioValueError,
    OptionError,
)

SECONDS = 1.5
HERTZ = 440.0
AMPLITUDE = 0.4
LAYOUTS = {1: "mono", 2: "stereo", 8: "7.1"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJg"
    "gg=="
)


def tone(rate=SAMPLE_RATE, channels=1, seconds=SECONDS):
    wave = AMPLITUDE * np.sin(2 * np.pi * HERTZ * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def by_soundfile(container, subtype, rate=SAMPLE_RATE, channels=1, seconds=SECONDS):
    file = io.BytesIO()
    soundfile.write(file, tone(rate, channels, seconds), rate, format=container, subtype=subtype)
    return file.getvalue()


def by_libav(container, codec=None, rate=48_000, channels=1, seconds=SECONDS, video=None):
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        picture = out.add_stream(video, rate=10) if video else None
        if picture:
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
        track = out.add_stream(codec, rate=rate, layout=LAYOUTS[channels]) if codec else None
        if picture:
            for index in range(round(seconds * 10)):
                image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), "rgb24")
                out.mux(picture.encode(image))
            out.mux(picture.encode(None))
        if track:
            packed = tone(rate, channels, seconds).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[channels])
            frame.sample_rate = rate
            convert = av.AudioResampler(track.format, track.layout, rate, track.frame_size or 1024)
            for piece in [*convert.resample(frame), *convert.resample(None)]:
                out.mux(track.encode(piece))
            out.mux(track.encode(None))
    return file.getvalue()


def wav_header(data_bytes, rate=8_000, channels=1):
    fmt = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    riff = struct.pack("<4sI4s4sI", b"RIFF", min(data_bytes + 36, 2**32 - 1), b"WAVE", b"fmt ", 16)
    return riff + fmt + struct.pack("<4sI", b"data", data_bytes)


def assert_is_tone(samples, seconds=SECONDS, tolerance_seconds=1e-4, rate=SAMPLE_RATE):
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) / rate - seconds) <= tolerance_seconds
    inner = samples[rate // 10 : -rate // 10].astype(np.float64)
    # LAME takes 5 % off every signal
    assert np.sqrt(np.mean(inner**2)) == pytest.approx(AMPLITUDE / np.sqrt(2), rel=0.06)
    spectrum = np.abs(np.fft.rfft(inner * np.hanning(len(inner))))
    assert np.argmax(spectrum) * rate / len(inner) == pytest.approx(HERTZ, abs=2.0)


class Pipe(io.RawIOBase):
    """A stream that cannot seek, such as a socket or a shell pipe."""

    def __init__(self, data, fails_after=None):
        self._file = io.BytesIO(data)
        self._fails_after = fails_after

    def readable(self):
        return True

    def readinto(self, buffer):
        if self._fails_after is not None and self._file.tell() >= self._fails_after:
            raise OSError("the cable was pulled")
        return self._file.readinto(buffer)


class Failing(io.BytesIO):
    """A seekable file whose disk breaks in the middle."""

    def read(self, size=-1):
        if self.tell() > 10_000:
            raise OSError("bad sector")
        return super().read(size)


# Containers, codecs, rates, channels


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        *(("WAV", s) for s in ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]),
        *(("WAV", s) for s in ["ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM"]),
        *(("RF64", "PCM_16"), ("W64", "PCM_24"), ("AIFF", "PCM_16"), ("AU", "PCM_16")),
        *(("CAF", "PCM_24"), ("NIST", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24")),
        *(("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
    ],
)
def test_what_libsndfile_writes(container, subtype):
    padded = 0.06 if "ADPCM" in subtype or subtype == "MPEG_LAYER_III" else 1e-4
    data = by_soundfile(container, subtype)
    assert_is_tone(load_audio(data), tolerance_seconds=padded)
    info = describe(data)
    assert info.sample_rate in (SAMPLE_RATE, 48_000) and info.channels == 1
    assert info.duration_seconds == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("container", "codec", "video"),
    [
        ("mp4", "aac", None),
        ("ipod", "aac", None),
        ("adts", "aac", None),
        ("mov", "alac", None),
        ("webm", "libopus", None),
        ("ogg", "libopus", None),
        ("mp3", "libmp3lame", None),
        ("matroska", "aac", None),
        ("mpegts", "aac", None),
        ("avi", "pcm_s16le", None),
        ("mp4", "aac", "mpeg4"),
        ("webm", "libopus", "libvpx-vp9"),
    ],
)
def test_what_libav_writes(container, codec, video, channels):
    data = by_libav(container, codec, channels=channels, video=video)
    assert_is_tone(load_audio(data), tolerance_seconds=0.06)
    info = describe(data)
    assert (info.sample_rate, info.channels) == (48_000, channels)
    assert info.codec in (codec, codec.removeprefix("lib"), "mp3")


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_rates_and_channels(rate, channels):
    wav = by_soundfile("WAV", "PCM_24", rate, channels)
    assert_is_tone(load_audio(wav))
    assert_is_tone(load_audio(wav, sample_rate=24_000), rate=24_000)
    flac = load_audio(by_soundfile("FLAC", "PCM_24", rate, channels))
    np.testing.assert_allclose(flac, load_audio(wav), atol=1e-6)  # the writers round differently


def test_aac_in_eight_channels():
    # AAC keeps only the deep end of the eighth channel, the LFE
    samples = load_audio(by_libav("mp4", "aac", channels=8))
    assert_is_tone(samples * 8 / 7, tolerance_seconds=0.06)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "AIFF"])
def test_integers_are_exact(container):
    values = np.array([0, 1, -1, 1234, 32767, -32768] * 100, dtype=np.int16)
    file = io.BytesIO()
    soundfile.write(file, values, SAMPLE_RATE, format=container, subtype="PCM_16")
    np.testing.assert_array_equal(load_audio(file.getvalue()), values.astype(np.float32) / 32_768)


def test_channels_are_averaged():
    file = io.BytesIO()
    channels = np.arange(8) / 16
    soundfile.write(file, np.tile(channels, (100, 1)), SAMPLE_RATE, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(load_audio(file.getvalue()), channels.mean(), rtol=1e-6)


def test_a_rate_that_changes_on_the_way():
    data = by_libav("mp3", "libmp3lame", 48_000) + by_libav("mp3", "libmp3lame", 24_000)
    samples = load_audio(data)
    assert_is_tone(samples[: len(samples) // 2], tolerance_seconds=0.1)
    assert_is_tone(samples[len(samples) // 2 :], tolerance_seconds=0.1)


@pytest.mark.parametrize("declared", [0, 2**32 - 1])
def test_wav_that_was_piped_and_never_got_its_length(declared):
    pcm = (tone(8_000) * 32_767).astype("<i2").tobytes()
    assert_is_tone(load_audio(wav_header(declared) + pcm))


# Sources


@pytest.mark.parametrize("kind", ["wav", "mp3", "webm"])
def test_every_kind_of_source_gives_the_same(kind, tmp_path, monkeypatch):
    data = {
        "wav": lambda: by_soundfile("WAV", "PCM_16", 22_050, 2),
        "mp3": lambda: by_soundfile("MP3", "MPEG_LAYER_III", 44_100),
        "webm": lambda: by_libav("webm", "libopus"),
    }[kind]()
    path = tmp_path / "misleading.txt"
    path.write_bytes(data)
    expected = load_audio(data)

    def same(source):
        np.testing.assert_array_equal(load_audio(source), expected)

    same(path)
    same(str(path))
    same(bytearray(data))
    same(memoryview(data))
    same(io.BytesIO(data))
    same(Pipe(data))
    with path.open("rb") as file:
        same(file)
    for stdin in (io.BytesIO(data), io.BufferedReader(Pipe(data))):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin))
        same("-")


def test_a_file_object_is_read_from_its_position_and_put_back():
    data = by_soundfile("WAV", "PCM_16")
    for body in (data, by_libav("mp4", "aac")):
        file = io.BytesIO(b"preamble" + body)
        file.seek(8)
        assert describe(file) == describe(body)
        assert file.tell() == 8
        np.testing.assert_array_equal(load_audio(file), load_audio(body))
        assert file.tell() == 8 and not file.closed


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX thing")
def test_a_named_pipe(tmp_path):
    data = by_soundfile("FLAC", "PCM_16")
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    np.testing.assert_array_equal(load_audio(path), load_audio(data))
    writer.join()


@pytest.mark.parametrize("extension", ["wav", "mp3", "flac", "m3u8", "sdp", "png"])
def test_a_wrong_extension_does_not_matter(extension, tmp_path):
    for data in (by_soundfile("WAV", "PCM_16"), by_libav("mp4", "aac")):
        path = tmp_path / f"audio.{extension}"
        path.write_bytes(data)
        np.testing.assert_array_equal(load_audio(path), load_audio(data))


# Streaming


@pytest.mark.parametrize("block_seconds", [0.01, 0.25, 0.7, 100.0])
def test_blocks_joined_equal_the_whole(block_seconds):
    for data in (by_soundfile("WAV", "PCM_16", 44_100, 2), by_libav("mp4", "aac")):
        blocks = list(stream_audio(data, block_seconds=block_seconds))
        assert {len(block) for block in blocks[:-1]} <= {round(block_seconds * SAMPLE_RATE)}
        assert 0 < len(blocks[-1]) <= round(block_seconds * SAMPLE_RATE)
        np.testing.assert_array_equal(np.concatenate(blocks), load_audio(data))


def test_an_hour_streams_in_little_memory(tmp_path):
    path = tmp_path / "hour.wav"
    data_bytes = 3600 * 8_000 * 2
    with path.open("wb") as file:
        file.write(wav_header(data_bytes))
        file.truncate(44 + data_bytes)  # a sparse file: silence that takes no disk
    next(stream_audio(path))  # imports happen outside the measurement
    tracemalloc.start()
    total = sum(len(block) for block in stream_audio(path))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 3600 * SAMPLE_RATE
    assert peak_bytes < 16e6
    assert describe(path) == AudioInfo(3600.0, 8_000, 1, "wav", "pcm_16")


def test_a_stream_left_early_closes_its_file(tmp_path):
    path = tmp_path / "tone.flac"
    path.write_bytes(by_soundfile("FLAC", "PCM_16"))
    blocks = stream_audio(path, block_seconds=0.1)
    assert len(list(itertools.islice(blocks, 2))) == 2
    blocks.close()
    file = io.BytesIO(path.read_bytes())
    blocks = stream_audio(file, block_seconds=0.1)
    next(blocks)
    blocks.close()
    assert file.tell() == 0


@pytest.mark.parametrize("block_seconds", [0, -1, float("nan"), float("inf")])
def test_unusable_block_lengths_are_refused_at_once(block_seconds):
    with pytest.raises(OptionError, match="block_seconds"):
        stream_audio(b"RIFF", block_seconds=block_seconds)


def test_unusable_target_rates_are_refused_at_once():
    with pytest.raises(AudioValueError, match="sample rate"):
        stream_audio(b"RIFF", sample_rate=10)
    with pytest.raises(AudioValueError, match="sample rate"):
        load_audio(b"RIFF", sample_rate=400_000)


# Damage


@pytest.mark.parametrize("fraction", [0.5, 0.9])
@pytest.mark.parametrize(
    "make",
    [
        lambda: by_soundfile("WAV", "PCM_16", seconds=4),
        lambda: by_soundfile("WAV", "IMA_ADPCM", seconds=4),
        lambda: by_soundfile("AIFF", "PCM_24", seconds=4),
        lambda: by_soundfile("FLAC", "PCM_16", seconds=4),
        lambda: by_soundfile("MP3", "MPEG_LAYER_III", 44_100, seconds=4),
        lambda: by_libav("adts", "aac", seconds=4),
        lambda: by_libav("webm", "libopus", seconds=4),
        lambda: by_libav("ogg", "libopus", seconds=4),
    ],
)
def test_a_file_cut_off_gives_what_decodes(make, fraction, capfd):
    data = make()
    samples = load_audio(data[: int(fraction * len(data))])
    # an Ogg page holds a second of audio and is lost whole
    assert_is_tone(samples, 4 * fraction, tolerance_seconds=1.1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "data",
    [
        by_soundfile("WAV", "PCM_16")[:30],
        by_soundfile("WAV", "PCM_16")[:44],
        by_soundfile("WAV", "PCM_16", seconds=0),
        by_soundfile("FLAC", "PCM_16")[:60],
        by_soundfile("OGG", "VORBIS")[:500],
        by_soundfile("MP3", "MPEG_LAYER_III")[:40],
        by_libav("mp4", "aac")[:2000],
        by_libav("webm", "libopus")[:200],
    ],
    ids=["wav30", "wav44", "wav0", "flac", "ogg", "mp3", "mp4", "webm"],
)
def test_nothing_that_decodes_is_an_error(data, capfd):
    with pytest.raises(AudioDecodeError, match="cut off") as caught:
        load_audio(data)
    assert "the given bytes" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_damage_in_the_middle_is_passed_over(capfd):
    data = bytearray(by_libav("mp3", "libmp3lame", seconds=4))
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    assert len(load_audio(data)) / SAMPLE_RATE == pytest.approx(4, abs=0.5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "data",
    [
        b"This is a text file.\n" * 500,
        PNG,
        b"%PDF-1.7\n" + bytes(range(256)) * 50,
        b"ID3\x03\x00\x00\x00\x00\x00\x00" + b"not music " * 300,
        b"\xff\xfb" * 5000,
        bytes(10_000),
        b"x",
        np.random.default_rng(0).bytes(100_000),
    ],
    ids=["text", "png", "pdf", "id3", "sync", "zeros", "one", "random"],
)
def test_what_is_not_audio(data, tmp_path, capfd):
    path = tmp_path / "recording.mp3"
    path.write_bytes(data)
    for function in (load_audio, describe):
        with pytest.raises(AudioDecodeError, match=r"recording\.mp3 is not audio"):
            function(path)
    assert capfd.readouterr() == ("", "")


def test_video_without_sound():
    data = by_libav("mp4", video="mpeg4")
    for function in (load_audio, describe):
        with pytest.raises(AudioDecodeError, match="no audio track, only video"):
            function(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_placed_in_time(value):
    samples = tone(8_000, 2)
    samples[4_000, 1] = value
    file = io.BytesIO()
    soundfile.write(file, samples, 8_000, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioValueError, match=r"0\.500 s"):
        load_audio(file.getvalue())
    with pytest.raises(AudioValueError, match=r"0\.500 s"):
        from_array(samples, 8_000)


def test_a_file_with_an_unusable_rate():
    data = wav_header(2000, rate=500) + bytes(2000)
    for function in (load_audio, describe):
        with pytest.raises(AudioValueError, match="500 Hz"):
            function(data)


# Nothing to read


def test_no_such_file(tmp_path):
    with pytest.raises(AudioNotFoundError, match=r"absent\.wav: no such file"):
        load_audio(tmp_path / "absent.wav")


def test_a_directory(tmp_path):
    with pytest.raises(AudioNotFoundError, match="is a directory"):
        load_audio(tmp_path)


def test_no_permission(tmp_path, monkeypatch):
    path = tmp_path / "secret.wav"
    path.write_bytes(by_soundfile("WAV", "PCM_16"))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pianissimo.audio.io.open", refuse, raising=False)
    with pytest.raises(AudioNotFoundError, match=r"secret\.wav.*permission denied"):
        load_audio(path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_no_file_can_have(name):
    with pytest.raises(AudioNotFoundError, match="cannot be opened"):
        load_audio(name)


def test_empty_sources(tmp_path, monkeypatch):
    path = tmp_path / "empty.wav"
    path.touch()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(b""))))
    for source, name in [(path, "empty.wav"), (b"", "the given bytes"), ("-", "standard input")]:
        with pytest.raises(AudioNotFoundError, match=f"{name} is empty"):
            load_audio(source)
    spent = io.BytesIO(b"RIFF")
    spent.read()
    with pytest.raises(AudioNotFoundError, match=r"seek\(0\)"):
        load_audio(spent)


def test_a_terminal_or_no_standard_input(monkeypatch):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO()))
    with pytest.raises(AudioNotFoundError, match="terminal"):
        load_audio("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(AudioNotFoundError, match="closed"):
        load_audio("-")


@pytest.mark.parametrize("source", [None, 3, [0.0, 1.0], np.zeros(10, np.float32)])
def test_sources_of_another_type(source):
    with pytest.raises(OptionError, match="from_array"):
        load_audio(source)


def test_a_file_that_was_closed():
    file = io.BytesIO(by_soundfile("WAV", "PCM_16"))
    file.close()
    with pytest.raises(AudioNotFoundError, match="is closed"):
        load_audio(file)


def test_a_file_opened_as_text():
    with pytest.raises(OptionError, match="binary"):
        load_audio(io.StringIO("hello"))


def test_a_source_that_breaks_while_it_is_read(capfd):
    for container, subtype in [("WAV", "PCM_16"), ("FLAC", "PCM_16")]:
        data = by_soundfile(container, subtype, seconds=10)
        with pytest.raises(AudioNotFoundError, match="bad sector"):
            load_audio(Failing(data))
        with pytest.raises(AudioNotFoundError, match="cable"):
            load_audio(Pipe(data, fails_after=100))
    assert capfd.readouterr() == ("", "")


# Nothing else is opened


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/a.wav",
        "https://example.com/a.mp3",
        "file:///etc/hostname",
        "rtsp://127.0.0.1/live",
        "s3://bucket/key.flac",
    ],
)
def test_urls_are_not_fetched(url):
    with pytest.raises(AudioNotFoundError, match=r"URLs are not fetched; download"):
        load_audio(url)


@pytest.mark.parametrize("prefix", ["concat:", "subfile:,,start,0,end,0,,:", "async:", "file:"])
def test_libav_protocols_are_only_names(prefix, tmp_path):
    path = tmp_path / "tone.wav"
    path.write_bytes(by_soundfile("WAV", "PCM_16"))
    with pytest.raises(AudioNotFoundError):
        load_audio(f"{prefix}{path}")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "list.m3u8",
            "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{path}\n#EXT-X-ENDLIST\n",
        ),
        ("list.ffconcat", "ffconcat version 1.0\nfile '{path}'\n"),
        (
            "call.sdp",
            "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            "m=audio 50040 RTP/AVP 0\n",
        ),
        (
            "manifest.mpd",
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="audio/mp4">'
            '<Representation id="1" bandwidth="1"><BaseURL>{path}</BaseURL></Representation>'
            "</AdaptationSet></Period></MPD>",
        ),
    ],
    ids=["hls", "concat", "sdp", "dash"],
)
def test_playlists_are_refused(file, text, tmp_path, monkeypatch):
    (tmp_path / "tone.ts").write_bytes(by_libav("mpegts", "aac"))
    playlist = tmp_path / file
    playlist.write_text(text.format(path="tone.ts"))
    monkeypatch.chdir(tmp_path)
    if file.startswith("list"):
        with av.open(str(playlist)) as opened:  # the danger is real: by name libav would follow it
            assert opened.streams.audio
    for source in (playlist, playlist.read_bytes()):
        with pytest.raises(AudioDecodeError, match="is not audio"):
            load_audio(source)


# Arrays


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_from_memory(dtype):
    samples = tone(seconds=0.5)[:, 0].astype(dtype)
    np.testing.assert_array_equal(from_array(samples, 16_000), samples.astype(np.float32))


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<i4", "u1"])
def test_integers_from_memory(dtype):
    limits = np.iinfo(dtype)
    middle = (limits.max + limits.min + 1) // 2
    samples = np.array([limits.min, middle, middle + (limits.max - middle + 1) // 2], dtype=dtype)
    np.testing.assert_array_equal(from_array(samples, 16_000), [-1.0, 0.0, 0.5])


def test_memory_equals_file():
    samples = tone(44_100, 2)
    file = io.BytesIO()
    soundfile.write(file, samples, 44_100, format="WAV", subtype="FLOAT")
    np.testing.assert_array_equal(from_array(samples, 44_100), load_audio(file.getvalue()))
    np.testing.assert_array_equal(from_array(samples[:, :1], 44_100.0), load_audio(file.getvalue()))


def test_other_array_types():
    torch = pytest.importorskip("torch")
    samples = tone()[:, 0]
    for dtype in (torch.float32, torch.float64):
        tensor = torch.from_numpy(samples).to(dtype).requires_grad_()
        np.testing.assert_array_equal(from_array(tensor, 16_000), samples)
    assert from_array(torch.zeros(10, dtype=torch.bfloat16), 16_000).dtype == np.float32
    np.testing.assert_array_equal(from_array([0.0, 0.5, -0.25], 16_000), [0.0, 0.5, -0.25])
    assert len(from_array([], 8_000)) == 0


def test_a_path_or_bytes_are_no_samples():
    for samples in ("talk.wav", Path("talk.wav"), b"\0\0", bytearray(2), memoryview(b"\0\0")):
        with pytest.raises(AudioValueError, match="leave sample_rate out"):
            from_array(samples, 16_000)


def test_no_samples_of_two_channels_are_no_samples():
    assert from_array(np.zeros((0, 2)), 16_000).shape == (0,)


def test_from_array_gives_new_memory():
    samples = tone()[:, 0]
    assert not np.shares_memory(from_array(samples, 16_000), samples)


@pytest.mark.parametrize("shape", [(1, 16_000), (2, 16_000), (16, 17)])
def test_channels_first_is_refused_with_a_hint(shape):
    with pytest.raises(AudioValueError, match="transpose"):
        from_array(np.zeros(shape), 16_000)


@pytest.mark.parametrize("shape", [(), (100, 0), (20, 80), (2, 3, 4)])
def test_shapes_that_are_not_audio(shape):
    with pytest.raises(AudioValueError, match="is not audio"):
        from_array(np.zeros(shape), 16_000)


@pytest.mark.parametrize(
    "samples",
    [
        np.array(["a", "b"]),
        np.array([True, False]),
        np.array([1j]),
        np.array([1, 2, 3]),
        np.array([None, 1.0]),
        [[0.0, 1.0], [0.0]],
        "samples",
        b"samples!",
        bytearray(b"samples!"),
        None,
    ],
)
def test_what_is_not_samples(samples):
    with pytest.raises(AudioValueError):
        from_array(samples, 16_000)


@pytest.mark.parametrize("rate", [0, -8_000, 999, 384_001, None, "16k"])
def test_arrays_at_unusable_rates(rate):
    with pytest.raises(AudioValueError, match="sample rate"):
        from_array(np.zeros(10), rate)


def test_values_beyond_float32_are_infinite():
    with pytest.raises(AudioValueError, match=r"infinite sample at 0\.001 s"):
        from_array(np.array([0.0] * 16 + [1e300]), 16_000)


# Imports


def test_decoders_are_imported_only_when_needed():
    code = (
        "import sys, pianissimo.audio.io\n"
        "print([m for m in ('av', 'soundfile', 'soxr', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_samples_that_a_filter_makes_infinite_are_refused():
    samples = np.zeros(24_000, np.float32)
    samples[1000] = 2.5e38
    file = io.BytesIO()
    soundfile.write(file, samples, 48_000, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioValueError, match=r"infinite sample at 0\.02"):
        load_audio(file.getvalue())
    with pytest.raises(AudioValueError, match=r"infinite sample at 0\.02"):
        from_array(samples, 48_000)
