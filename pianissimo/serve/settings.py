"""Everything a server can be told, checked once at the start."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from pianissimo.errors import OptionError


@dataclass(frozen=True)
class Settings:
    """What `pianissimo serve` was asked for.

    `max_streams` sockets are served at once and `max_files` recordings transcribed; as many again
    may wait for their turn. `idle_seconds` is how long a socket may send nothing. A stream of our
    own protocol whose connection broke can be resumed for `resume_seconds`; it keeps its slot for
    `linger_seconds` of them, and outlives the process where there is a `state_folder`. `insecure`
    allows other machines in without a key.
    """

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    host: str = "127.0.0.1"
    port: int = 7860
    max_streams: int = 64
    max_files: int = 2
    largest_upload_mb: float = 512.0
    longest_audio_seconds: float = 4 * 3600.0
    decoders: int = 2
    decode_stall_seconds: float = 30.0
    idle_seconds: float = 300.0
    resume_seconds: float = 120.0
    linger_seconds: float = 5.0
    state_folder: Path | None = None
    api_keys: tuple[str, ...] = ()
    admin_key: str | None = None
    allow_origins: tuple[str, ...] = ()
    insecure: bool = False
    strict_commits: bool = False

    def __post_init__(self) -> None:
        if min(self.max_streams, self.max_files, self.decoders) < 1:
            raise OptionError("a server needs at least one stream, one file and one decoder")
        seconds = (self.longest_audio_seconds, self.decode_stall_seconds, self.idle_seconds)
        if min(*seconds, self.largest_upload_mb) <= 0:
            raise OptionError("the limits of a server must be above 0")
        if not 0 <= self.linger_seconds <= self.resume_seconds:
            raise OptionError("a stream cannot linger longer than it can be resumed")
        if not 0 <= self.port <= 65_535:
            raise OptionError(f"{self.port} is not a port; choose one from 0 to 65535")
        if any(not key.strip() for key in (*self.api_keys, self.admin_key or "-")):
            raise OptionError("an API key must not be empty")
        if not (self.loopback or self.api_keys or self.insecure):
            raise OptionError(
                f"on {self.host} everyone in reach could use this server: set an API key "
                "(--api-key), listen on 127.0.0.1, or say --insecure"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def largest_upload_bytes(self) -> int:
        return round(self.largest_upload_mb * 1e6)
