"""Who takes part in the op's benchmark: all compute the same, and their traffic is counted right."""

from __future__ import annotations

import torch
from torch import Tensor

from pipelines.bench.op.implementations import (
    GRID_SAMPLE,
    PLAIN,
    Implementation,
    Inputs,
    Workload,
    line_up,
    make_inputs,
    traffic,
)

CPU = torch.device("cpu")
TINY = Workload(
    shapes=((6, 8), (3, 4)), heads=2, channels=16, points=2, queries={"dense": 60, "sparse": 20, "decoder": 7}
)


def results(implementation: Implementation, inputs: Inputs) -> tuple[Tensor, ...]:
    output = implementation.attend(inputs)
    return output.detach(), *torch.autograd.grad(output, inputs.leaves, inputs.direction)


def test_all_implementations_compute_the_same() -> None:
    field = line_up(TINY, CPU)
    inputs = make_inputs(TINY, 20).copied(torch.float32, CPU, backward=True)
    expected = results(next(c for c in field.implementations if c.name == GRID_SAMPLE), inputs)
    assert {"ours", "ours unfused", PLAIN} < {implementation.name for implementation in field.implementations}
    for implementation in field.implementations:
        for found, exact in zip(results(implementation, inputs), expected, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)


def test_the_floor_counts_what_has_to_be_moved() -> None:
    # One head of 4 channels on 2 x 3 cells. The first query samples a cell's centre, the second between two cells and
    # beside two that are outside: 3 cells of 6 are read.
    workload = Workload(shapes=((2, 3),), heads=1, channels=4, points=1)
    inputs = Inputs(
        value=torch.zeros(1, 6, 1, 4),
        references=torch.tensor([[[[1 / 6, 1 / 4]], [[2 / 3, 1.0]]]]),
        offsets=torch.zeros(1, 2, 1, 1, 1, 2),
        logits=torch.zeros(1, 2, 1, 1, 1),
        direction=torch.zeros(1, 2, 4),
    )
    read, output, gradients = 3 * 4 + 4 + 2, 8, 24 + 4 + 2  # numbers; and 4 of float32 for the references
    assert traffic(workload, inputs, torch.float32, backward=False) == 4 * (read + output) + 16
    assert traffic(workload, inputs, torch.bfloat16, backward=True) == 2 * (2 * (read + output) + gradients) + 2 * 16
