"""Options that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pianissimo.errors import OptionError

if TYPE_CHECKING:
    from pianissimo.decoding.hotwords import Phrase
    from pianissimo.decoding.search import Decoding
    from pianissimo.protocols import Recognizer

Head = Literal["transducer", "ctc"]
Gain = Literal["auto", "on", "off"]
Task = Literal["transcribe", "translate"]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Model name (see `pianissimo models list`), model folder or .nemo file "
        "[default: whisper-tiny-en].",
    ),
]
NativeModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Model name (see `pianissimo models list`), model folder or .nemo file.",
    ),
]
"""For commands that take this package's own networks; the default model is not one of them."""
DeviceOption = Annotated[
    str, typer.Option(metavar="DEVICE", help="Compute device: auto, cpu, cuda or cuda:N.")
]
DtypeOption = Annotated[
    str,
    typer.Option(
        metavar="DTYPE", help="Compute dtype: auto, float32, bfloat16, float16 or int8 (CPU)."
    ),
]
GainOption = Annotated[
    Gain | None,
    typer.Option(
        help="Amplify quiet speech before recognition; auto amplifies only where needed "
        "[default: per model]."
    ),
]
PartialsOption = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Second model that shows partial results between pauses, for models that do not "
        "stream.",
    ),
]
LatencyOption = Annotated[
    int | None,
    typer.Option(
        metavar="MS",
        help="Latency mode, one of those of the model: 80, 160, 560 or 1120 "
        "[default of live streams: 560 with Whisper, 160 with others].",
    ),
]
SecondPassOption = Annotated[
    bool | None,
    typer.Option(
        "--second-pass/--no-second-pass",
        help="Decode each final again from the whole utterance, or keep the words of the partials "
        "[default: again, where the model can].",
    ),
]
LatenciesOption = Annotated[
    list[int] | None,
    typer.Option(metavar="MS", help="Latency mode; repeatable [default: all of the model]."),
]
SubsetOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Use only manifest lines of this `subset`; repeatable."),
]
MinutesOption = Annotated[
    float | None,
    typer.Option(metavar="N", help="Save a checkpoint and stop after N minutes [default: never]."),
]
TensorboardOption = Annotated[bool, typer.Option(help="Also write TensorBoard event files.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Print details.")]


@dataclass(frozen=True)
class ModelOptions:
    """The model to load, and how it computes."""

    model: ModelOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    head: Annotated[
        Head | None, typer.Option(help="Decoder to use, for models that have both.")
    ] = None
    language: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Spoken language, for multilingual models."),
    ] = None
    task: Annotated[
        Task | None, typer.Option(help="translate: write English (Whisper models).")
    ] = None
    gain: GainOption = None

    def load(self, decoding: "Decoding | None" = None) -> "Recognizer":
        """The recognizer; raises what `pianissimo.load` raises."""
        from pianissimo.zoo.load import load

        return load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            head=self.head,
            language=self.language,
            task=self.task,
            gain=self.gain,
            decoding=decoding,
        )


@dataclass(frozen=True)
class SearchOptions:
    """How the decoder searches: hotwords, beam and language model."""

    hotword: Annotated[
        list[str] | None,
        typer.Option(
            "--hotword",
            envvar=["PIANISSIMO_HOTWORD", "PIANISSIMO_BOOST"],
            metavar="PHRASE",
            help="Hotword to favor; repeatable.",
        ),
    ] = None
    hotword_file: Annotated[
        Path | None,
        typer.Option(
            "--hotword-file",
            envvar=["PIANISSIMO_HOTWORD_FILE", "PIANISSIMO_BOOST_FILE"],
            metavar="FILE",
            help="Hotwords, one per line, each with an optional weight (0 to 5) after a tab.",
        ),
    ] = None
    beam: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Beam width [default: 1, greedy; 8 with --lm; 20 for ESPnet2]."
        ),
    ] = None
    lm: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="N-gram language model of words or tokens: ARPA, plain or .gz."
        ),
    ] = None
    lm_weight: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Language model weight [default: 0.5 for words, 0.3 for tokens; 0.9 for ESPnet2].",
        ),
    ] = None

    @property
    def decoding(self) -> "Decoding | None":
        """The requested search; None for the model's own."""
        if self.beam is None and self.lm is None and self.lm_weight is None:
            return None
        from pianissimo.decoding.search import Decoding

        return Decoding(self.beam, self.lm, self.lm_weight)

    @property
    def hotwords(self) -> "list[Phrase]":
        """The requested hotwords; OptionError for a file that cannot be read."""
        if not self.hotword and self.hotword_file is None:
            return []
        from pianissimo.decoding.hotwords import Phrase

        phrases = [Phrase(text) for text in self.hotword or []]
        return phrases if self.hotword_file is None else phrases + read_hotwords(self.hotword_file)


def read_hotwords(path: Path) -> "list[Phrase]":
    """Hotwords of a file, one per line; OptionError if it cannot be read or a weight is wrong."""
    from pianissimo.decoding.hotwords import Phrase

    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # Windows editors write a BOM
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"--hotword-file {path} cannot be read: {reason}") from error
    phrases = []
    for number, line in enumerate(lines, start=1):
        text, _, weight = line.partition("\t")
        try:
            if text.strip():
                phrases.append(Phrase(text.strip(), float(weight) if weight.strip() else 1.0))
        except ValueError as error:
            raise OptionError(
                f"{path}, line {number}: {weight.strip()!r} is not a number; expected a hotword, "
                "or a hotword, a tab and its weight"
            ) from error
    return phrases


def minutes_limit(minutes: float | None) -> float:
    """The requested minutes, infinite if none are; OptionError unless they are above 0."""
    if minutes is not None and not minutes > 0:
        raise OptionError(f"--minutes must be above 0, but is {minutes:g}")
    return float("inf") if minutes is None else minutes
