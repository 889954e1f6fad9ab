"""Each commit of a realtime session is answered exactly once."""

from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pianissimo.serve.dialects.openai_realtime.turns import TRANSCRIPTION, Turns
from pianissimo.transcript import StreamEvent

ACTIONS = st.lists(
    st.sampled_from(["word", "word", "pause", "length", "commit", "clear", "answer"]), max_size=60
)


class Stream:
    """An engine's stream in ten lines: words, and finals that answer marks in order."""

    def __init__(self) -> None:
        self.text, self.count, self.marks = "", 0, 0

    def word(self) -> StreamEvent:
        self.count += 1
        self.text = f"{self.text} w{self.count}".strip()
        return StreamEvent("partial", self.text, (), self.count - 1.0, float(self.count))

    def final(self, reason: Any) -> StreamEvent:
        text, self.text = self.text, ""
        return StreamEvent("final", text, (), 0.0, float(self.count), reason=reason)

    def length(self) -> list[StreamEvent]:
        """All words but the last become final; the next utterance begins with that one."""
        head, _, last = self.text.rpartition(" ")
        self.text = last
        now = float(self.count)
        cut = StreamEvent("final", head, (), 0.0, now, reason="length")
        return [cut, StreamEvent("partial", last, (), now, now)]


@given(ACTIONS)
def test_every_commit_is_answered_once_with_the_text_of_its_deltas(actions: list[str]) -> None:
    turns, stream, told = Turns(), Stream(), list[dict[str, Any]]()
    commits, pauses, discarded, marks = 0, 0, 0, deque[str]()
    for action in [*actions, *["answer"] * len(actions)]:
        match action:
            case "word":
                told += turns.accept(stream.word())
            case "length" if " " in stream.text:
                for event in stream.length():
                    told += turns.accept(event)
            case "pause" if stream.text:
                pauses += not marks
                told += turns.accept(stream.final("endpoint"))
            case "commit":
                commits += 1
                marks.append(action)
                told += turns.commit(float(stream.count))
            case "clear":
                discarded += 1
                marks.append(action)
                told += turns.clear(float(stream.count))
            case "answer" if marks:
                marks.popleft()
                told += turns.accept(stream.final("finalize"))
    assert turns.waiting == 0
    committed = of(told, "input_audio_buffer.committed")
    completed = of(told, f"{TRANSCRIPTION}.completed")
    assert [e["item_id"] for e in completed] == [e["item_id"] for e in committed]
    assert len(committed) == commits + pauses
    assert len(of(told, "input_audio_buffer.cleared")) == discarded
    for event in completed:
        mine = [e for e in of(told, f"{TRANSCRIPTION}.delta") if e["item_id"] == event["item_id"]]
        assert "".join(e["delta"] for e in mine) == event["transcript"]
    previous = [None, *(e["item_id"] for e in committed)]
    assert [e["previous_item_id"] for e in committed] == previous[: len(committed)]
    said = [word for event in completed for word in event["transcript"].split()]
    assert len(said) == len(set(said))
    if not discarded:
        assert said == [f"w{i + 1}" for i in range(len(said))]


def test_a_broken_stream_fails_what_waits() -> None:
    turns = Turns()
    told = [*turns.commit(0.0), *turns.clear(0.0), *turns.commit(0.0), *turns.fail("gone", "x")]
    failed = of(told, f"{TRANSCRIPTION}.failed")
    committed = of(told, "input_audio_buffer.committed")
    assert [e["item_id"] for e in failed] == [e["item_id"] for e in committed]
    assert turns.waiting == 0 and not [*turns.fail("gone", "x")]


def of(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["type"] == kind]


def test_partials_of_written_items_start_them_and_add_nothing() -> None:
    turns = Turns()
    turns.written = True
    started = [*turns.accept(StreamEvent("partial", "twenty", (), 0.1, 0.4))]
    assert [message["type"] for message in started] == ["input_audio_buffer.speech_started"]
    spoken, written = "twenty five dollars", "$25"
    final = StreamEvent("final", written, (), 0.1, 1.0, reason="endpoint", lexical=spoken)
    messages = [*turns.accept(final)]
    assert [message["delta"] for message in of(messages, f"{TRANSCRIPTION}.delta")] == [written]
    [completed] = of(messages, f"{TRANSCRIPTION}.completed")
    assert (completed["transcript"], completed["lexical"]) == (written, spoken)
