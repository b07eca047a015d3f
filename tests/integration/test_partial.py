"""``gc --partial``: of a run of which only a part is needed, what lies beside that part goes, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from mlflow_artifact_gc import planning, surveying
from mlflow_artifact_gc.fence import Fence
from tests.command import NOW, evidence, gc, init, outcomes, reasons, run
from tests.fakes3 import fake_s3
from tests.integration.test_attack_sweep import once_before
from tests.integration.test_holds import run_tag
from tests.servers import S3Server
from tests.site import DAY_MS, Site
from tests.working import intents, tags, watched

MakeSite = Callable[[Site], Site]

CONTENT = {"model/weights": 100, "model/deep/er": 7, "model2/a": 20, "checkpoints/1": 1000, "file": 3}


@pytest.fixture
def site(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Site:
    """SQLite and moto."""
    site = make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))
    init(site)
    return site


def needed_run(site: Site, path: str = "model", content: dict[str, int] | None = None) -> str:
    """A deleted run, of which a registered version needs ``path``."""
    run_id = site.run(site.experiment(), content or CONTENT)
    site.register("churn", f"{site.artifact_uri(run_id)}/{path}", run_id=run_id)
    site.delete_run(run_id)
    return run_id


def paths(site: Site, run_id: str) -> set[str]:
    """What is there of a run, by its paths; versions and delete markers count."""
    prefix = f"{site.key_of(site.artifact_uri(run_id))}/"
    return {item.key.removeprefix(prefix) for item in site.items() if item.key.startswith(prefix)}


@pytest.fixture(params=["SQLite and moto", "PostgreSQL and SeaweedFS"])
def any_site(request: pytest.FixtureRequest, make_site: MakeSite) -> Site:
    """Each of the two, with a bucket that keeps versions."""
    uri, server, bucket = (
        request.getfixturevalue(name)
        for name in (
            ("sqlite_uri", "moto_s3", "moto_bucket") if "moto" in request.param else ("pg_uri", "seaweed", "bucket")
        )
    )
    site = make_site(Site.direct(uri, server, bucket))
    site.switch_versioning(on=True)
    init(site)
    return site


def test_what_lies_beside_goes_and_nothing_else(any_site: Site) -> None:
    """Versions, markers and uploads beside the part go, those in it stay; the row stays; later the whole goes."""
    site = any_site
    run_id = needed_run(site)
    single = needed_run(site, "file")
    plain = site.run(site.experiment(), CONTENT)
    site.delete_run(plain)
    uri = site.artifact_uri(run_id)
    key = site.key_of(uri)
    for path in ("model/weights", "checkpoints/1"):
        site.write(run_id, uri, {path: 5})
        site.begin_upload(run_id, uri, f"{path}.part")
    for path in ("model/gone", "model2/gone"):
        site.write(run_id, uri, {path: 1})
        site.client.delete_object(Bucket=site.bucket, Key=f"{key}/{path}")
    inside = {item for item in site.items() if item.key.startswith(f"{key}/model/")}

    told = gc(site, "--partial", "--dry-run")
    assert reasons(told) == dict.fromkeys((run_id, single, plain), "due")
    assert "churn" in evidence(told, run_id)
    assert {line["id"]: len(line["needed"]) for line in told["plan"]["decisions"]} == {run_id: 1, single: 1, plain: 0}
    assert paths(site, run_id) > {"model2/a", "checkpoints/1", "file", "model2/gone"}

    report = gc(site, "--partial", "--metadata", "delete")
    assert outcomes(report) == {run_id: "partly", single: "partly", plain: "swept"}
    assert {item for item in site.items() if item.key.startswith(f"{key}/")} == inside
    assert paths(site, single) == {"file"}
    assert not {item.key for item in site.items() if plain in item.key}
    (of_run,) = (one for one in report["results"] if one["id"] == run_id)
    assert (of_run["deleted_objects"], of_run["deleted_versions"]) == (3, 2)
    assert (of_run["deleted_markers"], of_run["aborted_uploads"]) == (1, 1)
    assert of_run["deleted_bytes"] == 20 + 1000 + 5 + 3 + 1
    assert not of_run["metadata_deleted"]
    assert "purged in part" in tags(site, run_id)["artifact_gc.status"]
    columns = ("entity_id", "state", "claimed_by", "deleted_objects")
    assert (run_id, "pending", None, 3) in [tuple(row) for row in intents(site, *columns)]
    assert outcomes(gc(site, "--partial")) == {run_id: "partly", single: "partly"}
    assert outcomes(gc(site)) == {}

    site.restore_run(single)
    assert gc(site, "--partial")["results"][0]["id"] == run_id
    assert "in part" in tags(site, single)["artifact_gc.purged"]
    for version in (1, 2):
        site.delete_version("churn", version)
    assert outcomes(gc(site)) == {run_id: "swept"}
    assert paths(site, run_id) == set()
    assert paths(site, single) == {"file"}


def test_what_is_needed_otherwise_stays_whole(site: Site) -> None:
    """A hold, a keep tag, an id, a place around, another's row inside, a path read differently, a grace period."""
    held, tagged, by_id, whole, nested, odd, plain = (needed_run(site) for _ in range(7))
    run("hold", "add", "--backend-store-uri", site.uri, "--run-id", held, "--reason", "r")
    # MLflow tags nothing that is deleted.
    site.restore_run(tagged)
    run_tag(site, tagged, "true")
    site.delete_run(tagged)
    for run_id, source in ((by_id, f"runs:/{by_id}/model"), (whole, site.artifact_uri(whole))):
        site.register("other", f"{site.artifact_uri(run_id)}/model")
        version = {by_id: 1, whole: 2}[run_id]
        site.set_version_columns("other", version, source=source, storage_location=source)
    site.register("odd", f"{site.artifact_uri(odd)}/a")
    site.set_version_columns("odd", 1, source=f"{site.artifact_uri(odd)}//model", storage_location=None)
    inner = site.run(site.experiment(artifact_location=f"{site.artifact_uri(nested)}/nested"), n_objects=1)
    site.delete_run(inner)
    before = site.snapshot()
    report = gc(site, "--partial")
    assert outcomes(report) == {plain: "partly"}
    gone = {item.key for item in before.items} - {item.key for item in site.snapshot().items}
    assert {plain in key for key in gone} == {True}
    assert paths(site, plain) == {"model/weights", "model/deep/er"}

    late = needed_run(site)
    assert late not in outcomes(gc(site, "--partial", "--older-than", "1d"))
    assert paths(site, late) == set(CONTENT)


def test_behind_the_artifact_proxy_it_goes_in_part_too(
    sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite
) -> None:
    """A reader may look for it in its workspace's folder instead: of a run that lies there, that part stays."""
    site = make_site(Site.proxied(sqlite_uri, moto_s3, moto_bucket))
    init(site)
    proxied, named, in_folder = (needed_run(site) for _ in range(3))
    place = f"s3://{site.bucket}/{site.key_of(site.artifact_uri(named))}/model"
    site.set_version_columns("churn", 2, source=place, storage_location=place)
    moved = site.artifact_uri(in_folder).replace("mlflow-artifacts:/", "mlflow-artifacts:/workspaces/default/")
    for key in [key for key in site.snapshot().keys if in_folder in key]:
        site.client.delete_object(Bucket=site.bucket, Key=key)
    site.write(in_folder, moved, CONTENT)
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=moved, id=in_folder)
    ends = outcomes(gc(site, "--partial"))

    assert ends == dict.fromkeys((proxied, named, in_folder), "partly")
    for run_id in ends:
        assert paths(site, run_id) == {"model/weights", "model/deep/er"}


def test_something_young_in_it_keeps_the_whole(
    sqlite_uri: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the part is young that would stay: somebody may be at work there, and write beside it next."""
    with fake_s3() as fake:
        fake.make_bucket("bucket")
        for name, value in fake.server.environ().items():
            monkeypatch.setenv(name, value)
        site = make_site(Site.direct(sqlite_uri, fake.server, "bucket"))
        init(site)
        needed, beside, old = (needed_run(site) for _ in range(3))
        fake.age(2 * DAY_MS)
        for run_id, path in ((needed, "model/weights"), (beside, "checkpoints/1")):
            site.write(run_id, site.artifact_uri(run_id), {path: 5})
        aged = ("--partial", "--min-object-age", "1d")
        assert outcomes(gc(site, *aged)) == {needed: "postponed", beside: "postponed", old: "partly"}
        assert [paths(site, run_id) for run_id in (needed, beside)] == [set(CONTENT)] * 2
        fake.age(2 * DAY_MS)
        assert outcomes(gc(site, *aged)) == dict.fromkeys((needed, beside, old), "partly")


def test_no_part_of_it_can_be_registered_while_it_is_under_way(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays as little as what goes: MLflow's server answers 409; afterwards what stayed can be registered."""
    from mlflow.exceptions import MlflowException

    watched(site)
    run_id = needed_run(site)
    uri = site.artifact_uri(run_id)
    answers: list[int] = []

    def register() -> None:
        for path in ("model", "model/deep", "checkpoints"):
            with pytest.raises(MlflowException, match="are being removed") as refused:
                site.register("second", f"{uri}/{path}")
            answers.append(refused.value.get_http_status_code())

    once_before(monkeypatch, Fence, "changed", register)
    assert outcomes(gc(site, "--partial")) == {run_id: "partly"}
    assert answers == [409, 409, 409]
    assert site.register("second", f"{uri}/model") == 1


@pytest.mark.parametrize(
    ("where", "then"), [("admit", "another part"), ("admit", "the whole"), ("admit", "a hold"), ("changed", "a hold")]
)
def test_what_is_needed_since_the_plan_stays(
    site: Site, where: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the fence, and at the last look before a batch, more is needed than was planned to stay: nothing goes."""
    run_id = needed_run(site)
    plain = site.run(site.experiment(), CONTENT)
    site.delete_run(plain)
    checked: Callable[..., Any] = getattr(Fence, where)

    def need_more() -> None:
        if then == "a hold":
            run("hold", "add", "--backend-store-uri", site.uri, "--run-id", run_id, "--reason", "r")
        else:
            path = "/checkpoints" if then == "another part" else ""
            site.register("second", f"{site.artifact_uri(run_id)}{path}", run_id=run_id)
            site.register("third", f"{site.artifact_uri(plain)}/model")

    # The two runs are looked at by threads of their own: neither may look before it is there.
    once = threading.Lock()

    def meanwhile(fence: Fence, *rest: Any) -> Any:
        with once:
            if getattr(Fence, where) is meanwhile:
                need_more()
                monkeypatch.undo()
        return checked(fence, *rest)

    monkeypatch.setattr(Fence, where, meanwhile)
    whole = "swept" if then == "a hold" else "protected"
    assert outcomes(gc(site, "--partial")) == {run_id: "protected", plain: whole}
    assert paths(site, run_id) == set(CONTENT)
    assert paths(site, plain) == (set() if then == "a hold" else set(CONTENT))


def test_a_location_that_is_too_large_to_be_kept_in_mind(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is listed again page by page is spared as well."""
    monkeypatch.setattr(surveying, "_KEPT_ENTRIES", 0)
    run_id = needed_run(site)
    assert outcomes(gc(site, "--partial")) == {run_id: "partly"}
    assert paths(site, run_id) == {"model/weights", "model/deep/er"}


def test_runs_of_a_parent_that_is_listed_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the others of a parent are listed at once, what is needed in part is listed by itself."""
    monkeypatch.setattr(planning, "_DENSE_FROM", 2)
    experiment = site.experiment()
    runs = [site.run(experiment, {"model/a": 1, "b": 1}) for _ in range(4)]
    for run_id in runs[:2]:
        site.register("churn", f"{site.artifact_uri(run_id)}/model", run_id=run_id)
    for run_id in runs:
        site.delete_run(run_id)
    ended = outcomes(gc(site, "--partial"))
    assert [ended[run_id] for run_id in runs] == ["partly", "partly", "swept", "swept"]
    assert [paths(site, run_id) for run_id in runs] == [{"model/a"}, {"model/a"}, set(), set()]


def test_it_only_purges(site: Site) -> None:
    """With another action, given or the site's, it is refused with a sentence, and nothing is touched."""
    run_id = needed_run(site)
    stores = ("gc", "--backend-store-uri", site.uri, "--yes", "--partial", *NOW)
    for action in ("hide", "tag"):
        refused = run(*stores, "--action", action)
        assert (refused.code, refused.out) == (2, "")
        assert f"the action here is {action}: give --action purge" in refused.err
    init(site, "--action", "tag")
    assert run(*stores).code == 2
    assert paths(site, run_id) == set(CONTENT)
    said = run(*stores, "--action", "purge").out
    assert "Swept 1 location in part: each was listed again, and only what is needed is left." in said
