"""Pulling models from a small hub on this machine: interrupted, pinned, checked, offline."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import huggingface_hub.constants as constants
import pytest

from pianissimo.cli import main
from pianissimo.errors import CheckpointError
from pianissimo.zoo.catalog import CATALOG
from pianissimo.zoo.download import LOCK_FILE, Lock, verify

NAME, REPOSITORY = "wav2vec2-base-960h", "facebook/wav2vec2-base-960h"
WEIGHTS = bytes(range(256)) * 4000


class Hub:
    """What the hub says of one repository; each test may change it."""

    def __init__(self) -> None:
        self.commits = {"main": "1" * 40}
        self.files = {"1" * 40: {"config.json": b"{}", "model.safetensors": WEIGHTS}}
        self.told: dict[str, str] = {}  # hashes, where the hub tells wrong ones
        self.gives_up_after: int | None = None
        self.ranges: list[str | None] = []
        self.requests = 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        parts = urlsplit(request.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            wanted = parts[5] if len(parts) > 5 else "main"
            commit = self.commits.get(wanted, wanted)
            files = self.files.get(commit)
            if files is None:
                request.send_response(404)
                request.send_header("X-Error-Code", "RevisionNotFound")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            listed = [{"type": "file", **self.about(name, files)} for name in files]
            body = listed if "tree" in parts else {"id": REPOSITORY, "sha": commit}
            if isinstance(body, dict):
                body["siblings"] = [{"rfilename": each["path"], **each} for each in listed]
            self.send(request, json.dumps(body).encode(), {"Content-Type": "application/json"})
            return
        if len(parts) < 5:
            request.send_error(404)
            return
        commit, name = parts[3], "/".join(parts[4:])
        data = self.files[commit][name]
        etag = hashlib.sha256(data).hexdigest()
        self.send(request, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def about(self, name: str, files: dict[str, bytes]) -> dict:
        data = files[name]
        told: dict = {"path": name, "size": len(data), "oid": "0" * 40, "blobId": "0" * 40}
        if name.endswith(".safetensors"):
            digest = self.told.get(name, hashlib.sha256(data).hexdigest())
            lfs = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}
            told["lfs"] = lfs
        return told

    def send(self, request: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str]) -> None:
        wanted, start = request.headers.get("Range"), 0
        if "ETag" in headers and request.command == "GET" and len(body) > 1000:
            self.ranges.append(wanted)
            if wanted is not None:
                start = int(wanted.removeprefix("bytes=").split("-")[0])
        rest = body[start:]
        request.send_response(206 if start else 200)
        for key, value in {**headers, "Content-Length": str(len(rest))}.items():
            request.send_header(key, value)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.gives_up_after and len(body) > 1000:
            rest, self.gives_up_after = rest[: self.gives_up_after], None
            request.close_connection = True
        request.wfile.write(rest)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    running = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            running.answer(self)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("PIANISSIMO_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield running
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / NAME


def test_a_pull_is_locked_and_verified(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", NAME, "--quiet"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    lock = Lock.read(folder)
    assert lock is not None and lock.revision == "1" * 40
    assert lock.sha256 == {
        "config.json": hashlib.sha256(b"{}").hexdigest(),
        "model.safetensors": hashlib.sha256(WEIGHTS).hexdigest(),
    }
    assert main(["models", "verify", NAME]) == 0
    assert "2 files" in capsys.readouterr().out
    asked = hub.requests
    assert main(["pull", NAME, "--offline"]) == 0
    assert hub.requests == asked, "offline is offline"
    # What was pulled stays, though there is a newer one; which comes when it is asked for.
    hub.commits["main"], hub.commits["v2"] = "2" * 40, "2" * 40
    hub.files["2" * 40] = {"config.json": b"{}", "model.safetensors": WEIGHTS[1:]}
    assert main(["pull", NAME, "--quiet"]) == 0
    assert Lock.read(folder) == lock
    assert main(["pull", NAME, "--quiet", "--revision", "v2"]) == 0
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS[1:]
    assert main(["models", "verify", NAME]) == 0 and main(["pull", NAME, "--quiet"]) == 0
    lock = Lock.read(folder)
    assert lock is not None and lock.revision == "2" * 40
    assert main(["pull", NAME, "--quiet", "--revision", "v3"]) == 4


def test_a_connection_that_breaks_is_not_the_end(hub: Hub, folder: Path) -> None:
    hub.gives_up_after = 300_000
    assert main(["pull", NAME, "--quiet"]) == 0
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.ranges) == 2
    assert main(["pull", NAME, "--quiet"]) == 0
    assert len(hub.ranges) == 2, "what is here is not fetched again"


def test_what_changed_is_refused_and_only_that_is_removed(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", NAME, "--quiet"]) == 0
    weights = folder / "model.safetensors"
    weights.write_bytes(WEIGHTS[:-1] + b"!")
    for command in (["models", "verify", NAME], ["pull", NAME, "--offline"]):
        assert main(command) == 4
        assert "SHA-256" in capsys.readouterr().err
        assert weights.exists()
    with pytest.raises(CheckpointError):
        verify(folder)
    weights.unlink()
    assert main(["models", "verify", NAME]) == 4
    assert main(["pull", NAME, "--quiet"]) == 0
    # The hub now gives something else for the same commit.
    weights.unlink()
    hub.files["1" * 40]["model.safetensors"] = WEIGHTS[2:] + b"!!"
    capsys.readouterr()
    assert main(["pull", NAME, "--quiet"]) == 4
    assert "model.safetensors has the SHA-256" in capsys.readouterr().err
    assert not weights.exists() and (folder / "config.json").exists()
    assert (folder / LOCK_FILE).exists()


def test_what_the_hub_and_the_catalogue_say_is_believed_neither(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.told["model.safetensors"] = "f" * 64
    assert main(["pull", NAME, "--quiet"]) == 4
    assert not (folder / "model.safetensors").exists() and not (folder / LOCK_FILE).exists()
    hub.told.clear()
    (entry,) = [each for each in CATALOG if each.short_name == NAME]
    monkeypatch.setitem(entry.__dict__, "sha256", (("config.json", "e" * 64),))
    assert main(["pull", NAME, "--quiet"]) == 4
    assert not (folder / "config.json").exists()
    monkeypatch.setitem(entry.__dict__, "sha256", ())
    assert main(["pull", NAME, "--quiet"]) == 0


def test_a_damaged_lock_and_a_missing_model_are_told(
    hub: Hub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", NAME, "--offline"]) == 4
    assert main(["models", "verify", NAME]) == 4
    folder.mkdir(parents=True)
    assert main(["models", "verify", NAME]) == 4
    assert LOCK_FILE in capsys.readouterr().err
    for text in ("", "[]", '{"repository": "x", "revision": "y", "sha256": {"a": "b"}}'):
        (folder / LOCK_FILE).write_text(text)
        assert main(["pull", NAME, "--quiet"]) == 4
        assert "damaged" in capsys.readouterr().err
    assert hub.requests == 0
