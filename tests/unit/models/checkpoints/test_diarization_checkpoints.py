"""Damaged, foreign and hostile checkpoints of diarization networks are refused with one error."""

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints.diarization import (
    nemotron_config,
    nemotron_names,
    read_diarization,
)
from pianissimo.models.nemotron_diarization import NemotronDiarization

GOLDEN = Path(__file__).resolve().parents[3] / "parity" / "golden_diarizers"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "nemotron", tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_every_tensor_of_the_published_size_is_known() -> None:
    """417 tensors with 99,226,504 numbers, as the published model has."""
    data = json.loads((GOLDEN / "nemotron" / "config.json").read_text())
    data["audio_config"] |= {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 31,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_mel_bins": 128,
    }
    data["head_config"] |= {"hidden_size": 192, "num_speakers": 8, "audio_hidden_size": 512}
    data["streaming_config"] |= {"num_speakers": 8, "speaker_cache_length": 264}
    processor = json.loads((GOLDEN / "nemotron" / "processor_config.json").read_text())
    processor["feature_extractor"]["feature_size"] = 128
    config = nemotron_config(data, processor, "published")
    with torch.device("meta"):
        tensors = NemotronDiarization(config).state_dict()
    names = nemotron_names(config)
    assert sum(len(names.get(n) or names[n.rpartition(".")[0]]) for n in tensors) == 417
    assert sum(tensor.numel() for tensor in tensors.values()) == 99_226_504


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "architectures", ["ParakeetForCTC"]),
        ("audio_config", "hidden_size", -1),
        ("audio_config", "hidden_size", 1 << 40),
        ("audio_config", "num_attention_heads", 5),
        ("audio_config", "num_key_value_heads", 2),
        ("audio_config", "num_hidden_layers", 10**9),
        ("audio_config", "hidden_act", "relu"),
        ("audio_config", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1.0}),
        ("audio_config", "rope_parameters", [1]),
        ("head_config", "num_speakers", 2),
        ("head_config", "num_speakers", True),
        ("streaming_config", "speaker_cache_length", 1),
        ("streaming_config", "prediction_score_threshold", 0.0),
        (None, "chunk_length", 0),
        (None, "chunk_length", "ten"),
    ],
)
def test_a_configuration_that_makes_no_sense(
    folder: Path, section: str | None, key: str, value: object
) -> None:
    def change(data: Any) -> None:
        (data if section is None else data[section])[key] = value

    edit(folder / "config.json", change)
    with pytest.raises(CheckpointError):
        read_diarization(folder)


@pytest.mark.parametrize("modes", [{"low": [9]}, {"low": "9-4"}, {"low": [0, 1]}, [1]])
def test_streaming_modes_that_are_none(folder: Path, modes: object) -> None:
    edit(folder / "processor_config.json", lambda data: data.update(streaming_modes=modes))
    with pytest.raises(CheckpointError):
        read_diarization(folder)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "model.safetensors"])
def test_a_missing_or_damaged_file(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{" * 100)
    with pytest.raises(CheckpointError):
        read_diarization(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError):
        read_diarization(folder)


def test_weights_that_do_not_fit(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({n: t for n, t in weights.items() if n != "silence_embeds"}, path)
    with pytest.raises(CheckpointError, match="missing: silence_embeds"):
        read_diarization(folder)
    save_file(weights | {"extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="unknown: extra"):
        read_diarization(folder)
    save_file(weights | {"silence_embeds": torch.zeros(7)}, path)
    with pytest.raises(CheckpointError, match="silence_embeds has shape"):
        read_diarization(folder)
    save_file(weights | {"silence_embeds": torch.full((32,), float("nan"))}, path)
    with pytest.raises(CheckpointError, match="NaN"):
        read_diarization(folder)


def test_something_else_is_no_diarization_model(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no model")
    for path in (tmp_path, tmp_path / "note.txt", tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="not a diarization model"):
            read_diarization(path)


# -- NeMo ------------------------------------------------------------------------------------------


def unpacked(folder: Path) -> Path:
    """The archive as a folder, which is read as well."""
    with tarfile.open(GOLDEN / "sortformer.nemo") as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_a_folder_is_read_as_its_archive(tmp_path: Path) -> None:
    ours, theirs = read_diarization(unpacked(tmp_path)), GOLDEN / "sortformer.nemo"
    packed = read_diarization(theirs).state_dict()
    assert all(torch.equal(tensor, packed[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        (None, "streaming_mode", False, "streaming_mode"),
        (None, "target", "nemo.collections.asr.models.EncDecCTCModelBPE", "EncDecCTCModelBPE"),
        ("preprocessor", "normalize", "per_feature", "normalize"),
        ("encoder", "n_layers", 10**9, "n_layers"),
        ("encoder", "d_model", "wide", "d_model"),
        ("transformer_encoder", "pre_ln", True, "pre_ln"),
        ("transformer_encoder", "num_attention_heads", 5, "heads"),
        ("sortformer_modules", "num_spks", 0, "num_spks"),
        ("sortformer_modules", "spkcache_len", 3, "speaker cache"),
        ("sortformer_modules", "_target_", "os.system", "_target_"),
    ],
)
def test_a_nemo_configuration_that_is_not_supported(
    tmp_path: Path, section: str | None, key: str, value: object, says: str
) -> None:
    path = unpacked(tmp_path) / "model_config.yaml"
    data = yaml.safe_load(path.read_text())
    (data if section is None else data[section])[key] = value
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(CheckpointError, match=says):
        read_diarization(tmp_path)


class Evil:
    """Pickles to a call."""

    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("code was run",))


def test_code_in_the_weights_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = unpacked(tmp_path) / "model_weights.ckpt"
    torch.save({"encoder": Evil()}, path, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="other objects than plain tensors"):
        read_diarization(tmp_path)
    assert "code was run" not in capsys.readouterr().out


def test_members_outside_of_the_archive_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.nemo"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("../model_config.yaml")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(CheckpointError, match="outside of the archive"):
        read_diarization(path)


def test_a_truncated_archive(tmp_path: Path) -> None:
    data = (GOLDEN / "sortformer.nemo").read_bytes()
    (tmp_path / "short.nemo").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        read_diarization(tmp_path / "short.nemo")
