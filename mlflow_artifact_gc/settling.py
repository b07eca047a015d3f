"""Looks at what is hidden or tagged: what has gone is written down, and what is needed again is taken back.

S3 removes what is tagged, or what was hidden, by itself and asks nobody. So whatever is restored, registered or kept
meanwhile has to be taken back before that: at once when the worker hears of it, and at each run of ``gc``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import agenda, database, expiring, journal, notices, planning, processes, s3, surveying
from mlflow_artifact_gc.errors import ArtifactGcError, DatabaseUnusable, RootRefused, StorageError
from mlflow_artifact_gc.expiring import Ending, Touched
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.hides import CLOCKS_MS
from mlflow_artifact_gc.journal import State
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Outcome, Reason
from mlflow_artifact_gc.ownership import Roots, Standing
from mlflow_artifact_gc.restoring import Restored, Restorer
from mlflow_artifact_gc.session import chunks, decide

if TYPE_CHECKING:
    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.s3 import S3Client
    from mlflow_artifact_gc.session import Session

_logger = logging.getLogger("mlflow_artifact_gc.worker")

_LEASE_MS: Final = 60_000
_WEEK_MS: Final = 7 * 24 * 3_600_000
_KEPT_MS: Final = 6 * 3_600_000
_PAUSED_MS: Final = 5 * 60_000


_RESTORED: Final = Ending(state=State.CANCELLED, detail="restored")


class ClaimLost(ArtifactGcError):
    """Another process has taken up this location meanwhile: it was left to that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """What was done: how many locations S3 has emptied, and what was taken back or could not be, and why.

    ``paused``: why some of what waits was not looked at, a sentence for each reason.
    """

    arrived: int = 0
    restored: tuple[Restored, ...] = ()
    problems: tuple[str, ...] = ()
    paused: tuple[str, ...] = ()


@dataclass(kw_only=True, slots=True)
class Settler:
    """Settles what is hidden or tagged, for one site.

    ``grace_ms`` is when what was deleted anew comes up again.
    """

    session: Session
    client: Callable[[], S3Client]
    grace_ms: int
    concurrency: int
    stopped: Callable[[], bool]
    _owner: str = field(default_factory=processes.identity)

    def settle(self, *, everything: bool = False) -> Settled:
        """Look at what has come up, or at ``everything`` that is hidden or tagged.

        Raises:
            DatabaseUnusable: what was taken back and not written down is taken back again.
            ReferencesIncomplete: only what is live again was taken back.
            RootRefused: as ``take_back`` does.
        """
        with database.reading(self.session.engine) as connection:
            now_ms = database.clock_ms(connection)
            found = expiring.touched(connection, now_ms=now_ms, everything=everything)
        if not found:
            return Settled()
        self._require_endpoint()
        # What is live again needs no further reason: it does not wait until everything else can be read.
        live = self._live(found)
        back = self.take_back(list(live.values()), dict.fromkeys(live, _RESTORED))
        found = [one for one in found if one.location not in live]
        lines = {
            line.location: line
            for line in decide(self.session, [one.entity for one in found], now_ms - self.grace_ms)
            if line.location
        }
        with self.session.tracked.reading() as tracking:
            there = tracking.owners(one.entity.id for one in found if one.location not in lines)
        endings: dict[Location, Ending] = {}
        for one in found:
            if end := self._ending(one, lines.get(one.location), there, now_ms):
                endings[one.location] = end
        needed = self.take_back([one for one in found if one.location in endings], endings)
        left = [one for one in found if one.location not in endings and (one.look_ms or 0) <= now_ms]
        self._put_off([one for one in left if one.state is not State.WAITING], now_ms)
        arrived, paused = self._look([one for one in left if one.state is State.WAITING])
        return Settled(
            arrived=arrived,
            paused=paused,
            restored=(*back.restored, *needed.restored),
            problems=(*back.problems, *needed.problems),
        )

    def _live(self, found: Sequence[Touched]) -> dict[Location, Touched]:
        """Those whose rows are there and are not deleted. Without its row nobody can have restored it."""
        dead: set[Entity] = set()
        there: set[str] = set()
        for some in chunks(found):
            with self.session.tracked.reading() as tracking:
                dead.update(stone.entity for stone in tracking.tombstones([one.entity for one in some]))
                there.update(tracking.owners(one.entity.id for one in some))
        gone = {(entity.kind, entity.id) for entity in dead}
        return {
            one.location: one
            for one in found
            if one.entity.id in there and (one.entity.kind, one.entity.id) not in gone
        }

    def _put_off(self, unfinished: Sequence[Touched], now_ms: int) -> None:
        """What is not finished and cannot be now has no date yet: without one it would be looked at at every turn."""
        later = {
            one.location: now_ms + _KEPT_MS if one.state is State.FAILED else one.since_ms + self.grace_ms
            for one in unfinished
            if one.state is State.FAILED or one.since_ms + self.grace_ms > now_ms
        }
        with database.writing(self.session.engine) as connection:
            expiring.put_off(connection, later)

    def _ending(self, one: Touched, line: Decision | None, there: Mapping[str, str], now_ms: int) -> Ending | None:
        """What becomes of it once it is taken back; None: it is garbage as before."""
        if line is None:
            # Its row is there, and names another place by now.
            return _RESTORED if one.entity.id in there else None
        if line.reason in (Reason.PROTECTED, Reason.NESTED):
            return Ending(state=State.PENDING, look_ms=now_ms + _KEPT_MS, detail=agenda.KEPT + line.evidence)
        again = line.deleted_ms is not None and line.deleted_ms > (one.deleted_ms or 0)
        if again or one.seen_ms > one.acted_from_ms:
            since_ms = max(line.deleted_ms or 0, one.since_ms)
            return Ending(state=State.PENDING, look_ms=since_ms + self.grace_ms)
        return None

    # Taking back

    def take_back(self, found: Sequence[Touched], endings: Mapping[Location, Ending]) -> Settled:
        """Take back what was done to locations, each of which then ends as ``endings`` has it.

        Where a root's marker is gone, or ahead of this database, our tags and delete markers are taken off what is
        there, which harms nobody; whether that is all of it is not known, so that it is a problem, and tried again.

        Raises:
            DatabaseUnusable: what was taken back and not written down is taken back again.
            RootRefused: this is not the S3 in which something was hidden or tagged; nothing was done.
        """
        if not found:
            return Settled()
        self._require_endpoint()
        by_location = {one.location: one for one in found}
        with database.writing(self.session.engine) as connection:
            now_ms = database.clock_ms(connection)
            until_ms = now_ms + _LEASE_MS
            mine = expiring.claim(connection, list(by_location), owner=self._owner, now_ms=now_ms, until_ms=until_ms)
        with database.reading(self.session.engine) as connection:
            # As they are now that nobody else has them.
            claimed = [one for one in expiring.claimed_by(connection, self._owner) if one.location in mine]
        surveyor = surveying.Surveyor(self.client(), self.stopped)
        busy = sorted(by_location.keys() - mine)
        problems = [f"{location.uri}: another process is at work on it" for location in busy]
        restored: list[Restored] = []
        with ThreadPoolExecutor(self.concurrency) as executor, ThreadPoolExecutor(self.concurrency) as requests:
            restorer = Restorer(
                client=self.client(),
                surveyor=surveyor,
                tag=Tag.of_site(self.session.site.expiry_tag),
                requests=requests,
                keep=self._keep,
            )
            roots = standings(self.session, self.client(), [one.location for one in claimed], requests)

            def tried(one: Touched) -> Restored | ArtifactGcError:
                return _tried(restorer, one, roots[one.location])

            for one, done in zip(claimed, executor.map(tried, claimed), strict=True):
                standing = roots[one.location]
                problem = self._note(one, done, endings[one.location], standing)
                if isinstance(done, Restored) and standing.outcome is None:
                    restored.append(done)
                elif isinstance(done, Restored) and done.back:
                    # What is not there may be elsewhere.
                    restored.append(replace(done, gone=0, gone_keys=()))
                if problem:
                    problems.append(problem)
                    _logger.error("Not taken back: %s", problem)
        return Settled(restored=tuple(restored), problems=tuple(problems))

    def _require_endpoint(self) -> None:
        """Elsewhere, in a bucket of the same name, all that waits would seem to have gone."""
        with database.reading(self.session.engine) as connection:
            known = journal.proven_endpoints(connection)
        endpoint = s3.endpoint_name(self.client())
        if endpoint not in known:
            raise RootRefused(
                f"This process reaches S3 at {endpoint}, and what is hidden or tagged was found at "
                f"{', '.join(sorted(known)) or 'no known place'}: nothing was touched. Set MLFLOW_S3_ENDPOINT_URL as "
                "the site has it; only if S3 was moved, run 'mlflow-artifact-gc init --adopt'"
            )

    def _keep(self, location: Location) -> None:
        with database.writing(self.session.engine) as connection:
            until_ms = database.clock_ms(connection) + _LEASE_MS
            if not expiring.renew(connection, location, owner=self._owner, until_ms=until_ms):
                raise ClaimLost

    def _note(self, one: Touched, done: Restored | ArtifactGcError, end: Ending, standing: Standing) -> str:
        why = _problem(one, done, standing)
        with database.writing(self.session.engine) as connection:
            now_ms = database.clock_ms(connection)
            if why:
                expiring.try_again(connection, one.location, why, owner=self._owner, now_ms=now_ms)
            else:
                expiring.take_back(connection, one, end, owner=self._owner, now_ms=now_ms)
        if isinstance(done, Restored) and one.entity.kind is EntityKind.RUN and not why:
            told = notices.taken_back(
                done.gone,
                now_ms,
                hidden=done.hidden,
                undone=end.undone_ms is not None,
                holder=end.detail.removeprefix(agenda.KEPT) if end.detail.startswith(agenda.KEPT) else "",
                until_ms=None if end.detail.startswith(agenda.KEPT) else end.look_ms,
            )
            with database.writing(self.session.engine) as connection:
                notices.write(connection, {one.entity.id: told})
        return why

    # Looking

    def _look(self, waiting: Sequence[Touched]) -> tuple[int, tuple[str, ...]]:
        """List again what waits: what is empty has gone, and what was written to since is garbage anew.

        Returns how many locations are empty, and why others were not looked at.
        """
        acted = {one.location: one for one in waiting}
        surveyor = surveying.Surveyor(self.client(), self.stopped) if waiting else None
        arrived = 0
        refused: dict[Location, str] = {}
        for chunk in chunks(list(acted)):
            if surveyor is None or self.stopped():
                break
            tasks = planning.listing_tasks(tuple(chunk), frozenset())
            found: dict[Location, surveying.Found] = {}
            with ThreadPoolExecutor(self.concurrency) as executor:
                for some in executor.map(lambda task: _remaining(surveyor, task), tasks):
                    found |= some
                # After the listings: in another bucket of that name all that waits would seem to have gone.
                found_at = standings(self.session, self.client(), chunk, executor)
            not_ours = {place: standing.detail for place, standing in found_at.items() if standing.outcome}
            self._pause(not_ours)
            refused |= not_ours
            arrived += self._note_looks({place: one for place, one in found.items() if place not in not_ours}, acted)
        return arrived, tuple(dict.fromkeys(refused.values()))

    def _pause(self, refused: Mapping[Location, str]) -> None:
        if not refused:
            return
        for why in dict.fromkeys(refused.values()):
            _logger.error("Not looked at, what is hidden or tagged: %s", why)
        with database.writing(self.session.engine) as connection:
            later_ms = database.clock_ms(connection) + _PAUSED_MS
            expiring.lock(connection, refused)
            expiring.look_later(
                connection, {place: (later_ms, f"{expiring.UNSEEN}{refused[place]}") for place in refused}
            )

    def _note_looks(self, found: Mapping[Location, surveying.Found], acted: Mapping[Location, Touched]) -> int:
        empty = [location for location, one in found.items() if one.empty]
        with database.writing(self.session.engine) as connection:
            now_ms = database.clock_ms(connection)
            fresh = [
                location
                for location, one in found.items()
                if not one.empty and one.objects and _written_since(one, acted[location])
            ]
            # Something in it may lack the tag: it was overwritten in the very minutes of the sweep, or too young then.
            stale = [
                location
                for location, one in found.items()
                if location not in fresh and one.objects and _overdue(acted[location], now_ms)
            ]
            expiring.lock(connection, found)
            expiring.arrived(connection, empty, now_ms)
            expiring.reopen(connection, fresh, grace_ms=self.grace_ms, now_ms=now_ms)
            expiring.reopen(connection, stale, grace_ms=0, now_ms=now_ms)
            left = {
                location: (_next_look_ms(acted[location], now_ms), _left(one))
                for location, one in found.items()
                if not one.empty and location not in (*fresh, *stale)
            }
            expiring.look_later(connection, left)
        runs = {
            acted[location].entity.id: notices.arrived(acted[location].objects, acted[location].size_bytes, now_ms)
            for location in empty
            if acted[location].entity.kind is EntityKind.RUN
        }
        with database.writing(self.session.engine) as connection:
            notices.write(connection, runs)
        return len(empty)


def standings(
    session: Session, client: S3Client, places: Iterable[Location], executor: Executor
) -> dict[Location, Standing]:
    """Of each place in which something was done before, whether it is still the same, by its root's marker."""
    roots = Roots(
        engine=session.engine, client=client, site=session.site, destination=session.destination, executor=executor
    )
    return roots.around(places)


def _written_since(found: surveying.Found, one: Touched) -> bool:
    """Whether a current object came after the last sweep; on some servers a tag moves an object's date."""
    if one.action is Action.HIDE:
        return True  # None was shown then.
    return found.youngest_current_ms is not None and found.youngest_current_ms > one.acted_ms + CLOCKS_MS


def _overdue(one: Touched, now_ms: int) -> bool:
    """Whether the rule should have removed it long ago."""
    return one.action is Action.TAG and now_ms - one.acted_ms > _WEEK_MS


def _next_look_ms(one: Touched, now_ms: int) -> int:
    """After one day, two, four, and then each week: a rule may say seven days as well as one."""
    return now_ms + min(max(now_ms - one.acted_ms, journal.NEXT_LOOK_MS), _WEEK_MS)


def _left(found: surveying.Found) -> str:
    parts = [
        (found.objects, "object"),
        (found.versions, "noncurrent version"),
        (found.markers, "delete marker"),
        (len(found.uploads), "unfinished upload"),
    ]
    words = ", ".join(f"{count:,} {what}{'' if count == 1 else 's'}" for count, what in parts if count)
    return f"still there at the last look: {words}; the bucket's lifecycle rule removes them"


def _tried(restorer: Restorer, one: Touched, standing: Standing) -> Restored | ArtifactGcError:
    if standing.outcome is Outcome.FOREIGN:
        return RootRefused(standing.detail)
    try:
        return restorer.restore(one)
    except (StorageError, ClaimLost, DatabaseUnusable) as error:
        return error


def _problem(one: Touched, done: Restored | ArtifactGcError, standing: Standing) -> str:
    if standing.outcome is not None:
        return f"{one.location.uri}: {standing.detail}"
    if isinstance(done, ArtifactGcError):
        return f"{one.location.uri}: {done}"
    if done.complete:
        return ""
    first = f", {done.failures[0].key!r} with {done.failures[0].code}" if done.failures else ""
    return f"{one.location.uri}: {len(done.failures) + done.unknown:,} objects could not be taken back{first}"


def _remaining(surveyor: surveying.Surveyor, task: planning.ListingTask) -> Mapping[Location, surveying.Found]:
    try:
        return surveyor.remaining(task)
    except (StorageError, surveying.Stopped):
        return {}
