"""The command line: what it writes where, and with what exit code, above all for bad input."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile

from pianissimo import __version__
from pianissimo.cli import main
from pianissimo.transcript import Transcript

CLIPS = Path(__file__).parents[2] / "examples" / "audio"
RATE = 16_000


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return self.err.splitlines()

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def environment(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIANISSIMO_MODEL", str(tiny_model_folder))
    monkeypatch.setenv("PIANISSIMO_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PIANISSIMO_DEVICE", "cpu")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process: a start of Python and PyTorch costs seconds."""

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


def start(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    """The real command, as a process of its own."""
    command = [sys.executable, "-m", "pianissimo", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)  # type: ignore[call-overload]


def tone(seconds: float, channels: int = 1) -> np.ndarray:
    wave = 0.1 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.wav"
    speech, _ = soundfile.read(CLIPS / "sentence.flac")  # a tone would be no evidence of speech
    soundfile.write(path, speech[RATE // 4 :][:RATE], RATE)
    return path


def silent_video(path: Path) -> None:
    with av.open(path, "w") as out:
        picture = out.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        for index in range(5):
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), index, np.uint8), "rgb24")
            out.mux(picture.encode(image))
        out.mux(picture.encode(None))


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A folder with one file, or worse, for every kind of unusable input."""
    folder = tmp_path / "bad"
    (folder / "folder").mkdir(parents=True)
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("These are no samples, whatever the name says.\n" * 50)
    (folder / "header.flac").write_bytes((CLIPS / "quiet.flac").read_bytes()[:30])
    silent_video(folder / "video.mp4")
    for name, value in (("nan.wav", np.nan), ("inf.wav", np.inf)):
        samples = tone(0.5)
        samples[4000] = value
        soundfile.write(folder / name, samples, RATE, subtype="FLOAT")
    return folder


# -- transcribing ----------------------------------------------------------------------------------


def test_one_file_is_plain_text_on_stdout(cli: Cli, good: Path) -> None:
    result = cli("transcribe", good)
    assert result.code == 0
    assert result.out.strip() and "==>" not in result.out
    assert result.err == ""


def test_several_files_come_in_the_order_given_under_headers(cli: Cli, good: Path) -> None:
    clips = [CLIPS / "sentence.flac", good, CLIPS / "number.flac"]
    result = cli("transcribe", *clips)
    headers = [line for line in result.out.splitlines() if line.startswith("==>")]
    assert headers == [f"==> {clip} <==" for clip in clips]
    assert result.out.count("\n\n==>") == 2


def test_json_is_one_object_per_file(cli: Cli, good: Path) -> None:
    result = cli("transcribe", "--json", good, CLIPS / "sentence.flac", good.with_name("no.wav"))
    assert result.code == 3
    by_file = {record["file"]: record for record in result.records}
    assert by_file.keys() == {
        str(good),
        str(CLIPS / "sentence.flac"),
        str(good.with_name("no.wav")),
    }
    assert by_file[str(good)]["text"] and by_file[str(good)]["segments"][0]["words"]
    assert by_file[str(good.with_name("no.wav"))]["error"]["code"] == "audio_not_found"


def test_formats_are_written_to_files_named_after_the_input(
    cli: Cli, good: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "deep"
    result = cli("transcribe", good, "--format", "all", "--output", folder)
    assert (result.code, result.out) == (0, "")
    names = {f"good.{suffix}" for suffix in ("txt", "srt", "vtt", "tsv", "json")}
    assert {path.name for path in folder.iterdir()} == names
    assert Transcript.from_json((folder / "good.json").read_text()).duration == 1.0


def test_whisper_spellings_are_accepted(cli: Cli, good: Path, tmp_path: Path) -> None:
    options = ["--output_format", "json", "--output_dir", str(tmp_path / "o")]
    for spelling in (["--word_timestamps", "False"], ["--word_timestamps=False"]):
        assert cli("transcribe", good, *options, *spelling).code == 0
        saved = Transcript.from_json((tmp_path / "o" / "good.json").read_text())
        assert saved.text and saved.words == ()
    assert cli("transcribe", good, *options, "--word_timestamps", "True").code == 0
    assert Transcript.from_json((tmp_path / "o" / "good.json").read_text()).words
    assert cli("transcribe", good, "--word_timestamps", "maybe").code == 2


def test_skip_existing_does_only_what_is_missing(cli: Cli, good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "good.txt").write_text("already here\n")
    result = cli("transcribe", good, CLIPS, "-o", out, "--skip-existing", "-v")
    assert result.code == 0
    assert "skipped 1 files" in result.err and "3 files" in result.err
    assert (out / "good.txt").read_text() == "already here\n"
    assert (out / "sentence.txt").is_file()


def test_outputs_of_one_name_keep_their_suffixes(cli: Cli, good: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.flac", tone(0.5), RATE)
    assert cli("transcribe", good, tmp_path / "good.flac", "-o", tmp_path / "out").code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"good.wav.txt", "good.flac.txt"}
    (tmp_path / "other").mkdir()
    soundfile.write(tmp_path / "other" / "good.wav", tone(0.5), RATE)
    result = cli("transcribe", good, tmp_path / "other" / "good.wav", "-o", tmp_path / "out")
    assert result.code == 2 and "same place" in result.err


def test_a_directory_keeps_its_shape_below_output(cli: Cli, good: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    for path in (tree / "a.wav", tree / "sub" / "a.wav", tree / ".hidden.wav"):
        soundfile.write(path, tone(0.5), RATE)
    (tree / "notes.txt").write_text("not audio")
    assert cli("transcribe", tree, "-o", tmp_path / "flat").code == 0
    assert [p.name for p in (tmp_path / "flat").rglob("*.txt")] == ["a.txt"]
    assert cli("transcribe", tree, "--recursive", "-o", tmp_path / "deep").code == 0
    written = {str(p.relative_to(tmp_path / "deep")) for p in (tmp_path / "deep").rglob("*.txt")}
    assert written == {"a.txt", "sub/a.txt"}


def test_options_come_from_the_environment(
    cli: Cli, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIANISSIMO_FORMAT", "srt")
    monkeypatch.setenv("PIANISSIMO_HEAD", "ctc")
    assert " --> " in cli("transcribe", good).out
    monkeypatch.setenv("PIANISSIMO_LATENCY", "81")
    result = cli("transcribe", good)
    assert result.code == 2 and "81 ms" in result.err


@pytest.mark.parametrize("latency", ["80", "1120"])
def test_latency_and_head_are_passed_on(cli: Cli, latency: str) -> None:
    clip = CLIPS / "sentence.flac"
    texts = {cli("transcribe", clip, "--latency", latency, "--head", head).out for head in HEADS}
    assert len(texts) == 2


HEADS = ("transducer", "ctc")


# -- live ------------------------------------------------------------------------------------------


def test_stream_shows_partials_on_stderr_and_the_text_on_stdout(cli: Cli) -> None:
    result = cli("transcribe", "--stream", CLIPS / "sentence.flac")
    assert result.code == 0
    assert len(result.errors) > 5
    assert all(line.startswith("[") and " s] " in line for line in result.errors)
    said = [line.split("] ", 1)[1] for line in result.errors]
    assert all(later.startswith(earlier) for earlier, later in pairwise(said))
    assert " ".join(result.out.split()).startswith(" ".join(said[-1].split()))
    quiet = cli("transcribe", "--stream", "--quiet", CLIPS / "sentence.flac")
    assert (quiet.out, quiet.err) == (result.out, "")


def test_stream_with_json_writes_events(cli: Cli) -> None:
    result = cli("transcribe", "--stream", "--json", CLIPS / "sentence.flac")
    types = [record["type"] for record in result.records]
    assert types.count("final") == 1 and types[-1] == "final" and "partial" in types
    assert result.err == ""


def test_stream_in_real_time_takes_as_long_as_the_recording(cli: Cli, good: Path) -> None:
    began = time.monotonic()
    assert cli("transcribe", "--stream", "--realtime", good).code == 0
    assert time.monotonic() - began >= 1.0


def test_stream_saves_like_transcribing_whole(cli: Cli, good: Path, tmp_path: Path) -> None:
    options = ["--latency", "1120", "-f", "json", "-o"]
    assert cli("transcribe", "--stream", good, *options, tmp_path / "live").code == 0
    assert cli("transcribe", good, *options, tmp_path / "whole").code == 0
    live, whole = (
        Transcript.from_json((tmp_path / name / "good.json").read_text())
        for name in ("live", "whole")
    )
    assert [w.text for w in live.words] == [w.text for w in whole.words]
    assert live.duration == whole.duration


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.wav", "no such file"),
        ("empty.wav", "is empty"),
        ("text.wav", "not audio"),
        ("header.flac", "audio"),
        ("video.mp4", "no audio track"),
        ("nan.wav", "nan"),
        ("inf.wav", "inf"),
        ("folder", "no audio files"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_file_is_one_clear_line_and_the_others_go_on(
    cli: Cli, bad: Path, good: Path, name: str, says: str, stream: bool
) -> None:
    options = ["--stream", "--quiet"] if stream else []
    result = cli("transcribe", bad / name, good, *options)
    assert result.code == 3
    line, count = result.errors
    assert line.startswith(f"pianissimo: {bad / name}") and says in line.lower()
    assert line.count(str(bad / name)) == 1
    assert count == "pianissimo: 1 of 2 files failed"
    assert f"==> {good} <==" in result.out and result.out.splitlines()[1]


def test_a_lone_bad_file_is_exactly_one_line(cli: Cli, bad: Path) -> None:
    result = cli("transcribe", bad / "empty.wav")
    assert (result.code, result.out, len(result.errors)) == (3, "", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(cli: Cli, good: Path) -> None:
    good.chmod(0)
    result = cli("transcribe", good)
    assert result.code == 3 and "permission" in result.err


def test_unusual_but_usable_audio_is_transcribed(cli: Cli, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", tone(0.01), RATE)
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    soundfile.write(tmp_path / "surround.wav", tone(0.5, channels=8), RATE)
    truncated = (CLIPS / "sentence.flac").read_bytes()
    (tmp_path / "truncated.flac").write_bytes(truncated[: len(truncated) // 2])
    (tmp_path / "flac.mp3").write_bytes(truncated)
    result = cli("transcribe", "--json", tmp_path)
    assert (result.code, result.err) == (0, "")
    seconds = {Path(r["file"]).name: r["duration"] for r in result.records}
    assert seconds["short.wav"] == 0.01 and seconds["surround.wav"] == 0.5
    assert 0.5 < seconds["truncated.flac"] < seconds["flac.mp3"]


def test_standard_input(cli: Cli, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, code in ((good.read_bytes(), 0), (b"", 3)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        result = cli("transcribe", "-")
        assert result.code == code
    assert result.errors == ["pianissimo: standard input is empty: there is no audio to read"]


@pytest.mark.parametrize(
    "options",
    [
        ["--bogus"],
        ["--format", "doc"],
        ["--format", "srt,vtt"],
        ["--latency", "soon"],
        ["--latency", "100"],
        ["--latency", "100", "--stream"],
        ["--device", "abacus"],
        ["--dtype", "int1"],
        ["--head", "neck"],
        ["--skip-existing"],
        ["--realtime"],
        ["--json", "--format", "srt"],
        ["--output", "/dev/null/out"],
        ["-", "-"],
        ["--hotword-file", "none.txt"],
        ["--word-bonus", "1.0"],
    ],
)
def test_nonsense_is_a_usage_error_of_one_line(cli: Cli, good: Path, options: list[str]) -> None:
    result = cli("transcribe", good, *options)
    assert (result.code, result.out, len(result.errors)) == (2, "", 1)


def test_an_input_named_twice_is_refused(cli: Cli, good: Path, tmp_path: Path) -> None:
    result = cli("transcribe", good, good, "--output", tmp_path / "out")
    assert result.code == 2 and f"{good} is named twice" in result.err
    result = cli("transcribe", "-", good, "-")
    assert result.code == 2 and "standard input can be read once" in result.err


def test_hotword_files_may_have_a_bom(cli: Cli, good: Path) -> None:
    plain, marked = good.with_name("plain.txt"), good.with_name("marked.txt")
    plain.write_text("sea shells\n", encoding="utf-8")
    marked.write_text("sea shells\n", encoding="utf-8-sig")
    found = [cli("transcribe", good, "--hotword-file", file) for file in (plain, marked)]
    assert [result.code for result in found] == [0, 0]
    assert found[0].out == found[1].out


def test_subtitles_of_several_files_need_a_folder(cli: Cli, good: Path) -> None:
    result = cli("transcribe", good, CLIPS, "--format", "srt")
    assert result.code == 2 and "--output" in result.err
    assert cli("transcribe").code == 2


def test_an_output_that_cannot_be_written_fails_that_file_only(
    cli: Cli, good: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "good.txt").mkdir(parents=True)
    result = cli("transcribe", good, CLIPS / "quiet.flac", "-o", tmp_path / "out")
    assert result.code == 3 and "cannot be written" in result.errors[0]
    assert (tmp_path / "out" / "quiet.txt").is_file()


def test_an_unexpected_error_is_short_unless_asked(
    cli: Cli, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("pianissimo.zoo.load.load", broken)
    result = cli("transcribe", good)
    assert (result.code, len(result.errors)) == (1, 1)
    assert "RuntimeError: a fault of ours" in result.err
    assert "Traceback" in cli("transcribe", good, "-v").err
    monkeypatch.setenv("PIANISSIMO_DEBUG", "1")
    assert "Traceback" in cli("transcribe", good).err


# -- models ----------------------------------------------------------------------------------------


class Payload:
    """Unpickling this makes a file: the proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def hostile_models(tmp_path: Path) -> Iterator[str | Path]:
    yield "no-such-model"
    yield tmp_path / "nowhere"
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    config = b"target: nemo.collections.asr.models.EncDecRNNTBPEModel\n"
    members = {"model_config.yaml": config, "model_weights.ckpt": payload}
    yield archive(tmp_path / "pickle.nemo", members)
    yield archive(tmp_path / "path.nemo", {"../escaped": b"x", **members})
    (tmp_path / "text.nemo").write_text("no archive")
    yield tmp_path / "text.nemo"
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text('{"architectures": ["ParakeetForCTC"]}')
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (half / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (half / shards["a"]).write_bytes(b"")
    yield half
    (tmp_path / "bare").mkdir()
    yield tmp_path / "bare"


def test_a_model_that_cannot_be_used_is_one_line_and_exit_4(
    cli: Cli, good: Path, tmp_path: Path
) -> None:
    for model in hostile_models(tmp_path):
        result = cli("transcribe", good, "--model", model)
        assert (result.code, result.out, len(result.errors)) == (4, "", 1), result
        assert result.err.startswith("pianissimo: ")
    assert not (tmp_path / "ran").exists() and not (tmp_path.parent / "escaped").exists()


def test_pull_without_a_network_says_what_to_do(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = cli("pull", "parakeet-ctc-0.6b")
    assert (result.code, result.out, len(result.errors)) == (4, "", 1)
    assert str(tmp_path / "models" / "parakeet-ctc-0.6b") in result.err
    assert cli("pull", "no-such-model").code == 4


def test_a_model_is_recommended_in_two_lines(cli: Cli) -> None:
    wish = ("--lang", "zh", "--live", "--quiet", "--device", "cpu", "--max-rtf", "5")
    first, how = cli("models", "recommend", *wish).out.splitlines()
    name, why = first.split(" ", 1)
    assert name in cli("models", "list").out
    assert "knows zh" in why and "arithmetic" in why and "; rather than " in why
    assert how.startswith(f"pianissimo pull {name} && pianissimo listen --model {name}  # ")
    record = json.loads(cli("models", "recommend", *wish, "--json").out)
    assert record["name"].endswith(name) and (record["why"], record["how"]) == (why, how)
    assert "whisper-tiny" in record["passed_over"]
    impossible = cli("models", "recommend", "--lang", "zh", "--max-rtf", "0.000001")
    assert impossible.code == 4 and "no model for zh is so quick here" in impossible.err
    assert "(unverified)" in cli("models", "show", "whisper-base").out


def test_models_are_listed_and_shown(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "models" / "parakeet-ctc-0.6b").mkdir(parents=True)
    assert cli("models").out == cli("models", "list").out
    listed = json.loads(cli("models", "list", "--json").out)
    here = {entry["name"]: entry["path"] for entry in listed}
    assert here["nvidia/parakeet-ctc-0.6b"] == str(tmp_path / "models" / "parakeet-ctc-0.6b")
    assert here["nvidia/nemotron-speech-streaming-en-0.6b"] is None
    assert "pianissimo pull parakeet-tdt" in cli("models", "show", "PARAKEET-tdt-0.6b-v2").out
    assert json.loads(cli("models", "show", "parakeet-ctc-0.6b", "--json").out)["streams"] is False
    assert cli("models", "show", "no-such-model").code == 4


# -- doctor, evaluate, train -----------------------------------------------------------------------


def test_doctor(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = cli("doctor")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["ok"] * 6
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIANISSIMO_MODELS", str(tmp_path / "file" / "models"))
    result = cli("doctor", "--model", "no-such-model", "--json")
    assert result.code == 3
    report = json.loads(result.out)
    wrong = {check["check"]: check["fix"] for check in report["checks"] if not check["ok"]}
    assert wrong.keys() == {"model", "models folder"} and all(wrong.values())


@pytest.mark.parametrize(
    ("seconds", "healthy"), [((5.0, 1.0), True), ((12.0, 11.0), False)], ids=["first", "slow"]
)
def test_doctor_reports_a_machine_that_is_slower_than_speech(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], healthy: bool
) -> None:
    """Only the first call may be slow: it loads what is needed once."""
    from pianissimo.cli import doctor

    class Slow:
        name = "slow"

        def transcribe(self, samples: object, *, sample_rate: int) -> None:
            clock.append(clock[-1] + spent.pop(0))

    clock, spent = [0.0], list(seconds)
    monkeypatch.setattr("pianissimo.zoo.load.load", lambda *given, **options: Slow())
    monkeypatch.setattr(doctor, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    result = doctor.check_model(None, "cpu")
    assert f"in {seconds[1]:.1f} s" in result.state
    assert bool(result.fix) is not healthy
    assert healthy or "slower than real time" in result.fix


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [
        {"audio_filepath": "a.wav", "text": "Hello, World!", "text_norm": "hello world"},
        {"audio_filepath": "b.wav", "text": "One two.", "subset": "numbers", "duration": 0.5},
    ]
    for row in rows:
        soundfile.write(tmp_path / row["audio_filepath"], tone(0.5), RATE)
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def test_evaluate(cli: Cli, manifest: Path) -> None:
    result = cli("evaluate", manifest, "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert [one["latency_ms"] for one in report["passes"]] == [80, 160, 560, 1120]
    assert {s["subset"]: s["words"] for s in report["passes"][0]["subsets"]} == {
        "all": 2,
        "numbers": 2,
    }
    assert report["passes"][0]["total"]["words"] == 4
    table = cli("evaluate", manifest, "--latency", "80", "--latency", "160").out
    assert "numbers" in table and "80 ms" in table and "160 ms" in table
    assert "…" not in cli("evaluate", manifest).out
    one = json.loads(cli("evaluate", manifest, "--subset", "numbers", "--json").out)
    assert one["passes"][0]["total"]["recordings"] == 1


def test_evaluate_live_streams(cli: Cli, manifest: Path) -> None:
    (manifest.parent / "b.wav").write_bytes(b"no audio")
    result = cli("evaluate", manifest, "--stream", "--latency", "160", "--json")
    assert result.code == 3 and "b.wav" in result.err
    (one,) = json.loads(result.out)["passes"]
    assert (one["latency_ms"], one["total"]["recordings"], one["total"]["failed"]) == (160, 2, 1)
    assert set(one["delays"]) == {"first_word", "word", "final", "changed"}
    table = cli("evaluate", manifest, "--stream", "--latency", "160").out
    assert "final, s p50 / p95" in table and "changed by the final" in table
    assert cli("evaluate", manifest, "--second-pass").code == 2
    assert cli("evaluate", manifest, "--stream", "--diarize").code == 2


def test_evaluate_has_no_rate_where_there_are_no_words(cli: Cli, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5), RATE)
    rows = [{"audio_filepath": "a.wav", "text": ""}, {"audio_filepath": "none.wav", "text": "one"}]
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    result = cli("evaluate", path, "--latency", "80", "--latency", "80")
    assert result.code == 3
    assert result.errors == [f"pianissimo: {tmp_path / 'none.wav'}: no such file; check the path"]
    assert result.out.count("80 ms") == 1
    assert "0.00" not in result.out and "inf" not in result.out


def test_evaluate_refuses_what_it_cannot_score(cli: Cli, manifest: Path) -> None:
    assert cli("evaluate", manifest, "--subset", "letters").code == 2
    assert cli("evaluate", manifest, "--latency", "90").code == 2
    (manifest.parent / "a.wav").unlink()
    result = cli("evaluate", manifest, "--latency", "80", "--json")
    assert result.code == 3 and len(result.errors) == 1 and "a.wav" in result.err
    assert json.loads(result.out)["passes"][0]["total"]["failed"] == 1
    manifest.write_text('{"audio_filepath": "b.wav"}\nnonsense\n')
    result = cli("evaluate", manifest)
    assert result.code == 3 and "line 1" in result.err and "line 2" in result.err
    assert cli("evaluate", manifest.parent / "none.jsonl").code == 3


def test_train_runs_the_main_of_a_recipe(cli: Cli, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "def main(data, run, *, dev, device, minutes, tensorboard):\n"
        "    run.mkdir()\n"
        "    told = f'{data.name} {dev.name} {device} {minutes} {tensorboard}'\n"
        "    (run / 'log').write_text(told)\n"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "dev.jsonl").touch()
    options = ["--data", tmp_path / "data", "--run", tmp_path / "run"]
    more = ["--minutes", "2", "--dev", tmp_path / "dev.jsonl", "--tensorboard"]
    assert cli("train", recipe, *options, *more).code == 0
    assert (tmp_path / "run" / "log").read_text() == "data dev.jsonl cpu 2.0 True"
    recipe.write_text("def mian(): ...\n")
    nowhere = [recipe, "--dev", tmp_path / "none.jsonl"]
    for faulty in ([recipe], [tmp_path / "none.py"], [recipe, "--minutes", "0"], nowhere):
        result = cli("train", *faulty, *options)
        assert result.code == 2 and len(result.errors) == 1
    recipe.write_text("def main(:\n")
    assert cli("train", recipe, *options).code == 2


# -- the real command ------------------------------------------------------------------------------


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == f"pianissimo {__version__}\n"
    for arguments in (["--help"], ["transcribe", "--help"], ["models", "-h"]):
        result = cli(*arguments)
        assert result.code == 0 and "Usage: pianissimo" in result.out
    assert cli().code == 2
    assert cli("sing").code == 2


def test_as_a_process(good: Path, bad: Path) -> None:
    process = start("transcribe", good, bad / "nan.wav")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert out.startswith(f"==> {good} <==\n") and len(err.splitlines()) == 2


def test_an_interrupt_keeps_what_is_done(good: Path) -> None:
    process = start("transcribe", "--stream", "--realtime", good, *[CLIPS / "quiet.flac"] * 9)
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert lines[0] == f"==> {good} <==\n" and lines[1].strip()
    assert "Traceback" not in err and "1 of 10 files were done" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
@pytest.mark.parametrize("arguments", [["models"], ["transcribe", CLIPS / "quiet.flac"]])
def test_a_full_disk_is_one_clear_line(arguments: list[str | Path]) -> None:
    command = [sys.executable, "-m", "pianissimo", *map(str, arguments)]
    with open("/dev/full", "w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 3
    line = "pianissimo: standard output cannot be written: No space left on device"
    assert found.stderr.splitlines() == [line]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "2>/dev/full"])
def test_closed_and_full_streams_change_nothing_else(closed: str, good: Path) -> None:
    script = f'"$0" -m pianissimo transcribe none.wav "$1" {closed}'
    command = ["sh", "-c", script, sys.executable, str(good)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 3
    assert "none.wav" not in found.stdout and "Traceback" not in found.stderr


def test_an_interrupt_keeps_what_was_said_of_a_recording() -> None:
    process = start("transcribe", "--stream", "--realtime", *[CLIPS / "sentence.flac"] * 2)
    assert process.stderr is not None
    told = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "0 of 2 files were done" in err
    header, text = out.splitlines()
    assert header == f"==> {CLIPS / 'sentence.flac'} <=="
    assert text.startswith(told.split("] ")[1].strip())


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    process = start("transcribe", "--json", "--quiet", CLIPS)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141
