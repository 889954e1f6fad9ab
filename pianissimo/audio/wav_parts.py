"""WAV, RF64 and W64 files that hold more than their header says: joined files, old sizes.

Recorders in browsers join their pieces to one file; a header that was never brought up to date,
that went through a pipe or whose size wrapped round at 4 GiB states too little. Each piece becomes
a WAV of its own.
"""

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pianissimo.audio.joined import Reader, Slice, find

_UNKNOWN = (0, 0xFFFFFFFF)
_RIFF = (b"RIFF", b"RF64", b"BW64")
_LARGEST_PART = 1 << 31
"""Bytes of one part; a WAV holds less than twice as much."""
_W64_RIFF = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
"""The end of the GUID of each chunk of W64, behind its name."""
_KNOWN = frozenset(
    b"LIST,fact,bext,id3 ,ID3 ,cue ,smpl,inst,JUNK,junk,PAD ,FLLR,iXML,axml,_PMX,afsp,PEAK,levl,"
    b"DISP,plst,note,labl,ltxt,acid,strc,cart,chna,regn,umid,minf,elm1,ovwf,SyLp,INFO".split(b",")
)
_MOST_CHUNKS = 10_000


@dataclass(frozen=True)
class WavPart:
    """Samples from byte `start` on, in the format of the chunk `layout`."""

    layout: bytes
    start: int
    size: int


def wav_parts(reader: Reader) -> list[WavPart] | None:
    """The parts of a WAV that its first header does not tell all about; otherwise None."""
    reader.seek(0)
    parts, told = _w64_parts(reader) if reader.read(16) == _W64_RIFF else _riff_parts(reader)
    if len(parts) == 1 and told:
        return None
    return [piece for part in parts for piece in _pieces(part)] or None


def _riff_parts(reader: Reader) -> tuple[list[WavPart], bool]:
    """The parts of WAV and RF64, and whether libsndfile finds all of the first one."""
    end = reader.seek(0, os.SEEK_END)
    parts: list[WavPart] = []
    layout, position, told, long_size = b"", 0, True, 0
    for _ in range(_MOST_CHUNKS):
        reader.seek(position)
        head = reader.read(12)
        name, size = head[:4], int.from_bytes(head[4:8], "little")
        if name in _RIFF and head[8:12] == b"WAVE":
            layout, position, long_size = b"", position + 12, 0
            continue
        if len(head) < 8:
            break
        if name == b"data" and size == _UNKNOWN[1] and long_size:
            size = long_size
        fits = position + 8 + size <= end + 1
        if name == b"fmt " and fits and size <= 1024:
            reader.seek(position + 8)
            layout = reader.read(size)
        elif name == b"ds64" and fits:
            reader.seek(position + 16)
            long_size = int.from_bytes(reader.read(8), "little")
            told = told and bool(parts or long_size)
        elif name == b"data" and layout:
            if size in _UNKNOWN or not fits:  # never written, or cut off
                start = position + 8
                size = min(find(reader, mark, b"WAVE", start, end) for mark in _RIFF) - start
                told = told and not parts
            parts.append(WavPart(layout, position + 8, min(size, end - position - 8)))
        elif name not in _KNOWN and not (fits and name.isalnum()):
            if not parts or name.startswith(b"TAG"):
                break
            last = parts[-1]  # samples that no size covers
            if last.start + last.size + last.size % 2 < position:
                break
            parts[-1] = WavPart(last.layout, last.start, end - last.start)
            told = False
            break
        position += 8 + size
        if position % 2 and name != b"data":
            position += 1
        elif position % 2:
            position += _padding(reader, position)
    return parts, told


def _w64_parts(reader: Reader) -> tuple[list[WavPart], bool]:
    """The parts of W64, and whether libsndfile finds all of the first one."""
    end = reader.seek(0, os.SEEK_END)
    parts: list[WavPart] = []
    layout, position, told = b"", 0, True
    for _ in range(_MOST_CHUNKS):
        reader.seek(position)
        head = reader.read(24)
        if len(head) < 24:
            break
        name, size = head[:4], int.from_bytes(head[16:24], "little") - 24
        if head[:16] == _W64_RIFF:
            layout, position = b"", position + 40  # its size and the GUID of WAVE
            continue
        if head[4:16] != _W64_TAIL:
            break
        start = position + 24
        if name == b"fmt " and size <= 1024:
            layout = reader.read(size)
        elif name == b"data" and layout:
            if not 0 < size <= end - start:  # a pipe, or cut off
                size = _w64_end(reader, start, end) - start
                told = False
            parts.append(WavPart(layout, start, size))
        if size < 0:
            break
        position = start + size
        reader.seek(position)
        if reader.read(16) != _W64_RIFF:  # not every program fills up the last chunk
            position += -(size + 24) % 8
    return parts, told


def _w64_end(reader: Reader, start: int, end: int) -> int:
    position = start
    while (position := find(reader, b"riff", _W64_RIFF[8:], position, end)) < end:
        reader.seek(position)
        if reader.read(16) == _W64_RIFF:
            break
        position += 4
    return position


def _pieces(part: WavPart) -> Iterator[WavPart]:
    """The part in pieces of whole frames that a WAV can hold."""
    frame = int.from_bytes(part.layout[12:14], "little") or 1
    step = _LARGEST_PART // frame * frame
    for start in range(0, max(part.size, 1), step):
        yield WavPart(part.layout, part.start + start, min(step, part.size - start))


def _padding(reader: Reader, position: int) -> int:
    reader.seek(position)
    return int(reader.read(1) == b"\0")


def as_wav(reader: Reader, part: WavPart) -> io.BufferedReader:
    """The part as a WAV of its own, read from `reader` as it is needed."""
    layout = part.layout + b"\0" * (len(part.layout) % 2)
    head = b"".join(
        [
            struct.pack("<4sI4s", b"RIFF", 20 + len(layout) + part.size, b"WAVE"),
            struct.pack("<4sI", b"fmt ", len(layout)),
            layout,
            struct.pack("<4sI", b"data", part.size),
        ]
    )
    return io.BufferedReader(Slice(reader, part.start, part.size, head))


__all__ = ["WavPart", "as_wav", "wav_parts"]
