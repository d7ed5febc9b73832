"""When a run stops for its errors: never before it must, and soon where there is no doubt."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.predict.budget import ErrorBudget
from sparse_detr.errors import ConfigError


def test_a_hundred_failures_of_the_first_two_hundred_stop_a_run_of_a_million() -> None:
    budget = ErrorBudget.parse("1%")
    assert budget.exceeded(100, 200, 1_000_000)
    assert budget.exceeded(12, 64, 1_000_000)
    assert not budget.exceeded(3, 64, 1_000_000)


def test_a_number_counts_alone() -> None:
    budget = ErrorBudget.parse("5")
    assert not budget.exceeded(5, 5, 1_000_000)
    assert budget.exceeded(6, 500_000, 1_000_000)
    assert ErrorBudget.parse("0").exceeded(1, 1, 10)


def test_a_share_is_of_all_images() -> None:
    budget = ErrorBudget.parse("10%")
    assert not budget.exceeded(2, 2, 20)
    assert budget.exceeded(3, 3, 20)
    assert not ErrorBudget.parse("100%").exceeded(20, 20, 20)
    assert ErrorBudget.parse("0%").exceeded(1, 1, 20)


def test_a_run_that_keeps_its_budget_is_hardly_ever_stopped() -> None:
    """A thousand runs of 20 000 images of which just as many fail as may, in a random order."""
    budget, rng = ErrorBudget.parse("1%"), np.random.default_rng(0)
    stopped = 0
    for _ in range(1000):
        failed = rng.permutation(20_000) < 200
        errors = np.cumsum(failed.reshape(-1, 160).sum(1))
        done = np.arange(1, len(errors) + 1) * 160
        stopped += any(budget.exceeded(int(e), int(n), 20_000) for e, n in zip(errors, done, strict=True))
    assert stopped <= 2


@pytest.mark.parametrize("text", ["", "%", "x%", "nan%", "101%", "-1%", "1.5", "-1", "inf"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="error_budget"):
        ErrorBudget.parse(text)
