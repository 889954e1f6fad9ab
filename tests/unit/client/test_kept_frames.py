"""Which frames a client keeps, and what it sends after a broken connection."""

import pytest

from pianissimo.client.frames import MOST_UNACKNOWLEDGED, KeptFrames

SECOND = 100
"""Bytes of a second of audio in these tests."""


def frames_of(seconds: int, keep_seconds: float = 600.0) -> KeptFrames:
    """One frame per second, all of them sent; each has its number as its bytes."""
    frames = KeptFrames(SECOND, keep_seconds)
    for number in range(seconds):
        frames.add_audio(bytes([number]) * SECOND)
        assert frames.next_unsent() is not None
    return frames


def test_frames_are_kept_until_they_are_received_answered_and_stored() -> None:
    frames = frames_of(8)
    frames.acknowledge({"frames": 6})
    assert frames.dropped == 0
    frames.cover({"frames": 5})
    assert frames.dropped == 5
    frames = frames_of(8)
    frames.acknowledge({"frames": 8, "saved": 3})
    frames.cover({"frames": 8})
    assert (frames.dropped, frames.kept_from) == (3, 3.0)


def test_a_resumed_stream_continues_behind_the_last_frame_of_the_server() -> None:
    frames = frames_of(5)
    frames.acknowledge({"frames": 4})
    frames.resume({"frames": 2})
    again = [frames.next_unsent(), frames.next_unsent(), frames.next_unsent()]
    assert [frame.data[0] for frame in again if frame is not None] == [2, 3, 4]
    assert frames.next_unsent() is None


def test_another_stream_begins_where_no_final_covers_the_audio() -> None:
    frames = frames_of(5)
    frames.acknowledge({"frames": 5})
    frames.cover({"frames": 2})
    assert frames.start_again()
    assert (frames.start, frames.count, frames.end) == (2.0, 3, 5.0)
    first = frames.next_unsent()
    assert first is not None and first.data[0] == 2


def test_old_audio_is_forgotten_and_the_loss_is_noticed() -> None:
    frames = frames_of(9, keep_seconds=4.0)
    frames.acknowledge({"frames": 2})
    assert frames.dropped == 2, "only what the server has received may go"
    frames.acknowledge({"frames": 9})
    assert (frames.dropped, frames.kept_from) == (5, 5.0)
    assert not frames.start_again()


def test_short_blocks_are_joined_only_before_they_are_sent() -> None:
    frames = KeptFrames(SECOND, 600.0)
    for _ in range(10):
        frames.add_audio(b"12345")
    assert frames.count == 5 and frames.end == pytest.approx(0.5)
    frames.add_command("finalize")
    frames.add_audio(b"12345")
    assert frames.count == 7, "audio is not joined across a command"
    while frames.next_unsent() is not None:
        pass
    frames.add_audio(b"12345")
    assert frames.count == 8


def test_unacknowledged_frames_are_limited() -> None:
    frames = KeptFrames(SECOND, 600.0)
    for _ in range(MOST_UNACKNOWLEDGED):
        assert not frames.full
        frames.add_command("finalize")
    assert frames.full
    frames.acknowledge({"frames": 1})
    assert not frames.full
