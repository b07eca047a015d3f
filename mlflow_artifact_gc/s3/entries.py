"""What a listing is made of. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What S3 keeps under a key."""

    CURRENT = "current"
    """The object that a plain GET answers with."""
    NONCURRENT = "noncurrent"
    """An older version: paid for, and seen by a versions listing alone."""
    MARKER = "marker"
    """A delete marker, the latest of its key or not."""
    UPLOAD = "upload"
    """An unfinished multipart upload: paid for, and seen by no listing of objects."""


class Entry(NamedTuple):
    """One row of a listing.

    A NamedTuple, as there are hundreds of millions of them and a frozen dataclass takes three times as long to make.
    ``version_id`` is the upload id of an upload, "null" for a version without an id, and None in a listing that does
    not say (``current``). ``modified_ms`` None means that the server's date cannot be believed: such an entry is young.
    ``storage_class`` is S3's name of it, empty where the listing does not say.
    ``hides``: a delete marker that is the latest of its key.
    """

    key: str
    kind: Kind
    version_id: str | None
    size_bytes: int
    modified_ms: int | None
    storage_class: str = ""
    hides: bool = False


class Folder(NamedTuple):
    """What a listing of one level says of everything beneath a folder. ``prefix`` ends in ``/``."""

    prefix: str
