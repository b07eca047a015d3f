"""The check just before acting: is this location still ours to sweep, now?

The order is the law: the claim and the row's stage in one transaction, committed; then everything that refers to it,
read anew; and the stage again before each batch of deletes. No S3 call happens in a transaction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import database, holds, inbox, journal, leftovers, planning, references
from mlflow_artifact_gc import registry as model_registry
from mlflow_artifact_gc.combining import Combined
from mlflow_artifact_gc.errors import DatabaseUnusable, ReferencesIncomplete
from mlflow_artifact_gc.keeping import HoldKind
from mlflow_artifact_gc.model import Action, Decision, Outcome, Plan, Reason, SweepResult, Tombstone
from mlflow_artifact_gc.policy import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Engine

    from mlflow_artifact_gc.hides import Hide
    from mlflow_artifact_gc.locations import Destination, Location

LEASE_MS: Final = 60_000
_RENEWALS: Final = 4
_CLAIMED_AT_ONCE: Final = 500
_MARGIN_S: Final = 5.0
_OUTWAIT_S: Final = 10.0
_TICK_S: Final = 0.05
TOO_MANY_MARKERS: Final = (
    "so many of its keys were hidden just before by others that a hide of ours could not be told from theirs: wait ten "
    "minutes, or use --action purge or tag"
)
_BEGUN_OTHERWISE: Final = (
    "it was begun as {0}, and only as that can it be taken back: finish it with --action {0} (the worker does so by "
    "itself), take it back with 'undo', or use --action purge"
)
_Noted = frozenset[tuple[inbox.Subject, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Needs:
    """What shows that something may be needed that was not before: read before the references, and compared later.

    The notes of what was registered and held here, the number of holds, the state of a registry elsewhere, and the
    experiments with a keep tag that may be its own.
    """

    registered: frozenset[int] = frozenset()
    holds: int = 0
    elsewhere: object = None
    kept: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """What may be swept now, and how it ended for the others.

    ``killed``: those of all lines that another process was purging when it died.
    """

    due: tuple[Decision, ...]
    rejected: tuple[SweepResult, ...]
    killed: tuple[Decision, ...] = ()


class Fence:
    """Claims and checks the lines of one plan, for one process."""

    def __init__(
        self,
        *,
        tracked: references.TrackingDatabase,
        registry: Engine | None,
        plan: Plan,
        destination: Destination,
        owner: str,
        lease_ms: int = LEASE_MS,
        settings_ms: int | None = None,
        noted_since_ms: int | None = None,
    ) -> None:
        self._tracked = tracked
        self._engine = tracked.engine
        self._registry = registry
        self._plan = plan
        self._destination = destination
        self._owner = owner
        self._lease_ms = lease_ms
        self._settings_ms = settings_ms
        self._noted_since_ms = plan.created_ms if noted_since_ms is None else noted_since_ms
        # In the tracking database the hook refuses what names an id after the claim, and notes every registration; in
        # another one nothing does.
        self._elsewhere = registry if registry is not tracked.engine else None
        self._needs = _Needs()
        self._read_with: dict[Location | None, _Needs] = {}
        """Of a location whose references were read anew since ``_needs``: what there was to see then."""
        self._valid_until = 0.0
        self._stop = threading.Event()
        self._changes = Combined(self._changed)

    # Claims

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the claims alive in the background as long as the database answers."""
        self._valid_until = time.monotonic() + self._lease_ms / 1000
        keeper = threading.Thread(target=self._keep, name="artifact-gc-lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            self._stop.set()
            keeper.join()

    def _keep(self) -> None:
        while not self._stop.wait(self._lease_ms / 1000 / _RENEWALS):
            asked = time.monotonic()
            try:
                with database.writing(self._engine) as connection:
                    until_ms = database.clock_ms(connection) + self._lease_ms
                    journal.renew(connection, owner=self._owner, until_ms=until_ms)
            except DatabaseUnusable:
                continue  # The claims run out by themselves, and `alive` says so before they do.
            self._valid_until = asked + self._lease_ms / 1000

    @property
    def alive(self) -> bool:
        """Whether our claims still hold for some seconds: without that, nothing may be deleted."""
        return time.monotonic() < self._valid_until - _MARGIN_S

    def admit(self, lines: Sequence[Decision]) -> Admission:
        """Claim the locations of ``lines`` and check everything again.

        Raises:
            DatabaseUnusable, ReferencesIncomplete: nothing of ``lines`` may be touched.
        """
        asked_s = time.monotonic()
        tombstones: list[Tombstone] = []
        noted: _Noted = frozenset()
        busy: dict[Location, str] = {}
        killed: set[Location] = set()
        mine = False
        # No transaction of ours is long: on SQLite all others wait for it.
        for start in range(0, len(lines), _CLAIMED_AT_ONCE):
            claim, stones, notes = self._claim(lines[start : start + _CLAIMED_AT_ONCE])
            tombstones += stones
            noted |= notes
            busy |= claim.busy
            killed |= claim.killed
            mine = mine or bool(claim.mine)
        self._valid_until = max(self._valid_until, asked_s + self._lease_ms / 1000)
        rejected = [
            ended(line, Outcome.BUSY, f"{busy[line.location]} is sweeping it")
            for line in lines
            if line.location is not None and line.location in busy
        ]
        free = [line for line in lines if line.location not in busy]
        if mine:
            self._outwait_registrations()
        self._needs = replace(self._needs, elsewhere=self._state_elsewhere())
        still, changed = self._split(free, tombstones, noted)
        admission = self._unreferenced(still, tombstones)
        return Admission(
            due=admission.due,
            rejected=(*rejected, *changed, *admission.rejected),
            killed=tuple(line for line in lines if line.location in killed),
        )

    def _outwait_registrations(self) -> None:
        """Wait for registrations that asked before the claim was there: the next reading of the references sees them.

        Those that ask from now on are refused by the hook. (SQLite has one writer at a time: there are none.)

        Raises:
            ReferencesIncomplete: one does not end.
        """
        until = time.monotonic() + _OUTWAIT_S
        before = self._registering()
        while before and (before := before & self._registering()):
            if time.monotonic() > until:
                raise ReferencesIncomplete(
                    f"A transaction that writes model versions has been open for {_OUTWAIT_S:.0f} s, so what needs "
                    "which artifacts is not known and nothing was touched: end it, and run it again"
                )
            time.sleep(_TICK_S)

    def _registering(self) -> set[Hashable]:
        return database.unfinished_writes(
            self._elsewhere or self._engine, "model_versions", names=model_registry.VERSION
        )

    def _claim(self, lines: Sequence[Decision]) -> tuple[journal.Claim, list[Tombstone], _Noted]:
        def statements(connection: Connection) -> tuple[journal.Claim, list[Tombstone], _Noted]:
            self._require_same_settings(connection)
            now_ms = database.clock_ms(connection)
            until_ms = now_ms + self._lease_ms
            claim = journal.claim(connection, lines, self._plan, owner=self._owner, now_ms=now_ms, until_ms=until_ms)
            tombstones = self._stones(connection, lines)
            anew = {_own(line) for line in lines if line.location in claim.anew}
            # Before the references are read: what is registered or held after that shows.
            self._needs, noted = self._look(connection)
            return claim, tombstones, noted | anew

        return database.written(self._engine, statements)

    def begin(
        self,
        lines: Sequence[Decision],
        action: Action,
        hide: Callable[[Location, Hide | None, int], Hide | None],
    ) -> dict[Location, str]:
        """Note, before anything of it is done, that these are being hidden or tagged.

        Args:
            lines: admitted ones.
            action: hide or tag.
            hide: what is to be remembered of the hide of a location, by what is remembered already, and the time.

        Returns:
            Those that must not be touched, and why.

        Raises:
            DatabaseUnusable: nothing was noted, and nothing may be done.
        """

        def statements(connection: Connection) -> dict[Location, Action | None]:
            now_ms = database.clock_ms(connection)
            return journal.begin(connection, lines, self._plan, action, hide, owner=self._owner, now_ms=now_ms)

        refused = database.written(self._engine, statements)
        return {
            location: _BEGUN_OTHERWISE.format(begun) if begun else TOO_MANY_MARKERS
            for location, begun in refused.items()
        }

    def _stones(self, connection: Connection, lines: Sequence[Decision]) -> list[Tombstone]:
        """The tombstones of ``lines`` as they are now, and a stand-in for each orphan that still has no row."""
        tracking = self._tracked.on(connection)
        found = tracking.tombstones(line.entity for line in lines if line.orphan is None)
        orphans = [line for line in lines if line.orphan is not None]
        return found + _still_without_rows(tracking, orphans) if orphans else found

    # Checks

    def recheck(self, lines: Sequence[Decision]) -> Admission:
        """Read stages and references once more: when the last reading is too old to act on."""
        with database.reading(self._engine) as connection:
            tombstones = self._stones(connection, lines)
            self._require_same_settings(connection)
            news = inbox.since(connection, self._noted_since_ms)
        still, changed = self._split(lines, tombstones, news.touched)
        admission = self._unreferenced(still, tombstones)
        return Admission(due=admission.due, rejected=(*changed, *admission.rejected))

    def renew(self, lines: Sequence[Decision]) -> Admission:
        """The same for all that is still to be acted on: what counts from now on as new is what comes after this."""
        self._needs = self._needs_now()
        for line in lines:
            self._read_with.pop(line.location, None)
        return self.recheck(lines)

    @property
    def outdated(self) -> bool:
        """Whether each look before a batch would read all references again: a hold was put on, or a version made."""
        return self._needs_now() != self._needs

    def _needs_now(self) -> _Needs:
        with database.reading(self._engine) as connection:
            needs, _ = self._look(connection)
        return replace(needs, elsewhere=self._state_elsewhere())

    def _look(self, connection: Connection) -> tuple[_Needs, _Noted]:
        """What this database shows of needs, and which entities were deleted or restored."""
        news = inbox.since(connection, self._noted_since_ms)
        return _Needs(registered=news.registered, holds=holds.count(connection)), news.touched

    def _state_elsewhere(self) -> object:
        return None if self._elsewhere is None else model_registry.state(self._elsewhere)

    def _unreferenced(self, lines: Sequence[Decision], tombstones: Sequence[Tombstone]) -> Admission:
        if not lines:
            return Admission(due=(), rejected=())
        wanted = {(line.entity.kind, line.entity.id, line.uri) for line in lines}
        chosen = [stone for stone in tombstones if (stone.entity.kind, stone.entity.id, stone.uri) in wanted]
        candidates = planning.Candidates(chosen, self._destination)
        # Tombstones first, references after: what was referred to in between is seen.
        found = references.read(self._tracked, self._registry, candidates)
        orphans = {line.entity.id for line in lines if line.orphan is not None}
        with self._tracked.reading() as tracking:
            owners = tracking.owners(planning.ids_in_places(chosen) | orphans)
        undone_ms: Mapping[Location, int | None] = {}
        if orphans:
            # A tombstone that is taken back shows it by its row or the intent; of an orphan the intent alone can.
            with database.reading(self._engine) as connection:
                undone_ms = journal.done(connection).undone_ms
        facts = planning.Facts(
            tombstones=chosen,
            references=found,
            owners=owners,
            destination=self._destination,
            swept_ms={},
            undone_ms=undone_ms,
            candidates=candidates,
        )
        made = planning.decisions(
            facts,
            Scope(),
            cutoff_ms=self._plan.cutoff_ms,
            include_undated=self._undated(lines),
            again=True,
            partial=any(line.needed for line in lines),
        )
        verdicts = {(line.entity.kind, line.entity.id, line.uri): line for line in made}
        pairs = [
            (line, _back(line, owners) or _why_kept(line, verdicts.get((line.entity.kind, line.entity.id, line.uri))))
            for line in lines
        ]
        return Admission(
            due=tuple(line for line, why in pairs if not why),
            rejected=tuple(ended(line, Outcome.PROTECTED, why) for line, why in pairs if why),
        )

    @staticmethod
    def _undated(lines: Sequence[Decision]) -> bool:
        # Each line passed `_same` just before: one without a date was planned without one.
        return any(line.deleted_ms is None for line in lines)

    def changed(self, lines: Sequence[Decision]) -> dict[Decision, SweepResult]:
        """Which of ``lines`` may not be touched any more: not deleted as planned, or not ours. Cheap: by key.

        The claim is asked of the database and its clock: ours stands still while the machine sleeps. Threads that ask
        at the same time are answered together, so the answer may hold more.
        """
        return self._changes.ask(lines)

    def _changed(self, lines: Sequence[Decision]) -> dict[Decision, SweepResult]:
        with database.reading(self._engine) as connection:
            tombstones = self._stones(connection, lines)
            now_ms = database.clock_ms(connection)
            held = journal.held(connection, lines, owner=self._owner, now_ms=now_ms)
            self._require_same_settings(connection)
            needs, noted = self._look(connection)
            experiments = {line.entity.experiment_id for line in lines}
            # Of an orphan the path may not tell the experiment: then it may be any that is kept.
            kept = self._tracked.on(connection).kept_experiments(experiments if all(experiments) else None)
        lost = [ended(line, Outcome.BUSY, "its claim has run out") for line in lines if line.location not in held]
        still, restored = self._split(lines, tombstones, noted)
        needs = replace(needs, elsewhere=self._state_elsewhere())
        protected = self._protected_since(still, tombstones, needs, {one.experiment_id for one in kept})
        return {result.decision: result for result in (*lost, *restored, *protected)}

    def _protected_since(
        self, lines: Sequence[Decision], tombstones: Sequence[Tombstone], needs: _Needs, kept: Collection[str]
    ) -> Sequence[SweepResult]:
        """What somebody has come to need since its references were read last: read anew, once for each change."""
        now = {line.location: _own_needs(line, needs, kept) for line in lines}
        anew = [line for line in lines if self._read_with.get(line.location, self._needs) != now[line.location]]
        if not anew:
            return ()
        admission = self._unreferenced(anew, tombstones)
        # Of what is needed nothing is remembered: another thread that asks about the same is told the same.
        self._read_with.update((line.location, now[line.location]) for line in admission.due)
        return admission.rejected

    def _require_same_settings(self, connection: Connection) -> None:
        if self._settings_ms is not None and inbox.settings_ms(connection) != self._settings_ms:
            raise ReferencesIncomplete(
                "The site's settings were changed, or a server has said which registry it uses, since the plan was "
                "made: what was left of it was not touched; run it again"
            )

    def _split(
        self, lines: Sequence[Decision], tombstones: Sequence[Tombstone], noted: _Noted
    ) -> tuple[list[Decision], list[SweepResult]]:
        stones: Mapping[tuple[str, str, str], Tombstone] = {
            (stone.entity.kind, stone.entity.id, stone.uri): stone for stone in tombstones
        }
        still: list[Decision] = []
        changed: list[SweepResult] = []
        for line in lines:
            stone = stones.get((line.entity.kind, line.entity.id, line.uri))
            why = self._why_not(line, stone) or _why_noted(line, noted)
            if why:
                changed.append(ended(line, Outcome.RESTORED, why))
            else:
                still.append(line)
        return still, changed

    def _why_not(self, line: Decision, stone: Tombstone | None) -> str:
        if stone is None and line.orphan is not None:
            return "it, or its experiment or workspace, has a row by now"
        if stone is None:
            return "restored, or its row has gone or changed, since the plan was made"
        if stone.deleted_ms is None and line.deleted_ms is not None:
            return "its row has lost its date since the plan was made"
        if stone.deleted_ms is not None and stone.deleted_ms > self._plan.cutoff_ms:
            return "restored and deleted again since the plan was made: a new grace period runs"
        return ""


def _still_without_rows(tracking: references.Tracking, lines: Sequence[Decision]) -> list[Tombstone]:
    """Stand-ins for those orphans of which no row has come, of the entity itself or of what was lost with it."""
    there = tracking.owners(line.entity.id for line in lines)
    ids = sorted({line.entity.experiment_id for line in lines})
    gone = set(tracking.unknown(HoldKind.EXPERIMENT, ids))
    lost = {line.orphan.lost for line in lines if line.orphan is not None}
    workspaces = tracking.workspaces_in_use() if leftovers.WORKSPACE in lost else set()
    return [
        leftovers.stand_in(line.entity, line.location)
        for line in lines
        if line.location is not None
        and line.orphan is not None
        and line.entity.id not in there
        and (line.orphan.lost != leftovers.EXPERIMENT or line.entity.experiment_id in gone)
        and (line.orphan.lost != leftovers.WORKSPACE or line.entity.workspace not in workspaces)
    ]


def _own_needs(line: Decision, needs: _Needs, kept: Collection[str]) -> _Needs:
    own = line.entity.experiment_id
    return replace(needs, kept=frozenset(one for one in kept if not own or one == own))


def _back(line: Decision, owners: Mapping[str, str]) -> str:
    """Of an orphan: the row that names it, if one has come while the references were read."""
    return f"{owners[line.entity.id]} has a row by now" if line.orphan and line.entity.id in owners else ""


def _why_kept(line: Decision, now: Decision | None) -> str:
    """Why a line is not due by what was read now; empty where it is. Its place is what its row says, not the plan."""
    if now is None or (now.location, now.root) != (line.location, line.root):
        return "its place, by its row, is not the one that was planned"
    if now.reason is Reason.DUE and not set(now.needed) <= set(line.needed):
        return f"more of it is needed than was planned to stay: {now.evidence}"
    return "" if now.reason is Reason.DUE else now.evidence or now.reason.sentence


def _why_noted(line: Decision, noted: _Noted) -> str:
    """A client's clock may date a new deletion early; the hook's note tells that there was one."""
    if _own(line) in noted or (inbox.Subject.EXPERIMENT, line.entity.experiment_id) in noted:
        return "restored, deleted again or first seen by the worker since the plan was made; run it again"
    return ""


def _own(line: Decision) -> tuple[inbox.Subject, str]:
    return inbox.Subject(line.entity.kind.value), line.entity.id


def ended(line: Decision, outcome: Outcome, detail: str) -> SweepResult:
    """The result of a location that nothing was done to."""
    return SweepResult(decision=line, outcome=outcome, detail=detail)
