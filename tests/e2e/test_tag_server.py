"""Behind a proxy and with workspaces: deleted in MLflow, tagged by the worker, restored, and purged.

Hook, worker and ``gc`` all have to find the workspace's own folder below the artifacts destination.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests import servers
from tests.abilities import needs
from tests.command import gc, init, outcomes, run
from tests.servers import S3Server
from tests.site import Site
from tests.working import NOW, intents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the servers of the tests are for Linux")

_PATIENCE_S: Final = 30.0
_POLL: Final = {"MLFLOW_ARTIFACT_GC_POLL": "0.2s"}
_WORKSPACE: Final = "research"
_TAG: Final = {"mlflow-artifact-gc": "expired"}


def _eventually(look: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not look():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def _tags(site: Site, run_id: str) -> list[dict[str, str]]:
    """The tags of each object of a run."""
    found = []
    for key in sorted(key for key in site.snapshot().keys if run_id in key):
        answer = site.client.get_object_tagging(Bucket=site.bucket, Key=key)
        found.append({tag["Key"]: tag["Value"] for tag in answer["TagSet"]})
    return found


@pytest.fixture
def site(db_uri: str, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]) -> Iterator[Site]:
    """Proxied artifacts, and the bucket has the rules."""
    site = make_site(Site.proxied(db_uri, seaweed, bucket))
    init(site, *NOW, "--action", "tag")
    ran = run("lifecycle", "apply", "--backend-store-uri", site.uri, "--yes")
    assert ran.code == 0, ran.err
    yield site
    site.client.delete_bucket_lifecycle(Bucket=bucket)


@needs("workspaces")
def test_tagged_restored_and_purged_behind_a_proxy_with_workspaces(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a workspace goes its whole way over REST, and a live one beside it keeps its objects and their tags."""
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.utils.workspace_context import WorkspaceContext

    with servers.mlflow_server(
        tmp_path,
        backend_store_uri=site.uri,
        s3=site.s3,
        artifacts_destination=site.destination,
        workspaces=True,
        extra_env=_POLL,
    ) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        client = MlflowClient(server.uri)
        client.create_workspace(_WORKSPACE)
        with WorkspaceContext(_WORKSPACE):
            experiment = client.create_experiment("e")
            live, dead = (client.create_run(experiment).info.run_id for _ in range(2))
            for one in (live, dead):
                mlflow.MlflowClient(server.uri).log_text(one, "words", "notes/a b.txt")
            client.create_registered_model("churn")
            client.delete_run(dead)
            _eventually(lambda: _tags(site, dead) == [_TAG], "tagged by the worker")
            assert all(f"workspaces/{_WORKSPACE}/" in key for key in site.snapshot().keys if dead in key)
            _eventually(lambda: intents(site, "state", "workspace") == [("waiting", _WORKSPACE)], "recorded")
            with pytest.raises(MlflowException, match="are being removed"):
                client.create_model_version("churn", f"runs:/{dead}/notes", dead)

            client.restore_run(dead)
            _eventually(lambda: _tags(site, dead) == [{}], "taken back by the worker")
            assert client.create_model_version("churn", f"runs:/{dead}/notes", dead).version

            client.delete_model_version("churn", "1")
            client.delete_run(dead)
            _eventually(lambda: _tags(site, dead) == [_TAG], "tagged again")
            _eventually(lambda: intents(site, "state") == [("waiting",)], "recorded again")
            assert outcomes(gc(site, "--action", "purge", "--workspace", _WORKSPACE)) == {dead: "swept"}
        assert (_tags(site, dead), _tags(site, live)) == ([], [{}])
