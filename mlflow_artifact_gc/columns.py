"""What this version of MLflow has in its tables: columns are probed, MLflow's version is not asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from mlflow_artifact_gc import database
from mlflow_artifact_gc.errors import ReferencesIncomplete

ROWS_AT_ONCE: Final = 5_000
"""Of a large table so many rows are fetched at a time: a driver's own default is all of them."""
_IN_LIMIT: Final = 500
_T = TypeVar("_T")

_NEEDED: Final = {
    "logged_models": (
        "model_id",
        "experiment_id",
        "artifact_location",
        "lifecycle_stage",
        "source_run_id",
        "last_updated_timestamp_ms",
    ),
    "trace_info": ("request_id", "experiment_id"),
    "trace_tags": ("request_id", "key", "value"),
    "datasets": ("dataset_uuid", "name", "dataset_source"),
    "inputs": ("source_type", "source_id", "destination_type", "destination_id"),
    "tags": ("run_uuid", "key", "value"),
    "experiment_tags": ("experiment_id", "key", "value"),
    "logged_model_tags": ("model_id", "tag_key", "tag_value"),
    "trace_request_metadata": ("request_id", "key", "value"),
    "entity_associations": ("source_type", "source_id", "destination_type", "destination_id"),
    "model_versions": ("name", "version", "source", "current_stage"),
    "registered_models": ("name",),
    "registered_model_aliases": ("name", "version", "alias"),
    "registered_model_tags": ("name", "key", "value"),
    "model_version_tags": ("name", "version", "key", "value"),
}
"""What every MLflow that has the table has in it."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What this version of MLflow has, probed once."""

    tables: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def probe(cls, connection: Connection, *names: str) -> Columns:
        found = database.columns(connection, *names)
        lacking = [
            f"{name}.{column}"
            for name in names
            for column in _NEEDED.get(name, ())
            if found[name] and column not in found[name]
        ]
        if lacking:
            raise ReferencesIncomplete(
                f"MLflow's tables in {database.display(connection.engine.url)} lack {', '.join(lacking)}, so what "
                "needs which artifacts is not known and nothing was touched: run 'mlflow db upgrade' with its URI"
            )
        return cls(found)

    def has(self, table: str, *columns: str) -> bool:
        return set(columns) <= self.tables[table] if columns else bool(self.tables[table])

    def table(self, name: str) -> sa.TableClause:
        return sa.table(name, *(sa.column(column) for column in sorted(self.tables[name])))


def in_chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """As many at a time as an ``IN`` takes."""
    for start in range(0, len(values), _IN_LIMIT):
        yield values[start : start + _IN_LIMIT]


def one_text(text: Any) -> Any:  # noqa: ANN401 - what the database has in a column
    """The same object for the same text, which a million rows share."""
    return intern(text) if type(text) is str else text
