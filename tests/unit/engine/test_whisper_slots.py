"""Whisper behind the interface of the engine: the three laws, silence behind, the second pass."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_runner import chunks, tail
from tiny import noise

from pianissimo.audio.whisper_features import LIVE_PEAK, SILENT, scaled
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.live_model import LiveModel
from pianissimo.engine.runner import Runner
from pianissimo.engine.whisper_slots import WhisperSlots
from pianissimo.errors import OptionError
from pianissimo.models.streaming_encoder import Rows
from pianissimo.models.whisper import SILENCE_FRAMES, LiveConfig, WhisperConfig, WhisperEncoder
from pianissimo.streaming.grid import TailWork

CONFIG = WhisperConfig(
    n_mels=16, dim=16, ff_dim=32, encoder_heads=2, decoder_heads=2, encoder_layers=2
)
CHUNKS = (8, 4)
LEFT = 20
Samples = NDArray[np.float32]


class Frames:
    """A `Decoder` that keeps the encoder frames it is given."""

    prompts = 1

    def prompt(self, language: str | None) -> int:
        return 0

    def start(self, batch: int = 1, tries: object = None) -> "FrameState":
        zeros = torch.zeros(batch, dtype=torch.long)
        return FrameState([torch.zeros(0, CONFIG.dim)] * batch, zeros, zeros.clone())

    def decode(
        self, encoded: torch.Tensor, lengths: object, state: "FrameState", prompts: object = None
    ) -> list[Hypothesis]:
        state.seen = [torch.cat(pair) for pair in zip(state.seen, encoded, strict=True)]
        return [Hypothesis() for _ in encoded]

    def finish(
        self, encoded: torch.Tensor, lengths: object, state: "FrameState", prompts: object = None
    ) -> list[Hypothesis]:
        return self.decode(encoded, lengths, state)


class FrameState:
    def __init__(self, seen: list[torch.Tensor], frames: torch.Tensor, ahead: torch.Tensor) -> None:
        self.seen, self.frames, self.ahead = seen, frames, ahead

    def rows(self, index: torch.Tensor) -> "FrameState":
        return FrameState(
            [self.seen[i] for i in index.tolist()], self.frames[index], self.ahead[index]
        )

    def write(self, index: torch.Tensor, rows: "FrameState") -> None:
        for i, seen in zip(index.tolist(), rows.seen, strict=True):
            self.seen[i] = seen

    def flush(self) -> list[Hypothesis]:
        return [Hypothesis() for _ in self.seen]


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
    torch.manual_seed(5)
    return WhisperEncoder(CONFIG).eval()


@pytest.fixture(scope="module")
def slots(encoder: WhisperEncoder) -> WhisperSlots:
    return WhisperSlots(encoder, LiveConfig(LEFT, CHUNKS))


@pytest.fixture
def live(slots: WhisperSlots) -> LiveModel:
    return LiveModel(slots, Frames(), "frames")  # type: ignore[arg-type]


def whole_mel(slots: WhisperSlots, samples: Samples, silence: int = 0) -> torch.Tensor:
    """(1, T, F) mel frames, by their definition, and silence behind them in encoder frames."""
    padded = torch.from_numpy(np.pad(samples, (201, 400)))[None]
    frames = slots.features.frames(padded)[:, : len(samples) // 160]
    length = -(-frames.shape[1] // 2) + silence
    return torch.nn.functional.pad(frames, (0, 0, 0, 2 * length - frames.shape[1]), value=SILENT)


def features(slots: WhisperSlots, rest: TailWork) -> torch.Tensor | None:
    """What the runner makes of a tail."""
    if not rest.mel_frames:
        return None
    samples = torch.from_numpy(rest.samples)[None]
    return slots.features.frames(samples, torch.tensor([rest.valid]))[0]


@torch.no_grad()
def encoded(live: LiveModel, samples: Samples, lookahead: int, slot: int = 0) -> torch.Tensor:
    runner = Runner(live, slot + 1)
    grid = live.grid(lookahead)
    for work in chunks(grid, samples, slot):
        runner.step([work], grid)
    state: FrameState = runner.arena.search  # type: ignore[assignment]
    return state.seen[slot]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("length", [0, 2_759, 2_760, 20_000, 40_003])
@torch.no_grad()
def test_chunks_equal_the_chunked_whole(
    live: LiveModel, slots: WhisperSlots, encoder: WhisperEncoder, chunk: int, length: int
) -> None:
    """Whole chunks, the tail with its silence, and a history longer than the left context."""
    samples, grid = noise(length), live.grid(chunk - 1)
    runner = Runner(live, 2)
    for work in chunks(grid, samples, 1):
        runner.step([work], grid)
    state: FrameState = runner.arena.search  # type: ignore[assignment]
    frames = runner.arena.frames[1]
    rows = Rows(torch.tensor([1]), torch.tensor([frames]), (frames,), 1)
    rest = tail(grid, samples, 1)
    behind, counts = slots.tail([features(slots, rest)], rows, runner.arena.tensors, chunk)
    found = torch.cat([state.seen[1], behind[0]])
    if not length:
        assert not len(found)
        return
    audio = len(state.seen[1]) + int(counts)
    assert audio in (length // 320, -(-(length // 160) // 2))
    mel = whole_mel(slots, samples, SILENCE_FRAMES)
    expected = encoder.chunked(scaled(mel, LIVE_PEAK), chunk, LEFT)[0]
    n = min(len(found), len(expected))
    # The last audio frame may lie under the last chunk's look ahead, where the end is not known.
    near = slice(0, max(0, len(state.seen[1]) - 1))
    assert torch.allclose(found[near], expected[near], atol=1e-4)
    if rest.mel_frames:
        known = slice(0, n - chunk)  # `chunked` takes what follows its end for nothing
        assert torch.allclose(found[known], expected[known], atol=1e-4)


@torch.no_grad()
def test_a_batch_equals_each_stream_alone(live: LiveModel) -> None:
    grid, rng = live.grid(3), random.Random(1)
    sounds = [noise(rng.randint(8_000, 30_000), seed=i) for i in range(4)]
    runner = Runner(live, 6)
    waiting = {i: list(chunks(grid, s, i + 1)) for i, s in enumerate(sounds)}
    while any(waiting.values()):
        ready = [i for i, works in waiting.items() if works]
        chosen = rng.sample(ready, rng.randint(1, len(ready)))
        runner.step([waiting[i].pop(0) for i in chosen], grid)
    state: FrameState = runner.arena.search  # type: ignore[assignment]
    for i, sound in enumerate(sounds):
        assert torch.allclose(state.seen[i + 1], encoded(live, sound, 3), atol=1e-4)


@torch.no_grad()
def test_a_used_slot_equals_a_new_one(live: LiveModel) -> None:
    grid, samples = live.grid(7), noise(20_000, seed=5)
    runner = Runner(live, 1)
    for work in chunks(grid, noise(30_000, seed=6) * 3, 0):
        runner.step([work], grid)
    runner.clear(0)
    for work in chunks(grid, samples, 0):
        runner.step([work], grid)
    state: FrameState = runner.arena.search  # type: ignore[assignment]
    assert torch.allclose(state.seen[0], encoded(live, samples, 7), atol=1e-5)


@torch.no_grad()
def test_the_second_pass_sees_the_segment_as_published(
    live: LiveModel, slots: WhisperSlots, encoder: WhisperEncoder
) -> None:
    samples, grid = noise(20_003), live.grid(7)
    runner = Runner(live, 1)
    for work in chunks(grid, samples, 0):
        runner.step([work], grid)
    mel = features(slots, tail(grid, samples, 0))
    known = slots.mels(mel, 0, runner.arena.frames[0], runner.arena.tensors)
    for silence in (SILENCE_FRAMES, 30):
        found, count = slots.encode_whole(known, silence)
        assert count == -(-(20_003 // 160) // 2)
        expected = encoder(scaled(whole_mel(slots, samples, silence)))
        assert torch.allclose(found, expected, atol=1e-4)


@torch.no_grad()
def test_the_second_pass_may_have_an_encoder_of_its_own(
    slots: WhisperSlots, encoder: WhisperEncoder
) -> None:
    torch.manual_seed(6)
    whole = WhisperEncoder(CONFIG).eval()
    both = WhisperSlots(encoder, LiveConfig(LEFT, CHUNKS), whole)
    found, _ = both.encode_whole(whole_mel(slots, noise(20_003))[0], SILENCE_FRAMES)
    mel = scaled(whole_mel(slots, noise(20_003), SILENCE_FRAMES))
    assert torch.allclose(found, whole(mel), atol=1e-4)
    assert not torch.allclose(found, encoder(mel), atol=0.1)


@torch.no_grad()
def test_the_runner_hands_a_second_pass_the_state_of_its_rows(live: LiveModel) -> None:
    samples, grid = noise(20_003), live.grid(7)
    seen = []

    class Spy:
        def finish(
            self,
            features: list[torch.Tensor | None],
            rows: Rows,
            memory: object,
            state: FrameState,
            prompts: torch.Tensor,
        ) -> list[Hypothesis]:
            seen.append((features, rows, state, prompts))
            return [Hypothesis([5], [0], [0.0], [1.0])]

    runner = Runner(replace(live, second_pass=Spy()), 1)
    for work in chunks(grid, samples, 0):
        runner.step([work], grid)
    rest = tail(grid, samples, 0)
    again = TailWork(0, rest.samples, rest.mel_frames, rest.valid, False, again=True)
    assert runner.finish([again], grid)[0].tokens == [5]
    [(tails, rows, state, prompts)] = seen
    assert rows.counts == (runner.arena.frames[0],) and len(prompts) == 1
    assert tails[0] is not None and len(tails[0]) == rest.mel_frames
    assert len(state.seen[0]) == runner.arena.frames[0]


def test_modes_that_the_weights_do_not_have_are_refused(slots: WhisperSlots) -> None:
    with pytest.raises(OptionError, match="lookahead of 5"):
        slots.grid(5)
    with pytest.raises(OptionError, match="left context of 3"):
        WhisperSlots(slots.encoder, LiveConfig(3, (8,)))
