"""Options that several commands share; each can also be set by an environment variable."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pianissimo.errors import OptionError

if TYPE_CHECKING:
    from pianissimo.decoding.hotwords import Phrase
    from pianissimo.decoding.search import Decoding

Head = Literal["transducer", "ctc"]
Gain = Literal["auto", "on", "off"]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        envvar="PIANISSIMO_MODEL",
        metavar="MODEL",
        help="A name from `models list`, a model folder or a .nemo file [default: embedded-en].",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(envvar="PIANISSIMO_DEVICE", metavar="DEVICE", help="auto, cpu, cuda or cuda:N."),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        envvar="PIANISSIMO_DTYPE",
        metavar="DTYPE",
        help="auto, float32, bfloat16, float16 or int8.",
    ),
]
HeadOption = Annotated[
    Head | None,
    typer.Option(envvar="PIANISSIMO_HEAD", help="Decoder of a model that has both."),
]
LanguageOption = Annotated[
    str | None,
    typer.Option(
        envvar="PIANISSIMO_LANGUAGE",
        metavar="CODE",
        help="What is spoken, for models of several languages.",
    ),
]
TaskOption = Annotated[
    Literal["transcribe", "translate"] | None,
    typer.Option(envvar="PIANISSIMO_TASK", help="translate: English whatever is spoken (Whisper)."),
]
GainOption = Annotated[
    Gain | None,
    typer.Option(
        envvar="PIANISSIMO_GAIN",
        help="Bring quiet speech to level first; auto: only where it is needed "
        "[default: what suits the model].",
    ),
]
PartialsOption = Annotated[
    str | None,
    typer.Option(
        "--partials",
        envvar="PIANISSIMO_PARTIALS",
        metavar="MODEL",
        help="Live, with a model that hears what was said between two pauses: another one that "
        "shows words before the pause.",
    ),
]
BoostOption = Annotated[
    list[str] | None,
    typer.Option(
        "--boost",
        envvar="PIANISSIMO_BOOST",
        metavar="PHRASE",
        help="A word or phrase to rather hear; may be repeated.",
    ),
]
BoostFileOption = Annotated[
    Path | None,
    typer.Option(
        "--boost-file",
        envvar="PIANISSIMO_BOOST_FILE",
        metavar="FILE",
        help="Phrases to rather hear, one a line; a tab and a number weigh one (0 to 5).",
    ),
]
BeamOption = Annotated[
    int | None,
    typer.Option(
        "--beam",
        envvar="PIANISSIMO_BEAM",
        metavar="N",
        help="Search with N hypotheses side by side [default: 1; with --lm 8; ESPnet2: 20].",
    ),
]
LmOption = Annotated[
    Path | None,
    typer.Option(
        "--lm",
        envvar="PIANISSIMO_LM",
        metavar="FILE",
        help="A language model of words or of the model's tokens (ESPnet2: of tokens): ARPA, "
        "plain or .gz.",
    ),
]
LmWeightOption = Annotated[
    float | None,
    typer.Option(
        "--lm-weight",
        envvar="PIANISSIMO_LM_WEIGHT",
        metavar="X",
        help="How much the language model counts [default: 0.5 of words, 0.3 of tokens; ESPnet2: "
        "0.9].",
    ),
]
WordBonusOption = Annotated[
    float | None,
    typer.Option(
        "--word-bonus",
        envvar="PIANISSIMO_WORD_BONUS",
        metavar="X",
        help="Added for each word of a language model of words, in nats [default: 1.5; ESPnet2 "
        "has none].",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", envvar="PIANISSIMO_JSON", help="Results as JSON, for programs.")
]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", envvar="PIANISSIMO_QUIET", help="No progress, only errors."),
]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", envvar="PIANISSIMO_VERBOSE", help="Say what is being done."),
]


def decoding_of(
    beam: int | None, lm: Path | None, lm_weight: float | None, word_bonus: float | None
) -> "Decoding | None":
    """The search that was asked for; None for the recognizer's own."""
    if beam is None and lm is None and lm_weight is None and word_bonus is None:
        return None
    from pianissimo.decoding.search import Decoding

    return Decoding(beam, lm, lm_weight, word_bonus)


def phrases_of(boost: list[str] | None, file: Path | None) -> "list[Phrase]":
    """The phrases that were asked for; OptionError for a file that cannot be read."""
    if not boost and file is None:
        return []
    from pianissimo.decoding.hotwords import Phrase

    phrases = [Phrase(text) for text in boost or []]
    try:
        # Windows' editors put a mark before the first letter.
        lines = [] if file is None else file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"--boost-file {file} cannot be read: {reason}") from error
    for number, line in enumerate(lines, start=1):
        text, _, weight = line.partition("\t")
        try:
            if text.strip():
                phrases.append(Phrase(text.strip(), float(weight) if weight.strip() else 1.0))
        except ValueError as error:
            raise OptionError(
                f"{file}, line {number}: {weight.strip()!r} is no number; a phrase may be followed "
                "by a tab and its weight"
            ) from error
    return phrases
