"""What is no longer there, and when a prefix without a row may go: a case for each reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from mlflow_artifact_gc import leftovers
from mlflow_artifact_gc.leftovers import Terms
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Limits, Orphan, Plan, Reason
from mlflow_artifact_gc.policy import brakes, place_of, root_of

HOUR_MS = 3_600_000
NOW_MS = 1_000 * HOUR_MS
ID = "0123456789abcdef" * 2
TERMS = Terms(now_ms=NOW_MS, quarantine_ms=24 * HOUR_MS, young_ms=NOW_MS - 24 * HOUR_MS)
ENTITY = Entity(kind=EntityKind.RUN, id=ID, experiment_id="7")
PLACE = Location("bucket", f"root/7/{ID}/artifacts/")
ORPHAN = Orphan(lost="run", newest_ms=NOW_MS - 50 * HOUR_MS, seen_ms=NOW_MS - 24 * HOUR_MS)
LINE = Decision(
    entity=ENTITY,
    uri=PLACE.uri,
    location=PLACE,
    deleted_ms=None,
    reason=Reason.DUE,
    evidence=f"experiment 7 is there, and no run {ID}",
    root=Location("bucket", "root/"),
    orphan=ORPHAN,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    reason: Reason
    says: str
    orphan: Orphan = ORPHAN
    entity: Entity = ENTITY
    owned: str = ""
    terms: Terms = TERMS


CASES = {
    "seen a quarantine ago": Case(reason=Reason.DUE, says="no run"),
    "a millisecond too early": Case(
        reason=Reason.QUARANTINE, says="in quarantine until", orphan=replace(ORPHAN, seen_ms=NOW_MS - 24 * HOUR_MS + 1)
    ),
    "seen in the future": Case(
        reason=Reason.QUARANTINE, says="in quarantine until", orphan=replace(ORPHAN, seen_ms=NOW_MS + HOUR_MS)
    ),
    "never seen": Case(reason=Reason.QUARANTINE, says="not seen before", orphan=replace(ORPHAN, seen_ms=None)),
    "never seen, and no quarantine": Case(
        reason=Reason.QUARANTINE,
        says="not seen before",
        orphan=replace(ORPHAN, seen_ms=None),
        terms=replace(TERMS, quarantine_ms=0),
    ),
    "young": Case(reason=Reason.YOUNG, says="written at", orphan=replace(ORPHAN, newest_ms=NOW_MS - HOUR_MS)),
    "of an unknown age": Case(
        reason=Reason.YOUNG,
        says="not known",
        orphan=replace(ORPHAN, newest_ms=None),
        terms=replace(TERMS, young_ms=None),
    ),
    "no minimum age": Case(
        reason=Reason.DUE, says="no run", orphan=replace(ORPHAN, newest_ms=NOW_MS), terms=replace(TERMS, young_ms=None)
    ),
    "another's root": Case(reason=Reason.NOT_OWNED, says="another's", owned="it is another's"),
    "an id of somebody's own": Case(
        reason=Reason.LAYOUT, says="'nightly'", entity=replace(ENTITY, id="nightly"), owned="another's"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_reason_has_its_case(case: Case) -> None:
    """One fact that differs from an orphan that is due keeps it."""
    line = replace(LINE, orphan=case.orphan, entity=case.entity)

    reason, evidence = leftovers.reason_of(line, case.owned, case.terms)

    assert (reason, case.says in evidence) == (case.reason, True)


@pytest.mark.parametrize(
    ("kind", "id_", "prefix", "root"),
    [
        (EntityKind.RUN, ID, f"root/7/{ID}/artifacts/", "root/"),
        (EntityKind.LOGGED_MODEL, f"m-{ID}", f"root/7/models/m-{ID}/artifacts/", "root/"),
        (EntityKind.TRACE, f"tr-{ID}", f"root/workspaces/lab/7/traces/tr-{ID}/artifacts/", "root/"),
        (EntityKind.RUN, ID, f"teams/vision/{ID}/artifacts/", "teams/vision/"),
    ],
)
def test_a_stand_in_lies_where_its_row_would_say(kind: EntityKind, id_: str, prefix: str, root: str) -> None:
    """The rules of a tombstone's place and root give an orphan's own prefix, and the root that it was made from."""
    workspace = "lab" if "workspaces" in prefix else "default"
    entity = Entity(kind=kind, id=id_, experiment_id="7", workspace=workspace)
    place = Location("bucket", prefix)

    stone = leftovers.stand_in(entity, place)

    assert place_of(stone, Destination()).location == place
    assert root_of(place, stone, Destination()) == Location("bucket", root)


@pytest.mark.parametrize("id_", ["nightly", ID.upper(), ID[1:], f"m-{ID}", f"{ID}\n"])
def test_only_an_id_of_mlflow_s_is_one(id_: str) -> None:
    """A folder of any other name may be anybody's."""
    assert not leftovers.has_own_id(replace(ENTITY, id=id_))


def test_the_share_is_one_of_what_was_found() -> None:
    """Of rows an orphan has none: the brake counts the prefixes under the roots, and says so."""
    plan = Plan(
        id="1",
        created_ms=NOW_MS,
        cutoff_ms=NOW_MS,
        action=Action.PURGE,
        database_id="d",
        entity_rows=150,
        limits=Limits(share_from_locations=1),
        decisions=(LINE,) * 80,
    )

    (tripped,) = brakes(plan)

    assert "150 prefixes" in tripped
    assert "under the roots" in tripped
    assert brakes(replace(plan, entity_rows=160)) == []
