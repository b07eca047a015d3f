"""What the hook costs a user who deletes: MLflow's ``delete_run`` with and without us, in one process.

    python -m benchmarks.hook [--deletions 500] [--runs 10000]

Two copies of one database, SQLite and PostgreSQL: a store on one as MLflow's builder makes it, a store on the other as
our entry point does. They delete and restore the same run in turn, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.servers import postgresql

ROOT = "s3://bucket/mlruns"
WAYS = ("without us", "with us")


@dataclass(kw_only=True)
class Side:
    """A store, one run and one experiment of many runs in it, and how long its deletions took."""

    store: Any
    run: str
    experiment: str
    ms: list[float] = field(default_factory=list)
    experiment_s: list[float] = field(default_factory=list)

    def delete(self) -> None:
        """Time one deletion; undone afterwards, without being timed."""
        started = time.perf_counter()
        self.store.delete_run(self.run)
        self.ms.append(1000 * (time.perf_counter() - started))
        self.store.restore_run(self.run)

    def delete_experiment(self) -> None:
        """The same, of the experiment of many runs."""
        started = time.perf_counter()
        self.store.delete_experiment(self.experiment)
        self.experiment_s.append(time.perf_counter() - started)
        self.store.restore_experiment(self.experiment)

    def statements(self, action: Callable[[], object]) -> int:
        """How many statements the store sends for it."""
        sent: list[str] = []

        def see(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
            sent.append(statement)

        sa.event.listen(self.store.engine, "before_cursor_execute", see)
        action()
        sa.event.remove(self.store.engine, "before_cursor_execute", see)
        return len(sent)

    def notes(self) -> int:
        """How many rows the inbox has."""
        with self.store.engine.connect() as connection:
            return int(connection.execute(sa.text("SELECT COUNT(*) FROM artifact_gc_inbox")).scalar_one())


def build(uri: str, *, watched: bool, runs: int) -> Side:
    """A store on a fresh database, opted in, with an experiment of ``runs`` runs."""
    from mlflow.tracking._tracking_service import utils

    from mlflow_artifact_gc.hook import tracking_store

    store = (tracking_store if watched else utils._get_sqlalchemy_store)(uri, ROOT)  # noqa: SLF001 - what we compare to
    command = ["init", "--backend-store-uri", uri, "--registry-store-uri", uri]
    subprocess.run([sys.executable, "-m", "mlflow_artifact_gc", *command], check=True, stdout=subprocess.DEVNULL)
    run = store.create_run(store.create_experiment("one"), "user", 0, [], "run").info.run_id
    experiment = store.create_experiment("many")
    with store.engine.begin() as connection:
        rows = [{"id": uuid.uuid4().hex, "experiment": int(experiment)} for _ in range(runs)]
        connection.execute(
            sa.text(
                "INSERT INTO runs (run_uuid, name, source_type, status, experiment_id, lifecycle_stage, artifact_uri,"
                f" start_time) VALUES (:id, 'n', 'LOCAL', 'FINISHED', :experiment, 'active', '{ROOT}', 1)"
            ),
            rows,
        )
    return Side(store=store, run=run, experiment=experiment)


@contextmanager
def sides(kind: str, folder: Path, runs: int) -> Iterator[dict[str, Side]]:
    """Both stores on databases of this kind."""
    with postgresql(folder / "pg") as server:
        made = {}
        for way in WAYS:
            name = way.replace(" ", "_")
            uri = f"sqlite:///{folder / name}.db" if kind == "SQLite" else server.create_database(name)
            made[way] = build(uri, watched=way == "with us", runs=runs)
        yield made
        for side in made.values():
            side.store.engine.dispose()


def percentile(values: Sequence[float], share: float) -> float:
    """Of values that are not sorted."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deletions", type=int, default=500)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    os.environ["MLFLOW_ARTIFACT_GC_WORKER"] = "off"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.disable(logging.INFO)
    print(
        f"{wanted.deletions} deletions of a run each way, alternating in random order, in one process; deleting an "
        f"experiment of {wanted.runs:,} runs {wanted.repeats} times each way; {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}, MLflow {version('mlflow')}, "
        f"SQLAlchemy {version('sqlalchemy')}; PostgreSQL on the same machine, without fsync.\n"
    )
    print(
        "| database | | delete_run, ms: median (5th to 95th percentile) | p99 | statements | "
        "delete_experiment, s: median (lowest to highest) | rows that it adds |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind in ("SQLite", "PostgreSQL"):
        with tempfile.TemporaryDirectory() as name, sides(kind, Path(name), wanted.runs) as made:
            measure(kind, made, wanted.deletions, wanted.repeats)


def measure(kind: str, made: dict[str, Side], deletions: int, repeats: int) -> None:
    """Print the rows of one kind of database."""
    chance = random.Random(1)
    order = list(made.values())
    for side in order:  # the first ones compile statements
        for _ in range(20):
            side.delete()
        side.ms.clear()
    for _ in range(deletions):
        chance.shuffle(order)
        for side in order:
            side.delete()
    for _ in range(repeats):
        chance.shuffle(order)
        for side in order:
            side.delete_experiment()
    for way, side in made.items():
        sent = side.statements(lambda side=side: side.store.delete_run(side.run))  # type: ignore[misc]
        before = side.notes()
        side.store.delete_experiment(side.experiment)
        times = side.experiment_s
        spread = f"{percentile(side.ms, 0.05):.2f} to {percentile(side.ms, 0.95):.2f}"
        print(
            f"| {kind} | {way} | {statistics.median(side.ms):.2f} ({spread}) | {percentile(side.ms, 0.99):.2f} | "
            f"{sent} | {statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f}) | "
            f"{side.notes() - before} |",
            flush=True,
        )
    alone, ours = (made[way].ms for way in WAYS)
    many = statistics.median(made[WAYS[1]].experiment_s) - statistics.median(made[WAYS[0]].experiment_s)
    print(
        f"| {kind} | **we add** | **{statistics.median(ours) - statistics.median(alone):.2f}** | "
        f"{percentile(ours, 0.99) - percentile(alone, 0.99):.2f} | | {many:.2f} | |",
        flush=True,
    )


if __name__ == "__main__":
    main()
