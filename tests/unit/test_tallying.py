"""The sums of an audit: whatever order entries come in, from however many threads, and the last words on each unit."""

from __future__ import annotations

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlflow_artifact_gc import tallying
from mlflow_artifact_gc.config import shipped_prices
from mlflow_artifact_gc.layouts import Layouts
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Standing
from mlflow_artifact_gc.s3 import Entry, Kind
from mlflow_artifact_gc.tallying import Tally

KNOWN = Layouts(bucket="b", roots=frozenset({"root/"}), experiments={"root/1/": ("1", "default")})


def place(number: int) -> str:
    """An entity's prefix."""
    return f"root/1/{number:032x}/artifacts/"


def test_sums_do_not_depend_on_order(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any order, any cut into listings, any number of units kept in memory: the same sums."""
    monkeypatch.setattr(tallying, "_KEPT_UNITS", 3)
    expected: defaultdict[str, list[int]] = defaultdict(lambda: [0] * 6)
    entries = []
    for number in range(3_000):
        prefix = place(rng.randrange(20))
        kind, size = rng.choice(list(Kind)), rng.randrange(10_000)
        size = size if kind in (Kind.CURRENT, Kind.NONCURRENT) else 0
        named = rng.choice(("STANDARD", "STANDARD_IA", "")) if size else ""
        entries.append(Entry(f"{prefix}{number}", kind, None, size, rng.randrange(10**6), named))
        sums = expected[prefix]
        sums[list(Kind).index(kind)] += 1
        sums[4] += size if kind is Kind.CURRENT else 0
        sums[5] += size if kind is Kind.NONCURRENT else 0
    rng.shuffle(entries)

    with Tally(None) as tally:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda start: tally.count(entries[start::7], KNOWN), range(7)))
        tally.settle(young_ms=None, judged=True)
        found = {
            line.prefix: [line.objects, line.versions, line.markers, line.uploads, line.size, line.old_size]
            for line in tally.lines()
        }
        newest = max(line.newest_ms or 0 for line in tally.lines())

    assert found == expected
    assert newest == max(entry.modified_ms or 0 for entry in entries)
    assert tally.entries == 3_000


def test_the_last_words() -> None:
    """Of what is condemned the young stays, and what has no date; of what is not, nothing changes."""
    entries = [
        Entry(place(1) + "x", Kind.CURRENT, None, 1, 100),
        Entry(place(2) + "x", Kind.CURRENT, None, 1, 100),
        Entry(place(2) + "y", Kind.UPLOAD, None, 0, 900),
        Entry(place(3) + "x", Kind.CURRENT, None, 1, None),
        Entry(place(4) + "x", Kind.CURRENT, None, 1, 900),
        Entry(place(5) + "x", Kind.CURRENT, None, 1, 500),
    ]
    with Tally(None) as tally:
        tally.count(entries, KNOWN)
        for number, standing in enumerate([Standing.DUE, Standing.LEFT_OVER, Standing.DUE, Standing.LIVE], 1):
            tally.judge(Location("b", place(number)), standing, evidence="a row", lost="")
        tally.settle(young_ms=500, judged=True)
        found = {line.prefix: line.verdict for line in tally.lines()}

    assert found == {
        place(1): Standing.DUE,
        place(2): Standing.TOO_YOUNG,
        place(3): Standing.TOO_YOUNG,
        place(4): Standing.LIVE,
        place(5): Standing.UNKNOWN_LAYOUT,
    }


def test_money_adds_up() -> None:
    """A unit's share of what the whole class costs with its tiers; small objects count as the class's least."""
    prices = shipped_prices()
    tera = 10**12
    entries = [
        Entry(place(1) + "x", Kind.CURRENT, None, 100 * tera, 1, "STANDARD"),
        Entry(place(2) + "x", Kind.NONCURRENT, None, 300 * tera, 1, "STANDARD"),
        Entry(place(2) + "y", Kind.CURRENT, None, 1, 1, "STANDARD_IA"),
        Entry(place(3) + "x", Kind.CURRENT, None, 5, 1, "OUTPOSTS"),
        Entry(place(4) + "x", Kind.MARKER, None, 0, 1),
    ]
    with Tally(prices) as tally:
        tally.count(entries, KNOWN)
        tally.settle(young_ms=None, judged=True)
        money = {line.prefix: line.money for line in tally.lines()}
        classes = {line.prefix: line.classes for line in tally.lines()}
        (total,) = tally.totals((), "prefix != ?", [place(3)])

    whole = prices.monthly("STANDARD", 400 * tera)
    small = prices.monthly("STANDARD_IA", 128 * 1024)
    assert whole is not None
    assert small is not None
    assert money[place(1)] == pytest.approx(whole / 4)
    assert money[place(2)] == pytest.approx(whole * 3 / 4 + small)
    assert money[place(3)] is None
    assert money[place(4)] == 0
    assert total.money == pytest.approx(whole + small)
    assert classes[place(2)] == ("STANDARD", "STANDARD_IA")
