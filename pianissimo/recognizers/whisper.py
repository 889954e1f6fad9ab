"""Whisper (Radford et al. 2022, arXiv 2212.04356) through Transformers: the network is theirs, the
way there and back is ours.

Recordings come in pieces of at most 28 s, so no piece depends on the text of another one. Decoding
is greedy and batched; a piece that loops or does not end is decoded again in halves. Word times
come from the cross-attention, aligned by dynamic time warping as in the reference implementation.

Shape legend: B batch, T mel frames, S encoder frames, U tokens, V vocabulary.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.recognizers.autoregressive import Written, write_greedily
from pianissimo.recognizers.base import BaseRecognizer, default_detector
from pianissimo.recognizers.family import Family, LoadOptions, Task, Untyped
from pianissimo.recognizers.long_form import (
    Decoded,
    PieceDecoder,
    Progress,
    language_heard,
    transcript,
)
from pianissimo.recognizers.transformers_models import (
    cache_name,
    load_network,
    load_part,
    open_transformers,
    quiet,
)
from pianissimo.transcript import Transcript, Word

PIECES = {"cpu": 4, "cuda": 32}
"""Pieces that are decoded at once; each costs the encoder 30 s, however short it is."""
FRAME_SECONDS = 0.02
NO_SPEECH_PROBABILITY = 0.6
UNSURE_LOG_PROBABILITY = -1.0
SPACELESS = frozenset("zh ja th lo my yue".split())
"""Languages written without spaces: each character is timed as a word."""
OPENING, CLOSING = "\"'“¡¿([{-", "\"'.。,，!！?？:：”)]}、"
"""Marks that belong to the word after them, and to the one before."""


class WhisperRecognizer(BaseRecognizer):
    """A Whisper model with its tokenizer.

    `language` is a code such as "de", or None to find it for each piece. `task` "translate" writes
    English whatever is spoken. Raises OptionError for what the model does not know.
    """

    model: Untyped

    def __init__(
        self,
        model: Untyped,
        tokenizer: Untyped,
        extractor: Untyped,
        *,
        name: str,
        language: str | None = None,
        task: Task = "transcribe",
        front_end: FrontEnd | None = None,
        detector: VoiceDetector | None = None,
    ) -> None:
        self.model, self.tokenizer, self.extractor = model, tokenizer, extractor
        self._name = name
        self.front_end = front_end or FrontEnd(FAMILY.gain)
        self.detector = detector or default_detector()
        config = model.generation_config
        self._start = int(config.decoder_start_token_id)
        ends = config.eos_token_id
        self._ends = tuple(ends) if isinstance(ends, list) else (int(ends),)
        self._no_timestamps = int(config.no_timestamps_token_id)
        self._suppressed = list(config.suppress_tokens or ())
        self._suppressed_first = list(config.begin_suppress_tokens or ())
        codes: dict[str, int] = getattr(config, "lang_to_id", None) or {}
        self._languages = {token.strip("<|>"): id for token, id in codes.items()}
        self._tasks: dict[str, int] = getattr(config, "task_to_id", None) or {}
        self.language, self.task = self._known_language(language), task
        if task not in ("transcribe", "translate"):
            raise OptionError(f"unknown task {task!r}; choose transcribe or translate")
        if task == "translate" and not self._tasks:
            raise OptionError(f"{name} knows English only and translates nothing")
        self._heads = _alignment_heads(model)

    @property
    def name(self) -> str:
        return self._name

    def _known_language(self, language: str | None) -> str | None:
        if language is None:
            return None if self._languages else "en"
        code = language.lower()
        if code not in (self._languages or {"en": 0}):
            known = ", ".join(sorted(self._languages)) or "en"
            raise OptionError(
                f"{self._name} does not know the language {language!r}; it has {known}"
            )
        return code

    def _recognize(
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

    def _language_of(self, progress: Progress) -> str | None:
        """The language of most seconds; that of the text where it was translated."""
        if self.task == "translate":
            return "en"
        return self.language or language_heard(progress)

    # -- decoding ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def _decode(self, pieces: Sequence[Samples], words: bool) -> list[Decoded]:
        """Pieces of up to 30 s as one batch."""
        features = self.extractor(list(pieces), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        mel = features.input_features.to(self.model.device, self.model.dtype)
        encoded = self.model.model.encoder(mel).last_hidden_state
        prompts, languages = self._prompts(encoded)
        limit = max_new_tokens(max(map(len, pieces)) / SAMPLE_RATE)
        limit = min(limit, self.model.config.max_target_positions - prompts.shape[1] - 1)
        limits = [min(limit, max_new_tokens(len(samples) / SAMPLE_RATE)) for samples in pieces]
        written, no_speech = self._greedy(encoded, prompts, limits)
        frames = [math.ceil(len(samples) / SAMPLE_RATE / FRAME_SECONDS) for samples in pieces]
        starts: list[list[float]] = [[]] * len(pieces)
        if words:
            starts = self._align(encoded, prompts, [w.tokens for w in written], frames)
        return [
            self._heard(row, silent, language, full=len(row.tokens) >= limit, starts=times)
            for row, silent, language, limit, times in zip(
                written, no_speech, languages, limits, starts, strict=True
            )
        ]

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
        log_probs = written.log_probs
        mean = sum(log_probs) / len(log_probs) if log_probs else 0.0
        if nobody_speaks(no_speech, mean):
            return Decoded("", language=language)
        ids = [token for token in written.tokens if token not in self._ends]
        script = "en" if self.task == "translate" else language
        words = self._timed(ids, log_probs, starts, script in SPACELESS) if starts else ()
        text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        cut_off = full and written.tokens[-1] not in self._ends
        return Decoded(text, tuple(ids), mean, cut_off, words, language)

    def _prompts(self, encoded: Tensor) -> tuple[Tensor, list[str | None]]:
        """(B, U) what each text begins with, and the language of each piece."""
        rows = len(encoded)
        if not self._languages:
            prompt = [self._start, self._no_timestamps]
            return torch.tensor([prompt] * rows, device=encoded.device), ["en"] * rows
        if self.language is None:
            start = torch.full((rows, 1), self._start, device=encoded.device)
            logits = self.model(encoder_outputs=(encoded,), decoder_input_ids=start).logits[:, -1]
            codes = list(self._languages)
            best = logits[:, [self._languages[code] for code in codes]].argmax(-1)
            languages = [codes[i] for i in best.tolist()]
        else:
            languages = [self.language] * rows
        tail = [self._tasks[self.task]] if self._tasks else []
        prompts = [
            [self._start, self._languages[code], *tail, self._no_timestamps] for code in languages
        ]
        return torch.tensor(prompts, device=encoded.device), list(languages)

    def _greedy(
        self, encoded: Tensor, prompts: Tensor, limits: Sequence[int]
    ) -> tuple[list[Written], list[float]]:
        """What is written for each row, and how likely it is that nobody speaks in it."""
        out = self.model(encoder_outputs=(encoded,), decoder_input_ids=prompts, use_cache=True)
        name = cache_name(self.model)
        cache = out[name]
        # The start token's own prediction says whether anybody speaks.
        no_speech = out.logits[:, 0].float().softmax(-1)[:, self._no_timestamps - 1]

        def advance(tokens: Tensor) -> Tensor:
            step = self.model(
                encoder_outputs=(encoded,),
                decoder_input_ids=tokens,
                use_cache=True,
                **{name: cache},
            )
            return self._allowed(step.logits[:, -1])

        first = self._allowed(out.logits[:, -1])
        first[:, self._suppressed_first] = -torch.inf
        return write_greedily(first, advance, limits, self._ends), no_speech.tolist()

    def _allowed(self, logits: Tensor) -> Tensor:
        """The logits without the tokens that the model must never write."""
        logits = logits.float()
        logits[:, self._suppressed] = -torch.inf
        return logits

    # -- times -------------------------------------------------------------------------------------

    def _align(
        self,
        encoded: Tensor,
        prompts: Tensor,
        tokens: Sequence[list[int]],
        frames: Sequence[int],
    ) -> list[list[float]]:
        """When each token begins, in seconds, and at last when the text ends.

        A token is looked for in the audio by the step that writes it, whose input is the token
        before it: the first one by the step of the prompt's last token.
        """
        texts = [[t for t in row if t not in self._ends] for row in tokens]
        longest = max(map(len, texts))
        if longest == 0:
            return [[] for _ in texts]
        end = self._ends[0]
        padded = [[*text, *[end] * (longest + 1 - len(text))] for text in texts]
        ids = torch.cat([prompts, torch.tensor(padded, device=prompts.device)], dim=1)
        out = self.model.model.decoder(
            input_ids=ids, encoder_hidden_states=encoded, output_attentions=True, use_cache=False
        )
        heads = torch.stack([out.cross_attentions[layer][:, h] for layer, h in self._heads], dim=1)
        width = int(self.model.config.median_filter_width)
        first = prompts.shape[1] - 1
        return [
            token_starts(heads[row, :, : first + len(text) + 2, :count].float(), width, first)
            if text
            else []
            for row, (text, count) in enumerate(zip(texts, frames, strict=True))
        ]

    def _timed(
        self,
        ids: Sequence[int],
        log_probs: Sequence[float],
        starts: Sequence[float],
        spaceless: bool,
    ) -> tuple[Word, ...]:
        """Tokens to words; `starts` has one more entry, the end."""
        words = []
        for first, last, text in self._grouped(ids, spaceless):
            confidence = min(math.exp(value) for value in log_probs[first:last])
            words.append(Word(text, round(starts[first], 6), round(starts[last], 6), confidence))
        return tuple(words)

    def _grouped(self, ids: Sequence[int], spaceless: bool) -> list[tuple[int, int, str]]:
        """(first token, the one behind the last, text) of each word, marks joined to words."""
        parts: list[tuple[int, int, str]] = []
        start = 0
        for i in range(len(ids)):
            text = self.tokenizer.decode(ids[start : i + 1], skip_special_tokens=True)
            if "\ufffd" not in text or i - start >= 3:  # a character may take several tokens
                if text:
                    parts.append((start, i + 1, text))
                start = i + 1
        words: list[tuple[int, int, str]] = []
        opened = False
        for first, last, text in parts:
            bare = text.strip()
            begins = text.startswith(" ") or (spaceless and not opened) or not words
            if (bare and bare in CLOSING) and words and not text.startswith(" "):
                begins = False
            elif bare and bare in OPENING:
                begins = True
            if begins and not (opened and words):
                words.append((first, last, text))
            elif words:
                words[-1] = (words[-1][0], last, words[-1][2] + text)
            opened = bool(bare) and bare in OPENING
        return [(first, last, text.strip()) for first, last, text in words if text.strip()]


def nobody_speaks(no_speech: float, mean_log_probability: float) -> bool:
    """Whether the model says so itself, and is not sure of its text: that is dropped then."""
    return no_speech > NO_SPEECH_PROBABILITY and mean_log_probability < UNSURE_LOG_PROBABILITY


def token_starts(weights: Tensor, filter_width: int, first: int = 0) -> list[float]:
    """(heads, U, S) attention of each input over the frames -> when what it writes begins, in s.

    Of the attention only what falls into these frames counts. It is normalized over all U inputs,
    smoothed over the frames and averaged over the heads. The path that climbs through it from
    corner to corner, from input `first` to the one before the last, which is the end token, tells
    which frames belong to whom.
    """
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-10)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = (weights - mean) / deviation.clamp(min=1e-10)
    side = filter_width // 2
    if weights.shape[-1] > side > 0:
        padded = F.pad(weights, (side, side), mode="reflect")
        weights = padded.unfold(-1, filter_width, 1).sort(-1).values[..., side]
    costs = -weights.mean(0)[first:-1].double().cpu().numpy()
    return [frame * FRAME_SECONDS for frame in climb(costs)]


def climb(costs: npt.NDArray[np.float64]) -> list[int]:
    """Dynamic time warping of rows over columns: (U, S) -> the first column of each row.

    The path goes from the first corner to the last one, each step one row on, one column on, or
    both, so that what it passes costs least.
    """
    U, S = costs.shape
    best = np.full((U + 1, S + 1), np.inf)
    best[0, 0] = 0.0
    steps = np.zeros((U + 1, S + 1), np.int8)
    for total in range(2, U + S + 1):  # one anti-diagonal after the other
        rows = np.arange(max(1, total - S), min(U, total - 1) + 1)
        columns = total - rows
        both, row = best[rows - 1, columns - 1], best[rows - 1, columns]
        column = best[rows, columns - 1]
        step = np.full(len(rows), 2)  # where two cost the same, the next column
        step[(row < both) & (row < column)] = 1
        step[(both < row) & (both < column)] = 0
        cheapest = np.choose(step, [both, row, column])
        best[rows, columns] = costs[rows - 1, columns - 1] + cheapest
        steps[rows, columns] = step
    first = [0] * U
    i, j = U, S
    while i > 0 and j > 0:
        first[i - 1] = j - 1
        taken = int(steps[i, j])
        i, j = i - (taken != 2), j - (taken != 1)
    return first


def _alignment_heads(model: Untyped) -> list[tuple[int, int]]:
    """The heads that follow the speech; unless the model names them, those of the upper half."""
    named = getattr(model.generation_config, "alignment_heads", None)
    if named:
        return [(int(layer), int(head)) for layer, head in named]
    layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
    return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]


def read_whisper(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    language: str | None = None,
    task: Task = "transcribe",
) -> WhisperRecognizer:
    """Read a folder of Whisper as Transformers writes it.

    Raises MissingExtraError without Transformers, CheckpointError for a damaged or incomplete
    folder, OptionError for a language or task that the model does not know.
    """
    transformers = open_transformers()
    with quiet(transformers):
        extractor = load_part(transformers.WhisperFeatureExtractor, folder)
        tokenizer = load_part(transformers.WhisperTokenizer, folder)
        model = load_network(transformers.WhisperForConditionalGeneration, folder, dtype, "sdpa")
    bins, rate = extractor.feature_size, extractor.sampling_rate
    if rate != SAMPLE_RATE or bins != model.config.num_mel_bins:
        raise CheckpointError(
            f"{folder}: features of {bins} bins at {rate} Hz do not belong to the model, which "
            f"takes {model.config.num_mel_bins} bins at {SAMPLE_RATE} Hz"
        )
    mark = getattr(model.generation_config, "no_timestamps_token_id", None)
    if mark is None or tokenizer.convert_tokens_to_ids("<|notimestamps|>") != mark:
        raise CheckpointError(
            f"{folder}: the tokenizer and generation_config.json do not agree on the "
            "no_timestamps_token_id; one of them is missing or too old, fetch the model again"
        )
    # The decoder's attention leaves its weights behind, for the word times; the encoder's need not.
    observed = copy.copy(model.config)
    observed._attn_implementation = "eager"
    model.model.decoder.config = observed
    for layer in model.model.decoder.layers:
        layer.self_attn.config = layer.encoder_attn.config = observed
    return WhisperRecognizer(
        model.to(device), tokenizer, extractor, name=folder.name, language=language, task=task
    )


def _read(folder: Path, device: torch.device, options: LoadOptions) -> WhisperRecognizer:
    dtype, task = options.dtype or torch.float32, options.task or "transcribe"
    return read_whisper(folder, device, dtype, language=options.language, task=task)


FAMILY = Family(
    name="whisper",
    read=_read,
    gain="on",
    model_types=("whisper",),
    extra="families",
    tasks=("transcribe", "translate"),
)
