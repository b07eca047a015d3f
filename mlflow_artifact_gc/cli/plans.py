"""``plan`` and ``apply``: what ``gc`` does, in two steps with a file between them."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any, Final

import click

from mlflow_artifact_gc import applying, database, journal
from mlflow_artifact_gc.cli import plan_file, render
from mlflow_artifact_gc.cli.backlog import CONCURRENCY, Backlog, Wishes, asked_for
from mlflow_artifact_gc.cli.holding import author_of
from mlflow_artifact_gc.config import Settings, never_harsher
from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.journal import FullTagSets
from mlflow_artifact_gc.model import Limits, Plan
from mlflow_artifact_gc.plan_files import PlanFile, Terms
from mlflow_artifact_gc.policy import brakes
from mlflow_artifact_gc.session import Session, open_session

_EXIT_INTERRUPTED: Final = 130
_IGNORES_REGISTRY: Final = "--unsafe-ignore-registry"


def make(*, output_file: str, **options: Any) -> None:
    """Carry out ``plan`` and leave with its exit code."""
    plan_file.require_writable(output_file)
    json_output = options["output"] == "json"
    if json_output and output_file == "-":
        raise UsageError("--format json and '-o -' both write to standard output: name a file with -o")
    backlog = asked_for(options, note=False)
    plan = backlog.plan()
    if plan is None:
        click.echo("Interrupted cleanly: nothing was written.", err=True)
        sys.exit(_EXIT_INTERRUPTED)
    file = PlanFile.of(plan, _terms(backlog))
    plan_file.write(output_file, file)
    if json_output:
        document = render.plan_document(file.plan, file.digest)
        render.print_json({"command": "plan", "file": output_file, "plan": document, "exit_code": 0})
    elif output_file != "-":
        backlog.show(plan)
        _say_what_next(plan, output_file)


def _say_what_next(plan: Plan, output_file: str) -> None:
    click.echo(f"\nWritten to {output_file}, and nothing was touched. Next:")
    click.echo(f"  mlflow-artifact-gc show {output_file}")
    click.echo(f"  mlflow-artifact-gc apply {output_file}")
    if brakes(plan):
        click.echo("As it is, 'apply' will refuse it: make it again with the limit raised.")


def _terms(backlog: Backlog) -> Terms:
    site, wishes = backlog.session.site, backlog.wishes
    return Terms(
        by=f"{author_of(None)} on {journal.actor()}",
        given=wishes.given,
        grace_ms=wishes.grace_ms,
        include_undated=wishes.include_undated,
        delete_metadata=wishes.delete_metadata,
        scope=wishes.scope,
        site_action=site.action,
        site_grace_ms=site.grace_ms,
        site_min_object_age_ms=site.min_object_age_ms,
        site_full_tag_sets=site.full_tag_sets.value,
    )


def apply(*, file: str, dry_run: bool, max_plan_age: int, time_budget: int | None, **options: Any) -> None:
    """Carry out ``apply`` and leave with its exit code."""
    settings = Settings.from_env()
    found = plan_file.read(file)
    ignores = options["unsafe_ignore_registry"]
    if ignores and _IGNORES_REGISTRY not in found.plan.unsafe:
        raise UsageError(f"The plan was not made with {_IGNORES_REGISTRY}: leave it out, or make a new plan with it")
    session = open_session(
        backend_store_uri=options["backend_store_uri"],
        registry_store_uri=options["registry_store_uri"],
        artifacts_destination=options["artifacts_destination"],
        unsafe_ignore_registry=ignores,
    )
    _require_applicable(session, found, max_age_ms=max_plan_age)
    applying.require_as_mild(
        found, site=session.site.action, wanted=never_harsher(session.site.action, settings.action)
    )
    if found.terms.site_full_tag_sets == FullTagSets.LEAVE:
        session = replace(session, site=replace(session.site, full_tag_sets=FullTagSets.LEAVE))
    wishes = _wishes(found, settings, session, options["concurrency"])
    backlog = Backlog(session, wishes, settings, json_output=options["output"] == "json")
    sys.exit(backlog.run(dry_run=dry_run, yes=True, budget_ms=time_budget))


def _require_applicable(session: Session, file: PlanFile, *, max_age_ms: int) -> None:
    """Early, and only to say so: what counts is asked again when the plan is begun."""
    with database.reading(session.engine) as connection:
        now_ms = database.clock_ms(connection)
        before = journal.applied(connection, file.plan.id)
    applying.require_applicable(file, database_id=session.site.database_id, now_ms=now_ms, max_age_ms=max_age_ms)
    journal.require_unspent(before, file.digest)


def _wishes(file: PlanFile, settings: Settings, session: Session, concurrency: int | None) -> Wishes:
    """The plan's own, and what is stricter by now."""
    site, terms, limits = session.site, file.terms, file.plan.limits
    grace_ms = applying.margin_ms(
        terms.grace_ms,
        given="--older-than" in terms.given,
        then_ms=terms.site_grace_ms,
        site_ms=site.grace_ms,
        own_ms=settings.grace_ms,
    )
    min_age_ms = applying.margin_ms(
        limits.min_object_age_ms,
        given="--min-object-age" in terms.given,
        then_ms=terms.site_min_object_age_ms,
        site_ms=site.min_object_age_ms,
        own_ms=settings.min_object_age_ms,
    )

    def lowest(planned: Any, own: Any, option: str) -> Any:
        return applying.lowest(planned, own, given=option in terms.given)

    return Wishes(
        scope=terms.scope,
        action=file.plan.action,
        grace_ms=grace_ms,
        limits=Limits(
            max_share=lowest(limits.max_share, settings.max_share, "--max-share"),
            share_from_locations=limits.share_from_locations,
            max_locations=limits.max_locations,
            max_objects=lowest(limits.max_objects, settings.max_objects, "--max-objects"),
            max_bytes=lowest(limits.max_bytes, settings.max_bytes, "--max-bytes"),
            min_object_age_ms=min_age_ms,
        ),
        concurrency=concurrency or settings.concurrency or CONCURRENCY,
        include_undated=terms.include_undated,
        delete_metadata=terms.delete_metadata,
        measure=False,
        unsafe=file.plan.unsafe,
        note=False,
        file=file,
    )
