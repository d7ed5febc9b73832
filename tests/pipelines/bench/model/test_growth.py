"""Growth with the image: the paper's three complexities."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.bench.model import growth
from pipelines.bench.model.encoder_run import EncoderRun
from pipelines.bench.model.growth import attention_map_bytes, kinds, layer_operations, measure, table
from pipelines.bench.model.growth_plot import draw
from sparse_detr.model.config import ModelConfig

LINEAR = ["Deformable DETR", "Sparse DETR, keep ratio 0.1"]
SQUARE = ["DETR, stride 32", "DETR, stride 32, fused attention", "DETR, four levels"]


@pytest.mark.parametrize("name", [*LINEAR, *SQUARE])
def test_order_of_growth(name: str) -> None:
    """Twice the side is four times the tokens; at large sides the leading term is what counts."""
    config = kinds()[name].config
    ratio = layer_operations(config, 65536) / layer_operations(config, 32768)
    assert ratio == pytest.approx(4 if name in LINEAR else 16, rel=0.01)


def test_operations_of_a_layer_worked_out_by_hand() -> None:
    """256 tokens of stride 32 for 512 pixels: C = 256, feed-forward 2048, two norms at 5."""
    tokens, channels = 256, 256
    expected = tokens * (4 * channels**2 + 2 * channels * 2048 + 2 * 5 * channels) + 2 * tokens**2 * channels
    assert layer_operations(kinds()["DETR, stride 32"].config, 512) == expected


def test_attention_map_of_four_levels_at_800_pixels() -> None:
    tokens = 100**2 + 50**2 + 25**2 + 13**2
    assert attention_map_bytes(kinds()["DETR, four levels"].config, tokens) == 4 * 8 * tokens**2


def test_table_and_picture_show_what_ran_and_what_did_not(tmp_path: Path) -> None:
    runs = {
        name: {
            side: EncoderRun(seconds=None, peak_bytes=None, tokens=9216)
            if name == "DETR, stride 32" and side == 3072
            else EncoderRun(seconds=1.5, peak_bytes=3 * 2**20, tokens=256)
            for side in kind.measured_sides
        }
        for name, kind in kinds().items()
    }
    lines = table(runs).splitlines()
    assert "| DETR, stride 32 | 512 | 256 | 0.37 | 2 MiB | 3 MiB | 1.50 s |" in lines
    assert "| DETR, stride 32 | 3072 | 9216 | 55.59 | 2.53 GiB | **out of memory** (4.00 GiB) | - |" in lines
    assert "| DETR, stride 32, fused attention | 2048 | 256 | 13.97 | none | 3 MiB | 1.50 s |" in lines
    draw(runs, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_only_what_is_not_known_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """And full attention holds its map but for the fused kind."""
    full: list[tuple[int, int, bool]] = []

    def run(config: ModelConfig, side: int, *, limit_bytes: int, keep_map: bool) -> EncoderRun:
        assert limit_bytes == 4 * 2**30
        if config.attention == "full":
            full.append((config.levels, side, keep_map))
        return EncoderRun(seconds=2.0, peak_bytes=1, tokens=1)

    monkeypatch.setattr(growth, "run_encoder_layer", run)
    # A run that is known not to fit is not tried again.
    known = {"DETR, stride 32": {3072: EncoderRun(seconds=None, peak_bytes=None, tokens=9216)}}
    measured = measure(known)
    assert {name: tuple(runs) for name, runs in measured.items()} == {
        name: kind.measured_sides for name, kind in kinds().items()
    }
    assert not measured["DETR, stride 32"][3072].fits
    single, fused = [(1, side, True) for side in (512, 1024, 2048)], [(1, 2048, False), (1, 3072, False)]
    assert full == single + fused + [(4, side, True) for side in (256, 512, 800)]
