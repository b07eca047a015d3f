"""What costs each of thousands of clients and databases a moment and proves nothing: done once, or left out."""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest


@contextmanager
def one_loader() -> Iterator[None]:
    """Botocore reads its description of S3 once and not for each of the thousands of clients, which takes it 0.1 s."""
    import botocore.loaders
    import botocore.session

    loader = botocore.loaders.create_loader()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(botocore.session, "create_loader", lambda *_arguments, **_how: loader)
        yield


@contextmanager
def names_looked_up_once() -> Iterator[None]:
    """Botocore takes the name of each of its events apart for each client: a thirtieth of all time."""
    from botocore.hooks import EventAliaser

    known: dict[str, str] = {}
    make = EventAliaser.__init__

    def make_knowing(aliaser: Any, emitter: Any, event_aliases: Any = None) -> None:
        make(aliaser, emitter, event_aliases)
        aliaser._alias_name_cache = known

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EventAliaser, "__init__", make_knowing)
        yield


@contextmanager
def one_compilation() -> Iterator[None]:
    """A statement is compiled once, and not anew for each of the thousands of engines: that is a quarter of all time.

    SQLAlchemy keeps what it has compiled by the dialect, which each engine has an own one of.
    """
    import sqlalchemy as sa
    from sqlalchemy.engine.default import DefaultDialect
    from sqlalchemy.util import LRUCache

    compiled: LRUCache[Any, Any] = LRUCache(5_000)
    make = sa.Engine.__init__

    def make_sharing(engine: sa.Engine, *arguments: Any, **how: Any) -> None:
        make(engine, *arguments, **how)
        engine._compiled_cache = compiled

    def same(one: DefaultDialect, other: object) -> bool:
        return type(one) is type(other) and one.server_version_info == other.server_version_info

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sa.Engine, "__init__", make_sharing)
        patched.setattr(DefaultDialect, "__eq__", same)
        patched.setattr(DefaultDialect, "__hash__", lambda dialect: hash(type(dialect)))
        yield


@contextmanager
def no_wait_for_disks() -> Iterator[None]:
    """SQLite waits at each commit until the disk has it, for the case that the power fails.

    A process that is killed loses nothing without that.
    """
    import sqlalchemy as sa

    def wait_for_no_disk(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    sa.event.listen(sa.Pool, "connect", wait_for_no_disk)
    try:
        yield
    finally:
        sa.event.remove(sa.Pool, "connect", wait_for_no_disk)


@contextmanager
def migrations_read_once() -> Iterator[None]:
    """MLflow reads all its migrations to find the newest schema: once is enough."""
    from mlflow.store.db import utils

    newest = functools.cache(utils._get_latest_schema_revision)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(utils, "_get_latest_schema_revision", newest)
        yield


@contextmanager
def certificates_read_once() -> Iterator[None]:
    """MariaDB's driver reads all the machine's certificates for each connection, which takes it 25 ms."""
    from pymysql.connections import Connection

    make = Connection._create_ssl_ctx
    plain = functools.cache(lambda: make(None, {}))

    def make_once(connection: Any, how: Any) -> Any:
        return make(connection, how) if how else plain()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Connection, "_create_ssl_ctx", make_once)
        yield


@contextmanager
def hurried() -> Iterator[None]:
    """All that concerns SQLite and S3."""
    with ExitStack() as stack:
        for each in (one_loader, names_looked_up_once, one_compilation, no_wait_for_disks, migrations_read_once):
            stack.enter_context(each())
        yield
