"""Request ids: taken from a proxy, or made; in answers, and in every line of the log."""

import asyncio
import logging

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from pianissimo.serve.request_ids import RequestIds, add_request_id

log = logging.getLogger("test.requests")


async def page(request: Request) -> PlainTextResponse:
    await asyncio.create_task(said("a page"))
    return PlainTextResponse("done")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await said("a socket")
    await socket.close()


async def said(text: str) -> None:
    await asyncio.sleep(0)
    log.warning(text)


@pytest.fixture
def client(caplog: pytest.LogCaptureFixture) -> TestClient:
    caplog.handler.addFilter(add_request_id)
    app = Starlette(routes=[Route("/", page), WebSocketRoute("/talk", talk)])
    app.add_middleware(RequestIds)
    return TestClient(app)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.request, r.message) for r in caplog.records if r.name == log.name]  # type: ignore[attr-defined]


def test_the_id_of_a_proxy_is_in_the_answer_and_in_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.get("/", headers={"x-request-id": "proxy-7"}).headers["x-request-id"] == "proxy-7"
    with client.websocket_connect("/talk", headers={"x-request-id": "proxy-8"}) as socket:
        assert (b"x-request-id", b"proxy-8") in (socket.extra_headers or [])
        assert socket.receive()["type"] == "websocket.close"
    log.warning("outside")
    assert lines(caplog) == [("proxy-7", "a page"), ("proxy-8", "a socket"), ("-", "outside")]


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "é", 'a"b'])
def test_an_unusable_id_is_replaced(
    client: TestClient, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    headers = {"x-request-id": given.encode()} if given else {}
    names = [client.get("/", headers=headers).headers["x-request-id"] for _ in range(2)]
    assert all(len(name) == 16 for name in names) and names[0] != names[1]
    assert [name for name, _ in lines(caplog)] == names
