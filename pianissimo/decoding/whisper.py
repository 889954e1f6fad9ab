"""Whisper's texts: batched greedy and beam search, the language, and when each word was said.

Shape legend: B recordings, R texts (B times the width of the beam), S encoder frames, U tokens,
V vocabulary.

What a recording gets never depends on its neighbours: each has its own limit, and is left out of
the batch when it is done. The tokens that its model must never write count for nothing, also in
the probabilities.

The times of words come from the attention of the heads that follow the speech, aligned by dynamic
time warping as in the reference implementation.

Hotwords add their bonuses to the log-probabilities where a token is chosen. Greedy search ends a
text where it ends without them, so they add no words behind it. The log-probabilities of a text are
those of the model alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pianissimo.decoding.hotwords import ROOT, PhraseTrie
from pianissimo.models.whisper import FRAME_SECONDS, DecoderState, TextDecoder, TextRules
from pianissimo.text.loops import is_stuck
from pianissimo.transcript import Word

UNWATCHED_TOKENS = 36
"""Up to here a text may repeat itself, as speech does: one that loops does not end."""
LIKELIEST = 2
"""Candidates a beam looks at, for each of its hypotheses: as many may end at once."""

REWIND_FRAMES = 50
"""Attention that goes back by a second does not follow the speech any more."""
UNHEARD_FRAMES, LEAST_END = 75, math.log(0.6)
"""A text in the making does not end 1.5 s before the sound does, unless its end is that likely."""
DRAFT_TOKENS = 16
"""Tokens of a draft that one step checks."""
DRAFT_SHIFT = 3
"""A text follows its draft again this many tokens before or behind where it left it."""

SPACELESS = frozenset("zh ja th lo my yue".split())
"""Languages written without spaces: each character is timed as a word."""
OPENING, CLOSING = "\"'“¡¿([{-", "\"'.。,，!！?？:：”)]}、"
"""Marks that belong to the word after them, and to the one before."""

BACK_FRAMES, BACK_TOKENS = 50, 3
"""A text begins again where this many tokens in a row look a second behind the furthest frame."""


@dataclass
class Written:
    """The tokens of one text without its end, and their natural log-probabilities.

    `log_probs` has one more entry where the text ended by itself. `looked` are the frames at which
    the alignment heads looked most when each token was written; `greedy_with_drafts` notes them.
    """

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    ended: bool = False
    looked: list[int] = field(default_factory=list)

    @property
    def mean_log_probability(self) -> float:
        return sum(self.log_probs) / len(self.log_probs) if self.log_probs else 0.0

    def write(self, token: int, log_prob: float, end: int, limit: int) -> bool:
        """Add one token; False where the text is over with it."""
        self.log_probs.append(log_prob)
        self.ended = token == end
        if not self.ended:
            self.tokens.append(token)
        return not self.ended and not is_over(self.tokens, limit)


@dataclass
class Draft:
    """One text in the making, and the tokens that it is expected to have.

    A text that is `continued` has begun in its prompt: what no text begins with may come next. With
    `watch`, a frame, the text stops before the first token whose attention is not before it: the
    sound is not all there yet. It also stops before a token that goes back by `REWIND_FRAMES` from
    the furthest frame, which was `reached` before: all was written, and the text would begin again.
    `sound` are the frames of sound, if the text may have ended too early, see `UNHEARD_FRAMES`.
    `node` is the place in the `trie` of its hotwords behind what is written.
    """

    prompt: InitVar[Sequence[int]]
    limit: int
    expected: Sequence[int] = ()
    watch: int | None = None
    reached: int = 0
    continued: bool = False
    sound: int | None = None
    trie: PhraseTrie | None = None
    node: int = ROOT
    text: Written = field(default_factory=Written)
    no_speech: float = 0.0
    """Its probability, once the prompt was read."""
    given: list[int] = field(default_factory=list)
    """The tokens of the next step, of which the last `tried` are only expected."""
    tried: int = 0
    length: int = 0
    """Tokens that went through the decoder and stand."""
    is_done: bool = False
    _next: int = 0

    def __post_init__(self, prompt: Sequence[int]) -> None:
        self._give(prompt)

    def _give(self, tokens: Sequence[int]) -> None:
        ahead = self.expected[self._next : self._next + DRAFT_TOKENS]
        self.given, self.tried = [*tokens, *ahead], len(ahead)

    def fit(self, space: int) -> None:
        """Try fewer tokens where there is no space for all."""
        fewer = min(self.tried, max(0, len(self.given) - space))
        self.given, self.tried = self.given[: len(self.given) - fewer], self.tried - fewer

    @property
    def places(self) -> list[int]:
        """The nodes before the first tried token and behind each."""
        nodes = [self.node]
        if self.trie is not None:
            for token in self.given[len(self.given) - self.tried :]:
                nodes.append(self.trie.walk((token,), nodes[-1]))
        return nodes

    def advance(self, found: Sequence[tuple[int, float, int]], end: int) -> int:
        """Take the likeliest token, its log-probability and the frame looked at, before the first
        tried token and behind each; returns how many of the tried do not stand."""
        token, kept, tried = end, 0, self.given[len(self.given) - self.tried :]
        for kept, (token, log_prob, frame) in enumerate(found):
            if not self._write(token, log_prob, frame, end):
                self.is_done, self.given, self.tried = True, [end], 0
                return 0
            if kept == self.tried or token != tried[kept]:
                break
        refused = self.tried - kept
        self.length += len(self.given) - refused
        here = self._next + kept
        near = range(max(0, here - DRAFT_SHIFT), min(len(self.expected), here + DRAFT_SHIFT + 1))
        same = [place for place in near if self.expected[place] == token]
        self._next = 1 + min(same, key=lambda place: abs(place - here), default=here)
        self._give([token])
        return refused

    def _write(self, token: int, log_prob: float, frame: int, end: int) -> bool:
        if self.watch is not None:
            if frame >= self.watch or frame < self.reached - REWIND_FRAMES:
                return False
            self.reached = max(self.reached, frame)
        if token != end:
            self.text.looked.append(frame)
            if self.trie is not None:
                self.node = self.trie.walk((token,), self.node)
        return self.text.write(token, log_prob, end, self.limit)


@dataclass(frozen=True)
class Begun:
    """Texts with their prompts read: logits (B, V) of the first token, and the state after them.

    `no_speech` (B,) is the probability of no speech, predicted after the start token.
    """

    logits: Tensor
    state: DecoderState
    no_speech: list[float]


class WhisperSearch:
    """The searches of one decoder. `end` is the token that ends a text."""

    def __init__(self, decoder: TextDecoder, rules: TextRules, *, end: int, no_speech: int) -> None:
        self.decoder, self.end, self.no_speech = decoder, end, no_speech
        config = decoder.config
        self._banned = torch.zeros(config.vocab_size)
        self._banned[list(rules.suppressed)] = -torch.inf
        self._banned_first = self._banned.clone()
        self._banned_first[list(rules.suppressed_first)] = -torch.inf
        layers, heads = config.decoder_layers, config.decoder_heads
        self.heads = rules.alignment_heads or tuple(
            (layer, head) for layer in range(layers // 2, layers) for head in range(heads)
        )
        """The heads that follow the speech: those the model names, or all of the upper half."""

    def begin(
        self,
        encoded: Tensor,
        prompts: Sequence[Sequence[int]],
        *,
        frames: Tensor | None = None,
        most_tokens: int | None = None,
        start: int = 0,
    ) -> Begun:
        """Read the prompts, of any lengths, for encoder frames (B, S, D).

        `frames` (B,) are those that each recording has, all by default; `most_tokens` bounds the
        text behind the longest prompt; `start` is where in the prompts the start token is.
        """
        room = None if most_tokens is None else max(map(len, prompts)) + most_tokens
        return self.read(self.decoder.start(encoded, frames, room), prompts, start=start)

    def read(
        self, state: DecoderState, prompts: Sequence[Sequence[int]], *, start: int = 0
    ) -> Begun:
        """As `begin`, from a state that has no tokens yet, and room for them. Uses it up."""
        longest, device = max(map(len, prompts)), state.length.device
        padded = [[*prompt, *[self.end] * (longest - len(prompt))] for prompt in prompts]
        tokens = torch.tensor(padded, device=device)
        counts = torch.tensor([len(prompt) for prompt in prompts], device=device)
        hidden, _ = self.decoder.step(tokens, state, counts)
        rows = torch.arange(len(prompts), device=device)
        needed = torch.stack([hidden[rows, counts - 1], hidden[:, start]])
        last, first = self.decoder.logits(needed).float()
        return Begun(last, state, first.softmax(-1)[:, self.no_speech].tolist())

    def languages(self, state: DecoderState, start: int, codes: Sequence[int]) -> list[int]:
        """Which of the language tokens `codes` is the likeliest, for each recording. Uses up
        `state`, which has no tokens yet and room for one."""
        begun = self.read(state, [[start]] * len(state.length))
        best = begun.logits[:, list(codes)].argmax(-1)
        return [codes[i] for i in best.tolist()]

    # -- greedy ------------------------------------------------------------------------------------

    def _best(
        self, log_probs: Tensor, places: Sequence[tuple[PhraseTrie, int] | None]
    ) -> tuple[Tensor, Tensor]:
        """The log-probability and the id of the best token of each row: (R, V) -> (R,), (R,). Rows
        in a trie get the bonuses of their hotwords, unless the text ends without them."""
        best = log_probs.argmax(-1)
        for row, place in enumerate(places):
            if place is not None and int(best[row]) != self.end:
                trie, node = place
                best[row] = (log_probs[row] + trie.token_bonuses(node, best.device)).argmax()
        return log_probs.gather(1, best[:, None])[:, 0], best

    def greedy(
        self, begun: Begun, limits: Sequence[int], trie: PhraseTrie | None = None
    ) -> list[Written]:
        """The likeliest token at each step, until the end, a limit or a loop; `trie` are the
        hotwords of all texts. Uses up `begun`."""
        texts = [Written() for _ in limits]
        state, logits = begun.state, begun.logits
        banned = self._banned_first.to(logits.device)
        row_of: list[int | None] = [i if limit > 0 else None for i, limit in enumerate(limits)]
        while any(i is not None for i in row_of):
            log_probs = (logits + banned).log_softmax(-1)
            values, best = log_probs.max(-1)
            if trie is not None:
                places = [None if i is None else (trie, trie.walk(texts[i].tokens)) for i in row_of]
                values, best = self._best(log_probs, places)
            banned = self._banned.to(logits.device)
            for row, (token, value) in enumerate(zip(best.tolist(), values.tolist(), strict=True)):
                i = row_of[row]
                if i is not None and not texts[i].write(token, value, self.end, limits[i]):
                    row_of[row] = None
            kept = [row for row, i in enumerate(row_of) if i is not None]
            if not kept:
                break
            if 2 * len(kept) <= len(row_of):  # a copy is worth it where half of the rows are done
                index = torch.tensor(kept, device=logits.device)
                state, best = state.rows(index), best[index]
                row_of = [row_of[row] for row in kept]
            hidden, _ = self.decoder.step(best[:, None], state)
            logits = self.decoder.logits(hidden[:, -1]).float()
        return texts

    def greedy_with_drafts(
        self, state: DecoderState, drafts: Sequence[Draft], barred: Tensor | None = None
    ) -> list[Written]:
        """What `greedy` writes where drafts of the texts are known. Uses up `state`, which has no
        tokens yet; it needs room for prompts, limits and `DRAFT_TOKENS`.

        A step checks several tokens of a draft. Those that greedy search writes as well stand, and
        the draft is tried again behind the first one that differs (speculative decoding, Leviathan
        et al. 2022, arXiv 2211.17192). A wrong draft costs time, and changes no text. Where a draft
        must not end yet, none of the tokens that are `barred` (V,) follows.
        """
        live, device = [draft for draft in drafts if draft.limit > 0], state.length.device
        if live and len(live) < len(drafts):
            kept = [i for i, draft in enumerate(drafts) if draft.limit > 0]
            state = state.rows(torch.tensor(kept, device=device))
        banned, started = self._banned.to(device), False
        while live:
            space = state.key.shape[3] - max(draft.length for draft in live)
            rows: list[int] = []
            columns: list[int] = []
            firsts: list[int] = []
            for row, draft in enumerate(live):
                draft.fit(space)
                if not started and not draft.continued:
                    firsts.append(len(rows))
                rows += [row] * (draft.tried + 1)
                columns += range(len(draft.given) - draft.tried - 1, len(draft.given))
            widest = max(len(draft.given) for draft in live)
            padded = [[*d.given, *[self.end] * (widest - len(d.given))] for d in live]
            counts = [0 if draft.is_done else len(draft.given) for draft in live]
            hidden, weights = self.decoder.step(
                torch.tensor(padded, device=device), state, torch.tensor(counts, device=device)
            )
            wanted = hidden[rows, columns]
            if not started:  # the probability of no speech is predicted after the start token
                wanted = torch.cat([hidden[:, 0], wanted])
            logits = self.decoder.logits(wanted).float()
            if not started:
                silent = logits[: len(live)].softmax(-1)[:, self.no_speech].tolist()
                for draft, probability in zip(live, silent, strict=True):
                    draft.no_speech = probability
                logits, started = logits[len(live) :], True
                logits[firsts] += self._banned_first.to(device)
            log_probs = (logits + banned).log_softmax(-1)
            values, best = log_probs.max(-1)
            if any(draft.trie is not None for draft in live):
                places = [
                    None if draft.trie is None else (draft.trie, node)
                    for draft in live
                    for node in draft.places
                ]
                values, best = self._best(log_probs, places)
            looked = self.looked_at(weights)[rows, columns]
            heard = torch.tensor([live[row].sound or 0 for row in rows], device=device)
            early = (best == self.end) & (values < LEAST_END) & (looked + UNHEARD_FRAMES < heard)
            if bool(early.any()):
                others = log_probs[early].clone()
                others[:, self.end] = -torch.inf
                if barred is not None:
                    others = others.masked_fill(barred.to(device), -torch.inf)
                values[early], best[early] = others.max(-1)
            found = list(zip(best.tolist(), values.tolist(), looked.tolist(), strict=True))
            refused = []
            for draft in live:
                part, found = found[: draft.tried + 1], found[draft.tried + 1 :]
                refused.append(0 if draft.is_done else draft.advance(part, self.end))
            state.length = state.length - torch.tensor(refused, device=device)
            kept = [row for row, draft in enumerate(live) if not draft.is_done]
            if 2 * len(kept) <= len(live):
                state = state.rows(torch.tensor(kept, device=device, dtype=torch.long))
                live = [live[row] for row in kept]
        return [draft.text for draft in drafts]

    # -- beams -------------------------------------------------------------------------------------

    def beam(
        self, begun: Begun, limits: Sequence[int], beam: int, trie: PhraseTrie | None = None
    ) -> list[Written]:
        """The likeliest of the texts that a beam of hypotheses finds; `trie` are the hotwords of
        all of them. Uses up `begun`.

        A hypothesis ends if its end is among the `beam` likeliest continuations; a recording is
        done when that many have ended, at its limit, or when its best hypothesis loops. Texts are
        compared by their mean log-probability.
        """
        device, V = begun.logits.device, begun.logits.shape[1]
        state, logits, banned = begun.state, begun.logits[:, None], self._banned_first.to(device)
        scores = torch.zeros(len(limits), 1, device=device)
        searches = [_Beam(limit, beam, trie) for limit in limits]
        live = [i for i, limit in enumerate(limits) if limit > 0]
        if len(live) < len(limits):
            index = torch.tensor(live, device=device, dtype=torch.long)
            state, logits, scores = state.rows(index), logits[index], scores[index]
        while live:
            log_probs = (logits + banned).log_softmax(-1)  # (B, width, V)
            banned = self._banned.to(device)
            width = log_probs.shape[1]
            total = (log_probs + scores[..., None]).flatten(1)
            if trie is not None:
                added = [trie.scores(node, device) for i in live for node in searches[i].nodes]
                total += torch.stack(added).view(total.shape)
            values, places = total.topk(LIKELIEST * beam)
            gained = log_probs.flatten(1).gather(1, places).tolist()
            parents, tokens = (places // V).tolist(), (places % V).tolist()
            chosen = [
                searches[i].step(self.end, values_row, parents_row, tokens_row, gained_row)
                for i, values_row, parents_row, tokens_row, gained_row in zip(
                    live, values.tolist(), parents, tokens, gained, strict=True
                )
            ]
            kept = [row for row, i in enumerate(live) if not searches[i].done]
            if not kept:
                break
            if len(kept) < len(live):
                index = torch.tensor(kept, device=device)
                state, values = state.rows(index), values[index]
                live, chosen = [live[row] for row in kept], [chosen[row] for row in kept]
            picks = torch.tensor(chosen, device=device)  # (B, beam): places among the candidates
            scores = values.gather(1, picks)
            parent = torch.tensor(
                [[row * width + p for p in searches[i].parents] for row, i in enumerate(live)],
                device=device,
            )
            last = [[text.tokens[-1] for text in searches[i].running] for i in live]
            state = state.texts(parent.flatten())
            hidden, _ = self.decoder.step(torch.tensor(last, device=device).view(-1, 1), state)
            logits = self.decoder.logits(hidden[:, -1]).float().view(len(live), beam, V)
        return [
            max(search.finished, key=lambda pair: pair[0])[1] if search.finished else Written()
            for search in searches
        ]

    # -- times -------------------------------------------------------------------------------------

    def looks(self, state: DecoderState, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Where the alignment heads look for each of these tokens: (heads, U, S) per recording.

        Row u is the step that reads token u and writes the next one. Uses up `state`, which has no
        tokens yet and room for them.
        """
        longest = max(map(len, rows))
        padded = [[*row, *[self.end] * (longest - len(row))] for row in rows]
        _, weights = self.decoder.step(torch.tensor(padded, device=state.length.device), state)
        picked = torch.stack([weights[layer][:, head] for layer, head in self.heads])
        return [picked[:, i, : len(row)].float() for i, row in enumerate(rows)]

    def looked_at(self, weights: Sequence[Tensor]) -> Tensor:
        """Attention (R, H, U, S) of each layer -> the frames (R, U) where alignment heads look
        most, see `peaks`."""
        return peaks(torch.stack([weights[layer][:, head] for layer, head in self.heads]))


@dataclass
class _Beam:
    """The hypotheses of one recording: those that run, and those that ended with their scores.

    `parents` says of each running hypothesis which of those before it continues, `nodes` where it
    is in the trie of the hotwords.
    """

    limit: int
    beam: int
    trie: PhraseTrie | None = None
    nodes: list[int] = field(default_factory=lambda: [ROOT])
    running: list[Written] = field(default_factory=lambda: [Written()])
    parents: list[int] = field(default_factory=list)
    finished: list[tuple[float, Written]] = field(default_factory=list)
    done: bool = False

    def step(
        self,
        end: int,
        scores: Sequence[float],
        parents: Sequence[int],
        tokens: Sequence[int],
        gained: Sequence[float],
    ) -> list[int]:
        """Take the likeliest candidates, best first; returns the `beam` of them that continue."""
        chosen: list[int] = []
        running: list[Written] = []
        for rank, (score, parent, token) in enumerate(zip(scores, parents, tokens, strict=True)):
            before = self.running[parent]
            log_probs = [*before.log_probs, gained[rank]]
            if token == end:
                if rank < self.beam and score > -float("inf"):
                    text = Written(before.tokens, log_probs, ended=True)
                    self.finished.append((score / len(log_probs), text))
            elif len(chosen) < self.beam:
                chosen.append(rank)
                running.append(Written([*before.tokens, token], log_probs))
        self.parents, self.running = [parents[rank] for rank in chosen], running
        if self.trie is not None:
            self.nodes = [
                self.trie.walk((tokens[rank],), self.nodes[parents[rank]]) for rank in chosen
            ]
        stopped = is_over(running[0].tokens, self.limit)
        if stopped:  # what was going on counts as it is, if it was likely enough to end
            for i, (rank, text) in enumerate(zip(chosen, running, strict=True)):
                if rank < self.beam:
                    refund = 0.0 if self.trie is None else self.trie.end(self.nodes[i])
                    score = (scores[rank] + refund) / len(text.log_probs)
                    self.finished.append((score, text))
        self.done = stopped or len(self.finished) >= self.beam
        return chosen


def is_over(tokens: Sequence[int], limit: int) -> bool:
    """Whether a text is stopped: it is at its limit, or loops."""
    return len(tokens) >= limit or (len(tokens) >= UNWATCHED_TOKENS and is_stuck(tokens))


def timed_words(
    decode: Callable[[Sequence[int]], str],
    ids: Sequence[int],
    log_probs: Sequence[float],
    starts: Sequence[float],
    language: str | None,
) -> tuple[Word, ...]:
    """Tokens to words, with marks joined to them.

    `starts` (s) has one more entry than there are tokens, the end. A word is as sure as the least
    likely of its tokens.
    """
    parts: list[tuple[int, int, str]] = []  # first token, the one behind the last, text
    start = 0
    for i in range(len(ids)):
        text = decode(ids[start : i + 1])
        if "\ufffd" not in text or i - start >= 3:  # a character may take several tokens
            if text:
                parts.append((start, i + 1, text))
            start = i + 1
    words: list[tuple[int, int, str]] = []
    opened, spaceless = False, language in SPACELESS
    for first, last, text in parts:
        bare = text.strip()
        begins = text.startswith(" ") or (spaceless and not opened) or not words
        if (bare and bare in CLOSING) and words and not text.startswith(" "):
            begins = False
        elif bare and bare in OPENING:
            begins = True
        if begins and not (opened and words):
            words.append((first, last, text))
        elif words:
            words[-1] = (words[-1][0], last, words[-1][2] + text)
        opened = bool(bare) and bare in OPENING
    timed = []
    for first, last, text in words:
        if text.strip():
            confidence = min(math.exp(value) for value in log_probs[first:last])
            begin, end = round(starts[first], 6), round(starts[last], 6)
            timed.append(Word(text.strip(), begin, end, confidence))
    return tuple(timed)


def token_starts(weights: Tensor, filter_width: int, first: int = 0) -> list[float]:
    """(heads, U, S) attention of each input over the frames -> when what it writes begins, in s.

    Of the attention only what falls into these frames counts. It is normalized over all U inputs,
    smoothed over the frames and averaged over the heads. The path that climbs through it from
    corner to corner, from input `first` to the one before the last, which is the end token, tells
    which frames belong to whom.
    """
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-10)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = (weights - mean) / deviation.clamp(min=1e-10)
    side = filter_width // 2
    if weights.shape[-1] > side > 0:
        padded = F.pad(weights, (side, side), mode="reflect")
        weights = padded.unfold(-1, filter_width, 1).sort(-1).values[..., side]
    costs = -weights.mean(0)[first:-1].double().cpu().numpy()
    return [frame * FRAME_SECONDS for frame in climb(costs)]


def climb(costs: npt.NDArray[np.float64]) -> list[int]:
    """Dynamic time warping of rows over columns: (U, S) -> the first column of each row.

    The path goes from the first corner to the last one, each step one row on, one column on, or
    both, so that what it passes costs least.
    """
    U, S = costs.shape
    best = np.full((U + 1, S + 1), np.inf)
    best[0, 0] = 0.0
    steps = np.zeros((U + 1, S + 1), np.int8)
    for total in range(2, U + S + 1):  # one anti-diagonal after the other
        rows = np.arange(max(1, total - S), min(U, total - 1) + 1)
        columns = total - rows
        both, row = best[rows - 1, columns - 1], best[rows - 1, columns]
        column = best[rows, columns - 1]
        step = np.full(len(rows), 2)  # where two cost the same, the next column
        step[(row < both) & (row < column)] = 1
        step[(both < row) & (both < column)] = 0
        cheapest = np.choose(step, [both, row, column])
        best[rows, columns] = costs[rows - 1, columns - 1] + cheapest
        steps[rows, columns] = step
    first = [0] * U
    i, j = U, S
    while i > 0 and j > 0:
        first[i - 1] = j - 1
        taken = int(steps[i, j])
        i, j = i - (taken != 2), j - (taken != 1)
    return first


def peaks(weights: Tensor) -> Tensor:
    """Attention (heads, ..., S) -> the frames (...) that the heads look at most.

    The first frame does not count: much of the attention rests there where the sound of a token is
    not clear, so it says nothing about where the token is.
    """
    mean = weights.mean(0)
    return mean[..., 1:].argmax(-1) + 1 if mean.shape[-1] > 1 else mean.argmax(-1)


def again_from(weights: Tensor, first: int = 0) -> int | None:
    """The token with which a text goes back to what it has written already, from token `first` on:
    (heads, U, S) attention of its U tokens over the frames of the recording. What follows the
    speech never goes back for long, so None is usual."""
    if weights.shape[1] - first < BACK_TOKENS or not weights.shape[2]:
        return None
    looked = peaks(weights)
    behind = (looked < looked.cummax(0).values - BACK_FRAMES)[first:]
    places = behind.unfold(0, BACK_TOKENS, 1).all(-1).nonzero()
    return first + int(places[0]) if len(places) else None
