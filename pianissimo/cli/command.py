"""Commands whose options are dataclasses, and the environment variables that set them.

    @dataclass(frozen=True)
    class RunOptions:
        device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto"

    @command
    def train(recipe: Annotated[Path, typer.Argument()], run: RunOptions) -> None: ...

A field is declared as typer declares a parameter. Every option can be set by an environment
variable: `--batch-seconds` by `PIANISSIMO_BATCH_SECONDS`.
"""

import difflib
import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args

import typer

from pianissimo.errors import OptionError

PREFIX = "PIANISSIMO"
ENVIRONMENT = {"auto_envvar_prefix": PREFIX}
"""Context settings of a command whose options are set by environment variables."""
EPILOG = "Environment variables: PIANISSIMO_DEVICE sets --device, and so on for each option."
OTHER_VARIABLES = ("PIANISSIMO_MODELS", "PIANISSIMO_DEBUG")
"""Variables that are not options: the folder of pulled models, and tracebacks on errors."""
MOVED = {
    "blend": "FinetuneOptions(blend=...)",
    "ewc": "FinetuneOptions(ewc=...)",
    "find-lr": "find_learning_rate(FinetuneOptions(...))",
    "l2sp": "FinetuneOptions(l2sp=...)",
    "word-bonus": "Decoding(word_bonus=...)",
}
"""Former options that are set from Python now."""
_KUBERNETES = re.compile(r"PIANISSIMO_(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP))(_\w+)?")
"""What Kubernetes sets in every container beside a service named `pianissimo`."""

Command = Callable[..., None]


def command(function: Command) -> Command:
    """Let typer see the fields of dataclass parameters as options; call with the dataclasses built.

    Before the function runs, unknown `PIANISSIMO_*` variables are refused.
    """
    groups: dict[str, type[Any]] = {}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", keyword, annotation=typer.Context)]
    for parameter in inspect.signature(function).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and is_dataclass(group):
            groups[parameter.name] = group
            parameters += _parameters(group)
        elif group is not typer.Context:
            parameters.append(parameter.replace(kind=keyword))
    wants_context = "context" in inspect.signature(function).parameters

    @functools.wraps(function)
    def run(context: typer.Context, **given: Any) -> None:
        if context.invoked_subcommand is None:
            check_environment(context)
        built = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        if wants_context:
            built["context"] = context
        function(**given, **built)

    for parameter in parameters:
        _shorten_help(parameter)
    setattr(run, "__signature__", inspect.Signature(parameters))  # noqa: B010
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameters(group: type[Any]) -> Iterator[inspect.Parameter]:
    for field in fields(group):
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )


def _shorten_help(parameter: inspect.Parameter) -> None:
    """Hide what every help would repeat: variables named by the rule, and flags that are off."""
    for declared in get_args(parameter.annotation)[1:]:
        declared.show_envvar = isinstance(declared.envvar, str)
        declared.show_default = parameter.default is not False


def check_environment(context: typer.Context) -> None:
    """Raise OptionError for a `PIANISSIMO_*` variable that sets no option of any command."""
    known = {*OTHER_VARIABLES, *_variables(context.find_root().command)}
    for name in sorted(os.environ):
        if not name.startswith(f"{PREFIX}_") or name in known or _KUBERNETES.fullmatch(name):
            continue
        former = name.removeprefix(f"{PREFIX}_").lower().replace("_", "-")
        if former in MOVED:
            raise OptionError(f"{name} is no longer read: {moved(former)}; unset it")
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise OptionError(f"unknown environment variable {name}; did you mean {near}? Unset it")


def moved(option: str) -> str:
    """Where a former option went."""
    return f"--{option} moved to Python, {MOVED[option]}; see docs/training.md and docs/decoding.md"


def _variables(group: Any) -> Iterator[str]:
    """The variables of a command and of its subcommands; click's classes have no public name."""
    prefix = group.context_settings.get("auto_envvar_prefix")
    for option in group.params:
        named = option.envvar or ()
        yield from (named,) if isinstance(named, str) else named
        if prefix and getattr(option, "allow_from_autoenv", False):
            yield f"{prefix}_{option.name.upper()}"
    for subcommand in getattr(group, "commands", {}).values():
        yield from _variables(subcommand)
