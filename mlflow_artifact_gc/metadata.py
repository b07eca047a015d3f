"""Deletes MLflow's own rows, last and on request: only of entities whose locations are verified to be empty.

A row is locked and its stage read again in the transaction that deletes it: what was restored meanwhile stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from mlflow_artifact_gc import database
from mlflow_artifact_gc.columns import Columns
from mlflow_artifact_gc.errors import DatabaseUnusable
from mlflow_artifact_gc.locations import Destination
from mlflow_artifact_gc.model import Decision, Entity, EntityKind, Tombstone
from mlflow_artifact_gc.policy import place_of
from mlflow_artifact_gc.references import DELETED, TrackingDatabase

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from mlflow_artifact_gc.policy import Scope

_BATCH: Final = 50
"""Rows of one transaction: on SQLite it must stay short, because MLflow's users wait for it."""
_ROWS: Final = {
    EntityKind.RUN: ("runs", "run_uuid"),
    EntityKind.LOGGED_MODEL: ("logged_models", "model_id"),
    EntityKind.TRACE: ("trace_info", "request_id"),
}
_CHILDREN: Final = {
    EntityKind.RUN: (
        ("metrics", "run_uuid"),
        ("latest_metrics", "run_uuid"),
        ("params", "run_uuid"),
        ("tags", "run_uuid"),
    ),
    EntityKind.LOGGED_MODEL: (
        ("logged_model_metrics", "model_id"),
        ("logged_model_params", "model_id"),
        ("logged_model_tags", "model_id"),
    ),
    EntityKind.TRACE: (
        ("span_metrics", "trace_id"),
        ("spans", "trace_id"),
        ("assessments", "trace_id"),
        ("trace_metrics", "request_id"),
        ("trace_request_metadata", "request_id"),
        ("trace_tags", "request_id"),
    ),
}
"""Children first: the foreign keys of older versions of MLflow do not cascade."""
_LINKS: Final = (
    ("inputs", "source_id"),
    ("inputs", "destination_id"),
    ("entity_associations", "source_id"),
    ("entity_associations", "destination_id"),
)
"""Rows that name ids without a foreign key: 'mlflow gc' leaves them behind."""
_OF_EXPERIMENT: Final = (
    "sql_trace_rollup_rebuild_queue",
    "sql_trace_metric_daily_rollups",
    "sql_span_cost_daily_rollups",
    "sql_assessment_daily_rollups",
    "datasets",
    "experiment_tags",
)
"""The rollups have no foreign key on purpose, and SQLite uses ids of experiments again (sqlalchemy_store.py)."""


class Eraser:
    """Deletes rows of one database. Knows which tables this version of MLflow has."""

    def __init__(self, tracked: TrackingDatabase, destination: Destination) -> None:
        self._tracked = tracked
        self._destination = destination
        self._engine = tracked.engine
        names = {name for name, _ in _ROWS.values()} | {name for name, _ in _LINKS} | {"experiments", "input_tags"}
        names |= {name for children in _CHILDREN.values() for name, _ in children} | set(_OF_EXPERIMENT)
        with database.reading(self._engine) as connection:
            self._columns = Columns.probe(connection, *names)

    def erase(self, verified: Mapping[Entity, Sequence[Decision]]) -> set[Entity]:
        """Delete the rows of those entities that are deleted as planned; returns those whose rows are gone.

        A batch that the database refuses is tried again row by row: what something unknown refers to stays.

        Args:
            verified: each entity with all its lines of the plan, every one of them verified.
        """
        gone: set[Entity] = set()
        by_kind: defaultdict[EntityKind, list[Entity]] = defaultdict(list)
        for entity in verified:
            by_kind[entity.kind].append(entity)
        # Logged models and traces first: runs and experiments are referred to by them.
        for kind in (EntityKind.TRACE, EntityKind.LOGGED_MODEL, EntityKind.RUN):
            for batch in _batches(by_kind[kind], _BATCH):
                gone |= self._erase_batch(kind, {entity: verified[entity] for entity in batch})
        return gone

    def _erase_batch(self, kind: EntityKind, batch: Mapping[Entity, Sequence[Decision]]) -> set[Entity]:
        try:
            with database.writing(self._engine) as connection:
                return self._erase_rows(connection, kind, batch)
        except DatabaseUnusable:
            if len(batch) == 1:
                return set()
            return {gone for entity, lines in batch.items() for gone in self._erase_batch(kind, {entity: lines})}

    def _erase_rows(
        self, connection: Connection, kind: EntityKind, batch: Mapping[Entity, Sequence[Decision]]
    ) -> set[Entity]:
        self._lock(connection, kind, list(batch))
        chosen = self._as_planned(connection, batch)
        if kind is EntityKind.RUN:
            chosen = self._without_metrics_of_models(connection, chosen)
            chosen = self._without_models_that_follow(connection, chosen)
        ids = [entity.id for entity in chosen]
        if not ids:
            return set()
        if self._columns.has("input_tags") and self._columns.has("inputs"):
            self._delete_input_tags(connection, ids)
        name, column = _ROWS[kind]
        for child, key in (*_LINKS, *_CHILDREN[kind], (name, column)):
            if self._columns.has(child, key):
                table = self._columns.table(child)
                connection.execute(sa.delete(table).where(table.c[key].in_(ids)))
        return set(chosen)

    def _as_planned(self, connection: Connection, batch: Mapping[Entity, Sequence[Decision]]) -> list[Entity]:
        """Those that are deleted since the very date, and at the very places, that were planned and verified."""
        stones: defaultdict[str, list[Tombstone]] = defaultdict(list)
        for stone in self._tracked.on(connection).tombstones(batch):
            stones[stone.entity.id].append(stone)
        return [entity for entity, lines in batch.items() if self._same(stones[entity.id], lines)]

    def _same(self, stones: Sequence[Tombstone], lines: Sequence[Decision]) -> bool:
        places = {line.location for line in lines}
        dates = {line.deleted_ms for line in lines}
        return bool(stones) and all(
            stone.deleted_ms in dates and place_of(stone, self._destination).location in places for stone in stones
        )

    def _without_metrics_of_models(self, connection: Connection, entities: Sequence[Entity]) -> list[Entity]:
        """A logged model that stays keeps its metrics, and they refer to the run that logged them."""
        if not self._columns.has("logged_model_metrics", "run_id"):
            return list(entities)
        metrics = self._columns.table("logged_model_metrics")
        ids = [entity.id for entity in entities]
        query = sa.select(metrics.c.run_id).where(metrics.c.run_id.in_(ids)).distinct()
        needed = set(connection.execute(query).scalars())
        return [entity for entity in entities if entity.id not in needed]

    def _without_models_that_follow(self, connection: Connection, entities: Sequence[Entity]) -> list[Entity]:
        """A logged model that follows its run is a tombstone by that run's row alone: the row goes after the model."""
        if not self._tracked.models_follow_run or not self._columns.has("logged_models", "source_run_id"):
            return list(entities)
        models = self._columns.table("logged_models")
        ids = [entity.id for entity in entities]
        needed = set(
            connection.execute(sa.select(models.c.source_run_id).where(models.c.source_run_id.in_(ids))).scalars()
        )
        return [entity for entity in entities if entity.id not in needed]

    def _lock(self, connection: Connection, kind: EntityKind, batch: Sequence[Entity]) -> None:
        experiments = self._columns.table("experiments")
        of = sorted({int(entity.experiment_id) for entity in batch})
        # Not against the key: a run can be made in a live experiment meanwhile. (MySQL: not against who reads it too.)
        shared = self._engine.dialect.name == "mysql"
        connection.execute(
            sa.select(experiments.c.experiment_id)
            .where(experiments.c.experiment_id.in_(of))
            .with_for_update(key_share=True, read=shared)
        )
        name, column = _ROWS[kind]
        table = self._columns.table(name)
        ids = sorted(entity.id for entity in batch)
        connection.execute(sa.select(table.c[column]).where(table.c[column].in_(ids)).with_for_update())

    def _delete_input_tags(self, connection: Connection, ids: Sequence[str]) -> None:
        inputs, tags = self._columns.table("inputs"), self._columns.table("input_tags")
        mine = sa.select(inputs.c.input_uuid).where(
            sa.or_(inputs.c.source_id.in_(ids), inputs.c.destination_id.in_(ids))
        )
        connection.execute(sa.delete(tags).where(tags.c.input_uuid.in_(mine)))

    def erase_experiments(self, scope: Scope, cutoff_ms: int) -> list[str]:
        """Delete soft-deleted experiments in ``scope`` that nothing is left of; returns their ids.

        One that still has a run, logged model or trace stays, one that somebody holds or has tagged, and one that the
        database does not let go.
        """
        with database.reading(self._engine) as connection:
            empty = list(self._empty_experiments(connection, scope, cutoff_ms))
        gone: list[str] = []
        for id_ in empty:
            try:
                with database.writing(self._engine) as connection:
                    if self._erase_experiment(connection, id_, scope, cutoff_ms):
                        gone.append(str(id_))
            except DatabaseUnusable:
                continue  # Something that we do not know refers to it: it stays.
        return gone

    def _empty_experiments(
        self, connection: Connection, scope: Scope, cutoff_ms: int, only: int | None = None
    ) -> Iterator[int]:
        experiments = self._columns.table("experiments")
        has_workspace = self._columns.has("experiments", "workspace")
        workspace = experiments.c.workspace if has_workspace else sa.literal("default")
        query = sa.select(experiments.c.experiment_id, workspace).where(
            experiments.c.lifecycle_stage == DELETED, experiments.c.last_update_time <= cutoff_ms
        )
        if only is not None:
            query = query.where(experiments.c.experiment_id == only)
        for name, _ in _ROWS.values():
            if self._columns.has(name):
                table = self._columns.table(name)
                query = query.where(~sa.exists().where(table.c.experiment_id == experiments.c.experiment_id))
        held = self._tracked.on(connection).experiments_held(None if only is None else str(only))
        for id_, of_workspace in connection.execute(query).all():
            if scope.covers_experiment(str(id_), of_workspace) and str(id_) not in held:
                yield int(id_)

    def _erase_experiment(self, connection: Connection, id_: int, scope: Scope, cutoff_ms: int) -> bool:
        experiments = self._columns.table("experiments")
        mine = experiments.c.experiment_id == id_
        connection.execute(sa.select(experiments.c.experiment_id).where(mine).with_for_update())
        if id_ not in self._empty_experiments(connection, scope, cutoff_ms, only=id_):
            return False
        for name in _OF_EXPERIMENT:
            if self._columns.has(name, "experiment_id"):
                table = self._columns.table(name)
                connection.execute(sa.delete(table).where(table.c.experiment_id == id_))
        if self._columns.has("entity_associations"):
            links = self._columns.table("entity_associations")
            ends = ((links.c.source_type, links.c.source_id), (links.c.destination_type, links.c.destination_id))
            for type_, end in ends:
                connection.execute(sa.delete(links).where(type_ == "experiment", end == str(id_)))
        connection.execute(sa.delete(experiments).where(mine))
        return True


def _batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
