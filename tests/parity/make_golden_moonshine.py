"""Make the golden files of Moonshine Streaming.

    .venv-parity/bin/python tests/parity/make_golden_moonshine.py [OUT]

Needs Transformers, from 5.24 on; the same versions give the same bytes. Each model is tiny and
random: nothing was trained, recorded or taken from a published model.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    MoonshineStreamingConfig,
    MoonshineStreamingEncoderConfig,
    MoonshineStreamingForConditionalGeneration,
)

GOLDEN = Path(__file__).parent / "golden_moonshine"
FRAME = 80
LENGTHS = (80, 640, 5 * FRAME, 3_201, 8 * FRAME + 1, 12_345, 24_000)
"""Samples: of one frame, whole encoder frames, and ends inside of a frame of either parity."""
PIECES = (
    *("<unk>", "<s>", "</s>"),
    *(f"<0x{value:02X}>" for value in range(16)),
    *(
        f"{space}{syllable}"
        for space in ("▁", "")
        for syllable in "ba be bi bo bu da de di".split()
    ),
    *(".", ",", "▁", "字"),
)
README = f"""# Golden files of Moonshine Streaming

Tiny random models as Transformers {transformers.__version__} saves them, and what it computes with
them: `test_golden_moonshine.py` compares ours without needing Transformers. Made by
`make_golden_moonshine.py`, never by hand.

By length in samples: `encoded_N` are the encoder's frames, `logits_N` those of the decoder behind
`tokens_N`, and `ids_N` what greedy `generate` writes.
"""


def tokenizer_json() -> str:
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    special = [
        {"id": i, "content": PIECES[i], "special": True, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
        for i in range(3)
    ]  # fmt: skip
    model = {
        "type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": vocabulary,
        "merges": [],
    }  # fmt: skip
    return json.dumps({"version": "1.0", "added_tokens": special, "model": model})


def make(out: Path, name: str, seed: int, windows: list[list[int]], **options: object) -> None:
    torch.manual_seed(seed)
    encoder = MoonshineStreamingEncoderConfig(
        hidden_size=int(options.pop("encoder_size", 32)),  # type: ignore[call-overload]
        intermediate_size=48,
        num_hidden_layers=len(windows),
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1500,
        sliding_windows=windows,
    )
    config = MoonshineStreamingConfig(
        encoder_config=encoder,
        vocab_size=len(PIECES),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1500,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **options,
    )
    model = MoonshineStreamingForConditionalGeneration(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(torch.randn(weight.shape) * (0.3 if weight.dim() > 1 else 0.2))
            if key.endswith("norm.weight") or key.endswith("layernorm.weight"):
                weight.add_(1.0)
        model.model.encoder.embedder.comp.log_k.fill_(-0.3)
    folder = out / name
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_normalize": False,
                "feature_extractor_type": "Wav2Vec2FeatureExtractor",
                "feature_size": 1,
                "padding_value": 0.0,
                "return_attention_mask": True,
                "sampling_rate": 16000,
            }
        )
    )
    arrays: dict[str, np.ndarray] = {}
    sound = np.random.default_rng(seed).normal(0, 0.1, max(LENGTHS)).astype(np.float32)
    sound *= 1 + np.sin(np.arange(len(sound)) / 900, dtype=np.float32)
    arrays["sound"] = sound
    for length in LENGTHS:
        padded = -(-length // FRAME) * FRAME
        samples = torch.zeros(1, padded)
        samples[0, :length] = torch.from_numpy(sound[:length])
        mask = (torch.arange(padded) < length).long()[None]
        tokens = torch.tensor([[1, 20, 27, 33, 21, 36]])
        with torch.inference_mode():
            encoded = model.model.encoder(samples, attention_mask=mask).last_hidden_state.clone()
            logits = model(samples, attention_mask=mask, decoder_input_ids=tokens).logits
            ids = model.generate(samples, attention_mask=mask, max_new_tokens=24, do_sample=False)
        arrays |= {
            f"encoded_{length}": encoded[0].numpy(),
            f"tokens_{length}": tokens[0].numpy(),
            f"logits_{length}": logits[0].numpy(),
            f"ids_{length}": ids[0].numpy(),
        }
        print(name, length, tuple(encoded.shape), ids[0].tolist())
    np.savez_compressed(out / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    for path in folder.iterdir():
        path.chmod(0o644)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    make(out, "streaming", 3, [[5, 3], [4, 0], [6, 2]], encoder_size=24)
    make(out, "streaming_tied", 4, [[4, 2], [3, 1]], tie_word_embeddings=True, attention_bias=True)
    (out / "README.md").write_text(README, encoding="utf-8")


if __name__ == "__main__":
    main()
