"""The three members whose outputs are not recorded, against the transformer and the losses written once more.

`Reference` follows algorithm.md, sections 4 to 12, in float64 and by the authors' keys, and shares no code with the
model: it starts from the projected features, which the recorded members (and, for Swin, the `transformers` package)
hold to the authors' numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from sparse_detr import Output, SparseDetr, Targets
from sparse_detr.decoder_attention import decoder_attention_map
from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.criterion import Criterion, LossReport
from sparse_detr.losses.token_scoring import dam_target
from sparse_detr.weights.authors.names import canonical, original_name

pytestmark = pytest.mark.slow

RATIOS = {"r50_deformable_two_stage": None, "r50_sparse_rho0.3": 0.3, "swint_sparse_rho0.1": 0.1}
CASES = ("AB", "B")
Pair = tuple[Tensor, Tensor]


class Reference:
    """Forward of one batch; `results` holds (logits, boxes) by the suffix of their losses."""

    def __init__(self, recording: Any, pyramid: Any, ratio: float | None) -> None:
        aliases = recording.keys["aliases"]
        self.weights = {
            key: value.double().requires_grad_() for key, value in recording.state.items() if key not in aliases
        }
        self.shapes, self.padding = pyramid.shapes, pyramid.padding
        self.ratios = pyramid.valid_ratios.double()
        self.results: dict[str, Pair] = {}
        self.saliency: Tensor | None = None
        self.kept: Tensor | None = None
        self.run(pyramid.tokens.detach().double(), pyramid.position.detach().double(), ratio)

    def run(self, source: Tensor, position: Tensor, ratio: float | None) -> None:
        proposals, usable = self.proposals()
        if ratio is not None:
            embedded = self.embed(source + position, usable)
            self.saliency = self.score(embedded)
            counts = ((~self.padding).sum(1).float() * ratio).int() + 1
            self.kept = self.saliency.topk(int(counts.max()), 1).indices
        memory = self.encode(source, position, proposals, None if ratio is None else counts.tolist())
        self.decode(memory, proposals, usable)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        return centred * scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def head(self, number: int, x: Tensor, start: Tensor) -> Pair:
        hidden = x
        for layer in range(3):
            hidden = self.linear(hidden, f"bbox_embed.{number}.layers.{layer}")
            hidden = hidden.relu() if layer < 2 else hidden
        return self.linear(x, f"class_embed.{number}"), (hidden + start).sigmoid()

    def proposals(self) -> tuple[Tensor, Tensor]:
        rows = []
        for level, (height, width) in enumerate(self.shapes):
            for y in range(height):
                for x in range(width):
                    valid = (self.ratios[:, level] * torch.tensor([width, height])).round()
                    centre = torch.tensor([x + 0.5, y + 0.5], dtype=torch.float64) / valid
                    rows.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2**level)], 1))
        boxes = torch.stack(rows, 1)
        usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~self.padding
        return torch.where(usable[..., None], (boxes / (1 - boxes)).log(), torch.inf), usable

    def embed(self, x: Tensor, usable: Tensor) -> Tensor:
        return self.norm(self.linear(x * usable[..., None], "transformer.enc_output"), "transformer.enc_output_norm")

    def score(self, x: Tensor) -> Tensor:
        name = "transformer.enc_mask_predictor"
        z = functional.gelu(self.linear(self.norm(x, f"{name}.layer1.0"), f"{name}.layer1.1"))
        z = torch.cat([z[..., :128], z[..., 128:].mean(1, keepdim=True).expand(-1, z.shape[1], -1)], -1)
        z = functional.gelu(self.linear(z, f"{name}.layer2.0"))
        z = self.linear(functional.gelu(self.linear(z, f"{name}.layer2.2")), f"{name}.layer2.4")[..., 0]
        return torch.where(self.padding, z.min(), z)

    def attend(self, query: Tensor, reference: Tensor, memory: Tensor, name: str) -> Tensor:
        batch, count = query.shape[:2]
        value = self.linear(memory, f"{name}.value_proj") * ~self.padding[..., None]
        offsets = self.linear(query, f"{name}.sampling_offsets").view(batch, count, 8, 4, 4, 2)
        weights = self.linear(query, f"{name}.attention_weights").view(batch, count, 8, 16).softmax(-1)
        result, first = 0, 0
        for level, (height, width) in enumerate(self.shapes):
            if reference.shape[-1] == 2:
                scale = 1 / torch.tensor([width, height])
            else:
                scale = reference[:, :, None, None, 2:] * self.ratios[:, None, None, None, level] / 8
            centre = reference[:, :, None, None, :2] * self.ratios[:, None, None, None, level]
            grid = (centre + offsets[:, :, :, level] * scale).transpose(1, 2).flatten(0, 1) * 2 - 1
            part = value[:, first : first + height * width].view(batch, height, width, 8, 32)
            image = part.permute(0, 3, 4, 1, 2).flatten(0, 1)
            sampled = functional.grid_sample(image, grid, align_corners=False)
            share = weights[..., 4 * level : 4 * level + 4].transpose(1, 2).flatten(0, 1)[:, None]
            result = result + (sampled * share).sum(-1).view(batch, 256, count).transpose(1, 2)
            first += height * width
        return self.linear(result, f"{name}.output_proj")

    def feedforward(self, x: Tensor, name: str, norm: str) -> Tensor:
        return self.norm(x + self.linear(self.linear(x, f"{name}.linear1").relu(), f"{name}.linear2"), f"{name}.{norm}")

    def encode(self, source: Tensor, position: Tensor, proposals: Tensor, counts: list[int] | None) -> Tensor:
        rows = [
            torch.stack([(x + 0.5) / (self.ratios[:, level, 0] * w), (y + 0.5) / (self.ratios[:, level, 1] * h)], -1)
            for level, (h, w) in enumerate(self.shapes)
            for y in range(h)
            for x in range(w)
        ]
        everything = torch.arange(source.shape[1]).expand(len(source), -1)
        kept = everything if self.kept is None else self.kept
        pick = lambda x: torch.stack([image[index] for image, index in zip(x, kept, strict=True)])  # noqa: E731
        tokens, place, reference, start = (pick(x) for x in (source, position, torch.stack(rows, 1), proposals))
        memory = source
        for layer in range(6):
            name = f"transformer.encoder.layers.{layer}"
            seen = self.attend(tokens + place, reference, memory, f"{name}.self_attn")
            tokens = self.feedforward(self.norm(tokens + seen, f"{name}.norm1"), name, "norm2")
            images = []
            for image, old in enumerate(memory):
                written = kept[image, : kept.shape[1] if counts is None else counts[image]]
                images.append(old.index_copy(0, written, tokens[image, : len(written)]))
            memory = torch.stack(images)
            if counts is not None and layer < 5:
                self.results[f"_enc_{layer}"] = self.head(7 + layer, tokens, start)
        return memory

    def decode(self, memory: Tensor, proposals: Tensor, usable: Tensor) -> None:
        self.results["_enc"] = logits, boxes = self.head(6, self.embed(memory, usable), proposals)
        efficient = self.weights["transformer.pos_trans.weight"].shape[0] == 256
        self.tokens = (logits.amax(-1) if efficient else logits[..., 0]).topk(300, 1).indices
        image = torch.arange(len(memory))[:, None]
        reference = boxes[image, self.tokens].detach()
        powers = 10000 ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128)
        angles = reference[..., None] * 2 * math.pi / powers
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(2)
        place = self.norm(self.linear(waves, "transformer.pos_trans"), "transformer.pos_trans_norm")
        content = memory[image, self.tokens] if efficient else place[..., 256:]
        place = place[..., :256]
        for layer in range(6):
            name = f"transformer.decoder.layers.{layer}"
            content = self.norm(content + self.mix(content, place, f"{name}.self_attn"), f"{name}.norm2")
            seen = self.attend(content + place, reference, memory, f"{name}.cross_attn")
            content = self.feedforward(self.norm(content + seen, f"{name}.norm1"), name, "norm3")
            low = reference.clamp(1e-5, 1), (1 - reference).clamp(1e-5, 1)
            self.results["" if layer == 5 else f"_{layer}"] = found = self.head(layer, content, (low[0] / low[1]).log())
            reference = found[1].detach()

    def mix(self, content: Tensor, place: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.in_proj_weight"], self.weights[f"{name}.in_proj_bias"]
        sides = (content + place, content + place, content)
        query, key, value = (
            (x @ w.T + b).unflatten(2, (8, 32)).transpose(1, 2)
            for x, w, b in zip(sides, weight.split(256), bias.split(256), strict=True)
        )
        shares = (query @ key.transpose(2, 3) / math.sqrt(32)).softmax(-1)
        return self.linear((shares @ value).transpose(1, 2).flatten(2), f"{name}.out_proj")


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Of N boxes with M boxes, cxcywh."""
    (al, ar), (bl, br) = (((x[:, :2] - x[:, 2:] / 2), (x[:, :2] + x[:, 2:] / 2)) for x in (a, b))
    inner = (torch.minimum(ar[:, None], br) - torch.maximum(al[:, None], bl)).clamp(min=0).prod(-1)
    outer = (torch.maximum(ar[:, None], br) - torch.minimum(al[:, None], bl)).prod(-1)
    union = a[:, 2:].prod(-1)[:, None] + b[:, 2:].prod(-1) - inner
    return inner / union - (outer - union) / outer


def losses(logits: Tensor, boxes: Tensor, targets: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The three losses of one set of predictions."""
    count = sum(len(labels) for labels, _ in targets)
    total = {"loss_ce": logits.new_zeros(()), "loss_bbox": logits.new_zeros(()), "loss_giou": logits.new_zeros(())}
    for x, box, (labels, wanted) in zip(logits, boxes, targets, strict=True):
        p = x.sigmoid()[:, labels]
        kind = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
        cost = 5 * (box[:, None] - wanted).abs().sum(-1) + 2 * kind - 2 * giou(box, wanted)
        found, objects = linear_sum_assignment(cost.detach().numpy())
        truth = torch.zeros_like(x)
        truth[found, labels[objects]] = 1
        p, entropy = x.sigmoid(), functional.binary_cross_entropy_with_logits(x, truth, reduction="none")
        right = p * truth + (1 - p) * (1 - truth)
        total["loss_ce"] += (entropy * (1 - right) ** 2 * (0.25 * truth + 0.75 * (1 - truth))).sum() / count
        total["loss_bbox"] += (box[found] - wanted[objects]).abs().sum() / count
        total["loss_giou"] += (1 - giou(box[found], wanted[objects]).diag()).sum() / count
    return total


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Run:
    """Our forward, losses and gradients, and the reference's."""

    case: str
    """The images of the batch: both, of which one is padded, or one alone."""
    recording: Any
    model: SparseDetr
    output: Output
    report: LossReport
    seen: dict[str, Any]
    reference: Reference
    terms: dict[str, Tensor]


@pytest.fixture(scope="module", params=[(name, case) for name in RATIOS for case in CASES], ids="-".join)
def run(request: pytest.FixtureRequest, recording: Callable[[str], Any]) -> Run:
    name, case = request.param
    found = recording(name)
    model = SparseDetr.from_original(found.state, RATIOS[name])
    seen: dict[str, Any] = {}
    parts = {"backbone": model.backbone, "feature_projection": model.feature_projection}
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        for name, part in parts.items()
    ]
    output = model(found.images(case), with_auxiliary=True)
    for hook in hooks:
        hook.remove()
    report = Criterion(LossConfig())(output, found.targets(case))
    report.total.backward()
    reference = Reference(found, seen["feature_projection"], RATIOS[name])
    terms = reference_terms(found, found.targets(case), reference, output)
    return Run(
        case=case, recording=found, model=model, output=output, report=report, seen=seen,
        reference=reference, terms=terms,
    )  # fmt: skip


def reference_terms(recording: Any, objects: list[Targets], reference: Reference, output: Output) -> dict[str, Tensor]:
    """All losses of the reference, after their gradients went into its weights."""
    targets = [(target.labels, target.boxes.double()) for target in objects]
    anything = [(torch.zeros_like(labels), boxes) for labels, boxes in targets]
    specific = "--eff_specific_head" in recording.keys["flags"]
    terms = {}
    for suffix, pair in reference.results.items():
        found = losses(*pair, targets if specific or suffix != "_enc" else anything)
        terms |= {f"{name}{suffix}": value for name, value in found.items()}
    weights = {"loss_ce": 2, "loss_bbox": 5, "loss_giou": 2}
    total = sum(weights["_".join(name.split("_")[:2])] * value for name, value in terms.items())
    if reference.saliency is not None:
        # How the label is made of the decoder's attention is recorded, and not written again here.
        assert output.decoder_attention is not None
        assert output.selection is not None
        dam = decoder_attention_map(output.decoder_attention, output.shapes)
        label = dam_target(dam, output.token_padding, output.selection.counts, output.selection.kept.shape[1])
        s = reference.saliency
        terms["loss_mask_prediction"] = (s.clamp(min=0) - s * label + (-s.abs()).exp().log1p()).mean()
        total = total + terms["loss_mask_prediction"]
    assert isinstance(total, Tensor)
    total.backward()
    return terms | {"total": total}


def by_token(rows: Tensor, tokens: Tensor) -> Tensor:
    return torch.stack([row[order] for row, order in zip(rows, tokens.argsort(1), strict=True)]).detach().double()


def test_chosen_tokens(run: Run) -> None:
    for ours, theirs in (
        (run.output.query_tokens, run.reference.tokens),
        (run.output.kept_tokens, run.reference.kept),
    ):
        if theirs is not None:
            assert ours is not None
            assert torch.equal(ours.sort(1).values, theirs.sort(1).values)
    if run.reference.saliency is not None:
        assert run.output.selection is not None
        torch.testing.assert_close(
            run.output.selection.saliency.detach().double(), run.reference.saliency.detach(), atol=1e-5, rtol=0
        )


def test_predictions(run: Run) -> None:
    output, tokens = run.output, run.output.query_tokens
    assert tokens is not None
    assert output.proposals is not None
    sets = {"": output, "_enc": output.proposals}
    sets |= {f"_{layer}": found for layer, found in enumerate(output.decoder_auxiliary)}
    sets |= {f"_enc_{layer}": found for layer, found in enumerate(output.encoder_auxiliary)}
    assert set(sets) == set(run.reference.results)
    everything = torch.arange(output.proposals.logits.shape[1]).expand(len(tokens), -1)
    for suffix, found in sets.items():
        logits, boxes = run.reference.results[suffix]
        if suffix == "_enc":
            ours = theirs = everything
        elif suffix.startswith("_enc_"):
            assert output.kept_tokens is not None
            assert run.reference.kept is not None
            ours, theirs = output.kept_tokens, run.reference.kept
        else:
            ours, theirs = tokens, run.reference.tokens
        torch.testing.assert_close(by_token(found.logits, ours), by_token(logits, theirs), atol=1e-4, rtol=0)
        torch.testing.assert_close(by_token(found.boxes, ours), by_token(boxes, theirs), atol=1e-5, rtol=0)


def test_losses(run: Run) -> None:
    assert set(run.report.terms) == set(run.terms) - {"total"}
    for name, value in run.report.terms.items():
        assert value.item() == pytest.approx(run.terms[name].item(), rel=1e-4), name
    assert run.report.total.item() == pytest.approx(run.terms["total"].item(), rel=1e-4)


def test_gradients(run: Run) -> None:
    config = run.model.config
    listed = run.recording.keys["parameters_named_once"]
    trained = {canonical(name, config) for name, trained in listed.items() if trained}
    ours = {original_name(name, config): parameter.grad for name, parameter in run.model.named_parameters()}
    assert {name for name, gradient in ours.items() if gradient is not None} == trained
    compared = 0
    for name, theirs in run.reference.weights.items():
        gradient = ours.get(name)
        if theirs.grad is None or gradient is None:
            continue
        compared += 1
        assert gradient.double().norm().item() == pytest.approx(theirs.grad.norm().item(), rel=1e-3), name
    # All but the backbone, the projections of its maps and the level embedding, from which the reference starts.
    before = {name for name in trained if name.startswith(("backbone", "input_proj")) or name.endswith("level_embed")}
    assert compared == len(trained - before)


@pytest.mark.parametrize("run", [("r50_sparse_rho0.3", case) for case in CASES], ids="-".join, indirect=True)
def test_keep_ratio_30_starts_like_the_recorded_10(run: Run, recording: Callable[[str], Any]) -> None:
    recorded = recording("r50_sparse_rho0.1")
    for level, features in enumerate(run.seen["backbone"]):
        theirs = recorded.array(run.case, f"backbone{level}_sub")
        scale = theirs.abs().max().item()
        torch.testing.assert_close(features[:, ::64, ::5, ::7].detach(), theirs, atol=1e-5 * scale, rtol=0)
    selection, saliency = run.output.selection, recorded.array(run.case, "mask_prediction")
    assert selection is not None
    torch.testing.assert_close(selection.saliency.detach(), saliency, atol=1e-5, rtol=0)
    # Of 1020 tokens, and of 747 for the smaller image, with padding or without: 30% of each, cut off, and one more.
    tokens = (~recorded.array(run.case, "mask_flatten")).sum(1)
    counts = {"A": 307, "B": 225}
    assert selection.counts.tolist() == [int(count * 0.3) + 1 for count in tokens.tolist()]
    assert selection.counts.tolist() == [counts[image] for image in run.case]
    for image, kept in enumerate(selection.kept):
        most = max(selection.counts.tolist())
        assert set(kept.tolist()) == set(saliency[image].topk(most).indices.tolist())
