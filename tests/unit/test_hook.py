"""How the hook hangs on MLflow's sessions, by makers of both kinds, and what ``import mlflow`` pays for it."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from mlflow_artifact_gc import inbox
from mlflow_artifact_gc.hook.recorder import Recorder
from mlflow_artifact_gc.inbox import Event, Subject
from mlflow_artifact_gc.tables import inbox as inbox_table
from mlflow_artifact_gc.tables import metadata

CHECKOUT = Path(__file__).resolve().parents[2]
_MAX_IMPORT_MS = 5.0


class _Base(DeclarativeBase):
    pass


class _Run(_Base):
    """As MLflow 2.22 declares it, as far as the hook looks."""

    __tablename__ = "runs"
    run_uuid: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    experiment_id: Mapped[int]
    artifact_uri: Mapped[str]
    lifecycle_stage: Mapped[str]
    deleted_time: Mapped[int | None]


class _Experiment(_Base):
    """Without workspaces, and without logged models and traces beside it."""

    __tablename__ = "experiments"
    experiment_id: Mapped[int] = mapped_column(primary_key=True)
    lifecycle_stage: Mapped[str]


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    """Tables as old as they come, in memory, with one run."""
    made = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    _Base.metadata.create_all(made)
    metadata.create_all(made)
    with Session(made) as session:
        session.add(_Experiment(experiment_id=1, lifecycle_stage="active"))
        session.add(_Run(run_uuid="r", experiment_id=1, artifact_uri="s3://b/r", lifecycle_stage="active"))
        session.commit()
    yield made
    made.dispose()


def _old_maker(engine: sa.Engine) -> Callable[..., Any]:
    """MLflow before 3.13: every session may write."""

    @contextmanager
    def make() -> Iterator[Session]:
        with Session(engine) as session:
            yield session
            session.commit()

    return make


def _new_maker(engine: sa.Engine) -> Callable[..., Any]:
    """Since then: a session only reads, unless it says otherwise."""

    @contextmanager
    def make(read_only: bool = True) -> Iterator[Session]:  # noqa: FBT001, FBT002 - MLflow's own
        with Session(engine) as session:
            session.info["read_only"] = read_only
            yield session
            session.commit()

    return make


def _watched(maker: Callable[..., Any]) -> Any:
    store = SimpleNamespace(ManagedSessionMaker=maker)
    Recorder().watch(store)
    return store.ManagedSessionMaker


def _delete_run(make: Callable[..., Any], *args: object, **kwargs: object) -> None:
    with make(*args, **kwargs) as session:
        run = session.get(_Run, "r")
        run.lifecycle_stage, run.deleted_time = "deleted", 7


def _noted(engine: sa.Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row)[1:8] for row in connection.execute(sa.select(inbox_table))]


_DELETED = [("deleted", "run", "r", "1", None, None, 7)]


def test_a_maker_that_takes_nothing(engine: sa.Engine) -> None:
    """2.22: every session is watched."""
    _delete_run(_watched(_old_maker(engine)))

    assert _noted(engine) == _DELETED


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((), {"read_only": False}, _DELETED),
        ((False,), {}, _DELETED),
        ((), {"read_only": 0}, _DELETED),
        ((), {"read_only": True}, []),
        ((True,), {}, []),
        ((), {}, []),
    ],
)
def test_a_maker_that_knows_readers(
    engine: sa.Engine, args: tuple[Any, ...], kwargs: dict[str, Any], expected: list[Any]
) -> None:
    """Sessions that only read are left alone: they may go to a replica. MLflow's maker gets what it was given."""
    make = _watched(_new_maker(engine))
    with make(*args, **kwargs) as session:
        assert session.info["read_only"] == (args[0] if args else kwargs.get("read_only", True))
    _delete_run(make, *args, **kwargs)

    assert _noted(engine) == expected


def test_what_a_session_raises_reaches_mlflows_maker(engine: sa.Engine) -> None:
    """It rolls back and turns the error into its own."""
    seen: list[str] = []

    @contextmanager
    def maker() -> Iterator[Session]:
        with Session(engine) as session:
            try:
                yield session
            except ValueError as error:
                seen.append(str(error))
                session.rollback()
                raise RuntimeError("MLflow's own") from error

    def use() -> None:
        with _watched(maker)() as session:
            session.get(_Run, "r").lifecycle_stage = "deleted"
            session.flush()
            raise ValueError("the user's")

    with pytest.raises(RuntimeError, match="MLflow's own"):
        use()

    assert seen == ["the user's"]
    assert _noted(engine) == []


def test_hard_deletions_in_tables_without_workspaces(engine: sa.Engine) -> None:
    """By the ORM, as up to 3.16, and in bulk: the URI is kept, the workspace is not known."""
    make = _watched(_old_maker(engine))
    with make() as session:
        session.add(_Run(run_uuid="q", experiment_id=1, artifact_uri="s3://b/q", lifecycle_stage="deleted"))
    with make() as session:
        session.delete(session.get(_Run, "r"))
    with make() as session:
        session.query(_Run).filter(_Run.run_uuid == "q").delete(synchronize_session=False)

    assert _noted(engine) == [("hard-deleted", "run", id_, "1", None, f"s3://b/{id_}", None) for id_ in ("r", "q")]


def test_runs_that_go_by_the_databases_cascade(engine: sa.Engine) -> None:
    """Of an experiment that is deleted for good the session shows nothing else."""
    with _watched(_old_maker(engine))() as session:
        session.delete(session.get(_Experiment, 1))

    assert _noted(engine) == [("hard-deleted", "run", "r", "1", None, "s3://b/r", None)]


def test_a_store_without_such_a_maker(caplog: pytest.LogCaptureFixture) -> None:
    """An MLflow that has renamed it: its store is as it was, and one ERROR says that nothing is recorded."""
    from mlflow_artifact_gc.hook import stores

    store = SimpleNamespace()
    stores.attend(store)

    assert vars(store) == {}
    assert [record.levelname for record in caplog.records] == ["ERROR"]


@pytest.mark.parametrize("count", [1, 2, 500, 501, 1000, 1001])
def test_no_note_is_a_plain_insert_of_one_row(count: int) -> None:
    """On a full disk SQLite would roll MLflow's whole transaction back; and no note is forgotten."""
    ids = [f"run-{number:04}" for number in range(count)]
    made = inbox.notes("sqlite", [inbox.note(Event.DELETED, Subject.RUN, id_) for id_ in ids])
    engine = sa.create_engine("sqlite://")
    metadata.create_all(engine)
    texts = [str(one.compile(engine)) for one in made]
    with engine.begin() as connection:
        for one in made:
            connection.execute(one)
        found = connection.scalars(sa.select(inbox_table.c.entity_id).order_by(inbox_table.c.entity_id)).all()
    engine.dispose()

    assert found == ids
    assert [text for text in texts if "SELECT" not in text and text.count("(?") == 1] == []


_IMPORT = """
import __future__, sys, time
before = set(sys.modules)
started = time.process_time()
from mlflow_artifact_gc.hook import model_registry_store, tracking_store, workspace_store
print(1000 * (time.process_time() - started))
print(sorted(set(sys.modules) - before))
"""


def test_loading_the_entry_points_takes_no_time() -> None:
    """``import mlflow`` loads them everywhere: two small modules of ours, and nothing else."""
    times_ms = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True, cwd=CHECKOUT
        ).stdout.splitlines()
        times_ms.append(float(done[0]))

    assert done[1] == "['mlflow_artifact_gc', 'mlflow_artifact_gc.hook']"
    assert statistics.median(times_ms) < _MAX_IMPORT_MS, times_ms
