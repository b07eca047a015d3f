"""Deleting on real servers, and what is said of it when servers refuse, lose answers or choke on a key."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from urllib.parse import unquote
from xml.sax.saxutils import escape

import pytest

from mlflow_artifact_gc.demo.servers import Identity
from mlflow_artifact_gc.model import Failure
from mlflow_artifact_gc.s3 import (
    MOST_ENTRIES,
    Abort,
    BucketPaused,
    DeleteAnswer,
    Entry,
    Kind,
    abort_upload,
    current,
    delete,
    uploads,
    versions,
)
from tests.integration.s3_servers import NO_ANSWER, Fake, Request, client_at, client_of, error_body, fake_s3, put_all
from tests.servers import make_bucket, seaweedfs

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from mypy_boto3_s3.client import S3Client

    from mlflow_artifact_gc.demo.servers import S3Server

ODD_KEYS = ["p/a b", "p/a+b", "p/a%20b", "p/%", "p/ü", "p/u\u0308", "p/t\tb", "p/c\rr", "p/\x01", "p/.dot", "p/&<>\"'"]


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A server that answers what the test says."""
    with fake_s3() as server:
        yield server


@pytest.fixture(scope="module")
def limited_seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, S3Server, S3Server]]:
    """A SeaweedFS as seen by its administrator, by one who writes below open/ alone, and by one who only reads."""
    admin = Identity()
    writer = Identity(name="writer", actions=("Read", "List", "Write:limited/open/*"))
    reader = Identity(name="reader", actions=("Read", "List"))
    folder = tmp_path_factory.mktemp("limited")
    with seaweedfs(folder, identities=(admin, writer, reader)) as server:
        yield server, server.seen_by(writer), server.seen_by(reader)


def objects(*keys: str) -> list[Entry]:
    """Entries as a listing of objects gives them."""
    return [Entry(key, Kind.CURRENT, None, 1, 0) for key in keys]


def purge(client: S3Client, bucket: str, prefix: str) -> DeleteAnswer:
    """Deletes all versions and markers under a prefix."""
    return delete(client, bucket, list(versions(client, bucket, prefix)), versioned=True)


def outcomes(answer: DeleteAnswer) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """The keys deleted, failed with their codes, and unknown."""
    return (
        sorted(entry.key for entry in answer.deleted),
        sorted((entry.key, failure.code) for entry, failure in answer.failed),
        sorted(entry.key for entry in answer.unknown),
    )


# ---- real servers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_odd_keys_are_deleted(fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each odd key goes, those that XML cannot hold by requests of their own, and the sibling stays."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    put_all(client, bucket, [*ODD_KEYS, "p10/a"])

    answer = delete(client, bucket, list(current(client, bucket, "p/")), versioned=False)

    assert (sorted(ODD_KEYS), [], []) == outcomes(answer)
    assert answer.requests == 3
    assert [entry.key for entry in current(client, bucket, "")] == ["p10/a"]


def test_keys_that_only_some_servers_hold_are_deleted(
    moto_s3: S3Server, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubled slashes and folder markers go on moto, a newline on SeaweedFS."""
    for server, keys in ((moto_s3, ["p/x//y", "p//", "p/folder/", "p/x/y"]), (seaweed, ["p/l\nf", "p/folder/"])):
        client, bucket = client_of(server, monkeypatch), make_bucket(server)
        put_all(client, bucket, keys)

        assert (sorted(keys), [], []) == outcomes(purge(client, bucket, "p/"))
        assert list(versions(client, bucket, "")) == []


def test_random_keys_are_deleted(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Whatever their characters, exactly the keys given are gone (the seed is in the header of the run)."""
    client, bucket = client_of(moto_s3, monkeypatch), make_bucket(moto_s3)
    alphabet = "ab/ +%2é\u0308\r\t\x02&<>'\"?#*~"
    keys = sorted({"p/" + "".join(rng.choices(alphabet, k=rng.randint(1, 12))) + "z" for _ in range(80)})
    put_all(client, bucket, keys)
    goes = set(rng.sample(keys, len(keys) // 2))

    answer = delete(client, bucket, [e for e in current(client, bucket, "p/") if e.key in goes], versioned=False)

    assert (sorted(goes), [], []) == outcomes(answer), keys
    assert sorted(set(keys) - goes) == sorted(entry.key for entry in current(client, bucket, "")), keys


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_versions_markers_and_null_versions_are_purged(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of a key: not what was there before versioning, no version, no delete marker."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    put_all(client, bucket, ["p/a", "p/b c", "p/old\r"])
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_all(client, bucket, ["p/a", "p/a", "p/b c", "p/old\r", "p10/a"])
    client.delete_object(Bucket=bucket, Key="p/a")
    before = list(versions(client, bucket, "p/"))
    if fixture == "moto_s3":  # it sends the carriage return raw, which XML turns into a newline
        before = [entry._replace(key=entry.key.replace("\n", "\r")) for entry in before]

    answer = delete(client, bucket, before, versioned=True)

    assert set(before) == set(answer.deleted)
    assert len(before) == 8
    assert [entry.key for entry in versions(client, bucket, "")] == ["p10/a"]
    assert set(before) == set(delete(client, bucket, before, versioned=True).deleted), "gone already is deleted"


def test_by_key_alone_a_versioned_bucket_hides(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without version ids nothing is lost on a versioned bucket: markers are put on top."""
    client, bucket = client_of(seaweed, monkeypatch), make_bucket(seaweed)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_all(client, bucket, ["p/a", "p/b"])

    answer = delete(client, bucket, list(current(client, bucket, "p/")), versioned=False)

    assert outcomes(answer) == (["p/a", "p/b"], [], [])
    assert list(current(client, bucket, "p/")) == []
    kinds = sorted(entry.kind for entry in versions(client, bucket, "p/"))
    assert kinds == [Kind.MARKER, Kind.MARKER, Kind.NONCURRENT, Kind.NONCURRENT]


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_a_full_batch_is_one_request(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand entries go with one request."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    put_all(client, bucket, [f"p/{n}" for n in range(MOST_ENTRIES)])

    answer = purge(client, bucket, "p/")

    assert (len(answer.deleted), answer.requests) == (MOST_ENTRIES, 1)
    assert list(versions(client, bucket, "")) == []


def test_locked_and_held_objects_fail_alone(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention, governance too, and a legal hold refuse their own key; the others of the batch go."""
    client, bucket = client_of(seaweed, monkeypatch), f"{make_bucket(seaweed)}-lock"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    until = datetime.now(UTC) + timedelta(days=1)
    client.put_object(Bucket=bucket, Key="p/compliance", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until)
    client.put_object(Bucket=bucket, Key="p/governance", ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=until)
    client.put_object(Bucket=bucket, Key="p/held", ObjectLockLegalHoldStatus="ON")
    client.put_object(Bucket=bucket, Key="p/held\r", ObjectLockLegalHoldStatus="ON")
    put_all(client, bucket, ["p/free", "p/free\r"])

    answer = purge(client, bucket, "p/")

    refused = [(f"p/{name}", "AccessDenied") for name in ("compliance", "governance", "held", "held\r")]
    assert (["p/free", "p/free\r"], refused, []) == outcomes(answer)
    assert not any(failure.retryable for _, failure in answer.failed)
    assert all(failure.version_id == entry.version_id for entry, failure in answer.failed)
    assert len(list(versions(client, bucket, "p/"))) == 4


def test_keys_out_of_reach_fail_alone(
    limited_seaweed: tuple[S3Server, S3Server, S3Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the right covers some keys, those go, and the others are failures of their key."""
    admin, writer, _ = limited_seaweed
    client = client_of(admin, monkeypatch)
    client.create_bucket(Bucket="limited")
    put_all(client, "limited", ["open/a", "open/b", "closed/a"])

    answer = purge(client_of(writer, monkeypatch), "limited", "")

    assert outcomes(answer) == (["open/a", "open/b"], [("closed/a", "AccessDenied")], [])
    assert [entry.key for entry in current(client, "limited", "")] == ["closed/a"]


def test_without_the_right_every_key_is_reported(
    limited_seaweed: tuple[S3Server, S3Server, S3Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An identity that may only read deletes nothing, in a batch or alone, and is told so for each key."""
    admin, _, reader = limited_seaweed
    bucket = make_bucket(admin)
    put_all(client_of(admin, monkeypatch), bucket, ["p/a", "p/b\r"])
    client = client_of(reader, monkeypatch)

    answer = delete(client, bucket, list(current(client, bucket, "p/")), versioned=False)

    assert outcomes(answer) == ([], [("p/a", "AccessDenied"), ("p/b\r", "AccessDenied")], [])
    assert len(list(current(client, bucket, "p/"))) == 2


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_uploads_are_aborted(fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished upload goes, whatever its key; one that is gone already is fine."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    for key in ("p/a", "p/a b", "p/a+b", "p/a%20b", "p10/a"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    listed = list(uploads(client, bucket, "p/"))
    assert len(listed) == 4

    assert {abort_upload(client, bucket, entry) for entry in listed} == {Abort.ABORTED}
    # SeaweedFS says so of uploads that it does not know, too.
    assert {abort_upload(client, bucket, entry) for entry in listed} <= {Abort.ABORTED, Abort.GONE}

    assert [entry.key for entry in uploads(client, bucket, "")] == ["p10/a"]


# ---- what is refused before anything is sent -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "versioned"),
    [
        (Entry("p/a", Kind.UPLOAD, "u", 0, 0), True),
        (Entry("p/a", Kind.CURRENT, None, 1, 0), True),
        (Entry("p/a", Kind.NONCURRENT, "v", 1, 0), False),
        (Entry("p/a", Kind.MARKER, "v", 0, 0), False),
    ],
)
def test_entries_that_cannot_be_deleted_so_are_a_mistake(
    entry: Entry, *, versioned: bool, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller who would hide where he means to purge, or the reverse, is told before anything is sent."""
    with pytest.raises(ValueError, match="p/a"):
        delete(client_at(fake.endpoint, monkeypatch), "bucket", [entry], versioned=versioned)
    assert fake.asked == []


def test_a_batch_has_its_limit(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a thousand entries are refused, none is nothing to do."""
    client = client_at(fake.endpoint, monkeypatch)
    with pytest.raises(ValueError, match="1001"):
        delete(client, "bucket", objects(*[str(n) for n in range(1001)]), versioned=False)
    assert DeleteAnswer() == delete(client, "bucket", [], versioned=False)
    assert fake.asked == []


# ---- servers that refuse, lose and choke ---------------------------------------------------------------------------


class Bucket:
    """Objects in memory; a batch that ``refuses`` names is answered with an error and deletes nothing."""

    def __init__(self, keys: list[str], refuses: Callable[[list[str]], tuple[int, bytes] | None]) -> None:
        self.keys = set(keys)
        self.refuses = refuses

    def __call__(self, request: Request) -> tuple[int, bytes]:
        if request.method == "DELETE":
            key = unquote(request.path).removeprefix("/bucket/")
            refusal = self.refuses([key])
            if refusal is None:
                self.keys.discard(key)
            return refusal or (204, b"")
        names = [element.text or "" for element in ET.fromstring(request.body).iter() if element.tag.endswith("}Key")]  # noqa: S314
        refusal = self.refuses(names)
        if refusal is not None:
            return refusal
        self.keys -= set(names)
        return deleted_body(*names)


def deleted_body(*keys: str) -> tuple[int, bytes]:
    """A DeleteObjects answer."""
    rows = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
    return 200, f"<DeleteResult>{rows}</DeleteResult>".encode()


@pytest.mark.parametrize("refusal", [(400, b""), (400, error_body("MalformedXML")), (500, b"")])
def test_a_batch_that_chokes_on_a_key_is_halved(
    refusal: tuple[int, bytes], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand keys the one that fails every request is the only one left, and it is named."""
    keys = [f"p/{n}" for n in range(1000)]
    fake.answer = Bucket(keys, lambda names: refusal if "p/613" in names else None)

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects(*keys), versioned=False)

    deleted, failed, unknown = outcomes(answer)
    assert (len(deleted), [key for key, _ in failed], unknown) == (999, ["p/613"], [])
    assert {"p/613"} == fake.answer.keys
    assert answer.requests < 30


def test_a_key_that_only_chokes_batches_is_deleted_alone(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last resort is a request for the one key."""
    keys = [f"p/{n}" for n in range(100)]
    fake.answer = Bucket(keys, lambda names: (400, b"") if len(names) > 1 and "p/7" in names else None)

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects(*keys), versioned=False)

    assert (sorted(keys), [], []) == outcomes(answer)
    assert set() == fake.answer.keys


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_without_batches_gets_single_deletes(status: int, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DeleteObjects is not implemented, one refused request is enough."""
    keys = [f"p/{n}" for n in range(20)]
    bucket = Bucket(keys, lambda _: None)
    fake.answer = lambda request: bucket(request) if request.method == "DELETE" else (status, b"")

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects(*keys), versioned=False)

    assert (sorted(keys), [], []) == outcomes(answer)
    assert answer.requests == 21


def test_a_server_that_fails_every_batch_is_not_asked_forever(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """After some server errors in a row the rest is a failure that may be tried again."""
    keys = [f"p/{n}" for n in range(1000)]
    fake.answer = Bucket(keys, lambda _: (500, b""))

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects(*keys), versioned=False)

    assert len(answer.failed) == 1000
    assert all(failure.retryable for _, failure in answer.failed)
    assert answer.requests < 80


def test_a_throttled_batch_may_be_tried_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """SlowDown to every try is a retryable failure of each key, and the batch is not cut up for it."""
    fake.answer = lambda _: (503, error_body("SlowDown"))

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects("p/a", "p/b"), versioned=False)

    assert outcomes(answer) == ([], [("p/a", "SlowDown"), ("p/b", "SlowDown")], [])
    assert all(failure.retryable for _, failure in answer.failed)
    assert answer.requests == 1


def test_a_lost_answer_is_unknown(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server deletes and the connection breaks, each time: nobody can say, and nobody does."""
    keys = ["p/a", "p/b", "p/c\r"]
    bucket = Bucket(keys, lambda _: None)

    def lost(request: Request) -> tuple[int, bytes]:
        bucket(request)
        return NO_ANSWER

    fake.answer = lost
    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects(*keys), versioned=False)

    assert ([], [], sorted(keys)) == outcomes(answer)
    assert set() == bucket.keys


def test_an_answer_lost_once_is_asked_for_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is repeated by botocore, and the second answer counts: deletes can be repeated."""
    bucket = Bucket(["p/a"], lambda _: None)
    first = iter([NO_ANSWER])
    fake.answer = lambda request: next(first, None) or bucket(request)

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects("p/a"), versioned=False)

    assert outcomes(answer) == (["p/a"], [], [])


@pytest.mark.parametrize("body", [b"", b"<html/>", b"<DeleteResult><Deleted><Key>p/a</Key></Dele", b"<Error/>"])
def test_an_answer_that_is_none_is_unknown_or_failed(body: bytes, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """No body, HTML and torn XML with status 200 do not make a key deleted."""
    fake.answer = lambda _: (200, body)

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects("p/a", "p/b"), versioned=False)

    assert answer.deleted == ()
    assert len(answer.failed) + len(answer.unknown) == 2


@pytest.mark.parametrize("key", ["p/a", "p/a\r"])
def test_html_deletes_nothing(key: str, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's page with status 200 is no success of a batch, a single delete or an abort."""
    fake.answer = lambda _: (200, b"<html>log in</html>")
    client = client_at(fake.endpoint, monkeypatch)

    assert ([], [], [key]) == outcomes(delete(client, "bucket", objects(key), versioned=False))
    assert isinstance(abort_upload(client, "bucket", Entry(key, Kind.UPLOAD, "u", 0, 0)), Failure)


def test_a_key_that_the_answer_does_not_name_is_unknown(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is said of a key counts: silence is not success."""
    fake.answer = lambda _: deleted_body("p/a", "p/other")

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", objects("p/a", "p/b"), versioned=False)

    assert outcomes(answer) == (["p/a"], [], ["p/b"])


def test_errors_of_single_keys_say_whether_to_try_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """InternalError of one key is retryable, AccessDenied is not."""
    rows = "".join(
        f"<Error><Key>p/{code}</Key><VersionId></VersionId><Code>{code}</Code><Message>m</Message></Error>"
        for code in ("AccessDenied", "InternalError")
    )
    fake.answer = lambda _: (200, f"<DeleteResult>{rows}</DeleteResult>".encode())
    entries = [Entry(f"p/{code}", Kind.CURRENT, "null", 1, 0) for code in ("AccessDenied", "InternalError")]

    answer = delete(client_at(fake.endpoint, monkeypatch), "bucket", entries, versioned=True)

    assert sorted((f.code, f.retryable) for _, f in answer.failed) == [("AccessDenied", False), ("InternalError", True)]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, b"", "s3:DeleteObjectVersion"),
        (403, error_body("AccessDenied"), "s3:DeleteObjectVersion"),
        (403, error_body("InvalidAccessKeyId"), "credentials"),
        (400, error_body("ExpiredToken"), "credentials"),
        (404, error_body("NoSuchBucket"), "no such bucket"),
        (404, b"", "no such bucket"),
    ],
)
def test_a_refused_request_pauses_the_bucket(
    status: int, body: bytes, words: str, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole request that is refused for a right, credentials or the bucket raises, at the first request."""
    fake.answer = lambda _: (status, body)
    entries = [Entry(f"p/{n}", Kind.CURRENT, "v", 1, 0) for n in range(10)]

    with pytest.raises(BucketPaused, match=words) as raised:
        delete(client_at(fake.endpoint, monkeypatch), "bucket", entries, versioned=True)
    assert raised.value.bucket == "bucket"
    assert len(fake.asked) == 1


def test_what_was_answered_before_a_bucket_broke_away_is_kept(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that was deleted stays deleted in the report where the next request finds the credentials expired."""
    bucket = Bucket(["p/a", "p/b"], lambda _: None)
    fake.answer = lambda r: bucket(r) if r.method == "POST" else (400, error_body("ExpiredToken"))

    answer = delete(
        client_at(fake.endpoint, monkeypatch), "bucket", objects("p/a", "p/b", "p/c\r", "p/d\r"), versioned=False
    )

    assert outcomes(answer) == (["p/a", "p/b"], [], ["p/c\r", "p/d\r"])
    assert answer.requests == 2


def test_a_dot_segment_is_never_put_into_a_url(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that a proxy could fold into another key's name is sent in a batch or not at all."""
    fake.answer = Bucket(["p/../live"], lambda _: None)
    client = client_at(fake.endpoint, monkeypatch)

    answer = delete(client, "bucket", objects("p/../live", "p/../live\x01", "p/./x\r"), versioned=False)

    assert outcomes(answer) == (["p/../live"], [("p/../live\x01", "NotSent"), ("p/./x\r", "NotSent")], [])
    assert isinstance(abort_upload(client, "bucket", Entry("p/../live", Kind.UPLOAD, "u", 0, 0)), Failure)
    assert [request.method for request in fake.asked] == ["POST"]


def test_retention_is_never_bypassed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request carries the header that overrides governance retention."""
    fake.answer = Bucket(["p/a"], lambda _: None)
    delete(client_at(fake.endpoint, monkeypatch), "bucket", objects("p/a", "p/b\r"), versioned=False)

    assert len(fake.asked) == 2
    assert not [name for request in fake.asked for name in request.headers if re.search("bypass", name, re.IGNORECASE)]


@pytest.mark.parametrize(
    ("answer", "code", "retryable"),
    [
        ((403, error_body("AccessDenied")), "AccessDenied", False),
        ((503, error_body("SlowDown")), "SlowDown", True),
        (NO_ANSWER, "ConnectionClosedError", True),
    ],
)
def test_an_upload_that_stays_is_a_failure(
    answer: tuple[int, bytes], code: str, *, retryable: bool, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What hinders one abort is told with the upload's id; a lost answer too, since a listing shows how it ended."""
    fake.answer = lambda _: answer

    failure = abort_upload(client_at(fake.endpoint, monkeypatch), "bucket", Entry("p/a", Kind.UPLOAD, "u", 0, 0))

    assert isinstance(failure, Failure)
    assert ("p/a", "u", code, retryable) == (failure.key, failure.version_id, failure.code, failure.retryable)


def test_an_upload_of_another_bucket_state_raises(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such upload is fine, no such bucket is not."""
    client, entry = client_at(fake.endpoint, monkeypatch), Entry("p/a", Kind.UPLOAD, "u", 0, 0)
    fake.answer = lambda _: (404, error_body("NoSuchUpload"))
    assert abort_upload(client, "bucket", entry) is Abort.GONE
    fake.answer = lambda _: (404, error_body("NoSuchBucket"))
    with pytest.raises(BucketPaused):
        abort_upload(client, "bucket", entry)
