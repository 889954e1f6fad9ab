"""A live stream of its own: every chunk is recognized before `push` returns."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pianissimo.engine.runner import Runner
from pianissimo.errors import StreamError
from pianissimo.streaming.input import StreamInput
from pianissimo.streaming.live import LiveStream
from pianissimo.transcript import StreamEvent

SLOT = 0


class SingleStream:
    """One stream on a runner that nobody else uses; what it says comes back from each call."""

    def __init__(self, runner: Runner, live: LiveStream, input: StreamInput) -> None:
        self._runner, self._live, self._input = runner, live, input
        self._open = True
        runner.clear(SLOT, trie=live.options.trie)

    @property
    def replays(self) -> int:
        """How often the watchdog heard the last seconds anew."""
        return self._live.replays

    def push(self, samples: Any, sample_rate: int | None = None) -> list[StreamEvent]:
        """Take further samples, any number of them: floats in [-1, 1] or integers, mono or
        (samples, channels).

        Raises StreamError after `finish`, AudioValueError for samples that are not usable.
        """
        self._check_open("push")
        self._take(self._input.push(samples, sample_rate))
        return self._run()

    def finalize(self) -> list[StreamEvent]:
        """Lock the text of everything pushed so far without ending the stream.

        The last event is its final, empty if nothing was said. Raises StreamError after `finish`.
        """
        self._check_open("finalize")
        self._live.mark("finalize")
        return self._run()

    finalise = finalize
    """The British spelling, accepted as well."""

    def finish(self) -> list[StreamEvent]:
        """End the stream; the last event is its final. Raises StreamError if it ended before."""
        self._check_open("finish")
        self._open = False
        self._take(self._input.finish())
        self._live.mark("finish")
        return self._run()

    def _take(self, samples: npt.NDArray[np.float32]) -> None:
        self._live.listen(samples)
        self._live.push(samples)

    def _run(self) -> list[StreamEvent]:
        live, runner, events = self._live, self._runner, []
        while due := live.due():
            if due == "chunk":
                events += live.take_chunk(runner.step([live.chunk_work(SLOT)], live.grid)[0])
                if (restart := live.take_restart()) is not None:
                    runner.clear(SLOT, restart, live.options.trie)
            else:
                events += live.take_tail(runner.finish([live.tail_work(SLOT)], live.grid)[0])
        return events

    def _check_open(self, action: str) -> None:
        if not self._open:
            raise StreamError(f"cannot {action}: this stream has ended; open a new one")

    def __enter__(self) -> "SingleStream":
        return self

    def __exit__(self, *reason: object) -> None:
        self._open = False
