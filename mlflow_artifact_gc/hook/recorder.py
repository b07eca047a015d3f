"""Notes in our inbox what MLflow's sessions delete and restore, in MLflow's own transaction and inside a savepoint.

It only inserts (and, for a registration, reads one table of ours by key): no lock that a worker could hold, no network,
no S3. Whatever goes wrong is logged, and the user's statement goes on; a scan of the tombstones finds what was missed.

What a session shows, on MLflow 2.16 to 3.17: every soft delete and every restore is a changed attribute; hard deletes
are ORM deletes or bulk DELETE statements, and some rows go by the database's own cascade. What is gone for good is read
before it goes. All else is noted after MLflow's own statements: they come first to whatever locks and space there are.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import PassiveFlag

from mlflow_artifact_gc import database, inbox, journal
from mlflow_artifact_gc.inbox import Event, Subject

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.orm import ORMExecuteState, Session

    _Maker = Callable[..., AbstractContextManager[Session]]

_logger = logging.getLogger("mlflow_artifact_gc")

_DELETED: Final = "deleted"
_DELETED_VERSION: Final = "Deleted_Internal"
_RETRY_S: Final = 1.0
"""How long a database without our tables is left alone before the next try."""
_KEYS: Final = 2000
"""How many keys one statement names at most; SQLite takes 32,766 values, and each key may count three times."""
_SEEN: Final = "artifact_gc_experiments"
_SUBJECTS: Final = {
    "experiments": Subject.EXPERIMENT,
    "runs": Subject.RUN,
    "logged_models": Subject.LOGGED_MODEL,
    "trace_info": Subject.TRACE,
    "model_versions": Subject.MODEL_VERSION,
    "registered_models": Subject.REGISTERED_MODEL,
}
_STAGES: Final = (Subject.EXPERIMENT, Subject.RUN, Subject.LOGGED_MODEL, Subject.MODEL_VERSION)
_ABSENT: Final = ("no such table", "no such column", "has no column")
_ABSENT_CODES: Final = ("42P01", "42703")
"""PostgreSQL's codes for no such table and no such column; its texts depend on the server's language."""
_ABSENT_NUMBERS: Final = (1146, 1054)
"""MySQL's."""

# An exclusive lock on a table of ours (a migration, VACUUM FULL) must not keep a user waiting. The limit holds inside
# the savepoint alone: going back to it takes the setting back, and who leaves it in peace restores what was set.
_LOCK_MS: Final = 250
# On MySQL the least is a second. Nothing has to be taken back there: it is the limit of a statement. (A worker's locks
# are not what it is for: what is appended there waits for no row.)
_LOCK_S: Final = 1
_LIMITS: Final = {
    True: ("INSERT ", f"SET STATEMENT lock_wait_timeout = {_LOCK_S}, innodb_lock_wait_timeout = {_LOCK_S} FOR INSERT "),
    False: ("INSERT ", f"INSERT /*+ SET_VAR(lock_wait_timeout = {_LOCK_S}) */ "),
}
"""What an INSERT begins with instead, on MariaDB and on MySQL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """What is sent around our statements, so that they can be undone alone.

    Not SQLAlchemy's own savepoints: they are entangled with the session's transaction when one of them dies.
    """

    enter: tuple[str, ...]
    leave: tuple[str, ...] = ("RELEASE SAVEPOINT artifact_gc",)
    undo: tuple[str, ...] = ("ROLLBACK TO SAVEPOINT artifact_gc", "RELEASE SAVEPOINT artifact_gc")


_FRAMES: Final = {
    "sqlite": _Frame(enter=("SAVEPOINT artifact_gc",)),
    "postgresql": _Frame(
        enter=(
            "SAVEPOINT artifact_gc",
            "SELECT set_config('artifact_gc.lock_timeout', current_setting('lock_timeout'), true)",
            f"SELECT set_config('lock_timeout', '{_LOCK_MS}', true)",
        ),
        leave=(
            "SELECT set_config('lock_timeout', current_setting('artifact_gc.lock_timeout'), true)",
            "RELEASE SAVEPOINT artifact_gc",
        ),
    ),
    "mysql": _Frame(enter=("SAVEPOINT artifact_gc",)),
}
# Python's sqlite3 opens the transaction at the first statement that writes. Until then a savepoint would be one of its
# own, and be committed at its end; and all that there is to undo is ours.
_FIRST: Final = _Frame(enter=("BEGIN",), leave=(), undo=("ROLLBACK",))
_TAKES_SEVERAL: Final = ("psycopg2", "psycopg")
"""The drivers that send several statements in one round trip."""


class Recorder:
    """Watches the sessions of one store. ``quiet``: say nothing where our tables are absent."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._off_until_s = 0.0
        self._told = quiet
        self._beside: Engine | None = None
        self._opening = threading.Lock()

    def watch(self, store: Any) -> None:
        """Have every writing session of ``store`` watched."""
        store.ManagedSessionMaker = self._watched(store.ManagedSessionMaker)

    def _watched(self, maker: _Maker) -> _Maker:
        # Before 3.13 every session may write; since then a session says so, and reads may go to a replica.
        says = "read_only" in inspect.signature(maker).parameters

        @contextmanager
        def make(*args: Any, **kwargs: Any) -> Iterator[Session]:
            with maker(*args, **kwargs) as session:
                if not says or not (args[0] if args else kwargs.get("read_only", True)):
                    self._listen(session)
                yield session

        return make

    def _listen(self, session: Session) -> None:
        try:
            event.listen(session, "before_flush", self._before_flush)
            event.listen(session, "after_flush", self._after_flush)
            event.listen(session, "do_orm_execute", self._before_statement)
        except Exception as error:
            self._unseen(error)

    # What MLflow does

    def _before_flush(self, session: Session, _context: object, _instances: object) -> None:
        if not session.deleted or self._is_off():
            return
        try:
            tables = _tables(session.deleted)
            gone = _gone(session, tables)
        except Exception as error:
            self._unseen(error)
            return
        if gone:
            self._write(session, lambda connection: _append_survivors(connection, tables, gone))

    def _before_statement(self, state: ORMExecuteState) -> None:
        if not state.is_delete or self._is_off():
            return
        try:
            statement: Any = state.statement
            subject = _SUBJECTS.get(statement.table.name)
            if subject is None or subject not in inbox.OWNERS:
                return
            gone = {subject: sa.true() if statement.whereclause is None else statement.whereclause}
            tables = statement.table.metadata.tables
        except Exception as error:
            self._unseen(error)
            return
        self._write(state.session, lambda connection: _append_survivors(connection, tables, [gone]))

    def _after_flush(self, session: Session, _context: object) -> None:
        if self._is_off():
            return
        try:
            noted = [*_changes(session), *_registry_changes(session)]
            registered = _registered(session)
        except Exception as error:
            self._unseen(error)
            return
        if not noted:
            return
        being_swept: list[str] = []
        asked: list[bool] = []

        def write(connection: Connection) -> None:
            for statement in inbox.notes(connection.dialect.name, noted):
                connection.execute(statement)

        def write_and_ask(connection: Connection) -> None:
            write(connection)
            asked.append(True)
            with self._seeing_what_is(connection) as seeing:
                being_swept.extend(journal.being_swept(seeing, registered))

        if not self._write(session, write_and_ask if registered else write) and asked:
            # The question failed, and its frame took the note along, by which a sweep sees that there is something new.
            self._write(session, write)
        if being_swept:
            raise _refusal(being_swept[0])

    # Writing it down

    def _is_off(self) -> bool:
        return time.monotonic() < self._off_until_s

    def _write(self, session: Session, write: Callable[[Connection], None]) -> bool:
        """Carry out ``write``; where it fails, undo it, complain, and say so. The user's statement goes on."""
        try:
            connection = session.connection()
            begun = _in_transaction(connection)
        except Exception as error:
            self._complain(error)
            return False
        failure, undone = _framed(connection, _FRAMES[connection.dialect.name] if begun else _FIRST, write)
        if failure is None:
            return True
        self._complain(failure, connection)
        if begun and not _in_transaction(connection, undone=undone):
            raise _undone()
        return False

    @contextmanager
    def _seeing_what_is(self, connection: Connection) -> Iterator[Connection]:
        """What sees a claim that was committed just now.

        MySQL's default shows a transaction what was there when it began. A locking read would show more, and wait for
        a worker. So it is asked over a connection beside it: not one of MLflow's pool, which may be exhausted by those
        who ask.
        """
        if connection.dialect.name != "mysql":
            yield connection
            return
        with self._opening:
            if self._beside is None:
                pool = connection.engine.pool.recreate()
                self._beside = sa.create_engine(connection.engine.url, pool=pool, isolation_level="AUTOCOMMIT")
                event.listen(self._beside, "connect", _limit_waiting)
        with self._beside.connect() as beside:
            yield beside

    def _complain(self, error: Exception, connection: Connection | None = None) -> None:
        if _is_absent(error):
            self._off_until_s = time.monotonic() + _RETRY_S
            if not self._told:
                self._told = True
                _logger.warning(
                    "mlflow-artifact-gc is installed and not switched on for this database, or its tables are not of "
                    "this version: run 'mlflow-artifact-gc init --backend-store-uri URI' with its URI"
                )
            return
        _logger.error(
            "mlflow-artifact-gc could not note a deletion, which goes on; a later scan takes it up: %s",
            database.first_line(error, connection.engine.url if connection else None),
        )

    def _unseen(self, error: Exception) -> None:
        # No traceback: what an error of SQLAlchemy says holds the statement and its values.
        _logger.error(
            "mlflow-artifact-gc could not see what was deleted; the deletion goes on: %s: %s",
            type(error).__name__,
            database.first_line(error),
        )


def _is_absent(error: Exception) -> bool:
    """Whether it is tables or columns of ours that are missing."""
    origin: Any = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(origin, "pgcode", None) or getattr(origin, "sqlstate", None)
    said = str(origin).lower()
    if database.number_of(origin) in _ABSENT_NUMBERS and isinstance(error, DBAPIError):
        return "artifact_gc_" in str(error.statement)
    return "artifact_gc_" in said and (code in _ABSENT_CODES or any(text in said for text in _ABSENT))


def _in_transaction(connection: Connection, *, undone: bool = True) -> bool:
    """Whether the database has the transaction still open.

    SQLite may roll one back as a whole, as when the disk fails, and MySQL does so to end a deadlock: there is no
    savepoint then to go back to, and MLflow would commit the rest.
    """
    if connection.dialect.name == "mysql":
        return undone
    driver: Any = connection.connection
    return connection.dialect.name != "sqlite" or bool(driver.in_transaction)


def _framed(
    connection: Connection, frame: _Frame, write: Callable[[Connection], None]
) -> tuple[Exception | None, bool]:
    """Carry out ``write``; where it fails, the error, and whether it could be undone."""
    try:
        _send(connection, frame.enter)
        with _limited(connection):
            write(connection)
        _send(connection, frame.leave)
    except Exception as error:
        # Where this fails too, connection or transaction are lost: of a connection MLflow hears itself.
        with suppress(Exception):
            _send(connection, frame.undo)
            return error, True
        return error, False
    return None, True


@contextmanager
def _limited(connection: Connection) -> Iterator[None]:
    """On MySQL: what is inserted meanwhile does not wait long for a lock on our table."""
    if connection.dialect.name != "mysql":
        yield
        return
    begins, limited = _LIMITS[bool(getattr(connection.dialect, "is_mariadb", False))]

    def limit(_c: object, _cursor: object, statement: str, parameters: Any, *_others: object) -> tuple[str, Any]:
        return limited + statement.removeprefix(begins) if statement.startswith(begins) else statement, parameters

    event.listen(connection, "before_cursor_execute", limit, retval=True)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", limit)


def _limit_waiting(connection: Any, _record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET SESSION lock_wait_timeout = {_LOCK_S}")


def _send(connection: Connection, statements: tuple[str, ...]) -> None:
    if statements and connection.dialect.driver in _TAKES_SEVERAL:
        statements = ("; ".join(statements),)
    for statement in statements:
        connection.exec_driver_sql(statement).close()


def _append_survivors(
    connection: Connection, tables: Mapping[str, sa.Table], gone: Iterable[Mapping[Subject, Any]]
) -> None:
    for portion in gone:
        inbox.keep_survivors(connection, tables, portion)


def _subject(row: object) -> Subject | None:
    return _SUBJECTS.get(getattr(type(row), "__tablename__", ""))


def _changes(session: Session) -> list[dict[str, Any]]:
    """What changes its stage. An experiment is one row: its runs go, and come back, with it."""
    changed = [(subject, row) for row in session.dirty if (subject := _subject(row)) in _STAGES]
    if not changed:
        return []
    # MLflow flushes the experiment first, and then each of its runs in a flush of its own: they must cost nothing.
    seen: set[int] = session.info.setdefault(_SEEN, set())
    found: list[dict[str, Any]] = []
    for subject, row in changed:
        if subject is Subject.EXPERIMENT and (happened := _stage_change(row)):
            seen.add(row.experiment_id)
            found.append(_row(happened, subject, row, row.last_update_time))
    for subject, row in changed:
        if subject is Subject.MODEL_VERSION:
            if _DELETED_VERSION in _added(row, "current_stage"):
                found.append(_version_row(Event.DELETED, row))
        elif subject is not Subject.EXPERIMENT and row.experiment_id not in seen and (happened := _stage_change(row)):
            date = row.deleted_time if subject is Subject.RUN else row.last_updated_timestamp_ms
            found.append(_row(happened, subject, row, date))
    return found


def _stage_change(row: Any) -> Event | None:
    # A second deletion changes the date alone.
    if not _added(row, "lifecycle_stage") and not _added(row, "deleted_time"):
        return None
    return Event.DELETED if row.lifecycle_stage == _DELETED else Event.RESTORED


def _added(row: Any, name: str) -> Iterable[Any]:
    """What an attribute has become, if it has changed; not loaded if it was not."""
    if not hasattr(type(row), name):
        return ()
    return attributes.get_history(row, name, PassiveFlag.PASSIVE_NO_INITIALIZE).added or ()


def _row(happened: Event, subject: Subject, row: Any, deleted_ms: int | None) -> dict[str, Any]:
    id_ = {Subject.EXPERIMENT: "experiment_id", Subject.RUN: "run_uuid", Subject.LOGGED_MODEL: "model_id"}[subject]
    return inbox.note(
        happened,
        subject,
        str(getattr(row, id_)),
        experiment_id=str(row.experiment_id),
        deleted_ms=deleted_ms if happened is Event.DELETED else None,
    )


def _registry_changes(session: Session) -> Iterator[dict[str, Any]]:
    """Versions that are made, and what is deleted: what they pointed at may be due now."""
    for row in session.new:
        if _subject(row) is Subject.MODEL_VERSION:
            yield _version_row(Event.REGISTERED, row)
    models = {row.name for row in session.deleted if _subject(row) is Subject.REGISTERED_MODEL}
    for name in models:
        yield inbox.note(Event.DELETED, Subject.REGISTERED_MODEL, name)
    for row in session.deleted:
        if _subject(row) is Subject.MODEL_VERSION and row.name not in models:
            yield _version_row(Event.DELETED, row)


def _version_row(happened: Event, version: Any) -> dict[str, Any]:
    return inbox.note(happened, Subject.MODEL_VERSION, f"{version.name}/{version.version}")


def _registered(session: Session) -> list[str]:
    """What the versions that are made point at."""
    return [
        text
        for version in session.new
        if _subject(version) is Subject.MODEL_VERSION
        for text in (version.source, version.storage_location)
        if text
    ]


def _gone(session: Session, tables: Mapping[str, sa.Table]) -> list[dict[Subject, Any]]:
    """Which rows are deleted for good: each by its id, and what belongs to an experiment by the experiment's."""
    deleted = [(subject, row) for row in session.deleted if (subject := _subject(row))]
    owners = [(subject, *names) for subject, names in inbox.OWNERS.items() if names[0] in tables]
    experiments = {row.experiment_id for subject, row in deleted if subject is Subject.EXPERIMENT}
    # Some of them go by the database's own cascade, which no session shows.
    found = [
        {subject: tables[name].c.experiment_id.in_(portion) for subject, name, _ in owners}
        for portion in _portions(sorted(experiments))
    ]
    for subject, name, id_ in owners:
        ids = [getattr(row, id_) for other, row in deleted if other is subject and row.experiment_id not in experiments]
        found += [{subject: tables[name].c[id_].in_(portion)} for portion in _portions(ids)]
    return found


def _portions(keys: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(keys), _KEYS):
        yield keys[start : start + _KEYS]


def _tables(rows: Iterable[Any]) -> Mapping[str, sa.Table]:
    """MLflow's own tables, as the version that is installed declares them."""
    for row in rows:
        if _subject(row):
            found: Mapping[str, sa.Table] = type(row).__table__.metadata.tables
            return found
    return {}


def _refusal(what: str) -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_CONFLICT

    # HTTP 409: what answers with 500, as an invalid state does, MLflow's client tries again until the sweep is over.
    refusal: Exception = MlflowException(
        f"The artifacts of {what} are being removed, because it was deleted: they cannot be registered. If it is "
        "needed after all, restore it and wait until what can be had back is back",
        error_code=RESOURCE_CONFLICT,
    )
    return refusal


def _undone() -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    # To go on would commit the rest of what MLflow does without what it did before.
    said = "The database has undone this change as a whole"
    error: Exception = MlflowException(said, error_code=TEMPORARILY_UNAVAILABLE)
    return error
