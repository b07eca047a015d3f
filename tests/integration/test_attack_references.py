"""Attempts to have ``gc`` overlook who still needs an object, by odd ids, odd names and odd places."""

from __future__ import annotations

import pytest

from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import UsageError
from tests.command import gc, init, outcomes
from tests.site import Site


def _nested_run(site: Site, run_id: str, uri: str) -> str:
    """A live run with an id and a place that somebody's import chose; its objects are there."""
    made = site.run(site.experiment())
    site.execute(
        "UPDATE runs SET run_uuid = :new, artifact_uri = :uri WHERE run_uuid = :id", new=run_id, uri=uri, id=made
    )
    site.write(run_id, uri, {"model/weights": 10})
    return run_id


def test_a_short_id_of_a_live_run_does_not_garble_the_text_that_names_another_run(site: Site) -> None:
    """A live run protects what its URI names, also when its own id occurs inside other parts of that URI."""
    experiment = site.experiment()
    deleted = site.run(experiment, n_objects=1)
    above = site.artifact_uri(deleted).partition(deleted)[0]
    letter = next(character for character in deleted if character not in above)
    _nested_run(site, letter, f"{site.artifact_uri(deleted)}/nested/{letter}/artifacts")
    site.delete_run(deleted)
    init(site)
    before = site.snapshot()
    report = gc(site)

    assert not {key for key in before.keys - site.snapshot().keys if "weights" in key}
    assert deleted not in outcomes(report)


def test_a_literal_id_mark_in_a_uri_does_not_weaken_it(site: Site) -> None:
    """A live run protects what lies in its location, also when its URI holds the very text that groups others."""
    shared = f"{site.artifact_root}/{{id}}/shared"
    _nested_run(site, "0123456789abcdef0123456789abcdef", shared)
    inside = site.experiment(artifact_location=shared)
    deleted = site.run(inside, n_objects=1)
    site.delete_run(deleted)
    site.execute(
        "UPDATE experiments SET artifact_location = 's3://elsewhere' WHERE experiment_id = :id", id=int(inside)
    )
    init(site)
    report = gc(site)

    assert outcomes(report) == {}


def test_a_version_is_followed_through_a_name_with_a_percent_sign(site: Site) -> None:
    """A model's name is taken as MLflow takes it: nothing in a models: URI is percent-decoded."""
    experiment = site.experiment()
    deleted = site.run(experiment, {"model/MLmodel": 10})
    first = site.register("a%20b", f"{site.artifact_uri(deleted)}/model", run_id=deleted)
    second = site.register("copy", f"models:/a%20b/{first}")
    site.set_version_columns("copy", second, storage_location=None)  # a row from before that column
    site.delete_version("a%20b", first)
    site.delete_run(deleted)
    init(site)
    before = site.snapshot()
    gc(site)

    assert site.snapshot().keys >= before.keys


def test_an_attachment_that_an_evaluation_dataset_shows_stays(site: Site) -> None:
    """What a record of a live evaluation dataset links to is there as long as the record is."""
    live, doomed = site.experiment(), site.experiment()
    trace = site.trace(doomed, {"attachments/1": 10})
    dataset = site.store.create_dataset("questions", experiment_ids=[live])
    link = f"mlflow-attachment://1?content_type=image%2Fpng&trace_id={trace}"
    site.store.upsert_dataset_records(dataset.dataset_id, [{"inputs": {"picture": link}}])
    site.delete_experiment(doomed)
    init(site)
    before = site.snapshot()
    gc(site)

    assert site.snapshot().keys >= before.keys


@pytest.mark.parametrize("value", ["nan", "50"])
def test_a_brake_cannot_be_switched_off_by_a_value_that_is_no_share(value: str) -> None:
    """A share is between 0 and 1: another number in the environment is an error, not a brake that never trips."""
    with pytest.raises(UsageError):
        Settings.from_env({"MLFLOW_ARTIFACT_GC_MAX_SHARE": value})
