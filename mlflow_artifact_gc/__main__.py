"""``python -m mlflow_artifact_gc``."""

from __future__ import annotations

from mlflow_artifact_gc.cli import main

if __name__ == "__main__":
    main(prog_name="mlflow-artifact-gc")
