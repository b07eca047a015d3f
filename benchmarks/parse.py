"""Keys per CPU second of a listing: botocore's own parsing, and ours. No network: pages are answered in the process.

Run it with ``python benchmarks/parse.py [pages]``.
"""

from __future__ import annotations

import os
import sys
import time
from io import BytesIO
from typing import TYPE_CHECKING, Any

import boto3
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config

from mlflow_artifact_gc.s3 import connect, current, versions

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3.client import S3Client

KEYS_PER_PAGE = 1000

_VERSION = (
    "<Version><Key>{key}</Key><VersionId>3HL4kqtJvjVBH40Nrjfkd{n:011}</VersionId><IsLatest>true</IsLatest>"
    "<LastModified>2026-05-01T10:11:{second:02}.000Z</LastModified><ETag>&quot;9dd4e461268c8034f5c8564e155c67a6&quot;"
    "</ETag><Size>{n}</Size><StorageClass>STANDARD</StorageClass><Owner><ID>75aa57f09aa0c8caeab4f8c24e99d10f</ID>"
    "<DisplayName>owner</DisplayName></Owner></Version>"
)
_CONTENTS = (
    "<Contents><Key>{key}</Key><LastModified>2026-05-01T10:11:{second:02}.000Z</LastModified>"
    "<ETag>&quot;9dd4e461268c8034f5c8564e155c67a6&quot;</ETag><Size>{n}</Size><StorageClass>STANDARD</StorageClass>"
    "</Contents>"
)
_NAMES = {
    "plain keys": "1/{run:032x}/artifacts/model/f{n}.bin",
    "encoded keys": "1/{run:032x}/artifacts/%C3%BC%2Bber/confusion%28{n}%29.png",
}


class Body(BytesIO):
    """What botocore reads an answer from."""

    def stream(self) -> Any:
        yield self.read()


def page(root: str, row: str, name: str) -> bytes:
    """A full page, the only one of its listing."""
    rows = "".join(
        row.format(key=name.format(run=n // 20, n=n), n=n, second=n % 60) for n in range(1, KEYS_PER_PAGE + 1)
    )
    return (
        f'<?xml version="1.0"?>\n<{root} xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false'
        f"</IsTruncated><EncodingType>url</EncodingType>{rows}</{root}>"
    ).encode()


def answer_with(client: S3Client, pages: dict[str, bytes]) -> None:
    """Has each request of ``client`` answered with the page of its operation."""

    def answer(request: Any, event_name: str, **_context: object) -> Any:
        return AWSResponse(request.url, 200, HTTPHeaders(), Body(pages[event_name.rpartition(".")[2]]))

    client.meta.events.register("before-send.s3", answer)


def keys_per_cpu_second(list_page: Callable[[], int], pages: int) -> float:
    """The rate, over ``pages`` calls after one to warm up."""
    list_page()
    started = time.process_time()
    keys = sum(list_page() for _ in range(pages))
    return keys / (time.process_time() - started)


def main() -> None:
    """Prints a line for each listing and way of naming keys."""
    pages = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    os.environ.update(AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x", AWS_DEFAULT_REGION="us-east-1")  # noqa: S106
    theirs = boto3.client("s3", endpoint_url="http://127.0.0.1:9", config=Config(signature_version="s3v4"))
    ours = connect({"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"}, threads=1)
    answers: dict[str, bytes] = {}
    answer_with(theirs, answers)
    answer_with(ours, answers)
    listings: dict[str, tuple[Callable[[], int], Callable[[], int]]] = {
        "ListObjectVersions": (
            lambda: len(theirs.list_object_versions(Bucket="bucket")["Versions"]),
            lambda: sum(1 for _ in versions(ours, "bucket", "1/")),
        ),
        "ListObjectsV2": (
            lambda: len(theirs.list_objects_v2(Bucket="bucket")["Contents"]),
            lambda: sum(1 for _ in current(ours, "bucket", "1/")),
        ),
    }
    for title, name in _NAMES.items():
        answers["ListObjectVersions"] = page("ListVersionsResult", _VERSION, name)
        answers["ListObjectsV2"] = page("ListBucketResult", _CONTENTS, name)
        for operation, (list_theirs, list_ours) in listings.items():
            slow, fast = keys_per_cpu_second(list_theirs, max(pages // 5, 1)), keys_per_cpu_second(list_ours, pages)
            print(f"{operation:18} {title:12}  botocore {slow:7,.0f}  ours {fast:7,.0f} keys per CPU second")


if __name__ == "__main__":
    main()
