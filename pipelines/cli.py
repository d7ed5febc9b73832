"""The command line: every verb of the product, its options made by tyro from the configs' own fields.

Exit codes: 0 done; 1 something is wrong with what was examined, or a job failed; 2 a mistake that the user can
mend, in one message; 130 interrupted. Verbs import what they need when they run, so that help comes at once.
"""

from __future__ import annotations

import difflib
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

T = TypeVar("T")
Arguments = list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        return _dispatch("sparse-detr", VERBS, args)
    except KeyboardInterrupt:
        Console(stderr=True).print("\nInterrupted.")
        return 130
    except Exception as error:
        from pipelines.mistakes import user_mistake

        mistake = user_mistake(error)
        if mistake is None:
            raise
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(mistake))}", highlight=False, soft_wrap=True)
        return 2
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that servers and cluster stop."""
    raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class Verb:
    """A word of the command line."""

    summary: str
    run: Callable[[Arguments], int]
    usage: str = "[OPTIONS]"


def _dispatch(program: str, verbs: dict[str, Verb], args: Arguments) -> int:
    word = args[0] if args else "--help"
    if word in ("-h", "--help"):
        _print_verbs(program, verbs)
        return 0
    if word == "--version" and verbs is VERBS:
        from importlib.metadata import version

        Console().print(f"sparse-detr {version('sparse-detr')}", highlight=False)
        return 0
    if word not in verbs:
        near = difflib.get_close_matches(word, verbs, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(verbs)}"
        Console(stderr=True).print(f"[bold red]error:[/] {escape(program)} {escape(word)}: no such verb; {hint}")
        return 2
    return verbs[word].run(args[1:])


def _print_verbs(program: str, verbs: dict[str, Verb]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, verb in verbs.items():
        table.add_row(f"  [bold]{name}[/]", escape(verb.usage), verb.summary)
    console = Console()
    console.print(f"usage: {program} VERB ...\n", highlight=False)
    console.print(table)
    console.print(f"\n`{program} VERB --help` explains every option.", highlight=False)


def _parse(kind: type[T], program: str, args: Arguments, default: T | None = None) -> T:
    if default is None:
        return tyro.cli(kind, prog=program, args=args)
    return tyro.cli(kind, prog=program, args=args, default=default)


def _recipe(program: str, args: Arguments) -> tuple[str, Arguments] | None:
    """The recipe's name and the rest; None once the list of recipes was shown instead."""
    from pipelines.recipes import RECIPES

    if args and not args[0].startswith("-"):
        return args[0], args[1:]
    table = Table.grid(padding=(0, 2))
    for name, build in RECIPES.items():
        table.add_row(f"  [bold]{name}[/]", escape((build.__doc__ or "").strip().split("\n")[0]))
    console = Console(stderr=bool(args) is False)
    console.print(f"usage: {program} RECIPE [OPTIONS]\n\nRecipes:", highlight=False)
    console.print(table)
    console.print(f"\n`{program} RECIPE --help` explains every option and shows the recipe's values.", highlight=False)
    return None


def _demo(args: Arguments) -> int:
    from pipelines.demo import DemoConfig, run_demo

    run_demo(_parse(DemoConfig, "sparse-detr demo", args), Console())
    return 0


def _train(args: Arguments) -> int:
    chosen = _recipe("sparse-detr train", args)
    if chosen is None:
        return 0 if args else 2
    from pipelines.config import RunConfig
    from pipelines.recipes import get_recipe

    name, rest = chosen
    config = _parse(RunConfig, f"sparse-detr train {name}", rest, default=get_recipe(name))
    from pipelines.verbs import train_verb

    return train_verb(config)


def _sweep(args: Arguments) -> int:
    chosen = _recipe("sparse-detr sweep", args)
    if chosen is None:
        return 0 if args else 2
    from pipelines.recipes import get_recipe
    from tune.sweep import SweepConfig
    from tune.verb import sweep_verb

    name, rest = chosen
    return sweep_verb(_parse(SweepConfig, f"sparse-detr sweep {name}", rest, default=SweepConfig(run=get_recipe(name))))


def _cost(args: Arguments) -> int:
    chosen = _recipe("sparse-detr cost", args)
    if chosen is None:
        return 0 if args else 2
    from pipelines.cost import CostConfig, cost_verb

    return cost_verb(chosen[0], _parse(CostConfig, f"sparse-detr cost {chosen[0]}", chosen[1]))


def _of_config(word: str, config: str, run: str, positional: Sequence[str] = ()) -> Callable[[Arguments], int]:
    """A verb whose options are the fields of one config.

    Args:
        config, run: `module:name` of the config and of the function that takes it, imported when the verb runs.
        positional: fields that leading words fill, in this order.
    """

    def verb(args: Arguments) -> int:
        words = next((i for i, arg in enumerate(args[: len(positional)]) if arg.startswith("-")), len(positional))
        named = [part for pair in zip(positional, args[:words], strict=False) for part in (f"--{pair[0]}", pair[1])]
        parsed = _parse(_imported(config), f"sparse-detr {word}", [*named, *args[words:]])
        code: int = _imported(run)(parsed)
        return code

    return verb


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One job of a cluster."""

    id: tyro.conf.Positional[str]
    """The job's id, as submit printed it."""
    address: str = ""
    """URL of the cluster's dashboard, such as http://head:8265; unset takes RAY_API_SERVER_ADDRESS."""


def _job_verb(word: str) -> Callable[[Arguments], int]:
    def run(args: Arguments) -> int:
        from pipelines.submit import ClusterConfig
        from pipelines.verbs import job_verb

        config = _parse(_Job, f"sparse-detr submit {word}", args)
        return job_verb(word, config.id, ClusterConfig(address=config.address).resolved())

    return run


def _submit(args: Arguments) -> int:
    if args and args[0] in JOB_VERBS:
        return JOB_VERBS[args[0]].run(args[1:])
    if args in ([], ["-h"], ["--help"]):
        _print_verbs("sparse-detr submit", JOB_VERBS)
    from pipelines.submit import SubmitConfig
    from pipelines.verbs import submit_verb

    own, command = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
    return submit_verb(_parse(SubmitConfig, "sparse-detr submit", own), command)


DATA_VERBS = {
    "import-voc": Verb(
        "Pascal VOC XML to COCO JSON",
        _of_config("data import-voc", "pipelines.data:ImportVocConfig", "pipelines.verbs:data_verb"),
    ),
    "shapes": Verb(
        "generate the shapes data set",
        _of_config("data shapes", "pipelines.data:MakeShapesConfig", "pipelines.verbs:data_verb"),
    ),
    "check": Verb(
        "read annotations, find and decode the images",
        _of_config("data check", "pipelines.data:CheckConfig", "pipelines.verbs:data_verb"),
    ),
}
JOB_VERBS = {
    "status": Verb("how a job stands", _job_verb("status"), "ID [OPTIONS]"),
    "logs": Verb("follow a job's log", _job_verb("logs"), "ID [OPTIONS]"),
    "stop": Verb("end a job", _job_verb("stop"), "ID [OPTIONS]"),
}
_EVALUATE = _of_config("evaluate", "pipelines.evaluate:EvaluateConfig", "pipelines.evaluate_verb:evaluate_verb")
_PREDICT = _of_config("predict", "pipelines.predict.config:PredictConfig", "pipelines.verbs:predict_verb")
_EXPLAIN = _of_config("explain", "pipelines.explain:ExplainConfig", "pipelines.explain:explain_verb", ["image"])
_CONVERT = _of_config(
    "convert", "pipelines.convert:ConvertConfig", "pipelines.convert:convert_verb", ["source", "output"]
)
_BENCH_OP = _of_config("bench op", "sparse_detr.benchmark.op:OpBenchConfig", "sparse_detr.benchmark.op:bench_verb")
_DOCTOR = _of_config("doctor", "pipelines.doctor:DoctorConfig", "pipelines.verbs:doctor_verb")
VERBS = {
    "demo": Verb("the main job on embedded parts: data, training, sweep, detection, report", _demo),
    "train": Verb("train a recipe with Ray Train", _train, "RECIPE [OPTIONS]"),
    "evaluate": Verb("COCO's numbers of a model on annotated images", _EVALUATE),
    "predict": Verb("detections of an image collection into Parquet", _PREDICT),
    "explain": Verb("one picture of what a model sees in an image, and why", _EXPLAIN, "IMAGE [OPTIONS]"),
    "sweep": Verb("search keep ratio and loss weights with Ray Tune", _sweep, "RECIPE [OPTIONS]"),
    "submit": Verb("send any verb to a running cluster; status, logs, stop", _submit, "[OPTIONS] -- VERB ..."),
    "data": Verb(
        "make and check data sets: import-voc, shapes, check",
        lambda args: _dispatch("sparse-detr data", DATA_VERBS, args),
        "WHAT [OPTIONS]",
    ),
    "bench": Verb(
        "measure: op",
        lambda args: _dispatch("sparse-detr bench", {"op": Verb("the op against what others do", _BENCH_OP)}, args),
        "WHAT [OPTIONS]",
    ),
    "convert": Verb("the authors' checkpoints into model folders, and back", _CONVERT, "SOURCE OUTPUT [OPTIONS]"),
    "cost": Verb("parameters, multiply-adds and latency of a recipe or a model folder", _cost, "RECIPE [OPTIONS]"),
    "doctor": Verb("what is installed, what will be used, what is wrong", _DOCTOR),
}


if __name__ == "__main__":
    sys.exit(main())
