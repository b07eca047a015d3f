"""Attempts to change the bucket, or its owner, in the middle of a batch: between the look, the markers and the deletes.

Each test names the moment by a function of ours that it wraps, and lets somebody else act just then.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import acting, s3
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.ownership import Roots
from mlflow_artifact_gc.purging import Purger
from mlflow_artifact_gc.s3 import marker
from mlflow_artifact_gc.surveying import Surveyor
from tests.command import gc, init, outcomes
from tests.oracle import MARKER_NAME, assert_bucket_sound
from tests.site import Site

FOREIGN = marker.Marker(database_id="another", epoch=1, fingerprint="sqlite:/elsewhere")


def once_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object]) -> list[str]:
    """Have ``act`` run just before the first call of ``owner.name``; the answer is empty until it has."""
    original = getattr(owner, name)
    acted: list[str] = []

    def wrapper(*arguments: Any, **named: Any) -> Any:
        if not acted:
            acted.append(name)
            act()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, wrapper)
    return acted


def deleted_run(site: Site, *, n_objects: int) -> str:
    """A deleted run, opted in."""
    made = site.run(site.experiment(), n_objects=n_objects)
    site.delete_run(made)
    init(site)
    return made


def markers(site: Site) -> set[str]:
    """The keys of all marker objects in the bucket."""
    return {key for key in site.snapshot().keys if key.endswith(MARKER_NAME)}


# Between the look and the first delete


def test_a_look_that_is_older_than_a_minute_is_made_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written after a look that has grown old keeps its location: a new object does not go by an old age."""
    monkeypatch.setattr(acting, "AGE_MARGIN_MS", 0)
    monkeypatch.setattr(acting, "_FRESH_S", 0.0)
    deleted = deleted_run(site, n_objects=1)
    (key,) = site.snapshot().keys
    time.sleep(3)
    before = site.snapshot()

    def write_again() -> None:
        site.client.put_object(Bucket=site.bucket, Key=key, Body=b"a second life")

    acted = once_before(monkeypatch, Roots, "standing", write_again)
    report = gc(site, "--min-object-age", "2s")

    assert acted
    assert outcomes(report) == {deleted: "postponed"}
    assert_bucket_sound(site, report, before, written=[key])
    assert site.client.get_object(Bucket=site.bucket, Key=key)["Body"].read() == b"a second life"


def test_a_look_is_not_made_again_in_its_first_minute(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the test above: with a fresh look the location goes, so it was the second look that kept it."""
    monkeypatch.setattr(acting, "AGE_MARGIN_MS", 0)
    deleted = deleted_run(site, n_objects=1)
    time.sleep(3)
    looks: list[object] = []
    survey = Surveyor.survey

    def counted(self: Surveyor, *arguments: Any) -> Any:
        looks.append(arguments)
        return survey(self, *arguments)

    monkeypatch.setattr(Surveyor, "survey", counted)

    assert outcomes(gc(site, "--min-object-age", "2s")) == {deleted: "swept"}
    assert len(looks) == 1


def test_what_is_written_between_the_delete_and_the_last_listing_has_a_minimum_age(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go with the next round of the same sweep: the location is postponed, and says so."""
    monkeypatch.setattr(acting, "AGE_MARGIN_MS", 0)
    deleted = deleted_run(site, n_objects=1)
    time.sleep(3)
    before = site.snapshot()
    key = f"{site.key_of(site.artifact_uri(deleted))}/late"

    def write() -> None:
        site.client.put_object(Bucket=site.bucket, Key=key, Body=b"late")

    acted = once_before(monkeypatch, Surveyor, "remaining", write)
    report = gc(site, "--min-object-age", "2s")

    assert acted
    assert outcomes(report) == {deleted: "postponed"}
    assert_bucket_sound(site, report, before, written=[key])
    assert site.client.get_object(Bucket=site.bucket, Key=key)["Body"].read() == b"late"


def test_a_marker_that_appears_after_the_comparison_is_not_overwritten(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that another database makes its own while our listings run is that database's."""
    deleted = deleted_run(site, n_objects=2)
    root = Location(site.bucket, "mlruns/")
    before = site.snapshot()
    acted = once_before(monkeypatch, Roots, "standing", lambda: marker.write(site.client, root, FOREIGN))
    report = gc(site)

    assert acted
    assert marker.read(site.client, root) == FOREIGN
    assert outcomes(report) == {deleted: "foreign"}
    assert_bucket_sound(site, report, before, intact=(deleted,))


@pytest.mark.parametrize("folder", ["", "mlruns/1/"])
def test_no_marker_is_put_around_a_folder_that_is_not_ours(site: Site, folder: str) -> None:
    """Where every location is another database's, its owner finds no marker of ours, which would stop it."""
    deleted = deleted_run(site, n_objects=2)
    marker.write(site.client, Location(site.bucket, folder), FOREIGN)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {deleted: "foreign"}
    assert markers(site) == {folder + MARKER_NAME}
    assert_bucket_sound(site, report, before, intact=(deleted,))


def test_nothing_is_deleted_under_another_process_s_claim(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that has run out unnoticed, and that somebody else has now: it is waited for, and taken anew."""
    deleted = deleted_run(site, n_objects=2)
    before = site.snapshot()
    delete = s3.delete
    holders: list[str | None] = []

    def noted(*arguments: Any, **named: Any) -> Any:
        with site.engine.connect() as connection:
            holders.extend(connection.execute(sa.text("SELECT claimed_by FROM artifact_gc_intents")).scalars())
        return delete(*arguments, **named)

    def take_over() -> None:
        until_ms = int(time.time() * 1000) + 1500
        site.execute("UPDATE artifact_gc_intents SET claimed_by = 'elsewhere', claimed_until_ms = :ms", ms=until_ms)

    monkeypatch.setattr(s3, "delete", noted)
    acted = once_before(monkeypatch, Purger, "_round", take_over)
    report = gc(site)

    assert acted
    assert outcomes(report) == {deleted: "swept"}
    assert len(holders) == 1
    assert "elsewhere" not in holders
    assert_bucket_sound(site, report, before)


# Listings that tell nothing


def test_a_listing_that_failed_says_so_and_proves_nothing(proxied_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read neither as emptiness, which would cost the row, nor as a root that is not the right one."""
    site = proxied_site
    deleted = deleted_run(site, n_objects=2)
    before = site.snapshot()
    current = s3.current

    def failing(client: Any, bucket: str, prefix: str) -> Any:
        if deleted in prefix:
            raise s3.ListingIncomplete("the listing has no end")
        return current(client, bucket, prefix)

    with monkeypatch.context() as patched:
        patched.setattr(s3, "current", failing)
        first = gc(site, "--metadata", "delete", expect=3)
    seen = markers(site)
    second = gc(site, "--metadata", "delete")

    assert outcomes(first) == {deleted: "failed"}
    assert first["results"][0]["detail"] == "the listing has no end"
    assert not seen, "a marker was put although nothing has proven the root"
    assert outcomes(second) == {deleted: "swept"}
    assert_bucket_sound(site, [first, second], before)


def test_a_listing_that_was_stopped_proves_nothing(proxied_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while it looks, a sweep puts no marker, deletes nothing and calls nothing empty."""
    site = proxied_site
    experiment = site.experiment()
    deleted = [site.run(experiment, n_objects=1) for _ in range(2)]
    for one in deleted:
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    survey, seen = Surveyor.survey, threading.Event()

    def interrupted(self: Surveyor, task: Any, room: Any, uploads: Any) -> Any:
        # One location is seen in full, which would prove the root; then the listing of the other one is broken off.
        if deleted[0] in task.prefix:
            found = survey(self, task, room, uploads)
            seen.set()
            return found
        assert seen.wait(20)
        os.kill(os.getpid(), signal.SIGINT)
        while not self._stopped():
            time.sleep(0.01)
        return survey(self, task, room)

    with monkeypatch.context() as patched:
        patched.setattr(Surveyor, "survey", interrupted)
        first = gc(site, "--metadata", "delete", expect=130)
    after_first = site.snapshot()
    second = gc(site, "--metadata", "delete")

    assert outcomes(first) == dict.fromkeys(deleted, "stopped")
    assert after_first.items == before.items, "it was stopped before it had begun to act"
    assert after_first.rows == before.rows
    assert outcomes(second) == dict.fromkeys(deleted, "swept")
    assert_bucket_sound(site, [first, second], before)


def test_a_verifying_listing_that_fails_is_not_called_empty(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything has gone and nothing says so: the location failed, its row stays, the next run verifies it."""
    deleted = deleted_run(site, n_objects=2)
    before = site.snapshot()
    versions = s3.versions

    def failing(client: Any, bucket: str, prefix: str) -> Any:
        if deleted in prefix:
            raise s3.ListingIncomplete("the listing has no end")
        return versions(client, bucket, prefix)

    with monkeypatch.context() as patched:
        patched.setattr(s3, "versions", failing)
        first = gc(site, "--metadata", "delete", expect=3)
    second = gc(site, "--metadata", "delete")

    assert outcomes(first) == {deleted: "failed"}
    assert first["totals"]["deleted_objects"] == 2
    assert outcomes(second) == {deleted: "empty"}
    assert_bucket_sound(site, [first, second], before)


# Between two requests


def test_a_restore_stops_the_aborting_of_uploads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are aborted by the hundred, and before each hundred it is asked whether the run is still deleted."""
    deleted = site.run(site.experiment(), n_objects=2)
    uri = site.artifact_uri(deleted)
    for number in range(130):
        site.begin_upload(deleted, uri, f"late/{number:03}")
    site.delete_run(deleted)
    init(site)
    before = site.snapshot()
    acted = once_before(monkeypatch, s3, "abort_upload", lambda: site.restore_run(deleted))
    report = gc(site)

    assert acted
    assert outcomes(report) == {deleted: "restored"}
    assert report["totals"]["aborted_uploads"] == 100
    after = assert_bucket_sound(site, report, before)
    assert after.keys >= before.keys
    assert sum(item.kind == "upload" for item in after.items) == 30


def test_a_foreign_marker_that_appears_during_the_sweep_ends_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the location that becomes somebody's root while we delete is not deleted with the next round."""
    deleted = deleted_run(site, n_objects=2)
    inner = Location(site.bucket, f"{site.key_of(site.artifact_uri(deleted))}/inner/")
    before = site.snapshot()
    acted = once_before(monkeypatch, Surveyor, "remaining", lambda: marker.write(site.client, inner, FOREIGN))
    report = gc(site)

    assert acted
    assert outcomes(report) == {deleted: "foreign"}
    assert marker.read(site.client, inner) == FOREIGN
    assert_bucket_sound(site, report, before)


@pytest.mark.parametrize("moment", ["before the second look", "before the verifying listing"])
def test_what_appears_under_an_unproven_root_stays(site: Site, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Where nothing has proven that it is the place MLflow writes to, nothing is deleted, whatever turns up there."""
    deleted = deleted_run(site, n_objects=0)
    key = f"{site.key_of(site.artifact_uri(deleted))}/sudden"
    before = site.snapshot()

    def write() -> None:
        site.client.put_object(Bucket=site.bucket, Key=key, Body=b"x")

    if moment == "before the second look":
        monkeypatch.setattr(acting, "_FRESH_S", 0.0)
        acted = once_before(monkeypatch, Purger, "act", write)
    else:
        acted = once_before(monkeypatch, Surveyor, "remaining", write)
    report = gc(site, expect=1)

    assert acted
    assert outcomes(report) == {deleted: "paused"}
    after = assert_bucket_sound(site, report, before, written=[key])
    assert key in after.keys
    assert not markers(site)
