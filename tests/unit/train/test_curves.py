"""Pictures of training runs: every number of a log stands where it belongs."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from pianissimo.errors import OptionError
from pianissimo.train.curves import curves, draw, main, read_log, svg, tick_values

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [
    {"step": 10, "loss": 4.0, "ctc": 6.0, "lr": 0.1},
    {"step": 20, "loss": 2.0, "ctc": 3.0, "lr": 0.1},
    {"step": 20, "wer all 80 ms": 0.5, "general wer all 80 ms": 0.25},
    {"step": 40, "loss": 1.0, "ctc": float("nan"), "lr": 0.1},
    {"step": 40, "wer all 80 ms": 0.25, "general wer all 80 ms": 0.5},
]


def write_log(run: Path, rows: list[dict[str, float]]) -> Path:
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def lines(picture: str) -> list[list[tuple[float, float]]]:
    """The points of each curve, in order."""
    found = []
    for path in ElementTree.fromstring(picture).iter(f"{SVG}path"):
        if path.get("fill") == "none":
            pairs = re.findall(r"([\d.]+) ([\d.]+)", path.get("d") or "")
            found.append([(float(x), float(y)) for x, y in pairs])
    return found


def test_losses_and_errors_are_separate() -> None:
    losses, errors = curves(ROWS)
    assert losses == {"loss": [(10, 4.0), (20, 2.0), (40, 1.0)], "ctc": [(10, 6.0), (20, 3.0)]}
    assert errors == {
        "wer all 80 ms": [(20, 50.0), (40, 25.0)],
        "general wer all 80 ms": [(20, 25.0), (40, 50.0)],
    }


def test_curves_are_true_to_scale() -> None:
    """Heights above the axis are in the proportion of the values, and so are the steps."""
    loss, ctc, new, general = lines(svg([("run", ROWS)]))
    assert (len(loss), len(ctc), len(new), len(general)) == (3, 2, 2, 2)
    (x0, y0), (x1, y1), (x2, y2) = loss
    assert x2 - x1 == pytest.approx(2 * (x1 - x0), abs=0.3)
    assert y1 - y0 == pytest.approx(2 * (y2 - y1), abs=0.3)
    assert ctc[1][1] == pytest.approx(y0 + (y1 - y0) / 2, abs=0.3)  # 3 between 4 and 2
    assert new[0] == pytest.approx((x1, general[1][1]), abs=0.3)
    assert new[0][1] < new[1][1]  # fewer errors lie lower
    texts = {text.text for text in ElementTree.fromstring(svg([("run", ROWS)])).iter(f"{SVG}text")}
    assert {"run", "loss", "ctc", "wer all 80 ms", "nats per token", "word errors, %"} <= texts


@pytest.mark.parametrize("highest", [0.03, 0.5, 1.0, 7.0, 99.0, 4000.0])
def test_ticks_are_round_and_few(highest: float) -> None:
    ticks = tick_values(highest)
    assert ticks[0] == 0
    assert 3 <= len(ticks) <= 8
    assert highest * 0.5 < ticks[-1] <= highest


def test_each_run_has_a_column(tmp_path: Path) -> None:
    first = write_log(tmp_path / "first", ROWS)
    second = write_log(tmp_path / "second", ROWS[:2])
    main([str(first), str(second), "--out", str(tmp_path / "curves.svg")])
    picture = (tmp_path / "curves.svg").read_text()
    assert ElementTree.fromstring(picture).get("width") == "840"
    assert len(lines(picture)) == 6


def test_other_files_than_logs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="not the log of a training run"):
        read_log(tmp_path)
    with pytest.raises(OptionError, match="no step is logged yet"):
        draw([write_log(tmp_path / "empty", [])], tmp_path / "out.svg")
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--out", str(tmp_path / "out.svg")])
    assert not (tmp_path / "out.svg").exists()
