"""WAV files that hold more than their first header says: joined files, several chunks, old sizes.

Recorders in browsers join their pieces to one file; a header that was never brought up to date, or
whose size wrapped round at 4 GiB, states too little. Each piece becomes a WAV of its own.
"""

import io
import os
import struct
from dataclasses import dataclass
from typing import Protocol

_KNOWN = frozenset(
    b"LIST,fact,bext,id3 ,ID3 ,cue ,smpl,inst,JUNK,junk,PAD ,FLLR,iXML,axml,_PMX,afsp,PEAK,levl,"
    b"DISP,plst,note,labl,ltxt,acid,strc,cart,chna,regn,umid,minf,elm1,ovwf,SyLp,INFO".split(b",")
)
_MOST_CHUNKS = 10_000


class Reader(Protocol):
    def read(self, size: int = -1) -> bytes: ...

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int: ...


@dataclass(frozen=True)
class WavPart:
    """Samples from byte `start` on, in the format of the chunk `layout`."""

    layout: bytes
    start: int
    size: int


def wav_parts(reader: Reader) -> list[WavPart] | None:
    """The parts of a WAV that its first header does not tell all about; otherwise None."""
    end = reader.seek(0, os.SEEK_END)
    parts: list[WavPart] = []
    layout, position, told = b"", 0, True
    for _ in range(_MOST_CHUNKS):
        reader.seek(position)
        head = reader.read(12)
        name, size = head[:4], int.from_bytes(head[4:8], "little")
        if name == b"RIFF" and head[8:12] == b"WAVE":
            layout, position = b"", position + 12
            continue
        if len(head) < 8:
            break
        fits = position + 8 + size <= end + 1
        if name == b"fmt " and fits and size <= 1024:
            reader.seek(position + 8)
            layout = reader.read(size)
        elif name == b"data" and layout:
            if size in (0, 0xFFFFFFFF) or not fits:  # never written, or cut off: libsndfile knows
                size = end - position - 8
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
    return None if len(parts) == 1 and told else parts or None


def _padding(reader: Reader, position: int) -> int:
    reader.seek(position)
    return int(reader.read(1) == b"\0")


def as_wav(reader: Reader, part: WavPart) -> "io.BufferedReader":
    """The part as a WAV of its own, read from `reader` as it is needed."""
    return io.BufferedReader(_Part(reader, part))


class _Part(io.RawIOBase):
    def __init__(self, reader: Reader, part: WavPart) -> None:
        layout = part.layout + b"\0" * (len(part.layout) % 2)
        size = min(part.size, 0xFFFFFFFF - 64 - len(layout))
        self._head = b"".join(
            [
                struct.pack("<4sI4s", b"RIFF", 20 + len(layout) + size, b"WAVE"),
                struct.pack("<4sI", b"fmt ", len(layout)),
                layout,
                struct.pack("<4sI", b"data", size),
            ]
        )
        self._reader, self._start = reader, part.start
        self._end, self._position = len(self._head) + size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._end}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), max(0, self._end - self._position))
        if self._position < len(self._head):
            data = self._head[self._position : self._position + size]
        else:
            self._reader.seek(self._start + self._position - len(self._head))
            data = self._reader.read(size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


__all__ = ["WavPart", "as_wav", "wav_parts"]
