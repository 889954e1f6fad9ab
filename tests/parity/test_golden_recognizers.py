"""Folders and archives of NeMo and Transformers through `load`: samples in, the oracle's text out.

The other golden tests compare part by part; here it is the whole way that a user goes.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from parity_checks import Case, clip_keys, number
from parity_inputs import CLIP_SAMPLES, SAMPLE_RATE, waveform
from test_golden import CASES

import pianissimo
from pianissimo.recognizers.fastconformer import NativeRecognizer

HEADS = {"greedy": "transducer", "ctc": "ctc"}
PAIRS = [
    pytest.param(case, head, id=f"{case.source}-{case.name}-{head}")
    for case in CASES
    for head in HEADS
    if clip_keys(case, head)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The three clips of the oracle, bit by bit."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [folder / f"{clip}.wav" for clip in range(len(CLIP_SAMPLES))]
    for clip, path in enumerate(paths):
        samples = waveform(CLIP_SAMPLES[clip], seed=clip)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    return paths


def load(case: Case, head: str) -> NativeRecognizer:
    """Without level stage and hallucination filter, which the oracles do not have."""
    path = case.folder / (f"{case.name}.nemo" if case.source == "nemo" else case.name)
    found = pianissimo.load(path, device="cpu", head=HEADS[head], gain="off")
    assert isinstance(found, NativeRecognizer)
    found.front_end = found.detector = None
    if found.model.prompt is not None:  # ours is always the model's default one
        config = found.model.prompt.config
        found.model.prompt.config = replace(config, default=case.facts["prompt"])
        found.prompt = case.facts["prompt"]
    return found


def spoken(text: str) -> list[str]:
    """The words; SentencePiece writes the unknown piece as ⁇, ours leaves it out."""
    return text.replace(" ⁇ ", "").split()


@pytest.mark.parametrize(("case", "head"), PAIRS)
def test_files_alone_and_together_get_the_text_of_the_oracle(
    case: Case, head: str, files: list[Path]
) -> None:
    recognizer = load(case, head)
    modes = {frames: ms for ms, frames in recognizer.model.config.latencies_ms.items()}
    for key, lookahead, clip in clip_keys(case, head):
        latency = modes.get(number(lookahead))
        found = recognizer.transcribe(files[clip], latency_ms=latency)
        assert spoken(found.text) == spoken(case.facts["notes"][key]["text"]), key
        assert found.duration == CLIP_SAMPLES[clip] / SAMPLE_RATE
    alone = [recognizer.transcribe(file) for file in files]
    together = list(recognizer.transcribe_many(files))
    assert any(found.words for found in alone)
    for ours, expected in zip(together, alone, strict=True):
        assert ours.text == expected.text
        assert [(w.text, w.start, w.end) for w in ours.words] == [
            (w.text, w.start, w.end) for w in expected.words
        ]
        sure = [[w.confidence for w in found.words] for found in (ours, expected)]
        np.testing.assert_allclose(sure[0], sure[1], atol=1e-4)


def test_every_family_and_head_is_here() -> None:
    wanted = {"nemo-hybrid-greedy", "nemo-hybrid-ctc", "nemo-tdt-greedy", "hf-parakeet_tdt-greedy"}
    assert wanted <= {param.id for param in PAIRS}
    assert {case.name for case in CASES} == {param.values[0].name for param in PAIRS}
