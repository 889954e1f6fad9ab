# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "onnxruntime>=1.17"]
# ///
"""Live recognition without PyTorch: the files of `pianissimo export --onnx` and onnxruntime.

    pianissimo export exported --onnx --latency 160
    ffmpeg -i examples/audio/number.flac -ar 16000 -ac 1 number.wav
    python examples/onnx_stream.py exported number.wav

Reads a mono WAV file of 16 bits at the model's rate, as it would come from a microphone, and writes
each word to standard output as soon as it is known. docs/compression.md says what is in the files.
"""

import argparse
import json
import wave
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

Floats = npt.NDArray[np.float32]
WORD_START = "▁"


class OnnxStream:
    """One stream of an exported transducer: `push` samples, get tokens."""

    def __init__(self, folder: Path, latency_ms: int) -> None:
        about = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
        self.about, self.mode = about, about["modes"][str(latency_ms)]
        self.encoder = _session(folder / self.mode["file"])
        self.predictor = _session(folder / "predictor.onnx")
        self.joiner = _session(folder / "joiner.onnx")
        # Samples from the one that the next step begins with; those before the stream are zeros.
        self.audio = np.zeros(-self.mode["first_sample"], np.float32)
        self.samples = self.frames = 0
        shapes = self.mode["caches"].items()
        self.caches = {name: np.zeros(shape, np.float32) for name, shape in shapes}
        shape = about["transducer"]
        if shape["durations"]:
            raise SystemExit("this example does not know token-and-duration transducers")
        state = np.zeros((shape["predictor_layers"], 1, shape["predictor_dim"]), np.float32)
        self.hidden = self.cell = state
        self._feed(about["blank"])

    def push(self, samples: Floats) -> list[int]:
        """Push samples (n,) in [-1, 1]; returns the tokens they complete."""
        self.samples += len(samples)
        self.audio = np.concatenate([self.audio, samples])
        tokens = []
        while len(self.audio) >= self.mode["samples_per_step"]:
            tokens += self._search(self._step(self.about["still_running"]))
        return tokens

    def finish(self) -> list[int]:
        """End the stream; returns the remaining tokens."""
        tokens = []
        total = self.samples // self.about["mel_hop_samples"]
        for _ in range(self.about["subsampling_stages"] if total else 0):
            total = total // 2 + 1
        while self.frames < total:
            missing = max(0, self.mode["samples_per_step"] - len(self.audio))
            self.audio = np.pad(self.audio, (0, missing))
            left = total - self.frames
            tokens += self._search(self._step(self.samples)[:left])
        return tokens

    def _step(self, samples: int) -> Floats:
        """The encoder frames (C, D) of the next chunk of a stream that ends after `samples`."""
        audio = self.audio[: self.mode["samples_per_step"]]
        inputs = {"audio": audio[None], "frames": np.array([self.frames])}
        found = self.encoder.run(None, {**inputs, "samples": np.array([samples]), **self.caches})
        self.caches = dict(zip(self.caches, found[1:], strict=True))
        self.audio = self.audio[self.mode["hop_samples"] :]
        self.frames += self.mode["frames_per_step"]
        encoded: Floats = found[0][0]
        return encoded

    def _search(self, encoded: Floats) -> list[int]:
        """Greedy search: at each frame, emit labels until blank is best."""
        tokens: list[int] = []
        for frame in encoded:
            for _ in range(self.about["max_symbols"]):
                pair = {"encoder": frame[None], "predictor": self.predicted}
                (logits,) = self.joiner.run(None, pair)
                best = int(logits[0].argmax())
                if best == self.about["blank"]:
                    break
                tokens.append(best)
                self._feed(best)
        return tokens

    def _feed(self, label: int) -> None:
        inputs = {"labels": np.array([label]), "hidden": self.hidden, "cell": self.cell}
        self.predicted, self.hidden, self.cell = self.predictor.run(None, inputs)

    def text(self, tokens: list[int]) -> str:
        """The text of pieces of a SentencePiece vocabulary."""
        pieces = self.about["tokens"]
        return "".join(pieces[token] for token in tokens).replace(WORD_START, " ")


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a step is too small to share
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def read(path: str, rate: int) -> Floats:
    with wave.open(path) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (rate, 1, 2):
            raise SystemExit(f"{path} is not mono with 16 bits at {rate} Hz: convert it first")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / 32768


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `pianissimo export --onnx` wrote")
    parser.add_argument("file", help="a WAV file")
    parser.add_argument("--latency", type=int, default=160, help="latency mode in ms")
    asked = parser.parse_args()
    stream = OnnxStream(asked.folder, asked.latency)
    samples = read(asked.file, stream.about["sample_rate"])
    said: list[int] = []
    block = stream.about["sample_rate"] // 10
    for start in range(0, len(samples) + block, block):
        last = start >= len(samples)
        new = stream.finish() if last else stream.push(samples[start : start + block])
        before = len(stream.text(said).lstrip())
        said += new
        print(stream.text(said).lstrip()[before:], end="", flush=True)
    print()


if __name__ == "__main__":
    main()
