from __future__ import annotations

import torch

from sparse_detr.losses.token_scoring import dam_target


def test_target_holds_every_token_of_the_recorded_map(core):
    dam = core["dam_out"].sum(dim=(1, 2))
    keep = core["dam_top"].shape[1]
    target = dam_target(dam, torch.zeros_like(dam, dtype=torch.bool), torch.full((len(dam),), keep), keep)
    assert target.sum().item() == core["dam_top"].numel()


def test_target_equals_the_authors_label(golden):
    arrays = golden.arrays
    keep = arrays["backbone_topk_proposals"].shape[1]
    target = dam_target(arrays["dam_sum"], arrays["mask_flatten"], arrays["sparse_token_nums"], keep)
    assert torch.equal(target, arrays["dam_target"].float())


def test_target_keeps_each_images_own_number_and_no_padding():
    dam = torch.tensor([[5.0, 4.0, 3.0, 2.0], [0.0, 0.0, 9.0, 8.0]])
    padding = torch.tensor([[False] * 4, [False, False, True, True]])
    target = dam_target(dam, padding, torch.tensor([3, 1]), 3)
    assert target[0].tolist() == [1, 1, 1, 0]
    assert target[1, 2:].tolist() == [0, 0]
    assert target[1].sum() == 1
