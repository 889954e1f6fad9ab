"""How one hostile client changes the answers of a polite one: calm and attacked, per attack.

    python bench/attack.py                  # all attacks, 10 s each, loopback only
    python bench/attack.py keepalive json   # some of them

Starts `pianissimo serve` on a free loopback port. A polite client speaks half a second and requests
the final text, again and again; its time to the final is measured without and with an attack, which
is one connection in a process of its own that sends valid messages as fast as they are accepted.
"""

import argparse
import base64
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import soundfile
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

RATE = 16_000
ROUND_SECONDS = 0.5
BATCH_BYTES = 1 << 16
STREAM, REALTIME = "/v1/stream", "/v1/realtime"
LISTEN = "/v1/listen?encoding=linear16&sample_rate=16000"
CLIP = Path(__file__).parents[1] / "examples" / "audio" / "number.flac"
FINALIZE = "finalise"
"""The spelling that servers before 0.2.0 know as well."""
START = {"type": "start", "endpoint": None}
APPEND = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(3200)).decode()}


def frame(payload: bytes, opcode: int) -> bytes:
    """A masked frame of RFC 6455; the mask is zero."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([0x80 | opcode, 0xFE]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0xFF]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


def text(message: object) -> bytes:
    return frame(json.dumps(message).encode(), 1)


def audio(seconds: float) -> bytes:
    return frame(bytes(2 * round(seconds * RATE)), 2)


def values() -> bytes:
    """A message of 15 MB with millions of small values."""
    return frame(b'{"type": "input_audio_buffer.commit", "x": [' + b"1," * 7_500_000 + b"1]}", 1)


ATTACKS: dict[str, tuple[str, Callable[[], list[bytes]], Callable[[], bytes]]] = {
    "keepalive": (STREAM, lambda: [text(START)], lambda: text({"type": "keepalive"})),
    "stream finalize": (
        STREAM,
        lambda: [text(START), audio(0.5)],
        lambda: text({"type": FINALIZE}),
    ),
    "Finalize": (LISTEN, lambda: [audio(0.5)], lambda: text({"type": "Finalize"})),
    "commit": (
        REALTIME,
        lambda: [text(APPEND)],
        lambda: text({"type": "input_audio_buffer.commit"}),
    ),
    "update": (REALTIME, lambda: [], lambda: text({"type": "session.update", "session": {}})),
    "json": (REALTIME, lambda: [], values),
    "ping": (STREAM, lambda: [text(START)], lambda: frame(b"", 9)),
    "one byte": (STREAM, lambda: [text(START)], lambda: frame(b"\0", 2)),
    "audio": (LISTEN, lambda: [], lambda: audio(30.0)),
}
"""Name -> the path, the first messages, and the message that is sent again and again."""


def attack(name: str, port: int, seconds: float) -> None:
    """Send one message as fast as the server accepts it."""
    path, first, message = ATTACKS[name]
    end = time.monotonic() + seconds
    sent = message()
    batch = sent * max(1, BATCH_BYTES // len(sent))
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
            raw.sendall(
                f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\n"
                "upgrade: websocket\r\nsec-websocket-version: 13\r\n"
                "sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n".encode()
            )
            raw.recv(1 << 16)
            reader = threading.Thread(target=drain, args=(raw,), daemon=True)
            reader.start()
            for each in first():
                raw.sendall(each)
            time.sleep(0.2)
            while time.monotonic() < end:
                raw.settimeout(max(0.1, end - time.monotonic()))
                raw.sendall(batch)
        time.sleep(0.05)


def drain(raw: socket.socket) -> None:
    with suppress(OSError):
        while raw.recv(1 << 20):
            pass


def polite(port: int, seconds: float) -> list[float]:
    """Times to the final text, in seconds, of one client that speaks again and again."""
    speech, _ = soundfile.read(CLIP, dtype="float32")
    samples = (np.resize(speech, round(ROUND_SECONDS * RATE)) * 32767).astype("<i2").tobytes()
    times: list[float] = []
    end = time.monotonic() + seconds
    url = f"ws://127.0.0.1:{port}{STREAM}"
    with suppress(TimeoutError, ConnectionClosed), connect(url, open_timeout=seconds) as live:
        live.send(json.dumps(START))
        events = 0
        while (left := end - time.monotonic()) > 0:
            live.send(samples)
            began = time.monotonic()
            live.send(json.dumps({"type": FINALIZE}))
            while True:
                event = json.loads(live.recv(timeout=max(0.01, left)))
                if event["type"] == "final" and event["reason"].startswith("finali"):
                    break
            times.append(time.monotonic() - began)
            events = event["event"]
            live.send(json.dumps({"type": "ack", "events": events}))
            time.sleep(0.1)
    return times


@contextmanager
def server(model: str | None) -> Iterator[int]:
    """`pianissimo serve` and its port."""
    command = [sys.executable, "-m", "pianissimo", "serve", "--port", "0", "--verbose"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PIANISSIMO_")}
    running = subprocess.Popen(
        [*command, *(["-m", model] if model else [])],
        stderr=subprocess.PIPE,
        text=True,
        env=clean,
    )
    assert running.stderr is not None
    try:
        port = 0
        for line in running.stderr:
            if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
                port = int(found[1])
                break
        if not port:
            raise SystemExit("the server did not start")
        threading.Thread(target=running.stderr.read, daemon=True).start()
        yield port
    finally:
        running.kill()
        running.wait()


def shown(times: list[float]) -> str:
    return f"{1000 * statistics.median(times):8.0f}" if times else "       -"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("attacks", nargs="*", help=f"of {', '.join(ATTACKS)}; all by default")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement")
    parser.add_argument("--model", help="what `pianissimo serve --model` accepts")
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        attack(given.attack, given.port, given.seconds)
        return
    for name in given.attacks:
        if name not in ATTACKS:
            parser.error(f"unknown attack {name!r}; choose of {', '.join(ATTACKS)}")
    print(f"time to final of a polite client, p50 in ms, and its answers in {given.seconds:g} s")
    print(f"{'attack':16s} {'calm':>8s} {'answers':>8s} {'attacked':>8s} {'answers':>8s} ratio")
    for name in given.attacks or ATTACKS:
        with server(given.model) as port:
            polite(port, 1.0)
            calm = polite(port, given.seconds)
            hostile = subprocess.Popen(
                [
                    *(sys.executable, __file__, "--attack", name, "--port", str(port)),
                    *("--seconds", str(given.seconds + 2)),
                ]
            )
            time.sleep(1.0)
            attacked = polite(port, given.seconds)
            hostile.kill()
            hostile.wait()
        ratio = statistics.median(attacked) / statistics.median(calm) if attacked else float("inf")
        print(
            f"{name:16s} {shown(calm)} {len(calm):8d} {shown(attacked)} {len(attacked):8d} "
            f"{ratio:5.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
