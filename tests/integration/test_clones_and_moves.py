"""A clone of a database with the same S3 credentials neither hides, tags nor takes back.

That it does not purge: ``test_a_clone_on_postgresql_stops``; moves and adoption: ``test_a_moved_database_is_adopted``;
a bucket that was replaced: ``test_a_marker_that_is_gone``; all in ``test_init.py``.
A registry that moved: ``test_another_registry`` in ``test_bad_input.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import gc, init, outcomes, run
from tests.servers import S3Server
from tests.site import Site
from tests.working import NOW

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
