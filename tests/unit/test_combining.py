"""Questions that many threads ask at once: one answer for all of them, never an older one than the question."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlflow_artifact_gc.combining import Combined

THREADS = 8


def test_those_that_wait_are_answered_together() -> None:
    """The first is answered alone; what comes while it is being answered is one question."""
    begun, may_end = threading.Event(), threading.Event()
    asked: list[list[int]] = []

    def answer(questions: Sequence[int]) -> set[int]:
        asked.append(sorted(questions))
        begun.set()
        assert may_end.wait(10)
        return set(questions)

    combined: Combined[int, set[int]] = Combined(answer)
    with ThreadPoolExecutor(THREADS) as pool:
        first = pool.submit(combined.ask, [0])
        assert begun.wait(10)
        others = [pool.submit(combined.ask, [number]) for number in range(1, THREADS)]
        while len(combined._waiting) < THREADS - 1:
            time.sleep(0.001)
        may_end.set()
        found = [one.result() for one in (first, *others)]

    assert asked == [[0], [*range(1, THREADS)]]
    assert all(number in answered for number, answered in enumerate(found))


def test_an_answer_is_not_older_than_its_question() -> None:
    """What changes before somebody asks is in the answer that he gets, however many ask."""
    clock = 0

    def answer(_questions: Sequence[int]) -> int:
        now = clock
        time.sleep(0.0005)
        return now

    combined: Combined[int, int] = Combined(answer)

    def ask(_number: int) -> bool:
        nonlocal clock
        clock += 1
        before = clock
        return combined.ask([before]) >= before

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(ask, range(500)))


def test_an_error_is_everybody_s_and_not_the_next_one_s() -> None:
    """Those that waited for an answer that failed hear of it; later ones ask anew."""
    fails = True

    def answer(questions: Sequence[int]) -> int:
        if fails:
            raise OSError("no")
        return len(questions)

    combined: Combined[int, int] = Combined(answer)
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            combined.ask([1])
    fails = False
    assert combined.ask([1, 2]) == 2
