"""The authors' checkpoints, read and written."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from sparse_detr import BackboneConfig, ImageBatch, ModelConfig, SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError, StorageError
from sparse_detr.weights.authors.coco_classes import coco_91_classes
from sparse_detr.weights.authors.config import Hints
from sparse_detr.weights.authors.convert import convert_original, original_file, to_original
from sparse_detr.weights.authors.names import original_name
from sparse_detr.weights.model_folder import save_model

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
    scoring_mean="all",
)
DENSE = replace(CONFIG, encoder_auxiliary_loss=False, keep_ratio=1.0)
LEARNED = replace(DENSE, query_source="learned", queries=11, box_refinement=False, shared_heads=True)
TWO_STAGE = replace(DENSE, query_content="proposal", proposal_score="class_agnostic")
FAMILY = {
    "plain": LEARNED,
    "--with_box_refine": replace(LEARNED, shared_heads=False),
    "--two_stage": replace(TWO_STAGE, shared_heads=True),
    "--with_box_refine --two_stage": TWO_STAGE,
    "efficient": DENSE,
    "efficient, shared head": replace(DENSE, shared_heads=True),
    "sparse, own query content": replace(TWO_STAGE, keep_ratio=0.3, encoder_auxiliary_loss=True),
    "sparse without auxiliary loss": replace(DENSE, keep_ratio=0.3),
    "dense with auxiliary loss": replace(DENSE, encoder_auxiliary_loss=True),
    "12 encoder layers": replace(CONFIG, encoder_layers=12),
    "resnet101": replace(CONFIG, backbone=BackboneConfig(name="resnet101")),
    "swin": replace(CONFIG, backbone=BackboneConfig(name="swin_tiny", drop_path=0.2)),
}


def original_state(model: SparseDetr) -> dict[str, Tensor]:
    """As the authors would save it: with heads under encoder and decoder too, and counters of batches."""
    config = model.config
    state = {original_name(name, config): tensor for name, tensor in model.state_dict().items()}
    two_stage = config.query_source == "top_k"
    for key in list(state):
        if key.startswith(("class_embed.", "bbox_embed.")):
            kind, index, rest = key.split(".", 2)
            numbers = [int(index)]
            if config.shared_heads:
                numbers = list(range(config.decoder_layers + two_stage))
            for number in numbers:
                state[f"{kind}.{number}.{rest}"] = state[key]
                if two_stage:
                    state[f"transformer.decoder.{kind}.{number}.{rest}"] = state[key]
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


@pytest.mark.parametrize("name", FAMILY)
def test_every_member_comes_back_from_the_authors_keys(name: str) -> None:
    config = FAMILY[name]
    model = SparseDetr(config).eval()
    state = original_state(model)
    found, report = convert_original(SparseDetr, state, config.keep_ratio)
    assert found.config == report.config == config
    assert torch.equal(detect(found), detect(model))
    assert report.ignored == ("backbone.0.body.bn1.num_batches_tracked",)
    assert set(report.mapped) | set(report.aliases) | set(report.ignored) == set(state)
    back = to_original(found)
    assert set(back) == set(state) - set(report.ignored)
    assert all(torch.equal(back[key], state[key]) for key in back)


def test_number_of_keys_of_a_head_that_serves_all() -> None:
    back = to_original(SparseDetr(FAMILY["--two_stage"]))
    names = [key for key in back if "class_embed" in key and key.endswith("bias")]
    # Decoder layers 0 and 1 and the proposals, at the top and once more in the decoder.
    top = [f"class_embed.{number}.bias" for number in range(3)]
    assert sorted(names) == [*top, *(f"transformer.decoder.{name}" for name in top)]
    assert back["transformer.decoder.class_embed.1.bias"].data_ptr() == back["class_embed.0.bias"].data_ptr()


def test_keys_of_distributed_training(model: SparseDetr, state: dict[str, Tensor]) -> None:
    assert torch.equal(
        detect(SparseDetr.from_original({f"module.{k}": v for k, v in state.items()}, 0.3)), detect(model)
    )


def test_state_dict_without_canonical_names_of_heads(model: SparseDetr, state: dict[str, Tensor]) -> None:
    only = {k: v for k, v in state.items() if not k.startswith(("class_embed.", "bbox_embed."))}
    assert torch.equal(detect(SparseDetr.from_original(only, 0.3)), detect(model))


def test_a_model_of_91_labels_knows_the_classes_of_coco(model: SparseDetr) -> None:
    coco = SparseDetr.from_original(original_state(SparseDetr(replace(LEARNED, num_classes=91))))
    assert coco.classes == coco_91_classes()
    assert SparseDetr.from_original(original_state(model), 0.3).classes is None


# What no tensor shows


def test_heads_that_hold_equal_numbers() -> None:
    state = original_state(SparseDetr(LEARNED))
    shared, report = convert_original(SparseDetr, state)
    assert shared.config.shared_heads
    assert "with_box_refine: False, as all heads hold equal numbers" in report.assumed
    separate = SparseDetr.from_original(state, hints=Hints(shared_heads=False))
    assert separate.config == replace(LEARNED, shared_heads=False)
    assert torch.equal(detect(separate), detect(shared))
    assert set(to_original(separate)) == set(to_original(shared))
    different = state | {"class_embed.1.bias": torch.ones(5)}
    assert not SparseDetr.from_original(different).config.shared_heads
    with pytest.raises(ConfigError, match=r"shared_heads: True, but class_embed.1.bias differs"):
        SparseDetr.from_original(different, hints=Hints(shared_heads=True))


def test_what_is_usual_of_proposals_follows_their_content() -> None:
    state = original_state(SparseDetr(DENSE))
    assumed = convert_original(SparseDetr, state)[1].assumed
    assert assumed == ("nheads: 8", "num_queries: 300", "eff_specific_head: True", "dropout: 0.1")
    agnostic = SparseDetr.from_original(state, hints=Hints(proposal_score="class_agnostic", heads=4, queries=50)).config
    assert agnostic == replace(DENSE, proposal_score="class_agnostic", heads=4, points=4, queries=50)


def save(path: Path, state: dict[str, Tensor], **arguments: object) -> Path:
    torch.save({"model": OrderedDict(state), "args": argparse.Namespace(**arguments), "epoch": 49}, path)
    return path


def test_file_with_the_authors_arguments(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save(tmp_path / "model.pth", state, rho=0.3, nheads=4, num_queries=40, dropout=0.0, eff_specific_head=False,
                with_box_refine=True, finetune_early_layers=True, device="cuda")  # fmt: skip
    found, report = convert_original(SparseDetr, path)
    assert report.assumed == ()
    assert found.config == replace(
        CONFIG, heads=4, points=4, queries=40, dropout=0.0, proposal_score="class_agnostic",
        backbone=BackboneConfig(name="resnet18", frozen_stages=0),
    )  # fmt: skip
    assert SparseDetr.from_original(str(path), 0.5).config.keep_ratio == 0.5
    assert SparseDetr.from_original(path, hints=Hints(heads=8)).config.heads == 8
    assert SparseDetr.from_original(torch.load(path, weights_only=False)).config == found.config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nheads": "8"}, "args.nheads: '8' is no int"),
        ({"nheads": 7.5}, "args.nheads: 7.5 is no int"),
        ({"dropout": True}, "args.dropout: True is no float"),
        ({"eff_specific_head": 2}, "args.eff_specific_head: 2 is no bool"),
        ({"nheads": 0}, "heads: 0; transformer.encoder.layers.0.self_attn.attention_weights.bias has 48"),
        ({"nheads": 5}, "heads: 5; .* which 5 heads and 3 levels do not divide"),
        ({"dilation": True}, "args.dilation: True"),
        ({"rho": "much"}, r"args.rho: 'much' in the checkpoint is no number in \(0, 1\).*; keep_ratio wins over it"),
        ({"rho": 1.0}, r"args.rho: 1.0 in the checkpoint is no number in \(0, 1\)"),
    ],
)
def test_arguments_that_cannot_be(
    tmp_path: Path, state: dict[str, Tensor], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=message):
        SparseDetr.from_original(save(tmp_path / "model.pth", state, **({"rho": 0.3} | arguments)))


def test_arguments_that_contradict_the_heads(tmp_path: Path) -> None:
    state = original_state(SparseDetr(replace(LEARNED, shared_heads=False)))
    assert not SparseDetr.from_original(save(tmp_path / "a.pth", state, with_box_refine=True)).config.shared_heads
    with pytest.raises(CheckpointError, match=r"_embed.1.\S+: differs from the head of number 0.* contradicts itself"):
        SparseDetr.from_original(save(tmp_path / "b.pth", state, with_box_refine=False))


# Files


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("place", ["args", "model", "inside", "plain"])
def test_pickle_with_code_is_refused(tmp_path: Path, state: dict[str, Tensor], place: str) -> None:
    path, target = tmp_path / "model.pth", tmp_path / "hacked"
    attack = Attack(target)
    if place == "plain":
        path.write_bytes(pickle.dumps(attack, protocol=2))
    elif place == "inside":
        torch.save({"model": state, "args": argparse.Namespace(rho=0.3, device=attack)}, path)
    else:
        torch.save({"model": state, "args": argparse.Namespace(rho=0.3)} | {place: attack}, path)
    with pytest.raises(CheckpointError) as caught:
        SparseDetr.from_original(path, 0.3)
    assert str(caught.value) == (
        f"{path}: refused, it asks to run code while it is read ({os.mkdir.__module__}.mkdir); give a .pth file of the "
        "Sparse DETR authors' code, of tensors and plain values"
    )
    assert not target.exists()
    if place != "plain":
        torch.load(path, weights_only=False)
        assert target.is_dir(), "the file was harmless, so nothing was tested"


def test_damaged_files(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "model.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"model.pth: cannot be read as a PyTorch checkpoint"):
        SparseDetr.from_original(path, 0.3)
    path.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"model.pth: refused, it is no PyTorch file; give a .pth file of the"):
        SparseDetr.from_original(path, 0.3)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model.pth"):
        SparseDetr.from_original(path, 0.3)
    for content in ([1, 2], {}, {"model": {"a": 1}}):
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"model.pth: holds no state_dict"):
            SparseDetr.from_original(path, 0.3)


@pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit)")
def test_what_torch_refuses_is_told_without_its_advice(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": state, "args": argparse.Namespace(rho=0.3, output=Path("runs"))}, path)
    with pytest.raises(CheckpointError, match=r"asks to run code while it is read \(pathlib\.\w+\); give") as caught:
        SparseDetr.from_original(path)
    assert "torch.load" not in str(caught.value)
    path.write_bytes(b"\x80\x02\x95")  # an operand that torch does not know, so nothing says that it is code
    with pytest.raises(CheckpointError, match=r"cannot be read as a PyTorch checkpoint \(Unsupported operand 149\); f"):
        SparseDetr.from_original(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match=r"model.pth: refused, it is a TorchScript program; give a .pth file"):
        SparseDetr.from_original(path)


def test_safetensors_are_not_offered_and_our_own_are_known(tmp_path: Path) -> None:
    model = SparseDetr(CONFIG)
    save_model(tmp_path / "ours", model)
    for source in (tmp_path / "ours" / "model.safetensors", str(tmp_path / "ours" / "model.safetensors")):
        with pytest.raises(CheckpointError, match=rf"of a model folder of ours; give the folder, {tmp_path}/ours$"):
            SparseDetr.from_original(source)
    safetensors.torch.save_file({"weight": torch.zeros(3)}, tmp_path / "alone.safetensors")
    with pytest.raises(CheckpointError, match=r"alone.safetensors: refused, it is no PyTorch file; give a .pth file"):
        SparseDetr.from_original(tmp_path / "alone.safetensors")


def test_checksum_of_a_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = save(tmp_path / "model.pth", state, rho=0.3)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert SparseDetr.from_original(f"{path}#sha256={digest}").config.keep_ratio == 0.3
    with pytest.raises(StorageError, match=rf"its sha256 is {digest}, not 00000000"):
        SparseDetr.from_original(f"{path}#sha256=00000000")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("transformer.enc_output_norm.weight"), "missing keys: transformer.enc_output_norm.weight"),
        (lambda s: s.pop("transformer.enc_output.weight"), "missing keys: transformer.enc_output.weight"),
        (lambda s: s.pop("transformer.enc_mask_predictor.layer1.0.bias"), "missing keys: .*layer1.0.bias"),
        (lambda s: s.update({"surprise": torch.zeros(1)}), "unknown keys: surprise"),
        (lambda s: s.update({"class_embed.9.bias": torch.zeros(5)}), "unknown keys: class_embed.9.bias"),
        (
            lambda s: s.update({"input_proj.1.0.bias": torch.zeros(3)}),
            r"misshapen: input_proj.1.0.bias is \(3,\), .* wants \(64,\)",
        ),
        (lambda s: s.pop("transformer.level_embed"), "transformer.level_embed: missing"),
        (lambda s: s.update({"transformer.level_embed": torch.zeros(3)}), r"level_embed: misshapen, \(3,\)"),
        (lambda s: s.update({"transformer.decoder.class_embed.0.bias": torch.ones(5)}), "contradicts itself"),
        (lambda s: s.update({"transformer.encoder.class_embed.0.bias": torch.ones(5)}), "contradicts itself"),
        (lambda s: s.update({"transformer.pos_trans.weight": torch.zeros(9, 128)}), "pos_trans.weight: 9 rows"),
        (lambda s: s.update({"backbone.0.body.patch_embed.proj.bias": torch.zeros(1)}), r"layers: \(0, 0, 0, 0\)"),
        (lambda s: s.update({"backbone.0.body.layer3.2.conv1.weight": torch.zeros(1)}), "layer3: 3 basic blocks"),
    ],
)
def test_foreign_state_dicts(state: dict[str, Tensor], change: Callable[[Any], Any], message: str) -> None:
    change(state)
    with pytest.raises(CheckpointError, match=message):
        SparseDetr.from_original(state, 0.3)


def test_keep_ratio_must_go_with_the_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match="keep_ratio: None; the checkpoint has a scoring network and does not say"):
        SparseDetr.from_original(state)
    with pytest.raises(ConfigError, match=r"keep_ratio: 1.0; .* it is sparse \(args.rho: None\), give .* in \(0, 1\)"):
        SparseDetr.from_original(state, 1.0)
    with pytest.raises(ConfigError, match=r"keep_ratio: 1.0; .* it is sparse \(args.rho: 0.3\), give .* in \(0, 1\)"):
        SparseDetr.from_original(save(tmp_path / "model.pth", state, rho=0.3), 1.0)
    dense = {key: value for key, value in state.items() if "enc_mask_predictor" not in key}
    assert SparseDetr.from_original(dense).config.keep_ratio == 1.0
    with pytest.raises(ConfigError, match=r"keep_ratio: 0.1, but the checkpoint is dense"):
        SparseDetr.from_original(dense, 0.1)


# Back


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(CONFIG, scoring_mean="valid"), "scoring_mean: 'valid'; .*ignore_scoring_mean"),
        (replace(CONFIG, token_criterion="objectness"), "token_criterion: 'objectness'"),
        (replace(DENSE, box_refinement=False), "box_refinement: False"),
        (replace(LEARNED, box_refinement=True), "box_refinement: True"),
        (replace(LEARNED, attention="full", levels=1), "attention: 'full'"),
        (replace(CONFIG, backbone=BackboneConfig(name="resnet_tiny")), "backbone.name: 'resnet_tiny'"),
        (replace(CONFIG, backbone=BackboneConfig(name="resnet18", norm="group_norm")), "backbone.norm: 'group_norm'"),
    ],
)
def test_models_that_the_authors_code_cannot_hold(config: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_original(SparseDetr(config))


def test_scoring_mean_can_be_ignored(model: SparseDetr) -> None:
    valid = SparseDetr(replace(CONFIG, scoring_mean="valid"))
    valid.load_state_dict(model.state_dict())
    state = to_original(valid, ignore_scoring_mean=True)
    # Without padding both means are the same.
    assert torch.equal(detect(SparseDetr.from_original(state, 0.3)), detect(model))
    assert to_original(SparseDetr(replace(DENSE, scoring_mean="valid"))), "a dense model has no scoring network"


@pytest.mark.parametrize("name", ["plain", "--two_stage", "sparse, own query content"])
def test_written_file_needs_no_hint(name: str, tmp_path: Path) -> None:
    config = replace(FAMILY[name], heads=4, points=3, queries=17, dropout=0.2)
    model = SparseDetr(config).eval()
    (tmp_path / "model.pth").write_bytes(original_file(model))
    found, report = convert_original(SparseDetr, tmp_path / "model.pth")
    assert found.config == config
    assert report.assumed == ()
    assert torch.equal(detect(found), detect(model))


def test_file_has_each_tensor_once_and_the_authors_way_to_read_it(model: SparseDetr) -> None:
    content = original_file(model)
    numbers = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    assert len(content) < 1.2 * numbers
    read = torch.load(io.BytesIO(content), weights_only=True)
    assert read["model"].keys() == to_original(model).keys()
    assert read["args"]["rho"] == 0.3
    assert read["args"]["with_box_refine"] is read["args"]["use_enc_aux_loss"] is True
