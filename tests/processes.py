"""Processes as ``/proc`` has them: what runs, below what, and how much it takes."""

from __future__ import annotations

from pathlib import Path


def _stat(pid: int) -> list[str]:
    """From the state on: state, parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def parent(pid: int) -> int:
    """The process that started it, or took it over."""
    return int(_stat(pid)[1])


def runs(pid: int) -> bool:
    """Whether this process exists and is no zombie."""
    return _stat(pid)[0] not in "XZ"


def argv(pid: int) -> list[str]:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def resident_mb(pid: int) -> float:
    """What a process holds in memory now."""
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents = {int(one.name): parent(int(one.name)) for one in Path("/proc").iterdir() if one.name.isdigit()}
    found = [pid]
    for one in found:
        found += [child for child, above in parents.items() if above == one]
    return found


def workers(pid: int) -> list[int]:
    """The workers among a process's descendants."""
    return [one for one in tree(pid) if argv(one)[1:4] == ["-m", "mlflow_artifact_gc", "worker"]]
