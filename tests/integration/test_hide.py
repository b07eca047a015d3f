"""``hide`` and ``undo``: on a bucket that keeps versions, everything can be had back, and exactly that."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from mlflow_artifact_gc.demo.servers import S3Server
from tests import command
from tests.command import gc, init, outcomes, reasons, run
from tests.integration.test_tag import TAG, ruled, tagged
from tests.site import Site
from tests.working import NOW, intents, shift, tags, turn, watched

MakeSite = Callable[[Site], Site]
DAY_MS = 86_400_000


def versioned(site: Site) -> Site:
    """The site's bucket keeps versions from now on."""
    site.client.put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Enabled"})
    return site


@pytest.fixture
def site(sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """A versioned bucket, and the hook in MLflow's stores."""
    return watched(versioned(make_site(Site.direct(sqlite_uri, seaweed, bucket))))


@pytest.fixture
def any_site(any_db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Site:
    """The same on each database."""
    return watched(versioned(make_site(Site.direct(any_db_uri, seaweed, bucket))))


def shown(site: Site) -> set[str]:
    """What a plain listing shows."""
    return site.snapshot().keys


def undo(site: Site, *arguments: str, expect: int = 0) -> Any:
    """``undo --format json``."""
    ran = run("undo", "--backend-store-uri", site.uri, "--format", "json", *arguments)
    assert ran.code == expect, f"{ran.code}: {ran.err}\n{ran.out}"
    return ran.json if ran.out else {"error": ran.err}


def test_what_is_hidden_comes_back_by_undo(any_site: Site) -> None:
    """A hide frees nothing and shows nothing; undo shows every object again, byte for byte, and nothing else."""
    site = any_site
    experiment = site.experiment()
    live, dead = site.run(experiment, n_objects=3), site.run(experiment, {"a": b"one", "b/c d+e": b"two"})
    site.delete_run(dead)
    init(site, *NOW, "--action", "hide")
    before = site.snapshot()

    report = gc(site)

    assert outcomes(report) == {dead: "waiting"}
    assert report["results"][0]["action"] == "hide"
    assert (report["totals"]["deleted_objects"], report["totals"]["waiting_objects"]) == (0, 2)
    assert {key for key in shown(site) if dead in key} == set()
    assert {key for key in shown(site) if live in key} == {key for key in before.keys if live in key}
    assert {item.version_id for item in before.items} <= {item.version_id for item in site.snapshot().items}
    assert tags(site, dead)["artifact_gc.status"].startswith("hidden ")

    (taken,) = undo(site, "--run-ids", dead)["locations"]

    assert (taken["back"], taken["gone"], taken["action"]) == (2, 0, "hide")
    assert {item for item in site.snapshot().items if dead in item.key} == {
        item for item in before.items if dead in item.key
    }
    assert intents(site, "state", "acted_from_ms", "waiting_objects") == [("cancelled", None, 0)]


def test_undo_takes_back_the_markers_that_we_wrote_and_no_others(site: Site) -> None:
    """Markers of others, from right before the hide, between two hides and after, stay as they are."""
    experiment = site.experiment()
    dead = site.run(experiment, {"ours": b"1", "theirs": b"2", "later": b"3"})
    place = next(key for key in site.objects if key.endswith("/ours")).removesuffix("ours")
    site.client.delete_object(Bucket=site.bucket, Key=f"{place}theirs")
    site.delete_run(dead)
    init(site, *NOW, "--action", "hide")
    assert outcomes(gc(site)) == {dead: "waiting"}
    # Somebody writes over one of them and deletes that: the marker that hides it now is not ours.
    time.sleep(1.1)
    site.client.put_object(Bucket=site.bucket, Key=f"{place}later", Body=b"4")
    site.client.delete_object(Bucket=site.bucket, Key=f"{place}later")
    others = {item for item in site.snapshot().items if item.kind == "marker" and not item.key.endswith("ours")}

    undo(site, "--experiment-ids", experiment)

    assert {key.removeprefix(place) for key in shown(site) if dead in key} == {"ours"}
    markers = {item for item in site.snapshot().items if item.kind == "marker"}
    assert {item.key.removeprefix(place) for item in markers} == {"theirs", "later"}
    assert {item for item in others if item.key.endswith("theirs")} <= markers


def test_undo_after_a_second_hide_takes_back_what_both_wrote_and_no_others(site: Site) -> None:
    """A user hides an object between the two, and it stays hidden; what came late and was hidden then is back."""
    dead = site.run(site.experiment(), {"x": b"1", "ours": b"2"})
    place = f"{site.key_of(site.artifact_uri(dead))}/"
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    # By its date the marker is later than our last one.
    time.sleep(1.1)
    site.client.put_object(Bucket=site.bucket, Key=f"{place}x", Body=b"3")
    theirs = site.client.delete_object(Bucket=site.bucket, Key=f"{place}x")["VersionId"]
    site.write(dead, site.artifact_uri(dead), {"late": b"4"})
    shift(site, 2 * DAY_MS)
    assert turn(site) == {dead: "waiting"}
    assert left_shown(site, dead) == 0

    (line,) = undo(site, "--run-ids", dead)["locations"]

    assert (line["back"], line["gone_keys"]) == (2, [])
    assert {key.removeprefix(place) for key in shown(site) if dead in key} == {"ours", "late"}
    assert theirs in {item.version_id for item in site.snapshot().items if item.kind == "marker"}


def test_what_is_hidden_cannot_be_registered(site: Site) -> None:
    """The hook refuses what is on its way out, and takes it once it is there again."""
    from mlflow.exceptions import MlflowException

    dead = site.run(site.experiment(), {"model/MLmodel": b"1"})
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    with pytest.raises(MlflowException, match="are being removed"):
        site.register("churn", f"{site.artifact_uri(dead)}/model")

    undo(site, "--run-ids", dead)

    assert site.register("churn", f"{site.artifact_uri(dead)}/model") == 1


def test_undo_by_plan_takes_back_that_plan(site: Site) -> None:
    """Two plans hid a run each: the id of one brings back one."""
    experiment = site.experiment()
    one, two = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    init(site, *NOW, "--action", "hide")
    site.delete_run(one)
    told = run("gc", "--backend-store-uri", site.uri, "--yes", *command.NOW).out
    (plan,) = re.findall(r"Hid 1 location .*'undo --plan ([0-9a-f-]{36})'", " ".join(told.split()))
    site.delete_run(two)
    gc(site)

    taken = undo(site, "--plan", plan)["locations"]

    assert [line["id"] for line in taken] == [one]
    assert (left_shown(site, one), left_shown(site, two)) == (1, 0)


def left_shown(site: Site, run: str) -> int:
    """How many of its objects a plain listing shows."""
    return sum(run in key for key in shown(site))


def test_what_was_taken_back_stays_until_it_is_deleted_again_or_named(any_site: Site) -> None:
    """Neither a nightly gc nor the worker hides again what a person has taken back."""
    site = any_site
    dead = site.run(site.experiment(), n_objects=2)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    undo(site, "--run-ids", dead)
    assert tags(site, dead)["artifact_gc.status"].startswith("taken back ")

    assert reasons(gc(site)) == {dead: "undone"}
    shift(site, 30 * DAY_MS)
    assert turn(site) == {}
    assert left_shown(site, dead) == 2

    assert outcomes(gc(site, "--run-ids", dead)) == {dead: "waiting"}
    undo(site, "--run-ids", dead)
    site.restore_run(dead)
    time.sleep(0.01)
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    assert left_shown(site, dead) == 0


def test_a_restore_shows_what_was_hidden_again(any_site: Site) -> None:
    """The worker hears of a restore and takes its hide back by itself; the run says nothing of us then."""
    site = any_site
    dead = site.run(site.experiment(), n_objects=3)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    assert left_shown(site, dead) == 0

    site.restore_run(dead)
    turn(site)

    assert left_shown(site, dead) == 3
    assert tags(site, dead) == {}
    assert intents(site, "state", "acted_from_ms") == [("cancelled", None)]


def test_what_the_rule_has_taken_is_named(site: Site) -> None:
    """Bytes that the bucket's noncurrent rule has removed are gone, and undo says which and how many."""
    dead = site.run(site.experiment(), {"taken": b"1", "left": b"2"})
    site.delete_run(dead)
    init(site, *NOW, "--action", "hide")
    gc(site)
    taken = next(item for item in site.snapshot().items if item.key.endswith("/taken") and item.kind == "version")
    site.client.delete_object(Bucket=site.bucket, Key=taken.key, VersionId=taken.version_id)

    (line,) = undo(site, "--run-ids", dead)["locations"]

    assert (line["back"], line["gone"], line["gone_keys"]) == (1, 1, [taken.key])
    assert "purged in part: 1 object" in tags(site, dead)["artifact_gc.purged"]


def test_what_has_gone_is_written_down(site: Site) -> None:
    """Once the rule has removed everything, a later look ends it: it was swept, and the counts say how much."""
    dead = site.run(site.experiment(), n_objects=2, object_bytes=10)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    shift(site, 2 * DAY_MS)
    assert turn(site) == {}
    assert intents(site, "state", "deleted_objects", "waiting_objects") == [("waiting", 0, 2)]
    for item in site.snapshot().items:
        if dead in item.key:
            site.client.delete_object(Bucket=site.bucket, Key=item.key, VersionId=item.version_id)

    shift(site, 2 * DAY_MS)
    turn(site)

    assert intents(site, "state", "deleted_objects", "deleted_bytes", "waiting_objects") == [("swept", 2, 20, 0)]
    assert tags(site, dead)["artifact_gc.status"].startswith("purged by ")
    assert undo(site, "--run-ids", dead, expect=2)["error"] == (
        f"Nothing of that is hidden or tagged: run {dead} was purged or removed, and that is for good"
    )


@pytest.mark.parametrize("suspended", [False, True])
def test_a_bucket_without_versions_is_refused(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite, *, suspended: bool
) -> None:
    """There a delete marker is a deletion: nothing is touched, and the command says what would do."""
    site = make_site(Site.direct(sqlite_uri, seaweed, bucket))
    init(site, *NOW)
    dead = site.run(site.experiment(), n_objects=2)
    site.delete_run(dead)
    if suspended:
        versioned(site)
        site.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    before = site.snapshot()

    ran = run(
        "gc",
        "--backend-store-uri",
        site.uri,
        "--yes",
        "--older-than",
        "0s",
        "--min-object-age",
        "0s",
        "--action",
        "hide",
    )

    assert ran.code == 4
    assert bucket in ran.err
    assert site.snapshot().items == before.items


@pytest.mark.parametrize(
    ("any_db_uri", "action", "by"),
    [
        *((kind, "hide", "worker") for kind in ("sqlite", "postgresql", "mariadb")),
        ("sqlite", "hide", "gc"),
        ("sqlite", "tag", "worker"),
        ("sqlite", "tag", "gc"),
    ],
    indirect=["any_db_uri"],
)
def test_a_hold_takes_back_what_is_hidden(any_site: Site, action: str, by: str) -> None:
    """Or tagged, as soon as the worker or gc hears of it; and what the hold said when it was put on came true."""
    site = any_site
    experiment = site.experiment()
    held, other = (site.run(experiment, n_objects=2) for _ in range(2))
    for dead in (held, other):
        site.delete_run(dead)
    if action == "hide":
        init(site, *NOW, "--action", "hide")
    else:
        ruled(site)
    assert outcomes(gc(site)) == {held: "waiting", other: "waiting"}
    put = run("hold", "add", "--backend-store-uri", site.uri, "--run-id", held, "--reason", "audit")
    assert "1 location was hidden or tagged before, and is to be taken back by the worker or 'gc' in time" in put.err
    if by == "worker":
        turn(site)
    else:
        assert reasons(gc(site)) == {held: "protected", other: "waiting"}
    assert [*tagged(site, held).values()] == [{}, {}]
    assert [*tagged(site, other).values()] == ([] if action == "hide" else [TAG, TAG])
    assert "audit" in tags(site, held)["artifact_gc.protected_by"]
    site.client.delete_bucket_lifecycle(Bucket=site.bucket)


def test_a_site_whose_bucket_keeps_no_versions_cannot_be_told_to_hide(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """``init`` says so before it changes anything: neither tables nor settings are there afterwards."""
    site = make_site(Site.direct(sqlite_uri, seaweed, bucket))
    site.run(site.experiment(), n_objects=1)

    ran = run("init", "--backend-store-uri", site.uri, "--registry-store-uri", site.uri, "--action", "hide")

    assert ran.code == 4
    assert f"Bucket '{bucket}'" in ran.err
    assert "Nothing was changed: use another --action" in ran.err
    assert run("init", "--backend-store-uri", site.uri, "--check").code == 5
    init(site, *NOW, "--grace", "3d")
    assert run("init", "--backend-store-uri", site.uri, "--action", "hide").code == 4
    with site.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT action, grace_ms FROM artifact_gc_site").one() == (None, 3 * DAY_MS)
