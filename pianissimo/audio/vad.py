"""Voice activity detection: probabilities of the Silero model, and energy as a second chance.

A gate at probability 0.5 removes quiet speech before the recognizer. Here the model gets leveled
samples, its thresholds are low, and a stretch that the model misses still counts when it is clearly
above the noise and most of its energy lies in the band of speech. Whether a recording is muted or
silent is decided on raw samples, see `hallucination.evidence`.

Windows are 512 samples (32 ms) on an absolute grid, so blocks of any size give the same spans. The
model runs on eight at a time (256 ms) of any number of streams, see `speech_model`; where it is not
installed only the energy decides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples, check_many, check_samples, quietest_point
from pianissimo.audio.speech_model import CONTEXT_SAMPLES, STATE_SHAPE
from pianissimo.audio.speech_model import WINDOW_SAMPLES as WINDOW_SAMPLES
from pianissimo.audio.speech_model import SpeechModel as SpeechModel
from pianissimo.audio.speech_model import available as available
from pianissimo.errors import AudioValueError, OptionError

WINDOW_SECONDS = WINDOW_SAMPLES / SAMPLE_RATE
GROUP_WINDOWS = 8
"""Windows per run of the model."""
SURE_PROBABILITY = 0.5
"""From this probability on, speech is likelier than not."""
MAX_SEGMENT_SECONDS = 28.0
"""What models with a window of 30 s get at once; several loop or drop text beyond it."""

Preset = Literal["normal", "quiet", "strict"]

_QUIETEST = 1e-12
_BINS = 160
_NOISE_RISE_DB = 3.0 * WINDOW_SECONDS
_NOISE_SHARE = 1 - math.exp(-WINDOW_SECONDS / 0.05)
_ENERGY_SHARE = 1 - math.exp(-WINDOW_SECONDS / 0.03)
_RUMBLE_HZ = 80.0
_SPEECH_BAND_HZ = (150.0, 4000.0)
_CUT_SECONDS, _PAUSE_SECONDS, _JOIN_SECONDS = 4.0, 0.1, 2.0


@dataclass(frozen=True)
class VadOptions:
    """When a stretch counts as speech.

    A span begins where the probability reaches `onset` and ends where it falls below `offset`; or,
    as a second chance, where the energy is `energy_db` over the noise with at least `band_share` of
    it in the speech band (None: no second chance). Gaps below `merge_seconds` are no gaps; spans
    shorter than `min_speech_seconds` are dropped, the others widened by `pad_seconds` on both sides
    and joined where they then meet. Raises OptionError for values that make no sense.
    """

    onset: float = 0.3
    offset: float = 0.15
    energy_db: float | None = 9.0
    band_share: float = 0.6
    min_speech_seconds: float = 0.1
    pad_seconds: float = 0.3
    merge_seconds: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.offset <= self.onset < 1 or not 0 <= self.band_share <= 1:
            raise OptionError(
                "expected 0 < offset <= onset < 1 and a band_share in 0..1, "
                f"not {self.offset}, {self.onset} and {self.band_share}"
            )
        seconds = (self.min_speech_seconds, self.pad_seconds, self.merge_seconds)
        if not all(0 <= value < math.inf for value in seconds):
            raise OptionError(f"seconds must be 0 or more, not {seconds}")
        if self.energy_db is not None and not 0 < self.energy_db < math.inf:
            raise OptionError(f"energy_db must be above 0, or None, not {self.energy_db}")


PRESETS: Mapping[Preset, VadOptions] = MappingProxyType(
    {
        "normal": VadOptions(),
        "quiet": VadOptions(
            onset=0.15, offset=0.08, energy_db=6.0, min_speech_seconds=0.06, pad_seconds=0.4
        ),
        "strict": VadOptions(
            onset=0.5, offset=0.35, energy_db=None, min_speech_seconds=0.25, pad_seconds=0.2
        ),
    }
)
"""All thresholds together: `quiet` keeps more, `strict` keeps only what the model is sure of."""


def preset(name: Preset) -> VadOptions:
    """The options of that name; OptionError for another."""
    if name not in PRESETS:
        raise OptionError(f"unknown VAD preset {name!r}; choose {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class SpeechSpan:
    """A stretch of speech, in seconds, and what speaks for it."""

    start: float
    end: float
    probability: float
    """The highest that the model gave; 0 without a model."""
    over_noise_db: float
    """The highest energy over the noise."""


@dataclass
class Track:
    """How likely speech is in consecutive windows of a stream, from window `first` on.

    The probability that the model gave; without a model 1 where the energy speaks for speech and 0
    elsewhere.
    """

    first: int = 0
    values: list[float] = field(default_factory=list)

    def highest(self, start: float, end: float) -> float:
        """The highest value from `start` to `end` seconds; 1 where nothing is known."""
        known = self.first + len(self.values)
        low = max(math.floor(start / WINDOW_SECONDS), self.first)
        high = min(math.ceil(end / WINDOW_SECONDS), known)
        return max(self.values[low - self.first : max(high, low) - self.first], default=1.0)

    def part(self, start: float, end: float) -> "Track":
        """The windows from the one at `start` to the last that ended by `end` seconds."""
        low = max(math.floor(start / WINDOW_SECONDS), self.first)
        high = min(math.floor(end / WINDOW_SECONDS), self.first + len(self.values))
        return Track(low, self.values[low - self.first : max(high, low) - self.first])

    def forget(self, before: float) -> None:
        """Drop the windows that ended before that many seconds."""
        gone = min(max(0, int(before / WINDOW_SECONDS) - self.first), len(self.values))
        self.first += gone
        del self.values[:gone]


@dataclass
class VadState:
    """What one stream remembers. Numbers, lists and arrays only."""

    rest: Samples = field(default_factory=lambda: np.zeros(0, np.float32))
    context: Samples = field(default_factory=lambda: np.zeros(CONTEXT_SAMPLES, np.float32))
    model: Samples | None = None
    """(2, 128), None without a model."""
    windows: int = 0
    started: bool = False
    energy_db: float = 0.0
    noise_db: float = 0.0
    by_model: bool = False
    start: int | None = None
    """The window in which the open span began."""
    end: int = 0
    """The window behind the last one with speech in it."""
    probability: float = 0.0
    over_noise_db: float = 0.0
    received: int = 0
    speech_windows: int = 0
    """Windows with speech so far, spans or not."""
    max_probability: float = 0.0
    sure_windows: int = 0
    """Windows to which the model gave SURE_PROBABILITY or more."""
    max_over_noise_db: float = 0.0
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    """How many windows had which energy, in bins of 1 dB from -120 dB on."""
    track: Track | None = None
    """Kept for those who put one here."""


class VoiceDetector:
    """Finds speech in streams of mono floats at 16 kHz; holds options and weights only.

    `model` None means the energy alone decides. With fewer `group_windows` the state is known
    sooner, and the model takes longer.
    """

    def __init__(
        self,
        options: VadOptions | None = None,
        model: SpeechModel | None = None,
        group_windows: int = GROUP_WINDOWS,
    ) -> None:
        self.options, self.model = options or PRESETS["normal"], model
        self._group_windows = group_windows
        hertz = np.fft.rfftfreq(WINDOW_SAMPLES, 1 / SAMPLE_RATE)
        low, high = _SPEECH_BAND_HZ
        # Both are ranges of bins: a slice copies nothing.
        self._audible = slice(int(np.argmax(hertz >= _RUMBLE_HZ)), None)
        band = np.flatnonzero((hertz >= low) & (hertz <= high))
        self._band = slice(int(band[0]), int(band[-1]) + 1)
        self._hann = np.hanning(WINDOW_SAMPLES)
        # A window spreads its power over size / 2 bins, each counted once.
        self._scale = 2 / (WINDOW_SAMPLES * float(np.sum(self._hann**2)))

    def start(self) -> VadState:
        """The state before the first sample."""
        model = None if self.model is None else np.zeros(STATE_SHAPE, np.float32)
        return VadState(model=model)

    def push(self, samples: npt.ArrayLike, state: VadState) -> list[SpeechSpan]:
        """Take samples (n,), n >= 0, and return the spans that are complete and known to be.

        Raises AudioValueError for samples that are not usable numbers.
        """
        return self.push_many([samples], [state])[0]

    def push_many(
        self, blocks: Sequence[npt.ArrayLike], states: Sequence[VadState]
    ) -> list[list[SpeechSpan]]:
        """As `push` of one block (n,) of each of several streams, with the same results.

        The model runs on all of them at once, which takes a third of the time of one by one.
        Raises AudioValueError before anything is taken.
        """
        checked = []
        for block in check_many(blocks):
            if isinstance(block, AudioValueError):
                raise block
            checked.append(block)
        spans: list[list[SpeechSpan]] = [[] for _ in states]
        size = self._group_windows * WINDOW_SAMPLES
        groups = []
        for block, state in zip(checked, states, strict=True):
            state.received += len(block)
            x = np.concatenate([state.rest, block])
            whole = len(x) - len(x) % size
            state.rest = x[whole:].copy()
            groups.append(x[:whole].reshape(-1, self._group_windows, WINDOW_SAMPLES))
        for turn in range(max(map(len, groups), default=0)):
            chosen = [i for i, group in enumerate(groups) if turn < len(group)]
            windows = np.stack([groups[i][turn] for i in chosen])
            found = self._step(windows, [states[i] for i in chosen])
            for i, complete in zip(chosen, found, strict=True):
                spans[i] += complete
        return spans

    def finish(self, state: VadState) -> list[SpeechSpan]:
        """End the stream: the span that was open, no longer than the audio."""
        spans = []
        if len(state.rest):
            last = np.pad(state.rest, (0, -len(state.rest) % WINDOW_SAMPLES))
            state.rest = state.rest[:0]
            spans = self._step(last.reshape(1, -1, WINDOW_SAMPLES), [state])[0]
        if state.start is not None:
            spans += self._close(state)
        return spans

    def open_seconds(self, state: VadState) -> float:
        """How long the span that is open has been speech."""
        return 0.0 if state.start is None else (state.end - state.start) * WINDOW_SECONDS

    def _step(self, windows: Samples, states: Sequence[VadState]) -> list[list[SpeechSpan]]:
        """Consecutive windows (B, K, 512) of B streams: update the states, and return the spans of
        each stream that are complete."""
        B, K, _ = windows.shape
        likely = np.zeros((B, K), np.float32)
        if self.model is not None:
            first = np.stack([state.context for state in states])
            contexts = np.concatenate([first[:, None], windows[:, :-1, -CONTEXT_SAMPLES:]], axis=1)
            # Streams of version 0.1 were saved with two dimensions of size 1 more.
            before = [state.model.reshape(2, -1) for state in states if state.model is not None]
            likely, after = self.model.step(
                np.concatenate([contexts, windows], axis=2), np.stack(before)
            )
            for i, state in enumerate(states):
                state.context, state.model = windows[i, -1, -CONTEXT_SAMPLES:].copy(), after[i]
        spectrum = np.fft.rfft(windows * self._hann)
        powers = np.square(spectrum.real) + np.square(spectrum.imag)
        audible = powers[..., self._audible].sum(axis=-1)
        band = powers[..., self._band].sum(axis=-1)
        rows = zip(states, audible.tolist(), band.tolist(), likely.tolist(), strict=True)
        return [self._follow(*row) for row in rows]

    def _follow(
        self,
        state: VadState,
        audibles: Sequence[float],
        bands: Sequence[float],
        probabilities: Sequence[float],
    ) -> list[SpeechSpan]:
        """Consecutive windows of one stream, by their powers above 80 Hz and in the speech band,
        and by what the model said.

        A window is speech if the model says so, or if its smoothed energy above 80 Hz stands far
        enough over the noise floor and lies mostly in the speech band.
        """
        options, spans = self.options, list[SpeechSpan]()
        for audible, band, probability in zip(audibles, bands, probabilities, strict=True):
            share = band / audible if audible else 0.0
            energy = 10 * math.log10(audible * self._scale + _QUIETEST)
            if not state.started:
                state.started, state.energy_db, state.noise_db = True, energy, energy
            state.energy_db += _ENERGY_SHARE * (energy - state.energy_db)
            if state.energy_db > state.noise_db:
                state.noise_db = min(state.noise_db + _NOISE_RISE_DB, state.energy_db)
            else:
                state.noise_db += _NOISE_SHARE * (state.energy_db - state.noise_db)
            over = state.energy_db - state.noise_db
            state.max_over_noise_db = max(state.max_over_noise_db, over)
            state.histogram[min(max(int(energy) + 120, 0), _BINS - 1)] += 1
            state.by_model = probability >= (options.offset if state.by_model else options.onset)
            speech = state.by_model or (
                options.energy_db is not None
                and over > options.energy_db
                and share >= options.band_share
            )
            if state.track is not None:
                state.track.values.append(float(speech) if self.model is None else probability)
            if speech:
                if state.start is None:
                    state.start = state.windows
                    state.probability = state.over_noise_db = 0.0
                state.probability = max(state.probability, probability)
                state.over_noise_db = max(state.over_noise_db, over)
                state.end = state.windows + 1
                state.speech_windows += 1
            state.max_probability = max(state.max_probability, probability)
            state.sure_windows += probability >= SURE_PROBABILITY
            state.windows += 1
            gap = (state.windows - state.end) * WINDOW_SECONDS
            # After a longer gap the next span cannot join this one any more.
            if state.start is not None and gap > max(
                2 * options.pad_seconds, options.merge_seconds
            ):
                spans += self._close(state)
        return spans

    def _close(self, state: VadState) -> list[SpeechSpan]:
        """The open span, padded, unless it is too short to be speech."""
        assert state.start is not None
        start, end = state.start * WINDOW_SECONDS, state.end * WINDOW_SECONDS
        state.start = None
        if end - start < self.options.min_speech_seconds:
            return []
        pad = self.options.pad_seconds
        end = min(end + pad, state.received / SAMPLE_RATE)
        return [SpeechSpan(max(0.0, start - pad), end, state.probability, state.over_noise_db)]


def plan_segments(
    samples: Samples,
    spans: Sequence[SpeechSpan],
    max_seconds: float = MAX_SEGMENT_SECONDS,
) -> list[tuple[int, int]]:
    """Cut a recording (n,) for a model with a window: (start, end) in samples, in order.

    Spans of speech less than 2 s apart are put together as long as they fit into `max_seconds`; one
    that is longer is cut at the quietest tenth of a second of its last four. What lies outside all
    spans is left out; a recording without spans is one stretch, cut where it must be.
    """
    n, most = len(samples), round(max_seconds * SAMPLE_RATE)
    rounded = [(round(s.start * SAMPLE_RATE), min(n, round(s.end * SAMPLE_RATE))) for s in spans]
    pieces: list[tuple[int, int]] = []
    for start, end in rounded or [(0, n)]:
        while end - start > most:
            last = start + most
            first = max(start + most // 2, last - round(_CUT_SECONDS * SAMPLE_RATE))
            cut = quietest_point(samples, first, last, round(_PAUSE_SECONDS * SAMPLE_RATE))
            pieces.append((start, cut))
            start = cut
        if end > start:
            pieces.append((start, end))
    planned: list[tuple[int, int]] = []
    for start, end in pieces:
        near = planned and start - planned[-1][1] <= _JOIN_SECONDS * SAMPLE_RATE
        if near and end - planned[-1][0] <= most:
            planned[-1] = (planned[-1][0], end)
        else:
            planned.append((start, end))
    return planned


def probabilities(samples: npt.ArrayLike, model: SpeechModel) -> Samples:
    """What the model says about each window of a recording (n,): (ceil(n / 512),) in 0..1."""
    x = check_samples(samples)
    if not len(x):
        return np.zeros(0, np.float32)
    x = np.pad(x, (CONTEXT_SAMPLES, -len(x) % WINDOW_SAMPLES))
    size = CONTEXT_SAMPLES + WINDOW_SAMPLES
    windows = np.lib.stride_tricks.sliding_window_view(x, size)[::WINDOW_SAMPLES]
    return model.step(windows[None], np.zeros((1, *STATE_SHAPE), np.float32))[0][0]


def segments(
    samples: npt.ArrayLike,
    options: VadOptions | None = None,
    model: SpeechModel | None = None,
) -> list[SpeechSpan]:
    """The spans of speech in a recording (n,) at 16 kHz, in order and apart from each other.

    Give it samples that went through the gain; without a `model` only the energy decides. Raises
    AudioValueError for samples that are not usable numbers.
    """
    detector = VoiceDetector(options, model)
    state = detector.start()
    return [*detector.push(samples, state), *detector.finish(state)]
