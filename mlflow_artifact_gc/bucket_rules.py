"""The lifecycle rules of real buckets: what is there, against what an action relies on; and writing what is missing.

A rule that has lost its filter on the way would delete the whole bucket. So rules are first written disabled, read back
and compared, and only then enabled; and a configuration is only ever written right after it was read.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import policy, s3
from mlflow_artifact_gc.errors import ArtifactGcError, Refused, StorageError
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.lifecycle import (
    MOST_ROOTS,
    Difference,
    Finding,
    Rule,
    Verdict,
    Wanted,
    as_json,
    difference,
    disabled,
    find,
    merged,
    outermost,
)
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Action, Failure, Plan
from mlflow_artifact_gc.s3 import Configuration, Versioning
from mlflow_artifact_gc.s3 import lifecycle as configurations

if TYPE_CHECKING:
    from mlflow_artifact_gc.journal import Site
    from mlflow_artifact_gc.references import Tracking
    from mlflow_artifact_gc.s3 import S3Client

_SETTLING_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 4.0)
"""How long to wait before each look at what was written: S3 may show the configuration of before for a while."""
_PROBES: Final = 5
_SAMPLED: Final = 1000
_EACH: Final = 50
"""Of a root's first page of objects, every 50th is asked for its tags."""


class Tags(StrEnum):
    """Whether the server offers tags on objects."""

    OFFERED = "offered"
    NOT_OFFERED = "not offered"
    UNKNOWN = "unknown"


class RulesNotKept(Refused):
    """The server does not keep lifecycle rules as they are written.

    ``before`` is the configuration that was there.
    """

    def __init__(self, message: str, before: Configuration) -> None:
        super().__init__(message)
        self.before = before


@dataclass(frozen=True, kw_only=True, slots=True)
class Examined:
    """What a bucket has, and what it lacks for an action.

    ``ready``: the action may rely on the bucket. ``rules``: what ``apply`` would write; also of a bucket that is ready
    some may be left, for delete markers and unfinished uploads. ``impossible``: why no rule would do, or nothing.
    """

    bucket: str
    endpoint: str
    wanted: Wanted
    versioning: Versioning
    tags: Tags
    before: Configuration
    finding: Finding
    impossible: str = ""

    @property
    def verdict(self) -> Verdict:
        return Verdict.IMPOSSIBLE if self.impossible else self.finding.verdict

    @property
    def ready(self) -> bool:
        return self.verdict is Verdict.READY

    @property
    def rules(self) -> tuple[Rule, ...]:
        return () if self.impossible else (*self.finding.needed, *self.finding.tidying)

    @property
    def undo_days(self) -> int | None:
        """For how many days what was hidden can be brought back, at least."""
        return self.finding.undo_days

    @property
    def expiry_days(self) -> int | None:
        """In how many days S3 removes what was tagged, if nothing of it is younger than that."""
        return self.finding.expiry_days

    @property
    def sentence(self) -> str:
        """What is there, or missing."""
        return f"Bucket {self.bucket!r}: {self.impossible or _standing(self)}."

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know, a sentence each."""
        return (*self.finding.warnings, *_hints(self))


def roots(known: Iterable[str], tracking: Tracking, destination: Destination) -> dict[str, tuple[str, ...]]:
    """The prefixes of all roots of a database, by bucket: those that its rows tell, and ``known`` ones, as URIs."""
    found = {Location.parse(uri, Destination()) for uri in known}
    if destination.root:
        found.add(destination.root)
    for uri, experiment_id, workspace in tracking.experiment_places():
        root = policy.root_of_experiment(uri, experiment_id, workspace, destination)
        if root:
            found.add(root)
    by_bucket: defaultdict[str, list[str]] = defaultdict(list)
    for root in found:
        by_bucket[root.bucket].append(root.prefix)
    return {bucket: outermost(prefixes) for bucket, prefixes in sorted(by_bucket.items())}


def examine(
    client: S3Client,
    bucket: str,
    *,
    action: Action,
    tag: Tag,
    prefixes: Iterable[str],
    versioning: Versioning | None = None,
    noncurrent_days: int | None = None,
) -> Examined:
    """What the bucket has. Writes nothing.

    Args:
        client: made by ``s3.connect``.
        bucket: its name.
        action: ``tag`` or ``hide``.
        tag: the site's expiry tag.
        prefixes: those of the roots in the bucket, at least one.
        versioning: if it is known; else it is asked for.
        noncurrent_days: what ``hide`` is to rely on; None: what is there, or else 7.

    Raises:
        BucketPaused, ListingIncomplete, Transient: the bucket cannot be read; a missing right is named.
    """
    if versioning is None:
        versioning = s3.bucket_versioning(client, bucket)
    wanted = Wanted(
        action=action,
        tag=tag,
        prefixes=tuple(prefixes),
        versioned=versioning is not Versioning.NEVER,
        noncurrent_days=noncurrent_days,
    )
    before = configurations.read(client, bucket)
    tags = probe_tags(client, bucket, wanted.prefixes) if action is Action.TAG else Tags.UNKNOWN
    return Examined(
        bucket=bucket,
        endpoint=s3.endpoint_name(client),
        wanted=wanted,
        versioning=versioning,
        tags=tags,
        before=before,
        finding=find(wanted, before.rules),
        impossible=_impossible(action, versioning, tags),
    )


def probe_tags(client: S3Client, bucket: str, prefixes: Iterable[str]) -> Tags:
    """Whether the server offers tags, by asking for those of the roots' marker objects. Leaves nothing behind.

    Raises:
        BucketPaused, Transient: it cannot be asked.
    """
    for prefix in list(prefixes)[:_PROBES]:
        known = configurations.knows_tags(client, bucket, prefix + s3.MARKER_NAME)
        if known is not None:
            return Tags.OFFERED if known else Tags.NOT_OFFERED
    return Tags.UNKNOWN


def require_unused_tag(client: S3Client, examined: Examined, touched: Collection[Location]) -> None:
    """Before a rule expires what carries the tag: some objects of each root are asked whether others carry it too.

    Args:
        touched: where something was tagged by us.

    Raises:
        Refused: one outside of these does, or cannot be asked. It may be live, and S3 would remove it.
        BucketPaused, ListingIncomplete, Transient: the bucket cannot be read.
    """
    if examined.wanted.action is not Action.TAG or not examined.finding.needed or examined.impossible:
        return
    for prefix in examined.wanted.prefixes[:_PROBES]:
        for entry in islice(s3.current(client, examined.bucket, prefix), 0, _SAMPLED, _EACH):
            place = Location.of_key(examined.bucket, entry.key)
            if any(location.contains(place) for location in touched):
                continue
            carries = s3.carries(client, examined.bucket, entry, examined.wanted.tag)
            if isinstance(carries, Failure) and carries.code == s3.NOT_SENT:
                continue  # No request can name it, so no grant will ever help: it is no sample.
            if isinstance(carries, Failure):
                raise Refused(
                    f"Bucket {examined.bucket!r}: the tags of the object {entry.key!r} could not be read "
                    f"({carries.code}{f': {carries.message}' if carries.message else ''}), so whether others carry the "
                    f"tag {examined.wanted.tag} is not known: with the rule, S3 would remove what does. Nothing was "
                    "written: run it again, with s3:GetObjectTagging granted to these credentials"
                )
            if carries:
                raise Refused(
                    f"Bucket {examined.bucket!r}: the object {entry.key!r} carries the tag {examined.wanted.tag}, and "
                    "not by our doing: with the rule, S3 would remove it and all that others have tagged so. Nothing "
                    "was written: choose a tag of its own with 'init --expiry-tag', or take this one off there"
                )


def apply(client: S3Client, examined: Examined) -> Examined:
    """Write the rules that ``examined`` lacks, and look again. Rules of others stay as they are.

    Raises:
        Refused: nothing of others has changed, and no rule of ours is in force that was not before: the rules were
            changed since they were shown, they do not fit, or boto3 or the server does not take them. Where a rule was
            written and did not come back as it was (RulesNotKept), the message says what is there now.
        BucketPaused, ListingIncomplete, Transient: the bucket cannot be read or written; a missing right is named.
    """
    if examined.impossible:
        raise Refused(examined.sentence)
    if not examined.rules:
        return examined
    writer = _Writer(client, examined)
    writer.write()
    return examine(
        client,
        examined.bucket,
        action=examined.wanted.action,
        tag=examined.wanted.tag,
        prefixes=examined.wanted.prefixes,
        versioning=examined.versioning,
        noncurrent_days=examined.wanted.noncurrent_days,
    )


class _Writer:
    """Writes the rules of one bucket in two steps: disabled, then enabled."""

    def __init__(self, client: S3Client, examined: Examined) -> None:
        self._client = client
        self._bucket = examined.bucket
        self._place = f"bucket {examined.bucket!r} at {examined.endpoint}"
        self._shown = examined.before
        self._ours = examined.rules
        self._ids = {rule["ID"] for rule in examined.rules}

    def write(self) -> None:
        before = configurations.read(self._client, self._bucket)
        configurations.require_complete(before, self._place)
        if _changed(self._shown, before):
            raise Refused(
                f"{self._place}: its lifecycle rules were changed since they were shown, so nothing was written: look "
                "at them again"
            )
        trial = self._step(before, disabled(self._ours), before)
        try:
            self._step(trial, self._ours, before)
        except RulesNotKept:
            raise
        except Refused as error:
            # The server took them disabled only: what is there disabled does no harm, and no good.
            raise self._restored(before, str(error), before) from error

    def _step(self, now: Configuration, ours: Sequence[Rule], before: Configuration) -> Configuration:
        """Put ``ours`` beside the others of ``now``, which was just read; what is there afterwards, compared.

        ``before`` is what was there before the first step.
        """
        target = Configuration(rules=merged(now.rules, ours), minimum_size=now.minimum_size)
        if not _changed(target, now):
            return now  # they were there, disabled
        lost = self._put(target)
        found = self._settled(now)
        if not _changed(target, found):
            return found
        if not _changed(now, found):
            raise StorageError(
                f"{self._place} still shows its lifecycle rules as they were before ours were written"
                f"{' (' + lost + ')' if lost else ''}: look at them again in some minutes"
            )
        raise self._taken_back(target, found, before)

    def _put(self, target: Configuration) -> str:
        """Empty, or why it is not known whether it was written."""
        try:
            configurations.write(self._client, self._bucket, target)
        except s3.Transient as error:
            return str(error)
        return ""

    def _settled(self, now: Configuration) -> Configuration:
        """What is there, once it is no longer what was there before, or after some time."""
        found = now
        for pause_s in _SETTLING_S:
            time.sleep(pause_s)
            found = configurations.read(self._client, self._bucket)
            if _changed(now, found):
                break
        return found

    def _taken_back(self, target: Configuration, found: Configuration, before: Configuration) -> ArtifactGcError:
        """Something else came back than was written: take ours away, and say what is there now."""
        seen = difference(target.rules, found.rules)
        theirs_changed = [pair for pair in seen.changed if pair[0].get("ID") not in self._ids]
        theirs_changed += [] if target.minimum_size == found.minimum_size else [({"ID": "(minimum size)"}, None)]
        ours_there = [rule for rule in found.rules if rule.get("ID") in self._ids]
        what = _told(seen, self._ids)
        if not theirs_changed and not ours_there:
            return RulesNotKept(
                f"{self._place} does not show the rules that were just written ({what}): somebody else writes its "
                "lifecycle rules, or the server drops them; rules of others were left as they are",
                before,
            )
        if not theirs_changed and not any(rule.get("ID") in self._ids for rule, _ in seen.changed):
            return RulesNotKept(
                f"{self._place}: somebody else wrote its lifecycle rules at the same moment ({what}), so no more was "
                "written; theirs are as they left them, ours are there and may be disabled: look at them again",
                before,
            )
        # What was added meanwhile stays, unless something of others is not as it was: then all is put back.
        rules = before.rules
        if not theirs_changed:
            own_before = [rule for rule in before.rules if rule.get("ID") in self._ids]
            others = [rule for rule in found.rules if rule.get("ID") not in self._ids]
            rules = (*others, *own_before)
        told = f"{self._place}: the server does not keep lifecycle rules as they are written: {what}"
        return self._restored(Configuration(rules=rules, minimum_size=before.minimum_size), told, before)

    def _restored(self, old: Configuration, told: str, before: Configuration) -> ArtifactGcError:
        try:
            configurations.write(self._client, self._bucket, old)
            found = configurations.read(self._client, self._bucket)
            for pause_s in _SETTLING_S:
                if not _changed(old, found):
                    return RulesNotKept(f"{told}. The rules of before are in place again", before)
                time.sleep(pause_s)
                found = configurations.read(self._client, self._bucket)
        except ArtifactGcError as error:
            return RulesNotKept(
                f"{told}. The rules of before COULD NOT BE PUT BACK ({error}): put them back by hand, at once", before
            )
        return RulesNotKept(
            f"{told}. The rules of before were put back and did NOT come back as they were "
            f"({_told(difference(old.rules, found.rules), set())}): look at them by hand, at once",
            before,
        )


def _changed(one: Configuration, other: Configuration) -> bool:
    """Whether they differ. A minimum size that a server did not name before is only its default."""
    sizes = one.minimum_size is not None and one.minimum_size != other.minimum_size
    return bool(difference(one.rules, other.rules)) or sizes or one.unknown != other.unknown


_SHOWN: Final = 3


def _told(seen: Difference, ids: set[str]) -> str:
    """The differences in words, the first few; ``ids`` are those of ours."""
    said = []
    for rule, other in seen.changed:
        whose = f"{'our' if rule.get('ID') in ids else 'the'} rule {rule.get('ID') or 'without an id'!r}"
        was, now = (as_json([one])[0] if one else None for one in (rule, other))
        said.append(f"{whose} was written as {was} and came back as {now}" if now else f"{whose} did not come back")
    said += [f"a rule {rule.get('ID') or 'without an id'!r} is there too" for rule in seen.extra]
    more = [f"and {len(said) - _SHOWN} more"] if len(said) > _SHOWN else []
    return "; ".join([*said[:_SHOWN], *more]) or "something beside the rules"


# Sentences


def _impossible(action: Action, versioning: Versioning, tags: Tags) -> str:
    if action is Action.HIDE and versioning is not Versioning.ENABLED:
        told = {
            Versioning.NEVER: "it keeps no versions",
            Versioning.SUSPENDED: "its versioning is suspended",
            Versioning.UNKNOWN: "it does not say whether it keeps versions",
        }
        return f"{told[versioning]}, so what is hidden there could not be brought back; hide needs versioning enabled"
    if action is Action.TAG and tags is Tags.NOT_OFFERED:
        return "the server does not offer tags on objects, so nothing there can be tagged for expiry"
    return ""


def _standing(examined: Examined) -> str:
    wanted, finding = examined.wanted, examined.finding
    needed = f"a rule that expires what is tagged {wanted.tag}"
    if wanted.action is Action.HIDE:
        needed = "a rule that removes old versions"
    roots = ", ".join(prefix or "the WHOLE bucket" for prefix in wanted.prefixes[:_SHOWN])
    roots += f" and {len(wanted.prefixes) - _SHOWN} more" if len(wanted.prefixes) > _SHOWN else ""
    if finding.verdict is Verdict.MISSING:
        return f"{needed} is missing for {roots}"
    if finding.verdict is Verdict.DISABLED:
        return f"{needed} is there for {roots}, but disabled"
    if finding.verdict is Verdict.DIFFERENT:
        return f"the rule of ours for {roots} is there, but was changed"
    days = finding.undo_days if wanted.action is Action.HIDE else finding.expiry_days
    after = f", {days} day{'' if days == 1 else 's'} after" if days else ""
    when = f"{after} they were hidden or replaced" if wanted.action is Action.HIDE else f"{after} their creation"
    tidying = "; nothing ends unfinished uploads" if finding.tidying else ""
    tidying += " and removes markers that hide nothing" if finding.tidying and wanted.versioned else ""
    what = "old versions are removed" if wanted.action is Action.HIDE else f"objects tagged {wanted.tag} are removed"
    return f"{what}{when if days else ''}{tidying}"


def _hints(examined: Examined) -> Iterable[str]:
    wanted = examined.wanted
    if examined.before.unknown:
        yield (
            f"The configuration holds {', '.join(examined.before.unknown)}, which this version of boto3 does not know: "
            "nothing can be written until it is upgraded"
        )
    if "" in wanted.prefixes:
        yield "A root is the WHOLE bucket: rules for it reach everything in it, also what other software keeps there"
    if wanted.action is Action.TAG and len(wanted.prefixes) > MOST_ROOTS:
        yield (
            f"The bucket has {len(wanted.prefixes):,} roots, more than {MOST_ROOTS}: the rule for the tag reaches the "
            "whole bucket, also objects of other software that have the same tag"
        )
    if wanted.action is Action.HIDE and examined.finding.needed and not examined.impossible:
        yield (
            "A rule for old versions also removes those of live runs' artifacts that were overwritten, for good: "
            "not only what is hidden"
        )
    if wanted.action is Action.TAG and examined.tags is Tags.UNKNOWN:
        yield "Whether the server offers tags on objects is not known: no marker object can be asked for its tags yet"


# For a plan


def of_plan(site: Site, client: S3Client, plan: Plan) -> list[Examined]:
    """What each bucket of what is due has, for the plan's action; of a purge nothing is asked.

    Raises:
        BucketPaused, ListingIncomplete, Transient: as ``examine`` does.
    """
    if plan.action is Action.PURGE:
        return []
    prefixes: dict[str, set[str]] = {}
    for line in plan.due:
        if line.root is not None:
            prefixes.setdefault(line.root.bucket, set()).add(line.root.prefix)
    tag = Tag.of_site(site.expiry_tag)
    return [
        examine(client, bucket, action=plan.action, tag=tag, prefixes=sorted(some))
        for bucket, some in sorted(prefixes.items())
    ]


def missing(site: Site, client: S3Client, plan: Plan) -> Callable[[str], str]:
    """Tells of a bucket what its rules lack for a plan's action, or nothing. They are read when it is first asked."""
    lock = threading.Lock()
    found: dict[str, str] = {}

    def tell(bucket: str) -> str:
        with lock:
            if not found:
                # Without a rule what is hidden stays, and can be had back: that is no reason not to begin.
                found.update(
                    {
                        one.bucket: "" if one.ready or plan.action is not Action.TAG else f"{one.sentence} {_APPLY}"
                        for one in of_plan(site, client, plan)
                    }
                )
            return found.get(bucket, "")

    return tell


_APPLY: Final = "Run 'mlflow-artifact-gc lifecycle apply'."
