"""Questions of many threads, answered together: those that come while one is being answered wait for the next answer.

An answer is never older than its question.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")


@dataclass(slots=True)
class _Ticket(Generic[_Question, _Answer]):
    asked: Sequence[_Question]
    answers: list[_Answer] = field(default_factory=list)
    error: BaseException | None = None


class Combined(Generic[_Question, _Answer]):
    """``answer`` gets the questions of everybody who waits, and its answer is everybody's."""

    def __init__(self, answer: Callable[[Sequence[_Question]], _Answer]) -> None:
        self._answer = answer
        self._waiting: list[_Ticket[_Question, _Answer]] = []
        self._queue = threading.Lock()
        self._turn = threading.Lock()

    def ask(self, questions: Sequence[_Question]) -> _Answer:
        """The answer to these questions, and maybe to others. Raises what ``answer`` raises."""
        mine: _Ticket[_Question, _Answer] = _Ticket(questions)
        with self._queue:
            self._waiting.append(mine)
        with self._turn:
            if not mine.answers and mine.error is None:
                self._answer_all()
        if mine.error is not None:
            raise mine.error
        return mine.answers[0]

    def _answer_all(self) -> None:
        with self._queue:
            tickets, self._waiting = self._waiting, []
        try:
            found = self._answer([question for ticket in tickets for question in ticket.asked])
        except BaseException as error:
            for ticket in tickets:
                ticket.error = error
            raise
        for ticket in tickets:
            ticket.answers.append(found)
