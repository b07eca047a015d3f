"""What a second attack found: sweeps that were killed, rows that are gone, and deletions seen while ``gc`` has a claim.

Each was a way to purge too early, to mislay a deletion, or to say of a run what is not so.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import batching, database, fence, journal, notices
from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import DatabaseUnusable, RootRefused
from mlflow_artifact_gc.worker import Assignment, Worker, describe
from tests.command import gc, init, outcomes, run
from tests.integration.test_attack_sweep import once_before
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.working import NOW, intents, left, shift, tags, turn, watched, worker

MakeSite = Callable[[Site], Site]
GRACE: Final = ("--grace", "2h", "--min-object-age", "0s")
HOUR_MS: Final = 3_600_000
OBJECTS: Final = 4

# A worker, or `gc`, that dies by SIGKILL right after S3 has taken its first two deletes.
_KILLED: Final = """
import os, signal, sys, threading
from mlflow_artifact_gc import s3

delete = s3.delete

def some(client, bucket, entries, **how):
    delete(client, bucket, list(entries)[:2], **how)
    os.kill(os.getpid(), signal.SIGKILL)

s3.delete = some
sys.argv = ["mlflow-artifact-gc", *sys.argv[1:]]
from mlflow_artifact_gc.cli import main
main()
"""


@pytest.fixture
def hooked(site: Site) -> Site:
    """The plainest site, with the hook."""
    return watched(site)


@pytest.fixture
def any_site(db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """A site with the hook, on each kind of database."""
    return watched(make_site(Site.direct(db_uri, seaweed, bucket)))


def killed(site: Site, *command: str) -> None:
    """One of our commands, killed in the middle of a location."""
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    argv = [sys.executable, "-c", _KILLED, *command, *stores]
    done = subprocess.run(argv, env={**os.environ, **site.s3.environ()}, check=False)
    assert done.returncode == -signal.SIGKILL


def past_grace(site: Site, one: Worker | None = None) -> str:
    """A run that was deleted after ``init``, was seen by a worker, and is past its grace period."""
    init(site, *GRACE)
    site.execute("UPDATE artifact_gc_site SET switched_on_ms = switched_on_ms - :day", day=DAY_MS)
    run_id = site.run(site.experiment(), n_objects=OBJECTS)
    site.delete_run(run_id)
    (one or worker(site)).turn()
    if one is None:
        site.execute("UPDATE artifact_gc_lease SET owner = NULL")
    shift(site, 3 * HOUR_MS)
    return run_id


def in_between(monkeypatch: pytest.MonkeyPatch, site: Site, before: Any, after: Any) -> Any:
    """What ``gc`` reports when things happen right before and right after its claim."""
    admit = fence.Fence.admit

    def admitting(self: fence.Fence, lines: Any) -> Any:
        time.sleep(0.01)
        before()
        time.sleep(0.01)
        admission = admit(self, lines)
        after()
        return admission

    with monkeypatch.context() as patched:
        patched.setattr(fence.Fence, "admit", admitting)
        return gc(site, "--older-than", "2h")


# Killed


def test_a_killed_worker_s_sweep_is_finished_as_what_it_was(any_site: Site) -> None:
    """The next worker scans first: it goes on at once, and no run is told that it has a grace period."""
    site = any_site
    run_id = past_grace(site)
    killed(site, "worker", "--once")
    assert len(left(site, run_id)) == OBJECTS - 2
    site.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1")

    assert turn(site) == {run_id: "swept"}
    assert left(site, run_id) == []
    assert "purged" in tags(site, run_id)[notices.STATUS]


@pytest.mark.parametrize("deleted_again", [False, True])
def test_a_killed_sweep_and_a_restore(any_site: Site, *, deleted_again: bool) -> None:
    """The run says that something may be gone; deleted again, it says so too, and gets a whole grace period."""
    site = any_site
    run_id = past_grace(site)
    killed(site, "worker", "--once")
    site.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1")
    site.restore_run(run_id)
    if deleted_again:
        site.delete_run(run_id)

    assert turn(site) == {}
    assert "a sweep of it was killed" in tags(site, run_id)[notices.PURGED]
    assert (notices.EXPIRES in tags(site, run_id)) == deleted_again
    assert len(left(site, run_id)) == OBJECTS - 2
    shift(site, 3 * HOUR_MS)
    assert turn(site) == ({run_id: "swept"} if deleted_again else {})


def test_a_killed_gc_and_a_restored_experiment(any_site: Site) -> None:
    """What was deleted before ``init`` is ``gc``'s; when that was killed, its run says so once it is back."""
    site = any_site
    experiment = site.experiment()
    run_id = site.run(experiment, n_objects=OBJECTS)
    site.delete_experiment(experiment, deleted_ms=int(time.time() * 1000) - DAY_MS)
    init(site, *GRACE)
    killed(site, "gc", "--yes")
    site.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1")
    site.restore_experiment(experiment)
    turn(site)

    assert "a sweep of it was killed" in tags(site, run_id)[notices.PURGED]
    assert intents(site, "state") == [("cancelled",)]


def test_a_killed_gc_s_own_deletion_is_finished_by_the_worker(site: Site) -> None:
    """Deleted after ``init`` by a client without the hook, first seen by ``gc``, which died: a scan takes it up."""
    init(site, *GRACE)
    site.execute("UPDATE artifact_gc_site SET switched_on_ms = switched_on_ms - :day", day=DAY_MS)
    run_id = site.run(site.experiment(), n_objects=OBJECTS)
    site.delete_run(run_id, deleted_ms=int(time.time() * 1000) - 3 * HOUR_MS)
    killed(site, "gc", "--yes")
    site.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1")
    assert turn(site) == {}
    shift(site, 3 * HOUR_MS)
    assert turn(site) == {run_id: "swept"}


# Gone for good


def lost(site: Site) -> None:
    """The one intent keeps its place for an audit, the worker leaves it alone, and ``status`` says so."""
    assert intents(site, "state", "look_ms", "detail") == [("pending", None, journal.LOST)]
    ran = run("status", "--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    assert "Remembered: 1 location, because its row is gone for good" in ran.out


def test_a_late_writer_after_the_rows_were_deleted(hooked: Site) -> None:
    """The second look finds objects that no row accounts for: remembered, and not called restored."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    uri = site.artifact_uri(run_id)
    site.delete_run(run_id)
    assert outcomes(gc(site, "--metadata", "delete")) == {run_id: "swept"}
    site.write(run_id, uri, {"late.bin": 1})
    site.execute("UPDATE artifact_gc_intents SET swept_ms = swept_ms - :day", day=DAY_MS + 1000)
    turn(site)
    turn(site)
    lost(site)
    assert len(left(site, run_id)) == 1


def test_a_row_that_goes_by_a_client_without_the_hook(hooked: Site) -> None:
    """While it waits: remembered with its place."""
    site = hooked
    init(site, *GRACE)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    turn(site)
    site.execute("DELETE FROM tags")
    site.execute("DELETE FROM latest_metrics")
    site.execute("DELETE FROM runs WHERE run_uuid = :id", id=run_id)
    turn(site)
    lost(site)


@pytest.mark.parametrize("noted", [True, False])
def test_a_row_that_goes_while_gc_has_its_claim(hooked: Site, monkeypatch: pytest.MonkeyPatch, *, noted: bool) -> None:
    """Noted or not, drained meanwhile or not: nothing is deleted, and the place is remembered."""
    site = hooked
    one = worker(site)
    run_id = past_grace(site, one)

    def goes() -> None:
        if noted:
            site.store._hard_delete_run(run_id)
            one.turn()
        else:
            for table in ("tags", "latest_metrics", "runs"):
                site.execute(f"DELETE FROM {table} WHERE run_uuid = :id", id=run_id)

    report = in_between(monkeypatch, site, lambda: None, goes)
    one.turn()
    one.close()
    assert outcomes(report) == {run_id: "restored"}
    lost(site)
    assert len(left(site, run_id)) == OBJECTS


# Deleted again while somebody has the claim


def again(site: Site, run_id: str) -> None:
    """Restored and deleted again."""
    site.restore_run(run_id)
    site.delete_run(run_id)


@pytest.mark.parametrize("when", ["before the claim", "drained before the claim", "during the claim"])
def test_a_second_deletion_waits_for_its_own_date(any_site: Site, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """However it falls between ``gc``'s plan and its end: the run says until when, and goes then and not before."""
    site = any_site
    init(site, *GRACE)
    site.execute("UPDATE artifact_gc_site SET switched_on_ms = switched_on_ms - :day", day=DAY_MS)
    run_id = site.run(site.experiment(), n_objects=OBJECTS)
    site.delete_run(run_id)
    one = worker(site)
    one.turn()
    shift(site, 3 * HOUR_MS)
    one._scan_s = float("inf")  # a scan would find what was mislaid

    def again_and_drained() -> None:
        again(site, run_id)
        one.turn()

    happens: dict[str, tuple[Any, Any]] = {
        "before the claim": (lambda: again(site, run_id), one.turn),
        "drained before the claim": (again_and_drained, lambda: None),
        "during the claim": (lambda: None, again_and_drained),
    }
    assert outcomes(in_between(monkeypatch, site, *happens[when])) == {run_id: "restored"}
    for _ in range(2):
        assert one.turn() is None
    assert tags(site, run_id)[notices.STATUS].startswith("purge due ")
    assert len(left(site, run_id)) == OBJECTS
    shift(site, HOUR_MS)
    assert one.turn() is None
    shift(site, 2 * HOUR_MS)
    report = one.turn()
    assert report is not None
    assert [result.outcome.value for result in report.results] == ["swept"]
    one.close()


def test_restored_twice_while_gc_has_the_claim(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for a live run, and a worker that has nothing to do is idle."""
    site = hooked
    one = worker(site)
    run_id = past_grace(site, one)

    def back() -> None:
        again(site, run_id)
        site.restore_run(run_id)
        one.turn()

    assert outcomes(in_between(monkeypatch, site, lambda: None, back)) == {run_id: "restored"}
    one.turn()
    assert intents(site, "state") == [("cancelled",)]
    assert tags(site, run_id) == {}
    one.close()


def test_a_drain_between_the_look_and_the_claim(
    pg_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On PostgreSQL, with a client whose clock is behind: the worker writes it down while ``gc`` begins to claim."""
    site = watched(make_site(Site.direct(pg_uri, seaweed, bucket)))
    one = worker(site)
    run_id = past_grace(site, one)
    with site.engine.connect() as connection:
        date = connection.exec_driver_sql("SELECT deleted_time FROM runs").scalar_one()
    one._scan_s = float("inf")
    drains = threading.Thread(target=one.turn)
    claim = journal.claim

    def claiming(*arguments: Any, **how: Any) -> Any:
        drains.start()
        drains.join(1)  # it waits for the claim's transaction, where that has looked at the row
        return claim(*arguments, **how)

    def before() -> None:
        again(site, run_id)
        site.execute("UPDATE runs SET deleted_time = :ms", ms=date)

    monkeypatch.setattr(journal, "claim", claiming)
    report = in_between(monkeypatch, site, before, lambda: None)
    drains.join()
    one.close()
    assert outcomes(report) == {run_id: "restored"}
    assert len(left(site, run_id)) == OBJECTS


# A registry in a database of its own


def test_a_registration_elsewhere_during_a_sweep(
    site: Site, sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook cannot refuse it there: the fence asks that registry before each batch whether it has changed."""
    shutil.copyfile(sqlite_template, tmp_path / "registry.db")
    site.registry_uri = f"sqlite:///{tmp_path / 'registry.db'}"
    watched(site)
    init(site, *NOW)
    experiment = site.experiment()
    run_id, other = site.run(experiment, n_objects=OBJECTS), site.run(experiment, n_objects=OBJECTS)
    for one in (run_id, other):
        site.delete_run(one)
    stand = batching.Batch.stand

    def late(self: batching.Batch, seen: batching.Seen) -> batching.Ground:
        site.register("churn", f"{site.artifact_uri(run_id)}/data", run_id=run_id)
        return stand(self, seen)

    monkeypatch.setattr(batching.Batch, "stand", late)
    assert turn(site) == {run_id: "protected", other: "swept"}
    assert len(left(site, run_id)) == OBJECTS


# What is said


def test_status_says_why_the_worker_could_not(hooked: Site) -> None:
    """A bucket that keeps versions, and nobody said what to do with them."""
    site = hooked
    site.switch_versioning(on=True)
    init(site, *NOW)
    site.delete_run(site.run(site.experiment(), n_objects=1))
    one = worker(site)
    one.turn()
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    said = run("status", *stores).out
    (told,) = run("status", *stores, "--format", "json").json["worker"]["troubled"]
    one.close()
    assert "the worker could not purge it yet" in said
    assert "Not purged at the last try: 1 location, paused: bucket" in said
    assert (told["locations"], "init --action purge" in told["why"]) == (1, True)


def test_a_password_in_the_destination_is_never_shown(site: Site) -> None:
    """MLflow takes ``sftp://user:password@host`` as a destination; it is no business of anybody who reads a log."""
    secret = "tr0ub4dor"
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    for host in ("one", "two"):
        ran = run("init", *stores, "--artifacts-destination", f"sftp://bob:{secret}/{secret}@{host}/data?key={secret}")
        assert secret not in ran.out + ran.err
    assert "sftp://two/data" in ran.out
    stranger = Assignment(backend_store_uri=site.uri, artifacts_destination="sftp://three/data")
    one = Worker(stranger, Settings.from_env(site.s3.environ()), threading.Event())
    with pytest.raises(RootRefused, match="sftp://three/data, and the site's is sftp://two/data"):
        one.turn()
    assert "sftp://three/data" in describe(stranger, Settings.from_env({}))


@pytest.mark.parametrize("uri", ["postgresql+psycopg2://me:a@tr0ub4dor/x@localhost/db"])
def test_a_password_that_is_not_escaped_is_not_shown(uri: str) -> None:
    """Part of it would be taken for the host, and part of it for the database."""
    with pytest.raises(DatabaseUnusable, match="%2F") as refused:
        database.open_engine(uri)
    assert "tr0ub4dor" not in str(refused.value)


# Registered after the claim, by a text that does not say whose it is


def _imported(site: Site) -> tuple[str, str]:
    """A deleted run with an id that MLflow does not make; the id, and what is registered then."""
    uri = f"{site.artifact_root}/{site.experiment()}/imported_1/artifacts"
    site.execute(
        "INSERT INTO runs (run_uuid, name, lifecycle_stage, experiment_id, artifact_uri, deleted_time, status)"
        " VALUES ('imported_1', 'old', 'deleted', :experiment, :uri, 1, 'FINISHED')",
        experiment=int(uri.split("/")[-3]),
        uri=uri,
    )
    site.write("imported_1", uri, {f"model/{number}": 5 for number in range(OBJECTS)})
    return "imported_1", f"{uri}/model"


def _around(site: Site) -> tuple[str, str]:
    """A deleted run, and its experiment's folder."""
    experiment = site.experiment()
    dead = site.run(experiment, n_objects=OBJECTS)
    site.delete_run(dead)
    return dead, f"{site.artifact_root}/{experiment}"


def _model_of_run(site: Site) -> tuple[str, str]:
    """A deleted logged model, and a path in the live run that it was made in: MLflow looks for it there too."""
    experiment = site.experiment()
    run_id = site.run(experiment)
    model = site.logged_model(experiment, run_id, n_objects=OBJECTS)
    site.delete_logged_model(model)
    return model, f"runs:/{run_id}/model"


@pytest.mark.parametrize("beside", ["", "the worker drains the inbox", "the clock was put back"])
@pytest.mark.parametrize(
    "make", [_imported, _around, pytest.param(_model_of_run, marks=pytest.mark.needs("logged_models"))]
)
def test_a_registration_that_does_not_say_the_id_is_seen_before_the_next_batch(
    hooked: Site, monkeypatch: pytest.MonkeyPatch, make: Callable[[Site], tuple[str, str]], beside: str
) -> None:
    """The hook, which looks for ids, lets it pass; the sweep reads everything again and deletes nothing."""
    init(hooked, *GRACE)
    dead, source = make(hooked)

    def act() -> None:
        hooked.register("churn", source)
        if "worker" in beside:
            turn(hooked)
            turn(hooked)
        if "clock" in beside:
            hooked.execute("UPDATE artifact_gc_inbox SET recorded_ms = recorded_ms - 600000")

    acted = once_before(monkeypatch, fence.Fence, "changed", act)
    report = gc(hooked, "--include-undated")

    assert acted
    assert outcomes(report) == {dead: "protected"}
    assert len(left(hooked, dead)) == OBJECTS


def test_a_claim_that_has_run_out_is_not_renewed(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it had, a registration by the very id was let pass: the sweep begins anew, however late it wakes up."""
    init(hooked, *GRACE)
    dead = hooked.run(hooked.experiment(), n_objects=OBJECTS)
    hooked.delete_run(dead)

    def act() -> None:
        ((owner,),) = intents(hooked, "claimed_by")
        hooked.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1")
        hooked.register("churn", f"{hooked.artifact_uri(dead)}/model", run_id=dead)
        with database.writing(hooked.engine) as connection:
            assert journal.renew(connection, owner=owner, until_ms=2**50) == 0

    acted = once_before(monkeypatch, fence.Fence, "changed", act)
    report = gc(hooked)

    assert acted
    assert outcomes(report) == {dead: "protected"}
    assert len(left(hooked, dead)) == OBJECTS


def test_where_the_hook_cannot_ask_its_note_stays(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registration passes, as nothing of ours stops MLflow; whoever sweeps sees that there is a new one."""
    init(hooked, *GRACE)
    dead = hooked.run(hooked.experiment(), n_objects=OBJECTS)
    hooked.delete_run(dead)

    def fails(*_arguments: Any) -> list[str]:
        raise sa.exc.OperationalError("SELECT", {}, Exception("too many connections"))

    def act() -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(journal, "being_swept", fails)
            hooked.register("churn", f"{hooked.artifact_uri(dead)}/model", run_id=dead)

    acted = once_before(monkeypatch, fence.Fence, "changed", act)
    report = gc(hooked)

    assert acted
    assert outcomes(report) == {dead: "protected"}
    assert len(left(hooked, dead)) == OBJECTS
