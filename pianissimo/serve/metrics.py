"""What the server tells Prometheus: counters of its own, and the engine's when it is asked."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from pianissimo.streaming.engine import Engine

FINAL_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
QUANTILES = (0.5, 0.99)


class Metrics:
    """One server's numbers, in a registry of its own."""

    def __init__(self, engine: "Callable[[], Engine | None]") -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pianissimo_requests",
            "Requests answered, and sockets closed, by their outcome",
            ["dialect", "outcome"],
            registry=self.registry,
        )
        self.sockets = Gauge(
            "pianissimo_sockets", "Sockets open now", ["dialect"], registry=self.registry
        )
        self.refusals = Counter(
            "pianissimo_refusals",
            "Sockets and requests refused for want of a seat or a key",
            ["dialect", "reason"],
            registry=self.registry,
        )
        self.audio = Counter(
            "pianissimo_audio_seconds", "Audio taken in", ["dialect"], registry=self.registry
        )
        self.time_to_final = Histogram(
            "pianissimo_time_to_final_seconds",
            "From a client's request for the final text until it is sent",
            ["dialect"],
            buckets=FINAL_BUCKETS,
            registry=self.registry,
        )
        self.resumed = Counter(
            "pianissimo_resumed", "Streams taken up again on a new socket", registry=self.registry
        )
        self.registry.register(_EngineCollector(engine))

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """The engine's own counters, read when somebody asks."""

    def __init__(self, engine: "Callable[[], Engine | None]") -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        engine = self._engine()
        if engine is None:
            return
        with engine.lock:
            stats = engine.stats
            streams = stats.streams
            totals: dict[str, float] = {
                "streams_opened": stats.opened,
                "streams_failed": stats.failed,
                "steps": stats.steps,
                "step_seconds": stats.step_seconds,
                "chunks": stats.chunks,
                "finals": stats.finals,
                "tokens": stats.tokens,
                "watchdog_replays": stats.replays,
            }
            delays = list(stats.delays)
        yield GaugeMetricFamily("pianissimo_engine_streams", "Live now", streams)
        for name, value in totals.items():
            yield CounterMetricFamily(f"pianissimo_engine_{name}", "Since the start", value)
        yield self._delays(engine, delays)

    def _delays(self, engine: "Engine", delays: list[tuple[int, float]]) -> Metric:
        family = GaugeMetricFamily(
            "pianissimo_engine_chunk_delay_seconds",
            "From a complete chunk to its tokens, over the last chunks",
            labels=["latency_ms", "quantile"],
        )
        for lookahead in sorted({lookahead for lookahead, _ in delays}):
            found = sorted(delay for each, delay in delays if each == lookahead)
            latency = round(engine.model.grid(lookahead).chunk_seconds * 1000)
            for quantile in QUANTILES:
                value = found[min(len(found) - 1, int(quantile * len(found)))]
                family.add_metric([str(latency), str(quantile)], value)
        return family
