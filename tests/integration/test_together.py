"""Parts of one parent that are purged at the same time and verified by one look at the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlflow_artifact_gc import s3, surveying
from mlflow_artifact_gc.errors import DatabaseUnusable
from mlflow_artifact_gc.fence import Fence
from mlflow_artifact_gc.surveying import Surveyor
from tests.command import NOW, gc, init, outcomes, run
from tests.oracle import assert_bucket_sound
from tests.site import Site, Snapshot

RUNS = 40


def backlog(site: Site, location: str | None = None) -> tuple[str, list[str], Snapshot]:
    """An experiment of deleted runs and a live one, opted in: its id, the deleted ones, and what lies in the bucket."""
    experiment = site.experiment(artifact_location=location)
    runs = [site.run(experiment, n_objects=2) for _ in range(RUNS)]
    site.run(experiment, n_objects=2)
    for one in runs:
        site.delete_run(one)
    init(site)
    return experiment, runs, site.snapshot()


def parent_of(site: Site, run: str) -> str:
    """The folder in which the runs of an experiment lie."""
    return site.key_of(site.artifact_uri(run)).partition(run)[0]


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prefixes of the listings that only verifying makes, as they are listed."""
    prefixes: list[str] = []
    versions = s3.versions

    def noting(client: Any, bucket: str, prefix: str) -> Any:
        if not prefix.endswith(s3.MARKER_NAME):
            prefixes.append(prefix)
        return versions(client, bucket, prefix)

    monkeypatch.setattr(s3, "versions", noting)
    return prefixes


def test_one_look_verifies_all(site: Site, verified: list[str]) -> None:
    """Forty runs that go together cost one listing of each kind to verify."""
    _, runs, before = backlog(site)
    report = gc(site)

    assert set(outcomes(report).values()) == {"swept"}
    assert verified == [parent_of(site, runs[0])]
    assert_bucket_sound(site, report, before)


def test_among_many_others_each_part_is_looked_at(
    site: Site, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at the whole that meets too much of others is given up for looks at the parts, and not tried again."""
    experiment, runs, _ = backlog(site)
    live = site.run(experiment, n_objects=20)
    before = site.snapshot()
    monkeypatch.setattr(surveying, "_STRANGERS", 10)
    monkeypatch.setattr("mlflow_artifact_gc.sweeping._BATCH", RUNS // 2)
    report = gc(site)

    parent = parent_of(site, runs[0])
    assert set(outcomes(report).values()) == {"swept"}
    assert verified.count(parent) == 1
    assert len(verified) > 2
    assert all(prefix.startswith(parent) for prefix in verified)
    after = assert_bucket_sound(site, report, before)
    assert sum(live in key for key in after.keys) == 20


def test_what_fails_in_one_part_takes_nothing_from_the_others(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the middle, with parts that have deleted and parts that never began: what is gone is counted."""
    _, _, before = backlog(site)
    changed = Fence.changed
    asked: list[int] = []

    def fails_the_third_time(self: Fence, lines: Any) -> Any:
        asked.append(len(lines))
        if len(asked) == 3:
            raise DatabaseUnusable("gone")
        return changed(self, lines)

    monkeypatch.setattr(Fence, "changed", fails_the_third_time)
    report = run("gc", "--backend-store-uri", site.uri, "--yes", "--format", "json", "--concurrency", "1", *NOW).json

    assert report["error"]
    assert report["totals"]["deleted_objects"] >= 2 * sum(asked[:2])
    assert set(outcomes(report).values()) == {"stopped"}
    assert sum(asked) < RUNS, "no part was left that had not begun"
    assert_bucket_sound(site, report, before)


def test_what_comes_late_is_swept_where_the_parent_is_a_root(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment's own location can be a root: its marker, which the look at the whole meets, is no stranger's."""
    _, runs, before = backlog(site, location=f"s3://{site.bucket}/apart")
    key = f"{site.key_of(site.artifact_uri(runs[7]))}/late"
    remaining: Callable[..., Any] = Surveyor.remaining
    written: list[str] = []

    def write_first(self: Surveyor, *tasks: Any) -> Any:
        if not written:
            written.append(key)
            site.client.put_object(Bucket=site.bucket, Key=key, Body=b"x")
        return remaining(self, *tasks)

    monkeypatch.setattr(Surveyor, "remaining", write_first)
    report = gc(site)

    assert set(outcomes(report).values()) == {"swept"}
    left = {one for one in site.snapshot().keys if not one.endswith(s3.MARKER_NAME)}
    assert left == {one for one in before.keys if not any(run in one for run in runs)}
