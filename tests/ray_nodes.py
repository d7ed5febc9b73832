"""A Ray cluster of the tests' own: its port, token, folder and processes are no other Ray's, and all of it listens on
the loopback alone. Its nodes are raylets on this machine, each of which can be killed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class RayNodes:
    """A cluster that runs."""

    environment: dict[str, str]
    """Of the commands that are to use it."""
    raylets: list[int]
    """Process of each node, the head's first: the parent of its workers."""
    folders: list[str]
    """Of each node; `ray.init(_temp_dir=...)` makes a driver one of that node's."""
    ids: list[str]
    """Of each node, as Ray names it."""
    server: subprocess.Popen[str]
    """Process that started the nodes."""

    def add(self, cpus: int) -> int:
        """Start one more node; returns its place."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(f"{cpus}\n")
        self.server.stdin.flush()
        started = json.loads(self.server.stdout.readline())
        self.raylets.append(started["raylet"])
        self.folders.append(started["folder"])
        self.ids.append(started["id"])
        return len(self.raylets) - 1

    def kill(self, node: int) -> None:
        """End a node and all its processes without a word, as when its machine is gone."""
        for pid in (self.raylets[node], *children(self.raylets[node])):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

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
            [sys.executable, __file__, str(folder / "ray"), str(cpus[0])],
            env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "log").read_text()
        address = json.loads(line)["address"]
        nodes = RayNodes(variables | {"RAY_ADDRESS": address}, [], [], [], process)
        for count in cpus:
            nodes.add(count)
        yield nodes
    finally:
        process.communicate(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _serve(folder: str, cpus: int) -> None:
    """Run the nodes until the input ends, each line of which asks for one with so many CPUs, the first for the head."""
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET
    from ray.cluster_utils import Cluster

    from pipelines.services.process import free_ports

    cluster = Cluster()
    (port,) = free_ports(1)

    def answer(**values: object) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    head = cluster.add_node(num_cpus=cpus, temp_dir=f"{folder}/0", dashboard_port=port)
    answer(address=cluster.address)
    for number, line in enumerate(sys.stdin):
        own = f"{folder}/{number}"
        node = cluster.add_node(num_cpus=int(line), temp_dir=own, dashboard_port=port) if number else head
        raylet = node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid
        answer(raylet=raylet, folder=own, id=node.node_id)
    cluster.shutdown()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
