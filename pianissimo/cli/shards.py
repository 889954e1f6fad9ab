"""`transcribe --shard I/N`: the part of an archive that one of N runs transcribes."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pianissimo.errors import OptionError


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, counted from 1.

    A recording belongs to the shard that the hash of its place chooses: its path below the named
    folder or as its manifest lists it, or the name of a named file. So every machine divides an
    archive alike, wherever it is mounted, and new recordings move no other.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """ "3/16" -> Shard(3, 16); OptionError unless it is I/N with I from 1 to N."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise OptionError(f"--shard must be I/N with I from 1 to N, as in 3/16, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def has(self, place: Path) -> bool:
        """Whether the recording at that place belongs to this shard."""
        digest = hashlib.sha256(place.as_posix().encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def file_name(self, name: str) -> str:
        """ "failed.jsonl" -> "failed-3-of-16.jsonl": the file of this shard in a shared folder."""
        path = Path(name)
        return f"{path.stem}-{self.number}-of-{self.count}{path.suffix}"
