"""``gc`` on real databases and real S3 servers: what goes, what stays, and what is said of it."""

from __future__ import annotations

from tests.command import gc, init, outcomes, reasons
from tests.oracle import assert_bucket_sound
from tests.site import Site


def test_deleted_runs_go_and_live_ones_stay(site: Site) -> None:
    """The objects of deleted runs are gone, those of live ones are all there, and the counts are true."""
    experiment = site.experiment()
    live = site.run(experiment, n_objects=3)
    deleted = [site.run(experiment, n_objects=n) for n in (1, 10)]
    for run in deleted:
        site.delete_run(run)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == dict.fromkeys(deleted, "swept")
    assert report["totals"]["deleted_objects"] == 11
    assert live not in reasons(report)
    assert_bucket_sound(site, report, before)


def test_a_registered_model_survives_its_deleted_run(site: Site) -> None:
    """A model version protects the run that it was made from, and the plan names it with its alias."""
    experiment = site.experiment()
    champion = site.run(experiment, {"model/MLmodel": 10, "model/weights": 100})
    plain = site.run(experiment, n_objects=2)
    version = site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    site.alias("churn", "champion", version)
    for run in (champion, plain):
        site.delete_run(run)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert outcomes(report) == {plain: "swept"}
    assert reasons(report)[champion] == "protected"
    line = next(line for line in report["plan"]["decisions"] if line["id"] == champion)
    assert line["evidence"].startswith("registered model churn, version 1 (@champion), ")
    assert_bucket_sound(site, report, before)
