"""Opens what a command or a worker works with: database, settings, registry, destination. One place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from mlflow_artifact_gc import database, inbox, journal, planning, policy, references, schema
from mlflow_artifact_gc import registry as model_registry
from mlflow_artifact_gc.errors import (
    DatabaseUnusable,
    ReferencesIncomplete,
    RootRefused,
    TablesNotReady,
    UnreadableUri,
    UsageError,
)
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Tombstone
from mlflow_artifact_gc.packed import Stones
from mlflow_artifact_gc.quantities import show_instant

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

_T = TypeVar("_T")
_CHUNK: Final = 500
MOST_KEPT: Final = 10_000
"""Logged models of deleted runs whose rows are read; beyond, to measure them lists for minutes."""
_SQL_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql")


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A database that is set up, its site, and the registry that protects. ``registry`` None: told to ignore it."""

    tracked: references.TrackingDatabase
    site: journal.Site
    registry: Engine | None
    destination: Destination
    mlflow_revision: str | None = None

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
    return open_on(
        open_engine(backend_store_uri),
        registry_store_uri=registry_store_uri,
        artifacts_destination=artifacts_destination,
        unsafe_ignore_registry=unsafe_ignore_registry,
    )


def open_on(
    engine: Engine,
    *,
    registry_store_uri: str | None,
    artifacts_destination: str | None,
    unsafe_ignore_registry: bool = False,
) -> Session:
    """The same on an engine that is open. Raises as ``open_session`` does."""
    with database.reading(engine) as connection:
        schema.require_current(connection)
        # A newer MLflow may have come since the engine was opened.
        database.require_mlflow(connection)
        revision = database.mlflow_revision(connection)
        site = journal.read_site(connection)
        own = database.fingerprint(connection)
        reports = inbox.servers(connection)
    if site is None:
        raise TablesNotReady("The site's settings are absent: run 'mlflow-artifact-gc init'")
    if reports:
        site = _carried(engine)
    if site.database_fingerprint != own:
        raise RootRefused(
            "This tracking database was set up on another database server or path: it is a copy, or it was moved. Only "
            "if it was moved, run 'mlflow-artifact-gc init --adopt'"
        )
    registry = None if unsafe_ignore_registry else open_registry(engine, site.registry_fingerprint, registry_store_uri)
    destination = readable_destination(artifacts_destination or site.artifacts_destination)
    tracked = references.TrackingDatabase.probe(engine, models_follow_run=site.models is journal.Models.FOLLOW_RUN)
    return Session(tracked=tracked, site=site, registry=registry, destination=destination, mlflow_revision=revision)


def report_server(engine: Engine, *, registry: str, destination: str | None) -> None:
    """Note which registry (by its fingerprint) and which artifacts destination a server has, unless that is known.

    Whoever opens the next session carries it into the site's settings, or finds that it contradicts them.
    """
    with database.reading(engine) as connection:
        site = journal.read_site(connection)
        told = {(note.entity_id, note.uri) for note in inbox.servers(connection)}
    known = (
        site is not None
        and site.registry_fingerprint == registry
        and destination
        in (
            None,
            site.artifacts_destination,
        )
    )
    if known or (registry, destination) in told:
        return
    row = inbox.note(inbox.Event.SERVER, inbox.Subject.SERVER, registry, uri=destination)
    with database.writing(engine) as connection:
        for statement in inbox.notes(connection.dialect.name, [row]):
            connection.execute(statement)


def _carried(engine: Engine) -> journal.Site:
    """The site's settings with what servers said of themselves; what contradicts them stays in the inbox.

    All in one transaction: an ``init`` at the same time comes before it or after it.

    Raises:
        ReferencesIncomplete: a server uses another registry, so what needs which artifacts is not known.
        RootRefused: a server keeps its artifacts elsewhere.
    """
    with database.writing(engine) as connection:
        reports = inbox.servers(connection)
        for report in reports:
            site = journal.read_site(connection)
            if site is None:
                break
            _require_agreement(site, report)
            now_ms = database.clock_ms(connection)
            journal.carry(connection, registry=report.entity_id, destination=report.uri, now_ms=now_ms)
        inbox.drained(connection, [report.id for report in reports])
        site = journal.read_site(connection)
    if site is None:
        raise TablesNotReady("The site's settings are absent: run 'mlflow-artifact-gc init'")
    return site


def _require_agreement(site: journal.Site, report: inbox.Note) -> None:
    when = show_instant(report.recorded_ms)
    if (site.registry_fingerprint or report.entity_id) != report.entity_id:
        raise ReferencesIncomplete(
            f"A server that was started at {when} uses another model registry than the site is known to use: run "
            "'mlflow-artifact-gc init --registry-store-uri URI' with the one in use"
        )
    if report.uri and site.artifacts_destination and not same_destination(report.uri, site.artifacts_destination):
        raise RootRefused(
            f"A server that was started at {when} has the artifacts destination {report.uri}, and the site's is "
            f"{site.artifacts_destination}: run 'mlflow-artifact-gc init --artifacts-destination URI' with the one "
            "in use"
        )


def same_destination(one: str, other: str) -> bool:
    """Whether two artifacts destinations are one place."""
    places = [readable_destination(uri).root for uri in (one, other)]
    return one == other or (places[0] is not None and places[0] == places[1])


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
        nothing_registered = model_registry.Registry(connection).empty
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
    if found == own and other is not engine:
        # One database, one engine: on SQLite our own transactions take turns by it.
        other.dispose()
        return engine
    return other


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What was decided, and what the databases hold beside it."""

    decisions: Sequence[Decision]
    rows: dict[tuple[EntityKind, str], int]
    kept_models: references.KeptModels
    facts: planning.Facts


def read(
    session: Session,
    scope: policy.Scope,
    *,
    cutoff_ms: int,
    include_undated: bool,
    again: bool,
    action: Action = Action.PURGE,
    all_known: bool = True,
    partial: bool = False,
) -> Reading:
    """Read tombstones first and references after, and decide. A purge takes up also what is hidden or tagged.

    Raises:
        UsageError: an id of ``scope`` is unknown or live; not without ``all_known``.
        ReferencesIncomplete, DatabaseUnusable: nothing may be touched.
    """
    with database.reading(session.engine) as connection:
        tracking = session.tracked.on(connection)
        if all_known and (problems := tracking.known(scope)):
            raise UsageError("; ".join(problems))
        census = tracking.census()
        tombstones = tracking.stones() if census.deleted else Stones()
        kept_models = tracking.models_of_deleted_runs(most=MOST_KEPT) if census.deleted else references.KeptModels()
        done = journal.done(connection)
    candidates = planning.Candidates(tombstones, session.destination)
    # Where nothing is deleted, nothing has to be protected.
    found = references.read(session.tracked, session.registry, candidates) if tombstones else []
    with session.tracked.reading() as tracking:
        owners = tracking.owners(planning.ids_in_places(tombstones))
    facts = planning.Facts(
        tombstones=tombstones,
        references=found,
        owners=owners,
        destination=session.destination,
        swept_ms=done.swept_ms,
        waiting_ms={} if action is Action.PURGE else done.waiting_ms,
        undone_ms=done.undone_ms,
        candidates=candidates,
    )
    made = planning.decisions(
        facts, scope, cutoff_ms=cutoff_ms, include_undated=include_undated, again=again, partial=partial
    )
    return Reading(decisions=made, rows=census.rows, kept_models=kept_models, facts=facts)


def places_beside(session: Session, lines: Iterable[Decision]) -> tuple[Location, ...]:
    """Locations of other rows of the same experiments: an object in one of them proves a root."""
    with session.tracked.reading() as tracking:
        samples = tracking.samples(sorted({line.entity.experiment_id for line in lines}))
    places = (policy.place_of(sample, session.destination).location for sample in samples)
    return tuple(place for place in places if place)


def decide(session: Session, entities: Sequence[Entity], cutoff_ms: int) -> Sequence[Decision]:
    """Decide on those of ``entities`` that are deleted now: their rows first, what refers to them after.

    Raises:
        DatabaseUnusable, ReferencesIncomplete: nothing can be decided.
    """
    tombstones: list[Tombstone] = []
    owners: dict[str, str] = {}
    for some in chunks(list(dict.fromkeys(entities))):
        with session.tracked.reading() as tracking:
            tombstones += tracking.tombstones(some)
    candidates = planning.Candidates(tombstones, session.destination)
    found = references.read(session.tracked, session.registry, candidates)
    for ids in chunks(sorted(planning.ids_in_places(tombstones))):
        with session.tracked.reading() as tracking:
            owners |= tracking.owners(ids)
    facts = planning.Facts(
        tombstones=tombstones,
        references=found,
        owners=owners,
        destination=session.destination,
        swept_ms={},
        candidates=candidates,
    )
    return planning.decisions(facts, policy.Scope(), cutoff_ms=cutoff_ms, include_undated=False, again=False)


def chunks(values: Sequence[_T]) -> Iterable[Sequence[_T]]:
    """In portions for one transaction each: on SQLite a user's commit waits until that has ended."""
    for start in range(0, len(values), _CHUNK):
        yield values[start : start + _CHUNK]
