"""Plan files: a header, then a line for each decision; canonical JSON lines with one digest over all of it. Pure.

In ASCII: what is not, JSON escapes, so that every key survives byte for byte and nothing in a file can look like
something else. The digest finds damage and edits; it is no signature. So ``apply`` believes nothing in here: a line
only selects what the databases themselves say is due.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import IO, Any, Final, TypeVar, cast

from mlflow_artifact_gc.errors import PlanRefused
from mlflow_artifact_gc.locations import Location, without_secrets
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Limits, Plan, Reason
from mlflow_artifact_gc.policy import Scope

FORMAT: Final = "mlflow-artifact-gc plan"
VERSION: Final = 1
"""Raised when an older version must not apply a file, because it would not understand what it is told there."""
_LONGEST: Final = 64 * 1024 * 1024
"""Bytes of a line at most: not that a file without line breaks fills the memory."""
_LONGEST_ID: Final = 36
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a plan was made with, beside its cutoff and its limits.

    ``given`` are the options that were named; ``grace_ms`` is the grace period that the cutoff comes from. The
    ``site_`` fields are the site's own settings at that time, whatever the plan took.
    """

    by: str
    given: tuple[str, ...] = ()
    grace_ms: int
    include_undated: bool = False
    delete_metadata: bool = False
    scope: Scope = field(default_factory=Scope)
    site_action: Action | None
    site_grace_ms: int
    site_min_object_age_ms: int
    site_full_tag_sets: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFile:
    """A plan with the terms that it was made on, and the digest of both as they are written."""

    plan: Plan
    terms: Terms
    digest: str

    @classmethod
    def of(cls, plan: Plan, terms: Terms) -> PlanFile:
        """What is to be written. URIs lose their passwords, which some that are not on S3 have."""
        plan = replace(plan, decisions=tuple(_shown(line) for line in plan.decisions))
        sha = hashlib.sha256(_canonical(_header(plan, terms)))
        for line in plan.decisions:
            sha.update(_canonical(_line(line)))
        return cls(plan=plan, terms=terms, digest=sha.hexdigest())

    def lines(self) -> Iterator[bytes]:
        """The file, line by line."""
        yield _canonical({**_header(self.plan, self.terms), "digest": self.digest})
        for line in self.plan.decisions:
            yield _canonical(_line(line))


def read(stream: IO[bytes], name: str) -> PlanFile:
    """The plan in ``stream``, which people call ``name``.

    Raises:
        PlanRefused: it is no plan, or not as it was written.
        OSError: it cannot be read.
    """
    first = stream.readline(_LONGEST)
    if not first:
        raise PlanRefused(f"{name} is empty: expected a file that 'mlflow-artifact-gc plan' has written")
    header = _loaded(first)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PlanRefused(f"{name} is no plan: expected a file that 'mlflow-artifact-gc plan' has written")
    version = header.get("version")
    if type(version) is not int or version > VERSION:
        raise PlanRefused(
            f"{name} is a plan of format {version}, and this version of mlflow-artifact-gc reads format {VERSION}: use "
            "the version that wrote it, or make a new plan"
        )
    digest = header.pop("digest", None)
    if _canonical({**header, "digest": digest}) != first:
        raise _altered(name, 1)
    sha = hashlib.sha256(_canonical(header))
    decisions: list[Decision] = []
    names: dict[str, str] = {}
    number = 1
    while raw := stream.readline(_LONGEST):
        number += 1
        sha.update(raw)
        try:
            decisions.append(_decision(_loaded(raw), names))
        except (KeyError, TypeError, ValueError) as error:
            raise _altered(name, number) from error
    try:
        expected = _own(header["totals"], dict)["locations"]
        if number - 1 < expected:
            raise PlanRefused(f"{name} is incomplete: it has {number - 1:,} of its {expected:,} lines; make a new plan")
        plan, terms = _plan(header, tuple(decisions)), _terms(header)
        # Not all of the header is read back, and all of it is covered.
        if sha.hexdigest() != digest or _header(plan, terms) != header:
            raise _altered(name)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _altered(name, 1) from error
    return PlanFile(plan=plan, terms=terms, digest=digest)


def _altered(name: str, line: int | None = None) -> PlanRefused:
    where = "" if line is None else f" (line {line:,})"
    return PlanRefused(f"{name} was altered after it was written{where}: nothing of it counts, make a new plan")


# Writing


def _header(plan: Plan, terms: Terms) -> dict[str, Any]:
    totals = plan.totals
    return {
        "format": FORMAT,
        "version": VERSION,
        "id": plan.id,
        "created_ms": plan.created_ms,
        "by": terms.by,
        "database_id": plan.database_id,
        "entity_rows": plan.entity_rows,
        "cutoff_ms": plan.cutoff_ms,
        "action": plan.action.value,
        "limits": asdict(plan.limits),
        "unsafe": list(plan.unsafe),
        "settings": {
            "given": list(terms.given),
            "grace_ms": terms.grace_ms,
            "include_undated": terms.include_undated,
            "delete_metadata": terms.delete_metadata,
            "scope": {
                "run_ids": list(terms.scope.run_ids),
                "experiment_ids": list(terms.scope.experiment_ids),
                "logged_model_ids": list(terms.scope.logged_model_ids),
                "workspace": terms.scope.workspace,
            },
        },
        "site": {
            "action": terms.site_action.value if terms.site_action else None,
            "grace_ms": terms.site_grace_ms,
            "min_object_age_ms": terms.site_min_object_age_ms,
            "full_tag_sets": terms.site_full_tag_sets,
        },
        "totals": {
            "locations": totals.locations,
            "due": totals.due,
            "due_objects": totals.due_objects,
            "due_bytes": totals.due_bytes,
            "by_reason": {reason.value: count for reason, count in totals.by_reason},
        },
    }


def _line(line: Decision) -> dict[str, Any]:
    return {
        "kind": line.entity.kind.value,
        "id": line.entity.id,
        "experiment_id": line.entity.experiment_id,
        "workspace": line.entity.workspace,
        "uri": line.uri,
        "location": line.location.uri if line.location else None,
        "root": line.root.uri if line.root else None,
        "deleted_ms": line.deleted_ms,
        "verdict": line.verdict.value,
        "reason": line.reason.value,
        "evidence": line.evidence,
        "expected_objects": line.expected_objects,
        "expected_bytes": line.expected_bytes,
    }


def _shown(line: Decision) -> Decision:
    uri = without_secrets(line.uri)
    return line if uri == line.uri else replace(line, uri=uri)


_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: object) -> bytes:
    return _ENCODER.encode(value).encode("ascii") + b"\n"


# Reading


def _loaded(raw: bytes) -> object:
    try:
        found: object = json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    return found


def _own(value: object, *kinds: type[_T]) -> _T:
    """``value``, which must be of one of these very types: True is no 1 here."""
    if type(value) not in kinds:
        raise TypeError(f"{type(value)}")
    return cast("_T", value)


def _number(value: object) -> int | None:
    return None if value is None else _own(value, int)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_own(one, str) for one in _own(value, list))


def _decision(loaded: object, names: dict[str, str]) -> Decision:
    """``names``: of what many lines share, one text is kept."""
    document: dict[str, Any] = _own(loaded, dict)

    def shared(text: object) -> str:
        found = _own(text, str)
        return names.setdefault(found, found)

    line = Decision(
        entity=Entity(
            kind=EntityKind(document["kind"]),
            id=_own(document["id"], str),
            experiment_id=shared(document["experiment_id"]),
            workspace=shared(document["workspace"]),
        ),
        uri=_own(document["uri"], str),
        location=_location(document["location"]),
        root=_location(document["root"] and shared(document["root"])),
        deleted_ms=_number(document["deleted_ms"]),
        reason=Reason(document["reason"]),
        evidence=shared(document["evidence"]),
        expected_objects=_number(document["expected_objects"]),
        expected_bytes=_number(document["expected_bytes"]),
    )
    if _line(line) != document:
        raise ValueError(document)
    return line


def _location(uri: object) -> Location | None:
    """As it was written: a key may hold whatever a URI's query and fragment begin with."""
    if uri is None:
        return None
    bucket, slash, prefix = _own(uri, str).removeprefix("s3://").partition("/")
    if not bucket or not slash:
        raise ValueError(uri)
    return Location(bucket, prefix)


def _plan(header: Mapping[str, Any], decisions: tuple[Decision, ...]) -> Plan:
    limits = header["limits"]
    if not 0 < len(_own(header["id"], str)) <= _LONGEST_ID:
        raise ValueError(header["id"])
    return Plan(
        id=header["id"],
        created_ms=_own(header["created_ms"], int),
        cutoff_ms=_own(header["cutoff_ms"], int),
        action=Action(header["action"]),
        database_id=_own(header["database_id"], str),
        entity_rows=_own(header["entity_rows"], int),
        limits=Limits(
            max_share=float(_own(limits["max_share"], int, float)),
            share_from_locations=_own(limits["share_from_locations"], int),
            max_locations=_number(limits["max_locations"]),
            max_objects=_number(limits["max_objects"]),
            max_bytes=_number(limits["max_bytes"]),
            min_object_age_ms=_own(limits["min_object_age_ms"], int),
        ),
        unsafe=_texts(header["unsafe"]),
        decisions=decisions,
    )


def _terms(header: Mapping[str, Any]) -> Terms:
    settings, site = header["settings"], header["site"]
    scope, workspace = settings["scope"], settings["scope"]["workspace"]
    return Terms(
        by=_own(header["by"], str),
        given=_texts(settings["given"]),
        grace_ms=_own(settings["grace_ms"], int),
        include_undated=_own(settings["include_undated"], bool),
        delete_metadata=_own(settings["delete_metadata"], bool),
        scope=Scope(
            run_ids=_texts(scope["run_ids"]),
            experiment_ids=_texts(scope["experiment_ids"]),
            logged_model_ids=_texts(scope["logged_model_ids"]),
            workspace=None if workspace is None else _own(workspace, str),
        ),
        site_action=None if site["action"] is None else Action(site["action"]),
        site_grace_ms=_own(site["grace_ms"], int),
        site_min_object_age_ms=_own(site["min_object_age_ms"], int),
        site_full_tag_sets=_own(site["full_tag_sets"], str),
    )
