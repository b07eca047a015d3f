"""Lifecycle rules: which are wanted, what is there already, and that nobody else's is ever lost or changed."""

from __future__ import annotations

import copy
import os
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from mlflow_artifact_gc.errors import Refused
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.lifecycle import (
    MOST_ROOTS,
    OUR_IDS,
    Finding,
    Rule,
    Verdict,
    Wanted,
    describe,
    difference,
    disabled,
    find,
    meaning,
    merged,
    outermost,
)
from mlflow_artifact_gc.model import Action
from tests.configurations import PREFIXES, configurations

SEED = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
GC = Tag("gc", "expired")
TAGGED = {"And": {"Prefix": "mlruns/", "Tags": [{"Key": "gc", "Value": "expired"}]}}
TIDY = {
    "ID": "tidy",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 3},
    "Expiration": {"ExpiredObjectDeleteMarker": True},
}


def check(test: Any) -> Any:
    """Runs a property with this session's seed."""
    return seed(SEED)(
        settings(derandomize=False, print_blob=True, deadline=None, database=None, max_examples=200)(test)
    )


def wanted(action: Action = Action.TAG, *prefixes: str, versioned: bool = False, days: int | None = None) -> Wanted:
    """What is asked of a bucket, with ``mlruns/`` as its root."""
    return Wanted(action=action, tag=GC, prefixes=prefixes or ("mlruns/",), versioned=versioned, noncurrent_days=days)


def rule(**parts: Any) -> dict[str, Any]:
    """An enabled rule of somebody else that expires the tag under the root."""
    return {"ID": "theirs", "Status": "Enabled", "Filter": TAGGED, "Expiration": {"Days": 3}, **parts}


def anything() -> st.SearchStrategy[Wanted]:
    """Any wish."""
    return st.builds(
        Wanted,
        action=st.sampled_from([Action.TAG, Action.HIDE]),
        tag=st.just(GC),
        prefixes=st.lists(st.sampled_from([p for p in PREFIXES if not p or p.endswith("/")]), min_size=1).map(tuple),
        versioned=st.booleans(),
        noncurrent_days=st.sampled_from([None, 1, 7, 30]),
    )


def written(found: Finding) -> tuple[Rule, ...]:
    """All that is to be written."""
    return (*found.needed, *found.tidying)


@check
@given(anything(), configurations(), st.randoms(use_true_random=False))
def test_no_rule_of_others_is_ever_lost_or_changed(wish: Wanted, present: list[Rule], rng: random.Random) -> None:
    """Whatever is there: afterwards it is there as it was, ours are exactly as wanted, and nothing more is wanted."""
    before = copy.deepcopy(present)
    ours = written(find(wish, present))

    after = merged(present, ours)

    assert present == before
    assert [one for one in after if one["ID"] not in {mine["ID"] for mine in ours}] == before
    assert [one for one in after if one["ID"] in {mine["ID"] for mine in ours}] == list(ours)
    assert all(mine["ID"].startswith(OUR_IDS) for mine in ours)
    shuffled = rng.sample(after, len(after))
    again = find(wish, shuffled)
    assert (again.verdict, written(again)) == (Verdict.READY, ())
    assert not difference(after, shuffled)
    assert find(wish, merged(present, disabled(ours))).verdict is (
        Verdict.DISABLED if find(wish, present).needed else Verdict.READY
    )


@check
@given(anything(), configurations(), st.data())
def test_a_change_of_any_rule_is_seen(wish: Wanted, present: list[Rule], data: st.DataObject) -> None:
    """One that is lost, one without its filter, one that is switched, one day more: the comparison says so."""
    after = merged(present, written(find(wish, present)))
    if not after:
        return
    number = data.draw(st.integers(0, len(after) - 1))
    one = dict(after[number])
    change = data.draw(st.sampled_from(["lost", "filter", "status", "action", "new"]))
    if change == "filter":
        one = {name: value for name, value in one.items() if name not in ("Filter", "Prefix")}
        if meaning(one) == meaning(after[number]):
            return
    elif change == "status":
        one["Status"] = "Disabled" if one["Status"] == "Enabled" else "Enabled"
    elif change == "action":
        one["NoncurrentVersionExpiration"] = {"NoncurrentDays": 5000}
    elif change == "new":
        one["SomethingOfTheFuture"] = {"Days": 1}
    found = [*after[:number], *([] if change == "lost" else [one]), *after[number + 1 :]]

    seen = difference(after, found)

    assert [pair[0] for pair in seen.changed] == [after[number]]
    assert seen.changed[0][1] == (None if change == "lost" else one)
    assert seen.extra == ()


def test_the_rules_for_tag() -> None:
    """Days 1 for the tag under each root; old versions too where there are any; the rest in a rule of its own."""
    plain = written(find(wanted(), []))
    versioned = written(find(wanted(versioned=True), []))

    assert [{k: v for k, v in one.items() if k != "ID"} for one in plain] == [
        {"Status": "Enabled", "Filter": TAGGED, "Expiration": {"Days": 1}},
        {
            "Status": "Enabled",
            "Filter": {"Prefix": "mlruns/"},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
        },
    ]
    assert versioned[0] == {**plain[0], "NoncurrentVersionExpiration": {"NoncurrentDays": 1}}
    assert versioned[1] == {**plain[1], "Expiration": {"ExpiredObjectDeleteMarker": True}}


def test_the_rules_for_hide() -> None:
    """Old versions under each root after so many days."""
    seven, thirty = (find(wanted(Action.HIDE, versioned=True, days=days), []).needed for days in (None, 30))

    assert seven[0]["Filter"] == thirty[0]["Filter"] == {"Prefix": "mlruns/"}
    assert seven[0]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 7}
    assert thirty[0]["NoncurrentVersionExpiration"] == {"NoncurrentDays": 30}
    assert seven[0]["ID"] == thirty[0]["ID"]


def test_few_roots_have_a_rule_each_and_many_share_one() -> None:
    """Beyond twenty the tag alone tells; the rules without a tag stay with the roots."""
    few = find(wanted(Action.TAG, *(f"r{number:02}/" for number in range(MOST_ROOTS))), [])
    many = find(wanted(Action.TAG, *(f"r{number:02}/" for number in range(MOST_ROOTS + 1))), [])

    assert len(few.needed) == MOST_ROOTS
    assert [one["Filter"] for one in many.needed] == [{"Tag": {"Key": "gc", "Value": "expired"}}]
    assert {one["Filter"]["Prefix"] for one in many.tidying} == {f"r{number:02}/" for number in range(MOST_ROOTS + 1)}


def test_roots_within_roots_need_no_rule() -> None:
    """The outermost ones reach them; a neighbour with a longer name is not within."""
    assert outermost(["a/b/", "a/", "ab/", "b/", "a/"]) == ("a/", "ab/", "b/")
    assert outermost(["a/", ""]) == ("",)


def test_two_sites_in_a_bucket_have_rules_of_their_own() -> None:
    """Another root or another tag has other ids, so that neither takes the other's place."""
    wishes = [
        wanted(),
        wanted(Action.TAG, "other/"),
        Wanted(action=Action.TAG, tag=Tag("x", "y"), prefixes=("mlruns/",), versioned=False),
    ]

    assert len({find(wish, []).needed[0]["ID"] for wish in wishes}) == 3


@pytest.mark.parametrize(
    ("there", "ready"),
    [
        (rule(), True),
        (rule(Expiration={"Days": 30}), True),
        (rule(Filter={"Tag": {"Key": "gc", "Value": "expired"}}), True),
        (rule(Filter={"Prefix": "ml", "And": {"Tags": TAGGED["And"]["Tags"]}}), True),
        (rule(Expiration={"Days": 31}), False),
        (rule(Status="Disabled"), False),
        (rule(Expiration={"Date": datetime(2020, 1, 1, tzinfo=UTC)}), False),
        (rule(Filter={"Prefix": "mlruns/"}), False),
        (rule(Filter={"Prefix": ""}), False),
        (rule(Filter={"And": {"Prefix": "mlruns/1/", "Tags": TAGGED["And"]["Tags"]}}), False),
        (rule(Filter={"And": {"Tags": [*TAGGED["And"]["Tags"], {"Key": "b", "Value": "c"}]}}), False),
        (rule(Filter={"And": {**TAGGED["And"], "ObjectSizeGreaterThan": 10}}), False),
        (rule(Filter={"And": {**TAGGED["And"], "NewInS3": "x"}}), False),
        (rule(Prefix="other/"), False),
        (rule(Filter={"Tag": {"Key": "gc", "Value": "else"}}), False),
    ],
)
def test_a_rule_of_others_counts_only_where_it_certainly_does_the_same(there: Rule, *, ready: bool) -> None:
    """It is enabled, names exactly the tag, reaches the whole root and nothing narrows it, within 30 days."""
    found = find(wanted(), [there, TIDY])

    assert (found.verdict is Verdict.READY) is ready
    assert found.expiry_days == (there["Expiration"]["Days"] if ready else None)


def test_old_versions_must_go_too() -> None:
    """On a versioned bucket a rule that expires the tag is half of it; any rule for old versions is the other half."""
    old = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": ""}}

    assert find(wanted(versioned=True), [rule()]).verdict is Verdict.MISSING
    both = [rule(), {**old, "NoncurrentVersionExpiration": {"NoncurrentDays": 5}}]
    assert (find(wanted(versioned=True), both).verdict, find(wanted(versioned=True), both).expiry_days) == (
        Verdict.READY,
        8,
    )
    few = [rule(), {**old, "NoncurrentVersionExpiration": {"NoncurrentDays": 5, "NewerNoncurrentVersions": 2}}]
    assert find(wanted(versioned=True), few).verdict is Verdict.MISSING


def test_hide_takes_what_is_there_and_says_for_how_long() -> None:
    """The soonest rule that may reach something under the root is how long hiding can be undone."""
    theirs = {"ID": "old", "Status": "Enabled", "Prefix": "", "NoncurrentVersionExpiration": {"NoncurrentDays": 90}}
    sooner = {**theirs, "ID": "b", "Prefix": "mlruns/1/", "NoncurrentVersionExpiration": {"NoncurrentDays": 2}}

    assert find(wanted(Action.HIDE, versioned=True), [theirs]).undo_days == 90
    assert find(wanted(Action.HIDE, versioned=True), [theirs, sooner]).undo_days == 2
    assert find(wanted(Action.HIDE, versioned=True), [sooner]).verdict is Verdict.MISSING


def test_verdicts_on_our_own_rules() -> None:
    """Missing, disabled by somebody, changed by somebody; other days are asked for only where somebody names them."""
    wish = wanted(Action.HIDE, versioned=True, days=14)
    (ours,) = find(wish, []).needed

    assert find(wish, disabled([ours])).verdict is Verdict.DISABLED
    other = {**ours, "NoncurrentVersionExpiration": {"NoncurrentDays": 3}}
    assert find(wish, [other]).verdict is Verdict.DIFFERENT
    assert find(wanted(Action.HIDE, versioned=True), [other]).verdict is Verdict.READY


def test_a_rule_without_the_tag_is_warned_of() -> None:
    """One that expires everything under a root takes what is live."""
    theirs = rule(ID="purge all", Filter={"Prefix": "ml"})

    assert ["purge all" in one and "ml" in one for one in find(wanted(), [theirs]).warnings] == [True]
    assert (
        find(wanted(), [rule(), {**theirs, "Status": "Disabled"}, {**theirs, "Filter": {"Prefix": "logs/"}}]).warnings
        == ()
    )


def test_a_bucket_that_is_full_of_rules_is_refused() -> None:
    """At most a thousand; ours that are there already make room for themselves."""
    ours = written(find(wanted(), []))
    theirs = [rule(ID=f"r{number}") for number in range(998)]

    assert len(merged([*theirs, *ours], ours)) == 1000
    with pytest.raises(Refused, match="at most 1,000"):
        merged([*theirs, rule()], ours)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"Prefix": "a/"}, {"Filter": {"Prefix": "a/"}}),
        ({"Prefix": ""}, {"Filter": {}}),
        ({"Filter": {"Prefix": ""}}, {}),
        (
            {"Filter": {"And": {"Prefix": "a/", "Tags": [{"Key": "k", "Value": "v"}]}}},
            {"Filter": {"Prefix": "a/", "And": {"Tags": [{"Key": "k", "Value": "v"}]}}},
        ),
        (
            {"Filter": {"Tag": {"Key": "k", "Value": "v"}}},
            {"Filter": {"And": {"Prefix": "", "Tags": [{"Value": "v", "Key": "k"}]}}},
        ),
        (
            {"Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)}},
            {"Expiration": {"Date": datetime(2030, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))}},
        ),
        (
            {"Expiration": {"Days": 1, "ExpiredObjectDeleteMarker": False}},
            {"Expiration": {"Days": 1}, "Transitions": []},
        ),
    ],
)
def test_the_shape_of_a_rule_does_not_count(one: Rule, other: Rule) -> None:
    """Servers give the same rule back in several shapes."""
    assert meaning(one) == meaning(other)
    assert not difference([{**one, "ID": "x"}], [{**other, "ID": "x"}])
    assert not difference([one], [{**other, "ID": "given by the server"}])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"Filter": {"And": TAGGED["And"]}}, {"Filter": {"Prefix": "mlruns/"}}),
        ({"Filter": {"And": TAGGED["And"]}}, {}),
        ({"Filter": {"ObjectSizeGreaterThan": 0}}, {}),
        ({"Filter": {"ObjectSizeGreaterThan": 5}}, {"Filter": {"ObjectSizeGreaterThan": 6}}),
        ({"Prefix": "a/", "Filter": {"Prefix": "b/"}}, {"Prefix": "a/"}),
        (
            {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
            {"NoncurrentVersionExpiration": {"NoncurrentDays": 1, "NewerNoncurrentVersions": 1}},
        ),
        ({"Future": 0}, {}),
    ],
)
def test_what_a_rule_does_counts(one: Rule, other: Rule) -> None:
    """Nothing that narrows or adds is overlooked."""
    assert meaning(one) != meaning(other)
    assert difference([{**one, "ID": "x"}], [{**other, "ID": "x"}])


def test_rules_are_told_in_words() -> None:
    """With the place, and the whole bucket named as such."""
    tag, tidy = written(find(wanted(Action.TAG, "", versioned=True), []))
    (hide,) = find(wanted(Action.HIDE, versioned=True), []).needed

    assert describe(tag) == (
        "under the WHOLE bucket: objects tagged gc=expired go 1 day after their creation; old versions of objects "
        "tagged gc=expired go 1 day after they are replaced or hidden"
    )
    assert "delete markers that hide nothing go; unfinished uploads end 7 days" in describe(tidy)
    assert (
        describe(hide) == "under mlruns/: old versions, of live runs too, go 7 days after they are replaced or hidden"
    )
