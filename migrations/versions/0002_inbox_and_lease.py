"""What the hook and the worker need: inbox, lease, and when the worker looks at an intent again.

Written out, not taken from ``tables.metadata``: that moves on, and a revision stays what it was. On MySQL each
statement commits by itself: what is there already was made by an upgrade that was interrupted.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_EXACT: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    """Make two tables, give the lease its one row, and add a column to the intents."""
    found = sa.inspect(op.get_bind())
    there = set(found.get_table_names())
    if "artifact_gc_inbox" not in there:
        _create_inbox()
    if "artifact_gc_lease" not in there:
        _create_lease()
    lease = sa.table("artifact_gc_lease", sa.column("id"), sa.column("until_ms"))
    if op.get_bind().execute(sa.select(lease.c.id)).first() is None:
        op.bulk_insert(lease, [{"id": 1, "until_ms": 0}])
    if "look_ms" not in {column["name"] for column in found.get_columns("artifact_gc_intents")}:
        op.add_column("artifact_gc_intents", sa.Column("look_ms", sa.BigInteger))
    if "artifact_gc_intents_look" not in {index["name"] for index in found.get_indexes("artifact_gc_intents")}:
        op.create_index("artifact_gc_intents_look", "artifact_gc_intents", ["state", "look_ms"])


def downgrade() -> None:
    """Drop them; what waits in the inbox is found again by a scan of MLflow's rows."""
    op.drop_index("artifact_gc_intents_look", table_name="artifact_gc_intents")
    op.drop_column("artifact_gc_intents", "look_ms")
    op.drop_table("artifact_gc_lease")
    op.drop_table("artifact_gc_inbox")


def _create_inbox() -> None:
    op.create_table(
        "artifact_gc_inbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("entity_kind", sa.String(32), nullable=False),
        sa.Column("entity_id", sa.String(512), nullable=False),
        sa.Column("experiment_id", sa.String(32)),
        sa.Column("workspace", sa.String(255)),
        sa.Column("uri", sa.Text),
        sa.Column("deleted_ms", sa.BigInteger),
        sa.Column("recorded_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="artifact_gc_inbox_pk"),
        sa.CheckConstraint(
            "event IN ('deleted', 'restored', 'hard-deleted', 'registered', 'server')", name="artifact_gc_inbox_event"
        ),
        sqlite_autoincrement=True,
        **_EXACT,
    )


def _create_lease() -> None:
    op.create_table(
        "artifact_gc_lease",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.Column("seen_ms", sa.BigInteger),
        sa.Column("refused", sa.Text),
        sa.Column("refused_ms", sa.BigInteger),
        sa.Column("parked", sa.Text),
        sa.Column("parked_ms", sa.BigInteger),
        sa.Column("kept_objects", sa.BigInteger),
        sa.Column("kept_bytes", sa.BigInteger),
        sa.Column("kept_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="artifact_gc_lease_pk"),
        sa.CheckConstraint("id = 1", name="artifact_gc_lease_one_row"),
        **_EXACT,
    )
