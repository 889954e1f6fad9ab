"""`pianissimo models` and `pianissimo pull`: what there is, what is here, and fetching it."""

import json
import os
import sys
from typing import Annotated, Any, Literal

import typer

from pianissimo.cli.options import JsonOption, QuietOption
from pianissimo.cli.output import emit
from pianissimo.errors import ModelNotFoundError
from pianissimo.zoo.catalog import CATALOG, EMBEDDED, CatalogEntry, find

app = typer.Typer(rich_markup_mode=None)

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Full or short name, as in `models list`.")
]


@app.callback(invoke_without_command=True)
def _models(context: typer.Context) -> None:
    """The models that have a name; without a further word, their list."""
    if context.invoked_subcommand is None:
        list_models()


@app.command("list")
def list_models(as_json: JsonOption = False) -> None:
    """List the models by name, and whether they are on this machine."""
    if as_json:
        emit(json.dumps([_facts(entry) for entry in CATALOG], indent=2) + "\n")
        return
    rows = [("NAME", "HERE", "DOWNLOAD", "LIVE", "WHAT IT IS")]
    for entry in CATALOG:
        size = "embedded" if entry.repository is None else f"{entry.megabytes:.0f} MB"
        here = "yes" if _place(entry) else "no"
        live = "yes" if entry.streams else "pauses"
        extra = f"; needs the extra {entry.extra}" if entry.extra else ""
        rows.append((entry.short_name, here, size, live, entry.summary + extra))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        emit("  ".join([*cells, row[4]]) + "\n")


@app.command("show")
def show(name: NameArgument, as_json: JsonOption = False) -> None:
    """Show what is known about one model, and where it is."""
    entry = find(name)
    facts = _facts(entry)
    if as_json:
        emit(json.dumps(facts, indent=2) + "\n")
        return
    facts["languages"] = ", ".join(entry.languages)
    facts["streams"] = "yes" if entry.streams else "no"
    facts["path"] = facts["path"] or f"not on this machine: pianissimo pull {entry.short_name}"
    facts["repository"] = entry.repository or "none: it is part of the package"
    facts["extra"] = entry.extra or "none"
    for field in facts.pop("unverified"):
        facts[field] = f"{facts[field]} (unverified)"
    width = max(map(len, facts)) + 1
    for key, value in facts.items():
        emit(f"{key.replace('_', ' ') + ':':{width}} {value}\n")


@app.command("recommend")
def recommend_model(
    language: Annotated[
        str, typer.Option("--lang", "--language", metavar="CODE", help="What is spoken.")
    ] = "en",
    live: Annotated[bool, typer.Option("--live", help="Words are wanted as they come.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Speech is soft or far away.")] = False,
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(metavar="DEVICE", help="cpu or cuda.")
    ] = "cpu",
    max_rtf: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            min=0.0,
            help="Seconds of work per second of speech, at most [default: 1 with --live].",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the model that suits and why, and what to run; --json adds why the others do not."""
    from pianissimo.zoo.recommend import Wish, recommend

    choice = recommend(Wish(language, live, quiet, device, max_rtf))
    if as_json:
        facts = {"why": choice.why, "how": choice.how, "passed_over": dict(choice.passed_over)}
        emit(json.dumps({**_facts(choice.entry), **facts}, ensure_ascii=False, indent=2) + "\n")
        return
    emit(f"{choice.entry.short_name} {choice.why}\n{choice.how}\n")


@app.command("verify")
def verify(name: NameArgument) -> None:
    """Check the files of a pulled model against the hashes in its lock file."""
    from pianissimo.zoo.download import LOCK_FILE
    from pianissimo.zoo.download import verify as check

    lock = check(find(name).name)
    if lock is None:
        raise ModelNotFoundError(
            f"{name} has no {LOCK_FILE}: it was not pulled by `pianissimo pull`"
        )
    emit(f"{len(lock.sha256)} files are as they were pulled, revision {lock.revision}\n")


def pull(
    name: NameArgument,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="A branch, tag or commit; by default the one that was pulled before.",
        ),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option(envvar="PIANISSIMO_OFFLINE", help="Fetch nothing, check what is here."),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch a model, but for files that are here already, and print where it is.

    Its lock file keeps the hash of each file; a later pull refuses files that have another one.
    HF_ENDPOINT names a mirror, HF_TOKEN your token, PIANISSIMO_MODELS the folder to keep it in.
    """
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from pianissimo.zoo.download import pull as fetch

    emit(f"{fetch(name, revision=revision, offline=offline)}\n")


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
        "path": _place(entry),
    }


def _place(entry: CatalogEntry) -> str | None:
    """Where the model is on this machine; None if it is not."""
    from pianissimo.zoo.folder import locate

    try:
        path = locate(None if entry.name == EMBEDDED else entry.name)
    except ModelNotFoundError:
        return None
    return str(path) if path.exists() else None
