"""Whisper for recordings, of any layout and size.

Recordings come in pieces of at most 28 s, so no piece depends on the text of another one. Decoding
is greedy and batched; a piece of which the model is not sure, or whose text repeats itself, is
searched again with a beam, and one that loops or does not end even so is decoded in halves. Word
times come from the cross-attention, aligned by dynamic time warping as in the reference.

Shape legend: B batch, T mel frames, S encoder frames, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.audio.whisper_features import log_mel, mel_filters, scaled, window_of
from pianissimo.decoding.whisper import WhisperSearch, Written
from pianissimo.decoding.whisper_words import timed_words, token_starts
from pianissimo.errors import OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.models.checkpoints.whisper import (
    WhisperParts,
    is_whisper,
    load_whisper,
    read_ctranslate2,
    read_transformers,
)
from pianissimo.models.packed import Precision, packed
from pianissimo.models.whisper import FRAME_SECONDS, Whisper
from pianissimo.recognizers.base import BaseRecognizer, default_detector
from pianissimo.recognizers.family import Family, LoadOptions, Task
from pianissimo.recognizers.long_form import (
    Decoded,
    PieceDecoder,
    RecordingResult,
    main_language,
    transcript,
)
from pianissimo.text.loops import is_monotonous
from pianissimo.transcript import Transcript, Word

PIECES = {"cpu": 4, "cuda": 32}
"""Pieces that are decoded at once."""
NO_SPEECH_PROBABILITY = 0.6
UNSURE_LOG_PROBABILITY = -1.0
DOUBTFUL_LOG_PROBABILITY = -0.5
"""Mean of a token, below which greedy decoding is not trusted, and a beam tries again."""


@dataclass(frozen=True)
class SearchOptions:
    """How texts are searched: `beam` hypotheses where that pays, or always; 1 is greedy only."""

    beam: int = 5
    always: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.beam <= 64:
            raise OptionError(f"Whisper's beam is 1 to 64 hypotheses wide, not {self.beam}")


class WhisperRecognizer(BaseRecognizer):
    """A Whisper with its tokenizer.

    `language` is a code such as "de", or None to find it for each piece. `task` "translate" writes
    English whatever is spoken. `precision` packs the weights for the processor, None leaves them.
    Raises OptionError for what the model does not know.
    """

    model: Whisper

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
        self.front_end = front_end or FrontEnd(FAMILY.gain)
        self.detector = detector or default_detector()
        self.language, self.task = self._known_language(language), task
        if task not in ("transcribe", "translate"):
            raise OptionError(f"unknown task {task!r}; choose transcribe or translate")
        if task == "translate" and not self.rules.multilingual:
            raise OptionError(f"{self.name} knows English only and translates nothing")
        network = parts.network if precision is None else packed(parts.network, precision)
        self.encoder, self.decoder = network.encoder, network.decoder
        self.options = search or SearchOptions()
        self.search = WhisperSearch(
            self.decoder, self.rules, end=self.tokenizer.end, no_speech=self.tokenizer.no_speech
        )
        self._filters = mel_filters(self.model.config.n_mels).to(self.model.device)

    def _known_language(self, language: str | None) -> str | None:
        if language is None:
            return None if self.rules.multilingual else "en"
        code = language.lower()
        languages = self.tokenizer.languages if self.rules.multilingual else {"en": 0}
        if code not in languages:
            known = ", ".join(sorted(languages))
            raise OptionError(
                f"{self.name} does not know the language {language!r}; it has {known}"
            )
        return code

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        decoder = PieceDecoder(
            self.front_end,
            lambda pieces: self._decode(pieces, words),
            detector=self.detector,
            most=PIECES[self.model.device.type],
            language="en" if self.task == "translate" else self.language,
        )
        for progress in decoder.run(recordings):
            yield transcript(progress, self.name, self._language_of(progress), words)

    def _language_of(self, progress: RecordingResult) -> str | None:
        """The language of most seconds; that of the text where it was translated."""
        if self.task == "translate":
            return "en"
        return self.language or main_language(progress)

    # -- decoding ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def _decode(self, pieces: Sequence[Samples], words: bool) -> list[Decoded]:
        """Pieces of up to 30 s as one batch."""
        encoded = self.encode(pieces)
        languages = self._languages(encoded)
        prompts = [self._prompt(language) for language in languages]
        room = self.model.config.text_positions - len(prompts[0]) - 1
        limits = [min(room, max_new_tokens(len(piece) / SAMPLE_RATE)) for piece in pieces]
        written, no_speech = self._written(encoded, prompts, limits)
        starts: list[list[float]] = [[]] * len(pieces)
        if words:
            frames = [math.ceil(len(piece) / SAMPLE_RATE / FRAME_SECONDS) for piece in pieces]
            starts = self._starts(encoded, prompts, [w.tokens for w in written], frames)
        return [
            self._heard(row, silent, language, full=len(row.tokens) >= limit, starts=times)
            for row, silent, language, limit, times in zip(
                written, no_speech, languages, limits, starts, strict=True
            )
        ]

    def encode(self, pieces: Sequence[Samples]) -> Tensor:
        """Pieces of up to 30 s -> encoder frames (B, S, D), each heard as Whisper was trained."""
        seconds = self.model.config.audio_positions * FRAME_SECONDS
        rows = [window_of(torch.from_numpy(piece), seconds) for piece in pieces]
        samples = torch.cat(rows).to(self.model.device)
        mel = scaled(log_mel(samples, self._filters)).to(self.model.dtype)
        encoded: Tensor = self.encoder(mel)
        return encoded

    def _languages(self, encoded: Tensor) -> list[str | None]:
        if self.language is not None:
            return [self.language] * len(encoded)
        codes = {id: code for code, id in self.tokenizer.languages.items()}
        found = self.search.languages(encoded, self.tokenizer.start, list(codes))
        return [codes[id] for id in found]

    def _prompt(self, language: str | None) -> list[int]:
        return self.tokenizer.prompt(language if self.rules.multilingual else None, self.task)

    def _written(
        self, encoded: Tensor, prompts: Sequence[Sequence[int]], limits: Sequence[int]
    ) -> tuple[list[Written], list[float]]:
        """The text of each row, and its probability of no speech."""
        begun = self.search.begin(encoded, prompts, most_tokens=max(limits))
        if self.options.always and self.options.beam > 1:
            return self.search.beam(begun, limits, self.options.beam), begun.no_speech
        written = self.search.greedy(begun, limits)
        again = [i for i, text in enumerate(written) if self._is_doubtful(text)]
        if again and self.options.beam > 1:
            index = torch.tensor(again, device=encoded.device)
            fewer = [limits[i] for i in again]
            second = self.search.begin(
                encoded[index], [prompts[i] for i in again], most_tokens=max(fewer)
            )
            for i, text in zip(
                again, self.search.beam(second, fewer, self.options.beam), strict=True
            ):
                if text.ended or not written[i].ended:
                    written[i] = text
        return written, begun.no_speech

    def _is_doubtful(self, text: Written) -> bool:
        return (
            not text.ended
            or text.mean_log_probability < DOUBTFUL_LOG_PROBABILITY
            or is_monotonous(self.tokenizer.decode(text.tokens))
        )

    def _heard(
        self,
        written: Written,
        no_speech: float,
        language: str | None,
        *,
        full: bool,
        starts: Sequence[float],
    ) -> Decoded:
        """The text of a piece; without `starts` no word has times."""
        if is_silent(no_speech, written.mean_log_probability):
            return Decoded("", language=language)
        ids = tuple(written.tokens)
        script = "en" if self.task == "translate" else language
        words: tuple[Word, ...] = ()
        if starts:
            words = timed_words(self.tokenizer.decode, ids, written.log_probs, starts, script)
        text = self.tokenizer.decode(ids).strip()
        mean, ended = written.mean_log_probability, written.ended
        return Decoded(text, ids, mean, full and not ended, words, language, ended)

    def _starts(
        self,
        encoded: Tensor,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        frames: Sequence[int],
    ) -> list[list[float]]:
        """When each token begins, in seconds, and at last when the text ends."""
        if not any(texts):
            return [[] for _ in texts]
        weights = self.search.attention(encoded, prompts, texts)
        return [
            token_starts(each[..., :count], self.rules.median_width, len(prompt) - 1)
            if text
            else []
            for each, prompt, text, count in zip(weights, prompts, texts, frames, strict=True)
        ]


def is_silent(no_speech: float, mean_log_probability: float) -> bool:
    """Whether the model predicts no speech and is unsure of its text, which is then dropped."""
    return no_speech > NO_SPEECH_PROBABILITY and mean_log_probability < UNSURE_LOG_PROBABILITY


def read_parts(folder: Path) -> WhisperParts:
    """A Whisper of any layout: our own, of CTranslate2, or of Transformers. Errors as theirs."""
    if is_whisper(folder):
        return load_whisper(folder)
    if (folder / "model.bin").is_file():
        return read_ctranslate2(folder)
    return read_transformers(folder)


def read_whisper(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    int8: bool = False,
    language: str | None = None,
    task: Task = "transcribe",
    search: SearchOptions | None = None,
) -> WhisperRecognizer:
    """Read a folder of Whisper; `int8` computes its matrices in 8 bits, on a processor.

    Raises CheckpointError for a damaged or incomplete folder, OptionError for a language or task
    that the model does not know, or a precision that the machine does not have.
    """
    if int8 and device.type != "cpu":
        raise OptionError("int8 is for the CPU; on a GPU use bfloat16")
    parts = read_parts(folder)
    parts.network.to(device=device, dtype=dtype)
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
        options.dtype or torch.float32,
        int8=options.int8,
        language=options.language,
        task=options.task or "transcribe",
    )


FAMILY = Family(
    name="whisper",
    read=_read,
    gain="on",
    model_types=("whisper",),
    layout=is_whisper,
    int8=True,
    tasks=("transcribe", "translate"),
)
