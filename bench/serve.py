"""The server over its sockets: time to final, capacity, overload, churn and overhead.

    python bench/serve.py [latency] [knee] [overload] [churn] [overhead]

Starts `pianissimo serve` on a free loopback port in a separate process; this process has all
clients. Each client sends the example clips in real time, in packets of 100 ms, begins at a random
moment, and requests the final text every 1.5 to 3 s while it continues to send. Without a part it
runs all; `--quick` does so in about two minutes. Tables go to standard output. It measures, by the
clock of the clients:

- time to final: from sending `finalize`, `commit` or `Finalize` to the answer;
- partial delay: from sending the packet in which the last word of a partial ends to that partial,
  the latency mode included (the realtime dialect gives no times, so it has none);
- acknowledgment: from sending a frame of `/v1/stream` to the message that acknowledges it (every
  8th is acknowledged), which is the way through socket and session without the model;
- late: the delay of sent packets. Above a few ms the clients are the bottleneck.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
from offline import speech
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

RATE = 16_000
PACKET_SECONDS = 0.1
PAUSES_SECONDS = (1.5, 3.0)
UNTIMED_SECONDS = 2.0
"""At the beginning of each trial."""
TAPE_SECONDS = 60.0
ANSWER_SECONDS = 30.0
"""Clients give up on a server that does not answer for this time."""
RETRY_SECONDS = 1.0
CHURN_AT_ONCE = 16
CHURN_SEATS = 128
"""A disconnected stream keeps its slot for a second, in case it is resumed."""
CHURN_WARM = 500
SLOT_SECONDS = 30.0
Row = dict[str, object]


@dataclass(frozen=True)
class Plan:
    """What to measure; seconds are of wall time."""

    model: str | None = None
    dialects: Sequence[str] = ("stream", "realtime", "listen")
    latency_ms: int = 160
    streams: Sequence[int] = (1, 4, 16, 50)
    seconds: float = 30.0
    limit_ms: float = 500.0
    most: int = 1024
    admitted: int | None = None
    overload_seconds: float = 60.0
    connects: int = 10_000
    overhead_streams: int = 50


QUICK = Plan(streams=(1, 4), seconds=6.0, most=8, overload_seconds=6.0, connects=600)
QUICK = replace(QUICK, overhead_streams=8)


# -- the server ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server in a separate process."""

    port: int
    pid: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        """The sum over all labels of a metric."""
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", page, re.M)))

    def memory_mib(self) -> float:
        """Resident memory, decoders not included (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+)", status)
        assert match is not None
        return int(match[1]) / 1024

    def wait_until_empty(self) -> None:
        """Wait until no socket is open and no slot is used; fails after a timeout."""
        end = time.monotonic() + SLOT_SECONDS
        while self.metric("pianissimo_sockets") or self.metric("pianissimo_engine_streams"):
            if time.monotonic() > end:
                raise SystemExit("a socket or a slot was not given back")
            time.sleep(0.1)


@contextmanager
def serving(plan: Plan, streams: int, *options: str) -> Iterator[Server]:
    """A server for some streams; its messages go to the standard error of this process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pianissimo", "serve", "--port", str(port)]
    command += ["--max-streams", str(streams), *options]
    command += ["--model", plan.model] if plan.model else []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIANISSIMO_")}
    process = subprocess.Popen(command, env=environment)
    server = Server(port, process.pid)
    try:
        while not _ready(server):
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(60)


def _ready(server: Server) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{server.http}/readyz", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


# -- one client ------------------------------------------------------------------------------------


@dataclass
class Times:
    """Milliseconds that the clients of a trial measured, from `first` on (a monotonic time)."""

    first: float = 0.0
    final: list[float] = field(default_factory=list)
    partial: list[float] = field(default_factory=list)
    acknowledged: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    unanswered: int = 0

    def note(self, values: list[float], since: float) -> None:
        now = time.monotonic()
        if now >= self.first:
            values.append((now - since) * 1000)


class Speaker:
    """A client of /v1/stream, and the base of the clients of all dialects."""

    dialect: ClassVar[str] = "stream"

    def __init__(self, socket: ClientConnection, times: Times, plan: Plan, number: int) -> None:
        self.socket, self.times, self.plan = socket, times, plan
        self.random = random.Random(number)
        self.sent: list[float] = []  # when each packet was
        self.frames: list[float] = []  # and each message of /v1/stream that is acknowledged
        self.asked: float | None = None
        self.heard_until = 0.0
        self.samples = 0

    @staticmethod
    def path(plan: Plan) -> str:
        return "/v1/stream"

    async def open(self) -> None:
        """Everything before the first audio; raises ConnectionClosed if the server is full."""
        options = {"sample_rate": RATE, "latency_ms": self.plan.latency_ms, "endpoint": None}
        await self.say({"type": "start", **options})
        while json.loads(await self.socket.recv())["type"] != "ready":
            pass

    async def say(self, message: dict[str, object]) -> None:
        await self.socket.send(json.dumps(message))

    async def send(self, data: bytes) -> None:
        self.frames.append(time.monotonic())
        await self.socket.send(data)

    async def ask(self) -> None:
        self.frames.append(time.monotonic())
        await self.say({"type": "finalize"})

    async def take(self, event: dict[str, Any]) -> None:
        """One message of the server."""
        match event["type"]:
            case "ack":
                self.times.note(self.times.acknowledged, self.frames[event["frames"] - 1])
            case "partial":
                self.partial(event["end"])
            case "final":
                self.final()
                await self.say({"type": "ack", "events": event["event"]})

    def final(self) -> None:
        """The answer to the last request."""
        if self.asked is not None:
            self.times.note(self.times.final, self.asked)
            self.asked = None

    def partial(self, end: float) -> None:
        """A partial, whose last word ends at this time of the stream."""
        packet = int(end / PACKET_SECONDS)
        if end > self.heard_until and packet < len(self.sent):
            self.heard_until = end
            self.times.note(self.times.partial, self.sent[packet])

    async def run(self, tape: bytes, until: float) -> None:
        """Send audio until that time, and receive messages."""
        await self.open()
        listening = asyncio.create_task(self._listen())
        try:
            await self._speak(tape, until)
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError, ConnectionClosed):
                await listening

    async def _speak(self, tape: bytes, until: float) -> None:
        await asyncio.sleep(self.random.uniform(0, PACKET_SECONDS))
        size = 2 * round(PACKET_SECONDS * RATE)
        place = self.random.randrange(len(tape) // size) * size
        due = time.monotonic()
        question = due + self.random.uniform(*PAUSES_SECONDS)
        while due < until:
            due += PACKET_SECONDS
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.times.note(self.times.late, due)
            self.sent.append(time.monotonic())
            await self.send(tape[place : place + size])
            place = (place + size) % (len(tape) - size)
            if due >= question and self.asked is None:
                self.asked = time.monotonic()
                await self.ask()
                question = due + self.random.uniform(*PAUSES_SECONDS)
        while self.asked is not None:
            if time.monotonic() - self.asked > ANSWER_SECONDS:
                self.times.unanswered += 1
                return
            await asyncio.sleep(PACKET_SECONDS)

    async def _listen(self) -> None:
        async for message in self.socket:
            await self.take(json.loads(message))


class RealtimeSpeaker(Speaker):
    """A client of OpenAI's socket that commits by itself."""

    dialect = "realtime"
    DELAYS: ClassVar = {80: "minimal", 160: "low", 560: "medium", 1120: "high"}

    @staticmethod
    def path(plan: Plan) -> str:
        return "/v1/realtime?intent=transcription"

    async def open(self) -> None:
        audio_input = {
            "format": {"type": "audio/pcm", "rate": RATE},
            "turn_detection": None,
            "transcription": {"delay": self.DELAYS[self.plan.latency_ms]},
        }
        session = {"type": "transcription", "audio": {"input": audio_input}}
        await self.say({"type": "session.update", "session": session})
        for _ in ("session.created", "session.updated"):
            await self.socket.recv()

    async def send(self, data: bytes) -> None:
        audio = base64.b64encode(data).decode()
        await self.say({"type": "input_audio_buffer.append", "audio": audio})

    async def ask(self) -> None:
        await self.say({"type": "input_audio_buffer.commit"})

    async def take(self, event: dict[str, Any]) -> None:
        if event["type"] == "conversation.item.input_audio_transcription.completed":
            self.final()


class ListenSpeaker(Speaker):
    """A client of Deepgram's socket, in the latency mode that the server chooses."""

    dialect = "listen"

    @staticmethod
    def path(plan: Plan) -> str:
        query = f"encoding=linear16&sample_rate={RATE}&interim_results=true&endpointing=false"
        return f"/v1/listen?{query}"

    async def open(self) -> None:
        pass

    async def ask(self) -> None:
        await self.say({"type": "Finalize"})

    async def take(self, event: dict[str, Any]) -> None:
        if event["type"] != "Results":
            return
        if event["from_finalize"]:
            self.final()
        elif not event["is_final"]:
            self.partial(event["start"] + event["duration"])


SPEAKERS: dict[str, type[Speaker]] = {
    kind.dialect: kind for kind in (Speaker, RealtimeSpeaker, ListenSpeaker)
}


async def trial(server: Server, plan: Plan, dialect: str, streams: int, seconds: float) -> Times:
    """Run some clients for some time; their measurements after the warm-up."""
    kind, now = SPEAKERS[dialect], time.monotonic()
    times = Times(now + UNTIMED_SECONDS)
    until = now + UNTIMED_SECONDS + seconds
    tape = (speech(TAPE_SECONDS) * 32767).astype("<i2").tobytes()

    async def one(number: int) -> None:
        async with connect(server.ws + kind.path(plan), compression=None) as connection:
            await kind(connection, times, plan, number).run(tape, until)

    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(one(number))
    await asyncio.to_thread(server.wait_until_empty)
    return times


# -- parts -----------------------------------------------------------------------------------------


def quantiles(values: Sequence[float]) -> str:
    """p50 / p99."""
    if not values:
        return "–"
    return " / ".join(f"{q:.1f}" for q in np.quantile(values, (0.5, 0.99)))


def p99(values: Sequence[float]) -> float:
    return float(np.quantile(values, 0.99)) if values else float("inf")


def row_of(dialect: str, streams: int, times: Times) -> Row:
    return {
        "socket": dialect,
        "streams": streams,
        "time to final, ms": quantiles(times.final),
        "partial delay, ms": quantiles(times.partial),
        "finals": len(times.final),
        "unanswered": times.unanswered,
        "late p99, ms": f"{p99(times.late):.1f}",
    }


async def latency(plan: Plan) -> None:
    rows = []
    with serving(plan, max(plan.streams)) as server:
        for dialect in plan.dialects:
            for streams in plan.streams:
                tell(f"{dialect}, {streams} streams")
                times = await trial(server, plan, dialect, streams, plan.seconds)
                rows.append(row_of(dialect, streams, times))
    show("Time to final and partial delay, p50 / p99", rows)


async def knee(plan: Plan) -> int:
    """The most streams of /v1/stream whose p99 of the time to final is within the limit."""
    rows: list[Row] = []
    good, bad = 0, plan.most + 1
    with serving(plan, plan.most) as server:
        streams = min(4, plan.most)
        while good + max(1, good // 8) < bad:
            tell(f"knee, {streams} streams")
            times = await trial(server, plan, "stream", streams, plan.seconds / 2)
            kept = p99(times.final) <= plan.limit_ms and not times.unanswered
            good, bad = (max(good, streams), bad) if kept else (good, min(bad, streams))
            rows.append({**row_of("stream", streams, times), "kept up": "yes" if kept else "no"})
            streams = min(2 * good, plan.most) if bad > plan.most else (good + bad) // 2
            if good == plan.most:
                break
    rows.sort(key=lambda row: int(str(row["streams"])))
    show(f"The knee: p99 of the time to final within {plan.limit_ms:.0f} ms up to {good}", rows)
    return good


async def overload(plan: Plan) -> None:
    """Twice as many clients as are admitted: latency of these, and time to refuse the others."""
    admitted = plan.admitted or 16
    rows: list[Row] = []
    refusals: dict[str, list[tuple[int, float]]] = {name: [] for name in plan.dialects}
    with serving(plan, admitted, "--max-files", "1") as server:
        tell(f"{admitted} streams alone")
        alone = await trial(server, plan, "stream", admitted, plan.overload_seconds)
        tell(f"{admitted} streams, and {admitted} more that want in")
        seconds = plan.overload_seconds
        running = asyncio.create_task(trial(server, plan, "stream", admitted, seconds))
        await asyncio.sleep(UNTIMED_SECONDS)
        until = time.monotonic() + plan.overload_seconds
        async with asyncio.TaskGroup() as group:
            for number in range(max(admitted, len(plan.dialects))):
                dialect = plan.dialects[number % len(plan.dialects)]
                group.create_task(knock(server, plan, dialect, until, refusals[dialect]))
        crowded = await running
        refusals["POST"] = await knock_with_files(server)
    rows = [
        {"": "alone", **row_of("stream", admitted, alone)},
        {"": "overloaded", **row_of("stream", admitted, crowded)},
    ]
    ratio = p99(crowded.final) / p99(alone.final)
    show(f"Twice the streams: p99 of the admitted ones' time to final is {ratio:.2f} times", rows)
    refused = [
        {
            "socket": name,
            "attempts": len(attempts),
            "codes": ", ".join(map(str, sorted({code for code, _ in attempts}))),
            "until refused, ms": quantiles([ms for _, ms in attempts]),
        }
        for name, attempts in refusals.items()
    ]
    show("Refusals, p50 / p99", refused)


async def knock(
    server: Server, plan: Plan, dialect: str, until: float, attempts: list[tuple[int, float]]
) -> None:
    """Connect repeatedly; the close code and the time of each attempt."""
    kind = SPEAKERS[dialect]
    while (began := time.monotonic()) < until:
        try:
            async with connect(server.ws + kind.path(plan), compression=None) as connection:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await kind(connection, Times(), plan, 0).open()
                    while True:
                        await connection.recv()
        except TimeoutError:
            code = 0  # it was admitted
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
        except InvalidStatus as refused:
            code = refused.response.status_code
        attempts.append((code, (time.monotonic() - began) * 1000))
        await asyncio.sleep(RETRY_SECONDS)


async def knock_with_files(server: Server) -> list[tuple[int, float]]:
    """More recordings at once than may be transcribed or queued; the refused ones."""
    import io

    import soundfile

    file = io.BytesIO()
    soundfile.write(file, speech(5.0), RATE, format="WAV", subtype="PCM_16")

    async def post(client: httpx.AsyncClient) -> tuple[int, float]:
        began = time.monotonic()
        answer = await client.post(
            f"{server.http}/v1/audio/transcriptions",
            files={"file": ("a.wav", file.getvalue(), "audio/wav")},
            timeout=120,
        )
        return answer.status_code, (time.monotonic() - began) * 1000

    async with httpx.AsyncClient() as client:
        answers = await asyncio.gather(*(post(client) for _ in range(6)))
    return [(code, ms) for code, ms in answers if code != 200]


async def churn(plan: Plan) -> None:
    """Clients that connect, send a little and leave, a third of them without closing."""
    with serving(plan, CHURN_SEATS, "--resume-seconds", "1") as server:
        tell(f"{CHURN_WARM} connects to warm up")
        await _come_and_go(server, plan, min(CHURN_WARM, plan.connects))
        await asyncio.to_thread(server.wait_until_empty)
        before = server.memory_mib()
        tell(f"{plan.connects} connects")
        began = time.monotonic()
        refused = await _come_and_go(server, plan, plan.connects)
        spent = time.monotonic() - began
        await asyncio.to_thread(server.wait_until_empty)
        after = server.memory_mib()
        admitted = await _fill(server, plan)
    row = {
        "connects": plan.connects,
        "per second": f"{plan.connects / spent:.0f}",
        "refused": refused,
        "MiB before": f"{before:.0f}",
        "MiB after": f"{after:.0f}",
        "growth": f"{100 * (after / before - 1):+.1f} %",
        "seats free afterwards": f"{admitted} of {CHURN_SEATS}",
    }
    show("Connects and disconnects", [row])


async def _come_and_go(server: Server, plan: Plan, count: int) -> int:
    """The number of refused ones."""
    data = (speech(PACKET_SECONDS) * 32767).astype("<i2").tobytes()
    numbers = iter(range(count))
    refused = 0

    async def clients() -> None:
        nonlocal refused
        for number in numbers:
            kind = SPEAKERS[plan.dialects[number % len(plan.dialects)]]
            try:
                async with connect(server.ws + kind.path(plan), compression=None) as connection:
                    speaker = kind(connection, Times(), plan, number)
                    await speaker.open()
                    await speaker.send(data)
                    if number // len(plan.dialects) % 3 == 0:
                        connection.transport.abort()
            except (ConnectionClosed, InvalidStatus):
                refused += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CHURN_AT_ONCE):
            group.create_task(clients())
    return refused


async def _fill(server: Server, plan: Plan) -> int:
    """The number of streams that are admitted now."""
    async with AsyncExitStack() as stack:
        for number in range(CHURN_SEATS):
            opening = connect(server.ws + Speaker.path(plan), compression=None)
            speaker = Speaker(await stack.enter_async_context(opening), Times(), plan, number)
            try:
                await speaker.open()
                await speaker.say({"type": "keepalive"})
            except ConnectionClosed:
                return number
    return CHURN_SEATS


async def overhead(plan: Plan) -> None:
    streams = plan.overhead_streams
    with serving(plan, streams) as server:
        tell(f"overhead, {streams} streams")
        times = await trial(server, plan, "stream", streams, plan.seconds)
    row = row_of("stream", streams, times)
    row["acknowledgement, ms"] = quantiles(times.acknowledged)
    show("Socket to session and back, p50 / p99", [row])


PARTS: dict[str, Callable[[Plan], Any]] = {
    "latency": latency,
    "knee": knee,
    "overload": overload,
    "churn": churn,
    "overhead": overhead,
}


# -- output ----------------------------------------------------------------------------------------


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(title: str, rows: Sequence[Row]) -> None:
    print(f"\n{title}\n")
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    print("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines), flush=True)


async def run(plan: Plan, parts: Sequence[str]) -> None:
    for part in parts:
        capacity = await PARTS[part](plan)
        if part == "knee" and plan.admitted is None:
            # Three quarters of the capacity: busy, but not overloaded.
            plan = replace(plan, admitted=max(1, 3 * capacity // 4))


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    add("--quick", action="store_true", help="a few streams for a few seconds")
    add("--model", help="what `pianissimo serve --model` takes; the embedded one by default")
    add("--latency", type=int, dest="latency_ms", help="latency mode of /v1/stream and realtime")
    add("--streams", type=numbers, help="of latency, 1,4,16,50")
    add("--seconds", type=float, help="of each trial")
    add("--limit-ms", type=float, help="p99 of the time to final at the knee, 500")
    add("--most", type=int, help="streams tried for the knee, 1024")
    add("--admitted", type=int, help="streams of overload; three quarters of the knee, or 16")
    add("--overload-seconds", type=float)
    add("--connects", type=int, help="of churn, 10000")
    add("--overhead-streams", type=int, help="50")
    asked = vars(parser.parse_args())
    parts, quick = asked.pop("parts") or list(PARTS), asked.pop("quick")
    for part in parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; choose {', '.join(PARTS)}")
    given = {name: value for name, value in asked.items() if value is not None}
    asyncio.run(run(replace(QUICK if quick else Plan(), **given), parts))


if __name__ == "__main__":
    main()
