"""A Ray to work on: the cluster that RAY_ADDRESS names, or one of this process's own that ends with it."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.cluster import reaper
from pipelines.cluster.connection import join
from sparse_detr.environment import environment

# Ray reads these when it is imported or when it starts its processes, so they are set before.
_SETTINGS = {
    # Report of a checkpoint waits for the controller's next poll: 2 s by default, once an epoch and rank.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Without it every line that a worker prints shows twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # How long Ray Train waits for room for its workers before it asks anew (60 s by default): the first request may
    # count on a node that has just died, and one that waits for a new node loses nothing by being repeated.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_USAGE_STATS_ENABLED": "0",
    # The newer output of Ray Tune prints its settings and paths even when told to be silent.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ray Data otherwise draws its own bars over ours.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Keep devices visible where an actor asks for no GPU: Ray will do so in future, and warns until told.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A trial reports every epoch, and not every epoch is evaluated: Tune would stop the sweep for want of an AP.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySession:
    """Ray that a session runs on."""

    address: str
    """Address of the cluster's head, as Ray knows it."""
    dashboard: str | None
    """URL of the dashboard; None where it does not run."""
    cpus: float
    """Logical CPUs of the cluster."""
    gpus: float
    local: bool
    """Whether the cluster was started here and ends with the session."""
    logs: str | None = None
    """Folder of the logs of Ray and its workers, where they run on this machine."""

    @property
    def resources(self) -> dict[str, float]:
        """CPUs and GPUs under Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus}

    def describe(self) -> str:
        """One line for the terminal."""
        kind = "local Ray" if self.local else f"Ray at {self.address}"
        dashboard = f", dashboard {self.dashboard}" if self.dashboard else ""
        logs = f", logs in {self.logs}" if self.logs else ", logs in the dashboard or by `ray logs`"
        return f"{kind}: {self.cpus:g} CPUs, {self.gpus:g} GPUs{dashboard}{logs}"


Connect = Callable[[], AbstractContextManager[RaySession]]
"""Opens a session, as `ray_session` does."""


def announced(say: Callable[[str], None], connect: Connect | None = None) -> Connect:
    """A `Connect` that also says which Ray it is, and where its logs are."""

    @contextmanager
    def opened() -> Iterator[RaySession]:
        with (connect or ray_session)() as session:
            say(session.describe())
            yield session

    return opened


_LOOPBACK_ONLY = {
    # Ray's switch for laptops that cannot hold a cluster: its local processes then listen on the loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Otherwise gloo listens on the address that the host's name stands for.
    "GLOO_SOCKET_IFNAME": "lo",
}
_OWNER = "SPARSE_DETR_RAY_OWNER"
"""Variable by which the processes of a local Ray are known."""
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def prepare_environment() -> None:
    """Settings that must stand before `import ray`; what the user has set stays.

    Without RAY_ADDRESS everything that Ray and gloo open listens on the loopback alone. One socket does not: the
    TCPStore by which the workers of a training find each other. torch binds it to all addresses, on a free port, as
    long as the training runs, and has no setting for it; keep the ports of the machine behind a firewall.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        for name, value in _LOOPBACK_ONLY.items():
            os.environ.setdefault(name, value)


def available_cpus(quota: Path = _QUOTA) -> int:
    """CPUs that this process may use, at least 1: those that it is bound to, and no more than its container gets.

    Args:
        quota: the container's `cpu.max` (cgroup v2): "<microseconds of CPU time, or max> <in so many microseconds>".
    """
    bound = len(os.sched_getaffinity(0))
    try:
        time, period = quota.read_text().split()
        return max(1, min(bound, int(time) // int(period)))
    except (OSError, ValueError):
        # No such file, as under cgroup v1 or outside of a container, or "max": no limit.
        return bound


@contextmanager
def ray_session(*, logical_cpus: int | None = None) -> Iterator[RaySession]:
    """Connect to the cluster of RAY_ADDRESS, or start one here; leave or stop it on every way out.

    A process that is connected already keeps its connection.

    Args:
        logical_cpus: CPUs that a local Ray believes in; None gives as many as there are, and at least 4: on
            2 CPUs the actors of Train, Tune and Data would wait for each other for ever.

    What Ray and its workers print stays out of this process's output; it is in the session's folder of logs.

    Raises:
        ConfigError: RAY_ADDRESS leads to no Ray, or to one that refuses this process.
    """
    prepare_environment()
    import ray

    _to_error_stream()
    if ray.is_initialized():
        yield _describe(local=False)
        return
    # Never "auto": a local cluster that another process left behind must not be picked up by chance.
    address = os.environ.get("RAY_ADDRESS")
    with nullcontext() if address else _reaped():
        if address:
            join(address)
        else:
            _start(logical_cpus or max(4, available_cpus()))
        try:
            yield _describe(local=not address)
        finally:
            ray.shutdown()


def _start(cpus: int) -> None:
    import ray

    _stay_on_loopback()
    ray.init(
        address="local",
        num_cpus=cpus,
        # Ray Train asks the dashboard's state service about its controller.
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


@contextmanager
def _reaped() -> Iterator[None]:
    """Processes that begin within the block end soon after this one, also if it is killed."""
    value = secrets.token_hex(8)
    program = [sys.executable, "-I", "-S", str(Path(reaper.__file__).resolve()), _OWNER, value]
    # In a session of its own: Ctrl-C is for this process, which then ends in order.
    process = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with environment({_OWNER: value}):
            yield
    finally:
        process.communicate(b".")


def _to_error_stream() -> None:
    """Send what Ray tells of its nodes (one is dead, one has no memory) where its C++ parts write, which a command
    keeps aside: Ray prints it between a command's results."""
    import ray._private.worker

    def told(data: Any, ignore_prefix: bool = False) -> None:
        os.write(2, "".join(f"({data['pid']}) {line}\n" for line in data["lines"]).encode(errors="replace"))

    ray._private.worker.print_to_stdstream = told


def _stay_on_loopback() -> None:
    """Ray reads its switch when it is imported, which another module may have done before `prepare_environment`."""
    from ray._private import ray_constants

    if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == "0":
        ray_constants.ENABLE_RAY_CLUSTER = False


def _describe(*, local: bool) -> RaySession:
    import ray
    from ray._private.worker import get_dashboard_url, global_worker

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    context = ray.get_runtime_context()
    # Over ray:// the worker of this process is at the head, and Ray refuses to tell.
    url = get_dashboard_url() if global_worker.connected else None  # type: ignore[no-untyped-call]
    return RaySession(
        address=context.gcs_address,
        dashboard=f"http://{url}" if url else None,
        cpus=float(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0)),
        local=local,
        logs=global_worker.node.get_logs_dir_path() if local and global_worker.node else None,
    )
