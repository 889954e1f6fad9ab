"""Folders of recordings: several processes, kills and resumption, failures, what ends up where."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile

from pianissimo.cli import main
from pianissimo.cli.report import AudioBar, clock
from pianissimo.transcript import Transcript

CLIPS = Path(__file__).parents[2] / "examples" / "audio"
RATE = 16_000
PATIENCE_SECONDS = 120.0
"""How long a test waits for a process on a machine that is busy with other things."""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def environment(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIANISSIMO_MODEL", str(tiny_model_folder))
    monkeypatch.setenv("PIANISSIMO_DEVICE", "cpu")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, whose own processes write to the same stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def start(*arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pianissimo", *map(str, arguments)]
    pipe = subprocess.PIPE
    given = {"stdout": pipe, "stderr": pipe, "text": True, **options}
    return subprocess.Popen(command, **given)  # type: ignore[call-overload]


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.002)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Recordings of speech in two folders, with things between them that are none."""
    folder = tmp_path / "tree"
    (folder / "sub" / "deep").mkdir(parents=True)
    speech, rate = soundfile.read(CLIPS / "sentence.flac")
    for i, place in enumerate(("a.wav", "b.flac", "sub/a.wav", "sub/deep/c.ogg", "sub/d.wav")):
        soundfile.write(folder / place, speech[i * 800 : i * 800 + rate], rate)
    (folder / "notes.txt").write_text("not audio")
    os.mkfifo(folder / "sub" / "pipe.wav")
    return folder


PLACES = {"a", "b", "sub/a", "sub/deep/c", "sub/d"}


def written(out: Path, suffix: str = "json") -> dict[str, Path]:
    paths = out.rglob(f"*.{suffix}")
    return {str(path.relative_to(out).with_suffix("")): path for path in paths}


# -- several processes -----------------------------------------------------------------------------


def test_several_processes_write_what_one_does(cli: Cli, tree: Path, tmp_path: Path) -> None:
    options = ["--recursive", "-f", "srt,json"]
    for jobs in ("1", "2"):
        code, out, err = cli("transcribe", tree, *options, "--jobs", jobs, "-o", tmp_path / jobs)
        assert (code, out) == (0, "")
        (line,) = err.splitlines()
        assert line.startswith("pianissimo: skipped 2 files without audio: ")
        assert "notes.txt" in line and "pipe.wav" in line
    for suffix in ("srt", "json"):
        one, two = written(tmp_path / "1", suffix), written(tmp_path / "2", suffix)
        assert one.keys() == two.keys() == PLACES
    for place, path in written(tmp_path / "1").items():
        one, two = (
            Transcript.from_json(p.read_text()) for p in (path, written(tmp_path / "2")[place])
        )
        assert one.text and one.text == two.text
        assert [(w.text, w.start, w.end) for w in one.words] == [
            (w.text, w.start, w.end) for w in two.words
        ]


def test_several_processes_print_in_the_order_given(cli: Cli, tree: Path) -> None:
    files = [tree / "b.flac", CLIPS / "number.flac", tree / "a.wav"]
    one = cli("transcribe", *files)
    two = cli("transcribe", *files, "--jobs", "2")
    assert one == two and one[0] == 0
    assert [line for line in one[1].splitlines() if line.startswith("==>")] == [
        f"==> {file} <==" for file in files
    ]


def test_what_is_wrong_with_the_options_ends_all_processes(cli: Cli, tree: Path) -> None:
    code, _, err = cli("transcribe", tree, "--jobs", "2", "--latency", "81", "--quiet")
    assert code == 2 and len(err.splitlines()) == 1 and "81 ms" in err


@pytest.mark.parametrize("options", [["--stream"], ["-"], ["--jobs", "0"]])
def test_jobs_that_make_no_sense_are_refused(cli: Cli, tree: Path, options: list[str]) -> None:
    code, out, err = cli("transcribe", tree, "--jobs", "2", *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1)


DEADLY = """
import os, sys
def kill(event, arguments):
    if event == "open" and str(arguments[0]).endswith("deadly.wav"):
        os.kill(os.getpid(), 9)
if "pianissimo.cli.job_worker" in sys.orig_argv:
    sys.addaudithook(kill)
"""


def test_a_recording_that_kills_its_process_stops_no_other(
    cli: Cli, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    deadly = tree / "sub" / "deadly.wav"
    deadly.write_bytes((tree / "a.wav").read_bytes())
    out = tmp_path / "out"
    code, _, err = cli("transcribe", tree, "--recursive", "--jobs", "2", "-f", "json", "-o", out)
    assert code == 3
    assert written(out).keys() == PLACES
    (failure,) = map(json.loads, (out / "failed.jsonl").read_text().splitlines())
    assert failure["file"] == str(deadly) and "SIGKILL" in failure["error"]["message"]
    assert "1 of 6 files failed" in err


# -- kills and resumption --------------------------------------------------------------------------


COUNT = 24


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Enough audio that a run over it can be caught in the middle."""
    folder = tmp_path / "many"
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0.0, 0.05, 5 * RATE)
    for i in range(COUNT):
        soundfile.write(folder / f"{i:02}.wav", noise, RATE)
    return folder


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_killed_run_is_taken_up_without_doing_anything_twice(
    cli: Cli, many: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = [many, "-f", "srt,json", "-o", out, "--skip-existing"]
    process = start("transcribe", *options, "--jobs", "2")
    until(lambda: len(written(out)) >= 3, process)
    workers = workers_of(process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(workers) == 2
    end = time.monotonic() + PATIENCE_SECONDS
    while not gone(workers)() and time.monotonic() < end:
        time.sleep(0.01)
    assert gone(workers)(), "its processes outlive it"
    process.communicate()
    done = {name: path.stat().st_mtime_ns for name, path in written(out).items()}
    assert 3 <= len(done) < COUNT
    for path in written(out).values():
        assert Transcript.from_json(path.read_text()).duration == 5.0
    finished = done.keys() & written(out, "srt").keys()
    code, _, err = cli("transcribe", *options, "--verbose")
    assert code == 0
    assert f"skipped {len(finished)} files" in err
    assert len(written(out)) == len(written(out, "srt")) == COUNT
    for name in finished:
        assert written(out)[name].stat().st_mtime_ns == done[name]


DIES_ONCE = """
import os, sys
def kill(event, arguments):
    if event == {event!r} and str(arguments[0]).endswith({end!r}):
        try:
            os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), 9)
if "pianissimo.cli.job_worker" in sys.orig_argv:
    sys.addaudithook(kill)
"""


@pytest.mark.parametrize(
    ("event", "end"), [("import", "torch"), ("open", "05.wav")], ids=["loading", "working"]
)
def test_a_process_that_dies_costs_no_recording(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str, end: str
) -> None:
    """A worker is killed once, before its model is loaded or within a batch."""
    out, marker = tmp_path / "out", tmp_path / "killed"
    (tmp_path / "site").mkdir()
    hook = DIES_ONCE.format(event=event, end=end, marker=str(marker))
    (tmp_path / "site" / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    process = start("transcribe", many, "-f", "json", "-o", out, "--jobs", "2")
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert marker.exists(), "no process was killed"
    assert (process.returncode, err) == (0, "")
    assert len(written(out)) == COUNT


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_an_interrupt_keeps_what_the_processes_did(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # As on a terminal, where Ctrl-C reaches every process of the group.
    process = start(
        "transcribe", many, "-f", "json", "-o", out, "--jobs", "2", start_new_session=True
    )
    until(lambda: len(written(out)) >= 1, process)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    done = written(out)
    assert 1 <= len(done) < COUNT
    assert err.splitlines() == [f"pianissimo: interrupted; {len(done)} of {COUNT} files were done"]
    assert gone(workers)()
    for path in done.values():
        assert Transcript.from_json(path.read_text()).duration == 5.0


# -- shards ----------------------------------------------------------------------------------------


def test_shards_of_an_archive_add_up_to_it(cli: Cli, tree: Path, tmp_path: Path) -> None:
    """In one shared folder, with a list of failures for each shard and one resumed."""
    bad, whole, shared = tree / "bad.wav", tmp_path / "whole", tmp_path / "shared"
    bad.write_text("These are no samples.")
    options = ["--recursive", "-f", "json", "--quiet"]
    assert cli("transcribe", tree, *options, "-o", whole)[0] == 3
    codes, parts = [], []
    for shard in ("1/2", "2/2"):
        before = written(shared).keys()
        codes.append(cli("transcribe", tree, *options, "-o", shared, "--shard", shard)[0])
        parts.append(written(shared).keys() - before)
    assert sorted(codes) == [0, 3], "one of the shards has the bad file"
    assert all(parts) and set.union(*map(set, parts)) == PLACES
    for place, path in written(shared).items():
        alone = Transcript.from_json(written(whole)[place].read_text())
        assert Transcript.from_json(path.read_text()).text == alone.text
    (failures,) = shared.glob("failed*.jsonl")
    assert failures.name == f"failed-{1 + codes.index(3)}-of-2.jsonl"
    assert json.loads(failures.read_text())["file"] == str(bad)
    # The other form of the same shard: several processes, and only what is missing.
    lost = written(shared)[sorted(parts[0])[0]]
    lost.unlink()
    times = {path: path.stat().st_mtime_ns for path in written(shared).values()}
    again = [*options, "-o", shared, "--shard", "1/2", "--skip-existing", "--jobs", "2"]
    assert cli("transcribe", tree, *again)[0] == codes[0]
    assert lost.exists() and {p: p.stat().st_mtime_ns for p in times} == times


def test_shards_of_a_manifest_with_parts(cli: Cli, tree: Path, tmp_path: Path) -> None:
    manifest = tree / "archive.jsonl"
    rows = [
        {"audio_filepath": "a.wav"},
        {"audio_filepath": "sub/d.wav", "duration": 1.0, "text": "of no use here"},
        {"audio_filepath": "sub/deep/c.ogg", "offset": 0.25, "duration": 0.5},
        {"audio_filepath": "sub/deep/c.ogg", "offset": 0.75},
        {"audio_filepath": str(tree / "b.flac")},
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"file": "x"}\n')
    options, out = ["-f", "json", "--quiet"], tmp_path / "out"
    for shard in ("1/3", "2/3", "3/3"):
        code, _, err = cli("transcribe", manifest, *options, "-o", out, "--shard", shard)
        assert code == 3 and "line 6: 'audio_filepath' is missing" in err
    absolute = str((tree / "b").relative_to("/"))
    assert written(out).keys() == {
        *("a", "sub/d", "sub/deep/c@250+500", "sub/deep/c@750", absolute),
    }
    part = Transcript.from_json(written(out)["sub/deep/c@250+500"].read_text())
    assert part.duration == pytest.approx(0.5, abs=0.01)
    code, _, err = cli("transcribe", manifest, *options, "-o", out, "--start", "0:01")
    assert code == 2 and "leave out --start" in err


def test_shards_need_files(cli: Cli, tree: Path) -> None:
    code, _, err = cli("transcribe", "-", "--shard", "1/2")
    assert code == 2 and "standard input cannot be divided" in err
    code, _, err = cli("transcribe", tree, "--shard", "3/2")
    assert code == 2 and "--shard must be I/N" in err


# -- object stores and Parquet ---------------------------------------------------------------------


@pytest.fixture
def store(tree: Path) -> Iterator[str]:
    """The tree of recordings in a file system in memory."""
    files = fsspec.filesystem("memory")
    for path in tree.rglob("*"):
        if path.is_file():
            files.pipe(f"/archive/{path.relative_to(tree)}", path.read_bytes())
    yield "memory://archive"
    files.rm("/archive", recursive=True)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The rows of all Parquet files."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra archive")
    return [row for path in folder.iterdir() for row in parquet.read_table(path).to_pylist()]


def test_an_archive_in_an_object_store(cli: Cli, tree: Path, store: str, tmp_path: Path) -> None:
    local, remote = tmp_path / "local", tmp_path / "remote"
    options = ["--recursive", "-f", "json", "--quiet", "-o"]
    assert cli("transcribe", tree, *options, local)[0] == 0
    for shard in ("1/2", "2/2"):
        code, _, err = cli("transcribe", store, *options, remote, "--shard", shard)
        assert code == 0, err
    assert written(remote).keys() == written(local).keys() == PLACES
    for place, path in written(remote).items():
        alone = Transcript.from_json(written(local)[place].read_text())
        assert Transcript.from_json(path.read_text()) == alone
    manifest = tmp_path / "list.jsonl"
    line = {"audio_filepath": f"{store}/a.wav", "offset": 0.25, "duration": 0.5}
    manifest.write_text(json.dumps(line) + "\n")
    assert cli("transcribe", manifest, *options, tmp_path / "parts")[0] == 0
    assert written(tmp_path / "parts").keys() == {"archive/a@250+500"}
    code, _, err = cli("transcribe", f"{store}/none.wav", "nonsense://a/b.wav")
    assert code == 2 and "nonsense" in err
    code, _, err = cli("transcribe", f"{store}/none.wav")
    assert code == 3 and "none.wav cannot be opened" in err


def test_rows_of_an_archive(cli: Cli, tree: Path, store: str, tmp_path: Path) -> None:
    """In a local directory and in a store; the second run adds only what has no transcript."""
    bad, folder = tree / "bad.wav", tmp_path / "rows"
    bad.write_text("These are no samples.")
    options = ["--recursive", "--quiet", "--parquet", folder]
    pytest.importorskip("pyarrow", reason="needs the extra archive")
    code, out, _ = cli("transcribe", tree, *options, "--shard", "1/2")
    first = {row["file"] for row in rows_in(folder) if row["error_code"] is None}
    assert code in (0, 3) and out == "" and first
    code, _, err = cli("transcribe", tree, *options, "--skip-existing")
    assert code == 3, err
    done = {row["file"]: row for row in rows_in(folder) if row["error_code"] is None}
    failed = [row for row in rows_in(folder) if row["error_code"] is not None]
    assert len(done) + len(failed) == len(rows_in(folder)) and first < done.keys()
    assert {str(Path(name).relative_to(tree).with_suffix("")) for name in done} == PLACES
    assert {row["file"] for row in failed} == {str(bad)} and failed[0]["error_message"]
    code, out, _ = cli("transcribe", tree / "a.wav", "--json", "--quiet")
    alone = json.loads(out)
    row = done[str(tree / "a.wav")]
    assert (row["text"], row["duration"]) == (alone["text"], alone["duration"])
    said = [word for segment in alone["segments"] for word in segment["words"]]
    assert [word["text"] for word in row["words"]] == [word["text"] for word in said]
    assert cli("transcribe", store, "-r", "--quiet", "--parquet", "memory://archive/out")[0] == 0
    assert len(fsspec.filesystem("memory").glob("/archive/out/part-*.parquet")) == 1


def test_skip_existing_needs_a_place_of_results(cli: Cli, tree: Path) -> None:
    code, _, err = cli("transcribe", tree, "--skip-existing")
    assert code == 2 and "--output or --parquet" in err


# -- failures --------------------------------------------------------------------------------------


def test_failures_are_listed_at_the_end_and_in_a_file_and_tried_again(
    cli: Cli, tree: Path, tmp_path: Path
) -> None:
    out, bad = tmp_path / "out", tree / "bad.wav"
    bad.write_text("These are no samples.")
    options = ["--recursive", "-f", "json", "-o", out, "--skip-existing"]
    code, _, err = cli("transcribe", tree, tree / "missing.wav", *options)
    assert code == 3
    assert written(out).keys() == PLACES
    last = err.splitlines()[-3:]
    assert last[0] == "pianissimo: 2 of 7 files failed"
    assert all(line.startswith("pianissimo:   ") for line in last[1:])
    failures = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert {f["file"]: f["error"]["code"] for f in failures} == {
        str(bad): "audio_undecodable",
        str(tree / "missing.wav"): "audio_not_found",
    }
    soundfile.write(bad, np.zeros(RATE), RATE)
    before = {name: path.stat().st_mtime_ns for name, path in written(out).items()}
    assert cli("transcribe", tree, *options)[0] == 0
    after = {name: path.stat().st_mtime_ns for name, path in written(out).items()}
    assert after.keys() == PLACES | {"bad"}
    assert before.items() <= after.items()
    assert not (out / "failed.jsonl").exists()


def test_a_fault_of_ours_costs_only_its_own_recording(
    cli: Cli, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pianissimo.recognizers.fastconformer import NativeRecognizer

    batch = NativeRecognizer._batch

    def faulty(self: NativeRecognizer, *given: object, **more: object) -> object:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(NativeRecognizer, "_batch", faulty)
    alone = cli("transcribe", tree, "--recursive", "-f", "json", "-o", tmp_path / "out")
    assert alone[0] == 0 and written(tmp_path / "out").keys() == PLACES
    monkeypatch.setattr(NativeRecognizer, "_batch", batch)
    monkeypatch.setattr(NativeRecognizer, "recognize", faulty)
    code, _, err = cli("transcribe", tree / "a.wav")
    assert code == 3 and len(err.splitlines()) == 1
    assert "unexpected RuntimeError: a fault of ours" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_stops_no_other(cli: Cli, tree: Path) -> None:
    (tree / "sub" / "deep").chmod(0)
    code, out, err = cli("transcribe", tree, "--recursive")
    (tree / "sub" / "deep").chmod(0o755)
    assert code == 3 and out.count("==>") == 4 and "cannot be listed" in err


def test_a_transcript_is_never_written_over_a_recording(cli: Cli, tree: Path) -> None:
    recording = tree / "speech.txt"
    recording.write_bytes((tree / "a.wav").read_bytes())
    code, _, err = cli("transcribe", tree / "sub" / "a.wav", recording, "-o", tree)
    assert code == 2 and "over the recording" in err
    assert recording.read_bytes() == (tree / "a.wav").read_bytes()
    assert not (tree / "a.txt").exists(), "work began before the refusal"


# -- progress --------------------------------------------------------------------------------------


def test_the_bar_counts_audio() -> None:
    bar = AudioBar({0: 60.0, 1: 3600.0, 2: None})
    task = bar._bar.tasks[0]
    assert task.total == 3660.0
    bar.advance(2)
    assert task.description == "1/3 files, 0:00:00 of 1:01:00 of audio"
    bar.start()
    bar.advance(0)
    bar.stop()
    assert task.description.startswith("2/3 files, 0:01:00 of 1:01:00 of audio, ")
    assert task.description.endswith(" left") and "x, " in task.description
    assert clock(36_061.4) == "10:01:01"


def test_a_bar_is_shown_on_a_terminal(tree: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    process = start("transcribe", tree, "-o", tmp_path / "out", stderr=slave)
    os.close(slave)
    shown = b"".join(_until_closed(master))
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert b"0/2 files" in shown and b"2/2 files" in shown and b"of audio" in shown


def _until_closed(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(descriptor, 4096)
        except OSError:  # what Linux says when the other end is closed
            data = b""
        if not data:
            os.close(descriptor)
            return
        yield data


# -- long recordings -------------------------------------------------------------------------------

HOURS = 10
MOST_BYTES = 1_000_000_000


@pytest.mark.slow
def test_ten_hours_need_less_than_a_gigabyte_over_the_model(tmp_path: Path) -> None:
    """The file has holes instead of silence, so it takes little of the disk."""
    speech, _ = soundfile.read(CLIPS / "sentence.flac", dtype="int16")
    recording = tmp_path / "long.wav"
    size = HOURS * 3600 * RATE
    with soundfile.SoundFile(recording, "w", RATE, 1, "PCM_16") as file:
        file.write(speech)
    data = recording.read_bytes()
    header = bytearray(data[: len(data) - 2 * len(speech)])
    header[4:8] = (len(header) - 8 + 2 * size).to_bytes(4, "little")
    header[-4:] = (2 * size).to_bytes(4, "little")
    with recording.open("wb") as raw:
        raw.write(header)
        for minute in range(0, HOURS * 60, 2):
            raw.seek(len(header) + 2 * minute * 60 * RATE)
            raw.write(speech.tobytes())
        raw.truncate(len(header) + 2 * size)
    peaks = []
    for source in (CLIPS / "sentence.flac", recording):
        command = ["transcribe", source, "-f", "json", "-o", tmp_path / "out"]
        process = start(*command)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, process.communicate()
        process.communicate()
        peaks.append(usage.ru_maxrss * 1024)
    transcript = Transcript.from_json((tmp_path / "out" / "long.json").read_text())
    assert transcript.duration == HOURS * 3600
    assert transcript.words[-1].end > (HOURS * 60 - 2) * 60
    assert peaks[1] - peaks[0] < MOST_BYTES
