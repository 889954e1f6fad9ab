"""Word error rates of the built-in models beside other recognizers, on the same recordings.

    python bench/accuracy.py MANIFEST [--clips 40] [--seed 0] [--subsets an4,librispeech,...]
        [--systems whisper-tiny-en,...] [--tiny FOLDER] [--base FOLDER] [-o accuracy.json]

MANIFEST has JSON lines with `audio_filepath`, `text` and `subset`, of which each subset gives
`--clips` recordings, drawn with the seed. `--tiny` and `--base` are folders of Whisper in
CTranslate2's layout; faster-whisper computes them in int8 with its own segmentation and default
fallbacks, once greedy and once with a beam of five. PocketSphinx takes part where it is installed.
What cannot run is named and left out.

Errors are counted in two forms. *Normalized*: both texts by Whisper's English normalizer, numbers
as digits, contractions and fillers undone (its table of British spellings is not part of
Transformers). *Spoken*: numbers and spelled letters as words, each recording in the reading of its
numbers (digit by digit, as a number, in pairs) that has the fewest errors: a text in digits is no
error where the reference spells them.
"""

import argparse
import importlib.util
import json
import platform
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SUBSETS = ("an4", "librispeech", "librispeech-other", "vctk", "speechocean762")
SYSTEMS = (
    "embedded-commands",
    "whisper-tiny-en",
    "faster-whisper tiny.en greedy",
    "faster-whisper tiny.en beam 5",
    "faster-whisper base greedy",
    "faster-whisper base beam 5",
    "pocketsphinx",
)
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
Transcribe = Callable[[np.ndarray], str]


@dataclass
class Clip:
    samples: np.ndarray
    text: str
    subset: str


# -- forms of a text -------------------------------------------------------------------------------


def cardinal(number: int) -> str:
    """12345 -> "twelve thousand three hundred forty five"; numbers below a billion."""
    for size, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            return f"{cardinal(number // size)} {name}" + (f" {cardinal(rest)}" if rest else "")
    if number < 20:
        return ONES[number]
    return TENS[number // 10 - 2] + (f" {ONES[number % 10]}" if number % 10 else "")


def digit_by_digit(digits: str) -> str:
    return " ".join(ONES[int(digit)] for digit in digits)


def in_pairs(digits: str) -> str:
    """1984 -> "nineteen eighty four"; an odd first digit is alone."""
    first = len(digits) % 2
    pairs = [digits[:first]] if first else []
    pairs += [digits[i : i + 2] for i in range(first, len(digits), 2)]
    return " ".join(
        digit_by_digit(pair) if pair.startswith("0") else cardinal(int(pair)) for pair in pairs
    )


def as_number(digits: str) -> str:
    if len(digits) > 9 or digits.startswith("0"):
        return digit_by_digit(digits)
    return cardinal(int(digits))


READINGS = (digit_by_digit, as_number, in_pairs)


def spoken(text: str, reading: Callable[[str], str]) -> str:
    """Numbers in that reading, and words of capitals ("ABF", "Q57") letter by letter."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    if not text.isupper():
        text = re.sub(r"\b[A-Z]{2,}\b|\b[A-Z]+(?=\d)", lambda m: " ".join(m[0]) + " ", text)
    return re.sub(r"\d+", lambda match: f" {reading(match[0])} ", text)


def normalized_errors(reference: str, text: str) -> tuple[int, int]:
    """Errors and words by Whisper's normalizer."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    from pianissimo.evaluate.wer import word_errors

    normalize = EnglishTextNormalizer({})
    counts = word_errors(normalize(reference), normalize(text))
    return counts.substitutions + counts.deletions + counts.insertions, counts.words


def spoken_errors(reference: str, text: str) -> tuple[int, int]:
    """Errors and words of the readings of both texts that have the fewest."""
    from pianissimo.evaluate.wer import word_errors
    from pianissimo.text.normalize import normalize_for_scoring

    best: tuple[int, int] | None = None
    for reading in READINGS:
        theirs, ours = (normalize_for_scoring(spoken(t, reading)) for t in (reference, text))
        counts = word_errors(theirs, ours)
        errors = counts.substitutions + counts.deletions + counts.insertions
        if best is None or errors < best[0]:
            best = errors, counts.words
    assert best is not None
    return best


# -- systems ---------------------------------------------------------------------------------------


def pianissimo_system(name: str) -> Transcribe:
    import pianissimo

    recognizer = pianissimo.load(name, device="cpu")

    def transcribe(samples: np.ndarray) -> str:
        return recognizer.transcribe(samples, sample_rate=16_000, word_timestamps=False).text

    return transcribe


def faster_whisper_system(folder: Path | None, beam: int) -> Transcribe:
    if folder is None:
        raise RuntimeError("needs --tiny or --base, a folder of the model")
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def transcribe(samples: np.ndarray) -> str:
        segments, _ = model.transcribe(samples, language="en", beam_size=beam)
        return " ".join(segment.text.strip() for segment in segments)

    return transcribe


def pocketsphinx_system() -> Transcribe:
    if importlib.util.find_spec("pocketsphinx") is None:
        raise RuntimeError("PocketSphinx is not installed (pip install pocketsphinx)")
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=16_000, loglevel="FATAL")

    def transcribe(samples: np.ndarray) -> str:
        decoder.start_utt()
        data = (np.clip(samples, -1, 1) * 32_767).astype(np.int16).tobytes()
        decoder.process_raw(data, full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        return "" if hypothesis is None else hypothesis.hypstr

    return transcribe


def system(name: str, tiny: Path | None, base: Path | None) -> Transcribe:
    if name == "pocketsphinx":
        return pocketsphinx_system()
    if name.startswith("faster-whisper"):
        beam = 1 if name.endswith("greedy") else 5
        return faster_whisper_system(tiny if "tiny.en" in name else base, beam)
    return pianissimo_system(name)


# -- measurement -----------------------------------------------------------------------------------


def draw(manifest: Path, subsets: list[str], clips: int, seed: int) -> Iterator[Clip]:
    from pianissimo.audio.io import load_audio

    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for subset in subsets:
        inside = [row for row in rows if row.get("subset") == subset]
        if not inside:
            raise SystemExit(f"{manifest} has no subset {subset!r}")
        for row in random.Random(seed).sample(inside, min(clips, len(inside))):
            samples = load_audio(manifest.parent / row["audio_filepath"])
            yield Clip(samples, row["text"], subset)


def measure(transcribe: Transcribe, clips: list[Clip]) -> dict[str, dict[str, list[int]]]:
    """Errors and words by subset and form."""
    totals: dict[str, dict[str, list[int]]] = {}
    for clip in clips:
        text = transcribe(clip.samples)
        forms = totals.setdefault(clip.subset, {"normalized": [0, 0], "spoken": [0, 0]})
        for form, count in (("normalized", normalized_errors), ("spoken", spoken_errors)):
            errors, words = count(clip.text, text)
            forms[form][0] += errors
            forms[form][1] += words
    return totals


def processor() -> str:
    """The name of the processor (Linux), or what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subsets", default=",".join(SUBSETS))
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--tiny", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    subsets, names = options.subsets.split(","), options.systems.split(",")
    if unknown := set(names) - set(SYSTEMS):
        parser.error(f"unknown systems {', '.join(unknown)}; choose from {', '.join(SYSTEMS)}")
    clips = list(draw(options.manifest, subsets, options.clips, options.seed))
    audio = sum(len(clip.samples) for clip in clips) / 16_000
    print(f"{len(clips)} recordings, {audio:.0f} s; {processor()}")
    print("| system | " + " | ".join(subsets) + " | seconds of audio per second of CPU |")
    print("|---" * (len(subsets) + 2) + "|")
    found: dict[str, object] = {}
    for name in names:
        try:
            transcribe = system(name, options.tiny, options.base)
        except (RuntimeError, ImportError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        transcribe(clips[0].samples)  # the first call prepares
        began = time.process_time()
        totals = measure(transcribe, clips)
        speed = audio / (time.process_time() - began)
        cells = [
            " / ".join(f"{100 * errors / words:.1f}" for errors, words in totals[subset].values())
            for subset in subsets
        ]
        print(f"| {name} | " + " | ".join(cells) + f" | {speed:.1f} |", flush=True)
        found[name] = {"errors_and_words": totals, "times_realtime": speed}
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
