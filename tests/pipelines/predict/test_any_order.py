"""Whatever happens to a run, in whatever order, ends in the rows of a run that nothing happened to.

The product's own code runs here, with two parts played: workers, which look at no pixel, so that a run takes a fraction
of a second; and a disk on which a process can die before, in the middle of or after any write. From then on nothing of
that process reaches the disk, whatever it tries on its way out; but some of its workers may outlive it for a block.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.cluster.session import RaySession
from pipelines.detect.load import describe_checked
from pipelines.predict import run
from pipelines.predict.config import PredictConfig
from pipelines.predict.parts import part_rows, read_detections
from pipelines.predict.resume import Journal
from pipelines.predict.run import predict
from sparse_detr.errors import IncompleteError, OutputExistsError
from sparse_detr.storage import lease
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.output import CLEARING
from tests.played_run import Disk, Kill, KilledError, Moment, Workers

IMAGES, BROKEN = 11, (1, 4, 5, 10)


Kind = Literal["resume", "retry", "overwrite", "overwrite with another threshold", "refused", "repair", "damage"]


@dataclass(frozen=True)
class Step:
    """One command; or what happens between two: a broken image is repaired, a part damaged."""

    kind: Kind
    kill: Kill | None = None
    block: int = 3
    csv: bool = False
    away: int = 0
    """Blocks that are left undone, because the store is away."""
    journal: bool = False
    """Whether the journal is written at every part, not at the end alone."""


KILLS = st.builds(
    Kill, write=st.integers(0, 24), moment=st.sampled_from(["before", "middle", "after"]), outlived=st.integers(0, 2)
)
STEPS = st.builds(
    Step,
    kind=st.sampled_from(["resume", "resume", "retry", "retry", "overwrite", "overwrite with another threshold",
                          "refused", "repair", "damage"]),
    kill=st.one_of(st.none(), KILLS, KILLS),
    block=st.integers(2, 5),
    csv=st.booleans(),
    away=st.sampled_from([0, 0, 1, 2]),
    journal=st.booleans(),
)  # fmt: skip


@dataclass
class World:
    """A collection, the output of runs on it, and what its owner wants of it."""

    images: Path
    config: PredictConfig
    disk: Disk
    workers: Workers
    broken: list[int]
    overwriting: bool = False
    """Whether an overwrite was killed, so that a run that goes on may be told to overwrite."""
    refused: bool = False
    """Whether the last run was told so."""
    killed: bool = False
    """Whether the last run was killed: a kill may be planned for a write that never comes."""

    @property
    def output(self) -> Location:
        """Where the rows are to be."""
        return locate(self.config.output)

    def take(self, step: Step) -> None:
        """Do a step, and check what is always true."""
        if step.kind == "repair":
            _write_image(self.images, self.broken.pop(), "repaired") if self.broken else None
        elif step.kind == "damage":
            self._damage(step.block)
        elif step.kind == "refused":
            self._refused()
        else:
            self._run(step)
        if self.output.child("_SUCCESS.json").exists():
            assert_whole(self.output)

    def _run(self, step: Step) -> None:
        config = replace(self.config, images_per_block=step.block, csv=step.csv)
        if step.kind == "retry":
            config = replace(config, retry_errors=True)
        if step.kind.startswith("overwrite"):
            if "threshold" in step.kind:
                self.config = replace(self.config, score_threshold=round(0.7 - config.score_threshold, 1))
            config = replace(config, existing="overwrite", score_threshold=self.config.score_threshold)
        self.refused = self.killed = False
        self.workers.away = step.away
        try:
            with self.disk.dying(step.kill), pytest.MonkeyPatch.context() as patch:
                patch.setattr(Journal, "PAUSE", -1.0 if step.journal else 10.0)
                predict(config, connect=_no_ray)
        except KilledError:
            self.killed = True
            self.overwriting |= config.existing == "overwrite"
        except OutputExistsError as error:
            if not self.overwriting or config.existing != "resume" or "to overwrite" not in str(error):
                raise
            self.refused = True
        except IncompleteError:
            assert self.workers.away < step.away, "every block was done"
        else:
            assert self.workers.away == step.away, "not every block was done"
            self.overwriting = False

    def _refused(self) -> None:
        if not self.output.child("_run.json").exists():
            return
        before = _contents(self.output)
        with pytest.raises(OutputExistsError, match="overwrite"):
            predict(replace(self.config, score_threshold=0.9), connect=_no_ray)
        assert _contents(self.output) == before

    def _damage(self, number: int) -> None:
        """Of a run that is not finished: what is finished is not looked at again."""
        folder = self.output.child("detections")
        parts = folder.list() if folder.exists() and not self.output.child("_SUCCESS.json").exists() else []
        if parts:
            part = folder.child(parts[number % len(parts)])
            part.write_bytes(part.read_bytes()[:-9])

    def finish(self) -> None:
        """What the owner does at last, undisturbed; it ends in the rows of a run that nothing happened to."""
        repaired = len(self.broken) < len(BROKEN)
        self.take(Step("resume", csv=True))
        if self.refused:
            self.take(Step("overwrite", csv=True))
        if repaired:
            self.take(Step("retry", csv=True))
        fresh = locate(f"{self.config.output}-fresh")
        predict(replace(self.config, output=fresh.uri, csv=True), connect=_no_ray)
        assert_whole(self.output)
        assert not self.output.child(CLEARING).exists()
        assert _rows(self.output) == _rows(fresh)
        assert self.output.child("detections.csv").read_bytes() == fresh.child("detections.csv").read_bytes()
        assert _errors(self.output).equals(_errors(fresh))


NewWorld = Callable[..., World]


def _write_image(folder: Path, number: int, kind: str) -> None:
    (folder / f"{number:02d}.jpg").write_bytes(f"{kind} {number}".encode())


@contextmanager
def _no_ray() -> Iterator[RaySession]:
    yield RaySession(address="", dashboard=None, cpus=2, gpus=0, local=True)


def _contents(folder: Location) -> dict[str, bytes]:
    """Every file but those of the lease."""
    return {name: folder.child(name).read_bytes() for name in folder.list(recursive=True) if "_lease/" not in name}


def _rows(output: Location) -> list[dict[str, Any]]:
    return pa.concat_tables(read_detections(output)).to_pylist()  # type: ignore[no-any-return]


def _errors(output: Location) -> pa.Table:
    return pq.read_table(pa.BufferReader(output.child("errors.parquet").read_bytes()))


def assert_whole(output: Location) -> None:
    """What `_SUCCESS.json` promises: it names every part, as it is there, and the other files say the same."""
    success = json.loads(output.child("_SUCCESS.json").read_bytes())
    folder = output.child("detections")
    assert [part["name"] for part in success["parts"]] == [name for name in folder.list() if part_rows(name)]
    for part in success["parts"]:
        assert hashlib.sha256(folder.child(part["name"]).read_bytes()).hexdigest() == part["sha256"]
    rows = _rows(output)
    assert [row["key"] for row in rows] == [f"{number:02d}.jpg" for number in range(IMAGES)]
    assert {row["fingerprint"] for row in rows} == {success["fingerprint"]}
    boxes = sum(len(row["detections"]) for row in rows)
    failed = [row["key"] for row in rows if row["error"] is not None]
    assert (success["images"], success["detections"], success["errors"]) == (IMAGES, boxes, len(failed))
    assert _errors(output).column("key").to_pylist() == failed
    if output.child("detections.csv").exists():
        assert len(output.child("detections.csv").read_bytes().splitlines()) == 1 + boxes


@pytest.fixture(scope="module")
def model_seen_once(model_folder: str) -> Iterator[None]:
    """Look at the model once, not in every run."""
    config = PredictConfig(model=model_folder, images="i", output="o")
    seen = describe_checked(config, [None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "describe_checked", lambda *_: seen)
        yield


@pytest.fixture
def new_world(model_seen_once: None, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewWorld]:
    """Makes a collection with broken images, and an output that is not there yet."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        workers = Workers(disk)
        patch.setattr(run, "stream", workers.stream)
        patch.setattr(lease, "HEARTBEAT_SECONDS", 3600.0)

        def make(output: str = "") -> World:
            folder = tmp_path_factory.mktemp("world")
            (folder / "images").mkdir()
            for number in range(IMAGES):
                _write_image(folder / "images", number, "broken" if number in BROKEN else "sound")
            config = PredictConfig(
                model=model_folder, images=str(folder / "images"), output=output or str(folder / "out"),
                score_threshold=0.2, error_budget="100%",
            )  # fmt: skip
            return World(folder / "images", config, disk, workers, list(BROKEN))

        yield make


# The same examples each time; for a search, take derandomize away and raise their number.
SEARCH = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(SEARCH, max_examples=60)
@given(steps=st.lists(STEPS, max_size=7))
def test_any_sequence_ends_in_the_rows_of_an_undisturbed_run(new_world: NewWorld, steps: list[Step]) -> None:
    _take_all(new_world(), steps)


@pytest.mark.slow
@settings(SEARCH, max_examples=25)
@given(steps=st.lists(STEPS, max_size=5))
def test_so_does_one_in_a_store(new_world: NewWorld, store: Location, steps: list[Step]) -> None:
    _take_all(new_world(store.child(secrets.token_hex(8)).uri), steps)


def _take_all(world: World, steps: list[Step]) -> None:
    for step in steps:
        world.take(step)
    world.finish()


DONE, GOES_ON = Step("resume", csv=True), Step("resume", kill=Kill(write=9, moment="after", outlived=0))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["middle", "after"])
@pytest.mark.parametrize(
    ("before", "kind"),
    [
        ([], "resume"),
        ([GOES_ON], "resume"),
        ([DONE, Step("repair"), Step("repair")], "retry"),
        ([GOES_ON, Step("repair"), Step("repair")], "retry"),
        ([DONE], "overwrite"),
        ([GOES_ON], "overwrite with another threshold"),
    ],
)
def test_a_kill_at_any_write_costs_nothing(new_world: NewWorld, before: list[Step], kind: Kind, moment: Moment) -> None:
    """At every single write of such a run, until it has no more of them."""
    for write in range(100):
        world = new_world()
        for step in before:
            world.take(step)
        world.take(Step(kind, kill=Kill(write=write, moment=moment, outlived=1), csv=True, journal=True))
        if not world.killed:
            break
        world.finish()
    assert 10 < write < 40
