"""Plan files: what is written is read back, and whatever was changed since is refused."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from mlflow_artifact_gc import plan_files
from mlflow_artifact_gc.errors import PlanRefused
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Decision, Entity, EntityKind, Limits, Plan, Reason
from mlflow_artifact_gc.plan_files import PlanFile, Terms
from mlflow_artifact_gc.policy import Scope

ODD = "a b+%20//é日\n\r\t\x7f\u202e\ud800?#&"


def line(prefix: str = "m", reason: Reason = Reason.DUE, **fields: Any) -> Decision:
    """A line of a run."""
    given = {
        "entity": Entity(kind=EntityKind.RUN, id=prefix, experiment_id="1", workspace="team"),
        "uri": f"s3://b/{prefix}/artifacts",
        "location": Location("b", f"{prefix}/artifacts/"),
        "root": Location("b", ""),
        "deleted_ms": 5,
        "reason": reason,
        **fields,
    }
    return Decision(**given)


PLAN = Plan(
    id="5f",
    created_ms=30,
    cutoff_ms=20,
    action=Action.PURGE,
    database_id="db",
    entity_rows=7,
    limits=Limits(max_bytes=10**12),
    unsafe=("--unsafe-ignore-registry",),
    decisions=(
        line("r1", expected_objects=3, expected_bytes=2**60),
        line(ODD),
        line("r3", Reason.PROTECTED, evidence="registered model churn", deleted_ms=None),
        line("r4", Reason.NOT_ON_S3, location=None, root=None, uri="/mnt/x"),
    ),
)
TERMS = Terms(
    by="ana on db1",
    given=("--older-than",),
    grace_ms=10,
    scope=Scope(run_ids=("r1",), workspace="team"),
    site_action=None,
    site_grace_ms=10,
    site_min_object_age_ms=0,
    site_full_tag_sets="leave",
)


def written(plan: Plan = PLAN, terms: Terms = TERMS) -> bytes:
    """The bytes of a file."""
    return b"".join(PlanFile.of(plan, terms).lines())


def read(raw: bytes) -> PlanFile:
    """What they say."""
    return plan_files.read(io.BytesIO(raw), "'p'")


def refusal(raw: bytes) -> str:
    """Why they are refused."""
    with pytest.raises(PlanRefused) as refused:
        read(raw)
    assert refused.value.exit_code == 6
    return str(refused.value)


def test_what_is_written_is_read_back() -> None:
    """Plan, terms and digest, with every character that a key can hold; twice the same bytes, in ASCII."""
    found = read(written())

    assert (found.plan, found.terms) == (PLAN, TERMS)
    assert found.digest == PlanFile.of(PLAN, TERMS).digest
    assert written() == written(found.plan, found.terms)
    assert written().isascii()
    assert len(written().splitlines()) == 5


def test_the_digest_is_that_of_all_bytes_but_its_own() -> None:
    """So that another program can check it too."""
    head, *lines = written().splitlines(keepends=True)
    header = json.loads(head)
    digest = header.pop("digest")
    bare = json.dumps(header, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    assert hashlib.sha256(b"".join([bare, *lines])).hexdigest() == digest


def test_every_changed_byte_is_found() -> None:
    """Any bit of any byte; any byte taken away or put in; and cut off at any length."""
    raw = written(replace(PLAN, decisions=PLAN.decisions[1:2]))
    for at in range(len(raw)):
        refusal(raw[:at] + bytes([raw[at] ^ (1 << at % 8)]) + raw[at + 1 :])
        refusal(raw[:at])
    for at in range(0, len(raw), 7):
        refusal(raw[:at] + raw[at + 1 :])
        refusal(raw[:at] + b" " + raw[at:])
    refusal(raw + b"\n")


def test_every_changed_line_is_found() -> None:
    """Taken away, doubled, put elsewhere, or those of another plan."""
    lines = written().splitlines(keepends=True)
    others = written(replace(PLAN, id="6a", decisions=PLAN.decisions[::-1])).splitlines(keepends=True)
    for at in range(5):
        refusal(b"".join(lines[:at] + lines[at + 1 :]))
        refusal(b"".join(lines[:at] + lines[at : at + 1] * 2 + lines[at + 1 :]))
        refusal(b"".join(lines[:at] + others[at : at + 1] + lines[at + 1 :]))
    refusal(b"".join([lines[0], *reversed(lines[1:])]))
    assert "incomplete: it has 2 of its 4 lines" in refusal(b"".join(lines[:3]))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is empty"),
        (b"\n", "is no plan"),
        (b"\x00\xff" * 5_000, "is no plan"),
        (b"[" * 100_000, "is no plan"),
        (b"[1]\n", "is no plan"),
        (b'{"schema": 1, "command": "gc"}\n', "is no plan"),
        (b'{"format":"mlflow-artifact-gc plan"}\n', "format None"),
        (
            b'{"format":"mlflow-artifact-gc plan","version":2}\n',
            "format 2, and this version of mlflow-artifact-gc reads",
        ),
        (b'{"format":"mlflow-artifact-gc plan","version":1}\n', "was altered"),
    ],
)
def test_what_is_no_plan_is_called_so(raw: bytes, says: str) -> None:
    """In a sentence that says what was found and what was expected."""
    assert says in refusal(raw)


def _forged(at: int, name: str = "", *value: object) -> bytes:
    """A file with another value, or none, in its header or a line; by somebody who knows how the digest is made."""
    documents: list[dict[str, Any]] = [json.loads(one) for one in written().splitlines()]
    documents[0].pop("digest")
    documents[at].pop(name, None)
    documents[at].update(dict.fromkeys([name], value[0]) if value else {})
    raw = [json.dumps(one, sort_keys=True, separators=(",", ":")).encode() + b"\n" for one in documents]
    documents[0]["digest"] = hashlib.sha256(b"".join(raw)).hexdigest()
    return b"".join([json.dumps(documents[0], sort_keys=True, separators=(",", ":")).encode() + b"\n", *raw[1:]])


def test_what_cannot_be_understood_is_refused_whatever_the_digest_says() -> None:
    """Each value of the header and of a line, of another kind; what is missing, and what is added."""
    assert read(_forged(0)).plan == PLAN
    for at in (0, 1):
        for name in json.loads(written().splitlines()[at]).keys() - {"digest"}:
            refusal(_forged(at, name, [True]))
            refusal(_forged(at, name))
        refusal(_forged(at, "more", 1))
    for part in ("limits", "settings", "site"):
        refusal(_forged(0, part, {**json.loads(written().splitlines()[0])[part], "more": 1}))
    refusal(_forged(1, "location", "s3://b/no-slash"))
    refusal(_forged(0, "created_ms", True))  # noqa: FBT003 - as JSON has it
    refusal(_forged(0, "entity_rows", 7.0))


def test_a_file_holds_no_password() -> None:
    """An artifact URI that is not on S3 may have one; one on S3 stays, byte for byte."""
    secret = replace(line("x", Reason.NOT_ON_S3, location=None, root=None), uri="sftp://me:hush@host/x?token=hush")
    raw = written(replace(PLAN, decisions=(secret, line("y", uri="s3://b/y@z?q/artifacts"))))

    assert b"hush" not in raw
    assert [one.uri for one in read(raw).plan.decisions] == ["sftp://host/x", "s3://b/y@z?q/artifacts"]
