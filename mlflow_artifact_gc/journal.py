"""Site, roots and plans, and of the intents what a sweep needs: claims and results. The worker's are in ``agenda``.

No transaction here outlives a few statements.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import database, hides, processes, protection
from mlflow_artifact_gc.errors import PlanRefused
from mlflow_artifact_gc.hides import Hide
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Outcome, Plan, SweepResult
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.quantities import show_instant
from mlflow_artifact_gc.tables import intents, plans, roots, site

_DETAIL: Final = 1000
_URI: Final = 2048
_IN_LIMIT: Final = 500
_CORES: Final = 100
NEXT_LOOK_MS: Final = 24 * 3_600_000
"""What is hidden or tagged is listed again so much later, and then again and again."""
_BEGUN_MS: Final = 0
"""The date to look at what is being hidden or tagged. A later one is of somebody who asks for it meanwhile."""
ORPHAN: Final = "orphan"
"""The provenance of an intent that was swept although no row named its location."""
LOST: Final = "its row in MLflow is gone for good"


class State(StrEnum):
    """The states of an intent. Protected is not one: the plan says so."""

    PENDING = "pending"
    CLAIMED = "claimed"
    SWEEPING = "sweeping"
    WAITING = "waiting"
    SWEPT = "swept"
    CLOSED = "closed"
    CANCELLED = "cancelled"
    FAILED = "failed"


_UNAWARE_MS: Final = 3_600_000
"""So long the holder of a claim that has run out may not have noticed it."""
OPEN: Final = (State.PENDING, State.SWEEPING, State.FAILED)
"""The states of what a sweep began with and did not end well."""


class Models(StrEnum):
    """When a logged model goes that nobody deleted by itself."""

    KEEP = "keep"
    FOLLOW_RUN = "follow-run"


class FullTagSets(StrEnum):
    """What ``tag`` does to an object that has as many tags as S3 allows."""

    LEAVE = "leave"
    PURGE = "purge"


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The site's settings. ``action`` None: nobody said; ``registry_fingerprint`` None: the registry is not known."""

    database_id: str
    database_fingerprint: str
    switched_on_ms: int
    grace_ms: int
    min_object_age_ms: int
    orphan_quarantine_ms: int
    updated_ms: int = 0
    """When these settings were written; what is under way with older ones stops."""
    action: Action | None = None
    models: Models = Models.KEEP
    artifacts_destination: str | None = None
    registry_fingerprint: str | None = None
    expiry_tag: str | None = None
    full_tag_sets: FullTagSets = FullTagSets.LEAVE


@dataclass(frozen=True, kw_only=True, slots=True)
class Root:
    """What we know of a root. ``marker_epoch`` is the last epoch that is known to stand in its marker object."""

    location: Location
    epoch: int
    marker_epoch: int
    proven_ms: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Which locations a process got, which are being swept by another, and which were deleted again meanwhile.

    ``killed``: those that another process was purging when it died.
    """

    mine: frozenset[Location]
    busy: Mapping[Location, str]
    anew: frozenset[Location]
    killed: frozenset[Location]


def actor() -> str:
    """Who writes into the journal, for people: the host's name."""
    return socket.gethostname()[:200]


def sha256(location: Location) -> str:
    """The key of a location's rows."""
    return hashlib.sha256(f"{location.bucket}\n{location.prefix}".encode()).hexdigest()


# The site


def read_site(connection: Connection) -> Site | None:
    """The settings, or None before the first ``init``."""
    row = connection.execute(sa.select(site)).mappings().one_or_none()
    if row is None:
        return None
    values = {name: row[name] for name in Site.__slots__}
    action = Action(values["action"]) if values["action"] else None
    return Site(
        **{
            **values,
            "action": action,
            "models": Models(values["models"]),
            "full_tag_sets": FullTagSets(values["full_tag_sets"]),
        }
    )


def write_site(connection: Connection, settings: Site, now_ms: int) -> None:
    """Store the settings in place of what is there."""
    # Never the same moment twice: it is how others see that something has changed.
    values = {**asdict(settings), "updated_ms": max(now_ms, settings.updated_ms + 1)}
    if read_site(connection) is None:
        connection.execute(site.insert().values(id=1, **values))
    else:
        connection.execute(site.update().values(**values))


def carry(connection: Connection, *, registry: str, destination: str | None, now_ms: int) -> None:
    """Fill in what a server said of itself, where nobody has said it yet."""
    values = {
        "registry_fingerprint": sa.func.coalesce(site.c.registry_fingerprint, registry),
        "artifacts_destination": sa.func.coalesce(site.c.artifacts_destination, destination),
        "updated_ms": sa.case((site.c.updated_ms >= now_ms, site.c.updated_ms + 1), else_=now_ms),
    }
    connection.execute(site.update().values(**values))


# Roots


def read_root(connection: Connection, location: Location) -> Root | None:
    """The row of a root, or None where nothing was swept under it."""
    row = connection.execute(sa.select(roots).where(roots.c.uri_sha256 == sha256(location))).mappings().one_or_none()
    if row is None:
        return None
    return Root(location=location, epoch=row["epoch"], marker_epoch=row["marker_epoch"], proven_ms=row["proven_ms"])


def known_roots(connection: Connection) -> list[tuple[str, str]]:
    """URI and endpoint of every root that was swept under."""
    return [(row.uri, row.endpoint) for row in connection.execute(sa.select(roots.c.uri, roots.c.endpoint))]


def marked_roots(connection: Connection) -> list[str]:
    """URIs of the roots in whose marker objects this database has written: without that nothing is swept there."""
    return list(connection.scalars(sa.select(roots.c.uri).where(roots.c.marker_epoch > 0)))


def proven_endpoints(connection: Connection) -> frozenset[str]:
    """The S3 endpoints under which objects of ours were found."""
    query = sa.select(roots.c.endpoint).where(roots.c.proven_ms.is_not(None)).distinct()
    return frozenset(connection.scalars(query))


def move_roots(connection: Connection, endpoint: str) -> None:
    """Every root is at ``endpoint`` now."""
    connection.execute(roots.update().values(endpoint=endpoint))


def see_root(connection: Connection, location: Location, *, source: str, endpoint: str, now_ms: int) -> Root:
    """The row of a root; made where there is none."""
    # Where it was proven it stays: another endpoint has to be told by `init --adopt`.
    kept = sa.case((roots.c.proven_ms.is_(None), endpoint), else_=roots.c.endpoint)
    mine = roots.update().where(roots.c.uri_sha256 == sha256(location))
    updated = connection.execute(mine.values(last_seen_ms=now_ms, endpoint=kept))
    if not updated.rowcount:
        fresh = {"uri_sha256": sha256(location), "uri": location.uri, "source": source, "first_seen_ms": now_ms}
        seen = {"last_seen_ms": now_ms, "endpoint": endpoint}
        connection.execute(roots.insert().values(**fresh, **seen, epoch=0, marker_epoch=0))
    found = read_root(connection, location)
    if found is None:
        raise AssertionError(location)
    return found


def raise_epoch(connection: Connection, location: Location, *, at_least: int = 0) -> int:
    """The root's next epoch, above ``at_least``. To be committed before it is put into the marker object."""
    current = connection.execute(
        sa.select(roots.c.epoch).where(roots.c.uri_sha256 == sha256(location)).with_for_update()
    ).scalar_one()
    epoch = max(int(current), at_least) + 1
    connection.execute(roots.update().where(roots.c.uri_sha256 == sha256(location)).values(epoch=epoch))
    return epoch


def marker_written(connection: Connection, location: Location, epoch: int) -> None:
    """Note that the marker object holds ``epoch`` now."""
    higher = sa.and_(roots.c.uri_sha256 == sha256(location), roots.c.marker_epoch < epoch)
    connection.execute(roots.update().where(higher).values(marker_epoch=epoch))


def root_proven(connection: Connection, location: Location, now_ms: int) -> None:
    """Note that an object of a row of ours was found under the root."""
    connection.execute(roots.update().where(roots.c.uri_sha256 == sha256(location)).values(proven_ms=now_ms))


def own_root(connection: Connection, location: Location, now_ms: int) -> None:
    """Note that a person said that nobody else keeps artifacts under the root."""
    connection.execute(roots.update().where(roots.c.uri_sha256 == sha256(location)).values(owned_ms=now_ms))


def is_owned(connection: Connection, location: Location) -> bool:
    """Whether a person said so."""
    query = sa.select(roots.c.owned_ms).where(roots.c.uri_sha256 == sha256(location))
    return connection.scalar(query) is not None


def disown_roots(connection: Connection) -> None:
    """Nobody has said so of any root: the database was moved, and so may others have been."""
    connection.execute(roots.update().values(owned_ms=None))


# Intents


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What was done to locations before, with the date of the tombstone that it was done for, or of the undo."""

    swept_ms: Mapping[Location, int | None] = field(default_factory=dict)
    waiting_ms: Mapping[Location, int | None] = field(default_factory=dict)
    undone_ms: Mapping[Location, int | None] = field(default_factory=dict)


def done(connection: Connection) -> Done:
    """What was swept; what is hidden or tagged; and of what a person has taken that back, and when."""
    return Done(
        swept_ms=_dates(connection, intents.c.deleted_ms, intents.c.state.in_((State.SWEPT, State.CLOSED))),
        waiting_ms=_dates(connection, intents.c.deleted_ms, intents.c.state == State.WAITING),
        undone_ms=_dates(connection, intents.c.undone_ms, intents.c.undone_ms.is_not(None)),
    )


def swept_of(connection: Connection, scope: Scope) -> list[Entity]:
    """Those of some runs, logged models or experiments that were swept."""
    chosen = sa.or_(
        intents.c.entity_id.in_([*scope.run_ids, *scope.logged_model_ids]),
        intents.c.experiment_id.in_(scope.experiment_ids),
    )
    query = sa.select(intents).where(chosen, intents.c.state.in_((State.SWEPT, State.CLOSED)))
    return [entity_of(row) for row in connection.execute(query).mappings()]


def _dates(connection: Connection, date: sa.Column[int], where: sa.ColumnElement[bool]) -> dict[Location, int | None]:
    query = sa.select(intents.c.bucket, intents.c.prefix, date).where(where)
    return {Location(bucket, prefix): date_ms for bucket, prefix, date_ms in connection.execute(query)}


def claim(
    connection: Connection, lines: Sequence[Decision], plan: Plan, *, owner: str, now_ms: int, until_ms: int
) -> Claim:
    """Claim the locations of ``lines`` by compare-and-set: into ``sweeping``, in the order of their ids.

    A location is busy while another process's claim on it has not run out. One whose deletion the worker has seen only
    after the plan was made is left to the worker, which has a date for it. Rows are made for new locations; two
    processes that make the same row at once meet in its unique key (IntegrityError: claim again).
    """
    wanted = {sha256(line.location): line for line in lines if line.location is not None}
    found = intent_rows(connection, list(wanted))
    fresh = [_new_intent(line, now_ms) for key, line in sorted(wanted.items()) if key not in found]
    if fresh:
        connection.execute(intents.insert(), fresh)
        found = intent_rows(connection, list(wanted))
    busy = {
        Location(row["bucket"], row["prefix"]): row["claimed_by"]
        for row in found.values()
        if is_claimed(row, owner, now_ms)
    }
    # Asked of the rows that are locked by now: what the worker writes down later, it writes down as of a claimed one.
    anew = {
        Location(row["bucket"], row["prefix"])
        for row in found.values()
        if row["look_ms"] is not None and row["first_seen_ms"] > plan.created_ms
    }
    mine = {key: line for key, line in wanted.items() if line.location not in busy and line.location not in anew}
    if mine:
        _take(connection, found, mine, owner=owner, plan_id=plan.id, now_ms=now_ms, until_ms=until_ms)
    located = frozenset(line.location for line in mine.values() if line.location)
    killed = frozenset(
        line.location
        for key, line in mine.items()
        if line.location and found[key]["state"] == State.SWEEPING and found[key]["acted_from_ms"] is None
    )
    return Claim(mine=located, busy=busy, anew=frozenset(anew), killed=killed)


def begin(
    connection: Connection,
    lines: Sequence[Decision],
    plan: Plan,
    action: Action,
    hide: Callable[[Location, Hide | None, int], Hide | None],
    *,
    owner: str,
    now_ms: int,
) -> dict[Location, Action | None]:
    """Note that claimed locations are being hidden or tagged, but for those that this returns.

    Args:
        hide: what to remember of the hide of a location, by what is remembered, and the time.

    Returns:
        Those that were begun with the other action, which could not be taken back any more, and with which one; None
        for those of which too much would have to be remembered.
    """
    by_key = {sha256(line.location): line.location for line in lines if line.location}
    refused: dict[Location, Action | None] = {}
    for start in range(0, len(by_key), _IN_LIMIT):
        rows = intent_rows(connection, [*by_key][start : start + _IN_LIMIT])
        noted: list[dict[str, Any]] = []
        for key, row in sorted(rows.items()):
            if row["acted_from_ms"] is not None and row["action"] != action:
                refused[by_key[key]] = Action(row["action"])
                continue
            wanted = hide(by_key[key], hide_of(row), now_ms)
            spared = hides.as_text(wanted.spared) if wanted else None
            if wanted and spared is None:
                refused[by_key[key]] = None
            elif row["claimed_by"] == owner:
                noted.append({"key": key, "new_spared": spared})
        if noted:
            connection.execute(
                intents.update()
                .where(intents.c.location_sha256 == sa.bindparam("key"))
                .values(
                    action=action,
                    acted_from_ms=sa.func.coalesce(intents.c.acted_from_ms, now_ms),
                    acted_until_ms=None,
                    acted_plan_id=plan.id,
                    spared=sa.bindparam("new_spared"),
                    undone_ms=None,
                    # From now on somebody has to look at it, whatever becomes of this process.
                    look_ms=_BEGUN_MS,
                ),
                noted,
            )
    return refused


def hide_of(row: sa.RowMapping) -> Hide | None:
    """The hide that was begun there, if one was."""
    if row["acted_from_ms"] is None or row["action"] != Action.HIDE:
        return None
    return Hide(from_ms=row["acted_from_ms"], until_ms=acted_until_ms(row), spared=hides.from_text(row["spared"]))


def acted_until_ms(row: sa.RowMapping) -> int | None:
    """Until when something was hidden, by S3's clock. Whoever was killed in it had a claim until then, by ours."""
    if row["acted_until_ms"] is not None or row["claimed_until_ms"] is None:
        until_ms: int | None = row["acted_until_ms"]
        return until_ms
    return int(row["claimed_until_ms"]) + hides.CLOCKS_MS


def is_claimed(row: sa.RowMapping, owner: str, now_ms: int) -> bool:
    """Whether a process other than ``owner`` has it, and may still live."""
    holder = row["claimed_by"]
    if holder in (None, owner) or (row["claimed_until_ms"] or 0) <= now_ms:
        return False
    return not processes.is_dead(holder)


def being_swept(connection: Connection, texts: Iterable[str]) -> list[str]:
    """The entities whose ids ``texts`` hold and that are being swept, or are hidden or tagged; without a lock."""
    cores = sorted({core for text in texts for core in protection.cores(text)})
    ids = [form for core in cores[:_CORES] for form in (core, f"m-{core}", f"tr-{core}")]
    if not ids:
        return []
    query = sa.select(intents.c.entity_kind, intents.c.entity_id).where(
        intents.c.entity_kind.in_([kind.value for kind in EntityKind]),
        intents.c.entity_id.in_(ids),
        sa.or_(
            intents.c.acted_from_ms.is_not(None),
            sa.and_(
                intents.c.state == State.SWEEPING,
                intents.c.claimed_until_ms > database.clock_expression(connection.dialect.name),
            ),
        ),
    )
    return [f"{kind.replace('_', ' ')} {id_}" for kind, id_ in connection.execute(query)]


def is_anything_swept(connection: Connection) -> bool:
    """Whether any claim is in force, or was until not long ago: its holder may not have noticed yet."""
    claimed = sa.exists().where(
        intents.c.state == State.SWEEPING,
        intents.c.claimed_until_ms > database.clock_expression(connection.dialect.name) - _UNAWARE_MS,
    )
    return bool(connection.execute(sa.select(claimed)).scalar())


def claimed_for_ms(connection: Connection, lines: Sequence[Decision], now_ms: int) -> int:
    """How long it takes at most until the claims on ``lines`` have run out, if nobody renews them."""
    ends = [0]
    keys = [sha256(line.location) for line in lines if line.location]
    for start in range(0, len(keys), _IN_LIMIT):
        mine = intents.c.location_sha256.in_(keys[start : start + _IN_LIMIT])
        found = connection.execute(sa.select(sa.func.max(intents.c.claimed_until_ms)).where(mine)).scalar()
        ends.append(int(found or 0) - now_ms)
    return max(ends)


def intent_rows(connection: Connection, keys: Sequence[str]) -> dict[str, sa.RowMapping]:
    """The rows of some locations, by key, locked from now on."""
    rows = _locked(connection, sa.select(intents), intents.c.location_sha256.in_(keys))
    return {row["location_sha256"]: row for row in rows}


def _locked(connection: Connection, query: sa.Select[Any], where: sa.ColumnElement[bool]) -> list[sa.RowMapping]:
    """Rows of intents, locked from now on, in the order of their ids: two processes never wait for each other."""
    if connection.dialect.name != "mysql":
        locked = query.where(where).order_by(intents.c.id).with_for_update()
        return list(connection.execute(locked).mappings())
    # InnoDB locks while it reads, in the order of the index that it takes, and sorts afterwards: first the ids, then
    # the rows by them. What `where` says is not asked again: who needs that asks the rows, or says it in the UPDATE.
    query = query.with_hint(intents, "FORCE INDEX (PRIMARY)", "mysql").order_by(intents.c.id).with_for_update()
    ids = sorted(connection.scalars(sa.select(intents.c.id).where(where)))
    return [
        row
        for start in range(0, len(ids), _IN_LIMIT)
        for row in connection.execute(query.where(intents.c.id.in_(ids[start : start + _IN_LIMIT]))).mappings()
    ]


def _take(
    connection: Connection,
    found: Mapping[str, sa.RowMapping],
    mine: Mapping[str, Decision],
    *,
    owner: str,
    plan_id: str,
    now_ms: int,
    until_ms: int,
) -> None:
    orphans = any(line.orphan is not None for line in mine.values())
    values = {
        "claimed_by": owner,
        "claimed_until_ms": until_ms,
        "plan_id": plan_id,
        "provenance": ORPHAN if orphans else None,
    }
    connection.execute(
        intents.update()
        .where(intents.c.location_sha256.in_(list(mine)))
        .values(state=State.SWEEPING, state_ms=now_ms, **values)
    )
    moved = [
        {"key": key, "new_deleted_ms": line.deleted_ms}
        for key, line in mine.items()
        if found[key]["deleted_ms"] != line.deleted_ms
    ]
    killed = [
        {"key": key, "new_until_ms": acted_until_ms(row)}
        for key, row in sorted(found.items())
        if key in mine and row["acted_from_ms"] is not None and row["acted_until_ms"] is None
    ]
    if killed:
        # Before the end of their claims is overwritten.
        connection.execute(
            intents.update()
            .where(intents.c.location_sha256 == sa.bindparam("key"))
            .values(acted_until_ms=sa.bindparam("new_until_ms")),
            killed,
        )
    if moved:
        connection.execute(
            intents.update()
            .where(intents.c.location_sha256 == sa.bindparam("key"))
            .values(deleted_ms=sa.bindparam("new_deleted_ms")),
            moved,
        )


def _new_intent(line: Decision, now_ms: int) -> dict[str, Any]:
    location = line.location
    if location is None:
        raise AssertionError(line)
    seen = Expected(
        entity=line.entity, uri=line.uri, location=location, deleted_ms=line.deleted_ms, first_seen_ms=now_ms
    )
    return blank(seen, sha256(location), now_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """A location that the worker is to look at. ``first_seen_ms`` is on the database's clock."""

    entity: Entity
    uri: str
    location: Location
    deleted_ms: int | None
    first_seen_ms: int
    noted: bool = False
    """Whether the hook has noted the deletion, and so its date."""
    begun: bool = False
    """Whether a sweep of it had begun before, and died: something of it may be gone."""

    @property
    def since_ms(self) -> int:
        """From when its grace period counts: the later of MLflow's date and ours."""
        return max(self.deleted_ms or 0, self.first_seen_ms)


def blank(one: Expected, key: str, now_ms: int) -> dict[str, Any]:
    """The values of a new row, which waits and has no date."""
    return {
        "location_sha256": key,
        "bucket": one.location.bucket,
        "prefix": one.location.prefix,
        "entity_kind": one.entity.kind,
        "entity_id": one.entity.id,
        "experiment_id": one.entity.experiment_id,
        "workspace": one.entity.workspace,
        "uri": one.uri[:_URI],
        "deleted_ms": one.deleted_ms,
        "first_seen_ms": one.first_seen_ms,
        "state": State.PENDING,
        "state_ms": now_ms,
        "attempts": 0,
        **dict.fromkeys(COUNTS, 0),
    }


def entity_of(row: sa.RowMapping) -> Entity:
    """Whose location it is."""
    return Entity(
        kind=EntityKind(row["entity_kind"]),
        id=row["entity_id"],
        experiment_id=row["experiment_id"],
        workspace=row["workspace"],
    )


COUNTS: Final = ("deleted_objects", "deleted_versions", "deleted_markers", "deleted_bytes", "aborted_uploads")
"""What has left the bucket, in all that was ever swept there."""


def lock(connection: Connection, mine: sa.ColumnElement[bool]) -> None:
    """Lock some rows before they are changed."""
    _locked(connection, sa.select(intents.c.id), mine)


def release(connection: Connection, *, owner: str, now_ms: int) -> None:
    """Give back what ``owner`` has claimed and not ended: pending again."""
    mine = sa.and_(intents.c.claimed_by == owner, intents.c.state == State.SWEEPING)
    lock(connection, mine)
    # What it may have hidden, it has hidden by now.
    begun = sa.and_(intents.c.acted_from_ms.is_not(None), intents.c.acted_until_ms.is_(None))
    until_ms = sa.case((begun, now_ms + hides.CLOCKS_MS), else_=intents.c.acted_until_ms)
    values = {"state": State.PENDING, "state_ms": now_ms, "claimed_by": None, "claimed_until_ms": None}
    connection.execute(intents.update().where(mine).values(**values, acted_until_ms=until_ms))


def held(connection: Connection, lines: Sequence[Decision], *, owner: str, now_ms: int) -> set[Location]:
    """Those locations of ``lines`` whose claim ``owner`` still has."""
    keys = [sha256(line.location) for line in lines if line.location]
    found: set[Location] = set()
    for start in range(0, len(keys), _IN_LIMIT):
        query = sa.select(intents.c.bucket, intents.c.prefix).where(
            intents.c.location_sha256.in_(keys[start : start + _IN_LIMIT]),
            intents.c.claimed_by == owner,
            intents.c.claimed_until_ms > now_ms,
            # Seen anew since it was claimed: restored and deleted again.
            intents.c.first_seen_ms <= intents.c.state_ms,
        )
        found.update(Location(bucket, prefix) for bucket, prefix in connection.execute(query))
    return found


def renew(connection: Connection, *, owner: str, until_ms: int) -> int:
    """Put off the end of all claims of ``owner`` that have not run out; how many there are.

    What happened while one had run out was not refused, nor kept for its holder to see.
    """
    mine = sa.and_(
        intents.c.claimed_by == owner,
        intents.c.state == State.SWEEPING,
        intents.c.claimed_until_ms > database.clock_expression(connection.dialect.name),
    )
    lock(connection, mine)
    return int(connection.execute(intents.update().where(mine).values(claimed_until_ms=until_ms)).rowcount)


def _state_after(result: SweepResult) -> State:
    if result.verified:
        return State.SWEPT
    if result.outcome is Outcome.WAITING:
        return State.WAITING
    if result.outcome is Outcome.RESTORED:
        return State.CANCELLED
    if result.outcome is Outcome.FAILED and not all(failure.retryable for failure in result.failures):
        return State.FAILED
    return State.PENDING


def record(connection: Connection, results: Iterable[SweepResult], *, owner: str, now_ms: int) -> None:
    """Write down how each location ended, and give it back. What left the bucket counts even if the claim was lost."""
    rows = [_recorded(result, now_ms) for result in results if result.decision.location]
    if not rows:
        return
    holders = _intent_holders(connection, [row["key"] for row in rows])
    counts = {name: intents.c[name] + sa.bindparam(f"n_{name}") for name in COUNTS}
    mine = intents.c.location_sha256 == sa.bindparam("key")
    ours = [row for row in rows if holders.get(row["key"]) == owner]
    if len(ours) < len(rows):
        others = [row for row in rows if holders.get(row["key"]) != owner]
        connection.execute(intents.update().where(mine).values(**counts), others)
    if not ours:
        return
    state: sa.BindParameter[str] = sa.bindparam("new_state", type_=sa.String)
    now: sa.BindParameter[int] = sa.bindparam("now_ms", type_=sa.BigInteger)
    detail: sa.BindParameter[str] = sa.bindparam("new_detail", type_=sa.Text)
    until: sa.BindParameter[int] = sa.bindparam("new_until_ms", type_=sa.BigInteger)
    restored = state == State.CANCELLED
    touched = intents.c.acted_from_ms.is_not(None)
    verified, waits = state == State.SWEPT, state == State.WAITING
    # Who has counted nothing (a purge, or what was put off) leaves what was counted before.
    n_waiting: sa.BindParameter[int] = sa.bindparam("n_waiting_objects", type_=sa.BigInteger)
    counted = sa.and_(touched, sa.or_(waits, n_waiting > 0))
    ended = {
        name: sa.case((verified, None), else_=intents.c[name])
        for name in ("action", "acted_from_ms", "acted_plan_id", "spared")
    }
    # Restored or deleted again after the last look, and the worker has heard of it: that date stays.
    asked = sa.func.coalesce(intents.c.look_ms, _BEGUN_MS) > _BEGUN_MS
    next_ms = now + NEXT_LOOK_MS
    # What the worker waits for it looks at again, and at once: only MLflow's row tells whether it was deleted again.
    watched = sa.and_(restored, intents.c.look_ms.is_not(None))
    lost = sa.and_(restored, intents.c.look_ms.is_(None), intents.c.detail == LOST)
    connection.execute(
        intents.update()
        .where(mine)
        .values(
            **counts,
            state=sa.case((sa.or_(watched, lost), State.PENDING), else_=state),
            state_ms=now,
            detail=sa.case((lost, LOST), else_=detail),
            look_ms=sa.case((watched, now), (sa.and_(waits, sa.not_(asked)), next_ms), else_=intents.c.look_ms),
            attempts=intents.c.attempts + sa.bindparam("tried"),
            swept_ms=sa.case((sa.or_(verified, waits), now), else_=intents.c.swept_ms),
            **ended,
            acted_until_ms=sa.case(
                (verified, None),
                (touched, sa.func.coalesce(until, intents.c.acted_until_ms, now + hides.CLOCKS_MS)),
                else_=intents.c.acted_until_ms,
            ),
            waiting_objects=sa.case((verified, 0), (counted, n_waiting), (touched, intents.c.waiting_objects), else_=0),
            waiting_bytes=sa.case(
                (verified, 0), (counted, sa.bindparam("n_waiting_bytes")), (touched, intents.c.waiting_bytes), else_=0
            ),
            claimed_by=None,
            claimed_until_ms=None,
        ),
        ours,
    )


def found_empty(connection: Connection, locations: Sequence[Location], now_ms: int) -> None:
    """A listing of these was empty, and the sweep that had begun with them ended without a word."""
    rows = intent_rows(connection, [sha256(location) for location in locations])
    dead = [key for key, row in rows.items() if row["state"] in OPEN and not is_claimed(row, "", now_ms)]
    values: dict[str, Any] = {
        "state": State.SWEPT,
        "state_ms": now_ms,
        "swept_ms": now_ms,
        "detail": "",
        "waiting_objects": 0,
        "waiting_bytes": 0,
        **dict.fromkeys(("action", "acted_from_ms", "acted_until_ms", "acted_plan_id", "spared")),
        **dict.fromkeys(("claimed_by", "claimed_until_ms")),
    }
    connection.execute(intents.update().where(intents.c.location_sha256.in_(dead)).values(**values))


def _intent_holders(connection: Connection, keys: Sequence[str]) -> dict[str, str | None]:
    """Who has the claims on these rows, which are locked from now on."""
    found: dict[str, str | None] = {}
    for start in range(0, len(keys), _IN_LIMIT):
        rows = _locked(
            connection,
            sa.select(intents.c.location_sha256, intents.c.claimed_by),
            intents.c.location_sha256.in_(keys[start : start + _IN_LIMIT]),
        )
        found.update((row["location_sha256"], row["claimed_by"]) for row in rows)
    return found


def _recorded(result: SweepResult, now_ms: int) -> dict[str, Any]:
    if result.decision.location is None:
        raise AssertionError(result)
    return {
        "key": sha256(result.decision.location),
        "now_ms": now_ms,
        "new_state": _state_after(result),
        "new_detail": f"{result.outcome}: {result.detail}"[:_DETAIL],
        "new_until_ms": result.acted_until_ms,
        "n_waiting_objects": result.waiting_objects,
        "n_waiting_bytes": result.waiting_bytes,
        "tried": int(result.outcome in (Outcome.FAILED, Outcome.UNKNOWN)),
        **{f"n_{name}": getattr(result, name) for name in COUNTS},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What the journal holds: how many intents are in each state, and what left the buckets in all."""

    by_state: Mapping[State, int]
    deleted_objects: int
    deleted_versions: int
    deleted_bytes: int
    aborted_uploads: int
    failed: Sequence[tuple[str, str, str, str]]
    """kind, id, location, detail of some that failed."""


def summary(connection: Connection, *, examples: int = 20) -> Summary:
    """Sums over the intents, and the latest ``examples`` of failed ones."""
    states = connection.execute(sa.select(intents.c.state, sa.func.count()).group_by(intents.c.state))
    names = ("deleted_objects", "deleted_versions", "deleted_bytes", "aborted_uploads")
    sums = connection.execute(sa.select(*(sa.func.coalesce(sa.func.sum(intents.c[name]), 0) for name in names))).one()
    failed = connection.execute(
        sa.select(intents)
        .where(intents.c.state == State.FAILED)
        .order_by(intents.c.state_ms.desc(), intents.c.id)
        .limit(examples)
    ).mappings()
    return Summary(
        by_state={State(state): count for state, count in states},
        **{name: int(value) for name, value in zip(names, sums, strict=True)},
        failed=[
            (row["entity_kind"], row["entity_id"], Location(row["bucket"], row["prefix"]).uri, row["detail"] or "")
            for row in failed
        ],
    )


# Plans


def plan_started(connection: Connection, plan: Plan, digest: str, now_ms: int) -> None:
    """Note that a plan (and its digest) is being carried out. Without an end that is the trace of a crash."""
    connection.execute(
        plans.insert().values(
            id=plan.id,
            created_ms=plan.created_ms,
            started_ms=now_ms,
            actor=actor(),
            action=plan.action,
            cutoff_ms=plan.cutoff_ms,
            digest=digest,
            limits=json.dumps(asdict(plan.limits)),
            unsafe=json.dumps(list(plan.unsafe)),
            due=len(plan.due),
        )
    )


def plan_finished(connection: Connection, plan_id: str, outcomes: Mapping[Outcome, int], now_ms: int) -> None:
    """Note the end of a plan, and how many locations ended how, added to those that had ended before."""
    before = applied(connection, plan_id)
    counted = _counts(Counter(before.outcomes if before else {}) + Counter(outcomes))
    connection.execute(plans.update().where(plans.c.id == plan_id).values(finished_ms=now_ms, outcomes=counted))


def _counts(outcomes: Mapping[Outcome, int]) -> str:
    return json.dumps({outcome.value: count for outcome, count in outcomes.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Applied:
    """How a plan was carried out: ``finished_ms`` None where it has not ended, or its process died."""

    digest: str
    started_ms: int
    finished_ms: int | None
    actor: str
    outcomes: Mapping[Outcome, int]

    @property
    def left(self) -> int:
        """How many of its locations it was not done with."""
        return sum(count for outcome, count in self.outcomes.items() if outcome not in _ENDS)


_ENDS: Final = frozenset(
    {Outcome.SWEPT, Outcome.EMPTY, Outcome.WAITING, Outcome.PROTECTED, Outcome.RESTORED, Outcome.DROPPED}
)
"""After these there is nothing to go on with."""


def applied(connection: Connection, plan_id: str, *, locked: bool = False) -> Applied | None:
    """How a plan was carried out, or None where it was not; ``locked``: nobody else begins it meanwhile."""
    query = sa.select(plans).where(plans.c.id == plan_id)
    row = connection.execute(query.with_for_update() if locked else query).mappings().one_or_none()
    if row is None:
        return None
    outcomes = {Outcome(name): int(count) for name, count in json.loads(row["outcomes"] or "{}").items()}
    names = ("digest", "started_ms", "finished_ms", "actor")
    return Applied(**{name: row[name] for name in names}, outcomes=outcomes)


def require_unspent(before: Applied | None, digest: str) -> None:
    """Raises PlanRefused where the plan of a file was carried out and is done with, or where it was another file."""
    if before is None:
        return
    if before.digest != digest:
        raise PlanRefused(
            f"A plan of this id, and with other lines, was applied at {show_instant(before.started_ms)}: this file was "
            "altered, make a new plan"
        )
    if before.finished_ms is not None and not before.left:
        raise PlanRefused(
            f"This plan was applied already, at {show_instant(before.finished_ms)} by {before.actor}: make a new plan"
        )


def file_started(connection: Connection, plan: Plan, *, digest: str, made_ms: int, now_ms: int) -> Applied | None:
    """Note that what a plan file selects is being carried out; how it was before, if it was begun before.

    Two that begin it at once meet in its row (IntegrityError: begin again).

    Raises:
        PlanRefused: it was carried out, and nothing of it is left.
    """
    before = applied(connection, plan.id, locked=True)
    require_unspent(before, digest)
    if before is None:
        plan_started(connection, replace(plan, created_ms=made_ms), digest, now_ms)
        return None
    ended = _counts({outcome: count for outcome, count in before.outcomes.items() if outcome in _ENDS})
    values = {"started_ms": now_ms, "finished_ms": None, "actor": actor(), "outcomes": ended}
    connection.execute(plans.update().where(plans.c.id == plan.id).values(**values))
    return before


def done_by(connection: Connection, plan_id: str) -> frozenset[Location]:
    """What a plan has swept, hidden or tagged."""
    ends = intents.c.state.in_((State.SWEPT, State.CLOSED, State.WAITING))
    query = sa.select(intents.c.bucket, intents.c.prefix).where(intents.c.plan_id == plan_id, ends)
    return frozenset(Location(bucket, prefix) for bucket, prefix in connection.execute(query))


def last_plan(connection: Connection) -> tuple[int, int | None] | None:
    """When the latest sweep was started and finished."""
    row = connection.execute(
        sa.select(plans.c.started_ms, plans.c.finished_ms).order_by(plans.c.started_ms.desc())
    ).first()
    return (row[0], row[1]) if row else None


def with_settings(settings: Site, **changes: Any) -> Site:
    """``settings`` with those ``changes`` that are not None."""
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})
