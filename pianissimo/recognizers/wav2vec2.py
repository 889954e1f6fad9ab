"""wav2vec 2.0, HuBERT, Data2Vec-Audio, WavLM, MMS and Wav2Vec2-BERT behind the recognizer protocol.

A recording up to `WINDOW_SECONDS` is seen whole. A longer one is seen in windows that overlap on
both sides by `STRIDE_SECONDS`; each frame is taken from the window in whose middle it lies, and all
together make one path. Windows begin on the frame grid, so no frame is missing, double or shifted.

The network is invariant to the level, of noise as well: text without any evidence of speech is
dropped.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.decoding.beam_state import BeamOptions
from pianissimo.decoding.ctc_beam import CtcPrefixBeam
from pianissimo.decoding.hotwords import Boost, make_trie
from pianissimo.decoding.lm.fusion import Fusion
from pianissimo.decoding.search import FUSION_BEAM, Decoding
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.errors import OptionError
from pianissimo.hallucination.evidence import Evidence, Intake, Reason
from pianissimo.models.checkpoints.wav2vec2 import BERT, read_wav2vec2
from pianissimo.models.checkpoints.wav2vec2 import FAMILIES as MODEL_TYPES
from pianissimo.models.wav2vec2 import Wav2Vec2, normalize_waveform
from pianissimo.models.wav2vec2_bert import Wav2Vec2Bert
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.recognizers.family import Family, LoadOptions
from pianissimo.text.characters import Alphabet, Run
from pianissimo.text.words import joined, segments_from_words
from pianissimo.transcript import Transcript

WINDOW_SECONDS = 30.0
STRIDE_SECONDS = 5.0
GROUP_SECONDS = {"cpu": 4.0, "cuda": 480.0}
"""Audio, padding included, that goes through the network at once; it costs 20 MB per second.

A CPU is busy with one clip: equal ones together save 3 %, others cost what their padding costs.
"""
SILENT_PEAK = 3 / 32768
"""Below it there is nothing but the last bits of a converter; normalized, they would be loud."""


@dataclass(frozen=True)
class Window:
    """A piece of recording `row`, of which the frames from `first` on and before `last` count."""

    row: int
    samples: Samples
    first: int
    last: int

    @property
    def silent(self) -> bool:
        return float(np.abs(self.samples).max()) < SILENT_PEAK


@dataclass
class GreedyPath:
    """The best symbol of each frame of one recording, as runs; it grows at its end."""

    blank: int
    runs: list[Run] = field(default_factory=list)
    frames: int = 0
    seconds: float = 0.0
    _symbol: int = -1

    def pause(self, frames: int) -> None:
        """Add frames of silence."""
        if frames:
            self.frames += frames
            self._symbol = self.blank

    def extend(self, log_probs: Tensor) -> None:
        """Add (S, V) log-probabilities; a run may continue from the frames before."""
        if not len(log_probs):
            return
        sure, best = log_probs.max(-1)
        symbols, counts = best.unique_consecutive(return_counts=True)
        starts = counts.cumsum(0) - counts
        table = zip(
            symbols.tolist(),
            starts.tolist(),
            counts.tolist(),
            sure[starts].exp().tolist(),
            strict=True,
        )
        for symbol, start, count, confidence in table:
            start += self.frames
            if symbol == self.blank:
                pass
            elif symbol == self._symbol and start == self.frames:
                self.runs[-1] = replace(self.runs[-1], end=start + count)
            else:
                self.runs.append(Run(symbol, start, start + count, min(confidence, 1.0)))
        self._symbol = int(symbols[-1])
        self.frames += len(log_probs)


class BeamPath:
    """The text of one recording by prefix beam search; runs are of one frame, the first."""

    def __init__(self, search: CtcPrefixBeam, fusion: Fusion, symbols: int) -> None:
        self.frames, self.seconds = 0, 0.0
        self._symbols = symbols
        self._search, self._beam, self._found = search, search.start(fusion), Hypothesis()

    @property
    def runs(self) -> list[Run]:
        """All that was found, the beam's best hypothesis included: at the end."""
        self._found.extend(self._beam.finish())
        found = self._found
        table = zip(found.tokens, found.frames, found.confidences, strict=True)
        return [Run(symbol, frame, frame + 1, sure) for symbol, frame, sure in table]

    def pause(self, frames: int) -> None:
        """Add frames of silence."""
        if frames:
            nothing = torch.full((1, self._symbols), -torch.inf)
            nothing[:, self._search.blank] = 0.0
            self.extend(nothing)
            self.frames += frames - 1

    def extend(self, log_probs: Tensor) -> None:
        """Add (S, V) log-probabilities."""
        if len(log_probs):
            self._found.extend(self._search.advance(self._beam, log_probs.cpu(), self.frames))
            self.frames += len(log_probs)


class CtcFamilyRecognizer(BaseRecognizer):
    """A network of the wav2vec 2.0 family with its alphabet.

    Phrases are boosted in a beam, of 8 hypotheses if `decoding` does not say how many.
    """

    model: Wav2Vec2 | Wav2Vec2Bert
    hotwords = True

    def __init__(
        self,
        model: Wav2Vec2 | Wav2Vec2Bert,
        alphabet: Alphabet,
        *,
        decoding: Decoding | None = None,
    ) -> None:
        self.model, self.name = model.eval(), model.config.name
        self.alphabet = alphabet
        self.decoding = decoding or Decoding()
        if self.decoding.rescoring:
            raise OptionError("rescoring needs the transducer head, not the CTC head")
        self.vocabulary = Vocabulary.of_alphabet(alphabet)
        self.fusion = Fusion(self.decoding.language_model(self.vocabulary))
        self.language = model.config.language

    def boosted(self, boost: Boost) -> "CtcFamilyRecognizer":
        """The same recognizer, on the same weights, for recordings with such phrases in them.

        Raises OptionError for a phrase that cannot be boosted.
        """
        recognizer = copy.copy(self)
        recognizer.fusion = replace(self.fusion, trie=make_trie(boost, self.vocabulary))
        return recognizer

    def _path(self) -> GreedyPath | BeamPath:
        if self.decoding.greedy and not self.fusion.active:
            return GreedyPath(self.alphabet.blank)
        width = self.decoding.width if self.decoding.beam else FUSION_BEAM
        search = CtcPrefixBeam(
            self.alphabet.blank, self.model.config.frame_seconds, BeamOptions(width)
        )
        return BeamPath(search, self.fusion, len(self.alphabet.symbols))

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        paths = [self._path() for _ in recordings]
        intakes = [Intake(None, self.detector) for _ in recordings]
        windows = (
            window
            for row, blocks in enumerate(recordings)
            for window in self._windows(row, self._leveled(blocks, intakes[row], paths[row]))
        )
        done = 0
        for group in _groups(windows, GROUP_SECONDS[self.model.device.type]):
            found = iter(self._log_probs([w for w in group if not w.silent]))
            for window in group:
                if window.silent:
                    paths[window.row].pause(window.last - window.first)
                else:
                    paths[window.row].extend(next(found)[window.first : window.last])
            for row in range(done, group[-1].row):
                yield self._transcript(paths[row], intakes[row].evidence, words)
            done = group[-1].row
        for row in range(done, len(paths)):
            yield self._transcript(paths[row], intakes[row].evidence, words)

    def _leveled(
        self, blocks: Iterable[Samples], intake: Intake, path: GreedyPath | BeamPath
    ) -> Iterator[Samples]:
        """The blocks, their length added to the path's; the intake gathers evidence beside."""
        for block in chain(blocks, [None]):
            samples = intake.push(block)
            path.seconds += len(samples) / SAMPLE_RATE
            yield samples

    def _windows(self, row: int, blocks: Iterable[Samples]) -> Iterator[Window]:
        """Windows that together give every frame of a recording once, in order."""
        config = self.model.config
        hop = config.hop_samples
        stride = round(STRIDE_SECONDS / config.frame_seconds)
        window = round(WINDOW_SECONDS / config.frame_seconds)
        held, first = np.zeros(0, np.float32), 0
        for block in blocks:
            held = np.concatenate([held, block])
            while len(held) > window * hop:
                yield Window(row, held[: window * hop], first, window - stride)
                held, first = held[(window - 2 * stride) * hop :].copy(), stride
        if config.frames(len(held)):
            yield Window(row, held, first, config.frames(len(held)))

    @torch.inference_mode()
    def _log_probs(self, windows: Sequence[Window]) -> list[Tensor]:
        """(S, V) of each window, all of them as one padded batch."""
        if not windows:
            return []
        model, lengths = self.model, [len(window.samples) for window in windows]
        batch = torch.zeros(len(windows), max(lengths), device=model.device)
        for row, window in enumerate(windows):
            samples = torch.from_numpy(window.samples).to(model.device)
            batch[row, : lengths[row]] = (
                normalize_waveform(samples) if model.config.normalize else samples
            )
        logits, counts = model(batch, lengths)
        log_probs = logits.float().log_softmax(-1)
        return [log_probs[row, :count] for row, count in enumerate(counts)]

    def _transcript(
        self, path: GreedyPath | BeamPath, evidence: Evidence | None, with_words: bool
    ) -> Transcript:
        config, reasons = self.model.config, tuple[Reason, ...]()
        words = self.alphabet.words(path.runs, config.frame_seconds, path.seconds)
        if evidence is not None and (evidence.refusal or evidence.absent):
            words, reasons = (), (evidence.refusal or "low_evidence",)
        segments = segments_from_words(words)
        if not with_words:
            segments = tuple(replace(segment, words=()) for segment in segments)
        return Transcript(
            text=joined(word.text for word in words),
            segments=segments,
            words=words if with_words else (),
            language=config.language,
            duration=path.seconds,
            model=self.name,
            reasons=reasons,
        )


def _groups(windows: Iterable[Window], most_seconds: float) -> Iterator[list[Window]]:
    """Consecutive windows whose padded batch is at most so long."""
    group: list[Window] = []
    longest = 0
    for window in windows:
        longest = max(longest, len(window.samples))
        if group and longest * (len(group) + 1) > most_seconds * SAMPLE_RATE:
            yield group
            group, longest = [], len(window.samples)
        group.append(window)
    if group:
        yield group


def read_ctc_family(path: Path, device: torch.device, options: LoadOptions) -> CtcFamilyRecognizer:
    """Read a folder of one of these models as Transformers writes it."""
    network, alphabet = read_wav2vec2(path, options.language)
    network.to(device=device, dtype=options.dtype or torch.float32)
    return CtcFamilyRecognizer(network, alphabet, decoding=options.decoding)


FAMILY = Family(
    name="wav2vec2",
    read=read_ctc_family,
    gain="off",  # the models normalize every recording to unit variance
    model_types=(*MODEL_TYPES, BERT),
    heads=("ctc",),
    decoding=True,
)
