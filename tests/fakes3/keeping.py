"""What an S3 keeps, and what each operation does to it, as AWS documents it. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MOST_PER_PAGE = 1000
MOST_KEYS_TO_DELETE = 1000
MOST_TAGS = 10
LONGEST_KEY = 1024
SMALLEST_PART = 5 * 1024 * 1024
NULL = "null"
_TAG_TEXT = re.compile(r"^[\w\s+\-=.:/@]*$")
_Row = TypeVar("_Row", "Version", "Upload")


class Refused(Exception):
    """An error answer: S3's code, its status, and the headers that come with it."""

    def __init__(self, status: int, code: str, message: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


@dataclass(kw_only=True, eq=False)
class Version:
    """A version of an object, or a delete marker. ``noncurrent_ms``: since when another one is the latest."""

    key: str
    id: str
    modified_ms: int
    body: bytes = b""
    etag: str = ""
    is_marker: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    noncurrent_ms: int | None = None


@dataclass(kw_only=True, eq=False)
class Upload:
    """A multipart upload that has not ended."""

    key: str
    id: str
    initiated_ms: int
    tags: dict[str, str]
    headers: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a listing. ``after``: its last row or folder; with ``after_id`` its last version or upload."""

    prefix: str = ""
    delimiter: str = ""
    after: str = ""
    after_id: str = ""
    most: int = MOST_PER_PAGE


@dataclass(frozen=True, kw_only=True)
class Page(Generic[_Row]):
    """An answer to a listing. ``last`` is the row or folder that it ends with; None where it is empty."""

    rows: list[_Row]
    folders: list[str]
    truncated: bool
    last: _Row | str | None


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """What a delete did: ``marker_id`` is that of the delete marker that it made or removed."""

    version_id: str | None = None
    marker_id: str | None = None


@dataclass(kw_only=True)
class Bucket:
    """A bucket. ``versioning`` is "", "Enabled" or "Suspended"; of each key the newest version comes first."""

    name: str
    versioning: str = ""
    keys: dict[str, list[Version]] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    lifecycle: list[dict[str, object]] = field(default_factory=list)
    lifecycle_xml: bytes = b""


class Kept:
    """All buckets, and the clock by which they date things. Not for several threads at a time.

    ``removed``: called with what a delete takes away for good; not with what is written over.
    """

    def __init__(self) -> None:
        self.removed: Callable[[Bucket, Version | Upload], None] = lambda _bucket, _gone: None
        self.buckets: dict[str, Bucket] = {}
        self.clock_ms: Callable[[], int] = lambda: int(time.time() * 1000)
        self._numbers = itertools.count(1)

    def bucket(self, name: str) -> Bucket:
        if name not in self.buckets:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist")
        return self.buckets[name]

    # Objects

    def put(
        self,
        bucket: Bucket,
        key: str,
        body: bytes,
        *,
        tags: Mapping[str, str],
        headers: Mapping[str, str],
        only_new: bool = False,
        etag: str = "",
    ) -> Version:
        """A new version, which is the latest. ``only_new``: refused where there is an object."""
        _check_key(key)
        if only_new and (found := bucket.keys.get(key)) and not found[0].is_marker:
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        made = Version(
            key=key,
            id=self._new_id() if bucket.versioning == "Enabled" else NULL,
            modified_ms=self.clock_ms(),
            body=body,
            etag=etag or hashlib.md5(body, usedforsecurity=False).hexdigest(),
            tags=dict(tags),
            headers=dict(headers),
        )
        self._make_latest(bucket, made)
        return made

    def get(self, bucket: Bucket, key: str, version_id: str | None = None) -> Version:
        """The latest version, or a certain one; never a delete marker."""
        versions = bucket.keys.get(key, [])
        if version_id is None:
            if not versions:
                raise Refused(404, "NoSuchKey", "The specified key does not exist.")
            if versions[0].is_marker:
                told = {"x-amz-delete-marker": "true", "x-amz-version-id": versions[0].id}
                raise Refused(404, "NoSuchKey", "The specified key does not exist.", told)
            return versions[0]
        found = next((one for one in versions if one.id == version_id), None)
        if found is None:
            raise Refused(404, "NoSuchVersion", "The specified version does not exist.")
        if found.is_marker:
            raise Refused(405, "MethodNotAllowed", "The method is not allowed here.", {"x-amz-delete-marker": "true"})
        return found

    def delete(self, bucket: Bucket, key: str, version_id: str | None = None) -> Deleted:
        """Removes a version for good, or hides the object; what is not there is deleted too."""
        _check_key(key)
        if version_id is not None or not bucket.versioning:
            gone = self._remove(bucket, key, version_id or NULL)
            if gone is not None:
                self.removed(bucket, gone)
            marker_id = gone.id if gone is not None and gone.is_marker else None
            return Deleted(version_id=version_id, marker_id=marker_id)
        marker = Version(
            key=key,
            id=self._new_id() if bucket.versioning == "Enabled" else NULL,
            modified_ms=self.clock_ms(),
            is_marker=True,
        )
        self._make_latest(bucket, marker)
        return Deleted(marker_id=marker.id)

    def _make_latest(self, bucket: Bucket, made: Version) -> None:
        if made.id == NULL:
            self._remove(bucket, made.key, NULL)
        versions = bucket.keys.setdefault(made.key, [])
        if versions:
            versions[0].noncurrent_ms = made.modified_ms
        versions.insert(0, made)

    @staticmethod
    def _remove(bucket: Bucket, key: str, version_id: str) -> Version | None:
        versions = bucket.keys.get(key, [])
        found = next((one for one in versions if one.id == version_id), None)
        if found is None:
            return None
        versions.remove(found)
        if versions:
            versions[0].noncurrent_ms = None
        else:
            del bucket.keys[key]
        return found

    def set_tags(self, bucket: Bucket, key: str, version_id: str | None, tags: Sequence[tuple[str, str]]) -> Version:
        """The whole set of tags of a version; changes neither its date nor its id."""
        found = self.get(bucket, key, version_id)
        found.tags = checked_tags(tags)
        return found

    # Uploads

    def begin_upload(self, bucket: Bucket, key: str, tags: Mapping[str, str], headers: Mapping[str, str]) -> Upload:
        _check_key(key)
        made = Upload(key=key, id=self._new_id(), initiated_ms=self.clock_ms(), tags=dict(tags), headers=dict(headers))
        bucket.uploads[made.id] = made
        return made

    def upload(self, bucket: Bucket, key: str, upload_id: str) -> Upload:
        found = bucket.uploads.get(upload_id)
        if found is None or found.key != key:
            raise Refused(404, "NoSuchUpload", "The specified upload does not exist.")
        return found

    def abort_upload(self, bucket: Bucket, upload: Upload) -> None:
        """Its parts are gone."""
        del bucket.uploads[upload.id]
        self.removed(bucket, upload)

    def complete_upload(self, bucket: Bucket, upload: Upload, chosen: Sequence[tuple[int, str]]) -> Version:
        """The object that the parts make; those that are not chosen are gone."""
        if not chosen:
            raise Refused(400, "MalformedXML", "You must specify at least one part")
        numbers = [number for number, _ in chosen]
        if numbers != sorted(set(numbers)):
            raise Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        for number, etag in chosen:
            if number not in upload.parts or etag_of(upload.parts[number]) != etag:
                raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
        if any(len(upload.parts[number]) < SMALLEST_PART for number in numbers[:-1]):
            raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        bodies = [upload.parts[number] for number in numbers]
        together = hashlib.md5(b"".join(_md5(body) for body in bodies), usedforsecurity=False).hexdigest()
        del bucket.uploads[upload.id]
        etag = f"{together}-{len(bodies)}"
        return self.put(bucket, upload.key, b"".join(bodies), tags=upload.tags, headers=upload.headers, etag=etag)

    # Listings

    @staticmethod
    def list_current(bucket: Bucket, asked: Asked) -> Page[Version]:
        latest = (versions[0] for key, versions in _sorted(bucket.keys) if key.startswith(asked.prefix))
        return _page((one for one in latest if not one.is_marker), asked, lambda one: _is_after(one.key, asked.after))

    @staticmethod
    def list_versions(bucket: Bucket, asked: Asked) -> Page[Version]:
        """Newest first of each key. After a version's id: the older ones of its key come first."""
        rows: list[Version] = []
        for key, versions in _sorted(bucket.keys):
            if not key.startswith(asked.prefix):
                continue
            if key == asked.after and asked.after_id:
                ids = [one.id for one in versions]
                # A version that has been deleted since: what was older than it is not known, and all are shown.
                rows += versions[ids.index(asked.after_id) + 1 :] if asked.after_id in ids else versions
            elif _is_after(key, asked.after):
                rows += versions
        return _page(rows, asked, lambda _one: True)

    @staticmethod
    def list_uploads(bucket: Bucket, asked: Asked) -> Page[Upload]:
        """By key, then by age."""
        found = [one for one in bucket.uploads.values() if one.key.startswith(asked.prefix)]
        found.sort(key=lambda one: (one.key.encode(), one.id))

        def is_left(one: Upload) -> bool:
            return _is_after(one.key, asked.after) or (one.key == asked.after and one.id > asked.after_id != "")

        return _page(found, asked, is_left)

    def _new_id(self) -> str:
        # In the order of their making, as uploads of one key are listed by age.
        return f"{next(self._numbers):08x}.{self.clock_ms():x}"


def etag_of(body: bytes) -> str:
    """As S3 makes it of an object that came in one piece."""
    return _md5(body).hex()


def _md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


def checked_tags(tags: Sequence[tuple[str, str]]) -> dict[str, str]:
    """A set of tags, as S3 takes it."""
    if len(tags) > MOST_TAGS:
        raise Refused(400, "BadRequest", "Object tags cannot be greater than 10")
    if len({name for name, _ in tags}) != len(tags):
        raise Refused(400, "InvalidTag", "Cannot provide multiple Tags with the same key")
    for name, value in tags:
        if not 1 <= len(name) <= 128 or not _TAG_TEXT.match(name) or name.startswith("aws:"):
            raise Refused(400, "InvalidTag", "The TagKey you have provided is invalid")
        if len(value) > 256 or not _TAG_TEXT.match(value):
            raise Refused(400, "InvalidTag", "The TagValue you have provided is invalid")
    return dict(tags)


def _check_key(key: str) -> None:
    if len(key.encode()) > LONGEST_KEY:
        raise Refused(400, "KeyTooLongError", "Your key is too long")


def _sorted(keys: Mapping[str, list[Version]]) -> list[tuple[str, list[Version]]]:
    return sorted(keys.items(), key=lambda item: item[0].encode())


def _is_after(key: str, marker: str) -> bool:
    return key.encode() > marker.encode()


def _page(rows: Iterable[_Row], asked: Asked, is_left: Callable[[_Row], bool]) -> Page[_Row]:
    chosen: list[_Row] = []
    folders: list[str] = []
    last: _Row | str | None = None
    for row in rows:
        folder = _folder(row.key, asked)
        if folder and (folder == asked.after or folder in folders[-1:]):
            continue  # Told already: by this page, or by the one before.
        if not is_left(row):
            continue
        if len(chosen) + len(folders) == asked.most:
            return Page(rows=chosen, folders=folders, truncated=asked.most > 0, last=last)
        if folder:
            folders.append(folder)
            last = folder
        else:
            chosen.append(row)
            last = row
    return Page(rows=chosen, folders=folders, truncated=False, last=last)


def _folder(key: str, asked: Asked) -> str:
    if not asked.delimiter:
        return ""
    end = key.find(asked.delimiter, len(asked.prefix))
    return "" if end < 0 else key[: end + len(asked.delimiter)]
