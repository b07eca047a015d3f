"""``audit``: exact, object for object, against what the generator of a site knows; it writes nothing; bad input.

The oracle is what was written and why, noted while it was written. It knows nothing of our code.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.abilities import has, needs
from tests.command import Ran, gc, init, run
from tests.servers import S3Server, delayed
from tests.site import DAY_MS, Site

LIVE, SOFT, PROTECTED = "live", "soft-deleted", "protected"
DUE, LEFT, YOUNG = "garbage, due", "left over", "too young to judge"
NOT_JUDGED, UNKNOWN = "not judged", "unknown layout"
NOT_YOUNG = ("--min-object-age", "0s")
COUNTS = (
    "objects", "bytes", "noncurrent_versions", "noncurrent_bytes", "delete_markers", "unfinished_uploads"
)  # fmt: skip


def audit(site: Site, *arguments: str, registry: bool = True) -> Ran:
    """Run the command on a site; a failure is the test's message."""
    stores = ["--backend-store-uri", site.uri]
    if registry:
        stores += ["--registry-store-uri", site.registry_uri or site.uri]
    if site.destination:
        stores += ["--artifacts-destination", site.destination]
    ran = run("audit", *stores, *arguments)
    assert ran.code == 0, f"{ran.code}: {ran.err}\n{ran.out}"
    return ran


def report(site: Site, *arguments: str, registry: bool = True) -> Any:
    """What ``--format json`` prints."""
    return audit(site, "--format", "json", *arguments, registry=registry).json


def verdicts(found: Any) -> dict[str, tuple[str, str]]:
    """Of each prefix the verdict and what is lost."""
    return {line["prefix"]: (line["verdict"], line["lost"]) for line in found["prefixes"]}


def new_id(start: str = "") -> str:
    """An id as MLflow makes them."""
    return start + uuid.uuid4().hex


@dataclass
class Truth:
    """What lies in each prefix, and what has to be said of it."""

    site: Site
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    versioned: bool = False

    def says(self, prefix: str, verdict: str, lost: str = "", *, evidence: str = "") -> str:
        """Note what has to be said of a prefix."""
        self.verdicts[prefix] = (verdict, lost)
        self.evidence[prefix] = evidence
        return prefix

    def count(self, prefix: str, what: str, by: int) -> None:
        self.counts.setdefault(prefix, [0] * len(COUNTS))[COUNTS.index(what)] += by

    def put(self, prefix: str, path: str, size: int, storage_class: str = "STANDARD") -> None:
        """Write one object, and note it."""
        self.site.client.put_object(
            Bucket=self.site.bucket,
            Key=prefix + path,
            Body=b"x" * size,
            StorageClass=storage_class,  # type: ignore[arg-type]
        )
        self.count(prefix, "objects", 1)
        self.count(prefix, "bytes", size)

    def overwrite(self, prefix: str, path: str, old: int, new: int) -> None:
        """Write an object that is there again."""
        self.put(prefix, path, new)
        self.count(prefix, "objects", -1)
        self.count(prefix, "bytes", -old)
        if self.versioned:
            self.count(prefix, "noncurrent_versions", 1)
            self.count(prefix, "noncurrent_bytes", old)

    def remove(self, prefix: str, path: str, size: int) -> None:
        """Delete an object as anybody does, without a version."""
        self.site.client.delete_object(Bucket=self.site.bucket, Key=prefix + path)
        self.count(prefix, "objects", -1)
        self.count(prefix, "bytes", -size)
        if self.versioned:
            self.count(prefix, "noncurrent_versions", 1)
            self.count(prefix, "noncurrent_bytes", size)
            self.count(prefix, "delete_markers", 1)

    def begin(self, prefix: str, path: str) -> None:
        """Leave an upload unfinished."""
        self.site.client.create_multipart_upload(Bucket=self.site.bucket, Key=prefix + path)
        self.count(prefix, "unfinished_uploads", 1)

    def place(self, entity: str) -> str:
        """The prefix of a row's artifacts."""
        return self.site.key_of(self.site.artifact_uri(entity)) + "/"


def generate(site: Site, rng: random.Random, *, versioned: bool) -> Truth:  # noqa: PLR0915 - a kind a line
    """A site with more than twenty kinds of prefixes; old deletions are 30 days old, the grace period is 7."""
    truth = Truth(site, versioned=versioned)
    if versioned:
        site.switch_versioning(on=True)
    root = "artifacts/" if site.destination else "mlruns/"
    old_ms = int(time.time() * 1000) - 30 * DAY_MS
    young_ms = int(time.time() * 1000) - DAY_MS

    def fill(prefix: str) -> str:
        for number in range(rng.randint(1, 4)):
            folder = rng.choice(("", "model/", "a/b c/", "+%20ä/"))
            truth.put(prefix, f"{folder}part-{number}", rng.randint(0, 3000))
        return prefix

    experiment = site.experiment()
    home = f"{root}{experiment}/"
    # 1 to 3: live runs, one with several classes, one with versions, a marker and an unfinished upload.
    fill(truth.says(truth.place(site.run(experiment)), LIVE, evidence="live"))
    run_id = site.run(experiment)
    place = truth.says(truth.place(run_id), LIVE, evidence=f"run {run_id}, live")
    truth.put(place, "hot", 10)
    truth.put(place, "cold", 20, "STANDARD_IA")
    place = truth.says(truth.place(site.run(experiment)), LIVE)
    truth.put(place, "rewritten", 100)
    truth.overwrite(place, "rewritten", 100, 30)
    truth.put(place, "hidden", 40)
    truth.remove(place, "hidden", 40)
    truth.put(place, "kept", 1)
    truth.begin(place, "unfinished")
    # 4 to 6: deleted runs: due, in grace, without a date.
    run_id = site.run(experiment)
    fill(truth.says(truth.place(run_id), DUE, evidence=f"run {run_id}, deleted"))
    site.delete_run(run_id, old_ms)
    run_id = site.run(experiment)
    fill(truth.says(truth.place(run_id), SOFT))
    site.delete_run(run_id, young_ms)
    run_id = site.run(experiment)
    fill(truth.says(truth.place(run_id), SOFT))
    site.delete_run(run_id)
    site.undate_run(run_id)
    # 7: deleted, and a model version needs it.
    run_id = site.run(experiment)
    fill(truth.says(truth.place(run_id), PROTECTED, evidence="registered model churn, version 1"))
    site.register("churn", f"{site.artifact_uri(run_id)}/model", run_id)
    site.delete_run(run_id, old_ms)
    # 8 to 11: hard-deleted rows in an experiment that is there: run, logged model, trace, an upload alone.
    fill(truth.says(f"{home}{new_id()}/artifacts/", LEFT, "run", evidence=f"experiment {experiment} is there, and no"))
    fill(truth.says(f"{home}models/{new_id('m-')}/artifacts/", LEFT, "logged model"))
    fill(truth.says(f"{home}traces/{new_id('tr-')}/artifacts/", LEFT, "trace"))
    fill(truth.says(f"{home}traces/{new_id()}/artifacts/", LEFT, "trace"))
    truth.begin(truth.says(f"{home}{new_id()}/artifacts/", LEFT, "run"), "crashed while uploading")
    # 12: a version points at the files of a run whose row is gone.
    gone = new_id()
    fill(truth.says(f"{home}{gone}/artifacts/", PROTECTED, evidence="registered model legacy"))
    number = site.register("legacy", f"{site.artifact_root.rstrip('/')}/{experiment}/{gone}/artifacts/m")
    assert number == 1
    # 13 to 15: a vanished experiment, a dropped workspace.
    vanished = rng.randint(10_000, 99_999)
    fill(truth.says(f"{root}{vanished}/{new_id()}/artifacts/", LEFT, "experiment", evidence=f"experiment {vanished}"))
    fill(truth.says(f"{root}{vanished}/models/{new_id('m-')}/artifacts/", LEFT, "experiment"))
    fill(truth.says(f"{root}{vanished}/traces/{new_id('tr-')}/artifacts/", LEFT, "experiment"))
    fill(truth.says(f"{root}workspaces/dropped/{vanished}/{new_id()}/artifacts/", LEFT, "workspace"))
    fill(truth.says(f"{root}workspaces/dropped/{vanished}/models/{new_id('m-')}/artifacts/", LEFT, "workspace"))
    # 16: somebody has copied a live run's files into a folder of a vanished experiment.
    copied = site.run(experiment)
    fill(truth.says(truth.place(copied), LIVE))
    evidence = f"run {copied}, whose row names another place"
    fill(truth.says(f"{root}{vanished}/{copied}/artifacts/", PROTECTED, evidence=evidence))
    # 17 to 21: what MLflow does not make: other software, strays, a backup that looks like MLflow.
    fill(truth.says(f"{root}spark-history/", UNKNOWN))
    truth.put(truth.says(root, UNKNOWN), "readme.txt", 5)
    truth.put(truth.says(home, UNKNOWN), "notes.txt", 6)
    truth.put(truth.says(f"{home}{new_id()}/", UNKNOWN), "beside the artifacts", 7)
    truth.put(truth.says(f"{home}models/draft/", UNKNOWN), "x", 8)
    fill(truth.says(f"{root}backup/mlruns/3/{new_id()}/artifacts/", UNKNOWN, evidence="it looks like a run's"))
    # 22: an experiment that was deleted long ago takes all along.
    old = site.experiment()
    fill(truth.says(truth.place(site.run(old)), DUE))
    fill(truth.says(truth.place(site.trace(old, {})), DUE))
    if has("logged_models"):
        fill(truth.says(truth.place(site.logged_model(old)), DUE))
    site.delete_experiment(old, old_ms)
    # 23: logged models and traces, live; a deleted model; a model of a deleted run is live.
    fill(truth.says(truth.place(site.trace(experiment, {})), LIVE, evidence="trace"))
    if has("logged_models"):
        fill(truth.says(truth.place(site.logged_model(experiment)), LIVE))
        model = site.logged_model(experiment)
        fill(truth.says(truth.place(model), DUE))
        site.delete_logged_model(model, old_ms)
        run_id = site.run(experiment)
        fill(truth.says(truth.place(site.logged_model(experiment, run_id)), LIVE))
        fill(truth.says(truth.place(run_id), DUE))
        site.delete_run(run_id, old_ms)
    # 24: an experiment whose location somebody chose, away from the root, with a run and a leftover.
    if not site.destination:
        custom = site.experiment(artifact_location=f"s3://{site.bucket}/teams/vision")
        fill(truth.says(truth.place(site.run(custom)), LIVE))
        fill(truth.says(f"teams/vision/{new_id()}/artifacts/", LEFT, "run"))
        truth.put(truth.says("teams/vision/data/", UNKNOWN), "x", 9)
    # 25: all that is left of a left-over run are markers and old versions.
    place = truth.says(f"{home}{new_id()}/artifacts/", LEFT, "run")
    truth.put(place, "deleted by hand", 50)
    truth.remove(place, "deleted by hand", 50)
    if not versioned:
        del truth.verdicts[place], truth.counts[place]
    return truth


@pytest.fixture(params=["seaweed", "moto", "seaweed-versioned", "moto-versioned", "proxied"])
def generated(
    request: pytest.FixtureRequest, rng: random.Random, make_site: Callable[[Site], Site]
) -> tuple[Site, Truth]:
    """A site on each S3 server, with and without versions, on SQLite or PostgreSQL, and one behind the proxy."""
    kind: str = request.param
    server: S3Server = request.getfixturevalue("moto_s3" if kind.startswith("moto") else "seaweed")
    bucket: str = request.getfixturevalue("moto_bucket" if kind.startswith("moto") else "bucket")
    uri: str = request.getfixturevalue("pg_uri" if kind in ("moto", "seaweed-versioned") else "sqlite_uri")
    made = (Site.proxied if kind == "proxied" else Site.direct)(uri, server, bucket)
    site = make_site(made)
    return site, generate(site, rng, versioned=kind.endswith("versioned"))


def test_every_prefix_gets_its_one_verdict(generated: tuple[Site, Truth]) -> None:
    """Object for object: verdicts, what proves them, counts and bytes are the generator's, and nothing is written."""
    site, truth = generated
    before = site.snapshot()

    found = report(site, *NOT_YOUNG)

    counted = {line["prefix"]: [line[name] for name in COUNTS] for line in found["prefixes"]}
    assert verdicts(found) == truth.verdicts
    assert counted == truth.counts
    told = {line["prefix"]: line["evidence"] for line in found["prefixes"]}
    assert [
        (told[prefix], part) for prefix, part in truth.evidence.items() if prefix in told and part not in told[prefix]
    ] == []
    assert all(told.values())
    assert sum(total["bytes"] for total in found["totals"]) == sum(
        item.size for item in before.items if item.kind == "object"
    )
    assert site.snapshot() == before


def test_due_is_what_gc_would_sweep(site: Site, rng: random.Random) -> None:
    """The same locations, decided by the same code: what gc purges is what the audit called garbage, and no more."""
    generate(site, rng, versioned=False)
    init(site, "--min-object-age", "0s")
    due = {prefix for prefix, (verdict, _) in verdicts(report(site)).items() if verdict == DUE}

    ran = run("gc", "--backend-store-uri", site.uri, "--yes", "--format", "json", "--min-object-age", "0s")

    assert ran.code == 0, ran.err
    swept = {result["location"].split("/", 3)[3] for result in ran.json["results"] if result["outcome"] == "swept"}
    assert due == swept
    after = verdicts(report(site))
    assert not due & after.keys()
    assert LEFT in {verdict for verdict, _ in after.values()}


def test_the_young_are_not_judged(site: Site) -> None:
    """Before init the minimum age is a day: a run that crashes now, or a file that comes now, is no garbage yet."""
    experiment = site.experiment()
    live, deleted = site.run(experiment, n_objects=1), site.run(experiment, n_objects=1)
    site.delete_run(deleted, 1000)
    lost = f"mlruns/{experiment}/{new_id()}/artifacts/"
    site.write("nobody", f"s3://{site.bucket}/{lost}", {"x": 1})

    found = report(site)

    place = {one: site.key_of(site.artifact_uri(one)) + "/" for one in (live, deleted)}
    assert verdicts(found) == {place[live]: (LIVE, ""), place[deleted]: (YOUNG, ""), lost: (YOUNG, "")}
    assert (found["set_up"], found["min_object_age_ms"]) == (False, DAY_MS)
    assert "too young to judge" in audit(site).out.splitlines()[0]


def test_without_the_registry_nothing_is_condemned(site: Site) -> None:
    """Where no version says which registry is in use, garbage is not called garbage, and the report says why."""
    experiment = site.experiment()
    deleted = site.run(experiment, n_objects=1)
    site.delete_run(deleted, 1000)
    site.write("nobody", f"s3://{site.bucket}/mlruns/{experiment}/{new_id()}/artifacts", {"x": 1})

    found = report(site, *NOT_YOUNG, registry=False)

    assert {verdict for verdict, _ in verdicts(found).values()} == {NOT_JUDGED}
    assert found["registry_known"] is False
    assert "--registry-store-uri" in audit(site, *NOT_YOUNG, registry=False).out


def test_a_root_of_another_database_is_left_alone(site: Site) -> None:
    """Under a marker that names another database nothing is garbage, whatever lies between; under ours alone it is."""
    experiment = site.experiment()
    ours, theirs = (site.run(experiment, n_objects=1) for _ in range(2))
    for one in (ours, theirs):
        site.delete_run(one, 1000)
    init(site, "--min-object-age", "0s")
    assert gc(site, "--run-ids", ours)["results"][0]["outcome"] == "swept"  # writes our marker
    other = {"about": "", "format": 1, "database_id": "another", "epoch": 3, "fingerprint": "x"}
    site.client.put_object(
        Bucket=site.bucket,
        Key=f"mlruns/{experiment}/_mlflow-artifact-gc.json",
        Body=json.dumps(other).encode(),
    )
    vanished = f"mlruns/777/{new_id()}/artifacts/"
    site.write("nobody", f"s3://{site.bucket}/{vanished}", {"x": 1})

    found = report(site)

    place = site.key_of(site.artifact_uri(theirs)) + "/"
    assert verdicts(found)[place] == (PROTECTED, "")
    assert verdicts(found)[vanished] == (LEFT, "experiment")
    (line,) = [line for line in found["prefixes"] if line["prefix"] == place]
    assert "names another tracking database" in line["evidence"]

    # Above the root, where nothing is listed. Our own beneath it is no excuse, for a sweep neither.
    site.client.put_object(Bucket=site.bucket, Key="_mlflow-artifact-gc.json", Body=json.dumps(other).encode())
    assert verdicts(report(site))[vanished] == (PROTECTED, "")


def test_rows_whose_objects_are_gone(
    any_db_uri: str, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]
) -> None:
    """The reverse: a model version, a written model and a run with logged files where nothing lies any more."""
    site = make_site(Site.direct(any_db_uri, seaweed, bucket))
    from mlflow.entities import RunTag

    experiment = site.experiment()
    never, logged = site.run(experiment), site.run(experiment)
    site.store.set_tag(logged, RunTag("mlflow.loggedArtifacts", "[]"))
    version = site.register("churn", f"s3://{site.bucket}/mlruns/{experiment}/{new_id()}/artifacts/model")
    models = [site.logged_model(experiment)] if has("logged_models") else []

    found = report(site, *NOT_YOUNG)

    named = {gone["row"] for gone in found["gone"]}
    assert f"run {logged}" in named
    assert f"run {never}" not in named
    assert any(name.startswith(f"registered model churn, version {version}") for name in named)
    assert {f"logged model {model}" for model in models} <= named
    assert found["rows_without_objects"]["run"] == 2
    assert "nothing is left of" in audit(site).out


def test_more_roots_can_be_named(site: Site) -> None:
    """--root lists what no row leads to; entities may lie directly in it."""
    site.experiment()
    direct, numbered = f"old/{new_id()}/artifacts/", f"old/12/{new_id()}/artifacts/"
    for place in (direct, numbered):
        site.write("nobody", f"s3://{site.bucket}/{place}", {"x": 1})

    assert verdicts(report(site, *NOT_YOUNG)) == {}

    found = verdicts(report(site, *NOT_YOUNG, "--root", f"s3://{site.bucket}/old"))
    assert found == {direct: (LEFT, "run"), numbered: (LEFT, "experiment")}


def test_a_place_that_rows_have_left_is_still_known(site: Site) -> None:
    """An experiment's location was changed; its runs stay where they are, and so does what is left over beside them."""
    experiment = site.experiment()
    live = site.run(experiment, n_objects=1)
    lost = f"mlruns/{experiment}/{new_id()}/artifacts/"
    site.write("nobody", f"s3://{site.bucket}/{lost}", {"x": 1})
    site.execute("UPDATE experiments SET artifact_location = :uri", uri=f"s3://{site.bucket}/elsewhere/{experiment}")

    found = verdicts(report(site, *NOT_YOUNG))

    assert found == {site.key_of(site.artifact_uri(live)) + "/": (LIVE, ""), lost: (LEFT, "run")}


def test_rows_that_name_odd_places(site: Site) -> None:
    """A live row's place is live whatever its shape: an id that MLflow did not make, no id at all, an inner folder."""
    experiment = site.experiment()
    named, odd, inner = (site.run(experiment) for _ in range(3))
    site.execute("UPDATE runs SET run_uuid = 'nightly', artifact_uri = :uri WHERE run_uuid = :id", id=named,
                 uri=f"s3://{site.bucket}/mlruns/{experiment}/nightly/artifacts")  # fmt: skip
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", id=odd,
                 uri=f"s3://{site.bucket}/mlruns/{experiment}/by-hand/files")  # fmt: skip
    lost = new_id()
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", id=inner,
                 uri=f"s3://{site.bucket}/mlruns/{experiment}/{lost}/artifacts/inner/{inner}/artifacts")  # fmt: skip
    for key in ("nightly/artifacts/x", "by-hand/files/x", "by-hand/others", f"{lost}/artifacts/y"):
        site.client.put_object(Bucket=site.bucket, Key=f"mlruns/{experiment}/{key}", Body=b"1")
    site.write(inner, site.artifact_uri(inner), {"z": 1})

    found = verdicts(report(site, *NOT_YOUNG))

    assert found == {
        f"mlruns/{experiment}/nightly/artifacts/": (LIVE, ""),
        f"mlruns/{experiment}/by-hand/files/": (LIVE, ""),
        f"mlruns/{experiment}/by-hand/": (UNKNOWN, ""),
        f"mlruns/{experiment}/{lost}/artifacts/": (PROTECTED, ""),
    }


def test_what_cannot_be_listed_is_named(site: Site) -> None:
    """A bucket that is not there: the rest is audited, and the report says what is missing."""
    site.run(site.experiment(), n_objects=2)
    site.experiment(artifact_location="s3://no-such-bucket-anywhere/team")

    found = report(site, *NOT_YOUNG)

    assert [one["root"] for one in found["unread"]] == ["s3://no-such-bucket-anywhere/team/"]
    assert len(found["prefixes"]) == 1
    assert "Not listed to the end" in audit(site).out


def test_nothing_could_be_listed(site: Site) -> None:
    """That is an error, and not an empty report."""
    site.experiment(artifact_location="s3://no-such-bucket-anywhere/team")
    site.execute("DELETE FROM experiments WHERE experiment_id = 0")

    ran = run("audit", "--backend-store-uri", site.uri, "--registry-store-uri", site.uri)

    assert ran.code == 1
    assert "no-such-bucket-anywhere" in ran.err


def test_filter_sort_and_limit(site: Site) -> None:
    """What is shown is what was asked for; totals stay those of everything."""
    experiment = site.experiment()
    small, large, old = (site.run(experiment, {"f": size}) for size in (10, 5_000, 300))
    site.delete_run(old, 1000)

    def shown(*arguments: str) -> list[str]:
        return [line["id"] for line in report(site, *NOT_YOUNG, *arguments)["prefixes"]]

    assert shown("--sort", "size") == [large, old, small]
    assert shown("--filter", "size>1kB") == [large]
    assert shown("--filter", "size <= 300", "--filter", "verdict=live") == [small]
    assert shown("--filter", "verdict=garbage, due") == [old]
    assert shown("--filter", f"prefix~{small}") == [small]
    assert shown("--filter", "age>1h") == []
    assert shown("--filter", "age<1h", "--limit", "1", "--sort", "objects")
    assert shown("--filter", "class=STANDARD", "--filter", "owner=tester", "--sort", "size") == [large, old, small]
    assert shown("--filter", "class!=STANDARD") == []
    assert "No prefix passes the filter" in audit(site, "--filter", "size>1TB").out


def test_csv_and_parquet_have_every_prefix(site: Site, rng: random.Random, tmp_path: Path) -> None:
    """The same lines in each format."""
    generate(site, rng, versioned=False)
    expected = report(site, *NOT_YOUNG)["prefixes"]
    audit(site, *NOT_YOUNG, "--format", "csv", "--output", str(tmp_path / "audit.csv"))
    audit(site, *NOT_YOUNG, "--format", "parquet", "--output", str(tmp_path / "audit.parquet"))

    with (tmp_path / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "audit.parquet").to_pylist()
    assert table == expected
    assert rows == [{name: "" if value is None else str(value) for name, value in line.items()} for line in expected]


def test_money_is_that_of_the_price_file(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small objects count as the class's least, a class without a price makes the sum unknown; a store has none."""
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_PRICE_FILE", str(tmp_path / "prices.json"))
    prices = {
        "form": 1, "name": "Ours", "region": "here", "date": "2026-01-01", "currency": "EUR", "source": "a contract",
        "gb_bytes": 1000,
        "storage": {
            "STANDARD": {"per_gb_month": [{"price": 2}]},
            "STANDARD_IA": {"per_gb_month": [{"price": 1}], "minimum_bytes": 500},
        },
    }  # fmt: skip
    (tmp_path / "prices.json").write_text(json.dumps(prices), encoding="utf-8")
    run_id = site.run(site.experiment(), {"f": 3_000})
    key = f"{site.key_of(site.artifact_uri(run_id))}/small"
    site.client.put_object(Bucket=site.bucket, Key=key, Body=b"1", StorageClass="STANDARD_IA")

    (line,) = report(site)["prefixes"]
    assert line["money_per_month"] == pytest.approx(3 * 2 + 0.5)
    assert "EUR a month" in audit(site).out

    site.client.put_object(Bucket=site.bucket, Key=key + "2", Body=b"1", StorageClass="GLACIER")
    assert report(site)["prefixes"][0]["money_per_month"] is None
    monkeypatch.delenv("MLFLOW_ARTIFACT_GC_PRICE_FILE")
    assert report(site)["prices"] is None
    assert "no price is known for this store" in audit(site).out


@pytest.mark.parametrize("kind", ["seaweed", "moto-versioned"])
def test_a_large_experiment_is_listed_in_parts(
    kind: str, request: pytest.FixtureRequest, make_site: Callable[[Site], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each object exactly once, also where a part's name begins other folders' names and objects' too."""
    from mlflow_artifact_gc import inventory

    monkeypatch.setattr(inventory, "_MANY_ROWS", 3)
    server: S3Server = request.getfixturevalue("seaweed" if kind == "seaweed" else "moto_s3")
    bucket: str = request.getfixturevalue("bucket" if kind == "seaweed" else "moto_bucket")
    site = make_site(Site.direct(request.getfixturevalue("sqlite_uri"), server, bucket))
    if kind == "moto-versioned":
        site.switch_versioning(on=True)
    experiment = site.experiment()
    runs = [site.run(experiment, {"a": 1, "b/c": 2}) for _ in range(5)]
    folder = f"s3://{site.bucket}/mlruns/{experiment}"
    head = runs[0][:2]
    stray = {f"{head}": 1, f"{head}-notes/x": 1, "models/x/y": 1, "models/z": 1}
    site.write("strays", folder, stray)
    site.write("others", f"{folder}/models/{new_id('m-')}/artifacts", {"x": 1})

    for most in (2_000, 0):
        monkeypatch.setattr(inventory, "_MOST_PARTS", most)
        found = report(site, *NOT_YOUNG)
        keys = {item.key for item in site.items() if item.kind == "object"}
        assert sum(line["objects"] for line in found["prefixes"]) == len(keys) == 15
        assert [line["objects"] for line in found["prefixes"] if line["verdict"] == LIVE] == [2] * 5


@pytest.mark.parametrize("first", ["live", "deleted"])
def test_a_place_of_two_rows_is_live_if_one_is(site: Site, first: str) -> None:
    """Whichever is read first."""
    experiment = site.experiment()
    runs = sorted(site.run(experiment) for _ in range(2))
    live, deleted = runs if first == "live" else reversed(runs)
    shared = site.artifact_uri(deleted)
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=shared, id=live)
    site.write(live, shared, {"x": 1})
    site.delete_run(deleted, 1000)

    assert verdicts(report(site, *NOT_YOUNG)) == {site.key_of(shared) + "/": (LIVE, "")}


def test_rows_are_read_in_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and whatever their ids: none is missed between two pages."""
    from mlflow_artifact_gc import auditing

    monkeypatch.setattr(auditing, "_BLOCK", 2)
    monkeypatch.setattr(auditing, "_BATCH", 3)
    experiment = site.experiment()
    runs = [site.run(experiment, {"x": 1}) for _ in range(7)]
    traces = [site.trace(experiment) for _ in range(3)]
    for one in runs[:5]:
        site.delete_run(one, 1000)
    left = [f"mlruns/{experiment}/{new_id()}/artifacts/" for _ in range(5)]
    for prefix in left:
        site.client.put_object(Bucket=site.bucket, Key=f"{prefix}x", Body=b"1")

    found = verdicts(report(site, *NOT_YOUNG))

    expected = dict.fromkeys(left, (LEFT, "run"))
    expected |= {site.key_of(site.artifact_uri(one)) + "/": (DUE, "") for one in runs[:5]}
    expected |= {site.key_of(site.artifact_uri(one)) + "/": (LIVE, "") for one in (*runs[5:], *traces)}
    assert found == expected


@needs("workspaces")
def test_workspaces_each_with_its_own_root(site: Site) -> None:
    """Live in a workspace that is there, left over from one that is not, and from its own artifact root."""
    own = f"s3://{site.bucket}/of-team"
    site.execute("INSERT INTO workspaces (name, default_artifact_root) VALUES ('team', :uri)", uri=own)
    site.execute("INSERT INTO workspaces (name) VALUES ('plain')")
    experiment = site.experiment()
    run_id = site.run(experiment)
    live = f"mlruns/workspaces/plain/{experiment}/{run_id}/artifacts/"
    uri = f"s3://{site.bucket}/{live}".rstrip("/")
    site.execute("UPDATE experiments SET workspace = 'plain', artifact_location = :uri WHERE experiment_id = :id",
                 uri=uri.rsplit("/", 2)[0], id=int(experiment))  # fmt: skip
    site.execute("UPDATE runs SET artifact_uri = :uri WHERE run_uuid = :id", uri=uri, id=run_id)
    truth = {
        live: (LIVE, ""),
        f"mlruns/workspaces/plain/{experiment}/{new_id()}/artifacts/": (LEFT, "run"),
        f"mlruns/workspaces/plain/999/{new_id()}/artifacts/": (LEFT, "experiment"),
        f"mlruns/workspaces/dropped/999/{new_id()}/artifacts/": (LEFT, "workspace"),
        f"of-team/998/models/{new_id('m-')}/artifacts/": (LEFT, "experiment"),
        "mlruns/workspaces/plain/readme/": (UNKNOWN, ""),
    }
    for prefix in truth:
        site.client.put_object(Bucket=site.bucket, Key=f"{prefix}x", Body=b"1")

    assert verdicts(report(site, *NOT_YOUNG)) == truth


BAD = [
    (("--filter", "size"), "--filter 'size' is not understood"),
    (("--filter", "weight>1"), "--filter 'weight>1' is not understood: write for example 'size>1GB'; the fields are"),
    (("--filter", "size>big"), "'big' is not a size"),
    (("--filter", "age>soon"), "'soon' is not a duration"),
    (("--filter", "money>much"), "could not convert"),
    (("--filter", "owner>me"), "owner is a text, for =, != and ~"),
    (("--filter", "size~1"), "'~' is for texts"),
    (("--root", "/var/lib"), "--root '/var/lib' cannot be listed"),
    (("--root", "s3://"), "--root 's3://' cannot be listed"),
    (("--format", "parquet"), "name the file with --output FILE"),
    (("--format", "csv", "--output", "/no/such/folder/audit.csv"), "cannot be written: No such file or directory"),
    (("--artifacts-destination", "s3:///x"), "The artifacts destination cannot be read"),
    (("--sort", "colour"), "Invalid value for '--sort'"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_gets_a_sentence(site: Site, arguments: tuple[str, ...], said: str) -> None:
    """Before anything is listed, with exit code 2."""
    ran = run("audit", "--backend-store-uri", site.uri, *arguments)

    assert (ran.code, said in ran.err) == (2, True), ran.err
    assert ran.out == ""


def test_no_room_for_the_sums(site: Site) -> None:
    """A full disk is said in a sentence."""
    command = f"ulimit -f 8; {sys.executable} -m mlflow_artifact_gc audit --backend-store-uri {site.uri}"

    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "Error: The audit's temporary file cannot be written" in done.stderr


def test_a_copy_of_the_database_is_told(site: Site, tmp_path: Path) -> None:
    """On a clone gc refuses: the audit says so, and reads all the same."""
    site.delete_run(site.run(site.experiment(), n_objects=1), 1000)
    init(site, "--min-object-age", "0s")
    copy = tmp_path / "copy.db"
    shutil.copy(site.uri.removeprefix("sqlite:///"), copy)

    ran = run("audit", "--backend-store-uri", f"sqlite:///{copy}")

    assert ran.code == 0, ran.err
    assert "'gc' refuses to purge anything here" in ran.out
    assert DUE in ran.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_audit_leaves_nothing(site: Site, number: signal.Signals, tmp_path: Path) -> None:
    """Exit code 130, one word, and no temporary file."""
    site.run(site.experiment(), n_objects=30)
    command = [sys.executable, "-m", "mlflow_artifact_gc", "audit", "--backend-store-uri", site.uri]
    room = tmp_path / "room"
    room.mkdir()
    with delayed(site.s3, 2.0, folder=tmp_path) as far:
        environ = {**os.environ, **far.environ(), "TMPDIR": str(room)}
        with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            deadline_s = time.monotonic() + 20
            while not any(room.glob("mlflow-artifact-gc-*/audit.sqlite")):
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            process.send_signal(number)
            out, err = process.communicate(timeout=20)

    assert (process.returncode, out, err) == (130, b"", b"Interrupted.\n")
    assert list(room.iterdir()) == []


def test_other_errors_get_a_sentence_too(proxied_site: Site, tmp_path: Path) -> None:
    """No database, an empty one, and a proxy whose objects nobody knows."""
    proxied_site.experiment()

    for uri, code, said in (
        ("", 2, "No database was named"),
        (f"sqlite:///{tmp_path}/none.db", 1, "none.db"),
        (proxied_site.uri, 1, "give --artifacts-destination"),
    ):
        ran = run("audit", "--backend-store-uri", uri)
        assert (ran.code, said in ran.err) == (code, True), ran.err


def test_what_lies_in_a_run_s_folder_is_not_left_over(site: Site) -> None:
    """An experiment's location may be a folder of a live run's: what looks like a vanished run there is that run's."""
    live = site.run(site.experiment())
    place = f"{site.key_of(site.artifact_uri(live))}/"
    site.experiment(artifact_location=f"{site.artifact_uri(live)}/more")
    site.client.put_object(Bucket=site.bucket, Key=f"{place}more/{new_id()}/artifacts/x", Body=b"x")

    assert verdicts(report(site, "--min-object-age", "0s")) == {place: ("live", "")}
