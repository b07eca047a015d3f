"""Random histories where sweeps ``hide`` or ``tag``, S3's own rules remove, and what is restored is taken back.

The steps of users, time, faults, crashes and interruptions are those of ``tests.histories``; what is asked after each
is its own: what a user would see. ``seen`` is what he left: of each key the version that he wrote last, or that he
removed it.

    python -m tests.histories 100000 hide    as many steps, with a seed that is printed (TEST_SEED repeats it)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from tests import oracle
from tests.command import run
from tests.fakes3 import Fault
from tests.fakes3.keeping import Version
from tests.histories import (
    BUCKET,
    GRACE_MS,
    MEANWHILE,
    MIN_AGE_MS,
    NUMBER,
    SLACK_MS,
    History,
    Interruption,
    Step,
    Thing,
    _needed_by,
    run_list,
)

TAG = "mlflow-artifact-gc"
MIDNIGHTS = 3
"""A rule that says one day has acted by then, and on a bucket that keeps versions the one for what it left as well."""


class Sight(NamedTuple):
    """A version, or a delete marker, and whether our tag is on it."""

    thing: Thing
    is_marker: bool
    tagged: bool
    modified_ms: int


Sights = Mapping[Thing, Sight]


class WaitingHistory(History):
    """One history. ``action`` is what a sweep does."""

    shown: ClassVar[tuple[str, ...]] = (
        *("midnight", "hidden or tagged", "removed by rules", "undone", "faults met", "let go", "mlflow gc"),
        *(f"meanwhile: {what}" for what in MEANWHILE),
    )
    codes: ClassVar[tuple[int, ...]] = (0, 1, 3, 4)
    """It is refused as well, where a fault hides what the bucket's settings are."""
    versionings: ClassVar[tuple[str, ...]] = ("Enabled",)
    also_tagged: ClassVar[tuple[str, ...]] = ()
    """A keep tag on what is around something that waits is seen by the next ``gc``, by a worker hours later."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, str | None] = {}
        self.theirs: set[Thing] = set()
        """Delete markers that users wrote, or the bucket's rules."""
        self.mistakable: set[Thing] = set()
        """Those of them that nobody can tell from ours."""
        self.lost: set[Thing] = set()
        """What the rules have removed, and might."""
        self.undone: set[str] = set()
        self.needed: set[str] = set()
        """The entities that something live needed when a user last did something."""
        self.unheard: set[str] = set()
        """Came to be live, or needed, since a sweep without a mishap last looked."""
        self.restored_between: set[str] = set()

    @initialize(number=st.integers(0, 2), proxied=st.booleans())
    def begin(self, number: int, *, proxied: bool) -> None:
        """A fresh database, a bucket with the rules that the action needs."""
        versioning = self.versionings[number % len(self.versionings)]
        self.start(versioning, proxied=proxied)
        stores = ["--backend-store-uri", self.site.uri, "--bucket", BUCKET]
        ran = run("lifecycle", "apply", "--action", self.action, "--yes", *stores)
        assert ran.code == 0, ran.err + ran.out
        self.note_users({})
        self.needed = self.needed_ids()

    # What a user sees

    def tops(self) -> dict[str, Version]:
        """Of each key the latest: a version, or a delete marker."""
        return {key: versions[0] for key, versions in list(self.fake.bucket(BUCKET).keys.items()) if versions}

    def sights(self) -> dict[Thing, Sight]:
        """Everything in the bucket but our marker of the root."""
        found: dict[Thing, Sight] = {}
        for version in [one for versions in list(self.fake.bucket(BUCKET).keys.values()) for one in versions]:
            if not version.key.endswith(oracle.MARKER_NAME):
                thing = Thing(version.key, version.id, is_upload=False)
                found[thing] = Sight(thing, version.is_marker, TAG in version.tags, version.modified_ms)
        return found

    def note_users(self, before: Mapping[str, Version]) -> None:
        """What a user has just changed is what he wants to see."""
        for key, top in self.tops().items():
            if before.get(key) is not top and not key.endswith(oracle.MARKER_NAME):
                self.seen[key] = None if top.is_marker else top.id
                if top.is_marker:
                    thing = Thing(key, top.id, is_upload=False)
                    if self.looks_like_ours(thing, top):
                        self.mistakable.add(thing)
                    self.theirs.add(thing)

    def looks_like_ours(self, new: Thing, marker: Version) -> bool:
        """S3's dates are of whole seconds: of those that wrote markers of one location in one, nobody can say which."""
        owner, second = self.owner_of.get(new.key), marker.modified_ms // 1000
        return any(
            one.is_marker
            and thing not in self.theirs
            and thing != new
            and self.owner_of.get(thing.key) == owner
            and one.modified_ms // 1000 == second
            for thing, one in self.sights().items()
        )

    def user(self, what: str, act: Callable[[], object]) -> None:
        """As always, and what he sees is noted."""
        tops = self.tops()
        super().user(what, act)
        self.note_users(tops)
        self.note_heard()

    def complete(self) -> None:
        """As always, and what he sees is noted."""
        tops = self.tops()
        super().complete()
        self.note_users(tops)

    def needed_ids(self) -> set[str]:
        """The entities that something live needs, whole or in part, as MLflow's rows are now."""
        needed = self.all_needed()
        return {owner for key, owner in self.owner_of.items() if _needed_by(key, needed)}

    def note_heard(self) -> set[str]:
        """Who has come to be needed since the last time."""
        now = self.needed_ids()
        anew, self.needed = now - self.needed, now
        self.unheard |= anew
        self.undone -= now
        return anew

    def act_between(self, step: Step, what: str, number: int) -> None:
        """As always; what another ``gc`` does is not what a user does."""
        tops = self.tops()
        super().act_between(step, what, number)
        if what != "gc":
            self.note_users(tops)
        self.restored_between = self.note_heard()

    # What changes the bucket

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
        """A step that may hide or tag, and the verdict on it; what is ``partly`` needed and ``orphans`` only go."""
        assert not partly
        assert not orphans
        self.count(what)
        before, needed, left_alone = self.sights(), self.untouchable(), self.left_alone()
        step = Step(what=what, before={}, snapshot=self.snapshot, live=self.live, graced=graced)
        self.restored_between = set()
        report = self.carried_out(step, act, fault, interruption)
        after = self.sights()
        self.judge(step, before, after, needed)
        self.keepers.require_markers()
        disturbed = killed() or bool(fault and fault.hit) or bool(step.acted_at) or what == "mlflow gc"
        if not disturbed and (not isinstance(report, dict) or report["exit_code"] == 0):
            self.require_seen(what, left_alone)

    def left_alone(self) -> set[str]:
        """What a sweep that begins now does not take back: below another's root, or claimed by a killed process."""
        of_others = dict(self.keepers.owned_by_others(self.snapshot))
        with self.site.engine.connect() as connection:
            claimed = sa.text("SELECT entity_id FROM artifact_gc_intents WHERE claimed_until_ms > :now_ms")
            found = set(connection.execute(claimed, {"now_ms": int(time.time() * 1000)}).scalars())
        return found | {owner for key, owner in self.owner_of.items() if _needed_by(key, of_others)}

    def judge(self, step: Step, before: Sights, after: Sights, needed: Mapping[str, str]) -> None:
        """Nothing has gone but our markers; nothing was hidden or tagged that was needed, too early or too young."""
        for thing in before.keys() - after.keys():
            was = before[thing]
            written_over = thing.version_id == "null" and self.seen.get(thing.key) is not None and step.written
            assert was.is_marker or written_over, f"{step.what}: {thing} is gone"
            assert thing not in self.theirs - self.mistakable, f"{step.what}: the marker {thing} was not ours"
            self.world.did["markers taken off"] += 1
        for thing, now in after.items():
            was_tagged = thing in before and before[thing].tagged
            if thing in before and was_tagged and not now.tagged:
                self.world.did["tags taken off"] += 1
            marked = now.is_marker and thing not in before and thing not in self.theirs
            if marked or (now.tagged and not was_tagged):
                self.world.did["hidden or tagged"] += 1
                self.require_garbage(step, thing.key, self.age_of(thing.key, before), needed)

    def age_of(self, key: str, before: Sights) -> int | None:
        """When the youngest version of a key was written, as far as it was there before."""
        dates = [one.modified_ms for thing, one in before.items() if thing.key == key and not one.is_marker]
        return max(dates, default=None)

    def require_garbage(self, step: Step, key: str, modified_ms: int | None, needed: Mapping[str, str]) -> None:
        """What was hidden or tagged had to be due, and to be old, and nobody had taken it back."""
        owner = self.owner_of.get(key)
        why = _needed_by(key, needed)
        assert owner is not None, f"{step.what}: {key} is touched, and nobody knows whose it is"
        if why and step.acted_at and not _needed_by(key, step.needed_meanwhile):
            # Given up before the plan was made: what waits, or has to be taken back, is looked at first.
            assert not step.graced, f"{step.what}: {key} is touched, and {why} needed it a moment ago"
        else:
            assert not why, f"{step.what}: {key} is touched, and {why} needs it"
            assert owner not in step.live, f"{step.what}: {key} is touched, and its owner {owner} is live"
        assert owner not in self.undone, f"{step.what}: {key} is touched, and it was taken back by hand"
        if not step.graced:
            return
        dead_ms = self.dead_since.get(owner)
        if dead_ms is not None and owner not in self.restored_between:
            waited_ms = self.now() - dead_ms
            assert waited_ms >= GRACE_MS - SLACK_MS, f"{step.what}: {key} is touched after {waited_ms} ms"
        if modified_ms is not None and not any(key.startswith(folder) for folder in step.written):
            age_ms = self.fake.kept.clock_ms() - modified_ms
            assert age_ms >= MIN_AGE_MS - SLACK_MS, f"{step.what}: {key} is touched, and was {age_ms} ms old"

    def require_seen(self, what: str, left_alone: set[str]) -> None:
        """Whoever is live, or needed, has what its users left, but for what S3 had removed before."""
        needed = self.all_needed()
        self.unheard &= left_alone
        tops = self.tops()
        for key, version_id in self.seen.items():
            why = _needed_by(key, needed)
            if not why or version_id is None or self.owner_of.get(key) in left_alone:
                continue
            thing = Thing(key, version_id, is_upload=False)
            if thing in self.lost:
                continue
            top = tops.get(key)
            assert top is not None, f"{what}: {key} is not there any more, and {why} needs it"
            assert not top.is_marker, f"{what}: {key} is hidden still, and {why} needs it"
            assert top.id == version_id, f"{what}: {key} shows {top.id}, and {version_id} was written last ({why})"
            assert TAG not in top.tags, f"{what}: {key} is tagged still, and {why} needs it"

    # S3's own rules

    @rule(number=NUMBER)
    def rules_act(self, number: int) -> None:
        """It becomes midnight at S3, perhaps some days later."""
        if self.dice(number).random() < 0.5:
            self.jump_by(24)
        self.midnight()

    def midnight(self) -> None:
        """The bucket's rules are carried out: what was needed, and heard of, stays as it was."""
        self.count("midnight")
        needed = self.all_needed()
        tops, before = self.tops(), self.sights()
        self.fake.expire(BUCKET)
        after, later = self.sights(), self.tops()
        gone = before.keys() - after.keys()
        self.world.did["removed by rules"] += sum(not before[thing].is_marker for thing in gone)
        self.theirs |= {thing for thing, one in after.items() if one.is_marker and thing not in before}
        hidden = {Thing(key, top.id, is_upload=False) for key, top in tops.items() if later.get(key) is not top}
        for thing in gone | hidden:
            if self.seen.get(thing.key) != thing.version_id:
                continue
            why = _needed_by(thing.key, needed)
            heard = self.owner_of.get(thing.key) not in self.unheard
            assert not (why and heard), f"midnight: {thing} went, and {why} needs it"
            self.lost.add(thing)

    # Taking back

    @rule(number=NUMBER)
    def one_is_taken_back(self, number: int) -> None:
        """An administrator's ``undo`` of a run."""
        dice = self.dice(number)
        entity = self.pick(dice.randrange(2**16), "run", "deleted")
        if entity is None:
            return
        self.count("undo")
        before = self.sights()
        step = Step(what="undo", before={}, snapshot=self.snapshot, live=self.live, graced=True)
        ran = run("undo", "--backend-store-uri", self.site.uri, "--run-ids", entity)
        # Nothing is written below a root that is another database's.
        assert ran.code in (0, 2) or (ran.code == 3 and "another tracking database" in ran.err), ran.err
        after = self.sights()
        self.judge(step, before, after, self.untouchable())
        if ran.code == 0:
            self.undone.add(entity)
            self.world.did["undone"] += 1

    def delete_experiment(self, number: int) -> None:
        """As always: what is deleted anew may go anew, and MLflow deletes all runs of an experiment anew."""
        super().delete_experiment(number)
        self.undone.clear()

    def finish(self) -> None:
        """Without faults, one more: everything is as its users want it, and what is garbage goes by the rules."""
        if self.mishaps or sys.exc_info()[0] is not None:
            return
        self.fake.set_clock(ahead_ms=0)
        self.keepers.let_all_go(run_list)
        left_alone = self.left_alone()
        ran = run(*self.gc_arguments(now=True, metadata=False))
        ends = {result["outcome"] for result in ran.json.get("results", ())}
        assert ran.code == 0, ran.err
        assert ends <= {"swept", "waiting", "empty", "protected"}, ran.json["results"]
        self._note_the_dead()
        self.require_seen("at the end", left_alone)
        for _ in range(MIDNIGHTS):
            self.jump_by(24 * 8)
            self.midnight()
        self.require_gone()

    def require_gone(self) -> None:
        """Of what was hidden or tagged nothing is left but what somebody needs, or took back."""
        needed = self.all_needed()
        for thing, one in self.sights().items():
            if one.is_marker or _needed_by(thing.key, needed):
                continue
            assert not one.tagged, f"at the end: {thing} is tagged, and there"


class HidingHistory(WaitingHistory):
    """Sweeps hide."""

    action: ClassVar[str] = "hide"
    shown: ClassVar[tuple[str, ...]] = (*WaitingHistory.shown, "markers taken off")


class TaggingHistory(WaitingHistory):
    """Sweeps tag."""

    action: ClassVar[str] = "tag"
    shown: ClassVar[tuple[str, ...]] = (*WaitingHistory.shown, "tags taken off")
    versionings: ClassVar[tuple[str, ...]] = ("", "Enabled")
