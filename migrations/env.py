"""What alembic runs: our migrations, on the connection that ``schema`` hands in, in that connection's transaction.

No ini file, no URL and no offline mode. MLflow's tables lie in the same database and are never looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import context

from mlflow_artifact_gc.tables import VERSION_TABLE, metadata

if TYPE_CHECKING:
    from sqlalchemy.schema import SchemaItem


def is_our_name(name: str | None, kind: str, _parents: object) -> bool:
    """Whether autogenerate may read it from the database at all: it would offer to drop every table of MLflow's."""
    return kind != "table" or name in metadata.tables


def is_our_object(_item: SchemaItem, name: str | None, kind: str, _reflected: bool, _other: SchemaItem | None) -> bool:  # noqa: FBT001 (alembic's signature)
    """The same for what was read: the version table is ours, and no table of the model's."""
    return kind != "table" or name in metadata.tables


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=is_our_name,
    include_object=is_our_object,
    compare_type=True,
    compare_server_default=True,
    # SQLite cannot alter a constraint: later migrations copy the table there.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
