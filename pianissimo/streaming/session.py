"""One live stream: samples in, events out, cost per chunk independent of what came before."""

from types import TracebackType
from typing import Any

import torch

from pianissimo.audio.io import SAMPLE_RATE, from_array
from pianissimo.audio.resample import StreamingResampler
from pianissimo.decoding.search import Search
from pianissimo.errors import StreamError
from pianissimo.models.asr import AsrModel
from pianissimo.models.fastconformer import ChunkPlan
from pianissimo.text.tokenizer import IncrementalDetokenizer, Tokenizer
from pianissimo.text.words import WordAssembler, WordOptions, clamped
from pianissimo.transcript import StreamEvent, Word


class Session:
    """A stream of its own on a shared model: features, encoder, search and text, chunk by chunk.

    Samples are float in [-1, 1] or integers, mono or (samples, channels), at `sample_rate` Hz.
    Every chunk of the latency mode that is complete is recognised before `push` returns.
    """

    def __init__(
        self,
        model: AsrModel,
        tokenizer: Tokenizer,
        search: Search,
        plan: ChunkPlan,
        *,
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        self._model, self._search, self._plan = model, search, plan
        self._sample_rate = sample_rate
        self._resampler = StreamingResampler(sample_rate, model.config.features.sample_rate)
        self._features = model.features.start()
        self._encoder = model.encoder.start()
        self._decoder = search.start()
        self._frame_seconds = model.config.frame_seconds
        self._assembler = WordAssembler(tokenizer, WordOptions(self._frame_seconds))
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._text = ""
        self._words: list[Word] = []
        self._first_frame: int | None = None
        self._last_frame = 0
        self._samples = 0
        self._open = True

    def push(self, samples: Any) -> list[StreamEvent]:
        """Take further samples, any number of them; returns a partial if there are new words.

        Raises StreamError after `finish`, AudioValueError for samples that are not usable.
        """
        self._check_open("push")
        block = from_array(samples, self._sample_rate, target_rate=self._sample_rate)
        self._samples += len(block)
        return self._advance(torch.from_numpy(self._resampler.push(block)), final=False)

    def finish(self) -> list[StreamEvent]:
        """End the stream: the final text, with the words that were still waiting for audio.

        Raises StreamError if it ended before.
        """
        self._check_open("finish")
        self._open = False
        self._advance(torch.from_numpy(self._resampler.finish()), final=True)
        self._text += self._detokenizer.finish()
        seconds = self._samples / self._sample_rate
        words = [*self._words, *self._assembler.finish()]
        self._words = [clamped(word, seconds) for word in words]
        return [self._event("final", self._text)] if self._text.strip() else []

    @torch.inference_mode()
    def _advance(self, samples: torch.Tensor, *, final: bool) -> list[StreamEvent]:
        features = self._model.features
        mel = features.push(samples.to(self._model.device), self._features)
        if final:
            mel = torch.cat([mel, features.finish(self._features)])
        encoded = self._model.encoder.step(
            mel[None].to(self._model.dtype), self._encoder, self._plan, final=final
        )
        if self._model.prompt is not None:
            encoded = self._model.prompt(encoded)
        found = self._search.decode(encoded, None, self._decoder)[0]
        if not found.tokens:
            return []
        if self._first_frame is None:
            self._first_frame = found.frames[0]
        self._last_frame = found.frames[-1]
        self._words += self._assembler.push(found.tokens, found.frames, found.confidences)
        self._text += self._detokenizer.push(found.tokens)
        return [self._event("partial", self._text + self._detokenizer.tail)]

    def _event(self, kind: Any, text: str) -> StreamEvent:
        start = (self._first_frame or 0) * self._frame_seconds
        end = (self._last_frame + 1) * self._frame_seconds
        if kind == "final" and self._words:
            start, end = self._words[0].start, self._words[-1].end
        return StreamEvent(kind, text.strip(), tuple(self._words), start, end)

    def _check_open(self, action: str) -> None:
        if not self._open:
            raise StreamError(f"cannot {action}: this stream has ended; open a new one")

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
