"""What ``hide`` and ``tag`` need: what was done to a location and when, what waits for S3, and the site's expiry tag.

Written out, not taken from ``tables.metadata``: that moves on, and a revision stays what it was. On MySQL each
statement commits by itself: what is there already was made by an upgrade that was interrupted.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _new() -> dict[str, tuple[sa.Column[Any], ...]]:
    return {
        "artifact_gc_site": (
            sa.Column("expiry_tag", sa.String(512)),
            sa.Column("full_tag_sets", sa.String(16), nullable=False, server_default="leave"),
        ),
        "artifact_gc_intents": (
            sa.Column("action", sa.String(16)),
            sa.Column("acted_from_ms", sa.BigInteger),
            sa.Column("acted_until_ms", sa.BigInteger),
            sa.Column("acted_plan_id", sa.String(36)),
            sa.Column("spared", sa.Text),
            sa.Column("waiting_objects", sa.BigInteger, nullable=False, server_default="0"),
            sa.Column("waiting_bytes", sa.BigInteger, nullable=False, server_default="0"),
            sa.Column("undone_ms", sa.BigInteger),
        ),
    }


def upgrade() -> None:
    """Add columns to the site and to the intents."""
    found = sa.inspect(op.get_bind())
    for table, columns in _new().items():
        there = {column["name"] for column in found.get_columns(table)}
        for column in columns:
            if column.name not in there:
                op.add_column(table, column)


def downgrade() -> None:
    """Drop them; what was hidden stays hidden, what was tagged is left to the bucket's rule."""
    for table, columns in _new().items():
        for column in columns:
            op.drop_column(table, column.name)
