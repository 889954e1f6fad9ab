"""One live stream without an engine: every chunk is recognized before `push` returns."""

from collections.abc import Callable
from dataclasses import replace

import numpy.typing as npt

from pianissimo.audio.io import Samples
from pianissimo.decoding.hotwords import Boost
from pianissimo.engine.engine import StreamingRecognizer
from pianissimo.engine.runner import Runner
from pianissimo.errors import StreamError
from pianissimo.streaming.endpoint import WATCHDOG, EndpointRules, Mark, WatchdogRules
from pianissimo.streaming.grid import ChunkWork
from pianissimo.streaming.input import StreamInput
from pianissimo.streaming.live import LiveOptions
from pianissimo.streaming.live_segments import Live, listen, open_live
from pianissimo.transcript import StreamEvent

SLOT = 0


def open_single(
    recognizer: StreamingRecognizer,
    *,
    latency_ms: int | None = None,
    sample_rate: int,
    endpoint: EndpointRules | None,
    watchdog: WatchdogRules | None = WATCHDOG,
    boost: Boost | None = None,
    language: str | None = None,
    second_pass: bool | None = None,
) -> "SingleStream":
    """One stream of a streaming model; the options and errors are those of `Engine.open`."""
    lookahead = recognizer.live_lookahead(latency_ms)
    grid = recognizer.live.grid(lookahead)
    options = recognizer.live_options(
        lookahead, endpoint, watchdog, language=language, second_pass=second_pass
    )
    options = replace(options, trie=recognizer.live_trie(boost))
    stream = open_live(grid, recognizer.stream_tokenizer, options)
    input = StreamInput(sample_rate, grid.features.sample_rate, recognizer.front_end)

    def options_for(language: str) -> LiveOptions:
        return recognizer.live_options(lookahead, None, None, guard=False, language=language)

    return SingleStream(Runner(recognizer.live, 1), stream, input, options_for)


class SingleStream:
    """One stream on a runner of its own; each call returns its events."""

    def __init__(
        self,
        runner: Runner,
        live: Live,
        input: StreamInput,
        options_for: Callable[[str], LiveOptions],
    ) -> None:
        """`options_for` gives the options of a language, of which prompt and language are used."""
        self._runner, self._live, self._input = runner, live, input
        self._options_for = options_for
        self._open = True
        runner.clear(SLOT, trie=live.options.trie, prompt=live.options.prompt)

    @property
    def replays(self) -> int:
        """How often the watchdog restarted the stream a few seconds back."""
        return self._live.replays

    def push(self, samples: npt.ArrayLike, sample_rate: int | None = None) -> list[StreamEvent]:
        """Append any number of samples: floats in [-1, 1] or integers, mono or
        (samples, channels).

        Raises StreamError after `finish`, AudioValueError for unusable samples.
        """
        if not self._open:
            raise StreamError("cannot push: this stream has ended; open a new one")
        return self._run(self._input.push(samples, sample_rate))

    def finalize(self) -> list[StreamEvent]:
        """Lock the text of everything pushed so far without ending the stream.

        The last event is its final, empty if there is no text. Raises StreamError after `finish`.
        """
        if not self._open:
            raise StreamError("cannot finalize: this stream has ended; open a new one")
        return self._run(None, "finalize")

    finalise = finalize
    """The British spelling, accepted as well."""

    def set_language(self, language: str) -> None:
        """Choose the language of what is pushed from now on, from its next utterance on.

        Raises OptionError for a model without a choice or without this language, and StreamError
        after `finish`.
        """
        if not self._open:
            raise StreamError("cannot set the language: this stream has ended; open a new one")
        options = self._options_for(language)
        self._live.set_language(options.prompt, options.language)

    def finish(self) -> list[StreamEvent]:
        """End the stream; the last event is its final. Raises StreamError if it ended before."""
        if not self._open:
            raise StreamError("cannot finish: this stream has ended; open a new one")
        self._open = False
        return self._run(self._input.finish(), "finish")

    def _run(self, samples: Samples | None, mark: Mark | None = None) -> list[StreamEvent]:
        live, runner, events = self._live, self._runner, []
        if samples is not None:
            listen([live], [samples])
            live.push(samples)
        if mark is not None:
            live.mark(mark)
        while True:
            live.look_out()
            if live.language_changed:
                runner.set_prompt(SLOT, live.options.prompt)
                live.language_changed = False
            if live.restart is not None:
                options = live.options
                events += live.renewed(
                    runner.renew(SLOT, live.restart, options.trie, options.prompt)
                )
            if live.due() is None:
                return events
            work = live.work(SLOT)
            if isinstance(work, ChunkWork):
                events += live.accept_chunk(runner.step([work], live.grid)[0])
            else:
                events += live.accept_tail(runner.finish([work], live.grid)[0])

    def __enter__(self) -> "SingleStream":
        return self

    def __exit__(self, *reason: object) -> None:
        self._open = False
