"""The marker object of a root: which tracking database may sweep there, and since when."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError, ParamValidationError

from mlflow_artifact_gc.errors import RootRefused
from mlflow_artifact_gc.s3.errors import S3_ERRORS, Answer, Place, endpoint_name, translate
from mlflow_artifact_gc.s3.permissions import right

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from mlflow_artifact_gc.locations import Location

MARKER_NAME: Final = "_mlflow-artifact-gc.json"
_FORMAT: Final = 1
_LARGEST_BYTES: Final = 65536
_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 412
_SENTENCE: Final = (
    "This object says which MLflow tracking database mlflow-artifact-gc may sweep this folder for. "
    "Without it, or with another database's, nothing here is deleted. Please leave it in place."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """The owner of a root: a random id, how often the ownership was renewed, and the database server itself."""

    database_id: str
    epoch: int
    fingerprint: str


def read(client: S3Client, root: Location) -> Marker | None:
    """The marker of ``root``, or None where S3 says that there is none.

    Raises:
        RootRefused: there is an object of that name that this version does not understand.
        BucketPaused, Transient: it could not be read, which does not mean that there is none.
    """
    place = Place(endpoint_name(client), root.bucket, right("GetObject"))
    try:
        body = client.get_object(Bucket=root.bucket, Key=_key(root))["Body"]
        try:
            text = body.read(_LARGEST_BYTES + 1)
        finally:
            body.close()
    except S3_ERRORS as error:
        if isinstance(error, ClientError) and _says_no_such_key(client, root, Answer.of(error)):
            return None
        raise translate(error, place) from error
    return _parse(text, root)


def create(client: S3Client, root: Location, marker: Marker) -> bool:
    """Puts ``marker`` where none is; False where one is by now, also if it is this one.

    S3 decides it, by ``If-None-Match`` (AWS since August 2024, SeaweedFS, Ceph RGW, moto). Where the server or boto3
    does not know it, the marker is read right before.

    Raises:
        RootRefused, BucketPaused, Transient: as ``read`` and ``write`` do.
    """
    try:
        client.put_object(
            Bucket=root.bucket, Key=_key(root), Body=_body(marker), ContentType="application/json", IfNoneMatch="*"
        )
    except ParamValidationError:
        return _create_unconditionally(client, root, marker)
    except S3_ERRORS as error:
        answer = Answer.of(error) if isinstance(error, ClientError) else None
        if answer is not None and answer.status == _PRECONDITION_FAILED:
            return False
        if answer is not None and answer.not_implemented:
            return _create_unconditionally(client, root, marker)
        raise translate(error, Place(endpoint_name(client), root.bucket, right("PutObject"))) from error
    return True


def _create_unconditionally(client: S3Client, root: Location, marker: Marker) -> bool:
    if read(client, root) is not None:
        return False
    write(client, root, marker)
    return True


def write(client: S3Client, root: Location, marker: Marker) -> None:
    """Puts ``marker`` in the place of what is there.

    Raises:
        BucketPaused, Transient: it may or may not have been written; read it.
    """
    try:
        client.put_object(Bucket=root.bucket, Key=_key(root), Body=_body(marker), ContentType="application/json")
    except S3_ERRORS as error:
        raise translate(error, Place(endpoint_name(client), root.bucket, right("PutObject"))) from error


def _body(marker: Marker) -> bytes:
    fields = {
        "about": _SENTENCE,
        "format": _FORMAT,
        "database_id": marker.database_id,
        "epoch": marker.epoch,
        "fingerprint": marker.fingerprint,
    }
    return (json.dumps(fields, indent=2) + "\n").encode()


def _key(root: Location) -> str:
    return root.prefix + MARKER_NAME


def _says_no_such_key(client: S3Client, root: Location, answer: Answer) -> bool:
    """A 404 without a code may mean the bucket as well as the key: then the bucket is asked for."""
    if answer.code == "NoSuchKey":
        return True
    if answer.status != _NOT_FOUND or answer.code != str(_NOT_FOUND):
        return False
    try:
        client.head_bucket(Bucket=root.bucket)
    except S3_ERRORS as error:
        raise translate(error, Place(endpoint_name(client), root.bucket, right("ListObjectsV2"))) from error
    return True


def _parse(text: bytes, root: Location) -> Marker:
    try:
        fields: Any = json.loads(text)
        version, database_id = fields["format"], fields["database_id"]
        epoch, fingerprint = fields["epoch"], fields["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_ours(root) from error
    named = isinstance(database_id, str) and bool(database_id) and isinstance(fingerprint, str)
    if version != _FORMAT or not named or type(epoch) is not int:
        raise _not_ours(root)
    return Marker(database_id=database_id, epoch=epoch, fingerprint=fingerprint)


def _not_ours(root: Location) -> RootRefused:
    return RootRefused(
        f"{root.uri}{MARKER_NAME} is not a marker that this version of mlflow-artifact-gc wrote (format {_FORMAT} was "
        "expected), so nothing under it is swept; look at the object, and upgrade or, if it is nobody's, remove it."
    )
