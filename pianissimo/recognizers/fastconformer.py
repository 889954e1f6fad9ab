"""FastConformer models, the native family: recordings, batches and live streams.

Streaming models transcribe a recording block by block, so memory does not grow with its length and
the block size changes nothing. Models with unlimited context need the whole recording.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pianissimo.audio.features import MelFeatures
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.gain import GainMode
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.hotwords import Boost, PhraseTrie, make_trie
from pianissimo.decoding.search import Decoding, Head, make_search
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.engine.live_model import LiveModel, live_model
from pianissimo.engine.segmented import SegmentedStream
from pianissimo.engine.single import SingleStream, open_single
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.hallucination.evidence import Intake, Reason
from pianissimo.hallucination.verdict import supported_words, weigh
from pianissimo.models.asr import AsrModel
from pianissimo.models.checkpoints.format import recognize_format
from pianissimo.models.checkpoints.huggingface import read_huggingface
from pianissimo.models.checkpoints.model_folder import load_model
from pianissimo.models.checkpoints.nemo import read_nemo
from pianissimo.models.fastconformer import ChunkPlan
from pianissimo.models.packed import packed
from pianissimo.protocols import Capabilities, StreamRecognizer
from pianissimo.recognizers.base import BaseRecognizer, default_detector
from pianissimo.recognizers.family import Family, LoadOptions
from pianissimo.recognizers.passages import OnsetFinder, Passages
from pianissimo.streaming.endpoint import (
    ENDPOINT,
    ONSET,
    WATCHDOG,
    EndpointRules,
    OnsetRules,
    WatchdogRules,
)
from pianissimo.streaming.grid import ChunkGrid
from pianissimo.streaming.live import LiveOptions
from pianissimo.text.tokenizer import Tokenizer, main_language
from pianissimo.text.words import WordOptions, segments_from_words, words_from_tokens
from pianissimo.transcript import Transcript

LIVE_LATENCY_MS = 160
"""The latency mode of a stream that does not ask for one, or the model's next longer mode."""


class NativeRecognizer(BaseRecognizer):
    """A FastConformer model with its tokenizer.

    `head` chooses the head of a hybrid model ("transducer" or "ctc"). `decoding` chooses the
    search; by default it is greedy for streams, and for recordings what the model's configuration
    says. `front_end` levels audio before the model. With a `detector` the hallucination filter
    drops text that the audio does not support.
    """

    model: AsrModel
    block_seconds: ClassVar[float] = 20.0
    hotwords: ClassVar[bool] = True
    onset: OnsetRules | None = ONSET
    """Where recordings are heard from a fresh state; None turns that off."""

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
        self.model, self.name, self.tokenizer = model.eval(), model.config.name, tokenizer
        self.front_end, self.detector = front_end, detector
        self.language = model.config.language
        self.lookaheads = model.config.latencies_ms if model.config.streams else {}
        """The encoder's lookahead in each latency mode; none for a model of unlimited context."""
        self.latencies_ms = tuple(self.lookaheads)
        self.frame_seconds = model.config.frame_seconds
        self._word_options = WordOptions(self.frame_seconds)
        self.vocabulary = Vocabulary.of_tokenizer(tokenizer)
        self.live_search = make_search(model, head, decoding, self.vocabulary)
        self.search, beam = self.live_search, model.config.beam
        if decoding is None and beam > 1 and isinstance(self.live_search, GreedySearch):
            self.search = make_search(model, head, Decoding(beam), self.vocabulary)
        self.trie: PhraseTrie | None = None
        self.prompt = model.config.prompt(None)
        """The language prompt of recordings; 0 for a model without prompts."""
        self._plans: dict[int, ChunkPlan] = {}

    @property
    def capabilities(self) -> Capabilities:
        streams = bool(self.latencies_ms)
        return Capabilities(
            self.latencies_ms,
            batched_streams=streams,
            saved_streams=streams and isinstance(self.live_search, GreedySearch),
            batched_recordings=True,
            hotwords=True,
            gain=True,
        )

    @property
    def parameter_count(self) -> int:
        return self.model.parameter_count()

    @property
    def device(self) -> str:
        return str(self.model.device)

    @property
    def dtype(self) -> str:
        return str(self.model.dtype)

    def boosted(self, boost: Boost) -> "NativeRecognizer":
        """The same recognizer, on the same weights, with these hotwords.

        Raises OptionError for a hotword that the model cannot boost.
        """
        recognizer = copy.copy(self)
        recognizer.trie = make_trie(boost, self.vocabulary)
        return recognizer

    def in_language(self, language: str) -> "NativeRecognizer":
        """The same recognizer, on the same weights, for recordings and streams in a language.

        Raises OptionError for a language that the model does not have.
        """
        recognizer = copy.copy(self)
        config = self.model.config.with_language(language)
        recognizer.prompt, recognizer.language = config.prompt(None), config.language
        return recognizer

    # -- recordings --------------------------------------------------------------------------------

    @torch.inference_mode()
    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        longest = max(self.lookaheads.values(), default=None)
        lookahead = longest if latency_ms is None else self.lookaheads[latency_ms]
        if len(recordings) > 1 or lookahead is None:
            yield from self._batch(recordings, words, lookahead)
            return
        # One recording: read, level, features, encode, search; then filter and words.
        intake = Intake(self.front_end, self.detector)
        leveled = ((intake.push(block), block is None) for block in chain(recordings[0], [None]))
        onsets = None if self.onset is None else OnsetFinder(self.onset, intake, self.detector)
        blocks = (
            (samples, [] if onsets is None else onsets.push(samples, last=last), last)
            for samples, last in leveled
        )
        yield self._transcript(self._decode_passages(blocks, lookahead), intake, words)

    def _decode_passages(
        self, blocks: Iterable[tuple[Samples, Iterable[int], bool]], lookahead: int
    ) -> Hypothesis:
        """The tokens of a recording; a block is (samples, onsets in them, whether it is the last).

        A new passage, with a fresh state, begins shortly before speech that follows a long pause.
        """
        passages = Passages(self._grid(lookahead), self.onset or ONSET)
        decoder, result = _PassageDecoder(self, lookahead), Hypothesis()
        for samples, onsets, last in blocks:
            passages.push(samples, onsets, last=last)
            while (stop := passages.pending) is not None:
                result.extend(decoder.push(passages.read(stop)))
                result.extend(decoder.search.flush()[0])
                end = (result.frames[-1] + 1) * self._frame_samples if result.frames else 0
                if (start := passages.decide(end)) is not None:
                    decoder = _PassageDecoder(self, lookahead, start // self._frame_samples)
            result.extend(decoder.push(passages.read(), last=last))
        result.extend(decoder.search.flush()[0])
        return result

    def _batch(
        self, recordings: Sequence[Iterable[Samples]], words: bool, lookahead: int | None
    ) -> Iterator[Transcript]:
        """Recordings as one padded batch of their passages; `lookahead` None is an encoder of
        unlimited context."""
        intakes = [Intake(self.front_end, self.detector) for _ in recordings]
        samples: list[Samples] = []
        onset_windows: list[list[int]] = []
        for intake, blocks in zip(intakes, recordings, strict=True):
            onsets = None
            if self.onset is not None and lookahead is not None and self.model.config.streams:
                onsets = OnsetFinder(self.onset, intake, self.detector)
            parts, windows = [], list[int]()
            for block in chain(blocks, [None]):
                parts.append(intake.push(block))
                if onsets is not None:
                    windows += onsets.push(parts[-1], last=block is None)
            samples.append(np.concatenate(parts))
            onset_windows.append(windows)
        passages = [
            [(0, whole)]
            if lookahead is None or not windows
            else self._cut(whole, windows, lookahead)
            for whole, windows in zip(samples, onset_windows, strict=True)
        ]
        rows = iter(self._decode([row for rows in passages for row in rows], lookahead))
        for whole, windows, cut, intake in zip(
            samples, onset_windows, passages, intakes, strict=True
        ):
            results = [next(rows) for _ in cut]
            starts = [start for start, _ in cut[1:]]
            joined, early = Hypothesis(), False
            for result, start in zip(results, [*starts, None], strict=True):
                joined.extend(result)
                frame = None if start is None else start // self._frame_samples
                early = early or (frame is not None and joined.frames[-1:] >= [frame])
            if early and lookahead is not None:
                # Words where the detector heard none: no fresh state begins behind them.
                joined = self._decode_passages([(whole, windows, True)], lookahead)
            yield self._transcript(joined, intake, words)

    def _cut(
        self, samples: Samples, onsets: Iterable[int], lookahead: int
    ) -> list[tuple[int, Samples]]:
        """The passages of a recording, if a fresh state begins at each onset that allows it: where
        each begins, and its samples."""
        passages, rows = Passages(self._grid(lookahead), self.onset or ONSET), []
        passages.push(samples, onsets, last=True)
        while (stop := passages.pending) is not None:
            begin = passages.origin
            if passages.decide(0) is not None:
                rows.append((begin, samples[begin:stop]))
        return [*rows, (passages.origin, samples[passages.origin :])]

    def _decode(
        self, rows: Sequence[tuple[int, Samples]], lookahead: int | None
    ) -> list[Hypothesis]:
        """The tokens of passages, each with where it begins, as one padded batch."""
        model = self.model
        mels = [model.features.whole(torch.from_numpy(row).to(model.device)) for _, row in rows]
        lengths = torch.tensor([len(mel) for mel in mels], device=model.device)
        mel = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True).to(model.dtype)
        search = self.search.start(len(mels), [self.trie] * len(mels))
        search.frames += torch.tensor(
            [start // self._frame_samples for start, _ in rows], device=model.device
        )
        results = [Hypothesis() for _ in mels]
        for encoded, valid in self._encoded(mel, lengths, lookahead):
            encoded = self.conditioned(encoded)
            for result, new in zip(
                results, self.search.decode(encoded, valid, search), strict=True
            ):
                result.extend(new)
        for result, rest in zip(results, search.flush(), strict=True):
            result.extend(rest)
        return results

    def conditioned(self, encoded: Tensor) -> Tensor:
        """(B, S, D) encoder frames as the heads get them, in the language of recordings."""
        if self.model.prompt is None:
            return encoded
        prompts = torch.full((len(encoded),), self.prompt, device=encoded.device)
        return self.model.prompt(encoded, prompts)

    def _encoded(
        self, mel: Tensor, lengths: Tensor, lookahead: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, T, F), (B,) -> (B, S, D) encoder frames and the (B,) valid ones, part by part."""
        encoder = self.model.encoder
        if lookahead is None:
            yield encoder(mel, lengths)
            return
        state, plan = encoder.start(len(mel)), self.plan(lookahead)
        counts = encoder.subsampling.output_length(lengths)
        size = round(self.block_seconds / len(mel) / self.model.config.features.hop_seconds)
        parts = mel.split(max(size, 1), dim=1)
        for i, part in enumerate(parts):
            done = state.frames
            final = i == len(parts) - 1
            encoded = encoder.step(part, state, plan, lengths=lengths, final=final)
            yield encoded, (counts - done).clamp(0, encoded.shape[1])

    @property
    def _frame_samples(self) -> int:
        """Samples of an encoder frame."""
        config = self.model.config
        return config.encoder.subsampling_factor * config.features.hop_samples

    def _grid(self, lookahead: int) -> ChunkGrid:
        return self.model.config.grid(lookahead)

    def plan(self, lookahead: int) -> ChunkPlan:
        """The attention plan of a lookahead, made once."""
        if lookahead not in self._plans:
            self._plans[lookahead] = self.model.encoder.plan(lookahead)
        return self._plans[lookahead]

    def _transcript(self, result: Hypothesis, intake: Intake, with_words: bool) -> Transcript:
        """What the evidence supports of a result, as text, words and segments."""
        tags, reasons = self.tokenizer.language_tags, tuple[Reason, ...]()
        language = main_language(result.tokens, tags) or self.language
        result = result.without(tags)
        evidence, seconds = intake.evidence, intake.seconds
        if evidence is not None:
            context = (self.tokenizer, self.frame_seconds, evidence)
            verdict = weigh(result, *context, language)
            result = supported_words(result, *context) if verdict.keep else Hypothesis()
            reasons = verdict.reasons
        words = words_from_tokens(
            self.tokenizer,
            result.tokens,
            result.frames,
            result.confidences,
            options=self._word_options,
            duration=seconds,
        )
        segments = segments_from_words(words)
        if not with_words:
            words, segments = (), tuple(replace(segment, words=()) for segment in segments)
        text = self.tokenizer.decode(result.tokens).strip()
        return Transcript(text, segments, words, language, seconds, self.name, reasons)

    def transcribe_together(self, recordings: Sequence[Samples]) -> Iterator[Transcript]:
        """Transcribe arrays (n,) of mono float32 at 16 kHz; results in the order given.

        A GPU gets them as one batch; on a CPU, where padding only costs, they run one by one.
        """
        size = 1 if self.model.device.type == "cpu" else max(len(recordings), 1)
        for first in range(0, len(recordings), size):
            batch = [[samples] for samples in recordings[first : first + size]]
            yield from self.recognize(batch, True)

    # -- live --------------------------------------------------------------------------------------

    def stream(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        watchdog: WatchdogRules | None = WATCHDOG,
        partials: StreamRecognizer | None = None,
        boost: Boost | None = None,
        language: str | None = None,
        second_pass: bool | None = None,
    ) -> SingleStream | SegmentedStream:
        """Open a live stream of samples at `sample_rate` Hz; an `Engine` serves many at once.

        `latency_ms` is one of `latencies_ms`, by default the shortest of 160 ms or more. `endpoint`
        says when an utterance is over, `watchdog` when to decode the last seconds again; None turns
        them off. `boost` is a list of hotwords. A model without latency modes runs on the segments
        between pauses; `partials` is then a streaming recognizer that writes the partials.
        `language` is the one spoken, for a model with language prompts. Raises OptionError for an
        unknown mode or language, for `partials` of a streaming model, for a hotword that the model
        cannot boost, or for a `second_pass`, which the model does not have.
        """
        if not self.latencies_ms and latency_ms is None:
            if second_pass:
                raise OptionError(f"{self.name} has no second pass; remove second_pass")
            if language is not None and language != self.language:
                raise OptionError(
                    f"{self.name} is an offline model: choose its language when it is loaded"
                )
            return SegmentedStream(
                self.boosted(boost) if boost else self,
                sample_rate=sample_rate,
                endpoint=endpoint,
                partials=partials,
            )
        if partials is not None:
            raise OptionError(f"{self.name} writes partials by itself; remove partials")
        return open_single(
            self,
            latency_ms=latency_ms,
            sample_rate=sample_rate,
            endpoint=endpoint,
            watchdog=watchdog,
            boost=boost,
            language=language,
            second_pass=second_pass,
        )

    @property
    def stream_tokenizer(self) -> Tokenizer:
        """The vocabulary of live streams."""
        return self.tokenizer

    def live_trie(self, boost: Boost | None) -> PhraseTrie | None:
        """The hotwords of a stream; OptionError for those that the model cannot boost."""
        return make_trie(boost, self.vocabulary)

    def live_options(
        self,
        lookahead: int,
        endpoint: EndpointRules | None,
        watchdog: WatchdogRules | None,
        *,
        guard: bool = True,
        language: str | None = None,
        second_pass: bool | None = None,
    ) -> LiveOptions:
        """The options of a stream. `guard` needs a detector and leveled samples."""
        if second_pass:
            raise OptionError(f"{self.name} has no second pass; remove second_pass")
        leveled = self.front_end is not None and self.front_end.mode != "off"
        config, prompt = self.model.config, self.prompt
        if language is not None:
            config = config.with_language(language)
            prompt = config.prompt(None)
        return LiveOptions(
            lookahead,
            endpoint,
            watchdog,
            self.detector,
            guard=guard and leveled and self.detector is not None,
            language=self.language if language is None else config.language,
            prompt=None if config.prompts is None else prompt,
        )

    def live_lookahead(self, latency_ms: int | None) -> int:
        """The lookahead of a stream in that latency mode; see `stream`."""
        modes = self.latencies_ms
        if not modes:
            raise OptionError(
                f"{self.name} is an offline model and cannot stream; choose a streaming model"
            )
        if latency_ms is None:
            latency_ms = min((m for m in modes if m >= LIVE_LATENCY_MS), default=modes[-1])
        return self.model.config.lookahead(latency_ms) or 0

    @cached_property
    def live(self) -> LiveModel:
        """The model prepared for live streams, shared by all of them."""
        return live_model(self.model, self.live_search)


class _PassageDecoder:
    """The state of features, encoder and search in one passage that begins at `first_frame`."""

    def __init__(self, recognizer: NativeRecognizer, lookahead: int, first_frame: int = 0) -> None:
        self._recognizer, self._plan = recognizer, recognizer.plan(lookahead)
        self._features = recognizer.model.features.start()
        self._encoder = recognizer.model.encoder.start()
        self.search = recognizer.search.start(1, [recognizer.trie])
        self.search.frames += first_frame

    def push(self, samples: Samples, *, last: bool = False) -> Hypothesis:
        """Decode the next samples (n,) and return the settled tokens; `last` ends the passage."""
        model = self._recognizer.model
        if len(samples) == 0 and not last:
            return Hypothesis()
        mel = model.features.push(torch.from_numpy(samples).to(model.device), self._features)
        if last:
            mel = torch.cat([mel, model.features.finish(self._features)])
        encoded = model.encoder.step(
            mel[None].to(model.dtype), self._encoder, self._plan, final=last
        )
        encoded = self._recognizer.conditioned(encoded)
        [result] = self._recognizer.search.decode(encoded, None, self.search)
        return result


# -- checkpoints -----------------------------------------------------------------------------------


def read_native(path: Path, device: torch.device, options: LoadOptions) -> NativeRecognizer:
    """Read a checkpoint of this package, of NeMo or of Transformers."""
    network, tokenizer = read_model(path)
    if options.language is not None:
        network.set_language(options.language)
    if tokenizer.vocab_size != network.config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, the model "
            f"{network.config.vocab_size}: they belong to different models"
        )
    network.to(device=device, dtype=options.dtype or torch.float32)
    # Spectra need more than half precision, and so do the constants they are made with.
    network.features = MelFeatures(network.config.features).to(device)
    if options.int8:
        if device.type != "cpu":
            raise OptionError("int8 is for the CPU; on a GPU use bfloat16")
        network.encoder = packed(network.encoder, "int8")
        if network.predictor is not None:
            network.predictor = packed(network.predictor, "int8")
    # The recipes of this package train on copies at many levels.
    gain: GainMode = "auto" if recognize_format(path) == "pianissimo" else FAMILY.gain
    return NativeRecognizer(
        network,
        tokenizer,
        head=options.head,
        front_end=FrontEnd(gain),
        detector=default_detector(),
        decoding=options.decoding,
    )


def read_model(path: Path) -> tuple[AsrModel, Tokenizer]:
    """Read the network and tokenizer of a checkpoint; its content says of which format it is."""
    readers = {"pianissimo": load_model, "nemo": read_nemo, "huggingface": read_huggingface}
    kind = recognize_format(path)
    if kind is None:
        raise CheckpointError(
            f"{path} is no model that we know: expected a .nemo file, an ESPnet2 pack (.zip with "
            "meta.yaml), a folder as Transformers, ESPnet2, CTranslate2 or sherpa-onnx lay it out, "
            "or a name from `pianissimo models list`"
        )
    return readers[kind](path)


FAMILY = Family(
    name="fastconformer",
    read=read_native,
    # A log-mel with a guard term loses quiet bins, so Parakeet and Nemotron gain most.
    gain="on",
    int8=True,
    heads=("transducer", "ctc"),
    decoding=True,
)
