"""Hotwords, beams and language models on human recordings.

    python bench/decoding.py [boosting] [beams] [lm] --data MANIFEST [--subset an4 ...]
        [--train MANIFEST] [--most N] [--model NAME]

`boosting`: the rare words of each recording are boosted among 1,000 words that are not in it; the
recall of the rare words, and the insertions of the others. `beams`: word error rates and time by
beam size, with and without rescoring by CTC. `lm`: the same with an n-gram of
the words, and one of the model's tokens, counted from the transcripts of --train. Each part prints
a Markdown table. With --model the phrases are boosted in that model, as it searches by default.

Times are CPU times of one thread per second of audio, without the preparation of the phrases.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import pianissimo
from pianissimo.decoding.hotwords import Phrase
from pianissimo.decoding.lm.arpa import count_ngrams, write_arpa
from pianissimo.decoding.search import Decoding
from pianissimo.evaluate.run import Reference, read_references
from pianissimo.evaluate.wer import ErrorCounts, word_errors
from pianissimo.protocols import Recognizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.normalize import normalize_for_scoring

DISTRACTORS = 1000
WEIGHTS = (0.5, 1.0, 1.5, 2.0, 3.0)
BEAMS = (1, 2, 4, 8)
ORDER = 3
LM_BEAM = 8
WORD_SETTINGS = ((0.3, 0.5), (0.5, 1.5), (0.3, 1.0), (0.2, 0.3))
TOKEN_WEIGHTS = (0.1, 0.2, 0.3)
COMMON = 2
"""A word in at most this number of recordings is rare."""


@dataclass
class Tally:
    """Counts of boosted words over some recordings."""

    errors: ErrorCounts = field(default_factory=ErrorCounts)
    wanted: int = 0
    recalled: int = 0
    false: int = 0

    def take(self, reference: str, text: str, wanted: Sequence[str], others: set[str]) -> None:
        """Count one text: `wanted` are boosted words that were said, `others` were not said."""
        self.errors += word_errors(reference, text)
        said = Counter(reference.split())
        written = Counter(text.split())
        self.wanted += sum(said[word] for word in wanted)
        self.recalled += sum(min(said[word], written[word]) for word in wanted)
        self.false += sum(count for word, count in written.items() if word in others)


def transcribed(
    recognizer: Recognizer, references: Sequence[Reference], boosts: Sequence[list[Phrase]]
) -> tuple[list[str], float, float]:
    """The texts in scoring form, the time they took, and the seconds of audio."""
    texts, audio, spent = [], 0.0, 0.0
    for reference, boost in zip(references, boosts, strict=True):
        prepared = recognizer.boosted(boost) if boost else recognizer
        began = time.process_time()
        transcript = prepared.transcribe(reference.path, word_timestamps=False)
        spent += time.process_time() - began
        texts.append(normalize_for_scoring(transcript.text))
        audio += transcript.duration
    return texts, spent, audio


def row(*cells: object) -> None:
    shown = (f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print(f"| {' | '.join(shown)} |", flush=True)


def head(*names: str) -> None:
    row(*names)
    row(*("---" for _ in names))


def bench_boosting(
    recognizers: Mapping[str, Recognizer],
    references: Sequence[Reference],
    words: Sequence[str],
    weights: Sequence[float],
) -> None:
    """Recall of rare words, and false insertions, by search and weight."""
    spread = Counter(word for r in references for word in set(r.text.split()))
    rng = random.Random(0)
    chosen = [[w for w in sorted(set(r.text.split())) if spread[w] <= COMMON] for r in references]
    kept = [(r, rare) for r, rare in zip(references, chosen, strict=True) if rare]
    kept_references = [r for r, _ in kept]
    distractors = [
        rng.sample([w for w in words if w not in r.text.split()], DISTRACTORS) for r, _ in kept
    ]
    print(f"\n{len(kept)} recordings with {sum(len(rare) for _, rare in kept)} rare words,")
    print(f"each boosted among {DISTRACTORS} words that are not said in it.\n")
    head("search", "weight", "recall %", "false per 100 words", "WER %", "CPU s per s")
    for name, recognizer in recognizers.items():
        for weight in (0.0, *weights):
            boosts = [
                [Phrase(w, weight) for w in (*rare, *others)] if weight else []
                for (_, rare), others in zip(kept, distractors, strict=True)
            ]
            texts, seconds, audio = transcribed(recognizer, kept_references, boosts)
            tally = Tally()
            for (r, rare), others, text in zip(kept, distractors, texts, strict=True):
                tally.take(r.text, text, rare, set(others))
            row(
                name,
                weight or "not boosted",
                100 * tally.recalled / max(tally.wanted, 1),
                100 * tally.false / tally.errors.words,
                100 * tally.errors.rate,
                seconds / audio,
            )


def bench_errors(rows: dict[str, NativeRecognizer], references: Sequence[Reference]) -> None:
    """Word errors and time of some recognizers."""
    head("search", "WER %", "substituted", "deleted", "inserted", "CPU s per s")
    for name, recognizer in rows.items():
        texts, seconds, audio = transcribed(recognizer, references, [[] for _ in references])
        errors = ErrorCounts()
        for reference, text in zip(references, texts, strict=True):
            errors += word_errors(reference.text, text)
        counts = (errors.substitutions, errors.deletions, errors.insertions)
        row(name, 100 * errors.rate, *counts, seconds / audio)


def sentences(manifest: Path) -> list[list[str]]:
    """The words of each transcript of a manifest, in scoring form."""
    lines = manifest.read_text(encoding="utf-8").splitlines()
    texts = (json.loads(line) for line in lines if line.strip())
    return [normalize_for_scoring(t.get("text_norm") or t["text"]).split() for t in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="boosting, beams, lm")
    parser.add_argument("--data", type=Path, required=True, help="manifest with recordings")
    parser.add_argument("--subset", action="append", help="of the manifest; may be repeated")
    parser.add_argument("--train", type=Path, help="manifest whose transcripts are counted")
    parser.add_argument("--most", type=int, help="recordings of each subset, from its beginning")
    parser.add_argument("--model", help="boost the phrases in this model")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS)
    options = parser.parse_args()
    parts = options.parts or ["boosting", "beams", *(["lm"] if options.train else [])]
    if options.model:
        parts = ["boosting"]
    torch.set_num_threads(1)
    references = []
    taken: Counter[str] = Counter()
    for reference in read_references(options.data, options.subset or ["an4"]):
        taken[reference.subset] += 1
        if options.most is None or taken[reference.subset] <= options.most:
            references.append(reference)
    loaded = pianissimo.load("embedded-commands")
    assert isinstance(loaded, NativeRecognizer)
    texts = sentences(options.train) if options.train else [r.text.split() for r in references]

    def made(head: str, **decoding: object) -> NativeRecognizer:
        return NativeRecognizer(
            loaded.model,
            loaded.tokenizer,
            head=head,
            front_end=loaded.front_end,
            decoding=Decoding(**decoding),
        )

    if "boosting" in parts:
        known = sorted({word for text in texts for word in text})
        if len(known) < 2 * DISTRACTORS:
            parser.error("boosting needs --train MANIFEST, to take other words from")
        searches: dict[str, Recognizer] = {
            "transducer greedy": made("transducer"),
            "transducer beam 4": made("transducer", beam=4),
            "CTC greedy": made("ctc"),
            "CTC beam 8": made("ctc", beam=8),
        }
        if options.model:
            searches = {options.model: pianissimo.load(options.model, device="cpu")}
        bench_boosting(searches, references, known, options.weights)
    if "beams" in parts:
        print(f"\n{len(references)} recordings.\n")
        rows = {f"{h}, beam {b}": made(h, beam=b) for h in ("transducer", "ctc") for b in BEAMS}
        for beam in BEAMS[1:]:
            rows[f"transducer alone, beam {beam}"] = made("transducer", beam=beam, rescoring=0.0)
        bench_errors(rows, references)
    if "lm" in parts:
        if options.train is None:
            parser.error("lm needs --train MANIFEST")
        with tempfile.TemporaryDirectory() as folder:
            of_words, of_tokens = Path(folder) / "words.arpa", Path(folder) / "tokens.arpa"
            write_arpa(count_ngrams(texts, ORDER), of_words)
            pieces, encode = loaded.tokenizer.pieces, loaded.tokenizer.encode
            tokens = ([pieces[i] for i in encode(" ".join(text))] for text in texts)
            write_arpa(count_ngrams(tokens, ORDER + 1), of_tokens)
            print(f"\n{len(references)} recordings; n-grams of {len(texts):,} transcripts.\n")
            rows = {}
            for h in ("transducer", "ctc"):
                rows[f"{h}, beam {LM_BEAM}"] = made(h, beam=LM_BEAM)
                for weight, bonus in WORD_SETTINGS:
                    rows[f"{h}, words, weight {weight}, bonus {bonus}"] = made(
                        h, beam=LM_BEAM, lm=of_words, lm_weight=weight, word_bonus=bonus
                    )
                for weight in TOKEN_WEIGHTS:
                    rows[f"{h}, tokens, weight {weight}"] = made(
                        h, beam=LM_BEAM, lm=of_tokens, lm_weight=weight
                    )
            bench_errors(rows, references)


if __name__ == "__main__":
    main()
