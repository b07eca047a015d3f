"""What a command costs before it does anything: ``--help``, usage errors and ``status``, whole processes.

python -m benchmarks.start_up [--repeats 10]
"""

from __future__ import annotations

import argparse
import compileall
import subprocess
import tempfile
from pathlib import Path

import mlflow_artifact_gc
from benchmarks.whole import OURS, environ_of, machine, spread, timed
from mlflow_artifact_gc.demo.servers import S3Server
from tests.site import Site


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    compileall.compile_dir(mlflow_artifact_gc.__path__[0], quiet=1)
    with tempfile.TemporaryDirectory() as name:
        uri = f"sqlite:///{Path(name) / 'mlflow.db'}"
        nowhere = S3Server(endpoint="http://127.0.0.1:9", access_key="none", secret_key="none")  # noqa: S106
        site = Site.direct(uri, nowhere, "bucket")
        site.experiment()
        site.close()
        init = [*OURS, "init", "--backend-store-uri", uri, "--registry-store-uri", uri]
        subprocess.run(init, check=True, stdout=subprocess.DEVNULL, env=environ_of())
        print(f"SQLite, {repeats} repeats; {machine()}.\n")
        print("| command | wall s: median (lowest to highest) | CPU s | peak MB |")
        print("|---|---|---|---|")
        for arguments, code in (
            (["--help"], 0),
            (["gc", "--help"], 0),
            (["gc", "--no-such-option"], 2),
            (["status", "--backend-store-uri", uri], 0),
        ):
            found = [timed([*OURS, *arguments], environ_of(), codes=(code,)) for _ in range(repeats)]
            wall, cpu, peak = ([getattr(one, field) for one in found] for field in ("wall_s", "cpu_s", "peak_mb"))
            shown = " ".join(arguments[:2]).replace(" --backend-store-uri", "")
            print(f"| `{shown}` | {spread(wall)} | {spread(cpu)} | {spread(peak, 0)} |", flush=True)


if __name__ == "__main__":
    main()
