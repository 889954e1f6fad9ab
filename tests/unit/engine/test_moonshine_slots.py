"""Moonshine behind the interface of the engine: chunks equal the whole, rows and slots are alone,
nothing is encoded twice, and the second pass has the frames of the whole."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_runner import chunks, tail
from test_whisper_slots import Frames, FrameState
from tiny import noise

from pianissimo.decoding.whisper import WhisperSearch
from pianissimo.decoding.whisper_live import WhisperLiveDecoder
from pianissimo.engine.live_model import LiveModel
from pianissimo.engine.moonshine_slots import MoonshineSecondPass, MoonshineSlots
from pianissimo.engine.runner import Runner
from pianissimo.errors import OptionError
from pianissimo.models.checkpoints.moonshine import MoonshineParts, read_moonshine
from pianissimo.models.streaming_encoder import Rows
from pianissimo.models.whisper import TextRules

GOLDEN = Path(__file__).parents[2] / "parity" / "golden_moonshine" / "streaming"
LENGTHS = (0, 79, 80, 641, 5_000, 24_001, 40_003)
Samples = NDArray[np.float32]


class WideFrames(Frames):
    """Keeps encoder frames of the width of the model."""

    def start(self, batch: int = 1, tries: object = None) -> FrameState:
        zeros = torch.zeros(batch, dtype=torch.long)
        return FrameState([torch.zeros(0, 32)] * batch, zeros, zeros.clone())


@pytest.fixture(scope="module")
def parts() -> MoonshineParts:
    return read_moonshine(GOLDEN)


@pytest.fixture(scope="module")
def slots(parts: MoonshineParts) -> MoonshineSlots:
    return MoonshineSlots(parts.network.encoder)


@pytest.fixture(scope="module")
def live(slots: MoonshineSlots) -> LiveModel:
    return LiveModel(slots, WideFrames(), "frames")  # type: ignore[arg-type]


@torch.no_grad()
def rest_of(
    live: LiveModel, runner: Runner, samples: Samples, lookahead: int, slot: int, *, again: bool
) -> torch.Tensor:
    """The frames of the tail, or of the second pass."""
    grid = live.grid(lookahead)
    work = tail(grid, samples, slot)
    features = None
    if work.mel_frames:
        valid = torch.tensor([work.valid])
        features = live.encoder.features.frames(torch.from_numpy(work.samples)[None], valid)[0]
    done = runner.arena.frames[slot]
    rows = Rows(torch.tensor([slot]), torch.tensor([done]), (done,), slot)
    slots = live.encoder
    assert isinstance(slots, MoonshineSlots)
    if again:
        return slots.whole([features], rows, runner.arena.tensors)[0]
    frames, counts = slots.tail([features], rows, runner.arena.tensors, grid.chunk)
    assert frames.shape[1] == int(counts[0])
    return frames[0]


@pytest.mark.parametrize("mode", [0, 1, 2])
@torch.no_grad()
def test_chunks_and_tail_equal_the_whole(
    live: LiveModel, slots: MoonshineSlots, parts: MoonshineParts, mode: int
) -> None:
    lookahead = slots.lookaheads[mode]
    for length in LENGTHS:
        samples = noise(length)
        runner = Runner(live, 2)
        for work in chunks(live.grid(lookahead), samples, 1):
            runner.step([work], live.grid(lookahead))
        state: FrameState = runner.arena.search  # type: ignore[assignment]
        behind = rest_of(live, runner, samples, lookahead, 1, again=False)
        found = torch.cat([state.seen[1][slots.lag :], behind])
        again = rest_of(live, runner, samples, lookahead, 1, again=True)
        expected = torch.zeros(0, 32)
        if length:
            expected = parts.network.encoder(torch.from_numpy(samples)[None])[0]
        assert found.shape == expected.shape, (length, found.shape, expected.shape)
        assert torch.allclose(found, expected, atol=1e-5), length
        assert torch.equal(again, found)  # the same frames, which were kept


@torch.no_grad()
def test_rows_do_not_depend_on_each_other_and_slots_can_be_used_again(
    live: LiveModel, slots: MoonshineSlots
) -> None:
    lookahead, rng = slots.lookaheads[0], random.Random(7)
    grid = live.grid(lookahead)
    sounds = [noise(n) for n in (9_000, 30_000, 17_000, 40_000)]

    def alone(samples: Samples) -> torch.Tensor:
        runner = Runner(live, 1)
        for work in chunks(grid, samples, 0):
            runner.step([work], grid)
        state: FrameState = runner.arena.search  # type: ignore[assignment]
        return state.seen[0]

    runner = Runner(live, 3)
    for first in (0, 1):  # the second time each slot gets another sound
        order = [sounds[(slot + first) % len(sounds)] for slot in range(3)]
        queues = [list(chunks(grid, samples, slot)) for slot, samples in enumerate(order)]
        for slot in range(3):
            runner.clear(slot)
        while any(queues):
            waiting = [queue for queue in queues if queue]
            chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
            runner.step([queue.pop(0) for queue in chosen], grid)
        state: FrameState = runner.arena.search  # type: ignore[assignment]
        for slot, samples in enumerate(order):
            expected = alone(samples)
            assert state.seen[slot].shape == expected.shape
            assert torch.allclose(state.seen[slot], expected, atol=1e-5)


@torch.no_grad()
def test_no_frame_is_encoded_twice(
    live: LiveModel, slots: MoonshineSlots, parts: MoonshineParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    layer = list(parts.network.encoder.layers)[1]
    project = layer.project
    monkeypatch.setattr(layer, "project", lambda x: (seen.append(x.shape[1]), project(x))[1])
    lookahead, samples = slots.lookaheads[0], noise(40_000)
    runner, grid = Runner(live, 1), live.grid(lookahead)
    for work in chunks(grid, samples, 0):
        runner.step([work], grid)
    rest_of(live, runner, samples, lookahead, 0, again=True)
    frames = parts.network.encoder.encoded(torch.from_numpy(samples)[None]).shape[1]
    # The first inputs of the second layer lie before the beginning: the first layer is behind.
    assert sum(seen[:-1]) == frames + slots.windows[0][1]


@torch.no_grad()
def test_the_second_pass_writes_what_the_whole_gives(
    slots: MoonshineSlots, parts: MoonshineParts
) -> None:
    search = WhisperSearch(parts.network.decoder, TextRules(), end=2, no_speech=2)
    decoder = WhisperLiveDecoder(
        *(search, parts.tokenizer, TextRules(), None, "transcribe", torch.zeros(0, 32)),
        lag=slots.lag,
        final_beam=1,
    )
    model = LiveModel(slots, decoder, "text", MoonshineSecondPass(slots, decoder))
    samples, grid = noise(30_007), slots.grid(slots.lookaheads[0])
    encoded = parts.network.encoder(torch.from_numpy(samples)[None])
    [whole] = decoder.finish(encoded, torch.tensor([encoded.shape[1]]), decoder.start(1))
    assert whole.tokens
    runner = Runner(model, 2)
    partials = [runner.step([work], grid)[0] for work in chunks(grid, samples, 1)]
    rest = tail(grid, samples, 1)
    [final] = runner.finish([replace(rest, again=True)], grid)
    assert (final.tokens, final.frames) == (whole.tokens, whole.frames)
    state = runner.arena.search.segments[1]  # type: ignore[attr-defined]
    written = tuple(token for partial in partials for token in partial.tokens)
    assert state.tokens == written and state.frames == runner.arena.frames[1] - slots.lag
    assert Runner(model, 1).finish([tail(grid, noise(0), 0)], grid)[0].tokens == []


def test_unknown_modes_are_refused(slots: MoonshineSlots) -> None:
    with pytest.raises(OptionError, match="a lookahead of 5 frames is none of"):
        slots.grid(5)
