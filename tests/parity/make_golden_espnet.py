"""Make the golden files of ESPnet2 anew: tiny random models as ESPnet packs them, and its numbers.

    scratch/bin/python tests/parity/make_golden_espnet.py

ESPnet 202511 cannot be installed beside this package, so `scratch` is an environment of its own:
Python 3.11 with torch 2.13.0, `espnet==202511` without its dependencies, and numpy, scipy,
soundfile, librosa, sentencepiece, typeguard, einops, torch_complex, humanfriendly, configargparse,
opt_einsum, lightning_utilities, PyYAML and packaging. What else ESPnet imports is not used here and
is replaced by empty modules. KenLM is replaced too, by the back-off rule written out below.

Arrays of a model's `.npz`, for clip `c`: `features.c` (T, F) normalized, `encoder.c` (S, D),
`ctc.c` (S, V) log-probabilities, `prefixes` (R, U) token ids and `decoder.c` (R, U, V)
log-probabilities before each of their tokens. Its `.json` has for each search what was asked for
and what `Speech2Text` found: how many hypotheses ended, and of the best three token ids with both
ends, score, scores by part, text.
"""

import argparse
import importlib.abc
import importlib.machinery
import json
import math
import os
import shutil
import sys
import tempfile
import types
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from parity_inputs import CORPUS, SEED, VOCABULARY, waveform

GOLDEN = Path(__file__).resolve().parent / "golden_espnet"
LARGEST_BYTES = 600_000
CLIP_SAMPLES = (24_123, 9_000)
UNUSED = (
    "asteroid_filterbanks ci_sdr editdistance fast_bss_eval g2p_en h5py hydra jaconv jamo kaldiio "
    "lightning matplotlib mir_eval nltk omegaconf pesq pypinyin pystoi pytorch_wpe pyworld "
    "tacotron_cleaner torchaudio torchmetrics transformers vietnamese_cleaner wandb"
)
PREFIXES = ((5, 9, 9, 17, 3), (11, 4, 22, 8, 30))

MODELS: dict[str, dict[str, Any]] = {
    "latest": {
        "token_type": "bpe",
        "frontend_conf": {"n_fft": 512, "hop_length": 160, "win_length": 400, "fs": "16k"},
        "normalize": "global_mvn",
        "encoder_conf": {"rel_pos_type": "latest", "input_layer": "conv2d"},
        "decoder_conf": {"num_blocks": 2},
        "lm_conf": {"unit": 12, "nlayers": 2, "rnn_type": "lstm"},
    },
    "legacy": {
        "token_type": "char",
        "frontend_conf": {"n_fft": 256, "hop_length": 128, "n_mels": 24},
        "normalize": "utterance_mvn",
        "encoder_conf": {"rel_pos_type": "legacy", "input_layer": "conv2d"},
        "decoder_conf": {"num_blocks": 1},
        "lm_conf": {"unit": 10, "nhid": 14, "nlayers": 1, "rnn_type": "gru"},
    },
    "ctc_only": {
        "token_type": "char",
        "frontend_conf": {"n_fft": 256, "hop_length": 160, "n_mels": 24},
        "normalize": "utterance_mvn",
        "normalize_conf": {"norm_vars": True},
        "encoder_conf": {"rel_pos_type": "latest", "macaron_style": False, "use_cnn_module": False},
        "model_conf": {"ctc_weight": 1.0},
    },
}
BOTH: dict[str, Any] = {"beam_size": 4, "ctc_weight": 0.3, "lm_weight": 0.0, "ngram_weight": 0.0}
SEARCHES: list[dict[str, Any]] = [
    BOTH,
    BOTH | {"beam_size": 1},
    BOTH | {"ctc_weight": 0.0},
    BOTH | {"ctc_weight": 0.0, "maxlenratio": 0.3},
    BOTH | {"ctc_weight": 1.0},
    BOTH | {"ctc_weight": 1.0, "beam_size": 1},
    BOTH | {"beam_size": 20, "ctc_weight": 0.5},
    BOTH | {"penalty": 0.7},
    BOTH | {"maxlenratio": 0.4, "minlenratio": 0.2},
    BOTH | {"maxlenratio": -7, "minlenratio": -3, "penalty": -0.5},
    BOTH | {"lm_weight": 1.0},
    BOTH | {"lm_weight": 0.4, "beam_size": 1, "penalty": 0.3},
    BOTH | {"lm_weight": 0.6, "ctc_weight": 1.0},
    BOTH | {"ngram_weight": 0.9},
    BOTH | {"ngram_weight": 0.5, "lm_weight": 0.3, "ctc_weight": 0.5, "beam_size": 8},
]

README = """# Golden files of ESPnet2

Tiny random models in ESPnet's packed layout, and the numbers it computes with them:
`test_golden_espnet.py` compares ours without needing ESPnet. What the arrays are is said at the
top of `make_golden_espnet.py`, which made all of it. Nothing here was trained, recorded or taken
from a published model; the SentencePiece pieces were counted in a few made-up sentences.

ESPnet {espnet}, torch {torch}, numpy {numpy}, sentencepiece {sentencepiece}; seed {seed}.
KenLM was not there: n-grams were scored by a back-off rule in its place, with KenLM's conventions.
"""


# -- what stands for packages that are not there ---------------------------------------------------


class _Anything:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Anything,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] in UNUSED.split():
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []


class _State:
    """KenLM's state: here the words so far."""

    words: tuple[str, ...] = ()


class _LanguageModel:
    """KenLM's Python class: log10 by the definition of ARPA files."""

    def __init__(self, path: str) -> None:
        self.table: dict[tuple[str, ...], tuple[float, float]] = {}
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            score, *fields = line.split("\t")
            if fields:
                back = float(fields[1]) if len(fields) > 1 else 0.0
                self.table[tuple(fields[0].split(" "))] = float(score), back
        self.order = max(map(len, self.table))

    def NullContextWrite(self, state: _State) -> None:
        state.words = ()

    def BaseScore(self, state: _State, word: str, out: _State) -> float:
        word = word if (word,) in self.table else "<unk>"
        context, total = state.words, 0.0
        out.words = (*context, word)[-(self.order - 1) :]
        while (*context, word) not in self.table:
            if not context:
                return total - 100.0
            total += self.table.get(context, (0.0, 0.0))[1]
            context = context[1:]
        return total + self.table[*context, word][0]


def stand_in() -> None:
    sys.meta_path.append(_Finder())
    kenlm: Any = types.ModuleType("kenlm")
    kenlm.State, kenlm.LanguageModel = _State, _LanguageModel
    sys.modules["kenlm"] = kenlm


# -- models ----------------------------------------------------------------------------------------


def vocabulary(kind: str, folder: Path) -> list[str]:
    """The token list; for pieces, with the SentencePiece model beside it."""
    if kind == "char":
        inner = ["<space>", *sorted({c for line in CORPUS for c in line.lower()} - {" "})]
        return ["<blank>", "<unk>", *inner, "<sos/eos>"]
    import sentencepiece

    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / "bpe"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        normalization_rule_name="identity",
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "bpe.model"))
    inner = [pieces.IdToPiece(i) for i in range(3, pieces.GetPieceSize())]
    return ["<blank>", "<unk>", *inner, "<sos/eos>"]


def scramble(model: Any, seed: int) -> None:
    """Random weights and statistics, loud enough that texts come out."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "melmat" in name or name.startswith("normalize") or not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(1 + 0.3 * noise.abs())
        elif tensor.dim() < 2:
            tensor.add_(0.2 * noise)
        elif name.endswith(("ctc_lo.weight", "output_layer.weight", "lm.decoder.weight")):
            tensor.copy_(noise * 3 / math.sqrt(tensor.shape[-1]))
        else:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))


def arpa(tokens: Sequence[str], seed: int) -> str:
    """A random bigram model of the tokens; the ends are `<s>` and `</s>`."""
    rng = np.random.default_rng(seed)
    words = ["<s>", "</s>", "<unk>", *(t for t in tokens if not t.startswith("<"))]
    ones = [f"{-rng.uniform(0.5, 3):.4f}\t{w}\t{-rng.uniform(0, 0.8):.4f}" for w in words]
    pairs = sorted({(int(a), int(b)) for a, b in rng.integers(0, len(words), (60, 2))})
    pairs = [(a, b) for a, b in pairs if a != 1 and b != 0]
    twos = [f"{-rng.uniform(0.2, 2):.4f}\t{words[a]} {words[b]}" for a, b in pairs]
    head = ["\\data\\", f"ngram 1={len(ones)}", f"ngram 2={len(twos)}", ""]
    return "\n".join([*head, "\\1-grams:", *ones, "", "\\2-grams:", *twos, "", "\\end\\", ""])


def write_stats(path: Path, bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, deviation = rng.normal(-4, 1, bins), rng.uniform(1, 3, bins)
    count = 1000
    squares = (mean**2 + deviation**2) * count
    np.savez(path, count=count, sum=mean * count, sum_square=squares)


def build(name: str, plan: dict[str, Any], seed: int) -> Path:
    """A model as its recipe leaves it, packed; works in the current folder."""
    import torch
    import yaml
    from espnet2.main_funcs.pack_funcs import pack
    from espnet2.tasks.asr import ASRTask
    from espnet2.tasks.lm import LMTask

    torch.manual_seed(seed)
    root = Path("exp")
    root.mkdir()
    tokens = vocabulary(plan["token_type"], root)
    config = ASRTask.get_default_config()
    encoder = {"output_size": 16, "attention_heads": 4, "linear_units": 24, "num_blocks": 2}
    config |= {
        "token_list": tokens,
        "token_type": plan["token_type"],
        "bpemodel": str(root / "bpe.model") if plan["token_type"] == "bpe" else None,
        "frontend_conf": plan["frontend_conf"],
        "specaug": None,
        "normalize": plan["normalize"],
        "normalize_conf": plan.get("normalize_conf", {}),
        "encoder": "conformer",
        "encoder_conf": encoder
        | {"macaron_style": True, "cnn_module_kernel": 7, "use_cnn_module": True}
        | plan["encoder_conf"],
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 2, "linear_units": 20} | plan.get("decoder_conf", {}),
        "model_conf": {"ctc_weight": 0.3} | plan.get("model_conf", {}),
    }
    files, extra = {}, []
    if plan["normalize"] == "global_mvn":
        write_stats(root / "feats_stats.npz", plan["frontend_conf"].get("n_mels", 80), seed)
        config["normalize_conf"] = {"stats_file": str(root / "feats_stats.npz")}
        extra.append(root / "feats_stats.npz")
    if config["bpemodel"]:
        extra.append(root / "bpe.model")
    model = ASRTask.build_model(argparse.Namespace(**config)).eval()
    scramble(model, seed)
    torch.save(model.state_dict(), root / "valid.acc.ave.pth")
    (root / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    files = {"asr_model_file": root / "valid.acc.ave.pth"}
    yamls = {"asr_train_config": root / "config.yaml"}
    if "lm_conf" in plan:
        (root / "lm").mkdir()
        lm_config = LMTask.get_default_config()
        lm_config |= {"token_list": tokens, "token_type": plan["token_type"], "lm": "seq_rnn"}
        lm_config |= {"lm_conf": plan["lm_conf"], "bpemodel": config["bpemodel"]}
        lm = LMTask.build_model(argparse.Namespace(**lm_config)).eval()
        scramble(lm, seed + 1)
        torch.save(lm.state_dict(), root / "lm" / "valid.loss.ave.pth")
        (root / "lm" / "config.yaml").write_text(yaml.safe_dump(lm_config), encoding="utf-8")
        files["lm_file"] = root / "lm" / "valid.loss.ave.pth"
        yamls["lm_train_config"] = root / "lm" / "config.yaml"
    Path("ngram.arpa").write_text(arpa(tokens, seed), encoding="utf-8")
    pack(files, yamls, f"{name}.zip", extra)
    return Path(f"{name}.zip")


def smaller(packed: Path, target: Path) -> None:
    """The same archive, its members compressed; ESPnet stores them as they are."""
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            new.writestr(member, old.read(member), zipfile.ZIP_DEFLATED)


# -- numbers ---------------------------------------------------------------------------------------


def numbers(speech_to_text: Any) -> dict[str, Any]:
    import torch

    model, found = speech_to_text.asr_model, {"prefixes": np.array(PREFIXES)}
    for c, samples in enumerate(CLIP_SAMPLES):
        speech = torch.from_numpy(waveform(samples, c))[None]
        lengths = torch.tensor([samples])
        with torch.no_grad():
            features, counts = model._extract_feats(speech, lengths)
            if model.normalize is not None:
                features, counts = model.normalize(features, counts)
            encoded, _ = model.encode(speech, lengths)
            found[f"features.{c}"] = features[0].numpy()
            found[f"encoder.{c}"] = encoded[0].numpy()
            found[f"ctc.{c}"] = model.ctc.log_softmax(encoded)[0].numpy()
            if model.decoder is not None:
                given = torch.tensor([[model.sos, *row[:-1]] for row in PREFIXES])
                sizes = torch.full((len(given),), given.shape[1])
                memory = encoded.expand(len(given), -1, -1)
                logits, _ = model.decoder(
                    memory, torch.full((len(given),), memory.shape[1]), given, sizes
                )
                found[f"decoder.{c}"] = logits.log_softmax(-1).numpy()
    return {key: value.astype(np.float32) for key, value in found.items()}


def searches(parts: dict[str, str], plan: dict[str, Any]) -> list[dict[str, Any]]:
    from espnet2.bin.asr_inference import Speech2Text

    found = []
    for asked in SEARCHES:
        if "lm_conf" not in plan and (asked["lm_weight"] or asked["ctc_weight"] < 1):
            continue
        used = dict(parts)
        if asked["ngram_weight"]:
            used["ngram_file"] = "ngram.arpa"
        if not asked["lm_weight"]:
            used = {key: value for key, value in used.items() if not key.startswith("lm_")}
        recognizer = Speech2Text(**used, **asked, nbest=10_000)
        for c, samples in enumerate(CLIP_SAMPLES):
            ended = recognizer(waveform(samples, c))
            best = [
                {
                    "tokens": hypothesis.yseq.tolist(),
                    "score": round(float(hypothesis.score), 5),
                    "scores": {k: round(float(v), 5) for k, v in hypothesis.scores.items()},
                    "text": text,
                }
                for text, _, _, hypothesis in ended[:3]
            ]
            found.append({"asked": asked, "clip": c, "ended": len(ended), "nbest": best})
    return found


def main() -> None:
    stand_in()
    from espnet2.bin.asr_inference import Speech2Text
    from espnet2.main_funcs.pack_funcs import unpack

    start = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "golden"
        made.mkdir()
        for i, (model, plan) in enumerate(MODELS.items()):
            work = Path(name) / model
            work.mkdir()
            os.chdir(work)
            packed = build(model, plan, SEED + 10 * i)
            parts = unpack(packed, work / "unpacked")
            smaller(packed, made / packed.name)
            shutil.copy("ngram.arpa", made / f"{model}.arpa")
            acoustic = {key: value for key, value in parts.items() if not key.startswith("lm_")}
            np.savez_compressed(made / f"{model}.npz", **numbers(Speech2Text(**acoustic)))
            text = json.dumps(searches(parts, plan), ensure_ascii=False, separators=(",", ":"))
            (made / f"{model}.json").write_text(text + "\n", encoding="utf-8")
        os.chdir(start)
        packages = ("espnet", "torch", "numpy", "sentencepiece")
        readme = README.format(seed=SEED, **{name: version(name) for name in packages})
        (made / "README.md").write_text(readme, encoding="utf-8")
        files = sorted(made.iterdir())
        for path in files:
            path.chmod(0o644)
        total = sum(path.stat().st_size for path in files)
        print(*(f"{path.name}: {path.stat().st_size}" for path in files), sep="\n")
        if total > LARGEST_BYTES:
            raise SystemExit(f"{total} bytes of golden files are too many to commit")
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(made, GOLDEN)
    print(f"{len(files)} files, {total} bytes in {GOLDEN}")


if __name__ == "__main__":
    main()
