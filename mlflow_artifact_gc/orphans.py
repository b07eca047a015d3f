"""Finds orphans: lists the roots as an audit does, and asks of each prefix without a row whether it may go.

What it may do so is decided in ``leftovers``; what was seen is kept in ``sightings``; whose a root is says its marker.
It is all asked again at the fence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import auditing, database, journal, leftovers, planning, s3, sightings, surveying
from mlflow_artifact_gc.errors import DatabaseUnusable, NotOnS3, RootRefused, StorageError, UnreadableUri, UsageError
from mlflow_artifact_gc.hides import CLOCKS_MS
from mlflow_artifact_gc.locations import DEFAULT_WORKSPACE, Destination, Location
from mlflow_artifact_gc.model import Decision, Entity, Orphan, Reason, Standing, Tombstone
from mlflow_artifact_gc.ownership import Roots
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.quantities import show_instant
from mlflow_artifact_gc.session import chunks
from mlflow_artifact_gc.sightings import Held

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from mlflow_artifact_gc.s3 import S3Client
    from mlflow_artifact_gc.session import Session
    from mlflow_artifact_gc.tallying import Line, Tally

_BATCH: Final = 5_000
_ENTITIES: Final = f"kind IS NOT NULL AND verdict != '{Standing.UNKNOWN_LAYOUT}'"
_ROWLESS: Final = f"{_ENTITIES} AND verdict IN ('{Standing.LEFT_OVER}', '{Standing.PROTECTED}')"
_NOTED: Final = (Reason.DUE, Reason.QUARANTINE, Reason.YOUNG)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What lies under the roots and has no row: a decision for each, and what else was found beside it."""

    decisions: tuple[Decision, ...]
    prefixes: int
    """Prefixes of entities, with a row and without."""
    unknown: int
    """Prefixes of an unknown layout."""
    now_ms: int
    """The database's clock between the listing and the reading of the rows."""
    roots: tuple[Location, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Owned:
    """A root, what was found under it, and why it cannot be made this database's, if so."""

    root: Location
    with_rows: int
    left_over: int
    unknown: int
    foreign: int
    marked: bool
    refused: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hunt:
    """One search, for one site.

    ``roots`` are what a person named, or nothing: all roots. ``new_roots``: they need not be known.
    """

    session: Session
    client: S3Client
    tally: Tally
    concurrency: int
    roots: tuple[Location, ...]
    new_roots: bool = False

    def orphans(
        self,
        *,
        quarantine_ms: int,
        min_age_ms: int,
        progress: Callable[[int], None],
        notes: bool,
    ) -> Found:
        """List, decide, and note what was seen.

        Args:
            quarantine_ms: from the first sighting on.
            min_age_ms: 0: nothing is too young.
            progress: is told how many objects were listed; may raise ``Stopped``.
            notes: False: nothing is written anywhere.

        Raises:
            UsageError: a root is not known.
            DatabaseUnusable, ReferencesIncomplete: what needs what is not known.
            RootRefused: this database must not sweep there: it is a copy, or was put back from a backup.
            StorageError: a root could not be listed to its end.
        """
        with self.session.tracked.reading() as tracking:
            if not any(tracking.entity_rows().values()):
                raise DatabaseUnusable(
                    "This database holds no run, logged model or trace, so that everything in S3 looks left over, and "
                    "nothing was touched: give the database that the server uses with --backend-store-uri"
                )
        findings = self._audit(progress)
        for bucket in sorted({root.bucket for root in findings.roots}):
            self._require_one_time(bucket)
        lines = self._decided(quarantine_ms, min_age_ms, findings.now_ms)
        totals = self.tally.totals(("verdict",))
        if notes:
            self._note(lines, findings.roots)
        return Found(
            decisions=tuple(line for line, _ in lines),
            prefixes=sum(one.prefixes for one in self.tally.totals((), _ENTITIES)),
            unknown=sum(one.prefixes for one in totals if one.name == Standing.UNKNOWN_LAYOUT),
            now_ms=findings.now_ms,
            roots=findings.roots,
        )

    def _require_one_time(self, bucket: str) -> None:
        """A clock that has jumped ends a quarantine, and a minimum age, before its time: S3 has another."""
        with database.reading(self.session.engine) as connection:
            own_ms = database.clock_ms(connection)
        other_ms = s3.clock_ms(self.client, bucket)
        if other_ms is None or abs(other_ms - own_ms) > CLOCKS_MS:
            raise StorageError(
                f"It is {show_instant(own_ms)} by the database's clock, and "
                f"{'unknown' if other_ms is None else show_instant(other_ms)} by S3's at "
                f"{s3.endpoint_name(self.client)}: how old anything is cannot be told, and nothing was swept. Set the "
                "clock that is wrong, and run it again"
            )

    # Listing

    def _audit(self, progress: Callable[[int], None]) -> auditing.Findings:
        setting = self._setting()
        findings = auditing.audit(setting, self.client, self.tally, concurrency=self.concurrency, progress=progress)
        for one in findings.unread:
            raise StorageError(
                f"{one.root.uri} could not be listed to its end, so nothing was swept: {one.error} (--root goes on "
                "with other roots)"
            )
        for why in findings.unclear:
            raise StorageError(f"{why} (nothing was swept)")
        return findings

    def _setting(self) -> auditing.Setting:
        session = self.session
        bare = auditing.Setting(
            tracked=session.tracked,
            destination=session.destination,
            registry=session.registry,
            registry_note="",
            site=session.site,
            site_note="",
            given=(),
            grace_ms=session.site.grace_ms,
            # Asked here, by the same margin: an audit does not say what is too young of what.
            min_age_ms=0,
        )
        known = auditing.places(bare)
        with database.reading(session.engine) as connection:
            remembered = {Location.parse(uri, Destination()) for uri, _ in journal.known_roots(connection)}

        def is_named(place: Location) -> bool:
            layouts = known.layouts.get(place.bucket)
            return layouts is not None and (place.prefix in layouts.roots or place.prefix in layouts.experiments)

        for root in self.roots:
            if not (self.new_roots or is_named(root) or root in remembered):
                raise UsageError(
                    f"{root.uri} is no root of this database: 'gc --own-roots --root {root.uri}' shows what lies "
                    "there and makes it one"
                )
        given = {place for place in (*remembered, *self.roots) if not is_named(place)}
        return replace(bare, given=tuple(sorted(given)), only=self.roots)

    # Deciding

    def _decided(self, quarantine_ms: int, min_age_ms: int, now_ms: int) -> list[tuple[Decision, Held | None]]:
        with database.reading(self.session.engine) as connection:
            seen, begun = sightings.read(connection), sightings.begun(connection)
            undone_ms = journal.done(connection).undone_ms
        holding = {folder for found in self.tally.markers for folder in found.ancestors()}
        terms = leftovers.Terms(
            now_ms=now_ms,
            quarantine_ms=quarantine_ms,
            young_ms=now_ms - min_age_ms - CLOCKS_MS if min_age_ms else None,
        )
        made: list[tuple[Decision, Held | None]] = []
        with ThreadPoolExecutor(1) as executor:
            roots = self.marked_roots(executor)
            owned: dict[Location, str] = {}
            for line, held in self._unneeded(undone_ms):
                if line.location in holding:
                    why = "the marker object of a root lies in it"
                    made.append((replace(line, reason=Reason.PROTECTED, evidence=why), held))
                    continue
                if line.reason is not Reason.DUE or line.orphan is None or line.location is None or line.root is None:
                    made.append((line, held))
                    continue
                if line.root not in owned:
                    owned[line.root] = roots.owned(line.root)
                before = seen.get(line.location)
                begun_ms = begun.get(line.location)
                goes_on = held is not None and before and before.continues(held, now_ms=now_ms, begun_ms=begun_ms)
                since_ms = before.first_seen_ms if before and goes_on else None
                dated = replace(line, orphan=replace(line.orphan, seen_ms=since_ms))
                reason, evidence = leftovers.reason_of(dated, owned[line.root], terms)
                made.append((replace(dated, reason=reason, evidence=evidence), held))
        return made

    def marked_roots(self, executor: ThreadPoolExecutor, *, marked_only: bool = True) -> Roots:
        """Whose the roots are."""
        return Roots(
            engine=self.session.engine,
            client=self.client,
            site=self.session.site,
            destination=self.session.destination,
            executor=executor,
            marked_only=marked_only,
            by_rows=False,
        )

    def _unneeded(self, undone_ms: Mapping[Location, int | None]) -> Iterator[tuple[Decision, Held | None]]:
        """Each prefix without a row, decided as the tombstone that it would be; with what it holds."""
        for lines in _batches(self.tally.lines(_ROWLESS)):
            stones = {_place(line): leftovers.stand_in(_entity(line), _place(line)) for line in lines}
            with self.session.tracked.reading() as tracking:
                wanted = {stone.entity.id for stone in stones.values()}
                owners = tracking.owners(planning.ids_in_places(stones.values()) | wanted)
            rowless = [line for line in lines if line.id not in owners]
            facts = planning.Facts(
                tombstones=[stones[_place(line)] for line in rowless if line.verdict is Standing.LEFT_OVER],
                references=(),  # The audit has read them, and called these left over.
                owners=owners,
                destination=self.session.destination,
                swept_ms={},
                undone_ms=undone_ms,
            )
            decided = planning.decisions(facts, Scope(), cutoff_ms=0, include_undated=True, again=True)
            by_uri = {line.uri: line for line in decided}
            for line in rowless:
                yield _decision(line, stones[_place(line)], by_uri.get(stones[_place(line)].uri)), _held(line)

    # Noting

    def _note(self, lines: Sequence[tuple[Decision, Held | None]], roots: Sequence[Location]) -> None:
        """Keep what was seen, and forget what is no orphan any more.

        The markers are raised first: a database that is put back to before this run has to find them ahead of it.
        """
        noted = {
            line.location: (held, line.orphan.seen_ms)
            for line, held in lines
            if line.location and line.orphan and held is not None and line.reason in _NOTED
        }
        with ThreadPoolExecutor(1) as executor:
            marked = self.marked_roots(executor)
            for root in sorted({line.root for line, _ in lines if line.location in noted and line.root}):
                standing = marked.compared(root)
                if standing.outcome is None:
                    standing = marked.standing(root, (), occupied=True)
                if standing.outcome is not None:
                    raise RootRefused(standing.detail)
            self._end({line.location for line, _ in lines}, roots, marked)
        with database.reading(self.session.engine) as connection:
            before = sightings.read(connection)
        gone = [place for place in before if place not in noted and any(root.contains(place) for root in roots)]
        for places in chunks(sorted(noted)):
            database.written(self.session.engine, _noting({place: noted[place] for place in places}))
        for places in chunks(sorted(gone)):
            with database.writing(self.session.engine) as connection:
                sightings.forget(connection, places)

    def _end(self, there: Collection[Location | None], roots: Sequence[Location], marked: Roots) -> None:
        """What a sweep had emptied when it was killed, and not noted: no listing of the roots shows that again."""
        with database.reading(self.session.engine) as connection:
            begun = sightings.begun(connection)
        places = tuple(
            place for place in sorted(begun) if place not in there and any(root.contains(place) for root in roots)
        )
        if not places:
            return
        surveyor = surveying.Surveyor(self.client, lambda: False)
        empty: set[Location] = set()
        for task in planning.listing_tasks(places, frozenset()):
            empty |= {place for place, one in surveyor.remaining(task).items() if one.empty}
        standings = marked.around(sorted(empty))
        for some in chunks([place for place in standings if standings[place].outcome is None]):
            with database.writing(self.session.engine) as connection:
                journal.found_empty(connection, some, database.clock_ms(connection))

    # Owning

    def ownable(self, progress: Callable[[int], None]) -> list[Owned]:
        """What lies under each root, and whose it is by its marker; writes nothing. Raises as ``orphans`` does."""
        self._audit(progress)
        lefts = [line for lines in _batches(self.tally.lines(_ROWLESS)) for line in lines]
        stones = [leftovers.stand_in(_entity(line), _place(line)) for line in lefts]
        facts = planning.Facts(
            tombstones=stones, references=(), owners={}, destination=self.session.destination, swept_ms={}
        )
        made = planning.decisions(facts, Scope(), cutoff_ms=0, include_undated=True, again=True)
        roots = {line.root for line in made if line.root is not None} | set(self.roots)
        with ThreadPoolExecutor(1) as executor:
            marked = self.marked_roots(executor)
            return [self._ownable(root, marked, roots) for root in sorted(roots)]

    def _ownable(self, root: Location, marked: Roots, roots: set[Location]) -> Owned:
        inner = [other for other in roots if other != root and root.contains(other)]
        counts = dict.fromkeys(("with_rows", "left_over", "unknown", "foreign"), 0)
        beneath = "bucket = ? AND substr(prefix, 1, ?) = ?"
        for line in self.tally.lines(beneath, (root.bucket, len(root.prefix), root.prefix)):
            if not any(other.contains(_place(line)) for other in inner):
                counts[_class(line)] += 1
        marked_here, refused = False, ""
        try:
            refused = marked.foreign(root)
            marked_here = not refused and not marked.owned(root)
        except RootRefused as error:
            refused = str(error)
        return Owned(root=root, **counts, marked=marked_here, refused=refused)

    def own(self, root: Location) -> None:
        """Write this database's marker to a root, and note that a person has said that it is nobody else's.

        Raises:
            RootRefused: it is another database's, or that cannot be said.
        """
        with ThreadPoolExecutor(1) as executor:
            roots = self.marked_roots(executor, marked_only=False)
            if why := roots.foreign(root):
                raise RootRefused(why)
            standing = roots.compared(root)
            if standing.outcome is None:
                standing = roots.standing(root, (), occupied=True)
            if standing.outcome is not None:
                raise RootRefused(standing.detail)
        with database.writing(self.session.engine) as connection:
            journal.own_root(connection, root, database.clock_ms(connection))


def _noting(seen: Mapping[Location, tuple[Held, int | None]]) -> Callable[[Connection], None]:
    return lambda connection: sightings.note(connection, seen, database.clock_ms(connection))


def parse_root(uri: str, destination: Destination) -> Location:
    """The root that a person names. Raises UsageError."""
    try:
        return Location.parse(uri, destination)
    except (NotOnS3, UnreadableUri) as error:
        raise UsageError(f"--root {uri!r} cannot be used ({error}): expected for example s3://bucket/prefix") from error


def _class(line: Line) -> str:
    if line.verdict is Standing.UNKNOWN_LAYOUT:
        return "unknown"
    if line.verdict is Standing.LEFT_OVER:
        return "left_over"
    return (
        "foreign" if line.verdict is Standing.PROTECTED and line.evidence.startswith("the marker of ") else "with_rows"
    )


def _batches(lines: Iterator[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    for line in lines:
        batch.append(line)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _place(line: Line) -> Location:
    return Location(line.bucket, line.prefix)


def _entity(line: Line) -> Entity:
    if line.kind is None:
        raise AssertionError(line)
    workspace = line.workspace or DEFAULT_WORKSPACE
    return Entity(kind=line.kind, id=line.id, experiment_id=line.experiment, workspace=workspace)


def _held(line: Line) -> Held | None:
    """What it holds; None where something in it has no date."""
    if line.undated or line.newest_ms is None:
        return None
    return Held(
        newest_ms=line.newest_ms,
        objects=line.objects,
        versions=line.versions,
        markers=line.markers,
        uploads=line.uploads,
        size_bytes=line.size + line.old_size,
    )


def _decision(line: Line, stone: Tombstone, decided: Decision | None) -> Decision:
    """A line of the plan: what its stand-in was decided, or else what the audit says needs it."""
    held = _held(line)
    place = _place(line)
    reason, evidence, root = Reason.PROTECTED, line.evidence, None
    if decided is not None:
        reason, root = decided.reason, decided.root
        evidence = line.evidence if reason is Reason.DUE else decided.evidence
        if reason is Reason.UNDONE:
            evidence = "taken back with 'undo': it stays; remove it by hand if nobody wants it"
        if decided.location != place:
            reason, evidence = Reason.UNREADABLE, "its prefix cannot be written as a URI"
    return Decision(
        entity=stone.entity,
        uri=stone.uri,
        location=place,
        deleted_ms=None,
        reason=reason,
        evidence=evidence,
        root=root,
        expected_objects=line.objects + line.versions,
        expected_bytes=line.size + line.old_size,
        orphan=Orphan(lost=line.lost, newest_ms=held.newest_ms if held else None),
    )
