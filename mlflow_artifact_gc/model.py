"""The values that the rooms hand to each other. Pure: no I/O, no clock, no settings.

Times are milliseconds since the epoch (``_ms``), as MLflow's own columns are; sizes are bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum

from mlflow_artifact_gc.locations import DEFAULT_WORKSPACE, Location


class EntityKind(StrEnum):
    """The MLflow things that own artifacts."""

    RUN = "run"
    LOGGED_MODEL = "logged_model"
    TRACE = "trace"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entity:
    """A run, logged model or trace."""

    kind: EntityKind
    id: str
    experiment_id: str
    workspace: str = DEFAULT_WORKSPACE

    def __str__(self) -> str:
        return f"{self.kind.value.replace('_', ' ')} {self.id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """A soft-deleted entity and the URI that its row holds.

    ``deleted_ms`` is MLflow's own date; None where the row has none (deleted before MLflow kept it).
    ``experiment_uri`` is its experiment's ``artifact_location``.
    """

    entity: Entity
    uri: str
    deleted_ms: int | None
    experiment_uri: str = ""


class Strength(StrEnum):
    """How far a reference reaches, beside the id rule."""

    NAMES = "names"
    """Protects what it contains and what contains it."""
    AREA = "area"
    """An experiment's location or a root: protects only what contains it, never what lies beneath."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A row's text that may point at artifacts.

    ``holder`` reads as in ``registered model churn, version 7 (@champion), storage_location``.
    """

    holder: str
    text: str
    strength: Strength = Strength.NAMES
    workspace: str = DEFAULT_WORKSPACE
    live: bool = True
    """False for a tombstone: it protects what overlaps it as long as its row is there."""
    experiment_id: str = ""
    """Protects everything that belongs to this experiment too."""


class Verdict(StrEnum):
    """What a plan says of a location."""

    SWEEP = "sweep"
    KEEP = "keep"


class Reason(StrEnum):
    """Why: each decision has exactly one."""

    DUE = "due"
    GRACE = "grace"
    UNDATED = "undated"
    PROTECTED = "protected"
    NESTED = "nested"
    SWEPT_BEFORE = "swept-before"
    WAITING = "waiting"
    UNDONE = "undone"
    NOT_PLANNED = "not-planned"
    NOT_ON_S3 = "not-on-s3"
    OTHER_SERVER = "other-server"
    UNREADABLE = "unreadable"
    LAYOUT = "layout"
    QUARANTINE = "quarantine"
    YOUNG = "young"
    NOT_OWNED = "not-owned"

    @property
    def verdict(self) -> Verdict:
        return Verdict.SWEEP if self is Reason.DUE else Verdict.KEEP

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Reason.DUE: "deleted long enough ago, and nothing live needs it",
    Reason.GRACE: "still in its grace period",
    Reason.UNDATED: "its row says not when it was deleted (--include-undated, or name its id)",
    Reason.PROTECTED: "something live needs it",
    Reason.NESTED: "it contains, or lies in, the location of another deleted entity whose row is still there",
    Reason.SWEPT_BEFORE: "already swept",
    Reason.WAITING: "hidden or tagged already: it waits for its bucket's lifecycle rule",
    Reason.UNDONE: "taken back with 'undo' (name its id, or restore it and delete it again)",
    Reason.NOT_PLANNED: "due, but not in the plan file as it is now",
    Reason.NOT_ON_S3: "its artifacts are not on S3",
    Reason.OTHER_SERVER: "its URI names a host: perhaps another server's artifacts",
    Reason.UNREADABLE: "its URI names no bucket and key",
    Reason.LAYOUT: "its URI has not the shape that MLflow gives to such artifacts",
    Reason.QUARANTINE: "an orphan, and not seen as one for long enough",
    Reason.YOUNG: "something in it is younger than the minimum age, or of an unknown age",
    Reason.NOT_OWNED: "its root is not marked as this database's",
}


class Standing(StrEnum):
    """What an audit says of a prefix: each has exactly one."""

    LIVE = "live"
    """A live row's."""
    SOFT_DELETED = "soft-deleted"
    """A deleted row's, in its grace period or without a date."""
    PROTECTED = "protected"
    """Nobody's that is live, and yet something needs it, or another database owns its root."""
    DUE = "garbage, due"
    """What ``gc`` would sweep now."""
    LEFT_OVER = "left over"
    """In a layout of MLflow's, and no row accounts for it."""
    TOO_YOUNG = "too young to judge"
    """One of the two above, with something in it that is younger than the minimum age."""
    NOT_JUDGED = "not judged"
    """One of the two, where nobody knows what the model registry needs."""
    UNKNOWN_LAYOUT = "unknown layout"
    """Not as MLflow names folders, or not in a place that is known to be MLflow's. Never an orphan."""


class Action(StrEnum):
    """What a sweep does to a location."""

    PURGE = "purge"
    HIDE = "hide"
    TAG = "tag"


@dataclass(frozen=True, kw_only=True, slots=True)
class Orphan:
    """Why a line of a plan is one though no row of MLflow's names its location.

    ``lost`` is what is no longer there (run, logged model, trace, experiment, workspace). ``newest_ms`` is the newest
    modification in it, by S3's clock; None: something in it has no date, and nothing of it may go. ``seen_ms`` is when
    it was first seen as it is now, None: never before.
    """

    lost: str
    newest_ms: int | None
    seen_ms: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One line of a plan: what happens to an entity's location, and the one reason why.

    ``location`` is None where the URI names none. The ``expected_`` fields are None until measured. Of an ``orphan``
    entity and location are what the path says, and ``uri`` is the location's. ``needed`` are the parts of the location
    that something live needs, where the rest of it is due all the same (``gc --partial``).
    """

    entity: Entity
    uri: str
    location: Location | None
    deleted_ms: int | None
    reason: Reason
    evidence: str = ""
    root: Location | None = None
    expected_objects: int | None = None
    expected_bytes: int | None = None
    orphan: Orphan | None = None
    needed: tuple[Location, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return self.reason.verdict

    def spares(self, key: str) -> bool:
        """Whether an object of its location is needed, and stays."""
        return any(part.holds(key) for part in self.needed)


class Decisions(Sequence[Decision]):
    """Lines on rows that are too many to be all made at once: what is asked of all of them it answers itself."""

    def only(self, reason: Reason) -> Decisions:
        """Those with this reason."""
        raise NotImplementedError

    def first(self, count: int) -> Sequence[Decision]:
        """So many by their ids."""
        raise NotImplementedError

    def reasons(self) -> Counter[Reason]:
        """How many there are of each reason."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The brakes and margins that a plan was made with.

    ``max_share`` is a fraction of the database's entity rows and is asked only where more than
    ``share_from_locations`` are concerned. ``min_object_age_ms`` 0 switches that check off.
    """

    max_share: float = 0.5
    share_from_locations: int = 100
    max_locations: int | None = None
    max_objects: int | None = None
    max_bytes: int | None = None
    min_object_age_ms: int = 24 * 3_600_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sums over the lines of a plan; sizes are None where a line that would be swept was not measured."""

    locations: int
    due: int
    due_objects: int | None
    due_bytes: int | None
    by_reason: tuple[tuple[Reason, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The decision, one line per location. A value: it touches nothing.

    ``entity_rows`` is what ``max_share`` is a share of: the database's rows, or of orphans the entities' prefixes that
    were found under the roots.
    """

    id: str
    created_ms: int
    cutoff_ms: int
    action: Action
    database_id: str
    entity_rows: int
    limits: Limits = field(default_factory=Limits)
    unsafe: tuple[str, ...] = ()
    decisions: Sequence[Decision] = ()

    @property
    def due(self) -> Sequence[Decision]:
        return self.with_reason(Reason.DUE)

    def with_reason(self, reason: Reason) -> Sequence[Decision]:
        """Its lines that have this reason."""
        if isinstance(self.decisions, Decisions):
            return self.decisions.only(reason)
        return tuple(line for line in self.decisions if line.reason is reason)

    @property
    def of_orphans(self) -> bool:
        """Whether its lines are orphans; a plan holds no other beside them."""
        some = () if isinstance(self.decisions, Decisions) else self.decisions  # those are rows'
        return any(line.orphan is not None for line in some)

    @property
    def totals(self) -> Totals:
        objects: list[int | None]
        sizes: list[int | None]
        if isinstance(self.decisions, Decisions):
            counts = self.decisions.reasons()
            objects = sizes = [None] if counts[Reason.DUE] else []  # none of them was measured
        else:
            objects = [line.expected_objects for line in self.due]
            sizes = [line.expected_bytes for line in self.due]
            counts = Counter(line.reason for line in self.decisions)
        return Totals(
            locations=len(self.decisions),
            due=counts[Reason.DUE],
            due_objects=sum(n for n in objects if n is not None) if None not in objects else None,
            due_bytes=sum(n for n in sizes if n is not None) if None not in sizes else None,
            by_reason=tuple((reason, counts[reason]) for reason in Reason if counts[reason]),
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the header and each line, in their order."""
        sha = hashlib.sha256()
        sha.update(_canonical(_fields(self, without="decisions")))
        for line in self.decisions:
            sha.update(_canonical(_fields(line)))
        return sha.hexdigest()


def _fields(value: object, without: str = "") -> object:
    if isinstance(value, tuple):
        return [_fields(one) for one in value]
    if not is_dataclass(value):
        return value
    return {one.name: _fields(getattr(value, one.name)) for one in fields(value) if one.name != without}


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


class Outcome(StrEnum):
    """How the sweep of one location ended."""

    SWEPT = "swept"
    """A listing after the sweep (versions, delete markers, unfinished uploads) was empty."""
    PARTLY = "partly"
    """A listing after the sweep showed nothing but the parts of it that are needed. The location stays, and its row."""
    EMPTY = "empty"
    """Nothing was there at first sight. Proves nothing about the metadata unless the root was proven."""
    WAITING = "waiting"
    """Everything in it is hidden or tagged, and waits for the bucket's lifecycle rule."""
    POSTPONED = "postponed"
    """It holds something younger than the minimum age."""
    PROTECTED = "protected"
    """At the fence, something live needed it."""
    RESTORED = "restored"
    """At the fence or between two batches, the entity was no longer deleted as planned."""
    DROPPED = "dropped"
    """A plan file has it as due, and when that was applied it was not due any more, or not as planned."""
    BUSY = "busy"
    """Another process is sweeping it."""
    FOREIGN = "foreign"
    """It lies under a root that another tracking database owns."""
    STOPPED = "stopped"
    """Not reached, or left half-way: time budget or interrupt."""
    PAUSED = "paused"
    """Its bucket or root cannot be worked on now."""
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Requests were sent, their answers were lost, and a listing could not settle it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What S3 said of one key, or of one listing (``key`` empty)."""

    key: str
    code: str
    message: str = ""
    version_id: str | None = None
    retryable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """What was done to a location. The only source of reports.

    ``deleted_objects`` counts current objects, ``deleted_versions`` noncurrent ones, ``deleted_bytes`` both.
    ``unknown`` counts keys whose answer was lost and that no listing has settled. ``waiting_`` counts what is hidden or
    tagged in it now, noncurrent versions included; ``acted_until_ms`` is when the last of our delete markers was
    written, by S3's clock.
    """

    decision: Decision
    outcome: Outcome
    action: Action = Action.PURGE
    detail: str = ""
    deleted_objects: int = 0
    deleted_versions: int = 0
    deleted_markers: int = 0
    deleted_bytes: int = 0
    aborted_uploads: int = 0
    waiting_objects: int = 0
    waiting_bytes: int = 0
    acted_until_ms: int | None = None
    failures: tuple[Failure, ...] = ()
    unknown: int = 0
    root_proven: bool = False
    metadata_deleted: bool = False

    @property
    def verified(self) -> bool:
        """Whether the entity's row may go: its location is proven to be empty, and to be the right one."""
        if self.decision.needed:
            return False
        return self.outcome is Outcome.SWEPT or (self.outcome is Outcome.EMPTY and self.root_proven)
