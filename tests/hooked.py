"""MLflow's stores as MLflow's own registries build them, with our hook in them, and what the hook wrote."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import sqlalchemy as sa

from mlflow_artifact_gc.tables import intents
from tests import command
from tests.abilities import has, need
from tests.site import engines_of, make_trace

ROOT = "s3://bucket/mlruns"
INBOX = "artifact_gc_inbox"
_ROWS = {
    "experiments": "experiment_id, name, lifecycle_stage, last_update_time",
    "runs": "run_uuid, lifecycle_stage, deleted_time",
    "trace_info": "request_id, experiment_id",
    "trace_tags": "request_id, trace_tags.key, value",
    "model_versions": "name, version, current_stage, source",
    "registered_models": "name, last_updated_time",
}
_ROWS_OF = {
    "logged_models": {"logged_models": "model_id, lifecycle_stage, last_updated_timestamp_ms"},
    "workspaces": {"experiments": f"{_ROWS['experiments']}, workspace", "workspaces": "name"},
}
"""What MLflow has besides, or instead, by the ability."""


class Noted(NamedTuple):
    """A row of the inbox, without its id and our date."""

    event: str
    kind: str
    id: str
    experiment: str | None = None
    workspace: str | None = None
    uri: str | None = None
    deleted_ms: int | None = None


@dataclass(kw_only=True)
class Hooked:
    """An MLflow database and the stores on it. ``root`` is the artifact root of its experiments."""

    uri: str
    root: str = ROOT
    _made: list[Any] = field(default_factory=list)

    # The stores, by the registries that the entry points of this package reach.

    @cached_property
    def store(self) -> Any:
        from mlflow.tracking._tracking_service import utils

        return self._kept(utils._get_store(self.uri, self.root))

    @cached_property
    def registry(self) -> Any:
        from mlflow.tracking._model_registry import utils

        return self._kept(utils._get_store(self.uri, self.uri))

    @cached_property
    def workspaces(self) -> Any:
        need("workspaces")
        from mlflow.tracking._workspace.registry import get_workspace_store

        return self._kept(get_workspace_store(self.uri))

    @cached_property
    def plain(self) -> Any:
        """The tracking store by MLflow's own builder, without us."""
        from mlflow.tracking._tracking_service import utils

        return self._kept(utils._get_sqlalchemy_store(self.uri, self.root))

    @cached_property
    def plain_registry(self) -> Any:
        from mlflow.tracking._model_registry import utils

        return self._kept(utils._get_sqlalchemy_store(self.uri))

    def _kept(self, store: Any) -> Any:
        self._made.append(store)
        return store

    @cached_property
    def engine(self) -> sa.Engine:
        """An engine of the test's own."""
        return sa.create_engine(self.uri)

    def init(self) -> Hooked:
        """Opt in."""
        command.make_tables(self.uri)
        ran = command.run("init", "--backend-store-uri", self.uri, "--registry-store-uri", self.uri)
        assert ran.code == 0, ran.err
        return self

    def close(self) -> None:
        """Close every connection, and have MLflow forget its engines."""
        self.engine.dispose()
        for store in self._made:
            engine_of(store).dispose()
            engines_of(type(store)).pop(self.uri, None)

    # Things in MLflow

    def experiment(self, name: str | None = None) -> str:
        made: str = self.store.create_experiment(name or f"experiment-{uuid.uuid4().hex[:8]}")
        return made

    def run(self, experiment: str) -> str:
        made: str = self.store.create_run(experiment, "user", 0, [], "run").info.run_id
        return made

    def model(self, experiment: str, run: str | None = None) -> str:
        need("logged_models")
        made: str = self.store.create_logged_model(experiment, source_run_id=run).model_id
        return made

    def trace(self, experiment: str, tags: dict[str, str] | None = None) -> str:
        return make_trace(self.store, experiment, tags)

    def version(self, name: str, source: str) -> str:
        """Register; the version's number."""
        return str(self.registry.create_model_version(name, source).version)

    def intent(self, kind: str, entity: str, state: str, claimed_until_ms: int | None) -> None:
        """An intent of ours in this state."""
        row = {
            "location_sha256": uuid.uuid4().hex,
            "bucket": "bucket",
            "prefix": f"mlruns/{entity}/",
            "entity_kind": kind,
            "entity_id": entity,
            "experiment_id": "1",
            "workspace": "default",
            "uri": f"{ROOT}/{entity}",
            "first_seen_ms": 1,
            "state": state,
            "state_ms": 1,
            "attempts": 1,
            "claimed_until_ms": claimed_until_ms,
            "deleted_objects": 0,
            "deleted_versions": 0,
            "deleted_markers": 0,
            "deleted_bytes": 0,
            "aborted_uploads": 0,
        }
        with self.engine.begin() as connection:
            connection.execute(intents.insert().values(row))

    # What is there

    def scalar(self, statement: str, **values: object) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(sa.text(statement), values).scalar()

    def execute(self, statement: str, **values: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.text(statement), values)

    def noted(self) -> list[Noted]:
        """The inbox, oldest first."""
        query = (
            f"SELECT event, entity_kind, entity_id, experiment_id, workspace, uri, deleted_ms FROM {INBOX} ORDER BY id"
        )
        with self.engine.connect() as connection:
            return [Noted(*row) for row in connection.execute(sa.text(query))]

    def taken(self) -> list[Noted]:
        """The same, and the inbox is empty afterwards."""
        found = self.noted()
        self.execute(f"DELETE FROM {INBOX}")
        return found

    def rows(self) -> dict[str, list[Any]]:
        """What MLflow's own tables say, as far as deletions change it."""
        tables = dict(_ROWS)
        for ability, more in _ROWS_OF.items():
            tables |= more if has(ability) else {}
        with self.engine.connect() as connection:
            return {
                table: sorted(
                    json.dumps(list(row)) for row in connection.execute(sa.text(f"SELECT {columns} FROM {table}"))
                )
                for table, columns in tables.items()
            }

    @property
    def workspace(self) -> str | None:
        """Where an MLflow with workspaces has everything."""
        return "default" if has("workspaces") else None

    def uri_of(self, run: str) -> str:
        return str(self.scalar("SELECT artifact_uri FROM runs WHERE run_uuid = :id", id=run))

    def model_uri(self, model: str) -> str:
        return str(self.scalar("SELECT artifact_location FROM logged_models WHERE model_id = :id", id=model))

    def trace_uri(self, trace: str, key: str = "mlflow.artifactLocation") -> str:
        query = "SELECT value FROM trace_tags WHERE request_id = :id AND trace_tags.key = :key"
        return str(self.scalar(query, id=trace, key=key))


def engine_of(store: Any) -> sa.Engine:
    """A store's engine, to the primary."""
    found: sa.Engine = getattr(store, "engine", None) or store._engine
    return found


@contextmanager
def statements(store: Any) -> Iterator[list[str]]:
    """Every statement that is sent through the store's engine meanwhile."""
    sent: list[str] = []
    engine = engine_of(store)

    def see(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", see)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", see)


@contextmanager
def failing_commits(store: Any) -> Iterator[None]:
    """Each commit through the store's engine fails, at the last moment."""
    engine = engine_of(store)

    def fail(_connection: Any) -> None:
        raise RuntimeError("no commit today")

    sa.event.listen(engine, "commit", fail)
    try:
        yield
    finally:
        sa.event.remove(engine, "commit", fail)
