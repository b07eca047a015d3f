"""What people want kept stays: holds, put on by hand, and keep tags, set in MLflow, by MLflow's own stores."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import fence, journal, purging, references, s3, sweeping
from tests.abilities import needs
from tests.command import NOW, Ran, evidence, gc, init, outcomes, reasons, run
from tests.oracle import assert_bucket_sound
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.stock import mlflow_gc
from tests.working import NOW as AT_ONCE
from tests.working import elapse, left, shift, tags, turn, watched, worker

MakeSite = Callable[[Site], Site]
KEEP = "artifact_gc.keep"


@pytest.fixture
def moto_site(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Site:
    """SQLite and moto."""
    return make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))


@pytest.fixture
def any_site(any_db_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Site:
    """Each kind of database, and moto."""
    return make_site(Site.direct(any_db_uri, moto_s3, moto_bucket))


@pytest.fixture
def hooked(site: Site) -> Site:
    """SQLite and SeaweedFS, with the hook in MLflow's stores."""
    return watched(site)


def hold(site: Site, *arguments: str, expect: int = 0) -> Ran:
    """``hold`` with these arguments on the site."""
    command, *others = arguments
    stores = ["--backend-store-uri", site.uri]
    if site.registry_uri and command == "add":
        stores += ["--registry-store-uri", site.registry_uri]
    ran = run("hold", command, *stores, *others)
    assert ran.code == expect, f"{ran.code}: {ran.err}\n{ran.out}"
    return ran


def put(site: Site, *arguments: str) -> str:
    """Puts on one hold by alice, for an audit; its number."""
    ran = hold(site, "add", *arguments, "--reason", "audit 2026", "--author", "alice", "--format", "json")
    (made,) = ran.json["added"]
    return str(made["id"])


def _registered_and_deleted(site: Site, name: str, run_id: str) -> None:
    site.register(name, site.artifact_uri(run_id), run_id=run_id)
    site.delete_version(name, 1)


def run_tag(site: Site, run_id: str, value: str) -> None:
    """A user sets the keep tag on a run."""
    from mlflow.entities import RunTag

    site.store.set_tag(run_id, RunTag(KEEP, value))


def experiment_tag(site: Site, experiment: str, value: str) -> None:
    """A user sets the keep tag on an experiment."""
    from mlflow.entities import ExperimentTag

    site.store.set_experiment_tag(experiment, ExperimentTag(KEEP, value))


# Holds


@needs("logged_models")
def test_what_is_held_stays_and_goes_when_it_is_released(any_site: Site) -> None:
    """Runs with their models and traces, experiments, logged and registered models, locations; each says by whom."""
    site = any_site
    live, held, doomed = site.experiment(), site.experiment(), site.experiment()
    one, by_place, registered, free = (site.run(live, n_objects=1) for _ in range(4))
    of_experiment = [site.run(held, n_objects=1), site.logged_model(held, n_objects=1), site.trace(held)]
    of_doomed = site.run(doomed, n_objects=1)
    model, of_run = site.logged_model(doomed, n_objects=1), site.logged_model(doomed, of_doomed, n_objects=1)
    made, linked, other = (site.trace(doomed) for _ in range(3))
    _made_in(site, made, of_doomed)
    site.store.link_traces_to_run([linked], of_doomed)
    _registered_and_deleted(site, "churn", registered)
    for dead in (one, by_place, registered, free):
        site.delete_run(dead)
    for experiment in (held, doomed):
        site.delete_experiment(experiment)
    init(site)
    numbers = {
        (one,): put(site, "--run-id", one, "--until", "2d"),
        tuple(of_experiment): put(site, "--experiment-id", held),
        (model,): put(site, "--logged-model-id", model),
        (of_doomed, of_run, made, linked): put(site, "--run-id", of_doomed),
        (registered,): put(site, "--registered-model", "churn"),
        (by_place,): put(site, "--location", f"{site.artifact_uri(by_place)}/data"),
    }
    before = site.snapshot()
    first = gc(site)

    assert outcomes(first) == {free: "swept", other: "swept"}
    for entities, number in numbers.items():
        for entity in entities:
            assert evidence(first, entity).startswith(f'hold #{number} by alice: "audit 2026"'), entity
    assert "(until " in evidence(first, one)
    hold(site, "rm", *numbers.values())
    second = gc(site)
    assert outcomes(second) == {entity: "swept" for entities in numbers for entity in entities}
    assert_bucket_sound(site, [first, second], before)


def _made_in(site: Site, trace: str, run_id: str) -> None:
    metadata = sa.table("trace_request_metadata", sa.column("key"), sa.column("value"), sa.column("request_id"))
    with site.engine.begin() as connection:
        connection.execute(metadata.insert().values(key="mlflow.sourceRun", value=run_id, request_id=trace))


def test_a_hold_ends_by_itself(moto_site: Site) -> None:
    """By the database's clock; and a hold on one run holds no other, not even a child of it."""
    site = moto_site
    experiment = site.experiment()
    held, over = (site.run(experiment, n_objects=1) for _ in range(2))
    child = site.run(experiment, n_objects=1, parent=held)
    for dead in (held, over, child):
        site.delete_run(dead)
    init(site)
    for dead in (held, over):
        put(site, "--run-id", dead, "--until", "1h")
    site.execute("UPDATE artifact_gc_holds SET until_ms = :ms WHERE target = :id", ms=int(time.time() * 1000), id=over)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {over: "swept", child: "swept"}
    assert_bucket_sound(site, report, before)


def test_a_location_is_held_with_all_in_it_and_around_it(moto_site: Site) -> None:
    """A folder holds what lies in it, and a part what contains it; a name that begins alike is another."""
    site = moto_site
    site.run(site.experiment(), n_objects=1)  # experiment 1, whose folder's name begins no other's
    held, other = site.experiment(), site.experiment(artifact_location=f"{site.artifact_root}/22")
    runs = [site.run(held, n_objects=1) for _ in range(2)]
    free = site.run(other, n_objects=1)
    for dead in (*runs, free):
        site.delete_run(dead)
    init(site)
    assert held == "2"
    put(site, "--location", f"{site.artifact_root}/2")
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {free: "swept"}
    assert_bucket_sound(site, report, before)


def test_a_proxied_location_is_held(proxied_site: Site) -> None:
    """As MLflow's rows name it, and as S3 does."""
    site = proxied_site
    experiment = site.experiment()
    first, second, free = (site.run(experiment, n_objects=1) for _ in range(3))
    for dead in (first, second, free):
        site.delete_run(dead)
    init(site)
    put(site, "--location", site.artifact_uri(first))
    put(site, "--location", f"{site.destination}/{experiment}/{second}")
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {free: "swept"}
    assert_bucket_sound(site, report, before)


def test_a_hold_on_a_registered_model_needs_the_registry(moto_site: Site) -> None:
    """Told to ignore the registry, nobody knows what its models have: nothing goes until the hold is released."""
    site = moto_site
    held, free = (site.run(site.experiment(), n_objects=1) for _ in range(2))
    _registered_and_deleted(site, "churn", held)
    for dead in (held, free):
        site.delete_run(dead)
    init(site)
    number = put(site, "--registered-model", "churn")
    before = site.snapshot()
    stores = ("--backend-store-uri", site.uri, "--unsafe-ignore-registry")
    refused = run("gc", *stores, "--yes", *NOW)

    assert refused.code == 1
    assert f"hold rm {number}" in refused.err
    assert site.snapshot() == before
    hold(site, "rm", number)
    assert run("gc", *stores, "--yes", *NOW).code == 0
    assert not left(site, held)


@needs("workspaces")
def test_a_hold_on_a_registered_model_of_one_workspace(moto_site: Site) -> None:
    """The same name in another workspace is another model; without a workspace both are meant."""
    site = moto_site
    experiment = site.experiment()
    here, there = (site.run(experiment, n_objects=1) for _ in range(2))
    for run_id, workspace in ((there, "team-b"), (here, "default")):
        _registered_and_deleted(site, "churn", run_id)
        for table in ("registered_models", "model_versions"):
            site.execute(f"UPDATE {table} SET workspace = :name", name=workspace) if workspace != "default" else None
        site.delete_run(run_id)
    init(site)
    number = put(site, "--registered-model", "churn", "--workspace", "team-b")
    assert evidence(_planned(site), there).startswith(f"hold #{number}")
    assert reasons(_planned(site)) == {there: "protected", here: "due"}
    put(site, "--registered-model", "churn")
    assert reasons(_planned(site)) == {there: "protected", here: "protected"}


def _planned(site: Site) -> Any:
    return run("gc", "--backend-store-uri", site.uri, "--dry-run", "--format", "json", *NOW).json


# Keep tags


@needs("logged_models")
def test_what_is_tagged_stays(any_site: Site) -> None:
    """On each kind of thing that MLflow can tag, with each kind of value, read from its own tables."""
    from mlflow.entities import LoggedModelTag
    from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag

    site = any_site
    live, kept, doomed = site.experiment(), site.experiment(), site.experiment()
    year = time.gmtime().tm_year
    values = {"true": "", f"{year + 1}-01-01": f" (until {year + 1}-01-01)", "soon": " (its value 'soon' is neither"}
    holders: dict[str, str] = {}
    for value, said in values.items():
        run_id = site.run(live, n_objects=1)
        run_tag(site, run_id, value)
        holders[run_id] = f"keep tag of run {run_id}{said}"
    free = [site.run(live, n_objects=1) for _ in range(3)]
    for run_id, value in zip(free, ("false", f"{year - 1}-01-01", ""), strict=True):
        run_tag(site, run_id, value)
    experiment_tag(site, kept, "true")
    in_kept = [site.run(kept, n_objects=1), site.logged_model(kept, n_objects=1), site.trace(kept)]
    holders |= dict.fromkeys(in_kept, f"keep tag of experiment {kept}")
    maker = site.run(doomed, n_objects=1)
    run_tag(site, maker, "yes")
    of_run, tagged, other = (site.logged_model(doomed, one, n_objects=1) for one in (maker, None, None))
    site.store.set_logged_model_tags(tagged, [LoggedModelTag(KEEP, "1")])
    made, linked, marked, unmarked = (site.trace(doomed) for _ in range(4))
    _made_in(site, made, maker)
    site.store.link_traces_to_run([linked], maker)
    site.store.set_trace_tag(marked, KEEP, "true")
    holders |= dict.fromkeys((maker, of_run, made, linked), f"keep tag of run {maker}")
    holders |= {tagged: f"keep tag of logged model {tagged}", marked: f"keep tag of trace {marked}"}
    of_model, of_version, of_neither = (site.run(live, n_objects=1) for _ in range(3))
    for name, run_id in (("churn", of_model), ("fraud", of_version), ("none", of_neither)):
        site.register(name, site.artifact_uri(run_id), run_id=run_id)
    site.registry.set_registered_model_tag("churn", RegisteredModelTag(KEEP, "true"))
    site.registry.set_model_version_tag("fraud", "1", ModelVersionTag(KEEP, "true"))
    for name in ("churn", "fraud", "none"):
        site.delete_version(name, 1)
    holders[of_model] = "keep tag of registered model churn, storage_location"
    holders[of_version] = "keep tag of registered model fraud, version 1, storage_location"
    for run_id in site.store.search_runs([live], "", 1, 100):
        site.delete_run(run_id.info.run_id)
    for experiment in (kept, doomed):
        site.delete_experiment(experiment)
    init(site)
    before = site.snapshot()
    report = gc(site)

    found = {one: evidence(report, one) for one, reason in reasons(report).items() if reason != "due"}
    assert found.keys() == holders.keys()
    assert [(one, found[one]) for one in found if not found[one].startswith(holders[one])] == []
    assert outcomes(report) == dict.fromkeys((*free, other, unmarked, of_neither), "swept")
    assert_bucket_sound(site, report, before)


def test_reading_keep_tags_costs_the_same_for_one_and_for_many(moto_site: Site) -> None:
    """A query for each of MLflow's tables of tags, not one for each run."""
    from mlflow_artifact_gc import registry as model_registry

    site = moto_site
    experiment = site.experiment()
    init(site)
    counts: list[int] = []
    for number in (1, 6):
        for _ in range(number):
            run_id = site.run(experiment)
            run_tag(site, run_id, "true")
            site.delete_run(run_id)
            put(site, "--run-id", run_id)
        tracked = references.TrackingDatabase.probe(site.engine, models_follow_run=False)
        with site.engine.connect() as connection:
            sent = _counted(connection)
            references.gather(tracked.on(connection), model_registry.Registry(connection).read())
        counts.append(len(sent))
    assert counts[0] == counts[1]


def _counted(connection: sa.Connection) -> list[str]:
    sent: list[str] = []
    sa.event.listen(connection, "before_cursor_execute", lambda *about: sent.append(about[2]))
    return sent


@pytest.mark.parametrize("kind", ["run", "experiment"])
def test_mlflow_tags_nothing_that_is_deleted(moto_site: Site, kind: str) -> None:
    """So whoever wants to keep a deleted run restores it first, or has it held; documented in docs/safety.md."""
    from mlflow.exceptions import MlflowException

    site = moto_site
    experiment = site.experiment()
    run_id = site.run(experiment)
    if kind == "run":
        site.delete_run(run_id)
    else:
        site.delete_experiment(experiment)
    with pytest.raises(MlflowException):
        run_tag(site, run_id, "true") if kind == "run" else experiment_tag(site, experiment, "true")
    init(site)
    put(site, f"--{kind}-id", run_id if kind == "run" else experiment)
    assert reasons(_planned(site)) == {run_id: "protected"}


# Races


def test_a_hold_between_plan_and_fence_stops_it(any_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it has gone, the report says by whom it is held, and what is not held goes."""
    site = any_site
    experiment = site.experiment()
    held, free = (site.run(experiment, n_objects=2) for _ in range(2))
    for dead in (held, free):
        site.delete_run(dead)
    init(site)
    before = site.snapshot()
    admit = fence.Fence.admit

    def late(self: fence.Fence, lines: Any) -> fence.Admission:
        put(site, "--run-id", held)
        return admit(self, lines)

    monkeypatch.setattr(fence.Fence, "admit", late)
    report = gc(site)

    assert outcomes(report) == {held: "protected", free: "swept"}
    (detail,) = (one["detail"] for one in report["results"] if one["id"] == held)
    assert detail == 'hold #1 by alice: "audit 2026"'
    assert_bucket_sound(site, report, before, intact=(held,))


def _between_two_batches(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """After the first request that deletes something, which takes ten keys here."""
    delete, done = s3.delete, list[int]()
    monkeypatch.setattr(s3, "MOST_ENTRIES", 10)
    for made in vars(purging).values():
        if batches := getattr(made, "in_batches", None):  # It has read that number before.
            monkeypatch.setattr(batches, "__defaults__", (10,))

    def acting(*arguments: Any, **named: Any) -> Any:
        answer = delete(*arguments, **named)
        if not done:
            done.append(1)
            act()
        return answer

    monkeypatch.setattr(s3, "delete", acting)


def test_a_hold_in_the_middle_of_a_sweep_keeps_the_rest(any_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a restore does: what is gone is told, and no further batch is deleted."""
    _held_in_the_middle(any_site, monkeypatch, "run")


def test_a_hold_on_what_is_being_swept_says_so(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts it on learns that a part may be gone."""
    site = moto_site
    dead = site.run(site.experiment(), n_objects=25)
    site.delete_run(dead)
    init(site)
    told: list[str] = []
    add = ("add", "--run-id", dead, "--reason", "stop")
    _between_two_batches(monkeypatch, lambda: told.append(hold(site, *add).err))

    assert outcomes(gc(site)) == {dead: "protected"}
    assert told == ["Note: too late for some of it: 1 location is being swept at this moment.\n"]


@pytest.mark.parametrize("on", ["experiment", "location", "experiment's keep tag"])
def test_whatever_is_held_in_the_middle_of_a_sweep(moto_site: Site, monkeypatch: pytest.MonkeyPatch, on: str) -> None:
    """By a hold on what is around it, and by the tag that a user sets on a live experiment, which MLflow allows."""
    _held_in_the_middle(moto_site, monkeypatch, on)


def _held_in_the_middle(site: Site, monkeypatch: pytest.MonkeyPatch, on: str) -> None:
    experiment = site.experiment()
    dead = site.run(experiment, n_objects=25)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    acts: dict[str, Callable[[], object]] = {
        "run": lambda: put(site, "--run-id", dead),
        "experiment": lambda: put(site, "--experiment-id", experiment),
        "location": lambda: put(site, "--location", f"{site.artifact_root}/{experiment}"),
        "experiment's keep tag": lambda: experiment_tag(site, experiment, "true"),
    }
    _between_two_batches(monkeypatch, acts[on])
    report = gc(site)

    (result,) = report["results"]
    assert (result["outcome"], result["deleted_objects"]) == ("protected", 10)
    assert result["detail"].endswith("; 10 objects were gone already")
    assert_bucket_sound(site, report, before)


def test_a_hold_on_something_else_stops_no_sweep(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for, and the sweep goes on."""
    site = moto_site
    experiment = site.experiment()
    dead, other = site.run(experiment, n_objects=25), site.run(experiment)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    held: list[str] = []
    read, times = references.read, list[int]()

    def counted(*arguments: Any, **how: Any) -> Any:
        times.append(len(held))
        return read(*arguments, **how)

    _between_two_batches(monkeypatch, lambda: held.append(put(site, "--run-id", other)))
    monkeypatch.setattr(references, "read", counted)
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    assert times == [0, 0, 1], "for the plan, at the fence, and once for the hold"
    assert_bucket_sound(site, report, before)


MOMENTS: tuple[tuple[Any, str, bool], ...] = (
    (fence.Fence, "_claim", False),
    (fence.Fence, "_claim", True),
    (references, "read", True),
    (fence.Fence, "changed", False),
    (fence.Fence, "changed", True),
    (s3, "delete", True),
    (sweeping._Sweep, "_record", False),
    (sweeping._Sweep, "_record", True),
)
"""In the order in which a sweep comes by: a function, and whether it has returned already."""


def test_a_hold_that_does_not_say_that_it_is_late_is_in_time(any_site: Site) -> None:
    """At each moment of a ``gc``: all of the run is there, or it was said."""
    site = any_site
    experiment = site.experiment()
    site.run(experiment, n_objects=1)
    init(site)
    was_late: list[bool] = []
    for owner, name, after in MOMENTS:
        dead = site.run(experiment, n_objects=2)
        site.delete_run(dead)
        told: list[Ran] = []
        with pytest.MonkeyPatch.context() as patched:
            act = partial(hold, site, "add", "--run-id", dead, "--reason", "r")
            at_the_moment(patched, owner, name, act, told, after=after)
            gc(site)
        late = told[0].err
        assert late or len(left(site, dead)) == 2, (name, after)
        was_late.append(bool(late))
    assert was_late[0] is False, "before the claim it comes in time"
    assert all(was_late[-3:]), "when something is gone, it is said"


def at_the_moment(
    patched: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], Ran], told: list[Ran], *, after: bool
) -> None:
    """Have ``act`` run once, before ``owner.name`` is first called or after it has returned; ``told`` gets its end."""
    original = getattr(owner, name)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        answer = original(*arguments, **named) if after else None
        if not told:
            told.append(act())
        return answer if after else original(*arguments, **named)

    patched.setattr(owner, name, wrapper)


def test_a_hold_on_what_is_gone_in_part_says_so(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended the sweep half-way: another hold, or a needed part; and where it was killed, that is said too."""
    site = moto_site
    experiment = site.experiment()
    dead, partly, killed = (site.run(experiment, n_objects=25) for _ in range(3))
    init(site)
    site.register("churn", f"{site.artifact_uri(partly)}/data/part-000000.bin")
    site.delete_run(partly)
    gc(site, "--partial")
    site.delete_run(dead)
    _between_two_batches(monkeypatch, lambda: put(site, "--run-id", dead))
    assert outcomes(gc(site))[dead] == "protected"
    site.delete_run(killed)
    monkeypatch.setattr(sweeping._Sweep, "_record", lambda *_: None)
    monkeypatch.setattr(journal, "release", lambda *_, **_how: None)
    gc(site, "--run-ids", killed)
    site.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1 WHERE claimed_until_ms IS NOT NULL")

    part = "Note: too late for some of it: 1 location has gone in part already.\n"
    said = [hold(site, "add", "--run-id", one, "--reason", "late").err for one in (dead, partly, killed)]
    assert said[:2] == [part] * 2
    assert said[2] == (
        "Note: too late for some of it: 1 location was being swept when that was cut off, and something there may be "
        "gone.\n"
    )


# The worker


def test_the_worker_keeps_what_is_held_and_takes_it_when_it_is_released(hooked: Site) -> None:
    """The run says what keeps it, and what is released is not looked at hours later, but at once."""
    site = hooked
    init(site, *AT_ONCE)
    experiment = site.experiment()
    held, tagged = (site.run(experiment, n_objects=1) for _ in range(2))
    run_tag(site, tagged, "true")
    number = put(site, "--run-id", held)
    for dead in (held, tagged):
        site.delete_run(dead)
    assert turn(site) == {}
    assert turn(site) == {}
    assert tags(site, held)["artifact_gc.protected_by"] == f'hold #{number} by alice: "audit 2026"'
    assert tags(site, tagged)["artifact_gc.protected_by"] == f"keep tag of run {tagged}"
    status = ("status", "--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    said, listed = run(*status).out, run(*status, "--format", "json").json
    assert f'hold #{number} by alice: "audit 2026"' in said
    assert [(one["target"], one["author"]) for one in listed["holds"]] == [(held, "alice")]
    assert {one["id"]: one["by"] for one in listed["protected"]}[tagged] == f"keep tag of run {tagged}"

    hold(site, "rm", number)
    assert turn(site) == {held: "swept"}
    assert left(site, tagged)


def test_what_is_released_in_its_grace_period_says_when_it_goes(hooked: Site) -> None:
    """The run no longer says that it is kept."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=1)
    number = put(site, "--run-id", run_id)
    site.delete_run(run_id)
    turn(site)
    assert tags(site, run_id)["artifact_gc.status"] == "kept, still needed"
    hold(site, "rm", number)
    turn(site)
    assert tags(site, run_id)["artifact_gc.status"].startswith("purge due ")
    shift(site, 8 * DAY_MS)
    assert turn(site) == {run_id: "swept"}


@pytest.mark.parametrize("on", ["run", "experiment"])
def test_what_is_held_in_its_grace_period_says_so_at_once(hooked: Site, on: str) -> None:
    """A run that waits no longer promises to go."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    experiment = site.experiment()
    held, other = site.run(experiment, n_objects=1), site.run(site.experiment(), n_objects=1)
    for dead in (held, other):
        site.delete_run(dead)
    turn(site)
    assert tags(site, held)["artifact_gc.status"].startswith("purge due ")
    put(site, f"--{on}-id", held if on == "run" else experiment)
    turn(site)
    assert tags(site, held)["artifact_gc.protected_by"] == 'hold #1 by alice: "audit 2026"'
    assert "artifact_gc.expires" not in tags(site, held)
    assert tags(site, other)["artifact_gc.status"].startswith("purge due ")


def test_a_keep_tag_that_was_taken_away_before_the_deletion_keeps_nothing(hooked: Site) -> None:
    """Restored, untagged, and deleted again: how a user lets go of what he kept."""
    site = hooked
    init(site, *AT_ONCE)
    run_id = site.run(site.experiment(), n_objects=1)
    run_tag(site, run_id, "true")
    site.delete_run(run_id)
    assert turn(site) == {}
    site.restore_run(run_id)
    site.store.delete_tag(run_id, KEEP)
    site.delete_run(run_id)
    assert turn(site) == {run_id: "swept"}


# Beside MLflow's own ways to delete


def test_mlflow_gc_deletes_nothing_that_is_held(
    db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """Neither artifacts nor rows; the command goes on with the others, and says who keeps it."""
    site = make_site(Site.direct(db_uri, seaweed, bucket))
    experiment, kept = site.experiment(), site.experiment()
    held, tagged, free = (site.run(experiment, n_objects=1) for _ in range(3))
    in_kept = site.run(kept, n_objects=1)
    run_tag(site, tagged, "true")
    for dead in (held, tagged, free):
        site.delete_run(dead)
    site.delete_experiment(kept)
    init(site, *AT_ONCE)
    put(site, "--run-id", held)
    put(site, "--experiment-id", kept)
    ran = mlflow_gc(site)

    assert ran.code == 0, ran.error
    # MLflow asks for the runs of deleted experiments whatever it was told, and for the others where they are named.
    assert "hold #2 by alice" in ran.err
    named = mlflow_gc(site, "--run-ids", f"{held},{tagged}")
    assert "hold #1 by alice" in named.err
    assert f"keep tag of run {tagged}" in named.err
    rows = {row.id for row in site.rows()}
    assert {held, tagged, in_kept, kept} <= rows
    assert free not in rows
    assert [len(left(site, one)) for one in (held, tagged, in_kept, free)] == [1, 1, 1, 0]


def test_an_experiment_that_is_held_keeps_its_row(site: Site) -> None:
    """Also where nothing in S3 is its: its tags, and traces whose spans are in the database, go with the row."""
    bare, tagged, empty, free = (site.experiment() for _ in range(4))
    site.trace(bare, {})
    site.execute("DELETE FROM trace_tags")
    experiment_tag(site, tagged, "true")
    for experiment in (bare, tagged, empty, free):
        site.delete_experiment(experiment)
    init(site, *AT_ONCE)
    for experiment in (bare, empty):
        put(site, "--experiment-id", experiment)
    gone = gc(site, "--metadata", "delete", "--experiment-ids", f"{free},{empty},{tagged},{bare}")
    assert gone["experiments_deleted"] == []  # nothing of theirs was due
    site.delete_run(site.run(site.experiment(), n_objects=1))
    assert gc(site, "--metadata", "delete")["experiments_deleted"] == [free]
    assert mlflow_gc(site).code == 0
    assert {bare, tagged, empty} <= {row.id for row in site.rows()}
    hold(site, "rm", "1", "2")
    assert mlflow_gc(site).code == 0
    assert {row.id for row in site.rows()} & {bare, tagged, empty} == {tagged}


def test_a_deletion_by_route_is_refused_where_it_is_held(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a deleted run, and a part of a live one; by holds as by keep tags."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    experiment, kept = site.experiment(), site.experiment()
    deleted, live, tagged, free = (site.run(experiment, {"model/a": 10, "b": 10}) for _ in range(4))
    of_experiment = site.run(kept, {"model/a": 10, "b": 10})
    run_tag(site, tagged, "true")
    site.delete_run(deleted)
    init(site, *AT_ONCE)
    for run_id in (deleted, live):
        put(site, "--run-id", run_id)
    put(site, "--experiment-id", kept)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", site.uri)
    monkeypatch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", site.uri)
    for run_id, part, holder in (
        (deleted, None, "hold #1 by alice"),
        (live, "model", "hold #2 by alice"),
        (tagged, "model", "keep tag"),
        (of_experiment, "model", "hold #3 by alice"),
    ):
        with pytest.raises(MlflowException, match=holder):
            get_artifact_repository(site.artifact_uri(run_id)).delete_artifacts(part)
    get_artifact_repository(site.artifact_uri(free)).delete_artifacts("model")
    assert [len(left(site, one)) for one in (deleted, live, tagged, of_experiment, free)] == [2, 2, 2, 2, 1]


# The command


def test_holds_are_listed(moto_site: Site) -> None:
    """On what, by whom, why, until when; with --all also those that are over, and who released them."""
    site = moto_site
    init(site)
    assert hold(site, "ls").out == "Nothing is held.\n"
    assert hold(site, "ls", "--all").out == "There has never been a hold.\n"
    experiment = site.experiment()
    runs = [site.run(experiment) for _ in range(3)]
    made = hold(site, "add", "--run-id", ",".join(runs[:2]), "--run-id", runs[2], "--reason", "why  not\n\x1bthis")
    assert made.out.splitlines()[0] == f"Hold #1: run {runs[0]} is kept from now on, until 'hold rm' releases it."
    year = time.gmtime().tm_year + 1
    dated = hold(site, "add", "--experiment-id", experiment, "--reason", "r", "--until", f"{year}-01-01").out
    assert (
        dated == f"Hold #4: experiment {experiment} is kept from now on, until {year}-01-01 ({year}-01-02 00:00:00Z).\n"
    )
    hold(site, "rm", "#2,3", "--author", "bob")
    site.execute("UPDATE artifact_gc_holds SET until_ms = 1 WHERE id = 4")

    assert [line.split()[0] for line in hold(site, "ls").out.splitlines()] == ["hold", "#1"]
    assert hold(site, "ls").out.splitlines()[1].endswith("for ever  why not this")
    every = hold(site, "ls", "--all").out
    assert every.count("by bob") == 2
    assert "over" in every.splitlines()[4]
    listed = json.loads(hold(site, "ls", "--all", "--format", "json").out)["holds"]
    assert [(one["id"], one["kind"], one["holds"], one["released_by"]) for one in listed] == [
        (1, "run", True, None),
        (2, "run", False, "bob"),
        (3, "run", False, "bob"),
        (4, "experiment", False, None),
    ]
    assert hold(site, "rm", "2").out == "Hold #2 was released before, by bob.\n"


def test_a_hold_that_comes_too_late_says_so(moto_site: Site) -> None:
    """It brings nothing back."""
    site = moto_site
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=1) for _ in range(2)]
    for run_id in dead:
        site.delete_run(run_id)
    init(site)
    gc(site)
    ran = hold(site, "add", "--run-id", dead[0], "--reason", "late")
    assert ran.err == "Note: too late for some of it: 1 location has gone already.\n"
    ran = hold(site, "add", "--experiment-id", experiment, "--reason", "late", "--format", "json")
    assert ran.json["warnings"] == ["too late for some of it: 2 locations have gone already."]


@needs("logged_models")
def test_a_hold_on_a_run_says_that_its_models_and_traces_have_gone(moto_site: Site) -> None:
    """A hold on a run is one on them too; the run itself is all there."""
    site = moto_site
    doomed = site.experiment()
    run_id = site.run(doomed, n_objects=1)
    model, trace = site.logged_model(doomed, run_id, n_objects=1), site.trace(doomed)
    _made_in(site, trace, run_id)
    site.delete_logged_model(model)
    init(site)
    assert outcomes(gc(site)) == {model: "swept"}
    ran = hold(site, "add", "--run-id", run_id, "--reason", "late")
    assert ran.err == "Note: too late for some of it: 1 location has gone already.\n"
    hold(site, "rm", "1")
    site.delete_experiment(doomed)
    site.restore_run(run_id)
    assert outcomes(gc(site)) == {trace: "swept"}
    ran = hold(site, "add", "--run-id", run_id, "--reason", "late")
    assert ran.err == "Note: too late for some of it: 2 locations have gone already.\n"


_NOT_HELD: tuple[tuple[tuple[str, ...], str], ...] = (
    ((), "What is to be kept? Expected exactly one of --run-id, --experiment-id, "),
    (("--run-id", "a", "--location", "s3://b/c"), "given: --run-id, --location"),
    (("--run-id", "nobody"), "there is no run nobody in this database: nothing was held"),
    (("--run-id", "RUN,nobody"), "there is no run nobody"),
    (("--experiment-id", "99"), "there is no experiment 99"),
    (("--experiment-id", "x"), "there is no experiment x"),
    (("--logged-model-id", "m-1"), "there is no logged model m-1"),
    (("--registered-model", "nobody"), "there is no registered model nobody"),
    (("--registered-model", "churn", "--workspace", "nowhere"), "churn in workspace 'nowhere'"),
    (("--run-id", "RUN", "--workspace", "w"), "--workspace narrows down --registered-model alone"),
    (("--location", "gs://b/c"), "names no location: expected for example s3://bucket/folder"),
    (("--location", "s3:///c"), "names no location"),
    (("--location", "s3://bucket/a/../b"), "names no location"),
    (("--location", "mlruns/1"), "names no location"),
    (("--location", "mlflow-artifacts:/1"), "is not known: give --artifacts-destination"),
    (("--location", f"s3://bucket/{'x' * 2050}"), "expected between 1 and 2,048 characters"),
    (("--run-id", "RUN", "--until", "soon"), "'soon' is no end: write a date (2027-01-01)"),
    (("--run-id", "RUN", "--until", "2020-01-01"), "'2020-01-01' has passed"),
    (("--run-id", "RUN", "--reason", "  "), "--reason has 0 characters"),
    (("--run-id", "RUN", "--author", ""), "--author has 0 characters"),
)


def test_what_cannot_be_held_is_said(moto_site: Site) -> None:
    """In one sentence, with exit code 2; nothing is held then, not even what could be."""
    site = moto_site
    run_id = site.run(site.experiment())
    site.register("churn", site.artifact_uri(run_id))
    init(site)
    for arguments, says in _NOT_HELD:
        given = [part.replace("RUN", run_id) for part in arguments]
        reason = () if "--reason" in given else ("--reason", "r")
        ran = hold(site, "add", *given, *reason, expect=2)

        assert says in ran.err, arguments
        assert len(ran.err.strip().splitlines()) == 1
    assert hold(site, "ls", "--all").out == "There has never been a hold.\n"


def test_what_cannot_be_released_is_said(moto_site: Site) -> None:
    """And nothing is released then."""
    site = moto_site
    init(site)
    put(site, "--location", f"s3://{site.bucket}/not/there/yet")
    for number in ("7", "x", "-1", "9" * 40, "1,7"):
        ran = run("hold", "rm", "--backend-store-uri", site.uri, "--", number)
        assert ran.code == 2, number
        assert "'hold ls' lists them" in ran.err
    assert "#1" in hold(site, "ls").out


def test_without_our_tables_nothing_can_be_held(moto_site: Site) -> None:
    """Exit code 5, and what to do."""
    for arguments in (("ls",), ("rm", "1"), ("add", "--run-id", "x", "--reason", "r")):
        ran = hold(moto_site, *arguments, expect=5)
        assert "run 'mlflow-artifact-gc init" in ran.err


# What changes of itself


def test_a_keep_tag_follows_a_model_that_is_renamed(moto_site: Site) -> None:
    """With its versions, deleted ones too: what they point at stays, and the plan says the new name."""
    from mlflow.entities.model_registry import RegisteredModelTag

    site = moto_site
    experiment = site.experiment()
    kept, free = (site.run(experiment, n_objects=1) for _ in range(2))
    for name, run_id in (("churn", kept), ("fraud", free)):
        _registered_and_deleted(site, name, run_id)
        site.delete_run(run_id)
    site.registry.set_registered_model_tag("churn", RegisteredModelTag(KEEP, "true"))
    for name in ("churn", "fraud"):
        site.registry.rename_registered_model(name, f"{name} v2")
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {free: "swept"}
    assert evidence(report, kept).startswith("keep tag of registered model churn v2")
    assert_bucket_sound(site, report, before)


def test_what_keeps_nothing_any_more_is_seen_within_six_hours(hooked: Site) -> None:
    """Nobody tells the worker that a hold has ended by itself, or that a keep tag is gone: it looks again in time."""
    site = hooked
    init(site, *AT_ONCE)
    experiment = site.experiment()
    ended, untagged, kept = (site.run(experiment, n_objects=1) for _ in range(3))
    run_tag(site, untagged, "true")
    put(site, "--run-id", ended, "--until", "1h")
    put(site, "--run-id", kept, "--until", "7h")
    # One worker: a new one looks at everything at once.
    one = worker(site)
    try:
        one.turn()
        for dead in (ended, untagged, kept):
            site.delete_run(dead)
        one.turn()
        # By hand: MLflow changes no tag of a deleted run.
        site.execute("DELETE FROM tags WHERE tags.key = :key", key=KEEP)
        one.turn()
        assert [len(left(site, dead)) for dead in (ended, untagged, kept)] == [1, 1, 1]
        elapse(site, 6 * 3_600_000 + 60_000)
        report = one.turn()
    finally:
        one.close()

    assert report is not None
    assert {result.decision.entity.id: result.outcome for result in report.results} == {
        ended: "swept",
        untagged: "swept",
    }
    assert [len(left(site, dead)) for dead in (ended, untagged, kept)] == [0, 0, 1]
