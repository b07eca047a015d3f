"""Why a bucket cannot be worked on: named in one sentence, never read as emptiness, without secrets."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_artifact_gc.demo.servers import Identity
from mlflow_artifact_gc.errors import StorageError
from mlflow_artifact_gc.s3 import (
    PERMISSIONS,
    BucketPaused,
    Entry,
    Kind,
    bucket_versioning,
    connect,
    current,
    delete,
    endpoint_name,
    uploads,
    versions,
)
from tests.integration.s3_servers import Fake, client_at, client_of, fake_s3, put_all, wait_for_nothing
from tests.servers import free_ports, make_bucket, moto, moto_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3.client import S3Client

    from mlflow_artifact_gc.demo.servers import S3Server

SECRET = "very-secret-secret"


@pytest.fixture(scope="module")
def moto_iam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A moto that checks signatures and rights, seen by its administrator."""
    with moto(tmp_path_factory.mktemp("moto-iam"), iam=True) as server:
        yield server


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A server that answers what the test says."""
    with fake_s3() as server:
        yield server


def everything(client: S3Client, bucket: str) -> list[Any]:
    """Each operation that reads or deletes, as functions."""
    return [
        lambda: list(versions(client, bucket, "p/")),
        lambda: list(current(client, bucket, "p/")),
        lambda: list(uploads(client, bucket, "p/")),
        lambda: bucket_versioning(client, bucket),
        lambda: delete(client, bucket, [Entry("p/a", Kind.CURRENT, "null", 1, 0)], versioned=True),
        lambda: delete(client, bucket, [Entry("p/a\r", Kind.CURRENT, "null", 1, 0)], versioned=True),
    ]


def assert_all_pause(client: S3Client, bucket: str, *words: str) -> None:
    """Each operation raises BucketPaused with these words, and with the endpoint and the bucket."""
    for operation in everything(client, bucket):
        with pytest.raises(BucketPaused) as raised:
            operation()
        for word in (*words, bucket, endpoint_name(client)):
            assert word in str(raised.value)
        assert SECRET not in str(raised.value)
        assert "X-Amz" not in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fixture", ["moto_iam", "seaweed"])
def test_wrong_keys_pause(fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong secret and an unknown key are about credentials, not about rights."""
    server: S3Server = request.getfixturevalue(fixture)
    bucket = make_bucket(server)
    wrong = server.seen_by(Identity(access_key=server.access_key, secret_key=SECRET))
    unknown = server.seen_by(Identity(access_key="AKIANOBODYKNOWSTHIS0", secret_key=SECRET))

    assert_all_pause(client_of(wrong, monkeypatch), bucket, "credentials", "SignatureDoesNotMatch")
    assert_all_pause(client_of(unknown, monkeypatch), bucket, "credentials", "InvalidAccessKeyId")


@pytest.mark.parametrize("fixture", ["moto_s3", "seaweed"])
def test_no_such_bucket_pauses(fixture: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that does not exist is not an empty one."""
    client = client_of(request.getfixturevalue(fixture), monkeypatch)

    for operation in everything(client, "nowhere-to-be-found")[:3]:
        with pytest.raises(BucketPaused, match="no such bucket"):
            operation()


def test_a_refused_connection_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing listens, the settings to look at are named."""
    (port,) = free_ports(1)

    assert_all_pause(client_at(f"http://127.0.0.1:{port}", monkeypatch), "bucket", "MLFLOW_S3_ENDPOINT_URL")


def test_an_unknown_host_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not resolve is a wrong endpoint."""
    client = client_at("http://no-such-host.invalid:9000", monkeypatch)

    with pytest.raises(BucketPaused, match="no connection could be made"):
        list(versions(client, "bucket", "p/"))


def test_plain_http_behind_https_pauses(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed TLS handshake is told as one."""
    client = client_at(fake.endpoint.replace("http:", "https:"), monkeypatch)

    with pytest.raises(BucketPaused, match="TLS"):
        list(versions(client, "bucket", "p/"))


def test_no_credentials_pause(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where boto3 finds no credentials, nothing is sent."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    client = connect({"MLFLOW_S3_ENDPOINT_URL": seaweed.endpoint}, threads=1)

    assert_all_pause(client, "bucket", "no usable credentials", "NoCredentialsError")


@pytest.mark.parametrize(
    ("operation", "listing"),
    [("ListObjectVersions", versions), ("ListObjectsV2", current), ("ListMultipartUploads", uploads)],
)
def test_the_missing_right_is_named(
    operation: str, listing: Any, moto_iam: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who has every right but one is told which; the listings of the other rights work."""
    rights = {permission.operation: permission.action for permission in PERMISSIONS}
    allowed = [action for action in rights.values() if action != rights[operation]]
    user = moto_user(moto_iam, f"no-{operation}", [{"Effect": "Allow", "Action": allowed, "Resource": "*"}])
    bucket = make_bucket(moto_iam)
    put_all(client_of(moto_iam, monkeypatch), bucket, ["p/a"])
    client = client_of(user, monkeypatch)

    with pytest.raises(BucketPaused, match=f"grant {rights[operation]} "):
        list(listing(client, bucket, "p/"))
    others = {versions, current, uploads} - {listing}
    assert sum(len(list(other(client, bucket, "p/"))) for other in others) >= 1


def test_the_table_of_rights_is_enough(moto_iam: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with exactly the rights of the table lists and purges everything."""
    actions = [permission.action for permission in PERMISSIONS]
    user = moto_user(moto_iam, "sweeper", [{"Effect": "Allow", "Action": actions, "Resource": "*"}])
    bucket = make_bucket(moto_iam)
    put_all(client_of(moto_iam, monkeypatch), bucket, ["p/a", "p/b\r"])
    client = client_of(user, monkeypatch)

    listed = [entry._replace(version_id=None) for entry in current(client, bucket, "p/")]
    answer = delete(client, bucket, listed, versioned=False)

    assert len(answer.deleted) == 2
    assert [] == list(versions(client, bucket, "p/")) == list(uploads(client, bucket, "p/"))


def test_the_expected_owner_goes_with_every_request(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_S3_EXPECTED_BUCKET_OWNER is part of listings and deletes."""
    fake.answer = lambda _: (403, b"")
    client = client_at(fake.endpoint, monkeypatch, MLFLOW_S3_EXPECTED_BUCKET_OWNER="123456789012")
    for operation in everything(client, "bucket"):
        with suppress(BucketPaused):
            operation()

    assert len(fake.asked) == 6
    assert {"123456789012"} == {request.headers.get("x-amz-expected-bucket-owner") for request in fake.asked}


@pytest.mark.parametrize(("style", "path"), [("path", "/bucket"), ("auto", "/bucket")])
def test_the_addressing_style_is_mlflows(style: str, path: str, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against an endpoint with an IP address, both styles put the bucket into the path."""
    fake.answer = lambda _: (403, b"")
    client = client_at(fake.endpoint, monkeypatch, MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE=style)
    with pytest.raises(BucketPaused):
        list(current(client, "bucket", "p/"))

    assert [path] == [request.path for request in fake.asked]
    assert style == (client.meta.config.s3 or {}).get("addressing_style")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("version", "signed"), [(None, True), ("s3v4", True), ("unsigned", False)])
def test_the_signature_version_is_mlflows(
    version: str | None, *, signed: bool, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are signed unless MLflow's variable says otherwise."""
    fake.answer = lambda _: (403, b"")
    environ = {} if version is None else {"MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION": version}
    with pytest.raises(BucketPaused):
        list(current(client_at(fake.endpoint, monkeypatch, **environ), "bucket", "p/"))

    assert [signed] == ["AWS4-HMAC-SHA256" in request.headers.get("Authorization", "") for request in fake.asked]


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        ("http://127.0.0.1:8333", "http://127.0.0.1:8333"),
        ("https://S3.Example.com/", "https://s3.example.com:443"),
        ("https://me:hush@s3.example.com/base", "https://s3.example.com:443"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        (None, "https://s3.eu-central-1.amazonaws.com:443"),
    ],
)
def test_an_endpoint_has_one_name(endpoint: str | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scheme, host and port, without what the URL holds besides."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    environ = {} if endpoint is None else {"MLFLOW_S3_ENDPOINT_URL": endpoint}

    assert name == endpoint_name(connect(environ, threads=1))


@pytest.mark.parametrize(
    "environ",
    [
        {"MLFLOW_S3_ENDPOINT_URL": "no://me:very-secret-secret@url at all"},
        {"MLFLOW_S3_IGNORE_TLS": "perhaps"},
        {"MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "sideways"},
    ],
)
def test_settings_that_make_no_client_are_told(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that boto3 refuses is a sentence of ours, without its credentials."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    wait_for_nothing(monkeypatch)
    with pytest.raises(StorageError) as raised:
        connect(environ, threads=1)

    assert SECRET not in str(raised.value)
    assert "MLFLOW_" in str(raised.value)


def test_tls_is_ignored_when_mlflow_ignores_it() -> None:
    """The values are MLflow's: true and 1, in any case."""
    from mlflow_artifact_gc.s3.client import _ignores_tls

    texts = ("true", "1", "TRUE", "false", "0")
    assert [_ignores_tls({"MLFLOW_S3_IGNORE_TLS": text}) for text in texts] == [True, True, True, False, False]
    assert not _ignores_tls({})
