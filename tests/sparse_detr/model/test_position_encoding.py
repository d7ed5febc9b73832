"""Sine encodings against the recorded one and their definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from sparse_detr.model.position_encoding import encode_boxes, encode_places


def test_recorded_encoding_with_padding(shared: Path) -> None:
    core = np.load(shared / "golden" / "core.npz")
    padding = torch.from_numpy(core["pos_mask"])
    recorded = torch.from_numpy(core["pos_out"]).flatten(2).transpose(1, 2)
    image = ~padding.flatten(1)
    found = encode_places(padding, 256)
    torch.testing.assert_close(found[image], recorded[image], atol=1e-5, rtol=0)
    # In padding, x is defined in rows that hold image, and y in such columns; the rest is sines of 3e6.
    rows = (~padding).any(2, keepdim=True).expand_as(padding).flatten(1)
    columns = (~padding).any(1, keepdim=True).expand_as(padding).flatten(1)
    assert (rows & ~image).any()
    assert (columns & ~image).any()
    torch.testing.assert_close(found[rows][:, 128:], recorded[rows][:, 128:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[columns][:, :128], recorded[columns][:, :128], atol=1e-5, rtol=0)


def test_encoding_of_an_image_does_not_depend_on_its_padding() -> None:
    alone = encode_places(torch.zeros(1, 4, 5, dtype=torch.bool), 32)
    padding = torch.ones(1, 6, 9, dtype=torch.bool)
    padding[:, :4, :5] = False
    padded = encode_places(padding, 32).view(6, 9, 32)[:4, :5].flatten(0, 1)
    torch.testing.assert_close(padded, alone[0], atol=1e-6, rtol=0)


def test_float64_has_the_digits_of_float64() -> None:
    places = encode_places(torch.zeros(1, 4, 5, dtype=torch.bool), 16, torch.float64)[0]
    x = 2.5 / (5 + 1e-6) * 2 * math.pi / 10000 ** (2 / 8)  # third column, channels 2 and 3 of x's eight
    expected = torch.tensor([math.sin(x), math.cos(x)], dtype=torch.float64)
    torch.testing.assert_close(places[2, 10:12], expected, atol=1e-14, rtol=0)
    boxes = encode_boxes(torch.tensor([[[0.25, 0.5, 0.1, 1.0]]], dtype=torch.float64), 8)
    angle = 0.1 * 2 * math.pi / 10000 ** (2 / 8)
    expected = torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
    torch.testing.assert_close(boxes[0, 0, 18:20], expected, atol=1e-14, rtol=0)


def test_boxes() -> None:
    encoded = encode_boxes(torch.tensor([[[0.25, 0.5, 0.1, 1.0]]]), 8)
    assert encoded.shape == (1, 1, 32)
    angle = 0.1 * 2 * math.pi / 10000 ** (2 / 8)  # third number, channels 2 and 3
    torch.testing.assert_close(encoded[0, 0, 18:20], torch.tensor([math.sin(angle), math.cos(angle)]))
