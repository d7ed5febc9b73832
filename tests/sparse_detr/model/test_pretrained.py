"""The authors' checkpoints and torchvision's backbones."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from sparse_detr import BackboneConfig, ImageBatch, ModelConfig, SparseDetr
from sparse_detr.coco_names import coco_91_classes
from sparse_detr.errors import CheckpointError, ConfigError
from sparse_detr.model.original_names import original_name
from sparse_detr.model.pretrained import from_original, load_backbone

CONFIG = ModelConfig(
    num_classes=5,
    backbone=BackboneConfig(name="resnet18"),
    channels=64,
    heads=8,
    levels=3,
    points=2,
    encoder_layers=3,
    decoder_layers=2,
    feedforward_channels=64,
    keep_ratio=0.3,
)
LEARNED = replace(
    CONFIG, query_source="learned", queries=11, box_refinement=False, encoder_auxiliary_loss=False, keep_ratio=1.0
)


def original_state(model: SparseDetr) -> dict[str, Tensor]:
    """As the authors would save it: with heads under encoder and decoder too, and counters of batches."""
    config = model.config
    state = {original_name(name, config): tensor for name, tensor in model.state_dict().items()}
    for key in list(state):
        if key.startswith(("class_embed.", "bbox_embed.")):
            kind, index, rest = key.split(".", 2)
            if not config.box_refinement:
                state |= {f"{kind}.{layer}.{rest}": state[key] for layer in range(config.decoder_layers)}
                continue
            state[f"transformer.decoder.{key}"] = state[key]
            if int(index) > config.decoder_layers:
                state[f"transformer.encoder.{kind}.{int(index) - config.decoder_layers - 1}.{rest}"] = state[key]
    return state | {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(0)}


@pytest.fixture(scope="module")
def model() -> SparseDetr:
    torch.manual_seed(0)
    return SparseDetr(CONFIG).eval()


@pytest.fixture
def state(model: SparseDetr) -> dict[str, Tensor]:
    return original_state(model)


def detect(model: SparseDetr) -> Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        boxes: Tensor = model(ImageBatch.from_list([torch.randn(3, 64, 96)])).boxes
    return boxes


def test_original_names_are_unique_and_head_numbers_follow_the_authors(model: SparseDetr) -> None:
    names = {name: original_name(name, CONFIG) for name in model.state_dict()}
    assert len(set(names.values())) == len(names)
    assert names["decoder.heads.1.classes.weight"] == "class_embed.1.weight"
    assert names["queries.head.boxes.last.bias"] == "bbox_embed.2.layers.2.bias"
    assert names["encoder.heads.1.boxes.first.weight"] == "bbox_embed.4.layers.0.weight"
    assert names["decoder.layers.1.feedforward.norm.bias"] == "transformer.decoder.layers.1.norm3.bias"


def test_state_dict_with_aliases(model: SparseDetr, state: dict[str, Tensor]) -> None:
    loaded = SparseDetr.from_original(state, keep_ratio=0.3)
    assert loaded.config == replace(CONFIG, dropout=0.1)
    assert torch.equal(detect(loaded), detect(model))


def test_state_dict_without_canonical_names_of_heads(model: SparseDetr, state: dict[str, Tensor]) -> None:
    only = {k: v for k, v in state.items() if not k.startswith("class_embed.1.")}
    assert torch.equal(detect(from_original(only, 0.3)), detect(model))


def test_learned_queries() -> None:
    model = SparseDetr(LEARNED).eval()
    state = original_state(model)
    loaded = from_original(state)
    assert loaded.config == LEARNED
    assert torch.equal(detect(loaded), detect(model))
    with pytest.raises(CheckpointError, match=r"class_embed.1.bias: differs from class_embed.0.bias.*not supported"):
        from_original(state | {"class_embed.1.bias": torch.ones(5)})


def test_a_model_of_91_labels_knows_the_classes_of_coco(model: SparseDetr) -> None:
    coco = SparseDetr.from_original(original_state(SparseDetr(replace(LEARNED, num_classes=91))))
    assert coco.classes == coco_91_classes()
    assert from_original(original_state(model), 0.3).classes is None


def test_file_with_the_authors_arguments(tmp_path: Path, model: SparseDetr, state: dict[str, Tensor]) -> None:
    arguments = argparse.Namespace(rho=0.3, nheads=4, num_queries=40, dropout=0.0)
    torch.save({"model": state, "args": arguments, "epoch": 49}, tmp_path / "model.pth")
    config = SparseDetr.from_original(tmp_path / "model.pth").config
    assert (config.keep_ratio, config.heads, config.points, config.queries) == (0.3, 4, 4, 40)
    assert from_original(str(tmp_path / "model.pth"), 0.5).config.keep_ratio == 0.5


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_pickle_with_code_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"model": state, "args": Attack(tmp_path / "hacked")}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model.pth: refused"):
        from_original(tmp_path / "model.pth", 0.3)
    assert not (tmp_path / "hacked").exists()


def test_damaged_files(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "model.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"model.pth: cannot be read as a PyTorch checkpoint"):
        from_original(path, 0.3)
    path.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"model.pth: refused, it is no PyTorch file"):
        from_original(path, 0.3)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model.pth"):
        from_original(path, 0.3)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"model.pth: holds no state_dict"):
        from_original(path, 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("transformer.enc_output_norm.weight"), "missing keys: queries.project_norm.weight"),
        (lambda s: s.update({"surprise": torch.zeros(1)}), "unknown keys: surprise"),
        (lambda s: s.update({"input_proj.1.0.bias": torch.zeros(3)}), r"misshapen: .*bias is \(3,\), .* wants \(64,\)"),
        (lambda s: s.pop("transformer.level_embed"), "transformer.level_embed: missing"),
        (lambda s: s.update({"transformer.decoder.class_embed.0.bias": torch.ones(5)}), "contradicts itself"),
        (lambda s: s.update({"transformer.pos_trans.weight": torch.zeros(128, 128)}), "--eff_query_init"),
        (lambda s: s.update({"backbone.0.body.patch_embed.proj.weight": torch.zeros(1)}), "a Swin backbone"),
        (lambda s: s.update({"backbone.0.body.layer3.2.conv1.weight": torch.zeros(1)}), "layer3: 3 blocks"),
    ],
)
def test_foreign_state_dicts(state: dict[str, Tensor], change: Callable[[Any], Any], message: str) -> None:
    change(state)
    with pytest.raises(CheckpointError, match=message):
        from_original(state, 0.3)


def test_keep_ratio_must_go_with_the_model(state: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match="keep_ratio: None; the checkpoint has a scoring network"):
        from_original(state)
    with pytest.raises(ConfigError, match=r"keep_ratio: 1.0; the checkpoint has"):
        from_original(state, 1.0)
    dense = {key: value for key, value in state.items() if "enc_mask_predictor" not in key}
    assert from_original(dense).config.keep_ratio == 1.0
    with pytest.raises(ConfigError, match=r"keep_ratio: 0.1, but the checkpoint is dense"):
        from_original(dense, 0.1)


# Backbones


@pytest.fixture
def file(shared: Path) -> Path:
    return shared / "data" / "backbones" / "resnet18_imagenet_stem_to_layer3.safetensors"


def test_backbone_without_layer4(file: Path) -> None:
    model = SparseDetr(CONFIG)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    report = load_backbone(model, file)
    content = safetensors.torch.load_file(file)
    assert set(report.loaded) == set(content)
    assert report.ignored == ()
    assert report.fresh
    assert all(name.startswith("layer4.") for name in report.fresh)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, content.get(name, before[name])), name


def test_stem_computes_the_folded_convolution(file: Path) -> None:
    model = SparseDetr(CONFIG)
    load_backbone(model, str(file))
    content = safetensors.torch.load_file(file)
    pixels = torch.randn(1, 3, 32, 32)
    found = model.backbone.bn1(model.backbone.conv1(pixels))
    expected = functional.conv2d(pixels, content["conv1.weight"], content["bn1.bias"], stride=2, padding=3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_biases_of_folded_convolutions_give_the_same_features(file: Path, tmp_path: Path) -> None:
    content = safetensors.torch.load_file(file)
    folded = {
        key: value for key, value in content.items() if key.endswith(("conv1.weight", "conv2.weight", "0.weight"))
    }
    for key, value in content.items():
        if key.endswith("bias"):
            folded[key.replace("bn", "conv").replace("downsample.1", "downsample.0")] = value
    safetensors.torch.save_file(folded | {"fc.bias": torch.zeros(1000)}, tmp_path / "folded.safetensors")
    models = [SparseDetr(CONFIG), SparseDetr(CONFIG)]
    load_backbone(models[0], file)
    report = load_backbone(models[1], tmp_path / "folded.safetensors")
    assert report.ignored == ("fc.bias",)
    assert set(report.loaded) == set(content)
    pixels = torch.randn(1, 3, 64, 64)
    features = []
    for model in models:
        net = model.backbone
        stem = net.maxpool(net.relu(net.bn1(net.conv1(pixels))))
        features.append(net.layer3(net.layer2(net.layer1(stem))))
    torch.testing.assert_close(features[0], features[1], atol=1e-4, rtol=1e-4)


def test_group_norm_takes_convolutions_alone(file: Path) -> None:
    model = SparseDetr(replace(CONFIG, backbone=BackboneConfig(name="resnet18", norm="group_norm")))
    report = load_backbone(model, file)
    assert all("conv" in name or "downsample.0" in name for name in report.loaded)
    assert "bn1.bias" in report.ignored
    assert model.backbone.get_parameter("bn1.weight").eq(1).all()


def test_foreign_backbones(file: Path, tmp_path: Path) -> None:
    wide = SparseDetr(replace(CONFIG, backbone=BackboneConfig(name="resnet50")))
    with pytest.raises(CheckpointError, match=r"misshapen: layer1.0.conv1.weight"):
        load_backbone(wide, file)
    model = SparseDetr(CONFIG)
    safetensors.torch.save_file({"patch_embed.weight": torch.zeros(1)}, tmp_path / "swin.safetensors")
    with pytest.raises(CheckpointError, match=r"holds patch_embed.weight; none is a key of resnet18"):
        load_backbone(model, tmp_path / "swin.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000000])
    with pytest.raises(CheckpointError, match=r"cut.safetensors: not a safetensors file"):
        load_backbone(model, tmp_path / "cut.safetensors")
