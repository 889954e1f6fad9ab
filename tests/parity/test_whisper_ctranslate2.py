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
    seen: list[torch.Tensor] = []
    hook = ours.encoder.register_forward_hook(
        lambda _, inputs, output: seen.extend([inputs[0], output])
    )
    with torch.inference_mode():
        state = ours.decoder.start_from(ours._cross([leveled], None), len(prompt) + LIMIT)
        [text] = ours.search.beam(ours.search.read(state, [prompt]), [LIMIT], 5)
    hook.remove()
    mel, encoded = seen
    features = np.ascontiguousarray(mel.transpose(1, 2).numpy())
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
