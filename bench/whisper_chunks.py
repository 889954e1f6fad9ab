"""Word errors of a Whisper whose encoder lives in chunks, by the size of the chunks.

    python bench/whisper_chunks.py MODEL MANIFEST --subsets librispeech --encoder FILE --clips 30

Each clip goes through the gain front end, is heard in chunks with a constant in place of its own
loudest cell, and is decoded greedily from its frames and those of 10 s of silence behind it: what a
live stream has at a final. "whole" is the model as published. `--encoder` takes the weights of the
encoder from another file, such as the average of a distillation that is still running. Errors are
counted as by Whisper's English normalizer.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accuracy import normalized_errors
from safetensors.torch import load_file
from torch import Tensor

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples, load_audio
from pianissimo.audio.whisper_features import (
    HOP,
    LIVE_PEAK,
    log_mel,
    mel_filters,
    scaled,
    window_of,
)
from pianissimo.decoding.whisper import WhisperSearch, Written
from pianissimo.evaluate.run import Reference, read_references
from pianissimo.models.whisper import FRAME_SECONDS
from pianissimo.recognizers.whisper import read_parts
from pianissimo.text.loops import trim_loop

WHOLE = 0
TOKENS_PER_SECOND, TOKENS_ALWAYS = 7, 12
SEED = 5


class Chunked:
    """One model, heard whole or in chunks."""

    def __init__(self, model: Path, encoder: Path | None, left: int, silence: float) -> None:
        self.parts = read_parts(model)
        if encoder is not None:
            self.parts.network.encoder.load_state_dict(load_file(encoder))
        self.left, self.silence = left, silence
        self.filters = mel_filters(self.parts.network.config.n_mels)
        tokens = self.parts.tokenizer
        self.search = WhisperSearch(
            self.parts.network.decoder,
            self.parts.rules,
            end=tokens.end,
            no_speech=tokens.no_speech,
        )
        language = "en" if self.parts.rules.multilingual else None
        self.prompt = tokens.prompt(language, "transcribe")

    @torch.inference_mode()
    def text(self, samples: Samples, loud: Samples, chunk: int) -> str:
        """What is made of samples (n,), and of them at level (n,) where they are chunked."""
        seconds = len(samples) / SAMPLE_RATE
        limit = min(200, TOKENS_ALWAYS + int(TOKENS_PER_SECOND * seconds))
        frames = self._frames(samples, loud, chunk)
        [written] = self.search.greedy(self.search.begin(frames, [self.prompt]), [limit])
        return self.parts.tokenizer.decode(self._cut(written).tokens)

    def _frames(self, samples: Samples, loud: Samples, chunk: int) -> Tensor:
        encoder = self.parts.network.encoder
        if chunk == WHOLE:
            return encoder(scaled(log_mel(window_of(torch.from_numpy(samples), 30), self.filters)))
        window = window_of(torch.from_numpy(loud), 30)
        most = round((len(loud) / SAMPLE_RATE + self.silence) / FRAME_SECONDS) * 2 * HOP
        mel = scaled(log_mel(window[:, :most], self.filters), LIVE_PEAK)
        return encoder.chunked(mel, chunk, self.left)

    @staticmethod
    def _cut(written: Written) -> Written:
        return Written(trim_loop(written.tokens), written.log_probs, written.ended)


def clips(manifest: Path, subset: str, most: int) -> Iterator[tuple[Reference, Samples]]:
    """Clips of a subset that fit into a window, the same ones each time."""
    found = read_references(manifest, [subset])
    random.Random(SEED).shuffle(found)
    for reference in found[:most]:
        samples = load_audio(reference.path)
        if len(samples) <= 28 * SAMPLE_RATE:
            yield reference, samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--subsets", nargs="+", required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--chunks", nargs="+", type=int, default=[56, 28, 8, 4, WHOLE])
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--left", type=int, default=280)
    parser.add_argument("--silence", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Chunked(options.model, options.encoder, options.left, options.silence)
    front_end = FrontEnd("on")
    for subset in options.subsets:
        errors = dict.fromkeys(options.chunks, 0)
        start, number, words = time.monotonic(), 0, 0
        for reference, samples in clips(options.manifest, subset, options.clips):
            loud, number = front_end.whole(samples).samples, number + 1
            for chunk in options.chunks:
                text = model.text(samples, loud, chunk)
                wrong, said = normalized_errors(reference.text, text)
                errors[chunk] += wrong
            words += said
        rates = "  ".join(
            f"{'whole' if chunk == WHOLE else f'{chunk * 20} ms'} {100 * wrong / words:.1f}"
            for chunk, wrong in errors.items()
        )
        seconds = time.monotonic() - start
        print(f"{subset}: {rates}  ({number} clips, {words} words, {seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
