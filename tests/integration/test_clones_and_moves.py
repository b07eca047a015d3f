"""Clones and moves of a database, its bucket or its registry stop every action, until somebody says which is right.

``gc`` that purges: ``test_a_clone_on_postgresql_stops``, ``test_a_moved_database_is_adopted``,
``test_a_copy_that_pretends_to_be_the_original``, ``test_a_marker_that_is_gone`` in ``test_init.py``, and
``test_another_registry`` in ``test_bad_input.py``. Here: hide, tag and undo, and the worker.
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
from mlflow_artifact_gc.model import Outcome
from mlflow_artifact_gc.worker import Assignment, Worker
from tests.command import gc, init, outcomes, run
from tests.fakes3 import fake_s3
from tests.servers import S3Server
from tests.site import Site
from tests.working import NOW, elapse, watched

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
    init(site, *NOW, "--action", action)
    if action == "tag":
        assert run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes").code == 0
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

    def seen() -> tuple[object, ...]:
        keys = sorted(clone.snapshot().keys)
        tags = [clone.client.get_object_tagging(Bucket=clone.bucket, Key=key)["TagSet"] for key in keys]
        return clone.snapshot().items, keys, tags

    before = seen()
    for command in (("gc", "--yes", "--older-than", "0s"), ("undo", "--run-ids", waiting)):
        ran = run(command[0], "--backend-store-uri", clone.uri, *command[1:])
        assert ran.code == 1, (command, ran.out, ran.err)
        assert "init --adopt" in ran.err, (command, ran.err)
        assert seen() == before, command


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
    before = site.snapshot()
    told = turn_of(site)
    for words in says:
        assert words in told.get("stopped", ""), told
    assert site.snapshot().items == before.items


def deleted(site: Site, experiment: str) -> str:
    """A deleted run with an object."""
    made = site.run(experiment, n_objects=1)
    site.delete_run(made)
    return made


def versions(*, kept: bool) -> str:
    """What a bucket of ``tests/fakes3`` says of its versioning."""
    return "Enabled" if kept else ""


@pytest.mark.parametrize("action", ["purge", "hide"])
def test_the_worker_stops_when_its_database_has_moved(
    action: str, site: Site, make_site: MakeSite, tmp_path: Path
) -> None:
    """It is a copy, then put back from a backup, then its registry is elsewhere: the named option goes on each time."""
    site.switch_versioning(on=action == "hide")
    watched(site)
    end = "swept" if action == "purge" else "waiting"
    experiment = site.experiment()
    live = site.run(experiment, n_objects=2)
    init(site, *NOW, "--action", action)
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


@pytest.mark.parametrize("action", ["purge", "hide"])
def test_the_worker_stops_when_s3_is_another(
    action: str, site: Site, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint with an empty bucket of that name; the site moves there; that bucket is replaced by an empty one."""
    site.switch_versioning(on=action == "hide")
    watched(site)
    end = "swept" if action == "purge" else "waiting"
    experiment = site.experiment()
    live = site.run(experiment, n_objects=2)
    init(site, *NOW, "--action", action)
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
        elapse(there, 10 * 60_000)
        assert turn_of(there)[second] == end
        assert site.snapshot().items == before.items
        assert len([key for key in there.snapshot().keys if live in key]) == 2

        fake.make_bucket(site.bucket).versioning = versions(kept=action == "hide")
        third = deleted(watched(there), experiment)
        assert_stops(there, "marker object", "is gone", "init --adopt")
        init(there, "--adopt")
        elapse(there, 10 * 60_000)
        assert turn_of(there)[third] == end
