"""Runs our commands in this process, and reads what they print."""

from __future__ import annotations

import functools
import gc as collector
import json
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from click.testing import CliRunner
from sqlalchemy.schema import CreateIndex, CreateTable

from mlflow_artifact_gc import schema, tables
from mlflow_artifact_gc.cli import main
from tests.site import Site

NOW = ("--older-than", "0s", "--min-object-age", "0s")
"""Everything that is deleted is due, and nothing is too young: tests cannot wait."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document that --format json printed."""
        return json.loads(self.out)


def run(*arguments: str, answer: str | None = None) -> Ran:
    """Run ``mlflow-artifact-gc`` with ``arguments``."""
    try:
        result = CliRunner().invoke(main, list(arguments), input=answer, catch_exceptions=False)
    finally:
        collector.unfreeze()  # A command freezes what it imported, and here everything else that there is beside it.
    return Ran(code=result.exit_code, out=result.stdout, err=result.stderr)


def make_tables(uri: str) -> None:
    """Makes our tables at once, where there are none: the migrations make the same (test_schema.py), one by one."""
    engine = sa.create_engine(uri)
    try:
        with engine.begin() as connection:
            absent = schema.state(connection) is schema.SchemaState.ABSENT
            if absent and sa.inspect(connection).has_table("experiments"):
                for statement in _statements(connection.dialect):
                    connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


@functools.cache
def _statements(dialect: sa.Dialect) -> list[str]:
    """What makes our tables: of each dialect compiled once (see ``_one_compilation``)."""
    found = [f"CREATE TABLE {tables.VERSION_TABLE} (version_num VARCHAR(32) NOT NULL)"]
    for table in tables.metadata.sorted_tables:
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        made: list[CreateTable | CreateIndex] = [CreateTable(table), *map(CreateIndex, indexes)]
        found += [str(one.compile(dialect=dialect)) for one in made]
    found += [
        f"INSERT INTO {tables.VERSION_TABLE} (version_num) VALUES ('{schema.head()}')",
        f"INSERT INTO {tables.lease.name} (id, until_ms) VALUES (1, 0)",
    ]
    return found


def init(site: Site, *arguments: str) -> Ran:
    """Opt in, with the registry in the same database and the destination that the site has."""
    make_tables(site.uri)
    stores = ["--backend-store-uri", site.uri, "--registry-store-uri", site.registry_uri or site.uri]
    if site.destination:
        stores += ["--artifacts-destination", site.destination]
    ran = run("init", *stores, *arguments)
    assert ran.code == 0, ran.err
    return ran


def gc(site: Site, *arguments: str, expect: int = 0) -> Any:
    """``gc --yes --format json`` on the site with no grace; the report, which must end with ``expect``."""
    stores = ["--backend-store-uri", site.uri]
    if site.registry_uri and site.registry_uri != site.uri:
        stores += ["--registry-store-uri", site.registry_uri]
    ran = run("gc", *stores, "--yes", "--format", "json", *NOW, *arguments)
    assert ran.code == expect, f"{ran.code}: {ran.err}\n{ran.out}"
    return ran.json


def outcomes(report: Any) -> dict[str, str]:
    """What became of each entity that was to be swept."""
    return {result["id"]: result["outcome"] for result in report["results"]}


def reasons(report: Any) -> dict[str, str]:
    """The plan's reason for each entity."""
    return {line["id"]: line["reason"] for line in report["plan"]["decisions"]}


def evidence(report: Any, entity: str) -> str:
    """What the plan names as the evidence for an entity's reason."""
    return next(str(line["evidence"]) for line in report["plan"]["decisions"] if line["id"] == entity)
