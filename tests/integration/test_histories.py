"""A thousand steps of random histories, against an oracle that knows MLflow's rows and the bucket and not our code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import SEED
from tests.histories import World, a_world, run_histories
from tests.waiting_histories import HidingHistory, TaggingHistory, WaitingHistory

STEPS = 1_000
STEPS_THAT_WAIT = 60

Least = Mapping[tuple[str, ...], int]
"""How often something, or one of several things, has to have been done: histories without it prove nothing."""
LEAST: Least = {
    **{(what,): 1 for what in ("gc", "worker", "mlflow gc", "crash of gc", "crash of worker", "orphaned things gone")},
    **{(what,): 1 for what in ("jump", "restore run", "register")},
    tuple(f"killed: {what}" for what in ("request", "statement", "commit", "delete")): 1,
    ("locations swept",): STEPS // 50,
    ("faults met",): STEPS // 200,
}
LEAST_THAT_WAIT: Least = {
    **{(what,): 1 for what in ("midnight", "hidden or tagged", "removed by rules")},
    ("markers taken off", "tags taken off", "undone"): 1,
}


def missing(world: World, least: Least) -> Least:
    """What was done less often than that, and how often."""
    did = {names: sum(world.did[name] for name in names) for names in least}
    return {names: times for names, times in did.items() if times < least[names]}


@pytest.mark.timeout(600)
def test_random_histories(sqlite_template: Path) -> None:
    """Whatever happens in whatever order: nothing live goes, what is swept is empty, and the journal has it right."""
    with a_world(sqlite_template) as world:
        run_histories(world, STEPS, SEED, at_a_time=8, missing=lambda: missing(world, LEAST))

    assert world.steps >= STEPS
    assert not missing(world, LEAST), world.did


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [HidingHistory, TaggingHistory])
def test_random_histories_that_wait_for_s3(sqlite_template: Path, kind: type[WaitingHistory]) -> None:
    """Nothing live or needed is hidden or tagged, or stays so; and what is garbage goes by the bucket's rules."""
    with a_world(sqlite_template) as world:
        run_histories(world, STEPS_THAT_WAIT, SEED, kind, at_a_time=3, missing=lambda: missing(world, LEAST_THAT_WAIT))

    assert world.steps >= STEPS_THAT_WAIT
    assert not missing(world, LEAST_THAT_WAIT), world.did
