"""Our own models behind the recognizer protocols: recordings whole, in batches, and live.

Models that stream are fed block by block, so memory does not grow with the recording and a block
more or less changes nothing. Models with unlimited context get each recording whole.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import (
    SAMPLE_RATE,
    AudioSource,
    Recording,
    Samples,
    from_array,
    load_audio,
    stream_audio,
)
from pianissimo.audio.level import GainMode
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.hotwords import Boost, PhraseTrie, make_trie
from pianissimo.decoding.search import Decoding, Head, SearchState, make_search
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.engine.live_model import LiveModel, live_model
from pianissimo.engine.runner import Runner
from pianissimo.engine.segmented import SegmentedStream
from pianissimo.engine.single import SingleStream
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.hallucination.evidence import Evidence, Reason
from pianissimo.hallucination.words import Hearing, heard_words, weigh
from pianissimo.models.asr import AsrModel
from pianissimo.models.fastconformer import ChunkPlan
from pianissimo.protocols import Capabilities, Outcome, StreamRecognizer
from pianissimo.recognizers.batches import batches_of, in_order, listed
from pianissimo.streaming.endpoint import ENDPOINT, WATCHDOG, EndpointRules, WatchdogRules
from pianissimo.streaming.input import StreamInput
from pianissimo.streaming.live import LiveOptions, LiveStream
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.text.words import WordOptions, segments_from_words, words_from_tokens
from pianissimo.transcript import Transcript

BLOCK_SECONDS = 20.0
"""Audio that goes through the encoder at once when a recording is transcribed."""
LIVE_LATENCY_MS = 160
"""The latency mode of a stream that does not ask for one, or the model's next longer mode."""


class NativeRecognizer:
    """A model of ours with its tokenizer.

    `head` chooses between the heads of a hybrid model ("transducer" or "ctc"), `decoding` between
    searches, by default a greedy one for streams and for recordings what the model's configuration
    says. `front_end` brings audio to level before the model hears it. With a `detector` texts that
    nothing in the recording speaks for are dropped, see `guards`.
    """

    def __init__(
        self,
        model: AsrModel,
        tokenizer: Tokenizer,
        *,
        head: Head | None = None,
        front_end: FrontEnd | None = None,
        detector: VoiceDetector | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.front_end, self.detector = front_end, detector
        self.vocabulary = Vocabulary.of_tokenizer(tokenizer)
        self.live_search = make_search(model, head, decoding, self.vocabulary)
        self.search, beam = self.live_search, model.config.beam
        if decoding is None and beam > 1 and isinstance(self.live_search, GreedySearch):
            self.search = make_search(model, head, Decoding(beam), self.vocabulary)
        self._trie: PhraseTrie | None = None
        self._plans: dict[int, ChunkPlan] = {}

    @property
    def name(self) -> str:
        return self.model.config.name

    @property
    def language(self) -> str | None:
        """The language of all that it writes, where that is known."""
        return self.model.config.language

    @property
    def capabilities(self) -> Capabilities:
        """What this recognizer supports."""
        modes = self.latencies_ms
        return Capabilities(
            modes,
            batched_streams=bool(modes),
            saved_streams=bool(modes),
            batched_recordings=True,
            hotwords=True,
            gain=True,
        )

    @property
    def module(self) -> torch.nn.Module:
        """The network."""
        return self.model

    @property
    def parameter_count(self) -> int:
        """The number of parameters, int8 layers included."""
        return self.model.parameter_count()

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        """The type that the model computes in."""
        return str(self.model.dtype)

    @property
    def latencies_ms(self) -> tuple[int, ...]:
        """The latency modes in milliseconds of audio per chunk; none if it cannot stream."""
        config = self.model.config
        return tuple(config.latencies_ms) if config.streams else ()

    def transcribe(
        self,
        source: Recording,
        *,
        sample_rate: int | None = None,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
    ) -> Transcript:
        """Transcribe one recording of any length.

        `source` is a path, bytes, a binary file object or "-" for standard input; or, with its
        `sample_rate` in Hz, an array of samples. `latency_ms` chooses the lookahead, the longest by
        default; `boost` are phrases that it should rather hear. Raises AudioError for unreadable
        audio, OptionError for an unknown latency or a phrase that cannot be boosted.
        """
        if boost:
            return self.boosted(boost).transcribe(
                source,
                sample_rate=sample_rate,
                latency_ms=latency_ms,
                word_timestamps=word_timestamps,
            )
        lookahead = self._lookahead(latency_ms)
        if sample_rate is not None:
            blocks: Iterable[Samples] = [from_array(source, sample_rate)]
        elif isinstance(source, (np.ndarray, Tensor, list, tuple)):
            raise OptionError("samples need their rate: transcribe(array, sample_rate=16000)")
        else:
            blocks = stream_audio(source, block_seconds=BLOCK_SECONDS)  # type: ignore[arg-type]
        hearing = self._hearing()
        blocks = hearing.leveled(blocks)
        if lookahead is None:
            samples = np.concatenate([np.zeros(0, np.float32), *blocks])
            return self._whole([samples], [hearing], word_timestamps)[0]
        found, seconds = self._blockwise(blocks, lookahead)
        return self._transcript(found, seconds, hearing.evidence, word_timestamps)

    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
    ) -> Iterator[Transcript]:
        """Transcribe recordings in batches of about equal length; results in the order given.

        `batch_seconds` bounds the audio, padding included, that is held at once. Raises the error
        of the first recording that cannot be read when its turn comes; see `outcomes` for going on.
        """
        outcomes = self.outcomes(
            sources,
            batch_seconds=batch_seconds,
            latency_ms=latency_ms,
            word_timestamps=word_timestamps,
            boost=boost,
        )
        yield from in_order(outcomes)

    def outcomes(
        self,
        sources: Iterable[AudioSource],
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
    ) -> Iterator[Outcome]:
        """As `transcribe_many`, but in the order of completion and with errors as results."""
        recognizer = self.boosted(boost) if boost else self
        sources = listed(sources)
        lookahead = self._lookahead(latency_ms)
        for batch in batches_of(sources, batch_seconds):
            if isinstance(batch, Outcome):
                yield batch
                continue
            yield from recognizer._batch(sources, batch, lookahead, latency_ms, word_timestamps)

    def transcribe_together(self, recordings: Sequence[Samples]) -> Iterator[Transcript]:
        """Recordings of mono float32 at 16 kHz; each transcript when it is there, in order.

        On a GPU they are one batch; on a CPU, where that would only cost padding, they go singly.
        """
        lookahead = self._lookahead(None)
        most = 1 if self.model.device.type == "cpu" else len(recordings)
        for first in range(0, len(recordings), most):
            heard = [self._hearing() for _ in recordings[first : first + most]]
            loud = [
                hearing.whole(samples)
                for hearing, samples in zip(heard, recordings[first : first + most], strict=True)
            ]
            if lookahead is None:
                yield from self._whole(loud, heard, True)
            else:
                yield from self._lockstep(loud, heard, lookahead, True)

    def stream(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        watchdog: WatchdogRules | None = WATCHDOG,
        partials: StreamRecognizer | None = None,
        boost: Boost | None = None,
    ) -> SingleStream | SegmentedStream:
        """Open a live stream of samples at `sample_rate` Hz; for many at once see `Engine`.

        `latency_ms` is one of `latencies_ms`, by default the shortest from 160 ms on. `endpoint`
        says when an utterance is over and `watchdog` when to hear the last seconds anew; None turns
        them off. A model that hears recordings whole hears what was said between two pauses, and
        `partials` is a recognizer that streams, for words before that. `boost` are phrases that it
        should rather hear. Raises OptionError if there is no such mode, for `partials` of a model
        that streams by itself, or for a phrase that cannot be boosted.
        """
        if not self.latencies_ms and latency_ms is None:
            return SegmentedStream(
                self.boosted(boost), sample_rate=sample_rate, endpoint=endpoint, partials=partials
            )
        if partials is not None:
            raise OptionError(f"{self.name} writes partials by itself: leave the other model out")
        lookahead = self.live_lookahead(latency_ms)
        grid = self.live.grid(lookahead)
        options = self.live_options(lookahead, endpoint, watchdog)
        options = replace(options, trie=make_trie(boost, self.vocabulary))
        stream = LiveStream(grid, self.tokenizer, options)
        input = StreamInput(sample_rate, grid.features.sample_rate, self.front_end)
        return SingleStream(Runner(self.live, 1), stream, input)

    def live_options(
        self,
        lookahead: int,
        endpoint: EndpointRules | None,
        watchdog: WatchdogRules | None,
        *,
        guard: bool = True,
    ) -> LiveOptions:
        """How a stream is led; it is guarded if there is a detector and samples are leveled."""
        leveled = self.front_end is not None and self.front_end.mode != "off"
        return LiveOptions(
            lookahead,
            endpoint,
            watchdog,
            self.detector,
            guard=guard and leveled and self.detector is not None,
            language=self.model.config.language,
        )

    def boosted(self, boost: Boost | None) -> "NativeRecognizer":
        """The same recognizer, on the same weights, for recordings with such phrases in them.

        Raises OptionError for a phrase that cannot be boosted.
        """
        recognizer = copy.copy(self)
        recognizer._trie = make_trie(boost, self.vocabulary)
        return recognizer

    def with_gain(self, mode: GainMode) -> "NativeRecognizer":
        """The same recognizer, on the same weights, with another gain mode.

        Raises OptionError for an unknown mode.
        """
        recognizer = copy.copy(self)
        recognizer.front_end = FrontEnd(mode)
        return recognizer

    def live_lookahead(self, latency_ms: int | None) -> int:
        """The lookahead of a stream in that latency mode; see `stream`."""
        modes = self.latencies_ms
        if not modes:
            raise OptionError(
                f"{self.name} hears recordings whole and cannot stream; choose a streaming model"
            )
        if latency_ms is None:
            latency_ms = min((m for m in modes if m >= LIVE_LATENCY_MS), default=modes[-1])
        return self.model.config.lookahead(latency_ms) or 0

    @cached_property
    def live(self) -> LiveModel:
        """The model made ready for live streams, which all share it."""
        return live_model(self.model, self.live_search)

    # -- how ---------------------------------------------------------------------------------------

    def _lookahead(self, latency_ms: int | None) -> int | None:
        """The lookahead to transcribe with; None for a model that sees recordings whole."""
        lookahead = self.model.config.lookahead(latency_ms)
        return lookahead if self.model.config.streams else None

    def _plan(self, lookahead: int) -> ChunkPlan:
        if lookahead not in self._plans:
            with torch.inference_mode():
                self._plans[lookahead] = self.model.encoder.plan(lookahead)
        return self._plans[lookahead]

    def _batch(
        self,
        sources: Sequence[AudioSource],
        batch: list[int],
        lookahead: int | None,
        latency_ms: int | None,
        words: bool,
    ) -> Iterator[Outcome]:
        """One batch: a lone recording block by block, several in lockstep."""
        if len(batch) == 1:
            i = batch[0]
            try:
                transcript = self.transcribe(
                    sources[i], latency_ms=latency_ms, word_timestamps=words
                )
                yield Outcome(i, transcript)
            except PianissimoError as error:
                yield Outcome(i, error=error)
            return
        loaded: dict[int, Samples] = {}
        hearings = {i: self._hearing() for i in batch}
        for i in batch:
            try:
                loaded[i] = hearings[i].whole(load_audio(sources[i]))
            except PianissimoError as error:
                yield Outcome(i, error=error)
        if not loaded:
            return
        recordings, heard = list(loaded.values()), [hearings[i] for i in loaded]
        if lookahead is None:
            transcripts = self._whole(recordings, heard, words)
        else:
            transcripts = self._lockstep(recordings, heard, lookahead, words)
        for i, transcript in zip(loaded, transcripts, strict=True):
            yield Outcome(i, transcript)

    @torch.inference_mode()
    def _blockwise(self, blocks: Iterable[Samples], lookahead: int) -> tuple[Hypothesis, float]:
        """One recording through the streaming encoder: its tokens and its seconds."""
        model, plan = self.model, self._plan(lookahead)
        features, encoder = model.features.start(), model.encoder.start()
        search, found, samples = self._start(1), Hypothesis(), 0
        for block in blocks:
            samples += len(block)
            mel = model.features.push(torch.from_numpy(block).to(model.device), features)
            encoded = self._prompted(model.encoder.step(self._cast(mel[None]), encoder, plan))
            found.extend(self.search.decode(encoded, None, search)[0])
        mel = model.features.finish(features)
        encoded = model.encoder.step(self._cast(mel[None]), encoder, plan, final=True)
        found.extend(self.search.decode(self._prompted(encoded), None, search)[0])
        found.extend(search.flush()[0])
        return found, samples / SAMPLE_RATE

    @torch.inference_mode()
    def _lockstep(
        self, recordings: Sequence[Samples], heard: Sequence[Hearing], lookahead: int, words: bool
    ) -> list[Transcript]:
        """Several recordings as one padded batch through the streaming encoder."""
        model, plan = self.model, self._plan(lookahead)
        mel, lengths = self._padded(recordings)
        state, search = model.encoder.start(len(recordings)), self._start(len(recordings))
        found = [Hypothesis() for _ in recordings]
        counts = model.encoder.subsampling.output_length(lengths)
        block = round(BLOCK_SECONDS / len(recordings) / model.config.features.hop_seconds)
        parts = mel.split(max(block, 1), dim=1)
        for i, part in enumerate(parts):
            done = state.frames
            final = i == len(parts) - 1
            encoded = model.encoder.step(part, state, plan, lengths=lengths, final=final)
            valid = (counts - done).clamp(0, encoded.shape[1])
            for row, new in enumerate(self.search.decode(self._prompted(encoded), valid, search)):
                found[row].extend(new)
        for row, rest in enumerate(search.flush()):
            found[row].extend(rest)
        return self._transcripts(found, recordings, heard, words)

    @torch.inference_mode()
    def _whole(
        self, recordings: Sequence[Samples], heard: Sequence[Hearing], words: bool
    ) -> list[Transcript]:
        """Recordings through an encoder of unlimited context, as one padded batch."""
        mel, lengths = self._padded(recordings)
        encoded, counts = self.model.encoder(mel, lengths)
        search = self._start(len(recordings))
        found = self.search.decode(self._prompted(encoded), counts, search)
        for row, rest in enumerate(search.flush()):
            found[row].extend(rest)
        return self._transcripts(found, recordings, heard, words)

    def _start(self, batch: int) -> SearchState:
        """The state of so many recordings, all with the phrases of this recognizer."""
        return self.search.start(batch, [self._trie] * batch)

    def _padded(self, recordings: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        mels = [
            self.model.features.whole(torch.from_numpy(samples).to(self.model.device))
            for samples in recordings
        ]
        mel = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
        lengths = torch.tensor([len(m) for m in mels], device=self.model.device)
        return self._cast(mel), lengths

    def _cast(self, mel: Tensor) -> Tensor:
        return mel.to(self.model.dtype)

    def _prompted(self, encoded: Tensor) -> Tensor:
        return encoded if self.model.prompt is None else self.model.prompt(encoded)

    def _transcripts(
        self,
        found: Sequence[Hypothesis],
        recordings: Sequence[Samples],
        heard: Sequence[Hearing],
        words: bool,
    ) -> list[Transcript]:
        return [
            self._transcript(hypothesis, len(recording) / SAMPLE_RATE, hearing.evidence, words)
            for hypothesis, recording, hearing in zip(found, recordings, heard, strict=True)
        ]

    def _hearing(self) -> Hearing:
        return Hearing(self.front_end, self.detector)

    def _transcript(
        self, found: Hypothesis, seconds: float, evidence: Evidence | None, with_words: bool
    ) -> Transcript:
        config, reasons = self.model.config, tuple[Reason, ...]()
        if evidence is not None:
            frame_seconds = config.frame_seconds
            verdict = weigh(found, self.tokenizer, frame_seconds, evidence, config.language)
            reasons = verdict.reasons
            kept = heard_words(found, self.tokenizer, frame_seconds, evidence)
            found = kept if verdict.keep else Hypothesis()
        words = words_from_tokens(
            self.tokenizer,
            found.tokens,
            found.frames,
            found.confidences,
            options=WordOptions(config.frame_seconds),
            duration=seconds,
        )
        segments = segments_from_words(words)
        if not with_words:
            segments = tuple(replace(segment, words=()) for segment in segments)
        return Transcript(
            text=self.tokenizer.decode(found.tokens).strip(),
            segments=segments,
            words=words if with_words else (),
            language=config.language,
            duration=seconds,
            model=self.name,
            reasons=reasons,
        )
