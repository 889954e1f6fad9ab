"""Turns of diarization networks: stretches from probabilities, offline and live.

The network here hears two tones as two people, so that turns and overlap are known.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.diarization.neural import ModelTurns, hysteresis, load_network
from pianissimo.diarization.options import Diarization
from pianissimo.diarization.sources import live_source, turn_source
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.speaker_cache import CacheConfig, SpeakerStream, StepSizes, sizes_for

GOLDEN = Path(__file__).resolve().parents[2] / "parity" / "golden_diarizers"
RATE = 16_000
LOW, HIGH = 400.0, 3000.0
LATENCY = StepSizes(chunk=6, lookahead=2, queue=20, moved=10)


class Tones:
    """A `SpeakerNetwork`: each speaker is the power of a band, 10 ms at a time."""

    cache = CacheConfig(speakers=2, frames=20, silent_frames=1)
    offline = StepSizes(chunk=40, lookahead=4, queue=20, moved=20)
    live = (offline, LATENCY)
    subsampling = scores_per_frame = 8
    dim = 8 * 2
    silence = torch.full((16,), -16.0)

    def __init__(self) -> None:
        self.features = MelFeatures(FeatureConfig(n_mels=40))

    def embed(self, mel: Tensor) -> Tensor:
        mel = torch.nn.functional.pad(mel, (0, 0, 0, -len(mel) % 8), value=-16.0)
        bands = torch.stack([mel[:, 3:9].amax(1), mel[:, 26:32].amax(1)], dim=1)
        return bands.reshape(-1, 16)

    def score(self, frames: Tensor) -> Tensor:
        return torch.sigmoid(frames.reshape(-1, 2) * 2 + 4)


def tone(hz: float, spans: list[tuple[float, float]], seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    loud = sum(((time >= start) & (time < end)).astype(np.float32) for start, end in spans)
    return (0.2 * np.sin(2 * np.pi * hz * time) * loud).astype(np.float32)


def talk() -> np.ndarray:
    low = tone(LOW, [(0.5, 2.0), (2.2, 3.0), (6.0, 6.1)], 8.0)
    return low + tone(HIGH, [(2.5, 5.0)], 8.0)


def pushed(source: ModelTurns, samples: np.ndarray, block: int) -> ModelTurns:
    for first in range(0, len(samples), block):
        source.push(samples[first : first + block])
    return source


def test_turns_overlap_bridge_pauses_and_drop_blips() -> None:
    turns = pushed(ModelTurns(Tones(), Tones.offline), talk(), RATE).finish()
    assert [turn.speaker for turn in turns] == ["0", "1"]
    assert [turns[0].start, turns[0].end] == pytest.approx([0.5, 3.0], abs=0.05)
    assert [turns[1].start, turns[1].end] == pytest.approx([2.5, 5.0], abs=0.05)
    assert all(turn.confidence is not None and turn.confidence > 0.5 for turn in turns)


@pytest.mark.parametrize("sizes", [Tones.offline, LATENCY])
def test_blocks_change_nothing(sizes: StepSizes) -> None:
    network = Tones()
    whole = pushed(ModelTurns(network, sizes), talk(), 10 * RATE).finish()
    for block in (160, 1234, 8000):
        assert pushed(ModelTurns(network, sizes), talk(), block).finish() == whole


def test_live_turns_come_within_the_latency_and_stay() -> None:
    source, samples, seen = ModelTurns(Tones(), LATENCY), talk(), []
    for first in range(0, len(samples), 800):
        source.push(samples[first : first + 800])
        now = (first + 800) / RATE
        assert now - LATENCY.latency_frames * 0.08 - 0.1 <= source.seconds <= now
        assert source.recent[: len(seen)] == seen
        seen = source.recent
    turns = source.finish()
    for speaker in ("0", "1"):
        pieces = [turn for turn in source.recent if turn.speaker == speaker]
        [whole] = [turn for turn in turns if turn.speaker == speaker]
        assert pieces[0].start == whole.start
        assert pieces[-1].end == whole.end
        assert sum(p.end - p.start for p in pieces) == pytest.approx(whole.end - whole.start)


def test_a_stream_without_end_keeps_the_last_turns_only() -> None:
    source = ModelTurns(Tones(), LATENCY, keep=False)
    part = tone(LOW, [(0.1, 0.5)], 1.0)
    for _ in range(200):
        source.push(part)
    assert len(source.finish()) == len(source.recent) == 128


def size_of(stream: SpeakerStream) -> int:
    """Numbers that a stream holds."""
    tensors = [value for value in vars(stream).values() if isinstance(value, Tensor)]
    tensors += [value for value in vars(stream.cache).values() if isinstance(value, Tensor)]
    features = vars(stream)["_features"]
    tensors += [value for value in vars(features).values() if isinstance(value, Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize("loud", [False, True])
def test_the_state_is_flat_over_hours(loud: bool) -> None:
    """2.8 hours of mel frames, silence or speech, in which the cache is compressed all the time."""
    network = Tones()
    stream = SpeakerStream(network, StepSizes(chunk=500, lookahead=2, queue=20, moved=10))
    frames = torch.full((4000, 40), -16.0)
    if loud:
        frames[1000:2000, 5] = frames[1500:3000, 28] = 0.0
    sizes = []
    for _ in range(250):
        stream.push_mel(frames)
        sizes.append(size_of(stream))
    assert stream.scored > 100_000
    assert max(sizes[5:]) == min(sizes[5:])
    assert len(stream.cache.cache) == Tones.cache.frames


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.3, 2.0])
def test_short_audio_and_silence_have_a_defined_result(seconds: float) -> None:
    count = round(seconds * RATE)
    source = ModelTurns(Tones(), Tones.offline)
    source.push(np.zeros(count, np.float32))
    assert source.finish() == ()
    source = ModelTurns(Tones(), Tones.offline)
    source.push(tone(LOW, [(0.0, 3.0)], seconds))
    assert len(source.finish()) == (seconds >= 0.3)


def test_a_speaker_begins_and_ends_at_different_levels() -> None:
    scores = np.array([[0.45], [0.6], [0.45], [0.45], [0.3], [0.45]], np.float32)
    no, yes = np.array([False]), np.array([True])
    assert hysteresis(scores, no)[:, 0].tolist() == [False, True, True, True, False, False]
    assert hysteresis(scores, yes)[:, 0].tolist() == [True, True, True, True, False, False]


def test_the_latency_is_chosen() -> None:
    network = Tones()
    assert sizes_for(network, None) is LATENCY
    assert sizes_for(network, 3000) is LATENCY
    assert sizes_for(network, 10_000) is Tones.offline
    with pytest.raises(OptionError, match="640 ms at the earliest, not 100"):
        sizes_for(network, 100)


@pytest.mark.parametrize("name", ["nemotron", "sortformer.nemo"])
def test_a_model_is_named_by_its_path(name: str) -> None:
    options = Diarization(model=GOLDEN / name)
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * RATE).astype(np.float32)
    source = turn_source(options)
    source.push(noise)
    assert all(0 <= turn.start < turn.end <= 2.0 for turn in source.finish())
    live = live_source(Diarization(model=GOLDEN / name, latency_ms=320))
    live.push(noise)
    assert 1.5 < live.seconds <= 2.0
    assert load_network(str(GOLDEN / name)) is load_network(str(GOLDEN / name))


def test_what_a_model_cannot_do_is_an_error(tmp_path: Path) -> None:
    for options in ({"speakers": 2}, {"by": "channels"}, {"voices": {"Ann": "ann.wav"}}):
        with pytest.raises(OptionError, match="finds speakers and their number itself"):
            Diarization(model="model", **options)
    with pytest.raises(OptionError, match="name one"):
        Diarization(latency_ms=320)
    with pytest.raises(CheckpointError, match="not a diarization model"):
        turn_source(Diarization(model=tmp_path))
    with pytest.raises(OptionError, match="at the earliest"):
        live_source(Diarization(model=GOLDEN / "nemotron", latency_ms=80))
