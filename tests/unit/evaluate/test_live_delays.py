"""Delays of live words, by a stream whose events and computing times are known."""

from types import TracebackType

import numpy as np
import numpy.typing as npt
import pytest

from pianissimo.evaluate.live import BLOCK, Delays, percentiles, push_paced
from pianissimo.text.words import Word
from pianissimo.transcript import StreamEvent

BLOCKS = 10


class ScriptedStream:
    """Gives scripted events with the n-th push, each of which takes `seconds` of a false clock."""

    def __init__(self, script: dict[int, list[StreamEvent]], seconds: float = 0.0) -> None:
        self.script, self.seconds = script, seconds
        self.pushes, self.now = 0, 0.0

    def push(self, samples: npt.ArrayLike, sample_rate: int | None = None) -> list[StreamEvent]:
        self.pushes += 1
        self.now += self.seconds
        return self.script.get(self.pushes, [])

    def finalize(self) -> list[StreamEvent]:
        return []

    def finish(self) -> list[StreamEvent]:
        return self.script.get(0, [])

    def __enter__(self) -> "ScriptedStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def timer(self) -> float:
        return self.now


def partial(text: str) -> StreamEvent:
    return StreamEvent("partial", text, (), 0.0, 0.0)


def final(*words: tuple[str, float, float]) -> StreamEvent:
    found = tuple(Word(text, start, end, 1.0) for text, start, end in words)
    text = " ".join(word.text for word in found)
    return StreamEvent("final", text, found, 0.0, 0.0, reason="finish")


def run(stream: ScriptedStream) -> tuple[str, Delays]:
    delays = Delays()
    text = push_paced(stream, np.zeros(BLOCKS * BLOCK, np.float32), delays, stream.timer)
    return text, delays


def test_a_word_counts_from_its_end_to_the_first_text_that_has_it() -> None:
    stream = ScriptedStream(
        {
            3: [partial("The")],
            5: [partial("The quick bro")],
            6: [partial("The quick brown")],
            0: [
                final(
                    ("The", 0.1, 0.2), ("quick", 0.2, 0.4), ("brown", 0.4, 0.6), ("fox.", 0.7, 0.9)
                )
            ],
        }
    )
    text, delays = run(stream)
    assert text == "The quick brown fox."
    assert delays.first_words == pytest.approx([0.3 - 0.1])
    assert delays.words == pytest.approx([0.3 - 0.2, 0.5 - 0.4, 0.6 - 0.6, 1.0 - 0.9])
    assert delays.finals == pytest.approx([1.0 - 0.9])
    assert (delays.shown, delays.changed) == (3, 0)


def test_a_word_that_the_final_changes_counts_from_the_final() -> None:
    stream = ScriptedStream(
        {
            4: [partial("a quack")],
            0: [final(("A", 0.0, 0.1), ("quick,", 0.1, 0.4))],
        }
    )
    _, delays = run(stream)
    assert delays.words == pytest.approx([0.4 - 0.1, 1.0 - 0.4])
    assert (delays.shown, delays.changed) == (2, 1)


def test_utterances_are_compared_one_by_one() -> None:
    stream = ScriptedStream(
        {
            2: [partial("one")],
            4: [final(("one", 0.0, 0.2)), StreamEvent("endpoint", "", (), 0.4, 0.4)],
            7: [partial("two")],
            0: [final(("two", 0.5, 0.7))],
        }
    )
    text, delays = run(stream)
    assert text == "one two"
    assert delays.words == pytest.approx([0.2 - 0.2, 0.7 - 0.7])
    assert delays.finals == pytest.approx([0.4 - 0.2, 1.0 - 0.7])


def test_a_slow_machine_falls_behind() -> None:
    stream = ScriptedStream({0: [final(("late", 0.0, 1.0))]}, seconds=0.3)
    _, delays = run(stream)
    # The first block is there at 0.1 s; ten times 0.3 s of computation follow without a pause.
    assert delays.finals == pytest.approx([0.1 + BLOCKS * 0.3 - 1.0])


def test_a_recording_without_text_has_no_delays() -> None:
    text, delays = run(ScriptedStream({0: [final()]}))
    assert (text, delays) == ("", Delays())
    assert percentiles(delays.words) is None
    assert percentiles([1.0, 3.0]) == pytest.approx((2.0, 2.9))
