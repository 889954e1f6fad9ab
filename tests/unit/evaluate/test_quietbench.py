import dataclasses
import json

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spoken import EXAMPLES, pink, speech

from pianissimo.audio import vad
from pianissimo.audio.level import active_speech_level, measure_levels, rms_level
from pianissimo.errors import AudioValueError, ManifestError, OptionError, PianissimoError
from pianissimo.evaluate.quietbench import report, statistics, tables
from pianissimo.evaluate.quietbench.clips import (
    Source,
    Suite,
    bundled_sources,
    choose,
    make_clips,
    read_sources,
    write_manifest,
)
from pianissimo.evaluate.quietbench.gates import GATES, known_or_measured, measure_gates
from pianissimo.evaluate.quietbench.run import Result, measure_speed, read_results, run
from pianissimo.evaluate.quietbench.scenarios import (
    NON_SPEECH,
    SCENARIOS,
    Scenario,
    at_sweep_level,
    build,
    build_non_speech,
    seed_of,
)
from pianissimo.evaluate.quietbench.scoring import count_errors, metric, spell, units
from pianissimo.evaluate.quietbench.statistics import Observation
from pianissimo.protocols import Capabilities
from pianissimo.transcript import Transcript

pytest.importorskip("pyroomacoustics", reason="the extra quietbench is not installed")
RATE = 16_000

# -- levels and SNR ------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize("seed", range(3))
def test_level_and_snr_are_what_the_scenario_says(scenario: Scenario, seed: int) -> None:
    built = build(speech(3, -20), scenario, (seed,))
    assert built.samples.dtype == np.int16
    measured = built.measured
    assert measured["speech_db"] == pytest.approx(scenario.level_db, abs=0.5)
    if scenario.snr_db is not None and not scenario.codecs:
        assert measured["snr_db"] == pytest.approx(scenario.snr_db, abs=1.0)
    if scenario.noise_db is not None:
        assert measured["noise_db"] == pytest.approx(scenario.noise_db, abs=0.1)
    if scenario.noise is None:
        level, _ = active_speech_level(built.samples / np.float32(32768))
        assert level == pytest.approx(scenario.level_db, abs=0.5)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_noise_is_there_before_the_speech_begins(scenario: Scenario) -> None:
    built = build(speech(3, -20), scenario, (5,))
    before = rms_level(built.samples[: RATE // 5] / 32768)
    if scenario.noise is None:
        assert before < -90
    elif scenario.name != "music":  # which fades in
        assert before > built.measured["speech_db"] - 45


def test_the_same_seed_gives_the_same_bits() -> None:
    for scenario in SCENARIOS:
        first, again, other = (build(speech(2), scenario, seed) for seed in ((1,), (1,), (2,)))
        assert first.sha256 == again.sha256
        assert first.sha256 != other.sha256


@pytest.mark.parametrize("level_db", [-20.0, -45.0, -60.0])
def test_the_sweep_sets_the_level_alone(level_db: float) -> None:
    scenario = at_sweep_level(SCENARIOS[0], level_db)
    floats = build(speech(3), scenario, (1,), quantized=False)
    coarse = build(speech(3), scenario, (1,))
    assert floats.samples.dtype == np.float32
    assert active_speech_level(floats.samples)[0] == pytest.approx(level_db, abs=0.5)
    difference = coarse.samples / 32768 - floats.samples.astype(np.float64)
    assert rms_level(difference) == pytest.approx(-96.3, abs=0.5)


def test_silence_cannot_be_brought_to_a_level() -> None:
    with pytest.raises(AudioValueError, match="silence"):
        build(np.zeros(RATE, np.float32), SCENARIOS[0], (1,))


@pytest.mark.parametrize("kind", NON_SPEECH)
def test_clips_without_speech_have_their_level(kind: str) -> None:
    voices = [speech(2).astype(np.float64)] * 3
    built = build_non_speech(kind, voices, seed_of(kind))
    level = measure_levels(built.samples / np.float32(32768)).rms_db
    assert len(built.samples) == 10 * RATE
    if kind == "digital silence":
        assert not built.samples.any()
    elif kind.startswith("microphone"):
        assert level == pytest.approx(float(kind.split()[1]), abs=0.5)
    else:
        assert -52 < level < -38


# -- scoring -------------------------------------------------------------------------------------


def test_the_metric_follows_the_language() -> None:
    assert [metric(language) for language in ("en-US", "zh_CN", "yue", "ja")] == [
        "WER",
        "CER",
        "CER",
        "CER",
    ]
    assert metric(None, "打开 WiFi") == "MER"
    assert metric("fr", "bonjour") == "WER"


def test_units_of_each_metric() -> None:
    assert units("It's  35 degrees!", "WER") == ["it's", "thirty", "five", "degrees"]
    assert units("我还能，再搞一个。", "CER") == list("我还能再搞一个")
    assert units("打开 WiFi 和 Bluetooth", "MER") == ["打", "开", "wifi", "和", "bluetooth"]
    assert units("ＡＢＣ", "WER") == ["abc"]  # full width


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        ("0", "zero"),
        ("7", "seven"),
        ("13", "thirteen"),
        ("40", "forty"),
        ("101", "one hundred one"),
        ("2500", "two thousand five hundred"),
        ("999999", "nine hundred ninety nine thousand nine hundred ninety nine"),
        ("007", "zero zero seven"),
        ("5551234", "five five five one two three four"),
    ],
)
def test_numbers_become_words(digits: str, words: str) -> None:
    assert spell(digits) == words


WORDS = st.lists(st.sampled_from("a b c d".split()), max_size=12)


@given(WORDS.filter(bool), WORDS)
def test_word_errors_are_those_of_jiwer(reference: list[str], heard: list[str]) -> None:
    ours = count_errors(" ".join(reference), " ".join(heard), "WER")
    theirs = jiwer.process_words(" ".join(reference), " ".join(heard))
    assert ours.errors == theirs.substitutions + theirs.deletions + theirs.insertions
    assert ours.words == len(reference)


@given(st.text("我还能再搞个", min_size=1, max_size=12), st.text("我还能再搞个", max_size=12))
def test_character_errors_are_those_of_jiwer(reference: str, heard: str) -> None:
    theirs = jiwer.process_characters(reference, heard)
    edits = theirs.substitutions + theirs.deletions + theirs.insertions
    assert count_errors(reference, heard, "CER").errors == edits


# -- statistics ----------------------------------------------------------------------------------


def draws(rate: float, clips: int, seed: int = 0, words: int = 12) -> list[Observation]:
    rng = np.random.default_rng(seed)
    errors = rng.binomial(words, rate, clips)
    return [Observation(f"c{i}", f"s{i}", int(e), words) for i, e in enumerate(errors)]


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(30):
        found = statistics.rate(draws(0.1, 40, seed))
        assert found is not None
        held += found.low <= 0.1 <= found.high
    assert 25 <= held <= 30


def test_intervals_narrow_with_more_clips() -> None:
    few, many = statistics.rate(draws(0.1, 30)), statistics.rate(draws(0.1, 300))
    assert few is not None
    assert many is not None
    assert (few.high - few.low) > 2 * (many.high - many.low)


def test_speakers_are_resampled_when_there_are_enough() -> None:
    same = [dataclasses.replace(o, speaker=f"s{i // 10}") for i, o in enumerate(draws(0.2, 100))]
    assert statistics.resampled_by(same) == "speakers"
    assert statistics.resampled_by(same[:50]) == "clips"
    # What one speaker does ten times over is one observation, not ten.
    per_speaker = [dataclasses.replace(o, errors=6 if o.speaker < "s5" else 0) for o in same]
    per_clip = [dataclasses.replace(o, speaker=o.clip) for o in per_speaker]
    wide, narrow = statistics.rate(per_speaker), statistics.rate(per_clip)
    assert wide is not None
    assert narrow is not None
    assert (wide.high - wide.low) > 2 * (narrow.high - narrow.low)


def test_a_small_difference_on_the_same_clips_is_separable_and_alone_is_not() -> None:
    hard = draws(0.3, 40)
    better = [dataclasses.replace(o, errors=max(0, o.errors - 1)) for o in hard]
    found = statistics.compare(hard, better)
    assert found is not None
    assert found.difference.value < 0
    assert found.verdict("off", "on") == "on better"
    swapped = statistics.compare(better, hard)
    assert swapped is not None
    assert swapped.verdict("off", "on") == "off better"
    unrelated = statistics.compare(draws(0.3, 40, 1), draws(0.27, 40, 2))
    assert unrelated is not None
    assert unrelated.verdict("a", "b") == "not separable"


def test_only_shared_clips_are_compared() -> None:
    a = draws(0.1, 20)
    b = [dataclasses.replace(o, errors=12) for o in a[:10]]
    found = statistics.compare(a, b)
    assert found is not None
    own = sum(o.errors for o in a[:10]) / 120
    assert found.difference.value == pytest.approx(1.0 - own)
    assert statistics.compare(a, [dataclasses.replace(b[0], clip="other")]) is None
    assert statistics.rate([]) is None


def test_the_bootstrap_repeats_itself() -> None:
    assert statistics.rate(draws(0.1, 30)) == statistics.rate(draws(0.1, 30))


# -- clips ---------------------------------------------------------------------------------------


def test_speakers_take_turns_and_the_seed_decides() -> None:
    sources = [
        Source(f"{speaker}{i}", EXAMPLES / "number.flac", "one", speaker, "en")
        for speaker in "abc"
        for i in range(5)
    ]
    chosen = choose(sources, 6, seed=1)
    assert sorted(source.speaker for source in chosen) == list("aabbcc")
    assert choose(sources, 6, seed=1) == chosen
    assert choose(sources, 6, seed=2) != chosen
    assert len(choose(sources, 99, seed=1)) == 15


def test_a_manifest_gives_its_clean_recordings(tmp_path) -> None:
    rows = [
        {"audio_filepath": "a.flac", "text": "One.", "text_norm": "one", "duration": 2.0},
        {"audio_filepath": "b.flac", "text": "room 101", "duration": 2.0},
        {"audio_filepath": "c.flac", "text": "too long", "duration": 90.0},
        {"audio_filepath": "d.flac", "text": "two", "duration": 2.0, "subset": "x", "lang": "zh"},
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = read_sources(manifest)
    assert [(s.id, s.text, s.language) for s in found] == [("a", "one", "en"), ("d", "two", "zh")]
    assert [s.id for s in read_sources(manifest, ["x"])] == ["d"]
    with pytest.raises(OptionError, match="no subset 'y'"):
        read_sources(manifest, ["y"])
    with pytest.raises(ManifestError, match="cannot be read"):
        read_sources(tmp_path / "nothing")
    manifest.write_text('{"audio_filepath": "a.flac"}', "utf-8")
    with pytest.raises(ManifestError, match="KeyError"):
        read_sources(manifest)
    manifest.write_text('{"audio_filepath": "a", "text": "9"}', "utf-8")
    with pytest.raises(ManifestError, match="no recording"):
        read_sources(manifest)
    with pytest.raises(OptionError, match="--speech"):
        bundled_sources(tmp_path)


# -- runs ----------------------------------------------------------------------------------------


class Listener:
    """Writes down as many words as its ear for level allows: quiet speech loses its end."""

    name, module, device, dtype = "listener", None, "cpu", "unknown"
    capabilities = Capabilities()

    def __init__(self, texts: dict[int, str], deaf_below_db: float = -35.0) -> None:
        self.texts, self.deaf_below_db, self.calls = texts, deaf_below_db, 0

    def transcribe(self, samples, *, sample_rate, word_timestamps) -> Transcript:
        self.calls += 1
        levels = measure_levels(samples)
        words = self.texts.get(len(samples), "").split()
        if len(samples) == 31_337:
            raise PianissimoError("broke")
        heard = words if levels.speech_db > self.deaf_below_db else words[: len(words) // 2]
        return Transcript(" ".join(heard), (), (), "en", len(samples) / RATE, self.name)


@pytest.fixture(scope="module")
def plan() -> Suite:
    return Suite(tuple(bundled_sources(EXAMPLES)), non_speech=4, sweep=2)


@pytest.fixture(scope="module")
def built(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quietbench")
    clips, faults = make_clips(plan, folder / "audio")
    assert faults == []
    return folder, clips


@pytest.fixture(scope="module")
def listener(built) -> Listener:
    return Listener({len(clip.samples()): clip.text for clip in built[1] if clip.text})


@pytest.fixture(scope="module")
def results(built, listener, tmp_path_factory) -> list[Result]:
    return run([listener], built[1], tmp_path_factory.mktemp("results"))


def test_clips_are_built_once(built, plan) -> None:
    folder, clips = built
    assert len(clips) == 3 * 6 + 4 + 2 * 8 * 2
    assert all(clip.path.stat().st_size > 1000 for clip in clips)
    times = {clip.path: clip.path.stat().st_mtime_ns for clip in clips}
    cut = clips[3].path
    whole = cut.read_bytes()
    cut.write_bytes(whole[:500])  # as a killed run might leave it
    again, _ = make_clips(plan, folder / "audio")
    assert again == clips
    assert cut.read_bytes() == whole
    assert [c.path for c in again if c.path.stat().st_mtime_ns != times[c.path]] == [cut]


def test_the_manifest_has_seeds_levels_and_checksums(built, tmp_path) -> None:
    write_manifest(built[1], tmp_path / "clips.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "clips.jsonl").read_text().splitlines()]
    assert len(rows) == len(built[1])
    assert all(row["seed"] == 1 and len(row["sha256"]) == 64 for row in rows)
    assert all("mixed_peak_db" in row for row in rows)


def test_the_gain_helps_who_is_deaf_to_quiet_speech(results) -> None:
    assert not any(r.error for r in results)
    off, on = tables.systems(results)
    assert (off.gain, on.gain) == ("off", "on")
    quiet = ["whisper"]
    assert tables.cell(tables.of(results, off, quiet)).error.value > 0.3
    assert tables.cell(tables.of(results, on, quiet)).error.value == 0.0
    assert tables.cell(tables.of(results, off, ["control"])).error.value == 0.0
    curve = [p for p in tables.sweep(results) if p.system == off and p.form == "int16"]
    assert [p.level_db for p in curve] == [-20, -26, -32, -38, -45, -50, -55, -60]
    assert curve[0].error.value == 0.0 < curve[-1].error.value


def test_a_killed_run_goes_on_and_computes_nothing_twice(built, listener, tmp_path) -> None:
    clips = built[1]
    first = run([listener], clips[:7], tmp_path, gains=["off"])
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:5]) + "\n" + lines[5][:40])  # killed in the sixth
    listener.calls = 0
    second = run([listener], clips[:7], tmp_path, gains=["off"])
    assert listener.calls == 2
    assert [(r.clip, r.text) for r in second] == [(r.clip, r.text) for r in first]
    assert len({result.key for result in read_results(tmp_path)}) == 7
    listener.calls = 0
    run([listener], clips[:7], tmp_path, gains=["off", "on"])
    assert listener.calls == 7


def test_a_clip_that_fails_counts_as_nothing_heard(built, listener, tmp_path) -> None:
    import soundfile

    path = tmp_path / "odd.wav"
    soundfile.write(path, pink(31_337 / RATE, -30), RATE)
    clip = dataclasses.replace(built[1][0], path=path, sha256="other", text="three little words")
    (result,) = run([listener], [clip], tmp_path, gains=["off"])
    assert result.error == "broke"
    assert (result.deletions, result.units) == (3, 3)


def test_invented_text_is_counted(results) -> None:
    system = tables.systems(results)[0]
    clips = tables.of(results, system, ["nonspeech"])
    clean = tables.non_speech(clips)
    assert clean is not None
    assert (clean.with_text, clean.characters_per_minute) == (0, 0.0)
    invented = [dataclasses.replace(clips[0], text="thank you"), *clips[1:]]
    found = tables.non_speech(invented)
    assert found is not None
    assert found.with_text == 1
    assert found.characters_per_minute == pytest.approx(9 / (4 * 10 / 60))


def test_the_level_at_which_the_error_doubles() -> None:
    system = tables.System("r", "w", "off")

    def curve(*errors: float) -> list[tables.SweepPoint]:
        levels = (-20.0, -26.0, -38.0, -50.0)
        intervals = [statistics.Interval(e, e, e) for e in errors]
        return [
            tables.SweepPoint(system, "int16", level, interval)
            for level, interval in zip(levels, intervals, strict=True)
        ]

    assert tables.doubling_level(curve(0.1, 0.1, 0.1, 0.3)) == pytest.approx(-44.0)
    assert tables.doubling_level(curve(0.1, 0.1, 0.1, 0.15)) is None
    assert tables.doubling_level(curve(0.0, 0.0, 0.5, 0.5)) is None


def test_the_report_has_tables_curves_and_every_clip(built, listener, results, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    speeds = [measure_speed(listener, built[1], "on")]
    assert speeds[0].p50_ms <= speeds[0].p95_ms
    assert speeds[0].clips == 3
    about = {"processor": "abacus", "speech": "examples"}
    report.write(tmp_path, results, speeds, about)
    table = (tmp_path / "table.md").read_text()
    assert "| listener, gain off |" in table
    assert "low-volume accuracy" in table
    assert "abacus" in table
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert page.count("<tr") > 2 * (3 * 6 + 4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {row["gain"] for row in summary["systems"]} == {"off", "on"}
    sweep = (tmp_path / "sweep.csv").read_text().splitlines()
    assert len(sweep) == 1 + 2 * 2 * 8


def test_gates_differ_and_the_lenient_one_loses_nothing(built) -> None:
    if not vad.available():
        pytest.skip("silero-vad is not installed")
    clips = [clip for clip in built[1] if clip.group in ("control", "whisper", "nonspeech")]
    kept = measure_gates(clips, vad.SpeechModel())
    assert {(one.gate, one.group) for one in kept} == {
        (gate.name, group) for gate in GATES for group in ("control", "whisper")
    }
    share = {(one.gate, one.group): one.share for one in kept}
    assert all(0 < value <= 1.001 for value in share.values())
    for group in ("control", "whisper"):
        assert share["0.5", group] <= share["0.3", group] + 1e-9
        assert share["0.3 after gain", group] <= share["normal after gain", group] + 1e-9
    assert not any(one.lost for one in kept if one.gate == "normal after gain")
    table = tables.markdown([], [], {}, kept)
    assert "| normal after gain |" in table


def test_gates_are_measured_once(built, tmp_path) -> None:
    if not vad.available():
        pytest.skip("silero-vad is not installed")
    steps = []
    clips = [clip for clip in built[1] if clip.group == "control"]
    model = vad.SpeechModel()
    first = known_or_measured(clips, model, tmp_path, lambda: steps.append(1))
    assert known_or_measured(clips, model, tmp_path, lambda: steps.append(1)) == first
    assert len(steps) == len(clips)
    known_or_measured(clips[:1], model, tmp_path, lambda: steps.append(1))
    assert len(steps) == len(clips) + 1


def test_words_of_a_clip_cannot_become_markup(results, tmp_path) -> None:
    evil = [dataclasses.replace(results[0], text="<script>alert(1)</script>")]
    assert "<script>" not in report.html_page(evil, "| a |\n|---|\n| <script> |")


def test_a_page_gets_the_numbers_between_its_marks(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.update_page(page, "| new |\n")
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| new |" in text
    assert "old" not in text
    report.update_page(page, "| newer |\n")
    assert "| new |" not in page.read_text()
    page.write_text("no marks")
    with pytest.raises(OptionError, match="no lines"):
        report.update_page(page, "x")


def test_two_runs_are_compared(built, listener, tmp_path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    run([listener], built[1], folders[0], gains=["off"])
    deaf = Listener(listener.texts, deaf_below_db=0.0)
    deaf.name = "deaf"
    run([deaf], built[1], folders[1], gains=["off"])
    text = tables.comparison(*folders)
    assert "a better" in text
    assert "listener, gain off / deaf, gain off" in text
    with pytest.raises(OptionError, match="holds no results"):
        tables.comparison(folders[0], tmp_path)
