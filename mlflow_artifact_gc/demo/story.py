"""What ``mlflow-artifact-gc demo`` shows: real servers, real runs, our own commands, and a look into the bucket after.

The servers and everything they write live in one temporary folder, which is removed however this ends.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TextIO, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlflow_artifact_gc.demo.servers import REGION, MlflowServer, S3Server, mlflow_server, seaweedfs
from mlflow_artifact_gc.errors import ArtifactGcError
from mlflow_artifact_gc.quantities import show_size

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_BUCKET: Final = "mlflow"
_DESTINATION: Final = f"s3://{_BUCKET}/artifacts"
_DATABASE: Final = "sqlite:///mlflow.db"
_STORE: Final = ("--backend-store-uri", _DATABASE)
_AT_ONCE: Final = ("--older-than", "0s", "--min-object-age", "0s")
_MODEL: Final = "churn"
_ALIAS: Final = "champion"
_PLAIN_WIDTH: Final = 110
_STEERING: Final = ("AWS_", "MLFLOW_", "_MLFLOW_")
_MB: Final = 1_000_000
_EPOCHS: Final = {"baseline": 2, "deeper": 4, "wider": 3, "no-dropout": 3, "typo-in-config": 1, "warm-restart": 5}
_LIVE: Final = "baseline"
_CHAMPION: Final = "deeper"


class ProofFailed(ArtifactGcError):
    """The bucket does not hold what it should."""


class StepFailed(ArtifactGcError):
    """A step of the demo failed."""


class Run(NamedTuple):
    """A run of the demo: what became of it in MLflow, and so what has to become of its objects."""

    name: str
    id: str
    state: str

    @property
    def stays(self) -> bool:
        return self.name in (_LIVE, _CHAMPION)


class Seen(NamedTuple):
    """An object of the bucket, as a plain listing tells it."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stage:
    """Where the story plays: the folder, the servers, and the environment of those who talk to them."""

    out: Console
    folder: Path
    s3: S3Server
    mlflow: MlflowServer

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
    out = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH, highlight=False, soft_wrap=True)
    with (
        _first_signal_interrupts(),
        _own_environment(),
        tempfile.TemporaryDirectory(prefix="mlflow-artifact-gc-demo-") as name,
        _on_stage(out, Path(name)) as stage,
    ):
        _play(stage)
        if wait:
            _wait(stage)
    out.print(f"\nThe servers are stopped, and {name} is removed.")


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
def _on_stage(out: Console, folder: Path) -> Iterator[_Stage]:
    out.print("mlflow-artifact-gc on this machine, with real servers and nothing to set up.", style="bold")
    out.print(f"Everything lives in {folder} and is removed at the end.")
    _heading(out, 1, "An S3 server and an MLflow server start (MLflow takes some ten seconds)")
    with seaweedfs(folder) as s3:
        out.print(f"S3      {s3.endpoint}  SeaweedFS, bucket {_BUCKET}")
        _client(s3).create_bucket(Bucket=_BUCKET)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        with mlflow_server(folder, backend_store_uri=uri, s3=s3, artifacts_destination=_DESTINATION) as mlflow:
            out.print(f"MLflow  {mlflow.uri}  artifacts proxied to {_DESTINATION}, rows in SQLite")
            yield _Stage(out=out, folder=folder, s3=s3, mlflow=mlflow)


def _heading(out: Console, number: int, text: str) -> None:
    out.print(f"\n{number}. {text}", style="bold cyan")


def _play(stage: _Stage) -> None:
    out = stage.out
    _heading(out, 2, "Six runs are logged through MLflow's own API; then somebody tidies up")
    runs = _train(stage)
    before = _listed(stage.s3)
    amount = f"{len(before)} objects, {show_size(sum(seen.size for seen in before))}"
    out.print(f"MLflow has hidden the deleted runs. The bucket still holds everything: {amount}.")

    _heading(out, 3, "Switch it on: tables and settings beside MLflow's own tables")
    _command(stage, "init", *_STORE, "--artifacts-destination", _DESTINATION)

    _heading(out, 4, "Look first, touch nothing")
    out.print("On a real site a grace period (7d) and a minimum age (24h) protect what is new; a demo cannot wait.")
    _command(stage, "gc", *_STORE, *_AT_ONCE, "--dry-run")

    _heading(out, 5, "The same for good")
    _command(stage, "gc", *_STORE, *_AT_ONCE, "--yes", "--measure")

    _heading(out, 6, "What it says afterwards")
    _command(stage, "status", *_STORE)

    _heading(out, 7, "Is it true? The bucket, listed by plain boto3 before and after")
    _prove(out, runs, before, _listed(stage.s3))


# The data scientist: a process of its own, as on a real site


def _train(stage: _Stage) -> list[Run]:
    """Log, register and delete; tell of each as it happens."""
    argv = [sys.executable, "-m", "mlflow_artifact_gc.demo.story"]
    # It works in the folder: whatever MLflow leaves in its working directory goes with it.
    environ = {**stage.environ, "MLFLOW_TRACKING_URI": stage.mlflow.uri}
    log = stage.folder / "training.log"
    runs: dict[str, Run] = {}
    with (
        log.open("w") as noise,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=noise, text=True, env=environ, cwd=stage.folder) as child,
    ):
        try:
            for line in child.stdout or ():
                told = json.loads(line)
                stage.out.print(told["text"])
                if "run" in told:
                    runs[told["run"][0]] = Run(*told["run"])
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
        raise StepFailed(f"MLflow's client ended with exit code {child.returncode}:\n{said}")
    return list(runs.values())


def _be_the_data_scientist(folder: Path, told: TextIO) -> None:
    """Everything here is MLflow's own API, as in a notebook; MLFLOW_TRACKING_URI names the server."""
    import mlflow

    def tell(text: str, run: Run | None = None) -> None:
        told.write(json.dumps({"text": text} | ({"run": run} if run else {})) + "\n")
        told.flush()

    mlflow.set_experiment("churn prediction")
    ids: dict[str, str] = {}
    for name, epochs in _EPOCHS.items():
        files = _outputs_of_a_training(folder / name, epochs)
        with mlflow.start_run(run_name=name) as active:
            mlflow.log_params({"epochs": epochs})
            mlflow.log_metrics({"auc": 0.7 + epochs / 40})
            mlflow.log_artifacts(str(folder / name))
        ids[name] = active.info.run_id
        size = show_size(sum(path.stat().st_size for path in files))
        tell(
            f"logged      {name:<15} {len(files):>2} objects, {size:>7}  run {ids[name]}", Run(name, ids[name], "live")
        )

    version = mlflow.register_model(f"runs:/{ids[_CHAMPION]}/model", _MODEL)
    mlflow.MlflowClient().set_registered_model_alias(_MODEL, _ALIAS, version.version)
    tell(f"registered  {_CHAMPION:<15} as {_MODEL}, version {version.version}, alias @{_ALIAS}")
    for name in _EPOCHS:
        if name == _LIVE:
            continue
        mlflow.delete_run(ids[name])
        registered = name == _CHAMPION
        note = f"although it is {_MODEL}@{_ALIAS}" if registered else ""
        state = f"deleted, @{_ALIAS}" if registered else "deleted"
        tell(f"deleted     {name:<15} {note}".rstrip(), Run(name, ids[name], state))


def _outputs_of_a_training(folder: Path, epochs: int) -> list[Path]:
    """A model, a checkpoint for each epoch, a plot."""
    dice = random.Random(folder.name)  # noqa: S311 - bytes that do not compress, nothing secret
    contents = {
        "model/MLmodel": f"artifact_path: model\nflavors:\n  demo:\n    epochs: {epochs}\n".encode(),
        "model/weights.bin": dice.randbytes(3 * _MB),
        "plots/roc.png": dice.randbytes(60_000),
        **{f"checkpoints/epoch_{number}/weights.bin": dice.randbytes(3 * _MB) for number in range(epochs)},
        **{f"checkpoints/epoch_{number}/optimizer.bin": dice.randbytes(2 * _MB) for number in range(epochs)},
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [folder / name for name in contents]


# Our own commands, as a person types them


def _command(stage: _Stage, *arguments: str) -> None:
    out = stage.out
    out.print(f"$ {shlex.join(('mlflow-artifact-gc', *arguments))}", style="bold")
    sys.stdout.flush()  # the child writes to the same place
    argv = [sys.executable, "-m", "mlflow_artifact_gc", *arguments]
    done = subprocess.run(argv, env=stage.environ, cwd=stage.folder, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise StepFailed(f"'{arguments[0]}' ended with exit code {done.returncode}, and 0 was expected")


# The look into the bucket


def _client(s3: S3Server) -> S3Client:
    """Plain boto3: what proves something shares no code with what is proven."""
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=REGION,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )


def _listed(s3: S3Server) -> list[Seen]:
    pages = _client(s3).get_paginator("list_objects_v2").paginate(Bucket=_BUCKET)
    return [Seen(found["Key"], found["Size"], found["ETag"]) for page in pages for found in page.get("Contents", ())]


def _prove(out: Console, runs: list[Run], before: list[Seen], after: list[Seen]) -> None:
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("run", "in MLflow", "objects", "bytes", "proof"):
        grid.add_column(column, justify="right" if column in ("objects", "bytes") else "left", no_wrap=True)
    wrong = []
    for one in runs:
        was, is_now = _of(one, before), _of(one, after)
        right = bool(was) and (is_now == was if one.stays else not is_now)
        if not right:
            wrong.append(one.name)
        verdict, style = ("unchanged", "green") if one.stays else ("gone", "red")
        grid.add_row(one.name, one.state, *_amounts(was, is_now), Text(verdict if right else "WRONG", style=style))
    others = [[seen for seen in listing if not any(one.id in seen.key for one in runs)] for listing in (before, after)]
    if any(others):
        grid.add_row("(gc's marker)", "", *_amounts(*others), "")
    out.print(grid)
    if wrong:
        raise ProofFailed(f"The bucket does not hold what it should of: {', '.join(wrong)}")
    kept = sum(one.stays for one in runs)
    freed = sum(seen.size for seen in before) - sum(seen.size for seen in after)
    out.print(f"Proven: {kept} runs kept, {len(runs) - kept} gone, {show_size(freed)} freed.", style="bold green")


def _of(one: Run, listing: list[Seen]) -> list[Seen]:
    return [seen for seen in listing if f"/{one.id}/" in seen.key]


def _amounts(was: list[Seen], is_now: list[Seen]) -> tuple[str, str]:
    then, now = (show_size(sum(seen.size for seen in listing)) for listing in (was, is_now))
    return f"{len(was)} → {len(is_now)}", f"{then} → {now}"


# The end


def _wait(stage: _Stage) -> None:
    out = stage.out
    _heading(out, 8, "Have a look yourself")
    out.print(f"The MLflow UI is at {stage.mlflow.uri}. For the commands above, in another terminal:")
    out.print(f"  cd {stage.folder}")
    out.print(f'  export PATH="{Path(sys.executable).parent}:$PATH"')
    for name, value in stage.s3.environ().items():
        out.print(f"  export {name}={value}")
    out.print("Ctrl-C stops the servers and removes the folder.", style="bold")
    sys.stdout.flush()
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    # MLflow prints too, and that goes to the log.
    with (
        tempfile.TemporaryDirectory(prefix="training-", dir=Path.cwd()) as _name,
        redirect_stdout(sys.stderr),
    ):
        _be_the_data_scientist(Path(_name), cast("TextIO", sys.__stdout__))
