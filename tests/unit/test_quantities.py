"""Durations, sizes and instants, as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.quantities import (
    parse_duration,
    parse_size,
    show_count,
    show_duration,
    show_instant,
    show_minute,
    show_size,
)

DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", 7 * DAY_MS),
        ("2w", 14 * DAY_MS),
        ("1w1d", 8 * DAY_MS),
        ("24h", DAY_MS),
        ("5m", 300_000),
        ("1s", 1_000),
        ("0s", 0),
        ("0d0h", 0),
        ("1d2h3m4s", DAY_MS + 2 * 3_600_000 + 3 * 60_000 + 4_000),
        ("1.5h", 5_400_000),
        (".5d", DAY_MS // 2),
        ("1.d", DAY_MS),
        ("0.001s", 1),
        (" 7d ", 7 * DAY_MS),
    ],
)
def test_a_duration_is_read_as_mlflow_gc_reads_it(text: str, expected: int) -> None:
    """Weeks, days, hours, minutes and seconds, in this order, each once, with fractions."""
    assert expected == parse_duration(text)


@pytest.mark.parametrize("text", ["", " ", "7", "d", "-1d", "7 d", "1h1d", "1d1d", "7D", "1y", "1e3s", ".d", "1,5h"])
def test_what_is_no_duration_is_a_usage_error(text: str) -> None:
    """An error shows the text and says what to write."""
    with pytest.raises(UsageError) as raised:
        parse_duration(text)

    assert repr(text) in str(raised.value)
    assert "7d" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("500", 500),
        ("500B", 500),
        ("10kB", 10_000),
        ("10KB", 10_000),
        ("10k", 10_000),
        ("1.5MB", 1_500_000),
        ("10 GB", 10_000_000_000),
        ("4GiB", 4 * 2**30),
        ("1Ki", 1024),
        ("1TB", 10**12),
        ("1tib", 2**40),
        ("2PB", 2 * 10**15),
        (" 1 ", 1),
    ],
)
def test_a_size_is_read_in_decimal_or_binary_units(text: str, expected: int) -> None:
    """Units without an i are powers of 1000, units with one powers of 1024."""
    assert expected == parse_size(text)


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 2", "1XB", "1GBs", "1,5GB", "1e9", ".5GB", "∞"])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    """An error shows the text and says what to write."""
    with pytest.raises(UsageError) as raised:
        parse_size(text)

    assert repr(text) in str(raised.value)
    assert "10GB" in str(raised.value)


@pytest.mark.parametrize("text", ["9" * 400 + "d", "9" * 308 + "w"])
def test_an_endless_duration_is_a_usage_error(text: str) -> None:
    """A number that no float holds is the user's slip, not a crash."""
    with pytest.raises(UsageError):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 300 + "PB"])
def test_an_endless_size_is_a_usage_error(text: str) -> None:
    """A number that no float holds is the user's slip, not a crash."""
    with pytest.raises(UsageError):
        parse_size(text)


@pytest.mark.parametrize(
    ("duration_ms", "expected"),
    [
        (0, "0s"),
        (999, "0s"),
        (1_000, "1s"),
        (7 * DAY_MS, "7d"),
        (14 * DAY_MS, "14d"),
        (DAY_MS + DAY_MS // 2, "1d12h"),
        (DAY_MS + 3_600_000 + 60_000 + 1_000, "1d1h1m1s"),
        (60_001, "1m"),
        (-90_000, "1m30s"),
    ],
)
def test_a_duration_is_shown_in_its_units(duration_ms: int, expected: str) -> None:
    """Units that are zero are left out."""
    assert expected == show_duration(duration_ms)


@settings(derandomize=False, print_blob=True, deadline=None, database=None)
@given(st.integers(min_value=0, max_value=10**9))
def test_a_shown_duration_is_read_as_the_same(seconds: int) -> None:
    """What is shown in whole seconds can be given back on the command line."""
    assert seconds * 1000 == parse_duration(show_duration(seconds * 1000))


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (None, "?"),
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.00 kB"),
        (1_234, "1.23 kB"),
        (12_345, "12.3 kB"),
        (123_456, "123 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (10**9, "1.00 GB"),
        (10**12, "1.00 TB"),
        (10**15, "1.00 PB"),
        (10**18, "1000 PB"),
    ],
)
def test_a_size_is_shown_in_decimal_units(size_bytes: int | None, expected: str) -> None:
    """Bytes are whole, everything larger has the unit of its bill."""
    assert expected == show_size(size_bytes)


@pytest.mark.parametrize(("size_bytes", "expected"), [(9_996_000, "10.0 MB"), (99_960_000, "100 MB")])
def test_a_size_has_three_digits_when_it_is_rounded_up(size_bytes: int, expected: str) -> None:
    """Rounding over a power of ten adds no digit."""
    assert expected == show_size(size_bytes)


@pytest.mark.parametrize(("count", "expected"), [(None, "?"), (0, "0"), (999, "999"), (1_234_567, "1,234,567")])
def test_a_count_is_shown_with_its_thousands(count: int | None, expected: str) -> None:
    """A count that was not measured is a question mark, never a zero."""
    assert expected == show_count(count)


@pytest.mark.parametrize(
    ("instant_ms", "expected"),
    [
        (None, "unknown"),
        (0, "1970-01-01 00:00:00Z"),
        (1_795_317_579_999, "2026-11-22 03:19:39Z"),
        (-1, "1969-12-31 23:59:59Z"),
    ],
)
def test_an_instant_is_shown_to_the_second(instant_ms: int | None, expected: str) -> None:
    """In UTC, whatever the machine's time zone, and never later than it was."""
    assert expected == show_instant(instant_ms)


@pytest.mark.parametrize(
    ("instant_ms", "expected"),
    [(None, "unknown"), (59_999, "1970-01-01 00:00Z"), (1_795_317_579_999, "2026-11-22 03:19Z")],
)
def test_an_instant_is_shown_to_the_minute(instant_ms: int | None, expected: str) -> None:
    """The same instant without its seconds, never rounded up."""
    assert expected == show_minute(instant_ms)


@pytest.mark.parametrize("instant_ms", [1_795_317_579_999_000_000, 10**30, -(10**18)])
def test_a_date_that_no_calendar_has_is_shown_as_its_number(instant_ms: int) -> None:
    """A client's date in nanoseconds, in one row, does not stop the report of all the others."""
    assert str(instant_ms) in show_instant(instant_ms)
