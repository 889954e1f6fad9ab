"""When the detectors of turns end a turn: false ends inside utterances, and delay at true ends.

    python bench/turns.py [--speech DIRECTORY] [--smart-turn pipecat] [--cache runs/turns.jsonl]

Every pause of at least 0.2 s in recorded utterances, and the end of each, is judged by a fixed
silence, by the text so far and by Smart Turn. What a judge sees is computed once and kept in the
cache. The waits of each judge are chosen on half of the speakers and reported on the others.
"""

import argparse
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.progress import track

import pianissimo
from pianissimo.agent.smart_turn import SmartTurn, SmartTurnModel
from pianissimo.agent.turn_detector import RESUME_SECONDS, VoiceTurns
from pianissimo.agent.turn_rules import EndJudgment, TextRules, is_open
from pianissimo.audio.io import SAMPLE_RATE, Samples, load_audio
from pianissimo.protocols import Recognizer
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.streaming.input import StreamInput

SPEECH = Path(__file__).resolve().parents[2] / "shared" / "data" / "speech"
SUBSETS = ("librispeech", "librispeech-other", "vctk", "speechocean762", "an4")
MOST_PER_SUBSET = 40
TAIL_SECONDS = 1.0
LEVEL = 1e-4
"""Of the noise behind an utterance."""
BLOCK = SAMPLE_RATE // 50
MEAN_DELAYS = (0.5, 0.7)
"""In seconds; the tuned judges may not exceed them on average."""
WAITS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5, 2.0)


@dataclass(frozen=True)
class Pause:
    """What a judge sees at a pause, and how long the pause was; None at the end of the speech."""

    subset: str
    speaker: str
    utterance: str
    seconds: float | None
    text: str
    probability: float


class Recorder:
    """A judge that never ends a turn, and keeps what it was asked."""

    least_seconds = 0.2

    def __init__(self) -> None:
        self.turns: list[Samples] = []

    def judge(self, turn: Samples, text: str, ended: bool = False) -> EndJudgment:
        self.turns.append(turn)
        return EndJudgment(0.0, float("inf"))


def pauses(
    row: dict[str, str], samples: Samples, recognizer: BaseRecognizer, network: SmartTurnModel
) -> Iterator[Pause]:
    """The pauses of one utterance, and its end."""
    noise = np.random.default_rng(0).normal(0, LEVEL, round(TAIL_SECONDS * SAMPLE_RATE))
    audio = np.concatenate([samples, noise.astype(np.float32)])
    intake, recorder = StreamInput(SAMPLE_RATE, SAMPLE_RATE, recognizer.front_end), Recorder()
    detector = VoiceTurns(recorder)
    found: list[list[float | None]] = []  # begin and end of each pause
    for start in range(0, len(audio), BLOCK):
        block = intake.push(audio[start : start + BLOCK])
        while signals := detector.push(block):
            block = block[:0]
            for signal in signals:
                if signal.kind == "paused":
                    found.append([signal.at, None])
                elif signal.kind == "resumed":
                    found[-1][1] = signal.at - RESUME_SECONDS
                    del found[len(recorder.turns) :]  # it was over before the judge was asked
    for (begin, end), turn in zip(found, recorder.turns, strict=True):
        assert begin is not None
        until = round((begin + recorder.least_seconds) * SAMPLE_RATE)
        text = recognizer.transcribe(audio[:until], sample_rate=SAMPLE_RATE).text
        seconds = None if end is None else round(end - begin, 3)
        yield Pause(
            row["subset"],
            row["speaker"],
            row["audio_filepath"],
            seconds,
            text,
            round(network.probability(turn), 4),
        )


def collect(folder: Path, cache: Path, recognizer: Recognizer, network: SmartTurnModel) -> None:
    """Add the pauses of the utterances that the cache lacks to it."""
    assert isinstance(recognizer, BaseRecognizer)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    chosen = [[row for row in rows if row["subset"] == subset] for subset in SUBSETS]
    spread = [group[:: max(1, len(group) // MOST_PER_SUBSET)] for group in chosen]
    cache.parent.mkdir(parents=True, exist_ok=True)
    known = {pause.utterance for pause in read(cache)}
    order = [row for each in itertools.zip_longest(*spread) for row in each if row is not None]
    missing = [row for row in order if row["audio_filepath"] not in known]
    for row in track(missing, "judging pauses", disable=not sys.stderr.isatty()):
        samples = load_audio(folder / row["audio_filepath"])
        found = list(pauses(row, samples, recognizer, network))
        with cache.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(pause)) + "\n" for pause in found)


def read(cache: Path) -> list[Pause]:
    if not cache.exists():
        return []
    return [Pause(**json.loads(line)) for line in cache.read_text(encoding="utf-8").splitlines()]


def halves(found: list[Pause]) -> tuple[list[Pause], list[Pause]]:
    """For choosing and for reporting, by speaker."""
    parts: tuple[list[Pause], list[Pause]] = ([], [])
    for pause in found:
        digest = hashlib.sha256(f"{pause.subset}/{pause.speaker}".encode()).digest()
        parts[digest[0] % 2].append(pause)
    return parts


Wait = Callable[[Pause], float]
"""The silence after which a judge ends the turn, in seconds."""


def fixed(seconds: float) -> Wait:
    return lambda pause: seconds


def by_text(rules: TextRules) -> Wait:
    return lambda pause: rules.judge(np.zeros(0, np.float32), pause.text).wait_seconds


def by_smart_turn(complete: float, incomplete: float) -> Wait:
    def wait(pause: Pause) -> float:
        confidence = pause.probability / (2 if is_open(pause.text) else 1)
        return complete if confidence >= 0.5 else incomplete

    return wait


def by_both(complete: float, rules: TextRules) -> Wait:
    """Smart Turn shortens the wait; where it does not call the turn complete the text decides."""

    def wait(pause: Pause) -> float:
        text = rules.judge(np.zeros(0, np.float32), pause.text).wait_seconds
        open_text = is_open(pause.text)
        return min(complete, text) if pause.probability >= 0.5 and not open_text else text

    return wait


def false_ends(wait: Wait, found: list[Pause]) -> int:
    return sum(p.seconds is not None and wait(p) <= p.seconds for p in found)


def delays(wait: Wait, found: list[Pause]) -> list[float]:
    return [wait(p) for p in found if p.seconds is None]


def best(
    candidates: Iterable[tuple[str, Wait]], found: list[Pause], mean: float
) -> tuple[str, Wait]:
    """Of the candidates with at most this mean delay the one with the fewest false ends."""
    allowed = [each for each in candidates if np.mean(delays(each[1], found)) <= mean + 1e-9]
    return min(
        allowed, key=lambda each: (false_ends(each[1], found), np.mean(delays(each[1], found)))
    )


def text_candidates() -> Iterator[tuple[str, Wait]]:
    for ended, plain, open_ in itertools.combinations_with_replacement(WAITS, 3):
        rules = TextRules(ended, plain, open_)
        yield f"text: {ended:g} / {plain:g} / {open_:g} s", by_text(rules)


def smart_candidates() -> Iterator[tuple[str, Wait]]:
    for complete, incomplete in itertools.combinations(WAITS, 2):
        name = f"Smart Turn: {complete:g} / {incomplete:g} s"
        yield name, by_smart_turn(complete, incomplete)


def both_candidates() -> Iterator[tuple[str, Wait]]:
    for complete, ended, open_ in itertools.combinations_with_replacement(WAITS, 3):
        rules = replace(TextRules(), ended_seconds=ended, plain_seconds=ended, open_seconds=open_)
        yield (
            f"Smart Turn, then text: {complete:g} / {ended:g} / {open_:g} s",
            by_both(complete, rules),
        )


def table(judges: list[tuple[str, Wait]], found: list[Pause]) -> Iterator[str]:
    inside = sum(pause.seconds is not None for pause in found)
    ends = len(found) - inside
    yield f"{inside} pauses inside of utterances, {ends} ends"
    yield ""
    yield "| judge | false ends | delay p50 ms | p95 ms | mean ms |"
    yield "|---|---|---|---|---|"
    for name, wait in judges:
        times = 1000 * np.array(delays(wait, found))
        p50, p95 = np.percentile(times, [50, 95])
        wrong = false_ends(wait, found)
        share = 100 * wrong / max(1, inside)
        yield f"| {name} | {wrong} ({share:.0f} %) | {p50:.0f} | {p95:.0f} | {times.mean():.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    speech = Path(os.environ.get("PIANISSIMO_SPEECH", SPEECH))
    parser.add_argument("--speech", type=Path, default=speech, help="directory of manifest.jsonl")
    parser.add_argument("--smart-turn", default="pipecat", help="path of the .onnx, or pipecat")
    parser.add_argument("-m", "--model", default="whisper-tiny-en", help="what hears the words")
    parser.add_argument("--cache", type=Path, default=Path("runs/turns.jsonl"))
    given = parser.parse_args()
    network = SmartTurnModel(given.smart_turn)
    collect(given.speech, given.cache, pianissimo.load(given.model, device="cpu"), network)
    tuning, reported = halves(read(given.cache))
    shipped = TextRules()
    judges = [
        *((f"silence: {seconds:g} s", fixed(seconds)) for seconds in (0.4, 0.5, 0.6, 0.7, 1.0)),
        ("text: 0.35 / 0.6 / 1.2 s (before)", by_text(TextRules(0.35, 0.6, 1.2))),
        (
            f"text: {shipped.ended_seconds:g} / {shipped.plain_seconds:g} / "
            f"{shipped.open_seconds:g} s (now)",
            by_text(shipped),
        ),
        ("Smart Turn: 0.25 / 1.5 s (before)", by_smart_turn(0.25, 1.5)),
        (
            f"Smart Turn: {SmartTurn.complete_seconds:g} / {shipped.open_seconds:g} s (now)",
            by_smart_turn(SmartTurn.complete_seconds, shipped.open_seconds),
        ),
        *(
            best(candidates, tuning, mean)
            for mean in MEAN_DELAYS
            for candidates in (
                list(text_candidates()),
                list(smart_candidates()),
                list(both_candidates()),
            )
        ),
    ]
    for title, half in (("chosen on", tuning), ("reported on", reported)):
        speakers = len({(pause.subset, pause.speaker) for pause in half})
        print(f"\n{title}: {speakers} speakers, ", end="")
        print("\n".join(table(judges, half)))


if __name__ == "__main__":
    main()
