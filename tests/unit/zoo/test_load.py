"""From what a caller names to a model: what is not there, what is refused, what is chosen."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_talker, noise, tensor

import pianissimo
from pianissimo.cli import main
from pianissimo.errors import ModelNotFoundError, OptionError
from pianissimo.models.asr import LanguagePrompt, PromptConfig
from pianissimo.models.checkpoints.model_folder import save_model
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.zoo.load import choose_device, load

LANGUAGES = (LanguagePrompt("auto", 0), LanguagePrompt("de-DE", 1), LanguagePrompt("en-US", 2))


@pytest.fixture
def multilingual(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    """The folder of a model with a prompt for each of a few languages."""
    prompts = PromptConfig(count=3, hidden=16, default=0, languages=LANGUAGES)
    pieces = tiny_tokenizer.vocab_size
    model = make_talker(-2.0, vocab_size=pieces, prompts=prompts, max_symbols=2, name="polyglot")
    assert model.prompt is not None
    with torch.no_grad():  # what language it is shall make a difference
        model.prompt.up.weight[:, -prompts.count :] = 3 * tensor(prompts.hidden, prompts.count)
    save_model(tmp_path / "polyglot", model, tiny_tokenizer)
    return tmp_path / "polyglot"


@pytest.mark.parametrize("name", ["", "x" * 5000, "~nobody-of-this-name/model", "a\0b"])
def test_a_name_that_no_file_can_have_is_a_missing_model(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        load(name)


@pytest.mark.parametrize("device", ["abacus", None, 5])
def test_an_unknown_device_names_the_known_ones(device: Any) -> None:
    with pytest.raises(OptionError, match="choose auto, cpu, cuda"):
        choose_device(device)


def test_the_language_that_is_asked_for_is_heard(multilingual: Path) -> None:
    samples, texts = noise(40_000), {}
    for asked, language in ((None, None), ("auto", None), ("de", "de-DE"), ("en-us", "en-US")):
        recognizer = load(multilingual, device="cpu", language=asked, gain="off")
        assert isinstance(recognizer, NativeRecognizer)
        recognizer.detector = None  # noise is no evidence of speech
        found = recognizer.transcribe(samples, sample_rate=16_000, latency_ms=160)
        assert (found.language, recognizer.language) == (language, language)
        with recognizer.stream(latency_ms=160, endpoint=None, watchdog=None) as stream:
            stream.push(samples)
            assert stream.finish()[-1].text == found.text
        texts[asked] = found.text
    assert texts[None] == texts["auto"]
    assert len(set(texts.values())) == 3


def test_the_language_of_a_catalog_model_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `.nemo` archive does not say its language; the catalog does."""
    golden = Path(__file__).parents[2] / "parity" / "golden" / "nemo" / "conformer.nemo"
    folder = tmp_path / "parakeet-ctc-0.6b"
    folder.mkdir()
    (folder / "model.nemo").write_bytes(golden.read_bytes())
    monkeypatch.setenv("PIANISSIMO_MODELS", str(tmp_path))
    for language in ("en", "en-GB", "auto"):
        load("parakeet-ctc-0.6b", device="cpu", language=language)
    with pytest.raises(OptionError, match="speaks only 'en'"):
        load("parakeet-ctc-0.6b", device="cpu", language="fr")


def test_an_unknown_language_names_those_of_the_model(
    multilingual: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match="language 'fr'; it has auto, de-DE, en-US"):
        load(multilingual, device="cpu", language="fr")
    clip = Path(__file__).parents[3] / "examples" / "audio" / "number.flac"
    options = ["--model", str(multilingual), "--device", "cpu", "--language"]
    assert main(["transcribe", str(clip), *options, "fr"]) == 2
    assert "it has auto, de-DE, en-US" in capsys.readouterr().err
    assert main(["transcribe", str(clip), *options, "de", "--json"]) == 0
    assert '"language": "de-DE"' in capsys.readouterr().out


def test_a_former_name_is_accepted_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="embedded-en is now called embedded-commands"):
        found = pianissimo.load("embedded-en", device="cpu")
    assert found.name == "embedded-commands"
