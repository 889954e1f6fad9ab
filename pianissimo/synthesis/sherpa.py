"""Voices of sherpa-onnx: VITS (also Piper's), Kokoro, Matcha-TTS and Pocket TTS.

They are read from folders as the authors of sherpa-onnx publish them. The library ends the whole
process when a file is not what it expects, so the files are checked before it sees them. Its wheels
contain espeak-ng (GPL-3.0), hence they are an extra that the user chooses.
"""

import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from pianissimo.audio.io import Samples
from pianissimo.errors import (
    CheckpointError,
    MissingExtraError,
    ModelNotFoundError,
    NothingToSayError,
    OptionError,
)
from pianissimo.models.checkpoints.config_json import listed, read_capped, read_json
from pianissimo.models.checkpoints.onnx_metadata import read_onnx_metadata
from pianissimo.synthesis.base import BaseSynthesizer

Untyped: TypeAlias = Any
"""Of sherpa-onnx, which has no types."""
Kind = Literal["vits", "kokoro", "matcha", "pocket"]
TOKENS_FILE = "tokens.txt"
LARGEST_TEXT_BYTES = 64 << 20
"""Of a list of tokens and of a lexicon."""
SAMPLE_RATES = range(8000, 48_001)
MOST_SPEAKERS = 4096
POCKET_RATE = 24_000
POCKET_NETWORKS = ("lm_main", "lm_flow", "encoder", "decoder", "text_conditioner")
POCKET_JSON = ("vocab.json", "token_scores.json")
VOCODERS = ("vocos", "hifigan")
VOCODER_TYPES = ("hifigan", "vocos", "matcha-tts vocos")
RULE_ORDER = ("phone", "date", "number", "new_heteronym")
"""Text rules in the order in which they are applied; others follow by name."""
LANGUAGES = {"english": "en", "en-us": "en-US", "en-gb": "en-GB", "chinese": "zh", "german": "de"}
"""Languages as the metadata name them; a code of letters is kept."""
ESPEAK = "espeak-ng-data"
ESPEAK_FILES = ("phontab", "phonindex", "phondata", "intonations")


@dataclass(frozen=True)
class SherpaFiles:
    """A folder whose files were checked. `speakers` has names or numbers, in their order."""

    folder: Path
    kind: Kind
    metadata: dict[str, str]
    model: Path
    sample_rate: int
    language: str | None
    speakers: tuple[str, ...]
    vocoder: Path | None = None


class SherpaSynthesizer(BaseSynthesizer):
    """A voice of sherpa-onnx, on the CPU; `speaker` is one of the speakers of the folder, by
    default the first. The networks draw noise that cannot be seeded.

    Raises MissingExtraError, CheckpointError and ModelNotFoundError.
    """

    def __init__(self, folder: Path, speaker: str | None = None) -> None:
        try:
            import sherpa_onnx
        except ImportError as error:
            raise MissingExtraError(
                f"{folder.name} needs the sherpa-onnx package: pip install 'pianissimo[sherpa]'"
            ) from error
        files = check_folder(folder)
        if speaker is not None and speaker not in files.speakers:
            raise ModelNotFoundError(
                f"{folder.name} has no speaker {speaker[:40]!r}; "
                f"choose {listed(files.speakers, 20)}"
            )
        name = folder.name if speaker is None else f"{folder.name}/{speaker}"
        english = files.language is not None and files.language.startswith("en")
        super().__init__(name, files.language, files.sample_rate, "LATIN" if english else None)
        self._kind = files.kind
        self._speaker = 0 if speaker is None else files.speakers.index(speaker)
        self._reference: tuple[Samples, int] | None = None
        if files.kind == "pocket":
            self._reference = _read_reference(folder, files.speakers[self._speaker])
        config = _config(sherpa_onnx, files)
        if not config.validate():
            raise CheckpointError(f"{folder} is incomplete, see the lines above; fetch it again")
        try:
            self._voice: Untyped = sherpa_onnx.OfflineTts(config)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:300]
            raise CheckpointError(f"{folder}: {reason}; fetch the whole voice again") from error
        self._speaking = threading.Lock()  # espeak-ng has global state

    def stream(
        self, text: str, *, speed: float = 1.0, seed: int | None = None
    ) -> Generator[Samples]:
        if seed is not None:
            raise OptionError(f"{self.name} cannot repeat its audio; omit seed")
        if speed != 1.0 and self._kind == "pocket":
            raise OptionError(f"{self.name} has one speed; omit speed")
        return super().stream(text, speed=speed)

    def _sentence(self, text: str, speed: float, seed: int | None) -> Iterator[Samples]:
        import sherpa_onnx

        options = sherpa_onnx.GenerationConfig()
        options.sid, options.speed = self._speaker, speed
        if self._reference is not None:
            samples, rate = self._reference
            options.reference_audio, options.reference_sample_rate = samples.tolist(), rate
        with self._speaking:
            found = self._voice.generate(text, options)
        if not len(found.samples):
            raise NothingToSayError(
                f"{self.name} has no sounds for {text[:40]!r}; send other words"
            )
        yield np.clip(np.asarray(found.samples, np.float32), -1.0, 1.0)


# -- files -----------------------------------------------------------------------------------------


def is_sherpa_voice(folder: Path) -> bool:
    """Whether a folder looks like one that sherpa-onnx reads."""
    networks = any(folder.glob("*.onnx"))
    return networks and ((folder / TOKENS_FILE).is_file() or any(folder.glob("lm_main*.onnx")))


def check_folder(folder: Path) -> SherpaFiles:
    """What is in a folder. Raises CheckpointError unless it is a complete voice."""
    if any(folder.glob("lm_main*.onnx")):
        return _check_pocket(folder)
    path = _network(folder)
    metadata = read_onnx_metadata(path)
    kind = _kind(folder, path, metadata)
    rate = _integer(path, metadata, "sample_rate")
    if rate not in SAMPLE_RATES:
        raise CheckpointError(f"{path}: sample_rate cannot be {rate}; fetch it again")
    count = max(1, _integer(path, metadata, "n_speakers"))
    if count > MOST_SPEAKERS:
        raise CheckpointError(f"{path}: n_speakers cannot be {count}; fetch it again")
    _check_tokens(folder / TOKENS_FILE)
    names = tuple(filter(None, metadata.get("speaker_names", "").split(",")))
    if len(names) != count:
        names = tuple(map(str, range(count)))
    vocoder = None
    match kind:
        case "kokoro":
            _check_kokoro(folder, path, metadata, count)
        case "matcha":
            vocoder = _check_matcha(folder, path, metadata)
        case "vits":
            _check_vits(folder, path, metadata)
    language = _language(metadata)
    return SherpaFiles(folder, kind, metadata, path, rate, language, names, vocoder)


def _network(folder: Path) -> Path:
    """The file of the network: not a vocoder, and in full precision where there is a choice."""
    paths = [p for p in sorted(folder.glob("*.onnx")) if not p.name.startswith(VOCODERS)]
    full = [p for p in paths if not p.stem.endswith((".int8", ".fp16", "-int8", "-fp16"))]
    chosen = full or paths
    if len(chosen) != 1:
        there = listed(p.name for p in paths) if paths else "none"
        raise CheckpointError(f"{folder} must have one network besides a vocoder; there is {there}")
    return chosen[0]


def _kind(folder: Path, path: Path, metadata: dict[str, str]) -> Kind:
    if "style_dim" in metadata and "has_espeak" in metadata:
        return "kokoro"
    if "matcha" in metadata.get("model_type", ""):
        return "matcha"
    if "n_speakers" in metadata and "language" in metadata:
        return "vits"
    if path.with_name(f"{path.name}.json").is_file():
        raise CheckpointError(
            f"{path} is a voice as Piper publishes it, without the metadata that sherpa-onnx "
            "needs; fetch the same voice as vits-piper-... from the releases of sherpa-onnx"
        )
    raise CheckpointError(
        f"{folder} is no voice that is known here; known are VITS, Kokoro, Matcha-TTS and Pocket "
        "TTS as sherpa-onnx publishes them"
    )


def _language(metadata: dict[str, str]) -> str | None:
    for key in ("voice", "language"):
        given = metadata.get(key, "").strip().lower()
        if given in LANGUAGES:
            return LANGUAGES[given]
        if given[:2].isalpha() and (len(given) == 2 or given[2:3] == "-"):
            return given
    return None


def _check_vits(folder: Path, path: Path, metadata: dict[str, str]) -> None:
    for key in ("language", "comment"):
        if key not in metadata:
            raise CheckpointError(f"{path}: its metadata has no {key}; fetch it again")
    if "melo" in metadata["comment"] and _integer(path, metadata, "version", 0) < 2:
        raise CheckpointError(f"{path} is an old export of MeloTTS; fetch the present one")
    characters = metadata.get("frontend") == "characters"
    phonemes = any(name in metadata["comment"] for name in ("piper", "coqui", "icefall"))
    if characters:
        return
    if phonemes and (folder / ESPEAK).is_dir():
        _check_espeak(folder)
        return
    _check_lexicon(folder, "lexicon.txt", f"lexicon.txt or {ESPEAK}" if phonemes else "lexicon.txt")


def _check_kokoro(folder: Path, path: Path, metadata: dict[str, str], speakers: int) -> None:
    try:
        tokens, one, width = (int(size) for size in metadata["style_dim"].split(","))
    except ValueError as error:
        raise CheckpointError(f"{path}: style_dim must be three numbers; fetch it again") from error
    if one != 1 or min(tokens, width) < 1:
        raise CheckpointError(f"{path}: style_dim cannot be {metadata['style_dim'][:40]}")
    _integer(path, metadata, "has_espeak")
    voices = folder / "voices.bin"
    expected = 4 * tokens * width * speakers
    if not voices.is_file() or voices.stat().st_size != expected:
        raise CheckpointError(
            f"{folder} must have a voices.bin of {expected} bytes for {speakers} speakers; "
            "fetch it again"
        )
    _check_espeak(folder)
    if _integer(path, metadata, "version", 1) >= 2 and not _lexicons(folder):
        raise CheckpointError(f"{folder} has no lexicon; fetch the whole voice again")


def _check_matcha(folder: Path, path: Path, metadata: dict[str, str]) -> Path | None:
    """Returns the vocoder, if the network needs one."""
    if _integer(path, metadata, "jieba", 0) or _integer(path, metadata, "is_zh_en", 0):
        _check_lexicon(folder, "lexicon.txt", "lexicon.txt")
    elif _integer(path, metadata, "has_espeak", 0):
        _check_espeak(folder)
    else:
        raise CheckpointError(f"{path} needs text that is read in a way unknown here")
    if not _integer(path, metadata, "need_vocoder", 1):
        return None
    found = [p for p in sorted(folder.glob("*.onnx")) if p.name.startswith(VOCODERS)]
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} must have one vocoder, such as vocos-22khz-univ.onnx, beside {path.name}; "
            "copy it there"
        )
    if read_onnx_metadata(found[0]).get("model_type") not in VOCODER_TYPES:
        raise CheckpointError(f"{found[0]} is no vocoder of sherpa-onnx; fetch it again")
    return found[0]


def _check_pocket(folder: Path) -> SherpaFiles:
    for name in POCKET_NETWORKS:
        read_onnx_metadata(_pocket_network(folder, name))  # it is whole
    for file in POCKET_JSON:
        read_json(folder / file)
    references = tuple(sorted(path.stem for path in _references(folder)))
    if not references:
        raise CheckpointError(
            f"{folder} has no voice to speak with: put a recording of a few seconds, of somebody "
            "who agrees, into it as a .wav file"
        )
    model = _pocket_network(folder, POCKET_NETWORKS[0])
    return SherpaFiles(folder, "pocket", {}, model, POCKET_RATE, None, references)


def _pocket_network(folder: Path, stem: str) -> Path:
    found = [folder / f"{stem}{suffix}" for suffix in (".onnx", ".int8.onnx")]
    for path in found:
        if path.is_file():
            return path
    raise CheckpointError(f"{folder} has no {stem}.onnx; fetch the whole voice again")


def _references(folder: Path) -> list[Path]:
    """Recordings whose voices Pocket TTS imitates."""
    return [*folder.glob("*.wav"), *folder.glob("test_wavs/*.wav")]


def _read_reference(folder: Path, name: str) -> tuple[Samples, int]:
    import soundfile

    path = next(path for path in _references(folder) if path.stem == name)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable recording ({error})") from error
    if not len(samples) or not np.isfinite(samples).all():
        raise CheckpointError(f"{path} has no sound; record it again")
    return samples.mean(axis=1), int(rate)


def _integer(path: Path, metadata: dict[str, str], name: str, default: int | None = None) -> int:
    try:
        value = int(metadata[name]) if default is None else int(metadata.get(name, default))
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its metadata has no number {name}; fetch it again"
        ) from error
    if not 0 <= value < 1 << 31:
        raise CheckpointError(f"{path}: {name} cannot be {value}; fetch it again")
    return value


def _check_tokens(path: Path) -> None:
    """Every line must be a symbol and its number; a space may be the symbol."""
    try:
        for line in read_capped(path, LARGEST_TEXT_BYTES).decode().splitlines():
            if line.strip():
                int(line.rsplit(maxsplit=1)[-1])
    except ValueError as error:
        raise CheckpointError(
            f"{path} must have a symbol and its number on each line; fetch it again"
        ) from error


def _check_lexicon(folder: Path, name: str, expected: str) -> None:
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder} has no {expected}; fetch the whole voice again")
    try:
        read_capped(folder / name, LARGEST_TEXT_BYTES).decode()
    except ValueError as error:
        raise CheckpointError(f"{folder / name} is no text; fetch it again") from error


def _check_espeak(folder: Path) -> None:
    for name in ESPEAK_FILES:
        if not (folder / ESPEAK / name).is_file():
            raise CheckpointError(f"{folder} has no {ESPEAK}/{name}; fetch the whole voice again")


def _lexicons(folder: Path) -> list[Path]:
    """The lexicons of Kokoro: American English before British, which only one of them can be."""
    found = sorted(folder.glob("lexicon*.txt"))
    american = any("us-en" in path.name for path in found)
    return [path for path in found if not (american and "gb-en" in path.name)]


def _rules(folder: Path) -> str:
    """The rules that write numbers and dates as words, as a list for the library."""

    def position(path: Path) -> tuple[int, str]:
        places = [i for i, stem in enumerate(RULE_ORDER) if path.stem.startswith(stem)]
        return (places[0] if places else len(RULE_ORDER)), path.name

    return ",".join(map(str, sorted(folder.glob("*.fst"), key=position)))


def _config(sherpa: Untyped, files: SherpaFiles) -> Untyped:
    """The configuration of the library for a folder."""
    folder, tokens, model = files.folder, str(files.folder / TOKENS_FILE), str(files.model)
    data = str(folder / ESPEAK) if (folder / ESPEAK).is_dir() else ""
    lexicon = str(folder / "lexicon.txt") if (folder / "lexicon.txt").is_file() else ""
    words = str(folder / "dict") if files.metadata.get("jieba", "0") != "0" else ""
    options: dict[str, Untyped] = {}
    match files.kind:
        case "vits":
            options["vits"] = sherpa.OfflineTtsVitsModelConfig(
                model=model,
                lexicon="" if data else lexicon,
                tokens=tokens,
                data_dir=data,
                dict_dir=words,
            )
        case "kokoro":
            options["kokoro"] = sherpa.OfflineTtsKokoroModelConfig(
                model=model,
                voices=str(folder / "voices.bin"),
                tokens=tokens,
                lexicon=",".join(map(str, _lexicons(folder))),
                data_dir=data,
                dict_dir=str(folder / "dict") if (folder / "dict").is_dir() else "",
            )
        case "matcha":
            options["matcha"] = sherpa.OfflineTtsMatchaModelConfig(
                acoustic_model=model,
                vocoder="" if files.vocoder is None else str(files.vocoder),
                lexicon=lexicon,
                tokens=tokens,
                data_dir=data,
                dict_dir=words,
            )
        case "pocket":
            networks = {name: str(_pocket_network(folder, name)) for name in POCKET_NETWORKS}
            vocabulary, scores = (str(folder / name) for name in POCKET_JSON)
            options["pocket"] = sherpa.OfflineTtsPocketModelConfig(
                **networks, vocab_json=vocabulary, token_scores_json=scores
            )
    return sherpa.OfflineTtsConfig(
        model=sherpa.OfflineTtsModelConfig(**options), rule_fsts=_rules(folder)
    )
