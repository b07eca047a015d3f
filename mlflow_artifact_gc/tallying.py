"""What an audit's listings found, summed up by unit in a temporary SQLite file: millions of prefixes take no memory.

Nothing in here is MLflow's, or ours, or lasts. One connection, used by many threads in turn.
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import EntityKind, Standing
from mlflow_artifact_gc.prices import STANDARD, Prices
from mlflow_artifact_gc.s3 import Entry, Kind

if TYPE_CHECKING:
    from mlflow_artifact_gc.layouts import Layouts, Unit

_KEPT_UNITS: Final = 1_000
"""Units that a listing keeps in memory before they are written."""
_CACHE_KIB: Final = 24_000
_AFTER: Final = "\U0010ffff"
"""No key holds it, so it ends the range of the keys with a prefix."""
_SCHEMA: Final = """
CREATE TABLE unit (
    bucket TEXT NOT NULL, prefix TEXT NOT NULL, kind TEXT, id TEXT NOT NULL, experiment TEXT NOT NULL,
    workspace TEXT NOT NULL, recognised INTEGER NOT NULL, standing TEXT, evidence TEXT NOT NULL DEFAULT '',
    lost TEXT NOT NULL DEFAULT '', until_ms INTEGER, owner TEXT NOT NULL DEFAULT '', foreign_root TEXT,
    PRIMARY KEY (bucket, prefix)
) WITHOUT ROWID;
CREATE TABLE held (
    bucket TEXT NOT NULL, prefix TEXT NOT NULL, class TEXT NOT NULL, objects INTEGER NOT NULL,
    versions INTEGER NOT NULL, markers INTEGER NOT NULL, uploads INTEGER NOT NULL, size INTEGER NOT NULL,
    old_size INTEGER NOT NULL, billed INTEGER NOT NULL, newest_ms INTEGER, undated INTEGER NOT NULL,
    PRIMARY KEY (bucket, prefix, class)
) WITHOUT ROWID;
CREATE TABLE price (class TEXT PRIMARY KEY, by_byte REAL NOT NULL, by_object REAL NOT NULL) WITHOUT ROWID;
"""
# "newest" of nothing that is dated stays NULL: max() of SQLite's two arguments would be NULL with either.
_ADD_HELD: Final = """
INSERT INTO held VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    objects = objects + excluded.objects, versions = versions + excluded.versions,
    markers = markers + excluded.markers, uploads = uploads + excluded.uploads, size = size + excluded.size,
    old_size = old_size + excluded.old_size, billed = billed + excluded.billed,
    newest_ms = max(coalesce(newest_ms, excluded.newest_ms), coalesce(excluded.newest_ms, newest_ms)),
    undated = max(undated, excluded.undated)
"""
_ADD_UNIT: Final = """
INSERT INTO unit (bucket, prefix, kind, id, experiment, workspace, recognised) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING
"""
_LINES: Final = """
CREATE VIEW line AS SELECT u.bucket AS bucket, u.prefix AS prefix, u.kind AS kind, u.id AS id,
    u.experiment AS experiment, u.workspace AS workspace, u.owner AS owner, u.standing AS verdict,
    u.lost AS lost, u.evidence AS evidence, u.until_ms AS until_ms, sum(h.objects) AS objects,
    sum(h.versions) AS versions, sum(h.markers) AS markers, sum(h.uploads) AS uploads, sum(h.size) AS size,
    sum(h.old_size) AS old_size, max(h.newest_ms) AS newest_ms, max(h.undated) AS undated,
    CASE WHEN sum(p.class IS NULL AND h.objects + h.versions > 0) THEN NULL
        ELSE total(h.billed * p.by_byte + (h.objects + h.versions) * p.by_object) END AS money,
    group_concat(CASE WHEN h.class != '' THEN h.class END) AS classes
FROM unit u JOIN held h ON h.bucket = u.bucket AND h.prefix = u.prefix LEFT JOIN price p ON p.class = h.class
GROUP BY u.bucket, u.prefix
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One unit, judged. ``money`` is a month's, None without a price; ``newest_ms`` None: nothing in it is dated."""

    bucket: str
    prefix: str
    kind: EntityKind | None
    id: str
    experiment: str
    workspace: str
    owner: str
    verdict: Standing
    lost: str
    """Of what is left over: what is no longer there (run, logged model, trace, experiment, workspace)."""
    evidence: str
    until_ms: int | None
    objects: int
    versions: int
    markers: int
    uploads: int
    size: int
    old_size: int
    newest_ms: int | None
    undated: bool
    money: float | None
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """Sums over lines; ``name`` is what they have in common."""

    name: str
    detail: str
    prefixes: int
    objects: int
    versions: int
    markers: int
    uploads: int
    size: int
    old_size: int
    money: float | None


class _Counts:
    """What a unit holds in one storage class, as far as one listing has come."""

    __slots__ = ("billed", "markers", "newest_ms", "objects", "old_size", "size", "undated", "uploads", "versions")

    def __init__(self) -> None:
        self.objects = self.versions = self.markers = self.uploads = 0
        self.size = self.old_size = self.billed = self.undated = 0
        self.newest_ms: int | None = None

    def add(self, kind: Kind, size: int, modified_ms: int | None, billed: int) -> None:
        if kind is Kind.CURRENT:
            self.objects += 1
            self.size += size
        elif kind is Kind.NONCURRENT:
            self.versions += 1
            self.old_size += size
        elif kind is Kind.MARKER:
            self.markers += 1
        else:
            self.uploads += 1
        self.billed += billed
        if modified_ms is None:
            self.undated = 1
        elif self.newest_ms is None or modified_ms > self.newest_ms:
            self.newest_ms = modified_ms

    def row(self) -> tuple[int | None, ...]:
        return (
            self.objects, self.versions, self.markers, self.uploads, self.size, self.old_size, self.billed,
            self.newest_ms, self.undated,
        )  # fmt: skip


class Tally:
    """The file. To be used as a context manager, which removes it."""

    def __init__(self, prices: Prices | None) -> None:
        self._prices = prices
        self._folder = tempfile.TemporaryDirectory(prefix="mlflow-artifact-gc-")
        self._lock = threading.Lock()
        path = Path(self._folder.name) / "audit.sqlite"
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.execute("PRAGMA temp_store = FILE")
        self._db.executescript(_SCHEMA)
        self._db.execute(_LINES)
        self._markers: list[Location] = []
        self.entries = 0
        """Rows of listings that were counted."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._db.close()
        self._folder.cleanup()

    # Counting

    def count(self, entries: Iterable[Entry], layouts: Layouts) -> None:
        """Adds the rows of a listing. Different threads may add different ones."""
        counted = 0
        found: dict[tuple[str, str], _Counts] = {}
        units: dict[str, Unit] = {}
        prefix = last_class = ""
        counts = _Counts()
        inside = False
        least = self._prices.minimum_bytes if self._prices else _nothing
        for key, kind, _, size, modified_ms, named, _ in entries:
            counted += 1
            storage_class = (named or STANDARD) if kind is Kind.CURRENT or kind is Kind.NONCURRENT else ""
            moved = not (inside and key.startswith(prefix))
            if moved:
                unit = layouts.unit_of(key)
                prefix = unit.prefix
                # What begins with an entity's prefix is that entity's, unless rows name places within it.
                inside = unit.kind is not None and not layouts.places
                if len(units) >= _KEPT_UNITS and prefix not in units:
                    self._write(layouts.bucket, units, found)
                units[prefix] = unit
            if moved or storage_class != last_class:
                last_class = storage_class
                counts = found.get((prefix, storage_class)) or _new(found, prefix, storage_class)
            counts.add(kind, size, modified_ms, max(size, least(storage_class)) if storage_class else 0)
            if key.endswith(s3.MARKER_NAME) and kind is Kind.CURRENT:
                self._note_marker(layouts.bucket, key)
        self._write(layouts.bucket, units, found)
        with self._lock:
            self.entries += counted

    def _note_marker(self, bucket: str, key: str) -> None:
        folder = key.removesuffix(s3.MARKER_NAME)
        if not folder or folder.endswith("/"):
            with self._lock:
                self._markers.append(Location(bucket, folder))

    def _write(self, bucket: str, units: dict[str, Unit], found: dict[tuple[str, str], _Counts]) -> None:
        made = [
            (bucket, unit.prefix, unit.kind, unit.id, unit.experiment_id, unit.workspace, unit.recognised)
            for unit in units.values()
        ]
        held = [(bucket, prefix, named, *counts.row()) for (prefix, named), counts in found.items()]
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany(_ADD_UNIT, made)
            self._db.executemany(_ADD_HELD, held)
            self._db.execute("COMMIT")
        units.clear()
        found.clear()

    # Judging

    @property
    def markers(self) -> list[Location]:
        """The folders that hold a marker object of this project, outermost first."""
        return sorted(set(self._markers), key=lambda one: len(one.prefix))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Many small changes at once."""
        self._db.execute("BEGIN")
        yield
        self._db.execute("COMMIT")

    def own(self, place: Location, owner: str) -> None:
        """Says whose the unit at ``place`` is."""
        self._db.execute(
            "UPDATE unit SET owner = ? WHERE bucket = ? AND prefix = ?", (owner, place.bucket, place.prefix)
        )

    def holds(self, place: Location) -> bool:
        """Whether something lies in ``place``, or in a unit that contains it (what of it, is not known)."""
        within = "SELECT 1 FROM unit WHERE bucket = ? AND prefix >= ? AND prefix < ?"
        if self._db.execute(within, (place.bucket, place.prefix, place.prefix + _AFTER)).fetchone():
            return True
        # A folder that is no entity's holds only what no entity's does.
        around = "SELECT 1 FROM unit WHERE bucket = ? AND prefix = ? AND (kind IS NOT NULL OR recognised)"
        return any(self._db.execute(around, (above.bucket, above.prefix)).fetchone() for above in place.ancestors()[1:])

    def judge(self, place: Location, standing: Standing, **columns: object) -> int:
        """Judges the unit at ``place``, or else every unit beneath it that is not judged; returns how many.

        What is live stays live: another row may have the same place.
        """
        named = ", ".join(f"{name} = ?" for name in ("standing", *columns))
        values = (standing, *columns.values())
        exact = self._db.execute(
            f"UPDATE unit SET {named} WHERE bucket = ? AND prefix = ? AND coalesce(standing, '') != ?",
            (*values, place.bucket, place.prefix, Standing.LIVE if standing is not Standing.LIVE else ""),
        ).rowcount
        if exact or not place.prefix:
            return exact
        return self._db.execute(
            f"UPDATE unit SET {named} WHERE bucket = ? AND prefix >= ? AND prefix < ? AND standing IS NULL",
            (*values, place.bucket, place.prefix, place.prefix + _AFTER),
        ).rowcount

    def foreign(self, folder: Location, why: str) -> None:
        """Notes that all beneath ``folder`` is another database's, or may be."""
        self._db.execute(
            "UPDATE unit SET foreign_root = ? WHERE bucket = ? AND prefix >= ? AND prefix < ?",
            (why, folder.bucket, folder.prefix, folder.prefix + _AFTER),
        )

    def undecided(self, *, recognised: bool, batch: int) -> Iterator[list[tuple[Location, EntityKind, str, str, str]]]:
        """Entities' units that are not judged yet, in batches: place, kind, id, experiment, workspace.

        Each batch has to be judged before the next is asked for, or it comes again.
        """
        query = (
            "SELECT bucket, prefix, kind, id, experiment, workspace FROM unit WHERE standing IS NULL "
            "AND kind IS NOT NULL AND recognised = ? AND (bucket, prefix) > (?, ?) ORDER BY bucket, prefix LIMIT ?"
        )
        last = ("", "")
        while rows := self._db.execute(query, (recognised, *last, batch)).fetchall():
            yield [(Location(bucket, prefix), EntityKind(kind), *rest) for bucket, prefix, kind, *rest in rows]
            last = rows[-1][:2]

    def settle(self, *, young_ms: int | None, judged: bool) -> None:
        """The last words: what nobody has judged, what is too young, what cannot be judged, what is another's.

        Args:
            young_ms: what is newer than this is too young; None: nothing is.
            judged: whether it is known what the model registry needs.
        """
        condemned = f"standing IN ('{Standing.DUE}', '{Standing.LEFT_OVER}')"
        self._db.execute(
            "UPDATE unit SET standing = ?, evidence = 'no row names it, and MLflow makes no such folder here' "
            "WHERE standing IS NULL AND kind IS NULL",
            (Standing.UNKNOWN_LAYOUT,),
        )
        self._db.executemany(
            "UPDATE unit SET evidence = ? WHERE bucket = ? AND prefix = ? AND standing = ?",
            [
                (f"{s3.MARKER_NAME} of this tool, which says whose root it is, or what lies beside it", *where)
                for marker in self._markers
                for where in [(marker.bucket, marker.prefix, Standing.UNKNOWN_LAYOUT)]
            ],
        )
        self._db.execute(
            "UPDATE unit SET standing = ?, evidence = 'it looks like a ' || replace(kind, '_', ' ') || '''s, and no "
            "row names it; no experiment is known to keep its artifacts there' WHERE standing IS NULL",
            (Standing.UNKNOWN_LAYOUT,),
        )
        self._db.execute(
            f"UPDATE unit SET standing = ?, lost = '', evidence = foreign_root "
            f"WHERE foreign_root IS NOT NULL AND {condemned}",
            (Standing.PROTECTED,),
        )
        if not judged:
            self._db.execute(
                "UPDATE unit SET standing = ?, lost = '', evidence = evidence || "
                f"'; what the model registry needs is not known' WHERE {condemned}",
                (Standing.NOT_JUDGED,),
            )
        if young_ms is not None:
            self._db.execute(
                "UPDATE unit SET standing = ?, lost = '', evidence = evidence || '; something in it is young' "
                f"WHERE {condemned} AND EXISTS (SELECT 1 FROM held h WHERE h.bucket = unit.bucket AND "
                "h.prefix = unit.prefix AND (h.undated OR h.newest_ms > ?))",
                (Standing.TOO_YOUNG, young_ms),
            )
        self._price()

    def _price(self) -> None:
        """The average price of each class, with its tiers at the whole audit's size: so that sums agree."""
        if self._prices is None:
            return
        sums = self._db.execute("SELECT class, sum(billed) FROM held WHERE class != '' GROUP BY class").fetchall()
        for named, billed in sums:
            whole, each = self._prices.monthly(named, billed), self._prices.monthly(named, 0, 1)
            if whole is not None and each is not None:
                row = (named, whole / billed if billed else 0.0, each)
                self._db.execute("INSERT INTO price VALUES (?, ?, ?)", row)

    # Reading

    def totals(self, by: Sequence[str], where: str = "1", values: Sequence[object] = ()) -> list[Total]:
        """Sums over the lines, grouped by up to two columns; the largest first."""
        first, second = (*by, "''", "''")[:2]
        query = (
            f"SELECT {first}, {second}, count(*), total(objects), total(versions), total(markers), total(uploads), "
            "total(size), total(old_size), CASE WHEN sum(money IS NULL) THEN NULL ELSE total(money) END "
            f"FROM line WHERE {where} GROUP BY 1, 2 ORDER BY total(size) + total(old_size) DESC, 1, 2"
        )
        rows = self._db.execute(query, values)
        return [
            Total(
                name=name or "", detail=detail or "", prefixes=prefixes, objects=int(objects), versions=int(versions),
                markers=int(markers), uploads=int(uploads), size=int(size), old_size=int(old_size), money=money,
            )
            for name, detail, prefixes, objects, versions, markers, uploads, size, old_size, money in rows
        ]  # fmt: skip

    def lines(
        self,
        where: str = "1",
        values: Sequence[object] = (),
        *,
        order: str = "bucket, prefix",
        limit: int | None = None,
    ) -> Iterator[Line]:
        """The lines that a condition on the view ``line`` lets through, one at a time."""
        query = f"SELECT * FROM line WHERE {where} ORDER BY {order} LIMIT ?"
        rows = self._db.execute(query, (*values, -1 if limit is None else limit))
        names = [column[0] for column in rows.description]
        for row in rows:
            yield _line(dict(zip(names, row, strict=True)))


def _nothing(_storage_class: str) -> int:
    return 0


def _new(found: dict[tuple[str, str], _Counts], prefix: str, storage_class: str) -> _Counts:
    counts = found[prefix, storage_class] = _Counts()
    return counts


def _line(row: Mapping[str, Any]) -> Line:
    return Line(
        **{
            **row,
            "kind": EntityKind(row["kind"]) if row["kind"] else None,
            "verdict": Standing(row["verdict"]),
            "undated": bool(row["undated"]),
            "classes": tuple(sorted((row["classes"] or "").split(","))) if row["classes"] else (),
        }
    )
