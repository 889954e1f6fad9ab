import itertools
import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import DIM, VOCABULARY, cut, make_model, tensor
from torch import Tensor

from pianissimo.decoding.beam_state import BeamOptions
from pianissimo.decoding.ctc import CtcGreedySearch
from pianissimo.decoding.ctc_beam import CtcBeamSearch, CtcPrefixBeam
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.lm.arpa import count_ngrams
from pianissimo.decoding.lm.fusion import Fusion, LanguageModel, TokenLm, WordLm
from pianissimo.decoding.lm.ngram import NgramModel
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.errors import OptionError, StateError
from pianissimo.models.asr import AsrModel

# Three tokens, two of which begin words.
VOCABULARY_OF_THREE = Vocabulary(("▁a", "▁b", "c"))
BLANK = 3
EXACT = BeamOptions(
    beam=256, settle_seconds=100.0, pause_seconds=100.0, token_floor=-math.inf, window=math.inf
)


def models() -> list[LanguageModel | None]:
    pieces = NgramModel(count_ngrams([["▁a", "c"], ["▁b", "▁a", "c"], ["▁b", "c", "c"]], 3))
    words = NgramModel(count_ngrams([["ac"], ["b", "ac"], ["bcc", "a"]], 2))
    ids = [pieces.ids.get(piece) for piece in VOCABULARY_OF_THREE.pieces]
    return [
        None,
        TokenLm(pieces, ids, 0.7),
        WordLm(words, VOCABULARY_OF_THREE, 0.5, 0.3),
    ]


def tries() -> list[PhraseTrie | None]:
    phrases = [((0, 2), 1.0), ((1, 0), 0.5), ((1,), 0.7)]
    return [None, PhraseTrie(phrases, VOCABULARY_OF_THREE)]


FUSIONS = [Fusion(lm, trie) for lm in models() for trie in tries()]


def random_log_probs(frames: int, seed: int, symbols: int = BLANK + 1) -> Tensor:
    return (2 * tensor(frames, symbols, seed=seed)).log_softmax(-1)


def brute_force(log_probs: Tensor, fusion: Fusion) -> dict[tuple[int, ...], float]:
    """Every path, summed by the text it gives; what is added to each text, token by token."""
    totals: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for path in itertools.product(range(BLANK + 1), repeat=len(log_probs)):
        text = tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != BLANK)
        totals[text].append(sum(float(log_probs[t, s]) for t, s in enumerate(path)))
    scores = {}
    for text, paths in totals.items():
        added, state = 0.0, fusion.start()
        for token in text:
            more, state = fusion.step(state, token)
            added += more
        total = math.log(sum(math.exp(path) for path in paths))
        scores[text] = total + added + fusion.end(state)
    return scores


@given(seed=st.integers(0, 10_000), frames=st.integers(1, 5), fusion=st.sampled_from(FUSIONS))
@settings(max_examples=60, deadline=None)
def test_a_wide_beam_finds_the_sum_over_all_paths(seed: int, frames: int, fusion: Fusion) -> None:
    log_probs = random_log_probs(frames, seed)
    search = CtcPrefixBeam(BLANK, 1.0, EXACT)
    beam = search.start(fusion)
    found = search.advance(beam, log_probs, 0)
    expected = brute_force(log_probs, fusion)
    ways = {(*found.tokens, *tokens): score for tokens, score in beam.alternatives()}
    best = max(expected, key=lambda text: expected[text])
    assert next(iter(ways)) == best
    # Texts that cannot come from so few frames are never made.
    assert ways.keys() == expected.keys()
    assert list(ways.values()) == pytest.approx([expected[text] for text in ways], abs=1e-4)


def test_a_language_model_decides_between_what_sounds_alike() -> None:
    log_probs = torch.tensor([[0.45, 0.45, 0.05, 0.05], [0.01, 0.01, 0.97, 0.01]]).log()
    search = CtcPrefixBeam(BLANK, 1.0, EXACT)
    for said, expected in (("ac", [0, 2]), ("bc", [1, 2])):
        model = NgramModel(count_ngrams([[said]] * 3, 2))
        lm = WordLm(model, VOCABULARY_OF_THREE, 0.5, 0.0)
        beam = search.start(Fusion(lm))
        search.advance(beam, log_probs, 0)
        assert list(beam.alternatives()[0][0]) == expected


def talkative(seed: int) -> AsrModel:
    model = make_model(seed=seed)
    assert model.ctc is not None
    with torch.no_grad():
        model.ctc.out.bias[VOCABULARY] += 1.0
        model.ctc.out.weight *= 1.5
    return model


def sound(frames: int, seed: int, rows: int = 1) -> Tensor:
    """Encoder frames that last about two frames each, so that symbols repeat."""
    return tensor(rows, (frames + 1) // 2, DIM, seed=seed).repeat_interleave(2, dim=1)[:, :frames]


@torch.no_grad()
def decode(search: CtcBeamSearch, frames: Tensor, sizes: list[int]) -> Hypothesis:
    state, found = search.start(), Hypothesis()
    for part in cut(len(frames), sizes):
        found.extend(search.decode(frames[None, part], None, state)[0])
    found.extend(state.flush()[0])
    return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settle_seconds", [0.2, 2.0])
def test_batches_in_chunks_equal_each_whole(seed: int, settle_seconds: float) -> None:
    search = CtcBeamSearch(talkative(seed), BeamOptions(4, settle_seconds))
    lengths = torch.tensor([37, 60, 0, 1])
    frames = sound(60, seed, rows=4)
    alone = [decode(search, frames[row, :n], [60]) for row, n in enumerate(lengths.tolist())]
    assert len(alone[1].tokens) > 5
    state, found = search.start(4), [Hypothesis() for _ in range(4)]
    with torch.no_grad():
        for part in cut(60, [0, 1, 5, 20], seed):
            valid = (lengths - part.start).clamp(0, part.stop - part.start)
            index = torch.tensor([3, 1, 0, 2])
            taken = state.rows(index)
            for row, new in zip(
                index.tolist(), search.decode(frames[index, part], valid[index], taken), strict=True
            ):
                found[row].extend(new)
            state.write(index, taken)
        for row, new in enumerate(state.flush()):
            found[row].extend(new)
    for together, expected in zip(found, alone, strict=True):
        assert (together.tokens, together.frames) == (expected.tokens, expected.frames)
        assert together.frames == sorted(together.frames)


@pytest.mark.parametrize("seed", range(3))
def test_certain_acoustics_give_the_greedy_text_in_a_beam(seed: int) -> None:
    model = talkative(seed)
    assert model.ctc is not None
    with torch.no_grad():
        model.ctc.out.weight *= 12
        model.ctc.out.bias *= 12
    frames = sound(60, seed)[0]
    greedy = CtcGreedySearch(model)
    with torch.no_grad():
        expected = greedy.decode(frames[None], None, greedy.start())[0]
    found = decode(CtcBeamSearch(model, BeamOptions(1)), frames, [60])
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
    assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
    assert found.confidences == pytest.approx(expected.confidences, abs=1e-5)


def test_text_is_settled_in_time_and_locked_at_a_flush() -> None:
    model, frames = talkative(0), sound(60, 0)[0]
    quick, slow = (CtcBeamSearch(model, BeamOptions(8, s, s)) for s in (0.16, 1000.0))
    state = quick.start()
    with torch.no_grad():
        for t in range(60):
            quick.decode(frames[None, t : t + 1], None, state)
            pending = [h.tokens[0].frame for h in state.beams[0].hypotheses[:1] if h.tokens]
            assert all(t - frame <= 2 for frame in pending)
        slow_state = slow.start()
        slow.decode(frames[None], None, slow_state)
        assert len(slow_state.beams[0].hypotheses) == 8
        rest = slow_state.flush()[0]
    assert rest.tokens
    assert slow_state.flush()[0].tokens == []
    with pytest.raises(StateError, match="cannot be saved"):
        slow_state.tensors()


def test_frames_that_were_searched_ahead_are_not_searched_again() -> None:
    search, frames = CtcBeamSearch(talkative(1), BeamOptions(4, 0.4)), sound(40, 1)[0]
    expected = decode(search, frames, [40])
    state, found = search.start(), Hypothesis()
    with torch.no_grad():
        for part, again in ((slice(0, 20), 7), (slice(13, 40), 0)):
            found.extend(search.decode(frames[None, part], None, state)[0])
            state.frames -= again
            state.ahead += again
        found.extend(state.flush()[0])
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)


def test_unusable_options_are_refused() -> None:
    for options in ({"beam": 0}, {"beam": 1000}, {"settle_seconds": 0.0}, {"window": -1.0}):
        with pytest.raises(OptionError):
            BeamOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no CTC head"):
        CtcBeamSearch(make_model(ctc=False))
