"""How plans, results and settings look: tables for people, JSON with a schema number for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from heapq import nsmallest
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import click

from mlflow_artifact_gc.cli.output import Grid, Output
from mlflow_artifact_gc.locations import Location, without_secrets
from mlflow_artifact_gc.model import Action, Decision, Decisions, Outcome, Plan, Reason, SweepResult, Verdict
from mlflow_artifact_gc.quantities import show_count, show_duration, show_instant, show_minute, show_size

if TYPE_CHECKING:
    from mlflow_artifact_gc.applying import Selection
    from mlflow_artifact_gc.kept import Kept
    from mlflow_artifact_gc.partly import Partly
    from mlflow_artifact_gc.plan_files import PlanFile, Terms
    from mlflow_artifact_gc.restoring import Restored
    from mlflow_artifact_gc.sweeping import Report

SCHEMA: Final = 1
_LINES: Final = 20
_PLACES: Final = {reason: place for place, reason in enumerate(Reason)}
_BAD: Final = frozenset({Outcome.FAILED, Outcome.UNKNOWN, Outcome.PAUSED})


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document, and nothing else, to standard output."""
    click.echo(json.dumps({"schema": SCHEMA, **document}, indent=2))


# Plans


def plan_document(plan: Plan, digest: str | None = None) -> dict[str, Any]:
    """A plan, every line of it; with the digest of the file that it is in, if it is in one."""
    totals = plan.totals
    return {
        "id": plan.id,
        "created_ms": plan.created_ms,
        "cutoff_ms": plan.cutoff_ms,
        "action": plan.action.value,
        "database_id": plan.database_id,
        "entity_rows": plan.entity_rows,
        "unsafe": list(plan.unsafe),
        "digest": digest or plan.digest,
        "totals": {
            "locations": totals.locations,
            "due": totals.due,
            "due_objects": totals.due_objects,
            "due_bytes": totals.due_bytes,
            "by_reason": {reason.value: count for reason, count in totals.by_reason},
        },
        "decisions": [_decision_document(line) for line in plan.decisions],
    }


def _decision_document(line: Decision) -> dict[str, Any]:
    return {
        "kind": line.entity.kind.value,
        "id": line.entity.id,
        "experiment_id": line.entity.experiment_id,
        "workspace": line.entity.workspace,
        "uri": without_secrets(line.uri),
        "location": line.location.uri if line.location else None,
        "deleted_ms": line.deleted_ms,
        "verdict": line.verdict.value,
        "reason": line.reason.value,
        "evidence": line.evidence,
        "expected_objects": line.expected_objects,
        "expected_bytes": line.expected_bytes,
        **({"orphan": asdict(line.orphan)} if line.orphan else {}),
        "needed": [part.uri for part in line.needed],
    }


def show_plan(out: Output, plan: Plan, *, older_than_ms: int, grace_ms: int) -> None:
    """A line a location: what would be swept, then what stays and why; long plans are cut, totals are not."""
    site = "" if older_than_ms == grace_ms else f"; the site's grace period is {show_duration(grace_ms)}"
    ago = f"more than {show_duration(older_than_ms)} ago{site}"
    out.print(f"Deleted in MLflow before {show_instant(plan.cutoff_ms)} ({ago}).\n")
    if plan.due:
        _show_sweep(out, plan.due)
    # What was swept before is counted below; with a worker it would fill the table.
    kept = [reason for reason in Reason if reason.verdict is Verdict.KEEP and reason is not Reason.SWEPT_BEFORE]
    if keep := [lines for reason in kept if (lines := plan.with_reason(reason))]:
        _show_keep(out, keep)
    _show_totals(out, plan)


def show_brakes(out: Output, tripped: Iterable[str]) -> None:
    """Why a plan would be refused, a line for each brake."""
    for sentence in tripped:
        out.print(sentence, style="red")


def show_orphans(out: Output, plan: Plan, *, quarantine_ms: int, unknown: int, noted: bool) -> None:
    """The same of what no row accounts for; ``noted``: this sight of it was written down."""
    ordered = sorted(plan.decisions, key=_plan_order)
    sweep = [line for line in ordered if line.verdict is Verdict.SWEEP]
    keep = [line for line in ordered if line.verdict is Verdict.KEEP]
    for title, lines, style in (("sweep", sweep, "red"), ("keep", keep, "green")):
        grid = Grid(title, "objects", "size", "reason", "why", numbers=("objects", "size"))
        for line in lines[:_LINES]:
            grid.add_row(
                line.uri,
                show_count(line.expected_objects),
                show_size(line.expected_bytes),
                line.reason.value,
                line.evidence or line.reason.sentence,
                style=style,
            )
        if lines:
            _show_table(out, grid, cut=len(lines) - _LINES)
    _show_totals(out, plan)
    if unknown:
        out.print(f"Beside: {plural(unknown, 'prefix', 'prefixes')} of an unknown layout, which nothing touches.")
    waits = [line.orphan.seen_ms for line in keep if line.reason is Reason.QUARANTINE and line.orphan]
    first = [seen_ms for seen_ms in waits if seen_ms is not None]
    new = len(waits) - len(first)
    if new and noted:
        out.print(
            f"Noted: {plural(new, 'prefix', 'prefixes')} for the first time, or written to since. A 'gc --orphans' at "
            f"least {show_duration(quarantine_ms)} from now sweeps what is still there and still without a row."
        )
    if first:
        out.print(f"The next comes out of its quarantine at {show_instant(min(first) + quarantine_ms)}.")


def _show_sweep(out: Output, lines: Sequence[Decision]) -> None:
    grid = Grid("sweep", "experiment", "deleted", "objects", "size", "reason", numbers=("objects", "size"))
    for line in _first([lines]):
        grid.add_row(
            str(line.entity),
            line.entity.experiment_id,
            show_minute(line.deleted_ms),
            show_count(line.expected_objects),
            show_size(line.expected_bytes),
            line.reason.value,
            style="red",
        )
    _show_table(out, grid, cut=len(lines) - _LINES)


def _show_keep(out: Output, by_reason: Sequence[Sequence[Decision]]) -> None:
    grid = Grid("keep", "deleted", "reason", "why")
    for line in _first(by_reason):
        why = line.evidence or line.reason.sentence
        grid.add_row(str(line.entity), show_minute(line.deleted_ms), line.reason.value, why, style="green")
    _show_table(out, grid, cut=sum(map(len, by_reason)) - _LINES)


def _show_table(out: Output, grid: Grid, *, cut: int) -> None:
    out.table(grid)
    out.print(f"… and {cut:,} more (--format json has them all)\n" if cut > 0 else "")


def _first(by_reason: Sequence[Sequence[Decision]]) -> list[Decision]:
    # Of so many that they are packed none was measured: within a reason, their ids are all of their order.
    some = (lines.first(_LINES) if isinstance(lines, Decisions) else lines for lines in by_reason)
    return nsmallest(_LINES, chain.from_iterable(some), key=_plan_order)


def _plan_order(line: Decision) -> tuple[int, int, int, str]:
    return (
        0 if line.verdict is Verdict.SWEEP else 1,
        _PLACES[line.reason],
        -(line.expected_bytes or 0),
        line.entity.id,
    )


def _show_totals(out: Output, plan: Plan) -> None:
    totals = plan.totals
    amount = " (not measured)"
    if totals.due_objects is not None:
        amount = f", {plural(totals.due_objects, 'object')}, {show_size(totals.due_bytes)}"
    out.print(f"To sweep: {plural(totals.due, 'location')}{amount if totals.due else ''}.", style="bold")
    kept = [f"{count:,} {REASON_WORDS[reason]}" for reason, count in totals.by_reason if reason is not Reason.DUE]
    if kept:
        out.print(f"To keep: {', '.join(kept)}.")


REASON_WORDS: Final = {
    Reason.GRACE: "in their grace period",
    Reason.UNDATED: "without a date",
    Reason.PROTECTED: "protected",
    Reason.NESTED: "nested",
    Reason.SWEPT_BEFORE: "swept before",
    Reason.WAITING: "hidden or tagged",
    Reason.UNDONE: "taken back",
    Reason.NOT_PLANNED: "not in the plan file as they are now",
    Reason.NOT_ON_S3: "not on S3",
    Reason.OTHER_SERVER: "of another server",
    Reason.UNREADABLE: "with an unreadable URI",
    Reason.LAYOUT: "of another layout",
    Reason.QUARANTINE: "in quarantine",
    Reason.YOUNG: "too young",
    Reason.NOT_OWNED: "under a root that is not marked as this database's",
}


# Plan files


def terms_document(file: PlanFile) -> dict[str, Any]:
    """What the header of a plan file has beside the plan."""
    terms = file.terms
    return {
        "by": terms.by,
        "given": list(terms.given),
        "grace_ms": terms.grace_ms,
        "include_undated": terms.include_undated,
        "metadata": "delete" if terms.delete_metadata else "keep",
        "scope": asdict(terms.scope),
        "limits": asdict(file.plan.limits),
    }


def show_terms(out: Output, file: PlanFile) -> None:
    """Who made a plan file, when, for which database, and what it is to do."""
    plan, terms = file.plan, file.terms
    rows = " and deletes their rows" if terms.delete_metadata else ""
    out.print(f"Plan {plan.id} of {show_instant(plan.created_ms)}, by {terms.by}, for database {plan.database_id}.")
    out.print(
        f"It {_DOES[plan.action]}{rows}; made with {', '.join(_options(plan, terms)) or 'the settings of the site'}."
    )


_DOES: Final = {
    Action.PURGE: "purges",
    Action.HIDE: "hides",
    Action.TAG: "tags for expiry",
}


def _options(plan: Plan, terms: Terms) -> Iterator[str]:
    """The command line that the plan was made with, as far as it decides something."""
    limits, scope = plan.limits, terms.scope
    values = {
        "--action": plan.action.value,
        "--older-than": show_duration(terms.grace_ms),
        "--min-object-age": show_duration(limits.min_object_age_ms),
        "--max-share": f"{limits.max_share:g}",
        "--max-objects": show_count(limits.max_objects),
        "--max-bytes": show_size(limits.max_bytes),
    }
    yield from (f"{name} {value}" for name, value in values.items() if name in terms.given)
    if limits.max_locations is not None:
        yield f"--max-locations {limits.max_locations:,}"
    ids = {
        "--run-ids": scope.run_ids,
        "--experiment-ids": scope.experiment_ids,
        "--logged-model-ids": scope.logged_model_ids,
    }
    yield from (f"{name} ({len(some):,})" for name, some in ids.items() if some)
    if scope.workspace is not None:
        yield f"--workspace {scope.workspace}"
    if terms.include_undated:
        yield "--include-undated"
    yield from plan.unsafe


def show_selection(out: Output, file: PlanFile, plan: Plan, selection: Selection) -> None:
    """Of a plan file what is to be swept now, by ``plan``, and what was dropped."""
    show_terms(out, file)
    out.print("")
    due = sorted(plan.due, key=_plan_order)
    if due:
        _show_sweep(out, due)
    if selection.dropped:
        grid = Grid("dropped", "deleted", "why")
        for result in selection.dropped[:_LINES]:
            line = result.decision
            grid.add_row(str(line.entity), show_minute(line.deleted_ms), result.detail, style="yellow")
        _show_table(out, grid, cut=len(selection.dropped) - _LINES)
    counts = [f"{len(due):,} to sweep"]
    counts += [f"{selection.done:,} done before"] if selection.done else []
    counts += [f"{len(selection.dropped):,} dropped, no longer as planned"] if selection.dropped else []
    out.print(
        f"Of the {plural(file.plan.totals.due, 'location')} that the plan has as due: {', '.join(counts)}.",
        style="bold",
    )


def selection_document(file: PlanFile, selection: Selection) -> dict[str, Any]:
    """The same as a document."""
    return {
        "command": "apply",
        "file": {
            "id": file.plan.id,
            "created_ms": file.plan.created_ms,
            "digest": file.digest,
            "due": file.plan.totals.due,
            **terms_document(file),
        },
        "dropped": len(selection.dropped),
        "done_before": selection.done,
    }


# Results


def result_document(result: SweepResult) -> dict[str, Any]:
    """What became of one location."""
    location = result.decision.location
    return {
        "kind": result.decision.entity.kind.value,
        "id": result.decision.entity.id,
        "experiment_id": result.decision.entity.experiment_id,
        "location": location.uri if location else None,
        "action": result.action.value,
        "outcome": result.outcome.value,
        "detail": result.detail,
        **{name: getattr(result, name) for name in _COUNTS},
        "unknown": result.unknown,
        "failures": [
            {"key": one.key, "code": one.code, "message": one.message, "version_id": one.version_id}
            for one in result.failures
        ],
        "root_proven": result.root_proven,
        "metadata_deleted": result.metadata_deleted,
    }


_COUNTS: Final = (
    "deleted_objects",
    "deleted_versions",
    "deleted_markers",
    "deleted_bytes",
    "aborted_uploads",
    "waiting_objects",
    "waiting_bytes",
)


def report_document(plan: Plan, report: Report, kept: Kept, *, code: int) -> dict[str, Any]:
    """All that ``gc`` has to say: the plan, what became of each location, the sums, the exit code."""
    return {
        "command": "gc",
        "plan": plan_document(plan),
        "results": [result_document(result) for result in report.results],
        "experiments_deleted": list(report.experiments_deleted),
        "totals": totals_document(report.results),
        "kept_models_of_deleted_runs": kept_document(kept),
        "error": str(report.error) if report.error else complaint(report.results) or None,
        "exit_code": code,
    }


def complaint(results: Iterable[SweepResult]) -> str:
    """One sentence for what paused or failed: how many, and why the first; empty if nothing did."""
    bad = [result for result in results if result.outcome in _BAD]
    if not bad:
        return ""
    worst = min(bad, key=lambda result: result.outcome is Outcome.PAUSED)
    words = ", ".join(f"{count:,} {outcome.value}" for outcome, count in Counter(one.outcome for one in bad).items())
    others = len({result.detail for result in bad}) - 1
    more = f" (and {others:,} other reasons; see the report)" if others else ""
    return f"{plural(len(bad), 'location')} could not be swept ({words}): {worst.detail}{more}"


def totals_document(results: Iterable[SweepResult]) -> dict[str, Any]:
    """The sums over results."""
    results = tuple(results)
    return {
        **{name: sum(getattr(result, name) for result in results) for name in _COUNTS},
        "unknown": sum(result.unknown for result in results),
        "metadata_deleted": sum(result.metadata_deleted for result in results),
        "outcomes": {outcome.value: count for outcome, count in Counter(result.outcome for result in results).items()},
    }


def show_results(
    out: Output, results: Sequence[SweepResult], *, plan_id: str, experiments: Sequence[str], seconds: float
) -> None:
    """What happened: each location that did not end as planned, and the sums of what left the buckets."""
    notable = [result for result in results if result.outcome not in _QUIET]
    out.print("")
    if notable:
        grid = Grid("outcome", "what", "gone", "why", numbers=("gone",))
        for result in notable[:_LINES]:
            style = "red" if result.outcome in _BAD else "yellow"
            gone = result.deleted_objects + result.deleted_versions
            grid.add_row(
                result.outcome.value, str(result.decision.entity), show_count(gone), result.detail, style=style
            )
        _show_table(out, grid, cut=len(notable) - _LINES)
    counts = Counter(result.outcome for result in results)
    sums = totals_document(results)
    for sentence in _waiting(results, plan_id):
        out.print(sentence, style="bold")
    if counts[Outcome.SWEPT] or not (counts[Outcome.WAITING] or counts[Outcome.PARTLY]):
        swept = plural(counts[Outcome.SWEPT], "location")
        out.print(f"Swept {swept}, each listed again and found empty.", style="bold")
    if counts[Outcome.PARTLY]:
        partly = plural(counts[Outcome.PARTLY], "location")
        out.print(f"Swept {partly} in part: each was listed again, and only what is needed is left.", style="bold")
    out.print(
        f"Gone: {_gone(sums)} in {seconds:.1f} s." if any(sums[name] for name in _LEFT) else f"In {seconds:.1f} s."
    )
    rest = [f"{counts[outcome]:,} {word}" for outcome, word in _OUTCOME_WORDS.items() if counts[outcome]]
    if rest:
        out.print(f"Others: {', '.join(rest)}.")
    if sums["metadata_deleted"] or experiments:
        entities = plural(sums["metadata_deleted"], "entity", "entities")
        out.print(f"Rows deleted: {entities}, {plural(len(experiments), 'experiment')}.")


def _waiting(results: Sequence[SweepResult], plan_id: str) -> Iterator[str]:
    """What was hidden or tagged, a sentence for each action."""
    for action, (done, then) in _WAITING_WORDS.items():
        some = [one for one in results if one.outcome is Outcome.WAITING and one.action is action]
        if some:
            objects, size = sum(one.waiting_objects for one in some), sum(one.waiting_bytes for one in some)
            much = f"{plural(objects, 'object')}, {show_size(size)}"
            yield f"{done} {plural(len(some), 'location')} ({much}): {then.format(plan_id)}"


# What was dropped stands in the plan that was shown before.
_QUIET: Final = frozenset(
    {Outcome.SWEPT, Outcome.PARTLY, Outcome.EMPTY, Outcome.STOPPED, Outcome.WAITING, Outcome.DROPPED}
)
_WAITING_WORDS: Final = {
    Action.HIDE: ("Hid", "until a noncurrent rule of the bucket removes them, 'undo --plan {}' brings them back."),
    Action.TAG: (
        "Tagged",
        "the bucket's rule removes them after its next midnight (UTC); before, 'undo --plan {}' keeps them.",
    ),
}
_OUTCOME_WORDS: Final = {
    Outcome.EMPTY: "empty at first sight",
    Outcome.POSTPONED: "postponed",
    Outcome.PROTECTED: "protected at the last look",
    Outcome.RESTORED: "restored meanwhile",
    Outcome.DROPPED: "dropped, no longer as planned",
    Outcome.BUSY: "being swept by another process",
    Outcome.FOREIGN: "under another database's root",
    Outcome.STOPPED: "not reached: run it again",
    Outcome.PAUSED: "paused",
    Outcome.FAILED: "failed",
    Outcome.UNKNOWN: "unknown",
}


_LEFT: Final = ("deleted_objects", "deleted_versions", "deleted_markers", "aborted_uploads")


def _gone(sums: Mapping[str, int]) -> str:
    parts = [plural(sums["deleted_objects"], "object")]
    others = {
        "deleted_versions": "old version",
        "deleted_markers": "delete marker",
        "aborted_uploads": "unfinished upload",
    }
    parts += [plural(sums[name], word) for name, word in others.items() if sums[name]]
    return f"{', '.join(parts)}, {show_size(sums['deleted_bytes'])}"


def restored(one: Restored) -> str:
    """What was taken back in one location, for a person."""
    gone = f"; {plural(one.gone, 'object')} had been removed already" if one.gone else ""
    return f"Taken back: {one.touched.entity}, {plural(one.back, 'object')}{gone}."


def plural(count: int, word: str, many: str = "") -> str:
    """``1 run``, ``2 runs``; ``many`` is a plural that is made otherwise."""
    return f"{count:,} {word if count == 1 else many or f'{word}s'}"


def kept_models(kept: Kept) -> str:
    """How much stays in logged models of deleted runs, as far as it was measured."""
    much = "" if kept.objects is None else f" ({plural(kept.objects, 'object')}, {show_size(kept.size_bytes)})"
    return (
        f"Kept beside: {plural(kept.models, 'logged model')} of deleted runs{much}, because MLflow still shows them "
        "('init --models follow-run' lets them go with their run)."
    )


def show_partly(out: Output, partly: Sequence[Partly], *, going: Container[Location]) -> None:
    """The locations of which only a part is needed, and how much lies beside that; where that is ``going``, too."""
    if not partly:
        return
    grid = Grid("kept in part for", "beside", "size", "of", numbers=("beside", "size", "of"))
    for one in partly[:_LINES]:
        inside = ", ".join(part.prefix[len(one.location.prefix) :].rstrip("/") for part in one.parts)
        sizes = (show_size(one.bytes_beside), show_size(one.size_bytes))
        grid.add_row(f"{one.location.uri} ({inside})", show_count(one.objects_beside), *sizes)
    out.print("")
    _show_table(out, grid, cut=len(partly) - _LINES)
    beside = show_size(sum(one.bytes_beside for one in partly))
    objects = plural(sum(one.objects_beside for one in partly), "object")
    out.print(
        f"Needed in part: {plural(len(partly), 'location')}; {objects} of theirs, {beside}, lie beside what is needed. "
        + ("That goes." if all(one.location in going for one in partly) else "'gc --partial' purges that too.")
    )


def partly_document(partly: Iterable[Partly]) -> list[dict[str, Any]]:
    """The same as a document; empty where nothing was measured."""
    return [
        {
            "location": one.location.uri,
            "needed": [part.uri for part in one.parts],
            "objects": one.objects,
            "bytes": one.size_bytes,
            "objects_beside": one.objects_beside,
            "bytes_beside": one.bytes_beside,
        }
        for one in partly
    ]


def kept_document(kept: Kept) -> dict[str, Any]:
    """The same as a document; ``objects`` and ``bytes`` are None where they were never measured."""
    return {
        "models": kept.models,
        "objects": kept.objects,
        "bytes": kept.size_bytes,
        "measured_ms": kept.measured_ms,
    }
