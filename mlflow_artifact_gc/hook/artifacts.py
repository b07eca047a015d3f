"""MLflow's S3 artifact repository, whose deletions are ours; and the repository that ``mlflow gc`` meets.

Everything of the first but ``delete_artifacts`` is MLflow's own code and class: its server asks with ``isinstance``
what a repository can do.
"""

from __future__ import annotations

import posixpath
import uuid
from typing import Any, Final, NoReturn

from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_CONFLICT
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

from mlflow_artifact_gc import requested
from mlflow_artifact_gc.collecting import Stores
from mlflow_artifact_gc.errors import ArtifactGcError
from mlflow_artifact_gc.hook import stock_gc
from mlflow_artifact_gc.locations import Location

SITE_HEADER: Final = "X-Mlflow-Artifact-Gc"
"""Names the site's database in the answers of a server that deletes as we do."""
_OK: Final = 200
_CONFLICT: Final = 409


class ArtifactsStay(InvalidUrlException):  # type: ignore[misc]
    """The artifacts were not deleted, or not all of them; for ``mlflow gc`` alone.

    Of all errors it survives this kind, and goes on (mlflow/cli/__init__.py): what it asks next, the deletion of the
    row, is answered by us too.
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
            MlflowException: something needs them, or not all could be deleted.
        """
        bucket, key = self.parse_s3_compliant_uri(self.artifact_uri)
        key = (posixpath.join(key, artifact_path) if artifact_path else key).rstrip("/")
        place = Location.of_key(bucket, key)
        if not any(_requested(stores, place) for stores in stock_gc.stores_of_this_process()):
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


def _requested(stores: Stores, place: Location) -> bool:
    try:
        return requested.delete(stores, place, stock_gc.tell, _sign)
    except ArtifactGcError as error:
        raise stock_gc.guarded_error(str(error)) from None
    except Exception as error:
        # Not 500, which clients send again, for minutes; and of the error its kind alone.
        raise stock_gc.guarded_error(f"{place.uri} is kept, because of {type(error).__name__}") from None


def _sign(database_id: str) -> None:
    """Put the site's name into the answer, refusals included, where this is a request to MLflow's server."""
    import flask

    if flask.has_request_context():

        @flask.after_this_request
        def named(response: flask.Response) -> flask.Response:
            response.headers[SITE_HEADER] = database_id
            return response


class GcRepository(ArtifactRepository):  # type: ignore[misc]
    """What ``mlflow gc`` meets in the place of an entity's own repository: it deletes in S3 itself.

    Where S3 is out of reach it asks the tracking server, if that one proves to be of this very database.
    """

    def __init__(self, uri: str, **_stores: Any) -> None:
        super().__init__(uri)
        self._command, self._kind, self._id = stock_gc.answering(uri)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Raises ArtifactsStay: something needs them, or not all could be deleted."""
        if artifact_path:
            raise NotImplementedError
        collection = self._command.collection
        if proxied := stock_gc.guarded(lambda: collection.proxied_uri(self._kind, self._id)):
            self._through_the_proxy(proxied)
            collection.accept(self._kind, self._id)
        if why := stock_gc.guarded(lambda: collection.why_kept(self._kind, self._id)):
            raise ArtifactsStay(f"{self._kind.value.replace('_', ' ')} {self._id} is kept: {why}")

    def _through_the_proxy(self, uri: str) -> None:
        what = f"{self._kind.value.replace('_', ' ')} {self._id} is kept: S3 is out of reach, and its server"
        # First a place where nothing can be: another server, or one without us, deletes nothing then.
        status, site, _ = _ask(uri, f"{stock_gc.SCHEME}-{uuid.uuid4().hex}")
        if site != self._command.collection.database_id:
            other = "is another site's" if site else f"deletes as MLflow does (it answered {status})"
            raise ArtifactsStay(f"{what} {other}")
        status, site, said = _ask(uri, None)
        if status != _OK or site != self._command.collection.database_id:
            raise ArtifactsStay(f"{what} answered {status}{f': {said}' if status == _CONFLICT else ''}")

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> NoReturn:
        raise NotImplementedError

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> NoReturn:
        raise NotImplementedError

    def list_artifacts(self, path: str | None = None) -> NoReturn:
        raise NotImplementedError

    def _download_file(self, remote_file_path: str, local_path: str) -> NoReturn:
        raise NotImplementedError


def _ask(uri: str, path: str | None) -> tuple[int, str | None, str]:
    """Has the tracking server delete; its status, whose server it says to be, and what it says."""
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
    from mlflow.utils.rest_utils import http_request

    try:
        through = MlflowArtifactsRepository(uri)
        answer = http_request(through._host_creds, f"/{path}" if path else "/", "DELETE")
    except Exception as error:
        # Its text may hold the server's URL, and that a password.
        raise ArtifactsStay(f"S3 is out of reach, and the tracking server too: {type(error).__name__}") from None
    try:
        said = str(answer.json().get("message", ""))
    except ValueError:
        said = ""
    return answer.status_code, answer.headers.get(SITE_HEADER), said
