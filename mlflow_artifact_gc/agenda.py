"""What the worker has to look at, and when: every statement on intents that is the worker's and not a sweep's.

An intent's date (``look_ms``) only delays: whether something is due is decided anew from MLflow's rows. An intent
without a date is not the worker's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import journal
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Entity, EntityKind, Outcome
from mlflow_artifact_gc.tables import intents

_DETAIL: Final = 1000
_IN_LIMIT: Final = 500
KEPT: Final = "kept: "
"""How the detail of an intent begins that something live protects."""
HELD: Final = "held back by a brake: "
"""How the detail of an intent begins that a brake of the worker's holds back."""
_DOUBTFUL: Final = f"{Outcome.RESTORED}: "
"""How the detail of an intent begins whose sweep found it restored, or deleted again."""
_TROUBLE: Final = tuple(
    f"{outcome}: "
    for outcome in (Outcome.PAUSED, Outcome.FOREIGN, Outcome.POSTPONED, Outcome.FAILED, Outcome.UNKNOWN, Outcome.EMPTY)
)
"""How the detail of an intent begins that the worker could not purge at its last try."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """An intent that the worker has to look at now."""

    id: int
    entity: Entity
    location: Location
    attempts: int
    action: Action | None = None
    """What was begun with it, where something was hidden or tagged: that is what is finished."""


def expect(
    connection: Connection, wanted: Sequence[journal.Expected], *, grace_ms: int, now_ms: int
) -> list[journal.Expected]:
    """Have the worker look at locations when their grace period is over; what it will look at, with its date.

    A date only ever moves to a later one. What is being swept at this moment, or was swept for the same tombstone,
    stays as it is.
    """
    by_key = {journal.sha256(one.location): one for one in wanted}
    found = journal.intent_rows(connection, list(by_key))
    taken: list[journal.Expected] = []
    fresh: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    for key, one in sorted(by_key.items()):
        row = found.get(key)
        if row is None:
            fresh.append({**journal.blank(one, key, now_ms), "look_ms": one.since_ms + grace_ms})
            taken.append(one)
        elif dates_ms := _dates_while_swept(row, one, grace_ms, now_ms):
            connection.execute(intents.update().where(intents.c.location_sha256 == key).values(**dates_ms))
        elif _starts_anew(row, one, now_ms):
            again = row["state"] not in (journal.State.PENDING, journal.State.SWEEPING)
            known_ms = 0 if again or row["look_ms"] is None else row["first_seen_ms"]
            begun = row["state"] == journal.State.SWEEPING
            later = replace(one, first_seen_ms=max(one.first_seen_ms, known_ms), begun=begun)
            renewed = {"key": key, **_renewed(later, grace_ms=grace_ms, now_ms=now_ms)}
            # Of a hide that was killed: before the end of its claim is taken away.
            renewed["new_acted_until_ms"] = journal.acted_until_ms(row)
            if row["acted_from_ms"] is not None:
                # Hidden or tagged before: S3 must not remove it while a new grace period runs.
                renewed["new_look_ms"] = now_ms
            changed.append(renewed)
            taken.append(later)
    if fresh:
        connection.execute(intents.insert(), fresh)
    if changed:
        names = [name for name in changed[0] if name != "key"]
        values: dict[str, Any] = {name.removeprefix("new_"): sa.bindparam(name) for name in names}
        mine = intents.c.location_sha256 == sa.bindparam("key")
        connection.execute(
            intents.update().where(mine).values(claimed_by=None, claimed_until_ms=None, **values), changed
        )
    return taken


def _dates_while_swept(row: sa.RowMapping, one: journal.Expected, grace_ms: int, now_ms: int) -> dict[str, int]:
    """New dates of what is being swept, or whose sweep was killed; it stays what it is."""
    if journal.State(row["state"]) is not journal.State.SWEEPING:
        return {}
    if not journal.is_claimed(row, "", now_ms):
        # A `gc` was killed in it, and the worker is to finish it.
        adopts = row["look_ms"] is None and not _deleted_again(row, one)
        return {"look_ms": one.since_ms + grace_ms} if adopts else {}
    if not one.noted or one.first_seen_ms <= row["state_ms"]:
        return {}
    # The process that is sweeping it sees this before its next batch, and lets go of it. What it has hidden or tagged
    # until then is taken back at once.
    touched = row["acted_from_ms"] is not None
    return {"first_seen_ms": one.first_seen_ms, "look_ms": now_ms if touched else one.since_ms + grace_ms}


def _deleted_again(row: sa.RowMapping, one: journal.Expected) -> bool:
    return one.noted and one.first_seen_ms > int(row["first_seen_ms"])


def _starts_anew(row: sa.RowMapping, one: journal.Expected, now_ms: int) -> bool:
    if row["undone_ms"] is not None and one.since_ms <= row["undone_ms"]:
        return False
    match journal.State(row["state"]):
        case journal.State.SWEEPING | journal.State.CLAIMED:
            # Killed: it is finished as what it was, unless it was deleted again since.
            return not journal.is_claimed(row, "", now_ms) and _deleted_again(row, one)
        case journal.State.SWEPT | journal.State.CLOSED | journal.State.WAITING:
            # Restored and deleted again: only a later date makes it a new tombstone.
            if one.noted and one.first_seen_ms > int(row["swept_ms"] or 0):
                return True
            return one.deleted_ms is not None and one.deleted_ms > int(row["deleted_ms"] or 0)
        case journal.State.FAILED:
            return bool(one.deleted_ms != row["deleted_ms"])
        case journal.State.PENDING | journal.State.CANCELLED:
            return True


def _renewed(one: journal.Expected, *, grace_ms: int, now_ms: int) -> dict[str, Any]:
    return {
        "new_deleted_ms": one.deleted_ms,
        "new_first_seen_ms": one.first_seen_ms,
        "new_look_ms": one.since_ms + grace_ms,
        "new_state": journal.State.PENDING,
        "new_state_ms": now_ms,
        "new_attempts": 0,
        "new_detail": None,
        "new_undone_ms": None,
    }


def cancel(connection: Connection, entities: Iterable[Entity], now_ms: int) -> set[Entity]:
    """What waits for these entities is off: they are back. What is being swept now is ended by its own sweep.

    Returns those whose sweep had begun, and died: something of them may be gone.
    """
    begun: set[Entity] = set()
    by_kind: dict[EntityKind, list[str]] = {}
    for entity in entities:
        by_kind.setdefault(entity.kind, []).append(entity.id)
    for kind, ids in by_kind.items():
        for start in range(0, len(ids), _IN_LIMIT):
            mine = sa.and_(intents.c.entity_kind == kind, intents.c.entity_id.in_(ids[start : start + _IN_LIMIT]))
            touched = sa.and_(mine, intents.c.acted_from_ms.is_not(None))
            journal.lock(connection, touched)
            # What is hidden or tagged has to be taken back first: by whoever looks at it next, and at once.
            connection.execute(intents.update().where(touched).values(look_ms=now_ms))
            theirs = sa.and_(
                mine,
                intents.c.acted_from_ms.is_(None),
                sa.or_(
                    intents.c.state.in_((journal.State.PENDING, journal.State.FAILED)),
                    sa.and_(intents.c.state == journal.State.SWEEPING, intents.c.claimed_until_ms <= now_ms),
                ),
            )
            journal.lock(connection, theirs)
            dead = sa.select(intents).where(theirs, intents.c.state == journal.State.SWEEPING)
            begun.update(journal.entity_of(row) for row in connection.execute(dead).mappings())
            values = {"state": journal.State.CANCELLED, "state_ms": now_ms, "look_ms": None, "detail": "restored"}
            connection.execute(intents.update().where(theirs).values(**values, claimed_by=None))
    return begun


def watched(connection: Connection, experiment_ids: Iterable[str] | None = None) -> dict[Entity, bool]:
    """The entities that the worker waits for, or a sweep has begun with; of some experiments, or all.

    Each with whether the worker has a date for it.
    """
    waits = sa.and_(intents.c.state.in_((journal.State.PENDING, journal.State.FAILED)), intents.c.look_ms.is_not(None))
    touched = intents.c.acted_from_ms.is_not(None)
    query = sa.select(intents).where(sa.or_(waits, touched, intents.c.state == journal.State.SWEEPING))
    if experiment_ids is not None:
        query = query.where(intents.c.experiment_id.in_(list(experiment_ids)))
    return {journal.entity_of(row): row["look_ms"] is not None for row in connection.execute(query).mappings()}


def settled(connection: Connection) -> dict[tuple[EntityKind, str], int]:
    """What was swept, taken back or is left to a person, and the date of its tombstone."""
    states = (journal.State.SWEPT, journal.State.CLOSED, journal.State.FAILED)
    left = sa.or_(intents.c.state.in_(states), intents.c.undone_ms.is_not(None))
    query = sa.select(intents.c.entity_kind, intents.c.entity_id, intents.c.deleted_ms).where(left)
    return {(EntityKind(kind), id_): deleted_ms or 0 for kind, id_, deleted_ms in connection.execute(query)}


_SINCE: Final = sa.case(
    (intents.c.deleted_ms > intents.c.first_seen_ms, intents.c.deleted_ms), else_=intents.c.first_seen_ms
)
"""From when the grace period counts."""


def to_look_at(connection: Connection, *, grace_ms: int, now_ms: int) -> list[Waiting]:
    """What is past its grace period and to be looked at now; also what a process left behind that has died since."""
    lost = sa.and_(intents.c.state == journal.State.SWEEPING, intents.c.claimed_until_ms <= now_ms)
    query = sa.select(intents).where(
        intents.c.look_ms <= now_ms, _SINCE + grace_ms <= now_ms, sa.or_(intents.c.state == journal.State.PENDING, lost)
    )
    return [_waiting(row) for row in connection.execute(query.order_by(intents.c.look_ms, intents.c.id)).mappings()]


def look_again(connection: Connection, later: Mapping[Location, tuple[int, str]]) -> None:
    """Look again at what still waits: for each location when, and why not now.

    What is kept, and is hidden or tagged in part, is taken back at once.
    """
    rows = [
        {
            "key": journal.sha256(location),
            "new_look_ms": at_ms,
            "new_detail": why[:_DETAIL],
            "needed": int(why.startswith(KEPT)),
        }
        for location, (at_ms, why) in sorted(later.items())
    ]
    if rows:
        needed: sa.BindParameter[int] = sa.bindparam("needed", type_=sa.Integer)
        back = sa.and_(needed == 1, intents.c.acted_from_ms.is_not(None))
        waits = sa.and_(
            intents.c.location_sha256 == sa.bindparam("key"),
            sa.or_(intents.c.state == journal.State.PENDING, intents.c.state == journal.State.SWEEPING),
        )
        look_ms: sa.BindParameter[int] = sa.bindparam("new_look_ms", type_=sa.BigInteger)
        values: dict[str, Any] = {
            "look_ms": sa.case((back, intents.c.state_ms), else_=look_ms),
            "detail": sa.bindparam("new_detail"),
        }
        connection.execute(intents.update().where(waits).values(**values), rows)


def explain(connection: Connection, why: Mapping[Location, str]) -> None:
    """Note why something that waits will be kept; its date stays."""
    rows = [{"key": journal.sha256(location), "new_detail": text[:_DETAIL]} for location, text in sorted(why.items())]
    if rows:
        waits = sa.and_(intents.c.location_sha256 == sa.bindparam("key"), intents.c.state == journal.State.PENDING)
        connection.execute(intents.update().where(waits).values(detail=sa.bindparam("new_detail")), rows)


def swept_before(connection: Connection, before_ms: int, *, after_id: int, limit: int) -> list[Waiting]:
    """Some of what was swept before that moment and was not looked at since, by their ids."""
    query = sa.select(intents).where(
        intents.c.state == journal.State.SWEPT, intents.c.swept_ms <= before_ms, intents.c.id > after_id
    )
    return [_waiting(row) for row in connection.execute(query.order_by(intents.c.id).limit(limit)).mappings()]


def _waiting(row: sa.RowMapping) -> Waiting:
    location = Location(row["bucket"], row["prefix"])
    action = Action(row["action"]) if row["acted_from_ms"] is not None else None
    entity = journal.entity_of(row)
    return Waiting(id=row["id"], entity=entity, location=location, attempts=row["attempts"], action=action)


def close(connection: Connection, locations: Iterable[Location], now_ms: int) -> None:
    """The second look found nothing."""
    rows = [{"key": journal.sha256(location)} for location in sorted(locations)]
    if rows:
        mine = sa.and_(intents.c.location_sha256 == sa.bindparam("key"), intents.c.state == journal.State.SWEPT)
        connection.execute(intents.update().where(mine).values(state=journal.State.CLOSED, state_ms=now_ms), rows)


def reopen(connection: Connection, locations: Iterable[Location], *, grace_ms: int, now_ms: int) -> None:
    """The second look found what somebody wrote after the sweep: sweep it again, if it is still deleted."""
    rows = [{"key": journal.sha256(location)} for location in sorted(locations)]
    if rows:
        mine = sa.and_(intents.c.location_sha256 == sa.bindparam("key"), intents.c.state == journal.State.SWEPT)
        # Whoever wrote into it gets the whole grace period once more.
        seen = {"first_seen_ms": now_ms, "look_ms": now_ms + grace_ms, "detail": "written after its sweep"}
        connection.execute(
            intents.update().where(mine).values(state=journal.State.PENDING, state_ms=now_ms, **seen), rows
        )


def still_waiting(connection: Connection, expected: Sequence[journal.Expected]) -> list[journal.Expected]:
    """Those that nobody has swept or taken back since."""
    by_key = {journal.sha256(one.location): one for one in expected}
    found: list[journal.Expected] = []
    for start in range(0, len(by_key), _IN_LIMIT):
        query = sa.select(intents.c.location_sha256).where(
            intents.c.location_sha256.in_([*by_key][start : start + _IN_LIMIT]),
            intents.c.state == journal.State.PENDING,
        )
        found += [by_key[key] for key in connection.scalars(query)]
    return found


def waiting_of(
    connection: Connection, *, entity_ids: Sequence[str], experiment_ids: Sequence[str]
) -> list[journal.Expected]:
    """What waits of these entities, and of these experiments."""
    found: list[journal.Expected] = []
    for column, ids in ((intents.c.entity_id, entity_ids), (intents.c.experiment_id, experiment_ids)):
        for start in range(0, len(ids), _IN_LIMIT):
            theirs = column.in_(ids[start : start + _IN_LIMIT])
            waits = sa.and_(intents.c.state == journal.State.PENDING, intents.c.look_ms.is_not(None), theirs)
            found += [_expected(row) for row in connection.execute(sa.select(intents).where(waits)).mappings()]
    return found


def kept(connection: Connection) -> list[journal.Expected]:
    """What waits and was found to be needed."""
    query = sa.select(intents).where(intents.c.state == journal.State.PENDING, intents.c.detail.like(f"{KEPT}%"))
    return [_expected(row) for row in connection.execute(query).mappings()]


def promised(connection: Connection, *, after_id: int, limit: int) -> list[tuple[int, journal.Expected]]:
    """Some of what waits for its date, by their ids; not what is kept."""
    other = sa.or_(intents.c.detail.is_(None), intents.c.detail.not_like(f"{KEPT}%"))
    query = sa.select(intents).where(
        intents.c.state == journal.State.PENDING, intents.c.look_ms.is_not(None), other, intents.c.id > after_id
    )
    rows = connection.execute(query.order_by(intents.c.id).limit(limit)).mappings()
    return [(row["id"], _expected(row)) for row in rows]


def first_seen(connection: Connection) -> dict[Location, int]:
    """When the worker first saw the deletions that it waits for."""
    query = sa.select(intents.c.bucket, intents.c.prefix, intents.c.first_seen_ms).where(
        intents.c.state == journal.State.PENDING, intents.c.look_ms.is_not(None)
    )
    return {Location(bucket, prefix): seen_ms for bucket, prefix, seen_ms in connection.execute(query)}


def _expected(row: sa.RowMapping) -> journal.Expected:
    return journal.Expected(
        entity=journal.entity_of(row),
        uri=row["uri"],
        location=Location(row["bucket"], row["prefix"]),
        deleted_ms=row["deleted_ms"],
        first_seen_ms=row["first_seen_ms"],
    )


def held_back(connection: Connection) -> int:
    """How many locations a brake of the worker's holds back."""
    held = sa.and_(intents.c.state == journal.State.PENDING, intents.c.detail.like(f"{HELD}%"))
    return int(connection.execute(sa.select(sa.func.count()).select_from(intents).where(held)).scalar_one())


def troubled(connection: Connection, *, examples: int = 5) -> list[tuple[str, int]]:
    """Why the worker could not purge what was due, and of how many locations; the most frequent reasons."""
    trouble = sa.or_(*(intents.c.detail.like(f"{start}%") for start in _TROUBLE))
    waits = sa.and_(intents.c.state == journal.State.PENDING, intents.c.look_ms.is_not(None), trouble)
    number = sa.func.count().label("number")
    query = sa.select(intents.c.detail, number).where(waits).group_by(intents.c.detail)
    return [(why, count) for why, count in connection.execute(query.order_by(number.desc()).limit(examples))]


def lost(connection: Connection) -> int:
    """How many places are kept whose rows are gone for good."""
    mine = sa.and_(
        intents.c.state == journal.State.PENDING, intents.c.look_ms.is_(None), intents.c.detail == journal.LOST
    )
    return int(connection.execute(sa.select(sa.func.count()).select_from(intents).where(mine)).scalar_one())


def give_up(connection: Connection, locations: Iterable[Location], now_ms: int) -> None:
    """Tried often enough: from here on it is for a person."""
    rows = [{"key": journal.sha256(location)} for location in sorted(locations)]
    if rows:
        mine = sa.and_(intents.c.location_sha256 == sa.bindparam("key"), intents.c.state == journal.State.PENDING)
        connection.execute(intents.update().where(mine).values(state=journal.State.FAILED, state_ms=now_ms), rows)


def wake_protected(connection: Connection, *, grace_ms: int, now_ms: int) -> None:
    """Look at once at what was protected: something that needed it may have gone."""
    kept = sa.and_(
        intents.c.state == journal.State.PENDING, intents.c.detail.like(f"{KEPT}%"), intents.c.look_ms > now_ms
    )
    soon = sa.case((_SINCE + grace_ms > now_ms, _SINCE + grace_ms), else_=now_ms)
    connection.execute(intents.update().where(kept).values(look_ms=soon))


def regrace(connection: Connection, grace_ms: int, ids: tuple[int, int]) -> None:
    """The site's settings have changed: what waits among these ids gets its date anew."""
    # What is hidden or tagged is not: it may have to be taken back now.
    waits = sa.and_(
        intents.c.state == journal.State.PENDING, intents.c.look_ms.is_not(None), intents.c.acted_from_ms.is_(None)
    )
    connection.execute(intents.update().where(waits, intents.c.id.between(*ids)).values(look_ms=_SINCE + grace_ms))


def last_id(connection: Connection) -> int:
    """The highest id of an intent; 0 where there is none."""
    return int(connection.execute(sa.select(sa.func.max(intents.c.id))).scalar() or 0)


def doubtful(connection: Connection) -> list[journal.Expected]:
    """What the worker waits for, and a sweep found restored or deleted again."""
    query = sa.select(intents).where(
        intents.c.state == journal.State.PENDING, intents.c.look_ms.is_not(None), intents.c.detail.like(f"{_DOUBTFUL}%")
    )
    return [_expected(row) for row in connection.execute(query).mappings()]


def begin_again(connection: Connection, expected: Sequence[journal.Expected], *, grace_ms: int) -> None:
    """These are deleted, and nobody knows for certain since when: their grace period begins at their first sight."""
    rows = [
        {
            "key": journal.sha256(one.location),
            "new_deleted_ms": one.deleted_ms,
            "new_first_seen_ms": one.first_seen_ms,
            "new_look_ms": one.since_ms + grace_ms,
        }
        for one in sorted(expected, key=lambda one: one.location)
    ]
    if rows:
        mine = sa.and_(intents.c.location_sha256 == sa.bindparam("key"), intents.c.state == journal.State.PENDING)
        names = ("deleted_ms", "first_seen_ms", "look_ms")
        values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
        connection.execute(intents.update().where(mine).values(detail=None, **values), rows)


def lose(connection: Connection, entities: Iterable[Entity], now_ms: int) -> None:
    """Their rows are gone for good: what waits for them keeps its place, and the worker does not act on it."""
    by_kind: dict[EntityKind, list[str]] = {}
    for entity in entities:
        by_kind.setdefault(entity.kind, []).append(entity.id)
    for kind, ids in by_kind.items():
        for start in range(0, len(ids), _IN_LIMIT):
            theirs = intents.c.entity_id.in_(ids[start : start + _IN_LIMIT])
            _lose(connection, sa.and_(intents.c.entity_kind == kind, theirs), now_ms)


def _lose(connection: Connection, theirs: sa.ColumnElement[bool], now_ms: int) -> None:
    journal.lock(connection, theirs)
    # What is being swept is ended by its own sweep, which keeps this.
    sweeping = sa.and_(intents.c.state == journal.State.SWEEPING, intents.c.claimed_until_ms > now_ms)
    connection.execute(intents.update().where(theirs, sweeping).values(look_ms=None, detail=journal.LOST))
    idle = sa.or_(
        intents.c.state.in_((journal.State.PENDING, journal.State.CANCELLED, journal.State.FAILED)),
        sa.and_(intents.c.state == journal.State.SWEEPING, intents.c.claimed_until_ms <= now_ms),
    )
    values = {
        "state": journal.State.PENDING,
        "state_ms": now_ms,
        "look_ms": None,
        "detail": journal.LOST,
        "claimed_by": None,
    }
    connection.execute(intents.update().where(theirs, idle).values(**values))


def remember_lost(connection: Connection, lost: Sequence[journal.Expected], now_ms: int) -> None:
    """Keep the places of rows that are gone for good; the worker does not act on them."""
    by_key = {journal.sha256(one.location): one for one in lost}
    found = journal.intent_rows(connection, list(by_key))
    fresh = [
        {**journal.blank(one, key, now_ms), "look_ms": None, "detail": journal.LOST}
        for key, one in sorted(by_key.items())
        if key not in found
    ]
    if fresh:
        connection.execute(intents.insert(), fresh)
    if found:
        _lose(connection, intents.c.location_sha256.in_(sorted(found)), now_ms)
