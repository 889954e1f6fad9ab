"""docker/: its queries name existing metrics, its files and ports exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from serving import Server, pcm, serving, speech
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

DOCKER = Path(__file__).parents[3] / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "pianissimo.json"
NAME = re.compile(r"\b(?:pianissimo|process)_\w+")
GROUPING = re.compile(r"\bby \(([^)]*)\)")
SELECTOR = re.compile(r"\b(pianissimo_\w+){([^}]*)}")


@pytest.fixture(scope="module")
def page(tiny: NativeRecognizer) -> Iterator[dict[str, set[str]]]:
    """Every metric of a server that had visitors -> the labels it has."""
    with serving(tiny, Settings(max_streams=1)) as server:
        _visit(server)
        text = httpx.get(server.http + "/metrics").text
    found: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M):
        for end in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[name + end] = set()
    for name, labels in re.findall(r"^(\w+)(?:{(.*)})? \S+$", text, re.M):
        found[name] = found.get(name, set()) | set(re.findall(r'(\w+)="', labels))
    yield found


def _visit(server: Server) -> None:
    """One who is served, and one for whom there is no seat."""
    with connect(server.ws + "/v1/stream") as socket:
        socket.send(json.dumps({"type": "start"}))
        socket.recv()
        with connect(server.ws + "/v1/listen?encoding=linear16&sample_rate=16000") as refused:
            with pytest.raises(ConnectionClosedError):
                refused.recv()
            assert refused.close_code == 1013
        socket.send(pcm(speech(2.0)))
        socket.send('{"type": "finish"}')
        for message in socket:
            event = json.loads(message)
            if "event" in event:
                socket.send(json.dumps({"type": "ack", "events": event["event"]}))
    server.wait_until_empty()


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard and of the alerts, with what its legend or text says."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for group in yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"], " ".join(rule["annotations"].values())


def test_every_query_asks_for_what_the_server_says(page: dict[str, set[str]]) -> None:
    asked = set()
    for query, told in queries():
        names = set(NAME.findall(query))
        assert names <= page.keys(), f"{query}: {names - page.keys()}"
        labels = {label for found in GROUPING.findall(query) for label in found.split(", ")}
        labels |= set(re.findall(r"{{(?: ?\$labels\.)?(\w+) ?}}", told))
        for name in names:
            # What has never happened has no labels yet.
            assert not page[name] or labels <= page[name], f"{query}: {labels - page[name]}"
        for name, selector in SELECTOR.findall(query):
            chosen = set(re.findall(r"(\w+)[=!]~?", selector))
            assert not page[name] or chosen <= page[name], f"{query}: {chosen - page[name]}"
        asked |= names
    assert len(asked) > 15
    assert "pianissimo_engine_chunk_delay_seconds" in asked


def test_the_manual_names_every_metric_and_no_other(page: dict[str, set[str]]) -> None:
    """It writes the beginning that one shares with those before it only once."""
    manual = (DOCKER.parent / "docs" / "operations.md").read_text()
    named = set(NAME.findall(manual))
    told = {re.sub("_(bucket|sum|count)$", "", name) for name in page if "_created" not in name}
    assert named <= told, f"not there: {named - told}"
    for name in told:
        ends = {name[at:] for at, letter in enumerate(name) if letter == "_"}
        assert name in named or any(f"`{end}`" in manual for end in ends), f"{name} is missing"


def test_the_dashboard_finds_its_source() -> None:
    board = json.loads(DASHBOARD.read_text())
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert host in services and f"127.0.0.1:{port}:{port}" in services[host]["ports"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "pianissimo.yaml").read_text())[
        "providers"
    ]
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]


def test_compose_names_what_is_there_and_opens_nothing_to_the_world() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    used = set()
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert "build" in service or not service["image"].endswith("latest")
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).is_dir()
            else:
                used.add(source)
    assert used == compose["volumes"].keys()
    build = compose["services"]["pianissimo"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
    scrape = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    assert scrape["scrape_configs"][0]["static_configs"][0]["targets"] == ["pianissimo:7860"]
    assert all((DOCKER / "prometheus" / name).is_file() for name in scrape["rule_files"])


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_asks_a_health_check_that_the_server_answers(name: str, server: Server) -> None:
    text = (DOCKER / name).read_text()
    (check,) = re.findall(r"HEALTHCHECK.*\\\n\s+CMD (\[.*\])", text)
    port, path = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", check).groups()  # type: ignore[union-attr]
    assert re.search(rf"^EXPOSE {port}$", text, re.M)
    assert httpx.get(server.http + path).status_code == 200
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)
    ignored = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    for file in (file for line in copied for file in line.split()):
        assert (DOCKER.parent / file).exists() and f"!{file}" in ignored
    assert text.rindex("\nUSER 10001") > text.rindex("\nFROM")
