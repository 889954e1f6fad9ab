"""GLM-ASR with tiny random weights: what Transformers makes of them, and what surrounds it."""

import json
import logging
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spoken import speech
from tiny import cut, noise
from tiny_glm_asr import save_tiny_glm_asr

import pianissimo
from pianissimo.audio.vad import SpeechSpan, plan_segments
from pianissimo.errors import CheckpointError, MissingExtraError, OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.protocols import Recognizer, StreamRecognizer
from pianissimo.recognizers import long_form as pieces_module
from pianissimo.recognizers.glm_asr import LEAST_SAMPLES, GlmAsrRecognizer, read_glm_asr
from pianissimo.recognizers.long_form import Decoded
from pianissimo.text.loops import is_stuck

pytest.importorskip("transformers", reason="needs the extra families")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
RATE = 16_000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("glm") / "tiny-glm-asr"
    save_tiny_glm_asr(path)
    return path


@pytest.fixture(scope="module")
def recognizer(folder: Path) -> GlmAsrRecognizer:
    found = pianissimo.load(folder, device="cpu")
    assert isinstance(found, GlmAsrRecognizer)
    return found


CLIPS = [speech(3.0), speech(28.0), speech(0.4), speech(9.9) * 0.2]


def test_tokens_are_those_of_transformers_alone_and_in_a_batch(
    recognizer: GlmAsrRecognizer,
) -> None:
    together = recognizer._decode(CLIPS)
    for samples, batched in zip(CLIPS, together, strict=True):
        [alone] = recognizer._decode([samples])
        inputs = recognizer.processor.apply_transcription_request([samples])
        limit = max_new_tokens(len(samples) / RATE)
        theirs = recognizer.model.generate(**inputs, do_sample=False, max_new_tokens=limit)
        theirs = theirs[0, inputs["input_ids"].shape[1] :].tolist()
        ours = list(batched.tokens)
        assert len(ours) > 2
        assert ours == theirs[: len(ours)] == list(alone.tokens)
        assert batched.mean_log_probability == pytest.approx(alone.mean_log_probability, abs=1e-4)
        # What is missing after ours is an end token, or a loop that we did not follow.
        assert is_stuck(ours) or theirs[len(ours) :] in ([], [282], [284], [286])
        text = recognizer.processor.tokenizer.decode(ours, skip_special_tokens=True)
        assert batched.text == text.strip()


def test_how_many_are_decoded_at_once_has_no_influence(recognizer: GlmAsrRecognizer) -> None:
    recordings = [speech(s) for s in (2.0, 0.05, 40.0, 0.7)]
    found = {}
    for most in (1, 2, 5):
        decoder = pieces_module.PieceDecoder(
            recognizer.front_end, recognizer._decode, detector=recognizer.detector, most=most
        )
        rows = decoder.run([[samples] for samples in recordings], "x", True)
        found[most] = [row.text for row in rows]
    assert found[1] == found[2] == found[5]
    alone = [recognizer.transcribe(r, sample_rate=RATE).text for r in recordings]
    assert found[1] == alone
    assert alone[1] == "" and alone[0] and alone[2]


def test_segments_cover_what_is_said_and_hold_no_words(recognizer: GlmAsrRecognizer) -> None:
    found = recognizer.transcribe(speech(60.0), sample_rate=RATE)
    assert found.words == () and found.language is None
    assert len(found.segments) > 2
    for before, after in zip(found.segments, found.segments[1:], strict=False):
        assert before.end - before.start <= 28.0
        assert before.end <= after.start + 1e-6
    assert found.segments[-1].end <= 60.0
    assert sum(s.end - s.start for s in found.segments) > 40
    assert found.text == " ".join(s.text for s in found.segments)


def test_the_size_of_the_blocks_has_no_influence(
    recognizer: GlmAsrRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "STRETCH_SECONDS", 12.0)
    monkeypatch.setattr(pieces_module, "STRETCH_CUT_SECONDS", 4.0)
    samples = speech(40.0)
    expected = recognizer.transcribe(samples, sample_rate=RATE)
    parts = (samples[part] for part in cut(len(samples), [1, 333, 16_000, 200_000], seed=2))
    assert next(recognizer.recognize([parts], True)) == expected


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.09, 3.0, 40.0])
def test_silence_and_clips_without_a_token_invent_nothing(
    recognizer: GlmAsrRecognizer, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(recognizer, "_decode", refuse)
    found = recognizer.transcribe(np.zeros(round(seconds * RATE), np.float32), sample_rate=RATE)
    assert (found.text, found.segments) == ("", ())
    assert set(found.reasons) <= {"too_short", "muted", "silence"} and found.reasons


def test_a_rest_that_is_too_short_to_be_heard_says_nothing(
    recognizer: GlmAsrRecognizer,
) -> None:
    # Sound that falls silent just before 28 s is cut there, and 55 ms of it are left.
    samples = noise(round(28.005 * RATE))
    samples[round(27.9 * RATE) : 28 * RATE] = 0
    spans = [SpeechSpan(0.0, len(samples) / RATE, 1.0, 20.0)]
    rests = [last - first for first, last in plan_segments(samples, spans)]
    assert len(rests) == 2 and rests[1] < LEAST_SAMPLES
    first, second = recognizer._decode([samples[: rests[0]], samples[rests[0] :]])
    assert first.text and second == Decoded("")
    assert recognizer._decode([samples[rests[0] :]]) == [Decoded("")]


def test_it_is_a_recognizer_that_streams_from_pause_to_pause(recognizer: GlmAsrRecognizer) -> None:
    assert isinstance(recognizer, Recognizer)
    assert recognizer.name == "tiny-glm-asr"
    assert isinstance(recognizer, StreamRecognizer)
    stream = recognizer.stream()
    events = [*stream.push(np.concatenate([speech(3.0), np.zeros(RATE, np.float32)]))]
    events += stream.finish()
    assert [event.reason for event in events if event.type == "final"] == ["endpoint", "finish"]
    assert events[0].text and 0 <= events[0].start < events[0].end < 3.5


def test_options_it_lacks_are_refused(folder: Path) -> None:
    for options, message in (
        ({"language": "zh"}, "no choice of languages"),
        ({"task": "translate"}, "only transcribes"),
        ({"head": "ctc"}, "no ctc head"),
    ):
        with pytest.raises(OptionError, match=message):
            pianissimo.load(folder, device="cpu", **options)
    with pytest.raises(OptionError, match="unknown attention 'fast'"):
        read_glm_asr(folder, CPU, attention="fast")


def test_attention_is_a_matter_of_speed_only(folder: Path, recognizer: GlmAsrRecognizer) -> None:
    eager = read_glm_asr(folder, CPU, attention="eager")
    assert eager.model.config._attn_implementation == "eager"
    assert eager._decode(CLIPS[:1])[0].tokens == recognizer._decode(CLIPS[:1])[0].tokens


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash attention is here")
def test_attention_that_is_not_installed_is_named(folder: Path) -> None:
    with pytest.raises(
        MissingExtraError, match=r"'flash_attention_2' cannot be used here: .*'sdpa'"
    ):
        read_glm_asr(folder, CPU, attention="flash_attention_2")


def test_float16_halves_the_encoder_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    half = pianissimo.load(folder, device="cpu", dtype="float16")
    assert isinstance(half, GlmAsrRecognizer)
    assert half.model.model.audio_tower.dtype == torch.float16
    assert half.model.model.language_model.dtype == torch.float32
    assert half._decode(CLIPS[:1])[0].text
    assert caplog.records == []


def test_float16_that_overflows_is_given_up_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    loud = Path(shutil.copytree(folder, tmp_path / "loud"))
    weights = load_file(loud / "model.safetensors")
    [name] = [n for n in weights if n.endswith("multi_modal_projector.linear_1.weight")]
    weights[name] = weights[name] * 1e5
    save_file(weights, loud / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        found = read_glm_asr(loud, CPU, torch.float16)
    assert "overflows in float16" in caplog.text
    assert found.model.dtype == torch.float32 and found.is_finite()


def test_the_first_layout_is_refused_with_the_reason(folder: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(folder, tmp_path / "old"))
    config = json.loads((old / "config.json").read_text(encoding="utf-8"))
    changed = {"architectures": ["GlmasrModel"], "model_type": "Glmasr", "auto_map": {}}
    (old / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")
    with pytest.raises(CheckpointError, match="first layout of GLM-ASR"):
        pianissimo.load(old, device="cpu")


def test_weights_of_the_first_layout_under_a_new_configuration_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    old = Path(shutil.copytree(folder, tmp_path / "old"))
    weights = load_file(old / "model.safetensors")
    renamed = {
        name.replace("audio_tower", "audio_encoder.whisper"): weights[name] for name in weights
    }
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing, such as model\.audio_tower"):
        pianissimo.load(old, device="cpu")


def test_missing_weights_and_files_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    lacking = {n: t for n, t in weights.items() if "linear_2.bias" not in n}
    save_file(lacking, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing, such as .*linear_2\.bias"):
        pianissimo.load(broken, device="cpu")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (broken / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError):
        pianissimo.load(broken, device="cpu")


def test_without_transformers_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pianissimo\[families\]"):
        pianissimo.load(folder, device="cpu")
