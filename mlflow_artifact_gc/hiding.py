"""Hides the locations of one listing: a delete marker on every current object, and then a listing that shows none.

Only on buckets that keep versions: elsewhere, and where versioning is suspended, a plain delete is for good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from mlflow_artifact_gc import hides, s3
from mlflow_artifact_gc.acting import Actor, Sight, Work, failed_detail, identity, open_works
from mlflow_artifact_gc.fence import TOO_MANY_MARKERS
from mlflow_artifact_gc.hides import Hide
from mlflow_artifact_gc.model import Action, Decision, Outcome
from mlflow_artifact_gc.s3 import Entry, Kind, Versioning

if TYPE_CHECKING:
    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.planning import ListingTask
    from mlflow_artifact_gc.surveying import Found

UNVERSIONED: Final = (
    "bucket {} does not keep versions (versioning: {}), so that a hide would delete for good: switch versioning on, or "
    "use --action purge or tag"
)


class Hider(Actor):
    """Writes delete markers; the bucket's noncurrent rule removes the bytes, and until then it can be undone."""

    __slots__ = ()
    action: ClassVar[Action] = Action.HIDE

    def unfit(self, bucket: str) -> str:
        """Why nothing can be hidden in ``bucket``; empty where it can. Raises StorageError."""
        versioning = self.surveyor.versioning(bucket)
        return "" if versioning is Versioning.ENABLED else UNVERSIONED.format(bucket, versioning.value)

    def begin(self, sights: Sequence[Sight], lines: Sequence[Decision]) -> dict[Location, str]:
        """Remember the delete markers that others have written; why not, where they are too many. As ``Actor``'s."""
        seen = {location: found for sight in sights for location, found in sight.found.items()}
        markers: dict[Location, Sequence[Entry]] = {}
        refused: dict[Location, str] = {}
        for line in lines:
            if line.location is None or line.location not in seen:
                continue  # A listing that failed says so itself.
            hiding = seen[line.location].hiding
            if hiding is None:
                refused[line.location] = TOO_MANY_MARKERS
            else:
                markers[line.location] = hiding

        def hide(location: Location, before: Hide | None, now_ms: int) -> Hide:
            return hides.begun(now_ms, markers[location]) if before is None else before.sparing(markers[location])

        return refused | self.fence.begin([line for line in lines if line.location in markers], self.action, hide)

    def ready(self, works: Sequence[Work]) -> None:
        """As ``Actor``'s. Raises BucketPaused where somebody has switched versioning off since."""
        super().ready(works)
        for bucket in {work.line.location.bucket for work in works if work.line.location}:
            versioning = s3.bucket_versioning(self.client, bucket)
            if versioning is not Versioning.ENABLED:
                raise s3.BucketPaused(bucket, UNVERSIONED.format(bucket, versioning.value))

    def _round(self, task: ListingTask, works: Mapping[Location, Work]) -> None:
        if not open_works(works):
            return
        current = [(work, entry) for work in open_works(works) for entry in work.pending if entry.kind is Kind.CURRENT]
        self.delete(current)
        for work in open_works(works):
            if work.streamed:
                self.delete(pair for pair in self.stream(work) if pair[1].kind is Kind.CURRENT)
        for work, found in self.verified(task, works):
            self._settle(work, found)

    def _by_version(self, work: Work, entry: Entry) -> bool:  # noqa: ARG002 - by key alone: that is what hides
        return False

    def _gone(self, work: Work, entry: Entry) -> None:  # noqa: ARG002 - nothing has gone
        work.changed += 1

    def _settle(self, work: Work, found: Found) -> None:
        """Compare what is still shown with what was answered."""
        shown = {identity(entry): entry for entry in found.entries or () if entry.kind is Kind.CURRENT}
        for name in [*work.unknown]:
            if found.entries is not None and name not in shown:
                del work.unknown[name]
                work.changed += 1
        work.waiting_objects, work.waiting_bytes = found.versions, found.size_bytes
        work.acted_until_ms = found.hidden_until_ms
        if found.empty:
            work.end(Outcome.SWEPT if work.touched else Outcome.EMPTY)
        elif not found.objects:
            work.end(Outcome.WAITING)
        elif any(self.too_young(work, entry) for entry in shown.values()):
            work.end(Outcome.POSTPONED, "something was written into it while it was being hidden")
        elif shown and all(name in work.failures and not work.failures[name].retryable for name in shown):
            work.end(Outcome.FAILED, failed_detail(work))
        else:
            self.take(work, found)
