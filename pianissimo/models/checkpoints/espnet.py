"""Reading ESPnet2 models: packed zip archives, unpacked ones, and folders of an experiment.

`meta.yaml` names the members of a pack; an experiment's folder has `config.yaml` and one `.pth`.
Configurations outside the supported subset are refused with the name of the key. As in ESPnet,
feature statistics and the mel matrix are those of the checkpoint, and tokens those of the
configuration.
"""

import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal, TypeVar

import torch
from torch import Tensor, nn

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.asr import MOST_LAYERS
from pianissimo.models.checkpoints.archive import (
    FREE_EXPANSION_BYTES,
    LARGEST_EXPANSION,
    MOST_MEMBERS,
    Files,
    read_tensors,
)
from pianissimo.models.checkpoints.config_json import (
    LARGEST_CONFIG_BYTES,
    Parsed,
    Section,
    listed,
    parse_yaml,
)
from pianissimo.models.checkpoints.format import check_tensors
from pianissimo.models.espnet import (
    LEGACY_FIRST,
    DecoderConfig,
    EspnetConfig,
    EspnetModel,
    FeaturesConfig,
    LmConfig,
    RecurrentLm,
)

META_FILE, CONFIG_FILE = "meta.yaml", "config.yaml"
LARGEST_MEMBER_BYTES = 8 << 30
FINAL_TOKEN = "<sos/eos>"
RATES = (16_000, "16k", "16000")
ENCRYPTED = 1
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class EspnetParts:
    """The parts of a pack; the language model is optional."""

    model: EspnetModel
    lm: RecurrentLm | None


def is_espnet(path: Path) -> bool:
    """Whether the content of a path looks like an ESPnet model."""
    if path.is_dir():
        return (path / META_FILE).is_file() or (
            (path / CONFIG_FILE).is_file() and any(path.glob("*.pth"))
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return META_FILE in archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def read_parts(path: Path) -> EspnetParts:
    """Read a pack or its folder; CheckpointError if it is damaged or not supported."""
    with open_pack(path) as files:
        members = pack_members(files, path, "asr_train_config", "asr_model_file")
        root = yaml_section(files, members["asr_train_config"])
        config = config_from_espnet(root, path.stem if path.is_file() else path.name)
        weights = pack_weights(files, members["asr_model_file"])
        model = _built(lambda: EspnetModel(config), weights, members["asr_model_file"], path)
        if "lm_train_config" not in members:
            return EspnetParts(model, None)
        lm_config = lm_config_from_espnet(
            yaml_section(files, members["lm_train_config"]), config.tokens
        )
        weights = {
            name.removeprefix("lm."): tensor
            for name, tensor in pack_weights(files, members["lm_file"]).items()
        }
        lm = _built(lambda: RecurrentLm(lm_config), weights, members["lm_file"], path)
        return EspnetParts(model, lm)


# -- configurations --------------------------------------------------------------------------------


def config_from_espnet(root: Section, name: str) -> EspnetConfig:
    """The configuration of a `config.yaml`; CheckpointError names unsupported keys."""
    root.only("model", ("espnet", None), "espnet")
    root.only("frontend", ("default",), "default")
    root.only("encoder", ("conformer",))
    for absent in ("preencoder", "postencoder", "input_size"):
        root.only(absent, (None,), None)
    root.only("use_adapter", (False,), False)
    tokens = _tokens(root)
    model = root.section("model_conf")
    known = {token: i for i, token in enumerate(tokens)}
    ends = [
        known.get(str(model.get(key, FINAL_TOKEN)), len(tokens) - 1)
        for key in ("sym_sos", "sym_eos")
    ]
    if known.get(str(model.get("sym_blank", "<blank>")), 0) != 0:
        raise CheckpointError(f"{root.where}: the blank must be the first token")
    spelling: Literal["bpe", "char", "word"] = root.only("token_type", ("bpe", "char", "word"))
    encoder = root.section("encoder_conf")
    for key, supported in _FIXED.items():
        encoder.only(key, supported, supported[0])
    legacy = encoder.only("rel_pos_type", ("latest", "legacy"), "legacy") == "legacy"
    attention = ("rel_selfattn", "legacy_rel_selfattn") if legacy else ("rel_selfattn",)
    encoder.only("selfattention_layer_type", attention, "rel_selfattn")
    encoder.only(
        "pos_enc_layer_type", ("rel_pos", "legacy_rel_pos") if legacy else ("rel_pos",), "rel_pos"
    )
    kernel = None
    if encoder.flag("use_cnn_module", True):
        kernel = encoder.integer("cnn_module_kernel", 31, most=1 << 12)
    try:
        return EspnetConfig(
            tokens=tokens,
            start=ends[0],
            end=ends[1],
            features=_features(root),
            decoder=_decoder(root, model.number("ctc_weight", 0.5)),
            dim=encoder.integer("output_size", 256, most=1 << 14),
            heads=encoder.integer("attention_heads", 4, most=1 << 10),
            ff_dim=encoder.integer("linear_units", 2048, most=1 << 16),
            layers=encoder.integer("num_blocks", 6, most=MOST_LAYERS),
            conv_kernel=kernel,
            macaron=encoder.flag("macaron_style", False),
            legacy=legacy,
            spelling=spelling,
            space=str(root.section("preprocessor_conf").get("space_symbol", "<space>")),
            name=name,
        )
    except OptionError as error:
        raise CheckpointError(f"{root.where}: {error}") from error


_FIXED: Mapping[str, tuple[Parsed, ...]] = {
    "input_layer": ("conv2d",),
    "normalize_before": (True,),
    "concat_after": (False,),
    "positionwise_layer_type": ("linear",),
    "activation_type": ("swish",),
    "zero_triu": (False,),
    "max_pos_emb_len": (LEGACY_FIRST,),
    "interctc_use_conditioning": (False,),
    "ctc_trim": (False,),
    "qk_norm": (False,),
}
"""The supported values of an encoder, ESPnet's default first."""


def lm_config_from_espnet(root: Section, tokens: tuple[str, ...]) -> LmConfig:
    """The configuration of the language model, whose tokens must be those of the recognizer."""
    root.only("lm", ("seq_rnn",), "seq_rnn")
    if _tokens(root) != tokens:
        raise CheckpointError(f"{root.where}: the language model has other tokens than the model")
    conf = root.section("lm_conf")
    kind = conf.only("rnn_type", ("lstm", "gru", "LSTM", "GRU"), "lstm").upper()
    dim = conf.integer("unit", 650, most=1 << 14)
    hidden = conf.integer("nhid", most=1 << 14) if "nhid" in conf else dim
    return LmConfig(len(tokens), dim, hidden, conf.integer("nlayers", 2, most=64), kind)


def _tokens(root: Section) -> tuple[str, ...]:
    tokens = root.get("token_list")
    if (
        not isinstance(tokens, list)
        or not 3 <= len(tokens) <= 1 << 20
        or not all(isinstance(token, str) for token in tokens)
    ):
        raise CheckpointError(f"{root.where}: token_list must be a list of three or more tokens")
    return tuple(tokens)


def _features(root: Section) -> FeaturesConfig:
    conf = root.section("frontend_conf")
    conf.only("fs", RATES, SAMPLE_RATE)
    conf.only("window", ("hann",), "hann")
    for key, supported in (("center", True), ("normalized", False), ("onesided", True)):
        conf.only(key, (supported,), supported)
    conf.only("apply_stft", (True,), True)
    for key in ("use_wpe", "use_beamformer"):
        conf.section("frontend_conf").only(key, (False,), False)
    fft = conf.integer("n_fft", 512, least=32, most=1 << 14)
    chosen = root.only("normalize", ("global_mvn", "utterance_mvn", None), "global_mvn")
    norm = root.section("normalize_conf")
    normalize: Literal["global", "utterance"] | None = None
    if chosen is not None:
        normalize = "global" if chosen == "global_mvn" else "utterance"
    return FeaturesConfig(
        fft=fft,
        window=conf.integer("win_length", most=1 << 14) if "win_length" in conf else fft,
        hop=conf.integer("hop_length", 128, most=1 << 14),
        mels=conf.integer("n_mels", 80, most=1 << 10),
        normalize=normalize,
        means=norm.flag("norm_means", True),
        variances=norm.flag("norm_vars", normalize == "global"),
    )


def _decoder(root: Section, ctc_weight: float) -> DecoderConfig | None:
    """The decoder, None for a model that was trained with CTC alone."""
    if ctc_weight == 1.0 or root.only("decoder", ("transformer", None)) is None:
        return None
    conf = root.section("decoder_conf")
    conf.only("input_layer", ("embed",), "embed")
    for key, supported in (("use_output_layer", True), ("normalize_before", True)):
        conf.only(key, (supported,), supported)
    for key in ("concat_after", "qk_norm"):
        conf.only(key, (False,), False)
    return DecoderConfig(
        heads=conf.integer("attention_heads", 4, most=1 << 10),
        ff_dim=conf.integer("linear_units", 2048, most=1 << 16),
        layers=conf.integer("num_blocks", 6, most=MOST_LAYERS),
    )


# -- weights ---------------------------------------------------------------------------------------


def pack_weights(files: Files, name: str) -> dict[str, Tensor]:
    with files.open(name) as stream:
        weights = read_tensors(stream, f"{files.where}: {name}")
    # Older checkpoints store positions, which are computed here.
    return {key: tensor for key, tensor in weights.items() if not key.endswith(".pe")}


def _built(
    make: Callable[[], Network], weights: Mapping[str, Tensor], name: str, path: Path
) -> Network:
    """The network in evaluation mode with these tensors, each used exactly once, in float32."""
    with torch.device("meta"):
        model = make()
    expected = model.state_dict()
    shapes = {key: tensor.shape for key, tensor in expected.items()}
    check_tensors(weights, shapes, f"{path}: {name}")
    plain = {}
    for key, wanted in expected.items():
        tensor = weights[key]
        if tensor.layout != torch.strided or (
            tensor.is_floating_point() != wanted.is_floating_point()
        ):
            raise CheckpointError(f"{path}: {key} has {tensor.dtype}, expected {wanted.dtype}")
        plain[key] = tensor.to(wanted.dtype)
    model.load_state_dict(plain, assign=True)
    return model.requires_grad_(False).eval()


# -- files -----------------------------------------------------------------------------------------


def pack_members(files: Files, path: Path, config: str, weights: str) -> dict[str, str]:
    """The names of the files by their keys, of which `config` and `weights` must be there."""
    if path.is_dir() and not (path / META_FILE).is_file():
        checkpoints = sorted(p.name for p in path.glob("*.pth"))
        if len(checkpoints) != 1:
            raise CheckpointError(
                f"{path} has {len(checkpoints)} checkpoints ({listed(checkpoints)}); keep one"
            )
        return {config: CONFIG_FILE, weights: checkpoints[0]}
    meta = yaml_section(files, META_FILE)
    members: dict[str, str] = {}
    for section in ("yaml_files", "files"):
        for key, value in meta.section(section).data.items():
            if not isinstance(value, str) or _leads_out(value):
                raise CheckpointError(f"{meta.where}: {key} must name a file inside the model")
            members[str(key)] = PurePosixPath(value).as_posix()
    for key in (config, weights):
        if key not in members:
            raise CheckpointError(f"{meta.where} has no {key}; it is a model of another kind")
    if ("lm_train_config" in members) != ("lm_file" in members):
        raise CheckpointError(f"{meta.where} has only one of lm_train_config and lm_file")
    return members


def yaml_section(files: Files, name: str) -> Section:
    where = f"{files.where}: {name}"
    return Section(parse_yaml(files.read(name, LARGEST_CONFIG_BYTES), where), where)


@contextmanager
def open_pack(path: Path) -> Iterator[Files]:
    """The files of a pack by name; CheckpointError for unsafe members."""
    try:
        if path.is_dir():
            inside = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
            sizes = {name: p.stat().st_size for name, p in inside.items()}
            yield Files(str(path), sizes, lambda name: inside[name].open("rb"))
            return
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, path)

            def extract(name: str) -> IO[bytes]:
                # A checkpoint is read with many seeks, which are slow in a compressed member.
                unpacked = tempfile.TemporaryFile(prefix="pianissimo-")
                try:
                    with archive.open(entries[name]) as packed:
                        shutil.copyfileobj(packed, unpacked)
                except BaseException:
                    unpacked.close()
                    raise
                unpacked.seek(0)
                return unpacked

            yield Files(str(path), {n: e.file_size for n, e in entries.items()}, extract)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
        raise CheckpointError(f"{path} is not a zip archive, or damaged ({error})") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    entries: dict[str, zipfile.ZipInfo] = {}
    listing = archive.infolist()
    if len(listing) > MOST_MEMBERS:
        raise CheckpointError(f"{path} has more than {MOST_MEMBERS} members")
    for entry in listing:
        shown = f"{path}: member {entry.filename[:200]!r}"
        if _leads_out(entry.filename):
            raise CheckpointError(f"{shown} has a path outside of the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise CheckpointError(f"{shown} is a link")
        if entry.flag_bits & ENCRYPTED or entry.compress_type not in COMPRESSIONS:
            raise CheckpointError(f"{shown} is encrypted or compressed in an unusual way")
        if entry.file_size > LARGEST_MEMBER_BYTES or entry.file_size > max(
            FREE_EXPANSION_BYTES, LARGEST_EXPANSION * entry.compress_size
        ):
            raise CheckpointError(f"{shown} claims {entry.file_size} bytes")
        if entry.is_dir():
            continue
        if entry.filename in entries:
            raise CheckpointError(f"{shown} appears twice")
        entries[entry.filename] = entry
    return entries


def _leads_out(name: str) -> bool:
    pure = PurePosixPath(name)
    return pure.is_absolute() or ".." in pure.parts or "\\" in name
