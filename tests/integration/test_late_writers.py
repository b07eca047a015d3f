"""What is written into a location after its sweep, by each way that S3 has, is found by the second look.

A plain late write is in ``test_worker.py`` (``test_a_second_look_finds_late_writers``).
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from tests.command import init, run
from tests.fakes3 import fake_s3
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.working import NOW, elapse, intents, turn, watched

MakeSite = Callable[[Site], Site]


@pytest.fixture
def site(sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """SQLite and SeaweedFS, with the hook in MLflow's stores."""
    return watched(make_site(Site.direct(sqlite_uri, seaweed, bucket)))


def complete(site: Site, key: str, upload: str) -> None:
    """Uploads the one part of an upload, and completes it."""
    one = {"Bucket": site.bucket, "Key": key, "UploadId": upload}
    tag = site.client.upload_part(**one, PartNumber=1, Body=b"late")["ETag"]  # type: ignore[arg-type]  # all str
    parts = {"Parts": [{"PartNumber": 1, "ETag": tag}]}
    site.client.complete_multipart_upload(**one, MultipartUpload=parts)  # type: ignore[arg-type]  # all as it says


def put(url: str, body: bytes) -> int:
    """The status of a PUT by somebody who has nothing but the URL."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.request("PUT", f"{parts.path}?{parts.query}", body)
    status = connection.getresponse().status
    connection.close()
    return status


def test_each_late_writer_is_found_by_the_second_look(site: Site) -> None:
    """A presigned PUT, an upload that is completed, one that is not: all are gone after the look; a live run is not."""
    init(site, *NOW)
    experiment = site.experiment()
    live = site.run(experiment, n_objects=2)
    signed, early, completed, unfinished = (site.run(experiment, n_objects=1) for _ in range(4))
    key = {one: f"{site.key_of(site.artifact_uri(one))}/late" for one in (signed, early, completed, unfinished)}
    url = site.client.generate_presigned_url("put_object", Params={"Bucket": site.bucket, "Key": key[signed]})
    begun = site.begin_upload(early, site.artifact_uri(early), "late")
    for one in key:
        site.delete_run(one)
    before = {item for item in site.items() if live in item.key}
    assert turn(site) == dict.fromkeys(key, "swept")

    # The sweep aborted what was begun before it: that can no longer be completed.
    with pytest.raises(ClientError, match="NoSuchUpload"):
        complete(site, key[early], begun)
    assert put(url, b"late") == 200
    complete(site, key[completed], site.begin_upload(completed, site.artifact_uri(completed), "late"))
    site.begin_upload(unfinished, site.artifact_uri(unfinished), "late", 5)
    assert {item.key for item in site.items()} >= {key[signed], key[completed], key[unfinished]}
    site.execute("UPDATE artifact_gc_intents SET swept_ms = swept_ms - :day", day=DAY_MS + 1000)
    turn(site)
    turn(site)

    assert [item for item in site.items() if any(one in item.key for one in key)] == []
    assert dict(intents(site, "entity_id", "state"))[early] == "closed"
    assert {item for item in site.items() if live in item.key} == before


@contextmanager
def ageing(
    uri: str, make_site: MakeSite, patched: pytest.MonkeyPatch, action: str, grace: str
) -> Iterator[tuple[Site, Callable[[float], None]]]:
    """A site with an action and a grace period, on an S3 where time can pass; and what lets so many days pass."""
    with fake_s3() as fake:
        for name, value in fake.server.environ().items():
            patched.setenv(name, value)
        fake.make_bucket("late").versioning = "Enabled" if action == "hide" else ""
        site = watched(make_site(Site.direct(uri, fake.server, "late")))
        init(site, "--grace", grace, "--min-object-age", "24h", "--action", action)
        site.experiment()
        if action == "tag":
            assert run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes").code == 0

        def days_pass(days: float) -> None:
            fake.age(int(days * DAY_MS))
            elapse(site, int(days * DAY_MS))

        yield site, days_pass


@pytest.mark.parametrize("action", ["purge", "hide", "tag"])
def test_what_came_late_and_is_young_is_reported_and_looked_at_again(
    action: str, sqlite_uri: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After any action: within the minimum age it stays as it is, and goes the same way once it is old enough."""
    end = "swept" if action == "purge" else "waiting"
    with ageing(sqlite_uri, make_site, monkeypatch, action, "0s") as (site, days_pass):

        def touched(entity: str) -> dict[str, bool]:
            """Of each object that is shown, whether it has a tag."""
            keys = sorted(key for key in site.snapshot().keys if entity in key)
            return {key: bool(site.client.get_object_tagging(Bucket="late", Key=key)["TagSet"]) for key in keys}

        experiment = site.experiment()
        live = site.run(experiment, n_objects=2)
        dead = site.run(experiment, {"early": b"1"})
        place = site.key_of(site.artifact_uri(dead))
        site.delete_run(dead)
        days_pass(2)
        before = {item for item in site.items() if live in item.key}
        assert turn(site) == {dead: end}

        days_pass(1.1)
        site.client.put_object(Bucket="late", Key=f"{place}/put", Body=b"late")
        complete(site, f"{place}/completed", site.begin_upload(dead, site.artifact_uri(dead), "completed"))
        late = {f"{place}/put", f"{place}/completed"}
        found = turn(site) | turn(site)

        assert found == {dead: "postponed"}
        assert {key: tagged for key, tagged in touched(dead).items() if key in late} == dict.fromkeys(late, False)
        ((state, detail),) = intents(site, "state", "detail")
        assert (state, "the minimum age is 1d" in detail) == ("pending", True), detail

        days_pass(1.1)
        assert turn(site) | turn(site) == {dead: end}
        expected = {f"{place}/early": True} | dict.fromkeys(late, True) if action == "tag" else {}
        assert touched(dead) == expected
        assert set(touched(live).values()) == {False}
        assert {item for item in site.items() if live in item.key} == before


@pytest.mark.parametrize("action", ["purge", "hide", "tag"])
def test_what_came_late_has_a_grace_period_of_its_own(
    action: str, sqlite_uri: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the worker, after any action: from when it was found, and the rest stays as it was meanwhile."""
    end = "swept" if action == "purge" else "waiting"
    with ageing(sqlite_uri, make_site, monkeypatch, action, "7d") as (site, days_pass):
        dead = site.run(site.experiment(), {"early": b"1"})
        site.delete_run(dead)
        days_pass(8)
        assert turn(site) | turn(site) == {dead: end}
        days_pass(1.1)
        site.client.put_object(Bucket="late", Key=f"{site.key_of(site.artifact_uri(dead))}/late", Body=b"late")
        assert turn(site) | turn(site) == {}
        days_pass(6.9)
        assert turn(site) | turn(site) == {}
        days_pass(0.2)
        assert turn(site) == {dead: end}
