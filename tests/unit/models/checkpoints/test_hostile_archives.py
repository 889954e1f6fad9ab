"""Checkpoints that are damaged or mean harm end in a CheckpointError, and in nothing else."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import (
    BATCH_NORM,
    SPM_MEMBER,
    VOCABULARY,
    hf_state,
    nemo_config,
    nemo_members,
    nemo_state,
    pack,
    tar_bytes,
    write_hf,
    write_nemo,
)
from torch import Tensor

from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints import archive
from pianissimo.models.checkpoints.format import convert
from pianissimo.models.checkpoints.huggingface import read_huggingface
from pianissimo.models.checkpoints.nemo import config_from_nemo, nemo_names, read_nemo

CONFIG = nemo_config()
STATE = nemo_state(CONFIG)
MEMBERS = nemo_members(CONFIG, STATE)


def refused(path: Path, data: bytes, match: str) -> None:
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=match):
        read_nemo(path)


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("../outside"),
        member("./a/../../outside"),
        member("/etc/passwd"),
        member("..\\outside"),
        member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", type=tarfile.LNKTYPE, linkname="model_config.yaml"),
        member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("disk", type=tarfile.BLKTYPE, devmajor=8),
        member("pipe", type=tarfile.FIFOTYPE),
        member("./model_config.yaml"),
    ],
    ids=lambda info: f"{info.name}-{info.type!r}",
)
@pytest.mark.parametrize("packed", [False, True])
def test_unsafe_members_are_refused(info: tarfile.TarInfo, packed: bool, tmp_path: Path) -> None:
    data = tar_bytes(MEMBERS, info)
    before = set(tmp_path.parent.rglob("*"))
    file = tmp_path / "a.nemo"
    refused(file, gzip.compress(data) if packed else data, "member|there twice")
    assert set(tmp_path.parent.rglob("*")) - before == {file}


def test_too_many_members(tmp_path: Path) -> None:
    extra = [member(f"{n}") for n in range(archive.MOST_MEMBERS)]
    refused(tmp_path / "a.nemo", tar_bytes(MEMBERS, *extra), "more than 256 members")


@pytest.mark.parametrize("size", [1 << 30, 1 << 50])
def test_a_huge_declared_size(size: int, tmp_path: Path) -> None:
    header = member("model_config.yaml", size=size).tobuf(tarfile.GNU_FORMAT)
    refused(tmp_path / "a.nemo", header + bytes(1024), "claims .* bytes|damaged")


def test_a_huge_tar_header(tmp_path: Path) -> None:
    info = member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=1 << 40)
    header = info.tobuf(tarfile.GNU_FORMAT)
    refused(tmp_path / "a.nemo", header + bytes(1024), "header of")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("model_config.yaml", bytes(5 << 20), "more than"),
        ("model_config.yaml", b"[" * 5_000, "not readable YAML"),
        ("model_config.yaml", b"a: [1", "not readable YAML"),
        ("model_config.yaml", b"\xff\xfe\x00", "not readable YAML|not a mapping"),
        ("model_config.yaml", b"- 1", "not a mapping"),
        ("model_config.yaml", b"a: !!python/object/apply:os.getpid []", "not readable YAML"),
        ("model_config.yaml", b"a: &a {b: 1}\nc: {<<: *a}", "not readable YAML"),
        ("model_config.yaml", b"{}", "no tokenizer"),
        (SPM_MEMBER, b"not a model", "SentencePiece"),
        ("model_weights.ckpt", b"", "not a PyTorch checkpoint"),
        ("model_weights.ckpt", b"PK\x03\x04 and then nothing", "not a PyTorch checkpoint"),
        ("model_weights.ckpt", pack([1, 2]), "not a dictionary of tensors"),
        ("model_weights.ckpt", pack({"a": 1}), "not a dictionary of tensors"),
        ("model_weights.ckpt", pack(STATE)[:-3000], "incomplete"),
    ],
)
def test_damaged_members(name: str, data: bytes, match: str, tmp_path: Path) -> None:
    refused(tmp_path / "a.nemo", tar_bytes(MEMBERS | {name: data}), match)


def test_a_value_that_is_large_only_when_shown(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    lines += ["tokenizer: {type: *a11}"]
    data = "\n".join(lines).encode()
    file = tmp_path / "a.nemo"
    refused(file, tar_bytes(MEMBERS | {"model_config.yaml": data}), "tokenizer: type is")


@pytest.mark.parametrize("name", list(MEMBERS))
def test_missing_members(name: str, tmp_path: Path) -> None:
    members = {n: data for n, data in MEMBERS.items() if n != name}
    refused(tmp_path / "a.nemo", tar_bytes(members), f"has no {name}")


@pytest.mark.parametrize("reference", [None, 3, "nemo:", "nemo:../x", "/etc/passwd", "nemo:a/b"])
def test_a_tokenizer_outside_of_the_archive_is_refused(reference: Any, tmp_path: Path) -> None:
    config = nemo_config()
    config["tokenizer"]["model_path"] = reference
    file = write_nemo(tmp_path / "a.nemo", config, STATE)
    with pytest.raises(CheckpointError, match="tokenizer: model_path"):
        read_nemo(file)


@pytest.mark.parametrize("kind", ["wpe", "agg"])
def test_a_tokenizer_of_another_kind(kind: str, tmp_path: Path) -> None:
    config = nemo_config()
    config["tokenizer"]["type"] = kind
    with pytest.raises(CheckpointError, match=f"type is '{kind}'"):
        read_nemo(write_nemo(tmp_path / "a.nemo", config, STATE))


@pytest.mark.parametrize("keep", [0, 1, 100, 600, 2000, 20_000, 60_000])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_short(keep: int, packed: bool, tmp_path: Path) -> None:
    data = tar_bytes(MEMBERS)
    whole = gzip.compress(data, 1) if packed else data
    refused(tmp_path / "a.nemo", whole[:keep], "incomplete|damaged|not a tar")


def test_other_files_are_no_archive(tmp_path: Path) -> None:
    refused(tmp_path / "a.nemo", b"hello " * 1000, "not a tar archive")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_nemo(tmp_path / "absent.nemo")
    with pytest.raises(CheckpointError, match="has no model_config"):
        read_nemo(tmp_path)


def test_a_gzip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FREE_EXPANSION_BYTES", 1 << 20)
    refused(tmp_path / "a.nemo", gzip.compress(bytes(8 << 20)), "unpacks to more than")


class Payload:
    """Runs a command when a pickle with it is loaded carelessly."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    payload = Payload(f"touch {trace}")
    for state in (payload, STATE | {"joint.enc.weight": payload}, {"a": payload}):
        data = tar_bytes(MEMBERS | {"model_weights.ckpt": pack(state)})
        refused(tmp_path / "a.nemo", data, r"system.*no code was run")
    assert not trace.exists()


def test_a_compressed_zip_is_no_checkpoint(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data/0", bytes(1 << 24))
    data = tar_bytes(MEMBERS | {"model_weights.ckpt": buffer.getvalue()})
    refused(tmp_path / "a.nemo", data, "more data than it has")


def without(name: str) -> dict[str, Tensor]:
    return {n: t for n, t in STATE.items() if n != name}


QUERY = "encoder.layers.0.self_attn.linear_q.weight"


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (without(QUERY), rf"missing: {QUERY}"),
        (STATE | {"spare.weight": torch.zeros(1)}, "unknown: spare.weight"),
        (STATE | {QUERY: torch.zeros(16, 17)}, rf"{QUERY} has shape \(16, 17\), expected"),
        (STATE | {QUERY: torch.zeros(256)}, rf"{QUERY} has shape"),
        (STATE | {QUERY: torch.zeros(16, 16, dtype=torch.int64)}, "has torch.int64"),
        (STATE | {QUERY: torch.zeros(16, 16).to_sparse()}, "has torch.float32, expected plain"),
        (STATE | {QUERY: torch.zeros(()).expand(16, 16)}, "tensors overlap"),
        (STATE | {"joint.joint_net.2.weight": torch.zeros(42, 12)}, r"\(42, 12\), expected \(41"),
    ],
)
def test_tensors_that_do_not_belong(state: dict[str, Tensor], match: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=match):
        read_nemo(write_nemo(tmp_path / "a.nemo", CONFIG, state))


def test_every_tensor_is_required() -> None:
    config = config_from_nemo(nemo_config(**BATCH_NORM), VOCABULARY, "x")
    state = nemo_state(nemo_config(**BATCH_NORM))
    state = {n: t for n, t in state.items() if not n.startswith("preprocessor.")}
    for name in state:
        rest = {n: t for n, t in state.items() if n != name}
        with pytest.raises(CheckpointError, match=f"missing: {name}"):
            convert(config, rest, nemo_names(config), "x")


# -- Hugging Face folders --------------------------------------------------------------------------

ARCHITECTURE = "NemotronAsrStreamingForRNNT"
RENAMED = hf_state(STATE, nemotron=True)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_hf(tmp_path / "m", ARCHITECTURE, RENAMED, shards=4)


def test_half_the_shards(sharded: Path) -> None:
    for n in (2, 4):
        (sharded / f"model-{n:05}-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 2 of the 4 .*model-00002.*model-00004"):
        read_huggingface(sharded)


def test_shards_without_their_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor"):
        read_huggingface(sharded)


def test_shards_of_another_model(sharded: Path) -> None:
    one, other = (sharded / f"model-{n:05}-of-00004.safetensors" for n in (1, 2))
    one.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="does not have the tensors"):
        read_huggingface(sharded)


@pytest.mark.parametrize(
    "place", ["../x.safetensors", "/etc/passwd", "a/b", "..\\x", "", "..", 3, None]
)
def test_an_index_with_a_path_outside_is_refused(place: Any, sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["joint.head.bias"] = place
    index.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="not the name of a shard"):
        read_huggingface(sharded)


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("model.safetensors", b"", "damaged"),
        ("model.safetensors", b"\xff" * 100, "damaged"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b"{", "not readable JSON"),
        ("config.json", b'{"a":' * 100_000, "not readable JSON"),
        ("config.json", b" " * (5 << 20), "larger than"),
        ("config.json", None, "has no config.json"),
        ("processor_config.json", None, "has no processor_config.json"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", b"{}", "cannot be read"),
        ("model.safetensors", None, "neither"),
    ],
)
def test_damaged_folders(name: str, data: bytes | None, match: str, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", ARCHITECTURE, RENAMED)
    (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=match):
        read_huggingface(folder)


def test_tensors_that_do_not_belong_there(tmp_path: Path) -> None:
    spare = RENAMED | {"spare": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="unknown: spare"):
        read_huggingface(write_hf(tmp_path / "m", ARCHITECTURE, spare))
    rest = {n: t for n, t in RENAMED.items() if n != "joint.head.bias"}
    with pytest.raises(CheckpointError, match=r"missing: joint\.head\.bias"):
        read_huggingface(write_hf(tmp_path / "n", ARCHITECTURE, rest))
