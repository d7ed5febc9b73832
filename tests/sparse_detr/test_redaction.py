"""Secrets are hidden, and words of the paper that look a little like them are not."""

from __future__ import annotations

import pytest

from sparse_detr.redaction import HIDDEN, SECRET_VARIABLES, values_without_secrets, without_secrets


@pytest.mark.parametrize(
    "key",
    [
        "aws_secret_access_key",
        "AWS_SECRET_ACCESS_KEY",
        "store.secret",
        "db-password",
        "api_key",
        "apiKey",
        "x.access-key",
        "auth_token",
        "ray.auth-token",
        "token",
        "server.token",
        "credentials",
    ],
)
def test_names_of_secrets(key: str) -> None:
    assert without_secrets("anything", key) == HIDDEN
    assert without_secrets("", key) == ""


@pytest.mark.parametrize(
    "key", ["loss.token_scoring_weight", "kept_tokens", "tokens", "model.query_tokens", "keep_ratio", "key", "passes"]
)
def test_words_of_the_paper(key: str) -> None:
    assert without_secrets("0.1", key) == "0.1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:pw@db:5432/x", "postgresql+psycopg://***@db:5432/x"),
        ("a http://tok@host/p b https://u:p@h", "a http://***@host/p b https://***@h"),
        ("sqlite+x://u:p@ss@host/db", "sqlite+x://***@host/db"),
        ("at https://u:p/w@host/db, says me@home", "at https://***@host/db, says me@home"),
        ("s3://key:sec/ret@bucket/a", "s3://***@bucket/a"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("https://h/k?X-Amz-Signature=abc&x=1", "https://h/k?X-Amz-Signature=***&x=1"),
        ("s3://b/p?access_key=a&secret_key=b", "s3://b/p?access_key=***&secret_key=***"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("mail me@home.org", "mail me@home.org"),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a")  # too short to be one: would garble every text
    assert without_secrets("failed with wJalrXUtnFEMI at a") == f"failed with {HIDDEN} at a"


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_every_secret_variable_is_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "a-planted-value")
    assert without_secrets("key a-planted-value refused") == f"key {HIDDEN} refused"


def test_nested_values() -> None:
    config = {"db": {"password": "pw", "uri": "http://me:pw@host"}, "hosts": ["s3://k:pw@b/x"], "lr": 0.1, "none": None}
    assert values_without_secrets(config) == {
        "db": {"password": HIDDEN, "uri": f"http://{HIDDEN}@host"},
        "hosts": [f"s3://{HIDDEN}@b/x"],
        "lr": 0.1,
        "none": None,
    }
