"""The command that goes on with a training that was stopped."""

from __future__ import annotations

import pytest

from pipelines.train.command import resuming


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "tiny", "--output", "a b"], "sparse-detr train tiny --output 'a b' --existing resume"),
        (
            ["train", "tiny", "--existing", "overwrite", "--name", "x"],
            "sparse-detr train tiny --name x --existing resume",
        ),
        (["train", "tiny", "--existing=resume"], "sparse-detr train tiny --existing resume"),
    ],
)
def test_it_is_the_users_own(words: list[str], expected: str) -> None:
    assert resuming(words) == expected


def test_it_shows_no_password() -> None:
    assert "hush" not in resuming(["train", "tiny", "--tracking-uri", "postgresql://me:hush@host/db"])
