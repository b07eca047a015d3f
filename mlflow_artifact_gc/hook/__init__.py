"""MLflow's way into this package: the builders that ``setup.py`` names as entry points for MLflow's own schemes.

``import mlflow`` loads this module, and whatever it raised would break that import for everybody: so it imports
nothing. The builders are MLflow's own, and what of ours fails to load or to start leaves MLflow's store as it is.

What this relies on, pinned by tests: the private builders beside MLflow's registries of stores (2.22 to 3.17).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DEPTH = 10


def tracking_store(store_uri: str | None = None, artifact_uri: str | None = None) -> Any:
    """MLflow's SQL tracking store, with its deletions recorded (entry point group ``mlflow.tracking_store``)."""
    from mlflow.tracking._tracking_service import utils

    build = _server_builder("TrackingStoreRegistryWrapper") or utils._get_sqlalchemy_store
    return _attended(build(store_uri, artifact_uri), hosts=True)


def model_registry_store(store_uri: str | None = None) -> Any:
    """MLflow's SQL model registry, with its changes recorded (group ``mlflow.model_registry_store``)."""
    from mlflow.tracking._model_registry import utils

    build = _server_builder("ModelRegistryStoreRegistryWrapper") or utils._get_sqlalchemy_store
    return _attended(build(store_uri), quiet=True)


def workspace_store(workspace_uri: str | None = None) -> Any:
    """MLflow's SQL workspace store (from 3.10 on), with what it deletes recorded (``mlflow.workspace_provider``)."""
    from mlflow.tracking._workspace import registry

    return _attended(registry._get_sqlalchemy_workspace_store(workspace_uri))


def s3_artifacts(artifact_uri: str, **stores: Any) -> Any:
    """MLflow's S3 artifact repository, with deletions that are ours (group ``mlflow.artifact_repository``)."""
    build: Any
    try:
        from mlflow_artifact_gc.hook import artifacts

        build = artifacts.S3Repository
    except Exception as error:
        from mlflow.store.artifact import s3_artifact_repo

        build = s3_artifact_repo.S3ArtifactRepository
        _cannot_be_loaded("deletes as MLflow does", error)
    return build(artifact_uri, **stores)


def gc_artifacts(artifact_uri: str, **stores: Any) -> Any:
    """What ``mlflow gc`` meets in the place of an entity's own repository (the same group)."""
    from mlflow_artifact_gc.hook import artifacts

    return artifacts.GcRepository(artifact_uri, **stores)


def _server_builder(name: str) -> Any:
    """The builder of the server's own registry, if that one asks: it knows of a read replica, the client's does not.

    A server process uses both, and both call with the same arguments; only the caller tells.
    """
    import sys

    registry = getattr(sys.modules.get("mlflow.server.handlers"), name, None)
    frame, depth = sys._getframe(1), 0
    while registry is not None and frame.f_back is not None and depth < _DEPTH:
        frame, depth = frame.f_back, depth + 1
        # Not isinstance: that asks a strange object for its __class__, and proxies answer with errors.
        if issubclass(type(frame.f_locals.get("self")), registry):
            return registry._get_sqlalchemy_store
    return None


def _attended(store: Any, *, hosts: bool = False, quiet: bool = False) -> Any:
    try:
        from mlflow_artifact_gc.hook import stores

        stores.attend(store, hosts=hosts, quiet=quiet)
    except Exception as error:
        _cannot_be_loaded("records nothing", error)
    return store


def _cannot_be_loaded(and_so: str, error: Exception) -> None:
    import logging

    # Of the error its kind alone: its text may hold a URI.
    logging.getLogger("mlflow_artifact_gc").error(
        "mlflow-artifact-gc cannot be loaded and %s; MLflow works as without it: %s", and_so, type(error).__name__
    )
