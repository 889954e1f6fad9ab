"""What a run writes about itself, and the validation it reports."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import make_talker

from pianissimo.decoding.search import Decoding
from pianissimo.errors import ManifestError, MissingExtraError
from pianissimo.models.checkpoints.model_folder import load_model
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.train.log import LOG_FILE, RunLog
from pianissimo.train.validate import streaming_errors


def test_losses_are_averaged_between_reports(tmp_path: Path) -> None:
    with RunLog(tmp_path, steps=4) as log:
        for step, loss in enumerate((3.0, 1.0, 5.0), 1):
            log.step(step, {"loss": torch.tensor(loss)}, seconds=2.0)
            if step == 2:
                log.report(step, "stage 0", lr=0.1)
        log.report(3, "stage 0", lr=0.2)
        log.scores(3, {"wer": 0.5})
    rows = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text().splitlines()]
    assert [row.get("loss") for row in rows] == [2.0, 5.0, None]
    assert [row.get("lr") for row in rows] == [0.1, 0.2, None]
    assert rows[0]["audio_seconds_per_second"] > 0
    assert rows[2] == {"step": 3, "wer": 0.5}


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is not None, reason="TensorBoard is installed here"
)
def test_tensorboard_names_its_extra_when_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"pianissimo\[train\]"):
        RunLog(tmp_path, steps=1, tensorboard=True)


def test_validation_gives_word_errors_per_subset_and_latency(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    model, tokenizer = load_model(tiny_model_folder)
    noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
    rows = []
    for subset in ("a", "b"):
        soundfile.write(tmp_path / f"{subset}.wav", noise, 16_000)
        text = "the stream of speech" if subset == "a" else "yes no"
        rows.append({"audio_filepath": f"{subset}.wav", "text": text, "subset": subset})
    manifest = tmp_path / "dev.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = streaming_errors(manifest, tokenizer)(model)
    modes = (80, 160, 560, 1120)
    assert scores.keys() == {f"wer {s} {m} ms" for s in ("a", "b") for m in modes}
    assert all(rate > 0 for rate in scores.values())
    with pytest.raises(ManifestError):
        streaming_errors(tmp_path / "none.jsonl", tokenizer)


def test_validation_is_greedy_as_live_streams_are(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Whatever search the model names for recordings: its greedy text is without an error here."""
    _, tokenizer = load_model(tiny_model_folder)
    model = make_talker(0.0, vocab_size=tokenizer.vocab_size, beam=4)
    noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "noise.wav", noise, 16_000)
    manifest = tmp_path / "dev.jsonl"

    def errors(decoding: Decoding | None) -> float:
        recognizer = NativeRecognizer(model, tokenizer, decoding=decoding)
        text = recognizer.transcribe(tmp_path / "noise.wav", latency_ms=1120).text
        manifest.write_text(json.dumps({"audio_filepath": "noise.wav", "text": text}))
        return streaming_errors(manifest, tokenizer)(model)["wer all 1120 ms"]

    assert errors(Decoding(beam=1)) == 0 < errors(None)
