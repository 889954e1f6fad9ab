"""Spans of utterances, by the in-memory exporter of OpenTelemetry's SDK."""

import asyncio
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest

from pianissimo.errors import MissingExtraError
from pianissimo.serve.audio_in.pcm import PcmReader
from pianissimo.serve.feed import Feed
from pianissimo.serve.intake import Intake
from pianissimo.serve.request_ids import RequestIds
from pianissimo.serve.tracing import Tracing, open_tracing
from pianissimo.transcript import StreamEvent, Word

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel is not installed")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
WORDS = (Word("call", 1.0, 1.25, 0.9), Word("mum", 1.25, 1.5, 0.9))
EVENTS = [
    StreamEvent("partial", "call", (), 1.0, 1.25),
    StreamEvent("final", "call mum", WORDS, 1.0, 1.5, reason="endpoint"),
    StreamEvent("endpoint", "", (), 1.5, 1.5),
    StreamEvent("final", "", (), 2.0, 2.0, reason="finish"),
]


class Spoken:
    """A session that takes anything and says EVENTS."""

    ended = False
    slot = None

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        for event in EVENTS:
            yield event


class Taken(Intake):
    async def push(self, session: Any, piece: Any) -> None: ...


def served(tracing: Tracing, headers: list[tuple[bytes, bytes]]) -> None:
    """One stream within a request with these headers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with ThreadPoolExecutor(1) as threads:
            trace = tracing.stream("tiny", 160)
            session, reader = cast(Any, Spoken()), PcmReader("pcm_s16le")
            feed = Feed(session, reader, 16_000, threads, Taken(threads), trace=trace)
            await feed.push_samples(np.zeros(1600, np.int16))
            assert [event async for event in feed] == EVENTS

    scope = {"type": "websocket", "headers": headers}
    asyncio.run(RequestIds(app)(cast(Any, scope), cast(Any, None), cast(Any, None)))


def test_each_utterance_is_a_span_without_its_text() -> None:
    exporter, provider = in_memory.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    parent = f"00-{TRACE}-{PARENT}-01".encode()
    served(tracing, [(b"traceparent", parent), (b"x-request-id", b"one")])
    [span] = exporter.get_finished_spans()
    assert span.name == "pianissimo.utterance"
    assert dict(span.attributes) == {
        "model": "tiny",
        "request": "one",
        "latency_ms": 160,
        "audio.seconds": 0.5,
        "words": 2,
        "reason": "endpoint",
    }
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    [partial] = span.events
    assert span.start_time <= partial.timestamp <= span.end_time
    served(tracing, [])
    other = exporter.get_finished_spans()[1]
    assert other.parent is None and other.context.trace_id != span.context.trace_id


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingExtraError, match=r"pianissimo\[otel\]"):
        open_tracing()
