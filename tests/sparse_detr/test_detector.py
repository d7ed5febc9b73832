"""The whole detector: what it returns when, and which keep ratios it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparse_detr import BackboneConfig, ImageBatch, ModelConfig, Output, SparseDetr
from sparse_detr.errors import ConfigError

CONFIG = ModelConfig(
    num_classes=4,
    backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0),
    channels=64,
    heads=4,
    encoder_layers=3,
    decoder_layers=2,
    feedforward_channels=64,
    queries=20,
    keep_ratio=0.3,
)
DENSE = replace(CONFIG, keep_ratio=1.0)
LEARNED = replace(DENSE, query_source="learned", box_refinement=False, encoder_auxiliary_loss=False)
OBJECTNESS = replace(CONFIG, token_criterion="objectness")
TWO_STAGE = replace(
    DENSE, encoder_auxiliary_loss=False, query_content="proposal", proposal_score="class_agnostic", shared_heads=True
)
DETR = replace(LEARNED, attention="full", levels=1, shared_heads=True)
FAMILY = {
    "sparse": CONFIG,
    "dense": DENSE,
    "objectness": OBJECTNESS,
    "objectness, no auxiliary loss": replace(OBJECTNESS, encoder_auxiliary_loss=False),
    "learned": LEARNED,
    "learned, shared head": replace(LEARNED, shared_heads=True),
    "learned, refined": replace(LEARNED, box_refinement=True),
    "two-stage, shared head": TWO_STAGE,
    "two-stage, refined": replace(TWO_STAGE, shared_heads=False),
    "two-stage, not refined": replace(TWO_STAGE, box_refinement=False),
    "two-stage, sparse": replace(TWO_STAGE, keep_ratio=0.3, shared_heads=False, encoder_auxiliary_loss=True),
    "12 encoder layers": replace(CONFIG, encoder_layers=12),
    "DETR": DETR,
}


def make(config: ModelConfig) -> SparseDetr:
    torch.manual_seed(0)
    return SparseDetr(config).eval()


@pytest.fixture(scope="module")
def model() -> SparseDetr:
    return make(CONFIG)


@pytest.fixture(scope="module")
def batch() -> ImageBatch:
    torch.manual_seed(1)
    return ImageBatch.from_list([torch.randn(3, 64, 96), torch.randn(3, 48, 64)])


def test_evaluation_returns_detections_and_selection_alone(model: SparseDetr, batch: ImageBatch) -> None:
    with torch.no_grad():
        output = model(batch)
    assert output.logits.shape == (2, 20, 4)
    assert output.boxes.shape == (2, 20, 4)
    assert output.shapes == ((8, 12), (4, 6), (2, 3), (1, 2))
    # 128 and 48 + 12 + 4 + 1 tokens that are image: trunc(0.3 n) + 1.
    assert output.selection is not None
    assert output.selection.counts.tolist() == [39, 20]
    assert output.kept_tokens is not None
    assert output.kept_tokens.shape == (2, 39)
    assert output.query_tokens is not None
    assert output.query_tokens.shape == (2, 20)
    assert (output.decoder_auxiliary, output.encoder_auxiliary) == ((), ())
    assert (output.proposals, output.decoder_attention) == (None, None)


def test_auxiliary_output(model: SparseDetr, batch: ImageBatch) -> None:
    with torch.no_grad():
        full = model(batch, with_auxiliary=True)
    assert len(full.decoder_auxiliary) == 1
    assert len(full.encoder_auxiliary) == 2
    assert full.encoder_auxiliary[0].boxes.shape == (2, 39, 4)
    assert full.proposals is not None
    assert full.proposals.logits.shape == (2, 128, 4)


def total(output: Output) -> torch.Tensor:
    sets = [*output.decoder_auxiliary, *output.encoder_auxiliary]
    sets += [found for found in (output.proposals, output.objectness) if found is not None]
    parts = [output.logits, output.boxes] + [t for s in sets for t in (s.logits, s.boxes)]
    if output.selection is not None:
        parts.append(output.selection.saliency)
    return torch.stack([(part * torch.randn_like(part)).sum() for part in parts]).sum()


@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY.keys())
def test_every_parameter_learns(config: ModelConfig, batch: ImageBatch) -> None:
    model = make(config).train()
    for module in model.modules():  # heads and offsets start at zero, which would hide a path behind them
        for parameter in module.parameters(recurse=False):
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    total(model(batch)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_dense_model_builds_no_scoring_network(batch: ImageBatch) -> None:
    model = make(DENSE)
    assert model.scoring_network is None
    with torch.no_grad():
        output = model(batch, with_auxiliary=True)
    assert output.kept_tokens is None
    assert output.selection is None
    assert output.encoder_auxiliary[0].boxes.shape == (2, 128, 4)
    with pytest.raises(ConfigError, match=r"keep_ratio: 0.5, but this model was built dense"):
        model(batch, 0.5)


def test_sparse_model_at_ratio_one_is_the_dense_model(model: SparseDetr, batch: ImageBatch) -> None:
    dense = make(DENSE)
    dense.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("scoring_network")})
    with torch.no_grad():
        ours, theirs = model(batch, 1.0), dense(batch)
    assert ours.kept_tokens is None
    torch.testing.assert_close(ours.logits, theirs.logits)


def test_keep_ratio_of_a_call_wins(model: SparseDetr, batch: ImageBatch) -> None:
    with torch.no_grad():
        output = model(batch, 0.6)
    assert output.selection is not None
    assert output.selection.counts.tolist() == [77, 40]


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan")])
def test_keep_ratio_outside_is_refused(model: SparseDetr, batch: ImageBatch, ratio: float) -> None:
    with pytest.raises(ConfigError, match=rf"keep_ratio: {ratio}; give a number in \(0, 1\]"):
        model(batch, ratio)


def test_learned_queries(batch: ImageBatch) -> None:
    with torch.no_grad():
        output = make(LEARNED)(batch)
    assert output.query_tokens is None
    assert output.boxes.shape == (2, 20, 4)


@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY.keys())
def test_short_and_full_output_agree(config: ModelConfig, batch: ImageBatch) -> None:
    model = make(config)
    with torch.no_grad():
        short, full = model(batch), model(batch, with_auxiliary=True)
    torch.testing.assert_close(short.logits, full.logits)
    torch.testing.assert_close(short.boxes, full.boxes)
    assert (short.objectness, short.proposals) == (None, None)
    assert (full.objectness is not None) == (config.token_criterion == "objectness" and config.sparse)
    assert (full.decoder_attention is None) == (config.attention == "full")


@pytest.mark.parametrize(
    "config",
    [*FAMILY.values(), replace(CONFIG, scoring_mean="all")],
    ids=[*FAMILY.keys(), "mean over all"],
)
def test_images_of_a_batch_do_not_see_each_other(config: ModelConfig, batch: ImageBatch) -> None:
    """At a given padded size an image gives the same detections alone, and beside any other."""
    model = make(config)
    torch.manual_seed(5)
    others = ImageBatch(pixels=torch.randn_like(batch.pixels) * 3, padding=torch.zeros_like(batch.padding))
    small = ImageBatch(pixels=batch.pixels[1:], padding=batch.padding[1:])
    beside = ImageBatch(
        pixels=torch.cat((others.pixels, small.pixels)), padding=torch.cat((others.padding, small.padding))
    )
    with torch.no_grad():
        alone, first, second = model(small), model(batch), model(beside)
    for other in (first, second):
        if alone.selection is not None:
            assert other.selection is not None
            count = int(alone.selection.counts[0])
            assert other.selection.counts[-1] == count
            assert set(other.selection.kept[-1, :count].tolist()) == set(alone.selection.kept[0, :count].tolist())
        torch.testing.assert_close(other.logits[-1], alone.logits[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(other.boxes[-1], alone.boxes[0], atol=1e-5, rtol=1e-4)


def test_the_two_means_differ_where_there_is_padding(batch: ImageBatch) -> None:
    ours, theirs = make(CONFIG), make(replace(CONFIG, scoring_mean="all"))
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        first, second = ours(batch).selection, theirs(batch).selection
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first.saliency[0], second.saliency[0])  # the larger image has no padding
    image = ~ours(batch).token_padding[1]
    assert (first.saliency[1] - second.saliency[1])[image].abs().min() > 1e-4


def test_refined_learned_queries_get_boxes_with_a_size(batch: ImageBatch) -> None:
    """From the second layer on, references are the boxes of the layer before (Deformable DETR, appendix A.4)."""
    model = make(FAMILY["learned, refined"])
    for head in model.decoder.heads:
        torch.nn.init.normal_(head.boxes.last.weight, std=0.3)
    seen: list[torch.Tensor] = []
    for layer in model.decoder.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    with torch.no_grad():
        output = model(batch, with_auxiliary=True)
    assert [references.shape[-1] for references in seen] == [2, 4]
    ratios = seen[1][0, :, 0] / output.decoder_auxiliary[0].boxes[0]
    torch.testing.assert_close(ratios, torch.ones_like(ratios))


def test_full_attention_looks_at_the_coarsest_map_alone(batch: ImageBatch) -> None:
    with torch.no_grad():
        output = make(DETR)(batch)
    assert output.shapes == ((2, 3),)
    assert output.query_tokens is None
    assert output.boxes.shape == (2, 20, 4)


@pytest.mark.parametrize("size", [(1, 1), (20, 31), (1, 200)])
def test_small_images(model: SparseDetr, size: tuple[int, int]) -> None:
    with torch.no_grad():
        output = model(ImageBatch.from_list([torch.randn(3, *size)]))
    tokens = output.token_padding.shape[1]
    assert output.boxes.shape == (1, min(20, tokens), 4)
    assert output.boxes.isfinite().all()
    assert output.logits.isfinite().all()


def test_bfloat16_autocast(model: SparseDetr, batch: ImageBatch) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)
    assert output.boxes.isfinite().all()


def test_one_name_for_each_parameter(model: SparseDetr) -> None:
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(set(pointers)) == len(pointers)
