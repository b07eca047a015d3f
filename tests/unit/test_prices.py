"""Price files: the shipped one, what they answer, and what is said of a bad one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import choosing
from mlflow_artifact_gc import config, prices
from mlflow_artifact_gc.errors import UsageError

GB = 2**30
DOCS = Path(__file__).resolve().parents[2] / "docs"


def a_file(**changes: Any) -> str:
    """A small price file with round numbers, changed."""
    content = {
        "form": 1,
        "name": "Test prices",
        "region": "here",
        "date": "2026-01-31",
        "currency": "EUR",
        "source": "https://prices.example",
        "gb_bytes": 1000,
        "storage": {
            "STANDARD": {"per_gb_month": [{"up_to_gb": 10, "price": 2}, {"price": 1}], "checked": True},
            "COLD": {"per_gb_month": [{"price": 0.5}], "minimum_bytes": 500, "minimum_days": 30},
            "ARCHIVE": {"per_gb_month": [{"price": 0.1}], "extra_bytes": 2000, "extra_standard_bytes": 1000},
        },
        "requests_per_1000": {"PUT": {"price": 5, "checked": True}},
    }
    return json.dumps(content | changes)


def test_the_shipped_file_says_what_it_is() -> None:
    """A region, a day, a source; and what could not be checked is named."""
    shipped = config.shipped_prices()

    assert shipped.title == "AWS list prices, us-east-1, 2026-11-25"
    assert shipped.source == "https://aws.amazon.com/s3/pricing/"
    assert shipped.unchecked == ("REDUCED_REDUNDANCY",)


def test_the_shipped_file_counts_as_aws_does() -> None:
    """A GB is 2^30 bytes, the first 50 TB are dearer, an archived object has 40 KB more."""
    shipped = config.shipped_prices()

    assert shipped.monthly("STANDARD", 1000 * GB) == pytest.approx(23.0)
    assert shipped.monthly("STANDARD", 52 * 1024 * GB) == pytest.approx(50 * 1024 * 0.023 + 2 * 1024 * 0.022)
    assert shipped.monthly("DEEP_ARCHIVE", 0, objects=2**17) == pytest.approx(4 * 0.00099 + 1 * 0.023)
    assert shipped.minimum_bytes("STANDARD_IA") == 128 * 1024
    assert shipped.requests("DELETE", 10**9) == 0


def test_what_has_no_price_costs_none() -> None:
    """An unknown class, request or tag is never free."""
    read = prices.parse(a_file(), "test")

    assert (read.monthly("ICE", 1), read.requests("GET", 1), read.tags(1, 1)) == (None, None, None)
    assert read.minimum_bytes("ICE") == 0


def test_tiers_minimums_and_extras() -> None:
    """Each GB has the price of its tier; what is billed beside an object's bytes is added by the object."""
    read = prices.parse(a_file(), "test")

    assert read.monthly("STANDARD", 12_000) == pytest.approx(10 * 2 + 2 * 1)
    assert read.monthly("ARCHIVE", 10_000, objects=3) == pytest.approx(16 * 0.1 + 3 * 2)
    assert read.minimum_bytes("COLD") == 500
    assert read.unchecked == ("COLD", "ARCHIVE")
    assert read.requests("PUT", 2_000) == pytest.approx(10)


BAD: list[tuple[Any, str]] = [
    ("", "Expecting value"),
    ("[" * 100_000, "nested too deeply|Expecting value"),
    ("[]", r"the file is \[\], expected an object of JSON"),
    (a_file(form=2), "its 'form' is 2, expected 1"),
    (a_file(date="yesterday"), "its 'date' is 'yesterday', expected for example 2026-11-25"),
    (a_file(currency=None), "its 'currency' is missing, expected a text"),
    (a_file(gb_bytes=0), "'gb_bytes' of the file is 0, expected a whole number from 1 on"),
    (a_file(storage=None), "'storage' is missing"),
    (a_file(storage={"A": {}}), "'per_gb_month' of 'A' is None, expected a list of prices"),
    (a_file(storage={"A": {"per_gb_month": [{"price": -1}]}}), "'price' of 'A' is -1, expected a number"),
    (a_file(storage={"A": {"per_gb_month": [{"price": True}]}}), "'price' of 'A' is True, expected a number"),
    (a_file(storage={"A": {"per_gb_month": [{"price": "1"}]}}), "'price' of 'A' is '1', expected a number"),
    (a_file(storage={"A": {"per_gb_month": [{"price": float("nan")}]}}), "is nan, expected a number"),
    (a_file(storage={"A": {"per_gb_month": [{"price": 1, "up_to_gb": 1}]}}), "the last price has to be without"),
    (a_file(storage={"A": {"per_gb_month": [{"price": 1}, {"price": 1}]}}), "have to rise"),
    (a_file(requests_per_1000={"HEAD": {"price": 1}}), "names 'HEAD', expected LIST, PUT"),
    (a_file(requests_per_1000={"PUT": 1}), "'PUT' is 1, expected an object of JSON"),
    (a_file(tags=[]), r"'tags' is \[\], expected an object of JSON"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_bad_file_gets_a_sentence(text: str, said: str) -> None:
    """What was found, what was expected, and the example to follow."""
    with pytest.raises(UsageError, match=said) as caught:
        prices.parse(text, "bad.json")

    assert str(caught.value).startswith("The price file bad.json cannot be used: ")
    assert len(str(caught.value)) < 400


def test_the_setting_names_another_file(tmp_path: Path) -> None:
    """PRICE_FILE is read as the shipped file is; what cannot be read is said with the setting's name."""
    own = tmp_path / "own.json"
    own.write_text(a_file(), encoding="utf-8")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe")

    def read(path: Path | str) -> prices.Prices | None:
        return config.own_prices(config.Settings.from_env({"MLFLOW_ARTIFACT_GC_PRICE_FILE": str(path)}))

    found = read(own)
    assert found is not None
    assert found.currency == "EUR"
    assert read("") is None
    for path, why in ((tmp_path / "none.json", "No such file"), (tmp_path, "Is a directory"), (binary, "no text")):
        with pytest.raises(UsageError, match=f"MLFLOW_ARTIFACT_GC_PRICE_FILE.*{why}"):
            read(path)


def test_the_table_of_the_document_is_the_scripts() -> None:
    """docs/choosing.md cannot drift from the price file and from what the actions ask for."""
    text = (DOCS / "choosing.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- python -m benchmarks.choosing -->\n(.*?)\n<!-- end -->", text, re.DOTALL)

    assert found
    assert found[1] == choosing.table(choosing.Case(), config.shipped_prices())
