"""What time it is where objects get their dates: a second witness, beside the database's clock."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from mlflow_artifact_gc.s3.errors import S3_ERRORS, Place, endpoint_name, translate
from mlflow_artifact_gc.s3.permissions import right

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


def clock_ms(client: S3Client, bucket: str) -> int | None:
    """S3's clock, to the second, as its answers date themselves; None where they do not.

    Raises:
        BucketPaused, Transient: there is no answer.
    """
    try:
        answer = client.head_bucket(Bucket=bucket)
    except S3_ERRORS as error:
        raise translate(error, Place(endpoint_name(client), bucket, right("ListObjectsV2"))) from error
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return int(parsedate_to_datetime(headers.get("date", "")).timestamp() * 1000)
    except (TypeError, ValueError):
        return None
