"""Live streams over a test set: word errors of the finals, and how late words are on this machine.

The audio is not played in real time: the clock is simulated. A block of audio can be pushed once it
has been spoken and the block before it is done; pushing it takes the time that it takes here.
Delays are those of one paced stream on this machine, with the backlog of a machine that is too
slow.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np

from pianissimo.audio.io import SAMPLE_RATE, Samples, load_audio
from pianissimo.errors import PianissimoError
from pianissimo.evaluate.run import ALL, Pass, Reference, Score, check_latencies, scored
from pianissimo.evaluate.wer import word_errors
from pianissimo.protocols import Recognizer, Stream
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.transcript import StreamEvent

BLOCK = SAMPLE_RATE // 10
"""Samples of a push, as many clients send them."""


@dataclass
class Delays:
    """Seconds from speech to text, one value per recording, word or utterance.

    `first_words`: from the beginning of the first word to the first text of a recording. `words`:
    from the end of a word to the first event that has it in its place. `finals`: from the end of
    the last word of an utterance to its final; where the recording goes on, this holds the pause
    that ends the utterance. `shown` words were in a last partial, and the final left out or
    changed `changed` of them, case and marks aside.
    """

    first_words: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)
    finals: list[float] = field(default_factory=list)
    shown: int = 0
    changed: int = 0


@dataclass(frozen=True)
class LivePass(Pass):
    """One latency mode live over all recordings."""

    delays: Delays = field(default_factory=Delays)


def evaluate_live(
    recognizer: Recognizer,
    references: Sequence[Reference],
    *,
    latencies_ms: Iterable[int | None] = (None,),
    second_pass: bool | None = None,
    advance: Callable[[], None] | None = None,
) -> list[LivePass]:
    """Push all recordings through live streams, one after the other, once per latency mode.

    Texts are compared as `pianissimo.evaluate.run.evaluate` compares them. `advance` is called
    after every recording. Raises OptionError for an unknown latency mode, and for a second pass
    that the model does not have, before anything is pushed.
    """
    latencies = check_latencies(recognizer, latencies_ms)
    recognizer.stream(latency_ms=latencies[0], second_pass=second_pass).finish()
    passes = []
    for latency in latencies:
        scores = {r.subset: Score(r.subset, latency) for r in references}
        total, faults, delays = Score(ALL, latency), [], Delays()
        began = time.monotonic()
        for reference in references:
            text, seconds = None, 0.0
            try:
                samples = load_audio(reference.audio)
                seconds = len(samples) / SAMPLE_RATE
                with recognizer.stream(latency_ms=latency, second_pass=second_pass) as stream:
                    text = push_paced(stream, samples, delays)
            except PianissimoError as error:
                name, message = str(reference.path), str(error)
                faults.append(message if message.startswith(name) else f"{name}: {message}")
            for score in (scores[reference.subset], total):
                score.recordings += 1
                if text is None:
                    score.failed += 1
                    continue
                score.audio_seconds += seconds
                score.errors += word_errors(reference.text, scored(text))
            if advance is not None:
                advance()
        seconds = time.monotonic() - began
        passes.append(
            LivePass(latency, tuple(scores.values()), total, seconds, tuple(faults), delays)
        )
    return passes


def push_paced(
    stream: Stream,
    samples: Samples,
    delays: Delays,
    timer: Callable[[], float] = time.perf_counter,
) -> str:
    """The finals of a recording (n,) at 16 kHz, joined; adds its delays to `delays`.

    The stream is finished with the last block. `timer` measures seconds of computation.
    """
    clock, first_text = 0.0, None
    shown: list[tuple[str, float]] = []  # the words of the partials, and when each was there
    finals: list[StreamEvent] = []
    for start in range(0, max(len(samples), 1), BLOCK):
        end = min(start + BLOCK, len(samples))
        began = timer()
        events = stream.push(samples[start:end])
        if end == len(samples):
            events += stream.finish()
        clock = max(clock, end / SAMPLE_RATE) + timer() - began
        for event in events:
            if event.type == "endpoint":
                continue
            words = _bare(event.text.split())
            if words and first_text is None:
                first_text = clock
            if event.type == "partial":
                same = 0
                while same < min(len(words), len(shown)) and words[same] == shown[same][0]:
                    same += 1  # the last word may have grown since
                shown = shown[:same] + [(word, clock) for word in words[same:]]
                continue
            finals.append(event)
            _add_final(event, shown, clock, delays)
            shown = []
    said = [word for event in finals for word in event.words]
    if said and first_text is not None:
        delays.first_words.append(first_text - said[0].start)
    return " ".join(event.text for event in finals if event.text)


def _add_final(
    event: StreamEvent, shown: list[tuple[str, float]], clock: float, delays: Delays
) -> None:
    """Compare a final, known at `clock`, with the words shown before."""
    words = [word for word in event.words if _bare([word.text])]
    texts = _bare(word.text for word in words)
    matcher = SequenceMatcher(None, [text for text, _ in shown], texts, autojunk=False)
    known = [clock] * len(words)
    for block in matcher.get_matching_blocks():
        delays.changed -= block.size
        for i in range(block.size):
            known[block.b + i] = shown[block.a + i][1]
    delays.shown += len(shown)
    delays.changed += len(shown)
    delays.words += [at - word.end for at, word in zip(known, words, strict=True)]
    if words:
        delays.finals.append(clock - words[-1].end)


def _bare(words: Iterable[str]) -> list[str]:
    """Words without case and marks, less those that are marks only."""
    texts = (normalize_for_scoring(word).replace(" ", "") for word in words)
    return [text for text in texts if text]


def percentiles(seconds: Sequence[float]) -> tuple[float, float] | None:
    """The 50th and the 95th; None of nothing."""
    if not seconds:
        return None
    middle, late = np.percentile(seconds, [50, 95])
    return float(middle), float(late)
