"""How deletions reach the journal: the hook's inbox, drained, and now and then a scan of MLflow's own tombstones.

A note only says where to look. Whether something is deleted, and since when, MLflow's rows say; so notes may come
twice, late, in any order, or not at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from mlflow_artifact_gc import agenda, database, holds, inbox, journal, notices, policy, rounds
from mlflow_artifact_gc.inbox import Event, Note, Subject
from mlflow_artifact_gc.keeping import HoldKind
from mlflow_artifact_gc.locations import DEFAULT_WORKSPACE
from mlflow_artifact_gc.model import Entity, EntityKind, Tombstone

if TYPE_CHECKING:
    from mlflow_artifact_gc.session import Session

_T = TypeVar("_T")

_CHUNK: Final = 200
"""Intents in one transaction: on SQLite a user's commit waits for it."""
_PAUSE_S: Final = 0.02
_KINDS: Final = {
    Subject.RUN: EntityKind.RUN,
    Subject.LOGGED_MODEL: EntityKind.LOGGED_MODEL,
    Subject.TRACE: EntityKind.TRACE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What an intake has changed: what waits from now on, and whether the registry has changed.

    ``left``: the numbers of notes that were worked off, and stay for a sweep that is under way.
    """

    expected: tuple[journal.Expected, ...] = ()
    registry_changed: bool = False
    left: frozenset[int] = frozenset()


class Intake:
    """Fills the journal for one site."""

    def __init__(
        self, session: Session, *, grace_ms: int, stopped: Callable[[], bool], left: frozenset[int] = frozenset()
    ) -> None:
        """``left``: the numbers of notes that an earlier intake has worked off, and left where they are."""
        self._session = session
        self._engine = session.engine
        self._grace_ms = grace_ms
        self._stopped = stopped
        self._left = left

    def drain(self) -> Taken:
        """Work off the inbox; a crash half-way does it again.

        Raises:
            DatabaseUnusable: what is left stays in the inbox.
        """
        expected: list[journal.Expected] = []
        registry_changed = False
        after, left = 0, set[int]()
        while not self._stopped():
            with database.reading(self._engine) as connection:
                some = inbox.some(connection, after=after)
            if not some:
                break
            after = some[-1].id
            notes = [note for note in some if note.id not in self._left]
            expected += self._work_off(notes)
            expected += self._held([int(note.entity_id) for note in notes if note.subject is Subject.HOLD])
            registry_changed |= any(note.subject in inbox.NEEDING for note in notes)
            stays = self._needed_by_sweeps(some)
            if gone := [note.id for note in some if note.id not in stays]:
                with database.writing(self._engine) as connection:
                    inbox.drained(connection, gone)
            left |= stays
        if registry_changed:
            with database.writing(self._engine) as connection:
                now_ms = database.clock_ms(connection)
                agenda.wake_protected(connection, grace_ms=self._grace_ms, now_ms=now_ms)
        return Taken(expected=tuple(expected), registry_changed=registry_changed, left=frozenset(left))

    def scan(self) -> Taken:
        """Find what the hook could not see: deletions by clients without it, or while our tables were not there."""
        switched_on_ms = self._session.site.switched_on_ms
        with database.reading(self._engine) as connection:
            now_ms = database.clock_ms(connection)
            stones = self._session.tracked.on(connection).tombstones()
            watched = agenda.watched(connection)
            settled = agenda.settled(connection)
        fresh = [stone for stone in stones if stone.deleted_ms is not None and stone.deleted_ms >= switched_on_ms]
        known = {(entity.kind, entity.id) for entity, dated in watched.items() if dated}
        missing = [
            stone
            for stone in fresh
            if (key := (stone.entity.kind, stone.entity.id)) not in known
            and (stone.deleted_ms or 0) > settled.get(key, -1)
        ]
        dead = {(stone.entity.kind, stone.entity.id) for stone in stones}
        self._restored([entity for entity in watched if (entity.kind, entity.id) not in dead])
        return Taken(expected=tuple(self._expect(missing, {}, now_ms)))

    def date_anew(self) -> None:
        """The grace period may be another: move what waits, and tell its runs, a portion at a time."""
        with database.reading(self._engine) as connection:
            last = agenda.last_id(connection)
        for first in range(1, last + 1, _CHUNK):
            with database.writing(self._engine) as connection:
                agenda.regrace(connection, self._grace_ms, (first, first + _CHUNK - 1))
            self._breathe(last)
        done, after = False, 0
        while not done and not self._stopped():
            with database.writing(self._engine) as connection:
                some = agenda.promised(connection, after_id=after, limit=_CHUNK)
                told = {
                    one.entity.id: notices.pending(one.since_ms + self._grace_ms)
                    for _, one in some
                    if one.entity.kind is EntityKind.RUN
                }
                notices.write(connection, told, deleted_only=True)
            done, after = len(some) < _CHUNK, some[-1][0] if some else after
            self._breathe(last)

    # Notes

    def _needed_by_sweeps(self, notes: Sequence[Note]) -> set[int]:
        """Whoever has a claim reads before each of his batches what was registered since (``Fence``)."""
        registered = {note.id for note in notes if note.event is Event.REGISTERED}
        if not registered:
            return set()
        with database.reading(self._engine) as connection:
            return registered if journal.is_anything_swept(connection) else set()

    def _held(self, ids: Sequence[int]) -> list[journal.Expected]:
        """What waits of runs, models and experiments that somebody has put a hold on: it is to say so."""
        if not ids:
            return []
        with database.reading(self._engine) as connection:
            found = holds.some(connection, ids).values()
            entities = [one.target for one in found if one.kind in (HoldKind.RUN, HoldKind.LOGGED_MODEL)]
            experiments = [one.target for one in found if one.kind is HoldKind.EXPERIMENT]
            return agenda.waiting_of(connection, entity_ids=entities, experiment_ids=experiments)

    def _work_off(self, notes: Sequence[Note]) -> list[journal.Expected]:
        lost = [note for note in notes if note.event is Event.HARD_DELETED]
        told = [note for note in notes if note.event in (Event.DELETED, Event.RESTORED) and note.subject in _OWNING]
        seen_ms = _latest(note for note in told if note.event is Event.DELETED)
        named = [
            Entity(kind=_KINDS[note.subject], id=note.entity_id, experiment_id=note.experiment_id or "")
            for note in told
            if note.subject in _KINDS
        ]
        experiments = sorted({note.entity_id for note in told if note.subject is Subject.EXPERIMENT})
        with database.reading(self._engine) as connection:
            now_ms = database.clock_ms(connection)
            tracking = self._session.tracked.on(connection)
            named += tracking.following(entity.id for entity in named if entity.kind is EntityKind.RUN)
            stones = [*tracking.tombstones(named), *tracking.tombstones_of(experiments)]
            watched = agenda.watched(connection, experiments) if experiments else {}
        dead = {(stone.entity.kind, stone.entity.id) for stone in stones}
        self._restored([entity for entity in (*named, *watched) if (entity.kind, entity.id) not in dead])
        self._remember(lost, now_ms)
        return self._expect([stone for stone in stones if self._is_ours(stone, told)], seen_ms, now_ms)

    def _is_ours(self, stone: Tombstone, told: Sequence[Note]) -> bool:
        """Whether it was deleted after ``init``, by its date or its own note; not what its experiment held before."""
        if (stone.deleted_ms or 0) >= self._session.site.switched_on_ms:
            return True
        for note in told:
            own = _KINDS.get(note.subject) is stone.entity.kind and note.entity_id == stone.entity.id
            # A clock that is behind dates an experiment's runs not before the experiment itself.
            along = note.subject is Subject.EXPERIMENT and note.entity_id == stone.entity.experiment_id
            dated = note.deleted_ms is not None and (stone.deleted_ms or 0) >= note.deleted_ms
            if note.event is Event.DELETED and (own or (along and dated)):
                return True
        return False

    def _expect(
        self, stones: Sequence[Tombstone], seen_ms: Mapping[tuple[Subject, str], int], now_ms: int
    ) -> list[journal.Expected]:
        wanted: dict[object, journal.Expected] = {}
        for stone in stones:
            location = policy.place_of(stone, self._session.destination).location
            if location is None or stone.deleted_ms is None:
                continue  # Not ours, or not known since when: `gc` and `status` say so.
            keys = (
                (Subject(stone.entity.kind.value), stone.entity.id),
                (Subject.EXPERIMENT, stone.entity.experiment_id),
            )
            dates = [seen_ms[key] for key in keys if key in seen_ms]
            first_seen_ms = max(dates) if dates else now_ms
            wanted[location] = journal.Expected(
                entity=stone.entity,
                uri=stone.uri,
                location=location,
                deleted_ms=stone.deleted_ms,
                first_seen_ms=first_seen_ms,
                noted=bool(dates),
            )
        taken: list[journal.Expected] = []
        for chunk in _chunks(list(wanted.values())):
            with database.writing(self._engine) as connection:
                fresh = agenda.expect(connection, chunk, grace_ms=self._grace_ms, now_ms=now_ms)
                told = {
                    one.entity.id: notices.pending(
                        one.since_ms + self._grace_ms, begun_ms=now_ms if one.begun else None
                    )
                    for one in fresh
                    if one.entity.kind is EntityKind.RUN
                }
                notices.write(connection, told, deleted_only=True)
            taken += fresh
            self._breathe(len(wanted))
        return taken

    def _restored(self, entities: Sequence[Entity]) -> None:
        for chunk in _chunks(entities):
            with database.writing(self._engine) as connection:
                rounds.back_again(self._session, connection, chunk, database.clock_ms(connection))
            self._breathe(len(entities))

    def _remember(self, notes: Sequence[Note], now_ms: int) -> None:
        """Rows that are gone for good left their URIs behind."""
        lost: dict[object, journal.Expected] = {}
        for note in notes:
            entity = Entity(
                kind=_KINDS[note.subject],
                id=note.entity_id,
                experiment_id=note.experiment_id or "",
                workspace=note.workspace or DEFAULT_WORKSPACE,
            )
            stone = Tombstone(entity=entity, uri=note.uri or "", deleted_ms=note.recorded_ms)
            location = policy.place_of(stone, self._session.destination).location
            if location is not None:
                lost[location] = journal.Expected(
                    entity=entity, uri=stone.uri, location=location, deleted_ms=None, first_seen_ms=note.recorded_ms
                )
        for chunk in _chunks(list(lost.values())):
            with database.writing(self._engine) as connection:
                agenda.remember_lost(connection, chunk, now_ms)
            self._breathe(len(lost))

    @staticmethod
    def _breathe(total: int) -> None:
        # Between two transactions of a long series, so that on SQLite a user's commit gets in.
        if total > _CHUNK:
            time.sleep(_PAUSE_S)


_OWNING: Final = frozenset({*_KINDS, Subject.EXPERIMENT})


def _latest(notes: Iterable[Note]) -> dict[tuple[Subject, str], int]:
    found: dict[tuple[Subject, str], int] = {}
    for note in notes:
        key = (note.subject, note.entity_id)
        found[key] = max(found.get(key, 0), note.recorded_ms)
    return found


def _chunks(values: Sequence[_T]) -> Iterable[Sequence[_T]]:
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
