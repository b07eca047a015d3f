"""Every request and statement of a sweep fails in every way: nothing live goes, reports are true, a rerun finishes.

The requests are those of a sweep that was watched, so that none is forgotten. A fault that was planned and not met
fails the test. ``make soak`` strikes each single request (``SOAK_FAULTS``); here it is the first or the last of a kind.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import sqlite3
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from tests.command import NOW, init, run
from tests.fakes3 import Bucket, FakeS3, Fault, Kind, fake_s3
from tests.fakes3.faults import FOR_GOOD, OF_KEYS, OF_LISTINGS
from tests.integration.s3_servers import wait_for_nothing
from tests.oracle import assert_bucket_sound
from tests.servers import PostgresServer
from tests.site import Owned, Site, Snapshot
from tests.working import elapse

SOAK = bool(os.environ.get("SOAK_FAULTS"))
MakeSite = Callable[[Site], Site]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeS3]:
    """The S3 of this module."""
    with fake_s3() as server:
        yield server


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a site was before its first sweep: a copy elsewhere would be another database, one in its place is not."""

    uri: str
    database: bytes
    bucket: Bucket
    objects: dict[str, Owned]


@dataclass(kw_only=True)
class Bench:
    """Makes sites that all hold the same, and sweeps them."""

    fake: FakeS3
    database: Callable[[], str]
    make_site: MakeSite
    origins: dict[bool, Origin] = field(default_factory=dict)

    def site(self, *, versioned: bool) -> Site:
        """What ``build`` makes; on SQLite it is made once, and put back as it was."""
        if origin := self.origins.get(versioned):
            Path(origin.uri.removeprefix("sqlite:///")).write_bytes(origin.database)
            self.fake.kept.buckets[origin.bucket.name] = copy.deepcopy(origin.bucket)
            site = self.make_site(Site.direct(origin.uri, self.fake.server, origin.bucket.name))
            site.objects.update(origin.objects)
            return site
        site = self.build(versioned=versioned)
        if site.uri.startswith("sqlite"):
            self.origins[versioned] = Origin(
                uri=site.uri,
                database=Path(site.uri.removeprefix("sqlite:///")).read_bytes(),
                bucket=copy.deepcopy(self.fake.bucket(site.bucket)),
                objects=dict(site.objects),
            )
        return site

    def build(self, *, versioned: bool) -> Site:
        """A deleted run with objects, an odd key and an unfinished upload, another one, and a live one."""
        name = f"f-{uuid.uuid4().hex[:12]}"
        bucket = self.fake.make_bucket(name)
        bucket.versioning = "Enabled" if versioned else ""
        site = self.make_site(Site.direct(self.database(), self.fake.server, name))
        experiment = site.experiment()
        dead = [
            site.run(experiment, {"a": b"1", "b/c d": b"22", "carriage\rreturn": b"3"}),
            site.run(experiment, {"a": b"4", "b": b"5"}),
        ]
        site.begin_upload(dead[0], site.artifact_uri(dead[0]), "upload", b"part")
        live = site.run(experiment, n_objects=2)
        site.register("churn", f"{site.artifact_uri(live)}/data", run_id=live)
        if versioned:
            site.write(dead[0], site.artifact_uri(dead[0]), {"a": b"newer"})
            site.client.delete_object(Bucket=name, Key=f"{site.key_of(site.artifact_uri(dead[1]))}/a")
        for one in dead:
            site.delete_run(one)
        init(site, "--action", "purge")
        return site

    def sweep(self, site: Site) -> tuple[int, Any]:
        """``gc`` with the rows; exit code and report."""
        ran = run(
            *("gc", "--backend-store-uri", site.uri, "--yes", "--format", "json", *NOW),
            *("--metadata", "delete", "--concurrency", "1"),
        )
        assert ran.code in (0, 1, 3), f"{ran.code}: {ran.err}"
        assert "Traceback" not in ran.err
        return ran.code, ran.json

    def watched(self, *, versioned: bool) -> Counter[str]:
        """How often a sweep without faults makes each request."""
        site = self.site(versioned=versioned)
        self.fake.log.clear()
        code, _ = self.sweep(site)
        site.close()
        assert code == 0
        return Counter(call.operation for call in self.fake.log)

    def finish(self, site: Site, before: Snapshot, first: Any, *, unclear: bool) -> None:
        """The bucket is as the reports say, and after one more sweep there is nothing left to do."""
        reports = [first] if "results" in first else []
        # A lost answer to an abort is never counted: the next one says that there is no such upload.
        between = assert_bucket_sound(site, reports, before, unreported=unclear or not reports)
        # Where the database failed, this process still has its claims, and it lives.
        elapse(site, 2 * 60_000)
        code, second = self.sweep(site)
        assert code == 0, second
        after = assert_bucket_sound(site, second, between)
        dead = [row for row in before.rows if row.stage == "deleted"]
        for row in dead:
            folder = site.key_of(row.uri)
            assert not [item for item in after.items if item.key.startswith(f"{folder}/")]
        assert not {row.id for row in dead} & {row.id for row in after.rows}


@pytest.fixture
def impatient(fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without waiting between tries; no fault outlives its test."""
    for name, value in fake.server.environ().items():
        monkeypatch.setenv(name, value)
    wait_for_nothing(monkeypatch)
    monkeypatch.setattr("mlflow_artifact_gc.acting._PAUSE_S", 0.0)
    monkeypatch.setattr("mlflow_artifact_gc.sweeping._POLL_S", 0.01)
    fake.silence_s = 0.6
    yield
    fake.plan()


@pytest.fixture
def bench(fake: FakeS3, sqlite_template: Path, tmp_path: Path, make_site: MakeSite, impatient: None) -> Bench:
    """On SQLite."""

    def fresh() -> str:
        path = tmp_path / f"{uuid.uuid4().hex}.db"
        shutil.copyfile(sqlite_template, path)
        return f"sqlite:///{path}"

    return Bench(fake=fake, database=fresh, make_site=make_site)


@pytest.fixture
def pg_bench(
    fake: FakeS3, pg: PostgresServer, pg_template: str, make_site: MakeSite, impatient: None
) -> Iterator[Bench]:
    """On PostgreSQL."""
    made: list[str] = []

    def fresh() -> str:
        made.append(f"f_{uuid.uuid4().hex[:16]}")
        return pg.create_database(made[-1], template=pg_template)

    yield Bench(fake=fake, database=fresh, make_site=make_site)
    for name in made:
        pg.drop_database(name)


OPERATIONS = (
    "GetBucketVersioning",
    "ListObjectVersions",
    "ListObjectsV2",
    "ListMultipartUploads",
    "GetObject",
    "PutObject",
    "DeleteObjects",
    "DeleteObject",
    "AbortMultipartUpload",
)


def possible(operation: str) -> list[Kind]:
    """The faults that an operation can meet."""
    listing, keys = operation.startswith("List"), operation == "DeleteObjects"
    left_out = {*(() if listing else OF_LISTINGS), *(() if keys else OF_KEYS)}
    return [kind for kind in Kind if kind not in left_out]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.timeout(1200 if SOAK else 120)
def test_every_request_fails_in_every_way(bench: Bench, operation: str) -> None:
    """Once, and for good from then on."""
    versioned = operation in ("ListObjectVersions", "AbortMultipartUpload")
    calls = bench.watched(versioned=versioned)[operation]
    assert calls, f"no sweep makes {operation} any more: strike it out"
    for number, kind in enumerate(possible(operation)):
        lengths = (1, FOR_GOOD) if SOAK else ((1, FOR_GOOD)[number % 2],)
        if kind in (Kind.TIMEOUT, Kind.TIMEOUT_AFTER):
            lengths = (1,)  # Five tries take five times as long.
        for nth in range(1, calls + 1) if SOAK else ((1, calls)[number // 2 % 2],):
            for times in lengths:
                strike(bench, Fault(kind=kind, operation=operation, nth=nth, times=times), versioned=versioned)


def strike(bench: Bench, fault: Fault, *, versioned: bool) -> None:
    """One sweep with a fault and one without."""
    site = bench.site(versioned=versioned)
    before = site.snapshot()
    bench.fake.plan(fault)
    with pytest.MonkeyPatch.context() as patched:
        if fault.kind in (Kind.TIMEOUT, Kind.TIMEOUT_AFTER):
            patched.setattr("mlflow_artifact_gc.s3.client._READ_TIMEOUT_S", 0.3)
        code, report = bench.sweep(site)
    bench.fake.plan()
    assert fault.hit, f"not met: {fault}"
    if fault.times == FOR_GOOD and fault.kind in (Kind.DENIED, Kind.EXPIRED, Kind.RESET):
        outcomes = {result["outcome"] for result in report.get("results", ())}
        assert code or outcomes != {"swept"}, f"nothing is said of {fault}"
    bench.finish(site, before, report, unclear=fault.operation == "AbortMultipartUpload")
    site.close()


def test_the_requests_are_all_of_a_sweep_s(bench: Bench) -> None:
    """A sweep makes no request that is not struck above."""
    made = bench.watched(versioned=False) | bench.watched(versioned=True)

    assert set(made) == set(OPERATIONS)


@pytest.mark.parametrize("versioned", [False, True], ids=["objects", "versions"])
def test_a_page_that_comes_twice_is_counted_once(bench: Bench, *, versioned: bool) -> None:
    """A listing that repeats a page shows the same objects twice: what leaves the bucket is counted once."""
    operation = "ListObjectVersions" if versioned else "ListObjectsV2"
    calls = bench.watched(versioned=versioned)[operation]
    for nth in range(1, calls + 1):
        site = bench.site(versioned=versioned)
        before = site.snapshot()
        fault = Fault(kind=Kind.REPEATED_PAGE, operation=operation, nth=nth)
        bench.fake.plan(fault)
        code, report = bench.sweep(site)
        bench.fake.plan()

        assert fault.hit
        assert code == 0
        assert_bucket_sound(site, report, before)
        site.close()


def test_a_right_that_is_missing_for_some_keys(bench: Bench) -> None:
    """The others go, the location failed, its row stays, and the next run finishes once the right is there."""
    site = bench.site(versioned=False)
    before = site.snapshot()
    bench.fake.operations.denied = lambda operation, key: operation == "DeleteObject" and key.endswith("/c d")
    code, report = bench.sweep(site)
    bench.fake.operations.denied = lambda _operation, _key: False

    assert code == 3
    assert {result["outcome"] for result in report["results"]} == {"swept", "failed"}
    bench.finish(site, before, report, unclear=False)


# The database

Failing = Callable[[Any], None]
"""Raises in the place of a statement (given its cursor) or of a commit (given its connection)."""


def raising(words: str) -> Failing:
    """The way in which SQLite's driver fails with these words."""

    def fail(_target: Any) -> None:
        raise sqlite3.OperationalError(words)

    return fail


DATABASE = {
    "disk full": raising("database or disk is full"),
    "read-only": raising("attempt to write a readonly database"),
    "locked": raising("database is locked"),
    "restart": raising("server closed the connection unexpectedly"),
}


def told(statement: str) -> Failing:
    """PostgreSQL itself fails: the error, and the transaction that it ends, are its own."""

    def fail(target: Any) -> None:
        # Not the cursor itself: one that reads row by row on the server would declare the statement, and run nothing.
        connection = target.connection if hasattr(target, "execute") else target
        with connection.cursor() as cursor:
            cursor.execute(statement)
        pytest.fail(f"it does not fail: {statement}")

    return fail


def answered(state: str) -> Failing:
    """PostgreSQL answers with this SQLSTATE."""
    return told(f"DO $$ BEGIN RAISE EXCEPTION 'planned' USING ERRCODE = '{state}'; END $$")


POSTGRESQL = {
    "deadlock": answered("40P01"),
    "serialization failure": answered("40001"),
    # The first takes effect a moment later, which may be after an answer.
    "connection lost": told("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(30)"),
    "read-only": answered("25006"),
    "disk full": answered("53100"),
}


def lost_after_the_commit(connection: Any) -> None:
    """The connection breaks before the answer to a commit comes, which took effect."""
    connection.commit()
    POSTGRESQL["connection lost"](connection)


class Statements:
    """Counts the statements and commits of this process, and fails one of them, or all from then on."""

    def __init__(self) -> None:
        self.seen = 0
        self.nth = 0
        self.for_good = False
        self.fail: Failing | None = None
        self.hit = 0
        self.commits: list[int] = []

    def count(self, target: Any) -> None:
        self.seen += 1
        if self.fail is not None and (self.seen == self.nth or (self.for_good and self.seen > self.nth > 0)):
            self.hit += 1
            self.fail(target)

    def before(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The same method of a dialect, which is counted first."""
        is_commit = original.__name__ == "do_commit"

        def counted(dialect: Any, target: Any, *arguments: Any, **named: Any) -> Any:
            if is_commit:
                self.commits.append(self.seen + 1)
            self.count(target)
            return original(dialect, target, *arguments, **named)

        return counted


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    """Of every engine; the commit fails before it is made."""
    counting = Statements()
    for dialect in (sa.engine.default.DefaultDialect, PGDialect_psycopg2):
        for name in ("do_execute", "do_executemany", "do_commit"):
            if name in vars(dialect):
                monkeypatch.setattr(dialect, name, counting.before(vars(dialect)[name]))
    return counting


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
@pytest.mark.timeout(1200 if SOAK else 120)
def test_every_statement_fails(bench: Bench, statements: Statements, *, for_good: bool) -> None:
    """Wherever the database fails: nothing live goes, and nothing at all where it was reading what refers to what."""
    total = how_many(bench, statements)
    step = 1 if SOAK else max(1, total // 12)
    errors = list(DATABASE.values())
    for number, nth in enumerate(range(1, total - 2, step)):
        fail_at(bench, statements, nth, errors[number % len(errors)], for_good=for_good)


@pytest.mark.timeout(3600 if SOAK else 240)
def test_statements_and_commits_fail_on_postgresql(pg_bench: Bench, statements: Statements, rng: random.Random) -> None:
    """The same by a server's errors: for each a commit or a statement by the seed, once, and a statement for good."""
    total = how_many(pg_bench, statements)
    commits = [nth for nth in statements.commits if nth < total - 2]
    places = range(1, total - 2)
    for fail in POSTGRESQL.values():
        strikes = [(nth, for_good) for nth in places for for_good in (False, True)]
        if not SOAK:
            strikes = [(rng.choice([*commits, rng.choice(places)]), False), (rng.choice(places), True)]
        for nth, for_good in strikes:
            fail_at(pg_bench, statements, nth, fail, for_good=for_good)
    # Commits that took effect, and nobody was told.
    for nth in commits if SOAK else [rng.choice(commits)]:
        fail_at(pg_bench, statements, nth, lost_after_the_commit, for_good=False)


def how_many(bench: Bench, statements: Statements) -> int:
    """How many statements and commits a sweep without faults makes."""
    site = bench.site(versioned=False)
    statements.seen = 0
    statements.commits.clear()
    bench.sweep(site)
    site.close()
    return statements.seen


def fail_at(bench: Bench, statements: Statements, nth: int, fail: Failing, *, for_good: bool) -> None:
    """One sweep whose ``nth`` statement or commit fails, and one without faults."""
    site = bench.site(versioned=False)
    before = site.snapshot()
    statements.seen, statements.nth, statements.for_good, statements.hit = 0, nth, for_good, 0
    statements.fail = fail
    code, report = bench.sweep(site)
    statements.fail = None
    assert statements.hit, f"statement {nth} was not met"
    assert code or not for_good, f"nothing is said of a database that fails from statement {nth} on"
    bench.finish(site, before, report, unclear=True)
    site.close()


class Readings:
    """In the place of ``do_execute``: the readings of model versions fail from the ``nth`` on."""

    def __init__(self, nth: int) -> None:
        self.nth, self.seen = nth, 0
        self._original: Any = sa.engine.default.DefaultDialect.do_execute

    def __call__(self, cursor: Any, statement: str, *rest: Any) -> None:
        if "model_versions" in statement:
            self.seen += 1
            if self.seen >= self.nth:
                raise sqlite3.OperationalError("disk I/O error")
        self._original(None, cursor, statement, *rest)


def test_an_error_in_reading_references_deletes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the readings it is, and wherever in the middle of it."""
    for nth in range(1, 200):
        site = bench.site(versioned=False)
        before = site.snapshot()
        reading = Readings(nth)
        bench.fake.log.clear()
        with monkeypatch.context() as patched:
            patched.setattr(sa.engine.default.DefaultDialect, "do_execute", reading)
            code, _ = bench.sweep(site)
        if reading.seen < nth:
            assert nth > 2, "it reads them for the plan, and once more before it acts"
            return
        assert code == 1
        assert site.snapshot().items == before.items
        assert not [call for call in bench.fake.log if call.operation.startswith(("Delete", "Abort", "Put"))]
        site.close()
    pytest.fail("there is no end of it")


def test_a_wrong_endpoint_deletes_nothing_and_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens, each location is paused; with the right one the next run finishes."""
    site = bench.site(versioned=False)
    before = site.snapshot()
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
        code, report = bench.sweep(site)

    assert code == 1
    assert {result["outcome"] for result in report["results"]} == {"paused"}
    assert site.snapshot().items == before.items
    bench.finish(site, before, report, unclear=False)
