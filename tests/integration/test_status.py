"""``status``: what waits, until when, what is protected by what, what failed; from the database alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.command import Ran, gc, init, run
from tests.oracle import assert_bucket_sound
from tests.servers import S3Server
from tests.site import DAY_MS, Site


@pytest.fixture
def moto_site(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: Callable[[Site], Site]) -> Site:
    """SQLite and moto."""
    return make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))


def status(site: Site) -> Any:
    """The document that status prints, once it was seen that it touches nothing."""
    before = site.snapshot()
    ran = run("status", "--backend-store-uri", site.uri, "--format", "json")
    assert ran.code == 0, ran.err
    assert site.snapshot() == before
    assert (ran.json["schema"], ran.json["command"]) == (1, "status")
    return ran.json


def table(site: Site) -> Ran:
    """What status tells people."""
    ran = run("status", "--backend-store-uri", site.uri)
    assert (ran.code, ran.err) == (0, "")
    return ran


def ago(days: float) -> int:
    """That many days ago, in milliseconds."""
    return int(time.time() * 1000 - days * DAY_MS)


def test_nothing_waits(moto_site: Site) -> None:
    """Where nothing is deleted, the first line says that nothing waits."""
    moto_site.run(moto_site.experiment(), n_objects=1)
    init(moto_site)

    assert table(moto_site).out.startswith("Nothing waits")
    assert status(moto_site)["tombstones"] == {}
    assert status(moto_site)["last_sweep"] is None


def test_what_waits_and_until_when(moto_site: Site) -> None:
    """The first line is a sentence with what is due, what is in its grace period, and when the next is due."""
    experiment = moto_site.experiment()
    runs = [moto_site.run(experiment, n_objects=1) for _ in range(4)]
    for run_id, days in zip(runs, (1, 3, 8, 30), strict=True):
        moto_site.delete_run(run_id, ago(days))
    init(moto_site)
    told, first = status(moto_site), table(moto_site).out.splitlines()[0]

    assert told["tombstones"] == {"due": 2, "grace": 2}
    assert abs(told["next_due_ms"] - ago(-4)) < DAY_MS / 24
    due = time.strftime("%Y-%m-%d", time.gmtime(told["next_due_ms"] / 1000))
    assert first.startswith("2 deleted locations are past their grace period (7d)")
    assert f"2 deleted locations are in their grace period (7d), the next until {due}" in first


def test_one_is_not_told_as_many(moto_site: Site) -> None:
    """One location is told in the singular."""
    run_id = moto_site.run(moto_site.experiment(), n_objects=1)
    moto_site.delete_run(run_id, ago(8))
    init(moto_site)
    assert "1 deleted location is past its grace period" in table(moto_site).out
    moto_site.restore_run(run_id)
    moto_site.delete_run(run_id, ago(1))
    assert "1 deleted location is in its grace period" in table(moto_site).out


def test_counts_follow_each_stage(moto_site: Site) -> None:
    """Deleted, protected, swept, failed, restored: after each step the counts are those of that moment."""
    site = moto_site
    experiment = site.experiment()
    plain, champion, locked, restored = (site.run(experiment, {"model/weights": 7}) for _ in range(4))
    for run_id in (plain, champion, locked, restored):
        site.delete_run(run_id, ago(10))
    site.register("churn", f"{site.artifact_uri(champion)}/model", run_id=champion)
    init(site)

    told = status(site)
    assert told["tombstones"] == {"due": 3, "protected": 1}
    assert [(line["kind"], line["id"]) for line in told["protected"]] == [("run", champion)]
    assert told["protected"][0]["by"].startswith("registered model churn, version 1")
    assert "churn" in table(site).out
    assert (told["intents"], told["deleted_objects"], told["failed"]) == ({}, 0, [])

    site.restore_run(restored)
    assert status(site)["tombstones"] == {"due": 2, "protected": 1}

    key = f"{site.key_of(site.artifact_uri(locked))}/model/weights"
    statement = {"Effect": "Deny", "Principal": "*", "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"]}
    policy = {"Version": "2012-10-17", "Statement": [{**statement, "Resource": f"arn:aws:s3:::{site.bucket}/{key}"}]}
    site.client.put_bucket_policy(Bucket=site.bucket, Policy=json.dumps(policy))
    before = site.snapshot()
    report = gc(site, expect=3)
    assert_bucket_sound(site, report, before)
    told = status(site)
    assert told["tombstones"] == {"due": 1, "protected": 1, "swept-before": 1}
    assert told["intents"] == {"swept": 1, "failed": 1}
    assert (told["deleted_objects"], told["deleted_bytes"]) == (1, 7)
    assert [(line["id"], "AccessDenied" in line["detail"]) for line in told["failed"]] == [(locked, True)]
    assert told["last_sweep"]["finished_ms"] >= told["last_sweep"]["started_ms"]
    out = table(site).out
    assert "1 location swept, 1 object, 7 B gone" in out
    assert locked in out

    site.client.delete_bucket_policy(Bucket=site.bucket)
    before = site.snapshot()
    report = gc(site)
    assert_bucket_sound(site, report, before)
    told = status(site)
    assert told["tombstones"] == {"protected": 1, "swept-before": 2}
    assert (told["intents"], told["failed"]) == ({"swept": 2}, [])
    assert (told["deleted_objects"], told["deleted_bytes"]) == (2, 14)


def test_models_of_deleted_runs_are_told(moto_site: Site) -> None:
    """Logged models that stay although their run is deleted are counted."""
    experiment = moto_site.experiment()
    run_id = moto_site.run(experiment, n_objects=1)
    moto_site.logged_model(experiment, run_id, n_objects=1)
    moto_site.delete_run(run_id)
    init(moto_site)

    assert status(moto_site)["kept_models_of_deleted_runs"]["models"] == 1
    assert "logged model" in table(moto_site).out


def test_s3_is_not_asked(moto_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works without credentials, without an endpoint, and with settings that S3 could not be reached with."""
    moto_site.delete_run(moto_site.run(moto_site.experiment(), n_objects=1), ago(8))
    init(moto_site)
    expected = status(moto_site)["tombstones"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    assert status(moto_site)["tombstones"] == expected
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "no://url at all")

    assert status(moto_site)["tombstones"] == expected
    assert table(moto_site).out.startswith("1 ")
