"""The recognizer protocol, implemented once for every model family.

A family says in `recognize` how audio becomes transcripts. Sources, batches, errors per recording
and the order of results are the same for all of them, and stand here.
"""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Self

from torch import nn

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.gain import GainMode
from pianissimo.audio.io import (
    SAMPLE_RATE,
    AudioSource,
    Recording,
    Samples,
    load_audio,
    read_blocks,
    read_channels,
)
from pianissimo.audio.level import check_samples
from pianissimo.audio.notes import Note
from pianissimo.audio.vad import SpeechModel, VoiceDetector, available
from pianissimo.decoding.hotwords import Boost
from pianissimo.diarization.channels import ChannelRecording, merge_channels
from pianissimo.diarization.options import Diarization, TurnSource
from pianissimo.diarization.sources import turn_source
from pianissimo.engine.segmented import SegmentedStream
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.protocols import Capabilities, Outcome, Stream, StreamRecognizer
from pianissimo.recognizers.batches import grouped, lengths
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.text.written_form import LANGUAGES, check_language
from pianissimo.transcript import Transcript


def default_detector() -> VoiceDetector:
    """The Silero model where its packages are installed, otherwise the energy alone."""
    return VoiceDetector(model=SpeechModel() if available() else None)


class BaseRecognizer(ABC):
    """A recognizer of whole recordings; its live streams run on the segments between pauses.

    A family sets `name` and `model`, implements `recognize`, and sets what else differs.
    """

    block_seconds: ClassVar[float] = 10.0
    """Audio that is decoded at a time, so that memory does not grow with the recording."""
    hotwords: ClassVar[bool] = False
    """Whether `boosted` is implemented."""

    name: str
    model: object
    """The network: a torch module, or the object of another runtime."""
    latencies_ms: tuple[int, ...] = ()
    language: str | None = None
    front_end: FrontEnd | None = None

    @abstractmethod
    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        """The transcript of each recording, in order.

        A recording is blocks (n,) of mono float32 at 16 kHz. They are read as they are needed, and
        may raise the errors of `stream_audio`. `words` asks for word times.
        """

    # -- what it is --------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            self.latencies_ms,
            batched_recordings=True,
            hotwords=self.hotwords,
            gain=self.front_end is not None,
        )

    @cached_property
    def detector(self) -> VoiceDetector | None:
        return default_detector()

    @property
    def module(self) -> nn.Module | None:
        return self.model if isinstance(self.model, nn.Module) else None

    @property
    def parameter_count(self) -> int | None:
        return None if self.module is None else sum(p.numel() for p in self.module.parameters())

    @property
    def device(self) -> str:
        return "cpu" if self.module is None else str(next(self.module.parameters()).device)

    @property
    def dtype(self) -> str:
        return "unknown" if self.module is None else str(next(self.module.parameters()).dtype)

    def boosted(self, boost: Boost) -> Self:
        """The same recognizer, on the same weights, with these hotwords.

        Raises OptionError: most families have no search that hotwords could guide.
        """
        raise OptionError(f"{self.name} cannot boost hotwords; remove boost")

    def with_gain(self, mode: GainMode) -> Self:
        """The same recognizer, on the same weights, with another gain mode.

        Raises OptionError for an unknown mode, or any but "off" where there is no gain.
        """
        front_end = FrontEnd(mode)
        if not self.capabilities.gain:
            if mode == "off":
                return self
            raise OptionError(f"{self.name} normalizes its input and has no gain; use gain off")
        recognizer = copy.copy(self)
        recognizer.front_end = front_end
        return recognizer

    # -- recordings --------------------------------------------------------------------------------

    def transcribe(
        self,
        source: Recording,
        *,
        sample_rate: int | None = None,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
        diarize: bool | Diarization = False,
        itn: bool = False,
    ) -> Transcript:
        """Transcribe one recording of any length.

        `source` is a path, bytes, a binary file object, "-" for standard input, an iterator of
        blocks (n,) of mono float32 at 16 kHz, or, with its `sample_rate` in Hz, an array of
        samples. `latency_ms` is one of `latencies_ms`, by default the longest. `boost` is a list
        of hotwords. `diarize` says who speaks when: True by voice, or a `Diarization`; with
        channels, blocks are (n, channels). `itn` writes numbers, dates, money and times as people
        do, see `Transcript.in_written_form`. Raises AudioError for unreadable audio, and for a mono
        recording split by channels; OptionError for an unknown latency mode, a hotword that the
        model cannot boost, or `itn` in a language without it; MissingExtraError for `itn` without
        its extra.
        """
        if itn:  # where the language varies, that of each recording is checked later
            check_language(self.language or LANGUAGES[0])
        plain = latency_ms is None and not boost
        recognizer = self if plain else self._configured(latency_ms, boost)
        asked = None if diarize is False else Diarization.of(diarize)
        if asked is not None and asked.by == "channels":
            channels = read_channels(source, sample_rate, block_seconds=self.block_seconds)
            found = recognizer.transcribe_channels(channels, word_timestamps or itn, latency_ms)
            return _finished(found, None, word_timestamps, itn)
        notes = set[Note]()
        blocks = read_blocks(source, sample_rate, block_seconds=self.block_seconds, notes=notes)
        turns = None if asked is None else turn_source(asked)
        if turns is not None:
            blocks = _passing(blocks, turns)
        words = word_timestamps or turns is not None or itn
        found = next(recognizer.recognize([blocks], words, latency_ms))
        if notes:
            found = found.noted(notes)
        if word_timestamps and turns is None and not itn:
            return found
        return _finished(found, turns, word_timestamps, itn)

    def transcribe_channels(
        self, blocks: Iterable[Samples], word_timestamps: bool, latency_ms: int | None
    ) -> Transcript:
        """The transcript of blocks (n, channels) with one speaker per channel.

        Channels that hold the same signal are one, of speaker "0".
        """
        with ChannelRecording(blocks) as recording:
            count = 1 if recording.identical else recording.channels
            found = [
                next(self.recognize([recording.blocks(channel)], True, latency_ms))
                for channel in range(count)
            ]
            transcript = merge_channels(found, recording)
            if recording.identical:
                turns = [turn for turn in recording.turns if turn.speaker == "0"]
                transcript = replace(transcript.noted({"same_channels"}), turns=tuple(turns))
        return transcript if word_timestamps else _without_words(transcript)

    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
        diarize: bool | Diarization = False,
        itn: bool = False,
    ) -> Iterator[Transcript]:
        """Transcribe recordings in batches of about equal length; results in the order given.

        `batch_seconds` bounds the audio of a batch, padding included. Raises the error of the
        first recording that cannot be read when its turn comes; `outcomes` continues instead.
        """
        waiting: dict[int, Outcome] = {}
        due = 0
        for outcome in self.outcomes(
            sources,
            batch_seconds=batch_seconds,
            latency_ms=latency_ms,
            word_timestamps=word_timestamps,
            boost=boost,
            diarize=diarize,
            itn=itn,
        ):
            waiting[outcome.index] = outcome
            while due in waiting:
                ready = waiting.pop(due)
                due += 1
                if ready.error is not None:
                    raise ready.error
                assert ready.transcript is not None
                yield ready.transcript

    def outcomes(
        self,
        sources: Iterable[AudioSource],
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
        diarize: bool | Diarization = False,
        itn: bool = False,
    ) -> Iterator[Outcome]:
        """As `transcribe_many`, in the order of completion and with errors as results."""
        if isinstance(sources, str | os.PathLike | bytes | bytearray | memoryview):
            raise OptionError("several recordings are a list: transcribe_many([path])")
        if itn:  # where the language varies, that of each recording is checked later
            check_language(self.language or LANGUAGES[0])
        recognizer, sources = self._configured(latency_ms, boost), list(sources)
        asked = Diarization.of(diarize)
        split = asked is not None and asked.by == "channels"
        seconds: dict[int, float | None] = {}
        for i, length in enumerate(lengths(sources)):
            if isinstance(length, PianissimoError):
                yield Outcome(i, error=length)
            else:
                seconds[i] = length
        for batch in [[i] for i in seconds] if split else grouped(seconds, batch_seconds):
            if len(batch) == 1:  # block by block, as it may be long
                i = batch[0]
                try:
                    transcript = recognizer.transcribe(
                        sources[i],
                        word_timestamps=word_timestamps,
                        latency_ms=latency_ms,
                        diarize=diarize,
                        itn=itn,
                    )
                    outcome = Outcome(i, transcript)
                except PianissimoError as error:
                    outcome = Outcome(i, error=error)
                yield outcome
                continue
            loaded: dict[int, list[Samples]] = {}
            notes: dict[int, set[Note]] = {i: set() for i in batch}
            for i in batch:
                try:
                    loaded[i] = [check_samples(load_audio(sources[i], notes=notes[i]))]
                except PianissimoError as error:
                    yield Outcome(i, error=error)
            words = word_timestamps or asked is not None or itn
            transcripts = recognizer.recognize(list(loaded.values()), words, latency_ms)
            for i, transcript in zip(loaded, transcripts, strict=True):
                turns = None if asked is None else turn_source(asked)
                if turns is not None:
                    turns.push(loaded[i][0])
                try:
                    noted = transcript.noted(notes[i])
                    yield Outcome(i, _finished(noted, turns, word_timestamps, itn))
                except OptionError as error:  # a language without a written form
                    yield Outcome(i, error=error)

    def transcribe_together(self, recordings: Sequence[Samples]) -> Iterator[Transcript]:
        """Transcribe arrays (n,) of mono float32 at 16 kHz; results in the order given.

        Each is yielded once it is complete. The family decides how many share a batch.
        """
        yield from self.recognize([[samples] for samples in recordings], True)

    # -- live --------------------------------------------------------------------------------------

    def stream(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        partials: StreamRecognizer | None = None,
        boost: Boost | None = None,
        second_pass: bool | None = None,
    ) -> Stream:
        """Open a live stream of samples at `sample_rate` Hz; each pause brings a final.

        `endpoint` says which pauses end an utterance. `partials` is a recognizer with latency
        modes that writes the partials; without it there are only finals. `boost` is a list of
        hotwords. `latency_ms` must be None and `second_pass` not True: each final is made from its
        whole segment anyway.
        """
        if second_pass:
            raise OptionError(f"{self.name} has no second pass; remove second_pass")
        recognizer = self._configured(latency_ms, boost)
        return SegmentedStream(
            recognizer, sample_rate=sample_rate, endpoint=endpoint, partials=partials
        )

    def _configured(self, latency_ms: int | None, boost: Boost | None) -> Self:
        """The recognizer for a call; raises OptionError for a latency or hotword it lacks."""
        if latency_ms not in (None, *self.latencies_ms):
            known = ", ".join(map(str, self.latencies_ms)) or "none: it needs whole recordings"
            raise OptionError(f"latency {latency_ms} ms is not a mode of this model ({known})")
        return self.boosted(boost) if boost else self


def _passing(blocks: Iterable[Samples], turns: TurnSource) -> Iterator[Samples]:
    """The blocks, each of which `turns` gets as well."""
    for block in blocks:
        turns.push(block)
        yield block


def _finished(
    found: Transcript, turns: TurnSource | None, word_timestamps: bool, itn: bool
) -> Transcript:
    """The transcript with the speakers of a source that got all of its audio, and as asked for."""
    if turns is not None:
        found = found.with_turns(turns.finish())
    if itn:
        found = found.in_written_form()
    return found if word_timestamps else _without_words(found)


def _without_words(found: Transcript) -> Transcript:
    """The transcript without the words that only its speakers and written form needed."""
    segments = tuple(replace(segment, words=()) for segment in found.segments)
    return replace(found, segments=segments, words=())
