"""Word errors during training, as a live stream makes them, in every latency mode."""

from collections.abc import Callable
from pathlib import Path

from pianissimo.evaluate.run import evaluate, read_references
from pianissimo.models.asr import AsrModel
from pianissimo.native import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer

BATCH_SECONDS = 60.0


def streaming_errors(
    manifest: Path, tokenizer: Tokenizer
) -> Callable[[AsrModel], dict[str, float]]:
    """A validation for `train`: word error rate per subset and latency mode over a manifest.

    Recordings go through the streaming encoder chunk by chunk, so the numbers are those of a live
    stream and not of an offline pass. Raises ManifestError for a faulty manifest, at once.
    """
    references = read_references(manifest)

    def validate(model: AsrModel) -> dict[str, float]:
        recognizer = NativeRecognizer(model, tokenizer)
        passes = evaluate(
            recognizer,
            references,
            latencies_ms=recognizer.latencies_ms,
            batch_seconds=BATCH_SECONDS,
        )
        return {
            f"wer {score.subset} {done.latency_ms} ms": score.errors.rate
            for done in passes
            for score in done.scores
        }

    return validate
