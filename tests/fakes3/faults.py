"""What can go wrong with a request, and when: planned, so that a fault that was never met fails the test."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What happens to a request."""

    # Refused: nothing was done.
    INTERNAL_ERROR = "500"
    SLOW_DOWN = "503"
    EMPTY_500 = "500 with an empty body"
    EMPTY_503 = "503 with an empty body"
    DENIED = "AccessDenied"
    EMPTY_403 = "403 with an empty body"
    EXPIRED = "expired credentials"
    RESET = "reset before the effect"
    TIMEOUT = "timeout before the effect"
    # Done, and the answer tells something else, or nothing.
    INTERNAL_ERROR_AFTER = "500 after the effect"
    RESET_AFTER = "reset after the effect"
    TIMEOUT_AFTER = "timeout after the effect"
    TORN = "connection lost in the middle of the answer"
    CUT = "half of the answer's body"
    EMPTY_200 = "200 with an empty body"
    PAGE_OF_HTML = "200 with a page of HTML"
    # Of a listing.
    EMPTY_PAGE = "empty page, and more to come"
    REPEATED_PAGE = "the same page again"
    NO_MARKER = "more to come, and not where"
    # Of single keys in the answer to a DeleteObjects.
    SOME_FAIL = "some keys: InternalError"
    SOME_FAIL_AFTER = "some keys: InternalError after the effect"
    SOME_DENIED = "some keys: AccessDenied"
    SOME_UNTOLD = "some keys: not in the answer"


INSTEAD = {
    Kind.INTERNAL_ERROR: (500, "InternalError"),
    Kind.SLOW_DOWN: (503, "SlowDown"),
    Kind.EMPTY_500: (500, ""),
    Kind.EMPTY_503: (503, ""),
    Kind.DENIED: (403, "AccessDenied"),
    Kind.EMPTY_403: (403, ""),
    Kind.EXPIRED: (400, "ExpiredToken"),
}
"""Status and code of those that answer before anything was done; no code: no body."""
UNANSWERED = frozenset({Kind.RESET, Kind.RESET_AFTER, Kind.TIMEOUT, Kind.TIMEOUT_AFTER})
BEFORE = frozenset({*INSTEAD, Kind.RESET, Kind.TIMEOUT})
OF_LISTINGS = frozenset({Kind.EMPTY_PAGE, Kind.REPEATED_PAGE, Kind.NO_MARKER})
OF_KEYS = frozenset({Kind.SOME_FAIL, Kind.SOME_FAIL_AFTER, Kind.SOME_DENIED, Kind.SOME_UNTOLD})
OF_BODIES = frozenset({Kind.TORN, Kind.CUT, Kind.EMPTY_200, Kind.PAGE_OF_HTML})
FOR_GOOD = 10**9


@dataclass(kw_only=True)
class Fault:
    """Strikes the ``nth`` request of an operation from now on, and those of that operation that follow it.

    ``operation`` "*": of any. ``times``: how many in all; a client that repeats a request meets the fault again.
    """

    kind: Kind
    operation: str = "*"
    nth: int = 1
    times: int = 1
    seen: int = 0
    hit: int = 0

    def strikes(self, operation: str) -> bool:
        """Whether it strikes this request; each request is asked for once."""
        if self.operation not in ("*", operation):
            return False
        self.seen += 1
        struck = self.nth <= self.seen < self.nth + self.times
        self.hit += struck
        return struck
