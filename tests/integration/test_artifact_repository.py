"""MLflow's S3 artifact repository and ours side by side: every public method, on two servers, with the same answers."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from mlflow_artifact_gc import hook
from mlflow_artifact_gc.hook import stock_gc
from tests.abilities import has, needs
from tests.servers import S3Server, make_bucket, s3_client

FILES = {"a.txt": b"a", "folder/b.bin": b"b" * 100, "folder/deep/c d+%20é.json": b"{}", "folder2/e": b"e"}
Repository = Any


@pytest.fixture(autouse=True)
def _no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a client that only knows a server."""
    monkeypatch.setattr(stock_gc, "_built", {})


@pytest.fixture(params=["seaweed", "moto"])
def s3_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Each of the two servers, to which the environment points."""
    server: S3Server = request.getfixturevalue({"seaweed": "seaweed", "moto": "moto_s3"}[request.param])
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def both(s3_server: S3Server, request: pytest.FixtureRequest) -> tuple[Repository, Repository]:
    """MLflow's and ours, each on a bucket of its own."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    theirs = S3ArtifactRepository(f"s3://{make_bucket(s3_server)}/root/1/run/artifacts")
    ours = get_artifact_repository(f"s3://{make_bucket(s3_server)}/root/1/run/artifacts")
    assert isinstance(ours, S3ArtifactRepository)
    assert type(ours) is not S3ArtifactRepository, "MLflow's registry does not have our class"
    return theirs, ours


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Local files."""
    for name, content in FILES.items():
        path = tmp_path / "local" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "local"


def stored(repository: Repository) -> dict[str, tuple[bytes, str]]:
    """Every object of the repository's bucket: content and type."""
    client = repository._get_s3_client()
    bucket, _ = repository.parse_s3_compliant_uri(repository.artifact_uri)
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket).get("Contents", ())]
    found = {key: client.get_object(Bucket=bucket, Key=key) for key in keys}
    return {key: (one["Body"].read(), one["ContentType"]) for key, one in found.items()}


def shown(repository: Repository, path: str | None = None) -> list[tuple[str, bool, int | None]]:
    """What a listing says."""
    return [(one.path, one.is_dir, one.file_size) for one in repository.list_artifacts(path)]


def same(pair: tuple[Repository, Repository], ask: Callable[[Repository], Any]) -> Any:
    """What both answer, or the kind of error that both raise."""

    def answer(repository: Repository) -> Any:
        try:
            return ask(repository)
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises
            return type(error), getattr(error, "error_code", None)

    theirs, ours = map(answer, pair)
    assert theirs == ours
    return ours


def test_uploads_listings_and_downloads(
    both: tuple[Repository, Repository], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files go in, are listed and come out alike, with extra arguments too."""
    same(both, lambda one: one.log_artifacts(str(folder)))
    same(both, lambda one: one.log_artifact(str(folder / "a.txt"), "again/here"))
    monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", '{"ContentType": "text/special"}')
    same(both, lambda one: one.log_artifact(str(folder / "a.txt"), "special"))
    assert len(same(both, stored)) == len(FILES) + 2
    for path in (None, "folder", "folder/deep", "a.txt", "absent", "folder/"):
        same(both, partial(shown, path=path))
    for number, path in enumerate(("", "folder", "a.txt", "folder/deep/c d+%20é.json", "absent")):
        for which, one in zip(("theirs", "ours"), both, strict=True):
            (tmp_path / f"{which}{number}").mkdir()
            one.name = which

        def download(one: Repository, path: str = path, number: int = number) -> dict[str, bytes]:
            target = tmp_path / f"{one.name}{number}"
            one.download_artifacts(path, str(target))
            return {str(each.relative_to(target)): each.read_bytes() for each in target.rglob("*") if each.is_file()}

        same(both, download)


def test_multipart_uploads(both: tuple[Repository, Repository]) -> None:
    """Begun, uploaded by the URLs that are handed out, completed and aborted alike."""
    from mlflow.entities.multipart_upload import MultipartUploadPart

    def complete(one: Repository) -> Any:
        made = one.create_multipart_upload("large.bin", 2, "folder")
        bodies = (b"x" * 5 * 2**20, b"y")
        tags = [
            requests.put(each.url, data=body, timeout=30).headers["ETag"]
            for each, body in zip(made.credentials, bodies, strict=True)
        ]
        parts = [MultipartUploadPart(part_number=number, etag=tag) for number, tag in enumerate(tags, 1)]
        one.complete_multipart_upload("large.bin", made.upload_id, parts, "folder")
        return shown(one, "folder"), [each.part_number for each in made.credentials]

    def abort(one: Repository) -> Any:
        made = one.create_multipart_upload("other.bin", 1, "folder")
        one.abort_multipart_upload("other.bin", made.upload_id, "folder")
        bucket, _ = one.parse_s3_compliant_uri(one.artifact_uri)
        return one._get_s3_client().list_multipart_uploads(Bucket=bucket).get("Uploads"), shown(one, "folder")

    assert same(both, complete)[0] == [("folder/large.bin", False, 5 * 2**20 + 1)]
    assert same(both, abort)[0] is None


@needs("presigned_urls")
def test_presigned_urls(both: tuple[Repository, Repository], folder: Path) -> None:
    """URLs for one upload and one download, and what they say of a file that is not there."""

    def upload(one: Repository) -> Any:
        made = one.create_presigned_upload_url("folder/new.json", 60)
        requests.put(made.presigned_url, data=b"{}", headers=made.headers, timeout=30).raise_for_status()
        return made.headers, shown(one, "folder")

    def download(one: Repository, path: str) -> Any:
        made = one.get_download_presigned_url(path, 60)
        answer = requests.get(made.url, timeout=30)
        return answer.content, answer.headers.get("Content-Disposition"), made.file_size, made.headers

    same(both, lambda one: one.log_artifacts(str(folder)))
    assert same(both, upload)
    assert same(both, lambda one: download(one, "folder/b.bin"))[0] == FILES["folder/b.bin"]
    same(both, lambda one: download(one, "absent"))


@pytest.mark.parametrize("path", ["a.txt", "folder", "folder/", "folder/deep", "absent", "fold", None])
def test_deletions_where_no_database_is_known(
    both: tuple[Repository, Repository], folder: Path, path: str | None
) -> None:
    """A client that only knows a server: what the newest MLflow's class deletes, ours does, and nothing beside it."""
    for one in both:
        one.log_artifacts(str(folder))
        bucket, key = one.parse_s3_compliant_uri(one.artifact_uri)
        for beside in (f"{key}_backup/x", f"{key}2", "root/1/other/artifacts/x"):
            one._get_s3_client().put_object(Bucket=bucket, Key=beside, Body=b"x")
    ours = both[1]
    _, key = ours.parse_s3_compliant_uri(ours.artifact_uri)
    inside = f"{key}/{path.rstrip('/')}" if path else key
    before = stored(ours)
    same(both, lambda one: one.delete_artifacts(path))
    left = same(both, stored) if has("deletions_that_spare_siblings") else stored(ours)
    assert left == {at: one for at, one in before.items() if at != inside and not at.startswith(f"{inside}/")}
    assert {"root/1/run/artifacts_backup/x", "root/1/run/artifacts2", "root/1/other/artifacts/x"} <= set(left)
    if path is None:
        assert len(left) == 3


def test_many_objects_go(seaweed: S3Server, bucket: str) -> None:
    """More than one page of them."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    ours = get_artifact_repository(f"s3://{bucket}/root/1/run/artifacts")
    client = s3_client(seaweed)

    def put(number: int) -> None:
        client.put_object(Bucket=bucket, Key=f"root/1/run/artifacts/{number}", Body=b"")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(1_003)))
    ours.delete_artifacts()
    assert stored(ours) == {}


def test_nothing_but_deletion_is_ours() -> None:
    """Every other public method is MLflow's own function, so what MLflow asks of it stays true in its next version."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    from mlflow_artifact_gc.hook.artifacts import S3Repository

    public = [name for name, _ in inspect.getmembers(S3ArtifactRepository, callable) if not name.startswith("_")]
    other = [name for name in public if getattr(S3Repository, name) is not getattr(S3ArtifactRepository, name)]
    assert other == ["delete_artifacts"]


def test_what_of_ours_cannot_be_imported_leaves_mlflow_s_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A repository is made, whatever is wrong with us."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    monkeypatch.setitem(sys.modules, "mlflow_artifact_gc.hook.artifacts", None)
    monkeypatch.delattr(hook, "artifacts", raising=False)
    made = get_artifact_repository("s3://bucket/x")

    assert type(made) is S3ArtifactRepository
    assert "deletes as MLflow does" in caplog.text
