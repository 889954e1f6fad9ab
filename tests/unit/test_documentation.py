"""The checks of docs/check.py find what is wrong, and the workflow runs what .ci/run runs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check", ROOT / "docs" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("pianissimo transcribe a.mp3 --beam 4 -f srt,json", None),
        ("pianissimo models recommend --lang zh", None),
        ("pianissimo transcribe --baem 4 a.mp3", "--baem"),
        ("pianissimo models recomend", "recomend"),
        ("pianissimo trascribe a.mp3", "trascribe"),
        ("make run FILE=a.mp3", None),
        ("make dcos", "dcos"),
    ],
)
def test_commands_are_checked(check: ModuleType, command: str, problem: str | None) -> None:
    found = check.usage_error(command.split())
    assert found is None if problem is None else problem in found


def test_commands_are_found_in_blocks_and_in_text(check: ModuleType) -> None:
    page = """
`make docs`, and `pianissimo models
show NAME`.

```
A=1 pianissimo serve --host ::1    # a comment
ffmpeg -i a.mkv - | pianissimo transcribe - | less
python pianissimo.py
```
"""
    assert sorted(map(" ".join, check.commands(page))) == [
        "make docs",
        "pianissimo models show NAME",
        "pianissimo serve --host ::1",
        "pianissimo transcribe -",
    ]


def test_python_blocks_run_unless_exempt(check: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    block = "```python\n{}\n```\n"
    page.write_text(
        block.format("import pianissimo\nx = 1")
        + block.format("assert x == 1")
        + "<!-- not run: no network -->\n"
        + block.format("raise SystemExit(3)")
    )
    assert check.failure(page, tmp_path) is None
    page.write_text(page.read_text() + block.format("\nimport pianissimo\nprint(x)"))
    assert check.failure(page, tmp_path) == (
        "Python block, line 15: NameError: name 'x' is not defined"
    )


def test_dead_links_are_found(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "here.md").touch()
    text = "[a](here.md#part) [b](https://example.org) [c](gone.md)\n```\n[d](code.md)\n```\n"
    assert list(check.broken_links(tmp_path / "page.md", text)) == [
        "link to gone.md, which does not exist"
    ]


def test_ci_runs_every_step_and_fails_if_one_does(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    script.chmod(0o755)
    steps = ["lint", "types", "docs", "test"]
    (tmp_path / "Makefile").write_text("".join(f"{s}:\n\t@echo ran {s}\n" for s in steps))
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.findall(r"^ran (\w+)$", done.stdout, re.MULTILINE) == steps

    (tmp_path / "Makefile").write_text(
        "".join(f"{s}:\n\t@echo ran {s}{'; false' if s == 'types' else ''}\n" for s in steps)
    )
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "failed: types" in done.stderr
    assert re.findall(r"^ran (\w+)$", done.stdout, re.MULTILINE) == steps


def test_the_workflow_runs_the_same_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = workflow["jobs"]["checks"]["steps"]
    assert {"run": ".ci/run"} in steps
