"""Decoders of Whisper and Moonshine for live streams: words while people speak, and whole segments.

Shape legend: B streams, S new encoder frames, D encoder width, N layers, H heads, K head width,
U tokens, V vocabulary.

A segment is what a stream said since its state began. Its encoder frames are kept as keys and
values of the cross-attention. At each chunk the tokens so far are read again with all frames known
by now, and continued until the alignment heads look at the newest frames: there the sound of the
next token is not all there yet (AlignAtt, Papi et al. 2023, arXiv 2305.11408). A likely token is
written, an unlikely one once two chunks agree on it (local agreement, Liu et al. 2020, arXiv
2005.11185). What was written stays. At the end of a segment, `finish` writes on to the end of the
text, and `again` writes the whole text a second time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pianissimo.decoding.hotwords import ROOT, PhraseTrie
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.decoding.whisper import (
    DRAFT_TOKENS,
    Draft,
    WhisperSearch,
    Written,
    again_from,
    peaks,
    token_starts,
)
from pianissimo.errors import OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.models.whisper import (
    FRAME_SECONDS,
    SILENCE_FRAMES,
    DecoderState,
    TextRules,
    silence_frames,
)
from pianissimo.text.loops import find_loop, is_monotonous, is_stuck, letters, trim_loop
from pianissimo.text.moonshine_tokenizer import MoonshineTokenizer
from pianissimo.text.whisper_tokenizer import WhisperTokenizer

WATCHED_FRAMES = 10
"""A token that looks at the last 0.2 s is not written yet."""
LEAST_LOG_PROBABILITY = math.log(0.4)
"""A token that is less likely waits until the next chunk agrees on it."""
ROOM_STEP = 128
"""Frames by which the room of a segment grows."""
FIRST_TOKEN_SECONDS = 0.3
"""The longest first token of a text, where nothing else says when it begins."""
FINAL_BEAM = 5
"""Hypotheses of the beam that searches a text again which greedy search is not sure of."""
DOUBTFUL_LOG_PROBABILITY = -0.5
NO_SPEECH_PROBABILITY, UNSURE_LOG_PROBABILITY = 0.6, -1.0
"""Where no speech is likelier than the first, and tokens are less likely than the second in the
mean, nothing was said."""
SHORT_SILENCE_FRAMES = 250
"""5 s behind a segment that is encoded whole, where its text is not doubtful."""
AUTO = 0
"""The prompt of streams whose language is found by the model."""

Commit = Literal["alignment", "agreement"]
"""Which tokens are written while people speak: those that look at earlier sound, as described
above; or only those that two successive chunks agree on."""


@dataclass(frozen=True, eq=False)
class Segment:
    """What one stream said since its state began.

    cross (2, N, H, room, K): keys and values, of which the first `frames` are of the audio. Those
    of `silence` (2, N, H, P, K) stand at all later positions, see `behind`. tokens, looked and
    log_probs are those written so far, with the frame of each. guess are the tokens that the last
    chunk would have written after them. language is a token, None while it is not known. trie are
    the hotwords of the stream.
    """

    cross: Tensor
    silence: Tensor
    frames: int = 0
    tokens: tuple[int, ...] = ()
    looked: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    guess: tuple[int, ...] = ()
    language: int | None = None
    trie: PhraseTrie | None = None

    @property
    def seen(self) -> int:
        """Frames that the decoder sees: those of the audio, and the silence behind them."""
        return self.frames + silence_frames(self.frames, self.silence.shape[3])

    def extended(self, cross: Tensor) -> "Segment":
        """With further keys and values (2, N, H, S, K)."""
        end, kept = self.frames + cross.shape[3], self.cross
        longer = replace(self, frames=end)
        if longer.seen > kept.shape[3]:
            room = -(-longer.seen // ROOM_STEP) * ROOM_STEP
            kept = cross_room(kept, room)
            kept[:, :, :, : self.frames] = self.cross[:, :, :, : self.frames]
            silence = self.silence[:, :, :, end:room]
            kept[:, :, :, end : end + silence.shape[3]] = silence
        kept[:, :, :, self.frames : end] = cross
        return replace(longer, cross=kept)

    def written(self, found: Hypothesis, first: int) -> "Segment":
        """With further tokens, whose frames count from `first`."""
        return replace(
            self,
            tokens=(*self.tokens, *found.tokens),
            looked=(*self.looked, *(frame - first for frame in found.frames)),
            log_probs=(*self.log_probs, *found.log_probs),
        )


@dataclass
class WhisperState:
    """The segments of B streams, and their frames since the beginning of the stream."""

    segments: list[Segment]
    frames: Tensor
    ahead: Tensor

    def rows(self, index: Tensor) -> "WhisperState":
        chosen = index.tolist()
        return WhisperState(
            [self.segments[i] for i in chosen], self.frames[index], self.ahead[index]
        )

    def write(self, index: Tensor, rows: "WhisperState") -> None:
        for i, segment in zip(index.tolist(), rows.segments, strict=True):
            self.segments[i] = segment
        self.frames[index], self.ahead[index] = rows.frames, rows.ahead

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for saving one stream: of `rows` with a single index."""
        segment = self.segments[0]
        return {
            "cross": segment.cross[:, :, :, : segment.frames],
            "tokens": torch.tensor([segment.tokens, segment.looked], dtype=torch.long),
            "log_probs": torch.tensor(segment.log_probs, dtype=torch.float64),
            "guess": torch.tensor(segment.guess, dtype=torch.long),
            "language": torch.tensor([-1 if segment.language is None else segment.language]),
            "frames": self.frames,
            "ahead": self.ahead,
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Set one stream to what `tensors` gave; raises ValueError for anything else."""
        segment = self.segments[0]
        missing = self.tensors().keys() - saved.keys()
        if missing:
            raise ValueError(f"{min(missing)} is missing")
        cross, tokens = saved["cross"], saved["tokens"].long()
        log_probs, language = saved["log_probs"], int(saved["language"])
        shape, expected = list(cross.shape), list(segment.cross.shape)
        if len(shape) != len(expected) or [*shape[:3], *shape[4:]] != [
            *expected[:3],
            *expected[4:],
        ]:
            raise ValueError("cross has another shape")
        if tokens.shape != (2, len(log_probs)) or not bool(cross.isfinite().all()):
            raise ValueError("the text of the segment is damaged")
        ids, looked = tokens.tolist()
        for name, tensor in (("frames", self.frames), ("ahead", self.ahead)):
            tensor.copy_(saved[name])
        empty = Segment(
            segment.cross,
            segment.silence,
            language=None if language < 0 else language,
            trie=segment.trie,
        )
        self.segments[0] = replace(
            empty.extended(cross.to(segment.cross)),
            guess=tuple(saved["guess"].long().tolist()),
            tokens=tuple(ids),
            looked=tuple(looked),
            log_probs=tuple(log_probs.tolist()),
        )

    def flush(self) -> list[Hypothesis]:
        """The remaining tokens of each stream: none, `finish` writes them."""
        return [Hypothesis() for _ in self.segments]


class WhisperLiveDecoder:
    """See `Decoder`. Frames of silence follow those of a tail, see `WhisperSlots.tail`.

    The prompts are the languages of a multilingual model, in the order of their codes, behind the
    one of streams whose language is to be found. `language` is that of streams without another.
    `silence` (P, D) are the encoder's frames of nothing but silence, one for each position: while
    people speak they stand behind what was heard, since a decoder that sees the sound break off
    writes anything. A Moonshine needs none: P is 0. `lag` is how many frames an encoder is behind
    its input: as many frames of the first chunk of a segment lie before it. `final_beam` is the
    width of the beam that searches doubtful texts again, 1 for none.
    """

    def __init__(
        self,
        search: WhisperSearch,
        tokenizer: WhisperTokenizer | MoonshineTokenizer,
        rules: TextRules,
        language: str | None,
        task: str,
        silence: Tensor,
        commit: Commit = "alignment",
        *,
        lag: int = 0,
        final_beam: int = FINAL_BEAM,
    ) -> None:
        self.search, self.tokenizer, self.rules, self.task = search, tokenizer, rules, task
        self.commit, self.lag, self.final_beam = commit, lag, final_beam
        self._silence: Tensor = search.decoder.cross(silence[None])[:, :, 0]  # (2, N, H, P, K)
        self.config = search.decoder.config
        self.languages = sorted(tokenizer.languages) if rules.multilingual else []
        self.prompts = len(self.languages) + 1
        self._default = self.prompt(language)
        vocabulary = Vocabulary.of_tokenizer(tokenizer.for_streams())
        inner = zip(vocabulary.pieces, vocabulary.joins, strict=True)
        known = torch.tensor([joins or not piece for piece, joins in inner])
        # In place of an early end stands no token that continues a word, and no special one.
        self._barred = torch.ones(self.config.vocab_size, dtype=torch.bool)
        self._barred[: len(known)] = known[: self.config.vocab_size]

    def prompt(self, language: str | None) -> int:
        if not self.rules.multilingual:
            if language not in (None, "en"):
                raise OptionError(f"this model knows English only, not {language!r}")
            return AUTO
        if language is None:
            return getattr(self, "_default", AUTO)
        if language not in self.languages:
            known = ", ".join(self.languages)
            raise OptionError(f"this Whisper does not know the language {language!r}: {known}")
        return self.languages.index(language) + 1

    def start(
        self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None
    ) -> WhisperState:
        config = self.config
        weight = self.search.decoder.embedding.weight
        width = config.dim // config.decoder_heads
        shape = (2, config.decoder_layers, config.decoder_heads, 0, width)
        zeros = torch.zeros(batch, dtype=torch.long, device=weight.device)
        segments = [
            Segment(weight.new_empty(shape), self._silence, trie=trie)
            for trie in tries or [None] * batch
        ]
        return WhisperState(segments, zeros, zeros.clone())

    # -- while people speak ------------------------------------------------------------------------

    def decode(
        self,
        encoded: Tensor,
        lengths: Tensor | None,
        state: WhisperState,
        prompts: Tensor | None = None,
    ) -> list[Hypothesis]:
        """The tokens that further frames (B, S, D) make certain. Mutates `state`."""
        counts = [encoded.shape[1]] * len(encoded) if lengths is None else lengths.tolist()
        received = [self._received(segment) for segment in state.segments]
        first = state.frames - torch.tensor(received, device=state.frames.device)
        state.segments = self._extended(state.segments, encoded, counts, prompts, self.lag)
        segments, results = state.segments, [Hypothesis() for _ in counts]
        limits = [self._limit(segment.frames, len(segment.tokens)) for segment in segments]
        rows = [i for i, segment in enumerate(segments) if segment.frames and limits[i] > 0]
        if rows:
            watched = self.commit == "alignment"
            drafts = [
                self._draft(
                    segments[i],
                    limits[i],
                    watch=segments[i].frames - WATCHED_FRAMES if watched else None,
                )
                for i in rows
            ]
            joined = self._joined([segments[i] for i in rows], max(limits))
            texts = self.search.greedy_with_drafts(joined, drafts, self._barred)
            for i, text in zip(rows, texts, strict=True):
                results[i] = self._certain(segments[i], text, int(first[i]))
                guess = tuple(text.tokens[len(results[i].tokens) :])
                longer = segments[i].written(results[i], int(first[i]))
                segments[i] = replace(longer, guess=guess)
        state.frames += torch.tensor(counts, device=state.frames.device)
        return results

    def _received(self, segment: Segment) -> int:
        """The frames of a segment, and those that came before its beginning."""
        return segment.frames + self.lag if segment.frames else 0

    def _certain(self, segment: Segment, text: Written, first: int) -> Hypothesis:
        """The tokens of a text that stand; a loop adds none. Marks wait for the word behind them:
        a full stop ends the text of a decoder that hears no more, and it would write no further."""
        count, agreed = 0, 0
        while text.tokens[agreed : agreed + 1] == list(segment.guess[agreed : agreed + 1]) != []:
            agreed += 1
        for value in text.log_probs[: len(text.tokens)]:
            likely = self.commit == "alignment" and value >= LEAST_LOG_PROBABILITY
            if count >= agreed and not likely:
                break
            count += 1
        known = [letters(self.tokenizer.decode(text.tokens[:i])) for i in range(count + 1)]
        while count and known[count] == known[count - 1]:
            count -= 1
        tokens = [*segment.tokens, *text.tokens[:count]]
        spoken = letters(self.tokenizer.decode(tokens))
        if not spoken or is_stuck(tokens) or find_loop(tokens) is not None:
            return Hypothesis()
        return _hypothesis(text.tokens[:count], text.looked, text.log_probs, first, segment.looked)

    # -- at the end of a segment -------------------------------------------------------------------

    def finish(
        self,
        encoded: Tensor,
        lengths: Tensor,
        state: WhisperState,
        prompts: Tensor | None = None,
    ) -> list[Hypothesis]:
        """The rest of each text, given the frames of its tail (B, S, D), of which `lengths` are
        audio and silence follows. Nothing where the model itself finds no speech."""
        counts = lengths.tolist()
        first = [
            int(frames) - self._received(segment)
            for frames, segment in zip(state.frames, state.segments, strict=True)
        ]
        audio = [s.frames + count for s, count in zip(state.segments, counts, strict=True)]
        behind = [
            count + silence_frames(frames, self._silence.shape[3]) if frames else 0
            for count, frames in zip(counts, audio, strict=True)
        ]
        # The frames of a tail come again with the next chunk, without the silence behind them.
        copies = [replace(segment, cross=segment.cross.clone()) for segment in state.segments]
        segments = [
            replace(segment, frames=frames)
            for segment, frames in zip(
                self._extended(copies, encoded, behind, prompts), audio, strict=True
            )
        ]
        results = [Hypothesis() for _ in counts]
        limits = [self._limit(segment.frames, len(segment.tokens)) for segment in segments]
        rows = [i for i, limit in enumerate(limits) if limit > 0 and audio[i]]
        if rows:
            joined = self._joined([segments[i] for i in rows], max(limits))
            drafts = [self._draft(segments[i], limits[i]) for i in rows]
            self.search.greedy_with_drafts(joined, drafts, self._barred)
            for i, draft in zip(rows, drafts, strict=True):
                text = draft.text
                if not segments[i].tokens and self._is_doubtful(text):
                    text = self._searched_by_beam(segments[i], text)
                results[i] = self._rest(
                    segments[i], text, draft.no_speech, first[i], self._cut(segments[i], text)
                )
        # What was written stays.
        state.segments = [
            segment.written(result, start)
            for segment, result, start in zip(state.segments, results, first, strict=True)
        ]
        return results

    def again(
        self,
        segment: Segment,
        encode: Callable[[int], tuple[Tensor, int]],
        first: int,
        prompt: int | None = None,
    ) -> Hypothesis:
        """The whole text of a segment, decoded a second time.

        `encode` gives the encoder frames (1, S, D) of the segment with at most that many frames of
        silence behind it, and how many of them are audio. What was written while people spoke is
        the draft. A text of which greedy search is not sure, or whose attention goes back to an
        earlier place, is searched again by a beam, with more silence behind the segment. `prompt`
        is the language, as for `decode`; frames count from `first`.
        """
        whole = self._whole(segment, *encode(SHORT_SILENCE_FRAMES), prompt)
        limit = self._limit(whole.frames, 0)
        if not whole.frames or limit <= 0:
            return Hypothesis()
        draft = self._draft(whole, limit)
        [text] = self.search.greedy_with_drafts(self._joined([whole], limit), [draft])
        looks, marks = self._looks(whole, text), len(self._prompts([whole])[0])
        if self._is_doubtful(text) or again_from(looks[:, marks - 1 : -1]) is not None:
            whole = self._whole(segment, *encode(SILENCE_FRAMES), prompt)
            return self._rest(whole, self._searched_by_beam(whole, text), draft.no_speech, first)
        return self._rest(whole, text, draft.no_speech, first, looks)

    def _whole(self, segment: Segment, encoded: Tensor, frames: int, prompt: int | None) -> Segment:
        """A segment of these encoder frames (1, S, D) without a text, but with a draft of it."""
        whole = Segment(
            self.search.decoder.cross(encoded)[:, :, 0],
            segment.silence,
            frames,
            guess=(*segment.tokens, *segment.guess),
            trie=segment.trie,
        )
        if not self.rules.multilingual or not frames:
            return whole
        number = self._default if prompt is None else prompt
        return replace(whole, language=self._language(whole, number))

    def _searched_by_beam(self, segment: Segment, text: Written) -> Written:
        """What a beam finds in place of a doubtful text, which stays if only it has an end."""
        if self.final_beam == 1:
            return text
        limit = self._limit(segment.frames, 0)
        begun = self.search.read(self._joined([segment], limit), self._prompts([segment]))
        [found] = self.search.beam(begun, [limit], self.final_beam, segment.trie)
        return found if found.ended or not text.ended else text

    def _is_doubtful(self, text: Written) -> bool:
        return (
            not text.ended
            or text.mean_log_probability < DOUBTFUL_LOG_PROBABILITY
            or is_monotonous(self.tokenizer.decode(text.tokens))
        )

    def _rest(
        self,
        segment: Segment,
        text: Written,
        no_speech: float,
        first: int,
        looks: Tensor | None = None,
    ) -> Hypothesis:
        """The tokens of a text that stand behind those of a segment, with the frames in which they
        begin; `looks` is that of the text, if it is known."""
        before = len(segment.tokens)
        kept = max(0, len(trim_loop([*segment.tokens, *text.tokens])) - before)
        if kept < len(text.tokens):
            del text.tokens[kept:], text.log_probs[kept:]
            looks = None
        whole = Written([*segment.tokens, *text.tokens], [*segment.log_probs, *text.log_probs])
        unsure = whole.mean_log_probability < UNSURE_LOG_PROBABILITY
        if not text.tokens or (no_speech > NO_SPEECH_PROBABILITY and unsure and not before):
            return Hypothesis()
        if not letters(self.tokenizer.decode(whole.tokens)):  # a mark that music was heard as
            return Hypothesis()
        if looks is None:
            looks = self._looks(segment, text)
        looked = self._beginnings(segment, looks)
        return _hypothesis(text.tokens, looked, text.log_probs, first, segment.looked)

    def _cut(self, segment: Segment, text: Written) -> Tensor | None:
        """Cut a text off where it goes back to what it has written, behind the tokens of a segment;
        returns its `_looks`, None where they are not those of the text any more."""
        if not text.tokens:
            return None
        looks, marks = self._looks(segment, text), len(self._prompts([segment])[0])
        written = len(segment.tokens)
        end = again_from(looks[:, marks - written - 1 : -1], written)
        if end is None:
            return looks
        del text.tokens[end - written :], text.log_probs[end - written :]
        return None

    def _looks(self, segment: Segment, text: Written) -> Tensor:
        """Where the alignment heads look within the audio for each further token of a segment, and
        for the end: (heads, U + 2, frames), as `token_starts` takes it."""
        [prompt] = self._prompts([segment])
        rows = [*prompt, *text.tokens, self.search.end]
        state = self._joined([segment], len(text.tokens) + 1)
        return self.search.looks(state, [rows])[0][..., : segment.frames]

    def _beginnings(self, segment: Segment, looks: Tensor) -> list[int]:
        """The frame in which each token behind those of a segment begins, by what `_looks` gave."""
        [prompt] = self._prompts([segment])
        first = len(prompt) - 1
        starts = token_starts(looks, self.rules.median_width, first)
        # The path begins in the first frame, whether speech does or not. The first token is where
        # its attention is, or shortly before the second one.
        peak = int(peaks(looks[:, first])) * FRAME_SECONDS
        starts[0] = max(starts[0], starts[1] - FIRST_TOKEN_SECONDS, min(peak, starts[1]))
        return [min(round(start / FRAME_SECONDS), segment.frames - 1) for start in starts[:-1]]

    # -- both --------------------------------------------------------------------------------------

    def _extended(
        self,
        segments: Sequence[Segment],
        encoded: Tensor,
        counts: Sequence[int],
        prompts: Tensor | None,
        lag: int = 0,
    ) -> list[Segment]:
        """Segments with further frames, of which the language is known where there is any. The
        first `lag` frames lie before a segment that begins."""
        longer = list(segments)
        if any(counts):
            cross = self.search.decoder.cross(encoded)  # (2, N, B, H, S, K)
            for i, count in enumerate(counts):
                before = 0 if segments[i].frames else lag
                longer[i] = longer[i].extended(cross[:, :, i, :, before:count])
        if self.rules.multilingual:
            numbers = [self._default] * len(longer) if prompts is None else prompts.tolist()
            for i, (segment, number) in enumerate(zip(longer, numbers, strict=True)):
                if segment.language is None and segment.frames:
                    longer[i] = replace(segment, language=self._language(segment, number))
        return longer

    def _language(self, segment: Segment, prompt: int) -> int:
        codes = self.tokenizer.languages
        if prompt != AUTO:
            return codes[self.languages[prompt - 1]]
        begun = self.search.read(self._joined([segment], 0, 1), [[self.tokenizer.start]])
        known = list(codes.values())
        return known[int(begun.logits[0, known].argmax())]

    def _prompts(self, segments: Sequence[Segment]) -> list[list[int]]:
        """What the decoder reads of each segment: the marks, and what was written so far."""
        code_of = {id: code for code, id in self.tokenizer.languages.items()}
        return [
            [
                *self.tokenizer.prompt(
                    None if segment.language is None else code_of[segment.language], self.task
                ),
                *segment.tokens,
            ]
            for segment in segments
        ]

    def _joined(
        self, segments: Sequence[Segment], tokens: int, prompt: int | None = None
    ) -> DecoderState:
        """The state of segments before their prompts, with room for these and further tokens."""
        if prompt is None:
            prompt = max(map(len, self._prompts(segments)))
        frames = [min(segment.seen, segment.cross.shape[3]) for segment in segments]
        crosses = [
            segment.cross[:, :, :, :seen] for segment, seen in zip(segments, frames, strict=True)
        ]
        return self.search.decoder.start_from(crosses, prompt + tokens + DRAFT_TOKENS)

    def _draft(self, segment: Segment, limit: int, watch: int | None = None) -> Draft:
        """The text behind the tokens of a segment, which is expected to be as guessed before."""
        [prompt] = self._prompts([segment])
        trie = segment.trie
        return Draft(
            prompt,
            limit,
            segment.guess,
            watch,
            reached=max(segment.looked, default=0),
            continued=bool(segment.tokens),
            sound=segment.frames if segment.tokens else None,
            trie=trie,
            node=ROOT if trie is None else trie.walk(segment.tokens),
        )

    def _limit(self, frames: int, written: int) -> int:
        """How many further tokens a text may have, by the seconds of its audio."""
        room = self.config.text_positions - len(self.tokenizer.prompt(None, None)) - 4
        return min(room, max_new_tokens(frames * FRAME_SECONDS)) - written


def cross_room(like: Tensor, frames: int) -> Tensor:
    """(2, N, H, frames, K) for keys and values, laid out in memory as by `WhisperDecoder.cross`."""
    *outer, _, K = like.shape
    return like.new_empty(*outer, K, frames).transpose(-1, -2)


def _hypothesis(
    tokens: Sequence[int],
    looked: Sequence[int],
    log_probs: Sequence[float],
    first: int,
    before: Sequence[int],
) -> Hypothesis:
    """Tokens whose frames count from `first` and never decrease."""
    found = Hypothesis()
    frame = before[-1] if before else 0
    for token, at, value in zip(tokens, looked, log_probs, strict=False):
        frame = max(frame, at)
        found.append(token, first + frame, value, math.exp(value))
    return found
