"""Carries out a plan: batch by batch, fence, sweep, record, and the metadata last."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from mlflow_artifact_gc import agenda, database, journal, notices, processes, references
from mlflow_artifact_gc.acting import Actor, Done
from mlflow_artifact_gc.batching import Batch
from mlflow_artifact_gc.errors import ArtifactGcError, DatabaseUnusable
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.fence import LEASE_MS, Fence, ended
from mlflow_artifact_gc.hiding import Hider
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.metadata import Eraser
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Outcome, Plan, SweepResult
from mlflow_artifact_gc.ownership import Roots
from mlflow_artifact_gc.plan_files import PlanFile
from mlflow_artifact_gc.policy import Scope, require_within_brakes
from mlflow_artifact_gc.purging import Purger
from mlflow_artifact_gc.quantities import show_instant
from mlflow_artifact_gc.surveying import Surveyor
from mlflow_artifact_gc.tagging import Tagger

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from mlflow_artifact_gc.locations import Destination
    from mlflow_artifact_gc.s3 import S3Client

_BATCH: Final = 500
_LARGEST: Final = 4 * _BATCH
_SLOW_READ_S: Final = 2.0
_SHORT_S: Final = 30.0
"""What was read at the fence is read again by then: after a minute each listing would do it for itself."""
_POLL_S: Final = 0.5
_TRIES: Final = 3
_SETTLED: Final = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Equipment:
    """What a sweep works with.

    ``others`` are places of rows that may prove a root to be the right one. With ``spare_versions`` nothing is touched
    in a bucket that keeps versions, or does not say.
    """

    tracked: references.TrackingDatabase
    registry: Engine | None
    client: S3Client
    site: journal.Site
    destination: Destination
    concurrency: int
    dense: frozenset[Location] = frozenset()
    others: tuple[Location, ...] = ()
    lease_ms: int = LEASE_MS
    spare_versions: bool = False
    missing_rule: Callable[[str], str] = lambda _bucket: ""
    """What the lifecycle rules of a bucket lack for the action; empty where they will do. Raises StorageError."""
    noted_since_ms: int | None = None
    """From when on a note of the hook stops a line; None: from when the plan was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Orders:
    """What to do beside the plan itself. ``deadline_s`` is on the monotonic clock."""

    delete_metadata: bool = False
    scope: Scope | None = field(default_factory=Scope)
    """Whose experiments' own rows may go with ``delete_metadata``; None: nobody's."""
    file: PlanFile | None = None
    """The plan file that the plan was selected by: it is carried out once."""
    deadline_s: float | None = None
    on_result: Callable[[SweepResult], None] = lambda _result: None
    on_note: Callable[[str], None] = lambda _note: None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What happened. ``error`` is what ended the sweep before its time, if something did."""

    results: tuple[SweepResult, ...]
    experiments_deleted: tuple[str, ...] = ()
    error: ArtifactGcError | None = None


def sweep(plan: Plan, equipment: Equipment, orders: Orders, stop: threading.Event) -> Report:
    """Carry out ``plan``; every due line gets a result. Runs beside other processes: each location is claimed.

    Raises:
        Refused: a brake trips; nothing was touched.
        PlanRefused: the plan file was applied already; nothing was touched.
    """
    require_within_brakes(plan)
    with (
        ThreadPoolExecutor(equipment.concurrency, thread_name_prefix="artifact-gc") as executor,
        # Whoever tags waits for the requests: they must not queue behind him.
        ThreadPoolExecutor(equipment.concurrency, thread_name_prefix="artifact-gc-tags") as requests,
    ):
        return _Sweep(plan, equipment, orders, stop, (executor, requests)).run()


class _Sweep:
    def __init__(
        self,
        plan: Plan,
        equipment: Equipment,
        orders: Orders,
        stop: threading.Event,
        pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor],
    ) -> None:
        self._plan, self._equipment, self._orders, self._stop = plan, equipment, orders, stop
        self._executor, self._requests = pools
        self._engine = equipment.tracked.engine
        self._owner = processes.identity()
        self._surveyor = Surveyor(equipment.client, self._stopped)
        self._fence = Fence(
            tracked=equipment.tracked,
            registry=equipment.registry,
            plan=plan,
            destination=equipment.destination,
            owner=self._owner,
            lease_ms=equipment.lease_ms,
            settings_ms=equipment.site.updated_ms,
            noted_since_ms=equipment.noted_since_ms,
        )
        self._roots = Roots(
            engine=self._engine,
            client=equipment.client,
            site=equipment.site,
            destination=equipment.destination,
            executor=self._executor,
            marked_only=plan.of_orphans,
        )
        self._eraser: Eraser | None = None
        self._aborted = threading.Event()
        self._due = tuple(plan.due)
        # By identity: the lines are the plan's own objects, and to hash their fields would cost more than a delete.
        self._reached: set[int] = set()
        self._results: list[SweepResult] = []
        self._lines = Counter(line.entity for line in plan.decisions)
        self._verified: dict[Entity, list[Decision]] = {}
        self._gone: set[Entity] = set()

    def _stopped(self) -> bool:
        deadline = self._orders.deadline_s
        return self._stop.is_set() or self._aborted.is_set() or (deadline is not None and time.monotonic() >= deadline)

    def run(self) -> Report:
        """Plan started, batches, plan finished: a start without an end in the journal is the trace of a crash."""
        for bucket in {line.location.bucket for line in self._due if line.location}:
            # Asked while the database is busy with the fence; the answer, or the error, is met again there.
            self._executor.submit(self._surveyor.versioning, bucket)
        self._note_start()
        error: ArtifactGcError | None = None
        experiments: list[str] = []
        try:
            with self._fence.held():
                self._batches(sorted(self._due, key=lambda line: line.location or Location("", "")))
                self._busy_again()
            if self._orders.delete_metadata:
                self._erase_late()
            if self._orders.delete_metadata and self._orders.scope is not None and not self._stopped():
                experiments = self._erase().erase_experiments(self._orders.scope, self._plan.cutoff_ms)
        except ArtifactGcError as found:
            error = found
        finally:
            self._give_back()
        self._fill_up()
        error = self._note_end() or error
        results = tuple(
            replace(result, metadata_deleted=True) if result.decision.entity in self._gone else result
            for result in self._results
        )
        return Report(results=results, experiments_deleted=tuple(experiments), error=error)

    def _note_start(self) -> None:
        file = self._orders.file
        if file is None:
            digest = self._plan.digest  # Takes a while: not while the database is locked.
            with database.writing(self._engine) as connection:
                journal.plan_started(connection, self._plan, digest, database.clock_ms(connection))
            return

        def started(connection: Connection) -> journal.Applied | None:
            made_ms, now_ms = file.plan.created_ms, database.clock_ms(connection)
            return journal.file_started(connection, self._plan, digest=file.digest, made_ms=made_ms, now_ms=now_ms)

        before = database.written(self._engine, started)
        if before is None:
            return
        when = f"at {show_instant(before.started_ms)} by {before.actor}"
        self._orders.on_note(
            f"This plan was begun {when} and has not ended: going on with it, beside that process if it still runs."
            if before.finished_ms is None
            else f"This plan was applied {when}, which left {before.left:,} of its locations: going on with them."
        )

    def _give_back(self) -> None:
        """Claims that no result has ended: the fence failed, or the process is about to end."""
        with suppress(DatabaseUnusable), database.writing(self._engine) as connection:
            journal.release(connection, owner=self._owner, now_ms=database.clock_ms(connection))

    def _note_end(self) -> ArtifactGcError | None:
        counts = Counter(result.outcome for result in self._results)
        try:
            with database.writing(self._engine) as connection:
                journal.plan_finished(connection, self._plan.id, counts, database.clock_ms(connection))
        except DatabaseUnusable as error:
            return error
        return None

    def _fill_up(self) -> None:
        for line in self._due:
            if id(line) not in self._reached:
                self._results.append(ended(line, Outcome.STOPPED, ""))

    def _batches(self, lines: Sequence[Decision]) -> None:
        """In portions. To read who needs what costs the same for many as for few: where it is slow, they grow."""
        start, size = 0, _BATCH
        while start < len(lines) and not self._stopped():
            began_s = time.monotonic()
            reading_s = self._portion(lines[start : start + size])
            start += size
            if time.monotonic() - began_s > _SHORT_S:
                size = max(size // 2, _BATCH)
            elif reading_s > _SLOW_READ_S:
                size = min(size * 2, _LARGEST)

    def _busy_again(self) -> None:
        """Wait for claims that nobody renews: their process has died where we cannot see it."""
        busy = [result.decision for result in self._results if _untouched(result)]
        if not busy or self._stopped():
            return
        wait_ms = self._claimed_ms(busy)
        others = f"{len(busy):,} locations claimed by another process"
        self._orders.on_note(f"waiting up to {wait_ms // 1000 + 1} s for {others}")
        until = time.monotonic() + wait_ms / 1000 + _POLL_S
        while time.monotonic() < until and self._claimed_ms(busy) > 0 and not self._stopped():
            self._stop.wait(_POLL_S)
        if not self._stopped():
            self._results = [result for result in self._results if not _untouched(result)]
            self._reached -= {id(line) for line in busy}
            self._batches(busy)

    def _claimed_ms(self, lines: Sequence[Decision]) -> int:
        with database.reading(self._engine) as connection:
            return journal.claimed_for_ms(connection, lines, database.clock_ms(connection))

    # One portion

    def _portion(self, lines: Sequence[Decision]) -> float:
        """Ask the fence, and act on what it admits, batch by batch; how long the fence took, in seconds."""
        read_s = time.monotonic()
        with database.reading(self._engine) as connection:
            now_ms = database.clock_ms(connection)
        admission = self._fence.admit(lines)
        took_s = time.monotonic() - read_s
        self._tell_of_killed(admission.killed, now_ms)
        finished: list[SweepResult] = []
        try:
            self._add(finished, admission.rejected)
            rest = admission.due
            while rest and not self._stopped():
                self._act(rest[:_BATCH], read_s, now_ms, finished)
                rest = rest[_BATCH:]
                if rest and (time.monotonic() - read_s > _SHORT_S or self._fence.outdated):
                    read_s = time.monotonic()
                    again = self._fence.renew(rest)
                    self._add(finished, again.rejected)
                    rest = again.due
        finally:
            reached = self._reached.union(id(result.decision) for result in finished)
            finished += [ended(line, Outcome.STOPPED, "") for line in admission.due if id(line) not in reached]
            self._settle(finished)
        return took_s

    def _add(self, finished: list[SweepResult], results: Iterable[SweepResult]) -> None:
        for result in results:
            finished.append(result)
            self._orders.on_result(result)

    def _settle(self, finished: list[SweepResult]) -> None:
        """Report and record what happened, also when an error ended the batch half-way; then delete metadata."""
        settled = finished.copy()
        finished.clear()
        # What left the bucket is in the report even if the database takes no more notes.
        self._results += settled
        self._reached.update(id(result.decision) for result in settled)
        for start in range(0, len(settled), _BATCH):
            self._record(settled[start : start + _BATCH])
        if self._orders.delete_metadata and not self._aborted.is_set():
            self._erase_rows(settled)

    def _record(self, finished: Sequence[SweepResult]) -> None:
        self._tell(finished)
        for tries_left in reversed(range(_TRIES)):
            try:
                with database.writing(self._engine) as connection:
                    now_ms = database.clock_ms(connection)
                    journal.record(connection, finished, owner=self._owner, now_ms=now_ms)
                    agenda.lose(connection, self._vanished(connection, finished), now_ms)
            except DatabaseUnusable:
                if not tries_left:
                    raise
                self._stop.wait(_POLL_S)
            else:
                return

    def _tell(self, finished: Sequence[SweepResult]) -> None:
        """Before it is recorded: nobody looks again at what is, and would tell what a killed process has not.

        And apart: what people read must not stand in the way of what is recorded.
        """
        if not notices.of_results(finished, now_ms=0):
            return
        with suppress(DatabaseUnusable), database.writing(self._engine) as connection:
            notices.write(connection, notices.of_results(finished, database.clock_ms(connection)))

    def _tell_of_killed(self, lines: Sequence[Decision], now_ms: int) -> None:
        """That something of these may be gone: what is still there when it goes on does not show it, nor count it."""
        runs = {line.entity.id: notices.begun(now_ms) for line in lines if line.entity.kind is EntityKind.RUN}
        if runs:
            with suppress(DatabaseUnusable), database.writing(self._engine) as connection:
                notices.write(connection, runs)

    def _vanished(self, connection: Connection, finished: Sequence[SweepResult]) -> list[Entity]:
        """Those that are no tombstones any more, because their rows are gone for good."""
        back = [result.decision.entity for result in finished if result.outcome is Outcome.RESTORED]
        if not back:
            return []
        there = self._equipment.tracked.on(connection).owners(entity.id for entity in back)
        return [entity for entity in back if entity.id not in there]

    def _erase_rows(self, finished: Sequence[SweepResult]) -> None:
        # A trace can have two locations: its row stays until both are verified.
        for result in finished:
            if result.verified:
                self._verified.setdefault(result.decision.entity, []).append(result.decision)
        complete = {
            entity: lines
            for entity in {result.decision.entity for result in finished if result.verified}
            if len(lines := self._verified[entity]) == self._lines[entity]
        }
        self._gone |= self._erase().erase(complete)

    def _erase_late(self) -> None:
        """What was held back by rows that have gone since: a run by its logged models' metrics."""
        self._gone |= self._erase().erase(
            {
                entity: lines
                for entity, lines in self._verified.items()
                if entity not in self._gone and len(lines) == self._lines[entity]
            }
        )

    def _erase(self) -> Eraser:
        if self._eraser is None:
            self._eraser = Eraser(self._equipment.tracked, self._equipment.destination)
        return self._eraser

    def _act(self, due: Sequence[Decision], read_s: float, now_ms: int, finished: list[SweepResult]) -> None:
        """Look, stand, begin, act: each step only when the one before has ended for the whole batch."""
        batch = self._prepared(due, read_s, now_ms)
        try:
            seen = batch.look()
        except BaseException:
            # The listings that still run, run for nobody.
            self._aborted.set()
            raise
        if self._stopped():
            return
        ground = batch.begin(seen, batch.stand(seen))
        self._add(finished, ground.refused)
        self._collect(batch.act(seen, ground), finished)

    def _prepared(self, due: Sequence[Decision], read_s: float, now_ms: int) -> Batch:
        common: dict[str, Any] = {
            "client": self._equipment.client,
            "surveyor": self._surveyor,
            "fence": self._fence,
            "stopped": self._stopped,
            "now_ms": now_ms,
            "min_age_ms": self._min_age_ms(now_ms),
            "references_read_s": read_s,
        }
        actor: Actor
        match self._plan.action:
            case Action.PURGE:
                actor = Purger(**common)
            case Action.HIDE:
                actor = Hider(**common)
            case Action.TAG:
                site = self._equipment.site
                actor = Tagger(
                    **common,
                    tag=Tag.of_site(site.expiry_tag),
                    requests=self._requests,
                    missing_rule=self._equipment.missing_rule,
                    purges_full=site.full_tag_sets is journal.FullTagSets.PURGE,
                )
        return Batch(
            due=due,
            actor=actor,
            surveyor=self._surveyor,
            roots=self._roots,
            executor=self._executor,
            dense=self._equipment.dense,
            others=self._equipment.others,
            spare_versions=self._equipment.spare_versions,
        )

    def _min_age_ms(self, now_ms: int) -> int:
        planned_ms, file = self._plan.limits.min_object_age_ms, self._orders.file
        # What was written since, nobody has seen who looked at the file. (0: ages do not count.)
        return max(planned_ms, now_ms - file.plan.created_ms) if file and planned_ms else planned_ms

    def _collect(self, futures: Sequence[Future[Done]], finished: list[SweepResult]) -> None:
        """Take every listing's results, whatever else goes wrong: what runs when something fails is waited for.

        Raises:
            ArtifactGcError: the first one after which nothing more may be deleted.
        """
        waiting = set(futures)
        error: ArtifactGcError | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                done = future.result()
                waiting.discard(future)
                self._add(finished, done.results)
                error = error or done.error
                if error:
                    self._abandon(waiting)
                elif len(finished) >= _SETTLED:
                    # While the others still sweep.
                    self._settle(finished)
        except BaseException:
            # An interrupt, or an error of ours: the others must not go on deleting unseen.
            self._abandon(waiting)
            for future in wait(waiting).done:
                if not future.cancelled() and future.exception() is None:
                    finished += future.result().results
            raise
        if error:
            raise error

    def _abandon(self, futures: set[Future[Done]]) -> None:
        self._aborted.set()
        futures -= {future for future in futures if future.cancel()}


def _untouched(result: SweepResult) -> bool:
    """Another process has it, and we have not deleted anything in it."""
    gone = (result.deleted_objects, result.deleted_versions, result.deleted_markers, result.aborted_uploads)
    return result.outcome is Outcome.BUSY and not any(gone)
