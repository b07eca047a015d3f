"""How much of a kept location lies beside what is needed of it: a version may need only a run's ``artifacts/model``.

It is told; what lies beside goes with ``gc --partial`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_artifact_gc.errors import StorageError

if TYPE_CHECKING:
    from mlflow_artifact_gc.locations import Location
    from mlflow_artifact_gc.surveying import Surveyor


@dataclass(frozen=True, kw_only=True, slots=True)
class Partly:
    """A location of which only ``parts`` are needed: what it holds, and how much of that lies beside them."""

    location: Location
    parts: tuple[Location, ...]
    objects: int = 0
    size_bytes: int = 0
    objects_beside: int = 0
    bytes_beside: int = 0


def measure(
    surveyor: Surveyor, needed: Mapping[Location, Sequence[Location]], *, concurrency: int
) -> tuple[Partly, ...]:
    """List each of these locations, the largest rest first; what cannot be listed is left out.

    Raises:
        Stopped: the caller was asked to stop.
    """

    def one(location: Location) -> Partly | None:
        parts = tuple(needed[location])
        objects = size_bytes = objects_beside = bytes_beside = 0
        try:
            for entry in surveyor.entries(location):
                objects += 1
                size_bytes += entry.size_bytes
                if not any(part.holds(entry.key) for part in parts):
                    objects_beside += 1
                    bytes_beside += entry.size_bytes
        except StorageError:
            return None
        return Partly(
            location=location,
            parts=parts,
            objects=objects,
            size_bytes=size_bytes,
            objects_beside=objects_beside,
            bytes_beside=bytes_beside,
        )

    with ThreadPoolExecutor(concurrency) as executor:
        found = [partly for partly in executor.map(one, needed) if partly is not None]
    return tuple(sorted(found, key=lambda partly: (-partly.bytes_beside, partly.location)))
