"""Error budget of a run: so many images may fail, and a run that will exceed it stops early."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from sparse_detr.errors import ConfigError, require

_DOUBT = 1e-6
"""Chance of stopping a run early that would have kept its budget: blocks come in a random order, so the images done so
far are a sample of all."""


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

    def exceeded(self, errors: int, done: int, total: int) -> bool:
        """Whether `errors` of `done` images are too many, or leave no doubt that those of `total` will be."""
        if self.number is not None:
            return errors > self.number
        assert self.share is not None
        if errors > self.share * total:
            return True
        # As many failures or more, if no more than the share of all failed.
        return self.share < 1.0 and errors > 0 and bool(stats.binom.sf(errors - 1, done, self.share) < _DOUBT)
