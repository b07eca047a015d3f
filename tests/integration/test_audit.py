"""``audit``: exact, object for object, against what the generator of a site knows; it writes nothing; bad input.

The oracle is what was written and why, noted while it was written. It knows nothing of our code.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.abilities import has
from tests.command import Ran, run
from tests.servers import S3Server
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
