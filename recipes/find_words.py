"""Where each word of the training recordings lies, by PocketSphinx's forced alignment.

    pip install pocketsphinx
    python recipes/find_words.py --data DIR --run runs/embedded_en

Writes `words.jsonl` into the run's folder: one line a recording, `words` as [text, start, end] in
seconds. Recordings with words that its dictionary lacks, or that do not align, are left out. About
seven minutes on one core for 6.6 hours; an interrupted run starts over.
"""

import argparse
import json
import re
from pathlib import Path

import embedded_en
import numpy as np
from pocketsphinx import Decoder

from pianissimo.train.data import AudioCache

FRAMES_PER_SECOND = 100


def align(decoder: Decoder, samples: np.ndarray, text: str) -> list[tuple[str, float, float]]:
    """The words of `text` with start and end in seconds; none if it cannot be aligned."""
    originals = text.split()
    words = re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).split()
    if len(words) != len(originals) or any(decoder.lookup_word(w) is None for w in words):
        return []
    pcm = (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()
    try:
        decoder.set_align_text(" ".join(words))
        decoder.start_utt()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
    except RuntimeError:
        return []
    # Fillers are in angle or square brackets, alternative pronunciations end in "(2)".
    segments = [s for s in decoder.seg() or () if s.word[0] not in "<[(" and s.word != "(NULL)"]
    if [re.sub(r"\(\d+\)$", "", s.word) for s in segments] != words:
        return []
    return [
        (word, s.start_frame / FRAMES_PER_SECOND, (s.end_frame + 1) / FRAMES_PER_SECOND)
        for word, s in zip(originals, segments, strict=True)
    ]


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
            words = align(decoder, audio[i], utterance.text)
            if words:
                out.write(json.dumps({"recording": i, "words": words}) + "\n")
    partial.rename(options.run / "words.jsonl")


if __name__ == "__main__":
    main()
