"""What people keep by hand, with reason, author and end.

Written out, not taken from ``tables.metadata``: that moves on, and a revision stays what it was. On MySQL each
statement commits by itself: what is there already was made by an upgrade that was interrupted.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_EXACT: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    """Make one table."""
    if sa.inspect(op.get_bind()).has_table("artifact_gc_holds"):
        return
    op.create_table(
        "artifact_gc_holds",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("target", sa.String(2048), nullable=False),
        sa.Column("workspace", sa.String(255)),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("author", sa.String(255), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger),
        sa.Column("released_ms", sa.BigInteger),
        sa.Column("released_by", sa.String(255)),
        sa.PrimaryKeyConstraint("id", name="artifact_gc_holds_pk"),
        sa.CheckConstraint(
            "kind IN ('run', 'experiment', 'logged_model', 'registered_model', 'location')",
            name="artifact_gc_holds_kind",
        ),
        sqlite_autoincrement=True,
        **_EXACT,
    )


def downgrade() -> None:
    """Drop it, and with it everything that people wanted kept."""
    op.drop_table("artifact_gc_holds")
