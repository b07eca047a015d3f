"""What is hidden or tagged and waits for S3: its statements on intents.

Such an intent has ``acted_from_ms``. Whether what it names is still deleted, MLflow's rows say; as long as it has that
date, a restore is not complete before S3 was asked to take something back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import journal
from mlflow_artifact_gc.hides import Hide
from mlflow_artifact_gc.journal import State
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Entity
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.tables import intents

_DETAIL: Final = 1000
_IN_LIMIT: Final = 500
STUCK: Final = "not taken back: "
"""How the detail of an intent begins that is needed again, and of which something is still hidden or tagged."""
UNSEEN: Final = "not looked at: "
"""The same of what waits, and whose place is not known to be still the same."""
_AGAIN_MS: Final = 5 * 60_000
"""What could not be taken back is tried again so much later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Touched:
    """A location in which something is hidden or tagged, or may be.

    ``hide`` is None for ``tag``. ``seen_ms`` is when its deletion was first seen, or seen anew.
    """

    id: int
    entity: Entity
    location: Location
    action: Action
    state: State
    deleted_ms: int | None
    seen_ms: int
    acted_from_ms: int
    acted_ms: int
    """When the last sweep of it had ended."""
    look_ms: int | None
    objects: int
    size_bytes: int
    plan_id: str | None
    hide: Hide | None

    @property
    def since_ms(self) -> int:
        """From when its grace period counts."""
        return max(self.deleted_ms or 0, self.seen_ms)


_TOUCHED: Final = intents.c.acted_from_ms.is_not(None)


def touched(connection: Connection, *, now_ms: int, everything: bool = False) -> list[Touched]:
    """What no process is working on now and somebody has to look at, or ``everything`` of it."""
    free = sa.or_(intents.c.claimed_until_ms.is_(None), intents.c.claimed_until_ms <= now_ms)
    where = sa.and_(_TOUCHED, free)
    if not everything:
        where = sa.and_(where, intents.c.look_ms <= now_ms)
    return _read(connection, where)


def places(connection: Connection) -> list[Location]:
    """Where something is hidden or tagged, or may be."""
    return [one.location for one in _read(connection, _TOUCHED)]


def named(connection: Connection, scope: Scope, plan_id: str | None) -> list[Touched]:
    """What is hidden or tagged of some runs, logged models or experiments, or by a plan."""
    chosen: list[sa.ColumnElement[bool]] = [
        intents.c.entity_id.in_([*scope.run_ids, *scope.logged_model_ids]),
        intents.c.experiment_id.in_(scope.experiment_ids),
    ]
    if plan_id is not None:
        chosen.append(intents.c.acted_plan_id == plan_id)
    return _read(connection, sa.and_(_TOUCHED, sa.or_(*chosen)))


def claimed_by(connection: Connection, owner: str) -> list[Touched]:
    """What ``owner`` has claimed of it."""
    return _read(connection, sa.and_(_TOUCHED, intents.c.claimed_by == owner))


def _read(connection: Connection, where: sa.ColumnElement[bool]) -> list[Touched]:
    rows = connection.execute(sa.select(intents).where(where).order_by(intents.c.id)).mappings()
    return [_touched(row) for row in rows]


def _touched(row: sa.RowMapping) -> Touched:
    return Touched(
        id=row["id"],
        entity=journal.entity_of(row),
        location=Location(row["bucket"], row["prefix"]),
        action=Action(row["action"]),
        state=State(row["state"]),
        deleted_ms=row["deleted_ms"],
        seen_ms=row["first_seen_ms"],
        acted_from_ms=row["acted_from_ms"],
        acted_ms=row["swept_ms"] or row["acted_from_ms"],
        look_ms=row["look_ms"],
        objects=row["waiting_objects"],
        size_bytes=row["waiting_bytes"],
        plan_id=row["acted_plan_id"],
        hide=journal.hide_of(row),
    )


def claim(
    connection: Connection, locations: Sequence[Location], *, owner: str, now_ms: int, until_ms: int
) -> set[Location]:
    """Keep other processes away from locations, whose state stays; those that are ours now."""
    keys = [journal.sha256(location) for location in locations]
    mine: set[Location] = set()
    for start in range(0, len(keys), _IN_LIMIT):
        rows = journal.intent_rows(connection, keys[start : start + _IN_LIMIT])
        free = [
            key
            for key, row in rows.items()
            if row["acted_from_ms"] is not None and not journal.is_claimed(row, owner, now_ms)
        ]
        mine |= {Location(rows[key]["bucket"], rows[key]["prefix"]) for key in free}
        changed = intents.update().where(intents.c.location_sha256.in_(free))
        if free:
            # Of a hide that was killed: the end of its claim is until when it may have hidden something.
            killed = [
                {"key": key, "new_until_ms": journal.acted_until_ms(rows[key])}
                for key in free
                if rows[key]["acted_until_ms"] is None
            ]
            if killed:
                until = intents.update().where(intents.c.location_sha256 == sa.bindparam("key"))
                connection.execute(until.values(acted_until_ms=sa.bindparam("new_until_ms")), killed)
            connection.execute(changed.values(claimed_by=owner, claimed_until_ms=until_ms))
    return mine


def renew(connection: Connection, location: Location, *, owner: str, until_ms: int) -> bool:
    """Put off the end of a claim; False where it is not ours any more."""
    mine = sa.and_(intents.c.location_sha256 == journal.sha256(location), intents.c.claimed_by == owner)
    return bool(connection.execute(intents.update().where(mine).values(claimed_until_ms=until_ms)).rowcount)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What becomes of an intent. ``undone_ms``: a person has taken it back."""

    state: State
    look_ms: int | None = None
    detail: str = ""
    undone_ms: int | None = None


def take_back(connection: Connection, one: Touched, end: Ending, *, owner: str, now_ms: int) -> None:
    """Nothing in it is hidden or tagged any more."""
    # Deleted again meanwhile: what the worker has written down of that stays, with its dates.
    anew = intents.c.first_seen_ms > one.seen_ms
    values: dict[str, Any] = {
        "state": sa.case((anew, State.PENDING), else_=end.state),
        "state_ms": now_ms,
        "look_ms": sa.case((anew, intents.c.look_ms), else_=end.look_ms),
        "detail": end.detail[:_DETAIL],
        "undone_ms": end.undone_ms,
        **dict.fromkeys(("action", "acted_from_ms", "acted_until_ms", "acted_plan_id", "spared")),
        "waiting_objects": 0,
        "waiting_bytes": 0,
        "attempts": 0,
    }
    _end(connection, one.location, owner, values)


def try_again(connection: Connection, location: Location, why: str, *, owner: str, now_ms: int) -> None:
    """It could not be taken back, or not all of it."""
    # What had failed nobody would look at again.
    state = sa.case((intents.c.state == State.FAILED, State.PENDING), else_=intents.c.state)
    values = {"state": state, "look_ms": now_ms + _AGAIN_MS, "detail": f"{STUCK}{why}"[:_DETAIL]}
    _end(connection, location, owner, values)


def _end(connection: Connection, location: Location, owner: str, values: dict[str, Any]) -> None:
    mine = sa.and_(intents.c.location_sha256 == journal.sha256(location), intents.c.claimed_by == owner)
    connection.execute(intents.update().where(mine).values(**values, claimed_by=None, claimed_until_ms=None))


def lock(connection: Connection, locations: Iterable[Location]) -> None:
    """Lock the rows of some locations, as everybody does: in the order of their ids."""
    keys = [journal.sha256(location) for location in locations]
    for start in range(0, len(keys), _IN_LIMIT):
        journal.lock(connection, intents.c.location_sha256.in_(keys[start : start + _IN_LIMIT]))


def arrived(connection: Connection, locations: Iterable[Location], now_ms: int) -> None:
    """A listing was empty: what waited has gone."""
    rows = [{"key": journal.sha256(location)} for location in sorted(locations)]
    if not rows:
        return
    waits = sa.and_(
        intents.c.location_sha256 == sa.bindparam("key"),
        intents.c.state == State.WAITING,
        intents.c.claimed_by.is_(None),
    )
    values: dict[str, Any] = {
        "state": State.SWEPT,
        "state_ms": now_ms,
        "swept_ms": now_ms,
        "detail": "",
        "deleted_objects": intents.c.deleted_objects + intents.c.waiting_objects,
        "deleted_bytes": intents.c.deleted_bytes + intents.c.waiting_bytes,
        "waiting_objects": 0,
        "waiting_bytes": 0,
        **dict.fromkeys(("action", "acted_from_ms", "acted_until_ms", "acted_plan_id", "spared")),
    }
    connection.execute(intents.update().where(waits).values(**values), rows)


def look_later(connection: Connection, why: Mapping[Location, tuple[int, str]]) -> None:
    """Something is still there: for each location when to look again, and what."""
    rows = [
        {"key": journal.sha256(location), "new_look_ms": at_ms, "new_detail": text[:_DETAIL]}
        for location, (at_ms, text) in sorted(why.items())
    ]
    if rows:
        waits = sa.and_(intents.c.location_sha256 == sa.bindparam("key"), intents.c.state == State.WAITING)
        later: dict[str, Any] = {"look_ms": sa.bindparam("new_look_ms"), "detail": sa.bindparam("new_detail")}
        connection.execute(intents.update().where(waits).values(**later), rows)


def reopen(connection: Connection, locations: Iterable[Location], *, grace_ms: int, now_ms: int) -> None:
    """Somebody has written into it since: once its grace period is over again, that is hidden or tagged too."""
    rows = [{"key": journal.sha256(location)} for location in sorted(locations)]
    if rows:
        waits = sa.and_(intents.c.location_sha256 == sa.bindparam("key"), intents.c.state == State.WAITING)
        values = {
            "state": State.PENDING,
            "state_ms": now_ms,
            "look_ms": now_ms + grace_ms,
            "detail": "written to after it was hidden or tagged",
        }
        connection.execute(intents.update().where(waits).values(**values), rows)


def put_off(connection: Connection, later: Mapping[Location, int]) -> None:
    """Look later at what was begun and is not finished: for each location when."""
    rows = [{"key": journal.sha256(location), "new_look_ms": at_ms} for location, at_ms in sorted(later.items())]
    if rows:
        lock(connection, later)
        begun = sa.and_(intents.c.location_sha256 == sa.bindparam("key"), _TOUCHED, intents.c.state != State.WAITING)
        connection.execute(intents.update().where(begun).values(look_ms=sa.bindparam("new_look_ms")), rows)


def stuck(connection: Connection) -> list[str]:
    """Why something that is needed again could not be taken back, a text for each location."""
    return _told(connection, STUCK)


def unseen(connection: Connection) -> list[str]:
    """Why what waits could not be looked at, a text for each location."""
    return _told(connection, UNSEEN)


def _told(connection: Connection, start: str) -> list[str]:
    query = sa.select(intents.c.detail).where(_TOUCHED, intents.c.detail.like(f"{start}%")).order_by(intents.c.id)
    return [detail.removeprefix(start) for detail in connection.scalars(query)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """How much is hidden or tagged."""

    locations: int
    objects: int
    size_bytes: int


def sums(connection: Connection) -> dict[Action, Waiting]:
    """How much waits for S3, by what was done to it."""
    query = sa.select(
        intents.c.action,
        sa.func.count(),
        sa.func.sum(intents.c.waiting_objects),
        sa.func.sum(intents.c.waiting_bytes),
    ).where(_TOUCHED)
    rows = connection.execute(query.group_by(intents.c.action)).all()
    return {
        Action(action): Waiting(locations=count, objects=int(objects or 0), size_bytes=int(size or 0))
        for action, count, objects, size in rows
    }
