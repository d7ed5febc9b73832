"""Published backbones: what loads, what is taken off the names, what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from sparse_detr import BackboneConfig, ModelConfig, SparseDetr
from sparse_detr.errors import CheckpointError, StorageError
from sparse_detr.storage.location import Location
from sparse_detr.weights.backbones import load_backbone

CONFIG = ModelConfig(
    num_classes=5,
    backbone=BackboneConfig(name="resnet18"),
    channels=32,
    heads=4,
    levels=3,
    points=2,
    encoder_layers=1,
    decoder_layers=1,
    feedforward_channels=32,
    keep_ratio=0.3,
)
TINY = replace(CONFIG, backbone=BackboneConfig(name="resnet_tiny"))
SWIN = replace(CONFIG, backbone=BackboneConfig(name="swin_tiny"))


def random_state(config: ModelConfig) -> dict[str, Tensor]:
    """Content of a published file of this backbone: other numbers than a new model's."""
    torch.manual_seed(7)
    return {
        key: value if key.endswith("index") else torch.rand_like(value) + 0.1
        for key, value in SparseDetr(config).backbone.state_dict().items()
    }


def assert_holds(model: SparseDetr, state: dict[str, Tensor]) -> None:
    found = model.backbone.state_dict()
    for key, value in state.items():
        assert torch.equal(found[key], value), key


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


# PyTorch files, sections and prefixes


def test_pth_of_torchvision_with_counters_and_classifier(tmp_path: Path) -> None:
    state = random_state(CONFIG)
    extra = {"bn1.num_batches_tracked": torch.tensor(5), "fc.weight": torch.zeros(1000, 512)}
    torch.save(state | extra, tmp_path / "resnet18.pth")
    model = SparseDetr(CONFIG)
    report = load_backbone(model, tmp_path / "resnet18.pth")
    assert_holds(model, state)
    assert (report.fresh, report.ignored, report.prefix) == ((), ("bn1.num_batches_tracked", "fc.weight"), "")


def wrap(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    ("pack", "prefix", "ignored"),
    [
        (lambda s: {"state_dict": wrap(s, "module."), "epoch": 3}, "state_dict/module.", ()),
        (lambda s: {"model": wrap(s, "backbone.0.body.")}, "model/backbone.0.body.", ()),
        (lambda s: wrap(s, "encoder.") | {"predictor.weight": torch.ones(1)}, "encoder.", ("predictor.weight",)),
        (
            lambda s: {"online_network": wrap(s, "encoder."), "target_network": wrap(zeros(s), "encoder.")},
            "online_network/encoder.",
            ("target_network/",),
        ),
        (
            lambda s: {"state_dict": wrap(zeros(s), "module.encoder_k.") | wrap(s, "module.encoder_q.")},
            "state_dict/module.encoder_q.",
            "all of encoder_k",
        ),
    ],
)
def test_sections_and_prefixes_are_taken_off_and_said(
    tmp_path: Path, pack: Callable[[Any], Any], prefix: str, ignored: object
) -> None:
    state = random_state(TINY)
    torch.save(pack(state), tmp_path / "scrl.pth")
    model = SparseDetr(TINY)
    report = load_backbone(model, tmp_path / "scrl.pth")
    assert_holds(model, state)
    assert report.prefix == prefix
    if ignored == "all of encoder_k":
        ignored = tuple(sorted(wrap(state, "module.encoder_k.")))
    assert report.ignored == ignored
    assert report.fresh == ()


def test_scrl_as_its_trainer_saves_it(tmp_path: Path) -> None:
    """kakaobrain/scrl: `encoder` is a Sequential of a torchvision ResNet's children, with a projector behind it."""
    state = random_state(CONFIG)
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    encoder = {f"encoder.{numbers[key.split('.')[0]]}.{key.split('.', 1)[1]}": value for key, value in state.items()}
    projector = {"projector.layers.0.weight": torch.zeros(4, 4), "projector.layers.0.bias": torch.zeros(4)}
    content = {
        "tag": "1000",
        "epoch": 1000,
        "online_network_state_dict": encoder | projector | {"encoder.1.num_batches_tracked": torch.tensor(1)},
        "target_network_state_dict": zeros(encoder | projector),
        "predictor_state_dict": {"layers.0.weight": torch.zeros(4, 4)},
        "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(content, tmp_path / "scrl.pth")
    model = SparseDetr(CONFIG)
    report = load_backbone(model, tmp_path / "scrl.pth")
    assert_holds(model, state)
    assert report.prefix == "online_network_state_dict/encoder."
    assert report.fresh == ()
    assert report.ignored == (
        "encoder.1.num_batches_tracked", *sorted(projector),
        "optimizer_state_dict/", "predictor_state_dict/", "target_network_state_dict/",
    )  # fmt: skip


def zeros(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def test_two_networks_are_refused(tmp_path: Path) -> None:
    state = random_state(TINY)
    torch.save({"a": state, "b": wrap(state, "net.")}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"two.pth: holds 2 networks, under a/, b/net\."):
        load_backbone(SparseDetr(TINY), tmp_path / "two.pth")


# Swin


@pytest.fixture(scope="module")
def swin_state() -> dict[str, Tensor]:
    return random_state(SWIN)


def official_swin(swin_state: dict[str, Tensor], **change: Tensor) -> dict[str, Any]:
    """As `swin_tiny_patch4_window7_224.pth` is: no norms for the maps, one before the classifier, stored masks."""
    state = {key: value for key, value in swin_state.items() if not key.startswith("norm")}
    state |= {"norm.weight": torch.ones(768), "norm.bias": torch.ones(768), "head.weight": torch.zeros(1000, 768)}
    return {"model": state | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)} | change}


def test_official_swin(tmp_path: Path, swin_state: dict[str, Tensor]) -> None:
    content = official_swin(swin_state)
    torch.save(content, tmp_path / "swin.pth")
    model = SparseDetr(SWIN)
    report = load_backbone(model, tmp_path / "swin.pth")
    assert report.prefix == "model/"
    assert report.ignored == ("head.weight", "layers.0.blocks.1.attn_mask", "norm.bias", "norm.weight")
    assert report.fresh == tuple(f"norm{i}.{leaf}" for i in (1, 2, 3) for leaf in ("bias", "weight"))
    assert_holds(model, {key: content["model"][key] for key in report.loaded})
    assert len(report.loaded) == len(content["model"]) - 4
    assert model.backbone.get_parameter("norm2.weight").eq(1).all()


def test_swin_of_another_window_or_depth(tmp_path: Path, swin_state: dict[str, Tensor]) -> None:
    model = SparseDetr(SWIN)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    name = "layers.1.blocks.0.attn.relative_position_index"
    torch.save(official_swin(swin_state, **{name: swin_state[name].flip(0)}), tmp_path / "index.pth")
    with pytest.raises(CheckpointError, match=r"index.pth: layers.1.blocks.0.attn.relative_position_index numbers"):
        load_backbone(model, tmp_path / "index.pth")
    torch.save(official_swin(swin_state, **{"layers.2.blocks.6.norm1.bias": torch.ones(384)}), tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match=r"layers.2.blocks has 7 blocks, that of swin_tiny has 6"):
        load_backbone(model, tmp_path / "small.pth")
    assert_holds(model, before)


def test_resnet101_takes_no_weights_of_resnet50(tmp_path: Path) -> None:
    state = random_state(replace(CONFIG, backbone=BackboneConfig(name="resnet50")))
    safetensors.torch.save_file(state, tmp_path / "r50.safetensors")
    with pytest.raises(CheckpointError, match=r"r50.safetensors: layer3 has 6 blocks, that of resnet101 has 23"):
        load_backbone(
            SparseDetr(replace(CONFIG, backbone=BackboneConfig(name="resnet101"))), tmp_path / "r50.safetensors"
        )


# Addresses


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_files_that_are_none(tmp_path: Path) -> None:
    model = SparseDetr(TINY)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": random_state(TINY), "hook": Attack(tmp_path / "hacked")}, path)
    with pytest.raises(CheckpointError, match=r"refused, it asks to run code .*give a .pth or safetensors file"):
        load_backbone(model, path)
    assert not (tmp_path / "hacked").exists()
    torch.save(random_state(TINY), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"weights.pth: cannot be read as a PyTorch checkpoint"):
        load_backbone(model, path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"weights.pth: holds no tensors by name"):
        load_backbone(model, path)
    for content in (b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"weights.pth: "):
            load_backbone(model, path)


def test_from_every_kind_of_address(tmp_path: Path, store: Location, web: Any) -> None:
    state = random_state(TINY)
    path = tmp_path / "r18.pth"
    torch.save(state, path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    store.child("r18.pth").write_bytes(content)
    web.files["/r18.pth"] = content
    web.files[f"/r18-{digest[:8]}.pth"] = content
    addresses = [path, str(path), f"file:{path}", store.child("r18.pth").uri, web.url("/r18.pth")]
    for address in [*(f"{address}#sha256={digest}" for address in addresses), web.url(f"/r18-{digest[:8]}.pth")]:
        model = SparseDetr(TINY)
        load_backbone(model, address)
        assert_holds(model, state)
    for address in addresses[1:]:
        with pytest.raises(StorageError, match=f"sha256 is {digest}, not 0123456789 as asked"):
            load_backbone(model, f"{address}#sha256=0123456789")
