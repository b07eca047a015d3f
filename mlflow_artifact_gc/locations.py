"""Where an entity's bytes lie: the one way from MLflow's URIs to S3 buckets and prefixes. Pure.

Two prefixes are compared here and nowhere else, and a prefix always ends in ``/``: ``run1`` never reaches ``run10``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final
from urllib.parse import ParseResult, unquote, urlparse

from mlflow_artifact_gc.errors import NotOnS3, UnreadableUri

DEFAULT_WORKSPACE: Final = "default"
WORKSPACES_FOLDER: Final = "workspaces"
"""MLflow keeps the artifacts of workspaces under ``<root>/workspaces/<name>/`` (sqlalchemy_workspace_store.py)."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PROXY_ROUTE: Final = "/api/2.0/mlflow-artifacts/artifacts/"
PLAIN_S3 = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,254})/([A-Za-z0-9/._=-]*)")
"""Nearly every URI of a database: nothing in it that ``urlparse`` would take apart in another way, at a tenth of the
time."""
_S3_SCHEMES = frozenset({"s3", "s3a", "s3n"})


@dataclass(frozen=True, slots=True, order=True)
class Location:
    """A bucket and a prefix that ends in ``/`` (or is empty: the whole bucket)."""

    bucket: str
    prefix: str

    def __post_init__(self) -> None:
        if self.prefix and not self.prefix.endswith("/"):
            raise ValueError(f"a prefix ends in '/': {self.prefix!r}")

    @classmethod
    def of_key(cls, bucket: str, key: str) -> Location:
        """The location that begins at ``key``, which may or may not end in ``/``."""
        return cls(bucket, key if not key or key.endswith("/") else key + "/")

    @classmethod
    def parse(cls, uri: str, destination: Destination, workspace: str = DEFAULT_WORKSPACE) -> Location:
        """The location that ``uri`` names, by the rules of MLflow's own S3 repository and artifact proxy.

        Fragments and queries are dropped and a leading ``/`` of the path is removed once, as
        ``S3ArtifactRepository.parse_s3_compliant_uri`` does. Proxied URIs are mapped to ``destination`` without HTTP,
        as ``mlflow.server.handlers`` does (``_get_proxied_run_artifact_destination_path`` and
        ``_get_workspace_scoped_repo_path_if_enabled``): nothing is unquoted.

        Raises:
            NotOnS3: the URI names a place outside S3.
            UnreadableUri: it is meant for S3 (or the proxy) and names no bucket and key.
        """
        if plain := PLAIN_S3.fullmatch(uri):
            return cls.checked(uri, plain[1], plain[2])
        proxied = proxied_path(uri)
        if proxied is not None:
            return destination.resolve(proxied, workspace)
        parsed = _split(uri)
        if parsed.scheme not in _S3_SCHEMES:
            raise NotOnS3(parsed.scheme or "no scheme")
        return cls.checked(uri, parsed.netloc, parsed.path.removeprefix("/"))

    @classmethod
    def checked(cls, uri: str, bucket: str, key: str) -> Location:
        """The location at ``key``; raises UnreadableUri, with ``uri``, for what no MLflow server writes."""
        if not _BUCKET.fullmatch(bucket):
            raise UnreadableUri(f"{uri!r} names no bucket")
        if any(segment in (".", "..") for segment in key.split("/")):
            raise UnreadableUri(f"{uri!r} holds a '.' or '..' segment")
        return cls.of_key(bucket, key)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def contains(self, other: Location) -> bool:
        """Whether every object of ``other`` lies in this location."""
        return self.bucket == other.bucket and other.prefix.startswith(self.prefix)

    def holds(self, key: str) -> bool:
        """Whether an object of this bucket lies in this location, or is the single object that it may be meant for."""
        return key.startswith(self.prefix) or f"{key}/" == self.prefix

    def overlaps(self, other: Location) -> bool:
        """Whether one of the two contains the other."""
        return self.contains(other) or other.contains(self)

    def ancestors(self) -> tuple[Location, ...]:
        """This location and all that contain it, longest first, down to the whole bucket."""
        return tuple(Location(self.bucket, folder) for folder in self.folders())

    def folders(self) -> Iterator[str]:
        """The prefixes of ``ancestors``."""
        end = len(self.prefix)
        while end:
            yield self.prefix[:end]
            end = self.prefix.rfind("/", 0, end - 1) + 1
        yield ""

    def parent(self, levels: int = 1) -> Location:
        """The location ``levels`` segments up; the whole bucket when there are not that many."""
        return Location(self.bucket, next(islice(self.folders(), levels, None), ""))


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a server's artifact proxy keeps its objects (``--artifacts-destination``).

    ``uri`` None means that nobody has said it yet; ``root`` None with a ``uri`` means that it is not on S3.
    """

    uri: str | None = None
    root: Location | None = None

    @classmethod
    def parse(cls, uri: str | None) -> Destination:
        """Raises UnreadableUri for an ``s3:`` URI that names no bucket, and for a proxied URI."""
        if uri is None:
            return cls()
        if proxied_path(uri) is not None:
            raise UnreadableUri(f"{uri!r} is a proxied URI; the artifacts destination is where the proxy writes to")
        try:
            return cls(uri, Location.parse(uri, cls()))
        except NotOnS3:
            return cls(uri, None)

    @property
    def known(self) -> bool:
        return self.uri is not None

    def resolve(self, path: str, workspace: str) -> Location:
        """The location of a proxied path, for an entity of ``workspace``."""
        if self.root is None:
            raise NotOnS3("mlflow-artifacts" if self.known else "mlflow-artifacts, destination not known")
        segments = path.strip("/").split("/")
        scoped = segments[0] == WORKSPACES_FOLDER and len(segments) > 1
        if scoped and segments[1] != workspace:
            raise UnreadableUri(f"{path!r} lies in another workspace than {workspace!r}")
        if workspace != DEFAULT_WORKSPACE and not scoped:
            # A server would look under workspaces/<name>/; the objects of what was moved there stay where they were.
            raise UnreadableUri(f"{path!r} does not lie in the folder of its workspace {workspace!r}: it was moved")
        key = self.root.prefix + "/".join(segments)
        return Location.checked(path, self.root.bucket, key)

    def every_reading(self, path: str, workspace: str) -> tuple[Location, ...]:
        """All that some reader could take ``path`` for: raw and percent-decoded, in its workspace or as it is.

        For references only: HTTP clients decode the path, readers inside the server do not, and a row that was moved
        into a workspace keeps its old path.
        """
        if self.root is None:
            return ()
        readings: list[Location] = []
        for text in dict.fromkeys((path, unquote(path))):
            for scope in dict.fromkeys(("", f"{WORKSPACES_FOLDER}/{workspace}/")):
                location = Location.checked(path, self.root.bucket, self.root.prefix + scope + text.strip("/"))
                readings.append(location)
        return tuple(dict.fromkeys(readings))


def every_place(uri: str, destination: Destination, workspace: str) -> tuple[Location, ...]:
    """All places that some reader could take ``uri`` for, whatever host it names; none where it is not on S3.

    For what is not to be touched: where a row's own artifacts surely lie, ``Location.parse`` says.
    """
    try:
        path = proxied_path(uri)
        if path is not None:
            return destination.every_reading(path, workspace)
        return (Location.parse(uri, destination, workspace),)
    except (NotOnS3, UnreadableUri):
        return ()


def without_secrets(uri: str) -> str:
    """A destination as it may be shown and stored: MLflow takes ``sftp://user:password@host/folder`` too.

    One on S3 stays as it is: there, ``@`` and ``?`` are parts of keys.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.lower() in ("s3", "s3a"):
        return uri
    return scheme + separator + rest.partition("?")[0].rpartition("@")[2]


def proxied_path(uri: str) -> str | None:
    """The path below the artifact proxy that ``uri`` names, or None when the proxy does not serve such a URI.

    The host is ignored and nothing is unquoted, as in ``_get_proxied_run_artifact_destination_path`` of
    ``mlflow.server.handlers``.

    Raises:
        UnreadableUri: not a URI.
    """
    if PLAIN_S3.fullmatch(uri):
        return None
    parsed = _split(uri)
    if parsed.scheme == "mlflow-artifacts":
        return parsed.path.lstrip("/")
    if parsed.scheme in ("http", "https") and _PROXY_ROUTE in parsed.path:
        return parsed.path.split(_PROXY_ROUTE)[1].lstrip("/")
    return None


def proxied_host(uri: str) -> str | None:
    """The host that a proxied URI names (perhaps another server's), or None where it names none.

    Raises:
        UnreadableUri: not a URI.
    """
    return None if proxied_path(uri) is None else _split(uri).netloc.rpartition("@")[2] or None


def _split(uri: str) -> ParseResult:
    try:
        return urlparse(uri)
    except ValueError as error:
        raise UnreadableUri(f"{uri!r} is not a URI: {error}") from error
