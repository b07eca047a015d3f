"""The README says what is so: its commands, options, exit codes, settings, rights and refusals are the program's."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from mlflow_artifact_gc import cli
from mlflow_artifact_gc.config import PREFIX, Settings
from mlflow_artifact_gc.s3.permissions import PERMISSIONS

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
DEMO = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[demo]' && .venv/bin/mlflow-artifact-gc demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q --no-compile -e '.[test]' && .venv/bin/python -m tests"


def _documents() -> str:
    paths = sorted((CHECKOUT / "docs").rglob("*.md"))
    return "\n".join([README, *(path.read_text(encoding="utf-8") for path in paths)])


def _section(title: str) -> str:
    match = re.search(rf"^##+ {re.escape(title)}$(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert match, f"README.md has no section {title!r}"
    return match[1]


def _rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    rows = [line.strip("|").split("|") for line in _section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _commands(group: click.Group = cli.main, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield before + name, command
        if isinstance(command, click.Group):
            yield from _commands(command, f"{before}{name} ")


def _options() -> Iterator[tuple[str, str]]:
    for name, command in _commands():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                yield from ((name, option) for option in parameter.opts)


@cache
def _sentences() -> tuple[str, ...]:
    """Every text in the package's source; what is filled in later stands as …."""
    found = []
    for path in sorted((CHECKOUT / "mlflow_artifact_gc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                found.append("".join(parts))
    return tuple(found)


def test_the_two_commands_stand_there() -> None:
    """Each on a line of its own, to be copied."""
    lines = [line.strip() for line in README.splitlines()]

    assert lines.count(DEMO) == 1
    assert lines.count(TESTS) == 1


def test_ci_runs_the_readmes_command() -> None:
    """What has to pass is what the README tells to run."""
    assert f'{TESTS} "$@"' in (CHECKOUT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_virtual_environment_is_made_in_one_way() -> None:
    """No document tells another command for the same."""
    starts = {" && ".join(command.split(" && ")[:2]) for command in (DEMO, TESTS)}
    told = _documents() + (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    assert {found.strip() for found in re.findall(r"^ *(python3 -m venv .*?'\.\[\w+\]')", told, re.MULTILINE)} <= starts


@pytest.mark.parametrize("name", [name for name, _ in _commands()])
def test_every_command_is_documented(name: str) -> None:
    """Each command is shown as it is typed."""
    assert re.search(rf"(`|mlflow-artifact-gc ){name}\b", _documents())


@pytest.mark.parametrize(("command", "option"), sorted(set(_options())))
def test_every_option_is_documented(command: str, option: str) -> None:
    """Each option that help shows stands in a document."""
    assert re.search(rf"{re.escape(option)}(?![\w-])", _documents())


@pytest.mark.parametrize("command", ["init", "gc"])
def test_no_option_is_invented(command: str) -> None:
    """The tables name options that the command has."""
    named = {option for row in _rows(f"Options of `{command}`") for option in re.findall(r"--[a-z-]+", row[0])}

    assert named - {option for name, option in _options() if name == command} == set()


def test_the_exit_codes_are_those_of_the_help() -> None:
    """The same codes, in the same order, in the same words."""
    help_ = re.findall(r"^  (\d+) +(.+)$", cli._EXIT_CODES, re.MULTILINE)

    assert [tuple(row) for row in _rows("Exit codes")] == help_


def test_the_settings_are_those_that_are_read() -> None:
    """Every setting has its row, and its example can be read."""
    rows = {row[0].strip("`"): row[1].strip("`") for row in _rows("Settings")}
    read = [field.name for field in dataclasses.fields(Settings) if field.name != "environ"]
    settings = Settings.from_env(rows)

    assert rows.keys() == {PREFIX + name.removesuffix("_ms").upper() for name in read}
    assert all(getattr(settings, name) is not None for name in read)


def test_the_rights_are_those_that_are_needed() -> None:
    """Every IAM action, and whether it is one on the bucket or on its objects."""
    needed = [(one.action, "its objects" if one.on_objects else "the bucket") for one in PERMISSIONS]

    assert [(row[0].strip("`"), row[1]) for row in _rows("Rights on the bucket")] == needed


@pytest.mark.parametrize("said", [row[0].strip("`") for row in _rows("When it refuses")])
def test_every_refusal_is_said_in_these_words(said: str) -> None:
    """A person finds what stands on the screen."""
    assert any(said.strip() in sentence for sentence in _sentences())


def test_every_test_that_a_document_names_is_there() -> None:
    """A promise without its test would be none."""
    written = "\n".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", _documents()))

    assert named - set(re.findall(r"def (test_\w+)\(", written)) == set()
    assert named


def test_links_lead_somewhere() -> None:
    """The files that the README links to are there."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README)

    assert [target for target in targets if not (CHECKOUT / target).exists()] == []
