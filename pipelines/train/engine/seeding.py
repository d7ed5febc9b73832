"""Seeds of everything that a training leaves to chance, beside order and augmentation of the images."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_weights(seed: int) -> None:
    """Seed Python, numpy and torch for the random start of the weights."""
    value = int(np.random.SeedSequence((seed, 0, 0)).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


def seed_micro_batch(seed: int, step: int, number: int) -> None:
    """Seed torch for dropout and drop path of one micro-batch, the `number`th of a step of the whole run."""
    sequence = np.random.SeedSequence((seed, step, number), spawn_key=(2,))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
