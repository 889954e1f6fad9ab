"""Conversations made of single recordings, and the errors of speakers over a manifest of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from spoken import EXAMPLES

from pianissimo.diarization.options import Diarization
from pianissimo.errors import ManifestError, OptionError
from pianissimo.evaluate.mixtures import MixtureOptions, mix, read_voices
from pianissimo.evaluate.speakers import evaluate_speakers, read_conversations
from pianissimo.text.formats import rttm_lines


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [
        {"audio_filepath": str(EXAMPLES / name), "speaker": speaker, "text": speaker}
        for speaker, name in (("one", "sentence.flac"), ("other", "number.flac"))
    ]
    path = tmp_path / "voices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_seed_gives_the_same_conversation(manifest: Path) -> None:
    voices = read_voices(manifest)
    options = MixtureOptions(2, 20.0, overlap=0.2)
    one, same, other = (mix(voices, options, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.samples, same.samples)
    assert one.turns == same.turns
    assert one.turns != other.turns
    assert {turn.speaker for turn in one.turns} == {"/one", "/other"}
    assert 10 * 16_000 < len(one.samples) <= 20 * 16_000
    assert any(a.end > b.start for a, b in zip(one.utterances, one.utterances[1:], strict=False))


def test_whole_recordings_keep_their_text(manifest: Path) -> None:
    options = MixtureOptions(2, 20.0, overlap=0.0, turn_seconds=None)
    mixture = mix(read_voices(manifest), options, seed=1)
    assert {(u.speaker, u.text) for u in mixture.utterances} == {
        ("/one", "one"),
        ("/other", "other"),
    }
    ends = [utterance.end for utterance in mixture.utterances]
    assert all(end < u.start for end, u in zip(ends, mixture.utterances[1:], strict=False))


def test_what_cannot_be_mixed_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="2 voices cannot make 3"):
        mix(read_voices(manifest), MixtureOptions(3), seed=0)
    with pytest.raises(OptionError, match="make it longer"):
        mix(read_voices(manifest), MixtureOptions(2, 0.5), seed=0)
    with pytest.raises(OptionError, match="overlap from 0"):
        MixtureOptions(2, overlap=0.9)
    (tmp_path / "bad.jsonl").write_text('{"audio_filepath": "a.wav"}\n')
    with pytest.raises(ManifestError, match=r"line 1: .*'speaker' is missing"):
        read_voices(tmp_path / "bad.jsonl")
    with pytest.raises(ManifestError, match="no line has a speaker"):
        read_voices(manifest, ["none"])


def test_errors_over_a_manifest(manifest: Path, tmp_path: Path) -> None:
    mixture = mix(read_voices(manifest), MixtureOptions(2, 20.0, overlap=0.0), seed=1)
    soundfile.write(tmp_path / "talk.wav", mixture.samples, 16_000)
    (tmp_path / "talk.rttm").write_text(rttm_lines(mixture.turns, "talk"))
    rows = [
        {"audio_filepath": name, "rttm_filepath": "talk.rttm"} for name in ("talk.wav", "gone.wav")
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = evaluate_speakers(read_conversations(path), Diarization(speakers=2))
    assert score.recordings == score.right_number == 1
    assert score.exact.rate < 0.15
    assert score.collar.rate <= score.exact.rate
    assert 0 <= score.jaccard < 0.3
    assert score.words.words == 0
    [fault] = score.faults
    assert "gone.wav: no such file" in fault
    path.write_text('{"audio_filepath": "talk.wav"}\n')
    with pytest.raises(ManifestError, match=r"line 1: .*'rttm_filepath'"):
        read_conversations(path)
    with pytest.raises(OptionError, match="channels need no evaluation"):
        evaluate_speakers([], Diarization("channels"))
