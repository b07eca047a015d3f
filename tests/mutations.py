"""Fences that are broken on purpose, one at a time: the tests have to notice each (docs/safety-tests.md has the table).

    python -m tests.mutations                       every break against the tests that it names
    python -m tests.mutations claims verified       only these
    STEPS=300 python -m tests.mutations claims      against as many steps of random histories instead

Each break is made in a copy; a unit test holds that all of them can still be made.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "mlflow_artifact_gc"
COPIED = (PACKAGE, "tests", "benchmarks", "migrations", "docs", "README.md", "pyproject.toml", "setup.py")


@dataclass(frozen=True, kw_only=True)
class Break:
    """In ``file``, ``old`` (which is there once) becomes ``new``. ``tests``: arguments of pytest that find it."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: str

    def made_in(self, root: Path) -> str:
        """The text of the broken file."""
        text = (root / PACKAGE / self.file).read_text()
        assert text.count(self.old) == 1, (
            f"{self.name}: {self.file} has changed: {text.count(self.old)} times {self.old!r}"
        )
        return text.replace(self.old, self.new)


BREAKS = (
    Break(
        name="references",
        what="the fence does not read who needs a location",
        file="fence.py",
        old="found = references.read(self._tracked, self._registry, candidates)",
        new="found: list[references.Reference] = []",
        tests="tests/integration/test_holds.py -k between_plan_and_fence",
    ),
    Break(
        name="protected",
        what="a reference protects nothing",
        file="policy.py",
        old="    if found.protected_by:\n",
        new="    if not found:\n",
        tests="tests/unit/test_policy.py",
    ),
    Break(
        name="protected-of-many",
        what="what was decided for a row without references is taken for one of its experiment that has some",
        file="planning.py",
        old="index in shields or number",
        new="number",
        tests="tests/unit/test_packed.py -k one_of_many",
    ),
    Break(
        name="before-each-batch",
        what="nothing is asked before each batch of deletes",
        file="acting.py",
        old="changed = self.fence.changed([work.line for work in open_])",
        new="changed: dict[Decision, SweepResult] = {}",
        tests="tests/integration/test_holds.py -k in_the_middle",
    ),
    Break(
        name="stage",
        what="whether it is still deleted is not asked, neither at the fence nor before a batch",
        file="fence.py",
        old="            if why:\n                changed.append(",
        new="            if not line:\n                changed.append(",
        tests="tests/integration/test_gc.py -k 'restore_stops_the_sweep and not before'",
    ),
    Break(
        name="notes",
        what="a note of the hook since the plan stops nothing",
        file="fence.py",
        old="why = self._why_not(line, stone) or _why_noted(line, noted)",
        new="why = self._why_not(line, stone)",
        tests="tests/integration/test_worker_races.py -k 'wrong_clock or deleted_again'",
    ),
    Break(
        name="claims",
        what="another process's claim is no reason to leave a location alone",
        file="fence.py",
        old="free = [line for line in lines if line.location not in busy]",
        new="free = list(lines)",
        tests="tests/integration/test_interruptions.py -k elsewhere",
    ),
    Break(
        name="claims-kept",
        what="whether the claim is still ours is not asked before a batch",
        file="fence.py",
        old="for line in lines if line.location not in held]",
        new="for line in lines if not line]",
        tests="tests/integration/test_attack_sweep.py -k another_process",
    ),
    Break(
        name="keep-tags",
        what="keep tags of experiments are not read before a batch",
        file="fence.py",
        old="kept=frozenset(one for one in kept if not own or one == own)",
        new="kept=frozenset()",
        tests="tests/integration/test_holds.py -k in_the_middle",
    ),
    Break(
        name="registered",
        what="what was registered or held since is not looked for before a batch",
        file="fence.py",
        old="if self._read_with.get(line.location, self._needs) != now[line.location]]",
        new="if kept]",
        tests="tests/integration/test_attack_claims.py -k does_not_say_the_id",
    ),
    Break(
        name="renewed",
        what="a claim that has run out is renewed",
        file="journal.py",
        old="        intents.c.claimed_by == owner,\n        intents.c.state == State.SWEEPING,\n"
        "        intents.c.claimed_until_ms > database.clock_expression(connection.dialect.name),\n",
        new="        intents.c.claimed_by == owner,\n        intents.c.state == State.SWEEPING,\n",
        tests="tests/integration/test_attack_claims.py -k run_out_is_not_renewed",
    ),
    Break(
        name="notes-kept",
        what="the worker takes notes of registrations out of the inbox while another sweeps",
        file="intake.py",
        old="return registered if journal.is_anything_swept(connection) else set()",
        new="return set()",
        tests="tests/integration/test_attack_claims.py -k does_not_say_the_id",
    ),
    Break(
        name="holds-read",
        what="holds are not read where the references are",
        file="references.py",
        old="        return holds.active(self._connection, self._now_ms)",
        new="        return holds.active(self._connection, self._now_ms)[:0]",
        tests="tests/integration/test_holds.py -k between_plan_and_fence",
    ),
    Break(
        name="keep-tags-read",
        what="keep tags are not read where the references are",
        file="references.py",
        old='        if holder := kept_by_tag(f"{kind} {of}", value, self._now_ms):',
        new='        if (holder := kept_by_tag(f"{kind} {of}", value, self._now_ms)) and not id_:',
        tests="tests/integration/test_holds.py -k what_is_tagged_stays",
    ),
    Break(
        name="marker-within",
        what="a marker of another root in a location, or in its entity's folder, is not looked for",
        file="surveying.py",
        old='        if entry.key.endswith(f"/{s3.MARKER_NAME}"):\n            self.foreign_marker = entry.key',
        new="        if entry.key == s3.MARKER_NAME:\n            self.foreign_marker = entry.key",
        tests="tests/integration/test_attack_roots.py -k anywhere",
    ),
    Break(
        name="elsewhere",
        what="a registry in another database is not asked before a batch",
        file="fence.py",
        old="        needs = replace(needs, elsewhere=self._state_elsewhere())\n        protected",
        new="        needs = replace(needs, elsewhere=self._needs.elsewhere)\n        protected",
        tests="tests/integration/test_attack_claims.py -k registration_elsewhere",
    ),
    Break(
        name="minimum-age",
        what="the minimum age of a location is not looked at",
        file="acting.py",
        old="elif young := self._young(work, found):",
        new='elif young := "":',
        tests="tests/integration/test_gc.py -k 'young or age'",
    ),
    Break(
        name="late-writer",
        what="what is written while a location is swept has no minimum age",
        file="acting.py",
        old="        if not self.min_age_ms:\n            return False\n",
        new="        if self.min_age_ms is not None:\n            return False\n",
        tests="tests/integration/test_attack_sweep.py -k minimum_age",
    ),
    Break(
        name="grace",
        what="the grace period is a day too short",
        file="policy.py",
        old="tombstone.deleted_ms > cutoff_ms:",
        new="tombstone.deleted_ms > cutoff_ms + 86_400_000:",
        tests="tests/unit/test_policy.py",
    ),
    Break(
        name="grace-by-one",
        what="the grace period is a millisecond too short",
        file="policy.py",
        old="tombstone.deleted_ms > cutoff_ms:",
        new="tombstone.deleted_ms > cutoff_ms + 1:",
        tests="tests/unit/test_policy.py",
    ),
    Break(
        name="nested",
        what="the owner of a foreign id in a path is not looked up",
        file="planning.py",
        old="nested_with=nested_with or around.owner(index)",
        new="nested_with=nested_with",
        tests="tests/unit/test_planning.py",
    ),
    Break(
        name="shape",
        what="a location need not end as MLflow ends it",
        file="policy.py",
        old=' or not f"/{location.prefix}".endswith(f"/{shape}/"):',
        new=":",
        tests="tests/unit/test_policy.py",
    ),
    Break(
        name="epoch",
        what="the epoch of a root's marker is not compared",
        file="ownership.py",
        old="if found.epoch > epoch:",
        new="if found.epoch > epoch + 1_000_000:",
        tests="tests/integration/test_init.py",
    ),
    Break(
        name="marker",
        what="whose a root's marker is does not matter",
        file="ownership.py",
        old="        if found.database_id != self._site.database_id:\n            raise _Foreign(_whose(folder",
        new="        if not found.database_id:\n            raise _Foreign(_whose(folder",
        tests="tests/integration/test_attack_roots.py",
    ),
    Break(
        name="marker-gone",
        what="a marker that is gone is written anew",
        file="ownership.py",
        old="if row is not None and row.marker_epoch > 0:",
        new="if row is not None and row.marker_epoch > 1_000_000:",
        tests="tests/integration/test_init.py",
    ),
    Break(
        name="verified",
        what="a purged location is called swept, whatever is listed afterwards",
        file="purging.py",
        old="        elif found.empty:\n            work.end(",
        new="        elif found is not None:\n            work.end(",
        tests="tests/integration/test_faults.py -k DeleteObjects",
    ),
    Break(
        name="answers",
        what="the errors in the answer to a DeleteObjects are not read",
        file="acting.py",
        old="owners[id(entry)].failures[identity(entry)] = failure",
        new="self._gone(owners[id(entry)], entry)",
        tests="tests/integration/test_faults.py -k DeleteObjects",
    ),
    Break(
        name="unknown",
        what="keys whose answer was lost are not settled by the listing",
        file="purging.py",
        old="if found.entries is not None and name not in left:\n                work.tally(entry)",
        new="if found.entries is not None and name not in left:\n                work.touched = True",
        tests="tests/integration/test_faults.py -k DeleteObjects",
    ),
    Break(
        name="registrations",
        what="registrations that asked before the claim are not waited for",
        file="fence.py",
        old="        if mine:\n            self._outwait_registrations()",
        new="        if not lines:\n            self._outwait_registrations()",
        tests="tests/integration/test_worker.py -k began_before_the_claim",
    ),
    Break(
        name="spared",
        what="markers of others from just before a hide are taken for ours",
        file="hides.py",
        old='if (entry.key, entry.version_id or "null") in self.spared:\n            return False',
        new='if (entry.key, entry.version_id or "null") in self.spared:\n            return True',
        tests="tests/integration/test_hide.py -k no_others",
    ),
    Break(
        name="versioning",
        what="a hide does not ask before a batch whether the bucket still keeps versions",
        file="hiding.py",
        old="            if versioning is not Versioning.ENABLED:\n                raise",
        new="            if versioning is None:\n                raise",
        tests="tests/integration/test_attack_waiting_for_s3.py -k suspended",
    ),
    Break(
        name="tag-of-others",
        what="another value of our tag's key is written over",
        file="s3/tagging.py",
        old="        if tag.key in found:\n            return Tagged.TAKEN\n",
        new="",
        tests="tests/integration/test_attack_waiting_for_s3.py -k somebody",
    ),
    Break(
        name="rule",
        what="tag begins without a rule of the bucket",
        file="tagging.py",
        old="return self.missing_rule(bucket)",
        new="return self.missing_rule(bucket)[:0]",
        tests="tests/integration/test_tag.py -k without_a_rule",
    ),
    Break(
        name="taken-back",
        what="what is live again is not taken back",
        file="settling.py",
        old="back = self.take_back(list(live.values()), dict.fromkeys(live, _RESTORED))",
        new="back = self.take_back([], dict.fromkeys(live, _RESTORED))",
        tests="tests/integration/test_attack_waiting_for_s3.py -k nothing_else_can_be_read",
    ),
    Break(
        name="endpoint",
        what="at another S3, what waits is looked at all the same",
        file="settling.py",
        old="if endpoint not in known:",
        new="if not endpoint:",
        tests="tests/integration/test_attack_waiting_for_s3.py -k endpoint",
    ),
    Break(
        name="replaced",
        what="in a bucket that took the place of another one, what waits is looked at all the same",
        file="settling.py",
        old="for place, standing in found_at.items() if standing.outcome}",
        new="for place, standing in found_at.items() if not place}",
        tests="tests/integration/test_clones_and_moves.py -k replaced",
    ),
    Break(
        name="quarantine",
        what="an orphan goes at its second sighting, whenever that is",
        file="leftovers.py",
        old="if terms.now_ms < until_ms:",
        new="if terms.now_ms < orphan.seen_ms:",
        tests="tests/integration/test_orphans.py -k second_sighting",
    ),
    Break(
        name="sighting",
        what="what was written to since it was seen counts as seen",
        file="sightings.py",
        old="return held == self.held or (ours and less)",
        new="return True",
        tests="tests/integration/test_orphans.py -k written_to",
    ),
    Break(
        name="row-back",
        what="whether an orphan has a row by now is not asked before a batch",
        file="fence.py",
        old="        and line.entity.id not in there\n",
        new="",
        tests="tests/integration/test_orphans.py -k after_the_fence",
    ),
    Break(
        name="orphan-written",
        what="an orphan that was written to since it was seen is not postponed",
        file="acting.py",
        old="if orphan is not None and found.youngest_ms > (orphan.newest_ms or 0):",
        new="if orphan is not None and found.youngest_ms < 0:",
        tests="tests/integration/test_orphans.py -k between_the_plan",
    ),
    Break(
        name="parts",
        what="a part of a run that is needed goes along with what lies beside it",
        file="packed.py",
        old="needed=self._needed.get(position, ()),",
        new="needed=(),",
        tests="tests/integration/test_partial.py -k lies_beside",
    ),
)


def tried(one: Break, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``command`` on a copy with that break."""
    for name in COPIED:
        source, copy = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    (folder / PACKAGE / one.file).write_text(one.made_in(ROOT))
    environ = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def verdict(one: Break, steps: str | None) -> tuple[bool, str]:
    """Whether anything noticed the break, and what."""
    tests = ["pytest", "-q", "-x", "-o", f"cache_dir={ROOT / '.pytest_cache'}", *shlex.split(one.tests)]
    command = [sys.executable, "-m", *(["tests.histories", steps] if steps else tests)]
    with tempfile.TemporaryDirectory() as folder:
        ended = tried(one, command, Path(folder))
    said = ended.stdout + ended.stderr
    told = re.findall(r"(?m)^(?:FAILED|ERROR|E +AssertionError:|AssertionError:|[\d,]+ steps in|\d+ passed).*", said)
    # A copy that does not even start has noticed nothing.
    ran = " steps in " in said if steps else bool(re.search(r"\d+ (passed|failed)", said))
    if ended.returncode not in (0, 1) or not ran:
        raise RuntimeError(f"{one.name}: {said[-2000:]}")
    return ended.returncode == 1, " | ".join(told[-3:])[:600]


def main(names: list[str]) -> int:
    """Say of each break what noticed it; 1 where nothing did."""
    missed = 0
    for one in BREAKS:
        if not names or one.name in names:
            found, told = verdict(one, os.environ.get("STEPS"))
            missed += not found
            print(f"{one.name}: {'found' if found else 'MISSED'}: {told}", flush=True)  # noqa: T201
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
