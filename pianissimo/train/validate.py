"""Validation during training: word error rates of live streams in every latency mode."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pianissimo.decoding.search import Decoding
from pianissimo.evaluate.run import Reference, evaluate, read_references
from pianissimo.models.asr import AsrModel
from pianissimo.protocols import Recognizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer

Validate = Callable[[AsrModel], dict[str, float]]
BATCH_SECONDS = 60.0


def streaming_errors(manifest: Path, tokenizer: Tokenizer) -> Validate:
    """A validation for `train` over a manifest; see `errors_on`.

    Raises ManifestError for a faulty manifest.
    """
    return errors_on(read_references(manifest), tokenizer)


def errors_on(references: Sequence[Reference], tokenizer: Tokenizer) -> Validate:
    """Word error rates per subset and latency mode, by name.

    Recordings pass through the streaming encoder chunk by chunk and a greedy search, so the numbers
    are those of a live stream; no gain is applied. A model that cannot stream recognizes each
    recording as a whole, its only mode.
    """

    def validate(model: AsrModel) -> dict[str, float]:
        recognizer = NativeRecognizer(model, tokenizer, decoding=Decoding(beam=1))
        return errors_of(recognizer, references, recognizer.latencies_ms)

    return validate


def errors_of(
    recognizer: Recognizer, references: Sequence[Reference], latencies_ms: Sequence[int] = ()
) -> dict[str, float]:
    """Word error rates of a recognizer by name; whole recordings if it has no latency modes."""
    passes = evaluate(
        recognizer,
        references,
        latencies_ms=latencies_ms or [None],
        batch_seconds=BATCH_SECONDS,
    )
    return {
        f"wer {score.subset} {mode_name(done.latency_ms)}": score.errors.rate
        for done in passes
        for score in done.scores
    }


def mode_name(latency_ms: int | None) -> str:
    """The name of a latency mode; None is the mode of whole recordings."""
    return "whole" if latency_ms is None else f"{latency_ms} ms"
