"""S3's XML answers: what is read from them, and what is never read as emptiness."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

from mlflow_artifact_gc.s3.deleting import match
from mlflow_artifact_gc.s3.entries import Entry, Kind
from mlflow_artifact_gc.s3.errors import Answer, BucketPaused, Place, Transient, answer_lost, one_line, translate
from mlflow_artifact_gc.s3.keys import PlusSign
from mlflow_artifact_gc.s3.parsing import (
    PAGE,
    ROWS,
    BodyUnreadable,
    DeletedRow,
    ErrorRow,
    Page,
    parse_root,
    read_current,
    read_deleted,
    read_uploads,
    read_versions,
)

NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
VERSIONS = (
    f'<?xml version="1.0" encoding="UTF-8"?>\n<ListVersionsResult {NAMESPACE}><IsTruncated>true</IsTruncated>'
    "<NextKeyMarker>p/b</NextKeyMarker><NextVersionIdMarker>v2</NextVersionIdMarker>"
    "<Version><Key>p/a</Key><VersionId>v1</VersionId><IsLatest>true</IsLatest><Size>10</Size>"
    "<LastModified>2026-01-02T03:04:05.678Z</LastModified><Owner><ID>me</ID></Owner></Version>"
    "<Version><Key>p/a</Key><VersionId>null</VersionId><IsLatest>false</IsLatest><Size>100</Size>"
    "<LastModified>2026-01-02T03:04:05Z</LastModified></Version>"
    "<DeleteMarker><Key>p/b</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest>"
    "<LastModified>2026-01-02T03:04:05Z</LastModified></DeleteMarker></ListVersionsResult>"
).encode()
MODIFIED_MS = 1767323045000
PLACE = Place("http://s3.test:80", "bucket", "s3:ListBucket")


def current_page(keys: list[str], *, extra: str = "<EncodingType>url</EncodingType>") -> bytes:
    """A ListObjectsV2 answer with these texts as keys."""
    rows = "".join(f"<Contents><Key>{escape(key)}</Key><Size>1</Size></Contents>" for key in keys)
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{extra}{rows}</ListBucketResult>".encode()


def read(body: bytes, plus: PlusSign | None = None) -> Page:
    """The page of a ListObjectsV2 answer."""
    page = read_current(body, 200, plus or PlusSign())[PAGE]
    assert isinstance(page, Page)
    return page


def keys_of(page: Page) -> list[str]:
    """Its keys."""
    return [entry.key for entry in page.entries]


def test_a_page_of_versions_says_all() -> None:
    """Versions, the null version and delete markers are told apart, with ids, sizes and dates."""
    page: Page = read_versions(VERSIONS, 200, PlusSign())[PAGE]

    assert (
        Entry("p/a", Kind.CURRENT, "v1", 10, MODIFIED_MS + 678),
        Entry("p/a", Kind.NONCURRENT, "null", 100, MODIFIED_MS),
        Entry("p/b", Kind.MARKER, "v2", 0, MODIFIED_MS, hides=True),
    ) == page.entries
    assert (page.truncated, page.next_key, page.next_id) == (True, "p/b", "v2")


@pytest.mark.parametrize("namespace", ["", NAMESPACE, 'xmlns="http://obs.example.com/2015/"'])
def test_the_namespace_does_not_matter(namespace: str) -> None:
    """No row is overlooked for the namespace that a server puts its answer in."""
    body = VERSIONS.replace(NAMESPACE.encode(), namespace.encode())

    assert len(read_versions(body, 200, PlusSign())[PAGE].entries) == 3


@pytest.mark.parametrize("cut", range(0, len(VERSIONS), 7))
def test_a_torn_body_is_never_a_short_list(cut: int) -> None:
    """A body that ends anywhere before its end raises."""
    with pytest.raises(BodyUnreadable):
        parse_root(VERSIONS[:cut], 200, "ListVersionsResult")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Please log in</body></html>",
        b"<Error><Code>InternalError</Code></Error>",
        f"<Error {NAMESPACE}><Code>InternalError</Code></Error>".encode(),
        b"<ListBucketResult/>",
        VERSIONS + b"<Version/>",
    ],
)
def test_another_body_is_never_an_empty_list(body: bytes) -> None:
    """A 200 with no body, another root or something behind the root raises."""
    with pytest.raises(BodyUnreadable):
        parse_root(body, 200, "ListVersionsResult")


@pytest.mark.parametrize("status", [201, 202, 204, 206, 300])
def test_only_200_is_an_answer_to_a_listing(status: int) -> None:
    """Every other status that botocore takes for success raises."""
    with pytest.raises(BodyUnreadable):
        parse_root(VERSIONS, status, "ListVersionsResult")


@pytest.mark.parametrize("missing", ["Key", "Size"])
def test_a_row_that_lacks_something_is_refused(missing: str) -> None:
    """An object without a key or a size makes the whole page unreadable."""
    body = (
        current_page(["p/a"])
        .replace(f"<{missing}>".encode(), b"<Other>")
        .replace(f"</{missing}>".encode(), b"</Other>")
    )

    with pytest.raises(BodyUnreadable):
        read(body)


def test_a_page_may_not_say_whether_it_is_the_last() -> None:
    """Without IsTruncated a page counts as neither the last nor one of many."""
    assert read(b"<ListBucketResult/>").truncated is None


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2026-01-02T03:04:05", "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999999"]
)
def test_a_date_that_cannot_be_believed_is_none(text: str) -> None:
    """No date, no zone, Go's zero time and the epoch are unknown: never an old object."""
    body = current_page(["p/a"]).replace(b"<Size>", f"<LastModified>{text}</LastModified><Size>".encode())

    assert read(body).entries[0].modified_ms is None


ODD_KEYS = [
    "a b",
    "a+b",
    "a%20b",
    "a%2Bb",
    "%",
    "a%zz",
    "ü",
    "u\u0308",
    "l\nf",
    "c\rr",
    "t\tb",
    "\x01",
    "&<>\"'",
    "x//y",
]


@pytest.mark.parametrize("encode", [quote_plus, quote])
def test_odd_keys_survive_url_encoding(encode: Any) -> None:
    """Keys come back byte for byte from servers that write a space as + (AWS, SeaweedFS) and as %20 (moto)."""
    keys = [f"p/{key}" for key in ODD_KEYS]

    assert keys == keys_of(read(current_page([encode(key, safe="/") for key in keys])))


@pytest.mark.parametrize("encode", [quote_plus, quote])
def test_random_keys_survive_url_encoding(encode: Any, rng: random.Random) -> None:
    """Whatever a page's keys are, they are decoded exactly, or the page calls itself ambiguous."""
    for _ in range(300):
        alphabet = rng.sample("ab /+%2B0é\u4e2d\U0001f600\n\r\x01~*'()&<", 8)
        keys = ["".join(rng.choices(alphabet, k=rng.randint(1, 8))) for _ in range(rng.randint(1, 4))]
        page = read(current_page([encode(key, safe="/") for key in keys]))

        assert page.ambiguous is not None or keys == keys_of(page), keys
        if page.ambiguous is not None:
            assert any(" " in key for key in keys), keys


def test_keys_are_taken_as_they_are_without_encoding() -> None:
    """Where the answer does not say that its keys are encoded, nothing is decoded."""
    keys = ["p/a%20b", "p/a+b", "p/a b"]

    assert keys == keys_of(read(current_page(keys, extra="")))


def test_a_server_that_claims_to_encode_is_not_believed_blindly() -> None:
    """Keys with a space or a letter that no URL holds were not encoded, whatever the answer says."""
    keys = ["p/a b", "p/a+b", "p/a%20b"]

    assert keys == keys_of(read(current_page(keys)))


def test_a_plus_is_ambiguous_until_the_server_has_shown_what_it_means() -> None:
    """A lone + is not decoded; after one page seen in both forms, it is."""
    for meaning in ("p/a b", "p/a+b"):
        plus = PlusSign()
        page = read(current_page(["p/a+b"]), plus)
        assert page.ambiguous is plus
        assert keys_of(page) == ["p/a+b"]

        plus.learn(keys_of(page), [meaning])

        assert [meaning] == keys_of(read(current_page(["p/a+b"]), plus))


def test_learning_needs_evidence() -> None:
    """A page that shows both readings, or neither, teaches nothing."""
    plus = PlusSign()
    plus.learn(["p/a+b"], ["p/a b", "p/a+b"])
    plus.learn(["p/a+b"], ["p/c"])
    plus.learn(["p/a+%FF"], ["p/a \ufffd"])

    assert plus.is_space is None


def test_a_key_that_is_not_utf8_is_refused() -> None:
    """An encoded key that is no UTF-8 is not turned into another key."""
    with pytest.raises(BodyUnreadable):
        read(current_page(["p/a%FFb"]))


@pytest.mark.parametrize("marker", ["p/%C3%BC%2541", "p/ü%41"])
def test_a_marker_is_decoded_as_the_keys_are(marker: str) -> None:
    """A next marker is decoded once, and not at all where a server forgot to encode it."""
    extra = f"<EncodingType>url</EncodingType><NextKeyMarker>{marker}</NextKeyMarker>"

    assert read(current_page(["p/%C3%BC%2541"], extra=extra)).next_key == "p/ü%41"


def test_an_upload_needs_its_id() -> None:
    """An upload without an id cannot be aborted, so it makes the page unreadable."""
    row = "<Upload><Key>p/a</Key><Initiated>2026-01-02T03:04:05Z</Initiated>{}</Upload>"
    body = "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{}</ListMultipartUploadsResult>"
    whole = body.format(row.format("<UploadId>u</UploadId>")).encode()

    page: Page = read_uploads(whole, 200, PlusSign())[PAGE]
    assert (Entry("p/a", Kind.UPLOAD, "u", 0, MODIFIED_MS),) == page.entries
    with pytest.raises(BodyUnreadable):
        read_uploads(body.format(row.format("")).encode(), 200, PlusSign())


def test_the_rows_of_a_delete_are_read() -> None:
    """Every key that was deleted or not is told with its version; an empty version is none."""
    body = (
        b"<DeleteResult><Deleted><Key>a\nb</Key><VersionId>v1</VersionId></Deleted><Deleted><Key>c</Key></Deleted>"
        b"<Error><Key>d</Key><VersionId/><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    )

    deleted, errors = read_deleted(body, 200, PlusSign())[ROWS]
    assert (DeletedRow("a\nb", "v1"), DeletedRow("c", None)) == deleted
    assert (ErrorRow("d", None, "AccessDenied", "no"),) == errors


def test_answers_are_matched_by_key_and_version() -> None:
    """Two versions of a key have two outcomes; a target that no row names has none."""
    targets = [("a", "v1"), ("a", "v2"), ("b", "null")]

    outcomes = match(targets, [DeletedRow("a", "v2")], [ErrorRow("a", "v1", "AccessDenied", "")])

    failure = outcomes[("a", "v1")]
    assert failure is not None
    assert (failure.code, failure.retryable) == ("AccessDenied", False)
    assert outcomes[("a", "v2")] is None
    assert ("b", "null") not in outcomes


def test_an_answer_without_a_version_settles_only_what_it_can_mean() -> None:
    """It settles the one target left of its key; of two it settles neither."""
    assert match([("a", "v1")], [DeletedRow("a", None)], []) == {("a", "v1"): None}
    assert match([("a", "v1"), ("a", "v2")], [DeletedRow("a", None)], []) == {}
    assert match([("a", "v1"), ("a", "null")], [DeletedRow("a", None), DeletedRow("a", "v1")], []) == {
        ("a", "v1"): None,
        ("a", "null"): None,
    }


def test_an_answer_about_something_else_settles_nothing() -> None:
    """Rows for keys or versions that were not asked for are no outcome of those that were."""
    assert match([("a", "v1"), ("b", None)], [DeletedRow("a", "v9"), DeletedRow("c", None)], []) == {}


def test_an_error_outweighs_a_success() -> None:
    """A key in both lists has failed."""
    outcomes = match([("a", None)], [DeletedRow("a", None)], [ErrorRow("a", None, "InternalError", "")])

    failure = outcomes[("a", None)]
    assert failure is not None
    assert failure.retryable


@pytest.mark.parametrize("code", ["NoSuchKey", "NoSuchVersion"])
def test_what_is_gone_already_is_deleted(code: str) -> None:
    """An error that says that there is nothing to delete is a success."""
    assert match([("a", None)], [], [ErrorRow("a", None, code, "")]) == {("a", None): None}


@pytest.mark.parametrize(
    ("code", "status", "error", "words"),
    [
        ("AccessDenied", 403, BucketPaused, "grant s3:ListBucket"),
        ("403", 403, BucketPaused, "grant s3:ListBucket"),
        ("ExpiredToken", 400, BucketPaused, "credentials"),
        ("InvalidAccessKeyId", 403, BucketPaused, "credentials"),
        ("SignatureDoesNotMatch", 403, BucketPaused, "credentials"),
        ("NoSuchBucket", 404, BucketPaused, "no such bucket"),
        ("404", 404, BucketPaused, "no such bucket"),
        ("PermanentRedirect", 301, BucketPaused, "elsewhere"),
        ("NotImplemented", 501, BucketPaused, "does not offer"),
        ("400", 400, BucketPaused, "answered 400:"),
        ("SlowDown", 503, Transient, "SlowDown"),
        ("500", 500, Transient, "answered 500"),
    ],
)
def test_an_error_answer_is_one_sentence(code: str, status: int, error: type[Exception], words: str) -> None:
    """Codes, or the bare status where the body was empty, are put into words that name endpoint and bucket."""
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    translated = translate(ClientError(answer, "ListObjectsV2"), PLACE)

    assert type(translated) is error
    assert words in str(translated)
    assert "bucket 'bucket' at http://s3.test:80" in str(translated)


def test_errors_hold_no_urls_and_no_credentials() -> None:
    """The texts of botocore's exceptions and presigned parts of a server's message are left out."""
    secret = "http://user:password@s3.test/bucket?X-Amz-Signature=abc"
    for error in (EndpointConnectionError(endpoint_url=secret), ReadTimeoutError(endpoint_url=secret)):
        assert "password" not in str(translate(error, PLACE))
    assert "no usable credentials" in str(translate(NoCredentialsError(), PLACE))
    assert one_line("X-Amz-Signature=abc\n X-Amz-Security-Token=def") == "X-Amz-Signature=... X-Amz-Security-Token=..."


def test_only_a_request_that_left_can_have_lost_its_answer() -> None:
    """A refused connection is no unknown outcome, a timeout is, a throttled request is not."""
    slow: Any = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}

    assert answer_lost(ReadTimeoutError(endpoint_url=""))
    assert not answer_lost(EndpointConnectionError(endpoint_url=""))
    assert not answer_lost(ClientError(slow, "DeleteObjects"))
    assert Answer.of(ClientError(slow, "DeleteObjects")).throttled
