"""Whisper for recordings, of any layout and size.

Recordings come in pieces of at most 28 s, so no piece depends on the text of another one. Decoding
is greedy and batched, and a piece is encoded with little silence behind it. A piece of which the
model is not sure, whose text repeats itself, or whose attention goes back to an earlier place is
encoded in 30 s and searched again with a beam; one that loops or does not end even so is decoded in
halves. Word times come from the cross-attention, aligned by dynamic time warping as in the
reference.

Shape legend: B batch, T mel frames, S encoder frames, V vocabulary.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.audio.whisper_features import log_mel, mel_filters, scaled
from pianissimo.decoding.hotwords import Boost, PhraseTrie, make_trie
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.decoding.whisper import (
    WhisperSearch,
    Written,
    again_from,
    timed_words,
    token_starts,
)
from pianissimo.engine.live_model import LiveModel
from pianissimo.engine.segmented import SegmentedStream
from pianissimo.engine.single import SingleStream, open_single
from pianissimo.errors import OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.models.checkpoints.whisper import (
    WhisperParts,
    is_ctranslate2,
    is_whisper,
    load_whisper,
    read_ctranslate2,
    read_transformers,
)
from pianissimo.models.packed import Precision, computes_int8, packed
from pianissimo.models.whisper import FRAME_SECONDS, Whisper
from pianissimo.protocols import Capabilities, StreamRecognizer
from pianissimo.recognizers.base import BaseRecognizer, default_detector
from pianissimo.recognizers.family import Family, LoadOptions, Task
from pianissimo.recognizers.long_form import (
    Decoded,
    PieceDecoder,
)
from pianissimo.recognizers.whisper_live import (
    chosen_lookahead,
    live_lookaheads,
    live_segments,
    transcribed_live,
    whisper_live_model,
)
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules, WatchdogRules
from pianissimo.streaming.live import LiveOptions
from pianissimo.text.loops import is_monotonous, letters
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import Transcript, Word

PIECES = {"cpu": 4, "cuda": 32}
"""Pieces that are decoded at once."""
NO_SPEECH_PROBABILITY, UNSURE_LOG_PROBABILITY = 0.6, -1.0
"""Text is dropped where no speech is likelier than the first, and its tokens are less likely than
the second in the mean."""
DOUBTFUL_LOG_PROBABILITY = -0.5
"""Mean of a token, below which greedy decoding is not trusted, and a beam tries again."""


@dataclass(frozen=True)
class SearchOptions:
    """How texts are searched: `beam` hypotheses where that pays, or always; 1 is greedy only.

    On a processor a piece is first heard with `tail_seconds` of silence behind it, and in the 30 s
    of a published Whisper only where its text is doubtful; None always takes the 30 s.
    """

    beam: int = 5
    always: bool = False
    tail_seconds: float | None = 5.0

    def __post_init__(self) -> None:
        if not 1 <= self.beam <= 64:
            raise OptionError(f"Whisper's beam is 1 to 64 hypotheses wide, not {self.beam}")
        if self.tail_seconds is not None and not 0 <= self.tail_seconds <= 30:
            raise OptionError(f"Whisper hears 0 to 30 s behind a piece, not {self.tail_seconds}")


class WhisperRecognizer(BaseRecognizer):
    """A Whisper with its tokenizer.

    `language` is a code such as "de", or None to find it for each piece. `task` "translate" writes
    English whatever is spoken. `precision` packs the weights for the processor, None leaves them.
    Raises OptionError for what the model does not know.
    """

    model: Whisper
    hotwords = True
    trie: PhraseTrie | None = None
    """The hotwords of recordings."""

    def __init__(
        self,
        parts: WhisperParts,
        *,
        language: str | None = None,
        task: Task = "transcribe",
        precision: Precision | None = "float32",
        search: SearchOptions | None = None,
        front_end: FrontEnd | None = None,
        detector: VoiceDetector | None = None,
    ) -> None:
        self.parts, self.tokenizer, self.rules = parts, parts.tokenizer, parts.rules
        self.model, self.name = parts.network, parts.name
        self._device = self.model.device
        self.front_end = front_end or FrontEnd(FAMILY.gain)
        self.detector = detector or default_detector()
        self.language, self.task = self._known_language(language), task
        if task not in ("transcribe", "translate"):
            raise OptionError(f"unknown task {task!r}; choose transcribe or translate")
        if task == "translate" and not self.rules.multilingual:
            raise OptionError(f"{self.name} knows English only and translates nothing")
        network = parts.network if precision is None else packed(parts.network, precision)
        self.encoder, self.decoder = network.encoder, network.decoder
        self.precision: Precision | None = precision
        self.options = search or SearchOptions()
        self.search = WhisperSearch(
            self.decoder, self.rules, end=self.tokenizer.end, no_speech=self.tokenizer.no_speech
        )
        self._filters = mel_filters(self.model.config.n_mels).to(self._device)
        # A translation does not follow the order of the speech: it is live from pause to pause.
        self.lookaheads = live_lookaheads(parts.live) if task == "transcribe" else {}
        self.latencies_ms = tuple(self.lookaheads)

    def _known_language(self, language: str | None) -> str | None:
        if language is None:
            return None if self.rules.multilingual else "en"
        code = str(language).lower()  # what is no string is no language either
        languages = self.tokenizer.languages if self.rules.multilingual else {"en": 0}
        if code not in languages:
            known = ", ".join(sorted(languages))
            raise OptionError(
                f"{self.name} does not know the language {language!r}; it has {known}"
            )
        return code

    def in_language(self, language: str) -> Self:
        """The same recognizer, on the same weights, for recordings and streams in a language.

        Raises OptionError for a language that the model does not know.
        """
        recognizer = copy.copy(self)
        recognizer.language = self._known_language(language)
        return recognizer

    def boosted(self, boost: Boost) -> Self:
        """The same recognizer, on the same weights, with these hotwords.

        Raises OptionError for a hotword that the model cannot boost.
        """
        recognizer = copy.copy(self)
        recognizer.trie = make_trie(boost, self.vocabulary)
        return recognizer

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        if latency_ms is not None:
            boost = self.trie.phrases if self.trie else None
            return (
                transcribed_live(self, blocks, latency_ms, words, boost) for blocks in recordings
            )
        decoder = PieceDecoder(
            self.front_end,
            lambda pieces: self._decode(pieces, words),
            detector=self.detector,
            most=PIECES[self._device.type],
            language="en" if self.task == "translate" else self.language,
        )
        return decoder.run(recordings, self.name, words)

    # -- decoding ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def _decode(self, pieces: Sequence[Samples], words: bool) -> list[Decoded]:
        """Pieces of up to 30 s as one batch."""
        cross = self._cross(pieces, self.options.tail_seconds)
        languages: Sequence[str | None] = [self.language] * len(pieces)
        if self.language is None:
            languages = self._languages(cross)
        rows = []
        for piece, heard, language in zip(pieces, cross, languages, strict=True):
            known = language if self.rules.multilingual else None
            prompt = self.tokenizer.prompt(known, self.task)
            room = self.model.config.text_positions - len(prompt) - 1
            limit = min(room, max_new_tokens(len(piece) / SAMPLE_RATE))
            rows.append(_Row(piece, heard, language, prompt, limit))
        self._search(rows, self.options.beam if self.options.always else 1, words)
        again = [row for row in rows if self._is_doubtful(row)]
        if again:
            whole = self._cross([row.piece for row in again], None)
            for row, heard in zip(again, whole, strict=True):
                row.cross = heard
            self._search(again, self.options.beam, words)
        return [self._heard(row, words) for row in rows]

    def _cross(self, pieces: Sequence[Samples], tail_seconds: float | None) -> list[Tensor]:
        """What the decoder attends to, for each piece of up to 30 s: (2, layers, H, S, K).

        Zeros stand behind a piece: `tail_seconds`, or as many as fill the 30 s of the training.
        """
        window = self.model.config.audio_positions * FRAME_SECONDS
        batches = [[piece] for piece in pieces]
        if self._device.type != "cpu":  # one batch of whole windows is the quickest
            batches, tail_seconds = [list(pieces)], None
        found: list[Tensor] = []
        for batch in batches:
            seconds = window
            if tail_seconds is not None:
                seconds = min(window, math.ceil(len(batch[0]) / SAMPLE_RATE + tail_seconds))
            samples = torch.zeros(len(batch), round(seconds * SAMPLE_RATE))
            for row, piece in zip(samples, batch, strict=True):
                row[: len(piece)] = torch.from_numpy(piece[: len(row)])
            mel = scaled(log_mel(samples.to(self._device), self._filters))
            encoded = self.encoder(mel.to(self.encoder.positions.dtype))
            found += self.decoder.cross(encoded).unbind(2)
        return found

    def _languages(self, cross: Sequence[Tensor]) -> list[str]:
        """The likeliest language of each piece."""
        codes = {id: code for code, id in self.tokenizer.languages.items()}
        state = self.decoder.start_from(cross, 1)
        return [codes[id] for id in self.search.languages(state, self.tokenizer.start, list(codes))]

    def _search(self, rows: "Sequence[_Row]", beam: int, words: bool) -> None:
        """Write the texts of rows; a text that ended is kept if the new one does not end."""
        cross, prompts = [row.cross for row in rows], [row.prompt for row in rows]
        limits = [row.limit for row in rows]
        room = max(map(len, prompts)) + max(limits)
        begun = self.search.read(self.decoder.start_from(cross, room), prompts)
        if beam > 1:
            texts = self.search.beam(begun, limits, beam, self.trie)
        else:
            texts = self.search.greedy(begun, limits, self.trie)
        whole = self.model.config.audio_positions
        for row, text, no_speech in zip(rows, texts, begun.no_speech, strict=True):
            row.no_speech = no_speech
            row.shortened = row.cross.shape[3] < whole
            if text.ended or not row.written.ended:
                row.written = text
        if words or any(row.shortened for row in rows):
            inputs = [[*row.prompt, *row.written.tokens, self.tokenizer.end] for row in rows]
            state = self.decoder.start_from(cross, max(map(len, inputs)))
            for row, looks in zip(rows, self.search.looks(state, inputs), strict=True):
                frames = math.ceil(len(row.piece) / SAMPLE_RATE / FRAME_SECONDS)
                row.looks = looks[..., :frames] if words or row.shortened else None

    def _is_doubtful(self, row: "_Row") -> bool:
        """Whether a text is searched again: whole, and with a beam."""
        if not row.shortened and (self.options.beam == 1 or self.options.always):
            return False
        if row.shortened and row.looks is not None:
            if again_from(row.looks[:, len(row.prompt) - 1 : -1]) is not None:
                return True
        text = row.written
        return (
            not text.ended
            or text.mean_log_probability < DOUBTFUL_LOG_PROBABILITY
            or is_monotonous(self.tokenizer.decode(text.tokens))
        )

    def _heard(self, row: "_Row", words: bool) -> Decoded:
        """The text of a piece, with the times of its words or without. Marks alone, which music is
        heard as, are no text."""
        written, mean = row.written, row.written.mean_log_probability
        text = self.tokenizer.decode(written.tokens).strip()
        silent = row.no_speech > NO_SPEECH_PROBABILITY and mean < UNSURE_LOG_PROBABILITY
        if silent or not letters(text):
            return Decoded("", language=row.language)
        ids = tuple(written.tokens)
        script = "en" if self.task == "translate" else row.language
        timed: tuple[Word, ...] = ()
        if words and ids:
            assert row.looks is not None
            starts = token_starts(row.looks, self.rules.median_width, len(row.prompt) - 1)
            timed = timed_words(self.tokenizer.decode, ids, written.log_probs, starts, script)
        cut_off = len(ids) >= row.limit and not written.ended
        return Decoded(text, ids, mean, cut_off, timed, row.language, written.ended)

    # -- live --------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        live = bool(self.latencies_ms)
        return replace(
            super().capabilities,
            batched_streams=live,
            saved_streams=live,
            whole_recordings=True,
            second_pass=live,
        )

    @cached_property
    def live(self) -> LiveModel:
        """The model prepared for live streams, shared by all of them."""
        live_encoder = self.parts.live_encoder
        if live_encoder is not None and self.precision is not None:
            live_encoder = packed(live_encoder, self.precision)
        return whisper_live_model(
            self.parts,
            self.encoder,
            live_encoder,
            self.search,
            language=self.language,
            task=self.task,
        )

    @cached_property
    def stream_tokenizer(self) -> Tokenizer:
        """The vocabulary of live streams."""
        return self.tokenizer.for_streams()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The text of each token that the network can write."""
        known = Vocabulary.of_tokenizer(self.stream_tokenizer)
        size = self.model.config.vocab_size
        return replace(known, pieces=(*known.pieces, *[""] * size)[:size])

    def stream(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        partials: StreamRecognizer | None = None,
        boost: Boost | None = None,
        language: str | None = None,
        second_pass: bool | None = None,
    ) -> SingleStream | SegmentedStream:
        """Open a live stream of samples at `sample_rate` Hz; an `Engine` serves many at once.

        `latency_ms` is one of `latencies_ms`, by default the usual one of the weights. `endpoint`
        says when an utterance is over; None ends it in pauses of 2 s. `language` is the one
        spoken, by default that of the recognizer. `boost` is a list of hotwords. With
        `second_pass`, the default, a final is decoded again from the utterance encoded whole;
        without it a final keeps the words of its partials. A translation is written from pause to
        pause, with `partials` of another recognizer. Raises OptionError for an unknown mode or
        language, and for a hotword that the model cannot write.
        """
        if not self.latencies_ms:
            if second_pass:
                raise OptionError(f"{self.name} has no second pass; remove second_pass")
            recognizer = self._configured(latency_ms, boost)
            return SegmentedStream(
                recognizer, sample_rate=sample_rate, endpoint=endpoint, partials=partials
            )
        if partials is not None:
            raise OptionError(f"{self.name} writes partials by itself; remove partials")
        return open_single(
            self,
            latency_ms=latency_ms,
            sample_rate=sample_rate,
            endpoint=endpoint,
            boost=boost,
            language=language,
            second_pass=second_pass,
        )

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
        leveled = self.front_end is not None and self.front_end.mode != "off"
        code = self.language if language is None else self._known_language(language)
        return LiveOptions(
            lookahead,
            endpoint,
            None,
            self.detector,
            guard=guard and leveled and self.detector is not None,
            language=code,
            prompt=self.live.decoder.prompt(code),
            segments=live_segments(self.model.config),
            second_pass=second_pass is not False,
        )

    def live_lookahead(self, latency_ms: int | None) -> int:
        """The lookahead of a stream in that latency mode; see `stream`."""
        return chosen_lookahead(self.name, self.lookaheads, self.parts.live, latency_ms)

    def _configured(self, latency_ms: int | None, boost: Boost | None) -> Self:
        if latency_ms is not None:
            self.live_lookahead(latency_ms)
        return super()._configured(latency_ms, boost)

    def live_trie(self, boost: Boost | None) -> PhraseTrie | None:
        """The hotwords of a stream; OptionError for those that the model cannot boost."""
        return make_trie(boost, self.vocabulary)


@dataclass
class _Row:
    """A piece on the way to its text.

    `cross` (2, layers, H, S, K) is what the decoder attends to, `shortened` whether that are
    less than 30 s, `looks` (heads, U, frames) where the alignment heads looked within the piece for
    prompt, text and end.
    """

    piece: Samples
    cross: Tensor
    language: str | None
    prompt: list[int]
    limit: int
    written: Written = field(default_factory=Written)
    no_speech: float = 0.0
    shortened: bool = False
    looks: Tensor | None = None


def read_parts(folder: Path) -> WhisperParts:
    """A Whisper of any layout: our own, of CTranslate2, or of Transformers. Errors as theirs."""
    if is_whisper(folder):
        return load_whisper(folder)
    if is_ctranslate2(folder):
        return read_ctranslate2(folder)
    return read_transformers(folder)


def read_whisper(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    int8: bool = False,
    language: str | None = None,
    task: Task = "transcribe",
    search: SearchOptions | None = None,
) -> WhisperRecognizer:
    """Read a folder of Whisper; `int8` computes its matrices in 8 bits, on a processor.

    Without `dtype` weights that are stored in 8 bits are computed in 8 bits on a processor that
    can, all others in float32. Raises CheckpointError for a damaged or incomplete folder,
    OptionError for a language or task that the model does not know, or a precision that the machine
    does not have.
    """
    if int8 and device.type != "cpu":
        raise OptionError("int8 is for the CPU; on a GPU use bfloat16")
    parts = read_parts(folder)
    if dtype is None and parts.int8 and device.type == "cpu":
        int8 = computes_int8()
    for network in filter(None, (parts.network, parts.live_encoder)):
        network.to(device=device, dtype=dtype or torch.float32)
    return WhisperRecognizer(
        parts,
        language=language,
        task=task,
        precision="int8" if int8 else "float32",
        search=search,
    )


def _read(folder: Path, device: torch.device, options: LoadOptions) -> WhisperRecognizer:
    return read_whisper(
        folder,
        device,
        options.dtype,
        int8=options.int8,
        language=options.language,
        task=options.task or "transcribe",
    )


def _has_layout(path: Path) -> bool:
    return is_whisper(path) or is_ctranslate2(path)


FAMILY = Family(
    name="whisper",
    read=_read,
    gain="on",
    model_types=("whisper",),
    layout=_has_layout,
    int8=True,
    tasks=("transcribe", "translate"),
)
