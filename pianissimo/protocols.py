"""What every recognizer can do: the protocols that callers program against."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pianissimo.errors import PianissimoError
from pianissimo.transcript import StreamEvent, Transcript

if TYPE_CHECKING:
    from pianissimo.audio.io import AudioSource


@dataclass(frozen=True)
class Outcome:
    """What became of one recording of many: a transcript, or the error that prevented it."""

    index: int
    transcript: Transcript | None = None
    error: PianissimoError | None = None


@runtime_checkable
class Recognizer(Protocol):
    """Audio in, transcript out."""

    @property
    def name(self) -> str: ...

    def transcribe(
        self,
        source: "AudioSource | Any",
        *,
        sample_rate: int | None = None,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
    ) -> Transcript:
        """Transcribe one recording: path, bytes, file object, "-", or an array with its rate."""
        ...

    def transcribe_many(
        self,
        sources: "Iterable[AudioSource]",
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
    ) -> Iterator[Transcript]:
        """Transcribe recordings in batches of about equal length; results in the order given."""
        ...


@runtime_checkable
class Stream(Protocol):
    """One live stream; a context manager that closes it."""

    def push(self, samples: Any) -> list[StreamEvent]:
        """Take further samples, any number of them, and return what became known."""
        ...

    def finalize(self) -> list[StreamEvent]:
        """Lock the text of everything pushed so far and go on; the last event is its final."""
        ...

    def finish(self) -> list[StreamEvent]:
        """End the stream and return what is left; nothing may be pushed afterwards."""
        ...

    def __enter__(self) -> "Stream": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class StreamRecognizer(Recognizer, Protocol):
    """A recognizer that also listens live."""

    @property
    def latencies_ms(self) -> tuple[int, ...]:
        """The latency modes, in milliseconds of audio per chunk, shortest first."""
        ...

    def stream(self, *, latency_ms: int | None = None, sample_rate: int = 16_000) -> Stream:
        """Open a live stream of samples at `sample_rate` Hz."""
        ...
