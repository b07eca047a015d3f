"""From a key to the prefix that it is audited under: an entity's own, or a folder that MLflow did not make. Pure.

Every MLflow keeps the artifacts of an entity in a folder of its own under its experiment's location ``L``:
``L/<run>/artifacts/`` (always), ``L/traces/<trace>/artifacts/`` (since 2.14), ``L/models/<model>/artifacts/`` (since
3.0); ``L`` is ``<root>/<number>``, ``<root>/workspaces/<name>/<number>`` (since 3.10), or what the user said. The shape
alone proves nothing: other software names folders so too. So a prefix is *recognised* only where its ``L`` is known, or
lies where a server of a known root would put it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from mlflow_artifact_gc.locations import DEFAULT_WORKSPACE, WORKSPACES_FOLDER, Location
from mlflow_artifact_gc.model import EntityKind

_ENTITY: Final = re.compile(
    r"(?:^|/)(?:(?P<run>[0-9a-f]{32})|models/(?P<model>m-[0-9a-f]{32})|traces/(?P<trace>(?:tr-)?[0-9a-f]{32}))/artifacts/"
)
"""MLflow's own ids; a row may have others (see ``_beneath``)."""
_FOLDERS: Final = {"models": EntityKind.LOGGED_MODEL, "traces": EntityKind.TRACE}
_NUMBER: Final = re.compile(r"\d{1,19}")


class Unit(NamedTuple):
    """What is audited as one: ``prefix`` is the whole bucket (empty) or ends in ``/``.

    ``kind`` None: no entity's. ``recognised``: lies where MLflow would put it, or where a row says that it lies;
    ``experiment_id`` and ``workspace`` as the path tells them (empty where it does not).
    """

    prefix: str
    kind: EntityKind | None = None
    id: str = ""
    experiment_id: str = ""
    workspace: str = ""
    recognised: bool = False


@dataclass(frozen=True, kw_only=True)
class Layouts:
    """What is known of the places in a bucket."""

    bucket: str
    roots: frozenset[str]
    """Prefixes under which a server makes locations by experiment number."""
    experiments: Mapping[str, tuple[str, str]]
    """Experiments' locations, with the experiment's id and workspace."""
    given: frozenset[str] = frozenset()
    """Prefixes that a person named: entities may lie directly beneath them."""
    places: frozenset[str] = frozenset()
    """Prefixes that rows name and that have no shape of MLflow's."""

    def unit_of(self, key: str) -> Unit:
        """The unit that a key belongs to: the longest of what rows name, and else the outermost entity's prefix."""
        found = self._entity(key)
        if self.places:
            place = next((folder for folder in _folders(key) if folder in self.places), None)
            if place is not None and (found is None or len(place) > len(found.prefix)):
                return Unit(place, recognised=True)
        return found or self._stranger(key)

    def _entity(self, key: str) -> Unit | None:
        shaped = self._shaped(key)
        beneath = self._beneath(key)
        if shaped is None or beneath is None:
            return shaped or beneath
        # Of the same prefix, a model whose id MLflow did not make has the shape of a run.
        longer = len(shaped.prefix) - len(beneath.prefix)
        return beneath if longer > 0 or (longer == 0 and not shaped.recognised) else shaped

    def _shaped(self, key: str) -> Unit | None:
        match = _ENTITY.search(key)
        if match is None:
            return None
        above = key[: match.start()] + "/" if key[match.start()] == "/" else ""
        kind = EntityKind.RUN if match["run"] else EntityKind.LOGGED_MODEL if match["model"] else EntityKind.TRACE
        id_ = match["run"] or match["model"] or match["trace"]
        home = self._home(above)
        return Unit(key[: match.end()], kind, id_, *(home or ("", "")), recognised=home is not None)

    def _beneath(self, key: str) -> Unit | None:
        """An entity with an id that MLflow did not make, in the location of an experiment that is known."""
        for folder in reversed(_folders(key)):
            if folder in self.experiments:
                first, _, rest = key[len(folder) :].partition("/")
                kind = _FOLDERS.get(first)
                id_, _, rest = rest.partition("/") if kind else (first, "", rest)
                if id_ and rest.startswith("artifacts/"):
                    prefix = f"{folder}{first}/artifacts/" if kind is None else f"{folder}{first}/{id_}/artifacts/"
                    return Unit(prefix, kind or EntityKind.RUN, id_, *self.experiments[folder])
        return None

    def _home(self, above: str) -> tuple[str, str] | None:
        """Experiment and workspace of the location ``above``, or None where it is nobody's that is known."""
        if above in self.experiments:
            return self.experiments[above]
        for root in (*self.roots, *self.given):
            if above.startswith(root):
                segments = above[len(root) :].split("/")[:-1]
                workspace = ""
                if segments[:1] == [WORKSPACES_FOLDER] and len(segments) > 1:
                    workspace, segments = segments[1], segments[2:]
                if len(segments) == 1 and _NUMBER.fullmatch(segments[0]):
                    return segments[0], workspace or DEFAULT_WORKSPACE
                if not segments and root in self.given:
                    return "", workspace
        return None

    def _stranger(self, key: str) -> Unit:
        """The first folder beneath what MLflow has made (or its place alone, for what lies directly there)."""
        made = self._made(key)
        first, slash, _ = key[len(made) :].partition("/")
        return Unit(made + first + slash if slash else made)

    def _made(self, key: str) -> str:
        folders = _folders(key)
        made = next((one for one in folders if one in self.experiments or one in self.roots or one in self.given), "")
        if made not in self.experiments:
            segments = key[len(made) :].split("/")[:-1]
            depth = 0
            if segments[:1] == [WORKSPACES_FOLDER]:
                depth = min(2, len(segments))
            if len(segments) > depth and _NUMBER.fullmatch(segments[depth]):
                depth += 1
                # As in an experiment's location.
                if len(segments) > depth and segments[depth] in _FOLDERS:
                    depth += 1
            return made + "".join(f"{segment}/" for segment in segments[:depth])
        first = key[len(made) :].partition("/")
        return f"{made}{first[0]}/" if first[1] and first[0] in _FOLDERS else made


def _folders(key: str) -> list[str]:
    """The prefixes that end in ``/`` and contain ``key``, longest first, down to the whole bucket."""
    found: list[str] = []
    end = key.rfind("/")
    while end >= 0:
        found.append(key[: end + 1])
        end = key.rfind("/", 0, end)
    found.append("")
    return found


def outermost(locations: Iterable[Location]) -> list[Location]:
    """Those that lie in no other, in order: to list each key once."""
    kept: list[Location] = []
    for location in sorted(set(locations)):
        if not kept or not kept[-1].contains(location):
            kept.append(location)
    return kept
