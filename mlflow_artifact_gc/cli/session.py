"""Opens what a command works with: the database, the site's settings, the registry, the destination. One place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_artifact_gc import database, journal, planning, policy, references, schema
from mlflow_artifact_gc.errors import (
    DatabaseUnusable,
    ReferencesIncomplete,
    RootRefused,
    TablesNotReady,
    UnreadableUri,
    UsageError,
)
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Decision, EntityKind

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

_SQL_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A database that is set up, its site, and the registry that protects. ``registry`` None: told to ignore it."""

    tracked: references.TrackingDatabase
    site: journal.Site
    registry: Engine | None
    destination: Destination

    @property
    def engine(self) -> Engine:
        return self.tracked.engine


def open_engine(uri: str | None) -> Engine:
    """The tracking database. Raises UsageError where none was named, DatabaseUnusable where it cannot be used."""
    if not uri:
        raise UsageError(
            "No database was named: give --backend-store-uri (or MLFLOW_BACKEND_STORE_URI) as 'mlflow server' has it"
        )
    engine = database.open_engine(uri)
    with database.reading(engine) as connection:
        database.require_mlflow(connection)
    return engine


def backend_uri(backend_store_uri: str | None, tracking_uri: str | None) -> tuple[str | None, str]:
    """The backend store, and a note: old scripts give it as the tracking URI."""
    if not tracking_uri:
        return backend_store_uri, ""
    if tracking_uri.partition(":")[0].partition("+")[0] in _SQL_SCHEMES:
        return backend_store_uri or tracking_uri, ""
    return backend_store_uri, "--tracking-uri is not needed: this command reads the database and S3 directly"


def open_session(
    *,
    backend_store_uri: str | None,
    registry_store_uri: str | None,
    artifacts_destination: str | None,
    unsafe_ignore_registry: bool,
) -> Session:
    """Everything that planning needs.

    Raises:
        DatabaseUnusable, TablesNotReady, ReferencesIncomplete, RootRefused: with what to do.
    """
    engine = open_engine(backend_store_uri)
    with database.reading(engine) as connection:
        schema.require_current(connection)
        site = journal.read_site(connection)
        own = database.fingerprint(connection)
    if site is None:
        raise TablesNotReady("The site's settings are absent: run 'mlflow-artifact-gc init'")
    if site.database_fingerprint != own:
        raise RootRefused(
            "This tracking database was set up on another database server or path: it is a copy, or it was moved. Only "
            "if it was moved, run 'mlflow-artifact-gc init --adopt'"
        )
    registry = None if unsafe_ignore_registry else open_registry(engine, site.registry_fingerprint, registry_store_uri)
    destination = readable_destination(artifacts_destination or site.artifacts_destination)
    tracked = references.TrackingDatabase.probe(engine, models_follow_run=site.models is journal.Models.FOLLOW_RUN)
    return Session(tracked=tracked, site=site, registry=registry, destination=destination)


def readable_destination(uri: str | None) -> Destination:
    """The artifacts destination. Raises UsageError where it cannot be read."""
    try:
        return Destination.parse(uri)
    except UnreadableUri as error:
        raise UsageError(
            f"The artifacts destination cannot be read: {error}; expected for example s3://bucket/prefix"
        ) from error


def registry_engine(uri: str) -> Engine:
    """The registry's own database. Raises ReferencesIncomplete where it cannot be read."""
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _SQL_SCHEMES:
        raise ReferencesIncomplete(
            f"A model registry of the kind {scheme!r} cannot be read, so what it needs is not known: expected the "
            "URI of a database. Only 'gc --unsafe-ignore-registry' goes on without it"
        )
    try:
        return database.open_engine(uri)
    except DatabaseUnusable as error:
        raise ReferencesIncomplete(
            f"The model registry (--registry-store-uri) cannot be read, so nothing was touched: {error}"
        ) from error


def open_registry(engine: Engine, expected: str | None, uri: str | None) -> Engine:
    """The registry that the site uses, checked by its fingerprint.

    Raises:
        ReferencesIncomplete: it is not known, or it is another one.
    """
    other = registry_engine(uri) if uri else engine
    with database.reading(other) as connection:
        found = database.fingerprint(connection)
        nothing_registered = references.Registry(connection).empty
    with database.reading(engine) as connection:
        own = database.fingerprint(connection)
    if expected is None and (found != own or nothing_registered):
        raise ReferencesIncomplete(
            "Which model registry the server uses is not known: this database holds no model version. Run "
            "'mlflow-artifact-gc init --registry-store-uri URI' once, with the backend store's own URI if they are one"
            if found == own
            else "This is not the model registry that the site is known to use: run 'mlflow-artifact-gc init "
            "--registry-store-uri URI' if the server uses it"
        )
    if expected is not None and found != expected:
        raise ReferencesIncomplete(
            "The site's model registry is in another database: give it with --registry-store-uri, or run "
            "'mlflow-artifact-gc init --registry-store-uri URI' if the server uses this one"
        )
    return other


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What was decided, and what the databases hold beside it."""

    decisions: tuple[Decision, ...]
    rows: dict[tuple[EntityKind, str], int]
    kept_models: int


def read(session: Session, scope: policy.Scope, *, cutoff_ms: int, include_undated: bool, again: bool) -> Reading:
    """Read tombstones first and references after, and decide.

    Raises:
        UsageError: an id of ``scope`` is unknown or live.
        ReferencesIncomplete, DatabaseUnusable: nothing may be touched.
    """
    with database.reading(session.engine) as connection:
        tracking = session.tracked.on(connection)
        problems = tracking.known(scope)
        if problems:
            raise UsageError("; ".join(problems))
        tombstones = tracking.tombstones()
        rows = tracking.entity_rows()
        kept_models = tracking.models_of_deleted_runs()
        swept = journal.swept(connection)
    found = references.read(session.tracked, session.registry)
    with session.tracked.reading() as tracking:
        owners = tracking.owners(planning.ids_in_places(tombstones))
    facts = planning.Facts(
        tombstones=tombstones, references=found, owners=owners, destination=session.destination, swept_ms=swept
    )
    made = planning.decisions(facts, scope, cutoff_ms=cutoff_ms, include_undated=include_undated, again=again)
    return Reading(decisions=made, rows=rows, kept_models=kept_models)


def places_beside(session: Session, lines: tuple[Decision, ...]) -> tuple[Location, ...]:
    """Locations of other rows of the same experiments: an object in one of them proves a root."""
    with session.tracked.reading() as tracking:
        samples = tracking.samples(sorted({line.entity.experiment_id for line in lines}))
    places = (policy.place_of(sample, session.destination).location for sample in samples)
    return tuple(place for place in places if place)
