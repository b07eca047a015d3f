"""Deletes what it is given, and says of each entry what became of it: deleted, failed or unknown.

A batch that fails as a whole is cut in halves, because one key can fail a request: a DeleteObjects with a control
character in a key is answered 400 by SeaweedFS and Ceph RGW, 500 by moto. Nothing here bypasses governance retention.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, cast

from botocore.exceptions import ClientError, ParamValidationError

from mlflow_artifact_gc.model import Failure
from mlflow_artifact_gc.s3.entries import Entry, Kind
from mlflow_artifact_gc.s3.errors import (
    RETRYABLE_CODES,
    S3_ERRORS,
    Answer,
    Place,
    answer_lost,
    endpoint_name,
    one_line,
    translate,
)
from mlflow_artifact_gc.s3.parsing import ROWS, DeletedRow, ErrorRow
from mlflow_artifact_gc.s3.permissions import right

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mypy_boto3_s3.client import S3Client

    _Target = tuple[str, str | None]
    _Outcome = Failure | None

MOST_ENTRIES: Final = 1000
"""S3's limit for one DeleteObjects; moto takes more, SeaweedFS and Ceph RGW refuse."""

_NOT_FOR_XML = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]")
"""What XML 1.0 cannot hold, and the carriage return, which servers' parsers turn into a newline."""
DOT_SEGMENT = re.compile(r"(?:^|/)\.\.?(?:/|$)")
NOT_SENT: Final = "NotSent"
"""The code of a failure of a key that no request can name."""
GONE = frozenset({"NoSuchKey", "NoSuchVersion"})
_MOST_SERVER_ERRORS: Final = 32
"""How many requests of one call may end in a server error, each after botocore's retries, before halving stops."""
_NOT_FOUND: Final = 404


@dataclass(frozen=True, kw_only=True, slots=True)
class DeleteAnswer:
    """What became of each entry. ``unknown``: asked for, but no answer tells; only a listing does.

    ``requests`` counts calls, not botocore's own repetitions of them.
    """

    deleted: tuple[Entry, ...] = ()
    failed: tuple[tuple[Entry, Failure], ...] = ()
    unknown: tuple[Entry, ...] = ()
    requests: int = 0


def delete(client: S3Client, bucket: str, entries: Sequence[Entry], *, versioned: bool) -> DeleteAnswer:
    """Deletes up to 1,000 entries: for good with ``versioned`` (by version id), else by key alone.

    By key alone, a bucket that keeps versions hides the objects behind delete markers, and others lose them.
    An entry whose key S3 locks or holds is a failure of that entry. Where a bucket breaks away after some entries were
    answered, the rest is unknown, so that no answer is lost; the next call raises.

    Raises:
        BucketPaused: the first request was refused as a whole: a right, credentials, the bucket or the way to it.
        ValueError: too many entries, an upload, or entries that cannot be deleted in this way.
    """
    _check(entries, versioned=versioned)
    deletion = _Deletion(client, bucket, versioned=versioned)
    targets: dict[_Target, list[Entry]] = {}
    for entry in entries:
        targets.setdefault((entry.key, entry.version_id if versioned else None), []).append(entry)
    deletion.many([target for target in targets if not _NOT_FOR_XML.search(target[0])])
    for target in targets:
        if _NOT_FOR_XML.search(target[0]):
            deletion.one(target)
    return _answer(targets, deletion)


class Abort(StrEnum):
    """How an unfinished upload went."""

    ABORTED = "aborted"
    GONE = "gone"
    """It was not there any more: aborted before, or completed."""


def abort_upload(client: S3Client, bucket: str, entry: Entry) -> Abort | Failure:
    """Ends an unfinished upload.

    Raises:
        BucketPaused: no request can be made in this bucket. A denied one is a Failure.
    """
    place = Place(endpoint_name(client), bucket, right("AbortMultipartUpload"))
    if entry.kind is not Kind.UPLOAD or entry.version_id is None:
        raise ValueError(f"{entry.kind} {entry.key!r} is no upload")
    if DOT_SEGMENT.search(entry.key):
        return dot_segment(entry.key, entry.version_id)
    try:
        client.abort_multipart_upload(Bucket=bucket, Key=entry.key, UploadId=entry.version_id)
    except S3_ERRORS as error:
        if isinstance(error, ClientError) and Answer.of(error).code == "NoSuchUpload":
            return Abort.GONE
        failure = failure_of(error, (entry.key, entry.version_id))
        if failure is None:
            raise translate(error, place) from error
        return failure
    return Abort.ABORTED


def _check(entries: Sequence[Entry], *, versioned: bool) -> None:
    if len(entries) > MOST_ENTRIES:
        raise ValueError(f"{len(entries)} entries in one call; at most {MOST_ENTRIES} were expected")
    for entry in entries:
        if entry.kind is Kind.UPLOAD:
            raise ValueError(f"{entry.key!r} is an upload: abort it")
        if versioned and not entry.version_id:
            raise ValueError(f"{entry.key!r} came without a version id: without one, a delete only hides it")
        if not versioned and entry.kind is not Kind.CURRENT:
            raise ValueError(f"{entry.kind} {entry.key!r} can be deleted by its version id alone")


def _answer(targets: dict[_Target, list[Entry]], deletion: _Deletion) -> DeleteAnswer:
    deleted: list[Entry] = []
    failed: list[tuple[Entry, Failure]] = []
    unknown: list[Entry] = []
    for target, entries in targets.items():
        if target not in deletion.outcomes:
            unknown += entries
        elif (failure := deletion.outcomes[target]) is None:
            deleted += entries
        else:
            failed += [(entry, failure) for entry in entries]
    return DeleteAnswer(
        deleted=tuple(deleted), failed=tuple(failed), unknown=tuple(unknown), requests=deletion.requests
    )


class _Deletion:
    """One call of ``delete``: the outcomes known so far. A target without an outcome is unknown."""

    def __init__(self, client: S3Client, bucket: str, *, versioned: bool) -> None:
        self.outcomes: dict[_Target, _Outcome] = {}
        self.requests = 0
        self._client = client
        self._versioned = versioned
        self._broken_off = False
        self._server_errors = 0
        operation = "DeleteObjectVersion" if versioned else "DeleteObject"
        self._place = Place(endpoint_name(client), bucket, right(operation))

    def many(self, targets: list[_Target]) -> None:
        """One DeleteObjects, and halves of it where it fails as a whole."""
        if self._broken_off or not targets:
            return
        self.requests += 1
        objects = [{"Key": key} if version is None else {"Key": key, "VersionId": version} for key, version in targets]
        try:
            response = self._client.delete_objects(
                Bucket=self._place.bucket, Delete=cast("Any", {"Objects": objects, "Quiet": False})
            )
        except S3_ERRORS as error:
            self._refused(targets, error)
        else:
            self.outcomes.update(match(targets, *cast("dict[str, Any]", response)[ROWS]))

    def one(self, target: _Target) -> None:
        """One DeleteObject."""
        if self._broken_off:
            return
        key, version = target
        if DOT_SEGMENT.search(key):
            self.outcomes[target] = dot_segment(key, version)
            return
        self.requests += 1
        try:
            if version is None:
                self._client.delete_object(Bucket=self._place.bucket, Key=key)
            else:
                self._client.delete_object(Bucket=self._place.bucket, Key=key, VersionId=version)
        except S3_ERRORS as error:
            self._refused_one(target, error)
        else:
            self.outcomes[target] = None

    def _refused(self, targets: list[_Target], error: Exception) -> None:
        if not isinstance(error, ClientError):
            if not answer_lost(error):
                self._break_off(error)
            return
        answer = Answer.of(error)
        if answer.pauses or answer.status == _NOT_FOUND:
            self._break_off(error)
        elif answer.not_implemented:
            for target in targets:
                self.one(target)
        elif answer.throttled or (answer.retryable and self._server_errors >= _MOST_SERVER_ERRORS):
            self.outcomes.update({target: _failure(target, answer) for target in targets})
        else:
            self._server_errors += answer.retryable
            self._halve(targets)

    def _halve(self, targets: list[_Target]) -> None:
        if len(targets) == 1:
            self.one(targets[0])
            return
        middle = len(targets) // 2
        self.many(targets[:middle])
        self.many(targets[middle:])

    def _refused_one(self, target: _Target, error: Exception) -> None:
        if isinstance(error, ClientError) and Answer.of(error).code in GONE:
            self.outcomes[target] = None
        elif answer_lost(error) and not isinstance(error, ClientError):
            return
        elif (failure := failure_of(error, target)) is not None:
            self.outcomes[target] = failure
        else:
            self._break_off(error)

    def _break_off(self, error: Exception) -> None:
        """Raises if nothing was answered yet; else what was answered is kept, and the rest stays unknown."""
        if not self.outcomes:
            raise translate(error, self._place) from error
        self._broken_off = True


def match(
    targets: Sequence[_Target], deleted: Sequence[DeletedRow], errors: Sequence[ErrorRow]
) -> dict[_Target, _Outcome]:
    """The outcome of each target that a DeleteObjects answer speaks of; None is deleted.

    Rows are matched by key and version. Where a row comes without a version (Ceph RGW: an empty one), it can mean only
    the one target of its key that no other row names; with two of them, neither is settled. An error outweighs.
    """
    rows: list[tuple[DeletedRow | ErrorRow, _Outcome]] = [(row, _row_failure(row)) for row in errors]
    rows += [(row, None) for row in deleted]
    asked = set(targets)
    outcomes: dict[_Target, _Outcome] = {}
    loose: list[tuple[DeletedRow | ErrorRow, _Outcome]] = []
    for row, outcome in rows:
        # An answer to a delete by key alone may name the version of the delete marker that it made.
        target = (row.key, None) if (row.key, None) in asked else (row.key, row.version_id)
        if target in asked:
            outcomes.setdefault(target, outcome)
        elif row.version_id is None:
            loose.append((row, outcome))
    if loose:
        by_key: dict[str, list[_Target]] = {}
        for target in targets:
            if target not in outcomes:
                by_key.setdefault(target[0], []).append(target)
        for row, outcome in loose:
            candidates = by_key.get(row.key, [])
            if len(candidates) == 1:
                outcomes.setdefault(candidates[0], outcome)
    return outcomes


def _row_failure(row: ErrorRow) -> _Outcome:
    if row.code in GONE:
        return None
    return Failure(
        key=row.key,
        code=row.code or "Unknown",
        message=one_line(row.message),
        version_id=row.version_id,
        retryable=row.code in RETRYABLE_CODES,
    )


def failure_of(error: Exception, target: _Target) -> Failure | None:
    """The failure of a request about one key, or None where it is not about the key but about the whole bucket."""
    key, version = target
    if isinstance(error, ClientError):
        answer = Answer.of(error)
        if answer.denied or not (answer.pauses or answer.code == str(_NOT_FOUND)):
            return _failure(target, answer)
        return None
    if isinstance(error, ParamValidationError):
        return Failure(key=key, code=NOT_SENT, message="boto3 cannot send this key", version_id=version)
    if answer_lost(error):
        return Failure(key=key, code=type(error).__name__, version_id=version, retryable=True)
    return None


def _failure(target: _Target, answer: Answer) -> Failure:
    key, version = target
    return Failure(key=key, code=answer.code, message=answer.message, version_id=version, retryable=answer.retryable)


def dot_segment(key: str, version: str | None) -> Failure:
    """The failure of a key that cannot be named in a URL."""
    # A proxy, or urllib3 on the way to one, folds "a/../b" in a URL's path to "b": another key. A batch names its
    # keys in the body, where nothing folds them.
    message = "a key with a '.' or '..' segment is not put into a URL; remove this object by hand"
    return Failure(key=key, code=NOT_SENT, message=message, version_id=version)
