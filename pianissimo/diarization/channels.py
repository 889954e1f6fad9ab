"""One speaker per channel, as in call recordings: exact turns, also where people talk at once.

The channels of a recording are kept on disk while they are recognized one after the other, so
memory does not grow with the recording and any source is decoded once.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import BinaryIO, Self, cast

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples
from pianissimo.audio.notes import NOTES
from pianissimo.diarization.speech import SpeechPieces
from pianissimo.errors import AudioValueError
from pianissimo.text.turns import Turn
from pianissimo.text.words import Segment, Word, joined, segment_of
from pianissimo.transcript import Transcript

MOST_CHANNELS = 8
IDENTICAL_PEAK = 10 ** (-60 / 20)
"""Channels that differ by less everywhere hold the same signal: mono saved as stereo."""
LEAK_DB = 15.0
"""Speech that is this far below another channel at the same time may have leaked from there."""
LEAK_CORRELATION = 0.4
"""It did if its waveform correlates with that channel by this much, at any shift up to 50 ms."""
FRAME_SECONDS = 0.1
_SPOOL_BYTES = 64 << 20  # a longer recording goes to disk
_SHIFT_SAMPLES = SAMPLE_RATE // 20
_READ_SECONDS = 10.0
_QUIETEST = 1e-12


class ChannelTurns:
    """The `TurnSource` of channels: the speech of each, without what leaked from another.

    Push blocks (n, channels), of 2 to 8 channels; raises AudioValueError for another number.
    """

    def __init__(self) -> None:
        self._pieces: list[SpeechPieces] = []
        self._turns: list[Turn] = []
        self._powers: list[npt.NDArray[np.float32]] = []
        self._rest: Samples | None = None

    def push(self, samples: Samples) -> None:
        if not self._pieces:
            check_channels(samples.shape[1])
            self._pieces = [SpeechPieces() for _ in range(samples.shape[1])]
        for channel, pieces in enumerate(self._pieces):
            self._add(channel, pieces.push(np.ascontiguousarray(samples[:, channel])))
        joined = samples if self._rest is None else np.concatenate([self._rest, samples])
        size = round(FRAME_SECONDS * SAMPLE_RATE)
        whole = len(joined) - len(joined) % size
        frames = joined[:whole].reshape(-1, size, joined.shape[1])
        self._powers.append(np.mean(np.square(frames), axis=1))
        self._rest = joined[whole:].copy()

    def finish(self) -> tuple[Turn, ...]:
        for channel, pieces in enumerate(self._pieces):
            self._add(channel, pieces.finish())
        if not self._pieces:
            return ()
        levels = 10 * np.log10(np.concatenate(self._powers) + _QUIETEST)
        kept = [turn for turn in self._turns if not _drowned(levels, turn)]
        return tuple(sorted(kept, key=lambda turn: (turn.start, turn.speaker)))

    def _add(self, channel: int, pieces: Iterable[tuple[float, float, Samples]]) -> None:
        self._turns += [Turn(start, end, str(channel), 1.0) for start, end, _ in pieces]


def check_channels(count: int) -> None:
    """Raises AudioValueError unless a recording of `count` channels can be split by speaker."""
    if count == 1:
        raise AudioValueError(
            "the recording has one channel, so channels cannot tell speakers apart; find them by "
            "voice instead (--diarize)"
        )
    if count > MOST_CHANNELS:
        raise AudioValueError(
            f"the recording has {count} channels, but at most {MOST_CHANNELS} are taken as one "
            "speaker each; keep those of the speakers, or find speakers by voice (--diarize)"
        )


def _drowned(levels: npt.NDArray[np.float64], turn: Turn) -> bool:
    """Whether a channel stays far below another one during all of a turn: it is a leak."""
    first = int(turn.start / FRAME_SECONDS)
    frames = levels[first : max(int(turn.end / FRAME_SECONDS), first + 1)]
    own = frames[:, int(turn.speaker)]
    others = np.delete(frames, int(turn.speaker), axis=1).max(axis=1)
    return bool(len(frames)) and bool((others - own > LEAK_DB).all())


class ChannelRecording:
    """A recording of several channels, each of which can be read again and again.

    A context manager. Raises what reading `blocks` (n, channels) raises, and AudioValueError for a
    number of channels other than 2 to 8.
    """

    def __init__(self, blocks: Iterable[Samples]) -> None:
        self._files: list[BinaryIO] = []
        self.samples, self.identical = 0, True
        self._source = ChannelTurns()
        self.turns: tuple[Turn, ...] = ()
        try:
            for block in blocks:
                self._write(block)
            if not self._files:
                raise AudioValueError("the recording is empty, so it has no channels to split")
            self.turns = self._source.finish()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _write(self, block: Samples) -> None:
        if not self._files:
            check_channels(block.shape[1])
            for _ in range(block.shape[1]):
                spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)
                self._files.append(cast("BinaryIO", spool))
        self._source.push(block)
        self.samples += len(block)
        for channel, file in enumerate(self._files):
            file.write(np.ascontiguousarray(block[:, channel], "<f4").tobytes())
        if self.identical and len(block):
            difference = np.abs(block - block[:, :1]).max()
            self.identical = bool(difference < IDENTICAL_PEAK)

    @property
    def channels(self) -> int:
        return len(self._files)

    def blocks(self, channel: int) -> Iterator[Samples]:
        """A channel from its beginning, as blocks (n,) of float32 at 16 kHz."""
        size = round(_READ_SECONDS * SAMPLE_RATE)
        for first in range(0, self.samples, size):
            yield self.part(channel, first, min(first + size, self.samples))

    def part(self, channel: int, first: int, stop: int) -> Samples:
        """The samples (stop - first,) of a channel, fewer at its end."""
        file = self._files[channel]
        file.seek(4 * max(first, 0))
        data = file.read(4 * max(0, stop - max(first, 0)))
        return np.frombuffer(data, "<f4").astype(np.float32)

    def leaked(self, word: Word | Segment, channel: int) -> bool:
        """Whether a word of a channel was said on another one and only leaked into this."""
        first, stop = round(word.start * SAMPLE_RATE), round(word.end * SAMPLE_RATE)
        own = self.part(channel, first, stop).astype(np.float64)
        if len(own) < _SHIFT_SAMPLES // 2:
            return False
        level = 10 * np.log10(np.mean(np.square(own)) + _QUIETEST)
        for other in range(self.channels):
            if other == channel:
                continue
            wide = self.part(other, first - _SHIFT_SAMPLES, stop + _SHIFT_SAMPLES)
            loud = 10 * np.log10(float(np.mean(np.square(wide))) + _QUIETEST)
            if loud - level > LEAK_DB and _correlation(own, wide) > LEAK_CORRELATION:
                return True
        return False


def _correlation(own: npt.NDArray[np.float64], wide: npt.NDArray[np.floating]) -> float:
    """The largest correlation of `own` (n,) with n samples anywhere in `wide` (n + shifts,)."""
    if len(wide) < len(own):
        return 0.0
    size = 1 << (len(wide) + len(own) - 1).bit_length()
    spectrum = np.fft.rfft(wide, size) * np.conj(np.fft.rfft(own, size))
    products = np.fft.irfft(spectrum, size)[: len(wide) - len(own) + 1]
    energy = np.concatenate([[0.0], np.cumsum(np.square(wide, dtype=np.float64))])
    powers = energy[len(own) :] - energy[: len(energy) - len(own)]
    scale = np.sqrt(np.maximum(powers * np.sum(np.square(own)), _QUIETEST))
    return float(np.max(np.abs(products) / scale))


def merge_channels(transcripts: Iterable[Transcript], recording: ChannelRecording) -> Transcript:
    """The transcripts of all channels as one, with the channel as the speaker of each word.

    Segments follow each other by their start. Words that leaked from another channel are left out.
    """
    transcripts = list(transcripts)
    segments: list[Segment] = []
    crosstalk = False
    for channel, found in enumerate(transcripts):
        for segment in found.segments:
            speaker = str(channel)
            if not segment.words:
                if recording.leaked(segment, channel):
                    crosstalk = True
                else:
                    segments.append(replace(segment, speaker=speaker))
                continue
            kept = [
                replace(word, speaker=speaker, speaker_confidence=1.0)
                for word in segment.words
                if not recording.leaked(word, channel)
            ]
            crosstalk = crosstalk or len(kept) < len(segment.words)
            if len(kept) == len(segment.words):
                segments.append(replace(segment, words=tuple(kept), speaker=speaker))
            elif kept:
                segments.append(segment_of(kept))
    segments.sort(key=lambda segment: (segment.start, segment.end))
    # What is true of one channel only, such as silence, is not true of the recording.
    reasons = [
        reason
        for reason in dict.fromkeys(r for found in transcripts for r in found.reasons)
        if reason in NOTES or all(reason in found.reasons for found in transcripts)
    ]
    first = transcripts[0]
    return Transcript(
        joined(segment.text for segment in segments),
        tuple(segments),
        tuple(sorted((w for s in segments for w in s.words), key=lambda word: word.start)),
        first.language,
        max(found.duration for found in transcripts),
        first.model,
        (*reasons, *(("crosstalk",) if crosstalk else ())),
        recording.turns,
    )
