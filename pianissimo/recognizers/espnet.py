"""ESPnet2 models behind the recognizer protocol: our own network, ESPnet's search.

A recording comes in pieces of at most 28 s, each decoded by itself, as ESPnet's `Speech2Text` does
to a whole recording. That gives no times: words are timed afterwards, by the likeliest path of the
CTC head that gives the text.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.alignment import align
from pianissimo.decoding.joint import (
    BLANK,
    CtcPrefixScorer,
    JointHypothesis,
    JointOptions,
    JointSearch,
    NgramScorer,
    Scorer,
)
from pianissimo.decoding.lm.arpa import read_arpa
from pianissimo.decoding.lm.ngram import NgramModel
from pianissimo.decoding.search import Decoding
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.checkpoints.espnet import is_espnet, read_parts
from pianissimo.models.espnet import Decoder, DecoderState, EspnetModel, RecurrentLm
from pianissimo.models.packed import packed
from pianissimo.recognizers.base import BaseRecognizer, default_detector
from pianissimo.recognizers.family import Family, LoadOptions
from pianissimo.recognizers.long_form import Decoded, PieceDecoder
from pianissimo.text import WORD_START
from pianissimo.text.characters import Run
from pianissimo.text.words import is_spaceless
from pianissimo.transcript import Transcript, Word

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


class EspnetRecognizer(BaseRecognizer):
    """An ESPnet2 model with its search, and with language models where it has them.

    `lm` is weighed by `options.lm_weight`, `ngram` by `options.ngram_weight`. A model without a
    decoder is searched with CTC at full weight. Raises OptionError if CTC is left out too.
    """

    model: EspnetModel

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
        self.model, self.name = model, model.config.name
        self.options = options or JointOptions()
        if model.decoder is None:
            if self.options.ctc_weight == 0:
                raise OptionError(f"{model.config.name} has no decoder: its ctc_weight cannot be 0")
            self.options = replace(self.options, ctc_weight=1.0)
        self.front_end = front_end or FrontEnd(FAMILY.gain)
        self.detector = detector or default_detector()
        self.lm = None if lm is None else packed(lm, "float32")
        self._ngram = None if ngram is None else NgramScorer(ngram, model.config.tokens)
        config = model.config
        self._silent = {BLANK, config.start, config.end}
        if UNKNOWN_TOKEN in config.tokens:
            self._silent.add(config.tokens.index(UNKNOWN_TOKEN))

    def hypotheses(self, samples: Samples) -> list[JointHypothesis]:
        """What `Speech2Text` finds in samples at 16 kHz, the best first.

        Nothing for audio of fewer samples than `model.config.least_samples`.
        """
        return self._search(samples)[0]

    @torch.inference_mode()
    def _search(self, samples: Samples) -> tuple[list[JointHypothesis], Tensor]:
        """What was found, and what the CTC head said: (S, V) log-probabilities."""
        model, options = self.model, self.options
        if len(samples) < model.config.least_samples:
            return [], torch.zeros(0, len(model.config.tokens))
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
        log_probs = model.ctc_log_probs(encoded)[0]
        ctc = CtcPrefixScorer(log_probs, model.config.end)
        search = JointSearch(
            scorers,
            (options.ctc_weight, ctc),
            start=model.config.start,
            end=model.config.end,
            vocab_size=len(model.config.tokens),
            options=options,
        )
        return search.run(encoded.shape[1], model.device), log_probs

    def text(self, tokens: Iterable[int]) -> str:
        """Token ids as text, without blanks, ends and the unknown token."""
        text = "".join(self._spelled(token) for token in tokens if token not in self._silent)
        return text if self.model.config.spelling == "char" else text.removeprefix(" ")

    def _spelled(self, token: int) -> str:
        """What a token adds to a text, with the space before a word."""
        config = self.model.config
        piece = config.tokens[token]
        if config.spelling == "word":
            return " " + piece
        if config.spelling == "char":
            return " " if piece == config.space else piece
        return piece.replace(WORD_START, " ")

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        decoder = PieceDecoder(
            self.front_end,
            lambda pieces: [self._decoded(samples, words) for samples in pieces],
            detector=self.detector,
            most=1,
        )
        return decoder.run(recordings, self.name, words)

    def _decoded(self, samples: Samples, words: bool) -> Decoded:
        found, log_probs = self._search(samples)
        if not found:
            return Decoded("")
        best, weight = found[0], self.options.ctc_weight
        acoustic = weight * best.scores.get("ctc", 0.0)
        if "decoder" in best.scores:
            acoustic += (1 - weight) * best.scores["decoder"]
        mean = acoustic / (len(best.tokens) + 1)
        tokens = tuple(token for token in best.tokens if token not in self._silent)
        runs = align(log_probs, tokens, BLANK) if words else None
        timed = self.words(runs or (), len(samples) / SAMPLE_RATE)
        cut_off = len(best.tokens) >= self._limit(samples)
        return Decoded(self.text(tokens), tokens, mean, cut_off, timed)

    def words(self, runs: Iterable[Run], duration: float) -> tuple[Word, ...]:
        """Aligned tokens as words, each from its first token's first frame to its last one's last.

        A character of a script without spaces is a word, marks belong to the word before them.
        Confidence is that of the least certain token; `duration` in seconds bounds every time.
        """
        drafts: list[tuple[str, list[Run]]] = []
        spaced = True
        for run in runs:
            for i, part in enumerate(self._spelled(run.symbol).split(" ")):
                spaced = spaced or i > 0
                if not part:
                    continue
                if spaced or not drafts or _apart(drafts[-1][0], part):
                    drafts.append((part, [run]))
                else:
                    text, runs_of_word = drafts[-1]
                    drafts[-1] = (text + part, [*runs_of_word, run])
                spaced = False
        seconds = self.model.config.frame_seconds
        return tuple(
            Word(
                text,
                round(min(runs_of_word[0].start * seconds, duration), 6),
                round(min(runs_of_word[-1].end * seconds, duration), 6),
                min(run.confidence for run in runs_of_word),
            )
            for text, runs_of_word in drafts
        )

    def _limit(self, samples: Samples) -> int:
        """The number of tokens at which the search gives up."""
        return self.options.longest(self.model.config.frames(len(samples)))


def _apart(before: str, text: str) -> bool:
    """Whether a text is a word of its own although no space parts it from the one before."""
    if not any(character.isalnum() for character in text):
        return False
    return is_spaceless(before[-1]) or is_spaceless(text[0])


def search_options(decoding: Decoding | None, *, ctc_only: bool) -> JointOptions:
    """The search for what `load` is asked; OptionError for what ESPnet's does not know."""
    options = JointOptions(ctc_weight=1.0) if ctc_only else JointOptions()
    if decoding is None:
        return options
    if decoding.word_bonus is not None:
        raise OptionError("ESPnet models have no word bonus; remove word_bonus")
    if decoding.rescoring:
        raise OptionError("ESPnet models score with CTC in every step; remove rescoring")
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


def _read(path: Path, device: torch.device, options: LoadOptions) -> EspnetRecognizer:
    search = search_options(options.decoding, ctc_only=options.head == "ctc")
    ngram = None if options.decoding is None else options.decoding.lm
    return read_espnet(path, device, options=search, ngram=ngram)


FAMILY = Family(
    name="espnet",
    read=_read,
    gain="auto",
    layout=is_espnet,
    dtypes=("float32",),
    heads=("ctc",),
    decoding=True,
    languages=False,
)
