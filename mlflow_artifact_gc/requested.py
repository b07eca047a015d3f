"""One deletion that MLflow's artifact API asks for, in a process that knows its database: a route, or a script.

Whose artifacts lie at a place is what the rows say, not the shape of the path. All of a deleted run's or logged model's
are swept; what is smaller is for MLflow to delete, as asked, unless something needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import policy, references, s3
from mlflow_artifact_gc.collecting import Asked, CommandCollection, Stores
from mlflow_artifact_gc.errors import ArtifactsKept, NotOnS3, UnreadableUri
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Entity, EntityKind, Tombstone
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.protection import Candidate, Protection

if TYPE_CHECKING:
    from mlflow_artifact_gc.session import Session

_LIKE_AN_ID: Final = re.compile(r"(?:[a-z]{1,3}-)?[0-9a-f]{32}")
WHOLE: Final = "artifact-gc-whole"
"""Behind the path of a run or logged model: all of it, or nothing. A server without us finds nothing there."""
_PAYLOAD: Final = "traces.pb"
"""What MLflow itself deletes of a trace, when it deletes the trace or has written its archive in vain."""


def delete(stores: Stores, place: Location, tell: Callable[[str], None], sign: Callable[[str], None]) -> bool:
    """Delete what lies at ``place``, if it is all of a deleted run's or logged model's.

    Args:
        stores: the databases that know whose it is.
        place: what is asked for.
        tell: takes lines for whoever looks after the process.
        sign: takes the site's database id, once it is known that somebody has opted in.

    Returns:
        Whether it is gone; else it is for MLflow to delete, as asked.

    Raises:
        ArtifactsKept: it stays, and why.
        ArtifactGcError: nothing may be touched.
    """
    with stores.opened() as opened:
        if opened is None:
            return False
        sign(opened.site.database_id)
        if place.prefix.endswith(f"{s3.MARKER_NAME}/"):
            raise ArtifactsKept(f"{place.uri} says whose the root is: it stays")
        if place.prefix.endswith(f"/{WHOLE}/"):
            if not _delete(opened, place.parent(), tell):
                raise ArtifactsKept(f"{place.parent().uri} is not all of a run's or a logged model's")
            return True
        return _delete(opened, place, tell)


def _delete(opened: Session, place: Location, tell: Callable[[str], None]) -> bool:
    segments = place.prefix.split("/")[:-1]
    with opened.tracked.reading() as tracking:
        rows = tracking.rows_of(segments)
    owners = [row for row in rows if _place(row, opened) == place]
    if owners:
        _sweep(opened, owners, place, tell)
        return True
    entities = {row.entity: [_place(one, opened) for one in rows if one.entity == row.entity] for row in rows}
    for entity, places in entities.items():
        if not any(inside is not None and inside.contains(place) for inside in places):
            raise ArtifactsKept(f"{place.uri} is not a part of what {entity} has, by its row")
    if not rows:
        _require_strange(opened, place, segments)
    if len(entities) == 1 and _is_payload(rows, place, opened):
        return False
    _require_live(opened, rows)
    if holder := _needed_by(opened, place, list(entities)):
        raise ArtifactsKept(f"{place.uri} is kept: {holder} needs it")
    return False


def _is_payload(rows: Sequence[Tombstone], place: Location, opened: Session) -> bool:
    """Whether this is all that MLflow deletes of a trace, when it deletes the trace."""
    name = place.prefix.rstrip("/").rpartition("/")[2]
    places = [_place(row, opened) for row in rows if row.entity.kind is EntityKind.TRACE]
    return name == _PAYLOAD and place.parent() in places


def _require_strange(opened: Session, place: Location, segments: Sequence[str]) -> None:
    """What no row has is known to be nobody's only where none of MLflow's roots is."""
    with opened.tracked.reading() as tracking:
        uris = tracking.experiment_uris()
    roots = [opened.destination.root] if opened.destination.root else []
    for uri, workspace in uris:
        with suppress(NotOnS3, UnreadableUri):
            roots.append(Location.parse(uri, opened.destination, workspace))
    if any(root.overlaps(place) for root in roots) or any(map(_LIKE_AN_ID.fullmatch, segments)):
        raise ArtifactsKept(f"{place.uri} is no row's, so whose it is is not known")


def _place(row: Tombstone, opened: Session) -> Location | None:
    return policy.place_of(row, opened.destination).location


def _require_live(opened: Session, rows: Sequence[Tombstone]) -> None:
    """A part of something deleted would be missing after a restore."""
    with opened.tracked.reading() as tracking:
        dead = tracking.tombstones([row.entity for row in rows])
    if dead:
        raise ArtifactsKept(f"{dead[0].entity} is deleted, and a part of it would be missing when it is restored")


def _sweep(opened: Session, owners: Sequence[Tombstone], place: Location, tell: Callable[[str], None]) -> None:
    entity = owners[0].entity
    if len({row.entity for row in owners}) > 1:
        raise ArtifactsKept(f"{place.uri} is kept: it is more than one row's")
    if entity.kind is EntityKind.TRACE:
        raise ArtifactsKept(f"{entity} goes with its experiment: run 'mlflow-artifact-gc gc'")
    with opened.tracked.reading() as tracking:
        dead = tracking.tombstones([entity])
    if not dead:
        raise ArtifactsKept(f"{entity} is live: delete it in MLflow first")
    if dead[0].deleted_ms is None:
        # To name it by its path is not to say that its date does not matter.
        raise ArtifactsKept(f"{entity} is kept: its row says not when it was deleted")
    mine = CommandCollection(opened, Asked(scope=_scope(entity), by_id=True, spare_versions=_spares(opened)), tell)
    for one in (entity, *mine.along(entity.kind, entity.id)):
        if why := mine.why_kept(one.kind, one.id):
            raise ArtifactsKept(f"{one} is kept: {why}")


def _scope(entity: Entity) -> Scope:
    if entity.kind is EntityKind.RUN:
        return Scope(run_ids=(entity.id,))
    return Scope(logged_model_ids=(entity.id,))


def _spares(opened: Session) -> bool:
    # Whoever deletes by a route has not been asked whether every version may go; an administrator has, by 'init'.
    return opened.site.action is None


def _needed_by(opened: Session, place: Location, entities: Sequence[Entity]) -> str:
    owners = [(entity.id, entity.experiment_id) for entity in entities] or [(place.prefix, "")]
    candidates = [Candidate(id_, place, experiment_id) for id_, experiment_id in owners]
    protection = Protection(candidates, opened.destination)
    found = references.read(opened.tracked, opened.registry)
    with opened.tracked.reading() as tracking:
        # Of what is live, the others' keep tags say nothing.
        found += tracking.keep_tags_of(entities)
    return next((one.holder for one in found if protection.protected_by(one)), "")
