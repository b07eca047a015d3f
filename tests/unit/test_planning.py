"""The plan: one decision a tombstone, and how its locations are listed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pytest

from mlflow_artifact_gc.errors import ReferencesIncomplete
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import (
    Action,
    Decision,
    Entity,
    EntityKind,
    Plan,
    Reason,
    Reference,
    Strength,
    Tombstone,
)
from mlflow_artifact_gc.packed import Stones
from mlflow_artifact_gc.planning import (
    Facts,
    ListingTask,
    decisions,
    dense_parents,
    ids_in_places,
    listing_tasks,
    measured,
    require_destination,
)
from mlflow_artifact_gc.policy import Scope

CUTOFF_MS = 1_000
PROXY = Destination.parse("s3://bucket/root")
ROOT = "s3://bucket/root"
EXPERIMENT = Reference(holder="experiment 1, artifact_location", text=f"{ROOT}/1", strength=Strength.AREA)


def hex_id(number: int) -> str:
    """A run's id, the same for the same number and scattered as MLflow's are."""
    return f"{random.Random(number).getrandbits(128):032x}"


A, B, C = hex_id(1), hex_id(2), hex_id(3)


def run(
    id_: str,
    uri: str | None = None,
    *,
    deleted_ms: int | None = CUTOFF_MS,
    experiment_id: str = "1",
    workspace: str = "default",
) -> Tombstone:
    """A deleted run in its usual place, unless another URI is given."""
    return Tombstone(
        entity=Entity(kind=EntityKind.RUN, id=id_, experiment_id=experiment_id, workspace=workspace),
        uri=uri or f"{ROOT}/{experiment_id}/{id_}/artifacts",
        deleted_ms=deleted_ms,
        experiment_uri=f"{ROOT}/{experiment_id}",
    )


def model(id_: str) -> Tombstone:
    """A deleted logged model in its usual place."""
    entity = Entity(kind=EntityKind.LOGGED_MODEL, id=id_, experiment_id="1")
    return replace(run(id_), entity=entity, uri=f"{ROOT}/1/models/{id_}/artifacts")


def decided(
    *tombstones: Tombstone,
    references: Sequence[Reference] = (EXPERIMENT,),
    owners: Mapping[str, str] | None = None,
    destination: Destination = PROXY,
    swept_ms: Mapping[Location, int | None] | None = None,
    scope: Scope | None = None,
    include_undated: bool = False,
    again: bool = False,
) -> tuple[Decision, ...]:
    """The decisions on these tombstones."""
    facts = Facts(
        tombstones=tombstones,
        references=references,
        owners=owners or {},
        destination=destination,
        swept_ms=swept_ms or {},
    )
    return tuple(decisions(facts, scope or Scope(), cutoff_ms=CUTOFF_MS, include_undated=include_undated, again=again))


def reasons(lines: Iterable[Decision]) -> dict[str, Reason]:
    """The reason for each entity's id."""
    return {line.entity.id: line.reason for line in lines}


def place(tombstone: Tombstone) -> Location:
    """Where a direct tombstone lies."""
    return Location.parse(tombstone.uri, Destination())


# Decisions


def test_a_decision_says_all_of_its_tombstone() -> None:
    """A line holds the entity, its URI, its location, its date, its root and the reason."""
    mark = run(A)
    expected = Decision(
        entity=mark.entity,
        uri=mark.uri,
        location=Location("bucket", f"root/1/{A}/artifacts/"),
        deleted_ms=CUTOFF_MS,
        reason=Reason.DUE,
        root=Location("bucket", "root/"),
    )

    assert decided(mark) == (expected,)


def test_a_decision_without_a_location_has_no_root() -> None:
    """Where the URI names no place, the line says so and why."""
    (line,) = decided(run(A, f"gs://bucket/1/{A}/artifacts"))

    assert (line.location, line.root, line.reason, line.evidence) == (None, None, Reason.NOT_ON_S3, "gs")


def test_no_tombstones_make_no_decisions() -> None:
    """An empty backlog is an empty plan."""
    assert decided() == ()


def test_every_tombstone_gets_its_own_reason() -> None:
    """Tombstones with and without locations, in any order, each get the reason that is theirs."""
    marks = [
        run(A, "file:///srv"),
        run(B),
        run(C, deleted_ms=CUTOFF_MS + 1),
        run("bad", "s3:"),
        model(f"m-{A}"),
        run("kept"),
        run("undated", deleted_ms=None),
    ]
    kept = Reference(holder="registered model churn, version 7", text="runs:/kept/model")
    expected = {
        A: Reason.NOT_ON_S3,
        B: Reason.DUE,
        C: Reason.GRACE,
        "bad": Reason.UNREADABLE,
        f"m-{A}": Reason.DUE,
        "kept": Reason.PROTECTED,
        "undated": Reason.UNDATED,
    }

    assert expected == reasons(decided(*marks, references=[EXPERIMENT, kept]))
    assert expected == reasons(decided(*reversed(marks), references=[kept, EXPERIMENT]))


def test_the_evidence_is_the_first_holder() -> None:
    """Of several that need it, the first is named."""
    holders = [Reference(holder=f"version {number}", text=f"runs:/{A}") for number in (1, 2)]

    assert [line.evidence for line in decided(run(A), references=holders)] == ["version 1"]


def test_a_live_holder_comes_before_a_deleted_one() -> None:
    """What something live needs is protected, whatever deleted rows lie around it too."""
    deleted = Reference(holder="deleted run B", text=f"{ROOT}/1/{A}/artifacts/{{id}}/artifacts", live=False)
    live = Reference(holder="version 1", text=f"runs:/{A}")
    (line,) = decided(run(A), references=[deleted, live])

    assert (line.reason, line.evidence) == (Reason.PROTECTED, "version 1")


def test_a_deleted_run_around_another_waits_for_it() -> None:
    """The outer run is nested as long as the row of the inner one is there, and the first such row is named."""
    texts = [f"{ROOT}/1/{A}/artifacts/{{id}}/artifacts", f"{ROOT}/1/{A}/artifacts/x/{{id}}/artifacts"]
    inner = [Reference(holder=f"deleted run {text}", text=text, live=False) for text in texts]
    (line,) = decided(run(A), references=inner)

    assert (line.reason, line.evidence) == (Reason.NESTED, f"deleted run {texts[0]}")


def test_a_deleted_run_inside_another_waits_for_it() -> None:
    """The inner run is nested as long as the row of the outer one is there."""
    (line,) = decided(run(B, f"{ROOT}/1/{A}/artifacts/{B}/artifacts"), owners={A: f"run {A}", B: f"run {B}"})

    assert (line.reason, line.evidence) == (Reason.NESTED, f"run {A}")


@pytest.mark.parametrize("segment", [f"m-{A}", A, f"tr-{A}", f"x{A}y", f"{A}.old"])
@pytest.mark.parametrize("owner", [A, f"m-{A}", f"tr-{A}"])
def test_the_digits_of_an_owner_are_enough(segment: str, owner: str) -> None:
    """A segment that holds the digits of another row's id makes it nested, whatever stands around them."""
    (line,) = decided(run(B, f"{ROOT}/1/{segment}/artifacts/{B}/artifacts"), owners={owner: "somebody"})

    assert (line.reason, line.evidence) == (Reason.NESTED, "somebody")


def test_an_owner_elsewhere_nests_nothing() -> None:
    """An entity's own id, and ids that are no part of the URI, make nothing nested."""
    assert reasons(decided(run(A), owners={A: "itself", B: "another", A[:8]: "a part of it"})) == {A: Reason.DUE}


def test_an_odd_owner_counts_as_a_whole_segment() -> None:
    """An owner with an id of another form is found where it is a segment of the URI."""
    uri = f"{ROOT}/1/outer/artifacts/{B}/artifacts"

    assert reasons(decided(run(B, uri), owners={"outer": "run outer"})) == {B: Reason.NESTED}
    assert reasons(decided(run(B, uri), owners={"oute": "run oute"})) == {B: Reason.DUE}


def test_the_ids_to_ask_for_are_all_but_ones_own() -> None:
    """Of each URI every segment and every form of its digits may be somebody's id, except the entity's own."""
    found = ids_in_places([run(A), run(B, f"{ROOT}/1/x{A}/{B}/artifacts")])

    assert found == {"s3:", "bucket", "root", "1", "artifacts", f"x{A}", A, f"m-{A}", f"tr-{A}"}


def test_two_texts_of_one_location_make_one_line() -> None:
    """A trace whose artifacts and archive lie in the same place is counted, swept and reported once."""
    entity = Entity(kind=EntityKind.TRACE, id=f"tr-{A}", experiment_id="1")
    texts = (f"mlflow-artifacts:/1/traces/tr-{A}/artifacts", f"{ROOT}/1/traces/tr-{A}/artifacts")
    lines = decided(*(replace(run(A), entity=entity, uri=text) for text in texts))

    assert [line.location for line in lines] == [Location("bucket", f"root/1/traces/tr-{A}/artifacts/")]


def test_two_places_of_one_trace_make_two_lines() -> None:
    """A trace whose archive lies in another place than its artifacts has two locations."""
    entity = Entity(kind=EntityKind.TRACE, id=f"tr-{A}", experiment_id="1")
    texts = (f"{ROOT}/1/traces/tr-{A}/artifacts", f"s3://archive/1/traces/tr-{A}/artifacts")
    lines = decided(*(replace(run(A), entity=entity, uri=text) for text in texts))

    assert [line.location.bucket for line in lines if line.location] == ["bucket", "archive"]


# What was swept before


@pytest.mark.parametrize(
    ("swept_ms", "deleted_ms", "expected"),
    [
        (500, 500, Reason.SWEPT_BEFORE),
        (500, 499, Reason.SWEPT_BEFORE),
        (500, 501, Reason.DUE),
        (None, 500, Reason.DUE),
    ],
)
def test_a_run_that_was_restored_and_deleted_again_is_new(
    swept_ms: int | None, deleted_ms: int, expected: Reason
) -> None:
    """A tombstone is done when it was swept for its own date or a later one; a later tombstone is due again."""
    mark = run(A, deleted_ms=deleted_ms)

    assert reasons(decided(mark, swept_ms={place(mark): swept_ms})) == {A: expected}


@pytest.mark.parametrize(("swept_ms", "expected"), [(None, Reason.SWEPT_BEFORE), (500, Reason.DUE)])
def test_an_undated_tombstone_is_done_only_as_an_undated_one(swept_ms: int | None, expected: Reason) -> None:
    """Without a date nobody can say whether a sweep for a date was before or after it."""
    mark = run(A, deleted_ms=None)

    assert reasons(decided(mark, swept_ms={place(mark): swept_ms}, include_undated=True)) == {A: expected}


def test_another_location_of_the_same_run_is_not_done() -> None:
    """What was swept is a location, not an id."""
    mark = run(A)

    assert reasons(decided(mark, swept_ms={place(run(B)): CUTOFF_MS})) == {A: Reason.DUE}


def test_what_was_swept_is_taken_again_on_request() -> None:
    """To delete its metadata, a location that was swept is due again, unless something needs it."""
    mark = run(A)
    swept: dict[Location, int | None] = {place(mark): CUTOFF_MS}
    version = Reference(holder="version 1", text=f"runs:/{A}")

    assert reasons(decided(mark, swept_ms=swept, again=True)) == {A: Reason.DUE}
    assert reasons(decided(mark, swept_ms=swept, again=True, references=[version])) == {A: Reason.PROTECTED}


def test_a_tombstone_without_a_place_was_never_swept() -> None:
    """What names no location keeps that reason."""
    assert reasons(decided(run(A, "s3:"), swept_ms={place(run(A)): CUTOFF_MS})) == {A: Reason.UNREADABLE}


# Undated tombstones


@pytest.mark.parametrize(
    ("scope", "include_undated", "expected"),
    [
        (Scope(), False, Reason.UNDATED),
        (Scope(), True, Reason.DUE),
        (Scope(run_ids=(A,)), False, Reason.DUE),
        (Scope(experiment_ids=("1",)), False, Reason.UNDATED),
        (Scope(experiment_ids=("1",), run_ids=(B,)), False, Reason.UNDATED),
        (Scope(experiment_ids=("1",)), True, Reason.DUE),
    ],
)
def test_an_undated_tombstone_must_be_asked_for(scope: Scope, *, include_undated: bool, expected: Reason) -> None:
    """A row without a date goes with the option, or when it is named by its own id, not by its experiment's."""
    assert reasons(decided(run(A, deleted_ms=None), scope=scope, include_undated=include_undated)) == {A: expected}


# Scope


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(), {A, B, C, f"m-{A}"}),
        (Scope(run_ids=(A, f"m-{A}")), {A}),
        (Scope(logged_model_ids=(f"m-{A}", A)), {f"m-{A}"}),
        (Scope(experiment_ids=("1",)), {A, f"m-{A}"}),
        (Scope(experiment_ids=("2",), run_ids=(A,)), {A, B, C}),
        (Scope(workspace="team"), {C}),
        (Scope(workspace="team", run_ids=(A,)), set()),
        (Scope(run_ids=("nobody",)), set()),
    ],
)
def test_a_plan_holds_only_what_its_scope_covers(scope: Scope, expected: set[str]) -> None:
    """Ids, experiments and workspaces say which tombstones the plan speaks of at all."""
    marks = [run(A), run(B, experiment_id="2"), run(C, experiment_id="2", workspace="team"), model(f"m-{A}")]

    assert expected == set(reasons(decided(*marks, scope=scope)))


@pytest.mark.parametrize("scope", [Scope(run_ids=(A,)), Scope(experiment_ids=("1",)), Scope(workspace="default")])
def test_a_scope_bypasses_no_grace_and_no_reference(scope: Scope) -> None:
    """Naming a tombstone takes nothing that must stay."""
    version = Reference(holder="version 1", text=f"runs:/{A}")

    assert reasons(decided(run(A, deleted_ms=CUTOFF_MS + 1), scope=scope)) == {A: Reason.GRACE}
    assert reasons(decided(run(A), scope=scope, references=[version])) == {A: Reason.PROTECTED}


# The destination


@pytest.mark.parametrize(
    ("uris", "count"),
    [
        (["mlflow-artifacts:/1/x"], "1"),
        (["mlflow-artifacts:/1/x", "https://host/api/2.0/mlflow-artifacts/artifacts/1", "s3://bucket/1"], "2"),
        (["mlflow-artifacts:/1/x"] * 1_234, "1,234"),
        ([f"http://h/api/2.0/mlflow-artifacts/artifacts/{A}/artifacts"], "1"),
    ],
)
def test_a_proxied_tombstone_stops_the_plan_while_the_destination_is_unknown(uris: list[str], count: str) -> None:
    """Nobody can say where it lies; the error says how many they are and what to give."""
    with pytest.raises(ReferencesIncomplete, match=rf"^{count} deleted entities .*--artifacts-destination"):
        require_destination(Stones([run(A, uri) for uri in uris]), Destination())


@pytest.mark.parametrize("uri", ["s3://bucket/1", "file:///1", "", "mlflow-artifacts://x]/1", "s3://[x"])
def test_other_tombstones_need_no_destination(uri: str) -> None:
    """Where nothing is proxied, or a text is no URI at all, the plan goes on."""
    require_destination(Stones([run(A, uri)]), Destination())


@pytest.mark.parametrize("destination", [PROXY, Destination.parse("./mlartifacts")])
def test_a_destination_that_was_given_is_enough(destination: Destination) -> None:
    """On S3 or not: what was said is known."""
    require_destination(Stones([run(A, "mlflow-artifacts:/1/x")]), destination)


def test_decisions_ask_for_the_destination_whatever_the_scope() -> None:
    """A proxied tombstone stops the plan even where it is not named."""
    with pytest.raises(ReferencesIncomplete):
        decided(run(A), run(B, "mlflow-artifacts:/1/x"), destination=Destination(), scope=Scope(run_ids=(A,)))


def test_a_proxied_tombstone_is_due_under_a_known_destination() -> None:
    """With the destination given, a proxied run is a tombstone like others, and its root is the destination."""
    (line,) = decided(run(A, f"mlflow-artifacts:/1/{A}/artifacts"))

    assert (line.reason, line.location, line.root) == (Reason.DUE, place(run(A)), PROXY.root)


# Sizes


def test_sizes_go_to_their_own_lines() -> None:
    """Each line gets what was measured of its location; lines without a location or a measurement stay as they are."""
    lines = decided(run(A), run(B), run(C), run("bad", "s3:"))
    plan = Plan(
        id="plan",
        created_ms=0,
        cutoff_ms=CUTOFF_MS,
        action=Action.PURGE,
        database_id="database",
        entity_rows=4,
        decisions=lines,
    )
    sized = measured(plan, {place(run(A)): (1, 10), place(run(B)): (2, 100), Location("bucket", "other/"): (4, 1000)})

    assert [(line.expected_objects, line.expected_bytes) for line in sized.decisions] == [
        (1, 10),
        (2, 100),
        (None, None),
        (None, None),
    ]
    assert [replace(line, expected_objects=None, expected_bytes=None) for line in sized.decisions] == list(lines)


# Dense parents


def due_lines(count: int, experiment_id: str = "1") -> tuple[Decision, ...]:
    """So many due runs of an experiment."""
    return decided(*(run(hex_id(number), experiment_id=experiment_id) for number in range(count)), references=())


PARENT = Location("bucket", "root/1/")


@pytest.mark.parametrize(
    ("due", "rows", "expected"),
    [
        (31, 31, set()),
        (32, 32, {PARENT}),
        (32, 128, {PARENT}),
        (32, 129, set()),
        (100, 400, {PARENT}),
        (100, 401, set()),
        (32, 0, {PARENT}),
        (0, 0, set()),
    ],
)
def test_a_parent_is_dense_from_a_quarter_and_32_on(due: int, rows: int, expected: set[Location]) -> None:
    """A parent is listed as a whole where a quarter of its entities, and not only a few, are due."""
    assert expected == set(dense_parents(due_lines(due), {(EntityKind.RUN, "1"): rows}))


def test_each_parent_is_counted_by_itself() -> None:
    """One experiment's runs make no other one dense, and models are counted apart from runs."""
    models = decided(*(model(f"m-{hex_id(number)}") for number in range(32)), references=())
    lines = [*due_lines(31), *due_lines(32, "2"), *models]
    rows = {
        (EntityKind.RUN, "1"): 31,
        (EntityKind.RUN, "2"): 128,
        (EntityKind.LOGGED_MODEL, "1"): 32,
    }

    assert dense_parents(lines, rows) == {Location("bucket", "root/2/"), Location("bucket", "root/1/models/")}


@pytest.mark.parametrize("first", [0, 1])
def test_experiments_that_share_a_location_are_counted_together(first: int) -> None:
    """A parent of several experiments has the entities of all of them, whichever comes last."""
    one = due_lines(32)
    other = [replace(line, entity=replace(line.entity, experiment_id="2")) for line in one]
    rows = {(EntityKind.RUN, "1"): 1_000, (EntityKind.RUN, "2"): 32}

    assert dense_parents([*one, *other] if first == 0 else [*other, *one], rows) == frozenset()


def test_a_line_without_a_location_makes_nothing_dense() -> None:
    """What has no place is not counted."""
    assert dense_parents(decided(*[run(A, "s3:")] * 40), {}) == frozenset()


# Listings

SEEDS = range(5)


def children(count: int, parent: Location = PARENT, head: str = "", seed: int = 0) -> list[Location]:
    """So many locations of one parent."""
    rng = random.Random(seed)
    return [
        Location(parent.bucket, f"{parent.prefix}{head}{rng.getrandbits(128):032x}/artifacts/") for _ in range(count)
    ]


def covered(tasks: Iterable[ListingTask]) -> Counter[Location]:
    """How often each location is covered."""
    return Counter(location for task in tasks for location in task.locations)


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1_000, 3_000])
@pytest.mark.parametrize("head", ["", "m-", "tr-"])
@pytest.mark.parametrize("is_dense", [True, False])
def test_each_location_is_covered_exactly_once(count: int, head: str, *, is_dense: bool) -> None:
    """However they are grouped, no location is left out or listed twice, and its task's prefix contains it."""
    locations = children(count, head=head)
    tasks = listing_tasks(locations, frozenset({PARENT} if is_dense else ()))

    assert Counter(locations) == covered(tasks)
    assert all(
        location.bucket == task.bucket and location.prefix.startswith(task.prefix)
        for task in tasks
        for location in task.locations
    )


def test_a_sparse_parent_is_listed_location_by_location() -> None:
    """Where only few of a parent go, each has a listing of its own prefix."""
    locations = children(3)

    assert [task.prefix for task in listing_tasks(locations, frozenset())] == [place.prefix for place in locations]


def test_dense_and_sparse_parents_are_kept_apart() -> None:
    """Only what lies directly in a dense parent is listed with it, and no task mixes buckets or parents."""
    parents = [
        PARENT,
        Location("bucket", "root/1/models/"),
        Location("bucket", "root/2/"),
        Location("other", "root/1/"),
    ]
    locations = [location for parent in parents for location in children(100, parent)]
    tasks = listing_tasks(locations, frozenset({PARENT, parents[3]}))
    shared = {location.parent(2) for task in tasks if len(task.locations) > 1 for location in task.locations}

    assert Counter(locations) == covered(tasks)
    assert shared == {PARENT, parents[3]}
    assert all(len({location.parent(2) for location in task.locations}) == 1 for task in tasks)


@pytest.mark.parametrize("count", [33, 64, 65, 1_000, 3_000])
def test_a_shared_listing_covers_a_page_or_so(count: int) -> None:
    """A dense parent is cut into parts of at most 64 locations, however many it has."""
    sizes = [len(task.locations) for task in listing_tasks(children(count), frozenset({PARENT}))]

    assert max(sizes) <= 64
    assert len(sizes) < count


def test_ids_that_begin_alike_end_in_one_part() -> None:
    """Where more than 64 ids share nine characters, they stay together, and the cutting ends."""
    locations = [Location("bucket", f"root/1/{'0' * 24}{number:08x}/artifacts/") for number in range(100)]
    (task,) = listing_tasks(locations, frozenset({PARENT}))

    assert (task.prefix, len(task.locations)) == (f"root/1/{'0' * 8}", 100)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [40, 500])
def test_a_part_never_reaches_other_folders(count: int, seed: int) -> None:
    """No listing of runs begins where the experiment's models/ and traces/ lie, or goes beyond the parent."""
    tasks = listing_tasks(children(count, seed=seed), frozenset({PARENT}))
    folders = ["root/1/models/m-1/artifacts/x", "root/1/traces/tr-1/artifacts/x", "root/10/x", "root/1/", "root/2/a"]

    assert [key for key in folders for task in tasks if key.startswith(task.prefix)] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_no_key_is_listed_by_two_parts(seed: int) -> None:
    """The parts of a parent do not overlap: nothing is listed, or counted, twice."""
    tasks = listing_tasks(children(500, seed=seed), frozenset({PARENT}))
    prefixes = [task.prefix for task in tasks]

    assert [(one, other) for one in prefixes for other in prefixes if one is not other and other.startswith(one)] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_listed_key_has_one_owner_in_any_order(seed: int) -> None:
    """Each key is told to the location that contains it, and to none if it is a stranger's, whatever came before."""
    rng = random.Random(seed)
    mine, strangers = children(200, seed=seed), children(50, seed=seed + 100)
    inside = ["a", "deep/er/b", "", "/", "artifacts/a"]
    keys = [(place.prefix + end, place) for place in mine for end in inside]
    expected: list[tuple[str, Location | None]] = [
        *keys,
        *((place.prefix + "a", None) for place in strangers),
        *((place.parent().prefix + end, None) for place in mine for end in ("artifact", "artifacts", "artifacts1/a")),
    ]
    rng.shuffle(expected)
    told: list[tuple[str, Location | None]] = []
    for task in listing_tasks(mine, frozenset({PARENT})):
        owner_of = task.owner_of()
        told += [(key, owner_of(key)) for key, owner in expected if owner in task.locations]
        assert {owner_of(key) for key, owner in expected if owner not in task.locations} <= {None}

    assert Counter(told) == Counter((key, owner) for key, owner in expected if owner is not None)


def test_a_short_id_does_not_own_its_longer_neighbour() -> None:
    """A part that begins with a whole id may list ids that begin with it too, and tells them apart."""
    ids = ["a", "ab", "abc", "run1", "run10", "models", "traces"]
    locations = {id_: Location("bucket", f"root/1/{id_}/artifacts/") for id_ in ids}
    task = ListingTask(bucket="bucket", prefix="root/1/", locations=tuple(locations.values()))
    owner_of = task.owner_of()

    assert {id_: owner_of(f"root/1/{id_}/artifacts/x") for id_ in ids} == locations
    assert owner_of("root/1/models/m-1/artifacts/x") is None
    assert owner_of("root/1/abcd/artifacts/x") is None
    assert owner_of("root/1/run1") is None


def test_odd_ids_are_covered_once_too() -> None:
    """Ids of other forms, short ones and such as look like a head, are grouped without a loss."""
    ids = ["a", "ab", "m-", "tr-x", "abc-", "x y", "ünï", "A-b", *(f"run{number}" for number in range(200))]
    locations = [Location("bucket", f"root/1/{id_}/artifacts/") for id_ in ids]
    tasks = listing_tasks(locations, frozenset({PARENT}))

    assert Counter(locations) == covered(tasks)
    assert all(task.owner_of()(place.prefix + "x") == place for task in tasks for place in task.locations)


def test_a_task_of_one_location_lists_it_alone() -> None:
    """A part with one location needs no more than its own prefix, and owns what lies in it."""
    (location,) = children(1)
    (task,) = listing_tasks([location], frozenset({PARENT}))
    owner_of = task.owner_of()

    assert (task.prefix, task.locations) == (location.prefix, (location,))
    assert (owner_of(location.prefix + "x"), owner_of("root/1/x")) == (location, None)


def test_a_task_can_be_taken_apart() -> None:
    """Each of its locations gets a listing of its own prefix."""
    locations = children(3)
    task = ListingTask(bucket="bucket", prefix="root/1/", locations=tuple(locations))

    assert [(one.bucket, one.prefix, one.locations) for one in task.apart()] == [
        ("bucket", place.prefix, (place,)) for place in locations
    ]


def test_a_task_can_be_repeated_for_what_is_left() -> None:
    """Fewer locations keep the shared listing; a single one is listed alone."""
    first, second, third = children(3)
    task = ListingTask(bucket="bucket", prefix="root/1/", locations=(first, second, third))

    assert task.only([first, third]) == ListingTask(bucket="bucket", prefix="root/1/", locations=(first, third))
    assert task.only([second]) == ListingTask(bucket="bucket", prefix=second.prefix, locations=(second,))
