"""The known bugs of ``mlflow gc``, each shown on MLflow as it is without us, and its absence with us.

``docs/beside-mlflow-gc.md`` has them in a table; a test here is named after its number there.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from tests import servers
from tests.abilities import needs
from tests.command import gc, init, run
from tests.hooked import Hooked
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.stock import mlflow_gc, without_us

MakeSite = Callable[[Site], Site]
NOW = ("--grace", "0s", "--min-object-age", "0s")


class Pair(NamedTuple):
    """Two sites of the same kind: one for MLflow alone, one for MLflow with us."""

    stock: Site
    ours: Site


@pytest.fixture
def pair(sqlite_template: Path, tmp_path: Path, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Pair:
    """SQLite and SeaweedFS."""
    return _pair(sqlite_template, tmp_path, seaweed, make_site)


@pytest.fixture
def moto_pair(sqlite_template: Path, tmp_path: Path, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Pair:
    """SQLite and moto, whose bucket policies refuse key by key."""
    return _pair(sqlite_template, tmp_path, moto_s3, make_site)


def _pair(template: Path, folder: Path, server: S3Server, make_site: MakeSite) -> Pair:
    made = []
    for name in ("stock", "ours"):
        path = folder / f"{name}.db"
        path.write_bytes(template.read_bytes())
        made.append(make_site(Site.direct(f"sqlite:///{path}", server, servers.make_bucket(server, name))))
    return Pair(*made)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``mlflow gc`` without us."""

    def ran(site: Site, *arguments: str, **more: Any) -> Any:
        with without_us(monkeypatch):
            return mlflow_gc(site, *arguments, **more)

    return ran


def rows(site: Site) -> set[str]:
    """The ids of everything that MLflow still has a row of."""
    return {row.id for row in site.rows()}


def left(site: Site, *entities: str) -> list[str]:
    """What lies in S3 of these: objects, versions, markers and uploads."""
    return [item.key for item in site.items() if any(f"/{entity}/" in item.key for entity in entities)]


def gone_as_orphans(site: Site, *entities: str) -> None:
    """``gc --orphans``, twice, frees what has no row any more."""
    command = ("gc", "--backend-store-uri", site.uri, "--yes", *NOW[2:])
    assert run(*command, "--own-roots").code == 0
    for _ in range(2):
        ran = run(*command, "--orphans", "--orphan-quarantine", "0s")
        assert ran.code == 0, ran.err
    assert not left(site, *entities)


def test_1_an_experiment_s_logged_models_and_traces_are_left(pair: Pair, stock: Callable[..., Any]) -> None:
    """Their rows go with the experiment's, and their objects stay for ever; with us they go."""

    def build(site: Site) -> tuple[str, str, str]:
        experiment = site.experiment()
        made = experiment, site.logged_model(experiment, n_objects=2), site.trace(experiment)
        site.delete_experiment(experiment)
        return made

    theirs, ours = build(pair.stock), build(pair.ours)
    assert stock(pair.stock).code == 0
    assert not rows(pair.stock) & set(theirs)
    assert len(left(pair.stock, *theirs)) == 3
    pair.stock.run(pair.stock.experiment())
    init(pair.stock, *NOW)
    gone_as_orphans(pair.stock, *theirs)

    init(pair.ours, *NOW)
    assert mlflow_gc(pair.ours).code == 0
    assert not rows(pair.ours) & set(ours)
    assert not left(pair.ours, *ours)


def test_2_a_run_s_logged_models_are_left(pair: Pair, stock: Callable[..., Any]) -> None:
    """The run goes and its models' objects stay; with us they go along where the site says so."""

    def build(site: Site) -> tuple[str, str]:
        experiment = site.experiment()
        made = site.run(experiment, n_objects=1)
        model = site.logged_model(experiment, made, n_objects=2)
        site.delete_run(made)
        return made, model

    theirs, ours = build(pair.stock), build(pair.ours)
    assert stock(pair.stock).code == 0
    assert theirs[0] not in rows(pair.stock)
    assert len(left(pair.stock, theirs[1])) == 2

    init(pair.ours, *NOW, "--models", "follow-run")
    assert mlflow_gc(pair.ours).code == 0
    assert not rows(pair.ours) & set(ours)
    assert not left(pair.ours, *ours)


def test_3_deleted_traces_leave_their_objects(pair: Pair) -> None:
    """The row goes at once and nobody knows any more what it was; with us its place is remembered."""
    site = pair.ours
    experiment = site.experiment()
    init(site, *NOW)
    hooked = Hooked(uri=site.uri, root=site.artifact_root)
    trace = site.trace(experiment)
    uri = site.artifact_uri(trace)
    hooked.store.delete_traces(experiment, trace_ids=[trace])
    noted = hooked.taken()
    hooked.close()
    site.run(experiment)

    assert trace not in rows(site)
    assert len(left(site, trace)) == 1, "MLflow deletes them by now"
    assert [(one.id, one.uri) for one in noted] == [(trace, uri)]
    gone_as_orphans(site, trace)


@needs("workspaces")
def test_4_a_workspace_leaves_every_object(pair: Pair) -> None:
    """Its rows are deleted at once, and what MLflow advises then finds nothing; ``gc --orphans`` does."""
    site = pair.stock
    site.run(site.experiment())
    model, run_id = f"m-{uuid.uuid4().hex}", uuid.uuid4().hex
    home = f"s3://{site.bucket}/mlruns/workspaces/vision/9"
    for owner, place in ((run_id, f"{run_id}/artifacts"), (model, f"models/{model}/artifacts")):
        site.write(owner, f"{home}/{place}", {"x": 1})
    init(site, *NOW)

    gone_as_orphans(site, run_id, model)


def test_5_a_registered_model_is_destroyed(pair: Pair, stock: Callable[..., Any]) -> None:
    """A champion that points into a deleted run is deleted without a word; with us it stays."""

    def build(site: Site) -> str:
        champion = site.run(site.experiment(), {"model/MLmodel": b"x"})
        version = site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
        site.alias("churn", "champion", version)
        site.delete_run(champion)
        return champion

    theirs, ours = build(pair.stock), build(pair.ours)
    assert stock(pair.stock).code == 0
    assert not left(pair.stock, theirs)

    init(pair.ours, *NOW)
    assert mlflow_gc(pair.ours).code == 0
    assert len(left(pair.ours, ours)) == 1
    assert ours in rows(pair.ours)


def test_6_ids_do_not_limit_it(pair: Pair, stock: Callable[..., Any]) -> None:
    """Naming one run deletes whole experiments beside it; with us it does not."""

    def build(site: Site) -> tuple[str, str]:
        kept, gone = site.experiment(), site.experiment()
        named, other = site.run(kept, n_objects=1), site.run(gone, n_objects=1)
        site.delete_run(named)
        site.delete_experiment(gone)
        return named, other

    theirs, ours = build(pair.stock), build(pair.ours)
    assert stock(pair.stock, "--run-ids", theirs[0]).code == 0
    assert not left(pair.stock, *theirs)

    init(pair.ours, *NOW)
    assert mlflow_gc(pair.ours, "--run-ids", ours[0]).code == 0
    assert len(left(pair.ours, *ours)) == 1
    assert rows(pair.ours) & set(ours) == {ours[1]}


def test_7_what_s3_refuses_is_forgotten(moto_pair: Pair, stock: Callable[..., Any]) -> None:
    """Every key is refused, inside an answer that says 200, and the row goes; with us it stays."""

    def build(site: Site) -> str:
        made = site.run(site.experiment(), n_objects=3)
        policy = (
            '{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":["s3:DeleteObject",'
            f'"s3:DeleteObjectVersion"],"Resource":"arn:aws:s3:::{site.bucket}/*/artifacts/*"}}]}}'
        )
        site.client.put_bucket_policy(Bucket=site.bucket, Policy=policy)
        site.delete_run(made)
        return made

    theirs, ours = build(moto_pair.stock), build(moto_pair.ours)
    assert stock(moto_pair.stock).code == 0
    assert theirs not in rows(moto_pair.stock)
    assert len(left(moto_pair.stock, theirs)) == 3

    init(moto_pair.ours, *NOW)
    ran = mlflow_gc(moto_pair.ours)
    assert ran.code == 0
    assert "AccessDenied" in ran.err
    assert ours in rows(moto_pair.ours)
    assert len(left(moto_pair.ours, ours)) == 3


def test_8_versions_markers_and_uploads_are_left(pair: Pair, stock: Callable[..., Any]) -> None:
    """On a versioned bucket nothing is freed; with us everything is."""

    def build(site: Site) -> str:
        site.switch_versioning(on=True)
        made = site.run(site.experiment(), n_objects=2)
        site.begin_upload(made, site.artifact_uri(made), "large", b"part")
        site.delete_run(made)
        return made

    theirs, ours = build(pair.stock), build(pair.ours)
    assert stock(pair.stock).code == 0
    assert theirs not in rows(pair.stock)
    assert len(left(pair.stock, theirs)) == 5, "two versions, two markers, one upload"

    init(pair.ours, *NOW)
    assert mlflow_gc(pair.ours).code == 0
    assert not left(pair.ours, ours)


def test_9_runs_without_a_date_are_never_collected(pair: Pair, stock: Callable[..., Any]) -> None:
    """What was deleted before MLflow kept dates stays for ever; our own command takes it when told to."""

    def build(site: Site) -> str:
        made = site.run(site.experiment(), n_objects=1)
        site.delete_run(made)
        site.undate_run(made)
        return made

    theirs, ours = build(pair.stock), build(pair.ours)
    assert stock(pair.stock).code == 0
    assert len(left(pair.stock, theirs)) == 1

    init(pair.ours, *NOW)
    gc(pair.ours, "--include-undated", "--metadata", "delete")
    assert not left(pair.ours, ours)
    assert ours not in rows(pair.ours)


def test_10_one_failure_ends_it(pair: Pair, stock: Callable[..., Any]) -> None:
    """A run whose bucket does not exist stops the command; with us it stays, and the others go."""

    def build(site: Site) -> tuple[str, list[str]]:
        experiment = site.experiment()
        broken = site.run(experiment)
        others = [site.run(experiment, n_objects=1) for _ in range(5)]
        site.execute(
            "UPDATE runs SET artifact_uri = 's3://no-such-bucket/' || run_uuid || '/artifacts' WHERE run_uuid = :id",
            id=broken,
        )
        for one in (broken, *others):
            site.delete_run(one)
        return broken, others

    (theirs, _), (ours, others) = build(pair.stock), build(pair.ours)
    ran = stock(pair.stock)
    assert ran.code == 1
    assert "NoSuchBucket" in str(ran.error)
    assert theirs in rows(pair.stock)

    init(pair.ours, *NOW)
    ran = mlflow_gc(pair.ours)
    assert ran.code == 0, ran.error
    assert ours in rows(pair.ours)
    assert not rows(pair.ours) & set(others)
    assert not left(pair.ours, *others)


def test_11_proxied_artifacts_need_a_server(
    proxied_site: Site, stock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One HTTP request a run, to whatever server the environment names; with us none at all."""
    site = proxied_site
    made = site.run(site.experiment(), n_objects=2)
    site.delete_run(made)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for tracking_uri, said in ((site.uri, "must be a valid http"), ("http://127.0.0.1:9", "Connection refused")):
        ran = stock(site, tracking_uri=tracking_uri)
        assert ran.code == 1
        assert said in str(ran.error)
    assert len(left(site, made)) == 2

    init(site, *NOW)
    assert mlflow_gc(site, tracking_uri="http://127.0.0.1:9").code == 0
    assert not left(site, made)
    assert made not in rows(site)


def test_12_pages_are_read_by_recursion(pair: Pair, stock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand pages are too deep for it; ours reads the rows by one query of its own."""
    from mlflow.store.entities import PagedList
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    experiment = pair.ours.experiment()
    made = pair.ours.run(experiment, n_objects=1)
    pair.ours.delete_experiment(experiment)
    theirs = pair.stock.experiment()
    pair.stock.delete_experiment(theirs)

    def many_pages(_store: Any, *_arguments: Any, page_token: str | None = None, **_more: Any) -> Any:
        number = int(page_token or 0)
        return PagedList([], str(number + 1) if number < 2_000 else None)

    monkeypatch.setattr(SqlAlchemyStore, "search_runs", many_pages)
    assert isinstance(stock(pair.stock).error, RecursionError)

    init(pair.ours, *NOW)
    gc(pair.ours, "--metadata", "delete")
    assert not left(pair.ours, made)
    assert experiment not in rows(pair.ours)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The S3 requests that are made, by their names."""
    import botocore.client

    base: Any = botocore.client.BaseClient
    made: list[str] = []
    call = base._make_api_call

    def counting(self: Any, operation: str, arguments: Any) -> Any:
        made.append(operation)
        return call(self, operation, arguments)

    monkeypatch.setattr(base, "_make_api_call", counting)
    return made


def test_13_each_run_costs_two_requests(pair: Pair, stock: Callable[..., Any], requests: list[str]) -> None:
    """One after the other, also where there is nothing; with us neighbours are listed and deleted together."""

    def build(site: Site) -> None:
        experiment = site.experiment()
        for one in [site.run(experiment, n_objects=1) for _ in range(64)]:
            site.delete_run(one)

    build(pair.stock)
    build(pair.ours)
    init(pair.ours, *NOW)
    requests.clear()
    assert stock(pair.stock).code == 0
    assert len(requests) >= 128
    requests.clear()
    assert mlflow_gc(pair.ours).code == 0
    assert len(requests) < 100, "sixteen listings, as many deletions, and three times as many to verify"


def test_14_it_shows_nothing_and_asks_nobody(pair: Pair, stock: Callable[..., Any]) -> None:
    """No dry run, no question, no report; ours has them."""
    for flag in ("--dry-run", "--yes", "--format=json"):
        assert "No such option" in stock(pair.stock, flag).err
    made = pair.ours.run(pair.ours.experiment(), n_objects=1)
    pair.ours.delete_run(made)
    init(pair.ours, *NOW)
    report = run("gc", "--backend-store-uri", pair.ours.uri, "--dry-run", "--format", "json").json
    assert report["plan"]["totals"]["due"] == 1
    assert run("gc", "--backend-store-uri", pair.ours.uri).code == 4, "nobody can be asked here"
    assert len(left(pair.ours, made)) == 1


def test_15_a_restored_experiment_brings_back_what_was_deleted_before(pair: Pair) -> None:
    """That is MLflow's: its rows say what is live, and we go by them; a date that is set anew begins anew."""
    site = pair.ours
    experiment = site.experiment()
    early = site.run(experiment, n_objects=1)
    site.delete_run(early, deleted_ms=int(time.time() * 1000) - 30 * DAY_MS)
    init(site, "--grace", "7d", "--min-object-age", "0s")
    site.delete_experiment(experiment)
    assert mlflow_gc(site).code == 0
    assert len(left(site, early)) == 1, "its date was set anew by the experiment's deletion"
    site.restore_experiment(experiment)
    assert mlflow_gc(site).code == 0
    assert len(left(site, early)) == 1
    assert site.store.get_run(early).info.lifecycle_stage == "active"


def test_16_older_versions_delete_too_much_or_too_little(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Siblings with the same beginning, what is beyond a page: we never call MLflow's own deletion."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    def never(*_arguments: Any) -> None:
        raise AssertionError("MLflow's own deletion was called")

    monkeypatch.setattr(S3ArtifactRepository, "delete_artifacts", never)
    site = pair.ours
    experiment = site.experiment()
    made = site.run(experiment, n_objects=1)
    folder = site.key_of(site.artifact_uri(made))
    for beside in (f"{folder}_backup/x", f"{folder}2"):
        site.client.put_object(Bucket=site.bucket, Key=beside, Body=b"x")
    site.delete_run(made)
    init(site, *NOW)
    assert mlflow_gc(site).code == 0
    assert sorted(left(site, made)) == sorted([f"{folder}_backup/x", f"{folder}2"])


# What the list of 16 lacks


def test_17_a_restore_in_time_is_overrun(
    pair: Pair, stock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is restored between the look at its row and its end is destroyed; with us it stays."""

    def build(site: Site) -> str:
        made = site.run(site.experiment(), n_objects=1)
        site.delete_run(made)
        return made

    def restore_after_the_look(site: Site, id_: str) -> None:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        get_run = SqlAlchemyStore.get_run

        def looked(store: Any, run_id: str) -> Any:
            found = get_run(store, run_id)
            if run_id == id_ and found.info.lifecycle_stage == "deleted":
                site.execute(
                    "UPDATE runs SET lifecycle_stage = 'active', deleted_time = NULL WHERE run_uuid = :id", id=id_
                )
            return found

        monkeypatch.setattr(SqlAlchemyStore, "get_run", looked)

    theirs, ours = build(pair.stock), build(pair.ours)
    restore_after_the_look(pair.stock, theirs)
    assert stock(pair.stock).code == 0
    assert theirs not in rows(pair.stock)
    assert not left(pair.stock, theirs)

    init(pair.ours, *NOW)
    restore_after_the_look(pair.ours, ours)
    ran = mlflow_gc(pair.ours)
    assert ran.code == 0, ran.error
    assert ours in rows(pair.ours)
    assert len(left(pair.ours, ours)) == 1


def test_18_live_artifacts_inside_a_deleted_run_s_are_destroyed(pair: Pair, stock: Callable[..., Any]) -> None:
    """An experiment that lies inside a run's artifacts goes with that run; with us nothing of either does."""

    def build(site: Site) -> str:
        outer = site.run(site.experiment(), n_objects=1)
        inner = site.run(site.experiment(artifact_location=f"{site.artifact_uri(outer)}/inner"), n_objects=1)
        site.delete_run(outer)
        return inner

    theirs, ours = build(pair.stock), build(pair.ours)
    assert stock(pair.stock).code == 0
    assert not left(pair.stock, theirs)

    init(pair.ours, *NOW)
    assert mlflow_gc(pair.ours).code == 0
    assert len(left(pair.ours, ours)) == 1


def test_19_rows_that_name_the_run_are_left(pair: Pair, stock: Callable[..., Any]) -> None:
    """Rows without a foreign key, such as the inputs of a run, outlive it; with us they go."""

    def build(site: Site) -> str:
        made = site.run(site.experiment(), n_objects=1)
        site.execute(
            "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id, step) "
            "VALUES (:uuid, 'DATASET', 'd', 'RUN', :id, 0)",
            uuid=made,
            id=made,
        )
        site.delete_run(made)
        return made

    def inputs(site: Site) -> int:
        with site.engine.connect() as connection:
            return int(connection.execute(sa.text("SELECT count(*) FROM inputs")).scalar_one())

    build(pair.stock)
    build(pair.ours)
    assert stock(pair.stock).code == 0
    assert inputs(pair.stock) == 1

    init(pair.ours, *NOW)
    assert mlflow_gc(pair.ours).code == 0
    assert inputs(pair.ours) == 0
