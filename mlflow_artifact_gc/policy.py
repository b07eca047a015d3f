"""Keep or sweep, and the one reason why. Pure, short, and the heart of it: a case and a test for each reason."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mlflow_artifact_gc.errors import NotOnS3, Refused, UnreadableUri
from mlflow_artifact_gc.locations import WORKSPACES_FOLDER, Destination, Location, proxied_host
from mlflow_artifact_gc.model import Entity, EntityKind, Plan, Reason, Tombstone
from mlflow_artifact_gc.quantities import show_count, show_size

_SHAPES: Final = {
    EntityKind.RUN: ("{id}", "artifacts"),
    EntityKind.LOGGED_MODEL: ("models", "{id}", "artifacts"),
    EntityKind.TRACE: ("traces", "{id}", "artifacts"),
}
"""How MLflow ends the URIs of its entities (sqlalchemy_store.py, every version from 2.0 on). Only such a prefix is
swept: it cannot be an experiment's, a root's or a truncated one."""


_LONGEST_KEY: Final = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """Which tombstones a command may touch. Empty tuples and None: all."""

    run_ids: tuple[str, ...] = ()
    experiment_ids: tuple[str, ...] = ()
    logged_model_ids: tuple[str, ...] = ()
    workspace: str | None = None

    @property
    def by_id(self) -> bool:
        return bool(self.run_ids or self.experiment_ids or self.logged_model_ids)

    def covers(self, entity: Entity) -> bool:
        if self.workspace is not None and entity.workspace != self.workspace:
            return False
        return not self.by_id or self.names(entity) or entity.experiment_id in self.experiment_ids

    def covers_experiment(self, experiment_id: str, workspace: str) -> bool:
        """Whether the experiment's own row may go: not where only runs or models were named."""
        if self.workspace is not None and workspace != self.workspace:
            return False
        return not self.by_id or experiment_id in self.experiment_ids

    def names(self, entity: Entity) -> bool:
        """Whether the entity itself, not only its experiment, was named."""
        ids = {EntityKind.RUN: self.run_ids, EntityKind.LOGGED_MODEL: self.logged_model_ids}
        return entity.id in ids.get(entity.kind, ())


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a tombstone's artifacts lie, or why that cannot be said: one of ``location`` and ``problem`` is set."""

    location: Location | None = None
    problem: Reason | None = None
    evidence: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """What ``decide`` must know beside the tombstone; each string names what was found, empty if nothing was."""

    protected_by: str = ""
    nested_with: str = ""
    swept_before: bool = False
    waits: bool = False
    undone: bool = False
    take_undated: bool = False


def place_of(tombstone: Tombstone, destination: Destination) -> Place:  # noqa: PLR0911 - one return a problem
    """The location of a tombstone, if its URI has the shape that MLflow gives to such artifacts."""
    if tombstone.uri.partition(":")[0].lower() in ("s3a", "s3n"):
        return Place(problem=Reason.NOT_ON_S3, evidence="MLflow writes to s3: only")
    try:
        if host := proxied_host(tombstone.uri):
            return Place(problem=Reason.OTHER_SERVER, evidence=host)
        location = Location.parse(tombstone.uri, destination, tombstone.entity.workspace)
    except NotOnS3 as error:
        return Place(problem=Reason.NOT_ON_S3, evidence=str(error))
    except UnreadableUri as error:
        return Place(problem=Reason.UNREADABLE, evidence=str(error))
    if len(location.prefix.encode()) > _LONGEST_KEY:
        return Place(problem=Reason.UNREADABLE, evidence=f"its prefix is longer than S3's {_LONGEST_KEY} bytes")
    shape = "/".join(_SHAPES[tombstone.entity.kind]).format(id=tombstone.entity.id)
    if not tombstone.entity.id or "/" in tombstone.entity.id or not f"/{location.prefix}".endswith(f"/{shape}/"):
        return Place(problem=Reason.LAYOUT, evidence=f"expected …/{shape}/, found {location.uri}")
    return Place(location=location)


def decide(  # noqa: PLR0911 - one return a reason is what makes it readable
    tombstone: Tombstone, place: Place, found: Circumstances, cutoff_ms: int
) -> tuple[Reason, str]:
    """Keep or sweep a tombstone, and the evidence. What is not known keeps it."""
    if place.location is None:
        return place.problem or Reason.UNREADABLE, place.evidence
    if found.swept_before:
        return Reason.SWEPT_BEFORE, ""
    # Before the dates, so that whoever asks learns what will stay even after them.
    if found.protected_by:
        return Reason.PROTECTED, found.protected_by
    if found.nested_with:
        return Reason.NESTED, found.nested_with
    if found.waits:
        return Reason.WAITING, ""
    if found.undone:
        return Reason.UNDONE, ""
    if tombstone.deleted_ms is None and not found.take_undated:
        return Reason.UNDATED, ""
    if tombstone.deleted_ms is not None and tombstone.deleted_ms > cutoff_ms:
        return Reason.GRACE, ""
    return Reason.DUE, ""


def root_of(location: Location, tombstone: Tombstone, destination: Destination) -> Location:
    """The root that a location lies under: the longest known one, else what its experiment's location tells.

    An experiment location that ends in the experiment's id was made by a server from its artifact root
    (``<root>/<id>`` or ``<root>/workspaces/<name>/<id>``): the root is what is above. A location outside its
    experiment's is its own parent's.
    """
    entity = tombstone.entity
    known = _roots_of(tombstone.experiment_uri, entity.experiment_id, entity.workspace, destination)
    containing = [root for root in known if root.contains(location)]
    if containing:
        return max(containing, key=lambda root: len(root.prefix))
    return home_of(location, tombstone.entity.kind)


def root_of_all(head: Location, location: Location, tombstone: Tombstone, destination: Destination) -> Location | None:
    """``root_of``, for every location ``<head>/<id>/artifacts/`` of such rows; None where they may differ in it."""
    entity = tombstone.entity
    known = _roots_of(tombstone.experiment_uri, entity.experiment_id, entity.workspace, destination)
    root = root_of(location, tombstone, destination)
    inside = any(head.contains(one) and one != head for one in known)
    return root if root.contains(head) and not inside else None


def home_of(location: Location, kind: EntityKind) -> Location:
    """The experiment's location that an entity's own tells."""
    return location.parent(len(_SHAPES[kind]))


@lru_cache(maxsize=4096)
def _roots_of(uri: str, experiment_id: str, workspace: str, destination: Destination) -> tuple[Location, ...]:
    """The destination's root, and what an experiment's location tells: the same for all of its entities."""
    known = [destination.root] if destination.root else []
    with suppress(NotOnS3, UnreadableUri):
        known.append(server_root(Location.parse(uri, destination, workspace), experiment_id, workspace))
    return tuple(known)


def root_of_experiment(uri: str, experiment_id: str, workspace: str, destination: Destination) -> Location | None:
    """The root that an experiment's location tells, as for ``root_of``; None where MLflow writes nothing to S3."""
    try:
        foreign = proxied_host(uri) or uri.partition(":")[0].lower() in ("s3a", "s3n")
        return None if foreign else server_root(Location.parse(uri, destination, workspace), experiment_id, workspace)
    except (NotOnS3, UnreadableUri):
        return None


def server_root(experiment: Location, experiment_id: str, workspace: str) -> Location:
    """The artifact root that a server made the experiment's location from, or that location where none did."""
    segments = experiment.prefix.split("/")[:-1]
    if not segments or segments[-1] != experiment_id:
        return experiment
    scoped = segments[-3:-1] == [WORKSPACES_FOLDER, workspace]
    return experiment.parent(3 if scoped else 1)


def brakes(plan: Plan) -> list[str]:
    """Why ``plan`` must not be carried out as it is: a sentence with both numbers and the flag for each brake.

    A limit on objects or bytes that were not measured is a brake that trips.
    """
    limits, totals = plan.limits, plan.totals
    tripped: list[str] = []
    if totals.due > limits.share_from_locations and totals.due > limits.max_share * plan.entity_rows:
        tripped.append(
            f"{totals.due:,} locations are {totals.due / max(plan.entity_rows, 1):.0%} of {_whole(plan)}, more than "
            f"--max-share {limits.max_share:g} allows"
        )
    if limits.max_locations is not None and totals.due > limits.max_locations:
        tripped.append(f"{totals.due:,} locations are more than --max-locations {limits.max_locations:,} allows")
    if limits.max_objects is not None and (totals.due_objects is None or totals.due_objects > limits.max_objects):
        found = "An unknown number of" if totals.due_objects is None else show_count(totals.due_objects)
        tripped.append(f"{found} objects are more than --max-objects {limits.max_objects:,} allows")
    if limits.max_bytes is not None and (totals.due_bytes is None or totals.due_bytes > limits.max_bytes):
        found, allowed = show_size(totals.due_bytes), show_size(limits.max_bytes)
        if found == allowed:
            found, allowed = f"{show_count(totals.due_bytes)} B", f"{limits.max_bytes:,} B"
        tripped.append(f"{found} are more than --max-bytes {allowed} allows")
    return tripped


def _whole(plan: Plan) -> str:
    if plan.of_orphans:
        return f"the {plan.entity_rows:,} prefixes of runs, models and traces that were found under the roots"
    return f"the database's {plan.entity_rows:,} runs, models and traces"


def require_within_brakes(plan: Plan) -> None:
    """Raises Refused when a brake trips."""
    tripped = brakes(plan)
    if tripped:
        raise Refused("Refused, and nothing was touched: " + "; ".join(tripped) + ". Raise the limit to go on")
