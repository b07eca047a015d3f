"""``tag``: everything of a deleted run gets the expiry tag, a rule of the bucket removes it, and nothing else goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlflow_artifact_gc.demo.servers import S3Server
from tests.command import NOW as GC_NOW
from tests.command import gc, init, outcomes, reasons, run
from tests.fakes3 import Fault, Kind, fake_s3
from tests.fakes3.faults import FOR_GOOD
from tests.lifecycle_runs import age, run_lifecycle
from tests.site import Site
from tests.working import NOW, intents, shift, tags, turn, watched

MakeSite = Callable[[Site], Site]
DAY_MS = 86_400_000
TAG = {"mlflow-artifact-gc": "expired"}


def ruled(site: Site, *arguments: str) -> Site:
    """The site tags, and its bucket has the rules for it."""
    init(site, *NOW, "--action", "tag", *arguments)
    ran = run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes")
    assert ran.code == 0, ran.err
    return site


@pytest.fixture
def site(sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Iterator[Site]:
    """With the hook in MLflow's stores; the server forgets the bucket's rules in the end."""
    site = watched(make_site(Site.direct(sqlite_uri, seaweed, bucket)))
    yield site
    site.client.delete_bucket_lifecycle(Bucket=bucket)


@pytest.fixture
def any_site(any_db_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Iterator[Site]:
    """The same on each database."""
    site = watched(make_site(Site.direct(any_db_uri, seaweed, bucket)))
    yield site
    site.client.delete_bucket_lifecycle(Bucket=bucket)


def tagged(site: Site, entity: str) -> dict[str, dict[str, str]]:
    """The tags of each object of an entity."""
    found: dict[str, dict[str, str]] = {}
    for key in sorted(site.snapshot().keys):
        if entity in key:
            answer = site.client.get_object_tagging(Bucket=site.bucket, Key=key)
            found[key] = {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}
    return found


def put_tags(site: Site, key: str, pairs: dict[str, str]) -> None:
    """Somebody's own tags on an object."""
    pairs_: Any = [{"Key": name, "Value": value} for name, value in pairs.items()]
    site.client.put_object_tagging(Bucket=site.bucket, Key=key, Tagging={"TagSet": pairs_})


def test_what_is_tagged_goes_by_the_rule_and_the_others_stay(any_site: Site, seaweed: S3Server) -> None:
    """The whole way: deleted, tagged by the worker, removed by S3, found gone; a live run and the marker stay."""
    site = any_site
    experiment = site.experiment()
    live, dead = site.run(experiment, n_objects=3), site.run(experiment, n_objects=2, object_bytes=10)
    ruled(site)
    site.delete_run(dead)

    assert turn(site) == {dead: "waiting"}

    assert list(tagged(site, dead).values()) == [TAG, TAG]
    assert list(tagged(site, live).values()) == [{}, {}, {}]
    assert intents(site, "state", "action", "waiting_objects", "waiting_bytes", "deleted_objects") == [
        ("waiting", "tag", 2, 20, 0)
    ]
    assert tags(site, dead)["artifact_gc.status"].startswith("tagged for expiry ")
    told = run("status", "--backend-store-uri", site.uri).out
    assert "Tagged for expiry: 1 location, 2 objects, 20 B; the bucket's lifecycle rule removes them." in told
    age(seaweed, site.bucket, days=3)
    run_lifecycle(seaweed)
    shift(site, 2 * DAY_MS)
    turn(site)

    assert tagged(site, dead) == {}
    assert len(tagged(site, live)) == 3
    assert any(key.endswith("_mlflow-artifact-gc.json") for key in site.snapshot().keys)
    assert intents(site, "state", "deleted_objects", "deleted_bytes", "acted_from_ms") == [("swept", 2, 20, None)]
    assert tags(site, dead)["artifact_gc.status"].startswith("purged by ")


def test_its_own_tags_stay_also_when_it_is_restored(any_site: Site) -> None:
    """Ours comes beside them, and goes alone; after the restore the objects' tags are what they were."""
    site = any_site
    dead = site.run(site.experiment(), {"a": b"1", "b": b"2"})
    a, b = sorted(key for key in site.objects if dead in key)
    put_tags(site, a, {"team": "vision", "cost center": "a+b/=:@"})
    ruled(site)
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    assert tagged(site, dead) == {a: {"team": "vision", "cost center": "a+b/=:@", **TAG}, b: TAG}

    site.restore_run(dead)
    turn(site)

    assert tagged(site, dead) == {a: {"team": "vision", "cost center": "a+b/=:@"}, b: {}}
    assert tags(site, dead) == {}
    assert intents(site, "state", "acted_from_ms") == [("cancelled", None)]


def test_a_restore_without_a_worker_is_taken_back_by_gc_and_by_undo(site: Site) -> None:
    """A run is restored while nobody listens: the next gc, of whatever, takes the tag off first; so does undo."""
    experiment = site.experiment()
    one, two = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    ruled(site)
    site.delete_run(one)
    site.delete_run(two)
    assert set(outcomes(gc(site)).values()) == {"waiting"}
    site.restore_run(one)

    assert reasons(gc(site)) == {two: "waiting"}
    assert list(tagged(site, one).values()) == [{}]
    assert list(tagged(site, two).values()) == [TAG]
    ran = run("undo", "--backend-store-uri", site.uri, "--run-ids", two)

    assert ran.code == 0, ran.err
    assert "Taken back: 1 object in 1 location." in ran.out
    assert list(tagged(site, two).values()) == [{}]


def test_deleted_again_waits_a_whole_grace_period_untagged(any_site: Site) -> None:
    """Restored and deleted again: S3 must not remove it while its new grace period runs."""
    site = any_site
    dead = site.run(site.experiment(), n_objects=1)
    ruled(site)
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    init(site, "--grace", "7d")
    site.restore_run(dead)
    time.sleep(0.01)
    site.delete_run(dead)

    assert turn(site) == {}

    assert list(tagged(site, dead).values()) == [{}]
    assert intents(site, "state", "acted_from_ms") == [("pending", None)]
    assert tags(site, dead)["artifact_gc.status"].startswith("purge due ")


def test_what_is_tagged_cannot_be_registered_and_what_is_registered_elsewhere_is_taken_back(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """The hook refuses what is on its way out; a registration that it did not see takes the tag off again."""
    from mlflow.exceptions import MlflowException

    site = watched(make_site(Site.direct(sqlite_uri, seaweed, bucket)))
    dead = site.run(site.experiment(), {"model/MLmodel": b"1"})
    ruled(site)
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    source = f"s3://{bucket}/mlruns/1/{dead}/artifacts/model"
    site.registry.create_registered_model("churn")
    with pytest.raises(MlflowException, match="are being removed"):
        site.registry.create_model_version("churn", source, dead)

    # By a client without the plugin.
    site.execute(
        "INSERT INTO model_versions (name, version, creation_time, last_updated_time, source, current_stage, status,"
        " storage_location) VALUES ('churn', 1, 1, 1, :source, 'None', 'READY', :source)",
        source=source,
    )
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1")
    turn(site)

    assert list(tagged(site, dead).values()) == [{}]
    assert tags(site, dead)["artifact_gc.protected_by"] == "model churn, version 1"
    site.client.delete_bucket_lifecycle(Bucket=bucket)


@pytest.mark.parametrize("choice", ["leave", "purge"])
def test_an_object_with_ten_tags(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite, choice: str
) -> None:
    """S3 takes no eleventh: it is left and reported, or purged, as the site has it; the others are tagged."""
    site = make_site(Site.direct(sqlite_uri, seaweed, bucket))
    dead = site.run(site.experiment(), {"full": b"1", "free": b"22"})
    full = next(key for key in site.objects if key.endswith("/full"))
    ten = {f"k{number}": "v" for number in range(10)}
    put_tags(site, full, ten)
    ruled(site, "--full-tag-sets", choice)
    site.delete_run(dead)

    report = gc(site, expect=3 if choice == "leave" else 0)

    if choice == "leave":
        assert outcomes(report) == {dead: "failed"}
        assert report["results"][0]["failures"][0]["code"] == "TagSetFull"
        assert tagged(site, dead)[full] == ten
    else:
        assert outcomes(report) == {dead: "waiting"}
        assert report["totals"]["deleted_objects"] == 1
        assert full not in tagged(site, dead)
    free = full.replace("full", "free")
    assert tagged(site, dead)[free] == TAG
    run("undo", "--backend-store-uri", site.uri, "--run-ids", dead)
    assert tagged(site, dead)[free] == {}
    site.client.delete_bucket_lifecycle(Bucket=bucket)


def test_on_a_versioned_bucket_every_version_goes(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """Noncurrent versions are tagged too; the rules remove all of them, and the markers, and the intent closes."""
    site = make_site(Site.direct(sqlite_uri, seaweed, bucket))
    site.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    experiment = site.experiment()
    live, dead = site.run(experiment, {"a": b"1"}), site.run(experiment, {"a": b"1"})
    for key in [*site.objects]:
        site.client.put_object(Bucket=bucket, Key=key, Body=b"22")
    ruled(site)
    site.delete_run(dead)

    assert outcomes(gc(site)) == {dead: "waiting"}
    assert intents(site, "waiting_objects", "waiting_bytes") == [(2, 3)]
    for _ in range(4):
        age(seaweed, bucket, days=3)
        run_lifecycle(seaweed)

    assert [item for item in site.snapshot().items if dead in item.key] == []
    assert sorted(item.kind for item in site.snapshot().items if live in item.key) == ["object", "version"]
    shift(site, 2 * DAY_MS)
    gc(site)
    assert intents(site, "state", "deleted_objects") == [("swept", 2)]
    site.client.delete_bucket_lifecycle(Bucket=bucket)


def test_without_a_rule_nothing_is_tagged(sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> None:
    """Objects would carry a tag that nothing reads: gc is refused and names the command, and the worker waits."""
    site = watched(make_site(Site.direct(sqlite_uri, seaweed, bucket)))
    dead = site.run(site.experiment(), n_objects=1)
    told = init(site, *NOW, "--action", "tag")
    assert "lifecycle apply" in told.out
    site.delete_run(dead)

    ran = run("gc", "--backend-store-uri", site.uri, "--yes", *GC_NOW)

    assert (ran.code, list(tagged(site, dead).values())) == (4, [{}])
    assert "lifecycle apply --action tag" in ran.err
    assert turn(site) == {dead: "paused"}
    assert list(tagged(site, dead).values()) == [{}]


def test_the_tag_is_not_changed_while_objects_carry_it(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """With another tag in the settings a restore could not take the old one off."""
    site = make_site(Site.direct(sqlite_uri, seaweed, bucket))
    dead = site.run(site.experiment(), n_objects=1)
    ruled(site, "--expiry-tag", "gone=yes")
    site.delete_run(dead)
    gc(site)
    assert list(tagged(site, dead).values()) == [{"gone": "yes"}]

    ran = run("init", "--backend-store-uri", site.uri, "--expiry-tag", "other=yes")

    assert ran.code == 4
    assert "1 locations carry the tag gone=yes" in ran.err
    run("undo", "--backend-store-uri", site.uri, "--run-ids", dead)
    assert list(tagged(site, dead).values()) == [{}]
    assert run("init", "--backend-store-uri", site.uri, "--expiry-tag", "other=yes").code == 0
    site.client.delete_bucket_lifecycle(Bucket=bucket)


def test_what_the_rule_has_not_removed_in_a_week_is_tagged_again(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """An object that was overwritten while it was tagged lost its tag, and nothing tells that by its date."""
    site = watched(make_site(Site.direct(sqlite_uri, seaweed, bucket)))
    dead = site.run(site.experiment(), n_objects=2)
    ruled(site)
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    first = next(iter(tagged(site, dead)))
    site.client.delete_object_tagging(Bucket=bucket, Key=first)
    age(seaweed, bucket, days=10)
    assert list(tagged(site, dead).values()) == [{}, TAG]
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1, swept_ms = swept_ms - :ms", ms=3 * DAY_MS)
    assert turn(site) == {}, "not every day: each look would read the tags of every object"
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1, swept_ms = swept_ms - :ms", ms=5 * DAY_MS)

    assert turn(site) == {dead: "waiting"}

    assert list(tagged(site, dead).values()) == [TAG, TAG]
    site.client.delete_bucket_lifecycle(Bucket=bucket)


def test_a_restore_after_the_rule_has_begun_says_what_is_hidden(
    sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite
) -> None:
    """On a versioned bucket the rule first hides: the version stays, untagged, and the run says what to do."""
    site = watched(make_site(Site.direct(sqlite_uri, seaweed, bucket)))
    site.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    dead = site.run(site.experiment(), n_objects=2)
    ruled(site)
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    age(seaweed, bucket, days=3)
    run_lifecycle(seaweed)
    assert tagged(site, dead) == {}

    site.restore_run(dead)
    turn(site)

    assert "2 objects; remove their delete markers" in tags(site, dead)["artifact_gc.hidden"]
    for item in site.snapshot().items:
        if dead in item.key and item.kind == "marker":
            site.client.delete_object(Bucket=bucket, Key=item.key, VersionId=item.version_id)
    assert list(tagged(site, dead).values()) == [{}, {}]
    site.client.delete_bucket_lifecycle(Bucket=bucket)


@pytest.mark.parametrize(("answers", "code"), [("y\ny\n", 0), ("n\n", 4), ("y\nn\n", 4)])
def test_gc_offers_to_write_the_rule(answers: str, code: int, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal it shows the rule and asks, and then asks for the sweep; nothing is written or tagged unasked."""
    dead = site.run(site.experiment(), n_objects=1)
    init(site, *NOW, "--action", "tag")
    site.delete_run(dead)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _self: True, raising=False)

    ran = run("gc", "--backend-store-uri", site.uri, *GC_NOW, answer=answers)

    assert ran.code == code, ran.err
    assert f"Write these rules to bucket '{site.bucket}' now?" in ran.out
    assert '"Key": "mlflow-artifact-gc"' in ran.out, "the rule itself is shown"
    assert list(tagged(site, dead).values()) == [TAG if code == 0 else {}]
    if answers.startswith("y"):
        rules = site.client.get_bucket_lifecycle_configuration(Bucket=site.bucket)["Rules"]
        assert {rule["Status"] for rule in rules} == {"Enabled"}


def test_a_tag_that_cannot_be_read_is_not_taken_for_none(
    sqlite_uri: str, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether others carry it is not known then: no rule is written, and the missing right is named."""
    with fake_s3() as fake:
        fake.make_bucket("bucket")
        for name, value in fake.server.environ().items():
            monkeypatch.setenv(name, value)
        site = make_site(Site.direct(sqlite_uri, fake.server, "bucket"))
        site.run(site.experiment(), {"a": b"1"})
        init(site, *NOW, "--action", "tag")
        fake.plan(Fault(kind=Kind.DENIED, operation="GetObjectTagging", times=FOR_GOOD))
        refused = run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes")

        assert refused.code == 4
        assert "artifacts/a' could not be read (AccessDenied" in refused.err
        assert "with s3:GetObjectTagging granted" in refused.err
        assert (fake.bucket("bucket").lifecycle_xml, fake.unmet()) == (b"", [])
        fake.plan()
        ruled(site)
        assert b"mlflow-artifact-gc" in fake.bucket("bucket").lifecycle_xml


def test_a_tag_that_others_use_gets_no_rule(site: Site) -> None:
    """Live objects carry it: the rule would remove them. What we have tagged ourselves is no reason."""
    live, dead = (site.run(site.experiment(), n_objects=1) for _ in range(2))
    init(site, *NOW, "--action", "tag", "--expiry-tag", "team=ml")
    (key,) = tagged(site, live)
    put_tags(site, key, {"team": "ml"})
    refused = run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes")

    assert refused.code == 4
    assert f"the object {key!r} carries the tag team=ml" in refused.err
    put_tags(site, key, {"team": "vision"})
    ruled(site)
    site.delete_run(dead)
    turn(site)
    site.client.delete_bucket_lifecycle(Bucket=site.bucket)
    ruled(site)
    assert list(tagged(site, dead).values()) == [{"team": "ml"}]
