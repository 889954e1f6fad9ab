"""A progress bar on a terminal, and nothing elsewhere."""

from typing import Any


class Progress:
    """A bar of `count` steps under a `title`; `shown` says whether there is anybody to see it."""

    def __init__(self, title: str, count: int, *, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(title, total=count)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.advance(self._task)
