"""The whole acoustic model: features, encoder, transducer and/or CTC head; built, saved, loaded.

A model folder holds `config.json` (the dataclasses below), `model.safetensors` and the tokenizer
(`tokenizer.model` or `tokenizer.json`). Weights may be stored in half precision or 8 bits; they are
computed in the dtype the caller asks for.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.checkpoints.stored import from_store, to_store
from pianissimo.models.ctc import CtcHead
from pianissimo.models.fastconformer import EncoderConfig, FastConformerEncoder
from pianissimo.models.packed import Int8Linear, PackedLinear
from pianissimo.models.transducer import Joiner, Predictor, TransducerConfig
from pianissimo.streaming.grid import ChunkGrid
from pianissimo.text.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = {"sentencepiece": "tokenizer.model", "huggingface": "tokenizer.json"}
FORMAT_VERSION = 1
LARGEST_CONFIG_BYTES = 1 << 20
LARGEST_NUMBER = 1 << 20
"""Most that any size in a configuration may be; the vocabulary is the largest of them."""
MOST_LAYERS = 512
LARGEST_BEAM = 256
AUTO = "auto"
"""The language of the prompt with which a model finds out by itself what is spoken."""


@dataclass(frozen=True)
class LanguagePrompt:
    """Which prompt stands for a language, a tag such as "de-DE" or `AUTO`."""

    language: str
    prompt: int


@dataclass(frozen=True)
class PromptConfig:
    """Language prompts: one-hot of `count` beside each encoder frame, through a two-layer net.

    `languages` are those that can be asked for; several may share a prompt.
    """

    count: int = 128
    hidden: int = 2048
    default: int = 101
    languages: tuple[LanguagePrompt, ...] = ()

    def __post_init__(self) -> None:
        prompts = (self.default, *(known.prompt for known in self.languages))
        if min(self.count, self.hidden) < 1 or min(prompts) < 0 or max(prompts) >= self.count:
            raise OptionError(
                f"{self.count} prompts through {self.hidden} units, numbered {min(prompts)} to "
                f"{max(prompts)}: out of range"
            )

    def of(self, language: str) -> LanguagePrompt | None:
        """The prompt of a language by its tag or, for "de", of the first region that speaks it."""
        tag = language.lower().replace("_", "-")
        for known in self.languages:
            if known.language.lower() == tag:
                return known
        return next((k for k in self.languages if k.language.lower().startswith(f"{tag}-")), None)


@dataclass(frozen=True)
class AsrConfig:
    """Everything needed to build the model but its weights and its tokenizer.

    `beam` is the number of hypotheses that the transducer follows through a recording by default;
    live streams are searched greedily, because a beam emits words later.
    `rescoring` is how much the CTC head counts wherever the transducer has a beam (see `Decoding`).
    """

    vocab_size: int
    features: FeatureConfig
    encoder: EncoderConfig
    transducer: TransducerConfig | None = None
    ctc: bool = False
    prompts: PromptConfig | None = None
    max_symbols: int = 10
    beam: int = 1
    rescoring: float = 0.0
    language: str | None = None
    name: str = "unnamed"

    def __post_init__(self) -> None:
        if self.transducer is None and not self.ctc:
            raise OptionError("a model needs a transducer, a CTC head or both")
        if self.transducer is not None and self.transducer.vocab_size != self.vocab_size:
            raise OptionError("the transducer's vocabulary differs from the model's")
        if self.vocab_size < 1 or self.max_symbols < 1:
            raise OptionError(
                f"vocab_size is {self.vocab_size} and max_symbols {self.max_symbols}, "
                "expected 1 or more"
            )
        layers = self.encoder.layers
        if self.transducer is not None:
            layers = max(layers, self.transducer.predictor_layers)
        if layers > MOST_LAYERS:
            raise OptionError(f"a network of {layers} layers, expected at most {MOST_LAYERS}")
        if self.encoder.left_context is not None and self.encoder.left_context < 1:
            raise OptionError(f"left context is {self.encoder.left_context}, expected 1 or more")
        if not 1 <= self.beam <= LARGEST_BEAM:
            raise OptionError(f"a beam is 1 to {LARGEST_BEAM} hypotheses wide, not {self.beam}")
        if self.rescoring and (self.transducer is None or not self.ctc):
            raise OptionError("rescoring needs a transducer and a CTC head")
        if not 0 <= self.rescoring <= 10:
            raise OptionError(f"rescoring must be 0 to 10, not {self.rescoring}")
        if self.features.n_mels != self.encoder.n_mels:
            raise OptionError(
                f"features have {self.features.n_mels} mel bins, "
                f"the encoder expects {self.encoder.n_mels}"
            )

    @property
    def streams(self) -> bool:
        """Whether the model can listen live: features normalized over a recording need it whole."""
        return self.encoder.streams and self.features.normalize == "none"

    @property
    def frame_seconds(self) -> float:
        """Seconds of audio per encoder frame."""
        return self.encoder.subsampling_factor * self.features.hop_seconds

    @property
    def latencies_ms(self) -> dict[int, int]:
        """Latency mode in milliseconds -> lookahead in encoder frames."""
        modes = sorted(self.encoder.lookaheads)
        return {round((r + 1) * self.frame_seconds * 1000): r for r in modes}

    def lookahead(self, latency_ms: int | None) -> int | None:
        """The lookahead of a latency mode, of the longest for None. OptionError if unknown."""
        modes = self.latencies_ms
        if latency_ms is None:
            return max(modes.values(), default=None)
        if latency_ms not in modes:
            known = ", ".join(map(str, modes)) or "none: this model does not stream"
            raise OptionError(f"latency {latency_ms} ms is not a mode of this model ({known})")
        return modes[latency_ms]

    def grid(self, lookahead: int) -> ChunkGrid:
        """The chunks of a stream at this lookahead; raises OptionError if unsupported."""
        chunk = self.encoder.chunk(lookahead)
        return ChunkGrid(chunk, self.encoder.subsampling_factor, self.features)

    def choose(self, language: str) -> LanguagePrompt | None:
        """The prompt of a language, None for the only language of a model without prompts;
        OptionError naming the languages that the model has."""
        if self.prompts is None or not self.prompts.languages:
            if language.lower() != AUTO and not _speaks(self.language, language):
                raise OptionError(
                    f"{self.name} does not support {language!r}; "
                    + (
                        "it states no language, remove this option"
                        if self.language is None
                        else f"it speaks only {self.language!r}"
                    )
                )
            return None
        chosen = self.prompts.of(language)
        if chosen is None:
            known = ", ".join(sorted(prompt.language for prompt in self.prompts.languages))
            raise OptionError(f"{self.name} has no language {language!r}; it has {known}")
        return chosen

    def prompt(self, language: str | None) -> int:
        """The number of a language's prompt, for None of the default; 0 without prompts.
        OptionError naming the languages that the model has."""
        chosen = None if language is None else self.choose(language)
        if chosen is not None:
            return chosen.prompt
        return 0 if self.prompts is None else self.prompts.default

    def with_language(self, language: str) -> "AsrConfig":
        """The same configuration with that default language; OptionError as `choose`."""
        chosen = self.choose(language)
        if chosen is None or self.prompts is None:
            return self
        return dataclasses.replace(
            self,
            language=None if chosen.language == AUTO else chosen.language,
            prompts=dataclasses.replace(self.prompts, default=chosen.prompt),
        )


def _speaks(own: str | None, requested: str) -> bool:
    """Whether a model of one language covers the requested one: "en" covers "en-US"."""
    return own is not None and (
        own.lower().split("-")[0] == requested.lower().replace("_", "-").split("-")[0]
    )


class PromptProjector(nn.Module):
    """Encoder frames with a language prompt beside them: (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, config: PromptConfig) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(dim + config.count, config.hidden)
        self.down = nn.Linear(config.hidden, dim)

    def forward(self, frames: Tensor, prompts: Tensor | None = None) -> Tensor:
        """`prompts` (B,) are the rows' prompts, by default the model's."""
        D = frames.shape[-1]
        # Of the product with a one-hot vector remains one column: a bias per language.
        biases = self.up.bias[:, None] + self.up.weight[:, D:]  # (hidden, count)
        default = self.config.default
        bias = biases[:, default : default + 1] if prompts is None else biases[:, prompts]
        hidden = nn.functional.linear(frames, self.up.weight[:, :D]) + bias.T[:, None]
        return self.down(torch.relu(hidden))


class AsrModel(nn.Module):
    """Features, encoder and heads of one recognizer."""

    def __init__(self, config: AsrConfig) -> None:
        super().__init__()
        self.config = config
        with torch.device("cpu"):  # constants that are computed, so also a meta model has them
            self.features = MelFeatures(config.features)
        self.encoder = FastConformerEncoder(config.encoder)
        self.prompt: PromptProjector | None = None
        self.predictor: Predictor | None = None
        self.joiner: Joiner | None = None
        self.ctc: CtcHead | None = None
        if config.prompts is not None:
            self.prompt = PromptProjector(config.encoder.dim, config.prompts)
        if config.transducer is not None:
            self.predictor = Predictor(config.transducer)
            self.joiner = Joiner(config.encoder.dim, config.transducer)
        if config.ctc:
            self.ctc = CtcHead(config.encoder.dim, config.vocab_size)

    def set_language(self, language: str) -> None:
        """Make that the default language; OptionError naming those it has. Mutates the model.

        A stream or call may have another one: see the prompts of `Decoder` and `PromptProjector`.
        """
        self.config = self.config.with_language(language)
        if self.prompt is not None and self.config.prompts is not None:
            self.prompt.config = self.config.prompts

    @property
    def device(self) -> torch.device:
        return self.encoder.subsampling.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.subsampling.weight.dtype

    def parameter_count(self) -> int:
        """Weights, packed ones included."""
        packed = sum(
            m.in_features * m.out_features
            for m in self.modules()
            if isinstance(m, (PackedLinear, Int8Linear))
        )
        return packed + sum(p.numel() for p in self.parameters())


def save_model(
    folder: Path, model: AsrModel, tokenizer: Tokenizer, dtype: torch.dtype | None = None
) -> None:
    """Write the model folder; `dtype` stores weights narrower than they are computed.

    It is a floating type, or torch.int8 for the matrices of linear layers; see `stored`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_store(model, dtype), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {"format": FORMAT_VERSION, **dataclasses.asdict(model.config)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / TOKENIZER_FILES[tokenizer.kind]).write_bytes(tokenizer.to_bytes())


def load_model(folder: Path) -> tuple[AsrModel, Tokenizer]:
    """Read a model folder written by `save_model`, weights in float32.

    Raises CheckpointError for anything missing, unknown, of the wrong shape or unreadable.
    """
    config = read_config(folder / CONFIG_FILE)
    tokenizer = read_tokenizer(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}; copy the whole model folder")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fetch it again") from error
    return build(config, from_store(weights, str(path)), str(folder)), tokenizer


def build(config: AsrConfig, weights: dict[str, Tensor], source: str) -> AsrModel:
    """A model in evaluation mode from named tensors, each used exactly once.

    Raises CheckpointError naming tensors that are missing, left over or of another shape.
    """
    with torch.device("meta"):
        model = AsrModel(config)
    expected = {name: t.shape for name, t in model.state_dict().items()}
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{source}: the weights do not belong to its configuration"
            + (f"; missing: {_some(missing)}" if missing else "")
            + (f"; unknown: {_some(unknown)}" if unknown else "")
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(weights[name].shape)}, "
                f"its configuration says {tuple(shape)}"
            )
        if not bool(weights[name].float().sum().isfinite()):  # far cheaper than a look at each
            raise CheckpointError(
                f"{source}: {name} holds NaN or infinite numbers; train or fetch it again"
            )
    model.load_state_dict({name: t.float() for name, t in weights.items()}, assign=True)
    return model.eval()


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder; CheckpointError if there is none, or a damaged one."""
    sentencepiece, huggingface = (folder / name for name in TOKENIZER_FILES.values())
    readers = {
        sentencepiece: Tokenizer.from_sentencepiece,
        huggingface: Tokenizer.from_hf_json,
    }
    for path, read in readers.items():
        if path.is_file():
            try:
                return read(path.read_bytes())
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(f"{folder} has neither {sentencepiece.name} nor {huggingface.name}")


def read_config(path: Path) -> AsrConfig:
    """`config.json` -> AsrConfig; unknown or missing keys are a CheckpointError."""
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            raise CheckpointError(f"{path} is too large to be a configuration")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}: not a model folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is not a pianissimo model of format {FORMAT_VERSION}; update the package "
            "or convert the model again"
        )
    try:
        return from_json(AsrConfig, data, path.name)
    except OptionError as error:
        raise CheckpointError(f"{path}: {error}") from error


T = TypeVar("T")


def from_json(kind: type[T], data: Any, where: str) -> T:
    """A frozen dataclass from a JSON object, strictly: no unknown key, no missing one."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} is not an object")
    unknown = sorted(data.keys() - fields.keys())
    if unknown:
        raise CheckpointError(f"{where} has unknown keys: {_some(unknown)}")
    missing = [
        name for name, f in fields.items() if name not in data and f.default is dataclasses.MISSING
    ]
    if missing:
        raise CheckpointError(f"{where} lacks: {_some(missing)}")
    values = {name: _value(hints[name], v, f"{where}: {name}") for name, v in data.items()}
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _value(next(o for o in options if o is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is typing.Literal:
        if value not in options:
            raise CheckpointError(f"{where} is {value!r}, expected one of {list(options)}")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise CheckpointError(f"{where} is {value!r}, expected a list")
        return tuple(_value(options[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise CheckpointError(f"{where} is {value!r}, expected {hint.__name__}")
    if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
        raise CheckpointError(f"{where} is {value!r}, expected at most {LARGEST_NUMBER}")
    return value


def _some(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
