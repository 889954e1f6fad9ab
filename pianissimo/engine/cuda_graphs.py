"""Steps of whole chunks as CUDA graphs: one launch instead of some thousand.

A graph replays the same kernels on the same memory, so everything that differs from step to step
goes through tensors of fixed shape: the samples, the slots, how many frames each stream has behind
it. There is one set of graphs per latency mode and number of rows; a step takes the next larger one
and fills it up with a spare slot. All are captured at the start and never again.

The search cannot know how many labels it will find. Its first turns are part of the step; the host
then asks once whether any row has frames left and, seldom, replays some more.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pianissimo.decoding.greedy import GreedyLoop, GreedySearch, GreedyState
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.slot_encoder import Rows
from pianissimo.streaming.grid import ChunkGrid, ChunkWork

if TYPE_CHECKING:
    from pianissimo.engine.runner import Runner

FIRST_TURNS, MORE_TURNS = 4, 4
WARM_UP_RUNS = 3

Record = Callable[[Callable[[], None]], Callable[[], object]]
"""Runs a function and returns what repeats it on the same memory."""

log = logging.getLogger(__name__)


@dataclass
class _Graph:
    """One latency mode and number of rows: its inputs, its replays, and where the result lies."""

    staged: Tensor  # (rows, N) samples, on the host
    staged_rows: Tensor  # (3, rows) slots, frames, lengths, on the host
    samples: Tensor
    rows: Tensor
    step: Callable[[], object]
    more: Callable[[], object]
    finish: Callable[[], object]
    loop: Callable[[], GreedyLoop]
    unfinished: Tensor
    scratch: Tensor  # the encoder may outgrow it, the graph goes on writing there


class StepGraphs:
    """The graphs of a runner whose arena has `spare` as a slot that no stream uses."""

    def __init__(
        self,
        runner: "Runner",
        grids: Sequence[ChunkGrid],
        largest: int,
        spare: int,
        record: Record | None = None,
    ) -> None:
        assert isinstance(runner.model.search, GreedySearch)
        self._runner, self._search, self._spare = runner, runner.model.search, spare
        self._record = record or CudaRecorder()
        self._graphs: dict[tuple[int, int], _Graph] = {}
        # The largest first: the others then fit into the memory it took.
        self.buckets = sorted({largest, *(1 << i for i in range(largest.bit_length()))})
        for grid in grids:
            for rows in reversed(self.buckets):
                self._graphs[grid.chunk, rows] = self._capture(grid, rows)

    def run(self, works: Sequence[ChunkWork], grid: ChunkGrid) -> list[Hypothesis]:
        """The next chunk of streams that had their first: the tokens it adds, in the order given.

        The arena's tensors are written; counting the frames on the host is left to the caller.
        """
        graph = self._graphs[grid.chunk, next(b for b in self.buckets if b >= len(works))]
        frames = self._runner.arena.frames
        graph.staged_rows[0] = self._spare
        graph.staged_rows[1:] = 0
        for i, work in enumerate(works):
            graph.staged[i] = torch.from_numpy(work.samples)
            graph.staged_rows[0, i] = work.slot
            graph.staged_rows[1, i] = frames[work.slot]
            graph.staged_rows[2, i] = grid.chunk
        graph.samples.copy_(graph.staged, non_blocking=True)
        graph.rows.copy_(graph.staged_rows, non_blocking=True)
        graph.step()
        while bool(graph.unfinished):
            graph.more()
        graph.finish()
        return graph.loop().collect()[: len(works)]

    def _capture(self, grid: ChunkGrid, rows: int) -> _Graph:
        runner, search, chunk = self._runner, self._search, grid.chunk
        device = runner.model.device
        pinned = device.type == "cuda"
        start, end = grid.window(1)
        staged = torch.zeros(rows, end - start, pin_memory=pinned)
        staged_rows = torch.zeros(3, rows, dtype=torch.long, pin_memory=pinned)
        samples, given = staged.to(device), staged_rows.to(device)
        given[0] = self._spare
        slots, frames, lengths = given
        unfinished = torch.zeros((), dtype=torch.bool, device=device)
        made: list[tuple[GreedyLoop, GreedyState, Callable[[], None]]] = []

        def step() -> None:
            mel = runner.features.frames(samples).to(runner.model.dtype)
            x, caches = runner.encoder.subsample(mel, slots, first=False)
            view = Rows(slots, frames, first=None, full=False)
            encoded, written = runner.encoder.step(x, view, chunk)
            state = runner.arena.search.rows(slots)
            loop = search.begin(runner.prompted(encoded), lengths, state)

            def finish() -> None:
                search.end(loop, state)
                runner.encoder.commit(view, written, caches)
                runner.arena.search.write(slots, state)

            made[:] = [(loop, state, finish)]
            turns(FIRST_TURNS)

        def turns(count: int) -> None:
            loop, state, _ = made[0]
            for _ in range(count):
                search.turn(loop, state)
            unfinished.copy_(loop.unfinished())

        replay = self._record(step)
        more = self._record(lambda: turns(MORE_TURNS))
        finish = self._record(lambda: made[0][2]())
        return _Graph(
            staged=staged,
            staged_rows=staged_rows,
            samples=samples,
            rows=given,
            step=replay,
            more=more,
            finish=finish,
            loop=lambda: made[0][0],
            unfinished=unfinished,
            scratch=runner.encoder.scratch,
        )


class CudaRecorder:
    """Captures functions as CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Callable[[], object]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            function()
        return graph.replay


def capture(runner: "Runner", largest: int, spare: int) -> StepGraphs | None:
    """The graphs of a runner on a GPU; None, with one line in the log, where they cannot be had."""
    if runner.model.device.type != "cuda":
        return None
    if not isinstance(runner.model.search, GreedySearch):
        log.info("steps run kernel by kernel: only the transducer's greedy search can be captured")
        return None
    grids = [runner.model.grid(r) for r in runner.model.config.encoder.lookaheads]
    try:
        with torch.inference_mode():
            return StepGraphs(runner, grids, largest, spare)
    except Exception as error:
        log.warning("steps run kernel by kernel: no CUDA graphs here (%s)", error)
        return None
