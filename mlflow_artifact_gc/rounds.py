"""One round of the worker: what is due now becomes a plan, the plan is swept, and what is left gets its next date."""

from __future__ import annotations

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import (
    agenda,
    bucket_rules,
    database,
    journal,
    lease,
    notices,
    planning,
    settling,
    surveying,
    sweeping,
)
from mlflow_artifact_gc.agenda import Waiting
from mlflow_artifact_gc.errors import ReferencesIncomplete, StorageError
from mlflow_artifact_gc.model import (
    Action,
    Decision,
    Entity,
    EntityKind,
    Limits,
    Outcome,
    Plan,
    Reason,
    SweepResult,
)
from mlflow_artifact_gc.policy import brakes
from mlflow_artifact_gc.quantities import show_size
from mlflow_artifact_gc.session import chunks, decide, places_beside

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.s3 import S3Client
    from mlflow_artifact_gc.session import Session

_logger = logging.getLogger("mlflow_artifact_gc.worker")

_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS
_PROTECTED_MS: Final = 6 * _HOUR_MS
_PARKED_MS: Final = 10 * _MINUTE_MS
_PAUSED_MS: Final = 5 * _MINUTE_MS
_LONGEST_MS: Final = 6 * _HOUR_MS
_SECOND_LOOK_MS: Final = 24 * _HOUR_MS
_SECOND_LOOKS: Final = 1_000
_ATTEMPTS: Final = 8
"""After so many failures in a row a location is left to a person."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a worker goes by: the site's settings, and what its environment adds to them. Milliseconds."""

    grace_ms: int
    limits: Limits
    concurrency: int
    action: Action | None = None
    """None: nobody said; then it is a purge, which leaves buckets that keep versions alone."""


class Round:
    """Carries out what is due, for one site."""

    def __init__(self, session: Session, terms: Terms, client: S3Client, stop: threading.Event) -> None:
        self._session, self._terms, self._client, self._stop = session, terms, client, stop
        self._engine = session.engine

    def run(self) -> sweeping.Report | None:
        """Sweep what is due; None where nothing was.

        Raises:
            DatabaseUnusable, ReferencesIncomplete: nothing was touched.
        """
        with database.reading(self._engine) as connection:
            if database.mlflow_revision(connection) != self._session.mlflow_revision:
                raise ReferencesIncomplete("MLflow's tables were upgraded meanwhile: they are read anew")
        self._clear_up()
        with database.reading(self._engine) as connection:
            now_ms = database.clock_ms(connection)
            waiting = agenda.to_look_at(connection, grace_ms=self._terms.grace_ms, now_ms=now_ms)
        by_action: defaultdict[Action, list[Waiting]] = defaultdict(list)
        for one in waiting:
            # What was begun is finished as it was begun.
            by_action[one.action or self._terms.action or Action.PURGE].append(one)
        reports = [report for action, some in by_action.items() if (report := self._carry_out(action, some, now_ms))]
        if not reports:
            return None
        return sweeping.Report(
            results=tuple(result for report in reports for result in report.results),
            error=next((report.error for report in reports if report.error), None),
        )

    def _carry_out(self, action: Action, waiting: Sequence[Waiting], now_ms: int) -> sweeping.Report | None:
        decisions = decide(self._session, [one.entity for one in waiting], now_ms - self._terms.grace_ms)
        by_location = {line.location: line for line in decisions if line.location}
        lines = tuple(by_location[one.location] for one in waiting if one.location in by_location)
        self._put_off(waiting, by_location, now_ms)
        plan = self._plan(action, lines, now_ms)
        if not plan.due or self._parked(plan, now_ms):
            return None
        report = self._sweep(plan)
        self._after(report.results, {one.location: one.attempts for one in waiting})
        _tell(report)
        return report

    # Before the sweep

    def _clear_up(self) -> None:
        """What a sweep found restored, or deleted again: MLflow's rows say which, and then its grace begins anew."""
        with database.reading(self._engine) as connection:
            doubtful = agenda.doubtful(connection)
            stones = self._session.tracked.on(connection).tombstones([one.entity for one in doubtful])
            now_ms = database.clock_ms(connection)
        deleted_ms = {(stone.entity.kind, stone.entity.id): stone.deleted_ms for stone in stones}
        back = [one.entity for one in doubtful if (one.entity.kind, one.entity.id) not in deleted_ms]
        again = [
            replace(one, deleted_ms=deleted_ms[one.entity.kind, one.entity.id], first_seen_ms=now_ms)
            for one in doubtful
            if (one.entity.kind, one.entity.id) in deleted_ms
        ]
        for chunk in chunks(back):
            with database.writing(self._engine) as connection:
                back_again(self._session, connection, chunk, now_ms)
        for some in chunks(again):
            with database.writing(self._engine) as connection:
                agenda.begin_again(connection, some, grace_ms=self._terms.grace_ms)
                until_ms = {one.entity: one.since_ms + self._terms.grace_ms for one in some}
                runs = {entity.id: ms for entity, ms in until_ms.items() if entity.kind is EntityKind.RUN}
                told = {run_id: notices.pending(ms) for run_id, ms in runs.items()}
                notices.write(connection, told, deleted_only=True)

    def _put_off(self, waiting: Sequence[Waiting], lines: Mapping[Location, Decision], now_ms: int) -> None:
        """What is not due after all: protected, restored, or deleted again since."""
        back = [one.entity for one in waiting if one.location not in lines]
        later: dict[Location, tuple[int, str]] = {}
        kept: dict[str, str] = {}
        for one in waiting:
            line = lines.get(one.location)
            if line is None or line.reason is Reason.DUE:
                continue
            if line.reason in (Reason.PROTECTED, Reason.NESTED):
                later[one.location] = (now_ms + _PROTECTED_MS, agenda.KEPT + line.evidence)
                if line.entity.kind is EntityKind.RUN:
                    kept[line.entity.id] = line.evidence
            elif line.reason is Reason.GRACE and line.deleted_ms is not None:
                later[one.location] = (line.deleted_ms + self._terms.grace_ms, "")
            else:
                later[one.location] = (now_ms + _LONGEST_MS, line.evidence or line.reason.sentence)
        for chunk in chunks(back):
            with database.writing(self._engine) as connection:
                back_again(self._session, connection, chunk, now_ms)
        self._look_again(later, kept)

    def _look_again(self, later: Mapping[Location, tuple[int, str]], kept: Mapping[str, str]) -> None:
        for places in chunks(list(later)):
            with database.writing(self._engine) as connection:
                agenda.look_again(connection, {place: later[place] for place in places})
        for run_ids in chunks(list(kept)):
            told = {run_id: notices.kept(kept[run_id]) for run_id in run_ids}
            with database.writing(self._engine) as connection:
                notices.write(connection, told, deleted_only=True)

    def _plan(self, action: Action, lines: Sequence[Decision], now_ms: int) -> Plan:
        with self._session.tracked.reading() as tracking:
            rows = tracking.entity_rows()
        plan = Plan(
            id=str(uuid.uuid4()),
            created_ms=now_ms,
            cutoff_ms=now_ms - self._terms.grace_ms,
            action=action,
            database_id=self._session.site.database_id,
            entity_rows=sum(rows.values()),
            limits=self._terms.limits,
            decisions=tuple(lines),
        )
        self._dense = planning.dense_parents(plan.due, rows)
        braked = plan.limits.max_objects is not None or plan.limits.max_bytes is not None
        return self._measured(plan) if braked and plan.due else plan

    def _measured(self, plan: Plan) -> Plan:
        """With sizes; what cannot be measured now is put off, so that it does not hold back the others."""
        places = tuple(line.location for line in plan.due if line.location)
        surveyor = surveying.Surveyor(self._client, self._stop.is_set)
        tasks = planning.listing_tasks(places, self._dense)
        with ThreadPoolExecutor(self._terms.concurrency) as executor:
            try:
                sizes = surveying.measure(surveyor, tasks, executor, lambda _done: None)
            except surveying.Stopped:
                return plan  # What is not known trips the brake.
        known = planning.measured(plan, sizes)
        unknown = [line for line in known.due if line.expected_objects is None]
        later = (plan.created_ms + _PAUSED_MS, "it could not be listed, and a brake asks how much it holds")
        self._look_again({line.location: later for line in unknown if line.location}, {})
        left = {id(line) for line in unknown}
        return replace(known, decisions=tuple(line for line in known.decisions if id(line) not in left))

    def _parked(self, plan: Plan, now_ms: int) -> bool:
        """Whether a brake holds all of it back: a person must say that this is meant."""
        tripped = "; ".join(brakes(plan))
        with database.writing(self._engine) as connection:
            if tripped or not agenda.held_back(connection):
                lease.park(connection, tripped or None)
        if tripped:
            again = (now_ms + _PARKED_MS, agenda.HELD + tripped)
            self._look_again({line.location: again for line in plan.due if line.location}, {})
            _logger.warning("Nothing was purged: %s. To go on, run 'mlflow-artifact-gc gc' with the limit", tripped)
        return bool(tripped)

    # The sweep, and after it

    def _sweep(self, plan: Plan) -> sweeping.Report:
        equipment = sweeping.Equipment(
            tracked=self._session.tracked,
            registry=self._session.registry,
            client=self._client,
            site=self._session.site,
            destination=self._session.destination,
            concurrency=self._terms.concurrency,
            dense=self._dense,
            others=places_beside(self._session, plan.due),
            spare_versions=self._terms.action is None,
            missing_rule=bucket_rules.missing(self._session.site, self._client, plan),
            # The inbox was drained before: what is in it now came after.
            noted_since_ms=0,
        )
        return sweeping.sweep(plan, equipment, sweeping.Orders(), self._stop)

    def _after(self, results: Iterable[SweepResult], attempts: Mapping[Location, int]) -> None:
        with database.reading(self._engine) as connection:
            now_ms = database.clock_ms(connection)
        later: dict[Location, tuple[int, str]] = {}
        given_up: list[Location] = []
        kept: dict[str, str] = {}
        for result in results:
            location = result.decision.location
            if location is None or result.verified or result.outcome in (Outcome.RESTORED, Outcome.WAITING):
                continue  # What was restored is cleared up by the next round; what waits has its date.
            tried = attempts.get(location, 0) + 1
            if result.outcome in (Outcome.FAILED, Outcome.UNKNOWN) and tried >= _ATTEMPTS:
                given_up.append(location)
            if result.outcome is Outcome.PROTECTED:
                later[location] = (now_ms + _PROTECTED_MS, agenda.KEPT + result.detail)
                if result.decision.entity.kind is EntityKind.RUN:
                    kept[result.decision.entity.id] = result.detail
            else:
                later[location] = (now_ms + self._delay_ms(result, tried), f"{result.outcome}: {result.detail}")
        self._look_again(later, kept)
        if given_up:
            with database.writing(self._engine) as connection:
                agenda.give_up(connection, given_up, now_ms)

    def _delay_ms(self, result: SweepResult, tried: int) -> int:
        match result.outcome:
            case Outcome.POSTPONED:
                return min(_HOUR_MS, max(self._terms.limits.min_object_age_ms // 4, 1_000))
            case Outcome.FAILED | Outcome.UNKNOWN:
                return min(_MINUTE_MS << min(tried, 10), _LONGEST_MS)
            case Outcome.EMPTY:
                return _LONGEST_MS
            case Outcome.STOPPED if self._stop.is_set():
                return 0  # Not because of anything here: whoever has the lease next may go on.
            case _:
                return _PAUSED_MS


def look_twice(session: Session, terms: Terms, client: S3Client, stop: threading.Event) -> None:
    """List again what was swept a day ago (or the minimum age, if that is longer): a late writer may have come.

    Raises:
        DatabaseUnusable: what was found is not noted, and will be looked at again.
    """
    after_ms = max(_SECOND_LOOK_MS, terms.limits.min_object_age_ms)
    surveyor = surveying.Surveyor(client, stop.is_set)
    last = 0
    while not stop.is_set():
        with database.reading(session.engine) as connection:
            now_ms = database.clock_ms(connection)
            swept = agenda.swept_before(connection, now_ms - after_ms, after_id=last, limit=_SECOND_LOOKS)
        if not swept:
            return
        last = swept[-1].id
        places = tuple(one.location for one in swept)
        tasks = planning.listing_tasks(places, frozenset())
        empty: set[Location] = set()
        written: set[Location] = set()
        with ThreadPoolExecutor(terms.concurrency) as executor:
            for found in executor.map(lambda task: _remaining(surveyor, task), tasks):
                empty |= {location for location, one in found.items() if one.empty}
                written |= {location for location, one in found.items() if not one.empty}
            # After the listings, as when something waits: an empty bucket of that name says nothing of late writers.
            standings = settling.standings(session, client, places, executor)
        elsewhere = {location for location, standing in standings.items() if standing.outcome}
        empty, written = empty - elsewhere, written - elsewhere
        with database.writing(session.engine) as connection:
            agenda.close(connection, empty, now_ms)
            agenda.reopen(connection, written, grace_ms=terms.grace_ms, now_ms=now_ms)


def _remaining(surveyor: surveying.Surveyor, task: planning.ListingTask) -> Mapping[Location, surveying.Found]:
    try:
        return surveyor.remaining(task)
    except (StorageError, surveying.Stopped):
        return {}


def explain(session: Session, fresh: Sequence[journal.Expected], terms: Terms, *, again: bool) -> None:
    """Tell runs that wait that something needs them; with ``again`` also those that were kept and need not be.

    Args:
        fresh: what has come since the last time.
    """
    with database.reading(session.engine) as connection:
        before = {one.location: one for one in agenda.kept(connection)} if again else {}
        by_location = before | {one.location: one for one in agenda.still_waiting(connection, fresh)}
    told: dict[str, notices.Notice] = {}
    why: dict[Location, str] = {}
    for line in decide(session, [one.entity for one in by_location.values()], cutoff_ms=0):
        if line.location is None or line.location not in by_location:
            continue
        kept = line.reason in (Reason.PROTECTED, Reason.NESTED)
        if not kept and line.location not in before:
            continue
        why[line.location] = agenda.KEPT + line.evidence if kept else ""
        if line.entity.kind is EntityKind.RUN:
            until_ms = by_location[line.location].since_ms + terms.grace_ms
            told[line.entity.id] = notices.kept(line.evidence) if kept else notices.pending(until_ms)
    for places in chunks(list(why)):
        with database.writing(session.engine) as connection:
            agenda.explain(connection, {place: why[place] for place in places})
    for run_ids in chunks(list(told)):
        with database.writing(session.engine) as connection:
            notices.write(connection, {run_id: told[run_id] for run_id in run_ids}, deleted_only=True)


def back_again(session: Session, connection: Connection, entities: Sequence[Entity], now_ms: int) -> None:
    """These are no tombstones any more. Restored: nothing waits for them, and their runs say so, or what may be gone.

    Those whose rows are gone for good were not restored: their places are kept.
    """
    there = session.tracked.on(connection).owners(entity.id for entity in entities)
    agenda.lose(connection, [entity for entity in entities if entity.id not in there], now_ms)
    restored = [entity for entity in entities if entity.id in there]
    begun = {entity.id for entity in agenda.cancel(connection, restored, now_ms) if entity.kind is EntityKind.RUN}
    runs = [entity.id for entity in restored if entity.kind is EntityKind.RUN]
    notices.clear(connection, [run_id for run_id in runs if run_id not in begun])
    notices.write(connection, dict.fromkeys(begun, notices.begun(now_ms)))


def _tell(report: sweeping.Report) -> None:
    swept = sum(result.verified for result in report.results)
    waiting = [result for result in report.results if result.outcome is Outcome.WAITING]
    objects = sum(result.deleted_objects + result.deleted_versions for result in report.results)
    size = show_size(sum(result.deleted_bytes for result in report.results))
    others = len(report.results) - swept - len(waiting)
    _logger.info(
        "purged locations: %s of %s (objects: %s, %s)", f"{swept:,}", f"{len(report.results):,}", f"{objects:,}", size
    )
    if waiting:
        done = {Action.HIDE: "hidden", Action.TAG: "tagged for expiry"}[waiting[0].action]
        _logger.info(
            "%s locations: %s (objects: %s)",
            done,
            f"{len(waiting):,}",
            f"{sum(one.waiting_objects for one in waiting):,}",
        )
    if others:
        example = next(one for one in report.results if not one.verified and one.outcome is not Outcome.WAITING)
        _logger.warning(
            "%s are not: %s %s: %s", f"{others:,}", example.decision.entity, example.outcome.value, example.detail
        )
    if report.error:
        _logger.error("The sweep ended before its time: %s", report.error)
