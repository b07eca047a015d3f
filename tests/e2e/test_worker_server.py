"""The worker beside a real ``mlflow server``, and as a process of its own: started, stopped, killed, starved, replaced.

Two servers for most tests: on PostgreSQL with direct artifacts, two uvicorn workers, job execution and a slow way to
S3; and on SQLite with proxied artifacts. Processes are looked up in ``/proc``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import sqlalchemy as sa

from tests import servers
from tests.abilities import has
from tests.command import init, run
from tests.oracle import assert_bucket_sound
from tests.processes import argv, parent, resident_mb, runs, tree, workers
from tests.servers import MlflowServer, PostgresServer, S3Server
from tests.site import Site, Snapshot
from tests.working import watched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

_T = TypeVar("_T")
PASSWORD: Final = "tr0ub4dor-and-3"
NOW: Final = ("--grace", "0s", "--min-object-age", "0s")
POLL: Final = {"MLFLOW_ARTIFACT_GC_POLL": "1s"}
SLOW: Final = {"MLFLOW_ARTIFACT_GC_CONCURRENCY": "2"}
"""Sweeps last long enough to be met half-way also by who has to wait for a processor."""
SHORT_WAITS: Final = {"sqlite": "PRAGMA busy_timeout = 200", "postgresql": "SET LOCAL lock_timeout = '200ms'"}
FAR_S: Final = 0.02
IDLE_MB: Final = 80
SOME: Final = 3
JOB: Final = "test_delete_run"
JOBS: Final = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "true",
    "_MLFLOW_SUPPORTED_JOB_FUNCTION_LIST": "tests.jobs.delete_run",
    "_MLFLOW_ALLOWED_JOB_NAME_LIST": JOB,
    "PYTHONPATH": str(Path(__file__).parents[2]),
}
"""Job execution, with a job of the tests' own."""
SOON_S: Final = 15.0
"""The aim is 5, and benchmarks.worker measures it; here other tests run on the same cores."""
PATIENCE_S: Final = 30.0
"""For what takes a second on a machine that has nothing else to do."""


def eventually(look: Callable[[], _T], what: str, within_s: float = PATIENCE_S) -> _T:
    """Waits until ``look`` finds something; what it found."""
    until = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > until:
            pytest.fail(f"not within {within_s:g} s: {what}")
        time.sleep(0.03)
    return found


# What the worker has written


def select(site: Site, query: str) -> list[Any]:
    """Rows of the database."""
    with site.engine.connect() as connection:
        return [*connection.execute(sa.text(query))]


def holder(site: Site) -> int | None:
    """The process that has the lease; None where it is free."""
    ((owner, until_ms),) = select(site, "SELECT owner, until_ms FROM artifact_gc_lease")
    return _pid(owner) if owner and until_ms > time.time() * 1000 else None


def states(site: Site) -> dict[str, str]:
    """The state of each entity's intent."""
    return {row.entity_id: row.state for row in select(site, "SELECT entity_id, state FROM artifact_gc_intents")}


def count(site: Site, entity: str) -> int:
    """How many objects lie below the entity's id."""
    prefix = site.key_of(site.artifact_uri(entity)) + "/"
    pages = site.client.get_paginator("list_objects_v2").paginate(Bucket=site.bucket, Prefix=prefix)
    return sum(len(page.get("Contents", ())) for page in pages)


def gone(site: Site, entity: str) -> Callable[[], bool]:
    """Whether nothing lies below the entity's id; to be asked often."""
    prefix = site.key_of(site.artifact_uri(entity)) + "/"
    return lambda: not site.client.list_objects_v2(Bucket=site.bucket, Prefix=prefix, MaxKeys=1).get("KeyCount")


def first_key_gone(site: Site, entity: str) -> Callable[[], bool]:
    """Whether a sweep of the entity has begun to delete; the cheapest look."""
    folder, name = site.key_of(site.artifact_uri(entity)), "data/part-000000.bin"
    key = f"{folder}/{name}"
    return lambda: not site.client.list_objects_v2(Bucket=site.bucket, Prefix=key, MaxKeys=1).get("KeyCount")


def assert_sound(site: Site, before: Snapshot, **others: Any) -> None:
    """What has left the bucket belonged to what is deleted in MLflow now; a worker prints no report."""
    now = dataclasses.replace(before, rows=frozenset(site.rows()))
    assert_bucket_sound(site, [], now, unreported=True, **others)


# Places


@dataclass(frozen=True, kw_only=True)
class Place:
    """A running server and what lies behind it."""

    site: Site
    server: MlflowServer

    @property
    def client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.server.uri)

    @property
    def worker(self) -> int:
        """The one worker of this server."""
        (found,) = eventually(lambda: workers(self.server.pid), "the server has a worker")
        return found

    def tags(self, run_id: str) -> dict[str, str]:
        """Our tags on a run, as the server gives them."""
        tags = self.client.get_run(run_id).data.tags
        return {key: value for key, value in tags.items() if key.startswith("artifact_gc.")}

    def ready(self) -> Place:
        """When its worker has the lease, and has looked at everything once."""
        eventually(lambda: holder(self.site) == self.worker, "the server's worker has the lease", 60)
        marker = self.site.run(self.site.experiment(), n_objects=1)
        self.client.delete_run(marker)
        eventually(gone(self.site, marker), "the worker works")
        return self


def with_password(uri: str) -> str:
    """The same database, reached with a password, which a server that trusts everybody does not ask for."""
    return uri.replace("postgres:@", f"postgres:{PASSWORD}@")


@pytest.fixture(scope="module")
def far(seaweed: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The S3 server, and a delay before it: sweeps last long enough to be met half-way."""
    with servers.delayed(seaweed, FAR_S, folder=tmp_path_factory.mktemp("far")) as server:
        yield server


@contextmanager
def replica(site: Site, s3: S3Server, folder: Path, **environ: str) -> Iterator[MlflowServer]:
    """A server on the direct site."""
    with servers.mlflow_server(
        folder,
        backend_store_uri=site.uri,
        s3=s3,
        default_artifact_root=site.artifact_root,
        workers=int(environ.pop("workers", "1")),
        extra_env={**POLL, **SLOW, **environ},
    ) as server:
        yield server


@pytest.fixture(scope="module")
def direct(
    seaweed: S3Server, far: S3Server, pg: PostgresServer, pg_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """PostgreSQL and direct artifacts; everything that a server can start is started."""
    name = f"worker_{uuid.uuid4().hex[:12]}"
    uri = with_password(pg.create_database(name, template=pg_template))
    site = Site.direct(uri, seaweed, servers.make_bucket(seaweed, "direct"))
    init(site, *NOW)
    folder = tmp_path_factory.mktemp("direct")
    with replica(site, far, folder, workers="2", **JOBS) as server:
        yield Place(site=site, server=server).ready()
    site.close()
    pg.drop_database(name)


@pytest.fixture(scope="module")
def proxied(seaweed: S3Server, sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """SQLite; the server writes to S3 for its clients, who have no keys."""
    folder = tmp_path_factory.mktemp("proxied")
    shutil.copyfile(sqlite_template, folder / "mlflow.db")
    site = Site.proxied(f"sqlite:///{folder / 'mlflow.db'}", seaweed, servers.make_bucket(seaweed, "proxied"))
    init(site, *NOW)
    with servers.mlflow_server(
        folder, backend_store_uri=site.uri, s3=seaweed, artifacts_destination=site.destination, extra_env=POLL
    ) as server:
        yield Place(site=site, server=server).ready()
    site.close()


@pytest.fixture(params=["direct", "proxied"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Each of the two; MLflow's client is set up as its users have it."""
    place: Place = request.getfixturevalue(request.param)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.server.uri)
    if place.site.destination is None:
        for name, value in place.site.s3.environ().items():
            monkeypatch.setenv(name, value)
    return place


@contextmanager
def foreground(site: Site, s3: S3Server, log: Path, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """``worker`` as a process of its own; killed at the end if it still runs, also where it is stopped."""
    process = start(site, s3, log, *arguments, **environ)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def start(site: Site, s3: S3Server, log: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """``worker`` in the foreground of nobody."""
    command = [sys.executable, "-m", "mlflow_artifact_gc", "worker", *arguments]
    command += ["--backend-store-uri", site.uri, "--registry-store-uri", site.uri]
    settings = {**os.environ, **s3.environ(), "MLFLOW_ARTIFACT_GC_POLL": "0.2s", **environ}
    with log.open("ab") as out:
        return subprocess.Popen(command, env=settings, stdout=out, stderr=out, text=True)


@contextmanager
def half_way(site: Site, far: S3Server, client: Any) -> Iterator[tuple[list[str], Snapshot]]:
    """93 runs are deleted over REST and a part of them is gone; from then on S3 does not answer until the end of this.

    Another run is live. In experiments that are too small for one listing for all. Yields what is deleted, and what
    was there before.
    """
    experiments = [site.experiment() for _ in range(3)]  # of more than 100 locations a brake takes the share
    dead = [site.run(one, n_objects=SOME) for one in experiments for _ in range(31)]
    # They go in this order; whoever looks at many is late on a busy machine, and finds them all gone.
    first = min(dead, key=site.artifact_uri)
    site.run(site.experiment(), n_objects=SOME)
    before = site.snapshot()
    for one in experiments:
        client.delete_experiment(one)
    eventually(lambda: not count(site, first), "a part is gone")
    with no_answers(far):
        assert any(count(site, one) for one in dead), "it has swept everything already"
        yield dead, before


@contextmanager
def no_answers(far: S3Server) -> Iterator[None]:
    """S3 does not answer whoever reaches it by the delay."""
    (proxy,) = (one for one in tree(os.getpid()) if f"--listen={far.endpoint.partition('//')[2]}" in argv(one))
    os.kill(proxy, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(proxy, signal.SIGCONT)


# Deleting over REST


def test_what_is_deleted_over_rest_is_gone_at_once(place: Place, tmp_path: Path) -> None:
    """Without a grace period, soon, at a poll of one second: a run, then an experiment with all in it."""
    site, client = place.site, place.client
    experiment, other = (client.create_experiment(f"experiment-{uuid.uuid4().hex[:8]}") for _ in range(2))
    (tmp_path / "weights.bin").write_bytes(b"w" * 10_000)
    made = [client.create_run(one).info.run_id for one in (experiment, experiment, other)]
    for run_id in made:
        client.log_artifact(run_id, str(tmp_path / "weights.bin"), "model")
    dead, live, _ = made
    assert [count(site, one) for one in made] == [1, 1, 1]
    before = site.snapshot()

    began_s = time.monotonic()
    client.delete_run(dead)
    eventually(gone(site, dead), "the run is gone")
    took_s = [time.monotonic() - began_s]
    assert [count(site, one) for one in made] == [0, 1, 1]
    eventually(lambda: "purged" in place.tags(dead)["artifact_gc.status"], "the run says so")
    assert place.tags(dead)["artifact_gc.purged"].startswith("1 object, 10.0 kB, ")

    began_s = time.monotonic()
    client.delete_experiment(experiment)
    eventually(gone(site, live), "the experiment is gone")
    took_s.append(time.monotonic() - began_s)
    assert [count(site, one) for one in made] == [0, 0, 1]
    assert_sound(site, before)
    assert max(took_s) < SOON_S, took_s


def test_a_restore_within_the_grace_period_is_complete(place: Place) -> None:
    """A run that was deleted before another, and restored, has everything when the other has gone; and no tag."""
    site, client = place.site, place.client
    experiment = site.experiment()
    back, dead = site.run(experiment, n_objects=3), site.run(experiment, n_objects=3)
    init(site, "--grace", "3s")
    try:
        client.delete_run(back)
        client.delete_run(dead)
        said = eventually(lambda: place.tags(back), "the run says until when")
        assert set(said) == {"artifact_gc.status", "artifact_gc.expires"}
        client.restore_run(back)
        eventually(gone(site, dead), "the other has gone")
    finally:
        init(site, "--grace", "0s")
    assert (count(site, back), place.tags(back)) == (3, {})
    assert states(site)[back] == "cancelled"
    assert place.client.get_run(back).info.lifecycle_stage == "active"


def test_a_restore_while_it_is_swept_stops_the_sweep(direct: Place) -> None:
    """The rest stays, the restored run says how much is gone, and nothing more happens to it."""
    place, site = direct, direct.site
    objects = 4_000
    run_id = site.run(site.experiment(), n_objects=objects)
    begun = first_key_gone(site, run_id)
    place.client.delete_run(run_id)
    eventually(begun, "the sweep has begun")
    place.client.restore_run(run_id)
    eventually(lambda: states(site)[run_id] == "cancelled", "the sweep has ended")

    left = count(site, run_id)
    assert 0 < left < objects
    assert f"in part {time.strftime('%Y')}" in place.tags(run_id)["artifact_gc.status"]
    assert f"{objects - left:,} objects, " in place.tags(run_id)["artifact_gc.purged"]
    other = site.run(site.experiment(), n_objects=1)
    place.client.delete_run(other)
    eventually(gone(site, other), "the worker goes on")
    assert count(site, run_id) == left
    assert place.client.get_run(run_id).info.lifecycle_stage == "active"


def test_mlflow_gc_beside_a_worker(proxied: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves to the worker what is in its grace period; past it, by MLflow's date, it sweeps as the worker does."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxied.server.uri)
    site, client = proxied.site, proxied.client
    experiment, other = site.experiment(), site.experiment()
    live, dead, below = (
        site.run(experiment, n_objects=2),
        site.run(experiment, n_objects=2),
        site.run(other, n_objects=2),
    )
    waiting = {dead, below, site.logged_model(other, below, n_objects=2)}
    all_gone = [gone(site, one) for one in waiting]
    init(site, "--grace", "7d")
    try:
        client.delete_run(dead)
        client.delete_experiment(other)
        eventually(lambda: states(site).keys() >= waiting, "they wait")
        _stock_gc(site)
        assert not any(one() for one in all_gone)
        assert waiting <= {row.id for row in site.rows()}

        site.execute("UPDATE runs SET deleted_time = deleted_time - 8 * 86400000 WHERE lifecycle_stage = 'deleted'")
        site.execute(
            "UPDATE experiments SET last_update_time = last_update_time - 8 * 86400000 WHERE experiment_id = :id",
            id=int(other),
        )
        said = _stock_gc(site)
        assert {dead, below, other} <= set(re.findall(r"ID (\S+) has been permanently deleted", said))
        assert live not in said
        assert all(one() for one in all_gone)
        assert (count(site, live), client.get_run(live).info.lifecycle_stage) == (2, "active")
        assert not {row.id for row in site.rows()} & {other, *waiting}
        assert {states(site)[one] for one in waiting} == {"swept"}
        eventually(lambda: select(site, "SELECT count(*) FROM artifact_gc_inbox") == [(0,)], "every note is worked off")
    finally:
        init(site, "--grace", "0s")
    again = site.run(experiment, n_objects=1)
    client.delete_run(again)
    eventually(gone(site, again), "the worker goes on")


def _stock_gc(site: Site) -> str:
    """What MLflow's command prints, as a process of its own that can reach S3."""
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", site.uri]
    environ = {**os.environ, **site.s3.environ(), "MLFLOW_TRACKING_URI": site.uri}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


# Where a worker is, and where none is


def test_one_worker_per_server_and_only_its_parent_starts_it(direct: Place, proxied: Place) -> None:
    """A child of the server's parent, one in the whole tree: also with several of MLflow's workers and its jobs."""
    for place in (direct, proxied):
        (worker,) = workers(place.server.pid)
        assert parent(worker) == place.server.pid
        assert argv(worker) == [argv(worker)[0], "-m", "mlflow_artifact_gc", "worker", "--embedded"]
    started = [" ".join(argv(one)) for one in tree(direct.server.pid)]
    assert any("huey" in line for line in started) or not has("jobs"), "MLflow's jobs run"
    spawned = "spawn_main" if has("uvicorn") else "gunicorn"
    assert sum(spawned in line for line in started) >= 2, "the server has workers of its own"


def test_a_job_of_mlflow_s_deletes_and_starts_nothing(direct: Place) -> None:
    """Its process has the hook, as it opens MLflow's store: the run goes, and the one worker stays the only one."""
    import requests

    place, site = direct, direct.site
    run_id = site.run(site.experiment(), n_objects=2)
    worker = place.worker
    url = f"{place.server.uri}/ajax-api/3.0/jobs/"
    job = requests.post(url, json={"job_name": JOB, "params": {"run_id": run_id}}, timeout=30).json()
    seen: set[tuple[int, ...]] = set()

    def ended() -> Any:
        seen.add(tuple(workers(place.server.pid)))
        told = requests.get(f"{url}{job['job_id']}", timeout=30).json()
        return told if told["status"] not in ("PENDING", "RUNNING") else None

    told = eventually(ended, "the job has ended", 60)
    assert told["status"] == "SUCCEEDED", told
    assert told["result"] == {"store": "SqlAlchemyStore", "children": [], "threads": []}
    assert seen == {(worker,)}
    eventually(gone(site, run_id), "the run is gone")
    assert states(site)[run_id] == "swept"


_NOT_A_SERVER: Final = '''
import glob, json, os, sys, threading
import mlflow
from mlflow import MlflowClient
from mlflow.cli import cli

how, http, database = sys.argv[1:]


def command(*arguments):
    cli([*arguments], standalone_mode=False)


def cells():
    """What a notebook does."""
    mlflow.set_tracking_uri(database)
    mlflow.set_experiment("notebook")
    with mlflow.start_run() as run:
        mlflow.log_param("a", 1)
    mlflow.delete_run(run.info.run_id)


def client(uri):
    it = MlflowClient(uri, registry_uri=uri)
    experiment = it.create_experiment("experiment-" + os.urandom(4).hex())
    run = it.create_run(experiment).info.run_id
    it.delete_run(run)
    it.search_registered_models()
    return experiment, run


# One process each: MLflow keeps the store that the first of them builds.
if how == "client":
    client(http)
    client(database)
elif how == "notebook":
    thread = threading.Thread(target=cells)
    thread.start()
    thread.join()
    cells()
else:
    os.environ["MLFLOW_TRACKING_URI"] = database
    command(*json.loads(how))
children = [one for path in glob.glob("/proc/self/task/*/children") for one in open(path).read().split()]
ours = [one.name for one in threading.enumerate() if "gc" in one.name]
print("found", len(children), ours, flush=True)
'''


def test_clients_notebooks_and_commands_start_nothing(proxied: Place, sqlite_uri: str, site: Site) -> None:
    """Neither a process nor a thread: with a database URI, over HTTP, ``mlflow runs delete``, ``mlflow gc``."""
    init(site, *NOW)
    first, second = site.run(site.experiment()), site.run(site.experiment(), n_objects=1)
    site.delete_run(second)
    commands = [["runs", "delete", "--run-id", first], ["gc", "--backend-store-uri", sqlite_uri, "--run-ids", second]]
    environ = {**os.environ, "MLFLOW_ARTIFACT_GC_POLL": "1s"}
    for how in ("client", "notebook", *map(json.dumps, commands)):
        arguments = [sys.executable, "-c", _NOT_A_SERVER, how, proxied.server.uri, sqlite_uri]
        done = subprocess.run(arguments, env=environ, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "found 0 []", (how, done.stdout)
    noted = select(site, "SELECT DISTINCT event FROM artifact_gc_inbox ORDER BY event")
    assert noted == [("deleted",)], "the hook was there"
    assert second not in {row.id for row in site.rows()}, "and 'mlflow gc' was ours"
    assert select(site, "SELECT owner, seen_ms FROM artifact_gc_lease") == [(None, None)]


# Ends


def test_a_killed_worker_is_replaced(proxied: Place) -> None:
    """After a few seconds; and it need not wait for the lease of the dead one."""
    place, site = proxied, proxied.site
    old = place.worker
    os.kill(old, signal.SIGKILL)
    site.execute("UPDATE artifact_gc_lease SET until_ms = :ms", ms=int(time.time() * 1000) + 3_600_000)
    run_id = site.run(site.experiment(), n_objects=2)
    place.client.delete_run(run_id)
    eventually(gone(site, run_id), "another worker has done its work", 60)
    assert place.worker != old
    assert holder(site) == place.worker


def test_another_server_takes_over(direct: Place, far: S3Server, tmp_path: Path) -> None:
    """Two servers on one database have a worker each, and one works; when its server is killed, the other does.

    The worker of a server that was killed sees that its parent is gone, also in mid-sweep: it ends after what is under
    way, and the other does the rest.
    """
    site, first = direct.site, direct.worker
    with replica(site, far, tmp_path) as server:
        (second,) = eventually(lambda: workers(server.pid), "the second server has a worker")
        assert holder(site) == first
        # The first sleeps while its lease runs out: the second takes it.
        os.kill(first, signal.SIGSTOP)
        try:
            eventually(lambda: _released(site, first) and holder(site) == second, "the second has the lease", 60)
        finally:
            os.kill(first, signal.SIGCONT)
        run_id = site.run(site.experiment(), n_objects=2)
        direct.client.delete_run(run_id)
        eventually(gone(site, run_id), "the second works")
        assert holder(site) == second
        assert runs(first)

        with half_way(site, far, direct.client) as (dead, before):
            site.execute("UPDATE artifact_gc_lease SET until_ms = until_ms + 3600000")
            os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not runs(second), "the worker of the killed server has ended")
        eventually(lambda: holder(site) == first, "the first has the lease again", 10)
    eventually(lambda: {states(site)[one] for one in dead} == {"swept"}, "the first has done the rest")
    assert not any(count(site, one) for one in dead)
    assert_sound(site, before)


def _released(site: Site, pid: int) -> bool:
    """Whether the lease is not this process's any more: as if its time had passed."""
    if holder(site) == pid:
        site.execute("UPDATE artifact_gc_lease SET until_ms = 1")
    return holder(site) not in (None, pid)


def test_of_two_that_start_together_one_works(db_uri: str, far: S3Server, bucket: str, tmp_path: Path) -> None:
    """At no moment two have claims, each location is purged once; when the one ends, the other goes on at once.

    Neither takes more than 80 MB when it has nothing to do.
    """
    site = Site.direct(db_uri, far, bucket)
    init(site, *NOW)
    dead_experiment, experiment = site.experiment(), site.experiment()
    dead = [site.run(dead_experiment, n_objects=SOME) for _ in range(60)]
    last, live = site.run(experiment, n_objects=SOME), site.run(experiment, n_objects=SOME)
    before = site.snapshot()
    site.delete_experiment(dead_experiment)
    environ = {"MLFLOW_ARTIFACT_GC_MAX_SHARE": "1", "MLFLOW_ARTIFACT_GC_CONCURRENCY": "2"}
    claims = "SELECT DISTINCT claimed_by FROM artifact_gc_intents WHERE claimed_by IS NOT NULL"
    seen: list[tuple[int | None, set[int]]] = []

    def done() -> bool:
        seen.append((holder(site), {_pid(owner) for (owner,) in select(site, claims)}))
        return list(states(site).values()).count("swept") == len(dead)

    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    try:
        with foreground(site, far, logs[0], **environ) as first, foreground(site, far, logs[1], **environ) as second:
            pair = {first.pid: first, second.pid: second}
            eventually(done, "everything is swept", 60)
            assert seen[-1][0] in pair
            works = pair.pop(seen[-1][0] or 0)
            assert {who for who, _ in seen} <= {None, works.pid}
            assert [owners for _, owners in seen if owners - {works.pid}] == []
            assert any(owners for _, owners in seen), "it was looked at in mid-sweep"
            assert {one.poll() for one in (first, second)} == {None}
            eventually(lambda: resident_mb(works.pid) < IDLE_MB, "what it worked with is let go", 10)
            assert resident_mb(*pair) < IDLE_MB
            site.delete_run(last)
            works.send_signal(signal.SIGTERM)
            eventually(lambda: holder(site) in pair, "the other has the lease", 10)
            plans = "SELECT sum(due) FROM artifact_gc_plans WHERE finished_ms IS NOT NULL"
            eventually(lambda: select(site, plans) == [(len(dead) + 1,)], "and has done the rest")
            assert works.wait(PATIENCE_S) == 0
        assert set(states(site).values()) == {"swept"}
        assert {row.deleted_objects for row in _counted(site)} == {SOME}
        assert count(site, live) == SOME
        assert_sound(site, before)
        assert not any("Traceback" in log.read_text() for log in logs)
    finally:
        site.close()


def _pid(owner: str) -> int:
    return int(owner.split("/")[-3])


def test_a_starved_worker_does_no_harm(db_uri: str, far: S3Server, bucket: str, tmp_path: Path) -> None:
    """Stopped in mid-sweep until lease and claims have run out and another has done the work: awake, it gives way."""
    site = Site.direct(db_uri, far, bucket)
    init(site, *NOW)
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=4) for _ in range(40)]
    live = [site.run(experiment, n_objects=4) for _ in range(5)]
    back = dead[-1]
    for run_id in dead:
        site.delete_run(run_id)
    before = site.snapshot()
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    try:
        with (
            foreground(site, far, logs[0], MLFLOW_ARTIFACT_GC_CONCURRENCY="1") as first,
            foreground(site, far, logs[1]) as second,
        ):
            pair = {first.pid: first, second.pid: second}
            eventually(lambda: "sweeping" in states(site).values(), "a sweep has begun")
            starved, other = pair.pop(holder(site) or 0), pair.popitem()[1]
            _starve(site, starved.pid)
            eventually(lambda: set(states(site).values()) == {"swept"}, "the other has done it", 60)
            assert holder(site) == other.pid
            # What comes now is nobody's garbage: it must be there when the first has woken up and ended.
            site.restore_run(back)
            site.write(back, site.artifact_uri(back), {"model/new.bin": 10})
            starved.send_signal(signal.SIGCONT)
            starved.send_signal(signal.SIGTERM)
            assert starved.wait(PATIENCE_S) == 0
            assert holder(site) == other.pid
            assert other.poll() is None
        assert count(site, back) == 1
        assert [count(site, one) for one in live] == [4] * len(live)
        assert sum(count(site, one) for one in dead) == 1
        written = [f"{site.key_of(site.artifact_uri(back))}/model/new.bin"]
        assert_bucket_sound(site, [], before, unreported=True, written=written)
        assert set(states(site).values()) == {"swept"}
    finally:
        site.close()


def _starve(site: Site, pid: int) -> None:
    """Stops a worker, outside of its transactions, and lets lease and claims run out."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        os.kill(pid, signal.SIGSTOP)
        try:
            with site.engine.begin() as connection:
                connection.execute(sa.text(SHORT_WAITS[connection.dialect.name]))
                connection.execute(sa.text("UPDATE artifact_gc_lease SET until_ms = 1"))
                claims = "UPDATE artifact_gc_intents SET claimed_until_ms = 1 WHERE state = 'sweeping'"
                assert connection.execute(sa.text(claims)).rowcount, "it has swept everything already"
                return
        except sa.exc.OperationalError:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)
    pytest.fail("the worker always holds a lock")


def test_sigterm_ends_a_worker_after_its_batch(site: Site, far: S3Server, tmp_path: Path) -> None:
    """In the middle of 1,000 objects: exit 0, the lease is free, the journal tells exactly what is gone."""
    init(site, *NOW)
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=10) for _ in range(100)]
    before = site.snapshot()
    site.delete_experiment(experiment)
    unbraked = {"MLFLOW_ARTIFACT_GC_MAX_SHARE": "1", "MLFLOW_ARTIFACT_GC_CONCURRENCY": "1"}
    with foreground(site, far, tmp_path / "worker.log", **unbraked) as process:
        eventually(lambda: any(row.deleted_objects for row in _counted(site)), "something is recorded as gone", 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    said = (tmp_path / "worker.log").read_text()
    assert "worker ended" in said
    assert "Traceback" not in said

    remaining = site.snapshot().keys
    ends = states(site)
    assert set(ends.values()) == {"swept", "pending"}
    assert sorted(ends) == sorted(dead)
    for row in _counted(site):
        left = sum(one.owner == row.entity_id and key in remaining for key, one in site.objects.items())
        assert row.deleted_objects == 10 - left, row
        assert left == 0 or row.state == "pending", row
    assert select(site, "SELECT owner, until_ms FROM artifact_gc_lease") == [(None, 0)]
    assert select(site, "SELECT count(*) FROM artifact_gc_plans WHERE finished_ms IS NULL") == [(0,)]
    assert select(site, "SELECT count(*) FROM artifact_gc_intents WHERE claimed_by IS NOT NULL") == [(0,)]
    with foreground(site, far, tmp_path / "worker.log", "--once", **unbraked) as process:
        assert process.wait(PATIENCE_S) == 0
    assert set(states(site).values()) == {"swept"}
    assert_sound(site, before)


def _counted(site: Site) -> list[Any]:
    return select(site, "SELECT deleted_objects, entity_id, state FROM artifact_gc_intents")


def test_once_is_for_cron(site: Site, seaweed: S3Server, tmp_path: Path) -> None:
    """Exit 5 without our tables, 2 without a database, 0 with nothing to do; what is due it sweeps, then it ends."""
    arguments = ("worker", "--once", "--registry-store-uri", site.uri, "--backend-store-uri")
    assert run(*arguments, site.uri).code == 5
    assert run("worker", "--once").code == 2
    init(site, *NOW)
    assert run(*arguments, site.uri).code == 0
    run_id, live = (site.run(site.experiment(), n_objects=2) for _ in range(2))
    site.delete_run(run_id)
    with foreground(site, seaweed, tmp_path / "worker.log", "--once") as process:
        assert process.wait(PATIENCE_S) == 0
    assert [count(site, one) for one in (run_id, live)] == [0, 2]
    assert select(site, "SELECT owner FROM artifact_gc_lease") == [(None,)]


def test_one_that_sees_another_s3_is_turned_away(site: Site, seaweed: S3Server, far: S3Server, tmp_path: Path) -> None:
    """Exit 1, ``status`` says why, nothing is touched; and the site's own worker goes on."""
    init(site, *NOW)
    first, second = (site.run(site.experiment(), n_objects=2) for _ in range(2))
    for run_id, s3, code, left in ((first, seaweed, 0, 0), (second, far, 1, 2), (second, seaweed, 0, 0)):
        log = tmp_path / f"{code}.log"
        if run_id not in states(site):
            site.delete_run(run_id)
        with foreground(site, s3, log, "--once") as process:
            assert process.wait(PATIENCE_S) == code
        assert count(site, run_id) == left
        assert select(site, "SELECT owner FROM artifact_gc_lease") == [(None,)]
        if code:
            told = run("status", "--backend-store-uri", site.uri, "--registry-store-uri", site.uri).out
            assert "A worker was turned away at 20" in told
            for said in (log.read_text(), " ".join(told.split())):
                assert f"reaches S3 at {far.endpoint}" in said, said
                assert "Set MLFLOW_S3_ENDPOINT_URL as the site has it" in said, said
                assert far.secret_key not in said


def test_a_database_that_goes_away_and_comes_back(
    pg: PostgresServer, pg_uri: str, seaweed: S3Server, far: S3Server, tmp_path: Path
) -> None:
    """In mid-sweep, every connection is ended and no new one let in: the worker lives on, and does the rest after."""
    name = sa.make_url(pg_uri).database
    # Whoever looked by the same delay would be too late.
    site = Site.direct(with_password(pg_uri), seaweed, servers.make_bucket(seaweed))
    init(site, *NOW)
    experiment, log = site.experiment(), tmp_path / "worker.log"
    dead = [site.run(experiment, n_objects=SOME) for _ in range(30)]
    live = site.run(site.experiment(), n_objects=SOME)
    begun = gone(site, min(dead, key=site.artifact_uri))
    keys = {one: site.key_of(site.artifact_uri(one)) for one in dead}
    before = site.snapshot()
    site.delete_experiment(experiment)
    try:
        with foreground(site, far, log, MLFLOW_ARTIFACT_GC_CONCURRENCY="1") as process:
            eventually(begun, "the sweep has begun", 60)
            with no_answers(far):
                pg.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
                pg.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
                there = {item.key for item in site.items()}
                assert any(key.startswith(f"{keys[one]}/") for one in dead for key in there), "it has swept everything"
            eventually(lambda: "ERROR" in log.read_text(), "the worker has noticed")
            time.sleep(1)
            assert process.poll() is None
            pg.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')
            site.engine.dispose()
            # Nobody could give back what was being swept: until then that would be waited for.
            site.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1 WHERE claimed_until_ms IS NOT NULL")
            eventually(lambda: {states(site)[one] for one in dead} == {"swept"}, "it has done the rest", 60)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0
        assert (sum(count(site, one) for one in dead), count(site, live)) == (0, SOME)
        assert_sound(site, before)
        said = log.read_text()
        assert said.count("not currently accepting connections") == 1, said
        assert PASSWORD not in said
        assert "Traceback" not in said
    finally:
        pg.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')
        site.close()


def test_a_file_that_goes_away_and_another_comes(site: Site, seaweed: S3Server, tmp_path: Path) -> None:
    """A backup is put where SQLite's file was: the worker goes by the new one, and never by the one that is gone."""
    init(site, *NOW)
    log, file, away = tmp_path / "worker.log", Path(sa.make_url(site.uri).database or ""), tmp_path / "away.db"
    first, back, dead = (site.run(site.experiment(), n_objects=SOME) for _ in range(3))
    with foreground(site, seaweed, log) as process:
        watched(site).delete_run(first)
        eventually(gone(site, first), "the worker works")
        eventually(lambda: states(site) == {first: "swept"}, "and has said so")
        site.close()
        file.rename(away)
        shutil.copyfile(away, tmp_path / "backup.db")
        old = dataclasses.replace(site, uri=f"sqlite:///{away}")
        watched(old).delete_run(back)
        old.close()
        eventually(lambda: "There is no database at" in log.read_text(), "the worker has noticed")
        assert not file.exists(), "nobody made an empty one"
        (tmp_path / "backup.db").rename(file)
        site.delete_run(dead)
        eventually(gone(site, dead), "the worker works again")
        assert process.poll() is None
    assert count(site, back) == SOME
    assert "Traceback" not in log.read_text()


# Last: these end what the others use.


def test_nothing_secret_is_in_the_logs(direct: Place, proxied: Place) -> None:
    """Neither the keys to S3 nor the password of the database; the log says that a worker was started."""
    for place in (direct, proxied):
        log = place.server.log.read_text()
        assert "mlflow-artifact-gc: worker started (poll 1s" in log
        assert place.site.s3.secret_key not in log
        assert PASSWORD not in log
        assert "Traceback" not in log
        for line in log.splitlines():
            assert "artifact-gc" not in line or "://" not in line or " s3://" in line, line


def test_a_server_that_is_stopped_takes_its_worker_along(proxied: Place) -> None:
    """SIGTERM to the parent alone: the worker sees the end of its input, and gives the lease back."""
    worker = proxied.worker
    os.kill(proxied.server.pid, signal.SIGTERM)
    eventually(lambda: not runs(worker), "the worker has ended", 20)
    assert select(proxied.site, "SELECT owner FROM artifact_gc_lease") == [(None,)]
    log = proxied.server.log.read_text()
    assert log.rstrip().endswith("mlflow-artifact-gc: worker ended")
    assert "Traceback" not in log


def test_a_server_that_is_stopped_in_mid_sweep(direct: Place, far: S3Server, tmp_path: Path) -> None:
    """SIGTERM to the parent alone: the journal tells exactly what is gone, and the next worker does the rest."""
    site, worker = direct.site, direct.worker
    with half_way(site, far, direct.client) as (dead, before):
        os.kill(direct.server.pid, signal.SIGTERM)
        eventually(lambda: not runs(direct.server.pid), "the parent has ended")
        assert runs(worker), "its requests are under way"
    eventually(lambda: not runs(worker), "the worker has ended")
    assert select(site, "SELECT owner FROM artifact_gc_lease") == [(None,)]
    assert select(site, "SELECT count(*) FROM artifact_gc_intents WHERE claimed_by IS NOT NULL") == [(0,)]
    assert select(site, "SELECT count(*) FROM artifact_gc_plans WHERE finished_ms IS NULL") == [(0,)]
    swept = {row.entity_id: row for row in _counted(site) if row.entity_id in set(dead)}
    assert {row.state for row in swept.values()} == {"swept", "pending"}
    assert [SOME - row.deleted_objects for row in swept.values()] == [count(site, one) for one in swept]
    assert "Traceback" not in direct.server.log.read_text()

    with foreground(site, far, tmp_path / "worker.log", "--once") as process:
        assert process.wait(PATIENCE_S) == 0
    assert {states(site)[one] for one in dead} == {"swept"}
    assert_sound(site, before)
