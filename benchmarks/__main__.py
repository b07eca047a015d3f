"""``python -m benchmarks``: all of them, one after the other."""

from __future__ import annotations

import subprocess
import sys

for name in ("gc", "hook", "worker", "plan", "parse", "audit", "choosing", "backlog", "purge"):
    print(f"\n## benchmarks.{name}\n", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
