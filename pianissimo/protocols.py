"""The protocols that callers program against: recognizers, their streams, and synthesizers."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pianissimo.errors import PianissimoError
from pianissimo.transcript import StreamEvent, Transcript

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from pianissimo.audio.front_end import FrontEnd
    from pianissimo.audio.gain import GainMode
    from pianissimo.audio.io import AudioSource, Recording, Samples
    from pianissimo.audio.vad import VoiceDetector
    from pianissimo.decoding.hotwords import Boost
    from pianissimo.diarization.options import Diarization
    from pianissimo.streaming.endpoint import EndpointRules


@dataclass(frozen=True)
class Outcome:
    """The result for one recording of many: a transcript, or the error that prevented it."""

    index: int
    transcript: Transcript | None = None
    error: PianissimoError | None = None


@dataclass(frozen=True)
class Capabilities:
    """What a loaded recognizer supports. Callers read it instead of testing types or attributes."""

    latencies_ms: tuple[int, ...] = ()
    """Latency modes in milliseconds of audio per chunk, shortest first. A model without modes runs
    live on the segments between two pauses."""
    batched_streams: bool = False
    """Live streams share batches chunk by chunk, in an `Engine`."""
    saved_streams: bool = False
    """A live stream can be exported and resumed elsewhere."""
    batched_recordings: bool = False
    """`transcribe_together` gives each recording the text it gets alone."""
    whole_recordings: bool = False
    """Recordings are decoded whole, not as live streams are, unless a latency mode is chosen."""
    second_pass: bool = False
    """Finals of live streams are decoded again from the whole utterance, unless that is off."""
    hotwords: bool = False
    """`boost` is accepted."""
    gain: bool = False
    """`with_gain` is accepted. A model that normalizes its input has no gain."""

    @property
    def streams(self) -> bool:
        """Whether live streams write partials, without waiting for a pause."""
        return bool(self.latencies_ms)


@runtime_checkable
class Stream(Protocol):
    """One live stream; a context manager that closes it."""

    def push(self, samples: "npt.ArrayLike", sample_rate: int | None = None) -> list[StreamEvent]:
        """Push any number of samples and return the new events."""
        ...

    def finalize(self) -> list[StreamEvent]:
        """Finalize the text of everything pushed so far; the last event is its final."""
        ...

    def finish(self) -> list[StreamEvent]:
        """End the stream and return its last events; nothing may be pushed afterwards."""
        ...

    def __enter__(self) -> "Stream": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class Recognizer(Protocol):
    """A loaded model: audio in, transcripts and stream events out."""

    @property
    def name(self) -> str: ...

    @property
    def language(self) -> str | None:
        """The language of every transcript, None where it varies or is unknown."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def latencies_ms(self) -> tuple[int, ...]:
        """The latency modes of `capabilities`."""
        ...

    @property
    def front_end(self) -> "FrontEnd | None":
        """The gain in front of the model; None for a model without one."""
        ...

    @property
    def detector(self) -> "VoiceDetector | None":
        """Finds the speech in recordings and segments; None turns the hallucination filter off."""
        ...

    @property
    def module(self) -> "torch.nn.Module | None":
        """The network, None for a model that runs outside PyTorch."""
        ...

    @property
    def parameter_count(self) -> int | None:
        """The number of parameters, None for a model that runs outside PyTorch."""
        ...

    @property
    def device(self) -> str:
        """Where the model runs: "cpu" or "cuda:N"."""
        ...

    @property
    def dtype(self) -> str:
        """The type that it computes in, such as "torch.float32"; "unknown" outside PyTorch."""
        ...

    def transcribe(
        self,
        source: "Recording",
        *,
        sample_rate: int | None = None,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: "Boost | None" = None,
        diarize: "bool | Diarization" = False,
        itn: bool = False,
    ) -> Transcript:
        """Transcribe one recording of any length.

        `source` is a path, bytes, a binary file object, "-" for standard input, an iterator of
        blocks (n,) of mono float32 at 16 kHz, or, with its `sample_rate` in Hz, an array of
        samples. `boost` is a list of hotwords. `diarize` says who speaks when: True by voice, or a
        `Diarization`. `itn` asks for the written form of numbers, dates, money and times. Raises
        AudioError for unreadable audio, OptionError for an unknown latency mode, a hotword that the
        model cannot boost, or a language without a written form.
        """
        ...

    def transcribe_many(
        self,
        sources: "Iterable[AudioSource]",
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: "Boost | None" = None,
        diarize: "bool | Diarization" = False,
        itn: bool = False,
    ) -> Iterator[Transcript]:
        """Transcribe recordings in batches of about equal length; results in the order given."""
        ...

    def outcomes(
        self,
        sources: "Iterable[AudioSource]",
        *,
        batch_seconds: float = 600.0,
        latency_ms: int | None = None,
        word_timestamps: bool = True,
        boost: "Boost | None" = None,
        diarize: "bool | Diarization" = False,
        itn: bool = False,
    ) -> Iterator[Outcome]:
        """As `transcribe_many`, in the order of completion and with errors as results."""
        ...

    def transcribe_together(self, recordings: "Sequence[Samples]") -> Iterator[Transcript]:
        """Transcribe arrays (n,) of mono float32 at 16 kHz; results in the order given."""
        ...

    def stream(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int = 16_000,
        endpoint: "EndpointRules | None" = ...,
        partials: "StreamRecognizer | None" = None,
        boost: "Boost | None" = None,
        second_pass: bool | None = None,
    ) -> Stream:
        """Open a live stream of samples at `sample_rate` Hz.

        `second_pass` True raises OptionError without `capabilities.second_pass`.
        """
        ...

    def boosted(self, boost: "Boost") -> "Recognizer":
        """The same recognizer, on the same weights, with these hotwords.

        Raises OptionError for a hotword that the model cannot boost.
        """
        ...

    def with_gain(self, mode: "GainMode") -> "Recognizer":
        """The same recognizer, on the same weights, with another gain mode.

        Raises OptionError for an unknown mode, or any but "off" without `capabilities.gain`.
        """
        ...


@runtime_checkable
class LanguageChoice(Protocol):
    """A recognizer whose language can be chosen for each recording and stream."""

    def in_language(self, language: str) -> Recognizer:
        """The same recognizer, on the same weights, for recordings and streams in a language.

        Raises OptionError for a language that the model does not have.
        """
        ...


@runtime_checkable
class StreamRecognizer(Recognizer, Protocol):
    """A recognizer with latency modes: its live streams write partials."""


@runtime_checkable
class Synthesizer(Protocol):
    """A loaded voice: text in, audio out. It may be called from several threads."""

    @property
    def name(self) -> str: ...

    @property
    def language(self) -> str | None:
        """The language that it speaks, such as "en-US"; None where it is unknown."""
        ...

    @property
    def sample_rate(self) -> int:
        """Of all audio of this voice, in Hz."""
        ...

    def sentences(self, text: str) -> list[str]:
        """The sentences in which `stream` speaks a text, in order.

        The audio of a text is that of its sentences, one after the other. Raises TextError.
        """
        ...

    def stream(
        self, text: str, *, speed: float = 1.0, seed: int | None = None
    ) -> "Generator[Samples]":
        """Speak a text: blocks (n,) of mono float32 within ±1, as they are synthesized.

        Each sentence ends with a short pause. `speed` is from 0.25 to 4, above 1 faster. With a
        `seed` the audio repeats exactly, where the voice has random parts. Nothing is synthesized
        before the first block is requested, or after the generator is closed.

        Raises TextError for a text that cannot be spoken and OptionError for an invalid speed;
        both at the call, before any audio.
        """
        ...

    def speak(self, text: str, *, speed: float = 1.0, seed: int | None = None) -> "Samples":
        """The audio of a whole text (n,); see `stream`."""
        ...
