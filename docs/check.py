"""Are README.md and docs/ still true? Links resolve, marked examples run, the map lists every file.

    make docs

An example whose fence says ```` ```python run ```` is run in the root of the repository, each in an
interpreter of its own.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAP = ROOT / "docs" / "architecture.md"
TIMEOUT_SECONDS = 300


def pages() -> list[Path]:
    """Every page for people: at the root, in docs/, and beside the examples."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Relative links that lead nowhere."""
    for target in LINK.findall(FENCE.sub("", text)):
        path = target.split("#")[0]
        if path and not re.match(r"[a-z]+:", path) and not (page.parent / path).exists():
            yield f"link to {target}, which is not there"


def examples(text: str) -> list[str]:
    """The Python examples that are marked to be run."""
    return [code for info, code in FENCE.findall(text) if info.split() == ["python", "run"]]


def failure(code: str) -> str | None:
    """What goes wrong in an example, a warning included; None if it runs."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    if done.returncode == 0:
        return None
    return f"example fails: {done.stderr.strip().splitlines()[-1]}\n    {code.splitlines()[0]} ..."


def unlisted_files() -> Iterator[str]:
    """Files of the package that the map does not name."""
    text = MAP.read_text(encoding="utf-8")
    for path in sorted((ROOT / "pianissimo").rglob("*.py")):
        if path.name != "__init__.py" and f"`{path.name}`" not in text:
            yield f"{path.relative_to(ROOT)} is missing in the map"


def main() -> int:
    problems = [f"{MAP.relative_to(ROOT)}: {problem}" for problem in unlisted_files()]
    count = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        failures = [failure(code) for code in examples(text)]
        count += len(failures)
        for problem in (*broken_links(page, text), *filter(None, failures)):
            problems.append(f"{page.relative_to(ROOT)}: {problem}")
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(pages())} pages, {count} examples run, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
