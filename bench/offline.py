"""Speed and memory of transcribing files, and word error rates of the embedded model.

    python bench/offline.py [speed] [ctc] [memory] [start] [errors --data MANIFEST]
        [--peers PYTHON]

Without a part it runs all that are possible. `speed` and `memory` use the 0.6B architecture with
random weights, `ctc` that of NeMo's `stt_en_conformer_ctc_large`; `--peers` is
the Python of an environment with NeMo and Transformers (that of `make parity`), then timed in turn
with pianissimo on the same audio and threads.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

THREADS = 2
SPEED_SECONDS = 60
ROUNDS = 3
CLIPS = sorted((Path(__file__).parents[1] / "examples" / "audio").glob("*.flac"))
PEERS = Path(__file__).parent / "peers" / "offline_peer.py"


def nemotron_config():
    """The published shape of Nemotron Speech Streaming EN 0.6B."""
    from pianissimo.audio.features import FeatureConfig
    from pianissimo.models.asr import AsrConfig
    from pianissimo.models.fastconformer import EncoderConfig
    from pianissimo.models.transducer import TransducerConfig

    return AsrConfig(1024, FeatureConfig(), EncoderConfig(), TransducerConfig(1024))


def conformer_ctc_config():
    """The published shape of NeMo's `stt_en_conformer_ctc_large`, 121 M weights."""
    from pianissimo.audio.features import FeatureConfig
    from pianissimo.models.asr import AsrConfig
    from pianissimo.models.fastconformer import EncoderConfig

    encoder = EncoderConfig(
        n_mels=80,
        dim=512,
        layers=18,
        heads=8,
        ff_dim=2048,
        conv_kernel=31,
        conv_norm="folded",
        causal_conv=False,
        subsampling_factor=4,
        subsampling_channels=512,
        depthwise_subsampling=False,
        causal_subsampling=False,
        attention_bias=True,
        conv_bias=True,
        scale_input=True,
        left_context=None,
        lookaheads=(),
    )
    return AsrConfig(128, FeatureConfig(n_mels=80, normalize="per_feature"), encoder, ctc=True)


def random_model(config):
    """Random weights; a transducer's blank is likely enough for a few tokens a second."""
    import torch

    from pianissimo.models.asr import AsrModel

    torch.manual_seed(0)
    model = AsrModel(config).eval()
    if model.joiner is not None:
        with torch.no_grad():
            model.joiner.out.bias[-1] = 3.0
    return model


def speech(seconds: float):
    """The example clips over and over: float32 samples at 16 kHz."""
    import numpy as np

    from pianissimo.audio.io import SAMPLE_RATE, load_audio

    clips = np.concatenate([load_audio(path) for path in CLIPS])
    count = round(seconds * SAMPLE_RATE)
    return np.tile(clips, -(-count // len(clips)))[:count]


def recognizer(config=None):
    """A recognizer with a random model, 0.6B by default, and a tokenizer of random pieces."""
    import io

    import sentencepiece

    from pianissimo.recognizers.fastconformer import NativeRecognizer
    from pianissimo.text.tokenizer import Tokenizer

    config = config or nemotron_config()
    out = io.BytesIO()
    words = [chr(97 + i % 26) + chr(97 + i // 26 % 26) + chr(97 + i // 676) for i in range(1400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 2),
        model_writer=out,
        vocab_size=config.vocab_size,
        model_type="bpe",
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return NativeRecognizer(random_model(config), Tokenizer.from_sentencepiece(out.getvalue()))


def resident_mib() -> float:
    """Resident memory of this process now, in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def bench_speed(peers: str | None) -> dict[str, object]:
    """Seconds to transcribe 60 s of audio at 0.6B, float32, offline at the longest lookahead."""
    return in_turn(nemotron_config(), peers, ("nemo", "transformers"))


def bench_ctc(peers: str | None) -> dict[str, object]:
    """Seconds to transcribe 60 s of audio with a large Conformer and a CTC head, float32."""
    return in_turn(conformer_ctc_config(), peers, ("nemo-ctc",))


def in_turn(config, peers: str | None, names: tuple[str, ...]) -> dict[str, object]:
    """Median seconds of pianissimo and of each peer, in turn in every round."""
    import numpy as np
    import torch

    torch.set_num_threads(THREADS)
    ours = recognizer(config)
    samples = speech(SPEED_SECONDS)
    times: dict[str, list[float]] = {"pianissimo": []}
    workers: dict[str, subprocess.Popen[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if peers:
            np.save(f"{folder}/samples.npy", samples)
            for name in names:
                workers[name] = subprocess.Popen(
                    [peers, str(PEERS), name, f"{folder}/samples.npy", str(THREADS)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                assert workers[name].stdout is not None
                workers[name].stdout.readline()  # loaded and warmed up
                times[name] = []
        ours.transcribe(samples, sample_rate=16000)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            ours.transcribe(samples, sample_rate=16000)
            times["pianissimo"].append(time.perf_counter() - began)
            for name, worker in workers.items():
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                times[name].append(float(worker.stdout.readline()))
        for worker in workers.values():
            worker.terminate()
    return {name: statistics.median(t) for name, t in times.items()}


def bench_memory() -> dict[str, object]:
    """Peak memory above the loaded 0.6B model while an hour of audio is transcribed."""
    import torch

    torch.set_num_threads(THREADS)
    ours = recognizer()
    import numpy as np
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/hour.wav"
        minute = (speech(60) * 32767).astype(np.int16)
        with soundfile.SoundFile(path, "w", 16000, 1) as file:
            for _ in range(int(os.environ.get("BENCH_MINUTES", "60"))):
                file.write(minute)
        ours.transcribe(speech(1), sample_rate=16000)
        before = resident_mib()
        began = time.perf_counter()
        transcript = ours.transcribe(path)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "minutes": transcript.duration / 60,
        "model MiB": round(before),
        "peak over model MiB": round(peak - before),
        "wall s": round(seconds, 1),
    }


def bench_start() -> dict[str, object]:
    """Seconds to import the package, and to transcribe a clip from a cold start."""
    quiet = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}

    def median(command: list[str]) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=quiet)
            times.append(time.perf_counter() - began)
        return round(statistics.median(times), 2)

    bare = median([sys.executable, "-c", "pass"])
    imported = median([sys.executable, "-c", "import pianissimo"])
    clip = [sys.executable, "-m", "pianissimo", "transcribe", str(CLIPS[0])]
    return {"import s": round(imported - bare, 3), "transcribe a clip s": median(clip)}


def bench_errors(manifest: Path) -> dict[str, object]:
    """Word error rates of the embedded model per subset and latency mode, in percent."""
    import pianissimo
    from pianissimo.evaluate.run import evaluate, read_references

    references = read_references(manifest)
    english = [r for r in references if r.subset not in OTHER_LANGUAGES]
    rec = pianissimo.load("embedded-commands")
    table: dict[str, object] = {}
    for done in evaluate(rec, english, latencies_ms=rec.latencies_ms):
        for score in (*done.scores, done.total):
            row = table.setdefault(score.subset, {})
            assert isinstance(row, dict)
            row[f"{done.latency_ms} ms"] = round(100 * score.errors.rate, 1)
    return table


OTHER_LANGUAGES = ("mandarin", "cantonese", "cantonese-syllables", "other-languages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="speed, ctc, memory, start, errors")
    parser.add_argument("--data", type=Path, help="manifest with recordings to score")
    parser.add_argument("--peers", help="Python of an environment with NeMo and Transformers")
    options = parser.parse_args()
    parts = options.parts or [
        "start",
        "speed",
        "ctc",
        "memory",
        *(["errors"] if options.data else []),
    ]
    print(json.dumps({"python": platform.python_version(), "machine": platform.processor()}))
    for part in parts:
        if part == "errors" and options.data is None:
            parser.error("errors needs --data MANIFEST")
        # A process for each part, so that memory is measured separately.
        if len(parts) > 1:
            again = [a for a in sys.argv[1:] if a not in parts]
            subprocess.run([sys.executable, __file__, part, *again], check=True)
            continue
        run = {
            "speed": lambda: bench_speed(options.peers),
            "ctc": lambda: bench_ctc(options.peers),
            "memory": bench_memory,
            "start": bench_start,
            "errors": lambda: bench_errors(options.data),
        }[part]
        print(json.dumps({part: run()}, indent=2), flush=True)


if __name__ == "__main__":
    main()
