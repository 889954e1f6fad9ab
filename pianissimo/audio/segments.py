"""Where to cut a recording for a model with a window: at pauses, or at the quietest point."""

from collections.abc import Sequence

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples, quietest_point
from pianissimo.audio.vad import SpeechSpan

MAX_SEGMENT_SECONDS = 28.0
"""What models with a window of 30 s get at once; several loop or drop text beyond it."""

_CUT_SECONDS, _PAUSE_SECONDS, _JOIN_SECONDS = 4.0, 0.1, 2.0


def plan_segments(
    samples: Samples,
    spans: Sequence[SpeechSpan],
    max_seconds: float = MAX_SEGMENT_SECONDS,
) -> list[tuple[int, int]]:
    """Cut a recording (n,) for a model with a window: (start, end) in samples, in order.

    Spans of speech less than 2 s apart are put together as long as they fit into `max_seconds`; one
    that is longer is cut at the quietest tenth of a second of its last four. What lies outside all
    spans is left out; a recording without spans is one stretch, cut where it must be.
    """
    n, most = len(samples), round(max_seconds * SAMPLE_RATE)
    rounded = [(round(s.start * SAMPLE_RATE), min(n, round(s.end * SAMPLE_RATE))) for s in spans]
    pieces = [piece for span in rounded or [(0, n)] for piece in _pieces(samples, *span, most)]
    planned: list[tuple[int, int]] = []
    for start, end in pieces:
        near = planned and start - planned[-1][1] <= _JOIN_SECONDS * SAMPLE_RATE
        if near and end - planned[-1][0] <= most:
            planned[-1] = (planned[-1][0], end)
        else:
            planned.append((start, end))
    return planned


def _pieces(samples: Samples, start: int, end: int, most: int) -> list[tuple[int, int]]:
    pieces = []
    while end - start > most:
        last = start + most
        first = max(start + most // 2, last - round(_CUT_SECONDS * SAMPLE_RATE))
        cut = quietest_point(samples, first, last, round(_PAUSE_SECONDS * SAMPLE_RATE))
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, end)] if end > start else pieces
