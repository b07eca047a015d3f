"""How many requests are under way at a time: fewer when the server is busy, more again when it is not.

Counted where a request goes out, each of botocore's repetitions too, so one client's threads share one pace. It begins
at the most, because a server that can bear it should not have to wait, and while botocore sleeps before a repetition
its place is free.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from mlflow_artifact_gc.s3.errors import THROTTLED, THROTTLED_STATUS
from mlflow_artifact_gc.s3.parsing import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mypy_boto3_s3.client import S3Client

_REFUSED_FACTOR: Final = 0.5
_SLOW_FACTOR: Final = 0.8
_SLOW: Final = 4
"""So many times as long as such a request usually takes is slow,"""
_SLOW_FROM_S: Final = 1.0
"""but nothing below it: a DeleteObjects of a thousand keys takes longer than one of ten."""
_WEIGHT: Final = 1 / 32
"""Of the latest request in what such a request usually takes."""


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
        self._under_way = 0
        self._free = threading.Condition()

    @property
    def limit(self) -> int:
        """How many requests may be under way now."""
        return int(self._limit)

    def register(self, client: S3Client) -> None:
        """Every request of ``client`` from now on keeps this pace."""
        # Botocore has no event that surely comes after each request, and this attribute since its beginnings.
        endpoint: Any = client._endpoint  # type: ignore[attr-defined]  # noqa: SLF001
        endpoint.http_session = _Paced(endpoint.http_session, self)
        client.meta.events.register("response-received.s3.DeleteObjects", self._answered)

    @contextmanager
    def request(self, what: str) -> Iterator[list[int]]:
        """Wait until one more request of the kind ``what`` may go out; it is under way until the block is left.

        Its HTTP status is to be appended to what is yielded: without one, nobody has answered.
        """
        with self._free:
            while self._under_way >= self.limit:
                self._free.wait()
            self._under_way += 1
        statuses: list[int] = []
        began_s = self._clock_s()
        try:
            yield statuses
        finally:
            with self._free:
                self._under_way -= 1
                self._learn(what, began_s, refused=not statuses or statuses[0] in THROTTLED_STATUS)
                self._free.notify_all()

    def refused(self) -> None:
        """What came as a good answer refuses some keys."""
        with self._free:
            self._step_back(self._clock_s(), _REFUSED_FACTOR)

    def _learn(self, what: str, began_s: float, *, refused: bool) -> None:
        if refused:
            self._step_back(began_s, _REFUSED_FACTOR)
        elif self._slow(what, self._clock_s() - began_s):
            self._step_back(began_s, _SLOW_FACTOR)
        else:
            self._limit = min(self._most, self._limit + 1 / self._limit)

    def _slow(self, what: str, took_s: float) -> bool:
        usual_s = self._usual_s.get(what, took_s)
        self._usual_s[what] = usual_s + _WEIGHT * (took_s - usual_s)
        return took_s > max(_SLOW * usual_s, _SLOW_FROM_S)

    def _step_back(self, began_s: float, factor: float) -> None:
        if began_s >= self._stepped_back_s:
            self._limit = max(1.0, self._limit * factor)
            self._stepped_back_s = self._clock_s()

    def _answered(self, parsed_response: dict[str, Any] | None, **_rest: Any) -> None:
        _, errors = (parsed_response or {}).get(ROWS, ((), ()))
        if any(row.code in THROTTLED for row in errors):
            self.refused()


class _Paced:
    """In the place of botocore's HTTP session."""

    def __init__(self, session: Any, pace: Pace) -> None:
        self._session = session
        self._pace = pace

    def send(self, request: Any) -> Any:
        # Each operation of S3's has its own first word in the query.
        what = f"{request.method} {request.url.partition('?')[2].partition('=')[0].partition('&')[0]}"
        with self._pace.request(what) as statuses:
            response = self._session.send(request)
            statuses.append(response.status_code)
        return response

    def close(self) -> None:
        self._session.close()
