"""Write golden_diarization.json: what pyannote.metrics and meeteval say of random conversations.

pip install pyannote.metrics==4.2.0 meeteval==0.4.3
python tests/parity/make_golden_diarization.py
"""

import json
import random
from importlib.metadata import version
from pathlib import Path

from meeteval.wer import cp_word_error_rate
from pyannote.core import Annotation, Segment
from pyannote.metrics.diarization import DiarizationErrorRate, JaccardErrorRate

TURNS = list[tuple[float, float, str]]
WORDS = "a b c d e f".split()


def conversation(rng: random.Random, speakers: str, turns: int) -> TURNS:
    """Turns of which those of one speaker do not overlap."""
    ends = dict.fromkeys(speakers, 0.0)
    found, at = [], 0.0
    for _ in range(turns):
        speaker = rng.choice(speakers)
        start = max(at + rng.uniform(-1.5, 1.0), ends[speaker] + 0.01, 0.0)
        end = start + rng.uniform(0.3, 4.0)
        found.append((round(start, 3), round(end, 3), speaker))
        ends[speaker] = at = end
    return found


def annotation(turns: TURNS) -> Annotation:
    made = Annotation()
    for track, (start, end, speaker) in enumerate(turns):
        made[Segment(start, end), track] = speaker
    return made


def words(rng: random.Random, speakers: str) -> dict[str, str]:
    return {s: " ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for s in speakers}


def main() -> None:
    rng, cases = random.Random(0), []
    for size in range(24):
        reference = conversation(rng, "ABCD"[: 1 + size % 4], 3 + size)
        found = conversation(rng, "uvwxyz"[: 1 + size % 5], 3 + size)
        if size % 3 == 0:  # nearly right
            found = [(s + 0.1, e + 0.1, {"A": "u"}.get(n, n)) for s, e, n in reference]
        case: dict[str, object] = {"reference": reference, "found": found}
        for collar in (0.0, 0.25):
            metric = DiarizationErrorRate(collar=2 * collar)  # pyannote counts both sides
            parts = metric(annotation(reference), annotation(found), detailed=True)
            case[f"der_{collar}"] = [
                parts[name] for name in ("missed detection", "false alarm", "confusion", "total")
            ]
        case["jer"] = JaccardErrorRate()(annotation(reference), annotation(found))
        said, heard = words(rng, "ABC"[: 1 + size % 3]), words(rng, "uvwx"[: 1 + size % 4])
        errors = cp_word_error_rate(said, heard)
        case |= {"said": said, "heard": heard, "cp": [errors.errors, errors.length]}
        cases.append(case)
    sources = {name: version(name) for name in ("pyannote.metrics", "meeteval")}
    path = Path(__file__).with_name("golden_diarization.json")
    path.write_text(json.dumps({"sources": sources, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
