import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pianissimo.audio.resample import StreamingResampler
from pianissimo.errors import AudioValueError, StreamError

RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000]


def run(samples, source, target, sizes=()):
    resampler = StreamingResampler(source, target)
    out, start = [], 0
    for size in sizes:
        out.append(resampler.push(samples[start : start + size]))
        start += size
    return np.concatenate([*out, resampler.push(samples[start:]), resampler.finish()])


def noise(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20_000),
    st.sampled_from(RATES),
    st.sampled_from([8_000, 16_000, 24_000]),
    st.lists(st.integers(0, 5_000), max_size=8),
)
def test_chunked_equals_whole(n, source, target, sizes):
    samples = noise(n)
    whole = run(samples, source, target)
    assert len(whole) == (2 * n * target + source) // (2 * source)
    np.testing.assert_array_equal(run(samples, source, target, sizes), whole)


@pytest.mark.parametrize("source", RATES)
def test_output_is_aligned_in_time(source):
    target, hertz = 16_000, 440.0
    out = run(np.sin(2 * np.pi * hertz * np.arange(source) / source), source, target)
    ideal = np.sin(2 * np.pi * hertz * np.arange(target) / target)
    inner = slice(1_000, -1_000)
    assert np.abs(out - ideal)[inner].max() < 1e-4


def test_tones_above_the_target_band_are_removed():
    out = run(np.sin(2 * np.pi * 11_000 * np.arange(48_000) / 48_000), 48_000, 16_000)
    assert np.abs(out[500:-500]).max() < 1e-4


def test_equal_rates_pass_through_as_a_copy():
    samples = noise(100)
    resampler = StreamingResampler(16_000, 16_000)
    out = resampler.push(samples)
    np.testing.assert_array_equal(out, samples)
    assert not np.shares_memory(out, samples)
    assert len(resampler.finish()) == 0


def test_samples_come_out_while_the_stream_runs():
    resampler = StreamingResampler(48_000, 16_000)
    emitted = sum(len(resampler.push(noise(480))) for _ in range(100))
    assert 15_000 < emitted <= 16_000


def test_a_finished_resampler_refuses_more():
    resampler = StreamingResampler(8_000, 16_000)
    resampler.finish()
    with pytest.raises(StreamError, match="finished"):
        resampler.push(noise(10))
    with pytest.raises(StreamError, match="finished"):
        resampler.finish()


def test_only_mono_blocks_are_taken():
    with pytest.raises(AudioValueError, match="mono"):
        StreamingResampler(8_000, 16_000).push(np.zeros((10, 2)))


@pytest.mark.parametrize("rate", [0, -1, 999, 384_001, 16_000.5, None, "fast", float("nan")])
def test_unusable_rates_are_refused(rate):
    with pytest.raises(AudioValueError, match="sample rate"):
        StreamingResampler(rate, 16_000)
    with pytest.raises(AudioValueError, match="sample rate"):
        StreamingResampler(16_000, rate)
