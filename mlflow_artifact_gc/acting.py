"""What purging, hiding and tagging share: one listing's locations, the last look before each batch, how errors end it.

What is counted is what S3 said was done and what a later listing does not contradict. Keys whose answer was lost are
settled by the listing after.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.errors import ArtifactGcError, StorageError
from mlflow_artifact_gc.hides import CLOCKS_MS
from mlflow_artifact_gc.model import Action, Decision, Failure, Outcome, SweepResult
from mlflow_artifact_gc.quantities import show_duration, show_instant
from mlflow_artifact_gc.s3 import BucketPaused, DeleteAnswer, Entry, Kind, Versioning
from mlflow_artifact_gc.surveying import Found, Room, Stopped, Surveyor

if TYPE_CHECKING:
    from mlflow_artifact_gc.fence import Fence
    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.planning import ListingTask
    from mlflow_artifact_gc.s3 import S3Client

_ROUNDS: Final = 4
_PAUSE_S: Final = 0.2
_FRESH_S: Final = 60.0
"""From the reading of the references to the first delete."""
AGE_MARGIN_MS: Final = CLOCKS_MS
_SHOWN_FAILURES: Final = 20
_UNPROVEN: Final = "its root was empty a moment ago and is not now; run it again"

Identity = tuple[str, str | None]
Pair = tuple["Work", Entry]


@dataclass(slots=True)
class Work:
    """One location on its way to an outcome."""

    line: Decision
    root_proven: bool
    checked_s: float
    """When its references were read, on the monotonic clock."""
    outcome: Outcome | None = None
    detail: str = ""
    touched: bool = False
    streamed: bool = False
    pending: list[Entry] = field(default_factory=list)
    uploads: list[Entry] = field(default_factory=list)
    counts: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(Kind, 0))
    deleted_bytes: int = 0
    deleted: dict[Identity, Entry] = field(default_factory=dict)
    unknown: dict[Identity, Entry] = field(default_factory=dict)
    failures: dict[Identity, Failure] = field(default_factory=dict)
    marked: set[Identity] = field(default_factory=set)
    """What is known to carry the expiry tag."""
    changed: int = 0
    """How many objects were hidden or tagged, by what S3 answered."""
    waiting_objects: int = 0
    waiting_bytes: int = 0
    acted_until_ms: int | None = None

    def end(self, outcome: Outcome, detail: str = "") -> None:
        self.outcome, self.detail = outcome, detail
        if outcome in (Outcome.SWEPT, Outcome.WAITING):
            self.failures.clear()

    def tally(self, entry: Entry, sign: int = 1) -> None:
        self.counts[entry.kind] += sign
        self.deleted_bytes += sign * entry.size_bytes

    @property
    def gone(self) -> int:
        return sum(self.counts.values())

    def result(self, action: Action) -> SweepResult:
        return SweepResult(
            decision=self.line,
            outcome=self.outcome or Outcome.UNKNOWN,
            action=action,
            detail=self.detail,
            deleted_objects=self.counts[Kind.CURRENT],
            deleted_versions=self.counts[Kind.NONCURRENT],
            deleted_markers=self.counts[Kind.MARKER],
            deleted_bytes=self.deleted_bytes,
            aborted_uploads=self.counts[Kind.UPLOAD],
            waiting_objects=self.waiting_objects,
            waiting_bytes=self.waiting_bytes,
            acted_until_ms=self.acted_until_ms,
            failures=tuple(self.failures.values())[:_SHOWN_FAILURES],
            unknown=len(self.unknown),
            root_proven=self.root_proven,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What a listing showed, or why it showed nothing."""

    task: ListingTask
    seen_s: float
    """When the listing began, on the monotonic clock."""
    found: Mapping[Location, Found] = field(default_factory=dict)
    error: Stopped | StorageError | None = None

    @property
    def occupied(self) -> list[Location]:
        """The locations in which something is."""
        return [location for location, found in self.found.items() if not found.empty]


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """How each location of a listing ended, and the error after which nothing more may be touched anywhere."""

    results: tuple[SweepResult, ...]
    error: ArtifactGcError | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor(ABC):
    """Acts on one listing's locations at a time; used by many threads."""

    client: S3Client
    surveyor: Surveyor
    fence: Fence
    stopped: Callable[[], bool]
    now_ms: int
    min_age_ms: int
    references_read_s: float
    """On the monotonic clock."""

    action: ClassVar[Action]

    def look(self, task: ListingTask, room: Room, uploads: Callable[..., Iterator[Entry]] = s3.uploads) -> Sight:
        """See what is there; touches nothing, and raises nothing that concerns this listing alone."""
        seen_s = time.monotonic()
        if self.stopped():
            return Sight(task=task, seen_s=seen_s, error=Stopped())
        try:
            return Sight(task=task, seen_s=seen_s, found=self.surveyor.survey(task, room, uploads))
        except (Stopped, StorageError) as error:
            return Sight(task=task, seen_s=seen_s, error=error)

    def unfit(self, bucket: str) -> str:  # noqa: ARG002 - not every action asks for more
        """Why this action cannot be done in ``bucket``; empty where it can. Raises StorageError."""
        return ""

    def begin(self, sights: Sequence[Sight], lines: Sequence[Decision]) -> dict[Location, str]:  # noqa: ARG002
        """Note that something will be done to these locations, before it is; why not, for those that must not be."""
        return {}

    def act(self, sight: Sight, lines: Sequence[Decision], proven: Mapping[Location, bool]) -> Done:
        """Act on those locations of a listing that ``lines`` name; each gets a result, whatever happens."""
        works = {
            line.location: Work(line, proven[line.location], self.references_read_s) for line in lines if line.location
        }
        fatal = self._act(sight, works)
        for work in open_works(works):
            if work.failures:
                work.end(Outcome.FAILED, failed_detail(work))
            else:
                work.end(Outcome.UNKNOWN, "objects are still listed although no request failed; run it again")
        return Done(results=tuple(work.result(self.action) for work in works.values()), error=fatal)

    def _act(self, sight: Sight, works: Mapping[Location, Work]) -> ArtifactGcError | None:
        bucket = sight.task.bucket
        try:
            if not sight.error and time.monotonic() - sight.seen_s > _FRESH_S:
                # What was written since must be seen: by key alone, the new object would go with the old one's age.
                sight = self.look(sight.task, Room())
            if sight.error:
                raise sight.error
            self._first_sight(sight.found, works)
            for round_ in range(_ROUNDS):
                if open_works(works):
                    time.sleep(_PAUSE_S * round_)
                    self._round(sight.task, works)
        except Stopped:
            _end_open(works, Outcome.STOPPED, "")
        except BucketPaused as paused:
            self.surveyor.pause(bucket, paused)
            _end_open(works, Outcome.PAUSED, str(paused))
        except StorageError as failed:
            for work in open_works(works):
                code = type(failed).__name__
                work.failures["", None] = Failure(key="", code=code, message=str(failed), retryable=True)
            _end_open(works, Outcome.FAILED, str(failed))
        except ArtifactGcError as fatal:
            # What has left the bucket until now must not be lost with the error.
            _end_open(works, Outcome.STOPPED, str(fatal))
            return fatal
        return None

    # The first sight

    def _first_sight(self, sight: Mapping[Location, Found], works: Mapping[Location, Work]) -> None:
        for location, work in works.items():
            found = sight[location]
            if found.foreign_marker:
                work.end(Outcome.FOREIGN, _foreign(found))
            elif young := self._young(work, found):
                work.end(Outcome.POSTPONED, young)
            elif not found.empty and not work.root_proven:
                work.end(Outcome.PAUSED, _UNPROVEN)
            self.take(work, found)

    def _young(self, work: Work, found: Found) -> str:
        orphan = work.line.orphan
        if found.empty or (not self.min_age_ms and orphan is None):
            return ""
        if found.undated or found.youngest_ms is None:
            return "the age of something in it is not known"
        if orphan is not None and found.youngest_ms > (orphan.newest_ms or 0):
            return (
                f"something was written into it at {show_instant(found.youngest_ms)}, since it was seen: run it again"
            )
        if self.min_age_ms and found.youngest_ms + self.min_age_ms + AGE_MARGIN_MS > self.now_ms:
            age = show_duration(self.min_age_ms)
            return f"something in it was written at {show_instant(found.youngest_ms)}; the minimum age is {age}"
        return ""

    @staticmethod
    def take(work: Work, found: Found) -> None:
        """What is to be done in the next round."""
        work.streamed = found.entries is None
        work.pending = found.entries or []
        work.uploads = found.uploads
        work.touched |= not found.empty

    # Rounds

    @abstractmethod
    def _round(self, task: ListingTask, works: Mapping[Location, Work]) -> None:
        """Do once what is pending, look at what is left, and end what is done. Raises as ``ready`` and S3 do."""

    def verified(self, task: ListingTask, works: Mapping[Location, Work]) -> Iterator[tuple[Work, Found]]:
        """What is left in the locations that have no outcome yet, by every kind of listing; foreign roots are ended."""
        left = [work.line.location for work in open_works(works) if work.line.location]
        if not left:
            return
        for location, found in self.surveyor.remaining(task.only(left)).items():
            work = works[location]
            if found.foreign_marker and not found.empty:
                work.end(Outcome.FOREIGN, _foreign(found))
            elif not found.empty and not work.root_proven:
                work.end(Outcome.PAUSED, _UNPROVEN)
            else:
                yield work, found

    def stream(self, work: Work) -> Iterator[Pair]:
        """What is in a location that holds too much to be kept; without what is too young."""
        location = work.line.location
        if location is None:
            return
        listing = s3.versions if self.versioned(work) else s3.current
        for entry in listing(self.client, location.bucket, location.prefix):
            if not work.line.spares(entry.key) and not self.too_young(work, entry):
                yield work, entry

    def versioned(self, work: Work) -> bool:
        """Whether its bucket keeps versions, or may do so."""
        bucket = work.line.location.bucket if work.line.location else ""
        return self.surveyor.versioning(bucket) is not Versioning.NEVER

    def too_young(self, work: Work, entry: Entry) -> bool:
        """Whether it was written less than the minimum age ago (an orphan: since it was seen), or nobody knows when."""
        orphan = work.line.orphan
        if orphan is not None and (entry.modified_ms is None or entry.modified_ms > (orphan.newest_ms or 0)):
            return True
        if not self.min_age_ms:
            return False
        return entry.modified_ms is None or entry.modified_ms + self.min_age_ms + AGE_MARGIN_MS > self.now_ms

    def ready(self, works: Sequence[Work]) -> None:
        """The last look before a batch: may we still, and is each of these still deleted? Ends those that are not.

        Raises:
            Stopped: nothing may be touched any more.
            DatabaseUnusable, ReferencesIncomplete: nothing is known.
        """
        if self.stopped() or not self.fence.alive:
            raise Stopped
        open_ = [work for work in works if work.outcome is None]
        now_s = time.monotonic()
        late = [work for work in open_ if not work.gone and now_s - work.checked_s > _FRESH_S]
        if late:
            rejected = {one.decision: one for one in self.fence.recheck([work.line for work in late]).rejected}
            for work in late:
                work.checked_s = now_s
                if work.line in rejected:
                    work.end(rejected[work.line].outcome, rejected[work.line].detail)
        open_ = [work for work in open_ if work.outcome is None]
        changed = self.fence.changed([work.line for work in open_])
        for work in open_:
            if work.line in changed:
                work.end(changed[work.line].outcome, changed[work.line].detail + _lost(work))

    def in_batches(self, pairs: Iterable[Pair], size: int | None = None) -> Iterator[list[Pair]]:
        """The pairs, a batch at a time, each after a last look; without those that it has ended.

        Args:
            pairs: what to act on.
            size: of a batch; by default what one request deletes at most.
        """
        size = size or s3.MOST_ENTRIES
        batch: list[Pair] = []
        for pair in pairs:
            batch.append(pair)
            if len(batch) == size:
                yield self._readied(batch)
                batch = []
        if batch:
            yield self._readied(batch)

    def _readied(self, batch: list[Pair]) -> list[Pair]:
        self.ready(works_of(batch))
        # No listing for a sweep shows what stays; and if one did, here it ends.
        return [(work, entry) for work, entry in batch if work.outcome is None and not work.line.spares(entry.key)]

    # Deleting for good

    def delete(self, pairs: Iterable[Pair]) -> None:
        """Delete for good what is given; what became of each is in its work."""
        for batch in self.in_batches(pairs):
            for by_version in (False, True):
                part = [pair for pair in batch if self._by_version(*pair) is by_version]
                if part:
                    self._delete_part(part, by_version=by_version)

    def _by_version(self, work: Work, entry: Entry) -> bool:
        return entry.kind is not Kind.CURRENT or self.versioned(work)

    def _delete_part(self, part: Sequence[Pair], *, by_version: bool) -> None:
        owners = {id(entry): work for work, entry in part}
        deletable: list[Entry] = []
        for work, entry in part:
            if by_version and not entry.version_id:
                work.failures[identity(entry)] = Failure(
                    key=entry.key, code="NoVersionId", message="no listing tells its version; remove it by hand"
                )
            else:
                deletable.append(entry)
        if deletable:
            bucket = next(work.line.location.bucket for work, _ in part if work.line.location)
            self._count(s3.delete(self.client, bucket, deletable, versioned=by_version), owners)

    def _count(self, answer: DeleteAnswer, owners: Mapping[int, Work]) -> None:
        for entry in answer.deleted:
            work, name = owners[id(entry)], identity(entry)
            work.failures.pop(name, None)
            work.unknown.pop(name, None)
            self._gone(work, entry)
        for entry, failure in answer.failed:
            owners[id(entry)].failures[identity(entry)] = failure
            if failure.retryable:
                # An internal error may have come after the deed: the listing tells.
                owners[id(entry)].unknown[identity(entry)] = entry
        for entry in answer.unknown:
            owners[id(entry)].unknown[identity(entry)] = entry

    def _gone(self, work: Work, entry: Entry) -> None:
        # A listing that answered with a page twice has shown it twice.
        if work.deleted.get(identity(entry)) != entry:
            work.tally(entry)
        if not work.streamed:
            work.deleted[identity(entry)] = entry


def identity(entry: Entry) -> Identity:
    """What tells an entry from any other."""
    # A listing of objects names no versions: there, a current object is its key, and its version is "null".
    return entry.key, entry.version_id or "null"


def open_works(works: Mapping[Location, Work]) -> list[Work]:
    """Those without an outcome."""
    return [work for work in works.values() if work.outcome is None]


def works_of(pairs: Sequence[Pair]) -> list[Work]:
    """Each work of some pairs once."""
    return list({id(work): work for work, _ in pairs}.values())


def failed_detail(work: Work) -> str:
    """How many keys failed, and the first one."""
    first = next(iter(work.failures.values()))
    return f"{len(work.failures):,} keys failed, {first.key!r} with {first.code}: {first.message}"


def _end_open(works: Mapping[Location, Work], outcome: Outcome, detail: str) -> None:
    for work in open_works(works):
        work.end(outcome, detail)


def _lost(work: Work) -> str:
    if work.gone:
        return f"; {work.gone:,} objects were gone already"
    return f"; {work.changed:,} objects were hidden or tagged already, and are taken back" if work.changed else ""


def _foreign(found: Found) -> str:
    return f"it holds the marker object of a root: {found.foreign_marker}"
