"""What is different on MySQL and MariaDB: its snapshots, its deadlocks, its letters, its clock. On a real MariaDB."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import database, journal, metadata, notices, references
from mlflow_artifact_gc import registry as model_registry
from mlflow_artifact_gc.errors import DatabaseUnusable
from mlflow_artifact_gc.locations import Destination
from mlflow_artifact_gc.tables import intents
from tests.command import gc, init, outcomes, reasons, run
from tests.hooked import ROOT, Hooked, engine_of
from tests.mariadb import MariaDbServer, Template
from tests.oracle import assert_bucket_sound
from tests.servers import S3Server
from tests.site import Site
from tests.working import NOW, left, watched

MakeSite = Callable[[Site], Site]
_FUTURE_MS = 2**52
_TWICE_AS_MANY = """
INSERT INTO artifact_gc_intents (location_sha256, bucket, prefix, entity_kind, entity_id, experiment_id, workspace, uri,
    first_seen_ms, state, state_ms, attempts, deleted_objects, deleted_versions, deleted_markers, deleted_bytes,
    aborted_uploads)
SELECT SHA2(CONCAT(id, RAND()), 256), bucket, prefix, entity_kind, entity_id, experiment_id, workspace, uri,
    first_seen_ms, state, state_ms, attempts, deleted_objects, deleted_versions, deleted_markers, deleted_bytes,
    aborted_uploads
FROM artifact_gc_intents
"""


@pytest.fixture
def engine(maria_uri: str) -> Iterator[sa.Engine]:
    """An engine as our commands open it, on MLflow's tables."""
    made = database.open_engine(maria_uri)
    yield made
    made.dispose()


@pytest.fixture
def site(maria_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """A site with the hook."""
    return watched(make_site(Site.direct(maria_uri, seaweed, bucket)))


@pytest.fixture
def hooked(maria_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """MLflow's stores with the hook in them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", maria_uri)
    made = Hooked(uri=maria_uri).init()
    yield made
    made.close()


def _in_thread(work: Callable[[], Any]) -> Any:
    return ThreadPoolExecutor(1).submit(work)


# Transactions


def test_what_is_committed_while_a_claim_waits_is_seen(engine: sa.Engine) -> None:
    """A transaction of ours that has read, and then waited for a lock, sees what the other has committed meanwhile."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql(
            "INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (1, 'a', 'deleted')"
        )
    stage = "SELECT lifecycle_stage FROM experiments WHERE experiment_id = 1"
    begun = threading.Event()

    def claim() -> object:
        with database.writing(engine) as connection:
            connection.exec_driver_sql(stage).scalar()
            begun.set()
            connection.exec_driver_sql("SELECT 1 FROM workspaces FOR UPDATE").all()
            return connection.exec_driver_sql(stage).scalar()

    with database.writing(engine) as connection:
        connection.exec_driver_sql("SELECT 1 FROM workspaces FOR UPDATE").all()
        claiming = _in_thread(claim)
        assert begun.wait(10)
        connection.exec_driver_sql("UPDATE experiments SET lifecycle_stage = 'active'")
    assert claiming.result(10) == "active"


def test_a_reading_is_one_snapshot_and_writes_nothing(engine: sa.Engine) -> None:
    """Its queries all see what the first of them saw; also after a writing transaction on the same connection."""
    for _ in range(2):
        with database.reading(engine) as connection:
            before = connection.exec_driver_sql("SELECT COUNT(*) FROM experiments").scalar()
            with database.writing(engine) as other:
                other.exec_driver_sql(f"INSERT INTO experiments (name) VALUES ('{uuid.uuid4().hex}')")
            assert connection.exec_driver_sql("SELECT COUNT(*) FROM experiments").scalar() == before
    with (
        pytest.raises(DatabaseUnusable, match="READ ONLY transaction"),
        database.reading(engine) as connection,
    ):
        connection.exec_driver_sql("DELETE FROM experiments")


def test_a_deadlock_of_ours_is_tried_again(engine: sa.Engine) -> None:
    """Two transactions wait for each other: MariaDB ends one, and it succeeds at its second try."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO experiments (experiment_id, name) VALUES (1, '1'), (2, '2')")
    both = threading.Barrier(2)
    tries: list[int] = []

    def lock(connection: sa.Connection, id_: int) -> None:
        connection.exec_driver_sql(f"UPDATE experiments SET name = CONCAT(name, 'x') WHERE experiment_id = {id_}")

    def work(first: int, second: int) -> None:
        def statements(connection: sa.Connection) -> None:
            again = first in tries
            tries.append(first)
            lock(connection, first)
            if not again:
                both.wait(10)
            lock(connection, second)

        database.written(engine, statements)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, 1, 2), pool.submit(work, 2, 1)]:
            done.result(30)
    assert len(tries) == 3
    with database.reading(engine) as connection:
        assert connection.exec_driver_sql("SELECT MAX(LENGTH(name)), MIN(LENGTH(name)) FROM experiments").one() == (
            3,
            3,
        )


def test_a_lock_that_does_not_come_in_time_is_tried_again(engine: sa.Engine) -> None:
    """And where it never comes, one sentence says so."""
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO experiments (experiment_id, name) VALUES (1, '1')")
    tries: list[int] = []
    first_failed = threading.Event()

    def statements(connection: sa.Connection) -> None:
        if tries:
            first_failed.set()
        tries.append(1)
        connection.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 1")
        connection.exec_driver_sql("SELECT 1 FROM experiments FOR UPDATE").all()

    with database.writing(engine) as connection:
        connection.exec_driver_sql("SELECT 1 FROM experiments FOR UPDATE").all()
        waiting = _in_thread(lambda: database.written(engine, statements))
        assert first_failed.wait(10)
    waiting.result(10)
    assert len(tries) == 2

    with database.writing(engine) as connection:
        connection.exec_driver_sql("SELECT 1 FROM experiments FOR UPDATE").all()
        with pytest.raises(
            DatabaseUnusable, match=r"answered: Lock wait timeout exceeded; try restarting transaction$"
        ):
            database.written(engine, statements)


def test_intents_are_locked_in_the_order_of_their_ids(hooked: Hooked) -> None:
    """Whatever index leads to them: who waits for the first of them holds none that another may want next."""
    run_id = uuid.uuid4().hex
    hooked.intent("run", run_id, "pending", None)
    for _ in range(9):
        # So many that an index is worth its while: the one over their keys leads to the last of these first.
        hooked.execute(_TWICE_AS_MANY)
    first, last = "9" * 64, "0" * 64
    hooked.execute("UPDATE artifact_gc_intents SET location_sha256 = :key ORDER BY id LIMIT 1", key=first)
    hooked.execute("UPDATE artifact_gc_intents SET location_sha256 = :key ORDER BY id DESC LIMIT 1", key=last)
    hooked.execute("ANALYZE TABLE artifact_gc_intents")
    keys: dict[str, int] = {
        key: hooked.scalar("SELECT id FROM artifact_gc_intents WHERE location_sha256 = :key", key=key)
        for key in (first, last)
    }
    engine = database.open_engine(hooked.uri)

    def claim() -> int:
        with database.writing(engine) as connection:
            return len(journal.intent_rows(connection, list(keys)))

    def lock(connection: sa.Connection, id_: int) -> None:
        connection.execute(sa.select(intents.c.id).where(intents.c.id == id_).with_for_update()).all()

    with database.writing(engine) as connection:
        lock(connection, keys[first])
        claiming = _in_thread(claim)
        with pytest.raises(TimeoutError):
            claiming.result(0.5)
        lock(connection, keys[last])
    assert claiming.result(10) == len(keys)
    engine.dispose()


def test_a_lost_connection(engine: sa.Engine, maria: MariaDbServer) -> None:
    """It is told in words; the next transaction gets a new one."""

    def lose(connection: sa.Connection) -> None:
        (id_,) = connection.exec_driver_sql("SELECT CONNECTION_ID()").one()
        maria.execute(f"KILL {id_}")
        connection.exec_driver_sql("SELECT 1")

    with pytest.raises(DatabaseUnusable, match=r"answered: the connection was lost$"), database.reading(engine) as one:
        lose(one)
    with database.reading(engine) as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_the_clock_knows_no_time_zone(engine: sa.Engine) -> None:
    """Also in the two hours that the server's own time calls by the same name, because summer ends."""
    with engine.connect() as connection:
        for instant_s in (1761438600, 1761442200):  # 2025-10-26 00:30 and 01:30 UTC
            connection.exec_driver_sql(f"SET timestamp = {instant_s}.25")
            assert connection.exec_driver_sql("SELECT CAST(NOW() AS CHAR)").scalar() == "2025-10-26 02:30:00"
            assert database.clock_ms(connection) == instant_s * 1000 + 250
        connection.exec_driver_sql("SET timestamp = DEFAULT")
        assert abs(database.clock_ms(connection) - time.time() * 1000) < 5_000


def test_notes_are_dated_by_the_server(hooked: Hooked) -> None:
    """Each of the ways in which they are written."""
    engine = database.open_engine(hooked.uri)
    run_id = hooked.run(hooked.experiment())
    with database.reading(engine) as connection:
        before_ms = database.clock_ms(connection)
    hooked.store.delete_run(run_id)
    hooked.store._hard_delete_run(run_id)
    with database.reading(engine) as connection:
        after_ms = database.clock_ms(connection)
        dates = [*connection.scalars(sa.text("SELECT recorded_ms FROM artifact_gc_inbox ORDER BY id"))]
    engine.dispose()

    assert [before_ms, *dates, after_ms] == sorted([before_ms, *dates, after_ms])
    assert len(dates) == 2


# Letters


def test_places_that_differ_in_case_alone_are_two(site: Site) -> None:
    """MLflow's tables take them for one by default: what lies in the live one stays."""
    init(site, *NOW)
    lower, upper = (site.experiment(artifact_location=f"s3://{site.bucket}/{name}") for name in ("data", "Data"))
    dead, other = site.run(lower, n_objects=1), site.run(upper, n_objects=1)
    live, beside = site.run(lower, n_objects=1), site.run(upper, n_objects=1)
    for run_id in (dead, other):
        site.delete_run(run_id)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept", other: "swept"}
    assert_bucket_sound(site, report, before, intact=[live, beside])
    with site.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(intents)) == 2


def test_a_live_place_is_not_hidden_by_one_in_other_letters(site: Site) -> None:
    """Two live runs whose places differ in case: each of them protects what contains it."""
    init(site, *NOW)
    experiment = site.experiment()
    dead, first, second = (site.run(experiment, n_objects=1) for _ in range(3))
    inside = site.artifact_uri(dead)
    site.write(second, f"{inside}/kept", {"a": 1})
    for run_id, uri in ((first, f"{inside}/KEPT"), (second, f"{inside}/kept")):
        site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=uri, id=run_id)
    with references.TrackingDatabase.probe(site.engine, models_follow_run=False).reading() as tracking:
        texts = {reference.text for reference in tracking.references()}

    assert {f"{inside}/KEPT", f"{inside}/kept"} <= texts
    site.delete_run(dead)
    assert reasons(gc(site))[dead] == "protected"
    assert len(left(site, dead)) == 1


def test_a_database_in_latin1(
    maria: MariaDbServer, maria_template: Template, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """As old servers make them: what MLflow stored there is found, letter by letter."""
    old = Template(
        statements=[
            one.replace("utf8mb4_general_ci", "latin1_swedish_ci").replace("utf8mb4", "latin1")
            for one in maria_template.statements
        ],
        rows=maria_template.rows,
    )
    uri = maria.create_database(template=old)
    site = watched(make_site(Site.direct(uri, seaweed, bucket)))
    init(site, *NOW)
    dead, live = (
        site.run(site.experiment(artifact_location=f"s3://{bucket}/{name}"), n_objects=1) for name in ("été", "Été")
    )
    site.delete_run(dead)
    before = site.snapshot()
    report = gc(site, "--metadata", "delete")

    assert outcomes(report) == {dead: "swept"}
    assert_bucket_sound(site, report, before, intact=[live])
    site.close()
    maria.drop_database(uri.rpartition("/")[2])


# Beside MLflow's users


def test_a_registration_whose_transaction_is_older_than_the_claim(hooked: Hooked) -> None:
    """Its snapshot shows no claim; it is refused nevertheless."""
    from mlflow.exceptions import MlflowException

    hooked.registry.create_registered_model("churn")
    run_id = hooked.run(hooked.experiment())
    before = hooked.rows()

    def claim(_connection: Any, _cursor: Any, statement: str, *_others: Any) -> None:
        if statement.startswith("INSERT INTO model_versions"):
            hooked.intent("run", run_id, "sweeping", _FUTURE_MS)

    engine = engine_of(hooked.registry)
    sa.event.listen(engine, "before_cursor_execute", claim)
    with pytest.raises(MlflowException, match=f"run {run_id} are being removed") as refused:
        hooked.registry.create_model_version("churn", f"{ROOT}/{run_id}/model")
    sa.event.remove(engine, "before_cursor_execute", claim)

    assert refused.value.error_code == "RESOURCE_CONFLICT"
    assert hooked.rows() == before


def test_a_registration_asks_without_waiting_for_a_worker(hooked: Hooked) -> None:
    """A claim that is not committed yet locks the very intent: whoever registers goes on at once."""
    hooked.registry.create_registered_model("churn")
    run_id = hooked.run(hooked.experiment())
    hooked.intent("run", run_id, "pending", None)
    engine = database.open_engine(hooked.uri)
    with database.writing(engine) as connection:
        connection.execute(intents.update().values(state="sweeping", claimed_until_ms=_FUTURE_MS))
        version = _in_thread(lambda: hooked.version("churn", f"{ROOT}/{run_id}/model"))
        assert version.result(5) == "1"
    engine.dispose()


def test_writers_are_seen_without_a_lock(engine: sa.Engine) -> None:
    """What a transaction has written to the registry is seen until it ends, without any right of an administrator."""
    names = model_registry.VERSION
    insert = "INSERT INTO model_versions (workspace, name, version, source) VALUES ('default', 'churn', 1, 's3://b/x')"
    with database.writing(engine) as connection:
        connection.exec_driver_sql("INSERT INTO registered_models (workspace, name) VALUES ('default', 'churn')")
    assert database.unfinished_writes(engine, "model_versions", names=names) == set()
    with engine.connect().execution_options(artifact_gc_write=True) as connection:
        connection.exec_driver_sql(insert)
        inserting = database.unfinished_writes(engine, "model_versions", names=names)
        connection.commit()
        assert len(inserting) == 1
        assert database.unfinished_writes(engine, "model_versions", names=names) == set()
        connection.exec_driver_sql("UPDATE model_versions SET source = 'S3://B/X'")
        assert database.unfinished_writes(engine, "model_versions", names=names) not in (set(), inserting)
        connection.rollback()
    assert database.unfinished_writes(engine, "model_versions", names=names) == set()


def test_tags_of_ours_wait_for_no_user(site: Site) -> None:
    """A user's transaction holds the run's row: what we have to tell fails soon, and no deadlock ends the user's."""
    run_id = site.run(site.experiment())
    site.delete_run(run_id)
    engine = database.open_engine(site.uri)
    with site.engine.begin() as user:
        user.execute(sa.text("UPDATE runs SET lifecycle_stage = 'active' WHERE run_uuid = :id"), {"id": run_id})
        began = time.monotonic()
        with (
            pytest.raises(DatabaseUnusable, match="is being changed by somebody else"),
            database.writing(engine) as connection,
        ):
            notices.write(connection, {run_id: notices.pending(1)})
        assert time.monotonic() - began < 10, "by itself MariaDB waits for 50 s"
    with database.writing(engine) as connection:
        notices.write(connection, {run_id: notices.pending(1)})
    engine.dispose()
    assert "artifact_gc.expires" in site.store.get_run(run_id).data.tags


def test_runs_are_made_while_rows_of_their_experiment_are_deleted(site: Site) -> None:
    """The experiment is held against a restore, not against those who work in it."""
    init(site, *NOW)
    experiment = site.experiment()
    dead = site.run(experiment, n_objects=1)
    site.delete_run(dead)
    engine = database.open_engine(site.uri)
    eraser = metadata.Eraser(references.TrackingDatabase.probe(engine, models_follow_run=False), Destination())
    stones = references.TrackingDatabase.probe(engine, models_follow_run=False)
    with stones.reading() as tracking:
        (stone,) = tracking.tombstones()
    with database.writing(engine) as connection:
        eraser._lock(connection, stone.entity.kind, [stone.entity])
        made = _in_thread(lambda: site.run(experiment))
        assert made.result(10)
        renamed = _in_thread(lambda: site.store.delete_experiment(experiment))
        with pytest.raises(TimeoutError):
            renamed.result(0.5)
    renamed.result(10)
    engine.dispose()


# Copies


def test_a_dump_that_is_read_back_is_another_database(site: Site, maria: MariaDbServer) -> None:
    """Under its own name on its own server, or under another: it does not purge until a person says that it moved."""
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    name = sa.make_url(site.uri).database or ""
    site.close()
    dump = Template.of(maria, name)
    copy = maria.create_database(template=dump)
    time.sleep(1.1)  # a server says when it made a table by the second
    maria.drop_database(name)
    maria.create_database(name, template=dump)
    for uri in (copy, site.uri):
        ran = run("gc", "--backend-store-uri", uri, "--yes")
        assert (ran.code, "it is a copy, or it was moved" in ran.err) == (1, True), ran.err
    init(site, "--adopt")
    assert outcomes(gc(site)) == {run_id: "swept"}
    maria.drop_database(copy.rpartition("/")[2])


def test_the_fingerprint_stays(engine: sa.Engine, maria: MariaDbServer) -> None:
    """MLflow's own upgrades, an analysis and what is written leave it as it is."""
    with database.reading(engine) as connection:
        before = database.fingerprint(connection)
    time.sleep(1.1)
    with database.writing(engine) as connection:
        for statement in (
            "UPDATE alembic_version SET version_num = CONCAT(version_num, '')",
            "ANALYZE TABLE alembic_version",
            "ALTER TABLE experiments ADD COLUMN added INTEGER",
            "FLUSH TABLES alembic_version",
        ):
            if statement.startswith("FLUSH"):
                maria.execute(statement.replace(" alembic", f" `{engine.url.database}`.alembic"))
            else:
                connection.exec_driver_sql(statement)
        connection.exec_driver_sql("SET time_zone = '+09:00'")
        assert database.fingerprint(connection) == before
    assert before.startswith("mariadb:")
    assert before.endswith(f"/{engine.url.database}")
