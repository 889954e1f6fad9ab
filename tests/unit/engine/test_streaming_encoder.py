"""Another encoder behind the same interface: a causal convolution and cached attention.

It lives in this file alone. That the runner and the engine run it, chunked as whole, batched as
alone and in a used slot as in a new one, shows that they know no encoder's insides.
"""

import random
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_runner import assert_same, chunks, tail, through
from tiny import DIM, make_talker, noise, tensor
from torch import Tensor
from torch.nn import functional as F

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.decoding.decoder import SearchDecoder
from pianissimo.decoding.search import make_search
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.engine.live_model import LiveModel
from pianissimo.engine.runner import Runner
from pianissimo.models.asr import AsrModel
from pianissimo.models.streaming_encoder import Memory, Rows, SlotTensor
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.grid import ChunkGrid
from pianissimo.text.tokenizer import Tokenizer

FACTOR, LEFT, BINS = 2, 20, 80
LOOKAHEADS = (3, 1, 0)
Samples = NDArray[np.float32]


class CausalEncoder:
    """Frames of 20 ms: one convolution, absolute positions, one layer of attention over the chunk
    and the 20 frames before it."""

    def __init__(self) -> None:
        self.features = MelFeatures(FeatureConfig(n_mels=BINS, fft_samples=400, preemphasis=0.0))
        self.lookaheads = LOOKAHEADS
        self.device, self.dtype = torch.device("cpu"), torch.float32
        ring = SlotTensor((LEFT, DIM), ring=True)
        self.slot_tensors: Mapping[str, SlotTensor] = {
            "stem": SlotTensor((1, BINS)),
            "key": ring,
            "value": ring,
        }
        self.convolution = 0.1 * tensor(DIM, BINS, 3, seed=1)
        self.project = tensor(DIM, 3 * DIM, seed=2) / DIM**0.5

    def grid(self, lookahead: int) -> ChunkGrid:
        return ChunkGrid(lookahead + 1, FACTOR, self.features.config)

    def stem(self, features: Tensor) -> Tensor:
        """(B, T, F), with what lies before -> (B, about T / 2, D)."""
        return F.conv1d(features.transpose(1, 2), self.convolution, stride=2).transpose(1, 2)

    def attend(self, x: Tensor, first: Tensor, past: Memory, seen: Tensor) -> tuple[Tensor, Memory]:
        """x (B, Q, D) whose positions begin at first (B,), behind keys and values (B, L, D)."""
        position = first[:, None, None] + torch.arange(x.shape[1])[:, None]
        x = x + torch.sin(position * torch.arange(1, DIM + 1) / 30)
        query, key, value = (x @ self.project).chunk(3, dim=-1)
        keys = torch.cat([past["key"], key], dim=1)
        values = torch.cat([past["value"], value], dim=1)
        scores = (query @ keys.transpose(1, 2) / DIM**0.5).masked_fill(~seen, -torch.inf)
        return x + scores.softmax(-1) @ values, {"key": key, "value": value}

    def subsample(
        self, features: Tensor, slots: Tensor, memory: Memory, *, first: bool
    ) -> tuple[Tensor, Memory]:
        past = features.new_zeros(len(slots), 2, BINS) if first else memory["stem"][slots]
        features = torch.cat([past, features], dim=1)
        return self.stem(features), {"stem": features[:, -1:]}

    def encode(self, x: Tensor, rows: Rows, memory: Memory, chunk: int) -> tuple[Tensor, Memory]:
        B, Q, _ = x.shape
        age = (torch.arange(LEFT) - rows.frames[:, None]) % LEFT
        exists = rows.frames[:, None] - LEFT + age >= 0
        seen = torch.cat([exists, torch.ones(B, Q, dtype=torch.bool)], dim=1)[:, None]
        past = {name: memory[name][rows.slots] for name in ("key", "value")}
        return self.attend(x, rows.frames, past, seen)

    def tail(
        self, features: Sequence[Tensor | None], rows: Rows, memory: Memory, chunk: int
    ) -> tuple[Tensor, Tensor]:
        assert rows.counts is not None
        parts = []
        for i, mel in enumerate(features):
            slot = slice(i, i + 1)
            first = rows.counts[i] == 0
            x = torch.zeros(1, 0, DIM)
            if mel is not None and (first or len(mel) > 1):
                x, _ = self.subsample(mel[None], rows.slots[slot], memory, first=first)
            row = Rows(rows.slots[slot], rows.frames[slot])
            parts.append(self.encode(x, row, memory, chunk)[0][0])
        counts = torch.tensor([len(part) for part in parts])
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), counts

    def whole(self, samples: Samples, lookahead: int) -> Tensor:
        """All frames of a recording at once, each by its definition: (S, D)."""
        mel = self.features.whole(torch.from_numpy(samples))
        if not len(mel):
            return torch.zeros(0, DIM)
        x = self.stem(F.pad(mel, (0, 0, 2, 0))[None])
        S, C = x.shape[1], lookahead + 1
        at = torch.arange(S)
        begin = (at // C * C)[:, None]
        seen = (at >= begin - LEFT) & (at < begin + C)
        nothing = {name: x[:, :0] for name in ("key", "value")}
        return self.attend(x, torch.zeros(1), nothing, seen)[0][0]


@pytest.fixture(scope="module")
def live() -> LiveModel:
    model = make_talker(0.0)
    return LiveModel(CausalEncoder(), SearchDecoder(model, make_search(model)), "causal")


@torch.no_grad()
def whole(live: LiveModel, samples: Samples, lookahead: int) -> Hypothesis:
    assert isinstance(live.encoder, CausalEncoder)
    encoded = live.encoder.whole(samples, lookahead)[None]
    return live.decoder.decode(encoded, None, live.decoder.start())[0]


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("length", [0, 1, 160, 499, 500, 1480, 2999, 20_161, 40_003])
def test_chunks_equal_the_whole(live: LiveModel, lookahead: int, length: int) -> None:
    samples = noise(length)
    found = through(Runner(live, 2), live.grid(lookahead), samples, 1)
    assert_same(found, whole(live, samples, lookahead))
    assert len(found.tokens) >= length // 2000


def test_the_modes_differ(live: LiveModel) -> None:
    """Otherwise the test above would prove nothing about chunks."""
    said = {tuple(whole(live, noise(40_003), r).log_probs) for r in LOOKAHEADS}
    assert len(said) == len(LOOKAHEADS)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_a_batch_equals_each_stream_alone(live: LiveModel, lookahead: int) -> None:
    grid, rng = live.grid(lookahead), random.Random(lookahead)
    sounds = [noise(rng.randint(8_000, 30_000), seed=i) for i in range(4)]
    runner, slots = Runner(live, 6), rng.sample(range(6), 4)
    waiting = {i: list(chunks(grid, s, slots[i])) for i, s in enumerate(sounds)}
    found = [Hypothesis() for _ in sounds]
    while any(waiting.values()):
        ready = [i for i, works in waiting.items() if works]
        chosen = rng.sample(ready, rng.randint(1, len(ready)))
        results = runner.step([waiting[i].pop(0) for i in chosen], grid)
        for i, hypothesis in zip(chosen, results, strict=True):
            found[i].extend(hypothesis)
    tails = [tail(grid, s, slots[i]) for i, s in enumerate(sounds)]
    for i, hypothesis in enumerate(runner.finish(tails, grid)):
        found[i].extend(hypothesis)
    for i, sound in enumerate(sounds):
        assert_same(found[i], whole(live, sound, lookahead))


def test_a_used_slot_equals_a_new_one(live: LiveModel) -> None:
    grid, samples = live.grid(1), noise(20_000, seed=5)
    runner = Runner(live, 1)
    through(runner, grid, noise(30_000, seed=6) * 3, 0)
    runner.clear(0)
    assert_same(through(runner, grid, samples, 0), whole(live, samples, 1))


def test_a_saved_stream_continues_exactly(live: LiveModel) -> None:
    grid, samples = live.grid(1), noise(20_000)
    first, second = Runner(live, 1), Runner(live, 2)
    found = Hypothesis()
    for work in list(chunks(grid, samples, 0))[:17]:
        found.extend(first.step([work], grid)[0])
    saved = first.arena.save(0)
    assert {"stem", "key", "value"} < saved.keys()
    second.arena.restore(1, saved, first.arena.frames[0])
    for work in list(chunks(grid, samples, 1))[17:]:
        found.extend(second.step([work], grid)[0])
    found.extend(second.finish([tail(grid, samples, 1)], grid)[0])
    assert_same(found, whole(live, samples, 1))


class CausalRecognizer(NativeRecognizer):
    """The heads and the latency modes of a talker behind the other encoder."""

    @cached_property
    def live(self) -> LiveModel:
        return LiveModel(CausalEncoder(), SearchDecoder(self.model, self.live_search), "causal")


def test_the_engine_runs_it(talker: AsrModel, tiny_tokenizer: Tokenizer) -> None:
    """Several streams in turn and side by side, in more streams than slots."""
    recognizer = CausalRecognizer(talker, tiny_tokenizer)
    sounds = [noise(20_000 + 3_000 * i, seed=i) for i in range(5)]
    expected = []
    for sound in sounds:
        hypothesis = whole(recognizer.live, sound, 1)
        expected.append(tiny_tokenizer.decode(hypothesis.tokens).strip())
    assert len(set(expected)) == len(sounds)
    options = EngineOptions(threads=1, freeze_garbage=False)
    texts = []
    with Engine(recognizer, max_streams=2, options=options) as engine:
        for pair in (sounds[:2], sounds[2:4], sounds[4:]):
            sessions = [engine.open(latency_ms=160, endpoint=None, watchdog=None) for _ in pair]
            for start in range(0, max(map(len, pair)), 4_000):
                for session, sound in zip(sessions, pair, strict=True):
                    session.push(sound[start : start + 4_000])
            for session in sessions:
                session.finish()
            for session in sessions:
                finals = [event.text for event in session if event.type == "final"]
                texts.append(" ".join(text for text in finals if text))
    assert texts == expected
