"""Killed, interrupted, or beside another of its kind: a rerun ends where an uninterrupted run would have."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import processes
from mlflow_artifact_gc.tables import intents
from tests.command import NOW, gc, init, outcomes
from tests.oracle import assert_bucket_sound
from tests.servers import delay_proxy
from tests.site import Site

RUNS, OBJECTS, DELAY_S = 12, 4, 0.05


@pytest.fixture
def slow_endpoint(site: Site, tmp_path: Path) -> Any:
    """The site's S3 server behind a delay, so that there is time to interrupt."""
    with delay_proxy(site.s3.endpoint, DELAY_S, folder=tmp_path) as endpoint:
        yield endpoint


@pytest.fixture
def backlog(site: Site) -> list[str]:
    """Deleted runs between live ones, opted in."""
    experiment = site.experiment()
    dead = [site.run(experiment, n_objects=OBJECTS) for _ in range(RUNS)]
    for _ in range(3):
        site.run(experiment, n_objects=OBJECTS)
    for one in dead:
        site.delete_run(one)
    init(site)
    return dead


def start(site: Site, endpoint: str, *arguments: str) -> subprocess.Popen[str]:
    """``gc`` in a process of its own."""
    command = [sys.executable, "-m", "mlflow_artifact_gc", "gc", "--backend-store-uri", site.uri, "--yes", *NOW]
    environ = {**os.environ, "MLFLOW_S3_ENDPOINT_URL": endpoint}
    return subprocess.Popen(
        [*command, "--format", "json", "--concurrency", "2", *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_claims(site: Site) -> None:
    """Until the sweep has begun."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with site.engine.connect() as connection:
            if connection.execute(sa.select(intents.c.id).where(intents.c.state == "sweeping").limit(1)).first():
                return
        time.sleep(0.01)
    pytest.fail("no sweep began within 30 s")


@pytest.mark.parametrize("number", range(3))
def test_a_killed_sweep_is_finished_by_the_next(
    site: Site, backlog: list[str], slow_endpoint: str, rng: random.Random, number: int
) -> None:
    """SIGKILL in the middle of a sweep: the next run takes over at once and nothing live is lost."""
    before = site.snapshot()
    process = start(site, slow_endpoint)
    wait_for_claims(site)
    pause_s = rng.uniform(0, 2.0)
    time.sleep(pause_s)
    process.kill()
    process.communicate()
    began = time.monotonic()
    report = gc(site, "--metadata", "delete")

    assert time.monotonic() - began < 20, "it waited for the claims of a dead process"
    assert set(outcomes(report).values()) <= {"swept", "empty"}
    assert set(outcomes(report)) == set(backlog)
    assert_bucket_sound(site, report, before, unreported=True)


def test_an_interrupt_ends_cleanly(site: Site, backlog: list[str], slow_endpoint: str) -> None:
    """Ctrl-C: exit 130, what was done is recorded and reported, the next run does the rest."""
    before = site.snapshot()
    process = start(site, slow_endpoint)
    wait_for_claims(site)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    first = json.loads(out)
    second = gc(site)

    assert (process.returncode, first["exit_code"]) == (130, 130)
    assert "run it again" in err
    assert "stopped" in outcomes(first).values()
    assert set(outcomes(second).values()) == {"swept"}
    assert_bucket_sound(site, [first, second], before)


def test_two_sweeps_at_once_share_the_work(site: Site, backlog: list[str], slow_endpoint: str) -> None:
    """Two runs beside each other: each location is swept once, and the counts add up."""
    before = site.snapshot()
    both = [start(site, slow_endpoint) for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    reports = [json.loads(out) for out, _ in ended]

    assert [process.returncode for process in both] == [0, 0]
    swept = [id_ for report in reports for id_, outcome in outcomes(report).items() if outcome == "swept"]
    assert sorted(swept) == sorted(backlog)
    assert_bucket_sound(site, reports, before)


def test_a_claim_from_elsewhere_is_waited_for(site: Site, backlog: list[str]) -> None:
    """A claim that nobody renews is taken over when it has run out, not before."""
    gc(site, "--time-budget", "0s")
    held = backlog[:2]
    before = site.snapshot()
    with site.engine.begin() as connection:
        now_ms = int(time.time() * 1000)
        for one in held:
            location = site.key_of(site.artifact_uri(one)) + "/"
            connection.execute(
                sa.text(
                    "INSERT INTO artifact_gc_intents (location_sha256, bucket, prefix, entity_kind, entity_id,"
                    " experiment_id, workspace, uri, deleted_ms, first_seen_ms, state, state_ms, attempts, claimed_by,"
                    " claimed_until_ms, deleted_objects, deleted_versions, deleted_markers, deleted_bytes,"
                    " aborted_uploads) VALUES (:sha, :bucket, :prefix, 'run', :id, '1', 'default', :uri, 1, 1,"
                    " 'sweeping', 1, 0, 'elsewhere/0000-1/1/1/x', :until, 0, 0, 0, 0, 0)"
                ),
                {
                    "sha": _sha(site.bucket, location),
                    "bucket": site.bucket,
                    "prefix": location,
                    "id": one,
                    "uri": site.artifact_uri(one),
                    "until": now_ms + 6000,
                },
            )
    began = time.monotonic()
    report = gc(site)

    assert time.monotonic() - began >= 4
    assert outcomes(report) == dict.fromkeys(backlog, "swept")
    assert_bucket_sound(site, report, before)


def _sha(bucket: str, prefix: str) -> str:
    from mlflow_artifact_gc import journal
    from mlflow_artifact_gc.locations import Location

    return journal.sha256(Location(bucket, prefix))


def test_only_a_process_that_is_surely_dead_counts_as_dead() -> None:
    """This process lives, a child that ended does not, and of another machine nobody knows."""
    child = subprocess.run(
        [sys.executable, "-c", "from mlflow_artifact_gc import processes; print(processes.identity())"],
        check=True,
        capture_output=True,
        text=True,
    )

    assert not processes.is_dead(processes.identity())
    assert processes.is_dead(child.stdout.strip())
    assert not processes.is_dead("elsewhere/0000-1/1/1/x")
    assert not processes.is_dead("")
