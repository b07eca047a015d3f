"""The fences that ``tests.mutations`` breaks on purpose are where it looks for them."""

from __future__ import annotations

import ast

import pytest

from tests.mutations import BREAKS, PACKAGE, ROOT, Break


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: one.name)
def test_each_break_can_be_made(one: Break) -> None:
    """The line is there, once, and what comes of it is another program."""
    broken = one.made_in(ROOT)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse((ROOT / PACKAGE / one.file).read_text()))


def test_no_break_has_the_name_of_another() -> None:
    """By its name one is chosen, and the documents speak of it."""
    assert len({one.name for one in BREAKS}) == len(BREAKS)
