"""Check the pages of this repository against the code: links, examples, commands and the file map.

    make docs

- A relative link leads to a file.
- A Python block runs. The blocks of a page share an interpreter: one that imports `pianissimo`
  starts with no names, any other continues the block before it. Blocks run in a scratch directory
  that holds `examples/` and the files of RECORDINGS. `<!-- not run: REASON -->` on the line before
  a block exempts it.
- A `pianissimo` or `make` command exists, and so do its options.
- `docs/architecture.md` names the files of the package, all of them and no others.
- `docs/python-api.md` has every public name.
- README.md has at most 150 lines of at most 100 characters.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "docs" / "architecture.md"
API = ROOT / "docs" / "python-api.md"
README = ROOT / "README.md"
README_LINES, README_CHARACTERS = 150, 100
RECORDINGS = {"meeting.mp3": "number.flac", "quiet.wav": "quiet.flac", "talk.wav": "number.flac"}
"""Files that examples name, and the clips of examples/audio they are made from."""
TIMEOUT_SECONDS = 300
PARALLEL = 2
"""Pages whose blocks run at the same time."""

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+?) -->\n)?```(?P<info>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"`((?:pianissimo|make) [^`]+)`", re.DOTALL)
COMMAND = re.compile(r"(?:^|[|&;]|&&)\s*(?:[A-Z_]+=\S+\s+)*(?=(?:pianissimo|make)\s)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts on, and why it is not run."""

    language: str
    code: str
    line: int
    reason: str | None


def pages() -> list[Path]:
    """All pages for users and contributors."""
    patterns = ("*.md", "docs/**/*.md", "examples/**/*.md", "bench/*.md", "pianissimo/**/*.md")
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for fence in FENCE.finditer(text):
        language = fence["info"].split()[0] if fence["info"].strip() else ""
        line = text.count("\n", 0, fence.start("code")) + 1
        found.append(Block(language, fence["code"], line, fence["reason"]))
    return found


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Relative links to files that do not exist."""
    for target in LINK.findall(FENCE.sub("", text)):
        path = target.split("#")[0]
        if path and not re.match(r"[a-z]+:", path) and not (page.parent / path).exists():
            yield f"link to {target}, which does not exist"


def run_blocks(page: Path) -> None:
    """Run the Python blocks of a page in this process; raises what they raise."""
    names: dict[str, Any] = {}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language != "python" or block.reason:
            continue
        if re.search(r"^(import|from) pianissimo", block.code, re.MULTILINE):
            names = {"__name__": "__main__"}
        padding = "\n" * (block.line - 1)  # tracebacks then name the line of the page
        exec(compile(padding + block.code, str(page), "exec"), names)


def failure(page: Path, scratch: Path) -> str | None:
    """How the Python blocks of a page fail, warnings included; None if they run."""
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, str(page)],
        cwd=scratch,
        env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = re.findall(rf'"{re.escape(str(page))}", line (\d+)', done.stderr)
    error = done.stderr.strip().splitlines()[-1]
    return f"Python block, line {lines[-1] if lines else '?'}: {error}"


def make_recordings(scratch: Path) -> None:
    """Fill the directory in which blocks run."""
    import soundfile

    (scratch / "examples").symlink_to(ROOT / "examples")
    for name, clip in RECORDINGS.items():
        samples, rate = soundfile.read(ROOT / "examples" / "audio" / clip)
        soundfile.write(scratch / name, samples, rate)


def commands(text: str) -> Iterator[list[str]]:
    """The `pianissimo` and `make` commands in shell blocks and inline code, as arguments."""
    lines = [
        line
        for block in blocks(text)
        if block.language in ("", "bash", "sh")
        for line in block.code.replace("\\\n", " ").splitlines()
    ]
    lines += [match.replace("\n", " ") for match in INLINE.findall(FENCE.sub("", text))]
    for line in lines:
        for match in COMMAND.finditer(line):
            rest = re.split(r"\s(?:\||&&|>|#)(?:\s|$)", line[match.end() :])[0]
            yield shlex.split(rest)


def usage_error(arguments: list[str]) -> str | None:
    """What is wrong with a command, without running it; None if it parses."""
    program, *rest = arguments
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in rest if "=" not in word and not word.startswith("-")]
        unknown = [word for word in targets if not re.search(rf"^{word}:", makefile, re.MULTILINE)]
        return f"make has no target {unknown[0]}" if unknown else None

    from typer.main import get_command

    from pianissimo.cli import app

    command: Any = get_command(app)
    context = None
    rest = [argument for argument in rest if argument != "..."]
    while True:
        name = command.name or program
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
        context.resilient_parsing = False  # from here on unknown options raise
        try:
            _, rest, _ = command.make_parser(context).parse_args(args=rest)
        except Exception as error:  # typer does not export click's usage errors
            return f"{context.command_path}: {getattr(error, 'message', error)}"
        if not hasattr(command, "get_command") or not rest:
            return None
        found = command.get_command(context, rest[0])
        if found is None:
            return f"{context.command_path} has no command {rest[0]}"
        command, rest = found, rest[1:]


def map_errors() -> Iterator[str]:
    """Files of the package that the map does not name, and names without a file."""
    paths = sorted((ROOT / "pianissimo").rglob("*.py"))
    listed = set(re.findall(r"`(\w+\.py)`", MAP.read_text(encoding="utf-8")))
    for path in paths:
        if path.name not in ("__init__.py", *listed):
            yield f"{path.relative_to(ROOT)} is missing from the map"
    for name in sorted(listed - {path.name for path in paths}):
        yield f"{name} is on the map and not in the package"


def unlisted_names() -> Iterator[str]:
    """Public names that the API reference lacks."""
    import pianissimo

    text = API.read_text(encoding="utf-8")
    for name in pianissimo.__all__:
        if not re.search(rf"^::: pianissimo\.{name}$", text, re.MULTILINE):
            yield f"pianissimo.{name} is missing"


def readme_too_long() -> Iterator[str]:
    """Lines of README.md beyond its bounds."""
    lines = README.read_text(encoding="utf-8").splitlines()
    if len(lines) > README_LINES:
        yield f"{len(lines)} lines; at most {README_LINES} are allowed"
    for number, line in enumerate(lines, start=1):
        if len(line) > README_CHARACTERS:
            yield f"line {number} has {len(line)} characters; the limit is {README_CHARACTERS}"


def main() -> int:
    """Print the problems and return the exit code: 1 if there are any."""
    sys.path.insert(0, str(ROOT))
    problems = [(MAP, problem) for problem in map_errors()]
    problems += [(API, problem) for problem in unlisted_names()]
    problems += [(README, problem) for problem in readme_too_long()]
    ran = skipped = checked = 0
    runnable = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        python = [block for block in blocks(text) if block.language == "python"]
        run = [block for block in python if not block.reason]
        ran, skipped = ran + len(run), skipped + len(python) - len(run)
        runnable += [page] if run else []
        problems += [(page, problem) for problem in broken_links(page, text)]
        for arguments in commands(text):
            checked += 1
            if problem := usage_error(arguments):
                problems.append((page, f"`{shlex.join(arguments)}`: {problem}"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(PARALLEL) as pool:
        make_recordings(Path(folder))
        failures = pool.map(partial(failure, scratch=Path(folder)), runnable)
        named = zip(runnable, failures, strict=True)
        problems += [(page, problem) for page, problem in named if problem]
    for page, problem in problems:
        print(f"{page.relative_to(ROOT)}: {problem}", file=sys.stderr)
    print(
        f"{len(pages())} pages, {ran} Python blocks run and {skipped} exempt, "
        f"{checked} commands checked, {len(problems)} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_blocks(Path(sys.argv[1]))
    else:
        sys.exit(main())
