"""The S3 client: what works for MLflow works for us."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from botocore.loaders import JSONFileLoader

from mlflow_artifact_gc.errors import StorageError
from mlflow_artifact_gc.s3.errors import endpoint_name
from mlflow_artifact_gc.s3.pace import Pace
from mlflow_artifact_gc.s3.parsing import Parsers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from botocore.config import Config
    from botocore.model import OperationModel
    from mypy_boto3_s3.client import S3Client

__all__ = ["connect", "endpoint_name"]

_CONNECT_TIMEOUT_S: Final = 10
_READ_TIMEOUT_S: Final = 60
_ATTEMPTS: Final = 5
_A_FEW: Final = 4
"""What one bucket's rights are tried by."""
_CONNECTIONS: Final = 4
"""For each request that may be under way: a body that is still being read keeps its own."""


def connect(environ: Mapping[str, str], *, threads: int = _A_FEW) -> S3Client:
    """A client to be shared by ``threads`` threads, with as many requests under way at most (see ``pace``).

    Endpoint, TLS, addressing style, signature version and bucket owner are MLflow's own variables, read as
    ``mlflow.store.artifact.s3_artifact_repo`` reads them; ``environ`` supplies nothing else. Credentials, region and
    ``AWS_ENDPOINT_URL_S3`` are boto3's own business. Nothing is sent yet.

    Raises:
        StorageError: the settings make no client.
    """
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        # The client that boto3 hands out, from a session of its own: boto3's default one keeps the first credentials.
        session = botocore.session.Session()
        session.get_component("data_loader").file_loader = _Descriptions()
        made = session.create_client(
            "s3",
            endpoint_url=environ.get("MLFLOW_S3_ENDPOINT_URL") or None,
            verify=False if _ignores_tls(environ) else None,
            config=_config(environ, threads),
        )
    except (BotoCoreError, ValueError) as error:
        # The text of these exceptions can hold the endpoint's URL, and that a password.
        raise StorageError(
            f"no S3 client could be made ({type(error).__name__}); check MLFLOW_S3_ENDPOINT_URL, AWS_PROFILE and the "
            "region"
        ) from error
    client = cast("S3Client", made)
    Parsers().register(client)
    Pace(threads).register(client)
    if owner := environ.get("MLFLOW_S3_EXPECTED_BUCKET_OWNER"):
        _expect_owner(client, owner)
    return client


class _Descriptions(JSONFileLoader):
    """Botocore's descriptions of S3 in plain dicts: in ordered ones they take an idle process 4 MB more."""

    def load_file(self, file_path: str) -> Any:
        """The content of a description, or None."""
        for suffix, opened in ((".json", open), (".json.gz", gzip.open)):
            with suppress(FileNotFoundError), opened(file_path + suffix, "rb") as file:
                return json.loads(file.read())
        return None


def _config(environ: Mapping[str, str], threads: int) -> Config:
    from botocore import UNSIGNED
    from botocore.config import Config

    signature = environ.get("MLFLOW_EXPERIMENTAL_S3_SIGNATURE_VERSION", "s3v4")
    style = environ.get("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "auto")
    return Config(
        # The stubs know only names; UNSIGNED is botocore's way to send no signature.
        signature_version=cast("str", UNSIGNED) if signature.lower() == "unsigned" else signature,
        s3={"addressing_style": cast("Literal['auto', 'virtual', 'path']", style)},
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=_CONNECTIONS * threads,
    )


def _ignores_tls(environ: Mapping[str, str]) -> bool:
    text = environ.get("MLFLOW_S3_IGNORE_TLS", "false")
    if text.lower() not in ("true", "false", "1", "0"):
        raise StorageError(f"MLFLOW_S3_IGNORE_TLS is {text!r}; true, false, 1 or 0 was expected")
    return text.lower() in ("true", "1")


def _expect_owner(client: S3Client, owner: str) -> None:
    """Has every operation that can say it say whose the bucket must be."""

    def add(params: dict[str, Any], model: OperationModel, **_context: object) -> None:
        if model.input_shape is not None and "ExpectedBucketOwner" in model.input_shape.members:
            params.setdefault("ExpectedBucketOwner", owner)

    client.meta.events.register("before-parameter-build.s3", add)
