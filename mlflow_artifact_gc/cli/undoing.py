"""``undo``: takes back what was hidden or tagged, and says what the bucket's rule has removed already."""

from __future__ import annotations

import sys
import threading
from functools import cache
from typing import Any, Final

import click

from mlflow_artifact_gc import database, expiring, journal, s3, settling
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Grid, Output
from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.expiring import Ending, Touched
from mlflow_artifact_gc.journal import State
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.quantities import show_count
from mlflow_artifact_gc.restoring import Restored
from mlflow_artifact_gc.session import Session, open_session

_CONCURRENCY: Final = 16
_EXIT_FAILED: Final = 3
_LINES: Final = 20


def run(
    *,
    output: str,
    run_ids: tuple[str, ...],
    logged_model_ids: tuple[str, ...],
    experiment_ids: tuple[str, ...],
    plan_id: str | None,
    concurrency: int | None,
    **stores: Any,
) -> None:
    """Carry out ``undo`` and leave with its exit code."""
    settings = Settings.from_env()
    # What needs these artifacts does not matter: they are only ever brought back.
    session = open_session(**stores, unsafe_ignore_registry=True)
    scope = Scope(run_ids=run_ids, logged_model_ids=logged_model_ids, experiment_ids=experiment_ids)
    found = _named(session, scope, plan_id)
    concurrency = concurrency or settings.concurrency or _CONCURRENCY
    settler = settling.Settler(
        session=session,
        client=cache(lambda: s3.connect(settings.environ, threads=concurrency)),
        grace_ms=session.site.grace_ms,
        concurrency=concurrency,
        stopped=threading.Event().is_set,
    )
    settled = settler.take_back(found, _endings(session, found))
    code = _EXIT_FAILED if settled.problems else 0
    if output == "json":
        render.print_json(_document(settled, code))
    else:
        _print(settled)
    for problem in settled.problems:
        click.echo(f"Error: not taken back: {problem}", err=True)
    sys.exit(code)


def _named(session: Session, scope: Scope, plan_id: str | None) -> list[Touched]:
    """What was named and is hidden or tagged.

    Raises:
        UsageError: nothing is, and why.
    """
    with database.reading(session.engine) as connection:
        found = expiring.named(connection, scope, plan_id)
        gone = journal.swept_of(connection, scope)
    if found:
        return found
    if gone:
        raise UsageError(f"Nothing of that is hidden or tagged: {gone[0]} was purged or removed, and that is for good")
    raise UsageError("Nothing of that is hidden or tagged: there is nothing to take back")


def _endings(session: Session, found: list[Touched]) -> dict[Location, Ending]:
    """What is deleted still stays until somebody deletes it again; what was restored is as any live one."""
    with session.tracked.reading() as tracking:
        dead = {stone.entity.id for stone in tracking.tombstones(one.entity for one in found)}
        there = tracking.owners(one.entity.id for one in found)
    # What has no row cannot be restored: a person has taken it back, and it is no orphan that may go.
    stays = {one.entity.id for one in found if one.entity.id in dead or one.entity.id not in there}
    with database.reading(session.engine) as connection:
        now_ms = database.clock_ms(connection)
    return {
        one.location: Ending(
            state=State.CANCELLED,
            detail="taken back with 'undo'" if one.entity.id in stays else "restored",
            undone_ms=now_ms if one.entity.id in stays else None,
        )
        for one in found
    }


def _print(settled: settling.Settled) -> None:
    out = Output()
    grid = Grid("taken back", "what", "back", "gone", "gone for good", numbers=("back", "gone"))
    for one in settled.restored[:_LINES]:
        style = "green" if one.complete and not one.gone else "yellow"
        grid.add_row(
            one.touched.action.value,
            str(one.touched.entity),
            show_count(one.back),
            show_count(one.gone),
            _named_keys(one),
            style=style,
        )
    if settled.restored:
        out.table(grid)
        if len(settled.restored) > _LINES:
            out.print(f"… and {len(settled.restored) - _LINES:,} more (--format json has them all)")
        out.print("")
    back, gone = sum(one.back for one in settled.restored), sum(one.gone for one in settled.restored)
    locations = render.plural(len(settled.restored), "location")
    out.print(f"Taken back: {render.plural(back, 'object')} in {locations}.", style="bold")
    if gone:
        out.print(f"Gone already, by the bucket's lifecycle rule: {render.plural(gone, 'object')}.")
    if hidden := sum(one.hidden for one in settled.restored):
        out.print(
            f"Untagged, but hidden by the rule already: {render.plural(hidden, 'object')}. Their delete markers are "
            "not ours; remove them by hand to show the objects again."
        )


def _named_keys(one: Restored) -> str:
    keys = ", ".join(key.removeprefix(one.touched.location.prefix) for key in one.gone_keys[:3])
    return f"{keys}, …" if len(one.gone_keys) > len(one.gone_keys[:3]) else keys


def _document(settled: settling.Settled, code: int) -> dict[str, Any]:
    return {
        "command": "undo",
        "locations": [
            {
                "kind": one.touched.entity.kind.value,
                "id": one.touched.entity.id,
                "location": one.touched.location.uri,
                "action": one.touched.action.value,
                "plan": one.touched.plan_id,
                "back": one.back,
                "gone": one.gone,
                "hidden": one.hidden,
                "gone_keys": list(one.gone_keys),
                "failures": [{"key": bad.key, "code": bad.code, "message": bad.message} for bad in one.failures],
                "unknown": one.unknown,
            }
            for one in settled.restored
        ],
        "problems": list(settled.problems),
        "exit_code": code,
    }
