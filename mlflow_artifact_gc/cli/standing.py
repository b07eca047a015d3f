"""``status``: a sentence first, then what waits, what is protected, what failed. Does not ask S3."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from mlflow_artifact_gc import database, journal
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Grid, Output
from mlflow_artifact_gc.cli.session import Reading, open_session, read
from mlflow_artifact_gc.model import Decision, Reason
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.quantities import show_duration, show_instant, show_size

_EXAMPLES: Final = 20


def run(*, output: str, **options: Any) -> None:
    """Carry out ``status``."""
    session = open_session(**options)
    with database.reading(session.engine) as connection:
        now_ms = database.clock_ms(connection)
        summary = journal.summary(connection)
        last = journal.last_plan(connection)
    found = read(session, Scope(), cutoff_ms=now_ms - session.site.grace_ms, include_undated=False, again=False)
    if output == "json":
        render.print_json({"command": "status", **_document(session.site, found, summary, last, now_ms)})
    else:
        _print(session.site, found, summary, last, now_ms)


def _next_ms(found: Reading, grace_ms: int) -> int | None:
    dates = [line.deleted_ms for line in found.decisions if line.reason is Reason.GRACE and line.deleted_ms is not None]
    return min(dates) + grace_ms if dates else None


def _document(
    site: journal.Site,
    found: Reading,
    summary: journal.Summary,
    last: tuple[int, int | None] | None,
    now_ms: int,
) -> dict[str, Any]:
    counts = Counter(line.reason.value for line in found.decisions)
    return {
        "now_ms": now_ms,
        "grace_ms": site.grace_ms,
        "tombstones": dict(counts),
        "next_due_ms": _next_ms(found, site.grace_ms),
        "protected": [
            {"kind": line.entity.kind.value, "id": line.entity.id, "by": line.evidence} for line in _protected(found)
        ],
        "kept_models_of_deleted_runs": found.kept_models,
        "intents": {state.value: count for state, count in summary.by_state.items()},
        "deleted_objects": summary.deleted_objects,
        "deleted_versions": summary.deleted_versions,
        "deleted_bytes": summary.deleted_bytes,
        "aborted_uploads": summary.aborted_uploads,
        "failed": [dict(zip(("kind", "id", "location", "detail"), row, strict=True)) for row in summary.failed],
        "last_sweep": {"started_ms": last[0], "finished_ms": last[1]} if last else None,
    }


def _protected(found: Reading) -> list[Decision]:
    return [line for line in found.decisions if line.reason in (Reason.PROTECTED, Reason.NESTED)]


def _print(
    site: journal.Site,
    found: Reading,
    summary: journal.Summary,
    last: tuple[int, int | None] | None,
    now_ms: int,
) -> None:
    out = Output()
    counts = Counter(line.reason for line in found.decisions)
    out.print(_sentence(counts, site, _next_ms(found, site.grace_ms)), style="bold")
    rest = [
        f"{counts[reason]:,} {words}"
        for reason, words in render.REASON_WORDS.items()
        if counts[reason] and reason is not Reason.GRACE
    ]
    if rest:
        out.print(f"Kept: {', '.join(rest)}.")
    if found.kept_models:
        models = render.plural(found.kept_models, "logged model")
        out.print(f"Kept beside: {models} of deleted runs, because MLflow still shows them.")
    objects = render.plural(summary.deleted_objects + summary.deleted_versions, "object")
    gone = f"{objects}, {show_size(summary.deleted_bytes)}"
    swept = summary.by_state.get(journal.State.SWEPT, 0) + summary.by_state.get(journal.State.CLOSED, 0)
    out.print(f"So far: {render.plural(swept, 'location')} swept, {gone} gone.")
    if last:
        out.print(_last_sweep(last, now_ms))
    protected = _protected(found)
    if protected:
        grid = Grid("protected", "by")
        for line in protected[:_EXAMPLES]:
            grid.add_row(str(line.entity), line.evidence)
        out.print("")
        out.table(grid)
        if len(protected) > _EXAMPLES:
            out.print(f"… and {len(protected) - _EXAMPLES:,} more (--format json has them all)")
    if summary.failed:
        grid = Grid("failed", "location", "why")
        for kind, id_, location, detail in summary.failed:
            grid.add_row(f"{kind.replace('_', ' ')} {id_}", location, detail)
        out.print("")
        out.table(grid)


def _sentence(counts: Counter[Reason], site: journal.Site, next_ms: int | None) -> str:
    due, waiting = counts[Reason.DUE], counts[Reason.GRACE]
    grace = show_duration(site.grace_ms)
    if not due and not waiting:
        return "Nothing waits: no deleted run, model or trace is due, or will be."
    parts = []
    if due:
        verb = "is past its" if due == 1 else "are past their"
        parts.append(f"{render.plural(due, 'deleted location')} {verb} grace period ({grace}): 'gc' purges what is due")
    if waiting:
        verb = "is in its" if waiting == 1 else "are in their"
        until = f"the next until {show_instant(next_ms)}"
        parts.append(f"{render.plural(waiting, 'deleted location')} {verb} grace period ({grace}), {until}")
    return "; ".join(parts) + "."


def _last_sweep(last: tuple[int, int | None], now_ms: int) -> str:
    started, finished = last
    ago = show_duration(now_ms - started)
    if finished is None:
        return f"The last sweep began at {show_instant(started)} ({ago} ago) and has not finished: it runs, or it died."
    return f"The last sweep ended at {show_instant(finished)}."
