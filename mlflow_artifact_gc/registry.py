"""Reads the model registry: what its versions point at, and where what names one of them leads. Never writes.

There may be a million versions, nearly all of which point at what nobody is about to touch. They are read as a stream,
and kept are what matters and the versions of those names that some text leads to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from mlflow_artifact_gc import database
from mlflow_artifact_gc.columns import ROWS_AT_ONCE, Columns, in_chunks
from mlflow_artifact_gc.errors import ArtifactGcError, ReferencesIncomplete
from mlflow_artifact_gc.keeping import KEEP, Hold, kept_by_tag
from mlflow_artifact_gc.locations import DEFAULT_WORKSPACE
from mlflow_artifact_gc.model import Reference
from mlflow_artifact_gc.protection import Sieve, readings

VERSION: Final = ("workspace", "name", "version", "current_stage", "source", "storage_location")
"""What of a model version tells where it points."""
_FEW_NAMES: Final = 500
_DELETED_VERSION: Final = "Deleted_Internal"
"""The stage of a deleted model version; its storage_location stays in place (mlflow's model_registry store)."""
_TABLES: Final = (
    "model_versions",
    "registered_models",
    "registered_model_aliases",
    "registered_model_tags",
    "model_version_tags",
)


class _Version(NamedTuple):
    workspace: str
    name: str
    version: int
    deleted: bool
    texts: Sequence[tuple[str, str]]
    """(column, text) of ``source`` and ``storage_location``."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.workspace, self.name, int(self.version)


@dataclass(kw_only=True)
class Registered:
    """What was read of a registry; it is asked without its database."""

    references: list[Reference] = field(default_factory=list)
    """What its versions protect, as far as it matters."""
    of_runs: list[Reference] = field(default_factory=list)
    """What they name by a run, whether it matters or not: logged models may be meant."""
    models: set[tuple[str, str]] = field(default_factory=set)
    """Workspace and name of each registered model."""
    names: frozenset[str] = frozenset()
    """Every name that a version has, or may have."""
    versions: Mapping[str, Sequence[_Version]] = field(default_factory=dict)
    """Those of some of the names."""
    lacking: set[str] = field(default_factory=set)
    """Names that were asked for, and whose versions were not read: what was answered is not complete."""

    def sift(self, reference: Reference, sieve: Sieve | None) -> None:
        """Keep one, if it matters; and if it names a run."""
        if sieve is None or sieve.matters(reference):
            self.references.append(reference)
        if names_a_run(reference.text):
            self.of_runs.append(reference)

    def held(self, hold: Hold) -> list[Reference]:
        """What a hold on a registered model protects: what its versions point at, deleted ones too.

        Raises:
            ReferencesIncomplete: it has another name by now, or is gone: what it kept is not known.
        """
        if not any(name == hold.target and hold.workspace in (None, of) for of, name in self.models):
            where = f" in workspace {hold.workspace}" if hold.workspace else ""
            raise ReferencesIncomplete(
                f"What {hold.holder} keeps is not known: there is no registered model {hold.target}{where} any more. "
                f"If it was renamed, put a hold on its new name; then run 'mlflow-artifact-gc hold rm {hold.id}'"
            )
        versions = [version for version in self._named(hold.target) if hold.workspace in (None, version.workspace)]
        return [one for version in versions for one in self.pointed_at(version, hold.holder)]

    def pointed_at(self, version: _Version, holder: str) -> Iterator[Reference]:
        """What a version points at, chains followed."""
        for column, text in version.texts:
            reference = Reference(holder=f"{holder}, {column}", text=text, workspace=version.workspace)
            yield reference
            yield from self.led_to(reference)

    def led_to(self, reference: Reference) -> Iterator[Reference]:
        """What it leads to through other versions."""
        for further in self.follow(reference.text):
            yield replace(reference, holder=f"{reference.holder} {reference.text}", text=further)

    def follow(self, text: str) -> set[str]:
        """What a ``models:/name/version``, ``models:/name@alias`` or ``models:/name`` leads to, through any chain.

        Wide: an alias, a stage or ``latest`` stands for every version of the name, and a deleted version in the middle
        of a chain still leads on, because its storage_location stays in place.
        """
        found: set[str] = set()
        waiting = [text]
        while waiting:
            for version in self._meant_by(waiting.pop()):
                fresh = {further for _, further in version.texts} - found
                found |= fresh
                waiting += fresh
        return found

    def _meant_by(self, text: str) -> list[_Version]:
        return [
            version
            for name, number in names_in(text)
            for version in self._named(name)
            if number is None or version.version == number
        ]

    def _named(self, name: str) -> Sequence[_Version]:
        if name in self.names and name not in self.versions:
            self.lacking.add(name)
        return self.versions.get(name, ())


class Registry:
    """The model registry's database, read over one connection: every workspace, every version that is not deleted."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._columns = Columns.probe(connection, *_TABLES)
        if not self._columns.has("model_versions", "name", "version", "source", "current_stage"):
            raise ReferencesIncomplete(
                f"{database.display(connection.engine.url)} holds no model registry of MLflow's: give the URI that the "
                "server uses with --registry-store-uri"
            )

    @property
    def empty(self) -> bool:
        """Whether it holds no model version, not even a deleted one."""
        first = sa.select(self._columns.table("model_versions").c.version).limit(1)
        return self._connection.execute(first).first() is None

    def read(self, sieve: Sieve | None = None, names: Collection[str] | None = None) -> Registered:
        """What versions that are not deleted point at, by each of their two columns, chains followed.

        And what each version, deleted ones too, points at that a keep tag keeps.

        Args:
            sieve: of what does not matter to it no more is kept than that it names a run.
            names: the versions of these are kept for whoever asks later; None: all are.
        """
        models = self._models()
        found = Registered(models=models, names=frozenset(self._names() | {name for _, name in models}))
        kept = list(self._keep_tags())
        wanted = set(found.names if names is None else names) | {name for _, _, name, _ in kept}
        leading: list[Reference] = []
        for reference, leads_to in self._pointed_at(found.names, sieve):
            found.sift(reference, sieve)
            if leads_to:
                wanted |= leads_to
                leading.append(reference)
        found.versions = self._versions(wanted & found.names, found.names)
        for reference in leading:
            for further in found.led_to(reference):
                found.sift(further, sieve)
        for holder, workspace, name, number in kept:
            for version in found.versions.get(name, ()):
                if version.workspace == workspace and number in (None, version.version):
                    for reference in found.pointed_at(version, holder):
                        found.sift(reference, sieve)
        return found

    def _pointed_at(self, every: Collection[str], sieve: Sieve | None) -> Iterator[tuple[Reference, set[str]]]:
        """What versions that are not deleted point at, and the names that it leads to, but for what is beside."""
        aliases = self._aliases()
        for version in self._rows():
            for column, text in () if version.deleted else version.texts:
                # As nearly all are: of these not even the sentence is made that says whose they are.
                beside = sieve is not None and sieve.is_beside(text)
                if beside and text.startswith("s3://"):
                    continue
                leads_to = {name for name, _ in names_in(text) if name in every}
                if beside and not leads_to and not names_a_run(text):
                    continue
                alias = aliases.get(version.key, "")
                holder = f"registered model {version.name}, version {version.version}{alias}, {column}"
                yield Reference(holder=holder, text=text, workspace=version.workspace), leads_to

    def _versions(self, names: Collection[str], every: Collection[str]) -> dict[str, list[_Version]]:
        """The versions of these names, deleted ones too, and of those that their texts lead to."""
        found: dict[str, list[_Version]] = {}
        waiting = set(names)
        while waiting:
            found |= {name: [] for name in sorted(waiting)}
            # Without an index on the name each query reads the whole table: for many names, all of it is taken.
            for version in self._rows(sorted(waiting) if len(waiting) <= _FEW_NAMES else None):
                # MySQL's collations know no case, and it may answer with more than was asked for.
                if version.name in waiting:
                    found[version.name].append(version)
            texts = (text for name in waiting for version in found[name] for _, text in version.texts)
            waiting = {name for text in texts for name, _ in names_in(text) if name in every} - found.keys()
        return found

    def _rows(self, names: Sequence[str] | None = None) -> Iterator[_Version]:
        table = self._columns.table("model_versions")
        places = [name for name in ("storage_location", "source") if self._columns.has("model_versions", name)]
        columns = (table.c.name, table.c.version, table.c.current_stage, *(table.c[name] for name in places))
        query = sa.select(self._workspace("model_versions"), *columns)
        if names is not None:
            query = query.where(table.c.name.in_(names))
        rows = self._connection.execute(query.execution_options(yield_per=ROWS_AT_ONCE))
        for of_workspace, name, version, stage, *texts in rows:
            named = [(column, text) for column, text in zip(places, texts, strict=True) if text]
            yield _Version(of_workspace, name, version, stage == _DELETED_VERSION, named)

    def _workspace(self, table: str) -> sa.ColumnElement[Any]:
        return sa.column("workspace") if self._columns.has(table, "workspace") else sa.literal(DEFAULT_WORKSPACE)

    def _names(self) -> set[str]:
        """Those of versions, byte by byte."""
        name = self._columns.table("model_versions").c.name
        exact = database.exactly(name, self._connection)
        return set(self._connection.execute(sa.select(sa.func.max(name)).group_by(exact)).scalars())

    def _models(self) -> set[tuple[str, str]]:
        """Workspace and name of each registered model."""
        table = self._columns.table("registered_models")
        rows = self._connection.execute(sa.select(self._workspace("registered_models"), table.c.name))
        return {(of_workspace, name) for of_workspace, name in rows}

    def _aliases(self) -> dict[tuple[str, str, int], str]:
        """Of each version that has any: how they are written behind it."""
        found: defaultdict[tuple[str, str, int], list[str]] = defaultdict(list)
        if self._columns.has("registered_model_aliases"):
            table = self._columns.table("registered_model_aliases")
            workspace = self._workspace("registered_model_aliases")
            query = sa.select(workspace, table.c.name, table.c.version, table.c.alias)
            for of_workspace, name, version, alias in self._connection.execute(query):
                found[of_workspace, name, int(version)].append(alias)
        return {key: "".join(f" (@{alias})" for alias in sorted(aliases)) for key, aliases in found.items()}

    def _keep_tags(self) -> Iterator[tuple[str, str, str, int | None]]:
        """Who keeps versions, deleted or not, and which: holder, workspace, name, number; None: all of the model."""
        now_ms = database.clock_ms(self._connection)
        for name, numbered in (("registered_model_tags", False), ("model_version_tags", True)):
            if not self._columns.has(name):
                continue
            table = self._columns.table(name)
            number = table.c.version if numbered else sa.null()
            query = sa.select(self._workspace(name), table.c.name, number, table.c.value).where(table.c.key == KEEP)
            for of_workspace, of_name, of_number, value in self._connection.execute(query):
                of = f"registered model {of_name}" + ("" if of_number is None else f", version {of_number}")
                if holder := kept_by_tag(of, value, now_ms):
                    yield holder, of_workspace, of_name, of_number


def names_a_run(text: str) -> bool:
    """Whether it is a ``runs:`` URI."""
    return text.strip()[:5].lower() == "runs:"


def names_in(text: str) -> Collection[tuple[str, int | None]]:
    """The registered models that a text may name, and the version if it names one by number."""
    # Perhaps encoded; anything else leads nowhere, and most do.
    if text.lstrip()[:1] not in ("m", "M", "%"):
        return ()
    # MLflow decodes nothing here, other readers may: both names are meant.
    named = dict.fromkeys(map(_model_name, readings(text)))
    return [one for one in named if one is not None]


def _model_name(text: str) -> tuple[str, int | None] | None:
    """The registered model that a ``models:`` URI names, and its version if it names one by number."""
    scheme, _, rest = text.strip().partition(":")
    if scheme.lower() != "models":
        return None
    path = rest.partition("?")[0].lstrip("/")
    name, _, suffix = path.partition("/")
    if not suffix and "@" in name:
        return name.rpartition("@")[0], None
    number = suffix.partition("/")[0]
    return name, int(number) if number.isdigit() else None


def state(engine: Engine) -> tuple[object, ...]:
    """What changes whenever a model version is made or changed in a registry; one query.

    Raises:
        ReferencesIncomplete: it cannot be read.
    """
    versions = sa.table(
        "model_versions", sa.column("version"), sa.column("creation_time"), sa.column("last_updated_time")
    )
    found = (sa.func.count(), sa.func.max(versions.c.creation_time), sa.func.max(versions.c.last_updated_time))
    try:
        with database.reading(engine) as connection:
            return tuple(connection.execute(sa.select(*found).select_from(versions)).one())
    except ArtifactGcError as error:
        raise ReferencesIncomplete(f"The model registry cannot be read any more: {error}") from error


def registered_models(connection: Connection, names: Sequence[str]) -> set[tuple[str, str]]:
    """Workspace and name of those registered models that have one of these names, byte by byte."""
    columns = Columns.probe(connection, "registered_models")
    table = columns.table("registered_models")
    workspace = table.c.workspace if columns.has("registered_models", "workspace") else sa.literal(DEFAULT_WORKSPACE)
    found = {
        (of_workspace, name)
        for some in in_chunks(names)
        for of_workspace, name in connection.execute(sa.select(workspace, table.c.name).where(table.c.name.in_(some)))
    }
    return {one for one in found if one[1] in names}
