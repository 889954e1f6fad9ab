"""Silero's voice activity model, on NumPy: the probability of speech in windows of 32 ms.

The weights come from the ONNX file of the package `silero-vad`. The network is computed here, and
not by onnxruntime, because that runs one stream at a time: its file has no batch dimension. Here
all windows of all streams pass the convolutions in one call, and the recurrent layer takes one step
for all streams.

Shapes: B streams, K consecutive windows of each, W = B * K windows in all.

Every matrix product is a stack of products of one fixed size. So a stream gets the same bits alone
and among others. That size is also below the limit from which OpenBLAS starts threads, which would
spin between these short products.
"""

from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pianissimo.errors import MissingExtraError

Samples = npt.NDArray[np.float32]

WINDOW_SAMPLES = 512
CONTEXT_SAMPLES = 64
"""What the model also sees of the window before."""

_FILE = "silero_vad_16k_sequence.onnx"
_INSTALL = "voice activity detection needs the model of a package: pip install silero-vad"
_FFT, _HOP, _BINS, _FRAMES = 256, 128, 129, 4
_WIDTH = 128
STATE_SHAPE = (2, _WIDTH)
"""The state of a stream, output and cell. Zeros are a stream that has heard nothing."""
_BLOCK_WINDOWS = 64  # the intermediate results of a block stay in the cache
_ROWS = 4  # windows or streams per product of those layers that have one row of each
_SHAPES = {
    "stft.forward_basis_buffer": (2 * _BINS, 1, _FFT),
    "encoder.0.weight": (128, _BINS, 3),
    "encoder.0.bias": (128,),
    "encoder.1.weight": (64, 128, 3),
    "encoder.1.bias": (64,),
    "encoder.2.weight": (64, 64, 3),
    "encoder.2.bias": (64,),
    "encoder.3.weight": (_WIDTH, 64, 3),
    "encoder.3.bias": (_WIDTH,),
    "onnx::LSTM_209": (1, 4 * _WIDTH, _WIDTH),
    "onnx::LSTM_210": (1, 4 * _WIDTH, _WIDTH),
    "onnx::LSTM_211": (1, 8 * _WIDTH),
    "output.weight": (1, _WIDTH, 1),
    "output.bias": (1,),
}


def available() -> bool:
    """Whether the package with the weights is installed."""
    return find_spec("silero_vad") is not None


class _Weights(NamedTuple):
    cosines: Samples
    """(256, 129), each column a windowed cosine."""
    sines: Samples
    kernels: list[tuple[Samples, Samples]]
    """Of each convolution: (taps * channels in, channels out) and bias."""
    inputs: Samples
    """(128, 512), gates in the order of ONNX: input, output, forget, cell."""
    recurrent: Samples
    bias: Samples
    output: Samples
    output_bias: np.float32


class SpeechModel:
    """Weights only, shared by any number of streams, and read when they are first used.

    Raises MissingExtraError when the package `silero-vad` is not installed, or another version of
    it has another network.
    """

    def __init__(self) -> None:
        if not available():
            raise MissingExtraError(_INSTALL)

    def step(self, windows: Samples, states: Samples) -> tuple[Samples, Samples]:
        """Windows (B, K, 64 + 512), each with its context, and the states (B, 2, 128) before them.

        Returns probabilities (B, K) and the states behind the windows.
        """
        B, K, size = windows.shape
        weights, flat = self._weights, windows.reshape(B * K, size)
        gates = np.empty((B * K, 4 * _WIDTH), np.float32)
        for start in range(0, B * K, _BLOCK_WINDOWS):
            block = slice(start, start + _BLOCK_WINDOWS)
            gates[block] = _gate_inputs(flat[block], weights)
        gates = gates.reshape(B, K, 4 * _WIDTH)
        rows = np.zeros((-(-B // _ROWS) * _ROWS, _WIDTH), np.float32)
        rows[:B], cell = states[:, 0], states[:, 1]
        logits = np.empty((B, K), np.float32)
        with np.errstate(over="ignore"):  # e^-x of large negative x is infinite, its reciprocal 0
            for k in range(K):
                products = rows.reshape(-1, _ROWS, _WIDTH) @ weights.recurrent
                gate = products.reshape(-1, 4 * _WIDTH)[:B] + gates[:, k]
                open_ = np.reciprocal(np.exp(-gate[:, : 3 * _WIDTH]) + 1)  # sigmoid
                enter, leave = open_[:, :_WIDTH], open_[:, _WIDTH : 2 * _WIDTH]
                cell = open_[:, 2 * _WIDTH :] * cell + enter * np.tanh(gate[:, 3 * _WIDTH :])
                np.multiply(leave, np.tanh(cell), out=rows[:B])
                logits[:, k] = (np.maximum(rows[:B], 0) * weights.output).sum(axis=1)
            probabilities = np.reciprocal(np.exp(-(logits + weights.output_bias)) + 1)
        return probabilities, np.stack([rows[:B], cell], axis=1)

    @cached_property
    def _weights(self) -> _Weights:
        path = _model_path()
        tensors = dict(_initializers(path.read_bytes()))
        for name, shape in _SHAPES.items():
            if name not in tensors or tensors[name].size != np.prod(shape):
                raise MissingExtraError(
                    f"{path} has another network than expected (tensor {name}); "
                    "pip install 'silero-vad>=6.2.3,<7'"
                )
        named = {name: tensors[name].reshape(shape) for name, shape in _SHAPES.items()}
        basis = named["stft.forward_basis_buffer"][:, 0].T
        kernels = []
        # Of the last two convolutions, which read two frames and one, some taps see padding only.
        for layer, taps in enumerate((slice(0, 3), slice(0, 3), slice(1, 3), slice(1, 2))):
            kernel = named[f"encoder.{layer}.weight"].transpose(2, 1, 0)[taps]
            flat = np.ascontiguousarray(kernel.reshape(-1, kernel.shape[2]))
            kernels.append((flat, named[f"encoder.{layer}.bias"]))
        both = named["onnx::LSTM_211"][0]
        return _Weights(
            cosines=np.ascontiguousarray(basis[:, :_BINS]),
            sines=np.ascontiguousarray(basis[:, _BINS:]),
            kernels=kernels,
            inputs=np.ascontiguousarray(named["onnx::LSTM_209"][0].T),
            recurrent=np.ascontiguousarray(named["onnx::LSTM_210"][0].T),
            bias=both[: 4 * _WIDTH] + both[4 * _WIDTH :],
            output=named["output.weight"][0, :, 0],
            output_bias=named["output.bias"][0],
        )


def _gate_inputs(windows: Samples, weights: _Weights) -> Samples:
    """Windows (W, 576) -> what the recurrent layer adds to its gates, (W, 512)."""
    W = len(windows)
    tail = CONTEXT_SAMPLES
    mirrored = np.concatenate([windows, windows[:, -2 : -2 - tail : -1]], axis=1)
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, _FFT, axis=1)[:, ::_HOP]
    frames = np.ascontiguousarray(frames)  # (W, 4, 256)
    real, imag = frames @ weights.cosines, frames @ weights.sines
    real *= real
    imag *= imag
    real += imag
    x = np.zeros((W, _FRAMES + 2, _BINS), np.float32)  # a frame of zeros on either side
    np.sqrt(real, out=x[:, 1:-1])
    (first, bias), *rest = weights.kernels
    # Each output frame reads three frames side by side: (W, 4, 387), then (W, 2, 384).
    x = np.concatenate([x[:, tap : tap + _FRAMES] for tap in range(3)], axis=2) @ first
    x += bias
    padded = np.zeros((W, _FRAMES + 1, x.shape[2]), np.float32)  # the stride of 2 ends before
    np.maximum(x, 0, out=padded[:, 1:])
    x = np.concatenate([padded[:, tap : tap + 3 : 2] for tap in range(3)], axis=2)
    for layer, (kernel, bias) in enumerate(rest):
        x = x @ kernel
        x += bias
        np.maximum(x, 0, out=x)
        if layer == 0:  # two frames side by side make one, and zeros fill the last product
            x = np.pad(x.reshape(W, -1), ((0, -W % _ROWS), (0, 0)))
            x = x.reshape(-1, _ROWS, x.shape[1])
    x = x @ weights.inputs
    x += weights.bias
    return x.reshape(-1, x.shape[2])[:W]


def _model_path() -> Path:
    # Only found, never imported: the package itself would load torch and set its threads.
    spec = find_spec("silero_vad")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        path = Path(folder) / "data" / _FILE
        if path.is_file():
            return path
    raise MissingExtraError(_INSTALL)


def _initializers(model: bytes) -> Iterator[tuple[str, Samples]]:
    """Names and values of the float32 tensors of an ONNX model; ModelProto.graph.initializer."""
    for graph in _fields(memoryview(model), 7):
        for tensor in _fields(graph, 5):
            names, data = list(_fields(tensor, 8)), list(_fields(tensor, 9))
            if names and data and len(data[0]) % 4 == 0:
                yield bytes(names[0]).decode(), np.frombuffer(data[0], np.float32)


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The values of one field of a protocol buffer, which have a length."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            varint()
            continue
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        if number == wanted:
            yield message[place : place + size]
        place += size
