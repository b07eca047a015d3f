"""Which of MLflow's commands this process is at, by click's current context."""

from __future__ import annotations

import click


def mlflow_command(name: str) -> click.Context | None:
    """The context of MLflow's own command ``name``, if this thread is in it; not that of another one so called."""
    context = click.get_current_context(silent=True)
    if context is None or context.command.name != name:
        return None
    return context if getattr(context.command.callback, "__module__", "").startswith("mlflow.") else None
