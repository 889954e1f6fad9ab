"""Evidence of speech in the audio, gathered beside a recognizer.

Whether a recording is muted or silent is judged before the gain, which removes the difference. The
evidence decides with `verdict` and `words` which text may stand; every filter that acted leaves its
reason in `Transcript.reasons`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pianissimo.audio.filters import OffsetState, remove_offsets
from pianissimo.audio.gain import RecordingGain, RecordingState
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import Samples, check_samples
from pianissimo.audio.notes import NOTES, Note
from pianissimo.audio.vad import (
    PRESETS,
    SURE_PROBABILITY,
    WINDOW_SECONDS,
    SpeechSpan,
    Track,
    VoiceDetector,
)

if TYPE_CHECKING:
    from pianissimo.audio.front_end import FrontEnd

Reason = Literal["too_short", "muted", "silence", "repetition", "low_evidence", "truncated"] | Note

REASONS: tuple[Reason, ...] = (
    "too_short",
    "muted",
    "silence",
    "repetition",
    "low_evidence",
    "truncated",
    *NOTES,
)
"""All that `Transcript.reasons` may hold, in their order: filters first, then how it was read."""

MIN_SECONDS = 0.1
"""Shorter recordings hold no word."""

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

_PADDING_SECONDS = PRESETS["normal"].pad_seconds

_DYNAMIC_DB = 6

_MIN_DYNAMIC_SECONDS = 0.1


@dataclass(frozen=True)
class Evidence:
    """What the audio says, whatever the recognizer says.

    `peak` is that before the gain. `speech_seconds` counts what the detector took for speech,
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
        second or more at the right level, never found it likely."""
        if self.probability is not None and self.seconds >= JUDGED_SECONDS:
            return self.probability < _ABSENT_PROBABILITY
        return self.speech_seconds == 0 and self.lively_seconds < _MIN_DYNAMIC_SECONDS

    def supports(self, start: float, end: float) -> bool:
        """Whether there is speech for a token written from `start` to `end` seconds.

        Always true in a clip of under a second, where detectors are not reliable.
        """
        if self.track is None or self.seconds < JUDGED_SECONDS:
            return True
        near = (start - _BEFORE_TOKEN_SECONDS, end + _AFTER_TOKEN_SECONDS)
        return self.track.highest(*near) >= _ABSENT_PROBABILITY


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


class Intake:
    """The level stage of one recording: its gain, and the evidence of speech beside it.

    Push blocks (n,) of mono float32 at 16 kHz, then None; `evidence` and `spans` are complete then.
    Without a front end or detector that part is skipped. A constant offset is removed before both;
    without a front end, only before the detector.
    """

    def __init__(self, front_end: "FrontEnd | None", detector: VoiceDetector | None) -> None:
        self.seconds = 0.0
        """The length of what was pushed."""
        self.evidence: Evidence | None = None
        """None without a detector."""
        self.spans: list[SpeechSpan] = []
        """The spans of speech that are known to be complete."""
        self.track: Track | None = None
        """What a detector thinks of the samples that leave, if one hears just these."""
        self._centers = front_end is not None
        self._offset = OffsetState()
        self._levels = front_end is not None and front_end.mode != "off"
        self._gain: RecordingGain | None = None
        if front_end is not None and self._levels:
            self._gain = front_end.recording
        elif detector is not None:  # it needs leveled samples even where the model does not
            self._gain = RecordingGain("on")
        self._gain_state = RecordingState()
        self._received, self._peak, self._centered_peak = 0, 0.0, 0.0
        self._detector = detector
        if detector is not None:
            self._vad = detector.start()
            self._vad.track = Track()
            self.track = self._vad.track if self._levels else None

    def push(self, block: Samples | None) -> Samples:
        """Take a block, or None for the end; the samples (m,) that are ready for the model.

        Raises AudioValueError for samples that are not usable numbers.
        """
        raw = np.zeros(0, np.float32) if block is None else block
        [centered] = remove_offsets([check_samples(raw)], [self._offset])
        leveled = centered
        self._received += len(raw)
        self.seconds = self._received / SAMPLE_RATE
        self._peak = max(self._peak, float(np.abs(raw).max(initial=0.0)))
        loudest = float(np.abs(centered).max(initial=0.0))
        self._centered_peak = max(self._centered_peak, loudest)
        if self._gain is not None:
            leveled = self._gain.push(centered, self._gain_state).samples
            if block is None:
                leveled = np.concatenate([leveled, self._gain.finish(self._gain_state).samples])
        if self._detector is not None:
            vad = self._vad
            self.spans += self._detector.push_many([leveled], [vad])[0]
            if block is None:
                self.spans += self._detector.finish(vad)
                # How long the energy was above its own 10th percentile. Unlike the running noise
                # floor this also sees a word that fills the whole recording.
                counts = np.cumsum(vad.histogram)
                floor = int(np.searchsorted(counts, 0.1 * counts[-1]))
                lively = int(counts[-1] - counts[min(floor + _DYNAMIC_DB, len(counts) - 1)])
                self.evidence = Evidence(
                    seconds=self.seconds,
                    # An offset is no sound, and the filter overshoots in the first samples.
                    peak=min(self._peak, self._centered_peak),
                    speech_seconds=sum(span.end - span.start for span in self.spans),
                    probability=None if self._detector.model is None else vad.max_probability,
                    sure_seconds=vad.sure_windows * WINDOW_SECONDS,
                    over_noise_db=vad.max_over_noise_db,
                    lively_seconds=lively * WINDOW_SECONDS,
                    track=vad.track,
                )
        if self._levels:
            return leveled
        return centered if self._centers else raw
