"""What an S3 store charges, read from a dated price file. Pure: the text comes in, money comes out.

A price file is JSON; ``price_files/`` holds the shipped one, and any other has its form. What a file has no price for
costs None, never nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from mlflow_artifact_gc.errors import UsageError

FORM: Final = 1
STANDARD: Final = "STANDARD"
"""The class of what a listing names no class of, and whose price an archived object's 8 KB of metadata have."""
REQUESTS: Final = ("LIST", "PUT", "GET", "DELETE", "EXPIRATION")


@dataclass(frozen=True, slots=True)
class Tier:
    """The price of a GB and month up to so many GB of a class; ``up_to_gb`` None: all that is beyond."""

    price: float
    up_to_gb: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageClass:
    """What a class of storage costs.

    An object is billed as ``minimum_bytes`` where it is smaller, and for ``minimum_days`` where it goes earlier.
    Archives are billed ``extra_bytes`` an object in their class and ``extra_standard_bytes`` in STANDARD.
    """

    tiers: tuple[Tier, ...]
    minimum_bytes: int = 0
    minimum_days: int = 0
    extra_bytes: int = 0
    extra_standard_bytes: int = 0
    per_1000_objects_month: float = 0.0
    checked: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """A price file, read. Money is in ``currency``, as floating point: it is for people, not for books."""

    name: str
    region: str
    date: str
    currency: str
    source: str
    gb_bytes: int
    storage: Mapping[str, StorageClass]
    requests_per_1000: Mapping[str, float]
    tags_per_10000_month: float | None = None
    unchecked: tuple[str, ...] = field(default=())
    """The figures that the file itself calls unchecked."""

    @property
    def title(self) -> str:
        """As in ``AWS list prices, us-east-1, 2026-11-25``."""
        return f"{self.name}, {self.region}, {self.date}"

    def minimum_bytes(self, storage_class: str) -> int:
        """As how many bytes an object of this class is billed at least."""
        found = self.storage.get(storage_class)
        return found.minimum_bytes if found else 0

    def monthly(self, storage_class: str, size_bytes: int, objects: int = 0) -> float | None:
        """What so many bytes in so many objects cost a month; None for a class that has no price.

        Args:
            storage_class: as S3 calls it, STANDARD_IA for example.
            size_bytes: with every object counted as ``minimum_bytes`` at least.
            objects: for what is billed by the object.
        """
        found = self.storage.get(storage_class)
        if found is None:
            return None
        money = self._tiered(found, size_bytes + objects * found.extra_bytes)
        if found.extra_standard_bytes and STANDARD in self.storage:
            money += objects * found.extra_standard_bytes / self.gb_bytes * self.storage[STANDARD].tiers[0].price
        return money + objects / 1000 * found.per_1000_objects_month

    def requests(self, kind: str, count: int) -> float | None:
        """What so many requests of a kind (``REQUESTS``) cost; None without a price."""
        price = self.requests_per_1000.get(kind)
        return None if price is None else count / 1000 * price

    def tags(self, count: int, days: float) -> float | None:
        """What so many tags cost that are there for so many days; None without a price."""
        price = self.tags_per_10000_month
        return None if price is None else count / 10_000 * price * days / 30

    def _tiered(self, found: StorageClass, size_bytes: int) -> float:
        money, below = 0.0, 0.0
        size_gb = size_bytes / self.gb_bytes
        for tier in found.tiers:
            upper = size_gb if tier.up_to_gb is None else min(size_gb, tier.up_to_gb)
            money += max(0.0, upper - below) * tier.price
            below = max(below, upper)
        return money


def parse(text: str, name: str) -> Prices:
    """A price file's text.

    Args:
        text: JSON.
        name: what to call the file in errors.

    Raises:
        UsageError: it cannot be read, and where.
    """
    try:
        return _prices(_object(json.loads(text), "the file"))
    except RecursionError as error:
        raise _unusable(name, "it is nested too deeply") from error
    except (_Wrong, ValueError) as error:
        raise _unusable(name, str(error)) from error


def _unusable(name: str, why: str) -> UsageError:
    return UsageError(
        f"The price file {name} cannot be used: {why}. Write it as the shipped one is, mlflow_artifact_gc/price_files/"
    )


class _Wrong(Exception):
    """What is wrong with the file."""


def _prices(found: Mapping[str, Any]) -> Prices:
    if found.get("form") != FORM:
        raise _Wrong(f"its 'form' is {found.get('form')!r}, expected {FORM}")
    when = _text(found, "date")
    try:
        date.fromisoformat(when)
    except ValueError as error:
        raise _Wrong(f"its 'date' is {when!r}, expected for example 2026-11-25") from error
    storage = _object(found.get("storage"), "'storage'")
    requests = _object(found.get("requests_per_1000", {}), "'requests_per_1000'")
    tags = None if found.get("tags") is None else _object(found["tags"], "'tags'")
    strange = sorted(set(requests) - set(REQUESTS))
    if strange:
        raise _Wrong(f"'requests_per_1000' names {strange[0]!r}, expected {', '.join(REQUESTS)}")
    read = {kind: _storage_class(_object(one, f"'{kind}'"), f"'{kind}'") for kind, one in storage.items()}
    named = {kind: _object(one, f"'{kind}'") for kind, one in requests.items()}
    figures = [*storage.items(), *named.items(), *([("tags", tags)] if tags else [])]
    return Prices(
        name=_text(found, "name"),
        region=_text(found, "region"),
        date=when,
        currency=_text(found, "currency"),
        source=_text(found, "source"),
        gb_bytes=_whole(found, "gb_bytes", "the file", at_least=1),
        storage=read,
        requests_per_1000={kind: _number(one, "price", f"'{kind}'") for kind, one in named.items()},
        tags_per_10000_month=_number(tags, "per_10000_month", "'tags'") if tags else None,
        unchecked=tuple(kind for kind, one in figures if one.get("checked") is not True),
    )


def _storage_class(found: Mapping[str, Any], where: str) -> StorageClass:
    listed = found.get("per_gb_month")
    if not isinstance(listed, list) or not listed:
        raise _Wrong(f"'per_gb_month' of {where} is {listed!r}, expected a list of prices")
    tiers = [_tier(_object(one, f"a price of {where}"), where) for one in listed]
    limits = [tier.up_to_gb for tier in tiers]
    bounds = [limit for limit in limits if limit is not None]
    if limits[-1] is not None or len(bounds) != len(limits) - 1 or bounds != sorted(set(bounds)):
        raise _Wrong(f"the 'up_to_gb' of {where} have to rise, and the last price has to be without")
    return StorageClass(
        tiers=tuple(tiers),
        minimum_bytes=_whole(found, "minimum_bytes", where, default=0),
        minimum_days=_whole(found, "minimum_days", where, default=0),
        extra_bytes=_whole(found, "extra_bytes", where, default=0),
        extra_standard_bytes=_whole(found, "extra_standard_bytes", where, default=0),
        per_1000_objects_month=_number(found, "per_1000_objects_month", where, default=0.0),
        checked=found.get("checked") is True,
    )


def _tier(found: Mapping[str, Any], where: str) -> Tier:
    up_to = None if found.get("up_to_gb") is None else _number(found, "up_to_gb", where)
    return Tier(_number(found, "price", where), up_to)


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(f"{where} is {_short(value)}, expected an object of JSON")
    return value


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"its {key!r} is {_short(value)}, expected a text")
    return value


def _number(found: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    value = found.get(key, default)
    # JSON's own reader takes NaN and Infinity; true is a number for Python.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise _Wrong(f"{key!r} of {where} is {_short(value)}, expected a number that is not below 0")
    return float(value)


def _whole(found: Mapping[str, Any], key: str, where: str, *, at_least: int = 0, default: int | None = None) -> int:
    number = _number(found, key, where, default)
    if number != int(number) or number < at_least:
        raise _Wrong(f"{key!r} of {where} is {_short(found.get(key))}, expected a whole number from {at_least} on")
    return int(number)


def _short(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]
