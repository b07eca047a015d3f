"""Builds sites: rows in a real MLflow database by MLflow's own stores, objects in a real bucket, without HTTP.

S3's LastModified cannot be back-dated: tests of anything but the minimum age run with ``--min-object-age 0s``.
"""

from __future__ import annotations

import itertools
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar
from urllib.parse import urlparse

import sqlalchemy as sa

from tests.abilities import has, need
from tests.servers import S3Server, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_Made = TypeVar("_Made")
DAY_MS = 24 * 3_600_000
Content = bytes | int
"""An object's bytes, or how many."""


class Owned(NamedTuple):
    """Who an object belongs to, and its size."""

    owner: str
    size: int


class Item(NamedTuple):
    """One thing that a bucket holds and bills: ``kind`` is object, version (noncurrent), marker or upload."""

    key: str
    version_id: str
    kind: str
    size: int
    etag: str


class Row(NamedTuple):
    """An MLflow row that owns artifacts (or, for ``experiment``, that others hang on)."""

    kind: str
    id: str
    experiment_id: str
    stage: str
    uri: str


class Version(NamedTuple):
    """A row of ``model_versions`` that is not deleted."""

    name: str
    version: int
    stage: str
    source: str
    storage_location: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What the bucket held and what MLflow's rows said, at one moment."""

    items: frozenset[Item]
    rows: frozenset[Row]
    versions: frozenset[Version]
    aliases: frozenset[tuple[str, str, int]]

    @property
    def ids(self) -> set[tuple[str, str]]:
        """Key and version id (of an upload: its id) of everything in the bucket."""
        return {(item.key, item.version_id) for item in self.items}

    @property
    def keys(self) -> set[str]:
        """The keys of the current objects: what a plain listing shows."""
        return {item.key for item in self.items if item.kind == "object"}


@dataclass(kw_only=True)
class Site:
    """An MLflow database and a bucket.

    ``artifact_root`` is the server's default artifact root. With ``destination`` the site's artifacts are proxied:
    rows hold ``mlflow-artifacts:`` URIs, and objects lie under ``destination``. ``registry_uri`` None: same database.
    ``objects`` tells of each object that was written: whose it is and its size.
    """

    uri: str
    s3: S3Server
    bucket: str
    artifact_root: str
    destination: str | None = None
    registry_uri: str | None = None
    objects: dict[str, Owned] = field(default_factory=dict)

    @classmethod
    def direct(cls, uri: str, s3: S3Server, bucket: str, *, root: str = "mlruns") -> Self:
        """A site whose rows hold ``s3:`` URIs."""
        return cls(uri=uri, s3=s3, bucket=bucket, artifact_root=_join(f"s3://{bucket}", root))

    @classmethod
    def proxied(cls, uri: str, s3: S3Server, bucket: str, *, root: str = "artifacts") -> Self:
        """A site whose rows hold ``mlflow-artifacts:`` URIs."""
        destination = _join(f"s3://{bucket}", root)
        return cls(uri=uri, s3=s3, bucket=bucket, artifact_root="mlflow-artifacts:/", destination=destination)

    @cached_property
    def client(self) -> S3Client:
        return s3_client(self.s3)

    @cached_property
    def engine(self) -> sa.Engine:
        """An engine of the tests' own, for statements that MLflow has no call for."""
        return sa.create_engine(self.uri)

    @cached_property
    def registry_engine(self) -> sa.Engine:
        return sa.create_engine(self.registry_uri) if self.registry_uri else self.engine

    @cached_property
    def store(self) -> Any:
        """MLflow's own tracking store."""
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        return SqlAlchemyStore(self.uri, self.artifact_root)

    @cached_property
    def registry(self) -> Any:
        """MLflow's own model registry store."""
        from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

        return SqlAlchemyStore(self.registry_uri or self.uri)

    def close(self) -> None:
        """Closes every connection to the databases, also MLflow's."""
        from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore

        self.engine.dispose()
        self.registry_engine.dispose()
        for made in ("store", "registry"):
            if made in self.__dict__:
                self.__dict__[made].engine.dispose()
        for kept, uri in itertools.product((TrackingStore, RegistryStore), (self.uri, self.registry_uri or self.uri)):
            engine = engines_of(kept).pop(uri, None)
            if engine is not None:
                engine.dispose()

    # Experiments and runs

    def experiment(self, name: str | None = None, artifact_location: str | None = None) -> str:
        """Makes an experiment; returns its id."""
        made: str = self.store.create_experiment(name or f"experiment-{uuid.uuid4().hex[:8]}", artifact_location)
        return made

    def run(
        self,
        experiment: str,
        objects: Mapping[str, Content] | None = None,
        *,
        n_objects: int = 0,
        object_bytes: int = 10,
        parent: str | None = None,
    ) -> str:
        """Makes a run with these objects under its artifact URI; returns its id."""
        from mlflow.entities import RunTag

        tags = [RunTag("mlflow.parentRunId", parent)] if parent else []
        run = self.store.create_run(experiment, "tester", int(time.time() * 1000), tags, "")
        self.write(run.info.run_id, run.info.artifact_uri, _wanted(objects, n_objects, object_bytes))
        run_id: str = run.info.run_id
        return run_id

    def delete_run(self, run_id: str, deleted_ms: int | None = None) -> None:
        """Soft-deletes a run; with ``deleted_ms`` its row says that it happened then."""
        self.store.delete_run(run_id)
        if deleted_ms is not None:
            self.execute("UPDATE runs SET deleted_time = :ms WHERE run_uuid = :id", ms=deleted_ms, id=run_id)

    def undate_run(self, run_id: str) -> None:
        """Makes a deleted run look as if an MLflow had deleted it that kept no dates."""
        self.execute("UPDATE runs SET deleted_time = NULL WHERE run_uuid = :id", id=run_id)

    def restore_run(self, run_id: str) -> None:
        self.store.restore_run(run_id)

    def delete_experiment(self, experiment: str, deleted_ms: int | None = None) -> None:
        """Soft-deletes an experiment and, as MLflow does, all its runs."""
        self.store.delete_experiment(experiment)
        if deleted_ms is None:
            return
        given = {"ms": deleted_ms, "id": int(experiment)}
        self.execute("UPDATE experiments SET last_update_time = :ms WHERE experiment_id = :id", **given)
        self.execute("UPDATE runs SET deleted_time = :ms WHERE experiment_id = :id", **given)

    def restore_experiment(self, experiment: str) -> None:
        """Restores an experiment and, as MLflow does, all its runs."""
        self.store.restore_experiment(experiment)

    def artifact_uri(self, entity: str) -> str:
        """What the row of a run, logged model or trace says of its artifacts."""
        (found,) = [row.uri for row in self.rows() if row.id == entity and row.kind != "experiment"]
        return found

    # Logged models and traces

    def logged_model(
        self,
        experiment: str,
        source_run: str | None = None,
        objects: Mapping[str, Content] | None = None,
        *,
        n_objects: int = 0,
        object_bytes: int = 10,
        ready: bool = True,
    ) -> str:
        """Makes a logged model with these objects; returns its id."""
        need("logged_models")
        from mlflow.entities import LoggedModelStatus

        model = self.store.create_logged_model(experiment, source_run_id=source_run)
        self.write(model.model_id, model.artifact_location, _wanted(objects, n_objects, object_bytes))
        if ready:
            self.store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        model_id: str = model.model_id
        return model_id

    def logged_models(self, experiment: str, source_run: str | None = None, *, n_objects: int = 0) -> list[str]:
        """One logged model, for a test that is about more than these; none where an old MLflow has none."""
        return [self.logged_model(experiment, source_run, n_objects=n_objects)] if has("logged_models") else []

    def delete_logged_model(self, model_id: str, deleted_ms: int | None = None) -> None:
        self.store.delete_logged_model(model_id)
        if deleted_ms is not None:
            self.execute(
                "UPDATE logged_models SET last_updated_timestamp_ms = :ms WHERE model_id = :id",
                ms=deleted_ms,
                id=model_id,
            )

    def trace(self, experiment: str, objects: Mapping[str, Content] | None = None) -> str:
        """Makes a trace whose data lie in S3 (default: a ``traces.json``); returns its id."""
        trace_id = make_trace(self.store, experiment)
        content = {"traces.json": json.dumps({"spans": []}).encode()} if objects is None else objects
        self.write(trace_id, self.artifact_uri(trace_id), content)
        return trace_id

    def delete_trace(self, experiment: str, trace_id: str) -> None:
        """Removes a trace's row, as MLflow does: at once, and its objects stay."""
        delete_traces(self.store, experiment, [trace_id])

    # Model registry

    def register(self, name: str, source: str, run_id: str | None = None, local_model_id: str | None = None) -> int:
        """Registers ``source``, in any form, as the next version of a model; returns the version's number."""
        from mlflow.exceptions import MlflowException

        try:
            self.registry.get_registered_model(name)
        except MlflowException:
            self.registry.create_registered_model(name)
        of_model = {"model_id": local_model_id} if has("logged_models") else {}
        with _tracking_uri(self.uri):
            made = self.registry.create_model_version(name, source, run_id=run_id, **of_model)
        return int(made.version)

    def alias(self, name: str, alias: str, version: int) -> None:
        self.registry.set_registered_model_alias(name, alias, str(version))

    def stage(self, name: str, version: int, stage: str) -> None:
        """Moves a version to a stage (``Production`` and so on)."""
        self.registry.transition_model_version_stage(name, str(version), stage, archive_existing_versions=False)

    def set_version_columns(self, name: str, version: int, **columns: str | None) -> None:
        """Overwrites columns of a model version (``source``, ``storage_location``) by SQL, for forms of old MLflows."""
        assignments = ", ".join(f"{column} = :{column}" for column in columns)
        statement = f"UPDATE model_versions SET {assignments} WHERE name = :name_ AND version = :version_"
        with self.registry_engine.begin() as connection:
            connection.execute(sa.text(statement), {**columns, "name_": name, "version_": version})

    def delete_version(self, name: str, version: int) -> None:
        self.registry.delete_model_version(name, str(version))

    # Objects

    def write(self, owner: str, uri: str, objects: Mapping[str, Content]) -> None:
        """Writes objects under an artifact URI, and remembers whose they are."""
        folder = self.key_of(uri)
        contents = {_join(folder, path): _bytes(content) for path, content in objects.items()}

        def put(key: str) -> None:
            self.client.put_object(Bucket=self.bucket, Key=key, Body=contents[key])

        if len(contents) == 1:
            put(next(iter(contents)))
        elif contents:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(put, contents))
        self.objects |= {key: Owned(owner, len(content)) for key, content in contents.items()}

    def begin_upload(self, owner: str, uri: str, path: str, part: Content | None = None) -> str:
        """Leaves a multipart upload unfinished (with one part, if given); returns its id."""
        key = _join(self.key_of(uri), path)
        upload_id = self.client.create_multipart_upload(Bucket=self.bucket, Key=key)["UploadId"]
        if part is not None:
            self.client.upload_part(Bucket=self.bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=_bytes(part))
        return upload_id

    def switch_versioning(self, *, on: bool) -> None:
        """Makes the bucket keep versions, or suspends that."""
        status = {"Status": "Enabled" if on else "Suspended"}
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration=status)  # type: ignore[arg-type]

    def key_of(self, uri: str) -> str:
        """The key, without a final ``/``, that an artifact URI of this site names."""
        parsed = urlparse(uri)
        if parsed.scheme == "mlflow-artifacts":
            assert self.destination is not None, f"{uri} on a site that is not proxied"
            return _join(urlparse(self.destination).path.strip("/"), parsed.path.strip("/"))
        assert (parsed.scheme, parsed.netloc) == ("s3", self.bucket), f"{uri} is not in {self.bucket}"
        return parsed.path[1:]

    # What is there

    def snapshot(self) -> Snapshot:
        """The bucket's complete content and MLflow's rows, now."""
        return Snapshot(
            items=frozenset(self.items()),
            rows=frozenset(self.rows()),
            versions=frozenset(self.versions()),
            aliases=frozenset(self._select(self.registry_engine, _ALIASES, lambda *row: row)),
        )

    def items(self) -> Iterator[Item]:
        """Everything in the bucket, by plain listings: versions, delete markers, uploads, current objects."""
        seen = set()
        for page in self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket):
            for version in page.get("Versions", ()):
                kind = "object" if version["IsLatest"] else "version"
                seen.add(version["Key"])
                yield Item(version["Key"], version["VersionId"], kind, version["Size"], version["ETag"])
            for marker in page.get("DeleteMarkers", ()):
                seen.add(marker["Key"])
                yield Item(marker["Key"], marker["VersionId"], "marker", 0, "")
        for listed in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket):
            for found in listed.get("Contents", ()):
                if found["Key"] not in seen:  # a store whose listing of versions is not complete
                    yield Item(found["Key"], "null", "object", found["Size"], found["ETag"])
        for unfinished in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket):
            for upload in unfinished.get("Uploads", ()):
                yield Item(upload["Key"], upload["UploadId"], "upload", 0, "")

    def rows(self) -> Iterator[Row]:
        """MLflow's rows that own artifacts, in every workspace."""
        for statement in _ROWS:
            if "logged_models" not in statement or has("logged_models"):
                yield from self._select(self.engine, statement, _row)

    def versions(self) -> Iterator[Version]:
        """The registry's versions that are not deleted, in every workspace."""
        yield from self._select(self.registry_engine, _VERSIONS, Version)

    def execute(self, statement: str, **values: object) -> None:
        """Runs one SQL statement on MLflow's database."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    @staticmethod
    def _select(engine: sa.Engine, statement: str, make: Callable[..., _Made]) -> list[_Made]:
        with engine.connect() as connection:
            return [make(*row) for row in connection.execute(sa.text(statement))]


_ROWS = (
    "SELECT 'experiment', experiment_id, experiment_id, lifecycle_stage, artifact_location FROM experiments",
    "SELECT 'run', run_uuid, experiment_id, lifecycle_stage, COALESCE(artifact_uri, '') FROM runs",
    "SELECT 'logged_model', model_id, experiment_id, lifecycle_stage, artifact_location FROM logged_models",
    """SELECT 'trace', t.request_id, t.experiment_id, 'active', g.value FROM trace_info t
       JOIN trace_tags g ON g.request_id = t.request_id AND g.key = 'mlflow.artifactLocation'""",
)
_VERSIONS = (
    "SELECT name, version, COALESCE(current_stage, ''), COALESCE(source, ''), COALESCE(storage_location, '')"
    " FROM model_versions WHERE current_stage IS NULL OR current_stage <> 'Deleted_Internal'"
)
_ALIASES = "SELECT name, alias, version FROM registered_model_aliases"


def engines_of(store_class: Any) -> dict[str, sa.Engine]:
    """The engines that a class of MLflow's stores keeps, one per URI, for the life of the process."""
    found: dict[str, sa.Engine] = {}
    for name in ("_db_uri_sql_alchemy_engine_map", "_engine_map"):
        found = getattr(store_class, name, found)
    return found


def make_trace(store: Any, experiment: str, tags: Mapping[str, str] | None = None) -> str:
    """Makes a trace by MLflow's tracking store; returns its id."""
    import mlflow.entities as made_of

    now_ms, named = int(time.time() * 1000), dict(tags or {})
    if not has("traces_by_info"):
        found: str = store.start_trace(experiment, now_ms, {}, named).request_id
        return found
    trace_id = f"tr-{uuid.uuid4().hex}"
    store.start_trace(
        made_of.TraceInfo(
            trace_id=trace_id,
            trace_location=made_of.TraceLocation.from_experiment_id(experiment),
            request_time=now_ms,
            state=made_of.TraceState.OK,
            tags=named,
        )
    )
    return trace_id


def delete_traces(store: Any, experiment: str, trace_ids: Sequence[str]) -> None:
    """Removes the rows of these traces by MLflow's tracking store."""
    store.delete_traces(experiment, **{"trace_ids" if has("traces_by_info") else "request_ids": list(trace_ids)})


def writing(store: Any) -> AbstractContextManager[Any]:
    """A session of an MLflow store that may write."""
    how = {"read_only": False} if has("read_replicas") else {}
    made: AbstractContextManager[Any] = store.ManagedSessionMaker(**how)
    return made


def _row(kind: str, entity: str, experiment: int, stage: str, uri: str | None) -> Row:
    return Row(kind, str(entity), str(experiment), stage, uri or "")


@contextmanager
def _tracking_uri(uri: str) -> Iterator[None]:
    # The registry's store asks MLflow's client for logged models, and the client asks the environment where.
    name = "MLFLOW_TRACKING_URI"
    kept = os.environ.get(name)
    os.environ[name] = uri
    try:
        yield
    finally:
        if kept is None:
            del os.environ[name]
        else:
            os.environ[name] = kept


def _wanted(objects: Mapping[str, Content] | None, n_objects: int, object_bytes: int) -> dict[str, Content]:
    numbered: dict[str, Content] = {f"data/part-{number:06}.bin": object_bytes for number in range(n_objects)}
    return {**(objects or {}), **numbered}


def _bytes(content: Content) -> bytes:
    return b"x" * content if isinstance(content, int) else content


def _join(folder: str, path: str) -> str:
    return f"{folder}/{path}" if folder and path else folder or path
