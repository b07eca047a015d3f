"""Stock ``mlflow gc`` with us beside it: we delete what it asks for, and what stays keeps its row.

The command is known by click's current context. It asks a store which runs and logged models are deleted, then for each
one's row, an artifact repository for its URI to delete the files, and the store to delete the row
(mlflow/cli/__init__.py, 2.22 to 3.17). Here the row that it gets has a URI of ours, so that the one collection of the
command answers for the entity itself, wherever its artifacts lie; what lies outside S3 keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import click

from mlflow_artifact_gc.collecting import Asked, CommandCollection, Stores
from mlflow_artifact_gc.config import Server
from mlflow_artifact_gc.errors import ArtifactGcError
from mlflow_artifact_gc.hook.running import mlflow_command
from mlflow_artifact_gc.model import EntityKind
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.quantities import parse_duration

SCHEME: Final = "artifact-gc"
_T = TypeVar("_T")
_META: Final = "mlflow_artifact_gc"
_IDS: Final = ("run_ids", "experiment_ids", "logged_model_ids")
_built: dict[str, None] = {}
"""The URIs of the tracking stores that this process has built, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A running ``mlflow gc`` on one store. ``named``: what it was given ids of."""

    collection: CommandCollection
    named: frozenset[EntityKind]


_Begun = dict[tuple[click.Context, str, str | None], Command | None]


def attach(store: Any) -> None:
    """Have a tracking store answer ``mlflow gc`` as we know it; in every other process it answers as MLflow's own."""
    uri: str = store.db_uri
    _built[uri] = None
    for name, wrap in (
        ("_get_deleted_runs", _listing(EntityKind.RUN)),
        ("_get_deleted_logged_models", _listing(EntityKind.LOGGED_MODEL)),
        ("get_run", _looking(EntityKind.RUN)),
        ("get_logged_model", _looking(EntityKind.LOGGED_MODEL)),
        ("_hard_delete_run", _erasing(EntityKind.RUN)),
        ("_hard_delete_logged_model", _erasing(EntityKind.LOGGED_MODEL)),
        ("_hard_delete_experiment", _clearing),
    ):
        if original := getattr(store, name, None):
            setattr(store, name, wrap(original, uri))


def stores_of_this_process() -> list[Stores]:
    """The databases of a server's process, by MLflow's own variables; else of the tracking stores that it has built."""
    server = Server.from_env()
    if server.backend_store_uri:
        return [
            Stores(
                backend_store_uri=server.backend_store_uri,
                registry_store_uri=server.registry_store_uri,
                artifacts_destination=server.artifacts_destination,
            )
        ]
    return [Stores(backend_store_uri=uri, registry_store_uri=server.registry_store_uri) for uri in _built]


def _context() -> click.Context | None:
    context = mlflow_command("gc")
    if context is None:
        return None
    # A context that somebody has made without its parameters says nothing of what was asked for.
    return context if set(_IDS) <= {*context.params, *_lacking(context.command)} else None


def _lacking(command: click.Command) -> set[str]:
    """Options that this MLflow does not have (logged models came with 3.0)."""
    return set(_IDS) - {parameter.name for parameter in command.params}


def current(uri: str) -> Command | None:
    """The ``mlflow gc`` that this store answers; None in every other process, and where nobody has opted in.

    Raises:
        MlflowException: somebody has, and nothing may be touched.
    """
    context = _context()
    if context is None:
        return None
    begun: _Begun = context.meta.setdefault(_META, {})
    workspace = _workspace(context.params)
    # Whoever calls the command several times does so in contexts that share their meta.
    key = context, uri, workspace
    if key not in begun:
        first = all(of is not context for of, _, _ in begun)
        begun[key] = guarded(lambda: _begin(context, uri, workspace, first=first))
    return begun[key]


def answering(uri: str) -> tuple[Command, EntityKind, str]:
    """The command and the entity that a URI of ours was made for."""
    context = _context()
    begun: _Begun = context.meta.get(_META, {}) if context else {}
    kind, _, id_ = uri.partition(":")[2].lstrip("/").partition("/")
    if context is not None:
        workspace = _workspace(context.params)
        for (of_context, _, of_workspace), command in begun.items():
            if command is not None and of_context is context and of_workspace == workspace:
                return command, EntityKind(kind), id_
    raise guarded_error(f"{uri} is no place: it means something inside 'mlflow gc' alone")


def _workspace(params: dict[str, Any]) -> str | None:
    """The workspace that the command is at; None where there are no workspaces."""
    from mlflow import environment_variables as variables

    switch = getattr(variables, "MLFLOW_ENABLE_WORKSPACES", None)
    if switch is None or not switch.get():
        return None
    from mlflow.utils.workspace_context import get_request_workspace

    found: str | None = get_request_workspace()
    return found or params.get("workspace") or "default"


def _begin(context: click.Context, uri: str, workspace: str | None, *, first: bool) -> Command | None:
    given = context.params
    run_ids, experiment_ids, model_ids = (tuple(filter(None, (given.get(name) or "").split(","))) for name in _IDS)
    older_than = given.get("older_than")
    stores = Stores(
        backend_store_uri=uri,
        registry_store_uri=Server.from_env().registry_store_uri,
        artifacts_destination=given.get("artifacts_destination"),
    )
    opened = context.with_resource(stores.opened())
    if opened is None:
        return None
    asked = Asked(
        scope=Scope(run_ids=run_ids, experiment_ids=experiment_ids, logged_model_ids=model_ids, workspace=workspace),
        # A list of commas alone names nothing, and not everything.
        by_id=any(given.get(name) for name in _IDS),
        older_than_ms=parse_duration(older_than) if older_than else 0,
    )
    if first and given.get("all_workspaces"):
        everything = replace(asked, scope=replace(asked.scope, workspace=None))
        CommandCollection(opened, everything, tell).require_within_brakes()
    given_ids = ((EntityKind.RUN, run_ids), (EntityKind.LOGGED_MODEL, model_ids))
    return Command(
        collection=CommandCollection(opened, asked, tell, _opens),
        named=frozenset(kind for kind, ids in given_ids if ids),
    )


def _opens(uri: str) -> bool:
    from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
    from mlflow.utils.uri import get_uri_scheme

    return get_uri_scheme(uri) in get_registered_artifact_repositories()


def tell(what: str) -> None:
    """A line for whoever runs the command."""
    click.echo(f"mlflow-artifact-gc: {what}", err=True)


def guarded(ask: Callable[[], _T]) -> _T:
    """The answer; an error of ours ends MLflow's command, or request, with its sentence."""
    try:
        return ask()
    except ArtifactGcError as error:
        raise guarded_error(str(error)) from None


def guarded_error(message: str) -> Exception:
    """An error of MLflow's own kind, over HTTP a 409, which no client of MLflow's sends again."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_CONFLICT

    made: Exception = MlflowException(f"mlflow-artifact-gc: {message}", error_code=RESOURCE_CONFLICT)
    return made


# What a store is asked


def _listing(kind: EntityKind) -> Callable[[Callable[..., list[str]], str], Callable[..., list[str]]]:
    def wrap(original: Callable[..., list[str]], uri: str) -> Callable[..., list[str]]:
        def get_deleted(*arguments: Any, **named: Any) -> list[str]:
            command = current(uri)
            found = original(*arguments, **named)
            if command is None or kind in command.named:
                return found
            return guarded(lambda: command.collection.candidates(kind, found))

        return get_deleted

    return wrap


def _looking(kind: EntityKind) -> Callable[[Callable[..., Any], str], Callable[..., Any]]:
    def wrap(original: Callable[..., Any], uri: str) -> Callable[..., Any]:
        def look(*arguments: Any, **named: Any) -> Any:
            command = current(uri)
            found = original(*arguments, **named)
            if command is None:
                return found
            id_ = str(found.info.run_id if kind is EntityKind.RUN else found.model_id)
            if not guarded(lambda: command.collection.elsewhere(kind, id_)):
                ours = f"{SCHEME}:/{kind.value}/{id_}"
                if kind is EntityKind.RUN:
                    found.info._artifact_uri = ours
                else:
                    found._artifact_location = ours
            return found

        return look

    return wrap


def _erasing(kind: EntityKind) -> Callable[[Callable[[str], None], str], Callable[[str], None]]:
    def wrap(original: Callable[[str], None], uri: str) -> Callable[[str], None]:
        def hard_delete(*arguments: str, **named: str) -> None:
            command = current(uri)
            (id_,) = (*arguments, *named.values())
            if command is None:
                original(id_)
            elif why := guarded(lambda: command.collection.erase(kind, id_)):
                _stays(f"{kind.value.replace('_', ' ')} {id_}", why)

        return hard_delete

    return wrap


def _clearing(original: Callable[[str], None], uri: str) -> Callable[[str], None]:
    def hard_delete_experiment(experiment_id: str) -> None:
        command = current(uri)
        why = guarded(lambda: command.collection.clear_experiment(str(experiment_id))) if command else ""
        if why:
            _stays(f"experiment {experiment_id}", why)
        else:
            original(experiment_id)

    return hard_delete_experiment


def _stays(what: str, why: str) -> None:
    tell(f"{what} was NOT deleted, whatever the next line says: {why}")
