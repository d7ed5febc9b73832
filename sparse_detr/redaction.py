"""Redaction: takes secrets out of what is written down (parameters, tags, texts, messages, records)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

# Not every token: token_scoring_weight and kept_tokens are words of the paper.
_SECRET_KEY = re.compile(
    r"secret|passw|credential|(api|access|private|secret|session)[_.-]?key|"
    r"(^|[_.-])(auth|access|session|bearer|refresh|api)[_.-]?token$|(^|[.])token$",
    re.IGNORECASE,
)
# Up to the last @ of the URI, because passwords may hold @ and / as they are; a path with an @ is lost by that. Keys
# in S3 often have one, so there it counts only where user or password stand before the first slash.
_USER_INFO = re.compile(
    r"(?P<scheme>s3://(?=[^/\s]*[:@])|(?!s3://)[A-Za-z][A-Za-z0-9+.-]*://(?!/))[^\s\"<>]+@", re.IGNORECASE
)
_QUERY = re.compile(
    r"(?P<name>[?&](?:X-Amz-[A-Za-z-]+|access_key|secret_key|session_token|token|sig|signature|password)=)[^&\s]+",
    re.IGNORECASE,
)
SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
"""Environment variables whose values no text may show: the one list of them."""
# Wider than for keys of a config: a variable that is hidden without need costs nothing.
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Characters. Shorter values, such as the user name `minio`, are words that occur in harmless text."""


def without_secrets(text: str, key: str = "") -> str:
    """The text with passwords in URIs, signed queries and secrets of the environment replaced by `***`.

    Args:
        text: any text.
        key: the name under which it is written down; one that names a credential hides the whole text.
    """
    if key and text and _SECRET_KEY.search(key):
        return HIDDEN
    text = _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<name>{HIDDEN}", text)
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        # A shorter one is a placeholder: replacing it would only garble the text.
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, HIDDEN)
    return text


def is_secret(name: str, value: str) -> bool:
    """Whether an environment variable must not be shown: by its name, or by a password or a secret in its value."""
    return name in SECRET_VARIABLES or bool(_SECRET_VARIABLE.search(name)) or without_secrets(value) != value


def values_without_secrets(value: Any, key: str = "") -> Any:
    """The same mappings and sequences, as of a config's dictionary, with every text in them redacted."""
    if isinstance(value, Mapping):
        return {name: values_without_secrets(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [values_without_secrets(inner, key) for inner in value]
    return without_secrets(value, key) if isinstance(value, str) else value
