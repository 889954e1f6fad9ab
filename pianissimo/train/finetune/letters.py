"""Training batches for CTC models of letters: letters as targets, samples with their mask."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.text.characters import Alphabet
from pianissimo.train.data import Examples, epoch_batches

UNKNOWN, IGNORED = -1, -100
"""The id of characters outside the alphabet, and the padding of labels in Transformers."""


@dataclass(frozen=True)
class LetterCapacity:
    """At most one letter in each frame."""

    frame_seconds: float
    ctc: bool = True
    max_symbols: int = 1


class Letters:
    """Transcripts to the ids of an alphabet and back, a symbol for each character."""

    def __init__(self, alphabet: Alphabet) -> None:
        self._symbols = alphabet.symbols
        self._ids = {symbol: id for id, symbol in enumerate(alphabet.symbols) if symbol}
        self.special_ids = frozenset({UNKNOWN, alphabet.blank})

    def encode(self, text: str) -> list[int]:
        """Ids, UNKNOWN for other characters; without a space symbol, spaces are dropped."""
        if " " not in self._ids:
            text = text.replace(" ", "")
        return [self._ids.get(character, UNKNOWN) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        return "".join(self._symbols[id] for id in ids if id not in self.special_ids)


class RunBatches(Dataset[dict[str, Tensor]]):
    """All batches of a run in their order, each made from (seed, place) alone.

    So a resumed run draws exactly the remaining batches.
    """

    def __init__(
        self,
        data: Examples,
        letters: Letters,
        extractor: Any,
        count: int,
        batch_seconds: float,
        seed: int,
    ) -> None:
        self.data, self.letters, self.extractor, self.seed = data, letters, extractor, seed
        self.items: list[list[int]] = []
        epoch = 0
        while len(self.items) < count:
            self.items += epoch_batches(data.durations(), batch_seconds, seed, epoch)
            epoch += 1
        del self.items[count:]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        """Padded samples or features with their mask, and labels with IGNORED as padding."""
        rng = random.Random(f"{self.seed}-{place}")
        drawn = [self.data.example(item, rng) for item in self.items[place]]
        batch = self.extractor(
            [samples for samples, _ in drawn],
            sampling_rate=SAMPLE_RATE,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        targets = [torch.tensor(self.letters.encode(text)) for _, text in drawn]
        labels = torch.nn.utils.rnn.pad_sequence(targets, True, IGNORED)
        return {**batch, "labels": labels}
