"""Whole processes, measured from outside: wall clock, CPU, peak memory; and how much one asks of others."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OURS: Final = (sys.executable, "-m", "mlflow_artifact_gc")
_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_POLL_S: Final = 0.02
_COUNTED: Final = """
import atexit, pathlib, sys
import sqlalchemy as sa
from botocore.httpsession import URLLib3Session
from mlflow_artifact_gc.cli import main
sent, asked, send = [], [], URLLib3Session.send
sa.event.listen(sa.Engine, "before_cursor_execute", lambda *seen: sent.append(1))
URLLib3Session.send = lambda *what: asked.append(1) or send(*what)
atexit.register(lambda: pathlib.Path(sys.argv.pop()).write_text(f"{len(sent)} {len(asked)}"))
path = sys.argv.pop(1)
atexit.register(sys.argv.append, path)
main()
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One whole process. ``statements`` to databases and ``requests`` to S3 None: not counted."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    statements: int | None = None
    requests: int | None = None
    output: str = ""


class _Peak(threading.Thread):
    """Watches a process's peak: what ``wait4`` says of it begins with the size of the process that started it."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.mb = 0.0
        self._status = Path(f"/proc/{pid}/status")

    def run(self) -> None:
        with suppress(OSError):
            while found := _PEAK.search(self._status.read_text()):
                self.mb = int(found[1]) / 1024
                time.sleep(_POLL_S)


def timed(argv: Sequence[str], environ: Mapping[str, str] | None = None, *, codes: Sequence[int] = (0,)) -> Timing:
    """Run it; ends the benchmark where it leaves with another code than one of ``codes``."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        peak = _Peak(process.pid)
        peak.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        peak.join()
        log.seek(0)
        said = log.read().decode(errors="replace")
    if process.returncode not in codes:
        raise SystemExit(f"{' '.join(argv)[-300:]}: exit code {process.returncode}\n{said[-2000:]}")
    cpu_s = usage.ru_utime + usage.ru_stime
    return Timing(wall_s=wall_s, cpu_s=cpu_s, peak_mb=peak.mb, output=said)


def counted(arguments: Sequence[str], environ: Mapping[str, str] | None = None) -> Timing:
    """Our command with these arguments, and the numbers of statements and requests that it sends."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "statements"
        found = timed([sys.executable, "-c", _COUNTED, str(file), *arguments], environ)
        statements, requests = map(int, file.read_text().split())
        return Timing(
            wall_s=found.wall_s,
            cpu_s=found.cpu_s,
            peak_mb=found.peak_mb,
            statements=statements,
            requests=requests,
            output=found.output,
        )


def environ_of(**more: str) -> dict[str, str]:
    """This process's environment without what would tell S3 clients or MLflow something, and with ``more``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "_MLFLOW_"))}
    return {**kept, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", **more}


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the lowest and highest."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def machine() -> str:
    """The machine, and how much else it does."""
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; load average {load:.1f}"
