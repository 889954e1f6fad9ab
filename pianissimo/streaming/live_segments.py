"""State machine of one stream of a model whose state lives from pause to pause.

    push -> due -> work -> (Runner.step) -> accept_chunk -> events

The encoder's state begins shortly before speech and ends with the final of that speech: in a pause,
at a mark, or where the segment is as long as the model can hear. Between two segments only the
voice detector runs, so silence costs nearly nothing and becomes no text. A pause is found in the
detector's steps, whatever the chunks are, so short and long chunks end at the same sample.

It has no threads and no tensors, and is driven as `LiveStream` is.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pianissimo.audio.buffer import SampleBuffer
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.level import quietest_point
from pianissimo.audio.vad import (
    PRESETS,
    WINDOW_SAMPLES,
    WINDOW_SECONDS,
    Track,
    VadState,
    VoiceDetector,
)
from pianissimo.decoding.token import Hypothesis
from pianissimo.hallucination.evidence import JUDGED_SECONDS, evidence_from
from pianissimo.hallucination.verdict import Verdict, supported_words, weigh
from pianissimo.streaming.endpoint import FinalReason, Mark, SegmentRules
from pianissimo.streaming.grid import ChunkGrid, ChunkWork, TailWork
from pianissimo.streaming.live import LanguageChange, LiveOptions, LiveStream
from pianissimo.streaming.onset import GROUP_SAMPLES
from pianissimo.streaming.utterance import UtteranceText
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent

WORD_END_FRAMES = 20
"""A word ends where the next one begins, or this many frames after its last token."""
QUIET_SAMPLES = SAMPLE_RATE // 10
"""A segment is cut in the middle of the quietest stretch of this length."""


@dataclass
class _Mark:
    """A client's request: its position, and what the detector thinks of the samples before it that
    are too few for its next step, as values and as samples of speech [first, last)."""

    position: int
    kind: Mark
    rest: list[float]
    speech: list[int]


class LiveSegments:
    """The clock, the audio and the text of one stream.

    Positions are samples at the model's rate, 16 kHz, since the beginning of the stream. The
    open segment, if there is one, began at `_origin`, and its speech spans `_first` to `_last`.
    """

    def __init__(self, grid: ChunkGrid, tokenizer: Tokenizer, options: LiveOptions) -> None:
        assert options.segments is not None
        self.grid, self.options, self._tokenizer = grid, options, tokenizer
        self._segments: SegmentRules = options.segments
        longest = options.segments.longest_seconds
        if options.endpoint is not None:
            longest = min(longest, options.endpoint.maximum_utterance)
        self._most = round(longest * SAMPLE_RATE)
        """Samples of the longest segment."""
        self._frame_samples = grid.factor * grid.features.hop_samples
        self.buffer = SampleBuffer()
        frame_seconds = self._frame_samples / SAMPLE_RATE
        # Prompt 0 is that of a model with one language, or one that finds out the language.
        known = options.language if options.prompt else None
        self.text = UtteranceText(tokenizer, frame_seconds, WORD_END_FRAMES, known)
        self.finished = False
        self.replays = 0
        self.consumed = 0.0
        """Seconds that went through the model; a new segment may go back."""
        self.restart: int | None = None
        """The first frame of a fresh state, where one is requested; see `renewed`."""
        self._detector = options.detector or VoiceDetector()
        self._pad = round(self._detector.options.pad_seconds * SAMPLE_RATE)
        self._voice = self._detector.start()
        self._voice.track = Track()
        self._heard = 0
        """Until where the detector heard when it was last asked."""
        self._notes: deque[tuple[int, int, int]] = deque()
        """By steps of the detector: its end, and the speech [first, last) known by then."""
        self._scanned = 0
        """Until where those steps were looked at; a multiple of `GROUP_SAMPLES`."""
        self._languages: deque[LanguageChange] = deque()
        self.language_changed = False
        """Always: each segment has a fresh state, which is given the prompt of the options."""
        self._marks: deque[_Mark] = deque()
        self._end: tuple[int, FinalReason] | None = None
        """Where the open segment ends, if that is known, and why."""
        self._speaking = False
        self._floor = self._origin = self._chunks = 0
        self._done = 0
        """Until where chunks were encoded; without a segment, where the last one ended."""
        self._first = self._last = 0
        self._peak = 0.0
        self._shown = False

    # -- in ----------------------------------------------------------------------------------------

    @property
    def hearing(self) -> tuple[VoiceDetector, VadState]:
        """The detector that hears what is pushed next, and its state."""
        return self._detector, self._voice

    def note_heard(self) -> None:
        """Note what the detector found; after each step of it, see `listen`."""
        voice, least = self._voice, self._detector.options.min_speech_seconds
        heard = voice.windows * WINDOW_SAMPLES
        if (
            heard > self._heard
            and voice.start is not None
            and self._detector.open_seconds(voice) >= least
        ):
            first, last = voice.start * WINDOW_SAMPLES, voice.end * WINDOW_SAMPLES
            self._notes.append((heard, first, last))
        self._heard = heard

    def push(self, samples: npt.NDArray[np.float32]) -> None:
        """Take mono float32 samples at 16 kHz, to which the stream listened before."""
        self.buffer.append(samples)

    def mark(self, kind: Mark) -> None:
        """Ask for the text of everything pushed so far, and with "finish" for the stream's end."""
        ending = replace(self._voice, track=Track(), histogram=self._voice.histogram.copy())
        speech: list[int] = []
        for span in self._detector.finish(ending):
            first = round(span.start * SAMPLE_RATE) + self._pad
            speech = [first, max(first, round(span.end * SAMPLE_RATE) - self._pad)]
        assert ending.track is not None
        self._marks.append(_Mark(self.buffer.end, kind, ending.track.values, speech))

    def set_language(self, prompt: int | None, language: str | None) -> None:
        """Change the language at the next segment of what is pushed from now on."""
        self._languages.append(LanguageChange(self.buffer.end, prompt, language))

    # -- what is due -------------------------------------------------------------------------------

    @property
    def backlog_seconds(self) -> float:
        """Audio that the model has not had yet; without a segment it needs none."""
        return max(0, self.buffer.end - max(self._done, self._scanned)) / SAMPLE_RATE

    @property
    def due_position(self) -> int:
        """The position that the audio must reach for the next piece of work."""
        end: int | None = self._marks[0].position if self._marks else None
        if self._end is not None:
            end = self._end[0]
        if not self._speaking:
            return self._scanned + GROUP_SAMPLES if end is None else end
        needed = self._origin + self.grid.needed(self._chunks)
        if self._is_full:
            needed = max(needed, self._done + round(self._segments.cut_seconds * SAMPLE_RATE))
        return needed if end is None else min(needed, end)

    @property
    def _is_full(self) -> bool:
        """Whether the segment has to end within the stretch that is searched for a place to cut it,
        as after another chunk it would be too late."""
        ahead = self.grid.chunk_samples + round(self._segments.cut_seconds * SAMPLE_RATE)
        return self._speaking and self._done + ahead > self._origin + self._most

    def look_out(self) -> None:
        """Find out where segments begin and end in what was pushed and the due work needs.

        Call it before each piece of work; it may make another one due, and that needs `renewed`.
        """
        while self._end is None and self.restart is None:
            limit = self._marks[0].position if self._marks else self.buffer.end
            if self._speaking:
                limit = min(limit, self.due_position)
            if self._scanned + GROUP_SAMPLES > limit:
                break
            self._scanned += GROUP_SAMPLES
            self._scan()
        if self._end is None and self.restart is None:
            if self._marks and self._marks[0].position < self._scanned + GROUP_SAMPLES:
                self._look_at_mark(self._marks[0])
            if self._is_full and self.buffer.end >= self.due_position:
                self._cut()
        if not self._speaking and self.restart is None:
            self._forget()

    def _scan(self) -> None:
        """Look at one step of the detector."""
        end, noted = self._scanned, False
        while self._notes and self._notes[0][0] <= end:
            _, first, last = self._notes.popleft()
            noted = last > self._floor
        if noted and not self._speaking:
            self._begin(first)
        if noted:
            self._last = max(self._last, last)
        if not self._speaking:
            return
        rules, limits = self.options.endpoint, self._segments
        if rules is not None:
            first_s, last_s = self._first / SAMPLE_RATE, self._last / SAMPLE_RATE
            if rules.verdict(first_s, last_s, end / SAMPLE_RATE) == "endpoint":
                self._end = (end, "endpoint")
                return
        pause = limits.pause_seconds
        if end - self._origin >= 0.75 * self._most:
            pause = limits.full_pause_seconds
        if end - self._last >= pause * SAMPLE_RATE:
            self._end = (end, "length")

    def _begin(self, first: int) -> None:
        """Begin a segment for speech from sample `first` on."""
        preroll = round(self._segments.preroll_seconds * SAMPLE_RATE)
        frame = self._frame_samples
        self._origin = max(self._floor, (first - preroll) // frame * frame)
        while self._languages and self._languages[0].position <= first:
            change = self._languages.popleft()
            self.options = replace(self.options, prompt=change.prompt, language=change.language)
            self.text.language = change.language if change.prompt else None
        self._speaking, self._chunks, self._peak, self._shown = True, 0, 0.0, False
        self._done = self._origin
        self._first, self._last = max(first, self._origin), first
        self.restart = self._origin // frame
        self.consumed = self._origin / SAMPLE_RATE

    def _look_at_mark(self, mark: _Mark) -> None:
        """Begin a segment for speech that the detector's steps do not show: it began just before
        the mark, or all there is is too short to be sure. Without one the state is cleared."""
        if self._speaking:
            return
        if mark.speech and mark.speech[1] > self._floor:
            self._begin(mark.speech[0])
        elif mark.position - self._floor <= JUDGED_SECONDS * SAMPLE_RATE and self._likely(mark):
            self._begin(self._floor)
        else:
            self.restart = mark.position // self._frame_samples

    def _likely(self, mark: _Mark) -> bool:
        """Whether the detector thinks of speech between the last final and the mark."""
        track = self._voice.track
        assert track is not None
        values = track.part(self._floor / SAMPLE_RATE, mark.position / SAMPLE_RATE).values
        return max([*values, *mark.rest], default=0.0) >= PRESETS["normal"].onset

    def _cut(self) -> None:
        """End a segment that is as long as the model can hear where it is quietest."""
        done = self._done
        samples = self.buffer.read(done, min(self.due_position, self._origin + self._most))
        self._end = (done + quietest_point(samples, 0, len(samples), QUIET_SAMPLES), "length")

    def renewed(self, rest: Hypothesis) -> list[StreamEvent]:
        """The state is a fresh one now, for a new segment."""
        self.restart = None
        return []

    def due(self) -> Literal["chunk", "tail"] | None:
        """The next piece of work: a complete chunk, or the tail before the end of a segment."""
        if self._end is not None:
            limit = self._end[0]
        else:
            limit = self._marks[0].position if self._marks else self.buffer.end
        if self._speaking and self._origin + self.grid.needed(self._chunks) <= limit:
            if self._end is not None or self._marks or not self._is_full:
                return "chunk"
            return None
        return "tail" if self._end is not None or self._marks else None

    def work(self, slot: int) -> ChunkWork | TailWork:
        """The samples of the work that is due, for the runner."""
        read, origin = self.buffer.read, self._origin
        if self.due() == "chunk":
            start, end = self.grid.window(self._chunks)
            return ChunkWork(slot, read(origin + start, origin + end, floor=origin))
        if not self._speaking:
            return TailWork(slot, np.zeros(0, np.float32), 0, 0, continues=False)
        position = self._end[0] if self._end is not None else self._marks[0].position
        samples = position - origin
        start, end, frames = self.grid.rest(self._chunks, samples)
        tail = read(origin + start, origin + end, floor=origin)
        again = self.options.second_pass
        return TailWork(slot, tail, frames, samples - start, continues=False, again=again)

    # -- out ---------------------------------------------------------------------------------------

    def accept_chunk(self, result: Hypothesis) -> list[StreamEvent]:
        """The events of the chunk that was due, from its tokens."""
        before = self._done
        self._chunks += 1
        self._done += self.grid.chunk_samples
        self.consumed = self._done / SAMPLE_RATE
        self._note_peak(before, self._done)
        events = self.text.push(result)
        if events and self.options.guard and not self._shown:
            # A partial stays once it is shown, so it waits until the audio supports its text.
            verdict = self._weigh(self._done, partial=True)
            events = self.text.partial() if verdict is None or verdict.keep else []
        self._shown = self._shown or bool(events)
        self._forget()
        return events

    def accept_tail(self, result: Hypothesis) -> list[StreamEvent]:
        """The events of the segment that ends with the tail that was due, from its tokens."""
        rest: Sequence[float] = ()
        reason: FinalReason
        if self._end is not None:
            position, reason = self._end
            heard = min(position, self._last + self._pad) / SAMPLE_RATE
        else:
            mark = self._marks.popleft()
            position, reason, rest = mark.position, mark.kind, mark.rest
            heard = position / SAMPLE_RATE
            self.finished = mark.kind == "finish"
        if self._speaking:
            self._note_peak(self._done, position)
        if not self.options.second_pass:
            self.text.push(result)
        elif result.tokens or not self._shown:
            self.text.reduce(result)
        verdict = self._weigh(position, rest) if self._speaking else None
        final = self.text.close(reason, heard, verdict)
        asked = reason in ("finalize", "finish")
        self._end, self._speaking = None, False
        self._floor = self._origin = self._done = position
        self.consumed = position / SAMPLE_RATE
        self._forget()
        if not final.text and not asked and not self._shown:
            return []
        self._shown = False
        if reason != "endpoint":
            return [final]
        return [final, StreamEvent("endpoint", "", (), final.end, final.end)]

    def _note_peak(self, start: int, end: int) -> None:
        samples = self.buffer.read(start, max(start, end), floor=self.buffer.start)
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))

    def _forget(self) -> None:
        """Drop the audio and the thoughts of the detector that nothing needs any more."""
        if self._speaking:
            used = self._origin + self.grid.window(self._chunks)[0]
            first = self._origin / SAMPLE_RATE
        else:  # speech may have begun by now, and be known later
            preroll = self._segments.preroll_seconds * SAMPLE_RATE
            begun = self._scanned if self._voice.start is None else self._open_speech()
            used = max(self._floor, begun - round(preroll) - GROUP_SAMPLES)
            if self._marks:
                used = self._floor
            first = used / SAMPLE_RATE
        self.buffer.forget(used)
        if self._voice.track is not None:
            self._voice.track.forget(first - 2 * JUDGED_SECONDS)

    def _open_speech(self) -> int:
        start = self._voice.start
        return self._scanned if start is None else min(self._scanned, start * WINDOW_SAMPLES)

    def _weigh(
        self, until: int, rest: Sequence[float] = (), *, partial: bool = False
    ) -> Verdict | None:
        """The verdict on the text of the segment; None without a filter or without text.

        Words outside of speech are removed from text that was not shown yet. `rest` holds the
        probabilities of the samples behind the detector's last step, at a mark. In the first
        second a final is not doubted, a partial is.
        """
        first, track = self.text.first, self._voice.track
        if not self.options.guard or first is None or track is None:
            return None
        start, end = self._origin / SAMPLE_RATE, until / SAMPLE_RATE
        known = track.values[: max(0, until // WINDOW_SAMPLES - track.first)]
        heard = Track(track.first, [*known, *rest]).part(start, end + WINDOW_SECONDS)
        model = self._detector.model is not None
        evidence = evidence_from(heard, end - start, self._peak, model=model)
        found, frame_seconds = self.text.found, self._frame_samples / SAMPLE_RATE
        context = (self._tokenizer, frame_seconds, evidence)
        standing = found
        if not self._shown:
            kept = supported_words(found, *context, WORD_END_FRAMES)
            standing = kept if kept.tokens else found
        if partial:
            evidence = replace(evidence, seconds=max(evidence.seconds, JUDGED_SECONDS))
            context = (self._tokenizer, frame_seconds, evidence)
        verdict = weigh(standing, *context, self.options.language, WORD_END_FRAMES)
        if self._shown:
            return Verdict(True, verdict.reasons)
        if verdict.keep and len(standing.tokens) < len(found.tokens):
            self.text.reduce(standing)
        return verdict

    # -- saving ------------------------------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Everything but the tensors in the arena, as numbers, lists and one array."""
        return {
            "segments": True,
            "voice": asdict(self._voice),
            "notes": [list(note) for note in self._notes],
            "scanned": self._scanned,
            "marks": [asdict(mark) for mark in self._marks],
            "ending": None if self._end is None else list(self._end),
            "speaking": self._speaking,
            "floor": self._floor,
            "origin": self._origin,
            "chunks": self._chunks,
            "speech": [self._first, self._last],
            "peak": self._peak,
            "shown": self._shown,
            "languages": [list(change) for change in self._languages],
            "spoken": self.text.language,
            "found": asdict(self.text.found),
            "start": self.buffer.start,
            "samples": self.buffer.read(self.buffer.start, self.buffer.end),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Fill a new stream with what `save` returned; raises what a malformed one provokes."""
        voice = saved["voice"]
        self._voice = VadState(**{**voice, "track": Track(**voice["track"])})
        self._heard = self._voice.windows * WINDOW_SAMPLES
        self._notes = deque((int(end), int(a), int(b)) for end, a, b in saved["notes"])
        self._scanned = int(saved["scanned"])
        self._marks = deque(_Mark(**mark) for mark in saved["marks"])
        ending = saved["ending"]
        self._end = None if ending is None else (int(ending[0]), ending[1])
        self._speaking, self._floor = bool(saved["speaking"]), int(saved["floor"])
        self._origin, self._chunks = int(saved["origin"]), int(saved["chunks"])
        self._first, self._last = map(int, saved["speech"])
        self._peak, self._shown = float(saved["peak"]), bool(saved["shown"])
        self._done = self._floor
        if self._speaking:
            self._done = self._origin + self._chunks * self.grid.chunk_samples
        self.consumed = self._done / SAMPLE_RATE
        self._languages = deque(
            LanguageChange(int(position), prompt, language)
            for position, prompt, language in saved.get("languages", [])
        )
        self.text.push(Hypothesis(**saved["found"]))
        self.text.language = saved.get("spoken", self.text.language)
        self.buffer = SampleBuffer(int(saved["start"]))
        self.buffer.append(np.asarray(saved["samples"], np.float32))


Live: TypeAlias = LiveStream | LiveSegments
"""The state machine of a stream."""


def open_live(grid: ChunkGrid, tokenizer: Tokenizer, options: LiveOptions) -> Live:
    """The state machine for a stream of these options."""
    kind = LiveStream if options.segments is None else LiveSegments
    return kind(grid, tokenizer, options)


def listen(streams: Sequence[Live], blocks: Sequence[Samples]) -> None:
    """Let the detectors hear what is pushed next, samples (n,) at 16 kHz of each of the streams.

    It takes long and needs no lock of others. Streams with one detector share its calls.
    """
    groups: dict[VoiceDetector, list[tuple[Live, VadState, Samples]]] = {}
    for stream, samples in zip(streams, blocks, strict=True):
        if stream.hearing is not None:
            detector, state = stream.hearing
            groups.setdefault(detector, []).append((stream, state, samples))
    for detector, members in groups.items():
        longest = max(len(samples) for _, _, samples in members)
        for start in range(0, longest, GROUP_SAMPLES):
            part = [member for member in members if start < len(member[2])]
            pieces = [samples[start : start + GROUP_SAMPLES] for _, _, samples in part]
            detector.push_many(pieces, [state for _, state, _ in part])
            for stream, _, _ in part:
                stream.note_heard()
