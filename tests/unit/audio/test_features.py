import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import cut, noise
from torch import Tensor

from pianissimo.audio import features as module
from pianissimo.audio.features import (
    FeatureConfig,
    MelFeatures,
    normalize_per_feature,
    slaney_filterbank,
)

LENGTHS = [1, 159, 160, 161, 199, 200, 201, 359, 360, 399, 400, 1279, 7777, 16_000]
SILENCE = math.log(2.0**-24)

Array = NDArray[np.float64]


def slaney_hz(mel: float) -> float:
    """Auditory Toolbox: 200/3 Hz a mel up to 1 kHz, then 27 steps for each factor 6.4."""
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def triangles(bands: int, rate: int, fft: int) -> Array:
    """A filterbank written as triangles of area one over frequency, one cell at a time."""
    top = 15 + 27 * math.log(rate / 2 / 1000) / math.log(6.4)
    edges = [slaney_hz(top * i / (bands + 1)) for i in range(bands + 2)]
    bank = np.zeros((bands, fft // 2 + 1))
    for band in range(bands):
        low, center, high = edges[band : band + 3]
        peak = 2 / (high - low)
        for k in range(fft // 2 + 1):
            hz = k * rate / fft
            if low < hz <= center:
                bank[band, k] = peak * (hz - low) / (center - low)
            elif center < hz < high:
                bank[band, k] = peak * (high - hz) / (high - center)
    return bank


def spectrogram(samples: NDArray[np.float32], config: FeatureConfig) -> Array:
    """The definition in float64, frame by frame."""
    x = samples.astype(np.float64)
    emphasised = np.concatenate([x[:1], x[1:] - config.preemphasis * x[:-1]])
    window = np.array([0.5 - 0.5 * math.cos(2 * math.pi * i / 399) for i in range(400)])
    bank = triangles(config.n_mels, config.sample_rate, 512)
    padded = np.concatenate([np.zeros(200), emphasised, np.zeros(400)])
    frames = []
    for t in range(len(x) // 160):
        power = np.abs(np.fft.fft(padded[160 * t : 160 * t + 400] * window, 512)[:257]) ** 2
        frames.append(np.log(bank @ power + 2.0**-24))
    return np.array(frames).reshape(-1, config.n_mels)


def in_pushes(mel: MelFeatures, samples: Tensor, sizes: list[int]) -> Tensor:
    state = mel.start()
    parts = [mel.push(samples[part], state) for part in cut(len(samples), sizes)]
    return torch.cat([*parts, mel.finish(state)])


@pytest.fixture(scope="module")
def mel() -> MelFeatures:
    return MelFeatures(FeatureConfig())


@pytest.mark.parametrize("n", LENGTHS)
def test_a_finished_utterance_has_one_frame_per_hop(mel: MelFeatures, n: int) -> None:
    frames = mel.whole(torch.from_numpy(noise(n)))
    assert frames.shape == (n // 160, 128)
    assert bool(frames.isfinite().all())


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("n", [400, 1003, 8000])
def test_frames_follow_the_definition(n: int, n_mels: int) -> None:
    config = FeatureConfig(n_mels=n_mels)
    samples = noise(n, seed=n)
    found = MelFeatures(config).whole(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(found, spectrogram(samples, config), rtol=0, atol=1e-4)


def test_a_tone_on_an_offset_follows_the_definition(mel: MelFeatures) -> None:
    time = np.arange(4800) / 16_000
    samples = (0.5 + 0.2 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    found = mel.whole(torch.from_numpy(samples)).numpy()
    expected = spectrogram(samples, mel.config)
    # Far from the tone the bands hold nothing but the rounding of float32.
    loud = expected > -10
    assert loud.sum() > 400
    np.testing.assert_allclose(found[loud], expected[loud], rtol=0, atol=2e-3)


@pytest.mark.parametrize("n_mels", [16, 80, 128])
def test_the_filterbank_is_made_of_slaney_triangles(n_mels: int) -> None:
    bank = slaney_filterbank(FeatureConfig(n_mels=n_mels)).numpy()
    np.testing.assert_allclose(bank, triangles(n_mels, 16_000, 512), rtol=0, atol=1e-8)


def test_the_window_is_a_symmetric_hann(mel: MelFeatures) -> None:
    window = mel.window
    assert window.shape == (400,)
    assert float(window[0]) == float(window[-1]) == 0.0
    torch.testing.assert_close(window, window.flip(0), rtol=0, atol=1e-6)
    assert float(window[199]) == pytest.approx(0.5 - 0.5 * math.cos(2 * math.pi * 199 / 399))


def test_digital_silence_gives_the_guard(mel: MelFeatures) -> None:
    frames = mel.whole(torch.zeros(1600))
    assert frames.shape == (10, 128)
    torch.testing.assert_close(frames, torch.full((10, 128), SILENCE))


def test_both_ends_are_padded_with_zeros_and_not_mirrored(mel: MelFeatures) -> None:
    """Frame 0 reads samples up to 199: nothing before the start, so a late click is unheard."""
    click = torch.zeros(1600)
    click[250] = 1.0
    torch.testing.assert_close(mel.whole(click)[0], torch.full((128,), SILENCE))
    # A sample decaying by the pre-emphasis is zero once emphasised, like what follows the end.
    end = torch.zeros(480)
    end[479] = 1.0
    longer = torch.cat([end, 0.97 ** torch.arange(1.0, 321.0)])
    torch.testing.assert_close(mel.whole(end)[2], mel.whole(longer)[2])


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("sizes", [[7], [160], [1279], [1280], [0, 1, 3, 50, 199, 200, 800, 5000]])
def test_pushes_of_any_size_equal_the_whole(mel: MelFeatures, n: int, sizes: list[int]) -> None:
    samples = torch.from_numpy(noise(n, seed=n))
    found, whole = in_pushes(mel, samples, sizes), mel.whole(samples)
    assert found.shape == whole.shape
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-6)


def test_pushes_of_one_sample_equal_the_whole(mel: MelFeatures) -> None:
    samples = torch.from_numpy(noise(1337))
    torch.testing.assert_close(in_pushes(mel, samples, [1]), mel.whole(samples), rtol=0, atol=2e-6)


def test_frames_come_as_soon_as_the_samples_under_their_window_are_there(mel: MelFeatures) -> None:
    state, samples = mel.start(), torch.from_numpy(noise(1500))
    for i in range(len(samples)):
        mel.push(samples[i : i + 1], state)
        n = i + 1
        assert state.frames == ((n - 200) // 160 + 1 if n >= 200 else 0)


def test_the_state_does_not_grow(mel: MelFeatures) -> None:
    state = mel.start()
    for part in cut(50_000, [0, 1, 700, 1280]):
        mel.push(torch.from_numpy(noise(part.stop - part.start)), state)
        assert len(state.buffer) <= 512 + 160


def test_pushing_leaves_the_samples_alone(mel: MelFeatures) -> None:
    samples = torch.from_numpy(noise(1000))
    before = samples.clone()
    mel.push(samples, mel.start())
    assert torch.equal(samples, before)


def test_two_streams_do_not_mix(mel: MelFeatures) -> None:
    a, b = (torch.from_numpy(noise(3000, seed)) for seed in (1, 2))
    state_a, state_b = mel.start(), mel.start()
    found: list[list[Tensor]] = [[], []]
    for part in cut(3000, [170, 333]):
        found[0].append(mel.push(a[part], state_a))
        found[1].append(mel.push(b[part], state_b))
    found[0].append(mel.finish(state_a))
    found[1].append(mel.finish(state_b))
    for parts, samples in zip(found, (a, b), strict=True):
        torch.testing.assert_close(torch.cat(parts), mel.whole(samples), rtol=0, atol=2e-6)


def test_a_long_push_is_transformed_in_blocks(
    mel: MelFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = torch.from_numpy(noise(8000))
    whole = mel.whole(samples)
    monkeypatch.setattr(module, "FRAMES_PER_BLOCK", 3)
    torch.testing.assert_close(mel.whole(samples), whole, rtol=0, atol=2e-6)


def test_rows_of_a_batch_equal_each_alone_and_end_in_zeros(mel: MelFeatures) -> None:
    lengths = [4000, 0, 159, 160, 3333, 6000]
    rows = torch.from_numpy(np.stack([noise(6000, seed) for seed in range(len(lengths))]))
    frames, counts = mel(rows, torch.tensor(lengths))
    assert counts.tolist() == [n // 160 for n in lengths]
    assert frames.shape == (len(lengths), 37, 128)
    for row, n in enumerate(lengths):
        alone = mel.whole(rows[row, :n])
        torch.testing.assert_close(frames[row, : n // 160], alone, rtol=0, atol=2e-6)
        assert not frames[row, n // 160 :].any()


def test_a_batch_without_lengths_is_taken_whole(mel: MelFeatures) -> None:
    rows = torch.from_numpy(np.stack([noise(2000, seed) for seed in range(2)]))
    frames, counts = mel(rows)
    assert counts.tolist() == [12, 12]
    torch.testing.assert_close(frames[1], mel.whole(rows[1]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_next_to_nothing_gives_no_frames(mel: MelFeatures, n: int) -> None:
    samples = torch.ones(n)
    assert mel.whole(samples).shape == (0, 128)
    frames, counts = mel(samples[None])
    assert frames.shape == (1, 0, 128)
    assert counts.tolist() == [0]


def test_per_feature_gives_each_bin_zero_mean_and_unit_deviation() -> None:
    mel = MelFeatures(FeatureConfig(n_mels=80, normalize="per_feature"))
    plain = MelFeatures(FeatureConfig(n_mels=80))
    samples = torch.from_numpy(noise(16_000))
    frames, raw = mel.whole(samples), plain.whole(samples).double().numpy()
    expected = (raw - raw.mean(0)) / (raw.std(0, ddof=1) + 1e-5)
    np.testing.assert_allclose(frames.numpy(), expected, rtol=0, atol=1e-4)
    batched, _ = mel(torch.stack([samples, samples]), torch.tensor([16_000, 9000]))
    torch.testing.assert_close(batched[1, :56], mel.whole(samples[:9000]))
    assert not batched[1, 56:].any()


@pytest.mark.parametrize("frames", [0, 1])
def test_per_feature_of_too_few_frames_is_zero(frames: int) -> None:
    assert torch.equal(normalize_per_feature(torch.ones(frames, 4)), torch.zeros(frames, 4))
