"""What the tests of the S3 room share: clients, objects, and a small S3 server that answers what a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from mlflow_artifact_gc.s3 import connect

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from mlflow_artifact_gc.demo.servers import S3Server

NO_ANSWER = (0, b"")
"""The request was taken, and the connection is closed without an answer."""


@dataclass(frozen=True)
class Request:
    """What the fake was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Fake:
    """An S3 server in this process. ``answer`` gives status and body of each request; ``asked`` keeps the requests."""

    answer: Callable[[Request], tuple[int, bytes]] = lambda _: (500, b"")
    asked: list[Request] = field(default_factory=list)
    endpoint: str = ""


@contextmanager
def fake_s3() -> Iterator[Fake]:
    """A fake on a free port."""
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, parts.path, query, dict(self.headers.items()), body)
            fake.asked.append(request)
            status, text = fake.answer(request)
            if (status, text) == NO_ANSWER:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    fake.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_of(server: S3Server, monkeypatch: pytest.MonkeyPatch, *, threads: int = 16) -> S3Client:
    """Our client for a server, with that user's keys, made as the program makes it."""
    environ = server.environ()
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return connect(environ, threads=threads)


def client_at(endpoint: str, monkeypatch: pytest.MonkeyPatch, **environ: str) -> S3Client:
    """Our client for an endpoint that asks for no particular keys, and without waiting between its tries."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "anybody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    wait_for_nothing(monkeypatch)
    return connect({"MLFLOW_S3_ENDPOINT_URL": endpoint, **environ}, threads=4)


def wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed request is repeated by botocore at once, as often as it would."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _seconds: None))


def put_all(client: S3Client, bucket: str, keys: list[str], body: bytes = b"x") -> None:
    """Puts an object at each key, sixteen at a time."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: client.put_object(Bucket=bucket, Key=key, Body=body), keys))


def error_body(code: str) -> bytes:
    """S3's error document."""
    return f"<Error><Code>{code}</Code><Message>said the fake</Message></Error>".encode()
