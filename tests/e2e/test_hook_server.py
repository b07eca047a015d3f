"""The hook in a real ``mlflow server``: what users do over REST is noted, and all else is as without us.

One server with two processes for each kind of database, shared by the tests; each works in experiments of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.hooked import INBOX, Hooked, Noted
from tests.mariadb import MariaDbServer, Template
from tests.processes import workers
from tests.servers import MlflowServer, PostgresServer, S3Server

_FUTURE_MS = 2**52
_OFF = {"MLFLOW_ARTIFACT_GC_WORKER": "off"}
_NO_S3 = S3Server(endpoint="http://127.0.0.1:9", access_key="none", secret_key="none")
_BEGINS_S = 10.5


@dataclass(frozen=True, kw_only=True)
class Place:
    """A running server, and its database with our eyes."""

    server: MlflowServer
    hooked: Hooked
    folder: Path

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.server.uri)

    def experiment(self) -> str:
        made: str = self.client.create_experiment(f"experiment-{uuid.uuid4().hex[:8]}")
        return made

    def run(self, experiment: str) -> str:
        made: str = self.client.create_run(experiment).info.run_id
        return made

    def noted(self, *ids: str) -> list[tuple[str, str, str]]:
        """What the inbox says of these."""
        return [note[:3] for note in self.hooked.noted() if note.id in ids]


@contextmanager
def _serving(
    folder: Path,
    uri: str,
    *,
    workspaces: bool = False,
    workers: int = 1,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    switched_on: bool = True,
) -> Iterator[Place]:
    hooked = Hooked(uri=uri, root=(folder / "artifacts").as_uri())
    if switched_on:
        hooked.init()
    with servers.mlflow_server(
        folder,
        backend_store_uri=uri,
        s3=_NO_S3,
        default_artifact_root=hooked.root,
        workspaces=workspaces,
        workers=workers,
        extra_args=args,
        extra_env={**_OFF, **(env or {})},
    ) as server:
        yield Place(server=server, hooked=hooked, folder=folder)
        said = server.log.read_text()
    hooked.close()
    assert "Traceback" not in said
    assert "ERROR mlflow_artifact_gc" not in said
    assert "could not" not in said


@pytest.fixture(scope="module")
def sqlite_place(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """SQLite; switched on by the first test that needs it, while the server runs."""
    folder = tmp_path_factory.mktemp("hook-sqlite")
    shutil.copyfile(sqlite_template, folder / "mlflow.db")
    with _serving(folder, f"sqlite:///{folder / 'mlflow.db'}", workers=2, switched_on=False) as place:
        yield place


@pytest.fixture(scope="module")
def postgresql_place(pg: PostgresServer, pg_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """PostgreSQL; the same."""
    name = f"hook_{uuid.uuid4().hex[:16]}"
    uri = pg.create_database(name, template=pg_template)
    with _serving(tmp_path_factory.mktemp("hook-postgresql"), uri, workers=2, switched_on=False) as place:
        yield place
    pg.drop_database(name)


@pytest.fixture(scope="module")
def mariadb_place(
    maria: MariaDbServer, maria_template: Template, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """MariaDB; the same."""
    uri = maria.create_database(template=maria_template)
    with _serving(tmp_path_factory.mktemp("hook-mariadb"), uri, workers=2, switched_on=False) as place:
        yield place
    maria.drop_database(uri.rpartition("/")[2])


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Each in turn, switched on or not."""
    place: Place = request.getfixturevalue(f"{request.param}_place")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.server.uri)
    return place


_begun: set[str] = set()


@pytest.fixture
def place(running: Place) -> Place:
    """Each in turn, recording in all its processes."""
    return _recording(running)


@pytest.fixture
def one_place(postgresql_place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """On one server: MLflow's own commands take ten seconds each (``test_worker_server.py`` has one on SQLite)."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgresql_place.server.uri)
    return _recording(postgresql_place)


def _recording(running: Place) -> Place:
    if running.server.uri not in _begun:
        _begin_recording(running)
    return running


def _begin_recording(place: Place) -> float:
    """Switch on; the seconds until both processes recorded: until twenty deletions in a row were noted."""
    place.hooked.init()
    started = time.monotonic()
    run = place.run(place.experiment())
    while time.monotonic() < started + 2 * _BEGINS_S:
        place.hooked.taken()
        for _ in range(10):
            place.client.delete_run(run)
            place.client.restore_run(run)
        if len(place.hooked.taken()) == 20:
            break
        threading.Event().wait(0.2)
    _begun.add(place.server.uri)
    return time.monotonic() - started


def test_it_is_switched_on_while_the_server_runs(running: Place) -> None:
    """Before, deletions are as without us; afterwards each process begins within ten seconds."""
    run = running.run(running.experiment())
    for _ in range(5):
        running.client.delete_run(run)
        running.client.restore_run(run)
    running.client.delete_run(run)
    stage = running.client.get_run(run).info.lifecycle_stage
    took_s = _begin_recording(running)

    assert stage == "deleted"
    assert took_s < _BEGINS_S + 5  # the last twenty deletions are timed too
    assert "installed and not switched on for this database" in running.server.log.read_text()


def test_runs_and_experiments(place: Place) -> None:
    """As the UI and the clients delete and restore them."""
    experiment = place.experiment()
    first, second = place.run(experiment), place.run(experiment)
    place.client.delete_run(first)
    place.client.restore_run(first)
    place.client.delete_run(second)
    place.client.delete_experiment(experiment)
    stages = [place.client.get_run(run).info.lifecycle_stage for run in (first, second)]
    place.client.restore_experiment(experiment)

    assert stages == ["deleted"] * 2
    assert place.client.get_experiment(experiment).lifecycle_stage == "active"
    assert place.noted(first, second, experiment) == [
        ("deleted", "run", first),
        ("restored", "run", first),
        ("deleted", "run", second),
        ("deleted", "experiment", experiment),
        ("restored", "experiment", experiment),
    ]


def test_the_default_experiment(place: Place) -> None:
    """Number 0 is an experiment as any other."""
    place.client.delete_experiment("0")
    place.client.restore_experiment("0")

    assert place.noted("0") == [("deleted", "experiment", "0"), ("restored", "experiment", "0")]


def test_logged_models_and_traces(place: Place) -> None:
    """The trace's row is gone at once; what it pointed at is noted."""
    experiment = place.experiment()
    model = place.client.create_logged_model(experiment).model_id
    trace = Hooked(uri=place.server.uri).trace(experiment)
    uri = place.hooked.trace_uri(trace)
    place.client.delete_logged_model(model)
    place.client.delete_traces(experiment, trace_ids=[trace])

    assert place.noted(model) == [("deleted", "logged_model", model)]
    assert [note for note in place.hooked.noted() if note.id == trace] == [
        Noted("hard-deleted", "trace", trace, experiment, "default", uri)
    ]


def test_the_registry(place: Place) -> None:
    """Registered, deleted, and the model as a whole."""
    run = place.run(place.experiment())
    name = f"model-{uuid.uuid4().hex[:8]}"
    source = f"{place.client.get_run(run).info.artifact_uri}/model"
    place.client.create_registered_model(name)
    for _ in range(2):
        place.client.create_model_version(name, source, run_id=run, await_creation_for=0)
    place.client.delete_model_version(name, "1")
    place.client.delete_registered_model(name)

    assert place.noted(name, f"{name}/1", f"{name}/2") == [
        ("registered", "model_version", f"{name}/1"),
        ("registered", "model_version", f"{name}/2"),
        ("deleted", "model_version", f"{name}/1"),
        ("deleted", "registered_model", name),
    ]


_FAILS_AT_COMMIT = {
    "sqlite": (
        "CREATE TABLE test_owed (id INTEGER REFERENCES experiments (experiment_id) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TRIGGER test_{table} AFTER {event} ON {table} BEGIN INSERT INTO test_owed VALUES (-7); END",
        "DROP TRIGGER test_{table}",
        "DROP TABLE test_owed",
    ),
    "postgresql": (
        "CREATE FUNCTION test_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$",
        (
            "CREATE CONSTRAINT TRIGGER test_{table} AFTER {event} ON {table} DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION test_refuse()"
        ),
        "DROP TRIGGER test_{table} ON {table}",
        "DROP FUNCTION test_refuse",
    ),
}


@contextmanager
def _commits_fail(place: Place, events: Mapping[str, str]) -> Iterator[None]:
    """Whatever does such an event to a table gets as far as its COMMIT, in every process, and fails there."""
    prepare, make, drop, tidy_up = _FAILS_AT_COMMIT[place.hooked.engine.dialect.name]
    place.hooked.execute(prepare)
    for table, event in events.items():
        place.hooked.execute(make.format(table=table, event=event))
    try:
        yield
    finally:
        for table in events:
            place.hooked.execute(drop.format(table=table))
        place.hooked.execute(tidy_up)


def test_what_is_rolled_back_is_rolled_back_together(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over REST, in both processes: where the COMMIT fails there is no deletion and no note; then there are both."""
    if place.hooked.engine.dialect.name not in _FAILS_AT_COMMIT:
        pytest.skip("MariaDB knows nothing that fails as late as at COMMIT; tests/integration/test_hook.py has a way")
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    experiment, alone = place.experiment(), place.experiment()
    run, model = place.run(alone), place.client.create_logged_model(alone).model_id
    trace = Hooked(uri=place.server.uri).trace(alone)
    name = f"model-{uuid.uuid4().hex[:8]}"
    place.client.create_registered_model(name)
    source = f"{place.client.get_run(run).info.artifact_uri}/model"
    wanted: list[tuple[str, Callable[[], object]]] = [
        (run, lambda: place.client.delete_run(run)),
        (model, lambda: place.client.delete_logged_model(model)),
        (experiment, lambda: place.client.delete_experiment(experiment)),
        (
            f"{name}/1",
            lambda: place.client.create_model_version(name, source, run_id=run, await_creation_for=0),
        ),
    ]
    ids = [one for one, _ in wanted]
    events = dict.fromkeys(("runs", "logged_models", "experiments"), "UPDATE")
    with _commits_fail(place, {**events, "model_versions": "INSERT", "trace_info": "DELETE"}):
        for _, act in [*wanted, (trace, lambda: place.client.delete_traces(alone, trace_ids=[trace]))] * 2:
            with pytest.raises(MlflowException):
                act()
        stages = [
            place.client.get_run(run).info.lifecycle_stage,
            place.client.get_experiment(experiment).lifecycle_stage,
        ]
        assert place.noted(*ids, trace) == []
    for _, act in wanted:
        act()
    place.client.delete_traces(alone, trace_ids=[trace])

    assert stages == ["active", "active"]
    assert [one for _, _, one in place.noted(*ids, trace)] == [*ids, trace]


def test_what_is_being_swept_cannot_be_registered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client hears why; when the claim has run out, it can."""
    from mlflow.exceptions import MlflowException

    # MLflow answers INVALID_STATE with 500, which its client would try again for minutes.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = place.run(place.experiment())
    name = f"model-{uuid.uuid4().hex[:8]}"
    source = f"{place.client.get_run(run).info.artifact_uri}/model"
    place.client.create_registered_model(name)
    place.hooked.intent("run", run, "sweeping", _FUTURE_MS)
    with pytest.raises(MlflowException, match=r"are being removed|too many 500") as refused:
        place.client.create_model_version(name, source, run_id=run, await_creation_for=0)
    during = place.client.search_model_versions(f"name = '{name}'")
    place.hooked.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1 WHERE entity_id = :id", id=run)
    place.client.create_model_version(name, source, run_id=run, await_creation_for=0)

    assert "removed" in str(refused.value) or "500" in str(refused.value)
    assert len(during) == 0
    assert place.noted(f"{name}/1") == [("registered", "model_version", f"{name}/1")]


def _answer(place: Place, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    import requests

    done = requests.post(f"{place.server.uri}{path}", json=body, timeout=30)
    return done.status_code, done.json()


def test_what_the_refusal_says_over_rest(place: Place) -> None:
    """Its code and its words, as any client gets them."""
    run = place.run(place.experiment())
    name = f"model-{uuid.uuid4().hex[:8]}"
    place.client.create_registered_model(name)
    place.hooked.intent("run", run, "sweeping", _FUTURE_MS)
    source = f"{place.client.get_run(run).info.artifact_uri}/model"
    body = {"name": name, "source": source, "run_id": run}
    _, said = _answer(place, "/api/2.0/mlflow/model-versions/create", body)

    assert said["error_code"] == "RESOURCE_CONFLICT"
    assert f"run {run} are being removed" in said["message"]


def test_a_client_that_uses_the_database_itself(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the hook too, where this package is installed."""
    from mlflow import MlflowClient

    run = place.run(place.experiment())
    store = place.hooked.store
    MlflowClient(place.hooked.uri).delete_run(run)

    assert place.noted(run) == [("deleted", "run", run)]
    assert store.get_run(run).info.lifecycle_stage == "deleted"


def _mlflow(place: Place, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *arguments],
        env={**os.environ, **_OFF, "MLFLOW_TRACKING_URI": place.server.uri},
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_mlflow_gc_beside_us(one_place: Place) -> None:
    """On files, when the grace period is over: it removes them, and the row."""
    place = one_place
    experiment = place.experiment()
    run, kept = place.run(experiment), place.run(experiment)
    place.client.log_text(run, "words", "words.txt")
    place.client.delete_run(run)
    place.client.delete_run(kept)
    command = ("gc", "--backend-store-uri", place.hooked.uri, "--run-ids", run)
    _mlflow(place, *command)
    assert list(place.folder.glob(f"artifacts/**/{run}/artifacts/*")), "it is in its grace period"
    assert place.client.get_run(run).info.lifecycle_stage == "deleted"

    place.hooked.execute("UPDATE runs SET deleted_time = deleted_time - 8 * 86400000 WHERE run_uuid = :id", id=run)
    _mlflow(place, *command)
    assert place.hooked.scalar("SELECT count(*) FROM runs WHERE run_uuid = :id", id=run) == 0
    assert place.noted(kept) == [("deleted", "run", kept)]
    assert place.client.get_run(kept).info.lifecycle_stage == "deleted"
    assert not list(place.folder.glob(f"artifacts/**/{run}/artifacts/*"))


def test_mlflow_db_upgrade_beside_us(one_place: Place) -> None:
    """Our tables and our version table are no matter to it."""
    place = one_place
    run = place.run(place.experiment())
    place.client.delete_run(run)
    _mlflow(place, "db", "upgrade", place.hooked.uri)
    place.client.restore_run(run)

    assert place.noted(run) == [("deleted", "run", run), ("restored", "run", run)]


def test_no_worker_runs_where_that_is_switched_off(one_place: Place) -> None:
    """``MLFLOW_ARTIFACT_GC_WORKER=off``, as for all servers here: nobody takes up what is noted."""
    run = one_place.run(one_place.experiment())
    one_place.client.delete_run(run)
    assert workers(one_place.server.pid) == []
    assert one_place.noted(run) == [("deleted", "run", run)]


def test_many_users_at_once(place: Place) -> None:
    """Eight clients, both processes: everything is deleted and noted once."""
    experiment = place.experiment()
    runs = [place.run(experiment) for _ in range(40)]
    failures: list[BaseException] = []

    def delete(mine: Sequence[str]) -> None:
        try:
            for run in mine:
                place.client.delete_run(run)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=delete, args=(runs[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert sorted(place.noted(*runs)) == sorted(("deleted", "run", run) for run in runs)


# Servers that are set up in other ways


@pytest.fixture
def database(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh file beside the server's folder."""
    shutil.copyfile(sqlite_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def _delete_a_workspace(place: Place) -> None:
    """A workspace that is deleted over REST takes all it holds with it."""
    from mlflow.utils.workspace_context import WorkspaceContext

    place.client.create_workspace("team-a")
    with WorkspaceContext("team-a"):
        experiment = place.experiment()
        run, deleted = place.run(experiment), place.run(experiment)
        place.client.delete_run(deleted)
        model = place.client.create_logged_model(experiment).model_id
    with WorkspaceContext("default"):
        other = place.run(place.experiment())
        place.client.delete_run(other)
    uris = {one: place.hooked.uri_of(one) for one in (run, deleted)} | {model: place.hooked.model_uri(model)}
    place.client.delete_workspace("team-a", mode="CASCADE")
    noted = place.hooked.noted()

    assert [note[:3] for note in noted[:2]] == [("deleted", "run", deleted), ("deleted", "run", other)]
    assert {note.id: note.uri for note in noted[2:]} == uris
    assert {note[0] for note in noted[2:]} == {"hard-deleted"}
    assert {note.workspace for note in noted[2:]} == {"team-a"}


_ADMIN = ("admin", "password1234567")
_USER = ("user", "password7654321")


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, str]], None]:
    """From now on MLflow's client is this user."""

    def log_in(who: tuple[str, str]) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", who[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", who[1])

    return log_in


@contextmanager
def _guarded(folder: Path, uri: str, *, workspaces: bool = False) -> Iterator[Place]:
    """Behind basic-auth, whose own tables lie in the same database; there is an administrator and a user."""
    pytest.importorskip("flask_wtf", reason="MLflow's basic-auth app needs Flask-WTF")
    config = folder / "auth.ini"
    config.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = {uri}\nadmin_username = {_ADMIN[0]}\nadmin_password = {_ADMIN[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "secret"}
    with _serving(folder, uri, workspaces=workspaces, args=["--app-name", "basic-auth"], env=env) as place:
        _answer_as_admin(place, {"username": _USER[0], "password": _USER[1]})
        yield place


def _answer_as_admin(place: Place, body: Mapping[str, str]) -> None:
    import requests

    url = f"{place.server.uri}/api/2.0/mlflow/users/create"
    done = requests.post(url, json=body, auth=_ADMIN, timeout=30)
    assert done.status_code == 200, done.text


def _delete_as_both(place: Place, become: Callable[[tuple[str, str]], None]) -> None:
    """Who may not delete may still not."""
    from mlflow.exceptions import MlflowException

    become(_ADMIN)
    experiment = place.experiment()
    first, second = place.run(experiment), place.run(experiment)
    place.client.delete_run(first)
    become(_USER)
    with pytest.raises(MlflowException, match=r"403|Permission denied"):
        place.client.delete_run(second)

    assert place.noted(first, second) == [("deleted", "run", first)]


def test_basic_auth(database: str, tmp_path: Path, become: Callable[[tuple[str, str]], None]) -> None:
    """Who may not delete may still not."""
    with _guarded(tmp_path, database) as place:
        _delete_as_both(place, become)


def test_workspaces_behind_basic_auth(pg_uri: str, tmp_path: Path, become: Callable[[tuple[str, str]], None]) -> None:
    """A workspace goes and is noted; who may not delete may still not."""
    with _guarded(tmp_path, pg_uri, workspaces=True) as place:
        become(_ADMIN)
        _delete_a_workspace(place)
        _delete_as_both(place, become)


def test_a_read_replica(database: str, tmp_path: Path) -> None:
    """The server reads there and writes here; so do we."""
    before = Hooked(uri=database).init()
    run = before.run(before.experiment())
    before.close()
    copy = tmp_path / "replica.db"
    shutil.copyfile(tmp_path / "mlflow.db", copy)
    replica = Hooked(uri=f"sqlite:///{copy}")
    args = ["--read-replica-backend-store-uri", replica.uri]
    with _serving(tmp_path, database, args=args, switched_on=False) as place:
        place.client.delete_run(run)
        read = place.client.get_run(run).info.lifecycle_stage
        noted, noted_there = place.noted(run), replica.noted()
        stage = place.hooked.scalar("SELECT lifecycle_stage FROM runs")
    replica.close()

    assert (read, stage) == ("active", "deleted")
    assert (noted, noted_there) == ([("deleted", "run", run)], [])


def test_the_names_that_this_relies_on() -> None:
    """The table is ours alone, and no name of MLflow's."""
    from mlflow.store.db.base_sql_model import Base

    assert INBOX not in Base.metadata.tables
