"""``mlflow-artifact-gc demo``: what a stranger sees after one command, and what is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.servers import S3Server, s3_client

_DEMO = (sys.executable, "-m", "mlflow_artifact_gc", "demo")
_FOLDER = re.compile(r"Everything lives in (\S+) ")
_LOGGED = re.compile(r"^logged +(\S+) +(\d+) objects, .* run (\w{32})$", re.MULTILINE)
_DELETED = re.compile(r"^deleted +(\S+)", re.MULTILINE)
_EXPORT = re.compile(r"^ *export (\w+)=(\S+)$", re.MULTILINE)
_UI = re.compile(r"The MLflow UI is at (http://\S+?)\.? ")
_WAITS = "Ctrl-C stops the servers"
_ELSEWHERE = {
    "AWS_PROFILE": "nobody",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "MLFLOW_ARTIFACT_GC_MAX_OBJECTS": "1",
    "http_proxy": "http://127.0.0.1:9",
}
_STOP_S = 30
_CLEAN_UP_S = 60


def _proof(said: str) -> dict[str, list[str]]:
    """The rows of the last table: for each run its cells."""
    table = said[said.index("Is it true?") :]
    rows = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if " → " in line)
    return {cells[0]: cells[1:] for cells in rows}


def _left_behind(folder: str) -> list[str]:
    """The processes that know of the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            cwd = str((process / "cwd").readlink())
            if folder.encode() in told or folder in cwd:
                found.append(f"{process.name}: {told[:80]!r}")
    return found


@contextmanager
def _demo(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*_DEMO, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:  # the test has failed: it still tidies up
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=_CLEAN_UP_S)
                process.kill()


def _read_until(process: subprocess.Popen[str], words: str) -> str:
    said = ""
    for line in process.stdout or ():
        said += line
        if words in line:
            return said
    raise AssertionError(f"it never said {words!r}:\n{said}\n{process.stderr.read() if process.stderr else ''}")


def _assert_nothing_left(said: str) -> None:
    found = _FOLDER.search(said)
    assert found
    assert not Path(found[1]).exists()
    assert _left_behind(found[1]) == []


def test_the_demo_tells_its_story_and_leaves_nothing() -> None:
    """Live and registered runs are kept, the other deleted ones are gone; so are folder and servers, at the end.

    The person's own settings, which would lead elsewhere, have no part in it.
    """
    environ = {**os.environ, **_ELSEWHERE}
    done = subprocess.run([*_DEMO, "--no-wait"], env=environ, capture_output=True, text=True, check=False, timeout=200)

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    counts = {name: int(count) for name, count, _ in _LOGGED.findall(done.stdout)}
    deleted = set(_DELETED.findall(done.stdout))
    rows = _proof(done.stdout)
    (champion,) = (name for name, cells in rows.items() if "@champion" in cells[0])
    (live,) = counts.keys() - deleted
    assert champion in deleted
    assert len(deleted) > 2
    for name, count in counts.items():
        kept = name in (live, champion)
        assert rows[name][1] == f"{count} → {count if kept else 0}", name
        assert rows[name][-1] == ("unchanged" if kept else "gone"), name
    assert "Proven: 2 runs kept, " in done.stdout
    for command in ("init ", "gc --backend-store-uri", "status "):
        assert f"\n$ mlflow-artifact-gc {command}" in done.stdout
    assert f"registered model {_model(done.stdout)}" in done.stdout
    _assert_nothing_left(done.stdout)


def _model(said: str) -> str:
    found = re.search(r"^registered +\S+ +as (\S+), version 1, alias @champion$", said, re.MULTILINE)
    assert found
    return found[1]


def test_ctrl_c_ends_the_demo_cleanly() -> None:
    """While it waits the servers answer as it says, and the bucket is what it says; Ctrl-C removes everything."""
    with _demo() as process:
        said = _read_until(process, _WAITS)
        folder, ui = _FOLDER.search(said), _UI.search(said)
        assert folder
        assert ui
        settings = dict(_EXPORT.findall(said))
        server = S3Server(
            endpoint=settings["MLFLOW_S3_ENDPOINT_URL"],
            access_key=settings["AWS_ACCESS_KEY_ID"],
            secret_key=settings["AWS_SECRET_ACCESS_KEY"],
        )
        keys = [found["Key"] for found in s3_client(server).list_objects_v2(Bucket="mlflow")["Contents"]]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(ui[1], timeout=10) as page:
            status = page.status
        running = _left_behind(folder[1])
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=_STOP_S)

    there = {name: sum(f"/{run}/" in key for key in keys) for name, _, run in _LOGGED.findall(said)}
    logged = {name: int(count) for name, count, _ in _LOGGED.findall(said)}
    kept = {name for name, cells in _proof(said).items() if cells[-1] == "unchanged"}
    assert there == {name: count if name in kept else 0 for name, count in logged.items()}
    assert len(kept) == 2
    assert status == 200
    assert running, "the search for processes finds none that run"
    assert process.returncode == 0, complaints
    assert "Traceback" not in complaints
    assert "is removed" in rest
    _assert_nothing_left(said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_early_end_leaves_nothing_either(number: signal.Signals) -> None:
    """A signal while MLflow starts, and another while it tidies up: no folder, no server, exit code 130."""
    with _demo() as process:
        said = _read_until(process, "SeaweedFS")
        process.send_signal(number)
        process.send_signal(number)
        _, complaints = process.communicate(timeout=_STOP_S)

    assert process.returncode == 130, complaints
    assert "Traceback" not in complaints
    _assert_nothing_left(said)
