"""Attempts to lose what a hide or a tag promises: what is live again is taken back, at once and whole, no more.

S3 removes what is tagged at its next midnight and asks nobody, so that each moment counts between two of our steps.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflow_artifact_gc import references, s3, tagging
from mlflow_artifact_gc.cli import backlog
from mlflow_artifact_gc.demo.servers import S3Server
from mlflow_artifact_gc.errors import DatabaseUnusable, ReferencesIncomplete
from mlflow_artifact_gc.expiring import Touched
from mlflow_artifact_gc.fence import Fence
from mlflow_artifact_gc.hiding import Hider
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.restoring import Restored, Restorer
from mlflow_artifact_gc.session import Reading, read
from mlflow_artifact_gc.sweeping import _Sweep
from tests.command import NOW as GC_NOW
from tests.command import gc, init, outcomes, run
from tests.crashing import Crashes, Moment, crashes
from tests.integration.test_attack_sweep import once_before
from tests.integration.test_hide import left_shown, undo, versioned
from tests.integration.test_tag import TAG, put_tags, ruled, tagged
from tests.site import Site
from tests.working import NOW, elapse, intents, shift, tags, turn, watched, worker

MakeSite = Callable[[Site], Site]
DAY_MS = 86_400_000
ACTIONS = ("hide", "tag")


@pytest.fixture
def site(sqlite_uri: str, seaweed: S3Server, bucket: str, make_site: MakeSite) -> Iterator[Site]:
    """SQLite, SeaweedFS, and the hook in MLflow's stores."""
    site = watched(make_site(Site.direct(sqlite_uri, seaweed, bucket)))
    yield site
    site.client.delete_bucket_lifecycle(Bucket=bucket)


@contextmanager
def listening(site: Site) -> Iterator[Callable[[], object]]:
    """A worker between two of its hourly scans: it sees what the hook notes, and what has come up."""
    one = worker(site)
    one.turn()
    one._scan_s = float("inf")
    try:
        yield one.turn
    finally:
        one.close()


def ready(site: Site, action: str, *arguments: str) -> None:
    """The site hides, on a bucket that keeps versions, or tags, with the rules for it."""
    if action == "tag":
        ruled(site, *arguments)
    else:
        init(versioned(site), *NOW, "--action", "hide", *arguments)


def untouched(site: Site, run_id: str) -> int:
    """How many of its objects are shown and do not carry our tag."""
    return sum(not TAG.items() <= pairs.items() for pairs in tagged(site, run_id).values())


def in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """One object is hidden or tagged between two last looks."""
    monkeypatch.setattr(tagging, "_AT_ONCE", 1)
    monkeypatch.setattr(s3, "MOST_ENTRIES", 1)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_restore_that_the_worker_hears_of_before_the_sweep_is_recorded_is_not_forgotten(
    site: Site, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """After gc's last look a run is restored and the worker reads its note: gc's record must not put that off a day."""
    dead = site.run(site.experiment(), n_objects=2)
    ready(site, action)
    with listening(site) as look:
        site.delete_run(dead)

        def restored() -> None:
            site.restore_run(dead)
            look()

        acted = once_before(monkeypatch, _Sweep, "_record", restored)
        assert outcomes(gc(site)) == {dead: "waiting"}
        assert acted
        assert untouched(site, dead) == 0

        look()

    assert untouched(site, dead) == 2
    assert intents(site, "state", "acted_from_ms") == [("cancelled", None)]


@pytest.mark.parametrize("action", ACTIONS)
def test_deleted_again_before_the_sweep_is_recorded_is_not_left_tagged(
    site: Site, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Nor hidden: restored and deleted again after gc's last look, it is as it was in its new grace period."""
    dead = site.run(site.experiment(), n_objects=2)
    ready(site, action, "--grace", "7d")
    with listening(site) as look:
        site.delete_run(dead)

        def again() -> None:
            time.sleep(0.01)
            site.restore_run(dead)
            site.delete_run(dead)
            look()

        acted = once_before(monkeypatch, _Sweep, "_record", again)
        assert outcomes(gc(site)) == {dead: "waiting"}
        assert acted
        look()

    assert untouched(site, dead) == 2
    assert intents(site, "state", "acted_from_ms") == [("pending", None)]


@pytest.mark.parametrize("first", ["tag", "hide"])
def test_what_was_begun_in_one_way_is_not_gone_on_with_in_the_other(site: Site, first: str) -> None:
    """One row remembers one action: what is both hidden and tagged would be taken back by half."""
    versioned(site)
    second = "hide" if first == "tag" else "tag"
    dead = site.run(site.experiment(), {"full": b"1", "free": b"22"})
    if first == "tag":
        put_tags(site, next(key for key in site.objects if key.endswith("/full")), {f"k{n}": "v" for n in range(10)})
    ruled(site)
    site.delete_run(dead)
    if first == "tag":
        assert outcomes(gc(site, expect=3)) == {dead: "failed"}
    else:
        assert outcomes(gc(site, "--action", "hide")) == {dead: "waiting"}
        # As after a late upload.
        site.execute("UPDATE artifact_gc_intents SET state = 'pending'")
    init(site, "--action", second)

    report = gc(site, expect=1)

    assert outcomes(report) == {dead: "paused"}
    assert f"begun as {first}" in report["results"][0]["detail"]
    site.restore_run(dead)
    turn(site)
    assert left_shown(site, dead) == 2
    assert TAG not in list(tagged(site, dead).values())


def test_nothing_is_settled_at_another_endpoint(site: Site, moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an S3 that has a bucket of the same name, what waits has not gone, and is not taken back either."""
    experiment = site.experiment()
    dead, back = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    ruled(site)
    site.delete_run(dead)
    site.delete_run(back)
    assert set(outcomes(gc(site)).values()) == {"waiting"}
    site.restore_run(back)
    before = dict(site.s3.environ())
    for name, value in moto_s3.environ().items():
        monkeypatch.setenv(name, value)
    from tests.servers import s3_client

    s3_client(moto_s3).create_bucket(Bucket=site.bucket)
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1")

    wrong = [
        run("gc", "--backend-store-uri", site.uri, "--yes", "--older-than", "0s", "--min-object-age", "0s"),
        run("undo", "--backend-store-uri", site.uri, "--run-ids", dead),
    ]

    assert [ran.code for ran in wrong] == [1, 1], wrong
    assert all("MLFLOW_S3_ENDPOINT_URL" in ran.err for ran in wrong)
    assert intents(site, "state") == [("waiting",), ("waiting",)]
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    gc(site)
    assert list(tagged(site, back).values()) == [{}]


def test_somebody_elses_value_of_our_key_stays(site: Site) -> None:
    """Our key with another value is somebody's own tag: it is neither replaced nor, later, lost."""
    dead = site.run(site.experiment(), {"theirs": b"1", "free": b"22"})
    theirs = next(key for key in site.objects if key.endswith("/theirs"))
    put_tags(site, theirs, {"mlflow-artifact-gc": "keep"})
    ruled(site)
    site.delete_run(dead)

    report = gc(site, expect=3)

    assert outcomes(report) == {dead: "failed"}
    assert report["results"][0]["failures"][0]["code"] == "TagTaken"
    assert tagged(site, dead)[theirs] == {"mlflow-artifact-gc": "keep"}
    undo(site, "--run-ids", dead)
    assert tagged(site, dead)[theirs] == {"mlflow-artifact-gc": "keep"}


@pytest.fixture
def apart(site: Site, make_site: MakeSite, sqlite_template: Path, tmp_path: Path) -> Site:
    """The same site with a registry in another database."""
    registry = tmp_path / "registry.db"
    shutil.copyfile(sqlite_template, registry)
    return make_site(
        Site(
            uri=site.uri,
            s3=site.s3,
            bucket=site.bucket,
            artifact_root=site.artifact_root,
            registry_uri=f"sqlite:///{registry}",
        )
    )


@pytest.mark.parametrize(("action", "by"), [("tag", "gc"), ("tag", "worker"), ("hide", "worker")])
def test_what_is_registered_elsewhere_while_it_is_tagged_is_taken_back_at_once(
    site: Site, apart: Site, monkeypatch: pytest.MonkeyPatch, action: str, by: str
) -> None:
    """Or hidden: a registration between two batches stops it, and what was done by then must not wait for hours."""
    in_small_batches(monkeypatch)
    dead = site.run(site.experiment(), n_objects=3)
    apart.register("old", "s3://elsewhere/x")
    ready(apart, action)
    looked: list[int] = []
    original = Fence.changed

    def changed(fence: Fence, lines: Any) -> Any:
        if len(looked) == 1:
            apart.register("new", site.artifact_uri(dead) + "/model")
        looked.append(1)
        return original(fence, lines)

    monkeypatch.setattr(Fence, "changed", changed)
    if by == "gc":
        site.delete_run(dead)
        assert outcomes(gc(apart)) == {dead: "protected"}
    else:
        with listening(apart) as look:
            site.delete_run(dead)
            look()
            look()
    assert len(looked) > 1
    assert untouched(site, dead) == 3
    assert intents(site, "state", "acted_from_ms") == [("pending", None)]


@pytest.mark.parametrize("by", ["gc", "worker"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_restore_between_two_batches_is_taken_back_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, action: str, by: str
) -> None:
    """No further batch is hidden or tagged, what was is as before, and whoever looks later leaves it alone."""
    in_small_batches(monkeypatch)
    dead = site.run(site.experiment(), n_objects=3)
    ready(site, action)
    before = [item for item in site.items() if dead in item.key]
    seen: list[int] = []
    original = Fence.changed

    def changed(fence: Fence, lines: Any) -> Any:
        seen.append(untouched(site, dead))
        if len(seen) == 2:
            site.restore_run(dead)
        return original(fence, lines)

    monkeypatch.setattr(Fence, "changed", changed)
    with listening(site) as look:
        site.delete_run(dead)
        if by == "gc":
            assert outcomes(gc(site)) == {dead: "restored"}
        else:
            look()
            look()
        for later in (look, lambda: gc(site)):
            assert (seen[0], {*seen[1:]}) == (3, {2})
            assert [item for item in site.items() if dead in item.key] == before
            assert untouched(site, dead) == 3
            assert tags(site, dead) == {}
            assert intents(site, "state", "acted_from_ms") == [("cancelled", None)]
            later()
    assert untouched(site, dead) == 3


@pytest.mark.parametrize("action", ACTIONS)
def test_undo_of_what_was_restored_leaves_it_as_any_live_run(site: Site, action: str) -> None:
    """No person has said that it is to stay: once it is deleted again, it goes."""
    dead = site.run(site.experiment(), n_objects=2)
    ready(site, action)
    site.delete_run(dead)
    assert outcomes(gc(site)) == {dead: "waiting"}
    assert untouched(site, dead) == 0
    site.restore_run(dead)

    (line,) = undo(site, "--run-ids", dead)["locations"]

    assert (line["back"], line["gone"], untouched(site, dead)) == (2, 0, 2)
    assert tags(site, dead) == {}
    assert intents(site, "state", "acted_from_ms", "undone_ms") == [("cancelled", None, None)]
    time.sleep(0.01)
    site.delete_run(dead)
    assert outcomes(gc(site)) == {dead: "waiting"}


@pytest.fixture(scope="module")
def forks() -> Iterator[Crashes]:
    """The process that forks those that are killed."""
    with crashes() as made:
        yield made


@pytest.mark.parametrize("action", ACTIONS)
def test_restored_after_a_kill_half_way(site: Site, forks: Crashes, action: str) -> None:
    """Nothing was recorded of what was done: all that was begun is taken back once the claims have run out."""
    # Of two experiments, so that each is listed and acted on by itself, one after the other.
    runs = [site.run(site.experiment(), n_objects=2) for _ in range(2)]
    ready(site, action)
    for dead in runs:
        site.delete_run(dead)
    command = ["gc", "--backend-store-uri", site.uri, "--yes", *GC_NOW, "--concurrency", "1"]

    assert forks.run(command, site.s3.environ(), Moment(point="last look", nth=2)).killed

    assert sorted(untouched(site, dead) for dead in runs) == [0, 2]
    assert intents(site, "state", "acted_from_ms IS NULL", "waiting_objects") == [("sweeping", 0, 0)] * 2
    for dead in runs:
        site.restore_run(dead)
    elapse(site, 2 * 60_000)
    turn(site)
    assert [untouched(site, dead) for dead in runs] == [2, 2]
    assert intents(site, "state", "acted_from_ms") == [("cancelled", None)] * 2


def hidden_ms(site: Site, run_id: str) -> int:
    """When the delete marker of a run's only object was written."""
    answer = site.client.list_object_versions(Bucket=site.bucket, Prefix=site.key_of(site.artifact_uri(run_id)) + "/")
    (marker,) = answer["DeleteMarkers"]
    return int(marker["LastModified"].timestamp() * 1000)


@pytest.mark.parametrize("heard", ["deleted again", "restored", "at last"])
def test_a_killed_hide_ends_with_its_claim_whoever_finds_it(site: Site, heard: str) -> None:
    """A user's own delete marker of long after the kill is not taken for ours, although the end was never written."""
    versioned(site)
    dead = site.run(site.experiment(), {"a": b"1"})
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert outcomes(gc(site)) == {dead: "waiting"}
    init(site, "--grace", "7d")
    ours_ms = hidden_ms(site, dead)
    # Killed: five minutes, by which the clocks may differ, before a second after its last marker.
    site.execute(
        "UPDATE artifact_gc_intents SET state = 'sweeping', claimed_by = 'nobody', acted_until_ms = NULL,"
        " claimed_until_ms = :ms",
        ms=ours_ms + 1_000 - 300_000,
    )
    time.sleep(max(0.0, ours_ms / 1000 + 2.5 - time.time()))
    key = next(iter(site.objects))
    site.client.put_object(Bucket=site.bucket, Key=key, Body=b"2")
    site.client.delete_object(Bucket=site.bucket, Key=key)
    if heard != "at last":
        site.restore_run(dead)
    if heard == "deleted again":
        time.sleep(0.01)
        site.delete_run(dead)
    if heard == "at last":
        undo(site, "--run-ids", dead)
    else:
        turn(site)

    ((until_ms,),) = intents(site, "acted_until_ms")
    assert (left_shown(site, dead), until_ms) == (0, None)


def test_a_hide_that_could_not_be_recorded_has_an_end(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database takes no notes after the hide: whoever releases the claim says until when it may have hidden."""
    versioned(site)
    dead = site.run(site.experiment(), {"a": b"1"})
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)

    def lost(*_arguments: object) -> None:
        raise DatabaseUnusable("gone for a moment")

    with monkeypatch.context() as patched:
        patched.setattr(_Sweep, "_record", lost)
        gc(site, expect=1)

    ((state, claimed_by, until_ms),) = intents(site, "state", "claimed_by", "acted_until_ms")
    assert (state, claimed_by) == ("pending", None)
    assert until_ms is not None
    undo(site, "--run-ids", dead)
    assert left_shown(site, dead) == 1


def test_a_look_that_changes_nothing_keeps_what_is_counted(site: Site) -> None:
    """A purge of what is hidden that is put off hides nothing and removes nothing: as much waits as before."""
    versioned(site)
    dead = site.run(site.experiment(), n_objects=3, object_bytes=10)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert outcomes(gc(site)) == {dead: "waiting"}

    assert outcomes(gc(site, "--action", "purge", "--min-object-age", "1h")) == {dead: "postponed"}

    assert intents(site, "acted_from_ms IS NULL", "waiting_objects", "waiting_bytes") == [(0, 3, 30)]


def test_what_is_written_right_after_a_hide_is_hidden_too(site: Site) -> None:
    """What a listing shows was not there when it was hidden, however few seconds lie between."""
    versioned(site)
    dead = site.run(site.experiment(), n_objects=1)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    site.write(dead, site.artifact_uri(dead), {"late": b"1"})
    shift(site, 2 * DAY_MS)

    turn(site)
    turn(site)

    assert left_shown(site, dead) == 0
    assert intents(site, "state") == [("waiting",)]


def test_what_was_purged_for_its_tags_is_said(site: Site) -> None:
    """With --full-tag-sets purge some of it has gone for good, and a restored run says so."""
    dead = site.run(site.experiment(), {"full": b"1", "free": b"22"})
    put_tags(site, next(key for key in site.objects if key.endswith("/full")), {f"k{n}": "v" for n in range(10)})
    ruled(site, "--full-tag-sets", "purge")
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}

    site.restore_run(dead)
    turn(site)

    assert "1 object" in tags(site, dead)["artifact_gc.purged"]


def test_nothing_is_tagged_once_the_claim_may_have_run_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a batch the process or the database stands still: somebody else may have taken it back since."""
    dead = site.run(site.experiment(), n_objects=40)
    ruled(site)
    site.delete_run(dead)
    fences: list[Fence] = []
    begun = Fence.begin

    def begin(fence: Fence, *arguments: Any) -> Any:
        fences.append(fence)
        return begun(fence, *arguments)

    def add_tag(*arguments: Any, **named: Any) -> Any:
        fences[0]._valid_until = 0.0
        return tagged_one(*arguments, **named)

    tagged_one = s3.add_tag
    monkeypatch.setattr(Fence, "begin", begin)
    monkeypatch.setattr(s3, "add_tag", add_tag)

    assert outcomes(gc(site, "--concurrency", "2")) == {dead: "stopped"}

    assert sum(tags_ == TAG for tags_ in tagged(site, dead).values()) <= 2


def test_requests_under_way_are_waited_for_when_a_bucket_is_paused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them finds the bucket unusable: the others must have ended before the claim is given back."""
    dead = site.run(site.experiment(), n_objects=3)
    ruled(site)
    site.delete_run(dead)
    recorded: list[str] = []
    late: list[str] = []
    tagged_one, record = s3.add_tag, _Sweep._record

    def add_tag(client: Any, bucket: str, entry: Any, *arguments: Any, **named: Any) -> Any:
        if entry.key == min(site.objects):
            raise s3.BucketPaused(bucket, "gone for a moment")
        time.sleep(0.5)
        late.extend(recorded)
        return tagged_one(client, bucket, entry, *arguments, **named)

    def noted(sweep: Any, finished: Any) -> None:
        recorded.append("recorded")
        record(sweep, finished)

    monkeypatch.setattr(s3, "add_tag", add_tag)
    monkeypatch.setattr(_Sweep, "_record", noted)

    assert outcomes(gc(site, expect=1)) == {dead: "paused"}

    assert (recorded, late) == (["recorded"], [])


def test_a_server_that_says_deleted_and_does_not_do_it_ends_an_undo(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The marker is listed again and again: the undo reports it, and does not go on for ever."""
    versioned(site)
    dead = site.run(site.experiment(), n_objects=1)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert outcomes(gc(site)) == {dead: "waiting"}

    def lies(_client: Any, _bucket: str, entries: Any, **_named: Any) -> Any:
        return s3.DeleteAnswer(deleted=tuple(entries))

    with monkeypatch.context() as patched:
        patched.setattr(s3, "delete", lies)
        (line,) = undo(site, "--run-ids", dead, expect=3)["locations"]

    assert (line["back"], line["unknown"]) == (0, 1)
    assert intents(site, "state", "acted_from_ms IS NULL") == [("waiting", 0)]
    site.execute("UPDATE artifact_gc_intents SET look_ms = 1")
    (line,) = undo(site, "--run-ids", dead)["locations"]
    assert (line["back"], line["gone_keys"]) == (1, [])


def test_a_late_upload_is_not_counted_as_what_was_tagged(site: Site) -> None:
    """The rule has removed what was tagged, and something else lies there: what is gone is gone."""
    dead = site.run(site.experiment(), n_objects=2)
    ruled(site)
    site.delete_run(dead)
    assert outcomes(gc(site)) == {dead: "waiting"}
    for key in [*site.objects]:
        site.client.delete_object(Bucket=site.bucket, Key=key)
    # The sweep was long ago.
    site.execute("UPDATE artifact_gc_intents SET swept_ms = swept_ms - 3600000")
    site.write(dead, site.artifact_uri(dead), {"late": b"1", "later": b"2"})

    (line,) = undo(site, "--run-ids", dead)["locations"]

    assert (line["back"], line["gone"]) == (0, 2)


def test_two_markers_of_one_key_are_both_ours_and_its_object_is_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a hide was lost, and botocore asked again: two markers lie on one object."""
    versioned(site)
    dead = site.run(site.experiment(), n_objects=1)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    deleted = s3.delete

    def twice(*arguments: Any, **named: Any) -> Any:
        deleted(*arguments, **named)
        return deleted(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(s3, "delete", twice)
        assert outcomes(gc(site)) == {dead: "waiting"}

    (line,) = undo(site, "--run-ids", dead)["locations"]

    assert (line["back"], line["gone"], line["gone_keys"]) == (1, 0, [])
    assert left_shown(site, dead) == 1


@pytest.mark.parametrize("action", ACTIONS)
def test_a_restore_while_s3_is_away_is_taken_back_when_it_answers_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Of what had failed in part too: the worker tries again after minutes, not at its next scan; `status` says so."""
    dead = site.run(site.experiment(), {"full": b"1", "free": b"22"})
    if action == "tag":
        put_tags(site, next(key for key in site.objects if key.endswith("/full")), {f"k{n}": "v" for n in range(10)})
    ready(site, action)
    with listening(site) as look:
        site.delete_run(dead)
        look()
        assert intents(site, "state") == [("failed" if action == "tag" else "waiting",)]
        hidden_or_tagged = 2 - untouched(site, dead)
        site.restore_run(dead)

        def away(*_arguments: Any, **_named: Any) -> Any:
            raise s3.BucketPaused(site.bucket, "away")

        with monkeypatch.context() as patched:
            patched.setattr(s3, "remove_tag" if action == "tag" else "delete", away)
            look()
        assert 2 - untouched(site, dead) == hidden_or_tagged > 0
        place = f"s3://{site.bucket}/{site.key_of(site.artifact_uri(dead))}/"
        said, stuck = not_taken_back(site)
        assert f"Needed again, and not taken back yet: 1 location; the first one: {place}: " in said
        assert "Before the bucket's rule acts: run 'gc' or 'undo'." in said
        assert [text.partition(": ")[0] for text in stuck] == [place]
        shift(site, 10 * 60_000)
        look()

    assert untouched(site, dead) == 2
    assert intents(site, "state", "acted_from_ms") == [("cancelled", None)]
    said, stuck = not_taken_back(site)
    assert ("not taken back" in said, stuck) == (False, [])


def not_taken_back(site: Site) -> tuple[str, list[str]]:
    """What ``status`` says, in one line, and what its document says of what is needed and was not taken back."""
    status = ("status", "--backend-store-uri", site.uri)
    return " ".join(run(*status).out.split()), run(*status, "--format", "json").json["not_taken_back"]


def test_an_upload_between_two_listings_of_a_versioned_bucket_is_tagged_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain listing shows it, and not its version: it is tagged once that is known, and nothing crashes."""
    versioned(site)
    dead = site.run(site.experiment(), n_objects=1)
    ruled(site)
    site.delete_run(dead)
    listing = s3.current
    folder = site.key_of(site.artifact_uri(dead))

    def current(client: Any, bucket: str, prefix: str) -> Any:
        if prefix.startswith(folder) and "late" not in "".join(site.objects):
            site.write(dead, site.artifact_uri(dead), {"late": b"1"})
        return listing(client, bucket, prefix)

    monkeypatch.setattr(s3, "current", current)

    assert outcomes(gc(site)) == {dead: "waiting"}

    assert "late" in "".join(site.objects)
    assert list(tagged(site, dead).values()) == [TAG, TAG]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_restored_run_is_taken_back_though_nothing_else_can_be_read(
    site: Site, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """What needs what is not known while the registry cannot be read; that this run is live, its row says."""
    back, stays = (site.run(site.experiment(), n_objects=1) for _ in range(2))
    ready(site, action)
    for dead in (back, stays):
        site.delete_run(dead)
    with listening(site) as work:
        assert (untouched(site, back), untouched(site, stays)) == (0, 0)
        site.restore_run(back)

        def unreadable(*_arguments: object) -> None:
            raise ReferencesIncomplete

        monkeypatch.setattr(references, "read", unreadable)
        site.execute("UPDATE artifact_gc_intents SET look_ms = 1")
        with pytest.raises(ReferencesIncomplete):
            work()

    assert (untouched(site, back), untouched(site, stays)) == (1, 0)


@pytest.mark.parametrize("action", ACTIONS)
def test_deleted_again_while_it_is_taken_back_begins_a_grace_period(
    site: Site, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """What the worker writes down of a new deletion meanwhile is not undone by the end of the taking back."""
    dead = site.run(site.experiment(), n_objects=1)
    ready(site, action)
    site.delete_run(dead)
    assert turn(site) == {dead: "waiting"}
    site.restore_run(dead)
    restore = Restorer.restore

    def deleted_meanwhile(self: Restorer, touched: Touched) -> Restored:
        site.execute("UPDATE artifact_gc_intents SET first_seen_ms = first_seen_ms + 1000, look_ms = 4102444800000")
        return restore(self, touched)

    monkeypatch.setattr(Restorer, "restore", deleted_meanwhile)
    turn(site)

    assert untouched(site, dead) == 1
    assert intents(site, "state", "look_ms") == [("pending", 4102444800000)]


def test_what_gc_has_begun_within_the_grace_period_is_not_looked_at_at_every_turn(site: Site) -> None:
    """Its date is the end of the site's grace period; until then it stays as it is, and the worker is idle."""
    dead = site.run(site.experiment(), n_objects=1)
    ruled(site, "--grace", "7d")
    site.delete_run(dead)
    assert outcomes(gc(site)) == {dead: "waiting"}
    # Ended half-way: a time budget, an interrupt.
    site.execute("UPDATE artifact_gc_intents SET state = 'pending', look_ms = 0")

    assert turn(site) == {}

    ((state, look_ms, first_seen_ms),) = intents(site, "state", "look_ms", "first_seen_ms")
    assert (state, look_ms) == ("pending", first_seen_ms + 7 * DAY_MS)
    assert list(tagged(site, dead).values()) == [TAG]


def test_a_hide_that_is_gone_through_again_ends_with_its_last_marker(site: Site) -> None:
    """Killed after everything was hidden: the next sweep finds nothing to do, and still says when it ended."""
    versioned(site)
    dead = site.run(site.experiment(), n_objects=2)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)
    assert outcomes(gc(site)) == {dead: "waiting"}
    before = intents(site, "acted_until_ms")
    site.execute("UPDATE artifact_gc_intents SET state = 'pending', acted_until_ms = NULL")

    assert outcomes(gc(site)) == {dead: "waiting"}

    assert intents(site, "acted_until_ms") == before


def test_a_line_of_another_place_than_its_row_s_is_not_touched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a plan says: where an entity's artifacts lie, and below which root, its row says."""
    experiment = site.experiment()
    live, dead, other = (site.run(experiment, n_objects=2) for _ in range(3))
    for one in (dead, other):
        site.delete_run(one)
    init(site, *NOW)
    before = site.snapshot()

    def altered(*arguments: Any, **named: Any) -> Reading:
        found = read(*arguments, **named)
        lines = {line.entity.id: line for line in found.decisions}
        place = Location(site.bucket, site.key_of(site.artifact_uri(live)) + "/")
        root = replace(lines[other], root=place.parent(2))
        return replace(found, decisions=(replace(lines[dead], location=place), root))

    monkeypatch.setattr(backlog, "read", altered)

    assert outcomes(gc(site)) == {dead: "protected", other: "protected"}
    assert site.snapshot().items == before.items


def test_nothing_is_hidden_once_versioning_is_suspended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the first delete: from then on a delete by key alone may be for good."""
    versioned(site)
    dead = site.run(site.experiment(), n_objects=1)
    init(site, *NOW, "--action", "hide")
    site.delete_run(dead)

    def suspend() -> None:
        site.client.put_bucket_versioning(Bucket=site.bucket, VersioningConfiguration={"Status": "Suspended"})

    acted = once_before(monkeypatch, Hider, "_round", suspend)

    assert outcomes(gc(site, expect=1)) == {dead: "paused"}
    assert acted
    assert left_shown(site, dead) == 1


def test_nothing_is_begun_where_no_root_was_proven(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that died then left a tag behind that was begun nowhere: each later gc asked where, and gave up."""
    dead = site.run(site.experiment(), n_objects=0)
    ruled(site)
    site.delete_run(dead)
    begun: list[Any] = []
    once_before(monkeypatch, _Sweep, "_record", lambda: begun.extend(intents(site, "state", "acted_from_ms")))

    assert outcomes(gc(site)) == {dead: "empty"}

    assert begun == [("sweeping", None)]
