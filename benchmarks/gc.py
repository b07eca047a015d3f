"""The same backlog through stock ``mlflow gc`` and through ours: whole processes, wall clock and CPU.

    python -m benchmarks.gc [--runs 200] [--objects 20] [--repeats 5] [--delays-ms 0 20]
    python -m benchmarks.gc --runs 10000 --stock-runs 1000 --objects 3 --repeats 3 --delays-ms 20

Both tools get the same rows and the same objects, one after the other, alternating; both delete the rows too. Stock
gets a database without our tables, so that our hook in its store stays away from it. Each time the bucket is listed
afterwards, and a tool that left something behind ends the benchmark. In the same run it measures what the server
itself can do: DeleteObjects on known keys, 16 requests at a time.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow_artifact_gc
from benchmarks.delay_proxy import delayed
from benchmarks.filling import deleted_runs
from benchmarks.whole import OURS, Timing, counted, environ_of, machine, spread, timed
from mlflow_artifact_gc.demo.servers import S3Server, seaweedfs
from tests.servers import make_bucket, s3_client
from tests.site import Site

ENTRY_POINTS = {"mlflow gc": ["-m", "mlflow"], "mlflow-artifact-gc": ["-m", "mlflow_artifact_gc"]}
PER_REQUEST = 250
THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """Databases with deleted runs, with our tables and without, and the objects' keys. ``folder`` holds copies."""

    folder: Path
    database: Path
    plain: Path
    server: S3Server
    bucket: str
    runs: int
    dead: Sequence[str]
    live: Sequence[str]

    def refill(self, *, plain: bool = False) -> str:
        """Put every object where it was and take a fresh copy of a database; its URI."""
        client = s3_client(self.server)
        with ThreadPoolExecutor(THREADS) as pool:
            keys = [*self.dead, *self.live]
            list(pool.map(lambda key: client.put_object(Bucket=self.bucket, Key=key, Body=b"0123456789"), keys))
        # Always the same path: to ours, a copy elsewhere is another database.
        copy = self.folder / "mlflow.db"
        shutil.copy(self.plain if plain else self.database, copy)
        return f"sqlite:///{copy}"

    def check(self, uri: str) -> None:
        """Whether exactly the dead objects and rows have gone."""
        pages = s3_client(self.server).get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        found = {row["Key"] for page in pages for row in page.get("Contents", ())}
        found = {key for key in found if not key.endswith("/_mlflow-artifact-gc.json")}
        if found != set(self.live):
            raise SystemExit(f"{len(found)} objects are left where {len(self.live)} were expected")
        site = Site.direct(uri, self.server, self.bucket)
        rows = [row for row in site.rows() if row.kind == "run"]
        site.close()
        if any(row.stage == "deleted" for row in rows) or not rows:
            raise SystemExit("rows of deleted runs are left, or none at all")

    def prepare(self, *, plain: bool = False) -> str:
        """As ``refill``, and the copy of the database has never swept here."""
        s3_client(self.server).delete_object(Bucket=self.bucket, Key="mlruns/_mlflow-artifact-gc.json")
        return self.refill(plain=plain)


def build(folder: Path, server: S3Server, *, runs: int, objects: int, live: int) -> Backlog:
    """An experiment with ``runs`` deleted runs, another with ``live`` others, each of ``objects`` objects; opted in."""
    folder.mkdir()
    bucket = make_bucket(server)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    site = Site.direct(uri, server, bucket)
    places = deleted_runs(site, runs)
    experiment = site.experiment()
    kept = [site.key_of(site.artifact_uri(site.run(experiment, n_objects=0))) for _ in range(live)]
    site.close()
    shutil.copy(folder / "mlflow.db", folder / "plain.db")
    stores = ["--backend-store-uri", uri, "--registry-store-uri", uri]
    init = [*OURS, "init", *stores, "--grace", "0s", "--min-object-age", "0s"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, env=environ_of())
    shutil.move(folder / "mlflow.db", folder / "origin.db")
    return Backlog(
        folder=folder,
        database=folder / "origin.db",
        plain=folder / "plain.db",
        server=server,
        bucket=bucket,
        runs=runs,
        dead=[f"{place}/data/{number}" for place in places for number in range(objects)],
        live=[f"{place}/data/{number}" for place in kept for number in range(objects)],
    )


def argv_of(tool: str, uri: str) -> list[str]:
    """The command line of a tool."""
    own = ["--yes", "--metadata", "delete", "--max-share", "1"] if tool == "mlflow-artifact-gc" else []
    return [sys.executable, *ENTRY_POINTS[tool], "gc", "--backend-store-uri", uri, *own]


def environ_for(server: S3Server, uri: str) -> dict[str, str]:
    """Only what both tools need."""
    return environ_of(**server.environ(), MLFLOW_TRACKING_URI=uri)


def raw_limit(backlog: Backlog) -> float:
    """Objects per second that the server deletes when the keys are known: no listing, no decision."""
    backlog.refill()
    client = s3_client(backlog.server)
    batches = [backlog.dead[start : start + PER_REQUEST] for start in range(0, len(backlog.dead), PER_REQUEST)]

    def delete(keys: Sequence[str]) -> None:
        listed: Any = [{"Key": key} for key in keys]
        client.delete_objects(Bucket=backlog.bucket, Delete={"Objects": listed, "Quiet": True})

    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(delete, batches))
    return len(backlog.dead) / (time.perf_counter() - started)


def compare(backlogs: Mapping[str, Backlog], server: S3Server, repeats: int) -> dict[str, list[Timing]]:
    """Both tools in turn, as often as asked."""
    found: dict[str, list[Timing]] = {tool: [] for tool in ENTRY_POINTS}
    for repeat in range(repeats):
        # The order changes, so that neither always comes second.
        for tool in sorted(ENTRY_POINTS, reverse=bool(repeat % 2)):
            uri = backlogs[tool].prepare(plain=tool == "mlflow gc")
            found[tool].append(timed(argv_of(tool, uri), environ_for(server, uri)))
            backlogs[tool].check(uri)
    return found


def requests_of_ours(backlog: Backlog, server: S3Server) -> int:
    """How many requests one more ``gc`` sends."""
    uri = backlog.prepare()
    _, _, _, *arguments = argv_of("mlflow-artifact-gc", uri)
    return counted(arguments, environ_for(server, uri)).requests or 0


def show(delay_ms: float, found: dict[str, list[Timing]], backlogs: Mapping[str, Backlog]) -> None:
    """A row a tool, and how many times faster ours is, for each run."""
    for tool, timings in found.items():
        wall, cpu = [one.wall_s for one in timings], [one.cpu_s for one in timings]
        runs = backlogs[tool].runs
        print(f"| {delay_ms:g} ms | `{tool}` | {runs:,} | {spread(wall)} | {spread(cpu)} |", flush=True)
    stock, ours = (statistics.median(one.wall_s for one in found[tool]) / backlogs[tool].runs for tool in ENTRY_POINTS)
    print(f"| {delay_ms:g} ms | **ours is faster by** | | **{stock / ours:.1f} times** a run | |", flush=True)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--stock-runs", type=int, help="fewer for mlflow gc, which takes its time for each")
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--live", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--delays-ms", type=float, nargs="*", default=[0, 20])
    wanted = parser.parse_args()
    # As pip does with what it installs, MLflow included; an editable checkout would be compiled at each start.
    compileall.compile_dir(mlflow_artifact_gc.__path__[0], quiet=1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(seaweedfs(folder / "s3"))
        ours = build(folder / "ours", server, runs=wanted.runs, objects=wanted.objects, live=wanted.live)
        stock = ours
        if wanted.stock_runs:
            many = wanted.stock_runs
            stock = build(folder / "stock", server, runs=many, objects=wanted.objects, live=wanted.live)
        backlogs = {"mlflow gc": stock, "mlflow-artifact-gc": ours}
        print(
            f"Deleted runs of {wanted.objects} objects beside {wanted.live} live ones, SQLite, SeaweedFS "
            f"on the same machine; {machine()}, MLflow {version('mlflow')}, boto3 {version('boto3')}; "
            f"{wanted.repeats} repeats, alternating.\n"
        )
        print("| round trip added | command | runs | wall seconds: median (lowest to highest) | CPU seconds |")
        print("|---|---|---|---|---|", flush=True)
        for delay_ms in wanted.delays_ms:
            slowed = stack.enter_context(delayed(server, delay_ms / 1000, folder=folder)) if delay_ms else server
            show(delay_ms, compare(backlogs, slowed, wanted.repeats), backlogs)
        limits = [raw_limit(ours) for _ in range(wanted.repeats)]
        rates = f"{statistics.median(limits):,.0f} ({min(limits):,.0f} to {max(limits):,.0f})"
        print(f"\nThe server's own limit, DeleteObjects on known keys, 16 at a time: {rates} objects a second.")
        requests = requests_of_ours(ours, server)
        print(f"Ours sent {requests:,} requests, {requests / ours.runs:.2f} a run.")


if __name__ == "__main__":
    main()
