"""What recognisers of whole recordings share: sources, batches and the order of results."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from torch import Tensor

from pianissimo.audio.io import (
    SAMPLE_RATE,
    AudioSource,
    Samples,
    from_array,
    load_audio,
    stream_audio,
)
from pianissimo.batches import batches_of, in_order
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.recognizer import Outcome
from pianissimo.transcript import Transcript

BLOCK_SECONDS = 10.0
"""Audio that is decoded at once, so that a long recording is never whole in memory."""


class OfflineRecognizer(ABC):
    """A model that hears recordings whole, behind the recogniser protocol.

    A family says in `_recognise` how blocks of samples become transcripts.
    """

    model: Any
    """The network: a torch module."""
    latencies_ms: tuple[int, ...] = ()
    """No latency modes: these models cannot stream."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def _recognise(
        self, recordings: Sequence[Iterable[Samples]], words: bool
    ) -> Iterator[Transcript]:
        """The transcript of each recording, which comes in blocks of mono float32 at 16 kHz.

        Blocks are taken as they are needed; the errors of `stream_audio` may come from there.
        """

    def transcribe(
        self,
        source: AudioSource | Any,
        *,
        sample_rate: int | None = None,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
    ) -> Transcript:
        """Transcribe one recording of any length.

        `source` is a path, bytes, a binary file object or "-" for standard input; or, with its
        `sample_rate` in Hz, an array of samples. `latency_ms` must be left out. Raises AudioError
        for unreadable audio.
        """
        self._check_latency(latency_ms)
        if sample_rate is not None:
            blocks: Iterable[Samples] = [from_array(source, sample_rate)]
        elif isinstance(source, (np.ndarray, Tensor, list)):
            raise OptionError("samples need their rate: transcribe(array, sample_rate=16000)")
        else:
            blocks = stream_audio(source, block_seconds=BLOCK_SECONDS)
        return next(self._recognise([blocks], word_timestamps))

    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
    ) -> Iterator[Transcript]:
        """Transcribe recordings in batches of about equal length; results in the order given.

        `batch_seconds` bounds the audio, padding included, that is held at once. Raises the error
        of the first recording that cannot be read when its turn comes; see `outcomes` for going on.
        """
        outcomes = self.outcomes(
            sources,
            batch_seconds=batch_seconds,
            latency_ms=latency_ms,
            word_timestamps=word_timestamps,
        )
        yield from in_order(outcomes)

    def outcomes(
        self,
        sources: Iterable[AudioSource],
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
    ) -> Iterator[Outcome]:
        """As `transcribe_many`, but in the order of completion and with errors as results."""
        self._check_latency(latency_ms)
        sources = list(sources)
        for batch in batches_of(sources, batch_seconds):
            if isinstance(batch, Outcome):
                yield batch
                continue
            if len(batch) == 1:
                try:
                    found = self.transcribe(sources[batch[0]], word_timestamps=word_timestamps)
                    yield Outcome(batch[0], found)
                except PianissimoError as error:
                    yield Outcome(batch[0], error=error)
                continue
            loaded: dict[int, list[Samples]] = {}
            for i in batch:
                try:
                    loaded[i] = [load_audio(sources[i])]
                except PianissimoError as error:
                    yield Outcome(i, error=error)
            transcripts = self._recognise(list(loaded.values()), word_timestamps)
            for i, transcript in zip(loaded, transcripts, strict=True):
                yield Outcome(i, transcript)

    def stream(self, *, latency_ms: int | None = None, sample_rate: int = SAMPLE_RATE) -> NoReturn:
        """Raises OptionError: the model hears nothing before the recording ends."""
        raise OptionError(
            f"{self.name} hears recordings whole and cannot stream; choose a streaming model"
        )

    def _check_latency(self, latency_ms: int | None) -> None:
        if latency_ms is not None:
            raise OptionError(
                f"latency {latency_ms} ms is not a mode of this model "
                "(none: this model does not stream)"
            )
