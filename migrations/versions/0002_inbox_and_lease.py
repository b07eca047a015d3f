"""What the hook and the worker need: inbox, lease, and when the worker looks at an intent again.

Written out, not taken from ``tables.metadata``: that moves on, and a revision stays what it was.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make two tables, give the lease its one row, and add a column to the intents."""
    _create_inbox()
    _create_lease()
    op.add_column("artifact_gc_intents", sa.Column("look_ms", sa.BigInteger))
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
    )


def _create_lease() -> None:
    lease = op.create_table(
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
    )
    op.bulk_insert(lease, [{"id": 1, "until_ms": 0}])
