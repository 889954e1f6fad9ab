"""Whisper on CTranslate2 through faster-whisper: network, features and search are theirs.

Recordings come in pieces of at most 28 s that our detector chose, and the guards are ours: of the
package's own detector, its fallback to random sampling and its text from piece to piece nothing is
used. The search has a beam of five, its default.

The same folders are read by `whisper`, which comes first. To compute with CTranslate2, name this
family: `pianissimo.load(folder, families=[FAMILY])`.
"""

import logging
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.decoding.whisper import CLOSING, OPENING
from pianissimo.errors import CheckpointError, MissingExtraError, OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.models.checkpoints.config_json import read_json
from pianissimo.models.checkpoints.whisper import is_ctranslate2
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.recognizers.family import Family, LoadOptions, Task, Untyped
from pianissimo.recognizers.long_form import (
    Decoded,
    PieceDecoder,
)
from pianissimo.recognizers.whisper import NO_SPEECH_PROBABILITY, UNSURE_LOG_PROBABILITY
from pianissimo.transcript import Transcript, Word

BEAM = 5
PIECES = {"cpu": 1, "cuda": 16}
"""Pieces that are decoded at once where the language is known."""
POSITIONS = 448
"""Of a decoder of Whisper; CTranslate2 writes half as many tokens, as OpenAI's own search does."""
MODEL_FILE, TOKENIZER_FILE = "model.bin", "tokenizer.json"
_SPECIFICATION = "WhisperSpec"

_log = logging.getLogger(__name__)


class FasterWhisperRecognizer(BaseRecognizer):
    """A Whisper model of CTranslate2; `language` and `task` as for `WhisperRecognizer`."""

    model: Untyped

    def __init__(
        self, model: Untyped, *, name: str, language: str | None = None, task: Task = "transcribe"
    ) -> None:
        self.model, self.name, self.task = model, name, task
        self.multilingual = bool(model.model.is_multilingual)
        if task == "translate" and not self.multilingual:
            raise OptionError(f"{name} knows English only and translates nothing")
        self.language = self._known_language(language)
        self.front_end = FrontEnd(FAMILY.gain)

    def _known_language(self, language: str | None) -> str | None:
        if language is None:
            return None if self.multilingual else "en"
        known = [
            code
            for code in self.model.supported_languages
            if not self.multilingual or self.model.hf_tokenizer.token_to_id(f"<|{code}|>")
        ]
        if language.lower() not in known:
            raise OptionError(
                f"{self.name} does not know the language {language!r}; it has "
                f"{', '.join(sorted(known))}"
            )
        return language.lower()

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
            # A batch has one prompt, so pieces of unknown language run one by one.
            most=PIECES[self.model.model.device] if self.language else 1,
            language="en" if self.task == "translate" else self.language,
        )
        return decoder.run(recordings, self.name, words)

    def _decode(self, pieces: Sequence[Samples], words: bool) -> list[Decoded]:
        """Pieces of up to 30 s as one batch; in one language, that of the first piece."""
        from faster_whisper.audio import pad_or_trim
        from faster_whisper.tokenizer import Tokenizer
        from faster_whisper.transcribe import get_suppressed_tokens

        # The last frame lies behind the audio.
        features = [self.model.feature_extractor(np.asarray(piece))[:, :-1] for piece in pieces]
        encoded = self.model.encode(np.stack([pad_or_trim(each) for each in features]))
        language = self.language
        if language is None:
            [[(mark, _), *_], *_] = self.model.model.detect_language(encoded)
            language = str(mark).strip("<|>")
        tokenizer = Tokenizer(
            self.model.hf_tokenizer, self.multilingual, task=self.task, language=language
        )
        prompt = [*tokenizer.sot_sequence, tokenizer.no_timestamps]
        # The search itself has one limit for all: how a text ends would else depend on the batch.
        limits = [min(max_new_tokens(len(piece) / SAMPLE_RATE), POSITIONS // 2) for piece in pieces]
        found = self.model.model.generate(
            encoded,
            [prompt] * len(pieces),
            beam_size=BEAM,
            max_length=POSITIONS,
            return_scores=True,
            return_no_speech_prob=True,
            suppress_tokens=get_suppressed_tokens(tokenizer, [-1]),
        )
        texts = [
            list(result.sequences_ids[0][:limit])
            for result, limit in zip(found, limits, strict=True)
        ]
        timed: list[tuple[Word, ...]] = [()] * len(pieces)
        if words and any(texts):
            frames = [each.shape[-1] for each in features]
            timed = self._timed(tokenizer, texts, encoded, frames)
        return [
            self._decoded(tokenizer, result, ids, limit, times, language)
            for result, ids, limit, times in zip(found, texts, limits, timed, strict=True)
        ]

    def _decoded(
        self,
        tokenizer: Untyped,
        result: Untyped,
        ids: list[int],
        limit: int,
        words: tuple[Word, ...],
        language: str,
    ) -> Decoded:
        count = len(result.sequences_ids[0])
        mean = result.scores[0] * count / (count + 1)  # the end token is in the score
        if result.no_speech_prob > NO_SPEECH_PROBABILITY and mean < UNSURE_LOG_PROBABILITY:
            return Decoded("", language=language)
        text = str(tokenizer.decode(ids)).strip()
        return Decoded(text, tuple(ids), mean, len(ids) >= limit, words, language)

    def _timed(
        self, tokenizer: Untyped, texts: list[list[int]], encoded: Untyped, frames: list[int]
    ) -> list[tuple[Word, ...]]:
        """The words of each text, timed by the attention to the audio."""
        from faster_whisper.transcribe import merge_punctuations

        aligned = self.model.find_alignment(tokenizer, texts, encoded, frames)
        rows = []
        for words in aligned:
            merge_punctuations(words, OPENING, CLOSING)
            rows.append(
                tuple(
                    Word(
                        str(word["word"]).strip(),
                        round(float(word["start"]), 6),
                        round(float(word["end"]), 6),
                        float(word["probability"]),
                    )
                    for word in words
                    if str(word["word"]).strip()
                )
            )
        return rows


def read_faster_whisper(
    folder: Path,
    device: torch.device,
    compute_type: str = "default",
    *,
    language: str | None = None,
    task: Task = "transcribe",
) -> FasterWhisperRecognizer:
    """Read a folder of Whisper as CTranslate2 converts it.

    `compute_type` is one of CTranslate2's: by default that in which the weights are stored. Raises
    MissingExtraError without faster-whisper, CheckpointError for a folder that is damaged,
    incomplete or of another model, OptionError for what the model or the machine does not have.
    """
    try:
        import ctranslate2
        import faster_whisper
    except ImportError as error:
        raise MissingExtraError(
            "this model needs the faster-whisper package: pip install 'pianissimo[faster-whisper]'"
        ) from error
    _check_folder(folder)
    gpu = device.type == "cuda" and ctranslate2.get_cuda_device_count() > 0
    if device.type == "cuda" and not gpu:
        _log.warning("%s is computed on the processor: CTranslate2 sees no GPU", folder.name)
    place = "cuda" if gpu else "cpu"
    if compute_type not in ("default", *ctranslate2.get_supported_compute_types(place)):
        raise OptionError(f"{folder.name} cannot be computed in {compute_type} on this {place}")
    try:
        model = faster_whisper.WhisperModel(
            str(folder),
            device=place,
            device_index=(device.index or 0) if gpu else 0,
            compute_type=compute_type,
            cpu_threads=torch.get_num_threads(),
            local_files_only=True,
        )
    except Exception as error:  # the tokenizer's errors have no type of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise CheckpointError(f"{folder}: {reason}; fetch the whole model again") from error
    return FasterWhisperRecognizer(model, name=folder.name, language=language, task=task)


def _check_folder(folder: Path) -> None:
    """CheckpointError unless it holds a Whisper model and all that belongs to it."""
    for name in (TOKENIZER_FILE, "config.json"):
        # Without a tokenizer the package would fetch one from the network.
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; fetch the whole model again")
    read_json(folder / "config.json")
    with (folder / MODEL_FILE).open("rb") as file:
        head = file.read(64)
    if len(head) < 6:
        raise CheckpointError(f"{folder / MODEL_FILE} is cut short; fetch it again")
    _, length = struct.unpack_from("<IH", head)
    specification = head[6 : 6 + length].rstrip(b"\0").decode(errors="replace")
    if specification != _SPECIFICATION:
        raise CheckpointError(
            f"{folder / MODEL_FILE} holds {specification[:40]!r}; of the models of CTranslate2 "
            "only Whisper is read here"
        )


def _read(folder: Path, device: torch.device, options: LoadOptions) -> FasterWhisperRecognizer:
    dtype = "default" if options.dtype is None else str(options.dtype).removeprefix("torch.")
    return read_faster_whisper(
        folder,
        device,
        "int8" if options.int8 else dtype,
        language=options.language,
        task=options.task or "transcribe",
    )


FAMILY = Family(
    name="faster_whisper",
    read=_read,
    gain="on",
    layout=is_ctranslate2,
    extra="faster-whisper",
    int8=True,
    tasks=("transcribe", "translate"),
)
