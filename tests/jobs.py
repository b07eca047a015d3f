"""A job for MLflow's job backend, which imports this module in a process of its own below the server.

It does what MLflow's own jobs do: it opens the tracking store, which brings this package along.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Final

from mlflow.server.jobs import job

_WAITS_S: Final = 1.0
"""Long enough for a worker that was started by mistake to be there."""


@job(name="test_delete_run", max_workers=1)  # type: ignore[untyped-decorator]  # MLflow's
def delete_run(run_id: str) -> dict[str, Any]:
    """Delete a run, and tell what this package has started in the job's process."""
    from mlflow.server.handlers import _get_tracking_store

    store = _get_tracking_store()
    store.delete_run(run_id)
    time.sleep(_WAITS_S)
    children = [one for task in Path("/proc/self/task").iterdir() for one in (task / "children").read_text().split()]
    threads = [one.name for one in threading.enumerate() if "gc" in one.name]
    return {"store": type(store).__name__, "children": children, "threads": threads}
