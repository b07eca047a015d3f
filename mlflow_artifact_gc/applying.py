"""What of a plan file may still be carried out: never more than it says, and never what the rows say no more. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from mlflow_artifact_gc.errors import PlanRefused
from mlflow_artifact_gc.locations import Location, without_secrets
from mlflow_artifact_gc.model import Action, Decision, EntityKind, Outcome, Plan, Reason, SweepResult
from mlflow_artifact_gc.plan_files import PlanFile
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.quantities import show_duration, show_instant

_CLOCKS_MS: Final = 60_000
"""By how much the clock of a database may be behind the one of the server that stood in for it."""
_N = TypeVar("_N", int, float)


def require_applicable(file: PlanFile, *, database_id: str, now_ms: int, max_age_ms: int) -> None:
    """Whether the file is of this database and new enough, by the database's clock.

    Raises:
        PlanRefused: with what was found and what to do.
    """
    made_ms = file.plan.created_ms
    if file.plan.database_id != database_id:
        raise PlanRefused(
            f"This plan is another database's: it was made for {file.plan.database_id}, and this one is {database_id}"
        )
    if made_ms > now_ms + _CLOCKS_MS:
        raise PlanRefused(
            f"This plan was made at {show_instant(made_ms)}, and by the database's clock it is only "
            f"{show_instant(now_ms)}: make a new plan"
        )
    if now_ms - made_ms > max_age_ms:
        raise PlanRefused(
            f"This plan is stale: it was made at {show_instant(made_ms)}, {show_duration(now_ms - made_ms)} ago, and "
            f"--max-plan-age allows {show_duration(max_age_ms)}. Make a new plan"
        )


def require_as_mild(file: PlanFile, *, site: Action | None, wanted: Action | None) -> None:
    """Whether a purge is still what the site wants.

    Args:
        file: the plan file.
        site: the site's action now.
        wanted: what ``gc`` would do now without ``--action``.

    Raises:
        PlanRefused: the file purges, and the site hides or tags by now.
    """
    if file.plan.action is not Action.PURGE or wanted in (None, Action.PURGE):
        return
    if "--action" not in file.terms.given or site is not file.terms.site_action:
        raise PlanRefused(
            f"This plan purges, and by now '{wanted}' is what is to be done here: make a new plan, with --action purge "
            "if it is to purge all the same"
        )


def margin_ms(planned_ms: int, *, given: bool, then_ms: int, site_ms: int, own_ms: int | None) -> int:
    """A grace period or a minimum age as it counts now: the longest one.

    Only where the plan was made with an option for it does that count instead, as it does for ``gc``, unless the site's
    own has been lengthened since: whoever gave the option had not seen that.

    Args:
        planned_ms: what the plan was made with.
        given: whether that was by an option.
        then_ms: the site's at that time.
        site_ms: the site's now.
        own_ms: this process's, if its environment has one.
    """
    if given and site_ms <= then_ms:
        return planned_ms
    return max(planned_ms, site_ms, 0 if given or own_ms is None else own_ms)


def lowest(planned: _N | None, own: _N | None, *, given: bool) -> _N | None:
    """A brake as it counts now: the plan's, or this process's lower one where the plan's was not given by an option."""
    if given or own is None:
        return planned
    return own if planned is None else min(planned, own)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What is left of a plan file: the plan to carry out, what was dropped and why, and what it had done before."""

    plan: Plan
    dropped: tuple[SweepResult, ...]
    done: int


def select(
    file: PlanFile, now: Plan, *, undone_ms: Mapping[Location, int | None], done: Collection[Location]
) -> Selection:
    """Of what is due now that which the file has as due, in the very same way.

    The plan that comes out has all lines of the entities that the file names, so that a row is deleted only where all
    its locations are gone; what the file does not have as due, or not so, is not due in it.

    Args:
        file: the plan file.
        now: what was decided by the rows as they are now.
        undone_ms: locations of which a person has taken back a hide or tag, and when.
        done: locations that this very plan has swept, hidden or tagged before.
    """
    planned = {(*_key(line), line.location): line for line in file.plan.due}
    entities = {_key(line) for line in planned.values()}
    found: dict[tuple[EntityKind, str, Location | None], Decision] = {}
    lines: list[Decision] = []
    chosen: set[tuple[EntityKind, str, Location | None]] = set()
    for line in now.decisions:
        if _key(line) not in entities:
            continue
        key = (*_key(line), line.location)
        found[key] = line
        if line.reason is not Reason.DUE:
            lines.append(line)
        elif key in planned and not _why_not(planned[key], line, file.plan.created_ms, undone_ms):
            chosen.add(key)
            lines.append(line)
        else:
            lines.append(replace(line, reason=Reason.NOT_PLANNED))
    places = {_key(line) for line in lines}
    rest = [line for key, line in planned.items() if key not in chosen and line.location not in done]
    dropped = []
    for line in rest:
        there = found.get((*_key(line), line.location))
        if there is not None:
            why = _why_not(line, there, file.plan.created_ms, undone_ms)
        elif _key(line) in places:
            why = "its place, by its row, is not the one that was planned"
        else:
            why = "restored, or its row has gone or changed, since the plan was made"
        dropped.append(SweepResult(decision=line, outcome=Outcome.DROPPED, action=now.action, detail=why))
    return Selection(
        plan=replace(now, decisions=tuple(lines)),
        dropped=tuple(dropped),
        done=len(planned) - len(chosen) - len(dropped),
    )


def experiments(file: PlanFile) -> Scope | None:
    """The experiments whose own rows may go once nothing is left of them: those of its due lines; None: none may."""
    scope = file.terms.scope
    entities = {line.entity for line in file.plan.due}
    ids = {one.experiment_id for one in entities if scope.covers_experiment(one.experiment_id, one.workspace)}
    return Scope(experiment_ids=tuple(sorted(ids)), workspace=scope.workspace) if ids else None


def _key(line: Decision) -> tuple[EntityKind, str]:
    return line.entity.kind, line.entity.id


def _why_not(planned: Decision, now: Decision, made_ms: int, undone_ms: Mapping[Location, int | None]) -> str:
    """Why a planned line is not to be swept, by what was decided now; empty where it is."""
    if planned.deleted_ms != now.deleted_ms:
        return "restored and deleted again since the plan was made"
    if planned.entity != now.entity or planned.uri != without_secrets(now.uri) or planned.root != now.root:
        return "its row has changed since the plan was made"
    if now.reason is not Reason.DUE:
        return now.evidence or now.reason.sentence
    undone = undone_ms.get(planned.location) if planned.location else None
    if undone is not None and undone >= made_ms:
        return "taken back with 'undo' since the plan was made"
    return ""
