"""An S3 in this process: as AWS documents it, with faults on request, a clock that can be set, and a log.

``tests/integration/test_s3_conformance.py`` holds it, moto and SeaweedFS to the same checks. What it does not do is
answered with 501. Where it follows AWS's documentation and both other servers do not, that test says so.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mlflow_artifact_gc.demo.servers import S3Server
from tests.fakes3 import lifecycle
from tests.fakes3.faults import BEFORE, INSTEAD, OF_BODIES, UNANSWERED, Fault, Kind
from tests.fakes3.keeping import Bucket, Kept, Refused
from tests.fakes3.signing import require_signed
from tests.fakes3.speaking import OWNER, Answer, Operations, Request, refusal

__all__ = ["OWNER", "Bucket", "Call", "FakeS3", "Fault", "Kind", "Request", "fake_s3"]

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request that came, and what became of it. ``status`` 0: it was not answered."""

    operation: str
    bucket: str
    key: str
    prefix: str
    status: int
    fault: Kind | None


class FakeS3:
    """The server's state, and what a test may do to it while it runs.

    ``before``: called with each request before anything is done, outside of the lock. ``after``: the same once it is
    done and not answered. ``silence_s``: how long a request stays unanswered that times out. ``most_at_once``: more
    requests than so many at a time are refused, those that are under way not.
    """

    def __init__(self) -> None:
        self.kept = Kept()
        self.operations = Operations(self.kept)
        self.faults: list[Fault] = []
        self.log: list[Call] = []
        self.before: Callable[[Request], None] = lambda _request: None
        self.after: Callable[[Request], None] = lambda _request: None
        self.silence_s = 1.0
        self.most_at_once: int | None = None
        self._under_way = 0
        self.server = S3Server(endpoint="", access_key="fake-access-key", secret_key="fake-secret-key")
        self._ahead_ms = 0
        self.kept.clock_ms = lambda: int(time.time() * 1000) + self._ahead_ms
        self._lock = threading.RLock()

    def bucket(self, name: str) -> Bucket:
        """A bucket's content, to be looked at."""
        return self.kept.bucket(name)

    def make_bucket(self, name: str) -> Bucket:
        """A fresh, empty bucket of that name, in the place of one that may be there."""
        with self._lock:
            made = self.kept.buckets[name] = Bucket(name=name)
        return made

    def age(self, ms: int) -> None:
        """Everything that is there was written so much earlier: time passes, and the clock stands."""
        with self._lock:
            for bucket in self.kept.buckets.values():
                for upload in bucket.uploads.values():
                    upload.initiated_ms -= ms
                for version in (one for versions in bucket.keys.values() for one in versions):
                    version.modified_ms -= ms
                    if version.noncurrent_ms is not None:
                        version.noncurrent_ms -= ms

    def set_clock(self, *, ahead_ms: int) -> None:
        """The server's clock goes so much ahead of this machine's."""
        self._ahead_ms = ahead_ms

    def expire(self, bucket: str) -> None:
        """Carries out the bucket's lifecycle rules, as S3 does now and then."""
        with self._lock:
            lifecycle.run(self.kept, self.kept.bucket(bucket))

    def plan(self, *faults: Fault) -> None:
        """From now on, these faults and no others."""
        with self._lock:
            self.faults = list(faults)

    def unmet(self) -> list[Fault]:
        """The planned faults that no request met."""
        return [fault for fault in self.faults if not fault.hit]

    def answer(self, request: Request) -> Answer | None:
        """The answer to a request; None: none comes. A negative status: only half of the body comes."""
        with self._lock:
            struck = [fault.kind for fault in self.faults if fault.strikes(request.operation)]
            if self.most_at_once is not None and self._under_way >= self.most_at_once:
                struck.append(Kind.SLOW_DOWN)
            self._under_way += 1
        kind = struck[0] if struck else None
        try:
            return self._answered(request, kind)
        finally:
            with self._lock:
                self._under_way -= 1

    def _answered(self, request: Request, kind: Kind | None) -> Answer | None:
        self.before(request)
        answer = self._answer(request, kind)
        self.after(request)
        if kind in (Kind.TIMEOUT, Kind.TIMEOUT_AFTER):
            time.sleep(self.silence_s)
        status = 0 if answer is None else answer.status
        call = Call(
            operation=request.operation,
            bucket=request.bucket,
            key=request.key,
            prefix=request.values.get("prefix", ""),
            status=status,
            fault=kind,
        )
        with self._lock:
            self.log.append(call)
        return answer

    def _answer(self, request: Request, kind: Kind | None) -> Answer | None:
        done = Answer()
        if kind not in BEFORE:
            with self._lock:
                done = self._perform(request, kind)
        if kind in UNANSWERED:
            return None
        if kind in INSTEAD:
            status, code = INSTEAD[kind]
            return refusal(Refused(status, code, "said the fake"), request) if code else Answer(status=status)
        if kind is Kind.INTERNAL_ERROR_AFTER:
            return refusal(Refused(500, "InternalError", "said the fake"), request)
        if kind in OF_BODIES:
            return _spoiled(done, kind)
        return done

    def _perform(self, request: Request, kind: Kind | None) -> Answer:
        known = (self.server.access_key, self.server.secret_key)
        try:
            require_signed(request.method, (request.path, request.query), request.headers, request.body, known=known)
            return self.operations.perform(request, kind)
        except Refused as refused:
            return refusal(refused, request)


def _spoiled(answer: Answer, kind: Kind) -> Answer:
    if kind is Kind.PAGE_OF_HTML:
        return Answer(body=b"<html><body>Welcome to the proxy</body></html>", headers={"Content-Type": "text/html"})
    if kind is Kind.EMPTY_200:
        return Answer()
    if kind is Kind.CUT:
        return Answer(status=answer.status, body=answer.body[: len(answer.body) // 2], headers=answer.headers)
    return Answer(status=-answer.status, body=answer.body, headers=answer.headers)


def _handler(fake: FakeS3) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Without, each answer waits for the client's acknowledgement of its head: 40 ms.
        wbufsize = -1
        disable_nagle_algorithm = True

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = fake.answer(Request.of(self.command, self.path, dict(self.headers.items()), body))
            if answer is None:
                self._reset()
                return
            self.send_response_only(abs(answer.status))
            date = formatdate(fake.kept.clock_ms() / 1000, usegmt=True)
            headers = {"x-amz-request-id": "fake", "Server": "fakes3", "Date": date, **answer.headers}
            if answer.status != 204:
                headers["Content-Length"] = str(len(answer.body))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            torn = answer.status < 0
            if self.command != "HEAD" and answer.status != 204:
                self.wfile.write(answer.body[: len(answer.body) // 2] if torn else answer.body)
            self.wfile.flush()
            if torn:
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer  # noqa: N815 - http.server's names

        def handle_expect_100(self) -> bool:
            going_on = super().handle_expect_100()
            self.wfile.flush()
            return going_on

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing is logged."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, _request: object, _client_address: object) -> None:
        """A client that goes away, or is killed, is none of the server's errors."""

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        # Not the orderly end of a connection, which would come before a reset.
        self.close_request(request)


@contextmanager
def fake_s3() -> Iterator[FakeS3]:
    """A fake on a free port; ``server`` tells its endpoint and keys."""
    fake = FakeS3()
    server = _Server(("127.0.0.1", 0), _handler(fake))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="fakes3")
    thread.start()
    fake.server = S3Server(
        endpoint=f"http://127.0.0.1:{server.server_port}",
        access_key=fake.server.access_key,
        secret_key=fake.server.secret_key,
    )
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
