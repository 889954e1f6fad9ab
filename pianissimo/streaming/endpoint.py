"""When an utterance ends, and when a recognizer misses speech: the rules and their measurements."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pianissimo.errors import OptionError

FinalReason = Literal["endpoint", "length", "finalize", "finish"]
"""Why an utterance ended."""
Mark = Literal["finalize", "finish"]
"""A client's request for the text so far; "finish" also ends the stream."""

ROUNDING_SECONDS = 1e-6
FRAME_SECONDS = 0.01
AUDIBLE_DBFS = -60.0
"""Softer frames are never taken for speech that was missed."""
OVER_FLOOR_DB = 12.0
"""Speech stands out of its background by at least this much."""
FLOOR_RISE_DB_PER_SECOND = 3.0
"""How fast the estimate of the background follows a rising one; it falls at once."""


@dataclass(frozen=True)
class EndpointRules:
    """What ends an utterance; times in seconds.

    Silence is a run of frames for which the recognizer wrote nothing; a word is written a little
    after it was spoken, so the pause of the speaker is somewhat longer than `trailing_silence`
    when the rule fires. An utterance whose words span less than `minimum_speech` waits for twice
    the silence, as more may follow a cough or a hesitation. After `maximum_utterance` the text is
    locked at the last word boundary without a pause. With `voice` a voice detector must report
    silence as well, for models that fall silent before their speaker does.
    """

    trailing_silence: float = 0.8
    minimum_speech: float = 0.24
    maximum_utterance: float = 60.0
    voice: bool = False

    def __post_init__(self) -> None:
        if not (self.trailing_silence > 0 and self.minimum_speech >= 0):
            raise OptionError("endpoint rules need a trailing_silence above 0 seconds")
        if self.maximum_utterance < 1:
            raise OptionError("maximum_utterance must be at least 1 second")

    def verdict(
        self, first: float, last: float, heard: float
    ) -> Literal["endpoint", "length"] | None:
        """What is due for an utterance whose words lie from `first` to `last`, at time `heard`."""
        brief = last - first < self.minimum_speech - ROUNDING_SECONDS
        silence = self.trailing_silence * (2 if brief else 1)
        if heard - last >= silence - ROUNDING_SECONDS:
            return "endpoint"
        long = heard - first >= self.maximum_utterance - ROUNDING_SECONDS
        return "length" if long else None


@dataclass
class SpeechMeter:
    """How much of a stream stood out of its background lately: what a watchdog goes by."""

    floor_dbfs: float | None = None

    def push(self, samples: npt.NDArray[np.float32], sample_rate: int) -> float:
        """Take (n,) samples; returns how many seconds of them may well be speech."""
        frame = round(FRAME_SECONDS * sample_rate)
        count = len(samples) // frame
        if count == 0:
            return 0.0
        power = np.square(samples[: count * frame].reshape(count, frame)).mean(axis=1)
        levels = 10 * np.log10(power + 1e-12)
        quietest = float(levels.min())
        risen = np.inf
        if self.floor_dbfs is not None:
            risen = self.floor_dbfs + FLOOR_RISE_DB_PER_SECOND * count * FRAME_SECONDS
        self.floor_dbfs = max(min(quietest, risen), -120.0)
        loud = (levels > self.floor_dbfs + OVER_FLOOR_DB) & (levels > AUDIBLE_DBFS)
        return float(np.count_nonzero(loud)) * FRAME_SECONDS


@dataclass(frozen=True)
class OnsetRules:
    """When speech after a pause restarts the state; a state full of silence misses words.

    When a voice detector finds speech after `quiet_seconds` of quiet, the state restarts
    `preroll_seconds` earlier, if no word was written since then.
    """

    quiet_seconds: float = 1.0
    preroll_seconds: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.preroll_seconds <= self.quiet_seconds < math.inf:
            raise OptionError(
                "onset rules need a preroll_seconds from 0 to quiet_seconds, not "
                f"{self.preroll_seconds} and {self.quiet_seconds}"
            )


@dataclass(frozen=True)
class WatchdogRules:
    """When to hear audio from a fresh state: transducers sometimes stay silent while people speak.

    After `speech_seconds` of sound like speech without a single token the stream goes back, at
    most `replay_seconds` and never behind its last word, and starts there from a fresh state. If
    that finds nothing either, it is not repeated until a word has come. `onset` does so where
    speech begins after a pause; None turns that off.
    """

    speech_seconds: float = 4.0
    replay_seconds: float = 8.0
    onset: OnsetRules | None = OnsetRules()

    def __post_init__(self) -> None:
        if not 0 < self.speech_seconds <= self.replay_seconds:
            raise OptionError("the watchdog needs 0 < speech_seconds <= replay_seconds")


@dataclass(frozen=True)
class SegmentRules:
    """Where segments begin and end, for a model whose state lives from pause to pause.

    A segment begins `preroll_seconds` before speech. It ends where the endpoint rules say, or in a
    pause of `pause_seconds` whatever they say; once it is three quarters of `longest_seconds` long,
    in a pause of `full_pause_seconds`; and without a pause before `longest_seconds`, where its last
    `cut_seconds` are quietest.
    """

    longest_seconds: float = 26.0
    preroll_seconds: float = 0.4
    pause_seconds: float = 2.0
    full_pause_seconds: float = 0.3
    cut_seconds: float = 2.0

    def __post_init__(self) -> None:
        shortest = min(self.preroll_seconds, self.cut_seconds, self.full_pause_seconds)
        if shortest <= 0 or self.longest_seconds <= 2 * max(self.cut_seconds, self.pause_seconds):
            raise OptionError(f"segment rules need seconds above 0, the longest apart: {self}")


ENDPOINT, WATCHDOG, ONSET = EndpointRules(), WatchdogRules(), OnsetRules()
"""The rules of a stream that does not bring its own."""
