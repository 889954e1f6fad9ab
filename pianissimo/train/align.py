"""Where the words of a transcript lie in its recording, by CTC forced alignment.

Viterbi over the CTC lattice (Graves et al. 2006, section 4.1, with max for sum). Cutting recordings
at word borders gives isolated words that no corpus of sentences has.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.models.asr import AsrModel
from pianissimo.text.tokenizer import WORD_START, Tokenizer

Samples = NDArray[np.float32]
ENERGY_WINDOW_SECONDS = 0.02


def align_tokens(log_probs: NDArray[np.float32], tokens: list[int], blank: int) -> list[int] | None:
    """The frame of each token on the best path through (S, V + 1) log-probabilities.

    None if the frames cannot hold the tokens.
    """
    frames = len(log_probs)
    repeats = sum(a == b for a, b in pairwise(tokens))
    if not tokens or len(tokens) + repeats > frames:
        return None
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    can_skip = np.zeros(len(states), dtype=bool)
    can_skip[3::2] = states[3::2] != states[1:-2:2]
    emitted = log_probs[:, states].astype(np.float64)
    score = np.full(len(states), -np.inf)
    score[:2] = emitted[0, :2]
    came_from = np.zeros((frames, len(states)), dtype=np.int8)
    for t in range(1, frames):
        step = np.concatenate([[-np.inf], score[:-1]])
        skip = np.where(can_skip, np.concatenate([[-np.inf, -np.inf], score[:-2]]), -np.inf)
        choices = np.stack([score, step, skip])
        came_from[t] = choices.argmax(0)
        score = choices.max(0) + emitted[t]
    state = len(states) - (1 if score[-1] >= score[-2] else 2)
    first = [0] * len(tokens)
    for t in range(frames - 1, -1, -1):
        if state % 2:
            first[state // 2] = t
        state -= int(came_from[t, state])
    return first


def word_cuts(
    samples: Samples, text: str, model: AsrModel, tokenizer: Tokenizer
) -> Iterator[tuple[str, float, float]]:
    """The words of a recording with the start and end of each in seconds.

    Borders are the quietest moments between the frames where neighbouring words were recognised;
    nothing is yielded for a recording too short for its text.
    """
    tokens = tokenizer.encode(text)
    mel = model.features.whole(torch.from_numpy(samples))
    with torch.inference_mode():
        encoded, _ = model.encoder(mel[None], torch.tensor([len(mel)]))
        assert model.ctc is not None
        log_probs = model.ctc(encoded)[0].numpy()
    frames = align_tokens(log_probs, tokens, model.config.vocab_size)
    if frames is None:
        return
    starts = [i for i, t in enumerate(tokens) if tokenizer.pieces[t].startswith(WORD_START)]
    if len(starts) != len(text.split()):
        return
    seconds = model.config.frame_seconds
    borders = [0.0]
    for i in starts[1:]:
        borders.append(quietest(samples, frames[i - 1] * seconds, frames[i] * seconds))
    borders.append(len(samples) / SAMPLE_RATE)
    yield from zip(text.split(), borders, borders[1:], strict=False)


def quietest(samples: Samples, start: float, end: float) -> float:
    """The moment of least energy between `start` and `end`, in seconds."""
    window = int(ENERGY_WINDOW_SECONDS * SAMPLE_RATE)
    part = samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
    if len(part) <= window:
        return (start + end) / 2
    energy = np.convolve(part**2, np.ones(window, np.float32), mode="valid")
    return start + (int(energy.argmin()) + window / 2) / SAMPLE_RATE
