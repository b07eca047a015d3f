"""Everything on one machine, for showing and for testing: real servers, and runs in them."""

from mlflow_artifact_gc.errors import ArtifactGcError


class StepFailed(ArtifactGcError):
    """A step of the demo failed."""
