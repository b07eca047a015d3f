"""The loop: lease, inbox, what is due, sleep; and a clean end. Without it nothing is purged by itself.

An idle worker asks the database one query per poll. Whatever goes wrong is logged, and tried again later and later;
nothing of it reaches MLflow's server.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import database, journal, kept, lease, processes, rounds, s3, schema, settling
from mlflow_artifact_gc import session as sessions
from mlflow_artifact_gc.config import Settings, never_below, never_harsher
from mlflow_artifact_gc.errors import ArtifactGcError, DatabaseUnusable, RootRefused, TablesNotReady
from mlflow_artifact_gc.intake import Intake
from mlflow_artifact_gc.model import Limits
from mlflow_artifact_gc.quantities import show_duration

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from mlflow_artifact_gc.s3 import S3Client
    from mlflow_artifact_gc.session import Session
    from mlflow_artifact_gc.sweeping import Report

_logger = logging.getLogger("mlflow_artifact_gc.worker")

_POLL_MS: Final = 10_000
_LEASE_MS: Final = 60_000
_SCAN_S: Final = 3_600.0
_FIRST_SCAN_S: Final = 15.0
"""Once more soon after the first: a hook needs a second to see that our tables are there."""
_LONGEST_PAUSE_S: Final = 300.0
_CONCURRENCY: Final = 16
_TICK_S: Final = 0.2
_EXPLAIN_SHARE: Final = 60
"""Reading all references may take one part in so many of the time; on SQLite a user's commit waits for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What a worker works on; its server's own words. The URIs hold passwords."""

    backend_store_uri: str = field(repr=False)
    registry_store_uri: str | None = field(default=None, repr=False)
    artifacts_destination: str | None = None
    embedded: bool = False


class Worker:
    """One worker; several may run, and one of them works."""

    def __init__(self, assignment: Assignment, settings: Settings, stop: threading.Event) -> None:
        self._assignment, self._settings, self._stop = assignment, settings, stop
        self._owner = processes.identity()
        poll_ms = settings.poll_ms or _POLL_MS
        self._poll_s = poll_ms / 1000
        self._lease_ms = max(_LEASE_MS, 12 * poll_ms)
        self._engine: Engine | None = None
        self._session: Session | None = None
        self._settings_ms: int | None = None
        self._graced_ms: int | None = None
        self._client: S3Client | None = None
        self._scan_s = float("-inf")
        self._scanned = False
        self._unexplained: list[journal.Expected] = []
        self._kept_anew = False
        self._left: frozenset[int] = frozenset()
        self._explain_s = float("-inf")
        self._renew_s = float("inf")
        self._said = ""
        self._refused = ""
        self._worked = False

    def run(self) -> None:
        """Work until told to stop; the batch that is under way is finished first."""
        pause_s = self._poll_s
        try:
            while not self._stop.is_set():
                try:
                    self.turn()
                    pause_s = self._poll_s
                except TablesNotReady as error:
                    pause_s = self._poll_s
                    self._complain(error)
                except ArtifactGcError as error:
                    pause_s = min(max(2 * pause_s, 1.0), _LONGEST_PAUSE_S)
                    self._complain(error)
                self._rest()
                self._stop.wait(pause_s)
        finally:
            self.close()

    def close(self) -> None:
        """Let another worker go on at once."""
        if self._engine is not None:
            with suppress(DatabaseUnusable), database.writing(self._engine) as connection:
                lease.give_back(connection, owner=self._owner)
            self._engine.dispose()

    def _rest(self) -> None:
        """Let go of what only work needs: a round's plan, its connections, and the statements that were made for it."""
        if not self._worked or self._engine is None:
            return
        self._worked = False
        self._engine.dispose()
        self._engine.clear_compiled_cache()
        gc.collect()
        processes.give_memory_back()

    def _complain(self, error: ArtifactGcError) -> None:
        # Once: what lasts for days would fill the server's log.
        if str(error) != self._said:
            self._said = str(error)
            level = logging.INFO if isinstance(error, TablesNotReady) else logging.ERROR
            _logger.log(level, "%s", error)

    # One turn

    def turn(self) -> Report | None:
        """Look, and do what there is to do: with the lease, or by taking it if it is free.

        Raises:
            ArtifactGcError: nothing can be done now; nothing was lost.
        """
        engine = self._opened()
        if time.monotonic() >= self._renew_s:
            # In place of the look: an idle worker asks one query per poll.
            self._renew_s = float("inf")
            with database.writing(engine) as connection:
                lease.renew(connection, owner=self._owner, for_ms=self._lease_ms)
            return None
        with self._looking(engine), database.reading(engine) as connection:
            view = lease.look(connection)
        if view.settings_ms is None:
            raise TablesNotReady("The site's settings are absent: run 'mlflow-artifact-gc init'")
        if not view.free_for(self._owner):
            return None
        mine = view.owner == self._owner and view.until_ms > view.now_ms
        if self._session is None or view.reports or view.settings_ms != self._settings_ms:
            self._fit(engine, view)
        if mine:
            self._renew_s = time.monotonic() + (view.until_ms - view.now_ms) / 1000 - self._lease_ms / 2000
        elif not self._taken(engine, view):
            return None
        scan = time.monotonic() >= self._scan_s
        explain = bool(self._unexplained or self._kept_anew) and time.monotonic() >= self._explain_s
        due = view.next_look_ms is not None and view.next_look_ms <= view.now_ms
        if not (view.mail or scan or due or explain or self._graced_ms != self._settings_ms):
            return None
        self._worked = True
        try:
            with self._holding(engine) as halt:
                return self._work(halt, scan=scan)
        except ArtifactGcError:
            # Whatever it was that did not fit: opened anew, it is found again or it is gone.
            self._session = None
            raise

    def _opened(self) -> Engine:
        if self._engine is None:
            self._engine = database.open_engine(self._assignment.backend_store_uri, ping=False)
        return self._engine

    @contextmanager
    def _looking(self, engine: Engine) -> Iterator[None]:
        """Tells tables that are not there, or not ours, from a database that does not answer."""
        try:
            yield
        except DatabaseUnusable:
            with database.reading(engine) as connection:
                schema.require_current(connection)
            raise

    def _taken(self, engine: Engine, view: lease.View) -> bool:
        with database.writing(engine) as connection:
            return lease.take(connection, view, owner=self._owner, for_ms=self._lease_ms)

    def _fit(self, engine: Engine, view: lease.View) -> None:
        """Open the session for the settings of now; who does not fit them gets no lease, and gives his back.

        Raises:
            ArtifactGcError: as ``session.open_on`` and ``_require_site`` do.
        """
        try:
            self._report(engine)
            self._session = sessions.open_on(
                engine,
                registry_store_uri=self._assignment.registry_store_uri,
                artifacts_destination=self._assignment.artifacts_destination,
            )
            self._settings_ms = self._session.site.updated_ms
            self._require_site(self._session)
        except ArtifactGcError as error:
            self._session = None
            with database.writing(engine) as connection:
                if view.owner == self._owner:
                    lease.give_back(connection, owner=self._owner)
                if str(error) != self._refused:
                    lease.turn_away(connection, str(error))
            self._refused = str(error)
            raise

    def _report(self, engine: Engine) -> None:
        """What our server's parent may not have been able to say: our tables came later."""
        uri = self._assignment.registry_store_uri
        if not self._assignment.embedded or uri is None:
            return
        own = uri == self._assignment.backend_store_uri
        with database.reading(engine if own else sessions.registry_engine(uri)) as connection:
            registry = database.fingerprint(connection)
        sessions.report_server(engine, registry=registry, destination=self._assignment.artifacts_destination)

    def _require_site(self, session: Session) -> None:
        """Only a worker that sees the site's own buckets may have the lease.

        Raises:
            RootRefused: it has another destination, or another S3 endpoint.
        """
        said, own = session.site.artifacts_destination, self._assignment.artifacts_destination
        if said and own and not sessions.same_destination(said, own):
            raise RootRefused(
                f"This server's artifacts destination is {own}, and the site's is {said}: its worker does nothing. "
                "Start the server with the site's, or run 'mlflow-artifact-gc init --artifacts-destination'"
            )
        with database.reading(session.engine) as connection:
            known = journal.proven_endpoints(connection)
        endpoint = s3.endpoint_name(self._connected())
        if known and endpoint not in known:
            raise RootRefused(
                f"This process reaches S3 at {endpoint}, and the site's artifacts were found at "
                f"{', '.join(sorted(known))}: its worker does nothing. Set MLFLOW_S3_ENDPOINT_URL as the site has it; "
                "only if S3 was moved, run 'mlflow-artifact-gc init --adopt'"
            )

    def _connected(self) -> S3Client:
        if self._client is None:
            concurrency = self._settings.concurrency or _CONCURRENCY
            self._client = s3.connect(self._settings.environ, threads=concurrency)
        return self._client

    @contextmanager
    def _holding(self, engine: Engine) -> Iterator[threading.Event]:
        """Keeps the lease while work is done; what it yields is set when the work has to end."""
        halt, done = threading.Event(), threading.Event()

        def keep() -> None:
            renewed_s = time.monotonic()
            while not done.wait(_TICK_S):
                if self._stop.is_set():
                    halt.set()
                if time.monotonic() - renewed_s < self._lease_ms / 4000:
                    continue
                with suppress(DatabaseUnusable), database.writing(engine) as connection:
                    if not lease.renew(connection, owner=self._owner, for_ms=self._lease_ms):
                        halt.set()
                    renewed_s = time.monotonic()

        keeper = threading.Thread(target=keep, name="artifact-gc-worker-lease", daemon=True)
        keeper.start()
        try:
            yield halt
        finally:
            done.set()
            keeper.join()

    # Work

    def _work(self, halt: threading.Event, *, scan: bool) -> Report | None:
        session = self._session
        if session is None:
            raise AssertionError
        terms = self._terms(session)
        intake = Intake(session, grace_ms=terms.grace_ms, stopped=halt.is_set, left=self._left)
        if self._graced_ms != self._settings_ms:
            # Also those of another worker: whatever it put off is looked at anew.
            intake.date_anew()
            self._graced_ms = self._settings_ms
        taken = intake.drain()
        self._left = taken.left
        self._unexplained += taken.expected
        self._kept_anew |= taken.registry_changed
        if scan:
            self._unexplained += intake.scan().expected
            self._scan_s = time.monotonic() + (_SCAN_S if self._scanned else _FIRST_SCAN_S)
            self._scanned = True
        # S3 waits for nobody: before anything that may fail for another reason.
        self._settle(session, terms, halt, everything=scan or self._kept_anew)
        self._explain(session, terms)
        report = rounds.Round(session, terms, self._connected(), halt).run()
        if scan and not halt.is_set():
            rounds.look_twice(session, terms, self._connected(), halt)
            self._measure(session, halt)
        self._said = ""
        return report

    def _settle(self, session: Session, terms: rounds.Terms, halt: threading.Event, *, everything: bool) -> None:
        """What is hidden or tagged: restored meanwhile, needed again, or gone."""
        settler = settling.Settler(
            session=session,
            client=self._connected,
            grace_ms=terms.grace_ms,
            concurrency=terms.concurrency,
            stopped=halt.is_set,
        )
        settler.settle(everything=everything)

    def _measure(self, session: Session, halt: threading.Event) -> None:
        """What is kept in logged models of deleted runs, for ``status``."""
        with session.tracked.reading() as tracking:
            models = tracking.models_of_deleted_runs(most=sessions.MOST_KEPT)
        concurrency = self._settings.concurrency or _CONCURRENCY
        kept.measure(session, models, self._connected, concurrency=concurrency, stopped=halt.is_set)

    def _terms(self, session: Session) -> rounds.Terms:
        settings, site = self._settings, session.site
        limits = Limits()
        return rounds.Terms(
            grace_ms=never_below(site.grace_ms, settings.grace_ms),
            limits=Limits(
                max_share=limits.max_share if settings.max_share is None else settings.max_share,
                max_objects=settings.max_objects,
                max_bytes=settings.max_bytes,
                min_object_age_ms=never_below(site.min_object_age_ms, settings.min_object_age_ms),
            ),
            concurrency=settings.concurrency or _CONCURRENCY,
            action=never_harsher(site.action, settings.action),
        )

    def _explain(self, session: Session, terms: rounds.Terms) -> None:
        """Say early what will be kept; where reading all references is slow, only now and then."""
        started_s = time.monotonic()
        if not (self._unexplained or self._kept_anew) or started_s < self._explain_s:
            return
        rounds.explain(session, self._unexplained, terms, again=self._kept_anew)
        self._unexplained.clear()
        self._kept_anew = False
        self._explain_s = started_s + _EXPLAIN_SHARE * (time.monotonic() - started_s)


def describe(worker: Assignment, settings: Settings) -> str:
    """One line for the log."""
    poll = show_duration(settings.poll_ms or _POLL_MS)
    where = f", artifacts destination {worker.artifacts_destination}" if worker.artifacts_destination else ""
    return f"worker started (poll {poll}{where})"
