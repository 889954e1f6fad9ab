"""Paraformer and SenseVoice of a few thousand random weights, as sherpa-onnx publishes them.

The inputs, outputs and metadata are those of the published files; what lies between is one random
projection, so that other sound gives other text.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BINS, WINDOW, SHIFT = 80, 7, 6
WIDTH = BINS * WINDOW
FRAMES_PER_TOKEN = 4
CHARACTERS = "我还能再搞一个就算是非常小的声音也识别准确"
LATIN = ("hel@@", "lo", "world")
PARAFORMER_TOKENS = ("<blank>", "<s>", "</s>", *CHARACTERS, *LATIN, "<unk>")
LANGUAGES = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12}
SENSE_VOICE_TOKENS = (
    "<blank>",
    *(f"<|{language}|>" for language in LANGUAGES if language != "auto"),
    "<|NEUTRAL|>",
    "<|Speech|>",
    "<|withitn|>",
    "<|woitn|>",
    *CHARACTERS,
    "▁hel",
    "lo",
    "▁world",
    ".",
)
INT32, FLOAT = TensorProto.INT32, TensorProto.FLOAT


class Graph:
    """Nodes and constants, to be saved as a model."""

    def __init__(self, **constants: Any) -> None:
        self.nodes: list[Any] = []
        self.constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]

    def add(self, op: str, inputs: str, outputs: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs.split(), outputs.split(), **attributes))

    def save(
        self, path: Path, inputs: dict[str, Any], outputs: dict[str, Any], metadata: dict[str, Any]
    ) -> None:
        def infos(given: dict[str, Any]) -> list[Any]:
            return [helper.make_tensor_value_info(n, *value) for n, value in given.items()]

        graph = helper.make_graph(self.nodes, "tiny", infos(inputs), infos(outputs), self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        helper.set_model_props(model, {name: str(value) for name, value in metadata.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)


def features_metadata(vocabulary: int, rng: np.random.Generator) -> dict[str, Any]:
    """What both families say about themselves: about the mean and deviation of real features."""
    return {
        "vocab_size": vocabulary,
        "lfr_window_size": WINDOW,
        "lfr_window_shift": SHIFT,
        "neg_mean": ",".join(f"{v:.4f}" for v in rng.uniform(-14, -10, WIDTH)),
        "inv_stddev": ",".join(f"{v:.4f}" for v in rng.uniform(0.2, 0.3, WIDTH)),
    }


def save_tokens(folder: Path, tokens: tuple[str, ...]) -> None:
    lines = "".join(f"{token} {id}\n" for id, token in enumerate(tokens))
    (folder / "tokens.txt").write_text(lines, encoding="utf-8")


def projection(rng: np.random.Generator, rows: int, columns: int, rare: range) -> Any:
    """(rows, columns) of random weights; the columns in `rare` hardly ever win."""
    weights = rng.normal(0, 0.4, (rows, columns)).astype(np.float32)
    weights[:, list(rare)] = 0.0
    return weights


def save_tiny_paraformer(
    folder: Path, *, timestamps: bool = True, name: str = "model.int8.onnx", seed: int = 0
) -> None:
    """One token for every fourth frame of 60 ms, and the peaks from which its time is read."""
    rng, V = np.random.default_rng(seed), len(PARAFORMER_TOKENS)
    bias = np.zeros(V, np.float32)
    bias[2] = 0.1  # padding, which is zero, ends a text
    graph = Graph(
        weights=projection(rng, WIDTH, V, range(3)),
        bias=bias,
        zero=np.array([0], np.int64),
        one=np.array([1], np.int64),
        most=np.array([2**31], np.int64),
        step=np.array([FRAMES_PER_TOKEN], np.int64),
        count=np.int64(FRAMES_PER_TOKEN),
        scalar_zero=np.int64(0),
        scalar_one=np.int64(1),
        none=np.zeros((1, 2), np.float32),
        last=np.array([[1.0, 0.0, 0.0]], np.float32),
        flat=np.array([1, -1], np.int64),
    )
    graph.add("Slice", "speech zero most one step", "chosen")
    graph.add("MatMul", "chosen weights", "projected")
    graph.add("Add", "projected bias", "logits")
    graph.add("Identity", "speech_lengths", "token_num")
    outputs = {"logits": (FLOAT, ["N", "U", V]), "token_num": (INT32, ["N"])}
    if timestamps:
        graph.add("Shape", "speech", "rows", start=0, end=1)
        graph.add("Shape", "speech", "frames", start=1, end=2)
        graph.add("Squeeze", "frames zero", "frame_count")
        graph.add("Range", "scalar_zero frame_count scalar_one", "frame")
        graph.add("Mod", "frame count", "phase")
        graph.add("Equal", "phase scalar_zero", "fires")
        graph.add("Cast", "fires", "peak", to=FLOAT)
        graph.add("Unsqueeze", "peak one", "first_third")
        graph.add("Concat", "frames one", "filler_shape", axis=0)
        graph.add("Expand", "none filler_shape", "two_thirds")
        graph.add("Concat", "first_third two_thirds", "peaks", axis=1)
        graph.add("Concat", "peaks last", "all_peaks", axis=0)
        graph.add("Reshape", "all_peaks flat", "row_of_peaks")
        graph.add("Concat", "rows one", "peaks_shape", axis=0)
        graph.add("Expand", "row_of_peaks peaks_shape", "us_cif_peak")
        graph.add("Identity", "us_cif_peak", "us_alphas")
        outputs |= {name: (FLOAT, ["N", "P"]) for name in ("us_alphas", "us_cif_peak")}
    graph.save(
        folder / name,
        {"speech": (FLOAT, ["N", "T", WIDTH]), "speech_lengths": (INT32, ["N"])},
        outputs,
        features_metadata(V, rng) | {"model_type": "paraformer"},
    )
    save_tokens(folder, PARAFORMER_TOKENS)


def save_tiny_streaming_paraformer(folder: Path, seed: int = 0) -> None:
    """Encoder and decoder with one state; a token about every 0.2 s."""
    rng, V, D, kernel = np.random.default_rng(seed), len(PARAFORMER_TOKENS), 16, 3
    encoder = Graph(
        weights=rng.normal(0, 0.01, (WIDTH, D)).astype(np.float32),
        attention=rng.normal(0, 0.005, (WIDTH, 1)).astype(np.float32),
        bias=np.array([-0.9], np.float32),
        last=np.array([2], np.int64),
    )
    encoder.add("MatMul", "speech weights", "enc")
    encoder.add("Identity", "speech_lengths", "enc_len")
    encoder.add("MatMul", "speech attention", "drawn")
    encoder.add("Add", "drawn bias", "biased")
    encoder.add("Sigmoid", "biased", "weight")
    encoder.add("Squeeze", "weight last", "alphas")
    encoder.save(
        folder / "encoder.int8.onnx",
        {"speech": (FLOAT, ["N", "T", WIDTH]), "speech_lengths": (INT32, ["N"])},
        {
            "enc": (FLOAT, ["N", "T", D]),
            "enc_len": (INT32, ["N"]),
            "alphas": (FLOAT, ["N", "T"]),
        },
        features_metadata(V, rng)
        | {"encoder_output_size": D, "decoder_num_blocks": 1, "decoder_kernel_size": kernel},
    )
    decoder = Graph(weights=projection(rng, D, V, range(3)))
    decoder.add("MatMul", "acoustic_embeds weights", "logits")
    decoder.add("ArgMax", "logits", "sample_ids", axis=-1, keepdims=0)
    decoder.add("Identity", "in_cache_0", "out_cache_0")
    decoder.save(
        folder / "decoder.int8.onnx",
        {
            "enc": (FLOAT, ["N", "T", D]),
            "enc_len": (INT32, ["N"]),
            "acoustic_embeds": (FLOAT, ["N", "U", D]),
            "acoustic_embeds_len": (INT32, ["N"]),
            "in_cache_0": (FLOAT, ["N", D, kernel - 1]),
        },
        {
            "logits": (FLOAT, ["N", "U", V]),
            "sample_ids": (TensorProto.INT64, ["N", "U"]),
            "out_cache_0": (FLOAT, ["N", D, kernel - 1]),
        },
        {},
    )
    save_tokens(folder, PARAFORMER_TOKENS)


def save_tiny_sense_voice(folder: Path, name: str = "model.onnx", seed: int = 0) -> None:
    """Four marks, of which the first is the language asked for, then a symbol for each frame."""
    rng, V = np.random.default_rng(seed), len(SENSE_VOICE_TOKENS)
    first = SENSE_VOICE_TOKENS.index(CHARACTERS[0])
    id_of = {token: id for id, token in enumerate(SENSE_VOICE_TOKENS)}
    languages = np.zeros((20, V), np.float32)
    for language, row in LANGUAGES.items():
        languages[row, id_of[f"<|{'zh' if language == 'auto' else language}|>"]] = 1.0
    marks = np.zeros((1, 3, V), np.float32)
    for i, mark in enumerate(("<|NEUTRAL|>", "<|Speech|>", "<|withitn|>")):
        marks[0, i, id_of[mark]] = 1.0
    weights = projection(rng, WIDTH, V, range(1, first))
    weights[:, 0] *= 2.0
    graph = Graph(
        weights=weights,
        languages=languages,
        marks=marks,
        one=np.array([1], np.int64),
        rest=np.array([3, V], np.int64),
    )
    graph.add("MatMul", "x weights", "heard")
    graph.add("Gather", "languages language", "asked", axis=0)
    graph.add("Unsqueeze", "asked one", "first")
    graph.add("Shape", "x", "rows", start=0, end=1)
    graph.add("Concat", "rows rest", "marks_shape", axis=0)
    graph.add("Expand", "marks marks_shape", "others")
    graph.add("Concat", "first others heard", "logits", axis=1)
    graph.add("Identity", "x_length", "unused_length")
    graph.add("Identity", "text_norm", "unused_norm")
    graph.save(
        folder / name,
        {
            "x": (FLOAT, ["N", "T", WIDTH]),
            "x_length": (INT32, ["N"]),
            "language": (INT32, ["N"]),
            "text_norm": (INT32, ["N"]),
        },
        {"logits": (FLOAT, ["N", "L", V])},
        features_metadata(V, rng)
        | {f"lang_{language}": id for language, id in LANGUAGES.items()}
        | {
            "model_type": "sense_voice_ctc",
            "with_itn": 14,
            "without_itn": 15,
            "normalize_samples": 0,
            "comment": "tiny",
        },
    )
    save_tokens(folder, SENSE_VOICE_TOKENS)
