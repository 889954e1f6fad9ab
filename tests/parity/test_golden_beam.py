"""Our beam search with durations against NeMo's, stored in `golden_beam.json`."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from parity_inputs import BEAM_SYMBOLS, BEAMS, encoded_rows

from pianissimo.decoding.beam import BeamSearch
from pianissimo.decoding.beam_state import BeamOptions
from pianissimo.models.checkpoints.nemo import read_nemo

HERE = Path(__file__).resolve().parent
FOUND = json.loads((HERE / "golden_beam.json").read_text(encoding="utf-8"))
SCORES = 0.02
"""NeMo lets the last blank of a full frame cost its likeliest duration, we let it cost none."""


def texts(hypotheses: list[Any]) -> dict[tuple[int, ...], float]:
    """NeMo tells a text apart for each frame that it may wait for; here they count together."""
    sums: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for tokens, _, score in hypotheses:
        sums[tuple(tokens)] += math.exp(score)
    return {tokens: math.log(total) for tokens, total in sums.items()}


@pytest.mark.parametrize("beam", BEAMS)
@torch.inference_mode()
def test_texts_frames_and_scores(beam: int) -> None:
    model, _ = read_nemo(HERE / "golden" / "nemo" / "tdt.nemo")
    search = BeamSearch(model, BeamOptions(beam, 1000.0, 1000.0, window=1000.0))
    search.max_symbols = BEAM_SYMBOLS
    encoded = torch.from_numpy(encoded_rows())
    state = search.start(len(encoded))
    said = search.decode(encoded, None, state)
    scores = [beam.alternatives()[0][1] for beam in state.beams]
    rows = zip(said, scores, state.flush(), FOUND[str(beam)], strict=True)
    for settled, score, rest, hypotheses in rows:
        theirs = texts(hypotheses)
        best = max(theirs, key=lambda tokens: theirs[tokens])
        frames = next(frames for tokens, frames, _ in hypotheses if tuple(tokens) == best)
        assert (*settled.tokens, *rest.tokens) == best
        assert [*settled.frames, *rest.frames] == frames
        assert score == pytest.approx(theirs[best], abs=SCORES)
