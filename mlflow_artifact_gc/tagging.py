"""Tags the locations of one listing for expiry: every version of every object; a rule of the bucket removes them.

A rule counts days from an object's creation, so that S3 may act at its next midnight: what is tagged is as good as
gone, and everything that guards a purge guards this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.acting import Actor, Pair, Sight, Work, failed_detail, identity, open_works
from mlflow_artifact_gc.errors import StorageError
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.model import Action, Decision, Failure, Outcome
from mlflow_artifact_gc.s3 import Entry, Kind, Tagged

if TYPE_CHECKING:
    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.planning import ListingTask
    from mlflow_artifact_gc.surveying import Found

_AT_ONCE: Final = 500
"""Objects that are tagged between two last looks."""
_TAGGABLE: Final = (Kind.CURRENT, Kind.NONCURRENT)
_FULL: Final = f"it has {s3.MOST_TAGS} tags already, S3's limit: take one off, or run 'init --full-tag-sets purge'"
_TAKEN: Final = "it has a tag {!r} of somebody else's with another value, which is left: take that off, or purge it"
_DENIED: Final = frozenset({"AccessDenied", "403"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Tagger(Actor):
    """Puts the site's expiry tag on everything, beside the tags that are there.

    ``requests`` runs the requests for single objects, and must not be what runs the locations: those wait for it.
    ``missing_rule`` says of a bucket what its lifecycle rules lack. With ``purges_full``, what has ten tags is purged.
    """

    tag: Tag
    requests: Executor
    missing_rule: Callable[[str], str]
    purges_full: bool = False

    action: ClassVar[Action] = Action.TAG

    def unfit(self, bucket: str) -> str:
        """What the lifecycle rules of ``bucket`` lack; empty where they will do."""
        return self.missing_rule(bucket)

    def begin(self, sights: Sequence[Sight], lines: Sequence[Decision]) -> dict[Location, str]:  # noqa: ARG002
        """Note that these will be tagged. As ``Actor``'s."""
        return self.fence.begin(lines, self.action, lambda _location, _before, _now_ms: None)

    def _round(self, task: ListingTask, works: Mapping[Location, Work]) -> None:
        self._tag((work, entry) for work in open_works(works) for entry in work.pending)
        for work in open_works(works):
            if work.streamed:
                work.waiting_objects = work.waiting_bytes = 0
                self._tag(self.stream(work))
        for work, found in self.verified(task, works):
            self._settle(work, found)

    def _tag(self, pairs: Iterable[Pair]) -> None:
        wanted = (
            (work, entry)
            for work, entry in pairs
            if entry.kind in _TAGGABLE
            and identity(entry) not in work.marked
            # Seen by a plain listing alone, it may have come just now: the next one of versions names it.
            and (entry.version_id or not self.versioned(work))
        )
        broken: list[StorageError] = []
        for batch in self.in_batches(wanted, _AT_ONCE):
            # When the claim is given back none may be under way: so each of them is waited for, whatever one shows.
            answers = list(self.requests.map(partial(self._tag_unless, broken), batch))
            if not broken:
                self._require_rights(batch, answers)
            full = [pair for pair, answer in zip(batch, answers, strict=True) if answer is Tagged.FULL]
            for (work, entry), answer in zip(batch, answers, strict=True):
                self._count_one(work, entry, answer)
            if broken:
                raise broken[0]
            if full and self.purges_full:
                self.delete(full)

    def _tag_unless(self, broken: list[StorageError], pair: Pair) -> Tagged | Failure | None:
        """None: not asked. A request before has shown that the bucket is of no use, or our claim may have run out."""
        if broken or not self.fence.alive:
            return None
        try:
            return self._tag_one(pair)
        except StorageError as error:
            broken.append(error)
            return None

    def _tag_one(self, pair: Pair) -> Tagged | Failure:
        work, entry = pair
        bucket = work.line.location.bucket if work.line.location else ""
        return s3.add_tag(self.client, bucket, entry, self.tag, versioned=self.versioned(work))

    @staticmethod
    def _require_rights(batch: Sequence[Pair], answers: Sequence[Tagged | Failure | None]) -> None:
        """Raises BucketPaused where not one object of a batch may be tagged: then it is not about the objects."""
        denied = [answer for answer in answers if isinstance(answer, Failure) and answer.code in _DENIED]
        if denied and len(denied) == len(answers) and batch[0][0].line.location:
            bucket = batch[0][0].line.location.bucket
            raise s3.BucketPaused(
                bucket,
                f"nothing in bucket {bucket!r} may be tagged: grant s3:GetObjectTagging and s3:PutObjectTagging (of "
                "versions: s3:GetObjectVersionTagging and s3:PutObjectVersionTagging) to these credentials. "
                f"{denied[0].message}".rstrip(),
            )

    def _count_one(self, work: Work, entry: Entry, answer: Tagged | Failure | None) -> None:
        name = identity(entry)
        work.failures.pop(name, None)
        work.unknown.pop(name, None)
        match answer:
            case Failure():
                work.failures[name] = answer
            case Tagged.UNKNOWN:
                work.unknown[name] = entry
            case Tagged.DONE | Tagged.THERE:
                work.changed += answer is Tagged.DONE
                work.waiting_objects += 1
                work.waiting_bytes += entry.size_bytes
                if not work.streamed:
                    work.marked.add(name)
            case Tagged.TAKEN:
                work.failures[name] = Failure(
                    key=entry.key,
                    code="TagTaken",
                    message=_TAKEN.format(self.tag.key),
                    version_id=entry.version_id,
                )
            case Tagged.FULL if not self.purges_full:
                work.failures[name] = Failure(
                    key=entry.key, code="TagSetFull", message=_FULL, version_id=entry.version_id
                )
            case _:
                pass

    def _settle(self, work: Work, found: Found) -> None:
        """Compare what is listed with what is tagged."""
        there = {identity(entry): entry for entry in found.entries or () if entry.kind in _TAGGABLE}
        if not work.streamed:
            waiting = [entry for name, entry in there.items() if name in work.marked]
            work.waiting_objects, work.waiting_bytes = len(waiting), sum(entry.size_bytes for entry in waiting)
        left = {} if work.streamed else {name: entry for name, entry in there.items() if name not in work.marked}
        work.unknown = {name: entry for name, entry in work.unknown.items() if work.streamed or name in left}
        if found.empty:
            work.end(Outcome.SWEPT if work.touched else Outcome.EMPTY)
        elif not left and not work.unknown and not work.failures:
            work.end(Outcome.WAITING)
        elif any(self.too_young(work, entry) for entry in left.values()):
            work.end(Outcome.POSTPONED, "something was written into it while it was being tagged")
        elif left and all(name in work.failures and not work.failures[name].retryable for name in left):
            work.end(Outcome.FAILED, failed_detail(work))
        else:
            self.take(work, found)
