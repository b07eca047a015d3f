"""What a person does in MLflow's UI: the calls that its pages make, and the tags that a run's page shows."""

from __future__ import annotations

import http.client
import json
from typing import Final
from urllib.parse import urlsplit

from mlflow_artifact_gc.demo import StepFailed

_API: Final = "/ajax-api/2.0/mlflow/runs"
_PATIENCE_S: Final = 60.0
_OUR_TAGS: Final = "artifact_gc."


class Browser:
    """Somebody's look at one MLflow server. Every method raises StepFailed where the server refuses."""

    def __init__(self, uri: str) -> None:
        self._host = urlsplit(uri).netloc

    def delete(self, run_id: str) -> None:
        """As the button *Delete* of the table of runs."""
        self._call("POST", "delete", {"run_id": run_id})

    def restore(self, run_id: str) -> None:
        """As the button *Restore*, which that table has where it shows the deleted ones."""
        self._call("POST", "restore", {"run_id": run_id})

    def tags(self, run_id: str) -> dict[str, str]:
        """The tags of ours that the run's page shows, deleted or not."""
        answer = json.loads(self._call("GET", f"get?run_id={run_id}"))
        tags = answer["run"]["data"].get("tags", [])
        return {tag["key"]: tag["value"] for tag in tags if tag["key"].startswith(_OUR_TAGS)}

    def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> bytes:
        connection = http.client.HTTPConnection(self._host, timeout=_PATIENCE_S)
        try:
            connection.request(method, f"{_API}/{path}", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise StepFailed(f"MLflow did not answer {method} {path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise StepFailed(f"MLflow answered {method} {path} with {answer.status}: {said.decode(errors='replace')}")
        return said
