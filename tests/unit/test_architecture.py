"""The rules of ``docs/design.md`` on who may import whom, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = "mlflow_artifact_gc"

LAYERS = (
    {"__init__", "errors", "expiry_tag", "locations", "model", "prices", "quantities"},
    {
        "layouts",
        "lifecycle",
        "policy",
        "protection",
        "keeping",
        "planning",
        "leftovers",
        "packed",
        "plan_files",
        "applying",
    },
    {
        "config",
        "tables",
        "schema",
        "database",
        "processes",
        "combining",
        "holds",
        "sightings",
        "columns",
        "registry",
        "references",
        "inbox",
        "journal",
        "agenda",
        "lease",
        "notices",
        "hides",
        "expiring",
        "metadata",
        "s3",
    },
    {
        "bucket_rules",
        "fence",
        "ownership",
        "surveying",
        "acting",
        "purging",
        "hiding",
        "tagging",
        "batching",
        "sweeping",
        "session",
        "kept",
        "partly",
        "restoring",
        "settling",
        "tallying",
        "inventory",
        "auditing",
        "orphans",
    },
    {"hook", "intake", "rounds", "worker", "collecting", "requested"},
    {"cli", "demo", "__main__"},
)
"""From the core outwards; a module imports its own layer and those before it. A new module gets its place here."""

LAYER_OF = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
PURE = LAYERS[0] | LAYERS[1]

S3_LIBRARIES = {"boto3", "botocore", "s3transfer", "mypy_boto3_s3", "types_boto3_s3", "types_aiobotocore_s3"}
EDGE_LIBRARIES = S3_LIBRARIES | {"sqlalchemy", "alembic", "mlflow"}
HEAVY_LIBRARIES = ("mlflow", "boto3", "botocore", "sqlalchemy", "alembic", "rich")

CLOCKS = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
STOPWATCHES = {"time": {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}}
ENVIRONMENT = {"os": {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, and whether the import of the importing module already executes it."""

    name: str
    line: int
    at_module_level: bool

    @property
    def library(self) -> str:
        return self.name.split(".")[0]

    @property
    def room(self) -> str | None:
        """Which of our rooms it is, if any."""
        head, *rest = self.name.split(".")
        if head != PACKAGE:
            return None
        return rest[0] if rest else "__init__"


@dataclass(frozen=True, kw_only=True)
class Module:
    """A source file of ours."""

    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        first = self.path.relative_to(CHECKOUT / PACKAGE).parts[0]
        return first.removesuffix(".py")

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(CHECKOUT)}:{line}"

    @property
    def imports(self) -> tuple[Import, ...]:
        return tuple(_imports(self.tree, at_module_level=True))

    def uses(self, names: dict[str, set[str]]) -> Iterator[str]:
        """Where it reaches for one of the names: as ``base.name`` or by importing ``name`` from ``base``."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute) and node.attr in names.get(_last_name(node.value), ()):
                yield self.at(node.lineno)
            if isinstance(node, ast.ImportFrom) and any(a.name in names.get(node.module or "", ()) for a in node.names):
                yield self.at(node.lineno)


def _last_name(node: ast.expr) -> str:
    """``datetime`` in ``datetime`` as in ``datetime.datetime`` or ``dt.datetime``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _imports(node: ast.AST, *, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for name in _imported_names(child):
            yield Import(name=name, line=getattr(child, "lineno", 0), at_module_level=at_module_level)
        inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_for_types_only(child)
        yield from _imports(child, at_module_level=at_module_level and not inner)


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"


def _imported_names(node: ast.AST) -> tuple[str, ...]:
    match node:
        case ast.Import(names=names):
            return tuple(alias.name for alias in names)
        case ast.ImportFrom(module=str(module), names=names) if module == PACKAGE:
            # "from mlflow_artifact_gc import errors": a room, unless it is a name of __init__.
            return tuple(f"{module}.{a.name}" if a.name in LAYER_OF else module for a in names)
        case ast.ImportFrom(module=str(module)):
            return (module,)
        case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if _last_name(function) in {
            "import_module",
            "__import__",
        }:
            return (name,)
        case _:
            return ()


def _modules() -> tuple[Module, ...]:
    paths = sorted((CHECKOUT / PACKAGE).rglob("*.py"))
    return tuple(Module(path=path, tree=ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


MODULES = _modules()


def _importers_of(libraries: set[str], rooms_allowed: set[str]) -> list[str]:
    return [
        f"{module.at(found.line)} imports {found.name}"
        for module in MODULES
        if module.room not in rooms_allowed
        for found in module.imports
        if found.library in libraries
    ]


def _users_of(names: dict[str, set[str]], rooms_allowed: set[str]) -> list[str]:
    return [place for module in MODULES if module.room not in rooms_allowed for place in module.uses(names)]


def test_every_module_has_its_layer() -> None:
    """A new module is put into the tree on purpose."""
    assert {module.room for module in MODULES} - LAYER_OF.keys() == set()


def test_imports_run_one_way() -> None:
    """No module imports one of a later layer, not even within a function or for types only."""
    wrong = [
        f"{module.at(found.line)} imports {found.name}"
        for module in MODULES
        for found in module.imports
        if found.room is not None and LAYER_OF.get(found.room, 0) > LAYER_OF.get(module.room, len(LAYERS))
    ]

    assert wrong == []


def test_no_room_imports_itself_over_another() -> None:
    """Within a layer too, no chain of imports comes back to where it began."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        graph[module.room] |= {found.room for found in module.imports if found.room} - {module.room}

    def reached_from(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = set(graph[start])
        while waiting:
            room = waiting.pop()
            seen.add(room)
            waiting |= graph[room] - seen
        return seen

    assert [room for room in tuple(graph) if room in reached_from(room)] == []


def test_the_pure_rooms_are_pure() -> None:
    """What decides imports no S3, no database and no MLflow, so that it can be tested by values alone."""
    assert _importers_of(EDGE_LIBRARIES, rooms_allowed={module.room for module in MODULES} - PURE) == []


def test_only_s3_speaks_to_s3() -> None:
    """boto3 and botocore stay in one room, where their answers become typed results; the demo makes its bucket."""
    assert _importers_of(S3_LIBRARIES, rooms_allowed={"s3", "demo"}) == []


def test_nothing_imports_mlflow() -> None:
    """An MLflow store would migrate a production schema unasked, and MLflow takes seconds: only in the hook."""
    assert _importers_of({"mlflow"}, rooms_allowed={"demo", "hook"}) == []


def test_not_even_the_demo_imports_mlflow_early() -> None:
    """Where MLflow is imported, it is when it is needed: by one module that has classes of MLflow's to extend."""
    early = [
        f"{module.at(found.line)} imports {found.name}"
        for module in MODULES
        for found in module.imports
        if found.library == "mlflow" and found.at_module_level and module.path.name != "artifacts.py"
    ]
    early += [
        f"{module.at(found.line)} imports it"
        for module in MODULES
        for found in module.imports
        if found.name.startswith("mlflow_artifact_gc.hook.artifacts") and found.at_module_level
    ]

    assert early == []


def test_only_config_reads_the_environment() -> None:
    """Settings come in one way (the demo builds its children's environments, the hook reads MLflow's own variables)."""
    assert _users_of(ENVIRONMENT, rooms_allowed={"config", "demo", "hook"}) == []


def test_only_the_edges_read_the_clock() -> None:
    """``now`` is an argument, and the dates that decide are the database's."""
    assert _users_of(CLOCKS, rooms_allowed={"cli", "demo"}) == []


def test_only_those_who_wait_hold_a_stopwatch() -> None:
    """A monotonic clock measures budgets and delays, and decides nothing else."""
    rooms = {"cli", "demo", "fence", "acting", "sweeping", "s3", "hook", "worker", "collecting"}
    assert _users_of(STOPWATCHES, rooms_allowed=rooms) == []


@pytest.mark.parametrize("start", [f"import {PACKAGE}.cli", f"import {PACKAGE}.__main__"])
def test_the_command_line_starts_light(start: str) -> None:
    """``--help`` and usage errors pay for none of the heavy libraries."""
    ask = f"{start}\nimport sys\nprint([name for name in {HEAVY_LIBRARIES!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False, cwd=CHECKOUT)

    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_schemas_state_is_asked_without_alembic() -> None:
    """Each command asks whether the tables are current; alembic would cost each a tenth of a second."""
    ask = f"from {PACKAGE} import schema\nimport sys\nprint('alembic' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False, cwd=CHECKOUT)

    assert (done.stdout, done.stderr) == ("False\n", "")


class TestTheRulesThemselves:
    """A rule that finds nothing may be a rule that looks at nothing."""

    @staticmethod
    def module(source: str, room: str = "planning") -> Module:
        return Module(path=CHECKOUT / PACKAGE / f"{room}.py", tree=ast.parse(source))

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("import boto3.session", ("boto3.session", True)),
            ("from sqlalchemy.orm import Session", ("sqlalchemy.orm", True)),
            ("def f():\n    import mlflow", ("mlflow", False)),
            ("if TYPE_CHECKING:\n    from alembic import op", ("alembic", False)),
            ("try:\n    import mlflow\nexcept ImportError: pass", ("mlflow", True)),
            ("m = importlib.import_module('mlflow.db')", ("mlflow.db", True)),
            (f"from {PACKAGE} import journal", (f"{PACKAGE}.journal", True)),
            (f"from {PACKAGE} import __version__", (PACKAGE, True)),
            (f"from {PACKAGE}.s3.listing import pages", (f"{PACKAGE}.s3.listing", True)),
        ],
    )
    def test_an_import_is_seen(self, source: str, expected: tuple[str, bool]) -> None:
        """Plain, nested, lazy, for types only, or by name."""
        (found,) = self.module(source).imports

        assert (found.name, found.at_module_level) == expected

    @pytest.mark.parametrize(
        ("source", "names"),
        [
            ("x = datetime.now(UTC)", CLOCKS),
            ("x = datetime.datetime.now()", CLOCKS),
            ("x = date.today()", CLOCKS),
            ("x = time.time()", CLOCKS),
            ("from time import time", CLOCKS),
            ("x = time.monotonic()", STOPWATCHES),
            ("x = os.environ['HOME']", ENVIRONMENT),
            ("x = os.getenv('HOME')", ENVIRONMENT),
            ("from os import environ", ENVIRONMENT),
        ],
    )
    def test_a_use_is_seen(self, source: str, names: dict[str, set[str]]) -> None:
        """As an attribute or as an imported name."""
        assert list(self.module(source).uses(names)) == [f"{PACKAGE}/planning.py:1"]

    def test_the_databases_clock_is_no_clock(self) -> None:
        """``func.now()`` asks the database, which is what we want."""
        assert list(self.module("x = func.now()").uses(CLOCKS)) == []
