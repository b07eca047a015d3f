"""What stock ``mlflow gc`` asks to be deleted: decided once for a whole command, swept once, answered entity by entity.

MLflow deletes files first and rows after, whatever happened to the files. Here a row may go when its locations were
verified to be empty, and not before.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import (
    bucket_rules,
    database,
    holds,
    journal,
    planning,
    references,
    s3,
    schema,
    session,
    settling,
    surveying,
    sweeping,
)
from mlflow_artifact_gc import registry as model_registry
from mlflow_artifact_gc.config import Settings, never_below, never_harsher
from mlflow_artifact_gc.errors import ArtifactGcError, ReferencesIncomplete, RootRefused, StorageError
from mlflow_artifact_gc.locations import Location, proxied_path
from mlflow_artifact_gc.metadata import Eraser
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Limits, Plan, Reason, SweepResult
from mlflow_artifact_gc.policy import Scope, require_within_brakes
from mlflow_artifact_gc.protection import Candidate, Protection
from mlflow_artifact_gc.quantities import show_instant
from mlflow_artifact_gc.references import DELETED

if TYPE_CHECKING:
    from mlflow_artifact_gc.session import Session

_CONCURRENCY: Final = 16
_Key = tuple[EntityKind, str]
_UNASKED: Final = "it was not named, or it is not deleted any more"
_FRESH_S: Final = 60.0
_NOWHERE: Final = Location("", "")
"""For what lies outside S3: no reference names it, so that of the rules of protection the one by id remains."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """The databases of a process, and where its artifact proxy keeps its objects. The URIs hold passwords."""

    backend_store_uri: str = field(repr=False)
    registry_store_uri: str | None = field(default=None, repr=False)
    artifacts_destination: str | None = None

    @contextmanager
    def opened(self) -> Iterator[Session | None]:
        """What planning needs; None where nobody has opted this database in.

        Raises:
            ArtifactGcError: somebody has, and nothing may be touched.
        """
        if not database.is_supported(self.backend_store_uri):
            yield None
            return
        engine = database.open_engine(self.backend_store_uri)
        opened = None
        try:
            with database.reading(engine) as connection:
                state = schema.state(connection)
                site = journal.read_site(connection) if state is schema.SchemaState.CURRENT else None
            if state is schema.SchemaState.ABSENT or (state is schema.SchemaState.CURRENT and site is None):
                yield None
                return
            # Older and newer tables are refused here: somebody has opted in, and what he has set cannot be read.
            opened = session.open_on(
                engine,
                registry_store_uri=self._registry(site),
                artifacts_destination=self._destination(site),
            )
            yield opened
        finally:
            engine.dispose()
            if opened is not None and opened.registry is not None:
                opened.registry.dispose()

    def _registry(self, site: journal.Site | None) -> str | None:
        if self.registry_store_uri and not database.is_sql(self.registry_store_uri):
            if site is None or site.registry_fingerprint is None:
                raise ReferencesIncomplete(
                    "The model registry of this process is no database, and which one the server uses is not known: "
                    "run 'mlflow-artifact-gc init --registry-store-uri URI' once, with the server's"
                )
            return None
        return self.registry_store_uri

    def _destination(self, site: journal.Site | None) -> str | None:
        """The site's own: a process that was told another one does not know where the artifacts are."""
        known = site.artifacts_destination if site else None
        given = self.artifacts_destination
        if given and known and not session.same_destination(given, known):
            raise RootRefused(
                f"This process has the artifacts destination {given}, and the site's is {known}: start it with the "
                "site's, or run 'mlflow-artifact-gc init --artifacts-destination URI' with the one in use"
            )
        return given if known is None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a command asks for. With ``by_id``, nothing but what the scope names, and be that nothing."""

    scope: Scope
    by_id: bool
    older_than_ms: int = 0
    spare_versions: bool = False


class CommandCollection:
    """One command's deletions: decided once, swept once, and then asked entity by entity."""

    def __init__(
        self,
        opened: Session,
        asked: Asked,
        tell: Callable[[str], None],
        opens: Callable[[str], bool] = lambda _uri: False,
    ) -> None:
        """``opens``: whether MLflow has a repository for a URI that does not lie on S3."""
        self._session, self._asked, self._tell, self._opens = opened, asked, tell, opens
        self._settings = Settings.from_env()
        self._accepted: set[_Key] = set()
        self._read_s = 0.0
        self._registered: tuple[object, ...] | None = None
        self._needed: dict[_Key, str] = {}
        self.proxy_refusal = ""
        """Why nothing more is asked of the tracking server."""

    @property
    def database_id(self) -> str:
        return self._session.site.database_id

    @property
    def _action(self) -> Action:
        return never_harsher(self._session.site.action, self._settings.action) or Action.PURGE

    # Deciding

    def _settle(self) -> None:
        """What is hidden or tagged, and restored, needed or gone by now; where S3 is out of reach it is left."""
        settler = settling.Settler(
            session=self._session,
            client=lambda: self._client,
            grace_ms=self._session.site.grace_ms,
            concurrency=self._concurrency,
            stopped=lambda: False,
        )
        try:
            settled = settler.settle(everything=True)
            for problem in settled.problems:
                self._tell(f"not taken back: {problem}")
            for why in settled.paused:
                self._tell(f"not looked at, what is hidden or tagged: {why}")
        except ArtifactGcError as error:
            self._tell(f"not looked at, what is hidden or tagged: {error}")

    @cached_property
    def _planned(self) -> tuple[Plan, frozenset[Location]]:
        self._settle()
        site, settings = self._session.site, self._settings
        with database.reading(self._session.engine) as connection:
            now_ms = database.clock_ms(connection)
            scope = self._known(self._session.tracked.on(connection))
        # The site's margins hold for MLflow's command too: it asks nobody, and cannot be told a shorter one.
        grace_ms = never_below(site.grace_ms, settings.grace_ms, self._asked.older_than_ms)
        limits = Limits(
            max_share=Limits().max_share if settings.max_share is None else settings.max_share,
            max_objects=settings.max_objects,
            max_bytes=settings.max_bytes,
            min_object_age_ms=never_below(site.min_object_age_ms, settings.min_object_age_ms),
        )
        decisions: Sequence[Decision] = ()
        rows: dict[tuple[EntityKind, str], int] = {}
        if scope is not None:
            found = session.read(
                self._session,
                scope,
                cutoff_ms=now_ms - grace_ms,
                include_undated=False,
                again=True,
                action=self._action,
            )
            decisions, rows = found.decisions, found.rows
        plan = Plan(
            id=str(uuid.uuid4()),
            created_ms=now_ms,
            cutoff_ms=now_ms - grace_ms,
            action=self._action,
            database_id=site.database_id,
            entity_rows=sum(rows.values()),
            limits=limits,
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
        for line in self._planned[0].decisions:
            found[line.entity.kind, line.entity.id].append(line)
        return dict(found)

    def require_within_brakes(self) -> None:
        """Raises Refused where all of it together is more than may go at once."""
        _ = self._braked

    @cached_property
    def _braked(self) -> Plan:
        plan = self._measured(*self._planned)
        require_within_brakes(plan)
        return plan

    def _measured(self, plan: Plan, dense: frozenset[Location]) -> Plan:
        if not plan.due or (plan.limits.max_objects is None and plan.limits.max_bytes is None):
            return plan
        places = tuple(line.location for line in plan.due if line.location and line.location.bucket not in self._closed)
        tasks = planning.listing_tasks(places, dense)
        with ThreadPoolExecutor(self._concurrency) as executor:
            sizes = surveying.measure(self._surveyor, tasks, executor, lambda _done: None, strict=True)
        return planning.measured(plan, sizes)

    def candidates(self, kind: EntityKind, of_mlflow: Collection[str]) -> list[str]:
        """Which of those that MLflow would ask for may go; and all deleted runs of deleted experiments.

        It asks for these anyway, and gives up where one is not in its list.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        free = [id_ for id_ in of_mlflow if self._free((kind, id_))]
        if kind is EntityKind.RUN:
            scope = self._asked.scope
            with self._session.tracked.reading() as tracking:
                anyway = tracking.runs_of_deleted_experiments(scope.workspace, scope.experiment_ids)
            return free + sorted(anyway - set(free))
        # Those that go with their run, row and all, are not there any more when their turn comes.
        due = [id_ for of_kind, id_ in self._lines if of_kind is EntityKind.RUN and self._free((of_kind, id_))]
        with self._session.tracked.reading() as tracking:
            along = {model.id for model in tracking.following(due)}
        return [id_ for id_ in free if id_ not in along]

    def _free(self, key: _Key) -> bool:
        lines = self._lines.get(key, ())
        return bool(lines) and (all(line.reason is Reason.DUE for line in lines) or self.elsewhere(*key))

    # What lies outside S3

    def elsewhere(self, kind: EntityKind, id_: str) -> bool:
        """Whether all of it lies outside S3 and may go, as things are now: that is MLflow's own business.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        return self._outside((kind, id_)) and not self._kept_elsewhere((kind, id_))

    def _outside(self, key: _Key) -> bool:
        lines = self._lines.get(key, ())
        return bool(lines) and all(line.reason is Reason.NOT_ON_S3 for line in lines)

    def _kept_elsewhere(self, key: _Key) -> str:
        """As for what lies on S3: its grace period, and who needs it. No claim keeps others away: it is asked anew."""
        plan, _ = self._planned
        lines = self._lines[key]
        for line in lines:
            if line.deleted_ms is None:
                return Reason.UNDATED.sentence
            if line.deleted_ms > plan.cutoff_ms:
                return self._grace(line.deleted_ms)
            if not line.uri or not self._opens(line.uri):
                return f"{Reason.NOT_ON_S3.sentence}, and MLflow has no repository for its URI"
        with self._session.tracked.reading() as tracking:
            now = {(stone.uri, stone.deleted_ms) for stone in tracking.tombstones([lines[0].entity])}
        if now != {(line.uri, line.deleted_ms) for line in lines}:
            return _UNASKED
        return self._needed_elsewhere(key)

    def _needed_elsewhere(self, key: _Key) -> str:
        """Who needs it: read anew where the registry has changed, or a hold was put on, and from minute to minute."""
        registry = self._session.registry
        with database.reading(self._session.engine) as connection:
            held = holds.count(connection)
        state = (held, *(model_registry.state(registry) if registry is not None else ()))
        if state != self._registered or time.monotonic() - self._read_s > _FRESH_S:
            self._read_s, self._registered = time.monotonic(), state
            self._needed = self._needed_now()
        return self._needed.get(key, "")

    def _needed_now(self) -> dict[_Key, str]:
        keys = [key for key in self._lines if self._outside(key)]
        entities = [self._lines[key][0].entity for key in keys]
        candidates = [Candidate(entity.id, _NOWHERE, entity.experiment_id) for entity in entities]
        protection = Protection(candidates, self._session.destination)
        found: dict[_Key, str] = {}
        for one in references.read(self._session.tracked, self._session.registry):
            # A deleted row protects what it lies in, as it does on S3.
            why = (Reason.PROTECTED if one.live else Reason.NESTED).sentence
            for hit in protection.protected_by(one):
                found.setdefault(keys[hit], f"{why}: {one.holder}")
        return found

    # Sweeping

    @cached_property
    def _client(self) -> s3.S3Client:
        return s3.connect(self._settings.environ, threads=self._concurrency)

    @cached_property
    def _surveyor(self) -> surveying.Surveyor:
        return surveying.Surveyor(self._client, lambda: False)

    @property
    def _concurrency(self) -> int:
        return self._settings.concurrency or _CONCURRENCY

    @cached_property
    def _closed(self) -> dict[str, str]:
        """The buckets that cannot be used from here, and why."""
        found: dict[str, str] = {}
        for bucket in {line.location.bucket for line in self._planned[0].due if line.location}:
            try:
                self._surveyor.versioning(bucket)
            except StorageError as error:
                found[bucket] = str(error)
        return found

    @cached_property
    def _results(self) -> dict[_Key, list[SweepResult]]:
        plan, (_, dense) = self._braked, self._planned
        found: defaultdict[_Key, list[SweepResult]] = defaultdict(list)
        reached = tuple(line for line in plan.due if line.location and line.location.bucket not in self._closed)
        if not reached:
            return {}
        equipment = sweeping.Equipment(
            tracked=self._session.tracked,
            registry=self._session.registry,
            client=self._client,
            site=self._session.site,
            destination=self._session.destination,
            concurrency=self._concurrency,
            dense=dense,
            others=session.places_beside(self._session, reached),
            spare_versions=self._asked.spare_versions,
            missing_rule=bucket_rules.missing(self._session.site, self._client, plan),
        )
        # Its brakes were asked above, for all of it.
        limits = replace(plan.limits, max_share=1.0, max_objects=None, max_bytes=None)
        report = sweeping.sweep(
            replace(plan, decisions=reached, limits=limits),
            equipment,
            sweeping.Orders(on_note=self._tell),
            threading.Event(),
        )
        if report.error:
            self._tell(f"stopped: {report.error}")
        if plan.action is not Action.PURGE:
            # Half of something that is live after all may be hidden or tagged.
            self._settle()
        for result in report.results:
            found[result.decision.entity.kind, result.decision.entity.id].append(result)
        return dict(found)

    def why_kept(self, kind: EntityKind, id_: str) -> str:
        """Why this stays, and its row with it; empty where it is verified to be gone from S3. Sweeps once.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        key = kind, id_
        lines = self._lines.get(key)
        if not lines:
            return _UNASKED
        if self._outside(key):
            return self._kept_elsewhere(key) or Reason.NOT_ON_S3.sentence
        for line in lines:
            if line.reason is not Reason.DUE:
                return self._said(line)
        return "" if self._swept(key) else self._unswept(key)

    def _swept(self, key: _Key) -> bool:
        results = self._results.get(key, ())
        verified = len(results) == len(self._lines[key]) and all(result.verified for result in results)
        return verified or key in self._accepted

    def _unswept(self, key: _Key) -> str:
        for line in self._lines[key]:
            if line.location and line.location.bucket in self._closed:
                return self._closed[line.location.bucket]
        left = [result for result in self._results.get(key, ()) if not result.verified]
        return f"{left[0].outcome.value}: {left[0].detail or 'not verified'}" if left else "it was not reached"

    def _said(self, line: Decision) -> str:
        if line.reason is Reason.GRACE and line.deleted_ms is not None:
            return self._grace(line.deleted_ms)
        return f"{line.reason.sentence}: {line.evidence}" if line.evidence else line.reason.sentence

    def _grace(self, deleted_ms: int) -> str:
        plan, _ = self._planned
        until_ms = deleted_ms + plan.created_ms - plan.cutoff_ms
        return f"{Reason.GRACE.sentence} until {show_instant(until_ms)}"

    # Through the proxy

    def proxied_uri(self, kind: EntityKind, id_: str) -> str:
        """The URI of what may go, if it is proxied and its bucket cannot be used from here; else nothing.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        key = kind, id_
        lines = self._lines.get(key, [])
        self.require_within_brakes()
        asks = (
            len(lines) == 1
            and self._free(key)
            and lines[0].location is not None
            and lines[0].location.bucket in self._closed
            and proxied_path(lines[0].uri) is not None
        )
        return lines[0].uri if asks else ""

    def accept(self, kind: EntityKind, id_: str) -> None:
        """A server of this very database, with our repository, has answered that it is gone, models and all."""
        self._accepted |= {(kind, id_), *((one.kind, one.id) for one in self.along(kind, id_))}

    def along(self, kind: EntityKind, id_: str) -> list[Entity]:
        """The logged models that go with a run."""
        with self._session.tracked.reading() as tracking:
            return tracking.following([id_]) if kind is EntityKind.RUN else []

    # Rows

    def erase(self, kind: EntityKind, id_: str) -> str:
        """Delete the row of what is verified, and of the logged models that go with it; why not, where it stays.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        if not self.elsewhere(kind, id_) and (why := self.why_kept(kind, id_)):
            return why
        keys = [(kind, id_), *((one.kind, one.id) for one in self.along(kind, id_))]
        done = [key for key in keys if self.elsewhere(*key) or not self.why_kept(*key)]
        gone = self._eraser.erase({self._lines[key][0].entity: self._lines[key] for key in done})
        if any(entity.id == id_ for entity in gone):
            return ""
        return "it was restored, or something that stays refers to its row"

    def clear_experiment(self, id_: str) -> str:
        """Delete the rows of an experiment's verified entities; why it must stay, if it must.

        Where it need not, nothing is left of it but what has no artifacts.

        Raises:
            ArtifactGcError: nothing may be touched.
        """
        plan, _ = self._planned
        with self._session.tracked.reading() as tracking:
            stage, deleted_ms = tracking.experiment_stage(id_)
            holder = tracking.experiments_held(id_).get(id_, "")
        if stage != DELETED:
            return "it is not deleted any more"
        if self._asked.by_id and id_ not in self._asked.scope.experiment_ids:
            return "it was not named"
        if deleted_ms is None or deleted_ms > plan.cutoff_ms:
            return Reason.UNDATED.sentence if deleted_ms is None else self._grace(deleted_ms)
        if holder:
            return f"{Reason.PROTECTED.sentence}: {holder}"
        mine = [key for key, lines in self._lines.items() if lines[0].entity.experiment_id == id_]
        kept = {key: why for key in mine if (why := self.why_kept(*key))}
        self._eraser.erase({self._lines[key][0].entity: self._lines[key] for key in mine if key not in kept})
        with self._session.tracked.reading() as tracking:
            left = tracking.left_of(id_)
        if not left:
            return ""
        # Also what lies outside S3: of a logged model or trace there MLflow never deletes the files.
        first = left[0]
        why = kept.get((first.kind, first.id), "it was restored, or something that stays refers to its row")
        return f"{first} stays ({why})" + (f", and {len(left) - 1:,} more" if len(left) > 1 else "")

    @cached_property
    def _eraser(self) -> Eraser:
        return Eraser(self._session.tracked, self._session.destination)
