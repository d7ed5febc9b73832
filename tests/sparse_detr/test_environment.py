"""Variables come and go with the block, however it ends."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from sparse_detr.environment import environment


def test_variables_are_as_before_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "old")
    monkeypatch.delenv("GONE", raising=False)
    with suppress(KeyboardInterrupt), environment({"HERE": "new", "GONE": "x"}):
        assert (os.environ["HERE"], os.environ["GONE"]) == ("new", "x")
        del os.environ["GONE"]
        raise KeyboardInterrupt
    assert os.environ["HERE"] == "old"
    assert "GONE" not in os.environ
