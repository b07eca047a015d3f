"""What a keep tag's value says, how a hold names itself, and which ends can be read."""

from __future__ import annotations

import pytest

from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.keeping import Hold, HoldKind, kept_by_tag
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Reference
from mlflow_artifact_gc.protection import Candidate, Protection
from mlflow_artifact_gc.quantities import parse_end, parse_until, show_until

DAY_MS = 86_400_000
NEW_YEAR_MS = 1_798_761_600_000  # 2027-01-01T00:00:00Z
NOW_MS = NEW_YEAR_MS - 30 * DAY_MS


@pytest.mark.parametrize("value", ["true", "True", "TRUE", " true ", "1", "yes", "on"])
def test_what_keeps_for_ever(value: str) -> None:
    """Every way to say yes."""
    assert kept_by_tag("run r", value, NOW_MS) == "keep tag of run r"


@pytest.mark.parametrize("value", [None, "", "  ", "false", "False", "0", "no", "off", "none", "null"])
def test_what_keeps_nothing(value: str | None) -> None:
    """Every way to say no, and a tag without a value."""
    assert kept_by_tag("run r", value, NOW_MS) == ""


@pytest.mark.parametrize(
    ("value", "until_ms", "shown"),
    [
        ("2027-01-01", NEW_YEAR_MS + DAY_MS, "2027-01-01"),
        (" 2027-01-01 ", NEW_YEAR_MS + DAY_MS, "2027-01-01"),
        ("20270101", NEW_YEAR_MS + DAY_MS, "2027-01-01"),
        ("2027-01-01T00:00:00Z", NEW_YEAR_MS, "2026-12-31"),
        ("2027-01-01T12:00:00Z", NEW_YEAR_MS + DAY_MS // 2, "2027-01-01 12:00:00Z"),
        ("2027-01-01T12:00", NEW_YEAR_MS + DAY_MS // 2, "2027-01-01 12:00:00Z"),
        ("2027-01-01T14:00:00+02:00", NEW_YEAR_MS + DAY_MS // 2, "2027-01-01 12:00:00Z"),
        ("9999-12-31", 253_402_300_800_000, "9999-12-31"),
    ],
)
def test_a_date_keeps_to_its_end_and_an_instant_until_it_comes(value: str, until_ms: int, shown: str) -> None:
    """In UTC; at that very moment it keeps no longer."""
    assert parse_until(value) == until_ms
    assert show_until(until_ms) == shown
    assert kept_by_tag("run r", value, until_ms - 1) == f"keep tag of run r (until {shown})"
    assert kept_by_tag("run r", value, until_ms) == ""


@pytest.mark.parametrize(
    "value",
    [
        "soon",
        "2",
        "-1",
        "2027-13-01",
        "01/02/2027",
        "tomorrow",
        "2027-02-30",
        "0001-01-01T00:00:00+14:00x",
        "né",
        "30d",
    ],
)
def test_what_is_not_understood_keeps(value: str) -> None:
    """Whoever set it wanted something; the holder says what was found and what would be understood."""
    said = kept_by_tag("experiment 4", value, NOW_MS)
    assert said == f"keep tag of experiment 4 (its value {value!r} is neither true, false nor a date)"


def test_a_long_value_is_cut() -> None:
    """A tag may hold thousands of characters."""
    assert len(kept_by_tag("run r", "x" * 8000, NOW_MS)) < 200


@pytest.mark.parametrize("value", ["0001-01-01", "0001-01-01T00:00:00+14:00", "1969-12-31"])
def test_a_date_before_all_dates_has_passed(value: str) -> None:
    """It is a date, and no reason to fail."""
    assert kept_by_tag("run r", value, NOW_MS) == ""


def _hold(**values: int | None) -> Hold:
    made = {"id": 3, "kind": HoldKind.RUN, "target": "r", "reason": "audit 2026", "author": "alice", "created_ms": 0}
    return Hold(**{**made, **values})  # type: ignore[arg-type] # values of several types


def test_a_hold_names_itself() -> None:
    """Its number, by whom, why, and until when."""
    assert _hold().holder == 'hold #3 by alice: "audit 2026"'
    ends = _hold(until_ms=NEW_YEAR_MS + DAY_MS)
    assert ends.holder == 'hold #3 by alice: "audit 2026" (until 2027-01-01)'


def test_a_hold_ends() -> None:
    """When its end has come, or when it was released."""
    assert _hold().holds(NOW_MS)
    assert _hold(until_ms=NOW_MS + 1).holds(NOW_MS)
    assert not _hold(until_ms=NOW_MS).holds(NOW_MS)
    assert not _hold(released_ms=0).holds(NOW_MS)


def test_what_keeps_an_experiment_keeps_all_that_belongs_to_it() -> None:
    """Whatever their ids and places are, and what does not say whose it is; nothing of another experiment."""
    candidates = [
        Candidate("a" * 32, Location("b", "1/x/artifacts/"), "1"),
        Candidate("m-" + "b" * 32, Location("elsewhere", "y/"), "1"),
        Candidate("odd", Location("b", "11/z/artifacts/"), "11"),
        Candidate("c" * 32, Location("b", "1/w/artifacts/")),
    ]
    of_one = Reference(holder="hold #1", text="", experiment_id="1")

    assert Protection(candidates, Destination()).protected_by(of_one) == {0, 1, 3}


@pytest.mark.parametrize(
    ("text", "end_ms"),
    [("30d", NOW_MS + 30 * DAY_MS), ("1.5h", NOW_MS + 5_400_000), ("2027-01-01", NEW_YEAR_MS + DAY_MS)],
)
def test_an_end_is_a_date_or_a_duration(text: str, end_ms: int) -> None:
    """As ``hold add --until`` takes it."""
    assert parse_end(text, NOW_MS) == end_ms


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("soon", "is no end: write a date (2027-01-01), an instant"),
        ("", "is no end"),
        ("2027-02-30", "is no end"),
        ("2026-01-01", "has passed: it is 2026-12-02 00:00:00Z"),
        ("0s", "has passed"),
        ("2000000w", "is no end"),
    ],
)
def test_what_is_no_end_is_said(text: str, says: str) -> None:
    """What was found, what is expected; also where it has passed."""
    with pytest.raises(UsageError) as refused:
        parse_end(text, NOW_MS)
    assert says in str(refused.value)
