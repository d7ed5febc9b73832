"""Steps of our training loop in float64, against those of the authors' training program (golden/trajectory/README.md).

The first two are in the quick tests, all twelve in the slow ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.recipes.config import RunConfig, TrainingConfig
from pipelines.recipes.optimizer import OptimizerConfig
from pipelines.train.engine.batches import RunData
from pipelines.train.engine.loop import TrainLoop
from sparse_detr import ImageBatch, SparseDetr, Targets
from sparse_detr.losses.criterion import Criterion
from sparse_detr.records import Batch, Classes
from sparse_detr.weights.authors.names import canonical, original_name

pytestmark = pytest.mark.timeout(600)  # all twelve: 18 s on two idle cores, minutes on cores that others use

EPOCHS, STEPS_PER_EPOCH = 3, 4
ALL_STEPS = EPOCHS * STEPS_PER_EPOCH
TOLERANCE = 1e-9
"""Relative. Seen: 3e-15 for losses, 1e-14 for gradients, 5e-14 for updates."""


class SameBatch(list[Batch]):
    """Training data whose every epoch is the same list of batches."""

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Nothing is random here."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Trajectory:
    """Our first steps and those recorded, under the recording's names. Axis P is that of its `keys`."""

    ours: dict[str, np.ndarray]
    recorded: dict[str, np.ndarray]
    kept: list[list[set[int]]]
    """Tokens that the encoder updated, by step and image."""
    queries: list[list[set[int]]]
    """Tokens that became queries."""
    changes: list[np.ndarray]
    """Each parameter after the last step, minus its start, as one row."""
    trained: dict[str, bool]
    """Whether a parameter is trained, by its name in the authors' code."""

    @property
    def steps(self) -> int:
        return len(self.ours["total"])

    def compare(self, key: str) -> None:
        """Fail at a number that differs by more than the tolerance, relative to the recorded one."""
        ours = self.ours[key]
        recorded = self.recorded[key][: len(ours)]
        error = np.abs(ours / recorded - 1)
        worst = np.unravel_index(error.argmax(), error.shape)
        where = f"{key}{list(map(int, worst))}"
        assert error[worst] <= TOLERANCE, f"{where}: {ours[worst]}, not {recorded[worst]} ({error[worst]:.1e})"


def training_loop(recording: Any, times: int = 1) -> tuple[TrainLoop, Batch]:
    """The authors' run as a loop of ours, all in float64, and the batch that is every step, or each of its `times`
    micro-batches: objects and gradients of such a step sum to as many times those of the batch, so it is the same."""
    converted = SparseDetr.from_original(recording.state, 0.1)
    config = RunConfig(
        model=replace(converted.config, dropout=0.0),
        # At the rates of a global batch of 2, whatever it is.
        optimizer=OptimizerConfig(drop_epoch=2, lr=2e-4 / times**0.5, backbone_lr=2e-5 / times**0.5),
        training=TrainingConfig(epochs=EPOCHS, global_batch=2 * times, micro_batch=2),
    )
    model = SparseDetr(config.model)
    model.load_state_dict(converted.state_dict())
    images = recording.images("AB")
    batch = Batch(
        images=ImageBatch(pixels=images.pixels.double(), padding=images.padding),
        targets=tuple(Targets(labels=t.labels, boxes=t.boxes.double()) for t in recording.targets("AB")),
        image_ids=(1, 2),
        original_sizes=((192, 256), (160, 224)),
    )
    classes = Classes(names=("any",), category_ids=(1,))
    data = RunData(train=SameBatch([batch] * STEPS_PER_EPOCH), val=None, classes=classes)  # type: ignore[arg-type]
    loop = TrainLoop(config, model.double(), Criterion(config.loss), data)
    loop.network.train()
    return loop, batch


@pytest.fixture(
    scope="module",
    params=[(2, 1), (2, 2), pytest.param((ALL_STEPS, 1), marks=pytest.mark.slow)],
    ids=["2", "2-accumulated", "all"],
)
def trajectory(request: pytest.FixtureRequest, shared: Path, recording: Callable[[str], Any]) -> Trajectory:
    found = np.load(shared / "golden" / "trajectory" / "r50_sparse_rho0.1.npz")
    recorded = {key.removeprefix("f64/"): found[key] for key in found.files if not key.startswith("f32/")}
    steps, times = request.param
    loop, batch = training_loop(recording("r50_sparse_rho0.1"), times)
    config = loop.config.model
    named = {original_name(name, config): parameter for name, parameter in loop.model.named_parameters()}
    parameters = [named[canonical(key, config)] for key in recorded["keys"]]

    gradients: dict[Tensor, float] = {}
    for parameter in parameters:  # their norms before the loop clips them
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.__setitem__(p, p.grad.norm().item()))
    kept: list[list[set[int]]] = []
    queries: list[list[set[int]]] = []

    def note_tokens(_: Any, __: Any, output: Any) -> None:
        selection = output.selection
        kept.append([set(row[:k].tolist()) for row, k in zip(selection.kept, selection.counts, strict=True)])
        queries.append([set(row.tolist()) for row in output.query_tokens])

    loop.model.register_forward_hook(note_tokens)
    start = [parameter.detach().clone() for parameter in parameters]
    changes = [torch.zeros_like(parameter) for parameter in start]
    rows: dict[str, list[Any]] = {}
    for _ in range(steps):
        report = loop.train_step([batch] * times)
        groups = {p: group for group in loop.optimizer.param_groups for p in group["params"]}
        changes = [p.detach() - p0 for p, p0 in zip(parameters, start, strict=True)]
        row = {
            "total": report.total.item(),
            "losses": [report.terms[name].item() for name in recorded["loss_names"]],
            "norm": np.linalg.norm([gradients[p] for p in parameters]),
            "grad_norms": [gradients[p] for p in parameters],
            "lr": [groups[p]["lr"] for p in parameters],
            "weight_decay": [groups[p]["weight_decay"] for p in parameters],
            "delta_norms": [change.norm().item() for change in changes],
        }
        for key, value in row.items():
            rows.setdefault(key, []).append(value)
    if steps == ALL_STEPS:
        rows["final_norms"] = [p.norm().item() for p in parameters]
    return Trajectory(
        ours={key: np.array(values) for key, values in rows.items()},
        recorded=recorded,
        kept=kept[::times],
        queries=queries[::times],
        changes=[change.numpy().ravel() for change in changes],
        trained={name: parameter.requires_grad for name, parameter in named.items()},
    )


def projections(change: np.ndarray, key: str, recorded: np.ndarray) -> list[float]:
    """The parts of a parameter's change along its four recorded directions, since a norm has no direction.

    The recording divided by the norm of each direction in float32, whose last digits (up to 1.5e-5 for millions of
    numbers) depend on the machine. What it divided by is found again as the float32 nearest to the quotient: only one
    quotient in fifty is by chance within 1e-9 of a float32.
    """
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"projection|{key}".encode())))
    found = []
    for value in recorded:
        direction = generator.standard_normal(change.size, np.float32).astype(np.float64)
        along = change @ direction
        norm = float(np.float32(along / value))
        assert norm == pytest.approx(np.linalg.norm(direction), rel=2e-5), f"{key}: moved another way"
        found.append(along / norm)
    return found


def test_the_same_parameters_are_trained(trajectory: Trajectory) -> None:
    trained = {name for name, wanted in trajectory.trained.items() if wanted}
    assert trained == set(trajectory.recorded["keys"])
    assert trajectory.trained.keys() - trained == set(trajectory.recorded["frozen"])


def test_losses(trajectory: Trajectory) -> None:
    trajectory.compare("total")
    trajectory.compare("losses")


def test_gradients(trajectory: Trajectory) -> None:
    trajectory.compare("norm")
    trajectory.compare("grad_norms")


def test_learning_rates_and_weight_decay(trajectory: Trajectory) -> None:
    trajectory.compare("lr")
    trajectory.compare("weight_decay")


def test_updates(trajectory: Trajectory) -> None:
    trajectory.compare("delta_norms")
    if trajectory.steps == ALL_STEPS:
        trajectory.compare("final_norms")


def test_directions_of_the_updates(trajectory: Trajectory) -> None:
    recorded = trajectory.recorded
    if trajectory.steps < ALL_STEPS:
        pytest.skip("directions are recorded after the last step alone")
    pairs = zip(trajectory.changes, recorded["keys"], recorded["delta_projections"], strict=True)
    trajectory.ours["delta_projections"] = np.array([projections(*pair) for pair in pairs])
    trajectory.compare("delta_projections")


def test_tokens(trajectory: Trajectory) -> None:
    recorded = trajectory.recorded
    for step, (kept, queries) in enumerate(zip(trajectory.kept, trajectory.queries, strict=True)):
        counts = recorded["counts"][step]
        assert kept == [set(row[:k].tolist()) for row, k in zip(recorded["kept"][step], counts, strict=True)]
        assert queries == [set(row.tolist()) for row in recorded["queries"][step]]
    assert len(trajectory.kept) == trajectory.steps


def mirrored(batch: ImageBatch, targets: Targets, objects: int) -> tuple[Tensor, Targets]:
    """The one image of a batch and its first objects, left and right exchanged."""
    boxes = targets.boxes[:objects].double()
    boxes[:, 0] = 1 - boxes[:, 0]
    return batch.pixels[0].double().flip(-1), Targets(labels=targets.labels[:objects], boxes=boxes)


def test_two_micro_batches_of_one_image_are_a_batch_of_two(recording: Callable[[str], Any]) -> None:
    """Two images of one size, without padding, which otherwise ties the images of a batch together."""
    source = recording("r50_sparse_rho0.1")
    (targets,) = source.targets("A")
    pixels = source.images("A").pixels[0].double()
    pairs = [(pixels, Targets(labels=targets.labels, boxes=targets.boxes.double()))]
    pairs.append(mirrored(source.images("A"), targets, 1))
    assert len(targets.labels) > 1

    def step_of(micro_batch: int) -> tuple[TrainLoop, list[float]]:
        loop, _ = training_loop(source)
        training = replace(loop.config.training, micro_batch=micro_batch)
        loop = TrainLoop(replace(loop.config, training=training), loop.model, loop.update.criterion, loop.data)
        loop.network.train()
        batches = [
            Batch(
                images=ImageBatch.from_list([image for image, _ in part]),
                targets=tuple(target for _, target in part),
                image_ids=tuple(range(len(part))),
                original_sizes=((192, 256),) * len(part),
            )
            for part in ([pairs] if micro_batch == 2 else [pairs[:1], pairs[1:]])
        ]
        return loop, [loop.train_step(batches).total.item()]

    whole, losses = step_of(2)
    accumulated, same = step_of(1)
    assert same == pytest.approx(losses, rel=TOLERANCE)
    for (name, one), other in zip(whole.model.named_parameters(), accumulated.model.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None
            scale = one.grad.norm()
            assert (one.grad - other.grad).norm() <= TOLERANCE * scale, name
        assert (one - other).norm() <= TOLERANCE * one.norm(), name
