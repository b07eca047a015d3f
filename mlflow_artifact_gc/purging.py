"""Purges the locations of one listing: list, act in batches, read every answer, list again until it is empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.acting import Actor, Pair, Work, failed_detail, identity, open_works, works_of
from mlflow_artifact_gc.model import Action, Failure, Outcome

if TYPE_CHECKING:
    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.planning import ListingTask
    from mlflow_artifact_gc.surveying import Found

_ABORTS: Final = 100


class Purger(Actor):
    """Removes for good: every version, delete marker and unfinished upload."""

    __slots__ = ()
    action: ClassVar[Action] = Action.PURGE

    def _round(self, task: ListingTask, works: Mapping[Location, Work]) -> None:
        if not open_works(works):
            return
        self._abort([(work, entry) for work in open_works(works) for entry in work.uploads])
        self.delete([(work, entry) for work in open_works(works) for entry in work.pending])
        for work in open_works(works):
            if work.streamed:
                self.delete(self.stream(work))
        for work, found in self.verified(task, works):
            self._settle(work, found)

    def _settle(self, work: Work, found: Found) -> None:
        """Compare what is still listed with what was answered."""
        left = {identity(entry): entry for entry in found.entries or ()}
        for name, entry in [*work.deleted.items()]:
            # The same version, not one that was written since: the answer was not true.
            if name in left and left[name].modified_ms == entry.modified_ms:
                work.tally(work.deleted.pop(name), -1)
        for name, entry in [*work.unknown.items()]:
            if found.entries is not None and name not in left:
                work.tally(entry)
                del work.unknown[name]
        if found.empty and work.line.needed:
            work.end(Outcome.PARTLY, "what is needed of it stays")
        elif found.empty:
            work.end(Outcome.SWEPT if work.touched else Outcome.EMPTY)
        elif any(self.too_young(work, entry) for entry in (*left.values(), *found.uploads)):
            work.end(Outcome.POSTPONED, "something was written into it while it was being swept")
        elif left and all(name in work.failures and not work.failures[name].retryable for name in left):
            work.end(Outcome.FAILED, failed_detail(work))
        else:
            self.take(work, found)

    # Acting

    def _abort(self, uploads: Sequence[Pair]) -> None:
        for number, (work, entry) in enumerate(uploads):
            if number % _ABORTS == 0:
                self.ready(works_of(uploads[number : number + _ABORTS]))
            if work.outcome is not None or work.line.location is None or work.line.spares(entry.key):
                continue
            answer = s3.abort_upload(self.client, work.line.location.bucket, entry)
            if isinstance(answer, Failure):
                work.failures[identity(entry)] = answer
                continue
            work.failures.pop(identity(entry), None)
            if answer is s3.Abort.ABORTED:
                work.tally(entry)
