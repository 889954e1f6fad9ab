"""Evidence of speech in the audio, gathered beside a recognizer.

Whether a recording is muted or silent is judged on raw samples, because a gain removes the
difference. The evidence decides with `verdict` and `words` which text may stand; every filter that
acted leaves its reason in `Transcript.reasons`.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import check_samples
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
"""Shorter ones are recognized, and marked."""

JUDGED_SECONDS = 1.0
"""In shorter clips the detector's model is not sure enough to decide."""

_MUTED_PEAK, _MUTED_SECONDS = 5e-7, 1.0

_SILENT_PEAK = 3 / 32768

# Of 150 recordings of a second and more, as they are, at -53 dB in 16 bits, at 5 dB SNR and from
# 3 m, the model gave every one more than 0.3; of whispers made by noise excitation it missed 1 in
# 100. In short clips it is less sure, so there it decides nothing.
_ABSENT_PROBABILITY = 0.3

# Where a token is written, its sound was before: of 2400 tokens from clean, soft, distant and
# telephone speech 4 had no such place near them, of whispers made by noise excitation 1 in 20.
_BEFORE_TOKEN_SECONDS, _AFTER_TOKEN_SECONDS = 0.4, 0.1

_SYLLABLE_SECONDS = 0.2

_PADDING_SECONDS = PRESETS["normal"].pad_seconds

_WEAK_SECONDS = 0.3

_DYNAMIC_DB = 6.0

_MIN_DYNAMIC_SECONDS = 0.1


@dataclass(frozen=True)
class Evidence:
    """What the audio says, whatever the recognizer says.

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
        """Whether there was speech for what a recognizer wrote from `start` to `end` seconds.

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
    """Gathers evidence beside a recognizer, block by block. Holds a detector, no state."""

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
