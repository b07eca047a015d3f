"""Durations, sizes and instants: read from people and shown to people. Pure."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Final

from mlflow_artifact_gc.errors import UsageError

_SECONDS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
# mlflow gc's grammar (mlflow/cli: #d#h#m#s in this order, each once, floats allowed, m is minutes) plus weeks.
_DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+(?:\.\d*)?|\.\d+){unit})?" for unit in _SECONDS))
_LONGEST_MS: Final = 1000 * 365 * 86_400_000
"""A thousand years: what is longer, no calendar could show."""
_DAY_MS: Final = 86_400_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LARGEST_BYTES: Final = 2**63 - 1
_KILO: Final = 1000
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<prefix>[kKmMgGtTpP]?)(?P<binary>i?)[bB]?")


def parse_duration(text: str) -> int:
    """Milliseconds of a duration such as ``7d``, ``1d2h3m4s``, ``1.5h`` or ``2w``.

    Raises:
        UsageError: not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    parts = {unit: value for unit, value in match.groupdict().items() if value} if match else {}
    if not parts:
        raise UsageError(f"{text!r} is not a duration: write for example 7d, 12h, 1d2h3m4s or 2w (m is minutes)")
    duration_ms = sum(float(value) * _SECONDS[unit] for unit, value in parts.items()) * 1000
    if duration_ms > _LONGEST_MS:
        raise UsageError(f"{text[:20]!r} is longer than a thousand years: write for example 7d, 12h or 2w")
    return round(duration_ms)


def parse_until(text: str) -> int:
    """The end that a date or an instant names, in milliseconds: of ``2027-01-01`` the end of that day, in UTC.

    An instant is written as ISO 8601 has it (``2027-01-01T12:00:00Z``); one without an offset is in UTC.

    Raises:
        UsageError: neither a date nor an instant.
    """
    stripped = text.strip()
    with suppress(ValueError):
        return (date.fromisoformat(stripped) - _EPOCH.date()).days * _DAY_MS + _DAY_MS
    with suppress(ValueError, OverflowError):
        instant = datetime.fromisoformat(stripped)
        return ((instant if instant.tzinfo else instant.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
    raise UsageError(
        f"{text[:40]!r} is neither a date nor an instant: write for example 2027-01-01 or 2027-01-01T12:00:00Z"
    )


def parse_end(text: str, now_ms: int) -> int:
    """The end that a duration from now on, a date or an instant names, in milliseconds.

    Raises:
        UsageError: none of them, or it has passed.
    """
    try:
        end_ms = now_ms + parse_duration(text) if _DURATION.fullmatch(text.strip()) else parse_until(text)
    except UsageError as error:
        raise UsageError(
            f"{text[:40]!r} is no end: write a date (2027-01-01), an instant (2027-01-01T12:00:00Z) or a duration (30d)"
        ) from error
    if end_ms <= now_ms:
        raise UsageError(f"{text[:40]!r} has passed: it is {show_instant(now_ms)}")
    return end_ms


def parse_size(text: str) -> int:
    """Bytes of a size such as ``500``, ``10GB`` (decimal) or ``4GiB`` (binary).

    Raises:
        UsageError: not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a size: write for example 500MB, 10GB or 4GiB")
    base = 1024 if match["binary"] else 1000
    power = " kmgtp".index(match["prefix"].lower() or " ")
    size_bytes = float(match["number"]) * float(base) ** power
    if size_bytes > _LARGEST_BYTES:
        raise UsageError(f"{text[:20]!r} is more than any store holds: write for example 500MB, 10GB or 4GiB")
    return round(size_bytes)


def show_duration(duration_ms: int) -> str:
    """As ``parse_duration`` reads it: ``7d``, ``1d12h``, ``0s``."""
    rest, shown = abs(duration_ms) // 1000, ""
    for unit in ("d", "h", "m", "s"):
        count, rest = divmod(rest, _SECONDS[unit])
        shown += f"{count}{unit}" if count else ""
    return shown or "0s"


def show_size(size_bytes: int | None) -> str:
    """In decimal units, as S3 bills are counted, with three digits."""
    if size_bytes is None:
        return "?"
    if size_bytes < _KILO:
        return f"{size_bytes} B"
    number, units = float(size_bytes), iter(_UNITS)
    unit = next(units)
    while float(f"{number:.3g}") >= _KILO and unit != _UNITS[-1]:
        number, unit = number / _KILO, next(units)
    number = float(f"{number:.3g}") if number < _KILO else number
    # Not as %g does it: 1e+03 is no number for people.
    digits = 2 if number < _KILO / 100 else 1 if number < _KILO / 10 else 0
    return f"{number:.{digits}f} {unit}"


def show_count(count: int | None) -> str:
    """With thousands separated; ``?`` where it was not measured."""
    return "?" if count is None else f"{count:,}"


def show_minute(instant_ms: int | None) -> str:
    """To the minute, in UTC: ``2026-11-22 03:19Z``."""
    return _shown(instant_ms, "%Y-%m-%d %H:%MZ")


def show_instant(instant_ms: int | None) -> str:
    """To the second, in UTC: ``2026-11-22 03:19:39Z``."""
    return _shown(instant_ms, "%Y-%m-%d %H:%M:%SZ")


def show_until(until_ms: int) -> str:
    """The last day where it ends with a day, else to the second: as ``parse_until`` reads it."""
    return show_instant(until_ms) if until_ms % _DAY_MS else _shown(until_ms - _DAY_MS, "%Y-%m-%d")


def _shown(instant_ms: int | None, style: str) -> str:
    if instant_ms is None:
        return "unknown"
    try:
        return datetime.fromtimestamp(instant_ms / 1000, UTC).strftime(style)
    except (ValueError, OverflowError, OSError):
        # A client's, in another unit: it must not stop the report of the others.
        return f"{instant_ms} ms (no date)"
