"""Keep or sweep: a numbered case for each reason, in the order in which they are asked, and each brake."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from mlflow_artifact_gc.errors import Refused
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import (
    Action,
    Decision,
    Entity,
    EntityKind,
    Limits,
    Plan,
    Reason,
    Tombstone,
    Verdict,
)
from mlflow_artifact_gc.policy import (
    Circumstances,
    Place,
    Scope,
    brakes,
    decide,
    place_of,
    require_within_brakes,
    root_of,
    root_of_experiment,
)

RUN_ID = "0123456789abcdef" * 2
CUTOFF_MS = 1_000_000
PROXY = Destination.parse("s3://bucket/root")
NOTHING = Circumstances()
RUN = Tombstone(
    entity=Entity(kind=EntityKind.RUN, id=RUN_ID, experiment_id="1"),
    uri=f"s3://bucket/root/1/{RUN_ID}/artifacts",
    deleted_ms=CUTOFF_MS - 1,
    experiment_uri="s3://bucket/root/1",
)


def tombstone(uri: str, kind: EntityKind = EntityKind.RUN, id_: str = RUN_ID, workspace: str = "default") -> Tombstone:
    """A tombstone of experiment 1 with this URI."""
    return replace(RUN, entity=Entity(kind=kind, id=id_, experiment_id="1", workspace=workspace), uri=uri)


# A case for each reason


@dataclass(frozen=True, kw_only=True)
class Case:
    reason: Reason
    evidence: str
    tombstone: Tombstone = RUN
    found: Circumstances = NOTHING


CASES = {
    "01 nothing keeps it": Case(reason=Reason.DUE, evidence=""),
    "02 no S3": Case(reason=Reason.NOT_ON_S3, evidence="file", tombstone=tombstone(f"file:///1/{RUN_ID}/artifacts")),
    "03 another server": Case(
        reason=Reason.OTHER_SERVER,
        evidence="there:5000",
        tombstone=tombstone(f"mlflow-artifacts://there:5000/1/{RUN_ID}/artifacts"),
    ),
    "04 no bucket": Case(
        reason=Reason.UNREADABLE,
        evidence=f"'s3:///1/{RUN_ID}/artifacts' names no bucket",
        tombstone=tombstone(f"s3:///1/{RUN_ID}/artifacts"),
    ),
    "05 not its own prefix": Case(
        reason=Reason.LAYOUT,
        evidence=f"expected …/{RUN_ID}/artifacts/, found s3://bucket/root/1/",
        tombstone=tombstone("s3://bucket/root/1"),
    ),
    "06 no date": Case(reason=Reason.UNDATED, evidence="", tombstone=replace(RUN, deleted_ms=None)),
    "07 too young": Case(reason=Reason.GRACE, evidence="", tombstone=replace(RUN, deleted_ms=CUTOFF_MS + 1)),
    "08 done": Case(reason=Reason.SWEPT_BEFORE, evidence="", found=Circumstances(swept_before=True)),
    "09 needed": Case(
        reason=Reason.PROTECTED,
        evidence="registered model churn, version 7",
        found=Circumstances(protected_by="registered model churn, version 7"),
    ),
    "10 nested": Case(
        reason=Reason.NESTED, evidence="deleted run outer", found=Circumstances(nested_with="deleted run outer")
    ),
    "11 hidden or tagged": Case(reason=Reason.WAITING, evidence="", found=Circumstances(waits=True)),
    "12 taken back": Case(reason=Reason.UNDONE, evidence="", found=Circumstances(undone=True)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_reason_has_its_case(case: Case) -> None:
    """One fact that differs from a tombstone that is due gives one reason, with the evidence."""
    expected = (case.reason, case.evidence)

    assert expected == decide(case.tombstone, place_of(case.tombstone, PROXY), case.found, CUTOFF_MS)


def test_no_reason_lacks_a_case() -> None:
    """A new reason comes with a case; those of orphans and plan files: in test_leftovers.py and test_applying.py."""
    elsewhere = {Reason.QUARANTINE, Reason.YOUNG, Reason.NOT_OWNED, Reason.NOT_PLANNED}

    assert {case.reason for case in CASES.values()} == set(Reason) - elsewhere


def test_only_one_case_is_swept() -> None:
    """Of all the reasons, one alone lets a location go."""
    assert [name for name, case in CASES.items() if case.reason.verdict is Verdict.SWEEP] == ["01 nothing keeps it"]


EVERYTHING = Circumstances(protected_by="version 1", nested_with="run outer", swept_before=True)


@pytest.mark.parametrize(
    ("place", "deleted_ms", "found", "expected"),
    [
        (Place(problem=Reason.LAYOUT, evidence="x"), None, EVERYTHING, (Reason.LAYOUT, "x")),
        (Place(), None, EVERYTHING, (Reason.UNREADABLE, "")),
        (None, None, EVERYTHING, (Reason.SWEPT_BEFORE, "")),
        (None, CUTOFF_MS + 1, EVERYTHING, (Reason.SWEPT_BEFORE, "")),
        (None, None, replace(EVERYTHING, swept_before=False), (Reason.PROTECTED, "version 1")),
        (None, CUTOFF_MS + 1, replace(EVERYTHING, swept_before=False), (Reason.PROTECTED, "version 1")),
        (None, None, Circumstances(nested_with="run outer"), (Reason.NESTED, "run outer")),
        (None, CUTOFF_MS + 1, Circumstances(nested_with="run outer"), (Reason.NESTED, "run outer")),
        (None, None, NOTHING, (Reason.UNDATED, "")),
        (None, CUTOFF_MS + 1, NOTHING, (Reason.GRACE, "")),
    ],
)
def test_the_first_reason_wins(
    place: Place | None, deleted_ms: int | None, found: Circumstances, expected: tuple[Reason, str]
) -> None:
    """Where several reasons keep a tombstone, it has the first, in a fixed order."""
    dated = replace(RUN, deleted_ms=deleted_ms)

    assert expected == decide(dated, place or place_of(dated, PROXY), found, CUTOFF_MS)


@pytest.mark.parametrize(
    ("deleted_ms", "expected"),
    [(CUTOFF_MS - 1, Reason.DUE), (CUTOFF_MS, Reason.DUE), (CUTOFF_MS + 1, Reason.GRACE), (0, Reason.DUE)],
)
def test_the_grace_period_ends_at_the_cutoff(deleted_ms: int, expected: Reason) -> None:
    """A tombstone of the cutoff's own millisecond has waited as long as it was told to."""
    reason, _ = decide(replace(RUN, deleted_ms=deleted_ms), place_of(RUN, PROXY), NOTHING, CUTOFF_MS)

    assert expected == reason


def test_an_undated_tombstone_goes_only_on_request() -> None:
    """Without a date a tombstone is due where undated ones are to be taken."""
    undated = replace(RUN, deleted_ms=None)
    reason, _ = decide(undated, place_of(undated, PROXY), Circumstances(take_undated=True), CUTOFF_MS)

    assert reason is Reason.DUE


def test_taking_the_undated_takes_no_young_one() -> None:
    """To take undated tombstones shortens no grace period."""
    young = replace(RUN, deleted_ms=CUTOFF_MS + 1)
    reason, _ = decide(young, place_of(young, PROXY), Circumstances(take_undated=True), CUTOFF_MS)

    assert reason is Reason.GRACE


# Where a tombstone's artifacts lie


@pytest.mark.parametrize(
    ("kind", "id_", "path"),
    [
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID}/artifacts"),
        (EntityKind.RUN, RUN_ID, f"{RUN_ID}/artifacts"),
        (EntityKind.RUN, RUN_ID, f"deep/er/1/{RUN_ID}/artifacts/"),
        (EntityKind.RUN, "odd id{}", "1/odd id{}/artifacts"),
        (EntityKind.LOGGED_MODEL, "m-1", "1/models/m-1/artifacts"),
        (EntityKind.TRACE, "tr-1", "1/traces/tr-1/artifacts"),
    ],
)
def test_an_entitys_own_prefix_is_a_place(kind: EntityKind, id_: str, path: str) -> None:
    """A URI that ends as MLflow ends it for this entity gives its location."""
    expected = Place(location=Location("bucket", path.removesuffix("/") + "/"))

    assert expected == place_of(tombstone(f"s3://bucket/{path}", kind, id_), Destination())


@pytest.mark.parametrize(
    ("kind", "id_", "path"),
    [
        (EntityKind.RUN, RUN_ID, ""),
        (EntityKind.RUN, RUN_ID, "artifacts"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID}"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID[:-1]}/artifacts"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID}0/artifacts"),
        (EntityKind.RUN, RUN_ID, f"1/x{RUN_ID}/artifacts"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID.upper()}/artifacts"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID}/artifacts/model"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID}//artifacts"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID}/artifacts//"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID}%2Fartifacts"),
        (EntityKind.RUN, RUN_ID, f"1/{RUN_ID}/artifact"),
        (EntityKind.RUN, "1/x", "1/x/artifacts"),
        (EntityKind.LOGGED_MODEL, "m-1", "1/m-1/artifacts"),
        (EntityKind.LOGGED_MODEL, "m-1", "1/traces/m-1/artifacts"),
        (EntityKind.LOGGED_MODEL, "m-1", f"1/{RUN_ID}/artifacts"),
        (EntityKind.TRACE, "tr-1", "1/tr-1/artifacts"),
        (EntityKind.TRACE, "tr-1", "1/models/tr-1/artifacts"),
    ],
)
def test_any_other_prefix_is_a_wrong_layout(kind: EntityKind, id_: str, path: str) -> None:
    """The bucket, a root, an experiment, a truncated or an edited URI is never a place that may be swept."""
    place = place_of(tombstone(f"s3://bucket/{path}", kind, id_), Destination())

    assert (place.location, place.problem) == (None, Reason.LAYOUT)


@pytest.mark.parametrize(
    ("kind", "path"), [(EntityKind.RUN, "1/"), (EntityKind.LOGGED_MODEL, "models/"), (EntityKind.TRACE, "traces/")]
)
def test_an_empty_id_owns_nothing(kind: EntityKind, path: str) -> None:
    """A row without an id has no prefix of its own."""
    place = place_of(tombstone(f"s3://bucket/{path}/artifacts", kind, ""), Destination())

    assert (place.location, place.problem) == (None, Reason.LAYOUT)


@pytest.mark.parametrize(
    ("uri", "evidence"),
    [
        (f"s3a://bucket/1/{RUN_ID}/artifacts", "MLflow writes to s3: only"),
        (f"S3N://bucket/1/{RUN_ID}/artifacts", "MLflow writes to s3: only"),
        (f"gs://bucket/1/{RUN_ID}/artifacts", "gs"),
        (f"/srv/1/{RUN_ID}/artifacts", "no scheme"),
        ("", "no scheme"),
    ],
)
def test_a_scheme_that_mlflow_does_not_write_s3_with_is_not_swept(uri: str, evidence: str) -> None:
    """Only ``s3:`` and proxied URIs lead to a place; s3a: and s3n: protect, and are never swept."""
    assert place_of(tombstone(uri), PROXY) == Place(problem=Reason.NOT_ON_S3, evidence=evidence)


@pytest.mark.parametrize(
    "uri",
    [
        f"mlflow-artifacts://there/1/{RUN_ID}/artifacts",
        f"mlflow-artifacts://me:secret@there/1/{RUN_ID}/artifacts",
        f"https://there/api/2.0/mlflow-artifacts/artifacts/1/{RUN_ID}/artifacts",
    ],
)
def test_a_host_in_a_proxied_uri_keeps_it(uri: str) -> None:
    """A URI that names a host may be another server's; the evidence is the host without the password."""
    assert place_of(tombstone(uri), PROXY) == Place(problem=Reason.OTHER_SERVER, evidence="there")


@pytest.mark.parametrize("uri", ["s3://[x", "s3://bucket/../1", "mlflow-artifacts:/..", "mlflow-artifacts://x]/1"])
def test_what_is_no_place_is_unreadable(uri: str) -> None:
    """A URI that cannot be read gives no location, and the evidence shows it."""
    place = place_of(tombstone(uri), PROXY)

    assert (place.location, place.problem) == (None, Reason.UNREADABLE)
    assert place.evidence


@pytest.mark.parametrize(
    ("workspace", "path", "prefix"),
    [
        ("default", f"1/{RUN_ID}/artifacts", f"root/1/{RUN_ID}/artifacts/"),
        ("team", f"workspaces/team/1/{RUN_ID}/artifacts", f"root/workspaces/team/1/{RUN_ID}/artifacts/"),
    ],
)
def test_a_proxied_tombstone_lies_under_the_destination(workspace: str, path: str, prefix: str) -> None:
    """A proxied URI leads to the folder of the entity's workspace."""
    place = place_of(tombstone(f"mlflow-artifacts:/{path}", workspace=workspace), PROXY)

    assert place == Place(location=Location("bucket", prefix))


def test_a_proxied_tombstone_of_another_workspace_is_unreadable() -> None:
    """A row that was moved to a workspace and kept the path of another is left alone."""
    place = place_of(tombstone(f"mlflow-artifacts:/workspaces/red/1/{RUN_ID}/artifacts", workspace="blue"), PROXY)

    assert place.problem is Reason.UNREADABLE


# The root of a location


@pytest.mark.parametrize(
    ("experiment_uri", "path", "destination", "prefix"),
    [
        ("s3://bucket/root/1", "root/1", None, "root/"),
        ("s3://bucket/root/1/", "root/1", None, "root/"),
        ("s3://bucket/1", "1", None, ""),
        ("s3://bucket/own/place", "own/place", None, "own/place/"),
        ("s3://bucket/own/place/11", "own/place/11", None, "own/place/11/"),
        ("s3://bucket", "", None, ""),
        ("s3://bucket/root/workspaces/team/1", "root/workspaces/team/1", None, "root/"),
        ("s3://bucket/root/workspaces/other/1", "root/workspaces/other/1", None, "root/workspaces/other/"),
        ("s3://bucket/root/1", "root/1", "s3://bucket/root", "root/"),
        ("s3://bucket/deep/root/1", "deep/root/1", "s3://bucket/deep", "deep/root/"),
        ("s3://bucket/deep/1", "deep/1", "s3://bucket/deep/1", "deep/1/"),
        ("s3://bucket/elsewhere/2", "root/1", None, "root/1/"),
        ("s3://another/root/1", "root/1", None, "root/1/"),
        ("s3://bucket/elsewhere/2", "root/1", "s3://bucket/root", "root/"),
        ("/srv/1", "root/1", None, "root/1/"),
        ("s3:", "root/1", None, "root/1/"),
        ("", "root/1", None, "root/1/"),
        ("mlflow-artifacts:/1", "root/workspaces/team/1", "s3://bucket/root", "root/"),
    ],
)
def test_a_root_is_the_longest_that_is_known(
    experiment_uri: str, path: str, destination: str | None, prefix: str
) -> None:
    """The root is the destination or what the experiment's location tells, else what lies around the entity."""
    mark = replace(
        tombstone("s3://bucket/unused", workspace="team"),
        experiment_uri=experiment_uri,
    )
    location = Location.of_key("bucket", f"{path}/{RUN_ID}/artifacts".removeprefix("/"))

    assert Location("bucket", prefix) == root_of(location, mark, Destination.parse(destination))


@pytest.mark.parametrize(
    ("uri", "id_", "workspace", "prefix"),
    [
        ("s3://bucket/root/7", "7", "default", "root/"),
        ("s3://bucket/root/7", "8", "default", "root/7/"),
        ("s3://bucket/7", "7", "default", ""),
        ("s3://bucket/own/place/", "7", "default", "own/place/"),
        ("s3://bucket/root/workspaces/team/7", "7", "team", "root/"),
        ("mlflow-artifacts:/7", "7", "default", "proxied/"),
        ("mlflow-artifacts://other.host/7", "7", "default", None),
        ("s3a://bucket/root/7", "7", "default", None),
        ("/srv/mlruns/7", "7", "default", None),
        ("s3:", "7", "default", None),
        ("s3://bucket/../7", "7", "default", None),
    ],
)
def test_an_experiments_location_tells_the_root(uri: str, id_: str, workspace: str, prefix: str | None) -> None:
    """The same as for a location in it: what is above an id, or the place that somebody chose."""
    found = root_of_experiment(uri, id_, workspace, Destination.parse("s3://bucket/proxied"))

    assert found == (None if prefix is None else Location("bucket", prefix))


@pytest.mark.parametrize(("kind", "folder"), [(EntityKind.LOGGED_MODEL, "models"), (EntityKind.TRACE, "traces")])
def test_a_root_lies_above_the_folders_of_models_and_traces(kind: EntityKind, folder: str) -> None:
    """Without a known root, that of a model or a trace is the one that its run would have."""
    location = Location("bucket", f"root/1/{folder}/x/artifacts/")
    mark = replace(tombstone(location.uri, kind, "x"), experiment_uri="")

    assert Location("bucket", "root/1/") == root_of(location, mark, Destination())


# Scopes

HERE = Entity(kind=EntityKind.RUN, id="r1", experiment_id="1")
MODEL = Entity(kind=EntityKind.LOGGED_MODEL, id="m1", experiment_id="1")
TRACE = Entity(kind=EntityKind.TRACE, id="t1", experiment_id="1")
THERE = Entity(kind=EntityKind.RUN, id="r2", experiment_id="2", workspace="team")


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(), [HERE, MODEL, TRACE, THERE]),
        (Scope(run_ids=("r1",)), [HERE]),
        (Scope(run_ids=("m1", "t1")), []),
        (Scope(logged_model_ids=("m1",)), [MODEL]),
        (Scope(logged_model_ids=("r1",)), []),
        (Scope(experiment_ids=("1",)), [HERE, MODEL, TRACE]),
        (Scope(experiment_ids=("1",), run_ids=("r2",)), [HERE, MODEL, TRACE, THERE]),
        (Scope(workspace="team"), [THERE]),
        (Scope(workspace="default"), [HERE, MODEL, TRACE]),
        (Scope(workspace="team", run_ids=("r1", "r2")), [THERE]),
        (Scope(workspace="team", experiment_ids=("1",)), []),
    ],
)
def test_a_scope_covers_what_it_names(scope: Scope, expected: list[Entity]) -> None:
    """Ids add up, a workspace narrows, and nothing named means everything."""
    assert expected == [entity for entity in (HERE, MODEL, TRACE, THERE) if scope.covers(entity)]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(), []),
        (Scope(experiment_ids=("1",)), []),
        (Scope(run_ids=("r1", "m1", "t1")), [HERE]),
        (Scope(logged_model_ids=("r1", "m1", "t1")), [MODEL]),
    ],
)
def test_an_entity_is_named_only_by_its_own_id(scope: Scope, expected: list[Entity]) -> None:
    """An experiment's id or no id at all does not name an entity, and ids of one kind do not name another."""
    assert expected == [entity for entity in (HERE, MODEL, TRACE, THERE) if scope.names(entity)]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(), True),
        (Scope(experiment_ids=("1",)), True),
        (Scope(experiment_ids=("2",)), False),
        (Scope(run_ids=("r1",)), False),
        (Scope(workspace="default"), True),
        (Scope(workspace="team"), False),
        (Scope(workspace="team", experiment_ids=("1",)), False),
    ],
)
def test_an_experiment_goes_only_where_it_was_meant(scope: Scope, *, expected: bool) -> None:
    """The row of an experiment is out of reach where only runs, models or another workspace were named."""
    assert expected == scope.covers_experiment("1", "default")


# Brakes


def plan_of(due: int, *, rows: int, objects: int | None = 1, size: int | None = 10, **limits: float | None) -> Plan:
    """A plan with so many due lines, each with so many objects and bytes, and one line that is kept."""
    line = Decision(
        entity=RUN.entity,
        uri=RUN.uri,
        location=Location("bucket", "x/"),
        deleted_ms=0,
        reason=Reason.DUE,
        expected_objects=objects,
        expected_bytes=size,
    )
    return Plan(
        id="plan",
        created_ms=0,
        cutoff_ms=0,
        action=Action.PURGE,
        database_id="database",
        entity_rows=rows,
        limits=replace(Limits(), **limits),  # type: ignore[arg-type]
        decisions=(*[line] * due, replace(line, reason=Reason.GRACE)),
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            plan_of(1_500, rows=2_000),
            "1,500 locations are 75% of the database's 2,000 runs, models and traces, more than --max-share 0.5 allows",
        ),
        (
            plan_of(101, rows=0),
            "101 locations are 10100% of the database's 0 runs, models and traces, more than --max-share 0.5 allows",
        ),
        (
            plan_of(3, rows=10, max_share=0.25, share_from_locations=0),
            "3 locations are 30% of the database's 10 runs, models and traces, more than --max-share 0.25 allows",
        ),
        (plan_of(1_001, rows=9_999, max_locations=1_000), "1,001 locations are more than --max-locations 1,000 allows"),
        (plan_of(1, rows=9, max_locations=0), "1 locations are more than --max-locations 0 allows"),
        (
            plan_of(2, rows=9, objects=1_000, max_objects=1_999),
            "2,000 objects are more than --max-objects 1,999 allows",
        ),
        (
            plan_of(2, rows=9, objects=None, max_objects=1_999),
            "An unknown number of objects are more than --max-objects 1,999 allows",
        ),
        (plan_of(2, rows=9, size=10**9, max_bytes=10**9), "2.00 GB are more than --max-bytes 1.00 GB allows"),
        (plan_of(2, rows=9, size=None, max_bytes=10**9), "? are more than --max-bytes 1.00 GB allows"),
    ],
)
def test_a_brake_says_what_it_found_and_what_is_allowed(plan: Plan, message: str) -> None:
    """Each brake trips alone, with both numbers and the flag that releases it; what was not measured trips it."""
    assert [message] == brakes(plan)


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(0, rows=0),
        plan_of(100, rows=100),
        plan_of(101, rows=202),
        plan_of(101, rows=101, max_share=1.0),
        plan_of(5, rows=9, max_locations=5),
        plan_of(5, rows=9, objects=2, max_objects=10),
        plan_of(5, rows=9, size=2, max_bytes=10),
        plan_of(5, rows=9, objects=None, size=None),
        plan_of(0, rows=9, objects=None, size=None, max_locations=0, max_objects=0, max_bytes=0),
    ],
)
def test_a_brake_lets_its_own_limit_pass(plan: Plan) -> None:
    """What is equal to a limit, unlimited, or not more than a hundred locations, goes."""
    assert brakes(plan) == []
    require_within_brakes(plan)


def test_a_size_just_over_its_limit_is_told_apart() -> None:
    """A refusal never says that a number is more than the same number."""
    (message,) = brakes(plan_of(1, rows=9, size=10**9 + 1, max_bytes=10**9))
    found, allowed = message.removesuffix(" allows").split(" are more than --max-bytes ")

    assert found != allowed


def test_all_brakes_are_named_at_once() -> None:
    """A refusal says every limit that has to be raised, and that nothing was touched."""
    plan = plan_of(200, rows=200, max_locations=1, max_objects=2, max_bytes=3)

    with pytest.raises(Refused) as raised:
        require_within_brakes(plan)

    message = str(raised.value)
    flags = [flag for flag in ("--max-share", "--max-locations", "--max-objects", "--max-bytes") if flag in message]
    assert message.startswith("Refused, and nothing was touched: ")
    assert flags == ["--max-share", "--max-locations", "--max-objects", "--max-bytes"]
    assert len(brakes(plan)) == 4
