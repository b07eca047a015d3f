"""A thousand steps of random histories, against an oracle that knows MLflow's rows and the bucket and not our code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.histories import a_world, run_histories
from tests.waiting_histories import HidingHistory, TaggingHistory, WaitingHistory

STEPS = 1_000
STEPS_THAT_WAIT = 60


@pytest.mark.timeout(600)
def test_random_histories(sqlite_template: Path) -> None:
    """Whatever happens in whatever order: nothing live goes, what is swept is empty, and the journal has it right."""
    with a_world(sqlite_template) as world:
        run_histories(world, STEPS, SEED)

    assert world.steps >= STEPS
    met = {what for what, times in world.did.items() if times}
    expected = {"gc", "worker", "mlflow gc", "crash of gc", "crash of worker", "jump", "restore run", "register"}
    assert expected <= met, "a history that does none of it proves nothing"
    assert world.did["locations swept"] >= STEPS // 50, world.did
    assert world.did["orphaned things gone"], world.did
    assert sum(times for what, times in world.did.items() if what.startswith("killed: ")), world.did
    assert world.did["faults met"] >= STEPS // 200, world.did


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [HidingHistory, TaggingHistory])
def test_random_histories_that_wait_for_s3(sqlite_template: Path, kind: type[WaitingHistory]) -> None:
    """Nothing live or needed is hidden or tagged, or stays so; and what is garbage goes by the bucket's rules."""
    with a_world(sqlite_template) as world:
        run_histories(world, STEPS_THAT_WAIT, SEED, kind, at_a_time=3)

    met = {what for what, times in world.did.items() if times}
    expected = {"midnight", "hidden or tagged", "removed by rules"}
    assert expected <= met, "a history that does none of it proves nothing"
    assert met & {"markers taken off", "tags taken off", "undone"}, world.did
