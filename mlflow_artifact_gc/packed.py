"""Tombstones and lines of a plan by the million: sequences that keep columns, and make each value when it is asked for.

The rows of an experiment differ in their ids and dates alone. So a row is its id, its date and the number of a group,
which holds what the group's rows share. A row whose id or URI has another form is a group of its own. Pure.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import nsmallest
from typing import Final, NamedTuple, overload

from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Decision, Decisions, Entity, EntityKind, Reason, Tombstone
from mlflow_artifact_gc.policy import Place, place_of, root_of, root_of_all
from mlflow_artifact_gc.protection import CORE, has_core

_NO_DATE: Final = -(2**63)
_NO_ID: Final = "\0"
_REASONS: Final = tuple(Reason)
_CODES: Final = {reason: code for code, reason in enumerate(_REASONS)}
_ARTIFACTS: Final = "/artifacts/"
_OTHER_DIGITS: Final = str.maketrans("0123456789abcdef", "123456789abcdef0")

Row = tuple[str, str, int | None, str, str, str]
"""Id, URI, date, the experiment's id, the workspace, the experiment's URI."""


class Group(NamedTuple):
    """What rows have in common: all but id and date."""

    kind: EntityKind
    experiment_id: str
    workspace: str
    experiment_uri: str
    before: str
    """Of the URI what is before the id."""
    after: str
    id_length: int
    own: str = ""
    """The id, where there is but one row: then ``before`` is its whole URI."""

    def uri(self, id_: str) -> str:
        """The URI of the row with this id."""
        return self.before if self.own else f"{self.before}/{id_}/{self.after}"

    def entity(self, id_: str) -> Entity:
        """The entity with this id."""
        return Entity(kind=self.kind, id=id_, experiment_id=self.experiment_id, workspace=self.workspace)

    @property
    def segments(self) -> set[str]:
        """The segments of the URIs but for the id itself."""
        return {*self.before.split("/"), *self.after.split("/")} - {"", self.own}


class Stones(Sequence[Tombstone]):
    """Tombstones, in the order in which they came."""

    def __init__(self, tombstones: Iterable[Tombstone] = ()) -> None:
        self.groups: list[Group] = []
        self.ids: list[str] = []
        self.group_of = array("I")
        self._dates = array("q")
        self._numbers: dict[Group, int] = {}
        for stone in tombstones:
            entity, uri, deleted_ms = stone.entity, stone.uri, stone.deleted_ms
            self.add(
                entity.kind,
                (entity.id, uri, deleted_ms, entity.experiment_id, entity.workspace, stone.experiment_uri),
            )

    def add(self, kind: EntityKind, row: Row) -> None:
        """One more."""
        id_, uri, deleted_ms, experiment_id, workspace, experiment_uri = row
        before, found, after = uri.rpartition(f"/{id_}/")
        number = len(self.groups)
        if found and has_core(id_) and id_ not in before and id_ not in after:
            group = Group(kind, experiment_id, workspace, experiment_uri, before, after, len(id_))
            number = self._numbers.setdefault(group, number)
        else:
            group = Group(kind, experiment_id, workspace, experiment_uri, uri, "", 0, id_ or _NO_ID)
        if number == len(self.groups):
            self.groups.append(group)
        self.ids.append(id_)
        self.group_of.append(number)
        self._dates.append(_NO_DATE if deleted_ms is None else deleted_ms)

    def sort(self, start: int) -> None:
        """Those from ``start`` on by their ids."""
        order = sorted(range(start, len(self.ids)), key=self.ids.__getitem__)
        self.ids[start:] = [self.ids[position] for position in order]
        self.group_of[start:] = array("I", [self.group_of[position] for position in order])
        self._dates[start:] = array("q", [self._dates[position] for position in order])

    def deleted_ms(self, position: int) -> int | None:
        """The date of one."""
        date = self._dates[position]
        return None if date == _NO_DATE else date

    def group(self, position: int) -> Group:
        """What one has in common with others."""
        return self.groups[self.group_of[position]]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Tombstone]:
        return map(self.__getitem__, range(len(self)))

    @overload
    def __getitem__(self, position: int) -> Tombstone: ...
    @overload
    def __getitem__(self, position: slice) -> list[Tombstone]: ...
    def __getitem__(self, position: int | slice) -> Tombstone | list[Tombstone]:
        if isinstance(position, slice):
            return [self[one] for one in range(*position.indices(len(self)))]
        group, id_ = self.group(position), self.ids[position]
        return Tombstone(
            entity=group.entity(id_),
            uri=group.uri(id_),
            deleted_ms=self.deleted_ms(position),
            experiment_uri=group.experiment_uri,
        )


class _Spot(NamedTuple):
    """Where the rows of a group lie: ``head``, the id, ``artifacts/``. ``root`` None: perhaps not one for all."""

    bucket: str
    head: str
    root: Location | None


class Places:
    """Where the artifacts of tombstones lie, by the rules of ``policy``, which are asked once for most groups."""

    def __init__(self, stones: Stones, destination: Destination) -> None:
        self._stones, self._destination = stones, destination
        self._spots: dict[int, _Spot | None] = {}
        for position, number in enumerate(stones.group_of):
            if number not in self._spots:
                self._spots[number] = None if stones.groups[number].own else self._spot(stones[position])

    def _spot(self, stone: Tombstone) -> _Spot | None:
        location = place_of(stone, self._destination).location
        if location is None:
            return None
        head = location.prefix.removesuffix(f"{stone.entity.id}{_ARTIFACTS}")
        # What made this one readable may be its very id: that of its workspace, say. So another one is asked as well.
        other = _another(stone)
        expected = Location(location.bucket, f"{head}{other.entity.id}{_ARTIFACTS}")
        if place_of(other, self._destination).location != expected:
            return None
        return _Spot(
            location.bucket,
            head,
            root_of_all(Location(location.bucket, head), location, stone, self._destination),
        )

    def place(self, position: int) -> Place:
        """Where one lies, or why that cannot be said."""
        location = self.location(position)
        return Place(location=location) if location else place_of(self._stones[position], self._destination)

    def location(self, position: int) -> Location | None:
        """Where one lies, if that can be said."""
        spot = self._spots[self._stones.group_of[position]]
        if spot is not None:
            return Location(spot.bucket, f"{spot.head}{self._stones.ids[position]}{_ARTIFACTS}")
        return place_of(self._stones[position], self._destination).location

    def root(self, position: int, location: Location) -> Location:
        """The root that its location lies under."""
        spot = self._spots[self._stones.group_of[position]]
        if spot is not None and spot.root is not None:
            return spot.root
        return root_of(location, self._stones[position], self._destination)

    def are_plain(self, number: int) -> bool:
        """Whether all rows of a group have a location."""
        return self._spots[number] is not None


def _another(stone: Tombstone) -> Tombstone:
    """A row of the same group, with an id of the same form."""
    id_ = stone.entity.id
    made_up = id_[:-CORE] + id_[-CORE:].translate(_OTHER_DIGITS)
    uri = stone.uri.replace(f"/{id_}/", f"/{made_up}/")
    return replace(stone, entity=replace(stone.entity, id=made_up), uri=uri)


class Lines(Decisions):
    """The decisions on tombstones, in their order; some of those may have none."""

    def __init__(self, stones: Stones, places: Places) -> None:
        self._stones, self._places = stones, places
        self._positions = array("I")
        self._codes = bytearray()
        self._evidence: dict[int, str] = {}
        self._needed: dict[int, tuple[Location, ...]] = {}

    def add(self, position: int, reason: Reason, evidence: str = "") -> None:
        """One more, on the tombstone at ``position``; the positions rise."""
        self._positions.append(position)
        self._codes.append(_CODES[reason])
        if evidence:
            self._evidence[position] = evidence

    def spare(self, index: int, needed: tuple[Location, ...]) -> None:
        """Make one due, but for the parts of it that are needed."""
        self._codes[index] = _CODES[Reason.DUE]
        self._needed[self._positions[index]] = needed

    def only(self, reason: Reason) -> Lines:
        """Those with this reason."""
        found = Lines(self._stones, self._places)
        code = _CODES[reason]
        found._positions = array("I", [one for one, of in zip(self._positions, self._codes, strict=True) if of == code])
        found._codes = bytearray([code]) * len(found._positions)
        found._evidence, found._needed = self._evidence, self._needed
        return found

    def first(self, count: int) -> list[Decision]:
        """So many by their ids."""
        ids, positions = self._stones.ids, self._positions
        return [self[index] for index in nsmallest(count, range(len(self)), key=lambda index: ids[positions[index]])]

    def alike(self) -> Iterator[tuple[Decision, int]]:
        """One of each group, and how many there are that have its kind, its experiment and the same around its id."""
        first: dict[int, int] = {}
        counts: Counter[int] = Counter()
        for index, position in enumerate(self._positions):
            number = self._stones.group_of[position]
            first.setdefault(number, index)
            counts[number] += 1
        return ((self[index], counts[number]) for number, index in first.items())

    def spared(self) -> Iterator[Decision]:
        """Those of which parts are needed."""
        some = enumerate(self._positions) if self._needed else ()
        return (self[index] for index, position in some if position in self._needed)

    def reasons(self) -> Counter[Reason]:
        """How many there are of each reason."""
        return Counter({_REASONS[code]: count for code, count in Counter(self._codes).items()})

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[Decision]:
        return map(self.__getitem__, range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Decision: ...
    @overload
    def __getitem__(self, index: slice) -> list[Decision]: ...
    def __getitem__(self, index: int | slice) -> Decision | list[Decision]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        position = self._positions[index]
        stones = self._stones
        group, id_ = stones.group(position), stones.ids[position]
        location = self._places.location(position)
        return Decision(
            entity=group.entity(id_),
            uri=group.uri(id_),
            location=location,
            deleted_ms=stones.deleted_ms(position),
            reason=_REASONS[self._codes[index]],
            evidence=self._evidence.get(position, ""),
            root=self._places.root(position, location) if location else None,
            needed=self._needed.get(position, ()),
        )
