from collections.abc import Callable

import numpy as np
import pytest
from spoken import pink, speech

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.level import measure_levels
from pianissimo.audio.vad import VoiceDetector
from pianissimo.errors import AudioValueError
from pianissimo.long_form import Decoded, LongForm
from pianissimo.transcript import Transcript, Word

RATE = 16_000


def run(samples, decode: Callable, mode="on") -> Transcript:
    return LongForm(FrontEnd(mode), VoiceDetector()).transcribe(
        np.asarray(samples, np.float32), decode, model="echo", language="en"
    )


def seconds_of(samples) -> Decoded:
    """Says how many seconds it heard, with a word at its first half second."""
    text = f"{len(samples) / RATE:.1f}"
    return Decoded(text, (text,), -0.1, words=(Word(text, 0.5, 1.0),))


def three_talks():
    """Speech at 2, 40 and 80 s."""
    samples = pink(100, -85)
    for start, length in ((2, 8), (40, 30), (80, 10)):
        samples[start * RATE : (start + length) * RATE] += speech(length, -45)
    return samples


def test_segments_are_short_levelled_and_in_order():
    heard = []

    def decode(samples):
        heard.append(samples)
        return seconds_of(samples)

    transcript = run(three_talks(), decode)
    assert len(heard) >= 4
    assert all(len(samples) <= 28 * RATE for samples in heard)
    for samples in heard:
        assert measure_levels(samples).speech_db == pytest.approx(-26, abs=3)
    starts = [segment.start for segment in transcript.segments]
    assert starts == sorted(starts)
    assert starts[0] == pytest.approx(2, abs=0.5)
    assert starts[-1] == pytest.approx(80, abs=0.5)
    assert [word.start for word in transcript.words] == [start + 0.5 for start in starts]
    assert transcript.text == " ".join(segment.text for segment in transcript.segments)
    assert transcript.reasons == ()
    assert transcript.duration == 100.0


@pytest.mark.parametrize(
    ("samples", "reason"),
    [(np.zeros(0), "too_short"), (np.zeros(3 * RATE), "muted"), (np.zeros(RATE // 2), "silence")],
)
def test_nothing_is_never_decoded(samples, reason):
    def decode(samples):
        raise AssertionError("decoded")

    transcript = run(samples, decode)
    assert transcript.text == ""
    assert transcript.reasons == (reason,)


def test_invented_text_is_dropped():
    transcript = run(pink(10, -60), lambda samples: Decoded("Thank you."))
    assert transcript.text == ""
    assert transcript.reasons == ("low_evidence",)


def test_long_noise_is_not_decoded_at_all():
    calls = []
    transcript = run(pink(60, -60), lambda samples: calls.append(1) or Decoded("you"))
    assert not calls
    assert transcript.reasons == ("low_evidence",)


def test_a_loop_is_tried_again_in_halves():
    lengths = []

    def decode(samples):
        lengths.append(len(samples))
        loops = len(samples) > 8 * RATE
        words = ("and so on ".split() * 6) if loops else ["fine"]
        return Decoded(" ".join(words), tuple(words))

    transcript = run(speech(10), decode)
    assert len(lengths) == 3
    assert lengths[1] + lengths[2] == lengths[0]
    assert transcript.text == "fine fine"
    assert transcript.reasons == ()


def test_a_loop_that_stays_is_trimmed_and_marked():
    words = "and so on ".split() * 6
    transcript = run(speech(10), lambda samples: Decoded(" ".join(words), tuple(words)))
    assert transcript.text == "and so on and so on and so on and so on"
    assert transcript.reasons == ("repetition",)


def test_text_that_ended_by_length_is_tried_again_and_then_marked():
    calls = []

    def decode(samples):
        calls.append(len(samples))
        return Decoded("some words", ("some", "words"), cut_off=True)

    transcript = run(speech(10), decode)
    assert len(calls) == 3
    assert transcript.reasons == ("truncated",)
    assert transcript.text == "some words some words"


def test_bad_samples_are_refused():
    with pytest.raises(AudioValueError):
        run([np.nan], seconds_of)


def test_reasons_survive_json():
    transcript = run(pink(10, -60), lambda samples: Decoded("Thank you."))
    assert Transcript.from_json(transcript.to_json()) == transcript
    old = transcript.to_json().replace('"reasons"', '"other"')
    assert Transcript.from_json(old).reasons == ()
