"""What lies in the locations: one listing for each, or one that covers many, streamed and in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.errors import StorageError
from mlflow_artifact_gc.s3 import Entry, Kind, Versioning

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.planning import ListingTask
    from mlflow_artifact_gc.s3 import S3Client

_PROBES: Final = 4
_KEPT_ENTRIES: Final = 200_000
"""Entries that are kept at a time; what is beyond them is listed again, page by page, to be acted on."""
_BLOCK: Final = 1_000
_KEPT_HIDING: Final = 10_000
_FEW_UPLOADS: Final = 1_000
_STRANGERS: Final = 5_000
"""Entries of others that a shared listing may meet, beside four times its own, before each location is listed alone."""


@dataclass(slots=True)
class Found:
    """What one location holds. ``entries`` and ``uploads`` None: too many to be kept, list again."""

    location: Location
    entries: list[Entry] | None = field(default_factory=list)
    uploads: list[Entry] = field(default_factory=list)
    objects: int = 0
    versions: int = 0
    markers: int = 0
    size_bytes: int = 0
    youngest_ms: int | None = None
    youngest_current_ms: int | None = None
    undated: bool = False
    foreign_marker: str = ""
    hiding: list[Entry] | None = field(default_factory=list)
    """The delete markers that hide their keys; None: too many to be kept."""
    hidden_until_ms: int | None = None
    """When the last of them was written."""

    @property
    def empty(self) -> bool:
        return not (self.objects or self.versions or self.markers or self.uploads)

    def add(self, entry: Entry, *, keep: bool) -> None:
        if entry.kind is Kind.UPLOAD:
            self.uploads.append(entry)
        elif keep and self.entries is not None:
            self.entries.append(entry)
        else:
            self.entries = None
        self.objects += entry.kind is Kind.CURRENT
        self.versions += entry.kind is Kind.NONCURRENT
        self.markers += entry.kind is Kind.MARKER
        self.size_bytes += entry.size_bytes
        if entry.hides:
            self._add_hiding(entry)
        self.pass_by(entry)

    def pass_by(self, entry: Entry) -> None:
        """What an entry tells of the location, whether it goes or stays: is somebody writing, whose is it."""
        if entry.modified_ms is None:
            self.undated = True
        elif self.youngest_ms is None or entry.modified_ms > self.youngest_ms:
            self.youngest_ms = entry.modified_ms
        if entry.kind is Kind.CURRENT and entry.modified_ms is not None:
            self.youngest_current_ms = max(self.youngest_current_ms or 0, entry.modified_ms)
        if entry.key.endswith(f"/{s3.MARKER_NAME}"):
            self.foreign_marker = entry.key

    def _add_hiding(self, entry: Entry) -> None:
        if self.hiding is not None:
            self.hiding.append(entry)
            if len(self.hiding) > _KEPT_HIDING:
                self.hiding = None
        if entry.modified_ms is not None:
            self.hidden_until_ms = max(self.hidden_until_ms or 0, entry.modified_ms)


class Room:
    """How many entries may still be kept; shared by the listings of a batch."""

    def __init__(self) -> None:
        self._left = _KEPT_ENTRIES
        self._lock = threading.Lock()

    def take(self) -> int:
        """Room for some more entries, 0 when there is none left."""
        with self._lock:
            taken = min(_BLOCK, self._left)
            self._left -= taken
            return taken


class SharedUploads:
    """The unfinished uploads under some parents: one listing for each, for all the listings of parts of it.

    In the place of ``s3.uploads``. Uploads are few where objects are many; where they are not, each part lists its own.
    """

    def __init__(self, client: S3Client, parents: Iterable[Location], executor: Executor) -> None:
        self._found = {parent: executor.submit(_few_uploads, client, parent) for parent in parents}

    def __call__(self, client: S3Client, bucket: str, prefix: str) -> Iterator[Entry]:
        """As ``s3.uploads``. Raises as it does."""
        for parent, future in self._found.items():
            if parent.bucket == bucket and prefix.startswith(parent.prefix) and (few := future.result()) is not None:
                return (entry for entry in few if entry.key.startswith(prefix))
        return s3.uploads(client, bucket, prefix)


def _few_uploads(client: S3Client, parent: Location) -> list[Entry] | None:
    found = list(islice(s3.uploads(client, parent.bucket, parent.prefix), _FEW_UPLOADS + 1))
    return found if len(found) <= _FEW_UPLOADS else None


class Stopped(Exception):
    """The caller was asked to stop, or its time is up."""


class Surveyor:
    """Lists locations of any bucket; learns each bucket's versioning once, and which buckets cannot be worked on."""

    def __init__(self, client: S3Client, stopped: Callable[[], bool]) -> None:
        self._client = client
        self._stopped = stopped
        self._buckets: dict[str, Versioning | StorageError] = {}
        self._lock = threading.Lock()

    def versioning(self, bucket: str) -> Versioning:
        """Whether ``bucket`` keeps versions; asks it once, and whether versions and uploads may be listed at all.

        Raises:
            BucketPaused, Transient, ListingIncomplete: the bucket cannot be worked on; each time.
        """
        with self._lock:
            if bucket not in self._buckets:
                self._buckets[bucket] = self._ask(bucket)
            known = self._buckets[bucket]
        if isinstance(known, StorageError):
            raise known
        return known

    def shared_uploads(self, parents: Iterable[Location], executor: Executor) -> SharedUploads:
        """Begin to list the uploads under ``parents``, to be given to ``survey``."""
        return SharedUploads(self._client, parents, executor)

    def pause(self, bucket: str, error: StorageError) -> None:
        """From now on nothing in ``bucket`` is tried any more."""
        with self._lock:
            self._buckets[bucket] = error

    def _ask(self, bucket: str) -> Versioning | StorageError:
        try:
            # A right that is missing must be named before anything is deleted, not when the result is verified.
            with ThreadPoolExecutor(_PROBES) as probes:
                rights = [
                    probes.submit(_probe, listing, self._client, bucket)
                    for listing in (s3.versions, s3.uploads, s3.current)
                ]
                versioning = probes.submit(s3.bucket_versioning, self._client, bucket)
                for right in rights:
                    right.result()
                return versioning.result()
        except StorageError as error:
            return error

    def survey(
        self, task: ListingTask, room: Room | None, uploads: Callable[..., Iterator[Entry]] = s3.uploads
    ) -> Mapping[Location, Found]:
        """What each location of ``task`` holds: objects, versions, delete markers and unfinished uploads.

        Args:
            room: keep the entries, as far as there is room; None: only count.
            uploads: lists the uploads, in the place of ``s3.uploads``.

        Raises:
            Stopped, BucketPaused, Transient, ListingIncomplete: nothing is known of any of its locations.
        """
        never = self.versioning(task.bucket) is Versioning.NEVER
        listings = (s3.current if never else s3.versions, uploads)
        if len(task.locations) > 1:
            with suppress(_TooManyStrangers):
                return self._once(task, listings, room)
        found: dict[Location, Found] = {}
        for alone in task.apart():
            found |= self._survey_alone(alone, listings, room)
        return found

    def entries(self, location: Location) -> Iterator[Entry]:
        """The objects of one location, noncurrent ones included.

        Raises:
            Stopped, BucketPaused, Transient, ListingIncomplete: what came before is not all.
        """
        never = self.versioning(location.bucket) is Versioning.NEVER
        listing = s3.current if never else s3.versions
        for entry in self._watched(listing(self._client, location.bucket, location.prefix)):
            if entry.kind in (Kind.CURRENT, Kind.NONCURRENT):
                yield entry

    def _survey_alone(
        self, task: ListingTask, listings: Sequence[Callable[..., Iterator[Entry]]], room: Room | None
    ) -> dict[Location, Found]:
        try:
            return self._once(task.widened(), listings, room)
        except _TooManyStrangers:
            found = self._once(task, listings, room)
            self._look_for_marker(task.locations[0], found)
            return found

    def _look_for_marker(self, location: Location, found: Mapping[Location, Found]) -> None:
        marker = location.parent().prefix + s3.MARKER_NAME
        if any(entry.key == marker for entry in s3.current(self._client, location.bucket, marker)):
            found[location].foreign_marker = marker

    def remaining(self, task: ListingTask) -> Mapping[Location, Found]:
        """As ``survey``, but to verify that nothing is left: by every kind of listing that there is.

        Each kind has servers that overlook something in it (SeaweedFS: folder markers in a versions listing), so the
        two that show objects are joined.
        """
        found = self._listed(task, (s3.versions, s3.uploads), Room())
        seen = {
            location: {entry.key for entry in one.entries or () if entry.kind is Kind.CURRENT}
            for location, one in found.items()
        }
        for location, one in self._listed(task, (s3.current,), Room()).items():
            for entry in one.entries or ():
                if entry.key not in seen[location]:
                    found[location].add(entry, keep=found[location].entries is not None)
            if one.entries is None:
                found[location].entries = None
                found[location].objects = max(found[location].objects, one.objects)
        return found

    def _listed(
        self, task: ListingTask, listings: Sequence[Callable[..., Iterator[Entry]]], room: Room | None
    ) -> dict[Location, Found]:
        try:
            return self._once(task, listings, room)
        except _TooManyStrangers:
            found: dict[Location, Found] = {}
            for alone in task.apart():
                found |= self._once(alone, listings, room)
            return found

    def _once(
        self, task: ListingTask, listings: Sequence[Callable[..., Iterator[Entry]]], room: Room | None
    ) -> dict[Location, Found]:
        found = {location: Found(location) for location in task.locations}
        owner_of = task.owner_of()
        kept = strangers = places = 0
        for listing in listings:
            for entry in self._watched(listing(self._client, task.bucket, task.prefix)):
                location = owner_of(entry.key)
                if location is not None and task.needed and task.spares(entry.key):
                    found[location].pass_by(entry)
                    continue
                if location is None:
                    _note_marker(entry, found)
                    strangers += 1
                    if strangers > _STRANGERS + 4 * kept:
                        raise _TooManyStrangers
                    continue
                if kept == places and room is not None:
                    places += room.take()
                kept += 1
                found[location].add(entry, keep=kept <= places)
        return found

    def _watched(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for number, entry in enumerate(entries):
            if number % 1000 == 0 and self._stopped():
                raise Stopped
            yield entry


def _note_marker(entry: Entry, found: Mapping[Location, Found]) -> None:
    """A marker beside the artifacts, in the entity's own folder, makes that folder somebody's root."""
    if entry.kind is Kind.CURRENT and entry.key.endswith(f"/{s3.MARKER_NAME}"):
        folder = entry.key.removesuffix(s3.MARKER_NAME)
        for location, one in found.items():
            if location.prefix.startswith(folder):
                one.foreign_marker = entry.key


def _probe(listing: Callable[..., Iterator[Entry]], client: S3Client, bucket: str) -> None:
    next(listing(client, bucket, s3.MARKER_NAME), None)


class _TooManyStrangers(Exception):
    """A shared listing meets so much of others that listing each location alone is cheaper."""


def measure(
    surveyor: Surveyor,
    tasks: Sequence[ListingTask],
    executor: Executor,
    progress: Callable[[int], None],
    *,
    strict: bool = False,
) -> dict[Location, tuple[int, int]]:
    """Objects (noncurrent ones included) and bytes of the locations of ``tasks``. Those that fail are left out."""

    def one(task: ListingTask) -> dict[Location, tuple[int, int]]:
        try:
            found = surveyor.survey(task, None)
        except StorageError:
            if strict:
                raise
            return {}
        return {location: (one.objects + one.versions, one.size_bytes) for location, one in found.items()}

    sizes: dict[Location, tuple[int, int]] = {}
    for task, found in zip(tasks, executor.map(one, tasks), strict=True):
        sizes |= found
        progress(len(task.locations))
    return sizes
