"""Every statement on holds: what people keep by hand. A hold is released, never deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import journal
from mlflow_artifact_gc.keeping import Hold, HoldKind
from mlflow_artifact_gc.tables import holds, intents

_IN_LIMIT: Final = 500
_SWEPT: Final = (journal.State.SWEPT, journal.State.CLOSED)


class Late(StrEnum):
    """What a hold comes too late for."""

    GONE = "gone"
    IN_PART = "in part"
    """A sweep has deleted something of it, and ended for some reason."""
    WAITS = "waits"
    """It is hidden or tagged."""
    BEING_SWEPT = "being swept"
    CUT_OFF = "cut off"
    """Whoever swept it was killed, or cannot say how far he came."""


def add(
    connection: Connection,
    kind: HoldKind,
    targets: Sequence[str],
    *,
    reason: str,
    author: str,
    until_ms: int | None,
    now_ms: int,
    workspace: str | None = None,
) -> list[Hold]:
    """Put a hold on each target; all of them, with their numbers."""
    made: list[Hold] = []
    for target in targets:
        values: dict[str, Any] = {"target": target, "workspace": workspace, "reason": reason, "author": author}
        values |= {"created_ms": now_ms, "until_ms": until_ms}
        key = connection.execute(holds.insert().values(kind=kind.value, **values)).inserted_primary_key
        if key is None:
            raise AssertionError(target)
        made.append(_hold({"id": key[0], "kind": kind, **values}))
    return made


def active(connection: Connection, now_ms: int) -> list[Hold]:
    """What is held now, oldest first."""
    ends = sa.or_(holds.c.until_ms.is_(None), holds.c.until_ms > now_ms)
    query = sa.select(holds).where(holds.c.released_ms.is_(None), ends).order_by(holds.c.id)
    return [_hold(row) for row in connection.execute(query).mappings()]


def every(connection: Connection) -> list[Hold]:
    """All that there ever were, oldest first."""
    return [_hold(row) for row in connection.execute(sa.select(holds).order_by(holds.c.id)).mappings()]


def count(connection: Connection) -> int:
    """How many there ever were: another number than before means that somebody has put one on."""
    return int(connection.execute(sa.select(sa.func.count()).select_from(holds)).scalar_one())


def some(connection: Connection, ids: Sequence[int]) -> dict[int, Hold]:
    """Those with these numbers."""
    found: dict[int, Hold] = {}
    for start in range(0, len(ids), _IN_LIMIT):
        query = sa.select(holds).where(holds.c.id.in_(ids[start : start + _IN_LIMIT]))
        found |= {row["id"]: _hold(row) for row in connection.execute(query).mappings()}
    return found


def too_late(connection: Connection, kind: HoldKind, targets: Sequence[str], now_ms: int) -> dict[Late, int]:
    """What a hold comes too late for: of how many locations of these something is gone, hidden or tagged, or may be."""
    column = {HoldKind.RUN: intents.c.entity_id, HoldKind.LOGGED_MODEL: intents.c.entity_id}
    column[HoldKind.EXPERIMENT] = intents.c.experiment_id
    if kind not in column:
        return {}
    sweeping = intents.c.state == journal.State.SWEEPING
    gone = sa.or_(*(intents.c[name] > 0 for name in journal.COUNTS))
    late = sa.case(
        (intents.c.state.in_(_SWEPT), Late.GONE.value),
        (sa.and_(sweeping, intents.c.claimed_until_ms > now_ms), Late.BEING_SWEPT.value),
        (gone, Late.IN_PART.value),
        (intents.c.acted_from_ms.is_not(None), Late.WAITS.value),
        (sweeping, Late.CUT_OFF.value),
        else_=None,
    )
    found: Counter[Late] = Counter()
    for start in range(0, len(targets), _IN_LIMIT):
        mine = column[kind].in_(targets[start : start + _IN_LIMIT])
        told = sa.select(late.label("late")).where(mine).subquery()
        query = sa.select(told.c.late, sa.func.count()).where(told.c.late.is_not(None)).group_by(told.c.late)
        for name, number in connection.execute(query):
            found[Late(name)] += number
    return dict(found)


def release(connection: Connection, ids: Sequence[int], *, by: str, now_ms: int) -> None:
    """These hold no longer; what was released before stays as it was."""
    for start in range(0, len(ids), _IN_LIMIT):
        mine = sa.and_(holds.c.id.in_(ids[start : start + _IN_LIMIT]), holds.c.released_ms.is_(None))
        connection.execute(holds.update().where(mine).values(released_ms=now_ms, released_by=by))


def _hold(row: sa.RowMapping | dict[str, Any]) -> Hold:
    values: dict[str, Any] = {name: row[name] for name in Hold.__slots__ if name in row}
    return Hold(**{**values, "kind": HoldKind(row["kind"])})
