"""``audit``: what is in S3, whose it is, what it costs, and why it stays or goes. Reads only."""

from __future__ import annotations

import csv
import json
import re
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from mlflow_artifact_gc import auditing, config, s3
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Grid, Meter, Output
from mlflow_artifact_gc.errors import ArtifactGcError, UsageError
from mlflow_artifact_gc.model import Standing
from mlflow_artifact_gc.prices import Prices
from mlflow_artifact_gc.quantities import parse_duration, parse_size, show_instant, show_minute, show_size
from mlflow_artifact_gc.tallying import Line, Tally, Total

_CONCURRENCY: Final = 16
_LINES: Final = 20
_TOP: Final = 10
_CENT: Final = 0.01
_ROWS_OF_PARQUET: Final = 20_000
_SIZE: Final = "(size + old_size)"
_NUMBERS: Final = {
    "size": _SIZE,
    "old": "old_size",
    "objects": "objects",
    "versions": "versions",
    "markers": "markers",
    "uploads": "uploads",
    "money": "money",
    "age": "newest_ms",
}
_TEXTS: Final = ("verdict", "lost", "kind", "id", "experiment", "workspace", "owner", "bucket", "prefix", "class")
_CONDITION: Final = re.compile(r"\s*(?P<field>[a-z]+)\s*(?P<sign><=|>=|!=|=|<|>|~)\s*(?P<value>.*?)\s*")
_WASTE: Final = f"verdict IN ('{Standing.DUE}', '{Standing.LEFT_OVER}')"


@dataclass(frozen=True, kw_only=True)
class _Wishes:
    """Which lines are shown, as SQL on the tally's view ``line``."""

    where: str
    values: tuple[object, ...]
    order: str
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class _Report:
    """Everything that is shown."""

    setting: auditing.Setting
    findings: auditing.Findings
    tally: Tally
    prices: Prices | None
    wishes: _Wishes


def run(*, output: str, **options: Any) -> None:
    """Carry out ``audit``."""
    settings = config.Settings.from_env()
    own = config.own_prices(settings)
    to_file: str | None = options["output_file"]
    if output == "parquet":
        _require_pyarrow(to_file)
    sort, limit = options["sort"], options["limit"]
    _conditions(options["conditions"], 0)  # what is wrong with them is said before anything is listed
    setting = auditing.open_setting(
        backend_store_uri=options["backend_store_uri"],
        registry_store_uri=options["registry_store_uri"],
        artifacts_destination=options["artifacts_destination"],
        roots=options["roots"],
        older_than_ms=options["older_than"],
        min_age_ms=options["min_object_age"],
    )
    concurrency = options["concurrency"] or settings.concurrency or _CONCURRENCY
    client = s3.connect(settings.environ, threads=concurrency)
    prices = own or (config.shipped_prices() if _is_aws(client) else None)
    with _opened(to_file, binary=output == "parquet") as file, _terminable(), room(), Tally(prices) as tally:
        with Meter("Listing", 0) as meter:
            findings = auditing.audit(setting, client, tally, concurrency=concurrency, progress=meter.listed)
        where, values = _conditions(options["conditions"], findings.now_ms)
        default = _LINES if output == "table" else None
        wishes = _Wishes(where=where, values=values, order=_order(sort), limit=default if limit is None else limit)
        report = _Report(setting=setting, findings=findings, tally=tally, prices=prices, wishes=wishes)
        _WRITERS[output](report, file)


def _is_aws(client: s3.S3Client) -> bool:
    host = urlsplit(s3.endpoint_name(client)).hostname or ""
    return host == "amazonaws.com" or host.endswith(".amazonaws.com")


def _require_pyarrow(to_file: str | None) -> None:
    if to_file is None:
        raise UsageError("--format parquet is not for a screen: name the file with --output FILE")
    try:
        import pyarrow.parquet  # noqa: F401 - said before an hour of listing; MLflow brings it
    except ImportError as error:
        raise UsageError("--format parquet needs pyarrow: 'pip install pyarrow', or take --format csv") from error


@contextmanager
def _opened(to_file: str | None, *, binary: bool) -> Iterator[Any]:
    if to_file is None:
        yield sys.stdout
        return
    try:
        with Path(to_file).open("wb") if binary else Path(to_file).open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UsageError(f"--output {to_file!r} cannot be written: {error.strerror}") from error


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does, so that the temporary file goes too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def room() -> Iterator[None]:
    """Says what to do where the temporary file has no room: ArtifactGcError."""
    try:
        yield
    except sqlite3.Error as error:
        raise ArtifactGcError(
            f"The audit's temporary file cannot be written ({error}): name a folder with more room by TMPDIR"
        ) from error


# Which lines


def _conditions(texts: Sequence[str], now_ms: int) -> tuple[str, tuple[object, ...]]:
    parts, values = ["1"], list[object]()
    for text in texts:
        part, value = _condition(text, now_ms)
        parts.append(part)
        values.append(value)
    return " AND ".join(parts), tuple(values)


def _condition(text: str, now_ms: int) -> tuple[str, object]:
    match = _CONDITION.fullmatch(text)
    fields = f"{', '.join(_NUMBERS)}, {', '.join(_TEXTS)}"
    if match is None or (match["field"] not in _NUMBERS and match["field"] not in _TEXTS):
        raise UsageError(f"--filter {text!r} is not understood: write for example 'size>1GB'; the fields are {fields}")
    name, sign, value = match["field"], match["sign"], match["value"]
    if name in _TEXTS:
        return _text_condition(text, name, sign, value)
    if sign == "~":
        raise UsageError(f"--filter {text!r} is not understood: '~' is for texts")
    try:
        if name in ("size", "old"):
            return f"{_NUMBERS[name]} {sign} ?", parse_size(value)
        if name == "age":
            # What is older was written earlier.
            turned = sign.translate(str.maketrans("<>", "><"))
            return f"newest_ms {turned} ?", now_ms - parse_duration(value)
        return f"{_NUMBERS[name]} {sign} ?", float(value)
    except (UsageError, ValueError) as error:
        raise UsageError(f"--filter {text!r} is not understood: {error}") from error


def _text_condition(text: str, name: str, sign: str, value: str) -> tuple[str, object]:
    column = "coalesce(classes, '')" if name == "class" else f"coalesce({name}, '')"
    if sign == "~" or (name == "class" and sign == "="):
        return f"instr({column}, ?) > 0", value
    if sign in ("=", "!="):
        return f"{column} {sign} ?", value
    raise UsageError(f"--filter {text!r} is not understood: {name} is a text, for =, != and ~ (contains)")


def _order(sort: str) -> str:
    if sort in _TEXTS:
        return f"{sort if sort != 'class' else 'classes'}, bucket, prefix"
    direction = "ASC" if sort == "age" else "DESC"
    return f"{_NUMBERS[sort]} {direction}, bucket, prefix"


# For programs


def _fields(line: Line) -> dict[str, Any]:
    return {
        "bucket": line.bucket,
        "prefix": line.prefix,
        "verdict": line.verdict.value,
        "lost": line.lost,
        "evidence": line.evidence,
        "until_ms": line.until_ms,
        "kind": line.kind.value if line.kind else "",
        "id": line.id,
        "experiment": line.experiment,
        "workspace": line.workspace,
        "owner": line.owner,
        "objects": line.objects,
        "bytes": line.size,
        "noncurrent_versions": line.versions,
        "noncurrent_bytes": line.old_size,
        "delete_markers": line.markers,
        "unfinished_uploads": line.uploads,
        "storage_classes": ",".join(line.classes),
        "newest_ms": line.newest_ms,
        "undated": line.undated,
        "money_per_month": line.money,
    }


def _total(total: Total, *names: str) -> dict[str, Any]:
    named = dict(zip(names, (total.name, total.detail), strict=False))
    return {
        **named,
        "prefixes": total.prefixes,
        "objects": total.objects,
        "bytes": total.size,
        "noncurrent_versions": total.versions,
        "noncurrent_bytes": total.old_size,
        "delete_markers": total.markers,
        "unfinished_uploads": total.uploads,
        "money_per_month": total.money,
    }


def _lines(report: _Report) -> Iterator[dict[str, Any]]:
    wishes = report.wishes
    lines = report.tally.lines(wishes.where, wishes.values, order=wishes.order, limit=wishes.limit)
    return map(_fields, lines)


def _document(report: _Report) -> dict[str, Any]:
    setting, findings, tally, prices = report.setting, report.findings, report.tally, report.prices
    return {
        "schema": render.SCHEMA,
        "command": "audit",
        "now_ms": findings.now_ms,
        "grace_ms": setting.grace_ms,
        "min_object_age_ms": setting.min_age_ms,
        "set_up": setting.site is not None,
        "registry_known": setting.registry is not None,
        "prices": {"title": prices.title, "currency": prices.currency, "source": prices.source} if prices else None,
        "roots": [root.uri for root in findings.roots],
        "unread": [{"root": one.root.uri, "why": str(one.error)} for one in findings.unread],
        "totals": [_total(one, "verdict", "lost") for one in tally.totals(("verdict", "lost"))],
        "waste_by_experiment": [_total(one, "experiment") for one in tally.totals(("experiment",), _WASTE)],
        "waste_by_owner": [_total(one, "owner") for one in tally.totals(("owner",), _WASTE)],
        "rows_without_objects": {kind.value: count for kind, count in sorted(findings.empty_rows.items())},
        "gone": [{"row": one.what, "location": one.place.uri, "evidence": one.evidence} for one in findings.gone],
    }


def _write_json(report: _Report, file: IO[str]) -> None:
    # The lines one by one: there may be millions.
    head = json.dumps(_document(report), indent=2).removesuffix("\n}")
    file.write(f'{head},\n  "prefixes": [')
    for number, line in enumerate(_lines(report)):
        file.write(("," if number else "") + "\n    " + json.dumps(line))
    file.write("\n  ]\n}\n")


def _write_csv(report: _Report, file: IO[str]) -> None:
    writer = csv.DictWriter(file, list(_SCHEMA), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_lines(report))


_SCHEMA: Final[Mapping[str, str]] = {
    "bucket": "string",
    "prefix": "string",
    "verdict": "string",
    "lost": "string",
    "evidence": "string",
    "until_ms": "int64",
    "kind": "string",
    "id": "string",
    "experiment": "string",
    "workspace": "string",
    "owner": "string",
    "objects": "int64",
    "bytes": "int64",
    "noncurrent_versions": "int64",
    "noncurrent_bytes": "int64",
    "delete_markers": "int64",
    "unfinished_uploads": "int64",
    "storage_classes": "string",
    "newest_ms": "int64",
    "undated": "bool",
    "money_per_month": "float64",
}
"""The columns of csv and parquet, and their types in parquet."""


def _write_parquet(report: _Report, file: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "string": pa.string(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "float64": pa.float64(),
    }
    schema = pa.schema([(name, types[kind]) for name, kind in _SCHEMA.items()])
    with pq.ParquetWriter(file, schema) as writer:
        batch: list[dict[str, Any]] = []
        for line in _lines(report):
            batch.append(line)
            if len(batch) == _ROWS_OF_PARQUET:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch.clear()
        writer.write_table(pa.Table.from_pylist(batch, schema))


# For people


def _print(report: _Report, file: IO[str]) -> None:
    out = Output(file)
    totals = report.tally.totals(("verdict", "lost"))
    out.print(_sentence(totals, report), style="bold")
    for note in _notes(report):
        out.print(note)
    if totals:
        out.print("")
        out.table(_totals_grid(totals, report.prices))
        for column in ("experiment", "owner"):
            top = report.tally.totals((column,), _WASTE)
            if any(one.name for one in top):
                out.print("")
                names = report.findings.experiments if column == "experiment" else None
                out.table(_top_grid(f"garbage and left over, by {column}", top, report.prices, names))
        _print_lines(out, report)
    _print_gone(out, report)


def _sentence(totals: Sequence[Total], report: _Report) -> str:
    sizes = {standing: sum(one.size + one.old_size for one in totals if one.name == standing) for standing in Standing}
    open_ = [
        f"{show_size(sizes[standing])} more {words}"
        for standing, words in (
            (Standing.TOO_YOUNG, "may be, and are too young to judge"),
            (Standing.NOT_JUDGED, "would be, if the model registry needs none of it"),
        )
        if any(one.name == standing for one in totals)
    ]
    rest = f" ({'; '.join(open_)})" if open_ else ""
    waste = [one for one in totals if one.name in (Standing.DUE, Standing.LEFT_OVER)]
    if not totals:
        return "Nothing lies under the roots of this tracking database."
    if not waste:
        return f"Nothing that lies in S3 is known to be garbage{rest}."
    money, objects = _sum_of_money(waste), sum(one.objects + one.versions for one in waste)
    cost = f", {_money(money)} {report.prices.currency} a month" if report.prices and money is not None else ""
    return (
        f"{show_size(sizes[Standing.DUE] + sizes[Standing.LEFT_OVER])} in {render.plural(objects, 'object')} serve "
        f"nobody{cost}: {show_size(sizes[Standing.DUE])} are garbage that 'gc' would purge now, "
        f"{show_size(sizes[Standing.LEFT_OVER])} are left over from what is gone for good{rest}."
    )


def _sum_of_money(totals: Sequence[Total]) -> float | None:
    amounts = [one.money for one in totals]
    return None if None in amounts else sum(amount for amount in amounts if amount is not None)


def _notes(report: _Report) -> Iterator[str]:
    setting, findings, prices = report.setting, report.findings, report.prices
    if setting.site_note:
        yield setting.site_note
    if setting.registry_note:
        yield setting.registry_note
    if prices:
        unchecked = f" Not checked in it: {', '.join(prices.unchecked)}." if prices.unchecked else ""
        yield f"Money: {prices.title} ({prices.source}).{unchecked}"
    else:
        yield "Money: no price is known for this store; MLFLOW_ARTIFACT_GC_PRICE_FILE names a file with yours."
    for one in findings.unread:
        yield f"Not listed to the end, so some of it is missing here: {one.root.uri}: {one.error}"


def _money(amount: float | None) -> str:
    if amount is None:
        return "?"
    return "<0.01" if 0 < amount < _CENT else f"{amount:,.2f}"


def _totals_grid(totals: Sequence[Total], prices: Prices | None) -> Grid:
    money = (f"{prices.currency} a month",) if prices else ()
    numbers = ("prefixes", "objects", "size", "old versions", "their size", "markers", "uploads", *money)
    grid = Grid("verdict", *numbers, numbers=numbers)
    order = {standing.value: position for position, standing in enumerate(Standing)}
    for one in sorted(totals, key=lambda one: (order[one.name], one.detail)):
        name = f"{one.name} ({one.detail})" if one.detail else one.name
        grid.add_row(name, *_cells(one, prices), style="red" if one.name in (Standing.DUE, Standing.LEFT_OVER) else "")
    whole = Total(
        name="together",
        detail="",
        prefixes=sum(one.prefixes for one in totals),
        objects=sum(one.objects for one in totals),
        versions=sum(one.versions for one in totals),
        markers=sum(one.markers for one in totals),
        uploads=sum(one.uploads for one in totals),
        size=sum(one.size for one in totals),
        old_size=sum(one.old_size for one in totals),
        money=_sum_of_money(totals),
    )
    grid.add_row("together", *_cells(whole, prices))
    return grid


def _cells(one: Total, prices: Prices | None) -> tuple[str, ...]:
    return (
        f"{one.prefixes:,}",
        f"{one.objects:,}",
        show_size(one.size),
        f"{one.versions:,}",
        show_size(one.old_size),
        f"{one.markers:,}",
        f"{one.uploads:,}",
        *((_money(one.money),) if prices else ()),
    )


def _top_grid(title: str, top: Sequence[Total], prices: Prices | None, names: Mapping[str, str] | None) -> Grid:
    money = (f"{prices.currency} a month",) if prices else ()
    numbers = ("prefixes", "size", *money)
    grid = Grid(title, *numbers, numbers=numbers)
    for one in top[:_TOP]:
        cost = (_money(one.money),) if prices else ()
        more = "" if names is None or not one.name else f" ({names.get(one.name, 'no longer there')})"
        grid.add_row(f"{one.name or 'not known'}{more}", f"{one.prefixes:,}", show_size(one.size + one.old_size), *cost)
    if len(top) > _TOP:
        grid.add_row(f"… and {len(top) - _TOP:,} more", "", "", *("" for _ in money))
    return grid


def _print_lines(out: Output, report: _Report) -> None:
    wishes = report.wishes
    grid = Grid("prefix", "verdict", "size", "objects", "newest", "why", numbers=("size", "objects"))
    for line in report.tally.lines(wishes.where, wishes.values, order=wishes.order, limit=wishes.limit):
        until = f" until {show_minute(line.until_ms)}" if line.until_ms is not None else ""
        lost = f" ({line.lost})" if line.lost else ""
        grid.add_row(
            f"s3://{line.bucket}/{line.prefix}",
            f"{line.verdict.value}{lost}{until}",
            show_size(line.size + line.old_size),
            f"{line.objects + line.versions:,}",
            show_instant(line.newest_ms) if line.newest_ms is not None else "unknown",
            line.evidence,
        )
    if grid.rows:
        out.print("")
        out.table(grid)
    matching = sum(one.prefixes for one in report.tally.totals((), wishes.where, wishes.values))
    if matching > len(grid.rows):
        out.print(f"… and {matching - len(grid.rows):,} more (--limit, --filter, --sort; --format csv has them all)")
    elif not matching:
        out.print("\nNo prefix passes the filter.")


def _print_gone(out: Output, report: _Report) -> None:
    findings = report.findings
    if findings.gone:
        grid = Grid("nothing is left of", "location", "why")
        for one in findings.gone[:_LINES]:
            grid.add_row(one.what, one.place.uri, one.evidence)
        out.print("")
        out.table(grid)
        if len(findings.gone) > _LINES:
            out.print(f"… and {len(findings.gone) - _LINES:,} more (--format json has them all)")
    if findings.empty_rows:
        counted = ", ".join(
            render.plural(count, kind.value.replace("_", " ")) for kind, count in sorted(findings.empty_rows.items())
        )
        out.print(f"\nLive rows with nothing in S3 (most never had anything): {counted}.")


_WRITERS: Final[Mapping[str, Callable[[_Report, Any], None]]] = {
    "table": _print,
    "json": _write_json,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
