"""What a plan asks of a database does not grow with what is deleted; the times and sizes are in benchmarks.backlog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.backlog import build
from mlflow_artifact_gc import fence, planning, references, registry, sweeping
from mlflow_artifact_gc.locations import Destination
from mlflow_artifact_gc.model import Reason
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.session import Reading, Session, open_session, read
from tests.command import gc, init, run
from tests.site import Site

_ROWS = 4_000
_FEW = 60
"""Statements: more than a plan sends, and fewer than one for every 60 of the rows."""


@contextmanager
def _seen(engine: sa.Engine) -> Iterator[list[str]]:
    statements: list[str] = []

    def see(_connection: object, _cursor: object, statement: str, *_others: object) -> None:
        statements.append(statement)

    sa.event.listen(engine, "before_cursor_execute", see)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", see)


def _opened(uri: str) -> Session:
    stores = {"backend_store_uri": uri, "registry_store_uri": uri, "artifacts_destination": None}
    return open_session(**stores, unsafe_ignore_registry=False)


def _read(session: Session) -> Reading:
    return read(session, Scope(), cutoff_ms=10**13, include_undated=False, again=False)


def test_a_plan_sends_no_statement_per_run(db_uri: str) -> None:
    """Whatever is deleted, with as many logged models and versions, is decided by a few statements; and rightly so."""
    build(db_uri, _ROWS, dead=True)
    session = _opened(db_uri)
    with _seen(session.engine) as statements:
        found = _read(session)
    assert len(statements) < _FEW
    reasons = [line.reason for line in found.decisions]
    assert reasons.count(Reason.DUE) == _ROWS * 9 // 10
    assert reasons.count(Reason.PROTECTED) == _ROWS // 10
    for most in (_ROWS - 1, _ROWS):
        with session.tracked.reading() as tracking:
            kept = tracking.models_of_deleted_runs(most=most)
        assert (kept.count, len(kept.some)) == (_ROWS, most)
    session.engine.dispose()


def test_with_nothing_deleted_runs_are_read_once(db_uri: str) -> None:
    """And not the references: where nothing can be touched, nobody has to know what needs it."""
    build(db_uri, _ROWS, dead=False)
    session = _opened(db_uri)
    with _seen(session.engine) as statements:
        found = _read(session)
    assert not found.decisions
    assert sum(found.rows.values()) == _ROWS
    assert sum("FROM runs" in statement for statement in statements) == 1
    assert not any("model_versions" in statement for statement in statements)
    session.engine.dispose()


@pytest.mark.parametrize(("slow", "readings"), [(False, 7), (True, 3)])
def test_where_reading_is_slow_more_is_asked_for_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, slow: bool, readings: int
) -> None:
    """28 runs, four at a time: the references are read for each four, or for four, eight and sixteen."""
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=1) for _ in range(28)]
    for run_id in dead:
        site.delete_run(run_id)
    init(site)
    monkeypatch.setattr(sweeping, "_BATCH", 4)
    monkeypatch.setattr(fence, "_CLAIMED_AT_ONCE", 3)
    monkeypatch.setattr(sweeping, "_SLOW_READ_S", 0.0 if slow else 60.0)
    calls = _counted_readings(monkeypatch)
    report = gc(site)

    assert {row["id"]: row["outcome"] for row in report["results"]} == dict.fromkeys(dead, "swept")
    assert len(calls) == 1 + readings  # one for the plan


def test_a_hold_between_the_batches_of_a_portion_is_read_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps what it is on; not each listing that is left of the portion reads all references for itself."""
    experiment = site.experiment()
    dead = sorted(site.run(experiment, n_objects=1) for _ in range(28))
    for run_id in dead:
        site.delete_run(run_id)
    init(site)
    monkeypatch.setattr(sweeping, "_BATCH", 4)
    monkeypatch.setattr(sweeping, "_SLOW_READ_S", 0.0)
    calls = _counted_readings(monkeypatch)
    acted: list[int] = []
    act = sweeping._Sweep._act

    def then_held(sweep: Any, *arguments: Any) -> None:
        act(sweep, *arguments)
        acted.append(1)
        if len(acted) == 2:  # of the second portion, which has eight, the first batch
            held = ("--run-id", dead[8], "--reason", "audit", "--author", "alice")
            assert run("hold", "add", "--backend-store-uri", site.uri, *held).code == 0

    monkeypatch.setattr(sweeping._Sweep, "_act", then_held)
    report = gc(site)

    ends = {row["id"]: row["outcome"] for row in report["results"]}
    assert ends == {**dict.fromkeys(dead, "swept"), dead[8]: "protected"}
    assert len(calls) == 1 + 3 + 1  # the plan, three portions, and what was left of the second


def _counted_readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = references.read

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(references, "read", counted)
    return calls


def test_what_a_hold_leads_to_is_read_at_once_the_next_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which registered model a hold is on is known only when the registry was read: twice at first, and then once."""
    run_id = site.run(site.experiment(), n_objects=1)
    site.register("churn", site.artifact_uri(run_id), run_id=run_id)
    init(site)
    held = ("--registered-model", "churn", "--reason", "audit", "--author", "alice")
    assert run("hold", "add", "--backend-store-uri", site.uri, *held).code == 0
    read_registry, sieve = registry.Registry.read, planning.Candidates([], Destination())
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return read_registry(*arguments)

    monkeypatch.setattr(registry.Registry, "read", counted)
    tracked = references.TrackingDatabase.probe(site.engine, models_follow_run=False)
    counts: list[int] = []
    for _ in range(2):
        calls.clear()
        references.read(tracked, site.engine, sieve)
        counts.append(len(calls))

    assert counts == [2, 1]


@pytest.mark.parametrize("few", [1, 500])
def test_versions_of_many_names_are_read_by_one_scan(site: Site, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """No index leads by the name. Copies of many models' versions: what they lead to is the same, by one query."""
    experiment = site.experiment()
    runs = [site.run(experiment) for _ in range(4)]
    for number, run_id in enumerate(runs):
        site.register(f"model-{number}", site.artifact_uri(run_id), run_id=run_id)
        site.register(f"copy-{number}", f"models:/model-{number}/1")
    monkeypatch.setattr(registry, "_FEW_NAMES", few)
    with site.engine.connect() as connection, _seen(site.engine) as statements:
        found = registry.Registry(connection).read(names=())

    led = {reference.text for reference in found.references if "copy-" in reference.holder}
    assert {site.artifact_uri(run_id) for run_id in runs} <= led
    # The stream; what it leads to, which is models alone; their names.
    assert len([one for one in statements if "FROM model_versions" in one]) == 3
