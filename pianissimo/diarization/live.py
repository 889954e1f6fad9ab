"""Turns of a live stream: each stretch of speech gets its speaker at once, and keeps it.

A stretch is at most 0.8 s long, so a word has its speaker about a second after it was said. Its
window reaches back over the speech before it. The window joins the speaker whose mean voice is most
alike, or is the first of a new speaker. At the end everything is clustered again, as a recording
is: `finish` is better than the sum of what `push` said, and is for the transcript.
"""

import numpy as np

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples
from pianissimo.diarization.clustering import Vectors, unit
from pianissimo.diarization.embedding import (
    WINDOW_SECONDS,
    Embedder,
    built_in_embedder,
    voice_of,
)
from pianissimo.diarization.options import Diarization
from pianissimo.diarization.speech import SpeechPieces
from pianissimo.diarization.voices import Stretch, turns_by_voice
from pianissimo.errors import OptionError
from pianissimo.text.turns import Turn

PIECE_SECONDS = 0.8
JOIN_COSINE = 0.65
"""A window with a lower cosine to every speaker begins a new one."""
FOUNDING_SECONDS = 0.8
"""A shorter stretch begins no new speaker, unless it is the first."""
MOST_LIVE_SPEAKERS = 8
RECENT_TURNS = 128


class LiveTurns:
    """The turns of one live stream; `turns` grows and what it holds never changes.

    Raises OptionError for channels, and what reading the known voices raises.
    """

    def __init__(
        self, options: Diarization | None = None, embedder: Embedder | None = None
    ) -> None:
        self._options = options or Diarization()
        if self._options.by != "voices":
            raise OptionError("a live stream of several channels is one stream per channel")
        self._embedder = embedder or built_in_embedder()
        self._most = min(self._options.bounds[1], MOST_LIVE_SPEAKERS)
        self._known = {
            name: voice_of(source, self._embedder) for name, source in self._options.voices.items()
        }
        self._speakers = list(self._known)
        self._sums: list[Vectors] = list(self._known.values())
        self._speech = SpeechPieces(live=True, longest_seconds=PIECE_SECONDS)
        self._before = np.zeros(0, np.float32)  # the last speech, for the next window
        self._stretches: list[Stretch] = []
        self._vectors: list[Vectors] = []
        self.turns: list[Turn] = []

    @property
    def seconds(self) -> float:
        """The time before which every turn is known."""
        return self._speech.settled_seconds

    @property
    def recent(self) -> list[Turn]:
        """The last turns, enough for the words of one utterance."""
        return self.turns[-RECENT_TURNS:]

    def push(self, samples: Samples) -> None:
        """Take samples (n,) of float32 at 16 kHz."""
        for start, end, speech in self._speech.push(samples):
            self._add(start, end, speech)

    def finish(self) -> tuple[Turn, ...]:
        """The turns of everything that was pushed, clustered anew."""
        for start, end, speech in self._speech.finish():
            self._add(start, end, speech)
        vectors = np.stack(self._vectors) if self._vectors else np.zeros((0, 1), np.float32)
        return turns_by_voice(self._stretches, vectors, self._options, self._known)

    def _add(self, start: float, end: float, speech: Samples) -> None:
        follows = bool(self._stretches) and abs(self._stretches[-1].end - start) < 1e-6
        heard = np.concatenate([self._before, speech]) if follows else speech
        self._before = heard[-round(WINDOW_SECONDS * SAMPLE_RATE) :]
        [vector] = self._embedder.embed([self._before])
        center = end - len(self._before) / SAMPLE_RATE / 2
        if follows:
            last = self._stretches.pop()
            start_all, centers = last.start, last.centers
        else:
            start_all, centers = start, ()
        self._stretches.append(Stretch(start_all, end, (*centers, center)))
        self._vectors.append(vector)
        speaker, cosine = self._label(vector, end - start)
        self.turns.append(Turn(start, end, speaker, round(min(max(cosine, 0.0), 1.0), 4)))

    def _label(self, vector: Vectors, seconds: float) -> tuple[str, float]:
        """The speaker of a window that ends in so many seconds of new speech, and the cosine."""
        cosines = [float(unit(total) @ vector) for total in self._sums]
        best = int(np.argmax(cosines)) if cosines else -1
        numbered = len(self._sums) - len(self._known)
        far = best < 0 or cosines[best] < JOIN_COSINE
        if far and numbered < self._most and (seconds >= FOUNDING_SECONDS - 1e-6 or best < 0):
            taken = {*self._speakers}
            self._speakers.append(next(str(i) for i in range(99) if str(i) not in taken))
            self._sums.append(vector.copy())
            return self._speakers[-1], 1.0
        if not far:
            self._sums[best] = self._sums[best] + vector
        return self._speakers[best], cosines[best]
