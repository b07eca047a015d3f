"""The worker, driven turn by turn in this process, and a site whose stores have the hook."""

from __future__ import annotations

import threading
from typing import Any

import sqlalchemy as sa

from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.hook.recorder import Recorder
from mlflow_artifact_gc.worker import Assignment, Worker
from tests.abilities import has
from tests.site import Site

NOW = ("--grace", "0s", "--min-object-age", "0s")


def watched(site: Site) -> Site:
    """The same site, with the hook in MLflow's stores."""
    for store in (site.store, site.registry):
        Recorder().watch(store)
    return site


def worker(site: Site, stop: threading.Event | None = None, /, **environ: str) -> Worker:
    """A worker of the site, as a server would start it."""
    assignment = Assignment(
        backend_store_uri=site.uri,
        registry_store_uri=site.registry_uri or site.uri,
        artifacts_destination=site.destination,
    )
    settings = Settings.from_env({**site.s3.environ(), **environ})
    return Worker(assignment, settings, stop or threading.Event())


def turn(site: Site, **environ: str) -> dict[str, str]:
    """One turn of a new worker: how each location ended that it swept."""
    one = worker(site, **environ)
    try:
        report = one.turn()
    finally:
        one.close()
    return {result.decision.entity.id: result.outcome.value for result in report.results} if report else {}


def left(site: Site, entity: str) -> list[str]:
    """The keys of an entity that are still in the bucket."""
    there = {item.key for item in site.items()}
    return sorted(key for key, one in site.objects.items() if one.owner == entity and key in there)


def tags(site: Site, run_id: str) -> dict[str, str]:
    """Our tags on a run, as MLflow gives them."""
    found = site.store.get_run(run_id).data.tags
    return {key: value for key, value in found.items() if key.startswith("artifact_gc.")}


def intents(site: Site, *columns: str) -> list[Any]:
    """Columns of the journal's intents."""
    with site.engine.connect() as connection:
        return [*connection.execute(sa.text(f"SELECT {', '.join(columns)} FROM artifact_gc_intents ORDER BY id"))]


def shift(site: Site, ms: int) -> None:
    """Lets time pass: everything that our tables and MLflow's date of deletions say moves into the past."""
    site.execute("UPDATE artifact_gc_inbox SET recorded_ms = recorded_ms - :ms, deleted_ms = deleted_ms - :ms", ms=ms)
    site.execute(
        "UPDATE artifact_gc_intents SET first_seen_ms = first_seen_ms - :ms, deleted_ms = deleted_ms - :ms,"
        " look_ms = look_ms - :ms",
        ms=ms,
    )
    site.execute("UPDATE runs SET deleted_time = deleted_time - :ms WHERE deleted_time IS NOT NULL", ms=ms)
    site.execute("UPDATE experiments SET last_update_time = last_update_time - :ms", ms=ms)
    if has("logged_models"):
        site.execute("UPDATE logged_models SET last_updated_timestamp_ms = last_updated_timestamp_ms - :ms", ms=ms)


def elapse(site: Site, ms: int) -> None:
    """As ``shift``, and claims, the lease, second looks, holds and sightings come nearer to their time as well."""
    shift(site, ms)
    site.execute(
        "UPDATE artifact_gc_intents SET state_ms = state_ms - :ms, swept_ms = swept_ms - :ms,"
        " claimed_until_ms = claimed_until_ms - :ms, acted_from_ms = acted_from_ms - :ms,"
        " acted_until_ms = acted_until_ms - :ms, undone_ms = undone_ms - :ms",
        ms=ms,
    )
    site.execute("UPDATE artifact_gc_lease SET until_ms = until_ms - :ms, seen_ms = seen_ms - :ms", ms=ms)
    site.execute("UPDATE artifact_gc_holds SET created_ms = created_ms - :ms, until_ms = until_ms - :ms", ms=ms)
    site.execute(
        "UPDATE artifact_gc_sightings SET first_seen_ms = first_seen_ms - :ms, last_seen_ms = last_seen_ms - :ms", ms=ms
    )
