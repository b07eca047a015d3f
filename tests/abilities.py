"""What the MLflow that is installed here can do, found by looking, and the one way to skip a test for what it cannot.

A test says ``@needs("workspaces")``; a helper that makes something says ``need("logged_models")``, and whoever calls it
is skipped. Only where ``TESTS_MLFLOW=old`` says that an old MLflow is tested: on every other one it is a failure, so
that nothing that the newest MLflow has taken away can pass as a skip.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable
from typing import Any, Final

import pytest

OLD: Final = "TESTS_MLFLOW"


def _store() -> Any:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore


def _jobs() -> bool:
    return importlib.util.find_spec("mlflow.server.jobs") is not None


def _uvicorn() -> bool:
    return importlib.util.find_spec("mlflow.server.fastapi_app") is not None


def _logged_models() -> bool:
    return hasattr(_store(), "create_logged_model")


def _gc_of_logged_models() -> bool:
    return hasattr(_store(), "_hard_delete_logged_model")


def _traces_by_info() -> bool:
    import mlflow.entities

    return hasattr(mlflow.entities, "TraceState")


def _traces_that_go_with_their_experiment() -> bool:
    # Before, MLflow's own deletion of an experiment for good failed where it had traces.
    from mlflow.store.tracking.dbmodels.models import SqlExperiment
    from sqlalchemy.orm import configure_mappers

    configure_mappers()
    return hasattr(SqlExperiment, "trace_infos")


def _presigned_urls() -> bool:
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    return hasattr(S3ArtifactRepository, "create_presigned_upload_url")


def _deletions_that_spare_siblings() -> bool:
    from mlflow.store.artifact import artifact_repo

    return hasattr(artifact_repo, "_is_object_key_within_path")


def _trace_archives() -> bool:
    return hasattr(_store(), "archive_traces")


def _workspaces() -> bool:
    return importlib.util.find_spec("mlflow.tracking._workspace") is not None


def _read_replicas() -> bool:
    return "read_db_uri" in inspect.signature(_store().__init__).parameters


ABILITIES: Final[dict[str, Callable[[], bool]]] = {
    "deletions_that_spare_siblings": _deletions_that_spare_siblings,
    "gc_of_logged_models": _gc_of_logged_models,
    "jobs": _jobs,
    "logged_models": _logged_models,
    "presigned_urls": _presigned_urls,
    "read_replicas": _read_replicas,
    "trace_archives": _trace_archives,
    "traces_by_info": _traces_by_info,
    "traces_that_go_with_their_experiment": _traces_that_go_with_their_experiment,
    "uvicorn": _uvicorn,
    "workspaces": _workspaces,
}
"""Each ability that some test needs, and how to see whether it is there."""


def is_old() -> bool:
    """Whether the MLflow that is tested is said to be an old one."""
    return os.environ.get(OLD) == "old"


def has(ability: str) -> bool:
    """Whether it is there; for helpers that have another way. Where it must be there, it is not even asked for."""
    return not is_old() or ABILITIES[ability]()


def need(ability: str) -> None:
    """Skip the test where this old MLflow lacks the ability."""
    if not has(ability):
        pytest.skip(f"this old MLflow lacks: {ability}")


def needs(*abilities: str) -> pytest.MarkDecorator:
    """Mark a test, or one of its parameters, as one for an MLflow that has these abilities."""
    unknown = set(abilities) - set(ABILITIES)
    if unknown:
        raise ValueError(f"abilities that tests/abilities.py does not know: {sorted(unknown)}")
    return pytest.mark.needs(*abilities)
