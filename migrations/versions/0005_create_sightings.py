"""When orphans were seen, and what they held; whether an intent was swept as one; whose a root is by a person's word.

Written out, not taken from ``tables.metadata``: that moves on, and a revision stays what it was. On MySQL each
statement commits by itself: what is there already was made by an upgrade that was interrupted.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_EXACT: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    """Add two columns and make one table."""
    found = sa.inspect(op.get_bind())
    if "provenance" not in {column["name"] for column in found.get_columns("artifact_gc_intents")}:
        op.add_column("artifact_gc_intents", sa.Column("provenance", sa.String(16)))
    if "owned_ms" not in {column["name"] for column in found.get_columns("artifact_gc_roots")}:
        op.add_column("artifact_gc_roots", sa.Column("owned_ms", sa.BigInteger))
    if found.has_table("artifact_gc_sightings"):
        return
    op.create_table(
        "artifact_gc_sightings",
        sa.Column("location_sha256", sa.String(64), nullable=False),
        sa.Column("bucket", sa.String(255), nullable=False),
        sa.Column("prefix", sa.String(2048), nullable=False),
        sa.Column("first_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("newest_ms", sa.BigInteger, nullable=False),
        sa.Column("objects", sa.BigInteger, nullable=False),
        sa.Column("versions", sa.BigInteger, nullable=False),
        sa.Column("markers", sa.BigInteger, nullable=False),
        sa.Column("uploads", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("location_sha256", name="artifact_gc_sightings_pk"),
        **_EXACT,
    )


def downgrade() -> None:
    """Drop them: the next sighting of an orphan is its first."""
    op.drop_table("artifact_gc_sightings")
    op.drop_column("artifact_gc_intents", "provenance")
    op.drop_column("artifact_gc_roots", "owned_ms")
