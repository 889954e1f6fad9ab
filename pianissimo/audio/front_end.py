"""The front end before every recognizer: no offset, the right level, for recordings and streams.

    front_end = FrontEnd("auto")
    state = front_end.start(live=True)
    loud = front_end.push(samples, state).samples

One object serves any number of files, streams and servers at once: it holds options only, and what
a stream remembers is a `FrontEndState` that the caller owns and may store.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pianissimo.audio.filters import (
    HighPassState,
    LimiterState,
    OffsetState,
    remove_offset,
    remove_offsets,
)
from pianissimo.audio.gain import (
    GAIN_MODES,
    Gained,
    GainMode,
    GainOptions,
    GainReading,
    GainState,
    RecordingGain,
    RecordingState,
    StreamGain,
)
from pianissimo.audio.level import Samples, check_many, check_samples
from pianissimo.errors import AudioValueError, OptionError


@dataclass
class FrontEndState:
    """What one stream or recording remembers: exactly one of `live` and `recording` is there."""

    live: GainState | None = None
    recording: RecordingState | None = None
    offset: OffsetState = field(default_factory=OffsetState)

    @property
    def gain_db(self) -> float:
        """The gain at the end of what was pushed: where the next stream of a device may start."""
        if self.live is not None:
            return self.live.gain_db
        assert self.recording is not None
        return self.recording.gain_db or 0.0


class FrontEnd:
    """Gain in one of three modes: "on", "off", or "auto", which acts only where it is needed.

    A constant offset is removed first, in every mode: nothing measures or amplifies it. Samples are
    mono floats at 16 kHz. Sample n out is sample n in. Raises OptionError for another mode.
    """

    def __init__(self, mode: GainMode = "auto", options: GainOptions | None = None) -> None:
        if mode not in GAIN_MODES:
            raise OptionError(f"unknown gain mode {mode!r}; choose {', '.join(GAIN_MODES)}")
        self.mode, self.options = mode, options or GainOptions()
        self.live, self.recording = (
            StreamGain(mode, self.options),
            RecordingGain(mode, self.options),
        )

    def start(self, *, live: bool, gain_db: float = 0.0) -> FrontEndState:
        """The state before the first sample.

        A live stream is answered at once with what is known so far; it may begin with the `gain_db`
        at which the last one of the same microphone ended. A recording is gathered for up to 30 s
        and then gets one gain. Raises OptionError for a `gain_db` outside the options' bounds.
        """
        if live:
            return FrontEndState(live=self.live.start(gain_db))
        return FrontEndState(recording=RecordingState())

    def push(self, samples: npt.ArrayLike, state: FrontEndState) -> Gained:
        """Take samples (n,), n >= 0, and return those that are ready.

        Raises AudioValueError for NaN, infinity, integers, more than one channel, or floats that
        are integers never scaled; the state is then as it was before.
        """
        if state.live is not None:
            [gained] = self.push_many([samples], [state])
            if isinstance(gained, AudioValueError):
                raise gained
            return gained
        assert state.recording is not None
        offset = replace(state.offset)
        centered = remove_offset(check_samples(samples), offset)
        gained = self.recording.push(centered, state.recording)
        state.offset = offset
        return gained

    def push_many(
        self, blocks: Sequence[npt.ArrayLike], states: Sequence[FrontEndState]
    ) -> list[Gained | AudioValueError]:
        """As `push` of one block (n,) of each of several live streams, with the same bits.

        It takes a fraction of the time of one by one. Returns the error of each stream whose
        samples are not usable; its state is then as it was before.
        """
        found: dict[int, Gained | AudioValueError] = {}
        taken: list[tuple[int, Samples]] = []
        for i, checked in enumerate(check_many(blocks)):
            if isinstance(checked, AudioValueError):
                found[i] = checked
            else:
                taken.append((i, checked))
        offsets = [replace(states[i].offset) for i, _ in taken]
        centered = check_many(remove_offsets([block for _, block in taken], offsets))
        ready: list[tuple[int, Samples]] = []
        for (i, _), offset, block in zip(taken, offsets, centered, strict=True):
            if isinstance(block, AudioValueError):
                found[i] = block
            else:
                states[i].offset = offset
                ready.append((i, block))
        lives = [live for i, _ in ready if (live := states[i].live) is not None]
        leveled = self.live.push_many([block for _, block in ready], lives)
        found |= {i: gained for (i, _), gained in zip(ready, leveled, strict=True)}
        return [found[i] for i in range(len(blocks))]

    def finish(self, state: FrontEndState) -> Gained:
        """The samples that still wait. Altogether as many have left as came."""
        if state.live is not None:
            return self.live.finish(state.live)
        assert state.recording is not None
        return self.recording.finish(state.recording)

    def whole(self, samples: npt.ArrayLike) -> Gained:
        """A recording (n,) at once: what `push` and `finish` give for any blocks of it."""
        state = RecordingState()
        centered = remove_offset(check_samples(samples), OffsetState())
        first, rest = self.recording.push(centered, state), self.recording.finish(state)
        joined = np.concatenate([first.samples, rest.samples])
        return Gained(joined, first.readings + rest.readings)

    def blocks(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """A recording block by block, empty blocks left out; memory stays at one stretch."""
        state = self.start(live=False)
        for block in blocks:
            ready = self.push(block, state).samples
            if len(ready):
                yield ready
        ready = self.finish(state).samples
        if len(ready):
            yield ready


def export_state(state: FrontEndState) -> dict[str, Any]:
    """The state as nested dictionaries of numbers, lists and arrays, to store or send."""
    return asdict(state)


def import_state(data: Mapping[str, Any]) -> FrontEndState:
    """Read what `export_state` gave; raises OptionError when it is something else."""
    try:
        live, recording = data["live"], data["recording"]
        offset = OffsetState(**data.get("offset", {}))  # version 0.1 had none
        if (live is None) == (recording is None):
            raise ValueError("exactly one of live and recording must be there")
        if live is not None:
            last = live["highpass"]["last"]
            highpass = HighPassState(**{**live["highpass"], "last": last and (last[0], last[1])})
            parts = {"highpass": highpass, "limiter": _limiter(live)}
            rest = np.array(live["rest"], np.float64)
            lists = {name: list(live[name]) for name in ("levels", "ranked")}
            gain = GainState(**{**live, **parts, **lists, "rest": rest})
            return FrontEndState(live=gain, offset=offset)
        waiting = np.array(recording["waiting"], np.float32)
        parts = {"waiting": waiting, "limiter": _limiter(recording)}
        stretch = RecordingState(**{**recording, **parts})
        return FrontEndState(recording=stretch, offset=offset)
    except (KeyError, TypeError, ValueError) as error:
        raise OptionError(
            f"this is not the state of a front end ({error}); expected what export_state returns"
        ) from error


def _limiter(data: Mapping[str, Any]) -> LimiterState:
    limiter = data["limiter"]
    return LimiterState(np.array(limiter["waiting"], np.float64), float(limiter["reduction"]))


__all__ = [
    "FrontEnd",
    "FrontEndState",
    "GainMode",
    "GainOptions",
    "GainReading",
    "Gained",
    "export_state",
    "import_state",
]
