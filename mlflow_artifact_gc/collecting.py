"""What stock ``mlflow gc`` and MLflow's artifact routes ask to be deleted: decided and swept by us, answered by entity.

MLflow deletes files first and rows after, whatever happened to the files. Here a row may go when its locations were
verified to be empty, and not before.
"""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import database, journal, planning, policy, references, s3, schema, session, sweeping
from mlflow_artifact_gc.config import Settings, never_below
from mlflow_artifact_gc.errors import ArtifactsKept
from mlflow_artifact_gc.metadata import Eraser
from mlflow_artifact_gc.model import Action, Decision, EntityKind, Limits, Outcome, Plan, Reason, SweepResult
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.protection import Candidate, Protection
from mlflow_artifact_gc.quantities import show_instant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.session import Session

_CONCURRENCY: Final = 16
_Key = tuple[EntityKind, str]
_UNASKED: Final = "it was not named, or it is not deleted any more"
_UNREACHED: Final = frozenset({Outcome.PAUSED})
"""Not reached from here: a server that keeps the artifacts may reach it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """The databases of a process, and where its artifact proxy keeps its objects. The URIs hold passwords."""

    backend_store_uri: str = field(repr=False)
    registry_store_uri: str | None = field(default=None, repr=False)
    artifacts_destination: str | None = None

    @contextmanager
    def opened(self) -> Iterator[Session | None]:
        """What planning needs; None where this database was not opted in, or its tables are not of this version.

        Raises:
            ArtifactGcError: it was opted in, and nothing may be touched.
        """
        engine = database.open_engine(self.backend_store_uri)
        try:
            with database.reading(engine) as connection:
                ready = schema.state(connection) is schema.SchemaState.CURRENT and journal.read_site(connection)
            yield (
                session.open_on(
                    engine,
                    registry_store_uri=self.registry_store_uri,
                    artifacts_destination=self.artifacts_destination,
                )
                if ready
                else None
            )
        finally:
            engine.dispose()


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a command asks for. With ``by_id``, nothing but what the scope names."""

    scope: Scope
    by_id: bool
    older_than_ms: int = 0


class Collection:
    """One command's deletions: decided once, swept once, and then asked entity by entity."""

    def __init__(self, opened: Session, asked: Asked, tell: Callable[[str], None]) -> None:
        self._session, self._asked, self._tell = opened, asked, tell
        self._settings = Settings.from_env()
        self._accepted: set[_Key] = set()

    # Deciding

    @cached_property
    def _plan(self) -> tuple[Plan, frozenset[Location]]:
        site, settings = self._session.site, self._settings
        with database.reading(self._session.engine) as connection:
            now_ms = database.clock_ms(connection)
            scope = self._known(self._session.tracked.on(connection))
        # The site's margins hold for MLflow's command too: it asks nobody, and cannot be told a shorter one.
        grace_ms = never_below(site.grace_ms, settings.grace_ms, self._asked.older_than_ms)
        min_age_ms = never_below(site.min_object_age_ms, settings.min_object_age_ms)
        share = Limits().max_share if settings.max_share is None else settings.max_share
        decisions: tuple[Decision, ...] = ()
        rows: dict[tuple[EntityKind, str], int] = {}
        if scope is not None:
            found = session.read(self._session, scope, cutoff_ms=now_ms - grace_ms, include_undated=False, again=True)
            decisions, rows = found.decisions, found.rows
        plan = Plan(
            id=str(uuid.uuid4()),
            created_ms=now_ms,
            cutoff_ms=now_ms - grace_ms,
            action=Action.PURGE,
            database_id=site.database_id,
            entity_rows=sum(rows.values()),
            limits=Limits(max_share=share, min_object_age_ms=min_age_ms),
            decisions=decisions,
        )
        return plan, planning.dense_parents(plan.due, rows)

    def _known(self, tracking: references.Tracking) -> Scope | None:
        """The scope without ids that are unknown or live, of which MLflow says so itself; None: nothing is left."""
        asked = self._asked.scope
        run_ids = tuple(one for one in asked.run_ids if not tracking.known(Scope(run_ids=(one,))))
        model_ids = (*asked.logged_model_ids, *(model.id for model in tracking.following(run_ids)))
        scope = replace(
            asked,
            run_ids=run_ids,
            experiment_ids=tuple(
                one for one in asked.experiment_ids if not tracking.known(Scope(experiment_ids=(one,)))
            ),
            logged_model_ids=tuple(one for one in model_ids if not tracking.known(Scope(logged_model_ids=(one,)))),
        )
        # Without a single id it would be everything.
        return scope if scope.by_id or not self._asked.by_id else None

    @cached_property
    def _lines(self) -> dict[_Key, list[Decision]]:
        found: defaultdict[_Key, list[Decision]] = defaultdict(list)
        for line in self._plan[0].decisions:
            found[line.entity.kind, line.entity.id].append(line)
        return dict(found)

    def candidates(self, kind: EntityKind) -> list[str]:
        """What the command may ask for: all that may go; and the runs of deleted experiments, for which it asks anyway.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        with self._session.tracked.reading() as tracking:
            anyway = tracking.of_deleted_experiments(kind)
        return [
            id_
            for (of_kind, id_), lines in self._lines.items()
            if of_kind is kind
            and (id_ in anyway or all(line.reason in (Reason.DUE, Reason.NOT_ON_S3) for line in lines))
        ]

    def owner_of(self, place: Location) -> tuple[EntityKind, str] | None:
        """Whose artifacts lie at ``place``, of those that the command is about."""
        shapes = [(one.kind, one.id) for one in policy.owners_of(place) if one.whole]
        return next((key for key in shapes if key in self._lines), None)

    def owner_of_uri(self, uri: str) -> tuple[EntityKind, str] | None:
        """The same by the URI of a row."""
        return next((key for key, lines in self._lines.items() if any(line.uri == uri for line in lines)), None)

    def places(self, kind: EntityKind, id_: str) -> frozenset[Location]:
        """Where its rows say that its artifacts lie; nowhere, if it is not deleted."""
        return frozenset(line.location for line in self._lines.get((kind, id_), ()) if line.location)

    # Sweeping

    @cached_property
    def _results(self) -> dict[_Key, list[SweepResult]]:
        plan, dense = self._plan
        found: defaultdict[_Key, list[SweepResult]] = defaultdict(list)
        if not plan.due:
            return {}
        equipment = sweeping.Equipment(
            tracked=self._session.tracked,
            registry=self._session.registry,
            client=s3.connect(self._settings.environ, threads=self._concurrency),
            site=self._session.site,
            destination=self._session.destination,
            concurrency=self._concurrency,
            dense=dense,
            others=session.places_beside(self._session, plan.due),
        )
        report = sweeping.sweep(plan, equipment, sweeping.Orders(on_note=self._tell), threading.Event())
        if report.error:
            self._tell(f"stopped: {report.error}")
        for result in report.results:
            found[result.decision.entity.kind, result.decision.entity.id].append(result)
        return dict(found)

    @property
    def _concurrency(self) -> int:
        return self._settings.concurrency or _CONCURRENCY

    def why_kept(self, kind: EntityKind, id_: str) -> str:
        """Why this stays, and its row with it; empty where its locations are verified to be empty. Sweeps once.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        lines = self._lines.get((kind, id_))
        if not lines:
            return _UNASKED
        for line in lines:
            if line.reason is not Reason.DUE:
                return self._said(line)
        if (kind, id_) in self._accepted:
            return ""
        results = self._results.get((kind, id_), [])
        left = [result for result in results if not result.verified]
        return f"{left[0].outcome.value}: {left[0].detail or 'not verified'}" if left else ""

    def _said(self, line: Decision) -> str:
        if line.reason is Reason.GRACE and line.deleted_ms is not None:
            plan, _ = self._plan
            until_ms = line.deleted_ms + plan.created_ms - plan.cutoff_ms
            return f"{line.reason.sentence} until {show_instant(until_ms)}"
        return f"{line.reason.sentence}: {line.evidence}" if line.evidence else line.reason.sentence

    def elsewhere(self, kind: EntityKind, id_: str) -> bool:
        """Whether all of it lies outside S3: that is MLflow's own business."""
        lines = self._lines.get((kind, id_), ())
        return bool(lines) and all(line.reason is Reason.NOT_ON_S3 for line in lines)

    def unreached(self, kind: EntityKind, id_: str) -> bool:
        """Whether its bucket cannot be used from here, and nothing else speaks against it."""
        results = self._results.get((kind, id_), [])
        return bool(results) and all(result.verified or result.outcome in _UNREACHED for result in results)

    def accept(self, kind: EntityKind, id_: str) -> None:
        """A server with our artifact repository has answered that it is gone."""
        self._accepted.add((kind, id_))

    # Rows

    def erase(self, kind: EntityKind, id_: str) -> str:
        """Delete the row of what is verified, and of the logged models that go with it; why not, where it stays.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        if why := self.why_kept(kind, id_):
            return why
        with self._session.tracked.reading() as tracking:
            keys = [(kind, id_), *((one.kind, one.id) for one in tracking.following([id_]))]
        verified = {self._lines[key][0].entity: self._lines[key] for key in keys if not self.why_kept(*key)}
        gone = self._eraser.erase(verified)
        if any(entity.id == id_ for entity in gone):
            return ""
        return "it was restored, or something that stays refers to its row"

    def clear_experiment(self, id_: str) -> str:
        """Delete the rows of an experiment's verified entities; why it must stay, where anything else is left of it.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        mine = [key for key, lines in self._lines.items() if lines[0].entity.experiment_id == id_]
        kept = {key: why for key in mine if (why := self.why_kept(*key)) and not self.elsewhere(*key)}
        verified = {self._lines[key][0].entity: self._lines[key] for key in mine if not self.why_kept(*key)}
        self._eraser.erase(verified)
        with self._session.tracked.reading() as tracking:
            left = tracking.left_of(id_)
        strange = [entity for entity in left if not self.elsewhere(entity.kind, entity.id)]
        if not strange:
            return ""
        first = strange[0]
        why = kept.get((first.kind, first.id), "it was restored, or something that stays refers to its row")
        return f"{first} stays ({why})" + (f", and {len(strange) - 1:,} more" if len(strange) > 1 else "")

    @cached_property
    def _eraser(self) -> Eraser:
        return Eraser(self._session.tracked, self._session.destination)


def delete_at(stores: Stores, place: Location, tell: Callable[[str], None]) -> bool:
    """Delete what MLflow's artifact API names, if it is all of a run's or a logged model's.

    Returns:
        False where it is something smaller that nothing else needs, or where this database was not opted in: that is
        for MLflow to delete, as asked.

    Raises:
        ArtifactsKept: it stays, and why.
        ArtifactGcError: nothing may be touched.
    """
    with stores.opened() as opened:
        if opened is None:
            return False
        shapes = policy.owners_of(place)
        with opened.tracked.reading() as tracking:
            known = tracking.owners(one.id for one in shapes)
        owner = next((one for one in shapes if known.get(one.id) == str(one)), None)
        if owner is not None and owner.whole:
            _collect_one(opened, owner, place, tell)
            return True
        if owner is not None and owner.kind is EntityKind.TRACE:
            # The payload of an archived trace, which MLflow deletes with the trace.
            return False
        id_ = owner.id if owner else shapes[-1].id if shapes else place.prefix
        if holder := _needed_by(opened, place, id_):
            raise ArtifactsKept(f"{place.uri} is kept: {holder} needs it")
        return False


def _collect_one(opened: Session, owner: policy.Owner, place: Location, tell: Callable[[str], None]) -> None:
    scope = Scope(run_ids=(owner.id,)) if owner.kind is EntityKind.RUN else Scope(logged_model_ids=(owner.id,))
    if owner.kind is EntityKind.TRACE:
        raise ArtifactsKept(f"{owner} goes with its experiment: run 'mlflow-artifact-gc gc'")
    mine = Collection(opened, Asked(scope=scope, by_id=True), tell)
    places = mine.places(owner.kind, owner.id)
    if not places:
        raise ArtifactsKept(f"{owner} is live: delete it in MLflow first")
    if place not in places:
        raise ArtifactsKept(f"{owner} has its artifacts elsewhere, so what lies at {place.uri} is not known to be its")
    if why := mine.why_kept(owner.kind, owner.id):
        raise ArtifactsKept(f"{owner} is kept, {why}")


def _needed_by(opened: Session, place: Location, id_: str) -> str:
    protection = Protection([Candidate(id_, place)], opened.destination)
    found = references.read(opened.tracked, opened.registry)
    return next((one.holder for one in found if protection.protected_by(one)), "")
