"""Options that several commands share; each can also be set by an environment variable."""

from typing import Annotated, Literal

import typer

Head = Literal["transducer", "ctc"]

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
