"""The models of a server: which are loaded, which one a client gets, and changes while it serves.

A model is served under a name and read from a place; only names and places that the operator gave
at the start are ever opened. Whoever uses a model holds a lease on one loading of it. A swap reads
the place again: new leases are on the new weights, the old ones are let go with their last lease.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.decoding.hotwords import Boost
from pianissimo.engine.engine import Engine
from pianissimo.engine.segmented import SegmentedEngine
from pianissimo.errors import ModelError, ModelNotFoundError, OptionError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.errors import Refusal
from pianissimo.serve.settings import Settings, parse_source
from pianissimo.serve.versions.experiments import Caller, Experiment

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer
    from pianissimo.streaming.session import Session

ALIASES = re.compile(
    r"pianissimo|whisper-1|gpt-((4o|4o-mini|live)-)?transcribe(-[\w.-]+)?|gpt-realtime.*", re.I
)
"""Names that clients of other servers send by default; here they mean the default model."""
DEFAULT_ALIAS = "pianissimo"
"""An experiment of this name also gets whoever names no model, or one of the aliases."""
DRAIN_SECONDS = 0.05
"""How soon a model that was replaced is asked again whether somebody uses it."""
TRIAL_SECONDS = 120.0
"""What a new model may take for a second of silence before it is refused."""

log = logging.getLogger(__name__)


class ServedModel:
    """One loading of a model: recognizer, engine, and how many use it."""

    def __init__(self, name: str, version: int, recognizer: "Recognizer", slots: int) -> None:
        self.name, self.version, self.recognizer = name, version, recognizer
        self.engine = _engine(recognizer, slots)
        self.leases = 0
        self.loaded_at = time.time()

    @property
    def language(self) -> str | None:
        """The language of a model that knows only one."""
        return self.recognizer.language

    @property
    def alive(self) -> bool:
        return self.engine.alive

    @property
    def in_use(self) -> bool:
        return self.leases > 0 or self.engine.stats.streams > 0

    @property
    def latencies_ms(self) -> tuple[int, ...]:
        """The latency modes of its streams; none if they go from pause to pause."""
        capabilities = self.recognizer.capabilities
        return capabilities.latencies_ms if capabilities.batched_streams else ()

    def check_language(self, language: str | None) -> None:
        """Raises OptionError for a language that the model does not know."""
        self.check_languages([language] if language else [])

    def check_languages(self, languages: Sequence[str]) -> None:
        """Raises OptionError if the model knows none of the languages that may be spoken."""
        known = self.language
        if not languages or known is None:
            return
        base = {language.lower().replace("_", "-").split("-")[0] for language in languages}
        if base.isdisjoint({known.lower().split("-")[0], "auto", "multi"}):
            raise OptionError(
                f"{self.name} knows {known!r} only, not {', '.join(languages)!r}; "
                "leave the language out, or choose another model"
            )

    def latency(self, latency_ms: int | None) -> int | None:
        """The latency mode of a stream that asks for this one, or for none; raises OptionError.

        None for a model without modes.
        """
        if isinstance(self.engine, SegmentedEngine):
            if latency_ms is not None:
                raise OptionError(
                    f"{self.name} has no latency modes: it hears what was said between two pauses; "
                    "leave the latency out, or choose a streaming model"
                )
            return None
        grid = self.engine.model.grid(self.engine.recognizer.live_lookahead(latency_ms))
        return round(grid.chunk_seconds * 1000)

    def open(self, **options: Any) -> "Session":
        """A stream of the engine; see `Engine.open`. Many phrases to boost take a while."""
        options["latency_ms"] = self.latency(options.get("latency_ms"))
        return self.engine.open(**options)

    def hints(self, phrases: Boost) -> Boost:
        """Those of some phrases that the model can be told; a list of hints is no demand.

        Takes a while, as `open` does.
        """
        if not phrases or self._can_boost(phrases):
            return phrases
        known = [phrase for phrase in phrases if self._can_boost([phrase])]
        left = len(phrases) - len(known)
        log.debug("%s: %d of %d phrases are left out", self.name, left, len(phrases))
        return known

    def _can_boost(self, phrases: Boost) -> bool:
        try:
            self.recognizer.boosted(phrases)
        except OptionError:
            return False
        return True

    def try_out(self) -> None:
        """Hear a second of silence, so that what cannot work never replaces what does."""
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
    from pianissimo.recognizers.fastconformer import NativeRecognizer

    capabilities = recognizer.capabilities
    if capabilities.batched_streams:
        assert isinstance(recognizer, NativeRecognizer)
        return Engine(recognizer, max_streams=slots)
    partials = recognizer if capabilities.streams else None
    return SegmentedEngine(recognizer, max_streams=slots, partials=partials)


@dataclass(frozen=True)
class Choice:
    """A model that a client gets by its name, and the experiment it came through, "" if none."""

    name: str
    experiment: str = ""


@dataclass
class Lease:
    """The use of one loading of a model; `release` it once, more often does no harm."""

    model: ServedModel
    experiment: str = ""
    shadow: ServedModel | None = None
    """Hears the same, if there is one; it is leased by whoever uses it."""
    account: Account | None = None
    """Of the client; None for work that nobody asked for."""
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
    """`model` hears what `share` of the sessions of model `of` hear, or of every other model."""

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

    # -- for clients -------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """What a client may ask for, the default first."""
        return (*self.models, *self.experiments)

    @property
    def unloaded(self) -> tuple[str, ...]:
        """Names of models that can be loaded."""
        return tuple(name for name in self._places if name not in self.models)

    def place(self, name: str) -> str | None:
        """Where a model is read from; "" for one that was handed over and cannot be read again."""
        return self._places.get(name, "")

    def fault(self) -> str | None:
        """Why not all models serve; None if they do."""
        dead = [name for name, model in self.models.items() if not model.alive]
        return f"the engine of {', '.join(dead)} stopped; swap the model" if dead else None

    def choose(self, name: str | None, caller: Caller, *, lenient: bool = False) -> Choice:
        """The model for a client that asks for this name, or for none.

        A name that is neither ours nor a usual one raises ModelNotFoundError, or means none.
        """
        if lenient and name and not self._means_something(name):
            name = None
        if name and (model := self._known(name)) is not None:
            return Choice(model)
        alias = self._experiment(name)
        if alias is not None:
            return Choice(self.experiments[alias].arm(alias, caller), alias)
        if not name or ALIASES.fullmatch(name):
            return Choice(self.default)
        raise ModelNotFoundError(
            f"there is no model {name!r} here; GET /v1/models lists what there is"
        )

    def _means_something(self, name: str) -> bool:
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

    def lease(self, choice: Choice, session: str = "", account: Account | None = None) -> Lease:
        """The model as it is now; `session` says whether its shadow hears this one too."""
        model = self.models.get(choice.name)
        if model is None:
            raise ModelNotFoundError(f"{choice.name} is not loaded any more; choose another model")
        return Lease(model, choice.experiment, self._shadow_of(choice.name, session), account)

    def _shadow_of(self, name: str, session: str) -> ServedModel | None:
        rule = self.shadow
        if rule is None or rule.model == name or rule.of not in (None, name):
            return None
        draw = Experiment({"heard": rule.share, "not": 1 - rule.share}, by="session")
        heard = draw.arm(f"shadow {rule.model}", Caller(session)) == "heard"
        return self.models.get(rule.model) if heard else None

    # -- changes -----------------------------------------------------------------------------------

    async def load(self, name: str) -> ServedModel:
        """Load a model that the operator listed and that is not loaded."""
        self._listed(name)
        if name in self.models:
            raise Refusal(409, f"{name} is loaded; swap it to read it again", "model_loaded")
        return await self._renew(name)

    async def swap(self, name: str) -> ServedModel:
        """Read a loaded model again; old streams go on with the old weights."""
        self._listed(name)
        if name not in self.models:
            raise Refusal(409, f"{name} is not loaded; load it", "model_not_loaded")
        return await self._renew(name)

    def unload(self, name: str) -> None:
        """Give a model to nobody any more; it is gone when the last one has left."""
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
        """Split those who ask for `alias`, now and until it is changed."""
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
        """End all engines, also those of streams that are not over."""
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
            raise Refusal(
                409, f"{name} was not read from a place that could be read again", "fixed"
            )
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
                f"{name} does not work as it is at its place now ({error}); nothing was changed"
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
        log.info("%s: version %d is gone", model.name, model.version)


# -- reading ---------------------------------------------------------------------------------------


def read(settings: Settings, place: str | None) -> "Recognizer":
    from pianissimo.zoo.load import load

    return load(place, device=settings.device, dtype=settings.dtype, gain=settings.gain)


def read_all(settings: Settings) -> "dict[str, Recognizer]":
    """The recognizers that the settings ask for, by the names they are served under.

    Raises what `load` raises, and OptionError for two models of one name.
    """
    recognizers: dict[str, Recognizer] = {}
    for text in settings.models or (None,):
        name, place = parse_source(text)
        recognizer = read(settings, place)
        name = name or recognizer.name
        if name in recognizers:
            raise OptionError(f"two models are called {name}; name them: --model NAME=MODEL")
        recognizers[name] = recognizer
    return recognizers


def places(settings: Settings, recognizers: Mapping[str, object]) -> dict[str, str | None]:
    """Where each model that can be loaded is read from, by its name.

    Recognizers that were handed over without a place in the settings have none.
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
            raise OptionError(f"two models are called {name}; name them: --spare-model NAME=MODEL")
        found[name] = place
    return found
