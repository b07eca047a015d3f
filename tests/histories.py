"""Random histories of a real MLflow store on the tests' own S3; after each step an oracle that knows not our code.

``History`` is a state machine of Hypothesis: what users do (runs, uploads, deletions, restores, models), what people
keep (holds, keep tags, another database's markers), what sweeps (our ``gc``, also ``--partial`` and ``--orphans``, the
worker, ``mlflow gc``), and what goes wrong meanwhile (S3's faults, SIGKILL, somebody who acts at any request of a
sweep, time that passes). The oracle takes the truth from the server's memory and from MLflow's rows.

    python -m tests.histories 100000 [hide|tag]    as many steps, with a seed that is printed (TEST_SEED repeats it)

Those of ``hide`` and ``tag`` are in ``tests.waiting_histories``.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.internal.cache import LRUCache
from hypothesis.internal.constants_ast import Constants
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from mlflow_artifact_gc.fence import Fence
from tests import hurry, oracle
from tests.command import init, run
from tests.crashing import POINTS, Crashes, Moment, crashes
from tests.fakes3 import FakeS3, Fault, Kind, Request, fake_s3
from tests.fakes3.faults import FOR_GOOD, OF_KEYS, OF_LISTINGS
from tests.fakes3.keeping import Bucket, Upload, Version
from tests.keepers import FOR_EVER, MODEL, Ended, Keepers
from tests.site import DAY_MS, Content, Row, Site, Snapshot
from tests.stock import mlflow_gc
from tests.working import elapse, watched, worker

HOUR_MS = 3_600_000
GRACE_MS = 2 * DAY_MS
MIN_AGE_MS = DAY_MS
QUARANTINE_MS = DAY_MS
SLACK_MS = 10 * 60_000
"""What the steps themselves take, and what clocks may differ by."""
LONGEST = 60
"""Steps of one history."""
ENOUGH = 4_000
"""After so many steps, everything that is ``shown`` has happened, or something keeps it from happening."""
BUCKET = "history"
SHRINKS = os.environ.get("SOAK_SHRINKS", "") == "1"
"""Whether a history that fails is made smaller before it is shown: that takes minutes."""
JOURNALED = ("deleted_objects", "deleted_versions", "deleted_markers", "deleted_bytes", "aborted_uploads")
OPERATIONS = (
    "ListObjectsV2",
    "ListObjectVersions",
    "ListMultipartUploads",
    "GetBucketVersioning",
    "GetObject",
    "PutObject",
    "DeleteObjects",
    "DeleteObject",
    "AbortMultipartUpload",
)

OF_USERS = [
    *["new_run"] * 4,
    *["delete_run"] * 6,
    *["restore_run"] * 4,
    *["upload"] * 6,
    *["register"] * 4,
    *["new_model", "delete_model"] * 3,
    *["new_trace", "delete_trace", "delete_version", "alias"],
    *["delete_experiment", "restore_experiment", "restore_experiment"],
]
"""The names of what users do, as often as they do it."""


def possible(operation: str) -> list[Kind]:
    """The faults that an operation can meet. Without timeouts, which cost a second: test_faults.py has them."""
    listing, keys = operation.startswith("List"), operation == "DeleteObjects"
    left_out = {Kind.TIMEOUT, Kind.TIMEOUT_AFTER, *(() if listing else OF_LISTINGS), *(() if keys else OF_KEYS)}
    return [kind for kind in Kind if kind not in left_out]


def planned(what: tuple[str, Kind], nth: int, times: int) -> Fault:
    """A fault that has not struck yet."""
    return Fault(kind=what[1], operation=what[0], nth=nth, times=times)


NUMBER = st.integers(0, 2**32)
_MOST_ROUNDS = 12
_LITTLE = 300
"""Where so few steps are missing, or something that was never done,"""
_MORE = 2
"""so many histories are added at a time."""
HELD = ("hold", "keep tag", "hold before the fence", "keep tag before the fence")
MEANWHILE = ("restore", "register", "write", "new run", "delete", "gc", *HELD)
OF_WHAT_HAS_NO_ROW = ("its row comes back", "it is written to", *HELD)
OF_WHAT_IS_SWEPT = (*HELD, *OF_WHAT_HAS_NO_ROW[:2])
"""What somebody does to the very entity that is about to go: of another it would show nothing."""
MOST_KEPT = 3
"""So many holds, keep tags and foreign markers at a time: where all is kept nothing goes."""
Interruption = tuple[str, int, int]
"""What somebody does, at which request of the sweep, and to which entity."""


class Thing(NamedTuple):
    """Something in the bucket: what makes it the same before and after."""

    key: str
    version_id: str
    is_upload: bool


class State(NamedTuple):
    """What it is just now."""

    kind: str
    size: int
    modified_ms: int


Things = Mapping[Thing, State]


@dataclass(kw_only=True)
class World:
    """What all histories share."""

    fake: FakeS3
    forks: Crashes
    template: Path
    folder: Path
    steps: int = 0
    histories: int = 0
    did: Counter[str] = field(default_factory=Counter)


@contextmanager
def a_world(template: Path) -> Iterator[World]:
    """The server, the process that forks, and no waiting between tries."""
    with ExitStack() as stack:
        fake = stack.enter_context(fake_s3())
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in fake.server.environ().items():
            patched.setenv(name, value)
        patched.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _seconds: None))
        patched.setattr("mlflow_artifact_gc.acting._PAUSE_S", 0.0)
        # Hypothesis likes the numbers in the modules that are imported: a seed would mean another history whenever
        # other tests ran before.
        patched.setattr("hypothesis.internal.conjecture.providers._get_local_constants", Constants)
        patched.setattr("hypothesis.internal.conjecture.providers.CONSTANTS_CACHE", LRUCache(1024))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield World(fake=fake, forks=stack.enter_context(crashes()), template=template, folder=folder)


def run_histories(
    world: World,
    steps: int,
    first_seed: int,
    kind: type[History] | None = None,
    *,
    at_a_time: int = 10,
    missing: Callable[[], object] = lambda: None,
) -> None:
    """Histories until they have made ``steps`` steps, and then until nothing is ``missing``, but not for ever.

    A failure prints its seed and is made smaller.
    """

    class Here(kind or History):  # type: ignore[misc]
        shared = world

    number = first_seed
    # Hypothesis leaves rules out for a whole history, and may leave out the same ones in each of a few.
    while world.steps < steps or (missing() and number < first_seed + _MOST_ROUNDS):
        little = number > first_seed and steps - world.steps < _LITTLE
        chosen = settings(
            max_examples=_MORE if little else at_a_time,
            stateful_step_count=LONGEST,
            deadline=None,
            database=None,
            print_blob=True,
            phases=(Phase.generate, *((Phase.shrink,) if SHRINKS else ())),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        print(f"histories: seed {number}", flush=True)  # noqa: T201 - pytest shows it where one fails
        run_state_machine_as_test(seed(number)(Here), settings=chosen)
        number += 1


class History(RuleBasedStateMachine):
    """One history. ``action`` is what a sweep does to what is garbage."""

    shared: ClassVar[World]
    action: ClassVar[str] = "purge"
    codes: ClassVar[tuple[int, ...]] = (0, 1, 3)
    """How a ``gc`` may end."""
    shown: ClassVar[tuple[str, ...]] = (
        *("locations swept", "locations swept in part", "orphaned things gone", "faults met", "mlflow gc", "let go"),
        *("killed: request", "killed: statement", "killed: commit", "killed: delete", "another's marker"),
        *(f"meanwhile: {what}" for what in (*MEANWHILE, *OF_WHAT_HAS_NO_ROW)),
    )
    """What a soak counts, and has to have done."""
    site: Site

    def __init__(self) -> None:
        super().__init__()
        self.world = self.shared
        self.fake = self.world.fake
        self.now_ms = 0
        self.dead_since: dict[str, int] = {}
        self.owner_of: dict[str, str] = {}
        self.uploads: list[tuple[str, str]] = []
        self.numbers = 0
        self.rolls = 0
        self.order: dict[str, int] = {}
        self.meanwhile: Things = {}
        self.mishaps: list[BaseException] = []
        self.removed: list[State] = []
        self.about_to_go = ""
        self.lost_rows: dict[str, tuple[Row, dict[str, Any]]] = {}
        """Of runs whose row was removed by hand what the row was, and all that MLflow's table said."""
        self.seen_since: dict[tuple[Thing, int], int] = {}
        """Since when a search for orphans may have seen a thing, as it was written then; both in the history's time."""
        self.fake.kept.removed = self.note_removed

    @initialize(versioning=st.sampled_from(["", "", "Enabled", "Suspended"]), proxied=st.booleans())
    def begin(self, versioning: str, *, proxied: bool) -> None:
        """A fresh database and an empty bucket."""
        self.start(versioning, proxied=proxied)

    def start(self, versioning: str, *, proxied: bool) -> None:
        self.world.histories += 1
        self.fake.plan()
        self.fake.log.clear()
        self.fake.before = lambda _request: None
        self.fake.set_clock(ahead_ms=0)
        bucket = self.fake.make_bucket(BUCKET)
        bucket.versioning = "Enabled" if versioning else ""
        path = self.world.folder / f"{self.world.histories}.db"
        shutil.copyfile(self.world.template, path)
        make = Site.proxied if proxied else Site.direct
        self.site = watched(make(f"sqlite:///{path}", self.fake.server, BUCKET))
        self.keepers = Keepers(
            site=self.site, fake=self.fake, clock_ms=self.now, slack_ms=SLACK_MS, lost=self.lost_among
        )
        init(self.site, "--grace", "2d", "--min-object-age", "24h", "--action", self.action)
        _ = (self.site.experiment(), self.site.experiment())
        for number in range(3):
            self.make_run(number, 2)
        bucket.versioning = versioning
        self.snapshot = self._snapshot()
        self.live = self._note_the_dead()

    # What there is

    def things(self) -> dict[Thing, State]:
        """The bucket's content, from the server's memory."""
        bucket = self.fake.bucket(BUCKET)
        found: dict[Thing, State] = {}
        for version in [one for versions in list(bucket.keys.values()) for one in versions]:
            if version.key.endswith(oracle.MARKER_NAME):
                continue
            latest = "object" if version.noncurrent_ms is None else "version"
            kind = "marker" if version.is_marker else latest
            thing = Thing(version.key, version.id, is_upload=False)
            found[thing] = State(kind, len(version.body), version.modified_ms)
        for upload in list(bucket.uploads.values()):
            found[Thing(upload.key, upload.id, is_upload=True)] = State("upload", 0, upload.initiated_ms)
        return found

    def note_removed(self, _bucket: Bucket, gone: Version | Upload) -> None:
        """The truth: what has left the bucket for good."""
        if isinstance(gone, Upload):
            self.removed.append(State("upload", 0, gone.initiated_ms))
        else:
            self.removed.append(State("marker" if gone.is_marker else "object", len(gone.body), gone.modified_ms))

    def _snapshot(self) -> Snapshot:
        site = self.site
        return Snapshot(
            items=frozenset(),
            rows=frozenset(site.rows()),
            versions=frozenset(site.versions()),
            aliases=frozenset(
                site._select(
                    site.registry_engine, "SELECT name, alias, version FROM registered_model_aliases", lambda *row: row
                )
            ),
        )

    def journal(self) -> tuple[Counter[str], dict[str, str]]:
        """The sums of what the journal says has left the bucket, and the state of each location."""
        with self.site.engine.connect() as connection:
            columns = ", ".join(("prefix", "state", *JOURNALED))
            rows = connection.execute(sa.text(f"SELECT {columns} FROM artifact_gc_intents")).mappings().all()
        sums: Counter[str] = Counter()
        for row in rows:
            sums.update({name: row[name] for name in JOURNALED})
        return sums, {row["prefix"]: row["state"] for row in rows}

    def _note_the_dead(self) -> set[str]:
        """Ids of what MLflow shows, and all its rows; remembers since when the others are not shown."""
        self.snapshot = self._snapshot()
        live = {row.id for row in oracle._live(self.snapshot)}
        rows = {row.id for row in self.snapshot.rows if row.kind != "experiment"}
        now_ms = self.now()
        for row in self.snapshot.rows:
            self.order.setdefault(row.id, self.world.steps)
        for entity in rows - live:
            self.dead_since.setdefault(entity, now_ms)
        for entity in live:
            self.dead_since.pop(entity, None)
        self.live = live
        return live

    def now(self) -> int:
        """The time of the model: that which has passed, and that which was made to pass."""
        return self.now_ms + int(time.time() * 1000)

    def pick(self, number: int, kind: str, stage: str) -> str | None:
        """One of the entities of that kind and stage."""
        rows = [row for row in self.snapshot.rows if row.kind == kind and row.stage == stage]
        found = [row.id for row in rows if row.uri.startswith(("s3:", "mlflow-artifacts:"))]
        # Ids are random, even if everything else is repeated.
        found.sort(key=lambda entity: self.order.get(entity, 0))
        return found[number % len(found)] if found else None

    def all_needed(self, *, partly: bool = False) -> dict[str, str]:
        """Keys and folders that somebody needs or keeps, and who; ``partly``: what lies beside a part may go."""
        needed = dict(oracle._needed(self.site, self.snapshot, partly=partly))
        return needed | dict(self.keepers.wanted(self.snapshot, partly=partly))

    def rows_needed(self, *, partly: bool) -> set[tuple[str, str]]:
        """Kind and id of the rows of what somebody needs or keeps, whole or in part."""
        needed = self.all_needed(partly=partly)
        around = {folder for key in needed for folder in oracle._folders(key)}
        return {("experiment", id_) for id_ in self.keepers.experiments()} | {
            (row.kind, row.id)
            for row in self.snapshot.rows
            if row.kind != "experiment"
            and any(key in around or _needed_by(key, needed) for key in oracle._keys_named(self.site, row.uri))
        }

    def untouchable(self, *, partly: bool = False) -> dict[str, str]:
        """As ``all_needed``, and what another database has marked."""
        return self.all_needed(partly=partly) | dict(self.keepers.owned_by_others(self.snapshot))

    # What users do. Nothing leaves the bucket then.

    def user(self, what: str, act: Callable[[], object]) -> None:
        """A step of a user's: whatever MLflow says to it, nothing goes but what he writes over."""
        self.count(what)
        before = self.things()
        act()
        gone = before.keys() - self.things().keys()
        assert not gone, f"{what}: {gone}"
        self._note_the_dead()

    def count(self, what: str) -> None:
        self.world.steps += 1
        self.world.did[what] += 1

    def write(self, entity: str, path: str, content: Content) -> None:
        uri = self.site.artifact_uri(entity)
        self.owner_of[f"{self.site.key_of(uri)}/{path}"] = entity
        self.site.write(entity, uri, {path: content})

    def make_run(self, number: int, objects: int) -> None:
        # Where none is left, MLflow's command makes the default experiment anew, with a place of its own on disk.
        live = [row for row in self.site.rows() if row.kind == "experiment" and row.stage == "active"]
        active = [row.id for row in live if row.uri.startswith(("s3:", "mlflow-artifacts:"))]
        if not active:
            return
        experiment = sorted(active)[number % len(active)]
        made = self.site.run(experiment)
        for index in range(objects):
            self.write(made, ("model/MLmodel", "data/a b+%20.bin", "carriage\rreturn")[index % 3], 10 + index)

    def dice(self, number: int) -> random.Random:
        """Hypothesis chooses which rule comes; inside of it the choices are even, which its own are not."""
        self.rolls += 1
        return random.Random(f"{number} {self.rolls}")

    @rule(number=NUMBER)
    def users_act(self, number: int) -> None:
        """Anything that users do."""
        dice = self.dice(number)
        for _ in range(dice.randint(1, 3)):
            getattr(self, dice.choice(OF_USERS))(dice.randrange(2**16))

    @rule(number=NUMBER)
    def much_goes(self, number: int) -> None:
        """Several runs are deleted, and perhaps their time comes."""
        dice = self.dice(number)
        for act in (self.new_run, self.upload, self.delete_run, self.delete_run):
            act(dice.randrange(2**16))
        if dice.random() < 0.5:
            self.jump_by(60)

    def new_run(self, number: int) -> None:
        self.user("new run", lambda: self.make_run(number, number % 4))

    def new_model(self, number: int) -> None:
        experiment = self.pick(number, "experiment", "active")
        if experiment is None:
            return

        def act() -> None:
            of_run = self.pick(number, "run", "active") if number % 2 else None
            made = self.site.logged_model(experiment, of_run)
            if of_run is not None:
                self.keepers.made_in[made] = of_run
            self.write(made, "MLmodel", b"model")

        self.user("new logged model", act)

    def new_trace(self, number: int) -> None:
        experiment = self.pick(number, "experiment", "active")
        if experiment is None:
            return

        def act() -> None:
            made = self.site.trace(experiment, {})
            self.write(made, "traces.json", b"{}")

        self.user("new trace", act)

    def upload(self, number: int) -> None:
        entity = self.pick(number, "run", "deleted" if number % 3 == 0 else "active")
        what = ("overwrite", "new", "hide", "begin", "complete")[number % 5]
        if entity is None:
            return
        self.numbers += 1
        folder = self.site.key_of(self.site.artifact_uri(entity))

        def act() -> None:
            if what == "begin":
                key = f"{folder}/upload-{self.numbers}"
                self.owner_of[key] = entity
                made = self.site.begin_upload(entity, self.site.artifact_uri(entity), f"upload-{self.numbers}", b"part")
                self.uploads.append((key, made))
            else:
                self.write(entity, "model/MLmodel" if what == "overwrite" else f"late-{self.numbers}", 20)

        if what == "hide":
            self.hide(folder)
        elif what == "complete":
            self.complete()
        else:
            self.user(f"upload: {what}", act)

    def hide(self, folder: str) -> None:
        """A user deletes an object of a bucket that keeps versions."""
        keys = sorted({thing.key for thing in self.things() if thing.key.startswith(f"{folder}/")})
        if not keys or self.fake.bucket(BUCKET).versioning != "Enabled":
            return
        self.user("upload: hide", lambda: self.site.client.delete_object(Bucket=BUCKET, Key=keys[0]))

    def complete(self) -> None:
        """An upload that still goes on ends: it becomes an object."""
        open_ = [(key, made) for key, made in self.uploads if Thing(key, made, is_upload=True) in self.things()]
        if not open_:
            return
        key, made = open_[0]
        self.count("upload: complete")
        (part,) = self.site.client.list_parts(Bucket=BUCKET, Key=key, UploadId=made)["Parts"]
        self.site.client.complete_multipart_upload(
            Bucket=BUCKET, Key=key, UploadId=made, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        )

    def delete_run(self, number: int) -> None:
        entity = self.pick(number, "run", "active")
        if entity is not None:
            self.user("delete run", lambda: self.site.delete_run(entity))

    def restore_run(self, number: int) -> None:
        entity = self.pick(number, "run", "deleted")
        if entity is not None:
            self.user("restore run", lambda: self.site.restore_run(entity))

    def delete_experiment(self, number: int) -> None:
        entity = self.pick(number, "experiment", "active")
        if entity is not None:
            self.user("delete experiment", lambda: self.site.delete_experiment(entity))

    def restore_experiment(self, number: int) -> None:
        entity = self.pick(number, "experiment", "deleted")
        if entity is not None:
            self.user("restore experiment", lambda: self.site.restore_experiment(entity))
        elif self.pick(0, "experiment", "active") is None or number % 8 == 0:
            self.user("new experiment", self.site.experiment)

    def delete_model(self, number: int) -> None:
        entity = self.pick(number, "logged_model", "active")
        if entity is not None:
            self.user("delete logged model", lambda: self.site.delete_logged_model(entity))

    def delete_trace(self, number: int) -> None:
        if (entity := self.pick(number, "trace", "active")) is not None:
            (row,) = [row for row in self.snapshot.rows if row.id == entity]
            self.user("delete trace", lambda: self.site.delete_trace(row.experiment_id, row.id))

    def register(self, number: int) -> None:
        source = self.source(number, ("uri", "runs", "copy", "model")[number % 4], dead=number % 3 == 0)
        if source is not None:
            self.user("register", lambda: self.try_to(lambda: self.site.register(MODEL, *source)))

    def source(self, number: int, how: str, *, dead: bool) -> tuple[str, str | None] | None:
        """What a model is registered from, and of which run."""
        stage = "deleted" if dead else "active"
        if how == "copy":
            versions = sorted(self.snapshot.versions)
            return (f"models:/{MODEL}/{versions[number % len(versions)].version}", None) if versions else None
        entity = self.pick(number, "logged_model" if how == "model" else "run", stage)
        if entity is None:
            return None
        if how == "model":
            return f"models:/{entity}", None
        uri = f"{self.site.artifact_uri(entity)}/model" if how == "uri" else f"runs:/{entity}/model"
        return uri, entity

    def alias(self, number: int) -> None:
        versions = sorted(self.snapshot.versions)
        if versions:
            chosen = versions[number % len(versions)]
            self.user("alias", lambda: self.site.alias(chosen.name, "champion", chosen.version))

    def delete_version(self, number: int) -> None:
        versions = sorted(self.snapshot.versions)
        if versions:
            chosen = versions[number % len(versions)]
            self.user("delete version", lambda: self.site.delete_version(chosen.name, chosen.version))

    @staticmethod
    def try_to(act: Callable[[], object]) -> None:
        """MLflow may refuse what is asked, as our hook has it do while a location is swept."""
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):
            act()

    # What people keep

    @rule(number=NUMBER)
    def somebody_keeps(self, number: int) -> None:
        """Something is kept from now on, or another database's; or no longer. Often a sweep comes right after."""
        dice = self.dice(number)
        if self.keepers.number >= MOST_KEPT or dice.random() < 0.2:
            self.user("let go", lambda: self.keepers.let_go(run_list, dice))
        else:
            getattr(self, dice.choice(self.keeping))(dice)
        if dice.random() < 0.6:
            self.jump_by(60)
            self.gc(dice, None, None)

    keeping: ClassVar[tuple[str, ...]] = ("hold", "hold", "keep_tag", "keep_tag", "mark")

    def hold(self, dice: random.Random) -> None:
        """An administrator keeps something, most often a deleted run or what it belongs to."""
        entity = self.pick(dice.randrange(2**16), "run", "deleted" if dice.random() < 0.8 else "active")
        if entity is not None:
            on, target = self.what_to_hold(dice, entity)
            self.user(f"hold on {on}", lambda: self.keepers.hold(run_list, on, target, _hours(dice)))

    def what_to_hold(self, dice: random.Random, entity: str) -> tuple[str, str]:
        """A run, or something that keeps it along with others."""
        (row,) = [row for row in self.snapshot.rows if row.id == entity and row.kind == "run"]
        on = dice.choice(["run", "run", "experiment", "location", "location", "logged_model", "registered_model"])
        if on == "logged_model" and (model := self.pick(dice.randrange(2**16), "logged_model", "active")):
            return on, model
        if on == "registered_model" and self.snapshot.versions:
            return on, MODEL
        if on == "experiment":
            return on, row.experiment_id
        if on == "location":
            key = self.site.key_of(row.uri)
            by_place = [f"s3://{BUCKET}/{place}" for place in (key, f"{key}/model", key.rpartition("/")[0])]
            return on, dice.choice([row.uri, *by_place])
        return "run", entity

    def keep_tag(self, dice: random.Random) -> None:
        """A user keeps something that MLflow lets him tag; what it keeps is deleted right after, as often as not."""
        number = dice.randrange(2**16)
        on = dice.choice(["run", "run", *self.also_tagged])
        kept = {
            "run": self.pick(number, "run", "active"),
            "experiment": self.pick(number, "experiment", "active"),
            "logged_model": self.pick(number, "logged_model", "active"),
            "registered_model": MODEL if self.snapshot.versions else None,
            "model_version": next((str(version.version) for version in sorted(self.snapshot.versions)), None),
        }
        target = kept[on]
        if target is None:
            return
        self.user(f"keep tag of {on}", lambda: self.keepers.tag(on, target, _hours(dice), dice.choice(FOR_EVER)))
        deletes = {
            "run": lambda: self.site.delete_run(target),
            "logged_model": lambda: self.site.delete_logged_model(target),
            "model_version": lambda: self.site.delete_version(MODEL, int(target)),
            "registered_model": lambda: self.site.delete_version(MODEL, min(self.snapshot.versions).version),
        }
        if on in deletes and dice.random() < 0.7:
            self.user(f"delete {on} with a keep tag", deletes[on])

    also_tagged: ClassVar[tuple[str, ...]] = ("experiment", "logged_model", "registered_model", "model_version")

    def mark(self, dice: random.Random) -> None:
        """Another database takes a folder for its root that a deleted run lies in, or that lies in one."""
        entity = self.pick(dice.randrange(2**16), "run", "deleted")
        if entity is not None:
            key = self.site.key_of(self.site.artifact_uri(entity))
            folders = [*(f"{folder}/" if folder else "" for folder in oracle._folders(key)), f"{key}/model/"]
            folder = dice.choice(folders)
            self.user("another's marker", lambda: self.keepers.mark(folder))

    # Time

    @rule(number=NUMBER)
    def times_differ(self, number: int) -> None:
        """Time passes, or S3's clock and the database's differ."""
        dice = self.dice(number)
        if dice.random() < 0.7:
            self.jump_by(dice.choice([1, 5, 25, 49, 60, 24 * 9]))
        else:
            self.count("clocks differ")
            self.fake.set_clock(ahead_ms=dice.randint(-4, 4) * 60_000)

    def jump_by(self, hours: int) -> None:
        """For all clocks."""
        self.count("jump")
        elapse(self.site, hours * HOUR_MS)
        # S3's dates go back too, as no real server's do: what was seen of them has to follow, or nothing is as it was.
        self.site.execute("UPDATE artifact_gc_sightings SET newest_ms = newest_ms - :ms", ms=hours * HOUR_MS)
        self.keepers.pass_(hours * HOUR_MS)
        self.fake.age(hours * HOUR_MS)
        self.now_ms += hours * HOUR_MS

    # What sweeps

    @rule(number=NUMBER)
    def something_sweeps(self, number: int) -> None:
        """Our command, a worker's turn, or MLflow's own command, with faults or somebody who acts meanwhile."""
        dice = self.dice(number)
        what = dice.choice([*[self.gc, self.work] * 3, self.stock_gc, self.orphans, self.orphans])
        fault = interruption = None
        if dice.random() < 0.6:
            operation = dice.choice(OPERATIONS)
            fault = Fault(
                kind=dice.choice(possible(operation)),
                operation=operation,
                nth=dice.randint(1, 3),
                times=dice.choice([1, 2, 5, FOR_GOOD]),
            )
        if dice.random() < 0.4:
            interruption = (dice.choice(MEANWHILE), dice.randint(5, 30), dice.randrange(2**16))
        if fault or interruption:
            self.feed(dice)
        what(dice, fault, interruption)

    @rule(number=NUMBER)
    def something_sweeps_as_well(self, number: int) -> None:
        """The same, so that it comes as often as users act."""
        self.something_sweeps(number)

    def feed(self, dice: random.Random) -> None:
        """Mostly there is something to sweep: a fault or a kill that nothing meets shows nothing."""
        folders = [
            f"{key}/"
            for row in self.snapshot.rows
            if row.kind == "run" and row.stage == "deleted"
            for key in oracle._keys_named(self.site, row.uri)
        ]
        things = self.things()
        fed = any(thing.key.startswith(folder) for thing in things for folder in folders)
        if not fed and dice.random() < 0.9:
            for _ in range(2):
                self.new_run(3 + dice.randrange(2**16) // 4 * 4)
                self.upload(dice.randrange(2**16))
                self.delete_run(dice.randrange(2**16))
            self.jump_by(60)

    def gc(self, dice: random.Random, fault: Fault | None, interruption: Interruption | None) -> None:
        now, partly = dice.random() < 0.5, self.sweeps_partly(dice)
        if partly and dice.random() < 0.7:
            self.need_a_part(dice.randrange(2**16))
        arguments = [*self.gc_arguments(now=now, metadata=dice.random() < 0.3), *(["--partial"] if partly else [])]

        what, act = "gc --partial" if partly else "gc", self.ran(arguments)
        self.sweep(what, act, fault, interruption, graced=not now, partly=partly)

    def ran(self, arguments: Sequence[str]) -> Callable[[], Any]:
        """Runs a command of ours; its report."""

        def act() -> Any:
            ran = run(*arguments)
            assert ran.code in self.codes, f"{ran.code}: {ran.err}"
            return ran.json

        return act

    def need_a_part(self, number: int) -> None:
        """A version needs a folder of a run, which is deleted."""
        entity = self.pick(number, "run", "active")
        if entity is not None:
            source = f"{self.site.artifact_uri(entity)}/model"
            self.user("register a part", lambda: self.try_to(lambda: self.site.register(MODEL, source, entity)))
            self.user("delete run", lambda: self.site.delete_run(entity))
            self.jump_by(60)

    def sweeps_partly(self, dice: random.Random) -> bool:
        """Whether what lies beside a part that is needed may go as well; it can only be purged."""
        return dice.random() < 0.3 and self.action == "purge"

    def gc_arguments(self, *, now: bool, metadata: bool) -> list[str]:
        """``gc``, with the site's grace period or without any."""
        eager = ["--older-than", "0s", "--min-object-age", "0s"] if now else []
        kept = ["--metadata", "delete"] if metadata else []
        # One at a time: then what is asked last before a delete is asked for that delete.
        return [
            *("gc", "--backend-store-uri", self.site.uri, "--yes", "--format", "json", "--concurrency", "1"),
            *("--max-share", "1", *eager, *kept),
        ]

    def orphans(self, dice: random.Random, fault: Fault | None, interruption: Interruption | None) -> None:
        """``gc --orphans`` under a root that a person has said to be ours, where rows were lost; often once more."""
        if self.action != "purge":
            self.gc(dice, fault, interruption)
            return
        roots = ["--backend-store-uri", self.site.uri, "--yes", "--format", "json", "--concurrency", "1"]
        self.lose_row(dice.randrange(2**16))
        owned = run("gc", *roots, "--own-roots", "--root", self.site.destination or self.site.artifact_root)
        assert owned.code in self.codes, owned.err
        if interruption is not None and dice.random() < 0.7:
            interruption = (dice.choice(OF_WHAT_HAS_NO_ROW), dice.randrange(4), dice.randrange(2**16))
        if dice.random() < 0.5:
            self.jump_by(25)
        for last in (False, True):
            self.note_orphans()
            act = self.ran(["gc", *roots, "--orphans", "--max-share", "1"])
            self.sweep("gc --orphans", act, fault if last else None, interruption if last else None, orphans=True)
            if not last:
                if dice.random() < 0.4:
                    self.upload(dice.randrange(2**16))
                self.jump_by(dice.choice([1, 25, 25, 60]))

    def note_orphans(self) -> None:
        """From now on it may have been seen that no row accounts for these."""
        rows = {row.id for row in self.snapshot.rows}
        for thing, state in self.things().items():
            if self.owner_of.get(thing.key) not in rows:
                self.seen_since.setdefault((thing, state.modified_ms + self.now_ms), self.now())

    def lose_row(self, number: int) -> None:
        """The row of a run is removed by hand; its objects stay."""
        things = self.things()
        holding = {self.owner_of.get(thing.key) for thing in things}
        rows = [row for row in self.snapshot.rows if row.kind == "run" and row.id in holding]
        rows.sort(key=lambda row: self.order.get(row.id, 0))
        if rows:
            row = rows[number % len(rows)]
            with self.site.engine.connect() as connection:
                found = connection.execute(sa.text("SELECT * FROM runs WHERE run_uuid = :id"), {"id": row.id})
                self.lost_rows[row.id] = (row, dict(found.mappings().one()))

            def act() -> None:
                for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
                    self.site.execute(f"DELETE FROM {table} WHERE run_uuid = :id", id=row.id)

            self.user("lose a row", act)

    def lost_among(self, snapshot: Snapshot) -> list[Row]:
        """The runs that are known by what they left alone."""
        there = {row.id for row in snapshot.rows}
        return [row for entity, (row, _) in self.lost_rows.items() if entity not in there]

    def bring_back(self, entity: str) -> None:
        """Somebody puts the row of a run back, as it was."""
        _, was = self.lost_rows[entity]
        names = ", ".join(was)
        self.site.execute(f"INSERT INTO runs ({names}) VALUES ({', '.join(f':{name}' for name in was)})", **was)

    def work(self, _dice: random.Random, fault: Fault | None, interruption: Interruption | None) -> None:
        """One turn of a new worker."""
        self.sweep("worker", self.turn, fault, interruption, graced=True)

    def turn(self) -> None:
        from mlflow_artifact_gc.errors import ArtifactGcError

        one = worker(self.site, MLFLOW_ARTIFACT_GC_CONCURRENCY="1")
        try:
            # Its loop says what it was, and asks again.
            with suppress(ArtifactGcError):
                one.turn()
        finally:
            one.close()

    def stock_gc(self, _dice: random.Random, fault: Fault | None, _interruption: Interruption | None) -> None:
        """MLflow's own command, with our plugin beside it."""

        def act() -> None:
            mlflow_gc(self.site)

        self.sweep("mlflow gc", act, fault, None, graced=True)

    @rule(number=NUMBER)
    def one_is_killed(self, number: int) -> None:
        """``gc``, or a worker, at a named point or anywhere."""
        dice = self.dice(number)
        point, nth, after = dice.choice(sorted(POINTS)), dice.randint(1, 40), dice.random() < 0.5
        by_worker = dice.random() < 0.5
        self.feed(dice)
        far = point in ("request", "statement", "commit")
        moment = Moment(point=point, nth=nth * 3 if point == "statement" else nth if far else 1 + nth % 2, after=after)
        stores = ["--backend-store-uri", self.site.uri, "--registry-store-uri", self.site.uri]
        destination = ["--artifacts-destination", self.site.destination] if self.site.destination else []
        partly = self.sweeps_partly(dice) and not by_worker
        by_hand = [*self.gc_arguments(now=True, metadata=True), *(["--partial"] if partly else [])]
        arguments = ["worker", "--once", *stores, *destination] if by_worker else by_hand
        environ = {**self.fake.server.environ(), "MLFLOW_ARTIFACT_GC_CONCURRENCY": "1"}
        what = "worker" if by_worker else "gc"

        def act() -> None:
            ended = self.world.forks.run(arguments, environ, moment)
            self.world.did[f"killed: {point}"] += ended.killed
            self.killed = ended.killed

        self.sweep(f"crash of {what}", act, None, None, graced=by_worker, killed=lambda: self.killed, partly=partly)

    killed = False

    def sweep(
        self,
        what: str,
        act: Callable[[], Any],
        fault: Fault | None,
        interruption: Interruption | None,
        *,
        graced: bool = True,
        killed: Callable[[], bool] = lambda: False,
        partly: bool = False,
        orphans: bool = False,
    ) -> None:
        """A step that may take things away, and the oracle's verdict on it."""
        self.count(what)
        before, sums_before, states_before = self.things(), *self.journal()
        step = Step(
            what=what,
            before=before,
            snapshot=self.snapshot,
            live=self.live,
            needed=self.untouchable(partly=partly),
            graced=graced,
            partly=partly,
            orphans=orphans,
        )
        kept = self.rows_needed(partly=partly)
        self.removed.clear()
        report = self.carried_out(step, act, fault, interruption)
        after, (sums, states) = self.things(), self.journal()
        step.judge(self, after)
        swept = {prefix for prefix, state in states.items() if state == "swept" != states_before.get(prefix)}
        self.world.did["locations swept"] += len(swept)
        for prefix in swept - step.written:
            remains = [thing for thing in after if thing.key.startswith(prefix)]
            assert not remains, f"{what}: swept, and it holds {remains}"
        left = step.left(after)
        self.world.did["things gone"] += len(left)
        self.world.did["orphaned things gone"] += len(left) if orphans else 0
        sums.subtract(sums_before)
        self.compare(step, sums, report, at_most=killed(), fault=fault)
        there = {(row.kind, row.id) for row in self.snapshot.rows}
        lost = [row for row in step.snapshot.rows if row.id in step.live and (row.kind, row.id) not in there]
        assert not lost, f"{what}: rows of what was live are gone: {lost}"
        assert kept <= there, f"{what}: rows of what was needed or kept are gone: {kept - there}"
        self.keepers.require_markers()
        if report is not None and "results" in report:
            self.world.did["locations swept in part"] += [one["outcome"] for one in report["results"]].count("partly")

    def carried_out(
        self, step: Step, act: Callable[[], Any], fault: Fault | None, interruption: Interruption | None
    ) -> Any:
        """What a sweep answers, with the fault and somebody who acts meanwhile."""
        self.fake.plan(*([fault] if fault else []))
        with pytest.MonkeyPatch.context() as patched:
            if interruption is not None:
                self.interrupt(step, *interruption, patched)
            try:
                report = act()
            finally:
                self.fake.plan()
                self.fake.before = lambda _request: None
        if self.mishaps:
            raise self.mishaps.pop()
        self._note_the_dead()
        self.world.did["faults met"] += bool(fault and fault.hit)
        return report

    def compare(
        self,
        step: Step,
        journaled: Counter[str],
        report: Any,
        *,
        at_most: bool,
        fault: Fault | None,
    ) -> None:
        """What has left against what the journal, and the report, say."""
        kinds = Counter(state.kind for state in self.removed)
        truth = {
            # What was a version becomes the object, once those above it are gone.
            "objects and versions": kinds["object"],
            "deleted_markers": kinds["marker"],
            "aborted_uploads": kinds["upload"],
            "deleted_bytes": sum(state.size for state in self.removed),
        }
        said = {"the journal": journaled}
        if report is not None and not step.joined and "totals" in report:
            said["the report"] = Counter({name: report["totals"][name] for name in JOURNALED})
        for who, counts in said.items():
            told = {
                "objects and versions": counts["deleted_objects"] + counts["deleted_versions"],
                **{name: counts[name] for name in ("deleted_markers", "aborted_uploads", "deleted_bytes")},
            }
            for name, number in truth.items():
                lost_abort = name == "aborted_uploads" and fault is not None and fault.hit
                if step.written and name == "deleted_bytes":
                    continue  # What is written over between the look and the delete has another size.
                unclear = at_most or lost_abort or step.joined
                wrong = told[name] > number if unclear else told[name] != number
                assert not wrong, f"{step.what}: {name} {told[name]} by {who}, {number} in truth ({fault})"

    # Somebody acts at a request of the sweep

    def interrupt(self, step: Step, what: str, nth: int, number: int, patched: pytest.MonkeyPatch) -> None:
        """Have ``what`` happen just before the sweep's ``nth`` request is carried out, or before its fence."""
        seen = [0]

        def act(at: str) -> None:
            # The faults are the sweep's, not his.
            faults, self.fake.faults = self.fake.faults, []
            try:
                self.act_between(step, what, number)
                step.acted_at = at
            except BaseException as mishap:  # noqa: BLE001 - raised by the step
                self.mishaps.append(mishap)
            finally:
                self.fake.faults = faults

        def before(request: Request) -> None:
            if what in OF_WHAT_IS_SWEPT and not self.looks_at_what_goes(request):
                return
            seen[0] += 1
            if seen[0] == (1 + nth % 4 if what in OF_WHAT_IS_SWEPT else nth):
                act(request.operation)

        admit = Fence.admit

        def admit_late(fence: Fence, lines: Sequence[Any]) -> Any:
            if lines and not seen[0]:
                seen[0] = 1
                self.about_to_go = lines[number % len(lines)].entity.id
                act("the fence")
            return admit(fence, lines)

        if what.endswith("before the fence"):
            patched.setattr(Fence, "admit", admit_late)
        else:
            self.fake.before = before

    def looks_at_what_goes(self, request: Request) -> bool:
        """Whether a request lists a deleted run, or a lost one, which is then ``about_to_go``."""
        prefix = request.values.get("prefix", "")
        dead = [row for row in self.snapshot.rows if row.kind == "run" and row.stage == "deleted"]
        going = [row.id for row in (*dead, *self.lost_among(self.snapshot))]
        self.about_to_go = next((entity for entity in going if entity in prefix), "")
        return bool(self.about_to_go)

    def act_between(self, step: Step, what: str, number: int) -> None:
        """What somebody does in the middle of a sweep."""
        self.world.did[f"meanwhile: {what}"] += 1
        needed_besides: Mapping[str, str] = {}
        if what not in OF_WHAT_IS_SWEPT:
            self.act_on_any(step, what, number)
        else:
            lost = self.lost_among(self.snapshot)
            going = [row for row in (*self.snapshot.rows, *lost) if row.id == self.about_to_go]
            if going and what == "its row comes back" and going[0] in lost:
                self.bring_back(going[0].id)
                step.restored = {going[0].id}
                needed_besides = dict.fromkeys(oracle._keys_named(self.site, going[0].uri), "its row")
            elif going:
                self.act_on(step, what, going[0], number, by_id=going[0] not in lost)
        step.meanwhile = self.things()
        self.snapshot = self._snapshot()
        step.needed_meanwhile = {**self.untouchable(partly=step.partly), **needed_besides}

    def act_on_any(self, step: Step, what: str, number: int) -> None:
        """To one of all runs, or beside them."""
        dead = self.pick(number, "run", "deleted")
        live = self.pick(number, "run", "active")
        if what == "restore" and dead is not None:
            self.try_to(lambda: self.site.restore_run(dead))
            step.restored = {dead}
        elif what == "register" and dead is not None:
            uri = f"{self.site.artifact_uri(dead)}/model"
            self.try_to(lambda: self.site.register(MODEL, uri, dead))
        elif what == "write" and dead is not None:
            self.write_meanwhile(step, dead, self.site.artifact_uri(dead))
        elif what == "new run":
            self.make_run(number, 1)
        elif what == "delete" and live is not None:
            self.site.delete_run(live)
        elif what == "gc":
            step.joined = True
            arguments = [*self.gc_arguments(now=not step.graced, metadata=False), "--time-budget", "0.2s"]
            ended = self.world.forks.run(arguments, self.fake.server.environ())
            assert ended.code in self.codes, ended.err

    def act_on(self, step: Step, what: str, going: Row, number: int, *, by_id: bool) -> None:
        """To what is about to go."""
        if what.startswith("hold"):
            named = [(going.kind, going.id)] if by_id and going.kind != "trace" else []
            targets = [("experiment", going.experiment_id), ("location", going.uri), *named]
            on, target = targets[number % len(targets)]
            self.keepers.hold(self.elsewhere, on, target, None if number % 2 else 50)
        elif what == "it is written to":
            self.write_meanwhile(step, going.id, going.uri)
        elif what.startswith("keep tag"):
            self.try_to(lambda: self.keepers.tag("experiment", going.experiment_id, None, "true"))

    def write_meanwhile(self, step: Step, entity: str, uri: str) -> None:
        """A new object and one that is written over, where a sweep is under way."""
        folder = self.site.key_of(uri)
        self.owner_of |= {f"{folder}/{path}": entity for path in ("meanwhile", "model/MLmodel")}
        self.site.write(entity, uri, {"meanwhile": 5, "model/MLmodel": 6})
        step.written = {f"{folder}/"}

    def elsewhere(self, arguments: Sequence[str]) -> Ended:
        """A command in a process of its own."""
        return self.world.forks.run(arguments, self.fake.server.environ())

    def teardown(self) -> None:
        """Without faults, one more: nothing fails, and what is dead and not needed is gone."""
        if "site" not in self.__dict__:
            return
        try:
            self.finish()
        finally:
            self.fake.plan()
            self.fake.before = lambda _request: None
            self.site.close()
            Path(self.site.engine.url.database or "").unlink(missing_ok=True)

    def finish(self) -> None:
        if self.mishaps or sys.exc_info()[0] is not None:
            return
        self.fake.set_clock(ahead_ms=0)
        self.keepers.let_all_go(run_list)
        ran = run(*self.gc_arguments(now=True, metadata=False))
        report = ran.json
        ends = {result["outcome"] for result in report.get("results", ())}
        assert ran.code == 0, ran.err
        assert ends <= {"swept", "empty", "protected"}, report["results"]
        self.require_all_gone(report)

    def require_all_gone(self, report: Any) -> None:
        """Of what is deleted nothing is left but what something needs, and what was written once it had been swept.

        What needs it may also be what the oracle does not ask for: then the report names it, and no hold and no tag.
        """
        for line in report["plan"]["decisions"]:
            assert not str(line["evidence"]).startswith(("hold #", "keep tag")), line
        kept = {line["id"] for line in report["plan"]["decisions"] if line["reason"] == "protected"}
        live, needed = self._note_the_dead(), self.all_needed()
        dead = {row.id: row.uri for row in self.snapshot.rows if row.kind != "experiment" and row.id not in live}
        _, states = self.journal()
        for thing in self.things():
            owner = self.owner_of.get(thing.key, "")
            uri = dead.get(owner)
            if uri is not None and owner not in kept and not _needed_by(thing.key, needed):
                state = states.get(f"{self.site.key_of(uri)}/")
                assert state in ("swept", "closed"), f"at the end: {thing} is there, and nothing needs it ({state})"


@dataclass(kw_only=True)
class Step:
    """A sweep, as the oracle sees it."""

    what: str
    before: Things
    snapshot: Snapshot
    live: set[str]
    graced: bool
    needed: Mapping[str, str] = field(default_factory=dict)
    """What somebody needed, kept or owned when it began, and who."""
    partly: bool = False
    orphans: bool = False
    """Whether what no row accounts for is to go, instead of what is deleted."""
    meanwhile: Things = field(default_factory=dict)
    """The bucket when somebody had acted; empty: nobody did."""
    needed_meanwhile: Mapping[str, str] = field(default_factory=dict)
    acted_at: str = ""
    restored: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    joined: bool = False

    def left(self, after: Things) -> Things:
        """What was there before or meanwhile and is not any more."""
        return {thing: state for thing, state in {**self.meanwhile, **self.before}.items() if thing not in after}

    def judge(self, history: History, after: Things) -> None:
        """Nothing that was needed has gone, nothing too early, nothing too young."""
        left = self.left(after)
        rows = {row.id for row in self.snapshot.rows}
        keys = {thing.key for thing in self.before}
        for thing, state in left.items():
            why = _needed_by(thing.key, self.needed)
            owner = history.owner_of.get(thing.key)
            # What is made meanwhile belongs to rows that were not there before.
            known = thing in self.before
            assert not (why and known), f"{self.what}: {thing} is gone, and {why} needs it"
            assert owner is not None, f"{self.what}: {thing} is gone, and nobody knows whose it was"
            rowless = owner not in rows
            assert rowless is self.orphans or self.joined or not known, (
                f"{self.what}: {thing} is gone, and its owner {owner} has {'no' if rowless else 'a'} row"
            )
            assert owner not in self.live, f"{self.what}: {thing} is gone, and its owner {owner} is live"
            if self.graced and known:
                self.require_old(history, thing, state, owner)
            elif self.graced:
                assert thing.key in keys, f"{self.what}: {thing} is gone, and was written a moment ago"
            if rowless and known:
                self.require_seen_before(history, owner)
        self.judge_meanwhile(history, after)

    def require_seen_before(self, history: History, owner: str) -> None:
        """An orphan goes when an earlier search had seen all of it, as it is, a quarantine ago."""
        for thing, state in self.before.items():
            if history.owner_of.get(thing.key) == owner:
                since_ms = history.seen_since[thing, state.modified_ms + history.now_ms]
                waited_ms = history.now() - since_ms
                assert waited_ms >= QUARANTINE_MS - SLACK_MS, f"{self.what}: {thing} was first seen {waited_ms} ms ago"

    def require_old(self, history: History, thing: Thing, state: State, owner: str) -> None:
        now_ms = int(time.time() * 1000)
        dead_ms = history.dead_since.get(owner)
        # Without a row nothing can be restored: there is the quarantine instead.
        if dead_ms is not None and not self.orphans:
            waited_ms = history.now() - dead_ms
            assert waited_ms >= GRACE_MS - SLACK_MS, (
                f"{self.what}: {thing} is gone within its grace period: {waited_ms}"
            )
        # By its key alone, what is written over between the look and the delete goes with it.
        if not any(thing.key.startswith(folder) for folder in self.written):
            age_ms = now_ms - state.modified_ms
            assert age_ms >= MIN_AGE_MS - SLACK_MS, f"{self.what}: {thing} is gone, and was {age_ms} ms old"

    def judge_meanwhile(self, history: History, after: Things) -> None:
        """What somebody came to need in the middle of it has not gone from then on."""
        in_flight = self.acted_at in ("DeleteObjects", "DeleteObject", "AbortMultipartUpload")
        for thing in self.meanwhile.keys() - after.keys():
            why = _needed_by(thing.key, self.needed_meanwhile)
            # A request that is on its way when a run is restored is carried out.
            exempt = in_flight and history.owner_of.get(thing.key) in self.restored
            assert exempt or not why, f"{self.what}: {thing} went after {why} had come to need it ({self.acted_at})"


def run_list(arguments: Sequence[str]) -> Ended:
    """A command of ours in this process."""
    return run(*arguments)


def _hours(dice: random.Random) -> int | None:
    """How long something is kept: to the first jump, to a later one, or for ever."""
    return dice.choice([None, None, 20, 100, 24 * 8])


def _needed_by(key: str, needed: Mapping[str, str]) -> str | None:
    return next((needed[folder] for folder in oracle._folders(key) if folder in needed), None)


def main(arguments: list[str]) -> int:
    """As many steps as are asked for."""
    from tests.conftest import SEED, make_template
    from tests.waiting_histories import HidingHistory, TaggingHistory

    steps = int(arguments[0]) if arguments else 100_000
    kind = {"purge": History, "hide": HidingHistory, "tag": TaggingHistory}[(arguments[1:] or ["purge"])[0]]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with hurry.hurried(), tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template.db"
        make_template(template)
        with a_world(template) as world:
            began_s = time.monotonic()
            try:
                run_histories(world, steps, SEED, kind)
            finally:
                took_s = time.monotonic() - began_s
                print(f"{world.steps:,} steps in {world.histories:,} histories, {took_s:.0f} s, first seed {SEED}")  # noqa: T201
                for what, times in sorted(world.did.items()):
                    print(f"{times:9,}  {what}")  # noqa: T201
    never = [what for what in kind.shown if steps >= ENOUGH and not world.did[what]]
    if never:
        print(f"never: {', '.join(never)}: what has not happened was not tried")  # noqa: T201
    return 1 if never else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
