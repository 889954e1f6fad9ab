"""One batched step of many streams: samples, features, encoder, decoder; then the arena is written.

A step is a transaction: what it computed is committed to the arena only once tokens are there, so
a step that fails leaves its streams as they were. Which encoder and which decoder run is no concern
of this module, see `StreamingEncoder` and `Decoder`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.arena import Arena
from pianissimo.engine.cuda_graphs import StepGraphs, capture
from pianissimo.engine.live_model import LiveModel
from pianissimo.models.streaming_encoder import Rows
from pianissimo.streaming.grid import ChunkGrid, ChunkWork, TailWork


class Runner:
    """Runs steps of streams that live in its arena of `slots` rows.

    On a GPU, `capture` makes the steps of up to `largest` streams CUDA graphs; one row more than
    `slots` fills them up.
    """

    def __init__(self, model: LiveModel, slots: int) -> None:
        self.model = model
        self.arena = Arena.allocate(model.encoder, model.decoder, slots + 1)
        self.graphs: StepGraphs | None = None
        self._spare = slots
        self._boosted: set[int] = set()

    def capture(self, largest: int) -> None:
        """Capture all steps as graphs where the device has them; before the first stream."""
        self.graphs = capture(self.model, self.arena, largest, self._spare)

    @torch.inference_mode()
    def clear(
        self,
        slot: int,
        first_frame: int = 0,
        trie: PhraseTrie | None = None,
        prompt: int | None = None,
    ) -> None:
        """Begin a new stream in a slot: see `Arena.clear`; `prompt` comes from `Decoder.prompt`."""
        self.arena.clear(slot, first_frame, trie, prompt)
        self._boosted.discard(slot)
        if trie is not None:
            self._boosted.add(slot)

    @torch.inference_mode()
    def set_prompt(self, slot: int, prompt: int | None) -> None:
        """Change the language of a stream for its next step; None is the model's default."""
        decoder = self.model.decoder
        self.arena.prompts[slot] = decoder.prompt(None) if prompt is None else prompt

    @torch.inference_mode()
    def renew(
        self, slot: int, first_frame: int, trie: PhraseTrie | None, prompt: int | None
    ) -> Hypothesis:
        """Restart a slot within its stream and return the tokens that its search still held."""
        row = torch.tensor([slot], device=self.model.device)
        [rest] = self.arena.search.rows(row).flush()
        self.clear(slot, first_frame, trie, prompt)
        return rest

    @torch.inference_mode()
    def step(self, works: Sequence[ChunkWork], grid: ChunkGrid) -> list[Hypothesis]:
        """The next chunk of each of several streams: the tokens it adds, in the order given."""
        arena, encoder, decoder = self.arena, self.model.encoder, self.model.decoder
        slots = [work.slot for work in works]
        running = [bool(arena.frames[slot]) for slot in slots]
        if self.graphs is not None and all(running) and self._boosted.isdisjoint(slots):
            results = self.graphs.run(works, grid)
        else:
            # The first chunk of a stream has fewer features; from the layers on all are alike.
            order = sorted(range(len(works)), key=running.__getitem__)
            ordered = [slots[i] for i in order]
            rows = self._rows(ordered)
            new = running.count(False)
            parts, changes = [], []
            for first, group in ((True, slice(0, new)), (False, slice(new, len(works)))):
                if order[group]:
                    samples = np.stack([works[i].samples for i in order[group]])
                    x, changed = encoder.subsample(
                        self._features(samples), rows.slots[group], arena.tensors, first=first
                    )
                    parts.append(x)
                    changes.append(changed)
            x, changed = encoder.encode(torch.cat(parts), rows, arena.tensors, grid.chunk)
            search = arena.search.rows(rows.slots)
            prompts = arena.prompts[rows.slots] if decoder.prompts > 1 else None
            found = decoder.decode(x, None, search, prompts)
            joined = {name: torch.cat([part[name] for part in changes]) for name in changes[0]}
            arena.commit(rows, {**changed, **joined})
            arena.search.write(rows.slots, search)
            results = [hypothesis for _, hypothesis in sorted(zip(order, found, strict=True))]
        for slot in slots:
            arena.frames[slot] += grid.chunk
        return results

    @torch.inference_mode()
    def finish(self, works: Sequence[TailWork], grid: ChunkGrid) -> list[Hypothesis]:
        """What several streams have left at their end, or at a point where their text is locked."""
        results = [Hypothesis() for _ in works]
        for again in (False, True):
            chosen = [i for i, work in enumerate(works) if work.again == again]
            if chosen:
                part = [works[i] for i in chosen]
                found = self._again(part) if again else self._finish(part, grid)
                for i, hypothesis in zip(chosen, found, strict=True):
                    results[i] = hypothesis
        return results

    def _finish(self, works: Sequence[TailWork], grid: ChunkGrid) -> list[Hypothesis]:
        arena, rows = self.arena, self._rows([work.slot for work in works])
        encoded, counts = self.model.encoder.tail(
            self._tails(works), rows, arena.tensors, grid.chunk
        )
        search = arena.search.rows(rows.slots)
        results = self.model.decoder.finish(encoded, counts, search, arena.prompts[rows.slots])
        if continuing := [i for i, work in enumerate(works) if work.continues]:
            index = torch.tensor(continuing, device=self.model.device)
            arena.search.write(rows.slots[index], search.rows(index))
        return results

    def _again(self, works: Sequence[TailWork]) -> list[Hypothesis]:
        """The whole text since the state of each stream began, by the second pass."""
        assert self.model.second_pass is not None
        arena, rows = self.arena, self._rows([work.slot for work in works])
        search, prompts = arena.search.rows(rows.slots), arena.prompts[rows.slots]
        return self.model.second_pass.finish(
            self._tails(works), rows, arena.tensors, search, prompts
        )

    def _rows(self, slots: Sequence[int]) -> Rows:
        device, frames = self.model.encoder.device, [self.arena.frames[slot] for slot in slots]
        first = slots[0]
        consecutive = list(slots) == list(range(first, first + len(slots)))
        return Rows(
            torch.tensor(slots, device=device),
            torch.tensor(frames, device=device),
            tuple(frames),
            first if consecutive else None,
        )

    def _tails(self, works: Sequence[TailWork]) -> list[Tensor | None]:
        return [
            self._features(work.samples[None], work.valid)[0] if work.mel_frames else None
            for work in works
        ]

    def _features(self, samples: npt.NDArray[np.float32], valid: int | None = None) -> Tensor:
        encoder = self.model.encoder
        windows = torch.from_numpy(samples).to(encoder.device, non_blocking=True)
        ends = None if valid is None else torch.tensor([valid], device=encoder.device)
        return encoder.features.frames(windows, ends).to(encoder.dtype)
