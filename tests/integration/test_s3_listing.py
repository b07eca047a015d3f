"""Listings of real servers, complete and byte-exact, and of servers that lead nowhere."""

from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest

from mlflow_artifact_gc.s3 import (
    BucketPaused,
    Entry,
    Folder,
    Kind,
    ListingIncomplete,
    Transient,
    Versioning,
    bucket_versioning,
    current,
    level,
    uploads,
    versions,
)
from tests.integration.s3_servers import NO_ANSWER, Fake, Request, client_at, client_of, error_body, fake_s3, put_all
from tests.servers import make_bucket

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from mlflow_artifact_gc.demo.servers import S3Server

PLAIN_KEYS = [
    "p/plain",
    "p/.dot",
    "p/a b",
    "p/a+b",
    "p/a  b ",
    "p/a%b",
    "p/a%20b",
    "p/a%2Bb",
    "p/ünï",
    f"p/{unicodedata.normalize('NFD', 'ü')}",
    "p/&<>\"'",
    "p/t\tb",
    "p/confusion matrix (1).png",
    "p/\U0001f600~*",
]
MOTO_KEYS = [*PLAIN_KEYS, "p/x//y", "p//", "p/folder/"]
"""moto keeps these apart; SeaweedFS folds the slashes."""
SEAWEED_KEYS = [*PLAIN_KEYS, "p/l\nf", "p/c\rr", "p/folder/"]
"""A key with a newline cannot be put to moto, which also sends a carriage return raw in its listings of versions."""


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A server that answers what the test says."""
    with fake_s3() as server:
        yield server


@pytest.mark.parametrize(("fixture", "keys"), [("moto_s3", MOTO_KEYS), ("seaweed", SEAWEED_KEYS)])
def test_keys_are_byte_exact(
    fixture: str, keys: list[str], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every odd key that the server can hold comes back as it was put, from both listings."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    put_all(client, bucket, keys)

    assert sorted(keys) == sorted(entry.key for entry in current(client, bucket, "p/"))
    assert sorted(keys) == sorted(entry.key for entry in versions(client, bucket, "p/"))


@pytest.mark.parametrize("key", ["p/a b", "p/a+b"])
@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_a_single_space_or_plus_is_read_right(
    fixture: str, key: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing else on the page shows what + means to the server, it is found out."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    put_all(client, bucket, [key])

    assert [key] == [entry.key for entry in current(client, bucket, "p/")]
    assert [key] == [entry.key for entry in versions(client, bucket, "p/")]


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
@pytest.mark.parametrize("key", ["p/\x01", "p/c\rr"])
def test_a_control_character_survives_in_a_listing_of_objects(
    fixture: str, key: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that XML cannot hold is read exactly, since it travels url-encoded."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    put_all(client, bucket, [key])

    assert [key] == [entry.key for entry in current(client, bucket, "p/")]


@pytest.mark.parametrize(("fixture", "number"), [("moto_s3", 1100), ("seaweed", 2500)])
def test_many_pages_are_one_listing(
    fixture: str, number: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More objects than fit a page (1,000), or two, come each once, and the sibling prefix stays out."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    keys = [f"run1/d{n % 7}/f{n:05}" for n in range(number)]
    put_all(client, bucket, [*keys, "run10/f", "run1", "run1.txt"])

    for listing in (current, versions):
        listed = [entry.key for entry in listing(client, bucket, "run1/")]
        assert sorted(keys) == sorted(listed)
    # A partition by first characters of the names is a listing like any other.
    parts = [entry.key for part in range(7) for entry in current(client, bucket, f"run1/d{part}")]
    assert sorted(keys) == sorted(parts)


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_versions_markers_and_null_versions_are_all_listed(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there before versioning, each version since and each delete marker is an entry, with its size."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    assert bucket_versioning(client, bucket) is Versioning.NEVER
    client.put_object(Bucket=bucket, Key="p/old", Body=b"1" * 10)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert bucket_versioning(client, bucket) is Versioning.ENABLED
    client.put_object(Bucket=bucket, Key="p/old", Body=b"2" * 100)
    client.put_object(Bucket=bucket, Key="p/gone", Body=b"3" * 1000)
    client.delete_object(Bucket=bucket, Key="p/gone")

    listed = list(versions(client, bucket, "p/"))

    assert sorted((entry.key, entry.kind, entry.size_bytes) for entry in listed) == [
        ("p/gone", Kind.MARKER, 0),
        ("p/gone", Kind.NONCURRENT, 1000),
        ("p/old", Kind.CURRENT, 100),
        ("p/old", Kind.NONCURRENT, 10),
    ]
    assert "null" in [entry.version_id for entry in listed if entry.size_bytes == 10]
    assert all(entry.modified_ms and entry.modified_ms > 1_700_000_000_000 for entry in listed)
    assert [entry.key for entry in current(client, bucket, "p/")] == ["p/old"]
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert bucket_versioning(client, bucket) is Versioning.SUSPENDED


def test_pages_may_end_inside_the_versions_of_a_key(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,500 versions of two keys are listed in two pages without losing one."""
    client, bucket = client_of(seaweed, monkeypatch), make_bucket(seaweed)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_all(client, bucket, [f"p/f{n % 2}" for n in range(1500)])

    listed = [(entry.key, entry.version_id) for entry in versions(client, bucket, "p/")]

    assert (len(listed), len(set(listed))) == (1500, 1500)


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_unfinished_uploads_are_listed(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads below the prefix are entries with their ids, odd keys included; uploads beside it are not."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    keys = ["p/a", "p/a b", "p/a+b", "p/a%20b", "p/ü", "p/a"]
    ids = {client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]: key for key in keys}
    client.create_multipart_upload(Bucket=bucket, Key="p10/a")

    listed = list(uploads(client, bucket, "p/"))

    assert ids == {entry.version_id: entry.key for entry in listed}
    assert {Kind.UPLOAD} == {entry.kind for entry in listed}


def test_more_than_a_thousand_uploads_are_listed(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """SeaweedFS lists 1,100 uploads at once, in the order of their ids."""
    client, bucket = client_of(seaweed, monkeypatch), make_bucket(seaweed)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: client.create_multipart_upload(Bucket=bucket, Key=f"p/{n}"), range(1100)))

    assert len({entry.version_id for entry in uploads(client, bucket, "p/")}) == 1100


def test_pages_of_uploads_that_lead_nowhere_raise(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where SeaweedFS ends a page of uploads without NextKeyMarker, its uploads are yielded and then it raises."""
    client, bucket = client_of(seaweed, monkeypatch), make_bucket(seaweed)
    for n in range(5):
        client.create_multipart_upload(Bucket=bucket, Key=f"p/{n}")

    def small_pages(params: dict[str, Any], **_context: object) -> None:
        params["MaxUploads"] = 2

    client.meta.events.register("before-parameter-build.s3.ListMultipartUploads", small_pages)
    listing = uploads(client, bucket, "p/")

    assert len({next(listing), next(listing)}) == 2
    with pytest.raises(ListingIncomplete, match="NextKeyMarker"):
        next(listing)


def test_one_client_serves_many_threads(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen threads that list different prefixes with one client get their own keys."""
    client, bucket = client_of(moto_s3, monkeypatch), make_bucket(moto_s3)
    put_all(client, bucket, [f"p{prefix}/f {n}" for prefix in range(16) for n in range(20)])

    def keys(prefix: int) -> list[str]:
        return sorted(entry.key for entry in current(client, bucket, f"p{prefix}/"))

    with ThreadPoolExecutor(16) as pool:
        for _ in range(3):
            for prefix, listed in enumerate(pool.map(keys, range(16))):
                assert sorted(f"p{prefix}/f {n}" for n in range(20)) == listed


def test_an_ordinary_listing_with_our_client_fails_loudly(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that takes the client for a plain one does not read the stub as an empty bucket."""
    client, bucket = client_of(moto_s3, monkeypatch), make_bucket(moto_s3)
    put_all(client, bucket, ["p/a"])

    response = client.list_objects_v2(Bucket=bucket)
    assert response["KeyCount"] == 1
    with pytest.raises(TypeError):
        response["Contents"][0]["Key"]
    with pytest.raises(TypeError):
        client.list_object_versions(Bucket=bucket)["Versions"][0]["Key"]


# ---- a server that misbehaves --------------------------------------------------------------------------------------


def page(*keys: str, token: str | None = None, truncated: bool | None = False) -> tuple[int, bytes]:
    """A ListObjectsV2 answer."""
    rows = "".join(f"<Contents><Key>{escape(key)}</Key><Size>1</Size></Contents>" for key in keys)
    says = "" if truncated is None else f"<IsTruncated>{str(truncated).lower()}</IsTruncated>"
    goes_on = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return 200, f"<ListBucketResult>{says}{goes_on}{rows}</ListBucketResult>".encode()


def versions_page(key: str, version: str, following: tuple[str, str] | None) -> tuple[int, bytes]:
    """A ListObjectVersions answer with one version."""
    row = f"<Version><Key>{key}</Key><VersionId>{version}</VersionId><Size>1</Size></Version>"
    marker, id_marker = following or ("", "")
    markers = f"<NextKeyMarker>{marker}</NextKeyMarker><NextVersionIdMarker>{id_marker}</NextVersionIdMarker>"
    truncated = str(following is not None).lower()
    body = f"<ListVersionsResult><IsTruncated>{truncated}</IsTruncated>{markers}{row}</ListVersionsResult>"
    return 200, body.encode()


def test_an_empty_page_may_be_followed_by_others(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated page without entries is not the end."""
    pages = {None: page(token="1", truncated=True), "1": page("p/a", token="2", truncated=True), "2": page()}
    fake.answer = lambda request: pages[request.query.get("continuation-token")]

    assert [entry.key for entry in current(client_at(fake.endpoint, monkeypatch), "bucket", "p/")] == ["p/a"]


def test_a_listing_that_goes_on_without_a_token_raises(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A truncated page that does not say where to go on is not the end."""
    fake.answer = lambda _: page("p/a", truncated=True)

    with pytest.raises(ListingIncomplete, match="ContinuationToken"):
        list(current(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))


def test_a_listing_that_does_not_say_whether_it_ended_raises(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without IsTruncated is not the end."""
    fake.answer = lambda _: page("p/a", truncated=None)

    with pytest.raises(ListingIncomplete, match="last one"):
        list(current(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))


@pytest.mark.parametrize("length", [1, 2, 3, 10])
def test_a_listing_that_goes_round_in_a_circle_raises(length: int, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated markers are seen, after one page or after ten, and also where the circle starts late."""
    number = count()
    fake.answer = lambda _: page("p/a", token=str(n if (n := next(number)) < 5 else n % length), truncated=True)

    with pytest.raises(ListingIncomplete, match="again and again"):
        list(current(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))
    assert len(fake.asked) <= 5 + 4 * max(length, 5)


def test_versions_are_paged_by_key_and_version(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key as marker is progress where the version moves on."""
    pages = {None: versions_page("p/a", "v1", ("p/a", "v1")), "v1": versions_page("p/a", "v2", ("p/a", "v2"))}
    pages["v2"] = versions_page("p/a", "v3", None)
    fake.answer = lambda request: pages[request.query.get("version-id-marker")]

    listed = list(versions(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))

    assert [entry.version_id for entry in listed] == ["v1", "v2", "v3"]


def test_versions_without_a_version_marker_raise(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key alone the rest of a key's versions would be skipped."""
    fake.answer = lambda _: versions_page("p/a", "v1", ("p/a", ""))

    with pytest.raises(ListingIncomplete, match="NextVersionIdMarker"):
        list(versions(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))


def test_a_key_outside_the_prefix_raises(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lists a neighbour is not believed."""
    fake.answer = lambda _: page("p/a", "p10/a")

    with pytest.raises(ListingIncomplete, match="p10/a"):
        list(current(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>log in</html>", page("p/a")[1][:-9], error_body("InternalError")],
    ids=["empty", "html", "torn", "error"],
)
@pytest.mark.parametrize("listing", [current, versions, uploads])
def test_a_200_that_is_no_listing_raises(
    listing: Any, body: bytes, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No body, HTML, torn XML and an error document with status 200 are never an empty listing."""
    fake.answer = lambda _: (200, body)

    with pytest.raises((ListingIncomplete, Transient)):
        list(listing(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))


def test_a_torn_page_is_asked_for_again(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that came torn once is read whole at the next try."""
    torn = iter([(200, page("p/a")[1][:-9]), NO_ANSWER, (503, error_body("SlowDown"))])
    fake.answer = lambda _: next(torn, page("p/a"))

    assert [entry.key for entry in current(client_at(fake.endpoint, monkeypatch), "bucket", "p/")] == ["p/a"]
    assert len(fake.asked) == 4


@pytest.mark.parametrize("answer", [NO_ANSWER, (503, error_body("SlowDown")), (500, b"")])
def test_a_busy_server_is_transient(answer: tuple[int, bytes], fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What five tries did not get may come later; it pauses nothing."""
    fake.answer = lambda _: answer

    with pytest.raises(Transient):
        list(current(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))
    assert len(fake.asked) == 5


@pytest.mark.parametrize(("text", "keys"), [("p/%01+%2B", ["p/\x01 +"]), ("p/+", None)])
def test_uploads_are_asked_for_with_encoding_where_their_xml_breaks(
    text: str, keys: list[str] | None, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that XML cannot hold comes url-encoded; one that can be read in two ways is not guessed."""
    row = "<Upload><Key>{}</Key><UploadId>u</UploadId></Upload></ListMultipartUploadsResult>"
    head = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>"

    def answer(request: Request) -> tuple[int, bytes]:
        if "encoding-type" not in request.query:
            return 200, (head + row.format("p/&#1; +")).encode()
        return 200, (head + "<EncodingType>url</EncodingType>" + row.format(text)).encode()

    fake.answer = answer
    listing = uploads(client_at(fake.endpoint, monkeypatch), "bucket", "p/")

    if keys is None:
        with pytest.raises(ListingIncomplete, match="two ways"):
            next(listing)
    else:
        assert [entry.key for entry in listing] == keys


def test_a_marker_that_is_not_utf8_raises(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that cannot be followed byte for byte is not followed."""
    status, body = versions_page("p/a", "v1", ("p/%FF", "v1"))
    fake.answer = lambda _: (status, body.replace(b"<IsT", b"<EncodingType>url</EncodingType><IsT"))

    with pytest.raises(ListingIncomplete, match="UTF-8"):
        list(versions(client_at(fake.endpoint, monkeypatch), "bucket", "p/"))


def test_html_is_not_an_unversioned_bucket(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of HTML in the place of GetBucketVersioning's answer raises."""
    fake.answer = lambda _: (200, b"<html/>")

    with pytest.raises(ListingIncomplete):
        bucket_versioning(client_at(fake.endpoint, monkeypatch), "bucket")


@pytest.mark.parametrize("status", [403, 405, 501])
def test_versioning_that_is_not_told_is_unknown(status: int, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Denied and not implemented are no statement about versions, also without a body."""
    fake.answer = lambda _: (status, b"")

    assert bucket_versioning(client_at(fake.endpoint, monkeypatch), "bucket") is Versioning.UNKNOWN


@pytest.mark.parametrize("answer", [(404, error_body("NoSuchBucket")), (403, error_body("InvalidAccessKeyId"))])
def test_versioning_of_a_bucket_that_cannot_be_used_raises(
    answer: tuple[int, bytes], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bucket and no good credentials are not UNKNOWN."""
    fake.answer = lambda _: answer

    with pytest.raises(BucketPaused):
        bucket_versioning(client_at(fake.endpoint, monkeypatch), "bucket")


@pytest.mark.parametrize(("encode", "costs"), [(quote_plus, 2), (quote, 1)])
def test_a_space_costs_one_more_request_once(
    encode: Any, costs: int, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What + means is asked once; a key with a space is then decoded by what the server showed."""

    def answer(request: Request) -> tuple[int, bytes]:
        encoded = "encoding-type" in request.query
        status, body = page(encode("p/a b", safe="/") if encoded else "p/a b")
        return status, body.replace(b"<IsT", b"<EncodingType>url</EncodingType><IsT") if encoded else body

    fake.answer = answer
    client = client_at(fake.endpoint, monkeypatch)

    for _ in range(3):
        assert [entry.key for entry in current(client, "bucket", "p/")] == ["p/a b"]
    assert 2 + costs == len(fake.asked)


def test_random_keys_come_back(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch, rng: random.Random) -> None:
    """Keys of random odd characters are listed as they were put (the seed is in the header of the run)."""
    client, bucket = client_of(moto_s3, monkeypatch), make_bucket(moto_s3)
    alphabet = "ab/ +%2é\u0308\r\t\x02&<>'\"?#*~"
    keys = sorted({"p/" + "".join(rng.choices(alphabet, k=rng.randint(1, 12))) + "z" for _ in range(100)})
    put_all(client, bucket, keys)

    assert keys == sorted(entry.key for entry in current(client, bucket, "p/")), keys


@pytest.mark.parametrize(("fixture", "number"), [("moto_s3", 1100), ("seaweed", 1100)])
def test_one_level_is_listed_to_its_end(
    fixture: str, number: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders and objects of one level, each once, over several pages; a folder that only versions fill is seen too."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    folders = [f"p/d{n:04}/" for n in range(number)]
    put_all(client, bucket, [*(f"{folder}x" for folder in folders), "p/f1", "p/f2", "p/hidden/x", "p2/x"])
    client.delete_object(Bucket=bucket, Key="p/hidden/x")

    plain = list(level(client, bucket, "p/", with_versions=False))
    all_ = list(level(client, bucket, "p/", with_versions=True))

    assert sorted(one.key for one in plain if isinstance(one, Entry)) == ["p/f1", "p/f2"]
    assert sorted(one.key for one in all_ if isinstance(one, Entry)) == ["p/f1", "p/f2"]
    assert sorted(one.prefix for one in all_ if isinstance(one, Folder)) == [*folders, "p/hidden/"]
    assert set(folders) <= {one.prefix for one in plain if isinstance(one, Folder)}


@pytest.mark.parametrize("name", ["a b", "a+b", "ä%41", "a&<b"])
@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_the_name_of_a_folder_is_byte_exact(
    fixture: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing but a folder shows what + means to the server."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    put_all(client, bucket, [f"p/{name}/x"])

    for with_versions in (False, True):
        assert list(level(client, bucket, "p/", with_versions=with_versions)) == [Folder(f"p/{name}/")]


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_an_entry_has_its_storage_class(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As both listings of objects tell it."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    put_all(client, bucket, ["p/hot"])
    client.put_object(Bucket=bucket, Key="p/cold", Body=b"", StorageClass="STANDARD_IA")

    for listing in (current, versions):
        found = {entry.key: entry.storage_class for entry in listing(client, bucket, "p/")}
        assert found == {"p/hot": "STANDARD", "p/cold": "STANDARD_IA"}
