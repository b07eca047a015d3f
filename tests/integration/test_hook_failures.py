"""What goes wrong in the hook, and what a user sees of it: nothing. He deletes, and it is deleted.

The only exception: where the database itself undoes the whole transaction, as SQLite and MySQL may, nothing of it may
be committed either.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import database, schema
from mlflow_artifact_gc.hook import recorder
from tests.abilities import has
from tests.hooked import INBOX, Hooked, engine_of, statements
from tests.mariadb import PASSWORD, USER, MariaDbServer
from tests.site import delete_traces, writing

_LOGGER = "mlflow_artifact_gc"
_SECRET = "hunter2"
_SECRETS = ("s3://", "postgresql", "sqlite:", "mysql", PASSWORD, _SECRET)
_NOT_SWITCHED_ON = (
    "mlflow-artifact-gc is installed and not switched on for this database, or its tables are not of this version: "
    "run 'mlflow-artifact-gc init --backend-store-uri URI' with its URI"
)
_WAITS_S = 5.0
"""Much longer than any of these takes, much shorter than a lock is held."""


@pytest.fixture
def fresh(any_db_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """A database of each kind, not opted in."""
    yield from _made(any_db_uri, monkeypatch)


@pytest.fixture
def on_sqlite(sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """SQLite, opted in."""
    for made in _made(sqlite_uri, monkeypatch):
        yield made.init()


@pytest.fixture
def on_postgresql(pg_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """PostgreSQL, opted in."""
    for made in _made(pg_uri, monkeypatch):
        yield made.init()


@pytest.fixture
def on_mariadb(maria_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """MariaDB, opted in."""
    for made in _made(maria_uri, monkeypatch):
        yield made.init()


@pytest.fixture(params=["postgresql", "mariadb"])
def on_a_server(request: pytest.FixtureRequest) -> Hooked:
    """PostgreSQL and MariaDB, opted in."""
    found = request.getfixturevalue(f"on_{request.param}")
    assert isinstance(found, Hooked)
    return found


@pytest.fixture
def hooked(fresh: Hooked) -> Hooked:
    """Each in turn, opted in."""
    return fresh.init()


@pytest.fixture
def either(db_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """In a file and on one server, opted in."""
    for made in _made(db_uri, monkeypatch):
        yield made.init()


def _made(uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_WORKER", "off")
    made = Hooked(uri=uri)
    yield made
    made.close()


def _stage(hooked: Hooked, run: str) -> str:
    return str(hooked.scalar("SELECT lifecycle_stage FROM runs WHERE run_uuid = :id", id=run))


def _complaints(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """What we logged; that it holds no secret is asserted here for every test."""
    found = [(record.levelno, record.getMessage()) for record in caplog.records if record.name == _LOGGER]
    assert not [text for text in _SECRETS if text in caplog.text.replace("--backend-store-uri URI", "")]
    assert not [record for record in caplog.records if record.name == _LOGGER and record.exc_info]
    return found


def _assert_every_way_works(hooked: Hooked) -> None:
    """Soft, hard and bulk deletions, restores and registrations are carried out and committed."""
    experiment, other = hooked.experiment(), hooked.experiment()
    runs = [hooked.run(experiment) for _ in range(3)]
    trace = hooked.trace(experiment)
    hooked.store.delete_run(runs[0])
    hooked.store.delete_run(runs[1])
    hooked.store.restore_run(runs[1])
    hooked.store._hard_delete_run(runs[0])
    if has("gc_of_logged_models"):
        model = hooked.model(experiment)
        hooked.store.delete_logged_model(model)
        hooked.store._hard_delete_logged_model(model)
    delete_traces(hooked.store, experiment, [trace])
    hooked.store.delete_experiment(other)
    hooked.store._hard_delete_experiment(other)
    hooked.store.delete_experiment(experiment)
    name = f"model-{uuid.uuid4().hex[:8]}"
    hooked.registry.create_registered_model(name)
    hooked.registry.create_model_version(name, f"{hooked.uri_of(runs[2])}/model")
    hooked.registry.delete_model_version(name, "1")
    hooked.registry.delete_registered_model(name)
    rows = hooked.rows()

    assert [row for row in rows["runs"] if runs[0] in row] == []
    assert all(_stage(hooked, run) == "deleted" for run in runs[1:])
    assert (rows.get("logged_models", []), rows["trace_info"], rows["model_versions"]) == ([], [], [])
    assert hooked.scalar("SELECT COUNT(*) FROM experiments WHERE experiment_id = :id", id=int(other)) == 0


# What is missing


def test_without_our_tables_all_is_as_without_us(
    fresh: Hooked, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A WARNING says what would switch it on: once, by the tracking store, however often it looks."""
    monkeypatch.setattr(recorder, "_RETRY_S", 0.0)
    with caplog.at_level(logging.DEBUG, _LOGGER):
        _assert_every_way_works(fresh)
    said = _complaints(caplog)

    assert [level for level, _ in said] == [logging.WARNING]
    assert {text for _, text in said} == {_NOT_SWITCHED_ON}
    assert not sa.inspect(fresh.engine).has_table(INBOX)


def test_what_is_switched_on_later_begins_by_itself(fresh: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store that found no tables looks again, and not at every deletion."""
    assert recorder._RETRY_S <= 10
    monkeypatch.setattr(recorder, "_RETRY_S", 0.5)
    experiment = fresh.experiment()
    run = fresh.run(experiment)
    with statements(fresh.store) as first:
        fresh.store.delete_run(run)
    with statements(fresh.store) as second:
        fresh.store.restore_run(run)
    fresh.init()
    waited = time.monotonic() + 15
    while not fresh.noted() and time.monotonic() < waited:
        fresh.store.delete_run(run)
        fresh.store.restore_run(run)
        threading.Event().wait(0.1)

    assert [INBOX in sent for sent in ("".join(first), "".join(second))] == [True, False]
    assert {note.id for note in fresh.noted()} == {run}


def test_older_tables(fresh: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """Revision 0001 has no inbox."""
    from alembic import command

    with fresh.engine.begin() as connection:
        command.upgrade(schema.alembic_config(connection), "0001")
    _assert_every_way_works(fresh)

    assert [level for level, _ in _complaints(caplog)] == [logging.WARNING]


@pytest.mark.parametrize("change", ["RENAME COLUMN recorded_ms TO noted_ms", "RENAME TO artifact_gc_mailbox"])
def test_newer_tables(hooked: Hooked, caplog: pytest.LogCaptureFixture, change: str) -> None:
    """Whatever a later version makes of them."""
    hooked.execute(f"ALTER TABLE {INBOX} {change}")
    _assert_every_way_works(hooked)

    assert {level for level, _ in _complaints(caplog)} == {logging.WARNING}


# What fails


def _fail_by_trigger(hooked: Hooked, text: str, sqlite_way: str = "ABORT") -> None:
    if hooked.engine.dialect.name == "sqlite":
        body = f"BEGIN SELECT RAISE({sqlite_way}, '{text}'); END"
        hooked.execute(f"CREATE TRIGGER no_room BEFORE INSERT ON {INBOX} {body}")
        return
    if hooked.engine.dialect.name == "mysql":
        signal = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{text.replace(':', chr(92) + ':')}'"
        hooked.execute(f"CREATE TRIGGER no_room BEFORE INSERT ON {INBOX} FOR EACH ROW {signal}")
        return
    hooked.execute(f"CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN RAISE '{text}'; END $$ LANGUAGE plpgsql")
    hooked.execute(f"CREATE TRIGGER no_room BEFORE INSERT ON {INBOX} FOR EACH ROW EXECUTE FUNCTION fail()")


def test_the_insert_fails(hooked: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """An ERROR for each; what the database says of URIs is not repeated."""
    _fail_by_trigger(hooked, f"no: s3://bucket/{_SECRET} postgresql://me:{_SECRET}@host/db")
    _assert_every_way_works(hooked)
    said = _complaints(caplog)

    assert {level for level, _ in said} == {logging.ERROR}
    assert len(said) == (
        12 if has("gc_of_logged_models") else 10
    )  # of the experiment without anything in it there is nothing to note
    assert said[0][1] == (
        "mlflow-artifact-gc could not note a deletion, which goes on; a later scan takes it up: no: … …"
    )
    assert hooked.noted() == []


def test_no_right_to_our_tables(on_postgresql: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """MLflow's user is another than the one that ran ``init``."""
    user = f"user_{uuid.uuid4().hex[:8]}"
    on_postgresql.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{_SECRET}'")
    for kind in ("TABLES", "SEQUENCES"):
        on_postgresql.execute(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {user}")
    on_postgresql.execute(f"REVOKE ALL ON {INBOX}, artifact_gc_intents FROM {user}")
    limited = Hooked(uri=on_postgresql.uri.replace("postgres:@", f"{user}:{_SECRET}@"))
    _assert_every_way_works(limited)
    limited.close()
    on_postgresql.execute(f"DROP OWNED BY {user}")
    on_postgresql.execute(f"DROP ROLE {user}")
    said = _complaints(caplog)

    assert {level for level, _ in said} == {logging.ERROR}
    assert said[0][1].endswith(f"permission denied for table {INBOX}")


def test_no_right_to_our_tables_on_mariadb(
    on_mariadb: Hooked, maria: MariaDbServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The same there, where rights are given table by table."""
    user, name = f"user_{uuid.uuid4().hex[:8]}", on_mariadb.engine.url.database
    maria.execute(f"CREATE USER {user}@'%' IDENTIFIED BY '{_SECRET}'")
    for table in sa.inspect(on_mariadb.engine).get_table_names():
        if not table.startswith("artifact_gc_"):
            maria.execute(f"GRANT ALL ON `{name}`.`{table}` TO {user}@'%'")
    limited = Hooked(uri=on_mariadb.uri.replace(f"{USER}:{PASSWORD}@", f"{user}:{_SECRET}@"))
    _assert_every_way_works(limited)
    limited.close()
    maria.execute(f"DROP USER {user}@'%'")
    said = _complaints(caplog)

    assert {level for level, _ in said} == {logging.ERROR}
    assert "INSERT command denied to user" in said[0][1]


def _fill_last_page(hooked: Hooked) -> None:
    """Until the next note needs a page that is not there."""
    with hooked.engine.connect() as connection:
        pages = -1
        while True:
            found = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            if pages not in (-1, found):
                connection.rollback()
                break
            connection.commit()
            pages = found
            connection.exec_driver_sql(
                f"INSERT INTO {INBOX} (event, entity_kind, entity_id, recorded_ms) VALUES ('deleted', 'run', 'x', 1)"
            )


@contextmanager
def _full_disk(store: Any) -> Iterator[None]:
    """No connection of the store's may make the file larger."""
    engine = engine_of(store)

    def limit(connection: sa.Connection, _cursor: Any, statement: str, *_others: Any) -> None:
        if INBOX in statement:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    sa.event.listen(engine, "before_cursor_execute", limit)
    yield
    sa.event.remove(engine, "before_cursor_execute", limit)


def test_a_full_disk(on_sqlite: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """There is room for the deletion and none for the note: SQLite undoes the note alone.

    Of a plain INSERT of one row it would undo the whole transaction, MLflow's statements included.
    """
    experiment = on_sqlite.experiment()
    runs = [on_sqlite.run(experiment) for _ in range(2)]
    model = on_sqlite.model(experiment)
    on_sqlite.store.delete_logged_model(model)
    on_sqlite.store.delete_run(runs[1])
    _fill_last_page(on_sqlite)
    before = on_sqlite.noted()
    with _full_disk(on_sqlite.store):
        on_sqlite.store.delete_run(runs[0])
        on_sqlite.store.restore_run(runs[1])
        on_sqlite.store._hard_delete_logged_model(model)
        on_sqlite.store._hard_delete_run(runs[1])
        on_sqlite.store.delete_experiment(experiment)
    said = _complaints(caplog)

    assert on_sqlite.noted() == before
    assert _stage(on_sqlite, runs[0]) == "deleted"
    assert on_sqlite.scalar("SELECT COUNT(*) FROM runs WHERE run_uuid = :id", id=runs[1]) == 0
    assert on_sqlite.rows()["logged_models"] == []
    assert [level for level, _ in said] == [logging.ERROR] * 5
    assert {text.rpartition(": ")[2] for _, text in said} == {"database or disk is full"}


def test_sqlite_undoes_the_whole_transaction_before_mlflow_wrote(
    on_sqlite: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    """What it undoes is ours alone; the deletion begins anew and is committed."""
    model = on_sqlite.model(on_sqlite.experiment())
    on_sqlite.store.delete_logged_model(model)
    _fail_by_trigger(on_sqlite, "no", "ROLLBACK")
    on_sqlite.store._hard_delete_logged_model(model)

    assert on_sqlite.rows()["logged_models"] == []
    assert [level for level, _ in _complaints(caplog)] == [logging.ERROR]


def test_sqlite_undoes_the_whole_transaction_after_mlflow_wrote(
    on_sqlite: Hooked, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is half committed: the user hears that it did not work, and may try again."""
    from mlflow.exceptions import MlflowException

    experiment = on_sqlite.experiment()
    runs = [on_sqlite.run(experiment) for _ in range(3)]
    before = on_sqlite.rows()
    _fail_by_trigger(on_sqlite, "no", "ROLLBACK")
    with pytest.raises(MlflowException, match="The database has undone this change as a whole") as refused:
        on_sqlite.store.delete_experiment(experiment)
    with pytest.raises(MlflowException, match="The database has undone"):
        on_sqlite.store.delete_run(runs[0])
    after = on_sqlite.rows()
    on_sqlite.execute("DROP TRIGGER no_room")
    on_sqlite.store.delete_run(runs[0])

    assert refused.value.error_code == "TEMPORARILY_UNAVAILABLE"
    assert after == before
    assert [note.id for note in on_sqlite.noted()] == [runs[0]]
    assert {level for level, _ in _complaints(caplog)} == {logging.ERROR}


@pytest.mark.parametrize("broken", ["_changes", "_registry_changes", "_gone", "_tables", "_framed"])
def test_a_mistake_of_ours(
    either: Hooked, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Nothing that the hook raises reaches the user, and what it says keeps secrets."""

    def fail(*_: object) -> Any:
        if broken == "_framed":
            return ValueError(f"s3://bucket/{_SECRET}"), True
        raise ValueError(f"s3://bucket/{_SECRET}")

    monkeypatch.setattr(recorder, broken, fail)
    _assert_every_way_works(either)

    assert {level for level, _ in _complaints(caplog)} == {logging.ERROR}


def test_listening_fails(hooked: Hooked, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SQLAlchemy that has these events no more."""
    monkeypatch.setattr(recorder, "event", None)
    _assert_every_way_works(hooked)

    assert hooked.noted() == []
    assert {level for level, _ in _complaints(caplog)} == {logging.ERROR}


# What keeps waiting


@contextmanager
def _nobody_else_may_use(hooked: Hooked, table: str) -> Iterator[None]:
    lock = {"postgresql": "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", "mysql": "LOCK TABLES {} WRITE"}
    with hooked.engine.begin() as connection:
        connection.exec_driver_sql(lock[hooked.engine.dialect.name].format(table))
        yield
        if hooked.engine.dialect.name == "mysql":
            connection.exec_driver_sql("UNLOCK TABLES")


@pytest.mark.parametrize("table", [INBOX, "artifact_gc_intents"])
def test_an_exclusive_lock_on_our_tables(on_a_server: Hooked, caplog: pytest.LogCaptureFixture, table: str) -> None:
    """A migration of ours, or an administrator's VACUUM FULL, may take minutes: nobody waits for it."""
    experiment = on_a_server.experiment()
    run = on_a_server.run(experiment)
    name = "model"
    on_a_server.registry.create_registered_model(name)

    def use() -> None:
        on_a_server.store.delete_run(run)
        on_a_server.registry.create_model_version(name, f"s3://bucket/{run}/model")

    user = threading.Thread(target=use)
    with _nobody_else_may_use(on_a_server, table):
        user.start()
        user.join(_WAITS_S)
        waits = user.is_alive()
    user.join()

    assert not waits
    assert _stage(on_a_server, run) == "deleted"
    assert on_a_server.scalar("SELECT COUNT(*) FROM model_versions") == 1
    said = _complaints(caplog)
    assert [level for level, _ in said] == [logging.ERROR] * (2 if table == INBOX else 1)
    why = {
        "postgresql": "canceling statement due to lock timeout",
        "mysql": "Lock wait timeout exceeded; try restarting transaction",
    }
    assert {text.rpartition(": ")[2] for _, text in said} == {why[on_a_server.engine.dialect.name]}


def test_what_a_worker_locks(on_a_server: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """It locks rows of its intents and takes notes out; no deletion meets these locks.

    (On SQLite whoever writes locks everything, and a worker's transactions are short.)
    """
    run = on_a_server.run(on_a_server.experiment())
    on_a_server.intent("run", run, "claimed", 1)
    on_a_server.store.delete_run(run)
    engine = database.open_engine(on_a_server.uri)
    with database.writing(engine) as connection:
        connection.exec_driver_sql("SELECT 1 FROM artifact_gc_intents FOR UPDATE")
        connection.exec_driver_sql("SELECT 1 FROM artifact_gc_lease FOR UPDATE")
        connection.exec_driver_sql(f"DELETE FROM {INBOX}")
        on_a_server.store.restore_run(run)
        on_a_server.store.delete_run(run)
        on_a_server.store._hard_delete_run(run)
    engine.dispose()

    assert [note.event for note in on_a_server.noted()] == ["restored", "deleted", "hard-deleted"]
    assert _complaints(caplog) == []


def test_what_another_user_locks(on_a_server: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """A hard deletion that waits for another user's transaction is noted all the same, and holds up no other."""
    experiment = on_a_server.experiment()
    first, second = on_a_server.run(experiment), on_a_server.run(experiment)
    on_a_server.store.delete_run(first)
    on_a_server.taken()
    deleting = threading.Thread(target=lambda: on_a_server.store._hard_delete_run(first))
    with on_a_server.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET name = 'x' WHERE run_uuid = :id"), {"id": first})
        deleting.start()
        deleting.join(1.5)
        waits = deleting.is_alive()
        began = time.monotonic()
        on_a_server.store.delete_run(second)
        took_s = time.monotonic() - began
    deleting.join()

    assert waits
    assert took_s < 5, "it did not wait: nobody would let it go on"
    assert sorted(note.event for note in on_a_server.noted()) == ["deleted", "hard-deleted"]
    assert _complaints(caplog) == []


_LIMITS_SET = {
    "postgresql": ("SET LOCAL lock_timeout = '7s'", "SELECT current_setting('lock_timeout')", ("7s", "0")),
    "mysql": (
        "SET SESSION lock_wait_timeout = 7, SESSION innodb_lock_wait_timeout = 8",
        "SELECT CONCAT(@@lock_wait_timeout, ' ', @@innodb_lock_wait_timeout)",
        ("7 8", "7 8"),
    ),
}


@pytest.mark.parametrize("fails", [False, True])
def test_mlflows_own_lock_timeout_is_as_before(on_a_server: Hooked, *, fails: bool) -> None:
    """Ours holds for our statements alone, also where they fail."""
    from mlflow.store.tracking.dbmodels.models import SqlRun

    run = on_a_server.run(on_a_server.experiment())
    if fails:
        _fail_by_trigger(on_a_server, "no")
    set_, show, expected = _LIMITS_SET[on_a_server.engine.dialect.name]
    with writing(on_a_server.store) as session:
        session.execute(sa.text(set_))
        session.get(SqlRun, run).lifecycle_stage = "deleted"
        session.flush()
        during = session.execute(sa.text(show)).scalar()
    with writing(on_a_server.store) as session:
        afterwards = session.execute(sa.text(show)).scalar()

    assert (during, afterwards) == expected
    assert len(on_a_server.noted()) == (0 if fails else 1)


def test_a_deadlock_of_ours_undoes_the_whole_deletion(on_mariadb: Hooked, caplog: pytest.LogCaptureFixture) -> None:
    """MariaDB ends one by undoing a whole transaction: MLflow must not commit what is left of it, and answers so."""
    from mlflow.exceptions import MlflowException

    run = on_mariadb.run(on_mariadb.experiment())
    on_mariadb.execute("CREATE TABLE others (id INTEGER PRIMARY KEY)")
    on_mariadb.execute("INSERT INTO others SELECT seq FROM seq_1_to_2000")
    on_mariadb.execute(
        f"CREATE TRIGGER waits BEFORE INSERT ON {INBOX} FOR EACH ROW UPDATE others SET id = -id WHERE id = 1"
    )
    waiting = threading.Event()

    def other() -> None:
        with on_mariadb.engine.begin() as connection:
            # It has done more than MLflow: it is not the one that is ended.
            connection.exec_driver_sql("UPDATE others SET id = id + 10000 WHERE id > 1 ORDER BY id DESC")
            connection.exec_driver_sql("SELECT 1 FROM others WHERE id = 1 FOR UPDATE")
            waiting.set()
            connection.execute(sa.text("UPDATE runs SET name = 'x' WHERE run_uuid = :id"), {"id": run})

    thread = threading.Thread(target=other)

    def begin(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        if statement.startswith("SAVEPOINT") and not thread.ident:
            thread.start()
            waiting.wait(10)
            time.sleep(0.2)  # until it waits for MLflow's row

    sa.event.listen(engine_of(on_mariadb.store), "before_cursor_execute", begin)
    with pytest.raises(MlflowException, match="has undone this change as a whole") as refused:
        on_mariadb.store.delete_run(run)
    sa.event.remove(engine_of(on_mariadb.store), "before_cursor_execute", begin)
    thread.join()
    stage, noted = _stage(on_mariadb, run), on_mariadb.noted()
    on_mariadb.execute("DROP TRIGGER waits")
    on_mariadb.store.delete_run(run)

    assert refused.value.error_code == "TEMPORARILY_UNAVAILABLE"
    assert (stage, noted) == ("active", [])
    assert [note.id for note in on_mariadb.noted()] == [run]
    assert "Deadlock found" in _complaints(caplog)[0][1]


def test_mlflow_writes_first_and_waits_no_longer_than_alone(on_sqlite: Hooked) -> None:
    """On a locked SQLite it is MLflow's own statement that waits: ours would wait as long once more."""
    run = on_sqlite.run(on_sqlite.experiment())
    on_sqlite.store.delete_run(run)
    with statements(on_sqlite.store) as sent:
        on_sqlite.store.restore_run(run)
    updates = [index for index, one in enumerate(sent) if one.startswith("UPDATE runs")]
    inserts = [index for index, one in enumerate(sent) if one.startswith(f"INSERT INTO {INBOX}")]

    assert len(updates) == len(inserts) == 1
    assert updates < inserts


def test_parallel_deletions(hooked: Hooked) -> None:
    """Eight threads at once, as a server has them: every deletion is carried out, and noted once."""
    experiment = hooked.experiment()
    runs = [hooked.run(experiment) for _ in range(40)]
    failures: list[BaseException] = []

    def delete(mine: list[str]) -> None:
        try:
            for run in mine:
                hooked.store.delete_run(run)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=delete, args=(runs[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert sorted(note.id for note in hooked.noted()) == sorted(runs)
    assert {note[:2] for note in hooked.noted()} == {("deleted", "run")}


# What stays behind


def test_sessions_leave_nothing_behind(on_sqlite: Hooked) -> None:
    """2,000 sessions: no listener, no memory to speak of."""
    from sqlalchemy.event import registry

    run = on_sqlite.run(on_sqlite.experiment())

    def use(times: int) -> tuple[int, int, int]:
        for number in range(times):
            with writing(on_sqlite.store) as session:
                if number % 1000 == 0:
                    session.execute(sa.text("SELECT 1"))
        on_sqlite.store.delete_run(run)
        on_sqlite.store.restore_run(run)
        gc.collect()
        return len(registry._key_to_collection), len(registry._collection_to_key), tracemalloc.get_traced_memory()[0]

    use(500)
    tracemalloc.start()
    keys, collections, held = use(500)
    keys_later, collections_later, held_later = use(2_000)
    tracemalloc.stop()

    assert keys_later - keys < 20
    assert collections_later - collections < 20
    # A listener that stays behind takes some kilobytes a session; what else the process does takes one megabyte or so.
    assert held_later - held < 2_000_000


# What cannot be imported

_POISON = """
import sys
class Poison:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise RuntimeError("poisoned {secret}")
sys.meta_path.insert(0, Poison())
"""
_PROGRAM = """
import json, sys, warnings
warnings.simplefilter("error", UserWarning)
import mlflow
early = [name for name in ("sqlalchemy", "mlflow_artifact_gc.hook.stores") if name in sys.modules]
from mlflow.tracking._tracking_service import utils
from mlflow.tracking._model_registry import utils as registry_utils
from mlflow.server import handlers
uri, workspaces = sys.argv[1:]
store = utils._get_store(uri, "s3://bucket/x")
registry = registry_utils._get_store(uri, uri)
server = handlers._tracking_store_registry.get_store(uri, "s3://bucket/x")
stores = [store, registry, server]
if workspaces == "True":
    from mlflow.tracking._workspace.registry import get_workspace_store
    stores.append(get_workspace_store(uri))
run = store.create_run(store.create_experiment("e"), "u", 0, [], "n").info.run_id
store.delete_run(run)
registry.create_registered_model("m")
registry.create_model_version("m", "s3://bucket/" + run)
print(json.dumps({
    "early": early,
    "stage": store.get_run(run).info.lifecycle_stage,
    "makers": [one.ManagedSessionMaker.__module__ for one in stores],
    "replica": str(getattr(server, "read_engine", None) and server.read_engine.url),
}))
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlflow_artifact_gc.hook.stores", "cannot be loaded and records nothing; MLflow works as without it"),
        ("mlflow_artifact_gc.hook.recorder", "records nothing of this store; MLflow works as without it"),
        ("mlflow_artifact_gc.journal", "records nothing of this store; MLflow works as without it"),
        ("mlflow_artifact_gc.hook.host", "starts no worker beside this server; MLflow works as without it"),
        ("nothing", "is installed and not switched on for this database"),
    ],
)
def test_what_of_ours_cannot_be_imported(sqlite_uri: str, tmp_path: Path, name: str, said: str) -> None:
    """``import mlflow`` works, MLflow's stores are built as MLflow builds them, and deletions are carried out."""
    folder, replica = tmp_path / "poison", tmp_path / "replica.db"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_POISON.format(name=name, secret=_SECRET))
    shutil.copyfile(sqlite_uri.removeprefix("sqlite:///"), replica)
    environ = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "MLFLOW_ARTIFACT_GC_WORKER": "off",
        "MLFLOW_TRACKING_URI": sqlite_uri,
        "_MLFLOW_SERVER_READ_REPLICA_BACKEND_STORE": f"sqlite:///{replica}",
    }
    environ.pop("PYTEST_CURRENT_TEST", None)
    argv = [sys.executable, "-c", _PROGRAM, sqlite_uri, str(has("workspaces"))]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    assert found["early"] == []
    assert found["stage"] == "deleted"
    assert found["replica"] == (f"sqlite:///{replica}" if has("read_replicas") else "None")
    watched = name in {"nothing", "mlflow_artifact_gc.hook.host"}
    assert {one.startswith("mlflow_artifact_gc") for one in found["makers"]} == {watched}
    assert said in done.stderr
    assert _SECRET not in done.stderr
