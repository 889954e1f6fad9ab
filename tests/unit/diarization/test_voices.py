"""Turns by voice on the bundled clips of two people, with the network of the package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from spoken import EXAMPLES, Samples, at_level, pink

from pianissimo.audio.io import load_audio
from pianissimo.diarization.clustering import Vectors
from pianissimo.diarization.embedding import built_in_embedder, windows_in
from pianissimo.diarization.live import LiveTurns
from pianissimo.diarization.options import Diarization, parse_speakers
from pianissimo.diarization.sources import turn_source
from pianissimo.diarization.speech import SpeechPieces
from pianissimo.diarization.voices import VoiceTurns
from pianissimo.errors import AudioValueError, OptionError
from pianissimo.evaluate.diarization import turn_errors
from pianissimo.text.turns import Turn

RATE = 16_000


def clip(name: str) -> Samples:
    return at_level(load_audio(EXAMPLES / name), -26.0)


@pytest.fixture(scope="module")
def talk() -> tuple[Samples, tuple[Turn, ...]]:
    """Two people in turn, twice, and who speaks when."""
    one, other = clip("sentence.flac"), clip("number.flac")
    pause = np.zeros(RATE // 2, np.float32)
    parts = [one, pause, other, pause, one, pause, other]
    samples, reference, at = np.concatenate(parts), [], 0
    for part in parts:
        if part is not pause:
            pieces = SpeechPieces()
            for start, end, _ in [*pieces.push(part), *pieces.finish()]:
                name = "one" if part is one else "other"
                reference.append(Turn(at / RATE + start, at / RATE + end, name))
        at += len(part)
    return samples, tuple(reference)


def turns_of(
    samples: Samples, options: Diarization | None = None, block: int = RATE
) -> tuple[Turn, ...]:
    source = VoiceTurns(options or Diarization())
    for first in range(0, len(samples), block):
        source.push(samples[first : first + block])
    return source.finish()


def people(turns: Sequence[Turn]) -> set[str]:
    return {turn.speaker for turn in turns}


@pytest.mark.parametrize("speakers", [2, (1, 4), None])
def test_two_people_are_told_apart(
    talk: tuple[Samples, tuple[Turn, ...]], speakers: int | tuple[int, int] | None
) -> None:
    samples, reference = talk
    turns = turns_of(samples, Diarization(speakers=speakers))
    assert people(turns) == {"0", "1"}
    assert turns[0].speaker == "0"
    assert turn_errors(reference, turns).rate < 0.1
    assert all(turn.confidence is not None and 0 < turn.confidence <= 1 for turn in turns)


def test_blocks_and_level_change_nothing(talk: tuple[Samples, tuple[Turn, ...]]) -> None:
    samples, _ = talk
    expected = turns_of(samples)
    assert turns_of(samples, block=12_345) == expected
    quiet = turns_of(samples * np.float32(0.05))
    assert [turn.speaker for turn in quiet] == [turn.speaker for turn in expected]


def test_known_voices_have_names(talk: tuple[Samples, tuple[Turn, ...]]) -> None:
    samples, _ = talk
    path = EXAMPLES / "number.flac"
    turns = turns_of(samples, Diarization(speakers=2, voices={"Ann": path}))
    assert people(turns) == {"0", "Ann"}
    assert turns[0].speaker == "0"
    live = LiveTurns(Diarization(voices={"Ann": path}))
    live.push(samples)
    live.finish()
    assert people(live.turns) >= {"0", "Ann"}


def test_a_known_voice_needs_speech(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "quiet.wav", np.zeros(3 * RATE), RATE)
    with pytest.raises(AudioValueError, match="known voice needs"):
        VoiceTurns(Diarization(voices={"Ann": tmp_path / "quiet.wav"}))


@pytest.mark.parametrize("seconds", [0.0, 0.3, 60.0])
def test_silence_has_no_turns(seconds: float) -> None:
    assert turns_of(np.zeros(round(seconds * RATE), np.float32), block=10 * RATE) == ()


def test_noise_and_one_short_word_are_defined() -> None:
    assert turns_of(pink(5.0, -30.0)) == ()
    word = clip("number.flac")[: 2 * RATE]
    assert people(turns_of(word)) == {"0"}
    assert len(people(turns_of(word, Diarization(speakers=20)))) <= 20


class OneVoice:
    """An embedder that finds all voices alike, and counts windows."""

    def __init__(self) -> None:
        self.windows = 0

    def embed(self, windows: Sequence[Samples]) -> Vectors:
        self.windows += len(windows)
        return np.eye(4, dtype=np.float32)[[0] * len(windows)]


def test_one_speaker_is_one_even_if_more_are_asked() -> None:
    source = VoiceTurns(Diarization(), OneVoice())
    source.push(clip("number.flac"))
    assert people(source.finish()) == {"0"}


def test_live_turns_come_early_and_stay(talk: tuple[Samples, tuple[Turn, ...]]) -> None:
    samples, reference = talk
    live, seen = LiveTurns(), list[Turn]()
    for first in range(0, len(samples), RATE // 10):
        live.push(samples[first : first + RATE // 10])
        assert live.turns[: len(seen)] == seen
        seen = list(live.turns)
        pushed = min(first + RATE // 10, len(samples)) / RATE
        assert pushed - 1.7 <= live.seconds <= pushed
    turns = live.finish()
    assert turn_errors(reference, turns, collar=0.25).rate < 0.1
    assert turn_errors(reference, live.turns).rate < 0.35


def test_a_live_stream_embeds_each_stretch_once() -> None:
    embedder = OneVoice()
    live = LiveTurns(embedder=embedder)
    live.push(clip("number.flac"))
    live.finish()
    assert embedder.windows == len(live.turns)


def test_memory_of_silence_is_flat() -> None:
    pieces = SpeechPieces()
    for _ in range(30):
        assert pieces.push(np.zeros(10 * RATE, np.float32)) == []
    assert sum(array.nbytes for array in vars(pieces).values() if hasattr(array, "nbytes")) < 1e6


def test_vectors_do_not_depend_on_their_neighbors() -> None:
    speech = clip("number.flac")
    windows = [speech[a:b] for a, b in windows_in(len(speech))]
    together = built_in_embedder().embed(windows)
    alone = np.concatenate([built_in_embedder().embed([window]) for window in windows])
    assert np.abs(together - alone).max() < 1e-5
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "faces"}, "voices or channels"),
        ({"by": "channels", "speakers": 2}, "each channel is one speaker"),
        ({"speakers": 0}, "from 1 to 20"),
        ({"speakers": 21}, "from 1 to 20"),
        ({"speakers": (3, 2)}, "ascending"),
        ({"speakers": True}, "not true or false"),
        ({"speakers": "two"}, "a number or"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Diarization(**options)  # type: ignore[arg-type]


def test_what_diarize_takes() -> None:
    assert Diarization.of(False) is None
    assert Diarization.of(True) == Diarization()
    assert type(turn_source(Diarization("channels"))).__name__ == "ChannelTurns"
    with pytest.raises(OptionError, match="true, false or a Diarization"):
        Diarization.of("yes")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="one stream per channel"):
        LiveTurns(Diarization("channels"))


def test_speakers_on_the_command_line() -> None:
    assert (parse_speakers("3"), parse_speakers("2-4")) == (3, (2, 4))
    for text in ("", "-2", "a", "2-", "1000000"):
        with pytest.raises(OptionError, match="N or MIN-MAX"):
            parse_speakers(text)
