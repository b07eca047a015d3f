"""What a data scientist sees of us in MLflow: tags on the run. The only rows of MLflow's that we write.

They go straight into MLflow's table, because its own calls refuse to tag a deleted run; MLflow's page and search show
them (but none whose name begins with ``mlflow.``).
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import database
from mlflow_artifact_gc.errors import DatabaseUnusable
from mlflow_artifact_gc.model import Action, EntityKind, Outcome, SweepResult
from mlflow_artifact_gc.quantities import show_instant, show_minute, show_size

STATUS: Final = "artifact_gc.status"
EXPIRES: Final = "artifact_gc.expires"
PROTECTED_BY: Final = "artifact_gc.protected_by"
PURGED: Final = "artifact_gc.purged"
"""What has gone, and when: it stays whatever happens to the run, and only a later purge replaces it."""
HIDDEN: Final = "artifact_gc.hidden"
"""What is there and not shown: for somebody to bring back by hand."""
_KEYS: Final = (HIDDEN, STATUS, EXPIRES, PROTECTED_BY)
_PURGED: Final = "purged"
_FORM: Final = re.compile(r"^registered |, (?:source|storage_location)\b.*$")
_LONGEST: Final = 500
_TRIES: Final = 10
_TICK_S: Final = 0.02
_IN_LIMIT: Final = 500

_tags = sa.table("tags", sa.column("key"), sa.column("value"), sa.column("run_uuid"))
_runs = sa.table("runs", sa.column("run_uuid"), sa.column("lifecycle_stage"))

Notice = tuple[tuple[str, str], ...]
"""Tags and their values. The other tags of ours are taken away."""

CLEARED: Final[Notice] = ()


def pending(until_ms: int, *, begun_ms: int | None = None) -> Notice:
    """It goes then, unless it is restored before. The first word tells the states apart where MLflow cuts the rest.

    Args:
        begun_ms: before then a sweep of it had begun, and died.
    """
    due = ((STATUS, f"purge due {_utc(until_ms)}, unless restored"), (EXPIRES, show_instant(until_ms)))
    return due if begun_ms is None else (*due, (PURGED, _begun(begun_ms)))


def kept(holder: str) -> Notice:
    """Something needs it."""
    return ((STATUS, "kept, still needed"), (PROTECTED_BY, _FORM.sub("", holder)[:_LONGEST]))


def begun(now_ms: int) -> Notice:
    """Its sweep had begun, and nobody knows how far it came."""
    return ((STATUS, _begun(now_ms)), (PURGED, _begun(now_ms)))


def _begun(before_ms: int) -> str:
    return f"{_PURGED} in part, perhaps, before {_utc(before_ms)}: a sweep of it was killed"


def purged(result: SweepResult, now_ms: int) -> Notice | None:
    """What became of it; None where nothing has left the bucket and something may still be there."""
    objects = result.deleted_objects + result.deleted_versions
    gone = f"{_objects(objects)}, {show_size(result.deleted_bytes)}"
    if result.outcome is Outcome.WAITING:
        # Those with too many tags were purged, if the site has it so.
        lost: Notice = ((PURGED, f"{gone} in part, {_utc(now_ms)}"),) if objects else ()
        return (*_waiting(result, now_ms), *lost)
    if result.verified and not objects:
        return ((STATUS, f"{_PURGED} {_utc(now_ms)}: none were left"),)
    if not objects:
        return CLEARED if result.outcome is Outcome.RESTORED else None
    part = "" if result.verified else " in part"
    # Short, and what the other one does not say comes first: MLflow's page cuts a long tag.
    return ((STATUS, f"{_PURGED}{part} {_utc(now_ms)}"), (PURGED, f"{gone}{part}, {_utc(now_ms)}"))


def _objects(count: int) -> str:
    return f"{count:,} object{'' if count == 1 else 's'}"


def _waiting(result: SweepResult, now_ms: int) -> Notice:
    much = f"{_objects(result.waiting_objects)}, {show_size(result.waiting_bytes)}"
    done = "hidden" if result.action is Action.HIDE else "tagged for expiry"
    return ((STATUS, f"{done} {_utc(now_ms)}, the bucket's rule removes it"), (EXPIRES, f"{done}: {much}"))


def arrived(objects: int, size_bytes: int, now_ms: int) -> Notice:
    """What was hidden or tagged has been removed by the bucket's rule."""
    gone = f"{_objects(objects)}, {show_size(size_bytes)}"
    return ((STATUS, f"{_PURGED} by {_utc(now_ms)}"), (PURGED, f"{gone}, by {_utc(now_ms)}"))


def taken_back(gone: int, now_ms: int, *, hidden: int, undone: bool, holder: str, until_ms: int | None) -> Notice:
    """A hide or tag was taken back; what the bucket's rule had removed before is said for good.

    Args:
        gone: how many objects that are.
        now_ms: the time.
        hidden: how many are there, behind delete markers that the rule has written.
        undone: a person has taken it back, and it stays deleted.
        holder: what needs it, if something does.
        until_ms: when it goes, if it was deleted again.
    """
    lost = f"{_PURGED} in part: {_objects(gone)}, before {_utc(now_ms)}"
    said: Notice = ((PURGED, lost),) if gone else CLEARED
    if hidden:
        behind = f"hidden by the bucket's rule: {_objects(hidden)}; remove their delete markers to show them"
        lost, said = behind, (*said, (HIDDEN, behind))
    if holder:
        return (*kept(holder), *said)
    if until_ms is not None:
        return (*pending(until_ms), *said)
    if undone:
        return ((STATUS, f"taken back {_utc(now_ms)}: kept until it is deleted again"), *said)
    return ((STATUS, lost), *said) if gone or hidden else CLEARED


def _utc(instant_ms: int) -> str:
    return show_minute(instant_ms).replace("Z", " UTC")


def of_results(results: Iterable[SweepResult], now_ms: int) -> dict[str, Notice]:
    """The notices that the results of a sweep call for, by run."""
    runs = [result for result in results if result.decision.entity.kind is EntityKind.RUN]
    found = {result.decision.entity.id: purged(result, now_ms) for result in runs}
    return {run_id: notice for run_id, notice in found.items() if notice is not None}


def write(connection: Connection, notices: Mapping[str, Notice], *, deleted_only: bool = False) -> None:
    """Put each run's notice in place of the one that it has; runs without a row are left out.

    Args:
        deleted_only: leave those alone that have been restored.
    """
    by_notice: defaultdict[Notice, list[str]] = defaultdict(list)
    for run_id, notice in notices.items():
        by_notice[notice].append(run_id)
    for notice, run_ids in by_notice.items():
        for start in range(0, len(run_ids), _IN_LIMIT):
            _write(connection, notice, run_ids[start : start + _IN_LIMIT], deleted_only=deleted_only)


def _write(connection: Connection, notice: Notice, run_ids: list[str], *, deleted_only: bool) -> None:
    if connection.dialect.name == "postgresql":
        # Shorter than the time after which it looks for deadlocks: whoever gives up then, it is never MLflow.
        connection.exec_driver_sql("SET LOCAL lock_timeout = '200ms'")
    if connection.dialect.name == "mysql":
        _hold(connection, run_ids)
    replaced = {*_KEYS, *(key for key, _ in notice)}
    theirs = sa.and_(_tags.c.run_uuid.in_(run_ids), _tags.c.key.in_(sorted(replaced)))
    if notice == CLEARED:
        # Deleted again since: what is said then is for the worker to say.
        waits = sa.select(_runs.c.run_uuid).where(_runs.c.run_uuid.in_(run_ids), _runs.c.lifecycle_stage == "deleted")
        theirs = sa.and_(theirs, _tags.c.run_uuid.not_in(waits))
    connection.execute(sa.delete(_tags).where(theirs))
    chosen: sa.ColumnElement[bool] = _runs.c.run_uuid.in_(run_ids)
    if deleted_only:
        chosen = sa.and_(chosen, _runs.c.lifecycle_stage == "deleted")
    for key, value in notice:
        columns = [sa.literal(key, sa.String), sa.literal(value, sa.String), _runs.c.run_uuid]
        rows = sa.select(*columns).where(chosen)
        connection.execute(sa.insert(_tags).from_select(["key", "value", "run_uuid"], rows))


def _hold(connection: Connection, run_ids: list[str]) -> None:
    """On MySQL: hold the rows that tags refer to, so that writing the tags waits for none of them.

    There a deadlock is found at once, and ends whoever has done less: who waits for MLflow's users may end one of them.

    Raises:
        DatabaseUnusable: a user's transaction does not let go of a run.
    """
    query = sa.select(_runs.c.run_uuid).where(_runs.c.run_uuid.in_(run_ids))
    for tries_left in reversed(range(_TRIES)):
        waits = set(connection.scalars(query)) - set(connection.scalars(database.shared(query, connection)))
        if not waits:
            return
        if not tries_left:
            raise DatabaseUnusable(f"Run {min(waits)} is being changed by somebody else: its tags are written later")
        time.sleep(_TICK_S)


def clear(connection: Connection, run_ids: Iterable[str]) -> None:
    """Take away what promised or explained something about runs that are back; what says that things are gone stays."""
    ids = list(run_ids)
    for start in range(0, len(ids), _IN_LIMIT):
        theirs = _tags.c.run_uuid.in_(ids[start : start + _IN_LIMIT])
        said = sa.and_(_tags.c.key == STATUS, _tags.c.value.like(f"{_PURGED} %"))
        connection.execute(sa.delete(_tags).where(theirs, _tags.c.key.in_(_KEYS), sa.not_(said)))
