"""``gc --orphans``: what no row accounts for goes after its quarantine, and nothing else ever does.

S3's dates cannot be put back, so time passes in the sightings: ``wait`` dates them earlier.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import fence
from mlflow_artifact_gc.keeping import KEEP
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.s3 import marker
from tests.abilities import has, needs
from tests.command import Ran, gc, init, run
from tests.fakes3 import FakeS3, Fault, Kind, fake_s3
from tests.fakes3.faults import FOR_GOOD
from tests.integration.s3_servers import wait_for_nothing
from tests.integration.test_attack_sweep import once_before
from tests.integration.test_tag import ruled
from tests.servers import S3Server
from tests.site import DAY_MS, Site

MakeSite = Callable[[Site], Site]
NOT_YOUNG = ("--min-object-age", "0s")


def new_id(start: str = "") -> str:
    """An id as MLflow makes them."""
    return start + uuid.uuid4().hex


def ran(site: Site, *arguments: str) -> Ran:
    """``gc --orphans --yes`` on a site, with no minimum age."""
    stores = ["--backend-store-uri", site.uri]
    if site.registry_uri:
        stores += ["--registry-store-uri", site.registry_uri]
    return run("gc", *stores, "--orphans", "--yes", *NOT_YOUNG, *arguments)


def hunt(site: Site, *arguments: str, expect: int = 0) -> Any:
    """The same, and its report."""
    done = ran(site, "--format", "json", *arguments)
    assert done.code == expect, f"{done.code}: {done.err}\n{done.out}"
    return done.json


def wait(site: Site, days: int = 1) -> None:
    """So much time passes between two runs."""
    site.execute(
        "UPDATE artifact_gc_sightings SET first_seen_ms = first_seen_ms - :ms, last_seen_ms = last_seen_ms - :ms",
        ms=days * DAY_MS,
    )


def reasons(report: Any) -> dict[str, str]:
    """Of each prefix why it goes or stays."""
    return {line["uri"].split("/", 3)[3]: line["reason"] for line in report["plan"]["decisions"]}


def outcomes(report: Any) -> dict[str, str]:
    """What became of each prefix that was to be swept."""
    return {result["location"].split("/", 3)[3]: result["outcome"] for result in report["results"]}


def evidence(report: Any, prefix: str) -> str:
    """What the plan says of one prefix."""
    return next(str(line["evidence"]) for line in report["plan"]["decisions"] if line["uri"].endswith(prefix))


def sightings_of(site: Site) -> list[Any]:
    """What is noted."""
    with site.engine.connect() as connection:
        return list(connection.execute(sa.text("SELECT * FROM artifact_gc_sightings ORDER BY prefix")))


def lose(site: Site, prefix: str, n_objects: int = 1) -> str:
    """Objects that no row accounts for."""
    site.write("nobody", f"s3://{site.bucket}/{prefix}", {f"part-{number}": 7 for number in range(n_objects)})
    return prefix


def keys(site: Site, prefix: str) -> list[str]:
    """Everything that lies beneath a prefix, versions, markers and uploads included."""
    return [item.key for item in site.items() if item.key.startswith(prefix)]


@pytest.fixture
def owned(site: Site) -> Site:
    """A site that is set up, with a live run, and whose root is marked as its own."""
    return own(site)


def own(site: Site) -> Site:
    """The same of another site."""
    experiment = site.experiment()
    site.run(experiment, n_objects=2)
    swept = site.run(experiment, n_objects=1)
    site.delete_run(swept)
    init(site)
    gc(site, "--run-ids", swept)
    say_so(site)
    return site


def say_so(site: Site, root: str | None = None) -> None:
    """That no other server keeps its artifacts there."""
    root = root or site.destination or f"s3://{site.bucket}/mlruns"
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.registry_uri or site.uri)
    owned = run("gc", *stores, "--own-roots", "--root", root, "--yes")
    assert owned.code == 0, owned.err


def tick() -> None:
    """S3 dates to the second: what is written after this has a later date."""
    time.sleep(1.1)


def test_an_orphan_goes_at_its_second_sighting(owned: Site) -> None:
    """Runs, models, traces, of experiments that are there and that are not; versions, markers or an upload alone."""
    owned.switch_versioning(on=True)
    before = owned.snapshot()
    places = [
        lose(owned, f"mlruns/1/{new_id()}/artifacts/", 3),
        lose(owned, f"mlruns/1/models/{new_id('m-')}/artifacts/"),
        lose(owned, f"mlruns/1/traces/{new_id('tr-')}/artifacts/"),
        lose(owned, f"mlruns/777/{new_id()}/artifacts/"),
        lose(owned, f"mlruns/123456789012345678/{new_id()}/artifacts/"),
        lose(owned, f"mlruns/workspaces/dropped/778/models/{new_id('m-')}/artifacts/"),
        lose(owned, f"mlruns/1/{new_id()}/artifacts/"),
        f"mlruns/1/{new_id()}/artifacts/",
    ]
    owned.client.delete_object(Bucket=owned.bucket, Key=f"{places[-2]}part-0")
    owned.client.create_multipart_upload(Bucket=owned.bucket, Key=f"{places[-1]}unfinished")

    shown = ran(owned, "--dry-run")
    assert "Noted" not in shown.out
    assert "Deleted in MLflow before" not in shown.out
    first, early = hunt(owned), hunt(owned)
    wait(owned)
    dry = hunt(owned, "--dry-run")
    second = hunt(owned)

    assert reasons(first) == reasons(early) == dict.fromkeys(places, "quarantine")
    assert "not seen before" in evidence(first, places[0])
    assert "in quarantine until" in evidence(early, places[0])
    assert first["results"] == early["results"] == []
    assert reasons(dry) == dict.fromkeys(places, "due")
    assert outcomes(second) == dict.fromkeys(places, "swept")
    assert second["totals"]["aborted_uploads"] == 1
    marker_key = f"mlruns/{marker.MARKER_NAME}"
    assert {i.key for i in owned.items()} - {marker_key} == {i.key for i in before.items} - {marker_key}
    assert hunt(owned)["plan"]["decisions"] == []
    told = run("status", "--backend-store-uri", owned.uri, "--format", "json")
    assert told.code == 0, told.err
    status = told.json
    assert status["orphans"] == {"seen": 0, "first_seen_ms": None}


def test_on_each_server(server_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> None:
    """The same on PostgreSQL and MariaDB, behind the artifact proxy; a sighting is renewed, and adoption forgets it."""
    site = make_site(Site.proxied(server_uri, seaweed, bucket))
    lost = lose(own(site), f"artifacts/1/{new_id()}/artifacts/")
    hunt(site)
    wait(site)

    init(site, "--adopt")
    say_so(site)

    assert "not seen before" in evidence(hunt(site), lost)
    wait(site)
    assert outcomes(hunt(site)) == {lost: "swept"}
    assert keys(site, lost) == []


def test_what_is_needed_or_unknown_stays(owned: Site) -> None:
    """A registered model without a row, a hold, a live run within, a foreign marker within, odd ids and layouts."""
    site = owned
    registered, held, marked, around = (f"mlruns/1/{new_id()}/artifacts/" for _ in range(4))
    model = f"mlruns/777/models/{new_id('m-')}/artifacts/"
    odd, stray, backup = "mlruns/1/nightly/artifacts/", "mlruns/1/data/", f"mlruns/old/1/{new_id()}/artifacts/"
    for place in (registered, held, marked, around, model, odd, stray, backup):
        lose(site, place)
    site.alias("churn", "champion", site.register("churn", f"s3://{site.bucket}/{model.removesuffix('artifacts/')}"))
    site.register("legacy", f"runs:/{registered.split('/')[2]}/model")
    hold = ("hold", "add", "--backend-store-uri", site.uri, "--reason", "audit")
    assert run(*hold, "--location", f"s3://{site.bucket}/{held}").code == 0
    foreign = marker.Marker(database_id="another", epoch=1, fingerprint="sqlite:/elsewhere")
    marker.write(site.client, Location(site.bucket, f"{marked}inner/"), foreign)
    inner = site.run(site.experiment())
    site.execute(
        "UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id",
        id=inner,
        uri=f"s3://{site.bucket}/{around}inner/{inner}/artifacts",
    )
    hunt(site)
    wait(site)
    before = site.snapshot()

    report = hunt(site)

    assert reasons(report) == {
        registered: "protected", model: "protected", held: "protected", marked: "protected", around: "protected",
    }  # fmt: skip
    assert evidence(report, model).startswith("registered model churn, version 1 (@champion)")
    assert "the marker object of a root lies in it" in evidence(report, marked)
    assert report["orphans"]["unknown_layout"] >= 3
    # Those of the plan and the live run: what only looks like MLflow's makes no brake weaker.
    assert report["orphans"]["prefixes_found"] == len(reasons(report)) + 1
    assert site.snapshot().ids >= before.ids - {item[:2] for item in before.items if item.key.endswith(".json")}


def test_what_is_written_to_begins_its_quarantine_again(owned: Site) -> None:
    """An object more, another one in its place; and what was gone in between, or has a row again, is forgotten."""
    more, other, gone, still, back = (lose(owned, f"mlruns/1/{new_id()}/artifacts/") for _ in range(5))
    hunt(owned)
    wait(owned)
    tick()
    lose(owned, f"{more}deeper/")
    lose(owned, other)
    owned.client.delete_object(Bucket=owned.bucket, Key=f"{gone}part-0")
    act_of(owned, "live row", back)()

    report = hunt(owned, "--dry-run")
    assert reasons(report) == {more: "quarantine", other: "quarantine", still: "due"}
    hunt(owned, "--max-objects", "0", expect=4)  # notes what it saw, and is held back
    lose(owned, gone)
    # What it holds is as it was seen, a quarantine before.
    owned.execute("DELETE FROM runs WHERE run_uuid = :id", id=id_in(back))
    wait(owned)
    anew = {gone: "quarantine", back: "quarantine"}
    assert reasons(hunt(owned)) == {more: "due", other: "due", still: "due", **anew}
    assert reasons(hunt(owned)) == anew


ROWS = {
    "row": "1/{}",
    "live row": "1/{}",
    "row elsewhere": "1/{}",
    "logged model": "1/models/m-{}",
    "trace": "1/traces/tr-{}",
}
"""Each row that an orphan may have again, and where such an orphan lies."""
PLACES = ROWS | {
    "experiment": "777/{}",
    "workspace": "workspaces/dropped/778/{}",
    "its experiment": "workspaces/dropped/778/{}",
}


def id_in(prefix: str) -> str:
    """The id of the entity whose prefix it would be."""
    return prefix.split("/")[-3]


def lose_for(site: Site, what: str) -> dict[str, str]:
    """An orphan for an act, or one for each row that this MLflow has; by the act."""
    lacking = {"row elsewhere": "workspaces", "logged model": "logged_models"}
    acts = [row for row in ROWS if row not in lacking or has(lacking[row])] if what == "rows" else [what]
    return {act: lose(site, f"mlruns/{PLACES.get(act, '1/{}').format(new_id())}/artifacts/", 2) for act in acts}


def act_of(site: Site, what: str, lost: str) -> Callable[[], object]:
    """What somebody does to an orphan of experiment 1, or of 777, which is not there."""
    uri, id_ = f"s3://{site.bucket}/{lost}", id_in(lost)
    foreign = marker.Marker(database_id="another", epoch=1, fingerprint="sqlite:/elsewhere")

    def run_row(stage: str, experiment: str = "1") -> None:
        columns = "(run_uuid, experiment_id, lifecycle_stage, artifact_uri)"
        values = {"id": id_, "of": int(experiment), "stage": stage, "uri": uri}
        site.execute(f"INSERT INTO runs {columns} VALUES (:id, :of, :stage, :uri)", **values)

    def elsewhere() -> None:
        theirs = site.experiment()
        site.execute("UPDATE experiments SET workspace = 'team-b' WHERE experiment_id = :id", id=int(theirs))
        run_row("active", theirs)

    def model_row() -> None:
        columns = "(model_id, experiment_id, name, artifact_location, creation_timestamp_ms, last_updated_timestamp_ms"
        values = "(:id, 1, 'model', :uri, 1, 1"
        site.execute(f"INSERT INTO logged_models {columns}, status) VALUES {values}, 2)", id=id_, uri=uri)

    def experiment(values: str) -> None:
        site.execute(f"UPDATE experiments SET {values} WHERE experiment_id = :id", id=int(site.experiment()))

    acts: dict[str, Callable[[], object]] = {
        "row": lambda: run_row("deleted"),
        "live row": lambda: run_row("active"),
        "row elsewhere": elsewhere,
        "logged model": model_row,
        "trace": lambda: site.execute(
            "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES (:id, 1, 1, 'OK')", id=id_
        ),
        "experiment": lambda: experiment("experiment_id = 777"),
        "workspace": lambda: site.execute("INSERT INTO workspaces (name) VALUES ('dropped')"),
        "its experiment": lambda: experiment("experiment_id = 778, workspace = 'dropped'"),
        "version": lambda: site.register("churn", f"{uri}model"),
        "hold": lambda: run("hold", "add", "--backend-store-uri", site.uri, "--reason", "x", "--location", uri),
        "keep tag": lambda: keep_experiment(site, "1"),
        "object": lambda: lose(site, f"{lost}late/"),
        "marker": lambda: marker.write(site.client, Location(site.bucket, lost.removesuffix("artifacts/")), foreign),
    }
    return acts[what]


def keep_experiment(site: Site, experiment: str, value: str = "true") -> None:
    """A keep tag on an experiment, as users set it."""
    from mlflow.entities import ExperimentTag

    site.store.set_experiment_tag(experiment, ExperimentTag(KEEP, value))


ENDS = (
    ("rows", "restored"),
    ("experiment", "restored"),
    pytest.param("workspace", "restored", marks=needs("workspaces")),
    pytest.param("its experiment", "restored", marks=needs("workspaces")),
    ("hold", "protected"),
    ("keep tag", "protected"),
    ("object", "postponed"),
)
"""What comes, and how an orphan's sweep ends then."""


@pytest.mark.parametrize(("what", "ends"), [*ENDS, ("version", "protected"), ("marker", "foreign")])
def test_what_comes_between_the_plan_and_the_fence_keeps_it(
    owned: Site, monkeypatch: pytest.MonkeyPatch, what: str, ends: str
) -> None:
    """Rows from a backup, its experiment, a version, a hold, a keep tag, an object more, another's marker: it stays."""
    lost = lose_for(owned, what)
    free = lose(owned, f"mlruns/{'778' if what == 'keep tag' else '1'}/{new_id()}/artifacts/")
    hunt(owned)
    wait(owned)
    tick()
    acts = [act_of(owned, act, prefix) for act, prefix in lost.items()]
    once_before(monkeypatch, fence.Fence, "admit", lambda: [act() for act in acts])

    assert outcomes(hunt(owned)) == dict.fromkeys(lost.values(), ends) | {free: "swept"}
    assert [len(keys(owned, f"{prefix}part-")) for prefix in lost.values()] == [2] * len(lost)


@pytest.mark.parametrize(("what", "ends"), ENDS)
def test_what_comes_after_the_fence_keeps_what_is_left(
    owned: Site, monkeypatch: pytest.MonkeyPatch, what: str, ends: str
) -> None:
    """Rows from a backup, its experiment, a hold, a keep tag, before the first batch: it stays. So an object more."""
    lost = lose_for(owned, what)
    hunt(owned)
    wait(owned)
    tick()
    acts = [act_of(owned, act, prefix) for act, prefix in lost.items()]
    once_before(monkeypatch, fence.Fence, "changed", lambda: [act() for act in acts])

    # One at a time: another thread would ask while the rows are still being written.
    assert outcomes(hunt(owned, "--concurrency", "1")) == dict.fromkeys(lost.values(), ends)
    for prefix in lost.values():
        left = [key.removeprefix(prefix) for key in keys(owned, prefix)]
        assert left == (["late/part-0"] if what == "object" else ["part-0", "part-1"])


def test_a_version_in_a_registry_of_its_own_keeps_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, make_site: MakeSite, sqlite_template: Path, tmp_path: Path
) -> None:
    """Registered in another database before the plan, before the fence and after it: nothing else needs them."""
    shutil.copyfile(sqlite_template, tmp_path / "registry.db")
    site = own(make_site(replace(site, registry_uri=f"sqlite:///{tmp_path / 'registry.db'}")))
    planned, before, after, free = (lose(site, f"mlruns/1/{new_id()}/artifacts/") for _ in range(4))
    hunt(site)
    wait(site)
    act_of(site, "version", planned)()
    once_before(monkeypatch, fence.Fence, "admit", act_of(site, "version", before))
    once_before(monkeypatch, fence.Fence, "changed", act_of(site, "version", after))
    report = hunt(site, "--concurrency", "1")  # or another thread would ask while it is being registered

    assert reasons(report) == {planned: "protected"} | dict.fromkeys((before, after, free), "due")
    assert outcomes(report) == {before: "protected", after: "protected", free: "swept"}
    assert all(keys(site, prefix) for prefix in (planned, before, after))


@pytest.mark.parametrize("between", [False, True], ids=["before", "between the plan and the fence"])
def test_what_a_person_took_back_stays_without_its_row(
    owned: Site, monkeypatch: pytest.MonkeyPatch, *, between: bool
) -> None:
    """Its row is gone for good while it waits for S3; whoever undoes that then wants it kept, row or no row."""
    dead = owned.run("1", n_objects=2)
    owned.delete_run(dead)
    place = f"mlruns/1/{dead}/artifacts/"
    ruled(owned)
    assert outcomes(gc(owned, "--run-ids", dead)) == {place: "waiting"}
    owned.execute("DELETE FROM runs WHERE run_uuid = :id", id=dead)
    purge = ("--action", "purge")
    hunt(owned, *purge)
    wait(owned)

    def undo() -> None:
        undone = run("undo", "--backend-store-uri", owned.uri, "--run-ids", dead)
        assert undone.code == 0, undone.err

    if between:
        once_before(monkeypatch, fence.Fence, "admit", undo)
        assert outcomes(hunt(owned, *purge)) == {place: "protected"}
    else:
        undo()
    assert reasons(hunt(owned, *purge)) == {place: "undone"}
    assert len(keys(owned, place)) == 2


def test_a_hold_on_an_experiment_keeps_what_may_have_been_its_own(owned: Site) -> None:
    """Two experiments share a place: of what has lost its row there nothing tells whose it was. So with a keep tag."""
    place = f"s3://{owned.bucket}/mlruns/shared"
    owned.experiment(artifact_location=place)
    held = owned.experiment(artifact_location=place)
    lost = lose(owned, f"mlruns/shared/{new_id()}/artifacts/")
    say_so(owned, place)
    hold = ("--backend-store-uri", owned.uri)
    added = run("hold", "add", *hold, "--reason", "audit", "--experiment-id", held)
    assert added.code == 0, added.err
    hunt(owned)
    wait(owned)

    assert reasons(hunt(owned)) == {lost: "protected"}
    assert run("hold", "rm", *hold, "1").code == 0
    assert reasons(hunt(owned)) == {lost: "quarantine"}
    keep_experiment(owned, held)
    wait(owned)
    assert reasons(hunt(owned)) == {lost: "protected"}
    assert keys(owned, lost)


def test_only_under_roots_that_are_marked(
    site: Site, make_site: MakeSite, sqlite_template: Path, tmp_path: Path
) -> None:
    """Without a marker nothing goes; a person writes it, but not over another database's, at the root or around it."""
    bucket = site.bucket
    site.run(site.experiment(), n_objects=1)
    lost = lose(site, f"mlruns/1/{new_id()}/artifacts/")
    old = lose(site, f"old/{new_id()}/artifacts/")
    init(site)
    report = hunt(site)
    assert reasons(report) == {lost: "not-owned"}
    assert "--own-roots" in evidence(report, lost)
    on = ("gc", "--backend-store-uri", site.uri)
    assert run(*on, "--orphans", "--root", f"s3://{bucket}/old").code == 2

    before = site.snapshot()
    shown = run(*on, "--own-roots")
    assert (shown.code, "add --yes" in shown.err) == (4, True)
    assert site.snapshot() == before
    own_old = run(*on, "--own-roots", "--root", f"s3://{bucket}/old", "--yes", "--format", "json")
    assert own_old.json["written"] == [f"s3://{bucket}/old/"]
    own_root = run(*on, "--own-roots", "--yes")
    assert own_root.code == 0, own_root.err
    assert "Marked 1 root " in own_root.out
    hunt(site)
    wait(site)

    path = tmp_path / "other.db"
    shutil.copyfile(sqlite_template, path)
    other = make_site(Site.direct(f"sqlite:///{path}", site.s3, bucket))
    other.run(other.experiment(), n_objects=1)
    init(other)
    assert set(reasons(hunt(other)).values()) == {"protected"}
    refused = run("gc", "--backend-store-uri", other.uri, "--own-roots", "--root", f"s3://{bucket}/mlruns/1", "--yes")
    assert (refused.code, "belongs to another tracking database" in refused.err) == (1, True)

    assert reasons(hunt(site, "--dry-run", "--root", f"s3://{bucket}/old")) == {old: "due"}
    assert outcomes(hunt(site)) == {lost: "swept", old: "swept"}


def test_a_marker_alone_does_not_say_that_nobody_else_is_there(site: Site) -> None:
    """``gc`` has swept there and marked the root; that another server has no runs there only a person can say."""
    lost = lose(site, f"mlruns/1/{new_id()}/artifacts/")
    experiment = site.experiment()
    site.run(experiment, n_objects=1)
    swept = site.run(experiment, n_objects=1)
    site.delete_run(swept)
    init(site)
    gc(site, "--run-ids", swept)

    for _ in range(2):
        report = hunt(site)
        assert reasons(report) == {lost: "not-owned"}
        assert "no other MLflow server" in evidence(report, lost)
        wait(site)
    assert keys(site, lost)

    assert run("gc", "--backend-store-uri", site.uri, "--own-roots", "--yes").code == 0
    hunt(site)
    wait(site)
    assert outcomes(hunt(site)) == {lost: "swept"}

    site.execute("UPDATE artifact_gc_intents SET state = 'closed'")
    assert run("init", "--backend-store-uri", site.uri, "--registry-store-uri", site.uri, "--adopt").code == 0
    lost = lose(site, f"mlruns/1/{new_id()}/artifacts/")
    assert reasons(hunt(site)) == {lost: "not-owned"}


def test_a_copy_of_the_database_sweeps_nothing(owned: Site, make_site: MakeSite, tmp_path: Path) -> None:
    """Runs that were made since look like orphans to it: it says that it is a copy, however often it is asked."""
    lost = lose(owned, f"mlruns/1/{new_id()}/artifacts/")
    hunt(owned)
    path = shutil.copyfile(owned.uri.removeprefix("sqlite:///"), tmp_path / "copy.db")
    # With the registry that is the right one: by that it could be told, too.
    copy = make_site(replace(owned, uri=f"sqlite:///{path}", registry_uri=owned.uri))
    owned.run("1", n_objects=2)
    before = owned.snapshot()
    for _ in range(2):
        wait(copy)
        done = ran(copy)

        assert (done.code, "it is a copy" in done.err) == (1, True), done.err
        assert owned.snapshot() == before
    wait(owned)
    assert outcomes(hunt(owned)) == {lost: "swept"}


@pytest.mark.parametrize("since", ["gc --orphans", "gc"])
def test_a_database_of_yesterday_sweeps_nothing(owned: Site, since: str) -> None:
    """Put back from a backup, today's runs look like orphans: it stops, and once adopted it begins to count anew."""
    path = Path(owned.uri.removeprefix("sqlite:///"))
    swept = owned.run("1", n_objects=1)
    lost = lose(owned, f"mlruns/1/{new_id()}/artifacts/")
    hunt(owned)
    wait(owned)
    backup = path.read_bytes()
    today = owned.run("1", n_objects=2)
    if since == "gc":
        owned.delete_run(swept)
        gc(owned, "--run-ids", swept)
    else:
        hunt(owned, "--dry-run")
        hunt(owned, "--max-objects", "0", expect=4)  # sees it, and is held back
    owned.close()
    path.write_bytes(backup)
    before = owned.snapshot()

    ran_ = ran(owned)

    assert (ran_.code, "ahead of this database" in ran_.err) == (1, True)
    assert owned.snapshot().items == before.items
    init(owned, "--adopt")
    assert set(reasons(hunt(owned)).values()) == {"not-owned"}
    say_so(owned)
    found = reasons(hunt(owned))
    assert found == {lost: "quarantine", f"mlruns/1/{today}/artifacts/": "quarantine"}
    assert len(keys(owned, f"mlruns/1/{today}/")) == 2


def test_an_empty_database_sweeps_nothing(owned: Site) -> None:
    """Without a single row everything looks left over; so it does in a copy, which is told apart before."""
    lost = lose(owned, f"mlruns/1/{new_id()}/artifacts/")
    hunt(owned)
    wait(owned)
    owned.execute("DELETE FROM tags")
    owned.execute("DELETE FROM runs")

    done = ran(owned)

    assert (done.code, "holds no run" in done.err) == (1, True)
    assert len(keys(owned, lost)) == 1


def test_a_clock_that_goes_back_begins_the_quarantine_again(owned: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen in the future was not seen; and the environment shortens no quarantine."""
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_ORPHAN_QUARANTINE", "0s")
    lost = lose(owned, f"mlruns/1/{new_id()}/artifacts/")
    hunt(owned)
    assert reasons(hunt(owned)) == {lost: "quarantine"}
    wait(owned, days=-3)

    assert reasons(hunt(owned, "--orphan-quarantine", "0s")) == {lost: "quarantine"}
    assert reasons(hunt(owned, "--orphan-quarantine", "0s")) == {lost: "due"}


@pytest.fixture
def faulty(sqlite_uri: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeS3, Site]]:
    """A site on an S3 that fails as it is told, as ``owned`` is."""
    with fake_s3() as fake:
        fake.make_bucket("bucket")
        for name, value in fake.server.environ().items():
            monkeypatch.setenv(name, value)
        wait_for_nothing(monkeypatch)
        yield fake, own(make_site(Site.direct(sqlite_uri, fake.server, "bucket")))


def test_what_cannot_be_listed_is_not_swept(faulty: tuple[FakeS3, Site]) -> None:
    """AccessDenied at any listing or marker, a registry not known: nothing goes or is noted; the exit code says so."""
    fake, site = faulty
    lost = lose(site, f"mlruns/1/{new_id()}/artifacts/")
    hunt(site)
    wait(site)
    noted = sightings_of(site)
    for operation in ("ListObjectsV2", "ListMultipartUploads", "GetObject"):
        fault = Fault(kind=Kind.DENIED, operation=operation, nth=2, times=FOR_GOOD)
        fake.plan(fault)
        done = ran(site)
        fake.plan()

        assert (bool(fault.hit), done.code) == (True, 1), f"{operation}: {done.out}"
        assert len(keys(site, lost)) == 1
        assert sightings_of(site) == noted
    site.execute("UPDATE artifact_gc_site SET registry_fingerprint = NULL")
    done = ran(site)
    assert (done.code, "Which model registry the server uses is not known" in done.err) == (1, True), done.err
    assert len(keys(site, lost)) == 1
    assert sightings_of(site) == noted
    site.execute("UPDATE artifact_gc_site SET registry_fingerprint = database_fingerprint")
    assert outcomes(hunt(site)) == {lost: "swept"}


def test_a_clock_that_has_jumped_sweeps_nothing(faulty: tuple[FakeS3, Site]) -> None:
    """The database's clock and S3's are more than five minutes apart, either way: no quarantine ends by that."""
    fake, site = faulty
    lost = lose(site, f"mlruns/1/{new_id()}/artifacts/")
    hunt(site)
    wait(site)
    noted = sightings_of(site)
    minute_ms = 60_000
    for ahead_ms in (-2 * DAY_MS, -6 * minute_ms, 6 * minute_ms):
        fake.set_clock(ahead_ms=ahead_ms)
        done = ran(site)

        assert (done.code, "Set the clock that is wrong" in done.err) == (1, True), f"{ahead_ms}: {done.err}"
        assert sightings_of(site) == noted
    fake.set_clock(ahead_ms=-4 * minute_ms)
    assert reasons(hunt(site, "--dry-run")) == {lost: "due"}
    fake.set_clock(ahead_ms=4 * minute_ms)
    assert outcomes(hunt(site)) == {lost: "swept"}


def test_what_was_left_half_way_goes_on(faulty: tuple[FakeS3, Site]) -> None:
    """A sweep that S3 ends half-way leaves less than was seen: the next one needs no quarantine for the rest."""
    fake, site = faulty
    lost = lose(site, f"mlruns/1/{new_id()}/artifacts/", 5)
    hunt(site)
    wait(site)
    fault = Fault(kind=Kind.SOME_FAIL, operation="DeleteObjects", times=FOR_GOOD)
    fake.plan(fault)
    hunt(site, expect=3)
    fake.plan()

    assert fault.hit
    assert 0 < len(keys(site, lost)) < 5
    assert outcomes(hunt(site)) == {lost: "swept"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--run-ids", "a"), "--run-ids"),
        (("--experiment-ids", "1"), "--experiment-ids"),
        (("--older-than", "0s"), "--older-than"),
        (("--metadata", "delete"), "an orphan has no row"),
        (("--workspace", "a"), "--workspace"),
        (("--unsafe-ignore-registry",), "the registry may well need"),
        (("--action", "tag"), "--action purge"),
        (("--root", "file:///tmp"), "s3://bucket/prefix"),
    ],
)
def test_what_does_not_go_with_it(sqlite_uri: str, arguments: tuple[str, ...], says: str) -> None:
    """Options that mean nothing here are refused, not ignored."""
    if arguments[0] in ("--action", "--root"):
        stores = ("--backend-store-uri", sqlite_uri, "--registry-store-uri", sqlite_uri)
        assert run("init", *stores).code == 0

    done = run("gc", "--backend-store-uri", sqlite_uri, "--orphans", *arguments)

    assert (done.code, says in done.err) == (2, True), done.err
