"""Beams, boosted phrases and language models with wav2vec 2.0 and each of its kin."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from spoken import speech
from tiny import cut, noise

import pianissimo
from pianissimo.audio.io import Samples
from pianissimo.decoding.hotwords import Phrase
from pianissimo.decoding.lm.arpa import count_ngrams, write_arpa
from pianissimo.decoding.search import Decoding
from pianissimo.errors import OptionError
from pianissimo.recognizers.wav2vec2 import CtcFamilyRecognizer, GreedyPath, Window

GOLDEN = Path(__file__).parents[2] / "parity" / "golden_families"
FAMILIES = ("wav2vec2", "robust", "mms", "hubert_large", "data2vec", "wavlm", "bert")
RATE = 16_000
SOUND = noise(40_000, 3)


def load(family: str, decoding: Decoding | None = None) -> CtcFamilyRecognizer:
    found = pianissimo.load(GOLDEN / family, device="cpu", decoding=decoding)
    assert isinstance(found, CtcFamilyRecognizer)
    return hears_noise(found)


def hears_noise(recognizer: CtcFamilyRecognizer) -> CtcFamilyRecognizer:
    """Without its detector, which would find no speech in noise."""
    recognizer.detector = None  # type: ignore[assignment]
    return recognizer


@pytest.fixture(scope="module", params=FAMILIES)
def recognizer(request: pytest.FixtureRequest) -> CtcFamilyRecognizer:
    return load(request.param)


def misheard(recognizer: CtcFamilyRecognizer, samples: Samples = SOUND) -> tuple[str, str]:
    """A word that was nearly heard: the closest race of two letters, lost. Then all with it."""
    symbols = recognizer.alphabet.symbols
    [log_probs] = recognizer._log_probs([Window(0, samples, 0, 0)])
    letters = [i for i, symbol in enumerate(symbols) if len(symbol) == 1 and symbol.isalpha()]
    path = GreedyPath(recognizer.alphabet.blank)
    path.extend(log_probs)
    said = "".join(symbols[run.symbol] for run in path.runs)
    races: list[tuple[float, str, str]] = []
    for i, run in enumerate(path.runs):
        others = [letter for letter in letters if letter != run.symbol]
        other = max(others, key=lambda letter: float(log_probs[run.start, letter]))
        margin = float(log_probs[run.start, run.symbol] - log_probs[run.start, other])
        first, last = said[:i] + symbols[other], said[i + 1 :]
        word = first.rpartition(" ")[2] + last.partition(" ")[0]
        if said[i] != " " and len(word) > 1 and word not in said.split():
            races.append((margin, word, first + last))
    return min(races)[1:]


def words(text: str) -> list[str]:
    return text.upper().split()


def test_a_boosted_word_is_heard_alone_and_together(
    recognizer: CtcFamilyRecognizer, tmp_path: Path
) -> None:
    wanted, _ = misheard(recognizer)
    boost = [Phrase(wanted, 5.0)]
    plain = recognizer.transcribe(SOUND, sample_rate=RATE)
    boosted = recognizer.transcribe(SOUND, sample_rate=RATE, boost=boost)
    assert wanted.upper() not in words(plain.text)
    assert wanted.upper() in words(boosted.text)
    assert recognizer.transcribe(SOUND, sample_rate=RATE) == plain, "it keeps nothing"
    files = [tmp_path / f"{i}.wav" for i in range(2)]
    for file, samples in zip(files, (SOUND, SOUND[:30_000]), strict=True):
        soundfile.write(file, samples, RATE, subtype="FLOAT")
    together = [found.text for found in recognizer.transcribe_many(files, boost=boost)]
    assert together[0] == boosted.text
    assert together == [recognizer.transcribe(file, boost=boost).text for file in files]
    blocks = [[SOUND[part] for part in cut(len(SOUND), [1, 777, 9_000], seed=1)]]
    assert next(recognizer.boosted(boost).recognize(blocks, True)).text == boosted.text


def test_words_of_a_beam_have_times_and_confidences(recognizer: CtcFamilyRecognizer) -> None:
    decoding = Decoding(beam=4)
    beam = CtcFamilyRecognizer(recognizer.model, recognizer.alphabet, decoding=decoding)
    beam = hears_noise(beam)
    greedy = recognizer.transcribe(SOUND, sample_rate=RATE)
    found = beam.transcribe(SOUND, sample_rate=RATE)
    assert found.words and found.duration == greedy.duration
    last = 0.0
    for word in found.words:
        assert last <= word.start < word.end <= found.duration
        assert word.confidence is not None and 0 < word.confidence <= 1
        last = word.end


def test_with_a_language_model_only_words_that_it_knows_are_written(tmp_path: Path) -> None:
    _, text = misheard(load("wav2vec2"))
    known = text.split()
    write_arpa(count_ngrams([known] * 4, 2), tmp_path / "words.arpa")
    informed = Decoding(lm=tmp_path / "words.arpa", lm_weight=0.3, word_bonus=3.0)
    for decoding in (Decoding(), Decoding(beam=8), informed):
        found = load("wav2vec2", decoding).transcribe(SOUND, sample_rate=RATE)
        assert len(found.words) > 4
        assert (set(words(found.text)) <= {*known}) == (decoding is informed)
    (tmp_path / "no.arpa").write_text("nothing", encoding="utf-8")
    with pytest.raises(pianissimo.PianissimoError, match=r"no\.arpa"):
        load("wav2vec2", Decoding(lm=tmp_path / "no.arpa"))
    with pytest.raises(pianissimo.PianissimoError, match="rescoring"):
        load("wav2vec2", Decoding(beam=4, rescoring=0.5))


def test_a_long_recording_in_windows_is_boosted_to_its_end() -> None:
    recognizer = load("wav2vec2")
    wanted, _ = misheard(recognizer)
    long = np.concatenate([SOUND, speech(60.0), SOUND])
    found = recognizer.transcribe(long, sample_rate=RATE, boost=[Phrase(wanted, 5.0)])
    heard = [word.start for word in found.words if word.text == wanted]
    assert heard and found.words[-1].end > 64
    plain = recognizer.transcribe(long, sample_rate=RATE)
    assert len(heard) > sum(word.text == wanted for word in plain.words)


def test_a_live_stream_is_boosted() -> None:
    recognizer = pianissimo.load(GOLDEN / "wav2vec2", device="cpu")
    assert isinstance(recognizer, CtcFamilyRecognizer)
    spoken = np.concatenate([speech(3.0), np.zeros(2 * RATE, np.float32)])

    def live(boost: list[Phrase] | None) -> str:
        with recognizer.stream(boost=boost) as stream:
            events = [*stream.push(spoken), *stream.finish()]
        return " ".join(event.text for event in events if event.type == "final").strip()

    with recognizer.stream() as stream:
        [final] = [event for event in [*stream.push(spoken), *stream.finish()] if event.text]
    heard = spoken[round(final.start * RATE) : round(final.end * RATE)]
    wanted, _ = misheard(recognizer, heard)
    assert wanted not in words(live(None))
    assert wanted in words(live([Phrase(wanted, 5.0)]))
    with pytest.raises(OptionError, match="cannot write"):
        recognizer.stream(boost=["日本"])
