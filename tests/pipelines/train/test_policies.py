"""What the controller makes of workers that end, and of workers that are silent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ResizeDecision
from ray.train.v2.api.config import FailureConfig, ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipelines.train import policies, supervision
from pipelines.train.engine.hooks import NoHooks
from pipelines.train.engine.news import Ended, Fact, Silent
from pipelines.train.engine.progress import StepProgress
from pipelines.train.engine.pulse import PULSE, LeftError, Pulse, Sign
from pipelines.train.policies import HungError, ResizeAtCheckpoint, RestartPolicy, cause, final_error
from pipelines.train.rank_hooks import FirstRankHooks
from pipelines.train.supervision import Supervision
from sparse_detr.errors import ImageError, StoreUnavailableError

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE


@dataclass
class Box:
    """A news box without an actor."""

    facts: list[Fact] = field(default_factory=list)
    stop: bool = False

    @property
    def put(self) -> Any:
        return SimpleNamespace(remote=self.facts.append)

    @property
    def stop_asked(self) -> Any:
        return SimpleNamespace(remote=lambda: self.stop)


def failed(**workers: Exception) -> WorkerGroupError:
    return WorkerGroupError("pages of text", {int(name[1:]): error for name, error in workers.items()})


DEAD = WorkerHealthCheckFailedError("A worker health check failed.", RayActorError(error_msg="The actor died: SIGKILL"))
RESET = RuntimeError("[pair.cc:537] Read error [127.0.0.1]:15266: Connection reset by peer. This is typically ...")


def test_failures_count_up_to_the_limit_and_a_start_that_takes_long_does_not() -> None:
    box = Box()
    policy = RestartPolicy(FailureConfig(max_failures=2), box)
    waits = ControllerError(WorkerGroupStartupTimeoutError(2))
    assert [policy.make_decision(each) for each in (failed(w1=DEAD), waits, waits, failed(w0=RESET))] == [RETRY] * 4
    assert policy.make_decision(failed(w0=RESET, w1=DEAD)) is RAISE
    died = Ended(kind="failure", cause="worker 1 died: The actor died: SIGKILL")
    lost = Ended(kind="failure", cause="the process or the node of a worker is gone (seen by worker 0)")
    assert box.facts == [died, lost, died]


def test_a_user_error_is_final() -> None:
    box = Box()
    policy = RestartPolicy(FailureConfig(max_failures=2), box)
    assert policy.make_decision(failed(w0=RESET, w1=ImageError("7.jpg: broken"))) is RAISE
    assert box.facts == []


def test_a_store_that_is_away_counts_as_a_failure() -> None:
    box = Box()
    policy = RestartPolicy(FailureConfig(max_failures=2), box)
    away = failed(w0=RESET, w1=StoreUnavailableError("s3://bucket/7.jpg: the store is busy or away"))
    assert [policy.make_decision(away) for _ in range(3)] == [RETRY, RETRY, RAISE]
    assert final_error(away) is None
    told = "worker 1 failed: s3://bucket/7.jpg: the store is busy or away"
    assert box.facts == [Ended(kind="failure", cause=told)] * 3
    both = failed(w0=StoreUnavailableError("away"), w1=ImageError("7.jpg: broken"))
    assert RestartPolicy(FailureConfig(max_failures=2), box).make_decision(both) is RAISE
    assert isinstance(final_error(both), ImageError)


@pytest.mark.parametrize("reason", ["resize", "preemption"])
def test_workers_that_left_on_purpose_did_not_fail(reason: str) -> None:
    box = Box()
    policy = RestartPolicy(FailureConfig(max_failures=0), box)
    for _ in range(5):
        assert policy.make_decision(failed(w0=LeftError(reason))) is RETRY
    assert [fact.kind for fact in box.facts if isinstance(fact, Ended)] == [reason] * 5


def test_causes_are_one_line() -> None:
    assert cause(failed(w3=ValueError("first\nsecond"))) == "worker 3 failed: ValueError: first"
    assert cause(HungError("worker 1 is silent", {1: TimeoutError("worker 1 is silent")})) == "worker 1 is silent"


def test_no_more_workers_are_wanted_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's coordinator counts CPUs that an actor of another job holds."""
    asked: list[str] = []
    policy = ResizeAtCheckpoint(ScalingConfig(num_workers=(1, 3), elastic_resize_monitor_interval_s=0))
    policy.GET_RESERVED_RESOURCES_INTERVAL_S = -1
    free = {"head": {"CPU": 0.0}, "other": {"CPU": 1.0}}
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    monkeypatch.setattr(
        policy, "_reserved", lambda: {"head": {"CPU": 2.0}, "other": {"CPU": 1.0}, "dead": {"CPU": 1.0}}
    )
    monkeypatch.setattr(policies, "_usable_nodes", lambda: {"head", "other"})
    monkeypatch.setattr(policies, "_free", lambda: free)

    def wanted() -> int | None:
        decision = policy.make_decision_for_non_running_worker_group()
        return decision.num_workers if isinstance(decision, ResizeDecision) else None

    def running(*nodes: str) -> Any:
        def execute_async(_: Any, what: str) -> None:
            asked.append(what)

        workers = [
            SimpleNamespace(metadata=SimpleNamespace(node_id=node), resources={"CPU": 1.0}, execute_async=execute_async)
            for node in nodes
        ]
        return SimpleNamespace(workers=workers, num_workers=len(workers), start_time=0.0)

    # What the workers held until now may not be free yet; if they cannot start, it is another's.
    assert [wanted(), wanted(), wanted()] == [3, 1, 1]
    free["other"]["CPU"] = 0.0
    policy.make_decision_for_running_worker_group(running("other"), None)
    assert asked == []
    free["head"]["CPU"] = 1.0
    policy.make_decision_for_running_worker_group(running("other"), None)
    assert asked == ["resize"]
    free |= {"head": {"CPU": 0.0}, "other": {"CPU": 0.0}}
    assert [wanted(), wanted()] == [3, None]


@dataclass
class Worker:
    """A worker whose process answers, or does not."""

    rank: int
    sign: Sign
    answers: bool = True
    asked: list[str] = field(default_factory=list)

    def execute_async(self, work: Any, *arguments: str) -> Any:
        self.asked += arguments
        return self

    metadata = SimpleNamespace(pid=123, node_ip="10.0.0.2")

    @property
    def distributed_context(self) -> Any:
        return SimpleNamespace(world_rank=self.rank)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Seconds that pass when told to, and Ray's answers without Ray."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def wait(questions: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        ready = [each for each in questions if not isinstance(each, Worker) or each.answers]
        return ready, [each for each in questions if each not in ready]

    answers = SimpleNamespace(
        wait=wait, get=lambda each: each.sign if isinstance(each, Worker) else each, exceptions=ray.exceptions
    )
    monkeypatch.setattr(supervision, "ray", answers)
    return clock


def watching(box: Box, minutes: float, *workers: Worker) -> Supervision:
    found = Supervision(box, minutes)
    found.after_worker_group_training_start(SimpleNamespace(get_workers=lambda: workers))
    return found


def poll(found: Supervision, clock: SimpleNamespace, seconds: int, preempted: bool = False) -> None:
    status = SimpleNamespace(errors={}, get_preemption_info=lambda: object() if preempted else None)
    for _ in range(seconds):
        clock.now += 1
        found.after_worker_group_poll_status(status)


def sign(phase: Any = "training", seconds: float = 0.5, longest: float = 1.0) -> Sign:
    return Sign(phase=phase, step=7, seconds=seconds, longest=longest)


def test_a_process_that_stands_still_is_named_and_then_ended(clock: SimpleNamespace) -> None:
    box, still = Box(), Worker(1, sign())
    found = watching(box, 2, Worker(0, sign()), still)
    poll(found, clock, 50)
    assert box.facts == []
    still.answers = False
    poll(found, clock, 40)
    [named] = box.facts
    assert isinstance(named, Silent)
    assert named.worker == "worker 1 (process 123 on 10.0.0.2)"
    assert 30 < named.seconds < 35
    with pytest.raises(HungError, match=r"worker 1 \(process 123 on 10.0.0.2\) gave no sign of life for 12. s"):
        poll(found, clock, 100)


def test_a_thread_that_stands_still_in_a_step_is_ended_and_not_while_one_waits_for_the_store(
    clock: SimpleNamespace,
) -> None:
    first, second = Worker(0, sign("storing", 500)), Worker(1, sign(seconds=500))
    found = watching(Box(), 2, first, second)
    poll(found, clock, 300)
    first.sign = sign()
    with pytest.raises(HungError, match="worker 1"):
        poll(found, clock, 3)


def test_one_that_comes_back_is_said_and_long_steps_are_no_silence(clock: SimpleNamespace) -> None:
    box, worker = Box(), Worker(0, sign(seconds=100, longest=60))
    found = watching(box, 0, worker)
    poll(found, clock, 20)
    assert box.facts == []
    worker.sign = sign(seconds=200, longest=60)
    poll(found, clock, 3)
    worker.sign = sign(seconds=1, longest=200)
    poll(found, clock, 3)
    assert [isinstance(fact, Silent) and fact.seconds > 0 for fact in box.facts] == [True, False]


def test_the_first_worker_is_asked_to_stop_and_once_to_leave(clock: SimpleNamespace) -> None:
    box, first, second = Box(), Worker(0, sign()), Worker(1, sign())
    found = watching(box, 0, first, second)
    poll(found, clock, 5)
    assert first.asked == []
    poll(found, clock, 5, preempted=True)
    assert first.asked == ["preemption"]
    box.stop = True
    poll(found, clock, 3)
    assert set(first.asked) == {"preemption", "stop"}
    assert second.asked == []


def test_a_box_with_too_many_calls_is_asked_again(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    box, first = Box(stop=True), Worker(0, sign())
    found = watching(box, 0, first)

    def full() -> bool:
        raise ray.exceptions.PendingCallsLimitExceeded("1000 calls wait")

    with monkeypatch.context() as patch:
        patch.setattr(Box, "stop_asked", SimpleNamespace(remote=full))
        poll(found, clock, 3)
    assert first.asked == []
    poll(found, clock, 3)
    assert set(first.asked) == {"stop"}


def test_what_follows_an_epoch_may_wait_for_the_store() -> None:
    phases: dict[str, str] = {}

    class Slow(NoHooks):
        """A tracker, a checkpointer and a report."""

        def metrics(self, *_: object) -> None:
            phases["metrics"] = PULSE.sign().phase

        def take(self, _: object) -> None:
            phases["take"] = PULSE.sign().phase

        def epoch_done(self, *_: object) -> None:
            phases["report"] = PULSE.sign().phase

    slow: Any = Slow()
    progress = StepProgress(epoch=1, epochs=2, step=3, steps=6, metrics={"epoch": 1.0})
    FirstRankHooks(Box(), slow, slow, (slow,)).epoch_done(cast(Any, SimpleNamespace(snapshot=object)), progress)
    assert phases == dict.fromkeys(("metrics", "take", "report"), "storing")
    assert PULSE.sign().phase == "training"


def test_a_pulse_keeps_the_longest_time_between_beats_of_a_step() -> None:
    pulse = Pulse()
    time.sleep(0.2)
    pulse.beat("training", 3)  # the start counts for nothing
    pulse.beat("evaluating")
    assert pulse.sign().longest < 0.1
    time.sleep(0.1)
    pulse.beat("training", 4)
    found = pulse.sign()
    assert (found.phase, found.step) == ("training", 4)
    assert found.longest >= 0.1
