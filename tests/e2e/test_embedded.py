"""The model inside the package, on the bundled clips and on recordings of people."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.evaluate.run import evaluate, read_references
from pianissimo.evaluate.wer import word_errors
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.zoo.catalog import ASSETS, EMBEDDED

ROOT = Path(__file__).resolve().parents[2]
SPEECH = Path(os.environ.get("PIANISSIMO_SPEECH", ROOT / "../shared/data/speech"))
# A little above what was measured: see the model's card.
MOST_ERRORS = {"an4": 0.1, "digits": 0.16}
MOST_FOR_SHORT_LATENCY = 1.45
needs_speech = pytest.mark.skipif(
    not (SPEECH / "manifest.jsonl").is_file(),
    reason="no recorded speech: set PIANISSIMO_SPEECH to a folder with manifest.jsonl",
)


@pytest.fixture(scope="module")
def embedded() -> NativeRecognizer:
    return pianissimo.load("embedded-commands")


@pytest.fixture(scope="module")
def untouched() -> NativeRecognizer:
    """As a stream hears: greedily, and without the constant gain that only a recording can get."""
    recognizer = pianissimo.load(
        "embedded-commands", gain="off", decoding=pianissimo.Decoding(beam=1)
    )
    assert isinstance(recognizer, NativeRecognizer)
    return recognizer


def test_it_is_small_and_serves_every_latency(embedded: NativeRecognizer) -> None:
    size = sum(f.stat().st_size for f in (ASSETS / EMBEDDED).iterdir())
    assert size <= 25e6
    assert embedded.model.parameter_count() <= 12e6
    assert embedded.latencies_ms == (80, 160, 560, 1120)


@needs_speech
def test_it_understands_people_it_never_heard(embedded: NativeRecognizer) -> None:
    references = read_references(SPEECH / "manifest.jsonl", list(MOST_ERRORS))
    longest, shortest = evaluate(embedded, references, latencies_ms=[1120, 80])
    assert longest.total.failed == 0
    for score in longest.scores:
        assert score.errors.rate < MOST_ERRORS[score.subset], score.subset
    limit = MOST_FOR_SHORT_LATENCY * longest.total.errors.rate
    assert shortest.total.errors.rate < limit


def test_it_hears_the_example_commands(embedded: NativeRecognizer) -> None:
    examples = ROOT / "examples" / "audio"
    texts = json.loads((examples / "clips.json").read_text(encoding="utf-8"))
    for name in ("number.flac", "quiet.flac"):
        for latency_ms in embedded.latencies_ms:
            heard = embedded.transcribe(examples / name, latency_ms=latency_ms)
            if latency_ms <= 160:  # what `make run` shows
                assert heard.text == texts[name]
            assert word_errors(texts[name], heard.text).errors <= 1


@needs_speech
@pytest.mark.parametrize("latency_ms", [80, 160, 560, 1120])
def test_a_live_stream_finds_what_the_file_gives(
    untouched: NativeRecognizer, latency_ms: int
) -> None:
    lines = (SPEECH / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    paths = [SPEECH / row["audio_filepath"] for row in rows if row["subset"] == "an4"][:6]
    for path in paths:
        whole = untouched.transcribe(path, latency_ms=latency_ms)
        samples = load_audio(path)
        with untouched.stream(latency_ms=latency_ms, endpoint=None) as stream:
            partials = [
                event.text
                for start in range(0, len(samples), 1111)
                for event in stream.push(samples[start : start + 1111])
            ]
            finals = stream.finish()
        assert [event.text for event in finals] == [whole.text]
        live = [word for event in finals for word in event.words]
        assert [(w.text, w.start, w.end) for w in live] == [
            (w.text, w.start, w.end) for w in whole.words
        ]
        for word, same in zip(live, whole.words, strict=True):
            assert word.confidence == pytest.approx(same.confidence, abs=1e-4)
        for before, after in pairwise(partials):
            assert after.startswith(before)
        times = [t for word in whole.words for t in (word.start, word.end)]
        assert times == sorted(times)
        assert not times or times[-1] <= whole.duration
