"""What no row accounts for: what is no longer there, and when such a prefix may go. Pure.

An orphan has no row that could say where it lies, so its path says it; from that a stand-in for the row is made, and
every rule that guards a tombstone's location guards an orphan's by the same code.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Decision, Entity, EntityKind, Reason, Tombstone
from mlflow_artifact_gc.policy import home_of
from mlflow_artifact_gc.quantities import show_duration, show_instant

_WHAT: Final = {EntityKind.RUN: "run", EntityKind.LOGGED_MODEL: "logged model", EntityKind.TRACE: "trace"}
_IDS: Final = {
    EntityKind.RUN: re.compile(r"[0-9a-f]{32}"),
    EntityKind.LOGGED_MODEL: re.compile(r"m-[0-9a-f]{32}"),
    EntityKind.TRACE: re.compile(r"(?:tr-)?[0-9a-f]{32}"),
}
EXPERIMENT: Final = "experiment"
WORKSPACE: Final = "workspace"


def lost(entity: Entity, experiments: Collection[str], workspaces: Collection[str]) -> tuple[str, str]:
    """What is no longer there of an entity without a row, and the evidence.

    Args:
        entity: as its path tells it; its experiment and workspace may be empty, where the path does not.
        experiments: the ids of those that are there, live or deleted.
        workspaces: the names of those that are there.
    """
    what = f"{_WHAT[entity.kind]} {entity.id}"
    if entity.workspace not in workspaces:
        return WORKSPACE, f"there is no workspace {entity.workspace}, and no {what}"
    if entity.experiment_id and entity.experiment_id not in experiments:
        return EXPERIMENT, f"there is no experiment {entity.experiment_id}, and no {what}"
    there = f"experiment {entity.experiment_id} is there, and " if entity.experiment_id else ""
    return _WHAT[entity.kind], f"{there}no {what}"


def has_own_id(entity: Entity) -> bool:
    """Whether the id is one that MLflow makes: a folder of any other name may be anybody's."""
    return _IDS[entity.kind].fullmatch(entity.id) is not None


def stand_in(entity: Entity, location: Location) -> Tombstone:
    """The row that an orphan would have: it goes through the same decisions as a tombstone's."""
    home = home_of(location, entity.kind)
    return Tombstone(entity=entity, uri=location.uri, deleted_ms=None, experiment_uri=home.uri)


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """When an orphan may go. Milliseconds; ``young_ms``: what is newer than this is too young, None: nothing is."""

    now_ms: int
    quarantine_ms: int
    young_ms: int | None


def reason_of(  # noqa: PLR0911 - one return a reason is what makes it readable
    line: Decision, owned: str, terms: Terms
) -> tuple[Reason, str]:
    """Why an orphan that nothing needs goes or stays, and the evidence.

    Args:
        line: what nothing but its age, root and quarantine keeps.
        owned: why its root is not this database's; empty where it is.
        terms: what is asked of it.
    """
    orphan = line.orphan
    if orphan is None:
        raise AssertionError(line)
    if not has_own_id(line.entity):
        return Reason.LAYOUT, f"{line.entity.id!r} is no id that MLflow makes"
    if owned:
        return Reason.NOT_OWNED, owned
    if orphan.newest_ms is None:
        return Reason.YOUNG, "the age of something in it is not known"
    if terms.young_ms is not None and orphan.newest_ms > terms.young_ms:
        return Reason.YOUNG, f"something in it was written at {show_instant(orphan.newest_ms)}"
    if orphan.seen_ms is None:
        return Reason.QUARANTINE, f"not seen before; the quarantine is {show_duration(terms.quarantine_ms)}"
    until_ms = orphan.seen_ms + terms.quarantine_ms
    seen = f"seen at {show_instant(orphan.seen_ms)}"
    if terms.now_ms < until_ms:
        return Reason.QUARANTINE, f"{seen}, in quarantine until {show_instant(until_ms)}"
    return Reason.DUE, f"{line.evidence}; {seen}"
