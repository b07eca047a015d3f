"""What ``gc`` costs on large databases, without S3: a plan over a million tombstones, and one with nothing to do.

python -m benchmarks.backlog [--rows 1000000] [--databases SQLite PostgreSQL] [--only plan nothing]

The plan's database: so many deleted runs; as many logged models of theirs, which MLflow still shows; as many versions,
one in ten of which names its run (and keeps it), the others their model. The other one: so many live runs. Both are
filled by SQL. Whole processes: ``gc --dry-run`` and ``gc --yes``, imports and output included.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from benchmarks.whole import OURS, counted, environ_of, machine, spread
from tests.servers import S3Server, postgresql
from tests.site import Site

KINDS: Final = ("SQLite", "PostgreSQL")
EXPERIMENTS: Final = 200
NAMES: Final = 10_000
_ROWS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {rows}) "
_WHERE = "'s3://bucket/mlruns/' || (i % {experiments} + 1) || "
_RUNS = (
    "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time,"
    " end_time, source_version, lifecycle_stage, artifact_uri, experiment_id, deleted_time) {n}"
    "SELECT md5('r' || i), 'name', 'UNKNOWN', '', '', 'u', 'FINISHED', 1, 2, '', '{stage}',"
    " {place} '/' || md5('r' || i) || '/artifacts', i % {experiments} + 1, {deleted} FROM n"
)
_MODELS = (
    "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location, creation_timestamp_ms,"
    " last_updated_timestamp_ms, status, lifecycle_stage, source_run_id) {n}"
    "SELECT 'm-' || md5('m' || i), i % {experiments} + 1, 'model', "
    "{place} '/models/m-' || md5('m' || i) || '/artifacts', 1, 1, 2, 'active', md5('r' || i) FROM n"
)
_NAMES = "INSERT INTO registered_models (name, creation_time, last_updated_time) {n}SELECT 'model-' || i, 1, 1 FROM n"
_VERSIONS = (
    "INSERT INTO model_versions (name, version, creation_time, last_updated_time, current_stage, source,"
    " storage_location) {n}SELECT 'model-' || (i % {names}), i / {names} + 1, 1, 1, 'None',"
    " CASE WHEN i % 10 = 0 THEN 'runs:/' || md5('r' || i) || '/model' ELSE 'models:/m-' || md5('m' || i) END,"
    " {place} CASE WHEN i % 10 = 0 THEN '/' || md5('r' || i) || '/artifacts/model'"
    " ELSE '/models/m-' || md5('m' || i) || '/artifacts' END FROM n"
)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def fill(engine: sa.Engine, rows: int, *, dead: bool) -> None:
    """``rows`` runs, deleted ones with models and versions, or live ones alone."""

    def statement(text: str, count: int = rows) -> sa.TextClause:
        n = _ROWS.format(rows=count)
        place = _WHERE.format(experiments=EXPERIMENTS)
        stage, deleted = ("deleted", "1000") if dead else ("active", "NULL")
        values = {"n": n, "place": place, "stage": stage, "deleted": deleted}
        return sa.text(text.format(**values, experiments=EXPERIMENTS, names=NAMES))

    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            raw: Any = connection.connection.driver_connection
            raw.create_function("md5", 1, _md5, deterministic=True)
        connection.execute(sa.text("DELETE FROM experiments"))
        places = "'s3://bucket/mlruns/' || (i + 1)"
        connection.execute(
            statement(
                "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time,"
                f" last_update_time) {{n}}SELECT i + 1, 'e' || i, {places}, 'active', 1, 1 FROM n",
                EXPERIMENTS,
            )
        )
        connection.execute(statement(_RUNS))
        if dead:
            connection.execute(statement(_MODELS))
            connection.execute(statement(_NAMES, NAMES))
            connection.execute(statement(_VERSIONS))
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("VACUUM ANALYZE"))


def build(uri: str, rows: int, *, dead: bool) -> None:
    """A database of MLflow's that is opted in, with so many rows."""
    nowhere = S3Server(endpoint="http://127.0.0.1:9", access_key="none", secret_key="none")  # noqa: S106
    site = Site.direct(uri, nowhere, "bucket")
    site.experiment("made-by-mlflow")
    fill(site.engine, rows, dead=dead)
    site.close()
    init = [*OURS, "init", "--backend-store-uri", uri, "--registry-store-uri", uri]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, env=environ_of())


@contextmanager
def database(kind: str, name: str) -> Iterator[str]:
    """The URI of a database that is not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "SQLite":
            yield f"sqlite:///{folder}/{name}.db"
        else:
            with postgresql(Path(folder) / "pg") as server:
                yield server.create_database(name)


def scans(kind: str, uri: str) -> int | None:
    """How often PostgreSQL has read the whole table of runs; SQLite does not count."""
    if kind == "SQLite":
        return None
    engine = sa.create_engine(uri)
    time.sleep(1)  # its own statistics come a little late
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'runs'"))
        scanned = int(found.scalar_one())
    engine.dispose()
    return scanned


def measure(kind: str, what: str, rows: int, repeats: int) -> None:
    """Build, run, print a row of the table."""
    with database(kind, what) as uri:
        build(uri, rows, dead=what == "plan")
        how = ["--dry-run"] if what == "plan" else ["--yes"]
        before = scans(kind, uri)
        found = [counted(["gc", "--backend-store-uri", uri, *how], environ_of()) for _ in range(repeats)]
        after = scans(kind, uri)
        if "--debug" in sys.argv:
            print(found[-1].output[-1500:])
        scanned = "" if before is None or after is None else f"{(after - before) / repeats:g}"
        wall, cpu, peak = ([getattr(one, name) for one in found] for name in ("wall_s", "cpu_s", "peak_mb"))
        statements = found[-1].statements
        print(f"| {what} | {kind} | {spread(wall)} | {spread(cpu)} | {spread(peak, 0)} | {statements} | {scanned} |")
        sys.stdout.flush()


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--databases", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--only", nargs="+", choices=("plan", "nothing"), default=("plan", "nothing"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--debug", action="store_true", help="show what the last command printed")
    wanted = parser.parse_args()
    print(f"{wanted.rows:,} rows, {EXPERIMENTS} experiments, {wanted.repeats} repeats; {machine()}.\n")
    print("| work | database | wall s: median (lowest to highest) | CPU s | peak MB | statements | scans of all runs |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for what in wanted.only:
        for kind in wanted.databases:
            measure(kind, what, wanted.rows, wanted.repeats)


if __name__ == "__main__":
    main()
