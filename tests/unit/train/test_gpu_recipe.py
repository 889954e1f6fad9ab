"""The recipe for a GPU, at a size for this processor: it trains, resumes, and its model loads."""

import dataclasses
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from tiny import ENCODER
from tones import sentences, write_clips

from pianissimo.cli.train import load_recipe
from pianissimo.errors import ManifestError, PianissimoError
from pianissimo.models.asr import AsrModel
from pianissimo.models.transducer import TransducerConfig
from pianissimo.train import synthesize
from pianissimo.train.synthesize import Prompt, SpokenSet, installed_engines
from pianissimo.zoo.load import load

RECIPE = Path(__file__).parents[3] / "recipes" / "embedded_en_gpu.py"
WORDS = "The yes man said no, and in the end he said nothing. We quiz six big jokers very well."
needs_voices = pytest.mark.skipif(
    "espeak-ng" not in installed_engines(), reason="espeak-ng is not installed"
)


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    main = load_recipe(RECIPE)
    return sys.modules[main.__module__]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    manifest = write_clips(tmp_path, "clips", list(sentences(4, 1)), 1)
    manifest.rename(tmp_path / "manifest.jsonl")
    lines = [" ".join(random.Random(i).sample(WORDS.split(), 4)) for i in range(20)]
    (tmp_path / "sentences.txt").write_text("\n".join(lines))
    return tmp_path


def test_the_model_fits_its_budget(recipe: ModuleType) -> None:
    """At most 30 M parameters and, in half precision, 60 MB; 35 MB in 8 bits."""
    with torch.device("meta"):
        model = AsrModel(recipe.GPU.model)
    assert 20e6 < model.parameter_count() <= 30e6
    assert recipe.GPU.commands_until < recipe.GPU.config.transducer_from
    assert recipe.GPU.sentences_until < recipe.GPU.config.steps


@needs_voices
def test_it_runs_at_a_small_size_and_resumes(
    recipe: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "installed_engines", lambda: ["espeak-ng"])
    tiny = recipe.Setting(
        vocabulary=80,
        encoder=dataclasses.replace(ENCODER, conv_kernel=5),
        transducer=TransducerConfig(80, 12, 1, 16),
        config=dataclasses.replace(
            recipe.GPU.config,
            steps=6,
            warmup_steps=1,
            flat_until=0,
            transducer_from=2,
            save_every=1,
            report_every=1,
            workers=0,
        ),
        commands=20,
        commands_until=2,
        sentences_until=4,
        batch_seconds=6.0,
    )
    recipe.run_setting(tiny, data, tmp_path / "whole")
    recipe.run_setting(tiny, data, tmp_path / "parts", minutes=1e-9)
    assert not (tmp_path / "parts" / "model").exists()
    recipe.run_setting(tiny, data, tmp_path / "parts")
    logs = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    whole, parts = ([json.loads(line) for line in log if '"loss"' in line] for log in logs)
    assert [row["loss"] for row in parts] == [row["loss"] for row in whole]
    assert ["transducer" in row for row in whole] == [False] * 2 + [True] * 4
    first, second = (
        load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "parts")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {tensor.dtype for tensor in first.values()} == {torch.float16}
    load(tmp_path / "whole" / "model").transcribe(data / "clips" / "0.wav")


def test_sentences_must_be_there(recipe: ModuleType, data: Path, tmp_path: Path) -> None:
    (data / "sentences.txt").write_text("one\n")
    with pytest.raises(ManifestError, match="no sentence of 2 to"):
        recipe.main(data, tmp_path / "run")
    (data / "sentences.txt").unlink()
    with pytest.raises(ManifestError, match="a sentence a line"):
        recipe.main(data, tmp_path / "run")


# -- speech that is made while training ------------------------------------------------------------


@needs_voices
def test_spoken_prompts_have_the_estimated_length_and_depend_on_the_seed() -> None:
    prompts = [Prompt(WORDS, spelled=False), Prompt("h o u s e"), Prompt("two")]
    spoken = SpokenSet(prompts, ["espeak-ng"])
    for item, estimate in enumerate(spoken.durations()):
        samples, text = spoken.example(item, random.Random(1))
        again, _ = spoken.example(item, random.Random(1))
        other, _ = spoken.example(item, random.Random(2))
        assert text == prompts[item].text
        assert 0.3 * estimate < len(samples) / 16_000 < 1.5 * estimate
        assert (samples == again).all()
        assert len(other) != len(samples) or (other != samples).any()


def test_another_voice_replaces_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def speak(speech: synthesize.Speech) -> list[float]:
        tried.append(speech.voice)
        if len(tried) % 3:
            raise PianissimoError("silence")
        return [0.5]

    monkeypatch.setattr(synthesize, "speak", speak)
    spoken = SpokenSet([Prompt("yes")], ["espeak-ng"])
    assert spoken.example(0, random.Random(0)) == ([0.5], "yes")
    assert len(set(tried)) == 3
    monkeypatch.setattr(synthesize, "ATTEMPTS", 2)
    with pytest.raises(PianissimoError, match="silence"):
        spoken.example(0, random.Random(0))
