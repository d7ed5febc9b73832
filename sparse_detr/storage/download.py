"""Files at a path, in a store or on the web, read only if their SHA-256 is the one that was asked for.

An address is a path, a `file:`, `s3://` or `https://` URI, and may end in `#sha256=<8 to 64 hex digits>`, the first
digits of what the content must have. On the web a checksum is a must; there, a name of torch hub's form
(`resnet50-11ad3fa6.pth`) has it already. 8 digits tell damage from health; only all 64 also guard against a server
that means harm.

What comes from the web is kept below `$XDG_CACHE_HOME/sparse-detr` (or `~/.cache/sparse-detr`) under its digest.
Authorities beyond the system's are named by `SSL_CERT_FILE`, proxies by `https_proxy`.

pooch would save the cache and the comparison of digests, about 30 lines, and bring `requests`. It has no place for the
rest: it compares whole digests and takes any content where none is given, follows redirections to http, has neither a
deadline (only 30 s of silence, so a server that drips can hold it for ever) nor a largest size, and puts the address
with its query, where signed addresses carry their secret, into errors. It does not resume either.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from sparse_detr.errors import StorageError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import Location, locate

DEADLINE = 900.0
"""Seconds that a download may take: half a gigabyte at 5 Mbit/s."""

_SILENCE = 30.0
"""Seconds that a server may say nothing."""
_CHUNK = 1 << 20
_LARGEST = 8 << 30
_FRAGMENT = re.compile(r"#sha256=(.*)$")
_DIGITS = re.compile(r"[0-9a-f]{8,64}")
_HUB_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z.]+$")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Address of a file, with the checksum that it must have."""

    uri: str | Path
    """Path or URI, without the checksum."""
    sha256: str
    """Hex digits that the digest must begin with; empty where nothing is asked."""

    @property
    def on_web(self) -> bool:
        """Whether it is fetched with https."""
        return isinstance(self.uri, str) and self.uri.startswith("https://")

    def __str__(self) -> str:
        """For messages: without the query, which may hold a secret."""
        return str(self.uri).partition("?")[0] if self.on_web else str(self.uri)


def parse_address(path_or_uri: str | Path) -> Address:
    """Take the checksum off; a Path is taken as it is.

    Raises:
        StorageError: a checksum that is none, or an address on the web that is not https or holds credentials.
    """
    if isinstance(path_or_uri, Path):
        return Address(uri=path_or_uri, sha256="")
    found = _FRAGMENT.search(path_or_uri)
    uri = path_or_uri[: found.start()] if found else path_or_uri
    sha256 = found[1].lower() if found else ""
    if found and not _DIGITS.fullmatch(sha256):
        shown = Address(uri=uri, sha256="")
        raise StorageError(f"{shown}: sha256={found[1]!r} is no checksum; give 8 to 64 hex digits, best all 64")
    if uri.startswith("http://"):
        raise StorageError(f"{uri.partition('?')[0]}: http:// can be read and changed on its way; give https://")
    if uri.startswith("https://"):
        parts = urlsplit(uri)
        if not parts.hostname or "@" in parts.netloc or parts.fragment:
            raise StorageError("path: the https:// address has no host, or holds credentials or a fragment other than "
                               "#sha256=; give https://host/file#sha256=<hex digits>")  # fmt: skip
        hub = _HUB_NAME.search(parts.path)
        sha256 = sha256 or (hub[1] if hub else "")
    return Address(uri=uri, sha256=sha256)


def absolute_address(path_or_uri: str) -> str:
    """The same address with a relative path made absolute, so that it means the same in every process."""
    address = parse_address(path_or_uri)
    if address.on_web:
        return path_or_uri
    return locate(address.uri).uri + (f"#sha256={address.sha256}" if address.sha256 else "")


def check_address(path_or_uri: str) -> None:
    """Find out soon whether a file can be read, without reading it; one on the web without a checksum is refused.

    Raises:
        StorageError: as `read_checked` and `check_access`, but for a wrong checksum.
    """
    address = parse_address(path_or_uri)
    if not address.on_web:
        check_access(locate(address.uri))
    elif not address.sha256:
        _refuse_unchecked(address)
    elif _cached(address) is None:
        with _response(address):
            pass


def read_checked(path_or_uri: str | Path) -> bytes:
    """The content of the file at an address.

    Raises:
        StorageError: no such file, nothing answers, a download that takes more than 15 minutes, another checksum (both
            are named), or an address on the web without one: the message has the one of what is there now.
    """
    address = parse_address(path_or_uri)
    if not address.on_web:
        content = locate(address.uri).read_bytes()
        _require_digest(address, content)
        return content
    if not address.sha256:
        _refuse_unchecked(address)
    kept = _cached(address)
    if kept is not None:
        return kept
    content = _fetch(address, DEADLINE)
    _require_digest(address, content)
    _keep(content)
    return content


def _refuse_unchecked(address: Address) -> None:
    content = _fetch(address, DEADLINE)
    _keep(content)
    digest = hashlib.sha256(content).hexdigest()
    raise StorageError(
        f"{address}: the web wants a checksum. What is there now has {digest}: compare it with the publisher's, "
        f"then write #sha256={digest} behind the address"
    )


def _require_digest(address: Address, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(address.sha256):
        raise StorageError(
            f"{address}: its sha256 is {digest}, not {address.sha256} as asked; the file is damaged or another one, "
            "fetch it again or correct the checksum"
        )


def _fetch(address: Address, seconds: float) -> bytes:
    end = time.monotonic() + seconds
    content = bytearray()
    with _response(address) as response:
        length = response.length
        # read1 returns what is there: a server that drips cannot stretch one call beyond the deadline.
        while chunk := response.read1(_CHUNK):
            content += chunk
            if time.monotonic() > end:
                raise StorageError(f"{address}: not done after {seconds:.0f} s; fetch it by hand and give its path")
            if len(content) > _LARGEST:
                raise StorageError(f"{address}: more than {_LARGEST >> 30} GiB; correct the address")
    if length is not None and length != len(content):
        raise StorageError(f"{address}: it ended after {len(content)} of {length} bytes; try again")
    return bytes(content)


@contextmanager
def _response(address: Address) -> Iterator[HTTPResponse]:
    # Put together by hand because the default opener would follow a redirection to http:// or ftp://.
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPSHandler(context=ssl.create_default_context()),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
        request.HTTPDefaultErrorHandler(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    try:
        wanted = request.Request(str(address.uri), headers={"User-Agent": "sparse-detr"})
        with opener.open(wanted, timeout=_SILENCE) as response:
            yield response
    except HTTPError as error:
        error.close()
        raise StorageError(f"{address}: the server answers {error.code} {error.reason}; check the address") from error
    except (OSError, HTTPException) as error:
        raise StorageError(f"{address}: {_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({reason.verify_message}); set SSL_CERT_FILE to your authorities' file"
    if isinstance(reason, TimeoutError):
        return f"nothing came for {_SILENCE:.0f} s; check the network"
    if "unknown url type" in str(reason):
        return "it leads to an address that is not https; give one that does not"
    return f"cannot be fetched ({reason}); check the network and https_proxy"


def cache_folder() -> Location:
    """The folder of all that is kept for the next time on this machine."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is to be ignored, says the XDG specification.
    return locate(Path(base if os.path.isabs(base) else "~/.cache") / "sparse-detr")


def _cached(address: Address) -> bytes | None:
    cache = cache_folder()
    try:
        for name in cache.list() if cache.is_dir() else []:
            if name.startswith(address.sha256):
                content = cache.child(name).read_bytes()
                if hashlib.sha256(content).hexdigest() == name:
                    return content
    except StorageError as error:
        logger.warning("Downloads that were kept cannot be read: %s", error)
    return None


def _keep(content: bytes) -> None:
    try:
        cache_folder().child(hashlib.sha256(content).hexdigest()).write_bytes(content)
    except StorageError as error:
        logger.warning("The download is not kept for the next time: %s", error)
