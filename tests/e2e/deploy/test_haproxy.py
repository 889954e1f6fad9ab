"""deploy/haproxy with two real servers: kills, tokens that name their server, what it costs."""

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from cutting import check_same, talk
from replicas import Replica, paced, replicas
from serving import RATE
from websockets.sync.client import ClientConnection, connect

CONFIGURATION = Path(__file__).parents[3] / "deploy" / "haproxy" / "haproxy.cfg"
OVERHEAD_SECONDS = 0.010
"""The most that the proxy may add to the median of a round trip."""

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(
        shutil.which("haproxy") is None, reason="needs haproxy (apt install haproxy)"
    ),
]


@contextmanager
def proxy(servers: list[Replica]) -> Iterator[int]:
    """HAProxy with the configuration that we ship, before the servers `a` and `b`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = [f"127.0.0.1:{server.port}" for server in servers]
    names = {"LISTEN": f"127.0.0.1:{port}", "SERVER_A": places[0], "SERVER_B": places[1]}
    running = subprocess.Popen(["haproxy", "-f", CONFIGURATION], env={**os.environ, **names})
    try:
        end = time.monotonic() + 20
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert running.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        yield port
    finally:
        running.kill()
        running.wait()


def start(stack: ExitStack, port: int) -> tuple[ClientConnection, str]:
    client = stack.enter_context(connect(f"ws://127.0.0.1:{port}/v1/stream"))
    client.send(json.dumps({"type": "start"}))
    return client, json.loads(client.recv(timeout=30))["stream"]


def test_streams_move_to_the_other_server_when_one_is_killed(tmp_path: Path) -> None:
    samples = talk()[: 16 * RATE]

    async def talk_through(port: int, servers: list[Replica]) -> None:
        whole, _ = await paced(servers[1].port, samples, 6.0, [])
        opened: list[list[float]] = [[] for _ in range(6)]
        jobs = [asyncio.create_task(paced(port, samples, 16.0, times)) for times in opened]
        await asyncio.sleep(8.0)
        at = time.monotonic()
        await asyncio.to_thread(servers[0].stop)
        for events, client in await asyncio.gather(*jobs):
            check_same(events, whole)
            assert client.restarts == 0
        moved = [times[1] - at for times in opened if len(times) > 1]
        print(f"{len(moved)} of 6 streams moved, the last after {max(moved):.2f} s")
        # leastconn gave each server its half.
        assert len(moved) == 3 and max(moved) <= 3.0

    with replicas(tmp_path, "a", "b") as servers, proxy(servers) as port:
        asyncio.run(talk_through(port, servers))


def test_a_token_finds_its_server_and_a_full_server_takes_resumed_streams(tmp_path: Path) -> None:
    options = ("--max-streams", "1", "--resume-seats", "1")
    with (
        replicas(tmp_path, "a", "b", options=options) as servers,
        proxy(servers) as port,
        ExitStack() as stack,
    ):
        clients = [start(stack, port) for _ in servers]
        assert {token[:2] for _, token in clients} == {"a.", "b."}
        time.sleep(2.5)  # both are full for new streams now, and known as such
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 503
        for client, token in clients:
            client.close()
            resume = json.dumps({"type": "resume", "stream": token, "events": 0})
            for query, headers in ((token, {}), ("", {"pianissimo-stream": token})):
                url = f"ws://127.0.0.1:{port}/v1/stream" + (f"?stream={query}" if query else "")
                with connect(url, additional_headers=headers) as again:
                    again.send(resume)
                    assert json.loads(again.recv(timeout=30))["type"] == "ready"
        for server, (_, token) in zip(servers, clients, strict=True):
            page = httpx.get(f"http://127.0.0.1:{server.port}/metrics").text
            assert 'pianissimo_checkpoints_total{outcome="lost"}' not in page, token
        # Killed with its seat in use: the other, full one has a seat in reserve.
        servers[0].stop()
        (token,) = (token for _, token in clients if token.startswith("a."))
        with connect(f"ws://127.0.0.1:{port}/v1/stream?stream={token}") as again:
            again.send(json.dumps({"type": "resume", "stream": token, "events": 0}))
            assert json.loads(again.recv(timeout=30))["type"] == "ready"


def test_the_proxy_costs_less_than_ten_milliseconds(tmp_path: Path) -> None:
    with (
        replicas(tmp_path, "a", "b") as servers,
        proxy(servers) as port,
        ExitStack() as stack,
    ):
        direct, through = start(stack, servers[0].port)[0], start(stack, port)[0]
        times: dict[str, list[float]] = {"direct": [], "proxy": []}
        for _ in range(200):
            for name, client in (("direct", direct), ("proxy", through)):
                began = time.perf_counter()
                assert client.ping(os.urandom(120)).wait(10)
                times[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(found) for name, found in times.items()}
        print({name: f"p50 {1000 * median:.2f} ms" for name, median in medians.items()})
        assert medians["proxy"] - medians["direct"] <= OVERHEAD_SECONDS
