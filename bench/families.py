"""Speed and memory of other model families at their real size, against Transformers.

    python bench/families.py [wav2vec2-base] [wav2vec2-large] [whisper-tiny] [whisper-base]
                             [glm-asr-nano] [--rounds N] [--threads N] [--seconds S]
                             [--cpu-time] [--together]

Without a name it runs all but the last, which takes 20 GB of memory. Weights are random, so only
the speed is meaningful. Both sides process the same audio in turn, in one process, on the same
threads; then each processes one clip in a separate process for its peak memory. Prints a Markdown
table: seconds of audio per second, the best of the rounds, and the ratio.

With `--cpu-time` the seconds are CPU time over all threads, which depends less on other load. With
`--together` a batch is padded and computed at once, which is not the default on a CPU. Needs the
extra `families`. `stt_en_conformer_ctc_large` against NeMo is in
`bench/offline.py ctc --peers PYTHON`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CLIPS = sorted((ROOT / "examples" / "audio").glob("*.flac"))
SAMPLE_RATE = 16_000
BATCH = 8
SHORTEST, LONGER = 2.0, 0.5
"""Seconds of the first clip of a batch, and the increase from clip to clip."""
WINDOW_SECONDS = 28.0
"""The longest clip of models with one window."""
MODELS = ("wav2vec2-base", "wav2vec2-large", "whisper-tiny", "whisper-base", "glm-asr-nano")
WHISPER_SIZES = {"whisper-tiny": (384, 4, 6), "whisper-base": (512, 6, 8)}

Side = Callable[[], object]


def speech(seconds: float, offset: int = 0) -> Any:
    """The example clips over and over: float32 samples at 16 kHz."""
    import numpy as np

    from pianissimo.audio.io import load_audio

    clips = np.roll(np.concatenate([load_audio(path) for path in CLIPS]), -offset)
    count = round(seconds * SAMPLE_RATE)
    return np.tile(clips, -(-count // len(clips)))[:count]


# -- folders with random weights -------------------------------------------------------------------


def save_wav2vec2(folder: Path, large: bool) -> None:
    """The published shapes of wav2vec2-base-960h and wav2vec2-large-960h-lv60-self."""
    import torch
    import transformers

    options: dict[str, Any] = {"vocab_size": 32, "pad_token_id": 0}
    if large:
        options |= {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
        }
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**options))
    with torch.no_grad():
        model.lm_head.bias[0] += 0.5
    model.save_pretrained(folder)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVKXJQZ'"]
    vocabulary = {letter: id for id, letter in enumerate(letters)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)


def save_whisper(folder: Path, width: int, layers: int, heads: int) -> None:
    """The published shapes, with the tests' tokenizer of a few hundred pieces."""
    sys.path.insert(0, str(ROOT / "tests" / "unit" / "adapters"))
    from tiny_whisper import save_tiny_whisper

    save_tiny_whisper(
        folder,
        num_mel_bins=80,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_target_positions=448,
    )


def save_glm_asr(folder: Path) -> None:
    """The published shape of GLM-ASR-Nano-2512 but for the vocabulary."""
    sys.path.insert(0, str(ROOT / "tests" / "unit" / "adapters"))
    from tiny_glm_asr import save_tiny_glm_asr

    save_tiny_glm_asr(folder, real_size=True)


def save(name: str, folder: Path) -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if name.startswith("wav2vec2"):
        save_wav2vec2(folder, large=name.endswith("large"))
    elif name in WHISPER_SIZES:
        save_whisper(folder, *WHISPER_SIZES[name])
    else:
        save_glm_asr(folder)


# -- the two sides ---------------------------------------------------------------------------------


def our_ctc(folder: Path, clips: list[Any]) -> Side:
    """All clips, cut and joined where they are long, in batches by the rules of the package."""
    import pianissimo

    ours = pianissimo.load(folder, device="cpu")
    blocks = [[samples] for samples in clips]
    return lambda: list(ours.recognize(blocks, True))


def their_ctc(folder: Path, clips: list[Any]) -> Side:
    """The pipeline of Transformers, which takes one clip after the other."""
    import transformers

    pipe = transformers.pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    long = {"chunk_length_s": 30, "stride_length_s": (5, 5)}
    options = long if len(clips[0]) > 30 * SAMPLE_RATE else {}
    return lambda: [pipe(c.copy(), return_timestamps="word", **options) for c in clips]


def our_text(folder: Path, clips: list[Any], together: bool = False) -> Side:
    """The model alone, in batches by the rules of the package."""
    import pianissimo

    ours: Any = pianissimo.load(folder, device="cpu")
    module = sys.modules[type(ours).__module__]
    most = len(clips) if together else module.PIECES["cpu"]
    options = (False,) if hasattr(ours, "extractor") else ()
    groups = [clips[i : i + most] for i in range(0, len(clips), most)]
    return lambda: [ours._decode(group, *options) for group in groups]


def their_text(folder: Path, clips: list[Any]) -> Side:
    """`generate` of Transformers, which writes as many tokens for one clip after the other."""
    import torch

    import pianissimo

    model: Any = pianissimo.load(folder, device="cpu")  # the same network, loaded the same way
    whisper = hasattr(model, "extractor")
    results = model._decode(clips, False) if whisper else model._decode(clips)
    counts = [len(decoded.tokens) + 1 for decoded in results]

    @torch.inference_mode()
    def theirs() -> object:
        for samples, count in zip(clips, counts, strict=True):
            options = {"do_sample": False, "max_new_tokens": count, "min_new_tokens": count}
            if whisper:
                inputs = model.extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt")
                model.model.generate(inputs.input_features, task="transcribe", **options)
            else:
                inputs = model.processor.apply_transcription_request([samples])
                model.model.generate(**inputs, **options)
        return None

    return theirs


def make_side(name: str, index: int, folder: Path, clips: list[Any], together: bool) -> Side:
    """The side of pianissimo (0) or of Transformers (1)."""
    if is_ctc(name):
        return (our_ctc, their_ctc)[index](folder, clips)
    return their_text(folder, clips) if index else our_text(folder, clips, together)


def is_ctc(name: str) -> bool:
    return name.startswith("wav2vec2")


def one_clip(name: str, seconds: float) -> Any:
    return speech(seconds if is_ctc(name) else min(WINDOW_SECONDS, seconds))


def measure(
    name: str, folder: Path, clips: list[Any], options: argparse.Namespace
) -> tuple[float, float]:
    """Seconds of audio per second: the best round of each side, taken in turn."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    both = [make_side(name, index, folder, clips, options.together) for index in (0, 1)]
    best = [float("inf"), float("inf")]
    for side in both:
        side()  # warm-up
    for _ in range(options.rounds):
        for i, side in enumerate(both):
            began = clock()
            side()
            best[i] = min(best[i], clock() - began)
    seconds = sum(map(len, clips)) / SAMPLE_RATE
    return seconds / best[0], seconds / best[1]


def peak_mib() -> float:
    """The most memory that this program was resident with, in MiB (Linux)."""
    # Not ru_maxrss: a child begins with that of the process that started it.
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM")


def peaks(name: str, folder: Path, options: argparse.Namespace) -> tuple[float, ...]:
    """Peak memory in MiB of each side alone, on one clip."""
    command = [sys.executable, __file__, name, "--folder", str(folder)]
    command += ["--seconds", str(options.seconds), "--threads", str(options.threads)]
    peaks = []
    for side in ("0", "1"):
        done = subprocess.run(
            [*command, "--side", side], check=True, capture_output=True, text=True
        )
        peaks.append(float(done.stdout.split()[-1]))
    return tuple(peaks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--together", action="store_true")
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(options.threads)
    if options.together:
        from pianissimo.recognizers import wav2vec2 as ctc_family

        ctc_family.GROUP_SECONDS["cpu"] = float("inf")
    if options.side is not None:
        [name] = options.models
        make_side(name, options.side, options.folder, [one_clip(name, options.seconds)], False)()
        print(peak_mib())
        return
    print("| model | audio | pianissimo | Transformers | ratio | MiB | MiB, Transformers |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.models or MODELS[:-1]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.mkdir()
            save(name, path)
            one = [one_clip(name, options.seconds)]
            several = [speech(SHORTEST + LONGER * i, offset=20_000 * i) for i in range(BATCH)]
            memory = " | ".join(f"{mib:,.0f}" for mib in peaks(name, path, options))
            for clips in (one,) if name == "glm-asr-nano" else (one, several):
                ours, theirs = measure(name, path, clips, options)
                audio = f"{len(clips)} x {sum(map(len, clips)) / len(clips) / SAMPLE_RATE:.1f} s"
                shown = f"{ours:.2f} | {theirs:.2f} | {ours / theirs:.2f}"
                print(f"| {name} | {audio} | {shown} | {memory} |", flush=True)
                memory = " | "


if __name__ == "__main__":
    main()
