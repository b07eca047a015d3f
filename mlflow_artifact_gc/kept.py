"""What stays in logged models of deleted runs, because MLflow still shows them; in MLflow 3 most bytes are there."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import database, lease, planning, policy, surveying
from mlflow_artifact_gc.errors import StorageError

if TYPE_CHECKING:
    from mlflow_artifact_gc.references import KeptModels
    from mlflow_artifact_gc.s3 import S3Client
    from mlflow_artifact_gc.session import Session

_OLD_MS: Final = 24 * 3_600_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """How many models, and how much they held when that was last measured (None: never)."""

    models: int
    objects: int | None = None
    size_bytes: int | None = None
    measured_ms: int | None = None

    def is_old(self, now_ms: int) -> bool:
        """Whether there are some, and nobody has measured them for a day."""
        return bool(self.models) and (self.measured_ms is None or now_ms - self.measured_ms > _OLD_MS)


def known(session: Session, models: KeptModels) -> Kept:
    """As it was last measured."""
    if not models.count:
        return Kept(models=0)
    with database.reading(session.engine) as connection:
        told = lease.standing(connection)
    return Kept(models=models.count, objects=told.kept_objects, size_bytes=told.kept_bytes, measured_ms=told.kept_ms)


def measure(
    session: Session,
    models: KeptModels,
    connected: Callable[[], S3Client],
    *,
    concurrency: int,
    stopped: Callable[[], bool],
    note: bool = True,
) -> Kept:
    """List them and ``note`` the sums for ``status``; what cannot be listed, or is too much, is left as it was known.

    Raises:
        DatabaseUnusable: the sums cannot be noted.
    """
    if not models.count or models.count > len(models.some):
        return known(session, models)
    places = [policy.place_of(model, session.destination).location for model in models.some]
    found = tuple(dict.fromkeys(place for place in places if place))
    tasks = planning.listing_tasks(found, frozenset())
    try:
        surveyor = surveying.Surveyor(connected(), stopped)
        with ThreadPoolExecutor(concurrency) as executor:
            sizes = surveying.measure(surveyor, tasks, executor, lambda _done: None, strict=True)
    except (StorageError, surveying.Stopped):
        return known(session, models)
    objects = sum(count for count, _ in sizes.values())
    size_bytes = sum(size for _, size in sizes.values())
    if not note:
        return Kept(models=models.count, objects=objects, size_bytes=size_bytes)
    with database.writing(session.engine) as connection:
        lease.measured(connection, objects=objects, size_bytes=size_bytes)
    return known(session, models)
