"""The marker object of a root: absent, ours, or not to be understood."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mlflow_artifact_gc.errors import RootRefused
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.s3 import MARKER_NAME, BucketPaused, ListingIncomplete, Marker, Transient, marker
from tests.integration.s3_servers import NO_ANSWER, Fake, Request, client_at, client_of, error_body, fake_s3
from tests.servers import make_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_artifact_gc.demo.servers import S3Server

OURS = Marker(database_id="d1", epoch=3, fingerprint="postgresql:7")


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A server that answers what the test says."""
    with fake_s3() as server:
        yield server


@pytest.mark.parametrize("prefix", ["", "mlruns/", "a b/ü+/"])
@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_a_marker_is_read_as_it_was_written(
    fixture: str, prefix: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root without a marker has none; one that was written, and written again, is read."""
    server: S3Server = request.getfixturevalue(fixture)
    client, root = client_of(server, monkeypatch), Location(make_bucket(server), prefix)
    assert marker.read(client, root) is None

    marker.write(client, root, OURS)
    assert marker.read(client, root) == OURS
    newer = Marker(database_id="d1", epoch=4, fingerprint="postgresql:7")
    marker.write(client, root, newer)

    assert newer == marker.read(client, root)
    fields = json.loads(client.get_object(Bucket=root.bucket, Key=prefix + MARKER_NAME)["Body"].read())
    assert fields["format"] == 1
    assert "mlflow-artifact-gc" in fields["about"]


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_a_marker_is_made_only_where_none_is(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second is told so, and what is there stays."""
    server: S3Server = request.getfixturevalue(fixture)
    client, root = client_of(server, monkeypatch), Location(make_bucket(server), "mlruns/")
    theirs = Marker(database_id="d2", epoch=1, fingerprint="postgresql:8")

    assert marker.create(client, root, OURS)
    assert not marker.create(client, root, theirs)
    assert not marker.create(client, root, OURS)
    assert marker.read(client, root) == OURS


@pytest.mark.parametrize("there", [False, True])
def test_a_server_that_knows_no_conditions_is_asked_first(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, *, there: bool
) -> None:
    """It answers 501: then the marker is read, and put without a condition where none is."""
    sent: list[tuple[str, bool]] = []
    found = json.dumps({"format": 1, "database_id": "d2", "epoch": 1, "fingerprint": "f"}).encode()

    def answer(request: Request) -> tuple[int, bytes]:
        conditional = "if-none-match" in {name.lower() for name in request.headers}
        sent.append((request.method, conditional))
        if conditional:
            return 501, error_body("NotImplemented")
        if request.method == "GET":
            return (200, found) if there else (404, error_body("NoSuchKey"))
        return 200, b""

    fake.answer = answer
    client = client_at(fake.endpoint, monkeypatch)
    assert marker.create(client, Location("bucket", "mlruns/"), OURS) is not there
    assert sent == [("PUT", True), ("GET", False), *([] if there else [("PUT", False)])]


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_no_bucket_is_not_no_marker(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root in a bucket that does not exist cannot be taken over."""
    client = client_of(request.getfixturevalue(fixture), monkeypatch)
    root = Location("nowhere-to-be-found", "mlruns/")

    with pytest.raises(BucketPaused, match="no such bucket"):
        marker.read(client, root)
    with pytest.raises(BucketPaused, match="no such bucket"):
        marker.write(client, root, OURS)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"format": 2, "database_id": "d", "epoch": 1, "fingerprint": "f"}',
        b'{"format": 1, "database_id": "", "epoch": 1, "fingerprint": "f"}',
        b'{"format": 1, "database_id": "d", "epoch": "1", "fingerprint": "f"}',
        b'{"format": 1, "database_id": "d", "epoch": true, "fingerprint": "f"}',
        b'{"format": 1, "database_id": "d", "epoch": 1}',
        b"[" * 50_000,
        b" " * 70_000 + b'{"format": 1, "database_id": "d", "epoch": 1, "fingerprint": "f"}',
    ],
)
def test_an_object_that_is_no_marker_refuses_the_root(text: bytes, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be understood is neither ours nor absent."""
    fake.answer = lambda _: (200, text)

    with pytest.raises(RootRefused, match=f"s3://bucket/mlruns/{MARKER_NAME}"):
        marker.read(client_at(fake.endpoint, monkeypatch), Location("bucket", "mlruns/"))


def test_a_404_without_a_code_asks_for_the_bucket(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty 404 is the key's where the bucket is there, and the bucket's where it is not."""
    client, root = client_at(fake.endpoint, monkeypatch), Location("bucket", "mlruns/")
    fake.answer = lambda request: (404 if request.method == "GET" else 200, b"")
    assert marker.read(client, root) is None

    fake.answer = lambda _: (404, b"")
    with pytest.raises(BucketPaused):
        marker.read(client, root)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((403, b""), BucketPaused),
        ((403, error_body("AccessDenied")), BucketPaused),
        ((404, error_body("NoSuchBucket")), BucketPaused),
        ((404, error_body("SomethingElse")), BucketPaused),
        ((500, b""), Transient),
        (NO_ANSWER, Transient),
    ],
)
def test_a_marker_that_cannot_be_read_is_not_absent(
    answer: tuple[int, bytes], error: type[Exception], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever S3 says but NoSuchKey raises."""
    fake.answer = lambda _: answer

    with pytest.raises(error):
        marker.read(client_at(fake.endpoint, monkeypatch), Location("bucket", "mlruns/"))


def test_the_errors_are_of_one_family() -> None:
    """A caller who catches StorageError catches all of them."""
    from mlflow_artifact_gc.errors import StorageError

    assert all(issubclass(error, StorageError) for error in (BucketPaused, ListingIncomplete, Transient))
