"""Output of the commands: results to stdout, errors and progress to stderr; exit codes."""

import os
import sys

import typer

from pianissimo.errors import (
    AudioError,
    ManifestError,
    MissingExtraError,
    ModelError,
    OptionError,
    PianissimoError,
    TextError,
)

OK = 0
UNEXPECTED = 1
USAGE = 2
SOME_FAILED = 3
NO_MODEL = 4
INTERRUPTED = 130
READER_GONE = 141
"""The code that a shell reports for a program ended by SIGPIPE."""


def emit(text: str) -> None:
    """Write a result to stdout at once; if the reader closed it (`| head`), exit quietly."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The rest of the buffer must not fail again when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(READER_GONE) from None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complain(f"standard output cannot be written: {error.strerror}")
        raise typer.Exit(SOME_FAILED) from None


def say(text: str) -> None:
    """Write a line to stderr; a closed or full stderr is not an error."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def complain(message: str) -> None:
    """Write an error to stderr, prefixed with the name of the program."""
    say(f"pianissimo: {message}")


def about_file(name: str, error: BaseException) -> str:
    """One line: the file that failed, and why."""
    message = " ".join(str(error).split("\n")) or type(error).__name__
    return message if message.startswith((name, repr(name))) else f"{name}: {message}"


def exit_code(error: PianissimoError) -> int:
    """The exit code of a command that ended with this error."""
    match error:
        case ModelError() | MissingExtraError():
            return NO_MODEL
        case OptionError() | TextError():
            return USAGE
        case AudioError() | ManifestError():
            return SOME_FAILED
        case _:
            return UNEXPECTED
