"""Attempts to have ``mlflow gc``, MLflow's artifact routes or a script delete what is live, needed or not asked for."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import schema, surveying
from mlflow_artifact_gc.collecting import CommandCollection
from mlflow_artifact_gc.hook import stock_gc
from mlflow_artifact_gc.model import EntityKind
from mlflow_artifact_gc.s3 import MARKER_NAME
from tests.command import init, run
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.stock import forget_stores, mlflow_gc

MakeSite = Callable[[Site], Site]
NOW = ("--grace", "0s", "--min-object-age", "0s")


def ago(days: float) -> int:
    """That many days before now, by this machine's clock."""
    return int(time.time() * 1000 - days * DAY_MS)


def rows(site: Site) -> set[str]:
    """The ids of everything that MLflow still has a row of."""
    return {row.id for row in site.rows()}


def keys(site: Site, entity: str) -> list[str]:
    """What lies in S3 below an id."""
    return [item.key for item in site.items() if f"/{entity}/" in item.key]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[Site], None]:
    """Makes this process one of the server's: MLflow's own variables name the stores."""

    def use(site: Site) -> None:
        monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", site.uri)
        monkeypatch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", site.uri)
        if site.destination:
            monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", site.destination)
            monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")

    return use


def delete(uri: str, path: str | None = None) -> str:
    """What MLflow's repository for a URI answers to a deletion; nothing if it did it."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        get_artifact_repository(uri).delete_artifacts(path)
    except MlflowException as error:
        return str(error)
    return ""


class Files:
    """A run or a logged model whose artifact is a local file."""

    def __init__(self, uri: str) -> None:
        self.path = Path(urllib.parse.urlparse(uri).path) / "model/MLmodel"
        self.path.parent.mkdir(parents=True)
        self.path.write_text("x")


def local_run(site: Site, folder: Path, experiment: str | None = None) -> tuple[str, Files]:
    """A run with a file, and its file."""
    where = experiment or site.experiment(artifact_location=f"file://{folder}/{uuid.uuid4().hex}")
    made = site.store.create_run(where, "tester", 1, [], "").info
    return str(made.run_id), Files(made.artifact_uri)


class Stranger:
    """A tracking server that answers every deletion with 200, or another status, and remembers what it was asked."""

    def __init__(self, status: int = 200) -> None:
        stranger, self.asked = self, list[str]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_DELETE(self) -> None:
                stranger.asked.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """One that deletes nothing and says that it did."""
    made = Stranger()
    yield made
    made.close()


# What lies outside S3


@pytest.mark.parametrize("kind", ["run", "logged model"])
def test_the_grace_period_holds_outside_s3_too(site: Site, tmp_path: Path, kind: str) -> None:
    """A local file's run or model that was deleted a moment ago is not collected, as MLflow alone would not."""
    if kind == "run":
        made, files = local_run(site, tmp_path)
        site.delete_run(made)
    else:
        model = site.store.create_logged_model(site.experiment(artifact_location=f"file://{tmp_path}/art"))
        made, files = model.model_id, Files(model.artifact_location)
        site.delete_logged_model(made)
    init(site)
    for older_than in ((), ("--older-than", "30d")):
        assert mlflow_gc(site, *older_than).code == 0
        assert made in rows(site)
        assert files.path.exists()


def test_a_champion_outside_s3_stays(site: Site, tmp_path: Path) -> None:
    """A registered model whose files are local is needed like any other; its neighbour goes, by MLflow's own hand."""
    experiment = site.experiment(artifact_location=f"file://{tmp_path}/art")
    champion, files = local_run(site, tmp_path, experiment)
    other, others = local_run(site, tmp_path, experiment)
    site.register("churn", f"{files.path.parent.parent}/model", run_id=champion)
    for made in (champion, other):
        site.delete_run(made)
    init(site, *NOW)
    assert mlflow_gc(site).code == 0
    assert champion in rows(site)
    assert files.path.exists()
    assert other not in rows(site)
    assert not others.path.exists()


def test_files_of_what_is_not_named_stay(site: Site, tmp_path: Path) -> None:
    """MLflow takes the runs of every deleted experiment along; with us also those outside S3 stay."""
    made, files = local_run(site, tmp_path)
    named = site.run(site.experiment(), n_objects=1)
    site.delete_run(named)
    site.delete_experiment(site.store.get_run(made).info.experiment_id)
    init(site, *NOW)
    assert mlflow_gc(site, "--run-ids", named).code == 0
    assert made in rows(site)
    assert files.path.exists()
    assert named not in rows(site)


@pytest.fixture
def after_the_plan(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something done once the command knows what it will ask for."""
    candidates = CommandCollection.candidates

    def arrange(act: Callable[[], object]) -> None:
        done: list[object] = []

        def then_act(self: CommandCollection, kind: EntityKind, of_mlflow: Any) -> list[str]:
            found = candidates(self, kind, of_mlflow)
            if kind is EntityKind.LOGGED_MODEL and not done:
                done.append(act() or True)
            return found

        monkeypatch.setattr(CommandCollection, "candidates", then_act)

    return arrange


@pytest.fixture
def old_local_run(site: Site, tmp_path: Path) -> tuple[str, Files]:
    """A run with a file, past its grace period; the site is opted in."""
    made, files = local_run(site, tmp_path)
    site.run(site.experiment(), n_objects=1)
    site.delete_run(made, deleted_ms=ago(10))
    init(site)
    return made, files


def test_what_is_registered_meanwhile_stays_outside_s3_too(
    site: Site, old_local_run: tuple[str, Files], after_the_plan: Callable[[Callable[[], object]], None]
) -> None:
    """No claim keeps a registration away there, so that it is asked again, right before."""
    made, files = old_local_run
    after_the_plan(lambda: site.register("churn", f"{files.path.parent.parent}/model", run_id=made))
    assert mlflow_gc(site).code == 0
    assert made in rows(site)
    assert files.path.exists()


@pytest.mark.parametrize("kind", ["run", "experiment"])
def test_what_is_held_meanwhile_stays_outside_s3_too(
    site: Site,
    old_local_run: tuple[str, Files],
    after_the_plan: Callable[[Callable[[], object]], None],
    kind: str,
) -> None:
    """As on S3: by itself, and with all of its experiment."""
    made, files = old_local_run
    target = {"run": made, "experiment": site.store.get_run(made).info.experiment_id}[kind]
    add = ("hold", "add", "--backend-store-uri", site.uri, f"--{kind}-id", target, "--reason", "audit")
    after_the_plan(lambda: run(*add))
    assert mlflow_gc(site).code == 0
    assert made in rows(site)
    assert files.path.exists()


def test_what_is_deleted_again_meanwhile_has_a_new_grace_period(
    site: Site, old_local_run: tuple[str, Files], after_the_plan: Callable[[Callable[[], object]], None]
) -> None:
    """Restored and deleted while the command works."""
    made, files = old_local_run

    def again() -> None:
        site.restore_run(made)
        site.delete_run(made)

    after_the_plan(again)
    assert mlflow_gc(site).code == 0
    assert made in rows(site)
    assert files.path.exists()


def test_what_is_restored_at_the_last_moment_keeps_its_row(
    site: Site, old_local_run: tuple[str, Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its files' end and its row's."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    made, _ = old_local_run
    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", lambda *_: site.restore_run(made))
    assert mlflow_gc(site).code == 0
    assert site.store.get_run(made).info.lifecycle_stage == "active"


def test_a_local_model_keeps_its_experiment(site: Site, tmp_path: Path) -> None:
    """MLflow deletes no files of a deleted experiment's logged models: while they are there, their rows are."""
    experiment = site.experiment(artifact_location=f"file://{tmp_path}/art")
    model = site.store.create_logged_model(experiment)
    files = Files(model.artifact_location)
    site.delete_experiment(experiment, deleted_ms=ago(10))
    init(site)
    assert mlflow_gc(site).code == 0
    assert {experiment, model.model_id} <= rows(site)
    assert files.path.exists()


def test_what_lies_in_a_deleted_local_run_keeps_it(site: Site, tmp_path: Path) -> None:
    """An experiment inside a run's folder that was deleted just now can be restored: its files are there."""
    outer, _ = local_run(site, tmp_path)
    place = site.artifact_uri(outer)
    inner, files = local_run(site, tmp_path, site.experiment(artifact_location=f"{place}/sub"))
    site.delete_run(outer, deleted_ms=ago(10))
    site.delete_experiment(site.store.get_run(inner).info.experiment_id)
    init(site)
    assert mlflow_gc(site).code == 0
    assert {outer, inner} <= rows(site)
    assert files.path.exists()


@pytest.mark.parametrize("uri", ["s3a://bucket/x/{id}/artifacts", None, ""])
def test_what_mlflow_cannot_open_does_not_end_the_command(site: Site, uri: str | None) -> None:
    """A place that no repository of MLflow's is for keeps its row, and the next ones go."""
    experiment = site.experiment()
    odd, other, gone = site.run(experiment), site.run(experiment, n_objects=1), site.experiment()
    for made in (odd, other):
        site.delete_run(made)
    site.delete_experiment(gone)
    text = uri.format(id=odd) if uri else uri
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=text, id=odd)
    init(site, *NOW)
    ran = mlflow_gc(site, "--run-ids", f"{odd},{other}")
    assert ran.code == 0, ran.error
    assert rows(site) & {odd, other} == {odd}


# Experiments


def test_an_experiment_s_own_grace_period_holds(site: Site) -> None:
    """One that has nothing in S3 can be restored like any other, with its traces."""
    site.run(site.experiment(), n_objects=1)
    empty, traced = site.experiment(), site.experiment()
    trace = site.trace(traced, {})
    site.execute("DELETE FROM trace_tags WHERE request_id = :id", id=trace)
    for experiment in (empty, traced):
        site.delete_experiment(experiment)
    init(site)
    ran = mlflow_gc(site)
    assert ran.code == 0
    assert "still in its grace period until" in ran.err
    assert {empty, traced} <= rows(site)
    with site.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT request_id FROM trace_info")).scalars().all() == [trace]


def test_an_experiment_that_is_not_named_stays(site: Site) -> None:
    """Also where nothing of it is in S3."""
    named, other = site.run(site.experiment(), n_objects=1), site.experiment()
    site.delete_run(named)
    site.delete_experiment(other)
    init(site, *NOW)
    ran = mlflow_gc(site, "--run-ids", named)
    assert f"experiment {other} was NOT deleted, whatever the next line says: it was not named" in ran.err
    assert rows(site) & {named, other} == {other}


# What was asked for


@pytest.mark.parametrize("flag", ["--run-ids", "--logged-model-ids", "--experiment-ids"])
def test_a_list_of_commas_is_not_everything(site: Site, flag: str) -> None:
    """As a script passes it whose variables are empty."""
    experiment, gone = site.experiment(), site.experiment()
    made = [site.run(experiment, n_objects=1), site.run(gone, n_objects=1)]
    site.delete_run(made[0])
    site.delete_experiment(gone)
    init(site, *NOW)
    mlflow_gc(site, flag, ",")
    assert {*made, gone} <= rows(site)
    assert all(keys(site, one) for one in made)


def test_ids_and_a_date_together(site: Site) -> None:
    """MLflow asks for the runs of deleted experiments too, and must find them in the list that it gets."""
    named, other = site.logged_model(site.experiment(), n_objects=1), site.experiment()
    along = site.run(other, n_objects=1)
    site.delete_logged_model(named, deleted_ms=ago(3))
    site.delete_experiment(other, deleted_ms=ago(3))
    init(site, *NOW)
    ran = mlflow_gc(site, "--older-than", "1d", "--logged-model-ids", named)
    assert ran.code == 0, ran.error
    assert rows(site) & {named, along} == {along}
    assert keys(site, along)


def test_another_workspace_s_runs_do_not_end_the_command(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow finds no run of another workspace, and gives up where it is told of one."""
    ours, theirs = (_workspace(site, name, 3) for name in ("wa", "wb"))
    site.execute("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'wb'")
    for made in ours:
        site.client.put_object(Bucket=site.bucket, Key=f"mlruns/workspaces/wa/e/{made}/artifacts/x", Body=b"1")
    init(site, *NOW)
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    ran = mlflow_gc(site, "--workspace", "wa")
    assert ran.code == 0, ran.error
    assert rows(site) & {*ours, *theirs} == {*theirs}


def test_a_model_that_goes_with_its_run_is_not_asked_for_again(site: Site) -> None:
    """Deleted by itself too: its row goes with the run's, and the others' turn comes."""
    experiment, gone = site.experiment(), site.experiment()
    live, deleted = (site.run(experiment, n_objects=1) for _ in range(2))
    along, other = site.logged_model(experiment, deleted, n_objects=1), site.logged_model(experiment, live, n_objects=1)
    for model in (along, other):
        site.delete_logged_model(model)
    site.delete_run(deleted)
    site.delete_experiment(gone)
    init(site, *NOW, "--models", "follow-run")
    ran = mlflow_gc(site)
    assert ran.code == 0, ran.error
    assert rows(site) & {live, deleted, along, other, gone} == {live}


def test_each_call_of_the_command_is_one_of_its_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script's command that invokes it for one id after the other, in contexts that share their meta."""
    from click.testing import CliRunner
    from mlflow.cli import gc
    from mlflow.tracking._tracking_service import utils

    experiment = site.experiment()
    made = [site.run(experiment, n_objects=1) for _ in range(3)]
    for one in made:
        site.delete_run(one)
    init(site, *NOW)
    monkeypatch.setattr(utils, "_tracking_uri", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.uri)

    @click.command()
    @click.pass_context
    def nightly(context: click.Context) -> None:
        for one in made[:2]:
            context.invoke(gc, backend_store_uri=site.uri, run_ids=one)

    ran = CliRunner().invoke(nightly, [])
    forget_stores()
    assert ran.exit_code == 0, ran.exception
    assert rows(site) & {*made} == {made[2]}
    assert [len(keys(site, one)) for one in made] == [0, 0, 1]


def test_a_context_that_says_nothing_is_no_command(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody calls the command's function inside a context without parameters: that is not to ask for everything."""
    from mlflow.cli import gc

    experiment = site.experiment()
    named, other = (site.run(experiment, n_objects=1) for _ in range(2))
    for made in (named, other):
        site.delete_run(made)
    init(site)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.uri)
    given: dict[str, Any] = {parameter.name: None for parameter in gc.params}
    given |= {"backend_store_uri": site.uri, "run_ids": named, "jobs": False, "all_workspaces": False}
    with click.Context(gc), pytest.raises(Exception, match="still in its grace period"):
        gc.callback(**given)
    forget_stores()
    assert {named, other} <= rows(site)
    assert keys(site, other)


def test_a_script_that_does_what_the_command_does(site: Site) -> None:
    """Without a command there is nobody who would keep a row, so the refusal is none that the loop survives."""
    from mlflow.cli import _gc_tracking_resources
    from mlflow.tracking._tracking_service import utils

    champion = site.run(site.experiment(), {"model/MLmodel": b"x"})
    site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    site.delete_run(champion)
    init(site, *NOW)
    store = utils._get_store(site.uri)
    with pytest.raises(Exception, match="registered model churn"):
        _gc_tracking_resources(
            backend_store=store,
            run_ids=None,
            experiment_ids=None,
            logged_model_ids=None,
            older_than=None,
            time_delta=0,
            skip_experiments=False,
            skip_logged_models=False,
        )
    forget_stores()
    assert champion in rows(site)
    assert keys(site, champion)


# Where we are not sure


def test_tables_of_another_version_stop_the_command(site: Site) -> None:
    """Installed anew and 'init' not run yet: somebody has opted in, and what he has set holds."""
    champion = site.run(site.experiment(), {"model/MLmodel": b"x"})
    site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    site.delete_run(champion)
    init(site, *NOW)
    with site.engine.connect() as connection:
        now = schema.current(connection)
    for revision in ("0001", "from-the-future"):
        site.execute("UPDATE artifact_gc_alembic_version SET version_num = :new", new=revision)
        ran = mlflow_gc(site)
        assert ran.code == 1
        assert "init" in str(ran.error) or "newer" in str(ran.error)
        assert keys(site, champion)
        assert champion in rows(site)
    assert now


@pytest.mark.parametrize("uri", ["mssql+pyodbc://user:sekret@host/db", "sqlite://", "file:///tmp/mlruns"])
def test_a_database_that_cannot_be_opted_in_is_none(site: Site, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """There, deletions are MLflow's own."""
    made = site.run(site.experiment(), n_objects=2)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
    assert delete(site.artifact_uri(made)) == ""
    assert not keys(site, made)


def test_every_database_of_a_process_is_asked(site: Site, sqlite_template: Path, tmp_path: Path) -> None:
    """A process that has looked into another database since does not forget the first one's champion."""
    from mlflow.tracking._tracking_service import utils

    champion = site.run(site.experiment(), {"model/MLmodel": b"x"})
    site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    init(site)
    other = tmp_path / "other.db"
    other.write_bytes(sqlite_template.read_bytes())
    for uri in (site.uri, f"sqlite:///{other}"):
        utils._get_store(uri)
    assert "registered model churn" in delete(site.artifact_uri(champion), "model")
    forget_stores()
    assert keys(site, champion)


def test_a_registry_that_is_no_database_is_not_taken_for_another(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's registry is named, and nobody has said which database that is: the one at hand may be an old one."""
    kept, made = (site.run(site.experiment(), n_objects=1) for _ in range(2))
    site.register("old", f"{site.artifact_uri(kept)}/model", run_id=kept)
    site.delete_run(made)
    assert run("init", "--backend-store-uri", site.uri, *NOW).code == 0
    site.execute("UPDATE artifact_gc_site SET registry_fingerprint = NULL")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://registry.example:5000")
    ran = mlflow_gc(site)
    assert ran.code == 1
    assert "is no database" in str(ran.error)
    assert keys(site, made)


@pytest.mark.parametrize("destination", ["./mlartifacts", "s3://elsewhere/x"])
def test_another_destination_than_the_site_s_stops_the_command(
    proxied_site: Site, monkeypatch: pytest.MonkeyPatch, destination: str
) -> None:
    """A process that was told another place does not know where the artifacts are."""
    site = proxied_site
    made = site.run(site.experiment(), n_objects=2)
    site.delete_run(made)
    init(site, *NOW)
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", destination)
    ran = mlflow_gc(site)
    assert ran.code == 1
    assert "artifacts destination" in str(ran.error)
    assert made in rows(site)
    assert len(keys(site, made)) == 2


def test_objects_are_a_brake_here_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment limits for 'gc' it limits for MLflow's command."""
    experiment = site.experiment()
    made = site.run(experiment, n_objects=5)
    site.delete_run(made)
    init(site, *NOW)
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_MAX_OBJECTS", "2")
    ran = mlflow_gc(site)
    assert ran.code == 1
    assert "--max-objects" in str(ran.error)
    assert len(keys(site, made)) == 5
    assert made in rows(site)


def test_brakes_are_measured_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the command, and not for each of its entities."""
    experiment = site.experiment()
    made = [site.run(experiment, n_objects=1) for _ in range(4)]
    for one in made:
        site.delete_run(one)
    init(site, *NOW)
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_MAX_OBJECTS", "1000")
    measured: list[int] = []
    measure = surveying.measure

    def counting(surveyor: Any, tasks: Any, *more: Any, **how: Any) -> Any:
        measured.append(len(tasks))
        return measure(surveyor, tasks, *more, **how)

    monkeypatch.setattr(surveying, "measure", counting)
    assert mlflow_gc(site).code == 0
    assert len(measured) == 1
    assert not rows(site) & {*made}


def test_the_share_is_of_all_workspaces_together(site: Site) -> None:
    """A third of everything in each of three workspaces is everything."""
    ids = [_workspace(site, name, 40) for name in ("wa", "wb", "wc")]
    init(site, *NOW)
    ran = mlflow_gc(site, "--all-workspaces")
    assert ran.code == 1
    assert "--max-share" in str(ran.error)
    assert {id_ for of_one in ids for id_ in of_one} <= rows(site)


def _workspace(site: Site, name: str, runs: int) -> list[str]:
    made = [uuid.uuid4().hex for _ in range(runs)]
    with site.engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO workspaces (name) VALUES (:name)"), {"name": name})
        location = f"s3://{site.bucket}/mlruns/workspaces/{name}/e"
        connection.execute(
            sa.text(
                "INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time, last_update_time, "
                "workspace) VALUES (:name, :location, 'active', 1, 1, :name)"
            ),
            {"name": name, "location": location},
        )
        connection.execute(
            sa.text(
                "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, "
                "start_time, lifecycle_stage, artifact_uri, experiment_id, deleted_time) SELECT :id, 'r', 'LOCAL', "
                "'', '', 't', 'FINISHED', 1, 'deleted', :uri, experiment_id, 1 FROM experiments WHERE name = :name"
            ),
            [{"id": id_, "uri": f"{location}/{id_}/artifacts", "name": name} for id_ in made],
        )
    return made


# Servers that are not ours


@pytest.fixture
def out_of_reach(proxied_site: Site, monkeypatch: pytest.MonkeyPatch) -> tuple[Site, str]:
    """A site with a run that may go, seen from where S3 accepts no keys."""
    site = proxied_site
    experiment = site.experiment()
    site.run(experiment, n_objects=1)
    made, other = (site.run(experiment, n_objects=2) for _ in range(2))
    site.delete_run(made)
    site.delete_run(other)
    init(site, *NOW)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    return site, made


def test_a_server_without_us_is_asked_for_nothing(out_of_reach: tuple[Site, str], stranger: Stranger) -> None:
    """It would delete what it finds there, and say so: it is only asked about a place where nothing can be."""
    site, made = out_of_reach
    ran = mlflow_gc(site, tracking_uri=f"http://127.0.0.1:{stranger.port}")
    assert ran.code == 0
    assert f"run {made} was NOT deleted" in ran.err
    assert made in rows(site)
    assert all(path.endswith("/artifacts/artifact-gc-whole") for path in stranger.asked)
    assert len(stranger.asked) == 1, "once for all of them"


def test_no_password_of_a_server_is_shown(out_of_reach: tuple[Site, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a server that refuses nor by one that is not there."""
    site, _ = out_of_reach
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    refusing = Stranger(409)
    for port in (refusing.port, 9):
        ran = mlflow_gc(site, tracking_uri=f"http://user:s3kret@127.0.0.1:{port}")
        assert "s3kret" not in ran.out + ran.err + str(ran.error)
        assert ran.code == 0
    refusing.close()


def test_a_database_that_was_restored_asks_no_server(proxied_site: Site, stranger: Stranger) -> None:
    """What the marker refuses is not asked of anybody else."""
    site = proxied_site
    experiment = site.experiment()
    first, second, _live = (site.run(experiment, n_objects=1) for _ in range(3))
    site.delete_run(first)
    init(site, *NOW)
    assert mlflow_gc(site).code == 0
    site.execute("UPDATE artifact_gc_roots SET epoch = 0, marker_epoch = 0")
    site.delete_run(second)
    ran = mlflow_gc(site, tracking_uri=f"http://127.0.0.1:{stranger.port}")
    assert ran.code == 0
    assert not stranger.asked
    assert second in rows(site)
    assert keys(site, second)


# MLflow's artifact routes


@pytest.mark.parametrize("root", ["mlflow", "artifacts"])
def test_what_is_above_or_beside_an_entity_s_own_place_stays(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite, served: Callable[[Site], None], *, root: str
) -> None:
    """The folder of a live run, logged model or trace; an experiment's, and all; and with slashes too many."""
    site = make_site(Site.proxied(sqlite_uri, seaweed, bucket, root=root))
    experiment = site.experiment()
    live, fresh = site.run(experiment, n_objects=2), site.run(experiment, n_objects=1)
    model, trace = site.logged_model(experiment, live, n_objects=1), site.trace(experiment)
    site.delete_run(fresh)
    init(site)
    served(site)
    before = site.snapshot().keys
    paths = [f"{experiment}/{one}" for one in (live, fresh, f"models/{model}", f"traces/{trace}", "models", "traces")]
    paths += [f"{experiment}//{live}/artifacts", experiment, "", "/", f"{experiment}/{live}/artifacts/../../{fresh}"]
    for path in paths:
        assert delete(site.destination or "", path), path
    assert site.snapshot().keys == before


@pytest.mark.parametrize("name", ["models", "traces", "artifacts"])
def test_an_experiment_may_be_called_what_it_likes(site: Site, served: Callable[[Site], None], name: str) -> None:
    """Whose artifacts these are is what the rows say: a folder's name makes no run a logged model."""
    experiment = site.experiment(artifact_location=f"s3://{site.bucket}/deep/{name}")
    live, fresh, gone = (site.run(experiment, n_objects=2) for _ in range(3))
    site.delete_run(fresh)
    site.delete_run(gone, deleted_ms=ago(8))
    init(site, "--min-object-age", "0s")
    served(site)
    assert "is live" in delete(site.artifact_uri(live))
    assert "still in its grace period" in delete(site.artifact_uri(fresh))
    assert delete(site.artifact_uri(gone)) == ""
    assert [len(keys(site, one)) for one in (live, fresh, gone)] == [2, 2, 0]


def test_a_part_of_something_deleted_stays(site: Site, served: Callable[[Site], None]) -> None:
    """It would be missing after a restore; of something live it goes, as asked."""
    experiment = site.experiment()
    deleted, live = (site.run(experiment, {"model/x": b"1", "other": b"2"}) for _ in range(2))
    site.delete_run(deleted)
    init(site)
    served(site)
    assert "would be missing when it is restored" in delete(site.artifact_uri(deleted), "model")
    assert delete(site.artifact_uri(live), "model") == ""
    assert [len(keys(site, one)) for one in (deleted, live)] == [2, 1]


def test_the_payload_of_a_trace_goes_and_its_attachments_stay(site: Site, served: Callable[[Site], None]) -> None:
    """MLflow deletes the first with the trace; an evaluation dataset may show the others."""
    trace = site.trace(site.experiment(), {"traces.pb": b"x", "attachments/a": b"1"})
    document = json.dumps({"image": f"mlflow-attachment://a?content_type=image/png&trace_id={trace}"})
    site.execute("INSERT INTO evaluation_datasets (dataset_id, name) VALUES ('d', 'd')")
    site.execute(
        "INSERT INTO evaluation_dataset_records (dataset_record_id, dataset_id, inputs, input_hash) "
        "VALUES ('r', 'd', :document, 'h')",
        document=document,
    )
    init(site)
    served(site)
    uri = site.artifact_uri(trace)
    assert delete(uri, "traces.pb") == ""
    assert "evaluation dataset d, attachment" in delete(uri, "attachments")
    assert "evaluation dataset d, attachment" in delete(uri, "traces.json")
    assert "goes with its experiment" in delete(uri)
    assert [key.rpartition("/")[2] for key in keys(site, trace)] == ["a"]


def test_an_archived_trace_s_payload_goes_wherever_it_lies(site: Site, served: Callable[[Site], None]) -> None:
    """A trace has two places then; what is called like its payload and is none stays."""
    experiment = site.experiment()
    trace = site.trace(experiment, {"attachments/traces.pb": b"1"})
    archive = f"s3://{site.bucket}/archive/{experiment}/traces/{trace}/artifacts"
    site.execute(
        "INSERT INTO trace_tags (request_id, key, value) VALUES (:id, 'mlflow.trace.archiveLocation', :uri)",
        id=trace,
        uri=archive,
    )
    site.write(trace, archive, {"traces.pb": b"x"})
    document = json.dumps({"image": f"mlflow-attachment://traces.pb?trace_id={trace}"})
    site.execute("INSERT INTO evaluation_datasets (dataset_id, name) VALUES ('d', 'd')")
    site.execute(
        "INSERT INTO evaluation_dataset_records (dataset_record_id, dataset_id, inputs, input_hash) "
        "VALUES ('r', 'd', :document, 'h')",
        document=document,
    )
    init(site)
    served(site)
    assert delete(archive, "traces.pb") == ""
    assert "evaluation dataset d" in delete(_first_place(site, trace), "attachments/traces.pb")
    assert [key.rpartition("/")[2] for key in keys(site, trace)] == ["traces.pb"]


def _first_place(site: Site, trace: str) -> str:
    with site.engine.connect() as connection:
        query = "SELECT value FROM trace_tags WHERE request_id = :id AND key = 'mlflow.artifactLocation'"
        return str(connection.execute(sa.text(query), {"id": trace}).scalar_one())


def test_folders_that_no_row_knows_stay(proxied_site: Site, served: Callable[[Site], None]) -> None:
    """What lies in them may be another database's; outside MLflow's roots a path is nobody's, and goes as asked."""
    site = proxied_site
    site.run(site.experiment(), n_objects=1)
    init(site)
    served(site)
    inside = f"artifacts/77/{uuid.uuid4().hex}/artifacts/x"
    outside = "scratch/x"
    for key in (inside, outside):
        site.client.put_object(Bucket=site.bucket, Key=key, Body=b"1")
    assert "whose it is is not known" in delete(site.destination or "", "77")
    assert delete(f"s3://{site.bucket}/scratch") == ""
    left = site.snapshot().keys
    assert inside in left
    assert outside not in left


def test_a_marker_and_what_no_row_knows_stay(proxied_site: Site, served: Callable[[Site], None]) -> None:
    """A root's marker; and a run of another database, or of nobody any more."""
    site = proxied_site
    gone = site.run(site.experiment(), n_objects=1)
    site.delete_run(gone)
    init(site, *NOW)
    assert mlflow_gc(site).code == 0
    served(site)
    unknown = uuid.uuid4().hex
    site.client.put_object(Bucket=site.bucket, Key=f"artifacts/7/{unknown}/artifacts/x", Body=b"1")
    assert "says whose the root is" in delete(site.destination or "", MARKER_NAME)
    assert "whose it is is not known" in delete(site.destination or "", f"7/{unknown}/artifacts")
    assert sorted(site.snapshot().keys) == sorted([f"artifacts/{MARKER_NAME}", f"artifacts/7/{unknown}/artifacts/x"])


def test_versions_and_rows_without_a_date_ask_for_a_person(site: Site, served: Callable[[Site], None]) -> None:
    """To name something by its path is not to say that every version may go, nor that its date does not matter."""
    site.switch_versioning(on=True)
    experiment = site.experiment()
    deleted, undated = (site.run(experiment, n_objects=1) for _ in range(2))
    for one in (deleted, undated):
        site.delete_run(one)
    site.undate_run(undated)
    init(site, *NOW)
    served(site)
    assert "keeps versions" in delete(site.artifact_uri(deleted))
    assert "says not when it was deleted" in delete(site.artifact_uri(undated))
    assert len(keys(site, deleted)) == len(keys(site, undated)) == 1
    init(site, *NOW, "--action", "purge")
    assert delete(site.artifact_uri(deleted)) == ""
    assert not keys(site, deleted)


def test_an_error_of_ours_is_a_refusal(
    site: Site, served: Callable[[Site], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a 500, which MLflow's clients send again for minutes; and not MLflow's own deletion."""
    live = site.run(site.experiment(), n_objects=1)
    init(site)
    served(site)
    monkeypatch.setattr("mlflow_artifact_gc.requested._delete", lambda *_: 1 / 0)
    assert delete(site.artifact_uri(live)).endswith("is kept, because of ZeroDivisionError")
    assert keys(site, live)


@pytest.fixture
def apart(sqlite_template: Path, tmp_path: Path, site: Site, make_site: MakeSite) -> Site:
    """A site whose model registry has a database of its own."""
    registry = tmp_path / "registry.db"
    registry.write_bytes(sqlite_template.read_bytes())
    return make_site(dataclasses.replace(site, registry_uri=f"sqlite:///{registry}"))


def test_a_registry_elsewhere_is_left_alone_afterwards(
    apart: Site, served: Callable[[Site], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each deletion closes what it has opened."""
    site = apart
    live = site.run(site.experiment(), n_objects=1)
    site.register("other", f"s3://{site.bucket}/other")
    init(site)
    served(site)
    monkeypatch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", site.registry_uri or "")

    def opened() -> int:
        return sum("registry.db" in str(one.readlink()) for one in Path("/proc/self/fd").iterdir() if one.is_symlink())

    before = opened()
    for number in range(6):
        assert delete(site.artifact_uri(live), f"absent-{number}") == ""
    assert opened() <= before


def test_a_script_may_name_what_it_deletes(site: Site) -> None:
    """The functions that we have replaced take what MLflow's own take."""
    from mlflow.tracking._tracking_service import utils

    made = site.run(site.experiment())
    site.delete_run(made)
    init(site)
    store = utils._get_store(site.uri)
    assert store._get_deleted_runs(older_than=0) == store._get_deleted_runs(0) == [made]
    assert store.get_run(run_id=made).info.run_id == made
    store._hard_delete_run(run_id=made)
    forget_stores()
    assert made not in rows(site)


def test_where_we_cannot_attach_the_command_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would delete unprotected what somebody has had protected."""
    made = site.run(site.experiment(), n_objects=1)
    site.delete_run(made)
    init(site)
    monkeypatch.setattr(stock_gc, "attach", lambda _store: 1 / 0)
    ran = mlflow_gc(site)
    assert ran.code == 1
    assert "could not attach" in str(ran.error)
    assert made in rows(site)
    assert keys(site, made)


def test_the_names_that_this_relies_on() -> None:
    """Private names of MLflow's, and of its command's parameters."""
    from mlflow.cli import gc
    from mlflow.entities import LoggedModel, RunInfo
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    assert {"run_ids", "experiment_ids", "logged_model_ids", "older_than"} <= {one.name for one in gc.params}
    assert (gc.name, gc.callback.__module__.partition(".")[0]) == ("gc", "mlflow")
    assert "_artifact_uri" in RunInfo.__init__.__code__.co_names
    assert "_artifact_location" in LoggedModel.__init__.__code__.co_names
    assert isinstance(HttpArtifactRepository._host_creds, property)
    assert stock_gc.SCHEME == "artifact-gc"
