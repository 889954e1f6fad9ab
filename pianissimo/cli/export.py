"""`pianissimo export`: a model for other runtimes, or in a smaller form."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pianissimo.cli.options import ModelOption, QuietOption
from pianissimo.cli.output import emit
from pianissimo.errors import OptionError


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files are written.")],
    model: ModelOption = None,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", envvar="PIANISSIMO_ONNX", help="ONNX files instead of a model."),
    ] = False,
    dtype: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(envvar="PIANISSIMO_EXPORT_DTYPE", help="How weights are stored."),
    ] = "float32",
    latency: Annotated[
        list[int] | None,
        typer.Option(
            envvar="PIANISSIMO_LATENCY",
            metavar="MS",
            help="With --onnx: a latency mode, each a file; may be repeated [default: all].",
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Write one of our own models as a folder that every --model takes, or as ONNX files.

    float16 halves its size, int8 leaves about a quarter; both are computed in the precision that
    --dtype says when the model is loaded. ONNX files are of streaming models, in float32 or int8.
    """
    from pianissimo.recognizers.fastconformer import NativeRecognizer
    from pianissimo.zoo.load import load

    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OptionError(f"{folder} is there already; name a folder that is new or empty")
    if latency and not onnx:
        raise OptionError("--latency chooses ONNX files: add --onnx")
    if onnx and dtype == "float16":
        raise OptionError("ONNX files are written as float32 or int8, not as float16")
    recognizer = load(model, device="cpu", dtype="float32")
    if not isinstance(recognizer, NativeRecognizer):
        raise OptionError(f"{recognizer.name} is of another family; only our own are exported")
    network, tokenizer = recognizer.model, recognizer.tokenizer
    import torch
    from safetensors import SafetensorError

    try:
        if onnx:
            from pianissimo.export.onnx import export as write

            precision: Literal["float32", "int8"] = "int8" if dtype == "int8" else "float32"
            write(network, tokenizer, folder, latencies_ms=latency or (), precision=precision)
        else:
            from pianissimo.models.asr import save_model

            save_model(folder, network, tokenizer, getattr(torch, dtype))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"{folder} cannot be written: {reason}") from error
    if not quiet:
        for path in sorted(folder.iterdir()):
            emit(f"{path.stat().st_size / 1e6:9.2f} MB  {path}\n")
