"""The audio decoder under a fuzzer: python decoder_target.py [FOLDER] [-max_total_time=300 ...]

Recordings in many containers are the seeds; what the fuzzer finds worth keeping goes into FOLDER.
libFuzzer's own options say how long it runs. Only the Python side is instrumented: the libraries
that decode are watched from outside, for crashes, hangs and memory.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RATE = 48_000
MOST_SECONDS = 600.0
"""A few bytes may be hours of silence: the server has a limit, so has the target."""
CONTAINERS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wav8": ("WAV", "PCM_U8"),
    "wavfloat": ("WAV", "FLOAT"),
    "wavulaw": ("WAV", "ULAW"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
}
CODECS = {
    "m4a": ("ipod", "aac"),
    "adts": ("adts", "aac"),
    "mpegts": ("mpegts", "aac"),
    "webm": ("webm", "libopus"),
    "matroska": ("matroska", "pcm_s16le"),
}


def decode(data: bytes) -> float:
    """The seconds in a recording; raises AudioError, and AssertionError for what is no audio."""
    from pianissimo.audio.io import SAMPLE_RATE, stream_audio

    samples = 0
    for block in stream_audio(data, block_seconds=1.0):
        assert block.dtype == np.float32 and block.ndim == 1 and np.isfinite(block).all()
        samples += len(block)
        if samples > MOST_SECONDS * SAMPLE_RATE:
            break
    return samples / SAMPLE_RATE


def seeds() -> Iterator[tuple[str, bytes]]:
    """Half a second of sound in each container that the libraries here can write."""
    import av
    import soundfile

    time = np.arange(RATE // 2) / RATE
    sound = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    for name, (container, subtype) in CONTAINERS.items():
        file = io.BytesIO()
        soundfile.write(file, sound, RATE, format=container, subtype=subtype)
        yield name, file.getvalue()
    for name, (container, codec) in CODECS.items():
        file = io.BytesIO()
        with av.open(file, "w", format=container) as output:
            track = output.add_stream(codec, rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(sound[None], format="flt", layout="mono")
            frame.sample_rate = RATE
            convert = av.AudioResampler(track.format, track.layout, RATE, track.frame_size or 1024)
            for piece in [*convert.resample(frame), *convert.resample(None)]:
                output.mux(track.encode(piece))
            output.mux(track.encode(None))
        yield name, file.getvalue()


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["pianissimo"]):
        import pianissimo.audio.io  # noqa: F401  decode() finds it imported
        from pianissimo.errors import AudioError

    def target(data: bytes) -> None:
        try:
            decode(data)
        except AudioError:
            pass

    folder = Path(next((each for each in sys.argv[1:] if not each.startswith("-")), "."))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seeds():
        (folder / f"seed-{name}").write_bytes(data)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
