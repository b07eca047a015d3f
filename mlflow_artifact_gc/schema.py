"""Whether our tables are there and current, and how they get there: the one room that runs ``migrations/``.

It reads and writes the version table through the caller's connection and in the caller's transaction, and never
looks at MLflow's own. Alembic is imported only to upgrade: asking for the state is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import column, inspect, select, table, text
from sqlalchemy.exc import SQLAlchemyError

from mlflow_artifact_gc.errors import ArtifactGcError, DatabaseUnusable, TablesNotReady
from mlflow_artifact_gc.tables import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

REVISIONS: Final = ("0001", "0002", "0003", "0004", "0005")
"""Every revision that this code knows, oldest first; a test compares it with the files of ``migrations/``."""

# Any number, as long as it stays: two processes that create the tables meet in this lock ("argc" in ASCII).
_LOCK_KEY: Final = 0x61726763
# The same on MySQL, where names of locks are the whole server's, and short.
_LOCK_NAME: Final = "CONCAT('artifact_gc_', MD5(DATABASE()))"
_LOCK_S: Final = 60


class SchemaState(StrEnum):
    """What our tables are to this code."""

    ABSENT = "absent"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"
    """Their revision is not known to this code."""


def migrations_folder() -> Path:
    """Where the migrations lie: inside the package (a wheel), or beside it (a checkout, an editable install).

    Found by path, because what an import of ``mlflow_artifact_gc.migrations`` finds from one checkout can be
    another's: an editable install elsewhere answers for it.

    Raises:
        ArtifactGcError: the installation lacks them.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "migrations", package.parent / "migrations"):
        # The name alone is not enough: site-packages/migrations may be any project's.
        if any(folder.glob(f"versions/{head()}_*.py")):
            return folder
    raise ArtifactGcError(
        f"The migrations of mlflow-artifact-gc are neither in {package} nor beside it: install the package again."
    )


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, made without a file; without a connection it can only answer about the files."""
    from alembic.config import Config

    config = Config()
    # Alembic expands % in options.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The revision that this code expects."""
    return REVISIONS[-1]


def current(connection: Connection) -> str | None:
    """The revision of the tables in this database, or None where there are none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version = table(VERSION_TABLE, column("version_num"))
    found = connection.scalars(select(version.c.version_num)).all()
    # More than one row was not written by this code: together they name no revision that it knows.
    return ", ".join(sorted(found)) or None


def state(connection: Connection) -> SchemaState:
    """What the tables in this database are to this code."""
    return _compare(current(connection))


def upgrade(connection: Connection) -> None:
    """Create our tables, or bring them up to date, in the caller's transaction: a rollback undoes it.

    On MySQL each statement that makes a table commits: what an upgrade that was interrupted has left half-made, the
    next one completes. Two processes may call it at the same time.

    Raises:
        TablesNotReady: they are newer than this code.
        DatabaseUnusable: another process has been making them for a minute.
    """
    with _alone(connection):
        match state(connection):
            case SchemaState.CURRENT:
                return
            case SchemaState.NEWER:
                require_current(connection)
            case SchemaState.ABSENT | SchemaState.OLDER:
                from alembic import command

                command.upgrade(alembic_config(connection), "head")


def require_current(connection: Connection) -> None:
    """Return only if our tables are what this code expects.

    Raises:
        TablesNotReady: they are absent, older or newer.
    """
    revision = current(connection)
    init = "run 'mlflow-artifact-gc init --backend-store-uri URI' with this database's URI"
    match _compare(revision):
        case SchemaState.ABSENT:
            raise TablesNotReady(
                f"This database has no tables of mlflow-artifact-gc (expected: revision {head()}): {init}."
            )
        case SchemaState.OLDER:
            raise TablesNotReady(
                "The tables of mlflow-artifact-gc in this database are older than this version "
                f"(found: revision {revision}, expected: {head()}): {init} to upgrade them."
            )
        case SchemaState.NEWER:
            raise TablesNotReady(
                "The tables of mlflow-artifact-gc in this database are newer than this version "
                f"(found: revision {revision}, expected: {head()}): upgrade the package mlflow-artifact-gc."
            )
        case SchemaState.CURRENT:
            return


def mlflow_is_set_up(connection: Connection) -> bool:
    """Whether MLflow has made its tables here. Where it has not, ours would break ``mlflow db upgrade``."""
    inspector = inspect(connection)
    return inspector.has_table("alembic_version") and inspector.has_table("experiments")


def _compare(revision: str | None) -> SchemaState:
    if revision is None:
        return SchemaState.ABSENT
    if revision == head():
        return SchemaState.CURRENT
    return SchemaState.OLDER if revision in REVISIONS else SchemaState.NEWER


@contextmanager
def _alone(connection: Connection) -> Iterator[None]:
    """A transaction is open, and no other process is creating the tables in its own."""
    match connection.dialect.name:
        case "postgresql":
            # CREATE TABLE IF NOT EXISTS can still race there.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        case "sqlite" if not connection.connection.in_transaction:
            # Python's sqlite3 opens no transaction before CREATE TABLE: each would be committed at once.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        case "mysql":
            if not connection.scalar(text(f"SELECT GET_LOCK({_LOCK_NAME}, {_LOCK_S})")):
                raise DatabaseUnusable(
                    f"Another process has been making the tables of mlflow-artifact-gc for {_LOCK_S} s: end it, and "
                    "run this again"
                )
        case _:
            pass
    try:
        yield
        if connection.dialect.name == "mysql":
            # The tables are there by now; who comes next must see their revision too.
            connection.exec_driver_sql("COMMIT")
    finally:
        if connection.dialect.name == "mysql":
            # The lock is the connection's, which goes back to a pool, and no transaction's.
            with suppress(SQLAlchemyError):
                connection.scalar(text(f"SELECT RELEASE_LOCK({_LOCK_NAME})"))
