"""Has the recorder watch a store that MLflow has just built, and a worker started beside a server.

The store stays MLflow's own, of MLflow's own class (its server asks with ``isinstance``); only its session factory, the
attribute ``ManagedSessionMaker`` (2.22 to 3.17), is wrapped. What fails here is logged, and MLflow goes on.
"""

from __future__ import annotations

import logging
from typing import Any

_logger = logging.getLogger("mlflow_artifact_gc")


def attend(store: Any, *, hosts: bool = False, quiet: bool = False) -> None:
    """Watch ``store``; with ``hosts`` also start a worker, if this is a server's parent process. Never raises.

    Args:
        quiet: our tables may rightly be absent: a model registry in a database of its own has none.
    """
    try:
        from mlflow_artifact_gc.hook.recorder import Recorder

        Recorder(quiet=quiet).watch(store)
    except Exception as error:
        _tell("mlflow-artifact-gc records nothing of this store; MLflow works as without it", error)
    if not hosts:
        return
    try:
        from mlflow_artifact_gc.hook import stock_gc

        stock_gc.attach(store)
    except Exception as error:
        _tell("mlflow-artifact-gc cannot look after 'mlflow gc', and lets it end", error)
        _end_gc(store)
    try:
        from mlflow_artifact_gc.hook import host

        host.start_beside_server(store)
    except Exception as error:
        _tell("mlflow-artifact-gc starts no worker beside this server; MLflow works as without it", error)


def _end_gc(store: Any) -> None:
    """Have ``mlflow gc`` end before it does anything: where we could not attach, nobody would keep what is needed."""

    def get_deleted_runs(*_arguments: Any, **_named: Any) -> list[str]:
        from mlflow.exceptions import MlflowException

        raise MlflowException("mlflow-artifact-gc could not attach to MLflow, so 'mlflow gc' would delete unprotected")

    store._get_deleted_runs = get_deleted_runs


def _tell(what: str, error: Exception) -> None:
    # Its kind and place: its text, and the values in a traceback's lines, may be URIs with passwords.
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else "?"
    _logger.error("%s: %s at %s", what, type(error).__name__, place)
