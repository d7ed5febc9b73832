"""All losses of one forward pass (paper section 3), with the authors' names and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparse_detr.decoder_attention import attention_share, decoder_attention_map
from sparse_detr.losses.box_regression import box_losses
from sparse_detr.losses.classification import class_error, classification_loss
from sparse_detr.losses.config import LossConfig
from sparse_detr.losses.matcher import match
from sparse_detr.losses.token_scoring import dam_target, token_scoring_loss
from sparse_detr.records import Output, Predictions, Shapes, Targets, TokenSelection


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReport:
    """Losses and metrics of one batch. Only `total` carries the graph."""

    total: Tensor
    """Weighted sum of all terms: call `backward` on it."""
    terms: dict[str, Tensor]
    """Unweighted terms: `loss_ce`, `loss_bbox`, `loss_giou` of the last decoder layer; `_0`, `_1`, ... of the
    decoder layers before; `_enc` of the proposals; `_enc_0`, ... of the encoder layers; `_backbone` of the objectness
    head; `loss_mask_prediction` of the scoring network."""
    metrics: dict[str, Tensor]
    """For the log: `class_error` (per cent) and, in sparse mode, `corr_mask_attn_map_dec_all` and `_0`, `_1`, ...:
    the share of the decoder's attention on kept tokens, over all levels and for each. NaN where a level got none."""


class Criterion:
    """Losses of an output against its targets.

    Every set of predictions is matched on its own and gets the same three losses. The authors' `cardinality_error`
    is left out: it asks for a background class that sigmoid heads do not have.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config

    def __call__(
        self, output: Output, targets: Sequence[Targets], num_boxes: float | None = None, *, checked: bool = True
    ) -> LossReport:
        """Compute all losses in float32, also under autocast; in float64 where the predictions are.

        Images and whole batches without objects are fine: every prediction then is background.

        Args:
            num_boxes: divisor of the detection losses; by default the objects of the batch, at least 1.
            checked: whether numbers that are not finite are refused; otherwise they are in the terms too.

        Raises:
            NotFiniteError: predictions are NaN or infinite.
            ConfigError: a label is no class of the model.
        """
        if num_boxes is None:
            num_boxes = float(max(count_boxes(targets), 1))
        with torch.autocast(output.logits.device.type, enabled=False):
            sets = prediction_sets(output)
            agnostic = {"_enc": sets.pop("_enc")} if output.class_agnostic_proposals and "_enc" in sets else {}
            total, terms, error = self._detection(sets, targets, num_boxes, checked)
            metrics = {"class_error": error}
            if agnostic:
                anything = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
                proposals, proposal_terms, _ = self._detection(agnostic, anything, num_boxes, checked)
                total, terms = total + proposals, terms | proposal_terms
            if output.selection is not None and output.decoder_attention is not None:
                dam = decoder_attention_map(output.decoder_attention, output.shapes)
                metrics |= _overlap(dam, output.selection, output.shapes)
                if output.objectness is None:  # which is trained by its own detections
                    scoring = _token_scoring(dam, output.selection, output.token_padding)
                    total = total + self.config.token_scoring_weight * scoring
                    terms["loss_mask_prediction"] = scoring.detach()
        return LossReport(total=total, terms=terms, metrics=metrics)

    def _detection(
        self, sets: dict[str, Predictions], targets: Sequence[Targets], num_boxes: float, checked: bool
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        config = self.config
        sizes = tuple(predictions.logits.shape[1] for predictions in sets.values())
        logits = torch.cat([_exact(predictions.logits) for predictions in sets.values()], dim=1)
        boxes = torch.cat([_exact(predictions.boxes) for predictions in sets.values()], dim=1)
        labels = torch.cat([target.labels for target in targets])
        target_boxes = torch.cat([target.boxes.to(boxes.dtype) for target in targets])
        matching = match(logits, boxes, targets, sizes, config, checked=checked)
        distance, giou = box_losses(boxes, matching, target_boxes)
        losses = {
            "loss_ce": classification_loss(logits, matching, labels, sizes, config) / num_boxes,
            "loss_bbox": distance / num_boxes,
            "loss_giou": giou / num_boxes,
        }
        weights = (config.class_weight, config.box_weight, config.giou_weight)
        weighted = sum(weight * loss for weight, loss in zip(weights, losses.values(), strict=True))
        scale = [config.encoder_auxiliary_weight if suffix.startswith("_enc_") else 1.0 for suffix in sets]
        total = (weighted * logits.new_tensor(scale)).sum()
        terms = {
            name + suffix: term
            for name, loss in losses.items()
            for suffix, term in zip(sets, loss.detach().unbind(), strict=True)
        }
        return total, terms, class_error(logits, matching, labels)


def _overlap(dam: Tensor, selection: TokenSelection, shapes: Shapes) -> dict[str, Tensor]:
    shares = attention_share(dam, selection.kept, shapes).mean(0)
    names = ("all", *map(str, range(len(shapes))))
    return {f"corr_mask_attn_map_dec_{name}": share for name, share in zip(names, shares, strict=True)}


def _token_scoring(dam: Tensor, selection: TokenSelection, padding: Tensor) -> Tensor:
    target = dam_target(dam, padding, selection.counts, selection.kept.shape[1])
    saliency = _exact(selection.saliency)
    return token_scoring_loss(saliency, target.to(saliency.dtype))


def _exact(values: Tensor) -> Tensor:
    """At least in float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def prediction_sets(output: Output) -> dict[str, Predictions]:
    """Every set of predictions by the suffix of its loss names; the last decoder layer's, with suffix "", first."""
    sets = {"": Predictions(logits=output.logits, boxes=output.boxes)}
    sets |= {f"_{layer}": predictions for layer, predictions in enumerate(output.decoder_auxiliary)}
    if output.proposals is not None:
        sets["_enc"] = output.proposals
    if output.objectness is not None:
        sets["_backbone"] = output.objectness
    return sets | {f"_enc_{layer}": predictions for layer, predictions in enumerate(output.encoder_auxiliary)}


def mean_report(reports: Sequence[LossReport]) -> LossReport:
    """Mean total and terms of batches of equal size, without graph and metrics."""
    terms = {name: torch.stack([report.terms[name] for report in reports]).mean(0) for name in reports[0].terms}
    total = torch.stack([report.total.detach() for report in reports]).mean(0)
    return LossReport(total=total, terms=terms, metrics={})


def count_boxes(targets: Sequence[Targets]) -> int:
    """Objects of the batch."""
    return sum(len(target.labels) for target in targets)
