"""MLflow's S3 artifact repository, whose deletions are ours; and what ``mlflow gc`` meets for proxied artifacts.

Everything but ``delete_artifacts`` is MLflow's own code and class: its server asks with ``isinstance`` what a
repository can do.
"""

from __future__ import annotations

import posixpath
from typing import Any, NoReturn

from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_CONFLICT
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from mlflow_artifact_gc import collecting
from mlflow_artifact_gc.errors import ArtifactGcError
from mlflow_artifact_gc.hook import stock_gc
from mlflow_artifact_gc.locations import Location


class ArtifactsStay(InvalidUrlException):  # type: ignore[misc]
    """The artifacts were not deleted, or not all of them.

    ``mlflow gc`` survives this kind of error and goes on (mlflow/cli/__init__.py); over HTTP it is a 409, which no
    client of MLflow's sends again.
    """

    def __init__(self, message: str) -> None:
        super().__init__(f"mlflow-artifact-gc: {message}", error_code=RESOURCE_CONFLICT)


class S3Repository(S3ArtifactRepository):  # type: ignore[misc]
    """MLflow's own, except that it deletes nothing that is needed, reads every answer, and leaves no versions."""

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Delete all artifacts, or those below ``artifact_path``.

        All of a deleted run's or logged model's are purged: every version, delete marker and unfinished upload. Of
        what is smaller the current objects go, as MLflow's own class deletes them.

        Raises:
            ArtifactsStay: something needs them, or not all could be deleted.
        """
        bucket, key = self.parse_s3_compliant_uri(self.artifact_uri)
        key = (posixpath.join(key, artifact_path) if artifact_path else key).rstrip("/")
        place = Location.of_key(bucket, key)
        command = stock_gc.current()
        if command is not None:
            _delete_for(command, place)
            return
        stores = stock_gc.stores_of_this_process()
        try:
            done = stores is not None and collecting.delete_at(stores, place, stock_gc.tell)
        except ArtifactGcError as error:
            raise ArtifactsStay(str(error)) from None
        if not done:
            self._delete_as_asked(bucket, key)

    def _delete_as_asked(self, bucket: str, key: str) -> None:
        client = self._get_s3_client()
        owner = getattr(self, "_bucket_owner_params", {})
        failed: list[dict[str, str]] = []
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key, **owner):
            keys = [{"Key": one["Key"]} for one in page.get("Contents", ()) if _lies_in(one["Key"], key)]
            if keys:
                failed += client.delete_objects(Bucket=bucket, Delete={"Objects": keys}, **owner).get("Errors", ())
        if failed:
            code = failed[0].get("Code", "")
            raise MlflowException(
                f"{len(failed):,} objects of s3://{bucket}/{key} were not deleted, {failed[0].get('Key')!r} because of "
                f"{code}: {failed[0].get('Message', '')}",
                error_code=PERMISSION_DENIED if code == "AccessDenied" else RESOURCE_CONFLICT,
            )


def _lies_in(key: str, path: str) -> bool:
    return not path or key == path or key.startswith(f"{path}/")


def _delete_for(command: stock_gc.Command, place: Location) -> None:
    """What ``mlflow gc`` asks for: swept together with everything else that it will ask for."""
    owner = stock_gc.guarded(lambda: command.collection.owner_of(place))
    if owner is None or place not in command.collection.places(*owner):
        raise ArtifactsStay(f"{place.uri} is kept: no deleted run or logged model that was named has it")
    if why := stock_gc.guarded(lambda: command.collection.why_kept(*owner)):
        raise ArtifactsStay(f"{owner[0].value.replace('_', ' ')} {owner[1]} is kept: {why}")


class ProxiedForGc(ArtifactRepository):  # type: ignore[misc]
    """Proxied artifacts, for ``mlflow gc`` alone: deleted in S3 itself, and through the proxy where S3 is out of reach.

    MLflow's own class wants a tracking server's address just to be made, and deletes whatever that one has there.
    """

    def __init__(self, command: stock_gc.Command, uri: str, **stores: Any) -> None:
        super().__init__(uri, **stores)
        self._command, self._stores = command, stores

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Raises ArtifactsStay: something needs them, or not all could be deleted."""
        if artifact_path:
            self._through_the_proxy(artifact_path)
            return
        collection = self._command.collection
        owner = stock_gc.guarded(lambda: collection.owner_of_uri(self.artifact_uri))
        if owner is None:
            raise ArtifactsStay(f"{self.artifact_uri} is kept: no deleted run or logged model that was named has it")
        why = stock_gc.guarded(lambda: collection.why_kept(*owner))
        if not why:
            return
        if not collection.unreached(*owner):
            raise ArtifactsStay(f"{owner[0].value.replace('_', ' ')} {owner[1]} is kept: {why}")
        self._through_the_proxy(None)
        collection.accept(*owner)

    def _through_the_proxy(self, path: str | None) -> None:
        from requests import HTTPError

        try:
            MlflowArtifactsRepository(self.artifact_uri, **self._stores).delete_artifacts(path)
        except (MlflowException, HTTPError) as error:
            raise ArtifactsStay(f"{self.artifact_uri} is kept: its server answered {error}") from None

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> NoReturn:
        raise NotImplementedError

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> NoReturn:
        raise NotImplementedError

    def list_artifacts(self, path: str | None = None) -> NoReturn:
        raise NotImplementedError

    def _download_file(self, remote_file_path: str, local_path: str) -> NoReturn:
        raise NotImplementedError


def proxied(uri: str, **stores: Any) -> Any:
    """MLflow's own repository for ``mlflow-artifacts:``, or ours inside ``mlflow gc``."""
    command = stock_gc.current()
    return MlflowArtifactsRepository(uri, **stores) if command is None else ProxiedForGc(command, uri, **stores)
