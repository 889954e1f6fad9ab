"""Make `golden_beam.json`: what NeMo's batched beam search finds with a golden model.

    .venv-parity/bin/python tests/parity/make_golden_beam.py [OUT]

The search is `malsd_batch` for token-and-duration transducers in NeMo 3.0.0, without score
normalization. For each beam there is a list of the rows of `encoded_rows`, and for each row its
likeliest hypotheses: tokens, encoder frames, score. NeMo prunes hypotheses that took equally many
steps, we those that are at the same frame, so the two may part where a beam is too narrow; the rows
are short for that reason.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from nemo.collections.asr import models
from nemo.collections.asr.parts.submodules.tdt_malsd_batched_computer import (
    ModifiedALSDBatchedTDTComputer,
)
from parity_inputs import BEAM_SYMBOLS, BEAMS, VOCABULARY, encoded_rows

HERE = Path(__file__).resolve().parent
KEPT = 8


def found(model: Any, beam: int) -> list[list[Any]]:
    encoded = torch.from_numpy(encoded_rows())
    durations = torch.tensor(model.cfg.model_defaults.tdt_durations)
    search = ModifiedALSDBatchedTDTComputer(
        model.decoder,
        model.joint,
        durations,
        blank_index=VOCABULARY,
        beam_size=beam,
        max_symbols_per_step=BEAM_SYMBOLS,
    )
    with torch.no_grad():
        hypotheses, *_ = search(encoded, torch.full((len(encoded),), encoded.shape[1]))
    return [
        [
            [[int(i) for i in h.y_sequence], [int(t) for t in h.timestamp], float(h.score)]
            for h in row.n_best_hypotheses[:KEPT]
        ]
        for row in hypotheses.to_nbest_hyps_list(score_norm=False)
    ]


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    checkpoint = HERE / "golden" / "nemo" / "tdt.nemo"
    model = models.EncDecRNNTBPEModel.restore_from(str(checkpoint), map_location="cpu").eval()
    model.joint.log_softmax = False
    results = {str(beam): found(model, beam) for beam in BEAMS}
    (out / "golden_beam.json").write_text(json.dumps(results) + "\n", encoding="utf-8")
