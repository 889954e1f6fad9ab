"""The models that have a name: where they come from and what they are good for. No torch here."""

from dataclasses import dataclass
from pathlib import Path

from pianissimo.errors import ModelNotFoundError

EMBEDDED = "embedded-en"
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class CatalogEntry:
    """A named model. `repository` is its place on the Hugging Face hub, None if it is embedded.

    `files` are what `pull` fetches, as patterns; `megabytes` is about the size of that download.
    """

    name: str
    summary: str
    languages: tuple[str, ...]
    licence: str
    parameters_millions: float
    megabytes: float
    repository: str | None = None
    files: tuple[str, ...] = ("*.json", "*.safetensors")
    streams: bool = True

    @property
    def short_name(self) -> str:
        """The name without its owner: what people type."""
        return self.name.rpartition("/")[2]


CATALOG = (
    CatalogEntry(
        name=EMBEDDED,
        summary="small English model inside the package: spelled letters, digits, short commands",
        languages=("en",),
        licence="Apache-2.0",
        parameters_millions=6.3,
        megabytes=13,
    ),
    CatalogEntry(
        name="nvidia/nemotron-speech-streaming-en-0.6b",
        summary="cache-aware streaming English with punctuation and case, 80 to 1120 ms",
        languages=("en",),
        licence="NVIDIA Open Model License",
        parameters_millions=618,
        megabytes=2473,
        repository="nvidia/nemotron-speech-streaming-en-0.6b",
    ),
    CatalogEntry(
        name="nvidia/parakeet-ctc-0.6b",
        summary="offline English, lower case, whole recordings at once",
        languages=("en",),
        licence="CC-BY-4.0",
        parameters_millions=600,
        megabytes=2400,
        repository="nvidia/parakeet-ctc-0.6b",
        streams=False,
    ),
    CatalogEntry(
        name="nvidia/parakeet-tdt-0.6b-v2",
        summary="offline English with punctuation and case, whole recordings at once",
        languages=("en",),
        licence="CC-BY-4.0",
        parameters_millions=600,
        megabytes=2400,
        repository="nvidia/parakeet-tdt-0.6b-v2",
        files=("*.nemo",),
        streams=False,
    ),
)


def find(name: str) -> CatalogEntry:
    """The entry of that full or short name, whatever its case; ModelNotFoundError otherwise."""
    for entry in CATALOG:
        if name.lower() in (entry.name.lower(), entry.short_name.lower()):
            return entry
    known = ", ".join(entry.short_name for entry in CATALOG)
    raise ModelNotFoundError(
        f"there is no model {name!r}: no such file or folder, and not one of the names {known}"
    )
