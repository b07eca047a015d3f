"""SeaweedFS executes rules when a test says so: what the tests of ``tag`` and ``hide`` stand on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.lifecycle_runs import age, run_lifecycle
from tests.servers import s3_client

if TYPE_CHECKING:
    from tests.servers import S3Server

TAGGED = {"And": {"Prefix": "root/", "Tags": [{"Key": "gc", "Value": "expired"}]}}
KEYS = {"root/a": "gc=expired", "root/deep/er/b": "gc=expired&own=1", "root/none": "", "root/other": "gc=else"}
OUTSIDE = {"elsewhere/a": "gc=expired"}
LEFT = {"root/none", "root/other", "elsewhere/a"}


def put_rule(server: S3Server, bucket: str, **rule: Any) -> None:
    """Give the bucket one rule."""
    configuration: Any = {"Rules": [{"ID": "r", "Status": "Enabled", **rule}]}
    s3_client(server).put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=configuration)


def put_objects(server: S3Server, bucket: str) -> None:
    """One object at each key, with its tags."""
    for key, tags in {**KEYS, **OUTSIDE}.items():
        s3_client(server).put_object(Bucket=bucket, Key=key, Body=b"x", Tagging=tags)


def keys(server: S3Server, bucket: str) -> set[str]:
    """What lies there."""
    return {item["Key"] for item in s3_client(server).list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_a_rule_with_a_past_date_is_executed(seaweed: S3Server, bucket: str) -> None:
    """Tagged objects under the root go; those without the tag, with another value, or elsewhere stay."""
    yesterday = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    put_rule(seaweed, bucket, Filter=TAGGED, Expiration={"Date": yesterday})
    put_objects(seaweed, bucket)

    run_lifecycle(seaweed)

    assert keys(seaweed, bucket) == LEFT


def test_a_rule_in_days_waits_until_the_objects_are_old(seaweed: S3Server, bucket: str) -> None:
    """Days count from the object's date, which ``age`` moves back; only under the folder that was named."""
    put_rule(seaweed, bucket, Filter={"Prefix": ""}, Expiration={"Days": 2})
    put_objects(seaweed, bucket)
    run_lifecycle(seaweed)
    assert keys(seaweed, bucket) == {*KEYS, *OUTSIDE}

    age(seaweed, bucket, "root/", days=3)
    run_lifecycle(seaweed)

    assert keys(seaweed, bucket) == {*OUTSIDE}


def test_noncurrent_versions_and_uploads_grow_old_too(seaweed: S3Server, bucket: str) -> None:
    """The time since a version is noncurrent, and since an upload began, is moved back as well."""
    client = s3_client(seaweed)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_objects(seaweed, bucket)
    put_objects(seaweed, bucket)
    client.create_multipart_upload(Bucket=bucket, Key="root/upload")
    put_rule(
        seaweed,
        bucket,
        Filter={"Prefix": "root/"},
        NoncurrentVersionExpiration={"NoncurrentDays": 7},
        AbortIncompleteMultipartUpload={"DaysAfterInitiation": 7},
    )
    run_lifecycle(seaweed)
    assert len(client.list_object_versions(Bucket=bucket)["Versions"]) == 10

    age(seaweed, bucket, days=8)
    run_lifecycle(seaweed)

    versions = client.list_object_versions(Bucket=bucket)["Versions"]
    assert sorted(version["Key"] for version in versions) == sorted([*KEYS, *OUTSIDE, *OUTSIDE])
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)
