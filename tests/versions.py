"""The suites of hook, worker and gc with other MLflows, each in a virtual environment of its own below ``.venvs/``.

What is installed there is what ``tests/constraints/NAME.txt`` allows. An environment is kept until the constraints, the
package's metadata or the Python change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.abilities import OLD
from tests.mariadb import WITHOUT

CHECKOUT: Final = Path(__file__).resolve().parent.parent
CONSTRAINTS: Final = CHECKOUT / "tests" / "constraints"
_STAMP: Final = "made-of.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A set of packages to test with: what it is called, and what its tests are told."""

    name: str
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def constraints(self) -> Path:
        return CONSTRAINTS / f"{self.name}.txt"

    @property
    def folder(self) -> Path:
        return CHECKOUT / ".venvs" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


OLDEST: Final = Version(name="mlflow-2.22", environ={OLD: "old", WITHOUT: "1"})
KNOWN_GOOD: Final = Version(name="known-good")
VERSIONS: Final = {"2.22": OLDEST}
"""By what ``--mlflow`` calls them."""

SUBSET: Final = (
    "tests/unit/test_abilities.py",
    "tests/integration/test_hook.py",
    "tests/integration/test_worker.py",
    "tests/integration/test_stock_gc.py",
    "tests/integration/test_artifact_repository.py",
    "tests/integration/test_gc.py::test_deleted_runs_go_and_live_ones_stay",
    "tests/integration/test_gc.py::test_a_deleted_experiment_takes_its_models_and_traces_along",
    "tests/integration/test_gc.py::test_many_runs_of_one_experiment_are_listed_together",
    "tests/integration/test_hide.py::test_what_is_hidden_comes_back_by_undo",
    "tests/integration/test_tag.py::test_what_is_tagged_goes_by_the_rule_and_the_others_stay",
    "tests/integration/test_tag.py::test_its_own_tags_stay_also_when_it_is_restored",
    "tests/e2e/test_worker_server.py::test_what_is_deleted_over_rest_is_gone_at_once[proxied]",
    "tests/e2e/test_worker_server.py::test_a_server_that_is_stopped_takes_its_worker_along",
)
"""What depends on MLflow's version most, in some two minutes; whoever names tests gets those instead."""
_OF_SUBSET: Final = ("-k", "test_hook or not postgresql")
"""The hook writes in MLflow's transactions, which each kind of database has its own of; for the rest SQLite will do."""


def install(version: Version) -> int:
    """Make the environment, unless it is there; the exit code of what failed."""
    stamp, made_of = version.folder / _STAMP, _made_of(version)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == made_of:
        return 0
    shutil.rmtree(version.folder, ignore_errors=True)
    venv.create(version.folder, with_pip=True, symlinks=True)
    # Compiled when first imported: most modules never are.
    options = ["--quiet", "--no-compile", "--constraint", str(version.constraints)]
    code = _run(version, ["pip", "install", *options, "--editable", ".[test]"])
    if code == 0:
        stamp.write_text(made_of, encoding="utf-8")
    return code


def test(version: Version, arguments: Sequence[str]) -> int:
    """Run the subset, or what ``arguments`` select, there; pytest's exit code."""
    cache = f"cache_dir={version.folder / 'pytest-cache'}"
    named = any(argument.split("::")[0].startswith("tests") for argument in arguments)
    return _run(
        version,
        [
            "pytest",
            "-n",
            "3",
            "--dist",
            "loadfile",
            "--no-loadscope-reorder",
            "-o",
            cache,
            *(() if named else (*SUBSET, *_OF_SUBSET)),
            *arguments,
        ],
    )


def _run(version: Version, command: Sequence[str]) -> int:
    environ = {**os.environ, **version.environ}
    return subprocess.run([version.python, "-m", *command], cwd=CHECKOUT, env=environ, check=False).returncode


def _made_of(version: Version) -> str:
    read = b"".join(path.read_bytes() for path in (version.constraints, CHECKOUT / "setup.py"))
    return f"{hashlib.sha256(read).hexdigest()} {sys.version} {sys.executable} {CHECKOUT}"
