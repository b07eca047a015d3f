"""Settings from the environment, and how they meet the site's. The only reader of the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TypeVar

from mlflow_artifact_gc import prices
from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.model import Action
from mlflow_artifact_gc.quantities import parse_duration, parse_size

PREFIX = "MLFLOW_ARTIFACT_GC_"
_SHORTEST_POLL_MS = 100
_SHIPPED_PRICES = "aws-2026-11.json"
_T = TypeVar("_T")
_N = TypeVar("_N", int, float)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """``MLFLOW_ARTIFACT_GC_*``, each None where it is not set; and the whole environment, for S3's own variables."""

    environ: Mapping[str, str]
    grace_ms: int | None = None
    min_object_age_ms: int | None = None
    orphan_quarantine_ms: int | None = None
    concurrency: int | None = None
    max_bytes: int | None = None
    max_objects: int | None = None
    max_share: float | None = None
    action: Action | None = None
    expiry_tag: str | None = None
    poll_ms: int | None = None
    worker: str | None = None
    price_file: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Raises UsageError for a value that cannot be read."""
        found = os.environ if environ is None else environ
        return cls(
            environ=found,
            grace_ms=_read(found, "GRACE", parse_duration),
            min_object_age_ms=_read(found, "MIN_OBJECT_AGE", parse_duration),
            orphan_quarantine_ms=_read(found, "ORPHAN_QUARANTINE", parse_duration),
            concurrency=_read(found, "CONCURRENCY", _between(int, 1, 256)),
            max_bytes=_read(found, "MAX_BYTES", parse_size),
            max_objects=_read(found, "MAX_OBJECTS", _between(int, 0, 2**63)),
            max_share=_read(found, "MAX_SHARE", _between(float, 0, 1)),
            action=_read(found, "ACTION", _action),
            expiry_tag=_read(found, "EXPIRY_TAG", _tag),
            poll_ms=_read(found, "POLL", _poll),
            worker=_read(found, "WORKER", _worker),
            price_file=_read(found, "PRICE_FILE", str),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """What ``mlflow server`` tells its own processes (mlflow/server/constants.py); the URIs hold passwords.

    A registry that was named by MLflow's own ``MLFLOW_REGISTRY_URI`` counts in every process.
    """

    backend_store_uri: str | None = field(repr=False)
    registry_store_uri: str | None = field(repr=False)
    artifacts_destination: str | None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Server:
        """None for what is not set; and for a backend store that is no database."""
        found = os.environ if environ is None else environ
        destination = found.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION")
        return cls(
            backend_store_uri=_of_database(found.get("_MLFLOW_SERVER_FILE_STORE")),
            registry_store_uri=found.get("_MLFLOW_SERVER_REGISTRY_STORE") or found.get("MLFLOW_REGISTRY_URI") or None,
            artifacts_destination=destination if found.get("_MLFLOW_SERVER_SERVE_ARTIFACTS") == "true" else None,
        )


def shipped_prices() -> prices.Prices:
    """The price file that comes with the package: AWS's list prices, dated."""
    text = resources.files("mlflow_artifact_gc").joinpath("price_files", _SHIPPED_PRICES).read_text(encoding="utf-8")
    return prices.parse(text, _SHIPPED_PRICES)


def own_prices(settings: Settings) -> prices.Prices | None:
    """The price file that ``PRICE_FILE`` names; None where it names none.

    Raises:
        UsageError: it cannot be read.
    """
    if settings.price_file is None:
        return None
    try:
        text = Path(settings.price_file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise UsageError(f"{PREFIX}PRICE_FILE: {settings.price_file!r} cannot be read: {why}") from error
    return prices.parse(text, settings.price_file)


def _of_database(uri: str | None) -> str | None:
    scheme = (uri or "").partition(":")[0].partition("+")[0]
    return uri if scheme in ("sqlite", "postgresql", "mysql", "mssql") else None


def mysql_certificates(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What MLflow hands to the driver for MySQL beside the URI: its own variables."""
    found = os.environ if environ is None else environ
    names = ("ssl_ca", "ssl_cert", "ssl_key")
    return {name: value for name in names if (value := found.get(f"MLFLOW_MYSQL_{name.upper()}"))}


def _between(parse: Callable[[str], _N], least: int, most: int) -> Callable[[str], _N]:
    def read(text: str) -> _N:
        number = parse(text)
        if not least <= number <= most:  # also what is not a number (nan)
            raise UsageError(f"{text!r} is not between {least} and {most}")
        return number

    return read


def _action(text: str) -> Action:
    try:
        return Action(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is none of {', '.join(Action)}") from error


def _poll(text: str) -> int:
    duration_ms = parse_duration(text)
    if duration_ms < _SHORTEST_POLL_MS:
        raise UsageError(f"{text!r} is shorter than 100 ms")
    return duration_ms


def _worker(text: str) -> str:
    if text not in ("embedded", "off"):
        raise UsageError(f"{text!r} is neither 'embedded' nor 'off'")
    return text


def _read(environ: Mapping[str, str], name: str, parse: Callable[[str], _T]) -> _T | None:
    text = environ.get(PREFIX + name)
    if not text:
        return None
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError(f"{PREFIX}{name}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{PREFIX}{name}={text!r} is not a number") from error


def _tag(text: str) -> str:
    return str(Tag.parse(text))


def never_harsher(site: Action | None, own: Action | None) -> Action | None:
    """The site's action, or a milder one: a process's environment may hide or tag where the site purges, only that."""
    return own if own and site in (None, Action.PURGE) else site


def never_below(site_ms: int, *others_ms: int | None) -> int:
    """The site's margin, or a longer one: a process's environment may add to it and never take from it."""
    return max([site_ms, *(other for other in others_ms if other is not None)])
