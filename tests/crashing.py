"""Our commands in processes that are killed with SIGKILL at a chosen moment.

``python -m tests.crashing`` imports everything once and then forks a process for each line of JSON on its standard
input: to start Python for each of hundreds of kills would take a second each. The product has no hook for any of this:
the process that is to die wraps the named function before it runs the command.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests import hurry

POINTS: dict[str, tuple[str, str]] = {
    # In the order in which a sweep comes by.
    "plan started": ("mlflow_artifact_gc.journal", "plan_started"),
    "claim": ("mlflow_artifact_gc.fence", "Fence._claim"),
    "references read": ("mlflow_artifact_gc.references", "read"),
    "listing": ("mlflow_artifact_gc.surveying", "Surveyor.survey"),
    "epoch": ("mlflow_artifact_gc.journal", "raise_epoch"),
    "marker": ("mlflow_artifact_gc.s3.marker", "create"),
    "marker noted": ("mlflow_artifact_gc.journal", "marker_written"),
    "last look": ("mlflow_artifact_gc.fence", "Fence.changed"),
    "abort": ("mlflow_artifact_gc.s3", "abort_upload"),
    "delete": ("mlflow_artifact_gc.s3", "delete"),
    "verifying listing": ("mlflow_artifact_gc.surveying", "Surveyor.remaining"),
    "record": ("mlflow_artifact_gc.journal", "record"),
    "notice": ("mlflow_artifact_gc.notices", "write"),
    "metadata": ("mlflow_artifact_gc.metadata", "Eraser.erase"),
    "release": ("mlflow_artifact_gc.journal", "release"),
    "plan finished": ("mlflow_artifact_gc.journal", "plan_finished"),
    # Anywhere at all.
    "request": ("botocore.httpsession", "URLLib3Session.send"),
    "statement": ("sqlalchemy.engine.default", "DefaultDialect.do_execute"),
    "commit": ("sqlalchemy.engine.default", "DefaultDialect.do_commit"),
}
"""Where a process can be killed: module and name of the function that it is calling then."""
_IMPORTED = ("backlog", "orphaned", "working", "standing", "holding")
_LIBRARIES = ("botocore.session", "botocore.httpsession", "psycopg2", "sqlalchemy.dialects.sqlite")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The ``nth`` call of a point, before it is made or after it has returned."""

    point: str
    nth: int = 1
    after: bool = False

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} call {self.nth} of {self.point!r}"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: ``code`` is None where it was killed at its moment. ``calls``: of the point, otherwise."""

    code: int | None
    out: str
    err: str
    calls: int

    @property
    def killed(self) -> bool:
        return self.code is None


class Crashes:
    """The process that forks those that are killed."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._number = process, folder, 0

    def run(self, arguments: Sequence[str], environ: Mapping[str, str], moment: Moment | None = None) -> Ended:
        """Run ``mlflow-artifact-gc`` with ``arguments``, to be killed at ``moment`` if it comes so far."""
        self._number += 1
        base = self._folder / str(self._number)
        order = {
            "arguments": [*arguments],
            "environ": dict(environ),
            "moment": None if moment is None else [moment.point, moment.nth, moment.after],
            "base": str(base),
        }
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, "the process that forks has ended"
        status = json.loads(answer)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"killed by signal {os.WTERMSIG(status)}"
            assert moment is not None, "killed, and nobody asked for it"
            return Ended(code=None, out="", err="", calls=moment.nth)
        told = json.loads(base.with_suffix(".json").read_text())
        return Ended(code=told["code"], out=told["out"], err=told["err"], calls=told["calls"])


@contextmanager
def crashes() -> Iterator[Crashes]:
    """A process that forks others."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.crashing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "AWS_EC2_METADATA_DISABLED": "true",
                "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            },
        )
        try:
            yield Crashes(process, Path(folder))
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait(10)


# In that process


def serve(orders: IO[str], answers: IO[str]) -> None:
    """Fork a process for each order, and say how it ended, as ``waitpid`` does."""
    with hurry.one_loader(), hurry.one_compilation(), hurry.no_wait_for_disks():
        _serve(orders, answers)


def _serve(orders: IO[str], answers: IO[str]) -> None:
    for name in _IMPORTED:
        importlib.import_module(f"mlflow_artifact_gc.cli.{name}")
    for name in _LIBRARIES:
        importlib.import_module(name)
    # Its description of S3 is read here, and not in each of them.
    importlib.import_module("mlflow_artifact_gc.s3").connect({"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9"})
    for line in orders:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_the_command(order)
        answers.write(f"{os.waitpid(pid, 0)[1]}\n")
        answers.flush()


def _be_the_command(order: Mapping[str, Any]) -> None:
    code = 99
    try:
        os.environ.update(order["environ"])
        calls = [0]
        if order["moment"] is not None:
            point, nth, after = order["moment"]
            _arm(point, functools.partial(_die_at, calls, nth), after=after)
        code, out, err = _run(order["arguments"])
        told = {"code": code, "out": out, "err": err, "calls": calls[0]}
        Path(order["base"]).with_suffix(".json").write_text(json.dumps(told))
    finally:
        # What the parent had in its buffers is the parent's to write.
        os._exit(code)


def _die_at(calls: list[int], nth: int) -> None:
    calls[0] += 1
    if calls[0] == nth:
        os.kill(os.getpid(), signal.SIGKILL)


def _arm(point: str, strike: Callable[[], None], *, after: bool) -> None:
    module, name = POINTS[point]
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, last)

    def wrapper(*arguments: Any, **named: Any) -> Any:
        if not after:
            strike()
        result = original(*arguments, **named)
        if after:
            strike()
        return result

    setattr(owner, last, wrapper)


def _run(arguments: Sequence[str]) -> tuple[int, str, str]:
    from mlflow_artifact_gc.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments), prog_name="mlflow-artifact-gc")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return code, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
