"""Attempts to have ``gc`` sweep, or forget, what lies in a place that is not its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.s3 import marker
from tests.command import NOW, gc, init, outcomes, run
from tests.servers import S3Server
from tests.site import Site


def test_nothing_is_swept_under_a_foreign_marker_above_the_root(
    site: Site, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site], tmp_path: Path
) -> None:
    """Under a foreign marker nothing is swept, also when the marker lies above the root that the sweep goes by."""
    experiment = site.experiment()
    live = site.run(experiment, n_objects=3)
    garbage = site.run(experiment, n_objects=1)
    copy = tmp_path / "staging.db"
    shutil.copyfile(site.uri.removeprefix("sqlite:///"), copy)
    site.delete_run(garbage)
    init(site)
    assert outcomes(gc(site)) == {garbage: "swept"}  # from here on the root is marked as production's

    staging = make_site(Site.direct(f"sqlite:///{copy}", seaweed, bucket))
    # As for any staging copy: new artifacts go elsewhere ('mlflow db move-resources' does the same). Old rows stay.
    staging.execute("UPDATE experiments SET artifact_location = 's3://staging/' || experiment_id")
    staging.delete_run(live)
    init(staging)
    before = site.snapshot()
    report = gc(staging)

    assert site.snapshot().keys >= before.keys, "production's live run has lost its objects"
    assert outcomes(report) == {live: "foreign"}


def test_the_row_of_a_run_that_was_moved_into_a_workspace_stays_while_its_objects_are_there(
    proxied_site: Site,
) -> None:
    """A row is deleted only when its objects are gone, also if the proxy now looks for them in a workspace's folder."""
    site = proxied_site
    moved, other = site.experiment(), site.experiment()
    run, anchor = site.run(moved, n_objects=2), site.run(other, n_objects=1)
    site.delete_run(run)
    site.delete_run(anchor)
    # What 'mlflow db move-resources' does: the stored URIs are not modified, and neither are the objects.
    site.execute("UPDATE experiments SET workspace = 'team-a' WHERE experiment_id = :id", id=int(moved))
    init(site)
    before = site.snapshot()
    report = gc(site, "--metadata", "delete")

    after = site.snapshot()
    rows = {row.id for row in after.rows}
    assert outcomes(report)[anchor] == "swept"
    assert anchor not in rows
    assert {key for key in before.keys if run in key} <= after.keys
    assert run in rows, "the row is gone and its objects are there"


def test_a_clone_that_was_adopted_is_stopped_by_the_originals_marker_above(
    site: Site, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site], tmp_path: Path
) -> None:
    """A copy with the same database id is told apart by its fingerprint, also by a marker above its root."""
    experiment = site.experiment()
    live, garbage = site.run(experiment, n_objects=3), site.run(experiment, n_objects=1)
    init(site)
    copy = tmp_path / "staging.db"
    shutil.copyfile(site.uri.removeprefix("sqlite:///"), copy)
    site.delete_run(garbage)
    assert outcomes(gc(site)) == {garbage: "swept"}

    staging = make_site(Site.direct(f"sqlite:///{copy}", seaweed, bucket))
    staging.execute("UPDATE experiments SET artifact_location = 's3://staging/' || experiment_id")
    staging.delete_run(live)
    init(staging, "--adopt")
    before = site.snapshot()
    run("gc", "--backend-store-uri", staging.uri, "--yes", "--format", "json", *NOW)

    assert site.snapshot().keys >= before.keys


@pytest.mark.parametrize("folder", ["", "mlruns/1/", "mlruns/1/{run}/", "mlruns/1/{run}/artifacts/inner/"])
def test_a_foreign_marker_anywhere_around_a_location_protects_it(site: Site, folder: str) -> None:
    """Nothing is swept that a foreign root contains, or that contains one, wherever its marker lies."""
    experiment = site.experiment()
    deleted = site.run(experiment, n_objects=1)
    site.delete_run(deleted)
    init(site)
    foreign = marker.Marker(database_id="another", epoch=1, fingerprint="sqlite:/elsewhere")
    marker.write(site.client, Location(site.bucket, folder.format(run=deleted)), foreign)
    report = gc(site)

    assert outcomes(report) == {deleted: "foreign"}
