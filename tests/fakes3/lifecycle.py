"""A bucket's lifecycle rules: what S3 takes, and what they do when they run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from tests.fakes3.keeping import Bucket, Kept, Refused, Version

MOST_RULES = 1000
DAY_MS = 24 * 3_600_000


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule. Days of 0: no such action."""

    id: str
    enabled: bool
    prefix: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    days: int = 0
    removes_lone_markers: bool = False
    noncurrent_days: int = 0
    newer_kept: int = 0
    abort_days: int = 0
    other_action: bool = False

    def concerns(self, version: Version) -> bool:
        return version.key.startswith(self.prefix) and self.tags.items() <= version.tags.items()


def parsed(body: bytes) -> list[Rule]:
    """The rules of a configuration.

    Raises:
        Refused: it is one that S3 does not take.
    """
    try:
        tree = ET.fromstring(body)  # noqa: S314 - a test's own client sent it
    except ET.ParseError as error:
        raise _malformed("no well-formed XML") from error
    rules = [_rule(element, number) for number, element in enumerate(_children(tree, "Rule"))]
    if not 1 <= len(rules) <= MOST_RULES:
        raise _malformed(f"{len(rules)} rules")
    if len({rule.id for rule in rules}) < len(rules):
        raise Refused(400, "InvalidArgument", "Rule ID must be unique")
    return rules


def _rule(element: ET.Element, number: int) -> Rule:
    where = _child(element, "Filter")
    both = _child(where, "And")
    inside = where if both is None else both
    tags = {_text(tag, "Key"): _text(tag, "Value") for tag in _children(inside, "Tag")}
    expiration = _child(element, "Expiration")
    noncurrent = _child(element, "NoncurrentVersionExpiration")
    abort = _child(element, "AbortIncompleteMultipartUpload")
    rule = Rule(
        id=_text(element, "ID") or f"rule-{number}",
        enabled=_text(element, "Status") == "Enabled",
        prefix=_text(inside, "Prefix") or _text(element, "Prefix"),
        tags=tags,
        days=_days(expiration, "Days"),
        removes_lone_markers=_text(expiration, "ExpiredObjectDeleteMarker") == "true",
        noncurrent_days=_days(noncurrent, "NoncurrentDays"),
        newer_kept=_days(noncurrent, "NewerNoncurrentVersions"),
        abort_days=_days(abort, "DaysAfterInitiation"),
        other_action=any(_child(element, name) is not None for name in ("Transition", "NoncurrentVersionTransition")),
    )
    if not (rule.days or rule.removes_lone_markers or rule.noncurrent_days or rule.abort_days or rule.other_action):
        raise Refused(400, "InvalidRequest", "At least one action needs to be specified in a rule")
    if tags and (rule.removes_lone_markers or rule.abort_days):
        raise Refused(400, "InvalidRequest", "This action cannot be specified with tags")
    if _text(element, "Status") not in ("Enabled", "Disabled"):
        raise _malformed("a rule without a status")
    return rule


def run(kept: Kept, bucket: Bucket) -> None:
    """What S3 does with the rules at the moment that its clock says."""
    now_ms = kept.clock_ms()
    for rule in parsed(bucket.lifecycle_xml) if bucket.lifecycle_xml else []:
        if not rule.enabled:
            continue
        for version in list(_expired(rule, bucket, now_ms)):
            kept.delete(bucket, version.key, version.id if _is_for_good(bucket, version) else None)
        for upload in list(bucket.uploads.values()):
            due = rule.abort_days and upload.initiated_ms + rule.abort_days * DAY_MS <= now_ms
            if due and upload.key.startswith(rule.prefix):
                del bucket.uploads[upload.id]


def _is_for_good(bucket: Bucket, version: Version) -> bool:
    return version.is_marker or version.noncurrent_ms is not None or not bucket.versioning


def _expired(rule: Rule, bucket: Bucket, now_ms: int) -> Iterator[Version]:
    for versions in list(bucket.keys.values()):
        latest, *older = versions
        lone = latest.is_marker and not older and latest.key.startswith(rule.prefix)
        if lone and (rule.removes_lone_markers or (rule.days and not rule.tags)):
            yield latest
        elif not latest.is_marker and rule.days and rule.concerns(latest):
            # Days count from the making, and are rounded up to the next midnight.
            due_ms = _midnight_after(latest.modified_ms + rule.days * DAY_MS)
            yield from [latest] if due_ms <= now_ms else []
        if rule.noncurrent_days:
            for one in older[rule.newer_kept :]:
                since_ms = one.noncurrent_ms or one.modified_ms
                if rule.concerns(one) and _midnight_after(since_ms + rule.noncurrent_days * DAY_MS) <= now_ms:
                    yield one


def _midnight_after(moment_ms: int) -> int:
    return -(-moment_ms // DAY_MS) * DAY_MS


def _days(element: ET.Element | None, name: str) -> int:
    text = _text(element, name)
    if not text:
        return 0
    if not text.isdigit() or int(text) < 1:
        raise Refused(400, "InvalidArgument", f"'{name}' must be a positive integer")
    return int(text)


def _malformed(what: str) -> Refused:
    return Refused(400, "MalformedXML", f"The XML you provided was not well-formed: {what}")


def _children(element: ET.Element | None, name: str) -> list[ET.Element]:
    return [] if element is None else [child for child in element if child.tag.rpartition("}")[2] == name]


def _child(element: ET.Element | None, name: str) -> ET.Element | None:
    return next(iter(_children(element, name)), None)


def _text(element: ET.Element | None, name: str) -> str:
    found = _child(element, name)
    return (found.text or "") if found is not None else ""
