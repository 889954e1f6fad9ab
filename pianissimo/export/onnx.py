"""A streaming model as ONNX files that NumPy and onnxruntime run; see examples/onnx_stream.py.

Shape legend: B streams, N samples of a step, C encoder frames of a chunk, S encoder frames, D
width, L left context, H heads, K head width, k convolution kernel, P predictor width, V vocabulary.

A folder gets `encoder-<latency>ms.onnx` for each latency mode, `predictor.onnx` and `joiner.onnx`
(or `ctc.onnx` for a model without them), and `onnx.json` with all that a client must know besides:
how many samples a step takes, the shapes of the caches of one stream, and the tokens. The numbers
are those of our own engine; what is not in the files is the gain before the model and the endpoint
rules after it.

One graph serves the first chunk of a stream, the chunks in its middle and the last one. Its inputs
say how many frames a stream has had and how many samples it has in all; what lies before and after
the stream counts as the zero padding of `forward`.
"""

import dataclasses
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.errors import MissingExtraError, OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.fastconformer import KERNEL, STRIDE, CachedPast
from pianissimo.models.transducer import Joiner, Predictor, PredictorState
from pianissimo.text.tokenizer import Tokenizer

OPSET = 20
"""The first one with everything needed; onnxruntime has it since 1.17."""
STILL_RUNNING = 2**40
"""For `samples`, while the end of a stream is unknown."""
DESCRIPTION_FILE = "onnx.json"
FORMAT_VERSION = 1
TRACED_STREAMS = 2


@dataclass(frozen=True)
class Exported:
    """What was written: the folder's files, and the bytes of each."""

    folder: Path
    sizes: dict[str, int]


class EncoderStep(nn.Module):
    """Samples of one chunk to its encoder frames, caches in and caches out.

    audio (B, N) is what `ChunkGrid.window` says, one chunk of 8C mel frames; `frames` (B,) counts
    the encoder frames each stream has behind it and `samples` (B,) how many it has in all, or
    STILL_RUNNING. The caches are one (B, channels, 1, bins) for each stage of the subsampling, then
    key and value (layers, B, H, L, K) and conv (layers, B, k - 1, D); all zeros at the start.
    Returns (B, C, D), of which a finished stream has S(samples) - frames, and the caches after it.
    """

    relative: Tensor
    waves: Tensor
    bands: Tensor
    index: Tensor

    def __init__(self, model: AsrModel, lookahead: int) -> None:
        super().__init__()
        config = model.config.encoder
        assert config.left_context is not None
        self.encoder, self.prompt = model.encoder, model.prompt
        self.features = model.features
        self.chunk, self.left = config.chunk(lookahead), config.left_context
        self.stages, self.factor = config.subsampling_stages, config.subsampling_factor
        self.mel_frames = self.chunk * self.factor
        with torch.no_grad():
            relative = model.encoder.relative_keys(self.left, self.chunk)
        self.register_buffer("relative", relative, persistent=False)
        self._register_spectrum()

    @property
    def samples_per_step(self) -> int:
        """N: with the overlap of the windows, and one sample more for the pre-emphasis."""
        features = self.features.config
        return 1 + (self.mel_frames - 1) * features.hop_samples + features.fft_samples

    def _register_spectrum(self) -> None:
        """The Fourier transform as a matrix: every runtime multiplies matrices."""
        config = self.features.config
        n = torch.arange(config.fft_samples, dtype=torch.float64)
        bins = torch.arange(config.fft_samples // 2 + 1, dtype=torch.float64)
        angles = 2 * torch.pi * n[:, None] * bins / config.fft_samples
        side = (config.fft_samples - config.window_samples) // 2
        window = F.pad(self.features.window.double(), (side, side))[:, None]
        waves = torch.cat([angles.cos() * window, angles.sin() * window], dim=1)
        self.register_buffer("waves", waves.float(), persistent=False)
        bands = self.features.filterbank.T.contiguous()
        self.register_buffer("bands", bands, persistent=False)
        hops = torch.arange(self.mel_frames)[:, None] * config.hop_samples
        self.register_buffer("index", hops + torch.arange(config.fft_samples), persistent=False)

    def forward(
        self, audio: Tensor, frames: Tensor, samples: Tensor, *caches: Tensor
    ) -> tuple[Tensor, ...]:
        subsampling, (key, value, conv) = caches[: self.stages], caches[self.stages :]
        x, after = self._subsample(self._mel(audio, frames, samples), frames, samples, subsampling)
        position = frames[:, None] + torch.arange(-self.left, self.chunk)
        known = (position >= 0) & (position < self._length(samples, self.stages)[:, None])
        mask, valid = known[:, None, None, None, :], known[:, self.left :]
        keys, values, convs = [], [], []
        for i, layer in enumerate(self.encoder.layers):
            past = CachedPast(key[i], value[i], conv[i], self.relative[i], self.chunk, mask, valid)
            x = layer(x, past)
            keys.append(past.key)
            values.append(past.value)
            convs.append(past.conv)
        if self.prompt is not None:
            x = self.prompt(x)
        return x, *after, torch.stack(keys), torch.stack(values), torch.stack(convs)

    def _mel(self, audio: Tensor, frames: Tensor, samples: Tensor) -> Tensor:
        """(B, N) -> (B, 8C, F), as `MelFeatures.frames`; zeros where the stream has none."""
        config = self.features.config
        emphasised = audio[:, 1:] - config.preemphasis * audio[:, :-1]
        first = self._first(frames, 0) * config.hop_samples - config.fft_samples // 2
        at = first[:, None] + torch.arange(emphasised.shape[1])
        windows = (emphasised * (at < samples[:, None]))[:, self.index]
        real, imaginary = (windows @ self.waves).chunk(2, dim=-1)
        magnitude = (real.square() + imaginary.square()).sqrt()
        power = magnitude.square() @ self.bands
        return torch.log(power + config.log_guard)

    def _subsample(
        self, mel: Tensor, frames: Tensor, samples: Tensor, caches: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, 8C, F) -> (B, C, D), as `Subsampling.step`, with each stage masked by position."""
        subsampling = self.encoder.subsampling
        x, after = self._masked(mel[:, None], frames, samples, 0), []
        for stage, convolution in enumerate(subsampling.conv):
            x = torch.cat([caches[stage], x], dim=2)
            after.append(x[:, :, -1:])
            x = convolution(F.pad(x, (subsampling.left, subsampling.right)))
            if stage and subsampling.depthwise:
                x = subsampling.pointwise[stage - 1](x)
            x = self._masked(F.relu(x), frames, samples, stage + 1)
        B, channels, C, bins = x.shape
        x = subsampling.out(x.transpose(1, 2).reshape(B, C, channels * bins))
        return x * self.encoder.scale, after

    def _masked(self, x: Tensor, frames: Tensor, samples: Tensor, stage: int) -> Tensor:
        """(B, channels, T, bins) with zeros before the beginning and after the end of a stream."""
        at = self._first(frames, stage)[:, None] + torch.arange(x.shape[2])
        inside = (at >= 0) & (at < self._length(samples, stage)[:, None])
        return x * inside[:, None, :, None]

    def _first(self, frames: Tensor, stage: int) -> Tensor:
        """The first frame of a chunk after that many stages; negative at the start."""
        rate = 2 ** (self.stages - stage)
        return frames * rate - (rate - 1)

    def _length(self, samples: Tensor, stage: int) -> Tensor:
        """The number of frames of a stream of that many samples after that many stages."""
        length = samples // self.features.config.hop_samples
        for _ in range(stage):
            subsampling = self.encoder.subsampling
            longer = (length + subsampling.left + subsampling.right - KERNEL) // STRIDE + 1
            length = torch.where(length > 0, longer, length)
        return length


class PredictorStep(nn.Module):
    """labels (B,), hidden and cell (layers, B, P) -> (B, P), and hidden and cell after it."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(
        self, labels: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, state = self.predictor.step(labels, PredictorState(hidden, cell))
        return out, state.hidden, state.cell


class JoinerStep(nn.Module):
    """Encoder frames (B, D) and predictor outputs (B, P) -> logits (B, V + 1 + durations)."""

    def __init__(self, joiner: Joiner) -> None:
        super().__init__()
        self.joiner = joiner

    def forward(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        logits: Tensor = self.joiner(self.joiner.encoder(encoder), self.joiner.predictor(predictor))
        return logits


def export(
    model: AsrModel,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    latencies_ms: Sequence[int] = (),
    precision: Literal["float32", "int8"] = "float32",
) -> Exported:
    """Write a streaming model, in float32 on the CPU, as ONNX files: all latency modes by default.

    With "int8" matrices have 8-bit weights, and the activations of all streams of a step share one
    scale in each product: the audio of one stream then changes the numbers of another a little,
    which it does not in our own engine. Raises OptionError for a model that cannot stream or lacks
    the mode, MissingExtraError without the packages of pianissimo[export].
    """
    config = model.config
    _check(model, precision)
    modes = {ms: config.lookahead(ms) for ms in latencies_ms or config.latencies_ms}
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    steps = {ms: EncoderStep(model, lookahead or 0).eval() for ms, lookahead in modes.items()}
    for ms, step in steps.items():
        names.append(f"encoder-{ms}ms.onnx")
        _write(step, _encoder_inputs(model, step), _encoder_outputs(step), folder / names[-1])
    if model.predictor is not None and model.joiner is not None:
        names += ["predictor.onnx", "joiner.onnx"]
        _write_heads(model, model.predictor, model.joiner, folder)
    if model.ctc is not None:
        names.append("ctc.onnx")
        frames = torch.zeros(TRACED_STREAMS, 3, config.encoder.dim)
        dynamic = {"encoder": {0: "batch", 1: "frames"}}
        _write(model.ctc, {"encoder": frames}, ["log_probs"], folder / names[-1], dynamic)
    if precision == "int8":
        for name in names:
            quantize(folder / name)
    description = _description(model, tokenizer, steps)
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
    sizes = {name: (folder / name).stat().st_size for name in (*names, DESCRIPTION_FILE)}
    return Exported(folder, sizes)


def _check(model: AsrModel, precision: str) -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if precision == "int8":
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX files need packages that are not installed ({error.name}): "
            "pip install 'pianissimo[export]'"
        ) from error
    if precision not in ("float32", "int8"):
        raise OptionError(f"ONNX files are written as float32 or int8, not as {precision!r}")
    if not model.config.streams:
        raise OptionError(
            f"{model.config.name} transcribes whole recordings; only streaming models are exported"
        )
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise OptionError("ONNX files are made from a model in float32 on the CPU")


def _encoder_inputs(
    model: AsrModel, step: EncoderStep, streams: int = TRACED_STREAMS
) -> dict[str, Tensor]:
    """Inputs by name of a step of streams that begin."""
    state = model.encoder.start(streams)
    inputs = {
        "audio": torch.zeros(streams, step.samples_per_step),
        "frames": torch.zeros(streams, dtype=torch.long),
        "samples": torch.full((streams,), STILL_RUNNING),
    }
    for i, cache in enumerate(state.subsampling.caches):
        inputs[f"subsampling_{i}"] = cache[:, :, :1]
    return inputs | {"key": state.key, "value": state.value, "conv": state.conv}


def _encoder_outputs(step: EncoderStep) -> list[str]:
    stages = [f"new_subsampling_{i}" for i in range(step.stages)]
    return ["encoder", *stages, "new_key", "new_value", "new_conv"]


def _write_heads(model: AsrModel, predictor: Predictor, joiner: Joiner, folder: Path) -> None:
    B = TRACED_STREAMS
    state = predictor.start(B)
    labels = torch.full((B,), predictor.config.blank)
    inputs = {"labels": labels, "hidden": state.hidden, "cell": state.cell}
    outputs = ["predictor", "new_hidden", "new_cell"]
    _write(PredictorStep(predictor), inputs, outputs, folder / "predictor.onnx")
    pair = {
        "encoder": torch.zeros(B, model.config.encoder.dim),
        "predictor": torch.zeros(B, predictor.config.predictor_dim),
    }
    _write(JoinerStep(joiner), pair, ["logits"], folder / "joiner.onnx")


SPECTRUM = ("waves", "bands")
"""The matrices of the features: what is lost there no layer finds again."""
STACKED = ("key", "value", "conv", "hidden", "cell")
"""Inputs whose first dimension is the layer; the streams are the second."""


def _write(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    path: Path,
    dynamic: dict[str, dict[int, str]] | None = None,
) -> None:
    """One graph for any number of streams."""
    batch = torch.export.Dim("batch", min=1)
    shapes: tuple[Any, ...]
    if dynamic is None:
        shapes = tuple({1 if name in STACKED else 0: batch} for name in inputs)
    else:
        names = {"batch": batch, "frames": torch.export.Dim("frames", min=1)}
        shapes = tuple(
            {axis: names[size] for axis, size in dynamic[name].items()} for name in inputs
        )
    if isinstance(module, EncoderStep):
        shapes = (*shapes[:3], shapes[3:])  # the caches are one starred argument
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter warns of its own internals, and of packages that no model here needs.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )


def quantize(path: Path) -> None:
    """The weights of an exported graph's linear layers in 8 bits, in place.

    Matrices of the spectrum stay exact, and so do the keys of distances, which are no layer's.
    Weights use 7 of their bits: with 8, processors without VNNI overflow in silence where they add
    pairs of products in 16 bits, and a file may run on any processor.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path)
    # The exporter transposes weights and leaves their old shapes behind, which are then in the way.
    del graph.graph.value_info[:]
    others = {t.name for t in graph.graph.initializer if len(t.dims) != 2} | {*SPECTRUM}
    exact = [node.name for node in graph.graph.node if others & {*node.input}]
    advice = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=exact,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    finally:
        logging.getLogger().setLevel(advice)


def _description(
    model: AsrModel, tokenizer: Tokenizer, steps: dict[int, EncoderStep]
) -> dict[str, Any]:
    """What a client must know besides the graphs."""
    config = model.config
    modes = {}
    for ms, step in steps.items():
        lookahead = config.lookahead(ms)
        assert lookahead is not None
        grid = config.grid(lookahead)
        start, _ = grid.window(1)
        inputs = _encoder_inputs(model, step, streams=1)
        caches = {name: list(inputs[name].shape) for name in list(inputs)[3:]}
        modes[str(ms)] = {
            "file": f"encoder-{ms}ms.onnx",
            "frames_per_step": grid.chunk,
            "samples_per_step": step.samples_per_step,
            "hop_samples": grid.chunk_samples,
            "first_sample": start - grid.chunk_samples,
            "caches": caches,
        }
    described: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "name": config.name,
        "language": config.language,
        "sample_rate": config.features.sample_rate,
        "frame_seconds": config.frame_seconds,
        "mel_hop_samples": config.features.hop_samples,
        "subsampling_stages": config.encoder.subsampling_stages,
        "still_running": STILL_RUNNING,
        "blank": config.vocab_size,
        "max_symbols": config.max_symbols,
        "modes": modes,
        "tokens": list(tokenizer.pieces),
    }
    if config.transducer is not None:
        described["transducer"] = dataclasses.asdict(config.transducer)
    return described
