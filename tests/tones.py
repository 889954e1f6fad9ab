"""Speech for models of a few thousand weights: each word a tone, and manifests of such clips."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16_000
WORDS = {"yes": 500.0, "no": 1500.0, "end": 4000.0}


def spoken(text: str, seed: int = 0, pitch: float = 1.0) -> NDArray[np.float32]:
    """Each word a tone of its own, 0.3 s long, between as much of near silence."""
    time = np.arange(round(0.3 * RATE)) / RATE
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal(len(time)) * 1e-3]
    for word in text.split():
        tone = 0.3 * np.sin(2 * np.pi * WORDS[word] * pitch * time)
        parts += [tone, rng.standard_normal(len(time)) * 1e-3]
    return np.concatenate(parts).astype(np.float32)


def sentences(count: int, seed: int = 0) -> Iterator[str]:
    """Random sequences of one to four words."""
    rng = random.Random(seed)
    for _ in range(count):
        yield " ".join(rng.choice(sorted(WORDS)) for _ in range(rng.randint(1, 4)))


def write_clips(
    folder: Path, name: str, texts: list[str], seed: int = 0, pitch: float = 1.0, **extra: Any
) -> Path:
    """Clips of these texts in `folder/name/` and their manifest `folder/name.jsonl`."""
    (folder / name).mkdir(parents=True)
    rows = []
    for i, text in enumerate(texts):
        samples = spoken(text, 1000 * seed + i, pitch)
        soundfile.write(folder / name / f"{i}.wav", samples, RATE, subtype="PCM_16")
        row = {"audio_filepath": f"{name}/{i}.wav", "duration": len(samples) / RATE, "text": text}
        rows.append(json.dumps({**row, **extra}) + "\n")
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(rows), encoding="utf-8")
    return manifest
