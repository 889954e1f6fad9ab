import numpy as np
import pytest
from spoken import speech

from pianissimo.audio import simulate
from pianissimo.audio.level import rms_level
from pianissimo.audio.simulate import LARGE_ROOM, MEDIUM_ROOM, SMALL_ROOM

RATE = 16_000


def rng(seed=0):
    return np.random.default_rng(seed)


def band_level(samples, low, high):
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    return 10 * np.log10(power[(hertz >= low) & (hertz < high)].mean() + 1e-20)


def decay_seconds(response):
    """T60 from the slope of the backward integral between -5 and -25 dB (Schroeder)."""
    left = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2))
    start, end = np.argmax(left < -5), np.argmax(left < -25)
    return 3 * (end - start) / RATE


@pytest.mark.parametrize(
    ("room", "seconds"), [(SMALL_ROOM, 0.31), (MEDIUM_ROOM, 0.59), (LARGE_ROOM, 0.83)]
)
def test_rooms_ring_as_long_as_they_should(room, seconds):
    pytest.importorskip("pyroomacoustics")
    times = [decay_seconds(simulate.room_response(room, 3.0, rng(seed))) for seed in range(4)]
    assert np.mean(times) == pytest.approx(seconds, rel=0.2)


def test_the_room_is_drawn_by_the_seed_and_the_near_voice_is_direct():
    pytest.importorskip("pyroomacoustics")
    far = simulate.room_response(MEDIUM_ROOM, 3.0, rng(1))
    np.testing.assert_array_equal(far, simulate.room_response(MEDIUM_ROOM, 3.0, rng(1)))
    assert not np.array_equal(far, simulate.room_response(MEDIUM_ROOM, 3.0, rng(2)))
    near = simulate.room_response(MEDIUM_ROOM, 0.5, rng(1))
    direct = round(0.003 * RATE)

    def ratio(response):
        return 10 * np.log10(np.sum(response[:direct] ** 2) / np.sum(response[direct:] ** 2))

    assert ratio(near) > 0 > ratio(far)
    assert -14 < ratio(far) < -6  # 3 m in such rooms: -8.6 to -10.4 dB
    assert np.sum(far**2) == pytest.approx(1.0)


def test_convolution_is_convolution():
    x, response = rng().standard_normal(700), rng(1).standard_normal(90)
    expected = np.convolve(x, response)[:700]
    np.testing.assert_allclose(simulate.convolve(x, response), expected, atol=1e-9)


@pytest.mark.parametrize("slope_db", [0.0, 3.0, 6.0])
def test_noise_has_its_colour(slope_db):
    noise = simulate.colored_noise(160_000, slope_db, rng())
    assert rms_level(noise) == pytest.approx(0.0, abs=1e-6)
    fall = band_level(noise, 500, 1000) - band_level(noise, 2000, 4000)
    assert fall == pytest.approx(2 * slope_db, abs=0.5)


@pytest.mark.parametrize("make", [simulate.hvac, simulate.key_clicks, simulate.music])
def test_noises_are_drawn_by_the_seed_and_have_unit_level(make):
    noise = make(80_000, rng(3))
    assert len(noise) == 80_000
    assert rms_level(noise) == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_array_equal(noise, make(80_000, rng(3)))
    assert not np.array_equal(noise, make(80_000, rng(4)))
    assert make(0, rng()).shape == (0,)


def test_the_telephone_has_its_band():
    wide = rng().standard_normal(64_000) * 0.1
    narrow = simulate.telephone(wide, "ALAW")
    assert len(narrow) == len(wide)
    inside = band_level(narrow, 600, 3000)
    assert inside > band_level(narrow, 3800, 8000) + 30
    assert inside > band_level(narrow, 20, 150) + 20
    lag = np.argmax(np.correlate(wide[2000:6000], narrow[2000:6000], "full")) - 3999
    assert abs(lag) <= 1


@pytest.mark.parametrize(("codec", "snr_db"), [("ULAW", 34.0), ("ALAW", 28.0), ("GSM610", 12.6)])
def test_codecs_cost_what_was_measured_at_minus_43(codec, snr_db):
    spoken = simulate.at_rms(speech(6).astype(np.float64), -43.0)
    clean, coded = simulate.telephone(spoken, None), simulate.telephone(spoken, codec)
    lag = int(np.argmax(np.correlate(coded[:8000], clean[:8000], "full"))) - 7999
    clean = np.roll(clean, lag)
    coded *= np.dot(coded, clean) / np.dot(coded, coded)
    assert rms_level(clean) - rms_level(coded - clean) == pytest.approx(snr_db, abs=4.0)


@pytest.mark.parametrize("codec", ["ULAW", "ALAW", "GSM610"])
def test_a_line_that_is_overdriven_is_clipped(codec):
    assert np.abs(simulate.telephone(speech(1).astype(np.float64) * 500, codec)).max() < 2.0


def test_soft_clipping_keeps_the_peak_and_small_samples():
    x = np.linspace(-1, 1, 2001)
    bent = simulate.soft_clip(x)
    assert np.abs(bent).max() <= 1.0
    assert (np.diff(bent) >= 0).all()
    inner = np.abs(x) < 0.7
    np.testing.assert_array_equal(bent[inner], x[inner])
    assert not simulate.soft_clip(np.zeros(5)).any()


def test_sixteen_bits_add_noise_and_no_distortion():
    tone = 2.5 / 32768 * np.sin(2 * np.pi * 440 * np.arange(160_000) / RATE)
    written = simulate.quantize(tone, rng()).astype(np.float64) / 32768
    error = written - tone
    assert rms_level(error) == pytest.approx(-96.3, abs=0.3)
    assert abs(np.corrcoef(error, tone)[0, 1]) < 0.01
    assert band_level(written, 1310, 1330) < band_level(written, 435, 445) - 20  # 3rd harmonic
    assert not simulate.quantize(np.zeros(100), rng()).any()
    assert simulate.quantize(np.array([3.0, -3.0]), rng()).tolist() == [32767, -32768]


def test_babble_is_several_voices():
    voices = [np.sin(np.arange(30_000) * pitch) for pitch in (0.02, 0.05, 0.11)]
    mixed = simulate.babble(voices, 16_000, rng())
    assert rms_level(mixed) == pytest.approx(0.0, abs=1e-6)
    shares = [abs(np.dot(mixed, np.exp(1j * np.arange(16_000) * p))) for p in (0.02, 0.05, 0.11)]
    assert min(shares) > 0.2 * max(shares)
