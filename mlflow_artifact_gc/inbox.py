"""The inbox: what the hook notes in MLflow's own transactions, and what the worker takes out.

Append-only for the hook. A note is a hint with a date: what is deleted now, the worker asks of MLflow's own rows; only
of rows that are gone for good the note is all that is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import database
from mlflow_artifact_gc.tables import inbox, site

_ROWS: Final = 500
_IN_LIMIT: Final = 500
_URI: Final = 2048
_CLOCK_BACK_MS: Final = 3_600_000
_TRACE_TAGS: Final = ("mlflow.artifactLocation", "mlflow.trace.archiveLocation")


class Event(StrEnum):
    """What happened."""

    DELETED = "deleted"
    RESTORED = "restored"
    HARD_DELETED = "hard-deleted"
    """The row is gone for good."""
    REGISTERED = "registered"
    """What the model registry needs has changed, or what people hold: what was kept is looked at anew."""
    SERVER = "server"
    """A server started, and said which registry and which artifacts destination it has."""


class Subject(StrEnum):
    """To what."""

    EXPERIMENT = "experiment"
    RUN = "run"
    LOGGED_MODEL = "logged_model"
    TRACE = "trace"
    MODEL_VERSION = "model_version"
    REGISTERED_MODEL = "registered_model"
    HOLD = "hold"
    SERVER = "server"


NEEDING: Final = frozenset({Subject.MODEL_VERSION, Subject.REGISTERED_MODEL, Subject.HOLD})
"""What may need the artifacts of others."""

OWNERS: Final[Mapping[Subject, tuple[str, str]]] = {
    Subject.RUN: ("runs", "run_uuid"),
    Subject.LOGGED_MODEL: ("logged_models", "model_id"),
    Subject.TRACE: ("trace_info", "request_id"),
}
"""What owns artifacts: its table in MLflow's database, and the column of its id."""

_COLUMNS: Final = (
    "event",
    "entity_kind",
    "entity_id",
    "experiment_id",
    "workspace",
    "uri",
    "deleted_ms",
    "recorded_ms",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """A row of the inbox. ``deleted_ms`` is MLflow's date, ``recorded_ms`` the database's clock."""

    id: int
    event: Event
    subject: Subject
    entity_id: str
    experiment_id: str | None
    workspace: str | None
    uri: str | None
    deleted_ms: int | None
    recorded_ms: int


# Writing


def note(
    event: Event,
    subject: Subject,
    entity_id: str,
    *,
    experiment_id: str | None = None,
    uri: str | None = None,
    deleted_ms: int | None = None,
) -> dict[str, Any]:
    """The values of a row."""
    return {
        "event": event.value,
        "entity_kind": subject.value,
        "entity_id": entity_id,
        "experiment_id": experiment_id,
        "workspace": None,
        "uri": uri,
        "deleted_ms": deleted_ms,
    }


def notes(dialect: str, rows: Sequence[Mapping[str, Any]]) -> list[sa.Insert]:
    """Statements that append ``rows``, dated by the database's clock: one, unless there are hundreds.

    None is a plain INSERT of one row: where that meets a full disk, SQLite rolls the whole transaction back, MLflow's
    statements included; of a statement that may insert several rows it undoes that statement alone.
    """
    clock = database.clock_expression(dialect)
    # MySQL locks the whole table against other inserts while it does not know how many rows are to come.
    if len(rows) == 1 and dialect != "mysql":
        values = [sa.literal(rows[0][name], inbox.c[name].type) for name in _COLUMNS[:-1]]
        return [inbox.insert().from_select(_COLUMNS, sa.select(*values, clock))]
    portions = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
    if len(portions) > 1 and len(portions[-1]) == 1:
        portions[-2:] = [[*portions[-2], *portions[-1]]]
    return [inbox.insert().values([{**row, "recorded_ms": clock} for row in portion]) for portion in portions]


def keep_survivors(connection: Connection, tables: Mapping[str, sa.Table], gone: Mapping[Subject, Any]) -> None:
    """Append what is about to be deleted for good, with its URI: read from the rows themselves.

    One statement, except on MySQL. There it would lock the rows that it reads, the gaps beside them, and our table
    against other inserts until it has them all: other users would wait, and a deadlock would undo what MLflow does.

    Args:
        tables: MLflow's own, by name.
        gone: for each kind of owner the condition that its rows meet.
    """
    dialect = connection.dialect.name
    clock = database.clock_expression(dialect)
    queries = [_survivors(subject, tables, where, clock) for subject, where in gone.items()]
    query: Any = queries[0] if len(queries) == 1 else sa.union_all(*queries)
    if dialect != "mysql":
        connection.execute(inbox.insert().from_select(_COLUMNS, query))
        return
    rows = [dict(zip(_COLUMNS[:-1], row, strict=False)) for row in connection.execute(query)]
    for statement in notes(dialect, rows):
        connection.execute(statement)


def _survivors(
    subject: Subject, tables: Mapping[str, sa.Table], where: Any, clock: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    name, id_ = OWNERS[subject]
    table, experiments = tables[name], tables["experiments"]
    rows = table.join(experiments, table.c.experiment_id == experiments.c.experiment_id, isouter=True)
    uri: sa.ColumnElement[Any]
    if subject is Subject.TRACE:
        tags = tables["trace_tags"]
        rows = rows.join(tags, sa.and_(tags.c.request_id == table.c[id_], tags.c.key.in_(_TRACE_TAGS)))
        uri = tags.c.value
    else:
        uri = table.c.artifact_uri if subject is Subject.RUN else table.c.artifact_location
    return (
        sa.select(
            sa.literal_column(f"'{Event.HARD_DELETED.value}'").label("event"),
            sa.literal_column(f"'{subject.value}'").label("entity_kind"),
            table.c[id_],
            sa.cast(table.c.experiment_id, sa.String(32)),
            experiments.c.workspace if "workspace" in experiments.c else sa.cast(sa.null(), sa.String(255)),
            uri,
            sa.cast(sa.null(), sa.BigInteger),
            clock,
        )
        .select_from(rows)
        .where(where)
    )


# Taking out


def some(connection: Connection, *, after: int = 0, limit: int = _ROWS) -> list[Note]:
    """The oldest notes above ``after``; what servers said of themselves is not among them."""
    query = sa.select(inbox).where(inbox.c.id > after, inbox.c.event != Event.SERVER).order_by(inbox.c.id).limit(limit)
    return [_note(row) for row in connection.execute(query).mappings()]


@dataclass(frozen=True, kw_only=True, slots=True)
class News:
    """What waits in the inbox: what was deleted or restored, and the numbers of the notes of what was registered."""

    touched: frozenset[tuple[Subject, str]] = frozenset()
    registered: frozenset[int] = frozenset()


def since(connection: Connection, recorded_ms: int) -> News:
    """What has happened from that moment on (the database's clock), and waits in the inbox.

    Of what was registered also that of an hour before: a transaction may have begun before that moment, or the clock
    have been put back; whoever asks compares it with what there was when he asked first.
    """
    touched = sa.and_(inbox.c.recorded_ms >= recorded_ms, inbox.c.event.in_((Event.DELETED, Event.RESTORED)))
    registered = sa.and_(inbox.c.recorded_ms >= recorded_ms - _CLOCK_BACK_MS, inbox.c.event == Event.REGISTERED)
    query = sa.select(inbox.c.id, inbox.c.event, inbox.c.entity_kind, inbox.c.entity_id).where(
        sa.or_(touched, registered)
    )
    rows = connection.execute(query).all()
    return News(
        touched=frozenset((Subject(kind), id_) for _, event, kind, id_ in rows if event != Event.REGISTERED),
        registered=frozenset(number for number, event, _, _ in rows if event == Event.REGISTERED),
    )


def settings_ms(connection: Connection) -> int | None:
    """When the site's settings were written; None where they are absent, or where a server has said something since."""
    reported = sa.exists().where(inbox.c.event == Event.SERVER)
    row = connection.execute(sa.select(site.c.updated_ms, reported)).first()
    return None if row is None or row[1] else int(row[0])


def servers(connection: Connection) -> list[Note]:
    """What servers said of themselves and nobody has carried into the site's settings."""
    query = sa.select(inbox).where(inbox.c.event == Event.SERVER).order_by(inbox.c.id)
    return [_note(row) for row in connection.execute(query).mappings()]


def _note(row: sa.RowMapping) -> Note:
    names = ("id", "entity_id", "experiment_id", "workspace", "uri", "deleted_ms", "recorded_ms")
    return Note(event=Event(row["event"]), subject=Subject(row["entity_kind"]), **{name: row[name] for name in names})


def drained(connection: Connection, ids: Iterable[int]) -> None:
    """Remove notes that were worked off."""
    keys = list(ids)
    for start in range(0, len(keys), _IN_LIMIT):
        connection.execute(inbox.delete().where(inbox.c.id.in_(keys[start : start + _IN_LIMIT])))
