"""One batch of admitted locations: look at what is there, find out where we stand, act.

Nothing is touched, and no marker is put, before every listing of the batch is there and every marker around its
locations was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import planning
from mlflow_artifact_gc.acting import Actor, Done, Sight
from mlflow_artifact_gc.errors import StorageError
from mlflow_artifact_gc.fence import ended
from mlflow_artifact_gc.model import Decision, Outcome, SweepResult
from mlflow_artifact_gc.ownership import Roots, Standing
from mlflow_artifact_gc.s3 import Versioning
from mlflow_artifact_gc.surveying import Room, Surveyor

if TYPE_CHECKING:
    from mlflow_artifact_gc.locations import Location

_SPARED: Final = (
    "bucket {} keeps versions (or does not say), and nobody said what to do with them: run "
    "'mlflow-artifact-gc init --action purge' to have every version purged, or 'gc'"
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What lies in the locations of a batch, and whose the roots and the folders around them are."""

    sights: tuple[Sight, ...]
    roots: Mapping[Location, Standing]
    around: Mapping[Location, Standing]

    @cached_property
    def occupied(self) -> frozenset[Location]:
        """The locations in which something is."""
        return frozenset(location for sight in self.sights for location in sight.occupied)

    @cached_property
    def unseen(self) -> frozenset[Location]:
        """The locations whose listing failed or was stopped: nothing is known of them."""
        return frozenset(location for sight in self.sights if sight.error for location in sight.task.locations)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """Where we stand: what may be acted on, whether its root is proven, and how it ended for the others."""

    ready: Mapping[Location, Decision]
    proven: Mapping[Location, bool]
    refused: tuple[SweepResult, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Lines that the fence has admitted. ``others`` are places of rows that may prove a root to be the right one."""

    due: Sequence[Decision]
    actor: Actor
    surveyor: Surveyor
    roots: Roots
    executor: Executor
    dense: frozenset[Location]
    others: tuple[Location, ...]
    spare_versions: bool = False

    def look(self) -> Seen:
        """List every location, and read the markers while the listings are under way. Touches nothing."""
        places = tuple(line.location for line in self.due if line.location)
        room = Room()
        tasks = planning.listing_tasks(places, self.dense, planning.needed_parts(self.due))
        uploads = self.surveyor.shared_uploads(planning.listed_in_parts(tasks), self.executor)
        looks = [self.executor.submit(self.actor.look, task, room, uploads) for task in tasks]
        try:
            around = {line.location: self._around(line) for line in self.due if line.location}
            compared = {root: self._compared(root) for root in _by_root(self.due)}
            return Seen(sights=tuple(look.result() for look in looks), roots=compared, around=around)
        except BaseException:
            for look in looks:
                look.cancel()
            raise

    def stand(self, seen: Seen) -> Ground:
        """Prove the roots and put their markers, where that is allowed.

        Raises:
            DatabaseUnusable: nothing of the batch may be touched.
        """
        ready: dict[Location, Decision] = {}
        proven: dict[Location, bool] = {}
        refused: list[SweepResult] = []
        for root, lines in _by_root(self.due).items():
            standing = self._standing(root, lines, seen)
            for location, line in lines.items():
                why = standing if standing.outcome else seen.around[location]
                if why.outcome:
                    refused.append(ended(line, why.outcome, why.detail))
                else:
                    ready[location], proven[location] = line, standing.proven
        return Ground(ready=ready, proven=proven, refused=tuple(refused))

    def begin(self, seen: Seen, ground: Ground) -> Ground:
        """Note what is about to be done; what must not be begun is refused.

        Raises:
            DatabaseUnusable: nothing of the batch may be touched.
        """
        # Elsewhere nothing will be done but to look: what is begun is looked for at a place that was proven.
        refused = self.actor.begin(seen.sights, [line for one, line in ground.ready.items() if ground.proven[one]])
        return replace(
            ground,
            ready={location: line for location, line in ground.ready.items() if location not in refused},
            refused=(
                *ground.refused,
                *(ended(ground.ready[location], Outcome.PAUSED, why) for location, why in refused.items()),
            ),
        )

    def act(self, seen: Seen, ground: Ground) -> list[Future[Done]]:
        """Begin to act on what is ready, one listing's locations at a time."""
        return [
            self.executor.submit(self.actor.act, sight, lines, ground.proven)
            for sight in seen.sights
            if (lines := [ground.ready[one] for one in sight.task.locations if one in ground.ready])
        ]

    # Whose are these places?

    def _standing(self, root: Location, lines: Mapping[Location, Decision], seen: Seen) -> Standing:
        compared = seen.roots[root]
        if compared.outcome is not None:
            return compared
        ours = [location for location in lines if seen.around[location].outcome is None]
        if not ours:
            # In a folder of another database our own marker would stop its owner.
            return compared
        # What lies in another database's folders proves nothing about this root.
        occupied = not seen.occupied.isdisjoint(ours)
        if not occupied and not seen.unseen.isdisjoint(lines):
            # A listing that failed proves nothing, and says so itself.
            return compared
        return _or_paused(lambda: self.roots.standing(root, self.others, occupied=occupied))

    def _compared(self, root: Location) -> Standing:
        def ask() -> Standing:
            # Whether we have the rights that verifying takes, before anything is changed.
            versioning = self.surveyor.versioning(root.bucket)
            if self.spare_versions and versioning is not Versioning.NEVER:
                return Standing(outcome=Outcome.PAUSED, detail=_SPARED.format(root.bucket))
            if why := self.actor.unfit(root.bucket):
                return Standing(outcome=Outcome.PAUSED, detail=why)
            return self.roots.compared(root)

        return _or_paused(ask)

    def _around(self, line: Decision) -> Standing:
        root = line.root
        return _or_paused(lambda: self.roots.standing_around(root, line)) if root else Standing()


def _or_paused(ask: Callable[[], Standing]) -> Standing:
    try:
        return ask()
    except StorageError as error:
        return Standing(outcome=Outcome.PAUSED, detail=str(error))


def _by_root(lines: Iterable[Decision]) -> dict[Location, dict[Location, Decision]]:
    found: dict[Location, dict[Location, Decision]] = {}
    for line in lines:
        if line.root is not None and line.location is not None:
            found.setdefault(line.root, {})[line.location] = line
    return found
