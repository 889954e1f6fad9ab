"""OpenTelemetry spans: one for each utterance of a live stream (extra `otel`).

Spans hold no text. Where they go, and how many, is set by OpenTelemetry's own variables, such as
OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_TRACES_SAMPLER.
"""

import os
import time
from typing import TYPE_CHECKING

from pianissimo.errors import MissingExtraError
from pianissimo.serve.request_ids import current_request, current_traceparent
from pianissimo.transcript import StreamEvent

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

UTTERANCE = "pianissimo.utterance"


class Tracing:
    """The spans of one server, sent by `provider`."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("pianissimo")

    def stream(self, model: str, latency_ms: int | None) -> "StreamTrace":
        """The spans of a new stream, below the `traceparent` of its request if it has one."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {"traceparent": current_traceparent()}
        parent = TraceContextTextMapPropagator().extract(carrier)
        attributes: dict[str, str | int] = {"model": model, "request": current_request()}
        if latency_ms is not None:
            attributes["latency_ms"] = latency_ms
        return StreamTrace(self._tracer, parent, attributes)

    def close(self) -> None:
        """Send the spans that wait; it may take seconds."""
        self._provider.shutdown()


class StreamTrace:
    """One span for each final with text: from the first audio after the final before, to the time
    at which the server read this one."""

    def __init__(
        self, tracer: "Tracer", parent: "Context", attributes: dict[str, str | int]
    ) -> None:
        self._tracer, self._parent, self._attributes = tracer, parent, attributes
        self._began: int | None = None
        self._first_partial: int | None = None

    def pushed(self) -> None:
        """Audio was pushed."""
        if self._began is None:
            self._began = time.time_ns()

    def observe(self, event: StreamEvent) -> None:
        """An event of the stream was read."""
        if event.type == "partial" and self._first_partial is None:
            self._first_partial = time.time_ns()
        if event.type != "final":
            return
        if event.text and self._began is not None:
            span = self._tracer.start_span(
                UTTERANCE, self._parent, attributes=self._attributes, start_time=self._began
            )
            span.set_attribute("audio.seconds", round(event.end - event.start, 3))
            span.set_attribute("words", len(event.words))
            if event.reason is not None:
                span.set_attribute("reason", event.reason)
            if self._first_partial is not None:
                span.add_event("first_partial", timestamp=self._first_partial)
            span.end(time.time_ns())
        self._began = self._first_partial = None


def open_tracing() -> Tracing:
    """Spans to the collector that OpenTelemetry's variables name; MissingExtraError without it."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError(
            "--traces needs OpenTelemetry; install it with: pip install 'pianissimo[otel]'"
        ) from error
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    resource = Resource.create({} if named else {"service.name": "pianissimo"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
