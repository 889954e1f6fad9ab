"""Raw samples in messages of any size, against libsndfile's tables."""

import io

import numpy as np
import pytest
import soundfile

from pianissimo.errors import AudioValueError
from pianissimo.serve.audio_in.pcm import ALAW, MULAW, PcmReader


@pytest.mark.parametrize(("table", "subtype"), [(MULAW, "ULAW"), (ALAW, "ALAW")])
def test_g711_is_that_of_libsndfile(table: np.ndarray, subtype: str) -> None:
    codes = io.BytesIO(bytes(range(256)))
    with soundfile.SoundFile(codes, "r", 8000, 1, subtype, format="RAW") as file:
        assert np.array_equal(file.read(dtype="int16"), table)


@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le", "mulaw", "alaw"])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_cuts_between_messages_do_not_matter(encoding: str, channels: int) -> None:
    data = np.random.default_rng(0).integers(0, 120, 960, np.uint8).tobytes()
    whole = PcmReader(encoding, channels).push(data)  # type: ignore[arg-type]
    reader = PcmReader(encoding, channels)  # type: ignore[arg-type]
    parts = [reader.push(data[start : start + 7]) for start in range(0, len(data), 7)]
    assert np.array_equal(np.concatenate(parts), whole, equal_nan=True)
    assert whole.shape == ((len(whole),) if channels == 1 else (len(whole), 2))


def test_what_is_unknown_is_refused() -> None:
    with pytest.raises(AudioValueError, match="opus"):
        PcmReader("opus")  # type: ignore[arg-type]
    with pytest.raises(AudioValueError, match="channels"):
        PcmReader("mulaw", 0)
