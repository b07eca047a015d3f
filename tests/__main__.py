"""``python -m tests``: every check of this project in one go, style, types and tests, and then an old MLflow's.

Runs them all, whatever fails, says how long each took, and exits with the code of the first that failed. Arguments go
to pytest, and then the old MLflow is left out.

    python -m tests --mlflow 2.22 [ARGUMENTS]    only the suites of hook, worker and gc, with that MLflow
    python -m tests --known-good [ARGUMENTS]     the same with the exact versions of tests/constraints/known-good.txt
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import versions
from tests.versions import KNOWN_GOOD, OLDEST, VERSIONS, Version

CHECKOUT = Path(__file__).resolve().parent.parent

STEPS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    # Three processes on two cores, as much of the time is waiting: each takes a file at a time, and starts its own
    # servers. The order of tests/conftest.py stays.
    ("pytest", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=25"),
)
Step = tuple[str, Callable[[], int]]


def main(arguments: list[str]) -> int:
    """Run each step, then say how long each took and which failed."""
    ran: list[tuple[str, int, float]] = []
    for shown, run in _steps(arguments):
        print(f"\n$ {shown}", flush=True)  # noqa: T201 (its output is what it is for)
        began_s = time.monotonic()
        code = run()
        ran.append((shown, code, time.monotonic() - began_s))
    print()  # noqa: T201 (the same)
    for shown, _, took_s in ran:
        print(f"{took_s:6.1f} s  {shown}")  # noqa: T201 (the same)
    failed = [(shown, code) for shown, code, _ in ran if code]
    for shown, code in failed:
        print(f"failed with exit code {code}: {shown}", file=sys.stderr)  # noqa: T201 (the same)
    if not failed:
        print("\nall checks passed")  # noqa: T201 (the same)
    return failed[0][1] if failed else 0


def _steps(arguments: list[str]) -> list[Step]:
    match arguments:
        case ["--known-good", *others]:
            return _with(KNOWN_GOOD, others)
        case ["--mlflow", name, *others] if name in VERSIONS:
            return _with(VERSIONS[name], others)
        case ["--mlflow", *_]:
            raise SystemExit(f"--mlflow takes one of: {', '.join(VERSIONS)}")
        case []:
            return [*map(_here, STEPS), *_meanwhile(_with(OLDEST, []))]
    return [_here((*step, *(arguments if step[0] == "pytest" else ()))) for step in STEPS]


def _here(command: tuple[str, ...]) -> Step:
    def run() -> int:
        return subprocess.run([sys.executable, "-m", *command], cwd=CHECKOUT, check=False).returncode

    return shlex.join(["python", "-m", *command]), run


def _meanwhile(steps: list[Step]) -> list[Step]:
    """The first of these begins now, beside what comes before it, which does not need it."""
    (shown, run), *others = steps
    begun = ThreadPoolExecutor(1).submit(run)
    return [(f"{shown} (begun at the start)", begun.result), *others]


def _with(version: Version, arguments: list[str]) -> list[Step]:
    return [
        (f"install {version.name}", lambda: versions.install(version)),
        (shlex.join(["pytest", *arguments]) + f"  # {version.name}", lambda: versions.test(version, arguments)),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
