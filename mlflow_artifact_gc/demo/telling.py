"""How the demo speaks: numbered headings, tables, and a line that changes; plain lines in files and pipes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH: Final = 1000
_QUIET_S: Final = 2.0
"""In files and pipes a line that changes is told so often."""


class Teller:
    """Standard output."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        width = None if self._terminal else _PLAIN_WIDTH
        # A terminal gets lines that are folded between words; elsewhere a line is a line, to be searched.
        self._out = Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=not self._terminal)
        self._steps = 0

    def say(self, text: str = "", style: str = "") -> None:
        self._out.print(text, style=style or None)

    def heading(self, text: str) -> None:
        """The next step begins."""
        self._steps += 1
        self.say(f"\n{self._steps}. {text}", style="bold cyan")

    def typed(self, command: str) -> None:
        """A command as a person types it; what it prints itself comes after that."""
        # A terminal breaks it where it must: it can still be copied in one piece.
        self._out.print(f"$ {command}", style="bold", soft_wrap=True)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, numbers: Sequence[str] = ()
    ) -> None:
        """The last column is folded where it is too long for the terminal."""
        grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in columns:
            grid.add_column(column, justify="right" if column in numbers else "left", no_wrap=column != columns[-1])
        for row in rows:
            grid.add_row(*row)
        if self._terminal:
            self._out.print(grid)
            return
        with self._out.capture() as captured:
            self._out.print(grid)
        for line in captured.get().splitlines():
            self.say(line.rstrip())

    @contextmanager
    def in_place(self) -> Iterator[Callable[[str], None]]:
        """What is told within replaces what was told before; elsewhere it is a line of its own now and then."""
        if self._terminal:
            with self._out.status("") as status:
                yield status.update
            return
        told_s = float("-inf")

        def tell(text: str) -> None:
            nonlocal told_s
            if time.monotonic() - told_s >= _QUIET_S:
                told_s = time.monotonic()
                self.say(text)

        yield tell
