"""What the hook notes of every way in which MLflow deletes, restores and registers, on both databases.

The stores are MLflow's own, by MLflow's registries and the entry points of the installed package.
"""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from mlflow_artifact_gc import database
from tests.abilities import has, need, needs
from tests.hooked import ROOT, Hooked, Noted, failing_commits, statements
from tests.site import delete_traces, writing

_FUTURE_MS = 2**52
_WORKSPACE = "team-a"


@pytest.fixture
def hooked(any_db_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """A database of each kind, opted in."""
    yield from _made(any_db_uri, monkeypatch)


@pytest.fixture
def either(db_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """The same in a file and on one server."""
    yield from _made(db_uri, monkeypatch)


@pytest.fixture
def on_mariadb(maria_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    """On MariaDB alone."""
    yield from _made(maria_uri, monkeypatch)


def _made(uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooked]:
    monkeypatch.setenv("MLFLOW_ARTIFACT_GC_WORKER", "off")
    # Where MLflow's registry asks for logged models.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    made = Hooked(uri=uri).init()
    yield made
    made.close()


class Step(NamedTuple):
    """Something to do: by which store, what, and what the inbox holds afterwards."""

    store: str
    do: Callable[[Any], object]
    expected: Callable[[], list[Noted]]


# Each prepares what it needs and says what to do; what is noted is asked for afterwards.


def _deleted(hooked: Hooked, kind: str, id_: str, experiment: str) -> Noted:
    table, key, date = {
        "run": ("runs", "run_uuid", "deleted_time"),
        "experiment": ("experiments", "experiment_id", "last_update_time"),
        "logged_model": ("logged_models", "model_id", "last_updated_timestamp_ms"),
    }[kind]
    value = int(id_) if kind == "experiment" else id_
    date_ms = hooked.scalar(f"SELECT {date} FROM {table} WHERE {key} = :id", id=value)
    assert date_ms
    return Noted("deleted", kind, id_, experiment, deleted_ms=date_ms)


def delete_run(hooked: Hooked) -> Step:
    """One of two."""
    experiment = hooked.experiment()
    run, _ = hooked.run(experiment), hooked.run(experiment)
    return Step("store", lambda store: store.delete_run(run), lambda: [_deleted(hooked, "run", run, experiment)])


def delete_run_again(hooked: Hooked) -> Step:
    """MLflow allows it and sets a new date."""
    experiment = hooked.experiment()
    run = hooked.run(experiment)
    hooked.store.delete_run(run)
    hooked.execute("UPDATE runs SET deleted_time = 1 WHERE run_uuid = :id", id=run)
    return Step("store", lambda store: store.delete_run(run), lambda: [_deleted(hooked, "run", run, experiment)])


def restore_run(hooked: Hooked) -> Step:
    """One that was deleted."""
    experiment = hooked.experiment()
    run = hooked.run(experiment)
    hooked.store.delete_run(run)
    return Step("store", lambda store: store.restore_run(run), lambda: [Noted("restored", "run", run, experiment)])


def _experiment_with_runs(hooked: Hooked) -> str:
    experiment = hooked.experiment()
    numbers = itertools.count(uuid.uuid4().int >> 8 << 8)
    with pytest.MonkeyPatch.context() as patched:
        # The newest MLflow updates them as they were made, an old one by their ids: the same one is always the last.
        patched.setattr(uuid, "uuid4", lambda: uuid.UUID(int=next(numbers)))
        runs = [hooked.run(experiment) for _ in range(3)]
    if has("logged_models"):
        hooked.model(experiment, runs[0])
    hooked.store.delete_run(runs[2])
    return experiment


def delete_experiment(hooked: Hooked) -> Step:
    """With runs, one of them deleted before: one row."""
    experiment = _experiment_with_runs(hooked)
    return Step(
        "store",
        lambda store: store.delete_experiment(experiment),
        lambda: [_deleted(hooked, "experiment", experiment, experiment)],
    )


def restore_experiment(hooked: Hooked) -> Step:
    """All its runs come back with it: one row."""
    experiment = _experiment_with_runs(hooked)
    hooked.store.delete_experiment(experiment)
    return Step(
        "store",
        lambda store: store.restore_experiment(experiment),
        lambda: [Noted("restored", "experiment", experiment, experiment)],
    )


def delete_default_experiment(hooked: Hooked) -> Step:
    """Number 0."""
    assert hooked.store.get_experiment("0").lifecycle_stage == "active"
    return Step("store", lambda store: store.delete_experiment("0"), lambda: [_deleted(hooked, "experiment", "0", "0")])


def delete_logged_model(hooked: Hooked) -> Step:
    """MLflow commits within its own session there."""
    experiment = hooked.experiment()
    model = hooked.model(experiment)
    return Step(
        "store",
        lambda store: store.delete_logged_model(model),
        lambda: [_deleted(hooked, "logged_model", model, experiment)],
    )


def hard_delete_run(hooked: Hooked) -> Step:
    """A bulk statement."""
    experiment = hooked.experiment()
    run, _ = hooked.run(experiment), hooked.run(experiment)
    hooked.store.delete_run(run)
    noted = [Noted("hard-deleted", "run", run, experiment, hooked.workspace, hooked.uri_of(run))]
    return Step("store", lambda store: store._hard_delete_run(run), lambda: noted)


def hard_delete_experiment(hooked: Hooked) -> Step:
    """Runs, logged models and traces go with it, deleted before or not."""
    need("traces_that_go_with_their_experiment")
    experiment, other = hooked.experiment(), hooked.experiment()
    runs = [hooked.run(experiment) for _ in range(2)]
    model, trace = hooked.model(experiment, runs[0]), hooked.trace(experiment)
    hooked.run(other), hooked.model(other), hooked.trace(other)
    hooked.store.delete_experiment(experiment)
    uris = {
        **{("run", run): hooked.uri_of(run) for run in runs},
        ("logged_model", model): hooked.model_uri(model),
        ("trace", trace): hooked.trace_uri(trace),
    }
    noted = [Noted("hard-deleted", *entity, experiment, hooked.workspace, uri) for entity, uri in uris.items()]
    return Step("store", lambda store: store._hard_delete_experiment(experiment), lambda: noted)


def hard_delete_experiment_of_runs(hooked: Hooked) -> Step:
    """The same, as an MLflow of every age can do it."""
    experiment, other = hooked.experiment(), hooked.experiment()
    runs = [hooked.run(experiment) for _ in range(2)]
    hooked.run(other)
    hooked.store.delete_experiment(experiment)
    noted = [Noted("hard-deleted", "run", run, experiment, hooked.workspace, hooked.uri_of(run)) for run in runs]
    return Step("store", lambda store: store._hard_delete_experiment(experiment), lambda: noted)


def hard_delete_logged_model(hooked: Hooked) -> Step:
    """Nothing of MLflow's is written before our row: on SQLite we open the transaction."""
    need("gc_of_logged_models")
    experiment = hooked.experiment()
    model, _ = hooked.model(experiment), hooked.model(experiment)
    hooked.store.delete_logged_model(model)
    noted = [Noted("hard-deleted", "logged_model", model, experiment, hooked.workspace, hooked.model_uri(model))]
    return Step("store", lambda store: store._hard_delete_logged_model(model), lambda: noted)


def delete_traces_by_id(hooked: Hooked) -> Step:
    """Two of three."""
    experiment = hooked.experiment()
    traces = [hooked.trace(experiment) for _ in range(3)]
    noted = [
        Noted("hard-deleted", "trace", trace, experiment, hooked.workspace, hooked.trace_uri(trace))
        for trace in traces[:2]
    ]
    return Step("store", lambda store: delete_traces(store, experiment, traces[:2]), lambda: noted)


def delete_traces_by_date(hooked: Hooked) -> Step:
    """The oldest."""
    experiment = hooked.experiment()
    traces = [hooked.trace(experiment) for _ in range(3)]
    for age, trace in enumerate(traces):
        hooked.execute("UPDATE trace_info SET timestamp_ms = :ms WHERE request_id = :id", ms=1000 - age, id=trace)
    noted = [Noted("hard-deleted", "trace", traces[2], experiment, hooked.workspace, hooked.trace_uri(traces[2]))]

    def do(store: Any) -> int:
        found: int = store.delete_traces(experiment, max_timestamp_millis=2000, max_traces=1)
        return found

    return Step("store", do, lambda: noted)


def delete_archived_trace(hooked: Hooked) -> Step:
    """Its payload lies elsewhere: both places are noted."""
    need("trace_archives")
    archive = Path(str(os.environ["PYTEST_ARCHIVE"])) / uuid.uuid4().hex
    archive.mkdir(parents=True)
    (archive / "traces.pb").write_bytes(b"spans")
    experiment = hooked.experiment()
    trace = hooked.trace(experiment)
    for key, value in (
        ("mlflow.trace.archiveLocation", archive.as_uri()),
        ("mlflow.trace.spansLocation", "ARCHIVE_REPO"),
    ):
        hooked.execute("DELETE FROM trace_tags WHERE request_id = :id AND trace_tags.key = :key", id=trace, key=key)
        hooked.execute("INSERT INTO trace_tags VALUES (:key, :v, :id)", id=trace, key=key, v=value)
    noted = [
        Noted("hard-deleted", "trace", trace, experiment, hooked.workspace, uri)
        for uri in (hooked.trace_uri(trace), archive.as_uri())
    ]

    def do(store: Any) -> None:
        (archive / "traces.pb").write_bytes(b"spans")
        delete_traces(store, experiment, [trace])

    return Step("store", do, lambda: noted)


def _model_name(hooked: Hooked) -> str:
    name = f"model-{uuid.uuid4().hex[:8]}"
    hooked.registry.create_registered_model(name)
    return name


def create_model_version(hooked: Hooked) -> Step:
    """What it points at is looked up among the intents."""
    name, run = _model_name(hooked), hooked.run(hooked.experiment())
    source = f"{hooked.uri_of(run)}/model"
    return Step(
        "registry",
        lambda registry: registry.create_model_version(name, source),
        lambda: [Noted("registered", "model_version", f"{name}/1")],
    )


def delete_model_version(hooked: Hooked) -> Step:
    """MLflow keeps the row and redacts it."""
    name = _model_name(hooked)
    hooked.version(name, f"{ROOT}/1/model")
    hooked.registry.set_registered_model_alias(name, "champion", "1")
    return Step(
        "registry",
        lambda registry: registry.delete_model_version(name, "1"),
        lambda: [Noted("deleted", "model_version", f"{name}/1")],
    )


def delete_registered_model(hooked: Hooked) -> Step:
    """Its versions go with it: one row."""
    name = _model_name(hooked)
    for number in range(3):
        hooked.version(name, f"{ROOT}/{number}/model")
    hooked.registry.delete_model_version(name, "2")
    return Step(
        "registry",
        lambda registry: registry.delete_registered_model(name),
        lambda: [Noted("deleted", "registered_model", name)],
    )


STEPS = (
    delete_run,
    delete_run_again,
    restore_run,
    delete_experiment,
    restore_experiment,
    delete_default_experiment,
    delete_logged_model,
    hard_delete_run,
    hard_delete_experiment,
    hard_delete_experiment_of_runs,
    hard_delete_logged_model,
    delete_traces_by_id,
    delete_traces_by_date,
    delete_archived_trace,
    create_model_version,
    delete_model_version,
    delete_registered_model,
)
_REPEATABLE = tuple(step for step in STEPS if step is not delete_default_experiment)


@pytest.fixture(autouse=True)
def _archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ARCHIVE", str(tmp_path))


@pytest.mark.parametrize("prepare", STEPS)
def test_it_is_noted(either: Hooked, prepare: Callable[[Hooked], Step]) -> None:
    """Exactly what happened, with MLflow's own dates, and our date by the database's clock."""
    step = prepare(either)
    either.taken()
    with either.engine.connect() as connection:
        before_ms = database.clock_ms(connection)
    step.do(getattr(either, step.store))
    with either.engine.connect() as connection:
        after_ms = database.clock_ms(connection)
        dates = connection.execute(sa.text("SELECT recorded_ms FROM artifact_gc_inbox")).scalars().all()

    assert sorted(either.noted(), key=str) == sorted(step.expected(), key=str)
    assert all(before_ms <= date <= after_ms for date in dates)


@pytest.mark.parametrize("prepare", STEPS)
def test_it_is_committed_with_the_note_or_not_at_all(hooked: Hooked, prepare: Callable[[Hooked], Step]) -> None:
    """MLflow's commit fails after everything was sent: neither the deletion nor the note is there."""
    from mlflow.exceptions import MlflowException

    step = prepare(hooked)
    hooked.taken()
    store, before = getattr(hooked, step.store), hooked.rows()
    with failing_commits(store), pytest.raises(MlflowException, match="no commit today"):
        step.do(store)
    between, noted = hooked.rows(), hooked.noted()
    step.do(store)

    assert (between, noted) == (before, [])
    assert sorted(hooked.noted(), key=str) == sorted(step.expected(), key=str)


@pytest.mark.parametrize("prepare", _REPEATABLE)
def test_it_costs_at_most_three_statements_more(either: Hooked, prepare: Callable[[Hooked], Step]) -> None:
    """MLflow's own statements are the same, in the same order, as those of a store that MLflow built alone."""
    _assert_it_costs_little(either, prepare)


def test_what_it_costs_on_mariadb(on_mariadb: Hooked) -> None:
    """The same, and for what is gone for good one more."""
    for prepare in (delete_run, delete_experiment, hard_delete_run, delete_traces_by_id, create_model_version):
        _assert_it_costs_little(on_mariadb, prepare)


def _assert_it_costs_little(hooked: Hooked, prepare: Callable[[Hooked], Step]) -> None:
    counted, plain = prepare(hooked), prepare(hooked)
    store = getattr(hooked, counted.store)
    alone = hooked.plain if counted.store == "store" else hooked.plain_registry
    hooked.taken()
    with statements(alone) as sent_alone:
        plain.do(alone)
    assert hooked.taken() == []
    with statements(store) as sent:
        counted.do(store)
    ours = [statement for statement in sent if _is_ours(statement)]
    # On MySQL what is gone for good is read by a statement of its own.
    read = [statement for statement in ours if "artifact_gc" not in statement and statement != "BEGIN"]

    assert hooked.taken() != []
    assert len(read) <= (hooked.engine.dialect.name == "mysql")
    theirs = [statement for statement in sent if statement not in ours]
    if hooked.engine.dialect.name == "mysql":  # it gives an experiment's runs in the order of their random ids
        theirs, sent_alone = sorted(theirs), sorted(sent_alone)
    assert theirs == sent_alone
    # A registration also asks whether what it points at is being swept.
    assert 2 <= len(ours) - len(read) <= (4 if prepare is create_model_version else 3)


def _is_ours(statement: str) -> bool:
    return "artifact_gc" in statement or "'hard-deleted'" in statement or statement == "BEGIN"


def test_what_deletes_nothing_costs_and_notes_nothing(hooked: Hooked) -> None:
    """Not a single statement more."""
    from mlflow.entities import ExperimentTag, Metric, Param, RunStatus, RunTag

    experiment = hooked.experiment()
    run, trace = hooked.run(experiment), hooked.trace(experiment)
    name = _model_name(hooked)
    for number in range(2):
        hooked.version(name, f"{ROOT}/{number}")
    hooked.registry.delete_model_version(name, "2")
    hooked.taken()
    with statements(hooked.store) as sent, statements(hooked.registry) as sent_by_registry:
        hooked.store.rename_experiment(experiment, "renamed")
        hooked.store.set_experiment_tag(experiment, ExperimentTag("a", "b"))
        hooked.store.log_batch(run, [Metric("m", 1.0, 1, 1)], [Param("p", "1")], [RunTag("t", "1")])
        hooked.store.delete_tag(run, "t")
        hooked.store.update_run_info(run, RunStatus.FINISHED, 2, "other")
        hooked.store.restore_run(run)
        hooked.store.set_trace_tag(trace, "a", "b")
        hooked.store.delete_trace_tag(trace, "a")
        hooked.registry.transition_model_version_stage(name, "1", "Production", archive_existing_versions=False)
        hooked.registry.update_model_version(name, "1", "new words")
        hooked.registry.rename_registered_model(name, f"{name}-new")

    assert hooked.noted() == []
    assert [statement for statement in sent + sent_by_registry if "artifact_gc" in statement] == []


def test_finishing_a_logged_model_costs_and_notes_nothing(hooked: Hooked) -> None:
    """The same of what only an MLflow with logged models can do."""
    model = hooked.model(hooked.experiment())
    from mlflow.entities import LoggedModelStatus

    hooked.taken()
    with statements(hooked.store) as sent:
        hooked.store.finalize_logged_model(model, LoggedModelStatus.READY)

    assert hooked.noted() == []
    assert [statement for statement in sent if "artifact_gc" in statement] == []


def test_deleting_an_experiment_of_many_runs_adds_one_row(either: Hooked) -> None:
    """And so does restoring it. Here they are 2,000, as MLflow takes long; benchmarks.hook does it with 10,000."""
    experiment, runs = _with_many_runs(either, 2_000)
    either.store.delete_experiment(experiment)
    deleted = either.taken()
    either.store.restore_experiment(experiment)
    restored = either.taken()

    assert [(note.event, note.kind, note.id) for note in deleted] == [("deleted", "experiment", experiment)]
    assert [(note.event, note.kind, note.id) for note in restored] == [("restored", "experiment", experiment)]
    assert either.scalar("SELECT COUNT(*) FROM runs WHERE lifecycle_stage = 'active'") == len(runs)


def _with_many_runs(hooked: Hooked, count: int) -> tuple[str, list[str]]:
    experiment = hooked.experiment()
    runs = [uuid.uuid4().hex for _ in range(count)]
    with hooked.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO runs (run_uuid, name, source_type, status, experiment_id, lifecycle_stage, artifact_uri,"
                " start_time) VALUES (:id, 'n', 'LOCAL', 'FINISHED', :experiment, 'active', :uri, 1)"
            ),
            [{"id": run, "experiment": int(experiment), "uri": f"{ROOT}/{run}/artifacts"} for run in runs],
        )
    return experiment, runs


@needs("workspaces")
def test_a_workspace_that_is_deleted_with_all_it_holds(any_db_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another store of MLflow's deletes it: what it held is noted, what others hold is not; all or nothing."""
    from mlflow.entities.workspace import Workspace, WorkspaceDeletionMode
    from mlflow.exceptions import MlflowException
    from mlflow.utils.workspace_context import WorkspaceContext

    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    monkeypatch.setenv("MLFLOW_WORKSPACE_STORE_URI", any_db_uri)
    hooked = Hooked(uri=any_db_uri).init()
    hooked.workspaces.create_workspace(Workspace(name=_WORKSPACE))
    with WorkspaceContext("default"):
        hooked.run(hooked.experiment())
    with WorkspaceContext(_WORKSPACE):
        experiment, empty = hooked.experiment(), hooked.experiment()
        run, model, trace = hooked.run(experiment), hooked.model(experiment), hooked.trace(experiment)
        hooked.store.delete_experiment(experiment)
        name = _model_name(hooked)
        hooked.version(name, f"{ROOT}/x")
    expected = [
        Noted("hard-deleted", "run", run, experiment, _WORKSPACE, hooked.uri_of(run)),
        Noted("hard-deleted", "logged_model", model, experiment, _WORKSPACE, hooked.model_uri(model)),
        Noted("hard-deleted", "trace", trace, experiment, _WORKSPACE, hooked.trace_uri(trace)),
        Noted("deleted", "registered_model", name),
    ]
    hooked.taken()
    before = hooked.rows()
    with failing_commits(hooked.workspaces), pytest.raises(MlflowException, match="no commit today"):
        hooked.workspaces.delete_workspace(_WORKSPACE, WorkspaceDeletionMode.CASCADE)
    between, nothing = hooked.rows(), hooked.noted()
    with statements(hooked.workspaces) as sent:
        hooked.workspaces.delete_workspace(_WORKSPACE, WorkspaceDeletionMode.CASCADE)
    noted = hooked.noted()
    hooked.close()

    assert (between, nothing) == (before, [])
    assert sorted(noted, key=str) == sorted(expected, key=str)
    assert empty != experiment
    # MLflow flushes each registered model and each experiment by itself.
    assert len([one for one in sent if "artifact_gc" in one or one == "BEGIN"]) <= 3 * 3  # and a SELECT on MySQL


def test_many_experiments_that_go_at_once(hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their ids are named in portions, and none is forgotten or noted twice."""
    from mlflow.store.tracking.dbmodels.models import SqlExperiment

    from mlflow_artifact_gc.hook import recorder

    monkeypatch.setattr(recorder, "_KEYS", 2)
    runs = [hooked.run(hooked.experiment()) for _ in range(5)]
    with writing(hooked.store) as session:
        for experiment in session.query(SqlExperiment).filter(SqlExperiment.experiment_id > 0):
            session.delete(experiment)

    assert sorted(note.id for note in hooked.noted()) == sorted(runs)


class TestWhatIsBeingSwept:
    """A registration of what is on its way out is refused; whatever else is the case, it passes."""

    @staticmethod
    def _model_of(hooked: Hooked) -> tuple[str, str, str]:
        run = hooked.run(hooked.experiment())
        return _model_name(hooked), run, f"{hooked.uri_of(run)}/model"

    def test_it_is_refused(self, hooked: Hooked) -> None:
        """With a message that says why; nothing is registered or noted. What others sweep is no matter."""
        from mlflow.exceptions import MlflowException

        name, run, source = self._model_of(hooked)
        _, _, other = self._model_of(hooked)
        hooked.intent("run", run, "sweeping", _FUTURE_MS)
        hooked.taken()
        before = hooked.rows()
        with pytest.raises(MlflowException, match=f"run {run} are being removed") as refused:
            hooked.registry.create_model_version(name, source)
        after, noted = hooked.rows(), hooked.noted()
        hooked.registry.create_model_version(name, other)

        assert refused.value.error_code == "RESOURCE_CONFLICT"
        assert (after, noted) == (before, [])
        assert hooked.noted() == [Noted("registered", "model_version", f"{name}/1")]

    def test_a_logged_model_by_its_id(self, hooked: Hooked) -> None:
        """``models:/m-…``: MLflow asks for its location, which holds the id too."""
        from mlflow.exceptions import MlflowException

        name, model = _model_name(hooked), hooked.model(hooked.experiment())
        hooked.intent("logged_model", model, "sweeping", _FUTURE_MS)
        with pytest.raises(MlflowException, match=f"logged model {model} are being removed"):
            hooked.registry.create_model_version(name, f"models:/{model}")

    @pytest.mark.parametrize(
        ("state", "until_ms"),
        [("sweeping", 1), ("sweeping", None), ("pending", None), ("claimed", _FUTURE_MS), ("swept", None)],
    )
    def test_it_passes(self, either: Hooked, state: str, until_ms: int | None) -> None:
        """Its claim has run out, or nobody sweeps it at this moment."""
        name, run, source = self._model_of(either)
        either.intent("run", run, state, until_ms)
        either.taken()
        either.registry.create_model_version(name, source)

        assert either.noted() == [Noted("registered", "model_version", f"{name}/1")]

    def test_it_passes_where_the_intents_cannot_be_read(self, hooked: Hooked) -> None:
        """Then the fence has to see it."""
        name, run, source = self._model_of(hooked)
        hooked.intent("run", run, "sweeping", _FUTURE_MS)
        hooked.execute("ALTER TABLE artifact_gc_intents RENAME TO artifact_gc_elsewhere")
        hooked.registry.create_model_version(name, source)

        assert hooked.scalar("SELECT COUNT(*) FROM model_versions WHERE name = :name", name=name) == 1


class TestMlflowsOwn:
    """The stores are those that MLflow would have built."""

    def test_classes(self, hooked: Hooked) -> None:
        """MLflow's server asks with ``isinstance``, and some callers for the very class."""
        assert type(hooked.store) is type(hooked.plain)
        assert type(hooked.registry) is type(hooked.plain_registry)
        assert hooked.store.ManagedSessionMaker.__module__ == "mlflow_artifact_gc.hook.recorder"
        assert hooked.registry.ManagedSessionMaker.__module__ == "mlflow_artifact_gc.hook.recorder"
        assert hooked.plain.ManagedSessionMaker.__module__ == "mlflow.store.db.utils"

    @needs("workspaces")
    def test_classes_with_workspaces(self, db_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of all three stores."""
        monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
        monkeypatch.setenv("MLFLOW_WORKSPACE_STORE_URI", db_uri)
        hooked = Hooked(uri=db_uri)
        found = [type(one).__name__ for one in (hooked.store, hooked.registry, hooked.workspaces)]
        hooked.close()

        assert found == ["WorkspaceAwareSqlAlchemyStore", "WorkspaceAwareSqlAlchemyStore", "SqlAlchemyStore"]

    def test_the_artifact_root_of_a_client(
        self, sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without one MLflow decides: it takes the server's from the environment, or (2.22) a folder."""
        from mlflow.tracking._tracking_service import utils

        monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "s3://from/the/environment")
        monkeypatch.chdir(tmp_path)
        another = f"sqlite:///{shutil.copyfile(sqlite_uri.removeprefix('sqlite:///'), tmp_path / 'another.db')}"
        ours, alone = Hooked(uri=sqlite_uri), Hooked(uri=another)
        stores = [ours._kept(utils._get_store(sqlite_uri)), alone._kept(utils._get_sqlalchemy_store(another, None))]
        location, mlflows = (store.get_experiment("0").artifact_location for store in stores)
        ours.close()
        alone.close()

        assert location == mlflows

    @needs("read_replicas")
    def test_the_servers_stores_read_from_its_replica(
        self, sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As MLflow's own server does; deletions and notes go to the primary. The client's registry has no replica."""
        from mlflow.server import handlers

        hooked = Hooked(uri=sqlite_uri).init()
        run = hooked.run(hooked.experiment())
        shutil.copyfile(sqlite_uri.removeprefix("sqlite:///"), tmp_path / "replica.db")
        replica = Hooked(uri=f"sqlite:///{tmp_path / 'replica.db'}")
        monkeypatch.setenv("_MLFLOW_SERVER_READ_REPLICA_BACKEND_STORE", replica.uri)
        store = hooked._kept(handlers._tracking_store_registry.get_store(sqlite_uri, ROOT))
        registry = hooked._kept(handlers._model_registry_store_registry.get_store(sqlite_uri))
        store.delete_run(run)
        stages = [one.scalar("SELECT lifecycle_stage FROM runs") for one in (hooked, replica)]
        noted = [[note.id for note in one.noted()] for one in (hooked, replica)]
        for one in (store, registry):
            one.read_engine.dispose()
            type(one)._engine_map.pop(replica.uri, None)
        clients_replica = hooked.store.read_engine
        replica.close()
        hooked.close()

        assert [str(one.read_engine.url) for one in (store, registry)] == [replica.uri] * 2
        assert clients_replica is None
        assert (stages, noted) == (["deleted", "active"], [[run], []])
