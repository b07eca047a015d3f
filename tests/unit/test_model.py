"""The values that the rooms hand to each other: sums, the digest of a plan, and what counts as verified."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import (
    Action,
    Decision,
    Entity,
    EntityKind,
    Limits,
    Orphan,
    Outcome,
    Plan,
    Reason,
    SweepResult,
    Totals,
    Verdict,
)

LINE = Decision(
    entity=Entity(kind=EntityKind.RUN, id="a" * 32, experiment_id="1"),
    uri=f"s3://bucket/1/{'a' * 32}/artifacts",
    location=Location("bucket", f"1/{'a' * 32}/artifacts/"),
    deleted_ms=1_000,
    reason=Reason.DUE,
    evidence="",
    root=Location("bucket", ""),
    expected_objects=1,
    expected_bytes=10,
)
PLAN = Plan(
    id="plan-1",
    created_ms=3_000,
    cutoff_ms=2_000,
    action=Action.PURGE,
    database_id="database-1",
    entity_rows=7,
    decisions=(LINE,),
)


def plan_of(*lines: Decision) -> Plan:
    """A plan of these lines."""
    return replace(PLAN, decisions=lines)


def line_of(reason: Reason, power: int | None = None) -> Decision:
    """A line whose objects and bytes are a power of two and of ten, so that a sum tells which lines went into it."""
    objects, size = (None, None) if power is None else (2**power, 10**power)
    return replace(LINE, reason=reason, expected_objects=objects, expected_bytes=size)


# Reasons


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_has_a_verdict_and_a_sentence(reason: Reason) -> None:
    """Only what is due is swept; every reason can be shown to a person."""
    expected = Verdict.SWEEP if reason is Reason.DUE else Verdict.KEEP

    assert (expected, expected, True) == (reason.verdict, line_of(reason).verdict, bool(reason.sentence))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(EntityKind.RUN, "run x"), (EntityKind.LOGGED_MODEL, "logged model x"), (EntityKind.TRACE, "trace x")],
)
def test_an_entity_is_called_by_its_kind_and_id(kind: EntityKind, expected: str) -> None:
    """An entity reads as a person would name it."""
    assert expected == str(Entity(kind=kind, id="x", experiment_id="1"))


# Totals


def test_totals_count_each_line_and_sum_the_due_ones() -> None:
    """Objects and bytes are those of the due lines alone, counts those of every line, in the order of the reasons."""
    lines = (
        line_of(Reason.LAYOUT, 5),
        line_of(Reason.DUE, 0),
        line_of(Reason.GRACE, 1),
        line_of(Reason.DUE, 2),
        line_of(Reason.PROTECTED),
        line_of(Reason.DUE, 4),
        line_of(Reason.GRACE),
    )
    expected = Totals(
        locations=7,
        due=3,
        due_objects=0b10101,
        due_bytes=10_101,
        by_reason=((Reason.DUE, 3), (Reason.GRACE, 2), (Reason.PROTECTED, 1), (Reason.LAYOUT, 1)),
    )

    assert expected == plan_of(*lines).totals
    assert plan_of(lines[1], lines[3], lines[5]).due == plan_of(*lines).due


def test_a_sum_with_one_unmeasured_line_is_unknown() -> None:
    """A sum that leaves out a due line would be a lie."""
    totals = plan_of(line_of(Reason.DUE, 3), line_of(Reason.DUE)).totals

    assert (totals.due_objects, totals.due_bytes) == (None, None)


def test_objects_and_bytes_are_unknown_apart() -> None:
    """What was measured of the two is said."""
    totals = plan_of(replace(LINE, expected_objects=None), replace(LINE, expected_bytes=None)).totals

    assert (totals.due_objects, totals.due_bytes) == (None, None)
    assert plan_of(replace(LINE, expected_objects=None)).totals.due_bytes == 10
    assert plan_of(replace(LINE, expected_bytes=None)).totals.due_objects == 1


def test_an_empty_plan_adds_up_to_nothing() -> None:
    """No line: zeros, not unknowns."""
    expected = Totals(locations=0, due=0, due_objects=0, due_bytes=0, by_reason=())

    assert expected == plan_of().totals


# The digest


def test_the_digest_is_the_same_for_the_same_plan() -> None:
    """Equal plans have equal digests, in every process."""
    assert replace(PLAN).digest == PLAN.digest
    assert len(PLAN.digest) == 64


OTHER_LINE: dict[str, Any] = {
    "entity": replace(LINE.entity, id="b" * 32),
    "uri": LINE.uri + "/",
    "location": Location("bucket", f"2/{'a' * 32}/artifacts/"),
    "deleted_ms": 1_001,
    "reason": Reason.GRACE,
    "evidence": "another holder",
    "root": Location("bucket", "1/"),
    "expected_objects": 2,
    "expected_bytes": 11,
    "orphan": Orphan(lost="run", newest_ms=1),
    "needed": (Location("bucket", "0/run/artifacts/model/"),),
}


@pytest.mark.parametrize("name", OTHER_LINE)
def test_the_digest_covers_each_field_of_a_line(name: str) -> None:
    """A plan file in which somebody changed a line is not the plan that was shown."""
    assert plan_of(replace(LINE, **{name: OTHER_LINE[name]})).digest != PLAN.digest


OTHER_ENTITY: dict[str, Any] = {
    "kind": EntityKind.TRACE,
    "id": "b" * 32,
    "experiment_id": "2",
    "workspace": "team",
}


@pytest.mark.parametrize("name", OTHER_ENTITY)
def test_the_digest_covers_each_field_of_an_entity(name: str) -> None:
    """A plan file in which somebody changed whose location it is is not the plan that was shown."""
    changed = replace(LINE, entity=replace(LINE.entity, **{name: OTHER_ENTITY[name]}))

    assert plan_of(changed).digest != PLAN.digest


@pytest.mark.parametrize("name", ["location", "deleted_ms", "root", "expected_objects", "expected_bytes"])
def test_the_digest_tells_nothing_from_something(name: str) -> None:
    """A field that was emptied changes the digest."""
    nothing: dict[str, Any] = {name: None}

    assert plan_of(replace(LINE, **nothing)).digest != PLAN.digest


OTHER_HEADER: dict[str, Any] = {
    "id": "plan-2",
    "created_ms": 3_001,
    "cutoff_ms": 2_001,
    "action": Action.TAG,
    "database_id": "database-2",
    "entity_rows": 8,
    "unsafe": ("--unsafe-ignore-registry",),
}


@pytest.mark.parametrize("name", OTHER_HEADER)
def test_the_digest_covers_each_field_of_the_header(name: str) -> None:
    """A plan file in which somebody changed the header is not the plan that was shown."""
    assert replace(PLAN, **{name: OTHER_HEADER[name]}).digest != PLAN.digest


OTHER_LIMITS: dict[str, Any] = {
    "max_share": 0.9,
    "share_from_locations": 1_000,
    "max_locations": 1,
    "max_objects": 1,
    "max_bytes": 1,
    "min_object_age_ms": 0,
}


@pytest.mark.parametrize("name", OTHER_LIMITS)
def test_the_digest_covers_each_limit(name: str) -> None:
    """A plan file in which somebody loosened a brake is not the plan that was shown."""
    assert replace(PLAN, limits=replace(PLAN.limits, **{name: OTHER_LIMITS[name]})).digest != PLAN.digest


def test_the_digest_covers_the_order_and_number_of_lines() -> None:
    """Lines that were swapped, doubled or left out change the digest."""
    other = replace(LINE, deleted_ms=5)
    plans = [plan_of(), plan_of(LINE), plan_of(LINE, other), plan_of(other, LINE), plan_of(LINE, LINE)]

    assert len({plan.digest for plan in plans}) == len(plans)


def test_no_field_was_forgotten_in_these_tests() -> None:
    """A new field of a plan, a line, an entity or the limits comes with a test of the digest."""
    tested = {
        Plan: {*OTHER_HEADER, "limits", "decisions"},
        Decision: set(OTHER_LINE),
        Entity: set(OTHER_ENTITY),
        Limits: set(OTHER_LIMITS),
    }

    assert tested == {kind: {field.name for field in fields(kind)} for kind in tested}


# Results


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("root_proven", [True, False])
def test_only_a_proven_emptiness_is_verified(outcome: Outcome, *, root_proven: bool) -> None:
    """A row may go after a sweep, or where nothing was found under a root that was proven to be the right one."""
    expected = outcome is Outcome.SWEPT or (outcome is Outcome.EMPTY and root_proven)

    assert expected == SweepResult(decision=LINE, outcome=outcome, root_proven=root_proven).verified
