"""Fixtures: servers that start when a test first asks for them, fresh buckets, fresh MLflow databases.

An MLflow database takes MLflow ten seconds to make, so each test gets a copy of one that was made once.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import random
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import hurry, mariadb, servers
from tests.abilities import need
from tests.mariadb import MariaDbServer
from tests.servers import PostgresServer, S3Server
from tests.site import Site

# In the environment, for the processes that pytest-xdist starts.
SEED = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
os.environ["TEST_SEED"] = str(SEED)
# An image of a container may say so: then each of the hundreds of processes compiles for seconds what it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file of tests/e2e, which waits much and takes longest, beside one that computes; then the others."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [file for file in files if file.parent.name == "e2e"]
    computing = [file for file in files if file not in waiting]
    pairs = itertools.chain.from_iterable(zip(waiting, computing, strict=False))
    items[:] = [item for file in dict.fromkeys([*pairs, *waiting, *computing]) for item in files[file]]


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
def _in_a_hurry() -> Iterator[None]:
    """Clients and statements are made once (see tests/hurry.py)."""
    with hurry.one_loader(), hurry.names_looked_up_once(), hurry.one_compilation():
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
    """Each of the thousands of databases waits for nothing (see tests/hurry.py)."""
    with hurry.no_wait_for_disks(), hurry.migrations_read_once():
        yield


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
    """A MariaDB for the whole session."""
    if _WITHOUT_MARIADB:
        pytest.skip(f"{mariadb.WITHOUT} is set")
    why = ""
    with ExitStack() as stack:
        stack.enter_context(hurry.certificates_read_once())
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
