"""Attempts to make MLflow's users, or a second ``gc``, wait or fail because of us."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import database, journal, references
from mlflow_artifact_gc.errors import DatabaseUnusable
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.metadata import Eraser
from mlflow_artifact_gc.model import (
    Action,
    Decision,
    Entity,
    EntityKind,
    Limits,
    Outcome,
    Plan,
    Reason,
    SweepResult,
)
from tests.command import gc, init
from tests.servers import S3Server
from tests.site import Site


def test_reading_the_references_does_not_lock_out_a_user_who_deletes_a_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleting in MLflow never fails and never waits because of us: reading on SQLite holds one lock at a time."""
    experiment = site.experiment()
    deleted, other = site.run(experiment, n_objects=1), site.run(experiment)
    site.delete_run(deleted)
    init(site)
    gather = references.gather
    took: list[float] = []
    errors: list[Exception] = []
    users: list[threading.Thread] = []

    def delete() -> None:
        began = time.monotonic()
        try:
            site.store.delete_run(other)
        except Exception as error:  # noqa: BLE001 - what the user sees
            errors.append(error)
        took.append(time.monotonic() - began)

    def while_a_user_deletes(tracking: Any, registry: Any, *more: Any) -> Any:
        if not users:
            users.append(threading.Thread(target=delete))
            users[0].start()
            time.sleep(1)
        return gather(tracking, registry, *more)

    monkeypatch.setattr(references, "gather", while_a_user_deletes)
    try:
        gc(site)
    finally:
        users[0].join()

    assert not errors
    assert took[0] < 10


def _line(number: int, id_: str) -> Decision:
    return Decision(
        entity=Entity(kind=EntityKind.RUN, id=id_, experiment_id="1"),
        uri=f"s3://bucket/1/{id_}/artifacts",
        location=Location("bucket", f"1/{id_}/artifacts/"),
        deleted_ms=number,
        reason=Reason.DUE,
    )


@pytest.fixture
def pg_site(pg_uri: str, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]) -> Site:
    """A site on PostgreSQL: there two transactions can wait for each other."""
    return make_site(Site.direct(pg_uri, seaweed, bucket))


def test_recording_and_claiming_do_not_wait_for_each_other(pg_site: Site) -> None:
    """A gc that records results and a gc that claims the same locations both go on: rows are locked in one order."""
    site = pg_site
    init(site)
    # A slow server: every update of an intent takes a moment.
    site.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$"
    )
    lines = [_line(number, f"{number:032x}") for number in range(4)]
    engine = database.open_engine(site.uri)
    now_ms, until_ms = 1_000, 10**15
    plan = Plan(
        id="plan",
        created_ms=now_ms,
        cutoff_ms=now_ms,
        action=Action.PURGE,
        database_id="one",
        entity_rows=len(lines),
        limits=Limits(),
        decisions=tuple(lines),
    )

    def claim(owner: str) -> None:
        with database.writing(engine) as connection:
            journal.claim(connection, lines, plan, owner=owner, now_ms=now_ms, until_ms=until_ms)

    claim("first")
    site.execute("CREATE TRIGGER slow BEFORE UPDATE ON artifact_gc_intents FOR EACH ROW EXECUTE FUNCTION slow()")
    with site.engine.connect() as connection:
        keys = list(
            connection.execute(sa.text("SELECT location_sha256 FROM artifact_gc_intents ORDER BY id")).scalars()
        )
    by_key = {journal.sha256(line.location): line for line in lines if line.location}
    # Locations end in any order; here in the one that is the reverse of the claims'.
    ended = [SweepResult(decision=by_key[key], outcome=Outcome.SWEPT) for key in reversed(keys)]
    errors: list[Exception] = []

    def record() -> None:
        try:
            with database.writing(engine) as connection:
                journal.record(connection, ended, owner="first", now_ms=now_ms)
        except DatabaseUnusable as error:
            errors.append(error)

    recording = threading.Thread(target=record)
    recording.start()
    time.sleep(0.45)
    try:
        claim("second")
    except DatabaseUnusable as error:
        errors.append(error)
    recording.join()
    engine.dispose()

    assert not errors


def test_a_run_can_be_made_in_a_live_experiment_while_rows_of_its_deleted_runs_go(
    pg_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who makes a run waits because rows of deleted runs of the same experiment are being deleted."""
    site = pg_site
    experiment = site.experiment()
    site.delete_run(site.run(experiment, n_objects=1))
    init(site)
    lock = Eraser._lock
    made = threading.Event()

    def make() -> None:
        site.run(experiment)
        made.set()

    def while_a_user_makes_a_run(self: Eraser, *arguments: Any) -> None:
        lock(self, *arguments)
        user = threading.Thread(target=make)
        user.start()
        # As long as the rows of a run with millions of metrics take.
        waited.append(made.wait(3))

    waited: list[bool] = []
    monkeypatch.setattr(Eraser, "_lock", while_a_user_makes_a_run)
    gc(site, "--metadata", "delete")

    assert waited == [True]
