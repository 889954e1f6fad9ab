"""Whisper with tiny random weights: what Transformers makes of them, and what surrounds it."""

import json
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spoken import speech
from tiny import cut
from tiny_whisper import save_tiny_whisper

import pianissimo
from pianissimo.decoding.whisper import Written, again_from, climb, peaks, timed_words, token_starts
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.models.checkpoints.whisper import read_transformers, save_whisper
from pianissimo.models.packed import Int8Linear
from pianissimo.protocols import Recognizer, StreamRecognizer
from pianissimo.recognizers import long_form as pieces_module
from pianissimo.recognizers import whisper as whisper_module
from pianissimo.recognizers.whisper import SearchOptions, WhisperRecognizer, _Row
from pianissimo.transcript import Transcript, Word

pytest.importorskip("transformers", reason="needs the extra families")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
RATE = 16_000
LETTERS = 282
"""Ids from here on are marks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper") / "tiny-whisper"
    save_tiny_whisper(path)
    return path


@pytest.fixture(scope="module")
def english_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper") / "tiny-whisper.en"
    save_tiny_whisper(path, multilingual=False)
    return path


def load(folder: Path, **options: Any) -> WhisperRecognizer:
    found = pianissimo.load(folder, device="cpu", **options)
    assert isinstance(found, WhisperRecognizer)
    return found


def theirs(folder: Path, samples: Any, **options: Any) -> list[int]:
    """The letters that Transformers' own greedy search writes for one clip."""
    model, extractor = opened(folder)
    features = extractor(samples, sampling_rate=RATE, return_tensors="pt")
    found = model.generate(features.input_features, num_beams=1, do_sample=False, **options)
    return [token for token in found[0].tolist() if token < LETTERS]


@cache
def opened(folder: Path) -> tuple[Any, Any]:
    import transformers

    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    return model.eval(), transformers.WhisperFeatureExtractor.from_pretrained(folder)


@pytest.fixture(scope="module")
def recognizer(folder: Path) -> WhisperRecognizer:
    return load(folder)


def assert_same(found: Transcript, expected: Transcript) -> None:
    assert (found.text, found.language, found.reasons) == (
        expected.text,
        expected.language,
        expected.reasons,
    )
    for a, b in zip(found.words, expected.words, strict=True):
        assert (a.text, a.start, a.end) == (b.text, b.start, b.end)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


# -- what Transformers does ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"language": "de"}, {"language": "en", "task": "translate"}, {"language": "zh"}, {}],
)
def test_tokens_are_those_of_transformers(folder: Path, options: dict[str, Any]) -> None:
    ours = load(folder, **options)
    ours.options = SearchOptions(beam=1, tail_seconds=None)
    clips = [speech(3.0), speech(7.3), speech(1.1) * 0.5]
    mine = ours._decode(clips, words=False)
    for samples, decoded in zip(clips, mine, strict=True):
        limit = min(max_new_tokens(len(samples) / RATE), 96 - 5)
        expected = theirs(
            folder, samples, max_new_tokens=limit, **{"task": "transcribe", **options}
        )
        assert list(decoded.tokens) == expected
        assert decoded.text == ours.tokenizer.decode(expected).strip()
        assert len(decoded.tokens) > 3


def test_english_models_take_no_language(english_folder: Path) -> None:
    ours = load(english_folder)
    ours.options = SearchOptions(beam=1, tail_seconds=None)
    samples = speech(4.0)
    [decoded] = ours._decode([samples], words=False)
    ours_stops = len(decoded.tokens)  # at a loop, which random weights soon find
    expected = theirs(english_folder, samples, max_new_tokens=56)
    assert list(decoded.tokens) == expected[:ours_stops]
    assert ours_stops > 5
    assert ours.transcribe(samples, sample_rate=RATE).language == "en"
    with pytest.raises(OptionError, match="does not know the language 'de'; it has en"):
        load(english_folder, language="de")
    with pytest.raises(OptionError, match="English only"):
        load(english_folder, task="translate")


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (3, 3), (7, 40), (40, 7)])
def test_times_are_warped_as_in_transformers(rows: int, columns: int) -> None:
    from transformers.models.whisper.generation_whisper import _dynamic_time_warping

    costs = np.random.default_rng(rows).standard_normal((rows, columns))
    texts, times = _dynamic_time_warping(costs)
    firsts = [int(times[texts == row].min()) for row in range(rows)]
    assert climb(costs) == firsts


def test_attention_is_smoothed_as_in_transformers() -> None:
    from transformers.models.whisper.generation_whisper import (
        _dynamic_time_warping,
        _median_filter,
    )

    weights = torch.rand(3, 8, 50, generator=torch.Generator().manual_seed(0)).softmax(-1)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    smooth = _median_filter(((weights - mean) / deviation)[None], 7)[0].mean(0)[1:-1]
    texts, times = _dynamic_time_warping(-smooth.double().numpy())
    expected = [0.02 * int(times[texts == row].min()) for row in range(6)]
    assert token_starts(weights, 7, first=1) == pytest.approx(expected)
    # What falls outside the recording is left out as if it had never been looked at.
    assert token_starts(weights * torch.rand(3, 8, 1), 7, first=1) == pytest.approx(expected)


def test_words_begin_when_ctranslate2_says(tmp_path: Path) -> None:
    """Its alignment of the same tokens in the same spectra; Transformers tells when tokens end."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="needs the extra faster-whisper")
    save_tiny_whisper(tmp_path / "ours", max_target_positions=448, empty_piece=True)
    converter = ctranslate2.converters.TransformersConverter(str(tmp_path / "ours"))
    model = ctranslate2.models.Whisper(converter.convert(str(tmp_path / "theirs")), device="cpu")
    ours = load(tmp_path / "ours", language="de")
    clips = [speech(seconds) for seconds in (3.0, 7.3, 29.5, 1.0)]
    frames = [len(samples) // 320 for samples in clips]
    _, extractor = opened(tmp_path / "ours")
    mel = extractor(clips, sampling_rate=RATE, return_tensors="np")["input_features"]
    with torch.inference_mode():
        prompts = [ours.tokenizer.prompt("de", ours.task)] * len(clips)
        tokens = [list(decoded.tokens) for decoded in ours._decode(clips, words=False)]
        rows = [[*prompts[0], *ids, ours.tokenizer.end] for ids in tokens]
        state = ours.decoder.start_from(ours._cross(clips, None), max(map(len, rows)))
        looks = ours.search.looks(state, rows)
        starts = [
            token_starts(look[..., :count], ours.rules.median_width, len(prompts[0]) - 1)
            for look, count in zip(looks, frames, strict=True)
        ]
    heard = model.encode(ctranslate2.StorageView.from_array(mel))
    found = model.align(heard, prompts[0][:-1], tokens, [2 * count for count in frames])
    for ids, times, expected in zip(tokens, starts, found, strict=True):
        first = {token: frame for token, frame in reversed(expected.alignments)}
        assert len(times) == len(ids) + 1 > 5
        assert times == pytest.approx([0.02 * first[i] for i in range(len(times))])


def test_a_doubtful_text_is_searched_again_in_the_whole_window(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load(folder, language="en")
    clips = [speech(3.0), speech(7.3)]
    ours.options = SearchOptions(always=True, tail_seconds=None)
    expected = [decoded.tokens for decoded in ours._decode(clips, words=True)]
    seconds: list[float] = []
    ours.encoder.register_forward_pre_hook(
        lambda _, inputs: seconds.append(inputs[0].shape[1] / 100)
    )
    ours.options = SearchOptions(tail_seconds=4.0)
    monkeypatch.setattr(whisper_module, "again_from", lambda looks: 3)
    again = ours._decode(clips, words=True)
    assert seconds == [7.0, 12.0, 30.0, 30.0]
    assert [decoded.tokens for decoded in again] == expected
    assert all(decoded.words for decoded in again)


def test_a_text_begins_again_where_attention_goes_back() -> None:
    def looks(frames: list[int]) -> torch.Tensor:
        weights = torch.zeros(2, len(frames), 400)
        weights[:, range(len(frames)), frames] = 1.0
        return weights

    assert again_from(looks([10, 60, 110, 160, 210, 260])) is None
    assert again_from(looks([10, 200, 60, 70, 210, 260])) is None  # two tokens may look back
    assert again_from(looks([10, 100, 200, 12, 60, 98, 201, 260])) == 3
    assert again_from(looks([10, 100, 200, 12, 60, 98, 201, 260]), 4) is None  # behind its begin
    assert again_from(looks([10, 100, 200, 12, 60, 98, 20, 80, 260]), 4) == 4
    assert again_from(looks([10, 50, 12, 40, 20, 45])) is None  # within a second
    assert again_from(looks([5])) is None


def test_attention_that_rests_on_the_first_frame_says_nothing() -> None:
    """As measured for " bay" of a live stream: 0.16 on frame 0, and 0.085 where the word is."""
    weights = torch.full((2, 4, 120), 0.005)
    weights[:, :, 0] = 0.16
    for token, frame in enumerate((30, 61, 86, 110)):
        weights[:, token, frame] = 0.085
    assert peaks(weights).tolist() == [30, 61, 86, 110]
    assert again_from(weights) is None
    assert peaks(weights[..., :1]).tolist() == [0, 0, 0, 0]


def test_weights_in_8_bits_are_computed_in_8_bits(folder: Path, tmp_path: Path) -> None:
    save_whisper(tmp_path / "small", read_transformers(folder), torch.int8)
    layers = {
        dtype: type(load(tmp_path / "small", dtype=dtype).decoder.logits)
        for dtype in ("auto", "float32", "int8")
    }
    assert layers["auto"] is layers["int8"] is Int8Linear
    assert layers["float32"] is not Int8Linear
    assert type(load(folder).decoder.logits) is not Int8Linear


# -- recordings ------------------------------------------------------------------------------------


def test_words_lie_inside_the_recording_and_follow_each_other(
    recognizer: WhisperRecognizer,
) -> None:
    samples = speech(70.0)
    found = recognizer.transcribe(samples, sample_rate=RATE)
    assert len(found.words) > 8
    assert " ".join(word.text for word in found.words) == found.text
    assert found.duration == 70.0
    for before, after in pairwise(found.words):
        assert 0 <= before.start <= before.end <= after.start + 1e-6
        assert before.confidence is not None and 0 < before.confidence <= 1
    assert found.words[-1].end <= 70.0
    assert found.words[-1].end > 50.0
    plain = recognizer.transcribe(samples, sample_rate=RATE, word_timestamps=False)
    assert plain.text == found.text and plain.words == ()
    assert all(segment.words == () for segment in plain.segments)


def test_many_equal_one_by_one(recognizer: WhisperRecognizer) -> None:
    recordings = [speech(s) for s in (3.0, 1.0, 0.05, 33.0, 7.0, 0.4)]
    found = _run(recognizer, [[samples] for samples in recordings])
    for transcript, samples in zip(found, recordings, strict=True):
        alone = recognizer.transcribe(samples, sample_rate=RATE)
        assert transcript.text == alone.text
        assert transcript.words == alone.words or [(w.text, w.start) for w in transcript.words] == [
            (w.text, w.start) for w in alone.words
        ]


def _run(recognizer: WhisperRecognizer, recordings: list[Any]) -> Any:
    decoder = pieces_module.PieceDecoder(
        recognizer.front_end,
        lambda some: recognizer._decode(some, True),
        detector=recognizer.detector,
        most=3,
    )
    return decoder.run(recordings, "x", True)


def test_the_size_of_the_blocks_has_no_influence(
    recognizer: WhisperRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "STRETCH_SECONDS", 25.0)
    monkeypatch.setattr(pieces_module, "STRETCH_CUT_SECONDS", 8.0)
    samples = speech(90.0)
    expected = recognizer.transcribe(samples, sample_rate=RATE)
    parts = (samples[part] for part in cut(len(samples), [1, 333, 16_000, 500_000], seed=2))
    assert_same(next(recognizer.recognize([parts], True)), expected)
    covered = sum(segment.end - segment.start for segment in expected.segments)
    assert covered > 60


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(48_000), 1e-5 * np.ones(700_000)])
def test_silence_invents_nothing(recognizer: WhisperRecognizer, samples: Any) -> None:
    found = recognizer.transcribe(samples.astype(np.float32), sample_rate=RATE)
    assert (found.text, found.words, found.segments) == ("", (), ())
    assert found.reasons[0] in ("too_short", "muted", "silence")
    assert found.duration == len(samples) / RATE


def test_the_text_is_dropped_where_the_model_hears_nobody(recognizer: WhisperRecognizer) -> None:
    ids = recognizer.tokenizer.encode("ab")
    unsure, sure = Written(ids, [-2.0] * len(ids)), Written(ids, [-0.1] * len(ids))

    def text(written: Written, no_speech: float) -> str:
        row = _Row(speech(1.0), torch.zeros(0), "en", [1], 10)
        row.written, row.no_speech = written, no_speech
        return recognizer._heard(row, False).text

    assert text(unsure, 0.9) == ""
    assert text(unsure, 0.1)
    assert text(sure, 0.9)


def test_characters_of_several_tokens_stay_whole(recognizer: WhisperRecognizer) -> None:
    encode, decode = recognizer.tokenizer.encode, recognizer.tokenizer.decode
    ids = encode("你好 ab，c")

    def words(language: str) -> tuple[Word, ...]:
        return timed_words(decode, ids, [0.0] * len(ids), range(len(ids) + 1), language)

    assert [word.text for word in words("zh")] == ["你", "好", "a", "b，", "c"]
    assert [word.text for word in words("ko")] == ["你好", "ab，c"]
    ids = encode('he said "yes, no".')
    assert [word.text for word in words("en")] == ["he", "said", '"yes,', 'no".']
    assert [word.start for word in words("en")][1:] == [word.end for word in words("en")][:-1]


# -- languages, folders, refusals ------------------------------------------------------------------


def test_the_language_is_found_or_chosen(folder: Path) -> None:
    samples = speech(5.0)
    found = load(folder).transcribe(samples, sample_rate=RATE)
    assert found.language in ("en", "de", "zh")
    texts = {code: load(folder, language=code) for code in ("en", "de", "zh")}
    spoken = {code: r.transcribe(samples, sample_rate=RATE) for code, r in texts.items()}
    assert {code: t.language for code, t in spoken.items()} == {c: c for c in texts}
    assert spoken[found.language].text == found.text
    translated = load(folder, language="de", task="translate")
    assert translated.transcribe(samples, sample_rate=RATE).language == "en"
    with pytest.raises(OptionError, match="language 'fr'; it has de, en, zh"):
        load(folder, language="fr")
    with pytest.raises(OptionError, match="unknown task"):
        load(folder, task="sing")


def test_it_is_a_streaming_recognizer(recognizer: WhisperRecognizer) -> None:
    assert isinstance(recognizer, Recognizer)
    assert recognizer.name == "tiny-whisper"
    assert isinstance(recognizer, StreamRecognizer)
    stream = recognizer.stream()
    events = [*stream.push(np.concatenate([speech(3.0), np.zeros(RATE, np.float32)]))]
    events += stream.finish()
    assert [event.reason for event in events if event.type == "final"] == ["endpoint", "finish"]
    assert events[0].text and 0 <= events[0].start < events[0].end < 3.5
    with pytest.raises(OptionError, match="80 ms is not a latency mode"):
        recognizer.transcribe(speech(1.0), sample_rate=RATE, latency_ms=80)


def test_heads_are_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match="no ctc head"):
        load(folder, head="ctc")


def test_damaged_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    name = "model.encoder.layers.0.fc1.weight"
    spoiled = {**weights, name: torch.full_like(weights[name], torch.nan)}
    wrong = {**weights, name: weights[name][:3].clone()}
    lacking = {n: t for n, t in weights.items() if n != name}
    for tensors, message in (
        (spoiled, "fc1.weight holds NaN or infinite numbers"),
        (wrong, r"fc1.weight has shape \(3, 16\), expected \(32, 16\)"),
        (lacking, "missing: model.encoder.layers.0.fc1.weight"),
    ):
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            load(broken)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    load(broken)
    for missing in ("model.safetensors", "tokenizer.json", "generation_config.json"):
        kept = (broken / missing).read_bytes()
        (broken / missing).unlink()
        with pytest.raises(CheckpointError):
            load(broken)
        (broken / missing).write_bytes(kept)
    path = broken / "generation_config.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["no_timestamps_token_id"]
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(CheckpointError, match="no_timestamps_token_id"):
        load(broken)
