"""Makes MLflow's delete real on S3, safely."""

from __future__ import annotations

__version__ = "0.1.0"
