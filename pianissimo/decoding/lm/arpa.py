"""n-gram language models in ARPA files: reading, writing, and counting models from text.

Numbers are base-10 logarithms in a file and natural ones here. A file is text, plain or gzip:

    \\data\\  ngram 1=3 ...  \\1-grams:  log10(p) <tab> words <tab> log10(back-off)  ...  \\end\\

Files are checked: every section must have as many lines as the head declares.
"""

import gzip
import io
import math
import os
import zlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pianissimo.errors import CheckpointError, OptionError

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
LARGEST_ORDER = 10
MOST_NGRAMS = 100_000_000
LONGEST_LINE = 1 << 16
LN_10 = math.log(10.0)

_GZIP = b"\x1f\x8b"
_KENLM = b"mmap lm http://kheafield.com/code"


@dataclass(frozen=True)
class Arpa:
    """The n-grams of a model: `words` by id, and one array for each order k from 1 on.

    ngrams: (N_k, k) word ids; log_probs, backoffs: (N_k,) natural logarithms, back-offs of the
    highest order are 0.
    """

    words: tuple[str, ...]
    ngrams: tuple[npt.NDArray[np.int32], ...]
    log_probs: tuple[npt.NDArray[np.float32], ...]
    backoffs: tuple[npt.NDArray[np.float32], ...]

    @property
    def order(self) -> int:
        return len(self.ngrams)


def read_arpa(path: str | os.PathLike[str]) -> Arpa:
    """Read an ARPA file, plain or gzip.

    Raises OptionError for a missing file, CheckpointError with the line for a damaged one, and
    CheckpointError for a KenLM binary, from which words cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(_KENLM))
            file.seek(0)
            if head == _KENLM:
                raise CheckpointError(
                    f"{path} is a KenLM binary, whose words cannot be read; use the ARPA file that "
                    "build_binary made it from, plain or .gz, or make one from its text: "
                    "lmplz -o 3 < TEXT > MODEL.arpa"
                )
            if head.startswith(_GZIP):
                with gzip.open(file, "rb") as unpacked:
                    return _ArpaReader(path, unpacked).read()
            return _ArpaReader(path, file).read()
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or create it again") from error
    except OSError as error:
        raise OptionError(f"language model {path} cannot be read: {error.strerror}") from error


class _ArpaReader:
    def __init__(self, path: str | os.PathLike[str], file: io.BufferedIOBase) -> None:
        self._path, self._file, self._line = path, file, 0

    def read(self) -> Arpa:
        counts = self._head()
        ids: dict[bytes, int] = {}
        ngrams, log_probs, backoffs = [], [], []
        for order, count in enumerate(counts, start=1):
            words, probabilities, weights = self._section(order, count, len(counts), ids)
            ngrams.append(np.frombuffer(words, np.int32).reshape(count, order))
            log_probs.append(np.frombuffer(probabilities, np.float32) * np.float32(LN_10))
            backoffs.append(np.frombuffer(weights, np.float32) * np.float32(LN_10))
        if self._text() != b"\\end\\":
            raise self._fault("expected \\end\\ after the last n-gram that the head declares")
        try:
            texts = tuple(word.decode("utf-8") for word in ids)
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._path} has words that are not UTF-8") from error
        return Arpa(texts, tuple(ngrams), tuple(log_probs), tuple(backoffs))

    def _head(self) -> list[int]:
        if self._text() != b"\\data\\":
            raise self._fault("not an ARPA file; expected \\data\\")
        counts: list[int] = []
        while not (text := self._text()).startswith(b"\\"):
            name, _, number = text.removeprefix(b"ngram").strip().partition(b"=")
            if name.strip() != b"%d" % (len(counts) + 1) or not number.strip().isdigit():
                raise self._fault(f"expected `ngram {len(counts) + 1}=COUNT`")
            counts.append(int(number[:20]))
        if not 1 <= len(counts) <= LARGEST_ORDER or not 0 < sum(counts) <= MOST_NGRAMS:
            raise self._fault(
                f"a model may have orders 1 to {LARGEST_ORDER} and up to {MOST_NGRAMS:,} n-grams"
            )
        self._heading = text
        return counts

    def _section(
        self, order: int, count: int, highest: int, ids: dict[bytes, int]
    ) -> "tuple[array[int], array[float], array[float]]":
        """The n-grams of one order: word ids, base-10 probabilities and back-offs."""
        heading = self._heading if order == 1 else self._text()
        if heading != b"\\%d-grams:" % order:
            raise self._fault(f"expected \\{order}-grams: after {count:,} n-grams were declared")
        words, probabilities, weights = array("i"), array("f"), array("f")
        for _ in range(count):
            parts = self._text().split()
            if len(parts) not in (order + 1, order + 2):
                raise self._fault(f"expected a probability, {order} words and perhaps a back-off")
            try:
                probability = float(parts[0])
                weight = float(parts[order + 1]) if len(parts) > order + 1 else 0.0
                if order == 1:
                    if parts[1] in ids:
                        raise self._fault("a word appears twice")
                    ids[parts[1]] = len(ids)
                words.extend([ids[word] for word in parts[1 : order + 1]])
            except KeyError as error:
                raise self._fault("a word is not among the 1-grams") from error
            except ValueError as error:
                raise self._fault("a probability or back-off is not a number") from error
            if not probability <= 0 or not -1000 < weight < 1000 or not probability > -1000:
                raise self._fault("a base-10 logarithm is not finite, or a probability is above 1")
            probabilities.append(probability)
            weights.append(weight if order < highest else 0.0)
        return words, probabilities, weights

    def _text(self) -> bytes:
        """The next line that is not empty, without white space around it."""
        while line := self._file.readline(LONGEST_LINE):
            self._line += 1
            if len(line) == LONGEST_LINE:
                raise self._fault(f"the line is longer than {LONGEST_LINE} bytes")
            if text := line.strip():
                return text
        raise CheckpointError(f"{self._path} is incomplete; copy it again")

    def _fault(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self._path}, line {self._line}: {reason}")


def write_arpa(model: Arpa, path: str | os.PathLike[str]) -> None:
    """Write a model as an ARPA file, gzip if the name ends in .gz."""
    opened = gzip.open if os.fspath(path).endswith(".gz") else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in _lines(model))


def _lines(model: Arpa) -> Iterator[str]:
    yield "\\data\\"
    for order, ngrams in enumerate(model.ngrams, start=1):
        yield f"ngram {order}={len(ngrams)}"
    tables = zip(model.ngrams, model.log_probs, model.backoffs, strict=True)
    for order, (ngrams, log_probs, backoffs) in enumerate(tables, start=1):
        yield f"\n\\{order}-grams:"
        for ids, log_prob, backoff in zip(ngrams, log_probs, backoffs, strict=True):
            words = " ".join(model.words[i] for i in ids)
            yield f"{log_prob / LN_10:.6f}\t{words}\t{backoff / LN_10:.6f}"
    yield "\n\\end\\"


def count_ngrams(sentences: Iterable[Sequence[str]], order: int = 3) -> Arpa:
    """A model of the sentences by interpolated Kneser-Ney smoothing (Chen and Goodman 1998).

    One discount per order, n1 / (n1 + 2 n2). A sentence is its words, without marks for its ends.
    Raises OptionError for no sentences or an order out of range.
    """
    if not 1 <= order <= LARGEST_ORDER:
        raise OptionError(f"order must be 1 to {LARGEST_ORDER}, not {order}")
    # No order is higher than the longest sentence with its marks.
    counts = [table for table in _counts(sentences, order) if table]
    if not counts:
        raise OptionError("a language model needs at least one sentence with a word")
    words = (UNKNOWN, BEGIN, END, *sorted({w for (w,) in counts[0]} - {UNKNOWN, BEGIN, END}))
    ids = {word: i for i, word in enumerate(words)}
    # <unk> gets its share of the discounted probability; <s> is never predicted.
    lower: dict[tuple[str, ...], float] = {(): 1.0 / (len(words) - 1)}
    probabilities: list[dict[tuple[str, ...], float]] = []
    backoffs: list[dict[tuple[str, ...], float]] = []
    for k, table in enumerate(counts):
        current, left = _discounted(table, lower)
        if k == 0:
            current[(UNKNOWN,)] = left[()] * lower[()]
            current[(BEGIN,)] = 1e-99
        else:
            backoffs.append(left)
        probabilities.append(current)
        lower = current
    backoffs.append({})
    tables: list[list[npt.NDArray[np.generic]]] = [[], [], []]
    for current, left in zip(probabilities, backoffs, strict=True):
        grams = sorted(current, key=lambda gram: [ids[word] for word in gram])
        if len(next(iter(grams))) == 1:
            grams.sort(key=lambda gram: ids[gram[0]])
        tables[0].append(np.array([[ids[word] for word in gram] for gram in grams], np.int32))
        tables[1].append(np.array([math.log(current[gram]) for gram in grams], np.float32))
        tables[2].append(np.array([math.log(left.get(g, 1.0)) for g in grams], np.float32))
    return Arpa(words, *map(tuple, tables))  # type: ignore[arg-type]


def _counts(sentences: Iterable[Sequence[str]], order: int) -> list[Counter[tuple[str, ...]]]:
    """The n-gram counts for Kneser-Ney smoothing, by order.

    The highest order has plain counts. A lower order counts the different words before an n-gram;
    at the beginning of a sentence, where no word comes before it, its plain count.
    """
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        if not sentence:
            continue
        padded = (BEGIN, *sentence, END)
        for end in range(2, len(padded) + 1):
            longest = min(order, end)
            gram = padded[end - longest : end]
            counts[longest - 1][gram] += 1
            # A new n-gram is one more word before its suffix.
            while len(gram) > 1 and counts[len(gram) - 1][gram] == 1:
                gram = gram[1:]
                counts[len(gram) - 1][gram] += 1
    return counts


def _discounted(
    counts: Counter[tuple[str, ...]], lower: dict[tuple[str, ...], float]
) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
    """Probabilities of n-grams, and the probability that each context leaves to shorter ones."""
    once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    totals: defaultdict[tuple[str, ...], int] = defaultdict(int)
    kinds: defaultdict[tuple[str, ...], int] = defaultdict(int)
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    left = {context: discount * kinds[context] / totals[context] for context in totals}
    return {
        gram: (count - discount) / totals[gram[:-1]] + left[gram[:-1]] * lower[gram[1:]]
        for gram, count in counts.items()
    }, left
