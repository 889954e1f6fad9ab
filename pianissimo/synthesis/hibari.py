"""The default voices: hibari-tts, English, small and fast on one CPU core, inside its package.

The package of `heart` holds the weights, the lexicon and the rules for numbers and unknown words.
Other voices are files that it would download on first use; here they are used only if they exist.
"""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pianissimo.audio.io import Samples
from pianissimo.errors import MissingExtraError, ModelNotFoundError, TextError
from pianissimo.synthesis.base import BaseSynthesizer, trim_silence

if TYPE_CHECKING:
    pass

DEFAULT_VOICE = "heart"
LONGEST_PHONEMES = 400
"""Of one run of the network, which was trained on sentences."""


@dataclass(frozen=True)
class HibariVoice:
    """A voice that hibari-tts knows: `file` is where its model lies, if it is on this machine."""

    name: str
    language: str
    file: Path

    @property
    def installed(self) -> bool:
        return self.file.is_file()


def hibari_voices() -> list[HibariVoice]:
    """All voices that hibari-tts knows, the default first; none without the package."""
    try:
        from hibari import voices
    except ImportError:
        return []
    return [
        HibariVoice(
            name,
            facts["language"],
            Path(voices.ASSETS if facts.get("bundled") else voices.cache_dir()) / facts["file"],
        )
        for name, facts in sorted(voices.VOICES.items(), key=lambda item: item[0] != DEFAULT_VOICE)
    ]


class HibariSynthesizer(BaseSynthesizer):
    """A voice of hibari-tts. Raises MissingExtraError and ModelNotFoundError."""

    def __init__(self, voice: str = DEFAULT_VOICE) -> None:
        known = {each.name: each for each in hibari_voices()}
        if not known:
            raise MissingExtraError(
                f"the voice {voice} needs the hibari-tts package: pip install 'pianissimo[tts]'"
            )
        from hibari import SAMPLE_RATE, Hibari

        if voice not in known:
            raise ModelNotFoundError(f"unknown voice {voice!r}; choose {', '.join(known)}")
        file = known[voice].file
        if not file.is_file():
            raise ModelNotFoundError(
                f"the voice {voice} is not on this machine; run `hibari --voice {voice} Hello.` "
                f"once to download it, or copy {file.name} to {file.parent}"
            )
        super().__init__(voice, known[voice].language, SAMPLE_RATE)
        self._hibari: Hibari = Hibari(voice, model=str(file))
        self._phonemizing = threading.Lock()  # the lexicon fills caches; the network is thread-safe
        self._sentence_ids("Warm up.")

    def _sentence(self, text: str, speed: float, seed: int | None) -> Iterator[Samples]:
        for ids in self._sentence_ids(text):
            samples = self._hibari.from_ids(ids, speed, np.random.default_rng(seed))
            yield trim_silence(samples, self.sample_rate)

    def _sentence_ids(self, text: str) -> list[list[int]]:
        """The phonemes of a sentence as ids, in runs that the network can speak at once."""
        try:
            with self._phonemizing:
                phrases = self._hibari.phonemize(text)
        except (IndexError, KeyError, ValueError) as error:  # of numbers and symbols it cannot read
            raise TextError(f"{text[:40]!r} cannot be pronounced; write it in words") from error
        runs = [run for phrase in phrases for run in _runs(phrase)]
        return [self._hibari.ids(run) for run in runs]


def _runs(phonemes: str) -> Iterator[str]:
    """Phonemes in runs of at most LONGEST_PHONEMES, cut between words where there are words."""
    while len(phonemes) > LONGEST_PHONEMES:
        space = phonemes.rfind(" ", 0, LONGEST_PHONEMES)
        end = space if space > 0 else LONGEST_PHONEMES
        yield phonemes[:end]
        phonemes = phonemes[end:].lstrip()
    if re.search(r"\w", phonemes):
        yield phonemes
