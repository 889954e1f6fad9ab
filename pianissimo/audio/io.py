"""Any recording as mono float32: paths, bytes, file objects and standard input, block by block.

libsndfile reads linear PCM and Vorbis in their usual containers; libav reads everything else. Which
of the two comes first is decided by the first bytes, never by the file name.
Only bytes are handed to either: neither opens a URL, a playlist or a second file.
"""

import io
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE as SAMPLE_RATE
from pianissimo.audio.downmix import Downmix
from pianissimo.audio.joined import Slice, file_starts
from pianissimo.audio.notes import Note
from pianissimo.audio.remote import RemoteFile
from pianissimo.audio.resample import StreamingResampler, check_sample_rate
from pianissimo.audio.wav_parts import as_wav, wav_parts
from pianissimo.errors import (
    AudioDecodeError,
    AudioNotFoundError,
    AudioValueError,
    OptionError,
)

if TYPE_CHECKING:
    from av import AudioFrame
    from soundfile import SoundFile


@dataclass(frozen=True)
class Excerpt:
    """A part of a recording: `duration` seconds from `start`, None to its end.

    `track` chooses one of several sound tracks, from 1; None takes the one that players take.
    """

    source: "str | os.PathLike[str] | RemoteFile | bytes | bytearray | memoryview | BinaryIO"
    start: float = 0.0
    duration: float | None = None
    track: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:
            raise OptionError(f"an excerpt starts at 0 s or later, not at {self.start} s")
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise OptionError(f"an excerpt lasts more than 0 s, not {self.duration} s")
        if self.track is not None and self.track < 1:
            raise OptionError(f"sound tracks count from 1, not from {self.track}")


AudioSource: TypeAlias = (
    Excerpt | RemoteFile | str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
)
Samples: TypeAlias = npt.NDArray[np.float32]
Recording: TypeAlias = AudioSource | npt.ArrayLike | Iterable[Samples]
"""What a recognizer transcribes: a source, an array with its rate, or blocks of `Samples`."""

_BLOCK_VALUES = 1 << 18  # samples times channels that libsndfile decodes at a time
_FRAME_SAMPLES = 16_384  # that libav gathers before it hands them over
_SPOOL_BYTES = 64 << 20  # a pipe longer than this goes to disk
_MAX_CHANNELS = 64
_INFINITE = 1e30  # a filter makes infinity of such samples
_AVSEEK_SIZE = 0x10000  # a `whence` of libav's: the size is asked for, nothing moves
_HOLE_SECONDS = 0.15  # less is the rounding of time stamps
_LONGEST_HOLE_SECONDS = 3600.0
_CLOCKED = frozenset("matroska webm mov mp4 mpegts mpeg flv asf ogg nut".split())
_HEAD_BYTES = 16  # enough to tell containers apart
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

_SNDFILE_MAGIC = b"RIFF RIFX RF64 FORM OggS caff .snd riff NIST".split()
_SIZED_MAGIC = b"FORM caff .snd FLV\x01 wvpk".split()  # these and MP4 may have files behind them
_SNDFILE_SUBTYPES = frozenset(
    "PCM_S8 PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW VORBIS".split()
)
# Plain media containers only: no playlist, session description, device or image sequence.
_LIBAV_FORMATS = (
    "3gp,aa,aac,aax,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,bonk,caf,dsf,dts,dtshd,dv,eac3,flac,"
    "flv,gxf,iamf,iff,ircam,lc3,live_flv,loas,m4a,matroska,mlp,mov,mp3,mp4,mpc,mpc8,mpeg,mpegts,"
    "mxf,nistsphere,nsv,nut,ogg,oma,osq,paf,qcp,qoa,rm,sbc,sds,shn,sln,tak,truehd,tta,voc,vqf,"
    "w64,wav,wavarc,webm,wsd,wtv,wv,xwma"
)

_NOT_MEDIA = (
    "is not audio that can be decoded (or is cut off in its header); "
    "check the file, or convert it to WAV or FLAC first"
)
_OTHER_CHANNELS = (
    "{} changes its number of channels, so a channel is not a person; convert it to one layout, or "
    "find speakers by voice (--diarize)"
)
_NOTHING_DECODES = (
    "contains no audio that decodes: it is empty, damaged or cut off; record or export it again"
)


@dataclass(frozen=True)
class AudioInfo:
    """What a recording says about itself, before anything is decoded.

    `duration_seconds` is None where the container does not state it (live recordings), and may be
    an estimate (MP3) or more than is really there (files cut off). `container` and `codec` are the
    decoder's names, such as "wav" and "pcm_16": for people and logs, not for decisions.
    """

    duration_seconds: float | None
    sample_rate: int
    channels: int
    container: str
    codec: str


def load_audio(
    source: AudioSource, *, sample_rate: int = SAMPLE_RATE, notes: set[Note] | None = None
) -> Samples:
    """Return the whole recording as mono float32 samples (n,) at `sample_rate` Hz.

    `source` is a path, the bytes of a file, a binary file object, "-" for standard input, a
    `RemoteFile`, or an `Excerpt` of one of these. A file object is read from its current position
    and put back there; a pipe is consumed. Channels become one as `Downmix` says, integers are
    scaled to [-1, 1). A recording cut off or damaged in the middle gives what decodes. Sample n is
    at n / `sample_rate` on the clock of the container, if it has one: a late start and holes are
    silence. `notes` gets what is worth telling about the recording.

    Raises AudioNotFoundError (nothing there, not readable, empty, or a URL: these are not fetched),
    AudioDecodeError (not audio, no audio track, or not one sample decodes), AudioValueError (NaN or
    infinite samples, or a rate outside 1..384 kHz) and OptionError (a source of another type).
    """
    rate = check_sample_rate(sample_rate, "sample_rate")
    return np.concatenate(list(_stream(source, rate, None, notes)))


def stream_audio(
    source: AudioSource,
    *,
    sample_rate: int = SAMPLE_RATE,
    block_seconds: float = 10.0,
    notes: set[Note] | None = None,
) -> Iterator[Samples]:
    """Yield what `load_audio` returns in blocks of `block_seconds`, the last one shorter.

    Memory stays at a few blocks whatever the length. The source is opened at the first block, and
    the errors of `load_audio` come from there; OptionError for `block_seconds` comes at once.
    `notes` is complete after the last block.
    """
    rate = check_sample_rate(sample_rate, "sample_rate")
    if not 0 < block_seconds < math.inf:
        raise OptionError(f"block_seconds must be above 0 and finite, but is {block_seconds!r}")
    return _stream(source, rate, max(1, round(block_seconds * rate)), notes)


def read_blocks(
    source: Recording,
    sample_rate: int | None = None,
    *,
    block_seconds: float = 10.0,
    notes: set[Note] | None = None,
) -> Iterable[Samples]:
    """Any recording as blocks of mono float32 at 16 kHz.

    `source` is a source of `load_audio`, an array with its `sample_rate` in Hz, which becomes one
    block, or an iterator of blocks (n,) of mono float32 at 16 kHz, which are checked and joined to
    `block_seconds`. Raises OptionError for an array without a rate or blocks with one, and the
    errors of `load_audio`, `from_array` or a block that is not usable when it is read. `notes` gets
    what is worth telling about the recording, by the last block.
    """
    if isinstance(source, Iterator) and not hasattr(source, "read"):
        if sample_rate is not None:
            raise OptionError("blocks are mono float32 at 16 kHz; remove sample_rate")
        blocks = _checked(cast("Iterator[Samples]", source))
        return _reblocked(blocks, round(block_seconds * SAMPLE_RATE))
    if sample_rate is not None:
        return [from_array(cast("npt.ArrayLike", source), sample_rate, notes=notes)]
    if hasattr(source, "__array__") or isinstance(source, list | tuple):
        raise OptionError("samples need their rate: transcribe(array, sample_rate=16000)")
    size = round(block_seconds * SAMPLE_RATE)
    return _stream(cast("AudioSource", source), SAMPLE_RATE, size, notes)


def read_channels(
    source: Recording, sample_rate: int | None = None, *, block_seconds: float = 10.0
) -> Iterator[Samples]:
    """Any recording as blocks (n, channels) of float32 at 16 kHz: channels are not mixed.

    Takes what `read_blocks` takes; blocks from the caller have the shape (n, channels). The number
    of channels is that of the first block. Raises the errors of `load_audio`, OptionError for an
    array without a rate, and AudioValueError if the number of channels changes, or for blocks of
    another shape.
    """
    size = round(block_seconds * SAMPLE_RATE)
    if isinstance(source, Iterator) and not hasattr(source, "read"):
        if sample_rate is not None:
            raise OptionError("blocks are float32 at 16 kHz; remove sample_rate")
        return _reblocked(_checked(cast("Iterator[Samples]", source), dimensions=2), size)
    if sample_rate is not None:
        scaled = _scaled(_as_channels(cast("npt.ArrayLike", source)))
        rate = check_sample_rate(sample_rate, "sample_rate")
        for channel in scaled.T:
            _check_finite(channel, 0.0, rate, "the given array")
        return _resampled_channels(iter([(scaled, rate)]), "the given array")
    if hasattr(source, "__array__") or isinstance(source, list | tuple):
        raise OptionError("samples need their rate: transcribe(array, sample_rate=16000)")
    return _stream_channels(cast("AudioSource", source), size)


def from_array(
    samples: npt.ArrayLike,
    sample_rate: int,
    *,
    target_rate: int = SAMPLE_RATE,
    notes: set[Note] | None = None,
) -> Samples:
    """Return samples from memory as a new mono float32 array (n,) at `target_rate` Hz.

    `samples` is a NumPy array, torch tensor or list of shape (samples,) or (samples, channels), of
    int16, int32, uint8 (offset 128) or floating point; integers are scaled to [-1, 1), channels
    become one as `Downmix` says, with its `notes`. An empty array gives an empty array.

    Raises AudioValueError for another type or shape, for (channels, samples), for NaN or infinite
    values (naming the time of the first), and for rates outside 1..384 kHz.
    """
    resampler = StreamingResampler(
        check_sample_rate(sample_rate, "sample_rate"), check_sample_rate(target_rate, "target_rate")
    )
    scaled = _scaled(_as_channels(samples))
    downmix = Downmix(scaled.shape[1], resampler.source_rate, notes)
    mono = np.concatenate([downmix.push(scaled), downmix.finish()])
    _check_finite(mono, 0.0, resampler.source_rate, "the given array")
    return np.concatenate([resampler.push(mono), resampler.finish()])


def from_piece(samples: npt.ArrayLike, sample_rate: int) -> Samples:
    """Return a piece of a live stream as float32 (n, channels) at its own rate, scaled and checked.

    Takes the samples of `from_array`, and raises its errors for them. `sample_rate` is the rate of
    the stream, which was checked when it began. Pieces joined are the whole.
    """
    array = _as_channels(samples)
    scaled = _scaled(array)
    if array.dtype.kind == "f":  # integers are finite
        for channel in range(scaled.shape[1]):
            _check_finite(scaled[:, channel], 0.0, sample_rate, "the given array")
    return scaled


def describe(source: AudioSource) -> AudioInfo:
    """Return the length, rate, channels and codec of a recording without decoding it.

    Takes the sources of `load_audio` and raises its errors, as far as the header shows them.
    """
    with _opened(source) as reader:
        for decoder in _decoders(reader):
            with closing(decoder):
                check_sample_rate(decoder.info.sample_rate, reader.label)
                return _described(decoder.info, source)
    raise AssertionError("unreachable: _decoders raises when it has none")


def _described(info: AudioInfo, source: AudioSource) -> AudioInfo:
    if not isinstance(source, Excerpt) or info.duration_seconds is None:
        return info
    seconds = max(0.0, info.duration_seconds - source.start)
    if source.duration is not None:
        seconds = min(seconds, source.duration)
    return replace(info, duration_seconds=seconds)


def _stream(
    source: AudioSource, rate: int, block_samples: int | None, notes: set[Note] | None
) -> Iterator[Samples]:
    """The samples of `load_audio` in blocks of that size, None as they are decoded."""
    with _opened(source) as reader:
        sized = reader.head[:4] in _SIZED_MAGIC or reader.head[4:8] == b"ftyp"
        blocks = (_decoded_parts if sized else _decoded)(reader, rate, notes)
        if isinstance(source, Excerpt):
            blocks = _within(source, blocks, rate, reader.label)
        yield from blocks if block_samples is None else _reblocked(blocks, block_samples)


def _checked(blocks: Iterator[Samples], dimensions: int = 1) -> Iterator[Samples]:
    """The blocks, each checked to be what it must be; raises AudioValueError."""
    received, width = 0, None
    for block in blocks:
        if getattr(block, "dtype", None) != np.float32 or block.ndim != dimensions:
            kind = (
                f"{block.dtype} of shape {block.shape}" if hasattr(block, "shape") else "no array"
            )
            shape = "mono float32 at 16 kHz, of shape (samples,)"
            if dimensions == 2:
                shape = "float32 at 16 kHz, of shape (samples, channels)"
            raise AudioValueError(f"a block must be {shape}, but is {kind}")
        if block.shape[1:] != (block.shape[1:] if width is None else width):
            raise AudioValueError(_OTHER_CHANNELS.format("the given audio"))
        width = block.shape[1:]
        finite = block if dimensions == 1 else block.sum(axis=1)
        _check_finite(finite, received / SAMPLE_RATE, SAMPLE_RATE, "the given audio")
        received += len(block)
        yield block


def _within(
    excerpt: Excerpt, blocks: Iterator[Samples], rate: int, label: str
) -> Iterator[Samples]:
    """The blocks of an excerpt, decoded no further than its end."""
    first, position = round(excerpt.start * rate), 0
    last = None if excerpt.duration is None else first + round(excerpt.duration * rate)
    for block in blocks:
        part = block[max(0, first - position) : None if last is None else max(0, last - position)]
        position += len(block)
        if len(part):
            yield part
        if last is not None and position >= last:
            return
    if position <= first:
        raise AudioNotFoundError(
            f"{label} ends at {position / rate:.2f} s, before the requested start at "
            f"{excerpt.start:g} s"
        )


def _reblocked(blocks: Iterable[Samples], size: int) -> Iterator[Samples]:
    pending: list[Samples] = []
    held = 0
    for block in blocks:
        pending.append(block)
        held += len(block)
        if held < size:
            continue
        joined = np.concatenate(pending)
        whole = held - held % size
        for start in range(0, whole, size):
            yield joined[start : start + size].copy()
        pending, held = [joined[whole:].copy()], held - whole
    if held:
        yield np.concatenate(pending)


def _decoded_parts(reader: "_Source", rate: int, notes: set[Note] | None) -> Iterator[Samples]:
    """Mono blocks (n,) at `rate` Hz of a file that states its size, and of files joined to it."""
    starts = file_starts(reader)
    if len(starts) == 1:
        yield from _decoded(reader, rate, notes)
        return
    if notes is not None:
        notes.add("joined_files")
    end = reader.seek(0, os.SEEK_END)
    for start, after in zip(starts, [*starts[1:], end], strict=True):
        piece = io.BufferedReader(Slice(reader, start, after - start))
        try:
            yield from _decoded(_Source(piece, reader.label, reader.track), rate, notes)
        except AudioDecodeError:
            if not start:
                raise
            if notes is not None:
                notes.add("unread_rest")
        reader.check()


def _decoded(reader: "_Source", rate: int, notes: set[Note] | None) -> Iterator[Samples]:
    """Mono blocks (n,) at `rate` Hz of one file, from the first decoder that finds any sample."""
    for decoder in _decoders(reader):
        seconds, resampler = 0.0, None
        with closing(decoder):
            for block, source_rate in _downmixed(decoder.blocks(), notes):
                if notes is not None:
                    notes |= decoder.notes
                _check_finite(block, seconds, source_rate, reader.label)
                if resampler is not None and resampler.source_rate != source_rate:
                    yield resampler.finish()
                    resampler = None
                if resampler is None and source_rate != rate:
                    check_sample_rate(source_rate, reader.label)
                    resampler = StreamingResampler(source_rate, rate)
                seconds += len(block) / source_rate
                if len(block):
                    yield block if resampler is None else resampler.push(block)
        reader.check()
        if seconds:
            if resampler is not None:
                yield resampler.finish()
            return
    raise AudioDecodeError(f"{reader.label} {_NOTHING_DECODES}")


def _stream_channels(source: AudioSource, block_samples: int) -> Iterator[Samples]:
    with _opened(source) as reader:
        for decoder in _decoders(reader):
            with closing(decoder):
                blocks = _resampled_channels(decoder.blocks(), reader.label)
                first = next((block for block in blocks if len(block)), None)
                if first is None:
                    continue
                blocks = chain([first], blocks)
                if isinstance(source, Excerpt):
                    blocks = _within(source, blocks, SAMPLE_RATE, reader.label)
                yield from _reblocked(blocks, block_samples)
                reader.check()
                return
        reader.check()
        raise AudioDecodeError(f"{reader.label} {_NOTHING_DECODES}")


def _resampled_channels(blocks: Iterator[tuple[Samples, int]], label: str) -> Iterator[Samples]:
    """Blocks (n, channels) at their rates as blocks at 16 kHz; raises AudioValueError."""
    resamplers: list[StreamingResampler] = []
    rate, received = 0, 0.0
    for block, source_rate in blocks:
        for channel in block.T:
            _check_finite(channel, received, source_rate, label)
        if resamplers and len(resamplers) != block.shape[1]:
            raise AudioValueError(_OTHER_CHANNELS.format(label))
        if source_rate != rate:
            if resamplers:
                yield np.stack([resampler.finish() for resampler in resamplers], axis=1)
            rate = check_sample_rate(source_rate, label)
            resamplers = [StreamingResampler(rate, SAMPLE_RATE) for _ in block.T]
        received += len(block) / rate
        pairs = zip(resamplers, block.T, strict=True)
        yield np.stack([resampler.push(channel) for resampler, channel in pairs], axis=1)
    if resamplers:
        yield np.stack([resampler.finish() for resampler in resamplers], axis=1)


def _downmixed(
    blocks: Iterable[tuple[Samples, int]], notes: set[Note] | None
) -> Iterator[tuple[Samples, int]]:
    """Blocks (n, channels) with their rate as mono blocks (m,)."""
    downmix: Downmix | None = None
    for block, rate in blocks:
        kind = (block.shape[1], rate)
        if downmix is not None and kind != (downmix.channels, downmix.sample_rate):
            yield downmix.finish(), downmix.sample_rate
            downmix = None
        if block.shape[1] == 1:
            yield block[:, 0], rate
        else:
            downmix = downmix or Downmix(*kind, notes)
            yield downmix.push(block), rate
    if downmix is not None:
        yield downmix.finish(), downmix.sample_rate


class _Decoder(Protocol):
    info: AudioInfo
    notes: set[Note]
    """What is worth telling; complete after the last block."""

    def blocks(self) -> Iterator[tuple[Samples, int]]:
        """Float32 (n, channels) with their rate in Hz."""

    def close(self) -> None: ...


class _Refused(Exception):
    """A decoder cannot open these bytes; its message, if any, is the reason worth telling."""


def _decoders(reader: "_Source") -> Iterator[_Decoder]:
    """Yield each decoder that opens, the better suited one first; raise if none does."""
    kinds: list[type[_LibavDecoder | _SndfileDecoder]] = [_LibavDecoder]
    if reader.read(4) in _SNDFILE_MAGIC and reader.track in (None, 1):
        kinds.insert(0, _SndfileDecoder)
    opened = False
    reason = _NOT_MEDIA
    for kind in kinds:
        reader.seek(0)
        try:
            decoder = kind(reader)
        except _Refused as refusal:
            reason = str(refusal) or reason
            continue
        opened = True
        yield decoder
    reader.check()
    if not opened:
        raise AudioDecodeError(f"{reader.label} {reason}")


class _SndfileDecoder:
    """Linear PCM, and Vorbis, whose end libav rounds up.

    Not the rest: libsndfile loses a block where FLAC is cut, adds noise where ADPCM is cut, and
    writes to stderr about MP3. libav does none of these.
    """

    def __init__(self, reader: "_Source") -> None:
        import soundfile

        self._error = soundfile.LibsndfileError
        self._reader, self._parts = reader, wav_parts(reader) or []
        self.notes: set[Note] = {"joined_files"} if len(self._parts) > 1 else set()
        reader.seek(0)
        try:
            self._file = soundfile.SoundFile(
                as_wav(reader, self._parts[0]) if self._parts else reader
            )
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise _Refused from error
        if self._file.subtype not in _SNDFILE_SUBTYPES:
            self.close()
            raise _Refused
        rate = self._file.samplerate
        self.info = AudioInfo(
            duration_seconds=self._file.frames / rate if rate else None,
            sample_rate=rate,
            channels=self._file.channels,
            container=self._file.format.lower(),
            codec=self._file.subtype.lower(),
        )

    def blocks(self) -> Iterator[tuple[Samples, int]]:
        yield from self._blocks_of(self._file)
        import soundfile

        for part in self._parts[1:]:
            with suppress(self._error), soundfile.SoundFile(as_wav(self._reader, part)) as file:
                yield from self._blocks_of(file)

    def _blocks_of(self, file: "SoundFile") -> Iterator[tuple[Samples, int]]:
        size = max(1, _BLOCK_VALUES // file.channels)
        while True:
            try:
                block = file.read(size, dtype="float32", always_2d=True)
            except self._error:
                return
            if not len(block):
                return
            yield block, file.samplerate

    def close(self) -> None:
        self._file.close()


class _LibavDecoder:
    """Everything else: MP3, AAC, Opus, FLAC, ADPCM and many more; also out of video files."""

    def __init__(self, reader: "_Source") -> None:
        import av

        # PyAV drops libav's own messages unless the user turned them on; that choice stays theirs.
        try:
            self._container = av.open(
                reader,
                mode="r",
                metadata_errors="replace",
                container_options={
                    "format_whitelist": _LIBAV_FORMATS,
                    "protocol_whitelist": "none",
                },
            )
        except av.FFmpegError as error:
            raise _Refused from error
        tracks = self._container.streams.audio
        known = [track for track in tracks if track.codec_context is not None]
        if not known:
            fault = (
                "has an audio track in a codec that is not supported; convert it to WAV or FLAC"
                if tracks
                else "has no audio track, only video; pass a file that has sound"
                if self._container.streams.video
                else "has no audio track; pass a file that has sound"
            )
            self.close()
            raise _Refused(fault)
        best = self._container.streams.best("audio")
        self._stream = best if best in known else known[0]
        several = len(tracks) > 1 and reader.track is None
        self.notes: set[Note] = {"several_tracks"} if several else set()
        if reader.track is not None:
            if reader.track > len(tracks) or tracks[reader.track - 1] not in known:
                self.close()
                raise _Refused(
                    f"has {len(tracks)} sound track(s), so that track {reader.track} cannot be "
                    f"decoded; choose one from 1 to {len(tracks)}"
                )
            self._stream = tracks[reader.track - 1]
        seconds = None
        if self._stream.duration is not None and self._stream.time_base is not None:
            seconds = float(self._stream.duration * self._stream.time_base)
        elif self._container.duration is not None:
            seconds = float(self._container.duration) / 1_000_000  # libav counts microseconds
        codec = self._stream.codec_context
        self.info = AudioInfo(
            duration_seconds=seconds,
            sample_rate=codec.sample_rate,
            channels=codec.channels,
            container=self._container.format.name,
            codec=codec.codec.canonical_name,
        )

    def blocks(self) -> Iterator[tuple[Samples, int]]:
        import av

        # PyAV 18 reads beyond the planes of a planar frame of 8 channels or more and crashes; the
        # packed form has one plane. Larger frames also save most of the time spent in Python.
        pack: av.AudioResampler | None = None
        signature: tuple[str, str, int] | None = None
        clock: _Clock | None = None
        if _CLOCKED.intersection(self._container.format.name.split(",")):
            clock = _Clock((self._container.start_time or 0) / 1_000_000)  # from microseconds
        packets = self._container.demux(self._stream)
        ended = False
        while not ended:
            packet, frames = None, []
            with suppress(av.FFmpegError, IndexError):  # cut off, or PyAV lost a damaged track
                packet = next(packets, None)
            ended = packet is None
            if packet is not None:
                with suppress(av.FFmpegError):  # a damaged packet: continue with the next
                    frames = packet.decode()
            for frame in [None] if ended else frames:
                kind = None
                if frame is not None:
                    kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                work: list[tuple[av.AudioResampler, av.AudioFrame | None]] = []
                silence = 0 if frame is None or clock is None else clock.missing(frame)
                if silence:
                    self.notes.add("gaps")
                if kind != signature or silence:
                    if pack is not None:
                        work.append((pack, None))  # None flushes it
                    pack, signature = None, kind
                    if kind is not None and frame is not None:
                        pack = av.AudioResampler(format="flt", frame_size=_FRAME_SAMPLES)
                if pack is not None:
                    work.append((pack, frame))
                for packer, given in work:
                    if given is not None and frame is not None:
                        while silence:
                            part = min(silence, _FRAME_SAMPLES)
                            zeros = np.zeros((part, frame.layout.nb_channels), np.float32)
                            yield zeros, frame.sample_rate
                            silence -= part
                    with suppress(av.FFmpegError):  # a damaged frame of impossible layout or rate
                        for piece in packer.resample(given):
                            channels = piece.layout.nb_channels
                            block = cast("Samples", piece.to_ndarray())
                            yield block.reshape(-1, channels), piece.sample_rate

    def close(self) -> None:
        self._container.close()


class _Clock:
    """What a container's time stamps say is missing before a frame.

    The container begins at `start` seconds. A frame that begins before the previous one ended
    restarts the clock, as in joined files. Jumps of more than `_LONGEST_HOLE_SECONDS` are ignored.
    """

    def __init__(self, start: float) -> None:
        self._shift = -start
        self._expected = 0.0

    def missing(self, frame: "AudioFrame") -> int:
        """The samples (at the frame's rate) that are missing before it, 0 or more."""
        silence = 0
        if frame.time is not None:
            gap = frame.time + self._shift - self._expected
            if gap < -_HOLE_SECONDS or gap > _LONGEST_HOLE_SECONDS:
                self._shift -= gap
            elif gap > _HOLE_SECONDS:
                silence = round(gap * frame.sample_rate)
        self._expected += (silence + frame.samples) / frame.sample_rate
        return silence


class _Source:
    """The bytes of a file from its present position on, with a `label` for messages.

    It is not called `name`, because libav would judge by that name's extension. A failing read ends
    the data here, because the decoders' C code cannot pass an exception on; `check` raises it
    afterwards.
    """

    def __init__(self, file: BinaryIO, label: str, track: int | None = None) -> None:
        self.label, self.track = label, track
        self.head = b""
        """The first bytes, once the source is open."""
        self._file = file
        self._start = int(file.tell())
        self._failure: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._file.read(size) or b"")
        except Exception as error:
            self._failure = error
            return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        file, start = self._file, self._start
        try:
            if whence == _AVSEEK_SIZE:
                here = file.tell()
                file.seek(0, os.SEEK_END)
                size = int(file.tell()) - start
                file.seek(here)
                return size
            if whence == os.SEEK_END:
                file.seek(0, os.SEEK_END)
            if whence != os.SEEK_SET:
                offset += int(file.tell()) - start
            file.seek(start + max(0, offset))
        except Exception as error:
            self._failure = error
        return int(file.tell()) - start

    def tell(self) -> int:
        return int(self._file.tell()) - self._start

    def check(self) -> None:
        if self._failure is not None:
            raise AudioNotFoundError(
                f"{self.label} stopped being readable: {self._failure}"
            ) from self._failure


@contextmanager
def _opened(source: AudioSource) -> Iterator[_Source]:
    track: int | None = None
    if isinstance(source, Excerpt):
        track = source.track
        source = source.source
    with ExitStack() as stack:
        file: BinaryIO
        if isinstance(source, bytes | bytearray | memoryview):
            file, name = io.BytesIO(source), "the given bytes"
        elif isinstance(source, str) and source == "-":
            file, name = _standard_input(), "standard input"
        elif isinstance(source, RemoteFile):
            file, name = stack.enter_context(source.open()), source.url
        elif isinstance(source, str | os.PathLike):
            name = os.fsdecode(source)
            if _URL.match(name) and not os.path.exists(name):
                raise AudioNotFoundError(
                    f"{name}: URLs are not fetched; download the file first and pass its path"
                )
            if os.path.isdir(name):
                raise AudioNotFoundError(f"{name} is a directory; pass one audio file")
            try:
                file = stack.enter_context(open(name, "rb"))
            except FileNotFoundError as error:
                raise AudioNotFoundError(f"{name}: no such file; check the path") from error
            except PermissionError as error:
                raise AudioNotFoundError(
                    f"{name} may not be read: permission denied; check its owner and mode"
                ) from error
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise AudioNotFoundError(f"{name!r} cannot be opened: {reason}") from error
        elif hasattr(source, "read"):
            file, name = source, _file_object_name(source)
            if getattr(file, "closed", False):
                raise AudioNotFoundError(f"{name} is closed: open it again")
        else:
            raise OptionError(
                f"audio must be a path, bytes, a binary file object or '-', not "
                f"{type(source).__name__}; samples in memory go through from_array, or are given "
                "to a recognizer with their sample_rate"
            )
        seekable = hasattr(file, "seek") and hasattr(file, "tell")
        if not seekable or (hasattr(file, "seekable") and not file.seekable()):
            file = stack.enter_context(_spooled(file, name))
        reader = _Source(file, name, track)
        stack.callback(reader.seek, 0)  # a file object is left where it was
        reader.head = reader.read(_HEAD_BYTES)
        reader.check()
        if not reader.head:
            raise AudioNotFoundError(
                f"{name} is empty: there is no audio to read"
                + ("" if file is not source else " (was it read before? seek(0) rewinds it)")
            )
        reader.seek(0)
        yield reader


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise AudioNotFoundError("standard input is closed: there is no audio to read")
    if sys.stdin.isatty():
        raise AudioNotFoundError(
            "standard input is a terminal; pipe audio into it or name a file instead of '-'"
        )
    return sys.stdin.buffer


def _file_object_name(file: object) -> str:
    if isinstance(file, io.TextIOBase):
        raise OptionError("the given file object yields text; open it in binary mode ('rb')")
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else "the given file object"


@contextmanager
def _spooled(file: BinaryIO, name: str) -> Iterator[BinaryIO]:
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        try:
            shutil.copyfileobj(file, spool, 1 << 20)
        except OSError as error:
            raise AudioNotFoundError(f"{name} cannot be read: {error}") from error
        spool.seek(0)
        yield spool  # type: ignore[misc]


def _as_channels(samples: npt.ArrayLike) -> npt.NDArray[np.generic]:
    """An array (samples, channels) of a known type; raises AudioValueError."""
    if isinstance(samples, str | os.PathLike | bytes | bytearray | memoryview):
        raise AudioValueError(
            f"samples are an array, not {type(samples).__name__}: a file says its rate itself, so "
            "leave sample_rate out; raw bytes become samples by np.frombuffer(data, np.int16)"
        )
    detach = getattr(samples, "detach", None)
    if detach is not None:  # a torch tensor, without importing torch
        tensor = detach().cpu()
        samples = tensor.float() if tensor.is_floating_point() else tensor
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError) as error:
        raise AudioValueError(f"the given samples are not one array of numbers: {error}") from error
    kind = array.dtype.kind
    if kind != "f" and array.dtype.newbyteorder("=") not in (np.uint8, np.int16, np.int32):
        raise AudioValueError(
            f"samples of type {array.dtype} have no known scale; "
            "pass int16, int32, uint8, or floats in [-1, 1]"
        )
    shape = array.shape
    if len(shape) == 1:
        return array[:, np.newaxis]
    if len(shape) == 2 and 0 < shape[0] < shape[1] and shape[0] <= 16:
        raise AudioValueError(
            f"an array of shape {shape} looks like (channels, samples); "
            "pass (samples, channels): transpose it with .T"
        )
    if len(shape) != 2 or not 1 <= shape[1] <= _MAX_CHANNELS:
        raise AudioValueError(
            f"an array of shape {shape} is not audio; "
            f"pass (samples,) or (samples, channels) with at most {_MAX_CHANNELS} channels"
        )
    return array


def _check_finite(block: Samples, start_seconds: float, rate: int, name: str) -> None:
    finite = np.abs(block) < _INFINITE  # false for NaN, too
    if not finite.all():
        seconds = start_seconds + int(np.argmin(finite)) / rate
        raise AudioValueError(
            f"{name} has a NaN or infinite sample at {seconds:.3f} s; repair or export it again"
        )


def _scaled(block: npt.NDArray[np.generic]) -> Samples:
    """Samples of any type as new float32 of the same shape, integers in [-1, 1)."""
    with np.errstate(over="ignore", invalid="ignore"):  # _check_finite finds what overflowed
        scaled = block.astype(np.float32)
    if block.dtype.kind == "u":
        scaled = (scaled - np.float32(128)) / np.float32(128)
    elif block.dtype.kind == "i":
        scaled *= np.float32(2.0 ** (1 - 8 * block.dtype.itemsize))
    return scaled
