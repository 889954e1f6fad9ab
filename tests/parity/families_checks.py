"""Our numbers for wav2vec 2.0 and its kin against the oracle's: one function per thing compared.

The keys of the arrays are explained at the top of `oracle_families.py`.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_inputs import CLIP_SAMPLES, SAMPLE_RATE, waveform
from torch import Tensor

import pianissimo
from pianissimo.models.wav2vec2 import Wav2Vec2, normalize_waveform
from pianissimo.models.wav2vec2_bert import Wav2Vec2Bert
from pianissimo.recognizers.wav2vec2 import CtcFamilyRecognizer
from pianissimo.transcript import Transcript

HERE = Path(__file__).resolve().parent
LOGITS = 5e-6
MEL_LOGITS = 1e-4
"""Transformers computes mel spectra in double precision."""
BATCH = 5e-6
"""All differences are relative to the largest logit, which is between 5 and 50 here."""
LONG_SAMPLES, LONG_SEED = 75 * SAMPLE_RATE + 123, 9


@dataclass(frozen=True)
class FamilyCase:
    """One folder of the oracle and what the oracle computed with it."""

    folder: Path
    name: str

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{self.name}.npz") as file:
            return dict(file)

    @cached_property
    def facts(self) -> dict[str, Any]:
        text = (self.folder / f"{self.name}.json").read_text(encoding="utf-8")
        facts: dict[str, Any] = json.loads(text)
        return facts

    def load(self, language: str | None = None) -> CtcFamilyRecognizer:
        found = pianissimo.load(self.folder / self.name, device="cpu", language=language)
        assert isinstance(found, CtcFamilyRecognizer)
        found.detector = None  # type: ignore[assignment]  # it would find no speech in waveforms
        return found

    @cached_property
    def recognizer(self) -> CtcFamilyRecognizer:
        return self.load()


def read_family_cases(folder: Path) -> list[FamilyCase]:
    return [FamilyCase(folder, path.stem) for path in sorted(folder.glob("*.npz"))]


def run_families_oracle(python: Path, out: Path, plan: str) -> None:
    """Write the checkpoints and outputs of the oracle into a folder."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONPATH", None)
    command = [str(python), str(HERE / "oracle_families.py"), str(out), "--plan", plan]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def heard(model: Wav2Vec2 | Wav2Vec2Bert, count: int) -> Tensor:
    samples = torch.from_numpy(waveform(count, seed=count))
    return normalize_waveform(samples) if model.config.normalize else samples


def close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    assert worst <= tolerance, f"{what}: differs by {worst:.2g}, more than {tolerance:.2g}"


def check_logits(case: FamilyCase) -> None:
    model = case.recognizer.model
    for key, array in case.arrays.items():
        if key.startswith("logits/"):
            samples = heard(model, int(key.split("/")[1]))
            ours, counts = model(samples[None], [len(samples)])
            assert counts == [len(array)]
            tolerance = LOGITS if isinstance(model, Wav2Vec2) else MEL_LOGITS
            close(ours[0], torch.from_numpy(array), tolerance, key)


def check_batch(case: FamilyCase) -> None:
    """A padded batch, its padding set to 7 so that leaks show, equals each clip alone."""
    model = case.recognizer.model
    rows = [heard(model, int(key.split("/")[1])) for key in case.arrays if "logits/" in key]
    lengths = [len(row) for row in rows]
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0)
    together, counts = model(batch, lengths)
    assert len(set(counts)) > 1
    for row, count, found in zip(rows, counts, together, strict=True):
        alone, _ = model(row[None], [len(row)])
        close(found[:count], alone[0], BATCH, f"{len(row)} samples in a batch")


def check_text(case: FamilyCase) -> None:
    samples = waveform(CLIP_SAMPLES[0], seed=0)
    same_text(case.recognizer.transcribe(samples, sample_rate=SAMPLE_RATE), case.facts)


def check_long(case: FamilyCase) -> None:
    """Windows with overlaps, cut and joined as the pipeline of Transformers does."""
    samples = waveform(LONG_SAMPLES, seed=LONG_SEED)
    same_text(case.recognizer.transcribe(samples, sample_rate=SAMPLE_RATE), case.facts["long"])


def same_text(ours: Transcript, theirs: dict[str, Any]) -> None:
    assert ours.text == " ".join(theirs["text"].split())
    assert len(ours.words) == len(theirs["words"])
    for word, (text, start, end) in zip(ours.words, theirs["words"], strict=True):
        # Their words keep capitals where their text is lower case.
        assert word.text.lower() == text.lower()
        assert (word.start, word.end) == (round(start, 6), round(end, 6))


def check_adapters(case: FamilyCase) -> None:
    for key, array in case.arrays.items():
        if key.startswith("adapter/"):
            _, language, count = key.split("/")
            model = case.load(language).model
            assert model.config.language == language
            samples = heard(model, int(count))
            ours, _ = model(samples[None], [len(samples)])
            close(ours[0], torch.from_numpy(array), LOGITS, key)


CHECKS: dict[str, Callable[[FamilyCase], None]] = {
    "logits": check_logits,
    "batch": check_batch,
    "text": check_text,
    "long": check_long,
    "adapters": check_adapters,
}


def checks_of(case: FamilyCase) -> list[str]:
    lacking = set()
    if "long" not in case.facts:
        lacking.add("long")
    if not any(key.startswith("adapter/") for key in case.arrays):
        lacking.add("adapters")
    return [name for name in CHECKS if name not in lacking]
