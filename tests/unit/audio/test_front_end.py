import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import as_int16, pink, scaled, speech
from tiny import cut

from pianissimo.audio.filters import STREAMS_TOGETHER, OffsetState, remove_offset
from pianissimo.audio.front_end import (
    FrontEnd,
    export_state,
    import_state,
)
from pianissimo.audio.gain import GAIN_MODES, GainOptions
from pianissimo.audio.level import measure_levels
from pianissimo.errors import AudioValueError, OptionError

RATE = 16_000


def push_all(front_end, samples, state, sizes):
    parts = [front_end.push(samples[part], state) for part in cut(len(samples), sizes)]
    parts.append(front_end.finish(state))
    return np.concatenate([part.samples for part in parts]), [
        reading for part in parts for reading in part.readings
    ]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("mode", GAIN_MODES)
@pytest.mark.parametrize("sizes", [[0, 1, 100, 5_000], [16_000], [333_333]])
def test_blocks_give_what_the_whole_gives(live, mode, sizes):
    front_end = FrontEnd(mode)
    samples = speech(70, -45) + pink(70, -80)
    whole, readings = push_all(front_end, samples, front_end.start(live=live), [len(samples)])
    parts, same = push_all(front_end, samples, front_end.start(live=live), sizes)
    assert len(whole) == len(samples)
    np.testing.assert_array_equal(parts, whole)
    assert same == readings


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40_000), st.lists(st.integers(0, 9_000), max_size=10))
def test_a_short_recording_may_be_cut_anywhere(n, sizes):
    front_end = FrontEnd("on")
    samples = speech(2.5, -50)[:n]
    state = front_end.start(live=False)
    out, start = [], 0
    for size in [*sizes, n]:
        out.append(front_end.push(samples[start : start + size], state).samples)
        start += size
    out.append(front_end.finish(state).samples)
    np.testing.assert_array_equal(np.concatenate(out), front_end.whole(samples).samples)


@pytest.mark.parametrize("gain_db", np.arange(-50.0, 0.1, 12.5))
def test_a_recording_of_any_level_comes_out_the_same(gain_db):
    loud = speech(8, -16)
    reference = measure_levels(FrontEnd("on").whole(loud).samples).speech_db
    out = FrontEnd("on").whole(scaled(loud, gain_db)).samples
    assert measure_levels(out).speech_db == pytest.approx(reference, abs=0.1)
    assert reference == pytest.approx(-26, abs=0.5)


def test_a_recording_has_one_gain():
    samples = speech(20, -45)
    gained = FrontEnd("on").whole(samples)
    centered = remove_offset(samples, OffsetState())
    ratio = gained.samples[np.abs(centered) > 1e-4] / centered[np.abs(centered) > 1e-4]
    assert ratio.max() / ratio.min() < 1.0001
    assert len(gained.readings) == 1
    assert gained.readings[0].gain_db == pytest.approx(19, abs=0.5)


def test_a_long_recording_changes_its_gain_in_pauses_only():
    quiet, loud = speech(40, -50), speech(40, -20)
    front_end = FrontEnd("on")
    gained = front_end.whole(np.concatenate([quiet, loud]) + pink(80, -90))
    ends = [reading.seconds for reading in gained.readings]
    assert ends[-1] == 80.0
    assert all(b - a <= 30 for a, b in zip([0.0, *ends], ends, strict=False))
    assert gained.readings[0].gain_db == pytest.approx(24, abs=1)
    assert gained.readings[-1].gain_db == pytest.approx(-6, abs=1)
    levels = measure_levels(gained.samples[: 26 * RATE])
    for end in ends[:-1]:
        around = gained.samples[round((end - 0.04) * RATE) : round((end + 0.04) * RATE)]
        assert measure_levels(around).rms_db < levels.speech_db - 10


def test_a_short_last_stretch_keeps_the_gain():
    front_end = FrontEnd("on")
    samples = np.concatenate([speech(28, -50), pink(2.1, -60)])
    readings = front_end.whole(samples).readings
    assert len(readings) == 2
    assert readings[0].gain_db == readings[1].gain_db > 20


def test_silence_and_noise_lose_only_their_offset():
    for samples in (np.zeros(RATE, np.float32), pink(10, -60)):
        for front_end in (FrontEnd("on"), FrontEnd("auto")):
            expected = remove_offset(samples, OffsetState())
            np.testing.assert_array_equal(front_end.whole(samples).samples, expected)


def test_blocks_yields_the_whole():
    samples = speech(65, -45)
    front_end = FrontEnd("on")
    blocks = front_end.blocks(samples[part] for part in cut(len(samples), [20 * RATE]))
    np.testing.assert_array_equal(np.concatenate(list(blocks)), front_end.whole(samples).samples)
    assert list(front_end.blocks([])) == []


@pytest.mark.parametrize("mode", ["on", "auto", "off"])
def test_many_streams_in_one_call_equal_each_alone(mode):
    """To the bit, with blocks of other sizes, also empty ones, and more streams than one call."""
    front_end = FrontEnd(mode)
    levels = [-60, -50, -45, -30, -20, -8]
    clips = [speech(3, level) + pink(3, level - 25, seed=i) for i, level in enumerate(levels)]
    streams = [clips[i % 6][37 * i :].astype(np.float32) for i in range(STREAMS_TOGETHER + 3)]
    sizes = [1600, 320, 777, 0, 5000, 1600, 13, 160]
    states = [front_end.start(live=True) for _ in streams]
    parts, readings = [[] for _ in streams], [[] for _ in streams]
    places, turn = [0] * len(streams), 0
    while any(place < len(samples) for place, samples in zip(places, streams, strict=True)):
        chosen = [sizes[(turn + i) % len(sizes)] for i in range(len(streams))]
        blocks = [x[at : at + n] for x, at, n in zip(streams, places, chosen, strict=True)]
        for i, gained in enumerate(front_end.push_many(blocks, states)):
            parts[i].append(gained.samples)
            readings[i] += gained.readings
        places = [place + size for place, size in zip(places, chosen, strict=True)]
        turn += 1
    for i, samples in enumerate(streams):
        expected, same = push_all(front_end, samples, front_end.start(live=True), [len(samples)])
        out = np.concatenate([*parts[i], front_end.finish(states[i]).samples])
        np.testing.assert_array_equal(out, expected)
        assert readings[i] == same


def test_unusable_samples_of_one_stream_do_not_affect_the_others():
    front_end = FrontEnd("on")
    samples = speech(1, -40)
    states = [front_end.start(live=True) for _ in range(3)]
    pushed = front_end.push_many([samples, np.array([0.0, np.nan]), samples], states)
    assert isinstance(pushed[1], AudioValueError)
    again = front_end.push_many([samples[:0], samples, samples[:0]], states)
    np.testing.assert_array_equal(again[1].samples, pushed[0].samples)
    np.testing.assert_array_equal(pushed[0].samples, pushed[2].samples)
    assert [len(again[0].samples), len(again[2].samples)] == [0, 0]


@pytest.mark.parametrize("live", [True, False])
def test_a_stream_goes_on_from_a_stored_state(live):
    front_end = FrontEnd("on")
    samples = as_int16(speech(34, -45))
    expected, _ = push_all(front_end, samples, front_end.start(live=live), [len(samples)])
    state = front_end.start(live=live)
    half = 31 * RATE + 77
    first = front_end.push(samples[:half], state).samples
    stored = json.dumps(export_state(state), default=lambda array: array.tolist())
    again = import_state(json.loads(stored))
    second = front_end.push(samples[half:], again).samples
    out = np.concatenate([first, second, front_end.finish(again).samples])
    np.testing.assert_array_equal(out, expected)
    assert again.gain_db == pytest.approx(19, abs=4)


@pytest.mark.parametrize("data", [{}, {"live": None, "recording": None}, {"live": {}, "x": 1}])
def test_other_data_is_no_state(data):
    with pytest.raises(OptionError, match="not the state"):
        import_state(data)


def test_streams_do_not_meet():
    front_end = FrontEnd("on")
    samples = [speech(6, -50), speech(6, -20)]
    alone = [push_all(front_end, x, front_end.start(live=True), [1600])[0] for x in samples]
    states = [front_end.start(live=True) for _ in samples]
    out = [[], []]
    for part in cut(len(samples[0]), [1600]):
        for i in range(2):
            out[i].append(front_end.push(samples[i][part], states[i]).samples)
    for i in range(2):
        out[i].append(front_end.finish(states[i]).samples)
        np.testing.assert_array_equal(np.concatenate(out[i]), alone[i])


def test_off_removes_only_the_offset_of_recordings_too():
    samples = scaled(speech(3), 30)
    expected = remove_offset(samples, OffsetState())
    np.testing.assert_array_equal(FrontEnd("off").whole(samples).samples, expected)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [3e4]])
def test_bad_samples_are_refused(live, bad):
    front_end = FrontEnd("on")
    with pytest.raises(AudioValueError):
        front_end.push(np.array(bad), front_end.start(live=live))


def test_unknown_modes_are_refused():
    with pytest.raises(OptionError, match="choose auto, on, off"):
        FrontEnd("loud")


def test_recordings_never_pass_the_ceiling():
    front_end = FrontEnd("on", GainOptions(ceiling_db=-3.0))
    samples = np.concatenate([speech(3, -50), scaled(speech(3, -50), 50)])
    assert np.abs(front_end.whole(samples).samples).max() <= 10 ** (-3 / 20)
