"""Has SeaweedFS execute the lifecycle rules of its buckets now, and makes objects older, so that rules in days are due.

``run_lifecycle`` executes what is due: rules with a past ``Date``, or in ``Days`` after ``age`` has moved the dates of
what lies under a prefix back. Both use ``weed shell``; SeaweedFS does nothing of this by itself while a test runs.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mlflow_artifact_gc.demo import servers
from mlflow_artifact_gc.demo.servers import HOST, S3Server

DAY_S = 86_400
_GRPC_OFFSET = 10_000
_PATIENCE_S = 60
_LOADING_S = 1.0
"""A filer that is still loading when the shell ends may die of it: SeaweedFS 4.48, in CompactFileChunks."""
_LENGTH_BYTES = 4
_DATES = frozenset({2, 6, 18, 22})
"""The fields of an entry's attributes (filer.proto) that hold seconds since 1970: mtime, crtime, ctime and a copy."""
_PLAUSIBLE = range(1_000_000_000, 4_000_000_000)
_STAMPS = {b"Seaweed-X-Amz-Latest-Version-Mtime": 1, b"Seaweed-X-Amz-Noncurrent-Since-Ns": 10**9}
"""What else of an entry is a date, in figures; how much of it is a second."""
_VARINT, _EIGHT_BYTES, _TEXT, _FOUR_BYTES = 0, 1, 2, 5


def run_lifecycle(server: S3Server) -> None:
    """Executes every bucket's rules once, and returns when that is done. SeaweedFS only."""
    assert server.s3_port is not None
    address = f"{HOST}:{server.s3_port + _GRPC_OFFSET}"
    # It remembers how far it was, and looks only at what has happened since: without that it looks at everything.
    said = _shell(
        server,
        "fs.rm -r /etc/s3/lifecycle/daily-cursors",
        f"s3.lifecycle.run-shard -shards 0-15 -s3 {address} -events 0 -runtime 6s",
    )
    assert "error" not in said.lower(), said


def age(server: S3Server, bucket: str, prefix: str = "", *, days: float) -> None:
    """Makes everything under a folder (``a/b/``, or the whole bucket) older: versions, markers and uploads as well."""
    folder = f"/buckets/{bucket}/{prefix}".rstrip("/")
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "entries.meta"
        _shell(server, f"fs.meta.save -o {file} {folder}")
        # Twice: the shell ends while the last entries are still being loaded.
        file.write_bytes(_aged(file.read_bytes(), round(days * DAY_S)) * 2)
        _shell(server, f"fs.meta.load {file}", lingers_s=_LOADING_S)


def _shell(server: S3Server, *commands: str, lingers_s: float = 0.0) -> str:
    """What the commands print. ``lingers_s``: what they have begun gets so long before the shell is left."""
    argv = [str(servers._weed()), "shell", f"-master={HOST}:{server.master_port}"]
    with tempfile.TemporaryDirectory() as folder:
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, text=True, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                assert process.stdin is not None
                process.stdin.write("\n".join((*commands, "")))
                process.stdin.flush()
                time.sleep(lingers_s)
                out, err = process.communicate("exit\n", timeout=_PATIENCE_S)
            except BaseException:
                process.kill()
                raise
    assert process.returncode == 0, out + err
    return out + err


class _Field(NamedTuple):
    """A field of a protobuf message: where its value begins and ends."""

    number: int
    kind: int
    start: int
    end: int


def _aged(saved: bytes, seconds: int) -> bytes:
    """The entries with all their dates moved back; each entry has its length in front, and no length changes."""
    data = bytearray(saved)
    start = 0
    while start < len(data):
        begin = start + _LENGTH_BYTES
        start = begin + int.from_bytes(data[start:begin], "big")
        for entry in _fields(data, begin, start):
            if (entry.number, entry.kind) == (2, _TEXT):
                _age_entry(data, entry, seconds)
    return bytes(data)


def _age_entry(data: bytearray, entry: _Field, seconds: int) -> None:
    for part in _fields(data, entry.start, entry.end):
        if (part.number, part.kind) == (4, _TEXT):
            for date in _fields(data, part.start, part.end):
                if date.number in _DATES and date.kind == _VARINT:
                    _age_varint(data, date, seconds)
        if (part.number, part.kind) == (5, _TEXT):
            pair = {found.number: found for found in _fields(data, part.start, part.end)}
            unit = _STAMPS.get(bytes(data[pair[1].start : pair[1].end]))
            if unit:
                text = slice(pair[2].start, pair[2].end)
                data[text] = str(int(data[text]) - seconds * unit).encode()


def _age_varint(data: bytearray, date: _Field, seconds: int) -> None:
    value = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data[date.start : date.end]))
    if value in _PLAUSIBLE:
        older, length = value - seconds, date.end - date.start
        parts = [older >> 7 * place & 0x7F | (0x80 if place < length - 1 else 0) for place in range(length)]
        data[date.start : date.end] = bytes(parts)


def _fields(data: bytearray, start: int, end: int) -> Iterator[_Field]:
    while start < end:
        head, start = _varint(data, start)
        number, kind = head >> 3, head & 7
        if kind == _VARINT:
            stop = _varint(data, start)[1]
        elif kind == _TEXT:
            length, start = _varint(data, start)
            stop = start + length
        else:
            stop = start + {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}[kind]
        yield _Field(number, kind, start, stop)
        start = stop


def _varint(data: bytearray, start: int) -> tuple[int, int]:
    value = place = 0
    while data[start] & 0x80:
        value |= (data[start] & 0x7F) << place
        start, place = start + 1, place + 7
    return value | data[start] << place, start + 1
