"""GLM-ASR through Transformers: a Whisper-like encoder that speaks to a language model.

The encoder always works on 30 s, so recordings come in pieces of at most 28 s and each piece is a
request of its own: with more than one window per request the model loses text. It gives no times
inside a piece.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.models.checkpoints.config_json import read_json
from pianissimo.recognizers.autoregressive import write_greedily
from pianissimo.recognizers.base import BaseRecognizer, default_detector
from pianissimo.recognizers.family import Family, LoadOptions, Untyped
from pianissimo.recognizers.long_form import Decoded, PieceDecoder
from pianissimo.recognizers.transformers_models import (
    cache_name,
    load_network,
    load_part,
    open_transformers,
    quiet,
)
from pianissimo.transcript import Transcript

PIECES = {"cpu": 1, "cuda": 16}
"""Pieces that are decoded at once; each costs the encoder 30 s, however short it is."""
ARCHITECTURE = "GlmAsrForConditionalGeneration"
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
END_TOKENS = ("<|endoftext|>", "<|user|>", "<|observation|>")
LEAST_SAMPLES = 1120
"""70 ms: shorter audio becomes no token, and the model would answer the text alone."""

_log = logging.getLogger(__name__)


class GlmAsrRecognizer(BaseRecognizer):
    """A GLM-ASR model with its processor."""

    model: Untyped

    def __init__(
        self,
        model: Untyped,
        processor: Untyped,
        *,
        name: str,
        front_end: FrontEnd | None = None,
        detector: VoiceDetector | None = None,
    ) -> None:
        self.model, self.processor, self.name = model, processor, name
        self.front_end = front_end or FrontEnd(FAMILY.gain)
        self.detector = detector or default_detector()
        ids = processor.tokenizer.convert_tokens_to_ids(list(END_TOKENS))
        unknown = processor.tokenizer.unk_token_id
        configured = model.generation_config.eos_token_id or model.config.text_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        self._ends = frozenset(id for id in [*ids, *ends] if id is not None and id != unknown)

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        decoder = PieceDecoder(
            self.front_end,
            self._decode,
            detector=self.detector,
            most=PIECES[self.model.device.type],
        )
        return decoder.run(recordings, self.name, words)

    def _decode(self, pieces: Sequence[Samples]) -> list[Decoded]:
        """Pieces of up to 30 s; what is left at the end of a cut may be too short to decode."""
        decoded = iter(self._requests([piece for piece in pieces if len(piece) >= LEAST_SAMPLES]))
        return [next(decoded) if len(p) >= LEAST_SAMPLES else Decoded("") for p in pieces]

    @torch.inference_mode()
    def _requests(self, pieces: Sequence[Samples]) -> list[Decoded]:
        """Pieces of 70 ms to 30 s as one batch, each a request of its own."""
        if not pieces:
            return []
        inputs = self.processor.apply_transcription_request([np.asarray(p) for p in pieces])
        inputs = inputs.to(self.model.device)
        inputs["input_features"] = inputs["input_features"].to(self._audio_dtype)
        mask = inputs.pop("attention_mask")  # prompts are padded on the left
        out = self.model(
            **inputs,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        name = cache_name(self.model)
        cache, length = out[name], mask.sum(-1, keepdim=True)

        def advance(tokens: Tensor) -> Tensor:
            nonlocal mask, length
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            step = self.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=length,
                use_cache=True,
                **{name: cache},
            )
            length = length + 1
            logits: Tensor = step.logits[:, -1]
            return logits

        limits = [max_new_tokens(len(samples) / SAMPLE_RATE) for samples in pieces]
        rows = write_greedily(out.logits[:, -1], advance, limits, self._ends)
        found = []
        for written, limit in zip(rows, limits, strict=True):
            ids = [token for token in written.tokens if token not in self._ends]
            text = self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
            mean = sum(written.log_probs) / len(written.log_probs)
            ended = written.tokens[-1] in self._ends
            cut_off = len(written.tokens) >= limit and not ended
            found.append(Decoded(text, tuple(ids), mean, cut_off, ended=ended))
        return found

    @property
    def _audio_dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.model.audio_tower.dtype
        return dtype

    def is_finite(self) -> bool:
        """Whether a loud clip and noise give finite numbers: half precision may overflow."""
        rng = np.random.default_rng(0)
        loud = np.sign(np.sin(np.arange(SAMPLE_RATE) * 0.05)).astype(np.float32)
        noise = (0.1 * rng.standard_normal(SAMPLE_RATE)).astype(np.float32)
        with torch.inference_mode():
            inputs = self.processor.apply_transcription_request([loud, noise])
            inputs = inputs.to(self.model.device)
            inputs["input_features"] = inputs["input_features"].to(self._audio_dtype)
            return bool(self.model(**inputs, logits_to_keep=1).logits.isfinite().all())


def read_glm_asr(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    attention: str = "sdpa",
) -> GlmAsrRecognizer:
    """Read a folder of GLM-ASR as Transformers writes it.

    `dtype` None is bfloat16 on a GPU and float32 on the CPU. With float16 only the encoder is
    halved, since language models of this kind fail in it; if even that overflows, float32 takes its
    place and a warning is logged. `attention` is one of `ATTENTIONS`. Raises MissingExtraError
    without Transformers, CheckpointError for a damaged folder or one of the old layout.
    """
    if attention not in ATTENTIONS:
        raise OptionError(f"unknown attention {attention!r}; choose {', '.join(ATTENTIONS)}")
    _check_layout(folder)
    transformers = open_transformers()
    gpu = device.type == "cuda"
    wide = torch.bfloat16 if gpu and torch.cuda.is_bf16_supported() else torch.float32
    chosen = dtype or wide
    with quiet(transformers):
        processor = load_part(transformers.GlmAsrProcessor, folder)
        kind = getattr(transformers, ARCHITECTURE)
        model = load_network(kind, folder, wide if chosen == torch.float16 else chosen, attention)
    model.to(device)
    if chosen == torch.float16:
        for part in (model.model.audio_tower, model.model.multi_modal_projector):
            part.half()
    recognizer = GlmAsrRecognizer(model, processor, name=folder.name)
    if chosen == torch.float16 and not recognizer.is_finite():
        _log.warning("%s overflows in float16; it is computed in float32 instead", folder.name)
        with quiet(transformers):
            model = load_network(kind, folder, torch.float32, attention).to(device)
        recognizer = GlmAsrRecognizer(model, processor, name=folder.name)
    return recognizer


def _check_layout(folder: Path) -> None:
    """CheckpointError for the layout of before 27 December 2025: other names, another order."""
    config = read_json(folder / "config.json")
    if config.get("architectures") != [ARCHITECTURE] or "auto_map" in config:
        raise CheckpointError(
            f"{folder} has the first layout of GLM-ASR, whose weights are named and ordered "
            "differently; fetch the files that were published from 27 December 2025 on"
        )


def _read(folder: Path, device: torch.device, options: LoadOptions) -> GlmAsrRecognizer:
    return read_glm_asr(folder, device, options.dtype)


FAMILY = Family(
    name="glm_asr",
    read=_read,
    gain="auto",  # trained on quiet speech
    model_types=("glmasr", "Glmasr"),  # the second of the first layout, which is refused by name
    extra="families",
    languages=False,
)
