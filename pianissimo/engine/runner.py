"""One batched step of many streams: samples, features, encoder, search; then the arena is written.

A step is a transaction: what it computed is committed to the arena only once tokens are there, so
a step that fails leaves its streams as they were.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pianissimo.audio.features import MelFeatures
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.search import Search
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.arena import Arena
from pianissimo.engine.cuda_graphs import StepGraphs, capture
from pianissimo.engine.slot_encoder import Rows, SlotEncoder
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.packed import packed
from pianissimo.streaming.grid import ChunkGrid, ChunkWork, TailWork


class LiveModel:
    """A model made ready for streaming: packed where that helps, shared by all arenas."""

    def __init__(self, model: AsrModel, search: Search) -> None:
        if not model.config.streams:
            raise OptionError(
                f"{model.config.name} hears recordings whole and cannot stream; choose a "
                "streaming model"
            )
        self.config, self.search, self.features = model.config, search, model.features
        self.prompt, self.device, self.dtype = model.prompt, model.device, model.dtype
        self.encoder = packed(model.encoder, "float32")

    @cached_property
    def fingerprint(self) -> str:
        """Names the model: its configuration and a part of its weights."""
        digest = hashlib.sha256(repr(self.config).encode())
        for weight in self.encoder.subsampling.conv.parameters():
            digest.update(weight.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def grid(self, lookahead: int) -> ChunkGrid:
        return self.config.grid(lookahead)


class Runner:
    """Runs steps of streams that live in its arena of `slots` rows.

    On a GPU, `capture` makes the steps of up to `largest` streams CUDA graphs; one row more than
    `slots` fills them up.
    """

    def __init__(self, model: LiveModel, slots: int) -> None:
        self.model = model
        self.arena = Arena.allocate(model.encoder, model.search, slots + 1)
        self.encoder = SlotEncoder(model.encoder, self.arena)
        self.features: MelFeatures = model.features
        self.graphs: StepGraphs | None = None
        self._spare = slots
        self._boosted: set[int] = set()

    def capture(self, largest: int) -> None:
        """Capture all steps as graphs where the device has them; before the first stream."""
        self.graphs = capture(self, largest, self._spare)

    @torch.inference_mode()
    def clear(self, slot: int, first_frame: int = 0, trie: PhraseTrie | None = None) -> None:
        """Begin a new stream in a slot; its tokens are counted from `first_frame`, and it boosts
        the phrases of `trie`."""
        self.arena.clear(slot, self.model.search, first_frame, trie)
        self._boosted.discard(slot)
        if trie is not None:
            self._boosted.add(slot)

    @torch.inference_mode()
    def step(self, works: Sequence[ChunkWork], grid: ChunkGrid) -> list[Hypothesis]:
        """The next chunk of each of several streams: the tokens it adds, in the order given."""
        frames = self.arena.frames
        plain = all(frames[w.slot] and w.slot not in self._boosted for w in works)
        if self.graphs is not None and plain:
            found = self.graphs.run(works, grid)
            self._count(works, grid)
            return found
        # The first chunk of a stream has fewer mel frames; from the layers on all are alike.
        order = sorted(range(len(works)), key=lambda i: frames[works[i].slot] > 0)
        works = [works[i] for i in order]
        rows = self._rows(works)
        slots = rows.slots
        new = sum(frames[w.slot] == 0 for w in works)
        parts, caches = [], []
        for first, group in ((True, slice(0, new)), (False, slice(new, len(works)))):
            if works[group]:
                mel = self._mel(np.stack([w.samples for w in works[group]]))
                x, after = self.encoder.subsample(mel, slots[group], first=first)
                parts.append(x)
                caches.append(after)
        x = torch.cat(parts)
        encoded, written = self.encoder.step(x, rows, grid.chunk)
        search = self.arena.search.rows(slots)
        found = self.model.search.decode(self.prompted(encoded), None, search)
        joined = [torch.cat(stage) for stage in zip(*caches, strict=True)]
        self.encoder.commit(rows, written, joined)
        self.arena.search.write(slots, search)
        self._count(works, grid)
        unsorted = sorted(zip(order, found, strict=True), key=lambda pair: pair[0])
        return [hypothesis for _, hypothesis in unsorted]

    @torch.inference_mode()
    def finish(self, works: Sequence[TailWork], grid: ChunkGrid) -> list[Hypothesis]:
        """What several streams have left at their end, or at a point where their text is locked."""
        frames = self.arena.frames
        tails = [self._tail(w, first=frames[w.slot] == 0) for w in works]
        counts = self._index([x.shape[0] for x in tails])
        slots = self._index([w.slot for w in works])
        search = self.arena.search.rows(slots)
        x = torch.nn.utils.rnn.pad_sequence(tails, batch_first=True)
        if x.shape[1]:
            encoded, _ = self.encoder.step(x, self._rows(works), grid.chunk, counts)
            found = self.model.search.decode(self.prompted(encoded), counts, search)
        else:
            found = [Hypothesis() for _ in works]
        for hypothesis, rest in zip(found, search.flush(), strict=True):
            hypothesis.extend(rest)
        # The frames of the tail come again with the next chunk: they count then, searched by now.
        search.frames -= counts
        search.ahead += counts
        on = [i for i, work in enumerate(works) if work.continues]
        if on:
            index = self._index(on)
            self.arena.search.write(slots[index], search.rows(index))
        return found

    def _tail(self, work: TailWork, *, first: bool) -> Tensor:
        """The subsampled frames of a tail: (Q, D), Q possibly 0."""
        bins = self.features.config.n_mels
        mel = torch.zeros(1, 0, bins, device=self.model.device, dtype=self.model.dtype)
        if work.mel_frames:
            valid = self._index([work.valid])
            mel = self._mel(work.samples[None], valid)
        elif first:
            return self.arena.key.new_zeros(0, self.arena.key.shape[-1])
        return self.encoder.subsample_last(mel, self._index([work.slot]), first=first)[0]

    def _mel(self, samples: npt.NDArray[np.float32], valid: Tensor | None = None) -> Tensor:
        windows = torch.from_numpy(samples).to(self.model.device, non_blocking=True)
        return self.features.frames(windows, valid).to(self.model.dtype)

    def prompted(self, encoded: Tensor) -> Tensor:
        """Encoder frames as the heads get them."""
        return encoded if self.model.prompt is None else self.model.prompt(encoded)

    def _rows(self, works: Sequence[ChunkWork | TailWork]) -> Rows:
        slots = [work.slot for work in works]
        frames = [self.arena.frames[slot] for slot in slots]
        return Rows.of(slots, frames, self.arena.left, self.model.device)

    def _count(self, works: Sequence[ChunkWork], grid: ChunkGrid) -> None:
        for work in works:
            self.arena.frames[work.slot] += grid.chunk

    def _index(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, device=self.model.device)
