"""Forced alignment of words and phones of the training recordings by PocketSphinx.

    pip install pocketsphinx
    python recipes/find_words.py --data DIR --run runs/embedded_en

Writes `words.jsonl` into the run's folder: one line per recording, `words` and `phones` as
[text, start, end] in seconds. Recordings with words outside the dictionary, or without an
alignment, are skipped. 6.6 hours take about 15 minutes on one core; an interrupted run starts over.
"""

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import embedded_en
import numpy as np
from pocketsphinx import Decoder

from pianissimo.train.data import AudioCache

FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class Alignment:
    """An alignment: (text, start, end) in seconds, words as in the transcript."""

    words: list[tuple[str, float, float]]
    phones: list[tuple[str, float, float]]


def align(decoder: Decoder, samples: np.ndarray, text: str) -> Alignment | None:
    """Words and phones of `text`, silence among the phones; None if it cannot be aligned."""
    originals = text.split()
    words = re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).split()
    if len(words) != len(originals) or any(decoder.lookup_word(w) is None for w in words):
        return None
    pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()
    try:
        decoder.set_align_text(" ".join(words))
        process(decoder, pcm)
        # Fillers are in angle or square brackets, alternative pronunciations end in "(2)".
        segments = [s for s in decoder.seg() or () if s.word[0] not in "<[(" and s.word != "(NULL)"]
        if [re.sub(r"\(\d+\)$", "", s.word) for s in segments] != words:
            return None
        decoder.set_alignment()  # a second pass for the phones of these words
        process(decoder, pcm)
        phones = [
            (phone.name, *seconds(phone.start, phone.start + phone.duration))
            for word in decoder.get_alignment()
            for phone in word
        ]
    except RuntimeError:
        return None
    aligned = zip(originals, segments, strict=True)
    return Alignment([(w, *seconds(s.start_frame, s.end_frame + 1)) for w, s in aligned], phones)


def process(decoder: Decoder, pcm: bytes) -> None:
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()


def seconds(start: int, end: int) -> tuple[float, float]:
    return start / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    options = parser.parse_args()
    utterances = embedded_en.read_data(options.data)
    audio = AudioCache(utterances, options.run / "cache")
    decoder = Decoder(lm=None, loglevel="FATAL", samprate=16000, bestpath=False)
    partial = options.run / "words.partial"
    with partial.open("w", encoding="utf-8") as out:
        for i, utterance in enumerate(utterances):
            alignment = align(decoder, audio[i], utterance.text)
            if alignment is not None:
                out.write(json.dumps({"recording": i, **asdict(alignment)}) + "\n")
    partial.rename(options.run / "words.jsonl")


if __name__ == "__main__":
    main()
