"""The worker: what the hook notes goes by itself, in time and not before, and what is needed stays."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import database, journal, lease, s3
from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import ReferencesIncomplete, RootRefused, TablesNotReady
from mlflow_artifact_gc.model import Failure
from mlflow_artifact_gc.quantities import show_instant
from mlflow_artifact_gc.worker import Assignment, Worker
from tests.command import gc, init, outcomes, run
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.working import NOW, intents, left, shift, tags, turn, watched, worker

MakeSite = Callable[[Site], Site]


@pytest.fixture
def any_site(any_db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """A site with the hook, on each kind of database."""
    return watched(make_site(Site.direct(any_db_uri, seaweed, bucket)))


@pytest.fixture
def hooked(site: Site) -> Site:
    """The plainest site, with the hook."""
    return watched(site)


def test_what_is_deleted_goes_by_itself(any_site: Site) -> None:
    """A deleted run's objects are gone after the worker's turn, the others stay, and the run says so."""
    site = any_site
    init(site, *NOW)
    experiment = site.experiment()
    live, dead = site.run(experiment, n_objects=3), site.run(experiment, n_objects=3)
    site.delete_run(dead)

    assert turn(site) == {dead: "swept"}
    assert left(site, dead) == []
    assert len(left(site, live)) == 3
    assert tags(site, dead)["artifact_gc.status"].startswith("purged ")
    assert "3 objects, 30 B" in tags(site, dead)["artifact_gc.purged"]
    assert tags(site, live) == {}


def test_a_deleted_experiment_goes_with_its_runs(any_site: Site) -> None:
    """One note is enough for all runs, logged models and traces of an experiment."""
    site = any_site
    init(site, *NOW)
    experiment, other = site.experiment(), site.experiment()
    dead = [site.run(experiment, n_objects=1) for _ in range(3)]
    along = [*site.logged_models(experiment, dead[0], n_objects=1), site.trace(experiment)]
    live = site.run(other, n_objects=1)
    site.delete_experiment(experiment)
    with site.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM artifact_gc_inbox")) == 1

    assert turn(site) == dict.fromkeys([*dead, *along], "swept")
    assert left(site, live) != []


def test_within_the_grace_period_nothing_goes(hooked: Site) -> None:
    """The run says until when, a restore takes that back, and nothing was touched."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=2)
    site.delete_run(run_id)
    assert turn(site) == {}
    assert tags(site, run_id)["artifact_gc.status"].startswith("purge due ")
    assert tags(site, run_id)["artifact_gc.expires"].startswith("20")
    shift(site, 6 * DAY_MS)
    assert turn(site) == {}

    site.restore_run(run_id)
    assert turn(site) == {}
    assert tags(site, run_id) == {}
    shift(site, 2 * DAY_MS)
    assert turn(site) == {}
    assert len(left(site, run_id)) == 2


def test_after_the_grace_period_it_goes(hooked: Site) -> None:
    """And not before: eight days later the same run is swept."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=2)
    site.delete_run(run_id)
    turn(site)
    shift(site, 8 * DAY_MS)
    assert turn(site) == {run_id: "swept"}
    site.restore_run(run_id)
    turn(site)
    assert "purged" in tags(site, run_id)["artifact_gc.status"], "a restored run says what is gone"


def test_deleted_again_the_grace_period_begins_again(hooked: Site) -> None:
    """Deleted, restored, deleted: the later of all dates counts, also where a client's clock is years behind."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    turn(site)
    shift(site, 8 * DAY_MS)
    site.restore_run(run_id)
    site.delete_run(run_id)
    site.execute("UPDATE runs SET deleted_time = 1000 WHERE run_uuid = :id", id=run_id)

    assert turn(site) == {}
    (first_seen, look) = intents(site, "first_seen_ms", "look_ms")[0]
    assert abs(first_seen - time.time() * 1000) < 60_000
    assert look == first_seen + 7 * DAY_MS
    shift(site, 8 * DAY_MS)
    assert turn(site) == {run_id: "swept"}


def test_deleted_twice_the_later_date_counts(hooked: Site) -> None:
    """A second delete of a deleted run, and the delete of its experiment, put the end off."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    experiment = site.experiment()
    run_id = site.run(experiment, n_objects=1)
    site.delete_run(run_id)
    turn(site)
    shift(site, 6 * DAY_MS)
    site.delete_run(run_id)
    turn(site)
    shift(site, 6 * DAY_MS)
    site.delete_experiment(experiment)
    turn(site)
    shift(site, 6 * DAY_MS)
    assert turn(site) == {}
    shift(site, 2 * DAY_MS)
    assert turn(site) == {run_id: "swept"}


def test_a_restored_experiment_brings_its_runs_back(hooked: Site) -> None:
    """Runs that were deleted before their experiment too, as MLflow restores them."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    experiment = site.experiment()
    first, second = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    site.delete_run(first)
    site.delete_experiment(experiment)
    turn(site)
    site.restore_experiment(experiment)
    turn(site)
    shift(site, 30 * DAY_MS)
    assert turn(site) == {}
    assert [state for (state,) in intents(site, "state")] == ["cancelled", "cancelled"]
    assert tags(site, first) == tags(site, second) == {}


def test_what_was_deleted_before_init_waits_for_gc(hooked: Site) -> None:
    """The worker takes nothing by surprise: not in a scan, and not when gc has seen it."""
    site = hooked
    experiment = site.experiment()
    old, new = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    site.delete_run(old, deleted_ms=int(time.time() * 1000) - DAY_MS)
    init(site, *NOW)
    site.delete_run(new)
    assert turn(site) == {new: "swept"}
    assert left(site, old) != []
    assert outcomes(gc(site)) == {old: "swept"}


def test_a_scan_finds_what_the_hook_did_not_see(site: Site) -> None:
    """A client without the plugin deletes; the worker's first sight of it counts."""
    init(site, "--grace", "7d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    assert turn(site) == {}
    assert "artifact_gc.expires" in tags(site, run_id)
    shift(site, 8 * DAY_MS)
    assert turn(site) == {run_id: "swept"}


def test_a_registered_model_is_kept_and_its_run_says_why(hooked: Site) -> None:
    """At once, not only when the grace period is over; and it goes when the version has gone."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), {"model/MLmodel": 10})
    version = site.register("churn", f"{site.artifact_uri(run_id)}/model", run_id=run_id)
    site.delete_run(run_id)
    assert turn(site) == {}
    assert tags(site, run_id)["artifact_gc.protected_by"] == "model churn, version 1"
    shift(site, 8 * DAY_MS)
    assert turn(site) == {}
    assert len(left(site, run_id)) == 1

    site.delete_version("churn", version)
    assert turn(site) == {run_id: "swept"}


def test_logged_models_follow_their_run_where_the_site_says_so(hooked: Site) -> None:
    """``keep`` is the default; with ``follow-run`` the run's deletion takes its models along."""
    site = hooked
    init(site, *NOW)
    experiment = site.experiment()
    kept_run = site.run(experiment, n_objects=1)
    kept = site.logged_model(experiment, kept_run, n_objects=1)
    site.delete_run(kept_run)
    assert turn(site) == {kept_run: "swept"}
    assert left(site, kept) != []

    init(site, "--models", "follow-run")
    run_id = site.run(experiment, n_objects=1)
    model = site.logged_model(experiment, run_id, n_objects=1)
    site.delete_run(run_id)
    assert turn(site) == {run_id: "swept", model: "swept", kept: "swept"}


def test_a_brake_parks_the_batch_and_gc_releases_it(hooked: Site) -> None:
    """What trips a brake is named in ``status``; ``gc`` with the flag goes on."""
    site = hooked
    init(site, *NOW)
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=1) for _ in range(3)]
    site.delete_experiment(experiment)
    assert turn(site, MLFLOW_ARTIFACT_GC_MAX_OBJECTS="2") == {}
    assert all(left(site, one) for one in dead)
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    said = run("status", *stores).out
    assert "--max-objects 2 allows" in said
    assert outcomes(gc(site)) == dict.fromkeys(dead, "swept")
    assert turn(site) == {}
    assert "--max-objects" not in run("status", *stores).out


def test_a_versioned_bucket_waits_for_an_action(hooked: Site) -> None:
    """Purging every version silently would remove what people enabled versioning for."""
    site = hooked
    site.switch_versioning(on=True)
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=2)
    site.delete_run(run_id)
    assert turn(site) == {run_id: "paused"}
    assert len(left(site, run_id)) == 2
    assert "init --action purge" in intents(site, "detail")[0][0]

    init(site, "--action", "purge")
    assert turn(site) == {run_id: "swept"}


def test_only_one_worker_works(hooked: Site) -> None:
    """The second looks on; when the first gives the lease back, it takes over."""
    site = hooked
    init(site, *NOW)
    first, second = worker(site), worker(site)
    assert first.turn() is None
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    assert second.turn() is None
    assert left(site, run_id) != []
    first.close()
    assert second.turn() is not None
    assert left(site, run_id) == []
    second.close()


def test_a_lease_runs_out(hooked: Site) -> None:
    """A worker that died on another machine is waited for, and then no longer."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    site.execute(
        "UPDATE artifact_gc_lease SET owner = 'elsewhere', until_ms = :ms", ms=int(time.time() * 1000) + 60_000
    )
    assert turn(site) == {}
    site.execute("UPDATE artifact_gc_lease SET until_ms = :ms", ms=int(time.time() * 1000) - 1)
    assert turn(site) == {run_id: "swept"}


def test_a_worker_of_another_destination_gets_no_lease(proxied_site: Site) -> None:
    """It would look into the wrong bucket."""
    site = watched(proxied_site)
    init(site, *NOW)
    assignment = Assignment(backend_store_uri=site.uri, artifacts_destination="s3://elsewhere/artifacts")
    stranger = Worker(assignment, Settings.from_env(site.s3.environ()), threading.Event())
    with pytest.raises(RootRefused, match="s3://elsewhere/artifacts"):
        stranger.turn()
    with database.reading(site.engine) as connection:
        assert lease.standing(connection).owner is None
        assert "s3://elsewhere/artifacts" in (lease.standing(connection).refused or "")


def test_a_worker_of_another_endpoint_gets_no_lease(hooked: Site, moto_s3: S3Server) -> None:
    """The same database with staging's S3 settings."""
    site = hooked
    init(site, *NOW)
    first = site.run(site.experiment(), n_objects=1)
    site.delete_run(first)
    assert turn(site) == {first: "swept"}
    stranger = Worker(
        Assignment(backend_store_uri=site.uri, registry_store_uri=site.uri),
        Settings.from_env(moto_s3.environ()),
        threading.Event(),
    )
    with pytest.raises(RootRefused, match="MLFLOW_S3_ENDPOINT_URL"):
        stranger.turn()


def test_without_tables_a_worker_waits(site: Site) -> None:
    """It says what would turn it on, and goes on by itself when that has happened."""
    one = worker(site)
    with pytest.raises(TablesNotReady, match="mlflow-artifact-gc init"):
        one.turn()
    init(site, *NOW)
    assert one.turn() is None
    run_id = site.run(site.experiment(), n_objects=1)
    watched(site).delete_run(run_id)
    assert one.turn() is not None
    one.close()


def test_a_server_with_another_registry_stops_everything(hooked: Site) -> None:
    """What needs which artifacts is not known then: worker and gc wait until a person says which is right."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    site.execute(
        "INSERT INTO artifact_gc_inbox (event, entity_kind, entity_id, recorded_ms)"
        " VALUES ('server', 'server', 'postgresql:1/other/public', 1000)"
    )
    with pytest.raises(ReferencesIncomplete, match="another model registry"):
        turn(site)
    assert run("gc", "--backend-store-uri", site.uri, "--yes").code == 1
    assert left(site, run_id) != []
    init(site)
    assert turn(site) == {run_id: "swept"}


def test_new_settings_hold_for_what_waits(hooked: Site) -> None:
    """A shorter or longer grace period, told by ``init``, reaches a worker that runs."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    one = worker(site)
    assert one.turn() is None
    init(site, "--grace", "0s")
    report = one.turn()
    assert report is not None
    assert [result.outcome.value for result in report.results] == ["swept"]
    one.close()


def test_an_idle_worker_asks_one_query_per_poll(hooked: Site) -> None:
    """And writes nothing."""
    site = hooked
    init(site, *NOW)
    one = worker(site)
    one.turn()
    statements: list[str] = []
    sa.event.listen(one._engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for _ in range(10):
        assert one.turn() is None
    asked = [text for text in statements if not text.startswith("BEGIN")]
    assert len(asked) == 10, asked
    assert all(text.startswith("SELECT") for text in asked)
    one.close()


def test_a_sweep_that_was_killed_is_taken_up(hooked: Site) -> None:
    """An intent that a dead process left in ``sweeping`` is looked at again when its claim has run out."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    one = worker(site, MLFLOW_ARTIFACT_GC_MAX_OBJECTS="0")
    one.turn()
    one.close()
    site.execute("UPDATE artifact_gc_intents SET state = 'sweeping', claimed_by = 'elsewhere', claimed_until_ms = 1")
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1")
    assert turn(site) == {run_id: "swept"}


def test_rows_that_are_gone_for_good_leave_their_places(hooked: Site) -> None:
    """What ``mlflow gc`` takes away is remembered with its URI, and the worker does not act on it."""
    site = hooked
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id)
    site.store._hard_delete_run(run_id)
    assert turn(site) == {}
    assert intents(site, "entity_id", "look_ms", "detail") == [(run_id, None, journal.LOST)]
    assert left(site, run_id) != []


def test_a_second_look_finds_late_writers(hooked: Site) -> None:
    """What was swept is listed again a day later: closed when it is empty, swept again when somebody wrote into it."""
    site = hooked
    init(site, *NOW)
    experiment = site.experiment()
    quiet, late = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    for one in (quiet, late):
        site.delete_run(one)
    assert turn(site) == {quiet: "swept", late: "swept"}
    site.write(late, site.artifact_uri(late), {"late.bin": 10})
    assert turn(site) == {}
    site.execute("UPDATE artifact_gc_intents SET swept_ms = swept_ms - :day", day=DAY_MS + 1000)
    turn(site)
    assert turn(site) == {late: "swept"}
    assert dict(intents(site, "entity_id", "state")) == {quiet: "closed", late: "swept"}
    assert left(site, late) == []


def test_what_logged_models_of_deleted_runs_hold_is_told(hooked: Site) -> None:
    """In MLflow 3 most bytes are there: ``status`` and ``gc`` say how many."""
    site = hooked
    init(site, *NOW)
    experiment = site.experiment()
    run_id = site.run(experiment, n_objects=1)
    site.logged_model(experiment, run_id, n_objects=3, object_bytes=1000)
    site.delete_run(run_id)
    turn(site)
    turn(site)
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    assert "1 logged model of deleted runs (3 objects, 3.00 kB)" in run("status", *stores).out
    site.delete_run(site.run(experiment, n_objects=1))
    assert "1 logged model of deleted runs (3 objects, 3.00 kB)" in run("gc", *stores, "--dry-run").out


def test_a_registration_that_began_before_the_claim_is_seen(
    server_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """It has asked, was not refused, and commits after the claim; the fence waits for it."""
    site = watched(make_site(Site.direct(server_uri, seaweed, bucket)))
    init(site, *NOW)
    run_id = site.run(site.experiment(), {"model/MLmodel": 10})
    site.register("churn", "s3://elsewhere/model")
    site.delete_run(run_id)
    connection = site.engine.connect()
    late = connection.begin()
    source = f"{site.artifact_uri(run_id)}/model"
    statement = "UPDATE model_versions SET source = :source, storage_location = :source"
    connection.execute(sa.text(statement), {"source": source})
    found: list[dict[str, str]] = []
    sweeping = threading.Thread(target=lambda: found.append(turn(site)))
    sweeping.start()
    deadline = time.monotonic() + 20
    while ("sweeping",) not in intents(site, "state"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    late.commit()
    connection.close()
    sweeping.join()
    assert found == [{run_id: "protected"}]
    assert len(left(site, run_id)) == 1


def test_a_deleted_experiment_that_comes_back_and_goes_again(any_site: Site) -> None:
    """Its run, its model and its trace wait together, are let go together, and get a whole grace period again."""
    site = any_site
    init(site, "--grace", "7d", "--min-object-age", "0s")
    experiment = site.experiment()
    run_id = site.run(experiment, n_objects=1)
    owned = [run_id, *site.logged_models(experiment, run_id, n_objects=1), site.trace(experiment)]
    site.delete_experiment(experiment)
    turn(site)
    shift(site, 6 * DAY_MS)
    site.restore_experiment(experiment)
    assert turn(site) == {}
    assert {state for (state,) in intents(site, "state")} == {"cancelled"}

    site.delete_experiment(experiment)
    assert turn(site) == {}
    shift(site, 6 * DAY_MS)
    assert turn(site) == {}
    assert all(left(site, one) for one in owned)
    shift(site, 2 * DAY_MS)
    assert turn(site) == dict.fromkeys(owned, "swept")


def test_a_logged_model_that_is_deleted_by_itself(any_site: Site) -> None:
    """It goes after the grace period, and its run, which nobody deleted, stays."""
    site = any_site
    init(site, "--grace", "7d", "--min-object-age", "0s")
    experiment = site.experiment()
    run_id = site.run(experiment, n_objects=1)
    model = site.logged_model(experiment, run_id, n_objects=2)
    site.store.delete_logged_model(model)
    turn(site)
    shift(site, 6 * DAY_MS)
    assert turn(site) == {}
    shift(site, 2 * DAY_MS)
    assert turn(site) == {model: "swept"}
    assert left(site, model) == []
    assert len(left(site, run_id)) == 1


def test_the_default_brake_parks_what_is_half_of_everything(hooked: Site) -> None:
    """More than half of the database at one moment: ``status`` names the flag, ``gc`` asks for it too, and goes on."""
    site = hooked
    init(site, *NOW)
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=int(number < 2)) for number in range(102)]
    site.delete_experiment(experiment)
    assert turn(site) == {}
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    told = run("status", *stores, "--format", "json").json["worker"]
    assert told["held_back"] == len(dead)
    assert "more than --max-share 0.5 allows" in told["brake"]

    gc(site, expect=4)
    assert all(left(site, one) for one in dead[:2])
    assert set(outcomes(gc(site, "--max-share", "1")).values()) == {"swept", "empty"}
    assert not any(left(site, one) for one in dead)
    turn(site)
    assert run("status", *stores, "--format", "json").json["worker"]["brake"] is None


def test_status_has_the_worker_s_date(hooked: Site) -> None:
    """A client's clock is years behind: ``status`` says what the run's tag says, not that it is due."""
    site = hooked
    init(site, "--grace", "7d", "--min-object-age", "0s")
    run_id = site.run(site.experiment(), n_objects=1)
    site.delete_run(run_id, deleted_ms=1000)
    turn(site)
    told = run("status", "--backend-store-uri", site.uri, "--registry-store-uri", site.uri, "--format", "json").json
    assert told["tombstones"] == {"grace": 1}
    assert show_instant(told["next_due_ms"]) == tags(site, run_id)["artifact_gc.expires"]


def test_status_says_how_the_worker_does(hooked: Site) -> None:
    """Not seen yet, at work, not seen any more, turned away: in words and in the document."""
    site = hooked
    init(site, *NOW)
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)

    def told() -> tuple[str, Any]:
        return run("status", *stores).out, run("status", *stores, "--format", "json").json["worker"]

    said, before = told()
    assert "No worker has been seen: start 'mlflow server' again" in said
    assert (before["lives"], before["seen_ms"]) == (False, None)
    one = worker(site)
    one.turn()
    said, during = told()
    assert "A worker is at work: it purges what was deleted after 20" in said
    assert during["lives"] is True
    one.close()
    said, after = told()
    assert re.search(r"No worker has been seen for \d+(\.\d+)?s", said)
    assert (after["lives"], after["seen_ms"]) == (False, during["seen_ms"])
    stranger = Worker(
        Assignment(backend_store_uri=site.uri, artifacts_destination="s3://elsewhere/artifacts"),
        Settings.from_env(site.s3.environ()),
        threading.Event(),
    )
    init(site, "--artifacts-destination", f"s3://{site.bucket}/artifacts")
    with pytest.raises(RootRefused):
        stranger.turn()
    said, at_last = told()
    assert "A worker was turned away at 20" in said
    assert "s3://elsewhere/artifacts" in at_last["turned_away"]


def test_deleted_before_init_and_its_experiment_after(hooked: Site) -> None:
    """MLflow dates a run anew with its experiment, so it goes with it; what is undated waits for a person."""
    site = hooked
    experiment = site.experiment()
    old, undated = site.run(experiment, n_objects=1), site.run(site.experiment(), n_objects=1)
    site.delete_run(old, deleted_ms=int(time.time() * 1000) - DAY_MS)
    site.delete_run(undated)
    site.undate_run(undated)
    init(site, *NOW)
    assert turn(site) == {}
    site.delete_experiment(experiment)
    assert turn(site) == {old: "swept"}
    assert left(site, undated) != []


def test_once_says_how_it_ended(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """``worker --once``, for cron: 0 where there is nothing to do or another works, 3 where something failed."""
    site = hooked
    init(site, *NOW)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    once = ("worker", "--once", "--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    assert run(*once).code == 0
    run_id = site.run(site.experiment(), n_objects=2)
    site.delete_run(run_id)
    other = worker(site)
    with database.reading(site.engine) as connection:
        seen = lease.look(connection)
    with database.writing(site.engine) as connection:
        assert lease.take(connection, seen, owner="elsewhere/0/1/1/x", for_ms=60_000)
    assert run(*once).code == 0
    assert len(left(site, run_id)) == 2
    other.close()
    site.execute("UPDATE artifact_gc_lease SET owner = NULL, until_ms = 0")
    with monkeypatch.context() as patched:
        patched.setattr(s3.deleting._Deletion, "many", _refused)
        assert run(*once).code == 3
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1")
    assert run(*once).code == 0
    assert left(site, run_id) == []


def _refused(self: Any, targets: list[Any]) -> None:
    self.outcomes.update(
        {target: Failure(key=target[0], code="InternalError", message="busy", retryable=True) for target in targets}
    )


def test_how_much_is_kept_is_measured_without_a_worker_too(site: Site) -> None:
    """``gc --yes`` from cron, also where nothing is due: the document and ``status`` say how many bytes."""
    init(site, *NOW)
    experiment = site.experiment()
    run_id = site.run(experiment, n_objects=1)
    site.logged_model(experiment, run_id, n_objects=3, object_bytes=1000)
    site.delete_run(run_id)
    stores = ("--backend-store-uri", site.uri, "--registry-store-uri", site.uri)
    for _ in range(2):  # the second finds nothing due
        told = gc(site)["kept_models_of_deleted_runs"]
        assert (told["models"], told["objects"], told["bytes"]) == (1, 3, 3000)
    assert "1 logged model of deleted runs (3 objects, 3.00 kB)" in run("status", *stores).out


def test_what_a_stopped_worker_did_not_reach_is_due(hooked: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one, which may have looked at everything long ago, need not wait for a date."""
    site = hooked
    init(site, *NOW)
    dead = [site.run(site.experiment(), n_objects=1) for _ in range(4)]
    for one in dead:
        site.delete_run(one)
    stop, many = threading.Event(), s3.deleting._Deletion.many

    def stopped_by_the_first(self: Any, targets: list[Any]) -> None:
        stop.set()
        many(self, targets)
        time.sleep(1)  # Longer than the worker takes to see it.

    stopped = worker(site, stop, MLFLOW_ARTIFACT_GC_CONCURRENCY="1")
    with monkeypatch.context() as patched:
        patched.setattr(s3.deleting._Deletion, "many", stopped_by_the_first)
        stopped.turn()
    stopped.close()
    there = [one for one in dead if left(site, one)]
    assert 0 < len(there) < len(dead)
    found = intents(site, "entity_id", "state", "look_ms")
    due = [entity for entity, state, ms in found if state == "pending" and ms <= time.time() * 1000]
    assert sorted(due) == sorted(there)


class _Waits(threading.Event):
    """How long the worker would have waited, each time; ``then`` is what happens meanwhile."""

    def __init__(self, *then: Callable[[], object]) -> None:
        super().__init__()
        self.waited_s: list[float] = []
        self._then = then

    def wait(self, timeout: float | None = None) -> bool:
        """Not at all."""
        self.waited_s.append(timeout or 0.0)
        if len(self.waited_s) > len(self._then):
            self.set()
        else:
            self._then[len(self.waited_s) - 1]()
        return self.is_set()


def test_a_worker_without_its_database_asks_later_and_later(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Up to five minutes, and says it once; when the database is back, it goes on as ever. No file is made instead."""
    init(site, *NOW)
    run_id = site.run(site.experiment(), n_objects=1)
    site.close()
    file = Path(sa.make_url(site.uri).database or "")
    away = file.rename(file.with_suffix(".away"))

    def comes_back() -> None:
        assert not file.exists()
        away.rename(file)
        watched(site).delete_run(run_id)

    def goes_away() -> None:
        assert left(site, run_id) == []
        site.close()
        file.rename(away)

    def nothing() -> None:
        assert not file.exists()

    waits = _Waits(*[nothing] * 6, comes_back, goes_away, nothing, lambda: away.rename(file))
    worker(site, waits, MLFLOW_ARTIFACT_GC_POLL="7s").run()

    assert waits.waited_s == [14, 28, 56, 112, 224, 300, 300, 7, 14, 28, 7]
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2
    assert all("There is no database at" in one for one in said)
