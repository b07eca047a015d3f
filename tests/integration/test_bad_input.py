"""Bad input of every kind: one clear sentence, its documented exit code, nothing touched, and no secret shown."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import schema
from mlflow_artifact_gc.s3 import PERMISSIONS
from tests.command import NOW, Ran, gc, init, outcomes, reasons, run
from tests.integration.s3_servers import fake_s3, wait_for_nothing
from tests.mariadb import MariaDbServer
from tests.oracle import assert_bucket_sound
from tests.servers import Identity, PostgresServer, S3Server, free_ports, make_bucket, moto, moto_user
from tests.site import DAY_MS, Site

SECRET = "Hush-never-shown"
"""In every password and secret key of these tests; no output may hold it."""
COMMANDS = ("init", "gc", "status")
CHECKOUT = Path(__file__).resolve().parents[2]


# What every refusal has in common


def refused(*arguments: str, code: int, says: tuple[str, ...] = (), answer: str | None = None) -> str:
    """Run a command that must be refused; the one sentence that it said."""
    ran = run(*arguments, answer=answer)
    assert ran.code == code, f"{ran.code}: {ran.err}\n{ran.out}"
    return sentence(ran, *says)


def sentence(ran: Ran, *says: str) -> str:
    """The one sentence on standard error, which holds these words; JSON, if there is any, has the same."""
    said = [line.removeprefix("Error: ") for line in ran.err.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, f"not one sentence: {ran.err!r}, {ran.out!r}"
    assert SECRET not in ran.out + ran.err
    assert "Traceback" not in ran.err
    for words in says:
        assert words in said[0]
    if ran.out.startswith("{"):
        assert ran.json["exit_code"] == ran.code
        assert ran.json["error"] == said[0]
    return said[0]


@contextmanager
def same_file(uri: str) -> Iterator[None]:
    """Nothing was written into a SQLite database, and nothing beside it."""
    path = Path(uri.removeprefix("sqlite:///"))
    before = path.read_bytes(), sorted(path.parent.iterdir())
    yield
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == before


@contextmanager
def untouched(site: Site) -> Iterator[None]:
    """Bucket and MLflow's rows are afterwards as they were before."""
    before = site.snapshot()
    yield
    assert site.snapshot() == before


def executed(uri: str, *statements: str) -> None:
    """Run SQL on a SQLite file."""
    connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
    try:
        with connection:
            for statement in statements:
                connection.execute(statement)
    finally:
        connection.close()


def on(uri: str, command: str) -> tuple[str, ...]:
    """The start of a command line for a database."""
    return (command, "--backend-store-uri", uri)


def set_up(uri: str, *arguments: str) -> None:
    """``init`` with the registry in the same database."""
    ran = run(*on(uri, "init"), "--registry-store-uri", uri, *arguments)
    assert ran.code == 0, ran.err


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A site that is set up, with a live and a deleted run of two objects each."""

    site: Site
    live: str
    deleted: str

    def gc(self, *arguments: str) -> tuple[str, ...]:
        """A ``gc`` that would sweep at once."""
        return (*on(self.site.uri, "gc"), "--yes", *NOW, *arguments)

    def pauses(self, *says: str) -> None:
        """``gc`` says these words, once, exits with 1, and touches nothing; also with JSON."""
        with untouched(self.site):
            ran = run(*self.gc("--format", "json"))
            assert (ran.code, outcomes(ran.json)) == (1, {self.deleted: "paused"})
            assert all(words in ran.json["results"][0]["detail"] for words in says), ran.out
            assert SECRET not in ran.out + ran.err
            refused(*self.gc(), code=1, says=says)
            sentence(ran, *says)


def prepare(site: Site, *arguments: str) -> Prepared:
    """Fills a site and sets it up."""
    experiment = site.experiment()
    live, deleted = (site.run(experiment, n_objects=2) for _ in range(2))
    site.delete_run(deleted)
    init(site, *arguments)
    return Prepared(site=site, live=live, deleted=deleted)


def deleted_run_without_bucket(site: Site) -> str:
    """A deleted run whose experiment lies in a bucket that does not exist; its id."""
    experiment = site.experiment(artifact_location="s3://no-such-bucket-anywhere/here")
    run_id: str = site.store.create_run(experiment, "tester", int(time.time() * 1000), [], "").info.run_id
    site.delete_run(run_id)
    return run_id


@pytest.fixture
def prepared(
    sqlite_uri: str,
    moto_s3: S3Server,
    moto_bucket: str,
    make_site: Callable[[Site], Site],
    monkeypatch: pytest.MonkeyPatch,
) -> Prepared:
    """SQLite and moto, whose failing requests are repeated without waiting."""
    wait_for_nothing(monkeypatch)
    return prepare(make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket)))


@pytest.fixture
def proxied(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: Callable[[Site], Site]) -> Prepared:
    """The same behind the artifact proxy."""
    return prepare(make_site(Site.proxied(sqlite_uri, moto_s3, moto_bucket)))


@pytest.fixture(scope="module")
def moto_iam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A moto that checks signatures and rights, seen by its administrator."""
    with moto(tmp_path_factory.mktemp("moto-iam"), iam=True) as server:
        yield server


def use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the environment to a server and its user."""
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)


# Which database


@pytest.mark.parametrize("command", COMMANDS)
def test_no_database_named(command: str) -> None:
    """Without a database it is a usage error that names the option and the variable."""
    refused(command, code=2, says=("--backend-store-uri", "MLFLOW_BACKEND_STORE_URI"))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_absent_sqlite_file(command: str, tmp_path: Path) -> None:
    """A SQLite file that is not there is said to be absent, and is not made."""
    refused(
        *on(f"sqlite:///{tmp_path}/mlfow.db", command), code=1, says=("mlfow.db", "the file that MLflow's server uses")
    )

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (f"the database, {SECRET}", "not a database URI"),
        (f"postgresql//me:{SECRET}@host/mlflow", "not a database URI"),
        (f"postgresql://me:{SECRET}@host:port/mlflow", "not a database URI"),
        (f"foo://me:{SECRET}@host/mlflow", "'foo'"),
        (f"http://me:{SECRET}@host/", "'http'"),
        (f"mssql+pymssql://me:{SECRET}@host/mlflow", "'mssql'"),
        (f"mysql://me:{SECRET}@host/mlflow", "'MySQLdb' for mysql://host/mlflow is not installed"),
        (f"postgresql+pg8000://me:{SECRET}@host/mlflow", "pg8000"),
        (f"postgresql+nonsense://me:{SECRET}@host/mlflow", "nonsense"),
        ("sqlite://", "There is no database"),
        ("sqlite:///:memory:", "There is no database"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_uri_that_names_no_usable_database(command: str, uri: str, says: str) -> None:
    """A URI that cannot be used is told with what was expected, and without its password."""
    refused(*on(uri, command), "--format", "json", code=1, says=(says,))


@pytest.mark.parametrize(
    "password", [SECRET, f"50%{SECRET}", f"a@{SECRET}", f"a/{SECRET}", f"a:{SECRET}", f"{SECRET}#"]
)
def test_a_database_that_refuses_connections(password: str) -> None:
    """A refused connection is told in a line without the password, also one that should have been escaped."""
    (port,) = free_ports(1)
    refused(*on(f"postgresql+psycopg2://me:{password}@127.0.0.1:{port}/mlflow", "gc"), code=1, says=("postgresql://",))


def test_options_of_a_uri_leave_the_message_readable() -> None:
    """Only secrets are taken out of the server's message: a timeout of 2 leaves every 2 of the address in it."""
    (port,) = free_ports(1)
    uri = (
        f"postgresql+psycopg2://me:{SECRET}@127.0.0.1:{port}/mlflow?connect_timeout={str(port)[0]}&sslpassword={SECRET}"
    )
    refused(*on(uri, "gc"), code=1, says=("127.0.0.1", f"port {port}"))


def test_postgresql_names_what_is_absent(pg: PostgresServer) -> None:
    """A database or a role that PostgreSQL does not know is named."""
    socket = pg.uri("x").partition("?")[2]
    absent = f"postgresql+psycopg2://postgres:{SECRET}@/no_such_database?{socket}"
    nobody = f"postgresql+psycopg2://nobody_here:{SECRET}@/postgres?{socket}"
    for command in COMMANDS:
        refused(*on(absent, command), code=1, says=('"no_such_database" does not exist',))
        refused(*on(nobody, command), code=1, says=('"nobody_here" does not exist',))


def test_a_wrong_password_on_postgresql(pg: PostgresServer) -> None:
    """A wrong password is told as such, and neither it nor the right one is shown."""
    engine = sa.create_engine(pg.uri("postgres"))
    with engine.connect() as connection:
        hba = Path(connection.exec_driver_sql("SHOW hba_file").scalar_one())
    engine.dispose()
    hba.write_text(f"local all with_password scram-sha-256\n{hba.read_text()}")
    pg.execute(f"CREATE ROLE with_password LOGIN PASSWORD '{SECRET}-right'")
    pg.execute("SELECT pg_reload_conf()")
    socket = pg.uri("x").partition("?")[2]
    uri = f"postgresql+psycopg2://with_password:{SECRET}-wrong@/postgres?{socket}"
    for command in COMMANDS:
        refused(*on(uri, command), code=1, says=("password authentication failed",))


def test_mariadb_names_what_is_absent(maria: MariaDbServer) -> None:
    """A database that MariaDB does not know is named; a wrong password is told as such, and not shown."""
    absent, wrong = maria.uri("t_absent"), maria.uri("t_absent", password=f"{SECRET}-wrong")
    for command in COMMANDS:
        refused(*on(absent, command), code=1, says=("Unknown database 't_absent'",))
        refused(*on(wrong, command), code=1, says=("Access denied for user",))


def test_a_mariadb_that_refuses_connections() -> None:
    """In a line that says so, as for PostgreSQL."""
    (port,) = free_ports(1)
    refused(*on(f"mysql+pymysql://me:{SECRET}@127.0.0.1:{port}/mlflow", "gc"), code=1, says=("Can't connect",))


def test_a_read_only_mariadb(maria: MariaDbServer, maria_uri: str) -> None:
    """A replica is told apart before anything is read from it."""
    maria.execute("SET GLOBAL read_only = 1")
    try:
        for command in COMMANDS:
            refused(*on(maria_uri, command), code=1, says=("is read-only, as a replica is", "of the primary"))
    finally:
        maria.execute("SET GLOBAL read_only = 0")


# MLflow's tables


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("content", "says"), [(b"", "mlflow db upgrade"), (b"no database\n" * 100, "not a database")])
def test_a_file_that_mlflow_has_not_set_up(command: str, content: bytes, says: str, tmp_path: Path) -> None:
    """An empty database and a file that is none stay as they are."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    with same_file(f"sqlite:///{path}"):
        refused(*on(f"sqlite:///{path}", command), code=1, says=("mlflow.db", says))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_postgresql_database(command: str, pg: PostgresServer) -> None:
    """A database that MLflow has not set up gets no table of ours."""
    uri = pg.create_database()
    refused(*on(uri, command), code=1, says=("MLflow has not set up", "mlflow db upgrade"))
    engine = sa.create_engine(uri)
    found = sa.inspect(engine).get_table_names()
    engine.dispose()

    assert not found


def test_newer_tables_of_mlflow(sqlite_uri: str) -> None:
    """A revision that the installed MLflow does not know is named, and nothing is done."""
    set_up(sqlite_uri)
    executed(sqlite_uri, "UPDATE alembic_version SET version_num = 'fedcba987654'")
    with same_file(sqlite_uri):
        for command in COMMANDS:
            refused(*on(sqlite_uri, command), code=1, says=("newer", "fedcba987654", "install the version of MLflow"))


def test_no_revision_of_mlflow(sqlite_uri: str) -> None:
    """Where MLflow's revision is missing, it is not called newer."""
    set_up(sqlite_uri)
    executed(sqlite_uri, "DELETE FROM alembic_version")
    with same_file(sqlite_uri):
        said = refused(*on(sqlite_uri, "gc"), code=1, says=("mlflow db upgrade",))
    assert "None" not in said


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("runs", "deleted_time"),
        ("runs", "artifact_uri"),
        ("experiments", "last_update_time"),
        ("logged_models", "source_run_id"),
        ("logged_models", "lifecycle_stage"),
        ("logged_models", "last_updated_timestamp_ms"),
        ("trace_tags", "value"),
        ("trace_info", "experiment_id"),
        ("datasets", "dataset_source"),
        ("inputs", "destination_id"),
        ("model_versions", "current_stage"),
        ("registered_model_aliases", "alias"),
    ],
)
def test_a_column_of_mlflows_is_missing(table: str, column: str, sqlite_uri: str) -> None:
    """A column that we rely on and that is not there is named; nothing is taken for unreferenced."""
    set_up(sqlite_uri)
    executed(sqlite_uri, "DROP VIEW IF EXISTS x", f"ALTER TABLE {table} RENAME COLUMN {column} TO was_{column}")
    with same_file(sqlite_uri):
        for command in ("gc", "status"):
            refused(*on(sqlite_uri, command), code=1, says=(table,))


# Our tables


def make_newer(uri: str) -> None:
    """Our tables as a later version would leave them."""
    executed(uri, "UPDATE artifact_gc_alembic_version SET version_num = '9999'")


def test_our_tables_are_absent(sqlite_uri: str) -> None:
    """Gc and status exit with 5 and name init; the database stays as it is."""
    with same_file(sqlite_uri):
        for command in ("gc", "status"):
            refused(*on(sqlite_uri, command), code=5, says=("mlflow-artifact-gc init --backend-store-uri",))


def test_our_tables_are_newer(sqlite_uri: str) -> None:
    """Every command exits with 5 and says to upgrade the package."""
    set_up(sqlite_uri)
    make_newer(sqlite_uri)
    with same_file(sqlite_uri):
        for command in COMMANDS:
            refused(*on(sqlite_uri, command), code=5, says=("newer", "9999", "upgrade the package"))


def test_our_tables_are_older(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gc and status exit with 5 and name init."""
    set_up(sqlite_uri)
    monkeypatch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9999"))
    with same_file(sqlite_uri):
        for command in ("gc", "status"):
            refused(*on(sqlite_uri, command), code=5, says=("older", "mlflow-artifact-gc init"))


def test_the_settings_are_absent(sqlite_uri: str) -> None:
    """Tables without the site's settings count as absent."""
    set_up(sqlite_uri)
    executed(sqlite_uri, "DELETE FROM artifact_gc_site")
    with same_file(sqlite_uri):
        for command in ("gc", "status"):
            refused(*on(sqlite_uri, command), code=5, says=("mlflow-artifact-gc init",))


def test_init_check_says_the_state(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """--check exits with 0 or 5, says the state in words and JSON, and changes nothing."""

    def check(code: int, state: str) -> None:
        with same_file(sqlite_uri):
            ran = run(*on(sqlite_uri, "init"), "--check")
            told = run(*on(sqlite_uri, "init"), "--check", "--format", "json")
        assert (ran.code, told.code, told.json["tables"]) == (code, code, state)
        assert state in ran.out

    check(5, "absent")
    set_up(sqlite_uri)
    check(0, "current")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "REVISIONS", (*schema.REVISIONS, "9999"))
        check(5, "older")
    make_newer(sqlite_uri)
    check(5, "newer")


def test_a_read_only_database(prepared: Prepared, sqlite_uri: str) -> None:
    """A database that cannot be written is told as such by init and gc; --dry-run and status only read."""
    path = sqlite_uri.removeprefix("sqlite:///")
    readonly = f"sqlite:///file:{path}?mode=ro&uri=true"
    with untouched(prepared.site), same_file(sqlite_uri):
        refused(*on(readonly, "init"), "--grace", "1d", code=1, says=("readonly",))
        refused(*on(readonly, "gc"), "--yes", *NOW, code=1, says=("readonly",))
        for command in (("gc", "--dry-run"), ("status",)):
            ran = run(command[0], "--backend-store-uri", readonly, *command[1:])
            assert ran.code == 0, ran.err


# S3


def test_no_credentials(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials gc says so and exits with 1."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    prepared.pauses("no usable credentials", prepared.site.bucket)


def test_wrong_keys(site: Site, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret and an unknown key are about the credentials."""
    wait_for_nothing(monkeypatch)
    ready = prepare(site)
    use(seaweed.seen_by(Identity(access_key=seaweed.access_key, secret_key=SECRET)), monkeypatch)
    ready.pauses("does not accept these credentials", "SignatureDoesNotMatch")
    use(seaweed.seen_by(Identity(access_key="AKIANOBODYKNOWSTHIS0", secret_key=SECRET)), monkeypatch)
    ready.pauses("does not accept these credentials", "InvalidAccessKeyId")


def test_no_such_bucket(prepared: Prepared) -> None:
    """A bucket that does not exist is not an empty one."""
    site = prepared.site
    lost = deleted_run_without_bucket(site)
    with untouched(site):
        refused(*prepared.gc("--run-ids", lost), code=1, says=("no such bucket", "no-such-bucket-anywhere"))


def test_a_bucket_that_is_paused_leaves_the_others(prepared: Prepared) -> None:
    """What can be swept is swept beside a bucket that cannot; the exit code is 1."""
    site = prepared.site
    lost = deleted_run_without_bucket(site)
    before = site.snapshot()
    report = gc(site, expect=1)

    assert outcomes(report) == {prepared.deleted: "swept", lost: "paused"}
    mine = [result for result in report["results"] if result["id"] == prepared.deleted]
    assert_bucket_sound(site, {**report, "results": mine}, before)


@pytest.fixture
def limited(
    sqlite_uri: str, moto_iam: S3Server, make_site: Callable[[Site], Site], monkeypatch: pytest.MonkeyPatch
) -> Prepared:
    """A site on a moto that checks rights, seen by its administrator."""
    wait_for_nothing(monkeypatch)
    return prepare(make_site(Site.direct(sqlite_uri, moto_iam, make_bucket(moto_iam))))


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (None, "grant s3:"),
        ("ListObjectVersions", "grant s3:ListBucketVersions"),
        ("ListObjectsV2", "grant s3:ListBucket "),
        ("ListMultipartUploads", "grant s3:ListBucketMultipartUploads"),
        ("GetObject", "grant s3:GetObject"),
        ("PutObject", "grant s3:PutObject"),
    ],
)
@pytest.mark.parametrize("versioned", [False, True], ids=["plain", "versioned"])
def test_a_missing_right_is_named(
    missing: str | None,
    named: str,
    *,
    versioned: bool,
    limited: Prepared,
    moto_iam: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """AccessDenied, on everything or on one operation, is named before anything is touched; never read as emptiness."""
    if versioned:
        limited.site.switch_versioning(on=True)
    allowed = [right.action for right in PERMISSIONS if right.operation != missing] if missing else ["s3:Nothing"]
    rights = [{"Effect": "Allow", "Action": allowed, "Resource": "*"}]
    use(moto_user(moto_iam, f"u-{uuid.uuid4().hex[:8]}", rights), monkeypatch)
    with untouched(limited.site):
        ran = run(*limited.gc())
    assert ran.code == 1
    sentence(ran, named)


def test_some_keys_are_denied(prepared: Prepared) -> None:
    """Denied keys make their location fail, with exit code 3; the others are swept, and the report is true."""
    site = prepared.site
    second = site.run(site.experiment(), n_objects=3)
    site.delete_run(second)
    denied = f"arn:aws:s3:::{site.bucket}/{site.key_of(site.artifact_uri(second))}/data/part-000001.bin"
    statement = {"Effect": "Deny", "Principal": "*", "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"]}
    policy = {"Version": "2012-10-17", "Statement": [{**statement, "Resource": denied}]}
    site.client.put_bucket_policy(Bucket=site.bucket, Policy=json.dumps(policy))
    before = site.snapshot()
    report = gc(site, expect=3)

    assert outcomes(report) == {prepared.deleted: "swept", second: "failed"}
    assert "AccessDenied" in next(result["detail"] for result in report["results"] if result["id"] == second)
    assert_bucket_sound(site, report, before)
    ran = run(*prepared.gc())
    assert ran.code == 3
    sentence(ran, "AccessDenied")


def test_nothing_listens_at_the_endpoint(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection names the variable to look at."""
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://me:{SECRET}@127.0.0.1:{port}")
    prepared.pauses("MLFLOW_S3_ENDPOINT_URL", f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<!doctype html><title>Welcome</title><p>It works!"),
        (200, b'{"status": "ok"}'),
        (200, b""),
        (404, b"<html><body>Not Found</body></html>"),
        (302, b""),
    ],
)
def test_a_web_server_that_is_not_s3(
    status: int, body: bytes, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No page of another server is taken for an empty listing."""
    with fake_s3() as fake:
        fake.answer = lambda _request: (status, body)
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", fake.endpoint)
        prepared.pauses(fake.endpoint)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_S3_ENDPOINT_URL", f"no://me:{SECRET}@url at all"),
        ("MLFLOW_S3_IGNORE_TLS", "perhaps"),
        ("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "sideways"),
        ("MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION", "s9"),
        ("AWS_PROFILE", "nobody"),
    ],
)
def test_settings_of_s3_that_make_no_client(
    name: str, value: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that boto3 refuses is told with its variable's name."""
    monkeypatch.setenv(name, value)
    with untouched(prepared.site):
        refused(*prepared.gc(), code=1, says=("AWS_PROFILE" if name == "AWS_PROFILE" else "S3",))


def test_a_limit_on_what_cannot_be_counted(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where S3 cannot be asked, a limit on objects names the reason and no made-up number."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with untouched(prepared.site):
        dry = run(*prepared.gc("--dry-run", "--format", "json"))
        assert dry.json["plan"]["totals"]["due_objects"] is None, "what could not be counted is not 0"
        ran = run(*prepared.gc("--max-objects", "5"))
        assert ran.code in (1, 4)
        assert "?" not in sentence(ran, "credentials")


# Options


@pytest.mark.parametrize(
    "text", ["", "7", "-1d", "7 days", "1x", "d", "1h1d", "forever", "nan", "9" * 400 + "d", "9999999999w"]
)
@pytest.mark.parametrize(
    ("command", "option"),
    [("init", "--grace"), ("init", "--min-object-age"), ("gc", "--older-than"), ("gc", "--time-budget")],
)
def test_a_bad_duration(command: str, option: str, text: str, sqlite_uri: str) -> None:
    """What is no duration, or none that a calendar could hold, is a usage error with an example."""
    with same_file(sqlite_uri):
        refused(*on(sqlite_uri, command), f"{option}={text}", code=2, says=(option, "7d"))


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("--max-bytes", "ten", "10GB"),
        ("--max-bytes", "-1", "10GB"),
        ("--max-bytes", "", "10GB"),
        ("--max-bytes", "9" * 400, "10GB"),
        ("--max-share", "2", "0"),
        ("--max-share", "50%", "50%"),
        ("--max-share", "nan", "nan"),
        ("--max-locations", "-1", "-1"),
        ("--max-objects", "many", "many"),
        ("--concurrency", "0", "256"),
        ("--metadata", "perhaps", "keep"),
        ("--format", "xml", "json"),
        ("--run-ids", " , ", "commas"),
    ],
)
def test_a_bad_value(option: str, text: str, says: str, sqlite_uri: str) -> None:
    """A value that an option does not take is a usage error that names both."""
    with same_file(sqlite_uri):
        refused(*on(sqlite_uri, "gc"), f"{option}={text}", code=2, says=(option, says))


@pytest.mark.parametrize("arguments", [("--jobs",), ("--job-ids", "1,2"), ("--jobs", "--yes")])
def test_jobs_belong_to_mlflow(arguments: tuple[str, ...], sqlite_uri: str) -> None:
    """Jobs are refused, pointing to MLflow's own command."""
    refused(*on(sqlite_uri, "gc"), *arguments, code=2, says=("mlflow gc --jobs",))


def test_one_workspace_or_all(sqlite_uri: str) -> None:
    """--workspace and --all-workspaces exclude each other."""
    refused(*on(sqlite_uri, "gc"), "--workspace", "a", "--all-workspaces", code=2, says=("--all-workspaces",))


def test_unknown_options_and_commands() -> None:
    """What does not exist is a usage error."""
    refused("gc", "--force", code=2, says=("--force",))
    refused("purge", code=2, says=("purge",))


@pytest.mark.parametrize(
    ("option", "id_"),
    [
        ("--run-ids", "0123456789abcdef0123456789abcdef"),
        ("--run-ids", "*"),
        ("--run-ids", "'; DROP TABLE runs; --"),
        ("--logged-model-ids", "m-0123456789abcdef0123456789abcdef"),
        ("--experiment-ids", "4711"),
        ("--experiment-ids", "churn"),
        ("--experiment-ids", "²"),
        ("--experiment-ids", "9" * 30),
    ],
)
def test_an_unknown_id(option: str, id_: str, sqlite_uri: str) -> None:
    """An id that the database does not hold is a usage error that names it."""
    set_up(sqlite_uri)
    refused(*on(sqlite_uri, "gc"), "--yes", option, id_, code=2, says=(id_,))


def test_an_unknown_experiment_on_postgresql(pg_uri: str) -> None:
    """A number that no column could hold is an unknown id there too, and no error of the database's."""
    set_up(pg_uri)
    for id_ in ("4711", "3000000000", "9" * 30):
        refused(*on(pg_uri, "gc"), "--yes", "--experiment-ids", id_, code=2, says=(id_,))


def test_ids_that_are_live(prepared: Prepared) -> None:
    """A live run or model is refused by its id, and a deleted one beside it is not touched either."""
    site = prepared.site
    model = site.logged_model(site.experiment(), n_objects=1)
    with untouched(site):
        refused(*prepared.gc("--run-ids", f"{prepared.deleted},{prepared.live}"), code=2, says=(prepared.live, "live"))
        refused(*prepared.gc("--logged-model-ids", model), code=2, says=(model, "live"))


def test_a_workspace_that_nobody_has(prepared: Prepared) -> None:
    """A workspace without deleted rows is not told as a database without any."""
    with untouched(prepared.site):
        ran = run(*prepared.gc("--workspace", "nobodys"))
    assert ran.code in (0, 2)
    assert "Nothing in this database is deleted" not in ran.out


# The artifacts destination


@pytest.mark.parametrize("text", ["s3://", "s3:///folder", "mlflow-artifacts:/", "http://[", "s3://bucket/../up"])
def test_a_destination_that_cannot_be_read(text: str, sqlite_uri: str) -> None:
    """An artifacts destination that names no bucket is a usage error."""
    set_up(sqlite_uri)
    says = ("destination", "s3://bucket/prefix")
    with same_file(sqlite_uri):
        for command in COMMANDS:
            refused(*on(sqlite_uri, command), "--artifacts-destination", text, code=2, says=says)


def test_a_destination_that_is_not_the_servers(proxied: Prepared, moto_s3: S3Server) -> None:
    """Where no object of the rows is found under it, nothing is touched, and no row either."""
    site = proxied.site
    wrong = (f"s3://{make_bucket(moto_s3)}/artifacts", f"s3://{site.bucket}/other", f"s3://{site.bucket}")
    with untouched(site):
        for destination in wrong:
            given = ("--artifacts-destination", destination, "--metadata", "delete")
            refused(*proxied.gc(*given), code=1, says=(destination, "--artifacts-destination"))


def test_a_destination_that_nobody_said(
    sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: Callable[[Site], Site]
) -> None:
    """A proxied site whose destination is not known is refused, not called clean."""
    site = make_site(Site.proxied(sqlite_uri, moto_s3, moto_bucket))
    site.delete_run(site.run(site.experiment(), n_objects=1))
    set_up(sqlite_uri)
    with untouched(site):
        refused(*on(sqlite_uri, "gc"), "--yes", *NOW, code=1, says=("proxied", "--artifacts-destination"))


# The model registry


def test_a_registry_that_nobody_named(prepared: Prepared, sqlite_template: Path, tmp_path: Path) -> None:
    """Where this database holds no model version and nobody said which registry it is, gc names the command."""
    site = prepared.site
    executed(site.uri, "UPDATE artifact_gc_site SET registry_fingerprint = NULL")
    ran = run(*on(site.uri, "init"))
    assert ran.code == 0
    assert "init --registry-store-uri URI" in ran.out
    with untouched(site):
        refused(*prepared.gc(), code=1, says=("no model version", "mlflow-artifact-gc init --registry-store-uri"))


def test_another_registry(prepared: Prepared, sqlite_template: Path, tmp_path: Path) -> None:
    """A registry that is not the site's is refused, with the option and the command."""
    other = tmp_path / "registry.db"
    shutil.copyfile(sqlite_template, other)
    with untouched(prepared.site):
        says = ("registry", "init --registry-store-uri")
        refused(*prepared.gc("--registry-store-uri", f"sqlite:///{other}"), code=1, says=says)


@pytest.mark.parametrize("scheme", ["http", "https", "databricks", "uc", "file"])
def test_a_registry_that_is_not_sql(scheme: str, prepared: Prepared) -> None:
    """A registry that is no database is refused, without its password; init names no switch that it has not."""
    uri = f"{scheme}://me:{SECRET}@registry.example/"
    with untouched(prepared.site):
        given = ("--registry-store-uri", uri)
        refused(*prepared.gc(*given), code=1, says=("registry", f"'{scheme}'", "--unsafe-ignore-registry"))
        refused(*on(prepared.site.uri, "status"), *given, code=1, says=("registry",))
        said = refused(*on(prepared.site.uri, "init"), *given, code=1, says=("registry",))
    assert "'gc --unsafe-ignore-registry'" in said, "init has no such switch"


def test_a_registry_that_is_ignored(prepared: Prepared) -> None:
    """--unsafe-ignore-registry goes on without a registry, and the plan says that it did."""
    before = prepared.site.snapshot()
    report = gc(prepared.site, "--registry-store-uri", "http://registry.example", "--unsafe-ignore-registry")

    assert report["plan"]["unsafe"] == ["--unsafe-ignore-registry"]
    assert_bucket_sound(prepared.site, report, before)


def test_a_registry_that_cannot_be_read(prepared: Prepared, tmp_path: Path) -> None:
    """An unreadable registry is told with the option that names it."""
    (port,) = free_ports(1)
    empty = tmp_path / "empty.db"
    empty.touch()
    closed = f"postgresql+psycopg2://me:{SECRET}@127.0.0.1:{port}/registry"
    unreadable = (f"sqlite:///{tmp_path}/absent.db", f"sqlite:///{empty}", closed, f"mysql://me:{SECRET}@host/r")
    with untouched(prepared.site):
        for uri in unreadable:
            for command in (prepared.gc(), on(prepared.site.uri, "init"), on(prepared.site.uri, "status")):
                said = refused(*command, "--registry-store-uri", uri, code=1)
                assert "registry" in said
                assert "--backend-store-uri" not in said
    assert not (tmp_path / "absent.db").exists()


# Asking


def test_nobody_can_be_asked(prepared: Prepared) -> None:
    """Without a terminal and without --yes nothing happens."""
    with untouched(prepared.site):
        refused(*on(prepared.site.uri, "gc"), *NOW, code=4, says=("--yes", "terminal"))
        refused(*on(prepared.site.uri, "gc"), *NOW, answer="y\n", code=4, says=("--yes",))


def in_terminal(arguments: tuple[str, ...], typed: bytes) -> tuple[int, str]:
    """Runs the program in a terminal, types an answer to its question; exit code and what was shown."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child: nothing but exec
        os.execv(sys.executable, [sys.executable, "-m", "mlflow_artifact_gc", *arguments])  # noqa: S606 (no shell)
    shown, answered, give_up = b"", False, time.monotonic() + 30
    try:
        while time.monotonic() < give_up:
            if not select.select([terminal], [], [], 0.2)[0]:
                if b"[y/N]" in shown and not answered:
                    os.write(terminal, typed)
                    answered, give_up = True, time.monotonic() + 10
                continue
            try:
                read = os.read(terminal, 4096)
            except OSError:  # Linux: the child closed it
                break
            if not read:
                break
            shown += read
        else:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode(errors="replace")


@pytest.mark.parametrize(
    ("typed", "code"),
    [(b"n\n", 4), (b"\n", 4), (b"\x04", 4), (b"\x03", 130)],
    ids=["no", "default", "end-of-file", "ctrl-c"],
)
def test_answers_other_than_yes(typed: bytes, code: int, prepared: Prepared) -> None:
    """No is the default; it, no answer and Ctrl-C leave everything as it is, each with its exit code."""
    with untouched(prepared.site):
        ended, shown = in_terminal((*on(prepared.site.uri, "gc"), *NOW), typed)
    assert ended == code, shown
    assert "shortened to 0s" in shown
    assert "Traceback" not in shown


def test_the_answer_yes(prepared: Prepared) -> None:
    """A yes at the question sweeps."""
    ended, shown = in_terminal((*on(prepared.site.uri, "gc"), *NOW), b"y\n")

    assert ended == 0, shown
    assert "Swept 1 location" in shown


# Brakes


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (("--max-locations", "0"), ("1 ", "--max-locations 0")),
        (("--max-objects", "1"), ("2 objects", "--max-objects 1")),
        (("--max-bytes", "19"), ("20 B", "--max-bytes 19 B")),
    ],
)
def test_a_brake(arguments: tuple[str, ...], numbers: tuple[str, ...], prepared: Prepared) -> None:
    """A brake that trips says both numbers and the flag that releases it; nothing is touched."""
    with untouched(prepared.site):
        refused(*prepared.gc(*arguments), code=4, says=("nothing was touched", *numbers))
        refused(*prepared.gc(*arguments, "--format", "json"), code=4)


def many_deleted(site: Site, like: str, count: int) -> None:
    """More deleted runs, without objects, by SQL."""
    columns = [column["name"] for column in sa.inspect(site.engine).get_columns("runs")]
    taken = ", ".join(columns)
    new = ", ".join({"run_uuid": ":id", "artifact_uri": "REPLACE(artifact_uri, :like, :id)"}.get(c, c) for c in columns)
    statement = sa.text(f"INSERT INTO runs ({taken}) SELECT {new} FROM runs WHERE run_uuid = :like")
    with site.engine.begin() as connection:
        connection.execute(statement, [{"id": uuid.uuid4().hex, "like": like} for _ in range(count)])


def test_the_share_brake(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than half of more than 100 entities is refused with both numbers; no setting switches the brake off."""
    many_deleted(prepared.site, prepared.deleted, 100)
    with untouched(prepared.site):
        refused(*prepared.gc(), code=4, says=("101 locations", "102 runs", "--max-share 0.5"))
        monkeypatch.setenv("MLFLOW_ARTIFACT_GC_MAX_SHARE", "0.9")
        refused(*prepared.gc(), code=4, says=("--max-share 0.9",))
        for nonsense in ("nan", "7", "-1", "inf"):
            monkeypatch.setenv("MLFLOW_ARTIFACT_GC_MAX_SHARE", nonsense)
            refused(*prepared.gc(), code=2, says=("MLFLOW_ARTIFACT_GC_MAX_SHARE",))
    monkeypatch.delenv("MLFLOW_ARTIFACT_GC_MAX_SHARE")
    before = prepared.site.snapshot()
    report = gc(prepared.site, "--max-share", "1")
    assert outcomes(report)[prepared.deleted] == "swept"
    assert_bucket_sound(prepared.site, report, before)


# The environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GRACE", "a week"),
        ("MIN_OBJECT_AGE", "-1h"),
        ("CONCURRENCY", "many"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "-4"),
        ("MAX_BYTES", "ten"),
        ("MAX_OBJECTS", "1e3"),
        ("MAX_OBJECTS", "-1"),
        ("MAX_SHARE", "half"),
        ("ACTION", "burn"),
        ("EXPIRY_TAG", "gone"),
    ],
)
def test_variables_that_cannot_be_read(
    name: str, value: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that makes no sense, or asks for what this version does not do, is a usage error that names it."""
    monkeypatch.setenv(f"MLFLOW_ARTIFACT_GC_{name}", value)
    with untouched(prepared.site):
        refused(*prepared.gc(), code=2, says=(f"MLFLOW_ARTIFACT_GC_{name}",))


def test_the_environment_never_shortens(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRACE and MIN_OBJECT_AGE add to the site's margins and never take from them."""
    site = prepared.site
    now_ms = int(time.time() * 1000)
    site.execute("UPDATE runs SET deleted_time = :ms WHERE run_uuid = :id", ms=now_ms - 6 * DAY_MS, id=prepared.deleted)
    asked = (*on(site.uri, "gc"), "--yes", "--format", "json")

    def reason() -> str:
        return reasons(run(*asked).json)[prepared.deleted]

    with untouched(site):
        monkeypatch.setenv("MLFLOW_ARTIFACT_GC_GRACE", "0s")
        assert reason() == "grace"
        init(site, "--grace", "5d")
        monkeypatch.setenv("MLFLOW_ARTIFACT_GC_GRACE", "30d")
        assert reason() == "grace"
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_GRACE", "0s")
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_MIN_OBJECT_AGE", "0s")
    before = site.snapshot()
    report = run(*asked).json
    assert outcomes(report) == {prepared.deleted: "postponed"}
    assert_bucket_sound(site, report, before)


# Speed


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        (("gc", "--help"), 0),
        (("init", "--help"), 0),
        (("hold", "--help"), 0),
        (("hold", "add", "--help"), 0),
        (("gc", "--older-than", "soon"), 2),
        (("gc", "--root", "s3://bucket/prefix"), 2),
        (("gc", "--jobs"), 2),
        (("init", "--action", "hide"), 2),
        (("purge",), 2),
        (("gc",), 2),
        (("status",), 2),
        (("init",), 2),
        (("hold", "add", "--run-id", "a"), 2),
        (("hold", "rm"), 2),
        (("hold", "ls"), 2),
    ],
)
def test_help_and_usage_errors_import_nothing_heavy(arguments: tuple[str, ...], code: int) -> None:
    """They answer at once: neither mlflow, boto3 nor sqlalchemy is imported."""
    script = (
        "import atexit, sys\n"
        "heavy = {'mlflow', 'boto3', 'botocore', 'sqlalchemy', 'alembic'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules))))\n"
        "from mlflow_artifact_gc.__main__ import main\n"
        "main(sys.argv[1:])\n"
    )
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=CHECKOUT
    )
    seconds = time.monotonic() - started

    assert ended.returncode == code, ended.stderr
    assert "heavy: []" in ended.stdout
    assert seconds < 5, "well under a second, on a machine that does nothing else"
