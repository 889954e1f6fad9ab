"""The command line: one file per command, and here what they share at the edge.

Results go to stdout, everything else to stderr. Exit codes: 0 all done, 1 a fault of ours, 2 the
command makes no sense, 3 some files failed, 4 the model is missing or unusable, 130 interrupted,
141 the reader of stdout went away. Only typer is imported before a command runs.
"""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from pianissimo import __version__
from pianissimo.cli import (
    doctor,
    evaluate,
    export,
    finetune,
    listen,
    models,
    quietbench,
    serve,
    train,
    transcribe,
)
from pianissimo.cli.output import INTERRUPTED, OK, UNEXPECTED, USAGE, complain, emit, exit_code
from pianissimo.errors import PianissimoError

app = typer.Typer(
    name="pianissimo",
    help="Speech recognition that is live and hears quiet speech.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("transcribe")(transcribe.transcribe)
app.command("listen")(listen.listen)
app.command("pull")(models.pull)
app.add_typer(models.app, name="models")
app.command("evaluate")(evaluate.evaluate)
app.add_typer(quietbench.app, name="quietbench")
app.command("train")(train.train)
app.command("finetune")(finetune.finetune)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)


def _version(asked: bool) -> None:
    if asked:
        emit(f"pianissimo {__version__}\n")
        raise typer.Exit(OK)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        emit(context.get_help() + "\n")
        raise typer.Exit(USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; expected errors become one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us; print would take the other one
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # file names may hold bytes that are not text
            stream.reconfigure(errors="backslashreplace")
    try:
        return int(app(accept_whisper_spellings(given), "pianissimo", standalone_mode=False) or OK)
    except PianissimoError as error:
        complain(str(error))
        return exit_code(error)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else UNEXPECTED
    except Exception as error:
        # typer gives its usage errors no public name; they know their own message and exit code.
        if hasattr(error, "format_message"):
            place = getattr(getattr(error, "ctx", None), "command_path", "pianissimo")
            complain(f"{error.format_message().rstrip('.')}; see {place} --help")
            return USAGE
        if os.environ.get("PIANISSIMO_DEBUG") or _verbose(given):
            traceback.print_exc()
            advice = "please report it"
        else:
            advice = "PIANISSIMO_DEBUG=1 shows where; please report it"
        complain(f"unexpected {type(error).__name__}: {error} ({advice})")
        return UNEXPECTED


def accept_whisper_spellings(arguments: Sequence[str]) -> list[str]:
    """`--output_format` becomes `--output-format`, and `--word_timestamps True` a flag."""
    accepted: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*accepted, argument, *rest]
        name, equals, value = argument.partition("=")
        if re.fullmatch(r"--[a-z]+(_[a-z]+)+", name):
            name = name.replace("_", "-")
            if name == "--word-timestamps":
                value = value if equals else next(rest, "")
                name = "--word-timestamps" if _truth(value) else "--no-word-timestamps"
                equals = value = ""
        accepted.append(name + equals + value)
    return accepted


def _truth(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise typer.BadParameter(f"--word_timestamps takes True or False, not {value!r}")
    return value.lower() == "true"


def _verbose(arguments: Sequence[str]) -> bool:
    return bool({"-v", "--verbose"} & set(arguments))
