"""A way into MLflow's database that is our own: engines, clocks, fingerprints and clear errors.

Never an MLflow store: building one migrates a production schema unasked, and its queries hide other workspaces.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.pool import ConnectionPoolEntry

from mlflow_artifact_gc.config import mysql_certificates
from mlflow_artifact_gc.errors import DatabaseUnusable

_T = TypeVar("_T")

SUPPORTED: Final = ("sqlite", "postgresql", "mysql")
_KINDS: Final = (*SUPPORTED, "mssql")
_WRITE: Final = "artifact_gc_write"
_DIRTY: Final = "artifact_gc_dirty"
_FILE: Final = "artifact_gc_file"
_TRIES: Final = 3
_REQUIRED: Final = {
    "experiments": {"experiment_id", "artifact_location", "lifecycle_stage", "last_update_time"},
    "runs": {"run_uuid", "experiment_id", "artifact_uri", "lifecycle_stage", "deleted_time"},
}
_CLOCKS: Final = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    # Not UNIX_TIMESTAMP(NOW(3)): it goes through the session's time zone, and is an hour off when summer time ends.
    "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) DIV 1000",
}
_DRIVERS: Final = {"postgresql": "postgresql+psycopg2", "mysql": "mysql+pymysql"}
_TAKE_A_CHARSET: Final = ("pymysql", "mysqldb", "mysqlconnector")
_OLDEST: Final = {True: (10, 6), False: (8, 0)}
"""Of MariaDB, and of MySQL: they know SKIP LOCKED."""
_PASSING_NUMBERS: Final = (1205, 1213)
"""MySQL's for a lock that did not come in time, and a deadlock."""
_PASSING_STATES: Final = ("40001", "40P01", "55P03")
"""The same on PostgreSQL."""
_LOST: Final = {0: "the connection was lost", 2006: "the connection was lost", 2013: "the connection was lost"}
"""What the drivers for MySQL say then is not a sentence."""


def open_engine(uri: str, *, ping: bool = True) -> Engine:
    """An engine on ``uri`` with the driver that the user chose; connects once.

    Args:
        ping: ask an old connection whether it still lives before each use. Without, the use itself fails.

    Raises:
        DatabaseUnusable: not a database URI, a kind that is not supported, no driver, no such database, wrong
            password. The message never holds the password.
    """
    url = _checked_url(uri)
    try:
        engine = sa.create_engine(url, pool_size=4, max_overflow=20, pool_pre_ping=ping, **_options(url))
    except ImportError as error:
        driver = error.name or url.drivername
        raise DatabaseUnusable(
            f"The driver {driver!r} for {display(url)} is not installed: install it, or name the one that you have in "
            f"the URI, as in {_DRIVERS.get(url.get_backend_name(), url.drivername)}://…"
        ) from error
    except (NoSuchModuleError, ArgumentError) as error:
        raise DatabaseUnusable(f"{display(url)} cannot be opened: {first_line(error, url)}") from error
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    elif engine.dialect.name == "mysql":
        _prepare_mysql(engine)
    with reading(engine) as connection:
        # Its server has the primary's identity, and may lag behind it.
        if url.get_backend_name() == "postgresql" and connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar():
            raise DatabaseUnusable(f"{display(url)} is a replica, which may lag behind: give the URI of the primary")
        if url.get_backend_name() == "mysql":
            _require_mysql(connection)
        connection.execute(sa.select(sa.literal(1)))
    return engine


def _options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() != "mysql":
        return {}
    # A driver's own default may be latin1: what it cannot hold comes as "?", and names another place.
    charset = {"charset": "utf8mb4"} if url.get_driver_name() in _TAKE_A_CHARSET else {}
    # MySQL's default would show a claim what was there before it waited for its locks; a reading has its own.
    return {"isolation_level": "READ COMMITTED", "connect_args": {**charset, **mysql_certificates()}}


def _checked_url(uri: str) -> URL:
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is no number
        raise DatabaseUnusable(
            "This is not a database URI: expected one as 'mlflow server --backend-store-uri' takes it, "
            "for example sqlite:///mlflow.db or postgresql://user@host/mlflow"
        ) from error
    if url.get_backend_name() not in SUPPORTED:
        raise DatabaseUnusable(
            f"Databases of the kind {url.get_backend_name()!r} are not supported: expected one of "
            f"{', '.join(SUPPORTED)} in the URI that MLflow's server uses"
        )
    if url.get_backend_name() == "sqlite":
        _check_sqlite_file(url)
    elif "@" in (url.database or ""):
        # Part of what stands there now is the password, and would be shown.
        raise DatabaseUnusable(
            "This database URI cannot be read: its password holds a '/' (or '@'), which has to be written as %2F (or "
            "%40), for example postgresql://user:pass%2Fword@host/mlflow"
        )
    return url


def is_sql(uri: str) -> bool:
    """Whether ``uri`` names a database of any kind that MLflow knows."""
    return uri.partition(":")[0].partition("+")[0] in _KINDS


def is_supported(uri: str) -> bool:
    """Whether ``uri`` names a database of a kind that can be opted in: not one that lives in a process's memory."""
    scheme, _, rest = uri.partition(":")
    in_memory = scheme.partition("+")[0] == "sqlite" and (not rest.strip("/") or ":memory:" in rest)
    return scheme.partition("+")[0] in SUPPORTED and not in_memory


def _sqlite_file(url: URL) -> Path:
    return Path((url.database or ":memory:").removeprefix("file:").partition("?")[0])


def _check_sqlite_file(url: URL) -> None:
    # Connecting would create the file, and an empty database looks like one without anything to protect.
    if not _sqlite_file(url).is_file():
        raise DatabaseUnusable(
            f"There is no database at {display(url)}: expected the file that MLflow's server uses; correct the URI "
            "(an absolute path takes four slashes: sqlite:////var/lib/mlflow.db)"
        )


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """On SQLite one transaction of ours at a time.

    A commit of ours that waits for a reader of ours keeps every other reader out, MLflow's included; and a second
    reader of ours that waits for a user's commit, which waits for our first one, makes that commit fail.
    """
    turn = _turns.get(engine)
    if turn is None:
        yield
        return
    with turn:
        yield


_turns: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()


def _prepare_sqlite(engine: Engine) -> None:
    _turns[engine] = threading.Lock()
    file = _sqlite_file(engine.url)

    @sa.event.listens_for(engine, "do_connect")
    def _opened(_dialect: object, record: ConnectionPoolEntry, *_how: object) -> None:
        _check_sqlite_file(engine.url)
        record.info[_FILE] = _identity(file)

    @sa.event.listens_for(engine, "checkout")
    def _used_again(_dbapi: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        # Put back from a backup, say: a connection that is open goes on reading the file that was there before.
        if record.info[_FILE] != _identity(file):
            raise DisconnectionError

    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _record: object) -> None:
        # The driver's own BEGIN comes late and is never IMMEDIATE: we send ours.
        dbapi.isolation_level = None
        dbapi.execute("PRAGMA busy_timeout = 20000")
        dbapi.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A write transaction that begins by reading can fail at once when another process writes.
        writes = connection.get_execution_options().get(_WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _prepare_mysql(engine: Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi: Any, _record: object) -> None:
        # For a table that somebody uses, which its own default waits for all day, and all who come later with it.
        with closing(dbapi.cursor()) as cursor:
            cursor.execute("SET SESSION lock_wait_timeout = 20")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not options.get(_WRITE):
            # Of the next transaction alone.
            level = "READ UNCOMMITTED" if options.get(_DIRTY) else "REPEATABLE READ"
            connection.exec_driver_sql(f"SET TRANSACTION ISOLATION LEVEL {level}, READ ONLY")


def _require_mysql(connection: Connection) -> None:
    where = display(connection.engine.url)
    is_mariadb = bool(getattr(connection.dialect, "is_mariadb", False))
    version = connection.dialect.server_version_info or ()
    if version < _OLDEST[is_mariadb]:
        kind, oldest = ("MariaDB" if is_mariadb else "MySQL"), ".".join(map(str, _OLDEST[is_mariadb]))
        raise DatabaseUnusable(f"{where} is {kind} {'.'.join(map(str, version))}: expected {kind} {oldest} or newer")
    if str(connection.exec_driver_sql("SELECT @@global.read_only").scalar()).upper() not in ("0", "OFF"):
        raise DatabaseUnusable(
            f"{where} is read-only, as a replica is, which may lag behind: give the URI of the primary"
        )


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that only reads: one snapshot, taken by its first query. Raises DatabaseUnusable."""
    with _translated(engine), _turn(engine), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            # Sets this very connection, until it goes back to the pool.
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One short transaction that writes; committed at the end. Raises DatabaseUnusable."""
    with _translated(engine), _turn(engine), engine.connect() as connection:
        connection.execution_options(**{_WRITE: True})
        with connection.begin():
            yield connection


def written(engine: Engine, statements: Callable[[Connection], _T]) -> _T:
    """Carry out ``statements`` in one short transaction; again where another process was in the way.

    It made the same row first, it held a lock for too long, or each of the two waited for the other.

    Raises:
        DatabaseUnusable: as ``writing`` does.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            with writing(engine) as connection:
                return statements(connection)
        except DatabaseUnusable as error:
            if not tries_left or not _passes(error.__cause__):
                raise
    raise AssertionError


def _passes(error: BaseException | None) -> bool:
    """Whether the same transaction may succeed at once."""
    if isinstance(error, IntegrityError):
        return True
    origin: Any = error.orig if isinstance(error, DBAPIError) else None
    state = getattr(origin, "pgcode", None) or getattr(origin, "sqlstate", None)
    return state in _PASSING_STATES or number_of(origin) in _PASSING_NUMBERS


def number_of(origin: Any) -> int | None:
    """The number of a driver's error on MySQL, which every driver gives first; None elsewhere."""
    arguments = getattr(origin, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise DatabaseUnusable(
            f"The database {display(engine.url)} answered: {first_line(error, engine.url)}"
        ) from error


def display(url: URL) -> str:
    """A database URL without user, password and options: they may hold secrets."""
    # A password whose "@" is not written as %40 ends up in what is taken for the host.
    host = (url.host or "").rpartition("@")[2]
    place = f"{host}{f':{url.port}' if url.port else ''}" if host else ""
    return f"{url.get_backend_name()}://{place}/{url.database or ''}"


def first_line(error: Exception, url: URL | None = None) -> str:
    """What the database said, without its statement, parameters and secrets."""
    origin = error.orig if isinstance(error, DBAPIError) and error.orig else error
    number = number_of(origin)
    said = str(origin.args[1] if number is not None and len(origin.args) > 1 else origin)
    line = _LOST.get(number, "") if number is not None else ""
    line = line or (said.strip().splitlines() or [type(error).__name__])[0]
    options = {name: value for name, value in url.query.items() if isinstance(value, str)} if url else {}
    secrets = [url.password, (url.host or "").rpartition("@")[0]] if url else []
    secrets += [value for name, value in options.items() if "pass" in name or "key" in name or "token" in name]
    for secret in filter(None, secrets):
        line = line.replace(secret, "***")
    return re.sub(r"\w+(\+\w+)?://\S+", "…", line)


def clock_ms(connection: Connection) -> int:
    """The database server's clock: the only one that all our processes share."""
    return int(connection.exec_driver_sql(f"SELECT {_CLOCKS[connection.dialect.name]}").scalar_one())


def clock_expression(dialect: str) -> sa.ColumnElement[int]:
    """The same clock, to be read inside another statement."""
    return sa.literal_column(_CLOCKS[dialect], sa.BigInteger)


def fingerprint(connection: Connection) -> str:
    """Names the database server and the database in it, however it is reached; differs for a clone elsewhere.

    PostgreSQL's system identifier, database and schema; MySQL's server_uuid and database; SQLite's resolved path.
    MariaDB has no such identifier (its server_uid is made of a network card's address, which a container's restart
    changes and two containers share): the moment at which the server made MLflow's version table, which no dump takes
    along and no restart changes.
    """
    if connection.dialect.name == "sqlite":
        files = {row[1]: row[2] for row in connection.exec_driver_sql("PRAGMA database_list")}
        return f"sqlite:{Path(files['main']).resolve()}"
    if connection.dialect.name == "mysql":
        return _mysql_fingerprint(connection)
    query = "SELECT system_identifier, current_database(), current_schema() FROM pg_control_system()"
    identifier, database, schema = connection.exec_driver_sql(query).one()
    return f"postgresql:{identifier}/{database}/{schema}"


def _mysql_fingerprint(connection: Connection) -> str:
    if not getattr(connection.dialect, "is_mariadb", False):
        identifier, database = connection.exec_driver_sql("SELECT @@server_uuid, DATABASE()").one()
        return f"mysql:{identifier}/{database}"
    query = (
        "SELECT UNIX_TIMESTAMP(create_time), DATABASE() FROM information_schema.tables"
        " WHERE table_schema = DATABASE() AND table_name = 'alembic_version'"
    )
    row = connection.exec_driver_sql(query).first()
    if row is None or row[0] is None:
        raise DatabaseUnusable(f"MLflow has not set up {display(connection.engine.url)}: it has no version table")
    return f"mariadb:{int(row[0])}/{row[1]}"


def unfinished_writes(engine: Engine, table: str, *, names: Collection[str]) -> set[Hashable]:
    """What transactions have written to ``table`` that have not ended: something that stays the same until they do.

    On SQLite there is one at a time, and none beside ours.

    Args:
        names: the columns that matter, as far as the table has them.

    Raises:
        DatabaseUnusable: as ``reading`` does.
    """
    match engine.dialect.name:
        case "postgresql":
            with reading(engine) as connection:
                return _writers_of(connection, table)
        case "mysql":
            # Who they are only an administrator may ask, and a locking read would keep other users waiting. But what
            # they have written can be read without a lock: it is there, and not there for those who read what counts.
            written = _rows(engine, table, names, dirty=True)
            return written - _rows(engine, table, names, dirty=False)
        case _:
            return set()


def _writers_of(connection: Connection, table: str) -> set[Hashable]:
    query = sa.text(
        "SELECT virtualtransaction FROM pg_locks WHERE relation = to_regclass(:name) AND mode = 'RowExclusiveLock'"
        " AND granted AND pid <> pg_backend_pid()"
    )
    return set(connection.scalars(query, {"name": table}))


def _rows(engine: Engine, table: str, names: Collection[str], *, dirty: bool) -> set[Hashable]:
    with _translated(engine), engine.connect() as connection:
        connection.execution_options(**{_DIRTY: dirty})
        with connection.begin():
            there = sorted(columns(connection, table)[table] & set(names))
            if not there:
                return set()
            of_table = sa.table(table, *(sa.column(name) for name in there))
            return {tuple(row) for row in connection.execute(sa.select(of_table))}


def exactly(expression: sa.ColumnElement[Any], connection: Connection) -> sa.ColumnElement[Any]:
    """``expression`` of MLflow's tables, as something to group by: what differs in case alone differs.

    MLflow's tables on MySQL compare as the database was told to, by default without case; ours do not.
    """
    return sa.cast(expression, sa.LargeBinary) if connection.dialect.name == "mysql" else expression


def shared(query: sa.Select[Any], connection: Connection) -> sa.Select[Any]:
    """``query`` on MySQL without the rows that others are changing; those that it gives nobody changes from now on."""
    is_mariadb = bool(getattr(connection.dialect, "is_mariadb", False))
    return query.suffix_with(sa.text("LOCK IN SHARE MODE SKIP LOCKED" if is_mariadb else "FOR SHARE SKIP LOCKED"))


def columns(connection: Connection, *tables: str) -> dict[str, frozenset[str]]:
    """The columns of some tables, none for those that this version of MLflow does not have. One query."""
    found = sa.inspect(connection).get_multi_columns(filter_names=tables)
    named = {name: frozenset(column["name"] for column in of_table) for (_, name), of_table in found.items()}
    return {table: named.get(table, frozenset()) for table in tables}


def require_mlflow(connection: Connection) -> None:
    """Raises DatabaseUnusable unless MLflow has set this database up, in a way that its installed version knows."""
    where = display(connection.engine.url)
    found = columns(connection, *_REQUIRED, "alembic_version")
    if not all(found.values()):
        raise DatabaseUnusable(
            f"MLflow has not set up {where}: its tables are absent. Start 'mlflow server' on it once, or run "
            "'mlflow db upgrade' with its URI"
        )
    missing = [f"{table}.{name}" for table, needed in _REQUIRED.items() for name in sorted(needed - found[table])]
    if missing:
        raise DatabaseUnusable(
            f"MLflow's tables in {where} lack {', '.join(missing)}: they are older than MLflow 2.0. Run "
            "'mlflow db upgrade' with its URI"
        )
    revision = mlflow_revision(connection)
    if revision is None:
        raise DatabaseUnusable(
            f"MLflow's tables in {where} say no revision: its set-up was not finished. Run 'mlflow db upgrade' with "
            "its URI"
        )
    known = _installed_revisions()
    if known and revision not in known:
        raise DatabaseUnusable(
            f"MLflow's tables in {where} are newer (revision {revision}) than the MLflow installed here: install the "
            "version of MLflow that the server runs, so that nothing it stores is overlooked"
        )


def mlflow_revision(connection: Connection) -> str | None:
    """The revision of MLflow's own tables."""
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


def _installed_revisions() -> frozenset[str]:
    # MLflow names its migrations <revision>_<what>.py; find_spec does not import it, which would take seconds.
    spec = importlib.util.find_spec("mlflow")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(spec.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    return frozenset(file.name.partition("_")[0] for file in folder.glob("*_*.py") if not file.name.startswith("__"))
