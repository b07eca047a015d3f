"""``worker``: the loop in the foreground, once for cron, or as the child of ``mlflow server``."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
from typing import Any, Final

from mlflow_artifact_gc import processes, worker
from mlflow_artifact_gc.cli.backlog import exit_code
from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.worker import Assignment, Worker

_logger = logging.getLogger("mlflow_artifact_gc.worker")
_DELAY_S: Final = 5.0
"""An embedded worker leaves the server's start alone."""


def run(*, embedded: bool, once: bool, **options: Any) -> None:
    """Carry out ``worker``, and leave with its exit code."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s mlflow-artifact-gc: %(message)s"
    )
    _logger.setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    settings = Settings.from_env()
    processes.keep_memory_small()
    if embedded:
        assignment = _from_parent(stop)
        if assignment is None or stop.wait(_DELAY_S):
            return
    else:
        assignment = Assignment(**options)
    if once:
        sys.exit(_once(Worker(assignment, settings, stop)))
    _logger.info("%s", worker.describe(assignment, settings))
    Worker(assignment, settings, stop).run()
    _logger.info("worker ended")


def _once(worker_: Worker) -> int:
    try:
        report = worker_.turn()
    finally:
        worker_.close()
    return 0 if report is None else exit_code(report, interrupted=False)


def _from_parent(stop: threading.Event) -> Assignment | None:
    """What the server's parent says on standard input; when that ends, the parent is gone, and so are we."""
    line = sys.stdin.readline()
    if not line:
        return None
    try:
        assignment = Assignment(**json.loads(line), embedded=True)
    except (ValueError, TypeError) as error:
        raise UsageError("--embedded is for the child of 'mlflow server', which speaks on standard input") from error

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=watch, name="artifact-gc-parent", daemon=True).start()
    return assignment
