import dataclasses
import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from spoken import speech
from tiny import noise, tensor

from pianissimo.audio import simulate
from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.audio.level import active_speech_level
from pianissimo.errors import OptionError
from pianissimo.train.augment import (
    Augmenter,
    QuietAugmenter,
    SpecAugment,
    add_noise,
    change_level,
    change_speed,
    color,
    cut_weak_ends,
    reverberate,
    telephone_band,
    warp_frequencies,
)

RATE = 16_000
Samples = NDArray[np.float32]


def tone(hertz: float, seconds: float = 1.0, level: float = 0.3) -> Samples:
    time = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def power(samples: Samples) -> float:
    return float(np.mean(samples.astype(np.float64) ** 2))


def loudest_hertz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return int(spectrum.argmax()) * RATE / len(samples)


# -- speed and level -------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1, 2.0])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    samples = tone(1000)
    found = change_speed(samples, factor)
    assert found.dtype == np.float32
    assert abs(len(found) - len(samples) / factor) <= 1
    assert loudest_hertz(found) == pytest.approx(1000 * factor, abs=3)
    assert power(found) == pytest.approx(power(samples), rel=0.02)


@pytest.mark.parametrize("gain", [-25.0, -6.0, 0.0, 6.0])
def test_gain_is_in_decibel(gain: float) -> None:
    samples = tone(440, level=0.4)
    found = change_level(samples, gain)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, samples * 10 ** (gain / 20), rtol=1e-6)


def test_samples_beyond_full_scale_are_clipped() -> None:
    found = change_level(tone(440, level=0.9), 6.0)
    assert float(found.max()) == 1.0
    assert float(found.min()) == -1.0


# -- noise, room, telephone ------------------------------------------------------------------------


@pytest.mark.parametrize("tilt", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("snr", [0.0, 5.0, 20.0, 35.0])
def test_noise_has_the_requested_power(snr: float, tilt: float) -> None:
    samples = tone(440)
    found = add_noise(samples, snr, tilt, random.Random(1))
    assert found.dtype == np.float32
    assert len(found) == len(samples)
    measured = 10 * np.log10(power(samples) / power(found - samples))
    assert measured == pytest.approx(snr, abs=0.5)


def test_noise_falls_with_frequency_by_its_tilt() -> None:
    """By 6 dB an octave for a tilt of 1, 3 dB for a half, not at all for none."""
    for tilt in (0.0, 0.5, 1.0):
        samples = tone(440, seconds=20.0)
        added = add_noise(samples, 0.0, tilt, random.Random(0)) - samples
        spectrum = np.abs(np.fft.rfft(added)) ** 2
        hertz = np.fft.rfftfreq(len(added), 1 / RATE)
        low, high = (float(spectrum[(hertz >= a) & (hertz < 2 * a)].mean()) for a in (1000, 2000))
        assert 10 * np.log10(low / high) == pytest.approx(tilt * 6.02, abs=0.5)


def test_noise_over_silence_is_next_to_nothing() -> None:
    found = add_noise(np.zeros(RATE, np.float32), 20.0, 0.5, random.Random(0))
    assert bool(np.isfinite(found).all())
    assert float(np.abs(found).max()) < 1e-4


def test_a_telephone_passes_its_band_only() -> None:
    for hertz, passes in ((100, False), (150, False), (1000, True), (3500, True), (5000, False)):
        found = telephone_band(tone(hertz, seconds=2.0))
        assert found.dtype == np.float32
        assert len(found) == 2 * RATE
        inner = slice(2000, -2000)
        share = power(found[inner]) / power(tone(hertz, seconds=2.0)[inner])
        assert share == pytest.approx(1, abs=0.01) if passes else share < 1e-3


def test_colour_is_a_smooth_response_within_its_bounds() -> None:
    samples = noise(4 * RATE)
    spectrum = np.abs(np.fft.rfft(samples))
    curves = []
    for seed in range(20):
        found = color(samples, 8.0, random.Random(seed))
        assert found.dtype == np.float32
        assert len(found) == len(samples)
        ratio_db = 20 * np.log10(np.abs(np.fft.rfft(found)) / spectrum)
        bands = [float(np.median(part)) for part in np.array_split(ratio_db[400:], 40)]
        assert -8.5 < min(bands) < max(bands) < 8.5
        assert max(abs(a - b) for a, b in itertools.pairwise(bands)) < 8
        curves.append(bands)
    assert float(np.ptp(np.array(curves), axis=0).min()) > 5
    np.testing.assert_allclose(color(samples, 0.0, random.Random(0)), samples, atol=1e-6)


@pytest.mark.parametrize("rt60", [0.1, 0.6])
def test_a_room_keeps_length_and_level_and_dies_away(rt60: float) -> None:
    impulse = np.zeros(RATE, np.float32)
    impulse[0] = 1.0
    found = reverberate(impulse, rt60, random.Random(2))
    assert found.dtype == np.float32
    assert len(found) == RATE
    assert power(found) * RATE == pytest.approx(1, rel=1e-3)
    assert float(np.abs(found).max()) == float(found[0])
    early = power(found[32 : int(rt60 * 0.25 * RATE)])
    late = power(found[int(rt60 * 0.75 * RATE) : int(rt60 * RATE)])
    assert 10 * np.log10(early / late) > 20
    silent = reverberate(np.zeros(100, np.float32), rt60, random.Random(0))
    assert not silent.any()


def test_weak_ends_are_cut_off_and_the_middle_is_kept() -> None:
    loud, weak = tone(440, seconds=0.2, level=0.5), tone(440, seconds=0.1, level=0.02)
    samples = np.concatenate([weak, loud, weak, loud, weak])
    found = cut_weak_ends(samples, -20.0)
    np.testing.assert_array_equal(found, samples[1600:-1600])
    np.testing.assert_array_equal(cut_weak_ends(samples, -40.0), samples)
    np.testing.assert_array_equal(cut_weak_ends(samples, -20.0, 0.03), samples[1120:-1120])
    assert len(cut_weak_ends(np.zeros(1000, np.float32), -20.0)) == 0
    assert len(cut_weak_ends(samples[:100], -20.0)) == 0


# -- all of it -------------------------------------------------------------------------------------

TRANSFORMS: dict[str, Callable[[Samples, random.Random], Samples]] = {
    "noise": lambda x, rng: add_noise(x, 10.0, 0.5, rng),
    "room": lambda x, rng: reverberate(x, 0.3, rng),
    "all": Augmenter(),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_seed_determines_the_result(name: str) -> None:
    transform, samples = TRANSFORMS[name], noise(8000)
    before = samples.copy()
    first = [transform(samples, random.Random(seed)) for seed in range(10)]
    second = [transform(samples, random.Random(seed)) for seed in range(10)]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len({a.tobytes() for a in first}) > 8
    np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize("samples", [1, 2, 50, 8000])
def test_every_length_gives_usable_samples(samples: int) -> None:
    everything = Augmenter(
        noise_probability=1.0, room_probability=1.0, telephone_probability=1.0, pad_probability=1.0
    )
    for seed in range(20):
        found = everything(noise(samples), random.Random(seed))
        assert found.dtype == np.float32
        assert found.ndim == 1
        assert len(found) >= samples * 0.9 - 1
        assert bool(np.isfinite(found).all())
        assert float(np.abs(found).max(initial=0.0)) <= 1.0


def test_an_augmenter_without_effects_changes_nothing() -> None:
    pads = Augmenter((1.0,), (0.0, 0.0), 0.0, room_probability=0.0, telephone_probability=0.0)
    nothing = dataclasses.replace(pads, pad_probability=0.0)
    samples = noise(1000)
    np.testing.assert_array_equal(nothing(samples, random.Random(0)), samples)
    padded = [pads(samples, random.Random(seed)) for seed in range(20)]
    lengths = [len(found) for found in padded]
    assert min(lengths) == 1000 < max(lengths) <= 1000 + 2 * 0.4 * RATE
    energies = [power(found) * len(found) for found in padded]
    assert energies == pytest.approx([power(samples) * 1000] * 20)


@pytest.mark.parametrize("level", [0.5, 0.003])
def test_the_level_of_speech_is_set_independent_of_its_level_before(level: float) -> None:
    steady = Augmenter((1.0,), noise_probability=0.0, room_probability=0.0)
    steady = dataclasses.replace(steady, level_dbfs=(-40.0, -20.0), telephone_probability=0.0)
    samples = tone(440, seconds=0.5, level=level)
    found = [steady(samples, random.Random(seed)) for seed in range(40)]
    # Silence added around the speech does not count.
    levels = [10 * np.log10(power(x) * len(x) / len(samples)) for x in found]
    assert -40.1 < min(levels) < -37
    assert -23 < max(levels) < -19.9
    assert not steady(np.zeros(100, np.float32), random.Random(0)).any()


def test_a_late_recorder_cuts_weak_ends_but_not_the_word() -> None:
    late = Augmenter((1.0,), noise_probability=0.0, room_probability=0.0, pad_probability=0.0)
    late = dataclasses.replace(late, telephone_probability=0.0, late_probability=1.0)
    weak, loud = tone(440, seconds=0.1, level=0.003), tone(440, seconds=0.2)
    lengths = {
        len(late(np.concatenate([weak, loud, weak]), random.Random(seed))) for seed in range(20)
    }
    assert lengths == {round(0.2 * RATE)}
    short = np.concatenate([weak, tone(440, seconds=0.05), weak])
    assert len(late(short, random.Random(0))) == len(short)


def test_noise_on_a_line_stays_in_its_band() -> None:
    line = Augmenter((1.0,), noise_probability=1.0, room_probability=0.0, pad_probability=0.0)
    line = dataclasses.replace(line, telephone_probability=1.0)
    found = line(noise(2 * RATE), random.Random(0))
    spectrum = np.abs(np.fft.rfft(found)) ** 2
    hertz = np.fft.rfftfreq(len(found), 1 / RATE)
    assert float(spectrum[hertz > 4200].sum()) < 1e-4 * float(spectrum.sum())


# -- the twins of QuietBench -----------------------------------------------------------------------

DRY = QuietAugmenter(
    low_snr_share=0.0, noise_share=0.0, telephone_probability=0.0, gain_db=(0.0, 0.0)
)


def snr_of(found: Samples, clean: Samples) -> float:
    """Active speech level over what was added, in dB."""
    return active_speech_level(clean)[0] - 10 * np.log10(power(found - clean))


@pytest.mark.parametrize("snr_db", [0.0, 12.0, 30.0])
@pytest.mark.parametrize("kind", ["hvac", "diffuse", "floor", "music"])
def test_quiet_noise_has_the_drawn_snr(kind: simulate.Background, snr_db: float) -> None:
    noisy = dataclasses.replace(
        DRY, low_snr_share=1.0, low_snr_db=(snr_db, snr_db), backgrounds=(kind,)
    )
    clean = speech(4.0)
    assert snr_of(noisy(clean, random.Random(1)), clean) == pytest.approx(snr_db, abs=0.2)


def test_the_share_of_low_snr_is_kept() -> None:
    noisy = dataclasses.replace(
        DRY, low_snr_share=0.25, noise_share=0.5, backgrounds=("floor",), snr_db=(12.0, 30.0)
    )
    clean = speech(0.5)
    ratios = [snr_of(noisy(clean, random.Random(seed)), clean) for seed in range(400)]
    low, some = (sum(r < limit for r in ratios) / len(ratios) for limit in (11.0, 40.0))
    assert low == pytest.approx(0.25, abs=0.06)
    assert some == pytest.approx(0.75, abs=0.06)
    assert min(ratios) > -0.5
    assert QuietAugmenter().low_snr_share >= 0.2


def test_quiet_levels_cover_the_range_of_the_gain() -> None:
    quiet = dataclasses.replace(DRY, gain_db=(-40.0, -10.0))
    clean = speech(2.0)
    levels = [active_speech_level(quiet(clean, random.Random(seed)))[0] for seed in range(60)]
    assert -66.5 < min(levels) < -64
    assert -38 < max(levels) < -35.5


def test_a_quiet_line_has_its_band_and_the_room_of_the_benchmark_rings() -> None:
    line = dataclasses.replace(DRY, telephone_probability=1.0)
    spectrum = np.abs(np.fft.rfft(line(noise(4 * RATE), random.Random(3)))) ** 2
    hertz = np.fft.rfftfreq(4 * RATE, 1 / RATE)
    inside = float(spectrum[(hertz > 400) & (hertz < 3200)].mean())
    assert float(spectrum[(hertz > 4300) | (hertz < 150)].mean()) < 1e-2 * inside
    responses = simulate.draw_responses(3, seed=4)
    ringing = dataclasses.replace(DRY, responses=responses, room_probability=1.0)
    click = np.zeros(RATE, np.float32)
    click[100] = 0.5
    found = [ringing(click, random.Random(seed)) for seed in range(20)]
    expected = [0.5 * simulate.convolve(click.astype(np.float64) / 0.5, r) for r in responses]
    nearest = [min(float(np.abs(x - e).max()) for e in expected) for x in found]
    assert max(nearest) < 3 / 32768
    assert len({x.tobytes() for x in found}) > 1


def test_a_quiet_copy_is_determined_by_its_seed_and_accepts_any_audio() -> None:
    everything = QuietAugmenter(
        responses=simulate.draw_responses(2, seed=0), telephone_probability=0.5
    )
    clean = speech(1.0)
    outcomes = [[everything(clean, random.Random(s)) for s in range(12)] for _ in range(2)]
    for a, b in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32
        assert len(a) == len(clean)
    assert len({a.tobytes() for a in outcomes[0]}) == 12
    for samples in (np.zeros(0, np.float32), np.zeros(500, np.float32), clean[:1], clean[:50]):
        for seed in range(10):
            found = everything(samples, random.Random(seed))
            assert len(found) == len(samples)
            assert bool(np.isfinite(found).all())
            # A-law has no zero: its idle line is 8 steps of 16 bits.
            assert bool(samples.any()) or float(np.abs(found).max(initial=0.0)) < 1e-3
    with pytest.raises(OptionError, match="low_snr_share"):
        QuietAugmenter(low_snr_share=0.8, noise_share=0.3)


# -- spectrograms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 10, 37, 500])
@pytest.mark.parametrize(
    "masks",
    [
        SpecAugment(frequency_masks=0, time_masks=10, time_share=0.5),
        SpecAugment(frequency_masks=0, time_masks=3, time_share=1.0),
        SpecAugment(frequency_masks=0),
    ],
)
def test_masks_never_cover_more_than_half_of_the_frames(masks: SpecAugment, frames: int) -> None:
    mel = tensor(frames, 80)
    covered = []
    for seed in range(60):
        found = masks(mel, random.Random(seed))
        assert found.shape == mel.shape
        masked = (found == masks.fill).all(dim=1)
        assert bool((found[~masked] == mel[~masked]).all())
        assert int(masked.sum()) <= frames // 2
        covered.append(int(masked.sum()))
    if frames > 30:
        assert len(set(covered)) > 3


def test_frequency_masks_take_whole_bands_of_their_width() -> None:
    masks = SpecAugment(frequency_masks=2, frequency_width=7, time_masks=0, fill=-3.0)
    mel, widths = tensor(50, 80), set()
    for seed in range(60):
        found = masks(mel, random.Random(seed))
        bands = (found == -3.0).all(dim=0)
        assert bool((found[:, ~bands] == mel[:, ~bands]).all())
        widths.add(int(bands.sum()))
    assert max(widths) <= 14
    assert len(widths) > 5


def test_masking_is_fixed_by_its_seed_and_leaves_the_original_alone() -> None:
    mel = tensor(200, 80)
    before, masks = mel.clone(), SpecAugment()
    outcomes = []
    for _ in range(2):
        outcomes.append([masks(mel, random.Random(seed)) for seed in range(5)])
    assert all(bool((a == b).all()) for a, b in zip(*outcomes, strict=True))
    assert bool((outcomes[0][0] != outcomes[0][1]).any())
    assert bool((mel == before).all())


def test_more_bands_than_bins_are_bounded_by_them() -> None:
    masks = SpecAugment(frequency_width=100)
    assert masks(tensor(20, 8), random.Random(0)).shape == (20, 8)


@pytest.mark.parametrize("factor", [0.85, 1.0, 1.18])
def test_a_warped_tone_lies_at_its_frequency_times_the_factor(factor: float) -> None:
    features = MelFeatures(FeatureConfig(n_mels=80))
    time = torch.arange(RATE) / RATE
    tone, moved = (
        features.whole(torch.sin(2 * torch.pi * hz * time)) for hz in (1500.0, 1500.0 * factor)
    )
    found = warp_frequencies(tone, factor)
    assert abs(int(found[50].argmax()) - int(moved[50].argmax())) <= 1
    if factor == 1.0:
        assert torch.allclose(found, tone, atol=1e-4)


def test_warping_draws_another_factor_each_time() -> None:
    warps = SpecAugment(frequency_masks=0, time_masks=0, warp=(0.85, 1.18))
    mel = tensor(50, 80)
    first, second = (warps(mel, random.Random(seed)) for seed in (1, 2))
    assert bool((first != second).any())
    assert bool((first != mel).any())
