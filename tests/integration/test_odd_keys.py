"""Odd keys under each action: they go or are hidden, tagged and taken back, and a live run with the same keys stays.

How a purge lists and deletes single odd keys is in ``test_s3_listing.py``, ``test_s3_deleting.py`` and ``test_gc.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.command import gc, init, outcomes, run
from tests.fakes3 import FakeS3, fake_s3
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


# Only tests/fakes3 holds all of these, as S3 does: what no XML can say, dot segments, keys as long as they may be.
HARD = [f"control{chr(code)}" for code in (1, 8, 11, 12, 14, 27, 31, 127)]
HARD += ["a/../b", "./here", "..", ".", "a/./b", "a//b", "/", "trail/", "both", "both/inner", "cr\r", "nl\n", "\ufffe"]
LONGEST = 1024


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """An S3 that holds every key that AWS's does; the environment points to it."""
    with fake_s3() as server:
        for name, value in server.server.environ().items():
            monkeypatch.setenv(name, value)
        yield server


State = dict[str, list[tuple[str, bool, dict[str, str]]]]
"""Of each key, its versions at the server: id, whether it is a delete marker, tags."""


def state(fake: FakeS3, site: Site, entity: str) -> State:
    """Of an entity's keys, as the server has them and whatever a listing would show."""
    folder = f"{site.key_of(site.artifact_uri(entity))}/"
    there = fake.bucket(site.bucket).keys
    return {
        key: [(one.id, one.is_marker, dict(one.tags)) for one in found]
        for key, found in there.items()
        if key.startswith(folder) and found
    }


@pytest.mark.parametrize("action", ["purge", "hide", "tag"])
def test_keys_that_only_s3_holds(action: str, fake: FakeS3, sqlite_uri: str, make_site: MakeSite) -> None:
    """They go, are hidden or tagged, and come back; one that seems to lead to a live run's object does it no harm."""
    bucket = fake.make_bucket("odd")
    bucket.versioning = "Enabled" if action == "hide" else ""
    site = make_site(Site.direct(sqlite_uri, fake.server, "odd"))
    experiment = site.experiment()
    live, dead = site.run(experiment, {"a": b"live"}), site.run(experiment)
    folder = site.key_of(site.artifact_uri(dead))
    room = LONGEST - len(folder) - 1
    names = [*HARD, f"../../{live}/artifacts/a", "k" * room, "\u20ac" * (room // 3)]
    for owner in (dead, live):
        for name in names if owner == dead else HARD:
            # At the server: no client of ours is asked whether it can.
            key = f"{site.key_of(site.artifact_uri(owner))}/{name}"
            fake.kept.put(bucket, key, name.encode(), tags={}, headers={})
    site.delete_run(dead)
    init(site, *NOW, "--action", action)
    if action == "tag":
        assert run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes").code == 0
    before, alive = state(fake, site, dead), state(fake, site, live)
    assert (len(before), len(alive)) == (len(names), len(HARD) + 1)

    # A tag is put by the key's URL, in which a dot segment may lead elsewhere: such keys are named, the rest is done.
    dotted = {key for key in before if {".", ".."} & {*key.split("/")}} if action == "tag" else set()
    end = {"purge": "swept", "hide": "waiting", "tag": "failed"}[action]

    report = gc(site, expect=3 if dotted else 0)

    assert outcomes(report) == {dead: end}, report["results"]
    assert {failure["key"] for failure in report["results"][0]["failures"]} == dotted
    now = state(fake, site, dead)
    if action == "purge":
        assert now == {}
        assert report["totals"]["deleted_objects"] == len(names)
    else:
        assert report["totals"]["waiting_objects"] == len(names) - len(dotted)
        touched = {key for key, found in now.items() if found[0][1] or found[0][2]}
        assert touched == before.keys() - dotted
        ran = run("undo", "--backend-store-uri", site.uri, "--run-ids", dead)
        assert ran.code == (3 if dotted else 0), (ran.out, ran.err)
        assert state(fake, site, dead) == before
    assert state(fake, site, live) == alive


def test_an_odd_key_that_cannot_go_is_said_and_the_rest_is_done(
    fake: FakeS3, sqlite_uri: str, make_site: MakeSite
) -> None:
    """Without the right to delete one of them: exit code 3, that key is named, and nothing else is left."""
    bucket = fake.make_bucket("odd")
    site = make_site(Site.direct(sqlite_uri, fake.server, "odd"))
    experiment = site.experiment()
    dead, other = site.run(experiment), site.run(experiment, n_objects=1)
    folder = site.key_of(site.artifact_uri(dead))
    for name in HARD:
        fake.kept.put(bucket, f"{folder}/{name}", b"odd", tags={}, headers={})
    for one in (dead, other):
        site.delete_run(one)
    init(site, *NOW)
    stuck = f"{folder}/{HARD[0]}"
    fake.operations.denied = lambda operation, key: operation.startswith("DeleteObject") and key == stuck

    report = gc(site, expect=3)

    assert outcomes(report) == {dead: "failed", other: "swept"}
    assert [failure["key"] for result in report["results"] for failure in result["failures"]] == [stuck]
    assert list(state(fake, site, dead)) == [stuck]
    assert report["totals"]["deleted_objects"] == len(HARD)
