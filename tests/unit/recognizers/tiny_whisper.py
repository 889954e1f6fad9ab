"""A Whisper of a few thousand random weights, saved as Transformers saves one."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel

LANGUAGES = ("en", "de", "zh")
SEED = 3


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte, and a few letters that follow each other with a space before them."""
    pieces = sorted(ByteLevel.alphabet())
    merges = [("Ġ", letter) for letter in "abcdefghijklmnopqrstuvwxyz"]
    symbols = [*pieces, *("".join(pair) for pair in merges)]
    return {symbol: id for id, symbol in enumerate(symbols)}, merges


def save_tiny_whisper(
    folder: Path,
    *,
    multilingual: bool = True,
    empty_piece: bool = False,
    seed: int = SEED,
    **changes: int,
) -> Any:
    """Write the folder; returns the model of Transformers. `changes` go to its configuration.

    `empty_piece` adds one to the vocabulary, as the published multilingual models have it.
    """
    import transformers

    transformers.logging.disable_progress_bar()
    vocab, merges = vocabulary()
    if empty_piece:
        vocab[""] = len(vocab)
    tokenizer = transformers.WhisperTokenizer(vocab=vocab, merges=merges)
    languages = LANGUAGES if multilingual else ()
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in languages),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(1501)])
    id_of = tokenizer.convert_tokens_to_ids
    end = id_of("<|endoftext|>")
    options: dict[str, Any] = {
        "num_mel_bins": 16,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_source_positions": 1500,
        "max_target_positions": 96,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=id_of("<|startoftranscript|>"),
        **options | changes,
    )
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder.embed_positions" not in name:
                parameter.add_(0.15 * torch.randn_like(parameter))
        # Letters that change from place to place and with the sound; other tokens are rare.
        model.model.decoder.embed_positions.weight.normal_().mul_(8.0)
        for layer in model.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.mul_(20.0)
        embedding = model.model.decoder.embed_tokens.weight
        embedding.normal_().mul_(0.3)
        letters = [vocab[letter] for letter in "abcdefghijklmnopqrstuvwxyz"]
        embedding[[*letters, *range(256, 256 + len(merges))]] *= 6.0
        embedding[end] *= 4.0
    generation: dict[str, Any] = {
        "bos_token_id": end,
        "pad_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": config.decoder_start_token_id,
        "no_timestamps_token_id": id_of("<|notimestamps|>"),
        "is_multilingual": multilingual,
        "suppress_tokens": [id_of("<|startoflm|>"), id_of("<|startofprev|>")],
        "begin_suppress_tokens": [vocab["Ġ"], end],
        "max_length": config.max_target_positions,
    }
    if multilingual:
        generation["lang_to_id"] = {f"<|{code}|>": id_of(f"<|{code}|>") for code in LANGUAGES}
        generation["task_to_id"] = {
            "transcribe": id_of("<|transcribe|>"),
            "translate": id_of("<|translate|>"),
        }
    model.generation_config = transformers.GenerationConfig(**generation)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    return model
