"""The rows of a listing's XML, read by patterns where nothing is in them that has to be parsed. Pure.

A page holds up to a thousand rows that differ in their texts alone. The first of a shape (which elements, in which
order) becomes a pattern, which reads those that follow. Everything around them still goes to the XML parser. Whatever
is in the least unusual (an entity in a key, a comment, whitespace between rows, a character that is not printable
ASCII) leaves the whole page to it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

STAND_IN: Final = "MlflowArtifactGcRows"
"""The element that stands where the rows were."""

_WANTED: Final = frozenset({"Key", "VersionId", "IsLatest", "LastModified", "Size", "StorageClass"})
_TEXT: Final = "[^<&]*"
_IGNORED: Final = "[^<]*"
_QUOTES: Final = ("&quot;", "&#34;")
"""The entities that are around an ETag; there they do not matter."""
_LEAF: Final = re.compile(f"<([A-Za-z]+)>{_IGNORED}</\\1>|<[A-Za-z]+/>")
_EMPTY: Final = re.compile(r"<([A-Za-z]+)></\1>")
_MOST_SHAPES: Final = 16


Row = tuple[str, dict[str, str]]
"""A row's element, and the texts of those of its children that matter, as far as they have any."""


class Taken(NamedTuple):
    """The rows of a page, and the page with ``STAND_IN`` in their place."""

    rows: list[Row]
    rest: bytes


class _Shape(NamedTuple):
    name: str
    pattern: Any  # its scanner() is not in the type stubs
    children: tuple[str, ...]


def take_out(body: bytes, names: Collection[str]) -> Taken | None:
    """The rows of ``body``, which are its elements of these names; None where the whole of it has to be parsed."""
    try:
        text = body.decode("ascii")
    except UnicodeDecodeError:
        return None
    starts = [at for name in names if (at := text.find(f"<{name}>")) >= 0]
    if not starts or "<!" in text:  # in a comment or CDATA, what looks like a row is none
        return None
    rows: list[Row] = []
    shapes: list[_Shape] = []
    end = begin = min(starts)
    while len(shapes) <= _MOST_SHAPES:
        before = end
        for name, pattern, children in shapes:
            for match in iter(pattern.scanner(text, end).match, None):
                rows.append((name, dict(zip(children, match.groups(), strict=True))))
                end = match.end()
        if end == before:
            shape = next((shape for name in names if (shape := _shape(text, end, name))), None)
            if shape is None:
                break
            shapes.append(shape)
    if not _is_plain(text[begin:end]):
        return None
    return Taken(rows, f"{text[:begin]}<{STAND_IN}/>{text[end:]}".encode())


def _shape(text: str, at: int, name: str) -> _Shape | None:
    """That of the row of this name that begins there; None where none does, or one that has to be parsed."""
    if not text.startswith(f"<{name}>", at):
        return None
    row = text[at : text.find(f"</{name}>", at) + len(name) + 3]
    if not _is_well_formed(row) or any(row.count(f"<{tag}") > 1 for tag in _WANTED):
        return None
    parts: list[str] = []
    children: list[str] = []
    depth = last = 0
    for leaf in _LEAF.finditer(row):
        tags, tag, last = row[last : leaf.start()], leaf[1], leaf.end()
        depth += tags.count("<") - 2 * tags.count("</")
        if tag is None:
            parts.append(tags + leaf[0])
        elif depth == 1 and tag in _WANTED:
            parts.append(f"{tags}<{tag}>({_TEXT})</{tag}>")
            children.append(tag)
        else:
            parts.append(f"{tags}<{tag}>{_IGNORED}</{tag}>")
    pattern = re.compile("".join(parts) + row[last:])
    return _Shape(name, pattern, tuple(children)) if pattern.match(text, at) else None


def _is_plain(block: str) -> bool:
    """Whether rows that the patterns have read are what a parser would have read: they let more pass than XML does."""
    entities = sum(map(block.count, _QUOTES))
    return block.isprintable() and block.count("<") == block.count(">") and block.count("&") == entities


def _is_well_formed(row: str) -> bool:
    """Whether it is one element, and in it nothing but elements that hold elements, or plain text."""
    skeleton, before = _LEAF.sub("", row), ""
    while skeleton != before:
        skeleton, before = _EMPTY.sub("", skeleton), skeleton
    return not skeleton
