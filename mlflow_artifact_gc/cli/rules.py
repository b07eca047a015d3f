"""``lifecycle show`` and ``lifecycle apply``: the bucket rules that ``tag`` and ``hide`` rely on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from mlflow_artifact_gc import bucket_rules, database, expiring, journal, s3, schema
from mlflow_artifact_gc.bucket_rules import Examined, RulesNotKept
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Output, ask
from mlflow_artifact_gc.config import Settings
from mlflow_artifact_gc.errors import ArtifactGcError, Refused, RootRefused, StorageError, TablesNotReady, UsageError
from mlflow_artifact_gc.expiry_tag import Tag
from mlflow_artifact_gc.lifecycle import as_json, describe
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Action
from mlflow_artifact_gc.references import TrackingDatabase
from mlflow_artifact_gc.session import open_engine, readable_destination

_NO_ROOT: Final = "No experiment of this database keeps its artifacts on S3, so no bucket needs rules."


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wish:
    """What is asked: the action, the site's tag, and the roots by bucket. ``proxied``: places that are not known.

    ``touched``: where something is hidden or tagged.
    """

    action: Action
    tag: Tag
    roots: Mapping[str, tuple[str, ...]]
    noncurrent_days: int | None
    moved: bool
    proxied: int
    touched: Sequence[Location]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Looked:
    """What came of one bucket: one of the two is set."""

    bucket: str
    examined: Examined | None = None
    error: ArtifactGcError | None = None


def show(*, output: str, **options: Any) -> None:
    """Carry out ``lifecycle show``; leaves with 1 where a bucket could not be read."""
    wish = _read(**options)
    client = _connect()
    looked = [_look(client, wish, bucket) for bucket in wish.roots]
    code = max((one.error.exit_code for one in looked if one.error), default=0)
    if output == "json":
        _print_json("lifecycle show", wish, looked, code)
    else:
        _print(wish, looked)
        if any(one.examined and one.examined.rules for one in looked):
            Output().print("'lifecycle apply' writes them.")
    sys.exit(code)


def apply(*, output: str, yes: bool, **options: Any) -> None:
    """Carry out ``lifecycle apply``; leaves with 4 where something was refused, with 1 where a bucket is unusable."""
    wish = _read(**options)
    if wish.moved:
        raise RootRefused(
            "This tracking database was set up on another database server or path: it is a copy, or it was moved. Only "
            "if it was moved, run 'mlflow-artifact-gc init --adopt'"
        )
    client, as_document = _connect(), output == "json"
    looked = [_look(client, wish, bucket) for bucket in wish.roots]
    lacking = [one.examined for one in looked if one.examined and one.examined.rules]
    if not as_document:
        _print(wish, looked)
    if lacking and not yes:
        _confirm(lacking, as_document=as_document)
    done = [_write(client, one, wish) for one in looked]
    code = max((one.error.exit_code for one in done if one.error), default=0)
    if as_document:
        _print_json("lifecycle apply", wish, done, code)
    else:
        _print_written(looked, done)
    sys.exit(code)


def _connect() -> s3.S3Client:
    return s3.connect(Settings.from_env().environ)


def _read(
    *,
    backend_store_uri: str | None,
    artifacts_destination: str | None,
    action: str | None,
    buckets: Sequence[str],
    noncurrent_days: int | None,
) -> _Wish:
    engine = open_engine(backend_store_uri)
    with database.reading(engine) as connection:
        schema.require_current(connection)
        site = journal.read_site(connection)
        if site is None:
            raise TablesNotReady("The site's settings are absent: run 'mlflow-artifact-gc init'")
        chosen = Action(action) if action else site.action
        if chosen not in (Action.TAG, Action.HIDE):
            raise UsageError("The site's action relies on no bucket rules: give --action tag or --action hide")
        if noncurrent_days is not None and chosen is not Action.HIDE:
            raise UsageError("--noncurrent-days belongs to --action hide; what is tagged goes after 1 day")
        moved = site.database_fingerprint != database.fingerprint(connection)
        touched = expiring.places(connection)
    destination = readable_destination(artifacts_destination or site.artifacts_destination)
    # After that reading has ended: on SQLite they take turns.
    tracked = TrackingDatabase.probe(engine, models_follow_run=site.models is journal.Models.FOLLOW_RUN)
    with database.reading(engine) as connection:
        tracking = tracked.on(connection)
        swept = (uri for uri, _ in journal.known_roots(connection))
        roots = bucket_rules.roots(swept, tracking, destination)
        proxied = _behind_an_unknown_proxy(tracking.experiment_uris(), destination)
    if missing := [bucket for bucket in buckets if bucket not in roots]:
        raise UsageError(
            f"No root of this database is in the bucket {missing[0]!r}; its roots are in: {', '.join(roots) or 'none'}"
        )
    return _Wish(
        action=chosen,
        tag=Tag.of_site(site.expiry_tag),
        roots={bucket: prefixes for bucket, prefixes in roots.items() if not buckets or bucket in buckets},
        noncurrent_days=noncurrent_days,
        moved=moved,
        proxied=proxied,
        touched=touched,
    )


def _behind_an_unknown_proxy(uris: Sequence[tuple[str, str]], destination: Destination) -> int:
    return 0 if destination.known else sum(uri.startswith("mlflow-artifacts:") for uri, _ in uris)


def _look(client: s3.S3Client, wish: _Wish, bucket: str) -> _Looked:
    try:
        examined = bucket_rules.examine(
            client,
            bucket,
            action=wish.action,
            tag=wish.tag,
            prefixes=wish.roots[bucket],
            noncurrent_days=wish.noncurrent_days,
        )
    except StorageError as error:
        return _Looked(bucket=bucket, error=error)
    return _Looked(bucket=bucket, examined=examined)


def _confirm(lacking: Sequence[Examined], *, as_document: bool) -> None:
    if not sys.stdin.isatty():
        raise Refused("Nobody can be asked here, so nothing was written: add --yes, or run it in a terminal")
    rules = sum(len(one.rules) for one in lacking)
    where = lacking[0].bucket if len(lacking) == 1 else f"{len(lacking)} buckets"
    if not ask(f"Write {render.plural(rules, 'rule')} to {where}?", err=as_document):
        raise Refused("The answer was no, and nothing was written")


def _write(client: s3.S3Client, looked: _Looked, wish: _Wish) -> _Looked:
    """What is there afterwards, or what kept it from being written."""
    if looked.examined is None:
        return looked
    try:
        bucket_rules.require_unused_tag(client, looked.examined, wish.touched)
        return _Looked(bucket=looked.bucket, examined=bucket_rules.apply(client, looked.examined))
    except (Refused, StorageError) as error:
        return _Looked(bucket=looked.bucket, error=error)


# What is printed


def _print(wish: _Wish, looked: Sequence[_Looked]) -> None:
    out = Output()
    if not looked:
        out.print(_NO_ROOT)
    for one in looked:
        if one.examined is None:
            out.print(f"Bucket {one.bucket!r}: {one.error}", style="red")
            continue
        out.print(one.examined.sentence, style="green" if one.examined.ready else "yellow")
        for warning in one.examined.warnings:
            out.print(f"  note: {warning}.")
        for rule in one.examined.rules:
            out.print(f"  to be written: {rule['ID']}: {describe(rule)}")
    if wish.proxied:
        out.print(
            f"{render.plural(wish.proxied, 'experiment')} behind the artifact proxy: give --artifacts-destination as "
            "the server has it, or nothing is said of that bucket."
        )


def _print_written(looked: Sequence[_Looked], done: Sequence[_Looked]) -> None:
    out = Output()
    for before, after in zip(looked, done, strict=True):
        if after.error is None and after.examined and before.examined and before.examined.rules:
            rules = render.plural(len(before.examined.rules), "rule")
            out.print(f"Written and read back: {rules}. {after.examined.sentence}")
        elif after.error is not None and before.error is None:
            click.echo(f"Error: {after.error}", err=True)
            if isinstance(after.error, RulesNotKept):
                click.echo(f"The rules of before: {json.dumps(as_json(after.error.before.rules))}", err=True)


def _print_json(command: str, wish: _Wish, looked: Sequence[_Looked], code: int) -> None:
    render.print_json(
        {
            "command": command,
            "action": wish.action.value,
            "tag": str(wish.tag),
            "behind_an_unknown_proxy": wish.proxied,
            "buckets": [_document(one, wish) for one in looked],
            "exit_code": code,
        }
    )


def _document(looked: _Looked, wish: _Wish) -> dict[str, Any]:
    head = {"bucket": looked.bucket, "roots": list(wish.roots[looked.bucket])}
    examined, error = looked.examined, looked.error
    if examined is None:
        before = {"rules_before": as_json(error.before.rules)} if isinstance(error, RulesNotKept) else {}
        return {**head, "error": str(error), **before}
    return {
        **head,
        "endpoint": examined.endpoint,
        "versioning": examined.versioning.value,
        "tags": examined.tags.value,
        "verdict": examined.verdict.value,
        "ready": examined.ready,
        "sentence": examined.sentence,
        "notes": list(examined.warnings),
        "undo_days": examined.undo_days,
        "expiry_days": examined.expiry_days,
        "to_be_written": as_json(examined.rules),
    }
