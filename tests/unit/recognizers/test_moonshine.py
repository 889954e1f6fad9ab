"""Moonshine Streaming: recordings, live streams, resumed ones, refusals, and damaged folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from spoken import pink, speech
from tiny import cut

import pianissimo
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.vad import VoiceDetector
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.errors import CheckpointError, OptionError, StateError
from pianissimo.models.checkpoints.moonshine import read_moonshine
from pianissimo.recognizers.moonshine import MoonshineRecognizer
from pianissimo.transcript import StreamEvent

GOLDEN = Path(__file__).parents[2] / "parity" / "golden_moonshine" / "streaming"
RATE = 16_000
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def recognizer() -> MoonshineRecognizer:
    """A random model that is sure of the syllables it writes."""
    parts = read_moonshine(GOLDEN)
    with torch.no_grad():
        weight = parts.network.decoder.logits.weight
        weight[:19] = 0.0  # marks and bytes
        weight[19:] *= 4.0
    return MoonshineRecognizer(parts, front_end=FrontEnd("off"), detector=VoiceDetector())


@pytest.fixture(scope="module")
def sound() -> Samples:
    parts = [speech(3), np.zeros(2 * RATE, np.float32), speech(2), np.zeros(RATE, np.float32)]
    samples: Samples = np.concatenate(parts) + pink(8, -80)
    return samples


def test_recordings_have_words_with_times(recognizer: MoonshineRecognizer, sound: Samples) -> None:
    found = recognizer.transcribe(sound, sample_rate=RATE)
    assert found.text and found.language == "en"
    assert found.words and all(word.text in found.text for word in found.words)
    assert 0 <= found.words[0].start < found.words[-1].end <= found.duration
    both = list(recognizer.transcribe_together([sound[: 3 * RATE], sound]))
    assert both[1] == found
    bare = recognizer.transcribe(sound, sample_rate=RATE, word_timestamps=False)
    assert bare.text == found.text and bare.words == ()
    assert recognizer.transcribe(sound[:40], sample_rate=RATE).text == ""


def test_pieces_of_a_batch_equal_each_alone(
    recognizer: MoonshineRecognizer, sound: Samples
) -> None:
    pieces = [sound[:20_000], sound[:50], sound[16_000:48_000], sound[:0]]
    together = recognizer._decode(pieces, words=True)
    for piece, found in zip(pieces, together, strict=True):
        [alone] = recognizer._decode([piece], words=True)
        assert (found.text, found.tokens) == (alone.text, alone.tokens)
        times = [[(word.text, word.start) for word in each.words] for each in (found, alone)]
        assert times[0] == times[1]
    assert together[0].tokens


def run(
    recognizer: MoonshineRecognizer, samples: Samples, sizes: list[int], **options: object
) -> list[StreamEvent]:
    stream = recognizer.stream(**options)  # type: ignore[arg-type]
    events = [e for part in cut(len(samples), sizes) for e in stream.push(samples[part])]
    return events + stream.finish()


def said(events: list[StreamEvent]) -> list[tuple[object, ...]]:
    return [(e.type, e.text, e.start, e.end, e.reason) for e in events]


def finals(events: list[StreamEvent]) -> list[tuple[object, ...]]:
    return [(e.text, e.start, e.end, e.reason) for e in events if e.type == "final"]


def test_words_appear_before_the_final(recognizer: MoonshineRecognizer, sound: Samples) -> None:
    events = run(recognizer, sound, [1280])
    texts = [event for event in events if event.type == "final" and event.text]
    assert len(texts) == 2 and texts[0].end <= 3.9 < 4.5 < texts[1].start
    assert any(event.type == "partial" and event.text for event in events)
    for event in texts:
        assert [word.text for word in event.words] == event.text.split()
        assert all(a.end <= b.start for a, b in zip(event.words, event.words[1:], strict=False))


@pytest.mark.parametrize("second_pass", [True, False])
def test_the_size_of_pushes_changes_nothing(
    recognizer: MoonshineRecognizer, sound: Samples, second_pass: bool
) -> None:
    expected = said(run(recognizer, sound, [1280], second_pass=second_pass))
    assert said(run(recognizer, sound, [len(sound)], second_pass=second_pass)) == expected
    assert said(run(recognizer, sound, [160, 7_001], second_pass=second_pass)) == expected


@pytest.mark.parametrize("mode", [0, 2])
def test_streams_of_an_engine_equal_a_lone_one_also_resumed(
    recognizer: MoonshineRecognizer, sound: Samples, mode: int
) -> None:
    latency = recognizer.latencies_ms[mode]
    expected = finals(run(recognizer, sound, [1280], latency_ms=latency))
    options = EngineOptions(threads=1, freeze_garbage=False)
    with Engine(recognizer, max_streams=3, options=options) as engine:
        sessions = [engine.open(latency_ms=latency) for _ in range(2)]
        for part in cut(len(sound), [4_000]):
            for session in sessions:
                session.push(sound[part])
        for session in sessions:
            session.finish()
        for session in sessions:
            assert finals(list(session)) == expected
        first = engine.open(latency_ms=latency)  # in a slot that was used before
        first.push(sound[:20_000])
        state = first.export()
        first.close()
        second = engine.open(state=state)
        second.push(sound[20_000:])
        second.finish()
        assert finals(list(second)) == expected
        with pytest.raises(StateError):
            engine.open(state=state[: len(state) // 2])


def test_a_recording_in_a_latency_mode_is_a_stream(
    recognizer: MoonshineRecognizer, sound: Samples
) -> None:
    latency = recognizer.latencies_ms[1]
    found = recognizer.transcribe(sound, sample_rate=RATE, latency_ms=latency)
    texts = [text for text, *_ in finals(run(recognizer, sound, [1280], latency_ms=latency))]
    assert found.text == " ".join(filter(None, texts)).strip()  # type: ignore[arg-type]


def test_what_it_cannot_do_is_refused(recognizer: MoonshineRecognizer) -> None:
    with pytest.raises(OptionError, match="knows English only, not 'de'"):
        recognizer.stream(language="de")
    with pytest.raises(OptionError, match="cannot boost hotwords"):
        recognizer.stream(boost=["tea"])
    with pytest.raises(OptionError, match="writes partials by itself"):
        recognizer.stream(partials=recognizer)
    with pytest.raises(OptionError, match="100 ms is not a latency mode"):
        recognizer.transcribe(np.zeros(RATE, np.float32), sample_rate=RATE, latency_ms=100)
    with pytest.raises(OptionError, match="cannot boost hotwords"):
        recognizer.stream(boost=["tea"])
    with pytest.raises(OptionError, match="no choice of languages"):
        pianissimo.load(GOLDEN, language="de", device="cpu")
    with pytest.raises(OptionError, match="no int8 form"):
        pianissimo.load(GOLDEN, dtype="int8", device="cpu")
    assert isinstance(pianissimo.load(GOLDEN, device="cpu"), MoonshineRecognizer)


# -- damaged folders -------------------------------------------------------------------------------


def configured(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        data = json.loads(path.read_text())
        encoder = changes.pop("encoder_config", {})
        data |= changes
        data["encoder_config"] |= encoder
        path.write_text(json.dumps(data))

    return change


def weighted(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return write


NORM = "model.decoder.norm.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (configured(vocab_size=1 << 30), "vocab_size"),
        (configured(hidden_size=-1), "hidden_size"),
        (configured(num_hidden_layers=10**6), "num_hidden_layers"),
        (configured(num_key_value_heads=2), "num_key_value_heads"),
        (configured(hidden_act="gelu"), "hidden_act"),
        (configured(max_position_embeddings=100), "max_position_embeddings"),
        (configured(max_position_embeddings=60_000), "encoder.positions|pos_emb"),
        (configured(rope_parameters={"rope_type": "yarn"}), "rope_type"),
        (configured(rope_parameters={"partial_rotary_factor": 3.0}), "rotated numbers"),
        (configured(eos_token_id=10**6), "eos_token_id"),
        (configured(encoder_config={"sliding_windows": [[4, 2]]}), "sliding_windows"),
        (configured(encoder_config={"sliding_windows": [[0, 2], [4, 0], [6, 2]]}), "own frame"),
        (configured(encoder_config={"sliding_windows": "x" * 3}), "sliding_windows"),
        (configured(encoder_config={"sample_rate": 8000}), "sample_rate"),
        (configured(encoder_config={"frame_ms": 10.0}), "shape"),
        (weighted(lambda weights: weights.pop(NORM)), "missing: " + NORM),
        (weighted(lambda weights: weights.update(extra=torch.zeros(1))), "unknown: extra"),
        (weighted(lambda weights: weights.update({NORM: torch.zeros(7)})), "shape"),
        (weighted(lambda weights: weights[NORM].fill_(float("nan"))), "NaN or infinite"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80" * 64), "damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "processor_config.json"),
    ],
)
def test_damaged_folders_are_refused(
    tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    folder = tmp_path / "moonshine"
    shutil.copytree(GOLDEN, folder)
    change(folder)
    with pytest.raises(CheckpointError, match=said):
        read_moonshine(folder)


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "moonshine"
    shutil.copytree(GOLDEN, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle files are not read"):
        read_moonshine(folder)
