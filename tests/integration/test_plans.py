"""``plan``, ``show``, ``apply``: a file selects what goes, once, and never more than the rows say is due."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import database, journal
from mlflow_artifact_gc.cli import plan_file
from mlflow_artifact_gc.errors import PlanRefused
from mlflow_artifact_gc.model import Outcome, Reason
from mlflow_artifact_gc.plan_files import PlanFile
from tests.abilities import has
from tests.command import NOW, gc, init, outcomes, run
from tests.crashing import Crashes, Moment, crashes
from tests.fakes3 import FakeS3, fake_s3
from tests.integration.test_bad_input import refused, same_file, untouched
from tests.oracle import assert_bucket_sound
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.unit.test_plan_files import ODD, PLAN, TERMS, line
from tests.working import NOW as SITE_NOW
from tests.working import left, watched

MakeSite = Callable[[Site], Site]
HOUR_MS = 3_600_000
HEAVY = ("mlflow", "boto3", "botocore", "sqlalchemy", "alembic", "rich")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeS3]:
    """The S3 of most of these tests: one of the tests' own, in this process."""
    with fake_s3() as server:
        yield server


@pytest.fixture
def fake_site(sqlite_uri: str, fake: FakeS3, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> Site:
    """SQLite and that S3."""
    for name, value in fake.server.environ().items():
        monkeypatch.setenv(name, value)
    bucket = f"p-{uuid.uuid4().hex[:12]}"
    fake.make_bucket(bucket)
    return make_site(Site.direct(sqlite_uri, fake.server, bucket))


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Where a plan is written."""
    return str(tmp_path / "plan.jsonl")


def dead_runs(site: Site, *counts: int) -> list[str]:
    """Deleted runs with so many objects each."""
    experiment = site.experiment()
    runs = [site.run(experiment, n_objects=count) for count in counts]
    for one in runs:
        site.delete_run(one)
    return runs


def plan(site: Site, file: str, *arguments: str) -> PlanFile:
    """``plan -o`` of everything that is deleted; what was written."""
    ran = run("plan", "--backend-store-uri", site.uri, "-o", file, *NOW, *arguments)
    assert ran.code == 0, ran.err
    return plan_file.read(file)


def apply(site: Site, file: str, *arguments: str, expect: int = 0) -> Any:
    """``apply --format json``, which must end with ``expect``; its report."""
    ran = run("apply", file, "--backend-store-uri", site.uri, "--format", "json", *arguments)
    assert ran.code == expect, f"{ran.code}: {ran.err}\n{ran.out}"
    return {**ran.json, "said": ran.err}


def dropped(report: Any) -> dict[str, str]:
    """Why each location was dropped."""
    return {one["id"]: one["detail"] for one in report["results"] if one["outcome"] == "dropped"}


# Three steps


def test_what_was_planned_goes_and_nothing_else(
    db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite, file: str
) -> None:
    """What is due by now and not in the file stays, and is not mentioned; the file is applied once; nobody is asked."""
    site = make_site(Site.direct(db_uri, seaweed, bucket))
    live = site.run(site.experiment(), n_objects=2)
    dead = dead_runs(site, 1, 10)
    init(site)
    made = plan(site, file)
    (later,) = dead_runs(site, 3)
    before = site.snapshot()

    report = apply(site, file)

    assert outcomes(report) == dict.fromkeys(dead, "swept")
    assert report["plan"]["id"] == made.plan.id
    assert report["file"]["digest"] == made.digest
    assert later not in json.dumps(report)
    assert live not in json.dumps(report)
    assert_bucket_sound(site, report, before)
    said = refused("apply", file, "--backend-store-uri", site.uri, code=6, says=("applied already, at 20",))
    assert said == apply(site, file, "--dry-run", expect=6)["error"]
    assert outcomes(gc(site)) == {later: "swept"}


def test_each_step_says_what_comes_next(fake_site: Site, file: str) -> None:
    """``plan`` prints what ``gc --dry-run`` prints, ``show`` the same from the file alone, ``apply`` what happened."""
    site = fake_site
    dead = dead_runs(site, 1, 10)
    init(site)
    table = run("gc", "--backend-store-uri", site.uri, "--dry-run", *NOW).out.partition("\n")[2]
    planned = run("plan", "--backend-store-uri", site.uri, "-o", file, *NOW).out
    shown = run("show", file).out
    measured = run("apply", file, "--backend-store-uri", site.uri, "--dry-run").out
    ended = run("apply", file, "--backend-store-uri", site.uri).out

    assert planned.partition("\n")[2].startswith(table)
    assert f"Written to {file}, and nothing was touched. Next:\n  mlflow-artifact-gc show {file}\n" in planned
    assert shown.endswith(table)
    assert "It purges; made with --older-than 0s, --min-object-age 0s." in shown
    assert plan_file.read(file).terms.by in shown
    assert "Of the 2 locations that the plan has as due: 2 to sweep." in measured
    assert all(size in measured for size in ("10 B", "100 B"))
    assert "Swept 2 locations, each listed again and found empty.\nGone: 11 objects, 110 B" in ended
    document = run("show", file, "--format", "json").json
    assert {one["id"] for one in document["plan"]["decisions"]} == {*dead}
    assert document["plan"]["digest"] == plan_file.read(file).digest


def test_plan_writes_its_file_and_nothing_else(fake_site: Site, tmp_path: Path) -> None:
    """Whole or not at all, over an older plan too, and over nothing that is no plan; or to standard output."""
    site = fake_site
    dead = dead_runs(site, 1)
    models = site.logged_models(site.experiment(), dead[0], n_objects=1)
    init(site)
    folder = tmp_path / "plans"
    folder.mkdir()
    name, link, other = (str(folder / one) for one in ("a.jsonl", "link", "notes.txt"))
    Path(other).write_text("mine")
    Path(link).symlink_to(name)
    on = ("plan", "--backend-store-uri", site.uri, *NOW, "-o")

    with same_file(site.uri), untouched(site):
        first, second = plan(site, name), plan(site, link)
        assert refused(*on, other, code=2, says=("is there and is no plan",))
        refused(*on, str(folder / "none" / "x"), code=2, says=("there is no folder",))
        piped = run(*on, "-")
        refused(*on, "-", "--format", "json", code=2, says=("both write to standard output",))

    assert (first.plan.decisions, first.plan.id == second.plan.id) == (second.plan.decisions, False)
    assert sorted(one.name for one in folder.iterdir()) == ["a.jsonl", "link", "notes.txt"]
    assert Path(link).is_symlink()
    assert Path(other).read_text() == "mine"
    assert Path(name).stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert run("show", "-", answer=piped.out).code == 0
    assert len(models) == 0 or "Kept beside: 1 logged model" in run(*on, name).out
    refused("show", str(folder / "none"), code=2, says=("cannot be read: No such file",))
    refused("show", other, code=6, says=("is no plan",))


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_show_is_light(fake_site: Site, file: str) -> None:
    """It reads a file, and pays for none of the heavy libraries."""
    dead_runs(fake_site, 1)
    init(fake_site)
    plan(fake_site, file)
    ask = (
        "import sys\nfrom mlflow_artifact_gc.cli import main\n"
        f"main(['show', {file!r}], standalone_mode=False)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)

    assert done.stdout.endswith("[]\n"), done.stderr


def test_what_a_file_says_steers_no_terminal(tmp_path: Path) -> None:
    """Whoever is to approve a plan sees all of it: nothing in a name or a reason hides what stands beside it."""
    lines = (line("r1"), line(ODD), line("r3", Reason.PROTECTED, evidence="x\n\x1b[8mrun r4  due\u202e"))
    name = tmp_path / "odd.jsonl"
    file = PlanFile.of(replace(PLAN, decisions=lines), replace(TERMS, by="ana\x1b[2J"))
    name.write_bytes(b"".join(file.lines()))

    ran = run("show", str(name))

    assert (ran.code, ran.err) == (0, "")
    assert [one for one in ran.out if not one.isprintable() and one != "\n"] == []
    assert len([one for one in ran.out.splitlines() if one.startswith("run ")]) == 3
    assert "x\ufffd\ufffd[8mrun r4  due\ufffd" in ran.out


# What changed since


def test_what_changed_since_is_dropped_and_named(fake_site: Site, file: str) -> None:
    """Restored, deleted again, registered, held, tagged, moved, gone: each with its reason; the rest is swept."""
    from mlflow.entities import RunTag

    site = watched(fake_site)
    runs = dead_runs(site, *[1] * 9)
    (due, restored, again, registered, held, tagged, moved, gone, swept) = runs
    init(site)
    plan(site, file, "--run-ids", ",".join(runs))
    before = site.snapshot()
    for one in (restored, again, tagged):
        site.restore_run(one)
    site.store.set_tag(tagged, RunTag("artifact_gc.keep", "true"))
    for one in (again, tagged):
        site.delete_run(one)
    site.register("churn", f"{site.artifact_uri(registered)}/model", run_id=registered)
    assert run("hold", "add", "--run-id", held, "--reason", "audit", "--backend-store-uri", site.uri).code == 0
    elsewhere = site.artifact_uri(moved).replace("/mlruns/", "/elsewhere/")
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=elsewhere, id=moved)
    for table in ("latest_metrics", "metrics", "params", "tags", "runs"):
        site.execute(f"DELETE FROM {table} WHERE run_uuid = :id", id=gone)
    assert outcomes(gc(site, "--run-ids", swept)) == {swept: "swept"}

    look = apply(site, file, "--dry-run")
    report = apply(site, file)

    why = dropped(report)
    assert {one: outcome for one, outcome in outcomes(report).items() if outcome != "dropped"} == {due: "swept"}
    assert why.keys() == {*runs} - {due}
    assert dropped(look) == why
    assert report["dropped"] == len(why)
    for one in (again, tagged):
        assert why[one] == "restored and deleted again since the plan was made"
    for one in (restored, gone):
        assert why[one] == "restored, or its row has gone or changed, since the plan was made"
    assert why[registered].startswith("registered model churn, version 1")
    assert why[held].startswith("hold #")
    assert why[moved] == "its place, by its row, is not the one that was planned"
    assert why[swept] == "already swept"
    kept = {one: [item.key for item in before.items if one in item.key] for one in why if one != swept}
    assert {one: left(site, one) for one in kept} == kept


def test_what_was_written_to_since_is_postponed(fake_site: Site, fake: FakeS3, file: str) -> None:
    """Nobody has approved of what came after the plan was made, also where it is older than the minimum age by now."""
    site = fake_site
    same, more = dead_runs(site, 2, 2)
    init(site)
    fake.age(3 * HOUR_MS)
    site.write(more, site.artifact_uri(more), {"late": 1})
    fake.age(HOUR_MS // 2)
    made = plan(site, file, "--min-object-age", "1s")
    # An hour ago.
    older = replace(made.plan, created_ms=made.plan.created_ms - HOUR_MS)
    Path(file).write_bytes(b"".join(PlanFile.of(older, made.terms).lines()))

    report = apply(site, file)

    assert outcomes(report) == {same: "swept", more: "postponed"}
    assert len(left(site, more)) == 3


def test_what_the_site_has_made_stricter_since_counts(
    fake_site: Site, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer grace period drops, also against an option; a longer minimum age postpones; a milder action refuses."""
    site = fake_site
    old, young = dead_runs(site, 1, 1)
    for one, days in ((old, 9), (young, 3)):
        site.delete_run(one, int(time.time() * 1000) - days * DAY_MS)
    init(site, "--grace", "2d", "--min-object-age", "0s")
    on = ("plan", "--backend-store-uri", site.uri, "-o", file)
    assert run(*on).code == 0
    init(site, "--grace", "5d", "--min-object-age", "1h")

    look = apply(site, file, "--dry-run")
    assert dropped(look) == {young: "still in its grace period"}
    assert outcomes(apply(site, file)) == {old: "postponed", young: "dropped"}

    # An option comes before the site's settings, and what these became after it before the option.
    assert run(*on, "--older-than", "1d", "--min-object-age", "0s").code == 0
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_GRACE", "8d")
    assert dropped(apply(site, file, "--dry-run")) == {}
    init(site, "--grace", "6d")
    assert dropped(apply(site, file, "--dry-run")) == {young: "still in its grace period"}

    site.switch_versioning(on=True)
    init(site, "--action", "hide")
    with untouched(site):
        refused("apply", file, "--backend-store-uri", site.uri, code=6, says=("This plan purges, and by now 'hide'",))


def test_what_was_taken_back_since_is_dropped(fake_site: Site, file: str) -> None:
    """``undo`` after the plan was made counts, also where the plan names the run; and it takes back what a plan hid."""
    site = watched(fake_site)
    site.switch_versioning(on=True)
    one, other = dead_runs(site, 2, 2)
    init(site, *SITE_NOW, "--action", "hide")
    made = plan(site, file, "--run-ids", f"{one},{other}")
    assert outcomes(gc(site, "--run-ids", one)) == {one: "waiting"}
    assert run("undo", "--backend-store-uri", site.uri, "--run-ids", one).code == 0

    report = apply(site, file)

    assert outcomes(report) == {one: "dropped", other: "waiting"}
    assert dropped(report)[one].startswith("taken back with 'undo'")
    assert run("undo", "--backend-store-uri", site.uri, "--plan", made.plan.id).code == 0
    assert len([key for key in site.snapshot().keys if one in key or other in key]) == 4


def test_a_plan_of_another_database_or_of_long_ago_is_refused(
    fake_site: Site, sqlite_template: Path, tmp_path: Path, file: str, make_site: MakeSite
) -> None:
    """Exit 6, nothing touched, and a sentence that says what was found."""
    site = fake_site
    dead_runs(site, 1)
    init(site)
    plan(site, file)
    there = tmp_path / "other.db"
    there.write_bytes(sqlite_template.read_bytes())
    elsewhere = make_site(Site.direct(f"sqlite:///{there}", site.s3, site.bucket, root="other"))
    elsewhere.experiment()
    init(elsewhere)
    on = ("apply", file, "--backend-store-uri")

    with untouched(site), same_file(site.uri), same_file(elsewhere.uri):
        refused(*on, elsewhere.uri, code=6, says=("This plan is another database's",))
        refused(*on, site.uri, "--max-plan-age", "0s", code=6, says=("This plan is stale: it was made at 20", "0s"))
        refused(*on, site.uri, "--unsafe-ignore-registry", code=2, says=("was not made with --unsafe-ignore-registry",))
        raw = Path(file).read_bytes()
        Path(file).write_bytes(raw.replace(b'"max_share":0.5', b'"max_share":0.9'))
        refused(*on, site.uri, code=6, says=("was altered after it was written",))
        Path(file).write_bytes(b"")
        refused(*on, site.uri, code=6, says=("is empty",))


def test_a_plan_that_ignores_the_registry_does_so_twice(fake_site: Site, file: str) -> None:
    """Only where plan and command say so; else what the registry needs is read, and stays."""
    site = fake_site
    plain, registered = dead_runs(site, 1, 1)
    site.register("churn", f"{site.artifact_uri(registered)}/model", run_id=registered)
    init(site)
    made = plan(site, file, "--unsafe-ignore-registry")
    assert len(made.plan.due) == 2
    assert "--unsafe-ignore-registry" in run("show", file).out

    assert dropped(apply(site, file, "--dry-run", "--unsafe-ignore-registry")) == {}
    report = apply(site, file)

    assert outcomes(report) == {plain: "swept", registered: "dropped"}
    assert dropped(report)[registered].startswith("registered model churn, version 1")


def test_brakes_are_those_of_the_plan_and_of_now(fake_site: Site, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that trips one is written and says so, and is refused; so is one that the environment brakes by now."""
    site = fake_site
    dead = dead_runs(site, 3, 1)
    init(site)
    on = ("apply", file, "--backend-store-uri", site.uri)
    ran = run("plan", "--backend-store-uri", site.uri, "-o", file, *NOW, "--max-objects", "3")
    assert (ran.code, "As it is, 'apply' will refuse it" in ran.out) == (0, True)

    with untouched(site):
        refused(*on, code=4, says=("4 objects are more than --max-objects 3", "make a new one, with the limit raised"))
        plan(site, file, "--max-objects", "4")
        monkeypatch.setenv("MLFLOW_ARTIFACT_GC_MAX_BYTES", "39")
        refused(*on, code=4, says=("40 B are more than --max-bytes 39 B",))
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_MAX_BYTES", "40")
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_MAX_OBJECTS", "1")

    assert outcomes(apply(site, file)) == dict.fromkeys(dead, "swept")


# Interrupted


@pytest.fixture(scope="module")
def forks() -> Iterator[Crashes]:
    """The process that forks those that are killed."""
    with crashes() as made:
        yield made


@pytest.mark.parametrize(
    ("moment", "action"),
    [
        (Moment(point="claim", after=True), "purge"),
        (Moment(point="plan finished"), "purge"),
        (Moment(point="delete", nth=2), "hide"),
    ],
    ids=lambda value: str(value).replace(" ", "-"),
)
def test_killed_and_applied_again_it_goes_on(
    fake_site: Site, forks: Crashes, file: str, moment: Moment, action: str
) -> None:
    """Whatever was done when it was killed, the second ends it: everything has gone, once, and a third is refused."""
    site = watched(fake_site)
    site.switch_versioning(on=action == "hide")
    live = site.run(site.experiment(), n_objects=2)
    dead = dead_runs(site, 2, 3, 1)
    init(site, "--action", action)
    plan(site, file, "--metadata", "delete", "--concurrency", "1")
    command = ["apply", file, "--backend-store-uri", site.uri, "--concurrency", "1"]

    assert forks.run(command, site.s3.environ(), moment).killed
    report = apply(site, file)

    assert "This plan was begun at 20" in report["said"]
    assert "dropped" not in outcomes(report).values()
    assert len(outcomes(report)) + report["done_before"] == 3
    assert [key for key in site.snapshot().keys if any(one in key for one in dead)] == []
    assert len(left(site, live)) == 2
    assert ({one.id for one in site.rows()} & {*dead} == set()) == (action == "purge")
    apply(site, file, expect=6)


def test_stopped_by_its_time_it_goes_on(fake_site: Site, file: str) -> None:
    """What was not reached may be applied again; what was counted before stays in the books."""
    site = fake_site
    dead = dead_runs(site, 2, 3)
    init(site)
    made = plan(site, file)

    assert set(outcomes(apply(site, file, "--time-budget", "0s")).values()) == {"stopped"}
    report = apply(site, file)

    assert "which left 2 of its locations: going on with them." in report["said"]
    assert outcomes(report) == dict.fromkeys(dead, "swept")
    with site.engine.connect() as connection:
        row = connection.execute(sa.text("SELECT digest, created_ms, outcomes FROM artifact_gc_plans")).one()
    assert row == (made.digest, made.plan.created_ms, '{"swept": 2}')


def test_two_at_once_share_the_work(fake_site: Site, file: str) -> None:
    """Two processes apply one file: one of them begins it, each object goes once, nothing fails."""
    site = fake_site
    dead = dead_runs(site, *[2] * 20)
    init(site)
    plan(site, file)
    command = [sys.executable, "-m", "mlflow_artifact_gc", "apply", file, "--backend-store-uri", site.uri]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--format", "json"], stdout=pipe, stderr=pipe, text=True) as other:
        until = time.monotonic() + 60
        while not applied(site) and other.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        ran = run(*command[3:], "--format", "json")
        out, err = other.communicate(timeout=60)

    assert (other.returncode, ran.code in {0, 6}) == (0, True), f"{err}\n{ran.err}"
    reports = [json.loads(out), *([ran.json] if ran.code == 0 else [])]
    assert sum(report["totals"]["deleted_objects"] for report in reports) == 40
    assert [key for key in site.snapshot().keys if any(one in key for one in dead)] == []


def applied(site: Site) -> bool:
    """Whether a plan was begun."""
    with site.engine.connect() as connection:
        return connection.execute(sa.text("SELECT id FROM artifact_gc_plans")).first() is not None


def test_only_one_begins_it(any_db_uri: str, fake: FakeS3, make_site: MakeSite, file: str) -> None:
    """The look whether it was applied and the note that it is are one transaction, on each database."""
    site = make_site(Site.direct(any_db_uri, fake.server, "unused"))
    site.experiment()
    init(site)
    made = plan(site, file)
    engine = database.open_engine(site.uri)
    together = threading.Barrier(4)

    def begin(_number: int) -> journal.Applied | None:
        together.wait(10)
        return database.written(
            engine,
            lambda connection: journal.file_started(
                connection, made.plan, digest=made.digest, made_ms=made.plan.created_ms, now_ms=5
            ),
        )

    with ThreadPoolExecutor(4) as pool:
        begun = list(pool.map(begin, range(4)))

    assert [one is None for one in begun].count(True) == 1
    with database.writing(engine) as connection:
        journal.plan_finished(connection, made.plan.id, {Outcome.SWEPT: 1, Outcome.BUSY: 2}, 6)
        assert (journal.applied(connection, made.plan.id) or begun[0]).left == 2  # type: ignore[union-attr]
        assert journal.file_started(connection, made.plan, digest=made.digest, made_ms=1, now_ms=7) is not None
        journal.plan_finished(connection, made.plan.id, {Outcome.SWEPT: 2}, 8)
        told = journal.applied(connection, made.plan.id)
        assert told is not None
        assert (told.outcomes, told.started_ms, told.finished_ms) == ({Outcome.SWEPT: 3}, 7, 8)
        for digest, says in ((made.digest, "applied already"), ("0" * 64, "altered")):
            with pytest.raises(PlanRefused, match=says):
                journal.file_started(connection, made.plan, digest=digest, made_ms=1, now_ms=9)
    engine.dispose()


# Whatever gc can do


def test_rows_go_with_a_plan_only_where_it_says_so(fake_site: Site, file: str) -> None:
    """Rows of what was swept, and its experiment's; no other experiment's, though nothing is left of that either."""
    site = fake_site
    kept, planned = site.experiment(), site.experiment()
    run_id = site.run(planned, n_objects=1)
    for one in (planned, kept):
        site.delete_experiment(one)
    init(site)
    plan(site, file, "--metadata", "delete")

    report = apply(site, file)

    assert outcomes(report) == {run_id: "swept"}
    assert report["experiments_deleted"] == [planned]
    assert {row.id for row in site.rows()} & {run_id, planned, kept} == {kept}


def test_odd_keys_behind_the_proxy_are_tagged_by_a_plan(
    sqlite_uri: str, fake: FakeS3, make_site: MakeSite, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxied, under a folder with odd characters, in a workspace too; by the action that needs a rule."""
    for name, value in fake.server.environ().items():
        monkeypatch.setenv(name, value)
    bucket = f"p-{uuid.uuid4().hex[:12]}"
    fake.make_bucket(bucket)
    site = make_site(Site.proxied(sqlite_uri, fake.server, bucket, root="a b+%20é/日本"))
    keys = {"plus+and space": 1, "a//b": 1, "100%2F": 1, "ünïcödé/日本": 1, "&<>'\"": 1}
    experiment = site.experiment()
    dead, live = site.run(experiment, keys), site.run(experiment, keys)
    planned = [dead]
    if has("workspaces"):
        team = site.experiment(artifact_location="mlflow-artifacts:/workspaces/team/e")
        planned.append(site.run(team, keys))
    for one in planned:
        site.delete_run(one)
    if has("workspaces"):
        site.execute("INSERT INTO workspaces (name) VALUES ('team')")
        site.execute("UPDATE experiments SET workspace = 'team' WHERE experiment_id = :id", id=int(team))
    init(site)
    plan(site, file, "--action", "tag")
    refused("apply", file, "--backend-store-uri", site.uri, code=4, says=("lifecycle apply --action tag",))
    assert run("lifecycle", "apply", "--backend-store-uri", site.uri, "--action", "tag", "--yes").code == 0

    report = apply(site, file)

    assert outcomes(report) == dict.fromkeys(planned, "waiting")
    assert [one["waiting_objects"] for one in report["results"]] == [len(keys)] * len(planned)
    tagged = [
        item.key for item in site.items() if site.client.get_object_tagging(Bucket=bucket, Key=item.key)["TagSet"]
    ]
    assert (len(tagged), [key for key in tagged if live in key]) == (len(keys) * len(planned), [])


def test_no_password_is_shown(fake_site: Site, file: str) -> None:
    """Artifacts that are not on S3 may have one in their URI: neither the file nor any report repeats it."""
    site = fake_site
    (dead,) = dead_runs(site, 0)
    uri = "sftp://me:Hush-never-shown@host/mlruns/x"
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=uri, id=dead)
    init(site)
    made = plan(site, file)
    told = [Path(file).read_text(), json.dumps(gc(site)), run("show", file).out, json.dumps(apply(site, file))]

    assert [line.uri for line in made.plan.decisions] == ["sftp://host/mlruns/x"]
    assert "Hush" not in "".join(told)
