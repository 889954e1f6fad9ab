"""`pianissimo train`: run a recipe, a Python file that trains one model."""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Annotated, Protocol

import typer

from pianissimo.cli.options import DeviceOption
from pianissimo.errors import OptionError


class RecipeMain(Protocol):
    """The contract of a recipe: a function `main` that trains from `data` into `run`.

    It goes on from the checkpoint in `run` if there is one, and stops with a checkpoint after
    `minutes`, which is infinite by default. `dev` is a manifest to report word errors on,
    `device` "cpu", "cuda" or "cuda:N".
    """

    def __call__(
        self,
        data: Path,
        run: Path,
        *,
        dev: Path | None,
        device: str,
        minutes: float,
        tensorboard: bool,
    ) -> None: ...


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.py", help="Such as recipes/embedded_en.py.")
    ],
    data: Annotated[
        Path, typer.Option(envvar="PIANISSIMO_DATA", help="Folder with the training manifest.")
    ],
    run: Annotated[
        Path,
        typer.Option(envvar="PIANISSIMO_RUN", help="Folder of the run; continued if it exists."),
    ],
    minutes: Annotated[
        float | None,
        typer.Option(
            envvar="PIANISSIMO_MINUTES",
            help="Stop after that time, with a checkpoint [default: never].",
        ),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(envvar="PIANISSIMO_DEV", help="Manifest whose word errors to report."),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option(envvar="PIANISSIMO_TENSORBOARD", help="Also write TensorBoard files."),
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train a model by a recipe. The same command again goes on where it stopped.

    A recipe is Python code and may do anything: run only those you trust.
    """
    if minutes is not None and not minutes > 0:
        raise OptionError(f"--minutes must be above 0, but is {minutes:g}")
    if not data.is_dir():
        raise OptionError(f"--data {data} is not a folder; it holds the training manifest")
    if run.exists() and not run.is_dir():
        raise OptionError(f"--run {run} is not a folder")
    from pianissimo.zoo.load import choose_device

    if dev is not None and not dev.is_file():
        raise OptionError(f"--dev {dev} is not a file; it is a manifest to report word errors on")
    chosen = str(choose_device(device))
    main = load_recipe(recipe)
    main(
        data,
        run,
        dev=dev,
        device=chosen,
        minutes=math.inf if minutes is None else minutes,
        tensorboard=tensorboard,
    )


def load_recipe(path: Path) -> RecipeMain:
    """The `main` of a recipe file; OptionError if there is no such file or function.

    A recipe may import files beside it, as a script may.
    """
    if not path.is_file() or path.suffix != ".py":
        raise OptionError(f"{path} is not a recipe: expected a Python file with a function main")
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    name = f"pianissimo_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickled workers look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise OptionError(f"{path} is not valid Python: {error}") from error
    main: RecipeMain | None = getattr(module, "main", None)
    if not callable(main):
        raise OptionError(
            f"{path} has no main(data, run, *, dev, device, minutes, tensorboard): not a recipe"
        )
    return main
