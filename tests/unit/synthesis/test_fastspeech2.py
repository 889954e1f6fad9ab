"""Voices of FastSpeech2: folders, speech, and checkpoints that cannot be used."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pianissimo
from pianissimo.errors import CheckpointError, NothingToSayError
from pianissimo.models.checkpoints.fastspeech2 import read_fastspeech2

GOLDEN = Path(__file__).parents[2] / "parity" / "golden_fastspeech2" / "post_norm"
TEXT = "Hello, world. {HH AH0 L OW1}!"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "voice"))


def changed(folder: Path, section: str, **values: object) -> None:
    """Change the configuration of one network."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[section] |= values
    path.write_text(json.dumps(config))


def test_a_folder_speaks() -> None:
    pytest.importorskip("hibari", reason="needs the extra tts")
    voice = pianissimo.load_voice(GOLDEN, device="cpu")
    assert isinstance(voice, pianissimo.Synthesizer)
    assert (voice.name, voice.language, voice.sample_rate) == ("post_norm", "en-US", 22_050)
    blocks = list(voice.stream(TEXT))
    whole = voice.speak(TEXT)
    assert len(blocks) > 2 and whole.dtype == np.float32
    assert np.array_equal(np.concatenate(blocks), whole)
    pieces = [voice.speak(sentence) for sentence in voice.sentences(TEXT)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert 1.8 < len(voice.speak("Hello", speed=0.5)) / len(voice.speak("Hello")) < 2.2


def test_long_sentences_run_in_parts_and_silent_ones_are_refused() -> None:
    pytest.importorskip("hibari", reason="needs the extra tts")
    voice = pianissimo.load_voice(GOLDEN, device="cpu")
    assert len(voice.speak("9" * 60)) > 10 * len(voice.speak("9"))
    with pytest.raises(NothingToSayError):
        voice.speak("{,}, a.")  # this tiny vocabulary has no vowel of "a"


def test_a_pickle_and_a_vocoder_beside_the_model_are_read(folder: Path) -> None:
    expected = read_fastspeech2(folder)
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for name, prefix in (("model", "model."), ("vocoder", "vocoder.")):
        place = folder.with_name("two" if name == "model" else "two_hifigan")
        place.mkdir()
        part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        torch.save(part, place / "pytorch_model.bin")
        (place / "config.json").write_text(json.dumps(config[f"{name}_config"]))
    shutil.copy(folder / "vocab.json", folder.with_name("two"))
    found = read_fastspeech2(folder.with_name("two"))
    for ours, theirs in ((found.acoustic, expected.acoustic), (found.vocoder, expected.vocoder)):
        states = ours.state_dict(), theirs.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    shutil.rmtree(folder.with_name("two_hifigan"))
    with pytest.raises(CheckpointError, match="has no vocoder; copy espnet"):
        read_fastspeech2(folder.with_name("two"))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model_config", {"reduction_factor": 2}, "reduction_factor is 2"),
        ("model_config", {"use_cnn_in_conformer": False}, "use_cnn_in_conformer"),
        ("model_config", {"encoder_concat_after": True}, "encoder_concat_after"),
        ("model_config", {"num_speakers": 4}, "num_speakers"),
        ("model_config", {"encoder_kernel_size": 6}, "an odd integer"),
        ("model_config", {"encoder_num_attention_heads": 3}, "hidden_size"),
        ("model_config", {"encoder_layers": 3}, "missing: encoder.conformer_layers.2"),
        ("model_config", {"hidden_size": 8192}, "expected"),
        ("model_config", {"num_mel_bins": 9}, "9 mel bins|shape"),
        ("vocoder_config", {"upsample_rates": [0, 4, 2]}, "upsample_rates"),
        ("vocoder_config", {"upsample_rates": [999, 999, 2]}, "upsample_rates"),
        ("vocoder_config", {"upsample_kernel_sizes": [16, 8]}, "upsample_kernel_sizes"),
        ("vocoder_config", {"resblock_dilation_sizes": [[1], ["x"]]}, "resblock_dilation_sizes"),
        ("vocoder_config", {"upsample_initial_channel": 4}, "upsample_initial_channel"),
    ],
)
def test_unsupported_configurations_are_named(
    folder: Path, section: str, values: dict[str, object], message: str
) -> None:
    changed(folder, section, **values)
    with pytest.raises(CheckpointError, match=message):
        read_fastspeech2(folder)


def test_every_tensor_is_needed_and_used(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    removed = weights.pop("vocoder.conv_post.bias")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: conv_post\.bias"):
        read_fastspeech2(folder)
    weights["vocoder.conv_post.bias"] = removed
    for name in ("model.extra", "extra"):
        save_file(weights | {name: torch.zeros(3)}, path, {"format": "pt"})
        with pytest.raises(CheckpointError, match="unknown"):
            read_fastspeech2(folder)


def test_vocabularies_must_fit(folder: Path) -> None:
    (folder / "vocab.json").write_text('{"A": 99, "<sos/eos>": 1}')
    with pytest.raises(CheckpointError, match="ids outside"):
        read_fastspeech2(folder)
    (folder / "vocab.json").write_text('{"A": 1}')
    with pytest.raises(CheckpointError, match="<sos/eos>"):
        read_fastspeech2(folder)


def test_a_recognizer_is_no_voice(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(CheckpointError, match="'whisper', which is no voice"):
        pianissimo.load_voice(folder)
