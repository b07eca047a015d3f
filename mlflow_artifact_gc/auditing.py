"""``audit``: reconciles what lies in S3 with the tracking database and the model registry. Writes nothing, anywhere.

S3 is listed first and the rows are read after it: an object that was listed was written by somebody whose row, if it is
still there, is read. What a row's prefix is called is decided as ``gc`` decides it, by the same code; what no row
accounts for has to pass the same references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import (
    database,
    inbox,
    inventory,
    journal,
    leftovers,
    planning,
    policy,
    references,
    schema,
    session,
)
from mlflow_artifact_gc import registry as model_registry
from mlflow_artifact_gc.errors import ArtifactGcError, NotOnS3, ReferencesIncomplete, UnreadableUri, UsageError
from mlflow_artifact_gc.hides import CLOCKS_MS
from mlflow_artifact_gc.layouts import outermost
from mlflow_artifact_gc.locations import DEFAULT_WORKSPACE, Destination, Location, every_place, proxied_path
from mlflow_artifact_gc.model import Decision, Entity, EntityKind, Reason, Reference, Standing, Tombstone
from mlflow_artifact_gc.protection import Candidate, Protection
from mlflow_artifact_gc.quantities import show_duration, show_instant
from mlflow_artifact_gc.s3 import marker as markers

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from mlflow_artifact_gc.s3 import S3Client
    from mlflow_artifact_gc.tallying import Tally

_DAY_MS: Final = 86_400_000
_GRACE_MS: Final = 7 * _DAY_MS
_MIN_AGE_MS: Final = _DAY_MS
"""What ``init`` sets, where it has not been run yet."""
_BATCH: Final = 20_000
"""Prefixes without a row that are held against all references at a time."""
_BLOCK: Final = 5_000
_STANDINGS: Final = {
    Reason.DUE: Standing.DUE,
    Reason.GRACE: Standing.SOFT_DELETED,
    Reason.UNDATED: Standing.SOFT_DELETED,
    Reason.SWEPT_BEFORE: Standing.SOFT_DELETED,
    Reason.WAITING: Standing.SOFT_DELETED,
    Reason.UNDONE: Standing.SOFT_DELETED,
    Reason.PROTECTED: Standing.PROTECTED,
    Reason.NESTED: Standing.PROTECTED,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What an audit works with. ``site`` None: ``init`` has not been run, or its tables are of another version.

    ``registry`` None: which model registry the server uses is not known; ``registry_note`` says so. ``only``: list no
    more than these.
    """

    tracked: references.TrackingDatabase
    destination: Destination
    registry: Engine | None
    registry_note: str
    site: journal.Site | None
    site_note: str
    given: tuple[Location, ...]
    grace_ms: int
    min_age_ms: int
    only: tuple[Location, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Gone:
    """A row that says that there are artifacts, where nothing lies."""

    what: str
    place: Location
    evidence: str


@dataclass(kw_only=True, slots=True)
class Findings:
    """What is known beside the lines of the tally.

    ``empty_rows``: live rows with nothing in S3, by kind. ``experiments``: the names of those that are there, by id.
    ``unclear``: of which folders' markers it is not known whose they are, and why.
    """

    now_ms: int
    roots: tuple[Location, ...]
    unread: list[inventory.Unread]
    gone: list[Gone] = field(default_factory=list)
    empty_rows: dict[EntityKind, int] = field(default_factory=dict)
    experiments: dict[str, str] = field(default_factory=dict)
    unclear: list[str] = field(default_factory=list)


# Opening


def open_setting(
    *,
    backend_store_uri: str | None,
    registry_store_uri: str | None,
    artifacts_destination: str | None,
    roots: Sequence[str],
    older_than_ms: int | None,
    min_age_ms: int | None,
) -> Setting:
    """Reads what is set up, if anything is; needs none of our tables and changes nothing.

    Args:
        roots: further places to list.
        older_than_ms: in place of the site's grace period.
        min_age_ms: in place of the site's minimum age.

    Raises:
        UsageError, DatabaseUnusable, ReferencesIncomplete: with what to do.
    """
    engine = session.open_engine(backend_store_uri)
    with database.reading(engine) as connection:
        state = schema.state(connection)
        site = journal.read_site(connection) if state is schema.SchemaState.CURRENT else None
        reports = inbox.servers(connection) if site else []
        own = database.fingerprint(connection)
    reported = next((report.entity_id for report in reports), None)
    expected = (site.registry_fingerprint or reported) if site else None
    if site and expected == site.database_fingerprint:
        expected = own  # one database for both: they moved together
    told = next((report.uri for report in reports if report.uri), None)
    destination = session.readable_destination(
        artifacts_destination or (site.artifacts_destination if site else None) or told
    )
    registry, note = _registry(engine, own, expected, registry_store_uri)
    follow = site is not None and site.models is journal.Models.FOLLOW_RUN
    return Setting(
        tracked=references.TrackingDatabase.probe(engine, models_follow_run=follow),
        destination=destination,
        registry=registry,
        registry_note=note,
        site=site,
        site_note=_site_note(state, moved=site is not None and site.database_fingerprint != own),
        given=tuple(_given(uri, destination) for uri in roots),
        grace_ms=_first(older_than_ms, site.grace_ms if site else None, _GRACE_MS),
        min_age_ms=_first(min_age_ms, site.min_object_age_ms if site else None, _MIN_AGE_MS),
    )


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _site_note(state: schema.SchemaState, *, moved: bool) -> str:
    if moved:
        return (
            "This database was set up on another database server or path: it is a copy, or it was moved, and 'gc' "
            "refuses to purge anything here until 'init --adopt'."
        )
    what = {
        schema.SchemaState.ABSENT: "'init' has not been run here",
        schema.SchemaState.OLDER: "The tables of mlflow-artifact-gc are older than this version",
        schema.SchemaState.NEWER: "The tables of mlflow-artifact-gc are newer than this version",
    }
    if state not in what:
        return ""
    grace, age = show_duration(_GRACE_MS), show_duration(_MIN_AGE_MS)
    return f"{what[state]}: by default the grace period is {grace} and the minimum age {age}."


def _given(uri: str, destination: Destination) -> Location:
    try:
        return Location.parse(uri, destination)
    except (NotOnS3, UnreadableUri) as error:
        raise UsageError(
            f"--root {uri!r} cannot be listed ({error}): expected for example s3://bucket/prefix"
        ) from error


def _registry(engine: Engine, own: str, expected: str | None, uri: str | None) -> tuple[Engine | None, str]:
    """The model registry's engine, or None and why it is not known."""
    if uri:
        other = session.registry_engine(uri)
        with database.reading(other) as connection:
            found = database.fingerprint(connection)
            model_registry.Registry(connection)
        if expected is not None and found != expected:
            raise ReferencesIncomplete(
                "This is not the model registry that the site is known to use: give the one that the server uses with "
                "--registry-store-uri"
            )
        if found == own:
            other.dispose()
            return engine, ""
        return other, ""
    unknown = "Which model registry the server uses is not known, so nothing is called garbage: give it with"
    if expected is not None and expected != own:
        return None, f"{unknown} --registry-store-uri (it is another database than this one)."
    if expected == own:
        return engine, ""
    with suppress(ReferencesIncomplete), database.reading(engine) as connection:
        if not model_registry.Registry(connection).empty:
            return engine, ""
    return None, f"{unknown} --registry-store-uri (this database holds no model version; its own URI if it is the one)."


# Auditing


def audit(
    setting: Setting, client: S3Client, tally: Tally, *, concurrency: int, progress: Callable[[int], None]
) -> Findings:
    """List, and judge every prefix; the lines are in ``tally`` then.

    Raises:
        ReferencesIncomplete, DatabaseUnusable: what needs what is not known.
        StorageError: no root could be listed.
    """
    known = places(setting)
    with ThreadPoolExecutor(concurrency) as executor:
        unread = inventory.Inventory(client, known, tally, progress).take(executor)
    if unread and {one.root for one in unread} == set(known.roots):
        raise unread[0].error
    with database.reading(setting.tracked.engine) as connection:
        now_ms = database.clock_ms(connection)
    findings = Findings(now_ms=now_ms, roots=known.roots, unread=unread)
    _Judge(setting, client, tally, findings).judge()
    return findings


def places(setting: Setting) -> inventory.Places:
    """The roots, and what is known of the places beneath them.

    Raises:
        ReferencesIncomplete: something is proxied, and nobody said where the proxy keeps its objects.
    """
    with setting.tracked.reading() as tracking:
        experiments, workspaces = tracking.experiments(), tracking.workspaces()
        own_places, rows = tracking.own_places(), tracking.entity_rows()
    _require_destination(own_places, experiments, setting.destination)
    known = inventory.places(
        experiments=experiments,
        workspaces=workspaces,
        own_places=own_places,
        rows=rows,
        destination=setting.destination,
        given=setting.given,
    )
    return replace(known, roots=tuple(outermost(setting.only))) if setting.only else known


def _require_destination(
    own_places: Iterable[Reference], experiments: Iterable[references.Experiment], destination: Destination
) -> None:
    if destination.known:
        return
    for text in (*(place.text for place in own_places), *(one.uri for one in experiments)):
        with suppress(UnreadableUri):
            if proxied_path(text) is not None:
                raise ReferencesIncomplete(
                    "Some artifacts are proxied (mlflow-artifacts:), and where the proxy keeps its objects is not "
                    "known: give --artifacts-destination as the server has it"
                )


class _Judge:
    """Gives each unit of a tally its one verdict."""

    def __init__(self, setting: Setting, client: S3Client, tally: Tally, findings: Findings) -> None:
        self._setting, self._client, self._tally, self._findings = setting, client, tally, findings
        self._maybe_gone: list[tuple[str, str, Location]] = []

    def judge(self) -> None:
        tracked = self._setting.tracked
        found = references.read(tracked, self._setting.registry)
        with database.reading(tracked.engine) as connection:
            tracking = tracked.on(connection)
            experiments, workspaces = tracking.experiments(), tracking.workspaces()
            done = journal.done(connection) if self._setting.site else journal.Done()
        self._findings.experiments = {one.id: one.name for one in experiments}
        self._own_rows(found, done)
        self._left_over(found, experiments, workspaces)
        self._foreign_roots()
        self._references_without_objects(found)
        age_ms = self._setting.min_age_ms
        young_ms = self._findings.now_ms - age_ms - CLOCKS_MS if age_ms else None
        self._tally.settle(young_ms=young_ms, judged=self._setting.registry is not None)

    def _own_rows(self, found: Sequence[Reference], done: journal.Done) -> None:
        """What rows account for. The deleted ones are decided some thousands at a time: all at once are much memory."""
        waiting: list[Tombstone] = []
        for rows, deleted in self._setting.tracked.own_rows(_BLOCK):
            waiting += deleted
            gone = {one.entity.id for one in deleted}
            with self._tally.transaction():
                self._rows(rows, gone)
            if len(waiting) >= _BATCH:
                self._tombstones(waiting, found, done)
                waiting = []
        self._tombstones(waiting, found, done)
        self._ask_runs()

    # What is deleted

    def _tombstones(self, tombstones: Sequence[Tombstone], found: Sequence[Reference], done: journal.Done) -> None:
        with self._setting.tracked.reading() as tracking:
            owners = tracking.owners(planning.ids_in_places(tombstones))
        facts = planning.Facts(
            tombstones=tombstones,
            references=found,
            owners=owners,
            destination=self._setting.destination,
            swept_ms=done.swept_ms,
            waiting_ms=done.waiting_ms,
            undone_ms=done.undone_ms,
        )
        cutoff_ms = self._findings.now_ms - self._setting.grace_ms
        lines = planning.decisions(facts, policy.Scope(), cutoff_ms=cutoff_ms, include_undated=False, again=False)
        with self._tally.transaction():
            self._deleted_lines(lines)

    def _deleted_lines(self, lines: Iterable[Decision]) -> None:
        for line in lines:
            entity, place = line.entity, line.location
            standing = _STANDINGS.get(line.reason, Standing.UNKNOWN_LAYOUT)
            places = (place,) if place else every_place(line.uri, self._setting.destination, entity.workspace)
            until_ms = None
            if line.reason is Reason.GRACE and line.deleted_ms is not None:
                until_ms = line.deleted_ms + self._setting.grace_ms
            for one in places:
                self._tally.judge(
                    one,
                    standing,
                    evidence=_told(line),
                    until_ms=until_ms,
                    experiment=entity.experiment_id,
                    workspace=entity.workspace,
                )

    # What is live

    def _rows(self, rows: Iterable[references.OwnRow], deleted: set[str]) -> None:
        for row in rows:
            entity = row.tombstone.entity
            places = every_place(row.tombstone.uri, self._setting.destination, entity.workspace)
            if entity.id in deleted:
                for place in places:
                    self._tally.own(place, row.owner)
                continue
            there = [self._live(place, row) for place in places]
            if places and not any(there) and not any(self._tally.holds(place) for place in places):
                self._nothing_of(row, places[0])

    def _live(self, place: Location, row: references.OwnRow) -> int:
        entity = row.tombstone.entity
        return self._tally.judge(
            place,
            Standing.LIVE,
            evidence=f"{entity}, live",
            until_ms=None,
            experiment=entity.experiment_id,
            workspace=entity.workspace,
            owner=row.owner,
        )

    def _nothing_of(self, row: references.OwnRow, place: Location) -> None:
        entity = row.tombstone.entity
        if not self._is_read(place):
            return
        counts = self._findings.empty_rows
        counts[entity.kind] = counts.get(entity.kind, 0) + 1
        if row.full:
            says = {
                EntityKind.LOGGED_MODEL: "its row says that its files were written",
                EntityKind.TRACE: "its row says that its spans were archived there",
            }
            self._findings.gone.append(Gone(what=str(entity), place=place, evidence=says.get(entity.kind, "")))
        elif entity.kind is EntityKind.RUN:
            self._maybe_gone.append((entity.id, str(entity), place))
            if len(self._maybe_gone) >= _BLOCK:
                self._ask_runs()

    def _ask_runs(self) -> None:
        with self._setting.tracked.reading() as tracking:
            full = tracking.with_logged_artifacts(id_ for id_, _, _ in self._maybe_gone)
        self._findings.gone += [
            Gone(what=what, place=place, evidence="its tags tell of artifacts that MLflow has written")
            for id_, what, place in self._maybe_gone
            if id_ in full
        ]
        self._maybe_gone.clear()

    def _is_read(self, place: Location) -> bool:
        unread = {one.root for one in self._findings.unread}
        return any(root.contains(place) and root not in unread for root in self._findings.roots)

    # What no row accounts for

    def _left_over(
        self, found: Sequence[Reference], experiments: Sequence[references.Experiment], workspaces: Iterable[str]
    ) -> None:
        known = {one.id for one in experiments}
        names = {one.workspace for one in experiments} | set(workspaces) | {DEFAULT_WORKSPACE, ""}
        for batch in self._tally.undecided(recognised=True, batch=_BATCH):
            candidates = [Candidate(id_, place, experiment_id) for place, _, id_, experiment_id, _ in batch]
            protection = Protection(candidates, self._setting.destination)
            holders: dict[int, str] = {}
            for reference in found:
                for hit in protection.protected_by(reference):
                    holders.setdefault(hit, reference.holder)
            with self._setting.tracked.reading() as tracking:
                owners = tracking.owners(id_ for _, _, id_, _, _ in batch)
            with self._tally.transaction():
                self._without_row(batch, holders, owners, known, names)

    def _without_row(
        self,
        batch: Sequence[tuple[Location, EntityKind, str, str, str]],
        holders: dict[int, str],
        owners: dict[str, str],
        experiments: set[str],
        workspaces: set[str],
    ) -> None:
        for position, (place, kind, id_, experiment, workspace) in enumerate(batch):
            if id_ in owners:
                evidence = f"{owners[id_]}, whose row names another place"
                self._tally.judge(place, Standing.PROTECTED, evidence=evidence)
            elif position in holders:
                self._tally.judge(place, Standing.PROTECTED, evidence=holders[position])
            else:
                entity = Entity(kind=kind, id=id_, experiment_id=experiment, workspace=workspace)
                lost, evidence = leftovers.lost(entity, experiments, workspaces)
                self._tally.judge(place, Standing.LEFT_OVER, lost=lost, evidence=evidence)

    # What is another's

    def _foreign_roots(self) -> None:
        own = self._setting.site.database_id if self._setting.site else None
        # As a sweep does: above its root too, where no listing of ours comes, and ours beneath another's is no excuse.
        above = {folder for root in self._findings.roots for folder in root.ancestors()[1:]}
        for folder in (*sorted(above), *self._tally.markers):
            try:
                marker = markers.read(self._client, folder)
            except ArtifactGcError as error:
                why: str | None = f"whose root {folder.uri} is, is not known: {error}"
                self._findings.unclear.append(f"Whose root {folder.uri} is, is not known: {error}")
            else:
                foreign = marker is not None and marker.database_id != own
                why = f"the marker of {folder.uri} names another tracking database" if foreign else None
            if why is not None:
                self._tally.foreign(folder, why)

    # What is named, and not there

    def _references_without_objects(self, found: Iterable[Reference]) -> None:
        told: set[tuple[str, Location]] = set()
        for reference in found:
            if not reference.holder.startswith("registered model "):
                continue
            places = every_place(reference.text, self._setting.destination, reference.workspace)
            read = [place for place in places if self._is_read(place)]
            # Without the column: both often name one place.
            what = reference.holder.rpartition(", ")[0]
            if read and (what, read[0]) not in told and not any(self._tally.holds(place) for place in places):
                told.add((what, read[0]))
                self._findings.gone.append(
                    Gone(what=what, place=read[0], evidence="the version's files should lie there")
                )


def _told(line: Decision) -> str:
    deleted = (
        f"{line.entity}, deleted {show_instant(line.deleted_ms)}" if line.deleted_ms else f"{line.entity}, deleted"
    )
    if line.reason in (Reason.PROTECTED, Reason.NESTED):
        return line.evidence
    return deleted if line.reason in (Reason.DUE, Reason.GRACE) else f"{deleted}: {line.reason.sentence}"
