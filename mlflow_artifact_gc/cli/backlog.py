"""``gc``: plan, show, confirm, sweep, report; and the same for what a plan file has selected."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import click

from mlflow_artifact_gc import (
    applying,
    bucket_rules,
    database,
    expiring,
    journal,
    kept,
    partly,
    planning,
    s3,
    settling,
    surveying,
    sweeping,
)
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Meter, Output, ask
from mlflow_artifact_gc.config import Settings, never_below, never_harsher
from mlflow_artifact_gc.errors import ArtifactGcError, Refused, StorageError, UsageError
from mlflow_artifact_gc.lifecycle import as_json
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Limits, Outcome, Plan, Reason, SweepResult
from mlflow_artifact_gc.plan_files import PlanFile
from mlflow_artifact_gc.policy import Scope, brakes, require_within_brakes
from mlflow_artifact_gc.quantities import show_duration
from mlflow_artifact_gc.session import Session, backend_uri, open_session, places_beside, read

CONCURRENCY: Final = 16
_MEASURED_LOCATIONS: Final = 10_000
_BEFORE_SETTINGS: Final = ("action", "older_than", "min_object_age", "max_share", "max_objects", "max_bytes")
_EXIT_FAILED: Final = 3
_EXIT_PAUSED: Final = 1
_EXIT_INTERRUPTED: Final = 130
_NEEDED: Final = (Outcome.RESTORED, Outcome.PROTECTED, Outcome.BUSY)
"""How a location ends that turns out to be needed while it is being hidden or tagged."""
_QUESTIONS: Final = {
    Action.PURGE: "Purge {} for good?",
    Action.HIDE: "Hide {}, until the bucket's rule removes them?",
    Action.TAG: "Tag {} for expiry, which S3 carries out after its next midnight?",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What the command line and the environment ask for, merged."""

    scope: Scope
    action: Action
    grace_ms: int
    limits: Limits
    concurrency: int
    include_undated: bool
    delete_metadata: bool
    measure: bool
    unsafe: tuple[str, ...]
    partial: bool = False
    given: tuple[str, ...] = ()
    """Which options were named of those that come before the site's settings and the environment's."""
    note: bool = True
    """Whether what is found out beside the plan may be noted for ``status``."""
    file: PlanFile | None = None
    """The plan file that selects what is swept."""


def run(**options: Any) -> None:
    """Carry out ``gc`` and leave with its exit code."""
    command = asked_for(options)
    code = command.run(dry_run=options["dry_run"], yes=options["yes"], budget_ms=options["time_budget"])
    sys.exit(code)


def asked_for(options: dict[str, Any], *, note: bool = True) -> Backlog:
    """The backlog that the options of ``gc`` name; ``note``: what is found out beside it is noted for ``status``.

    Raises:
        ArtifactGcError: as ``open_session`` does.
    """
    session, settings = opened(options)
    wishes = replace(wishes_of(options, settings, session), note=note)
    return Backlog(session, wishes, settings, json_output=options["output"] == "json")


def opened(options: dict[str, Any]) -> tuple[Session, Settings]:
    """The databases that the options of ``gc`` name, and what this process's environment says. Raises as above."""
    settings = Settings.from_env()
    uri, remark = backend_uri(options["backend_store_uri"], options["tracking_uri"])
    if remark:
        click.echo(remark, err=True)
    session = open_session(
        backend_store_uri=uri,
        registry_store_uri=options["registry_store_uri"],
        artifacts_destination=options["artifacts_destination"],
        unsafe_ignore_registry=options["unsafe_ignore_registry"],
    )
    return session, settings


def wishes_of(options: dict[str, Any], settings: Settings, session: Session) -> Wishes:
    """What a command line, the environment and the site say together."""
    site = session.site
    older_than, min_age = options["older_than"], options["min_object_age"]
    grace_ms = never_below(site.grace_ms, settings.grace_ms) if older_than is None else older_than
    min_age_ms = never_below(site.min_object_age_ms, settings.min_object_age_ms) if min_age is None else min_age
    max_share = _first(options["max_share"], settings.max_share, Limits().max_share)
    limits = Limits(
        max_share=max_share,
        max_locations=options["max_locations"],
        max_objects=_first(options["max_objects"], settings.max_objects, None),
        max_bytes=_first(options["max_bytes"], settings.max_bytes, None),
        min_object_age_ms=min_age_ms,
    )
    scope = Scope(
        run_ids=options["run_ids"],
        experiment_ids=options["experiment_ids"],
        logged_model_ids=options["logged_model_ids"],
        workspace=options["workspace"],
    )
    action = Action(options["action"]) if options["action"] else never_harsher(site.action, settings.action)
    if options.get("partial") and action not in (None, Action.PURGE):
        raise UsageError(
            f"--partial removes for good, and the action here is {action.value}: give --action purge with it, or leave "
            "--partial away"
        )
    return Wishes(
        scope=scope,
        action=action or Action.PURGE,
        grace_ms=grace_ms,
        limits=limits,
        concurrency=_first(options["concurrency"], settings.concurrency, CONCURRENCY),
        include_undated=options["include_undated"],
        delete_metadata=options["metadata"] == "delete",
        measure=options["measure"],
        partial=options.get("partial", False),
        unsafe=("--unsafe-ignore-registry",) if options["unsafe_ignore_registry"] else (),
        given=tuple(f"--{name.replace('_', '-')}" for name in _BEFORE_SETTINGS if options[name] is not None),
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


class Backlog:
    """The backlog of one database, planned and swept as somebody wishes."""

    def __init__(self, session: Session, wishes: Wishes, settings: Settings, *, json_output: bool) -> None:
        self._session, self._wishes, self._settings = session, wishes, settings
        self._json = json_output
        self._out = Output()
        self._stop = threading.Event()
        self._client: s3.S3Client | None = None
        self._kept = kept.Kept(models=0)
        self._untaken: tuple[str, ...] = ()
        self._unseen: tuple[str, ...] = ()
        self._partly: tuple[partly.Partly, ...] = ()
        self._selection: applying.Selection | None = None

    @property
    def session(self) -> Session:
        return self._session

    @property
    def wishes(self) -> Wishes:
        return self._wishes

    def plan(self) -> Plan | None:
        """The plan, measured as ``gc --dry-run`` does; None where it was interrupted. Writes nothing."""
        with self._interruptible():
            plan, _dense = self._plan(needs_sizes=True, deadline_s=None)
        return None if self._stop.is_set() else plan

    def run(self, *, dry_run: bool, yes: bool, budget_ms: int | None) -> int:
        started = time.monotonic()
        deadline_s = None if budget_ms is None else started + budget_ms / 1000
        with self._interruptible():
            if not dry_run:
                self._settle()
            plan, dense = self._plan(needs_sizes=dry_run or not yes, deadline_s=deadline_s)
            if self._stop.is_set():
                return self._report(plan, sweeping.Report(results=()), started)
            if not self._json:
                self.show(plan)
            # Of a plan file it is noted that it was applied, also where nothing of it is left.
            if dry_run or not (plan.due or self._selection):
                code = self._unsettled
                if self._json:
                    self._print_document(plan, sweeping.Report(results=self._dropped), code=code)
                return code
            self._require_within_brakes(plan)
            self._require_fit_buckets(plan, asks=not yes and sys.stdin.isatty())
            if not yes:
                self._confirm(plan)
            report = self._sweep(plan, dense, deadline_s)
            if plan.action is not Action.PURGE and any(one.outcome in _NEEDED for one in report.results):
                # Half of it may be hidden or tagged, and it is live: it cannot wait for the next gc.
                self._settle_again()
            return self._report(plan, report, started)

    def _settle(self) -> None:
        """What was hidden or tagged before, and is restored, needed or gone by now: before anything new is."""
        settler = settling.Settler(
            session=self._session,
            client=self._connected,
            grace_ms=self._session.site.grace_ms,
            concurrency=self._wishes.concurrency,
            stopped=self._stop.is_set,
        )
        settled = settler.settle(everything=True)
        self._untaken, self._unseen = settled.problems, settled.paused
        for restored in settled.restored:
            if restored.complete:
                click.echo(render.restored(restored), err=True)
        for said in self._unsettled_said():
            click.echo(said, err=True)

    def _unsettled_said(self) -> list[str]:
        return [
            *(f"Not taken back: {problem}" for problem in self._untaken),
            *(f"Not looked at, what is hidden or tagged: {why}" for why in self._unseen),
        ]

    @property
    def _unsettled(self) -> int:
        """The exit code of what was not taken back, or not looked at, where nothing worse has come."""
        return _EXIT_FAILED if self._untaken else _EXIT_PAUSED if self._unseen else 0

    def _settle_again(self) -> None:
        """After a sweep, whose report must not be lost with an error."""
        try:
            self._settle()
        except ArtifactGcError as error:
            self._untaken = (str(error),)
            click.echo(f"Not taken back: {error}", err=True)

    def _require_fit_buckets(self, plan: Plan, *, asks: bool) -> None:
        """The buckets' own rules do the rest of a hide or tag: whether they would.

        Raises:
            Refused: a bucket cannot be hidden or tagged in, or nothing would remove what is.
            StorageError: that is not known.
        """
        if plan.action is Action.PURGE:
            return
        for examined in bucket_rules.of_plan(self._session.site, self._connected(), plan):
            if not self._json:
                self._out.print(examined.sentence)
            if examined.ready:
                continue
            if plan.action is Action.HIDE and not examined.impossible and not self._json:
                self._out.print("Nothing removes what is hidden there, until 'mlflow-artifact-gc lifecycle apply'.")
            if asks and examined.rules:
                self._out.print(json.dumps(as_json(examined.rules), indent=2))
                if ask(f"Write these rules to bucket {examined.bucket!r} now?", err=self._json):
                    with database.reading(self._session.engine) as connection:
                        touched = expiring.places(connection)
                    bucket_rules.require_unused_tag(self._connected(), examined, touched)
                    bucket_rules.apply(self._connected(), examined)
                    continue
            if plan.action is Action.TAG or examined.impossible:
                raise Refused(
                    f"{examined.sentence} Nothing was touched: run 'mlflow-artifact-gc lifecycle apply --action "
                    f"{plan.action.value}' first, or use another --action"
                )

    # Planning

    def _plan(self, *, needs_sizes: bool, deadline_s: float | None) -> tuple[Plan, frozenset[Location]]:
        wishes = self._wishes
        with database.reading(self._session.engine) as connection:
            now_ms = database.clock_ms(connection)
        cutoff_ms = now_ms - wishes.grace_ms
        if wishes.file:
            cutoff_ms = min(cutoff_ms, wishes.file.plan.cutoff_ms)
        found = read(
            self._session,
            wishes.scope,
            cutoff_ms=cutoff_ms,
            include_undated=wishes.include_undated,
            again=wishes.delete_metadata,
            action=wishes.action,
            # What a plan file named may have been restored since.
            all_known=wishes.file is None,
            partial=wishes.partial,
        )
        plan = Plan(
            id=wishes.file.plan.id if wishes.file else str(uuid.uuid4()),
            created_ms=now_ms,
            cutoff_ms=cutoff_ms,
            action=wishes.action,
            database_id=self._session.site.database_id,
            entity_rows=sum(found.rows.values()),
            limits=wishes.limits,
            unsafe=wishes.unsafe,
            decisions=found.decisions,
        )
        if wishes.file:
            plan = self._selected(plan, wishes.file, found.facts)
        dense = planning.dense_parents(plan.due, found.rows)
        measures = self._measures(plan, needs_sizes=needs_sizes)
        self._kept = kept.known(self._session, found.kept_models)
        # Of what stays, and so never of a time that is given for what goes: it would be spent before anything went.
        if deadline_s is None and (measures or self._kept.is_old(now_ms)):
            self._kept = kept.measure(
                self._session,
                found.kept_models,
                self._connected,
                concurrency=wishes.concurrency,
                stopped=self._stop.is_set,
                note=wishes.note,
            )
        protected = len(plan.with_reason(Reason.PROTECTED))
        if wishes.measure or (needs_sizes and protected <= _MEASURED_LOCATIONS):
            needed = planning.partly_needed(plan.decisions, found.facts) | planning.needed_parts(plan.due)
            self._partly = self._measured_parts(needed)
        return (self._measured(plan, dense) if measures else plan), dense

    def _selected(self, plan: Plan, file: PlanFile, facts: planning.Facts) -> Plan:
        with database.reading(self._session.engine) as connection:
            done = journal.done_by(connection, plan.id)
        self._selection = applying.select(file, plan, undone_ms=facts.undone_ms, done=done)
        return self._selection.plan

    @property
    def _dropped(self) -> tuple[SweepResult, ...]:
        return self._selection.dropped if self._selection else ()

    def _measured_parts(self, needed: Mapping[Location, Sequence[Location]]) -> tuple[partly.Partly, ...]:
        if not needed:
            return ()
        try:
            surveyor = surveying.Surveyor(self._connected(), self._stop.is_set)
            return partly.measure(surveyor, needed, concurrency=self._wishes.concurrency)
        except (surveying.Stopped, StorageError):
            return ()

    def _measures(self, plan: Plan, *, needs_sizes: bool) -> bool:
        """Measuring lists everything that is due: worth it where somebody reads the numbers or a brake counts them."""
        braked = plan.limits.max_objects is not None or plan.limits.max_bytes is not None
        few = len(plan.due) <= _MEASURED_LOCATIONS
        return bool(plan.due) and (self._wishes.measure or braked or (needs_sizes and few))

    def _measured(self, plan: Plan, dense: frozenset[Location]) -> Plan:
        places = tuple(line.location for line in plan.due if line.location)
        tasks = planning.listing_tasks(places, dense, planning.needed_parts(plan.due))
        braked = plan.limits.max_objects is not None or plan.limits.max_bytes is not None
        surveyor = surveying.Surveyor(self._connected(), self._stop.is_set)
        with (
            Meter("Measuring", len(places)) as meter,
            ThreadPoolExecutor(self._wishes.concurrency) as executor,
        ):
            try:
                return planning.measured(
                    plan, surveying.measure(surveyor, tasks, executor, meter.advance, strict=braked)
                )
            except surveying.Stopped:
                return plan

    def _connected(self) -> s3.S3Client:
        if self._client is None:
            self._client = s3.connect(self._settings.environ, threads=self._wishes.concurrency)
        return self._client

    # Showing and asking

    def show(self, plan: Plan) -> None:
        """For people: what would go and what stays, and why."""
        if self._wishes.file and self._selection:
            render.show_selection(self._out, self._wishes.file, plan, self._selection)
            render.show_brakes(self._out, self._tripped(plan))
            return
        if not plan.decisions:
            where = "what was named" if self._wishes.scope != Scope() else "this database"
            self._out.print(f"Nothing in {where} is deleted: there is nothing to do.")
            return
        render.show_plan(self._out, plan, older_than_ms=self._wishes.grace_ms, grace_ms=self._session.site.grace_ms)
        if self._kept.models:
            self._out.print(render.kept_models(self._kept))
        render.show_partly(self._out, self._partly, going=planning.needed_parts(plan.due))
        render.show_brakes(self._out, brakes(plan))

    def _tripped(self, plan: Plan) -> list[str]:
        """The brakes of a plan file, and those of what is left of it now."""
        return (brakes(self._wishes.file.plan) if self._wishes.file else []) or brakes(plan)

    def _require_within_brakes(self, plan: Plan) -> None:
        if self._wishes.file is None:
            require_within_brakes(plan)
            return
        if tripped := self._tripped(plan):
            raise Refused(
                f"Refused, and nothing was touched: {'; '.join(tripped)}. The limits are the plan's: make a new one, "
                "with the limit raised"
            )

    def _confirm(self, plan: Plan) -> None:
        if not sys.stdin.isatty():
            raise Refused("Nobody can be asked here, so nothing was touched: add --yes, or run it in a terminal")
        totals = plan.totals
        some = len(planning.needed_parts(plan.due))
        beside = f" (of {some:,} of them what lies beside the parts that are needed)" if some else ""
        question = f"{_QUESTIONS[plan.action].format(f'{totals.due:,} locations{beside}')}{self._shorter()}"
        if not ask(question, err=self._json):
            raise Refused("The answer was no, and nothing was touched")

    def _shorter(self) -> str:
        """What the question says of a margin that is shorter than the site's."""
        grace = self._wishes.grace_ms
        site = self._session.site.grace_ms
        return "" if grace >= site else f" The grace period is shortened to {show_duration(grace)}."

    # Sweeping

    def _others(self, plan: Plan) -> tuple[Location, ...]:
        return places_beside(self._session, plan.due)

    def _sweep(self, plan: Plan, dense: frozenset[Location], deadline_s: float | None) -> sweeping.Report:
        equipment = sweeping.Equipment(
            tracked=self._session.tracked,
            registry=self._session.registry,
            client=self._connected(),
            site=self._session.site,
            destination=self._session.destination,
            concurrency=self._wishes.concurrency,
            dense=dense,
            others=self._others(plan),
            missing_rule=bucket_rules.missing(self._session.site, self._connected(), plan),
            noted_since_ms=self._wishes.file.plan.created_ms if self._wishes.file else None,
        )
        with Meter("Sweeping", len(plan.due)) as meter:

            def seen(_result: SweepResult) -> None:
                meter.advance()

            orders = sweeping.Orders(
                delete_metadata=self._wishes.delete_metadata,
                scope=applying.experiments(self._wishes.file) if self._wishes.file else self._wishes.scope,
                file=self._wishes.file,
                deadline_s=deadline_s,
                on_result=seen,
                on_note=meter.note,
            )
            report = sweeping.sweep(plan, equipment, orders, self._stop)
        return replace(report, results=(*report.results, *self._dropped))

    def _print_document(self, plan: Plan, report: sweeping.Report, *, code: int) -> None:
        document = render.report_document(plan, report, self._kept, code=code)
        document["error"] = document["error"] or "; ".join(self._unsettled_said()) or None
        if self._wishes.file and self._selection:
            document |= render.selection_document(self._wishes.file, self._selection)
        render.print_json({**document, "partly_needed": render.partly_document(self._partly), **self._more()})

    def _more(self) -> dict[str, Any]:
        """What the document of another kind of backlog says beside."""
        return {}

    def _report(self, plan: Plan, report: sweeping.Report, started: float) -> int:
        code = exit_code(report, interrupted=self._stop.is_set())
        code = code or self._unsettled
        error = str(report.error) if report.error else render.complaint(report.results)
        if self._json:
            self._print_document(plan, report, code=code)
        else:
            experiments, seconds = report.experiments_deleted, time.monotonic() - started
            render.show_results(self._out, report.results, plan_id=plan.id, experiments=experiments, seconds=seconds)
        if error:
            click.echo(f"Error: {error}", err=True)
        if self._stop.is_set():
            click.echo("Interrupted cleanly: run it again to go on.", err=True)
        return code

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM stops after the requests under way, the second at once."""

        def stop(_number: int, _frame: object) -> None:
            self._stop.set()
            restore()
            click.echo("Stopping after the requests under way; once more stops at once.", err=True)

        def restore() -> None:
            for number, before in previous.items():
                signal.signal(number, before)

        previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            restore()


def exit_code(report: sweeping.Report, *, interrupted: bool) -> int:
    """The documented exit code of a report."""
    outcomes = {result.outcome for result in report.results}
    if interrupted:
        return _EXIT_INTERRUPTED
    if outcomes & {Outcome.FAILED, Outcome.UNKNOWN} or any(result.unknown for result in report.results):
        return _EXIT_FAILED
    if report.error:
        return report.error.exit_code
    return _EXIT_PAUSED if Outcome.PAUSED in outcomes else 0
