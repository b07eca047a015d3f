"""Backlogs that are made quickly: thousands of deleted runs by one statement, as copies of one."""

from __future__ import annotations

import sqlalchemy as sa

from tests.site import Site

_COPIED = (
    "name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, source_version, "
    "experiment_id"
)
_ID = "printf('%08x%024x', i * 2654435761 % 4294967296, i)"
"""Ids whose first characters are spread as those of MLflow's are."""


def deleted_runs(site: Site, count: int) -> list[str]:
    """Make ``count`` deleted runs in an experiment of their own (SQLite alone); the prefixes of their artifacts."""
    template = site.run(site.experiment(), n_objects=0)
    with site.engine.begin() as connection:
        connection.execute(
            sa.text(
                f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})"
                f" INSERT INTO runs (run_uuid, artifact_uri, lifecycle_stage, deleted_time, {_COPIED})"
                f" SELECT {_ID}, replace(artifact_uri, run_uuid, {_ID}), 'deleted', 1000, {_COPIED}"
                f" FROM n, runs WHERE run_uuid = '{template}'"
            )
        )
        places = connection.execute(
            sa.text(f"SELECT artifact_uri FROM runs WHERE lifecycle_stage = 'deleted' AND run_uuid <> '{template}'")
        )
        return [place.removeprefix(f"s3://{site.bucket}/") for place in places.scalars()]
