"""The sets of packages that are tested besides the newest ones."""

from __future__ import annotations

import importlib.metadata
import re

import pytest

from tests.versions import KNOWN_GOOD, SUBSET, VERSIONS, Version


def _lines(version: Version) -> list[str]:
    return version.constraints.read_text(encoding="utf-8").splitlines()


def test_the_known_good_set_is_exact() -> None:
    """One version of each package: no range, no address, no folder of somebody's machine."""
    assert [line for line in _lines(KNOWN_GOOD) if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    assert "mlflow-artifact-gc" not in "".join(_lines(KNOWN_GOOD))


def test_the_known_good_set_has_what_setup_pins() -> None:
    """Raise a pin in ``setup.py``, and it is raised there too: pip could not install both."""
    known = {line.lower() for line in _lines(KNOWN_GOOD)}
    required = importlib.metadata.requires("mlflow-artifact-gc") or []
    found = [re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?==([^ ;]+)", line) for line in required]
    # pip does not tell of wheel, which builds.
    pinned = [f"{one[1]}=={one[2]}".lower() for one in found if one and one[1] != "wheel"]

    assert pinned
    assert [one for one in pinned if one not in known] == []


@pytest.mark.parametrize("version", VERSIONS.values(), ids=lambda version: version.name)
def test_an_old_set_names_its_mlflow(version: Version) -> None:
    """Exactly, so that the same is tested every day."""
    assert [line for line in _lines(version) if line.startswith("mlflow==")]


def test_the_subset_is_there() -> None:
    """A file that is renamed is renamed there too; pytest itself says which test of a file is not there."""
    root = KNOWN_GOOD.constraints.parents[2]

    assert [one for one in SUBSET if not (root / one.split("::")[0]).is_file()] == []
