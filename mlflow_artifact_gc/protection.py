"""Which candidates a reference protects. Pure, and as wide as it is safe: what is not understood protects.

First the id rule: a text that contains a candidate's id protects it, whatever its scheme, host, bucket or encoding.
Then containment of the places that the text names. It is a hash join: the candidates are indexed once, and each text
costs a few look-ups.
"""

from __future__ import annotations

import json
import re
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol
from urllib.parse import unquote

from mlflow_artifact_gc.errors import NotOnS3, ReferencesIncomplete, UnreadableUri
from mlflow_artifact_gc.locations import PLAIN_S3, Destination, Location, proxied_path
from mlflow_artifact_gc.model import Reference, Strength

CORE: Final = 32
_TAIL: Final = "/artifacts/"
_NO_HEAD: Final = 2**32 - 1
_DECODINGS: Final = 3
_HEX_RUN = re.compile(r"[0-9a-fA-F]{32,}")
_ID_WITH_CORE = re.compile(r"(?:[a-z]{1,3}-)?[0-9a-f]{32}")
_S3_URI = re.compile(r"s3[an]?:", re.IGNORECASE)
_PROXIED_URI = re.compile(r"mlflow-artifacts:", re.IGNORECASE)
_NO_DESTINATION: Final = Destination()
_OF_REGISTRY: Final = ("models:", "runs:")
"""They name no place, and most texts of a registry are such."""
_S3_ARN = re.compile(r"arn:[^:]*:s3:[^:]*:[^:]*:(?P<rest>.+)", re.IGNORECASE)
# A reader such as Spark takes these as a pattern: then everything beside the first of them may be meant.
_PATTERN = re.compile(r"[*?\[{#\x1f]")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entity's id, the location that may be swept, and the experiment that it belongs to, where that is known."""

    id: str
    location: Location
    experiment_id: str = ""


def has_core(id_: str) -> bool:
    """Whether an entity's id is as MLflow makes them: such digits, and nothing but a short prefix before them."""
    return _ID_WITH_CORE.fullmatch(id_) is not None


def cores(text: str) -> set[str]:
    """Every 32 hexadecimal digits in a row that ``text`` holds, lower case, overlapping ones included.

    MLflow's ids are such digits, of models and traces behind ``m-`` and ``tr-``.
    """
    found: set[str] = set()
    for run in _HEX_RUN.findall(text):
        lowered = run.lower()
        if len(lowered) == CORE:  # nearly always
            found.add(lowered)
            continue
        found.update(lowered[start : start + CORE] for start in range(len(lowered) - CORE + 1))
    return found


def readings(text: str) -> tuple[str, ...]:
    """``text`` as it is and percent-decoded, as often as that changes it (three times at most)."""
    if "%" not in text:
        return (text,)
    found = [text]
    while len(found) <= _DECODINGS and (decoded := unquote(found[-1])) != found[-1]:
        found.append(decoded)
    return tuple(found)


class Sieve(Protocol):
    """What of many references matters."""

    def matters(self, reference: Reference) -> bool:
        """Whether it protects anything. Raises ReferencesIncomplete, as ``Protection.protected_by`` does."""

    def is_beside(self, text: str) -> bool:
        """Whether a text surely protects nothing."""


class Protection:
    """The candidates, indexed by id and by place.

    There may be a million: of those in MLflow's own form (a place that ends in the entity's id and ``artifacts/``)
    nothing is kept but the id, and the number of what is before it, which many share.
    """

    def __init__(self, candidates: Iterable[Candidate], destination: Destination) -> None:
        self._destination = destination
        self._ids: list[str] = []
        self._head_of = array("I")
        self._heads: dict[tuple[str, str], int] = {}
        self._others: dict[int, Candidate] = {}
        """Those of another form."""
        self._by_core: dict[str, int | tuple[int, ...]] = {}
        self._odd: defaultdict[str, list[int]] = defaultdict(list)
        self._by_experiment: defaultdict[str, array[int]] = defaultdict(_numbers)
        for index, candidate in enumerate(candidates):
            self._add(index, candidate)
        self._head_names = list(self._heads)
        self._sorted_heads: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for (bucket, head), number in sorted(self._heads.items()):
            self._sorted_heads[bucket].append((head, number))
        self._by_bucket: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        self._lengths: defaultdict[str, set[int]] = defaultdict(set)
        for index, candidate in self._others.items():
            self._by_bucket[candidate.location.bucket].append((candidate.location.prefix, index))
            self._lengths[candidate.location.bucket].add(len(candidate.location.prefix))
        for places in self._by_bucket.values():
            places.sort()

    def _add(self, index: int, candidate: Candidate) -> None:
        id_, location = candidate.id, candidate.location
        with_core = has_core(id_)
        head = location.prefix.removesuffix(f"{id_}{_TAIL}")
        if with_core and len(head) < len(location.prefix) and (not head or head.endswith("/")):
            self._head_of.append(self._heads.setdefault((location.bucket, head), len(self._heads)))
        else:
            self._head_of.append(_NO_HEAD)
            self._others[index] = candidate
        self._ids.append(id_)
        if with_core:
            core = id_[-CORE:]
            before = self._by_core.get(core)
            if before is None:
                self._by_core[core] = index
            else:
                self._by_core[core] = (*(before if isinstance(before, tuple) else (before,)), index)
        else:
            self._odd[id_].append(index)
        self._by_experiment[candidate.experiment_id].append(index)

    def protected_by(self, reference: Reference) -> set[int]:
        """The positions of the candidates that ``reference`` protects.

        Raises:
            ReferencesIncomplete: the text is a proxied URI and nobody has said where the proxy keeps its objects.
        """
        return set(self._hits(reference))

    def protects(self, reference: Reference) -> bool:
        """Whether there is any. Raises as ``protected_by`` does."""
        if not reference.experiment_id and self.is_beside(reference.text):
            return False
        return next(self._hits(reference), None) is not None

    def is_beside(self, text: str) -> bool:
        """Whether a text, whatever its strength and workspace, protects none, as nearly all do: at a tenth of the cost.

        False says nothing. True only of texts of the usual forms: of these, what holds no candidate's id can only name
        a folder around some.
        """
        if self._odd or "%" in text:
            return False
        for run in _HEX_RUN.findall(text):
            if len(run) != CORE or run.lower() in self._by_core:
                return False
        if text.startswith(("models:/", "runs:/")):
            return True
        plain = PLAIN_S3.fullmatch(text)
        if plain is None or "/." in text or plain[1] in self._by_bucket:
            return False
        heads, folder = self._sorted_heads.get(plain[1], []), plain[2]
        if folder and folder[-1] != "/":
            folder += "/"
        at = bisect_left(heads, (folder, -1))
        return at == len(heads) or not heads[at][0].startswith(folder)

    def _hits(self, reference: Reference) -> Iterator[int]:
        if reference.experiment_id:
            yield from self._by_experiment.get(reference.experiment_id, ())
            # Of these no row and no path tells the experiment: it may be this one.
            yield from self._by_experiment.get("", ())
        for text in readings(reference.text):
            yield from self._by_id(text)
        for place, strength in self._places(reference):
            if place is None:
                yield from range(len(self._ids))
            else:
                yield from self._by_place(place, strength)

    def parts_needed(self, reference: Reference) -> dict[int, tuple[Location, ...]]:
        """For each position that ``reference`` protects the places inside its location that alone are needed.

        None where all of it is, or where that cannot be said: a text that names no place beneath the location, or all
        of it by one of its readings.

        Raises:
            ReferencesIncomplete: as ``protected_by`` does.
        """
        found: dict[int, tuple[Location, ...]] = {}
        hits = self.protected_by(reference)
        places = [place for place, _ in self._places(reference)] if hits else []
        # Read widely, a text protects more; as the border of what stays it has to have one reading, to the byte.
        text = reference.text
        exact = text.isprintable() and text == text.strip() and len(readings(text)) == 1 and "%" not in text
        for index in hits:
            whole = self._location(index)
            inside = [place for place in places if place is not None and place != whole and whole.contains(place)]
            # Behind the artifact proxy one of two readings lies in a workspace's folder, and touches nothing of this.
            beside = [place for place in places if place is not None and not place.overlaps(whole)]
            plain = exact and reference.live and reference.strength is Strength.NAMES and not reference.experiment_id
            plain = plain and all(_is_plain(place.prefix[len(whole.prefix) :]) for place in inside)
            found[index] = tuple(inside) if plain and len(inside) + len(beside) == len(places) else ()
        return found

    def _location(self, index: int) -> Location:
        if index in self._others:
            return self._others[index].location
        bucket, head = self._head_names[self._head_of[index]]
        return Location(bucket, f"{head}{self._ids[index]}{_TAIL}")

    def _by_id(self, text: str) -> Iterator[int]:
        for core in cores(text):
            yield from self._of_core(core)
        for id_, positions in self._odd.items():
            if id_ in text:
                yield from positions

    def _of_core(self, core: str) -> tuple[int, ...]:
        found = self._by_core.get(core, ())
        return found if isinstance(found, tuple) else (found,)

    def _by_place(self, place: Location, strength: Strength) -> Iterator[int]:
        if place.bucket in self._sorted_heads:
            yield from self._around(place)
            if strength is Strength.NAMES:
                yield from self._within(place)
        places = self._by_bucket.get(place.bucket)
        if places:
            lengths = self._lengths[place.bucket]
            for above in place.folders():
                if len(above) in lengths:
                    yield from _equal(places, above)
            if strength is Strength.NAMES:
                yield from _starting(places, place.prefix)

    def _around(self, place: Location) -> Iterator[int]:
        """Those in MLflow's form that contain the place."""
        prefix = place.prefix
        end = prefix.find(_TAIL)
        while end >= 0:
            start = prefix.rfind("/", 0, end) + 1
            yield from self._at(place.bucket, prefix[:start], prefix[start:end])
            end = prefix.find(_TAIL, end + 1)

    def _within(self, place: Location) -> Iterator[int]:
        """Those in MLflow's form that the place contains."""
        above, _, name = place.prefix[:-1].rpartition("/")
        yield from self._at(place.bucket, f"{above}/" if above or place.prefix.startswith("/") else "", name)
        for number in _starting(self._sorted_heads[place.bucket], place.prefix):
            yield from self._by_head[number]

    def _at(self, bucket: str, head: str, name: str) -> Iterator[int]:
        number = self._heads.get((bucket, head))
        if number is not None:
            for index in self._of_core(name[-CORE:]):
                if self._head_of[index] == number and self._ids[index] == name:
                    yield index

    @cached_property
    def _by_head(self) -> list[array[int]]:
        found = [_numbers() for _ in self._heads]
        for index, number in enumerate(self._head_of):
            if number != _NO_HEAD:
                found[number].append(index)
        return found

    def _places(self, reference: Reference) -> Iterator[tuple[Location | None, Strength]]:
        """The places that the text may name, and how far each reaches; None stands for every place."""
        text = reference.text.strip()
        if text.startswith(_OF_REGISTRY):
            return
        named = _before_pattern(text)
        try:
            path = proxied_path(named)
        except UnreadableUri:
            path = ".." if _PROXIED_URI.match(text) else None
        if path is not None:
            yield from self._proxied(path, reference)
        elif _S3_URI.match(text) or _S3_ARN.match(text):
            yield from _on_s3(named, reference.strength)

    def _proxied(self, path: str, reference: Reference) -> Iterator[tuple[Location | None, Strength]]:
        if not self._destination.known:
            raise ReferencesIncomplete(
                f"{reference.holder} points at {reference.text!r}, and where the artifact proxy keeps its objects is "
                "not known: give --artifacts-destination as the server has it (MLflow's own default is ./mlartifacts)"
            )
        try:
            for place in self._destination.every_reading(path, reference.workspace):
                yield place, reference.strength
        except UnreadableUri:
            yield self._destination.root, Strength.NAMES


def _numbers() -> array[int]:
    return array("I")


def _is_plain(path: str) -> bool:
    """Whether every reader takes a folder's path for the same: some drop empty segments."""
    return "" not in path.removesuffix("/").split("/")


def _equal(places: list[tuple[str, int]], prefix: str) -> Iterator[int]:
    position = bisect_left(places, (prefix, -1))
    while position < len(places) and places[position][0] == prefix:
        yield places[position][1]
        position += 1


def _starting(places: list[tuple[str, int]], prefix: str) -> Iterator[int]:
    position = bisect_left(places, (prefix, -1))
    while position < len(places) and places[position][0].startswith(prefix):
        yield places[position][1]
        position += 1


def _before_pattern(text: str) -> str:
    """``text`` up to the folder in which a pattern begins; MLflow itself drops what follows ``#`` and ``?``."""
    pattern = _PATTERN.search(text)
    return text[: pattern.start()].rpartition("/")[0] + "/" if pattern else text


def _on_s3(text: str, strength: Strength) -> Iterator[tuple[Location | None, Strength]]:
    arn = _S3_ARN.match(text)
    uri = f"s3://{arn['rest'].removeprefix('accesspoint/')}" if arn else text
    try:
        for reading in readings(uri):
            yield Location.parse(reading, _NO_DESTINATION), strength
    except (UnreadableUri, NotOnS3):
        bucket = re.match(r"s3[an]?://([A-Za-z0-9][A-Za-z0-9._-]+)(?:/|$)", uri, re.IGNORECASE)
        yield (Location(bucket[1], "") if bucket else None), Strength.NAMES


def texts_in(document: str) -> tuple[str, ...]:
    """Every text inside a JSON document; the document itself where it is none."""
    try:
        return tuple(_strings(json.loads(document)))
    except (ValueError, RecursionError):
        return (document,)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
