"""From a key to the prefix that it is audited under, for every layout that MLflow has had, and what only looks so."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from mlflow_artifact_gc.inventory import places
from mlflow_artifact_gc.layouts import Layouts, Unit, outermost
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import EntityKind, Reference, Strength
from mlflow_artifact_gc.references import ID_MARK, Experiment

ID = "0123456789abcdef" * 2
RUN, MODEL, TRACE = EntityKind.RUN, EntityKind.LOGGED_MODEL, EntityKind.TRACE

KNOWN = Layouts(
    bucket="b",
    roots=frozenset({"root/"}),
    experiments={"root/5/": ("5", "default"), "teams/vision/": ("9", "default")},
    given=frozenset({"given/"}),
    places=frozenset(),
)

ENTITIES = [
    # MLflow 1.x and 2.x: runs; traces since 2.14, with and without tr-; models since 3.0; workspaces since 3.10.
    (f"root/5/{ID}/artifacts/model/MLmodel", Unit(f"root/5/{ID}/artifacts/", RUN, ID, "5", "default", recognised=True)),
    (f"root/77/{ID}/artifacts/x", Unit(f"root/77/{ID}/artifacts/", RUN, ID, "77", "default", recognised=True)),
    (
        f"root/5/traces/{ID}/artifacts/traces.json",
        Unit(f"root/5/traces/{ID}/artifacts/", TRACE, ID, "5", "default", recognised=True),
    ),
    (
        f"root/5/traces/tr-{ID}/artifacts/attachments/x",
        Unit(f"root/5/traces/tr-{ID}/artifacts/", TRACE, f"tr-{ID}", "5", "default", recognised=True),
    ),
    (
        f"root/5/models/m-{ID}/artifacts/MLmodel",
        Unit(f"root/5/models/m-{ID}/artifacts/", MODEL, f"m-{ID}", "5", "default", recognised=True),
    ),
    (
        f"root/workspaces/team/8/{ID}/artifacts/x",
        Unit(f"root/workspaces/team/8/{ID}/artifacts/", RUN, ID, "8", "team", recognised=True),
    ),
    # Locations that people chose, and roots that they name.
    (f"teams/vision/{ID}/artifacts/x", Unit(f"teams/vision/{ID}/artifacts/", RUN, ID, "9", "default", recognised=True)),
    (f"given/{ID}/artifacts/x", Unit(f"given/{ID}/artifacts/", RUN, ID, "", "", recognised=True)),
    (f"given/4/{ID}/artifacts/x", Unit(f"given/4/{ID}/artifacts/", RUN, ID, "4", "default", recognised=True)),
    # Only rows can tell whether these are MLflow's.
    ("root/5/nightly/artifacts/x", Unit("root/5/nightly/artifacts/", RUN, "nightly", "5", "default", recognised=False)),
    (
        "root/5/models/best/artifacts/x",
        Unit("root/5/models/best/artifacts/", MODEL, "best", "5", "default", recognised=False),
    ),
    (f"root/a/b/{ID}/artifacts/x", Unit(f"root/a/b/{ID}/artifacts/", RUN, ID, "", "", recognised=False)),
    (f"elsewhere/5/{ID}/artifacts/x", Unit(f"elsewhere/5/{ID}/artifacts/", RUN, ID, "", "", recognised=False)),
    (
        f"root/5/models/{ID}/artifacts/x",
        Unit(f"root/5/models/{ID}/artifacts/", MODEL, ID, "5", "default", recognised=False),
    ),
    # What lies in an entity's folder is the outer one's.
    (
        f"root/5/{ID}/artifacts/deep/{ID[::-1]}/artifacts/x",
        Unit(f"root/5/{ID}/artifacts/", RUN, ID, "5", "default", recognised=True),
    ),
]


@pytest.mark.parametrize(("key", "unit"), ENTITIES)
def test_an_entitys_prefix(key: str, unit: Unit) -> None:
    """Kind, id and experiment; recognised only where a server of a known root, or an experiment, would put it."""
    assert KNOWN.unit_of(key) == unit


STRANGERS = [
    ("top.txt", ""),
    ("other/software/file", "other/"),
    ("root/readme", "root/"),
    ("root/spark/logs/1", "root/spark/"),
    ("root/5/notes.txt", "root/5/"),
    ("root/5/draft/x/y", "root/5/draft/"),
    ("root/77/draft/x", "root/77/draft/"),
    ("root/77/x", "root/77/"),
    ("root/5/models/x", "root/5/models/"),
    ("root/5/models/m/x", "root/5/models/m/"),
    ("root/77/traces/t/x", "root/77/traces/t/"),
    ("root/workspaces/x", "root/workspaces/"),
    ("root/workspaces/team/x", "root/workspaces/team/"),
    ("root/workspaces/team/8/y/x", "root/workspaces/team/8/y/"),
    (f"root/5/{ID}/x", f"root/5/{ID}/"),
    (f"root/5/{ID[:-1]}/artifacts", f"root/5/{ID[:-1]}/"),
    ("root//x", "root//"),
]


@pytest.mark.parametrize(("key", "prefix"), STRANGERS)
def test_the_folder_of_a_stranger(key: str, prefix: str) -> None:
    """The first folder beneath what MLflow has made, or that place itself; never an entity's."""
    assert KNOWN.unit_of(key) == Unit(prefix)


def test_places_that_rows_name() -> None:
    """The longest wins: a place within an entity's prefix is its own unit, one around it is not the entity's."""
    known = Layouts(
        bucket="b",
        roots=frozenset({"root/"}),
        experiments={},
        places=frozenset({"odd/place/", f"root/5/{ID}/artifacts/inner/"}),
    )

    assert known.unit_of("odd/place/x/y").prefix == "odd/place/"
    assert known.unit_of(f"odd/place/{ID}/artifacts/x").prefix == f"odd/place/{ID}/artifacts/"
    assert known.unit_of(f"root/5/{ID}/artifacts/inner/x").prefix == f"root/5/{ID}/artifacts/inner/"
    assert known.unit_of(f"root/5/{ID}/artifacts/x").prefix == f"root/5/{ID}/artifacts/"


def test_a_root_that_is_the_bucket() -> None:
    """Nothing is beneath a folder of its own then, and other software lies beside experiments."""
    known = Layouts(bucket="b", roots=frozenset({""}), experiments={"3/": ("3", "default")})

    assert known.unit_of(f"3/{ID}/artifacts/x") == Unit(f"3/{ID}/artifacts/", RUN, ID, "3", "default", recognised=True)
    assert known.unit_of(f"4/{ID}/artifacts/x").recognised
    assert known.unit_of("terraform/state") == Unit("terraform/")
    assert known.unit_of("x") == Unit("")


def test_a_unit_contains_its_key(rng: random.Random) -> None:
    """Whatever the key, its unit's prefix begins it, and a neighbour that begins so is an entity's too."""
    parts = ["root", "5", "77", "models", "traces", "workspaces", "artifacts", ID, f"m-{ID}", f"tr-{ID}", "x", ""]
    for _ in range(5_000):
        key = "/".join(rng.choice(parts) for _ in range(rng.randint(1, 8)))
        unit = KNOWN.unit_of(key)
        assert key.startswith(unit.prefix), key
        assert unit.prefix == "" or unit.prefix.endswith("/"), key
        if unit.kind is not None:
            # What the counting relies on.
            assert KNOWN.unit_of(unit.prefix + "/".join(rng.choice(parts) for _ in range(3))) == unit, key


def _known(
    experiments: Sequence[Experiment], *own: Reference, given: Sequence[Location] = ()
) -> tuple[list[str], Layouts]:
    found = places(
        experiments=experiments,
        workspaces={"team": "s3://bucket/of-team"},
        own_places=own,
        rows={},
        destination=Destination.parse("s3://bucket/proxied"),
        given=given,
    )
    return [root.prefix for root in found.roots], found.layouts["bucket"]


def test_the_roots_are_those_that_rows_name() -> None:
    """A server's root above its experiments, a chosen location itself, a workspace's own, the proxy's, and no twins."""
    experiments = [
        Experiment("1", "s3://bucket/root/1", "default"),
        Experiment("2", "s3://bucket/root/workspaces/team/2", "team"),
        Experiment("3", "s3://bucket/root/inner/chosen", "default"),
        Experiment("4", "s3://bucket/teams/vision", "default"),
        Experiment("5", "mlflow-artifacts:/5", "default"),
        Experiment("6", "file:///tmp/6", "default"),
    ]
    own = Reference(holder="run", text=f"s3://bucket/moved/1/{ID_MARK}/artifacts", strength=Strength.AREA)
    models = Reference(holder="model", text=f"s3://bucket/moved/2/models/{ID_MARK}/artifacts", strength=Strength.AREA)
    odd = Reference(holder="run", text="s3://bucket/by/hand")

    roots, layouts = _known(experiments, own, models, odd, given=[Location("bucket", "named/")])

    assert roots == ["by/hand/", "moved/1/", "moved/2/", "named/", "of-team/", "proxied/", "root/", "teams/vision/"]
    assert layouts.roots == {"root/", "of-team/", "proxied/"}
    assert layouts.places == {"by/hand/"}
    assert {"root/1/", "proxied/5/", "moved/1/", "moved/2/", "root/inner/chosen/"} <= layouts.experiments.keys()


def test_outermost() -> None:
    """What lies in another is listed with it, once; a name that begins another's does not contain it."""
    found = outermost([Location("b", p) for p in ("a/b/", "a/", "a/", "ab/", "c/")] + [Location("d", "a/")])

    assert [one.uri for one in found] == ["s3://b/a/", "s3://b/ab/", "s3://b/c/", "s3://d/a/"]
