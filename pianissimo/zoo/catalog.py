"""The known models: where they come from, what they are good for, what they cost. No torch here."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pianissimo.errors import ModelNotFoundError

DEFAULT = "whisper-tiny-en"
"""What is loaded where no model is named."""
EMBEDDED = "embedded-commands"
"""The small transducer inside the package."""
RENAMED = {"embedded-en": EMBEDDED}
ASSETS = Path(__file__).parents[1] / "assets"


Source = Literal["measured", "published", "arithmetic", "unknown"]
Quiet = Literal["trained", "invariant", "gain"]


@dataclass(frozen=True)
class Facts:
    """What a recommendation is based on.

    `gflop` is the work per second of speech, by arithmetic: twice the weights times the frames that
    they see. `quiet` says how a model copes with quiet speech: trained on it, invariant to the
    level, or by the gain before it. `int8` is True where the published file has 8 bits.
    """

    gflop: float
    quiet: Quiet = "gain"
    quiet_source: Source = "measured"
    int8: bool = False
    narrow: bool = False
    """It knows only some words: recommended only where there is no other."""


@dataclass(frozen=True)
class CatalogEntry:
    """A named model. `repository` is its place on the Hugging Face hub, None if it is embedded.

    `files` are what `pull` fetches, as patterns; `megabytes` is about the size of that download.
    `extra` is what this package must be installed with. `revision` pins a branch, tag or commit,
    `sha256` the content of files, as pairs of name and hexadecimal digest. `unverified` names the
    fields above that were not compared with what the authors publish.
    """

    name: str
    summary: str
    languages: tuple[str, ...]
    license: str
    parameters_millions: float
    megabytes: float
    facts: Facts
    repository: str | None = None
    files: tuple[str, ...] = ("*.json", "*.safetensors")
    streams: bool = True
    extra: str | None = None
    revision: str | None = None
    sha256: tuple[tuple[str, str], ...] = ()
    unverified: tuple[str, ...] = ()

    @property
    def short_name(self) -> str:
        """The name without its owner: what people type."""
        return self.name.rpartition("/")[2]


WHISPER_LANGUAGES = tuple(
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su".split()
)
WHISPER_FILES = ("*.json", "*.txt", "model.safetensors")
GLM_ASR_LANGUAGES = tuple("zh en ca de es fr id it ja lt ms nl no pt ru sl uk".split())


def _whisper(size: str, millions: float, megabytes: float, gflop: float) -> CatalogEntry:
    return CatalogEntry(
        name=f"openai/whisper-{size}",
        summary="offline, many languages, translates into English",
        languages=WHISPER_LANGUAGES + (("yue",) if size.startswith("large-v3") else ()),
        license="Apache-2.0",
        parameters_millions=millions,
        megabytes=megabytes,
        repository=f"openai/whisper-{size}",
        files=WHISPER_FILES,
        streams=False,  # at 1120 ms they do, at costs that were measured for tiny.en alone
        unverified=() if size == "tiny" else ("license", "megabytes"),
        facts=Facts(gflop),  # of 30 s for the 28 s that it gets at most
    )


# The languages whose prompts have a name of their own, and those of the model's card.
NEMOTRON_LANGUAGES = tuple(
    "en es zh hi ar fr de ja ru pt ko it nl pl tr uk ro el cs hu sv da fi no nb nn sk hr bg lt et "
    "lv sl he th vi mt".split()
)


def _moonshine(size: str, millions: float, gflop: float) -> CatalogEntry:
    return CatalogEntry(
        name=f"UsefulSensors/moonshine-streaming-{size}",
        summary="small English with punctuation and case, whole pieces at once",
        languages=("en",),
        license="MIT",
        parameters_millions=millions,
        megabytes=4 * millions,
        repository=f"UsefulSensors/moonshine-streaming-{size}",
        streams=False,  # from 520 ms on they do, at costs that were not measured
        unverified=("license", "megabytes", "parameters_millions"),
        facts=Facts(gflop),
    )


CATALOG = (
    CatalogEntry(
        name=EMBEDDED,
        summary="built in, small: spelled English letters, digits and short commands from 80 ms on",
        languages=("en",),
        license="Apache-2.0",
        parameters_millions=6.3,
        megabytes=13,
        facts=Facts(0.16, narrow=True),
    ),
    CatalogEntry(
        name=DEFAULT,
        summary="built in, the default: Whisper tiny.en, English prose with punctuation and case",
        languages=("en",),
        license="MIT",
        parameters_millions=46,
        megabytes=51,
        facts=Facts(1.2),
    ),
    CatalogEntry(
        name="nvidia/nemotron-speech-streaming-en-0.6b",
        summary="cache-aware streaming English with punctuation and case, 80 to 1120 ms",
        languages=("en",),
        license="NVIDIA Open Model License",
        parameters_millions=618,
        megabytes=2473,
        repository="nvidia/nemotron-speech-streaming-en-0.6b",
        unverified=("license", "megabytes"),
        facts=Facts(15.5),
    ),
    CatalogEntry(
        name="nvidia/nemotron-3.5-asr-streaming-0.6b",
        summary="cache-aware streaming of 40 locales with punctuation and case, 80 to 1120 ms",
        languages=NEMOTRON_LANGUAGES,
        license="OpenMDW-1.1",
        parameters_millions=638,
        megabytes=2550,
        repository="nvidia/nemotron-3.5-asr-streaming-0.6b",
        unverified=("license", "megabytes", "languages"),
        facts=Facts(15.7),
    ),
    # The work of the tiny one is that of its configuration, the others by their weights.
    _moonshine("tiny", 34, 1.4),
    _moonshine("small", 123, 5.1),
    _moonshine("medium", 245, 10.0),
    CatalogEntry(
        name="nvidia/parakeet-ctc-0.6b",
        summary="offline English, lower case, whole recordings at once",
        languages=("en",),
        license="CC-BY-4.0",
        parameters_millions=600,
        megabytes=2400,
        repository="nvidia/parakeet-ctc-0.6b",
        streams=False,
        unverified=("license", "megabytes"),
        facts=Facts(15.0),
    ),
    CatalogEntry(
        name="nvidia/parakeet-tdt-0.6b-v2",
        summary="offline English with punctuation and case, whole recordings at once",
        languages=("en",),
        license="CC-BY-4.0",
        parameters_millions=600,
        megabytes=2400,
        repository="nvidia/parakeet-tdt-0.6b-v2",
        files=("*.nemo",),
        streams=False,
        unverified=("megabytes",),
        facts=Facts(15.0),
    ),
    CatalogEntry(
        name="facebook/wav2vec2-base-960h",
        summary="offline English, capitals without punctuation, whole recordings at once",
        languages=("en",),
        license="Apache-2.0",
        parameters_millions=94,
        megabytes=378,
        repository="facebook/wav2vec2-base-960h",
        files=("*.json", "model.safetensors"),
        streams=False,
        unverified=("license", "megabytes"),
        facts=Facts(14.0, "invariant"),
    ),
    _whisper("tiny", 38, 151, 1.2),
    _whisper("base", 73, 290, 2.7),
    _whisper("small", 242, 967, 11.0),
    _whisper("large-v3", 1543, 3087, 77.0),
    _whisper("large-v3-turbo", 809, 1618, 70.0),
    CatalogEntry(
        name="zai-org/GLM-ASR-Nano-2512",
        summary="offline Chinese, English and 15 more, quiet speech",
        languages=GLM_ASR_LANGUAGES,
        license="MIT",
        parameters_millions=2258,
        megabytes=4520,
        repository="zai-org/GLM-ASR-Nano-2512",
        files=("*.json", "*.jinja", "*.safetensors"),
        streams=False,
        extra="families",
        unverified=("megabytes",),
        facts=Facts(130.0, "trained", "published"),
    ),
    CatalogEntry(
        name="csukuangfj/sherpa-onnx-paraformer-zh-2023-09-14",
        summary="Paraformer: offline Chinese, small and quick",
        languages=("zh",),
        license="Apache-2.0; the weights it was made of: FunASR Model License",
        parameters_millions=220,
        megabytes=243,
        repository="csukuangfj/sherpa-onnx-paraformer-zh-2023-09-14",
        files=("tokens.txt", "model.int8.onnx"),
        streams=False,
        extra="sherpa",
        facts=Facts(7.3, int8=True),
    ),
    CatalogEntry(
        name="csukuangfj/sherpa-onnx-streaming-paraformer-bilingual-zh-en",
        summary="Paraformer: live Chinese and some English, 600 ms",
        languages=("zh", "en"),
        license="FunASR Model License",
        parameters_millions=220,
        megabytes=230,
        repository="csukuangfj/sherpa-onnx-streaming-paraformer-bilingual-zh-en",
        files=("tokens.txt", "encoder.int8.onnx", "decoder.int8.onnx"),
        extra="sherpa",
        unverified=("license", "parameters_millions", "megabytes"),
        facts=Facts(13.0, int8=True),
    ),
    CatalogEntry(
        name="csukuangfj/sherpa-onnx-sense-voice-zh-en-ja-ko-yue-2024-07-17",
        summary="SenseVoice: offline, five languages with Cantonese",
        languages=("zh", "en", "ja", "ko", "yue"),
        license="FunASR Model License",
        parameters_millions=234,
        megabytes=239,
        repository="csukuangfj/sherpa-onnx-sense-voice-zh-en-ja-ko-yue-2024-07-17",
        files=("tokens.txt", "model.int8.onnx"),
        streams=False,
        extra="sherpa",
        unverified=("license", "parameters_millions"),
        facts=Facts(7.8, int8=True),
    ),
)


def find(name: str, entries: Sequence[CatalogEntry] = CATALOG) -> CatalogEntry:
    """The entry of that full or short name, whatever its case; ModelNotFoundError otherwise.

    A former name is accepted with a DeprecationWarning.
    """
    if name.lower() in RENAMED:
        new = RENAMED[name.lower()]
        warnings.warn(f"{name} is now called {new}", DeprecationWarning, stacklevel=2)
        name = new
    for entry in entries:
        if name.lower() in (entry.name.lower(), entry.short_name.lower()):
            return entry
    known = ", ".join(entry.short_name for entry in entries)
    raise ModelNotFoundError(
        f"there is no model {name!r}: no such file or folder, and not one of the names {known}"
    )
