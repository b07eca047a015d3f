"""``mlflow-artifact-gc demo``: what a stranger sees after one command, and what is left of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from mlflow_artifact_gc.demo import story
from tests.command import run
from tests.servers import S3Server, s3_client

_DEMO = (sys.executable, "-m", "mlflow_artifact_gc", "demo")
_LIMIT_S = 180
"""It promises a minute; where nothing else runs, it takes 35 seconds, and here other tests share the cores."""
_FOLDER = re.compile(r"Everything lives in (\S+) ")
_LOGGED = re.compile(r"^logged +(\S+) +(\d+) objects, .* run (\w{32})$", re.MULTILINE)
_DELETED = re.compile(r"^deleted +(\S+)", re.MULTILINE)
_RESTORED = re.compile(r"^restored +(\S+)", re.MULTILINE)
_COUNTDOWN = re.compile(r"^ *(\d+ wait, \d+ s left|any moment|gone): (.+) objects$", re.MULTILINE)
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
    """The rows of the table of objects: for each run its cells."""
    table = said[said.index("Is it true?") :]
    rows = (re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if " → " in line)
    return {cells[0]: cells[1:] for cells in rows}


def _tags(said: str, before: str) -> dict[str, dict[str, str]]:
    """The rows of a table of tags, which follows the words ``before``: for each run its tags."""
    table = said[said.index(before) :].split("\n\n", maxsplit=1)[0]
    found: dict[str, dict[str, str]] = {}
    run = ""
    for line in table.splitlines():
        if match := re.match(r"(?P<run>\S*) +(?P<key>artifact_gc\.\w+|(?=\(none\))) *(?P<value>.+)$", line):
            run = match["run"] or run
            found.setdefault(run, {})[match["key"]] = match["value"]
    return found


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
def _demo(**environ: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        _DEMO,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
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
    """Live, restored and registered runs are kept whole, the other deleted ones are gone, most of them by themselves.

    While it waits the servers answer as it says, and the bucket is what it says; after Ctrl-C folder and servers are
    gone. The person's own settings, which would lead elsewhere, have no part in it.
    """
    began_s = time.monotonic()
    with _demo(**_ELSEWHERE) as process:
        said = _read_until(process, _WAITS)
        took_s = time.monotonic() - began_s
        _assert_it_is_as_it_says(said)
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=_STOP_S)

    assert process.returncode == 0, complaints
    assert "Traceback" not in said + complaints
    assert "is removed" in rest
    _assert_nothing_left(said)
    _assert_the_story(said)
    assert took_s < _LIMIT_S


def _assert_the_story(said: str) -> None:
    counts = {name: int(count) for name, count, _ in _LOGGED.findall(said)}
    old, *deleted = _DELETED.findall(said)
    (restored,) = _RESTORED.findall(said)
    rows = _proof(said)
    (champion,) = (name for name, cells in rows.items() if "@champion" in cells[0])
    (live,) = counts.keys() - {old, *deleted}
    assert {champion, restored} < set(deleted)
    kept, waste = {live, restored, champion}, set(deleted) - {restored, champion}
    assert len(waste) == 2
    for name, count in counts.items():
        assert rows[name][1] == f"{count} → {count if name in kept else 0}", name
        assert rows[name][-1] == ("unchanged" if name in kept else "gone"), name
    assert "Proven: 3 runs kept, 3 gone, " in said
    commands = re.findall(r"^\$ mlflow-artifact-gc (\w+)", said, re.MULTILINE)
    assert commands == ["init", "status", "gc"]
    assert "\nSwept 1 location, " in said
    assert f"registered model {_model(said)}" in said
    _assert_tags(said, champion=champion, restored=restored, waste=waste, live=live, old=old)
    _assert_countdown(said, waste, counts)


def _assert_tags(said: str, *, champion: str, restored: str, waste: set[str], live: str, old: str) -> None:
    """What MLflow showed of the runs after their deletion, and at the end."""
    soon, end = _tags(said, "what will happen, in tags:"), _tags(said, "in MLflow's UI now:")
    assert soon.keys() == {champion, restored, *waste}
    assert end.keys() == {*soon, live, old}
    assert all(set(soon[name]) == {"artifact_gc.status", "artifact_gc.expires"} for name in {restored, *waste})
    assert all("purged" in end[name]["artifact_gc.status"] for name in {old, *waste})
    assert [end[name] for name in (restored, live)] == [{"": "(none)"}] * 2
    for tags in (soon, end):
        assert set(tags[champion]) == {"artifact_gc.status", "artifact_gc.protected_by"}
        assert _model(said) in tags[champion]["artifact_gc.protected_by"]
        assert "@champion" in tags[champion]["artifact_gc.protected_by"]


def _assert_countdown(said: str, waste: set[str], counts: dict[str, int]) -> None:
    """It was watched from before the end of the grace period, with everything there; and then no command was run."""
    told = _COUNTDOWN.findall(said)
    looks = [{name: int(count) for name, count in (part.split(" ") for part in line.split(", "))} for _, line in told]
    waiting = [int(match[1]) for when, _ in told if (match := re.match(r"(\d) wait, \d+ s left", when))]
    # Those that wait for the worker, and in the beginning the one that waits for `gc`.
    assert " wait, " in told[0][0]
    assert waiting == sorted(waiting, reverse=True)
    assert set(waiting) <= {1, 2, 3}
    assert 3 <= len(told) <= 12
    assert looks[0] == {name: counts[name] for name in looks[0]}
    assert looks[-1] == {name: 0 if name in waste else counts[name] for name in looks[0]}
    assert said.index("\n$ mlflow-artifact-gc gc") > said.index(" gone: ")


def _model(said: str) -> str:
    found = re.search(r"^registered +\S+ +as (\S+), version 1, alias @champion$", said, re.MULTILINE)
    assert found
    return found[1]


def _assert_it_is_as_it_says(said: str) -> None:
    """The demo waits, and its servers run."""
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
        assert page.status == 200
    assert _left_behind(folder[1]), "the search for processes finds none that run"
    there = {name: sum(f"/{run}/" in key for key in keys) for name, _, run in _LOGGED.findall(said)}
    logged = {name: int(count) for name, count, _ in _LOGGED.findall(said)}
    kept = {name for name, cells in _proof(said).items() if cells[-1] == "unchanged"}
    assert there == {name: count if name in kept else 0 for name, count in logged.items()}
    assert len(kept) == 3


@pytest.mark.parametrize(("arguments", "waits"), [((), True), (("--no-wait",), False)])
def test_it_waits_unless_it_is_told_not_to(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], *, waits: bool
) -> None:
    """``--no-wait`` ends with the story."""
    played: list[str] = []
    monkeypatch.setattr(story, "_on_stage", lambda *_: nullcontext())
    monkeypatch.setattr(story, "_play", lambda _: played.append("the story"))
    monkeypatch.setattr(story, "_wait", lambda _: played.append("the wait"))

    ended = run("demo", *arguments)
    assert ended.code == 0, ended.err
    assert played == ["the story", *(["the wait"] if waits else [])]


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
