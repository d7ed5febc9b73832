"""`sparse-detr bench table | trace | growth` print what docs/cost.md shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipelines.bench.model.growth import kinds
from pipelines.cli.main import main

DOCS = (Path(__file__).resolve().parents[4] / "docs" / "cost.md").read_text()


def rows(text: str) -> list[str]:
    """Lines of tables, without the space that aligns them."""
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.lstrip().startswith("|")]


@pytest.mark.parametrize("word", ["table", "trace"])
def test_every_printed_row_stands_in_the_docs(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", word]) == 0
    printed = rows(capsys.readouterr().out)
    assert len(printed) > 5
    assert [row for row in printed if row not in rows(DOCS)] == []


def test_growth_draws_and_prints_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = {"seconds": 1.5, "peak_bytes": 3 << 20, "tokens": 256}
    known = {name: dict.fromkeys(kind.measured_sides, run) for name, kind in kinds().items()}
    (tmp_path / "growth.json").write_text(json.dumps(known))
    words = ["--results", str(tmp_path / "growth.json"), "--plot", str(tmp_path / "growth.png")]
    assert main(["bench", "growth", *words]) == 0
    assert len(rows(capsys.readouterr().out)) == 2 + sum(len(sides) for sides in known.values())
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
