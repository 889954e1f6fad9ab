"""The exported graphs say what our own engine says: any batch, any phase, whole and cut."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from tiny import ENCODER, WHOLE_CONTEXT, make_model, noise

from pianissimo.errors import OptionError
from pianissimo.export.onnx import STILL_RUNNING, export, quantize
from pianissimo.models.asr import AsrModel
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.grid import ChunkGrid
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.prune import prune_heads, prune_units

ROOT = Path(__file__).parents[3]
CLIP = ROOT / "examples" / "audio" / "sentence.flac"
LATENCY_MS, LOOKAHEAD = 160, 1
LENGTHS = (30_000, 16_000, 1500, 43_210, 159)
"""Samples of streams: of whole chunks and not, shorter than one, without a frame."""
STACKED = ("key", "value", "conv")
"""Caches whose first dimension is the layer."""


@pytest.fixture(scope="module")
def folder(
    talker: AsrModel, tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tmp_path_factory.mktemp("onnx")
    done = export(talker, tiny_tokenizer, target, latencies_ms=[LATENCY_MS])
    assert done.sizes.keys() == {path.name for path in target.iterdir()}
    return target


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def start(folder: Path, streams: int) -> dict[str, np.ndarray]:
    """The caches of so many streams at their beginning."""
    shapes = json.loads((folder / "onnx.json").read_text())["modes"][str(LATENCY_MS)]["caches"]
    return {
        name: np.zeros(
            [streams if i == (name in STACKED) else n for i, n in enumerate(shape)], np.float32
        )
        for name, shape in shapes.items()
    }


def windows(samples: np.ndarray, grid: ChunkGrid, k: int) -> np.ndarray:
    """What the graph hears of chunk k: as any other chunk, also for the first."""
    begin = grid.window(k + 1)[0] - grid.chunk_samples
    length = grid.window(1)[1] - grid.window(1)[0]
    padded = np.pad(samples, (-min(begin, 0), max(0, begin + length - len(samples))))
    return padded[max(begin, 0) :][:length]


def run_together(
    folder: Path, model: AsrModel, recordings: list[np.ndarray], known_end: bool
) -> list[np.ndarray]:
    """Encoder frames of streams in lockstep, each with as many as its samples give."""
    grid = model.config.grid(LOOKAHEAD)
    graph = session(folder / f"encoder-{LATENCY_MS}ms.onnx")
    mel = torch.tensor([len(r) // model.config.features.hop_samples for r in recordings])
    counts = model.encoder.subsampling.output_length(mel).tolist()
    caches, parts = start(folder, len(recordings)), []
    for k in range(-(-max(counts) // grid.chunk)):
        # The end is told at the last moment, or from the beginning: that must make no difference.
        ends = [
            len(r) if known_end or (k + 1) * grid.chunk > len(r) / 1280 - 1 else STILL_RUNNING
            for r in recordings
        ]
        inputs = {
            "audio": np.stack([windows(r, grid, k) for r in recordings]),
            "frames": np.full(len(recordings), k * grid.chunk),
            "samples": np.array(ends),
        }
        encoded, *after = graph.run(None, {**inputs, **caches})
        caches = dict(zip(caches, after, strict=True))
        parts.append(encoded)
    whole = np.concatenate(parts, axis=1)
    return [whole[i, :n] for i, n in enumerate(counts)]


def ours(model: AsrModel, samples: np.ndarray) -> np.ndarray:
    """The encoder frames of `FastConformerEncoder.step`."""
    encoder = model.encoder
    with torch.inference_mode():
        mel = model.features.whole(torch.from_numpy(samples))[None]
        plan = encoder.plan(LOOKAHEAD)
        return encoder.step(mel, encoder.start(), plan, final=True)[0].numpy()


@pytest.mark.parametrize("known_end", [True, False])
def test_streams_of_any_length_give_the_frames_of_our_encoder(
    folder: Path, talker: AsrModel, known_end: bool
) -> None:
    recordings = [noise(n, seed) for seed, n in enumerate(LENGTHS)]
    for recording, found in zip(
        recordings, run_together(folder, talker, recordings, known_end), strict=True
    ):
        expected = ours(talker, recording)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_stream_does_not_depend_on_its_neighbours_or_their_phase(
    folder: Path, talker: AsrModel
) -> None:
    grid, steps = talker.config.grid(LOOKAHEAD), 5
    graph = session(folder / f"encoder-{LATENCY_MS}ms.onnx")
    early, late = noise(60_000, 1), noise(60_000, 2)
    alone = run_together(folder, talker, [late], known_end=False)[0][: steps * grid.chunk]
    caches, parts = start(folder, 2), []
    for k in range(-3, steps):
        if k == 0:
            for name, cache in caches.items():  # the second row begins anew
                cache[(slice(None), 1) if name in STACKED else 1] = 0.0
        inputs = {
            "audio": np.stack([windows(early, grid, k + 3), windows(late, grid, max(k, 0))]),
            "frames": np.array([k + 3, max(k, 0)]) * grid.chunk,
            "samples": np.full(2, STILL_RUNNING),
        }
        encoded, *after = graph.run(None, {**inputs, **caches})
        caches = dict(zip(caches, after, strict=True))
        parts += [encoded[1]] if k >= 0 else []
    np.testing.assert_allclose(np.concatenate(parts), alone, atol=2e-4)


def test_the_heads_are_ours(folder: Path, talker: AsrModel) -> None:
    assert talker.predictor is not None and talker.joiner is not None and talker.ctc is not None
    state = talker.predictor.start(3)
    labels = torch.tensor([0, 5, talker.config.vocab_size])
    frames = torch.randn(
        3, 4, talker.config.encoder.dim, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected, after = talker.predictor.step(labels, state)
        logits = talker.joiner(
            talker.joiner.encoder(frames[:, 0]), talker.joiner.predictor(expected)
        )
        log_probs = talker.ctc(frames)
    found, hidden, cell = session(folder / "predictor.onnx").run(
        None,
        {"labels": labels.numpy(), "hidden": state.hidden.numpy(), "cell": state.cell.numpy()},
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(hidden, after.hidden, atol=1e-5)
    np.testing.assert_allclose(cell, after.cell, atol=1e-5)
    pair = {"encoder": frames[:, 0].numpy(), "predictor": found}
    (joined,) = session(folder / "joiner.onnx").run(None, pair)
    np.testing.assert_allclose(joined, logits, rtol=1e-4, atol=1e-4)
    (ctc,) = session(folder / "ctc.onnx").run(None, {"encoder": frames.numpy()})
    np.testing.assert_allclose(ctc, log_probs, atol=1e-4)


@pytest.fixture(scope="module")
def pruned(
    tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AsrModel, Path]:
    """A model whose heads are narrower than it is wide together, as saved and read, and its files.

    It has biases and plain convolutions too, which `talker` has not.
    """
    target = tmp_path_factory.mktemp("pruned")
    encoder = dataclasses.replace(
        ENCODER,
        layers=1,
        heads=4,
        attention_bias=True,
        conv_bias=True,
        depthwise_subsampling=False,
    )
    whole = make_model(
        vocab_size=tiny_tokenizer.vocab_size, encoder=encoder, transducer=None, seed=3
    )
    save_model(target / "model", prune_units(prune_heads(whole, 0.5), 0.25), tiny_tokenizer)
    model, _ = load_model(target / "model")
    assert model.config.encoder.attention_dim < model.config.encoder.dim
    export(model, tiny_tokenizer, target / "onnx", latencies_ms=[LATENCY_MS])
    return model, target / "onnx"


@pytest.mark.parametrize("streams", [1, 3])
def test_a_pruned_model_says_and_remembers_the_same_after_every_chunk(
    pruned: tuple[AsrModel, Path], streams: int
) -> None:
    """For longer than its left context, so that keys are forgotten too."""
    model, folder = pruned
    grid, steps = model.config.grid(LOOKAHEAD), 40
    assert steps * grid.chunk > (model.config.encoder.left_context or 0)
    recordings = [noise(grid.needed(steps), seed) for seed in range(streams)]
    graph = session(folder / f"encoder-{LATENCY_MS}ms.onnx")
    encoder, caches = model.encoder, start(folder, streams)
    plan, state = encoder.plan(LOOKAHEAD), encoder.start(streams)
    with torch.inference_mode():
        mel = torch.stack([model.features.whole(torch.from_numpy(r)) for r in recordings])
        for k in range(steps):
            inputs = {
                "audio": np.stack([windows(r, grid, k) for r in recordings]),
                "frames": np.full(streams, k * grid.chunk),
                "samples": np.full(streams, STILL_RUNNING),
            }
            found, *after = graph.run(None, {**inputs, **caches})
            caches = dict(zip(caches, after, strict=True))
            new = mel[:, grid.first_frame(k) : grid.first_frame(k + 1)]
            expected = encoder.step(new, state, plan)
            assert found.shape == expected.shape == (streams, grid.chunk, model.config.encoder.dim)
            np.testing.assert_allclose(found, expected, atol=2e-4)
            for name in STACKED:
                np.testing.assert_allclose(caches[name], getattr(state, name), atol=2e-4)


def test_a_pruned_model_ends_as_ours(pruned: tuple[AsrModel, Path]) -> None:
    model, folder = pruned
    recordings = [noise(n, seed) for seed, n in enumerate(LENGTHS)]
    for recording, found in zip(
        recordings, run_together(folder, model, recordings, known_end=False), strict=True
    ):
        np.testing.assert_allclose(found, ours(model, recording), atol=2e-4)


ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"torch", "pianissimo"} & sys.modules.keys(), "it needs more than it says"
"""


def test_the_example_says_the_words_of_our_stream_with_numpy_alone(
    folder: Path, talker: AsrModel, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    samples, rate = soundfile.read(CLIP, dtype="int16")
    soundfile.write(tmp_path / "clip.wav", samples, rate, subtype="PCM_16")
    command = [sys.executable, "-c", ALONE, str(ROOT / "examples" / "onnx_stream.py")]
    done = subprocess.run(
        [*command, str(folder), str(tmp_path / "clip.wav")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    recognizer = NativeRecognizer(talker, tiny_tokenizer)
    with recognizer.stream(latency_ms=LATENCY_MS, endpoint=None, watchdog=None) as stream:
        stream.push(samples.astype(np.float32) / 32768)
        (final,) = stream.finish()
    assert len(final.text.split()) > 3
    assert done.stdout.strip() == final.text


def relative_error_of_8_bits(model: AsrModel, folder: Path) -> float:
    """What quantizing the files does to the frames of a recording; the files change."""
    for path in folder.glob("*.onnx"):
        quantize(path)
    recording = noise(30_000)
    (found,) = run_together(folder, model, [recording], known_end=True)
    expected = ours(model, recording)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_8_bits_are_nearly_the_same(folder: Path, talker: AsrModel, tmp_path: Path) -> None:
    small = tmp_path / "int8"
    shutil.copytree(folder, small)
    assert 0 < relative_error_of_8_bits(talker, small) < 0.03
    kinds = {t.data_type for t in onnx.load(small / "joiner.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in kinds


def test_8_bits_of_a_pruned_model_are_nearly_the_same(
    pruned: tuple[AsrModel, Path], tmp_path: Path
) -> None:
    model, folder = pruned
    small = tmp_path / "int8"
    shutil.copytree(folder, small)
    assert 0 < relative_error_of_8_bits(model, small) < 0.03


def test_what_cannot_be_exported_says_why(
    talker: AsrModel, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    whole = make_model(encoder=WHOLE_CONTEXT)
    with pytest.raises(OptionError, match="only streaming models are exported"):
        export(whole, tiny_tokenizer, tmp_path)
    with pytest.raises(OptionError, match="latency 100 ms"):
        export(talker, tiny_tokenizer, tmp_path, latencies_ms=[100])
    with pytest.raises(OptionError, match="float32 on the CPU"):
        export(make_model().half(), tiny_tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
