"""The models of a server: loaded versions, the choice for each client, and changes while serving.

A model is served under a name and read from a source; only names and sources that the operator
configured at the start are opened. Each use of a model holds a lease on one loaded version. A swap
reads the source again: new leases get the new version, the old one is closed with its last lease.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Required, TypedDict, Unpack

import numpy as np

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.decoding.hotwords import Boost
from pianissimo.engine.engine import Engine, StreamingRecognizer
from pianissimo.engine.segmented import SegmentedEngine
from pianissimo.errors import ModelError, ModelNotFoundError, OptionError, StateError
from pianissimo.protocols import LanguageChoice
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.errors import Refusal
from pianissimo.serve.settings import Settings, parse_source
from pianissimo.serve.versions.experiments import Caller, Experiment
from pianissimo.serve.written import WrittenForm
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules, WatchdogRules

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer
    from pianissimo.streaming.session import Session

ALIASES = re.compile(
    r"pianissimo|whisper-1|gpt-((4o|4o-mini|live)-)?transcribe(-[\w.-]+)?|gpt-realtime.*", re.I
)
"""Default names of clients of other servers; here they select the default model."""
DEFAULT_ALIAS = "pianissimo"
"""An experiment of this name also gets clients that name no model, or one of the aliases."""
DRAIN_SECONDS = 0.05
"""How often a replaced model is checked for remaining leases."""
TRIAL_SECONDS = 120.0
"""How long a new model may take for a second of silence before it is refused."""

log = logging.getLogger(__name__)


class OpenOptions(TypedDict, total=False):
    """Options of a stream, as `Engine.open` takes them."""

    sample_rate: Required[int]
    latency_ms: int | None
    endpoint: EndpointRules | None
    watchdog: WatchdogRules | None
    boost: Boost
    second_pass: bool | None
    language: str | None
    state: bytes | None


class ServedModel:
    """One loaded version of a model: recognizer, engine and the count of leases."""

    def __init__(self, name: str, version: int, recognizer: "Recognizer", slots: int) -> None:
        self.name, self.version, self.recognizer = name, version, recognizer
        self.engine = _engine(recognizer, slots)
        self.leases = 0
        self.loaded_at = time.time()

    @property
    def language(self) -> str | None:
        """The language of a model with a single language."""
        return self.recognizer.language

    @property
    def alive(self) -> bool:
        return self.engine.alive

    @property
    def in_use(self) -> bool:
        return self.leases > 0 or self.engine.stats.streams > 0

    @property
    def latencies_ms(self) -> tuple[int, ...]:
        """The latency modes of its streams; none if it transcribes segments between pauses."""
        capabilities = self.recognizer.capabilities
        return capabilities.latencies_ms if capabilities.batched_streams else ()

    def spoken(self, *languages: str | None) -> str | None:
        """What a client says about the language, as the model is told: None where it has no choice.

        Raises OptionError if the model supports none of the languages.
        """
        given = [each for each in languages if each and each.lower() not in ("auto", "multi")]
        decoder = self.engine.model.decoder if isinstance(self.engine, Engine) else None
        if decoder is None or decoder.prompts == 1 or not given:
            self.check_languages(given)
            return None
        for code in (given[0], given[0].replace("_", "-").split("-")[0]):
            try:
                decoder.prompt(code)
                return code
            except OptionError:
                continue
        decoder.prompt(given[0])  # its error names the languages that the model has
        return None

    def written_form(self, language: str | None) -> WrittenForm:
        """The written form of its texts in a language of `spoken`; raises as `WrittenForm.of`."""
        return WrittenForm.of(language or self.language)

    def recognizer_for(self, language: str | None) -> "Recognizer":
        """The recognizer for recordings in a language of `spoken`, which it may have to find."""
        if language is None or not isinstance(self.recognizer, LanguageChoice):
            return self.recognizer
        return self.recognizer.in_language(language)

    def check_languages(self, languages: Sequence[str]) -> None:
        """Raises OptionError if the model supports none of the languages."""
        known = self.language
        if not languages or known is None:
            return
        base = {language.lower().replace("_", "-").split("-")[0] for language in languages}
        if base.isdisjoint({known.lower().split("-")[0], "auto", "multi"}):
            raise OptionError(
                f"{self.name} supports {known!r} only, not {', '.join(languages)!r}; "
                "omit the language, or choose another model"
            )

    def latency(self, latency_ms: int | None) -> int | None:
        """The latency mode for a requested one, or for none; raises OptionError.

        None for a model without modes.
        """
        if isinstance(self.engine, SegmentedEngine):
            if latency_ms is not None:
                raise OptionError(
                    f"{self.name} has no latency modes: it transcribes segments between pauses; "
                    "omit the latency, or choose a streaming model"
                )
            return None
        grid = self.engine.model.grid(self.engine.recognizer.live_lookahead(latency_ms))
        return round(grid.chunk_seconds * 1000)

    def open(self, **options: Unpack[OpenOptions]) -> "Session":
        """Open a stream of the engine; see `Engine.open`. Slow with many phrases to boost."""
        options["latency_ms"] = self.latency(options.get("latency_ms"))
        if isinstance(self.engine, SegmentedEngine):
            if options.pop("state", None) is not None:
                raise StateError(
                    f"a stream of {self.name} cannot be resumed, because it is an offline model; "
                    "open a new stream"
                )
            # Latency, second pass and watchdog belong to streaming models.
            return self.engine.open(
                sample_rate=options["sample_rate"],
                endpoint=options.get("endpoint", ENDPOINT),
                boost=options.get("boost"),
            )
        return self.engine.open(**options)

    def hints(self, phrases: Boost) -> Boost:
        """The phrases that the model can boost; the others are dropped. Slow, as `open` is."""
        if not phrases or self._can_boost(phrases):
            return phrases
        known = [phrase for phrase in phrases if self._can_boost([phrase])]
        left = len(phrases) - len(known)
        log.debug("%s: %d of %d phrases cannot be boosted", self.name, left, len(phrases))
        return known

    def _can_boost(self, phrases: Boost) -> bool:
        try:
            self.recognizer.boosted(phrases)
        except OptionError:
            return False
        return True

    def try_out(self) -> None:
        """Transcribe a second of silence, so that a broken model never replaces a working one."""
        silence = np.zeros(SAMPLE_RATE, np.float32)
        if not self.recognizer.capabilities.batched_streams:  # segments have no silence
            self.recognizer.transcribe(silence, sample_rate=SAMPLE_RATE)
            return
        with self.open(sample_rate=SAMPLE_RATE) as session:
            session.push(silence)
            session.finish()
            while session.get(timeout=TRIAL_SECONDS) is not None:
                pass

    def close(self) -> None:
        self.engine.close()


def _engine(recognizer: "Recognizer", slots: int) -> Engine | SegmentedEngine:
    capabilities = recognizer.capabilities
    if capabilities.batched_streams:
        assert isinstance(recognizer, StreamingRecognizer)
        return Engine(recognizer, max_streams=slots)
    partials = recognizer if capabilities.streams else None
    return SegmentedEngine(recognizer, max_streams=slots, partials=partials)


@dataclass(frozen=True)
class ModelChoice:
    """The name of a chosen model, and the experiment that assigned it, "" if none."""

    name: str
    experiment: str = ""


@dataclass
class Lease:
    """The use of one loaded version of a model; `release` may be called more than once."""

    model: ServedModel
    experiment: str = ""
    shadow: ServedModel | None = None
    """The shadow for this use, if there is one; its user holds a lease of its own."""
    account: Account | None = None
    """Of the client; None for the work of a shadow."""
    _held: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.model.leases += 1

    def release(self) -> None:
        self.model.leases -= self._held
        self._held = False

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *reason: object) -> None:
        self.release()


@dataclass(frozen=True)
class ShadowRule:
    """`model` shadows a `share` of the sessions of model `of`, or of all other models."""

    model: str
    of: str | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise OptionError("the share of a shadow must be above 0 and at most 1")
        if self.of == self.model:
            raise OptionError("a model cannot be its own shadow")


class Store:
    """All models of one server. Used by the event loop's thread only."""

    def __init__(
        self, settings: Settings, recognizers: "Mapping[str, Recognizer]", slots: int
    ) -> None:
        self._settings, self._slots = settings, slots
        self._places = places(settings, recognizers)
        self._versions = dict.fromkeys(recognizers, 1)
        self.models = {
            name: ServedModel(name, 1, recognizer, slots)
            for name, recognizer in recognizers.items()
        }
        self.default = next(iter(self.models))
        self.experiments: dict[str, Experiment] = {}
        self.shadow: ShadowRule | None = None
        self.retired: list[ServedModel] = []
        self.on_retired: Callable[[ServedModel], None] = lambda model: None
        self._changing: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # -- clients -----------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a client may request, the default first."""
        return (*self.models, *self.experiments)

    @property
    def unloaded(self) -> tuple[str, ...]:
        """Names of models that can be loaded."""
        return tuple(name for name in self._places if name not in self.models)

    def place(self, name: str) -> str | None:
        """The source of a model; "" for one that was passed in and cannot be reloaded."""
        return self._places.get(name, "")

    def fault(self) -> str | None:
        """The reason that not all models serve; None if they do."""
        dead = [name for name, model in self.models.items() if not model.alive]
        return f"the engine of {', '.join(dead)} stopped; swap the model" if dead else None

    def choose(self, name: str | None, caller: Caller, *, lenient: bool = False) -> ModelChoice:
        """The model for a requested name, or for none.

        An unknown name raises ModelNotFoundError; with `lenient` it is ignored.
        """
        if lenient and name and not self._is_known(name):
            name = None
        if name and (model := self._known(name)) is not None:
            return ModelChoice(model)
        alias = self._experiment(name)
        if alias is not None:
            return ModelChoice(self.experiments[alias].arm(alias, caller), alias)
        if not name or ALIASES.fullmatch(name):
            return ModelChoice(self.default)
        raise ModelNotFoundError(
            f"unknown model {name!r}; GET /v1/models lists the models of this server"
        )

    def _is_known(self, name: str) -> bool:
        return self._known(name) is not None or self._experiment(name) is not None

    def _known(self, name: str) -> str | None:
        for model in self.models:
            if name.lower() in (model.lower(), model.rpartition("/")[2].lower()):
                return model
        return None

    def _experiment(self, name: str | None) -> str | None:
        for alias in self.experiments:
            if name and name.lower() == alias.lower():
                return alias
        usual = not name or ALIASES.fullmatch(name)
        return DEFAULT_ALIAS if usual and DEFAULT_ALIAS in self.experiments else None

    def lease(
        self, choice: ModelChoice, session: str = "", account: Account | None = None
    ) -> Lease:
        """Lease the current version of a model; `session` decides about its shadow."""
        model = self.models.get(choice.name)
        if model is None:
            raise ModelNotFoundError(f"{choice.name} was unloaded; choose another model")
        return Lease(model, choice.experiment, self._shadow_of(choice.name, session), account)

    def _shadow_of(self, name: str, session: str) -> ServedModel | None:
        rule = self.shadow
        if rule is None or rule.model == name or rule.of not in (None, name):
            return None
        draw = Experiment({"heard": rule.share, "not": 1 - rule.share}, by="session")
        shadowed = draw.arm(f"shadow {rule.model}", Caller(session)) == "heard"
        return self.models.get(rule.model) if shadowed else None

    # -- changes -----------------------------------------------------------------------------------

    async def load(self, name: str) -> ServedModel:
        """Load a configured model that is not loaded."""
        self._listed(name)
        if name in self.models:
            raise Refusal(409, f"{name} is loaded; swap it to reload it", "model_loaded")
        return await self._renew(name)

    async def swap(self, name: str) -> ServedModel:
        """Reload a model; open streams keep the old version."""
        self._listed(name)
        if name not in self.models:
            raise Refusal(409, f"{name} is not loaded; load it", "model_not_loaded")
        return await self._renew(name)

    def unload(self, name: str) -> None:
        """Offer a model to no new client; it is closed with its last lease."""
        self._listed(name)
        if name not in self.models:
            raise Refusal(409, f"{name} is not loaded", "model_not_loaded")
        used = [alias for alias, split in self.experiments.items() if name in split.weights]
        if name == self.default:
            raise Refusal(409, f"{name} is the default model; swap it instead", "model_in_use")
        if used or (self.shadow is not None and name in (self.shadow.model, self.shadow.of)):
            what = f"the split {used[0]}" if used else "the shadow"
            raise Refusal(409, f"{name} is part of {what}; change that first", "model_in_use")
        self._retire(self.models.pop(name))

    def set_experiment(self, alias: str, experiment: Experiment) -> None:
        """Split the clients that request `alias`, until it is changed."""
        if self._known(alias) is not None:
            raise Refusal(409, f"{alias} is a model; give the split another name", "name_in_use")
        for name in experiment.weights:
            self._loaded(name)
        self.experiments[alias] = experiment

    def set_shadow(self, rule: ShadowRule | None) -> None:
        if rule is not None:
            self._loaded(rule.model)
            if rule.of is not None:
                self._loaded(rule.of)
        self.shadow = rule

    async def close(self) -> None:
        """Close all engines, including those with open streams."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for model in (*self.models.values(), *self.retired):
            await asyncio.to_thread(model.close)

    def _listed(self, name: str) -> None:
        if name not in self._places and name not in self.models:
            raise ModelNotFoundError(f"the server was not started with a model {name!r}")

    def _loaded(self, name: str) -> None:
        self._listed(name)
        if name not in self.models:
            raise Refusal(409, f"{name} is not loaded; load it first", "model_not_loaded")

    async def _renew(self, name: str) -> ServedModel:
        if name not in self._places:
            raise Refusal(409, f"{name} has no source to reload from", "fixed")
        if self._changing is not None:
            raise Refusal(409, f"{self._changing} is being loaded; try again later", "busy")
        self._changing = name
        try:
            model = await asyncio.to_thread(self._read, name, self._versions.get(name, 0) + 1)
        finally:
            self._changing = None
        self._versions[name] = model.version
        before, self.models[name] = self.models.get(name), model
        if before is not None:
            self._retire(before)
        log.info("%s: version %d serves", name, model.version)
        return model

    def _read(self, name: str, version: int) -> ServedModel:
        recognizer = read(self._settings, self._places[name])
        model = ServedModel(name, version, recognizer, self._slots)
        try:
            model.try_out()
        except BaseException as error:
            model.close()
            raise ModelError(
                f"Reloading {name} from {self.place(name)} failed ({error}); "
                "the running version is unchanged."
            ) from error
        return model

    def _retire(self, model: ServedModel) -> None:
        self.retired.append(model)
        task = asyncio.create_task(self._let_go(model))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_go(self, model: ServedModel) -> None:
        while model.in_use:
            await asyncio.sleep(DRAIN_SECONDS)
        await asyncio.to_thread(model.close)
        self.retired.remove(model)
        self.on_retired(model)
        log.info("%s: version %d is closed", model.name, model.version)


# -- reading ---------------------------------------------------------------------------------------


def read(settings: Settings, place: str | None) -> "Recognizer":
    from pianissimo.zoo.load import load

    return load(place, device=settings.device, dtype=settings.dtype, gain=settings.gain)


def read_all(settings: Settings) -> "dict[str, Recognizer]":
    """The recognizers in the settings, by the names they are served under.

    Raises what `load` raises, and OptionError for two models of one name.
    """
    recognizers: dict[str, Recognizer] = {}
    for text in settings.models or (None,):
        name, place = parse_source(text)
        recognizer = read(settings, place)
        name = name or recognizer.name
        if name in recognizers:
            raise OptionError(f"two models have the name {name}; name them: --model NAME=MODEL")
        recognizers[name] = recognizer
    return recognizers


def places(settings: Settings, recognizers: Mapping[str, object]) -> dict[str, str | None]:
    """The source of each loadable model, by name.

    Recognizers that were passed in without a source in the settings have none.
    """
    sources = [parse_source(text) for text in settings.models or (None,)]
    found: dict[str, str | None] = {}
    if len(sources) == len(recognizers):
        found = {
            known: place
            for known, (name, place) in zip(recognizers, sources, strict=True)
            if name in (None, known) and (place is not None or settings.models)
        }
    for text in settings.spare_models:
        name, place = parse_source(text)
        assert name is not None, "the settings see to that"
        if name in recognizers:
            raise OptionError(
                f"two models have the name {name}; name them: --spare-model NAME=MODEL"
            )
        found[name] = place
    return found
