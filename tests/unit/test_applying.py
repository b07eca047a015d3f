"""What of a plan file may be carried out: never more than it says, and never what is not so any more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlflow_artifact_gc import applying
from mlflow_artifact_gc.errors import PlanRefused
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Plan, Reason
from mlflow_artifact_gc.plan_files import PlanFile
from mlflow_artifact_gc.policy import Scope
from tests.unit.test_plan_files import PLAN, TERMS, line

DAY_MS = 86_400_000
TRACE = Entity(kind=EntityKind.TRACE, id="tr-1", experiment_id="1")


def file_of(*lines: Decision, **terms: Any) -> PlanFile:
    """A plan file with these lines."""
    return PlanFile.of(replace(PLAN, decisions=lines), replace(TERMS, **terms))


def now_of(*lines: Decision) -> Plan:
    """What was decided now."""
    return replace(PLAN, decisions=lines)


def selected(
    file: PlanFile, *now: Decision, undone: int | None = None, done: tuple[Location, ...] = ()
) -> tuple[list[str], list[str], int]:
    """Ids of what is swept, why the others are not, and how many were done before."""
    undone_ms = {Location("b", "r1/artifacts/"): undone} if undone is not None else {}
    found = applying.select(file, now_of(*now), undone_ms=undone_ms, done=done)
    return [one.entity.id for one in found.plan.due], [one.detail for one in found.dropped], found.done


R1 = line("r1")
NO_DATE = replace(R1, deleted_ms=None)
HELD = replace(R1, reason=Reason.PROTECTED, evidence="hold 3")
NOT_SO = "restored, or its row has gone or changed, since the plan was made"


@pytest.mark.parametrize(
    ("now", "why"),
    [
        ((), NOT_SO),
        ((line("r2"),), NOT_SO),
        ((replace(R1, deleted_ms=6),), "restored and deleted again since the plan was made"),
        ((replace(R1, deleted_ms=4),), "restored and deleted again since the plan was made"),
        ((NO_DATE,), "restored and deleted again since the plan was made"),
        ((HELD,), "hold 3"),
        ((replace(R1, reason=Reason.GRACE),), "still in its grace period"),
        ((replace(R1, location=Location("b", "r9/artifacts/")),), "its place, by its row, is not the one"),
        ((replace(R1, root=Location("b", "r1/")),), "its row has changed"),
        ((replace(R1, uri="s3://b//r1/artifacts"),), "its row has changed"),
        ((replace(R1, entity=replace(R1.entity, workspace="other")),), "its row has changed"),
        ((replace(R1, entity=replace(R1.entity, experiment_id="2")),), "its row has changed"),
    ],
)
def test_what_is_not_as_it_was_planned_is_dropped(now: tuple[Decision, ...], why: str) -> None:
    """With the reason; whatever is due beside it and not in the file is neither swept nor mentioned."""
    swept, dropped, done = selected(file_of(R1), *now)

    assert (swept, done) == ([], 0)
    assert len(dropped) == 1
    assert dropped[0].startswith(why)


def test_what_is_as_it_was_planned_is_swept() -> None:
    """Sizes and what stays do not matter; only what the file has as due is."""
    file = file_of(replace(R1, expected_objects=9), line("r2", Reason.GRACE), NO_DATE)

    assert selected(file_of(R1), R1) == (["r1"], [], 0)
    assert selected(file_of(NO_DATE), NO_DATE) == (["r1"], [], 0)
    assert selected(file_of(line("r2", Reason.GRACE)), line("r2")) == ([], [], 0)
    assert selected(replace(file, plan=replace(file.plan, decisions=file.plan.decisions[:2])), R1, line("r2")) == (
        ["r1"],
        [],
        0,
    )


def test_what_was_taken_back_since_is_dropped() -> None:
    """Also where the plan names it, which takes up what was taken back before."""
    assert selected(file_of(R1), R1, undone=PLAN.created_ms + 1) == (
        [],
        ["taken back with 'undo' since the plan was made"],
        0,
    )
    assert selected(file_of(R1), R1, undone=PLAN.created_ms - 1) == (["r1"], [], 0)


def test_what_the_plan_did_before_is_not_dropped() -> None:
    """It is counted, whether its row is still there or not; and swept again where its row is to go."""
    place = (Location("b", "r1/artifacts/"),)

    assert selected(file_of(R1), replace(R1, reason=Reason.SWEPT_BEFORE), done=place) == ([], [], 1)
    assert selected(file_of(R1), done=place) == ([], [], 1)
    assert selected(file_of(R1), R1, done=place) == (["r1"], [], 0)


def test_a_row_with_a_place_that_was_not_planned_is_not_whole() -> None:
    """A trace whose archive came later: the plan keeps that line, so that the row is not taken for empty."""
    first = replace(line("t1"), entity=TRACE)
    second = replace(line("t2"), entity=TRACE)

    found = applying.select(file_of(first), now_of(first, second), undone_ms={}, done=())

    assert [one.reason for one in found.plan.decisions] == [Reason.DUE, Reason.NOT_PLANNED]


def test_only_experiments_of_the_plan_go() -> None:
    """And none where the plan has nothing due, or names runs alone."""
    assert applying.experiments(file_of(R1, scope=Scope())) == Scope(experiment_ids=("1",))
    assert applying.experiments(file_of(R1, scope=Scope(experiment_ids=("1",)))) == Scope(experiment_ids=("1",))
    assert applying.experiments(file_of(R1, scope=Scope(run_ids=("r1",)))) is None
    assert applying.experiments(file_of(R1, scope=Scope(workspace="else"))) is None
    assert applying.experiments(file_of(line("r1", Reason.GRACE), scope=Scope())) is None


@pytest.mark.parametrize(
    ("planned", "given", "then", "site", "own", "expected"),
    [
        (7, False, 7, 7, None, 7),
        (7, False, 7, 9, None, 9),
        (7, False, 7, 3, None, 7),
        (7, False, 7, 7, 8, 8),
        (7, False, 7, 7, 5, 7),
        (0, True, 7, 7, None, 0),
        (0, True, 7, 7, 30, 0),
        (0, True, 7, 6, None, 0),
        (0, True, 7, 9, None, 9),
        (20, True, 7, 9, None, 20),
    ],
)
def test_a_margin_is_never_shorter_than_planned_nor_than_what_was_lengthened_since(
    *, planned: int, given: bool, then: int, site: int, own: int | None, expected: int
) -> None:
    """An option comes before the site's setting, unless that was lengthened after the plan was made."""
    found = applying.margin_ms(planned, given=given, then_ms=then, site_ms=site, own_ms=own)

    assert found == expected


@pytest.mark.parametrize(
    ("planned", "own", "given", "expected"),
    [(5, None, False, 5), (5, 3, False, 3), (5, 9, False, 5), (None, 3, False, 3), (5, 3, True, 5)],
)
def test_a_brake_is_the_lower_one(*, planned: int | None, own: int | None, given: bool, expected: int) -> None:
    """The plan's and this process's; an option of the plan comes before the environment, as it does for gc."""
    assert applying.lowest(planned, own, given=given) == expected


@pytest.mark.parametrize(
    ("planned", "given", "then", "site", "wanted", "refused"),
    [
        (Action.PURGE, (), None, None, None, False),
        (Action.PURGE, (), Action.PURGE, Action.PURGE, Action.PURGE, False),
        (Action.PURGE, (), Action.PURGE, Action.HIDE, Action.HIDE, True),
        (Action.PURGE, (), Action.PURGE, Action.PURGE, Action.TAG, True),
        (Action.PURGE, ("--action",), Action.HIDE, Action.HIDE, Action.HIDE, False),
        (Action.PURGE, ("--action",), None, Action.HIDE, Action.HIDE, True),
        (Action.HIDE, (), Action.HIDE, Action.PURGE, Action.PURGE, False),
        (Action.HIDE, (), Action.HIDE, Action.TAG, Action.TAG, False),
    ],
)
def test_a_purge_is_refused_where_the_site_has_become_milder(
    *,
    planned: Action,
    given: tuple[str, ...],
    then: Action | None,
    site: Action | None,
    wanted: Action | None,
    refused: bool,
) -> None:
    """Nobody who makes the site hide expects a plan of last week to purge."""
    file = PlanFile.of(replace(PLAN, action=planned), replace(TERMS, given=given, site_action=then))
    if refused:
        with pytest.raises(PlanRefused, match="make a new plan"):
            applying.require_as_mild(file, site=site, wanted=wanted)
    else:
        applying.require_as_mild(file, site=site, wanted=wanted)


@pytest.mark.parametrize(
    ("database", "age_ms", "says"),
    [
        ("db", 0, ""),
        ("db", 7 * DAY_MS, ""),
        ("db", 7 * DAY_MS + 1, "stale"),
        ("db", -30_000, ""),
        ("db", -120_000, "it is only"),
        ("other", 0, "another database's"),
    ],
)
def test_a_plan_has_its_database_and_its_time(database: str, age_ms: int, says: str) -> None:
    """By the database's clock, which may be a little behind after a failover."""
    file = file_of(R1)
    arguments: dict[str, Any] = {"database_id": database, "now_ms": PLAN.created_ms + age_ms, "max_age_ms": 7 * DAY_MS}
    if says:
        with pytest.raises(PlanRefused, match=says):
            applying.require_applicable(file, **arguments)
    else:
        applying.require_applicable(file, **arguments)
