"""``gc`` on real databases and real S3 servers: what goes, what stays, and what is said of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlflow_artifact_gc import surveying
from tests import servers
from tests.command import NOW, evidence, gc, init, outcomes, reasons, run
from tests.oracle import assert_bucket_sound
from tests.servers import S3Server
from tests.site import DAY_MS, Site

MakeSite = Callable[[Site], Site]


@pytest.fixture
def moto_site(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Site:
    """SQLite and moto: the faster of the two servers, and the one that holds odd keys."""
    return make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))


def now_ms() -> int:
    """This machine's clock, which the servers of the tests share."""
    return int(time.time() * 1000)


# What goes and what stays


def test_deleted_runs_go_and_live_ones_stay(
    any_db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """The objects of deleted runs are gone, those of live ones are all there, and the counts are true."""
    site = make_site(Site.direct(any_db_uri, seaweed, bucket))
    experiment = site.experiment()
    live = site.run(experiment, n_objects=3)
    deleted = [site.run(experiment, n_objects=n) for n in (1, 10)]
    for one in deleted:
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == dict.fromkeys(deleted, "swept")
    assert report["totals"]["deleted_objects"] == 11
    assert live not in reasons(report)
    assert_bucket_sound(site, report, before)


def test_proxied_artifacts_are_found_without_http(proxied_site: Site) -> None:
    """``mlflow-artifacts:`` is resolved to the destination that init was told."""
    site = proxied_site
    experiment = site.experiment()
    live, dead = site.run(experiment, n_objects=2), site.run(experiment, n_objects=3)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    assert live not in reasons(report)
    assert_bucket_sound(site, report, before)


def test_a_registered_model_survives_its_deleted_run(site: Site) -> None:
    """A model version protects the run that it was made from, and the plan names it with its alias."""
    experiment = site.experiment()
    champion = site.run(experiment, {"model/MLmodel": 10, "model/weights": 100})
    plain = site.run(experiment, n_objects=2)
    version = site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    site.alias("churn", "champion", version)
    for one in (champion, plain):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {plain: "swept"}
    assert reasons(report)[champion] == "protected"
    assert evidence(report, champion).startswith("registered model churn, version 1 (@champion), ")
    assert_bucket_sound(site, report, before)


def test_a_deleted_experiment_takes_its_models_and_traces_along(moto_site: Site) -> None:
    """Runs, logged models and traces of a deleted experiment go; those of another, and a registered model, stay."""
    site = moto_site
    gone, stays = site.experiment(), site.experiment()
    dead = [site.run(gone, n_objects=2), site.logged_model(gone, n_objects=3), site.trace(gone)]
    registered = site.logged_model(gone, n_objects=2)
    site.register("kept", f"models:/{registered}", local_model_id=registered)
    for make in (site.run, site.logged_model):
        make(stays, n_objects=1)
    site.trace(stays)
    site.delete_experiment(gone)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == dict.fromkeys(dead, "swept")
    assert reasons(report)[registered] == "protected"
    assert_bucket_sound(site, report, before)


def test_a_time_budget_is_not_spent_on_what_stays(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live model of a deleted run is measured for ``status``, but not in the time that is given for a sweep."""
    site, measured = moto_site, list[object]()
    monkeypatch.setattr("mlflow_artifact_gc.kept.measure", lambda *how, **more: measured.append((how, more)))
    experiment = site.experiment()
    dead = site.run(experiment, n_objects=1)
    site.logged_model(experiment, dead, n_objects=1)
    site.delete_run(dead)
    init(site)

    assert outcomes(gc(site, "--time-budget", "1m")) == {dead: "swept"}

    assert not measured


def test_a_logged_model_of_a_deleted_run_is_live(moto_site: Site) -> None:
    """MLflow still shows it, so it stays, and the report says how many there are."""
    site = moto_site
    experiment = site.experiment()
    dead = site.run(experiment, n_objects=1)
    model = site.logged_model(experiment, source_run=dead, n_objects=2)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    assert_bucket_sound(site, report, before)
    told = run("gc", "--backend-store-uri", site.uri, "--dry-run", *NOW).out
    assert "1 logged model of deleted runs" in told
    assert model not in told


def test_a_logged_model_follows_its_run_where_the_site_says_so(moto_site: Site) -> None:
    """``--models follow-run``: a logged model goes with its deleted run, unless a ``runs:/`` URI still means it."""
    site = moto_site
    experiment = site.experiment()
    dead, needed = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    follows = site.logged_model(experiment, source_run=dead, n_objects=2)
    meant = site.logged_model(experiment, source_run=needed, n_objects=2)
    site.register("by-run", f"{site.artifact_uri(needed)}/model", run_id=needed)
    site.set_version_columns("by-run", 1, source=f"runs:/{needed}/model", storage_location=f"runs:/{needed}/model")
    for one in (dead, needed):
        site.delete_run(one)
    init(site, "--models", "follow-run")
    report = gc(site)

    assert outcomes(report) == {dead: "swept", follows: "swept"}
    assert reasons(report)[meant] == reasons(report)[needed] == "protected"


def test_every_form_of_a_model_source_protects(moto_site: Site) -> None:
    """Whatever form a version's source has, chains through deleted versions included, its run stays."""
    site = moto_site
    experiment = site.experiment()
    forms: dict[str, Callable[[str, str], dict[str, str | None]]] = {
        "old-row": lambda _run, uri: {"source": f"{uri}/model", "storage_location": None},
        "runs-uri": lambda run_id, _uri: {"source": f"runs:/{run_id}/m", "storage_location": f"runs:/{run_id}/m"},
        "alias-host": lambda _run, uri: {"source": uri.replace("s3://", "s3a://other-"), "storage_location": None},
        "https": lambda run_id, _uri: {"source": f"https://b.s3.amazonaws.com/x/{run_id}/y", "storage_location": None},
        "encoded": lambda run_id, _uri: {"source": f"s3://b/x%2F{run_id}%2Fy", "storage_location": None},
        "upper": lambda run_id, _uri: {"source": f"dbfs:/x/{run_id.upper()}/y", "storage_location": None},
    }
    runs: dict[str, str] = {}
    for name, columns in forms.items():
        runs[name] = site.run(experiment, n_objects=1)
        site.register(name, site.artifact_uri(runs[name]), run_id=runs[name])
        site.set_version_columns(name, 1, **columns(runs[name], site.artifact_uri(runs[name])))
    runs["chain"] = site.run(experiment, n_objects=1)
    site.register("origin", site.artifact_uri(runs["chain"]), run_id=runs["chain"])
    site.register("chain", site.artifact_uri(runs["chain"]))
    site.set_version_columns("chain", 1, source="models:/origin/1", storage_location=None)
    site.delete_version("origin", 1)
    for one in runs.values():
        site.delete_run(one)
    init(site)
    report = gc(site)

    assert reasons(report) == dict.fromkeys(runs.values(), "protected")


def test_what_means_no_artifact_protects_nothing(moto_site: Site) -> None:
    """Prompts, deleted versions and sources elsewhere keep no run alive."""
    site = moto_site
    experiment = site.experiment()
    dead = site.run(experiment, n_objects=1)
    site.register("gone", site.artifact_uri(dead), run_id=dead)
    site.delete_version("gone", 1)
    for name, source in {"prompt": "dummy-source", "hub": "hf:/org/model", "disk": "file:///tmp/model"}.items():
        site.register(name, site.artifact_uri(dead))
        site.set_version_columns(name, 1, source=source, storage_location=source)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    assert_bucket_sound(site, report, before)


def test_a_dataset_of_a_live_run_protects_its_source(moto_site: Site) -> None:
    """A live run whose logged dataset lies in a deleted run's artifacts keeps that run's objects."""
    from mlflow.entities import Dataset, DatasetInput

    site = moto_site
    experiment = site.experiment()
    source, user, plain = (site.run(experiment, n_objects=1) for _ in range(3))
    uri = f"{site.artifact_uri(source)}/data.parquet"
    dataset = Dataset("sales", "d1", "s3", f'{{"uri": "{uri}"}}')
    site.store.log_inputs(user, [DatasetInput(dataset=dataset, tags=[])])
    for one in (source, plain):
        site.delete_run(one)
    init(site)
    report = gc(site)

    assert outcomes(report) == {plain: "swept"}
    assert evidence(report, source) == f"dataset sales of run {user}, source"


def test_nested_locations_stay(moto_site: Site) -> None:
    """A live experiment under a deleted run's artifacts keeps them, and so does a deleted one whose rows are there."""
    site = moto_site
    outer, doubly = site.run(site.experiment(), n_objects=1), site.run(site.experiment(), n_objects=1)
    inner = site.experiment(artifact_location=f"{site.artifact_uri(outer)}/nested")
    live = site.run(inner, n_objects=2)
    deep = site.experiment(artifact_location=f"{site.artifact_uri(doubly)}/nested")
    dead = site.run(deep, n_objects=2)
    for one in (outer, doubly, dead):
        site.delete_run(one)
    site.delete_experiment(deep)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert reasons(report) == {outer: "protected", doubly: "nested", dead: "nested"}
    assert live not in reasons(report)
    assert_bucket_sound(site, report, before)


def test_a_location_of_another_shape_is_never_swept(moto_site: Site) -> None:
    """A row whose URI is a bucket, an experiment or cut off is kept, and named."""
    site = moto_site
    experiment = site.experiment()
    uris = {site.run(experiment, n_objects=1): uri for uri in ("s3://{b}", "s3://{b}/mlruns/1", "s3://{b}/mlruns/1/ab")}
    elsewhere = site.run(experiment)
    for one, uri in {**uris, elsewhere: "/mnt/mlruns/1/x/artifacts"}.items():
        site.delete_run(one)
        site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=uri.format(b=site.bucket), id=one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert reasons(report) == {**dict.fromkeys(uris, "layout"), elsewhere: "not-on-s3"}
    assert site.snapshot() == before


# Dates


def test_the_grace_period_counts_from_the_deletion(moto_site: Site) -> None:
    """With the site's settings, only what was deleted long enough ago is due; a row without a date must be named."""
    site = moto_site
    experiment = site.experiment()
    old, young, undated = (site.run(experiment, n_objects=1) for _ in range(3))
    site.delete_run(old, now_ms() - 8 * DAY_MS)
    site.delete_run(young, now_ms() - 6 * DAY_MS)
    site.delete_run(undated)
    site.undate_run(undated)
    init(site, "--min-object-age", "0s")
    before = site.snapshot()
    arguments = ("gc", "--backend-store-uri", site.uri, "--yes", "--format", "json")
    first = run(*arguments).json

    assert reasons(first) == {old: "due", young: "grace", undated: "undated"}
    assert outcomes(first) == {old: "swept"}
    second = run(*arguments, "--run-ids", f"{young},{undated}").json
    assert reasons(second) == {young: "grace", undated: "due"}
    third = run(*arguments, "--include-undated", "--older-than", "5d").json
    assert reasons(third) == {old: "swept-before", young: "due", undated: "swept-before"}
    assert_bucket_sound(site, [first, second, third], before)


def test_young_objects_postpone_their_location_as_a_whole(moto_site: Site) -> None:
    """With the site's minimum age nothing of a location goes while one object in it is young."""
    site = moto_site
    experiment = site.experiment()
    dead, empty = site.run(experiment, n_objects=2), site.run(experiment)
    for one in (dead, empty):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = run("gc", "--backend-store-uri", site.uri, "--yes", "--format", "json", "--older-than", "0s").json

    assert outcomes(report) == {dead: "postponed", empty: "empty"}
    assert_bucket_sound(site, report, before)


def test_a_restored_and_again_deleted_run_is_swept_again(moto_site: Site) -> None:
    """A tombstone with a later date than the one that was swept for is a new one."""
    site = moto_site
    dead = site.run(site.experiment(), n_objects=1)
    site.delete_run(dead)
    init(site)
    gc(site)
    site.restore_run(dead)
    site.write(dead, site.artifact_uri(dead), {"again.txt": 10})
    assert reasons(gc(site)) == {}
    time.sleep(0.01)
    site.delete_run(dead)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    assert_bucket_sound(site, report, before)


# Scope


def test_ids_narrow_it_down_and_touch_nothing_else(moto_site: Site) -> None:
    """What is not named stays, in every scope."""
    site = moto_site
    one, other = site.experiment(), site.experiment()
    runs = [site.run(experiment, n_objects=1) for experiment in (one, one, other)]
    model = site.logged_model(other, n_objects=1)
    for dead in runs:
        site.delete_run(dead)
    site.delete_logged_model(model)
    init(site)
    before = site.snapshot()
    reports = [
        gc(site, "--run-ids", runs[0]),
        gc(site, "--logged-model-ids", model),
        gc(site, "--experiment-ids", one),
    ]

    assert [outcomes(report) for report in reports] == [{runs[0]: "swept"}, {model: "swept"}, {runs[1]: "swept"}]
    assert gc(site, "--workspace", "elsewhere")["results"] == []
    after = assert_bucket_sound(site, reports, before)
    assert any(runs[2] in key for key in after.keys)


# Keys


ODD_KEYS = [
    "plus+and space",
    "100%",
    "%2F",
    "a//b",
    "ünïcödé/日本",
    "&<>'\"",
    "~!@$^()=:,;",
    ".dot",
    "trail/",
    "tab\tkey",
]


@pytest.mark.parametrize("name", ODD_KEYS)
def test_odd_keys_go(moto_site: Site, name: str) -> None:
    """Keys are byte-exact from the listing to the delete (moto holds them all)."""
    site = moto_site
    dead = site.run(site.experiment(), {name: 10, "plain.txt": 1})
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    assert report["totals"]["deleted_bytes"] == 11
    assert_bucket_sound(site, report, before)


def test_odd_keys_go_on_a_strict_server(site: Site) -> None:
    """Those that SeaweedFS holds: it checks signatures of what is sent."""
    dead = site.run(site.experiment(), {name: 1 for name in ODD_KEYS if name not in ("a//b", "trail/")})
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    assert_bucket_sound(site, report, before)


def test_a_control_character_goes_by_a_single_delete(site: Site) -> None:
    """A key that no XML can hold fails a whole batch; the others of its batch go, and it goes too."""
    dead = site.run(site.experiment(), {"bad\x01key": 1, **{f"k{n}": 1 for n in range(5)}})
    site.delete_run(dead)
    init(site)
    report = gc(site)

    # The oracle's plain listing cannot read such a key.
    assert outcomes(report) == {dead: "swept"}
    assert report["totals"]["deleted_objects"] == 6
    assert not [item for item in site.items() if dead in item.key]


def test_siblings_that_share_a_string_prefix_stay(site: Site) -> None:
    """``artifacts`` never reaches ``artifacts_backup``, nor one run another."""
    dead = site.run(site.experiment(), n_objects=2)
    site.delete_run(dead)
    uri = site.artifact_uri(dead)
    for sibling in ("_backup", "2"):
        site.write("sibling", uri + sibling, {"x": 1})
    site.write("sibling", uri.removesuffix("/artifacts"), {"other.txt": 1})
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    after = assert_bucket_sound(site, report, before)
    assert len([key for key in after.keys if "mlruns/" in key and not key.endswith(".json")]) == 3


def test_more_than_a_page_and_more_than_a_batch(moto_site: Site) -> None:
    """A run of 1,100 objects goes in two batches."""
    dead = moto_site.run(moto_site.experiment(), n_objects=1100, object_bytes=1)
    moto_site.delete_run(dead)
    init(moto_site)
    before = moto_site.snapshot()
    report = gc(moto_site)

    assert report["totals"]["deleted_objects"] == 1100
    assert_bucket_sound(moto_site, report, before)


def test_a_location_that_does_not_fit_into_memory_is_streamed(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A huge location is listed again, page by page, and ends as any other."""
    monkeypatch.setattr(surveying, "_KEPT_ENTRIES", 5)
    dead = [moto_site.run(moto_site.experiment(), n_objects=n) for n in (3, 30, 3)]
    for one in dead:
        moto_site.delete_run(one)
    init(moto_site)
    before = moto_site.snapshot()
    report = gc(moto_site)

    assert outcomes(report) == dict.fromkeys(dead, "swept")
    assert_bucket_sound(moto_site, report, before)


# Listing per parent


@pytest.mark.parametrize("strangers", [5_000, 0])
def test_many_runs_of_one_experiment_are_listed_together(
    site: Site, monkeypatch: pytest.MonkeyPatch, strangers: int
) -> None:
    """Live runs, models and traces between the deleted runs stay; also when the shared listing is given up."""
    monkeypatch.setattr(surveying, "_STRANGERS", strangers)
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=2) for _ in range(40)]
    live = [site.run(experiment, n_objects=3) for _ in range(20)]
    for _ in range(3):
        dead += site.logged_models(experiment, n_objects=1)
    live += [*site.logged_models(experiment, n_objects=1), site.trace(experiment)]
    for one in dead[:40]:
        site.delete_run(one)
    for one in dead[40:]:
        site.delete_logged_model(one)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == dict.fromkeys(dead, "swept")
    assert_bucket_sound(site, report, before)


def test_one_request_at_a_time_says_nothing_of_connections(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A bucket's rights are tried at once, over as many connections as that takes."""
    deleted = site.run(site.experiment(), n_objects=2)
    site.delete_run(deleted)
    init(site)
    assert outcomes(gc(site, "--concurrency", "1")) == {deleted: "swept"}
    assert "Connection pool is full" not in caplog.text


# Versions, markers, uploads, locks


def _versioned_backlog(site: Site) -> tuple[str, str]:
    """A deleted and a live run with null versions, several versions, delete markers and an unfinished upload each."""
    experiment = site.experiment()
    dead, live = site.run(experiment, n_objects=2), site.run(experiment, n_objects=2)
    site.switch_versioning(on=True)
    for one in (dead, live):
        uri = site.artifact_uri(one)
        for size in (10, 100):
            site.write(one, uri, {"model.bin": size})
        site.client.delete_object(Bucket=site.bucket, Key=f"{site.key_of(uri)}/model.bin")
        site.write(one, uri, {"model.bin": 1000})
        site.begin_upload(one, uri, "unfinished.bin", part=10)
    site.delete_run(dead)
    return dead, live


@pytest.mark.parametrize("many", [False, True])
def test_uploads_of_many_runs_are_listed_once(site: Site, monkeypatch: pytest.MonkeyPatch, *, many: bool) -> None:
    """For a whole experiment, unless there are too many: those of deleted runs end, those of live ones stay."""
    if many:
        monkeypatch.setattr(surveying, "_FEW_UPLOADS", 1)
    experiment = site.experiment()
    runs = [site.run(experiment, n_objects=1) for _ in range(48)]
    for one in runs[::6]:
        site.begin_upload(one, site.artifact_uri(one), "unfinished.bin", part=10)
    for one in runs[:40]:
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site, "--max-share", "1")

    assert outcomes(report) == dict.fromkeys(runs[:40], "swept")
    assert report["totals"]["aborted_uploads"] == len(runs[:40:6])
    assert_bucket_sound(site, report, before)


@pytest.mark.parametrize("server", ["seaweed", "moto_s3"])
def test_versions_markers_and_uploads_go(
    server: str, request: pytest.FixtureRequest, sqlite_uri: str, make_site: MakeSite
) -> None:
    """Purge means for good: every version, delete marker and unfinished upload of the deleted run, none of the live."""
    s3 = request.getfixturevalue(server)
    bucket = request.getfixturevalue({"seaweed": "bucket", "moto_s3": "moto_bucket"}[server])
    site = make_site(Site.direct(sqlite_uri, s3, bucket))
    dead, _live = _versioned_backlog(site)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {dead: "swept"}
    totals = report["totals"]
    assert (totals["deleted_markers"], totals["aborted_uploads"]) == (1, 1)
    assert totals["deleted_objects"] + totals["deleted_versions"] == 5
    assert_bucket_sound(site, report, before)


def test_a_locked_object_fails_its_location_and_nothing_else(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """Object Lock is an answer to report (exit 3), never to bypass; the other locations go."""
    client = servers.s3_client(seaweed)
    locked_bucket = f"locked-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=locked_bucket, ObjectLockEnabledForBucket=True)
    site = make_site(Site.direct(sqlite_uri, seaweed, locked_bucket))
    experiment = site.experiment()
    locked, free = site.run(experiment, n_objects=3), site.run(experiment, n_objects=2)
    key = f"{site.key_of(site.artifact_uri(locked))}/held.bin"
    until = datetime.now(UTC) + timedelta(days=1)
    client.put_object(
        Bucket=locked_bucket, Key=key, Body=b"x", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until
    )
    for one in (locked, free):
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    report = gc(site, "--metadata", "delete", expect=3)

    assert outcomes(report) == {locked: "failed", free: "swept"}
    failed = next(result for result in report["results"] if result["id"] == locked)
    assert [failure["key"] for failure in failed["failures"]] == [key]
    assert_bucket_sound(site, report, before)


# Metadata


def test_rows_go_only_where_the_location_is_verified(
    any_db_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite
) -> None:
    """``--metadata delete``: rows of verified locations go, an emptied experiment too; protected and live rows stay."""
    from mlflow.entities import Metric, Param, RunTag

    site = make_site(Site.direct(any_db_uri, moto_s3, moto_bucket))
    gone, stays = site.experiment(), site.experiment()
    dead = [site.run(gone, n_objects=2), site.trace(gone), *site.logged_models(gone, n_objects=1)]
    empty = site.run(gone)
    site.store.log_batch(dead[0], [Metric("loss", 1.0, 0, 0)], [Param("lr", "0.1")], [RunTag("team", "a")])
    protected, live = site.run(stays, n_objects=1), site.run(stays, n_objects=1)
    site.register("churn", site.artifact_uri(protected), run_id=protected)
    site.delete_experiment(gone)
    site.delete_run(protected)
    init(site)
    before = site.snapshot()
    report = gc(site, "--metadata", "delete")

    assert outcomes(report) == {**dict.fromkeys(dead, "swept"), empty: "empty"}
    assert {result["id"] for result in report["results"] if result["metadata_deleted"]} == {*dead, empty}
    assert report["experiments_deleted"] == [gone]
    after = assert_bucket_sound(site, report, before)
    assert {row.id for row in after.rows if row.kind == "run"} == {protected, live}


def test_rows_can_go_later(moto_site: Site) -> None:
    """A location that was swept before is listed again before its row is deleted."""
    site = moto_site
    dead = site.run(site.experiment(), n_objects=2)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    reports = [gc(site), gc(site), gc(site, "--metadata", "delete")]

    assert [outcomes(report) for report in reports] == [{dead: "swept"}, {}, {dead: "empty"}]
    assert reports[2]["results"][0]["metadata_deleted"]
    assert_bucket_sound(site, reports, before)


# Time, interruption, faults


def test_a_time_budget_leaves_the_rest_for_later(moto_site: Site) -> None:
    """When the time is up, the report says what was not reached, exit 0; the next run goes on."""
    dead = moto_site.run(moto_site.experiment(), n_objects=2)
    moto_site.delete_run(dead)
    init(moto_site)
    before = moto_site.snapshot()
    first = gc(moto_site, "--time-budget", "0s")
    second = gc(moto_site)

    assert (outcomes(first), outcomes(second)) == ({dead: "stopped"}, {dead: "swept"})
    assert_bucket_sound(moto_site, [first, second], before)


def test_a_second_gc_finds_nothing_to_do(moto_site: Site) -> None:
    """What was swept is not listed again."""
    dead = moto_site.run(moto_site.experiment(), n_objects=2)
    moto_site.delete_run(dead)
    init(moto_site)
    gc(moto_site)
    again = gc(moto_site)

    assert reasons(again) == {dead: "swept-before"}
    assert again["results"] == []


@pytest.mark.parametrize("moment", ["before the claim", "after the fence", "between two batches"])
def test_a_restore_stops_the_sweep(moto_site: Site, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A restore before the first delete loses nothing; one in the middle stops it, and the report says what is gone."""
    from mlflow_artifact_gc import fence, s3

    site = moto_site
    dead = site.run(site.experiment(), n_objects=1010 if moment == "between two batches" else 3, object_bytes=1)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()

    def restoring(function: Any, *, first: bool) -> Any:
        done: list[int] = []

        def wrapper(*arguments: Any, **named: Any) -> Any:
            if not done and first:
                done.append(1)
                site.restore_run(dead)
            result = function(*arguments, **named)
            if not done:
                done.append(1)
                site.restore_run(dead)
            return result

        return wrapper

    if moment == "before the claim":
        monkeypatch.setattr(fence.Fence, "admit", restoring(fence.Fence.admit, first=True))
    elif moment == "after the fence":
        monkeypatch.setattr(fence.Fence, "admit", restoring(fence.Fence.admit, first=False))
    else:
        monkeypatch.setattr(s3, "delete", restoring(s3.delete, first=False))
    report = gc(site)

    (result,) = report["results"]
    assert result["outcome"] == "restored"
    assert result["deleted_objects"] == (1000 if moment == "between two batches" else 0)
    intact = () if moment == "between two batches" else (dead,)
    assert_bucket_sound(site, report, before, intact=intact)


def test_a_registration_after_the_plan_protects(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model version made between the plan and the fence keeps the run."""
    from mlflow_artifact_gc import fence

    site = moto_site
    dead = site.run(site.experiment(), n_objects=2)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    claim = fence.Fence._claim

    def registering(*arguments: Any) -> Any:
        claimed = claim(*arguments)
        site.register("late", site.artifact_uri(dead), run_id=dead)
        return claimed

    monkeypatch.setattr(fence.Fence, "_claim", registering)
    report = gc(site)

    assert outcomes(report) == {dead: "protected"}
    assert report["results"][0]["detail"].startswith("registered model late, version 1")
    assert_bucket_sound(site, report, before, intact=(dead,))


@pytest.mark.parametrize("call", [1, 2])
def test_an_error_while_reading_references_touches_nothing(
    moto_site: Site, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Half-read references end with exit 1, in the plan and at the fence alike."""
    from mlflow_artifact_gc import registry as model_registry
    from mlflow_artifact_gc.errors import DatabaseUnusable

    site = moto_site
    dead = site.run(site.experiment(), n_objects=2)
    site.delete_run(dead)
    init(site)
    before = site.snapshot()
    calls: list[int] = []
    original = model_registry.Registry.read

    def failing(registry: Any, *more: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise DatabaseUnusable("the connection was lost")
        return original(registry, *more)

    monkeypatch.setattr(model_registry.Registry, "read", failing)
    ran = run("gc", "--backend-store-uri", site.uri, "--yes", "--format", "json", *NOW)

    assert ran.code == 1
    assert "nothing was touched" in ran.err
    assert len(calls) == call
    assert site.snapshot().items == before.items


def test_an_error_ends_the_sweep_with_a_report(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database error in one of many listings: the others are waited for, and the report says what is gone."""
    from mlflow_artifact_gc import fence
    from mlflow_artifact_gc.errors import DatabaseUnusable

    site = moto_site
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=1) for _ in range(12)]
    for one in dead:
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    changed = fence.Fence.changed
    calls: list[int] = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise DatabaseUnusable("the connection was lost")
        return changed(*arguments)

    monkeypatch.setattr(fence.Fence, "changed", failing)
    report = gc(site, "--concurrency", "2", expect=1)

    assert report["error"] == "the connection was lost"
    assert set(outcomes(report).values()) == {"swept", "stopped"}
    assert len(outcomes(report)) == 12
    assert_bucket_sound(site, report, before)


def test_a_run_keeps_its_row_until_the_models_that_follow_it_are_gone(
    moto_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its run's row such a model would be live again, with its artifacts gone."""
    from mlflow_artifact_gc import sweeping

    monkeypatch.setattr(sweeping, "_SETTLED", 1)
    site = moto_site
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=1) for _ in range(3)]
    models = [site.logged_model(experiment, source_run=one, n_objects=2) for one in dead]
    for one in dead:
        site.delete_run(one)
    init(site, "--models", "follow-run")
    before = site.snapshot()
    report = gc(site, "--metadata", "delete", "--concurrency", "1")

    assert outcomes(report) == dict.fromkeys([*dead, *models], "swept")
    assert all(result["metadata_deleted"] for result in report["results"])
    # The oracle knows no models that follow their run: it takes them for live.
    after = site.snapshot()
    assert not [key for key in after.keys if key.endswith(".bin")]
    assert not [row for row in after.rows if row.kind != "experiment"]
    assert before.keys
