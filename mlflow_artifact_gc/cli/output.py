"""What is printed for people: plain lines and tables, with colours and folding only on a terminal, and progress.

A terminal gets rich's rendering; files and pipes get lines that can be searched, and do not pay for importing it.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final, Literal, Self

import click

if TYPE_CHECKING:
    from rich.progress import Progress

_GAP: Final = 2
_QUIET_S: Final = 5.0
_STRANGE: Final = "\ufffd"
_FOLDED: Final = ("why", "by")


def _harmless(text: str) -> str:
    """Nothing that others have written steers a terminal, hides what stands beside it, or cannot be written at all."""
    return (
        text if text.isprintable() else "".join(one if one.isprintable() or one == "\n" else _STRANGE for one in text)
    )


@dataclass(slots=True)
class Grid:
    """A table: the names of its columns, those with numbers to the right, and its rows."""

    columns: tuple[str, ...]
    numbers: frozenset[str]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def __init__(self, *columns: str, numbers: Sequence[str] = ()) -> None:
        self.columns, self.numbers, self.rows, self.styles = columns, frozenset(numbers), [], []

    def add_row(self, *cells: str, style: str = "") -> None:
        """``style`` is that of the first cell."""
        # Nor is a cell of several lines taken for several rows.
        self.rows.append(tuple(_harmless(cell).replace("\n", _STRANGE) for cell in cells))
        self.styles.append(style)

    def lines(self) -> list[str]:
        """The table as text, without blanks at the ends."""
        rows = [self.columns, *self.rows]
        widths = [max(len(row[number]) for row in rows) for number in range(len(self.columns))]
        return [(" " * _GAP).join(self._cells(row, widths)).rstrip() for row in rows]

    def _cells(self, row: tuple[str, ...], widths: Sequence[int]) -> list[str]:
        return [
            cell.rjust(width) if column in self.numbers else cell.ljust(width)
            for cell, column, width in zip(row, self.columns, widths, strict=True)
        ]


class Output:
    """Standard output, or a file."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file
        self._terminal = (file or sys.stdout).isatty()

    def print(self, text: str = "", style: str = "") -> None:
        """A line; folded between words on a terminal."""
        text = _harmless(text)
        if self._terminal:
            from rich.console import Console

            Console(file=self._file, highlight=False, markup=False, emoji=False).print(text, style=style or None)
        else:
            click.echo(text, file=self._file)

    def table(self, grid: Grid) -> None:
        """A table; its last words are folded on a terminal."""
        if not self._terminal:
            click.echo("\n".join(grid.lines()), file=self._file)
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        shown = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for column in grid.columns:
            side: Literal["right", "left"] = "right" if column in grid.numbers else "left"
            shown.add_column(column, justify=side, no_wrap=column not in _FOLDED, overflow="fold")
        for (first, *others), style in zip(grid.rows, grid.styles, strict=True):
            shown.add_row(Text(first, style=style), *(Text(cell) for cell in others))
        Console(file=self._file, highlight=False).print(shown)


class Meter:
    """Progress on standard error: a bar on a terminal, elsewhere a plain line every few seconds.

    ``total`` 0: nobody knows.
    """

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._told = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(title, total=total or None)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """So many more locations are done."""
        self._done += count
        if self._bar:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._told > _QUIET_S:
            self._told = time.monotonic()
            click.echo(f"{self._title}: {self._done:,} of {self._total:,}", err=True)

    def listed(self, count: int) -> None:
        """So many objects were listed by now, of nobody knows how many."""
        if self._bar:
            self._bar.update(self._task, completed=count)
        elif time.monotonic() - self._told > _QUIET_S:
            self._told = time.monotonic()
            click.echo(f"{self._title}: {count:,} objects", err=True)

    def note(self, text: str) -> None:
        """Something that a waiting person wants to know."""
        if self._bar:
            self._bar.console.print(text)
        else:
            click.echo(text, err=True)


def ask(question: str, *, err: bool) -> bool:
    """Whether the person at the terminal says yes; ``err``: the question goes to standard error.

    Ctrl-C means no, at once.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        click.echo(f"{question} [y/N]: ", nl=False, err=err)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    finally:
        signal.signal(signal.SIGINT, before)
