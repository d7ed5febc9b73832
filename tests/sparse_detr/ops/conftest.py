"""Which builds of the op the tests run on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


def _widths() -> list[str]:
    from sparse_detr.ops.native import instruction_set

    widest = instruction_set()
    names = ["base", "avx2", "avx512"]
    return names[: names.index(widest) + 1] if widest else []


@pytest.fixture(params=["base", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn, where this processor has it and the op is compiled."""
    from sparse_detr.ops.native import limit_instruction_set

    here = _widths()
    if request.param not in here:
        pytest.skip(f"{request.param}: not on this processor, or the op is not compiled (sets here: {here})")
    limit_instruction_set(request.param)
    yield request.param
    limit_instruction_set(here[-1])
