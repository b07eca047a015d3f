"""``init``: opting in, changing settings, and taking over roots after a database was moved or restored."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.command import NOW, Ran, gc, init, outcomes, run
from tests.oracle import MARKER_NAME, assert_bucket_sound
from tests.servers import PostgresServer, S3Server
from tests.site import Site

CHECKOUT = Path(__file__).resolve().parents[2]
ANOTHER_DATABASE = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def moto_site(sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: Callable[[Site], Site]) -> Site:
    """SQLite and moto."""
    return make_site(Site.direct(sqlite_uri, moto_s3, moto_bucket))


def deleted_run(site: Site) -> str:
    """A run with two objects, in an experiment of its own, deleted; its id."""
    made = site.run(site.experiment(), n_objects=2)
    site.delete_run(made)
    return made


def plain_init(uri: str, *arguments: str) -> Ran:
    """``init`` that says nothing of the registry."""
    ran = run("init", "--backend-store-uri", uri, *arguments)
    assert ran.code == 0, ran.err
    return ran


def settings(uri: str) -> dict[str, Any]:
    """The row of settings."""
    engine = sa.create_engine(uri)
    with engine.connect() as connection:
        (row,) = connection.execute(sa.text("SELECT * FROM artifact_gc_site")).mappings().all()
    engine.dispose()
    return dict(row)


# What it says


def test_the_first_init_says_what_happens_from_now_on(moto_site: Site) -> None:
    """It prints the grace period, that nothing goes by itself, and how much older waits, by kind."""
    experiment = moto_site.experiment()
    for _ in range(2):
        moto_site.delete_run(moto_site.run(experiment))
    moto_site.delete_logged_model(moto_site.logged_model(experiment))
    moto_site.run(experiment)
    before = moto_site.snapshot()
    said = init(moto_site).out

    assert "set up in sqlite:///" in said
    assert "more than 7d" in said
    assert "the worker beside 'mlflow server' purges" in said
    assert "1 logged model, 2 runs." in said
    assert "changed" not in said
    assert moto_site.snapshot() == before


def test_the_second_init_says_what_changed(sqlite_uri: str) -> None:
    """It names each changed setting with its old and its new value, and nothing where nothing changed."""
    plain_init(sqlite_uri)
    assert "changed" not in plain_init(sqlite_uri).out
    said = plain_init(sqlite_uri, "--grace", "14d", "--models", "follow-run").out

    assert "current in" in said
    assert "changed: grace from 7d to 14d" in said
    assert "changed: models from keep to follow-run" in said
    assert said.count("changed:") == 2
    assert "more than 14d" in said


def test_settings_persist(any_db_uri: str) -> None:
    """What one init stored, the next keeps unless it is told otherwise; the database keeps its id."""
    told = ("--grace", "3d", "--min-object-age", "0s", "--orphan-quarantine", "2d", "--models", "follow-run")
    plain_init(any_db_uri, *told, "--action", "purge", "--artifacts-destination", "s3://bucket/a")
    first = settings(any_db_uri)
    plain_init(any_db_uri, "--grace", "0s", "--artifacts-destination", "s3://bucket/b")
    second = settings(any_db_uri)

    assert (first["grace_ms"], first["min_object_age_ms"], first["models"]) == (3 * 86_400_000, 0, "follow-run")
    changed = {name for name in first if first[name] != second[name]} - {"updated_ms"}
    assert changed == {"grace_ms", "artifacts_destination"}
    assert (second["grace_ms"], second["artifacts_destination"]) == (0, "s3://bucket/b")


def test_json(sqlite_uri: str) -> None:
    """--format json prints one document: settings, what changed, what waits, whether the registry is known."""
    first = plain_init(sqlite_uri, "--format", "json").json
    second = plain_init(sqlite_uri, "--grace", "1d", "--registry-store-uri", sqlite_uri, "--format", "json").json

    assert (first["schema"], first["command"]) == (1, "init")
    assert (first["changed"], first["waiting"], first["registry_known"]) == ([], {}, False)
    assert (second["changed"], second["registry_known"]) == (["grace", "registry"], True)
    assert second["settings"]["grace_ms"] == 86_400_000
    assert second["database_id"] == first["database_id"]


def test_an_unknown_registry_is_said(sqlite_uri: str) -> None:
    """Where no model version tells which registry is used, init says what is still to be said, once."""
    assert "--registry-store-uri URI" in plain_init(sqlite_uri).out
    assert "--registry-store-uri" not in plain_init(sqlite_uri, "--registry-store-uri", sqlite_uri).out
    assert "--registry-store-uri" not in plain_init(sqlite_uri).out


def test_a_proxied_site_without_a_destination_is_told(
    sqlite_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: Callable[[Site], Site]
) -> None:
    """Where deleted runs are proxied and no destination is known, init says so: gc refuses until then."""
    site = make_site(Site.proxied(sqlite_uri, moto_s3, moto_bucket))
    deleted_run(site)

    assert "--artifacts-destination" in plain_init(sqlite_uri).out
    assert "--artifacts-destination" not in init(site).out


def test_mlflows_own_tables_stay_as_they_are(any_db_uri: str) -> None:
    """Init adds tables whose names are ours, and changes no other."""
    engine = sa.create_engine(any_db_uri)
    theirs = {name: sa.inspect(engine).get_columns(name) for name in sa.inspect(engine).get_table_names()}
    plain_init(any_db_uri)
    after = sa.inspect(engine)

    assert all(name.startswith("artifact_gc_") for name in set(after.get_table_names()) - set(theirs))
    for name, columns in theirs.items():
        assert [str(column) for column in after.get_columns(name)] == [str(column) for column in columns]
    engine.dispose()


def test_two_inits_at_once(any_db_uri: str) -> None:
    """Two processes that set up one database both succeed, and leave one row of settings."""
    command = [sys.executable, "-m", "mlflow_artifact_gc", "init", "--backend-store-uri", any_db_uri]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=CHECKOUT)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60) for process in both]

    assert [process.returncode for process in both] == [0, 0], said
    assert settings(any_db_uri)["id"] == 1


# Moved, copied, restored


def elsewhere(site: Site, path: Path, *, moved: bool, make_site: Callable[[Site], Site]) -> Site:
    """The same site with its SQLite file copied, or moved, to ``path``."""
    site.close()
    original = site.uri.removeprefix("sqlite:///")
    if moved:
        shutil.move(original, path)
    else:
        shutil.copyfile(original, path)
    return make_site(
        Site(
            uri=f"sqlite:///{path}",
            s3=site.s3,
            bucket=site.bucket,
            artifact_root=site.artifact_root,
            objects=dict(site.objects),
        )
    )


def refused(site: Site, *says: str) -> None:
    """``gc`` says why it must not, exits with 1, and touches nothing."""
    before = site.snapshot()
    ran = run("gc", "--backend-store-uri", site.uri, "--yes", *NOW)
    assert ran.code == 1, ran.out
    assert ran.err.count("Error: ") == 1, ran.err + ran.out
    for words in says:
        assert words in ran.err
    assert site.snapshot() == before


def swept_once(site: Site) -> None:
    """Sets the site up and sweeps a run, so that its root has a marker."""
    run_id = deleted_run(site)
    init(site)
    assert outcomes(gc(site)) == {run_id: "swept"}


def test_a_moved_database_is_adopted(moto_site: Site, tmp_path: Path, make_site: Callable[[Site], Site]) -> None:
    """After a move gc and init refuse with the command to run, and go on after it."""
    swept_once(moto_site)
    run_id = deleted_run(moto_site)
    moved = elsewhere(moto_site, tmp_path / "moved.db", moved=True, make_site=make_site)

    refused(moved, "copy, or it was moved", "init --adopt")
    plain = run("init", "--backend-store-uri", moved.uri)
    assert (plain.code, "init --adopt" in plain.err) == (1, True)
    adopted = plain_init(moved.uri, "--adopt").out
    assert f"adopted: s3://{moved.bucket}/mlruns/ (epoch 2)" in adopted
    before = moved.snapshot()
    report = gc(moved)
    assert outcomes(report) == {run_id: "swept"}
    assert_bucket_sound(moved, report, before)


def test_the_original_refuses_after_a_copy_was_adopted(
    moto_site: Site, tmp_path: Path, make_site: Callable[[Site], Site]
) -> None:
    """Only one of two copies may sweep: the one that adopted the roots last."""
    swept_once(moto_site)
    deleted_run(moto_site)
    copy = elsewhere(moto_site, tmp_path / "copy.db", moved=False, make_site=make_site)
    refused(copy, "init --adopt")
    init(copy, "--adopt")

    refused(moto_site, "marker object", "init --adopt")


def test_a_copy_that_pretends_to_be_the_original(moto_site: Site, tmp_path: Path) -> None:
    """A database put back to an older copy of itself, at its own place, stops at the marker's epoch."""
    swept_once(moto_site)
    path = Path(moto_site.uri.removeprefix("sqlite:///"))
    run_id = deleted_run(moto_site)
    moto_site.close()
    shutil.copyfile(path, tmp_path / "backup.db")
    assert outcomes(gc(moto_site)) == {run_id: "swept"}
    moto_site.close()
    shutil.copyfile(tmp_path / "backup.db", path)
    del moto_site.__dict__["engine"]
    live = moto_site.run(moto_site.experiment(), n_objects=1)
    again = deleted_run(moto_site)

    refused(moto_site, "ahead of this database", "restored from a backup", "init --adopt")
    assert "epoch 3" in init(moto_site, "--adopt").out
    before = moto_site.snapshot()
    report = gc(moto_site)
    assert outcomes(report) == {run_id: "empty", again: "swept"}
    assert_bucket_sound(moto_site, report, before, intact=[live])


def test_a_clone_on_postgresql_stops(
    pg: PostgresServer, pg_uri: str, moto_s3: S3Server, moto_bucket: str, make_site: Callable[[Site], Site]
) -> None:
    """A clone under another name on the same server is another database: it does not purge production."""
    site = make_site(Site.direct(pg_uri, moto_s3, moto_bucket))
    swept_once(site)
    deleted_run(site)
    site.close()
    name = pg_uri.partition("?")[0].rpartition("/")[2]
    # A database that somebody is connected to cannot be cloned.
    pg.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    clone_uri = pg.create_database(f"{name}_clone", template=name)
    clone = make_site(Site(uri=clone_uri, s3=moto_s3, bucket=moto_bucket, artifact_root=site.artifact_root))
    refused(clone, "copy, or it was moved", "init --adopt")
    clone.close()
    pg.drop_database(f"{name}_clone")


def test_a_root_of_another_database(moto_site: Site) -> None:
    """Under another database's marker nothing is touched: its outcome is foreign, the exit code 0, no adoption."""
    swept_once(moto_site)
    executed = sqlite3.connect(moto_site.uri.removeprefix("sqlite:///"))
    with executed:
        executed.execute("UPDATE artifact_gc_site SET database_id = ?", (ANOTHER_DATABASE,))
    executed.close()
    run_id = deleted_run(moto_site)
    before = moto_site.snapshot()
    report = gc(moto_site)

    assert outcomes(report) == {run_id: "foreign"}
    assert "another tracking database" in report["results"][0]["detail"]
    assert_bucket_sound(moto_site, report, before)
    ran = run("init", "--backend-store-uri", moto_site.uri, "--adopt")
    assert (ran.code, "belongs to another tracking database" in ran.err) == (1, True)
    assert moto_site.snapshot() == before


def test_a_marker_that_is_gone(moto_site: Site) -> None:
    """Where our marker was and is no more, perhaps the bucket was replaced: gc stops until the root is adopted."""
    swept_once(moto_site)
    deleted_run(moto_site)
    moto_site.client.delete_object(Bucket=moto_site.bucket, Key=f"mlruns/{MARKER_NAME}")

    refused(moto_site, "marker object", "is gone", "init --adopt")


def test_adopting_where_s3_does_not_answer(
    moto_site: Site, tmp_path: Path, make_site: Callable[[Site], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adoption that fails half-way is told, and leaves a database that still refuses to sweep."""
    swept_once(moto_site)
    deleted_run(moto_site)
    moved = elsewhere(moto_site, tmp_path / "moved.db", moved=True, make_site=make_site)
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        ran = run("init", "--backend-store-uri", moved.uri, "--adopt")
        assert (ran.code, "credentials" in ran.err) == (1, True)

    refused(moved, "init --adopt")
