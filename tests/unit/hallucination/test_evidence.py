from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spoken import as_int16, pink, speech
from tiny import cut

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.vad import PRESETS, SpeechSpan, Track, VoiceDetector, plan_segments
from pianissimo.errors import AudioValueError
from pianissimo.hallucination.evidence import REASONS, Evidence, Intake
from pianissimo.hallucination.verdict import (
    Verdict,
    is_stock_phrase,
    is_too_fast,
    judge,
    max_new_tokens,
)
from pianissimo.text.loops import find_loop, is_monotonous, is_stuck, trim_loop

RATE = 16_000
CLEAR = Evidence(5.0, 0.3, 4.0, probability=0.99, sure_seconds=3.0, lively_seconds=3.0)
WEAK = Evidence(5.0, 0.3, speech_seconds=0.2, probability=0.4, lively_seconds=0.5)
NOTHING = Evidence(5.0, 0.01, speech_seconds=0.0, probability=0.02, lively_seconds=0.0)


def heard(samples, mode="on", sizes=None):
    """The evidence of a recording that goes through the gain."""
    intake = Intake(FrontEnd(mode), VoiceDetector(PRESETS["normal"]))
    for part in cut(len(samples), sizes or [1600]):
        intake.push(samples[part])
    intake.push(None)
    return intake.evidence


# -- before --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0), "too_short"),
        (np.full(1, 0.5), "too_short"),
        (speech(0.09), "too_short"),
        (np.zeros(3 * RATE), "muted"),
        (np.full(3 * RATE, 4e-7), "muted"),
        (np.zeros(RATE // 2), "silence"),
        (np.where(np.arange(RATE) % 3, 1, -2) / 32768, "silence"),
        (speech(2, -60), None),
        (pink(2, -60), None),
    ],
)
def test_audio_that_can_hold_no_speech_is_refused(samples, reason):
    evidence = heard(np.asarray(samples, np.float32))
    assert evidence.refusal == reason
    verdict = judge("something", evidence)
    assert verdict.keep == (reason is None and not evidence.absent)
    assert reason is None or verdict.reasons == (reason,)


def test_silence_is_judged_before_the_gain():
    faint = speech(2, -100)
    intake = Intake(FrontEnd("on"), VoiceDetector())
    loud = np.concatenate([intake.push(faint), intake.push(None)])
    assert np.abs(loud).max() > 10 * np.abs(faint).max()
    assert intake.evidence.refusal == "silence"


@pytest.mark.parametrize("level_db", [-53, -45, -30])
def test_quiet_speech_is_clear_evidence(level_db):
    evidence = heard(as_int16(speech(5, level_db)))
    assert not evidence.absent
    assert judge("so it may stand", evidence) == Verdict(True)


@pytest.mark.parametrize("level_db", [-85, -70, -55, -40])
def test_steady_noise_is_no_evidence(level_db):
    evidence = heard(as_int16(pink(10, level_db)))
    assert evidence.absent or evidence.refusal
    assert not judge("thank you", evidence).keep


def test_evidence_does_not_depend_on_blocks():
    samples = speech(5, -50) + pink(5, -80)
    assert heard(samples, sizes=[1, 77, 5000]) == heard(samples, sizes=[len(samples)])


def test_bad_samples_are_refused():
    intake = Intake(FrontEnd("on"), VoiceDetector())
    with pytest.raises(AudioValueError):
        intake.push(np.array([np.nan]))


# -- after ---------------------------------------------------------------------------------------


def test_text_with_evidence_stands_without_remark():
    verdict = judge("we met on monday", CLEAR, mean_log_probability=-0.2)
    assert verdict.keep
    assert verdict.reasons == ()


def test_text_from_nothing_is_dropped():
    assert not judge("thanks for watching", NOTHING).keep
    assert judge("thanks for watching", NOTHING).reasons == ("low_evidence",)


def test_what_the_model_never_heard_is_dropped_unless_it_is_short():
    typing = Evidence(5.0, 0.3, speech_seconds=3.0, probability=0.1, lively_seconds=2.0)
    assert not judge("six", typing, mean_log_probability=-0.2).keep
    word = Evidence(0.6, 0.3, speech_seconds=0.4, probability=0.1, lively_seconds=0.4)
    assert judge("six", word, mean_log_probability=-0.2).keep
    without_model = Evidence(5.0, 0.3, speech_seconds=3.0, lively_seconds=2.0)
    assert judge("six", without_model, mean_log_probability=-0.2).keep


def test_a_letter_out_of_seconds_of_music_is_dropped():
    music = Evidence(10.0, 0.1, speech_seconds=7.0, probability=0.4, lively_seconds=1.0)
    assert not judge("r o", music, mean_log_probability=-0.2).keep
    assert judge("a whispered sentence", music, mean_log_probability=-0.2).keep
    clock = Evidence(5.0, 0.1, speech_seconds=4.8, probability=0.68, sure_seconds=0.1)
    assert not judge("men", clock, mean_log_probability=-0.2).keep
    assert judge("men", clock, mean_log_probability=-0.2).reasons == ("low_evidence",)


def test_doubtful_text_is_marked_and_only_unsure_text_dropped():
    assert judge("call the office", WEAK, mean_log_probability=-0.3).keep
    assert judge("call the office", WEAK, mean_log_probability=-0.3).reasons == ("low_evidence",)
    assert not judge("call the office", WEAK, mean_log_probability=-1.4).keep
    assert judge("call the office", CLEAR, mean_log_probability=-1.4).keep


def track_of(*stretches):
    """A track from pairs of seconds and probability."""
    return Track(0, [p for seconds, p in stretches for _ in range(round(seconds / 0.032))])


def test_what_is_written_beside_speech_was_not_heard():
    evidence = replace(CLEAR, track=track_of((2.0, 0.1), (1.0, 0.9), (2.0, 0.1)))
    assert not evidence.supports(1.0, 1.5)
    assert evidence.supports(1.5, 2.0)  # a token may be written a little early
    assert evidence.supports(3.3, 3.4)  # or late
    assert not evidence.supports(3.6, 3.7)
    assert replace(evidence, seconds=0.9).supports(1.0, 1.5)
    assert CLEAR.supports(1.0, 1.5)


def test_text_written_mostly_beside_speech_is_dropped_unless_there_was_much_speech():
    brief = replace(CLEAR, sure_seconds=1.5)
    assert not judge("four oh one", brief, supported_share=0.5).keep
    assert judge("four oh one", brief, supported_share=0.7, mean_log_probability=-0.3).keep
    assert not judge("four oh one", brief, supported_share=0.7, mean_log_probability=-0.6).keep
    assert judge("four oh one", brief, supported_share=0.7).reasons == ("low_evidence",)
    assert judge("four oh one", brief, supported_share=0.9, mean_log_probability=-0.6).keep
    assert judge("four oh one", CLEAR, supported_share=0.2, mean_log_probability=-2.0).keep


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Thank you.", "en-US"),
        ("谢谢观看", "zh"),
        ("字幕由 Amara.org 社区提供", None),
        ("嗯。", "en"),
    ],
)
def test_stock_phrases_count_only_with_evidence(text, language):
    assert is_stock_phrase(text, language)
    assert judge(text, CLEAR, language=language).keep
    assert not judge(text, WEAK, language=language).keep


def test_a_stock_phrase_inside_a_sentence_is_none():
    assert not is_stock_phrase("thank you for the tea", "en")


def test_short_clips_are_marked_and_kept():
    clip = Evidence(0.4, 0.3, speech_seconds=0.1, lively_seconds=0.2)
    verdict = judge("yes", clip, mean_log_probability=-2.0)
    assert verdict.keep
    assert verdict.reasons == ("low_evidence",)


def test_every_reason_is_known():
    for text in ("", "a b c", "la " * 60):
        for evidence in (CLEAR, WEAK, NOTHING, Evidence(0.0, 0.0)):
            assert set(judge(text, evidence, tokens=text.split()).reasons) <= set(REASONS)


@given(
    st.lists(st.integers(0, 50), max_size=20, unique=True),
    st.lists(st.integers(100, 150), min_size=1, max_size=8, unique=True),
    st.integers(5, 9),
    st.lists(st.integers(200, 250), max_size=20, unique=True),
)
def test_loops_of_up_to_eight_tokens_are_found_and_trimmed(before, unit, repeats, after):
    tokens = [*before, *unit * repeats, *after]
    loop = find_loop(tokens)
    assert loop is not None
    assert (loop.start, loop.unit, loop.repeats) == (len(before), len(unit), repeats)
    assert trim_loop(tokens) == [*before, *unit * 2, *after]
    assert is_stuck([*before, *unit * repeats])


@given(st.lists(st.integers(0, 3), max_size=60))
def test_what_is_trimmed_has_no_loop(tokens):
    assert find_loop(trim_loop(tokens)) is None


@given(st.lists(st.integers(0, 1000), unique=True, max_size=60), st.integers(1, 4))
def test_up_to_four_rounds_are_speech(tokens, rounds):
    assert find_loop(tokens * rounds) is None
    assert trim_loop(tokens * rounds) == tokens * rounds


def test_few_kinds_of_tokens_for_long_are_stuck():
    rng = np.random.default_rng(0)
    assert is_stuck(rng.integers(0, 4, 60).tolist())
    assert not is_stuck(list(range(60)))
    assert not is_stuck([1, 2, 1, 2])


def test_repetition_is_marked():
    tokens = "no no no no no no".split()
    assert "repetition" in judge("no no no no no no", CLEAR, tokens=tokens).reasons
    assert is_monotonous("the cat sat on the mat " * 20)
    assert is_monotonous("谢谢" * 8)
    assert not is_monotonous("the cat sat on the mat")
    assert not is_monotonous(
        "she had your dark suit in greasy wash water all year and then she told everybody about it"
    )


def test_nobody_speaks_that_fast():
    assert is_too_fast("supercalifragilistic " * 5, 1.0)
    assert not is_too_fast("one two three four", 1.5)
    assert is_too_fast("我还能再搞一个就算是非常小的声音也能识别准确", 1.0)
    assert "low_evidence" in judge("word " * 60, Evidence(1.0, 0.3, 0.9, 0.9, 0.8)).reasons


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 16), (1.0, 26), (28.0, 296), (90.0, 500)])
def test_the_number_of_tokens_is_bounded_by_the_audio(seconds, tokens):
    assert max_new_tokens(seconds) == tokens


# -- cutting -------------------------------------------------------------------------------------


def span(start, end):
    return SpeechSpan(start, end, 0.9, 30.0)


def test_spans_are_put_together_up_to_the_limit():
    samples = pink(100, -50)
    planned = plan_segments(samples, [span(1, 5), span(6, 10), span(20, 45), span(46, 50)])
    assert planned == [(RATE, 10 * RATE), (20 * RATE, 45 * RATE), (46 * RATE, 50 * RATE)]


def test_speech_without_pause_is_cut_where_it_is_quietest():
    samples = pink(60, -30)
    for start in (25.5, 50.0):
        samples[round(start * RATE) : round((start + 0.2) * RATE)] *= 0.01
    planned = plan_segments(samples, [span(0, 60)])
    assert planned[0][0] == 0
    assert planned[-1][1] == 60 * RATE
    assert all(a[1] == b[0] for a, b in pairwise(planned))
    assert all(end - start <= 28 * RATE for start, end in planned)
    assert planned[0][1] / RATE == pytest.approx(25.6, abs=0.1)
    assert planned[1][1] / RATE == pytest.approx(50.1, abs=0.1)


def test_a_recording_without_spans_is_kept_whole():
    assert plan_segments(pink(10, -50), []) == [(0, 10 * RATE)]
    assert plan_segments(np.zeros(0, np.float32), []) == []
    assert len(plan_segments(pink(70, -50), [])) == 3
