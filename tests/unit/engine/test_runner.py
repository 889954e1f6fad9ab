"""The batched step of streams in slots against the same streams alone and whole."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import make_talker, noise

from pianissimo.decoding.search import Head, make_search
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.live_model import LiveModel, live_model
from pianissimo.engine.runner import Runner
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel, LanguagePrompt, PromptConfig
from pianissimo.streaming.grid import ChunkGrid, ChunkWork, TailWork

LOOKAHEADS = (0, 1, 6, 13)
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> AsrModel:
    return make_talker(0.0)


@pytest.fixture(scope="module", params=["transducer", "ctc"])
def live(request: pytest.FixtureRequest, model: AsrModel) -> LiveModel:
    return live_model(model, make_search(model, request.param))


def window(samples: Samples, start: int, end: int) -> Samples:
    out = np.zeros(end - start, np.float32)
    a, b = max(start, 0), min(end, len(samples))
    if a < b:
        out[a - start : b - start] = samples[a:b]
    return out


def chunks(grid: ChunkGrid, samples: Samples, slot: int) -> Iterator[ChunkWork]:
    k = 0
    while grid.needed(k) <= len(samples):
        yield ChunkWork(slot, window(samples, *grid.window(k)))
        k += 1


def tail(grid: ChunkGrid, samples: Samples, slot: int, *, continues: bool = False) -> TailWork:
    k = len(list(chunks(grid, samples, slot)))
    start, end, frames = grid.rest(k, len(samples))
    return TailWork(slot, window(samples, start, end), frames, len(samples) - start, continues)


def through(runner: Runner, grid: ChunkGrid, samples: Samples, slot: int) -> Hypothesis:
    found = Hypothesis()
    for work in chunks(grid, samples, slot):
        found.extend(runner.step([work], grid)[0])
    found.extend(runner.finish([tail(grid, samples, slot)], grid)[0])
    return found


@torch.no_grad()
def whole(model: AsrModel, live: LiveModel, samples: Samples, lookahead: int) -> Hypothesis:
    """The offline path: all features, all frames, one search."""
    mel = model.features.whole(torch.from_numpy(samples))[None]
    plan = model.encoder.plan(lookahead)
    encoded = model.encoder.step(mel, model.encoder.start(), plan, final=True)
    found: Hypothesis = live.decoder.decode(encoded, None, live.decoder.start())[0]
    return found


def assert_same(found: Hypothesis, expected: Hypothesis) -> None:
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
    assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-4)


LENGTHS = (0, 1, 199, 200, 1479, 1480, 2999, 16_841, 20_000, 20_160, 20_161, 110_003)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_and_tail_equal_the_whole(
    model: AsrModel, live: LiveModel, lookahead: int, length: int
) -> None:
    """Every remainder of a chunk, and a history longer than the left context."""
    runner, grid = Runner(live, 3), live.grid(lookahead)
    samples = noise(length)
    assert_same(through(runner, grid, samples, 1), whole(model, live, samples, lookahead))


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_a_stream_does_not_notice_the_others(live: LiveModel, lookahead: int) -> None:
    """Streams that begin at different times step together, in any order and any slots."""
    grid, rng = live.grid(lookahead), random.Random(lookahead)
    sounds = [noise(rng.randint(20_000, 150_000), seed=i) for i in range(7)]
    alone = [through(Runner(live, 1), grid, s, 0) for s in sounds]
    runner = Runner(live, 9)
    slots = rng.sample(range(9), 7)
    waiting = {i: list(chunks(grid, s, slots[i])) for i, s in enumerate(sounds)}
    found = [Hypothesis() for _ in sounds]
    while any(waiting.values()):
        ready = [i for i, works in waiting.items() if works]
        chosen = rng.sample(ready, rng.randint(1, len(ready)))
        hypotheses = runner.step([waiting[i].pop(0) for i in chosen], grid)
        for i, hypothesis in zip(chosen, hypotheses, strict=True):
            found[i].extend(hypothesis)
    tails = [tail(grid, s, slots[i]) for i, s in enumerate(sounds)]
    for i, hypothesis in enumerate(runner.finish(tails, grid)):
        found[i].extend(hypothesis)
    for i in range(7):
        assert_same(found[i], alone[i])


def test_modes_share_an_arena(live: LiveModel) -> None:
    sounds = {r: noise(60_000 + r, seed=r) for r in LOOKAHEADS}
    alone = {r: through(Runner(live, 1), live.grid(r), s, 0) for r, s in sounds.items()}
    runner = Runner(live, 4)
    works = {r: chunks(live.grid(r), s, i) for i, (r, s) in enumerate(sounds.items())}
    found = {r: Hypothesis() for r in sounds}
    rng = random.Random(0)
    while works:
        r = rng.choice(list(works))
        work = next(works[r], None)
        if work is None:
            slot = LOOKAHEADS.index(r)
            found[r].extend(runner.finish([tail(live.grid(r), sounds[r], slot)], live.grid(r))[0])
            del works[r]
        else:
            found[r].extend(runner.step([work], live.grid(r))[0])
    for r in sounds:
        assert_same(found[r], alone[r])


def test_a_slot_that_was_used_is_as_good_as_new(live: LiveModel) -> None:
    grid, samples = live.grid(1), noise(40_000, seed=5)
    fresh = through(Runner(live, 1), grid, samples, 0)
    runner = Runner(live, 1)
    through(runner, grid, noise(150_000, seed=6) * 3, 0)
    runner.clear(0)
    assert_same(through(runner, grid, samples, 0), fresh)


def test_numbers_that_are_not_finite_do_not_outlive_their_stream(live: LiveModel) -> None:
    grid, samples = live.grid(1), noise(40_000, seed=5)
    fresh = through(Runner(live, 1), grid, samples, 0)
    runner = Runner(live, 1)
    for tensor in runner.arena.tensors.values():
        tensor.fill_(float("nan"))
    runner.clear(0)
    assert_same(through(runner, grid, samples, 0), fresh)


def snapshot(runner: Runner) -> dict[str, torch.Tensor]:
    saved = [runner.arena.save(slot) for slot in range(len(runner.arena.frames))]
    return {f"{slot} {name}": t for slot, s in enumerate(saved) for name, t in s.items()}


def test_idle_rows_stay_bit_for_bit(live: LiveModel) -> None:
    runner, grid = Runner(live, 3), live.grid(1)
    for slot in range(3):
        through(runner, grid, noise(30_000, seed=slot), slot)
    before = snapshot(runner)
    for work in list(chunks(grid, noise(30_000, seed=9), 1))[2:]:
        runner.step([work], grid)
    after = snapshot(runner)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"1 key", "1 value", "1 conv", "1 subsampling.0", "1 search.frames"} <= changed
    assert all(name.startswith("1 ") for name in changed)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_a_look_at_the_tail_leaves_the_stream_as_it_was(
    model: AsrModel, live: LiveModel, lookahead: int
) -> None:
    """But what was found is not searched again, and nothing is lost or said twice."""
    runner, grid, samples = Runner(live, 1), live.grid(lookahead), noise(70_000)
    works = list(chunks(grid, samples, 0))
    half = len(works) // 2
    for work in works[:half]:
        runner.step([work], grid)
    before = snapshot(runner)
    heard = grid.needed(half - 1) + grid.chunk_samples // 2
    looked = tail(grid, samples[:heard], 0, continues=True)
    early = runner.finish([looked], grid)[0]
    again = runner.finish([looked], grid)[0]
    after = snapshot(runner)
    for name in before:
        if "search" not in name:
            assert torch.equal(before[name], after[name]), name
    assert again.tokens == []
    late = Hypothesis()
    for work in works[half:]:
        late.extend(runner.step([work], grid)[0])
    assert late.tokens
    frames = [*early.frames, *late.frames]
    assert frames == sorted(frames)
    looked_at = int(model.encoder.subsampling.output_length(torch.tensor(heard // 160)))
    assert all(frame >= looked_at for frame in late.frames)
    assert not early.frames or early.frames[-1] < looked_at


def test_a_step_that_fails_changes_nothing(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, grid, samples = Runner(live, 2), live.grid(6), noise(60_000)
    works = list(chunks(grid, samples, 1))
    for work in works[:3]:
        runner.step([work], grid)
    before = snapshot(runner)
    with monkeypatch.context() as patch:
        patch.setattr(live.decoder, "decode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.step([works[3]], grid)
    after = snapshot(runner)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_saved_stream_goes_on_exactly(live: LiveModel) -> None:
    grid, samples = live.grid(1), noise(120_000)
    expected = through(Runner(live, 1), grid, samples, 0)
    first, second = Runner(live, 1), Runner(live, 4)
    works = list(chunks(grid, samples, 0))
    found = Hypothesis()
    for work in works[:17]:
        found.extend(first.step([work], grid)[0])
    second.clear(2)
    second.arena.restore(2, first.arena.save(0), first.arena.frames[0])
    for work in works[17:]:
        found.extend(second.step([ChunkWork(2, work.samples)], grid)[0])
    found.extend(second.finish([tail(grid, samples, 2)], grid)[0])
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)


def test_what_does_not_fit_is_not_restored(live: LiveModel) -> None:
    runner = Runner(live, 1)
    good = runner.arena.save(0)
    for name, bad in (
        ("key", good["key"][:, :5]),
        ("conv", torch.full_like(good["conv"], float("nan"))),
    ):
        with pytest.raises(ValueError, match=name):
            runner.arena.restore(0, {**good, name: bad}, 3)
    with pytest.raises(ValueError, match="key"):
        runner.arena.restore(0, {}, 3)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_the_grid_says_how_many_samples_a_chunk_needs(live: LiveModel, lookahead: int) -> None:
    """The published numbers of the modes: samples before the first output, and per chunk."""
    grid = live.grid(lookahead)
    first = {0: 200, 1: 1_480, 6: 7_880, 13: 16_840}[lookahead]
    assert [grid.needed(k) for k in range(3)] == [first + k * grid.chunk_samples for k in range(3)]
    assert grid.chunk_samples == 1280 * (lookahead + 1)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_chunks_need_no_more_than_few(live: LiveModel, count: int) -> None:
    """Positions have no limit, and nothing grows."""
    runner, grid = Runner(live, 1), live.grid(0)
    samples = noise(1280 * 50)
    works = list(chunks(grid, samples, 0))
    sizes = set()
    for k in range(count):
        runner.step([works[0] if k == 0 else works[1 + k % 40]], grid)
        if k % (count // 10) == 0:
            sizes.add(sum(t.numel() for t in snapshot(runner).values()))
    assert len(sizes) == 1
    assert runner.arena.frames[0] == count
    assert all(bool(t.isfinite().all()) for t in snapshot(runner).values() if t.is_floating_point())


# -- languages -------------------------------------------------------------------------------------

PROMPTS = PromptConfig(
    count=5, hidden=8, default=2, languages=(LanguagePrompt("de", 1), LanguagePrompt("en", 4))
)


@pytest.mark.parametrize("head", ["transducer", "ctc"])
def test_each_row_has_its_own_language(head: Head) -> None:
    """Side by side as in a model whose default it is, also when saved; a used slot has none."""
    samples = noise(60_000)
    expected = {}
    for language in (None, "de", "en"):
        model = make_talker(0.0, prompts=PROMPTS)
        if language is not None:
            model.set_language(language)
        live = live_model(model, make_search(model, head))
        expected[language] = through(Runner(live, 1), live.grid(1), samples, 0)
    assert len({tuple(found.log_probs) for found in expected.values()}) == 3
    model = make_talker(0.0, prompts=PROMPTS)
    live = live_model(model, make_search(model, head))
    runner, grid = Runner(live, 4), live.grid(1)
    languages = [None, "de", "en"]
    found = [Hypothesis() for _ in languages]
    for slot, language in enumerate(languages):
        runner.clear(slot, prompt=live.decoder.prompt(language))
    works = [list(chunks(grid, samples, slot)) for slot in range(3)]
    for k, together in enumerate(zip(*works, strict=True)):
        if k == 4:
            runner.arena.restore(3, runner.arena.save(1), runner.arena.frames[1])
            runner.clear(1)
        if k >= 4:
            together = (together[0], ChunkWork(3, together[1].samples), together[2])
        for i, hypothesis in enumerate(runner.step(together, grid)):
            found[i].extend(hypothesis)
    tails = [tail(grid, samples, slot) for slot in (0, 3, 2)]
    for i, hypothesis in enumerate(runner.finish(tails, grid)):
        found[i].extend(hypothesis)
    for i, language in enumerate(languages):
        assert_same(found[i], expected[language])
    assert_same(through(runner, grid, samples, 1), expected[None])


def test_a_prompt_out_of_range_is_not_restored() -> None:
    model = make_talker(0.0, prompts=PROMPTS)
    runner = Runner(live_model(model, make_search(model)), 1)
    saved = runner.arena.save(0)
    for prompt in (-1, 5):
        with pytest.raises(ValueError, match="prompt"):
            runner.arena.restore(0, {**saved, "prompt": torch.tensor([prompt])}, 0)


def test_a_language_the_model_does_not_have_is_refused(live: LiveModel) -> None:
    model = make_talker(0.0, prompts=PROMPTS, name="prompted")
    prompted = live_model(model, make_search(model))
    with pytest.raises(OptionError, match="prompted has no language 'fr'; it has de, en"):
        prompted.decoder.prompt("fr")
    with pytest.raises(OptionError, match="does not support 'de'"):
        live.decoder.prompt("de")
