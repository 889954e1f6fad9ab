"""One speaker per channel: exact, whatever the models hear."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from spoken import EXAMPLES, Samples, at_level, pink
from tiny import noise

from pianissimo.audio.io import load_audio, read_channels
from pianissimo.diarization.channels import ChannelRecording, ChannelTurns
from pianissimo.diarization.options import Diarization
from pianissimo.errors import AudioNotFoundError, AudioValueError, OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.recognizers.base import default_detector
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.text.words import Word

RATE = 16_000
CHANNELS = Diarization("channels")


def clip(name: str) -> Samples:
    return at_level(load_audio(EXAMPLES / name), -26.0)


@pytest.fixture(scope="module")
def call() -> Samples:
    """(n, 2): one person per channel, the second one half a second after the first one ends."""
    one, other = clip("sentence.flac"), clip("number.flac")
    samples = np.zeros((len(one) + len(other) + RATE // 2, 2), np.float32)
    samples[: len(one), 0] = one
    samples[len(samples) - len(other) :, 1] = other
    return samples


@pytest.fixture(scope="module")
def recognizer(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    return NativeRecognizer(talker, tiny_tokenizer)


def test_each_channel_has_its_own_turns(call: Samples) -> None:
    source = ChannelTurns()
    for first in range(0, len(call), 9_999):
        source.push(call[first : first + 9_999])
    turns = source.finish()
    change = len(clip("sentence.flac")) / RATE
    assert {turn.speaker for turn in turns} == {"0", "1"}
    for turn in turns:
        assert (turn.end <= change + 0.1) if turn.speaker == "0" else (turn.start >= change)


def test_what_leaks_into_another_channel_is_no_turn_and_no_word(call: Samples) -> None:
    leaky = call.copy()
    leaky[8:, 1] += 0.03 * call[:-8, 0]
    with ChannelRecording(iter([leaky])) as recording:
        assert recording.turns[0].speaker == "0"
        end = len(clip("sentence.flac")) / RATE
        assert all(turn.start > end for turn in recording.turns if turn.speaker == "1")
        spoken = recording.turns[0]
        word = Word("a", spoken.start + 0.2, spoken.start + 0.6)
        assert recording.leaked(word, 1)
        assert not recording.leaked(word, 0)


def test_quiet_speech_under_a_loud_channel_is_no_leak(call: Samples) -> None:
    both = np.stack([call[: 3 * RATE, 0], 0.05 * call[::-1][: 3 * RATE, 1]], axis=1)
    with ChannelRecording(iter([both])) as recording:
        assert not recording.leaked(Word("a", 0.5, 1.2), 1)


def test_every_word_has_its_channel(recognizer: NativeRecognizer) -> None:
    samples = np.stack([noise(3 * RATE, 1), noise(3 * RATE, 2)], axis=1)
    found = recognizer.transcribe(samples, sample_rate=RATE, diarize=CHANNELS)
    alone = [recognizer.transcribe(channel, sample_rate=RATE) for channel in samples.T]
    for number, expected in enumerate(alone):
        mine = [word.text for word in found.words if word.speaker == str(number)]
        assert mine == [word.text for word in expected.words]
        assert mine
    starts = [segment.start for segment in found.segments]
    assert starts == sorted(starts)
    assert found.duration == 3.0


def test_a_file_blocks_and_an_array_are_the_same(
    recognizer: NativeRecognizer, tmp_path: Path
) -> None:
    samples = np.stack([noise(2 * RATE, 1), 0.5 * noise(2 * RATE, 2)], axis=1)
    soundfile.write(tmp_path / "call.wav", samples, RATE, subtype="FLOAT")
    expected = recognizer.transcribe(samples, sample_rate=RATE, diarize=CHANNELS)
    assert recognizer.transcribe(tmp_path / "call.wav", diarize=CHANNELS) == expected
    blocks = (samples[first : first + 7_001] for first in range(0, len(samples), 7_001))
    assert recognizer.transcribe(blocks, diarize=CHANNELS) == expected
    assert next(recognizer.transcribe_many([tmp_path / "call.wav"], diarize=CHANNELS)) == expected


def test_the_same_signal_twice_is_one_speaker(recognizer: NativeRecognizer) -> None:
    samples = np.stack([noise(2 * RATE)] * 2, axis=1)
    found = recognizer.transcribe(samples, sample_rate=RATE, diarize=CHANNELS)
    assert "same_channels" in found.reasons
    assert {word.speaker for word in found.words} == {"0"}


def test_a_silent_channel_says_nothing(
    talker: AsrModel, tiny_tokenizer: Tokenizer, call: Samples
) -> None:
    guarded = NativeRecognizer(talker, tiny_tokenizer, detector=default_detector())
    silent = call[: 3 * RATE] * np.array([1, 0], np.float32)
    found = guarded.transcribe(silent, sample_rate=RATE, diarize=CHANNELS)
    assert {word.speaker for word in found.words} == {"0"}
    assert found.speakers == ("0",)
    assert "silence" not in found.reasons
    nothing = guarded.transcribe(np.zeros((RATE, 2)), sample_rate=RATE, diarize=CHANNELS)
    assert (nothing.text, nothing.turns) == ("", ())


def test_other_numbers_of_channels_are_refused(
    recognizer: NativeRecognizer, tmp_path: Path
) -> None:
    with pytest.raises(AudioValueError, match=r"one channel.*--diarize"):
        recognizer.transcribe(noise(RATE), sample_rate=RATE, diarize=CHANNELS)
    with pytest.raises(AudioValueError, match="9 channels, but at most 8"):
        recognizer.transcribe(np.zeros((RATE, 9)), sample_rate=RATE, diarize=CHANNELS)
    with pytest.raises(AudioValueError, match="empty"):
        recognizer.transcribe(iter([]), diarize=CHANNELS)
    with pytest.raises(AudioNotFoundError, match="no such file"):
        recognizer.transcribe(tmp_path / "none.wav", diarize=CHANNELS)
    with pytest.raises(AudioValueError, match="number of channels"):
        blocks = iter([np.zeros((9, 2), np.float32), np.zeros((9, 3), np.float32)])
        recognizer.transcribe(blocks, diarize=CHANNELS)
    with pytest.raises(OptionError, match="need their rate"):
        recognizer.transcribe(np.zeros((9, 2)), diarize=CHANNELS)
    uneven = [[0.0, 0.0], [0.0]]
    with pytest.raises(AudioValueError, match="not one array"):
        recognizer.transcribe(uneven, sample_rate=RATE, diarize=CHANNELS)


def test_channels_are_read_at_16_khz(tmp_path: Path) -> None:
    samples = np.stack([pink(1.0, -20.0, seed) for seed in (1, 2, 3)], axis=1)
    soundfile.write(tmp_path / "three.flac", samples, 8_000)
    [block] = read_channels(tmp_path / "three.flac")
    assert block.shape == (2 * RATE, 3)
    assert block.dtype == np.float32


def test_speakers_do_not_change_the_text(recognizer: NativeRecognizer) -> None:
    samples = noise(3 * RATE)
    plain = recognizer.transcribe(samples, sample_rate=RATE)
    found = recognizer.transcribe(samples, sample_rate=RATE, diarize=True)
    assert (found.text, found.duration, found.reasons) == (
        plain.text,
        plain.duration,
        plain.reasons,
    )
    assert [word.text for word in found.words] == [word.text for word in plain.words]
    assert found.turns is not None
    assert plain.turns is None
    brief = recognizer.transcribe(samples, sample_rate=RATE, diarize=True, word_timestamps=False)
    assert brief.words == ()
    assert brief.text == plain.text
