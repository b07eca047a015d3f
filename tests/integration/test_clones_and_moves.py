"""Clones and moves of a database, its bucket or its registry stop every action, until somebody says which is right.

``gc`` that purges: ``test_a_clone_on_postgresql_stops``, ``test_a_moved_database_is_adopted``,
``test_a_copy_that_pretends_to_be_the_original``, ``test_a_marker_that_is_gone`` in ``test_init.py``, and
``test_another_registry`` in ``test_bad_input.py``. Here: hide, tag and undo, the worker, and what waits for S3.
"""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import ArtifactGcError
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Outcome
from mlflow_artifact_gc.s3 import MARKER_NAME, marker
from mlflow_artifact_gc.worker import Assignment, Worker
from tests.command import gc, init, outcomes, run
from tests.fakes3 import FakeS3, fake_s3
from tests.fakes3.keeping import Bucket
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.working import NOW, elapse, intents, turn, watched

MakeSite = Callable[[Site], Site]


@pytest.fixture
def site(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Site:
    """Production: SQLite and moto."""
    return make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))


@pytest.mark.parametrize("action", ["hide", "tag"])
def test_a_clone_neither_acts_nor_takes_back(action: str, site: Site, make_site: MakeSite, tmp_path: Path) -> None:
    """Both refuse with the way on, and change no version, marker or tag of what production hid or tagged."""
    site.switch_versioning(on=action == "hide")
    experiment = site.experiment()
    waiting, dead = site.run(experiment, n_objects=2), site.run(experiment, n_objects=2)
    prepared(site, action)
    site.delete_run(waiting)
    assert outcomes(gc(site)) == {waiting: "waiting"}
    site.delete_run(dead)
    site.close()
    shutil.copyfile(site.uri.removeprefix("sqlite:///"), tmp_path / "staging.db")
    clone = make_site(
        Site(
            uri=f"sqlite:///{tmp_path / 'staging.db'}", s3=site.s3, bucket=site.bucket, artifact_root=site.artifact_root
        )
    )

    before = sight(clone)
    for command in (("gc", "--yes", "--older-than", "0s"), ("undo", "--run-ids", waiting)):
        ran = run(command[0], "--backend-store-uri", clone.uri, *command[1:])
        assert ran.code == 1, (command, ran.out, ran.err)
        assert "init --adopt" in ran.err, (command, ran.err)
        assert sight(clone) == before, command


def prepared(site: Site, action: str) -> None:
    """The site is set up for the action, and so is its bucket."""
    init(site, *NOW, "--action", action)
    ruled(site, action)


def ruled(site: Site, action: str) -> None:
    """To tag, the bucket has its rules."""
    if action == "tag":
        ran = run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes")
        assert ran.code == 0, ran.err


def sight(site: Site) -> tuple[object, ...]:
    """Everything in the bucket, and the tags of each object."""
    now = site.snapshot()
    tags = {key: site.client.get_object_tagging(Bucket=site.bucket, Key=key)["TagSet"] for key in sorted(now.keys)}
    return now.items, tags


def put_empty(fake: FakeS3, bucket: str) -> Bucket:
    """An empty bucket of the same name and settings takes the place of one; that one."""
    right = fake.bucket(bucket)
    empty = fake.make_bucket(bucket)
    empty.versioning, empty.lifecycle, empty.lifecycle_xml = right.versioning, right.lifecycle, right.lifecycle_xml
    return right


def turn_of(site: Site) -> dict[str, str]:
    """How a turn of a new worker ends each location, of S3 as the site has it; under ``stopped``: what stops it."""
    assignment = Assignment(backend_store_uri=site.uri, registry_store_uri=site.registry_uri or site.uri)
    one = Worker(assignment, Settings.from_env(site.s3.environ()), threading.Event())
    try:
        report = one.turn()
    except ArtifactGcError as error:
        return {"stopped": str(error)}
    finally:
        one.close()
    if report is None:
        return {}
    paused = [result.detail for result in report.results if result.outcome is Outcome.PAUSED]
    return (
        {"stopped": paused[0]}
        if paused
        else {result.decision.entity.id: result.outcome.value for result in report.results}
    )


def assert_stops(site: Site, *says: str) -> None:
    """The worker's turn says why, and changes nothing."""
    before = sight(site)
    told = turn_of(site)
    for words in says:
        assert words in told.get("stopped", ""), told
    assert sight(site) == before


def deleted(site: Site, experiment: str) -> str:
    """A deleted run with an object."""
    made = site.run(experiment, n_objects=1)
    site.delete_run(made)
    return made


def versions(*, kept: bool) -> str:
    """What a bucket of ``tests/fakes3`` says of its versioning."""
    return "Enabled" if kept else ""


@pytest.mark.parametrize("action", ["purge", "hide", "tag"])
def test_the_worker_stops_when_its_database_has_moved(
    action: str, site: Site, make_site: MakeSite, tmp_path: Path
) -> None:
    """It is a copy, then put back from a backup, then its registry is elsewhere: the named option goes on each time."""
    site.switch_versioning(on=action == "hide")
    watched(site)
    end = "swept" if action == "purge" else "waiting"
    experiment = site.experiment()
    live = site.run(experiment, n_objects=2)
    prepared(site, action)
    kept = {item for item in site.items() if live in item.key}
    first = deleted(site, experiment)
    assert turn_of(site) == {first: end}
    second = deleted(site, experiment)
    site.close()
    backup, moved, registry = (tmp_path / f"{name}.db" for name in ("backup", "moved", "registry"))

    def at_its_new_place(registry_uri: str | None = None) -> Site:
        return watched(make_site(dataclasses.replace(site, uri=f"sqlite:///{moved}", registry_uri=registry_uri)))

    shutil.copyfile(site.uri.removeprefix("sqlite:///"), moved)
    here = at_its_new_place()
    assert_stops(here, "copy, or it was moved", "init --adopt")
    init(here, "--adopt")
    here.close()
    shutil.copyfile(moved, backup)
    here = at_its_new_place()
    assert turn_of(here) == {second: end}

    here.close()
    shutil.copyfile(backup, moved)
    here = at_its_new_place()
    assert_stops(here, "ahead of this database", "init --adopt")
    init(here, "--adopt")
    elapse(here, 10 * 60_000)
    assert turn_of(here) == {second: "empty" if action == "purge" else "waiting"}

    third = deleted(here, experiment)
    here.close()
    shutil.copyfile(backup, registry)
    here = at_its_new_place(f"sqlite:///{registry}")
    assert_stops(here, "model registry", "init --registry-store-uri")
    init(here)
    assert turn_of(here) == {third: end}
    assert {item for item in here.items() if live in item.key} == kept


@pytest.mark.parametrize("action", ["purge", "hide", "tag"])
def test_the_worker_stops_when_s3_is_another(
    action: str, site: Site, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint with an empty bucket of that name; the site moves there; that bucket is replaced by an empty one."""
    site.switch_versioning(on=action == "hide")
    watched(site)
    end = "swept" if action == "purge" else "waiting"
    experiment = site.experiment()
    live = site.run(experiment, n_objects=2)
    prepared(site, action)
    first = deleted(site, experiment)
    assert turn_of(site) == {first: end}
    second = deleted(site, experiment)
    before = site.snapshot()
    with fake_s3() as fake:
        fake.make_bucket(site.bucket).versioning = versions(kept=action == "hide")
        there = make_site(dataclasses.replace(site, s3=fake.server))
        assert_stops(there, "MLFLOW_S3_ENDPOINT_URL", "init --adopt")
        for key in before.keys:
            body = site.client.get_object(Bucket=site.bucket, Key=key)["Body"].read()
            there.client.put_object(Bucket=site.bucket, Key=key, Body=body)
        for name, value in fake.server.environ().items():
            monkeypatch.setenv(name, value)
        init(there, "--adopt")
        ruled(there, action)
        elapse(there, 10 * 60_000)
        assert turn_of(there)[second] == end
        assert site.snapshot().items == before.items
        assert len([key for key in there.snapshot().keys if live in key]) == 2

        put_empty(fake, site.bucket)
        third = deleted(watched(there), experiment)
        assert_stops(there, "marker object", "is gone", "init --adopt")
        init(there, "--adopt")
        elapse(there, 10 * 60_000)
        assert turn_of(there)[third] == end


@pytest.mark.parametrize(("action", "ahead"), [("hide", False), ("tag", False), ("tag", True)])
def test_a_bucket_is_replaced_while_something_waits_in_it(
    action: str,
    sqlite_uri: str,
    make_site: MakeSite,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    ahead: bool,
) -> None:
    """In the empty one it has not gone, and nothing is taken back for good; in the right one both go on."""
    with fake_s3() as fake:
        site = on_fake(fake, sqlite_uri, make_site, monkeypatch, kept=action == "hide")
        experiment = site.experiment()
        back, gone = (site.run(experiment, n_objects=2) for _ in range(2))
        prepared(site, action)
        for run_id in (back, gone):
            site.delete_run(run_id)
        assert outcomes(gc(site)) == {back: "waiting", gone: "waiting"}
        stores = ("--backend-store-uri", site.uri)

        fake.age(2 * DAY_MS)
        elapse(site, 2 * DAY_MS)
        right = put_empty(fake, "bucket")
        turn(site)
        assert wait_still(site)
        assert "marker object under s3://bucket/mlruns/ is gone" in caplog.text
        told = run("status", *stores).out
        assert "Hidden or tagged, and not looked at: 2 locations; the first one: The marker object" in told
        look_at_once(site)
        ran = run("gc", *stores, "--yes", "--older-than", "0s", "--min-object-age", "0s")
        assert (ran.code, wait_still(site)) == (1, True)
        assert "Not looked at, what is hidden or tagged: The marker object" in ran.err

        site.restore_run(back)
        assert "Not taken back: s3://bucket/mlruns/" in gc(site, expect=3)["error"]
        undone = run("undo", *stores, "--run-ids", back)
        assert (undone.code, wait_still(site)) == (3, True)
        assert "is gone" in undone.err
        assert "0 objects in 0 locations" in undone.out

        empty = fake.bucket("bucket")
        fake.kept.buckets["bucket"] = right
        another_marker(site, right, back, ahead=ahead)
        look_at_once(site)
        turn(site)
        assert sorted(intents(site, "state", "acted_from_ms IS NULL")) == [("cancelled", 1), ("waiting", 0)]
        assert len(shown(site, gone)) == (0 if action == "hide" else 2)

        fake.kept.buckets["bucket"] = empty
        init(site, "--adopt")
        look_at_once(site)
        turn(site)
        assert sorted(intents(site, "state", "deleted_objects")) == [("cancelled", 0), ("swept", 2)]


def another_marker(site: Site, bucket: Bucket, back: str, *, ahead: bool) -> None:
    """The root's marker is another database's for a time, and gone, or ``ahead``, for another; ``back`` is live."""
    key, root = f"mlruns/{MARKER_NAME}", Location(bucket.name, "mlruns/")
    kept, own = bucket.keys[key], marker.read(site.client, root)
    assert own is not None

    def taken_back() -> list[bool]:
        """Of each object of the run that is live again whether it is there without our tag, after one more try."""
        look_at_once(site)
        turn(site)
        assert wait_still(site)
        return [not (tops[0].is_marker or tops[0].tags) for name, tops in bucket.keys.items() if back in name]

    bucket.keys[key] = []
    marker.write(site.client, root, dataclasses.replace(own, database_id="another"))
    assert taken_back() == [False] * 2, "it may be another database's object by now"
    del bucket.keys[key]
    if ahead:
        marker.write(site.client, root, dataclasses.replace(own, epoch=own.epoch + 1_000))
    assert taken_back() == [True] * 2, "what is live is not left to the rule, whoever has removed the marker"
    bucket.keys[key] = kept


def test_a_bucket_is_replaced_before_the_second_look(
    sqlite_uri: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one says nothing of late writers: a swept location is closed only by a look into its own bucket."""
    with fake_s3() as fake:
        site = on_fake(fake, sqlite_uri, make_site, monkeypatch, kept=False)
        init(site, *NOW)
        dead = deleted(site, site.experiment())
        assert outcomes(gc(site)) == {dead: "swept"}
        right = put_empty(fake, "bucket")
        elapse(site, 2 * DAY_MS)
        turn(site)
        assert intents(site, "state") == [("swept",)]
        fake.kept.buckets["bucket"] = right
        turn(site)
        assert intents(site, "state") == [("closed",)]


def on_fake(fake: FakeS3, uri: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, *, kept: bool) -> Site:
    """A site on an S3 whose buckets can be exchanged, to which the environment points."""
    fake.make_bucket("bucket").versioning = versions(kept=kept)
    for name, value in fake.server.environ().items():
        monkeypatch.setenv(name, value)
    return watched(make_site(Site.direct(uri, fake.server, "bucket")))


def wait_still(site: Site) -> bool:
    """Whether the journal has both runs as it had them when they were hidden or tagged."""
    columns = intents(site, "state", "waiting_objects", "deleted_objects", "acted_from_ms IS NULL")
    return columns == [("waiting", 2, 0, 0)] * 2


def look_at_once(site: Site) -> None:
    """Everything is to be looked at."""
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1")


def shown(site: Site, run_id: str) -> list[str]:
    """The keys of a run that a plain listing shows."""
    return sorted(key for key in site.snapshot().keys if run_id in key)
