"""Files that were joined end to end: where each of them begins, for containers that state a size.

Decoders stop at the end that the first file states. WAV and its relatives are in `wav_parts`; MP3,
AAC, FLAC, Ogg and WebM need nothing, as their decoders read on.
"""

import io
import os
import struct
from collections.abc import Iterator
from typing import Protocol

_MOST_FILES = 10_000
_SCAN_BYTES = 1 << 20
_UNKNOWN = 0xFFFFFFFF


class Reader(Protocol):
    def read(self, size: int = -1) -> bytes: ...

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int: ...


class Slice(io.RawIOBase):
    """`head`, then `size` bytes of a reader from byte `start` on, read as they are needed."""

    def __init__(self, reader: Reader, start: int, size: int, head: bytes = b"") -> None:
        self._reader, self._start, self._head = reader, start, head
        self._end, self._position = len(head) + size, 0

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


def find(reader: Reader, mark: bytes, kind: bytes, start: int, end: int) -> int:
    """The first byte from `start` on where `mark`, four bytes of any value and `kind` follow.

    `end` if there is none before it.
    """
    size = len(mark) + 4 + len(kind)
    position = start
    while position < end:
        reader.seek(position)
        block = reader.read(min(_SCAN_BYTES, end - position))
        at = block.find(mark)
        while at >= 0:
            if block[at + len(mark) + 4 : at + size] == kind:
                return position + at
            at = block.find(mark, at + 1)
        if len(block) < size:
            break
        position += len(block) - size + 1
    return end


def file_starts(reader: Reader) -> list[int]:
    """Where the joined files of a reader begin, the first at 0."""
    end = reader.seek(0, os.SEEK_END)
    starts = [0]
    while len(starts) < _MOST_FILES:
        position = _end_of_file(reader, starts[-1], end)
        if position is None or position >= end - 12:
            break
        if _end_of_file(reader, position, end) is None:
            break  # what follows is no file
        starts.append(position)
    reader.seek(0)
    return starts


def _end_of_file(reader: Reader, start: int, end: int) -> int | None:
    """Where the file at `start` ends; None if it is of no kind that is known here."""
    reader.seek(start)
    head = reader.read(16)
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        stated = start + 8 + int.from_bytes(head[4:8], "big")
        if start + 12 < stated <= end:
            reader.seek(stated)
            return stated + (reader.read(1) == b"\0" and stated % 2 != start % 2)
        return min(find(reader, b"FORM", kind, start + 12, end) for kind in (b"AIFF", b"AIFC"))
    if head[:4] == b".snd" and len(head) == 16:
        offset, size = struct.unpack(">II", head[4:12])
        if size == _UNKNOWN:
            return find(reader, b".snd", b"\xff\xff\xff\xff", start + 16, end)
        return min(end, start + offset + size)
    if head[:8] == b"caff\0\1\0\0":
        return _end_of_caf(reader, start, end)
    if head[4:8] == b"ftyp":
        return _end_of_mp4(reader, start, end)
    if head[:4] == b"FLV\x01":
        return _end_of_flv(reader, start, end)
    if head[:4] == b"wvpk":
        return _end_of_wavpack(reader, start, end)
    return None


def _end_of_caf(reader: Reader, start: int, end: int) -> int:
    position = start + 8
    while position + 12 <= end:
        reader.seek(position)
        name, size = struct.unpack(">4sq", reader.read(12))
        if name == b"caff":
            return position
        if size < 0 or position + 12 + size > end:  # written as a stream
            return find(reader, b"caff", b"desc", position + 12, end)
        position += 12 + size
    return end


def _end_of_mp4(reader: Reader, start: int, end: int) -> int:
    for position, name in _boxes(reader, start, end):
        if name == b"ftyp" and position > start:
            return position
    return end


def _boxes(reader: Reader, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The boxes of MP4 at the top level: their positions and names."""
    position = start
    while position + 8 <= end:
        reader.seek(position)
        size, name, large = struct.unpack(">I4sQ", reader.read(16).ljust(16, b"\0"))
        yield position, name
        size = large if size == 1 else size
        if size < 8:  # 0: up to the end
            return
        position += size


def _end_of_flv(reader: Reader, start: int, end: int) -> int:
    """Tags are 15 bytes and their data; the size of the header stands in its bytes 5 to 8."""
    reader.seek(start + 5)
    position = start + int.from_bytes(reader.read(4), "big") + 4
    while position + 15 <= end:
        reader.seek(position)
        head = reader.read(4)
        if head == b"FLV\x01":
            return position
        position += 15 + int.from_bytes(head[1:4], "big")
    return end


def _end_of_wavpack(reader: Reader, start: int, end: int) -> int:
    """The first block of a file has sample 0; blocks of further channels are no initial ones."""
    position, begun = start, False
    while position + 32 <= end:
        reader.seek(position)
        block = reader.read(32)
        if block[:4] != b"wvpk":  # tags behind the samples
            return find(reader, b"wvpk", b"", position + 1, end)
        size, index, samples, flags = struct.unpack("<4xI8xIII4x", block)
        if begun and index == 0 and flags & 0x800:
            return position
        begun = begun or samples > 0
        position += 8 + size
    return end


__all__ = ["Slice", "file_starts", "find"]
