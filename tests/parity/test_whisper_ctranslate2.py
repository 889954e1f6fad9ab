"""Real weights of Whisper in CTranslate2's layout: CTranslate2's numbers and tokens are ours.

CTRANSLATE2_WHISPER=FOLDER python -m pytest tests/parity/test_whisper_ctranslate2.py
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pianissimo
from pianissimo.audio.io import SAMPLE_RATE, load_audio
from pianissimo.recognizers.whisper import WhisperRecognizer

FOLDER = os.environ.get("CTRANSLATE2_WHISPER", "")
CLIPS = sorted((Path(__file__).parents[2] / "examples" / "audio").glob("*.flac"))
LIMIT = 60
ctranslate2 = pytest.importorskip("ctranslate2", reason="needs the extra faster-whisper")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="CTRANSLATE2_WHISPER names no folder of published weights"
)


@pytest.fixture(scope="module")
def ours() -> WhisperRecognizer:
    recognizer = pianissimo.load(FOLDER, device="cpu", dtype="float32", language="en")
    assert isinstance(recognizer, WhisperRecognizer)
    return recognizer


@pytest.fixture(scope="module")
def theirs() -> Any:
    return ctranslate2.models.Whisper(FOLDER, device="cpu", compute_type="float32")


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_frames_and_texts(ours: WhisperRecognizer, theirs: Any, path: Path) -> None:
    samples = load_audio(path)[: 28 * SAMPLE_RATE]
    assert ours.front_end is not None
    leveled = ours.front_end.whole(samples).samples
    prompt = ours.tokenizer.prompt("en" if ours.rules.multilingual else None, "transcribe")
    mel: list[torch.Tensor] = []
    hook = ours.encoder.register_forward_pre_hook(lambda _, inputs: mel.append(inputs[0]))
    with torch.inference_mode():
        encoded = ours.encode([leveled])
        state = ours.decoder.start(encoded, most_tokens=len(prompt) + LIMIT)
        [text] = ours.search.beam(ours.search.read(state, [prompt]), [LIMIT], 5)
    hook.remove()
    features = np.ascontiguousarray(mel[0].transpose(1, 2).numpy())
    expected = theirs.encode(ctranslate2.StorageView.from_array(features))
    frames = torch.from_numpy(np.array(expected))
    assert (frames - encoded).abs().max() < 2e-3 * frames.abs().max()
    [found] = theirs.generate(
        expected,
        [prompt],
        beam_size=5,
        max_length=2 * LIMIT,
        suppress_tokens=[-1],
        suppress_blank=True,
    )
    assert text.tokens == list(found.sequences_ids[0])
