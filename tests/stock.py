"""MLflow's own ``mlflow gc`` run in this process: as it is without this package, and with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner

from mlflow_artifact_gc.hook import stock_gc
from tests.site import Site


@dataclass(frozen=True, kw_only=True)
class StockRan:
    """How ``mlflow gc`` ended. ``error`` is what it raised."""

    code: int
    out: str
    err: str
    error: BaseException | None


def mlflow_gc(site: Site, *arguments: str, tracking_uri: str | None = None) -> StockRan:
    """``mlflow gc`` on the site, by whatever stores and repositories MLflow's registries now have."""
    from mlflow.cli import gc
    from mlflow.tracking._tracking_service import utils

    # The command sets both for good.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(utils, "_tracking_uri", None)
        patched.setenv("MLFLOW_TRACKING_URI", tracking_uri or site.uri)
        result = CliRunner().invoke(gc, ["--backend-store-uri", site.uri, *arguments])
    forget_stores()
    return StockRan(code=result.exit_code, out=result.stdout, err=result.stderr, error=result.exception)


def forget_stores() -> None:
    """MLflow keeps one store per URI for the life of the process, and we their URIs."""
    from mlflow.tracking._tracking_service import utils

    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    stock_gc._built.clear()


@contextmanager
def without_us(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow's registries as they are where this package is not installed."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry as repositories
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
    from mlflow.tracking._tracking_service import utils

    stores: dict[str, Any] = utils._tracking_store_registry._registry
    with monkeypatch.context() as patched:
        patched.setitem(repositories._registry, "s3", S3ArtifactRepository)
        for scheme in ("sqlite", "postgresql", "mysql"):
            patched.setitem(stores, scheme, utils._get_sqlalchemy_store)
        forget_stores()
        yield
    forget_stores()
