"""The arena: everything that live streams remember on the device, allocated once, by slot.

What an encoder remembers it declares itself, see `SlotTensor`; what a decoder remembers is a
`SearchState` of one row per slot. A row's content depends on no other row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pianissimo.decoding.decoder import Decoder, SearchState, copy_saved
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.models.streaming_encoder import Memory, Rows, SlotTensor, StreamingEncoder


@dataclass
class Arena:
    """The state of S streams.

    `tensors` are those of the encoder, by name; `search` holds S rows; `prompts` (S,) are the
    numbers of the streams' languages; `frames` counts the encoder frames of each stream since its
    slot was cleared, on the host.
    """

    slot_tensors: dict[str, SlotTensor]
    tensors: dict[str, Tensor]
    decoder: Decoder
    search: SearchState
    prompts: Tensor
    frames: list[int]

    @classmethod
    def allocate(cls, encoder: StreamingEncoder, decoder: Decoder, slots: int) -> "Arena":
        """An arena of that many slots on the encoder's device and in its dtype."""
        device = encoder.device
        return cls(
            dict(encoder.slot_tensors),
            {
                name: kind.allocate(slots, device, encoder.dtype)
                for name, kind in encoder.slot_tensors.items()
            },
            decoder,
            decoder.start(slots),
            torch.full((slots,), decoder.prompt(None), device=device),
            [0] * slots,
        )

    def clear(
        self,
        slot: int,
        first_frame: int = 0,
        trie: PhraseTrie | None = None,
        prompt: int | None = None,
    ) -> None:
        """Make a slot that of a new stream; mutates the slot.

        The stream's tokens are counted from `first_frame`, it boosts the phrases of `trie`, and its
        language is `prompt`, by default that of the model.
        """
        for name, tensor in self.tensors.items():
            tensor.select(self.slot_tensors[name].axis, slot).zero_()
        new = self.decoder.start(1) if trie is None else self.decoder.start(1, [trie])
        new.frames += first_frame
        self.search.write(torch.tensor([slot], device=self.prompts.device), new)
        self.prompts[slot] = self.decoder.prompt(None) if prompt is None else prompt
        self.frames[slot] = 0

    def commit(self, rows: Rows, changes: Memory) -> None:
        """Write what a step of whole chunks changed: rings in place of their oldest frames, other
        tensors as a whole. Mutates the slots of the rows; counting the frames is left to the
        caller."""
        indices: dict[tuple[int, int], Tensor] = {}
        for name, new in changes.items():
            tensor, kind = self.tensors[name], self.slot_tensors[name]
            if not kind.ring:
                tensor.index_copy_(kind.axis, rows.slots, new)
                continue
            size = kind.shape[0], new.shape[kind.axis + 1]
            if size not in indices:
                length, frames = size
                at = rows.frames[:, None] + torch.arange(frames, device=rows.slots.device)
                indices[size] = (rows.slots[:, None] * length + at % length).flatten()
            flat = tensor.flatten(kind.axis, kind.axis + 1)  # a view: slots and rings are adjacent
            flat.index_copy_(kind.axis, indices[size], new.flatten(kind.axis, kind.axis + 1))

    def save(self, slot: int) -> dict[str, Tensor]:
        """One stream's tensors by name, copied to the CPU."""
        row = torch.tensor([slot], device=self.prompts.device)
        parts = {n: t.select(self.slot_tensors[n].axis, slot) for n, t in self.tensors.items()}
        parts |= {f"search.{k}": v for k, v in self.search.rows(row).tensors().items()}
        if self.decoder.prompts > 1:
            parts["prompt"] = self.prompts[row]
        return {name: t.detach().cpu().clone().contiguous() for name, t in parts.items()}

    def restore(self, slot: int, saved: dict[str, Tensor], frames: int) -> None:
        """Fill a slot with what `save` returned; mutates the slot.

        Raises ValueError if a tensor is missing, of another shape, not finite or out of range.
        """
        prompt = self.decoder.prompt(None)
        if self.decoder.prompts > 1:
            if (given := saved.get("prompt")) is None or given.numel() != 1:
                raise ValueError("prompt is missing or of another shape")
            prompt = int(given)
        if not 0 <= prompt < self.decoder.prompts:
            raise ValueError(f"prompt {prompt} is out of range")
        slots = {n: t.select(self.slot_tensors[n].axis, slot) for n, t in self.tensors.items()}
        copy_saved(slots, saved)
        row = torch.tensor([slot], device=self.prompts.device)
        rows = self.search.rows(row)
        prefix = "search."
        rows.restore({n.removeprefix(prefix): t for n, t in saved.items() if n.startswith(prefix)})
        self.search.write(row, rows)
        self.prompts[slot], self.frames[slot] = prompt, frames

    def bytes_per_stream(self) -> int:
        """Memory of one slot."""
        tensors = [*self.tensors.values(), *self.search.tensors().values()]
        return sum(t.numel() * t.element_size() for t in tensors) // len(self.frames)
