"""State machine of one stream: buffers audio, says which work is due, turns tokens into events.

    push -> due -> work -> (Runner.step) -> accept_chunk -> events

It has no threads and no tensors. The engine and the single stream drive the same object, so their
events are equal.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from pianissimo.audio.buffer import SampleBuffer
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import WINDOW_SECONDS, Track, VadState, VoiceDetector
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.token import Hypothesis
from pianissimo.hallucination.evidence import JUDGED_SECONDS, evidence_from
from pianissimo.hallucination.verdict import Verdict, supported_words, weigh
from pianissimo.streaming.endpoint import (
    ENDPOINT,
    WATCHDOG,
    EndpointRules,
    FinalReason,
    Mark,
    SegmentRules,
    SpeechMeter,
    WatchdogRules,
)
from pianissimo.streaming.grid import ChunkGrid, ChunkWork, TailWork
from pianissimo.streaming.onset import (
    MOST_BACK_SECONDS,
    OnsetMeter,
    fresh_start,
    known_windows,
)
from pianissimo.streaming.utterance import UtteranceText
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent


@dataclass(frozen=True)
class LiveOptions:
    """A stream's lookahead in encoder frames and its rules; None turns a rule off.

    With `guard` text that nothing in the audio speaks for is held back, see `guards`; its samples
    must then be at the right level.
    """

    lookahead: int
    endpoint: EndpointRules | None = ENDPOINT
    watchdog: WatchdogRules | None = WATCHDOG
    detector: VoiceDetector | None = None
    """Hears the voice that rules and guards ask for; by its energy if there is none here."""
    guard: bool = False
    language: str | None = None
    """The language of the text, if it is known."""
    prompt: int | None = None
    """The language prompt of the encoder's frames; None for the model's default."""
    trie: PhraseTrie | None = None
    """The phrases that the stream boosts."""
    segments: SegmentRules | None = None
    """Where segments begin and end, for a model whose state lives from pause to pause."""
    second_pass: bool = False
    """Finals are decoded again from the whole segment; only for a model with segments."""


class LanguageChange(NamedTuple):
    """From `position` on, in samples, the stream has this language, and this prompt."""

    position: int
    prompt: int | None
    language: str | None


class _SavedRecently(TypedDict, total=False):
    """What streams saved by early releases of version 0.1 do not have."""

    rests: list[list[float]]
    ends: list[list[int]]
    since: float
    peak: float
    shown: bool
    heard: list[int]
    onsets: list[int]
    late_onsets: list[list[int]]
    languages: list[list[int | str | None]]
    spoken: str | None


class SavedLive(_SavedRecently):
    """A saved live stream, the tensors of its slot excepted."""

    origin: int
    chunks: int
    last_frame: int
    marks: list[tuple[int, str]]
    floor_dbfs: float | None
    unheard_seconds: float
    may_replay: bool
    replays: int
    voice: dict[str, Any] | None
    found: dict[str, Any]
    start: int
    samples: Samples


class LiveStream:
    """The clock, the audio and the text of one stream.

    Positions are samples at the model's rate since the beginning of the stream. `origin` is where
    the encoder's state began: 0, unless the watchdog or an onset restarted it later.
    """

    def __init__(self, grid: ChunkGrid, tokenizer: Tokenizer, options: LiveOptions) -> None:
        self.grid, self.options, self._tokenizer = grid, options, tokenizer
        self._rate = grid.features.sample_rate
        self._frame_samples = grid.factor * grid.features.hop_samples
        self.buffer = SampleBuffer()
        known = None if options.prompt is None else options.language
        frame_seconds = self._frame_samples / self._rate
        self.text = UtteranceText(tokenizer, frame_seconds, language=known)
        self._languages: deque[LanguageChange] = deque()
        self.language_changed = False
        """The prompt of the options is not yet that of the slot."""
        self.finished = False
        self.replays = 0
        self._marks: deque[tuple[int, Mark]] = deque()
        self._rests: deque[Sequence[float]] = deque()
        self._origin = 0
        self._chunks = 0
        self._last_frame = -1
        self._meter = SpeechMeter()
        self._missed_seconds = 0.0
        self._may_replay = True
        self._detector: VoiceDetector | None = None
        self._guard = options.guard and self._rate == SAMPLE_RATE
        self._onset_meter: OnsetMeter | None = None
        rules = None if options.watchdog is None else options.watchdog.onset
        if rules is not None and self._rate == SAMPLE_RATE:
            self._onset_meter = OnsetMeter(rules)
        voice = options.endpoint is not None and options.endpoint.voice
        if self._guard or voice or self._onset_meter is not None:
            self._detector = options.detector or VoiceDetector()
            self._voice = self._detector.start()
            self._voice.track = Track()
        self._heard = 0  # windows whose values the onset meter has
        self._onsets: deque[int] = deque()
        """The windows in which speech begins after a pause, as far as audio was pushed."""
        self._late_onsets: deque[list[int]] = deque()
        """By mark, those among the samples that are too few for the detector's next step."""
        self._ends: deque[tuple[int, int]] = deque([(0, 0)])
        """Windows heard, and the end of speech known by then: for rules that ask for the voice."""
        self._pushed = 0  # at least so much was when the last work was due
        self._since = 0.0
        self._peak = 0.0
        self._shown = False
        self.consumed = 0.0
        """Seconds that went through the model; a restart goes back."""
        self.restart: int | None = None
        """The first frame of a fresh state, where one is requested; see `renewed`."""

    # -- in ----------------------------------------------------------------------------------------

    @property
    def hearing(self) -> tuple[VoiceDetector, VadState] | None:
        """The detector that hears what is pushed next, and its state; None without one."""
        return None if self._detector is None else (self._detector, self._voice)

    def note_heard(self) -> None:
        """Note what the detector found; after each step of it, see `live_segments.listen`."""
        if self.options.endpoint is not None and self.options.endpoint.voice:
            self._note_end()
        track = self._voice.track
        if self._onset_meter is not None and track is not None:
            new = self._voice.windows - self._heard
            if new:
                self._onsets.extend(self._onset_meter.push(track.values[-new:]))
        self._heard = self._voice.windows
        if not self._guard:
            self._voice.track = Track(self._voice.windows)

    def _note_end(self) -> None:
        if self._voice.end != self._ends[-1][1]:
            self._ends.append((self._voice.windows, self._voice.end))

    def push(self, samples: npt.NDArray[np.float32]) -> None:
        """Take mono float32 samples at the model's rate, to which the stream listened before."""
        self.buffer.append(samples)

    def mark(self, kind: Mark) -> None:
        """Ask for the text of everything pushed so far, and with "finish" for the stream's end."""
        self._marks.append((self.buffer.end, kind))
        rest = self._rest()
        self._rests.append(rest)
        meter = self._onset_meter
        self._late_onsets.append([] if meter is None else replace(meter).push(rest))

    def set_language(self, prompt: int | None, language: str | None) -> None:
        """Change the language at the next utterance of what is pushed from now on."""
        self._languages.append(LanguageChange(self.buffer.end, prompt, language))

    def _change_language(self) -> None:
        """Between utterances, where the due work goes beyond the place of a change."""
        while (
            self._languages
            and self.text.first is None
            and self._languages[0].position < self.due_position
        ):
            change = self._languages.popleft()
            self.options = replace(self.options, prompt=change.prompt, language=change.language)
            self.text.language = change.language
            self.language_changed = True

    def _rest(self) -> list[float]:
        """What the detector thinks of the samples that are too few for its next step."""
        if self._detector is None or not (self._guard or self._onset_meter):
            return []
        ending = replace(self._voice, track=Track(), histogram=self._voice.histogram.copy())
        self._detector.finish(ending)
        assert ending.track is not None
        return ending.track.values

    # -- what is due -------------------------------------------------------------------------------

    @property
    def backlog_seconds(self) -> float:
        """Audio that no chunk has taken yet; below one chunk it is merely incomplete."""
        done = self._origin + self._chunks * self.grid.chunk_samples
        return max(0, self.buffer.end - done) / self._rate

    @property
    def due_position(self) -> int:
        """The position that the audio must reach for the next piece of work."""
        needed = self._origin + self.grid.needed(self._chunks)
        return min(needed, self._marks[0][0]) if self._marks else needed

    def look_out(self) -> None:
        """Request a fresh state where speech begins after a pause in what the due work hears.

        Call it before each piece of work; it may make another one due, and that needs `renewed`.
        """
        due, meter = self.due(), self._onset_meter
        if due is not None:
            self._change_language()
        if due is None or meter is None:
            return
        known, onsets = known_windows(self.due_position), []
        while self._onsets and self._onsets[0] < known:
            onsets.append(self._onsets.popleft())
        if due == "tail":
            onsets += self._late_onsets[0]
            self._late_onsets[0] = []
        for onset in onsets:
            last = (self._last_frame + 1) * self._frame_samples
            start = fresh_start(onset, self._origin, self._chunks, last, self.grid, meter.rules)
            if start is not None:
                self._restart(start)

    def _restart(self, position: int) -> None:
        """Request a fresh state from `position` on, from where audio is heard again."""
        self._origin, self._chunks = position, 0
        self.consumed = position / self._rate
        self.restart = position // self._frame_samples

    def renewed(self, rest: Hypothesis) -> list[StreamEvent]:
        """The state is a fresh one now; events of the tokens that the old one still had."""
        assert self.restart is not None
        kept = sum(frame < self.restart for frame in rest.frames)
        self.restart = None
        if kept:
            self._last_frame = rest.frames[kept - 1]
        events = self.text.push(rest.split(kept)[0])
        return [] if self._guard and not self._shown else events

    def due(self) -> Literal["chunk", "tail"] | None:
        """The next piece of work: a complete chunk, or the tail before a mark."""
        limit = self._marks[0][0] if self._marks else self.buffer.end
        if self._origin + self.grid.needed(self._chunks) <= limit:
            return "chunk"
        return "tail" if self._marks else None

    def work(self, slot: int) -> ChunkWork | TailWork:
        """The samples of the work that is due, for the runner."""
        read, origin = self.buffer.read, self._origin
        if self.due() == "chunk":
            start, end = self.grid.window(self._chunks)
            return ChunkWork(slot, read(origin + start, origin + end, floor=origin))
        position, kind = self._marks[0]
        samples = position - origin
        start, end, frames = self.grid.rest(self._chunks, samples)
        tail = read(origin + start, origin + end, floor=origin)
        return TailWork(slot, tail, frames, samples - start, continues=kind == "finalize")

    # -- out ---------------------------------------------------------------------------------------

    def accept_chunk(self, result: Hypothesis) -> list[StreamEvent]:
        """The events of the chunk that was due, from its tokens."""
        size = self.grid.chunk_samples
        done = self._origin + self._chunks * size
        self._pushed = self._origin + self.grid.needed(self._chunks)
        self._chunks += 1
        self.consumed = (done + size) / self._rate
        chunk = self.buffer.read(done, done + size, floor=self.buffer.start)
        self._peak = max(self._peak, float(np.abs(chunk).max()))
        events = self.text.push(result)
        if self._guard and not self._shown:
            # A partial stays once it is shown, so it waits until the audio supports its text.
            verdict = self._weigh(self.consumed, partial=True)
            events = self.text.partial() if verdict is None or verdict.keep else []
        self._shown = self._shown or bool(events)
        if result.frames:
            self._last_frame = result.frames[-1]
        self._watch(result, chunk)
        events += self._rule()
        if self._guard and self._voice.track is not None:
            first = self.consumed if self.text.first is None else self.text.first
            self._voice.track.forget(first - 2 * JUDGED_SECONDS)
        rules, used = self.options.watchdog, self.grid.window(self._chunks)[0]
        if self._onset_meter is not None:  # what an onset may go back to stays as it is
            back = MOST_BACK_SECONDS + self._onset_meter.rules.preroll_seconds
            used -= round(back * self._rate)
        self.buffer.forget(
            self._origin + used,
            remember=0 if rules is None else round(rules.replay_seconds * self._rate),
        )
        return events

    def accept_tail(self, result: Hypothesis) -> list[StreamEvent]:
        """The final that answers the mark of the tail that was due, from its tokens."""
        position, kind = self._marks.popleft()
        rest = self._rests.popleft()
        self._late_onsets.popleft()
        self._pushed = position
        done = self._origin + self._chunks * self.grid.chunk_samples
        tail = self.buffer.read(done, max(done, position), floor=self.buffer.start)
        self._peak = max(self._peak, float(np.abs(tail).max(initial=0.0)))
        if result.frames:
            self._last_frame = result.frames[-1]
        self.text.push(result)
        self.finished = kind == "finish"
        return [self._close(kind, position / self._rate, rest)]

    def _rule(self) -> list[StreamEvent]:
        rules, first, last = self.options.endpoint, self.text.first, self.text.last
        if rules is None or first is None or last is None:
            return []
        if rules.voice and self._detector is not None:
            last = max(last, min(self._voice_end(), self.consumed))
        verdict = rules.verdict(first, last, self.consumed)
        if verdict is None:
            return []
        if verdict == "length" and (self._shown or not self._guard):
            events = self.text.cut(self.consumed)
            self._begin(self.consumed, shown=len(events) > 1)
            return events
        final = self._close(verdict, self.consumed)
        if self._guard and not final.text:
            return []  # it was never shown, so it needs no final
        if verdict == "length":
            return [final]
        return [final, StreamEvent("endpoint", "", (), final.end, final.end)]

    def _voice_end(self) -> float:
        """Where speech ended, in seconds, as far as the detector knew when so much was heard."""
        known = self._known_windows(self.consumed)
        while len(self._ends) > 1 and self._ends[1][0] <= known:
            self._ends.popleft()
        return self._ends[0][1] * WINDOW_SECONDS

    def _known_windows(self, until: float) -> int:
        """What the detector had heard by then, however far ahead a client pushed."""
        return known_windows(min(round(until * self._rate), self._pushed))

    # -- what speaks for the text ------------------------------------------------------------------

    def _close(self, reason: FinalReason, heard: float, rest: Sequence[float] = ()) -> StreamEvent:
        final = self.text.close(reason, heard, self._weigh(heard, rest))
        self._begin(heard)
        return final

    def _begin(self, heard: float, *, shown: bool = False) -> None:
        """Forget what spoke for the utterance that is over."""
        self._since, self._peak, self._shown = heard, 0.0, shown

    def _weigh(
        self, until: float, rest: Sequence[float] = (), *, partial: bool = False
    ) -> Verdict | None:
        """The verdict on the text since the last final; None without a filter or without text.

        Words outside of speech are removed from text that was not shown yet. `rest` holds the
        probabilities of the samples behind the detector's last step, at a mark. In the first
        second a final is not doubted, a partial is.
        """
        first, track = self.text.first, self._voice.track if self._guard else None
        if first is None or track is None:
            return None
        start = max(self._since, first - JUDGED_SECONDS)
        known = track.values[: max(0, self._known_windows(until) - track.first)]
        heard = Track(track.first, [*known, *rest]).part(start, until + WINDOW_SECONDS)
        model = self._detector is not None and self._detector.model is not None
        evidence = evidence_from(heard, until - start, self._peak, model=model)
        found, frame_seconds = self.text.found, self._frame_samples / self._rate
        tokenizer, language = self._tokenizer, self.options.language
        standing = found
        if not self._shown:
            kept = supported_words(found, tokenizer, frame_seconds, evidence)
            standing = kept if kept.tokens else found
        if partial:
            evidence = replace(evidence, seconds=max(evidence.seconds, JUDGED_SECONDS))
        verdict = weigh(standing, tokenizer, frame_seconds, evidence, language)
        if self._shown:
            return Verdict(True, verdict.reasons)
        if verdict.keep and len(standing.tokens) < len(found.tokens):
            self.text.reduce(standing)
        return verdict

    def _watch(self, result: Hypothesis, chunk: Samples) -> None:
        """Restart behind the last word after much speech without a token."""
        rules = self.options.watchdog
        if rules is None:
            return
        speech = self._meter.push(chunk, self._rate)
        if result.tokens:
            self._missed_seconds, self._may_replay = 0.0, True
            return
        self._missed_seconds += speech
        if not self._may_replay or self._missed_seconds < rules.speech_seconds:
            return
        step = self.grid.chunk_samples
        silent = self._origin + self._chunks * step - (self._last_frame + 1) * self._frame_samples
        back = min(round(rules.replay_seconds * self._rate), silent) // step
        self._may_replay = False
        if back:
            self._restart(self._origin + (self._chunks - back) * step)
            self._missed_seconds = 0.0
            self.replays += 1

    # -- saving ------------------------------------------------------------------------------------

    def save(self) -> SavedLive:
        """Everything but the tensors in the arena, as numbers, lists and one array."""
        meter = self._onset_meter
        return {
            "origin": self._origin,
            "chunks": self._chunks,
            "last_frame": self._last_frame,
            "marks": list(self._marks),
            "rests": [list(rest) for rest in self._rests],
            "floor_dbfs": self._meter.floor_dbfs,
            "unheard_seconds": self._missed_seconds,
            "may_replay": self._may_replay,
            "replays": self.replays,
            "voice": self._saved_voice(),
            "ends": [list(end) for end in self._ends],
            "since": self._since,
            "peak": self._peak,
            "shown": self._shown,
            "heard": [] if meter is None else [meter.windows, meter.voiced],
            "onsets": list(self._onsets),
            "late_onsets": [list(onsets) for onsets in self._late_onsets],
            "languages": [list(change) for change in self._languages],
            "spoken": self.text.language,
            "found": asdict(self.text.found),
            "start": self.buffer.start,
            "samples": self.buffer.read(self.buffer.start, self.buffer.end),
        }

    def _saved_voice(self) -> dict[str, Any] | None:
        if self._detector is None:
            return None
        return asdict(self._voice if self._guard else replace(self._voice, track=None))

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Fill a new stream with what `save` returned; raises what a malformed one provokes."""
        self._origin, self._chunks = int(saved["origin"]), int(saved["chunks"])
        self.consumed = (self._origin + self._chunks * self.grid.chunk_samples) / self._rate
        self._last_frame = int(saved["last_frame"])
        # Version 0.1 wrote "finalise".
        self._marks = deque(
            (int(position), "finish" if kind == "finish" else "finalize")
            for position, kind in saved["marks"]
        )
        self._rests = deque(saved.get("rests", [[] for _ in self._marks]))
        self._meter.floor_dbfs = saved["floor_dbfs"]
        self._missed_seconds = float(saved["unheard_seconds"])
        self._may_replay, self.replays = bool(saved["may_replay"]), int(saved["replays"])
        voice = saved["voice"]
        if self._detector is not None and voice is not None:
            track = voice.get("track")
            self._voice = VadState(**{**voice, "track": track and Track(**track)})
            self._heard = self._voice.windows
            ends = saved.get("ends", [(0, 0)])
            self._ends = deque((int(windows), int(end)) for windows, end in ends)
            self._note_end()
        self._since, self._peak = float(saved.get("since", 0.0)), float(saved.get("peak", 0.0))
        self._shown = bool(saved.get("shown", True))
        # A detector that did not hear the stream from its beginning speaks for nothing.
        self._guard = self._guard and voice is not None and voice.get("track") is not None
        self._onsets = deque(int(onset) for onset in saved.get("onsets", []))
        self._late_onsets = deque(saved.get("late_onsets", [[] for _ in self._marks]))
        if voice is None:
            self._onset_meter = None
        elif self._onset_meter is not None:
            if self._voice.track is None:
                self._voice.track = Track(self._voice.windows)
            heard = saved.get("heard") or [self._voice.windows] * 2
            self._onset_meter.windows, self._onset_meter.voiced = map(int, heard)
        self._languages = deque(
            LanguageChange(int(position), prompt, language)
            for position, prompt, language in saved.get("languages", [])
        )
        self.text.push(Hypothesis(**saved["found"]))
        self.text.language = saved.get("spoken", self.text.language)
        self.buffer = SampleBuffer(int(saved["start"]))
        self.buffer.append(np.asarray(saved["samples"], np.float32))
