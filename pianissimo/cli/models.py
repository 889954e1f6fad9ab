"""`pianissimo models` and `pianissimo pull`: list, show, recommend and download models."""

import os
import sys
from dataclasses import dataclass
from json import dumps
from typing import Annotated, Any, Literal

import typer

from pianissimo.cli.command import ENVIRONMENT, command
from pianissimo.cli.options import JsonOption, QuietOption
from pianissimo.cli.output import emit
from pianissimo.errors import ModelNotFoundError
from pianissimo.zoo.catalog import CATALOG, CatalogEntry, find

app = typer.Typer(rich_markup_mode=None)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Full or short name, as listed by `models list`.")
]


@app.callback(invoke_without_command=True)
@command
def _models(context: typer.Context) -> None:
    """List, show, recommend or verify known models. Without a subcommand: list them."""
    if context.invoked_subcommand is None:
        _print_list(as_json=False)


@app.command("list", context_settings=ENVIRONMENT)
@command
def list_models(json: JsonOption = False) -> None:
    """List the known models, and which of them are downloaded."""
    _print_list(as_json=json)


def _print_list(*, as_json: bool) -> None:
    if as_json:
        emit(dumps([_facts(entry) for entry in CATALOG], indent=2) + "\n")
        return
    rows = [("NAME", "LOCAL", "DOWNLOAD", "STREAMING", "DESCRIPTION")]
    for entry in CATALOG:
        size = "embedded" if entry.repository is None else f"{entry.megabytes:.0f} MB"
        local = "yes" if _path(entry) else "no"
        streaming = "yes" if entry.streams else "pauses"
        extra = f"; needs the extra {entry.extra}" if entry.extra else ""
        rows.append((entry.short_name, local, size, streaming, entry.summary + extra))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        emit("  ".join([*cells, row[4]]) + "\n")


@app.command("show", context_settings=ENVIRONMENT)
@command
def show(name: NameArgument, json: JsonOption = False) -> None:
    """Show the details and the location of a model."""
    entry = find(name)
    facts = _facts(entry)
    if json:
        emit(dumps(facts, indent=2) + "\n")
        return
    facts["languages"] = ", ".join(entry.languages)
    facts["streams"] = "yes" if entry.streams else "no"
    facts["path"] = facts["path"] or f"not downloaded: run pianissimo pull {entry.short_name}"
    facts["repository"] = entry.repository or "none: part of the package"
    facts["extra"] = entry.extra or "none"
    for field in facts.pop("unverified"):
        facts[field] = f"{facts[field]} (unverified)"
    width = max(map(len, facts)) + 1
    for key, value in facts.items():
        emit(f"{key.replace('_', ' ') + ':':{width}} {value}\n")


@dataclass(frozen=True)
class RecommendOptions:
    """What the model is needed for."""

    language: Annotated[
        str, typer.Option("--lang", "--language", metavar="CODE", help="Spoken language.")
    ] = "en"
    live: Annotated[bool, typer.Option("--live", help="For live streams.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="For quiet or distant speech.")] = False
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(metavar="DEVICE", help="Device: cpu or cuda.")
    ] = "cpu"
    max_rtf: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            help="Highest real-time factor: compute time per second of speech "
            "[default: 1 with --live].",
        ),
    ] = None
    json: JsonOption = False


@app.command("recommend")
@command
def recommend_model(options: RecommendOptions) -> None:
    """Recommend a model, with the reason and the command to run.

    --json also lists why the other models were not chosen.
    """
    from pianissimo.zoo.recommend import Wish, recommend

    wish = Wish(options.language, options.live, options.quiet, options.device, options.max_rtf)
    choice = recommend(wish)
    if options.json:
        facts = {"why": choice.why, "how": choice.how, "passed_over": dict(choice.passed_over)}
        emit(dumps({**_facts(choice.entry), **facts}, ensure_ascii=False, indent=2) + "\n")
        return
    emit(f"{choice.entry.short_name} {choice.why}\n{choice.how}\n")


@app.command("verify")
@command
def verify(name: NameArgument) -> None:
    """Check the files of a downloaded model against the hashes in its lock file."""
    from pianissimo.zoo.download import LOCK_FILE
    from pianissimo.zoo.download import verify as check

    lock = check(find(name).name)
    if lock is None:
        raise ModelNotFoundError(
            f"{name} has no {LOCK_FILE}: it was not downloaded by `pianissimo pull`"
        )
    emit(f"{len(lock.sha256)} files match their hashes, revision {lock.revision}\n")


@dataclass(frozen=True)
class PullOptions:
    """What is downloaded."""

    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            allow_from_autoenv=False,
            help="Branch, tag or commit [default: the revision of the last pull].",
        ),
    ] = None
    offline: Annotated[bool, typer.Option(help="Download nothing, only verify local files.")] = (
        False
    )
    quiet: QuietOption = False


@command
def pull(name: NameArgument, options: PullOptions) -> None:
    """Download a model and print its path. Existing files are kept.

    A lock file records the hash of each file; later pulls refuse files with other hashes.
    HF_ENDPOINT sets a mirror, HF_TOKEN your token, PIANISSIMO_MODELS the models folder.
    """
    if options.quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from pianissimo.zoo.download import pull as fetch

    emit(f"{fetch(name, revision=options.revision, offline=options.offline)}\n")


def _facts(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "languages": list(entry.languages),
        "license": entry.license,
        "parameters_millions": entry.parameters_millions,
        "megabytes": entry.megabytes,
        "streams": entry.streams,
        "unverified": list(entry.unverified),
        "repository": entry.repository,
        "extra": entry.extra,
        "path": _path(entry),
    }


def _path(entry: CatalogEntry) -> str | None:
    """Path of the model on this machine; None if it is not downloaded."""
    from pianissimo.zoo.folder import locate

    try:
        path = locate(entry.name)
    except ModelNotFoundError:
        return None
    return str(path) if path.exists() else None
