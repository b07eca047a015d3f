"""Plan files on disk: reads and writes them; and ``show``, which needs no database and imports little."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mlflow_artifact_gc import plan_files
from mlflow_artifact_gc.cli import render
from mlflow_artifact_gc.cli.output import Output
from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.plan_files import PlanFile
from mlflow_artifact_gc.policy import brakes

_STANDARD: Final = "-"
_HEAD: Final = 64 * 1024


def show(name: str, *, json_output: bool) -> None:
    """Carry out ``show``.

    Raises:
        UsageError: the file cannot be read.
        PlanRefused: it is no plan, or was altered.
    """
    file = read(name)
    if json_output:
        plan = render.plan_document(file.plan, file.digest)
        render.print_json({"command": "show", "plan": plan, **render.terms_document(file), "exit_code": 0})
        return
    out = Output()
    render.show_terms(out, file)
    render.show_plan(out, file.plan, older_than_ms=file.terms.grace_ms, grace_ms=file.terms.site_grace_ms)
    render.show_brakes(out, brakes(file.plan))


def read(name: str) -> PlanFile:
    """The plan in a file. Raises UsageError where it cannot be read, PlanRefused where it is no sound plan."""
    try:
        if name == _STANDARD:
            return plan_files.read(sys.stdin.buffer, "Standard input")
        with Path(name).open("rb") as stream:
            return plan_files.read(stream, repr(name))
    except OSError as error:
        raise UsageError(f"{name!r} cannot be read: {error.strerror}") from error


def require_writable(name: str) -> None:
    """Before anything is planned. Raises UsageError where ``name`` is something else, or has no folder."""
    path = Path(name)
    if name == _STANDARD:
        return
    try:
        if not path.parent.is_dir():
            raise UsageError(f"{name!r} cannot be written: there is no folder {str(path.parent)!r}")
        if (path.is_file() or not path.exists()) and not os.access(path.resolve().parent, os.W_OK):
            raise UsageError(f"{name!r} cannot be written: nothing can be written into {str(path.resolve().parent)!r}")
        if path.is_file() and path.stat().st_size:
            with path.open("rb") as stream:
                there = stream.read(_HEAD)
            if plan_files.FORMAT.encode() not in there:
                raise UsageError(f"{name!r} is there and is no plan: name another file")
    except OSError as error:
        raise UsageError(f"{name!r} cannot be written: {error.strerror}") from error


def write(name: str, file: PlanFile) -> None:
    """Write a plan, all of it or nothing. Raises UsageError where that cannot be."""
    if name == _STANDARD:
        sys.stdout.buffer.writelines(file.lines())
        sys.stdout.buffer.flush()
        return
    # Where a link leads: not a file in the link's place.
    path = Path(name).resolve()
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as device:
                device.writelines(file.lines())
            return
        _replace(path, file.lines())
    except OSError as error:
        raise UsageError(f"{name!r} cannot be written: {error.strerror}") from error


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    unfinished = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            shutil.copymode(path, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
