"""`transcribe --parquet`: a row for each recording, in files that may lie in an object store."""

import time
import uuid
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pianissimo.audio.remote import file_system
from pianissimo.errors import MissingExtraError, OptionError, PianissimoError

if TYPE_CHECKING:
    import pyarrow as pa

    from pianissimo.transcript import Transcript

ROWS_PER_FILE = 10_000
FILE_SECONDS = 300.0
"""A file is written after this many rows or seconds; a kill loses no more than that."""


class ParquetRows:
    """Appends rows to Parquet files in a directory, `folder`, a path or a URL.

    Every run writes files with names of its own, so runs share a directory; a file appears when it
    is complete. Raises MissingExtraError without pyarrow, OptionError if the directory cannot be
    used.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        try:
            self._schema = _schema()
        except ImportError as error:
            raise MissingExtraError(
                "--parquet needs pyarrow: pip install 'pianissimo[archive]'"
            ) from error
        self._files, self._path = file_system(folder)
        try:
            self._files.makedirs(self._path, exist_ok=True)
        except Exception as error:  # each store has errors of its own
            raise OptionError(f"--parquet {folder} cannot be created: {error!r}") from error
        self._run, self._count = uuid.uuid4().hex, 0
        self._rows: list[dict[str, object]] = []
        self._since = time.monotonic()

    def transcribed(self) -> set[str]:
        """The names of the recordings that have a row without an error, of all runs."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        names: set[str] = set()
        try:
            for path in self._files.find(self._path, maxdepth=1):
                if not PurePosixPath(path).match("part-*.parquet"):
                    continue
                with self._files.open(path, "rb") as file:
                    rows = pq.read_table(file, columns=["file", "error_code"])
                kept = rows.filter(pc.field("error_code").is_null())
                names.update(kept.column("file").to_pylist())
        except Exception as error:
            raise OptionError(
                f"--parquet {self._folder} has a file that cannot be read: {error!r}"
            ) from error
        return names

    def add(self, name: str, transcript: "Transcript") -> None:
        """Append the transcript of the recording `name`."""
        self._append(
            {
                "file": name,
                "duration": transcript.duration,
                "text": transcript.text,
                "words": [asdict(word) for word in transcript.words],
                "language": transcript.language,
                "model": transcript.model,
                "reasons": list(transcript.reasons),
            }
        )

    def add_failure(self, name: str, error: BaseException) -> None:
        """Append a row that says why there is no transcript."""
        code = getattr(error, "code", "error")
        self._append({"file": name, "error_code": code, "error_message": str(error)})

    def flush(self) -> None:
        """Write the rows that wait; PianissimoError if that fails."""
        if not self._rows:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = f"part-{self._run}-{self._count}.parquet"
        place, hidden = (f"{self._path.rstrip('/')}/{each}" for each in (name, f".{name}"))
        try:
            with self._files.open(hidden, "wb") as file:
                pq.write_table(pa.Table.from_pylist(self._rows, schema=self._schema), file)
            self._files.mv(hidden, place)
        except Exception as error:
            raise PianissimoError(f"{self._folder} cannot be written: {error!r}") from error
        self._count, self._rows, self._since = self._count + 1, [], time.monotonic()

    def _append(self, row: dict[str, object]) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS_PER_FILE or time.monotonic() - self._since >= FILE_SECONDS:
            self.flush()


def _schema() -> "pa.Schema":
    import pyarrow as pa

    word = {
        "text": pa.string(),
        **dict.fromkeys(("start", "end", "confidence"), pa.float64()),
        "speaker": pa.string(),
        "speaker_confidence": pa.float64(),
    }
    return pa.schema(
        {
            "file": pa.string(),
            "duration": pa.float64(),
            "text": pa.string(),
            "words": pa.list_(pa.struct(word)),
            "language": pa.string(),
            "model": pa.string(),
            "reasons": pa.list_(pa.string()),
            "error_code": pa.string(),
            "error_message": pa.string(),
        }
    )
