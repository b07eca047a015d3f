"""The pace of requests: back on refusals and slowness, up again, never over the cap."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from mlflow_artifact_gc.s3.pace import Pace


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def asked(pace: Pace, clock: Clock, *, took_s: float = 0.1, status: int = 200, what: str = "GET list") -> None:
    """One request from its begin to its end."""
    with pace.request(what) as statuses:
        clock.now_s += took_s
        statuses.append(status)


def test_a_refusal_halves_and_good_answers_climb_to_the_cap() -> None:
    """Never below one, never above what was asked for."""
    clock = Clock()
    pace = Pace(16, clock)
    assert pace.limit == 16
    limits = []
    for _ in range(6):
        asked(pace, clock, status=503)
        limits.append(pace.limit)
    assert limits == [8, 4, 2, 1, 1, 1]
    asked(pace, clock)
    assert pace.limit == 2
    for _ in range(200):
        asked(pace, clock)
    assert pace.limit == 16


def test_refusals_of_one_moment_count_once() -> None:
    """What was sent before the step back tells of the pace before it."""
    clock = Clock()
    pace = Pace(16, clock)
    go = threading.Barrier(5)

    def request() -> None:
        with pace.request("GET list") as statuses:
            go.wait()
            go.wait()
            statuses.append(429)

    threads = [threading.Thread(target=request) for _ in range(4)]
    for thread in threads:
        thread.start()
    go.wait()
    clock.now_s += 1
    go.wait()
    for thread in threads:
        thread.join()
    assert pace.limit == 8


@pytest.mark.parametrize(("took_s", "limit"), [(0.9, 16), (3.0, 12)])
def test_much_longer_than_usual_is_a_sign(took_s: float, limit: int) -> None:
    """Four times as long, and more than a second: fewer. Another operation's time says nothing."""
    clock = Clock()
    pace = Pace(16, clock)
    for _ in range(50):
        asked(pace, clock, took_s=0.1)
    asked(pace, clock, took_s=30, what="POST delete")
    assert pace.limit == 16
    asked(pace, clock, took_s=took_s)
    assert pace.limit == limit
    for _ in range(500):
        asked(pace, clock, took_s=took_s)
    assert pace.limit == 16, "what is usual now is no sign any more"


def test_no_more_than_the_limit_are_under_way() -> None:
    """The next one waits. What is interrupted is under way no more, and counts as refused: nobody has answered."""
    pace = Pace(2, Clock())
    came = threading.Event()

    def request() -> None:
        with pace.request("GET list") as statuses:
            came.set()
            statuses.append(200)

    waiting = threading.Thread(target=request)
    with suppress(KeyboardInterrupt), pace.request("GET list"):
        with pace.request("GET list") as statuses:
            waiting.start()
            assert not came.wait(0.2)
            statuses.append(200)
        assert came.wait(5)
        waiting.join()
        raise KeyboardInterrupt
    assert pace.limit == 1
    came.clear()
    request()
    assert came.is_set()
