"""Starts a worker beside ``mlflow server`` and looks after it: from the server's parent process, and only there.

That parent builds the stores in its main thread, lives as long as the server and does nothing else; click tells it
from every other process that builds a store. All of this happens in a thread of its own: neither the server's start
nor its end waits for it. The URIs go through a pipe, and when the parent is gone the pipe's end says so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mlflow_artifact_gc import database, schema, session
from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import ArtifactGcError
from mlflow_artifact_gc.hook.running import mlflow_command
from mlflow_artifact_gc.locations import without_secrets

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_logger = logging.getLogger("mlflow_artifact_gc")

_SHORTEST_S: Final = 5.0
_LONGEST_S: Final = 300.0
_LIVED_S: Final = 600.0
"""A worker that lived so long did not fail at its start."""
_LONGEST_ID: Final = 255
_started = threading.Event()


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """What ``mlflow server`` was started with. The URIs hold passwords."""

    backend_store_uri: str = field(repr=False)
    registry_store_uri: str = field(repr=False)
    artifacts_destination: str | None

    @classmethod
    def of_this_process(cls, store_uri: str) -> Server | None:
        """The server that this process is the parent of, or None: a client, a notebook, a job, ``mlflow gc``."""
        if threading.current_thread() is not threading.main_thread():
            return None
        context = mlflow_command("server")
        if context is None:
            return None
        given = context.params
        destination = given.get("artifacts_destination") if given.get("serve_artifacts") else None
        return cls(
            backend_store_uri=store_uri,
            registry_store_uri=given.get("registry_store_uri") or store_uri,
            artifacts_destination=without_secrets(destination) if destination else None,
        )


def start_beside_server(store: Any) -> None:
    """Report the server and start its worker, if this is a server's parent; once."""
    server = Server.of_this_process(store.db_uri)
    if server is None or _started.is_set():
        return
    _started.set()
    settings = Settings.from_env()
    threading.Thread(target=_host, args=(server, settings, store.engine), name="artifact-gc-host", daemon=True).start()


def _host(server: Server, settings: Settings, engine: Engine) -> None:
    try:
        report(server, engine)
    except Exception as error:
        _logger.warning("mlflow-artifact-gc could not note which registry this server uses: %s", _line(error))
    if settings.worker != "off":
        _look_after(server)


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, ArtifactGcError) else database.first_line(error)


def report(server: Server, engine: Engine) -> None:
    """Note which registry and which artifacts destination this server has, unless that is known.

    Raises:
        ArtifactGcError, SQLAlchemyError: it could not be noted.
    """
    with engine.connect() as connection:
        if schema.state(connection) is not schema.SchemaState.CURRENT:
            return
        registry = _registry(server, connection)
    session.report_server(engine, registry=registry, destination=server.artifacts_destination)


def _registry(server: Server, connection: Connection) -> str:
    if server.registry_store_uri == server.backend_store_uri:
        return database.fingerprint(connection)
    scheme = server.registry_store_uri.partition(":")[0]
    if scheme.partition("+")[0] not in database.SUPPORTED:
        return f"not-sql:{scheme}"[:_LONGEST_ID]
    other = database.open_engine(server.registry_store_uri)
    try:
        with database.reading(other) as there:
            return database.fingerprint(there)
    finally:
        other.dispose()


def _look_after(server: Server) -> None:
    """Start the worker, and again whenever it ends: later and later where it ends at once."""
    pause_s = _SHORTEST_S
    while True:
        began_s = time.monotonic()
        code = _run(server)
        if code is not None and time.monotonic() - began_s > _LIVED_S:
            pause_s = _SHORTEST_S
        _logger.warning("mlflow-artifact-gc: the worker ended with %s; the next starts in %.0f s", code, pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_S)


def _run(server: Server) -> int | None:
    command = [sys.executable, "-m", "mlflow_artifact_gc", "worker", "--embedded"]
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    except OSError as error:
        _logger.warning("mlflow-artifact-gc: the worker could not be started: %s", error)
        return None
    if child.stdin is None:
        raise AssertionError
    told = {
        "backend_store_uri": server.backend_store_uri,
        "registry_store_uri": server.registry_store_uri,
        "artifacts_destination": server.artifacts_destination,
    }
    # It may have ended already; then its code says so.
    with contextlib.suppress(OSError):
        child.stdin.write(json.dumps(told) + "\n")
        child.stdin.flush()
    code = child.wait()
    with contextlib.suppress(OSError):
        child.stdin.close()
    return code
