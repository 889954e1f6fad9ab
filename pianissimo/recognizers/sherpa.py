"""Paraformer and SenseVoice through sherpa-onnx, from folders as its authors publish them.

A folder holds `tokens.txt` and `model.int8.onnx` or `model.onnx`, or an encoder and a decoder for
the streaming Paraformer. The library ends the whole process when a file is not what it expects, so
that is checked before it sees one. Features are Kaldi's, computed there, without dither.

The streaming Paraformer goes in steps of 0.6 s and sees 0.18 s ahead (sherpa-onnx,
`online-recognizer-paraformer-impl.h`). It gives no times inside an utterance.
"""

import logging
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.decoding.hotwords import Boost
from pianissimo.errors import CheckpointError, MissingExtraError, OptionError, StreamError
from pianissimo.hallucination.evidence import Evidence, Intake, Reason
from pianissimo.hallucination.verdict import judge
from pianissimo.models.checkpoints.config_json import listed, read_capped
from pianissimo.models.checkpoints.onnx_metadata import read_onnx_metadata
from pianissimo.protocols import StreamRecognizer
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.recognizers.family import Family, LoadOptions, Untyped
from pianissimo.recognizers.long_form import Decoded, PieceDecoder
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.streaming.input import StreamInput
from pianissimo.text.words import is_spaceless, joined
from pianissimo.transcript import Segment, StreamEvent, Transcript, Word

Kind = Literal["paraformer", "sense_voice", "streaming_paraformer"]

TOKENS_FILE = "tokens.txt"
LARGEST_TOKENS_BYTES = 16 << 20
BINS = 80
LEAST_SAMPLES = 1360
"""85 ms, the seven frames of a first window: the library reads beyond the end of shorter audio."""
LONGEST_SYMBOL_SECONDS = 0.6
"""A symbol lasts until the next one begins, but no longer than that."""
LANGUAGES = ("zh", "en", "ja", "ko", "yue")
STEP_SAMPLES = 9600
LATENCY_MS = 600
TAIL_SECONDS = 1.3
"""Silence after which the streaming model has said all it will."""
_FEATURES = ("vocab_size", "lfr_window_size", "lfr_window_shift")
_EXPECTED: dict[Kind, tuple[str, ...]] = {
    "paraformer": _FEATURES,
    "streaming_paraformer": (
        *_FEATURES,
        "encoder_output_size",
        "decoder_num_blocks",
        "decoder_kernel_size",
    ),
    "sense_voice": (
        *_FEATURES,
        "normalize_samples",
        "with_itn",
        "without_itn",
        *(f"lang_{language}" for language in ("auto", *LANGUAGES)),
    ),
}

_log = logging.getLogger(__name__)


class SherpaRecognizer(BaseRecognizer):
    """An offline Paraformer or SenseVoice; a piece at a time, since padding may enter a text."""

    model: Untyped

    def __init__(
        self, model: Untyped, *, name: str, kind: Kind, language: str | None = None
    ) -> None:
        self.model, self.name, self.kind = model, name, kind
        self.language = language
        self.front_end = FrontEnd(FAMILY.gain)

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        decoder = PieceDecoder(
            self.front_end,
            self._decode,
            detector=self.detector,
            most=1,
            language=self.language,
        )
        return decoder.run(recordings, self.name, words)

    def _decode(self, pieces: Sequence[Samples]) -> list[Decoded]:
        return [self._decoded(samples) for samples in pieces]

    def _decoded(self, samples: Samples) -> Decoded:
        if len(samples) < LEAST_SAMPLES:
            return Decoded("")
        stream = self.model.create_stream()
        stream.accept_waveform(SAMPLE_RATE, samples)
        self.model.decode_stream(stream)
        found = stream.result
        words: tuple[Word, ...] = ()
        if len(found.timestamps) == len(found.tokens):
            seconds = len(samples) / SAMPLE_RATE
            marked = self.kind == "sense_voice"
            words = timed_words(found.tokens, found.timestamps, seconds, starts_marked=marked)
        language = found.lang.strip("<|>") or None
        return Decoded(found.text.strip(), tuple(found.tokens), words=words, language=language)


def timed_words(
    tokens: Sequence[str], starts: Sequence[float], seconds: float, *, starts_marked: bool
) -> tuple[Word, ...]:
    """Symbols and the seconds at which they begin -> words; each character of a script without
    spaces is one.

    Of several pieces of a word the first is marked ("▁wor", "ld"), or else all but the last
    ("wor@@", "ld").
    """
    words: list[Word] = []
    goes_on = False
    for i, (token, start) in enumerate(zip(tokens, starts, strict=True)):
        text = token.removeprefix("▁").removesuffix("@@")
        next_start = starts[i + 1] if i + 1 < len(starts) else seconds
        end = min(max(next_start, start), start + LONGEST_SYMBOL_SECONDS, seconds)
        start = min(start, end)
        if text and words and (goes_on or _closes(text)):
            words[-1] = Word(words[-1].text + text, words[-1].start, round(end, 6))
        elif text:
            words.append(Word(text, round(start, 6), round(end, 6)))
        if starts_marked:
            following = tokens[i + 1] if i + 1 < len(tokens) else "▁"
            spaceless = bool(text) and is_spaceless(text[-1])
            goes_on = not (following.startswith("▁") or spaceless or is_spaceless(following[0]))
        else:
            goes_on = token.endswith("@@")
    return tuple(words)


def _closes(text: str) -> bool:
    """Whether the text is punctuation that belongs to the word before."""
    return all(unicodedata.category(c) in ("Po", "Pe", "Pf") for c in text)


# -- streaming -------------------------------------------------------------------------------------


class StreamingParaformer(BaseRecognizer):
    """A Paraformer that writes while it listens; a recording goes through it as live sound does."""

    model: Untyped
    latencies_ms = (LATENCY_MS,)

    def __init__(self, model: Untyped, *, name: str) -> None:
        self.model, self.name = model, name
        self.front_end = FrontEnd(FAMILY.gain)

    def stream(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        partials: StreamRecognizer | None = None,
        boost: Boost | None = None,
        second_pass: bool | None = None,
    ) -> "ParaformerStream":
        """Open a live stream of samples at `sample_rate` Hz; `partials` must be left out, and
        `second_pass` not be True."""
        self._configured(latency_ms, boost)
        if second_pass:
            raise OptionError(f"{self.name} has no second pass; remove second_pass")
        if partials is not None:
            raise OptionError(f"{self.name} writes partials by itself: remove partials")
        input = StreamInput(sample_rate, SAMPLE_RATE, self.front_end)
        return ParaformerStream(ParaformerText(self.model, endpoint), input)

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        for blocks in recordings:
            intake, text = Intake(self.front_end, self.detector), ParaformerText(self.model)
            events = [e for block in chain(blocks, [None]) for e in text.push(intake.push(block))]
            events.append(text.close("finish"))
            finals = [event for event in events if event.type == "final" and event.text]
            whole, reasons = joined(event.text for event in finals), tuple[Reason, ...]()
            if intake.evidence is not None:
                verdict = judge(whole, intake.evidence)
                reasons = verdict.reasons
                if not verdict.keep:
                    whole, finals = "", []
            yield Transcript(
                whole,
                tuple(Segment(event.text, event.start, event.end) for event in finals),
                (),
                self.language,
                text.seconds,
                self.name,
                reasons,
            )


class ParaformerText:
    """What a streaming Paraformer makes of mono samples at 16 kHz, utterance by utterance.

    Samples go in steps on an absolute grid, so blocks of any size give the same text. Each
    utterance has a state of its own, which begins with the audio that the one before did not use.
    """

    def __init__(self, model: Untyped, rules: EndpointRules | None = ENDPOINT) -> None:
        self._model, self._rules = model, rules
        self._waiting = np.zeros(0, np.float32)
        self._received = 0
        self._begin(np.zeros(0, np.float32))

    @property
    def seconds(self) -> float:
        """Audio taken so far."""
        return self._received / SAMPLE_RATE

    def push(self, samples: Samples) -> list[StreamEvent]:
        """Take samples (n,), n >= 0, and return what became known."""
        self._received += len(samples)
        self._waiting = np.concatenate([self._waiting, samples])
        events = []
        while len(self._waiting) >= STEP_SAMPLES:
            step, self._waiting = self._waiting[:STEP_SAMPLES], self._waiting[STEP_SAMPLES:].copy()
            events += self._take(step)
        return events

    def close(self, reason: Literal["finalize", "finish"]) -> StreamEvent:
        """The final of everything pushed so far; the next utterance begins here."""
        self._listen(self._waiting)
        if self._evidence.refusal is None:
            tail = np.zeros(round(TAIL_SECONDS * SAMPLE_RATE), np.float32)
            self._feed(np.concatenate([self._waiting, tail]))
        self._waiting = self._waiting[:0]
        final = self._final(reason, self.seconds)
        self._begin(np.zeros(0, np.float32))
        return final

    def _begin(self, unused: Samples) -> None:
        self._stream = self._model.create_stream()
        self._fed = np.zeros(0, np.float32)
        self._text = ""
        self._first = self._last = 0.0
        self._evidence = Evidence(0.0, 0.0)
        self._listen(unused)
        self._feed(unused)

    def _listen(self, samples: Samples) -> None:
        """Add to what speaks for speech in this utterance."""
        self._evidence = Evidence(
            self._evidence.seconds + len(samples) / SAMPLE_RATE,
            max(self._evidence.peak, float(np.abs(samples).max(initial=0.0))),
        )

    def _feed(self, samples: Samples) -> None:
        """Feed the model; what it has not used yet is remembered."""
        if not len(samples):
            return
        self._fed = np.concatenate([self._fed, samples])
        self._stream.accept_waveform(SAMPLE_RATE, samples)
        while self._model.is_ready(self._stream):
            self._model.decode_stream(self._stream)
            self._fed = self._fed[STEP_SAMPLES:]

    def _take(self, step: Samples) -> list[StreamEvent]:
        self._listen(step)
        if self._evidence.refusal is not None:
            return []  # silence never reaches the model
        self._feed(step)
        consumed = (self._received - len(self._waiting)) / SAMPLE_RATE
        text = str(self._model.get_result(self._stream)).strip()
        events = []
        if text != self._text:
            used = consumed - len(self._fed) / SAMPLE_RATE
            if not self._text:
                self._first = max(0.0, used - STEP_SAMPLES / SAMPLE_RATE)
            self._text, self._last = text, used
            events.append(StreamEvent("partial", text, (), self._first, self._last))
        if self._rules is None or not self._text:
            return events
        match self._rules.verdict(self._first, self._last, consumed):
            case "endpoint":
                final = self._final("endpoint", consumed)
                events += [final, StreamEvent("endpoint", "", (), final.end, final.end)]
            case "length":
                events.append(self._final("length", consumed))
            case None:
                return events
        self._begin(self._fed)
        return events

    def _final(
        self, reason: Literal["endpoint", "length", "finalize", "finish"], consumed: float
    ) -> StreamEvent:
        text = str(self._model.get_result(self._stream)).strip()
        if text and not self._text:
            self._first = max(0.0, consumed - STEP_SAMPLES / SAMPLE_RATE)
        if text != self._text:
            self._last = consumed
        start, end = (self._first, min(self._last, consumed)) if text else (consumed, consumed)
        return StreamEvent("final", text, (), round(start, 6), round(end, 6), reason=reason)


class ParaformerStream:
    """One live stream; every step is recognized before `push` returns."""

    def __init__(self, text: ParaformerText, input: StreamInput) -> None:
        self._text, self._input, self._open = text, input, True

    def push(self, samples: npt.ArrayLike, sample_rate: int | None = None) -> list[StreamEvent]:
        """Take further samples, any number of them: floats in [-1, 1] or integers, mono or
        (samples, channels).

        Raises StreamError after `finish`, AudioValueError for samples that are not usable.
        """
        self._check_open("push")
        return self._text.push(self._input.push(samples, sample_rate))

    def finalize(self) -> list[StreamEvent]:
        """Lock the text of everything pushed so far without ending the stream.

        The last event is its final, empty if nothing was said. Raises StreamError after `finish`.
        """
        self._check_open("finalize")
        return [self._text.close("finalize")]

    finalise = finalize
    """The British spelling, accepted as well."""

    def finish(self) -> list[StreamEvent]:
        """End the stream; the last event is its final. Raises StreamError if it ended before."""
        self._check_open("finish")
        self._open = False
        return [*self._text.push(self._input.finish()), self._text.close("finish")]

    def _check_open(self, action: str) -> None:
        if not self._open:
            raise StreamError(f"cannot {action}: this stream has ended; open a new one")

    def __enter__(self) -> "ParaformerStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False


# -- files -----------------------------------------------------------------------------------------


def is_sherpa_folder(path: Path) -> bool:
    """Whether a folder looks like one that sherpa-onnx reads."""
    return (path / TOKENS_FILE).is_file() and any(path.glob("*.onnx"))


def read_sherpa(
    folder: Path,
    device: torch.device,
    *,
    precision: Literal["float32", "int8"] | None = None,
    language: str | None = None,
) -> SherpaRecognizer | StreamingParaformer:
    """Read a folder of Paraformer or SenseVoice.

    `precision` None takes the 8-bit file where there is one. `language` chooses that of SenseVoice,
    which otherwise detects it. Raises MissingExtraError without sherpa-onnx,
    CheckpointError for a folder that is damaged, incomplete or of another model, OptionError for a
    precision or language that it does not have.
    """
    try:
        import sherpa_onnx
    except ImportError as error:
        raise MissingExtraError(
            "this model needs the sherpa-onnx package: pip install 'pianissimo[sherpa]'"
        ) from error
    if device.type != "cpu":
        _log.warning("%s is computed on the processor, as sherpa-onnx is built for it", folder.name)
    streams = any(folder.glob("encoder*.onnx"))
    path = _model_file(folder, "encoder" if streams else "model", precision)
    kind = _check(folder, path, streams=streams)
    if kind == "sense_voice":
        if language not in (None, *LANGUAGES):
            raise OptionError(
                f"{folder.name} does not know the language {language!r}; "
                f"it has {', '.join(LANGUAGES)}"
            )
    elif language is not None:
        raise OptionError(f"{folder.name} has no choice of languages; remove language")
    options = {"tokens": str(folder / TOKENS_FILE), "num_threads": torch.get_num_threads()}
    try:
        match kind:
            case "streaming_paraformer":
                decoder = _model_file(folder, "decoder", precision)
                read_onnx_metadata(decoder)  # it is whole
                model = sherpa_onnx.OnlineRecognizer.from_paraformer(
                    encoder=str(path), decoder=str(decoder), **options
                )
                return StreamingParaformer(model, name=folder.name)
            case "paraformer":
                model = sherpa_onnx.OfflineRecognizer.from_paraformer(str(path), **options)
            case "sense_voice":
                model = sherpa_onnx.OfflineRecognizer.from_sense_voice(
                    str(path), language=language or "auto", use_itn=True, **options
                )
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:300]
        raise CheckpointError(f"{folder}: {reason}; fetch the whole model again") from error
    return SherpaRecognizer(model, name=folder.name, kind=kind, language=language)


def _model_file(folder: Path, stem: str, precision: str | None) -> Path:
    """The file of a network: in 8 bits if it is there, unless another precision was asked for."""
    names = {"int8": (f"{stem}.int8.onnx",), "float32": (f"{stem}.onnx",)}
    for name in names[precision] if precision else (*names["int8"], *names["float32"]):
        if (folder / name).is_file():
            return folder / name
    there = listed(sorted(path.name for path in folder.glob("*.onnx")))
    if precision:
        raise OptionError(f"{folder.name} has no {stem} in {precision}; there is {there}")
    raise CheckpointError(
        f"{folder} has no {stem}.int8.onnx and no {stem}.onnx, only {there}; fetch it again"
    )


def _check(folder: Path, path: Path, *, streams: bool) -> Kind:
    """What a network is; CheckpointError unless it and the tokens are as the library expects."""
    metadata = read_onnx_metadata(path)
    kind: Kind = "sense_voice" if "with_itn" in metadata else "paraformer"
    if streams:
        kind = "streaming_paraformer"
    if "neg_mean" not in metadata or "Nano" in metadata.get("comment", ""):
        raise CheckpointError(
            f"{path} is neither a Paraformer nor a SenseVoice, which are what is read here of the "
            "models of sherpa-onnx"
        )
    sizes = {name: _integer(path, metadata, name) for name in _EXPECTED[kind]}
    width = sizes["lfr_window_size"] * BINS
    for name in ("neg_mean", "inv_stddev"):
        try:
            numbers = np.array(metadata.get(name, "").split(","), np.float64)
        except ValueError:
            numbers = np.zeros(0)
        if len(numbers) != width or not np.isfinite(numbers).all():
            raise CheckpointError(
                f"{path}: {name} must be {width} numbers for windows of "
                f"{sizes['lfr_window_size']} frames; fetch it again"
            )
    _check_tokens(folder / TOKENS_FILE, sizes["vocab_size"])
    return kind


def _integer(path: Path, metadata: dict[str, str], name: str) -> int:
    try:
        value = int(metadata[name])
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its metadata has no number {name}; fetch it again"
        ) from error
    if not 0 <= value < 1 << 20:
        raise CheckpointError(f"{path}: {name} cannot be {value}; fetch it again")
    return value


def _check_tokens(path: Path, count: int) -> None:
    """CheckpointError unless every line is a symbol and its id, and there are `count` of them."""
    try:
        text = read_capped(path, LARGEST_TOKENS_BYTES).decode()
        ids = {int(line.rsplit(maxsplit=1)[-1]) for line in text.splitlines() if line.strip()}
    except ValueError as error:
        raise CheckpointError(
            f"{path} must have a symbol and its number on each line; fetch it again"
        ) from error
    if not ids >= set(range(count)):
        raise CheckpointError(
            f"{path} has {len(ids)} symbols, the model {count}: they belong to different models"
        )


def _read(
    folder: Path, device: torch.device, options: LoadOptions
) -> SherpaRecognizer | StreamingParaformer:
    precision: Literal["float32", "int8"] | None = None if options.dtype is None else "float32"
    if options.int8:
        precision = "int8"
    return read_sherpa(folder, device, precision=precision, language=options.language)


FAMILY = Family(
    name="sherpa",
    read=_read,
    gain="on",
    layout=is_sherpa_folder,
    extra="sherpa",
    dtypes=("float32",),
    int8=True,
)
