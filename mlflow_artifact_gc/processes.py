"""Who holds a claim: a name for this process by which another one on the same machine can tell that it is dead."""

from __future__ import annotations

import ctypes
import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_PARTS: Final = 5
_ARENAS: Final = 2
_M_ARENA_MAX: Final = -8
"""As glibc's ``malloc.h`` has it."""


def identity() -> str:
    """Unique to this process: host, machine and process namespace, process id, its start, and a random part."""
    host = socket.gethostname().replace("/", "_")[:100]
    return "/".join((host, _machine(), str(os.getpid()), _started(os.getpid()), uuid.uuid4().hex[:8]))


def is_dead(owner: str) -> bool:
    """Whether the process that has this identity surely runs no more. Its claims need not be waited for then."""
    parts = owner.rsplit("/", 4)
    machine = _machine()
    if len(parts) != _PARTS or not machine or parts[1] != machine or not parts[2].isdigit():
        return False
    # A number that is used again belongs to a process with another start.
    started = _started(int(parts[2]))
    return started != parts[3] if started else not _exists(int(parts[2]))


def keep_memory_small() -> None:
    """Have threads share a few heaps; glibc gives each one its own, and an idle process keeps them all."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def give_memory_back() -> None:
    """Return to the system what was freed; glibc keeps it otherwise, and an idle process stays as large as it was."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _exists(pid: int) -> bool:
    # Where /proc hides the processes of others.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _machine() -> str:
    # The boot and the namespace together: containers share the first and number their processes anew.
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()[:8]
        namespace = (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return ""
    return f"{boot}-{namespace}"


def _started(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
