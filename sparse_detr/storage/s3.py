"""The S3 side of storage.py: a client from the AWS environment, and its failures in words.

Apart from it so that storage.py reads as what a location can do. Nothing here keeps or shows a secret.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from sparse_detr.deadline import within
from sparse_detr.errors import StorageError, StoreRefusedError, StoreUnavailableError
from sparse_detr.redaction import without_secrets

_TRANSIENT = re.compile(
    r"SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|REQUEST_TIMEOUT|REQUEST_EXPIRED|NETWORK_CONNECTION|"
    r"curlCode|HTTP status (?:5\d\d|429|408)|SlowDown|ServiceUnavailable|InternalError|RequestTimeout|Throttl|"
    r"reset by peer|Broken pipe|timed out|IncompleteRead|\((?:5\d\d|429)\)|unexpected end of file|"
    r"Could not connect|Connection was closed|Failed to (?:connect|establish)|cut off"
)
"""Words by which AWS's C++ library, pyarrow and botocore tell a failure that passes: busy, restarting, cut off."""
_REFUSED_BY_NAME = ("INVALID_ACCESS_KEY", "SIGNATURE", "INVALID_CLIENT_TOKEN", "EXPIRED_TOKEN", "ExpiredToken",
                    "InvalidAccessKeyId", "SignatureDoesNotMatch", "NO_SUCH_BUCKET", "NoSuchBucket")  # fmt: skip
"""Answers that are about the credentials or the bucket, not about one key."""
_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "INVALID_CLIENT_TOKEN", "HTTP status 403")


def s3_filesystem(*, patient: bool = True) -> fs.S3FileSystem:
    """A client for the store that the environment names. Asks the network nothing; holds no credentials itself.

    Args:
        patient: True waits and retries like a long job must; False gives up within seconds.

    Raises:
        StorageError: AWS_ENDPOINT_URL is not an address.
    """
    address = endpoint()
    options: dict[str, Any] = {}
    if address:
        url = urlsplit(address)
        if url.scheme not in ("http", "https") or not url.hostname or url.username:
            raise StorageError("AWS_ENDPOINT_URL: is not an address; give http://host:port or https://host:port")
        options = {"endpoint_override": url.netloc, "scheme": url.scheme}
    return fs.S3FileSystem(
        region=_region(),
        connect_timeout=5 if patient else 2,
        request_timeout=60 if patient else 4,
        # A small file is then one request, not three.
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=5 if patient else 2),
        **options,
    )


def s3_client() -> Any:
    """A boto3 client of the same store, for what pyarrow lacks: conditional writes, and listings with ETags."""
    import boto3
    from botocore.config import Config

    address = endpoint()
    # Virtual hosts (bucket.host) exist at AWS alone.
    style = {"addressing_style": "path"} if address else {}
    config = Config(
        connect_timeout=5, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 5}, s3=style,
        max_pool_connections=64,
    )  # fmt: skip
    return boto3.client("s3", endpoint_url=address or None, region_name=_region(), config=config)


def create_object(bucket: str, key: str, data: bytes, uri: str) -> bool:
    """Write an object only if there is none (`If-None-Match: *`); whether it was written.

    Raises:
        StorageError: the store refuses, or knows no conditional writes.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        s3_client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except ClientError as error:
        code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        # 409: two wrote at the same time, and the store let neither or the other one through.
        if code in (409, 412):
            return False
        if code == 501:
            raise StorageError(
                f"{uri}: this store knows no conditional writes, by which two jobs on one output are kept apart; use "
                "one that does (AWS S3, MinIO, SeaweedFS, Ceph 19)"
            ) from None
        raise _explained_boto(error, uri) from None
    except BotoCoreError as error:
        raise _explained_boto(error, uri) from None
    return True


def delete_folder_marker(bucket: str, key: str, uri: str) -> None:
    """Delete the empty object `key/` by which a store shows an empty folder, and nothing below it.

    Raises:
        StorageError: the store refuses; StoreUnavailableError where that passes by itself.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        s3_client().delete_object(Bucket=bucket, Key=f"{key}/")
    except (BotoCoreError, ClientError) as error:
        raise _explained_boto(error, uri) from None


def upload_file(source: Path, bucket: str, key: str, uri: str) -> None:
    """Upload a file in parts, which become an object at the end or not at all.

    Raises:
        StorageError: the store refuses; StoreUnavailableError where that passes by itself.
    """
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        s3_client().upload_file(str(source), bucket, key)
    except (BotoCoreError, ClientError, S3UploadFailedError) as error:
        raise _explained_boto(error, uri) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a listing."""

    contents: list[dict[str, Any]]
    """`Key`, `Size` and `ETag` of the objects at this level."""
    prefixes: list[str]
    """Prefixes one level down."""
    token: str | None
    """Continues the listing; None at its end."""


def listed_page(client: Any, bucket: str, prefix: str, token: str | None, uri: str) -> Page:
    """One page of at most 1000 objects and prefixes, one level deep.

    Raises:
        StorageError: the store refuses; StoreUnavailableError where that passes by itself.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    more = {"ContinuationToken": token} if token else {}
    try:
        answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/", **more)
    except (BotoCoreError, ClientError) as error:
        raise _explained_boto(error, uri) from None
    return Page(
        contents=answer.get("Contents", []),
        prefixes=[item["Prefix"] for item in answer.get("CommonPrefixes", [])],
        token=answer.get("NextContinuationToken") if answer.get("IsTruncated") else None,
    )


def _explained_boto(error: Exception, uri: str) -> StorageError:
    # Errors of the connection have no response, or None for one.
    with_code = (getattr(error, "response", None) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
    text = f"{error} ({with_code})" if with_code else str(error)
    return store_error_kind(text)(f"{uri}: {_remedy(OSError(text), text)} ({without_secrets(str(error))})")


def _region() -> str | None:
    # Without a region the SDK asks the EC2 metadata service, which takes seconds where there is none.
    own = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return own or ("us-east-1" if endpoint() else None)


def endpoint() -> str:
    """The address of the store in the environment; empty for AWS itself."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def at_endpoint() -> str:
    """ " at http://host:port", for messages."""
    return f" at {endpoint()}" if endpoint() else ""


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what pyarrow raises into a StorageError that says what to do.

    The chain is cut: the original text may quote a credential. Its redacted form is part of the message.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        told = _told_by_store(str(error), uri) if _is_store_s(error, uri) else ""
        raise store_error_kind(told)(f"{uri}: {_remedy(error, told)} ({without_secrets(str(error))})") from None


def _is_store_s(error: BaseException, uri: str) -> bool:
    """Whether an error is the store's own, and no plain answer such as that there is no such key."""
    return uri.startswith("s3://") and not isinstance(error, FileNotFoundError | PermissionError)


def _told_by_store(text: str, uri: str) -> str:
    """The store's words in an error of pyarrow, without the key: a file may be called `photo (503).jpg`."""
    for part in (uri.removeprefix("s3://"), uri.removeprefix("s3://").partition("/")[2]):
        text = text.replace(part, "") if part else text
    # Before these words pyarrow says what it was at, with the names of key and bucket.
    return text[max(text.find("AWS Error"), 0) :]


def store_error_kind(told: str) -> type[StorageError]:
    """The class of an error by the store's words: pyarrow's and botocore's errors have no code."""
    if any(code in told for code in _REFUSED_BY_NAME):
        return StoreRefusedError
    if any(code in told for code in _REFUSED):
        return StorageError
    return StoreUnavailableError if _TRANSIENT.search(told) else StorageError


def answered(seconds: float, work: Callable[[], None], uri: str) -> None:
    """Run `work` for at most so long: a store that accepts a connection and then is silent must not hang us."""
    try:
        within(seconds, work)
    except TimeoutError:
        raise StoreUnavailableError(
            f"{uri}: no answer{at_endpoint()} in {seconds:.0f} s; check AWS_ENDPOINT_URL, the network"
        ) from None


def _remedy(error: BaseException, text: str) -> str:
    """What to do about an error, by its class and the store's words."""
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text:
        return f"the bucket does not exist{at_endpoint()}; create it or correct the name"
    if any(code in text for code in _REFUSED):
        return f"the store{at_endpoint()} refuses the credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "NETWORK_CONNECTION" in text or "curlCode" in text:
        return f"nothing answers{at_endpoint()}; check AWS_ENDPOINT_URL and the network"
    if _TRANSIENT.search(text):
        return f"the store{at_endpoint()} is busy or away; try again later"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room, then run the same command again"
    if isinstance(error, FileNotFoundError):
        return "no such file or folder; check the name"
    if isinstance(error, PermissionError):
        return "not permitted; check owner and mode"
    return "cannot be used"
