"""A GLM-ASR of a few thousand random weights, saved as Transformers saves one."""

from pathlib import Path
from typing import Any

import torch
from tiny_whisper import vocabulary
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = (
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_audio|>",
    "<|end_of_audio|>",
    "<|pad|>",
)
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|begin_of_audio|><|pad|><|end_of_audio|><|user|>{{ '\\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
)


def save_tiny_glm_asr(folder: Path, *, seed: int = 5, real_size: bool = False) -> Any:
    """Write the folder; returns the model of Transformers that is in it.

    `real_size` takes the published widths and depths, for benches.
    """
    import transformers

    transformers.logging.disable_progress_bar()
    vocab, merges = vocabulary()
    plain = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain)
    tokenizer.add_special_tokens(
        {
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": list(SPECIAL[1:]),
        }
    )
    id_of = tokenizer.convert_tokens_to_ids
    ends = [id_of(token) for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    audio: dict[str, Any] = {"model_type": "glmasr_encoder", "num_mel_bins": 128}
    text: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "eos_token_id": ends,
    }
    if not real_size:
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
        audio |= heads | {"hidden_size": 16, "intermediate_size": 64}
        text |= heads | {"hidden_size": 24, "intermediate_size": 48, "num_key_value_heads": 1}
        text["max_position_embeddings"] = 1024
    config = transformers.GlmAsrConfig(
        audio_config=audio,
        text_config=text,
        audio_token_id=id_of("<|pad|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = transformers.GlmAsrForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.lm_head.weight.normal_().mul_(0.3)
        letters = [vocab[letter] for letter in "abcdefghijklmnopqrstuvwxyz"]
        model.lm_head.weight[[*letters, *range(256, len(vocab))]] *= 5.0
        model.lm_head.weight[ends[0]] *= 4.0
    model.generation_config = transformers.GenerationConfig(eos_token_id=ends, pad_token_id=ends[0])
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor = transformers.GlmAsrProcessor(
        transformers.WhisperFeatureExtractor(feature_size=128), tokenizer, chat_template=TEMPLATE
    )
    processor.save_pretrained(folder)
    return model
