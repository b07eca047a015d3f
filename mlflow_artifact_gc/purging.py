"""Purges the locations of one listing: list, act in batches, read every answer, list again until it is empty.

What is counted as deleted is what S3 said was deleted and what a later listing does not contradict. Keys whose answer
was lost are settled by the listing after.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.errors import ArtifactGcError, StorageError
from mlflow_artifact_gc.model import Decision, Failure, Outcome, SweepResult
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
_AGE_MARGIN_MS: Final = 5 * 60_000
"""S3's clock and the database's may differ by so much."""
_SHOWN_FAILURES: Final = 20
_ABORTS: Final = 100
_UNPROVEN: Final = "its root was empty a moment ago and is not now; run it again"

_Identity = tuple[str, str | None]


@dataclass(slots=True)
class _Work:
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
    deleted: dict[_Identity, Entry] = field(default_factory=dict)
    unknown: dict[_Identity, Entry] = field(default_factory=dict)
    failures: dict[_Identity, Failure] = field(default_factory=dict)

    def end(self, outcome: Outcome, detail: str = "") -> None:
        self.outcome, self.detail = outcome, detail
        if outcome is Outcome.SWEPT:
            self.failures.clear()

    def tally(self, entry: Entry, sign: int = 1) -> None:
        self.counts[entry.kind] += sign
        self.deleted_bytes += sign * entry.size_bytes

    @property
    def gone(self) -> int:
        return sum(self.counts.values())

    def result(self) -> SweepResult:
        return SweepResult(
            decision=self.line,
            outcome=self.outcome or Outcome.UNKNOWN,
            detail=self.detail,
            deleted_objects=self.counts[Kind.CURRENT],
            deleted_versions=self.counts[Kind.NONCURRENT],
            deleted_markers=self.counts[Kind.MARKER],
            deleted_bytes=self.deleted_bytes,
            aborted_uploads=self.counts[Kind.UPLOAD],
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
class Purged:
    """How each location of a listing ended, and the error after which nothing more may be deleted anywhere."""

    results: tuple[SweepResult, ...]
    error: ArtifactGcError | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Purger:
    """Purges one listing's locations at a time; used by many threads."""

    client: S3Client
    surveyor: Surveyor
    fence: Fence
    stopped: Callable[[], bool]
    now_ms: int
    min_age_ms: int
    references_read_s: float
    """On the monotonic clock."""

    def look(self, task: ListingTask, room: Room, uploads: Callable[..., Iterator[Entry]] = s3.uploads) -> Sight:
        """See what is there; touches nothing, and raises nothing that concerns this listing alone."""
        seen_s = time.monotonic()
        if self.stopped():
            return Sight(task=task, seen_s=seen_s, error=Stopped())
        try:
            return Sight(task=task, seen_s=seen_s, found=self.surveyor.survey(task, room, uploads))
        except (Stopped, StorageError) as error:
            return Sight(task=task, seen_s=seen_s, error=error)

    def purge(self, sight: Sight, lines: Sequence[Decision], proven: Mapping[Location, bool]) -> Purged:
        """Purge those locations of a listing that ``lines`` name; each gets a result, whatever happens."""
        works = {
            line.location: _Work(line, proven[line.location], self.references_read_s) for line in lines if line.location
        }
        fatal = self._purge(sight, works)
        for work in _open(works):
            if work.failures:
                work.end(Outcome.FAILED, _failed_detail(work))
            else:
                work.end(Outcome.UNKNOWN, "objects are still listed although no request failed; run it again")
        return Purged(results=tuple(work.result() for work in works.values()), error=fatal)

    def _purge(self, sight: Sight, works: Mapping[Location, _Work]) -> ArtifactGcError | None:
        bucket = sight.task.bucket
        try:
            if not sight.error and time.monotonic() - sight.seen_s > _FRESH_S:
                # What was written since must be seen: by key alone, the new object would go with the old one's age.
                sight = self.look(sight.task, Room())
            if sight.error:
                raise sight.error
            self._first_sight(sight.found, works)
            for round_ in range(_ROUNDS):
                if _open(works):
                    time.sleep(_PAUSE_S * round_)
                    self._round(sight.task, works)
        except Stopped:
            _end_open(works, Outcome.STOPPED, "")
        except BucketPaused as paused:
            self.surveyor.pause(bucket, paused)
            _end_open(works, Outcome.PAUSED, str(paused))
        except StorageError as failed:
            for work in _open(works):
                code = type(failed).__name__
                work.failures["", None] = Failure(key="", code=code, message=str(failed), retryable=True)
            _end_open(works, Outcome.FAILED, str(failed))
        except ArtifactGcError as fatal:
            # What has left the bucket until now must not be lost with the error.
            _end_open(works, Outcome.STOPPED, str(fatal))
            return fatal
        return None

    # The first sight

    def _first_sight(self, sight: Mapping[Location, Found], works: Mapping[Location, _Work]) -> None:
        for location, work in works.items():
            found = sight[location]
            if found.foreign_marker:
                work.end(Outcome.FOREIGN, f"it holds the marker object of a root: {found.foreign_marker}")
            elif young := self._young(found):
                work.end(Outcome.POSTPONED, young)
            elif not found.empty and not work.root_proven:
                work.end(Outcome.PAUSED, _UNPROVEN)
            self._take(work, found)

    def _young(self, found: Found) -> str:
        if not self.min_age_ms or found.empty:
            return ""
        if found.undated or found.youngest_ms is None:
            return "the age of something in it is not known"
        if found.youngest_ms + self.min_age_ms + _AGE_MARGIN_MS > self.now_ms:
            age = show_duration(self.min_age_ms)
            return f"something in it was written at {show_instant(found.youngest_ms)}; the minimum age is {age}"
        return ""

    @staticmethod
    def _take(work: _Work, found: Found) -> None:
        work.streamed = found.entries is None
        work.pending = found.entries or []
        work.uploads = found.uploads
        work.touched |= not found.empty

    # Rounds

    def _round(self, task: ListingTask, works: Mapping[Location, _Work]) -> None:
        if not _open(works):
            return
        self._abort([(work, entry) for work in _open(works) for entry in work.uploads])
        self._delete(_batches((work, entry) for work in _open(works) for entry in work.pending))
        for work in _open(works):
            if work.streamed:
                self._delete(_batches(self._stream(work)))
        left = [work.line.location for work in _open(works) if work.line.location]
        if left:
            for location, found in self.surveyor.remaining(task.only(left)).items():
                self._settle(works[location], found)

    def _stream(self, work: _Work) -> Iterator[tuple[_Work, Entry]]:
        location = work.line.location
        if location is None:
            return
        never = self.surveyor.versioning(location.bucket) is Versioning.NEVER
        listing = s3.current if never else s3.versions
        for entry in listing(self.client, location.bucket, location.prefix):
            if not self._too_young(entry):
                yield work, entry

    def _too_young(self, entry: Entry) -> bool:
        if not self.min_age_ms:
            return False
        return entry.modified_ms is None or entry.modified_ms + self.min_age_ms + _AGE_MARGIN_MS > self.now_ms

    def _settle(self, work: _Work, found: Found) -> None:
        """Compare what is still listed with what was answered."""
        left = {_identity(entry): entry for entry in found.entries or ()}
        for identity, entry in [*work.deleted.items()]:
            # The same version, not one that was written since: the answer was not true.
            if identity in left and left[identity].modified_ms == entry.modified_ms:
                work.tally(work.deleted.pop(identity), -1)
        for identity, entry in [*work.unknown.items()]:
            if found.entries is not None and identity not in left:
                work.tally(entry)
                del work.unknown[identity]
        if found.empty:
            work.end(Outcome.SWEPT if work.touched else Outcome.EMPTY)
        elif found.foreign_marker:
            work.end(Outcome.FOREIGN, f"it holds the marker object of a root: {found.foreign_marker}")
        elif not work.root_proven:
            work.end(Outcome.PAUSED, _UNPROVEN)
        elif any(self._too_young(entry) for entry in (*left.values(), *found.uploads)):
            work.end(Outcome.POSTPONED, "something was written into it while it was being swept")
        elif left and all(identity in work.failures and not work.failures[identity].retryable for identity in left):
            work.end(Outcome.FAILED, _failed_detail(work))
        else:
            self._take(work, found)

    # Acting

    def _ready(self, works: Sequence[_Work]) -> None:
        """The last look before a batch: may we still, and is each of these still deleted? Ends those that are not."""
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
                lost = f"; {work.gone:,} objects were gone already" if work.gone else ""
                work.end(changed[work.line].outcome, changed[work.line].detail + lost)

    def _abort(self, uploads: Sequence[tuple[_Work, Entry]]) -> None:
        for number, (work, entry) in enumerate(uploads):
            if number % _ABORTS == 0:
                self._ready(_works_of(uploads[number : number + _ABORTS]))
            if work.outcome is not None or work.line.location is None:
                continue
            answer = s3.abort_upload(self.client, work.line.location.bucket, entry)
            if isinstance(answer, Failure):
                work.failures[_identity(entry)] = answer
                continue
            work.failures.pop(_identity(entry), None)
            if answer is s3.Abort.ABORTED:
                work.tally(entry)

    def _delete(self, batches: Iterator[list[tuple[_Work, Entry]]]) -> None:
        for batch in batches:
            self._ready(_works_of(batch))
            chosen = [(work, entry) for work, entry in batch if work.outcome is None]
            for versioned in (False, True):
                part = [pair for pair in chosen if self._by_version(*pair) is versioned]
                if part:
                    self._delete_part(part, versioned=versioned)

    def _by_version(self, work: _Work, entry: Entry) -> bool:
        if entry.kind is not Kind.CURRENT:
            return True
        bucket = work.line.location.bucket if work.line.location else ""
        return self.surveyor.versioning(bucket) is not Versioning.NEVER

    def _delete_part(self, part: Sequence[tuple[_Work, Entry]], *, versioned: bool) -> None:
        owners = {id(entry): work for work, entry in part}
        deletable: list[Entry] = []
        for work, entry in part:
            if versioned and not entry.version_id:
                work.failures[_identity(entry)] = Failure(
                    key=entry.key, code="NoVersionId", message="no listing tells its version; remove it by hand"
                )
            else:
                deletable.append(entry)
        if deletable:
            bucket = next(work.line.location.bucket for work, _ in part if work.line.location)
            self._count(s3.delete(self.client, bucket, deletable, versioned=versioned), owners)

    @staticmethod
    def _count(answer: DeleteAnswer, owners: Mapping[int, _Work]) -> None:
        for entry in answer.deleted:
            work, identity = owners[id(entry)], _identity(entry)
            # A listing that answered with a page twice has shown it twice.
            if work.deleted.get(identity) != entry:
                work.tally(entry)
            work.failures.pop(identity, None)
            work.unknown.pop(identity, None)
            if not work.streamed:
                work.deleted[identity] = entry
        for entry, failure in answer.failed:
            owners[id(entry)].failures[_identity(entry)] = failure
            if failure.retryable:
                # An internal error may have come after the deed: the listing tells.
                owners[id(entry)].unknown[_identity(entry)] = entry
        for entry in answer.unknown:
            owners[id(entry)].unknown[_identity(entry)] = entry


def _identity(entry: Entry) -> _Identity:
    # A listing of objects names no versions: there, a current object is its key, and its version is "null".
    return entry.key, entry.version_id or "null"


def _open(works: Mapping[Location, _Work]) -> list[_Work]:
    return [work for work in works.values() if work.outcome is None]


def _end_open(works: Mapping[Location, _Work], outcome: Outcome, detail: str) -> None:
    for work in _open(works):
        work.end(outcome, detail)


def _works_of(pairs: Sequence[tuple[_Work, Entry]]) -> list[_Work]:
    return list({id(work): work for work, _ in pairs}.values())


def _failed_detail(work: _Work) -> str:
    first = next(iter(work.failures.values()))
    return f"{len(work.failures):,} keys failed, {first.key!r} with {first.code}: {first.message}"


def _batches(pairs: Iterator[tuple[_Work, Entry]]) -> Iterator[list[tuple[_Work, Entry]]]:
    batch: list[tuple[_Work, Entry]] = []
    for pair in pairs:
        batch.append(pair)
        if len(batch) == s3.MOST_ENTRIES:
            yield batch
            batch = []
    if batch:
        yield batch
