from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sparse_detr.decoder_attention import attention_share


def test_by_hand():
    dam = torch.tensor([[1.0, 2.0, 3.0, 4.0, 10.0], [1.0, 1.0, 1.0, 1.0, 0.0]])
    share = attention_share(dam, torch.tensor([[3, 4], [0, 1]]), ((2, 2), (1, 1)))
    torch.testing.assert_close(share[0], torch.tensor([14 / 20, 4 / 10, 1.0]))
    torch.testing.assert_close(share[1, :2], torch.tensor([0.5, 0.5]))
    assert share[1, 2].isnan()  # nothing was looked at on this level


def test_equals_the_authors_correlation(shared: Path):
    core = {key: torch.from_numpy(value) for key, value in np.load(shared / "golden" / "core.npz").items()}
    shapes = tuple((h, w) for h, w in core["core_shapes"].tolist())
    share = attention_share(core["dam_out"].sum(dim=(1, 2)), core["dam_top"], shapes)
    torch.testing.assert_close(share.T, core["dam_corr"], rtol=1e-5, atol=1e-6)
