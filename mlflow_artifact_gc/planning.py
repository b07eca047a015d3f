"""Makes the plan: a value with one decision a location. Touches nothing; and says how its locations are listed."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from mlflow_artifact_gc.errors import ReferencesIncomplete, UnreadableUri
from mlflow_artifact_gc.locations import Destination, Location, proxied_path
from mlflow_artifact_gc.model import Decision, Entity, EntityKind, Plan, Reason, Reference, Tombstone
from mlflow_artifact_gc.packed import Lines, Places, Stones
from mlflow_artifact_gc.policy import Circumstances, Place, Scope, decide
from mlflow_artifact_gc.protection import Candidate, Protection, cores

_ID_HEAD: Final = re.compile(r"(?:[a-z]{1,3}-)?")
_NONE: Final[Mapping[Location, tuple[Location, ...]]] = MappingProxyType({})
_PARTITION: Final = 64
"""Locations that one listing of a part of their parent may cover: at 20 objects each, a little more than a page."""
_DENSE_FROM: Final = 32
_DENSE_SHARE: Final = 0.25
"""From this share of its parent's entities on, a listing of the parent is cheaper than one per location."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What was read, and read in this order: tombstones first, references after."""

    tombstones: Sequence[Tombstone]
    references: Sequence[Reference]
    owners: Mapping[str, str]
    destination: Destination
    swept_ms: Mapping[Location, int | None]
    """Locations that were swept, and the date of the tombstone that they were swept for."""
    waiting_ms: Mapping[Location, int | None] = field(default_factory=dict)
    """The same of those that are hidden or tagged."""
    undone_ms: Mapping[Location, int | None] = field(default_factory=dict)
    """Locations of which a person has taken back a hide or tag, and when."""
    candidates: Candidates | None = None
    """Those of ``tombstones`` and ``destination``, where somebody has them already."""


class Candidates:
    """Where some tombstones' artifacts lie, and which of them a reference protects: indexed once.

    Raises:
        ReferencesIncomplete: as ``require_destination`` does.
    """

    def __init__(self, tombstones: Iterable[Tombstone], destination: Destination) -> None:
        self.stones = tombstones if isinstance(tombstones, Stones) else Stones(tombstones)
        require_destination(self.stones, destination)
        self.places = Places(self.stones, destination)
        self._positions = array("I")
        self._protection = Protection(self._candidates(), destination)

    def _candidates(self) -> Iterator[Candidate]:
        for position, id_ in enumerate(self.stones.ids):
            location = self.places.location(position)
            if location is not None:
                self._positions.append(position)
                yield Candidate(id_, location, self.stones.group(position).experiment_id)

    def protected_by(self, reference: Reference) -> list[int]:
        """The positions among the tombstones. Raises as ``Protection.protected_by`` does."""
        return [self._positions[hit] for hit in self._protection.protected_by(reference)]

    def is_beside(self, text: str) -> bool:
        """Whether a text surely protects none of them."""
        return self._protection.is_beside(text)

    def matters(self, reference: Reference) -> bool:
        """Whether it protects any of them; of a million versions most do not. Raises as ``protected_by`` does."""
        return self._protection.protects(reference)

    def shields(self, references: Iterable[Reference]) -> dict[int, tuple[str, str]]:
        """For each protected position: the first live holder, and the first deleted one."""
        shields: dict[int, tuple[str, str]] = {}
        for reference in references:
            for position in self.protected_by(reference):
                live, deleted = shields.get(position, ("", ""))
                if reference.live:
                    live = live or reference.holder
                else:
                    deleted = deleted or reference.holder
                shields[position] = (live, deleted)
        return shields


def ids_in_places(tombstones: Iterable[Tombstone]) -> set[str]:
    """Ids of other entities that the URIs may hold: whoever owns one of them, its artifacts lie around."""
    stones = tombstones if isinstance(tombstones, Stones) else Stones(tombstones)
    return _ids_in({segment for group in stones.groups for segment in group.segments})


def _ids_in(segments: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for segment in segments:
        found.add(segment)
        found.update(form for core in cores(segment) for form in (core, f"m-{core}", f"tr-{core}"))
    return found


def require_destination(stones: Stones, destination: Destination) -> None:
    """Raises ReferencesIncomplete where something is proxied and nobody said where the proxy keeps its objects."""
    if destination.known:
        return
    groups = {number for number, group in enumerate(stones.groups) if _is_proxied(f"{group.before}/")}
    if groups:
        proxied = sum(number in groups for number in stones.group_of)
        raise ReferencesIncomplete(
            f"{proxied:,} deleted entities have proxied artifacts (mlflow-artifacts:), and where the proxy keeps its "
            "objects is not known: give --artifacts-destination as the server has it"
        )


def _is_proxied(uri: str) -> bool:
    try:
        return proxied_path(uri) is not None
    except UnreadableUri:
        return False


def decisions(
    facts: Facts, scope: Scope, *, cutoff_ms: int, include_undated: bool, again: bool, partial: bool = False
) -> Lines:
    """One decision for each tombstone in ``scope``.

    Args:
        cutoff_ms: tombstones of a later date are kept.
        include_undated: take those without a date too; those that ``scope`` names by id are taken anyway.
        again: take what was swept before too, to delete its metadata.
        partial: where only parts of a location are needed, the rest of it is due, if it would be without that need.
    """
    candidates = facts.candidates or Candidates(facts.tombstones, facts.destination)
    stones, places = candidates.stones, candidates.places
    shields = candidates.shields(facts.references)
    around = _Around(stones, facts.owners)
    done = bool(facts.undone_ms or facts.waiting_ms or (facts.swept_ms and not again))
    made = Lines(stones, places)
    beside: dict[int, tuple[Tombstone, Place, Circumstances]] = {}
    twins = _Twins()
    ordinary: dict[tuple[int, bool | None], tuple[Reason, str]] = {}
    for index, number in enumerate(stones.group_of):
        named = False
        if scope != Scope():
            entity = stones.group(index).entity(stones.ids[index])
            if not scope.covers(entity):
                continue
            named = scope.names(entity)
        deleted_ms = stones.deleted_ms(index)
        key = number, None if deleted_ms is None else deleted_ms > cutoff_ms
        plain = not (named or done or index in shields or number in around.groups) and places.are_plain(number)
        if plain and key in ordinary:
            # With nothing but a group and a date, what is decided for one is decided for all.
            reason, evidence = ordinary[key]
        else:
            tombstone, place = stones[index], places.place(index)
            protected_by, nested_with = shields.get(index, ("", ""))
            found = Circumstances(
                protected_by=protected_by,
                nested_with=nested_with or around.owner(index),
                swept_before=not again and _done_before(tombstone, place, facts.swept_ms),
                waits=_done_before(tombstone, place, facts.waiting_ms),
                undone=not named and _undone(tombstone, place, facts.undone_ms),
                take_undated=include_undated or named,
            )
            reason, evidence = decide(tombstone, place, found, cutoff_ms)
            if plain:
                ordinary[key] = reason, evidence
        if stones.groups[number].kind is EntityKind.TRACE and twins.seen(stones[index], places.location(index)):
            continue
        if partial and reason is Reason.PROTECTED:
            beside[len(made)] = (tombstone, place, found)
        made.add(index, reason, evidence)
    needed = partly_needed(made, facts) if beside else {}
    for line, (tombstone, place, found) in beside.items():
        parts = needed.get(place.location) if place.location else None
        if parts and decide(tombstone, place, replace(found, protected_by=""), cutoff_ms)[0] is Reason.DUE:
            made.spare(line, parts)
    return made


class _Twins:
    """A line a location: a trace's two URIs may name one place (its data, and their archive in the same folder)."""

    def __init__(self) -> None:
        self._seen: set[tuple[Entity, Location | str]] = set()

    def seen(self, trace: Tombstone, location: Location | None) -> bool:
        key = trace.entity, location or trace.uri
        before = key in self._seen
        self._seen.add(key)
        return before


class _Around:
    """Whose ids the URIs of tombstones hold, beside their own."""

    def __init__(self, stones: Stones, owners: Mapping[str, str]) -> None:
        self._stones, self._owners = stones, owners
        self.groups: dict[int, list[str]] = {}
        """Of those groups in which any is: the ids of owners."""
        for number, group in enumerate(stones.groups if owners else ()):
            if ids := sorted(_ids_in(group.segments) & owners.keys()):
                self.groups[number] = ids

    def owner(self, position: int) -> str:
        """The first of them; empty if there is none."""
        ids, own = self.groups.get(self._stones.group_of[position], ()), self._stones.ids[position]
        return next((self._owners[id_] for id_ in ids if id_ != own), "")


def partly_needed(lines: Iterable[Decision], facts: Facts) -> dict[Location, tuple[Location, ...]]:
    """Of the locations that are protected those of which only parts are needed, as all that needs them says."""
    protected = [
        (line.location, line.entity)
        for line in lines
        if line.reason is Reason.PROTECTED and line.location
        # Somebody else's place around it, or in it: whose is what cannot be said.
        if not _owner_around(line, facts.owners)
    ]
    candidates = [Candidate(entity.id, location, entity.experiment_id) for location, entity in protected]
    protection = Protection(candidates, facts.destination)
    needed: defaultdict[int, set[Location]] = defaultdict(set)
    whole: set[int] = set()
    for reference in facts.references if candidates else ():
        for index, parts in protection.parts_needed(reference).items():
            needed[index].update(parts)
            if not parts:
                whole.add(index)
    return {
        candidates[index].location: tuple(sorted(parts))
        for index, parts in sorted(needed.items())
        if index not in whole
    }


def _owner_around(line: Decision, owners: Mapping[str, str]) -> bool:
    own = line.entity.id
    ids = _ids_in(segment for segment in line.uri.split("/") if segment and segment != own) - {own}
    return not owners.keys().isdisjoint(ids)


def _undone(tombstone: Tombstone, place: Place, undone_ms: Mapping[Location, int | None]) -> bool:
    if tombstone.deleted_ms is None:
        return place.location in undone_ms
    return _done_before(tombstone, place, undone_ms)


def _done_before(tombstone: Tombstone, place: Place, done_ms: Mapping[Location, int | None]) -> bool:
    # Restored and deleted again: a later date than the one it was done for makes it a new tombstone.
    if place.location is None or place.location not in done_ms:
        return False
    before = done_ms[place.location]
    return tombstone.deleted_ms == before or (
        tombstone.deleted_ms is not None and before is not None and tombstone.deleted_ms <= before
    )


def measured(plan: Plan, sizes: Mapping[Location, tuple[int, int]]) -> Plan:
    """``plan`` with the objects and bytes of each location in ``sizes``."""
    return replace(plan, decisions=tuple(_sized(line, sizes) for line in plan.decisions))


def _sized(line: Decision, sizes: Mapping[Location, tuple[int, int]]) -> Decision:
    if line.location is None or line.location not in sizes:
        return line
    objects, size_bytes = sizes[line.location]
    return replace(line, expected_objects=objects, expected_bytes=size_bytes)


# How to list


@dataclass(frozen=True, kw_only=True, slots=True)
class ListingTask:
    """One listing that covers some locations: of ``prefix``, which is a location's own or a part of its parent."""

    bucket: str
    prefix: str
    locations: tuple[Location, ...]
    needed: tuple[Location, ...] = ()
    """The parts of its one location that stay, and are looked at for their age and for markers alone."""

    def apart(self) -> tuple[ListingTask, ...]:
        """The same locations, each with a listing of its own."""
        return tuple(_alone(location, self.needed) for location in self.locations)

    def only(self, locations: Sequence[Location]) -> ListingTask:
        """The same listing for fewer locations."""
        if len(locations) == 1:
            return _alone(locations[0], self.needed)
        return replace(self, locations=tuple(locations))

    def widened(self) -> ListingTask:
        """The listing of one location, with the entity's own folder around it: a marker there can be seen."""
        return replace(self, prefix=self.locations[0].parent().prefix)

    def spares(self, key: str) -> bool:
        """Whether a listed key belongs to what stays."""
        return any(part.holds(key) for part in self.needed)

    def owner_of(self) -> Callable[[str], Location | None]:
        """Tells which location a listed key belongs to, if any, whatever order the server lists in."""
        if len(self.locations) == 1:
            only = self.locations[0]
            return lambda key: only if key.startswith(only.prefix) else None
        start = len(self.locations[0].parent(2).prefix)
        by_id = {location.prefix[start:].partition("/")[0]: location for location in self.locations}

        def owner(key: str) -> Location | None:
            location = by_id.get(key[start:].partition("/")[0])
            return location if location and key.startswith(location.prefix) else None

        return owner


def dense_parents(lines: Iterable[Decision], rows: Mapping[tuple[EntityKind, str], int]) -> frozenset[Location]:
    """The parents of which so many entities are due that listing the parent is cheaper than listing each location.

    Args:
        lines: what is due.
        rows: how many entities of a kind each experiment has.
    """
    due: defaultdict[Location, int] = defaultdict(int)
    total: defaultdict[Location, dict[tuple[EntityKind, str], int]] = defaultdict(dict)
    for line, count in lines.alike() if isinstance(lines, Lines) else ((line, 1) for line in lines):
        if line.location:
            parent = line.location.parent(2)
            due[parent] += count
            whose = (line.entity.kind, line.entity.experiment_id)
            total[parent][whose] = rows.get(whose, 0)
    return frozenset(
        parent
        for parent, count in due.items()
        if count >= _DENSE_FROM and count >= _DENSE_SHARE * sum(total[parent].values())
    )


def listing_tasks(
    locations: Sequence[Location], dense: frozenset[Location], needed: Mapping[Location, tuple[Location, ...]] = _NONE
) -> tuple[ListingTask, ...]:
    """Cover each location by exactly one listing: parts of dense parents, and the others one by one.

    Args:
        locations: what is to be listed.
        dense: parents of so many that they are listed in parts.
        needed: the parts that stay of those of which only the rest goes; each of these is listed by itself.
    """
    by_parent: defaultdict[Location, list[Location]] = defaultdict(list)
    tasks: list[ListingTask] = []
    for location in locations:
        parent = location.parent(2)
        if parent in dense and location not in needed:
            by_parent[parent].append(location)
        else:
            tasks.append(_alone(location, needed.get(location, ())))
    for parent, children in by_parent.items():
        tasks += _partition(parent, children)
    return tuple(tasks)


def listed_in_parts(tasks: Iterable[ListingTask]) -> frozenset[Location]:
    """The parents that several of ``tasks`` list parts of."""
    parts = Counter(task.locations[0].parent(2) for task in tasks if len(task.locations) > 1)
    return frozenset(parent for parent, count in parts.items() if count > 1)


def needed_parts(lines: Iterable[Decision]) -> dict[Location, tuple[Location, ...]]:
    """What stays of the locations of ``lines`` of which only the rest goes."""
    some = lines.spared() if isinstance(lines, Lines) else lines
    return {line.location: line.needed for line in some if line.location and line.needed}


def _alone(location: Location, needed: tuple[Location, ...] = ()) -> ListingTask:
    return ListingTask(bucket=location.bucket, prefix=location.prefix, locations=(location,), needed=needed)


def _partition(parent: Location, children: Sequence[Location]) -> list[ListingTask]:
    """Parts of ``parent`` by the first characters of the ids, so that each covers a page or so."""

    def start(length: int) -> Callable[[Location], str]:
        def of(child: Location) -> str:
            id_ = child.prefix[len(parent.prefix) :].partition("/")[0]
            head = _ID_HEAD.match(id_)
            return parent.prefix + id_[: (head.end() if head else 0) + length]

        return of

    # At least one character of the id: so a parent's other folders (models/, traces/) stay outside.
    for length in range(1, 9):
        groups: defaultdict[str, list[Location]] = defaultdict(list)
        for child in children:
            groups[start(length)(child)].append(child)
        if max(map(len, groups.values())) <= _PARTITION:
            break
    return [
        ListingTask(bucket=parent.bucket, prefix=prefix, locations=tuple(group)) if len(group) > 1 else _alone(group[0])
        for prefix, group in groups.items()
    ]
