"""Whisper's searches against Transformers' own, and what a batch may not change."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from spoken import speech

from pianissimo.audio.whisper_features import log_mel, mel_filters, scaled, window_of
from pianissimo.decoding import whisper as searches
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.decoding.whisper import UNWATCHED_TOKENS, Begun, WhisperSearch
from pianissimo.models.checkpoints.whisper import WhisperParts, read_transformers
from pianissimo.models.whisper import TextRules
from pianissimo.text.loops import is_stuck

transformers = pytest.importorskip("transformers", reason="needs the extra families")
sys.path.insert(0, str(Path(__file__).parents[1] / "recognizers"))
from tiny_whisper import save_tiny_whisper  # noqa: E402, after the skip

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning")]
CLIPS = (1.1, 3.0, 7.3, 12.0)
LETTERS = 282
LIMIT = 20


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, WhisperParts]:
    """The same random weights there and here; texts end now and then."""
    folder = tmp_path_factory.mktemp("search")
    model = save_tiny_whisper(folder, multilingual=False)
    parts = read_transformers(folder)
    for weight in (
        model.model.decoder.embed_tokens.weight.data,
        parts.network.decoder.embedding.weight,
    ):
        weight[parts.tokenizer.end] *= 5
    model.generation_config.suppress_tokens = None
    model.generation_config.begin_suppress_tokens = None
    return model, parts


@pytest.fixture(scope="module")
def mel() -> torch.Tensor:
    rows = [window_of(torch.tensor(speech(seconds)), 30) for seconds in CLIPS]
    return scaled(log_mel(torch.cat(rows), mel_filters(16)))


@pytest.fixture(scope="module")
def encoded(both: tuple[Any, WhisperParts], mel: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        frames: torch.Tensor = both[1].network.encoder(mel)
    return frames


def search_of(parts: WhisperParts, rules: TextRules | None = None) -> WhisperSearch:
    tokens = parts.tokenizer
    return WhisperSearch(
        parts.network.decoder, rules or TextRules(), end=tokens.end, no_speech=tokens.no_speech
    )


def begun(search: WhisperSearch, parts: WhisperParts, encoded: torch.Tensor) -> Begun:
    with torch.inference_mode():
        return search.begin(encoded, [parts.tokenizer.prompt(None, None)] * len(encoded))


@pytest.mark.parametrize("beam", [1, 2, 4, 5])
def test_beams_are_those_of_transformers(
    both: tuple[Any, WhisperParts],
    mel: torch.Tensor,
    encoded: torch.Tensor,
    beam: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, parts = both
    monkeypatch.setattr(searches, "is_stuck", lambda tokens: False)  # Transformers does not stop
    search = search_of(parts)
    with torch.inference_mode():
        mine = search.beam(begun(search, parts, encoded), [LIMIT] * len(encoded), beam)
    expected = model.generate(
        mel.transpose(1, 2),
        max_new_tokens=LIMIT,
        num_beams=beam,
        do_sample=False,
        early_stopping=beam > 1,
    )
    for text, theirs in zip(mine, expected.tolist(), strict=True):
        assert text.tokens == [token for token in theirs if token < LETTERS]
    if beam == 1:
        with torch.inference_mode():
            greedy = search.greedy(begun(search, parts, encoded), [LIMIT] * len(encoded))
        assert [text.tokens for text in greedy] == [text.tokens for text in mine]
        assert [text.ended for text in greedy] == [text.ended for text in mine]
        for one, other in zip(greedy, mine, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


@pytest.mark.parametrize("beam", [0, 3])
def test_a_recording_gets_the_same_alone(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor, beam: int
) -> None:
    """Limits of their own, one of them none: rows leave the batch at different steps."""
    search, limits = search_of(both[1]), [20, 3, 0, 9]

    def run(rows: torch.Tensor, limits: list[int]) -> list[searches.Written]:
        first = begun(search, both[1], rows)
        with torch.inference_mode():
            return search.beam(first, limits, beam) if beam else search.greedy(first, limits)

    together = run(encoded, limits)
    for i, text in enumerate(together):
        alone = run(encoded[i : i + 1], [limits[i]])[0]
        assert (text.tokens, text.ended) == (alone.tokens, alone.ended)
        assert text.log_probs == pytest.approx(alone.log_probs, abs=1e-4)
        assert len(text.tokens) <= limits[i]


def test_prompts_of_different_lengths_share_a_batch(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    """A text goes on from what is committed of it."""
    search, parts = search_of(both[1]), both[1]
    prompt = parts.tokenizer.prompt(None, None)
    with torch.inference_mode():
        whole = search.greedy(search.begin(encoded[:2], [prompt] * 2), [8, 8])
        prompts = [[*prompt, *whole[0].tokens[:5]], [*prompt, *whole[1].tokens[:2]]]
        rest = search.greedy(search.begin(encoded[:2], prompts), [3, 6])
    assert whole[0].tokens[5:] == rest[0].tokens[: len(whole[0].tokens) - 5]
    assert whole[1].tokens[2:] == rest[1].tokens[: len(whole[1].tokens) - 2]


def test_suppressed_tokens_are_never_written_and_count_for_nothing(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    free = search_of(both[1])
    with torch.inference_mode():
        before = free.greedy(begun(free, both[1], encoded), [8] * len(encoded))
    usual = sorted({token for text in before for token in text.tokens})
    strict = search_of(both[1], TextRules(suppressed=(usual[0],), suppressed_first=tuple(usual)))
    first = begun(strict, both[1], encoded)
    with torch.inference_mode():
        after = strict.greedy(first, [8] * len(encoded))
    for text in after:
        assert usual[0] not in text.tokens
        assert not text.tokens or text.tokens[0] not in usual
    allowed = first.logits[0].clone()
    allowed[usual] = -torch.inf
    assert after[0].log_probs[0] == pytest.approx(float(allowed.log_softmax(-1).max()), abs=1e-5)


def test_a_loop_ends_the_text(both: tuple[Any, WhisperParts], encoded: torch.Tensor) -> None:
    search = search_of(both[1], TextRules(suppressed=(both[1].tokenizer.end,)))
    with torch.inference_mode():
        texts = search.greedy(begun(search, both[1], encoded), [90] * len(encoded))
    for text in texts:
        assert not text.ended and UNWATCHED_TOKENS <= len(text.tokens) < 90
        assert is_stuck(text.tokens)


def test_a_short_text_may_repeat_itself_and_end(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six times the same token, then the end: what a person said, no loop."""
    search, tokens = search_of(both[1]), both[1].tokenizer
    wanted = [7, 7, 7, 7, 7, 7, tokens.end]
    written = 0

    def scripted(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal written
        written += 1
        logits = torch.zeros(*hidden.shape[:-1], search.decoder.config.vocab_size)
        logits[..., wanted[min(written - 1, 6)]] = 30.0
        return logits

    first = begun(search, both[1], encoded[:1])
    monkeypatch.setattr(search.decoder.logits, "forward", scripted)
    with torch.inference_mode():
        [text] = search.greedy(replace(first, logits=scripted(torch.zeros(1, 1))), [LIMIT])
    assert text.tokens == wanted[:-1] and text.ended


def drafted(
    both: tuple[Any, WhisperParts],
    encoded: torch.Tensor,
    limits: list[int],
    expected: list[list[int]],
    **options: Any,
) -> tuple[list[searches.Written], int]:
    """Texts by drafts, and the steps that this took."""
    search, prompt, steps = search_of(both[1]), both[1].tokenizer.prompt(None, None), 0
    step = search.decoder.step

    def counted(*given: Any) -> Any:
        nonlocal steps
        steps += 1
        return step(*given)

    room = len(prompt) + max(limits) + searches.DRAFT_TOKENS
    texts = [
        searches.Draft(prompt, limit, tuple(tokens), **options)
        for limit, tokens in zip(limits, expected, strict=True)
    ]
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.decoder, "step", counted)
        found = search.greedy_with_drafts(search.decoder.start(encoded, None, room), texts)
    return found, steps


def test_drafts_save_steps_and_change_no_text(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    """The very text, none, one with other, missing and further tokens, and a foreign one."""
    search, limits = search_of(both[1]), [LIMIT] * len(encoded)
    with torch.inference_mode():
        plain = search.greedy(begun(search, both[1], encoded), limits)
    right = [text.tokens for text in plain]
    damaged = [[*t[:2], 9, *t[3:6], *t[7:9], 11, *t[9:]] for t in right]
    all_steps = {}
    for name, expected in {
        "none": [[] for _ in right],
        "right": right,
        "damaged": damaged,
        "mixed": [right[0], [], *([3] * 30 for _ in right[2:])],
    }.items():
        texts, all_steps[name] = drafted(both, encoded, limits, expected)
        for text, whole in zip(texts, plain, strict=True):
            assert (text.tokens, text.ended) == (whole.tokens, whole.ended)
            assert text.log_probs == pytest.approx(whole.log_probs, abs=1e-4)
    longest = max(len(text.log_probs) for text in plain)
    assert all_steps["none"] == longest
    assert all_steps["right"] <= -(-longest // searches.DRAFT_TOKENS)
    assert max(all_steps.values()) == longest


def test_a_draft_is_tried_again_behind_what_differs() -> None:
    draft = searches.Draft([1, 2], 30, (5, 6, 7, 8, 9))
    assert (draft.given, draft.tried) == ([1, 2, 5, 6, 7, 8, 9], 5)
    found = [(token, -0.1, 0) for token in (5, 7, 7, 7, 7, 7)]
    assert draft.advance(found, end=0) == 4  # 6 is missing
    assert (draft.given, draft.tried, draft.length) == ([7, 8, 9], 2, 3)
    assert draft.advance([(3, -0.1, 0)] * 3, end=0) == 2  # 3 in place of 8
    assert draft.given == [3, 9]
    assert draft.advance([(9, -0.1, 0), (0, -0.1, 0)], end=0) == 0
    assert draft.text.tokens == [5, 7, 3, 9] and draft.text.ended and draft.is_done


def test_a_draft_has_a_limit_of_its_own(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    search, limits = search_of(both[1]), [20, 3, 0, 9]
    with torch.inference_mode():
        plain = search.greedy(begun(search, both[1], encoded), limits)
    texts, _ = drafted(both, encoded, limits, [text.tokens for text in plain])
    assert [text.tokens for text in texts] == [text.tokens for text in plain]


def test_watched_texts_stop_where_the_sound_is_not_all_there(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    limits, none = [LIMIT] * len(encoded), [[] for _ in encoded]
    free, _ = drafted(both, encoded, limits, none, watch=10_000)
    unwatched, _ = drafted(both, encoded, limits, none)
    assert [text.tokens for text in free] == [text.tokens for text in unwatched]
    for bound in (1, 400, 900):
        for expected in (none, [text.tokens for text in free]):
            cut, _ = drafted(both, encoded, limits, expected, watch=bound)
            for text, whole in zip(cut, free, strict=True):
                assert len(whole.looked) == len(whole.tokens)
                reached = [frame >= bound for frame in whole.looked]
                end = reached.index(True) if True in reached else len(whole.tokens)
                assert text.tokens == whole.tokens[:end]


def test_a_text_does_not_end_long_before_the_sound_unless_that_is_likely(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows in place of the end continues no word."""
    search, prompt = search_of(both[1]), both[1].tokenizer.prompt(None, None)
    joins = torch.ones(search.decoder.config.vocab_size, dtype=torch.bool)
    joins[260:282] = False
    room = len(prompt) + LIMIT + searches.DRAFT_TOKENS

    def texts(sound: int | None) -> list[searches.Written]:
        drafts = [searches.Draft(prompt, LIMIT, sound=sound) for _ in encoded]
        state = search.decoder.start(encoded, None, room)
        with torch.inference_mode():
            return search.greedy_with_drafts(state, drafts, joins)

    plain = texts(None)
    assert any(text.ended for text in plain)
    for bound, goes_on in ((0.0, True), (-1e9, False)):
        monkeypatch.setattr(searches, "LEAST_END", bound)
        for text, before in zip(texts(10_000), plain, strict=True):
            if not before.ended or not goes_on:
                assert text.tokens == before.tokens
                continue
            count = len(before.tokens)
            assert text.tokens[:count] == before.tokens and 260 <= text.tokens[count] < 282
    monkeypatch.setattr(searches, "LEAST_END", 0.0)
    assert [t.tokens for t in texts(10)] == [t.tokens for t in plain]  # all of it was heard


def trie_of(both: tuple[Any, WhisperParts], phrase: list[int], weight: float) -> PhraseTrie:
    parts = both[1]
    pieces = Vocabulary.of_tokenizer(parts.tokenizer.for_streams()).pieces
    return PhraseTrie([(tuple(phrase), weight)], Vocabulary(pieces))


def second_choice(logits: torch.Tensor) -> tuple[int, float]:
    """The letter behind the likeliest one, and how much less likely it is."""
    values, tokens = logits[:LETTERS].topk(2)
    return int(tokens[1]), float(values[0] - values[1])


def test_a_hotword_wins_over_a_letter_that_is_a_little_likelier(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    search, parts = search_of(both[1]), both[1]
    limits = [LIMIT]
    with torch.inference_mode():
        first = begun(search, parts, encoded[:1])
        token, margin = second_choice(first.logits[0])
        plain = search.greedy(begun(search, parts, encoded[:1]), limits)[0]
        for factor, wins in ((1.1, True), (0.9, False)):
            trie = trie_of(both, [token, token], margin * factor)
            [text] = search.greedy(begun(search, parts, encoded[:1]), limits, trie)
            assert (text.tokens[0] == token) == wins
            if not wins and token not in plain.tokens:
                assert text.tokens == plain.tokens
        expected = first.logits[0].log_softmax(-1)[token]
    # What is written is boosted, its probability is that of the model.
    trie = trie_of(both, [token, token], margin * 1.1)
    with torch.inference_mode():
        [text] = search.greedy(begun(search, parts, encoded[:1]), limits, trie)
    assert text.log_probs[0] == pytest.approx(float(expected), abs=1e-4)


def test_hotwords_add_no_words_behind_the_end(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    """The text ends where it ends without them, however much a phrase is favored."""
    search, parts = search_of(both[1]), both[1]
    first = begun(search, parts, encoded[:1])
    with torch.inference_mode():
        first.logits[0, parts.tokenizer.end] = first.logits[0].max() + 0.1
        [text] = search.greedy(first, [LIMIT], trie_of(both, [70, 71], 5.0))
    assert text.ended and not text.tokens


def test_drafts_and_batches_change_no_boosted_text(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    """Only the first and the third stream have hotwords."""
    search, parts, limits = search_of(both[1]), both[1], [LIMIT] * len(encoded)
    with torch.inference_mode():
        plain = search.greedy(begun(search, parts, encoded), limits)
        phrase = plain[1].tokens[:3]
        trie = trie_of(both, phrase, 5.0)
        boosted = search.greedy(begun(search, parts, encoded), limits, trie)
    assert [t.tokens for t in boosted] != [t.tokens for t in plain]
    expected = [(boosted if i in (0, 2) else plain)[i] for i in range(len(encoded))]
    prompt = parts.tokenizer.prompt(None, None)
    for guesses in ([t.tokens for t in plain], [t.tokens for t in boosted], [[]] * len(encoded)):
        drafts = [
            searches.Draft(prompt, LIMIT, guess, trie=trie if i in (0, 2) else None)
            for i, guess in enumerate(guesses)
        ]
        room = len(prompt) + LIMIT + searches.DRAFT_TOKENS
        with torch.inference_mode():
            found = search.greedy_with_drafts(search.decoder.start(encoded, None, room), drafts)
        assert [t.tokens for t in found] == [t.tokens for t in expected]


def test_a_beam_with_hotwords_prefers_the_phrase_and_refunds_what_it_lacks(
    both: tuple[Any, WhisperParts], encoded: torch.Tensor
) -> None:
    search, parts = search_of(both[1]), both[1]
    with torch.inference_mode():
        first = begun(search, parts, encoded[:1])
        token, margin = second_choice(first.logits[0])
        plain = search.beam(begun(search, parts, encoded[:1]), [1], 4)[0]
        trie = trie_of(both, [token], margin + 0.2)
        assert margin + 0.2 < 2.0, "more than a beam adds"
        one = search.beam(begun(search, parts, encoded[:1]), [1], 4, trie)[0]
        begins = trie_of(both, [token, 9], margin + 0.2)
        incomplete = search.beam(begun(search, parts, encoded[:1]), [1], 4, begins)[0]
    assert plain.tokens != [token] == one.tokens
    assert incomplete.tokens == plain.tokens
