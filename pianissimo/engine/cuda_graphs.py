"""Steps of whole chunks as CUDA graphs: one launch instead of about a thousand.

A graph replays the same kernels on the same memory, so everything that differs from step to step
goes through tensors of fixed shape: the samples, the slots, the frames that each stream has had.
There is one set of graphs per latency mode and number of rows; a step takes the next larger one and
fills it up with a spare slot. All are captured at the start and never again.

The search cannot know how many labels it will find. Its first turns are part of the step; the host
then asks once whether any row has frames left and, seldom, replays more turns.
"""

import logging
from collections.abc import Callable, Sequence

import torch

from pianissimo.decoding.decoder import SearchDecoder
from pianissimo.decoding.greedy import GreedyLoop, GreedySearch, GreedyState
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.arena import Arena
from pianissimo.engine.live_model import LiveModel
from pianissimo.models.streaming_encoder import Memory, Rows
from pianissimo.streaming.grid import ChunkGrid, ChunkWork

FIRST_TURNS, MORE_TURNS = 4, 4
WARM_UP_RUNS = 3

Record = Callable[[Callable[[], None]], Callable[[], object]]
"""Runs a function and returns what repeats it on the same memory."""

log = logging.getLogger(__name__)


class StepGraph:
    """One latency mode and number of rows: the inputs, the three replays, and the result.

    `step`, `more` and `finish` are recorded; what one of them leaves for the next lies in
    `search_state`, `loop` and `changes`, tensors that the recorded kernels write at each replay.
    """

    search_state: GreedyState
    loop: GreedyLoop
    changes: Memory

    def __init__(
        self, model: LiveModel, arena: Arena, grid: ChunkGrid, rows: int, spare: int, record: Record
    ) -> None:
        self.encoder, self.arena, self.chunk = model.encoder, arena, grid.chunk
        self.decoder, self.search = greedy_decoder(model)
        device = model.device
        pinned = device.type == "cuda"
        start, end = grid.window(1)
        self.staged_samples = torch.zeros(rows, end - start, pin_memory=pinned)
        self.staged_rows = torch.zeros(3, rows, dtype=torch.long, pin_memory=pinned)
        self.samples, self.given = self.staged_samples.to(device), self.staged_rows.to(device)
        self.given[0] = spare
        slots, frames, self.lengths = self.given
        self.rows = Rows(slots, frames)
        self.unfinished = torch.zeros((), dtype=torch.bool, device=device)
        self.replay_step = record(self.step)
        self.replay_more = record(self.more)
        self.replay_finish = record(self.finish)

    def run(self, works: Sequence[ChunkWork], frames: Sequence[int], spare: int) -> GreedyLoop:
        """Replay the step of streams that had that many frames before; returns its finished loop.

        Mutates the arena's tensors."""
        self.staged_rows[0] = spare
        self.staged_rows[1:] = 0
        for i, work in enumerate(works):
            self.staged_samples[i] = torch.from_numpy(work.samples)
            self.staged_rows[:, i] = torch.tensor([work.slot, frames[i], self.chunk])
        self.samples.copy_(self.staged_samples, non_blocking=True)
        self.given.copy_(self.staged_rows, non_blocking=True)
        self.replay_step()
        while bool(self.unfinished):
            self.replay_more()
        self.replay_finish()
        return self.loop

    def step(self) -> None:
        """Features, encoder and the first turns of the search."""
        encoder, rows, memory = self.encoder, self.rows, self.arena.tensors
        features = encoder.features.frames(self.samples).to(encoder.dtype)
        x, changed = encoder.subsample(features, rows.slots, memory, first=False)
        encoded, changes = encoder.encode(x, rows, memory, self.chunk)
        encoded = self.decoder.condition(encoded, self.arena.prompts[rows.slots])
        search_state = self.arena.search.rows(rows.slots)
        assert isinstance(search_state, GreedyState)
        self.search_state = search_state
        self.loop = self.search.begin(encoded, self.lengths, self.search_state)
        self.changes = {**changes, **changed}
        self.turn(FIRST_TURNS)

    def more(self) -> None:
        """Further turns of the search."""
        self.turn(MORE_TURNS)

    def turn(self, count: int) -> None:
        for _ in range(count):
            self.search.turn(self.loop, self.search_state)
        self.unfinished.copy_((self.loop.at < self.loop.lengths).any())

    def finish(self) -> None:
        """Write the arena."""
        self.search.end(self.loop, self.search_state)
        self.arena.commit(self.rows, self.changes)
        self.arena.search.write(self.rows.slots, self.search_state)


class StepGraphs:
    """The graphs of an arena that has `spare` as a slot that no stream uses."""

    def __init__(
        self,
        model: LiveModel,
        arena: Arena,
        grids: Sequence[ChunkGrid],
        largest: int,
        spare: int,
        record: Record | None = None,
    ) -> None:
        self._arena, self._spare = arena, spare
        self._graphs: dict[tuple[int, int], StepGraph] = {}
        record = record or CudaRecorder()
        # The largest first: the others then fit into the memory it took.
        self.buckets = sorted({largest, *(1 << i for i in range(largest.bit_length()))})
        for grid in grids:
            for rows in reversed(self.buckets):
                graph = StepGraph(model, arena, grid, rows, spare, record)
                self._graphs[grid.chunk, rows] = graph

    def run(self, works: Sequence[ChunkWork], grid: ChunkGrid) -> list[Hypothesis]:
        """The next chunk of streams that had their first: the tokens it adds, in the order given.

        Mutates the arena's tensors; counting the frames on the host is left to the caller.
        """
        graph = self._graphs[grid.chunk, next(b for b in self.buckets if b >= len(works))]
        frames = [self._arena.frames[work.slot] for work in works]
        return graph.run(works, frames, self._spare).collect()[: len(works)]


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


def greedy_decoder(model: LiveModel) -> tuple[SearchDecoder, GreedySearch]:
    """The decoder of a model and its greedy search; TypeError for any other, which no graph has."""
    decoder = model.decoder
    if not isinstance(decoder, SearchDecoder) or not isinstance(decoder.search, GreedySearch):
        raise TypeError("only the transducer's greedy search can be captured")
    return decoder, decoder.search


def capture(model: LiveModel, arena: Arena, largest: int, spare: int) -> StepGraphs | None:
    """The graphs of an arena on a GPU; None, with the reason in the log, where there are none."""
    if model.device.type != "cuda":
        return None
    try:
        greedy_decoder(model)
    except TypeError as error:
        log.info("steps run kernel by kernel: %s", error)
        return None
    grids = [model.grid(lookahead) for lookahead in model.lookaheads]
    try:
        with torch.inference_mode():
            return StepGraphs(model, arena, grids, largest, spare)
    except Exception as error:
        log.warning(
            "steps run kernel by kernel: capturing CUDA graphs failed (%s)", error, exc_info=True
        )
        return None
