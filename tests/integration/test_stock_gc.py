"""``mlflow gc`` with this package beside it: what it asks for is swept by us, and what stays keeps its row."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import sweeping
from mlflow_artifact_gc.metadata import Eraser
from mlflow_artifact_gc.s3 import MARKER_NAME
from tests.command import init
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.stock import StockRan, mlflow_gc

MakeSite = Callable[[Site], Site]
NOW = ("--grace", "0s", "--min-object-age", "0s")


@pytest.fixture
def any_site(db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """A site on each database."""
    return make_site(Site.direct(db_uri, seaweed, bucket))


@pytest.fixture
def every_site(any_db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """The same on MariaDB too: for what a site does every night."""
    return make_site(Site.direct(any_db_uri, seaweed, bucket))


def rows(site: Site) -> set[str]:
    """The ids of everything that MLflow still has a row of."""
    return {row.id for row in site.rows()}


def keys_of(site: Site, entity: str) -> list[str]:
    """What lies in S3 of an entity: objects, versions, markers and uploads."""
    return [item.key for item in site.items() if f"/{entity}/" in item.key]


def states(site: Site) -> dict[str, str]:
    """The state of each entity's intent."""
    with site.engine.connect() as connection:
        found = connection.execute(sa.text("SELECT entity_id, state FROM artifact_gc_intents"))
        return {row.entity_id: row.state for row in found}


def kept(site: Site, ran: StockRan, *entities: str) -> bool:
    """Whether the command ended well, said that these stay, and they did, with their rows."""
    said = all(f"{entity} was NOT deleted" in ran.err for entity in entities)
    return ran.code == 0 and said and set(entities) <= rows(site)


def test_deleted_runs_go_with_their_rows(every_site: Site) -> None:
    """What a nightly 'mlflow gc' does, it does with us too; and the journal has it."""
    site = every_site
    experiment = site.experiment()
    live, deleted = site.run(experiment, n_objects=2), site.run(experiment, n_objects=3)
    site.delete_run(deleted)
    init(site, *NOW)
    ran = mlflow_gc(site)

    assert ran.code == 0, ran.error
    assert f"Run with ID {deleted} has been permanently deleted." in ran.out
    assert not keys_of(site, deleted)
    assert states(site) == {deleted: "swept"}
    assert deleted not in rows(site)
    assert len(keys_of(site, live)) == 2
    assert live in rows(site)


def test_a_registered_model_is_kept_and_the_next_run_goes(every_site: Site) -> None:
    """The run whose artifacts are a champion stays with its row; its neighbours are collected all the same."""
    site = every_site
    experiment = site.experiment()
    champion = site.run(experiment, {"model/MLmodel": b"x"})
    others = [site.run(experiment, n_objects=1) for _ in range(4)]
    version = site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    site.alias("churn", "champion", version)
    for run in (champion, *others):
        site.delete_run(run)
    init(site, *NOW)
    ran = mlflow_gc(site)

    assert ran.code == 0, ran.error
    assert champion not in ran.out, "it was not even asked for"
    assert len(keys_of(site, champion)) == 1
    assert rows(site) & {champion, *others} == {champion}


def test_a_registered_model_that_is_named_is_kept(any_site: Site) -> None:
    """Named by its id it is asked for, and stays, and the command says whatever it says."""
    site = any_site
    experiment = site.experiment()
    champion, other = site.run(experiment, {"model/MLmodel": b"x"}), site.run(experiment, n_objects=1)
    site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    for run in (champion, other):
        site.delete_run(run)
    init(site, *NOW)
    ran = mlflow_gc(site, "--run-ids", f"{champion},{other}")

    assert kept(site, ran, champion), ran
    assert "registered model churn, version 1" in ran.err
    assert len(keys_of(site, champion)) == 1
    assert other not in rows(site)
    assert not keys_of(site, other)


def test_the_site_s_grace_period_and_minimum_age_hold(site: Site) -> None:
    """A command that asks nobody takes nothing that could still be restored whole, and nothing that is young."""
    experiment = site.experiment()
    fresh, old = (site.run(experiment, n_objects=1) for _ in range(2))
    site.delete_run(fresh)
    site.delete_run(old, deleted_ms=int(time.time() * 1000) - 8 * DAY_MS)
    init(site)
    ran = mlflow_gc(site, "--run-ids", f"{fresh},{old}")

    assert kept(site, ran, fresh, old), ran
    assert "still in its grace period until" in ran.err
    assert "postponed: something in it was written at" in ran.err
    assert keys_of(site, fresh)
    assert keys_of(site, old)


def test_what_cannot_be_deleted_keeps_its_row(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """A refusal of one key, inside an answer that says 200: its run stays as it is, and the next one goes."""
    locked_bucket = f"locked-{uuid.uuid4().hex[:8]}"
    site = make_site(Site.direct(sqlite_uri, seaweed, locked_bucket))
    site.client.create_bucket(Bucket=locked_bucket, ObjectLockEnabledForBucket=True)
    experiment = site.experiment()
    locked, free = site.run(experiment, n_objects=3), site.run(experiment, n_objects=2)
    key = f"{site.key_of(site.artifact_uri(locked))}/held.bin"
    until = datetime.now(UTC) + timedelta(hours=1)
    site.client.put_object(
        Bucket=locked_bucket, Key=key, Body=b"x", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until
    )
    for one in (locked, free):
        site.delete_run(one)
    init(site, *NOW)
    ran = mlflow_gc(site)

    assert kept(site, ran, locked), ran
    assert "AccessDenied" in ran.err or "held.bin" in ran.err
    assert free not in rows(site)
    assert not keys_of(site, free)
    assert keys_of(site, locked) == [key]


def test_versions_markers_and_uploads_go_too(site: Site) -> None:
    """Nothing that is paid for is left."""
    site.switch_versioning(on=True)
    deleted = site.run(site.experiment(), n_objects=3)
    uri = site.artifact_uri(deleted)
    site.write(deleted, uri, {"again": b"1"})
    site.write(deleted, uri, {"again": b"2"})
    site.client.delete_object(Bucket=site.bucket, Key=f"{site.key_of(uri)}/again")
    site.begin_upload(deleted, uri, "large", b"part")
    site.delete_run(deleted)
    init(site, *NOW)
    assert len(keys_of(site, deleted)) == 7
    ran = mlflow_gc(site)

    assert ran.code == 0, ran.error
    assert not keys_of(site, deleted)
    assert deleted not in rows(site)


def test_only_what_is_named_goes(any_site: Site) -> None:
    """Naming one run takes neither the other deleted runs nor the deleted experiments."""
    site = any_site
    experiment, gone = site.experiment(), site.experiment()
    named, other = (site.run(experiment, n_objects=1) for _ in range(2))
    along = site.run(gone, n_objects=1)
    for run in (named, other):
        site.delete_run(run)
    site.delete_experiment(gone)
    init(site, *NOW)
    ran = mlflow_gc(site, "--run-ids", named)

    assert kept(site, ran, along, gone), ran
    assert rows(site) & {named, other, along, gone} == {other, along, gone}
    assert len(keys_of(site, other)) == len(keys_of(site, along)) == 1
    assert not keys_of(site, named)


def test_a_named_experiment_goes_alone(site: Site) -> None:
    """Naming an experiment does not take the deleted runs of others."""
    experiment, gone = site.experiment(), site.experiment()
    other, along = site.run(experiment, n_objects=1), site.run(gone, n_objects=1)
    site.delete_run(other)
    site.delete_experiment(gone)
    init(site, *NOW)
    ran = mlflow_gc(site, "--experiment-ids", gone)

    assert ran.code == 0, ran.error
    assert rows(site) & {other, along, gone} == {other}
    assert len(keys_of(site, other)) == 1
    assert not keys_of(site, along)


def test_an_experiment_takes_its_models_and_traces_along(every_site: Site) -> None:
    """Of a deleted experiment nothing is left, neither rows nor objects."""
    site = every_site
    experiment = site.experiment()
    run = site.run(experiment, n_objects=1)
    along = [*site.logged_models(experiment, run, n_objects=2), site.trace(experiment)]
    site.delete_experiment(experiment)
    init(site, *NOW)
    ran = mlflow_gc(site)

    assert ran.code == 0, ran.error
    assert not rows(site) & {experiment, run, *along}
    assert [key for key in site.snapshot().keys if not key.endswith(MARKER_NAME)] == []


def test_an_experiment_of_which_something_is_needed_stays(any_site: Site) -> None:
    """A registered logged model keeps its experiment's row; what nobody needs goes all the same."""
    site = any_site
    experiment = site.experiment()
    run = site.run(experiment, n_objects=1)
    model, other = (site.logged_model(experiment, run, n_objects=2) for _ in range(2))
    site.register("churn", f"models:/{model}", local_model_id=model)
    site.delete_experiment(experiment)
    init(site, *NOW)
    ran = mlflow_gc(site)

    assert kept(site, ran, experiment), ran
    assert f"logged model {model} stays (something live needs it: registered model churn" in ran.err
    assert len(keys_of(site, model)) == 2
    assert model in rows(site)
    assert not keys_of(site, other)
    assert not keys_of(site, run)


def test_a_run_that_was_restored_keeps_its_experiment(site: Site) -> None:
    """A live run in a deleted experiment is live."""
    experiment = site.experiment()
    live, dead = (site.run(experiment, n_objects=1) for _ in range(2))
    site.delete_experiment(experiment)
    site.restore_run(live)
    init(site, *NOW)
    ran = mlflow_gc(site)

    assert kept(site, ran, experiment), ran
    assert len(keys_of(site, live)) == 1
    assert rows(site) & {live, dead} == {live}


def test_a_younger_run_in_a_deleted_experiment_does_not_stop_the_command(site: Site) -> None:
    """MLflow gives up when a run of a deleted experiment is younger than asked; with us it stays, and all else goes."""
    old_ms = int(time.time() * 1000) - 3 * DAY_MS
    experiment, other = site.experiment(), site.experiment()
    young, old = (site.run(experiment, n_objects=1) for _ in range(2))
    elsewhere = site.run(other, n_objects=1)
    site.delete_experiment(experiment, deleted_ms=old_ms)
    site.execute("UPDATE runs SET deleted_time = :ms WHERE run_uuid = :id", ms=int(time.time() * 1000), id=young)
    site.delete_run(elsewhere, deleted_ms=old_ms)
    init(site, *NOW)
    ran = mlflow_gc(site, "--older-than", "1d")

    assert kept(site, ran, young, experiment), ran
    assert keys_of(site, young)
    assert not rows(site) & {old, elsewhere}


def test_a_deleted_logged_model_goes(any_site: Site) -> None:
    """A logged model that was deleted by itself, and not its live neighbour."""
    site = any_site
    experiment = site.experiment()
    run = site.run(experiment, n_objects=1)
    live, deleted = (site.logged_model(experiment, run, n_objects=1) for _ in range(2))
    site.delete_logged_model(deleted)
    init(site, *NOW)
    ran = mlflow_gc(site)

    assert ran.code == 0, ran.error
    assert rows(site) & {run, live, deleted} == {run, live}
    assert not keys_of(site, deleted)
    assert len(keys_of(site, live)) == 1


@pytest.mark.parametrize("named", [True, False])
def test_logged_models_go_with_their_run_where_the_site_says_so(site: Site, *, named: bool) -> None:
    """'--models follow-run' holds for MLflow's command too; the live run's model stays."""
    experiment = site.experiment()
    live, deleted = (site.run(experiment, n_objects=1) for _ in range(2))
    stays, goes = site.logged_model(experiment, live, n_objects=1), site.logged_model(experiment, deleted, n_objects=1)
    site.delete_run(deleted)
    init(site, *NOW, "--models", "follow-run")
    ran = mlflow_gc(site, *(("--run-ids", deleted) if named else ()))

    assert ran.code == 0, ran.error
    assert rows(site) & {live, deleted, stays, goes} == {live, stays}
    assert not keys_of(site, goes)
    assert len(keys_of(site, stays)) == 1


@pytest.mark.parametrize("moment", ["before the sweep", "before the row goes"])
def test_a_restore_in_between_keeps_the_row(any_site: Site, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A run that is restored while the command works is never destroyed; before the sweep it is whole."""
    site = any_site
    restored, other = (site.run(site.experiment(), n_objects=2) for _ in range(2))
    for run in (restored, other):
        site.delete_run(run)
    init(site, *NOW)
    owner: Any = sweeping if moment == "before the sweep" else Eraser
    name = "sweep" if moment == "before the sweep" else "erase"
    original = getattr(owner, name)

    def restore_first(*arguments: Any, **named: Any) -> Any:
        if restored not in done:
            done.append(restored)
            site.restore_run(restored)
        return original(*arguments, **named)

    done: list[str] = []
    monkeypatch.setattr(owner, name, restore_first)
    ran = mlflow_gc(site)

    # MLflow's command itself gives up where a run is live when its turn comes.
    gave_up = f"Run {restored} is not in `deleted` lifecycle stage" in str(ran.error)
    assert gave_up or kept(site, ran, restored), ran
    assert site.store.get_run(restored).info.lifecycle_stage == "active"
    assert len(keys_of(site, restored)) == (2 if moment == "before the sweep" else 0)
    assert gave_up or other not in rows(site)


def test_what_trips_a_brake_stops_the_command(site: Site) -> None:
    """Where more than half of everything would go at once, a person has to say that this is meant."""
    experiment = site.experiment()
    runs = [site.run(experiment) for _ in range(101)]
    site.write(runs[0], site.artifact_uri(runs[0]), {"x": b"1"})
    site.delete_experiment(experiment)
    init(site, *NOW)
    ran = mlflow_gc(site)

    assert ran.code == 1
    assert "--max-share" in str(ran.error)
    assert len(keys_of(site, runs[0])) == 1
    assert set(runs) <= rows(site)


def test_a_registry_that_is_not_known_stops_the_command(site: Site) -> None:
    """Where it is not known what is registered, nothing is touched, and the command fails."""
    deleted = site.run(site.experiment(), n_objects=1)
    site.delete_run(deleted)
    init(site, *NOW)
    site.execute("UPDATE artifact_gc_site SET registry_fingerprint = 'another'")
    ran = mlflow_gc(site)

    assert ran.code == 1
    assert "registry" in str(ran.error)
    assert keys_of(site, deleted)
    assert deleted in rows(site)


def test_proxied_artifacts_go_without_a_server(proxied_site: Site) -> None:
    """No tracking server is asked, and so no wrong one can be: what the proxy keeps is deleted where it lies."""
    site = proxied_site
    experiment = site.experiment()
    live, deleted = site.run(experiment, n_objects=2), site.run(experiment, n_objects=3)
    site.delete_run(deleted)
    init(site, *NOW)
    ran = mlflow_gc(site, tracking_uri="http://127.0.0.1:9")

    assert ran.code == 0, ran.error
    assert rows(site) & {live, deleted} == {live}
    assert not keys_of(site, deleted)
    assert len(keys_of(site, live)) == 2


def test_where_nobody_opted_in_it_is_mlflow_s_own(site: Site) -> None:
    """Installed and not switched on: everything soft-deleted goes at once, as without us."""
    experiment = site.experiment()
    live, deleted = site.run(experiment, n_objects=2), site.run(experiment, n_objects=3)
    site.delete_run(deleted)
    ran = mlflow_gc(site)

    assert ran.code == 0, ran.error
    assert rows(site) & {live, deleted} == {live}
    assert not keys_of(site, deleted)
    assert len(keys_of(site, live)) == 2


def test_where_nobody_opted_in_answers_are_read_all_the_same(
    sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that S3 refuses ends the command, as every other error does there, and the row stays."""
    site = make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))
    deleted = site.run(site.experiment(), n_objects=3)
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:DeleteObject",'
        f'"Resource":"arn:aws:s3:::{moto_bucket}/*"}}]}}'
    )
    site.client.put_bucket_policy(Bucket=moto_bucket, Policy=policy)
    site.delete_run(deleted)
    ran = mlflow_gc(site)
    site.client.delete_bucket_policy(Bucket=moto_bucket)

    assert ran.code == 1
    assert "3 objects" in str(ran.error)
    assert "AccessDenied" in str(ran.error)
    assert deleted in rows(site)
    assert len(keys_of(site, deleted)) == 3


def test_where_the_site_hides_the_row_stays_until_the_rule_has_acted(any_site: Site) -> None:
    """A night hides, and keeps the row; a night after the bucket's rule has removed everything, the row goes."""
    site = any_site
    site.client.put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Enabled"})
    experiment = site.experiment()
    live, deleted = site.run(experiment, n_objects=2), site.run(experiment, n_objects=3)
    site.delete_run(deleted)
    init(site, *NOW, "--action", "hide")
    first = mlflow_gc(site)

    assert kept(site, first, deleted), first
    shown = site.snapshot().keys
    assert (sum(live in key for key in shown), sum(deleted in key for key in shown)) == (2, 0)
    assert states(site) == {deleted: "waiting"}

    for item in site.snapshot().items:
        if deleted in item.key:
            site.client.delete_object(Bucket=site.bucket, Key=item.key, VersionId=item.version_id)
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1")
    second = mlflow_gc(site)

    assert second.code == 0, second.error
    assert deleted not in rows(site)
    assert live in rows(site)
