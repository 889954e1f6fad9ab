"""Cutting, batching, judging and joining, around decoders of a line or two."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from spoken import pink, speech
from tiny import cut

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.vad import VoiceDetector
from pianissimo.errors import AudioDecodeError
from pianissimo.recognizers import long_form as pieces
from pianissimo.recognizers.autoregressive import write_greedily
from pianissimo.recognizers.long_form import (
    Decoded,
    PieceDecoder,
    joined,
    without_loops,
)
from pianissimo.transcript import Transcript, Word

RATE = 16_000
Samples = NDArray[np.float32]


def lengths(some: Sequence[Samples]) -> list[Decoded]:
    """A decoder that writes how long each piece is, with one word in its middle."""
    found = []
    for samples in some:
        seconds = len(samples) / RATE
        word = Word(f"{len(samples)}", seconds / 3, seconds / 2, 0.5)
        found.append(Decoded(word.text, (len(samples),), -0.1, False, (word,)))
    return found


def hear(recordings: list[list[Samples]], most: int = 3, decode=lengths) -> list[Transcript]:
    decoder = PieceDecoder(FrontEnd("off"), decode, most=most, detector=VoiceDetector())
    return list(decoder.run(recordings, "x", True))


@pytest.mark.parametrize("most", [1, 2, 5, 99])
def test_recordings_come_out_in_order_whatever_the_batch(most: int) -> None:
    batches: list[int] = []

    def decode(some: Sequence[Samples]) -> list[Decoded]:
        batches.append(len(some))
        return lengths(some)

    clips = [speech(s) for s in (3.0, 70.0, 0.05, 1.0, 35.0)]
    found = hear([[clip] for clip in clips], most, decode)
    assert max(batches) <= most
    assert [t.duration for t in found] == [3.0, 70.0, 0.05, 1.0, 35.0]
    assert [len(t.words) > 0 for t in found] == [True, True, False, True, True]
    assert found == [hear([[clip]], 1)[0] for clip in clips]


def test_pieces_are_short_cover_the_speech_and_do_not_overlap() -> None:
    asked: list[Samples] = []

    def decode(some: Sequence[Samples]) -> list[Decoded]:
        asked.extend(some)
        return lengths(some)

    samples = speech(200.0)
    [found] = hear([[samples]], 4, decode)
    assert max(map(len, asked)) <= 28 * RATE
    assert sum(map(len, asked)) > 0.7 * len(samples)
    assert sum(map(len, asked)) <= len(samples)
    for before, after in pairwise(found.words):
        assert before.end <= after.start


def test_long_recordings_are_taken_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "STRETCH_SECONDS", 10.0)
    monkeypatch.setattr(pieces, "STRETCH_CUT_SECONDS", 4.0)
    samples = speech(61.0)
    for seed in range(3):
        parts = [samples[part] for part in cut(len(samples), [1, 999, 50_000, 300_000], seed)]
        starts = []
        rebuilt = []
        for start, stretch, whole in pieces._stretches(parts):
            starts.append(start)
            rebuilt.append(stretch)
            assert not whole
            assert len(stretch) <= 20 * RATE
        assert np.array_equal(np.concatenate(rebuilt), samples)
        assert starts == list(np.cumsum([0, *map(len, rebuilt)])[:-1])
        assert len(starts) > 4
    [(start, stretch, whole)] = pieces._stretches([samples[: 15 * RATE]])
    assert (start, len(stretch), whole) == (0, 15 * RATE, True)


def test_nothing_is_asked_about_silence_and_long_noise() -> None:
    def refuse(_: Sequence[Samples]) -> list[Decoded]:
        raise AssertionError("the model was asked")

    quiet = np.zeros(50 * RATE, np.float32)
    short = speech(0.05)
    noise = pink(50.0, -50.0)
    found = hear([[quiet], [short], [noise], []], 2, refuse)
    assert [t.text for t in found] == [""] * 4
    assert [t.reasons for t in found] == [
        ("muted",),
        ("too_short",),
        ("low_evidence",),
        ("too_short",),
    ]


def test_a_text_that_repeats_itself_is_tried_in_halves_and_trimmed() -> None:
    asked: list[int] = []

    def decode(some: Sequence[Samples]) -> list[Decoded]:
        asked.extend(map(len, some))
        text = " ".join(["again and"] * 9)
        return [Decoded(text, tuple(text.split())) for _ in some]

    [found] = hear([[speech(10.0)]], 2, decode)
    assert asked[1] + asked[2] == asked[0]
    assert found.text == " ".join(["again and again and"] * 2)
    assert found.reasons[0] == "repetition"


@pytest.mark.parametrize("seconds", [5.0, 10.0, 25.0])
def test_words_that_are_really_repeated_are_kept(seconds: float) -> None:
    def decode(some: Sequence[Samples]) -> list[Decoded]:
        texts = [" ".join(["no no again"] * round(len(samples) / RATE)) for samples in some]
        return [Decoded(text, tuple(text.split())) for text in texts]

    [found] = hear([[speech(seconds)]], 2, decode)
    assert found.text.split()[:3] == ["no", "no", "again"]
    assert len(found.text.split()) == pytest.approx(3 * seconds, rel=0.3)
    assert "repetition" not in found.reasons


@pytest.mark.parametrize("stop", [{"cut_off": True}, {"ended": False}])
def test_a_loop_that_did_not_end_by_itself_is_trimmed(stop: dict[str, bool]) -> None:
    def decode(some: Sequence[Samples]) -> list[Decoded]:
        texts = [" ".join(["no"] * 2 * round(len(samples) / RATE)) for samples in some]
        return [Decoded(text, tuple(text.split()), **stop) for text in texts]

    [found] = hear([[speech(20.0)]], 2, decode)
    assert found.text == "no no no no"
    assert "repetition" in found.reasons


def rounds(seconds: float) -> int:
    """A word is said this often in a clip of that length: twice a second."""
    return round(2 * seconds)


def test_many_rounds_are_kept_where_the_decoder_loses_count_of_them() -> None:
    """It stops at ten rounds as in a loop; the audio has forty, and parts with fewer are right."""

    def decode(some: Sequence[Samples]) -> list[Decoded]:
        found = []
        for count in (rounds(len(samples) / RATE) for samples in some):
            words = ("no",) * min(count, 10)
            found.append(Decoded(" ".join(words), words, ended=count < 10))
        return found

    [found] = hear([[speech(20.0)]], 2, decode)
    assert set(found.text.split()) == {"no"}
    assert len(found.text.split()) == pytest.approx(40, abs=4)
    assert "repetition" not in found.reasons


def test_a_short_clip_may_repeat_itself() -> None:
    def decode(some: Sequence[Samples]) -> list[Decoded]:
        return [Decoded("no no no no no no", ("no",) * 6) for _ in some]

    [found] = hear([[speech(1.8)]], 2, decode)
    assert found.text == "no no no no no no"
    assert "repetition" not in found.reasons


@pytest.mark.parametrize("stop", [{"cut_off": True}, {"ended": False}, {}])
def test_a_loop_on_a_short_clip_is_trimmed(stop: dict[str, bool]) -> None:
    """It does not end by itself, or has more words than fit into the clip."""
    words = ("repeat",) * (30 if not stop else 8)

    def decode(some: Sequence[Samples]) -> list[Decoded]:
        return [Decoded(" ".join(words), words, **stop) for _ in some]

    [found] = hear([[speech(1.8)]], 2, decode)
    assert found.text == "repeat repeat"
    assert "repetition" in found.reasons


def test_a_text_that_was_cut_off_is_marked() -> None:
    [found] = hear(
        [[speech(9.0)]], 2, lambda some: [Decoded("so", ("so",), -0.1, True)] * len(some)
    )
    assert found.text == "so so" and "truncated" in found.reasons


def test_an_unreadable_recording_raises_where_it_is() -> None:
    def broken():
        yield speech(5.0)
        raise AudioDecodeError("no more")

    decoder = PieceDecoder(FrontEnd("off"), lengths, most=1, detector=VoiceDetector())
    rows = decoder.run([[speech(3.0)], broken()], "x", True)
    with pytest.raises(AudioDecodeError, match="no more"):
        list(rows)


def test_texts_are_joined_as_their_scripts_are_written() -> None:
    assert joined(["one", "two", "你好", "吗。", "three"]) == "one two你好吗。three"
    assert joined([]) == ""


def test_loops_of_words_and_of_characters_are_trimmed() -> None:
    assert without_loops(Decoded("so " + "la la " * 5 + "end")).text == "so la la end"
    assert without_loops(Decoded("好的" * 7 + "吧")).text == "好的好的吧"
    timed = tuple(Word("ha", i, i + 1.0) for i in range(6))
    assert without_loops(Decoded("ha " * 6, words=timed)).words == ()
    assert without_loops(Decoded("ho", words=timed[:1])).words == timed[:1]


# -- decoding --------------------------------------------------------------------------------------


def follow(table: torch.Tensor):
    """A decoder whose next token depends on the last one: (V, V) logits."""
    return lambda tokens: table[tokens[:, 0]]


def test_rows_end_at_their_end_token_their_limit_or_a_loop() -> None:
    table = torch.full((6, 6), -9.0)
    for token, following in {0: 1, 1: 2, 2: 5, 3: 4, 4: 3}.items():
        table[token, following] = 0.0
    first = torch.full((4, 6), -9.0)
    first[[0, 1, 2, 3], [0, 0, 3, 5]] = 0.0
    rows = write_greedily(first, follow(table), [9, 2, 99, 9], ends={5})
    assert rows[0].tokens == [0, 1, 2, 5]
    assert rows[1].tokens == [0, 1]
    assert rows[2].tokens == [3, 4] * 25  # five rounds are a loop, but may be spoken up to here
    assert rows[3].tokens == [5]
    expected = float(first.log_softmax(-1)[0, 0])
    assert rows[0].log_probs == pytest.approx([expected] * 4, rel=1e-2)


def test_a_row_of_limit_zero_writes_nothing() -> None:
    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nothing is left to decode")

    assert write_greedily(torch.zeros(1, 3), refuse, [0], ends={2})[0].tokens == []
