"""The command line with folders of other families: any format, any length, the right exit code."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr

from pianissimo.audio.io import load_audio
from pianissimo.cli import main

TESTS = Path(__file__).parents[1]
EXAMPLES = TESTS.parent / "examples" / "audio"
GOLDEN = TESTS / "parity" / "golden_families"
FAMILIES = ("wav2vec2", "robust", "mms", "hubert", "data2vec", "wavlm_large", "bert")
FORMATS: dict[str, tuple[str, str]] = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "m4a": ("mp4", "aac"),
    "webm": ("webm", "libopus"),
}
RATES = (8_000, 16_000, 24_000, 48_000)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIANISSIMO_DEVICE", "cpu")


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `pianissimo transcribe` in this process; returns code, stdout and stderr."""

    def transcribe(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["transcribe", *map(str, arguments)])
        return code, *capsys.readouterr()

    return transcribe


@cache
def sentence() -> np.ndarray:
    """A bundled clip of speech at 16 kHz."""
    return load_audio(EXAMPLES / "sentence.flac")


def speech(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Speech over and over: (n,) or (n, channels) floats."""
    clip = soxr.resample(sentence(), 16_000, rate)
    n = round(seconds * rate)
    mono = np.tile(clip, -(-n // len(clip)))[:n].astype(np.float32)
    return mono if channels == 1 else np.stack([mono] * channels, axis=1)


def write(path: Path, rate: int, channels: int, seconds: float = 1.5) -> Path:
    samples = speech(seconds, rate, channels)
    kind, codec = FORMATS[path.suffix[1:]]
    if path.suffix not in (".m4a", ".webm"):
        soundfile.write(path, samples, rate, format=kind, subtype=codec)
        return path
    packed = io.BytesIO()
    with av.open(packed, "w", format=kind) as out:
        track = out.add_stream(codec, rate=rate, layout="stereo" if channels == 2 else "mono")
        interleaved = np.ascontiguousarray(samples.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(
            interleaved, "flt", "stereo" if channels == 2 else "mono"
        )
        frame.sample_rate = rate
        for piece in av.AudioResampler(track.format, track.layout, rate).resample(frame):
            out.mux(track.encode(piece))
        out.mux(track.encode(None))
    path.write_bytes(packed.getvalue())
    return path


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_rate_and_layout_is_heard(
    run: Run, tmp_path: Path, suffix: str, channels: int
) -> None:
    paths = [write(tmp_path / f"{rate}.{suffix}", rate, channels) for rate in RATES]
    code, out, err = run("--model", GOLDEN / "wav2vec2", "--json", *paths)
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    assert len(records) == len(RATES)
    for record in records:
        assert record["text"] and record["model"] == "wav2vec2"
        assert record["duration"] == pytest.approx(1.5, abs=0.2)  # AAC comes in frames of 0.13 s
        assert 0 <= record["segments"][0]["start"] < record["segments"][-1]["end"] <= 1.75


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_transcribes_files_of_any_length(
    run: Run, tmp_path: Path, family: str
) -> None:
    paths = [
        write(tmp_path / f"{i}.wav", 16_000, 1, seconds)
        for i, seconds in enumerate((0.05, 0.3, 1.0, 31.0))
    ]
    code, out, err = run("--model", GOLDEN / family, "--json", *paths)
    assert (code, err) == (0, "")
    records = {json.loads(line)["file"]: json.loads(line) for line in out.splitlines()}
    assert [round(records[str(p)]["duration"], 2) for p in paths] == [0.05, 0.3, 1.0, 31.0]
    assert records[str(paths[3])]["text"]


# HuBERT's random weights say nothing to half of these clips.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "hubert"])
def test_every_family_is_live(run: Run, tmp_path: Path, family: str) -> None:
    pause = np.zeros(16_000, np.float32)
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.concatenate([sentence(), pause, sentence(), pause]), 16_000)
    code, out, err = run("--model", GOLDEN / family, "--stream", "--json", path)
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    finals = [event for event in events if event["type"] == "final"]
    assert [event["reason"] for event in finals] == ["endpoint", "endpoint", "finish"]
    assert finals[0]["text"] and finals[1]["text"] and not finals[2]["text"]
    assert finals[0]["words"][-1]["end"] <= finals[1]["words"][0]["start"]
    code, out, err = run("--model", GOLDEN / family, "--stream", "--format", "srt", "-q", path)
    assert (code, err) == (0, "")
    assert out.startswith("1\n00:00:0") and finals[1]["words"][0]["text"] in out


def test_ten_minutes_are_heard_to_their_end(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "long.flac", 16_000, 1, 600.0)
    code, out, _ = run("--model", GOLDEN / "wav2vec2", "--json", path)
    record = json.loads(out)
    assert code == 0
    assert record["duration"] == pytest.approx(600.0)
    assert record["segments"][-1]["end"] > 595
    starts = [segment["start"] for segment in record["segments"]]
    assert starts == sorted(starts)


def test_bad_files_are_named_and_good_ones_go_on(run: Run, tmp_path: Path) -> None:
    good = write(tmp_path / "good.wav", 16_000, 1)
    text = tmp_path / "text.wav"
    text.write_text("not audio at all", encoding="utf-8")
    code, out, err = run("--model", GOLDEN / "hubert", text, good, tmp_path / "missing.wav")
    assert code == 3
    assert f"==> {good} <==" in out
    assert "text.wav" in err and "missing.wav" in err and "Traceback" not in err


def test_what_the_model_cannot_do_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    good = write(tmp_path / "good.wav", 16_000, 1)
    live = ["--stream", "--latency", "160"]
    partials = ["--partials", "embedded-en"]
    for option in (live, ["--latency", "160"], ["--head", "transducer"], partials):
        code, out, err = run("--model", GOLDEN / "wavlm_large", *option, good)
        assert (code, out) == (2, ""), option
        assert err.startswith("pianissimo: ") and err.count("\n") == 1


def test_a_damaged_folder_is_a_model_error(run: Run, tmp_path: Path) -> None:
    good = write(tmp_path / "good.wav", 16_000, 1)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "vocab.json", "processor_config.json"):
        (broken / name).write_bytes((GOLDEN / "wav2vec2" / name).read_bytes())
    code, out, err = run("--model", broken, good)
    assert (code, out) == (4, "")
    assert "model.safetensors" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "model",
    [
        "golden/nemo/conformer.nemo",
        "golden/nemo/tdt.nemo",
        "golden/hf/parakeet_rnnt",
        "golden_espnet/latest.zip",
        "golden_espnet/ctc_only.zip",
    ],
)
def test_models_of_nemo_and_espnet_hear_every_format_and_invent_nothing(
    run: Run, tmp_path: Path, model: str
) -> None:
    rates = (*RATES, 48_000, 48_000)
    paths = [
        write(tmp_path / f"{suffix}.{suffix}", rate, channels)
        for suffix, rate, channels in zip(FORMATS, rates, (1, 2) * 3, strict=True)
    ]
    soundfile.write(tmp_path / "silence.wav", np.zeros(50_000, np.int16), 16_000)
    soundfile.write(tmp_path / "short.wav", np.zeros(800, np.int16), 16_000)
    silent = [tmp_path / "silence.wav", tmp_path / "short.wav"]
    chosen = ["--model", TESTS / "parity" / model]
    code, out, err = run(*chosen, "--beam", "2", "--json", *paths, *silent)
    assert (code, err) == (0, "")
    records = {json.loads(line)["file"]: json.loads(line) for line in out.splitlines()}
    for path in paths:
        record = records[str(path)]
        assert record["text"] or record["reasons"], "random text may be refused, with a reason"
        assert record["duration"] == pytest.approx(1.5, abs=0.2)
    assert not any(records[str(path)]["text"] for path in silent)
    code, out, err = run(*chosen, "--stream", "--json", *silent)
    assert (code, err) == (0, "")
    assert not any(json.loads(line)["text"] for line in out.splitlines())


@pytest.fixture(scope="module")
def text_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of the families that write with a language model."""
    pytest.importorskip("transformers", reason="needs the extra families")
    sys.path.insert(0, str(TESTS / "unit" / "adapters"))
    try:
        from tiny_glm_asr import save_tiny_glm_asr
        from tiny_whisper import save_tiny_whisper
    finally:
        sys.path.pop(0)

    folder = tmp_path_factory.mktemp("text-models")
    save_tiny_whisper(folder / "whisper")
    save_tiny_glm_asr(folder / "glm_asr")
    return {name: folder / name for name in ("whisper", "glm_asr")}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", ["whisper", "glm_asr"])
def test_models_that_write_hear_every_format_and_invent_nothing(
    run: Run, tmp_path: Path, text_models: dict[str, Path], family: str
) -> None:
    paths = [
        write(tmp_path / f"{suffix}.{suffix}", rate, channels, 2.0)
        for suffix, rate, channels in zip(
            FORMATS, (*RATES, 48_000, 48_000), (1, 2) * 3, strict=True
        )
    ]
    soundfile.write(tmp_path / "silence.wav", np.zeros(50_000, np.int16), 16_000)
    soundfile.write(tmp_path / "short.wav", speech(0.05, 16_000), 16_000)
    silent = [tmp_path / "silence.wav", tmp_path / "short.wav"]
    code, out, err = run("--model", text_models[family], "--json", *paths, *silent)
    assert (code, err) == (0, "")
    records = {json.loads(line)["file"]: json.loads(line) for line in out.splitlines()}
    for path in paths:
        assert records[str(path)]["text"] and records[str(path)]["segments"]
        assert records[str(path)]["duration"] == pytest.approx(2.0, abs=0.2)
    for path in silent:
        assert records[str(path)]["text"] == "" and records[str(path)]["reasons"]
    code, out, err = run("--model", text_models[family], "--stream", "--json", paths[0], *silent)
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [e["reason"] for e in events if e["file"] == str(paths[0])] == ["finish"]
    assert events[0]["text"] and not any(event["text"] for event in events[1:])
    for option in (["--stream", "--latency", "160"], ["--latency", "160"], ["--head", "ctc"]):
        code, out, err = run("--model", text_models[family], *option, paths[0])
        assert (code, out) == (2, "") and "Traceback" not in err, option


@pytest.fixture(scope="module")
def runtime_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models for other runtimes than PyTorch."""
    for package in ("sherpa_onnx", "onnx"):
        pytest.importorskip(package, reason="needs the extra sherpa, and onnx to make models")
    sys.path.insert(0, str(TESTS / "unit" / "adapters"))
    try:
        import tiny_sherpa
    finally:
        sys.path.pop(0)

    folder = tmp_path_factory.mktemp("runtime-models")
    tiny_sherpa.save_tiny_paraformer(folder / "paraformer")
    tiny_sherpa.save_tiny_sense_voice(folder / "sense_voice")
    tiny_sherpa.save_tiny_streaming_paraformer(folder / "streaming")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("family", ["paraformer", "sense_voice", "streaming"])
def test_models_of_other_runtimes_hear_every_format_and_invent_nothing(
    run: Run, tmp_path: Path, runtime_models: dict[str, Path], family: str
) -> None:
    model = runtime_models[family]
    paths = [
        write(tmp_path / f"{suffix}.{suffix}", rate, channels, 2.5)
        for suffix, rate, channels in zip(
            FORMATS, (*RATES, 48_000, 48_000), (1, 2) * 3, strict=True
        )
    ]
    long = write(tmp_path / "long.wav", 16_000, 1, 65.0)
    soundfile.write(tmp_path / "silence.wav", np.zeros(50_000, np.int16), 16_000)
    soundfile.write(tmp_path / "short.wav", speech(0.05, 16_000), 16_000)
    silent = [tmp_path / "silence.wav", tmp_path / "short.wav"]
    code, out, err = run("--model", model, "--json", "--verbose", *paths, long, *silent)
    assert code == 0 and "Traceback" not in err and "loaded in" in err
    records = {json.loads(line)["file"]: json.loads(line) for line in out.splitlines()}
    for path in paths:
        assert records[str(path)]["text"] and records[str(path)]["segments"]
        assert records[str(path)]["duration"] == pytest.approx(2.5, abs=0.2)
    assert records[str(long)]["segments"][-1]["end"] > 60
    for path in silent:
        assert records[str(path)]["text"] == ""
    code, out, err = run("--model", model, "--stream", "--json", paths[0], *silent)
    events = [json.loads(line) for line in out.splitlines()]
    finals = [event for event in events if event["type"] == "final"]
    assert (code, err) == (0, "")
    assert [event["reason"] for event in finals] == ["finish"] * 3
    assert finals[0]["text"] and not finals[1]["text"] and not finals[2]["text"]
    code, out, err = run("--model", model, "--head", "ctc", paths[0])
    assert (code, out) == (2, "") and "Traceback" not in err


def test_digital_silence_invents_nothing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "silence.wav"
    for seconds in (0.05, 1.0, 45.0):
        last_bits = np.arange(round(16_000 * seconds)) % 5 - 2
        for samples in (0 * last_bits, last_bits):
            soundfile.write(path, samples.astype(np.int16), 16_000)
            for family in FAMILIES:
                assert run("--model", GOLDEN / family, path) == (0, "", "")


MEMORY = """
import json, sys
import pianissimo

def peak():  # not ru_maxrss, which begins with that of the process that started this one
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))

recognizer = pianissimo.load(sys.argv[1], device="cpu")
recognizer.transcribe(sys.argv[2])
before = peak()
found = recognizer.transcribe(sys.argv[3])
spans = [(segment.start, segment.end) for segment in found.segments]
gap = max(b[0] - a[1] for a, b in zip(spans, spans[1:]))
print(json.dumps([peak() - before, found.duration, gap, spans[-1][1], len(found.text)]))
"""


@pytest.fixture(scope="module")
def long_recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five minutes and 65 minutes of speech."""
    folder = tmp_path_factory.mktemp("long")
    piece = (speech(60.0, 16_000) * 32767).astype(np.int16)
    for minutes in (5, 65):
        with soundfile.SoundFile(folder / f"{minutes}.flac", "w", 16_000, 1) as file:
            for _ in range(minutes):
                file.write(piece)
    return folder / "5.flac", folder / "65.flac"


def hear_65_minutes(model: Path, recordings: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", MEMORY, *map(str, (model, *recordings))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    more_mib, duration, gap, end, letters = json.loads(done.stdout)
    assert duration == pytest.approx(65 * 60)
    assert more_mib < 40, "65 minutes take more memory than 5"
    assert end > 65 * 60 - 10 and letters > 1000
    assert gap < 15


@pytest.mark.slow
def test_65_minutes_keep_memory_flat_and_lose_nothing(
    long_recordings: tuple[Path, Path],
) -> None:
    hear_65_minutes(GOLDEN / "wav2vec2", long_recordings)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["whisper", "glm_asr"])
def test_65_minutes_in_pieces_keep_memory_flat_and_lose_nothing(
    family: str, text_models: dict[str, Path], long_recordings: tuple[Path, Path]
) -> None:
    hear_65_minutes(text_models[family], long_recordings)
