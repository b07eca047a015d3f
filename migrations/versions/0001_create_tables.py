"""Create the tables: site, roots, intents, plans.

Written out, not taken from ``tables.metadata``: that moves on, and a revision stays what it was. On MySQL each
statement commits by itself: what is there already was made by an upgrade that was interrupted.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_EXACT: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    """Make the four tables."""
    there = set(sa.inspect(op.get_bind()).get_table_names())
    for name, create in (
        ("artifact_gc_site", _create_site),
        ("artifact_gc_roots", _create_roots),
        ("artifact_gc_intents", _create_intents),
        ("artifact_gc_plans", _create_plans),
    ):
        if name not in there:
            create()
    indexed = {index["name"] for index in sa.inspect(op.get_bind()).get_indexes("artifact_gc_intents")}
    for name, columns in (
        ("artifact_gc_intents_state", ["state", "deleted_ms"]),
        ("artifact_gc_intents_entity", ["entity_kind", "entity_id"]),
    ):
        if name not in indexed:
            op.create_index(name, "artifact_gc_intents", columns)


def downgrade() -> None:
    """Drop them, and with them every record of what was swept."""
    op.drop_table("artifact_gc_plans")
    op.drop_index("artifact_gc_intents_entity", table_name="artifact_gc_intents")
    op.drop_index("artifact_gc_intents_state", table_name="artifact_gc_intents")
    op.drop_table("artifact_gc_intents")
    op.drop_table("artifact_gc_roots")
    op.drop_table("artifact_gc_site")


def _create_site() -> None:
    op.create_table(
        "artifact_gc_site",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("database_id", sa.String(36), nullable=False),
        sa.Column("database_fingerprint", sa.String(255), nullable=False),
        sa.Column("switched_on_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("grace_ms", sa.BigInteger, nullable=False),
        sa.Column("min_object_age_ms", sa.BigInteger, nullable=False),
        sa.Column("orphan_quarantine_ms", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(16)),
        sa.Column("models", sa.String(16), nullable=False),
        sa.Column("artifacts_destination", sa.String(2048)),
        sa.Column("registry_fingerprint", sa.String(255)),
        sa.PrimaryKeyConstraint("id", name="artifact_gc_site_pk"),
        sa.CheckConstraint("id = 1", name="artifact_gc_site_one_row"),
        sa.CheckConstraint("action IN ('purge', 'hide', 'tag')", name="artifact_gc_site_action"),
        sa.CheckConstraint("models IN ('keep', 'follow-run')", name="artifact_gc_site_models"),
        **_EXACT,
    )


def _create_roots() -> None:
    op.create_table(
        "artifact_gc_roots",
        sa.Column("uri_sha256", sa.String(64), nullable=False),
        sa.Column("uri", sa.String(2048), nullable=False),
        sa.Column("source", sa.String(32), nullable=False),
        sa.Column("endpoint", sa.String(255), nullable=False),
        sa.Column("first_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("marker_epoch", sa.BigInteger, nullable=False),
        sa.Column("proven_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("uri_sha256", name="artifact_gc_roots_pk"),
        sa.CheckConstraint("source IN ('experiments', 'destination')", name="artifact_gc_roots_source"),
        **_EXACT,
    )


def _create_intents() -> None:
    op.create_table(
        "artifact_gc_intents",
        # SQLite counts up by itself only where the type is INTEGER.
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False, autoincrement=True),
        sa.Column("location_sha256", sa.String(64), nullable=False),
        sa.Column("bucket", sa.String(255), nullable=False),
        sa.Column("prefix", sa.String(2048), nullable=False),
        sa.Column("entity_kind", sa.String(16), nullable=False),
        sa.Column("entity_id", sa.String(255), nullable=False),
        sa.Column("experiment_id", sa.String(32), nullable=False),
        sa.Column("workspace", sa.String(255), nullable=False),
        sa.Column("uri", sa.String(2048), nullable=False),
        sa.Column("deleted_ms", sa.BigInteger),
        sa.Column("first_seen_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("state_ms", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("claimed_by", sa.String(255)),
        sa.Column("claimed_until_ms", sa.BigInteger),
        sa.Column("plan_id", sa.String(36)),
        sa.Column("swept_ms", sa.BigInteger),
        sa.Column("detail", sa.Text),
        sa.Column("deleted_objects", sa.BigInteger, nullable=False),
        sa.Column("deleted_versions", sa.BigInteger, nullable=False),
        sa.Column("deleted_markers", sa.BigInteger, nullable=False),
        sa.Column("deleted_bytes", sa.BigInteger, nullable=False),
        sa.Column("aborted_uploads", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="artifact_gc_intents_pk"),
        sa.UniqueConstraint("location_sha256", name="artifact_gc_intents_location"),
        sa.CheckConstraint(
            "state IN ('pending', 'claimed', 'sweeping', 'waiting', 'swept', 'closed', 'cancelled', 'failed')",
            name="artifact_gc_intents_state_known",
        ),
        sa.CheckConstraint("entity_kind IN ('run', 'logged_model', 'trace')", name="artifact_gc_intents_kind"),
        **_EXACT,
    )


def _create_plans() -> None:
    op.create_table(
        "artifact_gc_plans",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("finished_ms", sa.BigInteger),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("cutoff_ms", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("limits", sa.Text, nullable=False),
        sa.Column("unsafe", sa.Text, nullable=False),
        sa.Column("due", sa.Integer, nullable=False),
        sa.Column("outcomes", sa.Text),
        sa.PrimaryKeyConstraint("id", name="artifact_gc_plans_pk"),
        **_EXACT,
    )
