"""Nothing is skipped for a lack of MLflow's, except where an old MLflow is tested and said to be old."""

from __future__ import annotations

import pytest

from tests import abilities
from tests.abilities import ABILITIES, OLD


def test_the_newest_mlflow_has_every_ability_and_an_old_one_has_not() -> None:
    """A probe that finds nothing any more looks in the wrong place, or MLflow has taken the ability away.

    And nobody says ``old`` of an MLflow that is not: tests that it could pass would hide behind the word.
    """
    lacking = [ability for ability, is_there in ABILITIES.items() if not is_there()]

    assert bool(lacking) == abilities.is_old(), lacking


@pytest.mark.parametrize("said", [None, "new", ""])
def test_what_the_newest_lacks_is_not_skipped(monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    """The test goes on, and fails where it needs what is not there."""
    monkeypatch.setitem(ABILITIES, "flying", lambda: False)
    monkeypatch.delenv(OLD, raising=False)
    if said is not None:
        monkeypatch.setenv(OLD, said)

    abilities.need("flying")
    assert abilities.has("flying")


def test_what_an_old_one_lacks_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of the skips says which ability is lacking; what is there is not skipped."""
    monkeypatch.setitem(ABILITIES, "flying", lambda: False)
    monkeypatch.setitem(ABILITIES, "walking", lambda: True)
    monkeypatch.setenv(OLD, "old")

    abilities.need("walking")
    with pytest.raises(pytest.skip.Exception, match="lacks: flying"):
        abilities.need("flying")


def test_an_ability_that_nobody_knows() -> None:
    """A word that is misspelt is found when the tests are collected."""
    with pytest.raises(ValueError, match="logged_modles"):
        abilities.needs("logged_modles")
