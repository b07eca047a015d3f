"""Every row of MLflow's that may point at somebody else's artifacts, against MLflow's own stores: what it protects.

``docs/safety.md`` has them in a table, each with its test.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.abilities import needs
from tests.command import NOW, evidence, gc, init, outcomes, reasons, run
from tests.oracle import assert_bucket_sound
from tests.servers import S3Server
from tests.site import Site

MakeSite = Callable[[Site], Site]


@pytest.fixture
def moto_site(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Site:
    """SQLite and moto."""
    return make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))


@pytest.fixture
def any_site(any_db_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Site:
    """Each kind of database, and moto."""
    return make_site(Site.direct(any_db_uri, moto_s3, moto_bucket))


def _use(site: Site, run_id: str, model: str, *, output: bool = False) -> None:
    """A run takes a logged model as its input, or says that it has made it."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput

    if output:
        site.store.log_outputs(run_id, [LoggedModelOutput(model_id=model, step=0)])
    else:
        site.store.log_inputs(run_id, models=[LoggedModelInput(model_id=model)])


@dataclass
class Cast:
    """What is deleted on a site: what is needed, with its holder, and what goes. One experiment lives, one does not."""

    site: Site
    live: str
    doomed: str
    holders: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)


def _add_versions(cast: Cast) -> None:
    site = cast.site
    champion, by_source = (site.run(cast.live, {"model/MLmodel": 10}) for _ in range(2))
    for _ in range(2):
        version = site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    site.delete_version("churn", 1)
    for alias in ("champion", "best"):
        site.alias("churn", alias, version)
    site.register("sourced", f"{site.artifact_uri(by_source)}/model")
    site.set_version_columns("sourced", 1, storage_location=None)
    copied = site.run(cast.live, {"model/MLmodel": 10})
    site.register("origin", f"{site.artifact_uri(copied)}/model", run_id=copied)
    site.register("copy", "models:/origin/1")
    site.register("copy-of-copy", "models:/copy/1")
    for name in ("origin", "copy"):
        site.delete_version(name, 1)
    by_chain = _chain(site, site.run(cast.live, {"model/MLmodel": 10}))
    # The last: the column may be empty.
    stages = ("None", "Staging", "Production", "Archived", None)
    staged = {site.run(cast.live, {"model/MLmodel": 10}): stage for stage in stages}
    for run_id, stage in staged.items():
        version = site.register("staged", f"{site.artifact_uri(run_id)}/model", run_id=run_id)
        if stage is None:
            site.set_version_columns("staged", version, current_stage=None)
        else:
            site.stage("staged", version, stage)
    of_model = site.logged_model(cast.doomed, n_objects=1)
    site.register("logged", f"models:/{of_model}", local_model_id=of_model)
    cast.holders |= {
        champion: "registered model churn, version 2 (@best) (@champion), storage_location",
        copied: "registered model copy-of-copy, version 1, storage_location",
        by_source: "registered model sourced, version 1, source",
        by_chain: "registered model third, version 1, source models:/second/1",
        **{one: f"registered model staged, version {1 + at}, storage_location" for at, one in enumerate(staged)},
        of_model: "registered model logged, version 1, storage_location",
    }
    for one in (champion, by_source, copied, by_chain, *staged):
        site.delete_run(one)


def _chain(site: Site, run_id: str) -> str:
    """Three versions that only their sources lead from one to the next; the first two are deleted."""
    site.register("first", f"{site.artifact_uri(run_id)}/model", run_id=run_id)
    site.register("second", "models:/first/1")
    site.register("third", "models:/second/1")
    for name in ("first", "second"):
        site.delete_version(name, 1)
    # Rows from before that column. Of a version that MLflow itself deletes it overwrites the source: only where that
    # was done otherwise does it lead on.
    site.set_version_columns("second", 1, source="models:/first/1", storage_location=None)
    site.set_version_columns("third", 1, storage_location=None)
    return run_id


def _add_inputs_and_outputs(cast: Cast) -> None:
    site = cast.site
    maker, other, dead = (site.run(cast.live, n_objects=1) for _ in range(3))
    used, made, own, of_dead = (site.logged_model(cast.live, source_run=maker, n_objects=1) for _ in range(4))
    _use(site, other, used)
    _use(site, other, made, output=True)
    _use(site, maker, own)
    _use(site, maker, own, output=True)
    _use(site, dead, of_dead)
    for model in (used, made, own, of_dead):
        site.delete_logged_model(model)
    went_along = site.logged_model(cast.doomed, source_run=maker, n_objects=1)
    _use(site, maker, went_along, output=True)
    cast.holders |= {used: f"run {other}, input", made: f"run {other}, output", went_along: f"run {maker}, output"}
    site.delete_run(dead)
    cast.gone += [own, of_dead, dead]


def _add_datasets(cast: Cast) -> None:
    from mlflow.entities import Dataset, DatasetInput

    site = cast.site
    source, unused, user, dead = (site.run(cast.live, n_objects=1) for _ in range(4))
    for by, of in ((user, source), (dead, unused)):
        document = json.dumps({"uri": f"{site.artifact_uri(of)}/data.parquet"})
        site.store.log_inputs(by, [DatasetInput(dataset=Dataset(f"sales-{of[:4]}", of, "s3", document), tags=[])])
    cast.holders[source] = f"dataset sales-{source[:4]} of run {user}, source"
    registered, maker = (site.run(cast.live, n_objects=1) for _ in range(2))
    site.register("read", f"{site.artifact_uri(registered)}/model", run_id=registered)
    site.delete_version("read", 1)
    of_maker = site.logged_model(cast.live, source_run=maker, n_objects=1)
    site.delete_logged_model(of_maker)
    document = json.dumps({"a": [{"b": "models:/read/1"}, [f"runs:/{maker}/x"]]})
    site.store.log_inputs(user, [DatasetInput(dataset=Dataset("nested", "n", "s3", document), tags=[])])
    cast.holders |= dict.fromkeys((registered, of_maker), f"dataset nested of run {user}, source")
    for one in (source, unused, dead, registered):
        site.delete_run(one)
    cast.gone += [unused, dead]


def _add_attachments(cast: Cast) -> None:
    site = cast.site
    questions = site.store.create_dataset("questions", experiment_ids=[cast.live]).dataset_id
    for column in ("inputs", "expectations", "outputs"):
        trace = site.trace(cast.doomed, {"attachments/1": 10})
        link = f"mlflow-attachment://1?content_type=image%2Fpng&trace_id={trace}"
        record: dict[str, Any] = {"inputs": {"question": column}, column: {"nested": [{"picture": link}]}}
        site.store.upsert_dataset_records(questions, [record])
        cast.holders[trace] = f"evaluation dataset {questions}, attachment"
    copied = site.trace(cast.doomed, {"attachments/1": 10})
    site.store.upsert_dataset_records(questions, [{"inputs": {"trace": "copied"}, "source": _from_trace(copied)}])
    cast.gone += [copied, site.trace(cast.doomed)]


@needs("logged_models")
def test_each_row_protects_what_it_points_at(any_site: Site) -> None:
    """On each kind of database: versions, aliases, inputs and outputs, datasets, attachments; and what protects not."""
    site = any_site
    cast = Cast(site, live=site.experiment(), doomed=site.experiment())
    for add in (_add_versions, _add_inputs_and_outputs, _add_datasets, _add_attachments):
        add(cast)
    site.delete_experiment(cast.doomed)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert {one: evidence(report, one) for one, reason in reasons(report).items() if reason != "due"} == cast.holders
    assert outcomes(report) == dict.fromkeys(cast.gone, "swept")
    assert_bucket_sound(site, report, before)


def _from_trace(trace: str) -> dict[str, Any]:
    return {"source_type": "TRACE", "source_data": {"trace_id": trace}}


def test_each_report_names_the_holder(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan, ``gc`` (also for what was registered after the plan), and ``status``: model, version, alias, column."""
    from mlflow_artifact_gc import fence

    site = moto_site
    champion, late = (site.run(site.experiment(), n_objects=1) for _ in range(2))
    site.alias("churn", "champion", site.register("churn", site.artifact_uri(champion), run_id=champion))
    for one in (champion, late):
        site.delete_run(one)
    init(site)
    holder = "registered model churn, version 1 (@champion), storage_location"
    planned = run("gc", "--backend-store-uri", site.uri, "--dry-run", *NOW).out
    told = run("status", "--backend-store-uri", site.uri)
    listed = run("status", "--backend-store-uri", site.uri, "--format", "json").json["protected"]
    claim = fence.Fence._claim

    def registering(*arguments: Any) -> Any:
        claimed = claim(*arguments)
        site.alias("late", "challenger", site.register("late", site.artifact_uri(late), run_id=late))
        return claimed

    monkeypatch.setattr(fence.Fence, "_claim", registering)
    swept = run("gc", "--backend-store-uri", site.uri, "--yes", *NOW).out

    assert holder in planned
    assert holder in told.out
    assert listed == [{"kind": "run", "id": champion, "by": holder}]
    assert "registered model late, version 1 (@challenger), storage_location" in swept
    assert site.snapshot().keys >= set(site.objects)


@needs("logged_models")
def test_a_model_that_follows_its_run_stays_while_a_live_run_uses_it(moto_site: Site) -> None:
    """``--models follow-run``: a live run that evaluates the model keeps it, and not the run that it was made in."""
    site = moto_site
    experiment = site.experiment()
    dead, user = site.run(experiment, n_objects=1), site.run(experiment)
    follows, used = (site.logged_model(experiment, source_run=dead, n_objects=1) for _ in range(2))
    for model in (follows, used):
        _use(site, dead, model, output=True)
    _use(site, user, used)
    site.delete_run(dead)
    init(site, "--models", "follow-run")
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept", follows: "swept"}
    assert evidence(report, used) == f"run {user}, input"
    assert {one.key for one in before.items - site.snapshot().items if used in one.key} == set()


def test_experiments_may_share_and_nest_their_locations(moto_site: Site) -> None:
    """The runs of a deleted experiment go, whoever else has its location, or the bucket."""
    site = moto_site
    shared = f"s3://{site.bucket}/shared"
    doomed, beside = site.experiment(artifact_location=shared), site.experiment(artifact_location=shared)
    inside = site.experiment(artifact_location=f"{shared}/inside")
    above = site.experiment(artifact_location=f"s3://{site.bucket}")
    dead = [site.run(doomed, n_objects=1), *site.logged_models(doomed, n_objects=1), site.trace(doomed)]
    for experiment in (beside, inside, above):
        site.run(experiment, n_objects=1)
        site.trace(experiment)
        dead.append(site.run(experiment, n_objects=1))
        site.delete_run(dead[-1])
    site.delete_experiment(doomed)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == dict.fromkeys(dead, "swept")
    assert_bucket_sound(site, report, before)


def test_a_uri_outside_its_experiment_s_location_counts_as_it_stands(moto_site: Site) -> None:
    """A location that was retargeted, or a row that was edited: what a row says of itself, its experiment does not."""
    site = moto_site
    experiment = site.experiment()
    old_live, old_dead = (site.run(experiment, n_objects=1) for _ in range(2))
    # 'mlflow db move-resources --artifact-policy retarget': runs, models and traces keep their URIs.
    site.execute(
        "UPDATE experiments SET artifact_location = :uri WHERE experiment_id = :id",
        uri=f"s3://{site.bucket}/moved/1",
        id=int(experiment),
    )
    new_live, new_dead = (site.run(experiment, n_objects=1) for _ in range(2))
    assert site.artifact_uri(new_live).startswith(f"s3://{site.bucket}/moved/1/")
    below = f"{site.artifact_uri(new_dead)}/below/{new_live}/artifacts"
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=below, id=new_live)
    site.write(new_live, below, {"a": 10})
    for one in (old_dead, new_dead):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {old_dead: "swept"}
    assert evidence(report, new_dead).startswith(f"run {new_live}")
    assert old_live not in reasons(report)
    assert_bucket_sound(site, report, before)


def test_traces_and_their_archives_in_a_deleted_run_s_location_keep_it(moto_site: Site) -> None:
    """By the trace's data as by its archive, which is the only copy; a trace that was merely made in a run does not."""
    site = moto_site
    experiment = site.experiment()
    around_data, around_archive, maker = (site.run(experiment, n_objects=1) for _ in range(3))
    data, archived, made = (site.trace(experiment) for _ in range(3))
    places = {
        data: ("mlflow.artifactLocation", f"{site.artifact_uri(around_data)}/traces/{data}/artifacts"),
        archived: ("mlflow.trace.archiveLocation", f"{site.artifact_uri(around_archive)}/traces/{archived}/artifacts"),
    }
    for trace, (key, uri) in places.items():
        site.execute('DELETE FROM trace_tags WHERE request_id = :id AND "key" = :key', id=trace, key=key)
        site.execute(
            'INSERT INTO trace_tags ("key", value, request_id) VALUES (:key, :uri, :id)', key=key, uri=uri, id=trace
        )
        site.write(trace, uri, {"traces.pb": 10})
    site.execute(
        'INSERT INTO trace_request_metadata ("key", value, request_id) VALUES (:key, :run, :id)',
        key="mlflow.sourceRun",
        run=maker,
        id=made,
    )
    for one in (around_data, around_archive, maker):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {maker: "swept"}
    assert evidence(report, around_data).startswith("trace ")
    assert evidence(report, around_archive).startswith("trace ")
    assert_bucket_sound(site, report, before)


@needs("logged_models")
def test_a_live_logged_model_in_a_deleted_run_s_location_keeps_it(moto_site: Site) -> None:
    """By what its row says, whatever its id is, and whosever experiment it is of."""
    site = moto_site
    experiment, theirs = site.experiment(), site.experiment()
    around, around_odd, plain = (site.run(experiment, n_objects=1) for _ in range(3))
    inner, odd = (site.logged_model(theirs) for _ in range(2))
    site.execute("UPDATE logged_models SET model_id = 'm-odd' WHERE model_id = :id", id=odd)
    for run_id, model in ((around, inner), (around_odd, "m-odd")):
        uri = f"{site.artifact_uri(run_id)}/x/{model}/artifacts"
        site.execute("UPDATE logged_models SET artifact_location = :uri WHERE model_id = :id", uri=uri, id=model)
        site.write(model, uri, {"weights": 10})
    for one in (around, around_odd, plain):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {plain: "swept"}
    assert evidence(report, around) == f"logged model {inner}"
    assert evidence(report, around_odd) == "logged model m-odd"
    assert_bucket_sound(site, report, before)


def test_the_archive_of_a_live_trace_stays_wherever_it_lies(moto_site: Site) -> None:
    """An archive in another place goes with its experiment, and stays with a live one."""
    site = moto_site
    live, doomed = site.experiment(), site.experiment()
    traces = {experiment: site.trace(experiment) for experiment in (live, doomed)}
    for experiment, trace in traces.items():
        uri = f"s3://{site.bucket}/archive/{experiment}/traces/{trace}/artifacts"
        site.execute(
            'INSERT INTO trace_tags ("key", value, request_id) VALUES (:key, :uri, :id)',
            key="mlflow.trace.archiveLocation",
            uri=uri,
            id=trace,
        )
        site.write(trace, uri, {"traces.pb": 10})
    site.delete_experiment(doomed)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert [(one["id"], one["outcome"]) for one in report["results"]] == [(traces[doomed], "swept")] * 2
    assert_bucket_sound(site, report, before)


def test_a_parent_and_its_children_go_each_for_itself(moto_site: Site) -> None:
    """MLflow deletes no children with a parent: a tag says who is whose, and each has its own artifacts."""
    site = moto_site
    experiment = site.experiment()
    parent, other = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    site.run(experiment, n_objects=1, parent=parent)
    child = site.run(experiment, n_objects=1, parent=other)
    for one in (parent, child):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {parent: "swept", child: "swept"}
    assert_bucket_sound(site, report, before)


@needs("workspaces")
def test_a_version_in_another_workspace_protects(moto_site: Site) -> None:
    """And so does a live run there that lies in a deleted run of this one: nothing is read workspace by workspace."""
    site = moto_site
    experiment, theirs = site.experiment(), site.experiment()
    registered, around, plain = (site.run(experiment, n_objects=1) for _ in range(3))
    site.register("churn", site.artifact_uri(registered), run_id=registered)
    for table in ("registered_models", "model_versions"):
        site.execute(f"UPDATE {table} SET workspace = 'team-b'")
    inner = site.run(theirs)
    uri = f"{site.artifact_uri(around)}/{inner}/artifacts"
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=uri, id=inner)
    site.write(inner, uri, {"a": 10})
    site.execute("UPDATE experiments SET workspace = 'team-b' WHERE experiment_id = :id", id=int(theirs))
    for one in (registered, around, plain):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site, "--workspace", "default")

    assert outcomes(report) == {plain: "swept"}
    assert evidence(report, registered).startswith("registered model churn, version 1")
    assert_bucket_sound(site, report, before)


@pytest.fixture
def registry_uri(sqlite_template: Path, tmp_path: Path) -> str:
    """A database for a registry of its own."""
    shutil.copyfile(sqlite_template, tmp_path / "registry.db")
    return f"sqlite:///{tmp_path / 'registry.db'}"


def test_a_registry_in_a_database_of_its_own_protects(
    db_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite, registry_uri: str
) -> None:
    """By its versions, its aliases and its chains, whatever kind of database each of the two is."""
    site = make_site(replace(Site.direct(db_uri, moto_s3, moto_bucket), registry_uri=registry_uri))
    experiment = site.experiment()
    direct, chained, plain = (site.run(experiment, n_objects=1) for _ in range(3))
    site.alias("churn", "champion", site.register("churn", site.artifact_uri(direct), run_id=direct))
    site.register("origin", site.artifact_uri(chained), run_id=chained)
    site.register("copy", "models:/origin/1")
    site.set_version_columns("copy", 1, storage_location=None)
    site.delete_version("origin", 1)
    for one in (direct, chained, plain):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {plain: "swept"}
    assert evidence(report, direct) == "registered model churn, version 1 (@champion), storage_location"
    assert evidence(report, chained).startswith("registered model copy, version 1, source models:/origin/1")
    assert_bucket_sound(site, report, before)


# What is needed in part


def test_how_much_lies_beside_what_is_needed_is_told(any_site: Site) -> None:
    """A version needs ``artifacts/model``: the plan says how much of the run that is not; it purges nothing of it."""
    site = any_site
    experiment = site.experiment()
    part, single, whole, held, by_id, nested, plain = (
        site.run(experiment, {"model/weights": 100, "model2/a": 20, "checkpoints/1": 1000, "file": 3}) for _ in range(7)
    )
    for name, path in (("a", "model"), ("b", "model")):
        site.register(name, f"{site.artifact_uri(part)}/{path}", run_id=part)
    site.register("single", f"{site.artifact_uri(single)}/file")
    site.register("whole", site.artifact_uri(whole))
    for run_id in (held, by_id, nested):
        site.register("others", f"{site.artifact_uri(run_id)}/model")
    assert run("hold", "add", "--backend-store-uri", site.uri, "--run-id", held, "--reason", "r").code == 5
    init(site)
    run("hold", "add", "--backend-store-uri", site.uri, "--run-id", held, "--reason", "r")
    site.register("by-id", site.artifact_uri(by_id))
    site.set_version_columns("by-id", 1, source=f"runs:/{by_id}/model", storage_location=f"runs:/{by_id}/model")
    inner = site.run(site.experiment(artifact_location=f"{site.artifact_uri(nested)}/nested"), n_objects=1)
    for dead in (part, single, whole, held, by_id, nested, plain, inner):
        site.delete_run(dead)
    before = site.snapshot()
    stores = ("gc", "--backend-store-uri", site.uri, "--dry-run", *NOW)
    told = {one["location"]: one for one in run(*stores, "--format", "json").json["partly_needed"]}
    places = {f"{site.artifact_uri(run_id)}/": run_id for run_id in (part, single)}

    assert {places[place] for place in told} == {part, single}
    (of_part,) = (one for place, one in told.items() if places[place] == part)
    assert of_part["needed"] == [f"{site.artifact_uri(part)}/model/"]
    assert (of_part["objects"], of_part["bytes"]) == (4, 1123)
    assert (of_part["objects_beside"], of_part["bytes_beside"]) == (3, 1023)
    (of_single,) = (one for place, one in told.items() if places[place] == single)
    assert (of_single["objects_beside"], of_single["bytes_beside"]) == (3, 1120)
    said = run(*stores).out
    assert "Needed in part: 2 locations; 6 objects of theirs, 2.14 kB, lie beside what is needed." in said
    assert outcomes(gc(site)) == {plain: "swept"}
    assert {one.key for one in before.items - site.snapshot().items if plain not in one.key} == set()
