"""The S3 side of storage.py: a client from the AWS environment, and its failures in words.

Apart from it so that storage.py reads as what a location can do. Nothing here keeps or shows a secret.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from sparse_detr.deadline import within
from sparse_detr.errors import StorageError
from sparse_detr.redaction import without_secrets

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
    # Without a region the SDK asks the EC2 metadata service, which takes seconds where there is none.
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ("us-east-1" if address else None)
    return fs.S3FileSystem(
        region=region,
        connect_timeout=5 if patient else 2,
        request_timeout=60 if patient else 4,
        # A small file is then one request, not three.
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=5 if patient else 2),
        **options,
    )


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
        raise StorageError(f"{uri}: {_remedy(error)} ({without_secrets(str(error))})") from None


def answered(seconds: float, work: Callable[[], None], uri: str) -> None:
    """Run `work` for at most so long: a store that accepts a connection and then is silent must not hang us."""
    try:
        within(seconds, work)
    except TimeoutError:
        raise StorageError(
            f"{uri}: no answer{at_endpoint()} in {seconds:.0f} s; check AWS_ENDPOINT_URL, the network"
        ) from None


def _remedy(error: BaseException) -> str:
    text = str(error)
    if "NO_SUCH_BUCKET" in text or "NoSuchBucket" in text:
        return f"the bucket does not exist{at_endpoint()}; create it or correct the name"
    if any(code in text for code in _REFUSED):
        return f"the store{at_endpoint()} refuses the credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "NETWORK_CONNECTION" in text or "curlCode" in text:
        return f"nothing answers{at_endpoint()}; check AWS_ENDPOINT_URL and the network"
    if isinstance(error, FileNotFoundError):
        return "no such file or folder; check the name"
    if isinstance(error, PermissionError):
        return "not permitted; check owner and mode"
    return "cannot be used"
