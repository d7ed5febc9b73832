"""Error budget of a run: so many images may fail, and a run that will exceed it stops early."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from sparse_detr.errors import ConfigError, require

_DOUBT = 1e-6
"""Chance of stopping a run early that would have kept its budget. Blocks come in a random order, so those that are done
are a sample of all; their images are not, for neighbours in a list often fail together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBudget:
    """So many images may fail."""

    text: str
    share: float | None = None
    """Of all images; None where it is a number."""
    number: int | None = None

    @classmethod
    def parse(cls, text: str) -> ErrorBudget:
        """`1%` or `250`.

        Raises:
            ConfigError: neither.
        """
        try:
            if text.strip().endswith("%"):
                share = float(text.strip().removesuffix("%")) / 100
                require(0.0 <= share <= 1.0, f"error_budget: {text!r}; give 0% to 100%")
                return cls(text=text, share=share)
            number = int(text)
        except ConfigError:
            raise
        except ValueError:
            raise ConfigError(f"error_budget: {text!r}; give a share such as 1%, or a number such as 250") from None
        require(number >= 0, f"error_budget: {text!r}; give 0 or more")
        return cls(text=text, number=number)

    def exceeded(self, errors: int, done: int, total: int, blocks: int) -> bool:
        """Whether `errors` of `done` images are too many, or leave no doubt that those of `total` will be.

        Args:
            errors: images that failed.
            done: images that are done.
            total: images of the run.
            blocks: independent draws that the done images came in.
        """
        if self.number is not None:
            return errors > self.number
        assert self.share is not None
        # Rounded up: one broken image among nine is no reason to stop.
        if errors > math.ceil(round(self.share * total, 6)):
            return True
        if not done or self.share == 1.0:
            return False
        # As many blocks' worth of failures or more, if no more than the share of all failed.
        failed = math.ceil(errors * blocks / done)
        return failed > 0 and bool(stats.binom.sf(failed - 1, blocks, self.share) < _DOUBT)
