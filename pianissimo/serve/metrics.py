"""Metrics for Prometheus: the server's own, and those of its engines, read on request."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pianissimo.engine.engine import Engine
from pianissimo.engine.segmented import SegmentedEngine

if TYPE_CHECKING:
    from pianissimo.agent.polish import Polish
    from pianissimo.serve.access.accounts import Account
    from pianissimo.serve.access.seats import Queue, Seats
    from pianissimo.serve.versions.store import Lease, ServedModel, Store

Engines: TypeAlias = dict[str, list[Engine | SegmentedEngine]]
FIRST_AUDIO_BUCKETS = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
FINAL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
QUANTILES = (0.5, 0.99)
MARGIN_SECONDS = 60.0
"""Window of the real-time margin."""
TOTALS = {
    "streams_opened": "opened",
    "streams_failed": "failed",
    "steps": "steps",
    "step_seconds": "step_seconds",
    "chunks": "chunks",
    "finals": "finals",
    "tokens": "tokens",
    "watchdog_replays": "replays",
}
"""Name of a counter -> the field of `EngineStats`."""


KEY_TOTALS = {
    "requests": "requests",
    "streams_opened": "streams_opened",
    "audio_seconds": "audio_seconds",
    "limited": "refused",
}
"""Name of a counter -> the field of `Account`."""


class Metrics:
    """The metrics of one server, in their own registry.

    `model` is the name a model is served under, in any version; `experiment` is the split that
    assigned the client to it, "" if none.
    """

    def __init__(self, store: "Store", accounts: "Sequence[Account]") -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pianissimo_requests",
            "Requests answered and sockets closed, by outcome",
            ["dialect", "outcome"],
            registry=self.registry,
        )
        self.sockets = Gauge(
            "pianissimo_sockets", "Sockets open now", ["dialect"], registry=self.registry
        )
        self.refusals = Counter(
            "pianissimo_refusals",
            "Sockets and requests refused: no seat, no valid key, draining, too many connections",
            ["dialect", "reason"],
            registry=self.registry,
        )
        self.sessions = Counter(
            "pianissimo_sessions",
            "Streams and recordings that were assigned a model",
            ["dialect", "model", "experiment"],
            registry=self.registry,
        )
        self.audio = Counter(
            "pianissimo_audio_seconds",
            "Seconds of audio accepted",
            ["dialect", "model", "experiment"],
            registry=self.registry,
        )
        self.time_to_final = Histogram(
            "pianissimo_time_to_final_seconds",
            "From a request for the final text until it is sent",
            ["dialect", "model", "experiment"],
            buckets=FINAL_BUCKETS,
            registry=self.registry,
        )
        self.resumed = Counter(
            "pianissimo_resumed", "Streams resumed on a new socket", registry=self.registry
        )
        self.checkpoints = Counter(
            "pianissimo_checkpoints",
            "States of streams for the state folder: stored, failed, or lost to another server",
            ["outcome"],
            registry=self.registry,
        )
        self.checkpoint_age = Gauge(
            "pianissimo_checkpoint_age_seconds",
            "Age of the oldest stored state of a stream that has changed since",
            registry=self.registry,
        )
        self.shadow_words = Counter(
            "pianissimo_shadow_words",
            "Words of a model that were compared with its shadow",
            ["model", "shadow"],
            registry=self.registry,
        )
        self.shadow_edits = Counter(
            "pianissimo_shadow_edits",
            "Word edits between a model and its shadow",
            ["model", "shadow"],
            registry=self.registry,
        )
        self.shadow_dropped = Counter(
            "pianissimo_shadow_dropped",
            "Streams and recordings that a shadow dropped",
            ["shadow", "reason"],
            registry=self.registry,
        )
        self.polish = PolishMetrics(self.registry)
        self.speech = SpeechMetrics(self.registry)
        self.agent = AgentMetrics(self.registry)
        self.draining = Gauge(
            "pianissimo_draining", "1 while the server drains", registry=self.registry
        )
        ProcessCollector(registry=self.registry)
        self._engines = _EngineCollector(store)
        self.registry.register(self._engines)
        self.registry.register(_AccountCollector(accounts))

    def show_capacity(self, seats: "Seats", files: "Queue") -> None:
        """Add gauges of live seats and of recordings, by which servers are scaled."""
        shown: dict[str, tuple[str, Callable[[], float]]] = {
            "seats": ("Seats for new live streams", lambda: seats.capacity),
            "seats_used": ("Seats in use, those of resumed streams included", lambda: seats.in_use),
            "resume_seats": ("Further seats for resumed streams", lambda: seats.reserve),
            "files_running": ("Recordings being transcribed", lambda: files.in_use),
            "files_waiting": ("Recordings waiting for a place", lambda: files.waiting),
        }
        for name, (meaning, value) in shown.items():
            gauge = Gauge(f"pianissimo_{name}", meaning, registry=self.registry)
            gauge.set_function(value)

    def began(self, dialect: str, lease: "Lease") -> None:
        self.sessions.labels(dialect, lease.model.name, lease.experiment).inc()

    def record_audio(self, dialect: str, lease: "Lease", seconds: float) -> None:
        self.audio.labels(dialect, lease.model.name, lease.experiment).inc(seconds)

    def final_after(self, dialect: str, lease: "Lease", seconds: float) -> None:
        labels = (dialect, lease.model.name, lease.experiment)
        self.time_to_final.labels(*labels).observe(seconds)

    def retired(self, model: "ServedModel") -> None:
        """A model was unloaded; its counters are kept."""
        self._engines.keep(model)

    def text(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


class PolishMetrics:
    """Revisions of texts by a language model."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.texts = Counter(
            "pianissimo_polished",
            "Texts revised by a language model: edited, unchanged, or failed",
            ["outcome"],
            registry=registry,
        )
        self.edits = Counter(
            "pianissimo_polish_edits",
            "Edits that the language model proposed: accepted or refused",
            ["outcome"],
            registry=registry,
        )

    def record(self, polish: "Polish") -> None:
        """Count what came of a revision."""
        outcome = "failed" if polish.failure else "edited" if polish.edits else "unchanged"
        self.texts.labels(outcome).inc()
        self.edits.labels("accepted").inc(len(polish.edits))
        self.edits.labels("refused").inc(polish.refused)


class SpeechMetrics:
    """What was synthesized, by dialect and voice."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Counter(
            "pianissimo_speech_seconds",
            "Seconds of audio synthesized",
            ["dialect", "voice"],
            registry=registry,
        )
        self._characters = Counter(
            "pianissimo_speech_characters",
            "Characters of the texts that were spoken",
            ["dialect", "voice"],
            registry=registry,
        )
        self._first_audio = Histogram(
            "pianissimo_time_to_first_audio_seconds",
            "From a text until its first audio is synthesized, waiting included",
            ["dialect", "voice"],
            buckets=FIRST_AUDIO_BUCKETS,
            registry=registry,
        )

    def began(self, dialect: str, voice: str, seconds: float, characters: int) -> None:
        """The first audio of a text was ready `seconds` after the text came."""
        self._first_audio.labels(dialect, voice).observe(seconds)
        self._characters.labels(dialect, voice).inc(characters)

    def produced(self, dialect: str, voice: str, seconds: float) -> None:
        """`seconds` of audio were synthesized."""
        self._seconds.labels(dialect, voice).inc(seconds)


class AgentMetrics:
    """Times and outcomes of the turns of spoken conversations."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stages = Histogram(
            "pianissimo_agent_stage_seconds",
            "Stages of an answer; voice_to_voice is from the last sound of the user to the first",
            ["stage"],
            buckets=FINAL_BUCKETS,
            registry=registry,
        )
        self._outcomes = Counter(
            "pianissimo_agent_events",
            "Answers by outcome, interruptions, discarded answers, and ends called too early",
            ["event"],
            registry=registry,
        )

    def stage(self, stage: str, seconds: float) -> None:
        self._stages.labels(stage).observe(seconds)

    def count(self, outcome: str) -> None:
        self._outcomes.labels(outcome).inc()


class _AccountCollector(Collector):
    """Usage by key name."""

    def __init__(self, accounts: "Sequence[Account]") -> None:
        self._accounts = accounts

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        streams = GaugeMetricFamily("pianissimo_key_streams", "Live now", labels=["key"])
        for account in self._accounts:
            streams.add_metric([account.name], account.streams)
        yield streams
        for counter, field in KEY_TOTALS.items():
            family = CounterMetricFamily(
                f"pianissimo_key_{counter}", "Since the start", labels=["key"]
            )
            for account in self._accounts:
                family.add_metric([account.name], getattr(account, field))
            yield family


class _EngineCollector(Collector):
    """Counters of the engines, read on request; the versions of a model are summed."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._gone: dict[str, dict[str, float]] = {}

    def describe(self) -> Iterable[Metric]:
        return ()

    def keep(self, model: "ServedModel") -> None:
        _add(self._gone.setdefault(model.name, {}), model.engine)

    def collect(self) -> Iterator[Metric]:
        loaded, retired = tuple(self._store.models.values()), tuple(self._store.retired)
        info = GaugeMetricFamily(
            "pianissimo_model_version",
            "Version of the model that serves new clients",
            labels=["model"],
        )
        alive = GaugeMetricFamily(
            "pianissimo_engine_alive", "1 while the engine runs", labels=["model"]
        )
        draining = GaugeMetricFamily(
            "pianissimo_models_draining",
            "Replaced versions that are still in use",
            labels=["model"],
        )
        engines: Engines = {name: [] for name in self._gone}
        for model in loaded:
            info.add_metric([model.name], model.version)
            alive.add_metric([model.name], model.alive)
            draining.add_metric([model.name], sum(old.name == model.name for old in retired))
        for model in (*loaded, *retired):
            engines.setdefault(model.name, []).append(model.engine)
        yield from (info, alive, draining)
        yield from self._totals(engines)
        yield self._delays(engines)
        yield self._ages(engines)
        yield self._margins(engines)

    def _totals(self, engines: Engines) -> Iterator[Metric]:
        streams = GaugeMetricFamily("pianissimo_engine_streams", "Live now", labels=["model"])
        totals = {name: dict(self._gone.get(name, {})) for name in engines}
        for name, found in engines.items():
            streams.add_metric([name], sum(engine.stats.streams for engine in found))
            for engine in found:
                _add(totals[name], engine)
        yield streams
        for counter in TOTALS:
            family = CounterMetricFamily(
                f"pianissimo_engine_{counter}", "Since the start", labels=["model"]
            )
            for name, values in totals.items():
                family.add_metric([name], values[counter])
            yield family

    def _delays(self, engines: Engines) -> Metric:
        family = GaugeMetricFamily(
            "pianissimo_engine_chunk_delay_seconds",
            "From a complete chunk to its tokens, over recent chunks",
            labels=["model", "latency_ms", "quantile"],
        )
        for name, found in engines.items():
            delays: dict[int, list[float]] = {}
            for engine in found:
                if isinstance(engine, SegmentedEngine):
                    continue  # it has no chunks
                with engine.lock:
                    measured = list(engine.stats.delays)
                for lookahead, delay in measured:
                    latency = round(engine.model.grid(lookahead).chunk_seconds * 1000)
                    delays.setdefault(latency, []).append(delay)
            for latency, values in sorted(delays.items()):
                values.sort()
                for quantile in QUANTILES:
                    value = values[min(len(values) - 1, int(quantile * len(values)))]
                    family.add_metric([name, str(latency), str(quantile)], value)
        return family

    def _ages(self, engines: Engines) -> Metric:
        family = GaugeMetricFamily(
            "pianissimo_engine_queue_age_seconds",
            "Waiting time of the oldest chunk or segment",
            labels=["model"],
        )
        for name, found in engines.items():
            if found:
                family.add_metric([name], max(engine.queue_age() for engine in found))
        return family

    def _margins(self, engines: Engines) -> Metric:
        """1 - waiting time / audio time; at 0 and below, streams fall behind their speakers."""
        family = GaugeMetricFamily(
            "pianissimo_engine_realtime_margin",
            "1 - waiting time / audio time of the chunks or segments of the last minute",
            labels=["model", "latency_ms"],
        )
        since = time.monotonic() - MARGIN_SECONDS
        for name, found in engines.items():
            sums: dict[str, tuple[float, float]] = {}
            for engine in found:
                segmented = isinstance(engine, SegmentedEngine)
                with engine.lock:
                    recent = [each for each in engine.stats.answered if each.at >= since]
                for each in recent:
                    latency = "" if segmented else str(round(each.seconds * 1000))
                    audio, waited = sums.get(latency, (0.0, 0.0))
                    sums[latency] = audio + each.seconds, waited + each.waited
            for latency, (audio, waited) in sorted(sums.items()):
                family.add_metric([name, latency], 1 - waited / audio)
        return family


def _add(totals: dict[str, float], engine: Engine | SegmentedEngine) -> None:
    with engine.lock:
        for counter, field in TOTALS.items():
            totals[counter] = totals.get(counter, 0.0) + getattr(engine.stats, field)
