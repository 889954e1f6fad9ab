"""Reading packs of ESPnet2, refusing others, and recognizing with them; models as ESPnet packed."""

import itertools
import math
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch
import yaml
from spoken import speech

import pianissimo
from pianissimo.decoding.joint import CtcPrefixScorer, JointOptions, JointSearch
from pianissimo.decoding.search import Decoding
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.espnet import (
    EspnetConfig,
    EspnetModel,
    FeaturesConfig,
    LmConfig,
    RecurrentLm,
)
from pianissimo.models.packed import PackedLSTM
from pianissimo.protocols import Recognizer
from pianissimo.recognizers.espnet import EspnetRecognizer
from pianissimo.text.characters import Run

GOLDEN = Path(__file__).parents[2] / "parity" / "golden_espnet"
RATE = 16_000
CONFIG = "exp/config.yaml"

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def recognizer() -> EspnetRecognizer:
    found = pianissimo.load(GOLDEN / "latest.zip", device="cpu")
    assert isinstance(found, EspnetRecognizer)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The pack, unpacked."""
    with zipfile.ZipFile(GOLDEN / "latest.zip") as archive:
        archive.extractall(tmp_path / "model")
    return tmp_path / "model"


def changed(path: Path, change: Change) -> None:
    """Rewrite a YAML file."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


# -- recognizing -----------------------------------------------------------------------------------


def test_defaults_are_those_of_espnet(recognizer: EspnetRecognizer) -> None:
    expected = JointOptions(
        beam=20, ctc_weight=0.5, lm_weight=1.0, ngram_weight=0.9, penalty=0.0, max_length=0.0
    )
    assert recognizer.options == expected
    assert recognizer.lm is not None
    assert isinstance(recognizer, Recognizer)


def test_recordings_alone_and_together(recognizer: EspnetRecognizer, tmp_path: Path) -> None:
    paths = []
    for i, seconds in enumerate((1.5, 2.4, 0.9)):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], speech(3.0)[i * 2000 :][: round(seconds * RATE)], RATE)
    alone = [recognizer.transcribe(path) for path in paths]
    assert any(found.text for found in alone)
    assert list(recognizer.transcribe_many(paths)) == alone
    assert [found.duration for found in alone] == [1.5, 2.4, 0.9]
    assert {found.model for found in alone} == {"latest"}


@pytest.mark.parametrize("samples", [0, 1, 257, 800])
def test_nothing_to_hear(recognizer: EspnetRecognizer, samples: int) -> None:
    noise = 0.3 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    assert recognizer.hypotheses(noise) == []
    assert recognizer.transcribe(noise, sample_rate=RATE).text == ""
    assert recognizer.transcribe(np.zeros(RATE, np.float32), sample_rate=RATE).text == ""


@pytest.mark.parametrize("name", ["latest", "legacy", "ctc_only"])
def test_shortest_audio(name: str) -> None:
    model = pianissimo.load(GOLDEN / f"{name}.zip", device="cpu").model
    least = model.config.least_samples
    with torch.inference_mode():
        assert model.encode(torch.ones(1, least)).shape[1] == 1
        with pytest.raises(RuntimeError):
            model.encode(torch.ones(1, least - 1))


def test_stream(recognizer: EspnetRecognizer) -> None:
    said = np.concatenate([speech(1.2), np.zeros(2 * RATE, np.float32)])
    with recognizer.stream() as stream:
        events = [*stream.push(said), *stream.finish()]
    assert any(event.type == "final" for event in events)


def test_head_and_decoding_of_load() -> None:
    chosen = pianissimo.load(
        GOLDEN / "latest.zip",
        device="cpu",
        head="ctc",
        decoding=Decoding(beam=3, lm=GOLDEN / "latest.arpa", lm_weight=0.7),
    )
    assert isinstance(chosen, EspnetRecognizer)
    assert chosen.options == JointOptions(beam=3, ctc_weight=1.0, ngram_weight=0.7)
    best = chosen.hypotheses(speech(1.0))[0]
    assert set(best.scores) == {"ctc", "lm", "ngram"}
    whole = best.scores["ctc"] + best.scores["lm"] + 0.7 * best.scores["ngram"]
    assert best.score == pytest.approx(whole, rel=1e-4)


def test_a_model_without_decoder_uses_ctc() -> None:
    found = pianissimo.load(GOLDEN / "ctc_only.zip", device="cpu")
    assert isinstance(found, EspnetRecognizer)
    assert found.options.ctc_weight == 1.0
    assert set(found.hypotheses(speech(1.0))[0].scores) == {"ctc"}
    with pytest.raises(OptionError, match="no decoder"):
        EspnetRecognizer(found.model, options=JointOptions(ctc_weight=0.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "bfloat16"}, "float32"),
        ({"dtype": "int8"}, "int8"),
        ({"head": "transducer"}, "head"),
        ({"language": "en"}, "languages"),
        ({"task": "translate"}, "task"),
        ({"decoding": Decoding(lm=GOLDEN / "latest.arpa", word_bonus=1.0)}, "word_bonus"),
        ({"decoding": Decoding(beam=4, rescoring=0.5)}, "rescoring"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        pianissimo.load(GOLDEN / "latest.zip", device="cpu", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 0},
        {"ctc_weight": 1.1},
        {"lm_weight": -1.0},
        {"ngram_weight": math.nan},
        {"penalty": math.inf},
        {"max_length": math.nan},
        {"min_length": math.inf},
    ],
)
def test_impossible_searches(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        JointOptions(**options)


def test_foreign_ngrams(tmp_path: Path) -> None:
    path = tmp_path / "words.arpa"
    path.write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n-1\t<unk>\n-1\thello\n\n\\end\\\n")
    with pytest.raises(CheckpointError, match="none of the tokens"):
        pianissimo.load(GOLDEN / "latest.zip", device="cpu", decoding=Decoding(lm=path))


def spelling(
    kind: Literal["word", "char", "bpe"], tokens: tuple[str, ...], space: str = "<space>"
) -> EspnetRecognizer:
    """A model of which only the spelling matters."""
    features = FeaturesConfig(fft=64, window=64, hop=40, mels=8)
    last = len(tokens) - 1
    config = EspnetConfig(
        tokens, last, last, features, None, dim=8, layers=1, spelling=kind, space=space
    )
    return EspnetRecognizer(EspnetModel(config))


@pytest.mark.parametrize(
    ("kind", "text"),
    [("word", "the \u2581a <s>"), ("char", "the\u2581a "), ("bpe", "the a<s>")],
)
def test_texts(kind: Literal["word", "char", "bpe"], text: str) -> None:
    tokens = ("<blank>", "<unk>", "<s>", "the", "\u2581a", "<sos/eos>")
    assert spelling(kind, tokens, space="<s>").text([3, 1, 0, 4, 2, 5]) == text


# -- times -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tokens", "expected"),
    [
        ("bpe", "\u2581so me \u2581word s", [("some", 0, 3), ("words", 4, 7)]),
        ("bpe", "\u2581 so \u2581me .", [("so", 2, 3), ("me.", 4, 7)]),
        ("char", "a b <space> c <space>", [("ab", 0, 3), ("c", 6, 7)]),
        (
            "char",
            "\u4f60 o k \u5417 \u3002",
            [("\u4f60", 0, 1), ("ok", 2, 5), ("\u5417\u3002", 6, 8.5)],
        ),
        ("word", "one two", [("one", 0, 1), ("two", 2, 3)]),
    ],
)
def test_tokens_to_words(
    kind: Literal["word", "char", "bpe"], tokens: str, expected: list[tuple[str, float, float]]
) -> None:
    """Token i is heard in frame 2 i, of 10 ms; the recording ends in the middle of frame 8."""
    pieces = tokens.split()
    recognizer = spelling(kind, ("<blank>", *dict.fromkeys(pieces), "<sos/eos>"))
    ids = [recognizer.model.config.tokens.index(piece) for piece in pieces]
    runs = [Run(token, 2 * i, 2 * i + 1, 0.9 - i / 10) for i, token in enumerate(ids)]
    words = recognizer.words(runs, 0.085)
    assert [(word.text, word.start * 100, word.end * 100) for word in words] == [
        (text, pytest.approx(start), pytest.approx(end)) for text, start, end in expected
    ]
    last = expected[0][2] // 2
    assert words[0].confidence == pytest.approx(0.9 - last / 10)


def test_words_are_timed_by_the_ctc_head() -> None:
    narrow = Decoding(beam=1)  # a wider beam finds loops, whose words are not kept
    recognizer = pianissimo.load(GOLDEN / "latest.zip", device="cpu", decoding=narrow)
    said = speech(2.0)
    found = recognizer.transcribe(said, sample_rate=RATE)
    assert len(found.words) > 5
    assert [word.text for word in found.words] == found.text.split()
    assert [word for segment in found.segments for word in segment.words] == [*found.words]
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= found.duration
    plain = recognizer.transcribe(said, sample_rate=RATE, word_timestamps=False)
    assert (plain.text, plain.words) == (found.text, ())
    late = np.concatenate([np.zeros(3 * RATE, np.float32), said])
    assert recognizer.transcribe(late, sample_rate=RATE).words[0].start > 2.5


# -- the language model ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@torch.inference_mode()
def test_a_packed_language_model_says_the_same(kind: Literal["LSTM", "GRU"]) -> None:
    lm = RecurrentLm(LmConfig(12, dim=10, hidden=14, layers=2, kind=kind)).eval()
    model = spelling("word", ("<blank>", *"abcdefghij", "<sos/eos>")).model
    searching = EspnetRecognizer(model, lm=lm).lm
    assert searching is not None
    assert type(searching.rnn) is (PackedLSTM if kind == "LSTM" else torch.nn.GRU)
    plain, packed_state = None, None
    for tokens in torch.tensor([[11, 11, 11], [1, 2, 3], [4, 4, 5], [2, 9, 1]]):
        expected, plain = lm(tokens, plain)
        found, packed_state = searching(tokens, packed_state)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert packed_state is not None
    for ours, theirs in zip(packed_state, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# -- CTC prefixes ----------------------------------------------------------------------------------


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token)


@pytest.mark.parametrize("seed", range(3))
def test_prefix_scores_are_sums_over_paths(seed: int) -> None:
    frames, size, end = 5, 4, 3
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(frames, size, generator=generator).double().log_softmax(-1)
    weights: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(size), repeat=frames):
        text = collapsed(path)
        chance = math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
        weights[text] = weights.get(text, 0.0) + chance
    scorer = CtcPrefixScorer(log_probs, end)
    for text in [(1,), (1, 1), (1, 2, 1), (2, 2, 2)]:
        tokens, state = torch.tensor([[end]]), scorer.start()
        for token in text:
            prefix = scorer.score(tokens, state, None)
            added = torch.tensor([token])
            state = scorer.select(state, prefix, tokens, torch.tensor([0]), added)
            tokens = torch.cat([tokens, added[:, None]], dim=1)
        begins = sum(chance for found, chance in weights.items() if found[: len(text)] == text)
        assert math.exp(float(state.prefix)) == pytest.approx(begins, rel=1e-9)
        ends = scorer.score(tokens, state, None)[0, end]
        assert math.exp(float(ends)) == pytest.approx(weights[text], rel=1e-9)


def test_a_wide_ctc_beam_finds_the_likeliest_text() -> None:
    generator = torch.Generator().manual_seed(7)
    log_probs = (2 * torch.randn(4, 4, generator=generator)).double().log_softmax(-1)
    weights: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(3), repeat=4):  # the end is no label
        chance = math.exp(sum(float(log_probs[t, token]) for t, token in enumerate(path)))
        weights[collapsed(path)] = weights.get(collapsed(path), 0.0) + chance
    search = JointSearch(
        {},
        (1.0, CtcPrefixScorer(log_probs, 3)),
        start=3,
        end=3,
        vocab_size=4,
        options=JointOptions(beam=100, ctc_weight=1.0, max_length=-6),
    )
    best = search.run(4, torch.device("cpu"))[0]
    assert best.tokens == max(weights, key=lambda text: weights[text])
    assert math.exp(best.score) == pytest.approx(weights[best.tokens], rel=1e-4)


# -- files -----------------------------------------------------------------------------------------


def test_a_pack_may_be_unpacked(recognizer: EspnetRecognizer, folder: Path) -> None:
    found = pianissimo.load(folder, device="cpu")
    assert isinstance(found, EspnetRecognizer)
    assert found.hypotheses(speech(1.0)) == recognizer.hypotheses(speech(1.0))
    assert found.name == "model"


def test_the_folder_of_an_experiment(folder: Path) -> None:
    (folder / "meta.yaml").unlink()
    found = pianissimo.load(folder / "exp", device="cpu")
    assert isinstance(found, EspnetRecognizer)
    assert found.lm is None
    assert found.hypotheses(speech(1.0))
    shutil.copy(folder / "exp/valid.acc.ave.pth", folder / "exp/7epoch.pth")
    with pytest.raises(CheckpointError, match=r"2 checkpoints \(7epoch\.pth, valid"):
        pianissimo.load(folder / "exp", device="cpu")


def put(*keys: str, value: Any) -> Change:
    """A change of one setting."""

    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("encoder", value="e_branchformer"), "encoder is 'e_branchformer'"),
        (put("decoder", value="rnn"), "decoder is 'rnn'"),
        (put("frontend", value="s3prl"), "frontend is 's3prl'"),
        (put("normalize", value="other_mvn"), "normalize is 'other_mvn'"),
        (put("normalize", value=None), r"unknown: normalize\.mean"),
        (put("preencoder", value="linear"), "preencoder is 'linear'"),
        (put("model", value="maskctc"), "model is 'maskctc'"),
        (put("token_type", value="hugging_face"), "token_type is 'hugging_face'"),
        (put("frontend_conf", "fs", value="8k"), "fs is '8k'"),
        (put("frontend_conf", "win_length", value=4000), "window of 4000"),
        (put("encoder_conf", "input_layer", value="conv2d8"), "input_layer is 'conv2d8'"),
        (put("encoder_conf", "attention_heads", value=3), "3 heads"),
        (put("encoder_conf", "num_blocks", value=10**9), "num_blocks is 1000000000"),
        (put("encoder_conf", "num_blocks", value=3), "missing: encoder.encoders.2"),
        (put("encoder_conf", "linear_units", value=25), r"shape \(24, 16\), expected \(25, 16\)"),
        (put("decoder_conf", "num_blocks", value=1), "unknown: decoder.decoders.1"),
        (put("token_list", value=["<blank>", "a", "<sos/eos>"]), "vocabulary"),
        (put("token_list", value="tokens.txt"), "token_list"),
        (put("model_conf", "sym_blank", value="<unk>"), "blank must be the first"),
    ],
)
def test_configurations_outside_the_subset(folder: Path, change: Change, said: str) -> None:
    changed(folder / CONFIG, change)
    with pytest.raises(CheckpointError, match=said):
        pianissimo.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("lm", value="transformer"), "lm is 'transformer'"),
        (put("token_list", value=["<blank>", "a", "<sos/eos>"]), "other tokens"),
        (put("lm_conf", "nlayers", value=1), "unknown: rnn."),
    ],
)
def test_language_models_outside_the_subset(folder: Path, change: Change, said: str) -> None:
    changed(folder / "exp/lm/config.yaml", change)
    with pytest.raises(CheckpointError, match=said):
        pianissimo.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("files", "asr_model_file", value="exp/gone.pth"), "no exp/gone.pth"),
        (put("files", "asr_model_file", value="../../etc/passwd"), "must name a file inside"),
        (put("yaml_files", "asr_train_config", value="/etc/passwd"), "must name a file inside"),
        (lambda meta: meta["files"].pop("lm_file"), "only one of"),
        (lambda meta: meta["files"].pop("asr_model_file"), "no asr_model_file"),
        (lambda meta: meta.clear(), "no asr_train_config"),
    ],
)
def test_broken_packs(folder: Path, change: Change, said: str) -> None:
    changed(folder / "meta.yaml", change)
    with pytest.raises(CheckpointError, match=said):
        pianissimo.load(folder, device="cpu")


def test_yaml_that_is_none(folder: Path) -> None:
    for text in ("a: [", "- 1", "!!python/object/apply:os.system [exit]", "[" * 5000):
        (folder / CONFIG).write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.yaml"):
            pianissimo.load(folder, device="cpu")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of a checkpoint ran",)


def test_code_in_a_checkpoint_does_not_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"ctc.ctc_lo.bias": Harmful()}, folder / "exp/valid.acc.ave.pth")
    with pytest.raises(CheckpointError, match="other objects than plain tensors"):
        pianissimo.load(folder, device="cpu")
    assert "ran" not in capsys.readouterr().out


def packed(path: Path, members: list[tuple[zipfile.ZipInfo | str, bytes]]) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # about names that are there twice
        for member, data in members:
            archive.writestr(member, data)
    return path


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    return info


def squeezed() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("member")
    info.compress_type = zipfile.ZIP_BZIP2
    return info


@pytest.mark.parametrize(
    ("member", "data", "said"),
    [
        ("../out", b"", "outside of the archive"),
        ("/etc/passwd", b"", "outside of the archive"),
        ("..\\out", b"", "outside of the archive"),
        (link(), b"/etc/passwd", "is a link"),
        (squeezed(), b"data", "unusual"),
        ("meta.yaml", b"", "appears twice"),
        ("bomb", bytes(80 << 20), "claims 83886080 bytes"),
    ],
)
def test_hostile_archives(
    tmp_path: Path, member: zipfile.ZipInfo | str, data: bytes, said: str
) -> None:
    path = packed(tmp_path / "model.zip", [("meta.yaml", b"{}"), (member, data)])
    with pytest.raises(CheckpointError, match=said):
        pianissimo.load(path, device="cpu")


def test_damaged_archives(tmp_path: Path) -> None:
    whole = bytearray((GOLDEN / "latest.zip").read_bytes())
    cut, flipped = tmp_path / "cut.zip", tmp_path / "flipped.zip"
    cut.write_bytes(whole[: len(whole) // 2])
    whole[len(whole) // 2] ^= 0xFF
    flipped.write_bytes(whole)
    for path in (cut, flipped):
        with pytest.raises(CheckpointError):
            pianissimo.load(path, device="cpu")
