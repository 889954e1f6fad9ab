"""Where streams are stored between two servers: a folder, which several servers may share.

    <SHA-256 of the token>/
        claim-00000002           one for each server that had the stream; the highest one has it
        state-00000002-00000417  the newest state: of that claim, after 417 frames

A claim is made by creating its file, which only one server can do. A server that lost its claim
finds that out before and after each write: what it wrote is then taken back. States are renamed
into place, so none is ever half written.
"""

import hashlib
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pianissimo.errors import StateError

DIGEST_BYTES = 32


class ClaimLost(Exception):
    """Another server has resumed the stream, or it is over."""


@dataclass(frozen=True)
class Claim:
    """The right of one server to write the state of a stream; a later claim has a higher fence."""

    token: str
    fence: int


class StateFolder:
    """The states of streams in a folder. Every method may block, and may raise OSError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def create(self, token: str, state: bytes) -> Claim:
        """Store a new stream before its first frame."""
        place = self._place(token)
        place.mkdir(mode=0o700)
        claim = Claim(token, 1)
        _create(place / _claim_name(claim.fence), b"")
        self.write(claim, 0, state)
        return claim

    def take(self, token: str) -> tuple[Claim, bytes] | None:
        """Claim a stream, whichever server holds it, and read its newest state, None without one.

        Raises StateError if the state is damaged.
        """
        place = self._place(token)
        try:
            while True:
                claim = Claim(token, _fence(place) + 1)
                with suppress(FileExistsError):  # another server was faster
                    _create(place / _claim_name(claim.fence), b"")
                    break
            while states := sorted(place.glob("state-*")):
                # Under the new name the state is newer than all that earlier claims may write.
                frames = states[-1].name.rpartition("-")[2]
                path = place / f"state-{claim.fence:08}-{frames}"
                with suppress(FileNotFoundError):  # its writer took it back
                    os.rename(states[-1], path)
                    return claim, _checked(path.read_bytes())
        except FileNotFoundError:
            pass
        return None

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is the newest one of a stream that is not over."""
        place = self._place(claim.token)
        return (place / _claim_name(claim.fence)).exists() and not (
            place / _claim_name(claim.fence + 1)
        ).exists()

    def write(self, claim: Claim, frames: int, state: bytes, *, sync: bool = False) -> None:
        """Store the state after these frames in place of the one before; raises ClaimLost.

        With `sync` it also survives a loss of power.
        """
        place = self._place(claim.token)
        self._check(claim)
        path = place / f"state-{claim.fence:08}-{frames:08}"
        draft = place / f"{secrets.token_hex(8)}.tmp"
        try:
            _create(draft, hashlib.sha256(state).digest() + state, sync=sync)
            os.replace(draft, path)
        except FileNotFoundError as error:  # the folder of the stream is gone
            raise ClaimLost from error
        finally:
            draft.unlink(missing_ok=True)
        try:
            self._check(claim)
        except ClaimLost:
            path.unlink(missing_ok=True)
            raise
        for older in place.glob("state-*"):
            if older.name < path.name:
                older.unlink(missing_ok=True)

    def touch(self, claim: Claim) -> None:
        """The stream is still there, although nothing changed; raises ClaimLost."""
        self._check(claim)
        try:
            os.utime(self._place(claim.token) / _claim_name(claim.fence))
        except FileNotFoundError as error:
            raise ClaimLost from error

    def delete(self, claim: Claim) -> None:
        """Delete a stream that is over, unless another server has it."""
        if self.holds(claim):
            shutil.rmtree(self._place(claim.token), ignore_errors=True)

    def delete_expired(self, seconds: float) -> None:
        """Delete what no server has written or touched for that many seconds."""
        oldest = time.time() - seconds
        for place in self.root.iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):
                times = [path.stat().st_mtime for path in (place, *place.iterdir())]
                if max(times) < oldest:
                    shutil.rmtree(place, ignore_errors=True)

    def _check(self, claim: Claim) -> None:
        if not self.holds(claim):
            raise ClaimLost

    def _place(self, token: str) -> Path:
        return self.root / hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _claim_name(fence: int) -> str:
    return f"claim-{fence:08}"


def _fence(place: Path) -> int:
    """The newest claim of a stream; raises FileNotFoundError if there is none."""
    claims = [int(path.name.removeprefix("claim-")) for path in place.glob("claim-*")]
    if not claims:
        raise FileNotFoundError(place)
    return max(claims)


def _create(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a new file that only its owner may read; raises FileExistsError."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def _checked(data: bytes) -> bytes:
    """The state in a file; raises StateError if a bit of it changed."""
    digest, state = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(state).digest() != digest:
        raise StateError("the stored stream is damaged: its digest does not fit its content")
    return state
