"""Lifecycle rules on real servers: written beside those of others, in force only once they were read back as meant."""

from __future__ import annotations

import http.client
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import pytest
from hypothesis import HealthCheck, given, seed, settings

from mlflow_artifact_gc import bucket_rules
from mlflow_artifact_gc.bucket_rules import Examined, RulesNotKept, Tags
from mlflow_artifact_gc.errors import Refused, StorageError
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.lifecycle import Verdict, difference
from mlflow_artifact_gc.model import Action
from mlflow_artifact_gc.s3 import MARKER_NAME, PERMISSIONS, BucketPaused, Versioning
from tests.configurations import configurations
from tests.integration.s3_servers import NO_ANSWER, Fake, Request, client_at, client_of, error_body, fake_s3
from tests.lifecycle_runs import age, run_lifecycle
from tests.servers import make_bucket, moto, moto_user, s3_client

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from mlflow_artifact_gc.demo.servers import S3Server

SEED = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
GC = Tag("gc", "expired")
OTHERS: list[dict[str, Any]] = [
    {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30}},
    {"ID": "old", "Status": "Disabled", "Prefix": "", "NoncurrentVersionExpiration": {"NoncurrentDays": 90}},
]
KEPT = {"moto_s3": {"sizes": False, "newer": False, "empty": False}, "seaweed": {"moving": False}}
"""What each server takes and gives back."""


def examine(client: S3Client, bucket: str, **how: Any) -> Examined:
    """What the bucket has, for tagging under ``mlruns/``."""
    wish: dict[str, Any] = {"action": Action.TAG, "tag": GC, "prefixes": ["mlruns/"], **how}
    return bucket_rules.examine(client, bucket, **wish)


def put(server: S3Server, bucket: str, rules: list[Any]) -> None:
    """Somebody else's configuration."""
    if rules:
        s3_client(server).put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    else:
        s3_client(server).delete_bucket_lifecycle(Bucket=bucket)


def got(server: S3Server, bucket: str) -> list[Any]:
    """The rules that are there, as anybody else reads them."""
    with suppress(s3_client(server).exceptions.ClientError):
        return list(s3_client(server).get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"])
    return []


# Servers as they should be


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_rules_are_written_beside_any_of_others(
    fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over random configurations: none of others is lost or changed, ours are there, and again writes nothing."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    puts: list[str] = []
    client.meta.events.register("before-call.s3.PutBucketLifecycleConfiguration", lambda **_context: puts.append("put"))

    @seed(SEED)
    @settings(deadline=None, database=None, max_examples=12, suppress_health_check=list(HealthCheck))
    @given(configurations(**KEPT[fixture]))
    def check(others: list[dict[str, Any]]) -> None:
        put(server, bucket, others)
        shown = examine(client, bucket)

        after = bucket_rules.apply(client, shown)

        assert (after.verdict, after.rules) == (Verdict.READY, ())
        assert not difference([*others, *shown.rules], got(server, bucket))
        puts.clear()
        assert bucket_rules.apply(client, after) is after
        assert puts == []

    check()


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
@pytest.mark.parametrize("action", [Action.TAG, Action.HIDE])
def test_a_bucket_without_rules_gets_ours(
    action: Action, fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First missing, then ready, with how many days it takes; a root that is the whole bucket is said."""
    server: S3Server = request.getfixturevalue(fixture)
    client, bucket = client_of(server, monkeypatch), make_bucket(server)
    s3_client(server).put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    shown = examine(client, bucket, action=action, prefixes=["", "mlruns/"])
    assert (shown.verdict, shown.ready, shown.versioning) == (Verdict.MISSING, False, Versioning.ENABLED)
    assert "is missing for the WHOLE bucket" in shown.sentence
    assert any("WHOLE" in warning for warning in shown.warnings)

    after = bucket_rules.apply(client, shown)

    assert after.ready
    assert (after.expiry_days, after.undo_days) == ((2, None) if action is Action.TAG else (None, 7))
    assert {rule["Status"] for rule in got(server, bucket)} == {"Enabled"}
    assert len(got(server, bucket)) == 2


def test_rules_without_ids_and_of_the_old_shape_stay(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server gives back without an id is written back without one."""
    client, bucket = client_of(seaweed, monkeypatch), make_bucket(seaweed)
    others = [{k: v for k, v in rule.items() if k != "ID"} for rule in OTHERS]
    put(seaweed, bucket, others)

    assert bucket_rules.apply(client, examine(client, bucket)).ready
    assert not difference(others, [rule for rule in got(seaweed, bucket) if "mlflow" not in rule.get("ID", "")])


def test_ours_is_put_right(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of ours that was switched off or changed is told as that, and written anew."""
    client, bucket = client_of(seaweed, monkeypatch), make_bucket(seaweed)
    bucket_rules.apply(client, examine(client, bucket))
    right = got(seaweed, bucket)
    for change, verdict in (
        ({"Status": "Disabled"}, Verdict.DISABLED),
        ({"Expiration": {"Days": 99}}, Verdict.DIFFERENT),
    ):
        put(seaweed, bucket, [*OTHERS, *({**rule, **change} if "-tag-" in rule["ID"] else rule for rule in right)])
        shown = examine(client, bucket)
        assert shown.verdict is verdict

        assert bucket_rules.apply(client, shown).ready
        assert not difference([*OTHERS, *right], got(seaweed, bucket))


def test_the_minimum_size_stays(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration is written back with the size below which S3 moves nothing to another class."""
    client, bucket = client_of(moto_s3, monkeypatch), make_bucket(moto_s3)
    name = "TransitionDefaultMinimumObjectSize"
    put(moto_s3, bucket, OTHERS)
    sent: list[Any] = []
    # moto forgets it.
    client.meta.events.register(
        "after-call.s3.GetBucketLifecycleConfiguration",
        lambda parsed, **_context: parsed.update({name: "varies_by_storage_class"}),
    )
    client.meta.events.register(
        "before-call.s3.PutBucketLifecycleConfiguration", lambda params, **_context: sent.append(params["headers"])
    )
    shown = examine(client, bucket)
    assert shown.before.minimum_size == "varies_by_storage_class"

    bucket_rules.apply(client, shown)

    assert len(sent) == 2
    assert {"varies_by_storage_class"} == {headers["x-amz-transition-default-minimum-object-size"] for headers in sent}


@pytest.mark.parametrize("status", [None, "Suspended"])
def test_hide_needs_versioning(status: Any, seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no version is kept no rule would do, and none is written."""
    client, bucket = client_of(seaweed, monkeypatch), make_bucket(seaweed)
    if status:
        for one in ("Enabled", status):
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": one})
    shown = examine(client, bucket, action=Action.HIDE)

    assert (shown.verdict, shown.rules) == (Verdict.IMPOSSIBLE, ())
    with pytest.raises(Refused, match="versioning"):
        bucket_rules.apply(client, shown)
    assert got(seaweed, bucket) == []


def test_whether_tags_are_offered_is_asked_of_the_marker(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written for it: without a marker object it is not known."""
    client, bucket = client_of(seaweed, monkeypatch), make_bucket(seaweed)
    assert examine(client, bucket).tags is Tags.UNKNOWN
    client.put_object(Bucket=bucket, Key=f"mlruns/{MARKER_NAME}", Body=b"{}")

    assert examine(client, bucket).tags is Tags.OFFERED


# Rights


@pytest.fixture(scope="module")
def moto_iam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A moto that checks rights, seen by its administrator."""
    with moto(tmp_path_factory.mktemp("moto-rules"), iam=True) as server:
        yield server


@pytest.mark.parametrize("missing", ["s3:GetLifecycleConfiguration", "s3:PutLifecycleConfiguration"])
def test_a_missing_right_is_named(missing: str, moto_iam: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is there stays; a missing right to read is never read as a bucket without rules."""
    bucket = make_bucket(moto_iam)
    put(moto_iam, bucket, OTHERS)
    actions = [permission.action for permission in PERMISSIONS if permission.action != missing]
    user = moto_user(moto_iam, f"no-{missing[3:]}", [{"Effect": "Allow", "Action": actions, "Resource": "*"}])
    client = client_of(user, monkeypatch)

    with pytest.raises(BucketPaused, match=f"grant {missing} "):
        bucket_rules.apply(client, examine(client, bucket))
    assert not difference(OTHERS, got(moto_iam, bucket))


# Servers that change what is written


@dataclass
class Between:
    """Stands between our client and a real server: ``change`` gets each configuration that is written."""

    server: S3Server
    fake: Fake
    change: Callable[[bytes], bytes | None] = lambda body: body
    answer: Callable[[Request], tuple[int, bytes] | None] = lambda _: None
    after_put: Callable[[], None] = lambda: None
    written: list[bytes] = field(default_factory=list)
    """Every configuration as the server got it."""

    def __call__(self, request: Request) -> tuple[int, bytes]:
        """Hands a request on, unless ``answer`` has an answer to it, or ``change`` takes its body away."""
        body: bytes | None = request.body
        is_put = request.method == "PUT" and "lifecycle" in request.query
        own = self.answer(request)
        if own is not None:
            return own
        if is_put:
            body = self.change(request.body)
            if body is None:
                return 200, b""
            self.written.append(body)
        connection = http.client.HTTPConnection(urlsplit(self.server.endpoint).netloc)
        kept = {name: value for name, value in request.headers.items() if name.lower() in ("authorization", "host")}
        connection.request(request.method, f"{request.path}?{urlencode(request.query)}", body, kept)
        answer = connection.getresponse()
        told = answer.status, answer.read()
        connection.close()
        if is_put:
            self.after_put()
        return told


@pytest.fixture
def between(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """In front of moto, which believes what it gets."""
    monkeypatch.setattr(bucket_rules, "_SETTLING_S", (0, 0, 0.01))
    with fake_s3() as fake:
        one = Between(moto_s3, fake)
        fake.answer = one
        yield one


def rule_of(body: bytes, id_: str) -> str:
    """The XML of the rule whose id holds ``id_``."""
    found: list[str] = re.findall(r"<Rule>.*?</Rule>", body.decode(), re.DOTALL)
    return next(one for one in found if id_ in one)


def unfiltered(where: str) -> Callable[[bytes], bytes]:
    """Makes each rule that holds ``where`` one for the whole bucket."""

    def change(body: bytes) -> bytes:
        def drop(found: re.Match[str]) -> str:
            return re.sub("<Filter>.*?</Filter>", "<Prefix/>", found[0]) if where in found[0] else found[0]

        return re.sub(r"<Rule>.*?</Rule>", drop, body.decode(), flags=re.DOTALL).encode()

    return change


def prepared(between: Between, monkeypatch: pytest.MonkeyPatch) -> tuple[S3Client, str, Examined]:
    """Our client through it, a bucket with rules of others, and what was shown."""
    bucket = make_bucket(between.server)
    put(between.server, bucket, OTHERS)
    client = client_at(between.fake.endpoint, monkeypatch)
    return client, bucket, examine(client, bucket)


def test_a_server_that_drops_the_filter_is_refused(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule was never in force, not for a moment, and the rules of before are there."""
    client, bucket, shown = prepared(between, monkeypatch)
    between.change = unfiltered("-tag-")

    with pytest.raises(RulesNotKept, match=r"does not keep .* came back as .* of before are in place again") as raised:
        bucket_rules.apply(client, shown)

    assert len(between.written) == 2
    assert "Disabled" in rule_of(between.written[0], "-tag-")
    assert b"mlflow-artifact-gc" not in between.written[1]
    assert not difference(OTHERS, got(between.server, bucket))
    assert raised.value.before == shown.before


def test_a_filter_that_is_dropped_later_is_taken_back(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where only the enabled rule loses it: the next request takes the rule away."""
    client, bucket, shown = prepared(between, monkeypatch)
    drop = unfiltered("-tag-")
    between.change = lambda body: drop(body) if "Enabled" in rule_of(body + b"<Rule>-tag-</Rule>", "-tag-") else body

    with pytest.raises(RulesNotKept, match="in place again"):
        bucket_rules.apply(client, shown)

    assert ["-tag-" in body.decode() for body in between.written] == [True, True, False]
    assert not difference(OTHERS, got(between.server, bucket))


def test_a_server_that_enables_by_itself_is_refused(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not keep disabled is taken away."""
    client, bucket, shown = prepared(between, monkeypatch)
    between.change = lambda body: body.replace(b"Disabled", b"Enabled")

    with pytest.raises(RulesNotKept):
        bucket_rules.apply(client, shown)
    assert "mlflow" not in str(got(between.server, bucket))


def test_a_server_that_spoils_rules_of_others_is_named(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is put back at once; where that does not help either, the message says so and holds what was there."""
    client, bucket, shown = prepared(between, monkeypatch)
    spoil = unfiltered(">logs<")
    between.change = lambda body: spoil(body) if b"mlflow" in body else body
    with pytest.raises(RulesNotKept, match=r"the rule 'logs' was written as .* in place again"):
        bucket_rules.apply(client, shown)
    assert not difference(OTHERS, got(between.server, bucket))

    between.change = spoil
    with pytest.raises(RulesNotKept, match=r"did NOT come back as they were .* by hand, at once") as raised:
        bucket_rules.apply(client, shown)
    assert not difference(OTHERS, raised.value.before.rules)
    assert "mlflow" not in str(got(between.server, bucket))


def test_the_rules_were_changed_since_they_were_shown(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has seen what would be written now."""
    client, bucket, shown = prepared(between, monkeypatch)
    put(between.server, bucket, OTHERS[:1])

    with pytest.raises(Refused, match="changed since they were shown"):
        bucket_rules.apply(client, shown)

    assert between.written == []
    assert not difference(OTHERS[:1], got(between.server, bucket))


def test_a_rule_that_is_added_at_the_same_moment_stays(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not written over, and ours is not enabled beside what nobody has looked at."""
    client, bucket, shown = prepared(between, monkeypatch)
    new = {**OTHERS[0], "ID": "new"}
    between.after_put = lambda: put(between.server, bucket, [*got(between.server, bucket), new])

    with pytest.raises(RulesNotKept, match=r"somebody else .* 'new' is there too"):
        bucket_rules.apply(client, shown)

    there = got(between.server, bucket)
    assert not difference([*OTHERS, new], [rule for rule in there if "mlflow" not in rule["ID"]])
    assert {rule["Status"] for rule in there if "mlflow" in rule["ID"]} == {"Disabled"}
    assert len(between.written) == 1


def test_what_others_write_over_ours_stays(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever read before us and wrote after us has the last word."""
    client, bucket, shown = prepared(between, monkeypatch)
    between.after_put = lambda: put(between.server, bucket, [*OTHERS, {**OTHERS[0], "ID": "new"}])

    with pytest.raises(RulesNotKept, match="does not show the rules that were just written"):
        bucket_rules.apply(client, shown)

    assert not difference([*OTHERS, {**OTHERS[0], "ID": "new"}], got(between.server, bucket))


def test_an_answer_that_is_lost_is_read_back(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written counts, not what was answered."""
    client, bucket, shown = prepared(between, monkeypatch)
    lost: list[Request] = []

    def answer(request: Request) -> tuple[int, bytes] | None:
        if request.method != "PUT" or request in lost:
            return None
        lost.append(request)
        between(request)
        return NO_ANSWER

    between.answer = answer

    assert bucket_rules.apply(client, shown).ready
    assert not difference([*OTHERS, *shown.rules], got(between.server, bucket))


def test_a_configuration_that_shows_late_is_waited_for(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 may show the old one for a moment; one that never shows is an error, and nothing is in force."""
    client, bucket, shown = prepared(between, monkeypatch)
    held: list[bytes] = []

    def answer(request: Request) -> tuple[int, bytes] | None:
        if request.method == "PUT" and not held:
            held.append(b"")
            connection = http.client.HTTPConnection(urlsplit(between.server.endpoint).netloc)
            connection.request("GET", f"/{bucket}?lifecycle")
            held[0] = connection.getresponse().read()
            connection.close()
        elif request.method == "GET" and held and "lifecycle" in request.query and len(held) < 3:
            held.append(b"")
            return 200, held[0]
        return None

    between.answer = answer
    assert bucket_rules.apply(client, shown).ready

    put(between.server, bucket, OTHERS)
    between.change = lambda _body: None
    with pytest.raises(StorageError, match="still shows its lifecycle rules as they were"):
        bucket_rules.apply(client, examine(client, bucket))
    assert not difference(OTHERS, got(between.server, bucket))


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(501, "NotImplemented", "does not offer lifecycle rules"), (400, "MalformedXML", "refuses them")],
)
def test_a_server_that_takes_no_rules_is_refused(
    status: int, code: str, words: str, between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it answered; nothing has changed."""
    client, bucket, shown = prepared(between, monkeypatch)
    between.answer = lambda request: (status, error_body(code)) if request.method == "PUT" else None

    with pytest.raises(Refused, match=f"{words}.*{status} {code}"):
        bucket_rules.apply(client, shown)
    assert not difference(OTHERS, got(between.server, bucket))


def test_a_server_that_refuses_only_the_last_step_is_as_before(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of ours is left there."""
    client, bucket, shown = prepared(between, monkeypatch)
    puts: list[Request] = []

    def answer(request: Request) -> tuple[int, bytes] | None:
        if request.method == "PUT":
            puts.append(request)
        return (400, error_body("InvalidRequest")) if request.method == "PUT" and len(puts) == 2 else None

    between.answer = answer

    with pytest.raises(Refused, match=r"400 InvalidRequest .* in place again"):
        bucket_rules.apply(client, shown)
    assert not difference(OTHERS, got(between.server, bucket))


@pytest.mark.parametrize(
    "xml",
    [
        "<Rule><ID>x</ID><Filter><Prefix>a/</Prefix><Suffix>.bin</Suffix></Filter><Status>Enabled</Status></Rule>",
        "<Rule><ID>x</ID><Filter/><Status>Enabled</Status><Expiration><Days>9</Days><Hours>1</Hours></Expiration></Rule>",
        "<Rule><ID>x</ID><Filter/><Status>Enabled</Status><DelMarkerExpiration><Days>9</Days></DelMarkerExpiration></Rule>",
        "<Rule><ID>x</ID><Status>Enabled</Status><Expiration><Days>9</Days></Expiration><Expiration/></Rule>",
        "<Rule><ID>x</ID><Filter/><Status>Enabled</Status><Expiration><Days>9</Days></Expiration></Rule><Extra>1</Extra>",
    ],
)
def test_what_boto3_would_drop_is_never_written_over(
    xml: str, between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field that it does not know is named, and nothing is written until it is known."""
    client, bucket, _ = prepared(between, monkeypatch)
    body = f'<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{xml}</LifecycleConfiguration>'
    between.answer = lambda request: (200, body.encode()) if "lifecycle" in request.query else None
    shown = examine(client, bucket)
    asked = len(between.fake.asked)

    assert any("does not know" in warning for warning in shown.warnings)
    with pytest.raises(Refused, match="cannot write back"):
        bucket_rules.apply(client, shown)
    assert {request.method for request in between.fake.asked[asked:]} == {"GET"}


@pytest.mark.parametrize(
    "answer", [(200, b"<html>sign in</html>"), (200, b""), (404, b""), (404, error_body("Nothing"))]
)
def test_only_s3s_own_word_means_that_there_are_no_rules(
    answer: tuple[int, bytes], between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything else would have the next write replace what was not read."""
    client, bucket, _ = prepared(between, monkeypatch)
    between.answer = lambda request: answer if "lifecycle" in request.query else None

    with pytest.raises(StorageError):
        examine(client, bucket)


@pytest.mark.parametrize("answer", [(501, error_body("NotImplemented")), (405, b""), (200, b'{"about": "the object"}')])
def test_a_server_without_tags_is_refused(
    answer: tuple[int, bytes], between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it has none, or takes the question for one about the object."""
    client, bucket, _ = prepared(between, monkeypatch)
    between.answer = lambda request: answer if "tagging" in request.query else None
    shown = examine(client, bucket)

    assert (shown.tags, shown.verdict) == (Tags.NOT_OFFERED, Verdict.IMPOSSIBLE)
    with pytest.raises(Refused, match="does not offer tags"):
        bucket_rules.apply(client, shown)


# What the rules do


def versions(client: S3Client, bucket: str) -> set[tuple[str, str]]:
    """Keys of versions and of delete markers."""
    answer: Any = s3_listing(client, bucket)
    return {(kind, one["Key"]) for kind in ("Versions", "DeleteMarkers") for one in answer.get(kind, [])}


def s3_listing(client: S3Client, bucket: str) -> Any:
    """All versions, with a client that lists in the ordinary way."""
    return client.list_object_versions(Bucket=bucket)


OBJECTS = {"run1/a": "gc=expired", "run1/deep/er/b": "own=1&gc=expired", "run2/a": "", "run3/a": "gc=else&own=1"}


def test_tagged_objects_go_and_the_others_stay(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executed on SeaweedFS: what is tagged under the root goes, and nothing of the others, nor of other software."""
    plain, bucket = s3_client(seaweed), make_bucket(seaweed)
    client = client_of(seaweed, monkeypatch)
    for root in ("mlruns/", "mlruns2/"):
        for key, tags in OBJECTS.items():
            plain.put_object(Bucket=bucket, Key=root + key, Body=b"x", Tagging=tags)
    plain.create_multipart_upload(Bucket=bucket, Key="mlruns/run1/up")
    bucket_rules.apply(client, examine(client, bucket))
    run_lifecycle(seaweed)
    assert len(plain.list_objects_v2(Bucket=bucket)["Contents"]) == 8

    age(seaweed, bucket, days=8)
    run_lifecycle(seaweed)

    left = {one["Key"] for one in plain.list_objects_v2(Bucket=bucket)["Contents"]}
    assert left == {"mlruns/run2/a", "mlruns/run3/a", *(f"mlruns2/{key}" for key in OBJECTS)}
    assert "Uploads" not in plain.list_multipart_uploads(Bucket=bucket)


def test_tagged_versions_go_and_their_markers(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a versioned bucket the current version expires, then it and its older ones go, and last the marker."""
    plain, bucket = s3_client(seaweed), make_bucket(seaweed)
    client = client_of(seaweed, monkeypatch)
    plain.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for _ in range(2):
        for key, tags in OBJECTS.items():
            plain.put_object(Bucket=bucket, Key=f"mlruns/{key}", Body=b"x", Tagging=tags)
    bucket_rules.apply(client, examine(client, bucket))

    for _ in range(3):
        age(seaweed, bucket, days=2)
        run_lifecycle(seaweed)

    left = s3_listing(plain, bucket)
    assert sorted(one["Key"] for one in left["Versions"]) == ["mlruns/run2/a"] * 2 + ["mlruns/run3/a"] * 2
    assert left.get("DeleteMarkers", []) == []


def test_what_is_hidden_can_be_brought_back_until_the_rule_acts(
    seaweed: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the days of the rule it is all there; after them hidden objects are gone, and visible ones are not."""
    plain, bucket = s3_client(seaweed), make_bucket(seaweed)
    client = client_of(seaweed, monkeypatch)
    plain.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for key in ("mlruns/hidden", "mlruns/seen", "else/hidden"):
        plain.put_object(Bucket=bucket, Key=key, Body=b"x")
    after = bucket_rules.apply(client, examine(client, bucket, action=Action.HIDE, noncurrent_days=3))
    assert after.undo_days == 3
    for key in ("mlruns/hidden", "else/hidden"):
        plain.delete_object(Bucket=bucket, Key=key)
    everything = versions(plain, bucket)

    age(seaweed, bucket, days=2)
    run_lifecycle(seaweed)
    assert versions(plain, bucket) == everything
    for _ in range(2):
        age(seaweed, bucket, days=2)
        run_lifecycle(seaweed)

    assert versions(plain, bucket) == everything - {("Versions", "mlruns/hidden"), ("DeleteMarkers", "mlruns/hidden")}
