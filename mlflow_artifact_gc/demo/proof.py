"""The look into the bucket, by plain boto3: what proves something shares no code with what is proven."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from mlflow_artifact_gc.demo.cast import Run
from mlflow_artifact_gc.demo.servers import REGION, S3Server
from mlflow_artifact_gc.demo.telling import Teller
from mlflow_artifact_gc.errors import ArtifactGcError
from mlflow_artifact_gc.quantities import show_size

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class ProofFailed(ArtifactGcError):
    """The bucket does not hold what it should."""


class Seen(NamedTuple):
    """An object of the bucket, as a plain listing tells it."""

    key: str
    size: int
    etag: str


class Bucket:
    """The bucket of the demo."""

    def __init__(self, s3: S3Server, name: str) -> None:
        self._client, self._name = _client(s3), name

    def create(self) -> None:
        self._client.create_bucket(Bucket=self._name)

    def listed(self) -> list[Seen]:
        """Every object that is in it now."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name)
        return [
            Seen(found["Key"], found["Size"], found["ETag"]) for page in pages for found in page.get("Contents", ())
        ]


def _client(s3: S3Server) -> S3Client:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=REGION,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )


def of(run: Run, listing: Sequence[Seen]) -> list[Seen]:
    """The run's part of a listing."""
    return [seen for seen in listing if f"/{run.id}/" in seen.key]


def total(listing: Iterable[Seen]) -> str:
    """How much that is."""
    return show_size(sum(seen.size for seen in listing))


def prove(teller: Teller, runs: Sequence[Run], before: Sequence[Seen], after: Sequence[Seen]) -> None:
    """Show both listings side by side, a row for each run.

    Raises:
        ProofFailed: something is gone that should be there, or there that should be gone, or not what it was.
    """
    rows: list[tuple[str | Text, ...]] = []
    wrong = []
    for run in runs:
        was, is_now = of(run, before), of(run, after)
        right = bool(was) and (is_now == was if run.role.stays else not is_now)
        if not right:
            wrong.append(run.role.name)
        verdict, style = ("unchanged", "green") if run.role.stays else ("gone", "red")
        shown = Text(verdict if right else "WRONG", style=style)
        rows.append((run.role.name, run.role.ends, *_amounts(was, is_now), shown))
    others = [[seen for seen in listing if not any(of(run, [seen]) for run in runs)] for listing in (before, after)]
    if any(others):
        rows.append(("(gc's marker)", "", *_amounts(*others), ""))
    teller.table(("run", "in MLflow", "objects", "bytes", "proof"), rows, numbers=("objects", "bytes"))
    if wrong:
        raise ProofFailed(f"The bucket does not hold what it should of: {', '.join(wrong)}")
    kept = sum(run.role.stays for run in runs)
    freed = show_size(sum(seen.size for seen in before) - sum(seen.size for seen in after))
    teller.say(f"Proven: {kept} runs kept, {len(runs) - kept} gone, {freed} freed.", style="bold green")


def _amounts(was: Sequence[Seen], is_now: Sequence[Seen]) -> tuple[str, str]:
    return f"{len(was)} → {len(is_now)}", f"{total(was)} → {total(is_now)}"
