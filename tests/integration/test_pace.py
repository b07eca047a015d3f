"""A server that refuses what is too much gets less, and more again when it can bear it; nothing is lost by that."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from mlflow_artifact_gc import s3
from mlflow_artifact_gc.s3 import Entry
from mlflow_artifact_gc.s3 import Kind as Of
from mlflow_artifact_gc.s3.pace import Pace
from tests.command import gc, init
from tests.fakes3 import FakeS3, Fault, Kind, Request, fake_s3
from tests.site import Site

MakeSite = Callable[[Site], Site]

BUCKET = "busy"
N_REQUESTS = 150


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    """An S3 that takes ten milliseconds for each request; botocore waits a tenth as long as it would."""
    hurried = SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 10))
    monkeypatch.setattr("botocore.endpoint.time", hurried)
    with fake_s3() as server:
        server.before = lambda _request: time.sleep(0.01)
        for name, value in server.server.environ().items():
            monkeypatch.setenv(name, value)
        server.make_bucket(BUCKET)
        yield server


class Most:
    """How many requests a server has had at a time."""

    def __init__(self, fake: FakeS3) -> None:
        self.ever = self._now = 0
        self._lock = threading.Lock()
        before, after = fake.before, fake.after

        def come(request: Request) -> None:
            with self._lock:
                self._now += 1
                self.ever = max(self.ever, self._now)
            before(request)

        def go(request: Request) -> None:
            after(request)
            with self._lock:
                self._now -= 1

        fake.before, fake.after = come, go


def delete_all(fake: FakeS3, threads: int = 16) -> tuple[int, int]:
    """Deletes one key a request, ``threads`` of them ready at a time; how many went, and how often it was refused."""
    client = s3.connect(os.environ, threads=threads)
    fake.log.clear()

    def delete(number: int) -> int:
        entry = Entry(f"key-{number}", Of.CURRENT, None, 1, 1)
        return len(s3.delete(client, BUCKET, [entry], versioned=False).deleted)

    with ThreadPoolExecutor(threads) as executor:
        deleted = sum(executor.map(delete, range(N_REQUESTS)))
    return deleted, sum(call.status == 503 for call in fake.log)


def test_a_busy_server_is_asked_less(fake: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """It bears three at a time: with the pace kept it has to refuse a few, and most of them without.

    What it does for a request takes far longer than to send one, on busy processors too: else those who keep no pace
    come one after the other as well.
    """
    fake.before = lambda _request: time.sleep(0.03)
    fake.most_at_once = 3
    deleted, refused = delete_all(fake)
    monkeypatch.setattr(Pace, "register", lambda _pace, _client: None)
    unpaced_deleted, unpaced_refused = delete_all(fake)
    assert deleted >= unpaced_deleted
    assert refused * 2 < unpaced_refused


def test_it_is_asked_more_again_and_never_more_than_the_cap(fake: FakeS3) -> None:
    """After its bad hour all threads are at work again."""
    most = Most(fake)
    fake.most_at_once = 1
    client = s3.connect(os.environ, threads=8)

    def look(_number: int) -> None:
        s3.bucket_versioning(client, BUCKET)

    with ThreadPoolExecutor(24) as executor:
        list(executor.map(look, range(20)))
        fake.most_at_once = None
        list(executor.map(look, range(100)))
        most.ever = 0
        list(executor.map(look, range(100)))
    assert most.ever == 8


def test_gc_of_a_busy_server(fake: FakeS3, sqlite_uri: str, make_site: MakeSite) -> None:
    """Everything that is due goes, the live run's objects stay, and the exit code is 0."""
    site = make_site(Site.direct(sqlite_uri, fake.server, BUCKET))
    experiment = site.experiment()
    live = site.run(experiment, n_objects=3)
    dead = [site.run(experiment, n_objects=3) for _ in range(20)]
    for run_id in dead:
        site.delete_run(run_id)
    init(site, "--action", "purge")
    fake.most_at_once = 2
    report = gc(site, "--metadata", "delete")
    assert {one["outcome"] for one in report["results"]} == {"swept"}
    assert any(call.status == 503 for call in fake.log)
    fake.most_at_once = None
    left = [item.key for item in site.items() if not item.key.endswith(s3.MARKER_NAME)]
    assert len(left) == 3
    assert all(live in key for key in left)


@pytest.mark.timeout(60)
def test_an_answer_that_cannot_be_read_holds_no_place(fake: FakeS3) -> None:
    """Of one that is all that may be under way: the thread that met it has ended, and the next one goes out."""
    client = s3.connect(os.environ, threads=1)
    fake.plan(Fault(kind=Kind.PAGE_OF_HTML, operation="GetBucketVersioning"))
    for refused in (True, False):
        with ThreadPoolExecutor(1) as executor:
            answer = executor.submit(s3.bucket_versioning, client, BUCKET)
            assert (answer.exception() is not None) is refused


def test_a_body_that_is_still_read_takes_nobody_s_connection(fake: FakeS3, caplog: pytest.LogCaptureFixture) -> None:
    """Its request is answered, so the next one goes out: urllib3 would warn of a pool that is too small for both."""
    client = s3.connect(os.environ, threads=1)
    client.put_object(Bucket=BUCKET, Key="key", Body=b"body")
    bodies = [client.get_object(Bucket=BUCKET, Key="key")["Body"] for _ in range(2)]
    s3.bucket_versioning(client, BUCKET)
    assert [body.read() for body in bodies] == [b"body", b"body"]
    assert "pool is full" not in caplog.text
