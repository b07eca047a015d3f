"""Every error a person can meet: one base class, one sentence, one exit code.

The docstring of a class is its default message. A message says what was found, what was expected and what to do,
and never holds a password, a key or a presigned URL.
"""

from __future__ import annotations

import inspect


class ArtifactGcError(Exception):
    """mlflow-artifact-gc could not go on."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))


class UsageError(ArtifactGcError):
    """The command line does not make sense."""

    exit_code = 2


class Refused(ArtifactGcError):
    """The safety limits forbid this."""

    exit_code = 4


class ArtifactsKept(Refused):
    """These artifacts are kept: something needs them, or they could not be deleted."""


class TablesNotReady(ArtifactGcError):
    """The tables of mlflow-artifact-gc are absent, older or newer than this version: run 'mlflow-artifact-gc init'."""

    exit_code = 5


class PlanRefused(ArtifactGcError):
    """This plan file must not be applied: it is stale, altered, applied already or another database's."""

    exit_code = 6


class DatabaseUnusable(ArtifactGcError):
    """The database cannot be used."""


class ReferencesIncomplete(ArtifactGcError):
    """Not everything that may point at artifacts could be read, so nothing was touched."""


class DestinationUnproven(ArtifactGcError):
    """Nothing that MLflow knows of was found under the artifacts destination, so nothing under it was touched."""


class RootRefused(ArtifactGcError):
    """The marker object of a root says that this database must not sweep there."""


class StorageError(ArtifactGcError):
    """The object store cannot be used."""


class UnreadableUri(ValueError):
    """An artifact URI that is meant for S3 but that names no bucket and key."""


class NotOnS3(ValueError):
    """An artifact URI that names a place outside S3."""
