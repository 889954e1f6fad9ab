"""Hours of audio, many people, and less than there should be: a defined result each time.

Speech is made up here: stretches and vectors, without audio, so that hours take seconds.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pianissimo.audio.level import Samples
from pianissimo.diarization import clustering, live
from pianissimo.diarization.clustering import Vectors, find_speakers, unit
from pianissimo.diarization.live import MOST_LIVE_SPEAKERS, LiveTurns
from pianissimo.diarization.options import MOST_SPEAKERS, Diarization
from pianissimo.diarization.voices import Stretch, VoiceTurns, turns_by_voice

RATE = 16_000
WINDOWS = 60


def voices(count: int) -> Vectors:
    """Voices whose cosines with each other are 0.56, as those of the network are."""
    return unit((np.eye(count, 64) + 1 / 8).astype(np.float32))


class Pieces:
    """Takes the place of `SpeechPieces`: every push is 0.8 s of speech of the next speaker.

    The samples of a piece hold the number of its speaker.
    """

    def __init__(self, **options: object) -> None:
        self.seconds = self.settled_seconds = 0.0

    def push(self, samples: Samples) -> list[tuple[float, float, Samples]]:
        start, self.seconds = self.seconds, self.seconds + len(samples) / RATE + 1.0
        self.settled_seconds = self.seconds
        return [(start, start + len(samples) / RATE, samples)]

    def finish(self) -> list[tuple[float, float, Samples]]:
        return []


class Numbered:
    """An embedder that gives the voice whose number the samples hold, with a little noise."""

    def __init__(self, count: int) -> None:
        self._voices, self._rng = voices(count), np.random.default_rng(1)

    def embed(self, windows: Sequence[Samples]) -> Vectors:
        found = np.stack([self._voices[int(window[-1])] for window in windows])
        return unit(found + 0.02 * self._rng.standard_normal(found.shape).astype(np.float32))


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(live, "SpeechPieces", Pieces)
    monkeypatch.setattr(live, "CLUSTERED_WINDOWS", WINDOWS)
    yield


def piece(speaker: int) -> Samples:
    return np.full(round(0.8 * RATE), speaker, np.float32)


def kept(source: LiveTurns) -> int:
    """What a stream holds, in entries of its lists and queues."""
    return sum(len(value) for value in vars(source).values() if hasattr(value, "__len__"))


@pytest.mark.usefixtures("spoken")
def test_memory_of_a_stream_without_end_is_flat() -> None:
    """Two hours of three people, of whom the third leaves early."""
    source, sizes = LiveTurns(embedder=Numbered(3), keep=False), []
    for i in range(4000):
        source.push(piece(i % 3 if i < 500 else i % 2))
        if i % 500 == 499:
            sizes.append(kept(source))
    assert max(sizes[1:]) <= sizes[0] + 2 * WINDOWS
    assert len(source.turns) <= 2 * WINDOWS
    assert source.finish() == tuple(source.turns)
    names = [turn.speaker for turn in source.turns]
    assert names[0::2] == names[:1] * len(names[0::2])
    assert names[1::2] == names[1:2] * len(names[1::2])
    assert {"0", "1"} == set(names)


@pytest.mark.usefixtures("spoken")
def test_a_stream_with_a_transcript_keeps_a_little_for_each_window() -> None:
    source = LiveTurns(embedder=Numbered(2))
    for i in range(300):
        source.push(piece(i % 2))
    assert {turn.speaker for turn in source.finish()} == {"0", "1"}
    assert len(source.turns) == 300
    assert sum(vector.nbytes for vector in vars(source)["_vectors"]) == 300 * 64 * 2


@pytest.mark.usefixtures("spoken")
def test_twenty_people_are_at_most_eight_at_a_time() -> None:
    source = LiveTurns(embedder=Numbered(20))
    for i in range(200):
        source.push(piece(i % 20))
        assert len(vars(source)["_speakers"]) <= MOST_LIVE_SPEAKERS
    assert 2 <= len({turn.speaker for turn in source.turns}) <= MOST_SPEAKERS
    assert 15 <= len({turn.speaker for turn in source.finish()}) <= MOST_SPEAKERS


def recording(people: int, windows: int) -> tuple[list[Stretch], Vectors]:
    """Stretches of 4 windows of 0.4 s, each of the next person."""
    rng = np.random.default_rng(2)
    stretches = [
        Stretch(2.0 * i, 2.0 * i + 1.6, tuple(2.0 * i + 0.2 + 0.4 * j for j in range(4)))
        for i in range(windows // 4)
    ]
    speakers = np.repeat(np.arange(windows // 4) % people, 4)
    noise = 0.02 * rng.standard_normal((windows, 64)).astype(np.float32)
    return stretches, unit(voices(people)[speakers] + noise)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings of hours are clustered in blocks; here minutes are."""
    monkeypatch.setattr(clustering, "BLOCK_WINDOWS", 200)
    monkeypatch.setattr(clustering, "BLOCK_CLUSTERS", 50)


@pytest.mark.usefixtures("small_blocks")
def test_hours_with_twenty_people() -> None:
    stretches, vectors = recording(20, 2400)
    turns = turns_by_voice(stretches, vectors, Diarization(), {})
    assert len({turn.speaker for turn in turns}) == 20
    assert len(turns) == len(stretches)
    assert [turn.speaker for turn in turns[:20]] == [turn.speaker for turn in turns[-20:]]


@pytest.mark.usefixtures("small_blocks")
def test_unlike_vectors_of_hours_are_clustered_all_the_same() -> None:
    """No two windows are alike, so no block of them becomes small by itself."""
    rng = np.random.default_rng(3)
    vectors = unit(rng.standard_normal((1500, 64)).astype(np.float32))
    assert 1 <= len(find_speakers(vectors, np.full(1500, 0.4), most=20)) <= 20


@pytest.mark.parametrize("asked", [2, 5, 20, (3, 20)])
def test_more_people_than_there_are(asked: int | tuple[int, int]) -> None:
    stretches, vectors = recording(1, 40)
    turns = turns_by_voice(stretches, vectors, Diarization(speakers=asked), {})
    most = asked if isinstance(asked, int) else asked[1]
    assert 1 <= len({turn.speaker for turn in turns}) <= most
    assert (turns[0].start, turns[-1].end) == (0.0, stretches[-1].end)


@pytest.mark.parametrize("options", [Diarization(), Diarization(speakers=3)])
def test_two_seconds_and_nothing(options: Diarization) -> None:
    assert turns_by_voice([], np.zeros((0, 64), np.float32), options, {}) == ()
    stretches, vectors = recording(1, 4)
    turns = turns_by_voice(stretches, vectors, options, {})
    assert {turn.speaker for turn in turns} <= {"0", "1", "2"}
    assert turns[0].speaker == "0"


def test_an_hour_of_silence_has_no_turns() -> None:
    source = VoiceTurns(Diarization(speakers=2))
    for _ in range(60):
        source.push(np.zeros(20 * RATE, np.float32))  # 20 minutes: an hour takes as much memory
    assert source.finish() == ()
