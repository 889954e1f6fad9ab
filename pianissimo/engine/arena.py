"""The arena: everything that live streams remember on the device, allocated once, by slot.

Shape legend: S slots, N layers, L left context, D width, k convolution kernel.

Keys and values lie in a ring of L frames per slot: encoder frame t of a stream is at t mod L. A
step attends to the ring and to its own frames and only then overwrites the oldest ones, so the ring
needs no room for more. Every tensor is indexed by slot; a row's content depends on no other row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.search import Search, SearchState
from pianissimo.models.fastconformer import FastConformerEncoder


@dataclass
class Arena:
    """The state of S streams.

    key, value: (N, S, L, D); conv: (N, S, k - 1, D); subsampling: per stage the one input frame
    that is kept between chunks, (S, channels, 1, bins); `search` holds S rows; `frames` counts
    the encoder frames each stream went through since it began (or began anew).
    """

    key: Tensor
    value: Tensor
    conv: Tensor
    subsampling: list[Tensor]
    search: SearchState
    frames: list[int]

    @classmethod
    def allocate(cls, encoder: FastConformerEncoder, search: Search, slots: int) -> "Arena":
        """An arena of `slots` rows on the encoder's device and in its dtype."""
        config, weight = encoder.config, encoder.subsampling.weight
        assert config.left_context is not None
        ring = (config.layers, slots, config.left_context, config.attention_dim)
        return cls(
            key=weight.new_zeros(ring),
            value=weight.new_zeros(ring),
            conv=weight.new_zeros(config.layers, slots, config.conv_kernel - 1, config.dim),
            subsampling=[
                weight.new_zeros(slots, cache.shape[1], 1, cache.shape[3])
                for cache in encoder.subsampling.start(1).caches
            ],
            search=search.start(slots),
            frames=[0] * slots,
        )

    @property
    def left(self) -> int:
        return self.key.shape[2]

    def clear(
        self, slot: int, search: Search, first_frame: int = 0, trie: PhraseTrie | None = None
    ) -> None:
        """Make a slot as good as new; `first_frame` is where its tokens are counted from, `trie`
        holds the phrases that its stream boosts."""
        for tensor in (self.key, self.value, self.conv):
            tensor[:, slot] = 0.0
        for cache in self.subsampling:
            cache[slot] = 0.0
        fresh = search.start(1) if trie is None else search.start(1, [trie])
        fresh.frames += first_frame
        self.search.write(torch.tensor([slot], device=self.key.device), fresh)
        self.frames[slot] = 0

    def save(self, slot: int) -> dict[str, Tensor]:
        """One stream's tensors by name, copied to the CPU."""
        row = torch.tensor([slot], device=self.key.device)
        parts = {"key": self.key[:, slot], "value": self.value[:, slot], "conv": self.conv[:, slot]}
        parts |= {f"subsampling.{i}": cache[slot] for i, cache in enumerate(self.subsampling)}
        parts |= {f"search.{k}": v for k, v in self.search.rows(row).tensors().items()}
        return {name: t.detach().cpu().clone().contiguous() for name, t in parts.items()}

    def restore(self, slot: int, saved: dict[str, Tensor], frames: int) -> None:
        """Fill a slot with what `save` returned.

        Raises ValueError if a tensor is missing, of another shape or not finite.
        """
        current = self.save(slot)
        for name, expected in current.items():
            given = saved.get(name)
            if given is None or given.shape != expected.shape:
                raise ValueError(f"{name} is missing or of another shape")
            if given.is_floating_point() and not bool(given.isfinite().all()):
                raise ValueError(f"{name} holds numbers that are not finite")
        for tensor, name in ((self.key, "key"), (self.value, "value"), (self.conv, "conv")):
            tensor[:, slot] = saved[name].to(tensor)
        for i, cache in enumerate(self.subsampling):
            cache[slot] = saved[f"subsampling.{i}"].to(cache)
        row = torch.tensor([slot], device=self.key.device)
        rows = self.search.rows(row)
        for name, tensor in rows.tensors().items():
            tensor.copy_(saved[f"search.{name}"])
        if (boosts := getattr(rows, "boosts", None)) is not None:
            boosts.check()
        self.search.write(row, rows)
        self.frames[slot] = frames

    def bytes_per_stream(self) -> int:
        """Memory of one slot."""
        tensors = [self.key, self.value, self.conv, *self.subsampling]
        tensors += self.search.tensors().values()
        return sum(t.numel() * t.element_size() for t in tensors) // self.key.shape[1]
