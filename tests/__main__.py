"""``python -m tests``: every check of this project in one go, style, types and tests.

Runs them all, whatever fails, and exits with the code of the first that did. Arguments go to pytest.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

STEPS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    # Two processes, as much of the time is waiting: each takes a file at a time, and starts its own servers. Those of
    # tests/e2e come first, which take longest.
    ("pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--cov", "--cov-report=term"),
)


def main(arguments: list[str]) -> int:
    """Run each step, then say which failed."""
    failed: list[tuple[str, int]] = []
    for step in STEPS:
        command = ["python", "-m", *step, *(arguments if step[0] == "pytest" else ())]
        shown = shlex.join(command)
        print(f"\n$ {shown}", flush=True)  # noqa: T201 (its output is what it is for)
        code = subprocess.run([sys.executable, *command[1:]], cwd=CHECKOUT, check=False).returncode
        if code:
            failed.append((shown, code))
    for shown, code in failed:
        print(f"failed with exit code {code}: {shown}", file=sys.stderr)  # noqa: T201 (the same)
    if not failed:
        print("\nall checks passed")  # noqa: T201 (the same)
    return failed[0][1] if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
