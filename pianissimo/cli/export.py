"""`pianissimo export`: a model as a smaller folder, or as ONNX files."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pianissimo.cli.command import command
from pianissimo.cli.options import LatenciesOption, NativeModelOption, QuietOption
from pianissimo.cli.output import emit
from pianissimo.errors import OptionError
from pianissimo.zoo.catalog import EMBEDDED

if TYPE_CHECKING:
    from pianissimo.recognizers.fastconformer import NativeRecognizer


@dataclass(frozen=True)
class ExportOptions:
    """What is written, and in which form."""

    model: NativeModelOption = EMBEDDED
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write ONNX files instead of a model folder.")
    ] = False
    dtype: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(
            envvar="PIANISSIMO_EXPORT_DTYPE", allow_from_autoenv=False, help="Storage dtype."
        ),
    ] = "float32"
    latency: LatenciesOption = None
    quiet: QuietOption = False

    def __post_init__(self) -> None:
        if self.latency and not self.onnx:
            raise OptionError("--latency selects ONNX files: add --onnx")
        if self.onnx and self.dtype == "float16":
            raise OptionError("ONNX files are float32 or int8, not float16")


@command
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder: new or empty.")],
    options: ExportOptions,
) -> None:
    """Export a model to a folder for --model, or to ONNX files.

    float16 halves the size on disk, int8 reduces it to about a quarter; the compute dtype is chosen
    by --dtype when the model is loaded. ONNX export is for streaming models, one file per latency
    mode. Models of other families cannot be exported.
    """
    from pianissimo.recognizers.fastconformer import NativeRecognizer
    from pianissimo.zoo.load import load

    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OptionError(f"{folder} exists and is not empty; choose a new or empty folder")
    recognizer = load(options.model, device="cpu", dtype="float32")
    if not isinstance(recognizer, NativeRecognizer):
        raise OptionError(f"{recognizer.name} is of another model family and cannot be exported")
    _write(recognizer, folder, options)
    if not options.quiet:
        for path in sorted(folder.iterdir()):
            emit(f"{path.stat().st_size / 1e6:9.2f} MB  {path}\n")


def _write(recognizer: "NativeRecognizer", folder: Path, options: ExportOptions) -> None:
    import torch
    from safetensors import SafetensorError

    network, tokenizer = recognizer.model, recognizer.tokenizer
    try:
        if options.onnx:
            from pianissimo.export.onnx import export as write

            precision: Literal["float32", "int8"] = "int8" if options.dtype == "int8" else "float32"
            latencies = options.latency or ()
            write(network, tokenizer, folder, latencies_ms=latencies, precision=precision)
        else:
            from pianissimo.models.checkpoints.model_folder import save_model

            save_model(folder, network, tokenizer, getattr(torch, options.dtype))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"{folder} cannot be written: {reason}") from error
