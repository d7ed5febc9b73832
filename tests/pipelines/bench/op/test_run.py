"""The op's benchmark: what is compared, what is written, what is refused. No time is asserted."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.bench.op import run as op
from pipelines.bench.op.clock import WallClock
from pipelines.bench.op.config import OpBenchConfig
from pipelines.bench.op.implementations import (
    GRID_SAMPLE,
    PLAIN,
    TRANSFORMERS,
    Field,
    Implementation,
    Inputs,
    Workload,
    make_inputs,
)
from pipelines.bench.op.measure import Bench, Timing, copies_beyond
from pipelines.bench.op.run import run_bench
from pipelines.bench.op.table import columns, header, line
from sparse_detr.errors import ConfigError
from sparse_detr.ops.native import instruction_set

CPU = torch.device("cpu")
TINY = Workload(
    shapes=((6, 8), (3, 4)), heads=2, channels=16, points=2, queries={"dense": 60, "sparse": 20, "decoder": 7}
)
QUICK = OpBenchConfig(queries=("decoder",), repeats=2)


def quiet(_text: str) -> None:
    """Says nothing."""


def run(config: OpBenchConfig) -> tuple[list[Timing], str]:
    """Rows and what was written, of tiny tensors."""
    written: list[str] = []
    return run_bench(config, written.append, quiet, TINY), "".join(written)


def test_the_json_is_complete_and_its_ratios_are_those_of_its_milliseconds(tmp_path: Path) -> None:
    target = tmp_path / "op.json"
    rows, _ = run(replace(QUICK, queries=("decoder", "sparse"), json=str(target)))
    found = json.loads(target.read_text())
    assert list(tmp_path.iterdir()) == [target]
    assert found["machine"]["torch"] == torch.__version__
    assert found["config"]["types"] == ["float32", "bfloat16"]
    assert found["workload"]["shapes"] == [[6, 8], [3, 4]]
    assert (found["baseline"], len(found["rows"])) == (GRID_SAMPLE, len(rows))
    by_key = {(r["queries"], r["backward"], r["implementation"], r["dtype"], r["threads"]): r for r in found["rows"]}
    assert len(by_key) == len(rows)
    for (queries, backward, name, dtype, threads), row in by_key.items():
        base = by_key[queries, backward, GRID_SAMPLE, "float32", threads]
        assert row["ratio"] == pytest.approx(base["milliseconds"] / row["milliseconds"])
        assert row["fastest_ratio"] == pytest.approx(base["fastest"] / row["fastest"])
        plain = by_key[queries, backward, PLAIN, "float32", threads]
        assert row["plain_ratio"] == pytest.approx(plain["milliseconds"] / row["milliseconds"])
        first = by_key[queries, backward, name, dtype, 1]["milliseconds"]
        expected = None if threads == 1 else pytest.approx(first / row["milliseconds"])
        assert row["threads_ratio"] == expected
        assert row["floor_share"] == pytest.approx(row["floor"] / row["milliseconds"])
        assert 0 < row["fastest"] <= row["milliseconds"]


def test_peers_run_in_float32_whatever_types_are_asked_for() -> None:
    rows, _ = run(replace(QUICK, types=("bfloat16",), threads=(1,)))
    assert {row.dtype for row in rows if row.implementation.startswith("ours")} == {"bfloat16"}
    assert {row.dtype for row in rows if not row.implementation.startswith("ours")} == {"float32"}


def test_threads_are_as_before_and_those_asked_for_while_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(WallClock, "milliseconds", lambda *_: seen.append(torch.get_num_threads()) or 1.0)
    before = torch.get_num_threads()
    run(replace(QUICK, threads=(3, 1)))
    assert set(seen) == {1, 3}
    assert torch.get_num_threads() == before


def test_on_a_cpu_the_table_has_ratios_alone() -> None:
    rows, written = run(QUICK)
    title = next(text for text in written.splitlines() if text.startswith("queries"))
    for name in ("x grid_sample", "(fastest)", "x plain torch", "x 1 thread", "floor"):
        assert name in title
    assert " ms" not in title
    assert written.count("\ndecoder ") == len(rows)
    assert "torch: " in written


def bench(implementation: Implementation, **changes: Any) -> Bench:
    field = Field(implementations=(implementation,), baseline=implementation.name, left_out={})
    given = {
        "config": QUICK, "workload": TINY, "field": field, "device": CPU, "clock": WallClock(), "cache_bytes": 0
    }  # fmt: skip
    return Bench(**{**given, **changes})


def test_on_a_gpu_the_table_has_milliseconds_and_the_share_of_the_roofline() -> None:
    table = columns(bench(Implementation(name="im2col", attend=lambda i: i.value), device=torch.device("cuda")))
    row = Timing(
        queries="dense", backward=True, implementation="ours", dtype="bfloat16", threads=None, milliseconds=0.25,
        fastest=0.2, floor=0.05, bytes=10, ratio=3.5, fastest_ratio=4.5, plain_ratio=11.25, threads_ratio=None,
        floor_share=0.2,
    )  # fmt: skip
    names, cells = header(table).split("  "), line(table, row).split()
    assert [name.strip() for name in names if name.strip()][-6:] == [
        "ms", "fastest ms", "x im2col", "(fastest)", "x plain torch", "floor"
    ]  # fmt: skip
    assert cells == ["dense", "fwd+bwd", "ours", "bfloat16", "0.2500", "0.2000", "3.50", "4.50", "11.2", "20.0%"]


@pytest.mark.parametrize(("cache", "each", "copies"), [(0, 100, 1), (50, 100, 2), (100, 30, 7), (49, 100, 1)])
def test_copies_exceed_twice_the_cache(cache: int, each: int, copies: int) -> None:
    assert copies_beyond(cache, each) == copies
    assert copies * each > 2 * cache


def test_inputs_take_turns() -> None:
    seen: dict[int, list[int]] = {}

    def attend(inputs: Inputs) -> Tensor:
        seen.setdefault(inputs.value.element_size(), []).append(inputs.value.data_ptr())
        return inputs.direction * inputs.value.sum() * inputs.offsets.sum() * inputs.logits.sum()

    size = make_inputs(TINY, 7).bytes
    measured = bench(Implementation(name=PLAIN, attend=attend), cache_bytes=2 * size, config=replace(QUICK, repeats=5))
    assert len(list(measured.rows(quiet))) == 8
    for pointers, copies in ((seen[4], 5), (seen[2], 8)):
        assert len(set(pointers[:copies])) >= 5
        assert all(a != b for a, b in itertools.pairwise(pointers))


def test_an_instruction_set_that_is_not_here_is_an_error_with_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ConfigError(name)

    monkeypatch.setattr(op, "limit_instruction_set", refuse)
    monkeypatch.setattr(op, "instruction_set", lambda: "avx2")
    with pytest.raises(ConfigError, match="instruction_set: 'avx512', but up to avx2 is here; give a narrower one"):
        run(replace(QUICK, instruction_set="avx512"))


@pytest.mark.skipif(not instruction_set(), reason="the op is not compiled")
def test_the_instruction_set_is_used_and_set_back() -> None:
    before = instruction_set()
    seen = []
    run_bench(replace(QUICK, instruction_set="base"), quiet, lambda _text: seen.append(instruction_set()), TINY)
    assert set(seen) == {"base"}
    assert instruction_set() == before


def test_an_interrupted_run_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "op.json"
    target.write_text("before")

    def interrupted(_text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(replace(QUICK, json=str(target)), quiet, interrupted, TINY)
    # Nor does a number that JSON has no word for.
    monkeypatch.setattr(op, "machine", lambda _config: {"load": float("nan")})
    with pytest.raises(ValueError, match="Out of range float"):
        run(replace(QUICK, json=str(target)))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_who_is_left_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.deformable_detr.modeling_deformable_detr", None)
    _, written = run(QUICK)
    assert f"{TRANSFORMERS} is left out: " in written
    assert "pip install 'sparse-detr[compare]'" in written


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, or torch is a build without CUDA")
def test_on_a_gpu_all_is_measured(tmp_path: Path) -> None:
    rows, written = run(replace(QUICK, device="cuda", json=str(tmp_path / "op.json")))
    assert {row.dtype for row in rows if row.implementation == "ours"} == {"float32", "bfloat16", "float16"}
    assert {row.threads for row in rows} == {None}
    assert all(row.milliseconds > 0 for row in rows)
    assert json.loads((tmp_path / "op.json").read_text())["baseline"] in written
