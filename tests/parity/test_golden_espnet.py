"""Our numbers for ESPnet2 models against those of ESPnet 202511, stored."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_golden_espnet import CLIP_SAMPLES, GOLDEN, MODELS
from parity_inputs import waveform

from pianissimo.decoding.joint import JointOptions
from pianissimo.decoding.lm.arpa import read_arpa
from pianissimo.decoding.lm.ngram import NgramModel
from pianissimo.recognizers.espnet import EspnetRecognizer, read_espnet

UNKNOWN = 1
CLIPS = range(len(CLIP_SAMPLES))
SEARCHES = {
    name: json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8")) for name in MODELS
}
PAIRS = [
    pytest.param(name, found, id=f"{name}-{i}")
    for name in MODELS
    for i, found in enumerate(SEARCHES[name])
]


@cache
def recognizer(name: str) -> EspnetRecognizer:
    return read_espnet(GOLDEN / f"{name}.zip", torch.device("cpu"))


@cache
def numbers(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_network(name: str, clip: int) -> None:
    model, expected = recognizer(name).model, numbers(name)
    samples = torch.from_numpy(waveform(CLIP_SAMPLES[clip], clip))[None]
    features = model.features(samples)
    torch.testing.assert_close(features[0], expected[f"features.{clip}"], rtol=1e-4, atol=1e-4)
    encoded = model.encode(samples)
    torch.testing.assert_close(encoded[0], expected[f"encoder.{clip}"], rtol=1e-4, atol=1e-4)
    log_probs = model.ctc_log_probs(encoded)[0]
    torch.testing.assert_close(log_probs, expected[f"ctc.{clip}"], rtol=1e-4, atol=1e-3)
    assert torch.equal(log_probs.argmax(-1), expected[f"ctc.{clip}"].argmax(-1))
    assert model.config.frames(samples.shape[1]) == encoded.shape[1]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("name", [name for name, plan in MODELS.items() if "lm_conf" in plan])
@torch.inference_mode()
def test_decoder(name: str, clip: int) -> None:
    model, expected = recognizer(name).model, numbers(name)
    assert model.decoder is not None
    state = model.decoder.start(expected[f"encoder.{clip}"])
    prefixes = expected["prefixes"].long()
    given = torch.cat([torch.full((len(prefixes), 1), model.config.start), prefixes[:, :-1]], dim=1)
    whole, _ = model.decoder(given, state)
    torch.testing.assert_close(whole, expected[f"decoder.{clip}"], rtol=1e-4, atol=1e-3)
    for step in range(given.shape[1]):
        scores, state = model.decoder(given[:, step : step + 1], state)
        torch.testing.assert_close(scores[:, 0], whole[:, step], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "found"), PAIRS)
def test_search(name: str, found: dict[str, Any]) -> None:
    asked = dict(found["asked"])
    read = recognizer(name)
    options = JointOptions(
        beam=asked["beam_size"],
        ctc_weight=asked["ctc_weight"],
        lm_weight=asked["lm_weight"],
        ngram_weight=asked["ngram_weight"],
        penalty=asked.get("penalty", 0.0),
        max_length=asked.get("maxlenratio", 0.0),
        min_length=asked.get("minlenratio", 0.0),
    )
    searching = EspnetRecognizer(
        read.model,
        lm=read.lm,
        ngram=NgramModel(read_arpa(GOLDEN / f"{name}.arpa")),
        options=options,
    )
    clip = found["clip"]
    ours = searching.hypotheses(waveform(CLIP_SAMPLES[clip], clip))
    for hypothesis, expected in zip(ours, found["nbest"], strict=False):
        assert list(hypothesis.tokens) == expected["tokens"][1:-1]
        assert hypothesis.score == pytest.approx(expected["score"], abs=2e-3, rel=1e-4)
        assert hypothesis.scores == pytest.approx(expected["scores"], abs=2e-3, rel=1e-4)
        if not {UNKNOWN, read.model.config.end} & set(hypothesis.tokens):  # we leave those out
            assert searching.text(hypothesis.tokens) == expected["text"]
    assert len(ours) == found["ended"]  # the end was noticed at the same length
    assert found["nbest"]


def test_nothing_is_missing() -> None:
    assert [len(SEARCHES[name]) for name in MODELS] == [30, 30, 4]
    asked = [found["asked"] for found in SEARCHES["latest"]]
    assert {one["ctc_weight"] for one in asked} >= {0.0, 0.3, 1.0}
    assert any(one["lm_weight"] for one in asked) and any(one["ngram_weight"] for one in asked)
    assert Path(GOLDEN / "README.md").is_file()
