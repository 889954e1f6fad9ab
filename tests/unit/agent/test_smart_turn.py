"""Smart Turn: its features, files that are not it, and how its verdict becomes a silence."""

from pathlib import Path

import numpy as np
import pytest

from pianissimo.agent.smart_turn import SmartTurn, SmartTurnModel, find_model
from pianissimo.audio.level import Samples
from pianissimo.errors import CheckpointError, MissingExtraError, ModelNotFoundError


def tiny_network(path: Path, mels: int = 80) -> Path:
    """A network of the same shape: the mean of its features is the probability."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("ReduceMean", ["input_features"], ["logits"], axes=[1, 2], keepdims=0)
    graph = helper.make_graph(
        [node],
        "mean",
        [helper.make_tensor_value_info("input_features", kind, ["batch", mels, 800])],
        [helper.make_tensor_value_info("logits", kind, ["batch"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def noise(seconds: float) -> Samples:
    return np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 8.0, 11.0])
def test_features_equal_those_of_transformers(tmp_path: Path, seconds: float) -> None:
    transformers = pytest.importorskip("transformers")
    samples = noise(seconds)
    last = samples[-128_000:]
    padded = np.pad(last, (128_000 - len(last), 0))
    normal = (padded - padded.mean()) / np.sqrt(padded.var() + 1e-7)
    extractor = transformers.WhisperFeatureExtractor(chunk_length=8)
    expected = extractor(normal, sampling_rate=16_000, return_tensors="np")["input_features"]
    found = SmartTurnModel(tiny_network(tmp_path / "turn.onnx")).features(samples)
    assert found.shape == expected.shape == (1, 80, 800) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-4


def test_the_probability_is_the_output_of_the_network(tmp_path: Path) -> None:
    model = SmartTurnModel(tiny_network(tmp_path / "turn.onnx"))
    assert model.probability(noise(2)) == pytest.approx(model.features(noise(2)).mean(), abs=1e-5)


def test_an_open_text_delays_a_complete_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = SmartTurnModel(tiny_network(tmp_path / "turn.onnx"))
    monkeypatch.setattr(SmartTurnModel, "probability", lambda self, samples: 0.8)
    judge = SmartTurn(model)
    assert judge.judge(noise(1), "I want it").wait_seconds == judge.complete_seconds
    waits = judge.judge(noise(1), "I want it and")
    assert not waits.complete and waits.wait_seconds == judge.rules.open_seconds


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="no Smart Turn model"):
        SmartTurnModel(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(CheckpointError, match="not an ONNX model"):
        SmartTurnModel(tmp_path / "text.onnx")
    with pytest.raises(CheckpointError, match="not a Smart Turn v3 model"):
        SmartTurnModel(tiny_network(tmp_path / "other.onnx", mels=64))
    monkeypatch.setattr("pianissimo.agent.smart_turn.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install pipecat-ai"):
        find_model("pipecat")


def test_the_file_inside_the_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pipecat" / "audio" / "turn" / "smart_turn" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "pipecat" / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    (folder / "smart-turn-v3.2-cpu.onnx").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_model("pipecat") == folder / "smart-turn-v3.2-cpu.onnx"
