"""The op's timings as text: on a CPU ratios alone, for a shared machine's milliseconds say little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.bench.op.measure import Bench, Timing


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table."""

    title: str
    width: int
    """Characters; negative ones align to the left."""
    text: Callable[[Timing], str]


def columns(bench: Bench) -> list[Column]:
    """The columns for that device and baseline."""
    baseline, first = bench.field.baseline, bench.threads[0]
    found = [
        Column("queries", -8, lambda row: row.queries),
        Column("pass", -8, lambda row: "fwd+bwd" if row.backward else "forward"),
        Column("implementation", -14, lambda row: row.implementation),
        Column("type", -9, lambda row: row.dtype),
    ]
    if first is None:
        found.append(Column("ms", 9, lambda row: f"{row.milliseconds:.4f}"))
        found.append(Column("fastest ms", 11, lambda row: f"{row.fastest:.4f}"))
    else:
        found.append(Column("threads", 7, lambda row: str(row.threads)))
    found += [
        Column(f"x {baseline}", 14, lambda row: _times(row.ratio)),
        Column("(fastest)", 10, lambda row: _times(row.fastest_ratio)),
        Column("x plain torch", 14, lambda row: _times(row.plain_ratio)),
    ]
    if len(bench.threads) > 1:
        found.append(Column(f"x {_threads(first)}", 11, lambda row: _times(row.threads_ratio)))
    return [*found, Column("floor", 7, lambda row: f"{row.floor_share:.1%}")]


def legend(bench: Bench) -> str:
    """Explanation of the columns."""
    baseline, first = bench.field.baseline, bench.threads[0]
    lines = [f"x {baseline}: how many times as fast, by medians; in brackets by fastest times"]
    if len(bench.threads) > 1:
        lines.append(f"x {_threads(first)}: compared with its own time with so many")
    lines.append("floor: share of its time that the bytes which have to be moved take at the speed of a copy")
    return "\n".join(lines) + "\n"


def _threads(count: int | None) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def header(table: list[Column]) -> str:
    """The titles' line."""
    return _line([(column, column.title) for column in table])


def line(table: list[Column], row: Timing) -> str:
    """One row's line."""
    return _line([(column, column.text(row)) for column in table])


def _line(cells: list[tuple[Column, str]]) -> str:
    parts = (f"{text:<{-column.width}}" if column.width < 0 else f"{text:>{column.width}}" for column, text in cells)
    return " ".join(parts).rstrip() + "\n"


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"
