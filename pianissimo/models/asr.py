"""The whole acoustic model: features, encoder, transducer and/or CTC head.

`models/checkpoints/model_folder.py` saves and loads it.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.errors import OptionError
from pianissimo.models.ctc import CtcHead
from pianissimo.models.fastconformer import EncoderConfig, FastConformerEncoder
from pianissimo.models.packed import Int8Linear, PackedLinear
from pianissimo.models.transducer import Joiner, Predictor, TransducerConfig
from pianissimo.streaming.grid import ChunkGrid

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
