"""Voices of FastSpeech2Conformer and FastPitch, on the networks of this package."""

import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from pianissimo.audio.io import Samples
from pianissimo.errors import NothingToSayError
from pianissimo.models.checkpoints.espnet import is_espnet
from pianissimo.models.checkpoints.espnet_fastspeech2 import read_espnet_fastspeech2
from pianissimo.models.checkpoints.fastpitch import is_nemo_voice, read_fastpitch
from pianissimo.models.checkpoints.fastspeech2 import read_fastspeech2
from pianissimo.synthesis.arpabet import EnglishPhonemes
from pianissimo.synthesis.base import BaseSynthesizer

LONGEST_SYMBOLS = 200
"""Of one run of the network, whose memory grows with the square: about 16 s."""


class FastSpeech2Synthesizer(BaseSynthesizer):
    """An English voice; the vocoder runs in chunks, so that audio begins before it is complete.

    `path` is a folder as Transformers writes it, a joint pack of ESPnet or its folder, or NeMo's
    FastPitch, see `read_fastpitch`.
    Raises CheckpointError, and MissingExtraError without the extra `tts`, which reads the words.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        if is_nemo_voice(path):
            parts = read_fastpitch(path)
        elif is_espnet(path):
            parts = read_espnet_fastspeech2(path)
        else:
            parts = read_fastspeech2(path)
        super().__init__(path.stem if path.is_file() else path.name, "en-US", parts.sample_rate)
        self._acoustic, self._vocoder = parts.acoustic.to(device), parts.vocoder.to(device)
        self._vocabulary, self._device = parts.vocabulary, device
        self._before, self._behind = ([symbol] if symbol else [] for symbol in parts.around)
        self._phonemes = EnglishPhonemes(parts.vocabulary)
        self._reading = threading.Lock()  # the lexicon fills caches

    @torch.inference_mode()
    def _mel(self, ids: list[int], speed: float) -> torch.Tensor:
        return self._acoustic(torch.tensor(ids, device=self._device), speed)[0]

    def _sentence(self, text: str, speed: float, seed: int | None) -> Iterator[Samples]:
        """The network has no random parts: `seed` changes nothing."""
        with self._reading:
            symbols = self._phonemes.read(text)
        if not any(symbol[0].isalpha() for symbol in symbols):
            raise NothingToSayError(f"{text[:40]!r} has no sound in English; send other words")
        for run in _runs(symbols):
            run = [*self._before, *run, *self._behind]
            mel = self._mel([self._vocabulary[symbol] for symbol in run], speed)
            for chunk in self._vocoder.chunks(mel):
                yield chunk.cpu().numpy()


def _runs(symbols: list[str]) -> Iterator[list[str]]:
    """Symbols in runs of at most LONGEST_SYMBOLS, cut behind punctuation where there is some."""
    while len(symbols) > LONGEST_SYMBOLS:
        marks = [i for i, s in enumerate(symbols[:LONGEST_SYMBOLS]) if not s[0].isalpha()]
        end = marks[-1] + 1 if marks else LONGEST_SYMBOLS
        yield symbols[:end]
        symbols = symbols[end:]
    if symbols:
        yield symbols
