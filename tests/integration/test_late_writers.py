"""What is written into a location after its sweep, by each way that S3 has, is found by the second look.

A plain late write is in ``test_worker.py`` (``test_a_second_look_finds_late_writers``).
"""

from __future__ import annotations

import http.client
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from tests.command import init
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.working import NOW, intents, turn, watched

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
