"""S3's protocol: from a request to an operation, and from what came of it to XML."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import TypeVar
from urllib.parse import parse_qsl, quote_plus, unquote, urlsplit
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from tests.fakes3 import lifecycle
from tests.fakes3.faults import OF_LISTINGS, Kind
from tests.fakes3.keeping import (
    MOST_KEYS_TO_DELETE,
    MOST_PER_PAGE,
    Asked,
    Bucket,
    Kept,
    Page,
    Refused,
    Upload,
    Version,
    checked_tags,
    etag_of,
)

_R = TypeVar("_R", Version, Upload)
OWNER = "111122223333"
"""The account that all buckets belong to."""
_XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_OPERATIONS: dict[tuple[str, bool, str], str] = {
    # method, on a key, and the part of the query that decides
    ("GET", False, ""): "ListObjects",
    ("GET", False, "list-type"): "ListObjectsV2",
    ("GET", False, "versions"): "ListObjectVersions",
    ("GET", False, "uploads"): "ListMultipartUploads",
    ("GET", False, "versioning"): "GetBucketVersioning",
    ("PUT", False, "versioning"): "PutBucketVersioning",
    ("GET", False, "lifecycle"): "GetBucketLifecycleConfiguration",
    ("PUT", False, "lifecycle"): "PutBucketLifecycleConfiguration",
    ("DELETE", False, "lifecycle"): "DeleteBucketLifecycle",
    ("GET", False, "location"): "GetBucketLocation",
    ("PUT", False, ""): "CreateBucket",
    ("DELETE", False, ""): "DeleteBucket",
    ("HEAD", False, ""): "HeadBucket",
    ("POST", False, "delete"): "DeleteObjects",
    ("GET", True, ""): "GetObject",
    ("HEAD", True, ""): "HeadObject",
    ("PUT", True, ""): "PutObject",
    ("DELETE", True, ""): "DeleteObject",
    ("GET", True, "tagging"): "GetObjectTagging",
    ("PUT", True, "tagging"): "PutObjectTagging",
    ("DELETE", True, "tagging"): "DeleteObjectTagging",
    ("POST", True, "uploads"): "CreateMultipartUpload",
    ("PUT", True, "uploadId"): "UploadPart",
    ("GET", True, "uploadId"): "ListParts",
    ("POST", True, "uploadId"): "CompleteMultipartUpload",
    ("DELETE", True, "uploadId"): "AbortMultipartUpload",
}
_DECIDING = {part for _, _, part in _OPERATIONS} - {""}
# Parts of a query that name other operations: they must not be taken for a plain GET or PUT.
_OTHER_PARTS = {"acl", "policy", "inventory", "notification", "replication", "encryption", "cors", "retention"}
_OTHER_PARTS |= {"legal-hold", "object-lock", "website", "logging", "attributes", "restore", "select", "torrent"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client asks; ``headers`` by their names in lower case, ``bucket`` and ``key`` "" where none is named."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    bucket: str
    key: str
    values: Mapping[str, str]
    operation: str

    @classmethod
    def of(cls, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Request:
        parts = urlsplit(target)
        bucket, _, key = parts.path.lstrip("/").partition("/") if parts.path != "/" else ("", "", "")
        # A client's "+" is a plus; a path of "//x" names the key "/x".
        values = dict(parse_qsl(parts.query.replace("+", "%2B"), keep_blank_values=True))
        return cls(
            method=method,
            path=parts.path,
            query=parts.query,
            headers={name.lower(): value for name, value in headers.items()},
            body=body,
            bucket=unquote(bucket),
            key=unquote(key),
            values=values,
            operation=_operation(method, bucket, key, values, headers),
        )


def _operation(method: str, bucket: str, key: str, values: Mapping[str, str], headers: Mapping[str, str]) -> str:
    if not bucket:
        return "ListBuckets" if method == "GET" else "?"
    if _OTHER_PARTS & values.keys():
        return "?"
    deciding = next((part for part in values if part in _DECIDING), "")
    found = _OPERATIONS.get((method, bool(key), deciding), "?")
    copies = any(name.lower() == "x-amz-copy-source" for name in headers)
    return f"{found}Copy" if found == "UploadPart" and copies else "CopyObject" if copies else found


@dataclass(kw_only=True)
class Answer:
    """What the server answers."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def refusal(refused: Refused, request: Request) -> Answer:
    """S3's error document, which has no namespace."""
    said = _tag("Code", refused.code) + _tag("Message", refused.message) + _tag("Resource", request.path)
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{said}</Error>'.encode()
    return Answer(status=refused.status, body=body, headers=refused.headers)


class Operations:
    """Carries out requests. ``denied``: whether the caller lacks the right to an operation on a key."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.most_per_page = MOST_PER_PAGE
        self.denied: Callable[[str, str], bool] = lambda _operation, _key: False

    def perform(self, request: Request, fault: Kind | None = None) -> Answer:
        """Raises Refused."""
        owner = request.headers.get("x-amz-expected-bucket-owner", OWNER)
        if owner != OWNER or (request.operation != "DeleteObjects" and self.denied(request.operation, request.key)):
            raise Refused(403, "AccessDenied", "Access Denied")
        name = "_op" + "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in request.operation)
        perform: Callable[[Request, Kind | None], Answer] | None = getattr(self, name, None)
        if perform is None:
            raise Refused(501, "NotImplemented", f"{request.method} {request.query} is not part of this fake")
        return perform(request, fault)

    def _bucket(self, request: Request) -> Bucket:
        return self.kept.bucket(request.bucket)

    # Buckets

    def _op_list_buckets(self, _request: Request, _fault: Kind | None) -> Answer:
        listed = "".join(_tag("Bucket", _tag("Name", name), raw=True) for name in sorted(self.kept.buckets))
        return Answer(body=_document("ListAllMyBucketsResult", _tag("Buckets", listed, raw=True)))

    def _op_create_bucket(self, request: Request, _fault: Kind | None) -> Answer:
        if request.bucket in self.kept.buckets:
            raise Refused(409, "BucketAlreadyOwnedByYou", "Your previous request to create the bucket succeeded")
        self.kept.buckets[request.bucket] = Bucket(name=request.bucket)
        return Answer(headers={"Location": f"/{request.bucket}"})

    def _op_delete_bucket(self, request: Request, _fault: Kind | None) -> Answer:
        if self._bucket(request).keys:
            raise Refused(409, "BucketNotEmpty", "The bucket you tried to delete is not empty")
        del self.kept.buckets[request.bucket]
        return Answer(status=204)

    def _op_head_bucket(self, request: Request, _fault: Kind | None) -> Answer:
        self._bucket(request)
        return Answer(headers={"x-amz-bucket-region": "us-east-1"})

    def _op_get_bucket_location(self, request: Request, _fault: Kind | None) -> Answer:
        self._bucket(request)
        return Answer(body=_document("LocationConstraint", ""))

    def _op_get_bucket_versioning(self, request: Request, _fault: Kind | None) -> Answer:
        status = self._bucket(request).versioning
        return Answer(body=_document("VersioningConfiguration", _tag("Status", status) if status else ""))

    def _op_put_bucket_versioning(self, request: Request, _fault: Kind | None) -> Answer:
        status = _child_text(_parsed(request.body), "Status")
        if status not in ("Enabled", "Suspended"):
            raise Refused(400, "IllegalVersioningConfigurationException", "The versioning element must be specified")
        self._bucket(request).versioning = status
        return Answer()

    def _op_get_bucket_lifecycle_configuration(self, request: Request, _fault: Kind | None) -> Answer:
        found = self._bucket(request).lifecycle_xml
        if not found:
            raise Refused(404, "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist")
        return Answer(body=found)

    def _op_put_bucket_lifecycle_configuration(self, request: Request, _fault: Kind | None) -> Answer:
        bucket = self._bucket(request)
        lifecycle.parsed(request.body)
        bucket.lifecycle_xml = request.body
        return Answer()

    def _op_delete_bucket_lifecycle(self, request: Request, _fault: Kind | None) -> Answer:
        self._bucket(request).lifecycle_xml = b""
        return Answer(status=204)

    # Listings

    def _op_list_objects_v2(self, request: Request, fault: Kind | None) -> Answer:
        token = request.values.get("continuation-token")
        after = _from_token(token) if token is not None else request.values.get("start-after", "")
        asked = self._asked(request, after=after, most="max-keys")
        page = self._faulty(Kept.list_current(self._bucket(request), asked), asked, fault)
        encoded = _encoder(request)
        rows = "".join(_tag("Contents", _version_fields(one, encoded), raw=True) for one in page.rows)
        last = page.last if isinstance(page.last, str) or page.last is None else page.last.key
        top = _top(request, asked, page, encoded) + _tag("KeyCount", str(len(page.rows) + len(page.folders)))
        top += _tag("ContinuationToken", token) if token is not None else ""
        if page.truncated and fault is not Kind.NO_MARKER:
            top += _tag("NextContinuationToken", _to_token(last or ""))
        return Answer(body=_document("ListBucketResult", top + rows))

    def _op_list_object_versions(self, request: Request, fault: Kind | None) -> Answer:
        asked = self._asked(
            request,
            after=request.values.get("key-marker", ""),
            after_id=request.values.get("version-id-marker", ""),
            most="max-keys",
        )
        if asked.after_id and not asked.after:
            raise Refused(400, "InvalidArgument", "A version-id marker cannot be specified without a key marker.")
        page = self._faulty(Kept.list_versions(self._bucket(request), asked), asked, fault)
        encoded = _encoder(request)
        rows = ""
        for one in page.rows:
            latest = _tag("IsLatest", "true" if one.noncurrent_ms is None else "false")
            fields = _tag("VersionId", one.id) + latest + _version_fields(one, encoded)
            rows += _tag("DeleteMarker" if one.is_marker else "Version", fields, raw=True)
        top = _top(request, asked, page, encoded) + _tag("KeyMarker", encoded(asked.after))
        top += _tag("VersionIdMarker", asked.after_id)
        if page.truncated and fault is not Kind.NO_MARKER:
            top += _next(page, "VersionId", encoded, asked, fault)
        return Answer(body=_document("ListVersionsResult", top + rows))

    def _op_list_multipart_uploads(self, request: Request, fault: Kind | None) -> Answer:
        asked = self._asked(
            request,
            after=request.values.get("key-marker", ""),
            after_id=request.values.get("upload-id-marker", ""),
            most="max-uploads",
        )
        page = self._faulty(Kept.list_uploads(self._bucket(request), asked), asked, fault)
        encoded = _encoder(request)
        rows = ""
        for one in page.rows:
            fields = (
                _tag("Key", encoded(one.key)) + _tag("UploadId", one.id) + _tag("Initiated", _iso(one.initiated_ms))
            )
            rows += _tag("Upload", fields + _tag("StorageClass", "STANDARD"), raw=True)
        top = _top(request, asked, page, encoded, most="MaxUploads").replace("<Name>", "<Bucket>")
        top = top.replace("</Name>", "</Bucket>") + _tag("KeyMarker", encoded(asked.after))
        if page.truncated and fault is not Kind.NO_MARKER:
            top += _next(page, "UploadId", encoded, asked, fault)
        return Answer(body=_document("ListMultipartUploadsResult", top + rows))

    def _asked(self, request: Request, *, after: str, most: str, after_id: str = "") -> Asked:
        text = request.values.get(most, str(MOST_PER_PAGE))
        if not text.isdigit():
            raise Refused(400, "InvalidArgument", f"Provided {most} not an integer or within integer range")
        return Asked(
            prefix=request.values.get("prefix", ""),
            delimiter=request.values.get("delimiter", ""),
            after=after,
            after_id=after_id,
            most=min(int(text), self.most_per_page),
        )

    @staticmethod
    def _faulty(page: Page[_R], asked: Asked, fault: Kind | None) -> Page[_R]:
        if fault not in OF_LISTINGS:
            return page
        # Sorts before every key with the prefix: what follows it is the whole listing.
        back = asked.after or (asked.prefix[:-1] or "\x01")
        rows, folders = (page.rows, page.folders) if fault is not Kind.EMPTY_PAGE else ([], [])
        return Page(rows=rows, folders=folders, truncated=True, last=back)

    # Objects

    def _op_put_object(self, request: Request, _fault: Kind | None) -> Answer:
        bucket = self._bucket(request)
        _check_body(request)
        condition = request.headers.get("if-none-match")
        if condition not in (None, "*") or "if-match" in request.headers:
            raise Refused(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        made = self.kept.put(
            bucket,
            request.key,
            request.body,
            tags=_header_tags(request),
            headers=_own_headers(request),
            only_new=condition == "*",
        )
        return Answer(headers={"ETag": f'"{made.etag}"', **_version_header(bucket, made)})

    def _op_copy_object(self, request: Request, _fault: Kind | None) -> Answer:
        source, _, query = request.headers["x-amz-copy-source"].partition("?")
        name, _, key = unquote(source).lstrip("/").partition("/")
        version_id = dict(parse_qsl(query)).get("versionId")
        found = self.kept.get(self.kept.bucket(name), key, version_id)
        bucket = self._bucket(request)
        replaces = request.headers.get("x-amz-tagging-directive") == "REPLACE"
        made = self.kept.put(
            bucket,
            request.key,
            found.body,
            tags=_header_tags(request) if replaces else found.tags,
            headers=_own_headers(request)
            if request.headers.get("x-amz-metadata-directive") == "REPLACE"
            else found.headers,
        )
        fields = _tag("ETag", f'"{made.etag}"') + _tag("LastModified", _iso(made.modified_ms))
        return Answer(body=_document("CopyObjectResult", fields), headers=_version_header(bucket, made))

    def _op_get_object(self, request: Request, _fault: Kind | None) -> Answer:
        bucket = self._bucket(request)
        found = self.kept.get(bucket, request.key, request.values.get("versionId"))
        headers = {
            **found.headers,
            **_version_header(bucket, found),
            "ETag": f'"{found.etag}"',
            "Last-Modified": formatdate(found.modified_ms // 1000, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if found.tags:
            headers["x-amz-tagging-count"] = str(len(found.tags))
        body, status = found.body, 200
        asked = request.headers.get("range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(body) - 1), len(body) - 1)
            if start > end:
                raise Refused(416, "InvalidRange", "The requested range is not satisfiable")
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            body, status = body[start : end + 1], 206
        return Answer(status=status, body=body, headers=headers)

    _op_head_object = _op_get_object

    def _op_delete_object(self, request: Request, _fault: Kind | None) -> Answer:
        did = self.kept.delete(self._bucket(request), request.key, request.values.get("versionId"))
        headers = {"x-amz-delete-marker": "true"} if did.marker_id else {}
        if version := did.marker_id or did.version_id:
            headers["x-amz-version-id"] = version
        return Answer(status=204, headers=headers)

    def _op_delete_objects(self, request: Request, fault: Kind | None) -> Answer:
        bucket = self._bucket(request)
        if not any(name == "content-md5" or name.startswith("x-amz-checksum-") for name in request.headers):
            raise Refused(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
        _check_body(request)
        tree = _parsed(request.body)
        objects = [child for child in tree if _name(child) == "Object"]
        if not 1 <= len(objects) <= MOST_KEYS_TO_DELETE:
            raise Refused(400, "MalformedXML", "The XML you provided was not well-formed or did not validate")
        quiet = _child_text(tree, "Quiet").lower() == "true"
        rows = [
            self._delete_one(bucket, one, quiet=quiet, fault=fault if number % 2 == 0 else None)
            for number, one in enumerate(objects)
        ]
        return Answer(body=_document("DeleteResult", "".join(rows)))

    def _delete_one(self, bucket: Bucket, element: ET.Element, *, quiet: bool, fault: Kind | None) -> str:
        key, version_id = _child_text(element, "Key"), _child_text(element, "VersionId") or None
        about = _tag("Key", key) + (_tag("VersionId", version_id) if version_id else "")
        operation = "DeleteObjectVersion" if version_id else "DeleteObject"
        error = _tag("Code", "InternalError") + _tag("Message", "We encountered an internal error. Please try again.")
        if fault is Kind.SOME_DENIED or self.denied(operation, key):
            error = _tag("Code", "AccessDenied") + _tag("Message", "Access Denied")
            return _tag("Error", about + error, raw=True)
        if fault is Kind.SOME_FAIL:
            return _tag("Error", about + error, raw=True)
        did = self.kept.delete(bucket, key, version_id)
        if fault is Kind.SOME_FAIL_AFTER:
            return _tag("Error", about + error, raw=True)
        if quiet or fault is Kind.SOME_UNTOLD:
            return ""
        if did.marker_id:
            about += _tag("DeleteMarker", "true") + _tag("DeleteMarkerVersionId", did.marker_id)
        return _tag("Deleted", about, raw=True)

    # Tags

    def _op_get_object_tagging(self, request: Request, _fault: Kind | None) -> Answer:
        bucket = self._bucket(request)
        found = self.kept.get(bucket, request.key, request.values.get("versionId"))
        listed = "".join(
            _tag("Tag", _tag("Key", name) + _tag("Value", value), raw=True) for name, value in found.tags.items()
        )
        return Answer(
            body=_document("Tagging", _tag("TagSet", listed, raw=True)), headers=_version_header(bucket, found)
        )

    def _op_put_object_tagging(self, request: Request, _fault: Kind | None) -> Answer:
        bucket = self._bucket(request)
        _check_body(request)
        sets = [child for child in _parsed(request.body) if _name(child) == "TagSet"]
        tags = [(_child_text(one, "Key"), _child_text(one, "Value")) for found in sets for one in found]
        changed = self.kept.set_tags(bucket, request.key, request.values.get("versionId"), tags)
        return Answer(headers=_version_header(bucket, changed))

    def _op_delete_object_tagging(self, request: Request, _fault: Kind | None) -> Answer:
        bucket = self._bucket(request)
        changed = self.kept.set_tags(bucket, request.key, request.values.get("versionId"), [])
        return Answer(status=204, headers=_version_header(bucket, changed))

    # Uploads

    def _op_create_multipart_upload(self, request: Request, _fault: Kind | None) -> Answer:
        made = self.kept.begin_upload(self._bucket(request), request.key, _header_tags(request), _own_headers(request))
        fields = _tag("Bucket", request.bucket) + _tag("Key", request.key) + _tag("UploadId", made.id)
        return Answer(body=_document("InitiateMultipartUploadResult", fields))

    def _op_upload_part(self, request: Request, _fault: Kind | None) -> Answer:
        _check_body(request)
        upload, number = self._upload(request), request.values.get("partNumber", "")
        if not number.isdigit() or not 1 <= int(number) <= 10_000:
            raise Refused(400, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive")
        upload.parts[int(number)] = request.body
        return Answer(headers={"ETag": f'"{etag_of(request.body)}"'})

    def _op_list_parts(self, request: Request, _fault: Kind | None) -> Answer:
        parts = sorted(self._upload(request).parts.items())
        listed = "".join(
            _tag(
                "Part",
                _tag("PartNumber", str(number)) + _tag("Size", str(len(body))) + _tag("ETag", f'"{etag_of(body)}"'),
                raw=True,
            )
            for number, body in parts
        )
        return Answer(body=_document("ListPartsResult", _tag("IsTruncated", "false") + listed))

    def _op_complete_multipart_upload(self, request: Request, _fault: Kind | None) -> Answer:
        bucket, upload = self._bucket(request), self._upload(request)
        parts = [child for child in _parsed(request.body) if _name(child) == "Part"]
        chosen = [(int(_child_text(one, "PartNumber")), _child_text(one, "ETag").strip('"')) for one in parts]
        made = self.kept.complete_upload(bucket, upload, chosen)
        fields = _tag("Bucket", bucket.name) + _tag("Key", made.key) + _tag("ETag", f'"{made.etag}"')
        return Answer(body=_document("CompleteMultipartUploadResult", fields), headers=_version_header(bucket, made))

    def _op_abort_multipart_upload(self, request: Request, _fault: Kind | None) -> Answer:
        self.kept.abort_upload(self._bucket(request), self._upload(request))
        return Answer(status=204)

    def _upload(self, request: Request) -> Upload:
        return self.kept.upload(self._bucket(request), request.key, request.values["uploadId"])


# XML and headers


def _document(root: str, inner: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} {_XMLNS}>{inner}</{root}>'.encode()


def _tag(name: str, text: str, *, raw: bool = False) -> str:
    # A carriage return has to be written as a reference, or a parser makes a newline of it.
    return f"<{name}>{text if raw else escape(text, {chr(13): '&#13;'})}</{name}>"


def _top(request: Request, asked: Asked, page: Page[_R], encoded: Callable[[str], str], most: str = "MaxKeys") -> str:
    folders = "".join(_tag("CommonPrefixes", _tag("Prefix", encoded(one)), raw=True) for one in page.folders)
    encoding = _tag("EncodingType", "url") if request.values.get("encoding-type") == "url" else ""
    delimiter = _tag("Delimiter", encoded(asked.delimiter)) if asked.delimiter else ""
    return (
        _tag("Name", request.bucket)
        + _tag("Prefix", encoded(asked.prefix))
        + delimiter
        + _tag(most, str(asked.most))
        + encoding
        + _tag("IsTruncated", "true" if page.truncated else "false")
        + folders
    )


def _next(page: Page[_R], what: str, encoded: Callable[[str], str], asked: Asked, fault: Kind | None) -> str:
    """Where a listing of versions or uploads goes on. After a folder no id is told."""
    last = page.last
    if last is None or isinstance(last, str):
        back = _tag(f"Next{what}Marker", asked.after_id or "null") if fault in OF_LISTINGS else ""
        return _tag("NextKeyMarker", encoded(last or "")) + back
    return _tag("NextKeyMarker", encoded(last.key)) + _tag(f"Next{what}Marker", last.id)


def _version_fields(one: Version, encoded: Callable[[str], str]) -> str:
    fields = _tag("Key", encoded(one.key)) + _tag("LastModified", _iso(one.modified_ms))
    if one.is_marker:
        return fields
    return (
        fields
        + _tag("ETag", f'"{one.etag}"')
        + _tag("Size", str(len(one.body)))
        + _tag("StorageClass", one.headers.get("x-amz-storage-class", "STANDARD"))
    )


def _encoder(request: Request) -> Callable[[str], str]:
    encoding = request.values.get("encoding-type")
    if encoding not in (None, "url"):
        raise Refused(400, "InvalidArgument", "Invalid Encoding Method specified in Request")
    # A space is "+" in AWS's url encoding of keys.
    return (lambda text: quote_plus(text, safe="/*")) if encoding == "url" else (lambda text: text)


def _iso(moment_ms: int) -> str:
    # S3 tells whole seconds.
    return datetime.fromtimestamp(moment_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _to_token(key: str) -> str:
    return base64.urlsafe_b64encode(b"after " + key.encode()).decode()


def _from_token(token: str) -> str:
    try:
        text = base64.urlsafe_b64decode(token).decode()
    except ValueError as error:
        raise Refused(400, "InvalidArgument", "The continuation token provided is incorrect") from error
    if not text.startswith("after "):
        raise Refused(400, "InvalidArgument", "The continuation token provided is incorrect")
    return text.removeprefix("after ")


def _version_header(bucket: Bucket, version: Version) -> dict[str, str]:
    return {"x-amz-version-id": version.id} if bucket.versioning else {}


def _own_headers(request: Request) -> dict[str, str]:
    """What S3 gives back with the object as it came."""
    kept = {"content-type": "Content-Type", "x-amz-storage-class": "x-amz-storage-class"}
    own = {shown: request.headers[name] for name, shown in kept.items() if name in request.headers}
    meta = {name: value for name, value in request.headers.items() if name.startswith("x-amz-meta-")}
    return {"Content-Type": "binary/octet-stream", **own, **meta}


def _header_tags(request: Request) -> dict[str, str]:
    return checked_tags(parse_qsl(request.headers.get("x-amz-tagging", ""), keep_blank_values=True))


def _check_body(request: Request) -> None:
    """Compares the body with the digest that came along."""
    md5 = request.headers.get("content-md5")
    if md5 is not None and md5 != _base64(hashlib.md5(request.body, usedforsecurity=False).digest()):
        raise Refused(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
    crc = request.headers.get("x-amz-checksum-crc32")
    if crc is not None and crc != _base64(zlib.crc32(request.body).to_bytes(4, "big")):
        raise Refused(400, "BadDigest", "The CRC32 you specified did not match what we received.")


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _parsed(body: bytes) -> ET.Element:
    try:
        return ET.fromstring(body)  # noqa: S314 - a test's own client sent it
    except ET.ParseError as error:
        raise Refused(400, "MalformedXML", "The XML you provided was not well-formed") from error


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _child_text(element: ET.Element, name: str) -> str:
    return next((child.text or "" for child in element if _name(child) == name), "")
