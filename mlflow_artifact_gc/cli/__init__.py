"""The command line: parse, wire, print, exit code. Light: what a command needs is imported when it runs."""

from __future__ import annotations

import json
from typing import Any

import click

from mlflow_artifact_gc import __version__
from mlflow_artifact_gc.cli.commands import (
    apply_plan,
    audit,
    demo,
    gc,
    hold,
    init,
    lifecycle,
    plan,
    show_plan,
    status,
    undo,
    worker,
)
from mlflow_artifact_gc.errors import ArtifactGcError

_EXIT_CODES = """\b
Exit codes:
  0    nothing to do, or all done; only protected or foreign things remain
  1    an error: references incomplete, the environment is unusable
  2    the command line does not make sense
  3    some location failed or its state is unknown
  4    refused: a brake, no terminal and no --yes, or the answer was no
  5    our tables are absent, older or newer than this version
  6    the plan is stale, altered, applied already or another database's
  130  interrupted, cleanly
"""


class _Group(click.Group):
    """Turns our errors into one sentence and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ArtifactGcError as error:
            _complain(ctx, error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


def _complain(ctx: click.Context, error: ArtifactGcError) -> None:
    click.echo(f"Error: {error}", err=True)
    if ctx.meta.get("format") == "json":
        told = {"schema": 1, "command": ctx.invoked_subcommand, "error": str(error), "exit_code": error.exit_code}
        click.echo(json.dumps(told, indent=2))


@click.group(
    cls=_Group, epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="mlflow-artifact-gc")
def main() -> None:
    """Makes MLflow's delete real on S3, safely.

    MLflow only marks a deleted run; its checkpoints and models stay in S3. After a grace period this purges them,
    unless something live still needs them.
    """


for _command in (init, audit, gc, plan, show_plan, apply_plan, status, hold, undo, worker, lifecycle, demo):
    main.add_command(_command)
