"""The command line: one file per command; here the program and its exit codes.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 internal error, 2 usage
error, 3 some files failed, 4 the model is missing or unusable, 130 interrupted, 141 the reader of
stdout closed it. Before a command runs, only typer is imported.
"""

import os
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
    mcp,
    models,
    quietbench,
    serve,
    speak,
    talk,
    train,
    transcribe,
)
from pianissimo.cli.command import ENVIRONMENT, EPILOG
from pianissimo.cli.output import INTERRUPTED, OK, UNEXPECTED, USAGE, complain, emit, exit_code
from pianissimo.cli.spellings import normalize_spellings
from pianissimo.errors import PianissimoError

app = typer.Typer(
    name="pianissimo",
    help="Streaming speech recognition that understands quiet speech, and speech synthesis.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _function in (transcribe.transcribe, listen.listen, speak.speak, talk.talk, mcp.mcp):
    app.command(context_settings=ENVIRONMENT, epilog=EPILOG)(_function)
app.add_typer(models.app, name="models")
for _function in (models.pull, evaluate.evaluate):
    app.command(context_settings=ENVIRONMENT, epilog=EPILOG)(_function)
app.add_typer(quietbench.app, name="quietbench", context_settings=ENVIRONMENT, epilog=EPILOG)
for _function in (train.train, finetune.finetune, export.export, serve.serve, doctor.doctor):
    app.command(context_settings=ENVIRONMENT, epilog=EPILOG)(_function)


def _version(requested: bool) -> None:
    if requested:
        emit(f"pianissimo {__version__}\n")
        raise typer.Exit(OK)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        emit(context.get_help() + "\n")
        raise typer.Exit(USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; expected errors become one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    try:
        return int(app(normalize_spellings(given), "pianissimo", standalone_mode=False) or OK)
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
        if os.environ.get("PIANISSIMO_DEBUG") or {"-v", "--verbose"} & set(given):
            traceback.print_exc()
            advice = "please report it"
        else:
            advice = "set PIANISSIMO_DEBUG=1 for a traceback; please report it"
        complain(f"unexpected {type(error).__name__}: {error} ({advice})")
        return UNEXPECTED


def _prepare_streams() -> None:
    """Replace closed streams, and let stdout and stderr take file names that are not text."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent; print would use the other one
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
