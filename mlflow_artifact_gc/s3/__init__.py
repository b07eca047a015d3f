"""S3: listing, deleting, lifecycle rules, and the marker objects of roots. The only room with boto3.

It lists and deletes what it is told; what may be deleted is decided elsewhere. Every answer is one of three: what was
done, what was refused (per key where S3 says so), or that it is unknown. Nothing unreadable is taken for emptiness.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_artifact_gc.s3.client import connect, endpoint_name
from mlflow_artifact_gc.s3.clock import clock_ms
from mlflow_artifact_gc.s3.deleting import MOST_ENTRIES, NOT_SENT, Abort, DeleteAnswer, abort_upload, delete
from mlflow_artifact_gc.s3.errors import BucketPaused, ListingIncomplete, Transient
from mlflow_artifact_gc.s3.lifecycle import Configuration
from mlflow_artifact_gc.s3.listing import (
    Entry,
    Folder,
    Kind,
    Versioning,
    bucket_versioning,
    current,
    level,
    uploads,
    versions,
)
from mlflow_artifact_gc.s3.marker import MARKER_NAME, Marker
from mlflow_artifact_gc.s3.permissions import PERMISSIONS, Permission
from mlflow_artifact_gc.s3.tagging import MOST_TAGS, Tagged, add_tag, carries, remove_tag

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client as S3Client

__all__ = [
    "MARKER_NAME",
    "MOST_ENTRIES",
    "MOST_TAGS",
    "NOT_SENT",
    "PERMISSIONS",
    "Abort",
    "BucketPaused",
    "Configuration",
    "DeleteAnswer",
    "Entry",
    "Folder",
    "Kind",
    "ListingIncomplete",
    "Marker",
    "Permission",
    "Tagged",
    "Transient",
    "Versioning",
    "abort_upload",
    "add_tag",
    "bucket_versioning",
    "carries",
    "clock_ms",
    "connect",
    "current",
    "delete",
    "endpoint_name",
    "level",
    "remove_tag",
    "uploads",
    "versions",
]
