import dataclasses
import importlib.util
import os
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import as_int16, at_level, pink, speech, with_click
from tiny import cut

from pianissimo.audio import vad
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import load_audio
from pianissimo.audio.vad import (
    PRESETS,
    SpeechModel,
    Track,
    VadOptions,
    VoiceDetector,
    preset,
    probabilities,
    segments,
)
from pianissimo.errors import AudioValueError, MissingExtraError, OptionError

RATE = 16_000
ROOT = Path(__file__).resolve().parents[3]
SPEECH = Path(os.environ.get("PIANISSIMO_SPEECH", ROOT / "../shared/data/speech"))


@pytest.fixture(scope="module")
def silero() -> SpeechModel:
    if not vad.available():
        pytest.skip("silero-vad is not installed")
    return SpeechModel()


@pytest.fixture(params=["silero", "energy"])
def model(request):
    return request.getfixturevalue("silero") if request.param == "silero" else None


def paused():
    """Speech from 1.0 to 4.0 s and from 6.0 to 9.0 s, in soft noise."""
    silence = np.zeros(RATE, np.float32)
    sentence = at_level(speech(3.0), -26)
    return np.concatenate([silence, sentence, silence, silence, sentence, silence]) + pink(10, -75)


def test_speech_is_found_where_it_is(model):
    spans = segments(paused(), model=model)
    assert len(spans) == 2
    for span, start in zip(spans, (1.0, 6.0), strict=True):
        assert start - 0.4 <= span.start <= start + 0.2
        assert start + 2.4 <= span.end <= start + 3.4
        assert span.over_noise_db > 20
        assert span.probability > 0.9 or model is None


@pytest.mark.parametrize("sizes", [[1, 100, 511], [512], [5_000, 0], [48_000]])
def test_blocks_give_the_spans_of_the_whole(model, sizes):
    samples = paused()
    detector = VoiceDetector(model=model)
    state = detector.start()
    spans = [
        span for part in cut(len(samples), sizes) for span in detector.push(samples[part], state)
    ]
    spans += detector.finish(state)
    assert spans == segments(samples, model=model)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 70_000), st.lists(st.integers(0, 6_000), max_size=12))
def test_any_split_gives_the_same_spans(n, sizes):
    samples = paused()[12_000:][:n]
    detector = VoiceDetector(PRESETS["quiet"])
    state = detector.start()
    spans, start = [], 0
    for size in [*sizes, n]:
        spans += detector.push(samples[start : start + size], state)
        start += size
    assert [*spans, *detector.finish(state)] == segments(samples, PRESETS["quiet"])


def test_the_first_span_comes_before_the_second_begins(model):
    samples = paused()
    detector = VoiceDetector(model=model)
    state = detector.start()
    assert len(detector.push(samples[: round(5.4 * RATE)], state)) == 1


@pytest.mark.parametrize("step", [160, 1600, 20_000])
def test_many_streams_in_one_call_equal_each_alone(model, step):
    """To the bit, with streams that begin at different times and have blocks of other sizes."""
    detector = VoiceDetector(model=model)
    streams = [paused()[700 * i :] for i in range(6)]
    alone, expected = [], []
    for samples in streams:
        state = detector.start()
        expected.append(detector.push(samples, state))
        alone.append(state)
    states, spans = [detector.start() for _ in streams], [[] for _ in streams]
    ends = [range(0, len(samples), step + 16 * i) for i, samples in enumerate(streams)]
    for turn in range(max(map(len, ends))):
        running = [i for i, starts in enumerate(ends) if turn < len(starts)]
        blocks = [streams[i][ends[i][turn] : ends[i][turn] + ends[i].step] for i in running]
        found = detector.push_many(blocks, [states[i] for i in running])
        for i, complete in zip(running, found, strict=True):
            spans[i] += complete
    assert spans == expected
    for state, single in zip(states, alone, strict=True):
        for name, value in dataclasses.asdict(single).items():
            np.testing.assert_array_equal(getattr(state, name), value, err_msg=name)


def test_nothing_is_taken_when_one_of_many_blocks_is_unusable(model):
    detector = VoiceDetector(model=model)
    states = [detector.start(), detector.start()]
    with pytest.raises(AudioValueError):
        detector.push_many([np.zeros(600), np.array([0.0, np.nan])], states)
    assert [state.received for state in states] == [0, 0]


def test_states_of_version_0_1_continue(silero):
    detector = VoiceDetector(model=silero)
    state, other = detector.start(), detector.start()
    detector.push(paused()[:20_480], state)
    detector.push(paused()[:20_480], other)
    other.model = other.model.reshape(2, 1, 1, 128)
    for each in (state, other):
        detector.push(paused()[20_480:], each)
    assert state.max_probability == other.max_probability > 0


def test_another_network_is_refused_with_the_version_that_fits(monkeypatch, silero, tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(b"\x3a\x00")  # a graph without tensors
    monkeypatch.setattr("pianissimo.audio.speech_model._model_path", lambda: path)
    with pytest.raises(MissingExtraError, match="another network"):
        segments(np.zeros(16_000, np.float32), model=SpeechModel())


def test_probabilities_are_those_of_the_package(silero):
    sequence = pytest.importorskip("silero_vad.sequence_vad")
    samples = paused()
    (folder,) = importlib.util.find_spec("silero_vad").submodule_search_locations
    path = Path(folder) / "data" / "silero_vad.onnx"  # the one that streams window by window
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (windows,) = sequence.frame_blocks(samples, 512, 64, 10_000)
    state, rate, expected = np.zeros((2, 1, 128), np.float32), np.array(16_000), []
    for window in windows:
        inputs = {"input": window[None], "state": state, "sr": rate}
        output, state = session.run(None, inputs)
        expected.append(output[0, 0])
    expected = np.array(expected)
    np.testing.assert_allclose(probabilities(samples, silero), expected, atol=1e-4)


def test_the_stream_sees_the_probabilities_of_the_whole(silero):
    samples = paused()
    detector = VoiceDetector(model=silero)
    state = detector.start()
    for part in cut(len(samples), [777]):
        detector.push(samples[part], state)
    detector.finish(state)
    assert state.max_probability == pytest.approx(
        float(probabilities(samples, silero).max()), abs=1e-5
    )


@pytest.mark.parametrize("name", ["normal", "quiet"])
@pytest.mark.parametrize("mode", ["on", "auto", "off"])
def test_speech_at_minus_53_is_kept(model, name, mode):
    samples = as_int16(speech(5.5, -53))
    spans = segments(FrontEnd(mode).whole(samples).samples, preset(name), model)
    assert sum(span.end - span.start for span in spans) > 4.5


@pytest.mark.parametrize("name", ["normal", "quiet"])
def test_people_at_minus_53_are_kept(silero, name):
    clip = SPEECH / "misc-en" / "jfk.flac"
    if not clip.is_file():
        pytest.skip("no recorded speech: set PIANISSIMO_SPEECH to a folder with manifest.jsonl")
    samples = as_int16(at_level(load_audio(clip), -53.0))
    for mode in ("on", "auto", "off"):
        spans = segments(FrontEnd(mode).whole(samples).samples, preset(name), silero)
        assert sum(span.end - span.start for span in spans) > 8.0


def test_energy_gives_a_second_chance_where_the_model_is_deaf(silero):
    class Deaf(SpeechModel):
        def step(self, windows, state):
            probability, state = super().step(windows, state)
            return probability * 0, state

    samples = speech(5.5, -50) + pink(5.5, -80)
    assert segments(samples, model=Deaf())
    assert not segments(samples, VadOptions(energy_db=None), Deaf())


@pytest.mark.parametrize("level_db", [-85, -70, -55, -40])
@pytest.mark.parametrize("name", ["normal", "strict"])
def test_noise_is_no_speech(model, level_db, name):
    assert segments(pink(10, level_db), preset(name), model) == []


def test_clicks_hiss_and_silence_are_no_speech(model):
    options = preset("normal")
    assert segments(with_click(pink(5, -70), 2.0), options, model) == []
    assert segments(np.zeros(5 * RATE, np.float32), options, model) == []
    burst = np.random.default_rng(0).standard_normal(5 * RATE).astype(np.float32)
    burst *= np.where(np.arange(5 * RATE) % RATE < RATE / 4, 0.1, 0.001)
    assert segments(burst, VadOptions(), None) == []  # loud, but not where speech has its energy


def test_the_presets_are_ordered():
    faint = speech(5.5, -40) + pink(5.5, -48)
    found = {
        name: sum(span.end - span.start for span in segments(faint, options))
        for name, options in PRESETS.items()
    }
    assert found["strict"] <= found["normal"] <= found["quiet"]
    assert found["strict"] == 0.0 < found["quiet"]


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 1600])
def test_next_to_nothing_gives_spans_within_it(model, n):
    for span in segments(speech(1)[:n], PRESETS["quiet"], model):
        assert 0 <= span.start < span.end <= n / RATE


def test_spans_follow_each_other_without_overlap(model):
    samples = np.concatenate([speech(2, -30), np.zeros(RATE * 7 // 10, np.float32)] * 5)
    spans = segments(samples, model=model)
    assert len(spans) > 1
    assert all(a.end <= b.start for a, b in pairwise(spans))


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [1e4]])
def test_bad_samples_are_refused(bad):
    with pytest.raises(AudioValueError):
        segments(np.array(bad))


@pytest.mark.parametrize(
    "options", [{"onset": 0.0}, {"offset": 0.5}, {"pad_seconds": -1}, {"energy_db": 0.0}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(OptionError):
        dataclasses.replace(VadOptions(), **options)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(OptionError, match="normal, quiet, strict"):
        preset("loud")


def test_a_track_is_what_the_detector_thought_when(model):
    detector = VoiceDetector(model=model)
    state = detector.start()
    state.track = Track()
    detector.push(np.concatenate([np.zeros(2 * RATE), speech(3, -30)]).astype(np.float32), state)
    assert len(state.track.values) == state.windows
    assert state.track.highest(0.0, 1.9) < 0.3 <= state.track.highest(2.0, 4.0)
    part = state.track.part(1.0, 3.0)
    assert part.first == 31
    assert part.values == state.track.values[31:93]
    state.track.forget(2.0)
    assert state.track.first == 62
    assert state.track.highest(2.0, 4.0) >= 0.3
    assert state.track.highest(0.0, 1.0) == 1.0  # forgotten: nothing is known
    assert Track().highest(0.0, 1.0) == 1.0


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(MissingExtraError, match="pip install silero-vad"):
        SpeechModel()
