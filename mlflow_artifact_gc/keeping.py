"""What people want kept: what the value of a keep tag says, and how a hold names itself. Pure.

What is not understood keeps: whoever set the tag wanted something.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.quantities import parse_until, show_until

KEEP: Final = "artifact_gc.keep"
"""The tag that users set in MLflow."""
_YES: Final = frozenset({"true", "1", "yes", "on"})
_NO: Final = frozenset({"", "false", "0", "no", "off", "none", "null"})
_SHOWN: Final = 40


class HoldKind(StrEnum):
    """What a hold is on."""

    RUN = "run"
    EXPERIMENT = "experiment"
    LOGGED_MODEL = "logged_model"
    REGISTERED_MODEL = "registered_model"
    LOCATION = "location"

    @property
    def words(self) -> str:
        return self.value.replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """What somebody keeps by hand. ``until_ms`` None: for ever; ``workspace`` None: in every one."""

    id: int
    kind: HoldKind
    target: str
    reason: str
    author: str
    created_ms: int
    workspace: str | None = None
    until_ms: int | None = None
    released_ms: int | None = None
    released_by: str | None = None

    def holds(self, now_ms: int) -> bool:
        return self.released_ms is None and (self.until_ms is None or self.until_ms > now_ms)

    @property
    def holder(self) -> str:
        """As plans and reports name it: ``hold #3 by alice: "audit 2026" (until 2027-01-01)``."""
        end = "" if self.until_ms is None else f" (until {show_until(self.until_ms)})"
        return f'hold #{self.id} by {self.author}: "{self.reason}"{end}'


def kept_by_tag(of: str, value: str | None, now_ms: int) -> str:
    """The holder that a keep tag makes, as ``keep tag of run 3f0c… (until 2027-01-01)``; empty if it keeps nothing now.

    Args:
        of: whose tag it is.
        value: ``true``, a date (to the end of that day, in UTC) or an instant keeps; ``false`` and its like do not;
            what is neither keeps, and the holder says so.
    """
    text = (value or "").strip()
    if text.lower() in _NO:
        return ""
    if text.lower() in _YES:
        return f"keep tag of {of}"
    try:
        until_ms = parse_until(text)
    except UsageError:
        return f"keep tag of {of} (its value {text[:_SHOWN]!r} is neither true, false nor a date)"
    return f"keep tag of {of} (until {show_until(until_ms)})" if until_ms > now_ms else ""
