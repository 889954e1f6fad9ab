"""The 0.6B model of the streaming benchmark: random weights that write a few tokens a second.

python bench/random_model.py FOLDER
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from offline import recognizer, speech
from torch import Tensor

from pianissimo.models.asr import AsrModel
from pianissimo.models.checkpoints.model_folder import save_model

TOKENS_PER_SECOND = 4.0
CALIBRATION_SECONDS = 20.0


@torch.inference_mode()
def encode(model: AsrModel, lookahead: int) -> Tensor:
    """Some speech through the encoder: (S, D)."""
    mel = model.features.whole(torch.from_numpy(speech(CALIBRATION_SECONDS)))[None]
    plan = model.encoder.plan(lookahead)
    return model.encoder.step(mel, model.encoder.start(), plan, final=True)[0]


@torch.no_grad()
def teach_to_write(model: AsrModel) -> None:
    """Let the labels beat the blank in as many frames as speech has tokens.

    A random transducer is silent or repeats itself. Here the frame alone decides: the predictor is
    computed but has no effect, and a frame has at most one token.
    """
    assert model.joiner is not None
    joiner, blank = model.joiner, model.config.vocab_size
    frames = torch.cat([encode(model, r) for r in model.config.encoder.lookaheads])
    projected = frames @ joiner.encoder.weight.T
    joiner.encoder.weight /= projected.std(0)[:, None]
    joiner.encoder.bias.copy_(-projected.mean(0) / projected.std(0))
    joiner.predictor.weight.zero_()
    joiner.predictor.bias.zero_()
    joiner.out.bias.zero_()
    scores = joiner(joiner.encoder(frames), torch.zeros(1))
    margins = scores[:, :blank].amax(1) - scores[:, blank]
    silent = 1 - TOKENS_PER_SECOND * model.config.frame_seconds
    joiner.out.bias[blank] = margins.quantile(silent)


def main() -> None:
    ours = recognizer()
    model = ours.model
    model.config = replace(model.config, max_symbols=1, name="random-0.6b")
    teach_to_write(model)
    save_model(Path(sys.argv[1]), model, ours.tokenizer)


if __name__ == "__main__":
    main()
