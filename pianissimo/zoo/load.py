"""From a name, a folder or a file to a recognizer."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pianissimo.errors import CheckpointError, ModelNotFoundError, OptionError
from pianissimo.zoo import catalog

if TYPE_CHECKING:
    import torch

    from pianissimo.audio.level import GainMode
    from pianissimo.decoding.search import Decoding
    from pianissimo.models.asr import AsrModel
    from pianissimo.protocols import Recognizer
    from pianissimo.recognizers.base import OfflineRecognizer
    from pianissimo.recognizers.fastconformer import NativeRecognizer
    from pianissimo.text.tokenizer import Tokenizer

MODELS_FOLDER = "PIANISSIMO_MODELS"
"""Environment variable that names the folder in which `pull` keeps models."""
DTYPES = ("float32", "bfloat16", "float16")
INT8 = "int8"
"""Not a dtype of the whole model: its linear layers on the CPU, the rest in float32."""


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    head: Literal["transducer", "ctc"] | None = None,
    language: str | None = None,
    task: Literal["transcribe", "translate"] | None = None,
    gain: "GainMode | None" = None,
    decoding: "Decoding | None" = None,
) -> "Recognizer":
    """A recognizer from a name of the catalog, a folder, a `.nemo` file or a pack of ESPnet2.

    Without `model` it is the embedded English one. `device` is "auto", "cpu", "cuda" or "cuda:N";
    `dtype` "auto" (float32 unless the model says otherwise), float32, bfloat16, float16, or int8
    for encoder and predictor of our own models on a CPU; `head` chooses the decoder of a
    hybrid model, `language` the language of a multilingual one, `task` what Whisper writes. `gain`
    says whether quiet speech is brought to level first: "on", "off", "auto" (only where it is
    needed), by default what suits the family; `decoding` asks for a beam or a language model.
    Nothing is downloaded: see `pull`. Raises ModelNotFoundError, CheckpointError, MissingExtraError
    or OptionError.
    """
    target = choose_device(device)
    precision = None if dtype in ("auto", INT8) else choose_dtype(dtype)
    path = locate(model)
    kind = layout(path) or model_type(path)
    if kind in FAMILIES:
        options = FamilyOptions(precision, dtype == INT8, head, language, task, decoding)
        if decoding is not None and FAMILIES[kind] not in (_load_ctc_family, _load_espnet):
            raise OptionError(
                f"{path.name} has a search of its own: leave beam and language model out; our own "
                "models, wav2vec 2.0 and its kin, and ESPnet2 take them"
            )
        other: Recognizer = FAMILIES[kind](path, target, options)
        return other if gain is None else other.with_gain(gain)
    if task not in (None, "transcribe"):
        raise OptionError(f"{path.name} only transcribes: leave {task!r} out")
    recognizer = _load_native(
        path,
        target,
        precision or choose_dtype("float32"),
        head,
        language,
        int8=dtype == INT8,
        decoding=decoding,
    )
    return recognizer if gain is None else recognizer.with_gain(gain)


def _load_native(
    path: Path,
    device: "torch.device",
    dtype: "torch.dtype",
    head: Literal["transducer", "ctc"] | None,
    language: str | None,
    *,
    int8: bool = False,
    decoding: "Decoding | None" = None,
) -> "NativeRecognizer":
    from pianissimo.audio.features import MelFeatures
    from pianissimo.audio.front_end import FrontEnd, default_mode
    from pianissimo.audio.vad import SpeechModel, VoiceDetector, available
    from pianissimo.models.checkpoints.format import recognize_format
    from pianissimo.recognizers.fastconformer import NativeRecognizer

    ours = recognize_format(path) == "pianissimo"
    network, tokenizer = read_model(path)
    if language is not None:
        network.set_language(language)
    if tokenizer.vocab_size != network.config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, the model "
            f"{network.config.vocab_size}: they belong to different models"
        )
    network.to(device=device, dtype=dtype)
    # Spectra need more than half precision, and so do the constants they are made with.
    network.features = MelFeatures(network.config.features).to(device)
    if int8:
        _quantize(network)
    return NativeRecognizer(
        network,
        tokenizer,
        head=head,
        front_end=FrontEnd(default_mode("pianissimo" if ours else "parakeet")),
        detector=VoiceDetector(model=SpeechModel() if available() else None),
        decoding=decoding,
    )


def _quantize(network: "AsrModel") -> None:
    """The layers of encoder and predictor in 8 bits, in place; OptionError where that cannot be."""
    from pianissimo.models.packed import packed

    if network.device.type != "cpu":
        raise OptionError("int8 is for the CPU; on a GPU use bfloat16")
    network.encoder = packed(network.encoder, "int8")
    if network.predictor is not None:
        network.predictor = packed(network.predictor, "int8")


# -- other families --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FamilyOptions:
    """What `load` was asked for; None leaves the choice to the family."""

    dtype: "torch.dtype | None" = None
    int8: bool = False
    head: str | None = None
    language: str | None = None
    task: Literal["transcribe", "translate"] | None = None
    decoding: "Decoding | None" = None


def _load_ctc_family(
    path: Path, device: "torch.device", options: FamilyOptions
) -> "OfflineRecognizer":
    from pianissimo.models.checkpoints.wav2vec2 import read_wav2vec2
    from pianissimo.recognizers.wav2vec2 import CtcFamilyRecognizer

    _refuse(path, options, head=(None, "ctc"))
    network, alphabet = read_wav2vec2(path, options.language)
    network.to(device=device, dtype=options.dtype or choose_dtype("float32"))
    return CtcFamilyRecognizer(network, alphabet, decoding=options.decoding)


def _load_whisper(
    path: Path, device: "torch.device", options: FamilyOptions
) -> "OfflineRecognizer":
    from pianissimo.recognizers.whisper import read_whisper

    _refuse(path, options, task=(None, "transcribe", "translate"))
    dtype = options.dtype or choose_dtype("float32")
    task = options.task or "transcribe"
    return read_whisper(path, device, dtype, language=options.language, task=task)


def _load_glm_asr(
    path: Path, device: "torch.device", options: FamilyOptions
) -> "OfflineRecognizer":
    from pianissimo.recognizers.glm_asr import read_glm_asr

    _refuse(path, options)
    if options.language is not None:
        raise OptionError(f"{path.name} finds the language by itself: leave it out")
    return read_glm_asr(path, device, options.dtype)


def _load_sherpa(path: Path, device: "torch.device", options: FamilyOptions) -> "OfflineRecognizer":
    from pianissimo.recognizers.sherpa import read_sherpa

    _refuse(path, options, int8=True)
    if options.dtype not in (None, choose_dtype("float32")):
        raise OptionError(f"{path.name} is in float32 or int8, not in {options.dtype}")
    precision: Literal["float32", "int8"] | None = None if options.dtype is None else "float32"
    return read_sherpa(
        path, device, precision="int8" if options.int8 else precision, language=options.language
    )


def _load_faster_whisper(
    path: Path, device: "torch.device", options: FamilyOptions
) -> "OfflineRecognizer":
    from pianissimo.recognizers.faster_whisper import read_faster_whisper

    _refuse(path, options, task=(None, "transcribe", "translate"), int8=True)
    dtype = "default" if options.dtype is None else str(options.dtype).removeprefix("torch.")
    return read_faster_whisper(
        path,
        device,
        INT8 if options.int8 else dtype,
        language=options.language,
        task=options.task or "transcribe",
    )


def _load_espnet(path: Path, device: "torch.device", options: FamilyOptions) -> "OfflineRecognizer":
    from pianissimo.recognizers.espnet import read_espnet, search_options

    _refuse(path, options, head=(None, "ctc"))
    if options.dtype not in (None, choose_dtype("float32")):
        raise OptionError(f"{path.name} is computed in float32, not in {options.dtype}")
    if options.language is not None:
        raise OptionError(f"{path.name} knows no choice of languages: leave it out")
    search = search_options(options.decoding, ctc_only=options.head == "ctc")
    ngram = None if options.decoding is None else options.decoding.lm
    return read_espnet(path, device, options=search, ngram=ngram)


FAMILIES: dict[str | None, "Callable[[Path, torch.device, FamilyOptions], OfflineRecognizer]"] = {
    "wav2vec2": _load_ctc_family,
    "hubert": _load_ctc_family,
    "data2vec-audio": _load_ctc_family,
    "wavlm": _load_ctc_family,
    "wav2vec2-bert": _load_ctc_family,
    "whisper": _load_whisper,
    "glmasr": _load_glm_asr,
    "Glmasr": _load_glm_asr,  # as the first layout has it, which is refused by its name
    "sherpa-onnx": _load_sherpa,
    "ctranslate2": _load_faster_whisper,
    "espnet": _load_espnet,
}
"""The layout of a folder, or the `model_type` of one written by Transformers -> what reads it."""


def _refuse(
    path: Path,
    options: FamilyOptions,
    head: tuple[str | None, ...] = (None,),
    task: tuple[str | None, ...] = (None, "transcribe"),
    int8: bool = False,
) -> None:
    """OptionError for a head, task or precision that the family does not have."""
    if options.int8 and not int8:
        raise OptionError(f"{path.name} has no int8 form here; use float32 or bfloat16")
    if options.head not in head:
        only = f", only {head[-1]}" if head[-1] else ""
        raise OptionError(f"{path.name} has no {options.head} head{only}")
    if options.task not in task:
        known = " or ".join(name for name in task if name)
        raise OptionError(f"{path.name}: unknown task {options.task!r}; choose {known}")


def layout(path: Path) -> str | None:
    """The layout of a path that neither Transformers nor NeMo wrote, nor we; None for those."""
    from pianissimo.models.checkpoints.espnet import is_espnet
    from pianissimo.models.checkpoints.format import recognize_format
    from pianissimo.recognizers.faster_whisper import is_ctranslate2_folder
    from pianissimo.recognizers.sherpa import is_sherpa_folder

    if recognize_format(path) is not None:
        return None
    if is_espnet(path):
        return "espnet"
    if not path.is_dir():
        return None
    if is_ctranslate2_folder(path):
        return "ctranslate2"
    return "sherpa-onnx" if is_sherpa_folder(path) else None


def model_type(path: Path) -> str | None:
    """What a folder written by Transformers says it holds; None for every other path.

    Raises CheckpointError when it is something that nothing here reads.
    """
    from pianissimo.models.checkpoints.format import listed, read_json, recognize_format
    from pianissimo.models.checkpoints.huggingface import FAMILIES as NATIVE

    if not path.is_dir() or recognize_format(path) != "huggingface":
        return None
    config = read_json(path / "config.json")
    kind, found = config.get("model_type"), config.get("architectures")
    if kind in FAMILIES or not isinstance(kind, str):
        return kind if isinstance(kind, str) else None
    if not any(name in NATIVE for name in found or () if isinstance(name, str)):
        raise CheckpointError(
            f"{path} holds a model of the kind {kind[:80]!r}, which nothing here reads; known are "
            f"{listed([str(name) for name in FAMILIES], most=99)} and {listed(NATIVE, most=99)}"
        )
    return kind


def locate(model: str | os.PathLike[str] | None) -> Path:
    """The file or folder of a model: an existing path as it is, a name where `pull` put it.

    Raises ModelNotFoundError that says how to get it.
    """
    if model is None:
        return catalog.ASSETS / catalog.EMBEDDED
    if not os.fspath(model):
        raise ModelNotFoundError(
            "the name of the model is empty; leave it out for the embedded one"
        )
    path = Path(model)
    try:
        path = path.expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # too long for a path, or of an unknown user
        raise ModelNotFoundError(f"there is no file or folder {str(path)[:200]!r}") from error
    if path.suffix == ".nemo" or path.is_absolute():
        raise ModelNotFoundError(f"there is no file or folder {path}")
    entry = catalog.find(os.fspath(model))
    folder = models_folder() / entry.short_name if entry.repository else catalog.ASSETS / entry.name
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{entry.name} is not on this machine; run `pianissimo pull {entry.short_name}`, "
            f"or copy its files to {folder}"
        )
    archives = sorted(folder.glob("*.nemo"))
    return archives[0] if archives and not (folder / "config.json").exists() else folder


def models_folder() -> Path:
    """Where pulled models live: $PIANISSIMO_MODELS, or the user's data folder."""
    if os.environ.get(MODELS_FOLDER):
        return Path(os.environ[MODELS_FOLDER]).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "pianissimo" / "models"


def read_model(path: Path) -> "tuple[AsrModel, Tokenizer]":
    """Read a checkpoint of any known format, told apart by its content."""
    from pianissimo.models.asr import load_model
    from pianissimo.models.checkpoints.format import recognize_format
    from pianissimo.models.checkpoints.huggingface import read_huggingface
    from pianissimo.models.checkpoints.nemo import read_nemo

    readers = {"pianissimo": load_model, "nemo": read_nemo, "huggingface": read_huggingface}
    kind = recognize_format(path)
    if kind is None:
        raise CheckpointError(
            f"{path} is no model that we know: expected a .nemo file, an ESPnet2 pack (.zip with "
            "meta.yaml), a folder as Transformers, ESPnet2, CTranslate2 or sherpa-onnx lay it out, "
            "or a name from `pianissimo models list`"
        )
    return readers[kind](path)


def choose_device(device: str) -> "torch.device":
    """The torch device of that name; "auto" is CUDA where there is one. OptionError otherwise."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise OptionError(f"unknown device {device!r}; choose auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"device {device!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu, or check the driver with `pianissimo doctor`"
        )
    return chosen


def choose_dtype(dtype: str) -> "torch.dtype":
    """The torch dtype of that name; OptionError if it is not one we compute in."""
    import torch

    if dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; choose {', '.join(('auto', *DTYPES, INT8))}")
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen
