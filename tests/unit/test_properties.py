"""What holds for every backlog: generated tombstones, references and clocks against a brute-force oracle.

The oracle compares lists of path segments in quadratic loops and knows nothing of ``Protection``. ``TEST_SEED`` repeats
a run; a failure prints its seed.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from hypothesis import event, given, note, seed, settings
from hypothesis import strategies as st

from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Plan, Reason, Reference, Strength, Tombstone
from mlflow_artifact_gc.planning import Facts, decisions, ids_in_places, measured
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.protection import Candidate, Protection

SEED = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))

Run = Callable[..., None]


def check(test: Run) -> Run:
    """Runs a property with this session's seed; no database of examples: the seed repeats them."""
    return seed(SEED)(
        settings(derandomize=False, print_blob=True, deadline=None, database=None, max_examples=100)(test)
    )


PROXY = Destination.parse("s3://bucket/root")
CUTOFF_MS = 1_000
HEXES = ("0" * 32, "0123456789abcdef" * 2, "f" * 31 + "0", "ab" * 16)
IDS = {
    EntityKind.RUN: (*HEXES, "run1", "run10", "Odd id", "ABCDEF" * 5 + "01"),
    EntityKind.LOGGED_MODEL: (*(f"m-{digits[::-1]}" for digits in HEXES[1:]), "m-odd"),
    EntityKind.TRACE: (*(f"tr-{digits[16:]}{digits[:8]}{'5' * 8}" for digits in HEXES[:3]), "trace.1"),
}
FOLDERS = {EntityKind.RUN: (), EntityKind.LOGGED_MODEL: ("models",), EntityKind.TRACE: ("traces",)}
BASES = (("root", "e1"), ("root", "e2"), ("root",), ("root", "workspaces", "team", "e2"), (), ("root", "e1", "models"))
OBJECTS = ((), ("model",), ("model", "data.bin"), ("..x",), ("50%",), ("ü b",))

Segments = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """An entity, live or deleted, and where it really lies."""

    tombstone: Tombstone
    bucket: str
    segments: Segments
    live: bool = False

    @property
    def id(self) -> str:
        return self.tombstone.entity.id

    def own_place(self) -> Reference:
        """The reference that its row is, with its own id taken out, as ``references`` reads it."""
        head = self.tombstone.uri.removesuffix(f"/{self.id}/artifacts")
        return Reference(
            holder=f"row {self.id}",
            text=f"{head}/{{id}}/artifacts",
            strength=Strength.AREA,
            live=self.live,
            workspace=self.tombstone.entity.workspace,
        )


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """A reference, and the place that whoever wrote it meant (None: only an id)."""

    reference: Reference
    bucket: str | None
    segments: Segments = ()


@dataclass(frozen=True, kw_only=True)
class World:
    """All that a plan is made from."""

    owners: tuple[Owner, ...]
    pointers: tuple[Pointer, ...]

    def decide(
        self, *, scope: Scope | None = None, cutoff_ms: int = CUTOFF_MS, include_undated: bool = False
    ) -> tuple[Decision, ...]:
        dead = [owner.tombstone for owner in self.owners if not owner.live]
        asked = ids_in_places(dead)
        facts = Facts(
            tombstones=dead,
            references=[*(one.own_place() for one in self.owners), *(one.reference for one in self.pointers)],
            owners={owner.id: f"row {owner.id}" for owner in self.owners if owner.id in asked},
            destination=PROXY,
            swept_ms={},
        )
        made = decisions(facts, scope or Scope(), cutoff_ms=cutoff_ms, include_undated=include_undated, again=False)
        return tuple(made)

    def swept(self, lines: Sequence[Decision]) -> list[Owner]:
        """The owners whose location the plan would sweep."""
        due = {line.entity for line in lines if line.reason is Reason.DUE}
        return [owner for owner in self.owners if owner.tombstone.entity in due]


# How worlds are made


@st.composite
def owners(draw: st.DrawFn) -> tuple[Owner, ...]:
    """Up to six entities with different ids, some inside the place of another."""
    made: list[Owner] = []
    choices = [(kind, id_) for kind in EntityKind for id_ in IDS[kind]]
    for kind, id_ in draw(st.lists(st.sampled_from(choices), min_size=1, max_size=6, unique=True)):
        around = [(owner.bucket, owner.segments) for owner in made if draw(st.integers(0, 3)) == 3]
        plain = [(bucket, base) for bucket in ("bucket", "other") for base in BASES]
        bucket, base = draw(st.sampled_from(around or plain))
        segments = (*base, *FOLDERS[kind], id_, "artifacts")
        workspace = draw(st.sampled_from(("default", "team")))
        uri = f"s3://{bucket}/{'/'.join(segments)}"
        team = segments[1:3] == ("workspaces", "team")
        if bucket == "bucket" and segments[0] == "root" and (workspace == "team") == team and draw(st.booleans()):
            uri = f"mlflow-artifacts:/{'/'.join(segments[1:])}"
        made.append(
            Owner(
                tombstone=Tombstone(
                    entity=Entity(
                        kind=kind, id=id_, experiment_id=draw(st.sampled_from(("1", "2"))), workspace=workspace
                    ),
                    uri=uri,
                    deleted_ms=draw(st.sampled_from((CUTOFF_MS, CUTOFF_MS - 1, 0, CUTOFF_MS, CUTOFF_MS + 1, None))),
                ),
                bucket=bucket,
                segments=segments,
                live=draw(st.integers(0, 4)) == 4,
            )
        )
    return tuple(made)


def encoded(text: str, draw: st.DrawFn) -> str:
    """``text`` with some letters percent-encoded, and each ``%`` for certain."""
    keep = draw(st.sampled_from(("", "/", "/ abcdefg0123456789", "abcdefghijklmnopqrstuvwxyz_-.0123456789")))
    return "".join(
        letter if letter != "%" and letter in keep else "".join(f"%{byte:02x}" for byte in letter.encode())
        for letter in text
    )


@st.composite
def pointers(draw: st.DrawFn, around: tuple[Owner, ...]) -> Pointer:
    """A reference to an id, an experiment, a place of an entity, above it, beneath it or elsewhere, in some writing."""
    strength = draw(st.sampled_from(Strength))
    some = draw(st.sampled_from([owner for owner in around if not owner.live] or around))
    if draw(st.integers(0, 7)) == 0:
        experiment_id = some.tombstone.entity.experiment_id
        return Pointer(reference=Reference(holder="hold", text="", experiment_id=experiment_id), bucket=None)
    if draw(st.integers(0, 2)) == 0:
        id_ = draw(st.sampled_from((some.id, some.id.upper(), encoded(some.id, draw))))
        form = draw(st.sampled_from(("models:/{}", "runs:/{}/model", "gs://copy/a{}0", "{}", "file:///mnt/{}/x")))
        return Pointer(reference=Reference(holder="id", text=form.format(id_), strength=strength), bucket=None)
    # At the place itself, beneath it, or somewhere above it or beside it.
    depth = draw(st.one_of(st.just(len(some.segments)), st.integers(0, len(some.segments) - 2)))
    tail = draw(st.one_of(st.just(()), st.sampled_from(OBJECTS)))
    bucket, segments = some.bucket, (*some.segments[:depth], *tail)
    key = "/".join(segments)
    direct = [
        f"s3://{bucket}/{key}",
        f"s3a://{bucket}/{key}{'/' if key else ''}",
        f"S3://{bucket}/{key}",
        f"arn:aws:s3:::{bucket}/{key}",
    ]
    quoted = [f"s3://{bucket}/{encoded(key, draw)}", f"s3://{bucket}/{quote(quote(key))}"]
    proxied = (
        [f"mlflow-artifacts:/{key[5:]}", f"https://host/api/2.0/mlflow-artifacts/artifacts/{quote(key[5:])}"]
        if bucket == "bucket" and key.startswith("root/")
        else []
    )
    text = draw(st.sampled_from([*direct, *quoted, *proxied]))
    return Pointer(reference=Reference(holder="place", text=text, strength=strength), bucket=bucket, segments=segments)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Entities, and up to four references of which most point at one of them."""
    made = draw(owners())
    world = World(owners=made, pointers=tuple(draw(st.lists(pointers(made), max_size=4))))
    note(f"TEST_SEED={SEED}")
    return world


# The oracle


def begins_with(longer: Segments, shorter: Segments) -> bool:
    """Whether ``shorter`` is where ``longer`` begins."""
    return longer[: len(shorter)] == shorter


def texts(text: str) -> set[str]:
    """The text and what it becomes by decoding it."""
    return {text, unquote(text), unquote(unquote(text)), unquote(unquote(unquote(text)))}


def holds_id(text: str, id_: str) -> bool:
    """Whether the text holds the id, or the 32 digits that it ends in, in any encoding."""
    digits = re.fullmatch(r"(?:[a-z]{1,3}-)?([0-9a-f]{32})", id_)
    if digits:
        return any(digits[1] in reading.lower() for reading in texts(text))
    return any(id_ in reading for reading in texts(text))


def needs(pointer: Pointer, owner: Owner) -> bool:
    """Whether a reference needs what lies at an owner's place."""
    if holds_id(pointer.reference.text, owner.id):
        return True
    if pointer.reference.experiment_id == owner.tombstone.entity.experiment_id:
        return True
    if pointer.bucket != owner.bucket:
        return False
    inside = begins_with(pointer.segments, owner.segments)
    around = begins_with(owner.segments, pointer.segments)
    return inside or (around and pointer.reference.strength is Strength.NAMES)


def overlap(one: Owner, other: Owner) -> bool:
    """Whether one of the two lies in the other."""
    within = begins_with(one.segments, other.segments) or begins_with(other.segments, one.segments)
    return one.bucket == other.bucket and within


def alone(owner: Owner, world: World) -> bool:
    """Whether no other entity's row has anything to do with an owner, not even by an id."""
    return not any(
        overlap(owner, other) or holds_id(other.own_place().text, owner.id) or holds_id(owner.tombstone.uri, other.id)
        for other in world.owners
        if other is not owner
    )


# The properties


@check
@given(worlds(), st.booleans())
def test_nothing_is_swept_that_anything_needs(world: World, include_undated: bool) -> None:  # noqa: FBT001
    """No swept location overlaps a named place or another entity, contains an area, or has its id in a live text."""
    lines = world.decide(include_undated=include_undated)
    swept = world.swept(lines)
    event(f"swept: {min(len(swept), 3)}")

    assert [(owner.id, one.reference) for owner in swept for one in world.pointers if needs(one, owner)] == []
    assert [
        (owner.id, other.id)
        for owner in swept
        for other in world.owners
        if other is not owner and overlap(owner, other)
    ] == []


@check
@given(worlds(), st.booleans())
def test_a_reason_is_true(world: World, include_undated: bool) -> None:  # noqa: FBT001
    """What is protected is needed, what is young is young, and what nothing has to do with goes."""
    by_entity = {owner.tombstone.entity: owner for owner in world.owners}
    for line in world.decide(include_undated=include_undated):
        owner = by_entity[line.entity]
        date = owner.tombstone.deleted_ms
        needed = any(needs(one, owner) for one in world.pointers)
        event(f"reason: {line.reason}")
        if date is None and not include_undated:
            undisturbed = Reason.UNDATED
        else:
            undisturbed = Reason.GRACE if date is not None and date > CUTOFF_MS else Reason.DUE
        if needed:
            expected = {Reason.PROTECTED}
        elif alone(owner, world):
            expected = {undisturbed}
        elif any(overlap(owner, other) for other in world.owners if other is not owner):
            expected = {Reason.PROTECTED, Reason.NESTED}
        else:
            # run1 is a part of run10: how far the rules for odd ids see beyond a place is theirs to say.
            expected = {Reason.PROTECTED, Reason.NESTED, undisturbed}

        assert line.reason in expected
        assert line.location == Location(owner.bucket, "".join(f"{segment}/" for segment in owner.segments))


scopes = st.one_of(
    st.just(Scope()),
    st.builds(Scope, workspace=st.sampled_from(("default", "team"))),
    st.builds(Scope, experiment_ids=st.just(("1",)), workspace=st.sampled_from((None, "team"))),
    st.builds(
        Scope,
        run_ids=st.lists(st.sampled_from(IDS[EntityKind.RUN]), min_size=1).map(tuple),
        logged_model_ids=st.lists(st.sampled_from(IDS[EntityKind.LOGGED_MODEL])).map(tuple),
    ),
)


def in_scope(owner: Owner, scope: Scope) -> bool:
    """Whether a scope speaks of an owner."""
    entity = owner.tombstone.entity
    if scope.workspace not in (None, entity.workspace):
        return False
    named = [
        *((EntityKind.RUN, id_) for id_ in scope.run_ids),
        *((EntityKind.LOGGED_MODEL, id_) for id_ in scope.logged_model_ids),
    ]
    everything = not named and not scope.experiment_ids
    return everything or (entity.kind, entity.id) in named or entity.experiment_id in scope.experiment_ids


@check
@given(worlds(), scopes, st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=8, max_size=8))
def test_each_tombstone_in_scope_is_told_once(world: World, scope: Scope, powers: list[tuple[int, int]]) -> None:
    """Every tombstone that the scope covers has one line with one reason, and the totals are the sums of the lines."""
    lines = world.decide(scope=scope)
    wanted = [owner.tombstone for owner in world.owners if not owner.live and in_scope(owner, scope)]
    plan = Plan(
        id="plan",
        created_ms=CUTOFF_MS,
        cutoff_ms=CUTOFF_MS,
        action=Action.PURGE,
        database_id="database",
        entity_rows=len(world.owners),
        decisions=lines,
    )
    places = [line.location for line in lines if line.location]
    sizes = {location: (2**n, 10**k) for location, (n, k) in zip(places, powers, strict=False)}
    totals = measured(plan, sizes).totals
    due = [sizes[line.location] for line in lines if line.reason is Reason.DUE and line.location]

    assert Counter((mark.entity, mark.uri) for mark in wanted) == Counter((line.entity, line.uri) for line in lines)
    assert (totals.locations, totals.due) == (len(wanted), len(due))
    assert (totals.due_objects, totals.due_bytes) == (sum(n for n, _ in due), sum(size for _, size in due))
    assert sum(count for _, count in totals.by_reason) == len(wanted)


@check
@given(st.data())
def test_one_more_reference_sweeps_nothing_more(data: st.DataObject) -> None:
    """Adding a reference, live or not, never grows what is swept."""
    world = data.draw(worlds())
    more = data.draw(pointers(world.owners))
    more = replace(more, reference=replace(more.reference, live=data.draw(st.booleans())))
    where = data.draw(st.integers(0, len(world.pointers)))
    grown = replace(world, pointers=(*world.pointers[:where], more, *world.pointers[where:]))

    assert due(grown.decide()) <= due(world.decide())


@check
@given(worlds(), st.sampled_from((0, 1, 2, CUTOFF_MS, 10 * CUTOFF_MS)), st.booleans())
def test_more_grace_sweeps_nothing_more(world: World, grace_ms: int, include_undated: bool) -> None:  # noqa: FBT001
    """A longer grace period never grows what is swept."""
    patient = world.decide(cutoff_ms=CUTOFF_MS - grace_ms, include_undated=include_undated)

    assert due(patient) <= due(world.decide(include_undated=include_undated))


@check
@given(worlds(), scopes)
def test_a_narrower_scope_sweeps_nothing_more(world: World, scope: Scope) -> None:
    """What a scope sweeps is swept without it too, where undated rows, which naming an id takes, are taken anyway."""
    wide, narrow = due(world.decide(include_undated=True)), due(world.decide(scope=scope, include_undated=True))

    assert narrow <= wide
    assert due(world.decide(scope=scope)) <= wide


@check
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_reason(world: World, rng: random.Random) -> None:
    """However the database answers, each tombstone has the same reason."""
    mixed = World(
        owners=tuple(rng.sample(world.owners, len(world.owners))),
        pointers=tuple(rng.sample(world.pointers, len(world.pointers))),
    )

    assert {line.entity: line.reason for line in world.decide()} == {
        line.entity: line.reason for line in mixed.decide()
    }


@check
@given(st.data())
def test_encoding_a_reference_unprotects_no_id(data: st.DataObject) -> None:
    """A text that protects an id does so percent-encoded up to three times, and decoded again."""
    id_ = data.draw(st.sampled_from([id_ for kind in EntityKind for id_ in IDS[kind]]))
    plain = st.text(st.characters(exclude_characters="%", codec="utf-8"), max_size=6)
    text = data.draw(plain) + id_ + data.draw(plain)
    # A bucket that no text names: what protects here is the id alone.
    candidate = Candidate(id_, Location("none-of-these", f"{id_}/artifacts/"))
    protection = Protection((candidate,), PROXY)
    forms = [text]
    for _ in range(3):
        forms.append(encode_some(forms[-1], data))
    forms += [unquote(form) for form in forms]
    note(f"TEST_SEED={SEED} {forms}")

    assert [form for form in forms if protection.protected_by(Reference(holder="holder", text=form)) != {0}] == []


def encode_some(text: str, data: st.DataObject) -> str:
    """``text`` with each ``%`` and some other letters percent-encoded."""
    chosen = data.draw(st.lists(st.booleans(), min_size=len(text), max_size=len(text)))
    return "".join(
        "".join(f"%{byte:02X}" for byte in letter.encode()) if letter == "%" or picked else letter
        for letter, picked in zip(text, chosen, strict=True)
    )


def due(lines: Sequence[Decision]) -> set[Entity]:
    """The entities whose location is swept."""
    return {line.entity for line in lines if line.reason is Reason.DUE}
