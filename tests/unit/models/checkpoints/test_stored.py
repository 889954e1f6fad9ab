"""Weights on disk: what is lost, what is not, and what damaged files say."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_model, tensor
from torch import nn

import pianissimo
from pianissimo.errors import CheckpointError
from pianissimo.models.asr import AsrModel
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.models.checkpoints.stored import from_store, to_store
from pianissimo.models.packed import packed
from pianissimo.text.tokenizer import Tokenizer


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_unquantized_weights_are_read_unchanged(dtype: torch.dtype | None) -> None:
    model = make_model()
    read = from_store(to_store(model, dtype), "here")
    for name, weight in model.state_dict().items():
        assert torch.equal(read[name], weight)


def test_8_bits_on_disk_compute_as_8_bits_in_memory(
    talker: AsrModel, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(tmp_path / "int8", talker, tiny_tokenizer, torch.int8)
    read, _ = load_model(tmp_path / "int8")
    x = tensor(3, 7, talker.config.encoder.dim)
    for one, two in zip(talker.encoder.layers, read.encoder.layers, strict=True):
        with torch.inference_mode():
            ours, theirs = packed(one.ff1, "int8")(x), packed(two.ff1, "int8")(x)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    linear, was = read.encoder.layers[0].attention.qkv, talker.encoder.layers[0].attention.qkv
    step = was.weight.abs().amax(1, keepdim=True) / 127
    assert bool(((linear.weight - was.weight).abs() <= 0.51 * step).all())
    assert bool((linear.weight != was.weight).any())


def test_the_embedded_model_is_much_smaller_in_8_bits(tmp_path: Path) -> None:
    recognizer = pianissimo.load("embedded-commands", device="cpu")
    for name, dtype in (("float32", torch.float32), ("int8", torch.int8)):
        save_model(tmp_path / name, recognizer.model, recognizer.tokenizer, dtype)
    sizes = {path.parent.name: path.stat().st_size for path in tmp_path.glob("*/*.safetensors")}
    assert sizes["int8"] <= 0.3 * sizes["float32"]
    kinds = {t.dtype for t in load_file(tmp_path / "int8" / "model.safetensors").values()}
    assert kinds == {torch.int8, torch.float16, torch.float32}
    read = pianissimo.load(tmp_path / "int8", device="cpu")
    assert all(p.dtype == torch.float32 for p in read.model.parameters())


def test_8_bits_without_their_scales_are_refused(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make_model(vocab_size=tiny_tokenizer.vocab_size)
    save_model(tmp_path, model, tiny_tokenizer, torch.int8)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    name = next(n for n, t in good.items() if t.dtype == torch.int8) + "_scale"
    for scale in (None, good[name][1:], good[name] * torch.nan):
        damaged = {n: t for n, t in good.items() if n != name}
        damaged |= {} if scale is None else {name: scale.contiguous()}
        save_file(damaged, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=name.removesuffix("_scale")):
            load_model(tmp_path)


def test_only_linear_layers_get_8_bits() -> None:
    model = make_model()
    small = {n for n, t in to_store(model, torch.int8).items() if t.dtype == torch.int8}
    linear = {f"{n}.weight" for n, m in model.named_modules() if type(m) is nn.Linear}
    assert small == linear
