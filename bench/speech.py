"""Speech synthesis on one core: time to first audio, real-time factor, and words recognized again.

    OMP_NUM_THREADS=1 python bench/speech.py [--voice NAME] [--no-words]

Processor time is what a core without other work would need. The words are those of the built-in
model whisper-tiny-en, in the normalized form of `evaluate`.
"""

import argparse
import statistics
import time

import torch

import pianissimo
from pianissimo.evaluate.wer import ErrorCounts, word_errors
from pianissimo.text.normalize import normalize_for_scoring

TEXTS = (
    "Seven streams at once.",
    "The meeting begins at half past seven in the evening.",
    "She bought three apples, two pears and a loaf of bread.",
    "Please call me back before Friday, if you can.",
    "The train to the north leaves from the second platform.",
    "It was raining, so we stayed at home and read a book.",
    "Where did you put the keys of the car?",
    "He opened the window and looked down at the street.",
    "Our house stands on a hill above the river.",
    "The doctor said that he should sleep more.",
    "Turn left at the church and follow the road for a mile.",
    "Nobody knew the answer to the last question.",
    "The children played in the garden until it was dark.",
    "I would like a cup of coffee with milk, please.",
    "This summer was the hottest in a hundred years.",
    "The letter arrived on Monday, but nobody opened it.",
    "They walked along the beach and talked about the future.",
    "A small boat crossed the lake in the morning fog.",
    "My brother works as a teacher in another town.",
    "Everything was quiet after the storm had passed.",
)
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--voice", help="name or directory of a voice")
    parser.add_argument("--no-words", action="store_true", help="only measure the speed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    voice = pianissimo.load_voice(options.voice, device="cpu")
    print(f"voice {voice.name}: loaded in {time.perf_counter() - started:.2f} s")
    spoken = [voice.speak(text, seed=0) for text in TEXTS]
    for name, clock in (("wall", time.perf_counter), ("processor", time.process_time)):
        firsts, factors = list[float](), list[float]()
        for text in REPEATS * TEXTS:
            started = clock()
            blocks = voice.stream(text, seed=0)
            count = len(next(blocks))
            firsts.append(clock() - started)
            count += sum(map(len, blocks))
            factors.append((clock() - started) / (count / voice.sample_rate))
        middle, late = statistics.median(firsts), statistics.quantiles(firsts, n=20)[-1]
        print(f"{name} time to first audio: p50 {1000 * middle:.0f} ms, p95 {1000 * late:.0f} ms")
        middle, late = statistics.median(factors), statistics.quantiles(factors, n=20)[-1]
        print(f"{name} real-time factor: p50 {middle:.3f}, p95 {late:.3f}")
    if not options.no_words:
        recognizer = pianissimo.load("whisper-tiny-en", device="cpu")
        total = ErrorCounts()
        for text, samples in zip(TEXTS, spoken, strict=True):
            found = recognizer.transcribe(samples, sample_rate=voice.sample_rate).text
            counts = word_errors(normalize_for_scoring(text), normalize_for_scoring(found))
            total += counts
            if counts.errors:
                print(f"  {text!r} was recognized as {found!r}")
        print(f"recognized again: {total.errors} of {total.words} words wrong")


if __name__ == "__main__":
    main()
