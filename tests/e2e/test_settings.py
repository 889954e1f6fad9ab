"""Environment variables, former spellings and help of the command line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from pianissimo.cli import app, main
from pianissimo.cli.options import ModelOptions, SearchOptions

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
VARIABLES = {
    "transcribe": "MODEL DEVICE DTYPE HEAD LANGUAGE TASK GAIN BOOST BOOST_FILE BEAM LM LM_WEIGHT "
    "LATENCY FORMAT OUTPUT WORD_TIMESTAMPS RECURSIVE SKIP_EXISTING JOBS STREAM PARTIALS REALTIME "
    "JSON QUIET VERBOSE",
    "listen": "MODEL DEVICE DTYPE HEAD LANGUAGE PARTIALS GAIN LATENCY SAMPLE_RATE JSON QUIET",
    "evaluate": "MODEL DEVICE DTYPE HEAD LANGUAGE GAIN BOOST BOOST_FILE BEAM LM LM_WEIGHT LATENCY "
    "SUBSET BATCH_SECONDS JSON QUIET",
    "pull": "OFFLINE QUIET",
    "quietbench": "MODEL MINI CLIPS SPEECH SUBSET GAIN QUIETBENCH_OUTPUT PAGE SEED DEVICE DTYPE "
    "JSON QUIET",
    "train": "DATA RUN MINUTES DEV TENSORBOARD DEVICE",
    "finetune": "MANIFEST VAL OUT MODEL SKIP_FAULTY FREEZE LORA LR STEPS BATCH_SECONDS ACCUMULATE "
    "PRECISION RECOMPUTE VALIDATE_EVERY PATIENCE AUGMENT QUIET_SPEECH REPLAY REPLAY_SHARE "
    "REGRESSION MINUTES SEED WORKERS TENSORBOARD DEVICE",
    "export": "MODEL ONNX EXPORT_DTYPE LATENCY QUIET",
    "serve": "SETTINGS MODEL SPARE_MODEL DEVICE DTYPE GAIN HOST PORT WYOMING_PORT MAX_STREAMS "
    "MAX_FILES MAX_SHADOWS LARGEST_UPLOAD_MB LONGEST_AUDIO_SECONDS DECODERS IDLE_SECONDS "
    "RESUME_SECONDS STATE_FOLDER DRAIN_SECONDS OFFLINE API_KEY KEY_FILE ADMIN_KEY ALLOW_ORIGIN "
    "TLS_CERTIFICATE TLS_KEY INSECURE STRICT_COMMITS QUIETBENCH LOG_JSON VERBOSE",
    "doctor": "MODEL DEVICE JSON",
}
"""Names that earlier versions read, without those whose option moved to Python."""


@pytest.fixture(autouse=True)
def bare(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIANISSIMO_MODEL", str(tiny_model_folder))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return run


Run = Callable[..., tuple[int, str, str]]


def variables(command: str) -> set[str]:
    """The variables that click itself reads for a command."""
    found = set()
    context = COMMANDS[command].make_context(command, [], resilient_parsing=True)
    for option in COMMANDS[command].params:
        for name in VARIABLES[command].split():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(f"PIANISSIMO_{name}", "7")
                if option.value_from_envvar(context):
                    found.add(name)
    return found


@pytest.mark.parametrize("command", VARIABLES)
def test_variables_of_earlier_versions_still_set_options(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIANISSIMO_MODEL")
    assert variables(command) == set(VARIABLES[command].split())


def test_the_former_name_of_hotwords_is_accepted(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[SearchOptions] = []

    def load(self: ModelOptions, decoding: object = None) -> None:
        raise RuntimeError("far enough")

    monkeypatch.setattr(ModelOptions, "load", load)
    monkeypatch.setattr(
        SearchOptions, "hotwords", property(lambda self: asked.append(self) or []), raising=True
    )
    (tmp_path / "names.txt").write_text("Ada\n")
    file = str(tmp_path / "names.txt")
    run("transcribe", "x.wav", "--boost", "Ada Lovelace", "--boost-file", file)
    run("transcribe", "x.wav", "--hotword", "Ada Lovelace", f"--hotword-file={file}")
    assert [(one.hotword, one.hotword_file) for one in asked] == [
        (["Ada Lovelace"], Path(file))
    ] * 2
    help_text = run("transcribe", "--help")[1]
    assert "--hotword" in help_text and "boost" not in help_text.lower()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("PIANISSIMO_MAX_STEAMS", "PIANISSIMO_MAX_STREAMS"),
        ("PIANISSIMO_LATENCY_MS", "PIANISSIMO_LATENCY"),
        ("PIANISSIMO_MODLES", "PIANISSIMO_MODELS"),
    ],
)
@pytest.mark.parametrize("command", [["doctor"], ["models", "list"], ["quietbench"], ["models"]])
def test_an_unknown_variable_is_refused_with_the_nearest_name(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: list[str], name: str, near: str
) -> None:
    monkeypatch.setenv(name, "1")
    code, out, err = run(*command)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"unknown environment variable {name}; did you mean {near}?" in err


def test_variables_of_other_commands_and_of_kubernetes_are_no_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIANISSIMO_MAX_STREAMS", "3")
    monkeypatch.setenv("PIANISSIMO_MODELS", str(tmp_path))
    for name in ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT_7860_TCP_ADDR"):
        monkeypatch.setenv(f"PIANISSIMO_{name}", "10.0.0.1")
    assert run("models", "list")[0] == 0


def test_help_and_import_ignore_unknown_variables(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIANISSIMO_NONSENSE", "1")
    assert run("--version")[0] == run("serve", "--help")[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_is_complete(command: str, run: Run) -> None:
    """One line of summary that is not cut off in the list of commands, and help for each option."""
    summary = next(line for line in run("--help")[1].splitlines() if line.split()[:1] == [command])
    assert "..." not in summary and summary.endswith(".")
    for option in COMMANDS[command].params:
        assert option.help, option.name
    assert run(command, "--help")[0] == 0
