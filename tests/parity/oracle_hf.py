"""Transformers as oracle: tiny random models in their official folder layout, and their numbers.

Runs in the oracle environment (`requirements.txt`), never in ours:

    python oracle_hf.py OUT [--plan golden|full] [--only VARIANT ...]

writes for each variant the folder OUT/VARIANT, OUT/VARIANT.npz and OUT/VARIANT.json. The keys of
the arrays are those of `oracle_nemo.py`, except:

    stream/R/T            (T', D)       T is what fills whole chunks; there is no end of stream
    greedy/R/C/...        tokens, frames (and durations); Transformers tells no score
    ctc/R/C/...           log_probs, tokens, frames; no score
"""

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from oracle_common import (
    WARM_UP,
    Outputs,
    add_toggle,
    calibrate,
    check_margin,
    check_variety,
    clip_waveforms,
    first_good,
    mel_batch,
    parse_arguments,
    randomise,
    seeds_of,
    spread,
    spread_joiner,
    train_tokenizer,
    write_outputs,
)
from parity_inputs import SAMPLE_RATE, VOCABULARY, Floats, Plan, mel, waveform
from torch import Tensor
from transformers.convert_slow_tokenizer import ParakeetConverter

BLANK = VOCABULARY
PROMPT = 3


@dataclass(frozen=True)
class Variant:
    """One checkpoint family: how it differs from the Nemotron streaming layout."""

    name: str
    family: str = "NemotronAsrStreaming"
    head: str = "RNNT"
    mels: int = 128
    bias: bool = False
    scaling: bool = False
    left: int = 70
    lookaheads: tuple[int, ...] = (13, 6, 1, 0)
    predictor_layers: int = 2
    durations: tuple[int, ...] = ()
    prompts: int = 0

    @property
    def streaming(self) -> bool:
        return self.family != "Parakeet"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(map(str, self.lookaheads)) if self.streaming else ("full",)

    @property
    def features(self) -> str:
        return "NemotronAsrStreaming" if self.streaming else "Parakeet"


VARIANTS = (
    Variant("nemotron"),
    Variant(
        "nemotron_bias",
        mels=80,
        bias=True,
        scaling=True,
        left=56,
        lookaheads=(3, 0, 6, 13),
        predictor_layers=1,
    ),
    Variant("nemotron35", family="Nemotron3_5Asr", left=56, lookaheads=(3, 0, 6, 13), prompts=8),
    Variant("parakeet_ctc", family="Parakeet", head="CTC", mels=80, bias=True, scaling=True),
    Variant("parakeet_rnnt", family="Parakeet", mels=80, bias=True, scaling=True),
    Variant("parakeet_tdt", family="Parakeet", head="TDT", durations=(0, 1, 2, 3, 4)),
)


# --------------------------------------------------------------------------------------- building


def kind(name: str) -> Any:
    return getattr(transformers, name)


def config(variant: Variant, plan: Plan) -> Any:
    encoder: dict[str, Any] = {
        "hidden_size": plan.width,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": plan.heads,
        "intermediate_size": plan.expansion * plan.width,
        "subsampling_conv_channels": plan.channels,
        "num_mel_bins": variant.mels,
        "attention_bias": variant.bias,
        "convolution_bias": variant.bias,
        "scale_input": variant.scaling,
    }
    if variant.streaming:
        encoder["sliding_window"] = variant.left + 1
        encoder["default_num_lookahead_tokens"] = variant.lookaheads[0]
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY + 1,
        "encoder_config": kind(f"{variant.features}EncoderConfig")(**encoder),
        "pad_token_id": BLANK if variant.head == "CTC" else 0,
    }
    if variant.head != "CTC":
        options |= {
            "blank_token_id": BLANK,
            "decoder_hidden_size": plan.predictor,
            "num_decoder_layers": variant.predictor_layers,
        }
    if variant.durations:
        options["durations"] = list(variant.durations)
    if variant.prompts:
        options |= {
            "num_prompts": variant.prompts,
            "prompt_intermediate_size": 2 * plan.width,
            "default_prompt_id": 5,
        }
    head = "" if variant.streaming else variant.head
    return kind(f"{variant.family}{head}Config")(**options)


def create(variant: Variant, plan: Plan) -> Any:
    model = kind(f"{variant.family}For{variant.head}")(config(variant, plan)).eval()
    if variant.head != "CTC":
        model.generation_config.decoder_start_token_id = BLANK
    if variant.durations:
        labels = model.config.vocab_size
        model.generation_config.suppress_tokens = [labels + i for i in range(5)]
    return model


def build(variant: Variant, plan: Plan, extractor: Any, seed: int) -> Any:
    """The model in evaluation mode, random, its heads fitted to clip 0."""
    model = create(variant, plan)
    randomise(model, seed)
    signal = features(extractor, clip_waveforms()[:1])
    encoded, counts = encode(model, variant, variant.names[0], *signal)
    if variant.prompts:
        encoded = prompted(model, encoded, variant.prompts)
    frames = encoded[0, WARM_UP : int(counts[0])]
    if variant.head == "CTC":
        spread(model.ctc_head, frames, 2.0)

        def count_ctc() -> int:
            labels = model(*signal).logits[0].argmax(-1)
            return int((labels.unique_consecutive() != BLANK).sum())

        calibrate(count_ctc, model.ctc_head.bias, BLANK)
        return model
    decoder, head = model.decoder, model.joint.head
    add_toggle(decoder.lstm)
    history = torch.randint(BLANK, (1, 40), generator=torch.Generator().manual_seed(seed))
    predicted, _ = decoder.lstm(decoder.embedding(torch.cat([history * 0 + BLANK, history], 1)))
    spread_joiner(frames, model.encoder_projector, predicted[0], decoder.decoder_projector, head)
    head.bias[BLANK + 1 :][:1] -= 1.0  # a duration of 0 is rare in practice

    def count() -> int:
        return len(generate(model, variant, variant.names[0], *signal)["tokens"])

    calibrate(count, head.bias, BLANK)
    return model


def processor(variant: Variant, folder: Path) -> Any:
    """Feature extractor and tokenizer, the latter converted as for the published checkpoints."""
    special = transformers.AddedToken
    tokenizer = transformers.ParakeetTokenizer(
        tokenizer_object=ParakeetConverter(str(folder / "tokenizer.model")).converted(),
        clean_up_tokenization_spaces=False,
    )
    extra = "<pad>" if variant.head == "CTC" else "<blank>"
    tokenizer.add_tokens([special(extra, normalized=False, special=True)])
    pad = {"CTC": "<pad>", "TDT": "<pad>", "RNNT": "<blank>"}[variant.head]
    pad = "<unk>" if variant.streaming else pad
    tokenizer.add_special_tokens(
        {
            "pad_token": special(pad, normalized=False, special=True),
            "unk_token": special("<unk>", normalized=False, special=True),
        }
    )
    assert tokenizer.convert_tokens_to_ids(extra) == BLANK
    extractor = kind(f"{variant.features}FeatureExtractor")(feature_size=variant.mels)
    if not variant.streaming:
        return kind("ParakeetProcessor")(extractor, tokenizer, decoder_type=variant.head.lower())
    return kind(f"{variant.family}Processor")(
        extractor, tokenizer, supported_num_lookahead_tokens=list(variant.lookaheads)
    )


# -------------------------------------------------------------------------------------- computing


def features(extractor: Any, rows: list[Floats]) -> tuple[Tensor, Tensor]:
    """(B, T, F) and the attention mask (B, T), true on valid frames."""
    out = extractor([*rows], sampling_rate=SAMPLE_RATE, return_tensors="pt")
    return out["input_features"], out["attention_mask"]


def full_mask(frames: Tensor) -> Tensor:
    return torch.ones(frames.shape[:2], dtype=torch.bool)


def lookahead(variant: Variant, name: str) -> dict[str, int]:
    return {"num_lookahead_tokens": int(name)} if variant.streaming else {}


def encode(
    model: Any, variant: Variant, name: str, frames: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, T, F) -> (B, T', D) and valid lengths (B)."""
    out = model.encoder(input_features=frames, attention_mask=mask, **lookahead(variant, name))
    return out.last_hidden_state, out.attention_mask.sum(-1)


def prompted(model: Any, encoded: Tensor, prompts: int) -> Tensor:
    one_hot = torch.zeros(*encoded.shape[:2], prompts)
    one_hot[..., PROMPT] = 1
    return model.prompt_projector(torch.cat([encoded, one_hot], dim=-1))


def stream(model: Any, name: str, frames: Tensor) -> Iterator[Tensor]:
    """Cache-aware streaming of whole chunks of one utterance (T, F): outputs (t, D)."""
    right, start = int(name), 0
    past, padding = None, None
    while start < len(frames):
        end = start + (8 * (right + 1) if start else 1 + 8 * right)
        out = model.encoder(
            input_features=frames[None, start:end],
            past_key_values=past,
            padding_cache=padding,
            use_cache=True,
            num_lookahead_tokens=right,
        )
        past, padding, start = out.past_key_values, out.padding_cache, end
        yield out.last_hidden_state[0]


def generate(model: Any, variant: Variant, name: str, frames: Tensor, mask: Tensor) -> Outputs:
    """Greedy search of one utterance: tokens, frames, durations where the model has them."""
    options = lookahead(variant, name)
    if variant.prompts:
        options["prompt_ids"] = torch.tensor([PROMPT])
    out = model.generate(input_features=frames, attention_mask=mask, **options)
    steps, durations = out.sequences[0, 1:], out.durations[0, 1:]
    at = durations.cumsum(0) - durations
    kept = steps != BLANK
    result = {"tokens": steps[kept].numpy(), "frames": at[kept].numpy()}
    return result | ({"durations": durations[kept].numpy()} if variant.durations else {})


# ------------------------------------------------------------------------------------ the outputs


def feature_outputs(extractor: Any, plan: Plan, streaming: bool) -> Outputs:
    out: Outputs = {}
    for samples in plan.feature_samples:
        if streaming or samples >= 320:  # one frame or none defeats the normalization
            frames, _ = features(extractor, [waveform(samples, seed=samples)])
            out[f"features/{samples}"] = frames[0]
    return out


def encoder_outputs(model: Any, variant: Variant, plan: Plan) -> Outputs:
    out: Outputs = {}
    encoder = model.encoder
    for count in plan.subsampling_frames:
        frames = torch.from_numpy(mel(count, variant.mels, seed=count))[None]
        out[f"subsampling/{count}"] = encoder.subsampling(frames, full_mask(frames))[0]
    # The padding must be zeros here: what reaches the first convolution is not masked.
    batch, lengths = mel_batch(plan.encoder_batch, variant.mels, padding=0.0)
    mask = torch.arange(batch.shape[1]) < lengths[:, None]
    for name in variant.names[:1] if variant.prompts else variant.names:
        for count in plan.encoder_frames:
            frames = torch.from_numpy(mel(count, variant.mels, seed=count))[None]
            encoded, _ = encode(model, variant, name, frames, full_mask(frames))
            out[f"encoder/{name}/{count}"] = encoded[0]
            if variant.prompts:
                out[f"prompted/{count}"] = prompted(model, encoded, variant.prompts)[0]
        encoded, counts = encode(model, variant, name, batch, mask)
        out |= {f"encoder/{name}/batch": encoded, f"encoder/{name}/batch_counts": counts}
        for longest in plan.stream_frames if variant.streaming else ():
            chunk = 8 * (int(name) + 1)
            count = longest - (longest - 1 - 8 * int(name)) % chunk
            frames = torch.from_numpy(mel(count, variant.mels, seed=count))
            out[f"stream/{name}/{count}"] = torch.cat(list(stream(model, name, frames)))
    return out


def predictor_outputs(model: Any, plan: Plan) -> Outputs:
    decoder = model.decoder
    tokens = torch.tensor([[3, 17, 3, 39, 0, 5], [21, 8, 8, 1, 30, 12]])
    history = torch.cat([torch.full((2, 1), BLANK), tokens], dim=1)
    predicted, (hidden, cell) = decoder.lstm(decoder.embedding(history))
    encoded = torch.from_numpy(mel(4, plan.width, seed=4))
    logits = model.joint(
        decoder_hidden_states=decoder.decoder_projector(predicted[0])[None],
        encoder_hidden_states=model.encoder_projector(encoded)[:, None],
    )
    return {
        "predictor/tokens": tokens,
        "predictor/out": predicted,
        "predictor/hidden": hidden,
        "predictor/cell": cell,
        "joiner/encoded": encoded,
        "joiner/logits": logits,
    }


def check_path(model: Any, variant: Variant, encoded: Tensor, found: Outputs, what: str) -> None:
    """No close race on the path that the search took."""
    decoder = model.decoder
    labels = torch.tensor([[BLANK, *found["tokens"].tolist()]])
    predicted = decoder.decoder_projector(decoder.lstm(decoder.embedding(labels))[0])[0]
    projected = model.encoder_projector(encoded)
    rows, t = [], 0
    starts = [*found["frames"].tolist(), len(encoded)]
    for label, start in enumerate(starts):
        rows += [(frame, label) for frame in range(t, min(start + 1, len(encoded)))]
        t = start
    frames, states = torch.tensor(rows).T
    logits = model.joint(
        decoder_hidden_states=predicted[states], encoder_hidden_states=projected[frames]
    )
    check_margin(logits[:, : BLANK + 1], what)
    if variant.durations:
        check_margin(logits[:, BLANK + 1 :], what)


def greedy_outputs(model: Any, variant: Variant, reader: Any) -> tuple[Outputs, dict[str, Any]]:
    out: Outputs = {}
    notes: dict[str, Any] = {}
    for name in variant.names:
        for clip, samples in enumerate(clip_waveforms()):
            what = f"clip {clip} at lookahead {name}"
            signal = features(reader.feature_extractor, [samples])
            found = generate(model, variant, name, *signal)
            check_variety(found["tokens"].tolist(), found["frames"].tolist(), what)
            encoded, counts = encode(model, variant, name, *signal)
            if variant.prompts:
                encoded = prompted(model, encoded, variant.prompts)
            check_path(model, variant, encoded[0, : int(counts[0])], found, what)
            out |= {f"greedy/{name}/{clip}/{part}": value for part, value in found.items()}
            text = reader.decode(found["tokens"], skip_special_tokens=True)
            notes[f"greedy/{name}/{clip}"] = {"text": text}
    return out, notes


def ctc_outputs(model: Any, variant: Variant, reader: Any) -> tuple[Outputs, dict[str, Any]]:
    out: Outputs = {}
    notes: dict[str, Any] = {}
    for clip, samples in enumerate(clip_waveforms()):
        frames, mask = features(reader.feature_extractor, [samples])
        logits = model(frames, mask).logits[0]
        labels = model.generate(frames, mask)[0]
        count = int(encode(model, variant, "full", frames, mask)[1][0])
        check_margin(logits[:count], f"CTC of clip {clip}")
        labels = labels[:count]
        before = torch.cat([torch.tensor([BLANK]), labels[:-1]])
        starts = torch.nonzero((labels != BLANK) & (labels != before))[:, 0]
        check_variety(labels[starts].tolist(), starts.tolist(), f"CTC of clip {clip}")
        key = f"ctc/full/{clip}"
        out[f"{key}/log_probs"] = logits[:count].log_softmax(-1)
        out[f"{key}/tokens"] = labels[starts]
        out[f"{key}/frames"] = starts
        notes[key] = {"text": reader.decode(labels, skip_special_tokens=True)}
    return out, notes


def attempt(
    variant: Variant, plan: Plan, reader: Any, seed: int
) -> tuple[Any, Outputs, dict[str, Any]]:
    """The model, all its outputs, and what does not fit into arrays."""
    model = build(variant, plan, reader.feature_extractor, seed)
    if variant.head == "CTC":
        out, notes = ctc_outputs(model, variant, reader)
    else:
        out, notes = greedy_outputs(model, variant, reader)
        out |= predictor_outputs(model, plan)
    out |= feature_outputs(reader.feature_extractor, plan, variant.streaming)
    return model, out | encoder_outputs(model, variant, plan), notes


def run(variant: Variant, plan: Plan, out: Path, folder: Path) -> None:
    plan = plan.lighter()
    reader = processor(variant, folder / ("pad" if variant.head == "TDT" else "plain"))
    seeds = seeds_of(variant.name, 20 + VARIANTS.index(variant), plan)
    seed, (model, arrays, notes) = first_good(seeds, partial(attempt, variant, plan, reader))
    model.save_pretrained(out / variant.name)
    reader.save_pretrained(out / variant.name)
    facts = {
        "seed": seed,
        "lookaheads": list(variant.lookaheads) if variant.streaming else ["full"],
        "left_context": variant.left if variant.streaming else -1,
        "mels": variant.mels,
        "feature_batch": plan.feature_batch,
        "encoder_batch": plan.encoder_batch,
        "prompt": PROMPT if variant.prompts else None,
        "notes": notes,
    }
    write_outputs(out, variant.name, {key: np.asarray(a) for key, a in arrays.items()}, facts)


def main() -> None:
    out, plan, only = parse_arguments(
        "Write Transformers' reference outputs.", [variant.name for variant in VARIANTS]
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "Using the model-agnostic default `max_length`")
    with tempfile.TemporaryDirectory() as name:
        train_tokenizer(Path(name) / "plain")
        train_tokenizer(Path(name) / "pad", special=("<pad>",))
        for variant in VARIANTS:
            if variant.name in only:
                run(variant, plan, out, Path(name))


if __name__ == "__main__":
    main()
