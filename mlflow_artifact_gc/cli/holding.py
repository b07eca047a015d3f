"""``hold``: what people keep by hand, put on, released and listed."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import click

from mlflow_artifact_gc import database, holds, inbox, journal, references, schema
from mlflow_artifact_gc import registry as model_registry
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Grid, Output
from mlflow_artifact_gc.errors import NotOnS3, TablesNotReady, UnreadableUri, UsageError
from mlflow_artifact_gc.holds import Late
from mlflow_artifact_gc.keeping import Hold, HoldKind
from mlflow_artifact_gc.locations import DEFAULT_WORKSPACE, Location, proxied_path
from mlflow_artifact_gc.quantities import parse_end, show_instant, show_minute, show_until
from mlflow_artifact_gc.session import open_engine, open_registry, readable_destination, same_destination

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_OPTIONS: Final = {
    HoldKind.RUN: ("--run-id", "run_ids"),
    HoldKind.EXPERIMENT: ("--experiment-id", "experiment_ids"),
    HoldKind.LOGGED_MODEL: ("--logged-model-id", "logged_model_ids"),
    HoldKind.REGISTERED_MODEL: ("--registered-model", "registered_models"),
    HoldKind.LOCATION: ("--location", "locations"),
}
_LONGEST: Final = {"author": 255, "reason": 2_000, "target": 2_048}
_LARGEST: Final = 2**63 - 1
_LATE: Final = {
    Late.GONE: "have gone already",
    Late.IN_PART: "have gone in part already",
    Late.WAITS: "were hidden or tagged before, and are to be taken back by the worker or 'gc' in time",
    Late.BEING_SWEPT: "are being swept at this moment",
    Late.CUT_OFF: "were being swept when that was cut off, and something there may be gone",
}


# Putting on


def add(*, output: str, **options: Any) -> None:
    """Carry out ``hold add``."""
    kind, targets = _targets(options)
    reason, author = _text("reason", options["reason"]), author_of(options["author"])
    if options["workspace"] and kind is not HoldKind.REGISTERED_MODEL:
        raise UsageError("--workspace narrows down --registered-model alone: ids and locations have one place each")
    engine, site = _opened(options["backend_store_uri"])
    _require_known(engine, site, kind, targets, options)

    def statements(connection: Connection) -> list[Hold]:
        now_ms = database.clock_ms(connection)
        until_ms = None if options["until"] is None else parse_end(options["until"], now_ms)
        about = {"reason": reason, "author": author, "workspace": options["workspace"]}
        made = holds.add(connection, kind, targets, until_ms=until_ms, now_ms=now_ms, **about)
        _wake(connection, [one.id for one in made])
        return made

    made = database.written(engine, statements)
    along = _along(engine, targets) if kind is HoldKind.RUN else set()
    # Once it is committed: whoever does not see the hold has claimed before, and is seen here.
    with database.reading(engine) as connection:
        too_late = holds.too_late(connection, kind, [*targets, *along], database.clock_ms(connection))
    warnings = [_too_late(late, too_late[late]) for late in Late if late in too_late]
    if output == "json":
        listed = [_document(one, made[0].created_ms) for one in made]
        render.print_json({"command": "hold", "added": listed, "warnings": warnings})
        return
    for one in made:
        click.echo(f"Hold #{one.id}: {_what(one)} is kept from now on, {_end(one)}.")
    for warning in warnings:
        click.echo(f"Note: {warning}", err=True)


def _along(engine: Engine, run_ids: Sequence[str]) -> set[str]:
    with references.TrackingDatabase.probe(engine, models_follow_run=False).reading() as tracking:
        return tracking.along_with(run_ids)


def _targets(options: dict[str, Any]) -> tuple[HoldKind, list[str]]:
    given = {kind: options[name] for kind, (_, name) in _OPTIONS.items() if options[name]}
    if len(given) != 1:
        names = ", ".join(option for option, _ in _OPTIONS.values())
        found = "none was given" if not given else "given: " + ", ".join(_OPTIONS[kind][0] for kind in given)
        raise UsageError(f"What is to be kept? Expected exactly one of {names} (repeated as often as needed); {found}")
    (kind, values), *_ = given.items()
    named: Iterable[str] = values
    if kind in (HoldKind.RUN, HoldKind.EXPERIMENT, HoldKind.LOGGED_MODEL):
        named = chain.from_iterable(values)
    targets = list(dict.fromkeys(named))
    for target in targets:
        if not target.strip() or len(target) > _LONGEST["target"]:
            raise UsageError(
                f"{_OPTIONS[kind][0]} {target[:40]!r}: expected between 1 and {_LONGEST['target']:,} characters"
            )
    return kind, targets


def _text(name: str, given: str) -> str:
    # Nothing of it steers a terminal: reports print it.
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in given).split())
    if not text or len(text) > _LONGEST[name]:
        raise UsageError(f"--{name} has {len(text):,} characters: expected between 1 and {_LONGEST[name]:,}")
    return text


def author_of(given: str | None) -> str:
    """Who does this: as it was given, else the user of the operating system."""
    if given is not None:
        return _text("author", given)
    try:
        return _text("author", getpass.getuser())
    except (OSError, KeyError):  # In a container, the user may have no name.
        return f"user {os.getuid()} on {journal.actor()}"


def _opened(uri: str | None) -> tuple[Engine, journal.Site]:
    """Less than planning needs: a hold can be put on also where the registry cannot be read."""
    engine = open_engine(uri)
    with database.reading(engine) as connection:
        schema.require_current(connection)
        site = journal.read_site(connection)
    if site is None:
        raise TablesNotReady("The site's settings are absent: run 'mlflow-artifact-gc init'")
    return engine, site


def _require_known(
    engine: Engine, site: journal.Site, kind: HoldKind, targets: Sequence[str], options: dict[str, Any]
) -> None:
    match kind:
        case HoldKind.LOCATION:
            for target in targets:
                _require_place(target, options["artifacts_destination"], site.artifacts_destination)
            return
        case HoldKind.REGISTERED_MODEL:
            unknown = _unknown_models(engine, site, targets, options)
        case _:
            tracked = references.TrackingDatabase.probe(engine, models_follow_run=False)
            with tracked.reading() as tracking:
                unknown = tracking.unknown(kind, targets)
    if unknown:
        where = f"workspace {options['workspace']!r}" if options["workspace"] else "this database"
        raise UsageError(
            "; ".join(f"there is no {kind.words} {target} in {where}" for target in unknown) + ": nothing was held"
        )


def _unknown_models(engine: Engine, site: journal.Site, names: Sequence[str], options: dict[str, Any]) -> list[str]:
    registry = open_registry(engine, site.registry_fingerprint, options["registry_store_uri"])
    with database.reading(registry) as connection:
        found = model_registry.registered_models(connection, names)
    known = {name for workspace, name in found if options["workspace"] in (None, workspace)}
    return [name for name in names if name not in known]


def _require_place(uri: str, given: str | None, of_site: str | None) -> None:
    """A location need not be there; but what it means must be known, or it would hold back everything."""
    destination = readable_destination(given or of_site)
    try:
        path = proxied_path(uri)
        if path is not None and given and of_site and not same_destination(given, of_site):
            # Whoever reads the hold takes the site's: another place would be kept than was meant.
            raise UsageError(
                f"--artifacts-destination {given} is not the site's ({of_site}), by which {uri!r} is read: leave it "
                "out, or name the location as s3://bucket/folder"
            )
        if path is None:
            Location.parse(uri, destination)
        elif not destination.every_reading(path, DEFAULT_WORKSPACE):
            raise UsageError(
                f"{uri!r} lies behind the artifact proxy, and where that keeps its objects "
                f"{'is not on S3' if destination.known else 'is not known: give --artifacts-destination'}"
            )
    except (NotOnS3, UnreadableUri) as error:
        raise UsageError(
            f"{uri!r} names no location: expected for example s3://bucket/folder or mlflow-artifacts:/folder"
        ) from error


def _too_late(late: Late, count: int) -> str:
    places = render.plural(count, "location")
    return f"too late for some of it: {places} {_LATE[late] if count > 1 else _one(_LATE[late])}."


def _one(words: str) -> str:
    return words.replace("have ", "has ", 1).replace("were ", "was ", 1).replace("are ", "is ", 1)


def _wake(connection: Connection, ids: Iterable[int]) -> None:
    """The worker looks at once at what is kept, or waits for S3: as when the registry has changed."""
    notes = [inbox.note(inbox.Event.REGISTERED, inbox.Subject.HOLD, str(id_)) for id_ in ids]
    for statement in inbox.notes(connection.dialect.name, notes):
        connection.execute(statement)


# Releasing


def release(*, output: str, **options: Any) -> None:
    """Carry out ``hold rm``."""
    ids = _numbers(options["numbers"])
    author = author_of(options["author"])
    engine, _ = _opened(options["backend_store_uri"])

    def statements(connection: Connection) -> tuple[list[Hold], list[Hold]]:
        now_ms = database.clock_ms(connection)
        found = holds.some(connection, ids)
        unknown = [f"#{id_}" for id_ in ids if id_ not in found]
        if unknown:
            raise UsageError(f"There is no hold {', '.join(unknown)}, and none was released: 'hold ls' lists them")
        holds.release(connection, ids, by=author, now_ms=now_ms)
        _wake(connection, ids)
        now = holds.some(connection, ids)
        return [now[id_] for id_ in ids if found[id_].released_ms is None], [
            found[id_] for id_ in ids if found[id_].released_ms is not None
        ]

    released, before = database.written(engine, statements)
    if output == "json":
        documents = {"released": released, "released_before": before}
        listed = {name: [_document(one, one.released_ms or 0) for one in found] for name, found in documents.items()}
        render.print_json({"command": "hold", **listed})
        return
    for one in released:
        click.echo(f"Hold #{one.id} is released: {_what(one)} goes again if it is deleted and nothing else needs it.")
    for one in before:
        click.echo(f"Hold #{one.id} was released before, by {one.released_by}.")


def _numbers(given: Iterable[str]) -> list[int]:
    numbers: list[int] = []
    for text in chain.from_iterable(one.split(",") for one in given):
        digits = text.strip().removeprefix("#")
        if not (digits.isascii() and digits.isdecimal() and int(digits) <= _LARGEST):
            raise UsageError(f"{text[:40]!r} is not the number of a hold: 'hold ls' lists them")
        numbers.append(int(digits))
    return list(dict.fromkeys(numbers))


# Listing


def show(*, output: str, **options: Any) -> None:
    """Carry out ``hold ls``."""
    engine, _ = _opened(options["backend_store_uri"])
    with database.reading(engine) as connection:
        now_ms = database.clock_ms(connection)
        found = holds.every(connection) if options["every"] else holds.active(connection, now_ms)
    if output == "json":
        render.print_json({"command": "hold", "now_ms": now_ms, "holds": documents(found, now_ms)})
        return
    out = Output()
    if not found:
        out.print("There has never been a hold." if options["every"] else "Nothing is held.")
        return
    out.table(table(found, now_ms, every=options["every"]))


def documents(found: Iterable[Hold], now_ms: int) -> list[dict[str, Any]]:
    """Holds as JSON has them."""
    return [_document(one, now_ms) for one in found]


def table(found: Iterable[Hold], now_ms: int, *, every: bool = False) -> Grid:
    """Holds as people read them; with ``every``, how those ended that do not hold any more."""
    grid = Grid("hold", "on", "by", "since", "until", *(["ended"] if every else []), "why")
    for one in found:
        end = "for ever" if one.until_ms is None else show_until(one.until_ms)
        ended = [_ended(one, now_ms)] if every else []
        grid.add_row(f"#{one.id}", _what(one), one.author, show_minute(one.created_ms), end, *ended, one.reason)
    return grid


def _ended(hold: Hold, now_ms: int) -> str:
    if hold.released_ms is not None:
        return f"released {show_minute(hold.released_ms)} by {hold.released_by}"
    return "" if hold.holds(now_ms) else "over"


def _what(hold: Hold) -> str:
    where = f" of workspace {hold.workspace}" if hold.workspace else ""
    return f"{hold.kind.words} {hold.target}{where}"


def _end(hold: Hold) -> str:
    if hold.until_ms is None:
        return "until 'hold rm' releases it"
    end = show_until(hold.until_ms)
    instant = show_instant(hold.until_ms)
    return f"until {end}" if end == instant else f"until {end} ({instant})"


def _document(hold: Hold, now_ms: int) -> dict[str, Any]:
    values = {name: getattr(hold, name) for name in Hold.__slots__}
    return {**values, "kind": hold.kind.value, "holds": hold.holds(now_ms)}
