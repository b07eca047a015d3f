"""What commands print of results and plans: the sums in words."""

from __future__ import annotations

import pytest

from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Output
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Outcome, Plan, Reason, SweepResult


def line(number: int) -> Decision:
    """A due one of one object, a byte long."""
    location = Location("bucket", f"mlruns/1/{number}/artifacts/")
    return Decision(
        entity=Entity(kind=EntityKind.RUN, id=str(number), experiment_id="1"),
        uri=location.uri,
        location=location,
        deleted_ms=1,
        reason=Reason.DUE,
        expected_objects=1,
        expected_bytes=1,
    )


@pytest.mark.parametrize(
    ("count", "due", "gone", "rows"),
    [
        (
            1,
            "To sweep: 1 location, 1 object, 1 B.",
            "Gone: 1 object, 1 old version, 1 delete marker, 1 unfinished upload, 1 B in",
            "Rows deleted: 1 entity, 1 experiment.",
        ),
        (
            2,
            "To sweep: 2 locations, 2 objects, 2 B.",
            "Gone: 2 objects, 2 old versions, 2 delete markers, 2 unfinished uploads, 2 B in",
            "Rows deleted: 2 entities, 2 experiments.",
        ),
    ],
    ids=["one", "two"],
)
def test_one_of_a_thing_is_no_plural(
    capsys: pytest.CaptureFixture[str], count: int, due: str, gone: str, rows: str
) -> None:
    """In the sums of a plan and of a report."""
    lines = tuple(line(number) for number in range(count))
    plan = Plan(
        id="p", created_ms=1, cutoff_ms=1, action=Action.PURGE, database_id="d", entity_rows=count, decisions=lines
    )
    results = [
        SweepResult(
            decision=one,
            outcome=Outcome.SWEPT,
            deleted_objects=1,
            deleted_versions=1,
            deleted_markers=1,
            deleted_bytes=1,
            aborted_uploads=1,
            metadata_deleted=True,
        )
        for one in lines
    ]

    render.show_plan(Output(), plan, older_than_ms=0, grace_ms=0)
    render.show_results(Output(), results, plan_id="p", experiments=["1", "2"][:count], seconds=1)

    printed = capsys.readouterr().out
    for sentence in (due, gone, rows):
        assert sentence in printed
