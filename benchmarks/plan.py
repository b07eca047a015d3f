"""What deciding costs on a large SQLite database, without S3: the plan, and the fence of one batch.

python -m benchmarks.plan [--live 300000] [--dead 100000] [--traces 300000]
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from mlflow_artifact_gc.fence import Fence
from mlflow_artifact_gc.model import Action, Plan
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.session import open_session, read
from tests.servers import S3Server
from tests.site import Site

EXPERIMENTS = 200
CHUNK = 10_000
RUN = (
    "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
    " end_time, source_version, lifecycle_stage, artifact_uri, experiment_id, deleted_time)"
    " VALUES (:id, :id, 'UNKNOWN', '', '', 'u', 'FINISHED', 1, 2, '', :stage, :uri, :experiment, :deleted)"
)
EXPERIMENT = (
    "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time)"
    " VALUES (:id, :name, :uri, 'active', 1, 1)"
)
TRACE = "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES (:id, :experiment, 1, 'OK')"
TAG = "INSERT INTO trace_tags (key, value, request_id) VALUES ('mlflow.artifactLocation', :uri, :id)"


def rows(count: int, prefix: str, folder: str, **values: object) -> Iterator[dict[str, object]]:
    """Entities, evenly over the experiments."""
    for number in range(count):
        id_, experiment = prefix + uuid.uuid4().hex, number % EXPERIMENTS + 1
        uri = f"s3://bucket/mlruns/{experiment}/{folder}{id_}/artifacts"
        yield {"id": id_, "experiment": experiment, "uri": uri, **values}


def fill(engine: sa.Engine, statements: tuple[str, ...], values: Iterator[dict[str, object]]) -> None:
    """Insert, a chunk at a time."""
    found = list(values)
    with engine.begin() as connection:
        for start in range(0, len(found), CHUNK):
            for statement in statements:
                connection.execute(sa.text(statement), found[start : start + CHUNK])


def build(folder: Path, *, live: int, dead: int, traces: int) -> str:
    """A database of MLflow's with so many rows; opted in."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    nowhere = S3Server(endpoint="http://127.0.0.1:9", access_key="none", secret_key="none")  # noqa: S106
    site = Site.direct(uri, nowhere, "bucket")
    site.experiment("made-by-mlflow")
    engine = site.engine
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM experiments"))
    experiments = ({"id": n, "name": f"e{n}", "uri": f"s3://bucket/mlruns/{n}"} for n in range(1, EXPERIMENTS + 1))
    fill(engine, (EXPERIMENT,), iter(list(experiments)))
    fill(engine, (RUN,), rows(live, "", "", stage="active", deleted=None))
    fill(engine, (RUN,), rows(dead, "", "", stage="deleted", deleted=1000))
    fill(engine, (TRACE, TAG), rows(traces, "tr-", "traces/"))
    site.close()
    stores = ["--backend-store-uri", uri, "--registry-store-uri", uri]
    command = [sys.executable, "-m", "mlflow_artifact_gc", "init", *stores]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return uri


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("live", 300_000), ("dead", 100_000), ("traces", 300_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        uri = build(Path(name), live=wanted.live, dead=wanted.dead, traces=wanted.traces)
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        session = open_session(
            backend_store_uri=uri, registry_store_uri=None, artifacts_destination=None, unsafe_ignore_registry=False
        )
        started = time.perf_counter()
        found = read(session, Scope(), cutoff_ms=10**13, include_undated=False, again=False)
        planned_s = time.perf_counter() - started
        plan = Plan(
            id="benchmark",
            created_ms=1,
            cutoff_ms=10**13,
            action=Action.PURGE,
            database_id=session.site.database_id,
            entity_rows=sum(found.rows.values()),
            decisions=found.decisions,
        )
        fence = Fence(
            tracked=session.tracked,
            registry=session.registry,
            plan=plan,
            destination=session.destination,
            owner="benchmark/x/1/1/1",
        )
        fences = []
        for start in range(0, 2500, 500):
            started = time.perf_counter()
            fence.admit(plan.due[start : start + 500])
            fences.append(time.perf_counter() - started)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{wanted.live:,} live and {wanted.dead:,} deleted runs, {wanted.traces:,} live traces, SQLite; "
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n"
            f"plan of {len(plan.due):,} due locations: {planned_s:.1f} s\n"
            f"fence of a batch of 500: {statistics.median(fences):.2f} s ({min(fences):.2f} to {max(fences):.2f})\n"
            f"peak memory: {peak_mb:.0f} MB, of which {before_mb:.0f} MB before the plan"
        )


if __name__ == "__main__":
    main()
