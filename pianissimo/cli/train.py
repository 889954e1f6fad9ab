"""`pianissimo train`: run a recipe, a Python file that trains one model."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import typer

from pianissimo.cli.command import command
from pianissimo.cli.options import (
    DeviceOption,
    MinutesOption,
    TensorboardOption,
    minutes_limit,
)
from pianissimo.errors import OptionError


class RecipeMain(Protocol):
    """The contract of a recipe: a function `main` that trains from `data` into `run`.

    It resumes from the checkpoint in `run` if there is one, and saves a checkpoint and stops after
    `minutes`, which is infinite by default. `dev` is a validation manifest, `device` "cpu", "cuda"
    or "cuda:N".
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


@dataclass(frozen=True)
class TrainOptions:
    """Where a recipe reads and writes, and for how long."""

    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with the training manifest.")]
    run: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the run; a run that exists is resumed.")
    ]
    minutes: MinutesOption = None
    dev: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Validation manifest, for word error rates.")
    ] = None
    tensorboard: TensorboardOption = False
    device: DeviceOption = "auto"


@command
def train(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE.py", help="Recipe file, such as recipes/embedded_en.py."),
    ],
    options: TrainOptions,
) -> None:
    """Train a model with a recipe. Run the same command again to resume.

    A recipe is Python code that can do anything: run only recipes you trust.
    """
    minutes = minutes_limit(options.minutes)
    if not options.data.is_dir():
        raise OptionError(f"--data {options.data} is not a folder with a training manifest")
    if options.run.exists() and not options.run.is_dir():
        raise OptionError(f"--run {options.run} is not a folder")
    if options.dev is not None and not options.dev.is_file():
        raise OptionError(f"--dev {options.dev} is not a validation manifest: no such file")
    from pianissimo.zoo.load import choose_device

    device = str(choose_device(options.device))
    load_recipe(recipe)(
        options.data,
        options.run,
        dev=options.dev,
        device=device,
        minutes=minutes,
        tensorboard=options.tensorboard,
    )


def load_recipe(path: Path) -> RecipeMain:
    """The `main` of a recipe file; OptionError if there is no such file or function.

    A recipe can import files in its folder, as a script can.
    """
    if not path.is_file() or path.suffix != ".py":
        raise OptionError(f"{path} is not a recipe: expected a Python file with a function `main`")
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)
    name = f"pianissimo_recipe_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickled workers import their module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise OptionError(f"{path} is not valid Python: {error}") from error
    main: RecipeMain | None = getattr(module, "main", None)
    if not callable(main):
        raise OptionError(
            f"{path} is not a recipe: expected a function "
            "main(data, run, *, dev, device, minutes, tensorboard)"
        )
    return main
