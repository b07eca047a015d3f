"""Stock ``mlflow gc`` with us beside it: we delete what it asks for, and what stays keeps its row.

The command is known by click's current context. It asks a store which runs and logged models are deleted, an artifact
repository to delete each one's files, and the store to delete each one's row (mlflow/cli/__init__.py, 2.22 to 3.17):
each of these is answered by the one collection of the command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from mlflow_artifact_gc.collecting import Asked, Collection, Stores
from mlflow_artifact_gc.config import Server
from mlflow_artifact_gc.errors import ArtifactGcError
from mlflow_artifact_gc.model import EntityKind
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.quantities import parse_duration

_META: Final = "mlflow_artifact_gc"
_T = TypeVar("_T")
_built: list[str] = []
"""The tracking store that this process has built: a command line has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A running ``mlflow gc`` and what it is about. ``run_ids`` and ``logged_model_ids``: whether it names some."""

    collection: Collection
    names_runs: bool
    names_models: bool


def attach(store: Any) -> None:
    """Have a tracking store answer ``mlflow gc`` as we know it; in every other process it answers as MLflow's own."""
    _built[:] = [store.db_uri]
    for name, wrap in (
        ("_get_deleted_runs", _deleted_runs),
        ("_get_deleted_logged_models", _deleted_models),
        ("_hard_delete_run", _erasing(EntityKind.RUN)),
        ("_hard_delete_logged_model", _erasing(EntityKind.LOGGED_MODEL)),
        ("_hard_delete_experiment", _clearing),
    ):
        if original := getattr(store, name, None):
            setattr(store, name, wrap(original))


def stores_of_this_process() -> Stores | None:
    """The databases of a server's process, by MLflow's own variables; else the tracking store that was built here."""
    server = Server.from_env()
    if server.backend_store_uri:
        return Stores(
            backend_store_uri=server.backend_store_uri,
            registry_store_uri=server.registry_store_uri,
            artifacts_destination=server.artifacts_destination,
        )
    return Stores(backend_store_uri=_built[0], registry_store_uri=server.registry_store_uri) if _built else None


def current() -> Command | None:
    """The ``mlflow gc`` that this is part of; None in every other process, and where nobody has opted in.

    Raises:
        MlflowException: somebody has, and nothing may be touched.
    """
    context = click.get_current_context(silent=True)
    command = context.command if context else None
    if context is None or command is None or command.name != "gc" or not _built:
        return None
    if not getattr(command.callback, "__module__", "").startswith("mlflow."):
        return None
    begun: dict[str | None, Command | None] = context.meta.setdefault(_META, {})
    workspace = _workspace(context.params)
    if workspace not in begun:
        begun[workspace] = _begin(context, workspace)
    return begun[workspace]


def _workspace(params: dict[str, Any]) -> str | None:
    """The workspace that the command is at; None where there are no workspaces."""
    from mlflow import environment_variables as variables

    switch = getattr(variables, "MLFLOW_ENABLE_WORKSPACES", None)
    if switch is None or not switch.get():
        return None
    from mlflow.utils.workspace_context import get_request_workspace

    found: str | None = get_request_workspace()
    return found or params.get("workspace") or "default"


def _begin(context: click.Context, workspace: str | None) -> Command | None:
    given = context.params
    run_ids, experiment_ids, model_ids = (
        tuple(filter(None, (given.get(name) or "").split(",")))
        for name in ("run_ids", "experiment_ids", "logged_model_ids")
    )
    scope = Scope(run_ids=run_ids, experiment_ids=experiment_ids, logged_model_ids=model_ids, workspace=workspace)
    older_than = given.get("older_than")
    stores = Stores(
        backend_store_uri=_built[0],
        registry_store_uri=Server.from_env().registry_store_uri,
        artifacts_destination=given.get("artifacts_destination"),
    )

    def begin() -> Command | None:
        opened = context.with_resource(stores.opened())
        if opened is None:
            return None
        asked = Asked(scope=scope, by_id=scope.by_id, older_than_ms=parse_duration(older_than) if older_than else 0)
        return Command(
            collection=Collection(opened, asked, tell), names_runs=bool(run_ids), names_models=bool(model_ids)
        )

    return guarded(begin)


def tell(what: str) -> None:
    """A line for whoever runs the command."""
    click.echo(f"mlflow-artifact-gc: {what}", err=True)


def guarded(ask: Callable[[], _T]) -> _T:
    """The answer; an error of ours ends MLflow's command, or request, with its sentence."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_CONFLICT

    try:
        return ask()
    except ArtifactGcError as error:
        raise MlflowException(f"mlflow-artifact-gc: {error}", error_code=RESOURCE_CONFLICT) from None


# What a store is asked


def _deleted_runs(original: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def get_deleted_runs(older_than: int = 0) -> list[str]:
        command = current()
        if command is None or command.names_runs:
            return original(older_than=older_than)
        # MLflow asks for all runs of a deleted experiment, and gives up where one is not in this list.
        return guarded(lambda: command.collection.candidates(EntityKind.RUN))

    return get_deleted_runs


def _deleted_models(original: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def get_deleted_logged_models(older_than: int = 0) -> list[str]:
        command = current()
        if command is None or command.names_models:
            return original(older_than=older_than)
        found = original()
        wanted = set(guarded(lambda: command.collection.candidates(EntityKind.LOGGED_MODEL)))
        return [id_ for id_ in found if id_ in wanted]

    return get_deleted_logged_models


def _erasing(kind: EntityKind) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    def wrap(original: Callable[[str], None]) -> Callable[[str], None]:
        def hard_delete(id_: str) -> None:
            command = current()
            if command is None or command.collection.elsewhere(kind, id_):
                original(id_)
            elif why := guarded(lambda: command.collection.erase(kind, id_)):
                _stays(f"{kind.value.replace('_', ' ')} {id_}", why)

        return hard_delete

    return wrap


def _clearing(original: Callable[[str], None]) -> Callable[[str], None]:
    def hard_delete_experiment(experiment_id: str) -> None:
        command = current()
        why = guarded(lambda: command.collection.clear_experiment(str(experiment_id))) if command else ""
        if why:
            _stays(f"experiment {experiment_id}", why)
        else:
            original(experiment_id)

    return hard_delete_experiment


def _stays(what: str, why: str) -> None:
    tell(f"{what} was NOT deleted, whatever the next line says: {why}")
