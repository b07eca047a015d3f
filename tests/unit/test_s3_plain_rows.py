"""Rows read by patterns: what the parser would have read, to the byte, or left to it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import botocore.handlers
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from hypothesis import given, note, seed, settings
from hypothesis import strategies as st

from mlflow_artifact_gc.s3 import connect, parsing, versions
from mlflow_artifact_gc.s3.entries import Entry, Kind
from mlflow_artifact_gc.s3.errors import BucketPaused, ListingIncomplete
from mlflow_artifact_gc.s3.keys import PlusSign
from mlflow_artifact_gc.s3.parsing import PAGE, BodyUnreadable, Page
from mlflow_artifact_gc.s3.plain_rows import STAND_IN, take_out

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

SEED = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<IsTruncated>false</IsTruncated><VersionIdMarker/>"
)
END = "</ListVersionsResult>"
NAMES = ("Version", "DeleteMarker")
ROWS_OF_SERVERS = {
    "AWS": (
        "<Version><Key>p/a</Key><VersionId>v.1_-</VersionId><IsLatest>true</IsLatest>"
        "<LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>"
        "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType><Size>10</Size>"
        "<Owner><ID>75aa57f0</ID></Owner><StorageClass>STANDARD</StorageClass></Version>"
    ),
    "SeaweedFS": (
        "<Version><Key>p/a</Key><VersionId>v.1_-</VersionId><IsLatest>true</IsLatest>"
        "<LastModified>2026-01-02T03:04:05Z</LastModified><ETag>&#34;d41d8cd98f00b204e9800998ecf8427e&#34;</ETag>"
        "<Size>10</Size><Owner><ID>id</ID><DisplayName>me</DisplayName></Owner><StorageClass>STANDARD</StorageClass>"
        "</Version>"
    ),
}

# What servers send, and what a careless pattern would read wrongly.
texts = st.one_of(
    st.sampled_from(
        ["p/a", "p%2Fb", "p/+", "&amp;", "&quot;x&quot;", "&#34;", ">", "]]>", "é", "\n", "\t", "\x01", ""]
    ),
    st.sampled_from(["true", "false", "12", "2026-01-02T03:04:05Z", "null", "STANDARD", "&bad;", "&", "<b>x</b>"]),
)
tags = st.sampled_from(["Key", "VersionId", "IsLatest", "LastModified", "ETag", "Size", "StorageClass", "X", "Y1"])
leaves = st.builds("<{0}>{1}</{0}>".format, tags, texts)
odd = st.sampled_from(
    [
        "<Size/>",
        "<Size />",
        "<!-- <Key>p/c</Key> -->",
        "<![CDATA[<Key>]]>",
        " ",
        "text",
        "<Key a='b'>p/d</Key>",
        "</Key>",
    ]
)
nested = st.builds("<Owner>{}</Owner>".format, st.lists(leaves, max_size=2).map("".join))
children = st.lists(st.one_of(leaves, leaves, leaves, nested, odd), max_size=5).map("".join)
plain = st.sampled_from(sorted(ROWS_OF_SERVERS)).map(ROWS_OF_SERVERS.__getitem__)
rows = st.builds("<{0}><Key>p/k</Key><Size>1</Size>{1}</{0}>".format, st.sampled_from(NAMES), children)
around = st.sampled_from(
    [f"<{STAND_IN}/>", "<EncodingType>url</EncodingType>", "<Name>b</Name>", "\n", "<CommonPrefixes/>", "<!---->"]
)
documents = st.builds(
    lambda parts, cut: (HEAD + "".join(parts) + END)[: cut or None],
    st.lists(st.one_of(plain, plain, rows, around), max_size=6),
    st.sampled_from([0, 0, 0, 0, -1, -9, 300]),
)


def read(body: bytes) -> Page | str:
    """What a page of versions says, or that it cannot be read."""
    plus = PlusSign()
    try:
        page: Page = parsing.read_versions(body, 200, plus)[PAGE]
    except BodyUnreadable:
        return "unreadable"
    return replace(page, ambiguous=None, next_token="ambiguous") if page.ambiguous is plus else page


@seed(SEED)
@settings(max_examples=1500, deadline=None, database=None, print_blob=True)
@given(documents)
def test_it_is_what_the_parser_reads(document: str) -> None:
    """Any page reads the same with patterns and without."""
    note(f"TEST_SEED={SEED}")
    body = document.encode()
    with pytest.MonkeyPatch.context() as patch:
        found = read(body)
        patch.setattr(parsing, "take_out", lambda *_: None)
        assert read(body) == found


@pytest.mark.parametrize("server", ROWS_OF_SERVERS)
def test_the_rows_of_servers_need_no_parser(server: str) -> None:
    """Pages as servers send them are read by patterns, delete markers between versions included."""
    marker = "<DeleteMarker><Key>p/b</Key><VersionId>v2</VersionId><IsLatest>true</IsLatest></DeleteMarker>"
    row = ROWS_OF_SERVERS[server]
    body = (HEAD + row + marker + row + row + END).encode()

    taken = take_out(body, NAMES)
    assert taken is not None
    assert [name for name, _ in taken.rows] == ["Version", "DeleteMarker", "Version", "Version"]
    assert taken.rest == f"{HEAD}<{STAND_IN}/>{END}".encode()
    entries = parsing.read_versions(body, 200, PlusSign())[PAGE].entries
    assert entries[0] == Entry("p/a", Kind.CURRENT, "v.1_-", 10, 1767323045000, "STANDARD")


@pytest.mark.parametrize(
    "row",
    [
        "<Version><Key>p/a&amp;b</Key><Size>1</Size></Version>",
        "<Version><Key>p/a</Key><Size>1</Size><X>&lt;</X></Version>",
        "<Version><Key>p/a</Key><Size>1</Size><X>></X></Version>",
        "<Version><Key>p/é</Key><Size>1</Size></Version>",
        "<Version><Key>p/\x01</Key><Size>1</Size></Version>",
        "<Version><Key>p/a</Key><Size>1</Size></Version>\n<Version><Key>p/b</Key><Size>1</Size></Version>",
        "<!-- --><Version><Key>p/a</Key><Size>1</Size></Version>",
        "<Version><Key x='1'>p/a</Key><Size>1</Size></Version>",
    ],
)
def test_what_is_unusual_is_left_to_the_parser(row: str) -> None:
    """Nothing of such a page is taken out, or the rest still holds a row and the page is parsed as a whole."""
    body = (HEAD + row + END).encode()

    taken = take_out(body, NAMES)
    assert taken is None or b"<Version>" in taken.rest


def test_of_nested_elements_nothing_is_a_field() -> None:
    """A Size inside another element is not the row's."""
    body = (HEAD + "<Version><Owner><ID>x</ID><Size>7</Size></Owner><Key>p/a</Key></Version>" + END).encode()

    taken = take_out(body, NAMES)
    assert taken is not None
    assert taken.rows == [("Version", {"Key": "p/a"})]


class Body(BytesIO):
    """What botocore reads an answer from."""

    def stream(self) -> Iterator[bytes]:
        """All of it at once."""
        yield self.read()


def client_answering(monkeypatch: pytest.MonkeyPatch, *bodies: bytes, status: int = 200) -> S3Client:
    """A client that is answered with these, one after the other, without a network."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    client = connect({"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}, threads=1)
    waiting = list(bodies)

    def answer(request: Any, **_context: object) -> AWSResponse:
        return AWSResponse(request.url, status, HTTPHeaders(), Body(waiting.pop(0)))

    events: Any = client.meta.events
    events.register("before-send.s3", answer)
    return client


def test_a_page_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore, which looks for an <Error> in each success and would then parse it all, sees a stub."""
    handlers: Any = botocore.handlers
    look = handlers._looks_like_special_case_error
    seen: list[bytes] = []

    def looked(code: int, body: bytes) -> Any:
        seen.append(body)
        return look(code, body)

    monkeypatch.setattr(handlers, "_looks_like_special_case_error", looked)
    body = (HEAD + ROWS_OF_SERVERS["AWS"] * 50 + END).encode()
    client = client_answering(monkeypatch, body)

    assert len(list(versions(client, "bucket", "p/"))) == 50
    assert max(map(len, seen), default=0) < 100


def test_an_error_in_a_success_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As botocore does: S3 may begin to answer with 200 and fail then. So with an answer that is torn."""
    error = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
    whole = (HEAD + ROWS_OF_SERVERS["AWS"] + END).encode()
    client = client_answering(monkeypatch, error, whole[:-9], whole)

    assert [entry.key for entry in versions(client, "bucket", "p/")] == ["p/a"]


@pytest.mark.parametrize(("look", "status"), [(True, 206), (False, 206), (False, 200)])
def test_a_body_like_our_own_stub_is_no_page(monkeypatch: pytest.MonkeyPatch, status: int, *, look: bool) -> None:
    """Neither with a status that is no answer, nor where botocore's look has another name by now."""
    if not look:
        monkeypatch.setattr(parsing, "_LOOK_FOR_ERROR", None)
    client = client_answering(monkeypatch, b"<ListVersionsResult/>", status=status)

    with pytest.raises((ListingIncomplete, BucketPaused)):
        list(versions(client, "bucket", "p/"))
