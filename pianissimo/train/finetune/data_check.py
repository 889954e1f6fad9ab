"""Checks of training data before training: faults and oddities of the lines of a manifest.

A line with a fault is unusable; a line with an oddity is usable but reported. Transcripts are
respelled in the characters of the model where that loses nothing; files are not changed.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from pianissimo.audio.io import SAMPLE_RATE, Samples, describe, load_audio
from pianissimo.errors import AudioError
from pianissimo.train.data import Utterance, cut_utterance, manifest_lines

SILENT_PEAK = 1e-4
"""Recordings below this peak, -80 dBFS, count as silence."""
SPEAKER_KEYS = ("speaker", "speaker_id")
APOSTROPHES = frozenset("\u2018\u2019\u02bc\u2032`\u00b4")
FAULTS = {
    "line": "invalid line",
    "audio": "audio that cannot be read",
    "silent": "silence",
    "length": "too long or too short",
    "text": "no transcript",
    "letters": "characters that the model cannot write",
    "crowded": "more text than the model can write in the duration",
    "conflict": "the same audio with another transcript",
    "overlap": "audio of the training set in the validation set",
}
ODDITIES = {
    "rate": "recorded below 16 kHz, so high frequencies are missing",
    "channels": "several channels, averaged to one",
    "pace": "unusually much or little text for its length",
    "twice": "the same audio as another line",
    "speaker": "a speaker of the training set in the validation set",
    "spelling": "respelled in characters that the model has",
}


class Writer(Protocol):
    """Encodes transcripts to targets: a `Tokenizer`, or the letters of a CTC model."""

    @property
    def special_ids(self) -> Collection[int]:
        """Ids that never enter text, the unknown id included."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...


class Capacity(Protocol):
    """The rate at which a model can write text; `AsrConfig` is one."""

    @property
    def frame_seconds(self) -> float: ...

    @property
    def ctc(self) -> bool: ...

    @property
    def max_symbols(self) -> int: ...


@dataclass(frozen=True)
class Bounds:
    """Limits of a line: seconds of audio, and characters per second."""

    shortest_seconds: float = 0.1
    longest_seconds: float = 40.0
    characters_per_second: tuple[float, float] = (0.5, 30.0)


@dataclass(frozen=True)
class LineFinding:
    """A fault or an oddity of one line; `kind` is a key of FAULTS or ODDITIES."""

    line: int
    kind: str
    message: str

    @property
    def fatal(self) -> bool:
        return self.kind in FAULTS


@dataclass(frozen=True)
class Line:
    """A usable line in characters of the model; `digest` identifies its audio."""

    number: int
    utterance: Utterance
    digest: bytes

    @property
    def speaker(self) -> str | None:
        names = (self.utterance.extra.get(key) for key in SPEAKER_KEYS)
        return next((str(name) for name in names if name is not None), None)


@dataclass(frozen=True)
class Checked:
    """A checked manifest; `lacking` counts the characters that the model cannot write."""

    manifest: Path
    lines: tuple[Line, ...]
    findings: tuple[LineFinding, ...]
    lacking: Counter[str]

    @property
    def utterances(self) -> list[Utterance]:
        """The utterances of the usable lines."""
        return [line.utterance for line in self.lines]

    @property
    def seconds(self) -> float:
        return sum(line.utterance.duration for line in self.lines)

    @property
    def faulty_lines(self) -> list[int]:
        return sorted({finding.line for finding in self.findings if finding.fatal})

    def without(self, findings: Iterable[LineFinding]) -> "Checked":
        """The same with further findings, without the lines that these make unusable."""
        findings = tuple(findings)
        fatal = {finding.line for finding in findings if finding.fatal}
        lines = tuple(line for line in self.lines if line.number not in fatal)
        return replace(self, lines=lines, findings=(*self.findings, *findings))


def check_manifest(
    path: Path,
    writer: Writer,
    capacity: Capacity,
    *,
    bounds: Bounds | None = None,
) -> Checked:
    """Check every line of a manifest and decode its audio.

    Raises ManifestError for a missing file.
    """
    check = _LineCheck(writer, capacity, bounds or Bounds())
    lines: list[Line] = []
    findings: list[LineFinding] = []
    first: dict[bytes, Line] = {}
    for number, utterance in manifest_lines(path):
        if isinstance(utterance, str):
            findings.append(LineFinding(number, "line", utterance))
            continue
        line, about = check.line(number, utterance)
        findings += about
        if line is None:
            continue
        same = first.setdefault(line.digest, line)
        if same is not line:
            alike = same.utterance.text == line.utterance.text
            kind = "twice" if alike else "conflict"
            findings.append(LineFinding(number, kind, f"same audio as line {same.number}"))
            if not alike:
                continue
        lines.append(line)
    return Checked(path, tuple(lines), tuple(findings), check.spelling.lacking)


def check_overlap(train: Checked, val: Checked) -> Checked:
    """The validation set without audio of the training set; shared speakers are reported."""
    audio = {line.digest: line.number for line in train.lines}
    speakers = {line.speaker: line.number for line in reversed(train.lines) if line.speaker}
    findings = []
    for line in val.lines:
        if line.digest in audio:
            message = f"same audio as line {audio[line.digest]} of {train.manifest}"
            findings.append(LineFinding(line.number, "overlap", message))
        elif line.speaker in speakers:
            message = (
                f"{line.speaker!r} is also on line {speakers[line.speaker]} of the training set"
            )
            findings.append(LineFinding(line.number, "speaker", message))
    return val.without(findings)


class Spelling:
    """Transcripts in characters that a model can write.

    A character that the model lacks is replaced by its other case, by a plain apostrophe or, if it
    is a mark, by a space; other characters are counted in `lacking`.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._known: dict[str, str | None] = {" ": " "}
        self.lacking: Counter[str] = Counter()

    def fit(self, text: str) -> tuple[str, str]:
        """The respelled text, and the characters without a replacement."""
        text = " ".join(unicodedata.normalize("NFC", text).split())
        lost = "".join(sorted({c for c in text if self._replacement(c) is None}))
        self.lacking.update(c for c in text if c in lost)
        respelled = "".join(self._replacement(c) or "" for c in text)
        return " ".join(respelled.split()), lost

    def _replacement(self, character: str) -> str | None:
        if character not in self._known:
            others = [character, character.lower(), character.upper()]
            others += ["'"] if character in APOSTROPHES else []
            fits = next((c for c in others if self._has(c)), None)
            if fits is None and unicodedata.category(character)[0] in "PSC":
                fits = " "
            self._known[character] = fits
        return self._known[character]

    def _has(self, character: str) -> bool:
        ids = self._writer.encode(character)
        lost = any(id in self._writer.special_ids for id in ids)
        return not lost and bool(self._writer.decode(ids).strip())


class _LineCheck:
    """The check of single lines; caches the last recording, of which several lines may be parts."""

    def __init__(self, writer: Writer, capacity: Capacity, bounds: Bounds) -> None:
        self.writer, self.capacity, self.bounds = writer, capacity, bounds
        self.spelling = Spelling(writer)
        self._last: tuple[Path, Samples, list[tuple[str, str]]] | None = None

    def line(self, number: int, u: Utterance) -> tuple[Line | None, list[LineFinding]]:
        """The line, None if it is unusable, and its findings."""
        text, lost = self.spelling.fit(u.text)
        about = list(self._about_text(u, text, lost))
        digest = b""
        try:
            recording, oddities = self._recording(u.path)
            samples = cut_utterance(u, recording)
        except (AudioError, ValueError) as error:
            about.append(("audio", str(error)))
        else:
            about += [*oddities, *self._about_audio(u, samples)]
            digest = hashlib.blake2b(samples.tobytes(), digest_size=16).digest()
        findings = [LineFinding(number, kind, message) for kind, message in about]
        if any(finding.fatal for finding in findings):
            return None, findings
        return Line(number, replace(u, text=text), digest), findings

    def _about_text(self, u: Utterance, text: str, lost: str) -> Iterator[tuple[str, str]]:
        if lost:
            names = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in lost)
            yield "letters", f"{names} in {u.text[:60]!r}"
        elif not text:
            yield "text", f"the transcript {u.text[:60]!r} has no words"
        elif text != " ".join(u.text.split()):
            yield "spelling", f"{u.text[:60]!r} becomes {text[:60]!r}"
        low, high = self.bounds.characters_per_second
        pace = len(text) / u.duration
        if text and not low <= pace <= high:
            yield "pace", f"{pace:.1f} characters per second: {text[:60]!r}"
        frames = int(u.duration / self.capacity.frame_seconds)
        most = frames if self.capacity.ctc else frames * self.capacity.max_symbols
        tokens = len(self.writer.encode(text))
        if tokens > most:
            yield "crowded", f"{tokens} tokens in {u.duration:.2f} s, at most {most}"

    def _about_audio(self, u: Utterance, samples: Samples) -> Iterator[tuple[str, str]]:
        shortest, longest = self.bounds.shortest_seconds, self.bounds.longest_seconds
        if not shortest <= u.duration <= longest:
            yield "length", f"{u.duration:.2f} s, expected {shortest:g} to {longest:g} s"
        if not len(samples) or float(np.abs(samples).max()) < SILENT_PEAK:
            yield "silent", f"{u.path} is silent from {u.offset:g} s on for {u.duration:g} s"

    def _recording(self, path: Path) -> tuple[Samples, list[tuple[str, str]]]:
        if self._last is None or self._last[0] != path:
            info, oddities = describe(path), []
            if info.sample_rate < SAMPLE_RATE:
                oddities.append(("rate", f"{info.sample_rate} Hz"))
            if info.channels > 1:
                oddities.append(("channels", f"{info.channels} channels"))
            self._last = path, load_audio(path), oddities
        return self._last[1], self._last[2]


def render(checked: Sequence[Checked]) -> str:
    """The report as text: every fault with its line, and the lines of each oddity."""
    return "\n".join(line for one in checked for line in _rendered(one))


def _rendered(one: Checked) -> Iterator[str]:
    speakers = {line.speaker for line in one.lines} - {None}
    by = f", {len(speakers)} speakers" if speakers else ""
    faulty = one.faulty_lines
    yield (
        f"{one.manifest}: {len(one.lines)} usable lines, {one.seconds / 60:.1f} minutes{by}"
        + (f"; {len(faulty)} lines with faults" if faulty else "; no faults")
    )
    for kind, title in FAULTS.items():
        findings = [finding for finding in one.findings if finding.kind == kind]
        if findings:
            yield f"  {title}:"
            yield from (f"    line {finding.line}: {finding.message}" for finding in findings)
    if one.lacking:
        counts = ", ".join(f"{c!r} {n} times" for c, n in one.lacking.most_common())
        yield f"  characters that the model lacks: {counts}"
    for kind, title in ODDITIES.items():
        findings = [finding for finding in one.findings if finding.kind == kind]
        if findings:
            yield f"  note: {title}: lines {ranges([finding.line for finding in findings])}"
            yield f"    for example line {findings[0].line}: {findings[0].message}"


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers, runs of them as "3-7"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
