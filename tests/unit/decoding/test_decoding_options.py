"""Searches as they are asked for: by recognizers, live streams, the engine and the command line."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_model, make_talker, noise, tensor

from pianissimo.cli.options import SearchOptions
from pianissimo.decoding.beam import BeamSearch
from pianissimo.decoding.beam_state import BeamOptions
from pianissimo.decoding.ctc import CtcGreedySearch
from pianissimo.decoding.ctc_beam import CtcBeamSearch, CtcPrefixBeam
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.hotwords import Phrase
from pianissimo.decoding.lm.arpa import count_ngrams, write_arpa
from pianissimo.decoding.lm.fusion import FIRST_CODE, Fusion, TokenLm, WordLm, read_lm
from pianissimo.decoding.search import FUSION_BEAM, Decoding, make_search
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.engine.cuda_graphs import StepGraphs
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.engine.runner import Runner
from pianissimo.errors import EngineError, OptionError, StateError
from pianissimo.models.asr import AsrModel
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.recognizers.wav2vec2 import BeamPath
from pianissimo.streaming.grid import ChunkWork
from pianissimo.text.characters import Run
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent

SOUND = noise(64_000)


@pytest.fixture(scope="module")
def recognizer(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    return NativeRecognizer(talker, tiny_tokenizer)


@pytest.fixture(scope="module")
def boost(recognizer: NativeRecognizer) -> list[Phrase]:
    """Words that begin like what is said and go on otherwise."""
    said = recognizer.transcribe(SOUND, sample_rate=16_000).text.split()
    rng = random.Random(0)
    endings = ["the", "sea", "ten", "so", "it", "sound"]
    words = {word[:2] + rng.choice(endings) for word in said if word.isalpha()}
    return [Phrase(word, 4.0) for word in sorted(words)]


def said(events: list[StreamEvent]) -> str:
    return " ".join(e.text for e in events if e.type == "final" and e.text)


def live(recognizer: NativeRecognizer, boost: list[Phrase] | None, block: int = 4000) -> str:
    with recognizer.stream(latency_ms=80, endpoint=None, watchdog=None, boost=boost) as stream:
        events = [e for i in range(0, len(SOUND), block) for e in stream.push(SOUND[i : i + block])]
        return said(events + stream.finish())


def test_hotwords_work_in_recordings_and_streams(
    recognizer: NativeRecognizer, boost: list[Phrase]
) -> None:
    options = {"sample_rate": 16_000, "latency_ms": 80}
    plain = recognizer.transcribe(SOUND, **options).text
    boosted = recognizer.transcribe(SOUND, boost=boost, **options).text
    assert boosted != plain
    assert recognizer.transcribe(SOUND, **options).text == plain, "it keeps nothing"
    assert live(recognizer, boost) == boosted
    assert live(recognizer, boost, 997) == boosted
    assert live(recognizer, None) == plain


def test_recordings_of_a_batch_are_all_boosted(
    recognizer: NativeRecognizer, boost: list[Phrase], tmp_path: Path
) -> None:
    import soundfile

    paths = [tmp_path / f"{i}.wav" for i in range(2)]
    for i, path in enumerate(paths):
        soundfile.write(path, SOUND[: 48_000 + 8_000 * i], 16_000)
    alone = [recognizer.transcribe(path, boost=boost).text for path in paths]
    together = [t.text for t in recognizer.transcribe_many(paths, boost=boost)]
    assert together == alone
    assert together != [t.text for t in recognizer.transcribe_many(paths)]


def test_streams_of_an_engine_have_their_own_hotwords(
    recognizer: NativeRecognizer, boost: list[Phrase]
) -> None:
    wishes = [boost, None, boost[: len(boost) // 2]]
    expected = [live(recognizer, wish) for wish in wishes]
    assert len(set(expected)) == 3
    with Engine(recognizer, max_streams=3, options=EngineOptions(freeze_garbage=False)) as engine:
        for _ in range(2):  # the second time in used slots, in another order
            sessions = [
                engine.open(latency_ms=80, endpoint=None, watchdog=None, boost=wish)
                for wish in wishes
            ]
            for start in range(0, len(SOUND), 6000):
                for session in sessions:
                    session.push(SOUND[start : start + 6000])
            for session in sessions:
                session.finish()
            assert [said(list(session)) for session in sessions] == expected
            wishes.reverse()
            expected.reverse()
        with pytest.raises(OptionError, match="cannot write"):
            engine.open(boost=["日本"])


def test_a_saved_stream_keeps_its_phrases(
    recognizer: NativeRecognizer, boost: list[Phrase]
) -> None:
    expected = live(recognizer, boost)
    rules = {"latency_ms": 80, "endpoint": None, "watchdog": None}
    with Engine(recognizer, max_streams=2, options=EngineOptions(freeze_garbage=False)) as engine:
        first = engine.open(boost=boost, **rules)
        for start in range(0, 30_000, 6000):
            first.push(SOUND[start : start + 6000])
        second = engine.open(state=first.export(), **rules)
        second.push(SOUND[30_000:])
        second.finish()
        assert said(list(second)) == expected


def test_boosted_streams_step_without_the_graph_that_serves_the_others(
    recognizer: NativeRecognizer, boost: list[Phrase]
) -> None:
    """What a graph would replay is called again on the same memory."""
    trie = recognizer.boosted(boost).trie
    runner, grid = Runner(recognizer.live, 2), recognizer.live.grid(0)

    def again(function):  # type: ignore[no-untyped-def]
        function()
        return function

    with torch.inference_mode():
        runner.graphs = StepGraphs(recognizer.live, runner.arena, [grid], 2, 2, record=again)
    runs: list[int] = []
    run = runner.graphs.run
    runner.graphs.run = lambda works, grid: runs.append(len(works)) or run(works, grid)  # type: ignore[assignment,func-returns-value]
    found = {}
    for boosted in (True, False):
        runner.clear(0, trie=trie if boosted else None)
        found[boosted] = Hypothesis()
        padded = np.concatenate([np.zeros(600, np.float32), SOUND])
        for k in range(30):
            start, end = grid.window(k)
            work = ChunkWork(0, padded[start + 600 : end + 600])
            found[boosted].extend(runner.step([work], grid)[0])
        assert bool(runs) != boosted
    assert found[True].tokens != found[False].tokens


# -- beams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["transducer", "ctc"])
def test_a_beam_gives_the_same_text_live_and_from_a_file(
    talker: AsrModel, tiny_tokenizer: Tokenizer, head: str
) -> None:
    beam = NativeRecognizer(talker, tiny_tokenizer, head=head, decoding=Decoding(beam=3))  # type: ignore[arg-type]
    whole = beam.transcribe(SOUND, sample_rate=16_000, latency_ms=80)
    assert live(beam, None) == whole.text
    assert len(whole.text) > 4
    with beam.stream(latency_ms=80, endpoint=None, watchdog=None) as stream:
        events = [e for i in range(0, 64_000, 3000) for e in stream.push(SOUND[i : i + 3000])]
        partials = [e.text for e in events if e.type == "partial"]
        assert all(later.startswith(before) for before, later in pairwise(partials))
        locked = stream.finalize()[-1]
        assert locked.type == "final"
        assert locked.text.startswith(partials[-1])


def test_a_stream_with_a_beam_is_not_saved(talker: AsrModel, tiny_tokenizer: Tokenizer) -> None:
    beam = NativeRecognizer(talker, tiny_tokenizer, decoding=Decoding(beam=2))
    options = EngineOptions(freeze_garbage=False)
    with Engine(beam, max_streams=1, options=options) as engine, engine.open() as session:
        session.push(SOUND)
        with pytest.raises((StateError, EngineError), match="cannot be saved"):
            session.export()
        session.finish()
        assert said(list(session))


def test_a_path_of_windows_and_silence_is_one_search() -> None:
    log_probs = (3 * tensor(40, 6, seed=2)).log_softmax(-1)

    def runs(parts: list[slice | int]) -> list[Run]:
        path = BeamPath(CtcPrefixBeam(0, 0.02, BeamOptions(4)), Fusion(), 6)
        for part in parts:
            if isinstance(part, int):
                path.pause(part)
            else:
                path.extend(log_probs[part])
        return path.runs

    whole = runs([slice(0, 40)])
    assert len(whole) > 5
    assert runs([slice(0, 13), slice(13, 13), slice(13, 40)]) == whole
    apart = runs([slice(0, 20), 100, slice(20, 40)])
    assert all(run.start < 20 or run.start >= 120 for run in apart)


# -- options ---------------------------------------------------------------------------------------


def test_the_search_is_the_requested_one() -> None:
    model = make_model()
    assert type(make_search(model)) is GreedySearch
    assert type(make_search(model, None, Decoding(beam=1))) is GreedySearch
    assert type(make_search(model, "ctc", Decoding())) is CtcGreedySearch
    assert type(make_search(model, None, Decoding(beam=4))) is BeamSearch
    assert type(make_search(model, "ctc", Decoding(beam=4))) is CtcBeamSearch
    assert Decoding(lm="words.arpa").width == FUSION_BEAM
    assert Decoding(beam=3, lm="words.arpa").width == 3
    talker = make_talker(0.0, durations=(0, 1))
    assert type(make_search(talker, None, Decoding(beam=4))) is BeamSearch


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 0},
        {"beam": 100_000},
        {"lm_weight": 0.5},
        {"lm": "x", "lm_weight": -1.0},
        {"lm": "x", "lm_weight": float("nan")},
        {"lm": "x", "word_bonus": 1e9},
        {"beam": 4, "rescoring": float("nan")},
    ],
)
def test_unusable_decodings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        Decoding(**options)  # type: ignore[arg-type]


def test_a_language_model_is_over_words_or_tokens(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    vocabulary = Vocabulary.of_tokenizer(tiny_tokenizer)
    ids = tiny_tokenizer.encode("the sea")
    spellings = {
        "words": ["the", "sea"],
        "pieces": [tiny_tokenizer.pieces[i] for i in ids],
        "codes": [chr(i + FIRST_CODE) for i in ids],
    }
    models = {}
    for name, sentence in spellings.items():
        write_arpa(count_ngrams([sentence] * 3, 2), tmp_path / name)
        models[name] = read_lm(tmp_path / name, vocabulary, 1.0)
    assert isinstance(models["words"], WordLm)
    assert isinstance(models["pieces"], TokenLm)
    assert isinstance(models["codes"], TokenLm)
    cpu = torch.device("cpu")
    for model in models.values():
        state = model.start()
        for i in ids:
            row = model.scores([state], cpu)[0]
            one_by_one = [model.step(state, token)[0] for token in range(len(row))]
            assert row.tolist() == pytest.approx(one_by_one, abs=1e-4)
            state = model.step(state, i)[1]
    after = [m.step(m.start(), ids[0])[0] for m in (models["pieces"], models["codes"])]
    assert after[0] == pytest.approx(after[1], abs=1e-5)
    with pytest.raises(OptionError, match="remove word_bonus"):
        read_lm(tmp_path / "pieces", vocabulary, None, 1.0)


def test_words_are_looked_up_in_the_case_and_without_the_marks_that_are_known(
    tmp_path: Path,
) -> None:
    write_arpa(count_ngrams([["hello", "you"]] * 2, 2), tmp_path / "lm.arpa")
    vocabulary = Vocabulary(("▁Hello", ",", "▁YOU", "▁x", "▁", "?"))
    lm = read_lm(tmp_path / "lm.arpa", vocabulary, 1.0, 0.0)

    def total(tokens: list[int]) -> float:
        state, score = lm.start(), 0.0
        for token in tokens:
            more, state = lm.step(state, token)
            score += more
        return score + lm.end(state)

    assert total([0, 1, 2]) == total([0, 2, 5]) == total([0, 4, 2]) > -3.0
    assert total([0, 3]) < total([0, 2]) - 20.0


def test_the_command_line_asks_for_the_same(tmp_path: Path) -> None:
    assert SearchOptions().decoding is None
    assert SearchOptions(beam=4).decoding == Decoding(beam=4)
    lm = Path("a.arpa")
    assert SearchOptions(lm=lm, lm_weight=0.2).decoding == Decoding(None, lm, 0.2)
    file = tmp_path / "phrases.txt"
    file.write_text("Ada Lovelace\n\nBabbage\t2.5\n", encoding="utf-8")
    expected = [Phrase("Byron"), Phrase("Ada Lovelace"), Phrase("Babbage", 2.5)]
    assert SearchOptions(["Byron"], file).hotwords == expected
    assert SearchOptions().hotwords == []
    file.write_text("Babbage\tmuch\n", encoding="utf-8")
    with pytest.raises(OptionError, match="line 1: 'much' is not a number"):
        _ = SearchOptions(hotword_file=file).hotwords
    with pytest.raises(OptionError, match="cannot be read"):
        _ = SearchOptions(hotword_file=tmp_path).hotwords
