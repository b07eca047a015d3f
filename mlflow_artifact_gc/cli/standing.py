"""``status``: a sentence first, then what waits, what is protected, what failed. Does not ask S3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mlflow_artifact_gc import agenda, database, expiring, holds, journal, kept, lease, sightings
from mlflow_artifact_gc.cli import holding, render
from mlflow_artifact_gc.cli.output import Grid, Output
from mlflow_artifact_gc.keeping import Hold
from mlflow_artifact_gc.locations import Location
from mlflow_artifact_gc.model import Action, Decision, Reason
from mlflow_artifact_gc.policy import Scope
from mlflow_artifact_gc.quantities import show_duration, show_instant, show_size
from mlflow_artifact_gc.session import Reading, open_session, read

_EXAMPLES: Final = 20
_WAITING_WORDS: Final = {Action.PURGE: "Purged", Action.HIDE: "Hidden", Action.TAG: "Tagged for expiry"}


def run(*, output: str, **options: Any) -> None:
    """Carry out ``status``."""
    session = open_session(**options)
    with database.reading(session.engine) as connection:
        now_ms = database.clock_ms(connection)
        summary = journal.summary(connection)
        last = journal.last_plan(connection)
        held, workers = agenda.held_back(connection), lease.standing(connection)
        seen_ms, troubled = agenda.first_seen(connection), agenda.troubled(connection)
        lost = agenda.lost(connection)
        waiting, stuck = expiring.sums(connection), expiring.stuck(connection)
        unseen = expiring.unseen(connection)
        by_hand = holds.active(connection, now_ms)
        orphans = sightings.summary(connection)
    cutoff_ms = now_ms - session.site.grace_ms
    # What waits for S3 is nothing that the worker would purge.
    found = read(session, Scope(), cutoff_ms=cutoff_ms, include_undated=False, again=False, action=Action.TAG)
    found = replace(found, decisions=tuple(_by_the_later_date(line, seen_ms, cutoff_ms) for line in found.decisions))
    state = _State(
        site=session.site,
        found=found,
        kept=kept.known(session, found.kept_models),
        summary=summary,
        last=last,
        now_ms=now_ms,
        held=held,
        workers=workers,
        troubled=troubled,
        lost=lost,
        waiting=waiting,
        stuck=stuck,
        unseen=unseen,
        by_hand=by_hand,
        orphans=orphans,
    )
    if output == "json":
        render.print_json({"command": "status", **_document(state)})
    else:
        _print(state)


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """Everything that was read."""

    site: journal.Site
    found: Reading
    kept: kept.Kept
    summary: journal.Summary
    last: tuple[int, int | None] | None
    now_ms: int
    held: int
    workers: lease.Standing
    troubled: list[tuple[str, int]]
    lost: int
    waiting: Mapping[Action, expiring.Waiting]
    stuck: list[str]
    unseen: list[str]
    by_hand: list[Hold]
    orphans: tuple[int, int | None]
    """How many were seen at the last look, and when the first of them was seen."""

    @property
    def worker_lives(self) -> bool:
        return self.workers.owner is not None and self.workers.until_ms > self.now_ms


def _by_the_later_date(line: Decision, seen_ms: Mapping[Location, int], cutoff_ms: int) -> Decision:
    """As the worker counts: from its first sight of the deletion, where that is later than MLflow's date."""
    since_ms = seen_ms.get(line.location, 0) if line.location else 0
    if line.reason not in (Reason.DUE, Reason.GRACE) or line.deleted_ms is None or since_ms <= line.deleted_ms:
        return line
    return replace(line, deleted_ms=since_ms, reason=Reason.GRACE if since_ms > cutoff_ms else Reason.DUE)


def _next_ms(found: Reading, grace_ms: int) -> int | None:
    dates = [line.deleted_ms for line in found.decisions if line.reason is Reason.GRACE and line.deleted_ms is not None]
    return min(dates) + grace_ms if dates else None


def _document(state: _State) -> dict[str, Any]:
    site, found, summary, last = state.site, state.found, state.summary, state.last
    counts = Counter(line.reason.value for line in found.decisions)
    return {
        "now_ms": state.now_ms,
        "grace_ms": site.grace_ms,
        "tombstones": dict(counts),
        "next_due_ms": _next_ms(found, site.grace_ms),
        "protected": [
            {"kind": line.entity.kind.value, "id": line.entity.id, "by": line.evidence} for line in _protected(found)
        ],
        "holds": holding.documents(state.by_hand, state.now_ms),
        "kept_models_of_deleted_runs": render.kept_document(state.kept),
        "intents": {name.value: count for name, count in summary.by_state.items()},
        "deleted_objects": summary.deleted_objects,
        "deleted_versions": summary.deleted_versions,
        "deleted_bytes": summary.deleted_bytes,
        "aborted_uploads": summary.aborted_uploads,
        "failed": [dict(zip(("kind", "id", "location", "detail"), row, strict=True)) for row in summary.failed],
        "last_sweep": {"started_ms": last[0], "finished_ms": last[1]} if last else None,
        "worker": {
            "lives": state.worker_lives,
            "seen_ms": state.workers.seen_ms,
            "held_back": state.held,
            "brake": state.workers.parked if state.held else None,
            "turned_away": state.workers.refused,
            "turned_away_ms": state.workers.refused_ms,
            "troubled": [{"locations": count, "why": why} for why, count in state.troubled],
        },
        "lost": state.lost,
        "orphans": {"seen": state.orphans[0], "first_seen_ms": state.orphans[1]},
        "waiting": {
            action.value: {"locations": one.locations, "objects": one.objects, "bytes": one.size_bytes}
            for action, one in state.waiting.items()
        },
        "not_taken_back": state.stuck,
        "not_looked_at": state.unseen,
    }


def _protected(found: Reading) -> list[Decision]:
    return [line for line in found.decisions if line.reason in (Reason.PROTECTED, Reason.NESTED)]


def _print(state: _State) -> None:
    found, summary, last = state.found, state.summary, state.last
    out = Output()
    counts = Counter(line.reason for line in found.decisions)
    out.print(_sentence(counts, state), style="bold")
    for sentence in (*_worker_lines(state), *_kept_lines(state, counts)):
        out.print(sentence)
    objects = render.plural(summary.deleted_objects + summary.deleted_versions, "object")
    gone = f"{objects}, {show_size(summary.deleted_bytes)}"
    swept = summary.by_state.get(journal.State.SWEPT, 0) + summary.by_state.get(journal.State.CLOSED, 0)
    out.print(f"So far: {render.plural(swept, 'location')} swept, {gone} gone.")
    if last:
        out.print(_last_sweep(last, state.now_ms))
    protected = _protected(found)
    if protected:
        grid = Grid("protected", "by")
        for line in protected[:_EXAMPLES]:
            grid.add_row(str(line.entity), line.evidence)
        out.print("")
        out.table(grid)
        if len(protected) > _EXAMPLES:
            out.print(f"… and {len(protected) - _EXAMPLES:,} more (--format json has them all)")
    if state.by_hand:
        out.print("")
        out.table(holding.table(state.by_hand[:_EXAMPLES], state.now_ms))
        if len(state.by_hand) > _EXAMPLES:
            out.print(f"… and {len(state.by_hand) - _EXAMPLES:,} more ('hold ls' has them all)")
    if summary.failed:
        grid = Grid("failed", "location", "why")
        for kind, id_, location, detail in summary.failed:
            grid.add_row(f"{kind.replace('_', ' ')} {id_}", location, detail)
        out.print("")
        out.table(grid)


def _kept_lines(state: _State, counts: Counter[Reason]) -> Iterator[str]:
    rest = [
        f"{counts[reason]:,} {words}"
        for reason, words in render.REASON_WORDS.items()
        if counts[reason] and reason is not Reason.GRACE
    ]
    if rest:
        yield f"Kept: {', '.join(rest)}."
    for action, one in state.waiting.items():
        much = f"{render.plural(one.locations, 'location')}, {render.plural(one.objects, 'object')}"
        size = show_size(one.size_bytes)
        yield f"{_WAITING_WORDS[action]}: {much}, {size}; the bucket's lifecycle rule removes them."
    if state.stuck:
        yield (
            f"Needed again, and not taken back yet: {render.plural(len(state.stuck), 'location')}; the first one: "
            f"{state.stuck[0].rstrip('.')}. Before the bucket's rule acts: run 'gc' or 'undo'."
        )
    if state.unseen:
        places = render.plural(len(state.unseen), "location")
        yield f"Hidden or tagged, and not looked at: {places}; the first one: {state.unseen[0].rstrip('.')}."
    if state.kept.models:
        yield render.kept_models(state.kept)
    if state.lost:
        verb = "its row is" if state.lost == 1 else "their rows are"
        yield (
            f"Remembered: {render.plural(state.lost, 'location')}, because {verb} gone for good; 'gc --orphans' purges "
            "what no row accounts for."
        )
    seen, first_ms = state.orphans
    if first_ms is not None:
        until_ms = first_ms + state.site.orphan_quarantine_ms
        yield (
            f"Seen without a row by 'gc --orphans': {render.plural(seen, 'prefix', 'prefixes')}; the first "
            f"{'is' if until_ms > state.now_ms else 'has been'} out of its quarantine "
            f"{'at' if until_ms > state.now_ms else 'since'} {show_instant(until_ms)}."
        )


def _sentence(counts: Counter[Reason], state: _State) -> str:
    due, waiting = counts[Reason.DUE], counts[Reason.GRACE]
    grace = show_duration(state.site.grace_ms)
    if not due and not waiting:
        return "Nothing waits: no deleted run, model or trace is due, or will be."
    parts = []
    if due:
        verb = "is past its" if due == 1 else "are past their"
        parts.append(
            f"{render.plural(due, 'deleted location')} {verb} grace period ({grace}): {_who_purges(state, due)}"
        )
    if waiting:
        verb = "is in its" if waiting == 1 else "are in their"
        until = f"the next until {show_instant(_next_ms(state.found, state.site.grace_ms))}"
        parts.append(f"{render.plural(waiting, 'deleted location')} {verb} grace period ({grace}), {until}")
    return "; ".join(parts) + "."


def _who_purges(state: _State, due: int) -> str:
    since_ms = state.site.switched_on_ms
    lines = (line for line in state.found.decisions if line.reason is Reason.DUE)
    old = sum(line.deleted_ms is None or line.deleted_ms < since_ms for line in lines)
    if not state.worker_lives or old == due:
        return "'gc' purges what is due"
    if old:
        return f"{old:,} of them, deleted before 'init', wait for 'gc'"
    they = "it" if due == 1 else "them"
    tried = sum(count for _, count in state.troubled)
    return f"the worker could not purge {they} yet" if tried >= due else f"the worker purges {they}"


def _worker_lines(state: _State) -> Iterator[str]:
    workers = state.workers
    since = show_instant(state.site.switched_on_ms)
    if state.worker_lives:
        yield f"A worker is at work: it purges what was deleted after {since}, when its time has come."
    elif workers.seen_ms is None:
        yield "No worker has been seen: start 'mlflow server' again, or run 'mlflow-artifact-gc worker', or 'gc'."
    else:
        yield f"No worker has been seen for {show_duration(state.now_ms - workers.seen_ms)}."
    if state.held and workers.parked:
        yield (
            f"Held back: {render.plural(state.held, 'location')}, because {workers.parked}. If that is meant, run 'gc' "
            "with the limit raised."
        )
    for why, count in state.troubled:
        yield f"Not purged at the last try: {render.plural(count, 'location')}, {why.rstrip('.: ')}."
    if workers.refused and (workers.refused_ms or 0) >= (workers.seen_ms or 0):
        yield f"A worker was turned away at {show_instant(workers.refused_ms)}: {workers.refused}"


def _last_sweep(last: tuple[int, int | None], now_ms: int) -> str:
    started, finished = last
    ago = show_duration(now_ms - started)
    if finished is None:
        return f"The last sweep began at {show_instant(started)} ({ago} ago) and has not finished: it runs, or it died."
    return f"The last sweep ended at {show_instant(finished)}."
