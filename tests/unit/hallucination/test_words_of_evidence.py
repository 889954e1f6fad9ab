"""The gain and the guards inside the recognizer of our own models."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from spoken import as_int16, pink, scaled, speech
from tiny import WHOLE_CONTEXT, cut, make_model

from pianissimo.audio.filters import OffsetState, remove_offset
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.level import measure_levels
from pianissimo.audio.vad import Track, VoiceDetector
from pianissimo.decoding.token import Hypothesis
from pianissimo.errors import AudioValueError, OptionError
from pianissimo.hallucination.evidence import Intake, evidence_from
from pianissimo.hallucination.verdict import Verdict, supported_words, weigh
from pianissimo.models.asr import AsrModel
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text import WORD_START
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.zoo.load import load

RATE = 16_000
Samples = NDArray[np.float32]


def blocks(samples: Samples, sizes: list[int]) -> Iterator[Samples]:
    return (samples[part] for part in cut(len(samples), sizes))


def leveled(intake: Intake, samples: Samples, sizes: list[int] | None = None) -> Samples:
    """What the model gets of a recording pushed in such blocks."""
    parts = blocks(samples, sizes or [len(samples)])
    return np.concatenate([intake.push(block) for block in [*parts, None]])


@pytest.mark.parametrize("sizes", [[1, 400], [7_777], [320_000]])
def test_blocks_change_neither_samples_nor_evidence(sizes: list[int]) -> None:
    samples = as_int16(speech(40, -50) + pink(40, -80))
    whole = Intake(FrontEnd("on"), VoiceDetector())
    expected = leveled(whole, samples)
    parts = Intake(FrontEnd("on"), VoiceDetector())
    out = leveled(parts, samples, sizes)
    np.testing.assert_array_equal(out, expected)
    assert parts.evidence == whole.evidence
    assert parts.seconds == 40.0
    assert measure_levels(out).speech_db == pytest.approx(-26, abs=1)


def test_without_front_end_and_detector_samples_pass_unchanged() -> None:
    intake, samples = Intake(None, None), speech(1)
    np.testing.assert_array_equal(leveled(intake, samples), samples)
    assert intake.evidence is None


def test_without_gain_and_detector_only_the_offset_is_removed() -> None:
    intake, samples = Intake(FrontEnd("off"), None), speech(1)
    expected = remove_offset(samples, OffsetState())
    np.testing.assert_array_equal(leveled(intake, samples), expected)
    assert intake.evidence is None


def test_evidence_is_of_raw_samples() -> None:
    intake = Intake(FrontEnd("on"), VoiceDetector())
    leveled(intake, speech(3, -60))
    assert intake.evidence is not None
    assert intake.evidence.peak < 0.02


@pytest.fixture(scope="module", params=["streaming", "whole"])
def recognizer(
    request: pytest.FixtureRequest, talker: AsrModel, tiny_tokenizer: Tokenizer
) -> NativeRecognizer:
    """Says something to any sound."""
    model = talker
    if request.param == "whole":
        model = make_model(vocab_size=tiny_tokenizer.vocab_size, encoder=WHOLE_CONTEXT)
    return NativeRecognizer(
        model, tiny_tokenizer, front_end=FrontEnd("on"), detector=VoiceDetector()
    )


def test_any_level_gives_the_same_text(recognizer: NativeRecognizer) -> None:
    texts = {
        recognizer.transcribe(scaled(speech(4, -26), db), sample_rate=RATE).text
        for db in (0.0, -12.0, -24.0)
    }
    assert len(texts) == 1
    bare = NativeRecognizer(recognizer.model, recognizer.tokenizer)
    loud, soft = (
        bare.transcribe(scaled(speech(4, -26), db), sample_rate=RATE).words for db in (0.0, -24.0)
    )
    assert loud != soft


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(500, np.float32), "too_short"),
        (np.zeros(3 * RATE, np.float32), "muted"),
        (np.zeros(RATE // 2, np.float32), "silence"),
        (pink(5, -60), "low_evidence"),
    ],
)
def test_nothing_becomes_no_text(
    recognizer: NativeRecognizer, samples: Samples, reason: str
) -> None:
    transcript = recognizer.transcribe(samples, sample_rate=RATE)
    assert transcript.text == ""
    assert transcript.words == transcript.segments == ()
    assert reason in transcript.reasons
    assert reason == "low_evidence" or transcript.reasons == (reason,)
    assert transcript.duration == len(samples) / RATE


def test_the_detector_hears_the_right_level_even_without_gain() -> None:
    samples = as_int16(speech(6, -52) + pink(6, -85))
    evidence = {}
    for name, front_end in (("on", FrontEnd("on")), ("off", FrontEnd("off")), ("none", None)):
        intake = Intake(front_end, VoiceDetector())
        out = leveled(intake, samples, [7_000])
        expected = {"off": remove_offset(samples, OffsetState()), "none": samples}
        assert name == "on" or np.array_equal(out, expected[name])
        evidence[name] = intake.evidence
    assert evidence["on"] == evidence["off"] == evidence["none"]


def hypothesis_of(tokenizer: Tokenizer, words: list[tuple[float, float]]) -> Hypothesis:
    """Words at seconds, with a probability each; of one piece."""
    start = next(i for i, p in enumerate(tokenizer.pieces) if p.startswith(WORD_START) and p[1:])
    found = Hypothesis()
    for seconds, probability in words:
        frame = round(seconds / 0.08)
        found.extend(Hypothesis([start], [frame], [math.log(probability)], [probability]))
    return found


def test_words_beside_all_speech_leave_unless_they_are_sure(tiny_tokenizer: Tokenizer) -> None:
    intake = Intake(FrontEnd("on"), VoiceDetector())
    silence = pink(3, -70)
    leveled(intake, np.concatenate([silence, speech(4, -30) + pink(4, -70, 1), silence]))
    assert intake.evidence is not None
    found = hypothesis_of(
        tiny_tokenizer, [(1.0, 0.5), (2.0, 0.95), (3.6, 0.4), (5.0, 0.9), (9.5, 0.6)]
    )
    kept = supported_words(found, tiny_tokenizer, 0.08, intake.evidence)
    assert kept.frames == [25, 45, 62]
    assert kept.log_probs == [found.log_probs[i] for i in (1, 2, 3)]
    verdict = weigh(found, tiny_tokenizer, 0.08, intake.evidence, "en")
    assert verdict.keep  # there was much speech
    assert "low_evidence" in verdict.reasons
    nothing = supported_words(Hypothesis(), tiny_tokenizer, 0.08, intake.evidence)
    assert nothing == Hypothesis()


def test_a_word_timed_at_its_beginning_is_supported_by_the_sound_after_it(
    tiny_tokenizer: Tokenizer,
) -> None:
    """As Whisper's tokens are: the first one may lie in the quiet before speech."""
    track = Track(values=[0.0] * 10 + [0.9] * 30 + [0.0] * 60)  # speech from 0.32 to 1.28 s
    evidence = evidence_from(track, 3.2, 0.3, model=True)
    found = hypothesis_of(tiny_tokenizer, [(0.0, 0.6), (0.96, 0.6), (2.4, 0.6)])
    assert supported_words(found, tiny_tokenizer, 0.08, evidence, 5).frames == [0, 12]
    assert supported_words(found, tiny_tokenizer, 0.08, evidence).frames == [12]
    whole = found.take([0, 1])
    assert weigh(whole, tiny_tokenizer, 0.08, evidence, "en", 5) == Verdict(True)
    assert weigh(found.take([0]), tiny_tokenizer, 0.08, evidence, "en", 5) == Verdict(True)
    assert weigh(whole, tiny_tokenizer, 0.08, evidence, "en").reasons == ("low_evidence",)
    # A token lasts no longer than to the next one.
    crowded = hypothesis_of(tiny_tokenizer, [(0.0, 0.6), (0.08, 0.6)])
    assert supported_words(crowded, tiny_tokenizer, 0.08, evidence, 5).frames == [1]


@pytest.mark.parametrize(
    ("samples", "refused"),
    [
        ([np.nan, 0.1], True),
        (np.append(speech(1, -30), np.inf), True),
        (speech(1, -30) * 32768, True),
        ([], False),
        ([0.3], False),
        (np.zeros(16_000), False),
        (speech(1, -45) + 0.2, False),
        (np.clip(speech(1, -10) * 8, -4, 4), False),
        (np.where(np.arange(16_000) % 80 < 40, 4.0, -4.0), False),
    ],
    ids=["nan", "inf", "int16 as floats", "none", "one", "zeros", "offset", "+12 dBFS", "square"],
)
def test_bad_input_has_a_typed_error_or_a_defined_result(
    recognizer: NativeRecognizer, samples: Any, refused: bool
) -> None:
    samples = np.asarray(samples, np.float32)
    if refused:
        with pytest.raises(AudioValueError):
            recognizer.transcribe(samples, sample_rate=RATE)
        return
    transcript = recognizer.transcribe(samples, sample_rate=RATE)
    assert transcript.duration == len(samples) / RATE
    assert all(0 <= word.start <= word.end <= transcript.duration for word in transcript.words)
    if len(samples) < RATE / 10 or not samples.any():
        assert transcript.text == ""
        assert transcript.reasons


def test_batched_equals_alone(recognizer: NativeRecognizer, tmp_path) -> None:
    paths = []
    for i, samples in enumerate((speech(3, -50), speech(4, -20), pink(3, -60), speech(2, -40))):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], samples, RATE, subtype="FLOAT")
    together = list(recognizer.transcribe_many(paths))
    alone = [recognizer.transcribe(path) for path in paths]
    assert [t.text for t in together] == [t.text for t in alone]
    assert [t.reasons for t in together] == [t.reasons for t in alone]
    assert "low_evidence" in together[2].reasons
    assert [t.duration for t in together] == [3.0, 4.0, 3.0, 2.0]


def test_load_chooses_the_gain(tiny_model_folder: Path) -> None:
    for gain, mode in ((None, "auto"), ("on", "on"), ("off", "off")):
        loaded = load(tiny_model_folder, device="cpu", gain=gain)
        assert isinstance(loaded, NativeRecognizer)
        assert loaded.front_end is not None
        assert loaded.front_end.mode == mode
        assert loaded.detector is not None
    with pytest.raises(OptionError, match="choose auto, on, off"):
        load(tiny_model_folder, device="cpu", gain="loud")
