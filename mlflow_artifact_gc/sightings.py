"""When orphans were seen, and what they held then: every statement on sightings.

A sighting is kept from run to run. What is written to begins its quarantine again, and what is no orphan any more is
forgotten. All dates but ``newest_ms`` are the database's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import journal
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.tables import intents, sightings

_IN_LIMIT: Final = 500


class Held(NamedTuple):
    """What a prefix holds; ``newest_ms`` is S3's date."""

    newest_ms: int
    objects: int
    versions: int
    markers: int
    uploads: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """Since when a prefix has been an orphan that holds what it holds."""

    first_seen_ms: int
    last_seen_ms: int
    held: Held

    def continues(self, held: Held, *, now_ms: int, begun_ms: int | None) -> bool:
        """Whether it is still the same: nothing was written to it, and the clock has not gone back.

        Args:
            held: what it holds now.
            now_ms: the time.
            begun_ms: when a sweep of ours began with it, which may have left less than was seen.
        """
        if now_ms < self.last_seen_ms:
            return False
        ours = begun_ms is not None and begun_ms >= self.last_seen_ms
        less = all(now <= before for now, before in zip(held, self.held, strict=True))
        return held == self.held or (ours and less)


def read(connection: Connection) -> dict[Location, Sighting]:
    """All of them."""
    return {
        Location(row["bucket"], row["prefix"]): Sighting(
            first_seen_ms=row["first_seen_ms"],
            last_seen_ms=row["last_seen_ms"],
            held=Held(**{name: row[name] for name in Held._fields}),
        )
        for row in connection.execute(sa.select(sightings)).mappings()
    }


def begun(connection: Connection) -> dict[Location, int]:
    """Where a sweep of an orphan began and has not ended well, and when."""
    query = sa.select(intents.c.bucket, intents.c.prefix, intents.c.state_ms).where(
        intents.c.state.in_(journal.OPEN), intents.c.provenance == journal.ORPHAN
    )
    return {Location(bucket, prefix): state_ms for bucket, prefix, state_ms in connection.execute(query)}


def note(connection: Connection, seen: Mapping[Location, tuple[Held, int | None]], now_ms: int) -> None:
    """Note what was seen: of each location what it holds, and since when; None: since now."""
    by_key = {journal.sha256(location): location for location in sorted(seen)}
    found: set[str] = set()
    for keys in _chunks(list(by_key)):
        found.update(
            connection.scalars(
                sa.select(sightings.c.location_sha256).where(sightings.c.location_sha256.in_(keys)).with_for_update()
            )
        )
    fresh, known = list[dict[str, object]](), list[dict[str, object]]()
    for key, location in by_key.items():
        held, since_ms = seen[location]
        first_ms = now_ms if since_ms is None else since_ms
        values = {**held._asdict(), "first_seen_ms": first_ms, "last_seen_ms": now_ms}
        if key in found:
            known.append({"key": key, **{f"new_{name}": value for name, value in values.items()}})
        else:
            fresh.append({"location_sha256": key, "bucket": location.bucket, "prefix": location.prefix, **values})
    if fresh:
        connection.execute(sightings.insert(), fresh)
    if known:
        names = ("first_seen_ms", "last_seen_ms", *Held._fields)
        columns: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
        mine = sightings.c.location_sha256 == sa.bindparam("key")
        connection.execute(sightings.update().where(mine).values(**columns), known)


def forget(connection: Connection, locations: Iterable[Location]) -> None:
    """These are no orphans any more."""
    for keys in _chunks([journal.sha256(location) for location in sorted(locations)]):
        connection.execute(sightings.delete().where(sightings.c.location_sha256.in_(keys)))


def forget_all(connection: Connection) -> None:
    """What was seen was seen by another database, or before it was put back."""
    connection.execute(sightings.delete())


def summary(connection: Connection) -> tuple[int, int | None]:
    """How many there are, and when the first of them was seen."""
    row = connection.execute(sa.select(sa.func.count(), sa.func.min(sightings.c.first_seen_ms))).one()
    return int(row[0]), row[1]


def _chunks(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + _IN_LIMIT] for start in range(0, len(keys), _IN_LIMIT))
