"""When Ray Train's controller restarts the workers of a training, and with how many.

Both classes replace Ray's own in its controller, which offers no setting for what they add.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    AUTOSCALING_REQUESTS_GET_TIMEOUT_S,
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    ScalingPolicy,
)
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipelines.cluster.user_errors import find
from pipelines.train.engine.news import Ended, Kind
from pipelines.train.engine.pulse import LeftError, ask
from pipelines.train.rank_hooks import tell
from sparse_detr.errors import SparseDetrError, StoreUnavailableError

logger = logging.getLogger(__name__)


class HungError(WorkerGroupError):
    """Workers gave no sign of life for too long."""


def scaling_policy(config: ScalingConfig) -> ScalingPolicy:
    """The policy for a fixed or an elastic number of workers."""
    return ResizeAtCheckpoint(config) if config.elasticity_enabled else FixedScalingPolicy(config)


Resources = dict[str, dict[str, float]]
"""Of each node, by kind."""


class ResizeAtCheckpoint(ElasticScalingPolicy):
    """Takes in new nodes without losing a step: the workers write a checkpoint first, and end by themselves."""

    def __init__(self, scaling_config: ScalingConfig) -> None:
        super().__init__(scaling_config)
        self._own: Resources = {}
        """What the workers of this training hold."""
        self._tried = self._only_free = False

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many as there should be room for; if that failed, as there is."""
        self._own, self._only_free = {}, self._tried
        decision = super().make_decision_for_non_running_worker_group()
        self._tried = isinstance(decision, ResizeDecision)
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Ask the workers to leave where there could be more of them."""
        self._tried, self._only_free = False, True
        self._own = _held(worker_group_state.workers)
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision) and decision.num_workers > worker_group_state.num_workers:
            worker_group_state.workers[0].execute_async(ask, "resize")
        # With fewer, those that are gone will show as a failure.
        return NoopDecision()

    def _get_reserved_resources(self) -> Resources | None:
        """What Ray's coordinator keeps for this training, without nodes that are about to go, and without what others
        hold: it knows those alone that ask it. Where they have just ended, what was theirs may not yet be free."""
        now = time.monotonic()
        if now - self._latest_reserved_resources_query_time < self.GET_RESERVED_RESOURCES_INTERVAL_S:
            return self._latest_reserved_resources
        self._latest_reserved_resources_query_time = now
        reserved, usable = self._reserved(), _usable_nodes()
        found = None if reserved is None else {node: each for node, each in reserved.items() if node in usable}
        if found is not None and self._only_free:
            found = _at_most(found, _free(), self._own)
        self._latest_reserved_resources = found
        return found

    def _reserved(self) -> Resources | None:
        # By itself it looks for nodes that died or came only every 20 seconds.
        fresh = self._autoscaling_coordinator.get_reserved_resources.remote(self._requester_id, recompute=True)
        try:
            found: Resources = ray.get(fresh, timeout=AUTOSCALING_REQUESTS_GET_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            logger.warning("Ray's coordinator does not answer (%s); the number of workers stays", error)
            return None
        return found


def _held(workers: Any) -> Resources:
    found: Resources = {}
    for worker in workers:
        of_node = found.setdefault(worker.metadata.node_id, {})
        for kind, amount in worker.resources.items():
            of_node[kind] = of_node.get(kind, 0.0) + amount
    return found


def _at_most(reserved: Resources, free: Resources, own: Resources) -> Resources:
    def limit(node: str, kind: str) -> float:
        return free.get(node, {}).get(kind, 0.0) + own.get(node, {}).get(kind, 0.0)

    return {node: {kind: min(n, limit(node, kind)) for kind, n in of.items()} for node, of in reserved.items()}


def _free() -> Resources:
    found: Resources = ray._private.state.available_resources_per_node()  # type: ignore[no-untyped-call]
    return found


def _usable_nodes() -> set[str]:
    draining = ray._private.state.state.get_draining_nodes()
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"] for node in nodes if node["Alive"]} - set(draining)


class RestartPolicy(DefaultFailurePolicy):
    """Ray's, but a user error is final, workers that left on purpose did not fail, and the driver is told.

    A store that is away is no user error: it comes back, and others go on from the last checkpoint.
    """

    def __init__(self, failure_config: Any, box: Any) -> None:
        super().__init__(failure_config)
        self._box = box

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Restart, or end the training."""
        error = training_failed_error
        failures = getattr(error, "worker_failures", {})
        left = [str(each) for each in failures.values() if isinstance(each, LeftError)]
        if left:
            self._tell("preemption" if left[0] == "preemption" else "resize", _LEFT[left[0]])
            return FailureDecision.RETRY
        if final_error(error) is not None:
            return FailureDecision.RAISE
        decision = super().make_decision(error)
        if isinstance(error, ControllerError):
            # Workers could not be started: those before are told of already.
            return decision
        kind: Kind = "hang" if isinstance(error, HungError) else "failure"
        self._tell("preemption" if _is_preemption(error) else kind, cause(error))
        return decision

    def _tell(self, kind: Kind, text: str) -> None:
        tell(self._box, Ended(kind=kind, cause=text))


_LEFT = {"preemption": "a node is about to go", "resize": "there is room for more workers"}


def final_error(error: BaseException) -> SparseDetrError | None:
    """The user error behind the end of workers that would be there again after a restart."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    found = [find(each) for each in (error, *failures.values())]
    return next((each for each in found if each is not None and not isinstance(each, StoreUnavailableError)), None)


def _is_preemption(error: Any) -> bool:
    return hasattr(error, "preemption_info")


def cause(error: Any) -> str:
    """What became of the workers, in one line: first of a worker that died, as others fail only because of it."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    dead = [rank for rank, each in failures.items() if isinstance(each, WorkerHealthCheckFailedError)]
    if isinstance(error, HungError):
        return _line(failures[min(failures)])
    if not failures:
        return _line(error)
    away = [rank for rank, each in failures.items() if isinstance(find(each), StoreUnavailableError)]
    rank = min(dead or away or failures)
    found = failures[rank]
    if dead:
        return f"worker {rank} died: {_line(getattr(found, 'health_check_failure', found))}"
    if away:
        return f"worker {rank} failed: {_line(find(found) or found)}"
    if "closed by peer" in str(found).lower() or "reset by peer" in str(found).lower():
        return f"the process or the node of a worker is gone (seen by worker {rank})"
    return f"worker {rank} failed: {type(found).__name__}: {_line(found)}"


def _line(error: BaseException) -> str:
    """The most telling line of a message of Ray's, which may have a page."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "died" in line.lower() or "unexpected" in line.lower()]
    return (telling or lines or [type(error).__name__])[0][:300]
