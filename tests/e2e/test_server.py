"""The whole way: MLflow's client, a real ``mlflow server``, our command as a process of its own, the bucket.

Two servers for all tests: on PostgreSQL with direct artifacts, and on SQLite with proxied ones and workspaces. Each
test works in an experiment of its own; a bare ``gc`` takes whatever is deleted, as on a site.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.command import NOW, outcomes, reasons
from tests.oracle import assert_bucket_sound
from tests.servers import PostgresServer, S3Server
from tests.site import Site, Snapshot

_WORKSPACE = "team-a"
_FILES = {"MLmodel": b"artifact_path: model\n", "weights.bin": b"w" * 30_000}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A running MLflow server and what lies behind it. ``workspace``: where its users work, if it has workspaces."""

    site: Site
    uri: str
    workspace: str | None = None

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def entered(self, workspace: str | None = None) -> AbstractContextManager[Any]:
        """Work in the workspace from here on."""
        from mlflow.utils.workspace_context import WorkspaceContext

        name = workspace or self.workspace
        return WorkspaceContext(name) if name else nullcontext()

    def command(self, *arguments: str, expect: int = 0) -> Any:
        """Run ``mlflow-artifact-gc`` as a process of its own with --format json; its document."""
        environ = {**os.environ, **self.site.s3.environ()}
        argv = [sys.executable, "-m", "mlflow_artifact_gc", *arguments, "--format", "json"]
        argv += ["--backend-store-uri", self.site.uri]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == expect, f"{done.returncode}: {done.stderr}\n{done.stdout}"
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout)

    def gc(self, *arguments: str) -> Any:
        return self.command("gc", "--yes", *NOW, *arguments)

    def keys_of(self, snapshot: Snapshot, entity: str) -> set[str]:
        """The current objects below the entity's id."""
        return {key for key in snapshot.keys if f"/{entity}/" in key}


def _opted_in(place: Place) -> Place:
    destination = ("--artifacts-destination", place.site.destination) if place.site.destination else ()
    place.command("init", "--registry-store-uri", place.site.uri, *destination)
    return place


@pytest.fixture(scope="module")
def direct(
    seaweed: S3Server, pg: PostgresServer, pg_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """PostgreSQL; the server hands out S3 URIs, and clients write to S3 themselves."""
    name = f"e2e_{uuid.uuid4().hex[:16]}"
    site = Site.direct(pg.create_database(name, template=pg_template), seaweed, servers.make_bucket(seaweed, "direct"))
    with servers.mlflow_server(
        tmp_path_factory.mktemp("direct"),
        backend_store_uri=site.uri,
        s3=seaweed,
        default_artifact_root=site.artifact_root,
    ) as server:
        yield _opted_in(Place(site=site, uri=server.uri))
    site.close()
    pg.drop_database(name)


@pytest.fixture(scope="module")
def proxied(seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """SQLite; the server writes to S3 for its clients, who have no keys, and has workspaces."""
    folder = tmp_path_factory.mktemp("proxied")
    site = Site.proxied(f"sqlite:///{folder / 'mlflow.db'}", seaweed, servers.make_bucket(seaweed, "proxied"))
    with servers.mlflow_server(
        folder, backend_store_uri=site.uri, s3=seaweed, artifacts_destination=site.destination, workspaces=True
    ) as server:
        place = Place(site=site, uri=server.uri, workspace=_WORKSPACE)
        place.client.create_workspace(_WORKSPACE)
        yield _opted_in(place)
    site.close()


@pytest.fixture(params=["direct", "proxied"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Each of the two; MLflow's client is set up as its users have it."""
    place: Place = request.getfixturevalue(request.param)
    _point_to(place, monkeypatch)
    with place.entered():
        yield place


def _point_to(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    if place.site.destination is None:
        for name, value in place.site.s3.environ().items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def experiment(place: Place) -> str:
    """A fresh experiment; its id."""
    return _experiment(place)


def _experiment(place: Place) -> str:
    made: str = place.client.create_experiment(f"experiment-{uuid.uuid4().hex[:8]}")
    return made


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder with a model, as a training leaves it."""
    return _written(tmp_path / "outputs", {f"model/{name}": content for name, content in _FILES.items()})


def _written(folder: Path, contents: Mapping[str, bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _logged_run(place: Place, experiment: str, outputs: Path) -> str:
    run = place.client.create_run(experiment)
    run_id: str = run.info.run_id
    place.client.log_param(run_id, "epochs", 3)
    place.client.log_artifacts(run_id, str(outputs))
    place.client.set_terminated(run_id)
    return run_id


def _registered(place: Place, run_id: str) -> str:
    """Registers the run's model with an alias; returns its URI."""
    name = f"churn-{uuid.uuid4().hex[:8]}"
    source = f"{place.client.get_run(run_id).info.artifact_uri}/model"
    place.client.create_registered_model(name)
    version = place.client.create_model_version(name, source, run_id=run_id, await_creation_for=0)
    place.client.set_registered_model_alias(name, "champion", version.version)
    return f"models:/{name}@champion"


def _logged_model(place: Place, experiment: str, outputs: Path) -> str:
    model = place.client.create_logged_model(experiment)
    model_id: str = model.model_id
    place.client.log_model_artifacts(model_id, str(outputs / "model"))
    place.client.finalize_logged_model(model_id, "READY")
    return model_id


def _trace(place: Place, experiment: str, folder: Path) -> str:
    """A trace with an object: MLflow's client starts it, MLflow's repository writes where its tag says."""
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.tracing.client import TracingClient

    made = TracingClient(place.uri).start_trace(
        TraceInfo(
            trace_id=f"tr-{uuid.uuid4().hex}",
            trace_location=TraceLocation.from_experiment_id(experiment),
            request_time=int(time.time() * 1000),
            state=TraceState.OK,
        )
    )
    repository = get_artifact_repository(made.tags["mlflow.artifactLocation"], tracking_uri=place.uri)
    repository.log_artifacts(str(_written(folder, {"traces.json": b'{"spans": []}'})))
    trace_id: str = made.trace_id
    return trace_id


def _downloaded(uri: str, folder: Path) -> dict[str, bytes]:
    """What MLflow's client downloads from an artifact URI."""
    from mlflow.artifacts import download_artifacts

    folder.mkdir(parents=True)
    root = Path(download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if name != "registered_model_meta"}


def test_only_what_is_deleted_and_unneeded_goes(place: Place, experiment: str, outputs: Path, tmp_path: Path) -> None:
    """The objects of a deleted run go; live, registered and restored runs keep all, and MLflow downloads them."""
    live, plain, champion, restored = (_logged_run(place, experiment, outputs) for _ in range(4))
    model = _registered(place, champion)
    for run in (plain, champion, restored):
        place.client.delete_run(run)
    place.client.restore_run(restored)
    before = place.site.snapshot()
    report = place.gc()

    assert outcomes(report)[plain] == "swept"
    assert (reasons(report)[plain], reasons(report)[champion]) == ("due", "protected")
    assert reasons(report).keys() & {live, restored} == set()
    assert len(place.keys_of(before, plain)) == len(_FILES)
    after = assert_bucket_sound(place.site, report, before)
    assert place.keys_of(after, plain) == set()
    for run in (live, champion, restored):
        assert place.keys_of(after, run) == place.keys_of(before, run) != set()
    for number, uri in enumerate((f"runs:/{live}/model", f"runs:/{restored}/model", model)):
        assert _downloaded(uri, tmp_path / str(number)) == _FILES, uri
    assert place.client.get_run(plain).info.lifecycle_stage == "deleted"


def test_a_workspaces_artifacts_lie_in_its_own_folder(
    proxied: Place, monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    """A proxied URI is taken to the place that the server wrote to, in each workspace; --workspace touches one."""
    _point_to(proxied, monkeypatch)
    runs = {}
    for workspace in ("default", _WORKSPACE):
        with proxied.entered(workspace):
            experiment = _experiment(proxied)
            runs[workspace] = [_logged_run(proxied, experiment, outputs) for _ in range(2)]
            proxied.client.delete_run(runs[workspace][0])
    before = proxied.site.snapshot()
    (gone, live), (other_gone, other_live) = runs[_WORKSPACE], runs["default"]
    folder = f"artifacts/workspaces/{_WORKSPACE}/"
    assert all(key.startswith(folder) for run in (gone, live) for key in proxied.keys_of(before, run))
    first = proxied.gc("--workspace", _WORKSPACE)
    between = proxied.site.snapshot()
    second = proxied.gc("--all-workspaces")
    after = assert_bucket_sound(proxied.site, [first, second], before)

    assert outcomes(first)[gone] == "swept"
    assert other_gone not in outcomes(first)
    assert len(proxied.keys_of(between, other_gone)) == len(_FILES)
    assert outcomes(second)[other_gone] == "swept"
    for run in (live, other_live):
        assert proxied.keys_of(after, run) == proxied.keys_of(before, run) != set()


def test_metadata_goes_only_on_request_and_only_of_what_is_gone(place: Place, experiment: str, outputs: Path) -> None:
    """With --metadata delete the server knows a swept run no more; live and registered ones answer as before."""
    from mlflow.exceptions import MlflowException

    live, plain, champion = (_logged_run(place, experiment, outputs) for _ in range(3))
    _registered(place, champion)
    for run in (plain, champion):
        place.client.delete_run(run)
    before = place.site.snapshot()
    swept = place.gc("--run-ids", f"{plain},{champion}")
    assert place.client.get_run(plain).data.params == {"epochs": "3"}
    erased = place.gc("--run-ids", f"{plain},{champion}", "--metadata", "delete")

    assert_bucket_sound(place.site, [swept, erased], before)
    assert erased["totals"]["metadata_deleted"] == 1
    with pytest.raises(MlflowException, match=plain):
        place.client.get_run(plain)
    stages = {run: place.client.get_run(run).info.lifecycle_stage for run in (live, champion)}
    assert stages == {live: "active", champion: "deleted"}


def test_a_deleted_experiment_goes_as_a_whole(place: Place, experiment: str, outputs: Path, tmp_path: Path) -> None:
    """Its runs, logged models and traces go with it; the experiment beside it, with the same things, keeps all."""
    from mlflow.exceptions import MlflowException

    made = {}
    for one in (experiment, _experiment(place)):
        run, model = _logged_run(place, one, outputs), _logged_model(place, one, outputs)
        made[one] = (run, model, _trace(place, one, tmp_path / one))
    (gone, beside), (gone_ids, live_ids) = made.keys(), made.values()
    place.client.delete_experiment(gone)
    before = place.site.snapshot()
    assert all(place.keys_of(before, entity) for entity in (*gone_ids, *live_ids))
    report = place.gc("--experiment-ids", gone, "--metadata", "delete")

    after = assert_bucket_sound(place.site, report, before)
    assert outcomes(report) == dict.fromkeys(gone_ids, "swept")
    assert report["experiments_deleted"] == [gone]
    assert [place.keys_of(after, entity) for entity in gone_ids] == [set()] * 3
    assert [place.keys_of(after, entity) for entity in live_ids] == [
        place.keys_of(before, entity) for entity in live_ids
    ]
    with pytest.raises(MlflowException, match=gone):
        place.client.get_experiment(gone)
    assert place.client.get_experiment(beside).lifecycle_stage == "active"
    assert _downloaded(f"models:/{live_ids[1]}", tmp_path / "model") == _FILES


# MLflow's own ways to delete artifacts


def _delete(place: Place, path: str) -> tuple[int, str]:
    """``DELETE`` on the artifact proxy, as MLflow's clients send it; the status and what the server says."""
    import requests

    headers = {"X-MLFLOW-WORKSPACE": place.workspace} if place.workspace else {}
    began_s = time.monotonic()
    answer = requests.delete(f"{place.uri}/api/2.0/mlflow-artifacts/artifacts/{path}", headers=headers, timeout=60)
    assert time.monotonic() - began_s < 20
    return answer.status_code, answer.text


def _backdated(place: Place, *runs: str) -> None:
    """Deletes runs as if that had been eight days ago: past the site's grace, and not the worker's business yet."""
    for run in runs:
        place.client.delete_run(run)
        place.site.execute(
            "UPDATE runs SET deleted_time = deleted_time - 8 * 86400000 WHERE run_uuid = :id",
            id=run,
        )


def _take_young_objects(place: Place) -> None:
    place.command("init", "--min-object-age", "0s", "--registry-store-uri", place.site.uri)


def test_the_artifact_route_deletes_what_is_deleted_and_refuses_the_rest(
    proxied: Place, monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    """Over HTTP: a deleted run's artifacts go; of live, needed and restorable ones nothing does, and it is said why."""
    place = proxied
    _point_to(place, monkeypatch)
    _take_young_objects(place)
    with place.entered():
        experiment = _experiment(place)
        live, champion, fresh, gone = (_logged_run(place, experiment, outputs) for _ in range(4))
        _registered(place, champion)
        _backdated(place, champion, gone)
        place.client.delete_run(fresh)
        before = place.site.snapshot()
        root = f"workspaces/{_WORKSPACE}/{experiment}"
        answers = {run: _delete(place, f"{root}/{run}/artifacts") for run in (live, champion, fresh, gone)}
        whole = _delete(place, root)
        part = _delete(place, f"{root}/{live}/artifacts/model/weights.bin")
        needed_part = _delete(place, f"{root}/{champion}/artifacts/model/weights.bin")
        after = place.site.snapshot()

    assert {run: status for run, (status, _) in answers.items()} == {live: 409, champion: 409, fresh: 409, gone: 200}
    assert "is live: delete it in MLflow first" in answers[live][1]
    assert "registered model churn-" in answers[champion][1]
    assert "still in its grace period until" in answers[fresh][1]
    assert place.keys_of(after, gone) == set()
    for run in (champion, fresh):
        assert place.keys_of(after, run) == place.keys_of(before, run) != set()
    assert (whole[0], part[0], needed_part[0]) == (409, 200, 409)
    assert [key.rpartition("/")[2] for key in place.keys_of(after, live)] == ["MLmodel"]


def test_mlflow_gc_goes_through_the_proxy_where_s3_is_out_of_reach(
    proxied: Place, monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    """The command has no keys for S3: the server deletes for it, and keeps for it what is needed; rows follow."""
    place = proxied
    _point_to(place, monkeypatch)
    _take_young_objects(place)
    with place.entered():
        experiment = _experiment(place)
        live, champion, gone = (_logged_run(place, experiment, outputs) for _ in range(3))
        _registered(place, champion)
        _backdated(place, champion, gone)
    before = place.site.snapshot()
    named = ["--workspace", _WORKSPACE, "--run-ids", f"{champion},{gone}"]
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", place.site.uri, *named],
        env={**os.environ, "MLFLOW_TRACKING_URI": place.uri, "MLFLOW_S3_ENDPOINT_URL": place.site.s3.endpoint},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    after = place.site.snapshot()

    assert done.returncode == 0, done.stderr
    assert "registered model churn-" in done.stderr
    assert place.keys_of(after, gone) == set()
    rows = {row.id for row in after.rows}
    assert gone not in rows
    assert {live, champion} <= rows
    for run in (live, champion):
        assert place.keys_of(after, run) == place.keys_of(before, run) != set()
