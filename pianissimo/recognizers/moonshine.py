"""Moonshine Streaming on the network of this package: recordings, and live from pause to pause.

A recording is cut into pieces at quiet places, as for all models with absolute positions. Word
times come from the cross-attention, aligned by dynamic time warping as for Whisper.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.whisper import WhisperSearch, Written, timed_words, token_starts
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.models.checkpoints.moonshine import MoonshineParts, read_moonshine
from pianissimo.models.moonshine import Moonshine
from pianissimo.models.packed import packed
from pianissimo.models.whisper import TextRules
from pianissimo.recognizers.base import BaseRecognizer, default_detector
from pianissimo.recognizers.family import Family, LoadOptions
from pianissimo.recognizers.long_form import Decoded, PieceDecoder
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

    def recognize(
        self,
        recordings: Sequence[Iterable[Samples]],
        words: bool,
        latency_ms: int | None = None,
    ) -> Iterator[Transcript]:
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
