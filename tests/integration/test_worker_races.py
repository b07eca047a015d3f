"""Workers beside users and beside each other: in whatever order things come, the end is the same, and nothing is lost.

The users delete and restore through MLflow's own stores with the hook in them; time passes by moving dates.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import agenda, fence, inbox, journal, lease, notices, rounds, sweeping
from mlflow_artifact_gc.intake import Intake
from mlflow_artifact_gc.worker import Worker
from tests.command import gc, init, outcomes
from tests.servers import S3Server
from tests.site import Site
from tests.working import NOW, shift, tags, turn, watched, worker

MakeSite = Callable[[Site], Site]
HOUR_MS: Final = 3_600_000
OBJECTS: Final = 3
PLAY_S: Final = 5.0


class Crash(Exception):
    """Not an error that a worker knows: it ends there."""


@pytest.fixture
def any_site(any_db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """A site with the hook, on each kind of database."""
    return watched(make_site(Site.direct(any_db_uri, seaweed, bucket)))


@pytest.fixture
def either_site(db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """The same in a file and on one server."""
    return watched(make_site(Site.direct(db_uri, seaweed, bucket)))


@pytest.fixture
def hooked(site: Site) -> Site:
    """The plainest site, with the hook."""
    return watched(site)


def left(site: Site) -> dict[str, int]:
    """How many objects of each owner are in the bucket."""
    there = {item.key for item in site.items()}
    owners = {one.owner for one in site.objects.values()}
    return {
        owner: sum(one.owner == owner and key in there for key, one in site.objects.items()) for owner in sorted(owners)
    }


def select(site: Site, query: str) -> list[Any]:
    """Rows of the database."""
    with site.engine.connect() as connection:
        return [*connection.execute(sa.text(query))]


# Two workers and a user


@contextmanager
def working(site: Site, number: int) -> Iterator[None]:
    """So many workers, each in a thread, while somebody takes the lease away from whoever has it."""
    stop = threading.Event()
    died: list[BaseException] = []

    def work() -> None:
        try:
            worker(site, stop, MLFLOW_ARTIFACT_GC_POLL="0.1s", MLFLOW_ARTIFACT_GC_CONCURRENCY="4").run()
        except BaseException as error:
            died.append(error)
            raise

    def rob() -> None:
        while not stop.wait(0.3):
            site.execute("UPDATE artifact_gc_lease SET until_ms = 1")

    threads = [threading.Thread(target=work) for _ in range(number)] + [threading.Thread(target=rob)]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        stop.set()
        for one in threads:
            one.join()
    assert died == []


def play(site: Site, rng: random.Random, experiments: list[str], users: list[str]) -> int:
    """A user deletes and restores at random for some seconds; how often."""
    done, until = 0, time.monotonic() + PLAY_S
    while time.monotonic() < until:
        stages = {row.id: row.stage for row in site.rows()}
        chosen = rng.choice(users if rng.random() < 0.9 else experiments)
        kind = "experiment" if chosen in experiments else "run"
        what = "delete" if stages[chosen] == "active" else "restore"
        if kind == "run" and what == "delete" and rng.random() < 0.1:
            continue
        getattr(site, f"{what}_{kind}")(chosen)
        done += 1
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 0.3))
    return done


def quiet(site: Site) -> None:
    """Waits until the inbox is empty and nothing is to be looked at."""
    until = time.monotonic() + 40
    busy = "SELECT 1 FROM artifact_gc_inbox UNION ALL SELECT 1 FROM artifact_gc_intents WHERE state IN {}"
    while select(site, busy.format("('pending', 'sweeping')")):
        if time.monotonic() > until:
            pytest.fail(f"still busy: {select(site, 'SELECT state, look_ms, detail FROM artifact_gc_intents')}")
        time.sleep(0.05)


def test_two_workers_and_a_user(any_site: Site, rng: random.Random) -> None:
    """What is deleted in the end is gone, what was never deleted is whole, what came back says what it has lost."""
    site = any_site
    init(site, *NOW)
    experiments = [site.experiment() for _ in range(3)]
    users = [site.run(experiment, n_objects=OBJECTS) for experiment in experiments for _ in range(8)]
    untouched = [site.run(site.experiment(), n_objects=OBJECTS) for _ in range(4)]
    with working(site, 2):
        assert play(site, rng, experiments, users) > 10
        dead = {row.id for row in site.rows() if row.kind == "run" and row.stage == "deleted"}
        quiet(site)
    # What two of them have mislaid between them, a scan finds.
    turn(site)
    states = dict(select(site, "SELECT entity_id, state FROM artifact_gc_intents"))
    assert {one: states.get(one) for one in dead} == dict.fromkeys(dead, "swept")
    assert set(states.values()) <= {"swept", "cancelled"}, states
    now = left(site)
    assert {one: now[one] for one in dead} == dict.fromkeys(dead, 0)
    assert {one: now[one] for one in untouched} == dict.fromkeys(untouched, OBJECTS)
    for one in set(users) - dead:
        said = tags(site, one)
        assert set(said) <= {notices.STATUS, notices.PURGED}, said
        assert (notices.PURGED in said) == (now[one] < OBJECTS), (one, now[one], said)
    assert select(site, "SELECT count(*) FROM artifact_gc_intents WHERE claimed_by IS NOT NULL") == [(0,)]


# What a run says


def test_what_is_gone_is_told_also_after_another_deletion(hooked: Site) -> None:
    """Purged, restored, deleted again and restored in time: the run still says that its objects are gone."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=OBJECTS)
    site.delete_run(run_id)
    assert turn(site) == {run_id: "swept"}
    site.restore_run(run_id)
    turn(site)
    assert "purged" in tags(site, run_id)[notices.STATUS]
    init(site, "--grace", "7d")
    site.delete_run(run_id)
    assert turn(site) == {}
    site.restore_run(run_id)
    assert turn(site) == {}
    assert set(tags(site, run_id)) == {notices.PURGED}


def test_a_restored_experiment_leaves_no_promise_on_its_runs(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restored between the plan and the fence: nothing is touched, and no run says any more that its artifacts go."""
    site = hooked
    init(site, *NOW)
    experiment = site.experiment()
    runs = [site.run(experiment, n_objects=OBJECTS) for _ in range(2)]
    site.delete_experiment(experiment)
    sweep = sweeping.sweep

    def late(*arguments: Any) -> sweeping.Report:
        site.restore_experiment(experiment)
        return sweep(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(sweeping, "sweep", late)
        assert turn(site) == dict.fromkeys(runs, "restored")
    turn(site)
    assert left(site) == dict.fromkeys(runs, OBJECTS)
    assert [tags(site, one) for one in runs] == [{}, {}]


def test_what_is_deleted_again_beside_gc_is_not_mislaid(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker drains the note of a second deletion while ``gc`` has the claim of the first: it goes all the same."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=OBJECTS)
    one = worker(site)
    one.turn()
    site.delete_run(run_id)
    claim = fence.Fence.admit

    def meanwhile(self: fence.Fence, lines: Any) -> Any:
        admission = claim(self, lines)
        site.restore_run(run_id)
        site.delete_run(run_id)
        one.turn()
        return admission

    with monkeypatch.context() as patched:
        patched.setattr(fence.Fence, "admit", meanwhile)
        assert outcomes(gc(site)) == {run_id: "restored"}
    for _ in range(3):
        one.turn()
    one.close()
    assert left(site) == {run_id: 0}


# Clocks


@pytest.mark.parametrize("hours", [-30, -3, 0, 3])
def test_a_client_with_a_wrong_clock(either_site: Site, hours: int) -> None:
    """Its date never shortens the grace period, and lengthens it by as much as it is ahead."""
    site = either_site
    init(site, "--grace", "2h", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=OBJECTS)
    site.delete_run(run_id)
    site.execute(
        "UPDATE runs SET deleted_time = deleted_time + :ms WHERE run_uuid = :id", ms=hours * HOUR_MS, id=run_id
    )
    waits_h = 2 + max(hours, 0)
    passed_ms = waits_h * HOUR_MS - 60_000
    for part in range(2):
        assert turn(site) == {}, f"after {part * passed_ms / 2 / HOUR_MS:.1f} h"
        shift(site, passed_ms // 2)
    assert turn(site) == {}
    assert left(site) == {run_id: OBJECTS}
    shift(site, 120_000)
    assert turn(site) == {run_id: "swept"}


def test_deleted_again_by_a_client_with_a_wrong_clock_while_the_worker_looks(
    hooked: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the inbox was drained and before there is a plan: the note of the second deletion begins a new grace."""
    site = hooked
    init(site, "--grace", "2h", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=OBJECTS)
    site.delete_run(run_id)
    turn(site)
    shift(site, 3 * HOUR_MS)
    (date,) = select(site, "SELECT deleted_time FROM runs")[0]

    def meanwhile(*_: object) -> None:
        site.restore_run(run_id)
        site.delete_run(run_id)
        site.execute("UPDATE runs SET deleted_time = :ms", ms=date)
        time.sleep(0.01)

    monkeypatch.setattr(Worker, "_explain", meanwhile)
    assert "swept" not in turn(site).values()
    assert left(site) == {run_id: OBJECTS}


# The inbox


def test_notes_may_come_twice_and_in_any_order(any_site: Site, rng: random.Random) -> None:
    """What MLflow's rows say counts: copies, and a restore that is noted before its deletion, change nothing."""
    site = any_site
    init(site, *NOW)
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=OBJECTS) for _ in range(5)]
    back = [site.run(experiment, n_objects=OBJECTS) for _ in range(5)]
    for one in (*dead, *back):
        for _ in range(rng.randrange(3)):
            site.delete_run(one)
            site.restore_run(one)
        site.delete_run(one)
    for one in back:
        site.restore_run(one)
    columns = "event, entity_kind, entity_id, experiment_id, workspace, uri, deleted_ms, recorded_ms"
    notes = [dict(row._mapping) for row in select(site, f"SELECT {columns} FROM artifact_gc_inbox")]
    notes *= 2
    rng.shuffle(notes)
    site.execute("DELETE FROM artifact_gc_inbox")
    for note in notes:
        site.execute(
            f"INSERT INTO artifact_gc_inbox ({columns}) VALUES (:{columns.replace(', ', ', :')})",
            **note,
        )
    assert turn(site) == dict.fromkeys(dead, "swept")
    assert left(site) == {**dict.fromkeys(dead, 0), **dict.fromkeys(back, OBJECTS)}
    assert [tags(site, one) for one in back] == [{}] * len(back)
    # And once more, long after.
    site.execute(
        f"INSERT INTO artifact_gc_inbox ({columns}) VALUES (:{columns.replace(', ', ', :')})",
        **{**notes[0], "entity_id": dead[0], "event": "deleted"},
    )
    assert turn(site) == {}
    assert "purged" in tags(site, dead[0])[notices.STATUS]


# Crashes

_POINTS: Final = {
    "intents written, inbox not drained": (inbox, "drained"),
    "before the intents": (agenda, "expect"),
    "in the middle of their transaction": (notices, "write"),
    "before the restored are cancelled": (agenda, "cancel"),
    "before the brakes": (lease, "park"),
    "before the first claim": (journal, "claim"),
    "swept, not recorded": (journal, "record"),
    "recorded, the plan not ended": (journal, "plan_finished"),
    "ended, what is left not dated": (rounds.Round, "_after"),
    "before the sweep": (sweeping, "sweep"),
    "ended, not told": (rounds, "_tell"),
    "before what is kept is explained": (rounds, "explain"),
    "before the scan": (Intake, "scan"),
}
_UNDRAINED: Final = [*_POINTS][:4]


@pytest.mark.parametrize("point", _POINTS)
def test_a_crash_anywhere_changes_nothing_in_the_end(site: Site, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """The next worker ends where the first would have."""
    watched(site)
    init(site, *NOW)
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=OBJECTS) for _ in range(3)]
    back, live = site.run(experiment, n_objects=OBJECTS), site.run(experiment, n_objects=OBJECTS)
    for one in (*dead, back):
        site.delete_run(one)
    site.restore_run(back)
    crashed = []

    def crash(*_args: object, **_kwargs: object) -> None:
        crashed.append(point)
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(*_POINTS[point], crash)
        first = worker(site)
        with pytest.raises(Crash):
            first.turn()
        first.close()
    assert crashed
    if point in _UNDRAINED:
        # Not left to a scan, which knows less: no first sight, nothing of what is gone for good.
        assert select(site, "SELECT count(*) FROM artifact_gc_inbox") != [(0,)]
    # What has been claimed by a process that lives is waited for: this one lives.
    site.execute("UPDATE artifact_gc_intents SET claimed_until_ms = 1 WHERE claimed_until_ms IS NOT NULL")
    for _ in range(3):
        turn(site)
    assert left(site) == {**dict.fromkeys(dead, 0), back: OBJECTS, live: OBJECTS}
    assert (tags(site, back), tags(site, live)) == ({}, {})
    assert select(site, "SELECT count(*) FROM artifact_gc_inbox") == [(0,)]
    states = dict(select(site, "SELECT entity_id, state FROM artifact_gc_intents"))
    assert {one: states[one] for one in dead} == dict.fromkeys(dead, "swept")
    for one in dead:
        assert "purged" in tags(site, one)[notices.STATUS]
