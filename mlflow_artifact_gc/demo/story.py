"""What ``mlflow-artifact-gc demo`` shows: real servers, real runs deleted as in MLflow's UI, and what becomes of them.

The servers and everything they write live in one temporary folder, which is removed however this ends.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from mlflow_artifact_gc import notices
from mlflow_artifact_gc.demo import StepFailed, cast, proof, training
from mlflow_artifact_gc.demo.browser import Browser
from mlflow_artifact_gc.demo.cast import Run
from mlflow_artifact_gc.demo.proof import Bucket
from mlflow_artifact_gc.demo.servers import MlflowServer, S3Server, mlflow_server, seaweedfs
from mlflow_artifact_gc.demo.telling import Teller

_T = TypeVar("_T")

_BUCKET: Final = "mlflow"
_DESTINATION: Final = f"s3://{_BUCKET}/artifacts"
_SETTINGS: Final = {"MLFLOW_BACKEND_STORE_URI": "sqlite:///mlflow.db"}
"""In the folder, where our commands run."""
_GRACE_S: Final = 10
"""Long enough for a restore on a busy machine, short enough to be watched."""
_POLL: Final = "1s"
_STEERING: Final = ("AWS_", "MLFLOW_", "_MLFLOW_")
_LOOK_S: Final = 0.2
_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """Where the story plays: the folder, the servers, and those who talk to them."""

    teller: Teller
    folder: Path
    s3: S3Server
    bucket: Bucket
    mlflow: MlflowServer

    @property
    def browser(self) -> Browser:
        return Browser(self.mlflow.uri)

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, **self.s3.environ()}


def run(*, wait: bool) -> None:
    """Tell the whole story; with ``wait`` the servers stay up until Ctrl-C.

    Raises:
        SeaweedMissing: the S3 server is not installed.
        ServerFailed, StepFailed: something did not work.
        ProofFailed: the bucket does not hold what it should.
    """
    teller = Teller()
    with (
        _first_signal_interrupts(),
        _own_environment(),
        tempfile.TemporaryDirectory(prefix="mlflow-artifact-gc-demo-") as name,
        _on_stage(teller, Path(name)) as stage,
    ):
        _play(stage)
        if wait:
            _wait(stage)
    teller.say(f"\nThe servers are stopped, and {name} is removed.")


@contextmanager
def _first_signal_interrupts() -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, SIGHUP) ends the story; further ones do not disturb the tidying up."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def interrupt(_number: int, _frame: object) -> None:
        for number in kept:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number, handler in kept.items():
        if number is signal.SIGINT or handler is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _own_environment() -> Iterator[None]:
    """The person's credentials, endpoints, settings and HTTP proxy have no part in this, nor in any child."""
    kept = dict(os.environ)
    for name in kept:
        if name.startswith(_STEERING) or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ.update(dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull))
    os.environ.update(dict.fromkeys(("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "true"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@contextmanager
def _on_stage(teller: Teller, folder: Path) -> Iterator[_Stage]:
    teller.say("mlflow-artifact-gc on this machine, with real servers and nothing to set up.", style="bold")
    teller.say(f"Everything lives in {folder} and is removed at the end.")
    teller.heading("An S3 server and an MLflow server start (MLflow takes some ten seconds)")
    with seaweedfs(folder) as s3:
        teller.say(f"S3      {s3.endpoint}  SeaweedFS, bucket {_BUCKET}")
        bucket = Bucket(s3, _BUCKET)
        bucket.create()
        with mlflow_server(
            folder,
            backend_store_uri=f"sqlite:///{folder / 'mlflow.db'}",
            s3=s3,
            artifacts_destination=_DESTINATION,
            extra_env={"MLFLOW_ARTIFACT_GC_POLL": _POLL},
        ) as mlflow:
            teller.say(f"MLflow  {mlflow.uri}  artifacts proxied to {_DESTINATION}, rows in SQLite")
            yield _Stage(teller=teller, folder=folder, s3=s3, bucket=bucket, mlflow=mlflow)


def _play(stage: _Stage) -> None:
    teller = stage.teller
    teller.heading("Six runs are logged through MLflow's own client")
    runs = training.train(stage.folder, {**stage.environ, "MLFLOW_TRACKING_URI": stage.mlflow.uri}, teller.say)
    before = stage.bucket.listed()
    teller.say(f"The bucket holds all of them, also the deleted one: {len(before)} objects, {proof.total(before)}.")

    teller.heading("Switch it on: tables and settings beside MLflow's own tables")
    _switch_on(stage)

    teller.heading("Somebody tidies up in MLflow's UI (the demo makes the calls that its Delete button makes)")
    due_s = _tidy_up(stage, runs)
    teller.say("\nEach run's page in MLflow says at once what will happen, in tags:")
    _show_tags(stage, _deleted(runs))

    teller.heading("One of them was a mistake: it is restored, as in the UI, within the grace period")
    _take_back(stage, runs[cast.MISTAKE.name], due_s)

    teller.heading("What an administrator sees")
    _command(stage, "status")

    teller.heading("Nobody does anything now: the worker waits for the grace period to end")
    teller.say("What 'status' counts, and what the bucket holds:")
    _watch(stage, _deleted(runs), due_s)

    teller.heading("What was deleted before 'init' waits for a person who looks at it first")
    _command(stage, "gc", "--yes", "--measure")

    teller.heading("Is it true? The bucket, listed by plain boto3 before and after")
    proof.prove(teller, list(runs.values()), before, stage.bucket.listed())
    teller.say("\nAnd what the runs say in MLflow's UI now:")
    _show_tags(stage, runs.values())


def _deleted(runs: Mapping[str, Run]) -> list[Run]:
    """Those that are deleted after ``init``; the champion comes first."""
    return [runs[role.name] for role in (cast.CHAMPION, cast.MISTAKE, *cast.WASTE)]


# The steps


def _switch_on(stage: _Stage) -> None:
    teller = stage.teller
    teller.say("On a real site a grace period (7d) and a minimum age (24h) protect what is new; a demo cannot wait.")
    for name, value in _SETTINGS.items():
        teller.typed(f"export {name}={value}")
    grace = ("--grace", f"{_GRACE_S}s", "--min-object-age", "0s")
    _command(stage, "init", "--artifacts-destination", _DESTINATION, *grace)
    started = _until(stage, lambda: _worker_lines(stage), "the worker has not started")
    teller.say("\n'mlflow server' has started a worker by itself, as its log says:")
    teller.say(f"  {started[0]}")


def _worker_lines(stage: _Stage) -> list[str]:
    """What the server's log says of its worker, without dates."""
    lines = stage.mlflow.log.read_text(errors="replace").splitlines()
    return [f"{sign}{rest}" for line in lines for _, sign, rest in [line.partition("mlflow-artifact-gc: ")] if sign]


def _tidy_up(stage: _Stage, runs: Mapping[str, Run]) -> float:
    """Returns when the last of them is due, on the monotonic clock."""
    for run in _deleted(runs):
        stage.browser.delete(run.id)
        note = f"although it is {cast.MODEL}@{cast.ALIAS}" if run.role is cast.CHAMPION else ""
        stage.teller.say(f"deleted     {run.role.name:<15} {note}".rstrip())
    due_s = time.monotonic() + _GRACE_S

    def told() -> bool:
        tags = {run.role: stage.browser.tags(run.id) for run in _deleted(runs)}
        return all(tags.values()) and notices.PROTECTED_BY in tags[cast.CHAMPION]

    _until(stage, told, "the runs have no tags")
    return due_s


def _show_tags(stage: _Stage, runs: Iterable[Run]) -> None:
    rows = []
    for run in runs:
        tags = stage.browser.tags(run.id) or {"": "(none)"}
        # What it is about comes first, and the name of the run once.
        keys = sorted(tags, key=lambda key: (key != notices.STATUS, key))
        rows += [(run.role.name if key == keys[0] else "", key, tags[key]) for key in keys]
    stage.teller.table(("run", "tag", "value"), rows)


def _take_back(stage: _Stage, run: Run, due_s: float) -> None:
    stage.browser.restore(run.id)
    if time.monotonic() > due_s:
        raise StepFailed(f"It took more than {_GRACE_S} s to get here: this machine is too busy for the demo")
    _until(stage, lambda: not stage.browser.tags(run.id), f"{run.role.name} keeps its tags")
    stage.teller.say(f"restored    {run.role.name:<15} its tags are gone, its objects stay")


def _watch(stage: _Stage, runs: list[Run], due_s: float) -> None:
    """Ask ``status`` and look into the bucket until the waste is gone."""

    def look(tell: Callable[[str], None]) -> bool:
        waits = _waiting(stage)
        listing = stage.bucket.listed()
        tell(f"{waits:>18}: {_counts(runs, listing)}")
        return not any(proof.of(run, listing) for run in runs if not run.role.stays)

    with stage.teller.in_place() as tell:
        _until(stage, lambda: look(tell), "the objects are still there", patience_s=_GRACE_S + _PATIENCE_S)
    late_s = max(0.0, time.monotonic() - due_s)
    stage.teller.say(f"{'gone':>18}: {_counts(runs, stage.bucket.listed())}")
    waste = " and ".join(role.name for role in cast.WASTE)
    stage.teller.say(f"{waste} went {late_s:.1f} s after their grace period, and no one ran a command.")


def _waiting(stage: _Stage) -> str:
    """How many wait, and for how long, as ``status`` says."""
    argv = [sys.executable, "-m", "mlflow_artifact_gc", "status", "--format", "json"]
    environ = {**stage.environ, **_SETTINGS}
    done = subprocess.run(argv, env=environ, cwd=stage.folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepFailed(f"'status' ended with exit code {done.returncode}, and 0 was expected: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    if told["next_due_ms"] is None:
        return "any moment"
    return f"{told['tombstones']['grace']} wait, {(told['next_due_ms'] - told['now_ms']) / 1000:.0f} s left"


def _counts(runs: Iterable[Run], listing: list[proof.Seen]) -> str:
    counts = ", ".join(f"{run.role.name} {len(proof.of(run, listing))}" for run in runs)
    return f"{counts} objects"


def _until(stage: _Stage, look: Callable[[], _T], trouble: str, *, patience_s: float = _PATIENCE_S) -> _T:
    """What ``look`` finds, as soon as it finds something."""
    give_up_s = time.monotonic() + patience_s
    while not (found := look()):
        if time.monotonic() > give_up_s:
            said = "\n".join(_worker_lines(stage))
            raise StepFailed(f"After {patience_s:.0f} s {trouble}; of the worker the server's log says:\n{said}")
        time.sleep(_LOOK_S)
    return found


def _command(stage: _Stage, *arguments: str) -> None:
    """One of our own, as a person types it."""
    stage.teller.typed(shlex.join(("mlflow-artifact-gc", *arguments)))
    argv = [sys.executable, "-m", "mlflow_artifact_gc", *arguments]
    environ = {**stage.environ, **_SETTINGS}
    done = subprocess.run(argv, env=environ, cwd=stage.folder, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise StepFailed(f"'{arguments[0]}' ended with exit code {done.returncode}, and 0 was expected")


# The end


def _wait(stage: _Stage) -> None:
    teller = stage.teller
    teller.heading("Have a look yourself")
    teller.say(f"The MLflow UI is at {stage.mlflow.uri} (State: Deleted shows the deleted runs).")
    teller.say("For the commands above, in another terminal:")
    teller.say(f"  cd {stage.folder}")
    teller.say(f'  export PATH="{Path(sys.executable).parent}:$PATH"')
    for name, value in {**stage.s3.environ(), **_SETTINGS}.items():
        teller.say(f"  export {name}={value}")
    teller.say("Ctrl-C stops the servers and removes the folder.", style="bold")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
