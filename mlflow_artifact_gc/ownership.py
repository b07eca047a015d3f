"""Whose root is it? A marker object at each root says so, and an object of our own rows proves the place.

The epoch is raised and committed in the database first and put into the marker after; the marker is read first and the
database after. So a crash between the two leaves the marker behind the database, which goes on, and a database that
was restored from yesterday finds the marker ahead of it, which stops.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import database, journal, s3
from mlflow_artifact_gc.errors import ArtifactGcError, DestinationUnproven, RootRefused, StorageError
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Decision, Outcome
from mlflow_artifact_gc.s3 import marker

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from mlflow_artifact_gc.s3 import S3Client

_PROOF_ATTEMPTS: Final = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Whether we may sweep under a root. ``outcome`` None: yes. ``proven``: it is the place that MLflow writes to."""

    proven: bool = False
    outcome: Outcome | None = None
    detail: str = ""


class Roots:
    """The roots of one sweep."""

    def __init__(
        self,
        *,
        engine: Engine,
        client: S3Client,
        site: journal.Site,
        destination: Destination,
        executor: Executor,
        marked_only: bool = False,
        by_rows: bool = True,
    ) -> None:
        """With ``marked_only`` a root without a marker is nobody's: what lies there has no row that would prove it.

        Without ``by_rows`` what is found there proves no root: that MLflow writes there only rows can show.
        """
        self._engine = engine
        self._client = client
        self._site = site
        self._destination = destination
        self._executor = executor
        self._marked_only = marked_only
        self._by_rows = by_rows and not marked_only
        self._around: dict[Location, Standing] = {}
        self._found: dict[Location, marker.Marker | None] = {}
        self._epochs: dict[Location, int] = {}

    def compared(self, root: Location) -> Standing:
        """Compare the root's marker with the database, before a batch of its locations is acted on.

        Raises:
            BucketPaused, Transient: that cannot be said.
        """
        try:
            self._found[root] = self._compare(root)
            if self._marked_only and self._found[root] is None:
                return Standing(outcome=Outcome.PAUSED, detail=unmarked(root))
            return Standing()
        except RootRefused as error:
            return Standing(outcome=Outcome.PAUSED, detail=str(error))
        except _Foreign as error:
            return Standing(outcome=Outcome.FOREIGN, detail=str(error))

    def around(self, places: Iterable[Location]) -> dict[Location, Standing]:
        """Of each place in which something was done before, whether its root is still what it was then, by its marker.

        In an empty bucket that has taken the place of the right one, everything would seem to have gone. What cannot be
        said is ``PAUSED``, too.
        """
        with database.reading(self._engine) as connection:
            marked = [Location.parse(uri, Destination()) for uri in journal.marked_roots(connection)]
        compared: dict[Location, Standing] = {}
        found: dict[Location, Standing] = {}
        for place in places:
            root = max((one for one in marked if one.contains(place)), key=lambda one: len(one.prefix), default=None)
            if root is None:
                why = f"no root that this database has marked contains {place.uri}: whose it is now is not known"
                found[place] = Standing(outcome=Outcome.PAUSED, detail=why)
                continue
            if root not in compared:
                try:
                    compared[root] = self.compared(root)
                except StorageError as error:
                    compared[root] = Standing(outcome=Outcome.PAUSED, detail=str(error))
            found[place] = compared[root]
        return found

    def standing(self, root: Location, others: Iterable[Location], *, occupied: bool) -> Standing:
        """Whether we may delete under a root whose marker was just compared.

        The first time, the root is proven and its marker is written or raised.

        Args:
            others: locations of further rows: an object in one of them proves the root.
            occupied: something was just seen in a location of ours under it, which proves it.

        Raises:
            BucketPaused, Transient: that cannot be said.
        """
        try:
            return Standing(proven=True) if root in self._epochs else self._enter(root, others, occupied=occupied)
        except RootRefused as error:
            return Standing(outcome=Outcome.PAUSED, detail=str(error))
        except _Foreign as error:
            return Standing(outcome=Outcome.FOREIGN, detail=str(error))

    def owned(self, root: Location) -> str:
        """Why a root is not this database's by its marker, and its alone by a person's word; empty where it is.

        A marker says that we sweep there, and not that no other server, which has none of ours, keeps its artifacts
        there too: its runs would look like what no row accounts for.

        Raises:
            RootRefused: this database is a copy, or was moved or put back; or the marker is gone.
            BucketPaused, Transient: that cannot be said.
        """
        if why := self.foreign(root):
            return why
        if self._compare(root) is None:
            return unmarked(root)
        with database.reading(self._engine) as connection:
            return "" if journal.is_owned(connection, root) else _unsaid(root)

    def foreign(self, root: Location) -> str:
        """Which other database's a root is, by a marker in it or in a folder around it; empty: no other's.

        Raises:
            RootRefused, BucketPaused, Transient: as ``owned`` does.
        """
        try:
            for folder in root.ancestors():
                found = marker.read(self._client, folder)
                if found is not None:
                    self._require_ours(folder, found)
        except _Foreign as error:
            return str(error)
        return ""

    def standing_around(self, root: Location, line: Decision) -> Standing:
        """Whether another marker lies in a folder around the location, above ``root`` or beneath it.

        Asked of the folder that holds the entity's own, and of all above it, once each. The entity's own folder and
        what is in it are seen by the listing.

        Raises:
            BucketPaused, Transient: that cannot be said.
        """
        folders = line.location.parent(2).ancestors() if line.location else ()
        refused = (self._marked(folder) for folder in folders if folder != root)
        return next((standing for standing in refused if standing.outcome is not None), Standing())

    def _marked(self, folder: Location) -> Standing:
        if folder not in self._around:
            try:
                self._around[folder] = Standing()
                found = marker.read(self._client, folder)
                if found is not None:
                    self._require_ours(folder, found)
            except RootRefused as error:
                self._around[folder] = Standing(outcome=Outcome.PAUSED, detail=str(error))
            except _Foreign as error:
                self._around[folder] = Standing(outcome=Outcome.FOREIGN, detail=str(error))
            except StorageError:
                del self._around[folder]
                raise
        return self._around[folder]

    def _require_ours(self, folder: Location, found: marker.Marker) -> None:
        if found.database_id != self._site.database_id:
            raise _Foreign(_whose(folder, found))
        with database.reading(self._engine) as connection:
            fingerprint = database.fingerprint(connection)
        if found.fingerprint != fingerprint:
            raise RootRefused(
                f"The marker object in {folder.uri} was written by this tracking database on another server: "
                "this one is a copy, or it was moved. Only if it was moved, run 'mlflow-artifact-gc init --adopt'"
            )

    def _enter(self, root: Location, others: Iterable[Location], *, occupied: bool) -> Standing:
        source = "destination" if root == self._destination.root else "experiments"
        endpoint = s3.endpoint_name(self._client)

        def see(connection: Connection) -> journal.Root:
            now_ms = database.clock_ms(connection)
            return journal.see_root(connection, root, source=source, endpoint=endpoint, now_ms=now_ms)

        row = database.written(self._engine, see)
        known = row.proven_ms is not None and self._found.get(root) is not None
        proven = occupied or known or self._prove(root, others)
        if not proven:
            return self._unproven(root)
        # What has no row proves nothing: only a row says where MLflow writes to.
        written = self._raised(root, proven=self._by_rows)
        # Another process may have made the root its own while the listings ran: never put over a marker unread.
        if self._found.get(root) is not None or not marker.create(self._client, root, written):
            self._compare(root)
            marker.write(self._client, root, written)
        self._note(root, written)
        return Standing(proven=True)

    def _unproven(self, root: Location) -> Standing:
        if root != self._destination.root:
            # Nothing is there, so nothing can be deleted: the locations will turn out to be empty.
            return Standing(proven=False)
        error = DestinationUnproven(
            f"None of the objects that MLflow knows of was found under {root.uri} at "
            f"{s3.endpoint_name(self._client)}, so nothing under it was touched: give --artifacts-destination and "
            "MLFLOW_S3_ENDPOINT_URL as the server has them"
        )
        return Standing(outcome=Outcome.PAUSED, detail=str(error))

    def _compare(self, root: Location) -> marker.Marker | None:
        found = marker.read(self._client, root)
        with database.reading(self._engine) as connection:
            row = journal.read_root(connection, root)
        if found is None:
            if row is not None and row.marker_epoch > 0:
                raise RootRefused(
                    f"The marker object under {root.uri} is gone, and this database has written one: was the bucket "
                    "replaced? If it is the right one, run 'mlflow-artifact-gc init --adopt'"
                )
            return None
        self._require_ours(root, found)
        epoch = row.epoch if row else 0
        if found.epoch > epoch:
            raise RootRefused(
                f"The marker object under {root.uri} is ahead of this database (epoch {found.epoch} against {epoch}): "
                "the database was restored from a backup, or is a copy. Only if it is the one in use, run "
                "'mlflow-artifact-gc init --adopt'"
            )
        return found

    def _raised(self, root: Location, *, at_least: int = 0, proven: bool = True) -> marker.Marker:
        """The root's next marker: its epoch is committed before it is put."""
        with database.writing(self._engine) as connection:
            if proven:
                journal.root_proven(connection, root, database.clock_ms(connection))
            epoch = journal.raise_epoch(connection, root, at_least=at_least)
            fingerprint = database.fingerprint(connection)
        return marker.Marker(database_id=self._site.database_id, epoch=epoch, fingerprint=fingerprint)

    def _note(self, root: Location, written: marker.Marker) -> None:
        with database.writing(self._engine) as connection:
            journal.marker_written(connection, root, written.epoch)
        self._epochs[root] = written.epoch

    def adopt(self, root: Location) -> int:
        """Take a root over for this database, after it was moved or restored; returns the new epoch.

        Raises:
            RootRefused: another tracking database owns it.
        """
        found = marker.read(self._client, root)
        if found is not None and found.database_id != self._site.database_id:
            raise RootRefused(f"{_whose(root, found)}: it cannot be adopted")
        written = self._raised(root, at_least=found.epoch if found else 0)
        marker.write(self._client, root, written)
        self._note(root, written)
        return written.epoch

    def _prove(self, root: Location, others: Iterable[Location]) -> bool:
        """Whether an object of any row of ours is there: then it is the store that MLflow writes to."""
        beside = list(islice((place for place in others if root.contains(place)), _PROOF_ATTEMPTS))
        # A few at a time, and usually the first few suffice.
        return any(any(self._executor.map(self._occupied, group)) for group in _growing(beside))

    def _occupied(self, location: Location) -> bool:
        for listing in (s3.versions, s3.uploads):
            if next(listing(self._client, location.bucket, location.prefix), None) is not None:
                return True
        return False


def unmarked(root: Location) -> str:
    """Why nothing is swept under a root without a marker."""
    return f"{root.uri} has no marker of this database: 'gc --own-roots' shows what lies there and writes it"


def _unsaid(root: Location) -> str:
    return (
        f"nobody has said yet that no other MLflow server keeps its artifacts under {root.uri}: 'gc --own-roots' shows "
        "what lies there, and asks"
    )


class _Foreign(ArtifactGcError):
    """Another tracking database owns this root."""


def _whose(root: Location, found: marker.Marker | None) -> str:
    owner = found.database_id if found else "nobody"
    return f"{root.uri} belongs to another tracking database ({owner}), by its marker object"


def _growing(places: Sequence[Location]) -> Iterable[Sequence[Location]]:
    start, size = 0, 8
    while start < len(places):
        yield places[start : start + size]
        start, size = start + size, size * 2
