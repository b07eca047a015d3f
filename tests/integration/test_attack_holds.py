"""What people want kept, attacked: by other names, by a part, from afar."""

from __future__ import annotations

import pytest

from tests.abilities import needs
from tests.command import NOW, gc, init, outcomes, run
from tests.integration.test_holds import (
    KEEP,
    MakeSite,
    _registered_and_deleted,
    hold,
    put,
    run_tag,
)
from tests.servers import S3Server
from tests.site import Site
from tests.working import NOW as AT_ONCE
from tests.working import left


@pytest.fixture
def moto_site(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: MakeSite) -> Site:
    """SQLite and moto."""
    return make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))


def test_a_hold_on_a_registered_model_that_was_renamed_keeps_all(moto_site: Site) -> None:
    """What it keeps is not known any more: nothing goes until the hold is put on anew, or released."""
    site = moto_site
    held, free = (site.run(site.experiment(), n_objects=1) for _ in range(2))
    _registered_and_deleted(site, "churn", held)
    for dead in (held, free):
        site.delete_run(dead)
    init(site)
    number = put(site, "--registered-model", "churn")
    site.registry.rename_registered_model("churn", "churn-eu")
    refused = run("gc", "--backend-store-uri", site.uri, "--yes", *NOW)

    assert refused.code == 1
    assert f"hold rm {number}" in refused.err
    assert len(left(site, held)) == 1
    put(site, "--registered-model", "churn-eu")
    hold(site, "rm", number)
    assert outcomes(gc(site)) == {free: "swept"}


@needs("logged_models")
def test_a_part_of_a_model_with_a_keep_tag_is_not_deleted_by_route(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A live logged model's own tag, that of the run which made it, a trace's."""
    from mlflow.entities import LoggedModelTag
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    experiment = site.experiment()
    maker = site.run(experiment)
    run_tag(site, maker, "true")
    objects = {"weights": b"1", "MLmodel": b"2"}
    tagged, of_run, free = (site.logged_model(experiment, one, objects) for one in (None, maker, None))
    site.store.set_logged_model_tags(tagged, [LoggedModelTag(KEEP, "true")])
    trace = site.trace(experiment, {"traces.json": b"{}"})
    site.store.set_trace_tag(trace, KEEP, "true")
    init(site, *AT_ONCE)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", site.uri)
    monkeypatch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", site.uri)
    for entity, part in ((tagged, "weights"), (of_run, "weights"), (trace, "traces.json")):
        with pytest.raises(MlflowException, match="keep tag"):
            get_artifact_repository(site.artifact_uri(entity)).delete_artifacts(part)
    get_artifact_repository(site.artifact_uri(free)).delete_artifacts("weights")
    assert [len(left(site, one)) for one in (tagged, of_run, trace, free)] == [2, 2, 1, 1]


def test_a_proxied_location_is_held_where_the_site_has_it(proxied_site: Site) -> None:
    """A destination that is not the site's would hold another place than the one that was meant."""
    site = proxied_site
    run_id = site.run(site.experiment(), n_objects=1)
    init(site)
    place = ("--location", site.artifact_uri(run_id), "--artifacts-destination", "s3://elsewhere/old")
    refused = hold(site, "add", *place, "--reason", "audit", expect=2)

    assert "s3://elsewhere/old is not the site's" in refused.err
    assert hold(site, "ls", "--all").out == "There has never been a hold.\n"
