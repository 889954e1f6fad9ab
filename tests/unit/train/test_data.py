import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from tiny import MELS, noise, tensor

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.audio.io import load_audio
from pianissimo.errors import ManifestError
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import SpecAugment
from pianissimo.train.data import (
    AudioCache,
    BatchSource,
    Mixture,
    Splice,
    TrainingClip,
    TrainingSet,
    Utterance,
    collate,
    epoch_batches,
    read_manifest,
    span_clips,
    splice_clips,
)

RATE = 16_000


def write_manifest(folder: Path, *rows: Any) -> Path:
    """Rows as JSON lines, strings as they are."""
    path = folder / "manifest.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_wav(path: Path, samples: NDArray[np.float32], rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recordings of 2 s and 3.5 s."""
    (tmp_path / "audio").mkdir()
    write_wav(tmp_path / "audio" / "a.wav", noise(2 * RATE, 1))
    write_wav(tmp_path / "audio" / "b.wav", noise(7 * RATE // 2, 2))
    return tmp_path


def row(**changes: Any) -> dict[str, Any]:
    return {"audio_filepath": "audio/a.wav", "duration": 2.0, "text": "a word", **changes}


# -- manifests -------------------------------------------------------------------------------------


def test_a_manifest_is_read_line_by_line(folder: Path) -> None:
    path = write_manifest(
        folder,
        row(),
        "",
        row(audio_filepath="audio/b.wav", duration=1, offset=2, text="", speaker="x", n=[1]),
        row(audio_filepath=str(folder / "audio" / "b.wav"), duration=3.5, text="naïve 東京"),
    )
    assert read_manifest(path) == [
        Utterance(folder / "audio" / "a.wav", 2.0, "a word"),
        Utterance(folder / "audio" / "b.wav", 1.0, "", 2.0, {"speaker": "x", "n": [1]}),
        Utterance(folder / "audio" / "b.wav", 3.5, "naïve 東京"),
    ]


def test_line_breaks_of_unicode_do_not_break_a_line(folder: Path) -> None:
    """JSON allows them inside a string; only a line feed ends a line of a manifest."""
    texts = ["one\u2028two", "one\x85two", "one\u2029two"]
    path = write_manifest(folder, *(row(text=text) for text in texts))
    assert [u.text for u in read_manifest(path)] == texts


def test_every_faulty_line_is_named_by_its_number(folder: Path) -> None:
    faults: list[Any] = [
        "{not json",
        "[1, 2]",
        "null",
        row(audio_filepath="audio/missing.wav"),
        row(audio_filepath=5),
        row(duration="2"),
        row(duration=True),
        row(duration=0),
        row(duration=-1),
        '{"audio_filepath": "audio/a.wav", "duration": NaN, "text": "x"}',
        '{"audio_filepath": "audio/a.wav", "duration": Infinity, "text": "x"}',
        row(offset=-0.1),
        row(offset="1"),
        row(text=None),
        {"audio_filepath": "audio/a.wav", "duration": 2.0},
        row(audio_filepath="audio"),
        row(audio_filepath="audio/a.wav\0"),
        row(duration=10**400),
        "[" * 100_000,
    ]
    path = write_manifest(folder, row(), *faults, row())
    with pytest.raises(ManifestError) as raised:
        read_manifest(path)
    message = str(raised.value)
    for number in range(2, 2 + len(faults)):
        assert f"line {number}:" in message
    assert "line 1:" not in message
    assert f"line {2 + len(faults)}:" not in message
    assert str(path) in message


def test_all_faults_are_reported(folder: Path) -> None:
    with pytest.raises(ManifestError) as raised:
        read_manifest(write_manifest(folder, *["{"] * 50))
    assert all(f"line {number}:" in str(raised.value) for number in range(1, 51))


def test_a_manifest_without_lines_or_without_a_file_is_refused(folder: Path) -> None:
    with pytest.raises(ManifestError, match="no lines"):
        read_manifest(write_manifest(folder, "", "  "))
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(folder / "nothing.jsonl")
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(folder / "binary")


# -- audio -----------------------------------------------------------------------------------------


def test_the_cache_has_the_decoded_samples(folder: Path) -> None:
    a, b = folder / "audio" / "a.wav", folder / "audio" / "b.wav"
    utterances = [Utterance(a, 2.0, ""), Utterance(b, 3.5, ""), Utterance(a, 2.0, "again")]
    cache = AudioCache(utterances, folder / "cache")
    for i, u in enumerate(utterances):
        assert cache[i].dtype == np.float32
        np.testing.assert_array_equal(cache[i], load_audio(u.path))


def test_audio_at_another_rate_is_cached_to_within_half_a_step(folder: Path) -> None:
    path = write_wav(folder / "c.wav", noise(44_100, 3), 44_100)
    cache = AudioCache([Utterance(path, 1.0, "")], folder / "cache")
    np.testing.assert_allclose(cache[0], load_audio(path), rtol=0, atol=0.51 / 32768)


def test_offset_and_duration_cut_a_part_out(folder: Path) -> None:
    b = folder / "audio" / "b.wav"
    utterances = [
        Utterance(b, 1.0, "", 0.5),
        Utterance(b, 0.25, "", 3.25),
        Utterance(b, 3.55, ""),  # a little longer than it is
        Utterance(b, 0.00625, "", 0.0125),
    ]
    cache, whole = AudioCache(utterances, folder / "cache"), load_audio(b)
    np.testing.assert_array_equal(cache[0], whole[8000:24_000])
    np.testing.assert_array_equal(cache[1], whole[52_000:])
    np.testing.assert_array_equal(cache[2], whole)
    np.testing.assert_array_equal(cache[3], whole[200:300])


def test_each_set_has_its_own_cache_file(folder: Path) -> None:
    a = folder / "audio" / "a.wav"
    one, two = [Utterance(a, 2.0, "")], [Utterance(a, 1.0, "")]
    AudioCache(one, folder / "cache")
    made = {p: p.stat().st_mtime_ns for p in (folder / "cache").iterdir()}
    assert len(AudioCache(one, folder / "cache")[0]) == 2 * RATE
    assert {p: p.stat().st_mtime_ns for p in (folder / "cache").iterdir()} == made
    assert len(AudioCache(two, folder / "cache")[0]) == RATE
    assert len(list((folder / "cache").iterdir())) == 2 * len(made)


def test_unusable_audio_is_listed_and_nothing_is_kept(folder: Path) -> None:
    (folder / "broken.wav").write_text("no audio", encoding="utf-8")
    rows = [
        row(audio_filepath="audio/a.wav", duration=2.0),
        row(audio_filepath="broken.wav", duration=2.0),
        row(audio_filepath="audio/b.wav", duration=5.0),
    ]
    utterances = read_manifest(write_manifest(folder, *rows))
    with pytest.raises(ManifestError) as raised:
        AudioCache(utterances, folder / "cache")
    assert f"line 2: {folder / 'broken.wav'}" in str(raised.value)
    assert f"line 3: {folder / 'audio' / 'b.wav'}" in str(raised.value)
    assert "is 1.50 s shorter than the manifest says, 5.00 s" in str(raised.value)
    assert "a.wav" not in str(raised.value)
    assert list((folder / "cache").iterdir()) == []


# -- batches ---------------------------------------------------------------------------------------


def lengths(n: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.choice([0.3, 1.0, 2.5, 7.0, 18.0]) * rng.uniform(0.8, 1.2) for _ in range(n)]


@pytest.mark.parametrize("n", [0, 1, 2, 257])
@pytest.mark.parametrize("batch_seconds", [0.1, 5.0, 60.0])
def test_batches_hold_every_item_once_and_no_more_than_their_seconds(
    n: int, batch_seconds: float
) -> None:
    durations = lengths(n)
    batches = epoch_batches(durations, batch_seconds, seed=1, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    for batch in batches:
        padded = len(batch) * max(durations[i] for i in batch)
        assert padded <= batch_seconds or len(batch) == 1


def test_batches_are_well_filled_with_items_of_like_length() -> None:
    durations = lengths(1000)
    batches = epoch_batches(durations, 60.0, seed=1, epoch=0)
    padded = sum(len(batch) * max(durations[i] for i in batch) for batch in batches)
    assert sum(durations) / padded > 0.8
    assert len(batches) < 1.3 * padded / 60


def test_a_seed_and_an_epoch_determine_the_batches() -> None:
    durations = lengths(200)
    first = epoch_batches(durations, 30.0, seed=1, epoch=3)
    assert first == epoch_batches(durations, 30.0, seed=1, epoch=3)
    for other in (epoch_batches(durations, 30.0, 1, 4), epoch_batches(durations, 30.0, 2, 3)):
        assert first != other
        assert {frozenset(b) for b in first} != {frozenset(b) for b in other}
    longest = [max(durations[i] for i in batch) for batch in first]
    assert longest != sorted(longest)


def test_collating_pads_with_zeros() -> None:
    mels = [tensor(3, MELS), tensor(7, MELS, seed=1), tensor(0, MELS)]
    targets = [torch.tensor([4, 5]), torch.tensor([], dtype=torch.long), torch.tensor([6])]
    batch = collate(mels, targets)
    assert batch.features.shape == (3, 7, MELS)
    assert batch.feature_lengths.tolist() == [3, 7, 0]
    assert torch.equal(batch.features[0, :3], mels[0])
    assert not batch.features[0, 3:].any()
    assert batch.targets.tolist() == [[4, 5], [0, 0], [6, 0]]
    assert batch.target_lengths.tolist() == [2, 0, 1]
    assert torch.equal(batch.to(torch.device("cpu")).features, batch.features)


def test_a_training_set_cuts_its_clips_out_of_the_cache(folder: Path) -> None:
    b = folder / "audio" / "b.wav"
    cache = AudioCache([Utterance(b, 2.0, "", 1.0)], folder / "cache")
    clips = [
        TrainingClip(0, 0.0, 2.0, "all of it"),
        TrainingClip(0, 0.5, 0.75, "part"),
        TrainingClip(0, 0.0, 2.0, "twice"),
    ]
    plain = TrainingSet(cache, clips)
    assert plain.durations() == [2.0, 0.25, 2.0]
    samples, text = plain.example(1, random.Random(0))
    np.testing.assert_array_equal(samples, load_audio(b)[24_000:28_000])
    assert text == "part"
    louder = TrainingSet(cache, clips, lambda x, rng: x * np.float32(rng.random()))
    a, b_, c = (louder.example(0, random.Random(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b_)
    assert bool((a != c).any())


def test_examples_become_features_and_tokens(tiny_tokenizer: Tokenizer) -> None:
    sounds = [noise(4000 + 700 * i, i) for i in range(4)]
    texts = ["yes", "the end", "", "no sound"]
    features = MelFeatures(FeatureConfig(n_mels=MELS))

    def example(i: int, rng: random.Random) -> tuple[NDArray[np.float32], str]:
        return sounds[i] * np.float32(rng.choice([0.5, 1.0])), texts[i]

    def batch(seed: str, index: int, masks: SpecAugment | None = None) -> Any:
        batches = [[0, 1], [3, 2, 1]]
        return BatchSource(batches, example, features, tiny_tokenizer, masks, seed)[index]

    found = batch("1", 1)
    assert found.feature_lengths.tolist() == [len(sounds[i]) // 160 for i in (3, 2, 1)]
    tokens = [tiny_tokenizer.encode(texts[i]) for i in (3, 2, 1)]
    assert found.target_lengths.tolist() == [len(ids) for ids in tokens]
    ids = found.targets[0, : found.target_lengths[0]].tolist()
    assert tiny_tokenizer.decode(ids) == "no sound"
    whole = [features.whole(torch.from_numpy(sounds[3] * np.float32(g))) for g in (0.5, 1.0)]
    assert any(torch.equal(found.features[0, : len(w)], w) for w in whole)

    assert torch.equal(found.features, batch("1", 1).features)
    seeds = [batch(str(seed), 1).features for seed in range(8)]
    assert any(not torch.equal(found.features, other) for other in seeds)
    masked = batch("1", 1, SpecAugment(fill=-99.0, frequency_width=8))
    assert bool((masked.features == -99.0).any())
    assert masked.feature_lengths.tolist() == found.feature_lengths.tolist()


# -- clips of words --------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [1, 3, 100])
def test_spans_hold_every_word_once_in_order(longest: int) -> None:
    words = [(f"w{i}", 0.5 * i, 0.5 * i + 0.4) for i in range(40)]
    for seed in range(10):
        clips = span_clips(7, words, longest, random.Random(seed))
        assert " ".join(clip.text for clip in clips) == " ".join(word for word, _, _ in words)
        at = 0
        for clip in clips:
            run = words[at : at + len(clip.text.split())]
            at += len(run)
            assert 1 <= len(run) <= longest
            assert clip.recording == 7
            assert clip.start == pytest.approx(max(0.0, run[0][1] - 0.04))
            assert clip.end == pytest.approx(run[-1][2] + 0.04)
    assert span_clips(0, [], 3, random.Random(0)) == []
    again = [span_clips(0, words, longest, random.Random(5)) for _ in range(2)]
    assert again[0] == again[1]


# -- splices and mixtures --------------------------------------------------------------------------


def test_a_splice_is_its_clips_one_after_the_other(folder: Path) -> None:
    b = folder / "audio" / "b.wav"
    cache, whole = AudioCache([Utterance(b, 3.0, "")], folder / "cache"), load_audio(b)
    parts = (
        TrainingClip(0, 1.0, 1.5, "two"),
        TrainingClip(0, 0.0, 0.25, "one"),
        TrainingClip(0, 1.0, 1.5, "two"),
    )
    data = TrainingSet(cache, [Splice(parts, 0.1), TrainingClip(0, 0.0, 1.0, "x"), Splice(parts)])
    assert data.durations() == pytest.approx([1.45, 1.0, 1.25])
    samples, text = data.example(0, random.Random(0))
    assert text == "two one two"
    gap = np.zeros(1600, np.float32)
    two, one = whole[16_000:24_000], whole[:4000]
    np.testing.assert_array_equal(samples, np.concatenate([two, gap, one, gap, two]))
    samples, _ = data.example(2, random.Random(0))
    np.testing.assert_array_equal(samples, np.concatenate([two, one, two]))


def test_splices_draw_each_word_alike_however_often_it_was_said() -> None:
    words = [TrainingClip(i, 0.0, 0.5, "often") for i in range(90)] + [
        TrainingClip(90, 0.0, 0.5, "rare")
    ]
    splices = splice_clips(words, 300, 5, (0.0, 0.1), random.Random(0))
    assert splices == splice_clips(words, 300, 5, (0.0, 0.1), random.Random(0))
    assert {len(s.parts) for s in splices} == {2, 3, 4, 5}
    assert {s.gap_seconds for s in splices} == {0.0, 0.1}
    said = [part.text for s in splices for part in s.parts]
    assert 0.4 < said.count("rare") / len(said) < 0.6
    assert len({part.recording for s in splices for part in s.parts}) == 91


def test_a_mixture_is_its_sets_in_turn(folder: Path) -> None:
    b = folder / "audio" / "b.wav"
    cache = AudioCache([Utterance(b, 3.0, "")], folder / "cache")
    one = TrainingSet(cache, [TrainingClip(0, 0.0, 0.5, "a"), TrainingClip(0, 0.5, 0.75, "b")])
    two = TrainingSet(cache, [TrainingClip(0, 0.0, 1.0, "c")], lambda x, rng: -x)
    mixture = Mixture([one, TrainingSet(cache, []), two])
    assert mixture.durations() == [0.5, 0.25, 1.0]
    for item, (source, inner) in enumerate([(one, 0), (one, 1), (two, 0)]):
        found, text = mixture.example(item, random.Random(0))
        expected, same = source.example(inner, random.Random(0))
        np.testing.assert_array_equal(found, expected)
        assert text == same
    with pytest.raises(IndexError, match="past the end"):
        mixture.example(3, random.Random(0))
