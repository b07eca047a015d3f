"""What a user gets: the wheel and an editable install, each in an environment of its own, away from the checkout."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
REVISION_FILE = "mlflow_artifact_gc/migrations/versions/0005_create_sightings.py"

ASK = """
import mlflow_artifact_gc
from mlflow_artifact_gc import schema
from alembic.script import ScriptDirectory
scripts = ScriptDirectory.from_config(schema.alembic_config())
print(mlflow_artifact_gc.__file__)
print(schema.migrations_folder())
print(schema.head(), scripts.get_current_head())
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads: building in the checkout itself would leave folders there."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "CHANGELOG.md", "README.md"):
        if (CHECKOUT / name).is_file():
            shutil.copy(CHECKOUT / name, copy)
    for name in ("mlflow_artifact_gc", "migrations"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as ``python -m build`` does, by way of the sdist: what that lacks, the wheel lacks."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=checkout)
    (found,) = out.glob("*.whl")
    return found


class Environment:
    """A fresh virtual environment that sees the dependencies of the running one, and nothing of ours.

    A .pth file lends it the running interpreter's site-packages: installing MLflow's fifty dependencies anew would
    take minutes and a network. .pth files found in there are not read, so that an editable install of this package
    in the running environment stays invisible.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.bin = folder / "bin"
        (own,) = (folder / "lib").glob("python*/site-packages")
        (own / "lent.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")

    def install(self, *what: str | Path) -> None:
        """Without dependencies (lent) and without isolation (the build tools are lent too)."""
        # Ignore-installed: pip must not touch, nor be content with, what the lent folder holds of this package.
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed", "--no-index"]
        run(self.bin / "python", "-m", "pip", "install", *options, *what, cwd=self.bin)


@pytest.fixture(scope="module", params=["wheel", "editable"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The package installed in both ways."""
    made = Environment(tmp_path_factory.mktemp(request.param) / "venv")
    if request.param == "wheel":
        made.install(request.getfixturevalue("wheel"))
    else:
        made.install("--editable", request.getfixturevalue("checkout"))
    return made


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; its complaints are the test's message."""
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_migrations_are_found(environment: Environment, tmp_path: Path) -> None:
    """From another folder, the installed package finds its own migrations, and their head is the expected one."""
    package, migrations, heads = run(environment.bin / "python", "-c", ASK, cwd=tmp_path).splitlines()

    assert not Path(package).is_relative_to(CHECKOUT)
    assert Path(migrations) in {Path(package).parent / "migrations", Path(package).parents[1] / "migrations"}
    assert heads == "0005 0005"


def test_the_migrations_are_importable(environment: Environment, tmp_path: Path) -> None:
    """They ship under the package's own name, not as a top-level package that any project could own."""
    found = run(
        environment.bin / "python", "-c", "import mlflow_artifact_gc.migrations.versions as v; print(v.__name__)",
        cwd=tmp_path,
    )  # fmt: skip

    assert found.strip() == "mlflow_artifact_gc.migrations.versions"


def test_the_command_is_there(environment: Environment, tmp_path: Path) -> None:
    """The console script and ``python -m`` both answer ``--help``."""
    assert "init" in run(environment.bin / "mlflow-artifact-gc", "--help", cwd=tmp_path)
    assert "init" in run(environment.bin / "python", "-m", "mlflow_artifact_gc", "--help", cwd=tmp_path)


def test_the_wheel_holds_what_it_should(wheel: Path) -> None:
    """All that belongs in is in, data files and modules; tests and top-level strangers are not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(CHECKOUT))
        for path in (CHECKOUT / "mlflow_artifact_gc").rglob("*.py")
    }  # fmt: skip
    top_level = {name.split("/")[0] for name in names if ".dist-info/" not in name}

    assert {REVISION_FILE, "mlflow_artifact_gc/migrations/script.py.mako", "mlflow_artifact_gc/py.typed"} <= names
    assert "mlflow_artifact_gc/price_files/aws-2026-11.json" in names
    assert modules <= names
    assert top_level == {"mlflow_artifact_gc"}


def test_a_plain_checkout_finds_the_migrations(checkout: Path, tmp_path: Path) -> None:
    """Without any install, a checkout on the path finds its own migrations, and not those of an install elsewhere."""
    ask = f"import sys; sys.path.insert(0, {str(checkout)!r})\n{ASK}"

    package, migrations, heads = run(sys.executable, "-c", ask, cwd=tmp_path).splitlines()

    assert package == str(checkout / "mlflow_artifact_gc" / "__init__.py")
    assert migrations == str(checkout / "migrations")
    assert heads == "0005 0005"
