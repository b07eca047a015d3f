"""What is under a prefix: streams of entries that end only at the true end of the listing.

A listing that cannot be followed to its end raises; it never just stops. Entries seen before that are yielded first, so
a sweep may act on them and list again. No order is assumed (SeaweedFS lists folders apart, and uploads by their id),
and a truncated page may be empty.

The S3 facts in this module were seen on SeaweedFS 4.48 and moto 5.2.5, or are AWS's documentation.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from mlflow_artifact_gc.s3.entries import Entry, Folder, Kind
from mlflow_artifact_gc.s3.errors import S3_ERRORS, Answer, ListingIncomplete, Place, endpoint_name, translate
from mlflow_artifact_gc.s3.parsing import PAGE, Page
from mlflow_artifact_gc.s3.permissions import right

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_s3.client import S3Client

    _Call = Callable[..., Any]
    _Markers = dict[str, str | None]

__all__ = ["Entry", "Folder", "Kind", "Versioning", "bucket_versioning", "current", "level", "uploads", "versions"]


class Versioning(StrEnum):
    """What a bucket does with the old object when a key is written or deleted."""

    NEVER = "never"
    ENABLED = "enabled"
    SUSPENDED = "suspended"
    """Old versions are still there."""
    UNKNOWN = "unknown"
    """The server does not say, or not to us. To be treated as if there were versions."""


def versions(client: S3Client, bucket: str, prefix: str) -> Iterator[Entry]:
    """Every version and delete marker of the keys that start with ``prefix``; on any bucket, versioned or not.

    Raises:
        BucketPaused: nothing can be listed, and why; a missing right is named.
        ListingIncomplete: the server's answers do not lead to an end.
        Transient: the server is busy.
    """
    place = Place(endpoint_name(client), bucket, right("ListObjectVersions"))

    def following(page: Page) -> _Markers:
        # Without the version marker the rest of the versions of the page's last key would be skipped.
        return {"KeyMarker": page.next_key, "VersionIdMarker": page.next_id}

    return _stream(_encoded(client.list_object_versions, place), place, prefix, following)


def current(client: S3Client, bucket: str, prefix: str) -> Iterator[Entry]:
    """The current objects whose keys start with ``prefix``. Raises as ``versions`` does."""
    place = Place(endpoint_name(client), bucket, right("ListObjectsV2"))

    def following(page: Page) -> _Markers:
        return {"ContinuationToken": page.next_token}

    return _stream(_encoded(client.list_objects_v2, place), place, prefix, following)


def uploads(client: S3Client, bucket: str, prefix: str) -> Iterator[Entry]:
    """The unfinished uploads to keys that start with ``prefix``. Raises as ``versions`` does.

    SeaweedFS answers without NextKeyMarker where there are more uploads than fit a page (10,000): the page is yielded,
    then ListingIncomplete is raised. After aborting those, listing again shows the others.
    """
    place = Place(endpoint_name(client), bucket, right("ListMultipartUploads"))

    def following(page: Page) -> _Markers:
        return {"KeyMarker": page.next_key, "UploadIdMarker": page.next_id}

    return _stream(_plain(client.list_multipart_uploads, place), place, prefix, following)


def level(client: S3Client, bucket: str, prefix: str, *, with_versions: bool) -> Iterator[Entry | Folder]:
    """What lies directly under ``prefix``, and the folders beneath it. Raises as ``versions`` does.

    Args:
        client: the client.
        bucket: where.
        prefix: empty, or ending in ``/``.
        with_versions: list versions and delete markers, and the folders that hold nothing else too.
    """
    if with_versions:
        call: _Call = client.list_object_versions
        place = Place(endpoint_name(client), bucket, right("ListObjectVersions"))
    else:
        call = client.list_objects_v2
        place = Place(endpoint_name(client), bucket, right("ListObjectsV2"))

    def following(page: Page) -> _Markers:
        if not with_versions:
            return {"ContinuationToken": page.next_token}
        # A page that ends with a folder has no version to go on from.
        return {"KeyMarker": page.next_key} | ({"VersionIdMarker": page.next_id} if page.next_id else {})

    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    for page in _pages(_encoded(call, place), place, request, following):
        for name in page.names:
            if not name.startswith(prefix):
                raise ListingIncomplete(f"{place} lists the key {name!r} under the prefix {prefix!r}")
        yield from page.entries
        yield from map(Folder, page.folders)


def bucket_versioning(client: S3Client, bucket: str) -> Versioning:
    """Whether the bucket keeps versions.

    Raises:
        BucketPaused, Transient: as ``versions`` does; but a missing right reads as UNKNOWN.
    """
    place = Place(endpoint_name(client), bucket, right("GetBucketVersioning"))
    try:
        status = client.get_bucket_versioning(Bucket=bucket).get("Status")
    except S3_ERRORS as error:
        if isinstance(error, ClientError) and (Answer.of(error).denied or Answer.of(error).not_implemented):
            return Versioning.UNKNOWN
        raise translate(error, place) from error
    known = {None: Versioning.NEVER, "Enabled": Versioning.ENABLED, "Suspended": Versioning.SUSPENDED}
    return known.get(status, Versioning.UNKNOWN)


def _stream(
    ask: Callable[[dict[str, Any]], Page], place: Place, prefix: str, following: Callable[[Page], _Markers]
) -> Iterator[Entry]:
    request: dict[str, Any] = {"Bucket": place.bucket, "Prefix": prefix}
    for page in _pages(ask, place, request, following):
        for entry in page.entries:
            if not entry.key.startswith(prefix):
                raise ListingIncomplete(f"{place} lists the key {entry.key!r} under the prefix {prefix!r}")
            yield entry


def _pages(
    ask: Callable[[dict[str, Any]], Page],
    place: Place,
    request: dict[str, Any],
    following: Callable[[Page], _Markers],
) -> Iterator[Page]:
    """The pages of a listing, to its true end."""
    progress = _Progress(place)
    asked = dict(request)
    while True:
        page = ask(asked)
        yield page
        if page.truncated is None:
            raise ListingIncomplete(f"{place} sent a page of a listing that does not say whether it is the last one")
        if not page.truncated:
            return
        markers = following(page)
        progress.step(markers)
        # Not over the last page's: a marker that this page has not is none.
        asked = request | markers


class _Progress:
    """Sees in constant memory that the pages of a listing go round in a circle (Brent's algorithm)."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._pages = 0
        self._next_checkpoint = 1
        self._checkpoint: _Markers = {}
        self._last: _Markers = {}

    def step(self, markers: _Markers) -> None:
        if missing := [name for name, value in markers.items() if not value]:
            raise ListingIncomplete(
                f"{self._place} says that its listing goes on, but not where (no Next{' and no Next'.join(missing)})"
            )
        if markers in (self._last, self._checkpoint):
            raise ListingIncomplete(f"{self._place} answers with the same page of its listing again and again")
        self._last = markers
        self._pages += 1
        if self._pages == self._next_checkpoint:
            self._checkpoint, self._next_checkpoint = markers, 2 * self._pages


def _encoded(call: _Call, place: Place) -> Callable[[dict[str, Any]], Page]:
    """Asks with url encoding, so that control characters survive the XML; without where ``+`` cannot be decoded."""

    def ask(request: dict[str, Any]) -> Page:
        page = _page(call, place, {**request, "EncodingType": "url"})
        if page.ambiguous is None:
            return page
        plain = _page(call, place, request)
        page.ambiguous.learn(page.names, plain.names)
        return plain

    return ask


def _plain(call: _Call, place: Place) -> Callable[[dict[str, Any]], Page]:
    """Asks without url encoding: SeaweedFS says of its uploads that they are encoded, and they are not.

    AWS's XML then breaks at a key with a control character, which botocore reports as a server error: so after one,
    ask with encoding.
    """

    def ask(request: dict[str, Any]) -> Page:
        try:
            return _called(call, request)
        except ClientError as error:
            if not Answer.of(error).retryable:
                raise translate(error, place) from error
        except S3_ERRORS as error:
            raise translate(error, place) from error
        page = _page(call, place, {**request, "EncodingType": "url"})
        if page.ambiguous is not None:
            raise ListingIncomplete(f"{place} lists unfinished uploads whose keys can be read in two ways")
        return page

    return ask


def _page(call: _Call, place: Place, request: dict[str, Any]) -> Page:
    try:
        return _called(call, request)
    except S3_ERRORS as error:
        raise translate(error, place) from error


def _called(call: _Call, request: dict[str, Any]) -> Page:
    page = call(**request)[PAGE]
    if not isinstance(page, Page):
        raise TypeError("this client was not made by connect()")
    return page
