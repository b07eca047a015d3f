"""``python -m benchmarks.choosing``: what purging, hiding and tagging cost, from a price file; measures nothing.

Prints the Markdown table of docs/choosing.md, which a test compares with it.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mlflow_artifact_gc import config
from mlflow_artifact_gc.prices import STANDARD, Prices
from mlflow_artifact_gc.quantities import show_duration, show_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_PAGE: Final = 1_000
"""Keys that a page of a listing, or a DeleteObjects, holds."""
_LOOK: Final = 2
"""Listings before: objects (or versions), and unfinished uploads."""
_VERIFY: Final = 3
"""Listings after: versions, uploads, objects (docs/adr/0004)."""
_MIDNIGHT_DAYS: Final = 1
"""S3 rounds a rule's date up to the next midnight UTC."""
_TAG_RULE_DAYS: Final = 1
"""The shortest that a rule can say; of objects that are older S3 sees it at the next midnight."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is to go, and how fast requests are answered."""

    objects: int = 10_000_000
    size_bytes: int = 10**12
    locations: int = 100_000
    noncurrent_days: int = 7
    concurrency: int = 16
    answer_ms: int = 20
    writes_per_s: int = 3_500
    """What AWS documents of PUT, COPY, POST and DELETE for one prefix; we take a key of DeleteObjects for one."""

    @property
    def requests_per_s(self) -> float:
        return self.concurrency * 1000 / self.answer_ms

    def pages(self) -> int:
        """How many pages list every location once, each alone."""
        return self.locations * max(1, math.ceil(self.objects / self.locations / _PAGE))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One action's requests, and until when it is paid."""

    lists: int
    deletes: int = 0
    reads: int = 0
    tags: int = 0
    written_keys: int
    days_until_gone: int = 0

    @property
    def requests(self) -> int:
        return self.lists + self.deletes + self.reads + self.tags


def costs(case: Case) -> dict[str, Cost]:
    """What each action asks of S3: as purging.py does it, with a listing of its own for each location."""
    pages = case.pages()
    hidden_days, tagged_days = case.noncurrent_days + _MIDNIGHT_DAYS, _TAG_RULE_DAYS + _MIDNIGHT_DAYS
    return {
        "purge": Cost(lists=(_LOOK + _VERIFY) * pages, deletes=pages, written_keys=case.objects),
        "hide": Cost(
            lists=(_LOOK + (1 + _looks(hidden_days)) * _VERIFY) * pages,
            deletes=pages,
            # Before each batch: does the bucket still keep versions?
            reads=pages,
            written_keys=case.objects,
            days_until_gone=hidden_days,
        ),
        "tag": Cost(
            lists=(_LOOK + (1 + _looks(tagged_days)) * _VERIFY) * pages,
            reads=case.objects,
            tags=case.objects,
            written_keys=case.objects,
            days_until_gone=tagged_days,
        ),
    }


def _looks(days: int) -> int:
    """How often what waits is listed until it is found gone: after one day, two, four, and then each week."""
    looks, after = 1, 1
    while after < days:
        looks, after = looks + 1, after + min(after, 7)
    return looks


def own_time_s(case: Case, cost: Cost) -> float:
    """How long our requests take: the slower of the round trips and of what S3 lets through."""
    return max(cost.requests / case.requests_per_s, cost.written_keys / case.writes_per_s)


@dataclass(frozen=True, kw_only=True)
class Money:
    """In the price file's currency."""

    requests: float
    tags: float
    storage: float

    @property
    def total(self) -> float:
        return self.requests + self.tags + self.storage


def money(case: Case, cost: Cost, prices: Prices) -> Money:
    """What an action costs until everything is gone, the storage until then included."""
    asked = {"LIST": cost.lists, "DELETE": cost.deletes, "GET": cost.reads, "PUT": cost.tags}
    monthly = prices.monthly(STANDARD, case.size_bytes, case.objects) or 0.0
    return Money(
        requests=sum(prices.requests(kind, count) or 0.0 for kind, count in asked.items()),
        tags=prices.tags(cost.tags, cost.days_until_gone) or 0.0,
        storage=monthly * cost.days_until_gone / 30,
    )


def table(case: Case, prices: Prices) -> str:
    """The table, in Markdown."""
    by_action = costs(case)
    paid = {action: money(case, cost, prices) for action, cost in by_action.items()}

    def row(head: str, cell: Callable[[str, Cost], str]) -> str:
        return f"| {head} | " + " | ".join(cell(action, cost) for action, cost in by_action.items()) + " |"

    def dollars(amount: float) -> str:
        return f"{amount:,.2f}"

    gone = {
        "purge": "at once, location by location",
        "hide": f"{case.noncurrent_days} to {by_action['hide'].days_until_gone} days after, by S3's rule",
        "tag": f"within {by_action['tag'].days_until_gone} days after, by S3's rule",
    }
    undo = {
        "purge": "none",
        "hide": f"for {case.noncurrent_days} days, whole",
        "tag": "until S3 acts, by taking the tag off",
    }
    monthly = prices.monthly(STANDARD, case.size_bytes, case.objects) or 0.0
    what = f"{show_size(case.size_bytes)} in {case.objects:,} objects of {case.locations:,} runs"
    lines = [
        f"{what}, in {STANDARD}, one version each: {dollars(monthly)} {prices.currency} a month until it is gone.",
        f"Prices: {prices.title} ({prices.source}).",
        "",
        "| | " + " | ".join(f"`{action}`" for action in by_action) + " |",
        "|---|" + "---|" * len(by_action),
        row("LIST requests", lambda _, cost: f"{cost.lists:,}"),
        row("DeleteObjects requests", lambda _, cost: f"{cost.deletes:,}"),
        row("GET requests (tags; versioning)", lambda _, cost: f"{cost.reads:,}"),
        row("PutObjectTagging requests", lambda _, cost: f"{cost.tags:,}"),
        row(f"requests, {prices.currency}", lambda action, _: dollars(paid[action].requests)),
        row(f"tags until gone, {prices.currency}", lambda action, _: dollars(paid[action].tags)),
        row(f"storage until gone, {prices.currency}", lambda action, _: dollars(paid[action].storage)),
        row(f"**together, {prices.currency}**", lambda action, _: f"**{dollars(paid[action].total)}**"),
        row("our requests take", lambda _, cost: _rough(own_time_s(case, cost))),
        row("the bytes are gone", lambda action, _: gone[action]),
        row("undo", lambda action, _: undo[action]),
    ]
    return "\n".join(lines)


def _rough(seconds: float) -> str:
    """To the minute: more would be pretence."""
    return show_duration(max(1, round(seconds / 60)) * 60_000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = Case()
    for name in Case.__dataclass_fields__:
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(defaults, name))
    case = Case(**vars(parser.parse_args(arguments)))
    print(table(case, config.own_prices(config.Settings.from_env()) or config.shipped_prices()))


if __name__ == "__main__":
    main()
