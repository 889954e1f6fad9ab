"""What recognizers of whole recordings share: sources, batches and the order of results."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import (
    SAMPLE_RATE,
    AudioSource,
    Recording,
    Samples,
    from_array,
    load_audio,
    stream_audio,
)
from pianissimo.audio.level import GainMode
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.hotwords import Boost
from pianissimo.engine.segmented import SegmentedStream
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.protocols import Capabilities, Outcome, Stream, StreamRecognizer
from pianissimo.recognizers.batches import batches_of, in_order, listed
from pianissimo.recognizers.long_form import usual_detector
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.transcript import Transcript

BLOCK_SECONDS = 10.0
"""Audio that is decoded at once, so that a long recording is never whole in memory."""


class OfflineRecognizer(ABC):
    """A model that hears recordings whole, behind the recognizer protocol.

    A family says in `_recognize` how blocks of samples become transcripts.
    """

    model: Any
    """The network: a torch module, or what another runtime has in its place."""
    latencies_ms: tuple[int, ...] = ()
    """No latency modes: a live stream of such a model goes from pause to pause."""
    language: str | None = None
    """The language of all that it writes, where that is one."""
    front_end: FrontEnd | None = None
    """The gain in front of the model, where the family has one."""
    hotwords = False
    """Whether the family accepts `boost`."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities:
        """What this recognizer supports."""
        return Capabilities(
            self.latencies_ms,
            batched_recordings=True,
            hotwords=self.hotwords,
            gain=self.front_end is not None,
        )

    @property
    def module(self) -> nn.Module | None:
        """The network, None for a model that runs outside PyTorch."""
        return self.model if isinstance(self.model, nn.Module) else None

    @property
    def parameter_count(self) -> int | None:
        """The number of parameters, None for a model that runs outside PyTorch."""
        module = self.module
        return None if module is None else sum(each.numel() for each in module.parameters())

    @property
    def device(self) -> str:
        """Where the model runs."""
        return str(getattr(self.model, "device", "cpu"))

    @property
    def dtype(self) -> str:
        """The type that the model computes in."""
        return str(getattr(self.model, "dtype", "unknown"))

    @cached_property
    def detector(self) -> VoiceDetector:
        """What finds the speech in recordings and live streams."""
        return usual_detector()

    @abstractmethod
    def _recognize(
        self, recordings: Sequence[Iterable[Samples]], words: bool
    ) -> Iterator[Transcript]:
        """The transcript of each recording, which comes in blocks of mono float32 at 16 kHz.

        Blocks are taken as they are needed; the errors of `stream_audio` may come from there.
        """

    def transcribe(
        self,
        source: Recording,
        *,
        sample_rate: int | None = None,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
    ) -> Transcript:
        """Transcribe one recording of any length.

        `source` is a path, bytes, a binary file object or "-" for standard input; or, with its
        `sample_rate` in Hz, an array of samples. `latency_ms` must be left out; `boost` are phrases
        that it should rather hear, where the family can. Raises AudioError for unreadable audio,
        OptionError for phrases that cannot be boosted.
        """
        self._check_latency(latency_ms)
        if boost:
            boosted = self.boosted(boost)
            return boosted.transcribe(
                source, sample_rate=sample_rate, word_timestamps=word_timestamps
            )
        if sample_rate is not None:
            blocks: Iterable[Samples] = [from_array(source, sample_rate)]
        elif isinstance(source, (np.ndarray, Tensor, list, tuple)):
            raise OptionError("samples need their rate: transcribe(array, sample_rate=16000)")
        else:
            blocks = stream_audio(source, block_seconds=BLOCK_SECONDS)  # type: ignore[arg-type]
        return next(self._recognize([blocks], word_timestamps))

    def transcribe_many(
        self,
        sources: Iterable[AudioSource],
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
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
            boost=boost,
        )
        yield from in_order(outcomes)

    def outcomes(
        self,
        sources: Iterable[AudioSource],
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: Boost | None = None,
    ) -> Iterator[Outcome]:
        """As `transcribe_many`, but in the order of completion and with errors as results."""
        self._check_latency(latency_ms)
        recognizer = self.boosted(boost) if boost else self
        sources = listed(sources)
        for batch in batches_of(sources, batch_seconds):
            if isinstance(batch, Outcome):
                yield batch
                continue
            if len(batch) == 1:
                try:
                    source = sources[batch[0]]
                    found = recognizer.transcribe(source, word_timestamps=word_timestamps)
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
            transcripts = recognizer._recognize(list(loaded.values()), word_timestamps)
            for i, transcript in zip(loaded, transcripts, strict=True):
                yield Outcome(i, transcript)

    def transcribe_together(self, recordings: Sequence[Samples]) -> Iterator[Transcript]:
        """Recordings of mono float32 at 16 kHz; each transcript when it is there, in order.

        The family decides how many go through the model at once.
        """
        yield from self._recognize([[samples] for samples in recordings], True)

    def stream(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        partials: StreamRecognizer | None = None,
        boost: Boost | None = None,
    ) -> Stream:
        """Open a live stream of samples at `sample_rate` Hz: each pause brings a final.

        `endpoint` says which pauses end an utterance. `partials` is a recognizer that streams, for
        words before that; without it there are only finals. `boost` is that of `transcribe`,
        `latency_ms` must be left out.
        """
        self._check_latency(latency_ms)
        recognizer = self.boosted(boost) if boost else self
        return SegmentedStream(
            recognizer, sample_rate=sample_rate, endpoint=endpoint, partials=partials
        )

    def boosted(self, boost: Boost) -> "OfflineRecognizer":
        """The same recognizer, on the same weights, for recordings with such phrases in them.

        Raises OptionError: most families have no search that phrases could guide.
        """
        raise OptionError(f"{self.name} cannot boost phrases: leave them out")

    def with_gain(self, mode: GainMode) -> Self:
        """The same recognizer, on the same weights, with another gain mode.

        Raises OptionError for an unknown mode, or any but "off" where there is no gain.
        """
        front_end = FrontEnd(mode)
        if self.front_end is None:
            if mode != "off":
                raise OptionError(
                    f"{self.name} normalizes its input and has no gain; leave the gain out"
                )
            return self
        recognizer = copy.copy(self)
        recognizer.front_end = front_end
        return recognizer

    def _check_latency(self, latency_ms: int | None) -> None:
        if latency_ms not in (None, *self.latencies_ms):
            known = ", ".join(map(str, self.latencies_ms)) or "none: it hears recordings whole"
            raise OptionError(f"latency {latency_ms} ms is not a mode of this model ({known})")
