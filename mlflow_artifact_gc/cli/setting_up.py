"""``init``: our tables and the site's settings, in MLflow's database."""

from __future__ import annotations

import sys
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

import click

from mlflow_artifact_gc import (
    agenda,
    bucket_rules,
    database,
    expiring,
    inbox,
    journal,
    ownership,
    references,
    s3,
    schema,
    sightings,
)
from mlflow_artifact_gc import registry as model_registry
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Output
from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import Refused, RootRefused, StorageError, TablesNotReady
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Action, EntityKind, Tombstone
from mlflow_artifact_gc.quantities import show_duration
from mlflow_artifact_gc.session import open_engine, readable_destination, registry_engine

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

_DAY_MS: Final = 86_400_000
_SHOWN: Final = (
    "grace_ms",
    "min_object_age_ms",
    "orphan_quarantine_ms",
    "action",
    "models",
    "artifacts_destination",
    "expiry_tag",
    "full_tag_sets",
)
_APPLY: Final = {
    Action.HIDE: "Run 'mlflow-artifact-gc lifecycle apply'; until then nothing removes what is hidden.",
    Action.TAG: "Run 'mlflow-artifact-gc lifecycle apply'; until then nothing is tagged.",
}
_VERBS: Final = {None: "purges", Action.PURGE: "purges", Action.HIDE: "hides", Action.TAG: "tags for expiry"}
_UNSHOWN: Final = ("database_fingerprint", "registry_fingerprint", "updated_ms")
_EXIT_NOT_CURRENT: Final = TablesNotReady.exit_code


def run(**options: Any) -> None:
    """Carry out ``init``, and leave with its exit code."""
    json_output = options["output"] == "json"
    engine = open_engine(options["backend_store_uri"])
    if options["check"]:
        _check(engine, json_output=json_output)
        return
    readable_destination(options["artifacts_destination"])
    options["expiry_tag"] = options["expiry_tag"] or Settings.from_env().expiry_tag
    if options["expiry_tag"] is not None:
        Tag.parse(options["expiry_tag"])
    rules = _rules(engine, options)
    registry = _registry_fingerprint(options["registry_store_uri"])

    def statements(connection: Connection) -> tuple[journal.Site | None, journal.Site]:
        schema.upgrade(connection)
        before = journal.read_site(connection)
        after = _settings(connection, before, options, registry)
        journal.write_site(connection, after, database.clock_ms(connection))
        if options["adopt"]:
            # What has no row now may have had one that the restored database does not know.
            sightings.forget_all(connection)
            journal.disown_roots(connection)
        if registry is not None or options["artifacts_destination"] is not None:
            # A person has said what is right; what servers said of themselves no longer stands against it.
            inbox.drained(connection, [note.id for note in inbox.servers(connection)])
        return before, after

    before, after = database.written(engine, statements)
    adopted = _adopt(engine, after) if options["adopt"] else []
    _tell(engine, before, after, adopted, rules, json_output=json_output)


def _check(engine: Engine, *, json_output: bool) -> None:
    with database.reading(engine) as connection:
        state = schema.state(connection)
    if json_output:
        render.print_json({"command": "init", "tables": state.value})
    else:
        click.echo(f"The tables of mlflow-artifact-gc in {database.display(engine.url)} are {state.value}.")
    sys.exit(0 if state is schema.SchemaState.CURRENT else _EXIT_NOT_CURRENT)


def _rules(engine: Engine, options: dict[str, Any]) -> list[str]:
    """What the buckets' own rules lack for the action that was asked for, a sentence each.

    Raises:
        Refused: a bucket cannot do its part of it.
    """
    action = Action(options["action"]) if options["action"] else None
    if action not in (Action.TAG, Action.HIDE):
        return []
    tracked = references.TrackingDatabase.probe(engine, models_follow_run=False)
    with database.reading(engine) as connection:
        known = schema.state(connection) is schema.SchemaState.CURRENT
        site = journal.read_site(connection) if known else None
        destination = Destination.parse(
            options["artifacts_destination"] or (site.artifacts_destination if site else None)
        )
        swept = journal.known_roots(connection) if known else []
        roots = bucket_rules.roots([uri for uri, _ in swept], tracked.on(connection), destination)
    tag = Tag.of_site(options["expiry_tag"] or (site.expiry_tag if site else None))
    client = s3.connect(Settings.from_env().environ)
    lacking: list[str] = []
    for bucket, prefixes in roots.items():
        try:
            examined = bucket_rules.examine(client, bucket, action=action, tag=tag, prefixes=prefixes)
        except StorageError as error:
            lacking.append(f"Its rules could not be read: {error}")
            continue
        if examined.impossible:
            raise Refused(f"{examined.sentence} Nothing was changed: use another --action")
        lacking.append(examined.sentence if examined.ready else f"{examined.sentence} {_APPLY[action]}")
        lacking += [f"Note: {warning.rstrip('.')}." for warning in examined.warnings]
    return lacking


def _registry_fingerprint(uri: str | None) -> str | None:
    if uri is None:
        return None
    with database.reading(registry_engine(uri)) as connection:
        model_registry.Registry(connection)  # Raises where there is no registry.
        return database.fingerprint(connection)


def _settings(
    connection: Connection, before: journal.Site | None, options: dict[str, Any], registry: str | None
) -> journal.Site:
    fingerprint = database.fingerprint(connection)
    fresh = journal.Site(
        database_id=str(uuid.uuid4()),
        database_fingerprint=fingerprint,
        switched_on_ms=database.clock_ms(connection),
        grace_ms=7 * _DAY_MS,
        min_object_age_ms=_DAY_MS,
        orphan_quarantine_ms=_DAY_MS,
    )
    site = before or fresh
    if site.database_fingerprint != fingerprint and not options["adopt"]:
        raise RootRefused(
            "This tracking database was set up on another database server or path: it is a copy, or it was moved. Only "
            "if it was moved, run 'mlflow-artifact-gc init --adopt'"
        )
    if registry is None and site.registry_fingerprint == site.database_fingerprint:
        registry = site.registry_fingerprint and fingerprint  # one database for both: they moved together
    return journal.with_settings(
        replace(site, database_fingerprint=fingerprint),
        grace_ms=options["grace"],
        min_object_age_ms=options["min_object_age"],
        orphan_quarantine_ms=options["orphan_quarantine"],
        action=Action(options["action"]) if options["action"] else None,
        expiry_tag=_expiry_tag(connection, site, options["expiry_tag"]),
        full_tag_sets=journal.FullTagSets(options["full_tag_sets"]) if options["full_tag_sets"] else None,
        models=journal.Models(options["models"]) if options["models"] else None,
        artifacts_destination=options["artifacts_destination"],
        registry_fingerprint=registry,
    )


def _expiry_tag(connection: Connection, site: journal.Site, wanted: str | None) -> str | None:
    """Raises Refused where objects carry another tag of ours: nobody could take it off again."""
    if wanted is None or Tag.parse(wanted) == Tag.of_site(site.expiry_tag):
        return wanted
    tagged = expiring.sums(connection).get(Action.TAG)
    if tagged:
        raise Refused(
            f"{tagged.locations:,} locations carry the tag {Tag.of_site(site.expiry_tag)}, and only by it can a "
            "restore take it off again: wait until the bucket's rule has removed them, or take them back with 'undo'"
        )
    return wanted


def _adopt(engine: Engine, site: journal.Site) -> list[tuple[str, int]]:
    """Take over every root that was swept under; each gets an epoch above any other's."""
    with database.reading(engine) as connection:
        known = [Location.parse(uri, Destination()) for uri, _ in journal.known_roots(connection)]
    client = s3.connect(Settings.from_env().environ)
    with database.writing(engine) as connection:
        journal.move_roots(connection, s3.endpoint_name(client))
    with ThreadPoolExecutor(1) as executor:
        roots = ownership.Roots(
            engine=engine,
            client=client,
            site=site,
            destination=Destination.parse(site.artifacts_destination),
            executor=executor,
        )
        return [(root.uri, roots.adopt(root)) for root in known]


def _tell(
    engine: Engine,
    before: journal.Site | None,
    after: journal.Site,
    adopted: list[tuple[str, int]],
    rules: list[str],
    *,
    json_output: bool,
) -> None:
    follow_run = after.models is journal.Models.FOLLOW_RUN
    tracked = references.TrackingDatabase.probe(engine, models_follow_run=follow_run)
    with database.reading(engine) as connection:
        tracking = tracked.on(connection)
        swept = agenda.settled(connection)
        stones = [stone for stone in tracking.tombstones() if _waits(stone, after, swept)]
        waiting = Counter(stone.entity.kind.value.replace("_", " ") for stone in stones)
        proxied = sum(stone.uri.startswith("mlflow-artifacts:") for stone in stones)
        registry_unknown = after.registry_fingerprint is None and model_registry.Registry(connection).empty
    changes = _changes(before, after)
    if json_output:
        settings = {name: getattr(after, name) for name in _SHOWN}
        render.print_json(
            {
                "command": "init",
                "database_id": after.database_id,
                "settings": settings,
                "changed": sorted(changes),
                "waiting": dict(waiting),
                "adopted": dict(adopted),
                "registry_known": not registry_unknown,
                "rules": rules,
            }
        )
        return
    out = Output()
    verb = "set up in" if before is None else "current in"
    out.print(f"mlflow-artifact-gc is {verb} {database.display(engine.url)}.")
    for name, (old, new) in changes.items():
        out.print(f"  changed: {name} from {old} to {new}")
    for uri, epoch in adopted:
        out.print(f"  adopted: {uri} (epoch {epoch})")
    grace = show_duration(after.grace_ms)
    out.print(
        f"From now on the worker beside 'mlflow server' {_VERBS[after.action]} what is deleted in MLflow more than "
        f"{grace} ago, unless something live needs it. (A server that was started before this package was installed "
        "has none: restart it.)"
    )
    for sentence in rules:
        out.print(sentence)
    if after.action is None:
        out.print("In buckets that keep versions it waits until 'init --action purge' says that all of them may go.")
    counts = ", ".join(f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in sorted(waiting.items()))
    out.print(f"Deleted in MLflow already, and waiting for an administrator's 'gc': {counts or 'nothing'}.")
    if after.artifacts_destination is None and proxied:
        out.print(
            f"Still to be said: {proxied:,} of them lie behind the artifact proxy. Run "
            "'init --artifacts-destination URI' as the server has it; 'gc' refuses until then."
        )
    if registry_unknown:
        out.print(
            "Still to be said: this database holds no model version. Run 'init --registry-store-uri URI' with the "
            "registry that the server uses (the backend store's own URI if they are one); 'gc' refuses until then."
        )


def _waits(stone: Tombstone, site: journal.Site, swept: dict[tuple[EntityKind, str], int]) -> bool:
    """Whether it was deleted before the worker was switched on, and was not swept since."""
    old = stone.deleted_ms is None or stone.deleted_ms < site.switched_on_ms
    return old and (stone.deleted_ms or 0) > swept.get((stone.entity.kind, stone.entity.id), -1)


def _changes(before: journal.Site | None, after: journal.Site) -> dict[str, tuple[str, str]]:
    if before is None:
        return {}
    names = [field.name for field in fields(after) if field.name not in _UNSHOWN]
    changed = {
        name.removesuffix("_ms"): (_show(name, getattr(before, name)), _show(name, getattr(after, name)))
        for name in names
        if getattr(before, name) != getattr(after, name)
    }
    if before.registry_fingerprint != after.registry_fingerprint:
        changed["registry"] = (
            "unknown" if before.registry_fingerprint is None else "another database",
            "the one given",
        )
    return changed


def _show(name: str, value: object) -> str:
    if value is None:
        return "none"
    return show_duration(value) if name.endswith("_ms") and isinstance(value, int) else str(value)
