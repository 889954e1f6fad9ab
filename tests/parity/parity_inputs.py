"""What both sides of a parity test must agree on: input signals, model sizes, list of cases.

The signals are made by integer arithmetic, so every machine computes the same bits and no audio
has to be stored. Needs nothing but NumPy: the oracles run in an environment of their own.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

SEED = 20261121
SAMPLE_RATE = 16000

CLIP_SAMPLES = (69_123, 40_007, 16_001)
"""Three clips of unequal length, decoded alone and as one batch."""

CORPUS = (
    "The stream of speech comes in while the words come out.",
    "Yes, no, and then some: we hear a sound, we write a text.",
    "Where is the end? It is here, at the end of the sentence.",
    "She sells sea shells; he tells tales to the sea and the trees.",
    "No one hears the rest of this test in the west.",
)
"""Text the tiny SentencePiece tokenizers are trained on."""

VOCABULARY = 40


@dataclass(frozen=True)
class Plan:
    """Sizes of the tiny models and the cases to compute; lengths in samples or mel frames."""

    name: str
    width: int
    channels: int
    predictor: int
    joiner: int
    feature_samples: tuple[int, ...]
    feature_batch: tuple[int, ...]
    subsampling_frames: tuple[int, ...]
    encoder_frames: tuple[int, ...]
    encoder_batch: tuple[int, ...]
    stream_frames: tuple[int, ...]
    expansion: int
    layers: int = 2
    heads: int = 4

    def lighter(self, batch: bool = False) -> "Plan":
        """The same plan where it only repeats what another variant has shown: stored cases cost."""
        if self is not GOLDEN:
            return self
        return replace(
            self,
            feature_samples=(161, 2_345),
            feature_batch=(1_777, 160, 2_345) if batch else (),
            subsampling_frames=(1, 8, 9, 33),
            encoder_frames=(9, 57, 761),
            stream_frames=(340,),
        )


GOLDEN = Plan(
    name="golden",
    width=16,
    channels=8,
    predictor=12,
    joiner=20,
    expansion=2,
    feature_samples=(1, 159, 160, 161, 399, 400, 2_345, 16_000),
    feature_batch=(2_345, 1_600, 2_777, 159),
    subsampling_frames=tuple(range(1, 41)),
    encoder_frames=(1, 8, 9, 57, 905),
    encoder_batch=(100, 8, 77),
    stream_frames=(905,),
)

FULL = Plan(
    name="full",
    width=64,
    channels=16,
    predictor=32,
    joiner=48,
    expansion=4,
    feature_samples=(1, 159, 160, 161, 399, 400, 12_345, 16_000, 33_333),
    feature_batch=(16_000, 1_600, 12_345, 159, 8_001),
    subsampling_frames=tuple(range(1, 41)),
    encoder_frames=(1, 2, 7, 8, 9, 10, 16, 17, 57, 113, 233, 777, 905, 1_003, 1_501),
    encoder_batch=(233, 100, 8, 201, 1, 905),
    stream_frames=(905, 340, 1_002, 1_204),
)

PLANS = {plan.name: plan for plan in (GOLDEN, FULL)}


def random_integers(count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` integers of 24 bits, uniform: SplitMix64 (Steele et al. 2014) over a counter."""
    state = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 20)
    state *= np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((state ^ (state >> np.uint64(31))) >> np.uint64(40)).astype(np.int64)


def mel(frames: int, bins: int, seed: int = 0) -> Floats:
    """Random mel frames (T, F), nearly normal, in steps of 1/64 between -6 and 6."""
    uniform = random_integers(frames * bins * 4, seed + 1000).reshape(frames, bins, 4) >> 14
    return ((uniform.sum(-1) - 2046) // 6).astype(np.float32) / 64


def waveform(samples: int, seed: int = 0) -> Floats:
    """A babble (N,) in 16-bit steps: triangle waves, noise, now and then silence."""
    time = np.arange(samples, dtype=np.int64)
    segment = time // 1600
    out = (random_integers(samples, seed + 2000) >> 13) - 1024
    out = out * (random_integers(int(samples) // 1600 + 1, seed + 2500)[segment] >> 21) // 4
    for voice in range(4):
        table = random_integers(3 * (samples // 1600 + 1), seed + 3000 + voice).reshape(-1, 3)
        step, glide, loud = (table[segment, column] for column in range(3))
        inside = time % 1600
        phase = inside * (300 + step % (3000 << voice)) + inside * inside * (glide % 5) // 8
        triangle = np.abs(phase % 65536 - 32768) - 16384
        out += triangle * np.maximum(loud >> 20, 0) // 80
    out[segment % 10 == 3] = 0
    return np.clip(out, -32768, 32767).astype(np.float32) / 32768


BEAMS = (1, 4, 16, 32)
BEAM_SYMBOLS = 3
"""Labels a frame at most, in beam searches."""


def encoded_rows() -> Floats:
    """Encoder frames for beam searches in golden models: (6, 8, D)."""
    return np.stack([mel(8, GOLDEN.width, seed=70 + row) for row in range(6)]) / 2
