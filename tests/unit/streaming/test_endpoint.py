import numpy as np
import pytest

from pianissimo.errors import OptionError
from pianissimo.streaming.endpoint import EndpointRules, SpeechMeter, WatchdogRules

RATE = 16_000


@pytest.mark.parametrize(
    ("first", "last", "heard", "expected"),
    [
        (1.0, 2.0, 2.79, None),
        (1.0, 2.0, 2.8, "endpoint"),
        (1.0, 1.2, 2.1, None),  # too brief: it gets twice the time
        (1.0, 1.2, 2.8, "endpoint"),
        (1.0, 30.9, 31.0, "length"),
        (1.0, 30.1, 31.0, "endpoint"),
        (1.0, 30.9, 30.95, None),
    ],
)
def test_the_rules(first: float, last: float, heard: float, expected: str | None) -> None:
    rules = EndpointRules(0.8, 0.24, 30.0)
    assert rules.verdict(first, last, heard) == expected


@pytest.mark.parametrize("bad", [{"trailing_silence": 0.0}, {"maximum_utterance": 0.5}])
def test_rules_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        EndpointRules(**bad)


def test_a_watchdog_that_could_not_replay_what_it_missed_is_refused() -> None:
    with pytest.raises(OptionError):
        WatchdogRules(speech_seconds=5.0, replay_seconds=4.0)


def sound(db: float, seconds: float, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return (drawn * 10 ** (db / 20)).astype(np.float32)


def test_the_meter_counts_what_stands_out_of_the_background() -> None:
    meter = SpeechMeter()
    assert meter.push(sound(-70, 1.0), RATE) == 0.0
    assert meter.push(sound(-30, 0.5), RATE) == pytest.approx(0.5)
    assert meter.push(sound(-70, 0.5), RATE) == 0.0


def test_steady_noise_is_no_speech_however_loud() -> None:
    meter = SpeechMeter()
    assert sum(meter.push(sound(-20, 1.0, seed), RATE) for seed in range(5)) < 0.2


def test_a_background_that_rises_is_followed() -> None:
    meter = SpeechMeter()
    meter.push(sound(-70, 1.0), RATE)
    heard = [meter.push(sound(-50, 1.0, seed), RATE) for seed in range(12)]
    assert heard[0] == pytest.approx(1.0)
    assert heard[-1] < 0.1


@pytest.mark.parametrize("samples", [0, 1, 159])
def test_less_than_a_frame_is_nothing(samples: int) -> None:
    assert SpeechMeter().push(np.ones(samples, np.float32), RATE) == 0.0


def test_digital_silence_is_nothing_and_stays_finite() -> None:
    meter = SpeechMeter()
    assert meter.push(np.zeros(RATE, np.float32), RATE) == 0.0
    assert meter.floor_dbfs == -120.0
