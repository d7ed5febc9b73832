"""The end of a run for its errors: never before it must, and soon where there is no doubt."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.predict.budget import ErrorBudget
from sparse_detr.errors import ConfigError


def test_half_of_the_first_images_stop_a_run_of_a_million_long_before_its_budget_is_used() -> None:
    budget = ErrorBudget.parse("1%")
    assert budget.exceeded(320, 640, 1_000_000, 10)
    assert budget.exceeded(4 * 64, 4 * 64, 1_000_000, 4)
    assert not budget.exceeded(32, 64, 1_000_000, 1)
    assert not budget.exceeded(7, 640, 1_000_000, 10)


def test_a_number_counts_alone() -> None:
    budget = ErrorBudget.parse("5")
    assert not budget.exceeded(5, 5, 1_000_000, 1)
    assert budget.exceeded(6, 500_000, 1_000_000, 8000)
    assert ErrorBudget.parse("0").exceeded(1, 1, 10, 1)


def test_a_share_is_of_all_images() -> None:
    budget = ErrorBudget.parse("10%")
    assert not budget.exceeded(2, 2, 20, 1)
    assert budget.exceeded(3, 3, 20, 1)
    assert not ErrorBudget.parse("100%").exceeded(20, 20, 20, 1)
    assert ErrorBudget.parse("0%").exceeded(1, 1, 20, 1)


def test_a_share_of_few_images_is_rounded_up() -> None:
    budget = ErrorBudget.parse("10%")
    assert not budget.exceeded(1, 9, 9, 1)
    assert budget.exceeded(2, 9, 9, 1)
    assert not budget.exceeded(100, 1000, 1000, 16)
    assert budget.exceeded(101, 1000, 1000, 16)


@pytest.mark.parametrize("together", [1, 64, 3200])
def test_a_run_that_keeps_its_budget_is_hardly_ever_stopped(together: int) -> None:
    """300 runs of 500 blocks of 64 in a random order, of which a tenth of the images fail, just as many as may:
    scattered, by blocks, or all of one folder."""
    budget, rng = ErrorBudget.parse("10%"), np.random.default_rng(0)
    stopped = 0
    for _ in range(300):
        groups = rng.permutation(32_000 // together) < 3200 // together
        failed = np.repeat(groups, together).reshape(500, 64).sum(1)[rng.permutation(500)]
        errors = np.cumsum(failed)
        stopped += any(budget.exceeded(int(errors[n]), 64 * (n + 1), 32_000, n + 1) for n in range(0, 500, 7))
    assert stopped == 0


@pytest.mark.parametrize("text", ["", "%", "x%", "nan%", "101%", "-1%", "1.5", "-1", "inf"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="error_budget"):
        ErrorBudget.parse(text)
