"""Puts one tag on an object beside its own ones, or takes it off; each answer is done, refused or unknown.

S3 knows no call that adds a tag: ``PutObjectTagging`` replaces the whole set (of at most ten), so the set is read
first. Between the two somebody else's new tag can be lost; S3 has no condition that would prevent it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, cast

from botocore.exceptions import ClientError

from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.model import Failure
from mlflow_artifact_gc.s3.deleting import DOT_SEGMENT, GONE, dot_segment, failure_of
from mlflow_artifact_gc.s3.entries import Entry
from mlflow_artifact_gc.s3.errors import S3_ERRORS, Answer, Place, endpoint_name, translate
from mlflow_artifact_gc.s3.permissions import right

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3.client import S3Client

MOST_TAGS: Final = 10
"""S3's limit for one object."""
_TRIES: Final = 2


class Tagged(StrEnum):
    """How it went with one object."""

    DONE = "done"
    THERE = "there"
    """Nothing had to be written: the tag was there already, or it was off already."""
    TAKEN = "taken"
    """Its key has another value: that tag is somebody else's."""
    FULL = "full"
    """It has ten other tags."""
    GONE = "gone"
    """There is no such object or version any more."""
    UNKNOWN = "unknown"
    """It was asked for, and neither the answer nor another look tells."""


def add_tag(client: S3Client, bucket: str, entry: Entry, tag: Tag, *, versioned: bool) -> Tagged | Failure:
    """Put ``tag`` on an object, or on one version of it; its other tags stay.

    Raises:
        BucketPaused, Transient: no request can be made in this bucket. A denied one is a Failure.
    """

    def wanted(found: Mapping[str, str]) -> dict[str, str] | Tagged:
        if found.get(tag.key) == tag.value:
            return Tagged.THERE
        if tag.key in found:
            return Tagged.TAKEN
        return Tagged.FULL if len(found) >= MOST_TAGS else {**found, tag.key: tag.value}

    return _Tagging(client, bucket, entry, versioned=versioned).change(wanted)


def remove_tag(client: S3Client, bucket: str, entry: Entry, tag: Tag, *, versioned: bool) -> Tagged | Failure:
    """Take ``tag`` off an object, or off one version of it; with another value it is not ours, and stays.

    Raises:
        BucketPaused, Transient: no request can be made in this bucket. A denied one is a Failure.
    """

    def wanted(found: Mapping[str, str]) -> dict[str, str] | Tagged:
        if found.get(tag.key) != tag.value:
            return Tagged.THERE
        return {name: text for name, text in found.items() if name != tag.key}

    return _Tagging(client, bucket, entry, versioned=versioned).change(wanted)


def carries(client: S3Client, bucket: str, entry: Entry, tag: Tag) -> bool | Failure:
    """Whether an object carries ``tag``, or why that is not known. What is gone carries none.

    Raises:
        BucketPaused, Transient: no request can be made in this bucket.
    """
    found = _Tagging(client, bucket, entry, versioned=False).read()
    if found is Tagged.UNKNOWN:
        return Failure(key=entry.key, code="NoAnswer", message="the answer was lost on its way", retryable=True)
    if isinstance(found, Failure):
        return found
    return isinstance(found, dict) and found.get(tag.key) == tag.value


class _Tagging:
    """One object's tags: read, and put in place of what was read."""

    def __init__(self, client: S3Client, bucket: str, entry: Entry, *, versioned: bool) -> None:
        if versioned and not entry.version_id:
            raise ValueError(f"{entry.key!r} came without a version id: its tags would be another version's")
        self._client, self._bucket, self._entry = client, bucket, entry
        self._target = {"Bucket": bucket, "Key": entry.key}
        if versioned and entry.version_id:
            self._target["VersionId"] = entry.version_id
        self._version = entry.version_id if versioned else None

    def change(self, wanted: Callable[[Mapping[str, str]], dict[str, str] | Tagged]) -> Tagged | Failure:
        """Read, decide, write; where the answer to the write is lost, read again."""
        written = False
        for _ in range(_TRIES):
            found = self.read()
            if not isinstance(found, dict):
                # It was written to, and cannot be read any more: nobody knows.
                return Tagged.UNKNOWN if written and found is not Tagged.GONE else found
            tags = wanted(found)
            if isinstance(tags, Tagged):
                return Tagged.DONE if written and tags is Tagged.THERE else tags
            answer = self._write(tags)
            if answer is not Tagged.UNKNOWN:
                return answer
            written = True
        return Tagged.UNKNOWN

    def read(self) -> dict[str, str] | Tagged | Failure:
        """Its tags, or why they are not known."""
        if DOT_SEGMENT.search(self._entry.key):
            return dot_segment(self._entry.key, self._version)
        try:
            answer = self._client.get_object_tagging(**cast("Any", self._target))
        except S3_ERRORS as error:
            return self._refused(error, "GetObjectTagging")
        return {tag["Key"]: tag["Value"] for tag in answer.get("TagSet") or ()}

    def _write(self, tags: Mapping[str, str]) -> Tagged | Failure:
        try:
            if tags:
                pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
                self._client.put_object_tagging(**cast("Any", self._target), Tagging=cast("Any", {"TagSet": pairs}))
            else:
                self._client.delete_object_tagging(**cast("Any", self._target))
        except S3_ERRORS as error:
            return self._refused(error, "PutObjectTagging" if tags else "DeleteObjectTagging")
        return Tagged.DONE

    def _refused(self, error: Exception, operation: str) -> Tagged | Failure:
        if isinstance(error, ClientError) and Answer.of(error).code in GONE:
            return Tagged.GONE
        operation += "" if self._version is None else "Version"
        failure = failure_of(error, (self._entry.key, self._version))
        if failure is None:
            raise translate(error, Place(endpoint_name(self._client), self._bucket, right(operation))) from error
        if failure.retryable and not isinstance(error, ClientError):
            return Tagged.UNKNOWN
        return failure
