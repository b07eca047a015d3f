"""Takes a hide or a tag back in S3: removes the delete markers that we wrote, or our tag, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.acting import Identity, identity
from mlflow_artifact_gc.hides import CLOCKS_MS
from mlflow_artifact_gc.model import Action, Failure
from mlflow_artifact_gc.s3 import Entry, Kind, Tagged, Versioning

if TYPE_CHECKING:
    from mlflow_artifact_gc.expiring import Touched
    from mlflow_artifact_gc.expiry_tag import Tag
    from mlflow_artifact_gc.hides import Hide
    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.s3 import S3Client
    from mlflow_artifact_gc.surveying import Surveyor

_MARKERS: Final = 100_000
"""Delete markers that are kept at a time; the others are found by the next listing."""
_AT_ONCE: Final = 500
_SHOWN: Final = 20


@dataclass(kw_only=True, slots=True)
class Restored:
    """What was taken back in one location. ``back`` counts objects that are shown, or untagged, again.

    ``gone`` counts those that the bucket's lifecycle rule has removed before, ``hidden`` those whose bytes are there,
    hidden by delete markers that are not ours. ``failures`` and ``unknown`` are left: try again.
    """

    touched: Touched
    back: int = 0
    gone: int = 0
    hidden: int = 0
    gone_keys: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    unknown: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing of ours is left on it."""
        return not self.failures and not self.unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Restorer:
    """Takes back; used by several threads.

    ``requests`` runs the requests for single objects, and must not be what runs the locations. ``keep`` renews the
    claim on a location before each batch, and raises where that is lost.
    """

    client: S3Client
    surveyor: Surveyor
    tag: Tag
    requests: Executor
    keep: Callable[[Location], None]

    def restore(self, touched: Touched) -> Restored:
        """Take back what was done to a location.

        Raises:
            BucketPaused, Transient, ListingIncomplete: not all of it was taken back; it can be done again.
        """
        restored = Restored(touched=touched)
        if touched.action is Action.TAG:
            self._untag(restored)
        elif touched.hide is not None:
            self._unhide(restored, touched.hide)
        return restored

    # Hide

    def _unhide(self, restored: Restored, hide: Hide) -> None:
        location = restored.touched.location
        failed: dict[Identity, Failure] = {}
        asked: set[Identity] = set()
        while True:
            self.keep(location)
            ours, versions = self._ours(location, hide, failed)
            if not ours:
                break
            if asked.issuperset(map(identity, ours)):
                # The server says that they are gone, and lists them.
                restored.unknown = len(ours)
                break
            asked.update(map(identity, ours))
            restored.unknown = self._remove(location, ours, failed)
            shown = {entry.key for entry in s3.current(self.client, location.bucket, location.prefix)}
            restored.back += sum(entry.key in shown for entry in ours)
            gone = (entry.key for entry in ours if entry.key not in shown and identity(entry) not in failed)
            # Under one marker of ours there may be another one: S3 was asked twice.
            gone_before = (key for key in restored.gone_keys if key not in shown)
            restored.gone_keys = tuple(dict.fromkeys((*gone_before, *gone)))[:_SHOWN]
            if restored.unknown:
                break
        restored.failures = tuple(failed.values())[:_SHOWN]
        # Where the rule has taken a key and its marker too, no listing names it.
        restored.gone = max(0, restored.touched.objects - versions)

    def _ours(self, location: Location, hide: Hide, failed: Mapping[Identity, Failure]) -> tuple[list[Entry], int]:
        """Markers of ours, as many as are kept at a time; and how many versions there are that they may hide."""
        ours: list[Entry] = []
        versions = 0
        for entry in s3.versions(self.client, location.bucket, location.prefix):
            old = hide.until_ms is None or (entry.modified_ms or 0) <= hide.until_ms
            versions += old and entry.kind is not Kind.MARKER
            if len(ours) < _MARKERS and hide.wrote(entry) and identity(entry) not in failed:
                ours.append(entry)
        return ours, versions

    def _remove(self, location: Location, markers: list[Entry], failed: dict[Identity, Failure]) -> int:
        unknown = 0
        for start in range(0, len(markers), s3.MOST_ENTRIES):
            self.keep(location)
            batch = markers[start : start + s3.MOST_ENTRIES]
            answer = s3.delete(self.client, location.bucket, batch, versioned=True)
            failed |= {identity(entry): failure for entry, failure in answer.failed}
            unknown += len(answer.unknown)
        return unknown

    # Tag

    def _untag(self, restored: Restored) -> None:
        location = restored.touched.location
        versioned = self.surveyor.versioning(location.bucket) is not Versioning.NEVER
        listing = s3.versions if versioned else s3.current
        failures: list[Failure] = []
        there = 0
        hiding: set[str] = set()
        taggable: dict[str, int] = {}
        entries = listing(self.client, location.bucket, location.prefix)
        for batch in _batches(entries):
            self.keep(location)
            hiding |= {entry.key for entry in batch if entry.hides}
            tagged = [entry for entry in batch if entry.kind in (Kind.CURRENT, Kind.NONCURRENT)]
            for entry, answer in zip(
                tagged, self.requests.map(lambda one: self._untag_one(location, one, versioned), tagged), strict=True
            ):
                # What was written since was not tagged.
                old = (entry.modified_ms or 0) <= restored.touched.acted_ms + CLOCKS_MS
                there += old and answer is not Tagged.GONE
                if isinstance(answer, Failure):
                    failures.append(answer)
                elif answer is Tagged.UNKNOWN:
                    restored.unknown += 1
                elif answer is Tagged.DONE and entry.kind is Kind.CURRENT:
                    restored.back += 1
                elif answer is Tagged.DONE:
                    taggable[entry.key] = taggable.get(entry.key, 0) + 1
        restored.hidden = sum(count for key, count in taggable.items() if key in hiding)
        restored.back += sum(count for key, count in taggable.items() if key not in hiding)
        restored.failures = tuple(failures[:_SHOWN])
        restored.gone = max(0, restored.touched.objects - there)

    def _untag_one(self, location: Location, entry: Entry, versioned: bool) -> Tagged | Failure:  # noqa: FBT001
        return s3.remove_tag(self.client, location.bucket, entry, self.tag, versioned=versioned)


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    iterator = iter(entries)
    while batch := list(islice(iterator, _AT_ONCE)):
        yield batch
