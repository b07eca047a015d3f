"""The right to work: one row, held by one worker at a time, by compare-and-set and on the database's clock.

A worker that loses it mid-sweep does no harm: each location is claimed as well. What its holder has to tell people (a
brake that holds things back, a worker that was turned away) stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import database, processes
from mlflow_artifact_gc.inbox import Event
from mlflow_artifact_gc.journal import State
from mlflow_artifact_gc.tables import inbox, intents, lease, site

_TEXT = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a poll sees. ``settings_ms`` is when the site's settings were last written; None: there are none."""

    now_ms: int
    owner: str | None
    until_ms: int
    settings_ms: int | None
    mail: bool
    reports: bool
    """Whether a server has said something of itself that is not in the site's settings."""
    next_look_ms: int | None

    def free_for(self, owner: str) -> bool:
        """Whether ``owner`` may take it, or has it."""
        if self.owner in (None, owner) or self.until_ms <= self.now_ms:
            return True
        return processes.is_dead(self.owner)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """What ``status`` tells of the workers."""

    owner: str | None
    until_ms: int
    seen_ms: int | None
    refused: str | None
    refused_ms: int | None
    parked: str | None
    parked_ms: int | None
    kept_objects: int | None
    kept_bytes: int | None
    kept_ms: int | None


def look(connection: Connection) -> View:
    """Everything that an idle worker needs to know, in one query."""
    mail = sa.exists().where(inbox.c.event != Event.SERVER)
    reports = sa.exists().where(inbox.c.event == Event.SERVER)
    waiting = sa.select(sa.func.min(intents.c.look_ms)).where(
        intents.c.state.in_((State.PENDING, State.SWEEPING, State.WAITING))
    )
    query = sa.select(
        database.clock_expression(connection.dialect.name).label("now_ms"),
        lease.c.owner,
        lease.c.until_ms,
        sa.select(site.c.updated_ms).scalar_subquery().label("settings_ms"),
        mail.label("mail"),
        reports.label("reports"),
        waiting.scalar_subquery().label("next_look_ms"),
    )
    row = connection.execute(query).mappings().one()
    return View(**{**row, "mail": bool(row["mail"]), "reports": bool(row["reports"])})


def take(connection: Connection, seen: View, *, owner: str, for_ms: int) -> bool:
    """Take or renew the lease as it was ``seen``; False where another worker was faster."""
    unchanged = sa.and_(lease.c.owner.is_not_distinct_from(seen.owner), lease.c.until_ms == seen.until_ms)
    now = database.clock_expression(connection.dialect.name)
    values = {"owner": owner, "until_ms": now + for_ms, "seen_ms": now}
    return bool(connection.execute(lease.update().where(unchanged).values(**values)).rowcount)


def renew(connection: Connection, *, owner: str, for_ms: int) -> bool:
    """Put off its end; False where it is another worker's now."""
    now = database.clock_expression(connection.dialect.name)
    mine = lease.update().where(lease.c.owner == owner)
    return bool(connection.execute(mine.values(until_ms=now + for_ms, seen_ms=now)).rowcount)


def give_back(connection: Connection, *, owner: str) -> None:
    """Let the next worker take it at once."""
    connection.execute(lease.update().where(lease.c.owner == owner).values(owner=None, until_ms=0))


def turn_away(connection: Connection, why: str) -> None:
    """Note why a worker may not have it."""
    now = database.clock_expression(connection.dialect.name)
    connection.execute(lease.update().values(refused=why[:_TEXT], refused_ms=now))


def park(connection: Connection, why: str | None) -> None:
    """Note the brake that holds back what is due, or that none does."""
    changed = lease.c.parked.is_distinct_from(why and why[:_TEXT])
    now = database.clock_expression(connection.dialect.name) if why else None
    connection.execute(lease.update().where(changed).values(parked=why and why[:_TEXT], parked_ms=now))


def measured(connection: Connection, *, objects: int, size_bytes: int) -> None:
    """Note what the logged models of deleted runs hold."""
    now = database.clock_expression(connection.dialect.name)
    connection.execute(lease.update().values(kept_objects=objects, kept_bytes=size_bytes, kept_ms=now))


def standing(connection: Connection) -> Standing:
    """The whole row."""
    row = connection.execute(sa.select(lease)).mappings().one()
    return Standing(**{name: row[name] for name in Standing.__slots__})
