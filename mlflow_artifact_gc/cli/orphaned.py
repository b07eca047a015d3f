"""``gc --orphans`` and ``gc --own-roots``: what no row accounts for, found, shown, noted, and swept as the rest is."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlflow_artifact_gc import database, orphans, planning
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.auditing import room
from mlflow_artifact_gc.cli.backlog import Backlog, Wishes, opened, wishes_of
from mlflow_artifact_gc.cli.output import Grid, Meter, ask
from mlflow_artifact_gc.config import Settings, never_below
from mlflow_artifact_gc.errors import Refused, RootRefused, UsageError
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Plan
from mlflow_artifact_gc.orphans import Found, Hunt, Owned
from mlflow_artifact_gc.policy import brakes
from mlflow_artifact_gc.quantities import show_duration
from mlflow_artifact_gc.session import Session
from mlflow_artifact_gc.surveying import Stopped
from mlflow_artifact_gc.tallying import Tally

_SENSELESS = (
    ("older_than", "--older-than", "nobody knows when an orphan was deleted; --orphan-quarantine and --min-object-age"),
    ("include_undated", "--include-undated", "no orphan has a date"),
    ("run_ids", "--run-ids", "--root names a place"),
    ("experiment_ids", "--experiment-ids", "--root names a place"),
    ("logged_model_ids", "--logged-model-ids", "--root names a place"),
    ("workspace", "--workspace", "--root names a place"),
    ("partial", "--partial", "what has no row is wholly left over, or stays"),
    ("unsafe_ignore_registry", "--unsafe-ignore-registry", "what no row accounts for, the registry may well need"),
)
"""Options of ``gc`` that mean nothing for orphans, and what is said of each."""


def run(*, own_roots: bool, roots: tuple[str, ...], orphan_quarantine: int | None, **options: Any) -> None:
    """Carry out ``gc --orphans`` or ``gc --own-roots``, and leave with its exit code."""
    require_sense(options)
    session, settings = opened(options)
    wishes = wishes_of(options, settings, session)
    site = session.site
    quarantine_ms = never_below(site.orphan_quarantine_ms, settings.orphan_quarantine_ms)
    command = _Orphans(
        session,
        wishes,
        settings,
        json_output=options["output"] == "json",
        roots=tuple(dict.fromkeys(orphans.parse_root(root, session.destination) for root in roots)),
        quarantine_ms=quarantine_ms if orphan_quarantine is None else orphan_quarantine,
    )
    if own_roots:
        sys.exit(command.own(dry_run=options["dry_run"], yes=options["yes"]))
    if wishes.action is not Action.PURGE:
        raise UsageError(
            f"Orphans are only purged, and --action {wishes.action.value} was asked for or is the site's: what has no "
            "row cannot be restored, and so nobody would take it back in time. Add --action purge"
        )
    sys.exit(command.run(dry_run=options["dry_run"], yes=options["yes"], budget_ms=options["time_budget"]))


def require_sense(options: dict[str, Any]) -> None:
    """Raises UsageError for what means nothing here."""
    for name, flag, why in _SENSELESS:
        given = options[name]
        if given is not None and given is not False and given != ():
            raise UsageError(f"{flag} does not go with --orphans: {why}")
    if options["metadata"] != "keep":
        raise UsageError("--metadata delete does not go with --orphans: an orphan has no row")


class _Orphans(Backlog):
    def __init__(
        self,
        session: Session,
        wishes: Wishes,
        settings: Settings,
        *,
        json_output: bool,
        roots: tuple[Location, ...],
        quarantine_ms: int,
    ) -> None:
        super().__init__(session, wishes, settings, json_output=json_output)
        self._roots, self._quarantine_ms = roots, quarantine_ms
        self._found: Found | None = None
        self._notes = False

    def run(self, *, dry_run: bool, yes: bool, budget_ms: int | None) -> int:
        """The same, but that a dry run notes no sightings. Returns the exit code."""
        self._notes = not dry_run
        return super().run(dry_run=dry_run, yes=yes, budget_ms=budget_ms)

    # Planning

    def _plan(self, *, needs_sizes: bool, deadline_s: float | None) -> tuple[Plan, frozenset[Location]]:  # noqa: ARG002
        with database.reading(self._session.engine) as connection:
            now_ms = database.clock_ms(connection)
            rows = self._session.tracked.on(connection).entity_rows()
        try:
            with self._hunting() as (hunt, progress):
                self._found = hunt.orphans(
                    quarantine_ms=self._quarantine_ms,
                    min_age_ms=self._wishes.limits.min_object_age_ms,
                    progress=progress,
                    notes=self._notes,
                )
        except Stopped:
            self._found = Found(decisions=(), prefixes=0, unknown=0, now_ms=now_ms, roots=())
        plan = Plan(
            id=str(uuid.uuid4()),
            created_ms=self._found.now_ms,
            cutoff_ms=self._found.now_ms - self._quarantine_ms,
            action=self._wishes.action,
            database_id=self._session.site.database_id,
            entity_rows=self._found.prefixes,
            limits=self._wishes.limits,
            decisions=self._found.decisions,
        )
        return plan, planning.dense_parents(plan.due, rows)

    @contextmanager
    def _hunting(self, *, new_roots: bool = False) -> Iterator[tuple[Hunt, Callable[[int], None]]]:
        with room(), Tally(None) as tally, Meter("Listing", 0) as meter:

            def progress(count: int) -> None:
                meter.listed(count)
                if self._stop.is_set():
                    raise Stopped

            hunt = Hunt(
                session=self._session,
                client=self._connected(),
                tally=tally,
                concurrency=self._wishes.concurrency,
                roots=self._roots,
                new_roots=new_roots,
            )
            yield hunt, progress

    def _others(self, plan: Plan) -> tuple[Location, ...]:  # noqa: ARG002 - a marker alone proves an orphan's root
        return ()

    # Showing and asking

    def show(self, plan: Plan) -> None:
        """For people: what no row accounts for, what would go and what stays, and why."""
        found = self._found
        if found is None:
            raise AssertionError(plan)
        render.show_orphans(
            self._out, plan, quarantine_ms=self._quarantine_ms, unknown=found.unknown, noted=self._notes
        )
        for tripped in brakes(plan):
            self._out.print(tripped, style="red")

    def _shorter(self) -> str:
        site = self._session.site.orphan_quarantine_ms
        if self._quarantine_ms >= site:
            return ""
        return f" The quarantine is shortened to {show_duration(self._quarantine_ms)}."

    def _more(self) -> dict[str, Any]:
        found = self._found
        if found is None:
            return {}
        return {
            "orphans": {
                "quarantine_ms": self._quarantine_ms,
                "prefixes_found": found.prefixes,
                "unknown_layout": found.unknown,
                "roots": [root.uri for root in found.roots],
                "noted": self._notes,
            }
        }

    # Owning

    def own(self, *, dry_run: bool, yes: bool) -> int:
        """Show what lies under each root, ask, and write this database's marker; returns the exit code.

        Raises:
            Refused: nobody can be asked, or the answer was no.
            RootRefused: a root that a person named is another database's.
        """
        with self._interruptible(), self._hunting(new_roots=True) as (hunt, progress):
            found = hunt.ownable(progress)
            if not self._json:
                self._show_owned(found)
            refused = [one for one in found if one.refused]
            if refused and self._roots:
                raise RootRefused(refused[0].refused)
            wanted = [one.root for one in found if not one.marked and not one.refused]
            if wanted and not dry_run:
                self._confirm_owning(len(wanted), yes=yes)
                for root in wanted:
                    hunt.own(root)
            if self._json:
                render.print_json({"command": "gc", **_owned_document(found, [] if dry_run else wanted)})
            elif wanted and not dry_run:
                self._out.print(f"Marked {render.plural(len(wanted), 'root')} as this database's.", style="bold")
        return 0

    def _show_owned(self, found: list[Owned]) -> None:
        numbers = ("with rows", "left over", "another database's", "unknown layout")
        grid = Grid("root", "marker", *numbers, numbers=numbers)
        for one in found:
            marker = "refused" if one.refused else "this database's" if one.marked else "none"
            counts = (one.with_rows, one.left_over, one.foreign, one.unknown)
            grid.add_row(one.root.uri, marker, *(f"{count:,}" for count in counts), style="red" if one.refused else "")
        if grid.rows:
            self._out.table(grid)
        else:
            self._out.print("Nothing without a row was found, so that no root needs a marker.")
        for one in found:
            if one.refused:
                self._out.print(one.refused, style="red")

    def _confirm_owning(self, count: int, *, yes: bool) -> None:
        if yes:
            return
        if not sys.stdin.isatty():
            raise Refused("Nobody can be asked here, so nothing was written: add --yes, or run it in a terminal")
        roots = render.plural(count, "root")
        if not ask(
            f"Mark {roots} as this database's, as no other MLflow server keeps artifacts there?",
            err=self._json,
        ):
            raise Refused("The answer was no, and nothing was written")


def _owned_document(found: list[Owned], written: list[Location]) -> dict[str, Any]:
    return {
        "roots": [
            {
                "root": one.root.uri,
                "with_rows": one.with_rows,
                "left_over": one.left_over,
                "foreign": one.foreign,
                "unknown_layout": one.unknown,
                "marked": one.marked,
                "refused": one.refused or None,
            }
            for one in found
        ],
        "written": [root.uri for root in written],
    }
