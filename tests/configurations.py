"""Random lifecycle configurations of other people, as S3 takes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

PREFIXES = ("", "mlruns/", "mlruns/1/", "ml", "logs/", "other/deep/", "a&b <c>/", "ü/")
TAGS = ({"Key": "gc", "Value": "expired"}, {"Key": "gc", "Value": "else"}, {"Key": "team", "Value": ""})
DAYS = st.integers(1, 400)


@st.composite
def filters(draw: st.DrawFn, *, sizes: bool, empty: bool) -> dict[str, Any]:
    """A filter in one of its shapes, or the old prefix beside it."""
    prefix = draw(st.sampled_from(PREFIXES))
    tags = draw(st.lists(st.sampled_from(TAGS if empty else TAGS[:2]), max_size=2, unique_by=lambda tag: tag["Key"]))
    bounds: dict[str, int] = {}
    if sizes and draw(st.booleans()):
        bounds["ObjectSizeGreaterThan"] = draw(st.integers(0, 1000))
    if sizes and draw(st.booleans()):
        bounds["ObjectSizeLessThan"] = draw(st.integers(2000, 3000))
    if not tags and not bounds:
        shape = draw(st.sampled_from(["legacy", "filter"]))
        return {"Prefix": prefix} if shape == "legacy" else {"Filter": {"Prefix": prefix}}
    if len(tags) + len(bounds) == 1 and not prefix:
        return {"Filter": {"Tag": tags[0]} if tags else bounds}
    both: dict[str, Any] = {**bounds, **({"Prefix": prefix} if prefix else {}), **({"Tags": tags} if tags else {})}
    return {"Filter": {"And": both}}


@st.composite
def rules(
    draw: st.DrawFn, *, moving: bool = True, sizes: bool = True, newer: bool = True, empty: bool = True
) -> dict[str, Any]:
    """A rule of somebody else. ``moving`` and so on: with what some servers do not take or not keep."""
    rule = {"Status": draw(st.sampled_from(["Enabled", "Disabled"])), **draw(filters(sizes=sizes, empty=empty))}
    found = rule.get("Filter", {})
    tagged = bool(found.get("Tag") or found.get("And", {}).get("Tags"))
    bounded = "ObjectSize" in str(found)
    actions: dict[str, Any] = {}
    kinds = ["days", "date", "noncurrent"]
    kinds += ["marker", "abort"] if not tagged and not bounded else []
    kinds += ["move", "move-noncurrent"] if moving else []
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3, unique=True))
    for kind in chosen:
        match kind:
            case "days":
                actions["Expiration"] = {"Days": draw(DAYS) + 400}
            case "date" if not {"days"} & set(chosen):
                actions["Expiration"] = {"Date": datetime(2030, 1, draw(st.integers(1, 28)), tzinfo=UTC)}
            case "marker" if not {"days", "date"} & set(chosen):
                actions["Expiration"] = {"ExpiredObjectDeleteMarker": True}
            case "noncurrent":
                more = {"NewerNoncurrentVersions": draw(st.integers(1, 5))} if newer and draw(st.booleans()) else {}
                actions["NoncurrentVersionExpiration"] = {"NoncurrentDays": draw(DAYS), **more}
            case "abort":
                actions["AbortIncompleteMultipartUpload"] = {"DaysAfterInitiation": draw(DAYS)}
            case "move":
                actions["Transitions"] = [{"Days": draw(DAYS), "StorageClass": "GLACIER"}]
            case "move-noncurrent":
                actions["NoncurrentVersionTransitions"] = [{"NoncurrentDays": draw(DAYS), "StorageClass": "GLACIER"}]
            case _:
                pass
    return {**rule, **(actions or {"Expiration": {"Days": 999}})}


@st.composite
def configurations(draw: st.DrawFn, /, *, most: int = 6, **shapes: bool) -> list[dict[str, Any]]:
    """Rules with ids of their own."""
    made = draw(st.lists(rules(**shapes), max_size=most))
    names = ("r", "Archive old logs", "mlflow-artifact-gc-of-ours", "ID:ü/1")
    return [{"ID": f"{draw(st.sampled_from(names))} {number}", **rule} for number, rule in enumerate(made)]
