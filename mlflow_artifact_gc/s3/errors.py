"""What S3 refuses, in our words: one sentence each, without credentials, presigned URLs or a server's page of HTML.

The exceptions' own texts are not repeated: botocore's hold whole URLs, a server's may hold anything. Only the message
of an AccessDenied is, shortened, because it names the principal and the right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's, which is no OSError
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProxyConnectionError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from mlflow_artifact_gc.errors import StorageError
from mlflow_artifact_gc.s3.parsing import BodyUnreadable

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

S3_ERRORS = (BotoCoreError, ClientError, ResponseParserError, RecursionError)
"""All that a call of a client or the reading of a streamed body can raise."""


class BucketPaused(StorageError):
    """A bucket cannot be worked on until a person has put something right."""

    def __init__(self, bucket: str, why: str) -> None:
        super().__init__(why)
        self.bucket = bucket
        self.why = why


class ListingIncomplete(StorageError):
    """A listing could not be read to its end, so it proves nothing about what is there."""


class Transient(StorageError):
    """The object store is busy or slow: the same request may succeed later."""


@dataclass(frozen=True, slots=True)
class Place:
    """What was being asked when S3 refused: ``right`` is the IAM action that it takes."""

    endpoint: str
    bucket: str
    right: str

    def __str__(self) -> str:
        return f"bucket {self.bucket!r} at {self.endpoint}"


@dataclass(frozen=True, slots=True)
class Answer:
    """The error answer of an S3 server. Bodies can be empty (HEAD; Ceph RGW): then the code is the status."""

    code: str
    message: str
    status: int

    @classmethod
    def of(cls, error: ClientError) -> Answer:
        said = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = str(said.get("Code") or status)
        return cls(code, one_line(str(said.get("Message") or "")), status or (int(code) if code.isdigit() else 0))

    @property
    def denied(self) -> bool:
        """A right is missing (and not: the credentials are no good)."""
        forbidden = self.status == _FORBIDDEN and self.code not in _FORBIDDEN_OTHERWISE
        return not self.unauthenticated and (forbidden or self.code in _DENIED)

    @property
    def unauthenticated(self) -> bool:
        return self.code in _CREDENTIALS or self.status == _UNAUTHORIZED

    @property
    def no_bucket(self) -> bool:
        return self.code in _NO_BUCKET

    @property
    def elsewhere(self) -> bool:
        """The bucket is in another region, and botocore could not follow."""
        return self.code in _ELSEWHERE or self.status in _REDIRECTS

    @property
    def not_implemented(self) -> bool:
        return self.code in _NOT_IMPLEMENTED or self.status in _NOT_IMPLEMENTED_STATUS

    @property
    def retryable(self) -> bool:
        return not self.not_implemented and (
            self.status >= _SERVER_ERROR or self.status in _RETRYABLE_STATUS or self.code in RETRYABLE_CODES
        )

    @property
    def throttled(self) -> bool:
        """Refused before anything was done."""
        return self.code in THROTTLED or self.status in THROTTLED_STATUS

    @property
    def pauses(self) -> bool:
        """Nothing in this bucket can be done as things are."""
        return self.denied or self.unauthenticated or self.no_bucket or self.elsewhere


_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
_REDIRECTS = frozenset({301, 302, 307, 308})
_NOT_IMPLEMENTED_STATUS = frozenset({405, 501})
_RETRYABLE_STATUS = frozenset({408, 429})
THROTTLED_STATUS = frozenset({429, 503})

_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "UnauthorizedAccess", "Forbidden"})
_FORBIDDEN_OTHERWISE = frozenset({"InvalidObjectState"})  # an archived object
_CREDENTIALS = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "InvalidToken",
        "NotSignedUp",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)
_NO_BUCKET = frozenset({"NoSuchBucket", "InvalidBucketName"})
_ELSEWHERE = frozenset({"PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"})
_NOT_IMPLEMENTED = frozenset({"NotImplemented", "MethodNotAllowed"})
THROTTLED = frozenset(
    {
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
    }
)
RETRYABLE_CODES = THROTTLED | {
    "InternalError",
    "InternalServerError",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
}
"""Codes that ask for another try, of a request or of one key in a DeleteObjects answer."""

_NO_CREDENTIALS = (
    CredentialRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)
_UNREACHABLE = (ConnectTimeoutError, EndpointConnectionError, ProxyConnectionError, SSLError)
_LOST = (ConnectionError, HTTPClientError, IncompleteReadError)
_LONGEST_MESSAGE: Final = 300
_CREDENTIAL_IN_TEXT = re.compile(r"(?i)(signature|credential|token|secret|password|authorization)=[^\s&]+")


def one_line(text: str) -> str:
    """A server's text, fit for a log: one line, bounded, without what looks like part of a presigned URL."""
    return _CREDENTIAL_IN_TEXT.sub(r"\1=...", " ".join(text.split()))[:_LONGEST_MESSAGE]


def endpoint_name(client: S3Client) -> str:
    """``scheme://host:port`` of the client's endpoint, the port always said, without credentials, path and query."""
    parts = urlsplit(client.meta.endpoint_url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    host = (parts.hostname or "").lower()
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def answer_lost(error: Exception) -> bool:
    """Whether the request may have been carried out although no answer to it was understood."""
    if isinstance(error, ClientError):
        answer = Answer.of(error)
        return answer.retryable and not answer.throttled
    return isinstance(error, (ResponseParserError, *_LOST)) and not isinstance(error, _UNREACHABLE)


def translate(error: Exception, place: Place) -> StorageError:
    """The error of ours that says what ``error`` means for ``place``. To be raised ``from error``."""
    if isinstance(error, ClientError):
        return _of_answer(Answer.of(error), place)
    if isinstance(error, ResponseParserError):
        # botocore's own text repeats the whole body.
        what = str(error) if isinstance(error, BodyUnreadable) else "no well-formed XML"
        return ListingIncomplete(
            f"{place} sent an answer that is not S3's ({what}), so nothing is concluded from it; is the endpoint an S3 "
            "server, and nothing in between rewriting its answers?"
        )
    if isinstance(error, RecursionError):
        # botocore asks for the bucket's region at each redirect, and that is redirected as well.
        return _paused(place, "it redirects every request, as no S3 server does; check MLFLOW_S3_ENDPOINT_URL")
    name = type(error).__name__
    if isinstance(error, _LOST) and not isinstance(error, _UNREACHABLE):
        return Transient(f"{place}: the answer was lost on its way ({name}); try again later")
    if isinstance(error, _NO_CREDENTIALS):
        why = f"no usable credentials were found ({name}); give boto3 some"
    elif isinstance(error, SSLError):
        why = "the TLS connection failed; check the certificate, AWS_CA_BUNDLE or the endpoint's scheme"
    elif isinstance(error, _UNREACHABLE):
        why = f"no connection could be made ({name}); check MLFLOW_S3_ENDPOINT_URL and the network"
    else:
        why = f"the request could not be made ({name}); check the S3 settings"
    return _paused(place, why)


def _of_answer(answer: Answer, place: Place) -> StorageError:
    said = f"answered {answer.status}" + ("" if answer.code == str(answer.status) else f" {answer.code}")
    if answer.unauthenticated:
        why = "it does not accept these credentials; renew or correct them"
    elif answer.no_bucket or (answer.status == _NOT_FOUND and not answer.retryable):
        why = "there is no such bucket; check its name and the endpoint"
    elif answer.denied:
        why = f"grant {place.right} to these credentials" + (f" ({answer.message})" if answer.message else "")
    elif answer.elsewhere:
        why = "the bucket is elsewhere; set its region or its endpoint"
    elif answer.not_implemented:
        why = f"it does not offer what {place.right} is needed for"
    elif answer.retryable:
        return Transient(f"{place} {said} to every try; go on later, or with less concurrency")
    else:
        why = f"this is no answer to expect where {place.right} is granted; check the S3 settings"
    return _paused(place, f"the server {said}: {why}")


def _paused(place: Place, why: str) -> BucketPaused:
    return BucketPaused(place.bucket, f"{place}: {why}.")
