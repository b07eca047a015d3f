"""What people keep in random histories: holds, keep tags, and folders that carry another database's marker.

It puts them on by our command and by MLflow's own stores, and knows in its own, simple words what they are to keep.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from tests import oracle
from tests.fakes3 import FakeS3
from tests.fakes3.keeping import Version as Stored
from tests.site import Row, Site, Snapshot, Version

KEEP = "artifact_gc.keep"
MODEL = "churn"
"""The one registered model of a history."""
HOLDS = {
    "run": "--run-id",
    "experiment": "--experiment-id",
    "logged_model": "--logged-model-id",
    "registered_model": "--registered-model",
    "location": "--location",
}
TAGGED = {
    "run": ("tags", "run_uuid", "key", "value"),
    "experiment": ("experiment_tags", "experiment_id", "key", "value"),
    "logged_model": ("logged_model_tags", "model_id", "tag_key", "tag_value"),
    "registered_model": ("registered_model_tags", "name", "key", "value"),
    "model_version": ("model_version_tags", "version", "key", "value"),
}
"""MLflow's tables of tags: what a tag is on, its key and its value."""
FOR_EVER = ("true", "yes", "1", "until the audit is over")
OTHER = {"about": "", "format": 1, "database_id": "another", "epoch": 1, "fingerprint": "sqlite:/elsewhere"}
_INSTANT = "%Y-%m-%dT%H:%M:%SZ"
_EVERY_VERSION = (
    "SELECT name, version, COALESCE(current_stage, ''), COALESCE(source, ''), COALESCE(storage_location, '')"
    " FROM model_versions"
)


class Ended(Protocol):
    """How a command of ours ended."""

    @property
    def code(self) -> int | None: ...
    @property
    def out(self) -> str: ...
    @property
    def err(self) -> str: ...


class Keep(NamedTuple):
    """What somebody keeps: a kind of thing, and its id, name, number or URI.

    ``until_ms`` is in the history's time; None: for ever. ``text`` is a tag's value.
    """

    on: str
    target: str
    until_ms: int | None = None
    text: str = ""


@dataclass(kw_only=True)
class Keepers:
    """Who keeps what just now. ``clock_ms`` is the history's time; what ends within ``slack_ms`` may have ended."""

    site: Site
    fake: FakeS3
    clock_ms: Callable[[], int]
    slack_ms: int
    lost: Callable[[Snapshot], list[Row]]
    """Of what is known by what it left alone what its row was: an experiment's hold keeps it too."""
    made_in: dict[str, str] = field(default_factory=dict)
    """Of logged models the run that they were made in."""
    holds: dict[int, Keep] = field(default_factory=dict)
    tags: dict[tuple[str, str], Keep] = field(default_factory=dict)
    markers: dict[str, list[Stored]] = field(default_factory=dict)
    """By the key of another database's marker: what was there before."""

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.holds) + len(self.tags) + len(self.markers)

    def _end(self, hours: int | None) -> int | None:
        return None if hours is None else self.clock_ms() + hours * 3_600_000

    # Putting on

    def hold(self, command: Callable[[Sequence[str]], Ended], on: str, target: str, hours: int | None) -> None:
        """``hold add``, by a command in this process or another."""
        keep = Keep(on, target, self._end(hours))
        until = [] if hours is None else ["--until", f"{hours}h"]
        about = ["--backend-store-uri", self.site.uri, "--reason", "history", "--author", "alice", "--format", "json"]
        ran = command(["hold", "add", *about, HOLDS[on], target, *until])
        assert ran.code == 0, f"hold add {HOLDS[on]} {target}: {ran.code}: {ran.err}"
        (made,) = json.loads(ran.out)["added"]
        self.holds[made["id"]] = keep

    def tag(self, on: str, target: str, hours: int | None, word: str) -> None:
        """A user sets the keep tag in MLflow."""
        ends = None if hours is None else datetime.fromtimestamp(time.time(), UTC) + timedelta(hours=hours)
        keep = Keep(on, target, self._end(hours), word if ends is None else ends.strftime(_INSTANT))
        _set_tag(self.site, keep)
        self.tags[on, target] = keep

    def mark(self, folder: str) -> None:
        """Another database has taken a folder (``""`` or ending in ``/``) for its root."""
        bucket = self.fake.bucket(self.site.bucket)
        key = folder + oracle.MARKER_NAME
        if key not in self.markers:
            self.markers[key] = bucket.keys.pop(key, [])
            self.fake.kept.put(bucket, key, json.dumps(OTHER).encode(), tags={}, headers={})

    def pass_(self, ms: int) -> None:
        """So much time passes: a tag's end comes nearer; a hold's does with all that our tables say."""
        for name, keep in self.tags.items():
            if keep.until_ms is not None:
                earlier = datetime.strptime(keep.text, _INSTANT).replace(tzinfo=UTC) - timedelta(milliseconds=ms)
                self.tags[name] = keep._replace(text=earlier.strftime(_INSTANT))
                self._write_over(keep, self.tags[name].text)

    # Taking off

    def let_go(self, command: Callable[[Sequence[str]], Ended], dice: random.Random) -> None:
        """One of them, if there is one."""
        match dice.choice([*self.holds, *self.tags, *self.markers] or [None]):
            case int(number):
                self.release(command, [number])
            case (str(on), str(target)):
                self.untag(on, target, "false" if dice.random() < 0.5 else None)
            case str(key):
                self.unmark(key)

    def let_all_go(self, command: Callable[[Sequence[str]], Ended]) -> None:
        self.release(command, list(self.holds))
        for on, target in list(self.tags):
            self.untag(on, target, None)
        for key in list(self.markers):
            self.unmark(key)

    def release(self, command: Callable[[Sequence[str]], Ended], numbers: Sequence[int]) -> None:
        """``hold rm``."""
        if numbers:
            ran = command(["hold", "rm", "--backend-store-uri", self.site.uri, *map(str, numbers)])
            assert ran.code == 0, ran.err
        for number in numbers:
            del self.holds[number]

    def untag(self, on: str, target: str, text: str | None) -> None:
        """By hand: of what is deleted MLflow takes no tag off."""
        self._write_over(self.tags.pop((on, target)), text)

    def _write_over(self, keep: Keep, text: str | None) -> None:
        table, of, key, value = TAGGED[keep.on]
        what = f"{of} = :target AND {key} = :key"
        named: dict[str, object] = {"target": keep.target, "key": KEEP}
        if text is None:
            self.site.execute(f"DELETE FROM {table} WHERE {what}", **named)
        else:
            self.site.execute(f"UPDATE {table} SET {value} = :text WHERE {what}", text=text, **named)

    def unmark(self, key: str) -> None:
        """It is its root no more, and what was there before is there again."""
        bucket = self.fake.bucket(self.site.bucket)
        before = self.markers.pop(key)
        del bucket.keys[key]
        if before:
            bucket.keys[key] = before

    # What that keeps

    def wanted(self, snapshot: Snapshot, *, partly: bool = False) -> Iterator[tuple[str, str]]:
        """Keys (of objects or folders) that holds and keep tags keep, and whose they are.

        Args:
            snapshot: MLflow's rows.
            partly: where only a part of a location is named, the rest may go.
        """
        for number, keep in list(self.holds.items()):
            for key in self._reached(keep, snapshot, partly=partly):
                yield key, f"hold #{number} on {keep.on} {keep.target}"
        for keep in list(self.tags.values()):
            for key in self._reached(keep, snapshot, partly=partly):
                yield key, f"the keep tag {keep.text!r} of {keep.on} {keep.target}"

    def owned_by_others(self, snapshot: Snapshot) -> Iterator[tuple[str, str]]:
        """Keys of folders that another database's marker keeps: what it lies in, and what lies around that."""
        for marker in self.markers:
            folder = marker.removesuffix(oracle.MARKER_NAME).rstrip("/")
            for key in (folder, *self._around(snapshot, folder)):
                yield key, f"another database, by {marker},"

    def experiments(self) -> set[str]:
        """The ids of experiments whose rows are kept."""
        return {
            keep.target
            for keep in (*self.holds.values(), *self.tags.values())
            if keep.on == "experiment" and self._in_force(keep)
        }

    def require_markers(self) -> None:
        """What another database wrote is there, as it wrote it."""
        bucket = self.fake.bucket(self.site.bucket)
        for key in self.markers:
            found = bucket.keys.get(key)
            assert found, f"{key} of another database is gone"
            assert json.loads(found[0].body) == OTHER, f"{key} of another database was written over: {found[0].body!r}"

    def _in_force(self, keep: Keep) -> bool:
        return keep.until_ms is None or keep.until_ms - self.clock_ms() > self.slack_ms

    def _reached(self, keep: Keep, snapshot: Snapshot, *, partly: bool) -> Iterator[str]:
        if not self._in_force(keep):
            return
        if keep.on == "location":
            for key in oracle._keys_named(self.site, keep.target):
                yield key
                if not partly:
                    yield from self._around(snapshot, key)
        elif keep.on in ("registered_model", "model_version"):
            for version in self.site._select(self.site.registry_engine, _EVERY_VERSION, Version):
                if keep.on == "registered_model" or str(version.version) == keep.target:
                    yield from oracle._keys_of(self.site, snapshot, version, partly=partly)
        else:
            # A keep tag on a run goes with its row.
            lost = [] if keep.on != "experiment" and keep.text else self.lost(snapshot)
            for row in (*snapshot.rows, *lost):
                if self._is_of(keep, row):
                    yield from oracle._keys_named(self.site, row.uri)

    def _around(self, snapshot: Snapshot, inner: str) -> Iterator[str]:
        """The keys of the folders of entities that contain another."""
        for row in (*snapshot.rows, *self.lost(snapshot)):
            if row.kind != "experiment":
                yield from (key for key in oracle._keys_named(self.site, row.uri) if f"{inner}/".startswith(f"{key}/"))

    def _is_of(self, keep: Keep, row: Row) -> bool:
        if row.kind == "experiment":
            return False
        if keep.on == "experiment":
            return row.experiment_id == keep.target
        return row.id == keep.target or (keep.on == "run" and self.made_in.get(row.id) == keep.target)


def _set_tag(site: Site, keep: Keep) -> None:
    import mlflow.entities as made_of
    from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag

    set_: dict[str, Callable[[], Any]] = {
        "run": lambda: site.store.set_tag(keep.target, made_of.RunTag(KEEP, keep.text)),
        "experiment": lambda: site.store.set_experiment_tag(keep.target, made_of.ExperimentTag(KEEP, keep.text)),
        "logged_model": lambda: site.store.set_logged_model_tags(
            keep.target, [made_of.LoggedModelTag(KEEP, keep.text)]
        ),
        "registered_model": lambda: site.registry.set_registered_model_tag(
            keep.target, RegisteredModelTag(KEEP, keep.text)
        ),
        "model_version": lambda: site.registry.set_model_version_tag(
            MODEL, keep.target, ModelVersionTag(KEEP, keep.text)
        ),
    }
    set_[keep.on]()
