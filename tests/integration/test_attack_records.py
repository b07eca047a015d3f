"""Attempts to make reports and rows say something else than what happened to the bucket."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import journal, s3
from mlflow_artifact_gc.errors import ReferencesIncomplete
from mlflow_artifact_gc.fence import Fence
from mlflow_artifact_gc.metadata import Eraser
from mlflow_artifact_gc.surveying import Surveyor
from tests.command import NOW, gc, init, outcomes, run
from tests.oracle import assert_bucket_sound
from tests.servers import S3Server
from tests.site import Site


@pytest.fixture
def pg_site(pg_uri: str, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]) -> Site:
    """A site on PostgreSQL, whose connections can be cut."""
    return make_site(Site.direct(pg_uri, seaweed, bucket))


def _cut(site: Site, connection: sa.Connection) -> None:
    """Has the server end a session, as a fail-over or an administrator does."""
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
    with site.engine.connect() as other:
        other.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


def _cut_next(site: Site, engine: sa.Engine) -> None:
    """Cuts the next session of ``engine``, as it begins a transaction."""
    sa.event.listen(engine, "begin", lambda connection: _cut(site, connection), once=True)


def _gc(site: Site) -> Any:
    """A ``gc`` that may end with an error; its report."""
    ran = run("gc", "--backend-store-uri", site.uri, "--yes", "--format", "json", *NOW)
    return ran.json


def test_what_left_the_bucket_is_counted_when_the_database_fails_between_two_batches(
    pg_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report counts what was deleted before an error, also within one location."""
    site = pg_site
    deleted = site.run(site.experiment(), n_objects=1001)
    site.delete_run(deleted)
    init(site)
    before = site.snapshot()
    calls: list[int] = []
    changed = Fence.changed

    def fails_the_second_time(self: Fence, lines: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            _cut_next(site, self._engine)
        return changed(self, lines)

    monkeypatch.setattr(Fence, "changed", fails_the_second_time)
    report = _gc(site)

    assert report["error"]
    assert_bucket_sound(site, report, before)


def test_what_other_threads_delete_is_counted_when_one_fails(pg_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in one location takes nothing from what the report says of the others, and they end before it does."""
    site = pg_site
    experiment = site.experiment()
    unlucky, other = site.run(experiment, n_objects=1), site.run(experiment, n_objects=5)
    site.delete_run(unlucky)
    site.delete_run(other)
    init(site)
    before = site.snapshot()
    other_deleted, failed = threading.Event(), threading.Event()
    changed, remaining = Fence.changed, Surveyor.remaining

    def fails_for_one(self: Fence, lines: Any) -> Any:
        if any(line.entity.id == unlucky for line in lines):
            assert other_deleted.wait(20)
            _cut_next(site, self._engine)
            try:
                return changed(self, lines)
            finally:
                failed.set()
        return changed(self, lines)

    def slow_for_the_other(self: Surveyor, task: Any) -> Any:
        if other in task.prefix:
            other_deleted.set()
            assert failed.wait(20)
            time.sleep(1)
        return remaining(self, task)

    monkeypatch.setattr(Fence, "changed", fails_for_one)
    monkeypatch.setattr(Surveyor, "remaining", slow_for_the_other)
    report = _gc(site)

    assert report["error"]
    assert_bucket_sound(site, report, before)


def test_what_left_the_bucket_is_reported_when_it_cannot_be_recorded(
    pg_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report tells what happened in S3, also where the journal could not take it."""
    site = pg_site
    deleted = site.run(site.experiment(), n_objects=4)
    site.delete_run(deleted)
    init(site)
    before = site.snapshot()
    record = journal.record

    def cut_off(connection: sa.Connection, *results: Any, **more: Any) -> None:
        _cut(site, connection)
        record(connection, *results, **more)

    monkeypatch.setattr(journal, "record", cut_off)
    report = _gc(site)

    assert report["error"]
    assert_bucket_sound(site, report, before)


def test_a_location_is_not_begun_with_references_that_are_older_than_a_minute(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References are read again before the first delete of each location, also where it shares a batch with others."""
    experiment = site.experiment()
    runs = [site.run(experiment) for _ in range(40)]
    first, second = next(
        (one, two) for one, two in zip(sorted(runs), sorted(runs)[1:], strict=False) if one[0] == two[0]
    )
    site.write(first, site.artifact_uri(first), {f"{number:05}": 1 for number in range(1500)})
    site.write(second, site.artifact_uri(second), {"model/MLmodel": 10})
    for one in runs:
        site.delete_run(one)
    init(site)
    before = site.snapshot()
    # Nothing that was read counts as fresh: as if each request had taken more than a minute.
    monkeypatch.setattr("mlflow_artifact_gc.acting._FRESH_S", 0.0)
    delete, registered = s3.delete, threading.Event()

    def delete_then_register(*arguments: Any, **more: Any) -> Any:
        answer = delete(*arguments, **more)
        if len(answer.deleted) == 1000 and not registered.is_set():
            registered.set()
            site.register("churn", f"{site.artifact_uri(second)}/model", run_id=second)
        return answer

    monkeypatch.setattr(s3, "delete", delete_then_register)
    report = gc(site)

    assert registered.is_set()
    lost = {key for key in before.keys - site.snapshot().keys if second in key}
    assert not lost, "a registered model version has lost its objects"
    assert outcomes(report)[second] == "protected"


def test_the_row_of_a_run_that_was_deleted_anew_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is deleted only for the deletion that was planned: restored, written and deleted again is another one."""
    deleted = site.run(site.experiment(), n_objects=1)
    site.delete_run(deleted)
    init(site)
    erase = Eraser.erase

    def after_a_second_life(self: Eraser, entities: Any) -> Any:
        site.restore_run(deleted)
        site.write(deleted, site.artifact_uri(deleted), {"second life": 10})
        site.delete_run(deleted)
        return erase(self, entities)

    monkeypatch.setattr(Eraser, "erase", after_a_second_life)
    gc(site, "--metadata", "delete")

    after = site.snapshot()
    assert any("second life" in key for key in after.keys)
    assert deleted in {row.id for row in after.rows}, "the row is gone, its objects are there, and no restore is left"


def test_one_place_that_two_rows_name_is_one_location(proxied_site: Site) -> None:
    """A trace whose data and archive lie in one place, by two spellings, is swept once and its row can go."""
    site = proxied_site
    experiment = site.experiment()
    trace = site.trace(experiment)
    # The archival location is the proxy's own destination: MLflow puts the archive beside traces.json.
    archive = f"{site.destination}/{experiment}/traces/{trace}/artifacts"
    site.execute(
        "INSERT INTO trace_tags (request_id, key, value) VALUES (:id, 'mlflow.trace.archiveLocation', :uri)",
        id=trace,
        uri=archive,
    )
    site.delete_experiment(experiment)
    init(site)
    before = site.snapshot()
    report = gc(site, "--metadata", "delete")

    assert {result["outcome"] for result in report["results"]} == {"swept"}
    assert_bucket_sound(site, report, before)
    assert trace not in {row.id for row in site.rows()}


def test_an_experiment_that_takes_a_used_id_inherits_no_evaluation_dataset(site: Site) -> None:
    """What was linked to an erased experiment is not linked to the next one, which gets its id on SQLite."""
    site.experiment()
    experiment = site.experiment()
    site.delete_run(site.run(experiment, n_objects=1))
    dataset = site.store.create_dataset("questions", experiment_ids=[experiment])
    site.delete_experiment(experiment)
    init(site)
    report = gc(site, "--metadata", "delete")
    assert report["experiments_deleted"] == [experiment]
    successor = site.experiment()

    assert successor == experiment, "SQLite uses the id again"
    with site.engine.connect() as connection:
        linked = connection.execute(
            sa.text("SELECT source_id FROM entity_associations WHERE destination_id = :id"), {"id": successor}
        ).all()
    assert (dataset.dataset_id,) not in [tuple(row) for row in linked]


def test_a_live_logged_model_keeps_its_metrics(site: Site) -> None:
    """A logged model that MLflow still shows loses none of its rows when the row of its deleted run goes."""
    from mlflow.entities import Metric

    experiment = site.experiment()
    deleted = site.run(experiment, n_objects=1)
    model = site.logged_model(experiment, deleted, n_objects=1)
    site.store.log_metric(deleted, Metric("accuracy", 0.9, int(time.time() * 1000), 0, model_id=model))
    assert [metric.key for metric in site.store.get_logged_model(model).metrics or ()] == ["accuracy"]
    site.delete_run(deleted)
    init(site)
    gc(site, "--metadata", "delete")

    assert [metric.key for metric in site.store.get_logged_model(model).metrics or ()] == ["accuracy"]


def test_claims_are_given_back_when_the_references_cannot_be_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gc that ends with an error leaves no location behind in 'sweeping'."""
    deleted = site.run(site.experiment(), n_objects=1)
    site.delete_run(deleted)
    init(site)
    monkeypatch.setattr(Fence, "_unreferenced", _unreadable)
    report = _gc(site)

    assert report["error"]
    with site.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT state, claimed_by FROM artifact_gc_intents")).all() == [
            ("pending", None)
        ]


def _unreadable(*_arguments: object) -> None:
    raise ReferencesIncomplete("the registry does not answer")


def test_a_second_interrupt_does_not_lose_what_was_deleted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted twice, the journal still holds what left the bucket, as the message says."""
    deleted = site.run(site.experiment(), n_objects=4)
    site.delete_run(deleted)
    init(site)
    delete = s3.delete

    def delete_and_be_interrupted(*arguments: Any, **more: Any) -> Any:
        answer = delete(*arguments, **more)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return answer

    monkeypatch.setattr(s3, "delete", delete_and_be_interrupted)
    ran = run("gc", "--backend-store-uri", site.uri, "--yes", *NOW)
    assert ran.code == 130
    assert not any(deleted in key for key in site.snapshot().keys)
    with site.engine.connect() as connection:
        counted = connection.execute(sa.text("SELECT deleted_objects FROM artifact_gc_intents")).scalar_one()

    assert counted == 4, ran.err


def test_an_upload_that_its_client_completed_is_not_called_aborted(
    sqlite_uri: str,
    moto_s3: S3Server,
    moto_bucket: str,
    make_site: Callable[[Site], Site],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only uploads that we ended count as aborted."""
    site = make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))
    deleted = site.run(site.experiment(), n_objects=1)
    uri = site.artifact_uri(deleted)
    key = f"{site.key_of(uri)}/late"
    upload = site.client.create_multipart_upload(Bucket=site.bucket, Key=key)["UploadId"]
    part = site.client.upload_part(Bucket=site.bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
    site.delete_run(deleted)
    init(site)
    survey = Surveyor.survey

    def survey_then_complete(self: Surveyor, task: Any, room: Any, uploads: Any) -> Any:
        found = survey(self, task, room, uploads)
        parts: Any = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
        site.client.complete_multipart_upload(Bucket=site.bucket, Key=key, UploadId=upload, MultipartUpload=parts)
        return found

    monkeypatch.setattr(Surveyor, "survey", survey_then_complete)
    report = gc(site)

    assert report["totals"]["aborted_uploads"] == 0


def test_one_long_uri_does_not_stop_the_whole_backlog(pg_site: Site) -> None:
    """A URI that anybody may set on a trace of theirs, however long, is no reason to leave everything else behind."""
    site = pg_site
    experiment = site.experiment()
    deleted, trace = site.run(experiment, n_objects=1), site.trace(experiment)
    site.execute(
        "UPDATE trace_tags SET value = value || :more WHERE request_id = :id AND key = 'mlflow.artifactLocation'",
        id=trace,
        more="?" + "x" * 3000,
    )
    site.delete_experiment(experiment)
    init(site)

    assert outcomes(_gc(site))[deleted] == "swept"
