"""Smart Turn v3: a network that predicts from the audio whether a turn is complete.

The model is a file that the user names, or the one inside an installed `pipecat-ai` package, which
is only found and never imported. It gets the last 8 s of a turn as Whisper's log-mel features of
the normalized samples, and returns a probability.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pianissimo.agent.turn_rules import EndJudgment, TextRules, is_open
from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples
from pianissimo.audio.whisper_features import log_mel, mel_filters, scaled
from pianissimo.errors import CheckpointError, MissingExtraError, ModelNotFoundError

WINDOW_SAMPLES = 8 * SAMPLE_RATE
N_MELS, FRAMES = 80, 800
SMALLEST_VARIANCE = 1e-7
PACKAGE = "pipecat"
PACKAGED = Path("audio", "turn", "smart_turn", "data")


class SmartTurnModel:
    """The network: weights only, shared by any number of streams, read at the start.

    Raises ModelNotFoundError if there is no such file, CheckpointError if it is another network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import onnxruntime

        self.path = find_model(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(self.path), options, providers=["CPUExecutionProvider"]
            )
            inputs = {each.name: each.shape for each in self._session.get_inputs()}
        except Exception as error:  # onnxruntime has one class of errors for each status code
            raise CheckpointError(f"{self.path} is not an ONNX model: {error}") from error
        if list(inputs) != ["input_features"] or inputs["input_features"][1:] != [N_MELS, FRAMES]:
            raise CheckpointError(
                f"{self.path} is not a Smart Turn v3 model: its inputs are {inputs}, expected "
                f"input_features (batch, {N_MELS}, {FRAMES})"
            )

    @cached_property
    def _filters(self) -> torch.Tensor:
        return mel_filters(N_MELS)

    def features(self, samples: Samples) -> Samples:
        """The end of a turn (n,) at 16 kHz -> (1, 80, 800) features of its last 8 s."""
        last = samples[-WINDOW_SAMPLES:]
        padded = np.pad(last, (WINDOW_SAMPLES - len(last), 0)).astype(np.float64)
        normal = (padded - padded.mean()) / np.sqrt(padded.var() + SMALLEST_VARIANCE)
        with torch.inference_mode():
            mel = scaled(log_mel(torch.from_numpy(normal).float()[None], self._filters))
        found: Samples = mel.transpose(1, 2).contiguous().numpy()
        return found

    def probability(self, samples: Samples) -> float:
        """How likely the turn that ends with these samples (n,) at 16 kHz is complete."""
        output = self._session.run(None, {"input_features": self.features(samples)})[0]
        return float(output.reshape(-1)[0])


@dataclass(frozen=True)
class SmartTurn:
    """Ends a turn soon if the network calls it complete, and later if not; times in seconds.

    The network uses prosody and no words: a text that ends in an open word halves its verdict. The
    times were chosen with `bench/turns.py`.
    """

    model: SmartTurnModel
    complete_seconds: float = 0.4
    rules: TextRules = field(default_factory=TextRules)

    @property
    def least_seconds(self) -> float:
        return min(self.complete_seconds, self.rules.most_seconds)

    def judge(self, turn: Samples, text: str, ended: bool = False) -> EndJudgment:
        if ended:
            return self.rules.judge(turn, text, ended)
        confidence = self.model.probability(turn)
        if is_open(text):
            confidence /= 2
        judgment = EndJudgment(confidence, self.complete_seconds)
        if judgment.complete:
            return judgment
        return EndJudgment(confidence, min(self.rules.open_seconds, self.rules.most_seconds))


def find_model(path: str | os.PathLike[str]) -> Path:
    """The file at a path, or with "pipecat" the one inside the installed package `pipecat-ai`.

    Raises ModelNotFoundError or MissingExtraError.
    """
    if os.fspath(path) != PACKAGE:
        if not Path(path).is_file():
            raise ModelNotFoundError(
                f"there is no Smart Turn model at {path}; give the path of its .onnx file, or "
                f"{PACKAGE} for the one in that package"
            )
        return Path(path)
    spec = find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in sorted(Path(folder).joinpath(PACKAGED).glob("smart-turn-v3*cpu.onnx")):
            return found
    raise MissingExtraError(
        "Smart Turn needs its model: pip install pipecat-ai, or give the path of the .onnx file"
    )
