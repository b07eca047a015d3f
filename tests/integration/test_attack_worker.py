"""What an attack on the worker found: each was a way to purge too early, to loop for ever, or to say what is not so."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import fence, rounds, surveying, sweeping
from mlflow_artifact_gc import session as sessions
from mlflow_artifact_gc.errors import DatabaseUnusable, ReferencesIncomplete, RootRefused
from mlflow_artifact_gc.hook import host
from mlflow_artifact_gc.worker import Worker
from tests.command import gc, init, outcomes, run
from tests.site import DAY_MS, Site
from tests.working import NOW, intents, left, shift, tags, turn, watched, worker

MakeSite = Callable[[Site], Site]
WEEK = ("--grace", "7d", "--min-object-age", "0s")


@pytest.fixture
def hooked(site: Site) -> Site:
    """The plainest site, with the hook."""
    return watched(site)


def ago_ms(days: int) -> int:
    """So many days before now."""
    return int(time.time() * 1000) - days * DAY_MS


def before_the_fence(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Something happens after the plan was made and before its first batch is claimed."""
    admit = fence.Fence.admit

    def admitting(self: fence.Fence, lines: Any) -> Any:
        happens()
        return admit(self, lines)

    monkeypatch.setattr(fence.Fence, "admit", admitting)


def deleted_again_with_a_slow_clock(site: Site, run_id: str) -> None:
    """Restored and deleted by a client whose clock is half a century behind."""
    site.restore_run(run_id)
    site.delete_run(run_id)
    site.execute("UPDATE runs SET deleted_time = 1000 WHERE run_uuid = :id", id=run_id)


def queries(one: Worker, turns: int) -> int:
    """How many statements a worker sends in so many turns."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:
        sent.append(arguments[2])

    sa.event.listen(one._engine, "before_cursor_execute", note)
    for _ in range(turns):
        one.turn()
    sa.event.remove(one._engine, "before_cursor_execute", note)
    return sum(not text.startswith("BEGIN") for text in sent)


# Too early


def test_models_deleted_before_init_stay_when_their_experiment_is_touched(site: Site) -> None:
    """Deleted long ago, beside an experiment that is deleted and restored after ``init``: it waits for ``gc``."""
    experiment, other = site.experiment(), site.experiment()
    old, older = site.logged_model(experiment, None, n_objects=2), site.logged_model(other, None, n_objects=2)
    for model in (old, older):
        site.delete_logged_model(model, deleted_ms=ago_ms(30))
    site.delete_experiment(other, deleted_ms=ago_ms(20))
    init(site, *NOW)
    watched(site)
    site.delete_experiment(experiment)
    site.restore_experiment(experiment)
    site.restore_experiment(other)
    assert turn(site) == {}
    assert len(left(site, old)) == len(left(site, older)) == 2


def test_models_deleted_before_init_stay_when_their_run_is_touched(site: Site) -> None:
    """The same where logged models follow their run."""
    experiment = site.experiment()
    run_id = site.run(experiment)
    model = site.logged_model(experiment, run_id, n_objects=2)
    site.delete_logged_model(model, deleted_ms=ago_ms(30))
    init(site, *NOW, "--models", "follow-run")
    watched(site)
    site.delete_run(run_id)
    site.restore_run(run_id)
    assert turn(site) == {}
    assert len(left(site, model)) == 2


def test_what_is_written_after_a_sweep_gets_its_own_grace_period(hooked: Site) -> None:
    """Swept, restored, written to, deleted again by a slow clock: a second look does not shorten anything."""
    site = hooked
    init(site, *WEEK)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    turn(site)
    shift(site, 8 * DAY_MS)
    assert turn(site) == {run_id: "swept"}
    site.write(run_id, site.artifact_uri(run_id), {"new.bin": 10})
    deleted_again_with_a_slow_clock(site, run_id)
    turn(site)
    site.execute("UPDATE artifact_gc_intents SET swept_ms = swept_ms - :day", day=DAY_MS + 1000)
    assert turn(site) == turn(site) == {}
    assert left(site, run_id) != []


def test_a_longer_grace_period_stops_a_sweep_under_way(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what an administrator does when the wrong things go."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    before_the_fence(monkeypatch, lambda: init(site, "--grace", "90d"))
    assert turn(site) == {run_id: "stopped"}
    assert left(site, run_id) != []


def test_models_that_are_to_be_kept_stop_a_sweep_under_way(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """``init --models keep`` while models follow their runs."""
    site = hooked
    init(site, *NOW, "--models", "follow-run")
    experiment = site.experiment()
    run_id = site.run(experiment)
    model = site.logged_model(experiment, run_id, n_objects=2)
    site.delete_run(run_id)
    before_the_fence(monkeypatch, lambda: init(site, "--models", "keep"))
    turn(site)
    assert len(left(site, model)) == 2


def test_a_deletion_between_drain_and_plan_counts(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its note is older than the plan, and still in the inbox."""
    site = hooked
    init(site, *WEEK)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    turn(site)
    shift(site, 8 * DAY_MS)
    explain = Worker._explain

    def explaining(self: Worker, *arguments: Any) -> None:
        explain(self, *arguments)
        deleted_again_with_a_slow_clock(site, run_id)
        time.sleep(0.01)

    monkeypatch.setattr(Worker, "_explain", explaining)
    assert turn(site) == {run_id: "restored"}
    assert left(site, run_id) != []


def test_a_worker_that_drains_does_not_blind_gc(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """``gc`` has planned; the run is deleted anew; the worker takes the note out of the inbox; ``gc`` goes on."""
    site = hooked
    init(site, *WEEK)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    turn(site)
    shift(site, 8 * DAY_MS)
    sweep = sweeping.sweep

    def sweeping_late(*arguments: Any) -> Any:
        deleted_again_with_a_slow_clock(site, run_id)
        monkeypatch.setattr(sweeping, "sweep", sweep)
        turn(site)
        return sweep(*arguments)

    monkeypatch.setattr(sweeping, "sweep", sweeping_late)
    ran = run("gc", "--backend-store-uri", site.uri, "--yes", "--older-than", "7d", "--min-object-age", "0s")
    assert ran.code == 0, ran.err
    assert left(site, run_id) != []


def test_a_running_worker_hears_of_another_registry(
    hooked: Site, sqlite_template: Path, tmp_path: Path, make_site: MakeSite
) -> None:
    """A server is started with a registry of its own; what it protects is not known to the worker, which stops."""
    site = hooked
    init(site, *NOW)
    one = worker(site)
    one.turn()
    other = tmp_path / "registry.db"
    shutil.copyfile(sqlite_template, other)
    moved = make_site(Site.direct(site.uri, site.s3, site.bucket))
    moved.registry_uri = f"sqlite:///{other}"
    server = host.Server(backend_store_uri=site.uri, registry_store_uri=moved.registry_uri, artifacts_destination=None)
    host.report(server, site.store.engine)
    run_id = site.run(site.experiment(), {"model/MLmodel": 10})
    moved.register("churn", f"{site.artifact_uri(run_id)}/model", run_id=run_id)
    site.delete_run(run_id)
    with pytest.raises(ReferencesIncomplete, match="another model registry"):
        one.turn()
    assert left(site, run_id) != []
    one.close()


def test_a_newer_mlflow_stops_the_worker(hooked: Site) -> None:
    """As it stops ``gc``: nothing that it stores may be overlooked."""
    site = hooked
    init(site, *NOW)
    one = worker(site)
    one.turn()
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    site.execute("UPDATE alembic_version SET version_num = 'fffffffffff1'")
    for _ in range(2):
        with pytest.raises((ReferencesIncomplete, DatabaseUnusable)):
            one.turn()
    assert left(site, run_id) != []
    one.close()


def test_a_worker_that_fits_no_longer_gives_the_lease_back(proxied_site: Site) -> None:
    """``init`` names another destination while it works."""
    site = watched(proxied_site)
    init(site, *WEEK)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    one = worker(site)
    one.turn()
    shift(site, 8 * DAY_MS)
    elsewhere = ("--artifacts-destination", f"s3://{site.bucket}/other")
    assert run("init", "--backend-store-uri", site.uri, *elsewhere).code == 0
    with pytest.raises(RootRefused, match="artifacts destination"):
        one.turn()
    assert left(site, run_id) != []
    with site.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT owner FROM artifact_gc_lease")) is None
    one.close()


def test_an_endpoint_that_moved_stops_a_worker_that_holds_the_lease(hooked: Site) -> None:
    """``init --adopt`` has told where the roots are now."""
    site = hooked
    init(site, *NOW)
    first = site.run(site.experiment(), n_objects=1)
    site.delete_run(first)
    one = worker(site)
    one.turn()
    site.execute("UPDATE artifact_gc_roots SET endpoint = 'http://elsewhere:1'")
    site.execute("UPDATE artifact_gc_site SET updated_ms = updated_ms + 1")
    second = site.run(site.experiment(), n_objects=1)
    site.delete_run(second)
    with pytest.raises(RootRefused, match="MLFLOW_S3_ENDPOINT_URL"):
        one.turn()
    assert left(site, second) != []
    one.close()


def test_what_a_server_says_does_not_undo_an_init(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """``init`` commits between the reading of the settings and the carrying of a server's report."""
    site = hooked
    init(site, *NOW)
    site.execute("UPDATE artifact_gc_site SET registry_fingerprint = NULL")
    server = host.Server(backend_store_uri=site.uri, registry_store_uri=site.uri, artifacts_destination=None)
    host.report(server, site.store.engine)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    carried = sessions._carried

    def carrying(engine: sa.Engine) -> Any:
        assert run("init", "--backend-store-uri", site.uri, "--grace", "90d").code == 0
        return carried(engine)

    monkeypatch.setattr(sessions, "_carried", carrying)
    assert turn(site) == {}
    assert left(site, run_id) != []
    with site.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT grace_ms FROM artifact_gc_site")) == 90 * DAY_MS


# For ever


def test_a_run_without_artifacts_is_not_swept_at_every_poll(hooked: Site) -> None:
    """Under a root that nothing has proven yet, empty says little; it is looked at again much later."""
    site = hooked
    init(site, *NOW)
    site.delete_run(site.run(site.experiment()))
    one = worker(site)
    one.turn()
    assert queries(one, 5) <= 5
    one.close()


def test_a_dead_sweep_of_a_restored_run_comes_to_an_end(hooked: Site) -> None:
    """And the run says that a sweep had begun: nobody knows how far it came."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    turn(site, MLFLOW_ARTIFACT_GC_MAX_OBJECTS="0")
    dead = "state = 'sweeping', claimed_by = 'elsewhere', claimed_until_ms = 1, look_ms = 1"
    site.execute(f"UPDATE artifact_gc_intents SET {dead}")
    site.restore_run(run_id)
    one = worker(site)
    one.turn()
    assert queries(one, 5) <= 5
    assert "a sweep of it was killed" in tags(site, run_id)["artifact_gc.purged"]
    assert left(site, run_id) != []
    one.close()


def test_a_second_look_before_the_grace_period_is_over_does_not_spin(hooked: Site) -> None:
    """``gc --older-than 0s`` swept it early, and a late writer came."""
    site = hooked
    init(site, "--grace", "30d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    turn(site)
    assert outcomes(gc(site)) == {run_id: "swept"}
    site.write(run_id, site.artifact_uri(run_id), {"late.bin": 1})
    site.execute("UPDATE artifact_gc_intents SET swept_ms = swept_ms - :day", day=DAY_MS + 1000)
    one = worker(site)
    one.turn()
    assert queries(one, 5) <= 5
    assert left(site, run_id) != []
    one.close()


def test_a_stop_while_measuring_is_a_clean_end(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, and the lease is given back."""
    site = hooked
    init(site, *NOW)
    site.delete_run(site.run(site.experiment(), n_objects=1))
    one = worker(site, MLFLOW_ARTIFACT_GC_MAX_OBJECTS="100")
    watching = surveying.Surveyor._watched

    def slow(self: surveying.Surveyor, entries: Any) -> Any:
        one._stop.set()
        time.sleep(0.5)
        return watching(self, entries)

    monkeypatch.setattr(surveying.Surveyor, "_watched", slow)
    one.run()
    with site.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT owner FROM artifact_gc_lease")) is None


def test_a_second_look_goes_past_what_cannot_be_listed(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locations in a bucket that is gone do not keep the others from being closed."""
    site = hooked
    monkeypatch.setattr(rounds, "_SECOND_LOOKS", 2)
    init(site, *NOW)
    experiment = site.experiment()
    for run_id in [site.run(experiment, n_objects=1) for _ in range(3)]:
        site.delete_run(run_id)
    turn(site)
    site.execute("UPDATE artifact_gc_intents SET swept_ms = 1")
    site.execute("UPDATE artifact_gc_intents SET bucket = 'gone-bucket-x' WHERE id <= 2")
    turn(site)
    assert [state for (state,) in intents(site, "state")] == ["swept", "swept", "closed"]


def test_a_bucket_that_cannot_be_measured_holds_nothing_else_back(hooked: Site) -> None:
    """A brake asks how much everything holds; one bucket does not answer."""
    site = hooked
    init(site, *NOW)
    elsewhere = site.store.create_experiment("bad", "s3://no-such-bucket-zz/x")
    lost = site.store.create_run(elsewhere, "tester", 1, [], "").info.run_id
    run_id = site.run(site.experiment(), n_objects=1)
    for one in (run_id, lost):
        site.delete_run(one)
    assert turn(site, MLFLOW_ARTIFACT_GC_MAX_OBJECTS="1000") == {run_id: "swept"}


def test_a_worker_that_cannot_be_started_is_tried_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every five seconds for ever."""
    slept: list[float] = []

    class Enough(Exception):
        pass

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) > 8:
            raise Enough

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(host, "_run", lambda _server: None)
    server = host.Server(backend_store_uri="sqlite:///x", registry_store_uri="sqlite:///x", artifacts_destination=None)
    with pytest.raises(Enough):
        host._look_after(server)
    assert slept == sorted(slept)
    assert max(slept) == 300


# What is said


def test_what_is_gone_stays_said(hooked: Site) -> None:
    """Purged; then its experiment is deleted and restored: the run still says that its artifacts are gone."""
    site = hooked
    init(site, *WEEK)
    experiment = site.experiment()
    run_id = site.run(experiment, n_objects=2)
    site.delete_run(run_id)
    turn(site)
    shift(site, 8 * DAY_MS)
    assert turn(site) == {run_id: "swept"}
    site.delete_experiment(experiment)
    turn(site)
    site.restore_experiment(experiment)
    turn(site)
    assert tags(site, run_id)["artifact_gc.purged"].startswith("2 objects, 20 B, ")


def test_what_is_needed_no_longer_says_when_it_goes(hooked: Site) -> None:
    """The registered version is deleted within the grace period: kept would be untrue until the purge."""
    site = hooked
    init(site, *WEEK)
    run_id = site.run(site.experiment(), {"model/MLmodel": 10})
    version = site.register("churn", f"{site.artifact_uri(run_id)}/model", run_id=run_id)
    site.delete_run(run_id)
    turn(site)
    assert tags(site, run_id)["artifact_gc.status"].startswith("kept")
    site.delete_version("churn", version)
    turn(site)
    assert tags(site, run_id)["artifact_gc.status"].startswith("purge due ")
    assert "artifact_gc.protected_by" not in tags(site, run_id)


def test_a_run_restored_at_the_fence_says_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no hook has seen the restore."""
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    before_the_fence(monkeypatch, lambda: site.restore_run(run_id))
    assert turn(site) == {run_id: "restored"}
    assert tags(site, run_id) == {}
    assert left(site, run_id) != []


def test_a_shorter_grace_period_reaches_the_runs(hooked: Site) -> None:
    """A date that MLflow shows is the date that holds."""
    site = hooked
    init(site, "--grace", "30d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    turn(site)
    long = tags(site, run_id)["artifact_gc.expires"]
    init(site, "--grace", "7d")
    turn(site)
    assert tags(site, run_id)["artifact_gc.expires"] < long


def test_a_brake_is_named_as_long_as_it_holds_something(hooked: Site) -> None:
    """A small round in between does not make ``status`` forget it."""
    site = hooked
    init(site, *NOW)
    experiment = site.experiment()
    for run_id in [site.run(experiment, n_objects=1) for _ in range(3)]:
        site.delete_run(run_id)
    one = worker(site, MLFLOW_ARTIFACT_GC_MAX_OBJECTS="2")
    one.turn()
    site.delete_run(site.run(experiment, n_objects=1))
    one.turn()
    one.close()
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    assert "Held back: 3 locations" in run("status", *stores).out
