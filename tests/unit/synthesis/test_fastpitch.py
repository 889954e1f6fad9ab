"""Voices of NeMo's FastPitch: archives, speech, and what cannot be used."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import pianissimo
from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints.fastpitch import read_fastpitch

GOLDEN = Path(__file__).parents[2] / "parity" / "golden_fastpitch"
CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "voice"))


def rewritten(
    archive: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]
) -> None:
    """Change the configuration and the weights of an archive."""
    with tarfile.open(archive) as tar:
        files = {Path(m.name).name: tar.extractfile(m) for m in tar.getmembers() if m.isfile()}
        config = yaml.safe_load(files[CONFIG])
        weights = torch.load(io.BytesIO(files[WEIGHTS].read()), weights_only=True)
    change(config, weights)
    saved = io.BytesIO()
    torch.save(weights, saved)
    with tarfile.open(archive, "w") as tar:
        for name, data in ((CONFIG, yaml.safe_dump(config).encode()), (WEIGHTS, saved.getvalue())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("name", ["", "fastpitch.nemo"])
def test_a_directory_and_its_archive_speak(name: str) -> None:
    pytest.importorskip("hibari", reason="needs the extra tts")
    voice = pianissimo.load_voice(GOLDEN / name, device="cpu")
    assert isinstance(voice, pianissimo.Synthesizer)
    assert (voice.language, voice.sample_rate) == ("en-US", 22_050)
    blocks = list(voice.stream("Hello, world. {HH AH0 L OW1}!"))
    whole = voice.speak("Hello, world. {HH AH0 L OW1}!")
    assert len(blocks) > 2 and whole.dtype == np.float32
    assert np.array_equal(np.concatenate(blocks), whole)
    assert 1.8 < len(voice.speak("Hello", speed=0.5)) / len(voice.speak("Hello")) < 2.2


def test_the_vocoder_must_be_there_once(folder: Path) -> None:
    shutil.copy(folder / "hifigan.nemo", folder / "other.nemo")
    with pytest.raises(CheckpointError, match="2 archives of the class HifiGanModel"):
        read_fastpitch(folder)
    (folder / "other.nemo").unlink()
    (folder / "hifigan.nemo").unlink()
    with pytest.raises(CheckpointError, match=r"put the vocoder .* beside it"):
        read_fastpitch(folder / "fastpitch.nemo")
    (folder / "fastpitch.nemo").rename(folder / "model.txt")
    with pytest.raises(CheckpointError, match="not a packed voice"):
        pianissimo.load_voice(folder / "model.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(n_speakers=3), "n_speakers is 3"),
        (lambda c: c.update(learn_alignment=False), "learn_alignment"),
        (lambda c: c.update(target="nemo.EncDecCTCModel"), "0 archives of the class"),
        (lambda c: c["text_tokenizer"].update(_target_="x.IPATokenizer"), "IPATokenizer"),
        (lambda c: c["text_tokenizer"].update(stresses=False), "stresses"),
        (lambda c: c["text_tokenizer"].update(chars=False), "shape"),
        (lambda c: c["input_fft"].update(pre_lnorm=True), "pre_lnorm"),
        (lambda c: c["input_fft"].update(kernel_size=4), "an odd integer"),
        (lambda c: c["output_fft"].update(d_model=99), "d_model is 99"),
        (lambda c: c["preprocessor"].update(highfreq=None, n_window_stride=32), "n_window_stride"),
        (lambda c: c["preprocessor"].update(highfreq=7000), "highfreq"),
        (lambda c: c.update(max_token_duration=10**9), "max_token_duration"),
    ],
)
def test_unsupported_configurations_are_named(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewritten(folder / "fastpitch.nemo", lambda config, _: change(config))
    with pytest.raises(CheckpointError, match=message):
        read_fastpitch(folder)


def test_every_tensor_is_needed_and_used(folder: Path) -> None:
    original = (folder / "fastpitch.nemo").read_bytes()
    rewritten(folder / "fastpitch.nemo", lambda _, weights: weights.pop("fastpitch.proj.bias"))
    with pytest.raises(CheckpointError, match=r"missing: out\.bias"):
        read_fastpitch(folder)
    (folder / "fastpitch.nemo").write_bytes(original)
    for name in ("fastpitch.extra", "extra"):
        rewritten(
            folder / "fastpitch.nemo",
            lambda _, weights, name=name: weights.update({name: torch.zeros(3)}),
        )
        with pytest.raises(CheckpointError, match="extra"):
            read_fastpitch(folder)
        (folder / "fastpitch.nemo").write_bytes(original)
    rewritten(
        folder / "hifigan.nemo", lambda _, weights: weights.pop("generator.conv_post.weight_g")
    )
    with pytest.raises(CheckpointError, match="has no weight_g"):
        read_fastpitch(folder)
