"""Growth of the encoder's cost with the image: DETR, Deformable DETR and Sparse DETR (Sparse DETR, section 3.1).

With T tokens of C channels, of which a layer updates K and reads S samples each:

    DETR         T C^2 + T^2 C          every token looks at every token
    Deformable   T C^2 + T S C          every token looks at S places
    Sparse       T C^2 + K C^2 + K S C  K tokens do; the first term is one projection of all
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipelines.bench.model.encoder_run import EncoderRun, run_encoder_layer
from sparse_detr.cost.model import model_cost
from sparse_detr.model.config import ModelConfig

LIMIT_BYTES = 4 * 2**30
"""Limit of a layer in the measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An encoder whose growth is looked at."""

    config: ModelConfig
    measured_sides: tuple[int, ...]
    """Sides of square images, pixels."""
    keeps_map: bool = False
    """Whether the attention of all pairs of tokens is held, as in DETR's code; torch's fused kernel holds none."""


def kinds() -> Mapping[str, Kind]:
    """The encoders, by name: the paper's ResNet-50 models."""
    sparse = ModelConfig()
    dense = replace(sparse, keep_ratio=1.0, encoder_auxiliary_loss=False)
    levels = replace(dense, attention="full", query_source="learned", box_refinement=False, shared_heads=True)
    detr = replace(levels, levels=1, queries=100, feedforward_channels=2048)
    return {
        "DETR, stride 32": Kind(config=detr, measured_sides=(512, 1024, 2048, 3072), keeps_map=True),
        "DETR, stride 32, fused attention": Kind(config=detr, measured_sides=(2048, 3072)),
        "DETR, four levels": Kind(config=levels, measured_sides=(256, 512, 800), keeps_map=True),
        "Deformable DETR": Kind(config=dense, measured_sides=(256, 512, 1024, 2048)),
        "Sparse DETR, keep ratio 0.1": Kind(config=sparse, measured_sides=(256, 512, 1024, 2048)),
    }


def layer_operations(config: ModelConfig, side: int) -> int:
    """Operations of one encoder layer on a square image, by the formula."""
    return model_cost(replace(config, encoder_layers=1), side, side).parts["encoder"].total


def attention_map_bytes(config: ModelConfig, tokens: int) -> int:
    """Memory of full attention's map for one image in float32: M x T x T numbers."""
    return 4 * config.heads * tokens**2


def measure(known: Mapping[str, Mapping[int, EncoderRun]]) -> dict[str, dict[int, EncoderRun]]:
    """Run one layer of every kind at its sides, each in its own process, but for the runs that are known."""

    def run(name: str, side: int) -> EncoderRun:
        kind, found = kinds()[name], known.get(name, {}).get(side)
        return found or run_encoder_layer(kind.config, side, limit_bytes=LIMIT_BYTES, keep_map=kind.keeps_map)

    return {name: {side: run(name, side) for side in kind.measured_sides} for name, kind in kinds().items()}


def table(measured: Mapping[str, Mapping[int, EncoderRun]]) -> str:
    """Formula and measurement in Markdown."""
    rows = ["| encoder layer | side | tokens | 10^9 operations | attention map | peak memory | processor time |"]
    rows.append("|---|---|---|---|---|---|---|")
    for name, kind in kinds().items():
        for side, run in measured[name].items():
            whole = attention_map_bytes(kind.config, run.tokens)
            cells = (name, side, run.tokens, f"{layer_operations(kind.config, side) / 1e9:.2f}",
                     _memory(whole) if kind.keeps_map else "none", *_outcome(run))  # fmt: skip
            rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(rows)


def _outcome(run: EncoderRun) -> tuple[str, str]:
    if run.peak_bytes is None or run.seconds is None:
        return f"**out of memory** ({_memory(LIMIT_BYTES)})", "-"
    return _memory(run.peak_bytes), f"{run.seconds:.2f} s"


def _memory(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.0f} MiB"
