"""One live stream without threads or tensors of its own: audio in, what is due, tokens in, events.

    push -> due -> chunk_work -> (Runner.step) -> take_chunk -> events

The engine and the single stream drive the same object, so they cannot differ.
"""

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pianissimo.audio.buffer import SampleBuffer
from pianissimo.audio.vad import WINDOW_SECONDS, VadState, VoiceDetector
from pianissimo.decoding.hypothesis import Hypothesis
from pianissimo.streaming.endpoint import (
    ENDPOINT,
    WATCHDOG,
    EndpointRules,
    SpeechMeter,
    WatchdogRules,
)
from pianissimo.streaming.runner import ChunkGrid, ChunkWork, TailWork
from pianissimo.streaming.utterance import UtteranceText
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent

Mark = Literal["finalise", "finish"]


@dataclass(frozen=True)
class LiveOptions:
    """A stream's lookahead in encoder frames and its rules; None turns a rule off."""

    lookahead: int
    endpoint: EndpointRules | None = ENDPOINT
    watchdog: WatchdogRules | None = WATCHDOG
    detector: VoiceDetector | None = None
    """Hears the voice that endpoint rules may ask for; by its energy if there is none here."""


class LiveStream:
    """The clock, the audio and the text of one stream.

    Positions are samples at the model's rate since the beginning of the stream. `origin` is where
    the encoder's state began: 0, unless the watchdog started anew further on.
    """

    def __init__(self, grid: ChunkGrid, tokenizer: Tokenizer, options: LiveOptions) -> None:
        self.grid, self.options = grid, options
        self._rate = grid.features.sample_rate
        self._frame_samples = grid.factor * grid.features.hop_samples
        self.buffer = SampleBuffer()
        self.text = UtteranceText(tokenizer, self._frame_samples / self._rate)
        self.finished = False
        self.replays = 0
        self._marks: deque[tuple[int, Mark]] = deque()
        self._origin = 0
        self._chunks = 0
        self._last_frame = -1
        self._meter = SpeechMeter()
        self._unheard_seconds = 0.0
        self._restart: int | None = None
        self._may_replay = True
        self._detector: VoiceDetector | None = None
        if options.endpoint is not None and options.endpoint.voice:
            self._detector = options.detector or VoiceDetector()
            self._voice = self._detector.start()

    # -- in ----------------------------------------------------------------------------------------

    def push(self, samples: npt.NDArray[np.float32]) -> None:
        """Take mono float32 samples at the model's rate."""
        self.buffer.append(samples)
        if self._detector is not None:
            self._detector.push(samples, self._voice)

    def mark(self, kind: Mark) -> None:
        """Ask for the text of everything pushed so far, and with "finish" for the stream's end."""
        self._marks.append((self.buffer.end, kind))

    # -- what is due -------------------------------------------------------------------------------

    @property
    def backlog_seconds(self) -> float:
        """Audio that no chunk has taken yet; below one chunk it is merely incomplete."""
        done = self._origin + self._chunks * self.grid.chunk_samples
        return max(0, self.buffer.end - done) / self._rate

    @property
    def heard(self) -> float:
        """Seconds that went through the model."""
        return (self._origin + self._chunks * self.grid.chunk_samples) / self._rate

    @property
    def due_position(self) -> int:
        """The position that the audio must reach for the next piece of work."""
        needed = self._origin + self.grid.needed(self._chunks)
        return min(needed, self._marks[0][0]) if self._marks else needed

    def due(self) -> Literal["chunk", "tail"] | None:
        """The next piece of work: a complete chunk, or the tail before a mark."""
        limit = self._marks[0][0] if self._marks else self.buffer.end
        if self._origin + self.grid.needed(self._chunks) <= limit:
            return "chunk"
        return "tail" if self._marks else None

    def chunk_work(self, slot: int) -> ChunkWork:
        return ChunkWork(slot, self._read(*self.grid.window(self._chunks)))

    def tail_work(self, slot: int) -> TailWork:
        position, kind = self._marks[0]
        samples = position - self._origin
        start, end, frames = self.grid.rest(self._chunks, samples)
        goes_on = kind == "finalise"
        return TailWork(slot, self._read(start, end), frames, samples - start, goes_on)

    def _read(self, start: int, end: int) -> npt.NDArray[np.float32]:
        return self.buffer.read(self._origin + start, self._origin + end, floor=self._origin)

    def take_restart(self) -> int | None:
        """The frame at which the stream wants a fresh state, once after each time it does."""
        restart, self._restart = self._restart, None
        return restart

    # -- out ---------------------------------------------------------------------------------------

    def take_chunk(self, found: Hypothesis) -> list[StreamEvent]:
        """Take the tokens of the chunk that was due."""
        done = self._origin + self._chunks * self.grid.chunk_samples
        self._chunks += 1
        events = self.text.push(found)
        if found.frames:
            self._last_frame = found.frames[-1]
        self._watch(found, done)
        events += self._rule()
        rules = self.options.watchdog
        self.buffer.forget(
            self._origin + self.grid.window(self._chunks)[0],
            remember=0 if rules is None else round(rules.replay_seconds * self._rate),
        )
        return events

    def take_tail(self, found: Hypothesis) -> list[StreamEvent]:
        """Take the tokens of the tail that was due: the final that answers its mark."""
        position, kind = self._marks.popleft()
        if found.frames:
            self._last_frame = found.frames[-1]
        self.text.push(found)
        self.finished = kind == "finish"
        return [self.text.close(kind, position / self._rate)]

    def _rule(self) -> list[StreamEvent]:
        rules, first, last = self.options.endpoint, self.text.first, self.text.last
        if rules is None or first is None or last is None:
            return []
        if self._detector is not None:
            last = max(last, min(self._voice.end * WINDOW_SECONDS, self.heard))
        verdict = rules.verdict(first, last, self.heard)
        if verdict == "length":
            return self.text.cut(self.heard)
        if verdict == "endpoint":
            final = self.text.close("endpoint", self.heard)
            return [final, StreamEvent("endpoint", "", (), final.end, final.end)]
        return []

    def _watch(self, found: Hypothesis, done: int) -> None:
        """Start anew behind the last word if there was much speech and no token since."""
        rules = self.options.watchdog
        if rules is None:
            return
        chunk = self.buffer.read(done, done + self.grid.chunk_samples)
        speech = self._meter.push(chunk, self._rate)
        if found.tokens:
            self._unheard_seconds, self._may_replay = 0.0, True
            return
        self._unheard_seconds += speech
        if not self._may_replay or self._unheard_seconds < rules.speech_seconds:
            return
        step = self.grid.chunk_samples
        silent = self._origin + self._chunks * step - (self._last_frame + 1) * self._frame_samples
        back = min(round(rules.replay_seconds * self._rate), silent) // step
        self._may_replay = False
        if back:
            self._origin += (self._chunks - back) * step
            self._chunks = 0
            self._restart = self._origin // self._frame_samples
            self._unheard_seconds = 0.0
            self.replays += 1

    # -- saving ------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Everything but the tensors in the arena, as numbers, lists and one array."""
        return {
            "origin": self._origin,
            "chunks": self._chunks,
            "last_frame": self._last_frame,
            "marks": [list(mark) for mark in self._marks],
            "floor_dbfs": self._meter.floor_dbfs,
            "unheard_seconds": self._unheard_seconds,
            "may_replay": self._may_replay,
            "replays": self.replays,
            "voice": None if self._detector is None else asdict(self._voice),
            "found": asdict(self.text.found),
            "start": self.buffer.start,
            "samples": self.buffer.read(self.buffer.start, self.buffer.end),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Fill a new stream with what `save` returned; raises what a malformed one provokes."""
        self._origin, self._chunks = int(saved["origin"]), int(saved["chunks"])
        self._last_frame = int(saved["last_frame"])
        self._marks = deque((int(position), kind) for position, kind in saved["marks"])
        self._meter.floor_dbfs = saved["floor_dbfs"]
        self._unheard_seconds = float(saved["unheard_seconds"])
        self._may_replay, self.replays = bool(saved["may_replay"]), int(saved["replays"])
        if self._detector is not None and saved["voice"] is not None:
            self._voice = VadState(**saved["voice"])
        self.text.push(Hypothesis(**saved["found"]))
        self.buffer = SampleBuffer(int(saved["start"]))
        self.buffer.append(np.asarray(saved["samples"], np.float32))
