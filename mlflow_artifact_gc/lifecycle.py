"""Lifecycle rules of a bucket: which ones ``tag`` and ``hide`` rely on, and how they meet those that are there. Pure.

A rule is a dict as boto3 gives and takes it. Rules of others are kept as they are, and compared by what they mean:
servers give the same filter back in several shapes.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from mlflow_artifact_gc.errors import Refused
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.model import Action

Rule = Mapping[str, Any]

OUR_IDS: Final = "mlflow-artifact-gc-"
MOST_RULES: Final = 1000
"""Of a bucket, as S3 has it."""
MOST_ROOTS: Final = 20
"""With more roots in a bucket, ``tag`` relies on one rule for the whole bucket.

A rule with the tag and a root's prefix cannot reach what other software keeps in the bucket, not even if that happens
to use the same tag. But rules are few (1,000 a bucket, shared by all), and experiments with places of their own can be
thousands; there the tag alone must tell (docs/adr/0009).
"""
NONCURRENT_DAYS: Final = 7
"""For how long ``hide`` can be undone under a rule that we offer."""
_TIDY_DAYS: Final = 7
_LONGEST_FOREIGN_DAYS: Final = 30
"""A rule of others that expires the tag later than that is no reason to tag."""


class Verdict(StrEnum):
    """How a bucket's rules stand to what an action needs."""

    READY = "ready"
    MISSING = "missing"
    DIFFERENT = "different"
    """A rule with the id of ours is there, and does something else."""
    DISABLED = "disabled"
    IMPOSSIBLE = "impossible"
    """No rule would do."""


class _Part(StrEnum):
    """What a rule of ours is for; part of its id."""

    TAG = "tag"
    HIDE = "hide"
    TIDY = "tidy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What an action needs of a bucket. ``versioned``: the bucket keeps versions, or nobody knows.

    ``prefixes`` are those of roots: empty, or ending in ``/``. ``noncurrent_days`` None: whatever is there is taken.
    """

    action: Action
    tag: Tag
    prefixes: tuple[str, ...]
    versioned: bool
    noncurrent_days: int | None = None

    def __post_init__(self) -> None:
        if self.action not in (Action.TAG, Action.HIDE) or not self.prefixes:
            raise ValueError(f"no rules for {self.action} in {len(self.prefixes)} roots")
        object.__setattr__(self, "prefixes", outermost(self.prefixes))


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What is there, against what is wanted.

    ``needed`` and ``tidying`` are the rules of ours that are to be written: the action relies on the first, and the
    second remove delete markers that hide nothing, and unfinished uploads. ``undo_days`` and ``expiry_days``: how soon
    S3 removes what was hidden or tagged, as far as the rules in force say so.
    """

    verdict: Verdict
    needed: tuple[Rule, ...]
    tidying: tuple[Rule, ...]
    undo_days: int | None
    expiry_days: int | None
    warnings: tuple[str, ...]


# What a rule means


@dataclass(frozen=True, slots=True)
class _Reach:
    """Which objects a rule is for; ``odd``: something in its filter is not understood, or narrows it further."""

    prefix: str
    tags: frozenset[tuple[str, str]]
    odd: bool

    def covers(self, prefix: str) -> bool:
        return not self.odd and prefix.startswith(self.prefix)

    def touches(self, prefix: str) -> bool:
        return prefix.startswith(self.prefix) or self.prefix.startswith(prefix)


def meaning(rule: Rule) -> str:
    """A text that is the same for two rules exactly if they do the same under the same id.

    The shape of the filter does not count (``Prefix`` beside, in or around ``Filter`` and ``And``), nor do the order of
    tags and of transitions, and what says that nothing is done. Anything unknown counts.
    """
    plain = {name: value for name, value in rule.items() if name not in ("Filter", "Prefix")}
    for name in ("Transitions", "NoncurrentVersionTransitions"):
        if name in plain:
            plain[name] = sorted(plain[name], key=_text)
    if isinstance(plain.get("Expiration"), Mapping) and not plain["Expiration"].get("ExpiredObjectDeleteMarker", True):
        plain["Expiration"] = {k: v for k, v in plain["Expiration"].items() if k != "ExpiredObjectDeleteMarker"}
    said = {name: value for name, value in plain.items() if value not in ({}, [], None)}
    return _text({**said, "Filter": _filter(rule)})


def _filter(rule: Rule) -> dict[str, Any]:
    """The filter in one shape: ``Prefix`` (all that are named, none where it is empty), ``Tags``, and anything else."""
    found = rule.get("Filter") or {}
    both = found.get("And") or {}
    prefixes = {part["Prefix"] for part in (rule, found, both) if part.get("Prefix")}
    tags = [*([found["Tag"]] if found.get("Tag") else []), *(both.get("Tags") or [])]
    others: dict[str, Any] = {}
    for part in (found, both):
        for name, value in part.items():
            if name not in ("Prefix", "Tag", "Tags", "And") and value is not None:
                others[name if others.get(name, value) == value else f"And.{name}"] = value
    return {"Prefix": sorted(prefixes), "Tags": sorted(tags, key=_text), **others}


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=_date)


def _date(value: object) -> str:
    if not isinstance(value, datetime):
        raise TypeError(value)
    aware = value if value.tzinfo else value.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat()


def _reach(rule: Rule) -> _Reach:
    plain = _filter(rule)
    prefixes, tags = plain.pop("Prefix"), plain.pop("Tags")
    known = all(set(tag) == {"Key", "Value"} for tag in tags)
    pairs = frozenset((tag.get("Key", ""), tag.get("Value", "")) for tag in tags)
    # Two prefixes: nobody knows which one a server takes.
    prefix = prefixes[0] if len(prefixes) == 1 else ""
    return _Reach(prefix, pairs, odd=bool(plain) or not known or len(prefixes) > 1)


def _enabled(rule: Rule) -> bool:
    return rule.get("Status") == "Enabled"


# Which rules are wanted


def outermost(prefixes: Iterable[str]) -> tuple[str, ...]:
    """Without those that lie in another, in order."""
    kept: list[str] = []
    for prefix in sorted(set(prefixes)):
        # Sorted, whatever lies in a prefix comes after it, and nothing else in between.
        if not kept or not prefix.startswith(kept[-1]):
            kept.append(prefix)
    return tuple(kept)


def _rule(part: _Part, prefix: str, tag: Tag | None, actions: Rule) -> Rule:
    if tag is None:
        filter_: dict[str, Any] = {"Prefix": prefix}
    elif prefix:
        filter_ = {"And": {"Prefix": prefix, "Tags": [{"Key": tag.key, "Value": tag.value}]}}
    else:
        filter_ = {"Tag": {"Key": tag.key, "Value": tag.value}}
    # Two sites that share a bucket have rules of their own; the same root and tag make the same rule.
    digest = hashlib.sha256(_text(filter_).encode()).hexdigest()[:12]
    return {"ID": f"{OUR_IDS}{part}-{digest}", "Status": "Enabled", "Filter": filter_, **actions}


def _tag_rules(wanted: Wanted) -> list[tuple[str, Rule]]:
    few = len(wanted.prefixes) <= MOST_ROOTS
    old = {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}} if wanted.versioned else {}
    return [
        (prefix, _rule(_Part.TAG, prefix, wanted.tag, {"Expiration": {"Days": 1}, **old}))
        for prefix in (wanted.prefixes if few else ("",))
    ]


def _hide_rules(wanted: Wanted) -> list[tuple[str, Rule]]:
    days = wanted.noncurrent_days or NONCURRENT_DAYS
    return [
        (prefix, _rule(_Part.HIDE, prefix, None, {"NoncurrentVersionExpiration": {"NoncurrentDays": days}}))
        for prefix in wanted.prefixes
    ]


def _tidy_rules(wanted: Wanted) -> list[tuple[str, Rule]]:
    """Rules of their own: S3 takes neither action together with a filter for tags."""
    actions: dict[str, Any] = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _TIDY_DAYS}}
    if wanted.versioned:
        actions["Expiration"] = {"ExpiredObjectDeleteMarker": True}
    return [(prefix, _rule(_Part.TIDY, prefix, None, actions)) for prefix in wanted.prefixes]


# What is there


def find(wanted: Wanted, present: Sequence[Rule]) -> Finding:
    """How the rules that are there stand to those that are wanted.

    A rule of others counts where it certainly does the same: it is enabled, its filter is nothing but the tag and a
    prefix around the root, and it acts within 30 days (``hide``: whenever). One that expires objects without the tag
    never counts, though it would: it takes what is live too, and is warned of.
    """
    if wanted.action is Action.TAG:
        offered = _tag_rules(wanted)
        needed = [(at, rule) for at, rule in offered if not _expires_tag(wanted, present, at)]
    else:
        offered = _hide_rules(wanted)
        needed = [(at, rule) for at, rule in offered if not _expires_noncurrent(wanted, present, at, rule)]
    tidying = [rule for at, rule in _tidy_rules(wanted) if not _tidies(wanted, present, at)]
    rules = tuple(rule for _, rule in needed)
    undo_days, expiry_days = _days(wanted, present) if not rules else (None, None)
    return Finding(
        verdict=_verdict(rules, present),
        needed=rules,
        tidying=tuple(tidying),
        undo_days=undo_days,
        expiry_days=expiry_days,
        warnings=tuple(_warnings(wanted, present)),
    )


def _verdict(needed: Collection[Rule], present: Sequence[Rule]) -> Verdict:
    if not needed:
        return Verdict.READY
    by_id = {rule.get("ID"): rule for rule in present}
    found = [(rule, by_id[rule["ID"]]) for rule in needed if rule["ID"] in by_id]
    if len(found) < len(needed):
        return Verdict.MISSING
    same = all(meaning({**there, "Status": "Enabled"}) == meaning(rule) for rule, there in found)
    return Verdict.DISABLED if same else Verdict.DIFFERENT


def _number(rule: Rule, action: str, field: str, *alone: str) -> int | None:
    """The days of an action, if nothing but ``alone`` stands beside them."""
    said = {name: value for name, value in (rule.get(action) or {}).items() if value is not None}
    days = said.pop(field, None)
    narrowed = any(value for name, value in said.items() if name not in alone)
    return days if isinstance(days, int) and days > 0 and not narrowed else None


def _expiration(rule: Rule) -> int | None:
    return _number(rule, "Expiration", "Days")


def _noncurrent(rule: Rule) -> int | None:
    return _number(rule, "NoncurrentVersionExpiration", "NoncurrentDays")


def _expires_tag(wanted: Wanted, present: Sequence[Rule], prefix: str) -> bool:
    pair = frozenset({(wanted.tag.key, wanted.tag.value)})
    current, old = False, not wanted.versioned
    for rule in present:
        reach = _reach(rule)
        if not _enabled(rule) or not reach.covers(prefix):
            continue
        if reach.tags == pair:
            current = current or (_expiration(rule) or _LONGEST_FOREIGN_DAYS + 1) <= _LONGEST_FOREIGN_DAYS
        if reach.tags in (pair, frozenset()):
            old = old or (_noncurrent(rule) or _LONGEST_FOREIGN_DAYS + 1) <= _LONGEST_FOREIGN_DAYS
    return current and old


def _expires_noncurrent(wanted: Wanted, present: Sequence[Rule], prefix: str, ours: Rule) -> bool:
    """Whether some rule does; where days were asked for and ours is there, it must say those."""
    mine = next((rule for rule in present if rule.get("ID") == ours["ID"]), None)
    if wanted.noncurrent_days is not None and mine is not None and meaning(mine) != meaning(ours):
        return False
    return any(
        _enabled(rule) and _reach(rule).covers(prefix) and not _reach(rule).tags and _noncurrent(rule)
        for rule in present
    )


def _tidies(wanted: Wanted, present: Sequence[Rule], prefix: str) -> bool:
    covering = [r for r in present if _enabled(r) and _reach(r).covers(prefix) and not _reach(r).tags]
    aborts = any(_number(rule, "AbortIncompleteMultipartUpload", "DaysAfterInitiation") for rule in covering)
    markers = any((rule.get("Expiration") or {}).get("ExpiredObjectDeleteMarker") for rule in covering)
    return aborts and (markers or not wanted.versioned)


def _days(wanted: Wanted, present: Sequence[Rule]) -> tuple[int | None, int | None]:
    """In how many days something hidden may be gone, and something tagged is: of all roots, the soonest and the latest.

    For undoing, whatever may remove an old version counts, also what is only for some of them.
    """
    enabled = [(rule, _reach(rule)) for rule in present if _enabled(rule)]
    if wanted.action is Action.HIDE:
        soonest = [
            int(days)
            for rule, reach in enabled
            if any(reach.touches(prefix) for prefix in wanted.prefixes)
            and (days := (rule.get("NoncurrentVersionExpiration") or {}).get("NoncurrentDays"))
        ]
        return min(soonest, default=None), None
    pair = frozenset({(wanted.tag.key, wanted.tag.value)})
    latest: list[int] = []
    for prefix, _ in _tag_rules(wanted):
        covering = [(rule, reach.tags) for rule, reach in enabled if reach.covers(prefix)]
        first = [days for rule, tags in covering if tags == pair and (days := _expiration(rule))]
        then = [days for rule, tags in covering if tags in (pair, frozenset()) and (days := _noncurrent(rule))]
        latest.append(min(first, default=0) + (min(then, default=0) if wanted.versioned else 0))
    return None, max(latest, default=None)


def _warnings(wanted: Wanted, present: Sequence[Rule]) -> Iterable[str]:
    """What a person should know of rules that are there already."""
    for rule in present:
        reach = _reach(rule)
        expiration = rule.get("Expiration") or {}
        if not _enabled(rule) or reach.tags or not (expiration.get("Days") or expiration.get("Date")):
            continue
        if any(reach.touches(prefix) for prefix in wanted.prefixes):
            yield (
                f"The rule {rule.get('ID') or 'without an id'!r} expires objects under {_place(reach.prefix)} whether "
                "anything needs them or not"
            )


# Writing


def merged(present: Sequence[Rule], ours: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules that are there, with ``ours`` in the place of those that have their ids.

    Raises:
        Refused: those are more than a bucket can have.
    """
    ids = {rule["ID"] for rule in ours}
    kept = [copy.deepcopy(rule) for rule in present if rule.get("ID") not in ids]
    if len(kept) + len(ours) > MOST_RULES:
        raise Refused(
            f"A bucket has at most {MOST_RULES:,} lifecycle rules, it has {len(kept):,} others, and {len(ours):,} are "
            "needed, so nothing was written: remove some, or keep experiments under fewer roots"
        )
    return (*kept, *(copy.deepcopy(rule) for rule in ours))


def disabled(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same, to be written for a look at what the server makes of them."""
    return tuple({**rule, "Status": "Disabled"} for rule in rules)


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Rules that did not come back as expected, with what came back under their ids, and rules that nobody expected."""

    changed: tuple[tuple[Rule, Rule | None], ...] = ()
    extra: tuple[Rule, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.extra)


def difference(expected: Sequence[Rule], found: Sequence[Rule]) -> Difference:
    """How ``found`` differs in meaning. The order does not count; a rule without an id may have got one."""
    left = list(found)
    missed: list[Rule] = []
    for rule in sorted(expected, key=lambda one: not one.get("ID")):
        match = next((other for other in left if _same(rule, other)), None)
        if match is None:
            missed.append(rule)
        else:
            left.remove(match)
    changed: list[tuple[Rule, Rule | None]] = []
    for rule in missed:
        other = next((one for one in left if rule.get("ID") and one.get("ID") == rule["ID"]), None)
        if other is not None:
            left.remove(other)
        changed.append((rule, other))
    return Difference(changed=tuple(changed), extra=tuple(left))


def _same(rule: Rule, other: Rule) -> bool:
    if rule.get("ID"):
        return meaning(rule) == meaning(other)
    return meaning({**rule, "ID": ""}) == meaning({**other, "ID": ""})


# For people


def describe(rule: Rule) -> str:
    """A rule of ours in words: what goes, and when."""
    reach = _reach(rule)
    tagged = "".join(f" tagged {key}={value}" for key, value in sorted(reach.tags))
    parts = []
    if days := _expiration(rule):
        parts.append(f"objects{tagged} go {_after(days)} their creation")
    if days := _noncurrent(rule):
        whose = f" of objects{tagged}" if tagged else ", of live runs too,"
        parts.append(f"old versions{whose} go {_after(days)} they are replaced or hidden")
    if (rule.get("Expiration") or {}).get("ExpiredObjectDeleteMarker"):
        parts.append("delete markers that hide nothing go")
    if days := _number(rule, "AbortIncompleteMultipartUpload", "DaysAfterInitiation"):
        parts.append(f"unfinished uploads end {_after(days)} their beginning")
    return f"under {_place(reach.prefix)}: {'; '.join(parts)}"


def _after(days: int) -> str:
    return f"{days} day{'' if days == 1 else 's'} after"


def _place(prefix: str) -> str:
    return prefix or "the WHOLE bucket"


def as_json(rules: Iterable[Rule]) -> list[Any]:
    """Rules as a document can hold them: dates are texts."""
    return [json.loads(_text(rule)) for rule in rules]
