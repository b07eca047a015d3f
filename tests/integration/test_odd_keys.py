"""Odd keys under each action: they go or are hidden, tagged and taken back, and a live run with the same keys stays.

How a purge lists and deletes single odd keys is in ``test_s3_listing.py``, ``test_s3_deleting.py`` and ``test_gc.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.command import gc, init, outcomes, run
from tests.servers import S3Server
from tests.site import Site
from tests.working import NOW

MakeSite = Callable[[Site], Site]

# Those that both servers hold.
PLAIN_ODD = [
    "two  spaces ",
    "plus+and space",
    "%2F",
    "100%",
    "tab\tkey",
    ".dot",
    "..dots",
    "&<>\"'",
    "q?a=b#c",
    "é-nfc",
    "e\u0301-nfd",
]
# moto's HTTP server answers 404 to it.
SEAWEED_ODD = ["new\nline"]
# SeaweedFS is a file system below: no empty segments, no file that is a folder too (see the tests of listings).
FLAT_ODD = ["a//b", "trail/", "both", "both/inner", "back\\slash"]


@pytest.fixture(params=["seaweed", "moto_s3"])
def site(request: pytest.FixtureRequest, sqlite_uri: str, make_site: MakeSite) -> Site:
    """SQLite and each S3 server."""
    s3: S3Server = request.getfixturevalue(request.param)
    bucket = request.getfixturevalue("bucket" if request.param == "seaweed" else "moto_bucket")
    return make_site(Site.direct(sqlite_uri, s3, bucket))


def content(site: Site, entity: str) -> dict[str, bytes]:
    """The bytes of each object of a run that was written and is shown."""
    shown = site.snapshot().keys
    return {
        key: site.client.get_object(Bucket=site.bucket, Key=key)["Body"].read()
        for key, one in site.objects.items()
        if one.owner == entity and key in shown
    }


def tag_sets(site: Site, entity: str) -> list[int]:
    """How many tags each object of a run has."""
    return [len(site.client.get_object_tagging(Bucket=site.bucket, Key=key)["TagSet"]) for key in content(site, entity)]


@pytest.mark.parametrize("action", ["purge", "hide", "tag"])
def test_odd_keys_under_each_action(site: Site, action: str, request: pytest.FixtureRequest) -> None:
    """All of a deleted run's odd keys end as the action says and come back by undo; the live run's are untouched."""
    names = PLAIN_ODD + (FLAT_ODD if "moto_s3" in request.node.callspec.id else SEAWEED_ODD)
    objects = {name: f"{n} of it".encode() for n, name in enumerate(names)}
    if action == "hide":
        site.switch_versioning(on=True)
    experiment = site.experiment()
    live, dead = site.run(experiment, objects), site.run(experiment, objects)
    site.delete_run(dead)
    init(site, *NOW, "--action", action)
    if action == "tag":
        ran = run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes")
        assert ran.code == 0, ran.err
    alive, before = content(site, live), content(site, dead)
    kept = {item for item in site.items() if live in item.key}
    assert (len(alive), len(before)) == (len(names), len(names))

    report = gc(site)

    assert outcomes(report) == {dead: "swept" if action == "purge" else "waiting"}
    assert len(content(site, dead)) == (len(names) if action == "tag" else 0)
    if action == "tag":
        assert tag_sets(site, dead) == [1] * len(names)
        assert tag_sets(site, live) == [0] * len(names)
    if action != "purge":
        ran = run("undo", "--backend-store-uri", site.uri, "--run-ids", dead)
        assert ran.code == 0, ran.err
        assert content(site, dead) == before
        assert sum(tag_sets(site, dead)) == 0
    assert content(site, live) == alive
    assert {item for item in site.items() if live in item.key} == kept
