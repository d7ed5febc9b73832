"""The way to a cluster that runs already: whether something answers there, and a connection within seconds."""

from __future__ import annotations

import logging
import socket
from urllib.parse import urlsplit

from sparse_detr.deadline import within
from sparse_detr.errors import ConfigError
from sparse_detr.redaction import without_secrets

REMEDY = "start the cluster (ray start --head), correct RAY_ADDRESS, or unset it for a local Ray"

_ANSWER_SECONDS = 10.0
_GREETING_SECONDS = 4.0
"""For one call, a round trip or two. Together with the connection before, an error comes within 15 s."""
_HEAD = ("/ray.rpc.NodeInfoGcsService/CheckAlive", b"")
_CLIENT_SERVER = ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06")
"""Methods that change nothing, with their requests as protobuf; the second's is `type: PING`."""
_SLOW_START = "Starting Ray client server failed"
"""Ray's words where the process for a `ray://` client was not up in half a minute; the next one finds it all warm."""
_PORTS = {"https": 443, "http": 80, "ray": 10001}


def unreachable(url: str, seconds: float) -> str:
    """Why nothing answers there; empty when something does within so long."""

    def knock() -> None:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 80)
        socket.create_connection((parts.hostname or "", port), timeout=seconds).close()

    try:
        # The socket's own timeout does not include the look-up of the name.
        within(seconds, knock)
    except (OSError, ValueError) as error:
        return f"nothing answers ({error})"
    return ""


def without_password(address: str) -> str:
    """The address as texts may show it, also one without a scheme."""
    scheme = "" if "://" in address else "ray://"
    return without_secrets(scheme + address).removeprefix(scheme)


def join(address: str) -> None:
    """Connect this process to the cluster of RAY_ADDRESS: `host:6379`, `ray://host:10001` or `auto`.

    Raises:
        ConfigError: nothing answers there or no Ray does, within 15 s; Ray refuses the address, the version of this
            process or its token; or, after two tries of half a minute, it cannot start a process for this client.
    """
    from ray.exceptions import AuthenticationError, RayError

    try:
        _require_ray(address)
        _init_patiently(address)
    except AuthenticationError:
        raise ConfigError(
            f"RAY_ADDRESS: {without_password(address)} refuses the token; put the cluster's token into RAY_AUTH_TOKEN, "
            "or its path into RAY_AUTH_TOKEN_PATH (`ray get-auth-token` prints it on the cluster's head)"
        ) from None
    except (OSError, RuntimeError, ValueError, RayError) as error:
        # Ray's messages may have several lines, and quote the address.
        said = without_secrets(" ".join(str(error).split())).rstrip(".")
        raise ConfigError(f"RAY_ADDRESS: {without_password(address)}: {said}; {REMEDY}") from None


def _init_patiently(address: str) -> None:
    """Once more where the head's process for this client was slow to start, as on a busy machine."""
    try:
        _init(address)
    except (ConnectionError, RuntimeError) as error:
        if _SLOW_START not in str(error):
            raise
        _init(address)


def _init(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _require_ray(address: str) -> None:
    """Raise ConnectionError where no Ray answers, AuthenticationError where it refuses the token.

    Ray itself tries again and again, for half a minute to three, and may then end the process.
    """
    host = address.removeprefix("ray://")
    if "://" in host or ":" not in address:
        # For Ray to find or to refuse, which it does at once.
        return
    if problem := unreachable(f"ray://{host}", _ANSWER_SECONDS):
        raise ConnectionError(problem)
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.exceptions import AuthenticationError

    method, request = _CLIENT_SERVER if address.startswith("ray://") else _HEAD
    channel = init_grpc_channel(host)
    try:
        channel.unary_unary(method)(request, timeout=_GREETING_SECONDS, wait_for_ready=True)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise AuthenticationError(error.details()) from None
        raise ConnectionError("no Ray answers at this port; its own are host:6379 and ray://host:10001") from None
    finally:
        channel.close()
