"""`pianissimo models` and `pianissimo pull`: what there is, what is here, and fetching it."""

import json
import os
import sys
from typing import Annotated, Any

import typer

from pianissimo.catalog import CATALOG, EMBEDDED, CatalogEntry, find
from pianissimo.cli.options import JsonOption, QuietOption
from pianissimo.cli.output import emit
from pianissimo.errors import ModelNotFoundError

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
        live = "yes" if entry.streams else "no"
        rows.append((entry.short_name, here, size, live, entry.summary))
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
    width = max(map(len, facts)) + 1
    for key, value in facts.items():
        emit(f"{key.replace('_', ' ') + ':':{width}} {value}\n")


def pull(name: NameArgument, quiet: QuietOption = False) -> None:
    """Fetch a model, resuming if it was interrupted, and print where it is.

    HF_ENDPOINT names a mirror, HF_TOKEN your token, PIANISSIMO_MODELS the folder to keep it in.
    """
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from pianissimo.loading import pull as fetch

    emit(f"{fetch(name)}\n")


def _facts(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "languages": list(entry.languages),
        "licence": entry.licence,
        "parameters_millions": entry.parameters_millions,
        "megabytes": entry.megabytes,
        "streams": entry.streams,
        "repository": entry.repository,
        "path": _place(entry),
    }


def _place(entry: CatalogEntry) -> str | None:
    """Where the model is on this machine; None if it is not."""
    from pianissimo.loading import locate

    try:
        path = locate(None if entry.name == EMBEDDED else entry.name)
    except ModelNotFoundError:
        return None
    return str(path) if path.exists() else None
