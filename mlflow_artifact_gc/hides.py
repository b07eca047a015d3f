"""Which delete markers are ours: those that a hide of ours wrote, and no others. Pure.

There is no journal of objects. Before the first marker is written, those that others have written shortly before are
remembered (``spared``); older ones are told by their date, later ones too. A key that we hid has our marker as its
latest: whoever writes it anew puts a version on top, and the marker no longer hides it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from mlflow_artifact_gc.s3 import Entry, Kind

CLOCKS_MS: Final = 5 * 60_000
"""S3's clock and the database's may differ by so much."""
_LONGEST: Final = 60_000
"""Characters of ``spared`` that our table holds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hide:
    """A hide of one location.

    ``from_ms`` is when it was begun, by the database's clock; ``until_ms`` when its last marker was written, by S3's
    clock; None: it is under way.
    """

    from_ms: int
    until_ms: int | None = None
    spared: frozenset[tuple[str, str]] = frozenset()

    def wrote(self, entry: Entry) -> bool:
        """Whether a marker that hides its key is ours. One without a date is not known to be."""
        if not (entry.kind is Kind.MARKER and entry.hides) or entry.modified_ms is None:
            return False
        if (entry.key, entry.version_id or "null") in self.spared:
            return False
        if self.until_ms is not None and entry.modified_ms > self.until_ms:
            return False
        return self.from_ms - CLOCKS_MS <= entry.modified_ms

    def sparing(self, markers: Iterable[Entry]) -> Hide:
        """The same, before more is hidden: of ``markers``, which hide keys now, only those that it wrote are ours.

        Its end is open again.
        """
        others = {
            (entry.key, entry.version_id or "null")
            for entry in markers
            if not self.wrote(entry)
            and (entry.modified_ms is None or entry.modified_ms >= self.from_ms - 2 * CLOCKS_MS)
        }
        return replace(self, until_ms=None, spared=self.spared | others)


def begun(now_ms: int, markers: Iterable[Entry]) -> Hide:
    """A hide that begins now, where ``markers`` hide their keys already."""
    wrote_nothing = Hide(from_ms=now_ms, until_ms=0)
    return wrote_nothing.sparing(markers)


def as_text(spared: Iterable[tuple[str, str]]) -> str | None:
    """For our table; None where it is too much for it."""
    text = json.dumps(sorted(spared), separators=(",", ":"))
    return text if len(text.encode()) <= _LONGEST else None


def from_text(text: str | None) -> frozenset[tuple[str, str]]:
    """The inverse of ``as_text``."""
    return frozenset((key, version) for key, version in json.loads(text or "[]"))
