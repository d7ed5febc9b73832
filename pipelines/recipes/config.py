"""A whole run in one value: model, loss, data, optimizer, training, and where results go.

A run config survives config -> dict -> JSON -> config (`sparse_detr.config_dict`); `override` changes fields
by dotted name, checks their types and refuses names that do not exist.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from pipelines.recipes.data import DataConfig
from pipelines.recipes.optimizer import OptimizerConfig
from sparse_detr.errors import require
from sparse_detr.losses.config import LossConfig
from sparse_detr.model.config import ModelConfig
from sparse_detr.storage.output import Existing, require_known


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Length, batch, workers and starting weights of a training."""

    epochs: int = 50
    """Passes over the training images."""
    global_batch: int = 16
    """Images of one optimizer step, over all workers."""
    micro_batch: int | None = None
    """Images that pass the model together, padded to one size: a divisor of `global_batch`. Workers share the
    micro-batches of a step, each accumulating the gradients of its own, and a step is the same for any number of them;
    so less memory or fewer workers need not change what is learned. By default `global_batch / workers`."""
    workers: int = 1
    """Data-parallel processes, at most one a micro-batch; shares may differ by one micro-batch."""
    cpus_per_worker: int = 1
    """CPU cores (and torch threads) of each worker."""
    use_gpu: bool = False
    """Give each worker a GPU and let them talk over NCCL; otherwise CPU and gloo."""
    seed: int = 42
    """Weights, order, augmentation and dropout follow from it, whatever the number of workers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` runs the model under autocast; weights, loss and optimizer stay in float32, and validation too."""
    ema_decay: float = 0.0
    """Evaluate and save a moving average of the weights with this decay a step; 0 is off."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    early_stop_epochs: int | None = None
    """End the run once the validation AP has not been above its best for so many epochs; unset is off."""
    activation_checkpointing: tuple[Literal["backbone", "encoder", "decoder"], ...] = ()
    """Parts whose layers keep only what goes in and compute the rest again for the gradient: less memory for about a
    third more time in these parts, and the same gradients."""
    explain_images: int = 2
    """Validation images of which MLflow gets a picture (detections, saliency, kept tokens, decoder attention) after
    some ten of the evaluations, always the same images; 0 is off."""
    init_backbone: str | None = None
    """Weights to start the backbone from: torchvision's ResNets, the official Swin, SCRL, as safetensors or `.pth`. A
    path, `s3://` or `https://` URI, the last with `#sha256=<8 to 64 hex digits>` behind it."""
    init_model: str | None = None
    """Path or URI of a model folder to start all weights from; its shapes must fit `model`."""
    not_finite: Literal["stop", "skip"] = "stop"
    """Choice for a step whose loss or gradient is NaN or infinite: `stop` ends the run, `skip` leaves its update out,
    for ten steps in a row at most. What made the step is kept in the output, for `sparse-detr train --replay`."""
    checkpoint_minutes: float = 10.0
    """Minutes of training between two checkpoints within an epoch, all that a crash costs; 0 is off. The end of every
    epoch leaves one too."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, beside `checkpoint_minutes`; unset is off."""
    checkpoint_patience_minutes: float = 60.0
    """The training goes on for so long while its store is away and takes no checkpoint, and then stops."""
    keep_checkpoints: int = 2
    """Checkpoints kept in the store: the best by AP, and always the last."""
    max_failures: int = 3
    """Restarts from the last checkpoint after a worker died, before the run gives up. Nodes that are drained and
    workers that are added do not count."""
    min_workers: int | None = None
    """The training goes on with as few workers as this while nodes are missing, with the same steps, and takes others
    in when they come; by default it waits for all `workers`."""
    hang_minutes: float = 10.0
    """A worker that gives no sign of life for so long, within a step or a part of the evaluation, is restarted; 0 waits
    for ever. One that is silent for half a minute is named."""
    stop_seconds: float = 60.0
    """Longest wait for a checkpoint after Ctrl-C or SIGTERM; a second Ctrl-C leaves at once, 0 always does."""

    def __post_init__(self) -> None:
        for name in ("epochs", "global_batch", "workers", "cpus_per_worker", "evaluate_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"training.{name}: {getattr(self, name)}; give at least 1")
        self._require_micro_batches()
        require(
            self.precision in ("float32", "bfloat16"),
            f"training.precision: {self.precision!r} is not known; choose float32 or bfloat16",
        )
        require(
            self.not_finite in ("stop", "skip"),
            f"training.not_finite: {self.not_finite!r} is not known; choose stop or skip",
        )
        require(0 <= self.ema_decay < 1, f"training.ema_decay: {self.ema_decay}; give a number in [0, 1), 0 for off")
        require(
            self.min_workers is None or 1 <= self.min_workers <= self.workers,
            f"training.min_workers: {self.min_workers}; give 1 to training.workers ({self.workers}), or leave it out",
        )
        for name in ("checkpoint_minutes", "checkpoint_patience_minutes", "hang_minutes", "stop_seconds"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"training.{name}: {value}; give a finite number of at least 0")
        require(
            self.checkpoint_steps is None or self.checkpoint_steps >= 1,
            f"training.checkpoint_steps: {self.checkpoint_steps}; give at least 1, or leave it out",
        )
        require(
            self.early_stop_epochs is None or self.early_stop_epochs >= 1,
            f"training.early_stop_epochs: {self.early_stop_epochs}; give at least 1, or leave it out",
        )
        for part in self.activation_checkpointing:
            require(
                part in ("backbone", "encoder", "decoder"),
                f"training.activation_checkpointing: {part!r} is not known; choose of backbone, encoder and decoder",
            )
        require(self.max_failures >= 0, f"training.max_failures: {self.max_failures}; give 0 or more")
        require(self.explain_images >= 0, f"training.explain_images: {self.explain_images}; give 0 or more")
        require(self.seed >= 0, f"training.seed: {self.seed}; give 0 or more")
        require(
            self.init_backbone is None or self.init_model is None,
            f"training.init_backbone: {self.init_backbone!r} with training.init_model: {self.init_model!r}; "
            "the model folder holds a backbone already, so give one of them",
        )

    def _require_micro_batches(self) -> None:
        if self.micro_batch is None:
            require(
                self.global_batch % self.workers == 0,
                f"training.global_batch: {self.global_batch} is no multiple of training.workers: {self.workers}; give "
                "training.micro_batch, whose micro-batches the workers can share unevenly",
            )
            return
        require(
            self.micro_batch >= 1 and self.global_batch % self.micro_batch == 0,
            f"training.micro_batch: {self.micro_batch} is no divisor of training.global_batch: {self.global_batch}; "
            "give one",
        )
        require(
            self.workers <= self.micro_batches,
            f"training.workers: {self.workers}, but training.micro_batch: {self.micro_batch} cuts a step of "
            f"{self.global_batch} images into {self.micro_batches}; give at most {self.micro_batches} workers, or a "
            "smaller micro_batch",
        )

    @property
    def fewest_workers(self) -> int:
        """So many workers are enough."""
        return self.min_workers or self.workers

    @property
    def images_per_micro_batch(self) -> int:
        """Images of one micro-batch: what is set, or each worker's share of the global batch."""
        return self.micro_batch or self.global_batch // self.workers

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one step, over all workers."""
        return self.global_batch // self.images_per_micro_batch


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Everything that a training run needs to know."""

    name: str = "run"
    """Names the run in MLflow and in messages."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Losses and matching."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and annotations."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """For how long, and on what."""
    output: str = "runs/train"
    """Folder or `s3://bucket/prefix` for checkpoints, the final model and the history."""
    tracking_uri: str | None = None
    """MLflow tracking URI, such as `sqlite:///mlflow.db` or `http://host:5000`; `none` records nothing; unset takes
    MLFLOW_TRACKING_URI, or records nothing without it."""
    experiment: str = "sparse-detr"
    """MLflow experiment."""
    registered_model: str | None = None
    """Name in MLflow's registry under which the best model is a new version at the end; unset registers none."""
    model_alias: str = "best"
    """Alias of that version, for `models:/name@alias`; it stays where it is while the version that bears it has a
    higher AP on the same validation data."""
    existing: Existing = "refuse"
    """Choice for when `output` holds results of a run already: `refuse` stops with an error, `overwrite` deletes
    them, `resume` continues that run from its last checkpoint. A resumed run may have other epochs, workers, CPUs and
    GPUs, max_failures, settings of checkpoints, early_stop_epochs, activation_checkpointing, broken_images,
    broken_share, not_finite, explain_images, loader_workers, cache, name, output and MLflow settings; every other
    field must be as it was, and micro_batch is, where it is not given."""

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), f"name: {self.name!r}; give the run a name")
        self._require_model_names()
        require(bool(self.output.strip()), f"output: {self.output!r}; give a folder or s3://bucket/prefix")
        require_known(self.existing, resumable=True)

    def _require_model_names(self) -> None:
        name, alias = self.registered_model, self.model_alias
        require(
            name is None or (bool(name.strip()) and not set(name) & set("/@:'\"`")),
            f"registered_model: {name!r}; give a name without / @ : and quotes",
        )
        # MLflow keeps the last ones for itself.
        require(
            re.fullmatch(r"[A-Za-z0-9_-]+", alias) is not None and not re.fullmatch(r"latest|v\d+", alias.lower()),
            f"model_alias: {alias!r}; give letters, digits, _ and -, other than latest, v1, v2, ...",
        )
