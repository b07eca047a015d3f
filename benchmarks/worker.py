"""What the worker costs: the server's start and end, memory, polls, the way from delete to gone, and users' deletes.

    python -m benchmarks.worker [--only start memory polls gone deletes] [--repeats 5] [--runs 3000] [--deletes 300]

Real servers on this machine. For the server without us an environment is made of links to every package of this one but
ours, so that no entry point, no finder and no import of ours is left.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.demo.servers import HOST, Program, S3Server, free_ports, running, seaweedfs
from mlflow_artifact_gc.worker import Assignment, Worker
from tests.servers import make_bucket, postgresql, s3_client
from tests.site import Site

THREADS: Final = 16
SOON: Final = {"MLFLOW_ARTIFACT_GC_POLL": "1s"}
QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONDONTWRITEBYTECODE": "",  # As installed: nothing is compiled at each start.
}
OURS: Final = re.compile(r"(__editable__.*)?mlflow.artifact.gc", re.IGNORECASE)


# What is measured on


def opted_in(uri: str, *, destination: str | None = None) -> None:
    """Everything is due at once."""
    command = ["init", "--backend-store-uri", uri, "--registry-store-uri", uri]
    command += ["--grace", "0s", "--min-object-age", "0s"]
    command += ["--artifacts-destination", destination] if destination else []
    subprocess.run([sys.executable, "-m", "mlflow_artifact_gc", *command], check=True, stdout=subprocess.DEVNULL)


def wait_for(look: Callable[[], object], what: str, within_s: float = 300) -> None:
    """Until ``look`` finds something."""
    until = time.monotonic() + within_s
    while not look():
        if time.monotonic() > until:
            raise SystemExit(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)


def scalar(site: Site, query: str) -> Any:
    """One value of the database."""
    with site.engine.connect() as connection:
        return connection.execute(sa.text(query)).scalar()


def more_runs(site: Site, number: int, *, objects: int, deleted: bool) -> list[str]:
    """So many runs in an experiment of their own, by SQL: MLflow would take minutes."""
    origin = site.run(site.experiment())
    ids = [uuid.uuid4().hex for _ in range(number)]
    with site.engine.begin() as connection:
        row = dict(
            connection.execute(sa.text("SELECT * FROM runs WHERE run_uuid = :id"), {"id": origin}).mappings().one()
        )
        stage = {"lifecycle_stage": "deleted", "deleted_time": int(time.time() * 1000)} if deleted else {}
        made = [
            {**row, **stage, "run_uuid": one, "artifact_uri": row["artifact_uri"].replace(origin, one)} for one in ids
        ]
        columns = ", ".join(row)
        connection.execute(
            sa.text(f"INSERT INTO runs ({columns}) VALUES ({', '.join(f':{name}' for name in row)})"), made
        )
    folder = site.key_of(row["artifact_uri"])
    keys = [f"{folder.replace(origin, one)}/{part:04}.bin" for one in ids for part in range(objects)]
    client = s3_client(site.s3)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=site.bucket, Key=key, Body=b"0123456789"), keys))
    return ids


@contextmanager
def working(site: Site, **environ: str) -> Iterator[int]:
    """``mlflow-artifact-gc worker`` on the site; its process id."""
    command = [sys.executable, "-m", "mlflow_artifact_gc", "worker"]
    command += ["--backend-store-uri", site.uri, "--registry-store-uri", site.uri]
    settings = {**os.environ, **QUIET, **site.s3.environ(), **SOON, **environ}
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, env=settings, stdout=log, stderr=log) as process:
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def resident_mb(pid: int) -> float:
    """What a process holds in memory now."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def held(site: Site) -> bool:
    """Whether a worker has the lease."""
    return scalar(site, "SELECT owner FROM artifact_gc_lease") is not None


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


# The server's start and end


def environment_without_us(folder: Path) -> str:
    """A virtual environment of links to this one's packages, without ours; its interpreter."""
    venv.create(folder, symlinks=True, with_pip=False)
    (target,) = folder.glob("lib/python*/site-packages")
    for item in Path(sysconfig.get_path("purelib")).iterdir():
        if not OURS.match(item.name):
            (target / item.name).symlink_to(item)
    python = str(folder / "bin" / "python")
    looked = subprocess.run([python, "-c", "import mlflow_artifact_gc"], check=False, capture_output=True, cwd=folder)
    if not looked.returncode:
        raise SystemExit("the environment without us has us")
    return python


@dataclass(frozen=True, kw_only=True)
class Started:
    """Seconds until a server answers, and until its parent, and all of its processes, have ended."""

    up_s: float
    parent_s: float
    all_s: float


def server(python: str, site: Site, folder: Path, **environ: str) -> Program:
    """``mlflow server`` on the site, with one uvicorn worker."""
    (port,) = free_ports(1)
    return Program(
        name="MLflow",
        argv=(
            python,
            *("-m", "mlflow", "server", f"--host={HOST}", f"--port={port}", "--workers=1", "--no-serve-artifacts"),
            *(f"--backend-store-uri={site.uri}", f"--default-artifact-root={site.artifact_root}"),
        ),
        log=folder / "server.log",
        port=port,
        path="/health",
        env={**QUIET, **SOON, **site.s3.environ(), **environ},
    )


def ended(pid: int) -> bool:
    """Whether a child of ours runs no more."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def group_ended(group: int) -> bool:
    """Whether no process of a group runs any more; its leader may wait for us as a zombie."""
    for one in Path("/proc").iterdir():
        if one.name.isdigit():
            try:
                state, _, of = (one / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(of) == group and state != "Z":
                return False
    return True


def started(python: str, site: Site, folder: Path, **environ: str) -> Started:
    """Start a server, wait for its worker if it is to have one, and stop it."""
    began_s = time.perf_counter()
    with running(server(python, site, folder, **environ)) as pid:
        up_s = time.perf_counter() - began_s
        if environ.get("MLFLOW_ARTIFACT_GC_WORKER") == "embedded":
            wait_for(lambda: held(site), "the worker has the lease")
        began_s = time.perf_counter()
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: ended(pid), "the server has ended")
        parent_s = time.perf_counter() - began_s
        wait_for(lambda: group_ended(pid), "its processes have ended")
        return Started(up_s=up_s, parent_s=parent_s, all_s=time.perf_counter() - began_s)


def start_and_end(site: Site, folder: Path, repeats: int) -> None:
    """With a worker, without one, and without us at all; alternating."""
    opted_in(site.uri)
    without = environment_without_us(folder / "without")
    modes: list[tuple[str, str, dict[str, str]]] = [
        ("not installed", without, {}),
        ("`WORKER=off`", sys.executable, {"MLFLOW_ARTIFACT_GC_WORKER": "off"}),
        ("embedded worker", sys.executable, {"MLFLOW_ARTIFACT_GC_WORKER": "embedded"}),
    ]
    found: dict[str, list[Started]] = {name: [] for name, _, _ in modes}
    for repeat in range(repeats + 1):
        for name, python, environ in modes if repeat % 2 else reversed(modes):
            measured = started(python, site, folder, **environ)
            if repeat:  # the first of each is for the caches
                found[name].append(measured)
    print(f"### `mlflow server` (one uvicorn worker, no jobs, SQLite): start and end, {repeats} repeats, alternating\n")
    print(
        "| mlflow-artifact-gc | seconds until /health answers | from SIGTERM to the parent's end | to the last one's |"
    )
    print("|---|---|---|---|")
    for name, values in found.items():
        columns = (
            [one.up_s for one in values],
            [one.parent_s for one in values],
            [one.all_s for one in values],
        )
        print(f"| {name} | {' | '.join(spread(column) for column in columns)} |", flush=True)


# Memory, polls, delete to gone


def memory(sites: dict[str, Site], runs: int) -> None:
    """Before the first sweep and after it."""
    print(f"\n### Resident memory of an idle worker, before and after a sweep of {runs:,} runs of 5 objects\n")
    print("| database | before, MB | after, MB |")
    print("|---|---|---|")
    for name, site in sites.items():
        opted_in(site.uri)
        with working(site, MLFLOW_ARTIFACT_GC_MAX_SHARE="1") as pid:
            wait_for(lambda site=site: held(site), "the worker has the lease")  # type: ignore[misc]
            first = more_runs(site, 1, objects=1, deleted=True)[0]
            note(site, [first])
            wait_for(lambda site=site: swept(site) == 1, "the worker works")  # type: ignore[misc]
            before = resident_mb(pid)
            note(site, more_runs(site, runs, objects=5, deleted=True))
            wait_for(lambda site=site: swept(site) == runs + 1, "everything is swept")  # type: ignore[misc]
            time.sleep(3)  # some polls
            print(f"| {name} | {before:.0f} | {resident_mb(pid):.0f} |", flush=True)


def note(site: Site, runs: Sequence[str]) -> None:
    """What the hook would have written."""
    rows = [{"id": one, "ms": int(time.time() * 1000)} for one in runs]
    insert = (
        "INSERT INTO artifact_gc_inbox (event, entity_kind, entity_id, recorded_ms) VALUES ('deleted', 'run', :id, :ms)"
    )
    with site.engine.begin() as connection:
        connection.execute(sa.text(insert), rows)


def swept(site: Site) -> int:
    """How many locations are swept."""
    return int(scalar(site, "SELECT count(*) FROM artifact_gc_intents WHERE state = 'swept'"))


def polls(sites: dict[str, Site], turns: int = 50) -> None:
    """What an idle worker asks of the database."""
    print(f"\n### Statements of an idle worker, {turns} polls\n")
    print("| database | statements per poll | of them writing | milliseconds per poll |")
    print("|---|---|---|---|")
    for name, site in sites.items():
        opted_in(site.uri)
        assignment = Assignment(backend_store_uri=site.uri, registry_store_uri=site.uri)
        one = Worker(assignment, Settings.from_env(site.s3.environ()), threading.Event())
        one.turn()
        sent: list[str] = []
        sa.event.listen(one._opened(), "before_cursor_execute", lambda *args, sent=sent: sent.append(args[2]))  # noqa: SLF001
        began_s = time.perf_counter()
        for _ in range(turns):
            one.turn()
        took_ms = (time.perf_counter() - began_s) * 1000 / turns
        asked = [text for text in sent if not text.startswith("BEGIN")]
        writing = [text for text in asked if not text.startswith("SELECT")]
        print(f"| {name} | {len(asked) / turns:g} | {len(writing) / turns:g} | {took_ms:.1f} |", flush=True)
        one.close()


def delete_to_gone(site: Site, folder: Path, runs: int = 10) -> None:
    """A run of three objects deleted over REST, on a server with an embedded worker."""
    from mlflow import MlflowClient

    opted_in(site.uri)
    rng, took = random.Random(1), []
    program = server(sys.executable, site, folder)
    with running(program):
        client = MlflowClient(f"http://{HOST}:{program.port}")
        wait_for(lambda: held(site), "the worker has the lease")
        for number in range(runs + 1):
            run_id = site.run(site.experiment(), n_objects=3)
            prefix = site.key_of(site.artifact_uri(run_id)) + "/"
            time.sleep(rng.random())
            began_s = time.perf_counter()
            client.delete_run(run_id)
            wait_for(
                lambda prefix=prefix: (
                    not s3_client(site.s3)  # type: ignore[misc]
                    .list_objects_v2(Bucket=site.bucket, Prefix=prefix)
                    .get("KeyCount")
                ),
                "the run is gone",
            )
            if number:
                took.append(time.perf_counter() - began_s)
    print(f"\n### From `DELETE` over REST to gone in S3, grace 0, poll 1 s, {runs} runs of 3 objects\n")
    print(f"Seconds: {spread(took)}", flush=True)


# Users' deletes beside a sweep


def delete(uri: str, how: str, runs: Sequence[str], interval_s: float) -> None:
    """In a process of its own: delete each run, and print how long each took."""
    from mlflow.tracking._tracking_service import utils

    build: Any = utils._get_store if how == "hooked" else utils._get_sqlalchemy_store  # noqa: SLF001
    store = build(uri, "s3://unused")
    store.get_run(runs[0])
    print("ready", flush=True)
    sys.stdin.readline()
    took: list[float] = []
    next_s = time.perf_counter()
    for one in runs:
        time.sleep(max(0.0, next_s - time.perf_counter()))
        began_s = time.perf_counter()
        store.delete_run(one)
        took.append((time.perf_counter() - began_s) * 1000)
        next_s = max(next_s + interval_s, time.perf_counter())
    print(json.dumps(took), flush=True)


class Deleter:
    """A client that deletes runs, in a process of its own."""

    def __init__(self, site: Site, how: str, runs: Sequence[str], interval_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", "--as-deleter", site.uri, how, str(interval_s)],
            env={**os.environ, **QUIET},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._say(json.dumps(list(runs)))
        self._read("ready")

    def _say(self, line: str) -> None:
        if self._process.stdin is None:
            raise AssertionError
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self, expected: str = "") -> str:
        if self._process.stdout is None:
            raise AssertionError
        for line in self._process.stdout:
            if line.startswith(expected or "["):
                return line
        raise SystemExit("a deleter has failed")

    def go(self) -> None:
        """Begin."""
        self._say("go")

    def took_ms(self) -> list[float]:
        """Wait for the end."""
        found: list[float] = json.loads(self._read())
        self._process.wait()
        return found


def show_deletes(what: str, took: Sequence[float]) -> None:
    """A row."""
    shown = [percentile(took, 0.5), percentile(took, 0.99), max(took)]
    print(f"| {what} | {' | '.join(f'{one:.1f}' for one in shown)} |", flush=True)


def users_deletes(kind: str, make: Callable[[], Site], wanted: argparse.Namespace) -> None:
    """Stock MLflow while nothing sweeps, and the hook while a worker sweeps."""
    runs, live, number, interval_s = wanted.runs, wanted.live, wanted.deletes, wanted.interval_ms / 1000
    quiet, other, site = make(), make(), make()
    print(
        f"\n### `delete_run` of another process on {kind}, {number} deletes at {interval_s * 1000:g} ms, "
        f"beside a sweep of {runs:,} runs of 5 objects, {live:,} live runs\n"
    )
    print("| | p50 ms | p99 ms | most ms |")
    print("|---|---|---|---|")
    for how in ("stock", "hooked"):
        if how == "hooked":
            opted_in(quiet.uri)
        deleter = Deleter(quiet, how, more_runs(quiet, number, objects=0, deleted=False), interval_s)
        deleter.go()
        show_deletes(f"{how}, nothing sweeps", deleter.took_ms())
    opted_in(site.uri)
    if live:
        more_runs(site, live, objects=0, deleted=False)
    chosen = more_runs(site, number, objects=0, deleted=False)
    backlog = more_runs(site, runs, objects=5, deleted=True)
    deleters = [
        Deleter(site, "hooked", chosen, interval_s),
        Deleter(other, "stock", more_runs(other, number, objects=0, deleted=False), interval_s),
    ]
    with working(site, MLFLOW_ARTIFACT_GC_MAX_SHARE="1"):
        note(site, backlog)
        wait_for(lambda: scalar(site, "SELECT count(*) FROM artifact_gc_intents"), "the worker has begun")
        began_s = time.perf_counter()
        for one in deleters:
            one.go()
        wait_for(lambda: swept(site) >= runs, "everything is swept")
        took_s = time.perf_counter() - began_s
        beside, control = (one.took_ms() for one in deleters)
    during = min(number, int(took_s / interval_s))
    show_deletes("hooked, beside the sweep, same database", beside)
    show_deletes(f"the first {during} of them, while it ran", beside[:during])
    show_deletes("stock, beside the sweep, another database (what the machine's load alone does)", control)
    print(f"\nThe sweep took {took_s:.0f} s.", flush=True)


# All


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("start", "memory", "polls", "gone", "deletes")
    parser.add_argument("--only", nargs="*", choices=parts, default=list(parts))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--live", type=int, default=0, help="live runs in the same database")
    parser.add_argument("--deletes", type=int, default=300)
    parser.add_argument("--interval-ms", type=float, default=50)
    parser.add_argument("--as-deleter", nargs=3, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.as_deleter:
        uri, how, interval_s = wanted.as_deleter
        delete(uri, how, json.loads(sys.stdin.readline()), float(interval_s))
        return
    print(
        f"SQLite and PostgreSQL, SeaweedFS on the same machine; {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}, MLflow {version('mlflow')}, load before: {os.getloadavg()[0]:.1f}\n"
    )
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        measure(wanted, folder, stack)


def measure(wanted: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
    """Whatever was asked for."""
    s3: S3Server = stack.enter_context(seaweedfs(folder / "s3"))
    template = folder / "template.db"
    first = Site.direct(f"sqlite:///{template}", s3, make_bucket(s3), root="mlruns")
    first.experiment()
    first.close()

    def sqlite() -> Site:
        path = folder / f"{uuid.uuid4().hex}.db"
        shutil.copy(template, path)
        bucket = make_bucket(s3)
        site = Site.direct(f"sqlite:///{path}", s3, bucket)
        stack.callback(site.close)
        return site

    def both() -> dict[str, Site]:
        if not servers:
            servers.append(stack.enter_context(postgresql(folder / "pg")))
        other = Site.direct(servers[0].create_database(), s3, make_bucket(s3))
        other.experiment()
        stack.callback(other.close)
        return {"SQLite": sqlite(), "PostgreSQL": other}

    servers: list[Any] = []
    if "start" in wanted.only:
        start_and_end(sqlite(), folder, wanted.repeats)
    if "memory" in wanted.only:
        memory(both(), wanted.runs // 3)
    if "polls" in wanted.only:
        polls(both())
    if "gone" in wanted.only:
        delete_to_gone(sqlite(), folder)
    if "deletes" in wanted.only:
        users_deletes("SQLite", sqlite, wanted)
        users_deletes("PostgreSQL", lambda: both()["PostgreSQL"], wanted)


if __name__ == "__main__":
    main()
