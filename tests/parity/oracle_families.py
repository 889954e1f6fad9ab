"""Transformers as oracle for wav2vec 2.0 and related models: tiny random models and their numbers.

Runs in the oracle environment (`requirements.txt`), never in ours:

    python oracle_families.py OUT [--plan golden|full] [--only VARIANT ...]

writes for each variant the folder OUT/VARIANT in the official layout, OUT/VARIANT.npz and
OUT/VARIANT.json. The arrays and facts are

    logits/N              (S, V)        of the waveform of N samples and seed N
    adapter/LANGUAGE/N    (S, V)        the same with the adapter of that language
    text                                what the pipeline writes for clip 0
    words                               its words: text, start and end in seconds
    long                                the same for a clip of 75 s in chunks of 30 s that overlap
                                        by 5 s on each side (only where the variant asks for it)
"""

import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from oracle_common import (
    Outputs,
    RetryError,
    calibrate,
    check_margin,
    check_variety,
    first_good,
    parse_arguments,
    rounded,
    spread,
    write_outputs,
)
from parity_inputs import CLIP_SAMPLES, SAMPLE_RATE, SEED, Floats, Plan, waveform
from safetensors.torch import save_file
from torch import Tensor

LETTERS = (
    "<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVKXJQZ'",
)  # fmt: skip
FRENCH = ("<pad>", "<s>", "</s>", "<unk>", "|", *"esaitnrulodcpmévqfbghàxèyjçzkw")
BLANK, SPACE = 0, 4
LONG_SAMPLES = 75 * SAMPLE_RATE + 123
LONG_SEED = 9
LONG_MARGIN = 1e-4
BERT = "Wav2Vec2Bert"
BERT_MELS = 80  # with another number Transformers mistakes the length of a frame
LAYER_NORMS = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


@dataclass(frozen=True)
class Variant:
    """One layout: its class and how its configuration differs from the base model's."""

    name: str
    family: str = "Wav2Vec2"
    options: dict[str, Any] = field(default_factory=dict)
    long: bool = False
    languages: tuple[str, ...] = ()
    legacy: bool = False
    shards: bool = False
    normalize: bool = True


VARIANTS = (
    Variant("wav2vec2", long=True),
    Variant("wav2vec2_legacy", legacy=True),
    Variant("robust", options=LAYER_NORMS, shards=True, long=True),
    Variant("mms", options=LAYER_NORMS | {"adapter_attn_dim": 4}, languages=("eng", "fra")),
    Variant("hubert", "Hubert"),
    Variant("hubert_large", "Hubert", LAYER_NORMS),
    Variant("hubert_plain", "Hubert", {"feat_proj_layer_norm": False}, normalize=False),
    Variant(
        "data2vec",
        "Data2VecAudio",
        {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 19},
    ),
    Variant("wavlm", "WavLM"),
    Variant("wavlm_large", "WavLM", LAYER_NORMS | {"num_buckets": 32, "max_bucket_distance": 60}),
    Variant("bert", BERT, {"left_max_position_embeddings": 9, "right_max_position_embeddings": 3}),
    Variant("bert_adapter", BERT, {"add_adapter": True, "num_adapter_layers": 2}),
    Variant("bert_narrow", BERT, {"add_adapter": True, "output_hidden_size": 8}),
)


def samples_of(variant: Variant, plan: Plan) -> tuple[int, ...]:
    """Lengths around the first and the second frame, and a longer one."""
    if variant.family == BERT:
        # An even number of mel frames: Transformers lets an odd one into the adapter.
        return (560, 880, 4_801) if plan.name == "golden" else (560, 880, 16_000, 48_003)
    return (400, 719, 720, 4_801) if plan.name == "golden" else (400, 719, 720, 16_000, 48_123)


def config(variant: Variant, plan: Plan) -> Any:
    golden = plan.name == "golden"
    options: dict[str, Any] = {
        "vocab_size": len(LETTERS),
        "pad_token_id": BLANK,
        "hidden_size": plan.width,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "intermediate_size": plan.expansion * plan.width,
    }
    if variant.family == BERT:
        options["feature_projection_input_dim"] = 2 * BERT_MELS
    else:
        options["conv_dim"] = [plan.channels] * 7
        options["num_conv_pos_embeddings"] = 16 if golden else 128
        options["num_conv_pos_embedding_groups"] = 4
    return getattr(transformers, f"{variant.family}Config")(**options | variant.options)


def randomise(model: Any, seed: int) -> None:
    """Every parameter drawn anew, so that no bias is 0 and no gain 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        value = torch.randn(tensor.shape, generator=generator)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * value
        elif name.endswith("original0"):
            value = 1 + 0.2 * value.abs()
        elif tensor.dim() == 1:
            value = 0.3 * value
        elif "gru_rel_pos_const" in name:
            value = 1 + value
        elif "embed.weight" not in name:
            value *= 1.5 / (tensor.numel() / len(tensor)) ** 0.5
        tensor.copy_(rounded(value))


def values(extractor: Any, samples: Floats) -> Tensor:
    """(1, N) samples or (1, S, 2 F) features, as the model takes it."""
    out = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    if "input_values" in out:
        return out.input_values
    assert bool(out.attention_mask.all()), "an odd number of mel frames"
    return out.input_features


def fit_head(model: Any, extractor: Any) -> None:
    """A head that says something different now and then, and mostly nothing."""
    heard = values(extractor, waveform(CLIP_SAMPLES[0], seed=0))
    base = getattr(model, model.base_model_prefix)
    frames = base(heard).last_hidden_state[0]
    spread(model.lm_head, frames, 2.0)
    model.lm_head.bias[SPACE] += 2.5
    model.lm_head.weight[1:SPACE] = 0.0  # the special symbols are never said
    model.lm_head.bias[1:SPACE] = -20.0

    def count() -> int:
        best = model.lm_head(frames).argmax(-1).unique_consecutive()
        return int((best != BLANK).sum())

    calibrate(count, model.lm_head.bias, BLANK)


def make_processor(variant: Variant, folder: Path) -> Any:
    symbols = {symbol: id for id, symbol in enumerate(LETTERS)}
    vocabulary: dict[str, Any] = symbols
    if variant.languages:
        french = {symbol: id for id, symbol in enumerate(FRENCH)}
        vocabulary = {"eng": symbols, "fra": french}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    tokenizer = transformers.Wav2Vec2CTCTokenizer(
        str(folder / "vocab.json"),
        target_lang="eng" if variant.languages else None,
        do_lower_case=variant.name == "wav2vec2_legacy",
    )
    if variant.family == BERT:
        extractor = transformers.SeamlessM4TFeatureExtractor(
            feature_size=BERT_MELS, num_mel_bins=BERT_MELS
        )
        return transformers.Wav2Vec2BertProcessor(extractor, tokenizer)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        return_attention_mask=False, do_normalize=variant.normalize
    )
    return transformers.Wav2Vec2Processor(extractor, tokenizer)


def transcript(model: Any, reader: Any, samples: Floats, **options: Any) -> dict[str, Any]:
    """What the pipeline of Transformers makes of a clip."""
    pipe = transformers.pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=reader.tokenizer,
        feature_extractor=reader.feature_extractor,
        device="cpu",
    )
    found = pipe(samples.copy(), return_timestamps="word", **options)
    words = [[chunk["text"], *chunk["timestamp"]] for chunk in found["chunks"]]
    return {"text": found["text"], "words": words}


def check_words(found: dict[str, Any], least: int) -> None:
    """Refuse texts of few words, or with a word so long that we cut it."""
    longest = max((len(word) for word in found["text"].split()), default=0)
    if len(found["words"]) < least or longest > 60:
        raise RetryError(f"{len(found['words'])} words, the longest of {longest} letters")


def check_long(model: Any, extractor: Any, samples: Floats) -> None:
    """Refuse weights with a close race anywhere near what the chunks keep."""
    for start in range(0, len(samples), 20 * SAMPLE_RATE):
        chunk = samples[start : start + 30 * SAMPLE_RATE]
        top = model(values(extractor, chunk)).logits[0].topk(2).values
        if float((top[:, 0] - top[:, 1]).min()) < LONG_MARGIN:
            raise RetryError("the race is too close in the long clip")


def languages(model: Any, variant: Variant, plan: Plan, seed: int) -> Iterator[tuple[str, Any]]:
    """The model with each language's adapter after its own: (language, its tensors)."""
    width = model.config.hidden_size
    for index, language in enumerate(variant.languages[1:], start=1):
        model.lm_head = torch.nn.Linear(width, len(FRENCH))
        generator = torch.Generator().manual_seed(seed + index)
        for tensor in model._get_adapters().values():
            scale = 1.5 / tensor.shape[-1] ** 0.5 if tensor.dim() == 2 else 0.3
            tensor.copy_(rounded(scale * torch.randn(tensor.shape, generator=generator)))
        yield language, {name: t.clone() for name, t in model._get_adapters().items()}


def attempt(
    variant: Variant, plan: Plan, reader: Any, seed: int
) -> tuple[Any, Outputs, dict[str, Any], dict[str, Any]]:
    """The model, all its outputs, what does not fit into arrays, and the adapters."""
    extractor = reader.feature_extractor
    model = getattr(transformers, f"{variant.family}ForCTC")(config(variant, plan)).eval()
    randomise(model, seed)
    fit_head(model, extractor)
    clip = waveform(CLIP_SAMPLES[0], seed=0)
    logits = model(values(extractor, clip)).logits[0]
    check_margin(logits, "clip 0")
    best = logits.argmax(-1)
    starts = torch.nonzero(best != torch.cat([best[:1] * 0, best[:-1]]))[:, 0]
    check_variety(best[starts].tolist(), starts.tolist(), "clip 0")
    facts: dict[str, Any] = {"seed": seed, **transcript(model, reader, clip)}
    check_words(facts, least=3)
    out: Outputs = {}
    for count in samples_of(variant, plan):
        heard = values(extractor, waveform(count, seed=count))
        out[f"logits/{count}"] = model(heard).logits[0]
    if variant.long:
        samples = waveform(LONG_SAMPLES, seed=LONG_SEED)
        check_long(model, extractor, samples)
        facts["long"] = transcript(
            model, reader, samples, chunk_length_s=30, stride_length_s=(5, 5)
        )
        check_words(facts["long"], least=20)
    own = {name: t.clone() for name, t in model.state_dict().items()}
    own_head, adapters = model.lm_head, {}
    for language, tensors in languages(model, variant, plan, seed):
        adapters[language] = tensors
        heard = values(extractor, waveform(4_801, seed=4_801))
        out[f"adapter/{language}/4801"] = model(heard).logits[0]
    model.lm_head = own_head
    model.load_state_dict(own)
    return model, out, facts, adapters


def save_legacy(model: Any, reader: Any, folder: Path) -> None:
    """As older versions wrote it: a pickle, other names in the weight norm, two configurations."""
    model.config.save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)
    reader.feature_extractor.save_pretrained(folder)
    names = {
        "parametrizations.weight.original0": "weight_g",
        "parametrizations.weight.original1": "weight_v",
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        weights[name] = tensor
    torch.save(weights, folder / "pytorch_model.bin")
    path = folder / "config.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["architectures"] = [type(model).__name__]
    path.write_text(json.dumps(data, indent=2), encoding="utf-8")


def run(variant: Variant, plan: Plan, out: Path, folder: Path) -> None:
    reader = make_processor(variant, folder)
    start = SEED + 100_000 + 1000 * VARIANTS.index(variant)
    seeds = range(start, start + 1000)
    _, (model, arrays, facts, adapters) = first_good(seeds, partial(attempt, variant, plan, reader))
    target = out / variant.name
    target.mkdir()
    if variant.legacy:
        save_legacy(model, reader, target)
    else:
        size = sum(t.numel() * 4 for t in model.state_dict().values())
        model.save_pretrained(target, max_shard_size=size // 2 if variant.shards else "1GB")
        reader.save_pretrained(target)
    for language, tensors in adapters.items():
        save_file(tensors, target / f"adapter.{language}.safetensors", metadata={"format": "pt"})
    write_outputs(out, variant.name, arrays, facts)


def main() -> None:
    out, plan, only = parse_arguments(
        "Write the reference outputs of wav2vec 2.0 and its kin.", [v.name for v in VARIANTS]
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    for variant in VARIANTS:
        if variant.name in only:
            with tempfile.TemporaryDirectory() as name:
                run(variant, plan, out, Path(name))


if __name__ == "__main__":
    main()
