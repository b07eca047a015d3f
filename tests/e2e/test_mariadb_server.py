"""MLflow's server on MariaDB, with its worker beside it and another one elsewhere: deleting over REST is enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests import servers
from tests.command import init, run
from tests.mariadb import PASSWORD
from tests.oracle import assert_bucket_sound
from tests.servers import S3Server
from tests.site import Site
from tests.working import NOW, intents, left, watched

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the servers of the tests are for Linux")

_PATIENCE_S: Final = 30.0
_FAR_S: Final = 0.02
_POLL: Final = {"MLFLOW_ARTIFACT_GC_POLL": "0.2s"}


def _eventually(look: Callable[[], Any], what: str, within_s: float = _PATIENCE_S) -> None:
    until = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < until, what
        time.sleep(0.05)


@contextmanager
def _worker(site: Site, s3: S3Server, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "mlflow_artifact_gc", "worker"]
    command += ["--backend-store-uri", site.uri, "--registry-store-uri", site.uri]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, **s3.environ(), **_POLL}, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _holder(site: Site) -> int:
    """The process that has the lease; 0: none."""
    with site.engine.connect() as connection:
        owner = connection.exec_driver_sql("SELECT owner FROM artifact_gc_lease").scalar()
    return int(owner.split("/")[2]) if owner else 0


def _states(site: Site) -> dict[str, str]:
    return {row.entity_id: row.state for row in intents(site, "entity_id", "state")}


@pytest.fixture
def site(maria_uri: str, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]) -> Site:
    """A site that is switched on; everything that is deleted is due."""
    made = watched(make_site(Site.direct(maria_uri, seaweed, bucket)))
    init(made, *NOW)
    return made


def test_what_is_deleted_over_rest_goes(
    site: Site, seaweed: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes with its objects, one that is restored in time and one that is registered stay; no secret is told."""
    from mlflow import MlflowClient

    experiment = site.experiment()
    dead, back, champion, live = (site.run(experiment, {"model/MLmodel": 10}) for _ in range(4))
    site.register("churn", f"{site.artifact_uri(champion)}/model", champion)
    run("init", "--backend-store-uri", site.uri, "--grace", "3s")
    with servers.mlflow_server(
        tmp_path, backend_store_uri=site.uri, s3=seaweed, default_artifact_root=site.artifact_root, workers=2,
        extra_env=_POLL,
    ) as server:  # fmt: skip
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        client = MlflowClient(server.uri)
        for run_id in (dead, back, champion):
            client.delete_run(run_id)
        client.restore_run(back)
        before = site.snapshot()
        _eventually(lambda: not left(site, dead), "the deleted run goes")
        _eventually(lambda: client.get_run(dead).data.tags.get("artifact_gc.purged"), "it says so")
        _eventually(lambda: "artifact_gc.protected_by" in client.get_run(champion).data.tags, "the other says why not")
        status = run("status", "--backend-store-uri", site.uri)
    said = server.log.read_text()

    assert [len(left(site, run_id)) for run_id in (dead, back, champion, live)] == [0, 1, 1, 1]
    assert_bucket_sound(site, [], before, unreported=True, intact=[back, champion, live])
    assert status.code == 0
    assert "Traceback" not in said
    assert "could not" not in said
    assert PASSWORD not in said


def test_two_workers_share_the_work(site: Site, seaweed: S3Server, tmp_path: Path) -> None:
    """One has the lease. Killed in mid-sweep, the other takes over and ends its work: nothing is lost."""
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=3) for _ in range(40)]
    live = [site.run(experiment, n_objects=3) for _ in range(4)]
    for run_id in dead:
        site.delete_run(run_id)
    before = site.snapshot()
    with (
        servers.delayed(seaweed, _FAR_S, folder=tmp_path) as far,
        _worker(site, far, tmp_path / "one.log") as one,
        _worker(site, far, tmp_path / "two.log") as two,
    ):
        _eventually(lambda: "sweeping" in _states(site).values(), "a sweep has begun")
        pair = {one.pid: one, two.pid: two}
        killed, other = pair.pop(_holder(site)), pair.popitem()[1]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        # Nobody waits a minute for its lease and its claims here.
        site.execute("UPDATE artifact_gc_lease SET until_ms = 1")
        site.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1 WHERE state = 'sweeping'")
        _eventually(lambda: _states(site) == dict.fromkeys(dead, "swept"), "the other has done the rest", 90)
        assert _holder(site) == other.pid
        other.send_signal(signal.SIGTERM)
        assert other.wait(_PATIENCE_S) == 0
    assert_bucket_sound(site, [], before, unreported=True, intact=live)
    assert sum(len(left(site, run_id)) for run_id in dead) == 0
    for log in ("one.log", "two.log"):
        assert "Deadlock" not in (tmp_path / log).read_text()
