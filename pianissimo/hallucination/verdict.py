"""Whether text may stand, as a whole and word by word, by the evidence in the audio."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

from pianissimo.audio.vad import SURE_PROBABILITY
from pianissimo.decoding.token import Hypothesis
from pianissimo.hallucination.evidence import Evidence, Reason
from pianissimo.text import WORD_START
from pianissimo.text.loops import han_share, is_monotonous, letters
from pianissimo.text.tokenizer import Tokenizer

SHORT_SECONDS = 0.5
"""Shorter clips are recognized, and marked."""

_SYLLABLE_SECONDS, _WEAK_SECONDS = 0.2, 0.3

# Chosen with one half of the real noises that docs/quiet-speech.md reports on.
_SUPPORTED_SHARE, _SUPPORTED_SHARE_IF_UNSURE = 0.6, 0.85

# More speech than this is never dropped as a whole for what else was written beside it.
_MUCH_SPEECH_SECONDS = 3.0

_UNSURE_LOG_PROBABILITY, _UNSURE_IF_UNLIKELY = -1.0, -0.5

_MAX_TOKENS, _TOKENS_PER_SECOND, _TOKENS_ALWAYS = 500, 10, 16

_CHARACTERS_PER_SECOND = {"han": 12.0, "latin": 30.0}

_SPARSE_PER_SECOND = 1.0

# What recognizers trained on subtitles say to silence, in scoring form. Only a backstop: people do
# say these words, so they count for nothing as soon as there is speech.
PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "en": (
            "thank you",
            "thank you so much",
            "thank you for watching",
            "thanks for watching",
            "please subscribe",
            "bye",
            "you",
        ),
        "zh": ("谢谢", "谢谢观看", "谢谢大家", "字幕由amaraorg社区提供", "请不吝点赞订阅"),
        "ja": ("ご視聴ありがとうございました", "ありがとうございました"),
        "ko": ("시청해주셔서감사합니다", "감사합니다"),
        "": ("嗯", "哎", "嗨", "uh", "um", "hmm", "mm", "oh"),
    }
)
"""Per language; those under "" are interjections, which noise becomes in every language."""

# Of whispers the detector misses 1 word in 20; about half of those are as sure as this.
SURE_WORD_LOG_PROBABILITY = math.log(0.9)
"""A word with this mean per token stands even where the detector found no speech."""


@dataclass(frozen=True)
class Verdict:
    """Whether text may stand, and why not or with what doubt."""

    keep: bool
    reasons: tuple[Reason, ...] = ()


def judge(
    text: str,
    evidence: Evidence,
    *,
    language: str | None = None,
    mean_log_probability: float | None = None,
    tokens: Sequence[Hashable] = (),
    supported_share: float = 1.0,
) -> Verdict:
    """Weigh a recognizer's text against the audio.

    `mean_log_probability` is the mean over the tokens, natural logarithm; `supported_share` is the
    share of them with speech near them. Text without a letter or digit is always kept.
    """
    refusal = evidence.refusal
    if refusal is not None:
        return Verdict(False, (refusal,))
    model, probability = evidence.probability is not None, evidence.probability or 0.0
    unlikely = model and probability < SURE_PROBABILITY
    fleeting = model and evidence.sure_seconds < _SYLLABLE_SECONDS  # speech for under a syllable
    certain_seconds = evidence.sure_seconds if model else evidence.speech_seconds
    # Little speaks for speech; text may still be right.
    short = evidence.seconds < SHORT_SECONDS or evidence.speech_seconds < _WEAK_SECONDS
    weak = short or unlikely
    spoken = letters(text)
    if not spoken:
        return Verdict(True, ("low_evidence",) if weak else ())
    reasons: list[Reason] = []
    if is_monotonous(text, tokens):
        reasons.append("repetition")
    limit = _UNSURE_IF_UNLIKELY if unlikely else _UNSURE_LOG_PROBABILITY
    unsure = mean_log_probability is not None and mean_log_probability < limit
    quite_unsure = mean_log_probability is not None and mean_log_probability < _UNSURE_IF_UNLIKELY
    least = _SUPPORTED_SHARE_IF_UNSURE if quite_unsure else _SUPPORTED_SHARE
    stray = supported_share < least and certain_seconds < _MUCH_SPEECH_SECONDS
    doubted = weak or fleeting or supported_share < 1
    if doubted or is_too_fast(text, evidence.seconds):
        reasons.append("low_evidence")
    # Music and typing have energy for seconds and become a letter or two.
    sparse = fleeting and len(spoken) < _SPARSE_PER_SECOND * evidence.speech_seconds
    doubtful = unsure or is_stock_phrase(text, language)
    dropped = evidence.absent or sparse or stray or (weak and doubtful)
    # A short clip is weak for its length alone: that is no reason to drop what was said in it.
    if evidence.seconds < SHORT_SECONDS and not evidence.absent:
        dropped = False
    return Verdict(not dropped, tuple(reasons))


def weigh(
    result: Hypothesis,
    tokenizer: Tokenizer,
    frame_seconds: float,
    evidence: Evidence,
    language: str | None,
    extend_frames: int = 1,
) -> Verdict:
    """The verdict on a result. Its frames and the evidence count from the same moment.

    See `supported_words` for `extend_frames`.
    """
    count, supported = len(result.tokens), 0
    for word, ends, sure in _words(result, tokenizer, extend_frames):
        for i, end in zip(word, ends, strict=True):
            start = result.frames[i] * frame_seconds
            supported += sure or evidence.supports(start, end * frame_seconds)
    return judge(
        tokenizer.decode(result.tokens),
        evidence,
        language=language,
        mean_log_probability=sum(result.log_probs) / count if count else None,
        tokens=result.tokens,
        supported_share=supported / count if count else 1.0,
    )


def supported_words(
    result: Hypothesis,
    tokenizer: Tokenizer,
    frame_seconds: float,
    evidence: Evidence,
    extend_frames: int = 1,
) -> Hypothesis:
    """The words with speech near them in the audio, and those that are sure without.

    A token lasts until the next one, at most `extend_frames`: 1 for models that write a token when
    it was said, more for those whose tokens have the time of their beginning. A text without word
    boundaries is one word.
    """
    kept: list[int] = []
    for word, ends, sure in _words(result, tokenizer, extend_frames):
        start, end = result.frames[word[0]], ends[-1]
        if sure or evidence.supports(start * frame_seconds, end * frame_seconds):
            kept += word
    return result.take(kept)


def _words(
    result: Hypothesis, tokenizer: Tokenizer, extend_frames: int
) -> list[tuple[range, list[int], bool]]:
    """The places of each word's tokens, the frame behind each of these, and whether the model is
    sure of the word. A token lasts until the next one, at most `extend_frames`."""
    tokens, frames = result.tokens, result.frames
    last = [frame + extend_frames for frame in frames]
    ends = [
        max(frame + 1, min(end, after))
        for frame, end, after in zip(frames, last, [*frames[1:], *last[-1:]], strict=True)
    ]
    starts = [i for i, id in enumerate(tokens) if i and tokenizer.pieces[id].startswith(WORD_START)]
    edges = [0, *starts, len(tokens)] if tokens else []
    words = [range(*pair) for pair in pairwise(edges)]
    means = [sum(result.log_probs[i] for i in word) / len(word) for word in words]
    return [
        (word, ends[word.start : word.stop], mean >= SURE_WORD_LOG_PROBABILITY)
        for word, mean in zip(words, means, strict=True)
    ]


def is_too_fast(text: str, seconds: float) -> bool:
    """Whether the text has more characters than can be said in that time."""
    script = "han" if han_share(text) > 0.3 else "latin"
    # A window's worth of slack: recognizers may put the end of a word behind the audio.
    return len(letters(text)) > _CHARACTERS_PER_SECOND[script] * (seconds + 0.5)


def is_stock_phrase(text: str, language: str | None) -> bool:
    """Whether the text is one that recognizers are known to say to noise, and nothing else."""
    spoken = letters(text)
    primary = (language or "").partition("-")[0].lower()
    languages = PHRASES if not primary else (primary, "")
    known = {letters(phrase) for name in languages for phrase in PHRASES.get(name, ())}
    return spoken in known


def max_new_tokens(seconds: float) -> int:
    """How many tokens a language-model decoder may write for audio of that length."""
    return min(_MAX_TOKENS, _TOKENS_ALWAYS + math.ceil(_TOKENS_PER_SECOND * seconds))
