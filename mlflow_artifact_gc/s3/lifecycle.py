"""A bucket's lifecycle configuration, read and written as a whole, and whether the server knows tags.

botocore drops what its description of S3 does not have, and a configuration is only ever replaced as a whole: a field
that was not read would be lost by the next write. So the raw answer is looked at as well, and says what would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import ClientError, ParamValidationError
from botocore.model import ListShape, StructureShape

from mlflow_artifact_gc.errors import Refused, StorageError
from mlflow_artifact_gc.s3.errors import S3_ERRORS, Answer, Place, endpoint_name, translate
from mlflow_artifact_gc.s3.parsing import BodyUnreadable, parse_root
from mlflow_artifact_gc.s3.permissions import right

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from botocore.model import OperationModel, Shape
    from mypy_boto3_s3.client import S3Client

    from mlflow_artifact_gc.lifecycle import Rule

_NO_RULES: Final = "NoSuchLifecycleConfiguration"
_UNKNOWN: Final = "MlflowArtifactGcUnknown"
_MINIMUM: Final = "TransitionDefaultMinimumObjectSize"
_MINIMUM_HEADER: Final = "x-amz-transition-default-minimum-object-size"
_FIRST_ERROR_STATUS: Final = 301


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """All rules of a bucket, as boto3 gives them, and the size below which S3 moves nothing to another class.

    ``unknown``: what else the configuration holds, which this boto3 cannot give back.
    """

    rules: tuple[Rule, ...] = ()
    minimum_size: str | None = None
    unknown: tuple[str, ...] = field(default=())


def read(client: S3Client, bucket: str) -> Configuration:
    """The configuration; an empty one only where S3 says that there is none.

    Raises:
        BucketPaused, ListingIncomplete, Transient: it could not be read; a missing right is named.
    """
    place = Place(endpoint_name(client), bucket, right("GetBucketLifecycleConfiguration"))
    client.meta.events.register(
        "before-parse.s3.GetBucketLifecycleConfiguration", _note_unknown, unique_id="mlflow-artifact-gc-lifecycle"
    )
    try:
        answer: Mapping[str, Any] = client.get_bucket_lifecycle_configuration(Bucket=bucket)
    except S3_ERRORS as error:
        if isinstance(error, ClientError) and Answer.of(error).code == _NO_RULES:
            return Configuration()
        raise translate(error, place) from error
    except (ValueError, TypeError) as error:
        # botocore reads numbers and dates with int() and dateutil.
        raise StorageError(f"{place}: a number or a date in its lifecycle rules cannot be read") from error
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    minimum = answer.get(_MINIMUM)
    unknown = list(answer[_UNKNOWN])
    if minimum is None and _MINIMUM_HEADER in headers:
        unknown.append(_MINIMUM)  # this boto3 is older than it
    return Configuration(rules=tuple(answer.get("Rules", ())), minimum_size=minimum, unknown=tuple(unknown))


def write(client: S3Client, bucket: str, configuration: Configuration) -> None:
    """Put the configuration in the place of what is there. S3 has no empty one: that is deleted.

    Raises:
        Refused: it holds what cannot be given back; or the server does not take these rules, and nothing has changed.
        Transient: it may or may not have been written; read it.
        BucketPaused: nothing was written; a missing right is named.
    """
    place = Place(endpoint_name(client), bucket, right("PutBucketLifecycleConfiguration"))
    require_complete(configuration, place)
    extra: dict[str, Any] = {_MINIMUM: configuration.minimum_size} if configuration.minimum_size else {}
    rules: Any = list(configuration.rules)
    try:
        if rules:
            client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules}, **extra)
        else:
            client.delete_bucket_lifecycle(Bucket=bucket)
    except ParamValidationError as error:
        raise Refused(
            f"{place}: boto3 does not take the rules that are there as it read them, so nothing was written"
        ) from error
    except S3_ERRORS as error:
        if isinstance(error, ClientError):
            answer = Answer.of(error)
            if not (answer.pauses or answer.retryable):
                raise Refused(_not_taken(answer, place)) from error
        raise translate(error, place) from error


def require_complete(configuration: Configuration, place: Place | str) -> None:
    """Raises Refused where a write would lose something."""
    if configuration.unknown:
        raise Refused(
            f"{place}: its lifecycle configuration holds {', '.join(configuration.unknown)}, which this version of "
            "boto3 cannot write back, so nothing was written: upgrade boto3, or add the rules by other means"
        )


def _not_taken(answer: Answer, place: Place) -> str:
    said = f" ({answer.message})" if answer.message else ""
    what = "does not offer lifecycle rules, or not all that are asked for" if answer.not_implemented else "refuses them"
    return f"{place}: the server {what}: it answered {answer.status} {answer.code}{said}, and nothing was written"


def _note_unknown(
    operation_model: OperationModel,
    response_dict: dict[str, Any],
    customized_response_dict: dict[str, Any],
    **_context: object,
) -> None:
    """Handler: puts the paths of all elements that botocore is about to drop into the answer."""
    if response_dict["status_code"] >= _FIRST_ERROR_STATUS:
        return
    tree = parse_root(response_dict["body"], response_dict["status_code"], "LifecycleConfiguration")
    shape = operation_model.output_shape
    customized_response_dict[_UNKNOWN] = sorted(set(_dropped(tree, shape, ""))) if shape else []


def _dropped(element: Element, shape: Shape, path: str) -> list[str]:
    if not isinstance(shape, StructureShape):
        return [f"{path}{_name(child)}" for child in element]
    known = {_element_name(name, member): member for name, member in shape.members.items()}
    found: list[str] = []
    seen: set[str] = set()
    for child in element:
        name = _name(child)
        member = known.get(name)
        single = not isinstance(member, ListShape)
        if member is None or (single and name in seen):
            found.append(f"{path}{name}"[:100])
        else:
            inner = member.member if isinstance(member, ListShape) else member
            found += _dropped(child, inner, f"{path}{name}/")
        seen.add(name)
    return found


def _element_name(name: str, shape: Shape) -> str:
    """As botocore's parser names it: S3's lists here are all flattened, and have their members' names."""
    if isinstance(shape, ListShape):
        name = str(shape.member.serialization.get("name") or name)
    return str(shape.serialization.get("name") or name)


def _name(element: Element) -> str:
    return element.tag.rpartition("}")[2]


# Tags


def knows_tags(client: S3Client, bucket: str, key: str) -> bool | None:
    """Whether the server offers tags on objects, as far as asking for those of an object tells. Changes nothing.

    None: the object is not there, or may not be asked for. (That tags can be read does not prove that they can be
    written; the first that is written does.)

    Raises:
        BucketPaused, Transient: the server cannot be asked.
    """
    place = Place(endpoint_name(client), bucket, right("GetObjectTagging"))
    client.meta.events.register(
        "before-parse.s3.GetObjectTagging", _require_tagging, unique_id="mlflow-artifact-gc-tagging"
    )
    try:
        client.get_object_tagging(Bucket=bucket, Key=key)
    except _NotTagging:
        return False
    except S3_ERRORS as error:
        answer = Answer.of(error) if isinstance(error, ClientError) else None
        if answer is None or answer.unauthenticated or answer.no_bucket or answer.elsewhere:
            raise translate(error, place) from error
        if answer.not_implemented:
            return False
        if answer.retryable:
            raise translate(error, place) from error
        return None
    return True


class _NotTagging(Exception):
    """The answer is the object itself, or something else that is no set of tags."""


def _require_tagging(response_dict: dict[str, Any], **_context: object) -> None:
    if response_dict["body"].lstrip().startswith(b"{"):
        raise _NotTagging  # the marker object; botocore has made an error of it, as of all that is no XML
    if response_dict["status_code"] < _FIRST_ERROR_STATUS:
        try:
            parse_root(response_dict["body"], response_dict["status_code"], "Tagging")
        except BodyUnreadable as error:
            raise _NotTagging from error
