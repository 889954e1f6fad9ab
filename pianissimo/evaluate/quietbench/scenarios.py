"""The scenarios of QuietBench: from clean speech to recordings of known level and SNR.

    clean ──> room ──> active speech level ──> + noise at its own level ──> line ──> 16 bits

Level alone is not difficulty, so every scenario fixes level and SNR separately. All is computed in
float64 and quantized once, at the end. The recipe, the seed and what was measured stand in each
clip's record.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pianissimo.audio import simulate
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import active_speech_level, amplitude, measure_levels, rms_level
from pianissimo.audio.simulate import (
    LARGE_ROOM,
    MEDIUM_ROOM,
    SMALL_ROOM,
    Background,
    Codec,
    Room,
)
from pianissimo.errors import AudioValueError

Float64 = npt.NDArray[np.float64]

RECIPE_VERSION = 2
"""Part of every clip's identity: a new version rebuilds and reruns everything."""
TOLERANCE_DB = 0.5
MARGIN_SECONDS = 0.3
"""Seconds of noise alone before and after the speech."""


@dataclass(frozen=True)
class Scenario:
    """One kind of difficult recording.

    `level_db` is the active speech level of the recording, `snr_db` its distance from the noise,
    `noise_db` a fixed level of noise. Rooms are drawn from `rooms`; `codecs` alternate.
    """

    name: str
    title: str
    level_db: float
    rooms: tuple[Room, ...] = ()
    distance: float = 0.0
    noise: Background | None = None
    snr_db: float | None = None
    noise_db: float | None = None
    codecs: tuple[Codec, ...] = ()


SCENARIOS = (
    Scenario("control", "untouched but for its level", -26.0),
    Scenario("soft", "soft voice, 0.5 m", -32.0, (SMALL_ROOM,), 0.5, "hvac", snr_db=25.0),
    Scenario(
        "far3m",
        "across the room, 3 m",
        -38.0,
        (SMALL_ROOM, MEDIUM_ROOM, LARGE_ROOM),
        3.0,
        "diffuse",
        snr_db=15.0,
    ),
    Scenario("whisper", "level only: voiced, but as soft", -45.0, noise="floor", noise_db=-70.0),
    Scenario("music", "over a music bed", -40.0, noise="music", snr_db=5.0),
    Scenario("phone", "old telephone", -36.0, noise="hvac", snr_db=20.0, codecs=("ALAW", "GSM610")),
)
LOW_VOLUME = ("soft", "far3m", "whisper", "music", "phone")
"""The five scenarios, and `control`, which they are compared with."""
SWEEP_LEVELS_DB = (-20.0, -26.0, -32.0, -38.0, -45.0, -50.0, -55.0, -60.0)
NON_SPEECH_SECONDS = 10.0
NON_SPEECH = (
    "digital silence",
    "microphone -85",
    "microphone -70",
    "microphone -55",
    "hvac",
    "keys",
    "music",
    "babble",
)
NON_SPEECH_LEVELS_DB = {"hvac": -50.0, "keys": -45.0, "music": -40.0, "babble": -50.0}


@dataclass(frozen=True)
class Built:
    """A simulated recording, and measurements made while it was built.

    Samples are int16, or float32 in the sweep that shows the cost of 16 bits.
    """

    samples: npt.NDArray[np.int16] | npt.NDArray[np.float32]
    measured: dict[str, Any]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.samples.tobytes()).hexdigest()


def build(
    clean: npt.NDArray[np.float32],
    scenario: Scenario,
    seed: Sequence[int],
    *,
    quantized: bool = True,
) -> Built:
    """Simulate a scenario with clean speech (n,) at 16 kHz; the same seed gives the same bits.

    Raises AudioValueError if no speech level can be measured, and MissingExtraError if the scenario
    has a room and pyroomacoustics is not installed.
    """
    rng = np.random.default_rng(seed)
    margin = np.zeros(round(MARGIN_SECONDS * SAMPLE_RATE))
    speech: Float64 = np.concatenate([margin, clean.astype(np.float64), margin])
    record: dict[str, Any] = {"scenario": scenario.name, "recipe": RECIPE_VERSION}
    room: Room | None = None
    if scenario.rooms:
        room = scenario.rooms[int(rng.integers(len(scenario.rooms)))]
        speech = simulate.convolve(speech, simulate.room_response(room, scenario.distance, rng))
        record |= {"room": room.size, "rt60_seconds": room.rt60_seconds}
    speech = at_active_level(speech, scenario.level_db)
    noise = _noise(scenario, room, len(speech), rng)
    mixed = speech + noise
    if scenario.codecs:
        codec = scenario.codecs[int(rng.integers(len(scenario.codecs)))]
        mixed, speech = simulate.telephone(mixed, codec), simulate.telephone(speech, codec)
        # The telephone band removes energy; the level is that after it.
        lost = scenario.level_db - active_speech_level(speech.astype(np.float32))[0]
        mixed, speech = mixed * amplitude(lost), speech * amplitude(lost)
        record |= {"codec": codec}
    level = active_speech_level(speech.astype(np.float32))[0]
    if abs(level - scenario.level_db) > TOLERANCE_DB:
        raise AudioValueError(
            f"the speech has {level:.1f} dB instead of {scenario.level_db}: remove the recording, "
            "its speech is too short or too unsteady"
        )
    samples = simulate.quantize(mixed, rng) if quantized else mixed.astype(np.float32)
    levels = measure_levels(samples / np.float32(32768 if quantized else 1))
    record |= {
        "quantized": quantized,
        "speech_db": level,
        "noise_db": rms_level(mixed - speech),
        "snr_db": None if scenario.noise is None else level - rms_level(mixed - speech),
        **{f"mixed_{name}": value for name, value in asdict(levels).items()},
    }
    return Built(samples, record)


def at_active_level(speech: Float64, level_db: float) -> Float64:
    """Speech scaled so that its active speech level is `level_db`; AudioValueError for silence."""
    for _ in range(2):  # the level is measured on a grid: the second step removes the rest
        level, activity = active_speech_level(speech.astype(np.float32))
        if activity == 0:
            raise AudioValueError("the clip has no speech whose level could be set, only silence")
        speech = speech * amplitude(level_db - level)
    return speech


def _noise(scenario: Scenario, room: Room | None, n: int, rng: np.random.Generator) -> Float64:
    if scenario.noise is None:
        return np.zeros(n)
    noise = simulate.background(scenario.noise, n, rng)
    if scenario.noise == "diffuse" and room is not None:
        noise = simulate.convolve(noise, simulate.room_response(room, scenario.distance, rng))
    if scenario.noise_db is not None:
        return simulate.at_rms(noise, scenario.noise_db)
    assert scenario.snr_db is not None
    inner = slice(round(MARGIN_SECONDS * SAMPLE_RATE), n - round(MARGIN_SECONDS * SAMPLE_RATE))
    wanted = scenario.level_db - scenario.snr_db
    return noise * amplitude(wanted - rms_level(noise[inner]))


def build_non_speech(kind: str, voices: list[Float64], seed: Sequence[int]) -> Built:
    """Ten seconds without words: silence, noise, keys, music or distant babble."""
    rng = np.random.default_rng(seed)
    n = round(NON_SPEECH_SECONDS * SAMPLE_RATE)
    if kind == "digital silence":
        out = np.zeros(n)
    elif kind.startswith("microphone"):
        out = simulate.at_rms(simulate.colored_noise(n, 1.0, rng), float(kind.split()[1]))
    elif kind == "babble":
        response = simulate.room_response(LARGE_ROOM, 4.0, rng)
        out = simulate.convolve(simulate.babble(voices, n, rng), response)
        out = simulate.at_rms(out, NON_SPEECH_LEVELS_DB[kind])
    else:
        makers = {"hvac": simulate.hvac, "keys": simulate.key_clicks, "music": simulate.music}
        out = simulate.at_rms(makers[kind](n, rng), NON_SPEECH_LEVELS_DB[kind])
        out = out + simulate.at_rms(simulate.colored_noise(n, 1.0, rng), -80.0)
    samples = simulate.quantize(out, rng)
    levels = measure_levels(samples / np.float32(32768))
    record = {"scenario": "nonspeech", "kind": kind, "recipe": RECIPE_VERSION}
    return Built(samples, record | {f"mixed_{k}": v for k, v in asdict(levels).items()})


def at_sweep_level(scenario: Scenario, level_db: float) -> Scenario:
    """The control scenario at another level."""
    return replace(scenario, level_db=level_db)


def seed_of(*parts: object) -> tuple[int, ...]:
    """A seed from names and numbers, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
