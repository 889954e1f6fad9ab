"""ESPnet2 models behind the recogniser protocol: our own network, ESPnet's search.

A recording comes in pieces of at most 28 s, each decoded by itself, as ESPnet's `Speech2Text` does
to a whole recording. It gives no times inside a piece.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pianissimo.adapters.offline import OfflineRecognizer
from pianissimo.adapters.pieces import Decoded, PieceDecoder, transcript, usual_detector
from pianissimo.audio.front_end import FrontEnd, default_mode
from pianissimo.audio.io import Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.arpa import read_arpa
from pianissimo.decoding.joint import (
    BLANK,
    CtcPrefixScorer,
    JointHypothesis,
    JointOptions,
    JointSearch,
    NgramScorer,
    Scorer,
)
from pianissimo.decoding.ngram import NgramModel
from pianissimo.decoding.search import Decoding
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.espnet import Decoder, DecoderState, EspnetModel, RecurrentLm
from pianissimo.models.espnet_files import read_parts
from pianissimo.text.tokenizer import WORD_START
from pianissimo.transcript import Transcript

UNKNOWN_TOKEN = "<unk>"


class AttentionScorer:
    """A decoder that attends to one recording's (S, D) encoder frames."""

    def __init__(self, decoder: Decoder, encoded: Tensor) -> None:
        self._decoder, self._encoded = decoder, encoded

    def start(self) -> DecoderState:
        return self._decoder.start(self._encoded)

    def score(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        scores, state = self._decoder(tokens[:, -1:], state)
        return scores[:, 0], state

    def select(self, state: DecoderState, rows: Tensor) -> DecoderState:
        return state.select(rows)


class RecurrentScorer:
    """A recurrent language model; its state is None before the first token."""

    def __init__(self, lm: RecurrentLm) -> None:
        self._lm = lm

    def start(self) -> tuple[Tensor, ...] | None:
        return None

    def score(
        self, tokens: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        scores, after = self._lm(tokens[:, -1], state)
        return scores, after

    def select(self, state: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(part[:, rows] for part in state)


class EspnetRecognizer(OfflineRecognizer):
    """An ESPnet2 model with its search, and with language models where it has them.

    `lm` is weighed by `options.lm_weight`, `ngram` by `options.ngram_weight`. A model without a
    decoder is searched with CTC at full weight. Raises OptionError if CTC is left out too.
    """

    def __init__(
        self,
        model: EspnetModel,
        *,
        lm: RecurrentLm | None = None,
        ngram: NgramModel | None = None,
        options: JointOptions | None = None,
        front_end: FrontEnd | None = None,
        detector: VoiceDetector | None = None,
    ) -> None:
        self.model, self.options = model, options or JointOptions()
        if model.decoder is None:
            if self.options.ctc_weight == 0:
                raise OptionError(f"{model.config.name} has no decoder: its ctc_weight cannot be 0")
            self.options = replace(self.options, ctc_weight=1.0)
        self.front_end = front_end or FrontEnd(default_mode("espnet"))
        self.detector = detector or usual_detector()
        self.lm = lm
        self._ngram = None if ngram is None else NgramScorer(ngram, model.config.tokens)
        config = model.config
        self._silent = {BLANK, config.start, config.end}
        if UNKNOWN_TOKEN in config.tokens:
            self._silent.add(config.tokens.index(UNKNOWN_TOKEN))

    @property
    def name(self) -> str:
        return self.model.config.name

    @torch.inference_mode()
    def hypotheses(self, samples: Samples) -> list[JointHypothesis]:
        """What `Speech2Text` finds in samples at 16 kHz, the best first.

        Nothing for audio of fewer samples than `model.config.least_samples`.
        """
        model, options = self.model, self.options
        if len(samples) < model.config.least_samples:
            return []
        batch = torch.from_numpy(samples)[None].to(model.device)
        encoded = model.encode(batch)
        scorers: dict[str, tuple[float, Scorer]] = {}
        if model.decoder is not None:
            attention = AttentionScorer(model.decoder, encoded[0])
            scorers["decoder"] = (1 - options.ctc_weight, attention)
        if self.lm is not None:
            scorers["lm"] = (options.lm_weight, RecurrentScorer(self.lm))
        if self._ngram is not None:
            scorers["ngram"] = (options.ngram_weight, self._ngram)
        ctc = CtcPrefixScorer(model.ctc_log_probs(encoded)[0], model.config.end)
        search = JointSearch(
            scorers,
            (options.ctc_weight, ctc),
            start=model.config.start,
            end=model.config.end,
            vocab_size=len(model.config.tokens),
            options=options,
        )
        return search.run(encoded.shape[1], model.device)

    def text(self, tokens: Iterable[int]) -> str:
        """Token ids as text, without blanks, ends and the unknown token."""
        config = self.model.config
        pieces = [config.tokens[token] for token in tokens if token not in self._silent]
        if config.spelling == "word":
            return " ".join(pieces)
        if config.spelling == "char":
            return "".join(" " if piece == config.space else piece for piece in pieces)
        return "".join(pieces).replace(WORD_START, " ").removeprefix(" ")

    def _recognise(
        self, recordings: Sequence[Iterable[Samples]], words: bool
    ) -> Iterator[Transcript]:
        decoder = PieceDecoder(self.front_end, self._decode, detector=self.detector, most=1)
        for progress in decoder.run(recordings):
            yield transcript(progress, self.name, None, words)

    def _decode(self, pieces: Sequence[Samples]) -> list[Decoded]:
        return [self._decoded(samples) for samples in pieces]

    def _decoded(self, samples: Samples) -> Decoded:
        found = self.hypotheses(samples)
        if not found:
            return Decoded("")
        best, weight = found[0], self.options.ctc_weight
        acoustic = weight * best.scores.get("ctc", 0.0)
        if "decoder" in best.scores:
            acoustic += (1 - weight) * best.scores["decoder"]
        mean = acoustic / (len(best.tokens) + 1)
        tokens = tuple(token for token in best.tokens if token not in self._silent)
        return Decoded(self.text(tokens), tokens, mean, len(best.tokens) >= self._limit(samples))

    def _limit(self, samples: Samples) -> int:
        """The number of tokens at which the search gives up."""
        return self.options.longest(self.model.config.frames(len(samples)))


def search_options(decoding: Decoding | None, *, ctc_only: bool) -> JointOptions:
    """The search for what `load` is asked; OptionError for a bonus, which ESPnet has per token."""
    options = JointOptions(ctc_weight=1.0) if ctc_only else JointOptions()
    if decoding is None:
        return options
    if decoding.word_bonus is not None:
        raise OptionError("ESPnet models know no bonus for words: leave word_bonus out")
    if decoding.beam is not None:
        options = replace(options, beam=decoding.beam)
    if decoding.lm_weight is not None:
        options = replace(options, ngram_weight=decoding.lm_weight)
    return options


def read_espnet(
    path: Path,
    device: torch.device,
    *,
    options: JointOptions | None = None,
    ngram: str | os.PathLike[str] | None = None,
) -> EspnetRecognizer:
    """Read a pack of ESPnet2, zip or unpacked, or the folder of an experiment; in float32.

    `ngram` is an ARPA file over the model's tokens. Raises CheckpointError for a damaged model or
    one outside the subset, and what `read_arpa` does.
    """
    parts = read_parts(path)
    counted = None
    if ngram is not None:
        counted = NgramModel(read_arpa(ngram))
        if not set(parts.model.config.tokens) & set(counted.words) - {UNKNOWN_TOKEN}:
            raise CheckpointError(f"{ngram} knows none of the tokens of {path.name}")
    lm = None if parts.lm is None else parts.lm.to(device)
    return EspnetRecognizer(parts.model.to(device), lm=lm, ngram=counted, options=options)
