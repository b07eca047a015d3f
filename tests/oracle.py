"""The judge with which every test ends that deleted something. It knows MLflow's rows and S3's listings, not our code.

It has its own, simple idea of what is live and of what URIs mean, and holds the report to what left the bucket.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

from tests.site import Item, Row, Site, Snapshot, Version

Report = Mapping[str, Any]
"""What ``gc --format json`` printed."""

MARKER_NAME = "_mlflow-artifact-gc.json"
COUNTED = {
    "deleted_objects": "object",
    "deleted_versions": "version",
    "deleted_markers": "marker",
    "aborted_uploads": "upload",
}
COUNTS = (*COUNTED, "deleted_bytes")
_PROXY_ROUTE = "/api/2.0/mlflow-artifacts/artifacts/"


def assert_bucket_sound(
    site: Site,
    report: Report | Sequence[Report],
    before: Snapshot,
    *,
    intact: Collection[str] = (),
    written: Collection[str] = (),
    unreported: bool = False,
) -> Snapshot:
    """Asserts that nothing live was touched, and that the reports say exactly what happened.

    Args:
        site: The site, as it is now.
        report: What the one gc, or several that ran since ``before``, printed.
        before: The snapshot just before the first of them.
        intact: Ids of entities that were not live at ``before`` and yet may have lost nothing (restored in time).
        written: Keys that the test wrote since ``before``.
        unreported: A process died before it reported: more may have left the bucket than the reports say,
            but only from the locations of what was deleted in MLflow.

    Returns:
        The snapshot now.
    """
    reports = [report] if isinstance(report, Mapping) else list(report)
    after = site.snapshot()
    case = _Case(site=site, reports=reports, before=before, after=after, intact=intact, unreported=unreported)
    complaints = [
        *_lost(case),
        *_swept_in_vain(case),
        *_miscounted(case),
        *_added(case, written),
        *_rows_lost(case),
        *_claims(case),
    ]
    assert not complaints, "the bucket is not sound:\n" + "\n".join(complaints)
    return after


class _Thing(NamedTuple):
    """What makes an item the same item before and after; ``kind`` may change from object to version."""

    key: str
    version_id: str
    is_upload: bool


@dataclass(kw_only=True)
class _Case:
    site: Site
    reports: list[Report]
    before: Snapshot
    after: Snapshot
    intact: Collection[str]
    unreported: bool

    @cached_property
    def results(self) -> list[Mapping[str, Any]]:
        return [result for report in self.reports for result in report["results"]]

    @cached_property
    def things_before(self) -> dict[_Thing, Item]:
        return _by_thing(self.before.items)

    @cached_property
    def things_after(self) -> dict[_Thing, Item]:
        return _by_thing(self.after.items)

    @cached_property
    def left(self) -> list[Item]:
        """What is no longer in the bucket, as it was."""
        return [item for thing, item in self.things_before.items() if thing not in self.things_after]

    @cached_property
    def live(self) -> set[str]:
        """Ids of the entities that MLflow showed, before."""
        return {row.id for row in _live(self.before)}

    @cached_property
    def locations(self) -> dict[str, list[Mapping[str, Any]]]:
        """The key prefixes that results speak of."""
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for result in self.results:
            if result["location"] is not None:
                found[_prefix_of(self.site, result["location"])].append(result)
        return found


def _by_thing(items: Iterable[Item]) -> dict[_Thing, Item]:
    return {_Thing(item.key, item.version_id, item.kind == "upload"): item for item in items}


# What must still be there


def _lost(case: _Case) -> Iterator[str]:
    needed = dict(_needed(case.site, case.before))
    for row in case.before.rows:
        if row.id in case.intact:
            needed |= dict.fromkeys(_keys_named(case.site, row.uri), f"{row.kind} {row.id}, restored")
    for item in case.left:
        why = next((needed[folder] for folder in _folders(item.key) if folder in needed), None)
        owner = case.site.objects.get(item.key)
        if why is None and owner is not None and owner.owner in (case.live | set(case.intact)):
            why = f"its owner {owner.owner} is live"
        if why is not None:
            yield f"lost: {item.kind} {item.key!r}, needed by {why}"


def _needed(site: Site, snapshot: Snapshot, *, partly: bool = False) -> Iterator[tuple[str, str]]:
    """Keys (of objects or folders) that must stay, and for whom; ``partly``: what lies beside a part may go."""
    for row in _live(snapshot):
        for key in _keys_named(site, row.uri):
            yield key, f"live {row.kind} {row.id}"
    for version in snapshot.versions:
        for key in _keys_of(site, snapshot, version, partly=partly):
            yield key, f"model {version.name} version {version.version}"


def _keys_of(site: Site, snapshot: Snapshot, version: Version, *, partly: bool = False) -> Iterator[str]:
    """The keys that a version needs."""
    for text in (version.source, version.storage_location):
        yield from _reached(site, snapshot, text, frozenset())
        for row in snapshot.rows:
            # An entity whose id stands in the text, however the rest of it names the place.
            if row.kind != "experiment" and row.id in text and not (partly and _is_inside(site, text, row.uri)):
                yield from _keys_named(site, row.uri)


def _is_inside(site: Site, text: str, uri: str) -> bool:
    """Whether a text names a place inside the one that a URI names, and not that itself."""
    return any(key.startswith(f"{above}/") for above in _keys_named(site, uri) for key in _keys_named(site, text))


def _live(snapshot: Snapshot) -> Iterator[Row]:
    experiments = {row.id for row in snapshot.rows if row.kind == "experiment" and row.stage == "active"}
    for row in snapshot.rows:
        is_live = {
            "experiment": False,  # it owns objects only through its runs, models and traces
            "run": row.stage == "active",
            "logged_model": row.stage == "active" and row.experiment_id in experiments,
            "trace": row.experiment_id in experiments,
        }
        if is_live[row.kind]:
            yield row


def _reached(site: Site, snapshot: Snapshot, text: str, seen: frozenset[str]) -> Iterator[str]:
    """The keys that a version's source leads to, through ``runs:`` and ``models:``."""
    if text in seen:
        return
    parsed = urlparse(text)
    if parsed.scheme not in ("runs", "models"):
        yield from _keys_named(site, text)
        return
    name, _, rest = parsed.path.lstrip("/").partition("/")
    for target in _targets(snapshot, name, rest):
        below = rest if parsed.scheme == "runs" else ""
        yield from _reached(site, snapshot, f"{target.rstrip('/')}/{below}".rstrip("/"), seen | {text})


def _targets(snapshot: Snapshot, name: str, which: str) -> Iterator[str]:
    for row in snapshot.rows:
        if row.kind in ("run", "logged_model") and row.id == name:
            yield row.uri
    model, _, alias = name.partition("@")
    aliased = {version for (owner, known, version) in snapshot.aliases if (owner, known) == (model, alias)}
    newest = max((version.version for version in snapshot.versions if version.name == model), default=0)
    for version in snapshot.versions:
        asked = (
            version.version in aliased
            if alias
            else which.lower() in (str(version.version), version.stage.lower())
            or (which == "latest" and version.version == newest)
        )
        if version.name == model and asked:
            yield version.storage_location or version.source


def _keys_named(site: Site, uri: str) -> Iterator[str]:
    """The keys of the site's bucket that a URI may name: raw, and for proxied ones also percent-decoded."""
    parsed = urlparse(uri)
    if parsed.scheme in ("s3", "s3a", "s3n") and parsed.netloc == site.bucket:
        yield parsed.path[1:].rstrip("/")
    proxied = None
    if parsed.scheme == "mlflow-artifacts":
        proxied = parsed.path
    elif parsed.scheme in ("http", "https") and _PROXY_ROUTE in parsed.path:
        proxied = parsed.path.split(_PROXY_ROUTE)[1]
    if proxied is not None and site.destination is not None:
        folder = urlparse(site.destination).path.strip("/")
        for path in (proxied, unquote(proxied)):
            yield f"{folder}/{path.strip('/')}".strip("/")


def _folders(key: str) -> list[str]:
    """The key, and all folders that it lies in, down to the whole bucket."""
    return [key, *(key[:at] for at in range(len(key) - 1, -1, -1) if key[at] == "/"), ""]


# What the reports say


def _prefix_of(site: Site, location: str) -> str:
    parsed = urlparse(location)
    assert parsed.scheme == "s3", f"a report speaks of {location!r}"
    assert parsed.netloc == site.bucket, f"a report speaks of another bucket: {location!r}"
    assert parsed.path.endswith("/"), f"a location ends in '/': {location!r}"
    return location.removeprefix(f"s3://{site.bucket}/")


def _swept_in_vain(case: _Case) -> Iterator[str]:
    for prefix, results in case.locations.items():
        remains = [item for item in case.after.items if item.key.startswith(prefix)]
        for result in results:
            if result["outcome"] in ("swept", "empty") and remains:
                yield f"not empty, and called {result['outcome']}: {prefix!r} holds {remains[0]}"
            if result["outcome"] == "swept" and result["id"] in case.live:
                yield f"swept, and live: {result['kind']} {result['id']}"


def _miscounted(case: _Case) -> Iterator[str]:
    left: dict[str, list[Item]] = defaultdict(list)
    for item in case.left:
        place = _place(case, item)
        if place is None:
            yield f"gone, and no report speaks of its place: {item.kind} {item.key!r}"
        else:
            left[place].append(item)
    for prefix, results in case.locations.items():
        yield from _compare(prefix, _count(left[prefix]), _sums(results), at_most=case.unreported)
    for result in case.results:
        if result["location"] is None and any(result[name] for name in COUNTS):
            yield f"counts without a location: {result}"
    for report in case.reports:
        yield from _compare("totals", _sums(report["results"]), {n: report["totals"][n] for n in COUNTS})


def _place(case: _Case, item: Item) -> str | None:
    """The longest location of a result that holds the item; of a dead process, of anything deleted."""
    folders = [f"{folder}/" for folder in _folders(item.key)[1:-1]]
    reported = next((folder for folder in folders if folder in case.locations), None)
    if reported is None and case.unreported:
        deleted = {row for row in case.before.rows if row.kind != "experiment" and row.id not in case.live}
        keys = {f"{key}/" for row in deleted for key in _keys_named(case.site, row.uri)}
        return next((folder for folder in folders if folder in keys), None)
    return reported


def _count(items: Sequence[Item]) -> dict[str, int]:
    counts = {name: sum(item.kind == kind for item in items) for name, kind in COUNTED.items()}
    return {**counts, "deleted_bytes": sum(item.size for item in items)}


def _sums(results: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    listed = list(results)
    return {name: sum(result[name] for result in listed) for name in COUNTS}


def _compare(
    place: str, really: Mapping[str, int], reported: Mapping[str, int], *, at_most: bool = False
) -> Iterator[str]:
    for name in COUNTS:
        wrong = reported[name] > really[name] if at_most else reported[name] != really[name]
        if wrong:
            yield f"{place}: {name} is {reported[name]} in the report and {really[name]} in truth"


def _added(case: _Case, written: Collection[str]) -> Iterator[str]:
    for thing, item in case.things_after.items():
        if item.key in written or item.key.rpartition("/")[2] == MARKER_NAME:
            continue
        was = case.things_before.get(thing)
        if was is None:
            yield f"added: {item.kind} {item.key!r}"
        elif (was.size, was.etag) != (item.size, item.etag):
            yield f"changed: {item.key!r}"


def _claims(case: _Case) -> Iterator[str]:
    there = {(item.key, item.version_id) for item in case.after.items}
    keys = {item.key for item in case.after.items}
    for result in case.results:
        for failure in result["failures"]:
            version_id = failure.get("version_id")
            stays = (failure["key"], version_id) in there if version_id else failure["key"] in keys
            if failure["key"] and not stays:
                yield f"called failed, and gone: {failure}"
    for report in case.reports:
        locations = [result["location"] for result in report["results"] if result["location"] is not None]
        if len(locations) != len(set(locations)):
            yield "a report speaks twice of a location"
        outcomes = {result["outcome"] for result in report["results"]}
        if outcomes & {"failed", "unknown"} and report["exit_code"] == 0:
            yield f"exit code 0 in spite of {outcomes}"


# MLflow's rows


def _rows_lost(case: _Case) -> Iterator[str]:
    remaining = {(row.kind, row.id) for row in case.after.rows}
    said = {(result["kind"], result["id"]) for result in case.results if result["metadata_deleted"]}
    for row in case.before.rows:
        if (row.kind, row.id) in remaining:
            continue
        if _is_needed(case, row):
            yield f"lost: the row of live {row.kind} {row.id}"
        elif row.kind != "experiment" and (row.kind, row.id) not in said and not case.unreported:
            yield f"lost: the row of {row.kind} {row.id}, and no report says so"
    for kind, entity in said & remaining:
        yield f"called deleted: the row of {kind} {entity} is there"
    for result in case.results:
        if result["metadata_deleted"] and result["outcome"] not in ("swept", "empty"):
            yield f"its row is gone though its location is {result['outcome']}: {result['kind']} {result['id']}"
    for version in case.before.versions - case.after.versions:
        yield f"lost: the row of {version}"


def _is_needed(case: _Case, row: Row) -> bool:
    if row.kind == "experiment":
        return row.stage == "active"
    return row.id in case.live or row.id in case.intact
