"""Moonshine Streaming on the network of this package: recordings and live streams.

A recording is cut into pieces at quiet places, as for all models with absolute positions. Word
times come from the cross-attention, aligned by dynamic time warping as for Whisper. A live stream
is encoded chunk by chunk, and its state starts again at pauses.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.hotwords import Boost, PhraseTrie
from pianissimo.decoding.whisper import WhisperSearch, Written, timed_words, token_starts
from pianissimo.decoding.whisper_live import WhisperLiveDecoder
from pianissimo.engine.live_model import LiveModel, fingerprint
from pianissimo.engine.moonshine_slots import MoonshineSecondPass, MoonshineSlots
from pianissimo.engine.single import SingleStream, open_single
from pianissimo.errors import OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.models.checkpoints.moonshine import MoonshineParts, read_moonshine
from pianissimo.models.moonshine import Moonshine
from pianissimo.models.packed import packed
from pianissimo.models.whisper import FRAME_SECONDS, TextRules
from pianissimo.protocols import Capabilities, StreamRecognizer
from pianissimo.recognizers.base import BaseRecognizer, default_detector
from pianissimo.recognizers.family import Family, LoadOptions
from pianissimo.recognizers.long_form import Decoded, PieceDecoder
from pianissimo.recognizers.whisper_live import LONGEST_SEGMENT_SECONDS, transcribed_live
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules, SegmentRules, WatchdogRules
from pianissimo.streaming.live import LiveOptions
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import Transcript, Word

LANGUAGE = "en"
"""What the published models speak."""
PIECES = {"cpu": 1, "cuda": 16}
"""Pieces that are decoded at once."""


class MoonshineRecognizer(BaseRecognizer):
    """A Moonshine Streaming with its tokenizer."""

    model: Moonshine
    language = LANGUAGE

    def __init__(
        self,
        parts: MoonshineParts,
        *,
        front_end: FrontEnd | None = None,
        detector: VoiceDetector | None = None,
    ) -> None:
        self.model, self.name, self.tokenizer = parts.network, parts.name, parts.tokenizer
        self.front_end = front_end or FrontEnd(FAMILY.gain)
        self.detector = detector or default_detector()
        network = parts.network
        if network.device.type == "cpu" and network.dtype == torch.float32:
            network = packed(network, "float32")
        self.encoder, self.rules = network.encoder, TextRules()
        end = parts.tokenizer.end
        self.search = WhisperSearch(network.decoder, self.rules, end=end, no_speech=end)
        self.slots = MoonshineSlots(network.encoder)
        delays = [lookahead + 1 + self.slots.lag for lookahead in self.slots.lookaheads]
        self.lookaheads = {
            round(frames * FRAME_SECONDS * 1000): lookahead
            for frames, lookahead in zip(delays, self.slots.lookaheads, strict=True)
        }
        """The lookahead in frames of each latency mode in milliseconds, shortest first. A mode is
        the length of its chunks and the lookahead of the encoder."""
        self.latencies_ms = tuple(self.lookaheads)

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
        if latency_ms is not None:
            return (transcribed_live(self, blocks, latency_ms, words) for blocks in recordings)
        decoder = PieceDecoder(
            self.front_end,
            lambda pieces: self._decode(pieces, words),
            detector=self.detector,
            most=PIECES[self.model.device.type],
            language=LANGUAGE,
        )
        return decoder.run(recordings, self.name, words)

    @torch.inference_mode()
    def _decode(self, pieces: Sequence[Samples], words: bool) -> list[Decoded]:
        """Pieces of up to 28 s; each is encoded alone, for its end decides its last frames."""
        device, dtype = self.model.device, self.model.dtype
        encoded = [
            self.encoder(torch.from_numpy(piece)[None].to(device=device, dtype=dtype))[0]
            for piece in pieces
        ]
        limits = [
            max_new_tokens(len(piece) / SAMPLE_RATE) if len(frames) else 0
            for piece, frames in zip(pieces, encoded, strict=True)
        ]
        if not any(limits):
            return [Decoded("") for _ in pieces]
        frames = torch.tensor([max(1, len(each)) for each in encoded], device=device)
        padded = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
        prompts = [self.tokenizer.prompt(None, None)] * len(pieces)
        begun = self.search.begin(padded, prompts, frames=frames, most_tokens=max(limits))
        texts = self.search.greedy(begun, limits)
        timed: list[tuple[Word, ...]] = [()] * len(pieces)
        if words:
            rows = [
                [*prompt, *text.tokens, self.tokenizer.end]
                for prompt, text in zip(prompts, texts, strict=True)
            ]
            state = self.search.decoder.start(padded, frames, max(map(len, rows)))
            looks = self.search.looks(state, rows)
            timed = [
                self._words(text, look[..., : len(each)], len(prompt))
                for text, look, each, prompt in zip(texts, looks, encoded, prompts, strict=True)
            ]
        return [
            self._decoded(text, limit, found)
            for text, limit, found in zip(texts, limits, timed, strict=True)
        ]

    def _words(self, text: Written, looks: torch.Tensor, prompt: int) -> tuple[Word, ...]:
        if not text.tokens:
            return ()
        starts = token_starts(looks, self.rules.median_width, prompt - 1)
        return timed_words(self.tokenizer.decode, text.tokens, text.log_probs, starts, LANGUAGE)

    def _decoded(self, text: Written, limit: int, words: tuple[Word, ...]) -> Decoded:
        full = len(text.tokens) >= limit and not text.ended
        return Decoded(
            self.tokenizer.decode(text.tokens).strip(),
            tuple(text.tokens),
            text.mean_log_probability if text.tokens else None,
            full,
            words,
            LANGUAGE,
            text.ended,
        )

    # -- live --------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return replace(
            super().capabilities,
            batched_streams=True,
            saved_streams=True,
            whole_recordings=True,
            second_pass=True,
        )

    @cached_property
    def live(self) -> LiveModel:
        """The model prepared for live streams, shared by all of them."""
        config = self.model.config
        silence = self.encoder.positions.new_zeros(0, config.dim)
        decoder = WhisperLiveDecoder(
            self.search,
            self.tokenizer,
            self.rules,
            None,
            "transcribe",
            silence,
            lag=self.slots.lag,
            final_beam=1,
        )
        digest = fingerprint(config, self.model.encoder.stem.parameters())
        return LiveModel(self.slots, decoder, digest, MoonshineSecondPass(self.slots, decoder))

    @property
    def stream_tokenizer(self) -> Tokenizer:
        """The vocabulary of live streams."""
        return self.tokenizer.for_streams()

    def stream(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        partials: StreamRecognizer | None = None,
        boost: Boost | None = None,
        language: str | None = None,
        second_pass: bool | None = None,
    ) -> SingleStream:
        """Open a live stream of samples at `sample_rate` Hz; an `Engine` serves many at once.

        `latency_ms` is one of `latencies_ms`, by default the shortest. `endpoint` says when an
        utterance is over; None ends it in pauses of 2 s. With `second_pass`, the default, a final
        is decoded again from all frames of the utterance, none of which is encoded again; without
        it a final keeps the words of its partials. Raises OptionError for an unknown mode, another
        language than English, hotwords, and `partials`, since it writes them by itself.
        """
        if partials is not None:
            raise OptionError(f"{self.name} writes partials by itself; remove partials")
        return open_single(
            self,
            latency_ms=latency_ms,
            sample_rate=sample_rate,
            endpoint=endpoint,
            boost=boost,
            language=language,
            second_pass=second_pass,
        )

    def live_options(
        self,
        lookahead: int,
        endpoint: EndpointRules | None,
        watchdog: WatchdogRules | None,
        *,
        guard: bool = True,
        language: str | None = None,
        second_pass: bool | None = None,
    ) -> LiveOptions:
        """The options of a stream. `guard` needs a detector and leveled samples."""
        leveled = self.front_end is not None and self.front_end.mode != "off"
        return LiveOptions(
            lookahead,
            endpoint,
            None,
            self.detector,
            guard=guard and leveled and self.detector is not None,
            language=LANGUAGE,
            prompt=self.live.decoder.prompt(language),
            segments=SegmentRules(longest_seconds=LONGEST_SEGMENT_SECONDS),
            second_pass=second_pass is not False,
        )

    def live_lookahead(self, latency_ms: int | None) -> int:
        """The lookahead of a stream in that latency mode; see `stream`."""
        chosen = self.latencies_ms[0] if latency_ms is None else latency_ms
        if chosen not in self.lookaheads:
            known = ", ".join(map(str, self.lookaheads))
            raise OptionError(f"{chosen} ms is not a latency mode of {self.name} ({known})")
        return self.lookaheads[chosen]

    def _configured(self, latency_ms: int | None, boost: Boost | None) -> Self:
        if latency_ms is not None:
            self.live_lookahead(latency_ms)
        return super()._configured(latency_ms, boost)

    def live_trie(self, boost: Boost | None) -> PhraseTrie | None:
        """None; raises OptionError for hotwords, which a Moonshine cannot boost."""
        if boost:
            self.boosted(boost)
        return None


def _read(folder: Path, device: torch.device, options: LoadOptions) -> MoonshineRecognizer:
    parts = read_moonshine(folder)
    parts.network.to(device=device, dtype=options.dtype or torch.float32)
    return MoonshineRecognizer(parts)


FAMILY = Family(
    name="moonshine",
    read=_read,
    # Each waveform frame is normalized by itself, but its guard term weighs on quiet speech.
    gain="auto",
    model_types=("moonshine_streaming",),
    languages=False,
)
