"""Nothing of the original's waste is left: what really runs at inference, by hooks, and that results are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipelines.bench.model.published import auxiliary_heads, needless
from pipelines.bench.model.trace import profile_config, rows_of, trace
from sparse_detr.cost.model import model_cost
from sparse_detr.detector import SparseDetr
from sparse_detr.model import encoder
from sparse_detr.model.config import ModelConfig
from sparse_detr.model.token_selection import scatter_tokens
from sparse_detr.records import ImageBatch, TokenSelection

CONFIG = replace(profile_config(), channels=32, encoder_layers=3, decoder_layers=4, queries=30)
DENSE = replace(CONFIG, keep_ratio=1.0, encoder_auxiliary_loss=False)
TOKENS = 16 * 20 + 8 * 10 + 4 * 5 + 2 * 3
KEPT = 42 + 1


def _batch(images: int) -> ImageBatch:
    """Images of 128x160 and smaller: each has its own number of tokens to keep."""
    return ImageBatch.from_list([torch.randn(3, 128 - 8 * (i % 3), 160 - 20 * (i % 2)) for i in range(images)])


def test_no_part_loops_over_images() -> None:
    model = SparseDetr(CONFIG).eval()
    counts = [trace(model, _batch(images)).operators for images in (2, 3, 7)]
    assert counts[0] == counts[1] == counts[2]
    assert counts[0]["encoder"] == trace(model, _batch(1)).operators["encoder"]


def test_a_loop_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's way of writing tokens back, image by image."""

    def scatter_one_by_one(tokens: Tensor, updated: Tensor, selection: TokenSelection) -> Tensor:
        rows = []
        for image, count in enumerate(selection.counts.tolist()):
            index = selection.kept[image, :count, None].expand(-1, tokens.shape[2])
            rows.append(tokens[image].scatter(0, index, updated[image, :count]))
        return torch.stack(rows)

    model, batch = SparseDetr(CONFIG).eval(), _batch(3)
    with torch.no_grad():
        expected = model(batch)
        monkeypatch.setattr(encoder, "scatter_tokens", scatter_one_by_one)
        assert torch.equal(model(batch).logits, expected.logits)
    few, many = (trace(model, _batch(images)).operators["encoder"] for images in (3, 7))
    assert many > few
    assert scatter_tokens is not encoder.scatter_tokens


def test_heads_run_on_what_is_used_alone() -> None:
    model = SparseDetr(CONFIG).eval()
    lean, full = (trace(model, _image(), with_auxiliary=auxiliary) for auxiliary in (False, True))
    heads = ("encoder.heads.*.classes", "encoder.heads.*.boxes.last", "queries.head.classes",
             "queries.head.boxes.last", "decoder.heads.*.classes", "decoder.heads.*.boxes.last")  # fmt: skip
    assert [rows_of(lean, head) for head in heads] == [0, 0, TOKENS, 30, 30, 4 * 30]
    assert [rows_of(full, head) for head in heads] == [2 * KEPT, 2 * KEPT, TOKENS, TOKENS, 4 * 30, 4 * 30]


def test_encoder_layers_see_the_kept_tokens_alone() -> None:
    rows = trace(SparseDetr(CONFIG).eval(), _image()).rows
    for layer in range(CONFIG.encoder_layers):
        name = f"encoder.layers.{layer}"
        assert rows[f"{name}.feedforward.expand"] == rows[f"{name}.attention.sampling_offsets"] == KEPT
        assert rows[f"{name}.attention.value"] == TOKENS


def test_class_agnostic_proposals_compute_no_class_but_the_first() -> None:
    config = replace(DENSE, query_content="proposal", proposal_score="class_agnostic")
    assert "queries.head.classes" not in trace(SparseDetr(config).eval(), _image()).rows


def test_sampling_maps_are_kept_only_where_asked_for() -> None:
    model = SparseDetr(CONFIG).eval()
    assert trace(model, _image()).maps_alive <= 2  # a layer's own, and the last layer's until it is replaced
    assert trace(model, _image(), with_auxiliary=True).maps_alive == CONFIG.decoder_layers
    with torch.no_grad():
        output = model(_image())
    assert (output.decoder_attention, output.proposals, output.encoder_auxiliary, output.decoder_auxiliary) == (
        None, None, (), ()
    )  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        DENSE,
        replace(CONFIG, token_criterion="objectness"),
        replace(CONFIG, scoring_mean="all"),
        replace(DENSE, query_content="proposal", proposal_score="class_agnostic"),
        replace(DENSE, box_refinement=False, shared_heads=True),
        replace(DENSE, query_source="learned", box_refinement=False, shared_heads=True),
        replace(DENSE, query_source="learned", box_refinement=False, shared_heads=True, attention="full", levels=1),
    ],
    ids=["sparse", "dense", "objectness", "authors' mean", "two-stage", "one head", "learned", "DETR"],
)
def test_results_with_and_without_auxiliary_output_are_equal(config: ModelConfig) -> None:
    torch.manual_seed(1)  # now and then weights give boxes that hardly differ, from which nothing could be told
    model = SparseDetr(config).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = _batch(3)
    batch = replace(batch, pixels=batch.pixels.double())
    with torch.no_grad():
        lean, full = model(batch), model(batch, with_auxiliary=True)
    for one, other in ((lean.query_tokens, full.query_tokens), (lean.kept_tokens, full.kept_tokens)):
        assert (one is None and other is None) or torch.equal(one, other)
    torch.testing.assert_close(lean.logits, full.logits, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(lean.boxes, full.boxes, rtol=1e-9, atol=1e-12)
    assert full.boxes.std() > 0.01


def test_what_the_original_wastes_at_the_papers_size() -> None:
    """R50, keep ratio 0.1, 800x1066: multiply-adds worked out by hand from algorithm.md, sections 9, 10 and 17."""
    config = ModelConfig()
    cost = model_cost(config, 800, 1066)
    box = 2 * 256 * 256 + 4 * 256
    assert sorted(work.products for work in needless(config, cost).values()) == sorted(
        [(17821 - 300) * box, 6 * 300 * box, 5 * 300 * 256 * 91]
    )
    assert auxiliary_heads(config, cost).products == 5 * 1783 * 155392


def _image() -> ImageBatch:
    return ImageBatch.from_list([torch.randn(3, 128, 160)])
