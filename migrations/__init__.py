"""The making of our tables, step by step. Ships as ``mlflow_artifact_gc.migrations``; run by ``schema`` alone."""
