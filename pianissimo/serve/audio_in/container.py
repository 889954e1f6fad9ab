"""Tells a media container from raw samples by its first bytes."""

import re
from collections.abc import Callable
from typing import TypeAlias

SIGNATURE_BYTES = 8192
"""What `is_container` should see of a file, if it has as much."""
SIGNATURES = re.compile(
    rb"RIFF|RIFX|RF64|riff\x2e\x91|OggS|fLaC|\x1aE\xdf\xa3"  # WAV, W64, Ogg, FLAC, Matroska
    rb"|FORM....AIF|\.snd|caff\x00|wvpk|FLV\x01|#!AMR|ID3[\x02-\x04]|MAC |TTA1|tBaK|DSD |FRM8"
    rb"|Creative Voice File|NIST_1A|\x30\x26\xb2\x75\x8e\x66\xcf\x11|\.RMF|MPCK|MP\+"
    rb"|....(?:ftyp|moov|mdat|wide|free|skip|pnot)|ADIF|\x47\x40..",
    re.S,
)
TS_PACKET = 188
MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}
MP3_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1 layer III
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),  # MPEG-1 layer II
    (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),  # MPEG-1 layer I
    (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),  # MPEG-2 layer I
)
FrameSize: TypeAlias = Callable[[bytes, int], int]
MOST_SYNC_BYTES = 2048
"""How far into a file without a signature the first frame of a packetized codec may begin."""


def is_container(data: bytes) -> bool:
    """Whether a file that begins with `data` is a container or a packetized codec.

    MP3 and ADTS have no signature. They are recognized by consecutive frames, each of which says
    where the next one begins; raw samples do not form such a chain.
    """
    if SIGNATURES.match(data):
        return data[:1] != b"\x47" or _is_transport_stream(data)
    return any(_chain(data, size) for size in (_mp3_frame, _adts_frame))


def _is_transport_stream(data: bytes) -> bool:
    packets = data[: len(data) - len(data) % TS_PACKET : TS_PACKET]
    return len(packets) >= 2 and packets[:8] == b"\x47" * len(packets[:8])


def _chain(data: bytes, size_at: FrameSize, frames: int = 3) -> bool:
    """Whether three frames follow each other, or as many as a short file has."""
    for start in range(min(len(data), MOST_SYNC_BYTES)):
        if data[start] != 0xFF:
            continue
        position = start
        for _ in range(frames):
            size = size_at(data, position)
            if not size:
                break
            position += size
        else:
            return True
    return False


def _mp3_frame(data: bytes, at: int) -> int:
    """Bytes of the MPEG audio frame that begins here; 0 if none does."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return 0
    first = version == 3
    if layer == 1:
        kbits = MP3_KBITS[3 if first else 4][bits]
    elif layer == 2:
        kbits = MP3_KBITS[2 if first else 1][bits]
    else:
        kbits = MP3_KBITS[0 if first else 1][bits]
    hertz = MP3_RATES[version][rate]
    if layer == 1:
        return (12_000 * kbits // hertz + padding) * 4
    samples = 72_000 if layer == 3 and not first else 144_000
    return samples * kbits // hertz + padding


def _adts_frame(data: bytes, at: int) -> int:
    """Bytes of the ADTS frame that begins here; 0 if none does."""
    head = data[at : at + 6]
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size if size > 7 else 0
