"""Tombstones and lines in columns: what comes out is what went in, and lies where ``policy`` says of each by itself."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, note, seed, settings
from hypothesis import strategies as st

from mlflow_artifact_gc.locations import Destination
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Plan, Reason, Reference, Tombstone
from mlflow_artifact_gc.packed import Places, Stones
from mlflow_artifact_gc.planning import Facts, decisions
from mlflow_artifact_gc.policy import Circumstances, Scope, decide, place_of, root_of

if TYPE_CHECKING:
    from collections.abc import Sequence

SEED = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
CUTOFF_MS = 1_000
DESTINATIONS = (
    Destination.parse("s3://bucket/root"),
    Destination.parse("s3://bucket/root/" + "a" * 32 + "/artifacts"),
    Destination.parse("file:///somewhere"),
)
CORES = ("a" * 32, "b" * 32, "0123456789abcdef" * 2)

ids = st.one_of(
    st.sampled_from(CORES),
    st.sampled_from(CORES).map("m-{}".format),
    st.sampled_from(CORES).map("tr-{}".format),
    st.sampled_from(["run1", "run10", "", "a/b", ".", "A" * 32, "é"]),
)
heads = st.sampled_from(
    [
        "s3://bucket/root/1/{id}/artifacts",
        "s3://bucket/root/1/models/{id}/artifacts",
        "s3://bucket/root/1/traces/{id}/artifacts",
        "s3://bucket/root/1/{id}/artifacts/",
        "s3://bucket/{id}/artifacts",
        "s3://bucket/{id}/{id}/artifacts",
        "s3://bucket/" + "a" * 32 + "/artifacts/{id}/artifacts",
        "s3://bucket/root/1/{id}/artifacts?x={id}",
        "s3://bucket/root/1/{id}/artifacts#f",
        "s3://bucket/root/../{id}/artifacts",
        "s3://bucket/root/1/{id}",
        "s3://bucket/" + "x" * 1000 + "/{id}/artifacts",
        "s3a://bucket/root/1/{id}/artifacts",
        "mlflow-artifacts:/1/{id}/artifacts",
        "mlflow-artifacts:/workspaces/team/1/{id}/artifacts",
        "mlflow-artifacts:/workspaces/{id}/artifacts",
        "s3://bucket/x/{id}/" + "a" * 16 + "\n" + "a" * 16 + "/artifacts",
        "mlflow-artifacts://host/1/{id}/artifacts",
        "file:///mlruns/1/{id}/artifacts",
        "",
    ]
)
stones = st.builds(
    lambda kind, id_, head, date, experiment, workspace, experiment_uri: Tombstone(
        entity=Entity(kind=kind, id=id_, experiment_id=experiment, workspace=workspace),
        uri=head.format(id=id_),
        deleted_ms=date,
        experiment_uri=experiment_uri,
    ),
    st.sampled_from(EntityKind),
    ids,
    heads,
    st.sampled_from([None, 0, CUTOFF_MS, CUTOFF_MS + 1]),
    st.sampled_from(["1", "2"]),
    st.sampled_from(["default", "team", "a" * 32]),
    st.sampled_from(
        [
            "s3://bucket/root/1",
            "s3://bucket/root",
            "mlflow-artifacts:/1",
            "s3://bucket/root/1/" + "a" * 32 + "/artifacts",
            "",
        ]
    ),
)


def many(*, core: str, count: int = 3) -> list[Tombstone]:
    """Runs of one experiment, whose ids begin with ``core``'s first digit."""
    entities = [Entity(kind=EntityKind.RUN, id=f"{core[0]}{number:031x}", experiment_id="1") for number in range(count)]
    return [
        Tombstone(entity=one, uri=f"s3://bucket/root/1/{one.id}/artifacts", deleted_ms=0, experiment_uri="")
        for one in entities
    ]


def lines(tombstones: Sequence[Tombstone], *references: Reference) -> tuple[Decision, ...]:
    """What is decided of them."""
    facts = Facts(tombstones=tombstones, references=references, owners={}, destination=DESTINATIONS[0], swept_ms={})
    return tuple(decisions(facts, Scope(), cutoff_ms=CUTOFF_MS, include_undated=False, again=False))


@seed(SEED)
@settings(max_examples=500, deadline=None, database=None, print_blob=True)
@given(st.lists(stones, max_size=12), st.sampled_from(DESTINATIONS))
def test_each_is_as_if_it_were_alone(tombstones: list[Tombstone], destination: Destination) -> None:
    """Rows, places and roots are those of each row by itself, and so are the decisions where nothing is referred to."""
    note(f"TEST_SEED={SEED}")
    packed = Stones(tombstones)
    places = Places(packed, destination)

    assert list(packed) == tombstones
    for position, stone in enumerate(tombstones):
        place = place_of(stone, destination)
        assert places.place(position) == place
        if place.location is not None:
            assert places.root(position, place.location) == root_of(place.location, stone, destination)
    facts = Facts(tombstones=tombstones, references=(), owners={}, destination=destination, swept_ms={})
    made = decisions(facts, Scope(), cutoff_ms=CUTOFF_MS, include_undated=False, again=False)
    expected = {}
    for stone in tombstones:
        place = place_of(stone, destination)
        reason, evidence = decide(stone, place, Circumstances(), CUTOFF_MS)
        expected[stone.entity, stone.uri, stone.deleted_ms] = (place.location, reason, evidence)
    for line in made:
        assert (line.location, line.reason, line.evidence) == expected[line.entity, line.uri, line.deleted_ms]


@pytest.mark.parametrize(
    ("kind", "uri", "workspace"),
    [
        # Readable because its id is its workspace's name; the next one's is not.
        (EntityKind.RUN, "mlflow-artifacts:/workspaces/{id}/artifacts", "a" * 32),
        # In the shape of a trace's once a newline is taken out, as urlparse does.
        (EntityKind.TRACE, "s3://bucket/x/{id}/traces/tr-" + "a" * 16 + "\n" + "a" * 16 + "/artifacts", "default"),
    ],
)
def test_what_makes_one_readable_may_be_its_id(kind: EntityKind, uri: str, workspace: str) -> None:
    """The others of its group are asked for themselves, and are not where it would make them."""
    prefix = "tr-" if kind is EntityKind.TRACE else ""
    tombstones = [
        Tombstone(
            entity=Entity(kind=kind, id=prefix + digit * 32, experiment_id="1", workspace=workspace),
            uri=uri.format(id=prefix + digit * 32),
            deleted_ms=0,
            experiment_uri="",
        )
        for digit in "ab"
    ]
    alone = [place_of(stone, DESTINATIONS[0]) for stone in tombstones]
    assert [place.location is None for place in alone] == [False, True]

    places = Places(Stones(tombstones), DESTINATIONS[0])
    assert [places.place(position) for position in range(2)] == alone


def test_one_of_many_is_protected() -> None:
    """What was decided for the others of its experiment is not taken for it."""
    tombstones = many(core="a")
    holder = Reference(holder="a dataset", text=f"{tombstones[1].uri}/data")

    assert [line.reason for line in lines(tombstones, holder)] == [Reason.DUE, Reason.PROTECTED, Reason.DUE]


def test_of_one_group_each_has_its_own_date() -> None:
    """Deleted too late, and without a date: neither is decided as its neighbour was."""
    old, late, undated = many(core="a")
    of_dates = [old, replace(late, deleted_ms=CUTOFF_MS + 1), replace(undated, deleted_ms=None)]

    assert [line.reason for line in lines(of_dates)] == [Reason.DUE, Reason.GRACE, Reason.UNDATED]


def test_a_plan_counts_what_it_does_not_make() -> None:
    """The totals of packed lines are those of the lines themselves."""
    tombstones = many(core="a")
    holder = Reference(holder="a dataset", text=tombstones[0].uri)
    facts = Facts(tombstones=tombstones, references=[holder], owners={}, destination=DESTINATIONS[0], swept_ms={})
    made = decisions(facts, Scope(), cutoff_ms=CUTOFF_MS, include_undated=False, again=False)
    packed = Plan(
        id="plan",
        created_ms=0,
        cutoff_ms=0,
        action=Action.PURGE,
        database_id="database",
        entity_rows=3,
        decisions=made,
    )
    plain = replace(packed, decisions=tuple(made))

    assert packed.totals == plain.totals
    assert packed.digest == plain.digest
    assert tuple(packed.due) == plain.due
