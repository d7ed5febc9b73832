"""Progress bars show once there is progress."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipelines.cli.console import progress_bar


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_nothing_before_its_first_move(terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal)
    with pytest.raises(ValueError, match="a user error"), progress_bar("Training", console):
        raise ValueError("a user error")
    assert shown.getvalue() == ""
    with progress_bar("Training", console) as move:
        assert shown.getvalue() == ""
        move(1, 4)
        move(3, 4)
    assert "Training" in shown.getvalue()
    assert "3/4" in shown.getvalue()
