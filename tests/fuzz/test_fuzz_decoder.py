"""The decoders of the server with whole, truncated and damaged recordings of every container."""

import asyncio
import random
from contextlib import aclosing
from pathlib import Path

import pytest
from decoder_target import seeds
from fuzzing import TIMES, Share

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import AudioError, AudioValueError
from pianissimo.serve.audio_in.decode import Decoders, Upload

SEEDS = dict(seeds())
STALL_SECONDS = 60.0


async def seconds(decoders: Decoders, path: Path) -> float:
    samples = 0
    async with aclosing(decoders.blocks(Upload(path), SAMPLE_RATE)) as blocks:
        async for block in blocks:
            samples += len(block)
    return samples / SAMPLE_RATE


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A recording that is cut, or of which some bytes are others, or stand elsewhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                changed[place : place + 4] = chance.choice([b"\xff" * 4, bytes(4), b"\x7f" * 4])
            case 2:
                end = min(len(changed), place + chance.randrange(1, 200))
                changed[place:place] = changed[place:end]
            case 3:
                del changed[max(place, 1) :]
    return bytes(changed)


@pytest.mark.parametrize("name", SEEDS)
def test_recordings_decode_and_damaged_ones_are_refused(name: str, tmp_path: Path) -> None:
    """No recording ends its decoder, or gives more than the server takes."""
    path, chance, share = tmp_path / "recording", random.Random(name), Share()

    async def run() -> int:
        decoders = Decoders(1, STALL_SECONDS, 60.0)
        try:
            path.write_bytes(SEEDS[name])
            assert await seconds(decoders, path) == pytest.approx(0.5, abs=0.1)
            for _ in range(8 * TIMES):
                if share.used:
                    break
                path.write_bytes(damaged(SEEDS[name], chance))
                try:
                    assert await seconds(decoders, path) <= 60.0
                except AudioValueError as error:
                    if "longer than" in str(error):  # its decoder is stopped on purpose
                        decoders.killed -= 1
                except AudioError:
                    pass
            return decoders.killed
        finally:
            await decoders.close()

    assert asyncio.run(run()) == 0
