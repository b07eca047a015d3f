"""Killed with SIGKILL at named points and at any request or statement: a rerun ends as if nothing had happened.

Real processes, on SeaweedFS with SQLite and PostgreSQL. ``make soak`` kills more often (``SOAK_CRASHES``).
"""

from __future__ import annotations

import gc as collector
import os
import random
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.command import NOW, gc, init
from tests.crashing import POINTS, Crashes, Ended, Moment, crashes
from tests.integration.test_orphans import NOT_YOUNG, hunt, lose, new_id, own, wait
from tests.oracle import MARKER_NAME, assert_bucket_sound
from tests.servers import PostgresServer, S3Server, make_bucket
from tests.site import Item, Site
from tests.working import NOW as WORKER_NOW
from tests.working import elapse, turn, watched

SOAK = int(os.environ.get("SOAK_CRASHES", "0"))
ANYWHERE = ("request", "statement", "commit")
NAMED = tuple(point for point in POINTS if point not in ANYWHERE)
WAYS = ("gc", "worker", "partial", "orphans")
"""Who sweeps: ``gc``, the worker, ``gc --partial``, ``gc --orphans``."""
MINUTE_MS = 60_000
MakeSite = Callable[[Site], Site]
MakeUri = Callable[[str], str]


@pytest.fixture
def fresh_uri(sqlite_template: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeUri]:
    """Makes a fresh MLflow database of a kind, as often as it is asked."""
    made: list[tuple[PostgresServer, str]] = []

    def make(kind: str) -> str:
        name = f"t_{uuid.uuid4().hex[:16]}"
        if kind == "sqlite":
            shutil.copyfile(sqlite_template, tmp_path / f"{name}.db")
            return f"sqlite:///{tmp_path / name}.db"
        server: PostgresServer = request.getfixturevalue("pg")
        made.append((server, name))
        return server.create_database(name, template=request.getfixturevalue("pg_template"))

    yield make
    for server, name in made:
        server.drop_database(name)


@dataclass(kw_only=True)
class Case:
    """A site with the same content each time, and names for its entities that are the same each time."""

    site: Site
    way: str
    names: dict[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, site: Site, way: str) -> Case:
        """Deleted runs with objects, odd keys and an unfinished upload, beside live ones and a registered model."""
        case = cls(site=watched(site), way=way)
        if way == "orphans":
            case.orphans()
            return case
        init(site, *WORKER_NOW)
        experiment = site.experiment("all")
        dead = [case.named(f"dead {number}", site.run(experiment, n_objects=number)) for number in range(4)]
        case.named("odd", site.run(experiment, {"a b+%20": b"x", "carriage\rreturn": b"y"}))
        model = case.named("model", site.run(experiment, {"model/MLmodel": b"x", "beside": b"yy"}))
        case.named("live", site.run(experiment, n_objects=2))
        site.begin_upload(dead[3], site.artifact_uri(dead[3]), "late", b"part")
        site.register("churn", f"{site.artifact_uri(model)}/model", run_id=model)
        for name, run in [(name, run) for run, name in case.names.items()]:
            if name != "live":
                site.delete_run(run)
        return case

    def orphans(self) -> None:
        """What no row accounts for, seen before its quarantine, beside a live run and one that was purged."""
        own(self.site)
        for row in self.site.rows():
            if row.kind == "run":
                self.named(row.stage, row.id)
        for number in range(4):
            place = lose(self.site, f"mlruns/1/{self.named(f'orphan {number}', new_id())}/artifacts/", number + 1)
        self.site.begin_upload("nobody", f"s3://{self.site.bucket}/{place}", "late", b"part")
        hunt(self.site)
        wait(self.site)

    def named(self, name: str, entity: str) -> str:
        self.names[entity] = name
        return entity

    @property
    def command(self) -> list[str]:
        if self.way == "worker":
            stores = ["--backend-store-uri", self.site.uri, "--registry-store-uri", self.site.uri]
            return ["worker", "--once", *stores]
        sweep = ["gc", "--backend-store-uri", self.site.uri, "--yes", "--format", "json"]
        return [*sweep, "--orphans", *NOT_YOUNG] if self.way == "orphans" else [*sweep, *NOW, *self.options]

    @property
    def options(self) -> list[str]:
        """Those of ``gc`` for what is deleted in MLflow."""
        return ["--metadata", "delete", *(["--partial"] if self.way == "partial" else [])]

    def crash(self, forks: Crashes, moment: Moment | None) -> Ended:
        return forks.run(self.command, self.site.s3.environ(), moment)

    def rerun(self) -> Any:
        """Run it to its end; the reports."""
        if self.way == "orphans":
            return [hunt(self.site)]
        if self.way != "worker":
            return [gc(self.site, *self.options)]
        # A worker waits until the claims of one that died have run out.
        elapse(self.site, 2 * MINUTE_MS)
        turn(self.site)
        return []

    def state(self) -> dict[str, object]:
        """Bucket, rows and journal, by names that are the same in every case."""

        def renamed(text: str) -> str:
            for entity, name in self.names.items():
                text = text.replace(entity, f"<{name}>")
            return text

        with self.site.engine.connect() as connection:
            journal = connection.execute(sa.text("SELECT entity_id, state FROM artifact_gc_intents")).all()
            tagged = connection.execute(
                sa.text("SELECT run_uuid, value FROM tags WHERE key = 'artifact_gc.status'")
            ).all()
        return {
            "objects": sorted((renamed(item.key), item.kind, item.size) for item in self.items()),
            "rows": sorted((row.kind, renamed(row.id), row.stage) for row in self.site.rows()),
            "journal": sorted((renamed(entity), state) for entity, state in journal),
            # Without its date.
            "told": sorted((renamed(run), text.split(" ")[0]) for run, text in tagged),
        }

    def items(self) -> Iterator[Any]:
        return (item for item in self.site.items() if not item.key.endswith(MARKER_NAME))


@dataclass(kw_only=True)
class Reference:
    """An uninterrupted run: its end, and how often it came by a point."""

    state: dict[str, object]
    calls: int


@dataclass(kw_only=True)
class World:
    """The process that forks those that are killed, and the uninterrupted runs that are known already."""

    forks: Crashes
    known: dict[tuple[str, str, str], Reference] = field(default_factory=dict)


class Cases:
    """Makes cases on one kind of database, and knows how an uninterrupted run of each ends."""

    def __init__(self, make_uri: MakeUri, s3: S3Server, make_site: MakeSite, world: World) -> None:
        self._make_uri, self._s3, self._make_site = make_uri, s3, make_site
        self._forks, self._known = world.forks, world.known

    def make(self, kind: str, way: str) -> Case:
        site = Site.direct(self._make_uri(kind), self._s3, make_bucket(self._s3))
        return Case.build(self._make_site(site), way)

    def reference(self, kind: str, way: str, point: str = "request") -> Reference:
        key = (kind, way, point)
        if key not in self._known:
            case = self.make(kind, way)
            ended = case.crash(self._forks, Moment(point=point, nth=10**9))
            assert ended.code == 0, ended.err
            self._known[key] = Reference(state=case.state(), calls=ended.calls)
            self._let_go(case)
        return self._known[key]

    def check(self, kind: str, way: str, *moments: Moment) -> int:
        """Kill one at the first moment, its reruns at the others, and hold the end to the reference; the kills."""
        expected = self.reference(kind, way).state
        case = self.make(kind, way)
        before = case.site.snapshot()
        kills = 0
        for moment in moments:
            if kills and way == "worker":
                elapse(case.site, 2 * MINUTE_MS)
            ended = case.crash(self._forks, moment)
            assert ended.killed or kills, f"not killed {moment}: it came by {ended.calls} times\n{ended.err}"
            kills += ended.killed
        there = {*case.items()}
        reports = case.rerun()
        assert_counted(reports, there - {*case.items()})
        if way == "gc":
            assert_bucket_sound(case.site, reports, before, unreported=True)
        assert case.state() == expected, f"killed {', then '.join(map(str, moments))}"
        self._let_go(case)
        return kills

    def _let_go(self, case: Case) -> None:
        """Hundreds are made in a soak, and PostgreSQL has only so many connections, those of reruns among them."""
        case.site.close()
        if SOAK:
            collector.collect()


def assert_counted(reports: Any, gone: Collection[Item]) -> None:
    """A rerun counts what has left the bucket since, and nothing that had gone before.

    It may count less: a request of whoever was killed may have been under way.
    """
    really = Counter(item.kind for item in gone)
    for report in reports:
        told = report["totals"]
        assert told["deleted_objects"] <= really["object"], told
        assert told["aborted_uploads"] <= really["upload"], told


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """What the tests of this module share."""
    with crashes() as running:
        yield World(forks=running)


@pytest.fixture
def cases(bucket: str, fresh_uri: MakeUri, seaweed: S3Server, make_site: MakeSite, world: World) -> Cases:
    """Makes sites on SeaweedFS; with ``bucket`` comes the environment that points there."""
    return Cases(fresh_uri, seaweed, make_site, world)


def moments(rng: random.Random, calls: dict[str, int], count: int) -> Iterator[Sequence[Moment]]:
    """Moments anywhere, each of the three kinds in turn; every third case is killed twice."""
    for number in range(count):
        first, second = (
            Moment(point=point, nth=rng.randint(1, max(1, calls[point] * 9 // 10)), after=rng.random() < 0.5)
            for point in (ANYWHERE[number % 3], rng.choice(ANYWHERE))
        )
        yield (first, second) if number % 3 == 2 else (first,)


@pytest.mark.parametrize("point", NAMED)
def test_killed_at_a_named_point(cases: Cases, point: str, rng: random.Random) -> None:
    """Before it or after it, in gc or in the worker, on either database: the rerun ends as an uninterrupted run."""
    # A worker deletes no rows.
    choices = [
        (Moment(point=point, after=after), kind, way)
        for after in (False, True)
        for kind in ("sqlite", "postgresql")
        for way in ("gc", *(() if point == "metadata" else ("worker",)))
    ]
    for moment, kind, way in choices if SOAK else rng.sample(choices, 1):
        assert cases.check(kind, way, moment) == 1


def test_killed_between_what_is_recorded_and_what_is_told(cases: Cases) -> None:
    """Whatever was told last, a run that was purged does not go on saying when it will be: nobody looks at it again."""
    last = cases.reference("sqlite", "worker", "notice").calls

    assert cases.check("sqlite", "worker", Moment(point="notice", nth=last)) == 1


@pytest.mark.parametrize("way", ["partial", "orphans"])
def test_killed_again_and_again(cases: Cases, way: str, rng: random.Random) -> None:
    """At the claim, in mid-sweep, and when all has gone and nothing is noted: the next run ends it all the same."""
    moments = (Moment(point="claim", after=True), Moment(point="delete", nth=2), Moment(point="record"))
    kinds = ("sqlite", "postgresql")
    for kind in kinds if SOAK else rng.sample(kinds, 1):
        assert cases.check(kind, way, *moments) == len(moments)


@pytest.mark.parametrize("way", WAYS if SOAK else ("gc", "worker"))
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.timeout(60 + 10 * SOAK)
def test_killed_anywhere(cases: Cases, kind: str, way: str, rng: random.Random) -> None:
    """At random requests, statements and commits, and some twice."""
    calls = {point: cases.reference(kind, way, point).calls for point in ANYWHERE}
    assert all(count >= 3 for count in calls.values()), calls
    wanted = max(3, -(-SOAK // (2 * len(WAYS))))
    kills = sum(cases.check(kind, way, *some) for some in moments(rng, calls, wanted))

    assert kills >= wanted
