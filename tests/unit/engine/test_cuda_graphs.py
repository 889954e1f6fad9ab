"""The graphs' code without a GPU: what a graph would replay is called again on the same memory."""

import logging
import random
from collections.abc import Callable

import pytest
import torch
from test_runner import chunks, tail, through
from tiny import make_talker, noise

from pianissimo.decoding.search import make_search
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine import cuda_graphs as graphs
from pianissimo.engine.cuda_graphs import StepGraphs
from pianissimo.engine.live_model import LiveModel, live_model
from pianissimo.engine.runner import Runner


def again(function: Callable[[], None]) -> Callable[[], object]:
    """Records as a GPU does: by running the function, and the same function replays it."""
    function()
    return function


@pytest.fixture(scope="module")
def live() -> LiveModel:
    model = make_talker(0.0)
    return live_model(model, make_search(model))


def graphed(live: LiveModel, slots: int, largest: int) -> Runner:
    runner = Runner(live, slots)
    grids = [live.grid(r) for r in (0, 6)]
    with torch.inference_mode():
        runner.graphs = StepGraphs(live, runner.arena, grids, largest, slots, record=again)
    return runner


@pytest.mark.parametrize("lookahead", [0, 6])
def test_padded_rows_and_reused_memory_change_nothing(live: LiveModel, lookahead: int) -> None:
    grid, rng = live.grid(lookahead), random.Random(lookahead)
    sounds = [noise(rng.randint(60_000, 130_000), seed=i) for i in range(5)]
    alone = [through(Runner(live, 1), grid, s, 0) for s in sounds]
    runner = graphed(live, 5, 4)
    waiting = {i: list(chunks(grid, s, i)) for i, s in enumerate(sounds)}
    found = [Hypothesis() for _ in sounds]
    while any(waiting.values()):
        ready = [i for i, works in waiting.items() if works]
        chosen = rng.sample(ready, min(len(ready), rng.randint(1, 4)))
        hypotheses = runner.step([waiting[i].pop(0) for i in chosen], grid)
        for i, hypothesis in zip(chosen, hypotheses, strict=True):
            found[i].extend(hypothesis)
    tails = [tail(grid, s, i) for i, s in enumerate(sounds)]
    for i, hypothesis in enumerate(runner.finish(tails, grid)):
        found[i].extend(hypothesis)
    for i in range(5):
        assert (found[i].tokens, found[i].frames) == (alone[i].tokens, alone[i].frames)
        assert found[i].log_probs == pytest.approx(alone[i].log_probs, abs=1e-4)


def test_a_frame_with_many_labels_takes_more_turns(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host goes on replaying until no row has frames left."""
    grid, samples = live.grid(6), noise(90_000)
    expected = through(Runner(live, 1), grid, samples, 0)
    monkeypatch.setattr(graphs, "FIRST_TURNS", 1)
    monkeypatch.setattr(graphs, "MORE_TURNS", 1)
    found = through(graphed(live, 1, 1), grid, samples, 0)
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)


def test_the_graph_is_used_for_all_but_first_chunks(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, grid = graphed(live, 1, 1), live.grid(0)
    sizes = []
    run = runner.graphs.run
    monkeypatch.setattr(
        runner.graphs, "run", lambda works, grid: sizes.append(len(works)) or run(works, grid)
    )
    works = list(chunks(grid, noise(20_000), 0))
    for work in works:
        runner.step([work], grid)
    assert len(sizes) == len(works) - 1
    assert runner.graphs.buckets == [1]
    assert graphed(live, 7, 6).graphs.buckets == [1, 2, 4, 6]


def test_a_processor_has_no_graphs(live: LiveModel) -> None:
    runner = Runner(live, 1)
    runner.capture(1)
    assert runner.graphs is None


def fail_to_capture(*_: object) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


def test_where_capturing_fails_steps_run_without(
    live: LiveModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the traceback, and the text is the same."""
    grid, samples = live.grid(0), noise(30_000)
    expected = through(Runner(live, 1), grid, samples, 0)
    runner = Runner(live, 1)

    monkeypatch.setattr(LiveModel, "device", torch.device("cuda"))
    monkeypatch.setattr(graphs, "CudaRecorder", lambda: again)
    monkeypatch.setattr(graphs.StepGraph, "__init__", fail_to_capture)
    with caplog.at_level(logging.WARNING):
        runner.capture(1)
    monkeypatch.undo()
    assert runner.graphs is None
    (record,) = caplog.records
    assert "kernel by kernel" in record.message
    assert "not permitted when stream is capturing" in record.message
    assert "Traceback" in caplog.text
    assert "fail_to_capture" in caplog.text
    assert through(runner, grid, samples, 0).tokens == expected.tokens


@pytest.mark.gpu
def test_on_a_gpu_the_text_is_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model = make_talker(0.0)
    expected = through(
        Runner(live_model(model, make_search(model)), 1),
        live_model(model, make_search(model)).grid(1),
        noise(60_000),
        0,
    )
    model = make_talker(0.0).cuda()
    live = live_model(model, make_search(model))
    runner = Runner(live, 2)
    runner.capture(2)
    assert runner.graphs is not None
    found = through(runner, live.grid(1), noise(60_000), 0)
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
