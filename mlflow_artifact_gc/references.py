"""Reads MLflow's tables and the registry's: what is soft-deleted, and who still points where. Never writes.

Columns are probed, MLflow's version is not asked: workspaces came with 3.10, logged models with 3.0. Rows that only
name their own place are grouped in the database by that place without the row's id: a table of a million runs answers
with a line per experiment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from mlflow_artifact_gc import database, holds
from mlflow_artifact_gc.columns import ROWS_AT_ONCE, Columns, in_chunks, one_text
from mlflow_artifact_gc.errors import ArtifactGcError, ReferencesIncomplete
from mlflow_artifact_gc.keeping import KEEP, Hold, HoldKind, kept_by_tag
from mlflow_artifact_gc.locations import DEFAULT_WORKSPACE
from mlflow_artifact_gc.model import Entity, EntityKind, Reference, Strength, Tombstone
from mlflow_artifact_gc.packed import Row, Stones
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.protection import Sieve, texts_in
from mlflow_artifact_gc.registry import Registered, Registry

ID_MARK: Final = "\x1f"
"""Stands for a row's own id in a text; no URI holds such a character."""
DELETED: Final = "deleted"
_FEW_IDS: Final = 2_000
"""So many are looked for one by one in a column without an index; for more, all of it is read."""
_DIGITS: Final = 10
"""From so many digits on, a number is no experiment's id: MLflow's are 32 bits wide."""
_TRACE_TAGS: Final = ("mlflow.artifactLocation", "mlflow.trace.archiveLocation")
"""MLflow's tags that hold a trace's places (mlflow/tracing/constant.py)."""
_READY: Final = 2
"""A logged model's status once its files are written (LOGGED_MODEL_READY in mlflow's service.proto)."""
_ARTIFACT_TAGS: Final = ("mlflow.log-model.history", "mlflow.loggedArtifacts", "mlflow.loggedImages")
"""MLflow's tags on runs that tell of artifacts which it has written."""
_MADE_IN: Final = "mlflow.sourceRun"
"""MLflow's metadata of a trace that was made in a run (mlflow/tracing/constant.py)."""
_TRACKING: Final = (
    "experiments",
    "runs",
    "logged_models",
    "trace_info",
    "trace_tags",
    "datasets",
    "inputs",
    "evaluation_dataset_records",
    "tags",
    "workspaces",
    "experiment_tags",
    "logged_model_tags",
    "trace_request_metadata",
    "entity_associations",
    "artifact_gc_holds",
)


class Tracking:
    """The tracking database, read over one connection."""

    def __init__(self, connection: Connection, columns: Columns, *, models_follow_run: bool) -> None:
        self._connection = connection
        self._columns = columns
        self._models_follow_run = models_follow_run
        self._experiments = self._columns.table("experiments")
        self._runs = self._columns.table("runs")
        self._workspace: sa.ColumnElement[Any] = (
            self._experiments.c.workspace
            if self._columns.has("experiments", "workspace")
            else sa.literal(DEFAULT_WORKSPACE)
        )
        self._experiment_deleted = self._experiments.c.lifecycle_stage == DELETED

    # What is soft-deleted

    def tombstones(self, only: Iterable[Entity] | None = None) -> list[Tombstone]:
        """Every soft-deleted run and logged model, and what a soft-deleted experiment takes along.

        A logged model goes with its experiment (or its run, where the site says so), a trace only with its
        experiment. The date is the run's ``deleted_time``; of a logged model ``last_updated_timestamp_ms`` and of an
        experiment ``last_update_time``, which MLflow sets when it deletes them.

        Args:
            only: these entities alone; those among them that are not deleted are left out.
        """
        return list(self.stones(only))

    def stones(self, only: Iterable[Entity] | None = None) -> Stones:
        """The same in little memory: there may be a million."""
        wanted = None if only is None else _ids_by_kind(only)
        found = Stones()
        for kind, query in sorted(self._tombstone_queries()):
            start = len(found)
            rows: Iterable[Row] = (
                _row(row) for some in _restricted(self._connection, query, kind, wanted) for row in some
            )
            # Only a trace comes twice: once where two of its tags name one place. Of a million runs no keys are made.
            for row in sorted(set(rows), key=lambda row: row[:2]) if kind is EntityKind.TRACE else rows:
                found.add(kind, row)
            if kind is not EntityKind.TRACE:
                found.sort(start)
        return found

    def tombstones_of(self, experiment_ids: Sequence[str]) -> list[Tombstone]:
        """The tombstones of these experiments: a scan of each table, as MLflow's own delete makes one."""
        found: list[Tombstone] = []
        for kind, query in self._tombstone_queries():
            for ids in in_chunks([int(id_) for id_ in experiment_ids]):
                rows = self._connection.execute(query.where(self._experiments.c.experiment_id.in_(ids)))
                found += [_tombstone(kind, row) for row in rows]
        return list(dict.fromkeys(found))

    def following(self, run_ids: Iterable[str]) -> list[Entity]:
        """The logged models that go with these runs, where the site says that they do."""
        if not self._models_follow_run:
            return []
        models = self.models_of_runs(run_ids)
        ids = [model_id for of_run in models.values() for model_id in of_run]
        return [Entity(kind=EntityKind.LOGGED_MODEL, id=id_, experiment_id="") for id_ in ids]

    def _tombstone_queries(self) -> Iterator[tuple[EntityKind, sa.Select[Any]]]:
        runs, experiments = self._runs, self._experiments
        query = self._with_experiment(runs, runs.c.run_uuid, runs.c.artifact_uri, runs.c.deleted_time)
        yield EntityKind.RUN, query.where(runs.c.lifecycle_stage == DELETED)
        if self._columns.has("logged_models"):
            yield EntityKind.LOGGED_MODEL, self._gone_models()
        if self._columns.has("trace_info") and self._columns.has("trace_tags"):
            traces, tags = self._columns.table("trace_info"), self._columns.table("trace_tags")
            query = self._with_experiment(traces, traces.c.request_id, tags.c.value, experiments.c.last_update_time)
            query = query.join(tags, tags.c.request_id == traces.c.request_id)
            yield EntityKind.TRACE, query.where(self._experiment_deleted, tags.c.key.in_(_TRACE_TAGS))

    def _with_experiment(
        self, table: sa.TableClause, id_: Any, uri: Any, deleted_ms: sa.ColumnElement[Any]
    ) -> sa.Select[Any]:
        experiments = self._experiments
        columns = [id_.label("id"), uri, deleted_ms, table.c.experiment_id, self._workspace]
        joined = table.join(experiments, table.c.experiment_id == experiments.c.experiment_id)
        return sa.select(*columns, experiments.c.artifact_location).select_from(joined)

    def _gone_models(self) -> sa.Select[Any]:
        models, runs = self._columns.table("logged_models"), self._runs
        # A model has no restore of its own: its own mark stands, whatever happens to its experiment.
        date = sa.case(
            (models.c.lifecycle_stage == DELETED, models.c.last_updated_timestamp_ms),
            (self._experiment_deleted, self._experiments.c.last_update_time),
            else_=runs.c.deleted_time,
        )
        query = self._with_experiment(models, models.c.model_id, models.c.artifact_location, date)
        query = query.join(runs, runs.c.run_uuid == models.c.source_run_id, isouter=True)
        return query.where(self._model_gone(models))

    def _model_gone(self, models: sa.TableClause) -> sa.ColumnElement[bool]:
        gone = [models.c.lifecycle_stage == DELETED, self._experiment_deleted]
        if self._models_follow_run:
            gone.append(sa.and_(self._runs.c.run_uuid.is_not(None), self._runs.c.lifecycle_stage == DELETED))
        return sa.or_(*gone)

    def entity_rows(self) -> dict[tuple[EntityKind, str], int]:
        """How many entities, live and deleted, each experiment has of a kind: what the brakes take a share of."""
        return self.census().rows

    def census(self) -> Census:
        """``entity_rows``, and whether anything is deleted at all: one scan of each table."""
        rows: dict[tuple[EntityKind, str], int] = {}
        stages = sa.select(sa.func.count()).select_from(self._experiments).where(self._experiment_deleted)
        deleted = int(self._connection.execute(stages).scalar_one())
        for kind, name, _ in _ID_COLUMNS:
            if self._columns.has(name):
                table = self._columns.table(name)
                mine: sa.ColumnElement[Any] = sa.literal(0)
                if kind is not EntityKind.TRACE:
                    mine = sa.func.sum(sa.case((table.c.lifecycle_stage == DELETED, 1), else_=0))
                query = sa.select(table.c.experiment_id, sa.func.count(), mine).group_by(table.c.experiment_id)
                for id_, count, dead in self._connection.execute(query):
                    rows[kind, str(id_)] = count
                    deleted += int(dead)
        return Census(rows=rows, deleted=bool(deleted))

    def samples(self, experiment_ids: Sequence[str], *, limit: int = 200) -> list[Tombstone]:
        """Some rows of these experiments, live or deleted: an object of one of them proves where the artifacts lie."""
        runs = self._runs
        query = self._with_experiment(runs, runs.c.run_uuid, runs.c.artifact_uri, runs.c.deleted_time)
        found: list[Tombstone] = []
        for ids in in_chunks([int(id_) for id_ in experiment_ids]):
            rows = self._connection.execute(query.where(runs.c.experiment_id.in_(ids)).limit(limit))
            found += [_tombstone(EntityKind.RUN, row) for row in rows]
        if len(found) < limit:
            found += [_tombstone(EntityKind.RUN, row) for row in self._connection.execute(query.limit(limit))]
        return found

    def models_of_deleted_runs(self, *, most: int) -> KeptModels:
        """Live logged models of deleted runs: kept, because MLflow still shows them. The rows of ``most`` at most."""
        if not self._columns.has("logged_models"):
            return KeptModels()
        models, runs = self._columns.table("logged_models"), self._runs
        query = self._with_experiment(models, models.c.model_id, models.c.artifact_location, runs.c.deleted_time)
        query = query.join(runs, runs.c.run_uuid == models.c.source_run_id)
        query = query.where(runs.c.lifecycle_stage == DELETED, sa.not_(self._model_gone(models)))
        rows = self._connection.execute(query.limit(most + 1)).all()
        count = len(rows)
        if count > most:
            count = self._connection.execute(query.with_only_columns(sa.func.count())).scalar_one()
        return KeptModels(count=count, some=tuple(_tombstone(EntityKind.LOGGED_MODEL, row) for row in rows[:most]))

    # Who points where

    def references(self) -> Iterator[Reference]:
        """What the rows of the tracking database protect, live ones and tombstones alike."""
        yield from self._own_places()
        yield from self._experiment_places()
        yield from self._dataset_sources()
        yield from self._attachments()
        yield from self._inputs_and_outputs()

    def own_places(self) -> list[Reference]:
        """Where the rows say that their own artifacts lie: one for all that differ in their ids alone."""
        return list(self._own_places())

    def _own_places(self) -> Iterator[Reference]:
        runs = self._runs
        yield from self._grouped("run", runs, runs.c.run_uuid, runs.c.artifact_uri, runs.c.lifecycle_stage == DELETED)
        if self._columns.has("logged_models"):
            models = self._columns.table("logged_models")
            gone = sa.or_(models.c.lifecycle_stage == DELETED, self._experiment_deleted)
            yield from self._grouped("logged model", models, models.c.model_id, models.c.artifact_location, gone)
        if self._columns.has("trace_info") and self._columns.has("trace_tags"):
            traces, tags = self._columns.table("trace_info"), self._columns.table("trace_tags")
            joined = traces.join(tags, tags.c.request_id == traces.c.request_id)
            where = tags.c.key.in_(_TRACE_TAGS)
            id_, gone = traces.c.request_id, self._experiment_deleted
            yield from self._grouped("trace", traces, id_, tags.c.value, gone, joined=joined, where=where)

    def _grouped(
        self,
        kind: str,
        table: sa.TableClause,
        id_: sa.ColumnElement[str],
        uri: sa.ColumnElement[str],
        deleted: sa.ColumnElement[bool],
        *,
        joined: sa.FromClause | None = None,
        where: sa.ColumnElement[bool] | None = None,
    ) -> Iterator[Reference]:
        """A reference for each place that rows of ``table`` have in common, when their own ids are taken out."""
        experiments = self._experiments
        slash = sa.literal("/")
        # Whole segments alone: an id may be short, and be found inside another one.
        place = sa.func.replace(uri, slash + id_ + slash, f"/{ID_MARK}/").label("place")
        stage = sa.case((deleted, 1), else_=0).label("stage")
        workspace = self._workspace.label("of_workspace")
        rows = sa.join(
            table if joined is None else joined, experiments, table.c.experiment_id == experiments.c.experiment_id
        )
        inner = sa.select(place, stage, workspace, id_.label("id")).select_from(rows).where(uri.is_not(None))
        source = (inner if where is None else inner.where(where)).subquery()
        shown: tuple[Any, ...] = (source.c.place, source.c.stage, source.c.of_workspace)
        groups = [database.exactly(column, self._connection) for column in (source.c.place, source.c.of_workspace)]
        if self._connection.dialect.name == "mysql":  # of what is the same, byte by byte
            shown = (sa.func.max(source.c.place), source.c.stage, sa.func.max(source.c.of_workspace))
        query = sa.select(*shown, sa.func.count(), sa.func.min(source.c.id)).group_by(*groups, source.c.stage)
        found: Iterable[Any] = self._connection.execute(query)
        for text, is_deleted, of_workspace, count, example in found:
            more = f" and {count - 1:,} beside it" if count > 1 else ""
            yield Reference(
                holder=f"{'deleted ' if is_deleted else ''}{kind} {example}{more}",
                text=text,
                # Behind its own id nothing of another row can lie, unless the other row's text holds that id.
                strength=Strength.AREA if ID_MARK in text else Strength.NAMES,
                workspace=of_workspace,
                live=not is_deleted,
            )

    def _experiment_places(self) -> Iterator[Reference]:
        experiments = self._experiments
        query = sa.select(
            experiments.c.experiment_id, experiments.c.artifact_location, experiments.c.lifecycle_stage, self._workspace
        ).where(experiments.c.artifact_location.is_not(None))
        for id_, text, stage, workspace in self._connection.execute(query):
            yield Reference(
                holder=f"{'deleted ' if stage == DELETED else ''}experiment {id_}, artifact_location",
                text=text,
                strength=Strength.AREA,
                workspace=workspace,
                live=stage != DELETED,
            )

    def _dataset_sources(self) -> Iterator[Reference]:
        if not self._columns.has("datasets") or not self._columns.has("inputs"):
            return
        datasets, inputs, runs = self._columns.table("datasets"), self._columns.table("inputs"), self._runs
        joined = datasets.join(inputs, inputs.c.source_id == datasets.c.dataset_uuid).join(
            runs, runs.c.run_uuid == inputs.c.destination_id
        )
        query = sa.select(datasets.c.dataset_uuid, datasets.c.name, datasets.c.dataset_source, runs.c.run_uuid)
        query = query.select_from(joined).where(sa.func.coalesce(runs.c.lifecycle_stage, "") != DELETED)
        seen: set[str] = set()
        for uuid, name, source, run_id in self._connection.execute(query):
            if uuid in seen:
                continue
            seen.add(uuid)
            for text in texts_in(source or ""):
                yield Reference(holder=f"dataset {name} of run {run_id}, source", text=text)

    def _attachments(self) -> Iterator[Reference]:
        """Records of evaluation datasets that show an attachment of a trace: it is linked, not copied."""
        if not self._columns.has("evaluation_dataset_records", "dataset_id"):
            return
        records = self._columns.table("evaluation_dataset_records")
        texts = [
            sa.cast(records.c[name], sa.Text)
            for name in ("inputs", "outputs", "expectations")
            if self._columns.has("evaluation_dataset_records", name)
        ]
        holds = sa.or_(*(text.contains("mlflow-attachment:") for text in texts))
        rows: Iterable[Any] = self._connection.execute(sa.select(records.c.dataset_id, *texts).where(holds))
        for dataset_id, *documents in rows:
            for text in (text for document in documents for text in texts_in(document or "")):
                if "mlflow-attachment:" in text:
                    yield Reference(holder=f"evaluation dataset {dataset_id}, attachment", text=text)

    def _inputs_and_outputs(self) -> Iterator[Reference]:
        """Logged models that are gone and that live runs have used or made.

        Whoever deletes a model by itself means what its own run says of it: that link does not keep it, others do.
        """
        if not (self._columns.has("inputs") and self._columns.has("logged_models")):
            return
        inputs, models = self._columns.table("inputs"), self._columns.table("logged_models")
        user = sa.alias(self._columns.table("runs"), "using")
        links = {"RUN_INPUT": "input", "RUN_OUTPUT": "output"}
        joined = (
            self._gone_models_join(models)
            .join(inputs, inputs.c.destination_id == models.c.model_id)
            .join(user, user.c.run_uuid == inputs.c.source_id)
        )
        own = sa.and_(models.c.lifecycle_stage == DELETED, models.c.source_run_id == inputs.c.source_id)
        query = sa.select(models.c.model_id, inputs.c.source_id, inputs.c.source_type).select_from(joined)
        query = query.where(
            self._model_gone(models),
            inputs.c.source_type.in_(sorted(links)),
            sa.func.coalesce(user.c.lifecycle_stage, "") != DELETED,
            sa.func.coalesce(sa.case((own, 1), else_=0), 0) == 0,
        )
        rows: Iterable[Any] = self._connection.execute(query)
        for model_id, run_id, link in rows:
            yield Reference(holder=f"run {run_id}, {links[link]}", text=f"models:/{model_id}")

    def _gone_models_join(self, models: sa.TableClause) -> sa.Join:
        """Logged models, their experiments and the runs that they were made in: what ``_model_gone`` asks."""
        experiments, runs = self._experiments, self._runs
        joined = models.join(experiments, models.c.experiment_id == experiments.c.experiment_id)
        return joined.join(runs, runs.c.run_uuid == models.c.source_run_id, isouter=True)

    # What people want kept

    def holds(self) -> list[Hold]:
        """What is held now; none where our tables are not there."""
        if not self._columns.has("artifact_gc_holds"):
            return []
        return holds.active(self._connection, self._now_ms)

    def held(self) -> Iterator[Reference]:
        """What the holds protect, but for those on registered models: what these have, the registry tells."""
        of_runs: dict[str, str] = {}
        for hold in self.holds():
            match hold.kind:
                case HoldKind.RUN:
                    of_runs.setdefault(hold.target, hold.holder)
                    # As ``runs:``, so that its logged models are meant too.
                    yield Reference(holder=hold.holder, text=f"runs:/{hold.target}")
                case HoldKind.EXPERIMENT:
                    yield Reference(holder=hold.holder, text="", experiment_id=hold.target)
                case HoldKind.LOGGED_MODEL:
                    yield Reference(holder=hold.holder, text=f"models:/{hold.target}")
                case HoldKind.LOCATION:
                    yield Reference(holder=hold.holder, text=hold.target)
                case HoldKind.REGISTERED_MODEL:
                    pass
        for query, run_id in self._traces_of_runs():
            for ids in in_chunks(sorted(of_runs)):
                for trace_id, of_run in self._connection.execute(query.where(run_id.in_(ids))):
                    yield Reference(holder=of_runs[of_run], text=trace_id)

    def kept_by_tags(self) -> Iterator[Reference]:
        """What keep tags protect among what is deleted: their number, not that of all tags, is what this costs."""
        tags = self._columns.table("tags")
        keep = tags.c.key == KEEP
        if self._columns.has("tags"):
            runs = tags.join(self._runs, self._runs.c.run_uuid == tags.c.run_uuid)
            query = sa.select(tags.c.run_uuid, tags.c.run_uuid, tags.c.value).select_from(runs)
            yield from self._tagged("run", query.where(keep, self._runs.c.lifecycle_stage == DELETED))
            for traces, run_id in self._traces_of_runs():
                query = traces.join(tags, tags.c.run_uuid == run_id).where(keep, self._experiment_deleted)
                yield from self._tagged("run", query.add_columns(tags.c.value))
        if self._columns.has("experiment_tags"):
            yield from self.kept_experiments()
        yield from self._kept_models(tags)
        yield from self._kept_traces()

    def keep_tags_of(self, entities: Iterable[Entity]) -> list[Reference]:
        """What the keep tags of these, and of the runs that they were made in, protect: live ones too."""
        tags = self._columns.table("tags")
        wanted = _ids_by_kind(entities)
        queries: list[tuple[EntityKind, str, sa.Select[Any]]] = []
        if self._columns.has("tags"):
            keep = tags.c.key == KEEP
            own = sa.select(tags.c.run_uuid.label("id"), tags.c.run_uuid, tags.c.value).where(keep)
            queries.append((EntityKind.RUN, "run", own))
            if self._columns.has("logged_models"):
                models = self._columns.table("logged_models")
                made = models.join(tags, tags.c.run_uuid == models.c.source_run_id)
                of_run = sa.select(models.c.model_id.label("id"), tags.c.run_uuid, tags.c.value).select_from(made)
                queries.append((EntityKind.LOGGED_MODEL, "run", of_run.where(keep)))
            for traces, run_id in self._traces_of_runs():
                of_run = traces.join(tags, tags.c.run_uuid == run_id).where(keep).add_columns(tags.c.value)
                queries.append((EntityKind.TRACE, "run", of_run))
        for kind, name, id_, key, value in _TAGS_OF_OTHERS:
            if self._columns.has(name):
                table = self._columns.table(name)
                own = sa.select(table.c[id_].label("id"), table.c[id_], table.c[value]).where(table.c[key] == KEEP)
                queries.append((kind, kind.value.replace("_", " "), own))
        return [
            found
            for kind, of, query in queries
            for rows in _restricted(self._connection, query, kind, wanted)
            for found in self._of_tags(of, rows)
        ]

    def kept_experiments(self, experiment_ids: Iterable[str] | None = None) -> list[Reference]:
        """What the keep tags of experiments protect: of these, or of all."""
        if not self._columns.has("experiment_tags"):
            return []
        tags = self._columns.table("experiment_tags")
        query = sa.select(tags.c.experiment_id, tags.c.value).where(tags.c.key == KEEP)
        portions = [query]
        if experiment_ids is not None:
            ids = sorted(_numbers(set(experiment_ids)))
            portions = [query.where(tags.c.experiment_id.in_(some)) for some in in_chunks(ids)]
        return [
            Reference(holder=holder, text="", experiment_id=str(id_))
            for portion in portions
            for id_, value in self._connection.execute(portion)
            if (holder := kept_by_tag(f"experiment {id_}", value, self._now_ms))
        ]

    def experiments_held(self, only: str | None = None) -> dict[str, str]:
        """Which experiments are to be kept, themselves included, by a hold or a keep tag, and by whom: one, or all."""
        tagged = self.kept_experiments(None if only is None else [only])
        found = {one.experiment_id: one.holder for one in tagged}
        return found | {one.target: one.holder for one in self.holds() if one.kind is HoldKind.EXPERIMENT}

    def _kept_models(self, tags_of_runs: sa.TableClause) -> Iterator[Reference]:
        if not self._columns.has("logged_models"):
            return
        models = self._columns.table("logged_models")
        gone = self._gone_models_join(models)
        if self._columns.has("logged_model_tags"):
            tags = self._columns.table("logged_model_tags")
            mine = sa.and_(tags.c.model_id == models.c.model_id, tags.c.tag_key == KEEP)
            query = sa.select(models.c.model_id, models.c.model_id, tags.c.tag_value).select_from(gone.join(tags, mine))
            yield from self._tagged("logged model", query.where(self._model_gone(models)))
        if self._columns.has("tags"):
            of_run = sa.and_(tags_of_runs.c.run_uuid == models.c.source_run_id, tags_of_runs.c.key == KEEP)
            columns = (models.c.model_id, models.c.source_run_id, tags_of_runs.c.value)
            query = sa.select(*columns).select_from(gone.join(tags_of_runs, of_run))
            yield from self._tagged("run", query.where(self._model_gone(models)))

    def _kept_traces(self) -> Iterator[Reference]:
        if self._columns.has("trace_info") and self._columns.has("trace_tags"):
            traces, tags = self._columns.table("trace_info"), self._columns.table("trace_tags")
            mine = sa.and_(tags.c.request_id == traces.c.request_id, tags.c.key == KEEP)
            query = sa.select(traces.c.request_id, traces.c.request_id, tags.c.value)
            query = query.select_from(self._with_experiments(traces).join(tags, mine))
            yield from self._tagged("trace", query.where(self._experiment_deleted))

    def _with_experiments(self, traces: sa.TableClause) -> sa.Join:
        return traces.join(self._experiments, traces.c.experiment_id == self._experiments.c.experiment_id)

    def _traces_of_runs(self) -> Iterator[tuple[sa.Select[Any], sa.ColumnElement[Any]]]:
        """Queries of traces with the run that each was made in, or is linked to; and its id."""
        if not self._columns.has("trace_info"):
            return
        traces = self._columns.table("trace_info")
        id_ = traces.c.request_id.label("id")
        if self._columns.has("trace_request_metadata"):
            made = self._columns.table("trace_request_metadata")
            mine = sa.and_(made.c.request_id == traces.c.request_id, made.c.key == _MADE_IN)
            yield (
                sa.select(id_, made.c.value).select_from(self._with_experiments(traces).join(made, mine)),
                made.c.value,
            )
        if self._columns.has("entity_associations"):
            links = self._columns.table("entity_associations")
            mine = sa.and_(
                links.c.source_type == "trace",
                links.c.source_id == traces.c.request_id,
                links.c.destination_type == "run",
            )
            query = sa.select(id_, links.c.destination_id)
            yield query.select_from(self._with_experiments(traces).join(links, mine)), links.c.destination_id

    def _tagged(self, kind: str, query: sa.Select[Any]) -> Iterator[Reference]:
        """A reference for each row of an entity's id, the id of whose tag it is, and the tag's value."""
        return self._of_tags(kind, self._connection.execute(query))

    def _of_tags(self, kind: str, rows: Iterable[Any]) -> Iterator[Reference]:
        for id_, of, value in rows:
            if holder := kept_by_tag(f"{kind} {of}", value, self._now_ms):
                yield Reference(holder=holder, text=id_)

    @cached_property
    def _now_ms(self) -> int:
        return database.clock_ms(self._connection)

    def models_of_runs(self, run_ids: Iterable[str]) -> dict[str, list[str]]:
        """The logged models of these runs: ``runs:/<run>/model`` may mean one of them (runs_artifact_repo.py)."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        if self._columns.has("logged_models"):
            models = self._columns.table("logged_models")
            query = sa.select(models.c.source_run_id, models.c.model_id)
            wanted = set(run_ids)
            by_run = models.c.source_run_id
            # The column has no index: each query reads the whole table, so beyond a few one reads all of it.
            few = len(wanted) <= _FEW_IDS
            portions = [query.where(by_run.in_(ids)) for ids in in_chunks(sorted(wanted))]
            for portion in portions if few else [query.where(by_run.is_not(None))]:
                for run_id, model_id in self._connection.execute(portion.execution_options(yield_per=ROWS_AT_ONCE)):
                    if few or run_id in wanted:
                        found[run_id].append(model_id)
        return dict(found)

    def along_with(self, run_ids: Iterable[str]) -> set[str]:
        """Ids of the logged models and traces of these runs: a hold on a run is one on them too."""
        wanted = sorted(set(run_ids))
        found = {id_ for models in self.models_of_runs(wanted).values() for id_ in models}
        for query, run_id in self._traces_of_runs():
            for ids in in_chunks(wanted):
                found.update(row[0] for row in self._connection.execute(query.where(run_id.in_(ids))))
        return found

    def owners(self, ids: Iterable[str]) -> dict[str, str]:
        """Which of ``ids`` are runs, logged models or traces of this database, and what to call them."""
        found: dict[str, str] = {}
        wanted = sorted(set(ids))
        for kind, name, column in _ID_COLUMNS:
            if not self._columns.has(name):
                continue
            table = self._columns.table(name)
            for chunk in in_chunks(wanted):
                rows = self._connection.execute(sa.select(table.c[column]).where(table.c[column].in_(chunk)))
                found.update({row[0]: f"{kind.value.replace('_', ' ')} {row[0]}" for row in rows})
        return found

    def rows_of(self, ids: Iterable[str]) -> list[Tombstone]:
        """The rows of those of ``ids`` that are runs, logged models or traces, live or deleted: one for each place."""
        runs = self._runs
        queries = [(EntityKind.RUN, self._with_experiment(runs, runs.c.run_uuid, runs.c.artifact_uri, sa.null()))]
        if self._columns.has("logged_models"):
            models = self._columns.table("logged_models")
            query = self._with_experiment(models, models.c.model_id, models.c.artifact_location, sa.null())
            queries.append((EntityKind.LOGGED_MODEL, query))
        if self._columns.has("trace_info") and self._columns.has("trace_tags"):
            traces, tags = self._columns.table("trace_info"), self._columns.table("trace_tags")
            query = self._with_experiment(traces, traces.c.request_id, tags.c.value, sa.null())
            query = query.join(tags, tags.c.request_id == traces.c.request_id)
            queries.append((EntityKind.TRACE, query.where(tags.c.key.in_(_TRACE_TAGS)).distinct()))
        wanted = sorted(set(ids))
        return [
            _tombstone(kind, row)
            for kind, query in queries
            for rows in _restricted(self._connection, query, kind, {kind: wanted})
            for row in rows
        ]

    def experiments(self) -> list[Experiment]:
        """Every experiment, live or deleted."""
        experiments = self._experiments
        name = experiments.c.name if self._columns.has("experiments", "name") else sa.literal("")
        query = sa.select(experiments.c.experiment_id, experiments.c.artifact_location, self._workspace, name)
        rows = self._connection.execute(query)
        return [Experiment(str(id_), uri or "", workspace, called or "") for id_, uri, workspace, called in rows]

    def workspaces(self) -> dict[str, str]:
        """The workspaces by name, each with its own artifact root (empty where it has none)."""
        if not self._columns.has("workspaces", "name"):
            return {}
        table = self._columns.table("workspaces")
        has_root = self._columns.has("workspaces", "default_artifact_root")
        query = sa.select(table.c.name, table.c.default_artifact_root if has_root else sa.literal(""))
        return {name: root or "" for name, root in self._connection.execute(query)}

    def workspaces_in_use(self) -> set[str]:
        """The names of those that are there, and of those that an experiment names."""
        found = set(self.workspaces())
        if self._columns.has("experiments", "workspace"):
            table = self._columns.table("experiments")
            found.update(self._connection.scalars(sa.select(table.c.workspace).distinct()))
        return found

    def page(self, kind: EntityKind, after: str, size: int) -> tuple[list[OwnRow], str]:
        """Rows of a kind, live and deleted, in the order of their ids, and the last id (empty: there are no more).

        A page at a time, because on SQLite a long reading makes a user's commit wait.
        """
        (name, column) = next((name, column) for of, name, column in _ID_COLUMNS if of is kind)
        if not self._columns.has(name):
            return [], ""
        table = self._runs if kind is EntityKind.RUN else self._columns.table(name)
        ids = sa.select(table.c[column].label("id")).where(table.c[column] > after).order_by(table.c[column])
        part = ids.limit(size).subquery()
        found = list(self._connection.execute(self._page_query(kind, table, part)))
        rows = [
            OwnRow(tombstone=_tombstone(kind, row), owner=owner or "", full=bool(full)) for *row, owner, full in found
        ]
        # In the database's own order, which is not ours.
        return rows, rows[-1].tombstone.entity.id if rows else ""

    def _page_query(self, kind: EntityKind, table: sa.TableClause, part: sa.Subquery) -> sa.Select[Any]:
        runs, experiments, id_ = self._runs, self._experiments, part.c.id
        user: sa.ColumnElement[Any] = runs.c.user_id if self._columns.has("runs", "user_id") else sa.literal("")
        joined: sa.FromClause
        shown: tuple[sa.ColumnElement[Any], ...] = (sa.null(), sa.literal(""), sa.literal(0))
        if kind is EntityKind.RUN:
            joined = part.join(table, table.c.run_uuid == id_)
            shown = (table.c.artifact_uri, user, sa.literal(0))
        elif kind is EntityKind.LOGGED_MODEL:
            joined = part.join(table, table.c.model_id == id_)
            joined = joined.join(runs, runs.c.run_uuid == table.c.source_run_id, isouter=True)
            has_status = self._columns.has("logged_models", "status")
            full: sa.ColumnElement[Any] = sa.literal(0)
            if has_status:
                full = sa.case((table.c.status == _READY, 1), else_=0)
            shown = (table.c.artifact_location, user, full)
        else:
            joined = part.join(table, table.c.request_id == id_)
            if self._columns.has("trace_tags"):
                tags = self._columns.table("trace_tags")
                of_place = sa.and_(tags.c.request_id == id_, tags.c.key.in_(_TRACE_TAGS))
                joined = joined.join(tags, of_place, isouter=True)
                # Archived spans are nowhere else.
                archived: sa.ColumnElement[Any] = sa.case((tags.c.key == _TRACE_TAGS[1], 1), else_=0)
                shown = (tags.c.value, sa.literal(""), archived)
        joined = joined.join(experiments, experiments.c.experiment_id == table.c.experiment_id, isouter=True)
        uri, owner, says_so = shown
        workspace = sa.func.coalesce(self._workspace, sa.literal(DEFAULT_WORKSPACE))
        columns = (id_, uri, sa.null(), table.c.experiment_id, workspace, experiments.c.artifact_location)
        return sa.select(*columns, owner, says_so).select_from(joined).order_by(id_)

    def with_logged_artifacts(self, run_ids: Iterable[str]) -> set[str]:
        """Those of these runs whose tags say that MLflow itself wrote artifacts of theirs."""
        if not self._columns.has("tags", "run_uuid"):
            return set()
        tags = self._columns.table("tags")
        query = sa.select(tags.c.run_uuid).where(tags.c.key.in_(_ARTIFACT_TAGS)).distinct()
        found: set[str] = set()
        for ids in in_chunks(sorted(set(run_ids))):
            found.update(self._connection.execute(query.where(tags.c.run_uuid.in_(ids))).scalars())
        return found

    def experiment_stage(self, experiment_id: str) -> tuple[str, int | None]:
        """An experiment's stage, empty if it is not there, and the date that MLflow sets when it deletes it."""
        experiments = self._experiments
        query = sa.select(experiments.c.lifecycle_stage, experiments.c.last_update_time)
        row = self._connection.execute(query.where(experiments.c.experiment_id == int(experiment_id))).one_or_none()
        return (row[0], row[1]) if row else ("", None)

    def runs_of_deleted_experiments(self, workspace: str | None, experiment_ids: Sequence[str]) -> set[str]:
        """The ids of deleted runs in deleted experiments: of one workspace, or of all; of these experiments, if any."""
        runs, experiments = self._runs, self._experiments
        joined = runs.join(experiments, runs.c.experiment_id == experiments.c.experiment_id)
        query = sa.select(runs.c.run_uuid).select_from(joined)
        query = query.where(self._experiment_deleted, runs.c.lifecycle_stage == DELETED)
        if workspace is not None:
            query = query.where(self._workspace == workspace)
        if experiment_ids:
            query = query.where(
                experiments.c.experiment_id.in_([int(id_) for id_ in experiment_ids if id_.isdecimal()])
            )
        return set(self._connection.execute(query).scalars())

    def experiment_uris(self) -> list[tuple[str, str]]:
        """Every experiment's ``artifact_location`` and workspace."""
        query = sa.select(self._experiments.c.artifact_location, self._workspace)
        return [(uri, workspace) for uri, workspace in self._connection.execute(query) if uri]

    def experiment_places(self) -> list[tuple[str, str, str]]:
        """Every experiment's ``artifact_location``, id and workspace, live or deleted."""
        columns = self._experiments.c
        query = sa.select(columns.artifact_location, columns.experiment_id, self._workspace)
        return [(uri, str(id_), workspace) for uri, id_, workspace in self._connection.execute(query) if uri]

    def left_of(self, experiment_id: str) -> list[Entity]:
        """Whose rows, live or deleted, an experiment still has; of traces those that have artifacts."""
        found: list[Entity] = []
        for kind, name, column in _ID_COLUMNS:
            if not self._columns.has(name):
                continue
            table = self._columns.table(name)
            query = sa.select(table.c[column]).where(table.c.experiment_id == int(experiment_id))
            if kind is EntityKind.TRACE:
                tags = self._columns.table("trace_tags")
                placed = tags.c.key.in_(_TRACE_TAGS)
                query = query.where(sa.exists().where(tags.c.request_id == table.c[column], placed))
            found += [
                Entity(kind=kind, id=id_, experiment_id=experiment_id)
                for id_ in self._connection.execute(query.order_by(table.c[column])).scalars()
            ]
        return found

    def known(self, scope: Scope) -> list[str]:
        """What the ids of ``scope`` lack: a sentence for each that is unknown or live, none if all are tombstones."""
        problems: list[str] = []
        for what, name, column, ids in (
            ("run", "runs", "run_uuid", scope.run_ids),
            ("logged model", "logged_models", "model_id", scope.logged_model_ids),
            ("experiment", "experiments", "experiment_id", scope.experiment_ids),
        ):
            stages = self._stages(name, column, ids) if self._columns.has(name) else {}
            for id_ in ids:
                if id_ not in stages:
                    problems.append(f"there is no {what} {id_} in this database")
                # A live experiment is a scope: its deleted runs.
                elif what != "experiment" and stages[id_] != DELETED and not self._goes_along(what, id_):
                    problems.append(f"{what} {id_} is live: delete it in MLflow first")
        return problems

    def unknown(self, kind: HoldKind, ids: Sequence[str]) -> list[str]:
        """Which of ``ids`` are no runs, experiments or logged models of this database, live or deleted."""
        name, column = _HELD_ROWS[kind]
        stages = self._stages(name, column, ids) if self._columns.has(name) else {}
        return [id_ for id_ in ids if id_ not in stages]

    def _stages(self, name: str, column: str, ids: Sequence[str]) -> dict[str, str]:
        table = self._columns.table(name)
        keys: Sequence[Any] = _numbers(ids) if name == "experiments" else ids
        query = sa.select(table.c[column], table.c.lifecycle_stage)
        rows = [
            row
            for chunk in in_chunks(keys)
            for row in self._connection.execute(query.where(table.c[column].in_(chunk)))
        ]
        return {str(id_): stage for id_, stage in rows}

    def _goes_along(self, what: str, id_: str) -> bool:
        entity = Entity(kind=EntityKind.LOGGED_MODEL, id=id_, experiment_id="")
        return what == "logged model" and bool(self.tombstones([entity]))


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment's row."""

    id: str
    uri: str
    workspace: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class OwnRow:
    """A row that may own artifacts; ``tombstone`` has no date, and does not mean that it is deleted.

    ``full``: the row itself says that there are artifacts. ``owner``: the user of the run, or of a model's run.
    """

    tombstone: Tombstone
    owner: str
    full: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """How many entities each experiment has of a kind, live and deleted.

    ``deleted`` False: no run, no logged model and no experiment is, so that there is no tombstone.
    """

    rows: dict[tuple[EntityKind, str], int]
    deleted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptModels:
    """Live logged models of deleted runs: how many, and some of them, which are all where they are as many."""

    count: int = 0
    some: tuple[Tombstone, ...] = ()


@dataclass(frozen=True, slots=True)
class TrackingDatabase:
    """A tracking database, probed once, and the site's word on when a logged model goes."""

    engine: Engine
    columns: Columns
    models_follow_run: bool
    names: set[str] = field(default_factory=set, compare=False)
    """Of registered models, those that its rows and holds have led to so far: a hint to whoever reads the registry."""

    @classmethod
    def probe(cls, engine: Engine, *, models_follow_run: bool) -> TrackingDatabase:
        """Raises DatabaseUnusable."""
        with database.reading(engine) as connection:
            return cls(engine, Columns.probe(connection, *_TRACKING), models_follow_run)

    def on(self, connection: Connection) -> Tracking:
        """The tracking database over a connection that is open."""
        return Tracking(connection, self.columns, models_follow_run=self.models_follow_run)

    def own_rows(self, size: int = 5_000) -> Iterator[tuple[list[OwnRow], list[Tombstone]]]:
        """Every row that may own artifacts, a page and a transaction at a time, and which of the page are deleted.

        A trace comes once for each of its places.
        """
        for kind in EntityKind:
            after = ""
            while True:
                with self.reading() as tracking:
                    rows, after = tracking.page(kind, after, size)
                    deleted = tracking.tombstones(row.tombstone.entity for row in rows) if rows else []
                if not rows:
                    break
                yield rows, deleted

    @contextmanager
    def reading(self) -> Iterator[Tracking]:
        """One transaction that only reads."""
        with database.reading(self.engine) as connection:
            yield self.on(connection)


_HELD_ROWS: Final = {
    HoldKind.RUN: ("runs", "run_uuid"),
    HoldKind.EXPERIMENT: ("experiments", "experiment_id"),
    HoldKind.LOGGED_MODEL: ("logged_models", "model_id"),
}
_ID_COLUMNS: Final = (
    (EntityKind.RUN, "runs", "run_uuid"),
    (EntityKind.LOGGED_MODEL, "logged_models", "model_id"),
    (EntityKind.TRACE, "trace_info", "request_id"),
)


_TAGS_OF_OTHERS: Final = (
    (EntityKind.LOGGED_MODEL, "logged_model_tags", "model_id", "tag_key", "tag_value"),
    (EntityKind.TRACE, "trace_tags", "request_id", "key", "value"),
)


def _ids_by_kind(entities: Iterable[Entity]) -> dict[EntityKind, list[str]]:
    found: defaultdict[EntityKind, list[str]] = defaultdict(list)
    for entity in entities:
        found[entity.kind].append(entity.id)
    return found


def _restricted(
    connection: Connection, query: sa.Select[Any], kind: EntityKind, wanted: Mapping[EntityKind, Sequence[str]] | None
) -> Iterator[sa.CursorResult[Any]]:
    if wanted is None:
        yield connection.execute(query.execution_options(yield_per=ROWS_AT_ONCE))
        return
    id_ = query.selected_columns["id"]
    for ids in in_chunks(sorted(set(wanted.get(kind, ())))):
        yield connection.execute(query.where(id_.in_(ids)))


def _tombstone(kind: EntityKind, row: Any) -> Tombstone:
    id_, uri, deleted_ms, experiment_id, workspace, experiment_uri = _row(row)
    return Tombstone(
        entity=Entity(kind=kind, id=id_, experiment_id=experiment_id, workspace=workspace),
        uri=uri,
        deleted_ms=deleted_ms,
        experiment_uri=experiment_uri,
    )


def _row(row: Any) -> Row:
    id_, uri, deleted_ms, experiment_id, workspace, experiment_uri = row
    date = None if deleted_ms is None else int(deleted_ms)
    return id_, uri or "", date, one_text(str(experiment_id)), one_text(workspace), one_text(experiment_uri or "")


def _numbers(ids: Iterable[str]) -> list[int]:
    """Those that can be an experiment's id."""
    return [int(id_) for id_ in ids if id_.isdecimal() and len(id_) < _DIGITS]


def gather(tracking: Tracking, registered: Registered | None, sieve: Sieve | None = None) -> list[Reference]:
    """Everything that protects: both databases' rows, what they lead to, and what people want kept.

    Args:
        tracking: the tracking database.
        registered: what was read of the registry, with the same ``sieve``.
        sieve: what does not matter to it is left out as it comes: of a million not one is kept in memory.

    Raises:
        ReferencesIncomplete: what a hold on a registered model keeps is not known.
    """
    found = registered or Registered()
    everything = Registered()
    for reference in _of_rows(tracking, found):
        everything.sift(reference, sieve)
    everything.references += found.references
    everything.of_runs += found.of_runs
    for reference in _of_people(tracking, registered):
        everything.sift(reference, sieve)
    for reference in _models_behind_runs(tracking, everything.of_runs):
        everything.sift(reference, sieve)
    return everything.references


def _of_rows(tracking: Tracking, registered: Registered) -> Iterator[Reference]:
    for reference in tracking.references():
        yield reference
        if reference.text[:7].lower() == "models:" and reference.holder.startswith("dataset"):
            yield from (replace(reference, text=further) for further in registered.follow(reference.text))


def _of_people(tracking: Tracking, registered: Registered | None) -> Iterator[Reference]:
    yield from tracking.kept_by_tags()
    yield from tracking.held()
    for hold in tracking.holds():
        if hold.kind is HoldKind.REGISTERED_MODEL:
            yield from _require_registry(registered, hold).held(hold)


def _require_registry(registered: Registered | None, hold: Hold) -> Registered:
    if registered is None:
        raise ReferencesIncomplete(
            f"What {hold.holder} keeps is not known without the model registry: leave out --unsafe-ignore-registry, or "
            f"run 'mlflow-artifact-gc hold rm {hold.id}'"
        )
    return registered


def _models_behind_runs(tracking: Tracking, references: Sequence[Reference]) -> list[Reference]:
    by_run: defaultdict[str, list[Reference]] = defaultdict(list)
    for reference in references:
        path = unquote(reference.text.strip()[5:]).lstrip("/")
        # The authority form runs://profile@databricks/<run> is wider than we need: every segment is asked.
        for segment in path.split("/"):
            by_run[segment].append(reference)
    return [
        replace(reference, text=f"models:/{model_id}")
        for run_id, models in tracking.models_of_runs(by_run).items()
        for reference in by_run[run_id]
        for model_id in models
    ]


def read(
    tracked: TrackingDatabase,
    registry_engine: Engine | None,
    sieve: Sieve | None = None,
) -> list[Reference]:
    """``gather`` over fresh connections, in transactions that only read.

    Raises:
        ReferencesIncomplete: something could not be read: nothing may be touched then.
    """
    try:
        while True:
            registered = None
            if registry_engine is not None:
                # Ended before the next begins: on SQLite two readers and a user's commit would wait for each other.
                with database.reading(registry_engine) as connection:
                    registered = Registry(connection).read(sieve, tracked.names)
            with tracked.reading() as tracking:
                found = gather(tracking, registered, sieve)
            if registered is None or not registered.lacking:
                return found
            # Rows and holds of the tracking database lead to versions that were not kept: once more, with these.
            tracked.names.update(registered.lacking)
    except ReferencesIncomplete:
        raise
    except ArtifactGcError as error:
        raise ReferencesIncomplete(
            f"Who still points at artifacts could not be read, so nothing was touched: {error}"
        ) from error
