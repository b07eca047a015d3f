"""Fixtures: servers that start when a test first asks for them, fresh buckets, fresh MLflow databases.

An MLflow database takes MLflow ten seconds to make, so each test gets a copy of one that was made once.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import random
import shutil
import signal
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import mariadb, servers
from tests.abilities import need
from tests.mariadb import MariaDbServer
from tests.servers import PostgresServer, S3Server
from tests.site import Site

# In the environment, for the processes that pytest-xdist starts.
SEED = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
os.environ["TEST_SEED"] = str(SEED)
_STEERING = ("AWS_", "MLFLOW_", "_MLFLOW_")
_PG_TEMPLATE = "mlflow_template"
_STORE_REGISTRIES = {
    "mlflow.tracking._tracking_service.registry": "TrackingStoreRegistry",
    "mlflow.tracking._model_registry.registry": "ModelRegistryStoreRegistry",
}
_WITHOUT_MARIADB = bool(os.environ.get(mariadb.WITHOUT))


def pytest_configure() -> None:
    """No test sends telemetry, which MLflow decides when it is imported, and Ctrl-C is not ignored."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    # A shell starts what it puts in the background with Ctrl-C ignored, and the programs that tests start inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> list[str]:
    """The seed, for repeating a failure, the versions that decide most beside it, and what is left out."""
    tested = [f"{name} {importlib.metadata.version(name)}" for name in ("mlflow", "sqlalchemy", "boto3")]
    left_out = [f"left out: every test that needs MariaDB ({mariadb.WITHOUT} is set)"] if _WITHOUT_MARIADB else []
    return [f"seed: {SEED} (repeat with TEST_SEED={SEED})", f"tested with: {', '.join(tested)}", *left_out]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what an old MLflow cannot do (see tests/abilities.py)."""
    for marker in item.iter_markers("needs"):
        for ability in marker.args:
            need(ability)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the credentials, endpoints and settings of the person who runs it."""
    for name in os.environ:
        if name.startswith(_STEERING):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    # Boto3 keeps the first credentials that it finds for a process, and MLflow its clients: another server has others.
    if "boto3" in sys.modules:
        monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    if "mlflow.store.artifact.s3_artifact_repo" in sys.modules:
        sys.modules["mlflow.store.artifact.s3_artifact_repo"]._cached_get_s3_client.cache_clear()
    # It keeps its stores too, each with an engine and the statements compiled for that: gigabytes after a thousand.
    for name, registry in _STORE_REGISTRIES.items():
        if name in sys.modules:
            getattr(sys.modules[name], registry)._get_store_with_resolved_uri.cache_clear()
    # MLflow's migrations, which an old one runs at each start, take the root logger's handlers away, caplog's too.
    monkeypatch.setattr("logging.config.fileConfig", lambda *_arguments, **_how: None)


@pytest.fixture(scope="session", autouse=True)
def _one_loader() -> Iterator[None]:
    """Botocore reads its description of S3 once and not for each of the thousands of clients, which takes it 0.1 s."""
    import botocore.loaders
    import botocore.session

    loader = botocore.loaders.create_loader()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(botocore.session, "create_loader", lambda *_arguments, **_how: loader)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_compilation() -> Iterator[None]:
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


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers that TEST_SEED repeats, different in every test."""
    return random.Random(f"{SEED} {request.node.nodeid}")


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS for the whole session."""
    with servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A moto for the whole session; it believes every key."""
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def pg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole session."""
    with servers.postgresql(tmp_path_factory.mktemp("pg")) as server:
        yield server


def _use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket on SeaweedFS, to which the environment points; its name."""
    _use(seaweed, monkeypatch)
    return servers.make_bucket(seaweed)


@pytest.fixture
def moto_bucket(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket on moto, to which the environment points; its name."""
    _use(moto_s3, monkeypatch)
    return servers.make_bucket(moto_s3)


def _make_mlflow_tables(uri: str) -> None:
    """MLflow's own migrations; no experiment, so that the next store makes experiment 0 under its own root."""
    import sqlalchemy as sa

    site = Site(uri=uri, s3=_NO_S3, bucket="none", artifact_root="s3://none")
    _ = (site.store, site.registry)
    with site.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM experiments"))
    site.close()


_NO_S3 = S3Server(endpoint="http://127.0.0.1:9", access_key="none", secret_key="none")


@pytest.fixture(scope="session")
def in_a_hurry() -> Iterator[None]:
    """What costs each of the thousands of databases a moment and proves nothing here.

    MLflow reads all its migrations to find the newest schema: once is enough. SQLite waits at each commit until the
    disk has it, for the case that the power fails; a process that is killed loses nothing without that.
    """
    import sqlalchemy as sa
    from mlflow.store.db import utils

    def wait_for_no_disk(connection: object, _record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    newest = functools.cache(utils._get_latest_schema_revision)
    sa.event.listen(sa.Pool, "connect", wait_for_no_disk)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(utils, "_get_latest_schema_revision", newest)
        yield
    sa.event.remove(sa.Pool, "connect", wait_for_no_disk)


@pytest.fixture(scope="session")
def sqlite_template(request: pytest.FixtureRequest, in_a_hurry: None) -> Path:
    """A file with MLflow's empty tables; kept in pytest's cache for each version of MLflow."""
    import mlflow

    template: Path = request.config.cache.mkdir("mlflow-template") / f"{mlflow.__version__}.db"
    if not template.exists():
        make_template(template)
    return template


def make_template(template: Path) -> None:
    """Makes MLflow's empty tables in a file."""
    unfinished = template.with_suffix(f".{uuid.uuid4().hex}.tmp")
    _make_mlflow_tables(f"sqlite:///{unfinished}")
    unfinished.replace(template)  # at once: another pytest process may look for it


@pytest.fixture
def sqlite_uri(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh MLflow database in a file."""
    path = tmp_path / "mlflow.db"
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def pg_template(pg: PostgresServer, in_a_hurry: None) -> str:
    """The name of a PostgreSQL database with MLflow's empty tables."""
    _make_mlflow_tables(pg.create_database(_PG_TEMPLATE))
    return _PG_TEMPLATE


@pytest.fixture
def pg_uri(pg: PostgresServer, pg_template: str) -> Iterator[str]:
    """A fresh MLflow database on PostgreSQL."""
    name = f"t_{uuid.uuid4().hex[:16]}"
    yield pg.create_database(name, template=pg_template)
    pg.drop_database(name)


@pytest.fixture(scope="session")
def maria(request: pytest.FixtureRequest) -> Iterator[MariaDbServer]:
    """A MariaDB for the whole session. Its driver reads the machine's certificates once, not for each connection."""
    from pymysql.connections import Connection

    if _WITHOUT_MARIADB:
        pytest.skip(f"{mariadb.WITHOUT} is set")
    why = ""
    make = Connection._create_ssl_ctx
    plain = functools.cache(lambda: make(None, {}))

    def make_once(connection: Any, how: Any) -> Any:
        return make(connection, how) if how else plain()

    with ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(
            Connection, "_create_ssl_ctx", lambda connection, how: make(connection, how) if how else plain()
        )
        try:
            found = mariadb.programs(request.config.cache.mkdir("mariadb"))
            server = stack.enter_context(mariadb.mariadb(found))
        except mariadb.MariaDbMissingError as error:
            why = str(error)
        if why:
            pytest.fail(why, pytrace=False)
        yield server


@pytest.fixture(scope="session")
def maria_template(maria: MariaDbServer, request: pytest.FixtureRequest, in_a_hurry: None) -> mariadb.Template:
    """MLflow's empty tables; kept in pytest's cache for each version of MLflow and of MariaDB."""
    import mlflow

    name = f"{mlflow.__version__}-{maria.version}.json"
    file = request.config.cache.mkdir("mlflow-template") / name
    if not file.exists():
        made = f"t_{uuid.uuid4().hex[:16]}"
        _make_mlflow_tables(maria.create_database(made))
        mariadb.Template.of(maria, made).write(file)
        maria.drop_database(made)
    return mariadb.Template.read(file)


@pytest.fixture
def maria_uri(maria: MariaDbServer, maria_template: mariadb.Template) -> Iterator[str]:
    """A fresh MLflow database on MariaDB."""
    name = f"t_{uuid.uuid4().hex[:16]}"
    yield maria.create_database(name, template=maria_template)
    maria.drop_database(name)


@pytest.fixture(params=["pg_uri", "maria_uri"])
def server_uri(request: pytest.FixtureRequest) -> str:
    """A fresh MLflow database on a server, of each kind in turn: several transactions write at a time."""
    uri: str = request.getfixturevalue(request.param)
    return uri


_KINDS = {"sqlite": "sqlite_uri", "postgresql": "pg_uri", "mariadb": "maria_uri"}


@pytest.fixture(params=["sqlite", "postgresql"])
def db_uri(request: pytest.FixtureRequest) -> str:
    """A fresh MLflow database, in a file and on a server in turn: where a third kind would add nothing but its time."""
    uri: str = request.getfixturevalue(_KINDS[request.param])
    return uri


@pytest.fixture(params=[*_KINDS])
def any_db_uri(request: pytest.FixtureRequest) -> str:
    """A fresh MLflow database, of each kind in turn."""
    uri: str = request.getfixturevalue(_KINDS[request.param])
    return uri


@pytest.fixture
def make_site() -> Iterator[Callable[[Site], Site]]:
    """Hands a site through and closes its connections after the test: ``make_site(Site.direct(uri, s3, bucket))``."""
    made: list[Site] = []

    def keep(site: Site) -> Site:
        made.append(site)
        return site

    yield keep
    for site in made:
        site.close()


@pytest.fixture
def site(sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]) -> Site:
    """The plainest site: SQLite, SeaweedFS, artifacts under ``s3://<bucket>/mlruns``."""
    return make_site(Site.direct(sqlite_uri, seaweed, bucket))


@pytest.fixture
def proxied_site(sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]) -> Site:
    """The same behind MLflow's artifact proxy, with ``s3://<bucket>/artifacts`` as its destination."""
    return make_site(Site.proxied(sqlite_uri, seaweed, bucket))
