"""Turns of a live stream: each stretch of speech gets its speaker at once, and keeps it.

A stretch is at most 0.8 s long, so a word has its speaker about a second after it was said. Its
window reaches back over the speech before it. The window joins the speaker whose mean voice is most
alike, or is the first of a new speaker. Every now and then the last minutes are clustered as a
recording is, which corrects the mean voices but no label. At the end everything is clustered:
`finish` is better than the sum of what `push` said, and is for the transcript. Streams without a
transcript at their end keep the last minutes only.
"""

from collections import deque

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples
from pianissimo.diarization.assignment import assignment
from pianissimo.diarization.clustering import Vectors, find_speakers, unit
from pianissimo.diarization.embedding import (
    WINDOW_SECONDS,
    Embedder,
    built_in_embedder,
    voice_of,
)
from pianissimo.diarization.options import MOST_SPEAKERS, RECENT_TURNS, Diarization
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
"""At a time; of those who left, `MOST_SPEAKERS` names are given in a stream at most."""
CLUSTER_EVERY, CLUSTERED_WINDOWS = 12, 1000
"""Windows between two clusterings of the last ones: every 10 s of speech, over 13 minutes."""


class LiveTurns:
    """The turns of one live stream; `turns` grows and what it holds never changes.

    Without `keep`, for streams without end, `turns` holds the last ones only, which `finish`
    returns as they are; otherwise memory grows by 3 MB per hour of speech. Raises OptionError for
    channels, and what reading the known voices raises.
    """

    def __init__(
        self,
        options: Diarization | None = None,
        embedder: Embedder | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self._options = options or Diarization()
        if self._options.by != "voices":
            raise OptionError("a live stream of several channels is one stream per channel")
        self._embedder = embedder or built_in_embedder()
        self._most = min(self._options.bounds[1], MOST_LIVE_SPEAKERS)
        self._known = {
            name: voice_of(source, self._embedder) for name, source in self._options.voices.items()
        }
        self._speakers, self._numbers, self._founded = list(self._known), 0, 0
        self._sums: list[Vectors] = list(self._known.values())
        self._speech = SpeechPieces(live=True, longest_seconds=PIECE_SECONDS)
        self._before = np.zeros(0, np.float32)  # the last speech, for the next window
        self._keep, self._count = keep, 0
        self._last_end = -1.0
        self._stretches: list[Stretch] = []
        self._vectors: list[npt.NDArray[np.float16]] = []
        self._lately: deque[Vectors] = deque(maxlen=CLUSTERED_WINDOWS)
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
        """The turns of everything that was pushed, clustered again."""
        for start, end, speech in self._speech.finish():
            self._add(start, end, speech)
        if not self._keep:
            return tuple(self.turns)
        vectors = np.zeros((0, 1), np.float32)
        if self._vectors:
            vectors = np.stack(self._vectors).astype(np.float32)
        return turns_by_voice(
            self._stretches, vectors, self._options, self._known, hop_seconds=PIECE_SECONDS
        )

    def _add(self, start: float, end: float, speech: Samples) -> None:
        follows = abs(self._last_end - start) < 1e-6
        heard = np.concatenate([self._before, speech]) if follows else speech
        self._before, self._last_end = heard[-round(WINDOW_SECONDS * SAMPLE_RATE) :], end
        [vector] = self._embedder.embed([self._before])
        if self._keep:
            center = end - len(self._before) / SAMPLE_RATE / 2
            last = self._stretches.pop() if follows else Stretch(start, end, ())
            self._stretches.append(Stretch(last.start, end, (*last.centers, center)))
            self._vectors.append(vector.astype(np.float16))
        elif len(self.turns) >= 2 * CLUSTERED_WINDOWS:
            del self.turns[:-CLUSTERED_WINDOWS]
        self._lately.append(vector)
        speaker, cosine = self._label(vector, end - start)
        self.turns.append(Turn(start, end, speaker, round(min(max(cosine, 0.0), 1.0), 4)))
        self._count += 1
        if self._count % CLUSTER_EVERY == 0:
            self._correct()

    def _label(self, vector: Vectors, seconds: float) -> tuple[str, float]:
        """The speaker of a window with that many seconds of new speech, and the cosine."""
        cosines = [float(unit(total) @ vector) for total in self._sums]
        best = int(np.argmax(cosines)) if cosines else -1
        numbered = sum(name not in self._known for name in self._speakers)
        far = best < 0 or cosines[best] < JOIN_COSINE
        free = numbered < self._most and self._founded < MOST_SPEAKERS
        if far and free and (seconds >= FOUNDING_SECONDS - 1e-6 or best < 0):
            self._founded += 1
            self._speakers.append(self._new_name())
            self._sums.append(vector.copy())
            return self._speakers[-1], 1.0
        if not far:
            self._sums[best] = self._sums[best] + vector
        return self._speakers[best], cosines[best]

    def _new_name(self) -> str:
        """The next number that is no name."""
        while str(self._numbers) in self._known:
            self._numbers += 1
        self._numbers += 1
        return str(self._numbers - 1)

    def _correct(self) -> None:
        """Cluster the last windows, and take the means of the clusters for the speakers they are.

        A cluster is the speaker whose label most of its time has. A speaker of whom no cluster is
        left was none, unless it is a known voice or was not heard lately.
        """
        vectors = np.stack(self._lately)
        turns = self.turns[-CLUSTERED_WINDOWS:]
        seconds = np.array([turn.end - turn.start for turn in turns])
        means = find_speakers(vectors, seconds, most=self._most)
        clusters = np.argmax(vectors @ means.T, axis=1)
        lately = list(dict.fromkeys(turn.speaker for turn in turns))
        shared = np.zeros((len(means), len(lately)))
        for cluster, turn in zip(clusters, turns, strict=True):
            shared[cluster, lately.index(turn.speaker)] += turn.end - turn.start
        sums = {
            name: total
            for name, total in zip(self._speakers, self._sums, strict=True)
            if name in self._known or name not in lately
        }
        for row, column in assignment(-shared):
            if shared[row, column] > 0:
                sums[lately[column]] = means[row] * np.float32(np.sum(clusters == row))
        self._speakers, self._sums = list(sums), list(sums.values())
