"""Lists every root once, several prefixes at a time, into a tally: what an audit knows of S3.

A root is split by a listing of its first level, an experiment that has many rows by one of its own. No order of keys is
assumed. What cannot be listed to its end is named, and never read as emptiness.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.errors import StorageError
from mlflow_artifact_gc.layouts import Layouts, outermost
from mlflow_artifact_gc.locations import WORKSPACES_FOLDER, Destination, Location, every_place
from mlflow_artifact_gc.model import EntityKind
from mlflow_artifact_gc.policy import server_root
from mlflow_artifact_gc.references import ID_MARK, Experiment
from mlflow_artifact_gc.s3 import Entry, Folder, Versioning
from mlflow_artifact_gc.surveying import Stopped, Surveyor

if TYPE_CHECKING:
    from mlflow_artifact_gc.model import Reference
    from mlflow_artifact_gc.s3 import S3Client
    from mlflow_artifact_gc.tallying import Tally

_MANY_ROWS: Final = 5_000
"""An experiment of so many rows is listed in parts."""
_HEAD: Final = 2
"""Characters of the ids that make a part: 256 of them."""
_ID: Final = re.compile(r"((?:m-|tr-)?)[0-9a-f]{32}")
_MOST_PARTS: Final = 2_000
"""Folders of one level that are listed apart; where there are more, one listing goes through all of them."""
_TICK_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Places:
    """Which roots there are, and what is known of the places in each bucket."""

    roots: tuple[Location, ...]
    layouts: Mapping[str, Layouts]
    large: frozenset[Location]
    """Locations of experiments that have many rows."""


def places(
    *,
    experiments: Sequence[Experiment],
    workspaces: Mapping[str, str],
    own_places: Iterable[Reference],
    rows: Mapping[tuple[EntityKind, str], int],
    destination: Destination,
    given: Sequence[Location],
) -> Places:
    """Everything that the tracking database names, and what a person named (``given``)."""
    roots: set[Location] = {destination.root} if destination.root else set()
    homes: dict[Location, tuple[str, str]] = {}
    for experiment in experiments:
        for home in every_place(experiment.uri, destination, experiment.workspace):
            whose = (experiment.id, experiment.workspace)
            if homes.setdefault(home, whose) != whose:
                homes[home] = ("", homes[home][1])  # Several share it: of what lost its row nothing tells whose it was.
            root = server_root(home, experiment.id, experiment.workspace)
            if root != home:
                roots.add(root)
    for name, uri in workspaces.items():
        roots.update(every_place(uri, destination, name) if uri else ())
    odd: set[Location] = set()
    for reference in own_places:
        text, mark, _ = reference.text.partition(ID_MARK)
        for place in every_place(text, destination, reference.workspace):
            if mark:
                _add_home(place, homes, (*roots, *given), reference.workspace)
            else:
                odd.add(place)
    counts: dict[str, int] = {}
    for (_, id_), count in rows.items():
        counts[id_] = counts.get(id_, 0) + count
    found = outermost([*roots, *homes, *odd, *given])
    return Places(
        roots=tuple(found),
        layouts={bucket: _layouts(bucket, roots, homes, odd, given) for bucket in {one.bucket for one in found}},
        large=frozenset(home for home, (id_, _) in homes.items() if counts.get(id_, 0) >= _MANY_ROWS),
    )


def _add_home(
    place: Location, homes: dict[Location, tuple[str, str]], roots: Sequence[Location], workspace: str
) -> None:
    """Rows have their own folders in ``place``: it is an experiment's location, or was one before a move."""
    folder = place.prefix.split("/")[-2:-1]
    if place not in homes and folder in (["models"], ["traces"]):
        place = place.parent()
    if place not in homes and not any(_makes(root, place) for root in roots):
        homes[place] = ("", workspace)


def _makes(root: Location, place: Location) -> bool:
    """Whether a server of ``root`` could have made ``place`` from an experiment's number."""
    segments = place.prefix[len(root.prefix) :].split("/")[:-1] if root.contains(place) else []
    if segments[:1] == [WORKSPACES_FOLDER]:
        segments = segments[2:]
    return len(segments) == 1 and segments[0].isdecimal()


def _layouts(
    bucket: str,
    roots: Iterable[Location],
    homes: Mapping[Location, tuple[str, str]],
    odd: Iterable[Location],
    given: Iterable[Location],
) -> Layouts:
    def here(locations: Iterable[Location]) -> frozenset[str]:
        return frozenset(one.prefix for one in locations if one.bucket == bucket)

    return Layouts(
        bucket=bucket,
        roots=here(roots),
        experiments={home.prefix: whose for home, whose in homes.items() if home.bucket == bucket},
        given=here(given),
        places=here(odd),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Unread:
    """A root, or the unfinished uploads of one, that could not be listed to the end."""

    root: Location
    error: StorageError


class _How(Enum):
    LEVEL = auto()
    WHOLE = auto()
    BENEATH = auto()
    """All but what lies directly there."""
    PART = auto()
    UPLOADS = auto()


@dataclass(frozen=True, slots=True)
class _Job:
    """One listing: of a ``prefix`` and, of a part, of the ids beneath it that begin with ``head``."""

    root: Location
    how: _How
    prefix: str
    head: str = ""


class Inventory:
    """Lists into a tally."""

    def __init__(self, client: S3Client, known: Places, tally: Tally, progress: Callable[[int], None]) -> None:
        self._client, self._known, self._tally, self._progress = client, known, tally, progress
        self._stop = threading.Event()
        self._surveyor = Surveyor(client, self._stop.is_set)
        self._listed = 0
        self._requested: dict[Future[list[_Job]], _Job] = {}

    def take(self, executor: Executor) -> list[Unread]:
        """List everything; what could not be listed, and why, once for each root."""
        unread: dict[Location, Unread] = {}
        try:
            for root in self._known.roots:
                self._request(executor, _Job(root, _How.LEVEL if self._is_split(root) else _How.WHOLE, root.prefix))
                self._request(executor, _Job(root, _How.UPLOADS, root.prefix))
            while self._requested:
                done, _ = wait(self._requested, timeout=_TICK_S, return_when=FIRST_COMPLETED)
                for future in done:
                    job = self._requested.pop(future)
                    try:
                        for further in future.result():
                            self._request(executor, further)
                    except StorageError as error:
                        unread.setdefault(job.root, Unread(root=job.root, error=error))
                self._progress(self._listed)
        finally:
            self._stop.set()
            for future in self._requested:
                future.cancel()
        return list(unread.values())

    def _request(self, executor: Executor, job: _Job) -> None:
        self._requested[executor.submit(self._do, job)] = job

    def _is_split(self, place: Location) -> bool:
        layouts = self._known.layouts[place.bucket]
        return place in self._known.large or place.prefix not in layouts.experiments

    def _do(self, job: _Job) -> list[_Job]:
        bucket, layouts = job.root.bucket, self._known.layouts[job.root.bucket]
        with_versions = self._surveyor.versioning(bucket) is not Versioning.NEVER
        further: dict[_Job, None] = {}
        listing = s3.versions if with_versions else s3.current
        match job.how:
            case _How.LEVEL:
                level = s3.level(self._client, bucket, job.prefix, with_versions=with_versions)
                entries = _without_folders(level, lambda folder: self._split(job, folder, further))
            case _How.WHOLE:
                entries = listing(self._client, bucket, job.prefix)
            case _How.BENEATH:
                entries = _beneath(listing(self._client, bucket, job.prefix), len(job.prefix))
            case _How.PART:
                entries = _of_ids(listing(self._client, bucket, job.prefix + job.head), len(job.prefix))
            case _How.UPLOADS:
                entries = s3.uploads(self._client, bucket, job.prefix)
        self._tally.count(self._watched(entries), layouts)
        return list(further) if len(further) <= _MOST_PARTS else [_Job(job.root, _How.BENEATH, job.prefix)]

    def _split(self, job: _Job, folder: str, further: dict[_Job, None]) -> None:
        if len(further) > _MOST_PARTS:
            return
        name = folder[len(job.prefix) : -1]
        found = _ID.fullmatch(name)
        if self._has_levels(job, folder, name):
            further[_Job(job.root, _How.LEVEL, folder)] = None
        elif found is None:
            further[_Job(job.root, _How.WHOLE, folder)] = None
        else:
            further[_Job(job.root, _How.PART, job.prefix, name[: found.end(1) + _HEAD])] = None

    def _has_levels(self, job: _Job, folder: str, name: str) -> bool:
        layouts, bucket = self._known.layouts[job.root.bucket], job.root.bucket
        servers = layouts.roots | layouts.given
        return (
            (name == WORKSPACES_FOLDER and job.prefix in servers)
            or any(job.prefix == f"{root}{WORKSPACES_FOLDER}/" for root in servers)
            or Location(bucket, folder) in self._known.large
            or (name in ("models", "traces") and Location(bucket, job.prefix) in self._known.large)
        )

    def _watched(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for number, entry in enumerate(entries, 1):
            if number % 1000 == 0:
                self._listed += 1000
                if self._stop.is_set():
                    raise Stopped
            yield entry


def _without_folders(level: Iterable[Entry | Folder], on_folder: Callable[[str], None]) -> Iterator[Entry]:
    for found in level:
        if isinstance(found, Folder):
            on_folder(found.prefix)
        else:
            yield found


def _beneath(entries: Iterable[Entry], start: int) -> Iterator[Entry]:
    return (entry for entry in entries if "/" in entry.key[start:])


def _of_ids(entries: Iterable[Entry], start: int) -> Iterator[Entry]:
    """Those in folders that are named by an id, which begin at ``start`` of the key: others are listed apart."""
    folder, wanted = "", False
    for entry in entries:
        if not folder or not entry.key.startswith(folder):
            name, slash, _ = entry.key[start:].partition("/")
            wanted = bool(slash) and _ID.fullmatch(name) is not None
            folder = entry.key[:start] + name + slash if slash else ""
        if wanted:
            yield entry
