"""Options of `pianissimo serve`: sources, and agreement with the documentation."""

import re
from pathlib import Path

import pytest
import typer

from pianissimo.cli import app, main
from pianissimo.cli import serve as command
from pianissimo.serve.settings import Settings

DOCS = Path(__file__).parents[3] / "docs"
FILE = """
model = ["en=/models/en", "small=embedded-commands"]
max-streams = 32
max_files = 3
longest-audio-seconds = 60
insecure = true
state-folder = "/state"
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the command was asked to serve, instead of serving it."""
    found: list[Settings] = []
    monkeypatch.setattr(command, "_run", lambda settings, *_: found.append(settings) or 0)
    return found


def test_a_file_says_what_nothing_else_does(
    asked: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "serve.toml").write_text(FILE)
    monkeypatch.setenv("PIANISSIMO_MAX_FILES", "5")
    assert main(["serve", "--settings", str(tmp_path / "serve.toml"), "--max-streams", "9"]) == 0
    monkeypatch.setenv("PIANISSIMO_SETTINGS", str(tmp_path / "serve.toml"))
    assert main(["serve"]) == 0
    models = ("en=/models/en", "small=embedded-commands")
    for found, streams in zip(asked, (9, 32), strict=True):
        assert (found.models, found.max_streams, found.max_files) == (models, streams, 5)
        assert (found.longest_audio_seconds, found.state_folder) == (60.0, Path("/state"))
        assert found.insecure and found.port == Settings.port


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("max-streams", "cannot be read"),
        ("max-steams = 3", "'max_steams'"),
        ("[limits]\nmax-streams = 3", "'limits'"),
        ("settings = 'other.toml'", "'settings'"),
        ("max-streams = 'many'", "--max-streams"),
        ("max-streams = 0", "at least one stream"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(
    asked: list[Settings],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    told: str,
) -> None:
    (tmp_path / "serve.toml").write_text(text)
    assert main(["serve", "--settings", str(tmp_path / "serve.toml")]) == 2
    assert told in capsys.readouterr().err and not asked


def test_the_documents_name_options_that_are_there() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {option for param in commands["serve"].params for option in param.opts}
    server = {option for option in options if option.startswith("--")}
    text = (DOCS / "operations.md").read_text()
    for name in ("security", "server-api", "clients", "web-page", "voice-agent", "polish"):
        text += (DOCS / f"{name}.md").read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    others = {"--help", "--revision", "--latency"}  # of pull, and of bench/serve.py
    others |= {
        "--headphones",
        "--instructions",
        "--push-to-talk",
        "--turns",
        "--no-llm-eager",
        "--root",
        "--microphone",
    }  # of talk, mcp, bench/agent.py
    assert named - server <= others
    missing = server - named - {"--device", "--dtype", "--host", "--port"}
    assert not missing, "an operator should read of them"
