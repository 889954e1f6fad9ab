"""Guards against invented text: what must hold before and after a recogniser speaks.

Before: audio that is too short, muted or silent gives no text at all. After: text that nothing in
the audio speaks for is dropped, loops are cut, what looks wrong is marked. A word is held against
what the detector heard where it was written, a text against all of it. Every guard that acted
leaves its reason in `Transcript.reasons`. Whether a recording is muted or silent is judged on raw
samples: once a gain has been applied nothing is silent any more. A recording that a person made on
purpose is always decoded, whatever a detector says, and its text weighed afterwards.
"""

import math
import re
import unicodedata
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import Samples, check_samples, quietest_point
from pianissimo.audio.vad import (
    PRESETS,
    SURE_PROBABILITY,
    WINDOW_SECONDS,
    SpeechSpan,
    Track,
    VadState,
    VoiceDetector,
    seconds_over_floor,
)

Reason = Literal["too_short", "muted", "silence", "repetition", "low_evidence", "truncated"]
REASONS: tuple[Reason, ...] = (
    "too_short",
    "muted",
    "silence",
    "repetition",
    "low_evidence",
    "truncated",
)

MIN_SECONDS = 0.1
"""Shorter recordings hold no word."""
SHORT_SECONDS = 0.5
"""Shorter ones are recognised, and marked."""
JUDGED_SECONDS = 1.0
"""In shorter clips the detector's model is not sure enough to decide."""
MAX_SEGMENT_SECONDS = 28.0
"""What models with a window of 30 s get at once; several loop or drop text beyond it."""

_MUTED_PEAK, _MUTED_SECONDS = 5e-7, 1.0
_SILENT_PEAK = 3 / 32768
# Of 150 recordings of a second and more, as they are, at -53 dB in 16 bits, at 5 dB SNR and from
# 3 m, the model gave every one more than 0.3; of whispers made by noise excitation it missed 1 in
# 100. In short clips it is less sure, so there it decides nothing.
_ABSENT_PROBABILITY = 0.3
# Where a token is written, its sound was before: of 2400 tokens from clean, soft, distant and
# telephone speech 4 had no such place near them, of whispers made by noise excitation 1 in 20.
_BEFORE_TOKEN_SECONDS, _AFTER_TOKEN_SECONDS = 0.4, 0.1
# Chosen with one half of the real noises that docs/quiet-speech.md reports on.
_HEARD_SHARE, _HEARD_SHARE_IF_UNSURE = 0.6, 0.85
# More speech than this is never dropped as a whole for what else was written beside it.
_MUCH_SPEECH_SECONDS = 3.0
_SYLLABLE_SECONDS = 0.2
_PADDING_SECONDS = PRESETS["normal"].pad_seconds
_WEAK_SECONDS = 0.3
_DYNAMIC_DB = 6.0
_MIN_DYNAMIC_SECONDS = 0.1
_UNSURE_LOG_PROBABILITY, _UNSURE_IF_UNLIKELY = -1.0, -0.5

_LOOP_UNIT, _LOOP_REPEATS, _LOOP_KEPT = 8, 5, 2
_STUCK_TOKENS, _STUCK_DISTINCT = 40, 4
_MAX_TOKENS, _TOKENS_PER_SECOND, _TOKENS_ALWAYS = 500, 10, 16
_CHARACTERS_PER_SECOND = {"han": 12.0, "latin": 30.0}
_SPARSE_PER_SECOND = 1.0
_COMPRESSION, _COMPRESSIBLE_CHARACTERS = 2.4, 80

_CUT_SECONDS, _PAUSE_SECONDS, _JOIN_SECONDS = 4.0, 0.1, 2.0

# What recognisers trained on subtitles say to silence, in scoring form. Only a backstop: people do
# say these words, so they count for nothing as soon as there is speech.
PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en": (
            "thank you",
            "thank you so much",
            "thank you for watching",
            "thanks for watching",
            "please subscribe",
            "bye",
            "you",
        ),
        "zh": ("谢谢", "谢谢观看", "谢谢大家", "字幕由amaraorg社区提供", "请不吝点赞订阅"),
        "ja": ("ご視聴ありがとうございました", "ありがとうございました"),
        "ko": ("시청해주셔서감사합니다", "감사합니다"),
        "": ("嗯", "哎", "嗨", "uh", "um", "hmm", "mm", "oh"),
    }
)
"""Per language; those under "" are interjections, which noise becomes in every language."""

Token = TypeVar("Token", bound=Hashable)


# -- before: what speaks for speech ----------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """What the audio says, whatever the recogniser says.

    `peak` is of raw samples. `speech_seconds` counts what the detector took for speech,
    `probability` is the highest that its model gave (None without a model), `sure_seconds` how long
    the model thought speech likelier than not. `lively_seconds` is how long the energy stood above
    its own quiet part: nearly nothing in steady noise. `track` is what the detector thought when.
    """

    seconds: float
    peak: float
    speech_seconds: float = 0.0
    probability: float | None = None
    sure_seconds: float = 0.0
    over_noise_db: float = 0.0
    lively_seconds: float = 0.0
    track: Track | None = None

    @property
    def refusal(self) -> Reason | None:
        """Why this audio gives no text, or None if it may."""
        if self.seconds < MIN_SECONDS:
            return "too_short"
        if self.peak < _MUTED_PEAK and self.seconds > _MUTED_SECONDS:
            return "muted"
        if self.peak < _SILENT_PEAK:
            return "silence"
        return None

    @property
    def absent(self) -> bool:
        """Nothing speaks for speech: neither energy nor change of level; or the model, asked for a
        second or more at the right level, never thought of it."""
        if self.probability is not None and self.seconds >= JUDGED_SECONDS:
            return self.probability < _ABSENT_PROBABILITY
        return self.speech_seconds == 0 and self.lively_seconds < _MIN_DYNAMIC_SECONDS

    def heard(self, start: float, end: float) -> bool:
        """Whether there was speech for what a recogniser wrote from `start` to `end` seconds.

        Always so in a clip of under a second, in which detectors are not sure.
        """
        if self.track is None or self.seconds < JUDGED_SECONDS:
            return True
        near = (start - _BEFORE_TOKEN_SECONDS, end + _AFTER_TOKEN_SECONDS)
        return self.track.highest(*near) >= _ABSENT_PROBABILITY

    @property
    def unlikely(self) -> bool:
        """The model never thought speech likelier than not."""
        return self.probability is not None and self.probability < SURE_PROBABILITY

    @property
    def fleeting(self) -> bool:
        """The model thought of speech for less than a syllable."""
        return self.probability is not None and self.sure_seconds < _SYLLABLE_SECONDS

    @property
    def certain_seconds(self) -> float:
        """How long there was speech, by the model if there is one, or else by the energy."""
        return self.speech_seconds if self.probability is None else self.sure_seconds

    @property
    def weak(self) -> bool:
        """Little speaks for speech; text may still be right."""
        short = self.seconds < SHORT_SECONDS or self.speech_seconds < _WEAK_SECONDS
        return short or self.unlikely


def evidence_from(track: Track, seconds: float, peak: float, *, model: bool) -> Evidence:
    """What the last `seconds` of a stream say, by what a detector with or without model thought.

    Energies are not known here: with a model they count as there.
    """
    speech = sum(value >= _ABSENT_PROBABILITY for value in track.values) * WINDOW_SECONDS
    return Evidence(
        seconds=seconds,
        peak=peak,
        speech_seconds=speech + 2 * _PADDING_SECONDS if speech else 0.0,
        probability=max(track.values, default=1.0) if model else None,
        sure_seconds=sum(value >= SURE_PROBABILITY for value in track.values) * WINDOW_SECONDS,
        lively_seconds=seconds if model else speech,
        track=track,
    )


@dataclass
class WitnessState:
    """What was heard of one stream so far."""

    vad: VadState
    peak: float = 0.0
    received: int = 0
    spans: list[SpeechSpan] = field(default_factory=list)


class Witness:
    """Gathers evidence beside a recogniser, block by block. Holds a detector, no state."""

    def __init__(self, detector: VoiceDetector) -> None:
        self.detector = detector

    def start(self) -> WitnessState:
        """The state before the first sample."""
        vad = self.detector.start()
        vad.track = Track()
        return WitnessState(vad)

    def push(self, raw: npt.ArrayLike, loud: npt.ArrayLike, state: WitnessState) -> None:
        """Hear raw samples (n,), and (m,) of the same stream that left the gain meanwhile."""
        checked = check_samples(raw)
        state.received += len(checked)
        if len(checked):
            state.peak = max(state.peak, float(np.abs(checked).max()))
        state.spans += self.detector.push(loud, state.vad)

    def finish(self, state: WitnessState) -> Evidence:
        """End the stream; `state.spans` are complete then."""
        state.spans += self.detector.finish(state.vad)
        return self.evidence(state)

    def evidence(self, state: WitnessState) -> Evidence:
        """What was heard so far."""
        vad = state.vad
        return Evidence(
            seconds=state.received / SAMPLE_RATE,
            peak=state.peak,
            speech_seconds=sum(span.end - span.start for span in state.spans)
            + self.detector.open_seconds(vad),
            probability=None if self.detector.model is None else vad.max_probability,
            sure_seconds=vad.sure_windows * WINDOW_SECONDS,
            over_noise_db=vad.max_over_noise_db,
            lively_seconds=seconds_over_floor(vad, _DYNAMIC_DB),
            track=vad.track,
        )


# -- after: what the text must not be --------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Whether text may stand, and why not or with what doubt."""

    keep: bool
    reasons: tuple[Reason, ...] = ()


def judge(
    text: str,
    evidence: Evidence,
    *,
    language: str | None = None,
    mean_log_probability: float | None = None,
    tokens: Sequence[Hashable] = (),
    heard_share: float = 1.0,
) -> Verdict:
    """Weigh a recogniser's text against the audio.

    `mean_log_probability` is the mean over the tokens, natural logarithm; `heard_share` the share
    of them that was written where there was speech. Text without a letter or digit is always kept:
    there is nothing to doubt.
    """
    refusal = evidence.refusal
    if refusal is not None:
        return Verdict(False, (refusal,))
    spoken = _letters(text)
    if not spoken:
        return Verdict(True, ("low_evidence",) if evidence.weak else ())
    reasons: list[Reason] = []
    if find_loop(tokens) is not None or is_monotonous(text):
        reasons.append("repetition")
    limit = _UNSURE_IF_UNLIKELY if evidence.unlikely else _UNSURE_LOG_PROBABILITY
    unsure = mean_log_probability is not None and mean_log_probability < limit
    quite_unsure = mean_log_probability is not None and mean_log_probability < _UNSURE_IF_UNLIKELY
    least = _HEARD_SHARE_IF_UNSURE if quite_unsure else _HEARD_SHARE
    stray = heard_share < least and evidence.certain_seconds < _MUCH_SPEECH_SECONDS
    doubted = evidence.weak or evidence.fleeting or heard_share < 1
    if doubted or is_too_fast(text, evidence.seconds):
        reasons.append("low_evidence")
    # Music and typing have energy for seconds, out of which a letter or two are heard.
    sparse = evidence.fleeting and len(spoken) < _SPARSE_PER_SECOND * evidence.speech_seconds
    doubtful = unsure or is_stock_phrase(text, language)
    dropped = evidence.absent or sparse or stray or (evidence.weak and doubtful)
    # A short clip is weak for its length alone: that is no reason to drop what was said in it.
    if evidence.seconds < SHORT_SECONDS and not evidence.absent:
        dropped = False
    return Verdict(not dropped, tuple(reasons))


@dataclass(frozen=True)
class Loop:
    """`unit` tokens from `start` on, said `repeats` times in a row."""

    start: int
    unit: int
    repeats: int


def find_loop(tokens: Sequence[Hashable], repeats: int = _LOOP_REPEATS) -> Loop | None:
    """The first place where one to eight tokens are said `repeats` times in a row, or None."""
    n = len(tokens)
    for unit in range(1, _LOOP_UNIT + 1):
        same = 0  # tokens in a row that equal the one a unit before
        for i in range(unit, n):
            same = same + 1 if tokens[i] == tokens[i - unit] else 0
            if same == unit * (repeats - 1):
                start = i + 1 - unit * repeats
                while i + 1 < n and tokens[i + 1] == tokens[i + 1 - unit]:
                    i += 1
                return Loop(start, unit, (i + 1 - start) // unit)
    return None


def is_stuck(tokens: Sequence[Hashable]) -> bool:
    """Whether decoding should stop: the end is a loop, or the last 40 tokens are of 4 kinds."""
    recent = list(tokens[-_STUCK_TOKENS:])
    if len(recent) == _STUCK_TOKENS and len(set(recent)) <= _STUCK_DISTINCT:
        return True
    for unit in range(1, _LOOP_UNIT + 1):
        last = recent[-unit * _LOOP_REPEATS :]
        if len(last) == unit * _LOOP_REPEATS and last == last[:unit] * _LOOP_REPEATS:
            return True
    return False


def trim_loop(tokens: Sequence[Token]) -> list[Token]:
    """The tokens with every loop cut down to its first two rounds."""
    kept = list(tokens)
    while (loop := find_loop(kept)) is not None:
        del kept[loop.start + _LOOP_KEPT * loop.unit : loop.start + loop.repeats * loop.unit]
    return kept


def is_monotonous(text: str) -> bool:
    """Whether long text compresses as only repeated text does; for scripts with spaces."""
    spoken = " ".join(text.split())
    if _han_share(spoken) > 0.3:
        return find_loop(_letters(spoken)) is not None
    data = spoken.encode()
    if len(data) < _COMPRESSIBLE_CHARACTERS:
        return False
    return len(data) / len(zlib.compress(data)) > _COMPRESSION


def is_too_fast(text: str, seconds: float) -> bool:
    """Whether nobody can say so many characters in that time."""
    script = "han" if _han_share(text) > 0.3 else "latin"
    # A window's worth of slack: recognisers may put the end of a word behind the audio.
    return len(_letters(text)) > _CHARACTERS_PER_SECOND[script] * (seconds + 0.5)


def is_stock_phrase(text: str, language: str | None) -> bool:
    """Whether the text is one that recognisers are known to say to noise, and nothing else."""
    spoken = _letters(text)
    primary = (language or "").partition("-")[0].lower()
    languages = PHRASES if not primary else (primary, "")
    known = {_letters(phrase) for name in languages for phrase in PHRASES.get(name, ())}
    return spoken in known


def max_new_tokens(seconds: float) -> int:
    """How many tokens a language-model decoder may write for audio of that length."""
    return min(_MAX_TOKENS, _TOKENS_ALWAYS + math.ceil(_TOKENS_PER_SECOND * seconds))


def _letters(text: str) -> str:
    """Letters and digits alone, in lower case."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LN")


_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff]")


def _han_share(text: str) -> float:
    letters = _letters(text)
    return len(_HAN.findall(letters)) / len(letters) if letters else 0.0


# -- cutting ---------------------------------------------------------------------------------------


def plan_segments(
    samples: Samples,
    spans: Sequence[SpeechSpan],
    max_seconds: float = MAX_SEGMENT_SECONDS,
) -> list[tuple[int, int]]:
    """Cut a recording (n,) for a model with a window: (start, end) in samples, in order.

    Spans of speech less than 2 s apart are put together as long as they fit into `max_seconds`; one
    that is longer is cut at the quietest tenth of a second of its last four. What lies outside all
    spans is left out; a recording without spans is one stretch, cut where it must be.
    """
    n, most = len(samples), round(max_seconds * SAMPLE_RATE)
    rounded = [(round(s.start * SAMPLE_RATE), min(n, round(s.end * SAMPLE_RATE))) for s in spans]
    pieces = [piece for span in rounded or [(0, n)] for piece in _pieces(samples, *span, most)]
    planned: list[tuple[int, int]] = []
    for start, end in pieces:
        near = planned and start - planned[-1][1] <= _JOIN_SECONDS * SAMPLE_RATE
        if near and end - planned[-1][0] <= most:
            planned[-1] = (planned[-1][0], end)
        else:
            planned.append((start, end))
    return planned


def _pieces(samples: Samples, start: int, end: int, most: int) -> list[tuple[int, int]]:
    pieces = []
    while end - start > most:
        last = start + most
        first = max(start + most // 2, last - round(_CUT_SECONDS * SAMPLE_RATE))
        cut = quietest_point(samples, first, last, round(_PAUSE_SECONDS * SAMPLE_RATE))
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, end)] if end > start else pieces
