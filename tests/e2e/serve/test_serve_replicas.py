"""Servers that share a state folder: one is killed, or stopped and wakes up too late."""

import asyncio
import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from cutting import check_same, talk
from replicas import Replica, Router, paced, replicas
from serving import RATE, pcm, speech
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

ENDINGS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
RESUMED_SECONDS = 3.0
"""From the kill of a server until all of its streams are on the other one."""


async def killed(
    servers: list[Replica], streams: int, samples: list[np.ndarray], seconds: float, kill_at: float
) -> None:
    """Transcripts over the kill of the first server, against those without a kill."""
    wholes = await asyncio.gather(*(paced(servers[1].port, s, 0.5 * seconds, []) for s in samples))
    opened: list[list[float]] = [[] for _ in range(streams)]
    async with Router(servers).running() as port:
        jobs = [
            asyncio.create_task(paced(port, samples[i % len(samples)], seconds, opened[i]))
            for i in range(streams)
        ]
        await asyncio.sleep(kill_at)
        at = time.monotonic()
        await asyncio.to_thread(servers[0].stop)
        found = await asyncio.gather(*jobs)
    moved = [times for times in opened if len(times) > 1]
    assert moved and len(moved) < streams, "both servers had streams"
    for i, (events, client) in enumerate(found):
        whole, _ = wholes[i % len(samples)]
        assert len([e for e in whole if e.text]) >= 2
        check_same(events, whole)
        assert client.restarts == 0 and client.connections == len(opened[i]) <= 2
    latest = max(times[1] - at for times in moved)
    print(f"{len(moved)} of {streams} streams resumed, the last after {latest:.2f} s")
    assert latest <= RESUMED_SECONDS


def test_the_kill_of_a_server_changes_no_word(tmp_path: Path) -> None:
    samples = [talk()[: 12 * RATE]]
    with replicas(tmp_path, "a", "b", options=("--checkpoint-seconds", "2")) as servers:
        asyncio.run(killed(servers, 4, samples, 8.0, 5.0))
        # The stored states are deleted with their streams.
        assert not [*tmp_path.iterdir()]


@pytest.mark.scale
@pytest.mark.parametrize("kill_at", [4.0, 11.0, 20.0])
def test_the_kill_of_a_server_under_eight_streams(tmp_path: Path, kill_at: float) -> None:
    samples = [np.roll(talk()[: 24 * RATE], i * RATE) for i in range(4)]
    with replicas(tmp_path, "a", "b") as servers:
        asyncio.run(killed(servers, 8, samples, 24.0, kill_at))


@pytest.mark.scale
def test_two_minutes_of_cuts_and_kills(tmp_path: Path) -> None:
    """One of two servers is killed and started again and again under four streams."""
    samples = talk(4)[: 110 * RATE]

    async def chaos(servers: list[Replica]) -> None:
        whole, _ = await paced(servers[0].port, samples, 40.0, [])
        opened: list[list[float]] = [[] for _ in range(4)]
        chance = random.Random(3)
        async with Router(servers).running() as port:
            jobs = [asyncio.create_task(paced(port, samples, 120.0, each)) for each in opened]
            while not all(job.done() for job in jobs):
                await asyncio.wait(jobs, timeout=chance.uniform(8.0, 15.0))
                victim = chance.choice(servers)
                await asyncio.to_thread(
                    victim.stop, chance.choice([signal.SIGKILL] * 2 + [signal.SIGTERM])
                )
                await asyncio.to_thread(victim.start)
            for events, client in await asyncio.gather(*jobs):
                check_same(events, whole)
                assert client.restarts == 0
        assert sum(map(len, opened)) >= 12

    with replicas(tmp_path, "a", "b") as servers:
        asyncio.run(chaos(servers))


def test_a_server_that_wakes_up_too_late_says_nothing(tmp_path: Path) -> None:
    """It was stopped while the other one took its stream: none of its events leaves it."""
    sound = pcm(speech(2.5))
    with replicas(tmp_path, "a", "b") as (first, second):
        url = "ws://127.0.0.1:{}/v1/stream"
        with connect(url.format(first.port)) as old:
            old.send(json.dumps({"type": "start"}))
            ready = json.loads(old.recv(timeout=30))
            token = ready["stream"]
            assert token.startswith("a.") and ready["saved"] == 0
            first.send(signal.SIGSTOP)
            old.send(sound)
            old.send(json.dumps({"type": "finalize"}))
            with connect(f"{url.format(second.port)}?stream={token}") as new:
                new.send(json.dumps({"type": "resume", "events": 0, "frames": 0}))
                ready = json.loads(new.recv(timeout=30))
                assert (ready["stream"], ready["frames"]) == (token, 0)
                first.send(signal.SIGCONT)
                late = []
                with pytest.raises(ConnectionClosed):
                    while True:
                        late.append(json.loads(old.recv(timeout=30)))
                assert "final" not in [event["type"] for event in late]
                assert late[-1].get("code") == "taken_over"
                new.send(sound)
                new.send(json.dumps({"type": "finish"}))
                events = []
                while not events or events[-1]["type"] != "end":
                    events.append(json.loads(new.recv(timeout=30)))
                final = next(event for event in events if event["type"] == "final")
                assert final["event"] == 1 and final["text"] and final["frames"] == 2


def test_what_cannot_be_resumed_is_refused_with_its_reason(tmp_path: Path) -> None:
    with replicas(tmp_path, "a", "b") as (first, second):
        url = "ws://127.0.0.1:{}/v1/stream"

        def refused(message: dict[str, object], query: str = "") -> object:
            with connect(url.format(second.port) + query) as socket:
                socket.send(json.dumps(message))
                return json.loads(socket.recv(timeout=30)).get("code")

        tokens = []
        for _ in range(2):
            with connect(url.format(first.port)) as socket:
                socket.send(json.dumps({"type": "start"}))
                tokens.append(json.loads(socket.recv(timeout=30))["stream"])
        first.stop()
        for path in tmp_path.glob("*/state-*"):
            path.write_bytes(path.read_bytes()[:-1])
            break
        codes = [refused({"type": "resume", "stream": token, "frames": 5}) for token in tokens]
        assert sorted(map(str, codes)) == ["frames_lost", "state_invalid"]
        assert refused({"type": "resume", "stream": "a.unknown"}) == "no_stream"
        assert refused({"type": "resume", "stream": tokens[0]}, "?stream=other") == "stream"
