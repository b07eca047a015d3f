"""Reads S3's XML answers in C and hands botocore a stub. Strict: what is not S3's answer is never an empty one.

botocore takes about 120 microseconds of CPU per listed key. Its event ``before-parse`` comes before that and may change
``response_dict`` (the raw answer) and ``customized_response_dict`` (what is added to the parsed one); botocore's own
handlers use both. There is no state but what a server was seen to do with ``+``, so one client serves many threads.

Only answers that mean success are read here: those with an error status keep botocore's parsing and retries. So does a
200 with an <Error> or with torn XML, which botocore turns into a 500 and tries again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from sys import intern
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from xml.etree import ElementTree as ET

import botocore.handlers
from botocore.handlers import set_list_objects_encoding_type_url
from botocore.parsers import ResponseParserError

from mlflow_artifact_gc.s3.entries import Entry, Kind
from mlflow_artifact_gc.s3.keys import PlusSign, decoded_keys, decoded_marker, is_encoded
from mlflow_artifact_gc.s3.plain_rows import STAND_IN, Row, take_out

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from botocore.model import OperationModel
    from mypy_boto3_s3.client import S3Client

PAGE: Final = "MlflowArtifactGcPage"
"""Where a listing's answer holds its ``Page``."""
ROWS: Final = "MlflowArtifactGcRows"
"""Where a DeleteObjects answer holds its ``DeletedRow`` and ``ErrorRow`` values."""

_EVERY_ANSWER: Final = "before-parse.s3.*"
# Private: where it has another name it is left in its place, and a page is parsed twice.
_LOOK_FOR_ERROR: Final = getattr(botocore.handlers, "_handle_200_error", None)
_OK: Final = 200
_FIRST_ERROR_STATUS: Final = 301  # as botocore.parsers.ResponseParser.parse has it
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_BEFORE_S3 = datetime(2000, 1, 1, tzinfo=UTC)


class BodyUnreadable(ResponseParserError):
    """A success answer whose body is not the XML that the operation answers with."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer to a listing request.

    ``truncated`` None: the answer does not say. ``ambiguous`` not None: its keys cannot be decoded for certain, and
    ``entries`` holds them as they came. Ask for the same page without EncodingType, and let the server's ``PlusSign``
    learn from the two.
    """

    entries: tuple[Entry, ...]
    truncated: bool | None
    next_token: str | None
    next_key: str | None
    next_id: str | None
    ambiguous: PlusSign | None = None
    folders: tuple[str, ...] = ()
    """The common prefixes of a listing that asked for a delimiter."""

    @property
    def names(self) -> tuple[str, ...]:
        """Everything in it that may be encoded."""
        return (*(entry.key for entry in self.entries), *self.folders)


class DeletedRow(NamedTuple):
    """One key that DeleteObjects reports as deleted."""

    key: str
    version_id: str | None


class ErrorRow(NamedTuple):
    """One key that DeleteObjects could not delete."""

    key: str
    version_id: str | None
    code: str
    message: str


class Parsers:
    """The handlers of one client."""

    def __init__(self) -> None:
        self.plus = PlusSign()

    def register(self, client: S3Client) -> None:
        """Puts the handlers on ``client``, whose listing calls answer with a ``Page`` from now on.

        The rows stand where botocore's lists stand, too: code that lists with this client in the ordinary way fails on
        the first row, and never takes the stub for an empty bucket.
        """
        events = client.meta.events
        for operation, root in _ROOTS.items():
            events.register(f"before-parse.s3.{operation}", self._handler(root, _READERS.get(operation)))
        if _LOOK_FOR_ERROR is not None:
            events.unregister(_EVERY_ANSWER, _LOOK_FOR_ERROR)
            events.register_first(_EVERY_ANSWER, self._first)
        for operation in ("DeleteObject", "AbortMultipartUpload", "PutObjectTagging", "DeleteObjectTagging"):
            events.register(f"before-parse.s3.{operation}", refuse_a_body)
        for operation in ("ListObjectsV2", "ListObjectVersions"):
            # It asks for url encoding where the caller does not, and decodes + as a space whatever the server means.
            events.unregister(f"before-parameter-build.s3.{operation}", set_list_objects_encoding_type_url)

    def _handler(self, root: str, reader: _Reader | None) -> Callable[..., None]:
        def before_parse(
            response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_context: object
        ) -> None:
            if response_dict["status_code"] >= _FIRST_ERROR_STATUS:
                return
            if reader is None:
                parse_root(response_dict["body"], response_dict["status_code"], root)
            elif customized_response_dict.keys().isdisjoint((PAGE, ROWS)):
                customized_response_dict.update(reader(response_dict["body"], response_dict["status_code"], self.plus))
                response_dict["body"] = _stub(root)

        return before_parse

    def _first(
        self,
        operation_model: OperationModel,
        response_dict: dict[str, Any],
        customized_response_dict: dict[str, Any],
        **_context: object,
    ) -> None:
        """In the place of botocore's look for an <Error> in a success, which parses all of a page for that alone.

        What cannot be read here is left to that look, which may have it asked for again, and to the handler after it.
        """
        if reader := _READERS.get(operation_model.name):
            try:
                found = reader(response_dict["body"], response_dict["status_code"], self.plus)
            except BodyUnreadable:
                pass
            else:
                customized_response_dict.update(found)
                response_dict["body"] = _stub(_ROOTS[operation_model.name])
                return
        if _LOOK_FOR_ERROR is not None:
            _LOOK_FOR_ERROR(operation_model=operation_model, response_dict=response_dict)


def _stub(root: str) -> bytes:
    return f"<{root}/>".encode()


def refuse_a_body(response_dict: dict[str, Any], **_context: object) -> None:
    """Handler for operations whose success has no body: one that has, a proxy's page of HTML, proves nothing.

    Raises:
        BodyUnreadable: there is one.
    """
    if response_dict["status_code"] < _FIRST_ERROR_STATUS and response_dict["body"].strip():
        raise BodyUnreadable("a body where none was expected")


def parse_root(body: bytes, status: int, root: str) -> ET.Element:
    """The root element of a success answer.

    Raises:
        BodyUnreadable: no body, torn XML, another status than 200 or another root than ``root``. botocore would take
            each of these for an empty answer.
    """
    if status != _OK:
        raise BodyUnreadable(f"status {status} where 200 was expected")
    try:
        tree = ET.fromstring(body)  # noqa: S314 - expat limits entity expansion, and the server holds the data anyway
    except ET.ParseError as error:
        raise BodyUnreadable(f"no well-formed XML where <{root}> was expected") from error
    name = _Names()[tree.tag]
    if name not in (root, _OTHER_ROOTS.get(root)):
        raise BodyUnreadable(f"<{name[:40]}> where <{root}> was expected")
    return tree


def read_versions(body: bytes, status: int, plus: PlusSign) -> dict[str, Any]:
    """The additions to a ListObjectVersions answer. Raises BodyUnreadable, as do the readers below."""
    readers = {"Version": _version, "DeleteMarker": _marker}
    tree, rows = _rows(body, status, "ListVersionsResult", readers)
    page = _page(tree, rows, plus, readers, "NextVersionIdMarker")
    return {PAGE: page, "Versions": page.entries, "IsTruncated": page.truncated}


def read_current(body: bytes, status: int, plus: PlusSign) -> dict[str, Any]:
    """The additions to a ListObjectsV2 answer."""
    readers = {"Contents": _current}
    tree, rows = _rows(body, status, "ListBucketResult", readers)
    page = _page(tree, rows, plus, readers, "NextVersionIdMarker")
    return {PAGE: page, "Contents": page.entries, "KeyCount": len(page.entries), "IsTruncated": page.truncated}


def read_uploads(body: bytes, status: int, plus: PlusSign) -> dict[str, Any]:
    """The additions to a ListMultipartUploads answer."""
    tree = parse_root(body, status, "ListMultipartUploadsResult")
    page = _page(tree, [], plus, {"Upload": _upload}, "NextUploadIdMarker")
    return {PAGE: page, "Uploads": page.entries, "IsTruncated": page.truncated}


def read_deleted(body: bytes, status: int, _plus: PlusSign) -> dict[str, Any]:
    """The additions to a DeleteObjects answer."""
    tree = parse_root(body, status, "DeleteResult")
    deleted: list[DeletedRow] = []
    errors: list[ErrorRow] = []
    names = _Names()
    for element in tree:
        name = names[element.tag]
        if name == "Deleted":
            fields = _fields(element, names)
            deleted.append(DeletedRow(_required(fields, "Key"), fields.get("VersionId") or None))
        elif name == "Error":
            fields = _fields(element, names)
            code, message = fields.get("Code") or "", fields.get("Message") or ""
            errors.append(ErrorRow(_required(fields, "Key"), fields.get("VersionId") or None, code, message))
    return {ROWS: (tuple(deleted), tuple(errors)), "Deleted": tuple(deleted), "Errors": tuple(errors)}


if TYPE_CHECKING:
    _Reader = Callable[[bytes, int, PlusSign], dict[str, Any]]
    _Fields = dict[str, str]
    _RowReader = Callable[[_Fields, str], Entry]

_READERS: dict[str, _Reader] = {
    "ListObjectVersions": read_versions,
    "ListObjectsV2": read_current,
    "ListMultipartUploads": read_uploads,
    "DeleteObjects": read_deleted,
}
_ROOTS: Final = {
    "ListObjectVersions": "ListVersionsResult",
    "ListObjectsV2": "ListBucketResult",
    "ListMultipartUploads": "ListMultipartUploadsResult",
    "DeleteObjects": "DeleteResult",
    # botocore parses it, but a proxy's page of HTML must not read as "versioning was never switched on".
    "GetBucketVersioning": "VersioningConfiguration",
    # So must it not read as "no tags", which would then be all that is kept of them.
    "GetObjectTagging": "Tagging",
}
_OTHER_ROOTS: Final = {"VersioningConfiguration": "GetBucketVersioningResponse"}  # moto's, for a bucket that has none


def _rows(body: bytes, status: int, root: str, names: Collection[str]) -> tuple[ET.Element, list[Row]]:
    """The root element, and the rows of these names that could be read without the parser: all of them, or none."""
    taken = take_out(body, names)
    if taken is not None:
        tree = parse_root(taken.rest, status, root)
        tags = Counter(element.tag.rpartition("}")[2] for element in tree)
        if tags[STAND_IN] == 1 and tags.keys().isdisjoint(names):
            return tree, taken.rows
    return parse_root(body, status, root), []


def _page(tree: ET.Element, rows: list[Row], plus: PlusSign, readers: Mapping[str, _RowReader], id_tag: str) -> Page:
    found: list[tuple[_RowReader, _Fields]] = [(readers[name], fields) for name, fields in rows]
    top: _Fields = {}
    folders: list[str] = []
    names = _Names()
    for element in tree:
        name = names[element.tag]
        reader = readers.get(name)
        if reader is not None:
            found.append((reader, _fields(element, names)))
        elif name == "CommonPrefixes":
            folders.append(_required(_fields(element, names), "Prefix"))
        else:
            top[name] = element.text or ""
    texts = [*(_required(fields, "Key") for _, fields in found), *folders]
    keys: list[str] | None = texts
    next_key = top.get("NextKeyMarker") or None
    if top.get("EncodingType") == "url" and is_encoded("".join(texts)):
        try:
            keys = decoded_keys(texts, plus)
            if keys is not None and next_key is not None:
                next_key = decoded_marker(next_key, keys, plus)
        except UnicodeDecodeError as error:
            raise BodyUnreadable("a key that is not UTF-8") from error
    told = texts if keys is None else keys
    entries = zip(found, told[: len(found)], strict=True)
    return Page(
        entries=tuple([reader(fields, key) for (reader, fields), key in entries]),
        truncated={"true": True, "false": False}.get(top.get("IsTruncated", "").strip().lower()),
        next_token=top.get("NextContinuationToken") or None,
        next_key=next_key,
        next_id=top.get(id_tag) or None,
        ambiguous=plus if keys is None else None,
        folders=tuple(told[len(found) :]),
    )


def _version(fields: _Fields, key: str) -> Entry:
    kind = Kind.CURRENT if _is_latest(fields) else Kind.NONCURRENT
    modified_ms = _modified(fields.get("LastModified"))
    return Entry(key, kind, fields.get("VersionId") or "null", _size(fields), modified_ms, _class(fields))


def _marker(fields: _Fields, key: str) -> Entry:
    modified_ms = _modified(fields.get("LastModified"))
    return Entry(key, Kind.MARKER, fields.get("VersionId") or "null", 0, modified_ms, hides=_is_latest(fields))


def _is_latest(fields: _Fields) -> bool:
    text = fields.get("IsLatest", "")
    return text == "true" or text.strip().lower() == "true"


def _current(fields: _Fields, key: str) -> Entry:
    return Entry(key, Kind.CURRENT, None, _size(fields), _modified(fields.get("LastModified")), _class(fields))


def _upload(fields: _Fields, key: str) -> Entry:
    return Entry(key, Kind.UPLOAD, _required(fields, "UploadId"), 0, _modified(fields.get("Initiated")))


def _class(fields: _Fields) -> str:
    # One text for millions of rows: entries are kept.
    return intern(fields.get("StorageClass", ""))


def _size(fields: _Fields) -> int:
    try:
        return int(fields.get("Size", ""))
    except ValueError as error:
        raise BodyUnreadable("an object without a size") from error


def _modified(text: str | None) -> int | None:
    """Milliseconds since the epoch, or None for what is no date, has no zone, or lies before S3 was made.

    Servers written in Go send year 1 for "unknown", which must not read as old.
    """
    try:
        moment = datetime.fromisoformat(text or "")
        return (moment - _EPOCH) // _MILLISECOND if moment >= _BEFORE_S3 else None
    except (ValueError, TypeError, OverflowError):
        return None


def _required(fields: _Fields, name: str) -> str:
    text = fields.get(name)
    if not text:
        raise BodyUnreadable(f"a row without {name}")
    return text


def _fields(element: ET.Element, names: _Names) -> _Fields:
    return {names[child.tag]: child.text or "" for child in element}


class _Names(dict[str, str]):
    """Tags without their namespace: servers send S3's, another or none, and not the same one everywhere.

    Looked up for each field of each row: that is why they are remembered.
    """

    def __missing__(self, tag: str) -> str:
        name = self[tag] = tag[tag.rfind("}") + 1 :]
        return name
