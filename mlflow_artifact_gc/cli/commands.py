"""The commands and their options, as click sees them. What they do is imported only when they run."""

from __future__ import annotations

import gc as gc_module
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.locations import without_secrets
from mlflow_artifact_gc.quantities import parse_duration, parse_size

if TYPE_CHECKING:
    _IntType = click.ParamType[int, Any]
    _TextsType = click.ParamType[tuple[str, ...], Any]
else:  # Generic since click 8.5 only.
    _IntType = _TextsType = click.ParamType

_F = TypeVar("_F", bound=Callable[..., Any])


@contextmanager
def _importing() -> Iterator[None]:
    """Imports make hundreds of thousands of objects and free none: the cyclic collector need not look at them, ever."""
    gc_module.disable()
    try:
        yield
    finally:
        gc_module.freeze()
        gc_module.enable()


class _Parsed(_IntType):
    """A parameter that one of our own parsers reads."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


DURATION = _Parsed("duration", parse_duration)
SIZE = _Parsed("size", parse_size)


class _Share(click.FloatRange):
    """A fraction; nan, which is in no range and compares with nothing, would switch the brake off."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Fails for what is no number between 0 and 1."""
        share = super().convert(value, param, ctx)
        if math.isnan(share):
            self.fail(f"{value} is not in the range 0<=x<=1.", param, ctx)
        return share


class _Ids(_TextsType):
    """Comma-separated ids, as 'mlflow gc' takes them."""

    name = "ids"

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        ids = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
        if not ids:
            self.fail("no id was given: write them with commas in between", _param, _ctx)
        return ids


def _remember_format(ctx: click.Context, _param: click.Parameter, value: str) -> str:
    ctx.meta["format"] = value
    return value


def _with(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_format = click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    callback=_remember_format,
    is_eager=True,
    help="A table for people, or JSON with a schema number.",
)
_backend = click.option(
    "--backend-store-uri",
    envvar="MLFLOW_BACKEND_STORE_URI",
    metavar="URI",
    help="The tracking database, as 'mlflow server' has it.",
)
_destination = click.option(
    "--artifacts-destination",
    envvar="MLFLOW_ARTIFACTS_DESTINATION",
    metavar="URI",
    callback=lambda _context, _option, uri: without_secrets(uri) if uri else uri,
    help="Where the server's artifact proxy keeps its objects, as 'mlflow server' has it.",
)
_stores = _with(
    _backend,
    click.option(
        "--registry-store-uri",
        envvar="MLFLOW_REGISTRY_STORE_URI",
        metavar="URI",
        help="The model registry's database, where it is another one.",
    ),
    _destination,
)


_planning = _with(
    click.option(
        "--older-than", type=DURATION, help="Deleted in MLflow at least so long ago.  [default: the site's grace]"
    ),
    click.option("--include-undated", is_flag=True, help="Also rows that do not say when they were deleted."),
    click.option("--run-ids", type=_Ids(), default=(), help="Only these runs."),
    click.option("--experiment-ids", type=_Ids(), default=(), help="Only what belongs to these experiments."),
    click.option("--logged-model-ids", type=_Ids(), default=(), help="Only these logged models."),
    click.option("--workspace", help="Only this workspace."),
    click.option("--all-workspaces", is_flag=True, help="Every workspace; so it is without --workspace."),
    click.option("--action", type=click.Choice(["purge", "hide", "tag"]), help="What to do.  [default: the site's]"),
    click.option(
        "--metadata",
        type=click.Choice(["keep", "delete"]),
        default="keep",
        show_default=True,
        help="Whether MLflow's rows go too, where the location is verified to be empty.",
    ),
    click.option(
        "--measure", is_flag=True, help="Count objects and bytes before, also with --yes or beyond 10,000 locations."
    ),
    click.option("--concurrency", type=click.IntRange(1, 256), help="Requests at a time.  [default: 16]"),
    click.option(
        "--min-object-age", type=DURATION, help="Younger objects postpone their location.  [default: the site's]"
    ),
    click.option(
        "--max-share",
        type=_Share(),
        help="Brake: share of all entities, beyond 100 locations.  [default: 0.5]",
    ),
    click.option("--max-locations", type=click.IntRange(0), help="Brake: locations."),
    click.option("--max-objects", type=click.IntRange(0), help="Brake: objects."),
    click.option("--max-bytes", type=SIZE, help="Brake: bytes."),
    click.option("--unsafe-ignore-registry", is_flag=True, help="Go on without knowing what the model registry needs."),
    click.option("--tracking-uri", help="For old scripts: a database URI is taken as the backend store."),
)


def _require_database(uri: str | None) -> None:
    """Before anything heavy is imported."""
    if not uri:
        raise UsageError(
            "No database was named: give --backend-store-uri (or MLFLOW_BACKEND_STORE_URI) as 'mlflow server' has it"
        )


def _require_plannable(options: dict[str, Any]) -> None:
    """What ``_planning`` asks for makes sense."""
    if options.pop("all_workspaces") and options["workspace"]:
        raise UsageError("--workspace and --all-workspaces exclude each other: give one of them")
    _require_database(options["backend_store_uri"] or options["tracking_uri"])


@click.command(
    epilog="""\b
Example:
  mlflow-artifact-gc init --backend-store-uri postgresql+psycopg2://mlflow@db/mlflow --grace 14d
"""
)
@_stores
@click.option("--grace", type=DURATION, help="From the deletion to the first moment of a purge.  [default: 7d]")
@click.option("--min-object-age", type=DURATION, help="Younger objects postpone their location.  [default: 24h]")
@click.option("--orphan-quarantine", type=DURATION, help="Between two sightings of an orphan.  [default: 24h]")
@click.option("--action", type=click.Choice(["purge", "hide", "tag"]), help="What a sweep does.  [default: purge]")
@click.option(
    "--models",
    type=click.Choice(["keep", "follow-run"]),
    help="Whether a logged model goes with its deleted run.  [default: keep]",
)
@click.option(
    "--expiry-tag",
    metavar="KEY=VALUE",
    help="The tag that --action tag puts on objects.  [default: mlflow-artifact-gc=expired]",
)
@click.option(
    "--full-tag-sets",
    type=click.Choice(["leave", "purge"]),
    help="What --action tag does to an object that has ten tags already.  [default: leave]",
)
@click.option("--check", is_flag=True, help="Only say whether our tables are current (exit 0 or 5).")
@click.option("--adopt", is_flag=True, help="Take over the roots after the database was moved or restored.")
@_format
def init(**options: Any) -> None:
    """Set up our tables and the site's settings in MLflow's database.

    Run it again to upgrade the tables or to change settings; it says what it changed and never asks.
    """
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import setting_up

    setting_up.run(**options)


@click.command(
    epilog="""\b
Examples:
  mlflow-artifact-gc gc --backend-store-uri sqlite:///mlflow.db --dry-run
  mlflow-artifact-gc gc --run-ids 3f0c1…,77aa0… --older-than 0s
  mlflow-artifact-gc gc --yes --metadata delete --time-budget 2h
  mlflow-artifact-gc gc --orphans --dry-run
"""
)
@_stores
@_planning
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--time-budget", type=DURATION, help="Stop cleanly after so long; run again to go on.")
@click.option("--jobs", is_flag=True, hidden=True)
@click.option("--job-ids", hidden=True)
@click.option("--orphans", is_flag=True, help="Instead: what lies in S3 and has no row, live or deleted, any more.")
@click.option("--root", "roots", multiple=True, metavar="URI", help="Of --orphans and --own-roots: only this root.")
@click.option(
    "--own-roots",
    is_flag=True,
    help="Show what lies under the roots, and mark them as this database's; sweeps nothing.",
)
@click.option("--orphan-quarantine", type=DURATION, help="Between two sightings of an orphan.  [default: the site's]")
@click.option("--partial", is_flag=True, help="Purge also what lies beside a run's folder that alone is needed.")
@_format
def gc(**options: Any) -> None:
    """Purge from S3 what is deleted in MLflow: plan, show, confirm, sweep, report.

    Takes every soft-deleted run, and the logged models and traces that were deleted or went with their experiment,
    past the grace period. What anything live refers to stays. The ids only narrow it down; they never shorten the
    grace period.

    With --orphans it takes what no row accounts for any more, and nothing else: under roots that are marked as this
    database's, in a layout of MLflow's, seen twice at least the site's orphan quarantine apart.
    """
    if options.pop("jobs") or options.pop("job_ids"):
        raise UsageError("Jobs have no artifacts of their own: 'mlflow gc --jobs' deletes their records")
    orphans = {name: options.pop(name) for name in ("own_roots", "roots", "orphan_quarantine")}
    wanted = options.pop("orphans") or orphans["own_roots"]
    if not wanted and (orphans["roots"] or orphans["orphan_quarantine"] is not None):
        raise UsageError("--root and --orphan-quarantine belong to --orphans: add it")
    _require_plannable(options)
    options.pop("job_ids", None)
    if wanted:
        with _importing():
            from mlflow_artifact_gc.cli import orphaned

        orphaned.run(**orphans, **options)
        return
    with _importing():
        from mlflow_artifact_gc.cli import backlog

    backlog.run(**options)


@click.command(
    epilog="""\b
Examples:
  mlflow-artifact-gc plan -o plan.jsonl --backend-store-uri sqlite:///mlflow.db
  mlflow-artifact-gc plan -o plan.jsonl --older-than 90d --experiment-ids 7
"""
)
@_stores
@_planning
@click.option(
    "-o",
    "--output",
    "output_file",
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the plan there; - is standard output.",
)
@_format
def plan(**options: Any) -> None:
    """Decide as 'gc' does, and write the plan to a file: for a second person to 'show', and for 'apply'.

    Shows what 'gc --dry-run' shows. Writes the file and nothing else.
    """
    _require_plannable(options)
    with _importing():
        from mlflow_artifact_gc.cli import plans

    plans.make(**options)


_plan_file = click.argument("file", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))


@click.command(
    "show",
    epilog="""\b
Example:
  mlflow-artifact-gc show plan.jsonl
""",
)
@_plan_file
@_format
def show_plan(*, file: str, output: str) -> None:
    """Show what a plan file would do, and that it is as it was written. Needs no database."""
    from mlflow_artifact_gc.cli import plan_file

    plan_file.show(file, json_output=output == "json")


@click.command(
    "apply",
    epilog="""\b
Examples:
  mlflow-artifact-gc apply plan.jsonl --backend-store-uri sqlite:///mlflow.db --dry-run
  mlflow-artifact-gc apply plan.jsonl --backend-store-uri sqlite:///mlflow.db
""",
)
@_plan_file
@_stores
@click.option("--dry-run", is_flag=True, help="Show what is left of the plan, and stop.")
@click.option(
    "--max-plan-age", type=DURATION, default="7d", show_default=True, help="Refuse a plan that was made longer ago."
)
@click.option("--time-budget", type=DURATION, help="Stop cleanly after so long; apply it again to go on.")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Requests at a time.  [default: 16]")
@click.option("--unsafe-ignore-registry", is_flag=True, help="As for 'gc'; only where the plan was made with it too.")
@_format
def apply_plan(**options: Any) -> None:
    """Carry out a plan file, once, without asking; interrupted, it goes on when it is applied again.

    Everything is decided anew, and the file only selects: what is not due any more, or not as it was planned, is
    dropped and reported; what is due by now and is not in the file stays.
    """
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import plans

    plans.apply(**options)


@click.command(
    epilog="""\b
Example:
  mlflow-artifact-gc status --backend-store-uri sqlite:///mlflow.db
"""
)
@_stores
@click.option("--unsafe-ignore-registry", is_flag=True, help="Go on without knowing what the model registry needs.")
@_format
def status(**options: Any) -> None:
    """Say what waits, until when, what is protected by what, and what failed. Touches nothing, and not S3."""
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import standing

    standing.run(**options)


_AUDIT_FIELDS = (
    *("size", "old", "objects", "versions", "markers", "uploads", "money", "age"),
    *("verdict", "lost", "kind", "id", "experiment", "workspace", "owner", "bucket", "prefix", "class"),
)


@click.command(
    epilog="""\b
Examples:
  mlflow-artifact-gc audit --backend-store-uri sqlite:///mlflow.db
  mlflow-artifact-gc audit --filter 'verdict=left over' --filter 'size>1GB' --sort money
  mlflow-artifact-gc audit --format parquet --output audit.parquet
"""
)
@_stores
@click.option("--root", "roots", multiple=True, metavar="URI", help="Another place to list; may be given repeatedly.")
@click.option(
    "--older-than", type=DURATION, help="Garbage is what was deleted so long ago.  [default: the site's grace, or 7d]"
)
@click.option(
    "--min-object-age", type=DURATION, help="Younger objects are too young to judge.  [default: the site's, or 24h]"
)
@click.option(
    "--filter",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Only such prefixes: a field, one of = != < <= > >= ~ (contains), a value.",
)
@click.option(
    "--sort",
    type=click.Choice(_AUDIT_FIELDS),
    default="size",
    show_default=True,
    help="What comes first; numbers down.",
)
@click.option("--limit", type=click.IntRange(0), help="So many prefixes.  [default: 20 in a table, else all]")
@click.option("--output", "output_file", metavar="FILE", type=click.Path(dir_okay=False), help="Write it to a file.")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Requests at a time.  [default: 16]")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "json", "csv", "parquet"]),
    default="table",
    show_default=True,
    callback=_remember_format,
    is_eager=True,
    help="A table for people, or all prefixes for programs.",
)
def audit(**options: Any) -> None:
    """Say what is in S3, whose it is, what it costs and why it stays or goes. Reads only; needs no 'init'.

    Lists the artifact locations of the tracking database once and gives every prefix exactly one verdict: live,
    soft-deleted, protected, garbage, left over, too young to judge, or of an unknown layout.
    """
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import auditing

    auditing.run(**options)


@click.command(
    epilog="""\b
Examples:
  mlflow-artifact-gc undo --backend-store-uri sqlite:///mlflow.db --run-ids 3f0c1…,77aa0…
  mlflow-artifact-gc undo --plan 0b9f6c0e-…
"""
)
@_stores
@click.option("--run-ids", type=_Ids(), default=(), help="What these runs have.")
@click.option("--logged-model-ids", type=_Ids(), default=(), help="What these logged models have.")
@click.option("--experiment-ids", type=_Ids(), default=(), help="What belongs to these experiments.")
@click.option("--plan", "plan_id", metavar="ID", help="What this plan has hidden or tagged; 'gc' says its id.")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Requests at a time.  [default: 16]")
@_format
def undo(**options: Any) -> None:
    """Take back what was hidden or tagged, as far as the bucket's lifecycle rule has not removed it yet.

    Removes exactly the delete markers that a hide wrote, or the expiry tag. What is taken back stays until it is
    deleted again, or named in a 'gc'. What was purged is gone.
    """
    if not any(options[name] for name in ("run_ids", "logged_model_ids", "experiment_ids", "plan_id")):
        raise UsageError("Nothing was named: give --run-ids, --logged-model-ids, --experiment-ids or --plan")
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import undoing

    undoing.run(**options)


_author = click.option("--author", help="Who does this.  [default: the user of the operating system]")


@click.group()
def hold() -> None:
    """Keep artifacts by hand, whatever is deleted in MLflow, until the hold ends or is released.

    Users keep what is theirs in MLflow itself: by the tag artifact_gc.keep (true, or a date) on a run, experiment,
    logged model, registered model or model version.
    """


@hold.command(
    "add",
    epilog="""\b
Examples:
  mlflow-artifact-gc hold add --run-id 3f0c1…,77aa0… --reason "audit 2026" --until 2027-01-01
  mlflow-artifact-gc hold add --registered-model churn --reason "in production until it is replaced"
  mlflow-artifact-gc hold add --location s3://bucket/mlruns/7 --reason "being copied" --until 2d
""",
)
@_stores
@click.option("--run-id", "run_ids", type=_Ids(), multiple=True, help="These runs, their logged models and traces.")
@click.option("--experiment-id", "experiment_ids", type=_Ids(), multiple=True, help="All that these experiments have.")
@click.option("--logged-model-id", "logged_model_ids", type=_Ids(), multiple=True, help="These logged models.")
@click.option(
    "--registered-model",
    "registered_models",
    multiple=True,
    metavar="NAME",
    help="What the versions of this registered model point at, deleted ones too.",
)
@click.option(
    "--location",
    "locations",
    multiple=True,
    metavar="URI",
    help="What lies in this folder (s3: or mlflow-artifacts:), or around it.",
)
@click.option("--workspace", help="Of a registered model: only in this workspace.  [default: in every one]")
@click.option("--reason", required=True, help="Why; plans and reports say it.")
@click.option("--until", metavar="END", help="A date (to its end, in UTC), an instant or a duration.  [default: never]")
@_author
@_format
def hold_add(**options: Any) -> None:
    """Put a hold on runs, experiments, logged models, registered models or locations: one kind at a time."""
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import holding

    holding.add(**options)


@hold.command("rm", epilog="\b\nExample:\n  mlflow-artifact-gc hold rm 3 4\n")
@_backend
@click.argument("numbers", nargs=-1, required=True, metavar="NUMBER...")
@_author
@_format
def hold_rm(**options: Any) -> None:
    """Release holds: what nothing else keeps is looked at again at once."""
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import holding

    holding.release(**options)


@hold.command("ls")
@_backend
@click.option("--all", "every", is_flag=True, help="Also those that have ended or were released.")
@_format
def hold_ls(**options: Any) -> None:
    """List holds: on what, by whom, why, until when."""
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import holding

    holding.show(**options)


@click.command(
    epilog="""\b
Examples:
  mlflow-artifact-gc worker --backend-store-uri postgresql+psycopg2://mlflow@db/mlflow
  mlflow-artifact-gc worker --once     (for cron)
"""
)
@_stores
@click.option("--once", is_flag=True, help="Look once, do what is due, and end.")
@click.option("--embedded", is_flag=True, hidden=True)
def worker(**options: Any) -> None:
    """Purge by itself what is past its grace period: the loop in the foreground, until SIGTERM.

    'mlflow server' starts one by itself (MLFLOW_ARTIFACT_GC_WORKER=off: it does not). Several may run; one of them
    works. It acts on what was deleted after 'init'.
    """
    if not options["embedded"]:
        _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import working

    working.run(**options)


@click.command(
    epilog="""\b
Example:
  mlflow-artifact-gc demo
"""
)
@click.option("--no-wait", is_flag=True, help="Stop the servers at the end instead of leaving them up until Ctrl-C.")
def demo(*, no_wait: bool) -> None:
    """Show it all on this machine: an S3 server, an MLflow server, runs deleted, their objects gone.

    Everything lives in a temporary folder that is removed at the end. Needs 'pip install mlflow-artifact-gc[demo]'.
    """
    from mlflow_artifact_gc.demo import story

    story.run(wait=not no_wait)


@click.group()
def lifecycle() -> None:
    """The lifecycle rules of buckets that the actions 'tag' and 'hide' rely on: look at them, or write them."""


_wish = _with(
    _backend,
    _destination,
    click.option("--action", type=click.Choice(["tag", "hide"]), help="Which rules.  [default: the site's action]"),
    click.option("--bucket", "buckets", multiple=True, metavar="NAME", help="Only this bucket; may be repeated."),
    click.option(
        "--noncurrent-days",
        type=click.IntRange(1, 36_500),
        help="With 'hide': for how long it can be undone.  [default: as it is there, else 7]",
    ),
)


@lifecycle.command(
    epilog="""\b
Example:
  mlflow-artifact-gc lifecycle show --backend-store-uri sqlite:///mlflow.db --action tag
"""
)
@_wish
@_format
def show(**options: Any) -> None:
    """Say for each bucket whether its rules do what the action relies on, and what is missing. Writes nothing."""
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import rules

    rules.show(**options)


@lifecycle.command(
    epilog="""\b
Example:
  mlflow-artifact-gc lifecycle apply --backend-store-uri sqlite:///mlflow.db --action tag --bucket artifacts
"""
)
@_wish
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@_format
def apply(**options: Any) -> None:
    """Write the rules that are missing, beside those that are there, and read them back.

    Rules of others are never changed. Ours are written disabled first, compared, and only then enabled; if the server
    does not keep them as they are, what was there before is put back.
    """
    _require_database(options["backend_store_uri"])
    with _importing():
        from mlflow_artifact_gc.cli import rules

    rules.apply(**options)
