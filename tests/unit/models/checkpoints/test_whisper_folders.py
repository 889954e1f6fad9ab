"""Whisper's folders: what CTranslate2 and Transformers wrote, our own, and hostile ones."""

import json
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints.ctranslate2 import read_variables
from pianissimo.models.checkpoints.whisper import (
    WhisperParts,
    is_whisper,
    load_whisper,
    read_ctranslate2,
    read_transformers,
    save_whisper,
)
from pianissimo.models.whisper import LiveConfig, WhisperEncoder

pytest.importorskip("transformers", reason="needs the extra families")
ctranslate2 = pytest.importorskip("ctranslate2", reason="needs the extra faster-whisper")
sys.path.insert(0, str(Path(__file__).parents[2] / "recognizers"))
from tiny_whisper import save_tiny_whisper  # noqa: E402, after the skip

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same random Whisper as Transformers wrote it and as CTranslate2 converted it."""
    root = tmp_path_factory.mktemp("folders")
    save_tiny_whisper(root / "theirs", max_target_positions=448, empty_piece=True, num_mel_bins=80)
    found = {"transformers": root / "theirs"}
    for kind in ("float32", "float16", "int8"):
        converter = ctranslate2.converters.TransformersConverter(
            str(root / "theirs"), copy_files=["tokenizer.json", "preprocessor_config.json"]
        )
        converter.convert(str(root / kind), quantization=kind)
        found[kind] = root / kind
    return found


@pytest.fixture(scope="module")
def parts(folders: dict[str, Path]) -> WhisperParts:
    return read_transformers(folders["transformers"])


def mel() -> torch.Tensor:
    return torch.randn(2, 3000, 80, generator=torch.Generator().manual_seed(1))


def test_frames_and_logits_are_those_of_transformers(folders: dict[str, Path]) -> None:
    import transformers

    folder = folders["transformers"]
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    ours = read_transformers(folder)
    sound, tokens = mel(), torch.tensor([[5, 9, 70, 200], [1, 2, 3, 4]])
    with torch.inference_mode():
        expected = theirs(sound.transpose(1, 2), decoder_input_ids=tokens)
        encoded = ours.network.encoder(sound)
        torch.testing.assert_close(
            encoded, expected.encoder_last_hidden_state, atol=1e-5, rtol=1e-4
        )
        logits = ours.network.decoder(tokens, encoded)
        torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert ours.rules.multilingual and len(ours.rules.suppressed) == 2


@pytest.mark.parametrize(("kind", "share"), [("float32", 1e-6), ("float16", 2e-3), ("int8", 0.02)])
def test_ctranslate2_holds_the_same_weights(
    folders: dict[str, Path], parts: WhisperParts, kind: str, share: float
) -> None:
    found = read_ctranslate2(folders[kind])
    expected = parts.network.state_dict()
    for name, tensor in found.network.state_dict().items():
        scale = expected[name].abs().max()
        assert (tensor - expected[name]).abs().max() <= share * scale, name
    assert found.rules.multilingual
    assert found.rules.suppressed_first == parts.rules.suppressed_first
    assert found.tokenizer.decode([70, 71]) == parts.tokenizer.decode([70, 71])


def test_frames_are_those_of_ctranslate2(folders: dict[str, Path]) -> None:
    model = ctranslate2.models.Whisper(str(folders["float32"]), device="cpu")
    sound = mel()
    features = np.ascontiguousarray(sound.transpose(1, 2).numpy())
    theirs = torch.from_numpy(np.array(model.encode(ctranslate2.StorageView.from_array(features))))
    with torch.inference_mode():
        ours = read_ctranslate2(folders["float32"]).network.encoder(sound)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("dtype", "share"), [(None, 0.0), (torch.float16, 2e-3), (torch.int8, 0.01)]
)
def test_our_own_folder_gives_back_what_was_saved(
    parts: WhisperParts, tmp_path: Path, dtype: torch.dtype | None, share: float
) -> None:
    kept = WhisperParts(parts.network, parts.tokenizer, parts.rules, "x", LiveConfig(80, (8, 28)))
    save_whisper(tmp_path, kept, dtype)
    assert is_whisper(tmp_path)
    found = load_whisper(tmp_path)
    assert (found.name, found.rules, found.live) == ("x", parts.rules, kept.live)
    assert found.network.config == parts.network.config
    expected = parts.network.state_dict()
    for name, tensor in found.network.state_dict().items():
        assert (tensor - expected[name]).abs().max() <= share * expected[name].abs().max(), name
    assert found.network.decoder.logits.weight is found.network.decoder.embedding.weight


def test_our_own_folder_may_hold_a_second_encoder(parts: WhisperParts, tmp_path: Path) -> None:
    second = WhisperEncoder(parts.network.config).eval()
    live = LiveConfig(80, (28, 8))
    save_whisper(tmp_path, replace(parts, live=live, live_encoder=second), torch.float16)
    found = load_whisper(tmp_path)
    assert found.live == live and found.live_encoder is not None
    sound = mel()
    with torch.inference_mode():
        torch.testing.assert_close(found.live_encoder(sound), second(sound), atol=0.02, rtol=0.02)
        assert not torch.allclose(found.network.encoder(sound), second(sound), atol=0.1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"live": None}))
    with pytest.raises(CheckpointError, match="has a live encoder, but"):
        load_whisper(tmp_path)
    save_whisper(tmp_path, replace(parts, live=live, live_encoder=second))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["live_encoder.conv1.bias"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: live_encoder\.conv1\.bias"):
        load_whisper(tmp_path)


def test_large_v3_has_128_bins(tmp_path: Path) -> None:
    save_tiny_whisper(tmp_path, num_mel_bins=128)
    assert read_transformers(tmp_path).network.config.n_mels == 128


# -- hostile files ---------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, shape: tuple[int, ...], kind: int, size: int, data: bytes) -> bytes:
    dimensions = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return text(name) + dimensions + struct.pack("<BI", kind, size) + data


def head(count: int, version: int = 6, name: str = "WhisperSpec") -> bytes:
    return struct.pack("<I", version) + text(name) + struct.pack("<II", 3, count)


NO_ALIASES = struct.pack("<I", 0)
GOOD = variable("a", (2,), 0, 8, b"\0" * 8)


def test_a_small_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(head(1) + GOOD + struct.pack("<I", 1) + text("b") + text("a"))
    found = read_variables(path)
    assert (found.specification, found.revision) == ("WhisperSpec", 3)
    assert {name: t.tolist() for name, t in found.tensors.items()} == {"a": [0, 0], "b": [0, 0]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cut short"),
        (b"\x80\x04" * 40, "version"),
        (head(1, version=9) + GOOD, "version 9"),
        (head(1)[:11], "cut short"),
        (head(1) + GOOD[:-1], "cut short"),
        (head(1) + GOOD, "cut short"),
        (head(2_000_000_000), "claims 2000000000 variables"),
        (head(1) + variable("a", (1 << 31, 1 << 31), 0, 8, b"\0" * 8), "expected"),
        (head(1) + variable("a", (1 << 30,), 0, 1 << 32 - 1, b"\0" * 8), "expected|cut short"),
        (head(1) + variable("a", (1 << 29,), 0, 1 << 31, b"\0" * 8), "cut short"),
        (head(1) + variable("a", (1,) * 9, 0, 4, b"\0" * 4), "9 dimensions"),
        (head(1) + variable("a", (2,), 77, 8, b"\0" * 8), "unknown type 77"),
        (head(2) + GOOD + GOOD + NO_ALIASES, "twice"),
        (head(1) + GOOD + NO_ALIASES + b"more", "4 bytes follow"),
        (head(1) + GOOD + struct.pack("<I", 1) + text("b") + text("c"), "stands for 'c'"),
        (head(1) + struct.pack("<H", 60_000) + b"x" * 60_000, "name of 60000 bytes"),
        (head(1) + struct.pack("<H", 3) + b"\xff\xfe\0" + GOOD, "no text"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        read_variables(path)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_foreign_damaged_and_incomplete_folders_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(folders["float32"], tmp_path / "broken")
    path = folder / "model.bin"
    good = path.read_bytes()
    for cut in (100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        with pytest.raises(CheckpointError, match="cut short"):
            read_ctranslate2(folder)
    path.write_bytes(good.replace(b"WhisperSpec", b"MarianSpecs", 1))
    with pytest.raises(CheckpointError, match=r"'MarianSpecs' of revision 3; .* only WhisperSpec"):
        read_ctranslate2(folder)
    name = b"encoder/layer_norm/gamma"
    place = good.index(name) + len(name) + 1 + 1 + 4 + 1 + 4
    nan = struct.pack("<f", float("nan"))
    path.write_bytes(good[:place] + nan + good[place + 4 :])
    with pytest.raises(CheckpointError, match="layer_norm/gamma holds numbers that are not finite"):
        read_ctranslate2(folder)
    path.write_bytes(good.replace(b"encoder/layer_1/ffn/linear_0", b"encoder/layer_7/ffn/linear_0"))
    with pytest.raises(CheckpointError, match="not numbered from 0 on"):
        read_ctranslate2(folder)
    path.write_bytes(good.replace(b"encoder/conv2/weight", b"encoder/convX/weight"))
    with pytest.raises(CheckpointError, match="missing: encoder/conv2/weight; unknown: encoder/co"):
        read_ctranslate2(folder)
    path.write_bytes(good)
    read_ctranslate2(folder)
    for missing in ("tokenizer.json", "config.json", "model.bin"):
        (folder / missing).rename(folder / "away")
        with pytest.raises(CheckpointError, match=missing):
            read_ctranslate2(folder)
        (folder / "away").rename(folder / missing)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 7}, "no Whisper of version 1"),
        ({"surprise": 1}, "unknown keys: surprise"),
        ({"rules": {"alignment_heads": [[9, 0]]}}, "one of 2 layers"),
        ({"rules": {"suppressed": [70_000]}}, "belong to another model"),
        ({"live": {"chunk_frames": []}}, "chunks of 1 frame or more"),
        ({"network": {"dim": "wide"}}, "expected int"),
        ({"network": {"dim": 18}}, "shape"),
    ],
)
def test_our_own_folder_is_read_strictly(
    parts: WhisperParts, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    save_whisper(tmp_path, parts)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    for key, value in changes.items():
        data[key] = {**(data[key] or {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=reason):
        load_whisper(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b'{"model": {"vocab": {"a": "x"}}}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": []}',
        b'{"model": {"vocab": {"a": 99999999999}}}',
        b'{"model": ' * 5000,
    ],
)
def test_damaged_tokenizers_are_refused(parts: WhisperParts, tmp_path: Path, data: bytes) -> None:
    save_whisper(tmp_path, parts)
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        load_whisper(tmp_path)
