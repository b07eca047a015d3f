"""How many requests are under way at a time: fewer when the server is busy, more again when it is not.

Counted where a request goes out, each of botocore's repetitions too, so one client's threads share one pace. It begins
at the most, because a server that can bear it should not have to wait, and while botocore sleeps before a repetition
its place is free.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mlflow_artifact_gc.s3.errors import THROTTLED, THROTTLED_STATUS
from mlflow_artifact_gc.s3.parsing import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3.client import S3Client

_REFUSED_FACTOR: Final = 0.5
_SLOW_FACTOR: Final = 0.8
_SLOW: Final = 4
"""So many times as long as this operation usually takes is slow,"""
_SLOW_FROM_S: Final = 1.0
"""but nothing below it: a DeleteObjects of a thousand keys takes longer than one of ten."""
_WEIGHT: Final = 1 / 32
"""Of the latest request in what an operation usually takes."""
_GIVEN_UP_S: Final = 120.0
"""Longer than the client's timeouts: whoever sent that was interrupted, and nobody waits for it."""
_LOOK_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Request:
    operation: str
    began_s: float


class Pace:
    """Lets ``most`` requests at a time through, or fewer; used by many threads.

    Half as many where a server refuses (429, 503, or these codes for keys of a DeleteObjects) or does not answer at
    all, four fifths where it takes much longer than usual, never less than one; and one more for every so many good
    answers as are under way. What was sent before the last step back tells of the pace before it, and changes nothing.
    """

    def __init__(self, most: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock_s = clock_s
        self._limit = float(most)
        self._stepped_back_s = -1.0
        self._usual_s: dict[str, float] = {}
        self._under_way: dict[int, _Request] = {}
        self._free = threading.Condition()

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return int(self._limit)

    def register(self, client: S3Client) -> None:
        """Every request of ``client`` from now on keeps this pace."""
        events = client.meta.events
        events.register_first("before-send.s3", self._before_send)
        # An answer that cannot be parsed ends here and never gets to the other.
        events.register_first("before-parse.s3", self._before_parse)
        events.register_first("response-received.s3", self._response_received)

    def begin(self, operation: str) -> None:
        """Wait until one more request may go out, and count it as this thread's."""
        me = threading.get_ident()
        with self._free:
            self._under_way.pop(me, None)
            while self._busy() >= self.limit:
                self._free.wait(_LOOK_AGAIN_S)
            self._under_way[me] = _Request(operation, self._clock_s())

    def end(self, *, refused: bool) -> None:
        """This thread's request has an answer, or will not get one. Without one under way nothing happens."""
        with self._free:
            request = self._under_way.pop(threading.get_ident(), None)
            if request is None:
                return
            now_s = self._clock_s()
            if refused:
                self._step_back(request, now_s, _REFUSED_FACTOR)
            elif self._slow(request, now_s - request.began_s):
                self._step_back(request, now_s, _SLOW_FACTOR)
            else:
                self._limit = min(self._most, self._limit + 1 / self._limit)
            self._free.notify_all()

    def refused(self) -> None:
        """What came as a good answer refuses some keys."""
        with self._free:
            now_s = self._clock_s()
            self._step_back(_Request("", now_s), now_s, _REFUSED_FACTOR)

    def _busy(self) -> int:
        since_s = self._clock_s() - _GIVEN_UP_S
        return sum(request.began_s > since_s for request in self._under_way.values())

    def _slow(self, request: _Request, took_s: float) -> bool:
        usual_s = self._usual_s.get(request.operation, took_s)
        self._usual_s[request.operation] = usual_s + _WEIGHT * (took_s - usual_s)
        return took_s > max(_SLOW * usual_s, _SLOW_FROM_S)

    def _step_back(self, request: _Request, now_s: float, factor: float) -> None:
        if request.began_s >= self._stepped_back_s:
            self._limit = max(1.0, self._limit * factor)
            self._stepped_back_s = now_s

    def _before_send(self, event_name: str, **_rest: Any) -> None:
        self.begin(event_name.rpartition(".")[2])

    def _before_parse(self, response_dict: dict[str, Any], **_rest: Any) -> None:
        self.end(refused=response_dict["status_code"] in THROTTLED_STATUS)

    def _response_received(self, parsed_response: dict[str, Any] | None, **_rest: Any) -> None:
        # Nothing is under way any more but what got no answer.
        self.end(refused=True)
        _, errors = (parsed_response or {}).get(ROWS, ((), ()))
        if any(row.code in THROTTLED for row in errors):
            self.refused()
