"""What ``audit`` costs: time, CPU and memory of the whole process, at several sizes.

python -m benchmarks.audit [--runs 12500 50000 100000] [--objects-per-run 20]

The S3 server is a synthetic one, in a process of its own: it answers listings of keys that it makes up, because filling
a real one with millions of objects takes hours. So the seconds hold no storage's time; CPU and memory are the
command's.
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import sqlalchemy as sa

from benchmarks.plan import EXPERIMENT, EXPERIMENTS, RUN, fill
from tests.servers import S3Server
from tests.site import Site

PAGE = 1_000
ROOT = "mlruns/"
NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
ROW = (
    "<Contents><Key>{key}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified><ETag>&quot;{number:032x}&quot;"
    "</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
LIVE, DELETED = 60, 20
"""Of a hundred runs; the rest has no row any more."""


def run_id(number: int) -> str:
    """The id of a run: spread as MLflow's are, and the same in both processes."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def experiment_of(number: int) -> int:
    """The experiment of a run."""
    return number % EXPERIMENTS + 1


class Keys:
    """The made-up keys, in order."""

    def __init__(self, runs: int, per_run: int) -> None:
        self.folders = sorted(f"{ROOT}{experiment_of(n)}/{run_id(n)}/artifacts/" for n in range(runs))
        self.per_run = per_run

    def page(self, prefix: str, start: int) -> tuple[list[str], int | None]:
        """The keys from position ``start`` on, and the next position."""
        first = bisect.bisect_left(self.folders, prefix) * self.per_run
        end = bisect.bisect_left(self.folders, prefix + "\x7f") * self.per_run
        start = max(start, first)
        stop = min(start + PAGE, end)
        keys = [f"{self.folders[n // self.per_run]}part-{n % self.per_run:04}" for n in range(start, stop)]
        return keys, stop if stop < end else None

    def level(self, prefix: str, after: str) -> tuple[list[str], str | None]:
        """The folders directly beneath ``prefix``, and where to go on."""
        found: list[str] = []
        position = bisect.bisect_left(self.folders, after + "\x7f" if after else prefix)
        while position < len(self.folders) and self.folders[position].startswith(prefix):
            folder = prefix + self.folders[position][len(prefix) :].partition("/")[0] + "/"
            if len(found) == PAGE:
                return found, found[-1]
            found.append(folder)
            position = bisect.bisect_left(self.folders, folder + "\x7f")
        return found, None


def serve(runs: int, per_run: int) -> None:
    """Answer listings until the process is ended; prints its port."""
    keys = Keys(runs, per_run)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query, True).items()}  # noqa: FBT003
            body = _answer(keys, query).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def _answer(keys: Keys, query: dict[str, str]) -> str:
    if "versioning" in query:
        return f"<VersioningConfiguration {NAMESPACE}/>"
    if "uploads" in query:
        return f"<ListMultipartUploadsResult {NAMESPACE}><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
    if "versions" in query:  # only whether it may be listed
        return f"<ListVersionsResult {NAMESPACE}><IsTruncated>false</IsTruncated></ListVersionsResult>"
    prefix, token = query.get("prefix", ""), query.get("continuation-token", "")
    if query.get("delimiter"):
        folders, following = keys.level(prefix, token)
        rows = "".join(f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>" for folder in folders)
        onward = following
    else:
        found, position = keys.page(prefix, int(token or 0))
        rows = "".join(ROW.format(key=key, number=n, size=1000 + n) for n, key in enumerate(found))
        onward = None if position is None else str(position)
    token = f"<NextContinuationToken>{onward}</NextContinuationToken>" if onward else ""
    truncated = "true" if onward else "false"
    return f"<ListBucketResult {NAMESPACE}><IsTruncated>{truncated}</IsTruncated>{token}{rows}</ListBucketResult>"


@contextmanager
def listing_server(runs: int, per_run: int) -> Iterator[str]:
    """The synthetic server; its endpoint."""
    command = [sys.executable, "-m", "benchmarks.audit", "--serve", str(runs), str(per_run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = process.stdout.readline().strip() if process.stdout else ""
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def build(folder: Path, runs: int) -> str:
    """A database of MLflow's with the runs that have a row."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    nowhere = S3Server(endpoint="http://127.0.0.1:9", access_key="none", secret_key="none")  # noqa: S106
    site = Site.direct(uri, nowhere, "bucket")
    site.experiment("made-by-mlflow")
    with site.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM experiments"))
    experiments = ({"id": n, "name": f"e{n}", "uri": f"s3://bucket/{ROOT}{n}"} for n in range(1, EXPERIMENTS + 1))
    fill(site.engine, (EXPERIMENT,), experiments)
    fill(site.engine, (RUN,), _rows(runs))
    site.close()
    return uri


def _rows(runs: int) -> Iterator[dict[str, object]]:
    for number in range(runs):
        kind = number % 100
        if kind < LIVE + DELETED:
            experiment, id_ = experiment_of(number), run_id(number)
            deleted = kind >= LIVE
            yield {
                "id": id_,
                "experiment": experiment,
                "uri": f"s3://bucket/{ROOT}{experiment}/{id_}/artifacts",
                "stage": "deleted" if deleted else "active",
                "deleted": 1000 if deleted else None,
            }


def measure(uri: str, endpoint: str) -> tuple[float, float, float, str]:
    """Seconds, CPU seconds and peak MB of one audit, and its table of totals."""
    stores = ["--backend-store-uri", uri, "--registry-store-uri", uri]
    command = [sys.executable, "-m", "mlflow_artifact_gc", "audit", *stores, "--limit", "0"]
    environ = {
        **os.environ,
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    started, peak_kb = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.DEVNULL, env=environ)
        while process.returncode is None:
            peak_kb = max(peak_kb, _peak_kb(process.pid))
            # Of this child alone: the servers are children too.
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.02)
        seconds = time.monotonic() - started
        told.seek(0)
        text = told.read()
    if process.returncode:
        raise SystemExit(f"audit ended with {process.returncode}: {text}")
    return seconds, usage.ru_utime + usage.ru_stime, peak_kb / 1024, text


def _peak_kb(pid: int) -> int:
    """What the kernel keeps of this program's own memory; ru_maxrss would be its parent's before the exec."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) if found else 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, nargs="+", default=[12_500, 50_000, 100_000])
    parser.add_argument("--objects-per-run", type=int, default=20)
    parser.add_argument("--serve", type=int, nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    if wanted.serve:
        serve(*wanted.serve)
        return
    print(
        f"{EXPERIMENTS} experiments, {wanted.objects_per_run} objects a run; of 100 runs {LIVE} live, {DELETED} deleted"
        ", the rest left over. SQLite, a synthetic S3 server in a process of its own; "
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.\n"
    )
    print("| keys | runs | seconds | CPU seconds | microseconds of CPU a key | peak memory, MB |")
    print("|---|---|---|---|---|---|")
    told = ""
    for runs in wanted.runs:
        keys = runs * wanted.objects_per_run
        with tempfile.TemporaryDirectory() as folder, listing_server(runs, wanted.objects_per_run) as endpoint:
            seconds, cpu, peak_mb, told = measure(build(Path(folder), runs), endpoint)
        each = 1e6 * cpu / keys
        print(f"| {keys:,} | {runs:,} | {seconds:.1f} | {cpu:.1f} | {each:.0f} | {peak_mb:.0f} |", flush=True)
    print("\nThe last one said:\n\n" + told)


if __name__ == "__main__":
    main()
