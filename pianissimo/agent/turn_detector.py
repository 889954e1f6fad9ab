"""When a speaker begins and ends a turn, from the voice, the recognized text and a judge of both.

    push(block, events) -> started, paused, eager_end, resumed, ended

The caller finalizes the text at `paused` and pushes the final with the next block. The judge sees
it then, and says how long a silence ends this turn.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from pianissimo.agent.turn_rules import NO_RULES, EndJudge, EndJudgment
from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples
from pianissimo.audio.vad import (
    WINDOW_SAMPLES,
    WINDOW_SECONDS,
    SpeechModel,
    VadOptions,
    VoiceDetector,
    available,
)
from pianissimo.transcript import StreamEvent

SignalKind = Literal["started", "paused", "eager_end", "resumed", "ended"]
THRESHOLD = 0.5
"""Probability of speech from which a window is voiced."""
HYSTERESIS = 0.15
START_SECONDS = 0.128
"""Voice in a row that begins a turn. A click or a breath is shorter."""
RESUME_SECONDS = 0.064
"""Voice in a row that continues a turn after a pause."""
PAUSE_SECONDS = 0.2
"""Silence that is a pause. Closures inside words are shorter."""
JUDGED_SECONDS = 8.0
"""Audio of the turn that a judge gets, the end of it."""
BEFORE_SECONDS = 0.5
"""Audio before the turn that the judge gets with it."""
ROUNDING_SECONDS = 1e-6


@dataclass(frozen=True)
class TurnSignal:
    """What happened to a turn.

    - "started": the speaker began at `at`.
    - "paused": silence since `at`; finalize the text now.
    - "eager_end": the turn is probably over since `at`; an answer may be prepared.
    - "resumed": the speaker went on; an answer that was prepared is void.
    - "ended": the turn is over since `at`.

    `at` is in seconds since the beginning of the stream. `confidence` is that of the judge.
    """

    kind: SignalKind
    at: float
    confidence: float = 1.0


class TurnDetector(Protocol):
    """Finds the turns of one stream; one instance per stream."""

    def push(self, block: Samples, events: Sequence[StreamEvent] = ()) -> list[TurnSignal]:
        """Take samples (n,) of mono float32 at 16 kHz, n >= 0, and the events since the last call.

        After a "paused" the rest of the block waits until the next call: push the final first.
        """
        ...


class VoiceTurns:
    """Turns by voice activity; the judge decides how long the silence after each of them is.

    `threshold` is the probability of speech from which on a window of 32 ms is voiced. Without
    Silero's model the energy decides.
    """

    def __init__(self, judge: EndJudge = NO_RULES, threshold: float = THRESHOLD) -> None:
        model = SpeechModel() if available() else None
        options = VadOptions(
            onset=threshold,
            offset=max(threshold - HYSTERESIS, 0.01),
            energy_db=None if model is not None else 9.0,
        )
        self._judge = judge
        self._detector = VoiceDetector(options, model, group_windows=1)
        self._vad = self._detector.start()
        self._waiting = np.zeros(0, np.float32)
        self._recent: deque[Samples] = deque(
            maxlen=math.ceil((JUDGED_SECONDS + BEFORE_SECONDS) / WINDOW_SECONDS)
        )
        self._locked, self._partial = "", ""
        self._marked = False  # the recognizer wrote its token for the end of a turn last
        self._windows = self._voiced = 0
        self._first = 0  # the window in which the turn began
        self._end = 0  # the window behind the last voiced one
        self._speaking = False
        self._judged = False
        self._judgment: EndJudgment | None = None

    @property
    def text(self) -> str:
        """What the turn says so far."""
        return f"{self._locked} {self._partial}".strip()

    @property
    def position(self) -> float:
        """Seconds of audio that were judged; what waits is not included."""
        return self._windows * WINDOW_SECONDS

    @property
    def waiting_seconds(self) -> float:
        """Audio that waits for the next call."""
        return len(self._waiting) / SAMPLE_RATE

    def push(self, block: Samples, events: Sequence[StreamEvent] = ()) -> list[TurnSignal]:
        """See `TurnDetector.push`."""
        self._waiting = np.concatenate([self._waiting, block])
        for event in events:
            if event.type == "final":
                self._locked, self._partial = f"{self._locked} {event.text}".strip(), ""
            elif event.type == "partial":
                self._partial = event.text
            if event.text:
                self._marked = event.turn == "end"
        signals: list[TurnSignal] = []
        while len(self._waiting) >= WINDOW_SAMPLES:
            window, self._waiting = np.split(self._waiting, [WINDOW_SAMPLES])
            signals += self._step(window)
            if signals and signals[-1].kind == "paused":
                break
        return signals

    def _step(self, window: Samples) -> list[TurnSignal]:
        self._detector.push(window, self._vad)
        self._recent.append(window)
        self._windows += 1
        if self._vad.end == self._windows:  # this window is voiced
            self._voiced += 1
            if not self._speaking and self._voiced * WINDOW_SECONDS >= START_SECONDS:
                return [self._start()]
            if self._speaking and self._voiced * WINDOW_SECONDS >= RESUME_SECONDS:
                self._end, resumed = self._windows, self._judgment is not None or self._judged
                self._judgment, self._judged = None, False
                return [TurnSignal("resumed", self._end * WINDOW_SECONDS)] if resumed else []
            return []
        self._voiced = 0
        return self._pause() if self._speaking else []

    def _start(self) -> TurnSignal:
        self._speaking, self._end = True, self._windows
        self._first = self._windows - self._voiced
        self._judgment, self._judged = None, False
        self._locked, self._partial, self._marked = "", "", False
        return TurnSignal("started", self._first * WINDOW_SECONDS)

    def _pause(self) -> list[TurnSignal]:
        """The turn is open, and this window is silent."""
        at = self._end * WINDOW_SECONDS
        silence = (self._windows - self._end) * WINDOW_SECONDS + ROUNDING_SECONDS
        if not self._judged:
            if silence < min(PAUSE_SECONDS, self._judge.least_seconds):
                return []
            self._judged = True
            return [TurnSignal("paused", at)]
        signals = []
        if self._judgment is None:
            self._judgment = self._judge.judge(self._turn(), self.text, self._marked)
            if self._judgment.complete:
                signals.append(TurnSignal("eager_end", at, self._judgment.confidence))
        if silence >= self._judgment.wait_seconds:
            signals.append(TurnSignal("ended", at, self._judgment.confidence))
            self._speaking, self._judgment, self._judged = False, None, False
        return signals

    def _turn(self) -> Samples:
        """The end of the turn (n,), with what came just before it and the silence so far."""
        count = self._windows - self._first + math.ceil(BEFORE_SECONDS / WINDOW_SECONDS)
        audio = np.concatenate([*self._recent][-count:])
        return audio[-round(JUDGED_SECONDS * SAMPLE_RATE) :]
