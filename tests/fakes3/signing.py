"""Whether a request is signed with a key that the server knows (AWS Signature Version 4, in the header)."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, quote

from tests.fakes3.keeping import Refused

_HEADER = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/(?P<scope>[^,]+), ?"
    r"SignedHeaders=(?P<headers>[^,]+), ?Signature=(?P<signature>\w+)"
)


def require_signed(
    method: str, target: tuple[str, str], headers: Mapping[str, str], body: bytes, *, known: tuple[str, str]
) -> None:
    """Passes where the request to ``target`` (path and query) is signed with ``known`` (access key and secret key).

    Raises:
        Refused: as S3 does.
    """
    found = _HEADER.fullmatch(headers.get("authorization", ""))
    if found is None:
        raise Refused(403, "AccessDenied", "Access Denied")
    if found["key"] != known[0]:
        raise Refused(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.")
    payload = headers.get("x-amz-content-sha256", "")
    if payload != "UNSIGNED-PAYLOAD" and payload != hashlib.sha256(body).hexdigest():
        raise Refused(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' does not match")
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in _pairs(target[1]))
    names = found["headers"].split(";")
    canonical = "\n".join(
        (
            method,
            target[0],
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in names),
            "",
            found["headers"],
            payload,
        )
    )
    date = headers.get("x-amz-date", "")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join(("AWS4-HMAC-SHA256", date, found["scope"], digest))
    key = f"AWS4{known[1]}".encode()
    for part in found["scope"].split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    if hmac.digest(key, to_sign.encode(), "sha256").hex() != found["signature"]:
        raise Refused(403, "SignatureDoesNotMatch", "The request signature we calculated does not match")


def _pairs(query: str) -> list[tuple[str, str]]:
    # parse_qsl takes "+" for a space; in a signed query it is itself, and a space is %20.
    return parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
