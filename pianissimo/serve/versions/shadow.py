"""A shadow: a second model transcribes the audio of the first, and their differences are counted.

The shadow answers no client and delays none. Streams and recordings that it cannot process in time
are dropped and counted.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, Unpack

import numpy as np
import numpy.typing as npt

from pianissimo.decoding.hotwords import Boost
from pianissimo.errors import BacklogError, EngineFullError
from pianissimo.evaluate.wer import word_errors
from pianissimo.serve.audio_in.decode import Upload
from pianissimo.serve.audio_in.recording import Transcriber
from pianissimo.serve.versions.store import Lease, OpenOptions, ServedModel
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.transcript import StreamEvent, Transcript

if TYPE_CHECKING:
    from pianissimo.serve.metrics import Metrics
    from pianissimo.streaming.session import Session

PATIENCE_SECONDS = 0.05
"""How soon a push into a full shadow stream is tried again."""
MOST_WAITING_SECONDS = 30.0
"""Backlog of one shadow stream; with more the shadow drops the stream."""
LAST_SECONDS = 30.0
"""How long a shadow may take for its last text after the end of the stream."""
MOST_RECORDINGS = 2
"""Recordings that a shadow processes or has queued; others get no shadow."""
PIECE_WORDS = 100
"""Words of the first model that are compared at once while a stream is open."""
PATIENCE_WORDS = 4 * PIECE_WORDS
"""Words that one model may be ahead of the other before they are compared anyway."""

Block: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.float32]
Job: TypeAlias = Block | Literal["finalize", "finish"]
Reason = Literal["full", "slow", "failed"]
T = TypeVar("T")

log = logging.getLogger(__name__)


def prefix_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> tuple[int, int]:
    """The fewest edits from the reference to any beginning of the hypothesis, and its length.

    Of several such beginnings the longest.
    """
    ramp = np.arange(len(hypothesis) + 1)
    row = ramp
    words = np.array(hypothesis, dtype=object)
    for word in reference:
        step = row + 1
        step[1:] = np.minimum(step[1:], row[:-1] + (words != word))
        row = np.minimum.accumulate(step - ramp) + ramp
    length = int(len(row) - 1 - np.argmin(row[::-1]))
    return int(row[length]), length


class Differences:
    """Counts the edits between two growing texts, in bounded memory and time."""

    def __init__(self) -> None:
        self.words = self.edits = 0
        self._first: list[str] = []
        self._second: list[str] = []

    def first(self, text: str) -> None:
        self._first += normalize_for_scoring(text).split()

    def second(self, text: str) -> None:
        self._second += normalize_for_scoring(text).split()

    def settle(self) -> None:
        """Compare what can be compared while both texts grow."""
        while (len(self._first) >= PIECE_WORDS and len(self._second) >= 2 * PIECE_WORDS) or max(
            len(self._first), len(self._second)
        ) >= PATIENCE_WORDS:
            self._compare(PIECE_WORDS, 2 * PIECE_WORDS)

    def finish(self, whole: bool) -> None:
        """Compare the rest. Unless both consumed the `whole` stream, words of the second behind the
        last word of the first are not counted."""
        if whole:
            self.words += len(self._first)
            self.edits += word_errors(" ".join(self._first), " ".join(self._second)).errors
        else:
            self._compare(PATIENCE_WORDS, PATIENCE_WORDS)
        self._first, self._second = [], []

    def _compare(self, first: int, second: int) -> None:
        reference, hypothesis = self._first[:first], self._second[:second]
        if reference:
            edits, length = prefix_edits(reference, hypothesis)
        else:
            edits = length = len(hypothesis)
        self.words += len(reference)
        self.edits += edits
        del self._first[:first], self._second[:length]


class Shadows:
    """All shadow work of a server, and its two threads."""

    def __init__(self, metrics: "Metrics", transcriber: Transcriber, most_streams: int) -> None:
        self.metrics, self.most_streams = metrics, most_streams
        self._transcriber = transcriber
        self.streams: set[ShadowStream] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.live = ThreadPoolExecutor(1, "pianissimo-shadow")
        self._files = ThreadPoolExecutor(1, "pianissimo-shadow-file")
        self._recordings = 0

    def stream(self, lease: Lease, **options: Unpack[OpenOptions]) -> "ShadowStream | None":
        """The shadow of a stream that is opened with these options; None if it gets none."""
        if lease.shadow is None:
            return None
        if len(self.streams) >= self.most_streams:
            self.dropped(lease.shadow, "full")
            return None
        options.pop("language", None)  # another model may not have it
        return ShadowStream(self, lease.model, lease.shadow, options)

    def recording(self, lease: Lease, upload: Upload, found: Transcript, boost: Boost) -> None:
        """Transcribe a recording once more, from a hard link to its file."""
        if lease.shadow is None:
            return
        if self._recordings >= MOST_RECORDINGS:
            self.dropped(lease.shadow, "full")
            return
        link = upload.path.with_name(f"{upload.path.name}-shadow")
        try:
            os.link(upload.path, link)
        except OSError:
            self.dropped(lease.shadow, "failed")
            return
        self._recordings += 1
        linked = replace(upload, path=link)
        self.start(self._transcribe(lease.model, Lease(lease.shadow), linked, found.text, boost))

    async def _transcribe(
        self, first: ServedModel, lease: Lease, upload: Upload, text: str, boost: Boost
    ) -> None:
        with lease:
            try:
                hints = await asyncio.to_thread(lease.model.hints, boost)
                recognizer = lease.model.recognizer
                other = await self._transcriber.transcribe(upload, recognizer, self._files, hints)
                counts = await asyncio.to_thread(
                    word_errors, normalize_for_scoring(text), normalize_for_scoring(other.text)
                )
                self.compared(first, lease.model, counts.words, counts.errors)
            except Exception:
                log.exception("the shadow %s failed on a recording", lease.model.name)
                self.dropped(lease.model, "failed")
            finally:
                self._recordings -= 1
                upload.path.unlink(missing_ok=True)

    def start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def compared(self, first: ServedModel, shadow: ServedModel, words: int, edits: int) -> None:
        self.metrics.shadow_words.labels(first.name, shadow.name).inc(words)
        self.metrics.shadow_edits.labels(first.name, shadow.name).inc(edits)

    def dropped(self, shadow: ServedModel, reason: Reason) -> None:
        self.metrics.shadow_dropped.labels(shadow.name, reason).inc()

    async def close(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for threads in (self.live, self._files):
            threads.shutdown(wait=False, cancel_futures=True)


class ShadowStream:
    """The shadow of one stream. Its methods neither wait nor raise; a task does the work."""

    def __init__(
        self, shadows: Shadows, first: ServedModel, shadow: ServedModel, options: OpenOptions
    ) -> None:
        self._shadows, self._first, self._lease = shadows, first, Lease(shadow)
        self._options, self._rate = options, options["sample_rate"]
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._waiting_seconds = 0.0
        self._abandoned = False
        self._complete = False
        self._closed = asyncio.Event()
        self._differences = Differences()
        shadows.streams.add(self)
        shadows.start(self._run())

    def push(self, samples: Block) -> None:
        """The first model got these samples."""
        if self._abandoned:
            return
        self._waiting_seconds += len(samples) / self._rate
        if self._waiting_seconds > MOST_WAITING_SECONDS:
            self._abandon("slow")
        self._jobs.put_nowait(samples)

    def finalize(self) -> None:
        self._jobs.put_nowait("finalize")

    def finish(self) -> None:
        """The audio has ended."""
        self._complete = True
        self._jobs.put_nowait("finish")

    def observe(self, event: StreamEvent) -> None:
        """The first model emitted an event."""
        if event.type == "final" and not self._abandoned:
            self._differences.first(event.text)
            self._settle()

    def close(self) -> None:
        """The stream has ended, or its client is gone."""
        self._closed.set()
        if not self._complete:
            self._jobs.put_nowait("finish")

    def _abandon(self, reason: Reason) -> None:
        if not self._abandoned:
            self._abandoned = True
            self._shadows.dropped(self._lease.model, reason)

    async def _run(self) -> None:
        session: Session | None = None
        collecting: asyncio.Task[None] | None = None
        try:
            session = await self._in_thread(self._open)
            collecting = asyncio.create_task(self._collect(session))
            await self._work(session)
            async with asyncio.timeout(LAST_SECONDS):
                await collecting
            await self._closed.wait()
            if not self._abandoned:
                self._differences.finish(self._complete)
        except TimeoutError:
            self._abandon("slow")
        except EngineFullError:
            self._abandon("full")
        except Exception:
            log.exception("the shadow %s failed on a stream", self._lease.model.name)
            self._abandon("failed")
        finally:
            if collecting is not None:
                collecting.cancel()
                await asyncio.gather(collecting, return_exceptions=True)
            if session is not None:
                session.close()
            self._record()
            self._lease.release()
            self._shadows.streams.discard(self)

    def _open(self) -> "Session":
        """Open a stream as the first model did, in the same latency mode if the shadow has it."""
        model, options = self._lease.model, self._options.copy()
        if options.get("latency_ms") not in model.latencies_ms:
            options["latency_ms"] = None
        options["boost"] = model.hints(options.get("boost") or ())
        return model.open(**options)

    async def _work(self, session: "Session") -> None:
        """Push queued audio until the stream ends or is dropped."""
        while True:
            job = await self._jobs.get()
            while not self._abandoned:
                try:
                    await self._in_thread(partial(_do, session, job))
                    break
                except BacklogError:
                    await asyncio.sleep(PATIENCE_SECONDS)
            if self._abandoned:
                session.close()
                return
            if not isinstance(job, str):
                self._waiting_seconds -= len(job) / self._rate
            elif job == "finish":
                return

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._shadows.live, work)

    async def _collect(self, session: "Session") -> None:
        async for event in session:
            if event.type == "final":
                self._differences.second(event.text)
                self._settle()

    def _settle(self) -> None:
        self._differences.settle()
        self._record()

    def _record(self) -> None:
        found = self._differences
        self._shadows.compared(self._first, self._lease.model, found.words, found.edits)
        found.words = found.edits = 0


def _do(session: "Session", job: Job) -> None:
    if isinstance(job, str):
        session.finish() if job == "finish" else session.finalize()
    else:
        session.push(job, wait=False)
