"""Our tables in MLflow's database: declared here, made by ``migrations/``; each is written by one or two rooms alone.

Their own ``MetaData`` (on MLflow's they would fail its start-up check) and no foreign keys (they break ``mlflow gc``
and ``mlflow db upgrade``). Portable: strings with CHECK, milliseconds in BigInteger, every constraint named; long
texts are unique by their SHA-256, because MySQL cannot index them whole. There every table is told to compare byte by
byte: by default ``s3://b/Data`` and ``s3://b/data`` would be one.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

VERSION_TABLE: Final = "artifact_gc_alembic_version"
metadata = MetaData()

_Id = BigInteger().with_variant(Integer, "sqlite")
_URI = 2048
_LABEL = 255
_EXACT: Final[dict[str, Any]] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def _one_of(column: str, name: str, *values: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


site = Table(
    "artifact_gc_site",
    metadata,
    # One row: the settings hold for every process of the site, whatever its environment says.
    Column("id", Integer, nullable=False, autoincrement=False),
    Column("database_id", String(36), nullable=False),
    # Of the database server itself: a clone has the same database_id and another fingerprint.
    Column("database_fingerprint", String(_LABEL), nullable=False),
    Column("switched_on_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("grace_ms", BigInteger, nullable=False),
    Column("min_object_age_ms", BigInteger, nullable=False),
    Column("orphan_quarantine_ms", BigInteger, nullable=False),
    # NULL: never told. A worker must not purge versioned buckets then.
    Column("action", String(16)),
    Column("models", String(16), nullable=False),
    Column("artifacts_destination", String(_URI)),
    # NULL: this database, as long as it holds model versions; else not known.
    Column("registry_fingerprint", String(_LABEL)),
    # key=value; NULL: the default. Which objects the buckets' lifecycle rules remove.
    Column("expiry_tag", String(512)),
    # What becomes of an object that has ten tags already: leave or purge.
    Column("full_tag_sets", String(16), nullable=False, server_default="leave"),
    PrimaryKeyConstraint("id", name="artifact_gc_site_pk"),
    CheckConstraint("id = 1", name="artifact_gc_site_one_row"),
    _one_of("action", "artifact_gc_site_action", "purge", "hide", "tag"),
    _one_of("models", "artifact_gc_site_models", "keep", "follow-run"),
    **_EXACT,
)

roots = Table(
    "artifact_gc_roots",
    metadata,
    Column("uri_sha256", String(64), nullable=False),
    Column("uri", String(_URI), nullable=False),
    Column("source", String(32), nullable=False),
    Column("endpoint", String(_LABEL), nullable=False),
    Column("first_seen_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, nullable=False),
    # Raised and committed here before it is put into the marker object.
    Column("epoch", BigInteger, nullable=False),
    # The last epoch that is known to have reached the marker object; 0: none.
    Column("marker_epoch", BigInteger, nullable=False),
    # When an object of a row of this database was found under the root.
    Column("proven_ms", BigInteger),
    # When a person said that nobody else keeps artifacts there, so that what has no row may be an orphan.
    Column("owned_ms", BigInteger),
    PrimaryKeyConstraint("uri_sha256", name="artifact_gc_roots_pk"),
    _one_of("source", "artifact_gc_roots_source", "experiments", "destination"),
    **_EXACT,
)

intents = Table(
    "artifact_gc_intents",
    metadata,
    Column("id", _Id, nullable=False, autoincrement=True),
    Column("location_sha256", String(64), nullable=False),
    Column("bucket", String(_LABEL), nullable=False),
    Column("prefix", String(_URI), nullable=False),
    Column("entity_kind", String(16), nullable=False),
    Column("entity_id", String(_LABEL), nullable=False),
    Column("experiment_id", String(32), nullable=False),
    Column("workspace", String(_LABEL), nullable=False),
    Column("uri", String(_URI), nullable=False),
    # MLflow's date; NULL where its row has none.
    Column("deleted_ms", BigInteger),
    Column("first_seen_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("state_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("claimed_by", String(_LABEL)),
    Column("claimed_until_ms", BigInteger),
    Column("plan_id", String(36)),
    Column("swept_ms", BigInteger),
    Column("detail", Text),
    # What left the bucket, over all attempts.
    Column("deleted_objects", BigInteger, nullable=False),
    Column("deleted_versions", BigInteger, nullable=False),
    Column("deleted_markers", BigInteger, nullable=False),
    Column("deleted_bytes", BigInteger, nullable=False),
    Column("aborted_uploads", BigInteger, nullable=False),
    # When the worker looks at it again; NULL: it leaves it to an administrator's `gc`.
    Column("look_ms", BigInteger),
    # What the sweep under way, or the last one, does; NULL: none was begun.
    Column("action", String(16)),
    # Of hide and tag: since when something in it may be hidden or tagged, by the database's clock. NULL: nothing is.
    Column("acted_from_ms", BigInteger),
    # Of hide: when the last of our delete markers was written, by S3's clock; NULL: not known, the sweep was killed.
    Column("acted_until_ms", BigInteger),
    Column("acted_plan_id", String(36)),
    # Of hide: the delete markers that others had written shortly before (JSON: key and version id of each).
    Column("spared", Text),
    # What is hidden or tagged, and waits for the bucket's lifecycle rule.
    Column("waiting_objects", BigInteger, nullable=False, server_default="0"),
    Column("waiting_bytes", BigInteger, nullable=False, server_default="0"),
    # When somebody took a hide or tag back: nothing is done to it by itself until it is deleted again.
    Column("undone_ms", BigInteger),
    # Of what the last sweep of it took it for: orphan; NULL: a tombstone's location.
    Column("provenance", String(16)),
    PrimaryKeyConstraint("id", name="artifact_gc_intents_pk"),
    # One row per location: two processes that claim it meet in this row.
    UniqueConstraint("location_sha256", name="artifact_gc_intents_location"),
    Index("artifact_gc_intents_state", "state", "deleted_ms"),
    Index("artifact_gc_intents_entity", "entity_kind", "entity_id"),
    Index("artifact_gc_intents_look", "state", "look_ms"),
    _one_of(
        "state",
        "artifact_gc_intents_state_known",
        "pending",
        "claimed",
        "sweeping",
        "waiting",
        "swept",
        "closed",
        "cancelled",
        "failed",
    ),
    _one_of("entity_kind", "artifact_gc_intents_kind", "run", "logged_model", "trace"),
    **_EXACT,
)

plans = Table(
    "artifact_gc_plans",
    metadata,
    Column("id", String(36), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    # NULL long after started_ms: the process died.
    Column("finished_ms", BigInteger),
    Column("actor", String(_LABEL), nullable=False),
    Column("action", String(16), nullable=False),
    Column("cutoff_ms", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("limits", Text, nullable=False),
    # The --unsafe- switches that it was made with.
    Column("unsafe", Text, nullable=False),
    Column("due", Integer, nullable=False),
    Column("outcomes", Text),
    PrimaryKeyConstraint("id", name="artifact_gc_plans_pk"),
    **_EXACT,
)

inbox = Table(
    "artifact_gc_inbox",
    metadata,
    # Append-only: the hook writes it in MLflow's own transactions, the worker drains it.
    Column("id", _Id, nullable=False, autoincrement=True),
    Column("event", String(16), nullable=False),
    Column("entity_kind", String(32), nullable=False),
    Column("entity_id", String(512), nullable=False),
    Column("experiment_id", String(32)),
    Column("workspace", String(_LABEL)),
    # What a row that is gone for good pointed at; of a server, its artifacts destination.
    Column("uri", Text),
    # MLflow's date, which a client's clock may have set.
    Column("deleted_ms", BigInteger),
    # The database's clock.
    Column("recorded_ms", BigInteger, nullable=False),
    PrimaryKeyConstraint("id", name="artifact_gc_inbox_pk"),
    _one_of("event", "artifact_gc_inbox_event", "deleted", "restored", "hard-deleted", "registered", "server"),
    # No id twice: what drains a note must not meet a newer one under its id.
    sqlite_autoincrement=True,
    **_EXACT,
)

lease = Table(
    "artifact_gc_lease",
    metadata,
    # One row: the right to work, and what its holder has to say.
    Column("id", Integer, nullable=False, autoincrement=False),
    Column("owner", String(_LABEL)),
    Column("until_ms", BigInteger, nullable=False),
    # When a worker was last seen holding it.
    Column("seen_ms", BigInteger),
    # Why the last worker that asked was turned away.
    Column("refused", Text),
    Column("refused_ms", BigInteger),
    # The brake that holds back what is due, if one does.
    Column("parked", Text),
    Column("parked_ms", BigInteger),
    # What the logged models of deleted runs hold, when it was last measured.
    Column("kept_objects", BigInteger),
    Column("kept_bytes", BigInteger),
    Column("kept_ms", BigInteger),
    PrimaryKeyConstraint("id", name="artifact_gc_lease_pk"),
    CheckConstraint("id = 1", name="artifact_gc_lease_one_row"),
    **_EXACT,
)

holds = Table(
    "artifact_gc_holds",
    metadata,
    # Never deleted: what was released, or has run out, says who kept what, and why.
    Column("id", _Id, nullable=False, autoincrement=True),
    Column("kind", String(32), nullable=False),
    # An id, the name of a registered model, or a location's URI.
    Column("target", String(_URI), nullable=False),
    # NULL: in every workspace.
    Column("workspace", String(_LABEL)),
    Column("reason", Text, nullable=False),
    Column("author", String(_LABEL), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    # The first moment at which it does not hold any more; NULL: it holds for ever.
    Column("until_ms", BigInteger),
    Column("released_ms", BigInteger),
    Column("released_by", String(_LABEL)),
    PrimaryKeyConstraint("id", name="artifact_gc_holds_pk"),
    _one_of("kind", "artifact_gc_holds_kind", "run", "experiment", "logged_model", "registered_model", "location"),
    # No number twice: people speak of holds by their numbers.
    sqlite_autoincrement=True,
    **_EXACT,
)

sightings = Table(
    "artifact_gc_sightings",
    metadata,
    # Prefixes that no row accounted for when they were last listed; one that is no orphan any more has no row.
    Column("location_sha256", String(64), nullable=False),
    Column("bucket", String(_LABEL), nullable=False),
    Column("prefix", String(_URI), nullable=False),
    # When it was first seen with what it holds now, and last, by the database's clock.
    Column("first_seen_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, nullable=False),
    # What it held: whatever is newer, or more, begins the quarantine again.
    Column("newest_ms", BigInteger, nullable=False),
    Column("objects", BigInteger, nullable=False),
    Column("versions", BigInteger, nullable=False),
    Column("markers", BigInteger, nullable=False),
    Column("uploads", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("location_sha256", name="artifact_gc_sightings_pk"),
    **_EXACT,
)
