"""The rights that this package needs: for the documentation, for the doctor, and for the messages that name one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Permission:
    """An S3 operation, the IAM action that it takes, and what for. ``on_objects``: its resource is ``bucket/*``."""

    operation: str
    action: str
    why: str
    on_objects: bool = False


PERMISSIONS: Final = (
    Permission("GetBucketVersioning", "s3:GetBucketVersioning", "to know whether a delete frees anything"),
    Permission("ListObjectVersions", "s3:ListBucketVersions", "to see every version and delete marker of a location"),
    Permission("ListObjectsV2", "s3:ListBucket", "to see the objects of a location"),
    Permission(
        "ListMultipartUploads", "s3:ListBucketMultipartUploads", "to see unfinished uploads, which are paid for"
    ),
    Permission("DeleteObject", "s3:DeleteObject", "to delete objects, or to hide them", on_objects=True),
    Permission(
        "DeleteObjectVersion", "s3:DeleteObjectVersion", "to delete versions and delete markers", on_objects=True
    ),
    Permission("AbortMultipartUpload", "s3:AbortMultipartUpload", "to end unfinished uploads", on_objects=True),
    Permission("GetObject", "s3:GetObject", "to read the marker object of a root", on_objects=True),
    Permission("PutObject", "s3:PutObject", "to write the marker object of a root", on_objects=True),
    Permission(
        "GetBucketLifecycleConfiguration",
        "s3:GetLifecycleConfiguration",
        "to know whether a bucket has the rules that tag and hide rely on",
    ),
    Permission(
        "PutBucketLifecycleConfiguration",
        "s3:PutLifecycleConfiguration",
        "to write those rules; only where lifecycle apply is used",
    ),
    Permission(
        "GetObjectTagging", "s3:GetObjectTagging", "to keep an object's own tags when it is tagged", on_objects=True
    ),
    Permission("PutObjectTagging", "s3:PutObjectTagging", "to tag an object for expiry", on_objects=True),
    Permission("DeleteObjectTagging", "s3:DeleteObjectTagging", "to take its only tag off again", on_objects=True),
    Permission("GetObjectTaggingVersion", "s3:GetObjectVersionTagging", "the same of a version", on_objects=True),
    Permission("PutObjectTaggingVersion", "s3:PutObjectVersionTagging", "the same of a version", on_objects=True),
    Permission("DeleteObjectTaggingVersion", "s3:DeleteObjectVersionTagging", "the same of a version", on_objects=True),
)
"""DeleteObjects takes the rights of DeleteObject, or of DeleteObjectVersion where it names versions."""


def right(operation: str) -> str:
    """The IAM action of an operation of the table."""
    return next(permission.action for permission in PERMISSIONS if permission.operation == operation)
