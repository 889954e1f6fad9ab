"""Where the commands write: results to stdout, complaints and progress to stderr; exit codes."""

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
)

OK = 0
UNEXPECTED = 1
USAGE = 2
SOME_FAILED = 3
NO_MODEL = 4
INTERRUPTED = 130
READER_GONE = 141
"""What a shell reports for a program that SIGPIPE ended."""


def emit(text: str) -> None:
    """Write a result to stdout at once; if its reader went away (`| head`), end quietly."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not fail once more when the interpreter exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(READER_GONE) from None
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        complain(f"standard output cannot be written: {error.strerror}")
        raise typer.Exit(SOME_FAILED) from None


def say(text: str) -> None:
    """Write a line for people to stderr; that nobody reads or keeps it is no error."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def complain(message: str) -> None:
    """Write an error to stderr, with the program's name before it."""
    say(f"pianissimo: {message}")


def about_file(name: str, error: BaseException) -> str:
    """One line that says which file failed and why."""
    message = " ".join(str(error).split("\n")) or type(error).__name__
    return message if message.startswith((name, repr(name))) else f"{name}: {message}"


def exit_code(error: PianissimoError) -> int:
    """The exit code of a command that this error ended."""
    match error:
        case ModelError() | MissingExtraError():
            return NO_MODEL
        case OptionError():
            return USAGE
        case AudioError() | ManifestError():
            return SOME_FAILED
        case _:
            return UNEXPECTED
