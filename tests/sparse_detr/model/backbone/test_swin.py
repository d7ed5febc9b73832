"""Swin-T: the authors' names, freezing and drop path, and what its own definition says of windows and shifts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparse_detr import BackboneConfig
from sparse_detr.model.backbone.swin import Block, DropPath, PatchMerging, Swin, WindowAttention, shift_mask

PREFIX = "backbone.0.body."


@pytest.fixture(scope="module")
def swin() -> Swin:
    torch.manual_seed(0)
    return Swin(BackboneConfig(name="swin_tiny")).eval()


def test_maps_have_strides_8_16_32(swin: Swin) -> None:
    assert swin.channels == (192, 384, 768)
    with torch.no_grad():
        maps = swin(torch.randn(1, 3, 97, 64))
    assert [tuple(level.shape[1:]) for level in maps] == [(192, 13, 8), (384, 7, 4), (768, 4, 2)]


def test_names_shapes_and_freezing_are_the_authors(swin: Swin, shared: Path) -> None:
    recorded = json.loads((shared / "golden" / "swint_sparse_rho0.1.keys.json").read_text())

    def of_backbone(section: str) -> dict[str, object]:
        return {key.removeprefix(PREFIX): value for key, value in recorded[section].items() if key.startswith(PREFIX)}

    state = swin.state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == of_backbone("keys")
    assert {n: str(t.dtype) for n, t in state.items() if t.dtype != torch.float32} == of_backbone("dtypes_not_f32")
    assert {name: p.requires_grad for name, p in swin.named_parameters()} == of_backbone("parameters_named_once")


@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_frozen_stages_get_no_gradients_and_drop_nothing(stages: int) -> None:
    model = Swin(BackboneConfig(name="swin_tiny", frozen_stages=stages, drop_path=0.5)).train()
    groups = [model.patch_embed, *model.layers]
    for index, group in enumerate(groups):
        assert all(p.requires_grad == (index >= stages) for p in group.parameters())
        assert all(module.training == (index >= stages) for module in group.modules())
    assert model.norm3.weight.requires_grad
    assert not any(module.training for module in model.eval().modules())


def test_drop_path_grows_linearly_over_the_12_blocks() -> None:
    model = Swin(BackboneConfig(name="swin_tiny", drop_path=0.22))
    rates = [module.probability for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.02 * i for i in range(12)])


def test_drop_path_skips_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    found = drop(torch.ones(4000, 2, 3, 4))
    of_image = found.flatten(1)
    assert torch.equal(of_image.amin(1), of_image.amax(1))
    assert sorted(set(of_image[:, 0].tolist())) == pytest.approx([0.0, 4 / 3])
    assert (of_image[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drop.eval()(found), found)


def test_training_with_drop_path_differs_and_evaluation_does_not() -> None:
    torch.manual_seed(0)
    model = Swin(BackboneConfig(name="swin_tiny", drop_path=0.9))
    pixels = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        model.train()
        assert not torch.equal(model(pixels)[2], model(pixels)[2])
        model.eval()
        assert torch.equal(model(pixels)[2], model(pixels)[2])


def test_first_weights(swin: Swin) -> None:
    for module in swin.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-5
        if isinstance(module, WindowAttention):
            assert module.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.15)


def test_bias_index_is_one_number_for_each_offset() -> None:
    index = WindowAttention(32, 1).relative_position_index
    offsets: dict[int, set[tuple[int, int]]] = {}
    for a in range(49):
        for b in range(49):
            offsets.setdefault(int(index[a, b]), set()).add((a // 7 - b // 7, a % 7 - b % 7))
    assert all(len(found) == 1 for found in offsets.values())
    assert sorted(offsets) == list(range(169))
    assert offsets[0] == {(-6, -6)}
    assert offsets[1] == {(-6, -5)}  # columns change first


def attend_token_by_token(block: Block, x: Tensor) -> Tensor:
    """`Block` without MLP and shortcut on one image, by its definition: every token looks up its window."""
    attn = block.attn
    height, width, channels = x.shape
    padded = torch.zeros(height + -height % 7, width + -width % 7, channels)
    padded[:height, :width] = block.norm1(x)
    rows, columns = padded.shape[:2]
    heads, shift = attn.heads, 3 if block.shifted else 0
    query, key, value = attn.qkv(padded).view(rows, columns, 3, heads, -1).unbind(2)
    result = torch.empty(height, width, channels)
    for y in range(height):
        for x_ in range(width):
            # The window in the rolled map: the places that share a cell of 7x7 with this one.
            top, left = (y - shift) % rows // 7 * 7 + shift, (x_ - shift) % columns // 7 * 7 + shift
            places = [((top + i) % rows, (left + j) % columns) for i in range(7) for j in range(7)]
            here = (y - top) % rows, (x_ - left) % columns
            logits = []
            for number, (u, v) in enumerate(places):
                index = int(attn.relative_position_index[here[0] * 7 + here[1], number])
                logit = (query[y, x_] * key[u, v]).sum(-1) / math.sqrt(channels // heads)
                # Neighbours in the rolled map alone are those on the two sides of an edge of the real one.
                torn = block.shifted and ((u < shift) != (y < shift) or (v < shift) != (x_ < shift))
                logits.append(logit + attn.relative_position_bias_table[index] - (100.0 if torn else 0.0))
            share = torch.stack(logits).softmax(0)
            stacked = torch.stack([value[u, v] for u, v in places])
            result[y, x_] = attn.proj((share[..., None] * stacked).sum(0).flatten())
    return result


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(9, 15), (3, 4), (14, 7)])
def test_block_equals_its_definition_token_by_token(size: tuple[int, int], shifted: bool) -> None:
    torch.manual_seed(0)
    block = Block(32, 2, shifted=shifted, drop_path=0.0).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    maps = torch.randn(2, *size, 32)
    with torch.no_grad():
        found = block(maps, shift_mask(*size))
        for image, x in zip(found, maps, strict=True):
            attended = x + attend_token_by_token(block, x)
            expected = attended + block.mlp(block.norm2(attended))
            torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-4)


def test_merging_orders_the_four_neighbours_and_pads_odd_sides() -> None:
    merge = PatchMerging(1)
    merge.norm = nn.Identity()  # type: ignore[assignment]
    merge.reduction = nn.Identity()  # type: ignore[assignment]
    found = merge(torch.arange(1.0, 10.0).view(1, 3, 3, 1))
    assert found.shape == (1, 2, 2, 4)
    assert found[0, 0, 0].tolist() == [1, 4, 2, 5]  # (even row, even column), (odd, even), (even, odd), (odd, odd)
    assert found[0, 1, 1].tolist() == [9, 0, 0, 0]


def test_gradients_reach_everything_that_is_not_frozen() -> None:
    model = Swin(BackboneConfig(name="swin_tiny", drop_path=0.0))
    sum(level.square().mean() for level in model(torch.randn(1, 3, 64, 80))).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
