"""The demo with its sweep: `sparse-detr demo`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rich.console import Console

from pipelines.demo.config import DemoConfig
from pipelines.demo.report import Trial
from pipelines.demo.results import SweepChapter
from pipelines.demo.run import run_demo
from pipelines.demo.steps import Steps
from pipelines.recipes.config import RunConfig
from pipelines.tracking.tracker import Tracker
from pipelines.train.run import TrainResult
from tune.config import SweepConfig
from tune.progress import SweepProgress
from tune.report import SweepResult
from tune.search_space import SearchSpace
from tune.sweep import sweep


def demo(config: DemoConfig) -> int:
    """Run the demo; its report and summary are in `config.output`."""
    run_demo(config, Console(), run_sweep)
    return 0


def run_sweep(config: DemoConfig, run: RunConfig, trained: TrainResult, tracker: Tracker, steps: Steps) -> SweepChapter:
    """Ray Tune: short trainings that start from the trained model."""
    with steps.step("Sweep") as bar:

        def show(progress: SweepProgress) -> None:
            note = f"{progress.finished} of {progress.trials} trials complete"
            bar.move(progress.epochs_done, progress.epochs, note)

        result = sweep(sweep_config(config, run, trained), on_progress=show, parent_run_id=tracker.run_id)
        best = result.best
        assert best is not None, "sweep raises where no trial came through"
        shown = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in best.params.items())
        bar.note = f"{len(result.trials)} trials; best: {shown}, AP {best.metrics['ap']:.3f}"
    return SweepChapter(best=_best_trial(result), trials=_trials(result))


def sweep_config(config: DemoConfig, run: RunConfig, trained: TrainResult) -> SweepConfig:
    """Trials of one worker each, from the trained model, on a part of the images."""
    place = run.output.rpartition("/")[0]
    return SweepConfig(
        run=replace(
            run,
            name="keep ratio and encoder loss",
            data=replace(run.data, train_limit=config.trial_images),
            optimizer=replace(run.optimizer, lr=run.optimizer.lr / 4, backbone_lr=run.optimizer.backbone_lr / 4),
            training=replace(
                run.training,
                epochs=config.trial_epochs,
                evaluate_every=config.trial_epochs,
                workers=1,
                init_model=trained.checkpoint,
            ),
            output=f"{place}/sweep",
        ),
        space=SearchSpace(),
        trials=config.trials,
    )


def _best_trial(swept: SweepResult) -> Mapping[str, object]:
    best = swept.best
    assert best is not None, "sweep raises where no trial came through"
    return {"id": best.id, "params": dict(best.params), "ap": best.metrics["ap"], "ap50": best.metrics["ap50"]}


def _trials(swept: SweepResult) -> tuple[Trial, ...]:
    return tuple(
        Trial(name=_trial_name(trial.id), params=trial.params, metrics=trial.metrics, best=trial is swept.best)
        for trial in swept.trials
    )


def _trial_name(trial_id: str) -> str:
    """Tune's `6c7c0_00001` is the second trial."""
    number = trial_id.rpartition("_")[2]
    return f"trial {int(number) + 1}" if number.isdigit() else trial_id
