"""A Ray cluster of the tests' own: its port, token, folder and processes are no other Ray's, and all of it listens on
the loopback alone. Its nodes are raylets on this machine, each of which can be killed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RayNodes:
    """A cluster that runs."""

    environment: dict[str, str]
    """Of the commands that are to use it."""
    raylets: tuple[int, ...]
    """Process of each node, the head's first: the parent of its workers."""
    folders: tuple[str, ...]
    """Of each node; `ray.init(_temp_dir=...)` makes a driver one of that node's."""

    def workers(self, name: str) -> dict[int, int]:
        """Processes of that name, such as `ray::MapWorker`, and the raylet of each."""
        return {pid: raylet for raylet in self.raylets for pid, line in children(raylet).items() if name in line}


def children(parent: int) -> dict[int, str]:
    """Command lines of the processes that a process started and that live."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


@contextmanager
def ray_nodes(cpus: Sequence[int], environment: Mapping[str, str] | None = None) -> Iterator[RayNodes]:
    """A cluster with a node for each number of CPUs, the head's first; it ends with the block, or with this process.

    Args:
        cpus: of each node.
        environment: more variables for the nodes, and for the commands that use them.
    """
    # Under /tmp: the paths of Ray's sockets may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="sd-ray-", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MLFLOW_"))}
    variables |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        **(environment or {}),
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder / "ray"), *map(str, cpus)],
            env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        started = json.loads(line)
        yield RayNodes(
            environment=variables | {"RAY_ADDRESS": started["address"]},
            raylets=tuple(started["raylets"]),
            folders=tuple(started["folders"]),
        )
    finally:
        process.communicate(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: str, cpus: Sequence[int]) -> None:
    """Run the nodes until the input ends."""
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET
    from ray.cluster_utils import Cluster

    from pipelines.services.process import free_ports

    cluster = Cluster()
    (port,) = free_ports(1)
    folders = [f"{folder}/{number}" for number in range(len(cpus))]
    nodes = [
        cluster.add_node(num_cpus=count, temp_dir=own, dashboard_port=port)
        for count, own in zip(cpus, folders, strict=True)
    ]
    raylets = [node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid for node in nodes]
    sys.stdout.write(json.dumps({"address": cluster.address, "raylets": raylets, "folders": folders}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _serve(sys.argv[1], [int(count) for count in sys.argv[2:]])
