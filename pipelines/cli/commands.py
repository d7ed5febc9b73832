"""Table of all commands, one line each.

A command is a config, whose fields are its options, and a function that takes the config and returns an exit code. Both
are named as "module:name" and imported when the command runs, so that help comes at once, and a package above this one
can own a command (`sweep` and `demo` belong to `tune`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command."""

    summary: str
    config: str
    """`module:class` of the dataclass whose fields are the options."""
    run: str
    """`module:function` that takes the config and returns the exit code."""
    words: tuple[str, ...] = ()
    """Fields that leading words fill, in this order. The word `recipe` is the name of a recipe: without it the recipes
    are listed."""
    default: str = ""
    """`module:function` from the recipe's name to the config that holds the options' defaults; without it the name is
    a field like others."""
    alone: str = ""
    """Option that needs no recipe."""
    rest: str = ""
    """Field that takes all words behind `--`."""

    @property
    def usage(self) -> str:
        """Text behind the command's name in a list."""
        rest = "-- COMMAND ..." if self.rest else ""
        return " ".join(part for part in (*(word.upper() for word in self.words), "[OPTIONS]", rest) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Commands below one word."""

    summary: str
    commands: Mapping[str, Command]
    otherwise: Command | None = None
    """The command that runs where the next word is none of them."""
    usage: str = "WHAT [OPTIONS]"


Table = Mapping[str, Command | Group]


def imported(name: str) -> Any:
    """Object that "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def flattened(table: Table) -> Mapping[str, Command]:
    """Every command by all its words, `data check` for one."""
    found: dict[str, Command] = {}
    for word, entry in table.items():
        if isinstance(entry, Command):
            found[word] = entry
            continue
        found |= {f"{word} {name}": command for name, command in entry.commands.items()}
        found |= {word: entry.otherwise} if entry.otherwise else {}
    return found


def _command(module: str, config: str, run: str, summary: str, **more: str | tuple[str, ...]) -> Command:
    """A command whose config and function are in the `config` and `command` modules of one folder."""
    fields = {"config": f"{module}.config:{config}", "run": f"{module}.command:{run}", "summary": summary}
    return Command(**(fields | more))  # type: ignore[arg-type]


_DATA = {
    "import-voc": _command("pipelines.data", "ImportVocConfig", "import_voc", "Pascal VOC XML to COCO JSON"),
    "shapes": _command("pipelines.data", "MakeShapesConfig", "make_shapes", "generate the shapes data set"),
    "check": _command("pipelines.data", "CheckConfig", "check", "read annotations, find and decode the images"),
}
_JOBS = {
    "status": _command("pipelines.submit", "JobConfig", "status", "state of a job", words=("id",)),
    "logs": _command("pipelines.submit", "JobConfig", "logs", "follow a job's log", words=("id",)),
    "stop": _command("pipelines.submit", "JobConfig", "stop", "end a job", words=("id",)),
}
_BENCH = {
    "op": _command("pipelines.bench.op", "OpBenchConfig", "bench_op", "the op against other implementations"),
    "table": _command("pipelines.bench.model", "TableConfig", "bench_table", "the published table of cost, by formula"),
    "trace": _command("pipelines.bench.model", "TraceConfig", "bench_trace", "operators and rows of every part"),
    "growth": _command("pipelines.bench.model", "GrowthConfig", "bench_growth", "an encoder layer over the image size"),
}
COMMANDS: Table = {
    "demo": Command(
        summary="the main job on embedded parts: data, training, sweep, detection, report",
        config="pipelines.demo.config:DemoConfig",
        run="tune.demo:demo",
    ),
    "train": Command(
        summary="train a recipe with Ray Train",
        config="pipelines.train.config:TrainOptions",
        run="pipelines.train.command:train_command",
        words=("recipe",),
        default="pipelines.train.config:options_of",
        alone="--replay",
    ),
    "evaluate": _command(
        "pipelines.evaluate", "EvaluateConfig", "evaluate_command", "COCO's numbers of a model on annotated images"
    ),
    "predict": _command(
        "pipelines.predict",
        "PredictConfig",
        "predict_command",
        "detections of an image collection into Parquet, or drawn on a few images",
        words=("images",),
    ),
    "view": _command(
        "pipelines.view", "ViewConfig", "view_command", "one page of what a prediction found", words=("output",)
    ),
    "explain": _command(
        "pipelines.explain",
        "ExplainConfig",
        "explain_command",
        "one picture of what a model sees in an image, and why",
        words=("image",),
    ),
    "sweep": _command(
        "tune",
        "SweepConfig",
        "sweep_command",
        "search keep ratio and loss weights with Ray Tune",
        words=("recipe",),
        default="tune.config:sweep_of",
    ),
    "submit": Group(
        summary="send any command to a running cluster; status, logs, stop",
        usage="[OPTIONS] -- COMMAND ...",
        commands=_JOBS,
        otherwise=_command(
            "pipelines.submit", "SubmitConfig", "submit_command", "send a command to a running cluster", rest="command"
        ),
    ),
    "data": Group(summary="make and check data sets: import-voc, shapes, check", commands=_DATA),
    "bench": Group(summary="measure: op, table, trace, growth", commands=_BENCH),
    "convert": _command(
        "pipelines.convert",
        "ConvertConfig",
        "convert_command",
        "the authors' checkpoints into model folders, and back",
        words=("source", "output"),
    ),
    "cost": _command(
        "pipelines.cost",
        "CostConfig",
        "cost_command",
        "parameters, multiply-adds and latency of a recipe or a model",
        words=("recipe",),
    ),
    "doctor": _command(
        "pipelines.doctor", "DoctorConfig", "doctor_command", "what is installed, what will be used, what is wrong"
    ),
}
